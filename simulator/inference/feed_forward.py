"""Feed-forward blocks as the ops one GPU runs: dense ones, and mixtures of experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from simulator.base.dtypes import Format
from simulator.model.formats import LATENT
from simulator.model.layer import FfnSpec, MoeSpec
from simulator.ops.ops import ACT_BYTES, Elementwise, Linear, Moe, Op
from simulator.ops.part import OpPart
from simulator.ops.step import Step

_neurons = partial(Linear, part=OpPart.FFN)


def dense(
    ffn: FfnSpec, hidden: int, tp: int, fmt: Mapping[str, Format], step: Step, count: float, role: str = "mlp"
) -> Iterator[Op]:
    """Up (with gate), activation, down; `fmt` has the format of each matrix."""
    width = ffn.intermediate / tp
    up, down = ffn.matrices(role)
    yield _neurons(role=up, m=step.rows, n=ffn.n_up * width, k=hidden, fmt=fmt[up], count=count)
    rows = step.rows * width * ACT_BYTES
    yield Elementwise(
        role=f"{role}.act",
        part=OpPart.FFN,
        kind="activation",
        read_bytes=rows * ffn.n_up,
        write_bytes=rows,
        count=count,
    )
    yield _neurons(role=down, m=step.rows, n=hidden, k=width, fmt=fmt[down], count=count)


def experts(
    moe: MoeSpec, hidden: int, tp: int, ep: int, fmt: Mapping[str, Format], half: Format, step: Step, count: float
) -> Iterator[Op]:
    """Router, routed experts between the matrices that narrow and widen, shared experts.

    Parameters
    ----------
    half : Format
        Format of the router.
    """
    every_token = partial(_neurons, m=step.rows, count=count)
    yield every_token(role="moe.router", n=moe.n_experts, k=hidden, fmt=half)
    narrower, wider = LATENT
    if moe.latent is not None:
        # Engines hold both whole on every GPU.
        yield every_token(role=narrower, n=moe.latent, k=hidden, fmt=fmt[narrower])
    yield Moe(
        role="moe.experts",
        tokens=step.rows,
        hidden=moe.latent or hidden,
        intermediate=moe.expert.intermediate,
        top_k=moe.top_k,
        n_experts=moe.n_experts,
        gated=moe.expert.gated,
        fmt=fmt["moe.experts"],
        tp=tp // ep,
        ep=ep,
        count=count,
    )
    if moe.latent is not None:
        yield every_token(role=wider, n=hidden, k=moe.latent, fmt=fmt[wider])
    if moe.shared is not None:
        yield from dense(moe.shared, hidden, tp, fmt, step, count, "moe.shared")
