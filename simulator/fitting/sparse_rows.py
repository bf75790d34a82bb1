"""Measured sparse kernels as rows a fit can read: pattern family, kernel, device, counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from simulator.base.errors import InputError
from simulator.device.fits import VENDOR

if TYPE_CHECKING:
    import pandas as pd

INPUTS = ("family", "m", "n", "k", "batch", "q_len", "kv_len", "n_heads", "keep")
"""One shape and sparsity; formats, kernels and devices stand on the same side of a split."""
COUNTS = ("m", "n", "k", "batch", "q_len", "kv_len", "n_heads")
NEEDED = (*COUNTS, "n_kv_heads", "source", "device", "category", "pattern", "dtype", "sparsity")
TIMES = ("dense_time_s", "sparse_time_s")
FEWEST = 3
"""Rows of a kernel below which nothing is fitted to it."""


def prepare(raw: pd.DataFrame) -> pd.DataFrame:
    """Usable rows of a sparse file, see `split`."""
    return split(raw)[0]


def split(raw: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Usable rows, repeats at their median, and counts of the rows left out by reason.

    Adds `family`, `library` (sparse kernel), `baseline` (dense kernel), `weight` and `kv_bytes`
    (number formats), `keep`, `vector` (rows per block), `arch`, `speedup`, `naive`.
    """
    import pandas as pd

    from simulator.device.catalogue import load

    missing = [c for c in (*NEEDED, *TIMES) if c not in raw]
    if missing:
        raise InputError(f"column {missing[0]!r} is missing; a sparse file has {', '.join(NEEDED)}")
    rows = raw.reset_index(drop=True).copy()
    for column in ("category", "pattern", "dtype", "device", "dense_kernel", "sparse_kernel"):
        rows[column] = rows[column].fillna("").astype(str)
    rows["family"] = _family(rows)
    rows["library"], rows["baseline"] = _library(rows)
    rows["device"] = rows["device"].map({d: _profile(d) for d in rows["device"].unique()})
    times = [pd.to_numeric(rows[c], errors="coerce").to_numpy(float) for c in TIMES]
    flag = rows["flag"].astype(object).where(rows["flag"].notna(), "") if "flag" in rows else ""
    reason = np.select(
        [
            np.asarray(flag != "") & np.ones(len(rows), bool),
            ~(times[0] > 0),
            ~(times[1] > 0),
            (rows["device"] == "").to_numpy(),
            (rows["family"] == "").to_numpy(),
        ],
        ["flagged", "no dense time", "no sparse time", "device not stated", "no model of the kernel"],
        "",
    )
    good = pd.Series(reason == "", index=rows.index)
    count = rows[good].groupby(["family", "library"])["source"].transform("size")
    reason[count.index[count < FEWEST]] = f"fewer than {FEWEST} rows of the kernel"
    excluded = {str(k): int(v) for k, v in pd.Series(reason[reason != ""]).value_counts().items()}
    rows = rows[reason == ""].copy()
    dtype = rows["dtype"]
    rows["weight"] = dtype.str.extract(r"gemm=(\w+)", expand=False).fillna("bfloat16")
    rows["kv_bytes"] = np.where(dtype.str.contains("kv=fp8"), 1.0, 2.0)
    rows["naive"] = 1.0 / (1.0 - rows["sparsity"].astype(float))
    rows["keep"] = 1.0 - rows["sparsity"].astype(float).fillna(0.0)
    width = rows["pattern"].str.extract(r"(?:V=|v=)(\d+)", expand=False)
    rows["vector"] = pd.to_numeric(width).fillna(1.0)
    for place in ("arch", "scope"):
        rows[place] = rows["device"].map({d: getattr(load(d), place) for d in rows["device"].unique()})
    rows["n_kv_heads"] = rows["n_kv_heads"].astype(float).fillna(rows["n_heads"]).fillna(1.0)
    for column in COUNTS:
        rows[column] = rows[column].astype(float).fillna(1.0)
    keys = [
        *INPUTS,
        "weight",
        "kv_bytes",
        "vector",
        "arch",
        "scope",
        "source",
        "device",
        "library",
        "baseline",
        "sparse_kernel",
    ]
    # The kernel stays in the key: a family may pool two, but their times are two measurements.
    grouped = rows.groupby(keys, sort=True)
    out = grouped[[*TIMES, "naive"]].median()
    for column in ("pattern", "dtype", "n_kv_heads"):
        out[column] = grouped[column].first()
    out = out.reset_index()
    out["speedup"] = out["dense_time_s"] / out["sparse_time_s"]
    return out, excluded


def _family(rows: pd.DataFrame) -> np.ndarray:
    """Pattern family by the table's words; '' where no model covers the kernel."""
    pattern, category, source = rows["pattern"], rows["category"], rows["source"].astype(str)
    dsa = pattern.str.contains("DSA")
    return np.select(
        [
            dsa & category.str.contains("decode"),
            dsa,
            pattern.str.startswith("2:4") & (category == "spmm-weight"),
            pattern.str.startswith("V:N:M"),
            pattern.str.contains("Sputnik"),
            pattern.str.contains("CLASP"),
            pattern.str.startswith("neuron-sparse"),
            source.str.startswith("ProSparse"),
            pattern.str.contains("NSA|compressed KV|selected blocks"),
            pattern.str.contains("MInference|Triangle attention"),
        ],
        ["DSA decode", "DSA prefill", "2:4", "V:N:M", "Sputnik", "CLASP", "CATS", "ProSparse", "NSA", "MInference"],
        "",
    )


def _library(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Kernel of the sparse and of the dense time."""
    family, kernel = rows["family"], rows["sparse_kernel"]
    # A module is named as the tables of modules name it: engine, release, kernel.
    sparse, dense = (rows[c].str.replace(r" .*module:", ":", regex=True) for c in ("sparse_kernel", "dense_kernel"))
    dsa = family.str.startswith("DSA")
    baseline = np.where(dsa, dense, "dense")
    library = np.select(
        [
            dsa,
            family == "V:N:M",
            family == "Sputnik",
            family == "CLASP",
            family == "ProSparse",
            family == "2:4",
            family.isin(["CATS", "NSA"]),
        ],
        [
            sparse,
            "Spatha",
            "Sputnik",
            rows["pattern"].str.extract(r"(v=\d+)", expand=False),
            rows["pattern"].str.split(",").str[0],
            VENDOR,
            # "_" parts an engine from its kernel in the names of libraries.
            kernel.str.replace("CATS ", "").str.replace("topk_sparse_attention", "top-k").str.replace("_attention", ""),
        ],
        kernel,
    )
    return library, baseline


def _profile(name: str) -> str:
    """Profile name of a measured device, '' where there is none or the name is not a card's."""
    from simulator.base.errors import UnknownNameError
    from simulator.device.catalogue import resolve

    try:
        return resolve(name) if name else ""
    except UnknownNameError:
        return ""
