"""Answers in words, and numbers as people read them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from app.compute import Curve
from simulator.base.console import milliseconds, number
from simulator.results.prediction import Prediction
from simulator.results.result import rate_interval
from simulator.results.summary import WIN
from simulator.scenario.scenario import Scenario

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~$!:])")


def plain(text: str) -> str:
    """`text` as markdown that shows it letter by letter: a link's words must not become pictures or links."""
    return _MARKUP.sub(r"\\\1", text)


def answer(p: Prediction, dense: Prediction) -> str:
    """The answer in one or two sentences, in markdown."""
    row = p.row
    where = f"{_gpus(row)}**{row['device']}**"
    if row["status"] != "ok":
        return refusal(row)
    rate = f"**{number(row['tokens_per_s'])} tokens/s**"
    speedup = row["throughput_speedup_same_batch"]
    if row["policy"] == "dense":
        return f"Dense **{row['model']}** puts out {rate} on {where} at batch {row['batch']:,}. {_bound(p)}"
    word = verdict(speedup)
    if dense.row["status"] != "ok":
        return (
            f"**{row['policy']}** lets **{row['model']}** run on {where}: {rate} at batch {row['batch']:,}, where dense"
            f" cannot ({dense.row['reason']}). {_bound(p)}"
        )
    return (
        f"**{row['policy']}** {word} **{row['model']}** on {where}: {rate} instead of"
        f" {number(dense.row['tokens_per_s'])}, **{speedup:.2f}x**, at batch {row['batch']:,}. {_bound(p)}"
    )


def told(p: Prediction) -> str:
    """One line that names a scenario and its speed."""
    row = p.row
    rate = "" if row["tokens_per_s"] is None else f", {number(row['tokens_per_s'])} tokens/s"
    load = f"batch {row['batch']:,}, {row['prompt_tokens']:,} + {row['output_tokens']:,} tokens"
    return f"{row['model']} on {_gpus(row)}{row['device']}, {row['policy']}, {load}{rate}"


def refusal(row: Mapping[str, Any]) -> str:
    """Why a scenario has no answer, and what would work."""
    words = {
        "does_not_fit": "does not fit",
        "exceeds_context": "is too long for the model",
        "not_applicable": "cannot be used here",
        "unsupported_dtype": "has a format the device cannot compute",
    }
    what = f"**{row['model']}** with **{row['policy']}**" if row["policy"] != "dense" else f"**{row['model']}**"
    return f"{what} on {_gpus(row)}**{row['device']}** {words[row['status']]}: {row['reason']}."


def verdict(speedup: float) -> str:
    """What a policy does to the speed; inside `WIN` it is neither."""
    if speedup >= WIN:
        return "speeds up"
    return "slows down" if speedup <= 1.0 / WIN else "neither speeds up nor slows down"


def _gpus(row: Mapping[str, Any]) -> str:
    gpus = row["tp"] * row["pp"]
    return f"{gpus} x " if gpus > 1 else "one "


def _bound(p: Prediction) -> str:
    if not p.shares:
        return ""
    first, second = sorted(p.shares, key=lambda k: -p.shares[k])[:2]
    verb = "take" if first.endswith("s") else "takes"
    more = f", {second} {p.shares[second]:.0%}" if p.shares[second] >= 0.1 else ""
    return f"{first[0].upper()}{first[1:]} {verb} most of the time ({p.shares[first]:.0%}{more})."


def where_it_wins(curves: list[Curve], scenario: Scenario) -> str:
    """Ranges of batch and prompt in which the policy wins, all else as it stands."""
    parts = [_range(c) for c in curves]
    return f"{scenario.policy} " + " and ".join(parts) + "."


def _range(c: Curve) -> str:
    noun, many = ("batch", "every batch") if c.axis == "batch" else ("prompt", "every prompt")
    use = c.fits & np.isfinite(c.speedup)
    if not use.any():
        return f"fits at no {noun}"
    values, wins = c.values[use], c.speedup[use] >= WIN
    ends = f"from {values[0]:,.0f} to {values[-1]:,.0f}"
    if wins.all():
        return f"wins at {many} {ends}"
    if not wins.any():
        return f"wins at no {noun} {ends} (at best {c.speedup[use].max():.2f}x)"
    edges = np.flatnonzero(np.diff(np.r_[False, wins, False].astype(int)))
    runs = [(a, b - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    told = [_run(float(values[a]), float(values[b]), a == 0, b == len(values) - 1) for a, b in runs]
    return f"wins at {noun} {' and '.join(told)}"


def _run(first: float, last: float, opens: bool, closes: bool) -> str:
    if opens:
        return f"{first:,.0f}" if first == last else f"up to {last:,.0f}"
    if closes:
        return f"from {first:,.0f}"
    return f"{first:,.0f}" if first == last else f"{first:,.0f} to {last:,.0f}"


def interval_ms(mid: float | None, lo: float | None, hi: float | None) -> str:
    """``90 %: 37-60 ms``."""
    if mid is None:
        return "no decode step" if lo is None else ""
    return f"90 %: {milliseconds(lo)} – {milliseconds(hi)} ms"


def interval_rate(row: Mapping[str, Any]) -> str:
    """``90 %: 140-220``."""
    if row["tokens_per_s"] is None:
        return ""
    lo, hi = rate_interval(row)
    return f"90 %: {number(lo)} – {number(hi)}"


def num(value: float | None) -> str:
    """Three digits, or a dash."""
    return "–" if value is None else number(value)


def ms(value: float | None) -> str:
    """Milliseconds with their unit, or a dash."""
    return "–" if value is None else f"{milliseconds(value)} ms"


def gb(value: float | None) -> str:
    """``141 GB (131 GiB)``."""
    return "–" if value is None else f"{number(value / 1e9)} GB ({number(value / 2**30)} GiB)"


def relative(value: float | None, base: float | None) -> str | None:
    """Change against the baseline, signed."""
    if value is None or not base:
        return None
    return f"{value / base - 1.0:+.1%}"


def snippet(scenario: Scenario) -> str:
    """Python that prints this prediction."""
    fields = ",\n    ".join(f"{k}={v!r}" for k, v in scenario.to_dict().items())
    return (
        "from simulator.api import Scenario, predict\n\n"
        f"scenario = Scenario.of(\n    {fields},\n)\nanswer = predict(scenario)\n"
        "print(answer.sentence)\nprint(answer.to_pandas())"
    )
