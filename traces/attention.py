"""What attention probabilities say about a KV cache: how few tokens hold the mass, and how they move."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def probabilities(
    query: torch.Tensor,
    key: torch.Tensor,
    rows: torch.Tensor,
    *,
    scaling: float | None = None,
    mask: torch.Tensor | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention probabilities of some queries of one sequence, in float32.

    ``p = softmax(cap(q k^T s) + mask)``; without `mask`, causal.

    Parameters
    ----------
    query : Tensor, shape (heads, tokens, head_dim)
    key : Tensor, shape (kv_heads, tokens, head_dim)
        Head h attends with KV head h // (heads / kv_heads).
    rows : Tensor, shape (n,), int64
        Positions of the queries.
    scaling : float, optional
        1 / sqrt(head_dim) if absent.
    mask : Tensor, optional, shape (1 or heads, tokens, tokens)
        Boolean (True attends) or added to the scores.
    softcap : float, optional
        Gemma 2's ``c tanh(score / c)``.

    Returns
    -------
    Tensor, shape (heads, n, tokens)
    """
    import torch

    heads, tokens, width = query.shape
    group = heads // key.shape[0]
    grouped = query[:, rows].float().reshape(key.shape[0], group * len(rows), width)
    scores = grouped @ key.float().transpose(1, 2)
    scores = scores.reshape(heads, len(rows), tokens)
    scores *= scaling if scaling is not None else 1.0 / math.sqrt(width)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        later = torch.arange(tokens, device=rows.device)[None, :] > rows[:, None]
        scores = scores.masked_fill(later, -torch.inf)
    elif mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask[:, rows], -torch.inf)
    else:
        scores = scores + mask[:, rows].float()
    return torch.softmax(scores, -1)


@dataclass(frozen=True, eq=False)
class Attended:
    """One call of a model's attention; the tensors are the model's own and must not be changed or kept.

    Parameters
    ----------
    query : Tensor, shape (batch, heads, tokens, head_dim)
    key, value : Tensor, shape (batch, kv_heads, tokens, head_dim)
        As cached, after any rotation.
    mask : Tensor, optional, shape (1 or batch, 1 or heads, tokens, tokens)
        As in `probabilities`, like the two below.
    scaling, softcap : float, optional
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None = None
    scaling: float | None = None
    softcap: float | None = None

    def probabilities(self, sequence: int, rows: torch.Tensor) -> torch.Tensor:
        """`probabilities` of the queries at `rows` of one sequence."""
        mask = None if self.mask is None else self.mask[min(sequence, self.mask.shape[0] - 1)]
        return probabilities(
            self.query[sequence], self.key[sequence], rows, scaling=self.scaling, mask=mask, softcap=self.softcap
        )


def tokens_for_mass(p: torch.Tensor, masses: Sequence[float]) -> torch.Tensor:
    """Fewest tokens whose probabilities add up to each mass.

    Parameters
    ----------
    p : Tensor, shape (..., context)
    masses : sequence of float
        Shares of the probability [-].

    Returns
    -------
    Tensor, shape (..., len(masses)), int64
    """
    import torch

    total = torch.cumsum(torch.sort(p.double(), -1, descending=True).values, -1)
    return torch.stack([(total < m).sum(-1) + 1 for m in masses], -1).clamp(max=p.shape[-1])


def entropy(p: torch.Tensor) -> torch.Tensor:
    """Entropy ``-sum p ln p`` over the last axis [nat]."""
    import torch

    return -torch.xlogy(p, p).sum(-1)


def near_share(p: torch.Tensor, rows: torch.Tensor, distances: Sequence[int]) -> torch.Tensor:
    """Probability on tokens less than x behind the query, the first token of the sequence left out.

    Parameters
    ----------
    p : Tensor, shape (heads, n, tokens)
    rows : Tensor, shape (n,)
        Positions of the queries.
    distances : sequence of int
        [tokens].

    Returns
    -------
    Tensor, shape (heads, n, len(distances))
    """
    import torch

    behind = rows[:, None] - torch.arange(p.shape[-1], device=p.device)[None, :]
    inside = [(behind >= 0) & (behind < x) for x in distances]
    near = torch.stack(inside, -1).to(p.dtype)
    near[:, 0] = 0.0
    return torch.einsum("hnt,ntx->hnx", p, near)


def repeated_share(order: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Share of each step's most probable tokens that were so in the step before: |T_t and T_{t-1}| / |T_t|.

    Parameters
    ----------
    order : Tensor, shape (heads, steps, tokens), int64
        Tokens of consecutive queries by falling probability.
    sizes : sequence of int
        |T_t| [tokens].

    Returns
    -------
    Tensor, shape (heads, steps - 1, len(sizes))
    """
    import torch

    rank = torch.empty_like(order)
    rank.scatter_(-1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order))
    worse = torch.maximum(rank[:, 1:], rank[:, :-1])
    return torch.stack([(worse < k).sum(-1) / k for k in sizes], -1)


def cache_hits(order: torch.Tensor, selected: int, size: int) -> torch.Tensor:
    """Share of each step's `selected` most probable tokens found in an LRU cache of `size` tokens.

    The cache starts with the `size` most probable tokens of the first step; of tokens last used in the
    same step the least probable is evicted first. With ``size == selected`` this is `repeated_share`.

    Parameters
    ----------
    order : Tensor, shape (heads, steps, tokens), int64
        Tokens of consecutive queries by falling probability.

    Returns
    -------
    Tensor, shape (heads, steps - 1)
    """
    import torch

    heads, steps, tokens = order.shape
    # Priority: the step that used a token last, times the context, plus how far up it stood then.
    place = torch.arange(tokens - 1, -1, -1, device=order.device).expand(heads, tokens)
    priority = torch.empty_like(order[:, 0]).scatter_(-1, order[:, 0], place)
    hits = []
    for step in range(1, steps):
        oldest_kept = priority.kthvalue(tokens - size + 1, -1, keepdim=True).values
        top = order[:, step, :selected]
        hits.append((priority.gather(-1, top) >= oldest_kept).float().mean(-1))
        priority = priority.scatter(-1, top, step * tokens + place[:, :selected])
    return torch.stack(hits, -1)
