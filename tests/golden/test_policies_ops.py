"""Single ops that policies add, field by field, for two sequences; each test's text is the calculation.

Llama-2-7B: 32 layers, 32 heads of 128: 8192 elements, 16,384 B of K and V per token and layer, FFN 4096 x 11,008.
Llama-3.1-8B: 8 KV heads: 4,096 B. OPT-6.7B: FFN 4096 x 16,384.
"""

from __future__ import annotations

import numpy as np
import pytest

from simulator.base.dtypes import FORMATS, DType
from simulator.inference import memory
from simulator.inference.lowering import Lowering
from simulator.model.hub import find_model
from simulator.ops.ops import Attention, Linear, Op
from simulator.ops.step import decode_step, prefill_step
from simulator.ops.traffic import Operand
from simulator.policies import parse

MHA, GQA, LAYERS = 16_384, 4_096, 32
BLOCK = ("attn.", "mlp.", "norm", "kv.")
"""The rest of a block, which transfers run beside."""


def lowered(model: str, policy: str, kv_element_bytes: float = 2.0) -> Lowering:
    return Lowering(find_model(model).in_one_format(), parse(policy), FORMATS["fp16"], kv_element_bytes)


def decode(model: str, policy: str, context: float, **more: float) -> list[Op]:
    return lowered(model, policy, **more).ops(decode_step(2.0, context))


def prompt(model: str, policy: str, tokens: float) -> list[Op]:
    return lowered(model, policy).ops(prefill_step(2.0, tokens))


def stored(model: str, policy: str, tokens: float) -> float:
    return float(memory.kv_bytes_per_sequence(lowered(model, policy), tokens))


def the(ops: list[Op], role: str, **want: object) -> Op:
    """The first op of a role, with the fields it must have."""
    found = [o for o in ops if o.role == role]
    assert found, f"no op {role} among {sorted({o.role for o in ops})}"
    for name, value in want.items():
        got = getattr(found[0], name)
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        assert (np.max(got) if numeric else got) == (pytest.approx(value) if numeric else value), f"{role}.{name}"
    return found[0]


def roles(ops: list[Op]) -> set[str]:
    return {o.role for o in ops}


# --- smaller tokens --------------------------------------------------------------------------------------------


def test_mustafar_decode() -> None:
    """Two rows of 0.3 + 19/128 = 0.4484375 of their bytes. 968 tokens behind the window are unpacked in 37 issue slots
    an element and 107 for three in ten of them. 2 x 32 x 1000 scores: 28 B in, 58 out, six kernels; both outputs of
    2 x 4096 fp32 read, one written, in seven. Values of 968 tokens are joined, with bitmaps of 8 B in 64:
    2 (0.3 + 3.5 / 64) + 1/8 B each.
    """
    share = 0.4484375
    ops = decode("llama-2-7b", "mustafar(keep=0.3)", 1000.0)
    the(ops, "kv.scores", read_bytes=28 * 64_000, write_bytes=58 * 64_000, launches=6, count=32, overhead=True)
    the(ops, "kv.parts", read_bytes=7 * 65_536, write_bytes=7 * 32_768, launches=7, count=32, overhead=True)
    joined = 2 * 968 * 8192 * (2 * (0.3 + 3.5 / 64) + 1 / 8)
    the(ops, "kv.join", read_bytes=joined, write_bytes=joined, launches=4, count=32, operand=Operand.KV)
    core = the(ops, "attn.core", bytes_per_token=MHA * (32 + 968 * share) / 1000)
    assert isinstance(core, Attention)
    assert core.expand is not None
    assert core.expand.instructions == pytest.approx((37 + 0.3 * 107) * 2 * 968 * 8192)
    assert stored("llama-2-7b", "mustafar(keep=0.3)", 1600) == pytest.approx(LAYERS * MHA * (32 + 1568 * share))


