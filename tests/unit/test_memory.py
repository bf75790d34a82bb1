"""What fits on a GPU: weights as stored, whole pages of KV, and the largest batch."""

from __future__ import annotations

import numpy as np
import pytest

from simulator import memory
from simulator.device import load
from simulator.dtypes import FORMATS
from simulator.hub import find_model, list_models
from simulator.lowering import Lowering
from simulator.policies import parse


def lowered(
    model: str, policy: str = "dense", *, tp: int = 1, dtype: str = "fp16", ep: int = 1
) -> Lowering:
    return Lowering(find_model(model), parse(policy), FORMATS[dtype], 2.0, tp, ep)


@pytest.mark.parametrize("name", list_models())
def test_one_gpu_holds_two_bytes_per_parameter(name: str) -> None:
    """Nothing is stored twice (tied matrices once, absorbed MLA products once) and nothing is left out."""
    model = find_model(name)
    assert memory.weights_bytes(lowered(name)) == pytest.approx(2.0 * model.n_params, rel=1e-9)


@pytest.mark.parametrize("name", ["llama-2-7b", "gpt2", "opt-125m"])
def test_fp32_doubles_everything(name: str) -> None:
    assert memory.weights_bytes(lowered(name, dtype="fp32")) == pytest.approx(
        4.0 * find_model(name).n_params, rel=1e-9
    )


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
    assert memory.weights_bytes(lowered("llama-2-7b", "w4a16")) == pytest.approx(
        matrices * 4.15625 / 8 + rest * 2
    )
    assert memory.weights_bytes(lowered("llama-2-7b", "nm24")) == pytest.approx(
        matrices * 2 * 9 / 16 + rest * 2
    )


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


@pytest.mark.parametrize(
    "policy", ["dense", "mustafar(keep=0.3)", "quest", "shadowllm", "kv_quant(bits=2)"]
)
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
    at = [
        memory.max_batch(low, load(d), prompts, 128.0) for d in ("rtx-4090", "a100-sxm-80g", "h200")
    ]
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
