"""Where each architecture keeps the parts of a decoder layer, by module names and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator.base.errors import UnsupportedError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Layout:
    """Paths of modules below a decoder layer.

    Parameters
    ----------
    name : str
        Family it is called after.
    qkv : tuple of str
        q, k and v projections, or the fused one.
    out : str
        Output projection of attention; its input is all head outputs side by side.
    up, down : str
        First and last product of the FFN; `up` may be the fused gate-and-up one.
    act : str
        Activation module; its output is the gate's where the FFN is gated, else the input of `down`.
    gate : str
        ``""`` (not gated), ``"separate"`` or ``"fused"`` (gate first in the output of `up`).
    experts : str
        Routed experts with fused weights, "" where there are none; a shared expert is not observed.
    calls_sdpa : bool
        Attention calls torch's own function instead of transformers' registry.
    """

    name: str
    qkv: tuple[str, ...]
    out: str
    up: str = ""
    down: str = ""
    act: str = ""
    gate: str = ""
    experts: str = ""
    calls_sdpa: bool = False

    @property
    def attention(self) -> str:
        """Path of the attention module."""
        return self.out.rpartition(".")[0]

    def fits(self, layer: nn.Module) -> bool:
        """Whether every module named is there."""
        named = (*self.qkv, self.out, self.up, self.down, self.act, self.experts)
        try:
            parts = {path: layer.get_submodule(path) for path in named if path}
        except AttributeError:
            return False
        return not self.experts or hasattr(parts[self.experts], "gate_up_proj")


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

LAYOUTS = (
    # Mixtral, Qwen2-MoE, Qwen3-MoE; their dense layers are found by the next line.
    Layout("moe", _QKV, "self_attn.o_proj", experts="mlp.experts"),
    # Llama, Mistral, Qwen2, Qwen3, Gemma 1 to 3
    Layout("llama", _QKV, "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj", "mlp.act_fn", "separate"),
    Layout("opt", _QKV, "self_attn.out_proj", "fc1", "fc2", "activation_fn"),
    Layout("phi", _QKV, "self_attn.dense", "mlp.fc1", "mlp.fc2", "mlp.activation_fn"),
    Layout(
        "phi3",
        ("self_attn.qkv_proj",),
        "self_attn.o_proj",
        "mlp.gate_up_proj",
        "mlp.down_proj",
        "mlp.activation_fn",
        "fused",
    ),
    Layout("gpt2", ("attn.c_attn",), "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "mlp.act"),
    Layout(
        "gpt-neox",
        ("attention.query_key_value",),
        "attention.dense",
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
        "mlp.act",
    ),
    Layout(
        "falcon",
        ("self_attention.query_key_value",),
        "self_attention.dense",
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
        "mlp.act",
        calls_sdpa=True,
    ),
)


def decoder_layers(model: PreTrainedModel) -> list[tuple[nn.Module, Layout]]:
    """Decoder layers of `model` in order, each with the first layout that fits it.

    Raises
    ------
    UnsupportedError
        No list of modules, as long as the config says, holds known parts.
    """
    from torch import nn

    count = model.config.get_text_config().num_hidden_layers
    for candidate in model.modules():
        if not isinstance(candidate, nn.ModuleList) or len(candidate) != count:
            continue
        found = [next((x for x in LAYOUTS if x.fits(layer)), None) for layer in candidate]
        if all(found):
            return [(layer, x) for layer, x in zip(candidate, found, strict=True) if x]
    raise UnsupportedError(
        f"{type(model).__name__} has no decoder layers with a known layout; known are "
        f"{', '.join(x.name for x in LAYOUTS)} (traces/layouts.py, one entry each)",
        where="--model",
    )


def key_of(layout: Layout, attention: nn.Module, fused: torch.Tensor, kv_heads: int, head_dim: int) -> torch.Tensor:
    """Keys before rotation from the output of the k or fused projection.

    Parameters
    ----------
    fused : Tensor, shape (batch, tokens, width)

    Returns
    -------
    Tensor, shape (batch, tokens, kv_heads, head_dim)
    """
    batch, tokens, width = fused.shape
    if len(layout.qkv) == 3:
        return fused.reshape(batch, tokens, kv_heads, head_dim)
    if layout.calls_sdpa:
        # Falcon interleaves queries and keys by group; its own method knows the order.
        key = attention._split_heads(fused)[1]  # type: ignore[operator]  # nn.Module knows its tensors only
        return key[:, :, :: key.shape[2] // kv_heads]
    if layout.name == "gpt-neox":
        return fused.reshape(batch, tokens, kv_heads, 3 * head_dim)[..., head_dim : 2 * head_dim]
    start = width - 2 * kv_heads * head_dim
    return fused[..., start : start + kv_heads * head_dim].reshape(batch, tokens, kv_heads, head_dim)
