"""What a GGUF file says of its architecture, as the ``config.json`` that the same model has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from simulator.base.errors import InputError, suggest
from simulator.model.gguf.header import Header

Config = dict[str, Any]

_SHARED = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.sliding_window": "sliding_window",
    "attention.key_length": "head_dim",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_shared_count": "n_shared_experts",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "leading_dense_block_count": "first_k_dense_replace",
    "nextn_predict_layers": "num_nextn_predict_layers",
    "full_attention_interval": "full_attention_interval",
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads",
    "attention.indexer.head_count": "index_n_heads",
    "attention.indexer.key_length": "index_head_dim",
    "attention.indexer.top_k": "index_topk",
}
"""Keys of a config by the fact that says the same."""
_EXPERT_KEYS = {
    **dict.fromkeys(("mixtral", "gpt_oss", "minimax_m2"), "num_local_experts"),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "glm4_moe"), "n_routed_experts"),
}
"""What a config calls its number of experts where that is not ``num_experts``."""
_PER_LAYER = ("feed_forward_length", "attention.head_count", "attention.head_count_kv")


class _Facts:
    """Facts of one architecture, without its name in front."""

    def __init__(self, header: Header, where: str):
        self.header, self.where = header, where
        said = header.facts.get("general.architecture")
        if not isinstance(said, str) or not said:
            raise InputError("does not say its general.architecture", where=where)
        self.architecture: str = said

    def get(self, key: str) -> Any:
        return self.header.facts.get(f"{self.architecture}.{key}")

    def fail(self, key: str, problem: str) -> InputError:
        return InputError(f"says {self.architecture}.{key} = {str(self.get(key))[:40]}, {problem}", where=self.where)

    def whole(self, key: str) -> int:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"does not say {self.architecture}.{key}", where=self.where)
        return value

    def has(self, name: str) -> bool:
        return any(f"blk.{i}.{name}" in self.header.tensors for i in (0, 1, 3))


def config_of(header: Header, where: str) -> Config:
    """The facts under the keys of a ``config.json``.

    Raises
    ------
    InputError
        An architecture that is not known, a fact that is missing or differs by layer.
    """
    facts = _Facts(header, where)
    known = ARCHITECTURES.get(facts.architecture)
    if known is None:
        close = suggest(facts.architecture, ARCHITECTURES)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(ARCHITECTURES))}"
        raise InputError(f"holds the architecture {facts.architecture!r}, which is not read; {hint}", where=where)
    config: Config = {}
    for fact, key in _SHARED.items():
        value = facts.get(fact)
        if isinstance(value, list):
            # Where layers differ, those that are not of the first kind are the mixtures' (0) or not known.
            kinds = set(value) - {0} if fact in _PER_LAYER else set()
            if len(kinds) != 1:
                raise facts.fail(fact, "which differs from layer to layer and is not modelled")
            value = kinds.pop()
        if value is not None:
            config[key] = value
    config["num_hidden_layers"] = facts.whole("block_count") - int(config.get("num_nextn_predict_layers", 0))
    experts = facts.get("expert_count")
    config["vocab_size"] = _vocab(header, where)
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    config["attention_bias"] = facts.has("attn_output.bias")
    wide, keys = facts.get("attention.value_length"), facts.get("attention.key_length")
    if "kv_lora_rank" not in config and None not in (wide, keys) and wide != keys:
        raise facts.fail("attention.value_length", "another width than that of the keys, which is not modelled")
    model_type, more = known
    config["model_type"] = model_type
    more(facts, config)
    if experts:
        config[_EXPERT_KEYS.get(config["model_type"], "num_experts")] = experts
    return config


def _vocab(header: Header, where: str) -> int:
    table = header.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise InputError("has no token_embd.weight", where=where)
    return table.shape[1]


def _plain(_facts: _Facts, _config: Config) -> None:
    """Nothing but the shared keys."""


def _llama(facts: _Facts, config: Config) -> None:
    if facts.get("expert_count"):
        config["model_type"] = "mixtral"
        _experts_inside(facts, config)


def _sliding(facts: _Facts, config: Config) -> None:
    """Which layers slide, where the file lists it."""
    listed = facts.get("attention.sliding_window_pattern")
    if isinstance(listed, list):
        config["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in listed]
    elif isinstance(listed, int) and listed > 0:
        config["sliding_window_pattern"] = listed


def _whole_window(_facts: _Facts, config: Config) -> None:
    """llama.cpp keeps the whole context of Phi-3 where the file says so."""
    if not config.get("sliding_window"):
        config.pop("sliding_window", None)


def _experts_inside(_facts: _Facts, config: Config) -> None:
    """Experts whose width stands where that of a dense layer does."""
    config["intermediate_size"] = config.pop("moe_intermediate_size", None) or config.get("intermediate_size")


def _glm_moe(facts: _Facts, config: Config) -> None:
    config["use_qk_norm"] = facts.has("attn_q_norm.weight")
    config["attention_bias"] = facts.has("attn_q.bias")


def _deepseek(facts: _Facts, config: Config) -> None:
    rope = facts.whole("rope.dimension_count")
    # Files with the two halves of kv_b apart state the widths of the absorbed form, and these beside them.
    keys = facts.get("attention.key_length_mla") or facts.whole("attention.key_length")
    config["v_head_dim"] = facts.get("attention.value_length_mla") or facts.whole("attention.value_length")
    config["qk_rope_head_dim"], config["qk_nope_head_dim"] = rope, keys - rope
    config.pop("head_dim", None)
    if facts.get("expert_gating_func") != 2:
        config["model_type"] = "deepseek_v2"


def _hybrid(facts: _Facts, config: Config) -> None:
    heads = facts.whole("ssm.time_step_rank")
    inner = facts.whole("ssm.inner_size")
    if heads <= 0 or inner % heads:
        raise facts.fail("ssm.inner_size", f"which {heads} heads cannot share")
    config["linear_value_head_dim"] = inner // heads


def _olmo(_facts: _Facts, config: Config) -> None:
    config["attention_bias"] = False


def _command_r(facts: _Facts, config: Config) -> None:
    config["use_qk_norm"] = facts.has("attn_q_norm.weight")


ARCHITECTURES: Mapping[str, tuple[str, Callable[[_Facts, Config], None]]] = {
    "llama": ("llama", _llama),
    "mistral3": ("mistral", _plain),
    "qwen2": ("qwen2", _plain),
    "qwen2vl": ("qwen2_vl_text", _plain),
    "qwen2moe": ("qwen2_moe", _plain),
    "qwen3": ("qwen3", _plain),
    "qwen3vl": ("qwen3_vl_text", _plain),
    "qwen3moe": ("qwen3_moe", _plain),
    "qwen3vlmoe": ("qwen3_vl_moe_text", _plain),
    "qwen3next": ("qwen3_next", _hybrid),
    "qwen35": ("qwen3_5_text", _hybrid),
    "qwen35moe": ("qwen3_5_moe_text", _hybrid),
    "gemma": ("gemma", _plain),
    "gemma2": ("gemma2", _plain),
    "gemma3": ("gemma3_text", _sliding),
    "phi3": ("phi3", _whole_window),
    "olmo2": ("olmo2", _olmo),
    "command-r": ("cohere", _command_r),
    "glm4": ("glm4", _plain),
    "glm4moe": ("glm4_moe", _glm_moe),
    "deepseek2": ("deepseek_v3", _deepseek),
    "gpt-oss": ("gpt_oss", _experts_inside),
    "minimax-m2": ("minimax_m2", _experts_inside),
}
"""``model_type`` of llama.cpp's architectures, and what their facts say besides the shared keys."""
