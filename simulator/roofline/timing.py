"""An op on a device to its time terms: the one place where op kinds meet the time functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache, singledispatch
from typing import NamedTuple, TypeVar

import numpy as np

from simulator.base.arrays import Array, maximum, some, sqrt, where
from simulator.base.dtypes import DType
from simulator.base.errors import UnsupportedError
from simulator.device.catalogue import Device
from simulator.device.fits import ANY, Basis, Fit, Residual
from simulator.device.releases import apart, joined
from simulator.ops.dense import dense_of
from simulator.ops.expert_exchange import ExpertExchange
from simulator.ops.linear_attention import LinearAttention
from simulator.ops.module import AttentionModule
from simulator.ops.ops import Attention, Collective, Elementwise, Linear, Moe, Op
from simulator.ops.traffic import Operand
from simulator.ops.transfers import HostCompute, Transfer
from simulator.roofline.attention import attention_time
from simulator.roofline.collective import collective_time
from simulator.roofline.elementwise import DEFAULT, elementwise_time
from simulator.roofline.engine import Engine
from simulator.roofline.expert_exchange import exchange_demand, exchange_time
from simulator.roofline.gemm import floor_s, gemm_time
from simulator.roofline.hardware import Hardware, hardware, math_of, vector_dtype
from simulator.roofline.linear_attention import linear_demand, linear_time
from simulator.roofline.lookup import Found, kernel_key, key_of, lookup, same_kernel
from simulator.roofline.module import as_dense, module_rates, module_time
from simulator.roofline.moe import moe_time
from simulator.roofline.optime import OpTime
from simulator.roofline.sparse import expand_s, gathered_bytes, select_s, tile_s
from simulator.roofline.speedup import rates_of, shape_of, speedup
from simulator.roofline.transfer import host_s, transfer_s

# Kinds the elementwise fits know; ours in between are timed as the nearest of them.
_STREAM_KIND = {"estimate": "unary", "topk": "softmax", "layer_norm": "norm"}


class _Raw(NamedTuple):
    total: Array
    math: Array
    memory: Array
    link: Array
    launch: Array
    found: Found
    family: str
    carried: Array = False
    gain: Residual | None = None


def time_op(op: Op, device: Device, engine: Engine, touched_bytes: Array = 0.0) -> OpTime:
    """Time of `op` on `device` with `engine`'s kernels.

    Parameters
    ----------
    touched_bytes : Array
        `working_set_bytes` of all the ops that come round again with this one [B].

    Raises
    ------
    UnsupportedError
        The device has no rate for the arithmetic, or no 2:4 tensor cores.
    """
    if isinstance(touched_bytes, float) and not touched_bytes:
        try:
            return _remembered(op, device, engine)
        except TypeError:  # an op over arrays has no hash
            pass
    return _timed(op, device, engine, touched_bytes)


def _timed(op: Op, device: Device, engine: Engine, touched_bytes: Array = 0.0) -> OpTime:
    raw = _time(op, device, engine, touched_bytes)
    count, found = op.count, raw.found
    return OpTime(
        op,
        raw.total * count,
        raw.math * count,
        raw.memory * count,
        raw.link * count,
        raw.launch * count,
        raw.total,
        raw.family,
        found.basis,
        found.fit,
        raw.carried,
        stands_in=found.stands_in,
        gain=raw.gain,
    )


# Layers alike, a policy beside its dense twin, a load asked about again: single predictions ask for equal ops.
_remembered = lru_cache(maxsize=8192)(_timed)


def _answer(
    op: Linear | Attention | AttentionModule | LinearAttention | Moe | Collective | Elementwise | ExpertExchange,
    device: Device,
    engine: Engine,
) -> Found:
    """The fit of `engine`'s kernel for `op`."""
    family, key = key_of(op)
    library = engine.kernel(device, family, kernel_key(op))
    if isinstance(op, Collective) and op.nodes > 1:
        library = f"{library}_{op.nodes}nodes"
    elif library and engine.release and ":" not in library:
        library = joined(apart(library)[0], engine.release)
    return lookup(device, family, key, library)


def measured_as_module(op: AttentionModule, device: Device, engine: Engine) -> bool:
    """Whether `engine`'s own kernels for `op` were measured on `device` or its like."""
    family, key = key_of(op)
    library = engine.kernel(device, family, key)
    if library is None:
        return False
    try:
        fit = lookup(device, family, key, library).fit
    except UnsupportedError:
        return False
    return fit.device != ANY and same_kernel(fit.library, library)


