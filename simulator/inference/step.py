"""One forward pass of a group: kernels, the engine's hands around them, what binds it, and its interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from simulator.base.arrays import Array
from simulator.device.catalogue import Device
from simulator.device.fits import Basis
from simulator.inference.lowering import ACT_BYTES
from simulator.ops.ops import Attention, Collective, Linear, Moe
from simulator.ops.step import Step
from simulator.ops.transfers import HostCompute, Transfer
from simulator.ops.union import transfer_sigma
from simulator.roofline.engine import StepParts
from simulator.roofline.hardware import hardware
from simulator.roofline.timing import OpTime, math_of, time_op, working_set_bytes
from simulator.roofline.transfer import exposed
from simulator.roofline.uncertainty import combine

if TYPE_CHECKING:
    from simulator.inference.group import Group


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


@dataclass(frozen=True)
class StepTime:
    """Time of one forward pass of the whole pipeline; arrays of the step's shape.

    Attributes
    ----------
    total_s, lo_s, hi_s : Array
        Time with its 90 % interval; the lower end is never below reading weights and KV once, nor below the
        linear layers' flop at the highest clock [s].
    gpu_s, host_s : Array
        Sum of the kernels, and the host's submission beside it [s].
    shares_s : Shares
        Time attributed to each `Bound`, none negative [s]; they add up to `total_s`.
    mode : str
        'graph', 'eager' or 'graph split'.
    parts : StepParts
        Stream, submission and waiting of the step.
    """

    total_s: Array
    lo_s: Array
    hi_s: Array
    gpu_s: Array
    host_s: Array
    shares_s: Shares
    busy: Array
    mode: str
    basis: Basis
    parts: StepParts
    ops: tuple[OpTime, ...] = ()


def step_time(group: Group, step: Step, timer: Callable[..., OpTime] = time_op) -> StepTime:
    """Time of one step: ``max(GPU stream, host submission) + scheduling``, see `Engine.step`.

    A data-dependent shape or a host-visible count splits the CUDA graph, and the step is submitted kernel
    by kernel.
    """
    engine, device = group.engine, group.device
    ops = group.lowering.ops(step)
    touched = working_set_bytes(ops, device)
    among = () if touched is None else (touched,)
    times = [timer(op, device, engine, *among) for op in ops]
    if group.pp > 1:
        send = Collective(
            role="pp.send",
            op="send_recv",
            n_ranks=2,
            count=float(group.pp - 1),
            message_bytes=step.rows * group.model.hidden * ACT_BYTES,
        )
        times.append(timer(send, device, engine))
    times = exposed(times)
    # What depends on the context goes last: those arrays are the large ones, touched once. The order is the
    # same for one point and for a grid, so both add up to the same number.
    in_order = sorted(times, key=lambda t: isinstance(t.op, Attention))
    shares: Shares = dict.fromkeys(Bound, 0.0)
    gpu: Array = 0.0
    math: Array = 0.0
    moved: Array = 0.0
    launches: Array = 0.0
    copies: Array = 0.0
    extra: Array = 0.0
    for t in in_order:
        gpu = gpu + t.total_s
        if isinstance(t.op, Collective):
            extra = extra + t.op.count * engine.collective_extra_s(t.op.message_bytes, t.op.n_ranks)
        math, moved = math + t.math_s, moved + t.memory_s
        mine = t.op.count * getattr(t.op, "launches", 1.0)
        launches = launches + mine
        if isinstance(t.op, Transfer | HostCompute):
            copies = copies + mine
        _attribute(t, shares)
    graph_safe = all(t.op.graph_safe and not t.op.host_sync for t in times)
    wanted = engine.graph_prefill if step.prefills else engine.graph_decode
    mode = "graph" if wanted and graph_safe else "graph split" if wanted else "eager"
    floor = _floor_s(in_order, device)
    parts = engine.step(
        device,
        gpu_s=gpu,
        comm_extra_s=extra,
        launches=launches,
        graph=mode == "graph",
        prefills=step.prefills,
        sequences=step.sampled_rows,
        prompt_tokens=step.prefill_rows * step.prefill_tokens if step.prefills else 0.0,
        floor_s=floor if engine.saves(step.prefills) else 0.0,
        copies=copies,
    )
    total = parts.total_s
    shares[Bound.LINK] = shares[Bound.LINK] + extra
    if parts.gain_s is not None:
        shares = _gained(shares, parts.gain_s)
    shares[Bound.HOST] = shares[Bound.HOST] + (total - parts.stream_s)
    interval = combine(
        _once_per_role(in_order) if group.lowering.by_layer else in_order,
        total,
        engine.spread(device, step.prefills),
        *_density(group, in_order),
    )
    return StepTime(
        total,
        np.maximum(total - interval.below_s, np.minimum(np.maximum(floor, _least_math_s(times, device)), total)),
        total + interval.above_s,
        gpu,
        parts.submit_s + parts.wait_s,
        shares,
        np.maximum(math, moved) / np.maximum(total, 1e-30),
        mode,
        interval.basis,
        parts,
        tuple(times),
    )


def _once_per_role(times: list[OpTime]) -> list[OpTime]:
    """The same product in every layer is one kernel: its errors add, they do not cancel."""
    found: dict[str, OpTime] = {}
    for t in times:
        old = found.get(t.op.role)
        if old is not None:
            t = replace(
                old,
                total_s=old.total_s + t.total_s,
                lo_s=old.lo_s + t.lo_s,
                hi_s=old.hi_s + t.hi_s,
                basis=old.basis.merge(t.basis),
            )
        found[t.op.role] = t
    return list(found.values())


def _density(group: Group, times: list[OpTime]) -> tuple[Array, float]:
    """Time that scales with the density of another model's trace [s], and the log error of that density [-]."""
    if not group.transferred:
        return 0.0, 0.0
    gathered: Array = 0.0
    for t in times:
        if isinstance(t.op, Linear) and t.op.gathered is not None and not t.op.overhead:
            gathered = gathered + t.total_s
    return gathered, transfer_sigma()