def test_mustafar_keeps_more_of_v_and_wider_elements() -> None:
    """K at 0.3, V at 0.5: the mean of 0.4484 and 0.6484. In fp32 a tile is 12 + 4 x (19.2 + 3.5) of 256 B: 0.4015625;
    of V 12 + 4 x 35.5: 0.6015625."""
    for width, share in ((2.0, 0.5484375), (4.0, 0.5015625)):
        ops = decode("llama-2-7b", "mustafar(keep=0.3,keep_v=0.5)", 1000.0, kv_element_bytes=width)
        core = the(ops, "attn.core", bytes_per_token=8192 * width * (32 + 968 * share) / 1000)
        assert isinstance(core, Attention)
        assert core.expand is not None
        assert core.expand.instructions == pytest.approx((37 + 0.4 * 107) * 2 * 968 * 8192)


def test_mustafar_prompt() -> None:
    """Two prompts of 100 are attended densely, then packed."""
    ops = prompt("llama-2-7b", "mustafar", 100.0)
    the(ops, "kv.pack", select_elements=200 * 8192)
    assert not roles(ops) & {"kv.scores", "kv.parts", "kv.join"}
    the(ops, "attn.core.prefill", bytes_per_token=None)


def test_zipvl_ranks_its_prompt() -> None:
    """2 x 1000 fp32 sums are searched in two rows for the 28.6 % that matter; tokens are stored at 0.35275 / 2."""
    the(
        prompt("llama-2-7b", "zipvl", 1000.0),
        "kv.top_k",
        read_bytes=8000,
        write_bytes=2000 * 0.286 * 4,
        select_elements=2000,
        select_rows=2,
    )
    assert stored("llama-2-7b", "zipvl", 1600) == pytest.approx(LAYERS * MHA * 1600 * 0.35275 / 2)


def test_cskv_ops() -> None:
    """Rank 0.2 x 4096 = 819.2: two prompts of 100 are projected down and nothing is rebuilt; a step rebuilds 968 old
    tokens of each of two rows."""
    ops = prompt("llama-2-7b", "cskv", 100.0)
    the(ops, "compress.kv", m=200, n=1638.4, k=4096, count=32)
    assert "rebuild.kv" not in roles(ops)
    later = decode("llama-2-7b", "cskv", 1000.0)
    the(later, "compress.kv", m=2)
    the(later, "rebuild.kv", m=2 * 968, n=8192, k=819.2)


# --- fewer tokens ----------------------------------------------------------------------------------------------


def test_streaming_rotates_its_kept_keys() -> None:
    """2 x 100 keys of 4096 x 2 B out and in, 6 flop an element; prompts are left alone."""
    keys = 2 * 100 * 8192
    ops = decode("llama-2-7b", "streaming_llm(window=96)", 1000.0)
    the(ops, "kv.rotate", read_bytes=keys, write_bytes=keys, flop=3 * keys, operand=Operand.KV, count=32)
    assert "kv.rotate" not in roles(prompt("llama-2-7b", "streaming_llm(window=96)", 1000.0))


def test_snapkv_gathers_once_and_only_long_prompts() -> None:
    """2 x 1024 tokens in runs of one head's 256 B; best of 2 x 8192 for each of 32 heads; a prompt of 500 is kept."""
    ops = prompt("llama-2-7b", "snapkv", 8192.0)
    the(ops, "kv.compact", read_bytes=2 * 1024 * MHA, run_bytes=256, count=32, operand=Operand.KV)
    the(ops, "kv.top_k", read_bytes=2 * 8192 * 32 * 4, write_bytes=2 * 1024 * 32 * 4, count=32)
    short = prompt("llama-2-7b", "snapkv", 500.0)
    for role in ("kv.compact", "kv.top_k", "kv.observe"):
        the(short, role, count=0)


def test_a_merged_cache_keeps_no_scores() -> None:
    """A fifth of 1600 tokens and nothing beside them; H2O's own 4 B per token and head come on top."""
    assert stored("llama-2-7b", "elastic_cache", 1600) == pytest.approx(LAYERS * 320 * MHA)
    assert stored("llama-2-7b", "h2o(keep=0.2)", 1600) == pytest.approx(LAYERS * 320 * (MHA + 128))


