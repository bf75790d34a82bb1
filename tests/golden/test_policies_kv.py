"""Bytes and flop of the KV policies by hand; each test's text is the calculation.

Llama-2-7B: 32 layers, 32 heads of 128, fp16: 16,384 B of K and V per token and layer. Llama-3.1-8B: 32 layers,
32 query and 8 KV heads of 128: 4,096 B.
"""

from __future__ import annotations

import numpy as np
import pytest

from simulator.base.dtypes import FORMATS
from simulator.inference import memory
from simulator.inference.lowering import Lowering
from simulator.model.hub import find_model
from simulator.ops.ops import Attention, Elementwise, Linear, Op
from simulator.ops.step import decode_step, prefill_step
from simulator.ops.traffic import Operand
from simulator.policies import parse

MHA, GQA = 16_384, 4_096
LAYERS = 32


def lowered(model: str, policy: str = "dense") -> Lowering:
    return Lowering(find_model(model).in_one_format(), parse(policy), FORMATS["fp16"], 2.0)


def decode(model: str, policy: str, context: float, prompt: float | None = None) -> list[Op]:
    return lowered(model, policy).ops(decode_step(1.0, context, prompt))


def prompt(model: str, policy: str, tokens: float) -> list[Op]:
    return lowered(model, policy).ops(prefill_step(1.0, tokens))


def of(ops: list[Op], role: str) -> list[Op]:
    found = [o for o in ops if o.role == role]
    assert found, f"no op {role} among {sorted({o.role for o in ops})}"
    return found


def total(ops: list[Op], role: str, what: str) -> float:
    """Sum of `what` over the ops of a role and their repetitions."""
    return float(sum(np.sum(getattr(o, what) * np.asarray(o.count)) for o in of(ops, role)))


def kv_read(ops: list[Op]) -> float:
    cores = [o for o in ops if isinstance(o, Attention) and not o.overhead]
    return float(sum(np.sum(o.kv_read_bytes * np.asarray(o.count)) for o in cores))


def stored(model: str, policy: str, tokens: float, prompt: float | None = None) -> float:
    return float(memory.kv_bytes_per_sequence(lowered(model, policy), tokens, prompt=prompt))


def core(ops: list[Op]) -> Attention:
    return next(o for o in ops if isinstance(o, Attention) and not o.overhead)


# --- smaller tokens --------------------------------------------------------------------------------------------


def test_kivi_is_two_bits_and_four_bytes_per_group_of_32() -> None:
    """2/8 + 4/32 = 0.375 B of 2 B; S = 4096, newest 128 dense: 128 + 3968 x 0.1875 tokens' worth."""
    assert kv_read(decode("llama-2-7b", "kivi", 4096.0)) == LAYERS * MHA * (128 + 3968 * 0.1875)
    assert stored("llama-2-7b", "kivi", 4096) == LAYERS * MHA * (128 + 3968 * 0.1875)
    assert parse("kivi(bits=4)").spelling == "kivi(bits=4)"


def test_cskv_reads_a_fifth_and_rebuilds_the_rest() -> None:
    """rho 0.2, window 32, S = 4096: 32 + 4064/5 tokens' worth; 80 % less, with 4 bits 95 % (published both).

    Rebuild per layer: 4064 rows x rank 819.2 x 2 x 4096 columns x 2 flop = 5.45e10.
    """
    ops = decode("llama-2-7b", "cskv", 4096.0)
    assert kv_read(ops) == pytest.approx(LAYERS * MHA * (32 + 4064 * 0.2))
    assert total(ops, "rebuild.kv", "flop") == pytest.approx(LAYERS * 4 * 4064 * 0.2 * 4096**2)
    for bits, left in ((16, 0.2), (4, 0.05)):
        share = stored("llama-2-7b", f"cskv(window=0,bits={bits})", 4096) / (LAYERS * MHA * 4096)
        assert share == pytest.approx(left)


