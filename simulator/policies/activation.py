"""Activations that are zero, or near it, skip the weights they would meet: CATS, TEAL, ReLU models, Polar."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from simulator.base.arrays import Array
from simulator.base.dtypes import Format
from simulator.model.layer import FfnSpec
from simulator.model.spec import ModelSpec
from simulator.ops.ops import Attention, Elementwise, Linear, Op
from simulator.ops.part import OpPart
from simulator.ops.traffic import Operand
from simulator.ops.union_law import RELU, Touched
from simulator.policies.base import Aspect, Compatibility, Context, Policy, Swept, alias
from simulator.policies.common import Fallback, dense_ffn_only, only, or_dense
from simulator.policies.contextual import predictor, touched
from simulator.policies.grammar import POLICIES

_INPUT = {
    "attn.qkv": "attn.in",
    "attn.o": "attn.o",
    "mlp.gate_up": "ffn.in",
    "mlp.up": "ffn.in",
    "mlp.down": "ffn.down",
}
"""Tensor of a trace that is the input of a matrix."""
_FALLBACK = "dense products at keep=1 and where they are faster"
_ONE_TOKEN = Compatibility(chunked_prefill=False, gqa="no change")


WAITING_KERNELS = {"index": 7.0, "split": 8.0}
"""Kernels of CATS's ablation after the host has read how many neurons are left: the rest of ``nonzero`` (3), the gate's
values, two gathered products, zeros under the second; one product more where up is not fused with the gate (flash_gemv,
``flag_gemv_gemv_fuse_dejavu`` and ``flag_gemv_gemv_dejavu``)."""


def _threshold(op: Op, ctx: Context, width: Array) -> Elementwise:
    """Magnitudes of one vector per row against a threshold; the survivors' indices."""
    bytes_ = ctx.step.rows * width * 2.0
    return Elementwise(
        role="mlp.mask", kind="unary", read_bytes=bytes_, write_bytes=bytes_, count=op.count, overhead=True
    )


def _ordinary_ffn(model: ModelSpec) -> str | None:
    return dense_ffn_only(model, "the method thresholds a dense FFN; experts are not covered")


@POLICIES.register("cats")
class Cats(Policy):
    """The gate is computed densely; only neurons whose |SiLU(x W_gate)| passes a threshold read up and down [1]_.

    Bytes of an FFN per token ``(1 + 2 keep) / 3`` of dense; rows of `hidden` elements are gathered. No predictor.
    Rows of a batch unite. The prompt runs dense. ``kernel=flags`` is the paper's; in its ablation the survivors are
    listed first, for which the host waits, and up is multiplied with the gate in its kernel (``index``) or in one of
    its own (``split``). ``kernel=operator`` multiplies a dense gate, then live outputs of up
    and inputs of down [2]_.

    References
    ----------
    .. [1] Lee et al., "CATS", arXiv:2404.08763.
    .. [2] Song et al., "ProSparse", arXiv:2402.13516, github.com/Raincleared-Song/sparse_gpu_operator.
    """

    name: ClassVar[str] = "cats"
    family: ClassVar[str] = "contextual activation"
    summary: ClassVar[str] = "dense gate, thresholded up and down projections"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.WEIGHT_ROWS})
    compatibility: ClassVar[Compatibility] = _ONE_TOKEN
    citation: ClassVar[str] = "Lee et al. 2024, arXiv:2404.08763"
    not_modelled: ClassVar[str] = "accuracy; atomic additions of the down projection"
    always_shown: ClassVar[tuple[str, ...]] = ("keep",)
    swept: ClassVar[Swept | None] = ("keep", "share")
    unites: ClassVar[tuple[str, ...]] = ("ffn.gate",)

    keep: float = Field(0.5, gt=0.0, le=1.0, description="share of neurons kept per token")
    fallback: Fallback = Field("none", description=_FALLBACK)
    kernel: Literal["flags", "index", "split", "operator"] = Field(
        "flags", description="the paper's, one of its ablation, or ProSparse's two operators"
    )

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """It needs a gate."""
        if any(isinstance(x.ffn, FfnSpec) and not x.ffn.gated for x in model.layers):
            return f"the FFN of {model.name} has no gate to threshold; dejavu or relu apply"
        return _ordinary_ffn(model)

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Half of gate_up stays whole, the other half and down are gathered."""
        if not ctx.decode_only or not isinstance(op, Linear) or _all_kept(self.fallback, self.keep):
            return (op,)
        union = touched(ctx, "ffn.gate", self.keep, relu=self.kernel == "operator")
        if self.kernel == "operator":
            return self._by_operators(op, ctx, union)
        kernel = "CATS/Triton" if self.kernel == "flags" else ""
        if op.role == "mlp.gate_up":
            share = union._replace(density=0.5 + 0.5 * union.density)
            up = gathered(op, share, ctx, "n", self.fallback, kernel=kernel, whole=0.5)
            if up.kernel:  # its timings contain the threshold
                return (up,)
            mask = _threshold(op, ctx, op.n / 2.0)
            return (up, mask) if self.kernel == "flags" else (up, mask, self._listed(op, ctx, union.density))
        if op.role == "mlp.down":
            return (gathered(op, union, ctx, "k", self.fallback, kernel=kernel),)
        return (op,)

    def _by_operators(self, op: Linear, ctx: Context, union: Touched) -> tuple[Op, ...]:
        """Gate as a dense product of its own; up skips outputs and down inputs, each in an operator of ProSparse."""
        if op.role == "mlp.gate_up":
            gate, up = (replace(op, role=role, n=op.n / 2.0) for role in ("mlp.gate", "mlp.up"))
            return gate, gathered(up, union, ctx, "n", self.fallback, kernel="ProSparse/up-proj")
        if op.role == "mlp.down":
            return (gathered(op, union, ctx, "k", self.fallback, kernel="ProSparse/down-proj"),)
        return (op,)

    def _listed(self, op: Linear, ctx: Context, union: Array) -> Elementwise:
        """Survivors' 64-bit indices and gate values; what follows is submitted after a wait."""
        neurons, act = op.n / 2.0, op.fmt.act_bytes
        return Elementwise(
            role="mlp.index",
            kind="unary",
            read_bytes=neurons * (1.0 + act * union),
            write_bytes=neurons * union * (16.0 + act),
            operand=Operand.INDEX,
            launches=WAITING_KERNELS[self.kernel],
            host_sync=1.0,
            count=op.count,
            overhead=True,
        )


