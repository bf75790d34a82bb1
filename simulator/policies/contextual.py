"""Heads and neurons chosen for each token by a small predictor: Deja Vu and ShadowLLM."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import ClassVar

import numpy as np
from pydantic import Field

from simulator.base.arrays import Array
from simulator.base.dtypes import FORMATS, Format
from simulator.model.layer import FfnSpec, MoeSpec
from simulator.model.spec import ModelSpec
from simulator.ops.ops import Attention, Elementwise, Linear, Op
from simulator.ops.part import OpPart
from simulator.ops.traffic import Operand
from simulator.ops.union import union_density
from simulator.ops.union_law import RELU, Touched, default_law, kind
from simulator.policies.base import Aspect, Compatibility, Context, Policy, Swept
from simulator.policies.common import Fallback, dense_ffn_only, or_dense
from simulator.policies.grammar import POLICIES

_PREDICTOR = FORMATS["fp16"]
_AHEAD = ("attn.all_reduce", "mlp.all_reduce")
"""What look-ahead predictors run beside: the block computes nothing and reads nothing meanwhile."""
_SEARCH = ("attn.core", "attn.o", "attn.all_reduce")
"""What the search of the neurons' scores runs beside: it needs one SM and no bandwidth."""
_TRACKED = 16.0
"""Newest inputs kept, from which K and V of heads that return are computed [tokens]."""
_TRACK_KERNELS = 9.0
"""Small kernels per layer that keep the inputs, find what is missing and copy K and V (``mha_dejavu.py``)."""


def group_keep(keep: float, group: float) -> float:
    """Share of KV heads with at least one kept query head of its `group`, heads picked alike [-]."""
    return 1.0 - (1.0 - keep) ** group


def touched(ctx: Context, tensor: str, keep: Array, *, relu: bool = False) -> Touched:
    """Share of the units of `tensor` that the rows of the step touch: the one rule of which curve answers.

    A trace's own curve, else the default of the tensor and the activation (`simulator.ops.union_law`); `relu` where
    the method runs on a model whose activation was made a ReLU, whatever its config says.
    """
    everything = not isinstance(keep, np.ndarray) and keep == 1.0
    if ctx.trace is not None and not everything:
        table, law = ctx.trace.union(tensor)
    else:
        ffn = ctx.layer.ffn
        own = ffn.expert if isinstance(ffn, MoeSpec) else ffn
        # A layer without a feed-forward block is like the layers that have one.
        activation = "relu" if relu else (own or ctx.model.feed_forwards[-1][0]).activation
        table, law = default_law(kind(tensor, activation), ctx.model.name, activation)
    return Touched(union_density(keep, ctx.step.rows, table), law)


def _groups_alike(ctx: Context) -> bool:
    """Whether the trace measured KV heads of as many query heads as this layer's; another model's may not have."""
    trace = ctx.trace
    return trace is not None and trace.has_union("attn.kv_head") and trace.group_size == ctx.attention.group_size


def kv_heads_kept(ctx: Context, keep: float) -> float:
    """Share of the KV heads one token needs at a share `keep` of its query heads [-]."""
    if ctx.trace is not None and _groups_alike(ctx):
        return ctx.trace.share("attn.kv_head", keep)
    return group_keep(keep, ctx.attention.group_size)


def kv_head_union(ctx: Context, keep: float) -> Touched:
    """Share of the KV heads with a kept query head in any row of the step [-].

    A trace without grouped heads, or with other groups than the model's, gives it through its query heads.
    """
    tensor = "attn.kv_head" if _groups_alike(ctx) else "attn.head"
    return touched(ctx, tensor, kv_heads_kept(ctx, keep))


def sparse_layer(
    op: Op, ctx: Context, *, heads: float, neurons: float, tensor: str = "ffn.down", fallback: Fallback = "none"
) -> Op:
    """`op` with only the kept heads and neurons of a decode step.

    One list of heads and one of neurons serves the whole batch, as the released kernels take it: weights and KV are
    read, and multiply-adds done, for the union over the rows of the step. Rows are gathered: one neuron is a row of
    `hidden` elements, one head `head_dim`. `tensor` names what a neuron's choice is measured on in a trace.
    """
    if isinstance(op, Attention):
        return replace(
            op,
            head_keep=touched(ctx, "attn.head", heads).density,
            kv_head_keep=kv_head_union(ctx, heads).density,
            graph_safe=True,
        )
    if not isinstance(op, Linear):
        return op
    row_bytes = ctx.model.hidden * op.fmt.weight_bytes
    if op.role == "attn.qkv":
        attention = ctx.attention
        q, kv = touched(ctx, "attn.head", heads), kv_head_union(ctx, heads)
        share_q = attention.q_width / (attention.q_width + 2.0 * attention.n_kv_heads * attention.head_dim)
        union = q._replace(density=share_q * q.density + (1.0 - share_q) * kv.density)
        run, axis = attention.head_dim * row_bytes, "n"
    elif op.role == "attn.o":
        union = touched(ctx, "attn.head", heads)
        run, axis = ctx.attention.head_dim * row_bytes, "k"
    elif op.role in ("mlp.gate_up", "mlp.up"):
        union, run, axis = touched(ctx, tensor, neurons), row_bytes, "n"
    elif op.role == "mlp.down":
        union, run, axis = touched(ctx, tensor, neurons), row_bytes, "k"
    else:
        return op
    share = union.density
    sparse = replace(op, read_keep=share, flop_keep=op.flop_keep * share, gathered=axis, run_bytes=run, union=union.law)
    return or_dense(sparse, op, fallback)


