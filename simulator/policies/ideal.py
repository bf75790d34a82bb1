"""The bound on any kernel of a policy: its bytes and its flop at the efficiency of the dense model's kernels."""

from __future__ import annotations

from dataclasses import replace

from simulator.base.dtypes import DType
from simulator.ops.module import AttentionModule
from simulator.ops.ops import STREAM, Attention, Elementwise, Linear, Moe, Op

NARROW = (DType.INT8, DType.FP8, DType.FP4)
"""Formats a policy multiplies in because they are faster; any other than the dense one is its kernel's."""


def ideal(ops: tuple[Op, ...], dense: Op) -> tuple[Op, ...]:
    """`ops`, which a policy runs in place of `dense`, without what only their kernels cost.

    Left are the bytes read and written once and the multiply-adds, both at the rate of the dense kernel, and one start
    where the dense model has one. Gone are unpacking, searches, short runs, tiles loaded per query, results handed from
    kernel to kernel, starts of further kernels and waits of the host. Where the kernel itself is faster, it counts.
    Copies between memories and work of the host are no kernel's and stay.
    """
    if len(ops) == 1 and ops[0] is dense:
        return ops
    out: list[Op] = []
    started = False
    for op in ops:
        if isinstance(op, Elementwise) and op.handed:
            continue
        first = not op.overhead and not started
        started = started or first
        out.append(op if op is dense else _bare(op, dense, 1.0 if first else 0.0))
    return tuple(out)


def _bare(op: Op, dense: Op, launches: float) -> Op:
    alone = {"graph_safe": True, "host_sync": 0.0}
    if isinstance(op, Linear):
        fmt = dense.fmt if isinstance(dense, Linear) and op.fmt.math not in NARROW else op.fmt
        per = op.fmt.weight_bytes if op.bytes_per_weight is None else op.bytes_per_weight
        bare = replace(op, fmt=fmt, bytes_per_weight=per, run_bytes=STREAM, expand=None, nm24=False, kernel="")
        return replace(bare, launches=launches, instead=op, **alone)
    if isinstance(op, Moe):
        fmt = dense.fmt if isinstance(dense, Moe) and op.fmt.math not in NARROW else op.fmt
        per = op.fmt.weight_bytes if op.bytes_per_weight is None else op.bytes_per_weight
        return replace(op, fmt=fmt, bytes_per_weight=per, instead=op, **alone)
    if isinstance(op, Attention):
        bare = replace(op, run_bytes=STREAM, expand=None, tile_bytes=0.0, kernel="")
        return replace(bare, launches=launches, instead=op, **alone)
    if isinstance(op, AttentionModule) and isinstance(dense, AttentionModule):
        return replace(op, like=dense)
    if isinstance(op, Elementwise) and op.overhead:
        return replace(op, run_bytes=STREAM, flop=0.0, select_elements=0.0, launches=0.0, **alone)
    return op
