"""One forward pass of a group: kernels, the engine's hands around them, what binds it, and its interval."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from simulator.base.arrays import Array, maximum, minimum
from simulator.base.dtypes import DType
from simulator.device.catalogue import Device
from simulator.device.fits import Basis
from simulator.inference.bound import Bound, Shares, attribute, gained
from simulator.inference.lowered import Follows
from simulator.ops.linear_attention import LinearAttention
from simulator.ops.module import AttentionModule
from simulator.ops.ops import ACT_BYTES, Attention, Collective, Elementwise, Linear, Moe, Op
from simulator.ops.step import Step
from simulator.ops.transfers import HostCompute, Transfer
from simulator.roofline.engine import Engine, StepParts
from simulator.roofline.hardware import hardware, math_of
from simulator.roofline.timing import OpTime, time_op, working_set_bytes
from simulator.roofline.transfer import exposed
from simulator.roofline.uncertainty import Errors, Interval

if TYPE_CHECKING:
    from simulator.inference.group import Group


Changed = Mapping[tuple[str, str], Array]
"""Seconds of the kernels that a policy rewrote or added, by its name and the kernels' error family [s]."""


@dataclass(frozen=True, eq=False)
class StepTime:
    """Time of one forward pass of the whole pipeline; arrays of the step's shape.

    Everything beyond `total_s` is worked out when it is asked for.

    Attributes
    ----------
    parts : StepParts
        Stream, submission and waiting of the step.
    sums : Sums
        What the ops add up to.
    mode : str
        'graph', 'eager' or 'graph split'.
    floor_s : Array
        Least time to read the weights and the KV of the step once, beyond what L2 holds, and to do its products [s].
    sigma : float
        Log error of the whole step [-].
    ops : tuple of OpTime
        The ops one by one, where they were asked for.
    """

    parts: StepParts
    sums: Sums
    mode: str
    floor_s: Array
    sigma: float
    ops: tuple[OpTime, ...] = ()

    @property
    def total_s(self) -> Array:
        """Time of the step [s]."""
        return self.parts.total_s

    @cached_property
    def _interval(self) -> Interval:
        details = self.sums.details
        return details.errors.interval(self.total_s, self.sigma, details.density_s)

    @cached_property
    def lo_s(self) -> Array:
        """Lower end of the 90 % interval, at least `floor_s` [s]."""
        return maximum(self.total_s - self._interval.below_s, minimum(self.floor_s, self.total_s))

    @cached_property
    def hi_s(self) -> Array:
        """Upper end of the 90 % interval [s]."""
        return self.total_s + self._interval.above_s

    @property
    def basis(self) -> Basis:
        """The worst of the ops, at the worst of the points."""
        return Basis.worst(self.rank)

    @property
    def rank(self) -> Array:
        """`Basis.rank` of the worst op at each point [-]."""
        return self.sums.details.errors.rank

    @property
    def gpu_s(self) -> Array:
        """Sum of the kernels [s]."""
        return self.sums.gpu_s

    def scaled(self, factor: float) -> StepTime:
        """`factor` of the step, e.g. its part for one of its tokens; `ops` stay those of the whole."""
        sums = replace(self.sums.scaled(factor), extra_s=self.sums.extra_s * factor)
        return replace(self, parts=self.parts.scaled(factor), sums=sums, floor_s=self.floor_s * factor)

    @property
    def host_s(self) -> Array:
        """The host's submission beside them, and what both wait for [s]."""
        return self.parts.submit_s + self.parts.wait_s

    @cached_property
    def busy(self) -> Array:
        """Share of the step in which the busier of arithmetic and memory works [-]."""
        details = self.sums.details
        return maximum(details.math_s, details.moved_s) / maximum(self.total_s, 1e-30)

    @cached_property
    def shares_s(self) -> Shares:
        """Time attributed to each `Bound`, none negative [s]; they add up to `total_s`."""
        shares = dict(self.sums.details.shares_s)
        shares[Bound.LINK] = shares[Bound.LINK] + self.sums.extra_s
        if self.parts.gain_s is not None:
            shares = gained(shares, self.parts.gain_s)
        shares[Bound.HOST] = shares[Bound.HOST] + (self.total_s - self.parts.stream_s)
        return shares


