"""Policies that engines are asked for today, by hand; each test's text is the calculation.

Llama-3.1-8B: 32 layers, 32 query and 8 KV heads of 128, fp16: 4,096 B of K and V per token and layer, 2,048 B of K.
A prompt of 1024 tokens has 1024 x 1025 / 2 = 524,800 causal pairs per head; Q K^T is 256 flop per pair and head.
"""

from __future__ import annotations

import numpy as np
import pytest

from simulator.base.dtypes import FORMATS, DType
from simulator.inference import memory
from simulator.inference.lowering import Lowering
from simulator.model.hub import find_model
from simulator.ops.ops import Attention, Linear, Moe, Op
from simulator.ops.step import decode_step, prefill_step
from simulator.policies import parse

LLAMA, LAYERS, KV, PAIRS, HEADS = "llama-3.1-8b", 32, 4_096, 524_800, 32
SCORE_FLOP = 256 * HEADS
"""Q K^T of one pair over the query heads."""


def lowered(policy: str, model: str = LLAMA) -> Lowering:
    return Lowering(find_model(model).in_one_format(), parse(policy), FORMATS["fp16"], 2.0)


def decode(policy: str, context: float, prompt: float | None = None, model: str = LLAMA) -> list[Op]:
    return lowered(policy, model).ops(decode_step(1.0, context, prompt))


def prompt(policy: str, tokens: float) -> list[Op]:
    return lowered(policy).ops(prefill_step(1.0, tokens))


def stored(policy: str, tokens: float, asked: float | None = None) -> float:
    return float(memory.kv_bytes_per_sequence(lowered(policy), tokens, prompt=asked))


def the(ops: list[Op], role: str, **want: float) -> Op:
    """The first op of a role, with the numbers it must have."""
    found = [o for o in ops if o.role == role]
    assert found, f"no op {role} among {sorted({o.role for o in ops})}"
    for name, value in want.items():
        assert float(np.max(getattr(found[0], name))) == pytest.approx(value), f"{role}.{name}"
    return found[0]


def own(ops: list[Op], what: str) -> float:
    """Sum over the model's own attention, all layers."""
    cores = [o for o in ops if isinstance(o, Attention) and not o.overhead]
    return float(sum(np.sum(getattr(o, what) * np.asarray(o.count)) for o in cores))


# --- the prompt's blocks ---------------------------------------------------------------------------------------


def test_xattention_scores_an_eighth_and_sums_to_blocks() -> None:
    """524,800 / 8 pairs scored; 524,800 / 64 x 32 products of 2 B out and in; 524,800 / 128^2 = 32.03 blocks per head,
    1,025 in all, searched in 8 rows of 32 heads."""
    ops = prompt("xattention(keep=0.25)", 1024.0)
    the(ops, "kv.estimate.prefill", flop=PAIRS / 8 * SCORE_FLOP, count=LAYERS)
    the(ops, "kv.scores", read_bytes=524_800, write_bytes=524_800)
    the(ops, "kv.top_k", select_elements=1025, select_rows=8 * 32)
    assert own(ops, "flop") == pytest.approx(LAYERS * 0.25 * PAIRS * 2 * SCORE_FLOP)
    assert not [o for o in decode("xattention", 1024.0) if o.overhead]


def test_sparge_attention_pools_and_scores_blocks() -> None:
    """Q of 8,388,608 B and K of 2,097,152 B are read, a 128th and a 64th written; one score per 128 x 64 pairs."""
    ops = prompt("sparge_attention(keep=0.5)", 1024.0)
    the(ops, "kv.pool", read_bytes=10_485_760, write_bytes=65_536 + 32_768)
    the(ops, "kv.estimate.prefill", flop=PAIRS / 8192 * SCORE_FLOP)
    the(ops, "kv.top_k", select_elements=PAIRS / 8192 * 32, select_rows=8 * 32)
    assert own(ops, "flop") == pytest.approx(LAYERS * 0.5 * PAIRS * 2 * SCORE_FLOP)


