"""KV methods, simulated inside the attention function: the prompt attends densely; from token `prompt` on each query
sees what the method would have left or fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from simulator.base.errors import UnsupportedError
from traces.kv import rounded
from traces.kv_selectors import Looked, double_sparsity, h2o, looked, positions, quest, snapkv, streaming_llm
from traces.layouts import decoder_layers

if TYPE_CHECKING:
    import torch

    from traces.scoring import Scene

_NAME = "shadowline_kv"


def largest(x: torch.Tensor, keep: float) -> torch.Tensor:
    """Each token's head vector with all but its ``ceil(keep * head_dim)`` largest elements zero (Mustafar)."""
    from math import ceil

    import torch

    count = ceil(round(keep * x.shape[-1], 9))
    chosen = x.abs().topk(count, dim=-1).indices
    return x * torch.zeros_like(x, dtype=torch.bool).scatter_(-1, chosen, True)


def pruned(k: torch.Tensor, v: torch.Tensor, *, keep: float, keep_v: float | None = None) -> Stored:
    """Mustafar: keys and values as `largest` leaves them, and the share of their elements that are left."""
    stored = largest(k, keep), largest(v, keep if keep_v is None else keep_v)
    return *stored, float(sum((x != 0).float().mean() for x in stored)) / 2.0


def quantised(k: torch.Tensor, v: torch.Tensor, *, bits: int, v_bits: int, group: int) -> Stored:
    """KIVI: keys rounded in groups of tokens per channel, values in groups of channels per token."""
    stored = rounded(k, bits, -2, group), rounded(v, v_bits, -1, group)
    return *stored, (bits + v_bits) / 32.0


Stored: TypeAlias = "tuple[torch.Tensor, torch.Tensor, float]"
"""Keys and values as they are read back, and their share of 16-bit bytes without metadata [-]."""
STORED: dict[str, Callable[..., Stored]] = {"mustafar": pruned, "kv_quant": quantised}
SELECTORS: dict[str, Callable[..., torch.Tensor]] = {
    "streaming_llm": streaming_llm,
    "h2o": h2o,
    "snapkv": snapkv,
    "quest": quest,
    "double_sparsity": double_sparsity,
}
LOOK_BACK = frozenset({"h2o", "snapkv"})
"""Selectors that need what the prompt's queries looked at."""
METHODS = ("streaming_llm", "h2o", "snapkv", "quest", "mustafar")
"""Those that `traces.shadow` judges."""
Attend: TypeAlias = "Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]"
"""Layer, scaled queries, keys and values to the output (batch, heads, queries, head_dim)."""


_inside: list[Attend] = []
"""What stands for attention, innermost last; transformers' registry knows one name."""


@contextmanager
def _through(model: Any, attend: Attend) -> Iterator[None]:
    """Run `model` with `attend` as its attention, also inside of another."""
    from transformers import AttentionInterface, AttentionMaskInterface

    if decoder_layers(model)[0][1].calls_sdpa:
        raise UnsupportedError(f"{type(model).__name__} does not take its attention from transformers' registry")
    AttentionInterface.register(_NAME, _innermost)
    AttentionMaskInterface.register(_NAME, _unless_causal)
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    _inside.append(attend)
    try:
        yield
    finally:
        _inside.pop()
        model.set_attn_implementation(before)


def _innermost(
    module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float | None = None, **more: Any
) -> tuple[Any, None]:
    if mask is not None or more.get("softcap") is not None or more.get("s_aux") is not None:
        raise UnsupportedError("KV methods are simulated for plain causal attention only")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = _inside[-1](module.layer_idx, query.float() * scale, key.float(), value.float())
    return out.to(query.dtype).transpose(1, 2).contiguous(), None


def _unless_causal(*args: Any, **more: Any) -> torch.Tensor | None:
    """transformers' mask for sdpa, or none where it is plain causal: the queries being the last of the keys."""
    from transformers.masking_utils import sdpa_mask

    mask = sdpa_mask(*args, **more)
    if mask is None:
        return None
    at, key = positions(mask.shape[-2], mask.shape[-1], mask.device)
    return None if bool((mask == (key <= at)).all()) else mask


def _dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention of a prompt, in torch's own kernel."""
    from torch.nn.functional import scaled_dot_product_attention

    group = q.shape[1] // k.shape[1]
    wide_k, wide_v = (x.repeat_interleave(group, 1) for x in (k, v))
    return scaled_dot_product_attention(q, wide_k, wide_v, is_causal=True, scale=1.0)


