"""What fits on a GPU: weights as stored, whole pages of KV, and the largest batch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from simulator.base.dtypes import FORMATS
from simulator.device.catalogue import load
from simulator.inference import memory
from simulator.inference.lowering import Lowering
from simulator.model.hub import find_model, list_models
from simulator.ops.ops import Linear
from simulator.policies import parse


def lowered(model: str, policy: str = "dense", *, tp: int = 1, dtype: str = "fp16", ep: int = 1) -> Lowering:
    return Lowering(find_model(model).in_one_format(), parse(policy), FORMATS[dtype], 2.0, tp, ep)


@pytest.mark.parametrize("name", list_models())
def test_one_gpu_holds_two_bytes_per_parameter(name: str) -> None:
    """Nothing is stored twice (tied matrices once, absorbed MLA products once) and nothing is left out."""
    model = find_model(name)
    params = model.n_params + (model.tower.n_params if model.tower else 0)
    assert memory.weights_bytes(lowered(name)) == pytest.approx(2.0 * params, rel=1e-9)


@pytest.mark.parametrize("name", ["llama-2-7b", "gpt2", "opt-125m"])
def test_fp32_doubles_everything(name: str) -> None:
    assert memory.weights_bytes(lowered(name, dtype="fp32")) == pytest.approx(4.0 * find_model(name).n_params, rel=1e-9)


def test_tensor_parallel_ranks_hold_their_share() -> None:
    """Llama-2-7B over 4: a quarter of the matrices, all of the 65 norms of 4096 values."""
    norms = 65 * 4096 * 2.0
    whole, part = (memory.weights_bytes(lowered("llama-2-7b", tp=tp)) for tp in (1, 4))
    assert part == pytest.approx((whole - norms) / 4 + norms)


def test_expert_parallel_ranks_hold_their_experts() -> None:
    """Mixtral over tp 8: the same bytes whether experts are cut (ep 1) or dealt out (ep 8)."""
    assert memory.weights_bytes(lowered("mixtral-8x7b", tp=8)) == pytest.approx(
        memory.weights_bytes(lowered("mixtral-8x7b", tp=8, ep=8))
    )


def test_pipeline_stages_hold_their_layers_and_one_end() -> None:
    """Llama-2-7B: 32 layers over 2 stages, the fuller end holds 32000 x 4096 of embedding or head."""
    low = lowered("llama-2-7b")
    end = 32000 * 4096 * 2.0
    inner = memory.weights_bytes(low) - 2 * end
    assert memory.weights_bytes(low, 2) == pytest.approx(inner / 2 + end)
    assert memory.weights_bytes(low, 3) == pytest.approx(inner * 11 / 32 + end)


def test_weight_formats_are_stored_in_their_bits() -> None:
    """Llama-2-7B, AWQ g128: 6.476 G weights at 4.15625 bits, head, embedding and norms in 16."""
    model = find_model("llama-2-7b")
    matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    rest = model.n_params - matrices
    assert memory.weights_bytes(lowered("llama-2-7b", "w4a16")) == pytest.approx(matrices * 4.15625 / 8 + rest * 2)
    assert memory.weights_bytes(lowered("llama-2-7b", "nm24")) == pytest.approx(matrices * 2 * 9 / 16 + rest * 2)


def test_gathering_policies_keep_every_weight_and_add_their_predictors() -> None:
    """OPT-6.7B, shadowllm rank 2048: 2*d*2048 + 2048*32*(32 + 16384) more elements, whatever keep is."""
    dense = memory.weights_bytes(lowered("opt-6.7b"))
    extra = (2 * 4096 * 2048 + 2048 * 32 * (32 + 16384)) * 2
    for keep in (0.1, 0.9):
        assert memory.weights_bytes(lowered("opt-6.7b", f"shadowllm(keep={keep})")) == dense + extra


def test_kv_is_reserved_in_whole_pages() -> None:
    low = lowered("llama-2-7b")
    got = memory.kv_bytes_per_sequence(low, np.array([1, 16, 17, 4096]), block_tokens=16)
    np.testing.assert_array_equal(got, np.array([16, 16, 32, 4096]) * 524288.0)


def test_bounded_caches_are_bounded() -> None:
    """Streaming keeps 4 + 1020 tokens; Mistral-7B-v0.1 its window of 4096."""
    low = lowered("llama-2-7b", "streaming_llm(window=1020)")
    assert memory.kv_bytes_per_sequence(low, 100_000) == 1024 * 524288.0
    assert memory.kv_bytes_per_sequence(lowered("mistral-7b-v0.1"), 100_000) == 4096 * 131072.0


@pytest.mark.parametrize("policy", ["dense", "mustafar(keep=0.3)", "quest", "shadowllm", "kv_quant(bits=2)"])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 4)])
def test_the_largest_batch_fits_and_one_more_does_not(policy: str, tp: int, pp: int) -> None:
    """Over prompts on both sides of the tokens one pass may hold."""
    device = load("a100-sxm-80g")
    low = lowered("llama-2-7b", policy, tp=tp)
    limit = memory.budget_bytes(device, 0.9)
    for prompt in (1.0, 100.0, 2048.0, 30_000.0):
        best = float(memory.max_batch(low, device, prompt, 128.0, pp=pp))
        assert best >= 1
        at = [memory.footprint(low, b, prompt, 128.0, pp=pp).total_bytes for b in (best, best + 1)]
        assert at[0] <= limit < at[1]


def test_what_never_fits_has_a_largest_batch_of_zero() -> None:
    low = lowered("llama-2-70b")
    assert memory.max_batch(low, load("rtx-4090"), 1.0, 1.0) == 0.0


def test_more_memory_or_less_context_never_fits_fewer() -> None:
    low = lowered("llama-3.1-8b")
    prompts = np.array([1.0, 512.0, 8192.0, 100_000.0])
    at = [memory.max_batch(low, load(d), prompts, 128.0) for d in ("rtx-4090", "a100-sxm-80g", "h200")]
    assert np.all(np.diff(at, axis=0) > 0)
    assert np.all(np.diff(at, axis=1) <= 0)


def test_a_footprint_names_and_adds_its_parts() -> None:
    """500 MB of context and 600 MB of graphs on one GPU, 400 MB of NCCL with two; logits 4 B a word."""
    one = memory.footprint(lowered("llama-2-7b"), 2.0, 10.0, 6.0)
    assert one.runtime_bytes == 1.1e9
    assert memory.runtime_bytes(2) == 1.5e9
    assert one.kv_bytes == 2 * 16 * 524288
    # 2 rows of 10 tokens: (2 * 4096 + 2 * 22016) elements of 2 B a token, 32000 fp32 logits a row.
    assert one.activation_bytes == 20 * (2 * 4096 + 2 * 22016) * 2 + 2 * 32000 * 4
    assert one.total_bytes == one.weights_bytes + one.kv_bytes + one.other_bytes


@pytest.mark.parametrize(("pp", "layers"), [(1, 32), (2, 16), (3, 11)])
def test_a_pipeline_stage_holds_the_kv_of_its_layers(pp: int, layers: int) -> None:
    """16,384 B per token and layer; three stages of 32 layers hold 11 at most."""
    got = memory.kv_bytes_per_sequence(lowered("llama-2-7b"), 160, pp=pp)
    assert got == pytest.approx(160 * layers * 16_384)


def test_a_prompt_is_told_from_what_follows_it() -> None:
    """SnapKV keeps 1024 of 8192 prompt tokens and all 128 that follow: 1152 of 16,384 B in each of 32 layers, in the
    footprint and in the largest batch: the pool over those, 32,000 fp32 logits and activations of the prompt."""
    low, device = lowered("llama-2-7b", "snapkv"), load("a100-sxm-80g")
    kv = 1152 * 32 * 16_384
    whole = memory.footprint(low, 2.0, 8192.0, 128.0)
    assert whole.kv_bytes == 2 * kv
    pool = device.capacity_bytes * 0.9 - memory.weights_bytes(low) - 1.1e9
    per_token, logits = (2 * 4096 + 2 * 22_016) * 2, 32_000 * 4
    assert memory.max_batch(low, device, 8192.0, 128.0) == max(
        pool // (kv + logits + per_token * 8192), (pool - per_token * 8192) // (kv + logits)
    )


@pytest.mark.parametrize(("weights", "context"), [(1.0, 4096.0), (0.5, 4096.0), (1.0, 65_536.0)])
def test_the_tier_beside_bounds_the_batch(weights: float, context: float) -> None:
    """FlexGen with all KV in the host's memory, 524,288 B a token, beside half of the layers' weights."""
    low, device = lowered("llama-2-7b", f"flexgen(weights={weights},kv=0)"), load("a100-sxm-80g")
    beside = 32 * (4 * 4096**2 + 3 * 4096 * 11_008) * 2 * (1.0 - weights)
    room = device.tier("host").capacity_bytes - beside
    assert memory.home_bytes(low, device) == device.tier("host").capacity_bytes
    assert memory.off_weights_bytes(low) == pytest.approx(beside)
    assert memory.max_batch(low, device, context - 96.0, 96.0) == room // (context * 524_288)


def test_the_tier_beside_holds_what_eviction_left() -> None:
    """1024 of 8192 prompt tokens and 128 more, 524,288 B each; none where one sequence exceeds the host's memory."""
    low, device = lowered("llama-2-7b", "snapkv+flexgen(weights=1,kv=0)"), load("a100-sxm-80g")
    host = device.tier("host").capacity_bytes
    assert memory.max_batch(low, device, 8192.0, 128.0) == host // (1152 * 524_288)
    long = host // 524_288 + 1.0
    assert memory.max_batch(lowered("llama-2-7b", "flexgen(kv=0)"), device, long, 1.0) == 0.0