def _floor_s(times: list[OpTime], device: Device) -> Array:
    """Time to read the weights and the KV of a step once, beyond what L2 holds [s]."""
    moved: Array = 0.0
    for t in times:
        op = t.op
        if isinstance(op, Linear):
            moved = moved + op.count * op.weight_read_bytes
        elif isinstance(op, Attention):
            moved = moved + op.count * op.kv_read_bytes
    return np.maximum(moved - device.l2_bytes, 0.0) * (1.0 / device.hbm_bytes_per_s)


def _least_math_s(times: list[OpTime], device: Device) -> Array:
    """Time of the linear layers' flop at the peak of the highest clock; 2:4 skips half of them [s]."""
    least: Array = 0.0
    for t in times:
        op = t.op
        if isinstance(op, Linear):
            hw = hardware(device, math_of(device, op.fmt.math))
            rate = hw.math_flop_per_s * hw.max_clock_ratio * (2.0 if op.nm24 else 1.0)
            least = least + op.flop * (op.count / rate)
    return least


def _attribute(t: OpTime, shares: Shares) -> None:
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
    elif isinstance(t.op, Attention):
        reads = Bound.KV
    if np.all(t.launch_s <= t.memory_s):
        _split(t.total_s, (reads, t.memory_s), (Bound.COMPUTE, t.math_s), shares)
        return
    body = np.maximum(t.math_s, t.memory_s)
    by_launch = t.total_s * (t.launch_s > body)
    shares[Bound.LAUNCH] = shares[Bound.LAUNCH] + by_launch
    _split(t.total_s - by_launch, (reads, t.memory_s), (Bound.COMPUTE, t.math_s), shares)


def _gained(shares: Shares, gain_s: Array) -> Shares:
    """What the engine adds goes to the launches; what it saves beyond theirs, to all the others alike."""
    launch = shares[Bound.LAUNCH] + gain_s
    if np.all(launch >= 0.0):
        return {**shares, Bound.LAUNCH: launch}
    saved = np.minimum(launch, 0.0)
    others = sum(shares.values()) - shares[Bound.LAUNCH]
    left = 1.0 + saved / np.maximum(others, 1e-30)
    return {bound: s * left for bound, s in shares.items()} | {Bound.LAUNCH: np.maximum(launch, 0.0)}


def _split(total: Array, first: tuple[Bound, Array], second: tuple[Bound, Array], shares: Shares) -> None:
    """Give `total` to whichever of two resources takes longer."""
    wins = np.asarray(first[1]) >= second[1]
    if wins.all():
        shares[first[0]] = shares[first[0]] + total
    elif not wins.any():
        shares[second[0]] = shares[second[0]] + total
    else:
        part = total * wins
        shares[first[0]] = shares[first[0]] + part
        shares[second[0]] = shares[second[0]] + (total - part)
