"""One group of points - everything fixed but batch, prompt and output - to times, memory and intervals.

Arrays broadcast: a product grid passes shapes (B,1,1), (1,P,1), (1,1,O); scattered points pass flat arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from simulator import hub, memory
from simulator.arrays import Array
from simulator.calibration import Basis
from simulator.device import Device
from simulator.device import load as load_device
from simulator.dtypes import AUTO, KV_FORMATS, DType, Format, get_format
from simulator.engine import Engine, get_engine
from simulator.errors import UnsupportedError
from simulator.lowering import ACT_BYTES, Lowering
from simulator.model import ModelSpec
from simulator.ops import Attention, Collective, Linear, Moe
from simulator.policies import Policies, parse
from simulator.roofline.timing import OpTime, time_op
from simulator.scenario import Scenario
from simulator.uncertainty import combine
from simulator.workload import Step, decode_step, prefill_step

BOUNDS = (
    "compute",
    "weight reads",
    "KV reads",
    "activation traffic",
    "interconnect",
    "launch latency",
    "host",
)
"""What a step can be bound by; columns store the index."""
STATUSES = ("ok", "does_not_fit", "exceeds_context", "not_applicable", "unsupported_dtype")
MAX_RUNNING_BATCH = 4096
"""Largest batch `throughput_speedup_at_max_batch` is evaluated at [sequences]."""
IDLE_SHARE, BUSY_SHARE = 0.35, 0.65
"""Board power while serving: ``P = limit * (0.35 + 0.65 * busiest resource)``; an assumption, not a fit."""


@dataclass(frozen=True)
class Group:
    """What a product grid holds fixed while batch, prompt and output vary."""

    model: ModelSpec
    device: Device
    policies: Policies
    engine: Engine
    fmt: Format
    kv_dtype: str
    tp: int = 1
    pp: int = 1
    ep: int = 1
    utilisation: float = 0.9
    block_tokens: int = 16
    ignore_context: bool = False
    expert_fmt: Format | None = None

    @classmethod
    def of(cls, scenario: Scenario, model: ModelSpec, device: Device) -> Group:
        """Group of one scenario with its names already resolved."""
        dtype = model.dtype if scenario.dtype == AUTO else scenario.dtype
        expert_fmt = None
        if scenario.dtype == AUTO and model.quantization == "fp8_block" and device.has(DType.FP8):
            dtype = "fp8_block"
        elif scenario.dtype == AUTO and model.quantization == "mxfp4":
            # Without FP4 tensor cores the 4-bit experts are multiplied in 16 bit (Marlin, Triton).
            mxfp4 = get_format("mxfp4")
            weight_only = Format("w4a16", DType.BF16, mxfp4.weight_bits)
            expert_fmt = mxfp4 if device.has(DType.FP4) else weight_only
        if scenario.dtype == AUTO and dtype in ("bf16", "fp16") and not device.has(DType(dtype)):
            dtype = "fp16" if dtype == "bf16" else "bf16"
        kv = scenario.kv_cache_dtype
        if kv == AUTO:
            kv = "fp32" if dtype == "fp32" else "fp16" if dtype == "fp16" else "bf16"
        return cls(
            model,
            device,
            parse(scenario.policy),
            get_engine(scenario.engine),
            get_format(dtype),
            kv,
            scenario.tp,
            scenario.pp,
            scenario.ep,
            scenario.gpu_memory_utilization,
            scenario.block_size,
            scenario.ignore_context_limit,
            expert_fmt,
        )

    @property
    def gpus(self) -> int:
        """GPUs of one replica [-]."""
        return self.tp * self.pp

    @cached_property
    def lowering(self) -> Lowering:
        """The model as cut and stored here."""
        return Lowering(
            self.model,
            self.policies,
            self.fmt,
            KV_FORMATS[self.kv_dtype],
            self.tp,
            self.ep,
            self.expert_fmt,
        )

    @cached_property
    def dense(self) -> Group:
        """The same group without policies."""
        return replace(self, policies=Policies())

    @property
    def dtype(self) -> str:
        """Weight format after the policies."""
        fmt = self.fmt
        for policy in self.policies.members:
            fmt = policy.weight_format(fmt)
        return fmt.name if self.expert_fmt is None else f"{fmt.name}, experts {self.expert_fmt.name}"

    @cached_property
    def problem(self) -> tuple[str, str] | None:
        """(status, reason) when no point of the group can run, else None."""
        if not self.device.has(self.fmt.math):
            have = ", ".join(sorted(str(d) for d in DType if self.device.has(d)))
            return (
                "unsupported_dtype",
                f"{self.device.name} has no {self.fmt.math} rate; it has {have}",
            )
        reason = self.lowering.why_not()
        if reason is None and self.pp > self.model.n_layers:
            reason = f"{self.model.n_layers} layers cannot fill pp={self.pp}"
        if reason is None and self.gpus > 1 and not self.device.links:
            reason = f"{self.device.name} has no GPU link in its profile; use tp=1 and pp=1"
        if reason is None:
            try:
                step_time(self, decode_step(1.0, 2.0))
            except UnsupportedError as error:
                reason = error.message
        return ("not_applicable", reason) if reason else None


@lru_cache(maxsize=512)
def group_of(scenario: Scenario) -> Group:
    """Group of a scenario's fixed part, names resolved."""
    return Group.of(scenario, find_model(scenario.model), find_device(scenario.device))


