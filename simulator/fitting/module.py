"""Fit attention modules as engines run them: one fit per device, module, phase, KV format and engine.

A row is one layer's attention with its projections on one GPU, or one kernel of it (``part:``). All formats of the
projections share a fit: what they change is counted (bytes, rate) or one launch time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.device.fits import Fit
from simulator.device.surface import Surface
from simulator.device.types import Device
from simulator.fitting import demand, judge
from simulator.fitting.smooth import Axis, fit_family
from simulator.ops.alone import module
from simulator.ops.module import AttentionModule, ModuleDemand
from simulator.roofline.lookup import module_key
from simulator.roofline.module import ModuleRates, module_rates, module_time, start

if TYPE_CHECKING:
    import pandas as pd

FAMILY = "module"
SHAPE = ("batch", "q_len", "past_len", "n_heads")
INPUTS = ("phase", "dtype", "kv_dtype", *SHAPE)
"""A shape is held out of every module at once, so that what is compared stays on one side."""
NEEDED = ("framework", "module", "phase", "model", "mla_dtype", "kv_dtype", "gemm_dtype", "kernel", *SHAPE)

FORMAT_NAMES: Mapping[str, str] = {"bfloat16": "bf16", "fp8_e4m3": "fp8"}
"""Names of the data for our formats."""

MODELS: tuple[tuple[str, str], ...] = (
    (r"MiniMax-M3", "m3"),
    (r"DeepSeek-V4-Flash", "v4-flash"),
    (r"DeepSeek-V4-Pro", "v4-pro"),
    (r"GLM-5", "glm-5"),
    (r"DeepSeek-V3\.2", "v3.2"),
    (r"DeepSeek-(V3|R1)", "v3"),
)
"""Model of a row -> key of `WIDTHS`, first match wins."""

CHOSEN_BY_LENGTH: tuple[tuple[str, str], ...] = (
    (r"(sglang-[^:]+):sglang_dsa_.*", r"\1:dsa"),
    (r"(sglang-[^:]+):sglang_minimax_decode_.*", r"\1:minimax_decode"),
    (r"(vllm-[^:]+):(FLASH_ATTN|FLASH_ATTN_MLA|FLASHMLA|FLASHINFER_MLA|TRTLLM_RAGGED|TRITON_MLA)", r"\1:mla_prefill"),
)
"""Kernels an engine picks by length and format itself: together they are the module's one library."""
TWICE = 1.05
"""Ratio of two times of one shape from which they are two kinds of layer, not a repeat [-]."""


def widths_of(model: str, module: str) -> str | None:
    """Key of `WIDTHS` of a row; None for a model we do not know."""
    name = next((key for pattern, key in MODELS if re.search(pattern, model)), None)
    if name is not None and name.startswith("v4"):
        return f"{name} {'hca' if 'hca' in module else 'csa'}"
    return name


def library_of(kernel: str, module: str, phase: str) -> str:
    """Engine, release and kernel: the string of the data but for kernels chosen by length."""
    for pattern, name in CHOSEN_BY_LENGTH:
        hit = re.fullmatch(pattern, kernel)
        if hit and ("mla_prefill" not in name or (module == "mla-dense" and phase == "prefill")):
            return hit.expand(name)
    return kernel


def prepare(rows: pd.DataFrame) -> pd.DataFrame:
    """Usable rows with their engine as the source, repeats aggregated; adds `key`, `library`, demand and rates.

    A model whose layers share a choice (GLM-5.2) is measured twice by vLLM, which names neither: of two times of one
    shape that differ by more than `TWICE` the shorter is the layer that takes the choice of another.
    """
    from simulator.device import catalogue as devices

    rows = judge.usable(rows, FAMILY, NEEDED).copy()
    for column in ("framework", "module", "phase", "model", "mla_dtype", "kv_dtype", "gemm_dtype", "kernel"):
        rows[column] = rows[column].astype(str)
    known = {name: devices.resolve(name) for name in rows["device"].astype(str).unique()}
    pairs = rows[["model", "module"]].drop_duplicates().itertuples(index=False)
    of = {(m, k): widths_of(m, k) for m, k in pairs}
    named = np.array([of[m, k] for m, k in zip(rows["model"], rows["module"], strict=True)], dtype=object)
    formats = {c: rows[c].replace(dict(FORMAT_NAMES)) for c in ("gemm_dtype", "kv_dtype", "mla_dtype")}
    triples = rows[["kernel", "module", "phase"]].drop_duplicates().itertuples(index=False)
    libraries = {(k, m, p): library_of(k, m, p) for k, m, p in triples}
    rows = rows.assign(
        device=rows["device"].astype(str).map(known),
        source=rows["source"].astype(str) + "/" + rows["framework"],
        kind=rows["module"].str.removeprefix("part:"),
        widths=named,
        dtype=formats["gemm_dtype"],
        kv_dtype=formats["kv_dtype"],
        math=formats["mla_dtype"],
        library=[libraries[t] for t in zip(rows["kernel"], rows["module"], rows["phase"], strict=True)],
        indexes=~rows["kernel"].str.contains("skip_indexer"),
    )
    rows = rows[rows["widths"].notna()]
    keys = ["device", "source", "library", "kind", "widths", "math", *INPUTS]
    rows["indexes"] &= ~_reuses(rows, keys)
    out = judge.aggregate(rows, [*keys, "indexes"])
    return with_demand(out)


