"""Flags that `serve` and `plan` share, and their turning into requests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulator.base.errors import InputError

if TYPE_CHECKING:
    from simulator.serving.requests import Requests

Model = Annotated[str | None, typer.Option(help="model name, folder, config.json or hub id")]
RequestsFile = Annotated[Path | None, typer.Option(help="Azure, BurstGPT or own CSV/Parquet, or Mooncake JSONL")]
Rate = Annotated[float | None, typer.Option(help="requests/s; with --requests its lengths at this rate")]
Arrivals = Annotated[str, typer.Option(help="with --rate: poisson, gamma(cv=2) or fixed")]
Prompt = Annotated[
    str | None, typer.Option(help="synthetic: 512, lognormal(mean=,cv=), uniform(low=,high=), exponential(mean=)")
]
Output = Annotated[str | None, typer.Option(help="likewise")]
Seed = Annotated[int, typer.Option(min=0, help="of everything random")]
SkipInvalid = Annotated[bool, typer.Option("--skip-invalid", help="leave out rows of zero tokens")]
Engine = Annotated[str, typer.Option(help="serving engine: kernels, vllm, ...")]
Utilization = Annotated[float, typer.Option(help="share of memory used")]
IgnoreContext = Annotated[bool, typer.Option("--ignore-context-limit", help="go beyond the context, as EXTRAPOLATED")]
Router = Annotated[str, typer.Option(help="round-robin, least-loaded, prefix-aware")]
PrefixCache = Annotated[bool, typer.Option("--prefix-cache", help="share equal prompt beginnings")]
Slo = Annotated[str | None, typer.Option(help="e.g. 'ttft:p99<2s;tpot:p99<60ms'")]
Workers = Annotated[int, typer.Option(help="local processes")]
Cluster = Annotated[str | None, typer.Option(help="Dask scheduler tcp://host:8786, or local")]
Json = Annotated[bool, typer.Option("--json", help='{"rows": [...]} on stdout')]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress")]


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
    from dataclasses import replace

    import numpy as np

    from simulator.serving.readers import read_requests
    from simulator.serving.synthetic import arrival_times, synthetic

    if path is None:
        if rate is None:
            raise InputError(
                "give --requests FILE, or --rate with --prompt-tokens and --output-tokens", where="--requests"
            )
        if prompt is None or output is None:
            flag = "--prompt-tokens" if prompt is None else "--output-tokens"
            raise InputError(
                f"--rate needs it, e.g. {flag} 512 or 'lognormal(mean=512,cv=1)'; or give --requests FILE", where=flag
            )
        return synthetic(
            2000 if count is None else count, rate, arrivals=arrivals, prompt=prompt, output=output, seed=seed
        )
    for name, value in (("--prompt-tokens", prompt), ("--output-tokens", output)):
        if value is not None:
            raise InputError(f"the lengths are those of {path}; drop it", where=name)
    if count is not None and count < 1:
        raise InputError("must be 1 or more", where="--count")
    found = read_requests(path, skip_invalid=skip_invalid).first(count)
    if rate is None:
        return found
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
        if not 1e-9 <= value <= 1e9:
            raise InputError(f"{part.strip()} must be above 0 and at most 1e9", where=flag)
        out.append(value)
    return out
