"""Vision towers by the ``model_type`` around them, counted as transformers builds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from simulator.base.errors import InputError
from simulator.model.layer import FfnSpec
from simulator.model.reader import Reader
from simulator.model.tower import TowerSpec

ANY_SIZE_PIXELS = 1024
"""Width and height of the image that is assumed where a tower takes any [pixels]."""
Parse = Callable[[Reader, Reader, int], TowerSpec]
"""From the whole config, its vision part and the decoder's width."""
TOWERS: dict[str, Parse] = {}


def tower(*kinds: str) -> Callable[[Parse], Parse]:
    """Decorator: the function reads the towers of these ``model_type``."""

    def add(function: Parse) -> Parse:
        TOWERS.update(dict.fromkeys(kinds, function))
        return function

    return add


def tower_of(config: Mapping[str, object], reader: Reader, hidden: int) -> tuple[TowerSpec | None, tuple[str, ...]]:
    """Vision tower of a nested config, None where there is none that is read, and what is said of the parts beside.

    Parameters
    ----------
    hidden : int
        Width of the decoder.
    """
    notes = [
        f"the {part} part is not modelled: neither counted nor run"
        for part in ("audio", "speech")
        if isinstance(config.get(f"{part}_config"), Mapping)
    ]
    vision = reader.section("vision_config") if isinstance(config.get("vision_config"), Mapping) else None
    if vision is None:
        return None, tuple(notes)
    parse = TOWERS.get(reader.word("model_type", default=""))
    if parse is None:
        return None, ("the vision part is not modelled: neither counted nor run", *notes)
    try:
        return parse(reader, vision, hidden), tuple(notes)
    except InputError as error:
        return None, (f"the vision part is neither counted nor run: {error}", *notes)


def _grid(reader: Reader, pixels: int, patch: int, merge: int = 1) -> tuple[int, int]:
    """Patches and tokens of a square image whose sides are cut to whole tokens."""
    side = pixels // (patch * merge)
    if not side:
        reader.fail("patch_size", f"is {patch}, larger than an image of {pixels} pixels")
    return (side * merge) ** 2, side**2


def _block(hidden: int, ffn: FfnSpec, *, qkv: bool = True, out: bool = True, norm_bias: bool = True) -> int:
    """Parameters of one layer: two norms, four square matrices and their biases, the feed-forward block."""
    biases = (3 * hidden if qkv else 0) + (hidden if out else 0)
    return 4 * hidden**2 + biases + 2 * hidden * (2 if norm_bias else 1) + ffn.n_params(hidden)


def _linear(k: int, n: int, bias: bool = True) -> int:
    return k * n + (n if bias else 0)


@tower("qwen2_vl")
def qwen2_vl(_whole: Reader, vision: Reader, hidden: int) -> TowerSpec:
    """Qwen2-VL: rotary positions, patches of two frames, four of them one token."""
    h, depth = vision.whole("embed_dim", default=1280), vision.layers("depth")
    merge, patch = vision.whole("spatial_merge_size", default=2), vision.whole("patch_size", default=14)
    inputs = (
        vision.whole("in_channels", "in_chans", default=3) * vision.whole("temporal_patch_size", default=2) * patch**2
    )
    ffn = FfnSpec(h * vision.whole("mlp_ratio", default=4), False, "gelu", True)
    merged = h * merge**2
    params = inputs * h + depth * _block(h, ffn) + 2 * h + _linear(merged, merged) + _linear(merged, hidden)
    patches, tokens = _grid(vision, ANY_SIZE_PIXELS, patch, merge)
    ends = (merged, merged), (merged, hidden)
    return TowerSpec(h, depth, vision.whole("num_heads"), ffn, ANY_SIZE_PIXELS, patches, inputs, tokens, ends, params)


