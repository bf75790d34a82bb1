"""What of a trace a person sees: means over layers of its curves, ready for tables and figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from simulator.trace import Trace


@dataclass(frozen=True, eq=False)
class LayerCurve:
    """One curve over the layers that have it.

    Parameters
    ----------
    layers : ndarray, shape (L,)
    x : ndarray, shape (X,)
    values : ndarray, shape (L, X)
    """

    layers: np.ndarray
    x: np.ndarray
    values: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Mean over the layers, shape (X,)."""
        return self.values.mean(0)

    def at(self, x: float) -> np.ndarray | None:
        """Value of each layer at `x`, or None where `x` was not measured."""
        import numpy as np

        found = np.flatnonzero(np.isclose(self.x, x))
        return self.values[:, found[0]] if len(found) else None


def over_layers(
    trace: Trace, tensor: str, statistic: str, keep: float | None = None
) -> LayerCurve | None:
    """The curve of every layer, at the abscissas all of them have; None where none has it."""
    import numpy as np

    found = {n: trace.curve(n, tensor, statistic, keep=keep) for n in range(trace.n_layers)}
    present = {n: c for n, c in found.items() if c is not None}
    if not present:
        return None
    shared = sorted(set.intersection(*(set(c.x.tolist()) for c in present.values())))
    values = [c.value[np.isin(c.x, shared)] for c in present.values()]
    return LayerCurve(np.array(list(present)), np.array(shared), np.array(values))


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


def rank_share(curve: LayerCurve, energy: float) -> np.ndarray:
    """Smallest measured share of the directions that holds `energy`, per layer."""
    import numpy as np

    first = np.argmax(curve.values >= energy, axis=1)
    return curve.x[first] / curve.x[-1]
