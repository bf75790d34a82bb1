"""KV methods, simulated inside the attention function: what a query may see, never a copied model.

The prompt attends densely; from token `prompt` on each query sees what the method would have left or fetched. Keys
are those the cache holds (after any rotation), at their own positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from simulator.base.errors import UnsupportedError
from traces.kv import rounded
from traces.layouts import decoder_layers

if TYPE_CHECKING:
    import torch

_NAME = "shadowline_kv"


def _positions(n_queries: int, n_keys: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    q = torch.arange(n_keys - n_queries, n_keys, device=device)[:, None]
    return q, torch.arange(n_keys, device=device)[None, :]


def streaming_llm(q: torch.Tensor, k: torch.Tensor, *, prompt: int, budget: int, sinks: int = 4) -> torch.Tensor:
    """First `sinks` tokens and the newest ``budget - sinks`` (positions are not renumbered).

    Parameters
    ----------
    q : Tensor of shape (batch, heads, queries, head_dim)
        Scaled queries.
    k : Tensor of shape (batch, kv_heads, keys, head_dim)

    Returns
    -------
    Tensor of bool, broadcastable to (batch, heads, queries, keys)
        Keys each query may read.
    """
    at, key = _positions(q.shape[2], k.shape[2], q.device)
    return ((key < sinks) | (at - key < budget - sinks) | (at < prompt))[None, None]


def quest(q: torch.Tensor, k: torch.Tensor, *, prompt: int, budget: int, page: int = 16) -> torch.Tensor:
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
    at, key = _positions(n_queries, n_keys, q.device)
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
    return seen | (key // page == at // page) | (at < prompt)


def snapkv(
    q: torch.Tensor, k: torch.Tensor, *, prompt: int, budget: int, observe: int = 16, pool: int = 5
) -> torch.Tensor:
    """Per KV head, the prompt tokens the last `observe` prompt queries look at most, and all that is generated."""
    import torch

    batch, heads, _, dim = q.shape
    kv_heads, n_keys = k.shape[1], k.shape[2]
    at, key = _positions(q.shape[2], n_keys, q.device)
    window = q[:, :, prompt - observe : prompt].view(batch, kv_heads, -1, observe, dim)
    early = k[:, :, : prompt - observe]
    scores = (window @ k[:, :, None, :prompt].transpose(3, 4)).masked_fill(
        key[:, :prompt] > at[prompt - observe : prompt], float("-inf")
    )
    mass = scores.softmax(-1)[..., : early.shape[2]].sum((2, 3))
    mass = torch.nn.functional.avg_pool1d(mass, pool, stride=1, padding=pool // 2)
    kept = torch.zeros(batch, kv_heads, n_keys, dtype=torch.bool, device=q.device)
    kept[..., prompt - observe :] = True
    kept.scatter_(-1, mass.topk(min(max(budget - observe, 0), early.shape[2]), dim=-1).indices, True)
    kept = kept.repeat_interleave(heads // kv_heads, 1)[:, :, None]
    return kept | (at < prompt)


def h2o(q: torch.Tensor, k: torch.Tensor, *, prompt: int, budget: int) -> torch.Tensor:
    """Half the budget for the tokens with the largest attention so far, half for the newest; what goes stays gone."""
    import torch

    batch, heads, n_queries, dim = q.shape
    kv_heads, n_keys = k.shape[1], k.shape[2]
    at, key = _positions(n_queries, n_keys, q.device)
    grouped = q.view(batch, kv_heads, -1, n_queries, dim)
    scores = grouped @ k[:, :, None].transpose(3, 4)
    recent = budget - budget // 2
    dense = scores[..., :prompt, :prompt].masked_fill(key[:, :prompt] > at[:prompt], float("-inf"))
    seen = torch.zeros(batch, kv_heads, n_queries, n_keys, dtype=torch.bool, device=q.device)
    total = torch.zeros(batch, kv_heads, n_keys, device=q.device)
    total[..., :prompt] = dense.softmax(-1).sum((2, 3))
    alive = torch.zeros(batch, kv_heads, n_keys, dtype=torch.bool, device=q.device)
    alive[..., :prompt] = True
    for t in range(prompt, n_queries):
        alive[..., t] = True
        alive = _evict(total, alive, t, recent, budget)
        seen[:, :, t] = alive
        row = scores[:, :, :, t].masked_fill(~alive[:, :, None], float("-inf"))
        total += row.softmax(-1).sum(2)
    seen = seen.repeat_interleave(heads // kv_heads, 1)
    return seen | (at < prompt)


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


def largest(x: torch.Tensor, keep: float) -> torch.Tensor:
    """Each token's head vector with all but its ``ceil(keep * head_dim)`` largest elements zero (Mustafar)."""
    from math import ceil

    import torch

    count = ceil(round(keep * x.shape[-1], 9))
    chosen = x.abs().topk(count, dim=-1).indices
    return x * torch.zeros_like(x, dtype=torch.bool).scatter_(-1, chosen, True)


