"""Time of one collective: latency that grows with the ranks, plus the bytes a rank puts on its link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.errors import UnknownNameError

if TYPE_CHECKING:
    from simulator.calibration import Surface
    from simulator.roofline.hardware import Hardware

OPS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")

DEFAULT: Mapping[str, float] = {"t0_s": 4.0e-6, "hop_s": 1.5e-6, "link_share": 0.75}
"""Coefficients of an NVLink machine under a CUDA graph, used where nothing was fitted."""


@dataclass(frozen=True)
class CollectiveTime:
    """Terms of a collective [s], arrays of the broadcast input shape; `total_s` is their sum, floored."""

    total_s: np.ndarray
    latency_s: np.ndarray
    link_s: np.ndarray


def link_bytes(op: str, message_bytes: Any, n_ranks: Any, *, in_switch: bool = False) -> np.ndarray:
    """Bytes one rank sends over its link [B], ring algorithm (NCCL's bus-bandwidth factors).

    With S the full buffer and n the ranks: all_reduce 2(n-1)/n S; all_gather, reduce_scatter and
    all_to_all (n-1)/n S; send_recv S. `in_switch` takes NVLink SHARP, where the switch reduces and
    an all_reduce sends S once. Source: nccl-tests PERFORMANCE.md.
    """
    size = np.asarray(message_bytes, float)
    n = np.asarray(n_ranks, float)
    if op == "all_reduce":
        ring = 2.0 * (n - 1.0) / n
        factor = np.minimum(ring, 1.0) if in_switch else ring
    elif op in ("all_gather", "reduce_scatter", "all_to_all"):
        factor = (n - 1.0) / n
    elif op == "send_recv":
        factor = np.where(n > 1.0, 1.0, 0.0)
    else:
        raise UnknownNameError("collective", op, OPS)
    return size * factor


def collective_floor(op: str, message_bytes: Any, n_ranks: Any, *, hw: Hardware) -> np.ndarray:
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

    t = (t0 + hop*log2(n) + V/(share*link)) * exp(surface(log2 S, log2 n)), never below the floor.

    Parameters
    ----------
    op : str
        One of `OPS`.
    message_bytes : array_like
        Full buffer S as NCCL counts it [B].
    n_ranks : array_like
        Devices n taking part.
    hw : Hardware
        `link_bytes_per_s` is the one-way rate of one device's link [B/s].
    coef : mapping
        `t0_s`, `hop_s` [s], `link_share` [-]; `link_bytes_per_s` [B/s] overrides the profile's link
        (inter-node and PCIe fits, where the path is a property of the host).
    surface : Surface, optional
        Log residual over axes `log2_bytes` and `log2_ranks`.

    Returns
    -------
    CollectiveTime
        Arrays of the broadcast shape [s]; one rank costs nothing.
    """
    size, n = np.broadcast_arrays(np.asarray(message_bytes, float), np.asarray(n_ranks, float))
    log_n = np.log2(np.maximum(n, 1.0))
    rate = coef.get("link_bytes_per_s", hw.link_bytes_per_s) * coef["link_share"]
    latency = coef["t0_s"] + coef["hop_s"] * log_n
    link = link_bytes(op, size, n) / rate
    if surface is not None:
        factor = np.exp(surface(log2_bytes=np.log2(np.maximum(size, 1.0)), log2_ranks=log_n))
        latency, link = latency * factor, link * factor
    total = np.maximum(latency + link, collective_floor(op, size, n, hw=hw))
    alone = n <= 1.0
    zero = np.zeros_like(total)
    return CollectiveTime(
        np.where(alone, zero, total), np.where(alone, zero, latency), np.where(alone, zero, link)
    )