def test_zipvl_mixes_four_and_two_bits() -> None:
    """28.6 % important: (0.286 x 4 + 0.714 x 2)/8 + 4/128 = 0.35275 B of 2 B: 5.67 times smaller (published 6.18
    without scales: 2 / 0.3215 = 6.22). The prompt computes 0.286^2 = 8.2 % of the pairs."""
    assert kv_read(decode("llama-2-7b", "zipvl", 1600.0)) == pytest.approx(LAYERS * MHA * 1600 * 0.35275 / 2)
    dense, sparse = (core(prompt("llama-2-7b", p, 1600.0)) for p in ("dense", "zipvl"))
    assert sparse.flop == pytest.approx(dense.flop * 0.286**2)


# --- fewer tokens ----------------------------------------------------------------------------------------------


def test_h2o_keeps_a_fifth_and_counts_its_scores() -> None:
    """S = 2000, keep 0.2: 400 tokens of 16,384 B. Sums: 32 heads x 400 x 8 B read and written; the cache holds
    4 B more per token and KV head: 400 x (16384 + 128)."""
    ops = decode("llama-2-7b", "h2o(keep=0.2)", 2000.0)
    assert kv_read(ops) == LAYERS * MHA * 400
    assert total(ops, "kv.scores", "read_bytes") == LAYERS * 32 * 400 * 8
    assert stored("llama-2-7b", "h2o(keep=0.2)", 2000) == pytest.approx(LAYERS * 400 * (MHA + 32 * 4))


def test_h2o_writes_the_prompts_probabilities() -> None:
    """P = 1000: 1000^2 x 32 heads x 2 B written, and read for the column sums."""
    ops = prompt("llama-2-7b", "h2o(keep=0.2)", 1000.0)
    assert total(ops, "kv.scores", "write_bytes") == LAYERS * 1000**2 * 32 * 2


def test_elastic_cache_merges_once_and_tracks_nothing() -> None:
    """P = 1000: the whole KV is read and a fifth written back; a decode step has no scores."""
    ops = prompt("llama-2-7b", "elastic_cache", 1000.0)
    assert total(ops, "kv.merge", "read_bytes") == LAYERS * MHA * 1000
    assert total(ops, "kv.merge", "write_bytes") == pytest.approx(LAYERS * MHA * 200)
    later = decode("llama-2-7b", "elastic_cache", 1000.0)
    assert kv_read(later) == pytest.approx(LAYERS * MHA * 200)
    assert not [o for o in later if o.role.startswith("kv.")]


@pytest.mark.parametrize(("context", "read"), [(16_384.0, 1024), (16_484.0, 1124), (800.0, 800)])
def test_snapkv_reads_its_budget_and_what_was_generated(context: float, read: int) -> None:
    """Prompt 16,384 (or 700), budget 1024: 1024 + generated; a prompt inside the budget stays whole."""
    asked = 16_384.0 if context > 1000 else 700.0
    assert kv_read(decode("llama-2-7b", "snapkv", context, asked)) == LAYERS * MHA * read


def test_snapkv_votes_with_its_last_rows() -> None:
    """P = 8192, 32 rows: Q K^T over the causal part, half of an attention's products: the dense core of 32 rows
    does 4 x 4096 x (32 x 8160 + 32 x 33/2) flop, the vote half of it; 1024 tokens are gathered and written."""
    ops = prompt("llama-2-7b", "snapkv", 8192.0)
    assert total(ops, "kv.observe", "flop") == LAYERS * 0.5 * 4 * 4096 * (32 * 8160 + 32 * 33 / 2)
    assert total(ops, "kv.compact", "read_bytes") == LAYERS * MHA * 1024


def test_snapkv_memory_is_budget_and_output() -> None:
    """Prompt 8192 + output 128: (1024 + 128) tokens."""
    assert stored("llama-2-7b", "snapkv", 8320, 8192) == LAYERS * MHA * (1024 + 128)


def test_pyramidkv_falls_over_depth_and_keeps_its_mean() -> None:
    """Mean 512: first 2 x 512 - 25.6 = 998.4, last 25.6; four bands of eight layers, first band's middle at
    1/8 of the way: 998.4 - 972.8/8 = 876.8."""
    ops = decode("llama-2-7b", "pyramidkv", 16_384.0, 16_384.0)
    assert kv_read(ops) == pytest.approx(LAYERS * MHA * 512)
    reads = [float(np.sum(o.attended)) for o in ops if isinstance(o, Attention)]
    assert len(reads) == 4
    assert reads[0] == pytest.approx(876.8)
    assert reads == sorted(reads, reverse=True)


