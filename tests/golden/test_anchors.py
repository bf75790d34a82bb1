"""Consistency anchors: Llama-2-7B fp16 at context 2048, as other measured-kernel sums have it.

Sources: Vidur's measured A100 kernels summed by hand; aiconfigurator 0.12 SILICON mode (A100: vLLM 0.14,
SGLang 0.5.10; H100: TensorRT-LLM 1.3, vLLM 0.24, SGLang 0.5.14). Ranges are taken at their nearest end.
"""

from __future__ import annotations

import numpy as np
import pytest

from simulator.inference.group import group_of
from simulator.inference.step import step_time
from simulator.ops.step import decode_step, prefill_step
from simulator.scenario.scenario import Scenario

BATCHES = np.array([1.0, 16.0, 64.0])
DECODE_MS = {
    ("a100-sxm-80g", "kernels"): ((10.5, 10.5), (20.3, 20.3), (48.8, 48.8)),
    ("a100-sxm-80g", "vllm"): ((16.2, 16.2), (23.1, 23.1), (54.5, 54.5)),
    ("a100-sxm-80g", "sglang"): ((11.5, 11.5), (24.9, 24.9), (65.5, 65.5)),
    ("h100-sxm", "kernels"): ((5.9, 6.8), (11.5, 13.0), (28.0, 29.5)),
    ("h100-sxm", "vllm"): ((5.9, 6.8), (11.5, 13.0), (28.0, 29.5)),
    ("h100-sxm", "sglang"): ((5.9, 6.8), (11.5, 13.0), (28.0, 29.5)),
    ("h100-sxm", "trtllm"): ((5.9, 6.8), (11.5, 13.0), (28.0, 29.5)),
}
PREFILL_MS = {("h100-sxm", e): (40.0, 42.4) for e in ("vllm", "sglang", "trtllm")}
OTHER = {("a100-sxm-80g", "vllm", 1.0)}
"""Known miss: vLLM 0.14's figure at batch 1 is 4 ms above any sum of kernels on that card."""


def off(value_ms: float, low: float, high: float) -> float:
    """Signed relative distance to the nearest end of a range."""
    near = min(max(value_ms, low), high)
    return value_ms / near - 1.0


def distances() -> dict[tuple[str, str, float], float]:
    found = {}
    for (device, engine), ranges in DECODE_MS.items():
        group = group_of(Scenario(model="llama-2-7b", device=device, engine=engine, dtype="fp16"))
        ms = 1e3 * np.asarray(step_time(group, decode_step(BATCHES, 2048.0)).total_s)
        for batch, value, (low, high) in zip(BATCHES, ms, ranges, strict=True):
            found[device, engine, float(batch)] = off(float(value), low, high)
    for (device, engine), (low, high) in PREFILL_MS.items():
        group = group_of(Scenario(model="llama-2-7b", device=device, engine=engine, dtype="fp16"))
        ms = 1e3 * float(step_time(group, prefill_step(1.0, 2048.0)).total_s)
        found[device, engine, 0.0] = off(ms, low, high)
    return found


def test_anchors_within_six_percent_in_the_median_and_fifteen_each() -> None:
    found = distances()
    assert np.median([abs(e) for e in found.values()]) < 0.06
    far = {k: round(e, 3) for k, e in found.items() if abs(e) > 0.15 and k not in OTHER}
    assert not far


@pytest.mark.parametrize("key", sorted(OTHER))
def test_the_known_miss_is_still_one(key: tuple[str, str, float]) -> None:
    assert abs(distances()[key]) > 0.15, "now within 15 %: take it out of OTHER"
