"""Time of the kernels of linear attention: a recurrence over chunks or tokens, and the convolution before it.

    t = exp(surface) * (launch_s + row_s * sequences + chunk_s * chunks
                        + norm4((stream * activations + (hit + kept * cold) * state) / bandwidth, math * flop / rate))

Chunks of one sequence follow each other; those of all heads and sequences run beside each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from simulator.base.arrays import Array, clip, exp, maximum, sqrt
from simulator.base.dtypes import DType
from simulator.ops.linear_attention import CHUNK, LinearAttention

if TYPE_CHECKING:
    from simulator.device.surface import Surface
    from simulator.device.types import Device

CHANNELS = 128.0
"""Channels of a convolution counted as one head [-]."""
START: Mapping[str, float] = {
    "launch_s": 5e-6,
    "stream": 1.5,
    "hit": 0.3,
    "kept": 1.2,
    "math": 2.0,
    "chunk_s": 1e-6,
    "row_s": 1e-8,
}
"""Coefficients and where a fit of them starts: 1 is the datasheet's rate."""
SCANNED = ("math", "chunk_s")
"""Coefficients that a convolution has no use for: it multiplies little, and its tokens wait for none."""


class LinearDemand(NamedTuple):
    """What the kernel asks of its device; every field broadcasts.

    Attributes
    ----------
    stream_bytes, kept_bytes : Array
        Activations, and state read and written [B].
    flop, chunks : Array
        Multiplies and adds [flop], and steps of one sequence that wait for each other [-].
    cold : Array
        Share of the state that comes from memory rather than from the last-level cache [-].
    batch, q_len, heads : Array
        Sequences, new tokens of each, heads of values (of a convolution channels by `CHANNELS`) [-].
    flop_per_s, bytes_per_s, l2_bytes, max_clock_ratio : Array
        Rates of the device, last-level cache [B], maximum over boost clock [-].
    """

    stream_bytes: Array
    kept_bytes: Array
    flop: Array
    chunks: Array
    cold: Array
    batch: Array
    q_len: Array
    heads: Array
    flop_per_s: Array
    bytes_per_s: Array
    l2_bytes: Array
    max_clock_ratio: Array


def linear_demand(op: LinearAttention, device: Device) -> LinearDemand:
    """Demand of `op` on `device`."""
    scans = op.kernel_part == "scan"
    step = CHUNK if op.phase == "prefill" else 1.0
    half = DType.BF16 if device.has(DType.BF16) else DType.FP16
    return LinearDemand(
        op.stream_bytes,
        op.kept_bytes,
        op.flop,
        maximum(op.q_len / step, 1.0) if scans else 0.0,
        1.0 - op.reuse * clip(2.0 - 2.0 * op.kept_bytes / device.l2_bytes, 0.0, 1.0),
        op.batch,
        op.q_len,
        op.v_heads if scans else op.channels / CHANNELS,
        device.peak_flop_per_s(half),
        device.hbm_bytes_per_s,
        float(device.l2_bytes),
        device.clock_hz.max / device.clock_hz.boost,
    )


@dataclass(frozen=True, slots=True)
class LinearTime:
    """Terms of a kernel [s]; they broadcast against each other."""

    total_s: Array
    math_s: Array
    memory_s: Array
    launch_s: Array


def linear_time(d: LinearDemand, coef: Mapping[str, float], surface: Surface | None = None) -> LinearTime:
    """Time of a kernel of demand `d`.

    Parameters
    ----------
    coef : mapping
        Fitted numbers by the names of `START`.
    surface : Surface, optional
        Log residual over ``batch``, ``q_len`` and ``heads``.
    """
    memory = (coef["stream"] * d.stream_bytes + (coef["hit"] + coef["kept"] * d.cold) * d.kept_bytes) / d.bytes_per_s
    math = coef.get("math", 0.0) * d.flop / d.flop_per_s
    a, b = memory * memory, math * math
    total = coef["launch_s"] + coef["row_s"] * d.batch + sqrt(sqrt(a * a + b * b)) + coef.get("chunk_s", 0.0) * d.chunks
    if surface is not None:
        total = total * exp(surface(batch=d.batch, q_len=d.q_len, heads=d.heads))
    # Of the state one 16-bit pass at least: engines may keep half the bytes, and write a drafted token's late.
    moved = maximum(d.stream_bytes + 0.25 * d.kept_bytes - d.l2_bytes, 0.0) / d.bytes_per_s
    return LinearTime(maximum(total, moved), math, memory, coef["launch_s"])
