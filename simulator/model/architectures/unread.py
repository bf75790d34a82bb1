"""Refuses a file that says more of its layers than its reader asked for: a size that is ignored is a wrong answer."""

from __future__ import annotations

import re
from collections.abc import Mapping

from simulator.model.reader import Reader
from simulator.model.spec import ModelSpec

_EXPERTS = re.compile(r"(?:n|num|moe_num)_(?:(?:routed|local|total)_)?experts|expert_num|moe_num_experts")
_SIZES = re.compile(
    r"(?:n|num|moe|index|linear|conv|mamba|ssm|state|altup|laurel|hc|kv|qk?|v|hidden|intermediate|expert|shared)_\w+"
    r"|\w+_(?:size|dim|dims|rank|layers|heads|experts|groups|width|bias|norm|ratio|interval|freq|pattern|types)"
)
"""Names of keys that may change what a layer is made of."""
_OTHER = re.compile(
    r"_\w+|\w*(?:vision|visual|image|video|audio|speech|mm_|vit|tower|projector|spatial|temporal|patch|token_i)\w*"
    r"|\w*(?:mtp|nextn|draft|assistant|dropout|softcap|logit|max_|rope|checkpoint|kernel)\w*|sliding_window_size"
    r"|(?:num_beam|num_return|num_label|encoder_no_repeat|rotary|summary|init|initializer)_?\w*"
    r"|(?:moe_(?:aux|norm|router|routed|token_drop|layer_auto)|num_experts_per_tok_|n_special|hidden_act|kv_quant)\w*"
    r"|(?:mamba_)?chunk_size|chunk_size_feed_forward|pretraining_tp|norm_topk_prob|n_positions|n_ctx|shared_expert_combination_strategy"
)
"""Those of them that change no layer of a text part."""


def check(model: ModelSpec, reader: Reader) -> None:
    """Refuse experts of a model read without any, and what else its architecture's reader never asked for."""
    for key, value in reader.config.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 2:
            continue
        if _EXPERTS.fullmatch(str(key)) and not model.is_moe:
            reader.fail(
                key, f"is {value}, but {model.architecture!r} is read without experts; its layers are not known"
            )
    for key, value in reader.config.items():
        if key in reader.asked or not isinstance(key, str) or _OTHER.fullmatch(key):
            continue
        by_layer = isinstance(value, Mapping | list) and bool(value) and "layer" in key
        if by_layer or (_SIZES.fullmatch(key) and (value is True or (isinstance(value, int) and value > 1))):
            said = "is given by layer" if by_layer else f"is {value}"
            reader.fail(key, f"{said}, and what that means for {model.architecture!r} is not known")
