"""Fused MoE layers: routing, padding, traffic, floors."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.errors import InputError
from simulator.fitting.moe import library_of
from simulator.roofline.hardware import Hardware
from simulator.roofline.moe import DEFAULT, moe_time, route

HW = Hardware(132, 989e12, 67e12, 3.35e12, 50e6, 32, 450e9, 1e-6, 1.98e9, "hopper")
QWEN = {"hidden": 2048, "inter": 768, "topk": 8, "n_experts": 128}


def time(tokens, *, tp=1, ep=1, gated=True, coef=DEFAULT, **more):
    shape = {**QWEN, **{k: more.pop(k) for k in list(more) if k in QWEN}}
    return moe_time(
        tokens,
        **shape,
        tp=tp,
        ep=ep,
        gated=gated,
        weight_bytes_per_element=2.0,
        hw=HW,
        coef=coef,
        **more,
    )


def test_uniform_routing_is_the_binomial_expectation():
    load = route(4, 2, 8, ep=1, distribution="uniform")
    assert float(load.active) == pytest.approx(8 * (1 - 0.75**4))
    assert float(load.rows) == pytest.approx(8)


def test_one_token_hits_its_topk():
    for distribution in ("balanced", "uniform"):
        assert float(route(1, 8, 128, ep=1, distribution=distribution).active) == pytest.approx(8)


@pytest.mark.parametrize("distribution", ["balanced", "uniform", "power_law_1.01", "power_law_1.2"])
def test_load_stays_within_its_limits(distribution):
    tokens = np.array([1, 2, 7, 64, 1000, 16384.0])
    for ep in (1, 4, 32):
        load = route(tokens, 8, 128, ep=ep, distribution=distribution)
        assert np.all(load.active <= 128 / ep + 1e-9)
        assert np.all(load.rows >= load.active - 1e-9)
        assert np.all(load.rows <= np.maximum(tokens * 8, 1) + 1e-9)
        assert np.all(np.diff(load.active) >= -1e-9)


def test_power_law_sampler_agrees_with_the_closed_form():
    rng = np.random.default_rng(0)
    tokens, k, experts, ep, alpha = 1024, 8, 256, 8, 1.2
    b = 1 - alpha
    high = 0.8 * tokens
    x = ((high**b - 1) * rng.random((400, experts)) + 1) ** (1 / b)
    share = x / x.sum(1, keepdims=True) * tokens * k
    busiest = share.reshape(400, ep, -1).sum(2).max(1).mean()
    hit = (np.rint(share) > 0).mean() * experts / ep
    load = route(tokens, k, experts, ep=ep, distribution=f"power_law_{alpha}")
    assert float(load.rows) == pytest.approx(busiest, rel=0.15)
    assert float(load.active) == pytest.approx(hit, rel=0.1)


def test_more_tokens_never_take_less_time():
    t = time(np.arange(1, 20000, 7.0))
    assert np.all(np.diff(t.total_s) > -1e-15)


def test_decode_is_memory_and_prefill_is_math():
    small, large = time(8.0), time(65536.0)
    assert float(small.memory_s) > float(small.math_s)
    assert float(large.math_s) > float(large.memory_s)


def test_two_matrices_read_two_thirds():
    bare = dict(DEFAULT, act_passes=0.0, pair_passes=0.0)
    ratio = time(8.0, gated=False, coef=bare).memory_s / time(8.0, coef=bare).memory_s
    assert float(ratio) == pytest.approx(2 / 3)


def test_overrides_replace_the_dense_counts():
    dense = time(64.0)
    half = time(64.0, weight_read_bytes=0.25 * 128 * 3 * 2048 * 768 * 2)
    assert float(half.memory_s) < float(dense.memory_s)
    assert float(time(4096.0, flop=1e12).math_s) < float(time(4096.0, flop=2e12).math_s)


def test_never_below_the_floor():
    fast = dict(DEFAULT, t0_s=1e-12, math_share=9.0, bw_share=9.0, act_passes=0.0, pair_passes=0.0)
    t = time(np.array([128.0, 65536.0]), coef=fast).total_s
    weights = 128 * 3 * 2048 * 768 * 2
    assert float(t[0]) >= (0.9 * weights - 50e6) / 3.35e12
    assert float(t[1]) >= 2 * 65536 * 8 * 3 * 2048 * 768 / 989e12 * 0.999


def test_unknown_routing_is_an_error_and_an_unknown_kernel_another_library():
    with pytest.raises(InputError, match="balanced"):
        route(1, 1, 8, ep=1, distribution="zipf")
    assert library_of("newlib-1.0:mystery") == "other"


@pytest.mark.parametrize(
    ("kernel", "library"),
    [
        ("vllm-0.24.0:vllm_fp8moe_triton_tritonexperts", "vllm_triton"),
        (
            "vllm-0.24.0:vllm_unquantizedfusedmoe_flashinfer_trtllm_trtllmbf16experts",
            "vllm_trtllmgen",
        ),
        (
            "vllm-0.24.0:vllm_gptossmxfp4moe_triton_oaitritonmxfp4expertsmonolithic",
            "vllm_oaitriton",
        ),
        ("trtllm-1.3.0rc20:moe_torch_flow_cutlass", "trtllm_cutlass"),
        ("trtllm-1.3.0rc23:moe_torch_flow", "trtllm_flow"),
        ("sglang-0.5.14:sglang_marlin_moe", "sglang_marlin"),
    ],
)
def test_kernel_strings_name_their_library(kernel, library):
    assert library_of(kernel) == library
