"""Points that form no grid: rows of a table, grouped by what changes the ops, answered in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simulator.base.errors import InputError
from simulator.inference.group import group_of
from simulator.results.answer import Rows, joined
from simulator.results.rows import rows
from simulator.scenario.grid import OUTER, SIZES
from simulator.scenario.scenario import Scenario

POINT_AXES = ("batch", "prompt_tokens", "output_tokens")
DEFAULT = {axis: Scenario.model_fields[axis].default for axis in POINT_AXES}


def scattered(columns: Mapping[str, Sequence[Any] | np.ndarray], **settings: Any) -> Rows:
    """Rows for scenarios given as columns, in their order.

    Parameters
    ----------
    columns : mapping of field name to sequence
        Fields of `Scenario`, all of one length; absent ones take their default. Names repeat, so rows are
        grouped by them and every group is one array evaluation.
    settings : Any
        Scalar fields for all rows, e.g. ``gpu_memory_utilization``.

    Raises
    ------
    InputError
        Unknown or missing columns, unequal lengths, sizes that are not whole numbers of 1 or more.
    """
    n = _length(columns)
    outer = [c for c in OUTER if c in columns]
    codes = _codes(columns, outer, n)
    order = np.argsort(codes, kind="stable")
    edges = np.flatnonzero(np.diff(codes[order], prepend=-1))
    sizes = {axis: _whole(columns[axis], axis) for axis in POINT_AXES if axis in columns}
    blocks, places = [], []
    for start, stop in zip(edges, [*edges[1:], n], strict=True):
        place = order[start:stop]
        fixed = {c: columns[c][place[0]] for c in outer}
        fixed = {c: int(v) if c in SIZES else str(v) for c, v in fixed.items()}
        batch, prompt, output = (
            sizes[a][place] if a in sizes else np.full(len(place), float(DEFAULT[a])) for a in POINT_AXES
        )
        blocks.append(rows(group_of(Scenario.of(**fixed, **settings)), batch, prompt, output)[0])
        places.append(place)
    return joined(blocks).take(np.argsort(np.concatenate(places)))


def _length(columns: Mapping[str, Any]) -> int:
    known = (*OUTER, *POINT_AXES)
    for name in columns:
        if name not in known:
            raise InputError(f"unknown column {name!r}; known: {', '.join(known)}")
    for name in ("model", "device"):
        if name not in columns:
            raise InputError(f"a column {name!r} is needed")
    lengths = {len(c) for c in columns.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(f"columns need one common length of 1 or more; got {sorted(lengths)}")
    return lengths.pop()


def _codes(columns: Mapping[str, Any], outer: Sequence[str], n: int) -> np.ndarray:
    """One number per row for its combination of the outer columns."""
    code = np.zeros(n, np.int64)
    for name in outer:
        values = np.asarray(columns[name]).tolist()
        # A dictionary, because np.unique sorts, and sorting strings costs ten times as much.
        seen = {v: i for i, v in enumerate(dict.fromkeys(values))}
        index = np.fromiter(map(seen.__getitem__, values), np.int64, n)
        code = code * len(seen) + index
    return code


def _whole(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values, float)
    if not np.all(np.isfinite(array) & (array >= 1) & (array == np.floor(array))):
        raise InputError("every value must be a whole number of 1 or more", where=name)
    return array
