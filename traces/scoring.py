"""What sparsity costs on held-out text: perplexity, agreement with dense, and what was read for it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING, Any

from simulator.base.errors import InputError
from traces.blocks import Block, out_by_in

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Scene:
    """Held-out windows whose prompts were run dense; the tokens after them are scored.

    Only tokens computed sparsely are scored: TEAL's published perplexities mix in the dense first half of each
    window and so understate the loss.

    Parameters
    ----------
    ids : Tensor of int, shape (windows, length)
    prompt : int
        Tokens at the start of each window that run dense, as every policy's prefill does.
    batches : tuple of (slice, cache)
        Windows run together, with the keys and values of their prompts.
    loss_nat, best : Tensor
        Dense summed loss of each window (windows,) [nat] and dense argmax (windows, scored).
    """

    ids: torch.Tensor
    prompt: int
    batches: tuple[tuple[slice, Any], ...]
    loss_nat: torch.Tensor
    best: torch.Tensor

    @property
    def scored_tokens(self) -> int:
        """Tokens whose prediction is scored [-]."""
        return self.best.numel()

    @property
    def mean_context(self) -> float:
        """Mean number of tokens a scored token attends to, itself included [tokens]."""
        return self.prompt + (self.best.shape[1] + 1) / 2.0

    @property
    def dense_perplexity(self) -> float:
        """exp of the mean dense loss [-]."""
        return exp(float(self.loss_nat.sum()) / self.scored_tokens)


@dataclass(frozen=True)
class Score:
    """Quality of one sparse run against dense.

    Parameters
    ----------
    perplexity : float
    agreement : float
        Share of scored tokens whose most likely next token is dense's [-].
    log_ratio_se : float
        Standard error of ln(perplexity over dense's), of its spread over windows; NaN of a single one [nat].
    """

    perplexity: float
    agreement: float
    log_ratio_se: float = float("nan")


def windows(ids: Any, length: int, count: int, *, first: Sequence[int] = (), seed: int | None = None) -> torch.Tensor:
    """`count` windows of `length` tokens that do not overlap: evenly spread, or drawn with `seed`.

    Parameters
    ----------
    first : sequence of int
        What each window begins with (`traces.text.first_tokens`); the text fills the rest.
    """
    import numpy as np
    import torch

    if count < 1:
        raise InputError(
            f"not one window of {length} tokens is left; raise --max-tokens, or lower --length", where="--length"
        )
    ids = np.asarray(ids)
    body = length - len(first)
    available = len(ids) // body
    if available < count:
        raise InputError(
            f"the text has {len(ids)} tokens here, too few for {count} windows of {length}; give a longer text "
            "or fewer --max-tokens",
            where="--text",
        )
    if seed is None:
        starts = np.linspace(0, available - 1, count).round().astype(int)
    else:
        starts = np.sort(np.random.default_rng(seed).permutation(available)[:count])
    return torch.as_tensor(np.stack([[*first, *ids[s * body : (s + 1) * body]] for s in starts]).astype("int64"))


def _judge(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed loss of each row [nat], and the most likely tokens."""
    from torch.nn.functional import cross_entropy

    loss = cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return loss.view(targets.shape).double().sum(1), logits.argmax(-1)


def scene(model: Any, ids: torch.Tensor, prompt: int, *, rows: int | None = None) -> Scene:
    """Run the prompts dense and remember what dense says about the rest."""
    import torch

    rows = rows or windows_per_pass(model, ids.shape[1])
    found, losses, best = [], [], []
    with torch.inference_mode():
        for at in range(0, len(ids), rows):
            part = slice(at, min(at + rows, len(ids)))
            cache = model.base_model(input_ids=ids[part, :prompt], use_cache=True).past_key_values
            found.append((part, cache))
            rest = ids[part, prompt:]
            out = model(input_ids=rest[:, :-1], past_key_values=copy.deepcopy(cache), use_cache=True)
            loss, top = _judge(out.logits, rest[:, 1:])
            losses.append(loss)
            best.append(top)
    return Scene(ids, prompt, tuple(found), torch.cat(losses), torch.cat(best))


_PASS_BYTES = 2**26


def windows_per_pass(model: Any, length: int) -> int:
    """As many windows as have logits of 64 MiB, 1 to 4: a pass forward and back holds some twenty times that."""
    vocabulary = len(out_by_in(model.get_output_embeddings()))
    return min(4, max(1, _PASS_BYTES // (4 * vocabulary * length)))


Setting = Callable[[int], AbstractContextManager[Any]]
"""Batch number to the context in which its scored tokens run."""


def judge(
    model: Any, scene: Scene, setting: Setting, *, whole: bool = False, after: Callable[[int, Any], None] | None = None
) -> Score:
    """Perplexity and agreement of the scored tokens under `setting`.

    Parameters
    ----------
    whole : bool
        Run prompt and rest in one pass, for settings that need the prompt's own attention.
    after : callable, optional
        Called with the batch number and whatever the context yielded.
    """
    import torch

    losses, same = [], 0
    with torch.inference_mode():
        for number, (part, cache) in enumerate(scene.batches):
            rest = scene.ids[part, scene.prompt :]
            with setting(number) as yielded:
                if whole:
                    logits = model(input_ids=scene.ids[part, :-1], use_cache=False).logits
                    logits = logits[:, scene.prompt :]
                else:
                    logits = model(input_ids=rest[:, :-1], past_key_values=copy.deepcopy(cache), use_cache=True).logits
            loss, top = _judge(logits, rest[:, 1:])
            losses.append(loss)
            same += int((top == scene.best[part]).sum())
            if after is not None:
                after(number, yielded)
    found = torch.cat(losses)
    mean = float(found.sum()) / scene.scored_tokens
    more = (found - scene.loss_nat) / scene.best.shape[1]
    error = float(more.std()) / len(more) ** 0.5 if len(more) > 1 else float("nan")
    return Score(exp(min(mean, 700.0)), same / scene.scored_tokens, error)


def recall(used: torch.Tensor, best: torch.Tensor) -> float:
    """Share of the units an oracle of the same budget keeps that were kept, both (tokens, layers, units) [-].

    1 where the budget is none at all: nothing was missed.
    """
    wanted = int(best.sum())
    return int((used & best).sum()) / wanted if wanted else 1.0


def rank_correlation(guess: torch.Tensor, truth: torch.Tensor) -> float:
    """Spearman's correlation over all units of a token, mean over tokens; (tokens, layers, units) both [-].

    Ties get distinct ranks in the order of the units; they matter only where many units are exactly zero.
    """

    def ranks(x: torch.Tensor) -> torch.Tensor:
        r = x.flatten(1).argsort(1).argsort(1).double()
        return r - r.mean(1, keepdim=True)

    a, b = ranks(guess), ranks(truth)
    return float(((a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt().clamp_min(1e-30)).mean())


@dataclass(frozen=True)
class Shares:
    """What one decoded token reads and computes against dense, batch 1 [-]."""

    weight_bytes: float
    flop: float


def _parameters(part: Block) -> dict[str, float]:
    """Matrix elements of a layer by role [-]."""
    per_head = part.hidden * part.head_dim
    mats = 2 if part.gated else 1
    return {
        "q": float(part.n_heads * per_head),
        "kv": 2.0 * part.n_kv_heads * per_head,
        "o": float(part.n_heads * per_head),
        "ffn_in": float(mats * part.hidden * part.neurons),
        "down": float(part.hidden * part.neurons),
    }


def shares(
    parts: Sequence[Block],
    model: Any,
    keep: Sequence[Mapping[str, float]],
    *,
    context: float,
    attention: Sequence[float] | float = 1.0,
    predictor: int = 0,
) -> Shares:
    """Shares of the weights read and of the flop done; the language model head is dense, the embedding one row.

    flop = 2 per weight element + 4 * context * head_dim per head's attention.

    Parameters
    ----------
    keep : sequence of mapping of role (``q kv o ffn_in down``) to share
        One per layer [-].
    context : float
        Mean context [tokens].
    attention : float or sequence of float
        Share of the attention's flop per layer [-].
    predictor : int
        Parameters of the predictors, read for every token [-].
    """
    head = float(out_by_in(model.get_output_embeddings()).numel())
    per_layer = [attention] * len(parts) if isinstance(attention, int | float) else list(attention)
    dense = read = head
    full = done = 2.0 * head
    for part, kept, share in zip(parts, keep, per_layer, strict=True):
        sizes = _parameters(part)
        dense += sum(sizes.values())
        kept_elements = sum(n * kept.get(role, 1.0) for role, n in sizes.items())
        read += kept_elements
        mixing = 4.0 * context * part.head_dim * part.n_heads
        full += 2.0 * sum(sizes.values()) + mixing
        done += 2.0 * kept_elements + mixing * share
    return Shares((read + predictor) / dense, (done + 2.0 * predictor) / full)


def kept_shares(parts: Sequence[Block], used: Mapping[tuple[str, int], torch.Tensor]) -> list[dict[str, float]]:
    """Shares per layer and role from masks; a KV head is read if any query head of its group is kept."""
    found = []
    for i, part in enumerate(parts):
        roles = dict.fromkeys(("q", "kv", "o", "ffn_in", "down"), 1.0)
        if ("heads", i) in used:
            mask = used["heads", i]
            group = mask.view(len(mask), part.n_kv_heads, -1).any(-1)
            roles |= {"q": float(mask.float().mean()), "kv": float(group.float().mean())}
            roles["o"] = roles["q"]
        if ("neurons", i) in used:
            roles["ffn_in"] = roles["down"] = float(used["neurons", i].float().mean())
        found.append(roles)
    return found


def stack(used: Mapping[tuple[str, int], torch.Tensor], kind: str) -> torch.Tensor:
    """Masks of the layers that were chosen for, (tokens, layers, units)."""
    import torch

    return torch.stack([m for (k, _), m in sorted(used.items(), key=lambda kv: kv[0]) if k == kind], 1)
