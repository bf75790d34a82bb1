"""KV methods that choose what a query may see: the masks of their keys, never a copied model.

Keys are those the cache holds (after any rotation), at their own positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Looked:
    """What the queries of a prompt looked at, in one layer: all that methods which look back need of them.

    Parameters
    ----------
    mass : Tensor of shape (batch, kv_heads, prompt)
        Attention probability each token got, summed over the prompt's queries and the heads of the group [-].
    newest : Tensor of shape (batch, heads, n, head_dim)
        The last n <= `NEWEST` scaled queries.
    """

    mass: torch.Tensor
    newest: torch.Tensor


NEWEST = 128
"""Queries of a prompt that are kept for methods which ask the last ones [tokens]."""
_ROWS = 256


def looked(q: torch.Tensor, k: torch.Tensor) -> Looked:
    """What the queries of a whole prompt look at, `_ROWS` of them at a time; shapes as in the selectors."""
    import torch

    batch, _, tokens, dim = q.shape
    grouped = q.view(batch, k.shape[1], -1, tokens, dim)
    mass = torch.zeros(batch, k.shape[1], tokens, device=q.device)
    key = torch.arange(tokens, device=q.device)
    for rows in key.split(_ROWS):
        scores = grouped[:, :, :, rows] @ k[:, :, None].transpose(3, 4)
        mass += scores.masked_fill(key > rows[:, None], float("-inf")).softmax(-1).sum((2, 3))
    return Looked(mass, q[:, :, -NEWEST:].clone())


def positions(n_queries: int, n_keys: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the queries, the last of the keys (queries, 1), and of the keys (1, keys)."""
    import torch

    q = torch.arange(n_keys - n_queries, n_keys, device=device)[:, None]
    return q, torch.arange(n_keys, device=device)[None, :]


def streaming_llm(q: torch.Tensor, k: torch.Tensor, *, budget: int, sinks: int = 4) -> torch.Tensor:
    """First `sinks` tokens and the newest ``budget - sinks`` (positions are not renumbered).

    Parameters
    ----------
    q : Tensor of shape (batch, heads, queries, head_dim)
        Scaled queries after the prompt, the last of the context.
    k : Tensor of shape (batch, kv_heads, keys, head_dim)

    Returns
    -------
    Tensor of bool, broadcastable to (batch, heads, queries, keys)
        Keys each query may read.
    """
    at, key = positions(q.shape[2], k.shape[2], q.device)
    return ((key < sinks) | (at - key < budget - sinks))[None, None]


