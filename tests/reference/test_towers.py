"""Vision towers: parameters equal to those that transformers builds on the meta device."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.model.architectures.towers import TOWERS, tower_of
from simulator.model.reader import Reader

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

QWEN2 = {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "patch_size": 14, "hidden_size": 64}
QWEN25 = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 64}
QWEN3 = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 64}
SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
CLIP = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("qwen2_vl", QWEN2, {}),
    ("qwen2_5_vl", {**QWEN25, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]}, {}),
    ("qwen3_vl", {**QWEN3, "deepstack_visual_indexes": [8, 16, 24]}, {}),
    ("qwen3_vl", {**QWEN3, "deepstack_visual_indexes": [5]}, {}),
    ("qwen3_5", QWEN3, {}),
    ("gemma3", {**SIGLIP, "image_size": 896, "patch_size": 14, "vision_use_head": False}, {"mm_tokens_per_image": 256}),
    ("gemma3", {**SIGLIP, "image_size": 448, "patch_size": 14}, {}),
    ("paligemma", {**SIGLIP, "image_size": 224, "patch_size": 14, "vision_use_head": False}, {"projection_dim": 64}),
    ("llava", {**CLIP, "image_size": 336, "patch_size": 14, "model_type": "clip_vision_model"}, {}),
    ("llava_next", {**CLIP, "image_size": 336, "patch_size": 14, "model_type": "clip_vision_model"}, {}),
    ("mistral3", {**CLIP, "image_size": 1540, "patch_size": 14, "head_dim": 64, "model_type": "pixtral"}, {}),
    (
        "kimi_k25",
        {**SIGLIP, "patch_size": 14, "pos_emb_height": 64, "pos_emb_width": 64, "merge_kernel_size": [2, 2]},
        {},
    ),
]


@pytest.mark.parametrize(("kind", "vision", "more"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)])
def test_as_many_parameters_as_transformers(kind: str, vision: dict[str, Any], more: dict[str, Any]) -> None:
    base = transformers.AutoConfig.for_model(kind)
    text = {k: v for k, v in base.text_config.to_dict().items() if k != "layer_types"}
    shared = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 128, "pad_token_id": 0}
    text |= {**shared, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16}
    if "mlp_layer_types" in text:
        text["mlp_layer_types"] = text["mlp_layer_types"][:1]
    config = transformers.AutoConfig.for_model(kind, text_config=text, vision_config=dict(vision), **more)
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    parts = ("visual", "vision_tower", "multi_modal_projector", "mm_projector", "image_newline")
    named = {n: p.numel() for n, p in model.named_parameters() if any(part in n for part in parts)}
    whole = {"model_type": kind, "vision_config": vision, **more}
    got, notes = tower_of(whole, Reader(whole, "t"), 64)
    assert notes == ()
    assert got is not None
    assert got.n_params == sum(named.values())
    if kind in ("llava", "llava_next"):
        assert got.n_layers == 23


def test_every_reader_is_tried() -> None:
    # Their vision parts are those of qwen3_vl and qwen3_5; VipLLaVA is refused.
    assert set(TOWERS) - {kind for kind, *_ in CASES} == {"qwen3_vl_moe", "qwen3_5_moe", "vipllava"}