def _all_kept(fallback: Fallback, keep: float) -> bool:
    return fallback == "dense" and keep == 1.0


def gathered(
    op: Linear,
    union: Touched,
    ctx: Context,
    axis: Literal["n", "k"],
    fallback: Fallback = "none",
    run: float = 0.0,
    kernel: str = "",
    whole: float = 0.0,
) -> Linear:
    """`op` over `union` of its neurons, picked one by one along `axis` in runs of `run` bytes by `kernel`.

    A run is by default a row of `hidden` elements [B]; of the neurons, `whole` is read whatever is picked [-].
    """
    sparse = replace(
        op,
        read_keep=op.read_keep * union.density,
        flop_keep=op.flop_keep * union.density,
        gathered=axis,
        run_bytes=run or ctx.model.hidden * op.fmt.weight_bytes,
        kernel=kernel and only(op, kernel),
        whole=whole,
        union=union.law,
    )
    return or_dense(sparse, op, fallback)


_prosparse = POLICIES.register("prosparse")(
    alias(
        Cats,
        "prosparse",
        "a ReLU-gated model at 89 % sparsity: exact gate, skipped up and down",
        "Song et al. 2024, arXiv:2402.13516",
        keep=0.11,
        kernel="operator",
    )
)
_prosparse.unites = (RELU,)


