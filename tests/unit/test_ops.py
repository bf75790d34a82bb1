"""Traffic adds up like a sum should, runs become sectors, and every op counts what a hand would count."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import pytest

from simulator.base.dtypes import FORMATS, DType, get_format
from simulator.base.errors import UnknownNameError
from simulator.ops.granularity import moved_bytes, paged_tokens
from simulator.ops.ops import Attention, Collective, Elementwise, Linear, Moe
from simulator.ops.pairs import causal_pairs
from simulator.ops.routing import reached
from simulator.ops.traffic import Access, Operand, Traffic

FP16 = FORMATS["fp16"]

SAMPLES = (
    Traffic({DType.FP16: 10.0}, {Operand.WEIGHT: Access(4.0, 1.0, 2.0)}, launches=1.0),
    Traffic({DType.FP32: 3.0}, {Operand.KV: Access(7.0)}, launches=2.0, graph_safe=False),
    Traffic({DType.FP16: np.array([1.0, 2.0])}, {Operand.KV: Access(1.0, 2.0)}, host_sync=1.0),
)


def figures(t: Traffic) -> dict[object, np.ndarray]:
    """Every number of a Traffic, to compare two of them."""
    out: dict[object, np.ndarray] = {d: np.asarray(f) for d, f in t.flop.items()}
    for operand, a in t.access.items():
        for name in ("read_bytes", "write_bytes", "runs"):
            out[operand, name] = np.asarray(getattr(a, name))
    out["launches"], out["sync"] = np.asarray(t.launches), np.asarray(t.host_sync)
    out["safe"] = np.asarray(t.graph_safe)
    return out


def assert_same(a: Traffic, b: Traffic) -> None:
    left, right = figures(a), figures(b)
    assert left.keys() == right.keys()
    for key, value in left.items():
        np.testing.assert_array_equal(*np.broadcast_arrays(value, right[key]), err_msg=str(key))


def test_traffic_is_a_commutative_monoid() -> None:
    """a + 0 = a, a + b = b + a, (a + b) + c = a + (b + c), and `sum` is legal."""
    for t in SAMPLES:
        assert_same(t + Traffic(), t)
        assert_same(Traffic() + t, t)
    for order in itertools.permutations(SAMPLES):
        assert_same(sum(order), SAMPLES[0] + SAMPLES[1] + SAMPLES[2])
    a, b, c = SAMPLES
    assert_same((a + b) + c, a + (b + c))


def test_a_sum_keeps_the_worst_of_graph_safety_and_adds_the_rest() -> None:
    total = sum(SAMPLES)
    assert not total.graph_safe
    assert total.launches == 3.0 + SAMPLES[2].launches
    assert total.host_sync == 1.0
    np.testing.assert_array_equal(total.total_flop, [14.0, 15.0])
    assert total.read_bytes(Operand.KV) == 8.0
    assert total.read_bytes(Operand.INDEX) == 0.0


def test_scaling_by_two_is_adding_twice() -> None:
    for t in SAMPLES:
        assert_same(t.scaled(2.0), t + t)


def test_run_length_of_an_access() -> None:
    assert Access(100.0, 0.0, 4.0).run_bytes == 25.0
    assert np.isinf(Access(100.0).run_bytes)


def test_short_runs_move_whole_sectors() -> None:
    """32 B sectors: runs of 8 B move 4x, of 48 B 64/48, of 64 B nothing more, a stream nothing more."""
    np.testing.assert_allclose(
        moved_bytes(960.0, np.array([8.0, 48.0, 64.0, np.inf]), 32.0), [3840.0, 1280.0, 960.0, 960.0]
    )


def test_moved_is_never_less_than_useful() -> None:
    runs = np.linspace(0.5, 500.0, 999)
    assert np.all(moved_bytes(1.0, runs, 32.0) >= 1.0)


def test_pages_round_up() -> None:
    np.testing.assert_array_equal(paged_tokens(np.array([1, 16, 17]), 16), [16, 16, 32])


def test_linear_by_hand() -> None:
    """m=3, n=5, k=7 in fp16: 2*3*5*7 = 210 flop, 5*7*2 = 70 B of weights, 42 B in, 30 B out."""
    op = Linear(role="x", m=3.0, n=5.0, k=7.0, fmt=FP16)
    t = op.traffic()
    assert t.flop == {DType.FP16: 210.0}
    assert t.access[Operand.WEIGHT].read_bytes == 70.0
    assert t.access[Operand.ACTIVATION].read_bytes == 42.0
    assert t.access[Operand.ACTIVATION].write_bytes == 30.0
    assert t.launches == 1.0


def test_linear_reads_the_union_and_nothing_of_the_rest() -> None:
    """Half of the k rows: half the weights and half the input, all of the output."""
    op = Linear(role="x", m=2.0, n=8.0, k=16.0, fmt=FP16, read_keep=0.5, flop_keep=0.25, gathered="k", run_bytes=16.0)
    t = op.traffic()
    assert t.access[Operand.WEIGHT].read_bytes == 128.0
    assert t.access[Operand.WEIGHT].runs == 8.0
    assert t.access[Operand.ACTIVATION].read_bytes == 32.0
    assert t.access[Operand.ACTIVATION].write_bytes == 32.0
    assert t.total_flop == 128.0


def test_batched_linear_counts_every_group() -> None:
    one = Linear(role="x", m=2.0, n=3.0, k=4.0, fmt=FP16)
    eight = Linear(role="x", m=2.0, n=3.0, k=4.0, fmt=FP16, groups=8.0)
    assert_same(Traffic() + one.traffic().scaled(8.0), eight.traffic().scaled(1.0) + Traffic({}, {}, launches=7.0))


def test_formats_cost_their_bits() -> None:
    """w4a16 g128: 4 + 16/128 + 4/128 bits; nvfp4 one fp8 scale per 16; fp8_block one fp32 per tile."""
    assert get_format("W4A16").weight_bits == 4.15625
    assert get_format("nvfp4").weight_bits == 4.5
    assert get_format("mxfp4").weight_bits == 4.25
    assert get_format("fp8_block").weight_bytes == pytest.approx(1.000244140625)
    with pytest.raises(UnknownNameError, match="did you mean 'fp16'"):
        get_format("fp61")


def brute_pairs(q: int, kv: int, window: int | None) -> int:
    """Query at absolute position p sees keys p-window+1 ... p."""
    return sum(min(p + 1, window or p + 1) for p in range(kv - q, kv))


def test_causal_pairs_against_counting() -> None:
    for q, kv, window in itertools.product((1, 2, 5, 9), (9, 10, 17), (None, 1, 3, 9, 10, 16, 40)):
        assert causal_pairs(q, kv, window) == brute_pairs(q, kv, window), (q, kv, window)


def attention(**changes: object) -> Attention:
    """Two sequences of 10 tokens, 4 query and 2 KV heads of 8, bf16."""
    base = {
        "role": "a",
        "phase": "decode",
        "batch": 2.0,
        "q_len": 1.0,
        "kv_len": 10.0,
        "n_heads": 4.0,
        "n_kv_heads": 2.0,
        "head_dim": 8.0,
        "v_head_dim": 8.0,
        "math": DType.BF16,
        "kv_element_bytes": 2.0,
    }
    return Attention(**{**base, **changes})  # type: ignore[arg-type]


def test_decode_attention_by_hand() -> None:
    """Per token 2*(8+8)*2 = 64 B of KV: 2*10*64 read, 2*64 written; 2*(8+8)*4*10*2 = 2560 flop;
    q and o are 2*4*8*2 = 128 B each."""
    t = attention().traffic()
    assert t.access[Operand.KV].read_bytes == 1280.0
    assert t.access[Operand.KV].write_bytes == 128.0
    assert t.total_flop == 2560.0
    assert t.access[Operand.ACTIVATION] == Access(128.0, 128.0)


def test_a_window_bounds_reads_and_flop_alike() -> None:
    t, full = attention(window=4).traffic(), attention().traffic()
    assert t.access[Operand.KV].read_bytes == 0.4 * full.access[Operand.KV].read_bytes
    assert t.total_flop == 0.4 * full.total_flop


def test_attended_tokens_replace_the_context() -> None:
    t, full = attention(attended=5.0).traffic(), attention().traffic()
    assert t.total_flop == 0.5 * full.total_flop
    assert t.access[Operand.KV].read_bytes == 0.5 * full.access[Operand.KV].read_bytes


def test_latent_attention_reads_one_latent_for_all_heads() -> None:
    """MLA decode, 576 wide with 512 of value: 576*2 B per token; 2*(576+512)*heads per pair."""
    t = attention(latent=True, head_dim=576.0, v_head_dim=512.0, n_kv_heads=1.0).traffic()
    assert t.access[Operand.KV].read_bytes == 2 * 10 * 1152
    assert t.total_flop == 2 * 10 * 4 * 2 * (576 + 512)


def test_prefill_attention_of_a_whole_prompt() -> None:
    """q = kv = 10: 55 pairs a head; KV read once."""
    t = attention(phase="prefill", q_len=10.0).traffic()
    assert t.total_flop == 2 * 55 * 4 * 2 * 16
    assert t.access[Operand.KV].read_bytes == 1280.0


def moe(tokens: float, **changes: object) -> Moe:
    """8 gated experts of 4 x 6, two per token."""
    base = {
        "role": "m",
        "tokens": tokens,
        "hidden": 4.0,
        "intermediate": 6.0,
        "top_k": 2,
        "n_experts": 8,
        "gated": True,
        "fmt": FP16,
    }
    return Moe(**{**base, **changes})  # type: ignore[arg-type]


def test_experts_hit_by_hand() -> None:
    """One token hits 2 of 8; two 8 * 2 / (2 + 3) = 3.2 where some are popular, 8*(1 - (6/8)^2) = 3.5 where none are."""
    for routing, two in (("skewed", 3.2), ("uniform", 3.5)):
        for tokens, hit in ((1.0, 2.0), (2.0, two), (1e9, 8.0)):
            assert moe(tokens, routing=routing).active_experts == pytest.approx(hit)


def test_popularities_drawn_from_an_exponential_hit_as_many_as_the_closed_form() -> None:
    """128 experts, 4 a token, 32 tokens: 65 are hit, where draws that are all alike hit 82."""
    rng = np.random.default_rng(0)
    p = rng.beta(1.0, 128 / 4 - 1.0, (4000, 128))
    hit = np.mean(np.sum(1.0 - (1.0 - p) ** 32, axis=1))
    skewed, alike = (float(reached(32.0, 4.0, 128.0, routing)) for routing in ("skewed", "uniform"))
    assert 128 * skewed == pytest.approx(hit, rel=0.01)
    assert (round(128 * skewed), round(128 * alike)) == (65, 82)


def test_moe_by_hand() -> None:
    """An expert holds 3*4*6 = 72 weights: one token reads 2*72*2 B and does 2*2*72 flop."""
    t = moe(1.0).traffic()
    assert t.read_bytes(Operand.WEIGHT) == pytest.approx(288.0)
    assert t.total_flop == pytest.approx(288.0)


def test_expert_parallel_ranks_share_experts_and_tokens() -> None:
    whole, part = moe(64.0), moe(64.0, ep=4)
    assert part.active_experts == pytest.approx(whole.active_experts / 4)
    assert part.traffic().total_flop == pytest.approx(whole.traffic().total_flop / 4)


def test_experts_that_all_run_are_all_read() -> None:
    assert moe(1.0, top_k=8).active_experts == pytest.approx(8.0)


def test_elementwise_and_collective() -> None:
    e = Elementwise(role="e", kind="copy", read_bytes=64.0, write_bytes=32.0, flop=5.0, run_bytes=16.0)
    t = e.traffic()
    assert t.access[Operand.ACTIVATION] == Access(64.0, 32.0, 4.0)
    assert t.flop == {DType.FP32: 5.0}
    c = Collective(role="c", op="all_reduce", message_bytes=10.0, n_ranks=4).traffic()
    assert c.total_bytes == 20.0
    assert c.launches == 1.0


def test_ops_broadcast_over_a_grid() -> None:
    m = np.array([1.0, 2.0, 4.0])[:, None]
    kv = np.array([8.0, 16.0])[None, :]
    total = Linear(role="x", m=m, n=2.0, k=2.0, fmt=FP16).traffic() + attention(batch=m, kv_len=kv).traffic()
    assert np.shape(total.total_bytes) == (3, 2)


FLAGS = {"graph_safe": False, "host_sync": 2.0}
W, ACT, KV = Operand.WEIGHT, Operand.ACTIVATION, Operand.KV


@pytest.mark.parametrize(("gathered", "read", "written"), [(None, 64.0, 32.0), ("k", 32.0, 32.0), ("n", 64.0, 16.0)])
def test_a_gathered_axis_halves_its_own_activations(
    gathered: Literal["n", "k"] | None, read: float, written: float
) -> None:
    """2 x 8 x 16 at half the rows: 8*16*2/2 = 128 B of weights in runs of 16 B; 2*16*2 = 64 B in, 2*8*2 = 32 B out,
    halved on the axis that is picked; a quarter of 2*2*8*16 = 512 flop."""
    op = Linear(
        role="x",
        m=2.0,
        n=8.0,
        k=16.0,
        fmt=FP16,
        read_keep=0.5,
        flop_keep=0.25,
        gathered=gathered,
        run_bytes=16.0,
        **FLAGS,
    )
    assert op.traffic() == Traffic(
        {DType.FP16: 128.0}, {W: Access(128.0, 0.0, 8.0), ACT: Access(read, written)}, launches=1.0, **FLAGS
    )


def test_groups_multiply_weights_and_activations() -> None:
    """Three products of 2 x 8 x 16 at half of n: 3 * 64 B in, 3 * 16 B out, 3 * 128 B of weights."""
    t = Linear(role="x", m=2.0, n=8.0, k=16.0, fmt=FP16, read_keep=0.5, gathered="n", groups=3.0).traffic()
    assert t.access == {W: Access(384.0), ACT: Access(192.0, 48.0)}


@pytest.mark.parametrize(("run_bytes", "runs"), [(float("inf"), 0.0), (32.0, 40.0)])
def test_every_figure_of_attention(run_bytes: float, runs: float) -> None:
    """1280 B of KV are 40 pieces of 32 B; see `test_decode_attention_by_hand` for the rest."""
    t = attention(run_bytes=run_bytes, **FLAGS).traffic()
    assert t == Traffic(
        {DType.BF16: 2560.0}, {KV: Access(1280.0, 128.0, runs), ACT: Access(128.0, 128.0)}, launches=1.0, **FLAGS
    )


def test_every_figure_of_experts() -> None:
    """All 8 experts run, tp 2, ep 2: 4 of them here with 3*4*3 = 36 weights of half a byte: 72 B. One token is 8
    routed rows, 4 here: in 4*(4 + 3)*2 = 56 B, out 4*(4 + 2*3)*2 = 80 B, 4*2*36 flop; ungated out 4*(4 + 3)*2 B."""
    op = moe(1.0, top_k=8, tp=2, ep=2, bytes_per_weight=0.5, **FLAGS)
    t = op.traffic()
    assert t == Traffic(
        {DType.FP16: 288.0}, {W: Access(pytest.approx(72.0)), ACT: Access(56.0, 80.0)}, launches=4.0, **FLAGS
    )
    plain = moe(1.0, top_k=8, tp=2, ep=2, gated=False).traffic()
    assert plain.access[ACT] == Access(56.0, 56.0)
    assert plain.access[W].read_bytes == pytest.approx(4 * 2 * 4 * 3 * 2.0)


@pytest.mark.parametrize(("run_bytes", "runs"), [(float("inf"), 0.0), (16.0, 4.0)])
def test_every_figure_of_a_pass(run_bytes: float, runs: float) -> None:
    op = Elementwise(
        role="e",
        kind="copy",
        read_bytes=64.0,
        write_bytes=32.0,
        flop=5.0,
        operand=KV,
        run_bytes=run_bytes,
        launches=3.0,
        **FLAGS,
    )
    assert op.traffic() == Traffic({DType.FP32: 5.0}, {KV: Access(64.0, 32.0, runs)}, launches=3.0, **FLAGS)
