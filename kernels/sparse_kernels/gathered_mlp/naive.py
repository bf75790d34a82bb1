"""Gathered MLP in plain torch, float32 throughout: the truth its kernel is judged by."""

from __future__ import annotations

import torch

ACTIVATIONS = {"none": lambda v: v, "relu": torch.relu, "silu": torch.nn.functional.silu}


def members(index: torch.Tensor, group: int) -> torch.Tensor:
    """Rows (listed groups * group) of the groups that `index` lists."""
    step = torch.arange(group, device=index.device)
    return (index.long()[:, None] * group + step).flatten()


def gathered_rows(
    x: torch.Tensor,
    weight: torch.Tensor,
    index: torch.Tensor,
    *,
    group: int = 1,
    gate: torch.Tensor | None = None,
    activation: str = "none",
) -> torch.Tensor:
    """act(x gate_j) (x weight_j), or act(x weight_j) without a gate, for the rows j of the listed groups."""
    rows = members(index, group)
    act = ACTIVATIONS[activation]
    product = x.float() @ weight[rows].float().T
    if gate is None:
        return act(product)
    return act(x.float() @ gate[rows].float().T) * product


def gathered_columns(h: torch.Tensor, weight: torch.Tensor, index: torch.Tensor, *, group: int = 1) -> torch.Tensor:
    """sum_j h_j weight_j over the rows j of the listed groups; `weight` is stored transposed, (k, n)."""
    rows = members(index, group)
    return h.float() @ weight[rows].float()


def gathered_mlp(
    x: torch.Tensor,
    gate: torch.Tensor | None,
    up: torch.Tensor,
    down: torch.Tensor,
    index: torch.Tensor,
    activation: str,
) -> dict[str, torch.Tensor]:
    """The MLP with every neuron outside `index` left out; h is rounded to the weights' type as the kernel does."""
    h = gathered_rows(x, up, index, gate=gate, activation=activation)
    return {"h": h, "y": gathered_columns(h.to(x.dtype), down, index)}