@pytest.mark.parametrize(("every", "dense"), [(0, 0), (1, 32), (2, 16), (31, 2)])
def test_s2_attention_leaves_every_nth_layer_dense(every: int, dense: int) -> None:
    """Layers 0, n, 2 n ...; the others keep 1024 + 16,384 / 16 = 2048 of 17,408 tokens."""
    ops = decode("llama-2-7b", f"s2_attention(dense_every={every})", 17_408.0)
    full = sum(np.sum(o.count) for o in ops if isinstance(o, Attention) and o.attended is None)
    assert full == dense
    tokens = dense * 17_408 + (32 - dense) * 2048
    assert stored("llama-2-7b", f"s2_attention(dense_every={every})", 17_408) == MHA * tokens


# --- selection per step ----------------------------------------------------------------------------------------


def test_quest_picks_pages() -> None:
    """2 x 512 pages of 16 tokens (minimum and maximum: 16,384 B), 4 flop for each of 4096 channels, 32 heads' scores;
    64 of them picked by each head."""
    ops = decode("llama-2-7b", "quest(budget=1024,dense_layers=0)", 8192.0)
    the(ops, "kv.estimate", read_bytes=1024 * MHA, write_bytes=1024 * 128, flop=1024 * 4 * 4096)
    the(
        ops,
        "kv.top_k",
        read_bytes=1024 * 32 * 4,
        write_bytes=2 * 64 * 32 * 4,
        select_elements=1024 * 32,
        select_rows=64,
    )
    the(ops, "attn.core", run_bytes=16 * 256)


def test_double_sparsity_unites_a_groups_tokens() -> None:
    """Four query heads pick 1024 tokens apart: at most 4096 are read; 2 B x 16 channels of 8 heads, scored by 32."""
    for gqa, read in (("union", 4096.0), ("shared", 1024.0)):
        ops = decode("llama-3.1-8b", f"double_sparsity(gqa={gqa})", 8192.0)
        the(ops, "attn.core", attended=read)
        the(ops, "kv.estimate", read_bytes=2 * 8192 * 256, flop=2 * 8192 * 2 * 32 * 16)
        the(ops, "kv.top_k", write_bytes=2 * 1024 * 32 * 4)


def test_double_sparsity_prompt_writes_labels() -> None:
    """2 x 100 tokens of 16 x 2 B for each of 32 heads; offloaded, the cache leaves too, beside the block."""
    ops = prompt("llama-2-7b", "double_sparsity_offload", 100.0)
    the(ops, "kv.label", read_bytes=200 * 1024, write_bytes=200 * 1024)
    the(ops, "kv.store", write_bytes=200 * MHA, beside=BLOCK, tier="host")
    assert "kv.estimate" not in roles(ops)
    the(decode("llama-2-7b", "double_sparsity_offload", 8192.0), "kv.fetch", chunk_bytes=512, beside=BLOCK)


def test_short_prompts_of_trained_selections_are_dense() -> None:
    """NSA's branches and InfLLM-V2's scores start above their budgets of 1536 and 6144 tokens."""
    for policy, used in (
        ("nsa", ("kv.estimate.prefill", "attn.window")),
        ("nsa(order=block)", ("kv.estimate.prefill", "kv.scores", "kv.top_k")),
        ("infllm_v2", ("kv.estimate.prefill", "kv.top_k")),
    ):
        for tokens, count in ((1000.0, 0), (8192.0, LAYERS)):
            ops = prompt("llama-3.1-8b", policy, tokens)
            for role in used:
                the(ops, role, count=count)


