"""Text parts of models with towers: which they are, and what their files leave out."""

from __future__ import annotations

from collections.abc import Mapping

NESTED_KINDS: Mapping[str, str] = {
    **dict.fromkeys(("llava", "llava_next", "llava_next_video", "video_llava", "vipllava"), "llama"),
    "paligemma": "gemma",
    "mistral3": "mistral",
    "llava_onevision": "qwen2",
}
"""``model_type`` of the text part where the file does not say, as transformers has it; ``NAME_text`` goes first."""

_GEMMA = {"max_position_embeddings": 8192, "head_dim": 256}
NESTED_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "llama": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "vocab_size": 32_000,
    },
    "mistral": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "vocab_size": 32_000,
        "sliding_window": 4096,
    },
    "qwen2": {
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32_768,
        "vocab_size": 151_936,
    },
    "gemma": {
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": 256_000,
        **_GEMMA,
    },
    "gemma2": {
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 256_000,
        "sliding_window": 4096,
        **_GEMMA,
    },
}
"""Keys that transformers leaves out of a nested text part where they equal its class's defaults."""
