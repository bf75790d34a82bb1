"""Selective state spaces: Mamba and Mamba-2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from simulator.base.checks import require_positive
from simulator.base.errors import InputError
from simulator.model.formats import Product
from simulator.model.state import Convolution, Recurrence, StateSpec, uneven

LANES = 64
"""Channels of Mamba-1 counted as one head: each has a state of its own, its kernels take so many at once [-]."""


@dataclass(frozen=True, slots=True)
class Mamba2Spec(StateSpec):
    """One block of Mamba-2 [1]_: heads that share B and C by groups, behind a short convolution.

    Attributes
    ----------
    heads, head_dim : int
        Heads and their width; each has a state of ``state x head_dim``.
    groups : int
        Groups of heads that share B (the keys) and C (the queries).
    state : int
        Width of B and C.
    taps : int
        Tokens that the convolution sees, the newest included.
    conv_bias, in_bias, out_bias : bool
        Biases of the convolution, and of the products in and out.
    norm : bool
        The gate of the outputs has a norm with weights.
    state_element_bytes : float
        Bytes of an element of the state [B].

    References
    ----------
    .. [1] Transformers are SSMs, arXiv:2405.21060, section 7.
    """

    title: ClassVar[str] = "Mamba-2"

    heads: int
    head_dim: int
    groups: int
    state: int
    taps: int
    conv_bias: bool = True
    in_bias: bool = False
    out_bias: bool = False
    norm: bool = True
    state_element_bytes: float = 4.0

    def __post_init__(self) -> None:
        require_positive(self, "heads", "head_dim", "groups", "state", "taps")
        if self.heads % self.groups:
            raise InputError(f"{self.heads} heads of Mamba-2 cannot be shared evenly by {self.groups} groups")

    @property
    def inner(self) -> int:
        """Inputs of the recurrence, and as many outputs [-]."""
        return self.heads * self.head_dim

    def _groups(self, ranks: int) -> float:
        """Groups on one GPU: one at least, so that they are copied where there are more GPUs [-]."""
        return max(self.groups / ranks, 1.0)

    def _channels(self, ranks: int) -> float:
        return self.inner / ranks + 2.0 * self._groups(ranks) * self.state

    def products(self, hidden: int, ranks: int = 1) -> tuple[Product, ...]:
        """Gate, inputs, B, C and steps in one; the output."""
        into = self.inner / ranks + self._channels(ranks) + self.heads / ranks
        return Product("state.in", into, hidden), Product("state.out", hidden, self.inner / ranks)

    def others(self, hidden: int) -> int:
        """The convolution; decay, skip and step's bias of each head; norm and biases [-]."""
        channels = round(self._channels(1))
        biases = (self.inner + channels + self.heads) * int(self.in_bias) + hidden * int(self.out_bias)
        own = channels * (self.taps + int(self.conv_bias)) + 3 * self.heads
        return own + biases + (self.inner if self.norm else 0)

    def convolution(self, ranks: int = 1) -> Convolution:
        """Over inputs, B and C."""
        return Convolution(self._channels(ranks), self.taps)

    def recurrence(self, ranks: int = 1) -> Recurrence:
        """One state per head."""
        heads = self.heads / ranks
        return Recurrence("mamba2", self._groups(ranks), heads, self.state, self.head_dim, self.state_element_bytes)

    def why_not(self, ranks: int) -> str | None:
        """Heads must be split evenly, and groups too unless each GPU has one."""
        if self.groups % ranks and ranks % self.groups:
            return f"{self.groups} groups of {self.title} neither divide nor fill tp={ranks}"
        return uneven(f"heads of {self.title}", self.heads, ranks)


@dataclass(frozen=True, slots=True)
class MambaSpec(StateSpec):
    """One block of Mamba [1]_: each channel has a state, its step comes through a matrix of low rank.

    Attributes
    ----------
    inner : int
        Channels.
    state : int
        Elements of one channel's state.
    rank : int
        Width that the steps come through.
    taps : int
        Tokens that the convolution sees, the newest included.
    conv_bias, bias : bool
        Biases of the convolution, and of the products in and out.
    inner_norms : bool
        Norms over step, B and C (Jamba).
    state_element_bytes : float
        Bytes of an element of the state [B].

    References
    ----------
    .. [1] Mamba, arXiv:2312.00752, section 3.
    """

    title: ClassVar[str] = "Mamba"

    inner: int
    state: int
    rank: int
    taps: int
    conv_bias: bool = True
    bias: bool = False
    inner_norms: bool = False
    state_element_bytes: float = 4.0

    def __post_init__(self) -> None:
        require_positive(self, "inner", "state", "rank", "taps")

    def products(self, hidden: int, ranks: int = 1) -> tuple[Product, ...]:
        """Inputs and gate; step, B and C down; steps up; the output."""
        inner = self.inner / ranks
        return (
            Product("state.in", 2 * inner, hidden),
            Product("state.gate_down", self.rank + 2 * self.state, inner),
            Product("state.gate_up", inner, self.rank),
            Product("state.out", hidden, inner),
        )

    def others(self, hidden: int) -> int:
        """The convolution, a decay of each element of the state, skip and step's bias of each channel, norms [-]."""
        own = self.inner * (self.taps + int(self.conv_bias) + self.state + 2)
        biases = 2 * self.inner + hidden if self.bias else 0
        return own + biases + (self.rank + 2 * self.state if self.inner_norms else 0)

    def convolution(self, ranks: int = 1) -> Convolution:
        """Over the inputs."""
        return Convolution(self.inner / ranks, self.taps)

    def recurrence(self, ranks: int = 1) -> Recurrence:
        """One state per channel; so many as a kernel takes at once are one head."""
        return Recurrence("mamba1", 1.0, self.inner / LANES / ranks, self.state, LANES, self.state_element_bytes)

    def why_not(self, ranks: int) -> str | None:
        """Channels must be split evenly."""
        return uneven(f"channels of {self.title}", self.inner, ranks)
