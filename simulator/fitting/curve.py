"""Held-out error against the number of rows fitted: where more of them stop helping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.fitting import judge
from simulator.fitting.asked import predicted

if TYPE_CHECKING:
    import pandas as pd


def learning_curve(
    module: Any, rows: pd.DataFrame, device: str, key: str, sizes: Sequence[int], seeds: Sequence[int] = (0, 1, 2)
) -> list[dict[str, float]]:
    """Held-out error of one device and key against the number of fit rows, from this device's rows alone.

    The 30 % of shapes that `judge.holdout` names are never fitted; each size is drawn per seed.

    Parameters
    ----------
    module : module
        Of `simulator.fitting`: `FAMILY`, `INPUTS`, `fit`.
    rows : DataFrame
        From the module's `prepare`.
    key : str
        What `rows` hold as `key`, or as `dtype` where they have none.
    """
    column = "key" if "key" in rows else "dtype"
    rows = rows[(rows["device"] == device) & (rows[column] == key)].reset_index(drop=True)
    if not len(rows):
        return []
    held = judge.holdout(judge.shape_group(rows, module.INPUTS), 0.3)
    test, pool = rows[held], np.flatnonzero(~held)
    out = []
    for size in sizes:
        if size > len(pool):
            continue
        for seed in seeds:
            drawn = np.random.default_rng(seed).choice(pool, size, replace=False)
            learn = rows.iloc[np.sort(drawn)]
            judged, _ = predicted(module.FAMILY, test, module.fit(learn, residuals=False))
            if not len(judged):  # too few rows of each library for a fit of any
                continue
            figures = judge.figures(judged["time_s"].to_numpy(float), judged["mid_s"].to_numpy(float))
            out.append({"fit_rows": float(size), "seed": float(seed), **figures})
    return out
