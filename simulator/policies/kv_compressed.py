"""Every token stays in the KV cache, each one smaller: quantised or pruned to a bitmap."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from simulator.base.arrays import Array, maximum, minimum
from simulator.base.dtypes import sixteen_bit
from simulator.ops.ops import Attention, Elementwise, Expand, Linear, Op
from simulator.ops.traffic import Operand
from simulator.policies.base import Aspect, Compatibility, Context, KvLayout, Policy, Swept, alias
from simulator.policies.common import copied, scoring_pass, top_k
from simulator.policies.grammar import POLICIES

_SCALE_BYTES = 4.0
"""16-bit scale and 16-bit zero of one group [B]."""


def mean_token_bytes(tokens: Array, dense_bytes: Array, small_bytes: Array, window: float) -> Array:
    """Bytes per token when the newest `window` tokens stay dense [B].

    ``(dense * min(S, w) + small * max(S - w, 0)) / S``.
    """
    s = maximum(tokens, 1.0)
    dense = minimum(s, window)
    return (dense * dense_bytes + (s - dense) * small_bytes) / s


def small_elements(op: Attention, window: float) -> Array:
    """Elements of one call that are read from the compressed part, behind the dense window [-]."""
    per_token = op.dense_bytes_per_token / op.kv_element_bytes * op.kv_head_keep
    return op.batch * maximum(op.tokens - window, 0.0) * per_token


def quantised(op: Attention, share: float, window: float) -> Attention:
    """Decode attention over tokens of `share` of their dense bytes behind a dense `window`."""
    dense = op.dense_bytes_per_token
    return replace(
        op,
        bytes_per_token=mean_token_bytes(op.tokens, dense, dense * share, window),
        run_bytes=op.run_bytes * share,
        expand=Expand(elements=small_elements(op, window), nonzeros=0.0),
    )


def quantise(op: Attention, share: float) -> Elementwise:
    """One pass over the new tokens' K and V."""
    new = op.batch * op.q_len * op.dense_bytes_per_token
    return copied("kv.quantise", op, new, new * share)