def test_pyramidkv_memory() -> None:
    """Llama-3.1-8B, prompt 8192, 512 per layer on average: 512 x 131,072 B = 67 MB for one sequence."""
    assert stored("llama-3.1-8b", "pyramidkv", 8192, 8192) == pytest.approx(512 * 131_072)


def test_uncomp_runs_head_groups_as_kernels() -> None:
    """Two groups of heads: twice the calls, the same bytes as one budget of 512."""
    ops = decode("llama-2-7b", "uncomp", 8192.0, 8192.0)
    assert kv_read(ops) == LAYERS * MHA * 512
    assert float(np.sum(core(ops).count)) == 2 * LAYERS


def test_moa_sees_half_of_the_context() -> None:
    """keep 0.5: S/2 tokens read and kept; P = 4096 queries see 1 ... 2048 tokens, then 2048: 6,292,480 pairs, three
    quarters of 8,390,656."""
    assert kv_read(decode("llama-2-7b", "moa", 4096.0)) == LAYERS * MHA * 2048
    assert stored("llama-2-7b", "moa", 4096) == LAYERS * MHA * 2048
    assert kv_read(decode("llama-2-7b", "moa", 48.0)) == LAYERS * MHA * 48  # inside the sinks
    assert core(prompt("llama-2-7b", "moa", 4096.0)).flop == 4 * 4096 * 6_292_480


def test_s2_attention_shares_blocks_between_heads() -> None:
    """Stride 16, 1024 local tokens, S = 17,408: 1024 + 16,384/16 = 2048 tokens, read and kept."""
    assert kv_read(decode("llama-2-7b", "s2_attention", 17_408.0)) == LAYERS * MHA * 2048
    assert stored("llama-2-7b", "s2_attention", 17_408) == LAYERS * MHA * 2048
    half = decode("llama-2-7b", "s2_attention(dense_every=2)", 17_408.0)
    assert kv_read(half) == LAYERS * MHA * (2048 + 17_408) / 2


# --- selection per step ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "near", "pairs"), [(1000, 500_500, 500_500), (1500, 1_012_224, 1_125_750), (4096, 3_670_528, 8_390_656)]
)
def test_s2_attention_cuts_the_prompts_pairs(tokens: int, near: int, pairs: int) -> None:
    """1,500 tokens: 1024 x 1025 / 2 + 476 x 1024 = 1,012,224 of 1500 x 1501 / 2 = 1,125,750 pairs lie within the
    1024 newest, one in 16 of the others is computed."""
    op = core(prompt("llama-2-7b", "s2_attention", float(tokens)))
    assert op.flop == pytest.approx(4 * 4096 * (near + (pairs - near) / 16))


def test_a_shard_of_the_context_is_quantised() -> None:
    """32,000 tokens: 1024 + 30,976 / 16 = 2,960 kept, 128 of them in 16 bit, 2,832 at (4/8 + 4/64) / 2 = 0.28125."""
    kept = 128 + 2832 * 0.28125
    assert stored("llama-2-7b", "s2_attention+kv_quant", 32_000) == LAYERS * MHA * kept


def test_moa_sinks_hold_in_the_prompt() -> None:
    """100 tokens at keep 0.5: 64 sinks exceed the span of 50: 64 x 65 / 2 + 36 x 64 = 4,384 of 5,050 pairs."""
    assert core(prompt("llama-2-7b", "moa", 100.0)).pair_keep == pytest.approx(4384 / 5050)


def test_kinetics_scores_one_mean_key_per_page() -> None:
    """S = 16,384, page 16: K of one token per page, 1024 x 2048 B of 4096; then 1024 tokens (64 pages), no union."""
    ops = decode("llama-3.1-8b", "kinetics", 16_384.0)
    assert total(ops, "kv.estimate", "read_bytes") == LAYERS * 1024 * GQA / 2
    assert kv_read(ops) == LAYERS * GQA * 1024
    assert stored("llama-3.1-8b", "kinetics", 16_384) == LAYERS * GQA * 16_384 * (1 + 1 / 32)


