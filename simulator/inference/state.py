"""A block that keeps a state as the ops one GPU runs: projections, convolution, recurrence, gated norm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from simulator.base.dtypes import Format
from simulator.model.state import StateSpec
from simulator.ops.linear_attention import LinearAttention
from simulator.ops.ops import ACT_BYTES, Elementwise, Linear, Op
from simulator.ops.part import OpPart
from simulator.ops.step import Step


def block(
    spec: StateSpec, hidden: int, tp: int, fmt: Mapping[str, Format], step: Step, count: float, inner: Sequence[Op]
) -> Iterator[Op]:
    """Ops of `count` blocks with `inner`, their `cores`, between the projections.

    Parameters
    ----------
    fmt : Mapping
        Format of each of the block's matrices.
    """
    product = partial(Linear, m=step.rows, count=count, part=OpPart.PROJECTIONS)
    *before, last = (
        product(role=p.matrix, n=p.n, k=p.k, groups=p.groups, fmt=fmt[p.matrix]) for p in spec.products(hidden, tp)
    )
    yield from before
    yield from inner
    moved = step.rows * last.k * ACT_BYTES
    yield Elementwise(role="state.norm", kind="norm", read_bytes=2.0 * moved, write_bytes=moved, count=count)
    yield last


def cores(spec: StateSpec, tp: int, step: Step, count: float) -> Iterator[Op]:
    """Convolution and recurrence, each of the prompts and of one token of the sequences that decode."""
    conv, scan = spec.convolution(tp), spec.recurrence(tp)
    # Short convolutions alone (LFM2) run the kernel of those before Mamba.
    common: dict[str, Any] = {"kind": "mamba2", "k_heads": 0.0, "v_heads": 0.0, "k_dim": 0.0, "v_dim": 0.0}
    if scan is not None:
        common = {"kind": scan.rule, "k_heads": scan.k_heads, "v_heads": scan.v_heads}
        common |= {"k_dim": float(scan.k_dim), "v_dim": float(scan.v_dim), "state_bytes": scan.element_bytes}
    common |= {"act_bytes": ACT_BYTES, "count": count}
    if conv is not None:
        yield from _phases(step, kernel_part="conv", channels=conv.channels, d_conv=float(conv.taps), **common)
    if scan is not None:
        yield from _phases(step, kernel_part="scan", channels=scan.channels, **common)


def _phases(step: Step, **sizes: Any) -> Iterator[Op]:
    role = f"state.{sizes['kernel_part']}"
    if step.prefills:
        new = {"batch": step.prefill_rows, "q_len": step.prefill_tokens}
        yield LinearAttention(role=f"{role}.prefill", phase="prefill", **new, **sizes)
    if step.decodes:
        new = step.decode_tokens
        several = not isinstance(new, float) or new > 1.0
        phase = "verify" if several else "decode"
        yield LinearAttention(role=role, phase=phase, batch=step.decode_rows, q_len=new, **sizes)