def pruned(k: torch.Tensor, v: torch.Tensor, *, keep: float, keep_v: float | None = None) -> Stored:
    """Mustafar: keys and values as `largest` leaves them, and the share of their elements that are left."""
    stored = largest(k, keep), largest(v, keep if keep_v is None else keep_v)
    return *stored, float(sum((x != 0).float().mean() for x in stored)) / 2.0


def quantised(k: torch.Tensor, v: torch.Tensor, *, bits: int, v_bits: int, group: int) -> Stored:
    """KIVI: keys rounded in groups of tokens per channel, values in groups of channels per token."""
    stored = rounded(k, bits, -2, group), rounded(v, v_bits, -1, group)
    return *stored, (bits + v_bits) / 32.0


Stored: TypeAlias = "tuple[torch.Tensor, torch.Tensor, float]"
"""Keys and values as they are read back, and their share of 16-bit bytes without metadata [-]."""
STORED: dict[str, Callable[..., Stored]] = {"mustafar": pruned, "kv_quant": quantised}
SELECTORS: dict[str, Callable[..., torch.Tensor]] = {
    "streaming_llm": streaming_llm,
    "h2o": h2o,
    "snapkv": snapkv,
    "quest": quest,
}
METHODS = (*SELECTORS, "mustafar")
"""Those that `traces.shadow` judges."""


@contextmanager
def attending(
    model: Any, method: str, prompt: int, read: list[float], *, dense_layers: int = 0, **options: Any
) -> Iterator[None]:
    """Run `model` with a KV method from token `prompt` on.

    Parameters
    ----------
    read : list
        Gets, per layer and pass, the share of the causal KV that the scored queries read [-]; a KV head counts
        where any query head of its group reads the token. Metadata (Quest's minima, Mustafar's bitmaps) is not in it.
    dense_layers : int
        First layers left alone (Quest: 2).
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if decoder_layers(model)[0][1].calls_sdpa:
        raise UnsupportedError(f"{type(model).__name__} does not take its attention from transformers' registry")

    def attention(
        module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float | None = None, **more: Any
    ) -> tuple[Any, None]:
        if mask is not None or more.get("softcap") is not None or more.get("s_aux") is not None:
            raise UnsupportedError("KV methods are simulated for plain causal attention only")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        q = query.float() * scale
        out = _attend(module.layer_idx, q, key.float(), value.float(), method, prompt, dense_layers, read, options)
        return out.to(query.dtype).transpose(1, 2).contiguous(), None

    AttentionInterface.register(_NAME, attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attend(
    layer: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    method: str,
    prompt: int,
    dense_layers: int,
    read: list[float],
    options: dict[str, Any],
) -> torch.Tensor:
    """Attention output (batch, heads, queries, head_dim) of one layer under a method."""
    group = q.shape[1] // k.shape[1]
    at, key = _positions(q.shape[2], k.shape[2], q.device)
    causal = (key <= at)[None, None]

    def wide(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(group, 1)

    if layer < dense_layers:
        read.append(1.0)
        scores = (q @ wide(k).transpose(2, 3)).masked_fill(~causal, float("-inf"))
        return scores.softmax(-1) @ wide(v)
    if method in STORED:
        window = options.get("window", 32)
        stored_k, stored_v, share = STORED[method](k, v, **{n: o for n, o in options.items() if n != "window"})
        old = (at - key >= window) & (at >= prompt)
        scores = (q @ wide(stored_k).transpose(2, 3)).where(old, q @ wide(k).transpose(2, 3))
        p = scores.masked_fill(~causal, float("-inf")).softmax(-1)
        aged = (old & causal)[0, 0, prompt:].sum() / causal[0, 0, prompt:].sum()
        read.append(float(1.0 - aged * (1.0 - share)))
        return (p * old) @ wide(stored_v) + (p * ~old) @ wide(v)
    seen = SELECTORS[method](q, k, prompt=prompt, **options) & causal
    scored = seen.expand(len(q), q.shape[1], *seen.shape[2:])[:, :, prompt:]
    union = scored.reshape(len(q), -1, group, *scored.shape[2:]).any(2)
    read.append(float(union.float().mean() / causal[:, :, prompt:].float().mean()))
    scores = (q @ wide(k).transpose(2, 3)).masked_fill(~seen, float("-inf"))
    return scores.softmax(-1) @ wide(v)