def test_double_sparsity_labels() -> None:
    """16 of 128 channels of K in fp16: 32 heads x 16 x 2 B = 1024 B per token, 1/16 of K and V; 4 bit: 256 B."""
    ops = decode("llama-2-7b", "double_sparsity", 8192.0)
    assert total(ops, "kv.estimate", "read_bytes") == LAYERS * 8192 * 1024
    assert kv_read(ops) == LAYERS * MHA * 1024
    assert core(ops).run_bytes == 256
    assert stored("llama-2-7b", "double_sparsity", 8192) == LAYERS * 8192 * (MHA + 1024)
    small = decode("llama-2-7b", "double_sparsity(label_bits=4)", 8192.0)
    assert total(small, "kv.estimate", "read_bytes") == LAYERS * 8192 * 256


@pytest.mark.parametrize(("context", "published"), [(8192, 2048), (16_384, 2560), (32_768, 3584), (65_536, 5632)])
def test_nsa_reads_what_its_table_says(context: int, published: int) -> None:
    """S/16 compressed tokens + 16 x 64 selected + 512 window (arXiv:2502.11089, table 4; S - 32 over 16 there)."""
    ops = decode("llama-3.1-8b", "nsa", float(context))
    tokens = (kv_read(ops) + total(ops, "kv.estimate", "read_bytes")) / (LAYERS * GQA)
    assert tokens == context / 16 + 1536
    assert tokens == pytest.approx(published, rel=0.001)


def test_nsa_pads_small_groups_and_fsa_reduces_partial_outputs() -> None:
    """P = 8192, four heads a group: pairs of 1024 a query, 1024 x 1025/2 + 7168 x 1024, times 16/4 in NSA, whose window
    is a kernel of its own; FSA sees 1536 at once and writes 8192 x 32 heads x 128 x 4 B x 16 partial outputs."""
    blocks = next(o for o in prompt("llama-3.1-8b", "nsa", 8192.0) if isinstance(o, Attention) and "top-k" in o.kernel)
    assert blocks.flop == pytest.approx(4 * (1024 * 1025 / 2 + 7168 * 1024) * 4 * 4096)
    flop = (1536 * 1537 / 2 + 6656 * 1536) * 4 * 4096
    ops = prompt("llama-3.1-8b", "fsa", 8192.0)
    assert core(ops).flop == pytest.approx(flop)
    assert total(ops, "attn.reduce", "write_bytes") == LAYERS * 8192 * 32 * 128 * 4 * 16


def test_nsa_keeps_its_compressed_scores() -> None:
    """P = 8192: the branch computes 1/16 of a causal attention, then Q K^T over all 8192 x 512 pairs of each head. Of
    these scores 8192 x 512 for each of 8 KV heads, 4 B each, are zeroed, written and read; a quarter as many sums are
    zeroed and written."""
    ops = prompt("llama-3.1-8b", "fsa", 8192.0)
    scores = 8192 * 512 * 8 * 4
    assert total(ops, "kv.scores", "read_bytes") == LAYERS * scores
    assert total(ops, "kv.scores", "write_bytes") == LAYERS * 2 * 1.25 * scores
    dense = core(prompt("llama-3.1-8b", "dense", 8192.0)).flop
    assert total(ops, "kv.estimate.prefill", "flop") == pytest.approx(LAYERS * dense / 16)
    assert total(ops, "kv.estimate.scores", "flop") == pytest.approx(LAYERS * 2 * 32 * 128 * 8192 * 512)


def test_infllm_v2_attends_96_blocks() -> None:
    """96 x 64 = 6144 tokens; pooled keys S/16 x 2048 B; the prompt's scores are 1.25/32 of its causal attention."""
    ops = decode("llama-3.1-8b", "infllm_v2", 65_536.0)
    assert kv_read(ops) == LAYERS * GQA * 6144
    assert total(ops, "kv.estimate", "read_bytes") == LAYERS * 4096 * GQA / 2
    dense = core(prompt("llama-3.1-8b", "dense", 16_384.0)).flop
    scores = total(prompt("llama-3.1-8b", "infllm_v2", 16_384.0), "kv.estimate.prefill", "flop")
    assert scores == pytest.approx(LAYERS * dense * 1.25 / 32)
    assert kv_read(decode("llama-3.1-8b", "infllm_v2", 6000.0)) == LAYERS * GQA * 6000


