"""Measured rows with predictions beside them: which were held out, and how wrong the predictions are."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.base import console
from simulator.base.errors import AmbiguousNameError, InputError, UnknownNameError, UnsupportedError
from simulator.base.parquet import read_parquet

if TYPE_CHECKING:
    import pandas as pd

    from simulator.device.fits import Fit

KERNEL_KINDS = (
    "gemm",
    "attention",
    "collective",
    "moe",
    "elementwise",
    "sparse_attention",
    "linear_attention",
    "alltoall",
)
FILES = {"alltoall": "expert_alltoall"}
"""Table of the data folder that holds the rows of a kind, where it is not named as the kind is."""
FAMILIES = {"sparse_attention": "module"}
"""Family, and module of `simulator.fitting`, of a kind of measured rows that is not named as it is."""
SMALLEST = 50
"""Rows below which a split's figures are not printed, only its count."""


@dataclass(frozen=True)
class Judged:
    """Prepared rows with predictions beside them, and which split they belong to."""

    rows: pd.DataFrame
    split: str
    unpredicted: dict[str, int] = field(default_factory=dict)


def module_of(kind: str) -> Any:
    """Fitting module of a kernel family: `FAMILY`, `INPUTS`, `prepare`, `fit`."""
    return importlib.import_module(f"simulator.fitting.{FAMILIES.get(kind, kind)}")


MOST_ROWS = 20_000_000
"""Rows of a measured table; a small file may unpack to more than the memory holds."""
TEXTS = (
    "source",
    "device",
    "dtype",
    "kv_dtype",
    "phase",
    "kernel",
    "note",
    "url",
    "flag",
    "op",
    "link",
    "distribution",
    "category",
    "pattern",
    "engine",
    "model",
    "quant",
    "metric",
    "unit",
    "dense_kernel",
    "sparse_kernel",
    "framework",
    "module",
    "mla_dtype",
    "gemm_dtype",
    "compress_ratio",
    "kind",
    "kernel_source",
    "comm_backend",
    "comm_dtype",
)
COUNTS = (
    "batch",
    "q_len",
    "kv_len",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "m",
    "n",
    "k",
    "n_nodes",
    "tp",
    "num_tokens",
    "hidden",
    "inter",
    "topk",
    "n_experts",
    "moe_tp",
    "moe_ep",
    "rows",
    "width",
)
"""Columns of whole numbers from 1 on."""
NUMBERS = (
    *COUNTS,
    "n_gpus",
    "past_len",
    "bytes",
    "window",
    "input_len",
    "output_len",
    "time_s",
    "value",
    "sparsity",
    "dense_time_s",
    "sparse_time_s",
    "speedup",
)
MOST = 1e15
"""Above any shape, byte count or time of a kernel."""


def read_rows(path: Path) -> pd.DataFrame:
    """Measured rows of a Parquet or CSV file; columns we know hold what their name says.

    Raises
    ------
    InputError
        ``file:line`` of the first number that is none, or absurd.
    """
    import pandas as pd

    if not path.is_file():
        raise InputError(f"no such file: {path}", where="--data")
    try:
        if path.suffix == ".csv":
            # A text column that is empty throughout would else be read as numbers.
            rows = pd.read_csv(path, dtype=dict.fromkeys(TEXTS, "str"), nrows=MOST_ROWS)
        else:
            rows = read_parquet(path, MOST_ROWS).to_pandas()
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}", where="--data") from None
    if rows.columns.duplicated().any():
        twice = rows.columns[rows.columns.duplicated()][0]
        raise InputError(f"{path} has the column {twice!r} twice", where="--data")
    for name in rows.columns:
        if name in TEXTS:
            kind = pd.api.types.infer_dtype(rows[name], skipna=True)
            if kind not in ("string", "empty") and rows[name].notna().any():
                raise InputError(f"column {name!r} is not text", where=str(path))
        elif name in NUMBERS:
            rows[name] = _numbers(rows[name], path)
    return rows


def _numbers(column: pd.Series, path: Path) -> pd.Series:
    import numpy as np
    import pandas as pd

    if column.dtype.kind not in "biufO":
        raise InputError(f"column {column.name!r} holds no numbers", where=str(path))
    try:
        found = pd.to_numeric(column, errors="coerce")
        values = found.to_numpy(float, na_value=np.nan)
    except OverflowError:
        raise InputError(f"{column.name} holds a number that is too large", where=str(path)) from None
    least = 1.0 if column.name in COUNTS else 0.0
    # Times that are not positive are counted and left out where they are judged.
    low = (values < least) & (column.name != "time_s")
    bad = (np.isnan(values) & column.notna().to_numpy()) | low | (values > MOST)
    if bad.any():
        at = int(np.argmax(bad))
        first = 2 if path.suffix == ".csv" else 1
        raise InputError(
            f"{column.name} is {str(column.iloc[at])!r}; it must be a number from {least:g} to {MOST:g}",
            where=f"{path}:{at + first}",
        )
    return found


