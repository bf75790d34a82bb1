"""One forward pass of a group: kernels, the engine's hands around them, what binds it, and its interval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING

from simulator.base.arrays import Array, every, maximum, minimum, some
from simulator.base.dtypes import DType
from simulator.device.catalogue import Device
from simulator.device.fits import Basis
from simulator.inference.lowering import ACT_BYTES, Follows
from simulator.ops.ops import Attention, Collective, Elementwise, Linear, Moe, Op
from simulator.ops.step import Step
from simulator.ops.transfers import HostCompute, Transfer
from simulator.ops.union import transfer_sigma
from simulator.roofline.engine import StepParts
from simulator.roofline.hardware import hardware
from simulator.roofline.timing import OpTime, math_of, time_op, working_set_bytes
from simulator.roofline.transfer import exposed
from simulator.roofline.uncertainty import Errors

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


def step_time(group: Group, step: Step) -> StepTime:
    """Time of one step: ``max(GPU stream, host submission) + scheduling``, see `Engine.step`.

    A data-dependent shape or a host-visible count splits the CUDA graph, and the step is submitted kernel
    by kernel.
    """
    lowered = group.lowering.lowered(step)
    times = exposed(timed(group, [op for op, _ in lowered]))
    # What depends on the context goes last: those arrays are the large ones, touched once. The order is the
    # same for one point and for a grid, so both add up to the same number.
    late = [(follows is Follows.CONTEXT, isinstance(op, Attention)) for op, follows in lowered]
    in_order = [t for _, t in sorted(zip(late, times, strict=True), key=lambda of: of[0])]
    if group.pp > 1:
        times = [*times, send(group, step)]
        in_order.append(times[-1])
    return finished(group, step, Sums.of(group, in_order), tuple(times))


def timed(group: Group, ops: Sequence[Op]) -> list[OpTime]:
    """Times of the ops of one step, each as if it ran alone but among what the others read."""
    touched = working_set_bytes(ops, group.device)
    among = () if touched is None else (touched,)
    return [time_op(op, group.device, group.engine, *among) for op in ops]


def send(group: Group, step: Step) -> OpTime:
    """Activations handed from one pipeline stage to the next."""
    op = Collective(
        role="pp.send",
        op="send_recv",
        n_ranks=2,
        count=float(group.pp - 1),
        message_bytes=step.rows * group.model.hidden * ACT_BYTES,
    )
    return time_op(op, group.device, group.engine)


@dataclass(frozen=True, slots=True)
class Sums:
    """What the ops of a step add up to; sums of disjoint sets of ops add up, too.

    Attributes
    ----------
    gpu_s, math_s, moved_s : Array
        Kernels, and what arithmetic and memory alone would take [s].
    extra_s : Array
        `Engine.collective_extra_s` of the collectives [s].
    launches, copies : Array
        Kernels launched, and those among them that are no kernels of the stream [-].
    read_bytes : Array
        Weights and KV of linear layers and attention, each read once [B].
    least_math_s : Array
        The linear layers' flop at the peak of the highest clock; 2:4 skips half of them [s].
    gathered_s : Array
        Time that scales with the density of another model's trace [s].
    shares_s : Shares
        Time by `Bound` [s].
    errors : Errors
        Half widths of the ops' intervals.
    graph_safe : bool
        A CUDA graph can hold all of them.
    """

    gpu_s: Array
    math_s: Array
    moved_s: Array
    extra_s: Array
    launches: Array
    copies: Array
    read_bytes: Array
    least_math_s: Array
    gathered_s: Array
    shares_s: Shares
    errors: Errors
    graph_safe: bool

    @classmethod
    def of(cls, group: Group, times: Sequence[OpTime]) -> Sums:
        """Sums over `times`, in their order."""
        engine, device = group.engine, group.device
        shares: Shares = dict.fromkeys(Bound, 0.0)
        gpu: Array = 0.0
        math: Array = 0.0
        moved: Array = 0.0
        extra: Array = 0.0
        launches: Array = 0.0
        copies: Array = 0.0
        read: Array = 0.0
        least: Array = 0.0
        gathered: Array = 0.0
        safe = True
        for t in times:
            op, count = t.op, t.op.count
            gpu, math, moved = gpu + t.total_s, math + t.math_s, moved + t.memory_s
            mine = count * op.launches if isinstance(op, Elementwise) else count
            launches = launches + mine
            if isinstance(op, Linear):
                read = read + count * op.weight_read_bytes
                least = least + op.flop * (count / _most_flop_per_s(device, op.fmt.math, op.nm24))
                if op.gathered is not None and not op.overhead:
                    gathered = gathered + t.total_s
            elif isinstance(op, Attention):
                read = read + count * op.kv_read_bytes
            elif isinstance(op, Collective):
                extra = extra + count * engine.collective_extra_s(op.message_bytes, op.n_ranks)
            elif isinstance(op, Transfer | HostCompute):
                copies = copies + mine
            safe = safe and op.graph_safe and not op.host_sync
            _attribute(t, shares)
        errors = Errors.of(_once_per_role(times) if group.lowering.by_layer else times)
        return cls(gpu, math, moved, extra, launches, copies, read, least, gathered, shares, errors, safe)

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.gpu_s + other.gpu_s,
            self.math_s + other.math_s,
            self.moved_s + other.moved_s,
            self.extra_s + other.extra_s,
            self.launches + other.launches,
            self.copies + other.copies,
            self.read_bytes + other.read_bytes,
            self.least_math_s + other.least_math_s,
            self.gathered_s + other.gathered_s,
            {bound: mine + other.shares_s[bound] for bound, mine in self.shares_s.items()},
            self.errors + other.errors,
            self.graph_safe and other.graph_safe,
        )


def finished(group: Group, step: Step, sums: Sums, times: tuple[OpTime, ...] = ()) -> StepTime:
    """A step whose ops add up to `sums`, in the engine's hands."""
    engine, device = group.engine, group.device
    wanted = engine.graph_prefill if step.prefills else engine.graph_decode
    mode = "graph" if wanted and sums.graph_safe else "graph split" if wanted else "eager"
    floor = maximum(sums.read_bytes - device.l2_bytes, 0.0) * (1.0 / device.hbm_bytes_per_s)
    parts = engine.step(
        device,
        gpu_s=sums.gpu_s,
        comm_extra_s=sums.extra_s,
        launches=sums.launches,
        graph=mode == "graph",
        prefills=step.prefills,
        sequences=step.sampled_rows,
        prompt_tokens=step.prefill_rows * step.prefill_tokens if step.prefills else 0.0,
        floor_s=floor if engine.saves(step.prefills) else 0.0,
        copies=sums.copies,
    )
    total = parts.total_s
    density = (sums.gathered_s, transfer_sigma()) if group.transferred else ()
    interval = sums.errors.interval(total, engine.spread(device, step.prefills), *density)
    shares = dict(sums.shares_s)
    shares[Bound.LINK] = shares[Bound.LINK] + sums.extra_s
    if parts.gain_s is not None:
        shares = _gained(shares, parts.gain_s)
    shares[Bound.HOST] = shares[Bound.HOST] + (total - parts.stream_s)
    return StepTime(
        total,
        maximum(total - interval.below_s, minimum(maximum(floor, sums.least_math_s), total)),
        total + interval.above_s,
        sums.gpu_s,
        parts.submit_s + parts.wait_s,
        shares,
        maximum(sums.math_s, sums.moved_s) / maximum(total, 1e-30),
        mode,
        interval.basis,
        parts,
        times,
    )


