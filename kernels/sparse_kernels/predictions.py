"""What the simulator expects of a kernel, fixed and hashed before any is timed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simulator.device.catalogue import Device
from simulator.device.fits import Basis
from simulator.ops.ops import Elementwise, Op
from simulator.ops.traffic import Operand, Traffic
from simulator.roofline.bandwidth import latency_floor_s
from simulator.roofline.engine import ASSUMED_SPREAD, get_engine
from simulator.roofline.timing import OpTime, time_op, working_set_bytes
from simulator.roofline.uncertainty import Errors

ENGINE = "kernels"
"""Kernels alone: no scheduler, no host beside them."""


@dataclass(frozen=True)
class Expected:
    """Time of a kernel in seconds with its 90 % interval, and the demand behind it [B], [flop]."""

    predicted_s: float
    lo_s: float
    hi_s: float
    basis: str
    total_bytes: float
    flop: float
    launches: float


def expect(ops: Sequence[Op], device: Device, in_flight_bytes: float = np.inf) -> Expected:
    """Prediction for ops that run one after another.

    Parameters
    ----------
    in_flight_bytes : float
        Most that any launch of theirs can have on its way from memory, from its grid and its occupancy [B]. Weights
        and KV cannot come faster than Little's law allows; without it occupancy is taken to be no limit.

    Notes
    -----
    The interval of the sum holds `ASSUMED_SPREAD` for what passes between ops (operands that one leaves in a
    cache for the next, the caller's own work), which no fit of single calls contains. An op without a launch
    of its own is read by its neighbour (an index list): it adds its bytes' time and no start-up.
    """
    engine = get_engine(ENGINE)
    touched = working_set_bytes(ops, device) or 0.0
    times = [time_op(_known(op), device, engine, touched) for op in ops]
    own = [
        _bytes_only(t) if isinstance(op, Elementwise) and op.launches == 0.0 else t
        for op, t in zip(ops, times, strict=True)
    ]
    work = float(sum(t.total_s for t in own))
    demand = sum((op.traffic().scaled(op.count) for op in ops), Traffic())
    cold = sum(float(a.read_bytes) for o, a in demand.access.items() if o in (Operand.WEIGHT, Operand.KV))
    total = max(work, float(latency_floor_s(cold, in_flight_bytes)))
    errors = Errors.of(_gathered(t, device) for t in own)
    width = errors.interval(total, ASSUMED_SPREAD)
    return Expected(
        total,
        max(total - float(width.below_s), 0.0),
        total + float(width.above_s),
        str(Basis.worst(errors.rank) if own else Basis.DATASHEET),
        float(demand.total_bytes),
        float(demand.total_flop),
        float(demand.launches),
    )


def _gathered(t: OpTime, device: Device) -> OpTime:
    """`t` with the error of the device's own gather fit, where it reads in runs and there is such a fit."""
    memory = next(iter(device.measured.own("memory")), None)
    if memory is None or not isinstance(t.op, Elementwise) or not np.isfinite(t.op.run_bytes):
        return t
    return t._replace(apart=np.exp(1.645 * memory.residual.sigma_in))


def _known(op: Op) -> Op:
    """`op` under a kind that the streaming fits know; an index list is read once."""
    if isinstance(op, Elementwise) and op.kind == "index":
        return replace(op, kind="unary")
    return op


def _bytes_only(t: OpTime) -> OpTime:
    return t._replace(total_s=t.memory_s, launch_s=0.0)


def digest(points: Iterable[Mapping[str, Any]], device: Device) -> str:
    """64 hex digits over every prediction, the device profile and its fits: what the run cannot change after."""
    record = {
        "device": device.name,
        "profile": device.profile_hash,
        "fits": device.measured.digest,
        "points": list(points),
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