@pytest.mark.parametrize(
    ("policy", "budget", "waste", "kernel"),
    # Groups of 4 heads are padded to 16 rows by NSA's port, whose window has a kernel of its own.
    [("nsa", 1024, 4.0, "NSA/Triton top-k"), ("infllm_v2", 6144, 1.0, "NSA/InfLLMv2")],
)
def test_blocks_are_attended_by_the_measured_kernel(policy: str, budget: int, waste: float, kernel: str) -> None:
    """P = 8192: a query sees at most `budget` tokens of the blocks; a short prompt is dense."""
    pairs = budget * (budget + 1) / 2 + (8192 - budget) * budget
    for tokens, counts in ((8192.0, [0, LAYERS]), (1000.0, [LAYERS, 0])):
        cores = [o for o in prompt("llama-3.1-8b", policy, tokens) if o.role == "attn.core.prefill"]
        assert [o.count for o in cores] == counts
        assert [o.kernel for o in cores if isinstance(o, Attention)] == ["", kernel]
        if tokens == 8192.0:
            assert isinstance(cores[1], Attention)
            assert cores[1].pair_keep == pytest.approx(waste * pairs / (8192 * 8193 / 2))


@pytest.mark.parametrize(
    ("model", "policy", "per_token"),
    [
        ("llama-3.1-8b", "nsa", GQA * (1 + 1 / 16)),
        ("llama-3.1-8b", "infllm_v2", GQA * (1 + 1 / 32)),
        ("deepseek-v3", "dsa", 1152 + 132),
    ],
)
def test_what_trained_selections_keep_beside_the_cache(model: str, policy: str, per_token: float) -> None:
    layers = find_model(model).n_layers
    assert stored(model, policy, 1600) == pytest.approx(layers * 1600 * per_token)


def test_dsa_projects_its_index() -> None:
    """64 x 128 queries out of the 1536 of Q, one key of 128 and 64 head weights out of the width of 7168; two rows."""
    ops = decode("deepseek-v3", "dsa", 4096.0)
    the(ops, "indexer.q", m=2, n=8192, k=1536, overhead=True)
    the(ops, "indexer.k", m=2, n=192, k=7168, overhead=True)


# --- the prompt ------------------------------------------------------------------------------------------------


def test_minference_searches_lines() -> None:
    """2 x 2 x 10,000 columns and diagonals of each head, 7096 picked; its blocks of 64 queries load lines of their own:
    2 x pairs x 512 B / 64. 32 x 32 times."""
    ops = prompt("llama-3.1-8b", "minference", 10_000.0)
    the(ops, "kv.top_k", read_bytes=40_000 * 4, write_bytes=2 * 7096 * 4, select_rows=4, count=1024)
    pairs = 7096 * 7097 / 2 + 2904 * 7096
    the(ops, "attn.core.prefill", tile_bytes=2 * pairs * 512 / 64, count=1024)


def test_dhsa_scores_chunks() -> None:
    """Chunks of 256: 1 / 65,536 of Q K^T, half of the dense core; 64 x 64 chunks of each prompt and head, 8 picked."""
    dense = the(prompt("llama-3.1-8b", "dense", 16_384.0), "attn.core.prefill")
    assert isinstance(dense, Attention)
    ops = prompt("llama-3.1-8b", "dhsa", 16_384.0)
    the(ops, "kv.estimate.prefill", flop=float(dense.flop) / 2 / 65_536)
    the(ops, "kv.top_k", read_bytes=2 * 4096 * 128, write_bytes=2 * 64 * 8 * 128, select_rows=128 * 32)
    moved = 2 * 16_384 * (8192 + 2048)
    the(ops, "kv.pool", read_bytes=moved, write_bytes=moved / 256)


# --- contextual ------------------------------------------------------------------------------------------------