def test_weights_that_exceed_the_tier_beside_fit_nothing() -> None:
    """137 GB of Llama-2-70B in the 64 GB beside an RTX 4090."""
    low, device = lowered("llama-2-70b", "flexgen(weights=0,kv=0)"), load("rtx-4090")
    assert memory.off_weights_bytes(low) > 2 * device.tier("host").capacity_bytes
    assert memory.max_batch(low, device, 64.0, 1.0) == 0.0


def test_the_bias_of_a_tied_head_is_stored() -> None:
    """GPT-2's matrix serves both ends; a bias of 50,257 words would be a vector of its own."""
    biased = dataclasses.replace(find_model("gpt2"), lm_head_bias=True)
    plain, more = (Lowering(m, parse("dense"), FORMATS["fp16"], 2.0) for m in (find_model("gpt2"), biased))
    assert memory.weights_bytes(more) - memory.weights_bytes(plain) == 2 * 50_257


def test_large_blocks_fit_fewer_sequences() -> None:
    """Ten tokens take a block of 4096: 2 GiB a sequence."""
    low, device = lowered("llama-2-7b"), load("a100-sxm-80g")
    pool = device.capacity_bytes * 0.9 - memory.weights_bytes(low) - 1.1e9
    each = 4096 * 524_288 + 32_000 * 4 + (2 * 4096 + 2 * 22_016) * 2 * 9
    assert memory.max_batch(low, device, 9.0, 1.0, block_tokens=4096) == pool // each
    assert memory.footprint(low, 1.0, 9.0, 1.0, block_tokens=4096).kv_bytes == 4096 * 524_288


