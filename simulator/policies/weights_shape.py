"""Weights with another shape: sliced widths, narrower FFNs, or many weights sharing a small table."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from simulator.base.dtypes import Format
from simulator.model.spec import ModelSpec
from simulator.ops.ops import Collective, Elementwise, Linear, Moe, Op
from simulator.policies.base import Aspect, Compatibility, Context, Policy, Swept
from simulator.policies.common import ByDepth, dense_ffn_only
from simulator.policies.grammar import POLICIES
from simulator.policies.weights import is_weight

_INTO_HIDDEN = ("attn.o", "mlp.down")
_FROM_HIDDEN = ("attn.qkv", "mlp.gate_up", "mlp.up", "lm_head")
_AT_HIDDEN = ("norm", "embed", "attn.all_reduce", "mlp.all_reduce")


@POLICIES.register("slicegpt")
class SliceGpt(Policy):
    """The residual stream is rotated and cut to ``keep`` of its width; every matrix on it shrinks on one side [1]_.

    Two shortcut matrices of (keep hidden)^2 per layer carry the residual from one rotation to the next: they are
    the overhead. KV, heads and FFN width stay.

    References
    ----------
    .. [1] Ashkboos et al., "SliceGPT", arXiv:2401.15024.
    """

    name: ClassVar[str] = "slicegpt"
    family: ClassVar[str] = "weights"
    summary: ClassVar[str] = "hidden width cut after a rotation, dense and smaller"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.WEIGHT_SHAPE})
    compatibility: ClassVar[Compatibility] = Compatibility(mla=False)
    citation: ClassVar[str] = "Ashkboos et al. 2024, arXiv:2401.15024"
    not_modelled: ClassVar[str] = "accuracy; the embedding table keeps its width in memory"
    always_shown: ClassVar[tuple[str, ...]] = ("keep",)
    swept: ClassVar[Swept | None] = ("keep", "share")

    keep: float = Field(0.75, gt=0.0, le=1.0, description="share of the hidden width kept")

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """Rotations commute with an RMS norm in front of ordinary attention and FFN."""
        if model.is_moe:
            return "published for dense models only"
        if model.n_state_layers or any(layer.streams > 1 for layer in model.layers):
            return "published for layers of attention and FFN alone; what keeps a state is not covered"
        return None

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Narrower matrices, and the shortcut beside each block."""
        if isinstance(op, Linear) and op.role in _FROM_HIDDEN:
            return (replace(op, k=op.k * self.keep),)
        if isinstance(op, Linear) and op.role in _INTO_HIDDEN:
            width = ctx.model.hidden * self.keep
            shortcut = Linear(
                role=f"{op.role}.shortcut", m=op.m, n=width, k=width / ctx.tp, fmt=op.fmt, count=op.count, overhead=True
            )
            return (replace(op, n=op.n * self.keep), shortcut)
        if isinstance(op, Elementwise) and op.role.startswith(_AT_HIDDEN):
            read, write = op.read_bytes * self.keep, op.write_bytes * self.keep
            return (replace(op, read_bytes=read, write_bytes=write),)
        if isinstance(op, Collective) and op.role in _AT_HIDDEN:
            return (replace(op, message_bytes=op.message_bytes * self.keep),)
        return (op,)


@POLICIES.register("cfsp")
class Cfsp(ByDepth):
    """FFN neurons removed, more in some layers than in others: dense and narrower [1]_.

    ``depth=0.9:0.7`` gives the share kept from the first to the last layer `keep` is its mean.

    References
    ----------
    .. [1] Wang et al., "CFSP", arXiv:2409.13199.
    """

    name: ClassVar[str] = "cfsp"
    family: ClassVar[str] = "weights"
    summary: ClassVar[str] = "structured pruning of FFN neurons, budget by layer"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.WEIGHT_SHAPE})
    citation: ClassVar[str] = "Wang et al. 2024, arXiv:2409.13199"
    not_modelled: ClassVar[str] = "accuracy and its recovery"

    keep: float = Field(0.8, gt=0.0, le=1.0, description="share of FFN neurons kept")
    depth: str = Field("", max_length=200, description="shares kept from first to last layer, a:b:...")

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """Neurons of ordinary FFNs."""
        return dense_ffn_only(model, "published for dense FFNs only, not for experts")

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """A narrower FFN."""
        keep = self._keep(ctx)
        if isinstance(op, Linear) and op.role in ("mlp.gate_up", "mlp.up"):
            return (replace(op, n=op.n * keep),)
        if isinstance(op, Linear) and op.role == "mlp.down":
            return (replace(op, k=op.k * keep),)
        if isinstance(op, Elementwise) and op.role == "mlp.act":
            read, write = op.read_bytes * keep, op.write_bytes * keep
            return (replace(op, read_bytes=read, write_bytes=write),)
        return (op,)


@POLICIES.register("rps")
class Rps(Policy):
    """All weights of a matrix are chunks of one table of ``keep`` of its size, placed by a hash [1]_.

    Memory holds the table; the product is dense and reads a chunk of `chunk` elements at a time.

    References
    ----------
    .. [1] Desai and Shrivastava, "STABLE-RPS", arXiv:2407.17614 (ROAST, arXiv:2207.10702).
    """

    name: ClassVar[str] = "rps"
    family: ClassVar[str] = "weights"
    summary: ClassVar[str] = "weights shared out of a small table by a hash (ROAST, STABLE-RPS)"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.WEIGHT_SHAPE})
    citation: ClassVar[str] = "Desai et al. 2022, arXiv:2207.10702"
    not_modelled: ClassVar[str] = "accuracy; a table that stays in the last-level cache"
    always_shown: ClassVar[tuple[str, ...]] = ("keep",)

    keep: float = Field(0.1, gt=0.0, le=1.0, description="table over weights")
    chunk: int = Field(256, ge=1, le=1_000_000, description="consecutive elements per chunk")

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Dense work on gathered chunks."""
        if not is_weight(op) or isinstance(op, Moe) or not isinstance(op, Linear):
            return (op,)
        run = self.chunk * op.fmt.weight_bytes
        return (replace(op, run_bytes=run, shared=self.keep),)
