"""What arrives: requests of a file, of a file's lengths at a rate, or synthetic."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import NoneType

import numpy as np

from simulator.base.checks import require_type
from simulator.base.errors import InputError
from simulator.serving.readers import read_requests
from simulator.serving.requests import Requests
from simulator.serving.synthetic import arrival_times, closed_loop, synthetic, think_times, users_named

SYNTHETIC = 2000
"""Synthetic requests where nobody says how many [-]."""


def traffic(
    requests: str | Path | None = None,
    *,
    rate: float | None = None,
    prompt_tokens: str | int | None = None,
    output_tokens: str | int | None = None,
    arrivals: str = "poisson",
    count: int | None = None,
    seed: int = 0,
    skip_invalid: bool = False,
    users: int | None = None,
    think_time: str | float | None = None,
    turns: str | int | None = None,
) -> Requests:
    """Requests of a file, of a file's lengths at a rate, or synthetic; at a rate or from users who wait for answers.

    Parameters
    ----------
    requests : path, optional
        Azure, BurstGPT or own CSV or Parquet, or Mooncake's JSON lines.
    rate : float, optional
        Mean arrivals; with `requests` its lengths at this rate; infinite for all at once [1/s].
    prompt_tokens, output_tokens : str or int, optional
        Lengths of synthetic requests: ``512``, ``lognormal(mean=,cv=)``, ``uniform(low=,high=)``,
        ``exponential(mean=)`` [tokens].
    arrivals : str
        ``poisson``, ``gamma(cv=2)`` or ``fixed``.
    count : int, optional
        The first so many requests; of synthetic ones how many, `SYNTHETIC` by default [-].
    skip_invalid : bool
        Leave out rows of zero tokens.
    users : int, optional
        In place of a rate: as many at a time, each asks again when answered (a closed loop) [-].
    think_time : str or float, optional
        How long users think before they ask again: ``30``, ``exponential(mean=30)``; 0 by default [s].
    turns : str or int, optional
        Turns of a conversation, spelled like lengths: each brings all before it and `prompt_tokens` more, and comes
        when the last is answered; `rate` is then of conversations. 1 by default [-].

    Raises
    ------
    InputError
        Values that contradict each other, or a bad file.

    Examples
    --------
    >>> from simulator.api import traffic
    >>> arriving = traffic(rate=4, prompt_tokens="lognormal(mean=800,cv=1)", output_tokens=200, count=100)
    >>> len(arriving)
    100
    """
    require_type((str, Path, NoneType), requests=requests)
    talk = "1" if turns is None else str(turns).strip()
    if think_time is not None and users is None and talk == "1":
        raise InputError(
            "is for --users or --turns, who wait for an answer; drop it, or give one", where="--think-time"
        )
    if requests is not None and talk != "1":
        raise InputError(f"the turns are those of {requests}; drop it", where="--turns")
    if users is not None and rate is not None:
        raise InputError("users ask when they are answered, at no rate; drop one", where="--users")
    think = "0" if think_time is None else str(think_time)
    lengths = {"--prompt-tokens": prompt_tokens, "--output-tokens": output_tokens}
    if requests is None:
        if rate is None and users is None:
            raise InputError(
                "give --requests FILE, or --rate or --users with --prompt-tokens and --output-tokens",
                where="--requests",
            )
        by = "--users" if rate is None else "--rate"
        for flag, value in lengths.items():
            if value is None:
                text = f"{by} needs it, e.g. {flag} 512 or 'lognormal(mean=512,cv=1)'; or give --requests FILE"
                raise InputError(text, where=flag)
        prompt, output = (str(value) for value in lengths.values())
        n = SYNTHETIC if count is None else count
        if rate is None:
            return closed_loop(n, users or 0, think, prompt=prompt, output=output, seed=seed, turns=talk)
        how = {"arrivals": arrivals, "turns": talk, "think": think}
        return synthetic(n, rate, prompt=prompt, output=output, seed=seed, **how)
    for flag, value in lengths.items():
        if value is not None:
            raise InputError(f"the lengths are those of {requests}; drop it", where=flag)
    if count is not None and count < 1:
        raise InputError("must be 1 or more", where="--count")
    found = read_requests(requests, skip_invalid=skip_invalid).first(count)
    if users is not None:
        waits = think_times(len(found), think, np.random.default_rng(seed))
        return replace(found.closed(users, waits), name=f"{requests} from {users_named(users, think)}")
    if rate is None:
        return found
    if rate == math.inf:
        return replace(found.at_once(), name=f"{requests} all at once")
    times = arrival_times(len(found), rate, arrivals, np.random.default_rng(seed))
    return replace(found, arrival_s=times, name=f"{requests} at {rate:g}/s")
