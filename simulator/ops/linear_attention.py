"""One kernel of a layer that keeps a state in place of a KV cache: the recurrence, or the short convolution before it.

    S[t] = decay[t] S[t-1] + k[t] (v[t] - ...)^T,   out[t] = q[t] S[t]        one (k_dim, v_dim) state per value head

Gated delta rule (Qwen3-Next, arXiv:2412.06464), Kimi delta attention (arXiv:2510.26692), Mamba-2 (arXiv:2405.21060).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simulator.base.arrays import Array
from simulator.base.dtypes import DType
from simulator.base.recurrence import StateRule
from simulator.ops.part import OpPart
from simulator.ops.traffic import Access, Operand, Traffic

CHUNK = 64.0
"""Tokens that a prompt's kernel multiplies at once before it hands the state on [-]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearAttention:
    """The recurrence or the convolution of one layer on one GPU.

    Attributes
    ----------
    kind : str
        Rule by which the state changes, of `simulator.base.recurrence`.
    kernel_part : {'scan', 'conv'}
        The recurrence, or the causal convolution over its inputs.
    phase : {'prefill', 'decode', 'verify'}
        Chunks of a prompt, one token of each sequence, or a few drafted ones.
    batch, q_len : Array
        Sequences and new tokens of each [-].
    k_heads, v_heads : Array
        Heads of queries and keys, and of values, on this GPU (groups and heads of Mamba) [-].
    k_dim, v_dim : float
        Widths of one head's key and value; the state has their product [-].
    channels : Array
        Inputs of the recurrence per token, which the convolution goes over: queries, keys and values [-].
    d_conv : float
        Taps of the convolution [-].
    act_bytes, state_bytes : float
        Bytes of an activation and of an element of the state [B].
    reuse : float
        Share of a state that fits the last-level cache which is found there; 1 where a kernel runs alone, again and
        again, 0 between the layers of a model [-].
    """

    role: str
    kind: StateRule
    kernel_part: Literal["scan", "conv"]
    phase: Literal["prefill", "decode", "verify"]
    batch: Array
    q_len: Array
    k_heads: Array
    v_heads: Array
    k_dim: float
    v_dim: float
    channels: Array
    d_conv: float = 4.0
    act_bytes: float = 2.0
    state_bytes: float = 4.0
    reuse: float = 0.0
    launches: float = 1.0
    count: Array = 1.0
    part: OpPart = OpPart.ATTENTION
    overhead: bool = False
    graph_safe: bool = True
    host_sync: float = 0.0

    @property
    def tokens(self) -> Array:
        """New tokens of all sequences [-]."""
        return self.batch * self.q_len

    @property
    def stream_bytes(self) -> Array:
        """Activations read and written once [B]: inputs, outputs, and fp32 gates per head or channel (`_gates`)."""
        if self.kernel_part == "conv":
            return 2.0 * self.act_bytes * self.tokens * self.channels
        gates = self.v_heads * self._gates
        return self.tokens * (self.act_bytes * (self.channels + self.v_heads * self.v_dim) + 4.0 * gates)

    @property
    def _gates(self) -> float:
        """Gates of one head: two; one for each channel of the key and one (KDA), or for those of the value [-]."""
        per_channel = {"kda": self.k_dim + 1.0, "mamba1": self.v_dim, "rglru": 2.0 * self.v_dim}
        return per_channel.get(self.kind, 2.0)

    @property
    def kept_bytes(self) -> Array:
        """State of all sequences read and written [B]; of drafted tokens one is written for each."""
        if self.kernel_part == "conv":
            one = self.channels * (self.d_conv - 1.0) * self.act_bytes
        else:
            one = self.v_heads * self.k_dim * self.v_dim * self.state_bytes
        return self.batch * one * (1.0 + self.q_len if self.phase == "verify" else 2.0)

    @property
    def flop(self) -> Array:
        """Multiplies and adds [flop]: taps; or decay, update and query of the state, in a prompt by chunks."""
        if self.kernel_part == "conv":
            return 2.0 * self.tokens * self.channels * self.d_conv
        state = 6.0 * self.k_dim * self.v_dim
        inside = 4.0 * CHUNK * (self.k_dim + self.v_dim) if self.phase == "prefill" else 0.0
        return self.tokens * self.v_heads * (state + inside)

    def traffic(self) -> Traffic:
        """Activations once, the state read and written."""
        half, kept = 0.5 * self.stream_bytes, 0.5 * self.kept_bytes
        return Traffic(
            {DType.BF16: self.flop},
            {Operand.ACTIVATION: Access(half, half), Operand.KV: Access(kept, kept)},
            launches=self.launches,
            graph_safe=self.graph_safe,
            host_sync=self.host_sync,
        )
