"""A model and its held-out text, on which every method is judged alike; its rows are ``quality.parquet``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from simulator.base.errors import InputError
from simulator.trace import TABLES
from traces.blocks import Block
from traces.criteria import KINDS
from traces.kv_quality import looking_back
from traces.masks import keep_largest, masked
from traces.predictors import Predicted
from traces.scoring import Scene, Score, judge, kept_shares, rank_correlation, recall, shares, stack
from traces.table_on_disk import TableOnDisk

if TYPE_CHECKING:
    from traces.kv_selectors import Looked

NAN = float("nan")
Row = dict[str, Any]
_EVERY = 64  # one scored token in so many enters recall and rank correlation


@dataclass(frozen=True)
class Step:
    """One measurement of an evaluation.

    Parameters
    ----------
    method : str
        What ``--methods`` names it by.
    label : str
        Shown while it runs.
    run : callable
        Adds its rows to the bench; depends on no other step.
    """

    method: str
    label: str
    run: Callable[[], None]


def spell(text: str) -> str:
    """Canonical spelling of a policy; left as it is where the simulator has no such policy."""
    from simulator.policies import parse

    try:
        return str(parse(text))
    except InputError:
        return text


@dataclass
class Bench:
    """A model, its held-out scene and the rows measured so far.

    Parameters
    ----------
    parts : sequence of Block
        One per layer.
    """

    model: Any
    parts: Sequence[Block]
    scene: Scene
    rows: list[Row] = field(default_factory=list)

    @cached_property
    def looking(self) -> tuple[tuple[Looked, ...], ...]:
        """What the prompts looked at, by batch and layer."""
        return looking_back(self.model, self.scene)

    @property
    def widths(self) -> dict[str, int]:
        """Units per layer of each kind [-]."""
        return {kind: self.parts[0].width(kind) for kind in KINDS}

    def add(self, score: Score, *, sparsity: float, policy: str, method: str, **more: Any) -> Row:
        """Append a row; what a method has not is "" or NaN."""
        row: Row = {
            "criterion": "",
            "targets": "",
            "budget": "",
            "mask": "",
            "seed": 0,
            "recall": NAN,
            "rank_correlation": NAN,
            "weight_bytes_share": NAN,
            "flop_share": NAN,
        }
        row |= {
            "policy": spell(policy),
            "method": method,
            "sparsity": sparsity,
            "tokens": self.scene.scored_tokens,
            "context": self.scene.mean_context,
            "perplexity": score.perplexity,
            "dense_perplexity": self.scene.dense_perplexity,
            "agreement": score.agreement,
        }
        self.rows.append(row | more)
        return self.rows[-1]

    def columns(self) -> dict[str, list[Any]]:
        """The table, column by column."""
        return {name: [row[name] for row in self.rows] for name in TABLES["quality.parquet"]}

    def run(
        self,
        chooser: Callable[[int], Any],
        truth: Sequence[Mapping[str, TableOnDisk]] | None = None,
        *,
        keep: float,
        budget: str,
        predictor: int = 0,
    ) -> tuple[Score, dict[str, float]]:
        """Score the masks of `chooser`; recall and rank correlation against `truth`, means over heads and neurons.

        Parameters
        ----------
        chooser : callable
            Batch number to a `Chooser`.
        truth : sequence of mapping of kind to table of shape (tokens, layers, units), optional
            Normalised scores of the dense model, per batch.
        """
        import torch

        kept: list[list[dict[str, float]]] = []
        found: list[float] = []
        ranked: list[float] = []
        choosers: dict[int, Any] = {}

        def setting(number: int) -> AbstractContextManager[Any]:
            choosers[number] = chooser(number)
            return masked(self.parts, choosers[number])

        def after(number: int, used: Any) -> None:
            kept.append(kept_shares(self.parts, used))
            if truth is None:
                return
            for kind in KINDS:
                first = 1 if kind == "heads" else 0
                real = truth[number][kind][::_EVERY][:, first:].to(self.scene.ids.device)
                mask = stack(used, kind)[::_EVERY, -real.shape[1] :]
                found.append(recall(mask, keep_largest(real, keep, budget)))
                if isinstance(choosers[number], Predicted):
                    ranked.append(rank_correlation(choosers[number].stacked(kind)[::_EVERY], real))

        score = judge(self.model, self.scene, setting, after=after)
        mean = [
            {role: sum(k[i][role] for k in kept) / len(kept) for role in kept[0][i]} for i in range(len(self.parts))
        ]
        cost = shares(
            self.parts,
            self.model,
            mean,
            context=self.scene.mean_context,
            attention=[m["q"] for m in mean],
            predictor=predictor,
        )
        return score, {
            "recall": float(torch.tensor(found).mean()) if found else NAN,
            "rank_correlation": float(torch.tensor(ranked).mean()) if ranked else NAN,
            "weight_bytes_share": cost.weight_bytes,
            "flop_share": cost.flop,
        }