def test_dejavu_predicts_ahead_and_gathers() -> None:
    """Two rows of 16,384 scores of 2 B, a quarter picked as 4 B indices, beside the attention; the predictor beside the
    all-reduces. QKV and up are gathered along n, O and down along k; heads in runs of 128 x 8192 B."""
    ops = decode("opt-6.7b", "dejavu(keep=0.25)", 100.0)
    the(
        ops,
        "predictor.mlp.top_k",
        read_bytes=2 * 16_384 * 2,
        write_bytes=2 * 16_384 * 0.25 * 4,
        select_elements=2 * 16_384,
        select_rows=2,
        beside=("attn.core", "attn.o", "attn.all_reduce"),
        count=32,
    )
    the(ops, "predictor.mlp.in", m=2, n=1000, k=4096, beside=("attn.all_reduce", "mlp.all_reduce"))
    the(ops, "predictor.attn.top_k", beside=("attn.all_reduce", "mlp.all_reduce"))
    for role, axis, run in (
        ("attn.qkv", "n", 128 * 8192),
        ("attn.o", "k", 128 * 8192),
        ("mlp.up", "n", 8192),
        ("mlp.down", "k", 8192),
    ):
        op = the(ops, role, gathered=axis, run_bytes=run)
        assert isinstance(op, Linear)
        assert op.flop_keep == op.read_keep < 1.0


def test_thresholds_gather_their_rows() -> None:
    """CATS: rows of 4096 x 2 B along n of gate and up, k of down; TEAL: 512 x 2 B pieces.

    The timings of CATS's kernels contain the threshold; in the ablation it is a pass over 2 x 11,008 x 2 B.
    """
    ops = decode("llama-2-7b", "cats", 100.0)
    the(ops, "mlp.gate_up", gathered="n", run_bytes=8192, kernel="CATS/Triton", whole=0.5)
    the(ops, "mlp.down", gathered="k", run_bytes=8192, kernel="CATS/Triton")
    assert "mlp.mask" not in roles(ops)
    listed = decode("llama-2-7b", "cats(kernel=index)", 100.0)
    the(listed, "mlp.mask", read_bytes=44_032, write_bytes=44_032, count=32)
    the(listed, "mlp.gate_up", kernel="")
    the(decode("llama-2-7b", "cats+nm24", 100.0), "mlp.down", kernel="")
    the(decode("llama-2-7b", "teal", 100.0), "attn.qkv", kernel="", gathered="k", run_bytes=1024)


def test_prosparse_multiplies_its_gate_densely() -> None:
    """One dense product of 11,008 x 4096, then live outputs of up and inputs of down."""
    ops = decode("llama-2-7b", "prosparse(keep=0.1)", 100.0)
    the(ops, "mlp.gate", n=11_008, k=4096, gathered=None, kernel="")
    the(ops, "mlp.up", n=11_008, gathered="n", kernel="ProSparse/up-proj")
    the(ops, "mlp.down", gathered="k", kernel="ProSparse/down-proj")


@pytest.mark.parametrize(
    ("policy", "kernel", "vector"),
    [
        ("nm24", "2:4/vendor", 1),
        ("vnm(v=128,m=10)", "V:N:M/Spatha", 128),
        ("sputnik", "Sputnik/Sputnik", 1),
        ("clasp(v=4)", "CLASP/v=4", 4),
        ("flash_llm", "", 1),
    ],
)
def test_weights_are_multiplied_by_the_kernel_of_their_software(policy: str, kernel: str, vector: int) -> None:
    the(decode("llama-2-7b", policy, 100.0), "mlp.down", kernel=kernel, vector=vector)


def test_polar_routes_heads_and_only_relu_neurons() -> None:
    """32 heads scored for two rows in all layers but the first; OPT's neurons gathered along n and k behind a router of
    16,384 outputs, a SiLU model's left dense."""
    ops = decode("opt-6.7b", "polar", 100.0)
    the(ops, "predictor.attn", m=2, n=32, k=4096, count=31)
    the(ops, "predictor.mlp.out", m=2, n=16_384, k=1024)
    the(ops, "mlp.up", gathered="n", run_bytes=8192)
    the(ops, "mlp.down", gathered="k", run_bytes=8192)
    cores = [o for o in ops if isinstance(o, Attention)]
    assert [o.head_keep for o in cores] == [o.kv_head_keep for o in cores] == [1.0, 0.5]
    silu = decode("llama-2-7b", "polar", 100.0)
    assert "predictor.mlp.in" not in roles(silu)
    the(silu, "mlp.down", gathered=None)


