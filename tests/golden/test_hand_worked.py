"""Figures anyone can check with a pencil; each test's text is the calculation."""

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

KEEP = (0.1, 0.3, 0.5, 0.7)


def lowered(model: str, policy: str = "dense", *, tp: int = 1) -> Lowering:
    return Lowering(find_model(model).in_one_format(), parse(policy), FORMATS["fp16"], 2.0, tp)


def decode(model: str, policy: str, rows: float = 1.0, context: float = 4096.0, *, tp: int = 1) -> list[Op]:
    return lowered(model, policy, tp=tp).ops(decode_step(rows, context))


def kv_read(ops: list[Op]) -> float:
    """KV bytes the attention kernels of a step read [B]."""
    return sum(float(np.sum(o.traffic().read_bytes(Operand.KV) * o.count)) for o in ops if isinstance(o, Attention))


def read_of(ops: list[Op], role: str) -> float:
    return sum(
        float(np.sum(a.read_bytes * o.count)) for o in ops if o.role == role for a in o.traffic().access.values()
    )


def kv_per_token(model: str, tp: int = 1) -> float:
    low = lowered(model, tp=tp)
    return float(memory.kv_bytes_per_sequence(low, 1600, block_tokens=16)) / 1600


def test_llama_2_7b_weights() -> None:
    """6,738,415,616 parameters (Meta's checkpoint) of 2 B: 13.48 GB."""
    assert memory.weights_bytes(lowered("llama-2-7b")) == 2 * 6_738_415_616
    assert round(memory.weights_bytes(lowered("llama-2-7b")) / 1e9, 2) == 13.48


def test_llama_2_7b_kv() -> None:
    """32 layers x 2 (K, V) x 32 heads x 128 x 2 B = 524,288 B per token."""
    assert kv_per_token("llama-2-7b") == 32 * 2 * 32 * 128 * 2 == 524_288


def test_llama_3_1_8b_kv() -> None:
    """8 KV heads instead of 32: 131,072 B."""
    assert kv_per_token("llama-3.1-8b") == 131_072


@pytest.mark.parametrize("tp", [1, 8])
def test_deepseek_v3_latent_is_whole_on_every_gpu(tp: int) -> None:
    """61 layers x (512 + 64) x 2 B = 70,272 B, and tensor parallelism does not cut it."""
    assert kv_per_token("deepseek-v3", tp) == 61 * 576 * 2 == 70_272


def test_llama_3_1_70b_at_tp_16_holds_kv_twice() -> None:
    """80 x 2 x 8 x 128 x 2 B = 327,680 B in all; 8 KV heads on 16 GPUs are 16 x 40,960 B = twice that."""
    assert kv_per_token("llama-3.1-70b") == 327_680
    assert 8 * kv_per_token("llama-3.1-70b", 8) == 327_680
    assert 16 * kv_per_token("llama-3.1-70b", 16) == 2 * 327_680


@pytest.mark.parametrize("keep", KEEP)
def test_mustafar_size_ratio(keep: float) -> None:
    """Tile of 64: 8 B bitmap + 4 B offset + 2 B (64 keep + 3.5 padding), over 128 B: keep + 19/128."""
    policy = f"mustafar(keep={keep},window=0)"
    ratio = kv_read(decode("llama-2-7b", policy)) / kv_read(decode("llama-2-7b", "dense"))
    assert ratio == pytest.approx(keep + 19 / 128, abs=1e-12)
    assert round(ratio, 3) == pytest.approx(keep + 0.148)
    stored = memory.kv_bytes_per_sequence(lowered("llama-2-7b", policy), 4096)
    assert float(stored) == pytest.approx(4096 * 524_288 * (keep + 19 / 128))


def test_mustafar_published_sizes() -> None:
    """The paper states 65 % at sparsity 0.5, 45 % at 0.7, and 72.5 % where K alone is pruned at 0.7
    (half at 45 %, half dense: V in tiles with keep_v = 1 costs its bitmap too, 0.798)."""
    for keep, published in ((0.5, 0.65), (0.3, 0.45)):
        policy = f"mustafar(keep={keep},window=0)"
        ratio = kv_read(decode("llama-2-7b", policy)) / kv_read(decode("llama-2-7b", "dense"))
        assert ratio == pytest.approx(published, abs=0.003)


def test_mustafar_keeps_a_dense_window_and_writes_its_scores() -> None:
    """S = 4096, w = 32: (32 + 4064 (0.3 + 19/128)) / 4096 of the bytes; scores (28 + 58) B x S x 32 heads."""
    ops = decode("llama-2-7b", "mustafar(keep=0.3)")
    share = (32 + 4064 * (0.3 + 19 / 128)) / 4096
    assert kv_read(ops) == pytest.approx(4096 * 524_288 * share)
    scores = next(o for o in ops if o.role == "kv.scores")
    assert isinstance(scores, Elementwise)
    assert scores.read_bytes + scores.write_bytes == (28 + 58) * 4096 * 32


