"""Time of a dispatch or combine between expert-parallel ranks: a start, the tokens' copies, and the bytes on the link.

t = exp(surface) * (launch_s + norm4(bytes / (share * link), bytes / (sms * sm_rate), tokens * token_s))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from simulator.base.arrays import Array, exp, maximum, sqrt
from simulator.ops.expert_exchange import ExpertExchange

if TYPE_CHECKING:
    from simulator.device.surface import Surface
    from simulator.device.types import Device

START: Mapping[str, float] = {"launch_s": 2e-5, "share": 0.6, "token_s": 1e-9, "sm_rate": 1e10}
"""Coefficients and where a fit of them starts: share of the link's rate, bytes per second that one SM copies."""


class ExchangeDemand(NamedTuple):
    """What an exchange asks of its rank: bytes sent [B], tokens, SMs that copy [-], its link [B/s], width [-]."""

    link_bytes: Array
    tokens: Array
    sms: Array
    bytes_per_s: Array
    hidden: Array


class ExchangeTime(NamedTuple):
    """Terms of an exchange [s]."""

    total_s: Array
    link_s: Array
    launch_s: Array


def exchange_demand(op: ExpertExchange, device: Device) -> ExchangeDemand:
    """Demand of `op` on the link of `device` that joins its ranks."""
    link = device.link_for(op.n_ranks)
    return ExchangeDemand(op.link_bytes, op.tokens, op.sms, link.bandwidth_bytes_per_s, op.hidden)


def exchange_time(d: ExchangeDemand, coef: Mapping[str, float], surface: Surface | None = None) -> ExchangeTime:
    """Time of an exchange of demand `d`, never faster than its bytes over the link.

    Parameters
    ----------
    coef : mapping
        Fitted numbers by the names of `START`.
    surface : Surface, optional
        Log residual over ``tokens``, ``hidden`` and ``sms``.
    """
    least = d.link_bytes / d.bytes_per_s
    link = least / coef["share"]
    copied = d.link_bytes / (d.sms * coef["sm_rate"])
    rows = d.tokens * coef["token_s"]
    total = coef["launch_s"] + sqrt(sqrt(link**4 + copied**4 + rows**4))
    if surface is not None:
        total = total * exp(surface(tokens=d.tokens, hidden=d.hidden, sms=d.sms))
    return ExchangeTime(maximum(total, least), link, coef["launch_s"])