@lru_cache(maxsize=256)
def find_model(name: str) -> ModelSpec:
    """Model by name, folder, file or hub id, read once per process."""
    return hub.find_model(name)


@lru_cache(maxsize=256)
def find_device(name: str) -> Device:
    """Device by name or profile file, read once per process."""
    return load_device(name)


@dataclass(frozen=True)
class StepTime:
    """Time of one forward pass of the whole pipeline; arrays of the step's shape.

    Attributes
    ----------
    total_s, lo_s, hi_s : Array
        Time with its 90 % interval [s].
    gpu_s, host_s : Array
        Sum of the kernels, and the host's submission beside it [s].
    shares_s : tuple of Array
        Time attributed to each of `BOUNDS` [s]; they add up to `total_s`.
    mode : str
        'graph', 'eager' or 'graph split'.
    """

    total_s: Array
    lo_s: Array
    hi_s: Array
    gpu_s: Array
    host_s: Array
    shares_s: tuple[Array, ...]
    busy: Array
    mode: str
    basis: Basis
    ops: tuple[OpTime, ...] = ()


def step_time(group: Group, step: Step, timer: Callable[..., OpTime] = time_op) -> StepTime:
    """Time of one step: ``max(GPU stream, host submission) + scheduling``, see `Engine.step`.

    A data-dependent shape or a host-visible count splits the CUDA graph, and the step is submitted kernel
    by kernel.
    """
    engine, device = group.engine, group.device
    ops = group.lowering.ops(step)
    times = [timer(op, device, engine) for op in ops]
    if group.pp > 1:
        send = Collective(
            role="pp.send",
            op="send_recv",
            n_ranks=2,
            count=float(group.pp - 1),
            message_bytes=step.rows * group.model.hidden * ACT_BYTES,
        )
        times.append(timer(send, device, engine))
    # What depends on the context goes last: those arrays are the large ones, touched once. The order is the
    # same for one point and for a grid, so both add up to the same number.
    in_order = sorted(times, key=lambda t: t.op.role.startswith(("attn.core", "kv.")))
    shares: list[Array] = [0.0] * len(BOUNDS)
    gpu: Array = 0.0
    math: Array = 0.0
    moved: Array = 0.0
    launches: Array = 0.0
    extra: Array = 0.0
    for t in in_order:
        gpu = gpu + t.total_s
        if isinstance(t.op, Collective):
            extra = extra + t.op.count * engine.collective_extra_s(t.op.message_bytes, t.op.n_ranks)
        math, moved = math + t.math_s, moved + t.memory_s
        launches = launches + t.op.count * getattr(t.op, "launches", 1.0)
        _attribute(t, shares)
    graph_safe = all(t.op.graph_safe and not t.op.host_sync for t in times)  # type: ignore[attr-defined]
    wanted = engine.graph_prefill if step.prefills else engine.graph_decode
    mode = "graph" if wanted and graph_safe else "graph split" if wanted else "eager"
    parts = engine.step(
        device,
        gpu_s=gpu,
        comm_extra_s=extra,
        launches=launches,
        graph=mode == "graph",
        prefills=step.prefills,
        sequences=step.sampled_rows,
        prompt_tokens=step.prefill_rows * step.prefill_tokens if step.prefills else 0.0,
        floor_s=_floor_s(in_order, device) if engine.saves(step.prefills) else 0.0,
    )
    total = parts.total_s
    shares[4] = shares[4] + extra
    if parts.gain_s is not None:
        shares[5] = shares[5] + parts.gain_s
    shares[-1] = np.maximum(parts.submit_s - parts.stream_s, 0.0) + parts.wait_s
    interval = combine(in_order, total, engine.spread(device, step.prefills))
    return StepTime(
        total,
        np.maximum(total - interval.below_s, 0.0),
        total + interval.above_s,
        gpu,
        parts.submit_s + parts.wait_s,
        tuple(shares),
        np.maximum(math, moved) / np.maximum(total, 1e-30),
        mode,
        interval.basis,
        tuple(times),
    )


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


