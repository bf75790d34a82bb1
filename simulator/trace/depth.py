"""One statistic of a trace over the layers of its model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from simulator.trace.curves import Trace


@dataclass(frozen=True, eq=False)
class DepthCurves:
    """One statistic of every layer that has it.

    Attributes
    ----------
    layers : ndarray, shape (L,)
    x : ndarray, shape (X,)
        Abscissas that all these layers share, in the unit of the statistic (`STATISTICS`).
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
        """Value of each layer at `x`, shape (L,), or None where `x` was not measured."""
        import numpy as np

        found = np.flatnonzero(np.isclose(self.x, x))
        return self.values[:, found[0]] if len(found) else None

    def mean_at(self, x: float) -> float:
        """Mean over the layers at `x`; NaN where it was not measured."""
        values = self.at(x)
        return float("nan") if values is None else float(values.mean())

    def of_layer(self, layer: int, x: float) -> float:
        """Value of one layer at `x`; NaN where it was not measured."""
        values = self.at(x)
        if values is None or layer not in self.layers:
            return float("nan")
        return float(values[self.layers.tolist().index(layer)])


def over_layers(trace: Trace, tensor: str, statistic: str, keep: float | None = None) -> DepthCurves | None:
    """The curve of every layer at `keep` (None: the exact non-zeros), at the abscissas all of them have.

    None where no layer has one, or where the layers share no abscissa.
    """
    import numpy as np

    found = {n: trace.curve(n, tensor, statistic, keep=keep) for n in range(trace.n_layers)}
    there = {n: c for n, c in found.items() if c is not None}
    shared = set.intersection(*(set(c.x.tolist()) for c in there.values())) if there else set()
    if not shared:
        return None
    x = np.array(sorted(shared))
    values = np.array([c.value[np.isin(c.x, x)] for c in there.values()])
    return DepthCurves(np.array(list(there)), x, values)