@POLICIES.register("kv_quant")
class KvQuant(Policy):
    """K and V in `bits` bits with a scale (and zero) per group; the newest tokens stay 16 bit.

    Bytes per element ``bits / 8 + scale_bytes / group``, KIVI's ``bits / 8 + 4 / group`` by default [1]_;
    dequantisation is fused into the attention kernel and costs one expanded element each. New tokens are quantised as
    the window slides, a prompt in one pass. With ``rotate`` queries and new keys pass a head_dim x head_dim rotation
    first [2]_; ``dense_ends`` first and last layers are left as they are.

    References
    ----------
    .. [1] Liu et al., "KIVI", arXiv:2402.02750, whose layout this is.
    .. [2] Zandieh et al., "TurboQuant", arXiv:2504.19874; vLLM, turboquant/config.py.
    """

    name: ClassVar[str] = "kv_quant"
    family: ClassVar[str] = "kv compressed"
    summary: ClassVar[str] = "KV cache quantised in groups, newest tokens in 16 bit"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_FORMAT})
    compatibility: ClassVar[Compatibility] = Compatibility(mla=False, prefix_cache=True)
    citation: ClassVar[str] = "Liu et al. 2024, arXiv:2402.02750"
    not_modelled: ClassVar[str] = "accuracy"
    always_shown: ClassVar[tuple[str, ...]] = ("bits",)

    bits: Literal["2", "3", "4", "8"] = Field("4", description="bits per stored element, of K where V differs")
    v_bits: Literal["2", "3", "4", "8"] | None = Field(None, description="bits per element of V; default bits")
    group: int = Field(64, ge=16, le=1024, description="elements that share a scale and a zero")
    scale_bytes: float = Field(_SCALE_BYTES, ge=0.0, le=16.0, description="bytes of a group's scale and zero")
    window: int = Field(128, ge=0, le=8192, description="newest tokens kept in 16 bit")
    rotate: bool = Field(False, description="queries and new keys are rotated")
    dense_ends: int = Field(0, ge=0, le=1000, description="first and last layers that stay in 16 bit")

    def layer_key(self, index: int, n_layers: int) -> Hashable:
        """The ends are dense."""
        return self._dense(index, n_layers)

    def _dense(self, index: int, n_layers: int) -> bool:
        return not self.dense_ends <= index < n_layers - self.dense_ends

    def _share(self, dense_element_bytes: float) -> float:
        bits = 0.5 * (int(self.bits) + int(self.v_bits or self.bits))
        return (bits / 8.0 + self.scale_bytes / self.group) / dense_element_bytes

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Smaller tokens in decode, one quantising pass over what is new, and its rotation."""
        if not isinstance(op, Attention) or self._dense(ctx.index, ctx.model.n_layers):
            return (op,)
        share = self._share(op.kv_element_bytes)
        extra: tuple[Op, ...] = (quantise(op, share),)
        if self.rotate:
            rows = op.batch * op.q_len * (op.n_heads + op.n_kv_heads)
            rotation = Linear(
                role="kv.rotate",
                m=rows,
                n=op.head_dim,
                k=op.head_dim,
                fmt=sixteen_bit(ctx.fmt),
                count=op.count,
                keeps_weights=False,
                overhead=True,
            )
            extra = (rotation, *extra)
        return (op if op.phase == "prefill" else quantised(op, share, self.window), *extra)

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """Groups of small elements behind a dense window."""
        if self._dense(ctx.index, ctx.model.n_layers):
            return kv
        return replace(
            kv, token_bytes=kv.token_bytes * self._share(ctx.kv_element_bytes), dense_tokens=float(self.window)
        )


for _name, _summary, _citation, _defaults in (
    (
        "kivi",
        "K per channel and V per token in 2 bits, groups of 32, newest tokens in 16 bit",
        "Liu et al. 2024, arXiv:2402.02750",
        {"bits": "2", "group": 32},
    ),
    (
        "turboquant",
        "rotated keys by codebook and values uniformly, in 4 bits by head vector, as vLLM's turboquant_4bit_nc",
        "Zandieh et al. 2025, arXiv:2504.19874; vLLM, turboquant/config.py",
        # 2 B of norm per vector of K, 4 B of scale and zero per vector of V, both of 128 elements.
        {"group": 128, "scale_bytes": 3.0, "window": 0, "rotate": True, "dense_ends": 2},
    ),
    (
        "fp4_kv",
        "K and V in FP4 with an FP8 scale per 16 elements (NVFP4)",
        "NVIDIA, TensorRT-LLM documentation, Quantization: NVFP4 KV cache",
        {"group": 16, "scale_bytes": 1.0, "window": 0},
    ),
):
    POLICIES.register(_name)(alias(KvQuant, _name, _summary, _citation, **_defaults))


@POLICIES.register("zipvl")
class ZipVl(Policy):
    """Important tokens of each layer attend to each other in the prompt and keep more bits in the cache [1]_.

    A share `keep` of the tokens carries `tau` of a probe's attention: the prompt computes ``keep^2`` of the pairs
    and the probe's rows in full; the cache takes ``keep bits_high + (1 - keep) bits_low`` bits per element and its
    scales. Decode reads every token.

    References
    ----------
    .. [1] He et al., "ZipVL", arXiv:2410.08584.
    """

    name: ClassVar[str] = "zipvl"
    family: ClassVar[str] = "kv compressed"
    summary: ClassVar[str] = "important tokens: sparse prompt attention and mixed-precision KV"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_FORMAT, Aspect.PREFILL_MASK})
    compatibility: ClassVar[Compatibility] = Compatibility(
        mla=False, prefix_cache=False, chunked_prefill=False, needs_scores=True
    )
    citation: ClassVar[str] = "He et al. 2024, arXiv:2410.08584"
    not_modelled: ClassVar[str] = "accuracy; ratios that differ from layer to layer"
    always_shown: ClassVar[tuple[str, ...]] = ("keep",)
    swept: ClassVar[Swept | None] = ("keep", "share")

    keep: float = Field(0.286, gt=0.0, le=1.0, description="share of important tokens")
    bits_high: Literal["4", "8"] = Field("4", description="bits of an important token's elements")
    bits_low: Literal["2", "4"] = Field("2", description="bits of the others")
    group: int = Field(128, ge=16, le=4096, description="elements that share a scale and a zero")
    probe: int = Field(128, ge=1, le=4096, description="query rows scored in full")

    def _share(self, dense_element_bytes: float) -> float:
        bits = self.keep * int(self.bits_high) + (1.0 - self.keep) * int(self.bits_low)
        return (bits / 8.0 + _SCALE_BYTES / self.group) / dense_element_bytes

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Fewer pairs in the prompt, smaller tokens in decode."""
        if not isinstance(op, Attention):
            return (op,)
        share = self._share(op.kv_element_bytes)
        pack = quantise(op, share)
        if op.phase == "decode":
            return (quantised(op, share, 0.0), pack)
        rows = minimum(float(self.probe), op.q_len)
        probe = scoring_pass(replace(op, q_len=rows), 1.0, role="kv.probe")
        kept = op.batch * op.kv_len * self.keep
        pick = top_k(op.batch * op.kv_len, kept, heads=1.0, rows=op.batch, count=op.count)
        return (probe, pick, replace(op, pair_keep=self.keep**2 if self.keep < 1.0 else None), pack)

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """Mixed precision, no dense window."""
        return replace(kv, token_bytes=kv.token_bytes * self._share(ctx.kv_element_bytes))