def step_time(group: Group, step: Step) -> StepTime:
    """Time of one step: ``max(GPU stream, host submission) + scheduling``, see `Engine.step`.

    A data-dependent shape or a host-visible count splits the CUDA graph, and the step is submitted kernel
    by kernel.
    """
    step = group.lowering.ran(step)
    lowered = group.lowering.lowered(step)
    times = exposed(timed(group, [op for op, _, _ in lowered]))
    # What depends on the context goes last: those arrays are the large ones, touched once. The order is the
    # same for one point and for a grid, so both add up to the same number.
    late = [(follows is Follows.CONTEXT, isinstance(op, Attention | AttentionModule)) for op, follows, _ in lowered]
    order = sorted(range(len(late)), key=late.__getitem__)
    in_order, by = [times[i] for i in order], [lowered[i].by for i in order]
    if group.pp > 1:
        times = [*times, send(group, step)]
        in_order.append(times[-1])
    return finished(group, step, Sums.of(group, in_order, by), tuple(times))


def repeated(group: Group, step: Step, few: Step, back: np.ndarray) -> StepTime:
    """`step_time` of many flat points with few numbers of tokens among them.

    Parameters
    ----------
    step : Step
        Without prompts, its last axis the points.
    few : Step
        Each number of tokens once.
    back : ndarray of int
        Which of `few` each point is [-].
    """
    low = group.lowering
    few, step = low.ran(few), low.ran(step)
    apart = [of for follows in (Follows.TOKENS, Follows.SEQUENCES) for of in low.lowered(few, follows)]
    moving = low.lowered(step, Follows.CONTEXT)
    # Where ops wait for others, or share caches with them, no part of a step can be timed alone.
    beside = any(getattr(of.op, "beside", ()) for of in (*apart, *moving))
    if beside or working_set_bytes((), group.device) is not None:
        return step_time(group, step)
    alone, late = (
        Sums.of(group, timed(group, [of.op for of in part]), [of.by for of in part]) for part in (apart, moving)
    )
    if group.pp > 1:
        alone = Sums.of(group, [send(group, few)]) + alone
    return finished(group, step, alone.taken(back) + late)


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


