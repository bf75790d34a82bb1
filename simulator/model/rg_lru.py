"""Real-gated linear recurrent units: RecurrentGemma."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from simulator.base.checks import require_positive
from simulator.base.errors import InputError
from simulator.model.formats import Product
from simulator.model.state import Convolution, Recurrence, StateSpec, uneven


@dataclass(frozen=True, slots=True)
class RgLruSpec(StateSpec):
    """One recurrent block of Griffin [1]_: each channel has one number, gated by its block's inputs.

    Attributes
    ----------
    width : int
        Channels.
    heads : int
        Blocks that the gates' matrices are diagonal in.
    taps : int
        Tokens that the convolution sees, the newest included.
    state_element_bytes : float
        Bytes of an element of the state [B].

    References
    ----------
    .. [1] Griffin, arXiv:2402.19427, section 2.4.
    """

    title: ClassVar[str] = "a recurrent unit"

    width: int
    heads: int
    taps: int
    state_element_bytes: float = 4.0

    def __post_init__(self) -> None:
        require_positive(self, "width", "heads", "taps")
        if self.width % self.heads:
            raise InputError(f"{self.width} channels of a recurrent unit are no multiple of its {self.heads} blocks")

    def products(self, hidden: int, ranks: int = 1) -> tuple[Product, ...]:
        """Input and output gate; both gates of the state, block by block; the output."""
        width, block = self.width / ranks, self.width // self.heads
        return (
            Product("state.in", 2 * width, hidden),
            Product("state.gates", 2 * block, block, self.heads / ranks),
            Product("state.out", hidden, width),
        )

    def others(self, hidden: int) -> int:
        """The convolution with its bias; decay and biases of both gates; biases of the products [-]."""
        return self.width * (self.taps + 1 + 3 + 2) + hidden

    def convolution(self, ranks: int = 1) -> Convolution:
        """Over the input."""
        return Convolution(self.width / ranks, self.taps)

    def recurrence(self, ranks: int = 1) -> Recurrence:
        """One number per channel."""
        heads = self.heads / ranks
        return Recurrence("rglru", heads, heads, 1, self.width // self.heads, self.state_element_bytes)

    def why_not(self, ranks: int) -> str | None:
        """Blocks must be split evenly."""
        return uneven(f"blocks of {self.title}", self.heads, ranks)