def test_flexprefill_scores_its_last_rows_too() -> None:
    """128 rows behind 896 keys: 128 x 896 + 128 x 129 / 2 = 122,944 pairs."""
    the(prompt("flexprefill", 1024.0), "kv.observe", flop=122_944 * SCORE_FLOP)


def test_seer_attention_projects_what_it_pools() -> None:
    """16 blocks of 64; a matrix 128 x 128 for the queries and 256 x 128 for two pools of keys, per query head: 49,152
    weights each, 50.3 M in all, 101 MB in 16 bit, the size of the published gates. One score per 64 x 64 pairs."""
    ops = prompt("seer_attention", 1024.0)
    gates = [the(ops, "gate.q", m=16, n=128, k=128, groups=32), the(ops, "gate.k", m=16, n=128, k=256, groups=32)]
    weights = sum(LAYERS * g.weight_read_bytes for g in gates if isinstance(g, Linear))
    assert weights == pytest.approx(101e6, rel=0.01)
    the(ops, "kv.pool", write_bytes=8_388_608 / 64 + 2 * 2_097_152 / 64)
    the(ops, "kv.estimate.prefill", flop=PAIRS / 4096 * SCORE_FLOP)


def test_moba_chooses_blocks_per_query() -> None:
    """2 blocks of 128: 256 tokens per query, 256 x 257 / 2 + 768 x 256 = 229,504 pairs. 524,800 / 128 means per head
    are scored, kept in 4 B and searched in 1024 x 32 rows; 1024 x 4096 fp32 partial outputs per block, out and in."""
    ops = prompt("moba(blocks=2,block=128)", 1024.0)
    the(ops, "kv.pool", read_bytes=2_097_152, write_bytes=2_097_152 / 128)
    the(ops, "kv.estimate.prefill", flop=PAIRS / 128 * SCORE_FLOP)
    the(ops, "kv.scores", read_bytes=0, write_bytes=PAIRS / 128 * 32 * 4)
    the(ops, "kv.top_k", select_elements=PAIRS / 128 * 32, select_rows=1024 * 32)
    the(ops, "attn.reduce", read_bytes=33_554_432, write_bytes=33_554_432)
    assert own(ops, "flop") == pytest.approx(LAYERS * 229_504 * 2 * SCORE_FLOP)
    assert "attn.reduce" not in {o.role for o in prompt("flash_moba", 4096.0)}
    short = prompt("moba(blocks=2,block=128)", 256.0)
    assert max(float(np.max(o.count)) for o in short if o.overhead) == 0.0


def test_trianglemix_keeps_the_last_rows_whole() -> None:
    """2048 tokens: 2,098,176 pairs in 16 layers; 520 keys per query are 520 x 521 / 2 + 1528 x 520 = 930,020 in the
    other 16; their last 128 rows see 128 x 1920 + 128 x 129 / 2 = 254,016 instead of 128 x 520 = 66,560."""
    ops = prompt("trianglemix", 2048.0)
    assert own(ops, "flop") == pytest.approx(16 * (2_098_176 + 930_020 + 254_016 - 66_560) * 2 * SCORE_FLOP)
    assert not [o for o in ops if o.overhead]
    # 2048 keys seen are the whole prompt: nothing is skipped.
    assert own(prompt("tri_shape", 2048.0), "flop") == pytest.approx(32 * 2_098_176 * 2 * SCORE_FLOP)


# --- two kinds of heads ----------------------------------------------------------------------------------------


def test_duo_attention_reads_half_the_heads_whole() -> None:
    """10,000 / 2 + 320 / 2 = 5,160 tokens read and kept; a streaming head's query of a prompt of 1,000 sees 320 keys:
    320 x 321 / 2 + 680 x 320 = 268,960 of 500,500 pairs."""
    ops = decode("duo_attention", 10_000.0)
    assert own(ops, "kv_read_bytes") == LAYERS * 5_160 * KV
    assert len([o for o in ops if o.role == "attn.core"]) == 2
    assert stored("duo_attention", 10_000.0) == LAYERS * 5_160 * KV
    pairs = 0.5 * (500_500 + 268_960)
    assert own(prompt("duo_attention", 1000.0), "flop") == pytest.approx(LAYERS * pairs * 2 * SCORE_FLOP)


