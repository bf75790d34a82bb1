"""What picks the tokens that a layer of latents attends to: DeepSeek's lightning indexer."""

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

    References
    ----------
    .. [1] DeepSeek-V3.2, arXiv:2512.02556, section 2.
    """

    n_heads: int
    head_dim: int
    top_k: int
    shared: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "n_heads", "head_dim", "top_k")

    def n_params(self, hidden: int, q_rank: int) -> int:
        """Queries, key, weights of the heads, and the key's norm with its bias [-]."""
        if self.shared:
            return 0
        return q_rank * self.n_heads * self.head_dim + hidden * (self.head_dim + self.n_heads) + 2 * self.head_dim
