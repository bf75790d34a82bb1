"""Hooks that hand each layer's activations to an observer while a model runs; nothing is kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from simulator.base.errors import UnsupportedError
from traces.attention import Attended
from traces.layouts import Layout, decoder_layers, key_of

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

ATTENTION = "shadowline"
"""Name our attention function is registered under in transformers."""

_KEY_NORMS = ("k_norm", "k_layernorm")


class Experts(Protocol):
    """Routed experts with fused weights: gate and up side by side, expert by expert."""

    gate_up_proj: torch.Tensor
    act_fn: Callable[[torch.Tensor], torch.Tensor]


class Observer(Protocol):
    """What the hooks call; tensors are the model's own and must not be changed or kept."""

    def activation(self, layer: int, tensor: str, x: torch.Tensor) -> None:
        """`x` (batch, tokens, units) of one of `simulator.trace.TENSORS`."""

    def key(self, layer: int, key: torch.Tensor) -> None:
        """Keys before rotation (batch, tokens, kv_heads, head_dim)."""

    def attention(self, layer: int, call: Attended) -> None:
        """Queries, keys and values of one call."""

    def experts(self, layer: int, module: Experts, hidden: torch.Tensor, chosen: torch.Tensor) -> None:
        """Input (batch, tokens, hidden) of the routed experts and those chosen (batch, tokens, k)."""


@contextlib.contextmanager
def observed(model: PreTrainedModel, observer: Observer) -> Iterator[None]:
    """Run `model` inside with every layer's activations going to `observer`.

    Attention goes through a function in transformers' registry, which sees queries and keys after
    rotation and cache for every architecture alike; Falcon calls torch directly and is met there.
    """
    layers = decoder_layers(model)
    config = model.config.get_text_config()
    tap = _Tap(observer, *head_shape(config))
    handles: list[Any] = []
    before = model.config._attn_implementation
    try:
        for number, (layer, layout) in enumerate(layers):
            handles += tap.attach(number, layer, layout)
        with contextlib.ExitStack() as stack:
            if layers[0][1].calls_sdpa:
                stack.enter_context(_sdpa_mode(tap))
            else:
                _register()
                model.set_attn_implementation(ATTENTION)
            yield
    finally:
        for handle in handles:
            handle.remove()
        for layer, layout in layers:
            _taps.pop(layer.get_submodule(layout.attention), None)
        if before and not layers[0][1].calls_sdpa:
            model.set_attn_implementation(before)


def head_shape(config: Any) -> tuple[int, int, int]:
    """Query heads, KV heads and width of a head, whatever the config calls them."""
    heads = config.num_attention_heads
    kv = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None)
    if config.model_type == "falcon" and not config.new_decoder_architecture:
        kv = 1 if config.multi_query else heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads, kv or heads, width


