"""Weights that do not fit the GPU: computed by the CPU, fetched from flash, or streamed over the host link."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from simulator.base.arrays import Array, clip, minimum
from simulator.base.dtypes import Format
from simulator.model.layer import FfnSpec
from simulator.model.spec import ModelSpec
from simulator.ops.ops import Attention, Elementwise, Linear, Op
from simulator.ops.traffic import Operand
from simulator.ops.transfers import FLASH_THREADS, HostCompute, Transfer
from simulator.ops.union_law import RELU
from simulator.policies.activation import gathered
from simulator.policies.base import Aspect, Compatibility, Context, KvLayout, Policy, Swept, alias
from simulator.policies.common import dense_ffn_only
from simulator.policies.contextual import predictor, touched
from simulator.policies.grammar import POLICIES

ALL = ("",)
"""Beside every op of the step."""
_FFN = ("mlp.gate_up", "mlp.up", "mlp.down")
_ATTENTION = ("attn.qkv", "attn.o")


def _dense_ffn(model: ModelSpec) -> str | None:
    return dense_ffn_only(model, "the method places neurons of a dense FFN; experts are not covered")


@POLICIES.register("powerinfer")
class PowerInfer(Policy):
    """Hot neurons lie in GPU memory, cold ones in host memory, where the CPU computes those that are active [1]_.

    Of the active neurons (`keep` per token, united over the rows) a share `hits`, at least `hot`, is hot. Per FFN:
    ``max(active hot bytes / GPU, active cold bytes / CPU)`` and the cold part's vector over the link. A predictor
    per layer runs first. A prompt streams the cold weights to the GPU once and computes densely. Needs a ``dram``
    tier: the CPU's memory.

    References
    ----------
    .. [1] Song et al., "PowerInfer", arXiv:2312.12456.
    """

    name: ClassVar[str] = "powerinfer"
    family: ClassVar[str] = "placement"
    summary: ClassVar[str] = "hot neurons on the GPU, cold ones computed by the CPU"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.WEIGHT_ROWS, Aspect.WEIGHT_PLACE})
    compatibility: ClassVar[Compatibility] = Compatibility(
        chunked_prefill=False, speculative=False, gqa="KV of every head is read"
    )
    citation: ClassVar[str] = "Song et al. 2023, arXiv:2312.12456"
    not_modelled: ClassVar[str] = "accuracy; KV in host memory; the CPU's arithmetic, which binds at large batches"
    always_shown: ClassVar[tuple[str, ...]] = ("keep", "hot")
    swept: ClassVar[Swept | None] = ("keep", "share")
    unites: ClassVar[tuple[str, ...]] = (RELU, "attn.head")

    keep: float = Field(0.1, gt=0.0, le=1.0, description="share of neurons active per token")
    hot: float = Field(0.26, gt=0.0, le=1.0, description="share of neurons in GPU memory")
    hits: float = Field(0.8, ge=0.0, le=1.0, description="share of active neurons that are hot")
    attn_keep: float = Field(1.0, gt=0.0, le=1.0, description="share of heads active per token")
    attn_hot: float = Field(1.0, gt=0.0, le=1.0, description="share of the attention's weights in GPU memory")
    rank: int = Field(1024, ge=1, le=65536, description="mean width of the layers' predictors")

    @property
    def home(self) -> str:
        """The CPU's memory, where anything is cold."""
        return "dram" if min(self.hot, self.attn_hot) < 1.0 else "host"

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """Neurons of ordinary FFNs."""
        return _dense_ffn(model)

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Predictor, the hot part on the GPU, the cold part on the CPU beside it."""
        if not isinstance(op, Linear) or op.role not in (*_FFN, *_ATTENTION):
            return (op,)
        attention = op.role in _ATTENTION
        hot = self.attn_hot if attention else self.hot
        if attention and hot == 1.0 and self.attn_keep == 1.0:
            return (op,)
        if not ctx.decode_only:
            if hot == 1.0:
                return (op,)
            load = Transfer(
                role=f"{op.role}.load",
                tier="host",
                read_bytes=(1.0 - hot) * op.weight_read_bytes,
                operand=Operand.WEIGHT,
                beside=ALL,
                count=op.count,
            )
            return (replace(op, resident=hot), load)
        if attention:
            union = touched(ctx, "attn.head", self.attn_keep)
        else:
            union = touched(ctx, "ffn.down", self.keep, relu=True)
        active = union.density
        on_gpu = minimum(active * max(self.hits, hot), hot)
        axis: Literal["n", "k"] = "k" if op.role in ("mlp.down", "attn.o") else "n"
        gpu = replace(gathered(op, union._replace(density=on_gpu), ctx, axis), resident=hot)
        parts = (gpu,) if hot == 1.0 else (gpu, *self._cold(op, ctx, active - on_gpu))
        if attention or axis == "k":
            return parts
        assert isinstance(ctx.layer.ffn, FfnSpec)
        guess = predictor(
            "predictor.mlp", ctx, rank=self.rank, outputs=ctx.layer.ffn.intermediate, count=op.count, picked=self.keep
        )
        return (*guess, *parts)

    def _cold(self, op: Linear, ctx: Context, share: Array) -> tuple[Op, ...]:
        """`share` of the product on the CPU, and its vectors over the link behind a block's last product."""
        attention = op.role in _ATTENTION
        cpu = HostCompute(
            role=f"{op.role}.cold",
            part=op.part,
            read_bytes=op.weight_read_bytes * share,
            flop=op.flop * share,
            beside=_ATTENTION if attention else _FFN,
            count=op.count,
        )
        if op.role not in ("mlp.down", "attn.o"):
            return (cpu,)
        row = ctx.step.rows * ctx.model.hidden * 2.0
        back = Transfer(
            role="attn.merge" if attention else "mlp.merge",
            tier="host",
            read_bytes=row,
            write_bytes=row,
            operand=Operand.ACTIVATION,
            count=op.count,
        )
        return (cpu, back)


