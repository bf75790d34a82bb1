"""Importance of heads and neurons for one token: the targets that predictors learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from traces.blocks import Block, hooked, out_by_in

if TYPE_CHECKING:
    import torch

KINDS = ("heads", "neurons")


def group_sum(x: torch.Tensor, units: int) -> torch.Tensor:
    """Sum over the channels of each unit: (tokens, units * width) to (tokens, units)."""
    return x.view(len(x), units, -1).sum(-1)


def l2norm(a: torch.Tensor, units: int) -> torch.Tensor:
    """Magnitude ||a_u|| of what the unit puts out (Deja Vu [1]_)."""
    return group_sum(a.square(), units).sqrt()


def plainact(a: torch.Tensor, g: torch.Tensor, units: int) -> torch.Tensor:
    """sum_c |a_c g_c|, g = dL/da: activation times gradient, ShadowLLM's choice [2]_."""
    return group_sum((a * g).abs(), units)


def fisher(a: torch.Tensor, g: torch.Tensor, units: int) -> torch.Tensor:
    """sum_c (a_c g_c)^2."""
    return group_sum((a * g).square(), units)


def grad_norm(g: torch.Tensor, units: int) -> torch.Tensor:
    """||g_u||."""
    return group_sum(g.square(), units).sqrt()


def snip(a: torch.Tensor, weight: torch.Tensor, delta: torch.Tensor, units: int) -> torch.Tensor:
    """sum |W * dL/dW| over the unit's columns of the projection that reads it.

    A token's share of dL/dW is ``delta a^T``, so the sum over column c is ``|a_c| sum_i |W_ic| |delta_i|``.

    Parameters
    ----------
    a : Tensor of shape (tokens, inputs)
    weight : Tensor of shape (outputs, inputs)
    delta : Tensor of shape (tokens, outputs)
        dL/d(output of the projection).
    """
    return group_sum(a.abs() * (delta.abs() @ weight.abs()), units)


def grasp(a: torch.Tensor, hg: torch.Tensor, units: int) -> torch.Tensor:
    """sum_c a_c (H g)_c: what the gradient's squared norm would lose, to first order, without the unit [3]_.

    H is the Hessian of the loss in all units of all layers and tokens of the sequence together. Signed: a unit whose
    removal strengthens the gradient ranks last.
    """
    return group_sum(a * hg, units)


CRITERIA: dict[str, str] = {
    "l2norm": "||a||",
    "plainact": "sum |a g|",
    "fisher": "sum (a g)^2",
    "snip": "sum |W dL/dW| over the columns that read the unit",
    "gradnorm": "||g||",
    "grasp": "sum a (H g)",
}
"""Criteria and their equations; references are those of this module.

References
----------
.. [1] Liu et al., "Deja Vu", arXiv:2310.17157.
.. [2] Akhauri et al., "ShadowLLM", arXiv:2406.16635. Its code takes sum |W dL/dW| over fc1 for neurons under this name.
.. [3] Wang et al., "Picking winning tickets before training by preserving gradient flow", arXiv:2002.07376.
"""

_NEEDS_GRADIENT = ("plainact", "fisher", "snip", "gradnorm", "grasp")