def _reuses(rows: pd.DataFrame, keys: list[str]) -> Any:
    """Rows that are the shorter of two times of one shape, where the model's layers share a choice."""
    shared = rows["model"].str.contains(r"GLM-5\.2") & (rows["kind"] == "dsa") & rows["indexes"]
    times = rows[shared].groupby(keys, dropna=False)["time_s"]
    low, high = times.transform("min"), times.transform("max")
    shorter = (rows.loc[shared, "time_s"] < np.sqrt(low * high)) & (high > TWICE * low)
    return shorter.reindex(rows.index, fill_value=False)


def op_of(rows: pd.DataFrame) -> AttentionModule:
    """The op of prepared rows that agree in all that is not a size."""
    first = rows.iloc[0]
    batch, q_len, past_len, heads = (rows[c].to_numpy(float) for c in SHAPE)
    return module(
        kind=first["kind"],
        phase=first["phase"],
        batch=batch,
        q_len=q_len,
        past_len=past_len,
        n_heads=heads,
        widths=first["widths"],
        dtype=first["dtype"],
        math="fp8" if first["math"] == "fp8" else "bf16",
        kv_dtype="fp8" if first["kv_dtype"] == "fp8" else "bf16",
        indexes=bool(first["indexes"]),
    )


FIXED = ("kind", "phase", "widths", "dtype", "kv_dtype", "math", "indexes")
"""Columns of one op."""
COLUMNS = (*ModuleDemand._fields, *ModuleRates._fields)


def with_demand(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` with `key` and what each asks of its device beside it, `COLUMNS`."""

    def asked(part: pd.DataFrame, device: Device) -> tuple[str, tuple[Any, ...]]:
        op = op_of(part)
        return module_key(op), (*op.demand(), *module_rates(device, op.fmt, op.math))

    # The op's own names of sizes stand beside the data's.
    return demand.beside(rows, FIXED, COLUMNS, asked).assign(module=rows["kind"])


Counted = tuple[ModuleDemand, ModuleRates]


def counted(rows: pd.DataFrame) -> Counted:
    """Demand and rates of prepared rows as arrays."""
    values = demand.columns(rows, COLUMNS)
    return ModuleDemand(*values[: len(ModuleDemand._fields)]), ModuleRates(*values[len(ModuleDemand._fields) :])


def _total_s(asked: Counted, coef: Mapping[str, float], surface: Surface | None) -> Any:
    return module_time(*asked, coef, surface).total_s


AXES = (Axis("tokens", 2.0, 0.3), Axis("context", 2.0, 0.3), Axis("heads", 3.0, 0.3))


def fit(rows: pd.DataFrame, *, date: str | None = None, residuals: bool = True) -> list[Fit]:
    """Fits of every device, key and library of prepared `rows`, then the pooled ones."""
    out: list[Fit] = []
    for (kind, phase, library), part in rows.groupby(["kind", "phase", "library"]):
        first = start(str(kind), str(phase), str(library))
        recipe = demand.recipe(FAMILY, INPUTS, counted, _total_s, first, AXES, smallest=20, ridge=0.05, passes=12)
        out += fit_family(recipe, part, date=date, residuals=residuals)
    return out


without = demand.without(fit)
PAIRED = ("device", "source", "phase", "dtype", "kv_dtype", *SHAPE)
CLOSE = 0.05
"""Log speed-up below which neither side wins [-]."""


def speedups(judged: pd.DataFrame) -> list[dict[str, Any]]:
    """DSA against dense MLA of the same engine at equal shapes: whether predicted and measured speed-up agree.

    Parameters
    ----------
    judged : DataFrame
        Prepared rows with ``mid_s`` beside them.

    Returns
    -------
    list of dict
        By device, engine and phase, and ``all``: pairs ``n``, share whose ``sign`` is right, the same of the
        ``n_clear`` pairs beyond `CLOSE` (``clear``), and the median and p90 APE of the speed-up.
    """
    dense = judged[(judged["kind"] == "mla-dense") & (judged["math"] != "fp8")]
    sparse = judged[(judged["kind"] == "dsa") & judged["indexes"] & (judged["widths"] == "v3.2")]
    pairs = sparse.merge(dense, on=list(PAIRED), suffixes=("", "_dense"))
    if pairs.empty:
        return []
    measured = np.log((pairs["time_s_dense"] / pairs["time_s"]).to_numpy(float))
    predicted = np.log((pairs["mid_s_dense"] / pairs["mid_s"]).to_numpy(float))
    pairs = pairs.assign(
        right=(measured > 0.0) == (predicted > 0.0),
        clear=np.abs(measured) > CLOSE,
        ape=np.abs(np.expm1(predicted - measured)),
        engine=pairs["source"].str.rpartition("/")[2],
    )
    groups = [({"device": "all", "engine": "all", "phase": "all"}, pairs)]
    for key, part in pairs.groupby(["device", "engine", "phase"]):
        groups.append((dict(zip(("device", "engine", "phase"), map(str, key), strict=True)), part))
    return [
        {
            **names,
            "n": len(part),
            "sign": float(part["right"].mean()),
            "n_clear": int(part["clear"].sum()),
            "clear": float(part.loc[part["clear"], "right"].mean()) if part["clear"].any() else None,
            "median_ape": float(part["ape"].median()),
            "p90_ape": float(part["ape"].quantile(0.9)),
        }
        for names, part in groups
        if len(part)
    ]
