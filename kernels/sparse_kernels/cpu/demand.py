"""Ops of numpy calls, from `simulator.ops.ops`: sizes come from the case, run lengths from the layout."""

from __future__ import annotations

from simulator.base.dtypes import FORMATS, DType
from simulator.ops.ops import STREAM, Attention, Elementwise, Linear
from simulator.ops.traffic import Operand

FP32 = FORMATS["fp32"]
ELEMENT_BYTES = 4.0


def product(role: str, m: float, n: float, k: float) -> Linear:
    """Dense [m, k] x [k, n] on a contiguous matrix."""
    return Linear(role=role, m=m, n=n, k=k, fmt=FP32)


def gather(
    role: str, rows: float, row_bytes: float, operand: Operand = Operand.WEIGHT, count: float = 1.0
) -> Elementwise:
    """`count` calls of ``numpy.take``, each of `rows` rows: read in runs of one row, written in a stream."""
    moved = rows * row_bytes
    return Elementwise(
        role=role,
        kind="unary",
        read_bytes=moved,
        write_bytes=moved,
        run_bytes=row_bytes,
        operand=operand,
        count=count,
        overhead=True,
    )


def stream(role: str, read_bytes: float, write_bytes: float, kind: str = "unary", count: float = 1.0) -> Elementwise:
    """`count` passes, each over contiguous arrays."""
    return Elementwise(
        role=role, kind=kind, read_bytes=read_bytes, write_bytes=write_bytes, run_bytes=STREAM, count=count
    )


def decode_attention(batch: float, tokens: float, hq: float, hk: float, d: float) -> Attention:
    """One query per sequence over `tokens` contiguous tokens, float32."""
    return Attention(
        role="attn",
        phase="decode",
        batch=batch,
        q_len=1.0,
        kv_len=tokens,
        n_heads=hq,
        n_kv_heads=hk,
        head_dim=d,
        v_head_dim=d,
        math=DType.FP32,
        kv_element_bytes=ELEMENT_BYTES,
    )