@singledispatch
def _time(op: Op, device: Device, engine: Engine, touched: Array) -> _Raw:
    raise TypeError(f"no time function for {type(op).__name__}")


@_time.register
def _linear(op: Linear, device: Device, engine: Engine, touched: Array) -> _Raw:
    return _fastest(op, _product, device, engine, touched)


T = TypeVar("T", Linear, Attention, Moe)


def _fastest(
    op: T, time: Callable[[T, Device, Engine, Array], _Raw], device: Device, engine: Engine, touched: Array
) -> _Raw:
    """`time` of an op or what its measured kernel makes of it, or of what runs instead where that is faster.

    Without a start where it is part of another kernel.
    """
    if not isinstance(op, Moe) and op.kernel:
        plain = dense_of(op)
        own = _by_kernel(op, plain, device, _once(time, plain, device, engine, touched))
    else:
        own = _once(time, op, device, engine, touched)
    if not getattr(op, "launches", 1.0):
        own = own._replace(total=own.total - own.launch, launch=0.0)
    return own if op.instead is None else _faster(own, _fastest(op.instead, time, device, engine, touched))


def _once(
    time: Callable[[T, Device, Engine, Array], _Raw], op: T, device: Device, engine: Engine, touched: Array
) -> _Raw:
    """`time` of an op, kept: the dense twin of an op that a sparse kernel runs is the baseline's."""
    if isinstance(touched, float) and not touched:
        try:
            return _kept(time, op, device, engine, touched)
        except TypeError:  # an op over arrays has no hash
            pass
    return time(op, device, engine, touched)


@lru_cache(maxsize=8192)
def _kept(time: Callable[..., _Raw], op: Op, device: Device, engine: Engine, touched: Array) -> _Raw:
    return time(op, device, engine, touched)


def _by_kernel(op: Linear | Attention, plain: Linear | Attention, device: Device, dense: _Raw) -> _Raw:
    """Time of the dense op `plain` over the measured speed-up of the kernel of `op`.

    What starts beside a product and was no part of the kernels compared (activations quantised) stays as it is. Never
    below the floor of its bytes and flop, nor its weights at the rate of a dense kernel: kernels were measured on many
    rows, where weights cost nothing.
    """
    pattern, _, library = op.kernel.partition("/")
    found = lookup(device, "sparse", pattern, library)
    told = found.fit.coefficients
    gain = speedup(pattern, shape_of(op), rates_of(hardware(device, math_of(device, _multiplied_in(plain)))), found.fit)
    beside = maximum(dense.launch - told["dense_launch_s"], 0.0)
    hw = hardware(device, math_of(device, _multiplied_in(op)))
    flop, moved = op.flop, _moved_bytes(op)
    memory = dense.memory * (moved / _moved_bytes(plain))
    least = floor_s(flop, moved, hw)
    unmeasured: Array = False
    if isinstance(op, Linear):
        if op.nm24:
            _need_nm24(op, device)
        least = maximum(least, memory * (op.weight_read_bytes / moved))
        # Twice as many rows, or half as many, as the kernel was measured at.
        unmeasured = (op.m > 2.0 * told["to_m"]) | (op.m < 0.5 * told["from_m"])
    return _Raw(
        maximum(beside + (dense.total - beside) / gain, least),
        flop / hw.math_flop_per_s,
        memory,
        0.0,
        dense.launch,
        _divided(dense.found, found),
        f"sparse.{pattern}",
        unmeasured,
        _told(found),
    )


def _moved_bytes(op: Linear | Attention) -> Array:
    """Useful bytes read and written by one call [B]."""
    if isinstance(op, Attention):
        return op.kv_read_bytes + sum(op.qo_bytes) + op.kv_write_bytes
    return op.weight_read_bytes + op.groups * op.m * (op.k * op.fmt.act_bytes + op.n * op.fmt.out_bytes)


def _need_nm24(op: Linear, device: Device) -> None:
    if not device.has(op.fmt.math, sparse24=True):
        raise UnsupportedError(f"{device.name} has no 2:4 tensor cores for {op.fmt.math}")


def _multiplied_in(op: Linear | Attention) -> DType:
    return op.math if isinstance(op, Attention) else op.fmt.math


