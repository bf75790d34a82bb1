"""Measured attention rows: kernel strings to libraries, repeats to medians, columns to arrays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simulator.base.dtypes import KV_FORMATS, get_format
from simulator.device.surface import Surface
from simulator.fitting import judge
from simulator.fitting.releases import release_of
from simulator.roofline.attention import attention_time, context_tokens
from simulator.roofline.hardware import Hardware, hardware
from simulator.roofline.lookup import attention_key

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]

SHAPE = ("batch", "q_len", "kv_len", "n_heads", "n_kv_heads", "head_dim", "window")
INPUTS: tuple[str, ...] = ("phase", "dtype", "kv_dtype", *SHAPE)
"""A shape is held out on every device at once."""
KEYS = ("source", "device", "library", "release", *INPUTS)
NOT_NUMBERS = ("arch", "cached")
"""Fields of `Hardware` that are the same for all rows."""
ELEMENT_BYTES = {"fp8": 1.0, "fp32": 4.0}
"""Bytes of formats that are not 16 bit [B]."""

LIBRARIES: tuple[tuple[str, str], ...] = (
    (r"^(vllm|sglang|trtllm)\b.*(?:trtllm_mha|trtllm(?:api)?decode|trtllmprefill)", r"\1-trtllm-gen"),
    (r"^(vllm|sglang)\b.*(fa[234])\b", r"\1-\2"),
    (r"^(trtllm)\b.*torch_flow_flashinfer", r"\1-flashinfer"),
    (r"^(trtllm)\b", r"\1"),
    (r"^(vllm|sglang)\b.*(?:flashinfer|fidecode|fiprefill)", r"\1-flashinfer"),
    (r"^(vllm|sglang)\b.*triton", r"\1-triton"),
    (r"^(vllm|sglang)\b.*flash_att", r"\1-fa2"),
    (r"^vLLM.*layerwise", "vllm"),
    (r"FlashAttention-3|FlashMLA|flash_?attn_?3|^fa3", "fa3"),
    (r"trtllm", "trtllm-gen"),
    (r"FlashAttention-4|^fa4", "fa4"),
    (r"[Ff]lash[ _-]?[Ii]nfer", "flashinfer"),
    (r"triton", "triton"),
    (r"[Ff]lash[ _-]?[Aa]tt|^fa2", "fa2"),
    (r"sdpa|scaled_dot", "sdpa"),
)
"""Kernel string to library (`framework-generation`), first match wins; the rest is `other`."""


def kernel_of(kernel: str) -> str:
    """Library behind a kernel string, e.g. ``vllm-fa3``; `other` when no pattern fits."""
    for pattern, name in LIBRARIES:
        hit = re.search(pattern, kernel)
        if hit:
            return hit.expand(name)
    return "other"


def prepare(rows: pd.DataFrame) -> pd.DataFrame:
    """Unflagged rows with profile name, library and fit key, repeats to their median."""
    from simulator.device import catalogue as devices

    rows = judge.usable(rows, "attention", INPUTS).copy()
    known = {name: devices.resolve(name) for name in rows["device"].astype(str).unique()}
    rows["device"] = rows["device"].astype(str).map(known)
    for column in ("source", "dtype", "kv_dtype", "phase"):
        rows[column] = rows[column].astype(str)
    rows["window"] = rows["window"].fillna(0)
    kernel = rows["kernel"].fillna("").astype(str) if "kernel" in rows else [""] * len(rows)
    rows["library"] = [kernel_of(s) for s in kernel]
    rows["release"] = [release_of(s) for s in kernel]
    out = judge.aggregate(rows, KEYS)
    triples = zip(out["phase"], out["dtype"], out["kv_dtype"], strict=True)
    out["key"] = [attention_key(phase, get_format(d).math, KV_FORMATS[kv]) for phase, d, kv in triples]
    return out


def _hardware(rows: pd.DataFrame) -> Hardware:
    """Device numbers of each row as arrays, in the shape of a `Hardware`."""
    from simulator.device import catalogue as devices

    pairs = list(zip(rows["device"], rows["dtype"], strict=True))
    numbers = {p: hardware(devices.load(p[0]), p[1]) for p in set(pairs)}
    first = numbers[pairs[0]]
    fields: dict[str, Any] = {
        f: np.array([getattr(numbers[p], f) for p in pairs], float)
        for f in Hardware.__dataclass_fields__
        if f not in NOT_NUMBERS
    }
    return Hardware(**fields, **{f: getattr(first, f) for f in NOT_NUMBERS})


class Table:
    """Rows of one phase as arrays."""

    def __init__(self, rows: pd.DataFrame):
        self.phase = str(rows["phase"].iloc[0])
        self.hw = _hardware(rows)
        self.shape = {c: rows[c].to_numpy(float) for c in SHAPE}
        self.kv = rows["kv_dtype"].map(ELEMENT_BYTES).fillna(2.0).to_numpy(float)
        self.act = rows["dtype"].map(ELEMENT_BYTES).fillna(2.0).to_numpy(float)
        self.log_time = np.log(rows["time_s"].to_numpy(float))
        self.groups = judge.shape_group(rows, INPUTS)

    def where(self, mask: NDArray[np.bool_]) -> Table:
        """The rows of `mask`."""
        out = object.__new__(Table)
        out.phase = self.phase
        fields = {f: getattr(self.hw, f)[mask] for f in Hardware.__dataclass_fields__ if f not in NOT_NUMBERS}
        out.hw = Hardware(**fields, **{f: getattr(self.hw, f) for f in NOT_NUMBERS})
        out.shape = {c: v[mask] for c, v in self.shape.items()}
        out.kv, out.act, out.log_time = self.kv[mask], self.act[mask], self.log_time[mask]
        out.groups = self.groups[mask]
        return out

    def __len__(self) -> int:
        return len(self.log_time)

    def log_model(self, coef: Mapping[str, float], surface: Surface | None = None) -> Array:
        """Ln of the modelled time of each row."""
        t = attention_time(
            phase=self.phase,
            **self.shape,
            kv_bytes_per_element=self.kv,
            act_bytes=self.act,
            hw=self.hw,
            coef=coef,
            surface=surface,
            reuse=1.0,
        )
        return np.log(t.total_s)

    def x(self) -> Array:
        """log2 surface coordinates, shape (rows, axes)."""
        s = self.shape
        tokens = context_tokens(s["q_len"], s["kv_len"], s["window"])
        if self.phase == "prefill":
            tokens = np.sqrt(tokens * s["q_len"])
        columns = (s["batch"] * s["n_kv_heads"], tokens, s["n_heads"] / s["n_kv_heads"], s["head_dim"])
        return np.log2(np.stack(columns, axis=1))