def test_shadowllm_predicts_the_whole_model_once() -> None:
    """1024 heads and 32 x 16,384 neurons, searched by layer: 2 x 32 scores of 2 B; neurons beside attention."""
    ops = decode("opt-6.7b", "shadowllm", 100.0)
    the(ops, "predictor.attn.out", m=2, n=32 * 32, k=2048, count=1)
    the(ops, "predictor.mlp.out", m=2, n=32 * 16_384, k=2048, count=1)
    the(ops, "predictor.attn.top_k", read_bytes=128, select_elements=64, count=32, beside=())
    beside = ("attn.core", "attn.o", "attn.all_reduce")
    the(ops, "predictor.mlp.top_k", read_bytes=65_536, count=32, beside=beside)


# --- placement -------------------------------------------------------------------------------------------------


def test_alisa_picks_fetches_and_computes_again() -> None:
    """keep 0.2 of 1000: 100 old tokens of each row, out of 2 x 1000 sums; half fetched, a tenth computed again."""
    ops = decode("llama-2-7b", "alisa(host=0.5,recompute=0.1)", 1000.0)
    the(ops, "kv.top_k", read_bytes=8000, write_bytes=800, select_elements=2000, select_rows=2)
    the(ops, "kv.fetch", tier="host", read_bytes=100 * MHA, write_bytes=MHA, chunk_bytes=MHA)
    the(ops, "kv.recompute", m=20, n=8192, k=4096, overhead=True)


def test_placed_caches_place_their_dense_window_too() -> None:
    """4-bit groups behind 128 dense tokens, 0.28125 of a token each: half of both stay, or nothing."""
    kept = LAYERS * MHA * (128 + (1600 - 128) * 0.28125)
    assert stored("llama-2-7b", "kv_quant+alisa(host=0.5)", 1600) == pytest.approx(kept / 2)
    assert stored("llama-2-7b", "kv_quant+flexgen(weights=1,kv=0.25)", 1600) == pytest.approx(kept / 4)
    assert stored("llama-2-7b", "kv_quant+lamina", 1600) == 0.0


def test_lamina_beside_the_rest_of_the_block() -> None:
    """The pool streams 2 x 1000 tokens while q, k, v of 3 x 8192 B leave and o returns."""
    beside = ("attn.", "mlp.", "norm", "moe.")
    ops = decode("llama-2-7b", "lamina", 1000.0)
    the(
        ops,
        "kv.wire",
        tier="network",
        operand=Operand.ACTIVATION,
        beside=beside,
        read_bytes=2 * 8192,
        write_bytes=2 * 3 * 8192,
    )
    the(ops, "pool.attention", tier="pool", operand=Operand.KV, beside=beside, read_bytes=2000 * MHA)


def test_shadowkv_ops() -> None:
    """Two rows of 1250 chunks: 2048 B of landmark and 2 x 4096 flop each, 32 heads' scores; 0.4 x 2048 tokens rebuilt
    per row and KV head from 160 factors, rotated, and fetched in chunks of 8 x 256 B beside that; 0.6 x 2048 move."""
    ops = decode("llama-3.1-8b", "shadowkv", 10_000.0)
    the(ops, "kv.estimate", read_bytes=2500 * 2048, write_bytes=2500 * 128, flop=2500 * 8192)
    the(ops, "kv.top_k", read_bytes=2500 * 32, write_bytes=2 * 256 * 32, select_rows=16)
    the(ops, "kv.rebuild", m=819.2, n=128, k=160, groups=2 * 8, overhead=True)
    keys = 2 * 819.2 * 2048
    the(ops, "kv.rotate", read_bytes=2 * 819.2 * 8 * 320 + keys, write_bytes=keys, run_bytes=8 * 320)
    the(ops, "kv.reorder", read_bytes=2 * 1228.8 * GQA, write_bytes=2 * 1228.8 * GQA, run_bytes=2048)
    the(ops, "kv.fetch", read_bytes=keys, chunk_bytes=2048, beside=("kv.rebuild", "kv.rotate"))
    the(ops, "attn.core", run_bytes=2048)


