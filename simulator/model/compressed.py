"""Attention over one cache entry for several tokens, beside a window of newest ones: DeepSeek-V4's."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.base.checks import require_positive
from simulator.base.errors import InputError
from simulator.model.formats import Product
from simulator.model.indexer import IndexerSpec


@dataclass(frozen=True, slots=True)
class CompressedSpec:
    """What stands around one attention of DeepSeek-V4 [1]_: low ranks at both ends, and what folds tokens together.

    Attributes
    ----------
    q_rank : int
        Width of the query latent.
    o_rank, o_groups : int
        The heads' outputs are narrowed to `o_rank` in each of so many groups, then widened together.
    ratio : int
        Tokens per entry; 0: the window is all that a query sees.
    indexer : IndexerSpec or None
        Picks the entries that a query attends to (CSA), whose neighbours overlap then; None: it attends to all (HCA).

    References
    ----------
    .. [1] DeepSeek-V4 technical report, section 2.3.
    """

    q_rank: int
    o_rank: int
    o_groups: int
    ratio: int
    indexer: IndexerSpec | None = None

    def __post_init__(self) -> None:
        require_positive(self, "q_rank", "o_rank", "o_groups")
        if self.ratio < 0 or (self.indexer is not None and not self.ratio):
            raise InputError(f"{self.ratio} tokens cannot be folded into an entry that an indexer picks")

    @property
    def overlap(self) -> int:
        """Entries that a token is folded into [-]."""
        return 2 if self.indexer is not None else 1

    def products(self, hidden: int, n_heads: int, head_dim: int, ranks: int = 1) -> tuple[Product, ...]:
        """Products of one of `ranks` GPUs; what has one head is on every GPU, keys and gates that fold are one."""
        heads, groups = n_heads / ranks, self.o_groups / ranks
        out = [
            Product("attn.q_down", self.q_rank, hidden),
            Product("attn.kv_down", head_dim, hidden),
            Product("attn.q_up", heads * head_dim, self.q_rank),
        ]
        if self.ratio:
            out.append(Product("attn.fold", 2 * self.overlap * head_dim, hidden))
        if self.indexer is not None:
            out.append(Product("indexer.q", self.indexer.n_heads * self.indexer.head_dim, self.q_rank))
            out.append(Product("indexer.k", 4 * self.indexer.head_dim, hidden))
        out.append(Product("attn.o_down", self.o_rank, n_heads * head_dim / self.o_groups, groups))
        out.append(Product("attn.o", hidden, groups * self.o_rank))
        return tuple(out)

    def others(self, hidden: int, head_dim: int) -> int:
        """Norms of both latents and of the entries, position biases, weights of the indexer's heads [-]."""
        own = self.q_rank + head_dim
        if self.ratio:
            own += self.ratio * self.overlap * head_dim + head_dim
        if self.indexer is not None:
            width = self.indexer.head_dim
            own += 2 * self.ratio * width + width + hidden * self.indexer.n_heads
        return own