@tower("qwen2_5_vl")
def qwen2_5_vl(_whole: Reader, vision: Reader, hidden: int) -> TowerSpec:
    """Qwen2.5-VL: RMS norms, gated FFN, most layers attend within windows."""
    h, depth = vision.whole("hidden_size", default=1280), vision.layers("depth")
    merge, patch = vision.whole("spatial_merge_size", default=2), vision.whole("patch_size", default=14)
    inputs = (
        vision.whole("in_channels", "in_chans", default=3) * vision.whole("temporal_patch_size", default=2) * patch**2
    )
    ffn = FfnSpec(vision.whole("intermediate_size", default=3420), True, "silu", True)
    merged, out = h * merge**2, vision.whole("out_hidden_size", default=hidden)
    params = inputs * h + depth * _block(h, ffn, norm_bias=False) + h + _linear(merged, merged) + _linear(merged, out)
    patches, tokens = _grid(vision, ANY_SIZE_PIXELS, patch, merge)
    listed = vision.config.get("fullatt_block_indexes")
    full = len(listed) if isinstance(listed, list) else depth
    return TowerSpec(
        h,
        depth,
        vision.whole("num_heads", default=16),
        ffn,
        ANY_SIZE_PIXELS,
        patches,
        inputs,
        tokens,
        ((merged, merged), (merged, out)),
        params,
        window=(vision.whole("window_size", default=112) // patch) ** 2,
        n_windowed=max(depth - full, 0),
    )


@tower("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
def qwen3_vl(_whole: Reader, vision: Reader, hidden: int) -> TowerSpec:
    """Qwen3-VL and the Qwen3.5 that see: learned positions, and mergers of inner layers' outputs (DeepStack)."""
    h, depth = vision.whole("hidden_size"), vision.layers("depth")
    merge, patch = vision.whole("spatial_merge_size", default=2), vision.whole("patch_size", default=16)
    inputs = vision.whole("in_channels", default=3) * vision.whole("temporal_patch_size", default=2) * patch**2
    ffn = FfnSpec(vision.whole("intermediate_size"), False, "gelu", True)
    merged, out = h * merge**2, vision.whole("out_hidden_size", default=hidden)
    listed = vision.config.get("deepstack_visual_indexes")
    deep = len(listed) if isinstance(listed, list) else 0
    merger = _linear(merged, merged) + _linear(merged, out)
    positions = vision.whole("num_position_embeddings", default=2304) * h
    params = _linear(inputs, h) + positions + depth * _block(h, ffn) + 2 * h + merger + deep * (2 * merged + merger)
    patches, tokens = _grid(vision, ANY_SIZE_PIXELS, patch, merge)
    ends = ((merged, merged), (merged, out)) * (1 + deep)
    return TowerSpec(h, depth, vision.whole("num_heads"), ffn, ANY_SIZE_PIXELS, patches, inputs, tokens, ends, params)


def _fixed(vision: Reader, layers: int, projector: tuple[tuple[int, int], ...], tokens: int, params: int) -> TowerSpec:
    """CLIP or SigLIP at the one size of its images, `layers` of which run."""
    h, patch, pixels = (vision.whole(key) for key in ("hidden_size", "patch_size", "image_size"))
    ffn = FfnSpec(vision.whole("intermediate_size"), False, "gelu", True)
    patches, _ = _grid(vision, pixels, patch)
    inputs = vision.whole("num_channels", default=3) * patch**2
    heads = vision.whole("num_attention_heads")
    return TowerSpec(h, layers, heads, ffn, pixels, patches, inputs, tokens, projector, params, resizes=False)


def _siglip(vision: Reader) -> int:
    """Parameters of SigLIP: patches with a bias, a table of positions, layers, a norm, a pooling head if it has one."""
    h, patch, pixels = (vision.whole(key) for key in ("hidden_size", "patch_size", "image_size"))
    ffn = FfnSpec(vision.whole("intermediate_size"), False, "gelu", True)
    patches, _ = _grid(vision, pixels, patch)
    inputs = vision.whole("num_channels", default=3) * patch**2
    params = _linear(inputs, h) + patches * h + vision.layers("num_hidden_layers") * _block(h, ffn) + 2 * h
    if vision.flag("vision_use_head", default=True):
        params += h + 4 * h**2 + 4 * h + 2 * h + ffn.n_params(h)
    return params


@tower("gemma3")
def gemma3(whole: Reader, vision: Reader, hidden: int) -> TowerSpec:
    """Gemma 3: SigLIP, pooled to a fixed number of tokens, one matrix."""
    h, tokens = vision.whole("hidden_size"), whole.whole("mm_tokens_per_image", default=256)
    params = _siglip(vision) + h * hidden + h
    return _fixed(vision, vision.layers("num_hidden_layers"), ((h, hidden),), tokens, params)


@tower("paligemma")
def paligemma(whole: Reader, vision: Reader, hidden: int) -> TowerSpec:
    """PaliGemma: SigLIP, a token for every patch, one matrix."""
    h = vision.whole("hidden_size")
    out = whole.whole("projection_dim", default=vision.whole("projection_dim", default=hidden))
    tokens, _ = _grid(vision, vision.whole("image_size"), vision.whole("patch_size"))
    params = _siglip(vision) + _linear(h, out)
    return _fixed(vision, vision.layers("num_hidden_layers"), ((h, out),), tokens, params)


@tower("llava", "llava_next", "vipllava")
def llava(whole: Reader, vision: Reader, hidden: int) -> TowerSpec:
    """LLaVA 1.5 and NeXT (one tile): CLIP up to an inner layer, two matrices."""
    if vision.word("model_type", default="clip_vision_model") != "clip_vision_model":
        vision.fail("model_type", f"is {vision.config.get('model_type')!r}; of LLaVA's towers CLIP is read")
    if whole.word("model_type", default="") == "vipllava":
        whole.fail("model_type", "is 'vipllava', whose projector reads several layers")
    h, layers = vision.whole("hidden_size"), vision.layers("num_hidden_layers")
    ffn = FfnSpec(vision.whole("intermediate_size"), False, "gelu", True)
    patch = vision.whole("patch_size")
    patches, _ = _grid(vision, vision.whole("image_size"), patch)
    inputs = vision.whole("num_channels", default=3) * patch**2
    around = h + inputs * h + (patches + 1) * h + 4 * h
    newline = hidden if whole.word("model_type", default="") == "llava_next" else 0
    params = around + layers * _block(h, ffn) + _linear(h, hidden) + _linear(hidden, hidden) + newline
    layer = whole.config.get("vision_feature_layer", -2)
    if isinstance(layer, bool) or not isinstance(layer, int) or not -layers <= layer < 0:
        whole.fail(
            "vision_feature_layer", f"is {str(layer)[:40]}; it must be the layer from the end whose output is taken"
        )
    ends = (h, hidden), (hidden, hidden)
    return _fixed(vision, layers + 1 + layer, ends, patches, params)


@tower("mistral3")
def mistral3(whole: Reader, vision: Reader, hidden: int) -> TowerSpec:
    """Pixtral under Mistral Small 3: no biases, gated FFN, `spatial_merge_size` patches a side become one token."""
    if vision.word("model_type", default="pixtral") != "pixtral":
        vision.fail("model_type", f"is {vision.config.get('model_type')!r}; Pixtral is read")
    h, layers, patch = (vision.whole(key) for key in ("hidden_size", "num_hidden_layers", "patch_size"))
    merge = whole.whole("spatial_merge_size", default=2)
    ffn = FfnSpec(vision.whole("intermediate_size"), True, "silu")
    inputs = vision.whole("num_channels", default=3) * patch**2
    bias = whole.flag("multimodal_projector_bias")
    ends = (h * merge**2, h), (h, hidden), (hidden, hidden)
    params = inputs * h + h + layers * _block(h, ffn, qkv=False, out=False, norm_bias=False)
    params += h + h * merge**2 * h + _linear(h, hidden, bias) + _linear(hidden, hidden, bias)
    pixels = min(ANY_SIZE_PIXELS, vision.whole("image_size"))
    patches, tokens = _grid(vision, pixels, patch, merge)
    return TowerSpec(h, layers, vision.whole("num_attention_heads"), ffn, pixels, patches, inputs, tokens, ends, params)


@tower("kimi_k25")
def kimi_k25(_whole: Reader, vision: Reader, hidden: int) -> TowerSpec:
    """MoonViT under Kimi-K2.5: learned positions, four patches a token."""
    h = vision.whole("vt_hidden_size", "hidden_size")
    layers = vision.layers("vt_num_hidden_layers", "num_hidden_layers")
    patch = vision.whole("patch_size")
    sides = vision.config.get("merge_kernel_size", [2, 2])
    if not isinstance(sides, list) or len(sides) != 2 or sides[0] != sides[1] or not isinstance(sides[0], int):
        vision.fail("merge_kernel_size", f"is {str(sides)[:40]}; it must be two equal whole numbers")
    merge = sides[0]
    ffn = FfnSpec(vision.whole("vt_intermediate_size", "intermediate_size"), False, "gelu", True)
    inputs = 3 * patch**2
    table = vision.whole("init_pos_emb_height", "pos_emb_height") * vision.whole("init_pos_emb_width", "pos_emb_width")
    merged = h * merge**2
    params = _linear(inputs, h) + table * h + layers * _block(h, ffn) + 2 * h
    params += 2 * h + _linear(merged, merged) + _linear(merged, hidden)
    patches, tokens = _grid(vision, ANY_SIZE_PIXELS, patch, merge)
    heads = vision.whole("vt_num_attention_heads", "num_attention_heads")
    ends = (merged, merged), (merged, hidden)
    return TowerSpec(h, layers, heads, ffn, ANY_SIZE_PIXELS, patches, inputs, tokens, ends, params)