def test_lserve_scores_pages_once_in_four_steps() -> None:
    """16 query and 4 KV heads choose: 10,000 / 16 pages of two vectors, 2,048 B each; 4 fp32 scores per page; 4096
    tokens of 2,048 B read, and 320 in the streaming heads. Kept: 5,160 tokens and an eighth of K more per token."""
    ops = decode("lserve", 10_000.0)
    the(ops, "kv.estimate", read_bytes=625 * 2_048, write_bytes=625 * 4 * 4, flop=625 * 4 * 16 * 128, count=LAYERS / 4)
    the(ops, "kv.top_k", select_elements=625 * 4, count=LAYERS / 4)
    assert own(ops, "kv_read_bytes") == LAYERS * (4_096 + 320) * 2_048
    assert stored("lserve", 10_000.0) == LAYERS * 5_160 * (KV + KV / 16)


def test_lserve_runs_over_a_quantised_cache() -> None:
    """4-bit KV with 4 B per 64 elements is 0.28125 of 16 bit: the chosen tokens too."""
    ops = decode("lserve+kv_quant(bits=4,window=0)", 10_000.0)
    assert own(ops, "kv_read_bytes") == pytest.approx(LAYERS * (4_096 + 320) * 2_048 * 0.28125)


# --- selection and eviction ------------------------------------------------------------------------------------


def test_sparq_reads_channels_then_tokens() -> None:
    """32 channels of 8 heads are 512 B per token, 2 x 32 x 32 flop; 128 tokens of 4,096 B; K once more: 2,048 B."""
    ops = decode("sparq", 10_000.0)
    the(ops, "kv.estimate", read_bytes=10_000 * 512, flop=10_000 * 2048, write_bytes=10_000 * 8 * 4)
    the(ops, "kv.top_k", select_elements=80_000, select_rows=8)
    the(ops, "kv.transpose", read_bytes=2_048, write_bytes=2_048)
    assert own(ops, "kv_read_bytes") == LAYERS * 128 * KV
    assert stored("sparq", 1600.0) == LAYERS * 1600 * KV * 1.5


def test_ada_kv_and_seer_attention_r_are_known_mechanisms() -> None:
    """1024 of 2000 prompt tokens and 100 generated; 4096 of 10,000 tokens by 10,000 / 64 mean keys of 2,048 B."""
    assert own(decode("ada_kv", 2100.0, 2000.0), "kv_read_bytes") == LAYERS * 1124 * KV
    ops = decode("seer_attention_r", 10_000.0)
    the(ops, "kv.estimate", read_bytes=10_000 / 64 * 2_048)
    assert own(ops, "kv_read_bytes") == LAYERS * 4096 * KV


def test_kvzip_reads_its_prompt_twice() -> None:
    """4096 tokens again behind 4096 and their own half chunk: 4096 x 5120 pairs; 4096 x 2048 pairs scored, 2 B each out
    and in; every matrix once more. 30 % of 1000 prompt tokens and 100 generated ones are read."""
    ops = prompt("kvzip", 4096.0)
    the(ops, "rebuild.attn.core.prefill", flop=4096 * 5120 * 2 * SCORE_FLOP, count=LAYERS)
    the(ops, "kv.estimate.prefill", flop=4096 * 2048 * SCORE_FLOP)
    the(ops, "kv.scores", read_bytes=2 * 4096 * 2048 * 32)
    the(ops, "kv.compact", read_bytes=0.3 * 4096 * KV)
    again = [o for o in ops if isinstance(o, Linear) and o.role.startswith("rebuild.")]
    once = [o for o in ops if isinstance(o, Linear) and not o.overhead and o.role != "lm_head"]
    assert sum(np.sum(o.flop) for o in again) == pytest.approx(sum(np.sum(o.flop) for o in once))
    assert own(decode("kvzip", 1100.0, 1000.0), "kv_read_bytes") == pytest.approx(LAYERS * 400 * KV)
    assert stored("kvzip", 1600.0, 1000.0) == pytest.approx(LAYERS * (300 + 600) * KV)


