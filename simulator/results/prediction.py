"""One scenario, explained: the row, the breakdown by op and by term, what binds it, in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from simulator.base import console
from simulator.base.checks import require_type
from simulator.ops.part import OpPart

if TYPE_CHECKING:
    from simulator.inference.evaluate import Points
    from simulator.inference.group import Group
    from simulator.ops.ops import Op
    from simulator.ops.union_law import UnionLaw
    from simulator.results.answer import Row
    from simulator.results.pool import Pool
    from simulator.roofline.optime import OpTime
    from simulator.scenario.scenario import Scenario

TERMS = ("math_s", "memory_s", "link_s", "launch_s")


ADDED = "added by the policy"
PARTS = (*(str(part) for part in OpPart if part is not OpPart.PREDICTOR), ADDED)
"""Parts of the model that a breakdown names, and what a policy adds to them."""


@dataclass(frozen=True)
class OpRow:
    """One op of a step, all its repetitions together [s]; terms overlap and need not add up; `part` is of `PARTS`."""

    phase: str
    role: str
    part: str
    count: float
    total_s: float
    math_s: float
    memory_s: float
    link_s: float
    launch_s: float
    flop: float
    moved_bytes: float
    overhead: bool
    basis: str
    source: str
    by_user: bool


@dataclass(frozen=True)
class Prediction:
    """Everything Shadowline says about one scenario.

    Attributes
    ----------
    answer : Answer
        Its figures, as a row of a sweep has them.
    ops : tuple of OpRow
        Breakdown of one prefill and of one mean decode step.
    shares : dict
        Share of the end-to-end time by what binds it [-].
    sentence : str
        The answer in words.
    trace : dict, optional
        Folder, manifest hash and model of the trace the curves came from.
    notes : tuple of str
        What is left out of the model.
    unions : mapping of UnionLaw to float
        The curves that unions over the rows of a decode step follow, and the rows asked for [-].
    speculation : str
        What speculation gives over none, in words; "" without it.
    """

    scenario: Scenario
    answer: Row
    ops: tuple[OpRow, ...] = ()
    shares: dict[str, float] = field(default_factory=dict)
    sentence: str = ""
    trace: dict[str, str] | None = None
    notes: tuple[str, ...] = ()
    unions: Mapping[UnionLaw, float] = field(default_factory=dict)
    speculation: str = ""

    @cached_property
    def pool(self) -> Pool | None:
        """The engine's KV pool; None where it has none or nothing can be said about it."""
        from simulator.inference.group import group_of
        from simulator.results.pool import pool

        return pool(group_of(self.scenario), self.scenario.prompt_tokens + self.scenario.output_tokens)

    @cached_property
    def row(self) -> dict[str, str | float | int | None]:
        """The sweep's columns for this scenario, as plain values."""
        return self.answer.to_dict()

    @cached_property
    def ideal_speedup(self) -> float | None:
        """tokens/s over dense's at this batch in an ideal kernel [-]; None for dense and for what is not timed."""
        from simulator.inference.group import group_of
        from simulator.policies import IDEAL
        from simulator.results.rows import load_of, rows

        if not self.answer.kernel or not self.answer.timed:
            return None
        at = self.scenario.model_copy(update={"kernel": IDEAL})
        return rows(group_of(at), *load_of(at))[0].at(0).speedup.mid

    @property
    def assumes(self) -> str:
        """Which release of the engine the answer is for; "" where it has none."""
        from simulator.roofline.engine import get_engine

        return get_engine(self.scenario.engine).assumes

    @property
    def sources(self) -> tuple[str, ...]:
        """Fits behind the numbers, each once."""
        return tuple(sorted({op.source for op in self.ops}))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "rows": [self.row],
            "ops": [vars(op) for op in self.ops],
            "ideal_speedup": self.ideal_speedup,
            "shares": self.shares,
            "kv_pool": None if self.pool is None else asdict(self.pool),
            "sentence": self.sentence,
            "speculation": self.speculation or None,
            "assumes": self.assumes,
            "sources": list(self.sources),
            "trace": self.trace,
            "unions": [
                {**asdict(law), "asked_rows": rows, "extrapolated": rows > law.rows}
                for law, rows in self.unions.items()
            ],
            "notes": list(self.notes),
            "scenario": self.scenario.to_dict(),
            "command": self.scenario.command,
        }

    def to_pandas(self) -> Any:
        """Breakdown by op as a data frame."""
        import pandas as pd

        return pd.DataFrame([vars(op) for op in self.ops])