@POLICIES.register("teal")
class Teal(Policy):
    """Every linear layer skips the columns that meet a small input: magnitude thresholds per matrix [1]_.

    Weight bytes ``sum params (union of keep) b``, stored by column; one program reads `block` rows of a live
    column. The mask test is inside the kernel. The output matrix stays dense; the prompt runs dense. The released
    kernel takes one row, more run as a dense product: with ``fallback=dense`` each product runs the faster way. With
    `rank` r the skipped inputs pass two factors of rank ``r min(n, k)`` instead of none: two more products [2]_.

    References
    ----------
    .. [1] Liu et al., "TEAL", arXiv:2408.14690.
    .. [2] Zhang et al., "R-Sparse", arXiv:2504.19449.
    """

    name: ClassVar[str] = "teal"
    family: ClassVar[str] = "contextual activation"
    summary: ClassVar[str] = "inputs of every linear layer thresholded by magnitude"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.WEIGHT_ROWS})
    compatibility: ClassVar[Compatibility] = _ONE_TOKEN
    citation: ClassVar[str] = "Liu et al. 2024, arXiv:2408.14690"
    not_modelled: ClassVar[str] = "accuracy; atomic additions of split-K"
    always_shown: ClassVar[tuple[str, ...]] = ("keep",)
    swept: ClassVar[Swept | None] = ("keep", "share")
    unites: ClassVar[tuple[str, ...]] = ("attn.in", "attn.o", "ffn.in", "ffn.down", RELU)

    keep: float = Field(0.5, gt=0.0, le=1.0, description="share of inputs kept, where not told")
    qkv_keep: float | None = Field(None, gt=0.0, le=1.0, description="inputs of Q, K, V")
    o_keep: float | None = Field(None, gt=0.0, le=1.0, description="inputs of the output projection")
    up_keep: float | None = Field(None, gt=0.0, le=1.0, description="inputs of gate and up")
    down_keep: float | None = Field(None, gt=0.0, le=1.0, description="inputs of down")
    block: int = Field(512, ge=8, le=4096, description="rows of a column one program reads, tuned up to 512")
    rank: float = Field(0.0, ge=0.0, le=1.0, description="rank of the skipped inputs' factors over a matrix's own")
    fallback: Fallback = Field("dense", description=_FALLBACK)

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """Ordinary matrices of at least 8 bits."""
        if model.is_moe:
            return "no published kernel for fused experts"
        return None

    def _shares(self) -> dict[str, float | None]:
        up = self.up_keep
        return {
            "attn.qkv": self.qkv_keep,
            "attn.o": self.o_keep,
            "mlp.gate_up": up,
            "mlp.up": up,
            "mlp.down": self.down_keep,
        }

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Live columns only."""
        shares = self._shares()
        if not ctx.decode_only or not isinstance(op, Linear) or op.role not in shares:
            return (op,)
        own = shares[op.role]
        keep = self.keep if own is None else own
        if _all_kept(self.fallback, keep):
            return (op,)
        union = touched(ctx, _INPUT[op.role], keep)
        sparse = gathered(op, union, ctx, "k", self.fallback, self.block * op.fmt.weight_bytes)
        return (sparse, *self._factors(op)) if self.rank else (sparse,)

    def _factors(self, op: Linear) -> tuple[Linear, Linear]:
        rank = self.rank * min(float(op.n), float(op.k))
        low = replace(op, part=OpPart.PREDICTOR, overhead=True)
        return replace(low, role=f"{op.role}.low_in", n=rank), replace(low, role=f"{op.role}.low_out", k=rank)


for _name, _summary, _citation, _defaults in (
    (
        "wina",
        "inputs times the norm of their column thresholded, in every linear layer",
        "Chen et al. 2025, arXiv:2505.19427",
        {},
    ),
    (
        "r_sparse",
        "large inputs meet the matrix, the others a low-rank copy of it; half a square matrix's bytes",
        "Zhang et al. 2025, arXiv:2504.19449",
        # keep + 2 rank = 0.5; the split is assumed: a reproduction of its search left 95 % to the channels.
        {"keep": 0.475, "rank": 0.0125, "fallback": "none"},
    ),
):
    POLICIES.register(_name)(alias(Teal, _name, _summary, _citation, **_defaults))


@POLICIES.register("relu")
class Relu(Policy):
    """A model whose FFN activation became ReLU: exact zeros skip rows of down, and of QKV and up in stage 2 [1]_.

    Shares are those of the inputs that are not zero; rows of the next matrix are skipped where its input is zero.
    Defaults: Llama-7B, stage 1 (62 % zeros before down). Rows of a batch unite.

    References
    ----------
    .. [1] Mirzadeh et al., "ReLU Strikes Back", arXiv:2310.04564.
    """

    name: ClassVar[str] = "relu"
    family: ClassVar[str] = "contextual activation"
    summary: ClassVar[str] = "ReLU-fied model, exact zeros of the inputs skipped"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.WEIGHT_ROWS})
    compatibility: ClassVar[Compatibility] = _ONE_TOKEN
    citation: ClassVar[str] = "Mirzadeh et al. 2023, arXiv:2310.04564"
    not_modelled: ClassVar[str] = "accuracy and its recovery by training"
    always_shown: ClassVar[tuple[str, ...]] = ("down_keep",)
    swept: ClassVar[Swept | None] = ("down_keep", "share")
    unites: ClassVar[tuple[str, ...]] = ("attn.in", "ffn.in", RELU)

    down_keep: float = Field(0.38, gt=0.0, le=1.0, description="non-zero inputs of down")
    up_keep: float = Field(1.0, gt=0.0, le=1.0, description="non-zero inputs of gate and up")
    qkv_keep: float = Field(1.0, gt=0.0, le=1.0, description="non-zero inputs of Q, K, V")
    fallback: Fallback = Field("none", description=_FALLBACK)

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """Ordinary FFNs."""
        return _ordinary_ffn(model)

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Rows that meet a zero are not read."""
        shares = {
            "mlp.down": self.down_keep,
            "mlp.gate_up": self.up_keep,
            "mlp.up": self.up_keep,
            "attn.qkv": self.qkv_keep,
        }
        if not ctx.decode_only or not isinstance(op, Linear) or shares.get(op.role, 1.0) == 1.0:
            return (op,)
        union = touched(ctx, _INPUT[op.role], shares[op.role], relu=True)
        return (gathered(op, union, ctx, "k", self.fallback, float(op.n) * op.fmt.weight_bytes),)