def looking_back(model: Any, scene: Scene) -> tuple[tuple[Looked, ...], ...]:
    """What the prompts of a scene looked at, by batch and layer."""
    import torch

    found: list[tuple[Looked, ...]] = []
    for part, _ in scene.batches:
        layers: list[Looked] = []

        def attend(_: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layers: Any = layers) -> torch.Tensor:
            layers.append(looked(q, k))
            return _dense(q, k, v)

        with _through(model, attend), torch.inference_mode():
            model.base_model(input_ids=scene.ids[part, : scene.prompt], use_cache=False)
        found.append(tuple(layers))
    return tuple(found)


def label_channels(model: Any, ids: torch.Tensor, channels: int) -> tuple[torch.Tensor, ...]:
    """The channels of each layer with the largest E|q_c| E|k_c| on `ids`; int, (kv_heads, channels) each."""
    import torch

    sums: dict[int, torch.Tensor] = {}

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        grouped = q.abs().sum((0, 2)).view(k.shape[1], -1, k.shape[-1]).sum(1)
        sums[layer] = sums.get(layer, 0.0) + torch.stack([grouped, k.abs().sum((0, 2))]).double()
        return _dense(q, k, v)

    with _through(model, attend), torch.inference_mode():
        for row in ids:
            model.base_model(input_ids=row[None], use_cache=False)
    return tuple(sums[layer].prod(0).topk(channels, dim=-1).indices for layer in sorted(sums))


@contextmanager
def attending(
    model: Any,
    method: str,
    prompt: int,
    read: list[float],
    *,
    dense_layers: int = 0,
    before: Callable[[int], Looked] | None = None,
    labels: Sequence[torch.Tensor] | None = None,
    **options: Any,
) -> Iterator[None]:
    """Run `model` with a KV method from token `prompt` on, in one pass over the prompt and the rest or over the rest.

    Parameters
    ----------
    read : list
        Gets, per layer and pass, the share of the causal KV that the scored queries read [-]; a KV head counts
        where any query head of its group reads the token. Metadata (Quest's minima, Mustafar's bitmaps) is not in it.
    dense_layers : int
        First layers left alone (Quest: 2).
    before : callable, optional
        Layer to what the prompt looked at, for `LOOK_BACK` where its queries are not in the pass.
    labels : sequence of Tensor, optional
        Of `label_channels`, for Double Sparsity.
    """

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        import torch

        first = max(prompt - (k.shape[2] - q.shape[2]), 0)
        prompts, rest = q[:, :, :first], q[:, :, first:]
        more = dict(options)
        if labels is not None:
            more["labels"] = labels[layer]
        parts = [_dense(prompts, k[:, :, :prompt], v[:, :, :prompt])] if first else []
        if rest.shape[2]:
            if method in LOOK_BACK and layer >= dense_layers:
                if not first and before is None:
                    raise ValueError(f"{method} needs what the prompt looked at")
                more["before"] = looked(prompts, k[:, :, :prompt]) if first or before is None else before(layer)
            parts.append(_attend("" if layer < dense_layers else method, rest, k, v, read, more))
        return torch.cat(parts, 2)

    with _through(model, attend):
        yield


def _attend(
    method: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, read: list[float], options: dict[str, Any]
) -> torch.Tensor:
    """Attention output of the queries after the prompt under a method, "" being dense."""
    group = q.shape[1] // k.shape[1]
    at, key = positions(q.shape[2], k.shape[2], q.device)
    causal = (key <= at)[None, None]

    def wide(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(group, 1)

    if not method:
        read.append(1.0)
        scores = (q @ wide(k).transpose(2, 3)).masked_fill(~causal, float("-inf"))
        return scores.softmax(-1) @ wide(v)
    if method in STORED:
        window = options.get("window", 32)
        stored_k, stored_v, share = STORED[method](k, v, **{n: o for n, o in options.items() if n != "window"})
        old = at - key >= window
        scores = (q @ wide(stored_k).transpose(2, 3)).where(old, q @ wide(k).transpose(2, 3))
        p = scores.masked_fill(~causal, float("-inf")).softmax(-1)
        aged = (old & causal).sum() / causal.sum()
        read.append(float(1.0 - aged * (1.0 - share)))
        return (p * old) @ wide(stored_v) + (p * ~old) @ wide(v)
    seen = SELECTORS[method](q, k, **options) & causal
    union = seen.expand(len(q), q.shape[1], -1, -1).reshape(len(q), -1, group, *seen.shape[2:]).any(2)
    read.append(float(union.float().mean() / causal.float().mean()))
    scores = (q @ wide(k).transpose(2, 3)).masked_fill(~seen, float("-inf"))
    return scores.softmax(-1) @ wide(v)
