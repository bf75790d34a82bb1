"""Quality against speed at equal sparsity: methods judged in a trace, timed on any device at any batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.base.console import milliseconds, number, share, spread
from simulator.base.drawing import Line, Lines, Picture
from simulator.base.errors import InputError, NothingFeasibleError
from simulator.inference.group import group_of
from simulator.inference.status import Status
from simulator.policies import parse
from simulator.results.loss import LossBasis
from simulator.results.quality import of_trace
from simulator.results.rows import load_of, rows
from simulator.scenario.catalogue import CATALOGUE, fits

if TYPE_CHECKING:
    from simulator.results.answer import Row
    from simulator.results.quality import Quality
    from simulator.scenario.scenario import Scenario
    from simulator.trace import Trace

METHODS = ("shadowllm", "dejavu", "cats", "teal")
"""Methods whose sparsity is a share of the weights' units, best first where they are compared."""
TOLD = (0.3, 0.5, 0.7)
RANK = 2048
"""Width of every predictor in ShadowLLM's timing harness [-]."""
_WIDTHS = {"shadowllm": ("rank",), "dejavu": ("mlp_rank", "attn_rank")}


@dataclass(frozen=True, eq=False)
class Traded:
    """One method at one sparsity.

    Parameters
    ----------
    sparsity : float
        Share of the units that are dropped [-].
    quality : Quality
        Against dense on the trace's model, the best variant that was judged.
    answer : Row
        Times of `policy` in the scenario, beside dense.
    """

    method: str
    sparsity: float
    policy: str
    quality: Quality
    answer: Row

    def cells(self) -> list[str]:
        """Policy, sparsity, perplexity over dense's, agreement, TPOT [ms] and speed-up over dense, as text."""
        a = self.answer
        return [
            self.policy,
            share(self.sparsity),
            number(self.quality.perplexity_ratio),
            share(self.quality.agreement, ".1"),
            spread(a.tpot_s, milliseconds),
            spread(a.tpot_speedup) + "x",
        ]

    def to_dict(self) -> dict[str, Any]:
        """Quality and the answer's fields by name."""
        measured = {
            "quality_perplexity_ratio": self.quality.perplexity_ratio,
            "quality_agreement": self.quality.agreement,
        }
        told = {"quality_source": self.quality.source, "quality_basis": str(LossBasis.MEASURED)}
        return self.answer.to_dict() | {"method": self.method, "sparsity": self.sparsity} | measured | told


def traded(trace: Trace, scenario: Scenario, rank: int = RANK) -> tuple[list[Traded], dict[str, str]]:
    """Every setting of `METHODS` that the trace has judged, in `scenario` with that policy.

    On another model than the trace's all predictors are `rank` wide: those judged are as narrow as the model they
    were trained for.

    Returns
    -------
    points : list of Traded
    left_out : dict
        Methods that do not apply to the model, and why.

    Raises
    ------
    InputError
        A trace without quality, or none of these methods in it.
    NothingFeasibleError
        The scenario cannot run, or no method applies.
    """
    model = CATALOGUE.model(scenario.model)
    own = fits(trace.manifest, model)
    measured = of_trace(trace)
    q = trace.quality or {}
    settings = {
        (str(q["method"][i]), round(float(q["sparsity"][i]), 6), str(q["policy"][i]))
        for i in range(len(q.get("policy", ())))
        if q["method"][i] in METHODS and q["mask"][i] != "sequence"
    }
    if not settings:
        raise InputError(
            f"holds no quality of {', '.join(METHODS)}; python -m traces.shadow evaluate --trace adds it",
            where=str(trace.path),
        )
    found: list[Traded] = []
    left_out: dict[str, str] = {}
    for method, sparsity, spelled in sorted(settings, key=lambda s: (METHODS.index(s[0]), *s[1:])):
        policy = parse(spelled)
        member = policy.members[0]
        if not own:
            member = member.model_copy(update=dict.fromkeys(_WIDTHS.get(method, ()), rank))
        asked = scenario.model_copy(
            update={"policy": member.spelling, "trace": str(trace.path) if own else "", "trace_transfer": False}
        )
        answer = rows(group_of(asked), *load_of(asked))[0].at(0)
        if answer.status == Status.NOT_APPLICABLE.word:
            left_out[method] = answer.reason
        elif not isfinite(answer.tpot_s.mid):
            raise NothingFeasibleError(answer.reason, where=member.spelling)
        else:
            found.append(Traded(method, sparsity, member.spelling, measured.at(policy), answer))
    if not found:
        raise NothingFeasibleError("; ".join(left_out.values()), where="--model")
    return found, left_out


def picture(found: Sequence[Traded], measured_on: str) -> Picture:
    """Perplexity against time per token, a curve per method; the sparsity rises along it."""
    lines = []
    for method in dict.fromkeys(t.method for t in found):
        mine = [t for t in found if t.method == method]
        x = np.array([1e3 * t.answer.tpot_s.mid for t in mine])
        lines.append(Line(method, x, np.array([t.quality.perplexity_ratio for t in mine])))
    a = found[0].answer
    dense_ms = 1e3 * a.tpot_s.mid * a.tpot_speedup.mid
    lines.append(Line("dense", np.array([dense_ms]), np.array([1.0]), aside=True))
    said = sentence(found)
    return Picture(
        "speed-quality",
        "Quality against time per token",
        said,
        Lines(
            tuple(lines),
            "time per output token, predicted [ms]",
            f"perplexity over dense's, {measured_on}",
            y_log=True,
            share=False,
        ),
        said,
    )


def sentence(found: Sequence[Traded], one: str = "shadowllm", other: str = "dejavu") -> str:
    """How `one` compares with `other` at `TOLD` sparsities; "" where they have none in common."""
    at = {(t.method, t.sparsity): t for t in found}
    parts = []
    for s in TOLD:
        a, b = at.get((one, s)), at.get((other, s))
        if a is None or b is None:
            continue
        time = a.answer.tpot_s.mid / b.answer.tpot_s.mid - 1.0
        loss = a.quality.perplexity_ratio / b.quality.perplexity_ratio - 1.0
        parts.append(f"at {share(s)} {share(time, '+.1')} time per token, {share(loss, '+.1')} perplexity")
    return f"{one} against {other}: " + "; ".join(parts) if parts else ""