def sequence_loss(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Summed next-token loss [nat]; a token's gradient thus holds its effect on later tokens too."""
    from torch.nn.functional import cross_entropy

    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")


def scores(
    model: Any, parts: Sequence[Block], ids: torch.Tensor, criteria: Sequence[str], also: Sequence[tuple[str, int]] = ()
) -> tuple[dict[tuple[str, str], torch.Tensor], dict[tuple[str, int], torch.Tensor]]:
    """Criteria of every head and neuron for every token, from one pass forward and back (two for grasp).

    Parameters
    ----------
    ids : Tensor of shape (sequences, length)
    also : sequence of (site, layer)
        Inputs to hand back as well, for predictors.

    Returns
    -------
    importance : dict of (kind, criterion) to Tensor of shape (sequences * length, layers, units)
    inputs : dict of (site, layer) to Tensor of shape (sequences * length, width)
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    second = "grasp" in criteria
    keys = [(kind, i) for kind in KINDS for i in range(len(parts))]
    at_input: dict[tuple[str, int], torch.Tensor] = {}
    at_output: dict[tuple[str, int], torch.Tensor] = {}
    values: dict[tuple[str, int], torch.Tensor] = {}
    seen: dict[tuple[str, int], torch.Tensor] = {}

    # Adding zeros that require a gradient gives dL/da without touching a parameter.
    def probe_input(key: tuple[str, int]) -> Callable[..., Any]:
        def hook(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            values[key] = args[0].detach()
            at_input[key] = torch.zeros_like(args[0], requires_grad=True)
            return (args[0] + at_input[key], *args[1:])

        return hook

    def probe_output(key: tuple[str, int]) -> Callable[..., Any]:
        def hook(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
            at_output[key] = torch.zeros_like(output, requires_grad=True)
            return output + at_output[key]

        return hook

    def keep(key: tuple[str, int]) -> Callable[..., Any]:
        def hook(_module: Any, args: tuple[Any, ...]) -> None:
            seen[key] = args[0].detach().reshape(-1, args[0].shape[-1])

        return hook

    hooks = [parts[i].site(site)[0].register_forward_pre_hook(keep((site, i))) for site, i in also]
    for kind, i in keys:
        module = parts[i].reader(kind)
        hooks.append(module.register_forward_pre_hook(probe_input((kind, i))))
        if "snip" in criteria:
            hooks.append(module.register_forward_hook(probe_output((kind, i))))
    # Only the plain kernel can be differentiated twice.
    backends = [SDPBackend.MATH] if second else list(_first_order_backends())
    with hooked(hooks), torch.enable_grad(), sdpa_kernel(backends):
        loss = sequence_loss(model, ids)
        first: list[torch.Tensor] = []
        hg: dict[tuple[str, int], torch.Tensor] = {}
        if any(c in _NEEDS_GRADIENT for c in criteria):
            wanted = [at_input[k] for k in keys] + [at_output[k] for k in keys if k in at_output]
            first = list(torch.autograd.grad(loss, wanted, create_graph=second))
        if second:
            inner = first[: len(keys)]
            product = sum(((g * g.detach()).sum() for g in inner), loss.new_zeros(()))
            twice = torch.autograd.grad(product, [at_input[k] for k in keys])
            hg = dict(zip(keys, twice, strict=True))
    gradient = {k: g.detach() for k, g in zip(keys, first, strict=False)}
    delta = {k: g.detach() for k, g in zip([k for k in keys if k in at_output], first[len(keys) :], strict=True)}

    def flat(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, x.shape[-1]).float()

    def one(criterion: str, kind: str, i: int) -> torch.Tensor:
        a, units = flat(values[kind, i]), parts[i].width(kind)
        if criterion == "l2norm":
            return l2norm(a, units)
        if criterion == "snip":
            weight = out_by_in(parts[i].reader(kind)).float()
            return snip(a, weight, flat(delta[kind, i]), units)
        if criterion == "grasp":
            return grasp(a, flat(hg[kind, i]), units)
        g = flat(gradient[kind, i])
        if criterion == "gradnorm":
            return grad_norm(g, units)
        return (plainact if criterion == "plainact" else fisher)(a, g, units)

    importance = {
        (kind, c): torch.stack([one(c, kind, i) for i in range(len(parts))], 1) for kind in KINDS for c in criteria
    }
    return importance, seen


def _first_order_backends() -> tuple[Any, ...]:
    from torch.nn.attention import SDPBackend

    return (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


def magnitude(parts: Sequence[Block], kind: str) -> torch.Tensor:
    """Static importance: the norm of the weights that a unit alone uses, (layers, units).

    A head has its columns of the output projection, a neuron its column of the down projection and its row(s) of
    the projection(s) before: sqrt of the sum of squares.
    """
    import torch

    rows = []
    for part in parts:
        square = group_sum(out_by_in(part.reader(kind)).float().square().sum(0)[None], part.width(kind))[0]
        if kind == "neurons":
            for module in part.ffn_in:
                # A fused projection holds the gate rows, then the up rows.
                square = square + out_by_in(module).float().square().sum(1).view(-1, part.neurons).sum(0)
        rows.append(square.sqrt())
    return torch.stack(rows)