def _attribute(t: OpTime, shares: list[Array]) -> None:
    """Add the time of one op to the resource that binds it."""
    if isinstance(t.op, Collective):
        _split(t.total_s, (4, t.link_s), (5, t.launch_s), shares)
        return
    kind = 1 if isinstance(t.op, Linear | Moe) else 2 if isinstance(t.op, Attention) else 3
    if np.all(t.launch_s <= t.memory_s):
        _split(t.total_s, (kind, t.memory_s), (0, t.math_s), shares)
        return
    body = np.maximum(t.math_s, t.memory_s)
    by_launch = t.total_s * (t.launch_s > body)
    shares[5] = shares[5] + by_launch
    _split(t.total_s - by_launch, (kind, t.memory_s), (0, t.math_s), shares)


def _split(
    total: Array, first: tuple[int, Array], second: tuple[int, Array], shares: list[Array]
) -> None:
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


@dataclass(frozen=True, eq=False)
class Points:
    """Answers for the points of one group; every array has the broadcast shape."""

    group: Group
    batch: Array
    prompt: Array
    output: Array
    prefill: StepTime
    decode: StepTime
    ttft_s: np.ndarray
    tpot_s: np.ndarray
    ttft_lo_s: np.ndarray
    ttft_hi_s: np.ndarray
    tpot_lo_s: np.ndarray
    tpot_hi_s: np.ndarray
    footprint: memory.Footprint
    max_batch: np.ndarray

    @property
    def basis(self) -> Basis:
        """Worst basis of prefill and decode."""
        basis = self.prefill.basis.merge(self.decode.basis)
        return basis.merge(Basis.EXTRAPOLATED) if self.group.ignore_context else basis

    @cached_property
    def e2e_s(self) -> np.ndarray:
        """``TTFT + (output - 1) TPOT`` [s]."""
        steps = np.asarray(self.output, float) - 1.0
        decode = steps * self.tpot_s
        return self.ttft_s + (decode if np.all(steps > 0) else np.where(steps > 0, decode, 0.0))

    @cached_property
    def tokens_per_s(self) -> np.ndarray:
        """Output tokens of the batch per second [1/s]."""
        return self.batch * self.output / self.e2e_s

    @cached_property
    def bound(self) -> np.ndarray:
        """Index into `BOUNDS` of what takes most of the end-to-end time [-]."""
        steps = np.asarray(self.output, float) - 1.0
        scale = self._passes
        most: np.ndarray | None = None
        code = np.zeros(np.shape(self.ttft_s), np.int8)
        for i, (p, d) in enumerate(zip(self.prefill.shares_s, self.decode.shares_s, strict=True)):
            share = np.asarray(p * scale + steps * _mean_nodes(d, self._ndim))
            if most is None:
                most = np.broadcast_to(share, code.shape).copy()
                continue
            larger = share > most
            if larger.any():
                code[np.broadcast_to(larger, code.shape)] = i
                np.maximum(most, share, out=most)
        return code

    @property
    def _ndim(self) -> int:
        return np.ndim(self.ttft_s)

    @property
    def _passes(self) -> Array:
        """Whole-pipeline passes of one prefill [-]."""
        micro = np.minimum(self.batch, float(self.group.pp))
        return (micro + self.group.pp - 1.0) / self.group.pp

    @cached_property
    def power_w(self) -> np.ndarray:
        """Board power of all GPUs, an estimate from the busiest resource [W]."""
        prefill, decode = self.prefill.busy, _mean_nodes(self.decode.busy, self._ndim)
        share = self.ttft_s / self.e2e_s
        busy = np.minimum(decode + share * (prefill - decode), 1.0)
        watts = self.group.device.power_w * self.group.gpus
        return (watts * BUSY_SHARE) * busy + watts * IDLE_SHARE

    @property
    def energy_j_per_token(self) -> np.ndarray:
        """Estimated energy per output token [J]."""
        return self.power_w / self.tokens_per_s

    @property
    def usd_per_mtoken(self) -> np.ndarray:
        """Rent of the GPUs per million output tokens, from the profile's list price [USD]."""
        per_s = self.group.device.price_usd_per_h.value * self.group.gpus / 3600.0
        return per_s / self.tokens_per_s * 1e6

    @property
    def fits(self) -> np.ndarray:
        """Whether the batch fits the engine's share of memory."""
        limit = memory.budget_bytes(self.group.device, self.group.utilisation)
        return np.asarray(self.footprint.total_bytes <= limit)

    @property
    def short_bytes(self) -> np.ndarray:
        """Bytes missing on the fullest GPU; negative where it fits [B]."""
        limit = memory.budget_bytes(self.group.device, self.group.utilisation)
        return np.asarray(self.footprint.total_bytes - limit)

    @property
    def status(self) -> np.ndarray:
        """Index into `STATUSES`."""
        longest = np.asarray(self.prompt, float) + self.output
        over = longest > self.group.model.max_context
        code = np.where(self.fits, 0, 1)
        if not self.group.ignore_context:
            code = np.where(over, 2, code)
        return np.broadcast_to(code, np.shape(self.ttft_s))