PREDICTORS = [("opt-6.7b", 4096, 16384, 32, 32), ("opt-30b", 7168, 28672, 48, 56)]


def predictor_bytes(ops: list[Op]) -> float:
    """Weight bytes of the predictors' products in one step on one GPU [B]."""
    return sum(
        float(o.weight_read_bytes * np.max(o.count))
        for o in ops
        if isinstance(o, Linear) and o.role.startswith("predictor.")
    )


@pytest.mark.parametrize(("model", "d", "f", "layers", "heads"), PREDICTORS)
@pytest.mark.parametrize("gpus", [1, 4])
def test_shadowllm_predictor_bytes(model: str, d: int, f: int, layers: int, heads: int, gpus: int) -> None:
    """Once per step, first matrix on every GPU: [2 d p + p L (H + F) / P] b with p = 2048, b = 2.

    OPT-30B on one GPU: [2 7168 2048 + 2048 48 (56 + 28672)] 2 = 5.71 GB, as the released harness reads.
    """
    p, b = 2048, 2
    expected = (2 * d * p + p * layers * (heads + f) / gpus) * b
    assert predictor_bytes(decode(model, "shadowllm(keep=0.5)", tp=gpus)) == expected
    assert predictor_bytes(decode(model, "shadowllm(keep=0.1)", rows=16.0, tp=gpus)) == expected


@pytest.mark.parametrize(("model", "d", "f", "layers", "heads"), PREDICTORS)
@pytest.mark.parametrize("gpus", [1, 4])
def test_dejavu_predictor_bytes(model: str, d: int, f: int, layers: int, heads: int, gpus: int) -> None:
    """In every layer: L [2 d p + p (H + F) / P] b at rank 2048 for both, as ShadowLLM's harness has it."""
    p, b = 2048, 2
    ops = decode(model, f"dejavu(keep=0.5,mlp_rank={p},attn_rank={p})", tp=gpus)
    assert predictor_bytes(ops) == layers * (2 * d * p + p * (heads + f) / gpus) * b


def test_the_gap_between_them_is_replication() -> None:
    """(L - 1) 2 d p b = 47 x 2 x 7168 x 2048 x 2 B = 2.76 GB for OPT-30B on four GPUs."""
    dejavu = predictor_bytes(decode("opt-30b", "dejavu(mlp_rank=2048,attn_rank=2048)", tp=4))
    shadow = predictor_bytes(decode("opt-30b", "shadowllm", tp=4))
    assert dejavu - shadow == 47 * 2 * 7168 * 2048 * 2
    assert round((dejavu - shadow) / 1e9, 2) == 2.76


def test_dejavu_at_its_own_ranks() -> None:
    """OPT-175B, rank 1000 and 512: MLP predictors 96 (12288 + 49152) 1000 x 2 B = 11.8 GB, attention
    96 (12288 + 96) 512 x 2 B = 1.2 GB."""
    ops = decode("opt-175b", "dejavu")
    sizes = {
        part: sum(
            float(o.weight_read_bytes * np.max(o.count))
            for o in ops
            if isinstance(o, Linear) and o.role.startswith(f"predictor.{part}")
        )
        for part in ("mlp", "attn")
    }
    assert round(sizes["mlp"] / 1e9, 1) == 11.8
    assert round(sizes["attn"] / 1e9, 1) == 1.2


def test_contextual_weights_read_for_one_row() -> None:
    """L [4 d^2 r_h + 2 d F r_f] b at batch 1, OPT-6.7B at 30 %: layer 0's attention stays dense."""
    ops = decode("opt-6.7b", "shadowllm(keep=0.3)")
    read = sum(
        float(o.weight_read_bytes * np.max(o.count))
        for o in ops
        if isinstance(o, Linear) and o.role.startswith(("attn.", "mlp."))
    )
    d, f = 4096, 16384
    assert read == pytest.approx(2 * (31 * 4 * d * d * 0.3 + 4 * d * d + 32 * 2 * d * f * 0.3))


@pytest.mark.parametrize("context", [500.0, 1024.0, 4096.0, 100_000.0])
def test_streaming_llm_reads_sinks_and_window(context: float) -> None:
    """min(S, 4 + 1020) tokens of 524,288 B; K rotated again: half of those read and written."""
    ops = decode("llama-2-7b", "streaming_llm(window=1020)", context=context)
    kept = min(context, 1024) * 524_288
    assert kv_read(ops) == kept
    assert read_of(ops, "kv.rotate") == kept / 2


