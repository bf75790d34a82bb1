"""Headers of GGUF files as llama.cpp's converter writes them, of models that transformers builds without weights.

The names are those of the gguf package's own table, the shapes those of transformers; nothing of ours is asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

Shape = tuple[int, ...]
Chosen = Callable[[str, Shape], str]
"""Tensor type from the name and shape, outermost first."""


def published(name: str) -> dict[str, Any]:
    """A bundled config, its text part alone."""
    config = json.loads((files("hw_profiles") / "models" / f"{name}.json").read_text("utf-8"))
    text = config.get("text_config", config)
    return {k: v for k, v in text.items() if k != "quantization_config"}


def tensors_of(config: dict[str, Any], arch: str, *, halves: bool = False) -> Iterator[tuple[str, Shape]]:
    """Tensors of a model by the file's names, outermost dimension first."""
    import torch
    from gguf.constants import MODEL_ARCH_NAMES
    from gguf.tensor_mapping import get_tensor_name_map
    from transformers import AutoConfig, AutoModelForCausalLM

    own = {k: v for k, v in config.items() if not k.startswith("_") and k not in ("auto_map", "model_type")}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **own))
    key = next(k for k, v in MODEL_ARCH_NAMES.items() if v == arch)
    named = get_tensor_name_map(key, config["num_hidden_layers"])
    buffers = {n: b for n, b in model.named_buffers() if "correction_bias" in n}
    tied = model.config.tie_word_embeddings
    for name, value in (*model.named_parameters(), *buffers.items()):
        if tied and name == "lm_head.weight":
            continue
        for path, shape in _converted(
            name.replace("model.language_model.", "model."), tuple(value.shape), config, halves
        ):
            stem, end = path.rsplit(".", 1) if path.endswith((".weight", ".bias")) else (path, "weight")
            found = path if path.startswith("blk.") else f"{named.get_name(stem)}.{end}"
            assert not found.startswith("None"), name
            yield found, shape
    if config["model_type"] == "llama" and config.get("rope_scaling"):
        yield "rope_freqs.weight", (64,)


def _converted(name: str, shape: Shape, config: dict[str, Any], halves: bool) -> Iterator[tuple[str, Shape]]:
    layer = re.search(r"layers\.(\d+)\.", name)
    at = f"blk.{layer[1]}." if layer else ""
    if ".experts.gate_up_proj" in name:
        last = ".bias" if "bias" in name else ".weight"
        # GPT-OSS stores (experts, inputs, outputs); all others (experts, outputs, inputs).
        if "bias" in name:
            half: Shape = (shape[0], shape[1] // 2)
        else:
            out, k = (shape[2], shape[1]) if config["model_type"] == "gpt_oss" else (shape[1], shape[2])
            half = (shape[0], out // 2, k)
        yield f"{at}ffn_gate_exps{last}", half
        yield f"{at}ffn_up_exps{last}", half
    elif ".experts.down_proj" in name:
        if config["model_type"] == "gpt_oss" and "bias" not in name:
            shape = (shape[0], shape[2], shape[1])
        yield f"{at}ffn_down_exps{'.bias' if 'bias' in name else '.weight'}", shape
    elif name.endswith("correction_bias"):
        yield f"{at}exp_probs_b.bias", shape
    elif halves and name.endswith("kv_b_proj.weight"):
        heads, rank = config["num_attention_heads"], config["kv_lora_rank"]
        yield f"{at}attn_k_b.weight", (heads, rank, config["qk_nope_head_dim"])
        yield f"{at}attn_v_b.weight", (heads, config["v_head_dim"], rank)
    elif name.endswith("linear_attn.conv1d.weight"):
        yield f"{at}ssm_conv1d.weight", (shape[0], shape[2])
    elif name.endswith(("A_log", "dt_bias")):
        yield f"{at}{'ssm_a' if name.endswith('A_log') else 'ssm_dt.bias'}", shape
    else:
        yield name, shape


def facts(writer: Any, config: dict[str, Any], *, halves: bool = False) -> None:
    """What the converter says of the model beside its tensors."""
    get = config.get
    heads = config["num_attention_heads"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_head_count(heads)
    if get("intermediate_size"):
        writer.add_feed_forward_length(config["intermediate_size"])
    if get("kv_lora_rank"):
        nope, rope, wide = (config[k] for k in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
        rank = config["kv_lora_rank"]
        writer.add_rope_dimension_count(rope)
        writer.add_kv_lora_rank(rank)
        if get("q_lora_rank"):
            writer.add_q_lora_rank(config["q_lora_rank"])
        writer.add_head_count_kv(1 if halves else heads)
        writer.add_key_length(rank + rope if halves else nope + rope)
        writer.add_value_length(rank if halves else wide)
        if halves:
            writer.add_key_length_mla(nope + rope)
            writer.add_value_length_mla(wide)
        writer.add_leading_dense_block_count(config["first_k_dense_replace"])
        writer.add_expert_shared_count(config["n_shared_experts"])
    else:
        writer.add_head_count_kv(get("num_key_value_heads") or heads)
        if get("head_dim"):
            writer.add_key_length(config["head_dim"])
            writer.add_value_length(config["head_dim"])
    experts = get("num_experts") or get("num_local_experts") or get("n_routed_experts")
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(get("moe_intermediate_size") or config["intermediate_size"])
    if config["model_type"] == "deepseek_v3":
        from gguf import ExpertGatingFuncType

        writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    if config["model_type"] == "glm4_moe":
        writer.add_expert_shared_count(config["n_shared_experts"])
        writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    if get("shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    if get("sliding_window") and get("use_sliding_window") is not False:
        writer.add_sliding_window(config["sliding_window"])
    if get("linear_num_value_heads"):
        writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
        writer.add_ssm_state_size(config["linear_key_head_dim"])
        writer.add_ssm_group_count(config["linear_num_key_heads"])
        writer.add_ssm_time_step_rank(config["linear_num_value_heads"])
        writer.add_ssm_inner_size(config["linear_value_head_dim"] * config["linear_num_value_heads"])


def chosen(kinds: dict[str, str], default: str) -> Chosen:
    """`kinds` by a part of the name for matrices, fp32 for the rest, as llama.cpp's quantiser leaves it."""

    def of(name: str, shape: Shape) -> str:
        small = len(shape) == 1 or "norm" in name or "gate_inp" in name or "conv1d" in name or name.endswith(".bias")
        if small:
            return "F32"
        return next((kind for part, kind in kinds.items() if part in name), default)

    return of


def write(path: Path, config: dict[str, Any], arch: str, of: Chosen, *, halves: bool = False) -> tuple[int, int]:
    """The header of a file without its data; parameters and bytes of its tensors, those that count alone."""
    from gguf import GGUFWriter
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    writer = GGUFWriter(path, arch)
    facts(writer, config, halves=halves)
    writer.add_token_list([f"t{i}" for i in range(1000)])
    elements = size = 0
    for name, shape in tensors_of(config, arch, halves=halves):
        kind = GGMLQuantizationType[of(name, shape)]
        block, bytes_ = GGML_QUANT_SIZES[kind]
        n = int(np.prod(shape, dtype=np.int64))
        assert shape[-1] % block == 0, (name, shape)
        stored = n // block * bytes_
        last = shape[-1] // block * bytes_
        writer.add_tensor_info(name, [*shape[:-1], last], np.dtype(np.uint8), stored, raw_dtype=kind)
        if "rope_freqs" not in name and "exp_probs" not in name:
            elements, size = elements + n, size + stored
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return elements, size
