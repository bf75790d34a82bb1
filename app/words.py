"""Answers in words, and numbers as people read them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import isfinite

import numpy as np

from simulator.api import Prediction, Scenario, verdict
from simulator.base.console import number
from simulator.base.interval import Interval
from simulator.inference.status import Status
from simulator.results.answer import Row
from simulator.results.break_even import BreakEven
from simulator.results.verdict import along, figure

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~$!:])")


NOUN = {"batch": "batch", "prompt_tokens": "prompt"}


def plain(text: str) -> str:
    """`text` as markdown that shows it letter by letter: a link's words must not become pictures or links."""
    return _MARKUP.sub(r"\\\1", text)


def answer(p: Prediction, dense: Prediction) -> str:
    """The answer in one or two sentences, in markdown."""
    a = p.answer
    if not a.ok:
        return refusal(a)
    where, rate = f"{_gpus(a)}**{a.device}**", f"**{number(a.tokens_per_s.mid)} tokens/s**"
    if a.is_dense:
        return f"Dense **{a.model}** puts out {rate} on {where} at batch {a.batch:,.0f}. {_bound(p)}"
    if not dense.answer.ok:
        return (
            f"**{named(a)}** lets **{a.model}** run on {where}: {rate} at batch {a.batch:,.0f}, where dense cannot"
            f" ({dense.answer.reason}); {plain(a.loss_in_words)}. {_bound(p)}"
        )
    return (
        f"**{named(a)}** {verdict(a.speedup).verb} on **{a.model}** and {where}: {rate} instead of"
        f" {number(dense.answer.tokens_per_s.mid)}, {strong(a.speedup)}, at batch {a.batch:,.0f};"
        f" {plain(a.loss_in_words)}. {_bound(p)}"
    )


def named(a: Row) -> str:
    """What is done to the model: the policy, who drafts, or both; ``dense`` where nothing is."""
    if not a.speculate:
        return a.policy
    return a.speculate if a.policy == "dense" else f"{a.policy} with {a.speculate}"


def strong(speedup: Interval[float]) -> str:
    """``**1.35x** (1.20-1.50, P(win) 0.99)``."""
    times, ends = figure(speedup, "–").split(" ", 1)
    return f"**{times}** {ends}"


def told(p: Prediction) -> str:
    """One line that names a scenario and its speed."""
    a = p.answer
    rate = f", {number(a.tokens_per_s.mid)} tokens/s" if isfinite(a.tokens_per_s.mid) else ""
    load = f"batch {a.batch:,.0f}, {a.prompt_tokens:,.0f} + {a.output_tokens:,.0f} tokens"
    return f"{a.model} on {_gpus(a)}{a.device}, {named(a)}, {load}{rate}"


def refusal(a: Row) -> str:
    """Why a scenario has no answer, and what would work."""
    words = {
        Status.DOES_NOT_FIT: "does not fit",
        Status.EXCEEDS_CONTEXT: "is too long for the model",
        Status.NOT_APPLICABLE: "cannot be used here",
        Status.UNSUPPORTED_DTYPE: "has a format the device cannot compute",
    }
    what = f"**{a.model}**" if a.is_dense else f"**{a.model}** with **{named(a)}**"
    return f"{what} on {_gpus(a)}**{a.device}** {words[Status[a.status.upper()]]}: {a.reason}."


def _gpus(a: Row) -> str:
    return f"{a.gpus:.0f} x " if a.gpus > 1 else "one "


def _bound(p: Prediction) -> str:
    if not p.shares:
        return ""
    first, second = sorted(p.shares, key=lambda k: -p.shares[k])[:2]
    verb = "take" if first.endswith("s") else "takes"
    more = f", {second} {p.shares[second]:.0%}" if p.shares[second] >= 0.1 else ""
    return f"{first[0].upper()}{first[1:]} {verb} most of the time ({p.shares[first]:.0%}{more})."


def where_it_wins(found: Sequence[BreakEven], scenario: Scenario) -> str:
    """Where along batch and prompt the policy wins among the loads that fit, all else as it stands."""
    parts = []
    for b in found:
        noun, use = NOUN[b.axis], b.fits & np.isfinite(b.speedup.mid)
        values = b.values[use]
        if not use.any():
            parts.append(f"fits at no {noun}")
            continue
        words = along(noun, values, b.speedup.each(lambda end, use=use: end[use]))
        parts.append(f"{words} ({noun} {values[0]:,.0f} to {values[-1]:,.0f})")
    return f"{scenario.policy}: {'; '.join(parts)}."


def interval(figure: Interval[float], show: Callable[[float], str] = number, unit: str = "") -> str:
    """``90 %: 37-60 ms``; nothing where there is no figure."""
    return f"90 %: {show(figure.lo)} – {show(figure.hi)}{unit}" if isfinite(figure.mid) else ""


def shown(value: float, text: str) -> str:
    """`text`, or a dash where the value is not known."""
    return text if isfinite(value) else "–"


def gb(value: float) -> str:
    """``141 GB (131 GiB)``."""
    return shown(value, f"{number(value / 1e9)} GB ({number(value / 2**30)} GiB)")


def relative(value: float, base: float) -> str | None:
    """Change against the baseline, signed."""
    if not isfinite(value) or not isfinite(base) or not base:
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
