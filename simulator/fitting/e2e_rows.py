"""Whole-model measurements to setups the model can run, and why the others are left out.

A row is kept only when nothing has to be guessed: model, device, tensor parallelism, number format, batch, prompt
and output. What the batch means is told apart: ``static`` (one batch from start to end) or ``closed`` (a number of
clients of which each sends its next request when the last one is answered).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from simulator.base.dtypes import AUTO
from simulator.base.errors import InputError
from simulator.device.catalogue import Device
from simulator.fitting import inferencex
from simulator.model import hub
from simulator.model.formats import choose
from simulator.model.spec import ModelSpec
from simulator.roofline.engine import of_release
from simulator.scenario.catalogue import CATALOGUE

if TYPE_CHECKING:
    import pandas as pd

NEEDED = ("source", "engine", "model", "device", "metric", "value", "batch", "input_len", "output_len")
SETUP = (
    *("engine", "release", "device", "model", "dtype", "kv_dtype", "tp", "pp", "ep", "dp"),
    *("batch", "prompt", "output", "loop", "shortest", "rounds", "wait_steps"),
)
"""Columns that say what ran; rows that share them are repeats. Lengths are means, drawn from ``shortest`` of the
longest up to it; a closed loop's mean is over ``rounds`` requests per client, of an engine that lets prompts wait
``wait_steps`` for others."""

STEP_SOURCES = ("splitwise-sim", "FasterTransformer-docs")
CLOSED_SOURCES = ("aiconfigurator-silicon_sample",)
LOADS = {
    # Read as `tgi` under closed clients it would answer twice as fast as measured.
    "IBM-LLM-Pilot": "TGIS of 2023 is not modelled",
    "MLPerf-inference-v4.1": "offered load without input lengths, batch and tensor parallelism",
    "MLPerf-inference-v5.1": "offered load without input lengths, batch and tensor parallelism",
    "LLMServingSim-bench": "offered load whose requests' lengths the row leaves out",
}

RELEASED = re.compile(r"(vllm|sglang|trtllm|tensorrt-llm) v?(\d[\w.]*)", re.IGNORECASE)
"""Engine string of a row that says its release."""
FAMILIES = {"tensorrt-llm": "trtllm"}
"""Families of engines by what else rows call them."""
# First match wins: engine string of the row without a release to a table of hw_profiles/engines.toml.
ENGINES = (
    (r"^vLLM \(modified, 2023\)", "vllm-2023"),
    (r"^vLLM( \(Nov 2024\))?$", "vllm-2024"),
    (r"^vllm\b", "vllm"),
    (r"^(sglang|SGLang)\b", "sglang"),
    (r"^TensorRT-LLM\b", "trtllm-2024"),
    (r"^trtllm\b", "trtllm"),
    (r"^FasterTransformer", "fastertransformer"),
    (r"^LMDeploy TurboMind", "turbomind"),
    (r"^llama\.cpp \(May 2024\)|^llama\.cpp$", "llama.cpp"),
)
MODELS = {
    "LLaMA 70B": "llama-2-70b",
    "LLAMA 3 (70B)": "llama-3-70b",
    "LLAMA 3 (8B)": "llama-3-8b",
    "nvidia/DeepSeek-R1-NVFP4": "deepseek-v3",
}
"""Spellings that are ambiguous by themselves but not in the source that uses them."""
ENCODERS = ("flan", "mt0")
DTYPES = {
    "fp16": "fp16",
    "F16": "fp16",
    "bf16": "bf16",
    "fp8": "fp8",
    "w8a16": "w8a16",
    "Q4_K_M": "q4_k_m",
    "gemm=fp8;moe=fp8": "fp8",
    "gemm=fp8_block;moe=fp8_block": "fp8_block",
    "gemm=fp8;moe=fp8_block": "fp8_block",
    "gemm=nvfp4;moe=nvfp4": "nvfp4",
}
NVFP4_BESIDE_MLA = "attention=bf16,ffn=nvfp4,experts=nvfp4,shared_expert=nvfp4"
"""NVIDIA's checkpoints of DeepSeek and Kimi leave the attention blocks in 16 bit."""
NVFP4_BESIDE_STATES = "experts=nvfp4"
"""Its checkpoints of Qwen3.5 leave all but the routed experts in 16 bit."""
SPREAD = re.compile(r"attention_dp=(\d+); moe_tp=(\d+); moe_ep=(\d+)")
"""What a silicon_sample row says of its ranks."""
SQUARED = re.compile(r"source_file=2026-04-06\.csv|db-dump/2026-04-27")
"""Dumps that hold runs of ``--tp N --ep N`` as moe_tp N, moe_ep N on N x N GPUs.

Neither has a run of N experts' groups on N GPUs, and 26 of their rows are, to the last digit, rows that the dump of
2026-03-25 gives N GPUs.
"""
NOT_EXACT = {
    "w4a16 g32": "quant int4 with groups of 32 is not a format of ours",
    "w4a16 g64": "quant int4 with groups of 64 is not a format of ours",
    "gemm=int4_wo;moe=int4_wo": "quant int4 experts beside 16-bit attention",
    "4-bit": "quant says only '4-bit'",
    "fp4": "quant says only 'fp4'",
}