def test_dsa_scores_every_token_with_132_bytes() -> None:
    """DeepSeek-V3, S = 65,536: indexer key 128 fp8 + 4 B scale per token and layer; 64 heads x 128 x 2 flop each;
    2048 latents of 1152 B are read."""
    ops = decode("deepseek-v3", "dsa", 65_536.0)
    assert total(ops, "kv.index", "kv_read_bytes") == 61 * 65_536 * 132
    assert total(ops, "kv.index", "flop") == 61 * 65_536 * 64 * 128 * 2
    assert kv_read(ops) == 61 * 2048 * 1152
    assert total(ops, "indexer.q", "weight_read_bytes") == 61 * 1536 * 64 * 128 * 2


# --- the prompt ------------------------------------------------------------------------------------------------


def bounded(tokens: float, budget: float) -> float:
    """Causal pairs of a prompt when a query sees at most `budget` tokens."""
    return budget * (budget + 1) / 2 + (tokens - budget) * budget


def test_minference_lines_per_query() -> None:
    """1000 vertical + 6096 slash = 7096 tokens a query at P = 100,000; 64 rows meet all keys, Q K^T only; 32 heads in
    turn."""
    ops = prompt("llama-3.1-8b", "minference", 100_000.0)
    assert core(ops).flop == pytest.approx(4 * 128 * bounded(100_000, 7096))
    assert core(ops).count == LAYERS * 32
    assert total(ops, "kv.observe", "flop") == pytest.approx(LAYERS * 2 * 4096 * 64 * 100_000)
    assert not core(ops).graph_safe


def test_sample_attention_pays_its_sample() -> None:
    """3 % sampled rows and the 20 % of pairs asked for."""
    dense = core(prompt("llama-3.1-8b", "dense", 50_000.0)).flop
    ops = prompt("llama-3.1-8b", "sample_attention(keep=0.2)", 50_000.0)
    assert core(ops).flop == pytest.approx(0.2 * dense)
    assert total(ops, "kv.estimate.prefill", "flop") == pytest.approx(LAYERS * 0.03 * dense)


def test_dhsa_scores_chunk_means() -> None:
    """Chunks of 256: (P/256)^2 scores a head, written as 4 B; each query attends to 2048 tokens."""
    ops = prompt("llama-3.1-8b", "dhsa", 16_384.0)
    assert core(ops).flop == pytest.approx(4 * 4096 * bounded(16_384, 2048))
    pick = of(ops, "kv.top_k")[0]
    assert isinstance(pick, Elementwise)
    assert float(np.sum(pick.read_bytes)) == 64 * 64 * 32 * 4


def one(ops: list[Op], role: str) -> tuple[float, float]:
    """Bytes of the KV operand of a single call (read, written)."""
    access = of(ops, role)[0].traffic().access[Operand.KV]
    return float(np.sum(access.read_bytes)), float(np.sum(access.write_bytes))


def test_scoring_passes_read_keys_and_store_nothing() -> None:
    """Llama-3.1-8B, K of a token 2048 B. P = 16,384: InfLLM-V2 reads one pooled key in 16 tokens, DHSA one in 256,
    SnapKV and the sample all of them; NSA one K and V in 16 of 4096 B, and that K once more. None writes K or V or an
    output but NSA's branch; Q is read."""
    p, key = 16_384, 2048
    for policy, role, read in (
        ("infllm_v2", "kv.estimate.prefill", p / 16 * key),
        ("dhsa", "kv.estimate.prefill", p / 256 * key),
        ("snapkv", "kv.observe", p * key),
        ("sample_attention", "kv.estimate.prefill", p * key),
        ("zipvl", "kv.probe", p * key),
        ("fsa", "kv.estimate.prefill", p / 16 * 2 * key),
        ("fsa", "kv.estimate.scores", p / 16 * key),
    ):
        ops = prompt("llama-3.1-8b", policy, float(p))
        assert one(ops, role) == (pytest.approx(read), 0.0), policy
        out = of(ops, role)[0].traffic().access[Operand.ACTIVATION].write_bytes
        assert np.sum(out) == (p * 8192 if (policy, role) == ("fsa", "kv.estimate.prefill") else 0.0), policy
        cores = [o.traffic().access[Operand.KV] for o in of(ops, "attn.core.prefill")]
        assert {(float(a.read_bytes), float(a.write_bytes)) for a in cores} == {(p * GQA, p * GQA)}


