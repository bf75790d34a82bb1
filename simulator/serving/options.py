"""Flags that `serve` and `plan` share, turned into requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from simulator.errors import InputError
from simulator.serving.readers import read_requests
from simulator.serving.requests import Requests
from simulator.serving.synthetic import arrival_times, synthetic


def load(
    path: Path | None,
    *,
    rate: float | None,
    count: int | None,
    arrivals: str,
    prompt: str | None,
    output: str | None,
    seed: int,
    skip_invalid: bool,
) -> Requests:
    """Requests of a file, of a file's lengths at a rate, or synthetic.

    Raises
    ------
    InputError
        Flags that contradict each other, or a bad file.
    """
    if path is None:
        if rate is None or prompt is None or output is None:
            raise InputError(
                "give --requests FILE, or --rate with --prompt-tokens and --output-tokens",
                where="--requests",
            )
        return synthetic(
            2000 if count is None else count, rate,
            arrivals=arrivals, prompt=prompt, output=output, seed=seed,
        )  # fmt: skip
    for name, value in (("--prompt-tokens", prompt), ("--output-tokens", output)):
        if value is not None:
            raise InputError(f"the lengths are those of {path}; drop it", where=name)
    if count is not None and count < 1:
        raise InputError("must be 1 or more", where="--count")
    found = read_requests(path, skip_invalid=skip_invalid).first(count)
    if rate is None:
        return found
    from dataclasses import replace

    times = arrival_times(len(found), rate, arrivals, np.random.default_rng(seed))
    return replace(found, arrival_s=times, name=f"{path} at {rate:g}/s")


def factors(text: str, flag: str) -> list[float]:
    """Comma-separated factors above 0."""
    out = []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            raise InputError(f"{part!r} is not a number", where=flag) from None
        if not 0.0 < value < float("inf"):
            raise InputError(f"{part.strip()} must be above 0", where=flag)
        out.append(value)
    return out