def predictor(
    role: str,
    ctx: Context,
    *,
    rank: int,
    outputs: Array,
    count: Array,
    picked: float,
    layers: float = 1.0,
    beside: tuple[str, ...] = (),
    search_beside: tuple[str, ...] = (),
) -> tuple[Op, ...]:
    """Two small products, a top-k and the write of the index list, per step.

    The first matrix (hidden x rank) is replicated on every GPU, the second split: reads
    ``(hidden * rank + rank * outputs / tp) * 2`` bytes. The outputs of each of `layers` are searched apart.
    """
    rows, share = ctx.step.rows, outputs / ctx.tp
    each = rows * share / layers
    return (
        Linear(
            role=f"{role}.in",
            part=OpPart.PREDICTOR,
            m=rows,
            n=rank,
            k=ctx.model.hidden,
            fmt=_PREDICTOR,
            count=count,
            beside=beside,
            overhead=True,
        ),
        Linear(
            role=f"{role}.out",
            part=OpPart.PREDICTOR,
            m=rows,
            n=share,
            k=rank,
            fmt=_PREDICTOR,
            count=count,
            beside=beside,
            overhead=True,
        ),
        Elementwise(
            role=f"{role}.top_k",
            kind="topk",
            read_bytes=each * 2.0,  # the 16-bit scores as the product writes them
            write_bytes=each * picked * 4.0,
            operand=Operand.INDEX,
            select_elements=each,
            select_rows=rows,
            count=count * layers,
            beside=search_beside,
            overhead=True,
        ),
    )


def _track(ctx: Context, count: Array) -> Elementwise:
    """Which of the newest tokens each head lacks, and the copies of what was computed for it."""
    heads = ctx.attention.n_heads / ctx.tp
    moved = ctx.step.rows * heads * _TRACKED * 4.0
    return Elementwise(
        role="kv.track",
        kind="copy",
        read_bytes=moved,
        write_bytes=moved,
        operand=Operand.INDEX,
        count=count * _TRACK_KERNELS,
        overhead=True,
    )


def _needs_ffn(model: ModelSpec) -> str | None:
    experts = "neurons of routed experts are not covered by the method; use a model without experts"
    return dense_ffn_only(model, experts)


def _weights_are_gathered(fmt: Format) -> str | None:
    if fmt.weight_bits < fmt.act_bits and fmt.name != "w4a16":
        return f"no gathering kernel for {fmt.name}"
    return None


