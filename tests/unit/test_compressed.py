"""DeepSeek-V4's layers: counts, cache, single ops and modules, worked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.base.dtypes import get_format
from simulator.base.errors import InputError
from simulator.inference.group import group_of
from simulator.inference.lowering import Lowering
from simulator.inference.memory import kv_bytes_per_sequence
from simulator.model.architectures import from_config
from simulator.model.spec import ModelSpec
from simulator.ops.module import AttentionModule
from simulator.ops.ops import Attention, Elementwise, Linear
from simulator.ops.step import decode_step, prefill_step
from simulator.policies import parse
from simulator.scenario.scenario import Scenario

CONFIG: dict[str, Any] = {
    "model_type": "deepseek_v4",
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_nextn_predict_layers": 1,
    "compress_ratios": [0, 4, 128, 4, 0],
    "max_position_embeddings": 65536,
    "num_attention_heads": 8,
    "head_dim": 32,
    "q_lora_rank": 24,
    "o_lora_rank": 16,
    "o_groups": 4,
    "sliding_window": 128,
    "index_n_heads": 4,
    "index_head_dim": 16,
    "index_topk": 512,
    "hc_mult": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 48,
}
AROUND = 64 * 24 + 24 + 24 * 8 * 32 + 64 * 32 + 32 + 8 * 32 * 16 + 4 * 16 * 64 + 8
"""Queries down with norm and up, the entry with norm, outputs narrowed in four groups and widened, sinks."""
FOLD128 = 2 * 64 * 32 + 128 * 32 + 32
"""Keys and gates, a bias for each position of an entry, its norm."""
FOLD4 = 2 * 64 * 64 + 4 * 64 + 32
INDEX = 24 * 4 * 16 + 2 * 64 * 32 + 4 * 32 + 16 + 64 * 4
"""The indexer's queries; its own folding at its width, twice for overlap; weights of its heads."""
STREAMS = 2 * (24 * 4 * 64 + 24 + 3)


def model(**change: Any) -> ModelSpec:
    return from_config(CONFIG | change, "folded")


def lowering(policy: str = "dense", *, tp: int = 1, kv: float = 2.0, as_modules: bool = False) -> Lowering:
    return Lowering(model(), parse(policy), get_format("bf16"), kv, tp, as_modules=as_modules)


def test_parameters_by_hand() -> None:
    m = model()
    got = [layer.n_params("attention", 64) for layer in m.layers]
    assert got == [AROUND, AROUND + FOLD4 + INDEX, AROUND + FOLD128, AROUND + FOLD4 + INDEX]
    assert m.layers[0].n_params("projection", 64) == STREAMS
    moe = 9 * 3 * 64 * 48 + 8 * 64
    fold = 4 * 4 * 64 + 4 + 1
    assert m.n_params == 2 * 512 * 64 + sum(got) + 4 * (STREAMS + moe + 2 * 64) + fold + 64


def test_ratios_are_read_by_word_and_by_number() -> None:
    words = ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"]
    words.append("compressed_sparse_attention")
    assert model(compress_ratios=None, layer_types=words).layers == model().layers


def test_the_cache_keeps_a_window_and_folded_entries() -> None:
    per = kv_bytes_per_sequence(lowering(kv=1.0), np.array([64.0, 16000.0]))
    # Entries of 32 fp8 elements: the window in four layers, folded ones in three, keys of 16 + 4 bytes in two.
    folded = 2 * (32 + 20) / 4 + 32 / 128
    assert per == pytest.approx([4 * 64 * 32 + 64 * folded, 4 * 128 * 32 + 16000 * folded])
    assert model().kv_bytes_per_token(1.0) == 4 * 32 + 2 * 8 + 0.25
    assert model().kv_bytes([16000.0], 1.0) == pytest.approx([4 * 128 * 32 + 16000 * (2 * 8 + 0.25)])


def test_single_ops_of_a_decode_step() -> None:
    ops = lowering(tp=2).ops(decode_step(4.0, 16000.0))
    sizes = {op.role: (op.n, op.k, op.groups, op.count) for op in ops if isinstance(op, Linear)}
    assert sizes["attn.q_up"] == (4 * 32, 24, 1.0, 1.0)
    assert sizes["attn.o_down"] == (16, 64, 2.0, 1.0)
    assert sizes["attn.o"] == (64, 2 * 16, 1.0, 1.0)
    cores = [op for op in ops if isinstance(op, Attention) and op.role == "attn.core"]
    # The window; 512 picked entries beside it; all 125 entries of 128 tokens beside it.
    assert sorted(float(np.max(op.tokens)) for op in cores) == [128.0, 128.0 + 125.0, 128.0 + 512.0]
    assert all(op.latent and op.n_kv_heads == 1.0 for op in cores)
    scored = next(op for op in ops if isinstance(op, Attention) and op.role == "kv.index")
    assert (float(np.max(scored.kv_len)), float(np.max(scored.count))) == (4000.0, 2.0)
    assert not any(op.overhead for op in ops)


