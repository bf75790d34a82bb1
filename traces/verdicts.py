"""What ShadowLLM says about predictors, judged by the rows of ``quality.parquet``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import mean, stdev
from typing import Any

from simulator.base import console

Row = Mapping[str, Any]
SPARSITIES = (0.3, 0.5, 0.7)
SAME = 0.01
"""Difference of ln perplexity below which two methods are alike, whatever their seeds say [nat]."""


@dataclass(frozen=True, eq=False)
class Side:
    """One way of choosing units: the values of the columns it names; of several target scales the best at a half."""

    name: str
    columns: Mapping[str, str]

    def losses(self, rows: Iterable[Row]) -> dict[float, list[float]]:
        """ln(perplexity over dense's) of each seed, by sparsity; empty where it was not measured."""
        by_targets: dict[str, dict[float, list[float]]] = {}
        for r in rows:
            if all(r[k] == v for k, v in self.columns.items()) and r["mask"] != "sequence":
                found = by_targets.setdefault(r["targets"], {}).setdefault(r["sparsity"], [])
                found.append(log(r["perplexity"] / r["dense_perplexity"]))
        whole = [found for found in by_targets.values() if 0.5 in found]
        return min(whole, key=lambda found: mean(found[0.5]), default={})


@dataclass(frozen=True, eq=False)
class Claim:
    """`ours` has a lower perplexity than `other`, or (`no_worse`) none that is higher."""

    text: str
    paper: str
    ours: Side
    other: Side
    no_worse: bool = False


@dataclass(frozen=True, eq=False)
class Verdict:
    """A claim on one model.

    Parameters
    ----------
    ours, other : dict of sparsity to float
        Perplexity over dense's, geometric mean over seeds [-].
    holds : dict of sparsity to bool or None
        None where the two are alike: by 1 %, or by two standard errors of the seeds.
    """

    claim: Claim
    ours: Mapping[float, float]
    other: Mapping[float, float]
    holds: Mapping[float, bool | None]

    @property
    def told(self) -> str:
        """In words."""
        at = {
            word: [f"{100 * s:g}" for s, h in self.holds.items() if h is is_so]
            for word, is_so in (("holds", True), ("does not hold", False), ("alike", None))
        }
        there = {word: found for word, found in at.items() if found}
        if len(there) == 1:
            return next(iter(there))
        return ", ".join(f"{word} at {' and '.join(found)} %" for word, found in there.items())


def _side(name: str, method: str, criterion: str, budget: str, targets: str = "") -> Side:
    columns = {"method": method, "criterion": criterion, "budget": budget}
    return Side(name, columns | ({"targets": targets} if targets else {}))


_ONE = "one predictor"
_EACH = "one per layer"
CLAIMS = (
    Claim(
        "static masks: plainact ranks better than weight magnitude",
        "",
        _side("plainact", "static", "plainact", "layer"),
        Side("magnitude", {"method": "static", "criterion": "magnitude"}),
    ),
    Claim(
        "static masks: plainact ranks better than l2norm",
        "OPT-1.3B per layer: 22.4 at 25 %, 42.8 at 50 %; l2norm 82.9 at 30 %, 842 at 55 %",
        _side("plainact", "static", "plainact", "layer"),
        _side("l2norm", "static", "l2norm", "layer"),
    ),
    Claim(
        "predictors follow the context (budget per layer)",
        "rank correlation with plainact of neurons 0.65, of heads 0.92",
        _side("predicted", "shadowllm", "plainact", "layer", "layer"),
        _side("static", "static", "plainact", "layer", "layer"),
    ),
    Claim(
        "predictors follow the context (global budget)",
        "",
        _side("predicted", "shadowllm", "plainact", "global"),
        _side("static", "static", "plainact", "global"),
    ),
    Claim(
        "one predictor: plainact ranks better than l2norm (budget per layer)",
        "OPT-30B: 12.95 at 50 %, 27.9 at 70 %; l2norm 20.6 at 30 %, 814 at 70 %",
        _side("plainact", "shadowllm", "plainact", "layer", "layer"),
        _side("l2norm", "shadowllm", "l2norm", "layer", "layer"),
    ),
    Claim(
        "one predictor: plainact ranks better than l2norm (global budget)",
        "OPT-30B: 13.6 at 60 %; l2norm 439 at 60 %",
        _side("plainact", "shadowllm", "plainact", "global"),
        _side("l2norm", "shadowllm", "l2norm", "global"),
    ),
    Claim(
        "one predictor is no worse than one per layer (plainact, budget per layer)",
        "rank correlation of neurons 0.650 with one, 0.652 per layer",
        _side(_ONE, "shadowllm", "plainact", "layer", "layer"),
        _side(_EACH, "dejavu", "plainact", "layer"),
        no_worse=True,
    ),
    Claim(
        "one predictor: a global budget is better than one per layer",
        "OPT-13B: 15.2 against 17.4 at 55 %, 17.1 against 20.3 at 60 %",
        _side("global", "shadowllm", "plainact", "global"),
        _side("per layer", "shadowllm", "plainact", "layer", "layer"),
    ),
    Claim(
        "global budgets need targets scaled per layer",
        "OPT-1.3B: 18.6 against 26.0 at 30 %, 38.0 against 49.7 at 55 %",
        _side("scaled per layer", "shadowllm", "plainact", "global", "layer"),
        _side("scaled globally", "shadowllm", "plainact", "global", "global"),
    ),
    Claim(
        "ShadowLLM (plainact, global) is better than Deja Vu as the paper has it (l2norm, one per layer)",
        "OPT-13B: 57.0 against 46.7 % of seven tasks at 70 %, 61.5 against 60.4 at 30 %",
        _side("ShadowLLM", "shadowllm", "plainact", "global"),
        _side("Deja Vu", "dejavu", "l2norm", "layer"),
    ),
    Claim(
        "and than Deja Vu with the same criterion (plainact)",
        "",
        _side("ShadowLLM", "shadowllm", "plainact", "global"),
        _side("Deja Vu", "dejavu", "plainact", "layer"),
    ),
)
"""The paper's claims; figures are WikiText2 perplexities in its repository (`simulator/claims/shadowllm.toml`)."""


def rows_of(quality: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the columns of a trace's ``quality.parquet``."""
    columns = {name: column.tolist() for name, column in quality.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def verdicts(rows: Sequence[Row], sparsities: Sequence[float] = SPARSITIES) -> list[Verdict]:
    """Every claim whose two sides were measured at a common sparsity."""
    found = []
    for claim in CLAIMS:
        ours, other = claim.ours.losses(rows), claim.other.losses(rows)
        common = [s for s in sparsities if s in ours and s in other]
        if common:
            found.append(
                Verdict(
                    claim,
                    {s: exp(mean(ours[s])) for s in common},
                    {s: exp(mean(other[s])) for s in common},
                    {s: _holds(ours[s], other[s], no_worse=claim.no_worse) for s in common},
                )
            )
    return found


def _holds(ours: Sequence[float], other: Sequence[float], *, no_worse: bool) -> bool | None:
    difference = mean(ours) - mean(other)
    alike = abs(difference) <= max(SAME, 2.0 * (_square_error(ours) + _square_error(other)) ** 0.5)
    if alike:
        return True if no_worse else None
    return difference < 0.0


def _square_error(seeds: Sequence[float]) -> float:
    """Variance of the mean over seeds; 0 of a single one."""
    return stdev(seeds) ** 2 / len(seeds) if len(seeds) > 1 else 0.0


def show(by_model: Mapping[str, Sequence[Row]], sparsities: Sequence[float] = SPARSITIES) -> None:
    """Print the claims, a row per model."""
    judged = {model: {v.claim.text: v for v in verdicts(rows, sparsities)} for model, rows in by_model.items()}
    body = []
    for claim in CLAIMS:
        for model, found in judged.items():
            v = found.get(claim.text)
            if v is not None:
                body.append([claim.text, model, *(_listed(x) for x in (v.ours, v.other)), v.told])
    where = "; ".join(
        f"{model}: {rows[0]['tokens']:,} tokens, dense {rows[0]['dense_perplexity']:.2f}"
        for model, rows in by_model.items()
    )
    told = sorted({s for found in judged.values() for v in found.values() for s in v.holds})
    console.table(
        f"Perplexity over dense's at {' / '.join(f'{s:.0%}' for s in told)} of heads and neurons dropped",
        ["claim", "model", "the better by the claim", "the other", "verdict"],
        body,
        left=5,
        note=f"{where}. Means over seeds; alike: within 1 % or two standard errors of the seeds.",
    )


def _listed(ratios: Mapping[float, float]) -> str:
    return " / ".join(f"{r:.2f}" if r < 100 else f"{r:.0f}" for r in ratios.values())
