"""Time of copies over a link and of host products, and what of them sticks out beside the GPU's work."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TypeVar

from simulator.base.arrays import Array, maximum
from simulator.device.types import MemoryTier
from simulator.ops.granularity import moved_bytes
from simulator.roofline.optime import OpTime

LINK_SHARE = 0.83
"""Share of a host link's raw rate that a copy reaches [-]: NOSA's zero-copy kernel 83 % of PCIe
(arXiv:2510.13602); pinned copies 51.8 GiB/s of 64 GB/s (87 %) in the CXL paper's benchmark."""
DRAM_SHARE = 0.83
"""Share of a CPU's memory rate that a matrix-vector product streams at [-]; assumed, as the link's."""

T = TypeVar("T", bound=OpTime)


def transfer_s(read_bytes: Array, write_bytes: Array, chunk_bytes: float, in_flight: float, tier: MemoryTier) -> Array:
    """Seconds of one transfer [s].

    ``latency + max(read, write) / rate`` with ``rate = chunk / (latency / in_flight + moved / bandwidth)``
    and whole sectors moved per chunk. A link reaches `LINK_SHARE` of its raw rate; flash its own.
    """
    share = 1.0 if tier.name == "ssd" else LINK_SHARE
    useful = maximum(read_bytes, write_bytes)
    time = moved_bytes(useful, chunk_bytes, tier.sector_bytes) / (share * tier.bandwidth_bytes_per_s)
    if isfinite(chunk_bytes) and isfinite(in_flight):
        time = time + useful / chunk_bytes * (tier.latency_s / in_flight)
    return time + tier.latency_s * (useful > 0.0)


def host_s(read_bytes: Array, tier: MemoryTier) -> Array:
    """Seconds the CPU needs to stream `read_bytes` from its memory [s]."""
    return read_bytes / (DRAM_SHARE * tier.bandwidth_bytes_per_s)


def exposed(times: Sequence[T]) -> list[T]:
    """`times` with every op that runs beside others cut to what outlasts them.

    Ops with the same `beside` share its ops' time: those on one tier queue up, tiers run at once, so
    ``wait = max(max over tiers of the sum - sum over the ops beside, 0)``, split in proportion. Layers that
    differ are summed before they are compared.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, t in enumerate(times):
        beside = getattr(t.op, "beside", ())
        if beside:
            groups.setdefault(beside, []).append(i)
    out = list(times)
    for beside, members in groups.items():
        cover: Array = 0.0
        for t in times:
            if not getattr(t.op, "beside", ()) and t.op.role.startswith(beside):
                cover = cover + t.total_s
        tiers: dict[str, Array] = {}
        whole: Array = 0.0
        for i in members:
            tier = getattr(times[i].op, "tier", "gpu")
            tiers[tier] = tiers.get(tier, 0.0) + times[i].total_s
            whole = whole + times[i].total_s
        longest: Array = 0.0
        for time in tiers.values():
            longest = maximum(longest, time)
        share = maximum(longest - cover, 0.0) / maximum(whole, 1e-30)
        for i in members:
            t = times[i]
            out[i] = t._replace(total_s=t.total_s * share)
    return out