def test_nosa_ops() -> None:
    """2 x 625 pooled keys of 2048 B, 1.25 x 8192 flop each, 8 sets of scores; blocks of 64 are searched."""
    ops = decode("llama-3.1-8b", "nosa", 10_000.0)
    the(ops, "kv.estimate", read_bytes=1250 * 2048, flop=1250 * 1.25 * 8192, write_bytes=1250 * 32)
    the(ops, "kv.top_k", read_bytes=312.5 * 32, write_bytes=2 * 64 * 32)
    the(prompt("llama-3.1-8b", "nosa", 100.0), "kv.store", write_bytes=200 * GQA)


def test_powerinfer_ops() -> None:
    """The predictor (16,384 outputs) stands before up alone; up is gathered along n, down along k; the vector returns
    behind the last product of a block only, 2 x 4096 x 2 B, for attention too where it is placed."""
    ops = decode("opt-6.7b", "powerinfer(attn_keep=0.5,attn_hot=0.3)", 100.0)
    the(ops, "mlp.up", gathered="n")
    the(ops, "mlp.down", gathered="k")
    the(ops, "attn.o", gathered="k")
    the(ops, "predictor.mlp.out", n=16_384, count=32)
    assert [o.role for o in ops].count("predictor.mlp.out") == 1
    for role in ("attn.merge", "mlp.merge"):
        the(ops, role, read_bytes=16_384, write_bytes=16_384, operand=Operand.ACTIVATION)
        assert [o.role for o in ops].count(role) == 1
    the(ops, "attn.o.cold", beside=("attn.qkv", "attn.o"), count=32)
    order = [o.role for o in ops]
    assert order.index("predictor.mlp.out") < order.index("mlp.up") < order.index("mlp.down")
    assert order.index("attn.o.cold") < order.index("attn.merge")


def test_llm_in_flash_ops() -> None:
    """The predictor once, before up; 2.4 % of the rows are loaded as weights, 32 reads at once, and copied."""
    ops = decode("opt-6.7b", "llm_in_flash", 100.0)
    order = [o.role for o in ops]
    assert order.count("predictor.mlp.in") == 1
    assert order.index("predictor.mlp.in") < order.index("mlp.up")
    the(ops, "predictor.mlp.in", n=240, count=32)
    the(ops, "mlp.up.load", operand=Operand.WEIGHT, in_flight=32, tier="ssd")
    the(ops, "mlp.up.place", operand=Operand.WEIGHT)
    the(ops, "mlp.down", gathered="k", resident=0.24)
    assert "predictor.mlp.in" not in roles(decode("opt-6.7b", "llm_in_flash(rank=0)", 100.0))


def test_flexgen_ops() -> None:
    """A quarter of the KV here: three quarters of 2 x 100 tokens come, three quarters of the 2 new ones leave."""
    ops = decode("opt-6.7b", "flexgen(weights=0.5,kv=0.25)", 100.0)
    the(ops, "kv.load", read_bytes=0.75 * 200 * MHA, write_bytes=0.75 * 2 * MHA, operand=Operand.KV, beside=("",))
    the(ops, "mlp.up.load", operand=Operand.WEIGHT, read_bytes=4096 * 16_384, tier="host")
    cpu = decode("opt-6.7b", "flexgen(weights=1,kv=0.25,attention=cpu)", 100.0)
    the(cpu, "attn.host", read_bytes=0.75 * 200 * MHA, operand=Operand.KV)
    vectors = 0.75 * 2 * 8192
    the(cpu, "kv.load", read_bytes=vectors, write_bytes=vectors + 0.75 * 2 * MHA, operand=Operand.ACTIVATION)
    the(cpu, "attn.core", kv_head_keep=0.25, head_keep=0.25)
    the(prompt("opt-6.7b", "flexgen(kv=0.25)", 100.0), "kv.store", write_bytes=0.75 * 200 * MHA)


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ("flexgen(attention=cpu,tier=cxl)", "use tier=host"),
        ("flexgen(attention=cpu,tier=host)", None),
        ("flexgen(attention=gpu,tier=cxl)", None),
    ],
)
def test_the_cpu_attends_to_host_memory_only(policy: str, why: str | None) -> None:
    said = lowered("opt-6.7b", policy).why_not()
    assert said is None if why is None else why in str(said)


