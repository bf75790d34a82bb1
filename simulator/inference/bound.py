"""What binds a step: the time of its ops by the resource that each waits for."""

from __future__ import annotations

from enum import StrEnum

from simulator.base.arrays import Array, every, maximum, minimum, some
from simulator.ops.linear_attention import LinearAttention
from simulator.ops.module import AttentionModule
from simulator.ops.ops import Attention, Collective, Linear, Moe
from simulator.ops.transfers import HostCompute, Transfer
from simulator.roofline.timing import OpTime


class Bound(StrEnum):
    """What a step can be bound by, as a breakdown names it."""

    COMPUTE = "compute"
    WEIGHTS = "weight reads"
    KV = "KV reads"
    ACTIVATIONS = "activation traffic"
    LINK = "interconnect"
    LAUNCH = "launch latency"
    HOST = "host"


Shares = dict[Bound, Array]
"""Seconds by what they are attributed to, every `Bound` in its order [s]."""


def attribute(t: OpTime, shares: Shares) -> None:
    """Add the time of one op to the resource that binds it."""
    if isinstance(t.op, Collective):
        _split(t.total_s, (Bound.LINK, t.link_s), (Bound.LAUNCH, t.launch_s), shares)
        return
    if isinstance(t.op, Transfer | HostCompute):
        place = Bound.LINK if isinstance(t.op, Transfer) else Bound.HOST
        shares[place] = shares[place] + t.total_s
        return
    reads = Bound.ACTIVATIONS
    if isinstance(t.op, Linear | Moe):
        reads = Bound.WEIGHTS
    elif isinstance(t.op, Attention | AttentionModule | LinearAttention):
        reads = Bound.KV
    if every(t.launch_s <= t.memory_s):
        _split(t.total_s, (reads, t.memory_s), (Bound.COMPUTE, t.math_s), shares)
        return
    body = maximum(t.math_s, t.memory_s)
    by_launch = t.total_s * (t.launch_s > body)
    shares[Bound.LAUNCH] = shares[Bound.LAUNCH] + by_launch
    _split(t.total_s - by_launch, (reads, t.memory_s), (Bound.COMPUTE, t.math_s), shares)


def gained(shares: Shares, gain_s: Array) -> Shares:
    """What the engine adds goes to the launches; what it saves beyond theirs, to all the others alike."""
    launch = shares[Bound.LAUNCH] + gain_s
    if every(launch >= 0.0):
        return {**shares, Bound.LAUNCH: launch}
    saved = minimum(launch, 0.0)
    others = sum(shares.values()) - shares[Bound.LAUNCH]
    left = 1.0 + saved / maximum(others, 1e-30)
    return {bound: s * left for bound, s in shares.items()} | {Bound.LAUNCH: maximum(launch, 0.0)}


def _split(total: Array, first: tuple[Bound, Array], second: tuple[Bound, Array], shares: Shares) -> None:
    """Give `total` to whichever of two resources takes longer."""
    wins = first[1] >= second[1]
    if every(wins):
        shares[first[0]] = shares[first[0]] + total
    elif not some(wins):
        shares[second[0]] = shares[second[0]] + total
    else:
        part = total * wins
        shares[first[0]] = shares[first[0]] + part
        shares[second[0]] = shares[second[0]] + (total - part)
