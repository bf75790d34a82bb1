"""Small networks that say, before the work is done, which heads and neurons will matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simulator.base.errors import UnknownNameError
from traces.masks import keep_largest
from traces.table_on_disk import TableOnDisk, mean_over_tokens

if TYPE_CHECKING:
    import torch

METHODS = ("shadowllm", "dejavu")

HEADLINE = ("plainact", "l2norm")
"""Criteria for which target scale, budget and mask are all varied."""


@dataclass(frozen=True)
class Plan:
    """One trained predictor: what it learned and its seed."""

    method: str
    criterion: str
    scale: str
    seed: int

    @property
    def file(self) -> str:
        """Name of its weights."""
        return f"{self.method}.{self.criterion}.{self.scale}.{self.seed}.safetensors"


def plans(criteria: list[str], seeds: int) -> list[Plan]:
    """What is trained: ShadowLLM for every criterion, the rest of the comparison for those of `HEADLINE`.

    Deja Vu's budget is per layer, so targets scaled over layers are ShadowLLM's question alone.
    """
    found = []
    for criterion in criteria:
        kinds = [("shadowllm", "layer")]
        if criterion in HEADLINE:
            kinds += [("dejavu", "layer"), ("shadowllm", "global")]
        found += [Plan(m, criterion, scale, seed) for m, scale in kinds for seed in range(seeds)]
    return found


@dataclass(frozen=True)
class Reader:
    """One two-layer predictor: what it reads and which units it speaks for.

    Parameters
    ----------
    site : str
        ``attn.o`` (heads' outputs side by side), ``attn.in`` or ``ffn.in``.
    at : int
        Layer of the site.
    kind : {"heads", "neurons"}
    layers : tuple of int
        Layers whose units it scores.
    """

    site: str
    at: int
    kind: str
    layers: tuple[int, ...]


def readers(method: str, n_layers: int) -> list[Reader]:
    """The predictors of a method.

    ``shadowllm``: one for all heads and one for all neurons, read from layer 0's heads before its output
    projection [1]_. ``dejavu``: per layer, neurons from the attention's input and the next layer's heads from the
    FFN's input, one block ahead [2]_. Layer 0's heads have none.

    References
    ----------
    .. [1] Akhauri et al., arXiv:2406.16635. .. [2] Liu et al., arXiv:2310.17157.
    """
    if method == "shadowllm":
        every = tuple(range(n_layers))
        return [Reader("attn.o", 0, "heads", every[1:]), Reader("attn.o", 0, "neurons", every)]
    if method == "dejavu":
        found = []
        for layer in range(n_layers):
            if layer:
                found.append(Reader("ffn.in", layer - 1, "heads", (layer,)))
            found.append(Reader("attn.in", layer, "neurons", (layer,)))
        return found
    raise UnknownNameError("method", method, METHODS, where="--methods")


def features(x: torch.Tensor) -> torch.Tensor:
    """Each token's vector scaled to [0, 1], as ShadowLLM's code does."""
    x = x.float()
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    return (x - low) / (high - low).clamp_min(1e-12)


def network(inputs: int, rank: int, outputs: int) -> Any:
    """W2 relu(W1 x + b1) + b2."""
    from torch import nn

    return nn.Sequential(nn.Linear(inputs, rank), nn.ReLU(), nn.Linear(rank, outputs))


def fit(
    method: str,
    inputs: Mapping[tuple[str, int], TableOnDisk | torch.Tensor],
    targets: Mapping[str, TableOnDisk | torch.Tensor],
    *,
    rank: int,
    seed: int,
    epochs: int,
    batch: int = 64,
    peak: float = 1e-3,
    device: str = "cpu",
) -> tuple[Any, float]:
    """Train a method's predictors on mean squared error: AdamW, cosine to zero.

    Inputs are standardised over the training tokens, which is folded into the first matrix afterwards; the second one
    starts at zero and its bias at the mean target, so that only the context is left to learn. Inputs in [0, 1] are
    all but constant: hidden units that begin on their wrong side never fire, and the output is a static mask.

    Parameters
    ----------
    inputs : mapping of (site, layer) to table of shape (tokens, width)
    targets : mapping of kind to table of shape (tokens, layers, units)
        Normalised scores [-].

    Returns
    -------
    networks : ModuleList
        One per entry of `readers(method, layers)`.
    loss : float
        Mean squared error over the last epoch, summed over predictors.
    """
    import numpy as np
    import torch
    from torch import nn

    tokens, n_layers = targets["neurons"].shape[:2]
    plan = readers(method, n_layers)
    inputs = {(r.site, r.at): inputs[r.site, r.at] for r in plan}
    torch.manual_seed(seed)
    means = {kind: mean_over_tokens(y) for kind, y in targets.items()}
    nets = nn.ModuleList()
    for r in plan:
        goal = means[r.kind][list(r.layers)].flatten()
        net = network(inputs[r.site, r.at].shape[1], rank, len(goal))
        net[2].weight.data.zero_()
        net[2].bias.data.copy_(goal)
        nets.append(net)
    scale = {site: _scale(x) for site, x in inputs.items()}
    nets.to(device)
    optim = torch.optim.AdamW(nets.parameters(), lr=peak, fused=True)
    steps = epochs * max(1, tokens // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optim, steps)
    rng, last = np.random.default_rng(seed), []
    for epoch in range(epochs):
        order = torch.as_tensor(rng.permutation(tokens))
        last = []
        for at in range(0, tokens - batch + 1, batch):
            rows = order[at : at + batch]
            goals = {kind: y[rows].to(device).float() for kind, y in targets.items()}
            seen = {site: (features(x[rows]) - scale[site][0]) / scale[site][1] for site, x in inputs.items()}
            seen = {site: x.to(device) for site, x in seen.items()}
            loss = torch.zeros((), device=device)
            for r, net in zip(plan, nets, strict=True):
                goal = goals[r.kind][:, r.layers[0] : r.layers[-1] + 1].flatten(1)
                loss = loss + (net(seen[r.site, r.at]) - goal).square().mean()
            optim.zero_grad()
            loss.backward()
            optim.step()
            schedule.step()
            if epoch == epochs - 1:
                last.append(loss.item())
    nets.eval().requires_grad_(False)
    fitted: list[Any] = list(nets)
    for r, net in zip(plan, fitted, strict=True):
        mean, spread = (x.to(device) for x in scale[r.site, r.at])
        net[0].weight /= spread
        net[0].bias -= net[0].weight @ mean
    return nets, float(np.mean(last)) if last else float("nan")


def _scale(x: TableOnDisk | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each feature over tokens; features that hardly move are not blown up."""
    import torch

    total, square, count = torch.zeros(x.shape[1]), torch.zeros(x.shape[1]), len(x)
    for at in range(0, count, 4096):
        total += features(x[at : at + 4096]).sum(0)
    mean = total / count
    for at in range(0, count, 4096):
        square += (features(x[at : at + 4096]) - mean).square().sum(0)
    spread = (square / count).sqrt()
    return mean, spread.clamp_min(0.1 * float(spread.square().mean().sqrt()) + 1e-12)


def restore(state: Mapping[str, torch.Tensor]) -> Any:
    """Predictors from their stored weights, in fp32."""
    from torch import nn

    nets = nn.ModuleList()
    for i in range(len(state) // 4):
        rank, inputs = state[f"{i}.0.weight"].shape
        nets.append(network(inputs, rank, len(state[f"{i}.2.bias"])))
    nets.load_state_dict({name: value.float() for name, value in state.items()})
    return nets.to(state["0.0.weight"].device).eval().requires_grad_(False)


def parameter_count(nets: Any) -> int:
    """Weights of all matrices and biases [-]."""
    return sum(p.numel() for p in nets.parameters())


class Predicted:
    """Masks decided while the model runs, from the inputs the predictors may see by then.

    ``shadowllm`` knows every layer's scores after layer 0, so its budget may be global. ``dejavu`` learns a layer's
    scores one block ahead: its budget is per layer.

    Parameters
    ----------
    keep : float
        Share of heads and of neurons kept [-].
    budget : {"global", "layer"}
    """

    def __init__(self, method: str, nets: Any, widths: Mapping[str, int], n_layers: int, *, keep: float, budget: str):
        self.plan = readers(method, n_layers)
        self.nets, self.widths, self.n_layers = nets, widths, n_layers
        self.keep, self.budget = keep, budget
        self.sites: Sequence[tuple[str, int]] = sorted({(r.site, r.at) for r in self.plan})
        self.scores: dict[tuple[str, int], torch.Tensor] = {}
        self.masks: dict[tuple[str, int], torch.Tensor] = {}

    def see(self, site: str, layer: int, x: torch.Tensor) -> None:
        """Score and choose the units of every predictor that reads this site."""
        seen = features(x)
        for r, net in zip(self.plan, self.nets, strict=True):
            if (r.site, r.at) == (site, layer):
                found = net(seen).view(len(x), len(r.layers), self.widths[r.kind])
                mask = keep_largest(found, self.keep, self.budget if len(r.layers) > 1 else "layer")
                for i, target in enumerate(r.layers):
                    self.scores[r.kind, target] = found[:, i]
                    self.masks[r.kind, target] = mask[:, i]

    def mask(self, kind: str, layer: int) -> torch.Tensor | None:
        """Kept units of a layer; None where no predictor speaks for it."""
        return self.masks.get((kind, layer))

    def stacked(self, kind: str) -> torch.Tensor:
        """Scores of the latest pass, (tokens, layers that were scored, units)."""
        import torch

        layers = [i for i in range(self.n_layers) if (kind, i) in self.scores]
        return torch.stack([self.scores[kind, i] for i in layers], 1)