def test_a_tier_that_is_not_there_holds_nothing() -> None:
    assert memory.home_bytes(lowered("llama-2-7b", "lamina"), load("a100-sxm-80g")) == 0.0
    assert memory.max_batch(lowered("llama-2-7b", "lamina"), load("a100-sxm-80g"), 9.0, 1.0) == 0.0


def test_activations_stop_at_the_tokens_of_one_pass() -> None:
    """8192 tokens of (2 * 4096 + 2 * 22,016) x 2 B at most; 4 B of logits for each of 32,000 words and row."""
    low = lowered("llama-2-7b")
    peak, row = 8192 * (2 * 4096 + 2 * 22_016) * 2, 32_000 * 4
    assert memory.activation_bytes(low, 8.0, 1024.0) == peak + 8 * row
    assert memory.activation_bytes(low, 64.0, 1024.0) == peak + 64 * row


def test_experts_widen_activations_by_those_a_token_takes() -> None:
    """Mixtral: two experts of 14,336, gate and up: 57,344 elements beside a width of 4096; over tp 8 an eighth."""
    for tp, widest in ((1, 57_344), (8, 7168)):
        assert memory.activation_token_bytes(lowered("mixtral-8x7b", tp=tp)) == ((2 * 4096 + 2 * widest) * 2)


def test_what_keeps_weights_is_a_fact_of_the_op_not_of_its_name() -> None:
    """An op of 4 x 8 weights in 16 bit keeps 64 B whatever it is called, and none where it says so."""
    op = Linear(role="predictor.mlp", m=1.0, n=4.0, k=8.0, fmt=FORMATS["bf16"])
    assert memory.stored_bytes(op) == memory.stored_bytes(dataclasses.replace(op, role="kv.mlp")) == 64.0
    assert memory.stored_bytes(dataclasses.replace(op, keeps_weights=False)) == 0.0
