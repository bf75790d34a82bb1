"""Layers that are a short convolution and nothing else: LFM2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from simulator.base.checks import require_positive
from simulator.model.formats import Product
from simulator.model.state import Convolution, StateSpec, uneven


@dataclass(frozen=True, slots=True)
class ShortConvSpec(StateSpec):
    """A convolution between two gates, which come with its input from one product [1]_.

    Attributes
    ----------
    width : int
        Channels.
    taps : int
        Tokens that the convolution sees, the newest included.
    bias : bool
        Biases of both products and of the convolution.

    References
    ----------
    .. [1] LFM2 technical report, arXiv:2511.23404, section 2.
    """

    title: ClassVar[str] = "a short convolution"

    width: int
    taps: int
    bias: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "width", "taps")

    def products(self, hidden: int, ranks: int = 1) -> tuple[Product, ...]:
        """Input and both gates; the output."""
        width = self.width / ranks
        return Product("state.in", 3 * width, hidden), Product("state.out", hidden, width)

    def others(self, hidden: int) -> int:
        """The convolution and the biases [-]."""
        return self.width * self.taps + (4 * self.width + hidden if self.bias else 0)

    def convolution(self, ranks: int = 1) -> Convolution:
        """Over the gated input."""
        return Convolution(self.width / ranks, self.taps)

    def recurrence(self, ranks: int = 1) -> None:
        """None: the newest inputs are all it keeps."""
        return

    def why_not(self, ranks: int) -> str | None:
        """Channels must be split evenly."""
        return uneven(f"channels of {self.title}", self.width, ranks)
