"""Vision towers: memory where they are loaded, prompt tokens and ops where images are asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from simulator.base.dtypes import get_format
from simulator.base.errors import InputError
from simulator.inference.evaluate import evaluate
from simulator.inference.group import Group, group_of
from simulator.inference.memory import weights_bytes
from simulator.inference.status import Status
from simulator.inference.tower import ops
from simulator.model import hub
from simulator.model.architectures import from_config
from simulator.ops.ops import Attention, Linear
from simulator.ops.step import prefill_step
from simulator.scenario.scenario import Scenario
from simulator.serving.deployment import Deployment

TEXT = {
    "model_type": "qwen2",
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 1000,
    "max_position_embeddings": 32768,
}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
}


def asked(**more: Any) -> Group:
    return group_of(Scenario(model="gemma-3-4b", device="h100-sxm", **more))


def test_clip_by_hand() -> None:
    """4 x 4 patches of 7 x 7 x 3 = 147 values; class, positions of 17, two norms around; 3 layers, of which 2 run."""
    tower = from_config({"model_type": "llava", "text_config": TEXT, "vision_config": CLIP}, "seeing").tower
    assert tower is not None
    layer = 4 * 64 * 64 + 4 * 64 + 4 * 64 + (64 * 128 + 128) + (128 * 64 + 64)
    around = 64 + 147 * 64 + 17 * 64 + 4 * 64
    projector = 64 * 1024 + 1024 + 1024 * 1024 + 1024
    assert tower.n_params == around + 3 * layer + projector
    assert (tower.n_layers, tower.patches, tower.tokens) == (2, 16, 16)


def test_windows_and_mergers_are_work() -> None:
    """Every pair of patches within a window of 4, or of 16: 2 x (16 + 16) flop a pair and head; 4 patches a token."""
    vision = {"depth": 3, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "patch_size": 14}
    vision |= {"window_size": 28, "fullatt_block_indexes": [2], "out_hidden_size": 1024}
    tower = from_config({"model_type": "qwen2_5_vl", "text_config": TEXT, "vision_config": vision}, "x").tower
    assert tower is not None
    assert (tower.window, tower.n_windowed) == (4, 2)
    small = replace(tower, patches=16, tokens=4)
    found = list(ops(small, 1, get_format("bf16"), 3.0))
    flop = sum(op.traffic().total_flop * op.count for op in found if isinstance(op, Attention))
    assert flop == pytest.approx(3 * 4 * 64 * (1 * 16 * 16 + 2 * 4 * 4 * 4))
    ends = [(op.m, op.n, op.k) for op in found if isinstance(op, Linear) and op.role == "tower.projector"]
    assert ends == [(12.0, 256.0, 256), (12.0, 1024.0, 256)]
    layers = {op.role: (op.m, op.n, op.k, op.count) for op in found if isinstance(op, Linear)}
    assert layers["tower.up"] == (48.0, 192.0, 64, 3.0)
    assert layers["tower.patches"] == (48.0, 64, 1176, 1.0)


def test_a_tower_is_memory_unless_left_out() -> None:
    tower = hub.find_model("gemma-3-4b").tower
    assert tower is not None
    plain, without, halves = asked(), asked(text_only=True), asked(tp=2)
    assert weights_bytes(plain.lowering) - weights_bytes(without.lowering) == 2.0 * tower.n_params
    alone = asked(tp=2, text_only=True)
    assert weights_bytes(halves.lowering) - weights_bytes(alone.lowering) == tower.n_params
    assert any("a vision tower of 0.42 B parameters is loaded; --text-only" in note for note in plain.notes)
    assert not any("vision" in note for note in without.notes)


def test_images_are_prompt_tokens_and_work_of_the_first_token_alone() -> None:
    """Two images of 256 tokens each: as 512 more tokens, and beside them the tower."""
    seeing, reading = (evaluate(asked(images=n), 4.0, 1024.0 - 512.0 * (n > 0), 32.0) for n in (2, 0))
    assert seeing.ttft_s.mid > reading.ttft_s.mid
    assert seeing.tpot_s.mid == reading.tpot_s.mid
    assert seeing.footprint.kv_bytes == reading.footprint.kv_bytes
    assert seeing.max_batch == reading.max_batch
    low = asked(images=2).lowering
    mine = [op for op in low.ops(prefill_step(4.0, 1024.0, images=8.0)) if op.role.startswith("tower.")]
    assert {op.role for op in mine} >= {"tower.attention", "tower.qkv", "tower.projector", "tower.patches"}
    assert not [op for op in low.ops(prefill_step(4.0, 1024.0)) if op.role.startswith("tower.")]
    assert next(op for op in mine if op.role == "tower.qkv").m == 8.0 * 4096


def test_images_count_against_the_context() -> None:
    limit = hub.find_model("gemma-3-4b").max_context
    at = [evaluate(asked(images=n), 1.0, limit - 300.0, 32.0).status for n in (0, 1, 2)]
    assert [Status(int(s)) for s in at] == [Status.OK, Status.OK, Status.EXCEEDS_CONTEXT]


def test_models_that_do_not_see_take_no_images() -> None:
    for model, more in (("llama-3.1-8b", {}), ("gemma-3-4b", {"text_only": True})):
        problem = group_of(Scenario(model=model, device="h100-sxm", images=1, **more)).problem
        assert problem is not None
        assert "read without a vision tower, so it takes no images" in problem[1]
    with pytest.raises(InputError, match="serving knows prompts of text alone"):
        Deployment(Scenario(model="gemma-3-4b", device="h100-sxm", images=1))


@pytest.mark.parametrize(
    ("top", "said"),
    [
        ({"model_type": "some_vl", "vision_config": {"depth": 2}}, "the vision part is not modelled"),
        ({"model_type": "llava", "vision_config": {**CLIP, "patch_size": 0}}, "neither counted nor run: "),
        ({"model_type": "llava", "vision_config": {**CLIP, "model_type": "eva"}}, "of LLaVA's towers CLIP is read"),
        ({"model_type": "llava", "vision_config": {**CLIP, "patch_size": 99}}, "larger than an image"),
        ({"model_type": "llava", "vision_config": CLIP, "vision_feature_layer": [1, 2]}, "vision_feature_layer"),
        ({"model_type": "some_omni", "audio_config": {"layers": 2}}, "the audio part is not modelled"),
    ],
)
def test_what_is_not_understood_is_told(top: dict[str, Any], said: str) -> None:
    model = from_config({**top, "text_config": TEXT}, "x")
    assert model.tower is None
    assert any(said in note for note in model.notes)
