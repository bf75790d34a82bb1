"""Measured GEMM rows as the fit reads them: libraries, profile names, device numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simulator.base.dtypes import get_format
from simulator.device.surface import Surface
from simulator.fitting import judge
from simulator.fitting.releases import release_of
from simulator.roofline.gemm import gemm_time
from simulator.roofline.hardware import Hardware, hardware

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]

KEYS = ("source", "device", "dtype", "library", "release", "batch", "m", "n", "k")
LIBRARIES: tuple[tuple[str, str], ...] = (
    (r"GemmEx", "cublas_launch"),
    (r"^bmm:", "bmm"),
    (r"^linear:|^torch|layerwise|^cublas|^cuBLAS", "torch"),
    (r"^aiter:(\w+)", r"aiter_\1"),
    (r"^(vllm).*DeepGemm", r"\1_deepgemm"),
    (r"^(vllm).*Triton", r"\1_triton"),
    (r"^(vllm).*FlashInferFp8", r"\1_flashinfer"),
    (r"^(sglang|trtllm|vllm)", r"\1"),
    (r"DeepGEMM", "deepgemm"),
)
"""Kernel string to library, first match wins; the rest is `other`."""


def library_of(kernel: str, dtype: str = "") -> str:
    """Library behind a kernel string of the measurements; `other` when no pattern fits."""
    for pattern, name in LIBRARIES:
        hit = re.search(pattern, kernel)
        if hit:
            return hit.expand(name)
    return "other"


def klass(dtype: str) -> str:
    """Formats fitted together: bf16 and fp16 run the same kernels at the same rate."""
    return "bf16" if dtype == "fp16" else dtype


def prepare(rows: pd.DataFrame) -> pd.DataFrame:
    """Unflagged rows with profile name and library, repeats to their median."""
    from simulator.device import catalogue as devices

    rows = judge.usable(rows, "gemm", ("dtype", "m", "n", "k")).copy()
    known = {name: devices.resolve(name) for name in rows["device"].astype(str).unique()}
    rows["device"] = rows["device"].astype(str).map(known)
    for column in ("source", "dtype"):
        rows[column] = rows[column].astype(str)
    kernel = rows["kernel"].fillna("").astype(str) if "kernel" in rows else [""] * len(rows)
    rows["library"] = [library_of(s) for s in kernel]
    rows["release"] = [release_of(s) for s in kernel]
    if "batch" not in rows:
        rows["batch"] = 1
    return judge.aggregate(rows, KEYS)


ROW_NUMBERS = ("sm_count", "math_flop_per_s", "hbm_bytes_per_s", "l2_bytes", "max_clock_ratio")


def _stack(each: list[Hardware]) -> Hardware:
    """One `Hardware` whose numbers are arrays, a row each: `gemm_time` broadcasts over them."""
    numbers: dict[str, Any] = {f: np.array([getattr(h, f) for h in each], float) for f in ROW_NUMBERS}
    return replace(each[0], **numbers)


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of prepared rows as arrays, with the device numbers of each row."""

    m: Array
    n: Array
    k: Array
    batch: Array
    time_s: Array
    device: NDArray[np.str_]
    library: NDArray[np.str_]
    dtype: NDArray[np.str_]
    source: NDArray[np.str_]
    release: NDArray[np.str_]
    klass: NDArray[np.str_]
    scope: NDArray[np.str_]
    hw: Hardware

    @staticmethod
    def of(rows: pd.DataFrame) -> Table:
        """Arrays of prepared rows with their device numbers beside them."""
        from simulator.device import catalogue as devices

        pairs = list(zip(rows["device"], rows["dtype"], strict=True))
        numbers = {p: hardware(devices.load(p[0]), p[1]) for p in set(pairs)}
        scopes = {d: devices.load(d).scope for d in set(rows["device"])}
        text = {c: rows[c].to_numpy(str) for c in ("device", "library", "dtype", "source", "release")}
        return Table(
            *(rows[c].to_numpy(float) for c in ("m", "n", "k", "batch", "time_s")),
            **text,
            klass=np.array([klass(d) for d in text["dtype"]], dtype=str),
            scope=np.array([scopes[d] for d in text["device"]], dtype=str),
            hw=_stack([numbers[p] for p in pairs]),
        )

    def __len__(self) -> int:
        return len(self.m)

    def where(self, mask: NDArray[np.bool_]) -> Table:
        """The masked rows."""
        columns = {f.name: getattr(self, f.name)[mask] for f in fields(self) if f.name != "hw"}
        numbers: dict[str, Any] = {f: getattr(self.hw, f)[mask] for f in ROW_NUMBERS}
        return Table(**columns, hw=replace(self.hw, **numbers))

    @property
    def x(self) -> Array:
        """log2 of (m, n, k), shape (rows, 3)."""
        return np.log2(np.stack([self.m, self.n, self.k], axis=1))

    def time(self, coef: Mapping[str, float], surface: Surface | None = None) -> Array:
        """Model time of each row [s]; rows of one dtype class share their operand sizes."""
        fmt = get_format(str(self.dtype[0]))
        found = gemm_time(
            self.m,
            self.n,
            self.k,
            weight_bytes_per_element=fmt.weight_bytes,
            act_bytes=fmt.act_bytes,
            out_bytes=fmt.out_bytes,
            hw=self.hw,
            coef=coef,
            surface=surface,
            batch=self.batch,
        )
        return np.asarray(found.total_s)