def quest(q: torch.Tensor, k: torch.Tensor, *, budget: int, page: int = 16) -> torch.Tensor:
    """Pages with the highest bound sum_c max(q_c min_c, q_c max_c), per query head; the open page always."""
    import torch

    batch, heads, n_queries, dim = q.shape
    kv_heads, n_keys = k.shape[1], k.shape[2]
    pages = n_keys // page
    paged = k[:, :, : pages * page].view(batch, kv_heads, pages, page, dim)
    low, high = paged.amin(3), paged.amax(3)
    group = heads // kv_heads
    low, high = low.repeat_interleave(group, 1), high.repeat_interleave(group, 1)
    positive, negative = q.clamp_min(0.0), q.clamp_max(0.0)
    bound = positive @ high.transpose(2, 3) + negative @ low.transpose(2, 3)
    at, key = positions(n_queries, n_keys, q.device)
    page_of = torch.arange(pages, device=q.device)[None, :]
    closed = (page_of + 1) * page <= (at // page) * page
    bound = bound.masked_fill(~closed, float("-inf"))
    wanted = min(max(budget // page - 1, 0), pages)
    chosen = torch.zeros(bound.shape, dtype=torch.bool, device=q.device)
    if wanted:
        chosen.scatter_(-1, bound.topk(wanted, dim=-1).indices, True)
    chosen &= closed
    seen = torch.zeros(batch, heads, n_queries, n_keys, dtype=torch.bool, device=q.device)
    seen[..., : pages * page] = chosen.repeat_interleave(page, -1)
    return seen | (key // page == at // page)


def double_sparsity(
    q: torch.Tensor, k: torch.Tensor, *, budget: int, labels: torch.Tensor, together: bool = True
) -> torch.Tensor:
    """The query itself and the ``budget - 1`` tokens with the highest score on the label channels.

    Parameters
    ----------
    labels : Tensor of int, shape (kv_heads, channels)
        Channels of each KV head, as `label_channels` chooses them.
    together : bool
        Heads of a group pick by the sum of their softmaxed scores, else each for itself.
    """
    import torch

    batch, heads, n_queries, dim = q.shape
    kv_heads, n_keys = k.shape[1], k.shape[2]
    at, key = positions(n_queries, n_keys, q.device)
    grouped = q.view(batch, kv_heads, -1, n_queries, dim)
    some_q = grouped.gather(-1, labels[None, :, None, None].expand(*grouped.shape[:4], -1))
    some_k = k.gather(-1, labels[None, :, None].expand(*k.shape[:3], -1))
    scores = (some_q @ some_k[:, :, None].transpose(3, 4)).masked_fill(key > at, float("-inf"))
    if together:
        scores = scores.softmax(-1).sum(2, keepdim=True)
    scores = scores.masked_fill(key == at, float("inf"))
    best = scores.topk(min(budget, n_keys), dim=-1).indices
    seen = torch.zeros(scores.shape, dtype=torch.bool, device=q.device).scatter_(-1, best, True)
    return seen.expand(batch, kv_heads, heads // kv_heads, n_queries, n_keys).reshape(batch, heads, n_queries, n_keys)


def snapkv(
    q: torch.Tensor, k: torch.Tensor, *, before: Looked, budget: int, observe: int = 16, pool: int = 5
) -> torch.Tensor:
    """Per KV head, the prompt tokens the last `observe` prompt queries look at most, and all that is generated."""
    import torch

    batch, heads, _, dim = q.shape
    kv_heads, n_keys, prompt = k.shape[1], k.shape[2], before.mass.shape[2]
    at, key = positions(observe, prompt, q.device)
    window = before.newest[:, :, -observe:].reshape(batch, kv_heads, -1, observe, dim)
    early = prompt - observe
    scores = (window @ k[:, :, None, :prompt].transpose(3, 4)).masked_fill(key > at, float("-inf"))
    mass = scores.softmax(-1)[..., :early].sum((2, 3))
    mass = torch.nn.functional.avg_pool1d(mass, pool, stride=1, padding=pool // 2)
    kept = torch.zeros(batch, kv_heads, n_keys, dtype=torch.bool, device=q.device)
    kept[..., early:] = True
    kept.scatter_(-1, mass.topk(min(max(budget - observe, 0), early), dim=-1).indices, True)
    return kept.repeat_interleave(heads // kv_heads, 1)[:, :, None]


def h2o(q: torch.Tensor, k: torch.Tensor, *, before: Looked, budget: int) -> torch.Tensor:
    """Half the budget for the tokens with the largest attention so far, half for the newest; what goes stays gone."""
    import torch

    batch, heads, n_queries, dim = q.shape
    kv_heads, n_keys = k.shape[1], k.shape[2]
    prompt = n_keys - n_queries
    scores = q.view(batch, kv_heads, -1, n_queries, dim) @ k[:, :, None].transpose(3, 4)
    recent = budget - budget // 2
    seen = torch.zeros(batch, kv_heads, n_queries, n_keys, dtype=torch.bool, device=q.device)
    total = torch.zeros(batch, kv_heads, n_keys, device=q.device)
    total[..., :prompt] = before.mass
    alive = torch.zeros(batch, kv_heads, n_keys, dtype=torch.bool, device=q.device)
    alive[..., :prompt] = True
    for n in range(n_queries):
        t = prompt + n
        alive[..., t] = True
        alive = _evict(total, alive, t, recent, budget)
        seen[:, :, n] = alive
        row = scores[:, :, :, n].masked_fill(~alive[:, :, None], float("-inf"))
        total += row.softmax(-1).sum(2)
    return seen.repeat_interleave(heads // kv_heads, 1)


def _evict(total: torch.Tensor, alive: torch.Tensor, t: int, recent: int, budget: int) -> torch.Tensor:
    """The newest `recent` of tokens 0..t and, of the older ones alive, the heaviest up to `budget`."""
    import torch

    if t + 1 <= budget:
        return alive
    old = t + 1 - recent
    mass = total[..., :old].masked_fill(~alive[..., :old], -1.0)
    kept = torch.zeros_like(alive)
    kept[..., old : t + 1] = True
    kept.scatter_(-1, mass.topk(budget - recent, dim=-1).indices, True)
    return kept & alive