def judge_rows(kind: str, raw: pd.DataFrame, holdout: str | None) -> tuple[list[Judged], dict[str, int]]:
    """Predictions for the rows to be judged, and counts of the rows left out by reason."""
    from simulator.fitting.asked import refuse_implausible

    module = module_of(kind)
    excluded = _excluded(raw)
    rows = prepared(kind, raw, excluded)
    refuse_implausible(module.FAMILY, rows, module.INPUTS)
    judged = list(_committed(module.FAMILY, rows) if holdout is None else _splits(module, rows, holdout))
    for j in judged:
        for reason, n in j.unpredicted.items():
            excluded[reason] = excluded.get(reason, 0) + n
    return judged, excluded


def prepared(kind: str, raw: pd.DataFrame, excluded: dict[str, int]) -> pd.DataFrame:
    """Rows of devices and formats we know as their family prepares them; the others are counted in `excluded`."""
    return _prepared(module_of(kind), _known(kind, raw, excluded), excluded)


def _prepared(module: Any, raw: pd.DataFrame, excluded: dict[str, int]) -> pd.DataFrame:
    """Prepared rows; where a device lacks the rate of a format, those rows are counted instead."""
    import pandas as pd

    try:
        return module.prepare(raw)
    except UnsupportedError:
        parts = []
        for _, group in raw.groupby(["device", "dtype"], dropna=False, sort=False):
            try:
                parts.append(module.prepare(group))
            except UnsupportedError as error:
                reason = error.message.split(";")[0]
                excluded[reason] = excluded.get(reason, 0) + len(group)
        if not parts:
            raise
        return pd.concat(parts, ignore_index=True)


def _known(kind: str, raw: pd.DataFrame, excluded: dict[str, int]) -> pd.DataFrame:
    """Rows of devices with a profile and formats we know; the others are counted in `excluded`."""
    from simulator.base.dtypes import FORMATS
    from simulator.device.catalogue import resolve

    keep = [True] * len(raw)
    if "device" in raw:
        names: dict[str, bool] = {}
        device = raw["device"].fillna("").astype(str)
        for name in device.unique():
            try:
                names[name] = bool(resolve(name))
            except (UnknownNameError, AmbiguousNameError):
                names[name] = False
        keep = device.map(names).to_numpy()
        for name, here in names.items():
            if not here:
                excluded[f"device {name} has no profile"] = int((device == name).sum())
    if "dtype" in raw and kind in ("gemm", "attention", "moe"):
        renamed = getattr(module_of(kind), "FORMAT_NAMES", {})
        known = raw["dtype"].astype(str).isin([*FORMATS, *renamed]).to_numpy()
        for name, n in raw["dtype"][~known].value_counts().items():
            excluded[f"unknown format {name}"] = int(n)
        keep = keep & known
    return raw[keep]


def _committed(kind: str, rows: pd.DataFrame) -> Iterator[Judged]:
    """Rows by what the devices' own fits have seen: their source, their device, or neither."""
    import numpy as np

    from simulator.device.catalogue import load

    seen = {str(d): {s for f in load(str(d)).measured.own(kind) for s in f.sources} for d in rows["device"].unique()}
    split = np.array(
        [
            "cross_device" if not seen[d] else "in_source" if s in seen[d] else "cross_source"
            for d, s in zip(rows["device"], rows["source"], strict=True)
        ]
    )
    for name in ("in_source", "cross_source", "cross_device"):
        if (split == name).any():
            yield _judge(kind, rows[split == name], None, name)


def _excluded(raw: pd.DataFrame) -> dict[str, int]:
    import numpy as np

    out: dict[str, int] = {}
    if "flag" in raw:
        flag = raw["flag"].fillna("").astype(str).str.strip()
        out = {f"flag {k}": int(v) for k, v in flag[flag != ""].value_counts().items()}
    if "time_s" in raw:
        bad = ~np.isfinite(raw["time_s"].to_numpy(float)) | (raw["time_s"].to_numpy(float) <= 0)
        if bad.any():
            out["no positive time"] = int(bad.sum())
    return out


def _splits(module: Any, rows: pd.DataFrame, holdout: str) -> Iterator[Judged]:
    from simulator.fitting import judge

    if holdout == "release":
        yield _newest_out(module, rows)
        return
    if holdout in ("source", "device"):
        yield from _left_out(module, rows, holdout)
        return
    if not len(rows):
        raise InputError("no row is left to hold out", where="--data")
    test = judge.split(rows, module.INPUTS, holdout)
    yield _judge(module.FAMILY, rows[test], module.fit(rows[~test]), "in_source")


