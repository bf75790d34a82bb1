"""What sparsity costs in quality, method by method, as a trace's judged predictors say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from simulator.trace.curves import Trace


@dataclass(frozen=True, eq=False)
class QualityCurve:
    """What one method costs over sparsity, means over seeds.

    Parameters
    ----------
    sparsity : ndarray, shape (S,)
        Ascending [-].
    ratio : ndarray, shape (S,)
        Perplexity over dense's, geometric mean over seeds [-].
    agreement, recall : ndarray, shape (S,)
        Next tokens equal to dense's, and kept units that should be kept [-]; NaN where not measured.
    policy, variant : str
        Spelling, and criterion, target scale and budget, at the sparsity nearest to a half.
    """

    sparsity: np.ndarray
    ratio: np.ndarray
    agreement: np.ndarray
    recall: np.ndarray
    policy: str
    variant: str

    def at(self, sparsity: float) -> tuple[float, float]:
        """Ratio (ln linear) and agreement between measured sparsities; NaN outside them."""
        outside = {"left": np.nan, "right": np.nan}
        ratio = np.exp(np.interp(sparsity, self.sparsity, np.log(self.ratio), **outside))
        return float(ratio), float(np.interp(sparsity, self.sparsity, self.agreement, **outside))


def judged(trace: Trace, *, per_sequence: bool = False) -> dict[str, QualityCurve]:
    """Quality of each method's best variant at half sparsity, best method first; empty if not judged.

    Parameters
    ----------
    per_sequence : bool
        What chooses once per sequence, instead of what chooses per token or once for all.
    """
    q = trace.quality or {}
    runs: dict[tuple[str, str], dict[tuple[float, str], list[tuple[float, float, float]]]] = {}
    for i, method in enumerate(q.get("method", ())):
        if (q["mask"][i] == "sequence") != per_sequence:
            continue
        named = {"{}": "criterion", "{} targets": "targets", "{} budget": "budget"}
        variant = ", ".join(f.format(q[c][i]) for f, c in named.items() if q[c][i])
        loss = float(np.log(q["perplexity"][i] / q["dense_perplexity"][i]))
        at = (round(float(q["sparsity"][i]), 4), str(q["policy"][i]))
        seeds = runs.setdefault((str(method), variant), {}).setdefault(at, [])
        seeds.append((loss, float(q["agreement"][i]), float(q["recall"][i])))
    best: dict[str, QualityCurve] = {}
    for (method, variant), points in sorted(runs.items()):
        order = sorted(points)
        x = np.array([s for s, _ in order])
        loss, agreement, recall = np.array([np.mean(points[at], axis=0) for at in order]).T
        middle = order[int(np.argmin(np.abs(x - 0.5)))][1]
        curve = QualityCurve(x, np.exp(loss), agreement, recall, middle, variant)
        known = best.get(method)
        # NaN, where a half was not measured, loses against any number.
        if known is None or not known.at(0.5)[0] <= curve.at(0.5)[0]:
            best[method] = curve
    return dict(sorted(best.items(), key=lambda item: np.nan_to_num(item[1].at(0.5)[0], nan=np.inf)))
