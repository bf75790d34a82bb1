"""GGUF files of published models: parameters and bytes those of the file's own table of tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf_written import chosen, published, write

from simulator.base.dtypes import get_format
from simulator.inference.formats import folded
from simulator.inference.lowering import Lowering
from simulator.inference.memory import weights_bytes
from simulator.model import hub
from simulator.model.architectures import from_config
from simulator.policies import Policies

pytest.importorskip("gguf")
pytest.importorskip("transformers")

Q4_K_M = {"attn_v": "Q6_K", "blk.0.ffn_down": "Q6_K", "output.weight": "Q6_K", "token_embd": "Q6_K"}
CASES = [
    ("llama-3.1-8b", "llama", Q4_K_M, "Q4_K"),
    ("llama-2-7b", "llama", {"output": "Q6_K"}, "Q4_0"),
    ("mixtral-8x7b", "llama", {"exps": "IQ3_XXS"}, "Q5_K"),
    ("mistral-7b-v0.3", "llama", {}, "BF16"),
    ("qwen2.5-7b", "qwen2", {"ffn_down": "Q8_0"}, "Q5_K"),
    ("qwen3-8b", "qwen3", {}, "IQ4_XS"),
    ("qwen3-30b-a3b", "qwen3moe", {"exps": "Q3_K"}, "Q5_K"),
    ("gemma-2-9b", "gemma2", {"token_embd": "Q6_K"}, "Q2_K"),
    ("gemma-3-4b", "gemma3", {}, "Q4_0"),
    ("phi-3-mini-4k", "phi3", {}, "IQ4_NL"),
    ("olmo-2-7b", "olmo2", {}, "Q6_K"),
    ("command-r-35b", "command-r", {}, "Q5_1"),
    ("minimax-m2.5", "minimax-m2", {"exps": "TQ1_0"}, "Q5_K"),
    ("deepseek-v2-lite", "deepseek2", {"ffn_down_exps": "Q5_0"}, "Q4_0"),
    ("deepseek-v3", "deepseek2", {"exps": "IQ1_S", "attn_k_b": "Q5_0"}, "Q4_K"),
    ("gpt-oss-20b", "gpt-oss", {"exps": "MXFP4"}, "Q8_0"),
    ("Qwen3-Next-80B-A3B", "qwen3next", {"exps": "MXFP4"}, "Q8_0"),
]

OTHERS = {
    "Qwen3-Next-80B-A3B": {
        "model_type": "qwen3_next",
        "hidden_size": 2048,
        "intermediate_size": 5120,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "max_position_embeddings": 262144,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
    }
}


LATENT = ("deepseek-v2-lite", "deepseek-v3")
ASKED = [(*case, False) for case in CASES] + [(*case, True) for case in CASES if case[0] in LATENT]


@pytest.mark.parametrize(
    ("name", "arch", "kinds", "default", "halves"),
    ASKED,
    ids=[f"{name}-halves" if halves else name for name, *_, halves in ASKED],
)
def test_a_file_is_as_large_as_its_tensors(
    name: str, arch: str, kinds: dict[str, str], default: str, halves: bool, tmp_path: Path
) -> None:
    config = OTHERS.get(name) or published(name)
    path = tmp_path / f"{name}.gguf"
    elements, size = write(path, config, arch, chosen(kinds, default), halves=halves)
    got = hub.find_model(str(path))
    assert got.n_params == elements
    stored, fmt = folded(got, get_format(got.dtype))
    assert weights_bytes(Lowering(stored, Policies(), fmt, 2.0)) == pytest.approx(size, rel=1e-9)
    # The same layers as those of its config.json, whatever they are stored in.
    own = from_config(config, name)
    assert got.kv_bytes_per_token() == own.kv_bytes_per_token()
    assert got.kv_bytes(65536) == own.kv_bytes(65536)
    assert got.state_bytes() == own.state_bytes()
    assert got.n_active_params == own.n_active_params
    assert got.max_context == own.max_context