def _newest_out(module: Any, rows: pd.DataFrame) -> Judged:
    """The newest release of every kernel that has several, judged by fits of the older ones."""
    import numpy as np

    from simulator.device.releases import version

    if "release" not in rows:
        raise InputError("these rows name no release of their kernels", where="--holdout")
    keys = [k for k in ("device", "dtype", "kv_dtype", "phase", "library") if k in rows]
    at = np.zeros(len(rows), bool)
    for members in rows.groupby(keys).indices.values():
        releases = rows["release"].to_numpy(object)[members]
        if len(set(releases)) > 1:
            at[members] = releases == max(releases, key=version)
    if not at.any():
        raise InputError("no kernel has rows of two releases", where="--holdout")
    return _judge(module.FAMILY, rows[at], module.fit(rows[~at]), "cross_release")


def _left_out(module: Any, rows: pd.DataFrame, column: str) -> Iterator[Judged]:
    """Leave one source of a device, or one device, out at a time.

    Where another source measured too few rows of the device's number format, leaving a source out
    leaves the device unseen, and its rows are judged as `cross_device`.
    """
    if column == "device":
        names = sorted(rows["device"].unique())
        if len(names) < 2:
            raise InputError("one device only: nothing is left to fit on", where="--holdout")
        judged_on = rows["device"].notna()
    else:
        names = sorted(rows["source"].unique())
        sources = rows.groupby("device")["source"].nunique()
        judged_on = rows["device"].isin(sources[sources > 1].index)
        if not judged_on.any():
            raise InputError("no device has rows of two sources", where="--holdout")
    # A family whose fit is long has `without`: it fits again only what the left-out rows touch.
    if hasattr(module, "without"):
        rest = module.without(rows)
    else:

        def rest(left_out: Any) -> list[Fit]:
            return module.fit(rows[~left_out])

    parts: dict[str, list[Judged]] = {"cross_source": [], "cross_device": []}
    for name in console.progress(names, len(names), f"leaving out each {column}"):
        left_out = (rows[column] == name).to_numpy()
        judged = left_out & judged_on.to_numpy()
        if not judged.any():
            continue
        fits = rest(left_out)
        known = _measured_elsewhere(rows, left_out)
        for split, here in (("cross_source", judged & known), ("cross_device", judged & ~known)):
            if here.any():
                parts[split].append(_judge(module.FAMILY, rows[here], fits, split))
    for split, found in parts.items():
        if found:
            yield _joined(found, split)


def _measured_elsewhere(rows: pd.DataFrame, left_out: Any) -> Any:
    """Whether `SMALLEST` rows of the same device and format (fp16 and bf16 are one) are left to fit on."""
    keys = [k for k in ("device", "dtype", "kv_dtype", "phase", "op", "module", "kernel_part") if k in rows]
    label = rows[keys].astype(str).replace("fp16", "bf16").agg("|".join, axis=1)
    return (label.map(label[~left_out].value_counts()).fillna(0) >= SMALLEST).to_numpy()


def _joined(parts: list[Judged], split: str) -> Judged:
    import pandas as pd

    unpredicted: dict[str, int] = {}
    for part in parts:
        for reason, n in part.unpredicted.items():
            unpredicted[reason] = unpredicted.get(reason, 0) + n
    return Judged(pd.concat([p.rows for p in parts]), split, unpredicted)


def _judge(kind: str, rows: pd.DataFrame, fits: list[Fit] | None, split: str) -> Judged:
    """What a prediction answers beside the rows; what nothing measured can answer for is counted, not guessed."""
    from simulator.fitting.asked import predicted

    found, unpredicted = predicted(kind, rows, fits)
    return Judged(found, split, unpredicted)


def table(kind: str, judged: Judged, by: tuple[str, ...]) -> list[dict[str, Any]]:
    """Figures of every group of `by`, largest first; small groups carry their count only."""
    rows = judged.rows
    keys = [k for k in by if k in rows]
    if not keys:
        raise InputError(f"{kind} rows have none of the columns {', '.join(by)}", where="--by")
    out = []
    for names, group in rows.groupby(keys, dropna=False, sort=False):
        labels = dict(zip(keys, names if isinstance(names, tuple) else (names,), strict=True))
        out.append({"family": kind, **labels, "split": judged.split, **figures(group)})
    return sorted(out, key=lambda r: -r["n"])


def figures(rows: pd.DataFrame) -> dict[str, Any]:
    """The contract's figures of one group of judged rows."""
    import numpy as np

    from simulator.fitting import judge

    t, mid = rows["time_s"].to_numpy(float), rows["mid_s"].to_numpy(float)
    if len(rows) < SMALLEST:
        return {"n": len(rows)}
    lo, hi = rows["lo_s"].to_numpy(float), rows["hi_s"].to_numpy(float)
    repeated = rows["repeats"].to_numpy() > 1 if "repeats" in rows else np.zeros(len(rows), bool)
    naive = np.abs(rows["naive_s"].to_numpy(float) / t - 1.0)
    return {
        **judge.figures(t, mid),
        "coverage_90": float(np.mean((t >= lo) & (t <= hi))),
        "interval_width": float(np.median(np.log(hi / lo))),
        "noise_floor": float(np.median(rows["spread"].to_numpy()[repeated])) if repeated.any() else None,
        "roofline_median_ape": float(np.nanmedian(naive)),
    }
