"""transformers' own models on the meta device: no weights, no network."""

from __future__ import annotations

from typing import Any

import pytest

_AROUND = ("visual", "vision", "image", "audio", "speech", "connector", "projector", "vqmodel")
"""Words in the names of modules around the text part."""


def twin(config: Any) -> Any:
    """transformers' model of one of its configs, on the meta device."""
    torch = pytest.importorskip("torch", reason="torch not installed")
    transformers = pytest.importorskip("transformers", reason="transformers not installed")
    nested = config.get_text_config(decoder=True) is not config
    autos = (transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText)
    autos = (*(reversed(autos) if nested else autos), transformers.AutoModelForMultimodalLM)
    auto = next((a for a in autos if type(config) in set(a._model_mapping)), None)
    assert auto is not None, f"{config.model_type} has no generative class"
    with torch.device("meta"):
        model = auto.from_config(config)
    model.tie_weights()
    return model


def text_params(model: Any) -> int:
    """Parameters of the text part: decoder, embedding and output, each shared tensor once [-]."""
    decoder = model.get_decoder()
    if decoder is None or not list(decoder.children()):
        # An output matrix that is called a decoder.
        decoder = model
    parts = [decoder, model.get_input_embeddings(), model.get_output_embeddings()]
    seen = {}
    for part in parts:
        if part is not None:
            named = part.named_parameters()
            seen |= {id(p): p.numel() for name, p in named if not any(word in name for word in _AROUND)}
    return sum(seen.values())


def kept_elements(model: Any, tokens: int = 4) -> float:
    """K, V and latents that transformers' cache of a prompt of `tokens` holds for each of them [-]."""
    import torch

    # Loops over the experts that were hit cannot run without values.
    model.eval().set_experts_implementation("batched_mm")
    prompt = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    with torch.no_grad():
        cache = model(input_ids=prompt, use_cache=True).past_key_values
    kept = [t for layer in cache.layers for t in (getattr(layer, "keys", None), getattr(layer, "values", None))]
    return sum(t.numel() for t in kept if t is not None) / tokens
