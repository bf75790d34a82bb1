"""Policies with a known loss of quality beside their predicted speed, and the fastest that costs little enough."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from simulator.base import console
from simulator.base.errors import InputError, ShadowlineError, UnsupportedError
from simulator.inference.evaluate import evaluate
from simulator.inference.group import group_of, runnable
from simulator.model.spec import ModelSpec
from simulator.policies import Policies
from simulator.results.answer import Row
from simulator.results.loss import LOSS_UNKNOWN, UNIT, Loss, LossBasis, front
from simulator.results.loss_curve import by_method
from simulator.results.loss_lookup import loss_on, small_model
from simulator.results.quality import Measured, measured_of, of_file
from simulator.results.rows import load_of, rows
from simulator.results.verdict import Verdict, figure, told, verdict
from simulator.scenario.scenario import Scenario


@dataclass(frozen=True)
class Choice:
    """A policy with its loss of quality and its predicted speed; `front`: it wins, and no other is faster and loses
    less.
    """

    answer: Row
    loss: Loss
    front: bool = False

    @property
    def policy(self) -> str:
        """Its spelling."""
        return self.answer.policy

    @property
    def wins(self) -> bool:
        """It fits and wins over dense."""
        return self.answer.ok and verdict(self.answer.speedup) is Verdict.WINS

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        speed, speedup, points = self.answer.tokens_per_s, self.answer.speedup, self.loss.points
        return {
            "policy": self.policy,
            "points_lost": points.mid,
            "points_lost_lo": points.lo,
            "points_lost_hi": points.hi,
            "basis": self.loss.basis,
            "source": self.loss.source,
            "citation": self.loss.citation,
            "tokens_per_s": speed.mid,
            "speedup": speedup.mid,
            "front": self.front,
            "tokens_per_s_lo": speed.lo,
            "tokens_per_s_hi": speed.hi,
            "fits": self.answer.ok,
            "speedup_lo": speedup.lo,
            "speedup_hi": speedup.hi,
            "p_win": self.answer.p_win,
            "verdict": self.answer.verdict,
        }


def spellings(model: ModelSpec, most: float, measured: Measured | None = None) -> dict[str, Loss]:
    """Settings whose loss on `model` is known: those measured on it, those published for it or for other models, and
    those measured on a small model.
    """
    found: dict[Policies, None] = {}
    for series in (s for method in by_method().values() for s in method):
        if series.model == model.name:
            found |= {Policies((p,)): None for p in series.settings(most)}
        else:
            found |= {Policies((p,)): None for p in series.published}
    for other in (measured, *map(of_file, small_model())):
        if other is not None:
            found |= dict.fromkeys(other.policies)
    known = {p.spelling: loss_on(model, p, measured) for p in found}
    return {spelling: loss for spelling, loss in known.items() if loss.known}


def choices(scenario: Scenario, most: float) -> tuple[list[Choice], dict[str, str]]:
    """Every policy whose loss on the scenario's model is known, fastest first; those that cannot run, and why.

    Raises
    ------
    UnsupportedError
        No policy's loss is known.
    NothingFeasibleError
        The dense model cannot run, or the lengths exceed its context.
    """
    dense = runnable(scenario.dense)
    at = load_of(scenario)
    base = evaluate(dense, *at)
    known = spellings(dense.model, most, measured_of(dense))
    if not known:
        raise UnsupportedError(f"{LOSS_UNKNOWN} of every policy on {dense.model.name}; --policy free ranks without it")
    found: list[Choice] = []
    skipped: dict[str, str] = {}
    for spelling, loss in known.items():
        try:
            group = group_of(scenario.model_copy(update={"policy": spelling}))
            answer = rows(group, *at, base)[0].at(0)
        except ShadowlineError as error:
            skipped[spelling] = error.message
            continue
        if answer.timed:
            found.append(Choice(answer, loss))
        else:
            skipped[spelling] = answer.reason
    return sorted(_fronts(found), key=lambda c: c.answer.e2e_s.mid), skipped


def _fronts(found: list[Choice]) -> list[Choice]:
    out = list(found)
    those = [i for i, c in enumerate(found) if c.wins]
    speeds = [found[i].answer.speedup.mid for i in those]
    lost = [found[i].loss.points.mid for i in those]
    for i, first in zip(those, front(speeds, lost), strict=True):
        out[i] = replace(found[i], front=bool(first))
    return out


def best(found: list[Choice], most: float) -> Choice | None:
    """The fastest that wins and whose loss is at most `most` points, up to the upper end of its interval."""
    good = [c for c in found if c.wins and c.loss.at_most(most)]
    return min(good, key=lambda c: c.answer.e2e_s.mid, default=None)


def show(scenario: Scenario, most: float, *, as_json: bool) -> None:
    """Print every choice, the front, and the fastest that loses at most `most` points."""
    if not math.isfinite(most):
        raise InputError(f"{most} is no number of points; write e.g. 1", where="--max-loss")
    found, skipped = choices(scenario, most)
    chosen = best(found, most)
    if as_json:
        rows = [c.to_dict() for c in found]
        console.out_json({"rows": rows, "best": chosen and chosen.policy, "skipped": skipped})
        return
    console.table(
        "loss of quality beside predicted speed",
        ["policy", "loss", "front", "tokens/s", "low", "high", "speed-up", "source"],
        [
            [
                c.policy,
                c.loss.short,
                "yes" if c.front else "" if c.answer.ok else "no fit",
                *map(console.number, c.answer.tokens_per_s),
                figure(c.answer.speedup),
                "" if c.loss.basis is LossBasis.EXTRAPOLATED else c.loss.source,
            ]
            for c in found
        ],
        left=3,
        note=f"{UNIT}; front: it wins, and none is faster and loses less; every other policy: {LOSS_UNKNOWN}",
    )
    reasons: dict[str, list[str]] = {}
    for policy, reason in skipped.items():
        reasons.setdefault(reason, []).append(policy)
    for reason, names in reasons.items():
        console.out(f"not considered: {', '.join(names)}: {reason}")
    if chosen is None:
        unit = "point" if most == 1 else "points"
        console.out(f"no policy of known loss fits, surely loses at most {most:g} {unit} and wins over dense")
    else:
        console.out(
            f"fastest that loses at most {most:g} points: {chosen.policy}, {told(chosen.answer.speedup)},"
            f" {chosen.loss.words}" + (f" ({chosen.loss.citation})" if chosen.loss.citation else "")
        )
