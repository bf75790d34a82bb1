"""A gated delta net as the ops one GPU runs: projections, convolution, recurrence, gated norm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from simulator.base.dtypes import Format
from simulator.model.delta_net import DeltaNetSpec
from simulator.ops.linear_attention import LinearAttention
from simulator.ops.ops import ACT_BYTES, Elementwise, Linear, Op
from simulator.ops.part import OpPart
from simulator.ops.step import Step


def block(
    net: DeltaNetSpec, hidden: int, tp: int, fmt: Mapping[str, Format], step: Step, count: float, inner: Sequence[Op]
) -> Iterator[Op]:
    """Ops of `count` blocks with `inner`, their `cores`, between the projections.

    Parameters
    ----------
    fmt : Mapping
        Format of each of the block's matrices.
    """
    projection = partial(Linear, m=step.rows, count=count, part=OpPart.PROJECTIONS)
    values = net.v_width / tp
    yield projection(role="state.in", n=net.channels / tp + values, k=hidden, fmt=fmt["state.in"])
    yield projection(role="state.gates", n=2.0 * net.v_heads / tp, k=hidden, fmt=fmt["state.gates"])
    yield from inner
    moved = step.rows * values * ACT_BYTES
    yield Elementwise(role="state.norm", kind="norm", read_bytes=2.0 * moved, write_bytes=moved, count=count)
    yield projection(role="state.out", n=hidden, k=values, fmt=fmt["state.out"])


def cores(net: DeltaNetSpec, tp: int, step: Step, count: float) -> Iterator[Op]:
    """Convolution and recurrence, each of the prompts and of one token of the sequences that decode."""
    sizes = {
        "k_heads": net.k_heads / tp,
        "v_heads": net.v_heads / tp,
        "k_dim": float(net.k_dim),
        "v_dim": float(net.v_dim),
        "channels": net.channels / tp,
        "d_conv": float(net.taps),
        "act_bytes": ACT_BYTES,
        "state_bytes": net.state_element_bytes,
        "count": count,
    }
    for part in ("conv", "scan"):
        common = {"kind": "gdn", "kernel_part": part, **sizes}
        if step.prefills:
            new = {"batch": step.prefill_rows, "q_len": step.prefill_tokens}
            yield LinearAttention(role=f"state.{part}.prefill", phase="prefill", **new, **common)
        if step.decodes:
            yield LinearAttention(role=f"state.{part}", phase="decode", batch=step.decode_rows, q_len=1.0, **common)
