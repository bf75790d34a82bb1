"""Measured tables of one family read as one: rows published again replace the older ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.fitting.judged import FILES, read_rows

if TYPE_CHECKING:
    import pandas as pd

LARGER = "_more"
"""Ending of the table that holds further rows of a family."""
AGAIN = ("device", "dtype", "kernel")
"""What a publication measured as one; the other inputs are its shapes."""
NOT_SHAPE = ("source", "url", "note", "flag", "time_s", *AGAIN)
MOVED = 0.05
"""Median |ln ratio| of repeated shapes beyond which the older publication of a kernel is left out [-].

The two tables of one kernel and release agree to 1e-6, but for the ones that were measured anew (0.23).
"""


def paths_of(kind: str, folder: Path) -> list[Path]:
    """Tables of `kind` that a data folder holds, the newest last."""
    name = FILES.get(kind, kind)
    return [p for ending in ("", LARGER) if (p := folder / f"{name}{ending}.parquet").is_file()]


def read_tables(paths: Sequence[Path]) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rows of all `paths`, the newest last, and counts of the rows left out by reason.

    A row that a later table repeats (device, format, kernel and shape) is left out; of a kernel that was measured
    anew, with other times for the same shapes, so are all older rows.
    """
    import pandas as pd

    tables = [read_rows(p) for p in paths]
    excluded: dict[str, int] = {}
    out = tables[0]
    for newer in tables[1:]:
        twice, anew = _published(out, newer)
        for reason, mask in (("published twice", twice & ~anew), ("measured anew", anew)):
            if mask.any():
                excluded[reason] = excluded.get(reason, 0) + int(mask.sum())
        out = pd.concat([out[~(twice | anew)], newer], ignore_index=True)
    return out, excluded


def _published(older: pd.DataFrame, newer: pd.DataFrame) -> tuple[Any, Any]:
    """Masks of `older`: rows that `newer` repeats, and rows of kernels that it measured anew."""
    shape = [c for c in older.columns if c in newer.columns and c not in NOT_SHAPE]
    again = [c for c in AGAIN if c in older.columns and c in newer.columns]
    keys = [*again, *shape]
    later = newer[[*keys, "time_s"]].groupby(keys, dropna=False, as_index=False)["time_s"].median()
    both = older[[*keys, "time_s"]].merge(later, on=keys, how="left", suffixes=("", "_later"))
    twice = both["time_s_later"].notna().to_numpy()
    off = (both["time_s_later"] / both["time_s"]).map(np.log).abs()
    moved = off.groupby([both[c].astype(str) for c in again]).transform("median").to_numpy(float)
    return twice, np.nan_to_num(moved) > MOVED
