"""Flags that `serve` and `plan` share beside those of a scenario."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated

import typer

from simulator.base.errors import InputError
from simulator.scenario.options import option

Router = Annotated[str, typer.Option(help="round-robin, least-loaded, prefix-aware")]
PrefixCache = Annotated[bool, typer.Option("--prefix-cache", help="share equal prompt beginnings")]
Slo = Annotated[str | None, typer.Option(help="e.g. 'ttft:p99<2s;tpot:p99<60ms'")]
Workers = Annotated[int, typer.Option(help="local processes")]
Cluster = Annotated[str | None, typer.Option(help="Dask scheduler tcp://host:8786, or local")]
Json = Annotated[bool, typer.Option("--json", help='{"rows": [...]} on stdout')]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress")]


def traffic_options(count: int | None, counted: str) -> list[inspect.Parameter]:
    """Options of `simulator.serving.traffic.traffic`; `count` and `counted` are default and meaning of ``--count``."""
    lengths = "synthetic: 512, lognormal(mean=,cv=), uniform(low=,high=), exponential(mean=)"
    return [
        option("requests", Path, None, "Azure, BurstGPT or own CSV/Parquet, or Mooncake JSONL"),
        option("rate", float, None, "requests/s, inf for all at once; with --requests its lengths at this rate"),
        option("users", int, None, "in place of a rate: so many ask again when answered", "--users", "--concurrency"),
        option(
            "think_time", str, None, "with --users or --turns, before they ask again [s]: 30 or exponential(mean=30)"
        ),
        option("turns", str, None, "synthetic: turns of a conversation, like lengths; --rate counts conversations"),
        option("arrivals", str, "poisson", "with --rate: poisson, gamma(cv=2) or fixed"),
        option("prompt_tokens", str, None, lengths, "--prompt-tokens", "--isl"),
        option("output_tokens", str, None, "likewise", "--output-tokens", "--osl"),
        option("count", int, count, counted),
        option("seed", int, 0, "of everything random", min=0),
        option("skip_invalid", bool, False, "leave out rows of zero tokens", "--skip-invalid"),
    ]


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
