"""A trace in memory: curves by layer, tensor and statistic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from simulator.base.errors import UnsupportedError
from simulator.ops.union import UnionTable
from simulator.ops.union_law import UNITS, UnionLaw, between_models, kind
from simulator.trace.schema import WHOLE_LAYER, Manifest

if TYPE_CHECKING:
    import numpy as np

_NO_KEEP = -1.0


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """One measured curve, `x` ascending; `value` and the samples `n` beside it."""

    x: np.ndarray
    value: np.ndarray
    n: np.ndarray


@dataclass(frozen=True, eq=False)
class Trace:
    """Statistics measured on a real model; equal only to itself, so it can stand in a cache key.

    Attributes
    ----------
    path : Path
        The folder it was read from.
    digest : str
        sha256 of its manifest, which holds the hash of every table.
    curves, neurons : dict of column name to ndarray
        Columns of ``curves.parquet`` and ``neurons.parquet``.
    quality : dict of column name to ndarray, or None
        Columns of ``quality.parquet`` where predictors were judged.
    """

    path: Path
    digest: str
    manifest: Manifest
    curves: Mapping[str, np.ndarray]
    neurons: Mapping[str, np.ndarray]
    quality: Mapping[str, np.ndarray] | None = None

    @property
    def n_layers(self) -> int:
        """Layers of the measured model [-]."""
        return self.manifest.facts.n_layers

    @cached_property
    def _index(self) -> dict[tuple[int, int, str, str], dict[float, Curve]]:
        import numpy as np

        c = self.curves
        tensors, tensor = np.unique(c["tensor"].astype(str), return_inverse=True)
        statistics, statistic = np.unique(c["statistic"].astype(str), return_inverse=True)
        keep = np.nan_to_num(c["keep"], nan=_NO_KEEP)
        keys = (keep, statistic, tensor, c["head"], c["layer"])
        order = np.lexsort((c["x"], *keys))
        sorted_keys = [k[order] for k in keys]
        if not len(order):
            return {}
        changes = np.zeros(len(order), bool)
        changes[:1] = True
        for k in sorted_keys:
            changes[1:] |= k[1:] != k[:-1]
        starts = np.flatnonzero(changes)
        x, value, n = (c[name][order] for name in ("x", "value", "n"))
        found: dict[tuple[int, int, str, str], dict[float, Curve]] = {}
        for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
            k, s, t, head, layer = (column[start] for column in sorted_keys)
            name = (int(layer), int(head), str(tensors[t]), str(statistics[s]))
            found.setdefault(name, {})[float(k)] = Curve(x[start:stop], value[start:stop], n[start:stop])
        return found

    def curve(
        self, layer: int, tensor: str, statistic: str, *, keep: float | None = None, head: int = WHOLE_LAYER
    ) -> Curve | None:
        """The curve measured at exactly `keep` (None: the exact non-zeros), or None."""
        at = self._index.get((layer, head, tensor, statistic), {})
        return at.get(_NO_KEEP if keep is None else float(keep))

    def keeps(self, layer: int, tensor: str, statistic: str, *, head: int = WHOLE_LAYER) -> tuple[float, ...]:
        """Shares kept at which the curve was measured, ascending, without the exact non-zeros."""
        return tuple(k for k in self._index.get((layer, head, tensor, statistic), {}) if k != _NO_KEEP)

    def layer(self, index: int, n_layers: int, *, own: bool = True) -> LayerCurves:
        """Curves for layer `index` of a model of `n_layers`: the measured layer at the same relative depth."""
        at = round(index * (self.n_layers - 1) / max(n_layers - 1, 1))
        return LayerCurves(self, at, own)

    def union(self, layer: int, tensor: str) -> UnionTable | None:
        """Union densities of `tensor` at every measured share kept, the exact non-zeros among them, or None."""
        known = self._unions.get((layer, tensor))
        if known is None and (layer, tensor) not in self._unions:
            known = self._unions[layer, tensor] = self._union(layer, tensor)
        return known

    @cached_property
    def _unions(self) -> dict[tuple[int, str], UnionTable | None]:
        return {}

    def _union(self, layer: int, tensor: str) -> UnionTable | None:
        import numpy as np

        found = self._index.get((layer, WHOLE_LAYER, tensor, "union_density"), {})
        curves = sorted((c for c in found.values() if 0.0 < c.value[0] < 1.0), key=lambda c: float(c.value[0]))
        # A threshold of zero keeps the same set at every larger share: one of them is enough.
        apart = [c for i, c in enumerate(curves) if i == 0 or c.value[0] - curves[i - 1].value[0] > 1e-6]
        if not apart:
            return None
        if any(not np.array_equal(c.x, apart[0].x) for c in apart):
            raise UnsupportedError(
                f"the trace in {self.path} measured the union_density of {tensor!r} at different rows for"
                " different shares kept; collect it again"
            )
        return UnionTable(apart[0].x, np.stack([c.value for c in apart]))

    def frequencies(self, layer: int, *, keep: float | None = None) -> np.ndarray:
        """Share of tokens that use each FFN neuron of `layer`, by neuron number [-]."""
        import numpy as np

        n = self.neurons
        at = np.isnan(n["keep"]) if keep is None else np.isclose(n["keep"], keep, atol=1e-9)
        here = at & (n["layer"] == layer)
        order = np.argsort(n["neuron"][here], kind="stable")
        return np.asarray(n["frequency"][here][order], float)


class Noted:
    """Stands for a trace and notes which of its attributes were asked for."""

    def __init__(self, trace: Trace):
        self.trace = trace
        self.asked: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.asked.add(name)
        return getattr(self.trace, name)

    def layer(self, index: int, n_layers: int, *, own: bool = True) -> LayerCurves:
        """As `Trace.layer`; to say which layer answers is no question yet."""
        return LayerCurves(cast(Trace, self), self.trace.layer(index, n_layers).index, own)


@dataclass(frozen=True, eq=False)
class LayerCurves:
    """What a policy sees of a trace: the curves of one layer.

    Attributes
    ----------
    index : int
        Layer of the measured model.
    own : bool
        Of the model that is asked about; else another's.
    """

    trace: Trace
    index: int
    own: bool = True

    def curve(self, tensor: str, statistic: str, *, keep: float | None = None, head: int = WHOLE_LAYER) -> Curve | None:
        """As `Trace.curve`."""
        return self.trace.curve(self.index, tensor, statistic, keep=keep, head=head)

    @property
    def group_size(self) -> float:
        """Query heads of each KV head of the measured model [-]."""
        facts = self.trace.manifest.facts
        return facts.n_heads / facts.n_kv_heads

    def has_union(self, tensor: str) -> bool:
        """Whether the union densities of `tensor` were measured here."""
        return self.trace.union(self.index, tensor) is not None

    def share(self, tensor: str, keep: float) -> float:
        """Units of `tensor` one token uses at a nominal `keep`, between the measured ones [-]."""
        import numpy as np

        keeps = self.trace.keeps(self.index, tensor, "union_density")
        curves = [self.curve(tensor, "union_density", keep=k) for k in keeps]
        ones = [float(c.value[0]) for c in curves if c is not None]
        return float(np.interp(keep, [0.0, *keeps, 1.0], [0.0, *ones, 1.0]))

    def union(self, tensor: str) -> tuple[UnionTable, UnionLaw]:
        """As `Trace.union`, and what it is called; another model's curve errs as far as models differ.

        Raises
        ------
        UnsupportedError
            Not measured; nothing is put in its place.
        """
        table = self.trace.union(self.index, tensor)
        if table is None:
            raise UnsupportedError(
                f"the trace in {self.trace.path} has no union_density of {tensor!r} in layer {self.index};"
                " collect it again, or leave out --trace"
            )
        manifest = self.trace.manifest
        name = kind(tensor, manifest.facts.activation)
        # KV heads are united heads: they differ between models as those do.
        known = name if name in UNITS else "attn.head"
        error = 0.0 if self.own else between_models(known)
        source = f"in {manifest.model} (--trace {self.trace.path})"
        return table, UnionLaw(UNITS[known], source, float(table.rows[-1]), error)
