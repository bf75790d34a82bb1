"""The dense op that a policy rewrote, and whether an op is one."""

from __future__ import annotations

from dataclasses import replace
from typing import overload

from simulator.base.dtypes import get_format
from simulator.ops.ops import STREAM, Attention, Linear


@overload
def dense_of(op: Linear) -> Linear: ...
@overload
def dense_of(op: Attention) -> Attention: ...
def dense_of(op: Linear | Attention) -> Linear | Attention:
    """The product of the whole weight in its dense format, or causal attention to a whole dense cache (or window)."""
    if isinstance(op, Attention):
        return replace(
            op,
            attended=None,
            bytes_per_token=None,
            head_keep=1.0,
            kv_head_keep=1.0,
            pair_keep=None,
            run_bytes=STREAM,
            expand=None,
            tile_bytes=0.0,
            instead=None,
            launches=1.0,
            kernel="",
            overhead=False,
        )
    return replace(
        op,
        fmt=get_format(op.fmt.name),
        read_keep=1.0,
        flop_keep=1.0,
        gathered=None,
        run_bytes=STREAM,
        bytes_per_weight=None,
        nm24=False,
        expand=None,
        instead=None,
        launches=1.0,
        kernel="",
        vector=1.0,
        whole=0.0,
    )


def is_dense(op: Linear | Attention) -> bool:
    """Whether no policy has rewritten `op` yet."""
    if isinstance(op, Attention):
        told = (op.attended, op.bytes_per_token, op.pair_keep, op.expand)
        shares = (op.head_keep, op.kv_head_keep)
    else:
        told, shares = (op.bytes_per_weight, op.expand, op.gathered), (op.read_keep, op.flop_keep)
    return all(x is None for x in told) and all(isinstance(x, float | int) and x == 1.0 for x in shares)