# --- shapes and formats ----------------------------------------------------------------------------------------


def test_rps_reads_chunks_of_a_small_table() -> None:
    """Every weight is read, in chunks of 256 x 2 B, from a table of a tenth of the matrix."""
    ops = decode("llama-2-7b", "rps(keep=0.1)", 100.0)
    up = the(ops, "mlp.gate_up", run_bytes=512, shared=0.1, read_keep=1)
    assert memory.stored_bytes(up) == pytest.approx(0.1 * LAYERS * 2 * 4096 * 11_008 * 2)


def test_cfsp_narrows_what_stands_between_its_products() -> None:
    """80 % of 11,008 neurons: gate and up read for two rows, their product written, 2 B each."""
    ops = decode("llama-2-7b", "cfsp(keep=0.8)", 100.0)
    width = 0.8 * 11_008
    the(ops, "mlp.gate_up", n=2 * width, k=4096)
    the(ops, "mlp.act", read_bytes=2 * 2 * width * 2, write_bytes=2 * width * 2)
    the(ops, "mlp.down", n=4096, k=width)


def test_gqsa_computes_in_its_own_format() -> None:
    down = the(decode("llama-2-7b", "gqsa", 100.0), "mlp.down")
    assert isinstance(down, Linear)
    assert down.fmt.name == "w4a16"


def test_flightllm_multiplies_8_bit_activations() -> None:
    down = the(decode("llama-2-7b", "flightllm", 100.0), "mlp.down")
    assert isinstance(down, Linear)
    assert (down.fmt.math, down.fmt.act_bytes) == (DType.INT8, 1.0)


def test_sparse_marlin_reads_three_bits_and_a_scale() -> None:
    """(4 + 2) / 2 bits and 16 per 128 weights: 3.125 bits of every dense weight, half of the multiply-adds."""
    down = the(decode("llama-2-7b", "sparse_marlin", 100.0), "mlp.down", flop_keep=0.5, nm24=True)
    assert isinstance(down, Linear)
    assert down.weight_read_bytes == 11_008 * 4096 * 3.125 / 8
    assert down.fmt.name == "w4a16"


def test_ftp_attends_among_what_it_keeps() -> None:
    """700 of 1000 tokens meet 700: 700 x 701 / 2 pairs of 32 heads, two prompts; a step has 1.4 rows of two."""
    core = the(
        prompt("llama-2-7b", "ftp(keep=0.7)", 1000.0),
        "attn.core.prefill",
        q_len=700,
        kv_len=700,
        batch=2,
        attended=None,
    )
    assert isinstance(core, Attention)
    assert float(core.flop) == pytest.approx(2 * 4 * 4096 * 700 * 701 / 2)
    the(decode("llama-2-7b", "ftp(keep=0.7)", 1000.0), "attn.core", attended=700, batch=1.4)


@pytest.mark.parametrize(
    ("model", "policy", "why"),
    [
        ("mixtral-8x7b", "cfsp", "published for dense FFNs only, not for experts"),
        ("mixtral-8x7b", "sparse_marlin", "no published 2:4 kernel for fused experts"),
    ],
)
def test_reasons_are_sentences(model: str, policy: str, why: str) -> None:
    assert lowered(model, policy).why_not() == why