# --- formats ---------------------------------------------------------------------------------------------------


def test_turboquant_is_134_bytes_of_512() -> None:
    """64 + 2 B of K and 64 + 4 B of V per head and token, in 28 layers; two layers at each end stay in 16 bit. Queries
    and keys of 40 heads are rotated by 128 x 128, which is no weight to keep."""
    ops = decode("turboquant", 10_000.0)
    the(ops, "kv.rotate", m=40, n=128, k=128, count=28)
    assert own(ops, "kv_read_bytes") == pytest.approx(10_000 * 8 * (28 * 134 + 4 * 512))
    assert stored("turboquant", 1600.0) == pytest.approx(1600 * 8 * (28 * 134 + 4 * 512))
    plain = memory.weights_bytes(lowered("dense"))
    assert memory.weights_bytes(lowered("turboquant")) == plain


def test_turboquant_in_vllm_unpacks_once_per_query_head() -> None:
    """4 query heads share K and V of 2 x 8 x 128 elements: 28 layers x 10,000 x 2,048 x 4 elements, 14 instructions for
    one of K and 9 for one of V, and 4 loads of the 134 x 8 B of a token. The paper's kernel unpacks once."""
    core = [o for o in decode("turboquant", 10_000.0) if isinstance(o, Attention) and o.expand is not None]
    assert sum(float(o.count) for o in core) == 28
    assert core[0].expand is not None
    assert core[0].expand.instructions == pytest.approx(10_000 * 2048 * 4 * 11.5)
    assert core[0].tile_bytes == pytest.approx(4 * 10_000 * 8 * 134)
    once = next(o for o in decode("turboquant(kernel=fused)", 10_000.0) if isinstance(o, Attention) and o.expand)
    assert once.expand is not None
    assert once.expand.instructions == pytest.approx(10_000 * 2048 * (5 + 15 * 4 / 32))
    assert np.all(np.asarray(once.tile_bytes) == 0.0)


def test_values_may_take_fewer_bits_than_keys() -> None:
    """vLLM's turboquant_k8v4: 128 B of FP8 keys, 64 + 4 B of values: 196 of 512."""
    policy = "turboquant(bits=8,v_bits=4,scale_bytes=2,rotate=false,dense_ends=0)"
    assert own(decode(policy, 10_000.0), "kv_read_bytes") == pytest.approx(LAYERS * 10_000 * 8 * 196)


def test_fp4_kv_is_four_and_a_half_bits() -> None:
    assert stored("fp4_kv", 1600.0) == pytest.approx(LAYERS * 1600 * KV * 4.5 / 16)


def test_bitnet_reads_two_bits_and_multiplies_in_int8() -> None:
    """mlp.down: 14,336 x 4,096 weights, 2 bits each."""
    down = the(decode("bitnet", 100.0), "mlp.down")
    assert isinstance(down, Linear)
    assert down.weight_read_bytes == 14_336 * 4_096 / 4
    assert (down.fmt.math, down.fmt.act_bytes) == (DType.INT8, 1.0)
    head = the(decode("bitnet", 100.0), "lm_head")
    assert isinstance(head, Linear)
    assert head.fmt.weight_bits == 16


