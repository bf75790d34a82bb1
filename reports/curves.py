"""Curves of a trace over its layers, as the report of a trace needs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from simulator.trace import over_layers

if TYPE_CHECKING:
    from simulator.trace import Trace


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
    label = np.array([" ".join(filter(None, parts)) for parts in zip(*list(text.values())[1:], strict=True)])
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