def test_a_prompt_attends_to_fewer_pairs() -> None:
    ops = lowering().ops(prefill_step(1.0, 16000.0))
    cores = [op for op in ops if isinstance(op, Attention) and op.role == "attn.core.prefill"]
    windowed = 128 * 129 / 2 + (16000 - 128) * 128
    full = 16000 * 16001 / 2
    pairs = sorted(float(np.max(op.flop)) / (2 * 64 * 8) for op in cores)
    reach = 2048 * 2049 / 2 + (16000 - 2048) * 2048
    assert pairs == pytest.approx([windowed, windowed + full / 128, windowed + reach / 4])


def test_streams_are_mixed_around_each_block() -> None:
    ops = lowering().ops(decode_step(4.0, 100.0))
    mixed = [op for op in ops if isinstance(op, Elementwise) and op.role == "streams.mix"]
    assert sum(float(op.count) for op in mixed) == 2 * 4
    # Four streams read before a block, read and written after it, in 16 bit.
    assert {float(op.read_bytes) for op in mixed} == {2 * 4 * 4 * 64 * 2}
    assert {float(op.write_bytes) for op in mixed} == {4 * 4 * 64 * 2}


def test_layers_with_folded_entries_are_modules_and_the_others_are_not() -> None:
    ops = lowering(as_modules=True).ops(decode_step(4.0, 16000.0))
    blocks = {op.kind: (float(op.count), op.widths) for op in ops if isinstance(op, AttentionModule)}
    assert {kind: count for kind, (count, _) in blocks.items()} == {"csa": 2.0, "hca": 1.0}
    csa = blocks["csa"][1]
    assert (csa.compress, csa.top_k, csa.window, csa.index_heads) == (4.0, 512.0, 128.0, 4.0)
    # Its weights are those of the single products.
    biases = 24 + 32 + 8 + 4 * 64 + 32 + 4 * 32 + 16
    assert csa.shared + 8 * csa.per_head + csa.index_weights == AROUND + FOLD4 + INDEX - biases
    assert sum(float(op.count) for op in ops if isinstance(op, Attention) and op.role == "attn.core") == 1.0


@pytest.mark.parametrize(("device", "engine"), [("h200-sxm", "sglang"), ("b200", "vllm"), ("b200", "trtllm")])
def test_a_measured_engine_answers_with_its_modules(tmp_path: Path, device: str, engine: str) -> None:
    file = tmp_path / "folded.json"
    file.write_text(json.dumps(CONFIG))
    assert group_of(Scenario(model=str(file), device=device, engine=engine, kv_cache_dtype="fp8")).as_modules


def test_policies_on_a_cache_of_tokens_are_refused() -> None:
    assert lowering("quest").why_not() == "it works on K and V of single heads; MLA caches one latent for all of them"
    assert lowering("dsa").why_not() == "DSA picks tokens; folded folds several into one cache entry"
    assert (
        lowering("vattention").why_not()
        == "vattention works on one cache entry per token; folded folds several into one"
    )


def test_the_reason_is_told_of_a_quantised_file_answered_with_modules() -> None:
    quantised = from_config(CONFIG | {"quantization_config": {"quant_method": "fp8"}}, "folded")
    low = Lowering(quantised, parse("dsa"), get_format("bf16"), 1.0, as_modules=True)
    assert low.why_not() == "DSA picks tokens; folded folds several into one cache entry"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"compress_ratios": [0, 4, 2, 4, 0]}, "compress_ratios"),
        ({"compress_ratios": [0, 4]}, "compress_ratios"),
        ({"compress_ratios": None}, "compress_ratios"),
        ({"num_key_value_heads": 2}, "num_key_value_heads"),
        ({"hc_mult": None}, "hc_mult"),
        ({"layer_types": ["mamba"] * 4}, "layer_types"),
        ({"attention_bias": True}, "attention_bias"),
    ],
)
def test_what_is_not_understood_is_refused(change: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError, match=key):
        model(**change)
