"""Which heads and neurons stay: budgets that count exactly, and hooks that zero the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from simulator.base.errors import UnknownNameError
from traces.blocks import Block, hooked
from traces.criteria import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

BUDGETS = ("global", "layer")
TARGETS = ("global", "layer")


def normalise(scores: torch.Tensor, targets: str) -> torch.Tensor:
    """Scores of each token scaled to [0, 1]: over all layers together, or inside each layer.

    Parameters
    ----------
    scores : Tensor of shape (tokens, layers, units)
    targets : {"global", "layer"}
    """
    if targets not in TARGETS:
        raise UnknownNameError("target scale", targets, TARGETS, where="--targets")
    over = (1, 2) if targets == "global" else (2,)
    low, high = scores.amin(over, keepdim=True), scores.amax(over, keepdim=True)
    return (scores - low) / (high - low).clamp_min(1e-30)


def keep_largest(scores: torch.Tensor, keep: float, budget: str) -> torch.Tensor:
    """Exactly ``round(keep * n)`` of the n units: n of each layer, or of all layers together; of equals the first.

    Parameters
    ----------
    scores : Tensor of shape (tokens, layers, units)
    keep : float
        Share kept [-].
    budget : {"global", "layer"}

    Returns
    -------
    Tensor of bool, shape of `scores`
    """
    import torch

    if budget not in BUDGETS:
        raise UnknownNameError("budget", budget, BUDGETS, where="--budgets")
    flat = scores.flatten(1) if budget == "global" else scores
    count, wanted = flat.shape[-1], round(keep * flat.shape[-1])
    if not wanted:
        return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    # The smallest score that stays; half the time of topk, which sorts what it finds.
    limit = flat.kthvalue(count - wanted + 1, dim=-1, keepdim=True).values
    mask, equal = flat > limit, flat == limit
    missing = wanted - mask.sum(-1, keepdim=True)
    if bool((equal.sum(-1, keepdim=True) > missing).any()):
        equal &= equal.cumsum(-1, dtype=torch.int32) <= missing
    return (mask | equal).view(scores.shape)


class Chooser(Protocol):
    """What decides the masks of a forward pass while it runs."""

    sites: Sequence[tuple[str, int]]
    """(site, layer) whose inputs it wants to see."""

    def see(self, site: str, layer: int, x: torch.Tensor) -> None:
        """Take the input (tokens, width) of a site, before the units it decides on are computed."""

    def mask(self, kind: str, layer: int) -> torch.Tensor | None:
        """Kept units (tokens, units) of a layer; None keeps all."""


class Fixed:
    """Masks known beforehand, (tokens, layers, units) per kind."""

    sites: Sequence[tuple[str, int]] = ()

    def __init__(self, masks: Mapping[str, torch.Tensor]):
        self.masks = masks

    def see(self, site: str, layer: int, x: torch.Tensor) -> None:
        """Nothing to look at."""

    def mask(self, kind: str, layer: int) -> torch.Tensor | None:
        """The mask as given."""
        return self.masks[kind][:, layer]


def open_first_heads(mask: torch.Tensor) -> torch.Tensor:
    """Layer 0's attention runs dense: the predictor reads it, so every method leaves it alone."""
    mask = mask.clone()
    mask[:, 0] = True
    return mask


@contextmanager
def masked(parts: Sequence[Block], chooser: Chooser) -> Iterator[dict[tuple[str, int], Any]]:
    """Run the model with the units that `chooser` drops set to zero at the projection that reads them.

    Yields
    ------
    dict of (kind, layer) to Tensor of bool, (tokens, units)
        Masks used in the latest forward pass.
    """
    used: dict[tuple[str, int], Any] = {}

    def look(site: str, layer: int) -> Callable[..., Any]:
        def hook(_module: Any, args: tuple[Any, ...]) -> None:
            chooser.see(site, layer, args[0].reshape(-1, args[0].shape[-1]))

        return hook

    def drop(kind: str, layer: int) -> Callable[..., Any]:
        def hook(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            mask = chooser.mask(kind, layer)
            if mask is None:
                return None
            used[kind, layer] = mask
            x = args[0]
            units = x.reshape(mask.shape[0], mask.shape[1], -1) * mask[:, :, None]
            return (units.view(x.shape), *args[1:])

        return hook

    # A site's look comes before the same module's drop: hooks run in the order of registration.
    hooks = [parts[layer].site(site)[0].register_forward_pre_hook(look(site, layer)) for site, layer in chooser.sites]
    for kind in KINDS:
        for layer, part in enumerate(parts):
            hooks.append(part.reader(kind).register_forward_pre_hook(drop(kind, layer)))
    with hooked(hooks):
        yield used


@contextmanager
def thresholded(
    parts: Sequence[Block], thresholds: Mapping[tuple[str, int], float], live: dict[str, list[float]]
) -> Iterator[None]:
    """TEAL: zero the inputs of every projection below its threshold.

    Parameters
    ----------
    thresholds : mapping of (site, layer) to float
    live : dict
        Gets the measured share of live inputs per site, a number per layer and pass [-].

    References
    ----------
    .. [1] Liu et al., "Training-free activation sparsity", arXiv:2408.14690; one share for all matrices, not its
       greedy search.
    """

    def hook(site: str, threshold: float) -> Callable[..., Any]:
        def run(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            alive = args[0].abs() > threshold
            live.setdefault(site, []).append(alive.float().mean().item())
            return (args[0] * alive, *args[1:])

        return run

    hooks = []
    for (site, layer), threshold in thresholds.items():
        for module in parts[layer].site(site):
            hooks.append(module.register_forward_pre_hook(hook(site, threshold)))
    with hooked(hooks):
        yield


@contextmanager
def gate_thresholded(
    parts: Sequence[Block], thresholds: Sequence[float], live: dict[str, list[float]]
) -> Iterator[None]:
    """CATS: neurons stay whose gate |act(x W_gate)| reaches the layer's threshold; the gate itself is computed dense.

    References
    ----------
    .. [1] Lee et al., "CATS", arXiv:2404.08763.
    """
    gates: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Callable[..., Any]:
        def hook(_module: Any, _args: Any, output: torch.Tensor) -> None:
            gates[layer] = output.detach()

        return hook

    def drop(layer: int) -> Callable[..., Any]:
        def hook(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            alive = gates[layer].abs() >= thresholds[layer]
            live.setdefault("ffn.down", []).append(alive.float().mean().item())
            return (args[0] * alive, *args[1:])

        return hook

    hooks = []
    for layer, part in enumerate(parts):
        hooks.append(part.activation.register_forward_hook(keep(layer)))
        hooks.append(part.down.register_forward_pre_hook(drop(layer)))
    with hooked(hooks):
        yield