@lru_cache(maxsize=4096)
def _divided(dense: Found, gain: Found) -> Found:
    """What answers for a dense time over a speed-up: the fit of the latter, the errors of both."""
    fit = replace(gain.fit, residual=dense.fit.residual.over(gain.fit.residual))
    return Found(fit, dense.basis.merge(gain.basis), dense.stands_in or gain.stands_in)


@lru_cache(maxsize=4096)
def _told(found: Found) -> Residual:
    """Error of a speed-up; of another device's or kernel's it holds the spread between sources."""
    residual = found.fit.residual
    return residual.widened(residual.between_source) if found.stands_in else residual


def _faster(first: _Raw, other: _Raw) -> _Raw:
    """Point by point the faster of two ways to compute an op; as sure as the first."""
    wins = first.total < other.total
    times = {n: where(wins, getattr(first, n), getattr(other, n)) for n in ("total", "math", "memory", "launch")}
    return first._replace(**times)


def _product(op: Linear, device: Device, engine: Engine, touched: Array) -> _Raw:
    hw = hardware(device, math_of(device, op.fmt.math), fp16_accumulate=engine.adds_fast(op.fmt))
    hw = _among(hw, touched)
    found = _answer(op, device, engine)
    fit = found.fit
    weight = gathered_bytes(op.weight_read_bytes, op.run_bytes, hw)
    flop = op.flop
    fewer = _below_one(op.flop_keep)
    sparse = op.nm24 or op.gathered is not None or op.expand is not None or fewer
    if op.nm24:
        _need_nm24(op, device)
    n = op.n * op.read_keep if op.gathered == "n" else op.n
    k = op.k * op.read_keep if op.gathered == "k" else op.k
    t = gemm_time(
        op.m,
        n,
        k,
        weight_bytes_per_element=op.fmt.weight_bytes,
        act_bytes=op.fmt.act_bytes,
        out_bytes=op.fmt.out_bytes,
        hw=hw,
        coef=fit.coefficients,
        surface=fit.surface,
        batch=op.groups,
        weight_read_bytes=weight if sparse or op.bytes_per_weight is not None else None,
        flop=flop if sparse else None,
    )
    total = t.total_s if op.expand is None else maximum(t.total_s, expand_s(op.expand, hw) + t.launch_s)
    family = f"gemm.{op.fmt.name}"
    return _Raw(total, t.math_s, t.memory_s, 0.0, t.launch_s, found, family, sparse)


@_time.register
def _attention(op: Attention, device: Device, engine: Engine, touched: Array) -> _Raw:
    return _fastest(op, _attended, device, engine, touched)


def _attended(op: Attention, device: Device, engine: Engine, touched: Array) -> _Raw:
    hw = _among(hardware(device, math_of(device, op.math)), touched)
    phase = "decode-mla" if op.latent else op.phase
    found = _answer(op, device, engine)
    fit = found.fit
    sparse = op.attended is not None or op.bytes_per_token is not None or op.pair_keep is not None
    # An extra pass reads and writes what it says, not what a fitted kernel does.
    changed = sparse or op.overhead or _below_one(op.head_keep)
    flop = op.flop
    # Fewer tokens run in the dense kernel, as a shorter context; smaller ones need a kernel of their own.
    kv_len = op.kv_len
    if op.attended is not None:
        fewer = op.tokens < replace(op, attended=None).tokens
        kv_len = where(fewer, maximum(op.tokens, op.q_len), kv_len)
    gemv = op.bytes_per_token is not None or found.basis is not Basis.CALIBRATED
    t = attention_time(
        phase=phase,
        batch=op.batch,
        q_len=op.q_len,
        kv_len=kv_len,
        n_heads=op.n_heads,
        n_kv_heads=op.n_kv_heads,
        head_dim=op.head_dim,
        window=0 if op.window is None else op.window,
        kv_bytes_per_element=op.kv_element_bytes,
        act_bytes=op.act_bytes,
        hw=hw,
        coef=_decode_tiles(fit.coefficients) if phase != "prefill" and gemv else fit.coefficients,
        surface=fit.surface,
        kv_read_bytes=gathered_bytes(op.kv_read_bytes, op.run_bytes, hw) if changed else None,
        flop=flop if changed or op.head_dim != op.v_head_dim else None,
        io_bytes=sum(op.qo_bytes) + op.kv_write_bytes if op.overhead else None,
        reuse=op.reuse,
    )
    total = t.total_s if op.expand is None else maximum(t.total_s, expand_s(op.expand, hw) + t.launch_s)
    if some(op.tile_bytes):
        # Loads overlap the products as far as in a dense kernel, whose terms combine alike.
        loads2, total2 = tile_s(op.tile_bytes, hw) ** 2, total * total
        total = sqrt(sqrt(total2 * total2 + loads2 * loads2))
    # Decode pads query rows on the tensor cores; what binds it is told from the useful flop.
    math = t.math_s if phase == "prefill" else flop / hw.math_flop_per_s
    return _Raw(total, math, t.memory_s, 0.0, t.launch_s, found, f"attention.{phase}", bool(changed))