POLICIES.register("relu_stage2")(
    alias(
        Relu,
        "relu_stage2",
        "ReLU after the norms too, so that QKV and up see zeros",
        "Mirzadeh et al. 2023, arXiv:2310.04564",
        down_keep=0.35,
        up_keep=0.33,
        qkv_keep=0.49,
    )
)


@POLICIES.register("polar")
class Polar(Policy):
    """Heads are dropped inside the attention of each sequence, neurons by the union over the batch [1]_.

    A router per layer scores heads (one product) and, in ReLU models, another of rank `rank` neurons. Projections
    stay dense, so head sparsity survives any batch; KV of a group is read if one of its heads is kept. Layer 0's
    attention is dense.

    References
    ----------
    .. [1] Shrestha et al., "Polar Sparsity", arXiv:2505.14884.
    """

    name: ClassVar[str] = "polar"
    family: ClassVar[str] = "contextual activation"
    summary: ClassVar[str] = "per-sequence head sparsity, batch-united neurons"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.WEIGHT_ROWS})
    compatibility: ClassVar[Compatibility] = Compatibility(
        mla=False, chunked_prefill=False, gqa="whole groups are kept or dropped"
    )
    citation: ClassVar[str] = "Shrestha et al. 2025, arXiv:2505.14884"
    not_modelled: ClassVar[str] = "accuracy"
    always_shown: ClassVar[tuple[str, ...]] = ("attn_keep",)
    swept: ClassVar[Swept | None] = ("attn_keep", "share")
    unites: ClassVar[tuple[str, ...]] = (RELU,)

    attn_keep: float = Field(0.5, gt=0.0, le=1.0, description="share of heads or groups kept")
    keep: float = Field(0.0955, gt=0.0, le=1.0, description="neurons per token in ReLU models; others stay dense")
    rank: int = Field(1024, ge=1, le=65536, description="width of the neuron router")
    fallback: Fallback = Field("none", description=_FALLBACK)

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """Ordinary FFNs."""
        return _ordinary_ffn(model)

    def layer_key(self, index: int, n_layers: int) -> Hashable:
        """Layer 0's attention is dense."""
        return index == 0 and not _all_kept(self.fallback, self.attn_keep)

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Routers, heads skipped inside the attention, gathered neurons."""
        if not ctx.decode_only or op.role == "lm_head":
            return (op,)
        ffn = ctx.layer.ffn
        heads_kept = _all_kept(self.fallback, self.attn_keep)
        relu = isinstance(ffn, FfnSpec) and ffn.activation in ("relu", "relu2")
        if isinstance(op, Attention) and ctx.index > 0 and not heads_kept:
            heads = op.n_kv_heads if op.n_heads > op.n_kv_heads else op.n_heads
            router = Linear(
                role="predictor.attn",
                part=OpPart.PREDICTOR,
                m=ctx.step.rows,
                n=heads,
                k=float(ctx.model.hidden),
                fmt=ctx.fmt,
                count=op.count,
                overhead=True,
            )
            return (router, replace(op, head_keep=self.attn_keep, kv_head_keep=self.attn_keep))
        if not relu or not isinstance(op, Linear) or not op.role.startswith("mlp."):
            return (op,)
        if _all_kept(self.fallback, self.keep):
            return (op,)
        assert isinstance(ffn, FfnSpec)
        union = touched(ctx, "ffn.down", self.keep)
        if op.role == "mlp.down":
            return (gathered(op, union, ctx, "k", self.fallback),)
        router_ops = predictor(
            "predictor.mlp", ctx, rank=self.rank, outputs=ffn.intermediate, count=op.count, picked=self.keep
        )
        return (*router_ops, gathered(op, union, ctx, "n", self.fallback))
