"""Statistics of keys, values and attention probabilities, on one sequence of every third batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from simulator.trace import KEEPS, MASSES
from traces import attention, kv, magnitudes
from traces.means import ALL, WHOLE

if TYPE_CHECKING:
    import torch

    from traces.attention import Attended
    from traces.means import Means, State
    from traces.sampling import Sample

STEPS = 8
"""Consecutive queries read before each context length."""
SINKS = (1, 4, 16)
CACHES = (0.05, 0.1, 0.2, 0.4)
SELECTED = (math.nan, 0.05, 0.1)
"""Shares of the context selected per step; NaN selects as much as the cache holds."""
BITS = (2, 4, 8)


def contexts(tokens: int) -> tuple[int, ...]:
    """Context lengths that are measured in a sequence: from 64 tokens, doubling, and the whole of it."""
    found = [64 * 2**i for i in range(32) if 64 * 2**i < tokens]
    return (*found, tokens)


def distances(tokens: int) -> tuple[int, ...]:
    """Distances behind the query at which locality is told: powers of four, and the whole context."""
    return (*(4**i for i in range(32) if 4**i < tokens), tokens)


def ranks(width: int) -> tuple[int, ...]:
    """Ranks at which the singular spectrum is told."""
    shares = (1 / 64, 1 / 32, *KEEPS, 1.0)
    return tuple(sorted({max(1, math.ceil(s * width - 1e-9)) for s in shares}))


class KvObserver:
    """The part of the observer that reads keys, values and attention."""

    state: State
    means: Means
    heads: int
    kv_heads: int
    is_calibrating: bool
    reads_all: bool
    now: Sample

    def key(self, layer: int, key: torch.Tensor) -> None:
        """Keys before rotation."""
        if not self.reads_all:
            return
        if self.is_calibrating:
            self._count(layer, "kv.k", key[self.now.kv_sequence].transpose(0, 1))
        else:
            self._stored(layer, "kv.k", key[self.now.kv_sequence].transpose(0, 1))

    def attention(self, layer: int, call: Attended) -> None:
        """Queries, keys and values as attention sees them."""
        import torch

        if not self.reads_all:
            return
        b = self.now.kv_sequence
        query, key, value = call.query[b], call.key[b], call.value[b]
        if self.is_calibrating:
            self._count(layer, "kv.k_cached", key)
            self._count(layer, "kv.v", value)
            return
        self._stored(layer, "kv.v", value)
        self._stored(layer, "kv.k_cached", key)
        self._channels(layer, query, key)
        tokens = query.shape[1]
        ends = torch.tensor(contexts(tokens))
        rows = (ends[:, None] + torch.arange(-STEPS, 0)).flatten().to(query.device)
        p = call.probabilities(b, rows)
        self._mass(layer, p.unflatten(1, (-1, STEPS))[:, :, -1], contexts(tokens))
        self._steps(layer, p[:, -STEPS:], rows[-STEPS:])

    def _count(self, layer: int, tensor: str, x: torch.Tensor) -> None:
        self._sum(f"histogram|{layer}|{tensor}", magnitudes.histogram(x))

    def _stored(self, layer: int, tensor: str, x: torch.Tensor) -> None:
        """Pruning, rounding and rank of keys or values (kv_heads, tokens, head_dim)."""
        slab = x[:, self.now.slab].float()
        heads, tokens = slab.shape[:2]
        energy = (slab.double() ** 2).sum((1, 2))[:, None, None]
        lost = kv.dropped_energy(slab, KEEPS).sum(1)[:, None]
        shape = (heads, 1, len(KEEPS))
        self.means.add((layer, tensor, "kept_error"), shape, WHOLE, lost, energy, tokens)
        axis = 2 if tensor == "kv.v" else 1
        lost = [((kv.rounded(slab, b, axis) - slab).double() ** 2).sum((1, 2)) for b in BITS]
        shape = (heads, 1, len(BITS))
        for i, total in enumerate(lost):
            at = (ALL, 0, i)
            key = (layer, tensor, "quant_error")
            self.means.add(key, shape, at, total, energy[:, 0, 0], tokens)
        if tensor != "kv.k_cached":
            moment = kv.second_moment(x)
            self._sum(f"moment|{layer}|{tensor}", moment)
            self._sum(f"moment|{layer}|{tensor}|tokens", moment.new_tensor([x.shape[1]]))

    def _channels(self, layer: int, query: torch.Tensor, key: torch.Tensor) -> None:
        """Sums of |q_c| over each group of query heads, and of |k_c|."""
        grouped = query.double().abs().sum(1).unflatten(0, (self.kv_heads, -1)).sum(1)
        self._sum(f"channel|{layer}|query", grouped)
        self._sum(f"channel|{layer}|key", key.double().abs().sum(1))
        self._sum(f"channel|{layer}|tokens", grouped.new_tensor([query.shape[1]]))

    def _sum(self, name: str, x: torch.Tensor) -> None:
        if name in self.state:
            self.state[name] += x
        else:
            self.state[name] = x

    def _mass(self, layer: int, p: torch.Tensor, at_contexts: tuple[int, ...]) -> None:
        """Share of the context for each mass, and entropy; `p` (heads, contexts, tokens)."""
        length = p.new_tensor(at_contexts).double()
        share = attention.tokens_for_mass(p, MASSES).double() / length[None, :, None]
        shape = (self.heads, len(MASSES), len(at_contexts))
        key = (layer, "attn.mass", "tokens_for_mass")
        self.means.add(key, shape, WHOLE, share.transpose(1, 2), 1, 1)
        shape = (self.heads, 1, len(at_contexts))
        key = (layer, "attn.mass", "entropy")
        self.means.add(key, shape, WHOLE, attention.entropy(p)[:, None], 1, 1)

    def _steps(self, layer: int, p: torch.Tensor, rows: torch.Tensor) -> None:
        """Locality, sinks and cache hits over consecutive queries `p` (heads, STEPS, tokens)."""
        context = int(rows[-1]) + 1
        steps = p.shape[1]
        behind = distances(context)
        near = attention.near_share(p, rows, behind).double().sum(1)[:, None]
        shape = (self.heads, 1, len(behind))
        key = (layer, "attn.mass", "locality")
        self.means.add(key, shape, WHOLE, near, steps, steps)
        first = [p[..., :x].double().sum((1, 2)) for x in SINKS]
        shape = (self.heads, 1, len(SINKS))
        for i, total in enumerate(first):
            key = (layer, "attn.mass", "sink_share")
            self.means.add(key, shape, (ALL, 0, i), total, steps, steps)
        self._hits(layer, p, context)

    def _hits(self, layer: int, p: torch.Tensor, context: int) -> None:
        """Hits of caches as large as the selection, and of larger ones that keep older tokens."""
        sizes = [math.ceil(c * context - 1e-9) for c in CACHES]
        shape = (self.heads, len(SELECTED), len(CACHES))
        key = (layer, "attn.mass", "topk_hit")
        order = p.argsort(dim=-1, descending=True, stable=True)
        total = attention.repeated_share(order, sizes).double().sum(1)
        n = p.shape[1] - 1
        self.means.add(key, shape, (ALL, 0, ALL), total, n, n)
        for k, share in enumerate(SELECTED[1:], start=1):
            for c, cache in enumerate(CACHES):
                if share < cache:
                    hits = attention.cache_hits(order, math.ceil(share * context - 1e-9), sizes[c])
                    self.means.add(key, shape, (ALL, k, c), hits.double().sum(1), n, n)
