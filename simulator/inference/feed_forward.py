"""Feed-forward blocks as the ops one GPU runs: dense ones, and mixtures of experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Literal, NamedTuple

from simulator.base.dtypes import Format
from simulator.model.formats import LATENT
from simulator.model.layer import FfnSpec, MoeSpec
from simulator.ops.expert_exchange import ExpertExchange
from simulator.ops.ops import ACT_BYTES, Collective, Elementwise, Linear, Moe, Op
from simulator.ops.part import OpPart
from simulator.ops.step import Step

_neurons = partial(Linear, part=OpPart.FFN)


class Cut(NamedTuple):
    """How GPUs share a layer: `tp` each block, `dp` of those side by side, `ep` groups of all split the experts.

    `routed`: tokens travel to the ranks of their experts alone, and not to all.
    """

    tp: int
    dp: int
    ep: int
    routed: bool


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
    moe: MoeSpec, hidden: int, cut: Cut, fmt: Mapping[str, Format], half: Format, step: Step, count: float
) -> Iterator[Op]:
    """Router, routed experts between the matrices that narrow and widen, shared experts.

    With attention data parallel the tokens of all ranks travel to the experts and their results back.

    Parameters
    ----------
    cut : Cut
        How the ranks share the layer.
    half : Format
        Format of the router.
    """
    tp, dp, ep, _ = cut
    every_token = partial(_neurons, m=step.rows, count=count)
    yield every_token(role="moe.router", n=moe.n_experts, k=hidden, fmt=half)
    narrower, wider = LATENT
    if moe.latent is not None:
        # Engines hold both whole on every GPU.
        yield every_token(role=narrower, n=moe.latent, k=hidden, fmt=fmt[narrower])
    width, experts_fmt = moe.latent or hidden, fmt["moe.experts"]
    if dp > 1:
        yield _sent("dispatch", moe, width, cut, experts_fmt.act_bytes, step, count)
    yield Moe(
        role="moe.experts",
        tokens=step.routed_rows,
        hidden=width,
        intermediate=moe.expert.intermediate,
        top_k=moe.top_k,
        n_experts=moe.n_experts,
        gated=moe.expert.gated,
        fmt=experts_fmt,
        tp=tp * dp // ep,
        ep=ep,
        count=count,
    )
    if dp > 1:
        yield _sent("combine", moe, width, cut, ACT_BYTES, step, count)
    if moe.latent is not None:
        yield every_token(role=wider, n=hidden, k=moe.latent, fmt=fmt[wider])
    if moe.shared is not None:
        yield from dense(moe.shared, hidden, tp, fmt, step, count, "moe.shared")


def _sent(
    op: Literal["dispatch", "combine"],
    moe: MoeSpec,
    width: int,
    cut: Cut,
    element_bytes: float,
    step: Step,
    count: float,
) -> Op:
    """Tokens to their experts or results back, or with no all-to-all of the engine those of all ranks to every rank.

    Decoding takes low-latency kernels, which send a copy for every expert; a step with prompts one for every rank.
    """
    tp, dp, _, routed = cut
    ranks, role = tp * dp, f"moe.{op}"
    if not routed:
        # Every rank's tokens are padded to the fullest one's.
        whole = step.rows * dp * width * ACT_BYTES
        gathers = "all_gather" if op == "dispatch" else "reduce_scatter"
        return Collective(role=role, op=gathers, n_ranks=ranks, count=count, message_bytes=whole)
    return ExpertExchange(
        role=role,
        op=op,
        tokens=step.rows / tp,
        hidden=width,
        top_k=moe.top_k,
        n_ranks=ranks,
        element_bytes=element_bytes,
        per_expert=not step.prefills,
        count=count,
    )
