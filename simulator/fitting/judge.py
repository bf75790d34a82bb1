"""How a family is judged: repeats to medians, splits by shape group, the figures of a split.

Shared by `calibrate` (out-of-fold residuals) and `validate` (held-out rows), so both mean the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from simulator.base.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

ORIGINS: Mapping[str, Mapping[str, str]] = {
    family: {"aisimulate": "aiconfigurator"} for family in ("gemm", "attention", "moe")
}
"""Sources of a family that go by a later name: the tables of both names are one source."""
NOISE_COLUMNS = ("kernel", "source", "note", "url", "flag", "time_s")


def usable(rows: pd.DataFrame, family: str, needed: Sequence[str]) -> pd.DataFrame:
    """Rows without a flag and with a positive, finite time.

    Raises
    ------
    InputError
        A column of `needed`, or one that all rows have, is missing.
    """
    missing = {"source", "device", "time_s", *needed} - set(rows.columns)
    if missing:
        raise InputError(f"{family} rows lack the columns {sorted(missing)}", where="--data")
    for name in ("source", "device", *needed):
        if rows[name].isna().any():
            at = int(rows[name].isna().to_numpy().argmax()) + 1
            raise InputError(f"{family} row {at} has no {name!r}", where="--data")
    time = rows["time_s"].to_numpy(float)
    good = np.isfinite(time) & (time > 0)
    if "flag" in rows:
        good &= (rows["flag"].fillna("").astype(str).str.strip() == "").to_numpy()
    rows = rows[good]
    return rows.assign(source=rows["source"].astype(object).replace(dict(ORIGINS.get(family, {}))))


def aggregate(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """One row per `keys` with the median time; `repeats` and `spread` (median |ln(t/median)|) beside it."""
    grouped = rows.groupby(list(keys), dropna=False, sort=True)["time_s"]
    out = grouped.median().to_frame()
    out["repeats"] = grouped.size()
    centre = grouped.transform("median").to_numpy(float)
    off = rows.assign(off=np.abs(np.log(rows["time_s"].to_numpy(float) / centre)))
    out["spread"] = off.groupby(list(keys), dropna=False, sort=True)["off"].median()
    return out.reset_index()


def shape_group(rows: pd.DataFrame, inputs: Sequence[str]) -> np.ndarray:
    """Integer in [0, 2**32) per row: a hash of all inputs, so one shape never stands on both sides of a split."""
    columns = [rows[name].astype(str) for name in inputs]
    keys = ["|".join(values) for values in zip(*columns, strict=True)]
    hashed = {k: int(hashlib.sha256(k.encode()).hexdigest()[:8], 16) for k in dict.fromkeys(keys)}
    return np.array([hashed[k] for k in keys], dtype=np.uint64)


def fold_of(groups: np.ndarray, folds: int) -> np.ndarray:
    """Fold number in [0, folds) of each shape group; stable across machines and row order."""
    return (groups % np.uint64(9973)).astype(np.int64) % folds


def folds(groups: np.ndarray, n: int = 5) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(train, test) masks of an n-fold split by shape group."""
    number = fold_of(groups, n)
    for i in range(n):
        yield number != i, number == i


def share_of(text: str) -> float:
    """``--holdout SHARE`` as a number between 0 and 1.

    Raises
    ------
    InputError
        It is none.
    """
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0.0 < share < 1.0:
        raise InputError(f"{text!r} is not a share between 0 and 1, 'source', 'device' or 'release'", where="--holdout")
    return share


def split(rows: pd.DataFrame, inputs: Sequence[str], share: str) -> np.ndarray:
    """Mask of the rows held out by ``--holdout SHARE``, whole shapes at a time.

    Raises
    ------
    InputError
        Not a share, or one that leaves a side of the split empty.
    """
    test = holdout(shape_group(rows, inputs), share_of(share))
    if test.all() or not test.any():
        raise InputError("a side of the split is empty; take another share", where="--holdout")
    return test


def holdout(groups: np.ndarray, share: float) -> np.ndarray:
    """Mask of the held-out rows: the shape groups whose hash falls below `share`."""
    return (groups.astype(np.float64) / 2.0**32) < share


def figures(measured_s: np.ndarray, predicted_s: np.ndarray) -> dict[str, float]:
    """APE and bias of a split: APE = |pred - meas|/meas, bias = median(pred/meas) - 1 [-]."""
    if len(measured_s) == 0:
        return {"n": 0}
    ratio = np.asarray(predicted_s, float) / np.asarray(measured_s, float)
    ape = np.abs(ratio - 1.0)
    big = np.asarray(measured_s, float) > 50e-6
    return {
        "n": len(ratio),
        "n_over_50us": int(big.sum()),
        "median_ape": float(np.median(ape)),
        "median_ape_over_50us": float(np.median(ape[big])) if big.any() else float("nan"),
        "p90_ape": float(np.quantile(ape, 0.9)),
        "bias": float(np.median(ratio) - 1.0),
    }