@pytest.mark.parametrize("context", [4096.0, 32_768.0])
@pytest.mark.parametrize("page", [8, 16, 32])
def test_quest_reads_one_page_statistic_and_its_budget(page: int, context: float) -> None:
    """R / R_dense = 1/c + k/S in the 30 layers after the two dense ones (multi-head attention)."""
    ops = decode("llama-2-7b", f"quest(budget=2048,page={page})", context=context)
    layer = context * 524_288 / 32
    sparse = kv_read(ops) - 2 * layer + read_of(ops, "kv.estimate")
    assert sparse / (30 * layer) == pytest.approx(1 / page + 2048 / context)


def test_quest_runs_dense_inside_its_budget() -> None:
    ops = decode("llama-2-7b", "quest(budget=2048)", context=2048.0)
    assert kv_read(ops) == 2048 * 524_288
    assert read_of(ops, "kv.estimate") == 0


def test_quest_unites_the_pages_of_a_group() -> None:
    """Llama-3.1-8B, four query heads a KV head: up to 4 x 2048 tokens; 'shared' reads 2048."""
    for gqa, tokens in (("union", 8192), ("shared", 2048)):
        ops = decode("llama-3.1-8b", f"quest(budget=2048,gqa={gqa})", context=32_768.0)
        assert kv_read(ops) == (2 * 32_768 + 30 * tokens) * 131_072 / 32


def test_quest_memory_is_a_sixteenth_more() -> None:
    """Two vectors per page of 16 tokens' 32 vectors, in 30 of 32 layers."""
    dense, quest = (float(memory.kv_bytes_per_sequence(lowered("llama-2-7b", p), 16_000)) for p in ("dense", "quest"))
    assert quest / dense == pytest.approx(1 + 30 / 32 / 16)


@pytest.mark.parametrize(("bits", "share"), [(2, 0.15625), (4, 0.28125), (8, 0.53125)])
def test_kv_quant_bytes(bits: int, share: float) -> None:
    """bits/8 + 4/64 B of 2 B an element; the newest 128 of 4096 tokens stay in 16 bit."""
    policy = f"kv_quant(bits={bits})"
    expected = 524_288 * (128 + 3968 * share)
    assert kv_read(decode("llama-2-7b", policy)) == pytest.approx(expected)
    stored = memory.kv_bytes_per_sequence(lowered("llama-2-7b", policy), 4096)
    assert float(stored) == pytest.approx(expected)


def test_a_bounded_quantised_cache_reads_what_it_stores() -> None:
    """streaming (1024 tokens) with kv_quant: 128 in 16 bit and 896 at 0.28125, at any context."""
    policy = "kv_quant(bits=4)+streaming_llm(window=1020)"
    expected = 524_288 * (128 + 896 * 0.28125)
    for context in (2000.0, 64_000.0):
        assert kv_read(decode("llama-2-7b", policy, context=context)) == pytest.approx(expected)
        stored = memory.kv_bytes_per_sequence(lowered("llama-2-7b", policy), context)
        assert float(stored) == pytest.approx(expected)


def layer_weights(policy: str, step_rows: float = 1.0) -> float:
    """Weight bytes of the attention and FFN products of Llama-2-7B [B]."""
    return sum(
        float(o.weight_read_bytes * np.max(o.count))
        for o in decode("llama-2-7b", policy, rows=step_rows)
        if isinstance(o, Linear) and o.role.startswith(("attn.", "mlp."))
    )


def test_2_to_4_weights_are_nine_sixteenths() -> None:
    """Half the values and 2 bits of index for each: (16 + 2) / 2 = 9 of 16 bits, half the flop."""
    assert layer_weights("nm24") / layer_weights("dense") == 9 / 16
    halves = {o.flop_keep for o in decode("llama-2-7b", "nm24") if isinstance(o, Linear) and o.nm24}
    assert halves == {0.5}


def test_w4a16_bytes() -> None:
    """4 + (16 + 4)/128 = 4.15625 bits of 16; group 64: 4.3125."""
    assert layer_weights("w4a16") / layer_weights("dense") == pytest.approx(4.15625 / 16)
    assert layer_weights("w4a16(group=64)") / layer_weights("dense") == pytest.approx(4.3125 / 16)


def test_decode_flop_of_a_dense_model_is_twice_its_weights() -> None:
    """2 flop per weight and token: 2 (6,738,415,616 - embedding 131,072,000 - 65 norms of 4096) plus
    attention 4 S h d L = 4 x 4096 x 4096 x 32 at S = 4096."""
    ops = decode("llama-2-7b", "dense")
    flop = sum(float(np.sum(o.traffic().total_flop * o.count)) for o in ops if not isinstance(o, Elementwise))
    assert flop == 2 * (6_738_415_616 - 131_072_000 - 65 * 4096) + 4 * 4096 * 4096 * 32


def test_prefill_attention_flop() -> None:
    """4 h d P (P + 1) / 2 per layer, P = 1000."""
    ops = lowered("llama-2-7b").ops(prefill_step(1.0, 1000.0))
    core = next(o for o in ops if isinstance(o, Attention))
    assert core.flop == 4 * 4096 * 1000 * 1001 / 2
