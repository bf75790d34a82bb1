"""Fused MoE layers: routing, padding, traffic, floors."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from simulator.base.errors import InputError
from simulator.fitting.moe import library_of
from simulator.roofline.hardware import Hardware
from simulator.roofline.moe import DEFAULT, Routing, moe_time, route

HW = Hardware(132, 989e12, 67e12, 3.35e12, 50e6, 32, 450e9, 1e-6, 1.98e9, "hopper")
QWEN = {"hidden": 2048, "inter": 768, "topk": 8, "n_experts": 128}


def time(tokens, *, tp=1, ep=1, gated=True, coef=DEFAULT, **more):
    shape = {**QWEN, **{k: more.pop(k) for k in list(more) if k in QWEN}}
    return moe_time(tokens, **shape, tp=tp, ep=ep, gated=gated, weight_bytes_per_element=2.0, hw=HW, coef=coef, **more)


def test_uniform_routing_is_the_binomial_expectation():
    load = route(4, 2, 8, ep=1, distribution="uniform")
    assert float(load.active) == pytest.approx(8 * (1 - 0.75**4))
    assert float(load.rows) == pytest.approx(8)


def test_one_token_hits_its_topk():
    """Under the power law one token hit one expert of its eight, so what is read for one token stood in the start."""
    for distribution in ("balanced", "skewed", "uniform", "power_law_1.01", "power_law_1.2"):
        assert float(route(1, 8, 128, ep=1, distribution=distribution).active) == pytest.approx(8)


@pytest.mark.parametrize("distribution", ["balanced", "skewed", "uniform", "power_law_1.01", "power_law_1.2"])
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


@pytest.mark.parametrize(
    ("tokens", "topk", "experts", "ranks"),
    [(5, 2, 4, 2), (5, 2, 9, 3), (2, 2, 8, 4), (1, 3, 64, 2), (0.25, 2, 8, 8), (200, 4, 16, 1)],
)
def test_power_law_moments_by_quadrature(tokens, topk, experts, ranks):
    """x^-0.5 on [1, 0.8 T], or on [0.01, 2] for few pairs: experts above half a token of ``x T k / (E mean)`` are hit,
    and the busiest of r sums of E/r draws stands sqrt(2 ln r) deviations above their mean, at most T min(E/r, k).
    Of few pairs those that rounding lost hit one more each; the busiest rank has half of the binomial spread more."""
    pairs, local = tokens * topk, experts / ranks
    low, high = (1.0, 0.8 * tokens) if pairs > experts else (0.01, 2.0)
    norm, mean, square = (quad(lambda x, p=p: x ** (p - 0.5), low, high)[0] for p in (0, 1, 2))
    mean, square = mean / norm, square / norm
    scale = experts * mean / max(pairs, 1.0)
    shares = [quad(lambda x: x**-0.5, min(max(c * scale, low), high), high)[0] / norm for c in np.arange(0.5, 8.0)]
    reached = experts * shares[0]
    if pairs <= experts:
        reached = max(reached, pairs - experts * sum(shares))
    each = reached / ranks
    hit = each + 0.5 * np.sqrt(each * max(1.0 - each / local, 0.0) * 2.0 * np.log(ranks))
    spread = np.sqrt((square / mean**2 - 1.0) / local)
    rows = pairs / ranks * (1.0 + spread * np.sqrt(2.0 * np.log(ranks)))
    rows = min(rows, tokens * min(local, topk))
    active = min(max(hit, min(1.0, pairs)), max(min(local, reached), 1.0))
    load = route(tokens, topk, experts, ep=ranks, distribution="power_law_0.5")
    assert float(load.active) == pytest.approx(active)
    assert float(load.rows) == pytest.approx(max(rows, active))


def test_a_rank_has_at_least_one_expert_to_run():
    """One token of two experts on four ranks of two experts each: the busiest runs one of them, for one row."""
    assert route(1, 2, 8, ep=4, distribution="balanced") == Routing(1.0, 1.0)


def test_a_token_that_takes_every_expert_hits_them_all():
    assert float(route(1, 8, 8, ep=1, distribution="uniform").active) == pytest.approx(8.0)


SMALL = Hardware(1, 768.0, 1.0, 10.0, 0.0, 32, 1.0, 1.0, 1.0, "test", max_clock_ratio=1.25)
ROUND = {
    "t0_s": 1.0,
    "math_share": 0.5,
    "bw_share": 0.5,
    "tile_fill": 0.5,
    "tile_rows": 16.0,
    "narrow": 3.0,
    "act_passes": 2.0,
    "pair_passes": 3.0,
}


def small(tokens=4.0, *, coef=ROUND, hw=SMALL, **more):
    """4 gated experts of 2 x 8, two per token, tp 2, ep 2; two experts and four rows on the busiest rank."""
    shape = {"gated": True, "load": Routing(np.float64(2.0), np.float64(4.0)), "act_bytes": 1.0}
    return moe_time(
        tokens, 2.0, 8.0, 2.0, 4.0, tp=2.0, ep=2.0, weight_bytes_per_element=0.5, hw=hw, coef=coef, **{**shape, **more}
    )


def test_every_term_by_hand():
    """Width 4, 3*2*4 = 24 weights an expert. Math 2*4*24 = 192 flop at 384 flop/s, a tile of 8 half full against 2 rows
    an expert: twice that, 1 s. Read 2*24*0.5 = 24 B at 5 B/s, a quarter more for columns of 4 against 3: 6 s. Passed
    4*(2*2 + 3*4)*2 = 128 B of local rows and 2*8*2*3 = 96 B of all pairs, at 10 B/s: 22.4 s. Start 1 s."""
    t = small()
    assert t.math_s == pytest.approx(1.0)
    assert t.memory_s == pytest.approx(6.0 + 22.4)
    assert t.launch_s == pytest.approx(1.0)
    assert t.total_s == pytest.approx(np.sqrt(1 + 36) + 22.4 + 1.0)


def test_widths_that_do_not_divide_by_sixteen_by_hand():
    """Width 4: math of 1 s and read of 6 s twice as long, what is passed and the start as before. Width 16 (tp 0.5): 96
    weights an expert, math 4 s, read 2*96*0.5/5 = 19.2 s times hypot(1, 3/16), whatever the coefficient."""
    odd = ROUND | {"unaligned": 2.0}
    t = small(coef=odd)
    assert t.math_s == pytest.approx(2.0)
    assert t.total_s == pytest.approx(2.0 * np.sqrt(1 + 36) + 22.4 + 1.0)
    wide = {"load": Routing(np.float64(2.0), np.float64(4.0)), "act_bytes": 1.0, "gated": True}
    shape = {"ep": 2.0, "weight_bytes_per_element": 0.5, "hw": SMALL, **wide}
    plain, same = (moe_time(4.0, 2.0, 8.0, 2.0, 4.0, tp=0.5, coef=c, **shape) for c in (ROUND, odd))
    assert plain.math_s == same.math_s == pytest.approx(4.0)
    assert plain.total_s == same.total_s


def test_two_matrices_and_wider_activations_by_hand():
    """16 weights an expert: 2/3 of the math and of the read; 4*(2*2 + 2*4)*2*2 = 192 B of rows in 16 bit."""
    t = small(gated=False, act_bytes=2.0)
    assert t.math_s == pytest.approx(2 / 3)
    assert t.memory_s == pytest.approx(4.0 + (192 + 96) / 10)


def test_tiles_follow_the_tokens_of_all_ranks_up_to_the_largest():
    """64 pairs an expert ask for tiles of 64, the largest is 16: 0.5 * 16 / 2 rows = 4 times the useful math; 12 pairs
    take 12: 3 times; 32 rows an expert fill their tiles and are not padded: 2*64*24 flop at 384 flop/s."""
    assert small(64.0).math_s == pytest.approx(192 * 4 / 384)
    assert small(12.0).math_s == pytest.approx(192 * 3 / 384)
    assert small(64.0, load=Routing(np.float64(2.0), np.float64(64.0))).math_s == pytest.approx(8.0)


def test_overrides_by_hand():
    """96 flop, padded twice, at 384 flop/s; 8 B a quarter longer at 5 B/s."""
    t = small(flop=96.0, weight_read_bytes=8.0)
    assert t.math_s == pytest.approx(0.5)
    assert t.memory_s == pytest.approx(2.0 + 22.4)


def test_the_surface_sees_its_axes_and_multiplies_all():
    seen = {}

    def surface(**axes):
        seen.update(axes)
        return np.log(2.0)

    plain, scaled = small(), small(surface=surface)
    assert seen == {"tokens": 4.0, "experts": 2.0, "width": 4.0}
    for name in ("total_s", "math_s", "memory_s", "launch_s"):
        assert getattr(scaled, name) == pytest.approx(2.0 * getattr(plain, name)), name


def test_floors_by_hand():
    """24 B less 4 B of L2 at 10 B/s: 2 s; 9600 flop at 1.25 * 768 flop/s: 10 s."""
    fast = dict(ROUND, t0_s=0.0, math_share=1e9, bw_share=1e9, act_passes=0.0, pair_passes=0.0)
    hw = Hardware(1, 768.0, 1.0, 10.0, 4.0, 32, 1.0, 1.0, 1.0, "test", max_clock_ratio=1.25)
    assert small(coef=fast, hw=hw).total_s == pytest.approx(2.0)
    assert small(coef=fast, hw=hw, flop=9600.0).total_s == pytest.approx(10.0)
    assert small(coef=fast, hw=hw, weight_read_bytes=104.0).total_s == pytest.approx(10.0)


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
    assert float(t[0]) >= (128 / 143 * weights - 50e6) / 3.35e12
    assert float(t[1]) >= 2 * 65536 * 8 * 3 * 2048 * 768 / 989e12 * 0.999


def test_unknown_routing_is_an_error_and_an_unknown_kernel_another_library():
    with pytest.raises(InputError, match="balanced"):
        route(1, 1, 8, ep=1, distribution="zipf")
    assert library_of("newlib-1.0:mystery") == "other"


@pytest.mark.parametrize(
    ("kernel", "library"),
    [
        ("vllm-0.24.0:vllm_fp8moe_triton_tritonexperts", "vllm_triton"),
        ("vllm-0.24.0:vllm_unquantizedfusedmoe_flashinfer_trtllm_trtllmbf16experts", "vllm_trtllmgen"),
        ("vllm-0.24.0:vllm_gptossmxfp4moe_triton_oaitritonmxfp4expertsmonolithic", "vllm_oaitriton"),
        ("trtllm-1.3.0rc20:moe_torch_flow_cutlass", "trtllm_cutlass"),
        ("trtllm-1.3.0rc23:moe_torch_flow", "trtllm_flow"),
        ("sglang-0.5.14:sglang_marlin_moe", "sglang_marlin"),
    ],
)
def test_kernel_strings_name_their_library(kernel, library):
    assert library_of(kernel) == library
