"""Measured kernel rows of the `aisimulate` wheel (Apache-2.0), formerly `aiconfigurator-core`, as our fits read them.

Optional: ``pip install --pre --no-deps aisimulate``. The committed coefficients never use it, so that judging them
on unseen rows stays honest; anyone may refit from it. Tables of one model's own builds (``systems/profiles``) are
left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from simulator.base.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

PACKAGES = {"aisimulate": "aisimulate", "aiconfigurator-core": "aiconfigurator"}
"""Names of the wheel, newest first, and the source of the public tables drawn from it: they are the same rows."""
TABLES = ("systems", "data")
"""Folders inside the wheel's package that hold one folder for each system."""
DTYPES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "fp8_static": "fp8_static",
    "nvfp4": "nvfp4",
    "int8_wo": "w8a16",
    "int4_wo": "w4a16",
    "sq": "int8",
    "w4a16_mxfp4": "w4a16_mxfp4",
}
"""Their number formats to ours; others keep their name: their family reads it, or they are counted as unknown."""
SYSTEMS = {
    "a100_pcie": "a100-pcie-80g",
    "a100_sxm": "a100-sxm-80g",
    "a30": "a30",
    "b200_sxm": "b200",
    "b300_sxm": "b300",
    "b60": "b60",
    "gb200": "gb200",
    "gb300": "gb300",
    "h100_pcie": "h100-pcie",
    "h100_sxm": "h100-sxm",
    "h200_sxm": "h200",
    "l4": "l4",
    "l40s": "l40s",
    "rtx_pro_6000_server": "rtx-pro-6000",
}
FILES = {
    "gemm": ("gemm_perf",),
    "attention": ("context_attention_perf", "generation_attention_perf"),
    "collective": ("nccl_perf", "custom_allreduce_perf"),
    "moe": ("moe_perf",),
}
"""Table names of each kernel family."""
MOST_ROWS = 1000
"""Rows taken of a kernel in one format: where the learning curves are flat (`validate --learning-curve`)."""
BATCH_ROWS = 65_536
"""Rows read at once: one table alone has 0.4 million."""


def rows(package: str, kind: str, device: str | None = None) -> pd.DataFrame:
    """Rows of one family, optionally of one device: at most `MOST_ROWS` of each kernel, the same in every run.

    A batch of rows is thinned before the next is read, so that memory does not grow with the wheel.

    Raises
    ------
    InputError
        The wheel is not installed, or has no such family or device.
    """
    import pandas as pd

    if kind not in FILES:
        raise InputError(f"{package} has no {kind} rows; it has {', '.join(FILES)}", where="--kind")
    systems = {s: d for s, d in SYSTEMS.items() if device in (None, d)}
    tables = []
    for system, path in _paths(package):
        if system not in systems or path.stem not in FILES[kind]:
            continue
        parts = [_thinned(part) for part in _batches(path, kind) if len(part)]
        if not parts:
            continue
        read = _thinned(pd.concat(parts, ignore_index=True))
        read["kernel"] = "-".join(path.parts[-3:-1]) + ":" + read["kernel"].astype(str)
        read["device"], read["source"], read["flag"] = systems[system], PACKAGES[package], ""
        tables.append(read)
    if not tables:
        raise InputError(f"{package} has no {kind} rows for {device}", where="--device")
    return pd.concat(tables, ignore_index=True)


def _batches(path: Path, kind: str) -> Iterator[pd.DataFrame]:
    """Rows of one table in our columns, a batch at a time."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as table:
        for batch in table.iter_batches(BATCH_ROWS):
            yield _READ[kind](batch.to_pandas(), path.stem)


def _thinned(table: pd.DataFrame) -> pd.DataFrame:
    """Shapes drawn by the hash of what they are, so that kernels keep common ones."""
    from pandas.util import hash_pandas_object

    cell = [c for c in ("dtype", "kernel", "phase") if c in table]
    shape = hash_pandas_object(table.drop(columns=["time_s", *cell]), index=False)
    order = table.assign(shape=shape).sort_values("shape", kind="stable")
    kept = order.groupby(cell, sort=False).head(MOST_ROWS).index
    return table.loc[kept.sort_values()].reset_index(drop=True)


def _paths(package: str) -> list[tuple[str, Path]]:
    """Tables of the installed wheel, each with its system."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        how = f"pip install --pre --no-deps {package}"
        raise InputError(f"{package} is not installed; run `{how}`", where="--from") from None
    tables = [f for f in files if f.suffix == ".parquet" and f.parts[1:3] == TABLES]
    return sorted((f.parts[3], Path(str(f.locate()))) for f in tables)


def _columns(table: pd.DataFrame, dtype: str, **renamed: str) -> pd.DataFrame:
    import pandas as pd

    out = pd.DataFrame({new: table[old] for new, old in renamed.items()})
    out["dtype"] = table[dtype].map(DTYPES).fillna(table[dtype])
    out["time_s"] = table["latency"].astype(float) * 1e-3
    out["kernel"] = table["kernel_source"]
    return out


def _gemm(table: pd.DataFrame, name: str) -> pd.DataFrame:
    out = _columns(table, "gemm_dtype", m="m", n="n", k="k")
    out["batch"] = 1
    return out


def _attention(table: pd.DataFrame, name: str) -> pd.DataFrame:
    if "num_key_value_heads" not in table:
        return table.head(0)
    out = _columns(
        table,
        "attn_dtype",
        batch="batch_size",
        n_heads="num_heads",
        n_kv_heads="num_key_value_heads",
        head_dim="head_dim",
    )
    out["n_kv_heads"] = np.where(out["n_kv_heads"] == 0, out["n_heads"], out["n_kv_heads"])
    out["kv_dtype"] = table["kv_cache_dtype"].map(DTYPES)
    out["window"] = table.get("window_size", 0)
    decode = name.startswith("generation")
    out["phase"] = "decode" if decode else "prefill"
    out["q_len"] = 1 if decode else table["isl"]
    out["kv_len"] = table["isl"] + table["step"]
    return out[out["kv_dtype"].notna()]


def _collective(table: pd.DataFrame, name: str) -> pd.DataFrame:
    dtype = "nccl_dtype" if "nccl_dtype" in table else "allreduce_dtype"
    size = table[dtype].map({"int8": 1, "half": 2, "bfloat16": 2, "float16": 2, "float": 4})
    out = table[["op_name", "num_gpus", "message_size", "kernel_source"]].copy()
    out.columns = ["op", "n_gpus", "bytes", "kernel"]
    out["op"] = out["op"].replace("alltoall", "all_to_all")
    out["bytes"] = out["bytes"] * size
    out["dtype"], out["n_nodes"], out["link"] = table[dtype], 1, ""
    out["time_s"] = table["latency"].astype(float) * 1e-3
    return out[size.notna().to_numpy()]


def _moe(table: pd.DataFrame, name: str) -> pd.DataFrame:
    return _columns(
        table,
        "moe_dtype",
        num_tokens="num_tokens",
        hidden="hidden_size",
        inter="inter_size",
        topk="topk",
        n_experts="num_experts",
        moe_tp="moe_tp_size",
        moe_ep="moe_ep_size",
        distribution="distribution",
    )


_READ = {"gemm": _gemm, "attention": _attention, "collective": _collective, "moe": _moe}