@POLICIES.register("dejavu")
class DejaVu(Policy):
    """Per-layer predictors pick the heads and neurons of each token one block ahead [1]_.

    Every layer reads an MLP predictor (hidden x mlp_rank x neurons) and an attention predictor
    (hidden x attn_rank x heads). The prompt and any step with prompt tokens run dense.

    References
    ----------
    .. [1] Liu et al., "Deja Vu", arXiv:2310.17157.
    """

    name: ClassVar[str] = "dejavu"
    family: ClassVar[str] = "contextual activation"
    summary: ClassVar[str] = "per-layer look-ahead predictors pick heads and ReLU neurons"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.WEIGHT_ROWS})
    compatibility: ClassVar[Compatibility] = Compatibility(
        mla=False, prefix_cache=False, chunked_prefill=False, gqa="a KV head is read if any head of its group is kept"
    )
    citation: ClassVar[str] = "Liu et al. 2023, arXiv:2310.17157"
    not_modelled: ClassVar[str] = (
        "accuracy; recomputed K and V of heads that return; overlap of the predictors with anything but all-reduces"
    )
    always_shown: ClassVar[tuple[str, ...]] = ("keep",)
    swept: ClassVar[Swept | None] = ("keep", "share")
    unites: ClassVar[tuple[str, ...]] = ("attn.head", RELU)

    keep: float = Field(0.25, gt=0.0, le=1.0, description="share of neurons kept per token")
    attn_keep: float = Field(0.5, gt=0.0, le=1.0, description="share of heads kept per token")
    mlp_rank: int = Field(1000, ge=1, le=65536, description="width of the MLP predictor")
    attn_rank: int = Field(512, ge=1, le=65536, description="width of the attention predictor")
    fallback: Fallback = Field("none", description="dense products at keep=1 and where they are faster")

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """The method predicts exact zeros of ReLU."""
        for layer in model.layers:
            if isinstance(layer.ffn, FfnSpec) and layer.ffn.activation not in ("relu", "relu2"):
                return (
                    f"Deja Vu predicts the zeros of ReLU; {model.name} uses {layer.ffn.activation}; shadowllm applies"
                )
        return _needs_ffn(model) or _weights_are_gathered(fmt)

    @property
    def _off(self) -> bool:
        return self.fallback == "dense" and self.keep == 1.0 and self.attn_keep == 1.0

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Predictors in front of the first product of each block, gathered products after."""
        if not ctx.decode_only or self._off or op.role == "lm_head":
            return (op,)
        sparse = sparse_layer(op, ctx, heads=self.attn_keep, neurons=self.keep, fallback=self.fallback)
        if op.role == "attn.qkv":
            heads = ctx.attention.n_heads
            return (
                *predictor(
                    "predictor.attn",
                    ctx,
                    rank=self.attn_rank,
                    outputs=heads,
                    count=op.count,
                    picked=self.attn_keep,
                    beside=_AHEAD,
                    search_beside=_AHEAD,
                ),
                sparse,
                _track(ctx, op.count),
            )
        if op.role in ("mlp.gate_up", "mlp.up") and isinstance(ctx.layer.ffn, FfnSpec):
            return (
                *predictor(
                    "predictor.mlp",
                    ctx,
                    rank=self.mlp_rank,
                    outputs=ctx.layer.ffn.intermediate,
                    count=op.count,
                    picked=self.keep,
                    beside=_AHEAD,
                    search_beside=_SEARCH,
                ),
                sparse,
            )
        return (sparse,)


@POLICIES.register("shadowllm")
class ShadowLlm(Policy):
    """One predictor, read after layer 0's attention, picks the heads and neurons of every layer [1]_.

    It is two products of width `rank` with outputs for all heads and all neurons of the model:
    ``(2 * hidden * rank + rank * layers * (heads + neurons) / tp) * 2`` bytes once per step. Layer 0's
    attention runs dense. The prompt and any step with prompt tokens run dense.

    References
    ----------
    .. [1] Akhauri et al., "ShadowLLM", EMNLP 2024, arXiv:2406.16635.
    """

    name: ClassVar[str] = "shadowllm"
    family: ClassVar[str] = "contextual activation"
    summary: ClassVar[str] = "one predictor after layer 0 picks heads and neurons of the whole model"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.WEIGHT_ROWS})
    compatibility: ClassVar[Compatibility] = Compatibility(
        mla=False, prefix_cache=False, chunked_prefill=False, gqa="a KV head is read if any head of its group is kept"
    )
    citation: ClassVar[str] = "Akhauri et al. 2024, arXiv:2406.16635"
    not_modelled: ClassVar[str] = "accuracy; recomputed K and V of heads that return"
    always_shown: ClassVar[tuple[str, ...]] = ("keep",)
    swept: ClassVar[Swept | None] = ("keep", "share")
    unites: ClassVar[tuple[str, ...]] = ("attn.head", "ffn.down", RELU)

    keep: float = Field(0.5, gt=0.0, le=1.0, description="share of heads and of neurons kept per token")
    attn_keep: float | None = Field(None, gt=0.0, le=1.0, description="share of heads; default keep")
    rank: int = Field(2048, ge=1, le=65536, description="width of both predictors")
    fallback: Fallback = Field("none", description="dense products at keep=1 and where they are faster")

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """Any model of ordinary heads and neurons."""
        return _needs_ffn(model) or _weights_are_gathered(fmt)

    @property
    def _heads(self) -> float:
        return self.keep if self.attn_keep is None else self.attn_keep

    @property
    def _off(self) -> bool:
        return self.fallback == "dense" and self.keep == 1.0 and self._heads == 1.0

    def layer_key(self, index: int, n_layers: int) -> Hashable:
        """Layer 0 carries the predictor and a dense attention."""
        return index == 0 and not self._off

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Dense attention and the predictor in layer 0, gathered products everywhere else."""
        if not ctx.decode_only or self._off or op.role == "lm_head":
            return (op,)
        if ctx.index == 0:
            if op.role.startswith("attn."):
                return (op,)
            if op.role in ("mlp.gate_up", "mlp.up"):
                sparse = sparse_layer(op, ctx, heads=1.0, neurons=self.keep, fallback=self.fallback)
                return (*self._predictors(ctx), sparse)
        sparse = sparse_layer(op, ctx, heads=self._heads, neurons=self.keep, fallback=self.fallback)
        return (sparse, _track(ctx, op.count)) if op.role == "attn.qkv" else (sparse,)

    def _predictors(self, ctx: Context) -> tuple[Op, ...]:
        layers = float(ctx.model.n_layers)
        heads = sum(layers * attention.n_heads for attention, layers in ctx.model.attentions)
        neurons = sum(layer.ffn.intermediate for layer in ctx.model.layers if isinstance(layer.ffn, FfnSpec))
        return (
            *predictor(
                "predictor.attn", ctx, rank=self.rank, outputs=heads, count=1.0, picked=self._heads, layers=layers
            ),
            *predictor(
                "predictor.mlp",
                ctx,
                rank=self.rank,
                outputs=neurons,
                count=1.0,
                picked=self.keep,
                layers=layers,
                search_beside=_SEARCH,
            ),
        )