def _below_one(share: Array) -> bool:
    return isinstance(share, np.ndarray) or share != 1.0


def _decode_tiles(coefficients: Mapping[str, float]) -> Mapping[str, float]:
    """Coefficients with query tiles of 16 rows, where a dense kernel pads to 64.

    Kernels of KV policies are written for one query, and a fit borrowed from another device was made where
    decode is bound by memory, which leaves its tensor share open.
    """
    return {
        **coefficients,
        "row_tile": min(coefficients["row_tile"], 16.0),
        "math_eff": max(coefficients["math_eff"], 0.5),
    }


@_time.register
def _moe(op: Moe, device: Device, engine: Engine, touched: Array) -> _Raw:
    return _fastest(op, _experts, device, engine, touched)


def _experts(op: Moe, device: Device, engine: Engine, touched: Array) -> _Raw:
    hw = hardware(device, op.fmt.math, fp16_accumulate=engine.adds_fast(op.fmt))
    found = _answer(op, device, engine)
    fit = found.fit
    per = op.fmt.weight_bytes if op.bytes_per_weight is None else op.bytes_per_weight
    t = moe_time(
        op.tokens,
        op.hidden,
        op.intermediate,
        op.top_k,
        op.n_experts,
        tp=op.tp,
        ep=op.ep,
        weight_bytes_per_element=per,
        gated=op.gated,
        hw=hw,
        coef=fit.coefficients,
        surface=fit.surface,
        act_bytes=op.fmt.act_bytes,
        distribution=op.routing,
    )
    return _Raw(t.total_s, t.math_s, t.memory_s, 0.0, t.launch_s, found, "moe")


@_time.register
def _module(op: AttentionModule, device: Device, engine: Engine, touched: Array) -> _Raw:
    own = _block(op, device, _answer(op, device, engine))
    if op.like is None:
        return own
    found = _answer(op.like, device, engine)
    fit = replace(found.fit, coefficients=as_dense(found.fit.coefficients))
    return _faster(_block(op, device, replace(found, fit=fit))._replace(carried=True), own)


def _block(op: AttentionModule, device: Device, found: Found) -> _Raw:
    rates = module_rates(device, op.fmt, op.math)
    t = module_time(op.demand(), rates, found.fit.coefficients, found.fit.surface)
    return _Raw(t.total_s, t.math_s, t.memory_s, 0.0, t.launch_s, found, f"module.{op.kind}.{op.phase}")


@_time.register
def _linear_attention(op: LinearAttention, device: Device, engine: Engine, touched: Array) -> _Raw:
    found = _answer(op, device, engine)
    t = linear_time(linear_demand(op, device), found.fit.coefficients, found.fit.surface)
    family = f"linear_attention.{op.kernel_part}.{op.phase}"
    return _Raw(t.total_s, t.math_s, t.memory_s, 0.0, t.launch_s, found, family)


