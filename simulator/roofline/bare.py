"""The roofline of one op: what its flop and its bytes take at the rates of the datasheet, and nothing else."""

from __future__ import annotations

from typing import NamedTuple

from simulator.base.arrays import Array, maximum
from simulator.device.types import Device
from simulator.ops.expert_exchange import ExpertExchange
from simulator.ops.ops import Collective, Op
from simulator.ops.transfers import Transfer
from simulator.roofline.collective import link_bytes
from simulator.roofline.hardware import math_of


class Bare(NamedTuple):
    """Seconds at datasheet rates.

    Attributes
    ----------
    math_s : Array
        Flop over the dense peak of their format, the longest of several formats [s].
    bytes_s : Array
        Bytes over the bandwidth of `place` [s].
    place : str
        Memory tier whose rate it is, or ``link`` between GPUs.
    """

    math_s: Array
    bytes_s: Array
    place: str

    @property
    def least_s(self) -> Array:
        """``max(flop/peak, bytes/bandwidth)`` [s]."""
        return maximum(self.math_s, self.bytes_s)


def bare(op: Op, device: Device) -> Bare:
    """Roofline of one call of `op`; a collective moves its bytes over the link, a transfer over its tier's."""
    if isinstance(op, Collective):
        moved = link_bytes(op.op, op.message_bytes, op.n_ranks)
        return Bare(0.0, moved / device.link.bandwidth_bytes_per_s, "link")
    if isinstance(op, ExpertExchange):
        return Bare(0.0, op.link_bytes / device.link_for(op.n_ranks).bandwidth_bytes_per_s, "link")
    if isinstance(op, Transfer):
        most = maximum(op.read_bytes, op.write_bytes)
        return Bare(0.0, most / device.tier(op.tier).bandwidth_bytes_per_s, op.tier)
    demand = op.traffic()
    math: Array = 0.0
    for dtype, flop in demand.flop.items():
        multiplied = math_of(device, dtype)
        if device.has(multiplied):
            math = maximum(math, flop / device.peak_flop_per_s(multiplied))
    return Bare(math, demand.total_bytes / device.hbm_bytes_per_s, "hbm")
