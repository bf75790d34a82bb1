"""The default config of every decoder that the installed transformers knows: read with its exact size, or refused.

A new release of transformers shows here what is missing: read it (a line in `simulator.model.architectures.families`
where it is a relative), or name it under `REFUSED` with what its layers have that ours have not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from twin import text_params, twin

from simulator.base.errors import InputError
from simulator.model.architectures import from_config
from simulator.model.names import modules_of, naming_of
from simulator.model.spec import ModelSpec

pytestmark = [pytest.mark.torch, pytest.mark.xdist_group("every decoder")]

_HEADS = {"head_dim": 64, "num_attention_heads": 8, "num_key_value_heads": 2}
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
_BY_LAYER = {"rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), _ROPE["rope_parameters"])}
SMALL: Mapping[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 2},
    "glm4_moe": _HEADS,
    "hunyuan_v1_dense": _HEADS | _ROPE,
    "hunyuan_v1_moe": _HEADS | _ROPE | {"num_experts": 4, "moe_topk": 2},
    "lfm2_moe": {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]},
    "ministral": _HEADS,
    "nemotron": _HEADS,
    "chameleon": _ROPE | {"vocabulary_map": {"<image>": 8711}},
    "granite4_vision": {"deepstack_layer_map": [], "spatial_target_layers": [], "downsample_rate": "4/8"},
    "emu3": {"vocabulary_map": {"<image>": 8711}},
    "cohere_compass": {"text_config": _BY_LAYER},
    "cohere_compass_text": _BY_LAYER,
    "hunyuan_vl": {"text_config": _HEADS | _ROPE},
    "deepseek_ocr2": {"text_config": {"num_experts_per_tok": 6}},
    "glm4v_moe": {"text_config": {"head_dim": 64}},
    "qwen3_omni_moe_thinker": {"text_config": {"head_dim": 64}},
    "qwen3_omni_moe": {"thinker_config": {"text_config": {"head_dim": 64}}},
}
"""What the default config of a class leaves open, so that even transformers makes no model of it."""

TEXT_ALONE = frozenset({"aya_vision", "fast_vlm", "gemma3n", "perception_lm"})
"""Models whose towers transformers does not build from their defaults."""
INNER = {"pi0": "vlm_config", "qwen2_5_omni": "thinker_config", "qwen3_omni_moe": "thinker_config"}
"""Models of several models, and the one that has the text part."""
UNBUILT = frozenset(
    {"deepseek_ocr2", "gemma4_assistant", "gemma4_unified_assistant", "musicgen", "musicgen_melody", "qwen3_omni_moe"}
)
"""Of these transformers builds nothing from any defaults, or they write no text."""

AUTHORS_NAMES = frozenset({"deepseek_v4", "nemotron_h", "gpt_neox", "kimi_linear", "minimax_m3_vl_text"})
"""Their checkpoints keep the authors' names of modules, which transformers renames as it loads them."""

_LAYERS: Mapping[str, str] = {
    "Mamba shared by several layers": "zamba zamba2",
    "linear attention of other kinds": "bailing_hybrid olmo_hybrid qwen4_exp qwen4_exp_text rwkv xlstm zaya",
    "short convolutions": "lfm3 lfm3_vl inkling2 inkling2_text inkling_mm_model inkling_text",
    "sparse attention of their own": "axk2 dots3_note dots3_note_text mistral_large4",
    "layers of several kinds": "diffusion_gemma",
    "two attentions in a layer, or experts in one": "longcat_flash jetmoe",
    "experts looked up by product keys": "doge",
    "attention to another model's tokens": "blip blt idefics mllama",
    "a loop over its layers": "hrm_text",
    "attention to references beside a window": "unlimited_ocr",
    "a config of configs that transformers itself does not build": "dbrx",
    "relative positions, embeddings of several kinds": "cpmant xlm xlnet",
}
REFUSED: Mapping[str, str] = {kind: why for why, kinds in _LAYERS.items() for kind in kinds.split()}
"""Decoders that are not read, and what they have."""


def decoders() -> Iterator[str]:
    """``model_type`` of every decoder-only language model and of every model around one."""
    pytest.importorskip("torch", reason="torch not installed")
    pytest.importorskip("transformers", reason="transformers not installed")
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kinds = set(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    kinds |= {*auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, *auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES}
    for kind in sorted(kinds):
        made = CONFIG_MAPPING[kind]
        defaults = getattr(made, "__dataclass_fields__", {})
        encoder = any(name in defaults for name in ("is_decoder", "cross_attention_freq")) and "gpt_neox" not in kind
        if not encoder and not getattr(made, "is_encoder_decoder", False) and kind not in UNBUILT:
            yield kind


def default_config(kind: str) -> Any:
    """transformers' config of `kind`, with what it leaves open filled in."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[kind](**SMALL.get(kind, {}))


def twin_of(kind: str, config: Any) -> Any:
    """transformers' model of `config`, or of its text part where that alone can be built."""
    inner = getattr(config, INNER[kind]) if kind in INNER else config
    return twin(inner.get_text_config(decoder=True) if kind in TEXT_ALONE else inner)


def unheard(model: ModelSpec, modules: set[str]) -> list[str]:
    """Names that quantisation lists of `model` would be looked for, but that its twin has not."""
    naming = naming_of(model)
    if naming is None:
        return []
    names = {naming.embed, naming.head}
    for layer, where in model.layer_groups():
        # transformers 5 stores all experts of a layer as one tensor; checkpoints do not.
        for matrix in (matrix for matrix in layer.matrices if matrix != "moe.experts"):
            names |= {f"{naming.layer.format(where[0])}.{name}" for name in modules_of(naming, layer, matrix)}
    return sorted(name for name in names if not {name, name.removeprefix("model.")} & modules)


@pytest.fixture(scope="module")
def outcome() -> tuple[dict[str, str], dict[str, list[str]]]:
    """What became of each decoder: "equal", "differs: ...", or why it is refused; and names that its twin has not."""
    torch = pytest.importorskip("torch", reason="torch not installed")
    torch.set_num_threads(1)
    found, wrong = {}, {}
    for kind in decoders():
        config = default_config(kind)
        try:
            read = from_config(json.loads(config.to_json_string(use_diff=False)), kind)
        except InputError as error:
            found[kind] = str(error)
            continue
        model = twin_of(kind, config)
        twins = text_params(model)
        found[kind] = (
            "equal" if read.n_params == twins else f"differs: {read.n_params:,} read, {twins:,} in transformers"
        )
        if config.get_text_config(decoder=True) is config and kind not in INNER:
            modules = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
            wrong[kind] = unheard(read, modules)
    return found, wrong


def test_what_is_read_has_as_many_parameters_as_its_twin(outcome: tuple[dict[str, str], Any]) -> None:
    assert {kind: said for kind, said in outcome[0].items() if said.startswith("differs")} == {}


def test_what_is_refused_is_listed_with_its_reason(outcome: tuple[dict[str, str], Any]) -> None:
    refused = {kind: said for kind, said in outcome[0].items() if said != "equal" and not said.startswith("differs")}
    assert {kind: said for kind, said in refused.items() if kind not in REFUSED} == {}
    assert [kind for kind in REFUSED if kind not in refused] == []


def test_modules_are_called_as_in_the_twin(outcome: tuple[Any, dict[str, list[str]]]) -> None:
    """A quantised checkpoint's list that names a module of its own would be refused, or worse, pass by."""
    wrong = {kind: names for kind, names in outcome[1].items() if names and kind not in AUTHORS_NAMES}
    assert wrong == {}
