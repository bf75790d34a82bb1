"""What a claim measures: names with their unit as suffix, and how they follow from a prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping

from simulator.base.errors import InputError, UnknownNameError
from simulator.base.interval import Interval, ratio
from simulator.inference.evaluate import end_to_end, rate
from simulator.scenario.scenario import Scenario

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
SIZES = ("memory_bytes", "kv_read_bytes")
"""Quantities that are no time: less of them is no speed-up."""
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

Value = Interval[float]


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


def e2e_values(s: Scenario, gpus: int, ttft: Value, tpot: Value, total_bytes: float) -> dict[str, Value]:
    """All whole-model quantities of one predicted point; `total_bytes` is of one GPU [B]."""
    batch, prompt, output = float(s.batch), float(s.prompt_tokens), float(s.output_tokens)
    out: dict[str, Value] = {
        "ttft_s": ttft,
        "prefill_tokens_per_s": rate(batch * prompt, ttft),
        "memory_bytes": Interval.exact(total_bytes * gpus),
    }
    if not math.isfinite(tpot.mid):
        return out
    decode, e2e = tpot.each(lambda t: t * (output - 1.0)), end_to_end(ttft, tpot, output)
    return out | {
        "tpot_s": tpot,
        "decode_s": decode,
        "e2e_s": e2e,
        "tokens_per_s": rate(batch * output, e2e),
        "tokens_per_s_per_gpu": rate(batch * output / gpus, e2e),
        "total_tokens_per_s": rate(batch * (prompt + output), e2e),
        "decode_tokens_per_s": rate(batch, tpot),
        "decode_phase_tokens_per_s": rate(batch * (output - 1.0), decode),
    }


def better(metric: str, value: Value, baseline: Value) -> Value:
    """How much better than the baseline `value` is [-]; the two intervals are taken as independent."""
    return ratio(value, baseline) if base(metric) in RATES else ratio(baseline, value)