def prepare(raw: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rows with a complete setup, repeats at their median, and counts of the others by reason.

    Returns
    -------
    rows : DataFrame
        `SETUP` columns, ``family`` (step, serving), ``source``, ``metric`` (ttft, tpot, e2e), ``time_s``
        (of the whole batch), ``repeats``.
    excluded : dict
    """
    import pandas as pd

    missing = [c for c in NEEDED if c not in raw]
    if missing:
        raise InputError(f"e2e rows lack the columns {missing}", where="--data")
    kept: list[dict[str, Any]] = []
    reasons: Counter[str] = Counter()
    models = {text: model_of(text) for text in raw["model"].dropna().unique()}
    devices = {text: device_of(text) for text in raw["device"].dropna().unique()}
    for row in raw.to_dict("records"):
        given = _as_run({str(k): (None if pd.isna(v) else v) for k, v in row.items()})
        setup, reason = _setup(given, models.get(given["model"]), devices.get(given["device"]))
        if setup is None:
            reasons[reason] += 1
        else:
            kept.append(setup)
    if not kept:
        raise InputError(f"no row has a complete setup: {counts(reasons)}", where="--data")
    rows = pd.DataFrame(kept)
    keys = ["family", "source", *SETUP, "metric"]
    grouped = rows.groupby(keys, sort=True)["time_s"]
    out = grouped.median().to_frame()
    out["repeats"] = grouped.size()
    return out.reset_index(), dict(reasons.most_common())


def counts(excluded: Mapping[str, int]) -> str:
    """Rows left out by reason, in words."""
    return ", ".join(f"{n:,} {reason}" for reason, n in excluded.items())


def _setup(row: dict[str, Any], model: ModelSpec | None, device: Device | None) -> tuple[dict[str, Any] | None, str]:
    """One row of a model and device as a setup, or the reason it is none."""
    source = row["source"]
    lacking = [k for k in ("source", "model", "device", "metric", "value") if row[k] is None]
    if lacking:
        return None, f"no {lacking[0]}"
    if row.get("flag"):
        return None, f"flag {row['flag']}"
    if source in LOADS:
        return None, LOADS[source]
    note = row.get("note") or ""
    if "pcap" in note or "power-limited" in note:
        return None, "power limited below the device's own limit"
    engine, release = engine_of(row.get("engine") or "")
    if engine is None:
        return None, "engine is not modelled"
    if row["metric"] == "request_latency_ms":
        return (None, "latency of requests that may stop early; TTFT and TPOT of the same run are judged")
    for key, name in (("batch", "batch"), ("input_len", "input length"), ("output_len", "output length")):
        if row.get(key) is None:
            return None, f"no {name}"
    tp, pp = row.get("tp"), 1
    if engine == "llama.cpp" and "layer split" in note and row.get("n_gpus"):
        tp, pp = 1.0, int(row["n_gpus"])
    if tp is None and row.get("n_gpus") == 1:
        tp = 1.0
    if tp is None:
        return None, "tensor parallelism not stated"
    if engine == "llama.cpp" and tp > 1:
        return None, "llama.cpp over several GPUs, by layers or by rows is not stated"
    if model is None:
        encoder = any(e in row["model"].casefold() for e in ENCODERS)
        return None, "encoder-decoder" if encoder else "model has no bundled config"
    if device is None:
        return None, "device has no profile"
    dtype, reason = dtype_of(row.get("quant"), source, model, device)
    if dtype is None:
        return None, reason
    cut, reason = _cut(note, int(tp), pp, row.get("n_gpus"))
    if cut is None:
        return None, reason
    tp, ep, dp = cut
    # Rows of attention data parallel count the sequences of one rank.
    row = {**row, "tp": tp, "batch": float(row["batch"]) * dp}
    timed = _time(row)
    if timed is None:
        return None, f"metric {row['metric']} without what it needs"
    metric, seconds, prompt, output = timed
    closed = source in CLOSED_SOURCES
    recipe = closed and inferencex.NOTES.search(note) is not None
    shortest = inferencex.SHORTEST if recipe else 1.0
    mean = (1.0 + shortest) / 2.0
    fp8 = ("KV" in note and "fp8" in note.casefold()) or (
        recipe and inferencex.keeps_fp8(engine, model.name, device, dtype)
    )
    ran = (engine, model.name, device, dtype, tp, float(row["batch"]), (prompt, output))
    waits = inferencex.wait_steps(*ran) if recipe else 0.0
    # A refused request shows only in the whole latency; first-token and per-token times were really taken.
    if metric == "e2e" and prompt + output > model.max_context:
        return None, "longer than the model's context, so cut or refused"
    return {
        "family": "step" if source in STEP_SOURCES else "serving",
        "source": source,
        "engine": engine,
        "release": release,
        "device": device.name,
        "model": model.name,
        "dtype": dtype,
        "kv_dtype": "fp8" if fp8 else "auto",
        "tp": tp,
        "pp": pp,
        "ep": ep,
        "dp": dp,
        "batch": float(row["batch"]),
        "prompt": prompt * mean,
        "output": output * mean,
        "loop": "closed" if closed else "static",
        "shortest": shortest,
        "rounds": inferencex.ROUNDS if closed else 1.0,  # assumed of the others
        "wait_steps": waits,
        "metric": metric,
        "time_s": seconds,
    }, ""


def engine_of(text: str) -> tuple[str | None, str]:
    """Table of the engine, and the release that the row says; "" where it says none."""
    if found := RELEASED.match(text):
        family, release = found[1].casefold(), found[2]
        try:
            engine, at = of_release(FAMILIES.get(family, family), release)
        except InputError:
            return None, ""
        return engine.name, at
    return next((name for pattern, name in ENGINES if re.match(pattern, text)), None), ""


def model_of(text: str) -> ModelSpec | None:
    """Bundled model, never the network: a row must mean the same on every machine."""
    try:
        return CATALOGUE.model(hub.resolve(MODELS.get(text, text)))
    except InputError:
        return None


def device_of(text: str) -> Device | None:
    """Profile of a row's device."""
    try:
        return CATALOGUE.device(text)
    except InputError:
        return None


def dtype_of(quant: str | None, source: str, model: ModelSpec, device: Device) -> tuple[str | None, str]:
    """Our format, where the source's words name exactly one."""
    if quant is None:
        if model.quantised:
            return AUTO, ""
        return ("bf16", "") if source in CLOSED_SOURCES else (None, "quant not stated")
    if model.name.startswith("gpt-oss"):
        # Whatever the row calls it, the checkpoint is the only one that is run.
        return AUTO, ""
    in_blocks = any(fmt.name == "fp8_block" for layer, _ in model.layer_groups() for _, fmt in layer.formats.listed)
    if in_blocks and quant.startswith("gemm=fp8"):
        # The published checkpoint has scales per 128x128 tile, whatever the row calls it.
        return "fp8_block", ""
    if "nvfp4" in quant and model.n_state_layers:
        return NVFP4_BESIDE_STATES, ""
    if "nvfp4" in quant and any(attention.mla is not None for attention, _ in model.attentions):
        return NVFP4_BESIDE_MLA, ""
    if quant == "gemm=int4_wo;moe=int4_wo" and model.quantised:
        return AUTO, ""
    if quant in NOT_EXACT:
        return None, NOT_EXACT[quant]
    if quant not in DTYPES:
        return None, f"quant {quant} has no exact format"
    dtype = DTYPES[quant]
    if not all(device.has(fmt.math) for fmt in choose(dtype).formats):
        return None, f"quant {quant} runs on {device.name} only by emulation"
    return dtype, ""


def _as_run(row: dict[str, Any]) -> dict[str, Any]:
    """`row` with the GPUs it ran on, where its dump says their square: see `SQUARED`."""
    note = row.get("note") or ""
    found = SPREAD.search(note)
    if not found or not SQUARED.search(note):
        return row
    dp, moe_tp, ranks = (int(x) for x in found.groups())
    if moe_tp != ranks or ranks == 1:
        return row
    spread = dp > 1
    ran = SPREAD.sub(f"attention_dp={ranks if spread else 1}; moe_tp=1; moe_ep={ranks}", note)
    # The dump's batch is that of one of as many ranks as it says.
    batch = row["batch"] * dp / ranks if spread else row["batch"]
    return {**row, "note": ran, "tp": 1.0 if spread else float(ranks), "n_gpus": float(ranks), "batch": batch}


def _cut(note: str, tp: int, pp: int, gpus: float | None) -> tuple[tuple[int, int, int] | None, str]:
    """GPUs of a stage, groups of its experts, and of its attention (1: tensor parallel); or why that is not known."""
    found = SPREAD.search(note)
    if not found:
        whole = gpus is None or gpus <= tp * pp
        return ((tp, 1, 1), "") if whole else (None, "pipeline or data parallel")
    dp, moe_tp, moe_ep = (int(x) for x in found.groups())
    ranks = tp * dp
    if gpus is not None and gpus > ranks * pp:
        return None, "replicas"
    if moe_ep * dp > 1 and moe_tp * moe_ep != ranks:
        return None, "expert split does not match the tensor split"
    return (ranks, max(moe_ep, 1), dp), ""


def _time(row: dict[str, Any]) -> tuple[str, float, float, float] | None:
    """(metric, seconds of the whole batch, prompt, output) of a row."""
    value, metric = float(row["value"]), row["metric"]
    b, p, o = float(row["batch"]), float(row["input_len"]), float(row["output_len"])
    if value <= 0 or b < 1:
        return None
    if metric in ("ttft_ms", "prefill_latency_s"):
        return ("ttft", value * (1e-3 if metric == "ttft_ms" else 1.0), p, max(o, 1.0)) if p else None
    if metric in ("tpot_ms", "tpot_p50_ms"):
        return "tpot", value * 1e-3, p, o
    if metric == "batch_latency_s":
        return "e2e", value, p, o
    if metric == "tput_out_tok_s":
        return "e2e", b * o / value, p, o
    if metric == "tput_out_tok_s_per_gpu":
        return "e2e", b * o / (value * row["tp"]), p, o
    if metric == "decode_tok_s":
        return ("tpot", b / value, max(p, 1.0), o) if o > 1 else None
    if metric == "prefill_tok_s":
        return ("ttft", b * p / value, p, 1.0) if p else None
    return None