@lru_cache(maxsize=1024)
def _most_flop_per_s(device: Device, math: DType, nm24: bool) -> float:
    """Peak of the highest clock [flop/s]; 2:4 skips half of the operations."""
    hw = hardware(device, math_of(device, math))
    return hw.math_flop_per_s * hw.max_clock_ratio * (2.0 if nm24 else 1.0)


def _once_per_role(times: Iterable[OpTime]) -> list[OpTime]:
    """The same product in every layer is one kernel: its errors add, they do not cancel."""
    found: dict[str, OpTime] = {}
    for t in times:
        old = found.get(t.op.role)
        if old is not None:
            t = old._replace(
                total_s=old.total_s + t.total_s,
                lo_s=old.lo_s + t.lo_s,
                hi_s=old.hi_s + t.hi_s,
                basis=old.basis.merge(t.basis),
            )
        found[t.op.role] = t
    return list(found.values())


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
    if every(t.launch_s <= t.memory_s):
        _split(t.total_s, (reads, t.memory_s), (Bound.COMPUTE, t.math_s), shares)
        return
    body = maximum(t.math_s, t.memory_s)
    by_launch = t.total_s * (t.launch_s > body)
    shares[Bound.LAUNCH] = shares[Bound.LAUNCH] + by_launch
    _split(t.total_s - by_launch, (reads, t.memory_s), (Bound.COMPUTE, t.math_s), shares)


def _gained(shares: Shares, gain_s: Array) -> Shares:
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
