"""What a layer keeps of a sequence in place of a KV cache: a state that does not grow.

Each kind of such layer is a noun of its own beside this one (`simulator.model.delta_net`, `simulator.model.mamba`, ...)
and says four things of itself: its products, its short convolution, its recurrence, and what else it has learned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from simulator.base.recurrence import StateRule
from simulator.model.formats import Product

CONV_BYTES = 2.0
"""Bytes of an element of the inputs that a convolution keeps [B]."""


@dataclass(frozen=True, slots=True)
class Convolution:
    """A causal convolution of each channel over `taps` tokens, the newest included."""

    channels: float
    taps: int

    @property
    def kept_bytes(self) -> float:
        """The inputs that the next token needs, in 16 bit as engines allocate them [B]."""
        return self.channels * (self.taps - 1) * CONV_BYTES


@dataclass(frozen=True, slots=True)
class Recurrence:
    """States of ``k_dim x v_dim`` elements, one for each of `v_heads`, which the new token changes by `rule`.

    Attributes
    ----------
    k_heads, v_heads : float
        Heads of keys and queries, and of values (groups and heads of Mamba-2) [-].
    element_bytes : float
        Bytes of an element of a state [B].
    """

    rule: StateRule
    k_heads: float
    v_heads: float
    k_dim: int
    v_dim: int
    element_bytes: float

    @property
    def channels(self) -> float:
        """Queries, keys and values of one token [-]."""
        return 2.0 * self.k_heads * self.k_dim + self.v_heads * self.v_dim

    @property
    def kept_bytes(self) -> float:
        """All states of one sequence [B]."""
        return self.v_heads * self.k_dim * self.v_dim * self.element_bytes


@dataclass(frozen=True, slots=True)
class StateSpec(ABC):
    """One block that keeps a state. `ranks` is the tensor-parallel GPUs that share it, 1 for the whole of it."""

    title: ClassVar[str]
    """What to call it in a sentence."""

    @abstractmethod
    def products(self, hidden: int, ranks: int = 1) -> tuple[Product, ...]:
        """Products of one GPU in a block of width `hidden`, in order; the last is the one back to `hidden`."""

    @abstractmethod
    def others(self, hidden: int) -> int:
        """Elements that are in no product: the convolution, decays, inner norms, biases [-]."""

    @abstractmethod
    def convolution(self, ranks: int = 1) -> Convolution | None:
        """The convolution of one GPU, None where there is none."""

    @abstractmethod
    def recurrence(self, ranks: int = 1) -> Recurrence | None:
        """The recurrence of one GPU, None where the convolution is all."""

    @abstractmethod
    def why_not(self, ranks: int) -> str | None:
        """Why it cannot be shared by so many GPUs, None where it can."""

    @property
    def matrices(self) -> tuple[str, ...]:
        """Names of its matrices."""
        return tuple(p.matrix for p in self.products(1))

    def state_bytes(self, ranks: int = 1) -> float:
        """What one sequence keeps on one GPU, however long it gets: states and inputs of the convolution [B]."""
        return sum(part.kept_bytes for part in (self.recurrence(ranks), self.convolution(ranks)) if part)

    def n_params(self, hidden: int) -> int:
        """Weights of a block of width `hidden` [-]."""
        return round(sum(p.weights for p in self.products(hidden))) + self.others(hidden)


def uneven(what: str, heads: int, ranks: int) -> str | None:
    """Why `heads` cannot be split over `ranks`."""
    return f"{heads} {what} cannot be split over tp={ranks}" if heads % ranks else None
