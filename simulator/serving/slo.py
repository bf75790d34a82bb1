"""Latency promises: ``ttft:p99<2s;tpot:p99<60ms``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from simulator.base.errors import InputError, UnknownNameError
from simulator.base.units import parse_quantity

METRICS = ("ttft", "tpot", "itl", "e2e")
QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
STATISTICS = ("mean", *QUANTILES)
_TERM = re.compile(r"\s*(\w+)\s*[:\s]\s*(\w+)\s*(<=?)\s*(\S.*?)\s*", re.ASCII)
_JOINT = re.compile(r"[;,]|\band\b")


@dataclass(frozen=True)
class Promise:
    """One term: the `statistic` of `metric` over the requests stays below `limit_s` [s]."""

    metric: str
    statistic: str
    limit_s: float

    @property
    def text(self) -> str:
        """As it is written."""
        return f"{self.metric}:{self.statistic}<{self.limit_s:g}s"


def parse_slo(text: str) -> tuple[Promise, ...]:
    """Promises of `text`, joined by ``;``, or as one would say them.

    Examples
    --------
    >>> parse_slo("ttft:p99<2s;tpot:mean<60ms")[1].limit_s
    0.06
    >>> parse_slo("TTFT p99 < 2 s and TPOT p99 < 60 ms") == parse_slo("ttft:p99<2s;tpot:p99<60ms")
    True
    """
    out: list[Promise] = []
    for part in (p for p in _JOINT.split(text) if p.strip()):
        match = _TERM.fullmatch(part)
        if match is None:
            raise InputError(
                f"cannot read {part.strip()!r}; write metric:statistic<time, e.g. ttft:p99<2s;tpot:p99<60ms",
                where="--slo",
            )
        metric, statistic, limit = match[1].casefold(), match[2].casefold(), match[4]
        if metric not in METRICS:
            raise UnknownNameError("metric", metric, METRICS, where="--slo")
        if statistic not in STATISTICS:
            raise UnknownNameError("statistic", statistic, STATISTICS, where="--slo")
        try:
            seconds = parse_quantity(limit, "s")
        except InputError as error:
            raise InputError(error.message, where="--slo") from None
        if seconds <= 0.0:
            raise InputError(f"{part.strip()!r}: the limit must be above 0", where="--slo")
        if any(p.metric == metric and p.statistic == statistic for p in out):
            raise InputError(f"{metric}:{statistic} is given twice", where="--slo")
        out.append(Promise(metric, statistic, seconds))
    if not out:
        raise InputError("holds no promise; write e.g. ttft:p99<2s;tpot:p99<60ms", where="--slo")
    return tuple(out)
