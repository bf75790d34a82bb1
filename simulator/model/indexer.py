"""What picks the tokens that a layer attends to: DeepSeek's lightning indexer, MiniMax's of blocks."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.base.checks import require_positive


@dataclass(frozen=True, slots=True)
class IndexerSpec:
    """Indexer of one layer with multi-head latent attention [1]_.

    Attributes
    ----------
    n_heads, head_dim : int
        Its query heads, which share one key, and their width.
    top_k : int
        Tokens attended per query.
    shared : bool
        The layer takes the choice of the one before: it has no indexer of its own (GLM-5.2).
    pool : int
        Tokens whose keys are folded into one, by a learned gate; they are picked together (GLM-5.3-Flash).

    References
    ----------
    .. [1] DeepSeek-V3.2, arXiv:2512.02556, section 2.
    """

    n_heads: int
    head_dim: int
    top_k: int
    shared: bool = False
    pool: int = 1

    def __post_init__(self) -> None:
        require_positive(self, "n_heads", "head_dim", "top_k", "pool")

    @property
    def key_bytes(self) -> float:
        """Bytes of one key: fp8 with a scale [B]."""
        return self.head_dim + 4.0

    def n_params(self, hidden: int, q_rank: int) -> int:
        """Queries, key, weights of the heads, the key's norm with its bias; gate and biases of a pool [-]."""
        if self.shared:
            return 0
        own = q_rank * self.n_heads * self.head_dim + hidden * (self.head_dim + self.n_heads) + 2 * self.head_dim
        return own + (self.head_dim * (self.pool + hidden) if self.pool > 1 else 0)


@dataclass(frozen=True, slots=True)
class BlockIndexerSpec:
    """Indexer of blocks beside grouped-query attention, as MiniMax-M3 has it [1]_.

    Attributes
    ----------
    n_heads, head_dim : int
        Its query heads, one for each KV head, which share one key, and their width.
    block, top_k : int
        Tokens of a block, and blocks attended per query and KV head.

    References
    ----------
    .. [1] MiniMax Sparse Attention, arXiv:2606.13392.
    """

    n_heads: int
    head_dim: int
    block: int
    top_k: int

    def __post_init__(self) -> None:
        require_positive(self, "n_heads", "head_dim", "block", "top_k")

    @property
    def tokens(self) -> int:
        """Tokens attended per query at most [-]."""
        return self.block * self.top_k

    @property
    def key_bytes(self) -> float:
        """Bytes of one key, in 16 bit [B]."""
        return 2.0 * self.head_dim

    def n_params(self, hidden: int) -> int:
        """Queries and key, and a norm of each [-]."""
        return hidden * (self.n_heads + 1) * self.head_dim + 2 * self.head_dim
