"""Curves of a trace over its layers, as the report of a trace needs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from simulator.trace import Trace


@dataclass(frozen=True, eq=False)
class Curves:
    """One statistic of every layer that has it.

    Attributes
    ----------
    layers : ndarray, shape (L,)
    x : ndarray, shape (X,)
        Abscissas that all these layers share.
    values : ndarray, shape (L, X)
    """

    layers: np.ndarray
    x: np.ndarray
    values: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Mean over the layers, shape (X,)."""
        return self.values.mean(0)

    def at(self, x: float) -> float:
        """Mean over the layers at a measured `x`; NaN where it was not measured."""
        found = np.flatnonzero(np.isclose(self.x, x))
        return float(self.mean[found[0]]) if len(found) else np.nan

    def of_layer(self, layer: int, x: float) -> float:
        """Value of one layer at a measured `x`, else NaN."""
        row, column = np.flatnonzero(self.layers == layer), np.flatnonzero(np.isclose(self.x, x))
        return float(self.values[row[0], column[0]]) if len(row) and len(column) else np.nan


def over_layers(
    trace: Trace, tensor: str, statistic: str, keep: float | None = None
) -> Curves | None:
    """The curve of every layer at `keep` (None: the exact non-zeros); None where no layer has one."""
    found = {n: trace.curve(n, tensor, statistic, keep=keep) for n in range(trace.n_layers)}
    there = {n: c for n, c in found.items() if c is not None}
    if not there:
        return None
    x = np.array(sorted(set.intersection(*(set(c.x.tolist()) for c in there.values()))))
    values = np.array([c.value[np.isin(c.x, x)] for c in there.values()])
    return Curves(np.array(list(there)), x, values)


@dataclass(frozen=True)
class Units:
    """What of the FFN is picked per token: neurons or experts, at the level they are told at."""

    tensor: str
    name: str
    level: float | None
    words: str

    @classmethod
    def of(cls, trace: Trace) -> Units:
        """Exact non-zeros where there are enough zeros to speak of, else half kept; experts where neurons were not"
        " measured."""
        for level in (None, 0.5):
            if over_layers(trace, "ffn.down", "union_density", level) is not None:
                words = "that are not zero" if level is None else "with the 50 % largest outputs"
                return cls("ffn.down", "FFN neurons", level, words)
        return cls("moe.expert", "experts", None, "the router chose")


def kept_quality(trace: Trace) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, str]]:
    """Method -> (sparsity, perplexity over dense, agreement, variant), seeds averaged, the best variant of each method.

    The variant (criterion, targets, budget, mask) with the lowest mean ln of the ratio over its sparsities is best.
    """
    q = trace.quality
    if q is None:
        return {}
    text = {k: q[k].astype(str) for k in ("method", "criterion", "targets", "budget", "mask")}
    label = np.array(
        [" ".join(filter(None, parts)) for parts in zip(*list(text.values())[1:], strict=True)]
    )
    ratio = np.log(q["perplexity"] / q["dense_perplexity"])
    out: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, str]] = {}
    for method in dict.fromkeys(text["method"]):
        best = np.inf
        for variant in dict.fromkeys(label[text["method"] == method]):
            here = (text["method"] == method) & (label == variant) & np.isfinite(ratio)
            sparsity, index = np.unique(q["sparsity"][here], return_inverse=True)
            if not len(sparsity):
                continue
            n = np.bincount(index)
            mean = np.bincount(index, weights=ratio[here]) / n
            same = np.bincount(index, weights=q["agreement"][here]) / n
            if mean.mean() < best:
                best = float(mean.mean())
                out[str(method)] = (sparsity, np.exp(mean), same, str(variant))
    return out
