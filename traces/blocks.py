"""Heads and neurons of a transformers model: the projections that read them, which hooks mask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simulator.base.errors import UnsupportedError
from traces.hooks import head_shape
from traces.layouts import decoder_layers

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Block:
    """One layer: its projections and how its units lie in their inputs.

    Parameters
    ----------
    qkv, ffn_in : tuple of Module
        Projections that read the attention's and the FFN's input; one module where they are fused.
    out, down : Module
        Projections whose inputs hold the heads side by side, and the neurons.
    activation : Module
        Between `ffn_in` and `down`; sees only the gate where there is one.
    n_heads, n_kv_heads, head_dim, hidden, neurons : int
    gated : bool
        Whether a neuron has a gate row beside its up row.
    """

    qkv: tuple[Any, ...]
    out: Any
    ffn_in: tuple[Any, ...]
    activation: Any
    down: Any
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden: int
    neurons: int
    gated: bool

    def width(self, kind: str) -> int:
        """Units of `kind` (``heads`` or ``neurons``) in the layer."""
        return self.n_heads if kind == "heads" else self.neurons

    def reader(self, kind: str) -> Any:
        """The projection that reads the units of `kind`."""
        return self.out if kind == "heads" else self.down

    def site(self, name: str) -> tuple[Any, ...]:
        """The modules whose input is ``attn.in``, ``attn.o``, ``ffn.in`` or ``ffn.down``."""
        return {"attn.in": self.qkv, "attn.o": (self.out,), "ffn.in": self.ffn_in, "ffn.down": (self.down,)}[name]


def out_by_in(module: Any) -> torch.Tensor:
    """Weight of a projection as (outputs, inputs); GPT-2's Conv1D keeps it the other way round."""
    weight = module.weight.detach()
    return weight.t() if type(module).__name__ == "Conv1D" else weight


def as_stored(module: Any, weight: torch.Tensor) -> torch.Tensor:
    """Inverse of `out_by_in`: a weight (outputs, inputs) as `module` keeps it."""
    return weight.t().contiguous() if type(module).__name__ == "Conv1D" else weight


def blocks(model: Any) -> list[Block]:
    """Layers of a dense causal model.

    Raises
    ------
    UnsupportedError
        A model of experts, or one without a known layout.
    """
    heads, kv_heads, head_dim = head_shape(model.config.get_text_config())
    found = []
    for layer, layout in decoder_layers(model):
        if layout.experts:
            raise UnsupportedError(
                "neurons of routed experts are not covered; use a model without experts", where="--model"
            )
        # A separate gate stands beside `up` under the name that transformers gives it.
        gate = (layout.up.replace("up_proj", "gate_proj"),) if layout.gate == "separate" else ()
        down = layer.get_submodule(layout.down)
        found.append(
            Block(
                qkv=tuple(layer.get_submodule(path) for path in layout.qkv),
                out=layer.get_submodule(layout.out),
                ffn_in=tuple(layer.get_submodule(path) for path in (*gate, layout.up)),
                activation=layer.get_submodule(layout.act),
                down=down,
                n_heads=heads,
                n_kv_heads=kv_heads,
                head_dim=head_dim,
                hidden=model.config.get_text_config().hidden_size,
                neurons=out_by_in(down).shape[1],
                gated=bool(layout.gate),
            )
        )
    return found


@contextmanager
def hooked(handles: Iterable[Any]) -> Iterator[None]:
    """Remove forward hooks when the block ends, whatever happened inside."""
    held = list(handles)
    try:
        yield
    finally:
        for handle in held:
            handle.remove()