TILE = 64
"""Elements per bitmap tile."""
TILE_BYTES = 8 + 4
"""64-bit bitmap and 32-bit offset of one tile [B]."""
PARTS = 6.0
"""Further small kernels per layer: dense window times K and times V, one row of scores from two, sum of both outputs,
K and V appended to the window."""
PAD_ELEMENTS = 3.5
"""Expected padding of a tile's non-zeros to a multiple of 8."""


def bitmap_ratio(keep: float, element_bytes: float = 2.0) -> float:
    """Bitmap-compressed over dense bytes [-]: ``keep + 19/128`` for 16-bit elements [1]_.

    Per tile of 64: 8 B bitmap, 4 B offset, the kept values padded to eight.

    References
    ----------
    .. [1] Mustafar, arXiv:2505.22913 (published 65 % at 0.5 and 45 % at 0.3).
    """
    return (TILE_BYTES + element_bytes * (keep * TILE + PAD_ELEMENTS)) / (TILE * element_bytes)


@POLICIES.register("mustafar")
class Mustafar(Policy):
    """K and V pruned per token to their largest magnitudes and stored as bitmap tiles [1]_.

    Decode reads ``r(keep) = keep + 0.148`` of the dense bytes behind a dense window, expands in shared memory,
    multiplies densely with the query padded to eight rows, and writes fp32 scores out once. The window has kernels
    of its own, whose output is added. A prompt is pruned and packed after its attention; each new token as it leaves
    the window.

    References
    ----------
    .. [1] "Mustafar: Promoting Unstructured Sparsity for KV Cache Pruning", arXiv:2505.22913.
    """

    name: ClassVar[str] = "mustafar"
    family: ClassVar[str] = "kv compressed"
    summary: ClassVar[str] = "KV cache pruned by magnitude, stored as bitmap tiles"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_FORMAT})
    compatibility: ClassVar[Compatibility] = Compatibility(
        mla=False, paged_kv=False, prefix_cache=False, speculative=False, gqa="tiles are shared by the group"
    )
    citation: ClassVar[str] = "arXiv:2505.22913"
    not_modelled: ClassVar[str] = "accuracy; the 64-token packing rhythm is spread over the steps"
    always_shown: ClassVar[tuple[str, ...]] = ("keep",)
    swept: ClassVar[Swept | None] = ("keep", "share")

    keep: float = Field(0.3, gt=0.0, le=1.0, description="share of K elements kept per token")
    keep_v: float | None = Field(None, gt=0.0, le=1.0, description="share of V kept; default keep")
    window: int = Field(32, ge=0, le=4096, description="newest tokens kept dense")
    fallback: Literal["none", "dense"] = Field("none", description="dense path at keep=1")

    @property
    def _off(self) -> bool:
        return self.fallback == "dense" and self.keep == 1.0 and (self.keep_v or self.keep) == 1.0

    def _share(self, element_bytes: float) -> float:
        keep_v = self.keep if self.keep_v is None else self.keep_v
        return 0.5 * (bitmap_ratio(self.keep, element_bytes) + bitmap_ratio(keep_v, element_bytes))

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Bitmap decode with its expansion and score pass; packing of what is new."""
        if not isinstance(op, Attention) or self._off:
            return (op,)
        share = self._share(op.kv_element_bytes)
        dense = op.dense_bytes_per_token
        new_elements = op.batch * op.q_len * dense / op.kv_element_bytes
        pack = Elementwise(
            role="kv.pack",
            kind="copy",
            read_bytes=new_elements * op.kv_element_bytes,
            write_bytes=new_elements * op.kv_element_bytes * share,
            pack_elements=new_elements,
            operand=Operand.KV,
            launches=2.0,
            count=op.count,
            overhead=True,
        )
        if op.phase == "prefill":
            return (op, pack)
        elements = small_elements(op, self.window)
        keep_v = self.keep if self.keep_v is None else self.keep_v
        score_bytes = 4.0 * op.batch * op.tokens * op.n_heads
        scores = Elementwise(
            role="kv.scores",
            kind="softmax",
            read_bytes=score_bytes,
            write_bytes=score_bytes,
            count=op.count,
            overhead=True,
        )
        attention = replace(
            op,
            bytes_per_token=mean_token_bytes(op.tokens, dense, dense * share, self.window),
            run_bytes=op.run_bytes * share,
            expand=Expand(elements=elements, nonzeros=elements * 0.5 * (self.keep + keep_v)),
        )
        outputs = 4.0 * op.batch * op.n_heads * op.head_dim
        parts = Elementwise(
            role="kv.parts",
            kind="add",
            read_bytes=2.0 * outputs,
            write_bytes=outputs,
            count=op.count * PARTS,
            overhead=True,
        )
        return (attention, scores, parts, pack)

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """Bitmap tiles behind a dense window."""
        if self._off:
            return kv
        return replace(
            kv, token_bytes=kv.token_bytes * self._share(ctx.kv_element_bytes), dense_tokens=float(self.window)
        )