def test_the_index_of_dsa_is_stored() -> None:
    """132 B per token and layer are written by the indexer, and every one is read."""
    assert one(prompt("deepseek-v3", "dsa", 4096.0), "kv.index") == (4096 * 132, 4096 * 132)


def test_ftp_computes_the_tokens_it_keeps() -> None:
    """keep 0.7, P = 1000: 700 rows in every product of a block, 1000 before and after; decode reads the weights
    with probability 0.7 at batch 1 and 1 - 0.3^2 = 0.91 at batch 2."""
    ops = prompt("llama-2-7b", "ftp(keep=0.7)", 1000.0)
    assert {float(np.sum(o.m)) for o in ops if isinstance(o, Linear)} == {700.0, 1.0}
    for rows, share in ((1.0, 0.7), (2.0, 0.91)):
        step = lowered("llama-2-7b", "ftp(keep=0.7)").ops(decode_step(rows, 1000.0))
        down = next(o for o in step if o.role == "mlp.down")
        assert isinstance(down, Linear)
        assert down.weight_read_bytes == pytest.approx(share * 11_008 * 4096 * 2)
    assert stored("llama-2-7b", "ftp(keep=0.7)", 1600) == pytest.approx(LAYERS * MHA * 1120)


def test_vision_tokens_are_ranked_once() -> None:
    """P = 1000: the last row against all keys in layer 2 alone, 32 heads x 128 x 2 flop and 8192 B of K each; the best
    450 of 900 vision tokens."""
    ops = prompt("llama-2-7b", "vision_tokens", 1000.0)
    assert total(ops, "kv.observe", "flop") == 1000 * 32 * 128 * 2
    assert total(ops, "kv.observe", "kv_read_bytes") == 1000 * 8192
    assert total(ops, "kv.top_k", "select_elements") == 900
    assert total(ops, "kv.top_k", "write_bytes") == 450 * 4


def test_vision_tokens_leave_after_layer_two() -> None:
    """90 % of the prompt are vision tokens, half of them dropped: 0.55 P in 30 of 32 layers, generated ones stay."""
    ops = prompt("llama-2-7b", "vision_tokens", 1000.0)
    down = [o for o in ops if isinstance(o, Linear) and o.role == "mlp.down"]
    assert [(float(np.sum(o.m)), float(np.sum(o.count))) for o in down] == [(1000.0, 2.0), (pytest.approx(550.0), 30.0)]
    later = decode("llama-2-7b", "vision_tokens", 1100.0, 1000.0)
    assert kv_read(later) == pytest.approx(MHA * (2 * 1100 + 30 * (550 + 100)))
    assert stored("llama-2-7b", "vision_tokens", 1120, 1008) == pytest.approx(
        MHA * (2 * 1120 + 30 * (1008 * 0.55 + 112))
    )


# --- allocation ------------------------------------------------------------------------------------------------


def test_contiguous_kv_reserves_its_length() -> None:
    """100 tokens hold 4096; 5000 hold themselves (in pages of 16: 5008)."""
    assert stored("llama-2-7b", "contiguous_kv(tokens=4096)", 100) == LAYERS * MHA * 4096
    assert stored("llama-2-7b", "contiguous_kv(tokens=4096)", 5000) == LAYERS * MHA * 5008


def test_vattention_rounds_to_page_groups() -> None:
    """2 MiB / (32 x 128 x 2 B) = 256 tokens of K (and of V): 300 tokens take 512."""
    assert stored("llama-2-7b", "vattention", 300) == LAYERS * MHA * 512
    assert stored("llama-2-7b", "vattention(page_kib=64)", 300) == LAYERS * MHA * 304


def test_the_index_operand_is_not_counted_as_kv() -> None:
    """A top-k reads its scores, not the cache."""
    ops = decode("llama-2-7b", "quest(budget=1024)", 8192.0)
    assert of(ops, "kv.top_k")[0].traffic().read_bytes(Operand.KV) == 0.0
