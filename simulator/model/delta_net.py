"""A layer that keeps a state in place of a KV cache: the gated delta net."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.base.checks import require_positive
from simulator.base.errors import InputError
from simulator.model.formats import STATE

CONV_BYTES = 2.0
"""Bytes of an element of the inputs that the convolution keeps [B]."""


@dataclass(frozen=True, slots=True)
class DeltaNetSpec:
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
    def matrices(self) -> tuple[str, ...]:
        """Names of its matrices; queries, keys, values and output gate are one, and both gates of the state."""
        return STATE

    @property
    def channels(self) -> int:
        """Queries, keys and values of one token, which the convolution goes over [-]."""
        return 2 * self.k_heads * self.k_dim + self.v_width

    @property
    def v_width(self) -> int:
        """Values of one token, and as many outputs [-]."""
        return self.v_heads * self.v_dim

    @property
    def state_bytes(self) -> float:
        """What one sequence keeps, however long it gets: states and the newest inputs of the convolution [B].

        ``v_heads k_dim v_dim`` elements and ``channels (taps - 1)`` in 16 bit, as engines allocate them.
        """
        states = self.v_heads * self.k_dim * self.v_dim * self.state_element_bytes
        return states + self.channels * (self.taps - 1) * CONV_BYTES

    def n_params(self, hidden: int) -> int:
        """Weights of a block of width `hidden`, with its convolution, decays and inner norm [-]."""
        inputs = hidden * (self.channels + self.v_width + 2 * self.v_heads)
        return inputs + self.channels * self.taps + 2 * self.v_heads + self.v_dim + self.v_width * hidden
