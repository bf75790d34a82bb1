"""Linear attention with one fixed decay per head: MiniMax-Text-01 and M1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from simulator.base.checks import require_positive
from simulator.model.formats import Product
from simulator.model.state import Recurrence, StateSpec, uneven


@dataclass(frozen=True, slots=True)
class LightningSpec(StateSpec):
    """One block of lightning attention [1]_: a normed, gated output, no convolution.

    Attributes
    ----------
    heads, head_dim : int
        Heads of queries, keys and values alike, and their width.
    state_element_bytes : float
        Bytes of an element of the state [B].

    References
    ----------
    .. [1] MiniMax-01, arXiv:2501.08313, section 2.2.
    """

    title: ClassVar[str] = "lightning attention"

    heads: int
    head_dim: int
    state_element_bytes: float = 4.0

    def __post_init__(self) -> None:
        require_positive(self, "heads", "head_dim")

    @property
    def width(self) -> int:
        """Queries of one token; as many keys, values and outputs [-]."""
        return self.heads * self.head_dim

    def products(self, hidden: int, ranks: int = 1) -> tuple[Product, ...]:
        """Queries, keys and values; the output's gate; the output."""
        width = self.width / ranks
        return (
            Product("state.in", 3 * width, hidden),
            Product("state.gates", width, hidden),
            Product("state.out", hidden, width),
        )

    def others(self, hidden: int) -> int:
        """The norm of the output [-]."""
        return self.width

    def convolution(self, ranks: int = 1) -> None:
        """None."""
        return

    def recurrence(self, ranks: int = 1) -> Recurrence:
        """One state per head."""
        heads = self.heads / ranks
        return Recurrence("lightning", heads, heads, self.head_dim, self.head_dim, self.state_element_bytes)

    def why_not(self, ranks: int) -> str | None:
        """Heads must be split evenly."""
        return uneven(f"heads of {self.title}", self.heads, ranks)
