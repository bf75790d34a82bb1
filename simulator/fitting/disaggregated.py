"""Prefill and decode in pools of their own, measured: what a closed loop of clients sees of both.

``python -m simulator.validate --kind disaggregated`` calls `validate` and `show`. Nothing is fitted: the engines are
the committed ones, which were fitted to replicas that do both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.base import console
from simulator.base.errors import InputError, ShadowlineError
from simulator.device.catalogue import Device
from simulator.fitting import inferencex
from simulator.fitting.e2e import figures
from simulator.fitting.e2e_rows import CLOSED_SOURCES, counts, device_of, dtype_of, engine_of, model_of
from simulator.fitting.e2e_steps import bare_s, group_of
from simulator.inference import memory
from simulator.inference.group import Group
from simulator.inference.step import StepTime, step_time
from simulator.model.spec import ModelSpec
from simulator.ops.step import decode_step, prefill_step
from simulator.roofline.engine import Engine, load_engines

if TYPE_CHECKING:
    import pandas as pd

POOLS = ("prefill", "decode")
SIZES = ("num_workers", "batch_size", "tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
NEEDED = (
    *("silicon_data_source", "backend", "backend_version", "model_path", "system", "isl", "osl"),
    *("gemm_quant_mode", "moe_quant_mode", "silicon_ttft_ms", "silicon_tpot_ms"),
    *(f"{pool}_{size}" for pool in POOLS for size in SIZES),
)
TARGETS = {"tpot": 0.15, "ttft": 0.35}
"""Median APE of the capacity contract [-]."""
CLIENTS = re.compile(r"silicon_concurrency=(\d+)")
RUNTIME = re.compile(r"ai-dynamo/\w+-runtime:")
"""A row of such an image states the image's version in place of its engine's."""
BISECTIONS = 60


@dataclass(frozen=True)
class Pools:
    """Two pools under a closed loop.

    Attributes
    ----------
    prefill, decode : Group
        One worker of each.
    prefill_workers, decode_workers : int
        [-].
    clients : float
        Each asks again when answered [-].
    prompt, output : float
        Means [tokens].
    rounds : float
        Requests per client the means are over [-].
    """

    prefill: Group
    decode: Group
    prefill_workers: int
    decode_workers: int
    clients: float
    prompt: float
    output: float
    rounds: float


def closed_loop(pools: Pools, transfer_s: float) -> dict[str, tuple[float, float, float]]:
    """Mean TTFT and TPOT at the middle and both ends of the interval [s].

    With n requests at each of D decode workers, ``X(n) = n D / (o t(n))`` requests leave per second and as many are
    prefilled, at most ``C = P a / T(a)``: P workers of a groups that attend by themselves, each one prompt at a time.
    n is the one at which all clients are somewhere, ``n D + X(n) (T(1) + transfer) = clients``, or that of C, and the
    others wait before the prefill pool. A pool that can keep up spaces the requests, so that they only wait in the
    first of the rounds, when all come at once.
    """
    ends = [_loop(pools, transfer_s, end) for end in ("total_s", "lo_s", "hi_s")]
    # Slower steps of the one pool are less load of the other, so an end of a mean need not be one of the steps.
    return {name: (v[0], min(v), max(v)) for name, v in zip(("ttft", "tpot"), zip(*ends, strict=True), strict=True)}


def _loop(pools: Pools, transfer_s: float, end: str) -> tuple[float, float]:
    prompt, output, groups = pools.prompt, pools.output, float(pools.prefill.dp_attention)

    def prompts_s(rows: float) -> float:
        return _at(step_time(pools.prefill, prefill_step(rows, prompt)), end)

    def decode_s(n: float) -> float:
        return _at(step_time(pools.decode, decode_step(n, prompt + output / 2.0)), end)

    engine = pools.prefill.engine
    alone = prompts_s(1.0) + transfer_s + engine.request_s + engine.frontend_s * prompt
    most = pools.prefill_workers * groups / prompts_s(groups)
    steps = max(output - 1.0, 1.0)

    def asked(n: float) -> float:
        return n * pools.decode_workers / (steps * decode_s(n))

    low, high = 0.0, pools.clients / pools.decode_workers
    for _ in range(BISECTIONS):
        n = (low + high) / 2.0
        rate = asked(n)
        if rate > most or n * pools.decode_workers + rate * alone > pools.clients:
            high = n
        else:
            low = n
    n = max((low + high) / 2.0, 1e-9)
    rate, tpot = asked(n), decode_s(max(n, 1.0 / pools.decode_workers))
    later = max(alone, pools.clients / rate - steps * tpot)
    first = alone + max(pools.clients - pools.prefill_workers * groups, 0.0) / (2.0 * most)
    return max(later, later + (first - later) / pools.rounds), tpot


def _at(time: StepTime, end: str) -> float:
    return float(np.max(getattr(time, end)))


def validate(raw: pd.DataFrame, holdout: str | None) -> dict[str, Any]:
    """Figures per metric and engine, every row judged, and the others counted by reason."""
    import pandas as pd

    if holdout is not None:
        raise InputError("nothing is fitted to these rows, so none can be held out; drop it", where="--holdout")
    missing = [c for c in NEEDED if c not in raw]
    if missing:
        raise InputError(f"rows of pools lack the columns {missing}", where="--data")
    engines, excluded = load_engines(), Counter[str]()
    judged: list[dict[str, Any]] = []
    for row in raw.to_dict("records"):
        given = {str(k): None if pd.isna(v) else v for k, v in row.items()}
        try:
            judged += _judge(given, engines)
        except ShadowlineError as error:
            excluded[error.message] += 1
    if not judged:
        raise InputError(f"no row can be judged: {counts(excluded)}", where="--data")
    rows = pd.DataFrame(judged)
    out = [
        {"engine": "all", "metric": m, **figures(g), "target_median_ape": TARGETS[m]} for m, g in _by(rows, "metric")
    ]
    for engine, part in _by(rows, "engine"):
        out += [{"engine": engine, "metric": m, **figures(g)} for m, g in _by(part, "metric")]
    return {"rows": out, "points": judged, "excluded": dict(excluded.most_common())}


def _by(rows: pd.DataFrame, column: str) -> list[tuple[str, pd.DataFrame]]:
    return [(str(name), part) for name, part in rows.groupby(column)]


def _judge(row: Mapping[str, Any], engines: Mapping[str, Engine]) -> list[dict[str, Any]]:
    """Both metrics of one row; an error that says why it is not judged."""
    if any(row[f"{pool}_{size}"] is None for pool in POOLS for size in SIZES):
        raise InputError("workers and batch of the pools not stated")
    stated = str(row["silicon_data_source"])
    clients = CLIENTS.search(stated)
    if clients is None:
        raise InputError("concurrency not stated")
    release = "" if RUNTIME.search(stated) else f" {row['backend_version']}"
    name, at = engine_of(f"{row['backend']}{release}")
    model, device = model_of(row["model_path"]), device_of(row["system"])
    if name is None or model is None or device is None:
        lacks = "engine" if name is None else "model" if model is None else "device"
        raise InputError(f"{lacks} is not modelled")
    quant = f"gemm={row['gemm_quant_mode']};moe={row['moe_quant_mode']}"
    dtype, reason = dtype_of(quant, CLOSED_SOURCES[0], model, device)
    if dtype is None:
        raise InputError(reason)
    engine = engines[name].as_of(at) if at else engines[name]
    fp8 = inferencex.keeps_fp8(name, model.name, device, dtype)
    first, second = (_worker(row, pool, model, device, engine, dtype, "fp8" if fp8 else "auto") for pool in POOLS)
    mean = (1.0 + inferencex.SHORTEST) / 2.0
    workers = [int(row[f"{pool}_num_workers"]) for pool in POOLS]
    pools = Pools(
        first,
        second,
        workers[0],
        workers[1],
        float(clients[1]),
        float(row["isl"]) * mean,
        float(row["osl"]) * mean,
        inferencex.ROUNDS,
    )
    gpus = first.gpus * workers[0] + second.gpus * workers[1]
    link = device.link_for(gpus)
    size = memory.kv_bytes_per_sequence(
        first.lowering, pools.prompt, prompt=pools.prompt, block_tokens=first.block_tokens
    )
    loop = closed_loop(pools, link.latency.value + float(np.max(size)) / link.bandwidth_bytes_per_s)
    each = float(row["decode_batch_size"]) * second.dp_attention
    naive = {
        "ttft": float(np.max(bare_s(first, prefill_step(1.0, pools.prompt)))),
        "tpot": float(np.max(bare_s(second, decode_step(each, pools.prompt + pools.output / 2.0)))),
    }
    setup = {"engine": name, "device": device.name, "model": model.name, "dtype": dtype, "clients": pools.clients}
    return [
        {
            **setup,
            "metric": metric,
            "time_s": float(row[f"silicon_{metric}_ms"]) * 1e-3,
            **dict(zip(("mid_s", "lo_s", "hi_s"), loop[metric], strict=True)),
            "naive_s": naive[metric],
        }
        for metric in ("ttft", "tpot")
        if row[f"silicon_{metric}_ms"] is not None
    ]


def _worker(
    row: Mapping[str, Any], pool: str, model: ModelSpec, device: Device, engine: Engine, dtype: str, kv: str
) -> Group:
    """One worker of a pool: its TP is of each group that attends by itself, its GPUs those of all groups."""
    tp, pp, dp, moe_tp, ep = (int(row[f"{pool}_{size}"]) for size in SIZES[2:])
    gpus = tp * dp
    experts = model.is_moe
    if pp > 1:
        raise InputError("a pool is split in pipeline stages")
    if experts and moe_tp * ep != gpus:
        raise InputError("expert split does not match the tensor split")
    told = {"device": device.name, "model": model.name, "dtype": dtype, "kv_dtype": kv, "loop": "static"}
    cut = {"tp": gpus, "pp": 1, "ep": ep if experts else 1, "dp": dp}
    # Recipes of pools route tokens: SGLang's --moe-a2a-backend deepep, TensorRT-LLM's wide EP.
    routed = "deepep" if dp > 1 and experts and ep == gpus else "none"
    group = replace(group_of(told | {size: str(n) for size, n in cut.items()}, engine), a2a=routed)
    if group.problem is not None:
        raise InputError(f"{pool}: {group.problem[1].partition(';')[0]}")
    return group


def show(result: Mapping[str, Any]) -> None:
    """Figures against their targets, and what was left out."""

    def share(row: Mapping[str, Any], key: str, form: str = ".1%") -> str:
        return f"{row[key]:{form}}" if key in row else "-"

    console.table(
        "prefill and decode in pools of their own: closed loops of the stated clients against measured",
        ["engine", "metric", "rows", "median APE", "target", "p90 APE", "bias", "coverage", "roofline"],
        [
            [
                *(r["engine"], r["metric"], f"{r['n']}"),
                *(share(r, k) for k in ("median_ape", "target_median_ape", "p90_ape")),
                share(r, "bias", "+.1%"),
                *(share(r, k) for k in ("coverage_90", "roofline_median_ape")),
            ]
            for r in result["rows"]
        ],
        left=2,
        note=f"left out: {counts(result['excluded'])}",
    )