def test_r_sparse_halves_a_square_matrix() -> None:
    """attn.o of 4096 x 4096: 0.475 of its columns, and factors of rank 51.2: 2 x 51.2 x 4096, a fortieth more."""
    ops = decode("r_sparse", 100.0)
    the(ops, "attn.o.low_in", n=51.2, k=4096)
    parts = [the(ops, role) for role in ("attn.o", "attn.o.low_in", "attn.o.low_out")]
    assert sum(o.weight_read_bytes for o in parts if isinstance(o, Linear)) == pytest.approx(0.5 * 4096**2 * 2)
    assert [o.overhead for o in parts] == [False, True, True]
    assert {o.role for o in decode("wina", 100.0)} == {o.role for o in decode("teal", 100.0)}


# --- fewer experts, fewer layers -------------------------------------------------------------------------------


def test_expert_pruning_keeps_three_quarters() -> None:
    """96 of 128 experts and columns of the router; a token still runs 8."""
    ops = decode("expert_pruning(keep=0.75)", 100.0, model="qwen3-30b-a3b")
    the(ops, "moe.experts", n_experts=96, top_k=8)
    the(ops, "moe.router", n=96)


def test_mixture_of_depths_lets_a_token_into_nine_blocks_of_sixteen() -> None:
    """All of every other block, an eighth of the rest: 0.5625 of 1,000 tokens are read and kept."""
    assert own(decode("mixture_of_depths", 1000.0), "tokens") == pytest.approx(LAYERS * 562.5)
    assert stored("mixture_of_depths", 1600.0) == pytest.approx(LAYERS * 900 * KV)


def test_reap_halves_the_experts() -> None:
    """Qwen3-30B-A3B: 64 of 128 experts of 3 x 2048 x 768 weights in each of 48 layers are gone, and 64 columns of
    a router; every token still runs 8."""
    model = "qwen3-30b-a3b"
    moe = the(decode("reap", 100.0, model=model), "moe.experts", n_experts=64, top_k=8)
    assert isinstance(moe, Moe)
    the(decode("reap", 100.0, model=model), "moe.router", n=64)
    saved = memory.weights_bytes(lowered("dense", model)) - memory.weights_bytes(lowered("reap", model))
    assert saved == pytest.approx(48 * 64 * (3 * 2048 * 768 + 2048) * 2)


def test_expert_skipping_runs_six_of_eight() -> None:
    model = "qwen3-30b-a3b"
    few, all_ = (the(decode(p, 100.0, model=model), "moe.experts") for p in ("expert_skipping", "dense"))
    assert float(few.traffic().total_flop) == pytest.approx(0.75 * float(all_.traffic().total_flop))
    assert memory.weights_bytes(lowered("expert_skipping", model)) == memory.weights_bytes(lowered("dense", model))


def test_shortgpt_removes_a_quarter_of_the_layers() -> None:
    """24 of 32 layers: of their KV, attention and 218,103,808 matrix weights each."""
    assert own(decode("shortgpt", 1000.0), "kv_read_bytes") == 24 * 1000 * KV
    assert stored("shortgpt", 1600.0) == 24 * 1600 * KV
    saved = memory.weights_bytes(lowered("dense")) - memory.weights_bytes(lowered("shortgpt"))
    layer = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14_336
    assert saved == pytest.approx(8 * layer * 2)
    # The last layer and what follows it stay.
    low = lowered("shortgpt")
    gone = {i for layer_key in low.groups for i in layer_key[1] if low.policies.members[0].layer_key(i, 32)}
    assert gone == set(range(23, 31))


@pytest.mark.parametrize(
    ("model", "policy", "why"),
    [
        (LLAMA, "expert_pruning", "llama-3.1-8b has no routed experts"),
        (LLAMA, "expert_skipping", "llama-3.1-8b has no routed experts"),
        ("qwen3-30b-a3b", "expert_pruning(keep=0.05)", "keep=0.05 leaves 6 experts where a token uses 8"),
        ("qwen3-30b-a3b", "expert_skipping(keep=0.1)", "keep=0.1 leaves less than one expert per token"),
        ("qwen3-30b-a3b", "bitnet", "no published ternary kernel for fused experts"),
    ],
)
def test_reasons_are_sentences(model: str, policy: str, why: str) -> None:
    assert lowered(policy, model).why_not() == why
