"""Layers that keep a state by the delta rule: the gated delta net, and Kimi's delta attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from simulator.base.checks import require_positive
from simulator.base.errors import InputError
from simulator.model.formats import Product
from simulator.model.state import Convolution, Recurrence, StateSpec, uneven


@dataclass(frozen=True, slots=True)
class DeltaNetSpec(StateSpec):
    """One block of gated delta rule [1]_ behind a short convolution, as Qwen3-Next has it.

    Attributes
    ----------
    k_heads, v_heads : int
        Heads of queries and keys, and of values; each value head has a state of its own.
    k_dim, v_dim : int
        Widths of one head; a state has their product.
    taps : int
        Tokens that the convolution sees, the newest included.
    state_element_bytes : float
        Bytes of an element of the state [B].

    References
    ----------
    .. [1] Gated delta networks, arXiv:2412.06464.
    """

    title: ClassVar[str] = "gated delta net"

    k_heads: int
    v_heads: int
    k_dim: int
    v_dim: int
    taps: int
    state_element_bytes: float = 4.0

    def __post_init__(self) -> None:
        require_positive(self, "k_heads", "v_heads", "k_dim", "v_dim", "taps")
        if self.v_heads % self.k_heads:
            raise InputError(f"{self.v_heads} value heads cannot be shared evenly by {self.k_heads} key heads")

    @property
    def channels(self) -> int:
        """Queries, keys and values of one token, which the convolution goes over [-]."""
        return 2 * self.k_heads * self.k_dim + self.v_width

    @property
    def v_width(self) -> int:
        """Values of one token, and as many outputs [-]."""
        return self.v_heads * self.v_dim

    def products(self, hidden: int, ranks: int = 1) -> tuple[Product, ...]:
        """Queries, keys, values and output gate in one; both gates of the state; the output."""
        return (
            Product("state.in", (self.channels + self.v_width) / ranks, hidden),
            Product("state.gates", 2 * self.v_heads / ranks, hidden),
            Product("state.out", hidden, self.v_width / ranks),
        )

    def others(self, hidden: int) -> int:
        """The convolution, two decays of each head, the norm [-]."""
        return self.channels * self.taps + 2 * self.v_heads + self.v_dim

    def convolution(self, ranks: int = 1) -> Convolution:
        """Over queries, keys and values."""
        return Convolution(self.channels / ranks, self.taps)

    def recurrence(self, ranks: int = 1) -> Recurrence:
        """One state per value head."""
        sizes = self.k_heads / ranks, self.v_heads / ranks, self.k_dim, self.v_dim
        return Recurrence("gdn", *sizes, self.state_element_bytes)

    def why_not(self, ranks: int) -> str | None:
        """Key heads must be split evenly."""
        return uneven(f"key heads of a {self.title}", self.k_heads, ranks)


@dataclass(frozen=True, slots=True)
class KimiDeltaSpec(StateSpec):
    """One block of Kimi delta attention [1]_: a decay for each channel of the key, through a matrix of low rank.

    Attributes
    ----------
    heads, head_dim : int
        Heads of queries, keys and values alike, and their width.
    taps : int
        Tokens that the convolution sees, the newest included.
    state_element_bytes : float
        Bytes of an element of the state [B].

    References
    ----------
    .. [1] Kimi Linear, arXiv:2510.26692.
    """

    title: ClassVar[str] = "Kimi delta attention"

    heads: int
    head_dim: int
    taps: int
    state_element_bytes: float = 4.0

    def __post_init__(self) -> None:
        require_positive(self, "heads", "head_dim", "taps")

    @property
    def width(self) -> int:
        """Queries of one token; as many keys, values and outputs [-]."""
        return self.heads * self.head_dim

    def products(self, hidden: int, ranks: int = 1) -> tuple[Product, ...]:
        """Queries, keys and values; the step's size; decay and output gate down to one head's width and up again."""
        return (
            Product("state.in", 3 * self.width / ranks, hidden),
            Product("state.gates", self.heads / ranks, hidden),
            Product("state.gate_down", 2 * self.head_dim, hidden),
            Product("state.gate_up", 2 * self.width / ranks, self.head_dim),
            Product("state.out", hidden, self.width / ranks),
        )

    def others(self, hidden: int) -> int:
        """The convolution, a bias of each decay, a rate of each head, the norm [-]."""
        return 3 * self.width * self.taps + self.width + self.heads + self.head_dim

    def convolution(self, ranks: int = 1) -> Convolution:
        """Over queries, keys and values."""
        return Convolution(3 * self.width / ranks, self.taps)

    def recurrence(self, ranks: int = 1) -> Recurrence:
        """One state per head."""
        heads = self.heads / ranks
        return Recurrence("kda", heads, heads, self.head_dim, self.head_dim, self.state_element_bytes)

    def why_not(self, ranks: int) -> str | None:
        """Heads must be split evenly."""
        return uneven(f"heads of {self.title}", self.heads, ranks)
