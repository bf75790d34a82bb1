"""transformers' own models on the meta device: no weights, no network."""

from __future__ import annotations

from typing import Any

import pytest

_AROUND = ("visual", "vision", "image", "audio", "speech", "connector", "projector")
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
    parts = [model.get_decoder() or model, model.get_input_embeddings(), model.get_output_embeddings()]
    if not any(p is parts[1].weight for p in parts[0].parameters()) and not hasattr(parts[0], "layers"):
        parts[0] = model
    seen = {}
    for part in parts:
        if part is not None:
            named = part.named_parameters()
            seen |= {id(p): p.numel() for name, p in named if not any(word in name for word in _AROUND)}
    return sum(seen.values())