def evaluate(group: Group, batch: Array, prompt: Array, output: Array) -> Points:
    """TTFT, TPOT, memory and intervals of a static batch.

    TTFT is one prefill of the whole batch. TPOT is the mean decode step over contexts prompt+1 ...
    prompt+output-1, from two points that have the mean and the variance of that range, which is exact for
    a step time that is cubic in the context. With `pp` stages the batch is cut in ``min(batch, pp)``
    micro-batches: decode takes a whole-pipeline pass of ``batch/pp`` rows per token, prefill
    ``(micro + pp - 1) / pp`` passes.

    Raises
    ------
    UnsupportedError
        `Group.problem` says why beforehand.
    """
    # One number of axes for all three, so that the context nodes can lead.
    ndim = max(np.ndim(batch), np.ndim(prompt), np.ndim(output))
    b, p, o = (
        np.reshape(np.asarray(x, float), (1,) * (ndim - np.ndim(x)) + np.shape(x))
        for x in (batch, prompt, output)
    )
    micro = np.minimum(b, float(group.pp))
    rows = b / micro
    prefill = step_time(group, prefill_step(rows, p))
    passes = (micro + group.pp - 1.0) / group.pp
    steps = o - 1.0
    centre = p + o / 2.0
    spread = np.sqrt(np.maximum(steps * steps - 1.0, 0.0) / 12.0)
    nodes = np.stack(np.broadcast_arrays(centre - spread, centre + spread))
    decode = step_time(group, decode_step(rows, np.maximum(nodes, p + 1.0)))
    shape = np.broadcast_shapes(b.shape, p.shape, o.shape)
    one_token = np.broadcast_to(steps < 1.0, shape)
    several = not one_token.any()

    def tpot(step: Array) -> np.ndarray:
        mean = np.broadcast_to(_mean_nodes(step, len(shape)), shape)
        return mean if several else np.where(one_token, np.nan, mean)

    return Points(
        group,
        b,
        p,
        o,
        prefill,
        decode,
        ttft_s=np.broadcast_to(prefill.total_s * passes, shape),
        tpot_s=tpot(decode.total_s),
        ttft_lo_s=np.broadcast_to(prefill.lo_s * passes, shape),
        ttft_hi_s=np.broadcast_to(prefill.hi_s * passes, shape),
        tpot_lo_s=tpot(decode.lo_s),
        tpot_hi_s=tpot(decode.hi_s),
        footprint=memory.footprint(
            group.lowering, b, p, o, pp=group.pp, block_tokens=group.block_tokens
        ),
        max_batch=np.broadcast_to(
            memory.max_batch(
                group.lowering,
                group.device,
                p,
                o,
                pp=group.pp,
                utilisation=group.utilisation,
                block_tokens=group.block_tokens,
            ),
            shape,
        ),
    )


def _mean_nodes(x: Array, ndim: int) -> Array:
    """Mean over the two context nodes, the leading axis of what depends on the context."""
    if np.ndim(x) <= ndim:
        return x
    array = np.asarray(x)
    return 0.5 * (array[0] + array[1])