@dataclass(frozen=True, eq=False)
class Sums:
    """What the ops of a step add up to; sums of disjoint sets of ops add up, too.

    Attributes
    ----------
    gpu_s, extra_s : Array
        Kernels, and `Engine.collective_extra_s` of the collectives [s].
    launches, copies, alone : Array
        Kernels launched, those among them that are no kernels of the stream, and those that meet an empty one [-].
    read_bytes : Array
        Weights and KV of linear layers and attention, each read once [B].
    least_math_s : Array
        Products of linear layers, experts and attention at the peak of the highest clock [s].
    graph_safe : bool
        A CUDA graph can hold all of them.
    changed_s : mapping of (policy, error family) to Array
        Kernels that policies rewrote or added [s].
    """

    gpu_s: Array
    extra_s: Array
    launches: Array
    copies: Array
    alone: Array
    read_bytes: Array
    least_math_s: Array
    graph_safe: bool
    _details: Callable[[], Details]
    changed_s: Changed

    @classmethod
    def of(cls, group: Group, times: Sequence[OpTime], by: Iterable[str] = ()) -> Sums:
        """Sums over `times`, in their order; `by` are `Lowered.by` of the first of them."""
        engine = group.engine
        changed: dict[tuple[str, str], Array] = {}
        for t, name in zip(times, by, strict=False):
            if name:
                key = name, t.family
                changed[key] = changed.get(key, 0.0) + t.total_s
        gpu: Array = 0.0
        extra: Array = 0.0
        launches: Array = 0.0
        copies: Array = 0.0
        alone: Array = 0.0
        read: Array = 0.0
        least: Array = 0.0
        safe = True
        for t in times:
            op, count = t.op, t.op.count
            least = least + least_math_s(op, group.device, engine)
            gpu = gpu + t.total_s
            mine = submitted(op, engine)
            launches = launches + mine
            alone = alone + alone_of(op, engine)
            if isinstance(op, Linear):
                read = read + count * op.weight_read_bytes
            elif isinstance(op, Attention):
                read = read + count * op.kv_read_bytes
            elif isinstance(op, AttentionModule):
                demand = op.demand()
                read = read + count * (demand.weight_bytes + demand.kv_bytes)
            elif isinstance(op, LinearAttention):
                read = read + count * 0.5 * op.kept_bytes
            elif isinstance(op, Collective):
                extra = extra + count * engine.collective_extra_s(op.message_bytes, op.n_ranks)
            elif isinstance(op, Transfer | HostCompute):
                copies = copies + mine
            safe = safe and op.graph_safe and not op.host_sync
        return cls(gpu, extra, launches, copies, alone, read, least, safe, lambda: Details.of(group, times), changed)

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.gpu_s + other.gpu_s,
            self.extra_s + other.extra_s,
            self.launches + other.launches,
            self.copies + other.copies,
            self.alone + other.alone,
            self.read_bytes + other.read_bytes,
            self.least_math_s + other.least_math_s,
            self.graph_safe and other.graph_safe,
            lambda: self.details + other.details,
            {
                key: self.changed_s.get(key, 0.0) + other.changed_s.get(key, 0.0)
                for key in dict.fromkeys((*self.changed_s, *other.changed_s))
            },
        )

    def taken(self, back: np.ndarray) -> Sums:
        """The sums of many points that are `back` of these."""
        return Sums(
            _taken(self.gpu_s, back),
            _taken(self.extra_s, back),
            _taken(self.launches, back),
            _taken(self.copies, back),
            _taken(self.alone, back),
            _taken(self.read_bytes, back),
            _taken(self.least_math_s, back),
            self.graph_safe,
            lambda: self.details.taken(back),
            {key: _taken(x, back) for key, x in self.changed_s.items()},
        )

    def scaled(self, factor: Array) -> Sums:
        """The sums of ops that take `factor` times as long."""
        changed = {key: x * factor for key, x in self.changed_s.items()}
        return replace(self, gpu_s=self.gpu_s * factor, changed_s=changed, _details=lambda: self.details.scaled(factor))

    @cached_property
    def details(self) -> Details:
        """What the interval and the breakdown are made of."""
        return self._details()


@dataclass(frozen=True, eq=False, slots=True)
class Details:
    """Sums that the time of a step does not need.

    Attributes
    ----------
    math_s, moved_s : Array
        What arithmetic and memory alone would take [s].
    density_s : Array
        One standard deviation of the kernels' time by what models differ in their unions [s].
    shares_s : Shares
        Kernels' time by `Bound` [s].
    errors : Errors
        Half widths of the ops' intervals.
    """

    math_s: Array
    moved_s: Array
    density_s: Array
    shares_s: Shares
    errors: Errors

    @classmethod
    def of(cls, group: Group, times: Sequence[OpTime]) -> Details:
        """Details of `times`, in their order."""
        shares: Shares = dict.fromkeys(Bound, 0.0)
        math: Array = 0.0
        moved: Array = 0.0
        density: Array = 0.0
        for t in times:
            op = t.op
            math, moved = math + t.math_s, moved + t.memory_s
            if isinstance(op, Linear) and op.union is not None and op.union.log_error:
                density = density + t.total_s * op.union.error(op.read_keep, op.m, op.whole)
            attribute(t, shares)
        return cls(math, moved, density, shares, Errors.of(times, by_role=group.lowering.by_layer))

    def taken(self, back: np.ndarray) -> Details:
        """The details of many points that are `back` of these."""
        return Details(
            _taken(self.math_s, back),
            _taken(self.moved_s, back),
            _taken(self.density_s, back),
            {bound: _taken(x, back) for bound, x in self.shares_s.items()},
            self.errors.each(lambda width: _taken(width, back)),
        )

    def scaled(self, factor: Array) -> Details:
        """The details of ops that take `factor` times as long."""
        return replace(
            self,
            math_s=self.math_s * factor,
            moved_s=self.moved_s * factor,
            density_s=self.density_s * factor,
            shares_s={bound: x * factor for bound, x in self.shares_s.items()},
            errors=self.errors.scaled(factor),
        )

    def __add__(self, other: Details) -> Details:
        return Details(
            self.math_s + other.math_s,
            self.moved_s + other.moved_s,
            self.density_s + other.density_s,
            {bound: mine + other.shares_s[bound] for bound, mine in self.shares_s.items()},
            self.errors + other.errors,
        )


