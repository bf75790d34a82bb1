"""What a claim measures: names with their unit as suffix, and how they follow from a prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.base.errors import InputError, UnknownNameError

E2E: Mapping[str, str] = {
    "ttft_s": "one prefill of the whole batch",
    "tpot_s": "mean decode step",
    "e2e_s": "TTFT + (output - 1) TPOT",
    "decode_s": "(output - 1) TPOT",
    "tokens_per_s": "output tokens of the batch over the end-to-end time",
    "tokens_per_s_per_gpu": "the same per GPU",
    "total_tokens_per_s": "prompt and output tokens over the end-to-end time",
    "decode_tokens_per_s": "batch over TPOT",
    "decode_phase_tokens_per_s": "batch (output - 1) over the decode time",
    "prefill_tokens_per_s": "prompt tokens of the batch over TTFT",
    "memory_bytes": "memory of all GPUs",
}
KERNEL: Mapping[str, str] = {
    "time_s": "time of the ops",
    "dense_flop_per_s": "flop of the dense product over the time of the ops",
    "kv_read_bytes": "useful bytes of the KV cache that the ops read",
}
RATES = (
    "tokens_per_s",
    "tokens_per_s_per_gpu",
    "total_tokens_per_s",
    "decode_tokens_per_s",
    "decode_phase_tokens_per_s",
    "prefill_tokens_per_s",
    "dense_flop_per_s",
)
"""Quantities of which more is better; of the others less is."""
FORMS = ("_speedup", "_ratio")
"""Against the baseline: ``_speedup`` above 1 is better than it, ``_ratio`` is scenario over baseline."""
NEEDS_OUTPUT = (
    "e2e_s",
    "decode_s",
    "tokens_per_s",
    "tokens_per_s_per_gpu",
    "total_tokens_per_s",
    "decode_phase_tokens_per_s",
)
"""Quantities that depend on how many tokens are generated."""

Value = tuple[float, float, float]
"""Middle, low and high end of the 90 % interval."""


def base(metric: str) -> str:
    """`metric` without its comparison with a baseline."""
    for form in FORMS:
        metric = metric.removesuffix(form)
    return metric


def check_metric(metric: str, kind: str, has_baseline: bool, where: str) -> None:
    """Refuse an unknown metric, or a comparison without a baseline."""
    known = KERNEL if kind == "kernel" else E2E
    names = [n + form for n in known for form in ("", *FORMS)]
    if metric not in names:
        raise UnknownNameError(f"{kind} metric", metric, names, where=where)
    if metric != base(metric) and not has_baseline:
        raise InputError(f"{metric} needs a baseline_scenario", where=where)


def e2e_values(row: Mapping[str, Any]) -> dict[str, Value]:
    """All whole-model quantities of one predicted row (the sweep's columns)."""
    batch, prompt, output = (float(row[k]) for k in ("batch", "prompt_tokens", "output_tokens"))
    gpus = float(row["tp"] * row["pp"])
    ttft: Value = (row["ttft_s"], row["ttft_lo_s"], row["ttft_hi_s"])
    out: dict[str, Value] = {
        "ttft_s": ttft,
        "prefill_tokens_per_s": _rate(batch * prompt, ttft),
        "memory_bytes": (row["total_bytes"] * gpus,) * 3,
    }
    if row["tpot_s"] is None:
        return out
    tpot: Value = (row["tpot_s"], row["tpot_lo_s"], row["tpot_hi_s"])
    decode: Value = tuple(t * (output - 1.0) for t in tpot)  # type: ignore[assignment]
    e2e: Value = tuple(a + b for a, b in zip(ttft, decode, strict=True))  # type: ignore[assignment]
    return out | {
        "tpot_s": tpot,
        "decode_s": decode,
        "e2e_s": e2e,
        "tokens_per_s": _rate(batch * output, e2e),
        "tokens_per_s_per_gpu": _rate(batch * output / gpus, e2e),
        "total_tokens_per_s": _rate(batch * (prompt + output), e2e),
        "decode_tokens_per_s": _rate(batch, tpot),
        "decode_phase_tokens_per_s": _rate(batch * (output - 1.0), decode),
    }


def _rate(amount: float, time: Value) -> Value:
    mid, lo, hi = time
    return amount / mid, amount / hi, amount / max(lo, 1e-30)


def compare(metric: str, value: Value, baseline: Value) -> Value:
    """`metric` of a scenario against its baseline; the two intervals are taken as independent.

    In log space the half widths add in squares.
    """
    up = metric.endswith("_ratio") or base(metric) in RATES
    mid = value[0] / baseline[0] if up else baseline[0] / value[0]
    low, high = (value[1] / value[0], value[2] / value[0])
    low_b, high_b = (baseline[1] / baseline[0], baseline[2] / baseline[0])
    if up:
        return mid, mid * _add(low, 1.0 / high_b), mid * _add(high, 1.0 / low_b)
    return mid, mid * _add(low_b, 1.0 / high), mid * _add(high_b, 1.0 / low)


def _add(a: float, b: float) -> float:
    """Factor of two independent factors on the same side of 1 [-]."""
    import math

    sign = 1.0 if a * b >= 1.0 else -1.0
    return math.exp(sign * math.hypot(math.log(a), math.log(b)))
