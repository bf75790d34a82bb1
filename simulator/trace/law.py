"""Which law of the union over rows a measured trace follows: independent draws, frequencies, or Beta."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator.ops.union import (
    PUBLISHED,
    ROWS,
    UnionTable,
    beta_density,
    fit_beta,
    frequency_density,
    independent_density,
    union_density,
)
from simulator.trace.schema import WHOLE_LAYER

if TYPE_CHECKING:
    import numpy as np

    from simulator.trace.curves import Trace

TOLERANCE = 0.1
"""Largest relative error at any number of rows at which a law stands for the measurement [-]."""
LAWS = ("independent", "frequency", "beta")


@dataclass(frozen=True, slots=True)
class UnionCheck:
    """One measured union curve against the laws.

    Attributes
    ----------
    layer : int or None
        None for a mean over layers, which is what is published.
    keep : float
        Nominal share kept [-]; NaN for the exact non-zeros.
    density_1 : float
        Measured share of one row [-].
    errors : dict of str to float
        Largest relative error over the rows by law [-]; a law that needs what was not measured is absent.
    table_error : float
        Largest relative error where one measured point is left out and interpolated [-].
    spread : float
        The Beta law's c.
    """

    source: str
    tensor: str
    layer: int | None
    keep: float
    density_1: float
    errors: dict[str, float]
    table_error: float
    spread: float

    @property
    def use(self) -> str:
        """The law with the smallest error where that is within `TOLERANCE`, else 'table'."""
        best = min(self.errors, key=self.errors.__getitem__)
        return best if self.errors[best] <= TOLERANCE else "table"


def check_curve(
    rows: np.ndarray, density: np.ndarray, frequency: np.ndarray | None = None
) -> tuple[dict[str, float], float]:
    """Largest relative error of each law over `rows`, and the Beta law's c.

    Parameters
    ----------
    rows, density : ndarray, shape (R,)
        Measured union curve, rows from 1 [-].
    frequency : ndarray, shape (neurons,), optional
        Share of tokens that use each neuron; without it the frequency formula is not judged.
    """
    import numpy as np

    keep = float(density[0])
    spread = fit_beta(rows, density)
    laws = {"independent": independent_density(keep, rows), "beta": beta_density(keep, spread, rows)}
    if frequency is not None and len(frequency):
        laws["frequency"] = frequency_density(frequency, rows)
    errors = {k: float(np.max(np.abs(laws[k] / density - 1.0))) for k in LAWS if k in laws}
    return errors, spread


def left_out(rows: np.ndarray, density: np.ndarray) -> float:
    """Largest relative error of the table where an inner point is left out and interpolated [-]."""
    import numpy as np

    worst = 0.0
    for i in range(1, len(rows) - 1):
        table = UnionTable(np.delete(rows, i), np.delete(density, i)[None])
        there = float(union_density(float(density[0]), float(rows[i]), table))
        worst = max(worst, abs(there / float(density[i]) - 1.0))
    return worst


def check_trace(trace: Trace) -> Iterator[UnionCheck]:
    """Every union curve of a trace against the laws; FFN neurons also against their frequencies."""
    import numpy as np

    names = sorted(
        {
            (str(t), int(layer))
            for t, layer, head, s in zip(
                *(trace.curves[c] for c in ("tensor", "layer", "head", "statistic")), strict=True
            )
            if s == "union_density" and head == WHOLE_LAYER
        }
    )
    for tensor, layer in names:
        for keep in (None, *trace.keeps(layer, tensor, "union_density")):
            curve = trace.curve(layer, tensor, "union_density", keep=keep)
            if curve is None or not 0.0 < curve.value[0] < 1.0:
                continue
            # The table of frequencies is about what the FFN's neurons put out.
            p = trace.frequencies(layer, keep=keep) if tensor == "ffn.down" else None
            errors, spread = check_curve(curve.x, curve.value, p)
            yield UnionCheck(
                str(trace.path),
                tensor,
                layer,
                np.nan if keep is None else keep,
                float(curve.value[0]),
                errors,
                left_out(curve.x, curve.value),
                spread,
            )


def check_published() -> Iterator[UnionCheck]:
    """The published router tables (means over layers) against the laws."""
    import numpy as np

    for model, density in PUBLISHED.items():
        errors, spread = check_curve(ROWS, density)
        source, table = f"{model}, published", left_out(ROWS, density)
        yield UnionCheck(source, "ffn.down", None, np.nan, float(density[0]), errors, table, spread)