def _taken(x: Array, back: np.ndarray) -> Array:
    return x[..., back] if isinstance(x, np.ndarray) else x


def finished(group: Group, step: Step, sums: Sums, times: tuple[OpTime, ...] = ()) -> StepTime:
    """A step whose ops add up to `sums`, in the engine's hands.

    Where the engine was measured with whole attention blocks but not with what a policy makes of them, the policy's
    ops are timed one by one, and take as long as those of the dense model do in its measured blocks:
    ``t = ops(policy) * modules(dense) / ops(dense)``.
    """
    engine, device = group.engine, group.device
    if group.twin is not group.dense:
        factor = step_time(group.dense, step).gpu_s / step_time(group.twin, step).gpu_s
        names = ("total_s", "math_s", "memory_s", "link_s", "launch_s")
        sums = sums.scaled(factor)
        times = tuple(t._replace(**{name: getattr(t, name) * factor for name in names}) for t in times)
    wanted = engine.graph_prefill if step.prefills else engine.graph_decode
    mode = "graph" if wanted and sums.graph_safe else "graph split" if wanted else "eager"
    floor = maximum((sums.read_bytes - device.l2_bytes) * (1.0 / device.hbm_bytes_per_s), sums.least_math_s)
    parts = engine.step(
        device,
        gpu_s=sums.gpu_s,
        comm_extra_s=sums.extra_s,
        launches=sums.launches,
        graph=mode == "graph",
        prefills=step.prefills,
        sequences=step.sequences,
        prompt_tokens=step.prefill_rows * step.prefill_tokens if step.prefills else 0.0,
        floor_s=floor if engine.saves(step.prefills) else 0.0,
        copies=sums.copies,
        alone=sums.alone,
        drafts=group.speculation.drafts if group.speculation is not None and step.decodes else 0.0,
    )
    sigma = engine.spread(device, step.prefills)
    return StepTime(parts, sums, mode, floor, sigma, times)


def least_math_s(op: Op, device: Device, engine: Engine) -> Array:
    """Products of an op at the peak of the highest clock, or of what may run in its place where those take less [s]."""
    if isinstance(op, Linear):
        fast = engine.adds_fast(op.fmt)
        own = op.flop * (op.count / _most_flop_per_s(device, op.fmt.math, op.nm24, fp16_accumulate=fast))
    elif isinstance(op, Moe):
        fast = engine.adds_fast(op.fmt)
        own = op.flop * (op.count / _most_flop_per_s(device, op.fmt.math, fp16_accumulate=fast))
    elif isinstance(op, Attention):
        own = op.flop * (op.count / _most_flop_per_s(device, op.math))
    elif isinstance(op, AttentionModule):
        return op.demand().projection_flop * (op.count / _most_flop_per_s(device, op.fmt.math))
    else:
        return 0.0
    return own if op.instead is None else minimum(own, least_math_s(op.instead, device, engine))


@lru_cache(maxsize=1024)
def _most_flop_per_s(device: Device, math: DType, nm24: bool = False, *, fp16_accumulate: bool = False) -> float:
    """Peak of the highest clock [flop/s]; 2:4 skips half of the operations."""
    hw = hardware(device, math_of(device, math), fp16_accumulate=fp16_accumulate)
    return hw.math_flop_per_s * hw.max_clock_ratio * (2.0 if nm24 else 1.0)


def submitted(op: Op, engine: Engine) -> Array:
    """Launches the host submits for `op`, in those of an op of the model [-]."""
    if isinstance(op, AttentionModule | Linear | Attention):
        return op.count * op.launches
    if not isinstance(op, Elementwise):
        return op.count
    kernels = op.count * op.launches
    return kernels * (engine.unfused(op.kind)[1] / engine.op_kernels) if op.overhead else kernels


def alone_of(op: Op, engine: Engine) -> Array:
    """Launches among them that meet an empty stream: small kernels around a value the host waits for [-]."""
    return submitted(op, engine) if isinstance(op, Elementwise) and op.host_sync else 0.0