@_time.register
def _elementwise(op: Elementwise, device: Device, engine: Engine, touched: Array) -> _Raw:
    hw = _among(hardware(device, vector_dtype(device)), touched)
    found = _answer(op, device, engine)
    fit = found.fit
    factor, kernels = engine.unfused(op.kind)
    fused = not some(op.launches)
    if fused:
        factor = 1.0
    t = elementwise_time(
        gathered_bytes(op.read_bytes, op.run_bytes, hw) * factor,
        op.write_bytes * factor,
        kind=_STREAM_KIND.get(op.kind, op.kind),
        hw=hw,
        coef=fit.coefficients,
        surface=fit.surface,
    )
    lanes = op.flop / hw.vector_flop_per_s if hw.vector_flop_per_s else 0.0
    if some(op.select_elements):
        lanes = lanes + select_s(op.select_elements, op.select_rows, hw)
    # Where the host waits for each of them, a kernel's start is part of that wait.
    more = 0.0 if op.host_sync else kernels * op.launches - 1.0
    launch: Array = 0.0 if fused else t.launch_s
    if fused:
        total = maximum(t.memory_s, lanes)
    else:
        total = maximum(t.total_s, lanes + launch) + more * fit.coefficients["t0_s"]
    if hw.cached is None and op.operand in (Operand.KV, Operand.WEIGHT):
        # The kernel before did not leave these in L2, as benchmarks of activations do (shares above 1). Where
        # the caches were measured, the bytes touched in between say where operands come from.
        share = min(fit.coefficients["bw_share"], DEFAULT["bw_share"])
        cold = gathered_bytes(op.read_bytes, op.run_bytes, hw) / (share * hw.hbm_bytes_per_s)
        total = maximum(total, cold + launch)
    return _Raw(total, lanes, t.memory_s, 0.0, launch, found, "elementwise")


@_time.register
def _collective(op: Collective, device: Device, engine: Engine, touched: Array) -> _Raw:
    if not device.links:
        raise UnsupportedError(f"{device.name} has no link to other GPUs in its profile; use tp=1")
    # Between machines there is a network that no profile describes: fits of such groups carry it in their share.
    link, fastest = device.link_for(op.n_ranks) if op.nodes == 1 else device.link, device.link
    hw = hardware(device, vector_dtype(device))
    if link is not fastest:
        share = link.bandwidth_bytes_per_s / fastest.bandwidth_bytes_per_s
        hw = replace(hw, link_bytes_per_s=hw.link_bytes_per_s * share)
    found = _answer(op, device, engine)
    fit = found.fit
    t = collective_time(op.op, op.message_bytes, op.n_ranks, hw=hw, coef=fit.coefficients, surface=fit.surface)
    beyond = op.nodes == 1 and (op.n_ranks > link.max_ranks or link.joins_nodes)
    return _Raw(t.total_s, 0.0, 0.0, t.link_s, t.latency_s, found, "collective", beyond)


@_time.register
def _exchange(op: ExpertExchange, device: Device, engine: Engine, touched: Array) -> _Raw:
    found = _answer(op, device, engine)
    t = exchange_time(exchange_demand(op, device), found.fit.coefficients, found.fit.surface)
    return _Raw(t.total_s, 0.0, 0.0, t.link_s, t.launch_s, found, "alltoall")


@_time.register
def _transfer(op: Transfer, device: Device, engine: Engine, touched: Array) -> _Raw:
    tier = device.tier(op.tier)
    time = transfer_s(op.read_bytes, op.write_bytes, op.chunk_bytes, op.in_flight, tier)
    return _Raw(time, 0.0, 0.0, time, tier.latency_s, _unfitted(device), "link")


@_time.register
def _host(op: HostCompute, device: Device, engine: Engine, touched: Array) -> _Raw:
    time = host_s(op.read_bytes, device.tier(op.tier))
    return _Raw(time, 0.0, time, 0.0, 0.0, _unfitted(device), "host")


LINK_RESIDUAL = Residual(sigma_in=0.2, sigma_cross=0.3, q05=-0.5, q95=0.5)
"""Spread of a time from a datasheet rate and an assumed share; assumed, no copies were fitted [-]."""


@lru_cache(maxsize=256)
def _unfitted(device: Device) -> Found:
    fit = Fit("link", device.name, "any", "datasheet", {}, None, 0, (), "", LINK_RESIDUAL)
    return Found(fit, Basis.DATASHEET, stands_in=False)


def working_set_bytes(ops: Iterable[Op], device: Device) -> Array | None:
    """Bytes that `ops` read in one round [B]; None on a device without a measured cache curve.

    A CPU keeps a kernel's operands in a cache only if all that is read until it runs again fits there.
    """
    if hardware(device, vector_dtype(device)).cached is None:
        return None
    return sum((op.count * a.read_bytes for op in ops for a in op.traffic().access.values()), 0.0)


def _among(hw: Hardware, touched_bytes: Array) -> Hardware:
    """`hw` as a kernel sees it that shares its caches with `touched_bytes`."""
    return hw if hw.cached is None else replace(hw, touched_bytes=touched_bytes)