def predict(scenario: Scenario) -> Prediction:
    """Predict one scenario with its breakdown.

    Raises
    ------
    ShadowlineError
        Unknown names. A scenario that cannot run is a `Prediction` whose status says so.

    Examples
    --------
    >>> from simulator.api import Scenario, predict
    >>> prediction = predict(Scenario(model="llama-2-7b", device="h100-sxm", batch=16))
    >>> prediction.row["ttft_lo_s"] < prediction.row["ttft_s"] < prediction.row["ttft_hi_s"]
    True
    """
    from simulator.inference.group import group_of
    from simulator.results.rows import load_of, rows
    from simulator.results.speculated import sentence
    from simulator.scenario.scenario import Scenario

    require_type(Scenario, scenario=scenario)
    group = group_of(scenario)
    found, points = rows(group, *load_of(scenario))
    answer = found.at(0)
    if points is None or not answer.timed:
        words = f"{answer.status}: {answer.reason}"
        return Prediction(scenario, answer, sentence=words, trace=_named(group), notes=group.notes)
    ops = (*_op_rows("prefill", points.prefill.ops), *_op_rows("decode", points.decode.ops))
    shares = _shares(points)
    words, unions = _sentence(answer, shares), united(t.op for t in points.decode.ops)
    drafted = "" if group.speculation is None or scenario.output_tokens < 2 else sentence(points)
    return Prediction(scenario, answer, ops, shares, words, _named(group), group.notes, unions, drafted)


def united(ops: Iterable[Op]) -> dict[UnionLaw, float]:
    """The curves that the unions of `ops` follow, and the most rows asked of each [-]."""
    import numpy as np

    from simulator.ops.ops import Linear

    found: dict[UnionLaw, float] = {}
    for op in ops:
        if isinstance(op, Linear) and op.union is not None:
            found[op.union] = max(found.get(op.union, 0.0), float(np.max(op.m)))
    return found


def _named(group: Group) -> dict[str, str] | None:
    trace = group.trace
    if trace is None:
        return None
    return {"path": str(trace.path), "sha256": trace.digest, "model": trace.manifest.model}


def _op_rows(phase: str, times: Sequence[OpTime]) -> list[OpRow]:
    import numpy as np

    def mean(x: Any) -> float:
        return float(x.mean()) if isinstance(x, np.ndarray) else float(x)

    # With a trace every layer is lowered apart; its ops are still one row of the breakdown.
    together: dict[tuple[str, str, bool, str, str, bool], np.ndarray] = {}
    for t in times:
        traffic = t.op.traffic().scaled(t.op.count)
        timed = (t.op.count, *(getattr(t, k) for k in ("total_s", *TERMS)))
        amounts = np.array([mean(x) for x in (*timed, traffic.total_flop, traffic.total_bytes)])
        part = ADDED if t.op.overhead else str(t.op.part)
        key = (t.op.role, part, t.op.overhead, str(t.basis), t.source, t.fit.by_user)
        together[key] = together.get(key, 0.0) + amounts
    return [
        OpRow(phase, role, part, *map(float, amounts), overhead=overhead, basis=basis, source=source, by_user=by_user)
        for (role, part, overhead, basis, source, by_user), amounts in together.items()
    ]


def _shares(points: Points) -> dict[str, float]:
    import numpy as np

    from simulator.inference.bound import Bound

    steps = float(np.ravel(points.output)[0]) - 1.0
    scale = float(np.ravel(points.ttft_s.mid)[0]) / float(np.mean(points.prefill.total_s))
    prefill, decode = points.prefill.shares_s, points.decode.shares_s
    total = {b: float(np.mean(prefill[b])) * scale + steps * float(np.mean(decode[b])) for b in Bound}
    whole = sum(total.values()) or 1.0
    return {str(bound): t / whole for bound, t in total.items()}


def _sentence(a: Row, shares: dict[str, float]) -> str:
    from simulator.policies import in_kernel
    from simulator.results.verdict import told

    ms = console.milliseconds
    parts = [
        f"{a.model} on {a.gpus:.0f} x {a.device}, {in_kernel(a.policy, a.kernel, a.speculate)}, batch {a.batch:.0f},"
        f" {a.prompt_tokens:.0f} + {a.output_tokens:.0f} tokens:"
        f" TTFT {ms(a.ttft_s.mid)} ms ({ms(a.ttft_s.lo)}-{ms(a.ttft_s.hi)})"
    ]
    if math.isfinite(a.tpot_s.mid):
        parts.append(f"TPOT {ms(a.tpot_s.mid)} ms ({ms(a.tpot_s.lo)}-{ms(a.tpot_s.hi)})")
    if math.isfinite(a.tokens_per_s.mid):
        parts.append(f"{console.number(a.tokens_per_s.mid)} tokens/s")
    text = ", ".join(parts) + f"; bound by {a.bound} ({max(shares.values()):.0%} of the time)"
    if not a.is_dense and a.ok:
        text += f"; {told(a.speedup)}"
        if a.dense_max_batch < a.batch:
            text += f", but dense does not fit (largest batch {a.dense_max_batch:,.0f})"
        text += f"; {a.loss_in_words}"
    if not a.ok:
        text += f"; does not fit (largest batch {a.max_batch:,.0f}): these are times of a larger memory"
    return text