class _Tap:
    """Turns hook calls into observer calls with batch, tokens and units in place."""

    def __init__(self, observer: Observer, heads: int, kv_heads: int, head_dim: int):
        self.observer = observer
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        self.shape = (0, 0)
        self.current = 0

    def attach(self, layer: int, module: nn.Module, layout: Layout) -> list[Any]:
        """Hooks of one layer."""
        attention = module.get_submodule(layout.attention)
        _taps[attention] = self, layer
        see = self._seer(layer)
        handles = [
            module.get_submodule(layout.qkv[0]).register_forward_pre_hook(self._first(layer)),
            module.get_submodule(layout.out).register_forward_pre_hook(_input(see("attn.o"))),
            *self._attach_key(layer, attention, module, layout),
        ]
        if layout.experts:
            experts = module.get_submodule(layout.experts)
            return [*handles, experts.register_forward_pre_hook(self._experts(layer))]
        up, act = module.get_submodule(layout.up), module.get_submodule(layout.act)
        handles.append(up.register_forward_pre_hook(_input(see("ffn.in"))))
        handles.append(module.get_submodule(layout.down).register_forward_pre_hook(_input(see("ffn.down"))))
        if layout.gate:
            half = layout.gate == "fused"
            handles.append(act.register_forward_hook(_output(see("ffn.gate"))))
            handles.append(up.register_forward_hook(_output(see("ffn.up"), second_half=half)))
        return handles

    def _seer(self, layer: int) -> Callable[[str], Callable[[torch.Tensor], None]]:
        def see(tensor: str) -> Callable[[torch.Tensor], None]:
            def send(x: torch.Tensor) -> None:
                self.observer.activation(layer, tensor, x.reshape(*self.shape, x.shape[-1]))

            return send

        return see

    def _first(self, layer: int) -> Callable[..., None]:
        """The attention input comes first and says how many sequences and tokens the rest has."""

        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            self.shape = args[0].shape[:2]
            self.current = layer
            self.observer.activation(layer, "attn.in", args[0])

        return hook

    def _attach_key(self, layer: int, attention: nn.Module, module: nn.Module, layout: Layout) -> list[Any]:
        for name in _KEY_NORMS:
            norm = getattr(attention, name, None)
            if norm is not None:
                return [norm.register_forward_hook(self._normed_key(layer))]
        source = module.get_submodule(layout.qkv[1 if len(layout.qkv) == 3 else 0])

        def hook(_: nn.Module, args: Any, output: torch.Tensor) -> None:
            key = key_of(layout, attention, output, self.kv_heads, self.head_dim)
            self.observer.key(layer, key)

        return [source.register_forward_hook(hook)]

    def _normed_key(self, layer: int) -> Callable[..., None]:
        """Keys are rotated after their norm, which some apply before and some after the transpose."""

        def hook(_: nn.Module, args: Any, output: torch.Tensor) -> None:
            batch, tokens = self.shape
            wanted = (batch, tokens, self.kv_heads, self.head_dim)
            is_transposed = tuple(output.shape) != wanted
            key = output.transpose(1, 2) if is_transposed else output
            if tuple(key.shape) != wanted:
                raise UnsupportedError(
                    f"keys of layer {layer} have shape {tuple(output.shape)}, not {wanted}", where="--model"
                )
            self.observer.key(layer, key)

        return hook

    def _experts(self, layer: int) -> Callable[..., None]:
        def hook(module: Experts, args: tuple[torch.Tensor, ...]) -> None:
            hidden, chosen = args[0], args[1]
            hidden = hidden.reshape(*self.shape, hidden.shape[-1])
            self.observer.experts(layer, module, hidden, chosen.reshape(*self.shape, -1))

        return hook

    def see_attention(self, layer: int, call: Attended) -> None:
        """Pass one call on, with each KV head once where the model has repeated them."""
        repeat = call.key.shape[1] // self.kv_heads
        if repeat > 1:
            call = replace(call, key=call.key[:, ::repeat], value=call.value[:, ::repeat])
        self.observer.attention(layer, call)


_taps: dict[nn.Module, tuple[_Tap, int]] = {}
"""Who watches an attention module while it is `observed`: the registry hands over the module alone."""


def _input(send: Callable[[torch.Tensor], None]) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        send(args[0])

    return hook


def _output(send: Callable[[torch.Tensor], None], *, second_half: bool = False) -> Callable[..., None]:
    def hook(_: nn.Module, args: Any, output: torch.Tensor) -> None:
        send(output[..., output.shape[-1] // 2 :] if second_half else output)

    return hook


def _register() -> None:
    """Make our attention function known to transformers, with the masks of its sdpa one."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Show queries, keys and values to the observer, then attend as transformers' own sdpa does."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    tap, layer = _taps[module]
    call = Attended(query, key, value, attention_mask, scaling, softcap)
    tap.see_attention(layer, call)
    if kwargs.get("s_aux") is not None:
        raise UnsupportedError("attention with learned sinks is not known here", where="--model")
    if softcap is not None:
        return _softcapped(call), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


def _softcapped(call: Attended) -> torch.Tensor:
    """Attention with capped scores, which torch's fused kernels lack; 128 queries at a time."""
    import torch

    value = call.value
    batch, heads, tokens, _ = call.query.shape
    repeat = heads // call.key.shape[1]
    out = torch.empty(batch, tokens, heads, value.shape[-1], dtype=value.dtype, device=value.device)
    for b in range(batch):
        wide = value[b].repeat_interleave(repeat, 0)
        for rows in torch.arange(tokens, device=value.device).split(128):
            p = call.probabilities(b, rows)
            out[b, rows] = (p.to(value.dtype) @ wide).transpose(0, 1)
    return out


def _sdpa_mode(tap: _Tap) -> Any:
    import torch
    from torch.overrides import TorchFunctionMode

    wanted = torch.nn.functional.scaled_dot_product_attention

    class Mode(TorchFunctionMode):
        """Sees calls of torch's attention made without transformers' registry."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            kwargs = kwargs or {}
            if func is wanted:
                query, key, value = args[:3]
                call = Attended(query, key, value, kwargs.get("attn_mask"), kwargs.get("scale"))
                tap.see_attention(tap.current, call)
            return func(*args, **kwargs)

    return Mode()
