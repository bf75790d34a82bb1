"""Hand-worked counts, layer shapes per family, and configs that are wrong."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.base.errors import InputError, ShadowlineError
from simulator.model import hub
from simulator.model.architectures import ARCHITECTURES, from_config
from simulator.model.spec import PARTS, AttentionSpec, FfnSpec, LayerSpec, ModelSpec, MoeSpec

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 16,
    "max_position_embeddings": 32,
    "torch_dtype": "bfloat16",
}


def bundled(name: str) -> dict[str, Any]:
    return json.loads((files("hw_profiles") / "models" / f"{name}.json").read_text("utf-8"))


# One small published model of every bundled architecture.
EXAMPLES = {
    text["model_type"]: text
    for text in (bundled(name).get("text_config", bundled(name)) for name in reversed(hub.list_models()))
}


def test_tiny_llama_by_hand() -> None:
    """Width 8, 4 heads of 2, 2 kv heads: q 64 + k 32 + v 32 + o 64 = 192; FFN 3*8*24 = 576;
    two norms 16; a layer is 784. Two layers 1568, embedding and output 128 each, last norm 8.
    """
    model = from_config(LLAMA, "tiny")
    assert model.params_by_part() == {
        "embedding": 128,
        "position": 0,
        "attention": 384,
        "ffn": 1152,
        "router": 0,
        "norm": 40,
        "projection": 0,
        "lm_head": 128,
    }
    assert model.n_params == 1832
    assert model.kv_bytes_per_token(2) == 2 * 2 * (2 * 2) * 2
    assert model.weight_bytes(2) == 3664


def test_llama_2_7b() -> None:
    model = hub.find_model("llama-2-7b")
    assert model.n_params == 6_738_415_616
    assert model.weight_bytes(2) == pytest.approx(13.48e9, rel=5e-4)  # the card rounds to 4 digits
    assert model.kv_bytes_per_token(2) == 524_288
    assert model.dtype == "fp16"


def test_grouped_heads_shrink_the_cache_of_llama_3_1_8b() -> None:
    model = hub.find_model("llama-3.1-8b")
    assert model.kv_bytes_per_token(2) == 131_072
    assert model.layers[0].attention.group_size == 4


def test_mla_caches_the_latent_once() -> None:
    """DeepSeek-V3: 61 layers * (512 + 64) elements * 2 B."""
    model = hub.find_model("deepseek-v3")
    assert model.kv_bytes_per_token(2) == 61 * 576 * 2 == 70_272
    assert model.layers[0].attention.kv_elements_per_token == 576
    dense, routed = model.layer_groups()
    assert dense[1] == (0, 1, 2)
    assert routed[1] == tuple(range(3, 61))
    assert isinstance(routed[0].ffn, MoeSpec)
    assert routed[0].ffn.shared == FfnSpec(2048, True, "silu")
    assert (routed[0].ffn.n_groups, routed[0].ffn.top_k_groups) == (8, 4)
    assert {f.name for layer in model.layers for _, f in layer.formats.listed} == {"fp8_block"}
    assert any("multi-token" in note for note in model.notes)


@pytest.mark.parametrize(
    ("name", "active"),
    [
        ("mixtral-8x7b", 12_879_925_248),  # Mixtral, arXiv:2401.04088: 12.9 B
        ("deepseek-v3", 37.55e9),  # arXiv:2412.19437: 37 B, which leaves an embedding out
        ("qwen3-30b-a3b", 3.35e9),  # model card: 3.3 B
        ("llama-2-7b", 6_738_415_616),  # dense: all of them
    ],
)
def test_active_parameters(name: str, active: float) -> None:
    # One in a thousand: the published totals are rounded to that.
    assert hub.find_model(name).n_active_params == pytest.approx(active, rel=2e-3)


def test_windows_per_layer() -> None:
    assert {layer.attention.window for layer in hub.find_model("mistral-7b-v0.1").layers} == {4096}
    assert {layer.attention.window for layer in hub.find_model("mistral-7b-v0.3").layers} == {None}
    gemma = [layer.attention.window for layer in hub.find_model("gemma-2-9b").layers]
    assert gemma[:4] == [4096, None, 4096, None]
    gemma = [layer.attention.window for layer in hub.find_model("gemma-3-12b").layers]
    assert gemma[:7] == [1024] * 5 + [None, 1024]
    oss = hub.find_model("gpt-oss-20b").layers
    assert [layer.attention.window for layer in oss[:3]] == [128, None, 128]
    assert all(layer.attention.sinks for layer in oss)
    assert {layer.attention.window for layer in hub.find_model("qwen2.5-7b").layers} == {None}


def test_kv_bytes_stops_growing_inside_a_window() -> None:
    model = hub.find_model("gemma-3-1b")
    short, long = model.kv_bytes([512, 8192], 2)
    assert short == 512 * model.kv_bytes_per_token(2)
    full = sum(layer.attention.window is None for layer in model.layers)
    per_layer = 2 * 1 * 256 * 2
    assert long == per_layer * (full * 8192 + (26 - full) * 512)
    assert model.kv_bytes(np.zeros((2, 3))).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "position", "kv_heads", "parallel", "gated", "n_norms"),
    [
        ("falcon-7b", "rope", 1, True, False, 1),
        ("falcon-40b", "rope", 8, True, False, 2),
        ("bloom-7b1", "alibi", 32, False, False, 2),
        ("mpt-7b", "alibi", 32, False, False, 2),
        ("starcoder", "learned", 1, False, False, 2),
        ("gpt-neox-20b", "rope", 64, True, False, 2),
        ("gpt-j-6b", "rope", 16, True, False, 1),
        ("opt-30b", "learned", 56, False, False, 2),
        ("glm-4-9b", "rope", 2, False, True, 2),
        ("gemma-2-9b", "rope", 8, False, True, 4),
        ("phi-2", "rope", 32, True, False, 1),
        ("command-r-35b", "rope", 64, True, True, 1),
    ],
)
def test_shape_of_a_family(name: str, position: str, kv_heads: int, parallel: bool, gated: bool, n_norms: int) -> None:
    layer = hub.find_model(name).layers[0]
    assert isinstance(layer.ffn, FfnSpec)
    assert (layer.attention.position, layer.attention.n_kv_heads) == (position, kv_heads)
    assert (layer.parallel, layer.ffn.gated, layer.n_norms) == (parallel, gated, n_norms)


def test_opt_350m_is_the_odd_one() -> None:
    model = hub.find_model("opt-350m")
    assert model.embed_proj_dim == 512
    assert not model.final_norm
    assert model.learned_positions == 2050
    assert model.params("projection") == 2 * 512 * 1024


def test_old_and_new_glm_files_describe_one_model() -> None:
    old, new = hub.find_model("glm-4-9b"), hub.find_model("glm-4-9b-chat")
    assert old.n_params == new.n_params
    assert replace(old.layers[0].attention, fused_qkv=False) == new.layers[0].attention


@pytest.mark.parametrize("name", hub.list_models())
def test_every_bundled_model_adds_up(name: str) -> None:
    model = hub.find_model(name)
    assert sum(model.params(part) for part in PARTS) == model.n_params
    assert 0 < model.n_active_params <= model.n_params
    assert sorted(i for _, where in model.layer_groups() for i in where) == list(range(model.n_layers))
    assert model.source
    assert hash(model) == hash(replace(model))
    assert model == replace(model)


def test_specs_are_frozen_and_hashable() -> None:
    model = hub.find_model("llama-2-7b")
    with pytest.raises(FrozenInstanceError):
        model.hidden = 1  # type: ignore[misc]
    assert hash(model.layers[0]) == hash(model.layers[31])
    assert {model: 1}[hub.find_model("Llama 2 7B")] == 1


def test_nested_text_part_is_found() -> None:
    text = bundled("gemma-3-4b")["text_config"]
    model = from_config({"model_type": "gemma3", "text_config": text, "dtype": "bfloat16"}, "nested")
    assert model.layers == hub.find_model("gemma-3-4b").layers
    assert model.notes[0].startswith("only the text part of 'gemma3' is modelled")


def test_gemma_3_4b_as_published_without_head_counts() -> None:
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "sliding_window": 1024,
    }
    model = from_config({"model_type": "gemma3", "text_config": text}, "published")
    assert model.layers == hub.find_model("gemma-3-4b").layers


def test_quantised_config_keeps_its_shape() -> None:
    awq = {**LLAMA, "quantization_config": {"quant_method": "awq", "bits": 4}}
    model = from_config(awq, "tiny")
    assert model.method == "awq"
    assert {f.name for layer in model.layers for _, f in layer.formats.listed} == {"w4a16"}
    assert model.stored(lambda *_: None).layers == from_config(LLAMA, "tiny").layers


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": None}, "'num_hidden_layers' is missing"),
        ({"num_hidden_layers": 0}, "'num_hidden_layers' is 0"),
        ({"num_hidden_layers": 10**9}, "'num_hidden_layers'"),
        ({"hidden_size": -8}, "'hidden_size' is -8"),
        ({"hidden_size": "8"}, "'hidden_size' is '8'; it must be a whole number"),
        ({"hidden_size": float("nan")}, "'hidden_size' is nan"),
        ({"hidden_size": True}, "'hidden_size' is True"),
        ({"hidden_size": 8.5}, "'hidden_size' is 8.5"),
        ({"hidden_size": 10}, "not a multiple of 4 heads"),
        ({"num_key_value_heads": 3}, "'num_key_value_heads' is 3, which does not divide the 4"),
        ({"vocab_size": [16]}, "'vocab_size'"),
        ({"hidden_act": "cosine"}, "'hidden_act' names the activation 'cosine'; known"),
        ({"tie_word_embeddings": "yes"}, "'tie_word_embeddings' is 'yes'; it must be true"),
        ({"torch_dtype": "complex64"}, "'torch_dtype' is 'complex64'; known"),
        ({"layer_types": ["full_attention"]}, "'layer_types' lists 1 layers, the model has 2"),
        ({"layer_types": ["linear_attention"] * 2}, "'linear_attention', which is not supported"),
        ({"layer_types": ["sliding_attention"] * 2}, "'sliding_window' is missing"),
        ({"quantization_config": 4}, "'quantization_config' is 4"),
    ],
)
def test_bad_key_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        from_config({**LLAMA, **change}, "tiny", where="my/config.json")
    assert said in str(caught.value)
    assert str(caught.value).startswith("my/config.json")
    assert "\n" not in str(caught.value)


def test_line_of_a_bad_key_is_named() -> None:
    text = json.dumps({**LLAMA, "vocab_size": -1}, indent=1)
    line = 1 + next(i for i, row in enumerate(text.splitlines()) if "vocab_size" in row)
    with pytest.raises(InputError, match=rf"^config.json:{line}: "):
        from_config(json.loads(text), "tiny", where="config.json", text=text)


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_more_picks_than_experts(family: str) -> None:
    with pytest.raises(InputError, match="num_experts_per_tok"):
        from_config({**EXAMPLES[family], "num_experts_per_tok": 999}, "moe")


def test_unsupported_architecture_lists_the_supported() -> None:
    with pytest.raises(InputError, match=r"'t5' is not supported.*llama.*mixtral"):
        from_config({"model_type": "t5"}, "flan")
    with pytest.raises(InputError, match=r"did you mean qwen2"):
        from_config({"model_type": "qwen22"}, "typo")
    with pytest.raises(InputError, match="'model_type' is missing"):
        from_config({}, "empty")
    with pytest.raises(InputError, match="never run"):
        from_config({"model_type": "xyz", "auto_map": {"AutoConfig": "x"}}, "remote")
    with pytest.raises(InputError, match="JSON object"):
        from_config([1], "list")  # type: ignore[arg-type]


def test_specs_refuse_nonsense_without_a_file() -> None:
    with pytest.raises(InputError, match="cannot be shared"):
        AttentionSpec(4, 3, 8, 8)
    with pytest.raises(InputError, match=r"FfnSpec\.intermediate"):
        FfnSpec(0, True, "silu")
    with pytest.raises(InputError, match="only 2 experts"):
        MoeSpec(2, 3, FfnSpec(8, True, "silu"))
    with pytest.raises(InputError, match="no layers"):
        ModelSpec("x", "llama", 8, 8, (), False, 8)
    layer = LayerSpec(AttentionSpec(1, 1, 8, 8), FfnSpec(8, True, "silu"))
    model = ModelSpec("x", "llama", 8, 8, (layer,), False, 8)
    with pytest.raises(InputError, match="unknown model part"):
        model.params("nose")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="missing for"):
        model.weight_bytes({"ffn": 1.0})


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-10, 10**13)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["silu", "full_attention", "float16", "1", "gemma3_text"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["alibi", "bits", "attn_type", "x"]), inner, max_size=3)
    ),
    max_leaves=4,
)


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_a_mutated_config_gives_a_model_or_one_clear_line(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(EXAMPLES)))
    config = dict(EXAMPLES[kind])
    extra = ["layer_types", "text_config", "sliding_window", "quantization_config", "head_dim"]
    for key in data.draw(st.lists(st.sampled_from([*sorted(config), *extra]), max_size=4)):
        if data.draw(st.booleans()):
            config[key] = data.draw(JSON_VALUES)
        else:
            config.pop(key, None)
    try:
        model = from_config(config, "mutant")
    except ShadowlineError as caught:
        said = str(caught)
        model = None
    else:
        said = ""
    assert "\n" not in said
    assert model is None or (model.n_params > 0 and model.kv_bytes_per_token(2) > 0)


def test_every_architecture_we_bundle_is_registered() -> None:
    assert set(EXAMPLES) <= set(ARCHITECTURES)