POLICIES.register("turbosparse")(
    alias(
        PowerInfer,
        "turbosparse",
        "a dReLU model at 90 % sparsity on PowerInfer, all neurons on the GPU",
        "Song et al. 2024, arXiv:2406.05955",
        keep=0.1,
        hot=1.0,
        hits=1.0,
    )
)


@POLICIES.register("llm_in_flash")
class LlmInFlash(Policy):
    """FFN rows lie in flash; predicted rows that the last tokens did not use are loaded per token [1]_.

    `keep` of the neurons are predicted per token, `new` of them are not in the window's memory (`resident`); they
    are read in bundles of an up and a down row, 32 at once, before the FFN runs, and copied into a preallocated
    matrix. Attention and embedding stay resident. The prompt loads every row once. Needs an ``ssd`` tier.

    References
    ----------
    .. [1] Alizadeh et al., "LLM in a flash", arXiv:2312.11514.
    """

    name: ClassVar[str] = "llm_in_flash"
    family: ClassVar[str] = "placement"
    summary: ClassVar[str] = "FFN rows in flash, a window of recent ones in memory"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.WEIGHT_ROWS, Aspect.WEIGHT_PLACE})
    compatibility: ClassVar[Compatibility] = Compatibility(
        chunked_prefill=False, speculative=False, gqa="attention stays dense"
    )
    citation: ClassVar[str] = "Alizadeh et al. 2023, arXiv:2312.11514"
    not_modelled: ClassVar[str] = "accuracy; the CPU's bookkeeping of the row matrix"
    always_shown: ClassVar[tuple[str, ...]] = ("keep",)
    swept: ClassVar[Swept | None] = ("keep", "share")
    unites: ClassVar[tuple[str, ...]] = (RELU,)

    keep: float = Field(0.1, gt=0.0, le=1.0, description="share of neurons predicted per token")
    new: float = Field(0.024, ge=0.0, le=1.0, description="share loaded per token")
    resident: float = Field(0.24, ge=0.0, le=1.0, description="share the window holds in memory")
    rank: int = Field(240, ge=0, le=65536, description="mean width of the predictors; 0 = none")
    bundle: bool = Field(True, description="rows of up and down stored side by side")

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """Neurons of ordinary FFNs."""
        return _dense_ffn(model)

    @property
    def home(self) -> str:
        """Flash."""
        return "ssd"

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Predictor, loads, copies, then the active rows."""
        if not isinstance(op, Linear) or op.role not in _FFN:
            return (op,)
        held = replace(op, resident=self.resident)
        whole = op.weight_read_bytes
        row = float(np.max(whole / (op.k if op.role == "mlp.down" else op.n)))
        chunk = row * (2.0 if self.bundle else 1.0)
        if not ctx.decode_only:
            return (held, _load(op, whole * (1.0 - self.resident), float("inf")))
        union = touched(ctx, "ffn.down", self.keep, relu=True)
        active = union.density
        # What a step needs and the window does not hold is loaded, whatever the share per token says.
        new = whole * clip(self.new * active / self.keep, active - self.resident, 1.0)
        copy = Elementwise(
            role=f"{op.role}.place",
            kind="copy",
            read_bytes=new,
            write_bytes=new,
            operand=Operand.WEIGHT,
            count=op.count,
            overhead=True,
        )
        axis: Literal["n", "k"] = "k" if op.role == "mlp.down" else "n"
        ops: tuple[Op, ...] = (_load(op, new, chunk), copy, gathered(held, union, ctx, axis))
        if axis == "k" or not self.rank:
            return ops
        assert isinstance(ctx.layer.ffn, FfnSpec)
        guess = predictor(
            "predictor.mlp", ctx, rank=self.rank, outputs=ctx.layer.ffn.intermediate, count=op.count, picked=self.keep
        )
        return (*guess, *ops)


def _load(op: Linear, read_bytes: Array, chunk: float) -> Transfer:
    return Transfer(
        role=f"{op.role}.load",
        tier="ssd",
        read_bytes=read_bytes,
        chunk_bytes=chunk,
        in_flight=FLASH_THREADS,
        operand=Operand.WEIGHT,
        count=op.count,
    )


@POLICIES.register("flexgen")
class FlexGen(Policy):
    """Shares of the weights and of the KV cache lie off the GPU; copies run beside the computation [1]_.

    A step loads every weight that is not resident once for the whole batch, which stands for the paper's block of
    batches. Off-GPU KV is copied in (``attention=gpu``) or attended by the CPU (``attention=cpu``, needs a ``dram``
    tier). All streams overlap: ``max(link, GPU, CPU)`` per step.

    References
    ----------
    .. [1] Sheng et al., "FlexGen", arXiv:2303.06865.
    """

    name: ClassVar[str] = "flexgen"
    family: ClassVar[str] = "placement"
    summary: ClassVar[str] = "shares of weights and KV on another tier, streamed"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.WEIGHT_PLACE, Aspect.KV_PLACE})
    compatibility: ClassVar[Compatibility] = Compatibility(paged_kv=False, prefix_cache=False)
    citation: ClassVar[str] = "Sheng et al. 2023, arXiv:2303.06865"
    not_modelled: ClassVar[str] = "activations off the GPU; three tiers at once; the policy search"
    always_shown: ClassVar[tuple[str, ...]] = ("weights", "kv")

    weights: float = Field(0.2, ge=0.0, le=1.0, description="share of the weights on the GPU")
    kv: float = Field(0.0, ge=0.0, le=1.0, description="share of the KV cache on the GPU")
    attention: Literal["gpu", "cpu"] = Field("gpu", description="who attends to off-GPU KV")
    tier: Literal["host", "cxl", "ssd"] = Field("host", description="where the rest lies")

    @property
    def home(self) -> str:
        """The tier named."""
        return self.tier

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """Experts are loaded by need, which is another policy."""
        if model.is_moe and self.weights < 1.0:
            return "off-GPU experts would be loaded by need; no published schedule is covered"
        if self.attention == "cpu" and self.tier != "host":
            return "the CPU attends to KV in host memory only; use tier=host"
        return None

    def _copy(self, role: str, op: Op, read: object, write: object, operand: Operand) -> Transfer:
        return Transfer(
            role=role,
            tier=self.tier,
            read_bytes=read,  # type: ignore[arg-type]
            write_bytes=write,  # type: ignore[arg-type]
            operand=operand,
            beside=ALL,
            count=op.count,
        )

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Copies beside every op whose operand is elsewhere."""
        if isinstance(op, Linear) and self.weights < 1.0 and op.role.startswith(("attn.", "mlp.")):
            missing = (1.0 - self.weights) * op.weight_read_bytes
            load = self._copy(f"{op.role}.load", op, missing, 0.0, Operand.WEIGHT)
            return (replace(op, resident=self.weights), load)
        if not isinstance(op, Attention) or self.kv == 1.0:
            return (op,)
        off = 1.0 - self.kv
        new = off * op.batch * op.q_len * op.dense_bytes_per_token
        if op.phase == "prefill":
            return (op, self._copy("kv.store", op, 0.0, new, Operand.KV))
        missing = off * op.kv_read_bytes
        if self.attention == "gpu":
            return (op, self._copy("kv.load", op, missing, new, Operand.KV))
        q, o = op.qo_bytes
        cpu = HostCompute(
            role="attn.host", read_bytes=missing, flop=off * op.flop, operand=Operand.KV, beside=ALL, count=op.count
        )
        vectors = self._copy("kv.load", op, off * o, off * q + new, Operand.ACTIVATION)
        here = replace(op, kv_head_keep=op.kv_head_keep * max(self.kv, 1e-6))
        return (replace(here, head_keep=op.head_keep * max(self.kv, 1e-6)), cpu, vectors)

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """A share here, the rest there."""
        off = kv.off_bytes + (1.0 - self.kv) * kv.token_bytes
        return replace(kv, token_bytes=kv.token_bytes * self.kv, dense_bytes=kv.dense_bytes * self.kv, off_bytes=off)


POLICIES.register("cxl")(
    alias(
        FlexGen,
        "cxl",
        "KV cache on a CXL memory card, weights on the GPU",
        "CXL-attached memory, see claims (copy rates of its benchmark)",
        weights=1.0,
        kv=0.0,
        tier="cxl",
    )
)
