"""What of a trace a person sees: means over layers of its curves, ready for tables and figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator.trace import over_layers

if TYPE_CHECKING:
    import numpy as np

    from simulator.trace import DepthCurves, Trace


def units_tensor(trace: Trace) -> str:
    """The tensor whose sets are the FFN's: its neurons, or its experts where it has them."""
    tensors = set(trace.curves["tensor"].tolist())
    has_neurons = over_layers(trace, "ffn.down", "union_density", None) or over_layers(
        trace, "ffn.down", "union_density", 0.5
    )
    return "moe.expert" if "moe.expert" in tensors and not has_neurons else "ffn.down"


def own_level(trace: Trace, tensor: str) -> float | None:
    """The level a tensor is told at: its exact non-zeros where it has any zeros, else half kept."""
    return None if over_layers(trace, tensor, "union_density", None) else 0.5


def rank_share(curve: DepthCurves, energy: float) -> np.ndarray:
    """Smallest measured share of the directions that holds `energy`, per layer."""
    import numpy as np

    first = np.argmax(curve.values >= energy, axis=1)
    return curve.x[first] / curve.x[-1]


@dataclass(frozen=True, eq=False)
class QualityCurve:
    """What one method costs over sparsity, means over seeds.

    Parameters
    ----------
    sparsity : ndarray, shape (S,)
        Ascending [-].
    ratio : ndarray, shape (S,)
        Perplexity over dense's, geometric mean over seeds [-].
    agreement : ndarray, shape (S,)
        Next tokens equal to dense's [-].
    policy, variant : str
        Spelling, and criterion, target scale and budget, at the sparsity nearest to a half.
    """

    sparsity: np.ndarray
    ratio: np.ndarray
    agreement: np.ndarray
    policy: str
    variant: str

    def at(self, sparsity: float) -> tuple[float, float]:
        """Ratio (ln linear) and agreement between measured sparsities; NaN outside them."""
        import numpy as np

        outside = {"left": np.nan, "right": np.nan}
        ratio = np.exp(np.interp(sparsity, self.sparsity, np.log(self.ratio), **outside))
        return float(ratio), float(np.interp(sparsity, self.sparsity, self.agreement, **outside))


def judged(trace: Trace) -> dict[str, QualityCurve]:
    """Quality of each method's best variant at half sparsity, masks per sequence left out; empty if not judged."""
    import numpy as np

    q = trace.quality or {}
    runs: dict[tuple[str, str], dict[tuple[float, str], list[tuple[float, float]]]] = {}
    for i, method in enumerate(q.get("method", ())):
        if q["mask"][i] == "sequence":
            continue
        named = {"{}": "criterion", "{} targets": "targets", "{} budget": "budget"}
        variant = ", ".join(f.format(q[c][i]) for f, c in named.items() if q[c][i])
        loss = float(np.log(q["perplexity"][i] / q["dense_perplexity"][i]))
        at = (round(float(q["sparsity"][i]), 4), str(q["policy"][i]))
        seeds = runs.setdefault((str(method), variant), {}).setdefault(at, [])
        seeds.append((loss, float(q["agreement"][i])))
    best: dict[str, QualityCurve] = {}
    for (method, variant), points in sorted(runs.items()):
        order = sorted(points)
        x = np.array([s for s, _ in order])
        loss, agreement = np.array([np.mean(points[at], axis=0) for at in order]).T
        middle = order[int(np.argmin(np.abs(x - 0.5)))][1]
        curve = QualityCurve(x, np.exp(loss), agreement, middle, variant)
        known = best.get(method)
        # NaN, where a half was not measured, loses against any number.
        if known is None or not known.at(0.5)[0] <= curve.at(0.5)[0]:
            best[method] = curve
    return best
