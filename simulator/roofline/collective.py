"""Time of one collective: latency that grows with the ranks, plus the bytes on a rank's link."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simulator.base.arrays import Array, every, exp, log2, maximum, minimum, real, some, sqrt, where
from simulator.base.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from simulator.device.surface import Surface
    from simulator.roofline.hardware import Hardware

_LN2 = math.log(2.0)
OPS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")

DEFAULT: Mapping[str, float] = {
    "t0_s": 4.0e-6,
    "hop_s": 1.5e-6,
    "fill_s": 1.0e-6,
    "link_share": 0.75,
    "share_slope": 0.0,
}
"""Coefficients of an NVLink machine under a CUDA graph, used where nothing was fitted."""


@dataclass(frozen=True)
class CollectiveTime:
    """Terms of a collective [s], they broadcast against each other; `total_s` is their sum, floored."""

    total_s: Array
    latency_s: Array
    link_s: Array


def link_bytes(op: str, message_bytes: Any, n_ranks: Any, *, in_switch: bool = False) -> Array:
    """Bytes one rank sends over its link [B], ring algorithm (NCCL's bus-bandwidth factors).

    With S the full buffer and n the ranks: all_reduce 2(n-1)/n S; all_gather, reduce_scatter and
    all_to_all (n-1)/n S; send_recv S. `in_switch` takes NVLink SHARP, where the switch reduces and
    an all_reduce sends S once. Source: nccl-tests PERFORMANCE.md.
    """
    size, n = real(message_bytes), real(n_ranks)
    if op == "all_reduce":
        ring = 2.0 * (n - 1.0) / n
        factor = minimum(ring, 1.0) if in_switch else ring
    elif op in ("all_gather", "reduce_scatter", "all_to_all"):
        factor = (n - 1.0) / n
    elif op == "send_recv":
        factor = where(n > 1.0, 1.0, 0.0)
    else:
        raise UnknownNameError("collective", op, OPS)
    return size * factor


def collective_floor(op: str, message_bytes: Any, n_ranks: Any, *, hw: Hardware) -> Array:
    """Least time the link allows [s]: in-switch bytes over the one-way link rate."""
    return link_bytes(op, message_bytes, n_ranks, in_switch=True) / hw.link_bytes_per_s


def collective_time(
    op: str,
    message_bytes: Any,
    n_ranks: Any,
    *,
    hw: Hardware,
    coef: Mapping[str, float],
    surface: Surface | None = None,
) -> CollectiveTime:
    """Time of one collective over `n_ranks` devices.

    t = (t0 + hop*log2 n + V/r + sqrt(fill*V/link)) * exp(surface), r = share*link*(n/2)^slope, V
    from `link_bytes`, never below the floor. The square root is the start-up of a pipeline of
    chunks with the best chunk size (Thakur, Rabenseifner and Gropp, 2005).

    Parameters
    ----------
    op : str
        One of `OPS`.
    message_bytes : array_like
        Full buffer S as NCCL counts it [B].
    n_ranks : array_like
        Devices n taking part.
    hw : Hardware
        `link_bytes_per_s` is the one-way rate of one device's link [B/s]; fits of several nodes
        carry the network in their share.
    coef : mapping
        `t0_s`, `hop_s`, `fill_s` [s], `link_share`, `share_slope` [-].
    surface : Surface, optional
        Log residual over axes `bytes` and `ranks`.

    Returns
    -------
    CollectiveTime
        Terms [s]; one rank costs nothing.
    """
    size, n = real(message_bytes), real(n_ranks)
    if some(n < 1.0) or some(size < 0.0):
        raise InputError("a collective needs at least one rank and a size of 0 B or more")
    log_n = log2(n)
    bare = link_bytes(op, size, n) / hw.link_bytes_per_s
    latency = coef["t0_s"] + coef["hop_s"] * log_n
    link = bare * exp(-_LN2 * coef["share_slope"] * (log_n - 1.0)) / coef["link_share"]
    link = link + sqrt(coef["fill_s"] * bare)
    if surface is not None:
        factor = exp(surface(bytes=size, ranks=n))
        latency, link = latency * factor, link * factor
    total = maximum(latency + link, collective_floor(op, size, n, hw=hw))
    used = n > 1.0
    if every(used):
        return CollectiveTime(total, latency, link)
    return CollectiveTime(total * used, latency * used, link * used)
