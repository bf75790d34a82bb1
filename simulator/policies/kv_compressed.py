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


ELEMENT_INSTRUCTIONS, WORD_INSTRUCTIONS = 5.0, 15.0
"""Lane instructions per quantised element (mask, shift, conversion, two multiply-adds) and per 32-bit word of them: 4
loads (codes, scale, zero, input), 3 conversions, 8 of addresses and bounds (KIVI, quant/csrc/gemv_cuda.cu) [-]."""
K_INSTRUCTIONS, V_INSTRUCTIONS = {"8": 6.0}, {"3": 11.0}
"""Lane instructions per element of vLLM's ``_tq_decode_stage1``, by bits; counted in its source, fitted to nothing [-].

K: address 2, two bytes loaded, joined, shifted, masked, codebook address and load, squared, normalised, times the
query, summed over lanes 2: 14; in FP8 address 2, load, conversion, product, sum: 6. V: address 2, load, shift, mask,
conversion, scale and zero, times the weight, sum: 9; in 3 bits another byte and its joining: 11.
"""
QUANTISE_KERNELS = 9.0
"""Kernels that quantise and pack one tensor: extremes, scale (2), subtract, divide, clamp, round, convert, pack (KIVI,
quant/new_pack.py)."""


def unpacking(elements: Array, bits: float) -> Expand:
    """Work of turning `elements` of `bits` bits each into numbers, in registers."""
    return Expand(instructions=elements * (ELEMENT_INSTRUCTIONS + WORD_INSTRUCTIONS * bits / 32.0))


def quantised(op: Attention, share: float, window: float, bits: float, readers: Array = 1.0) -> Attention:
    """Decode attention over tokens of `share` of their dense bytes, `bits` an element, behind a dense `window`.

    Each element is unpacked by `readers` thread blocks.
    """
    dense = op.dense_bytes_per_token
    return replace(
        op,
        bytes_per_token=mean_token_bytes(op.tokens, dense, dense * share, window),
        run_bytes=op.run_bytes * share,
        expand=unpacking(readers * small_elements(op, window), bits),
    )


def quantise(op: Attention, share: float) -> Elementwise:
    """One pass over the new tokens' K and V."""
    new = op.batch * op.q_len * op.dense_bytes_per_token
    return copied("kv.quantise", op, new, new * share)


WINDOW_KERNELS = 5.0
"""Small kernels per layer beside those of the compressed part: K and V appended to the dense window, the window times K
and times V, the sum of both outputs."""


def split_scores(op: Attention, read: float, written: float, kernels: float) -> Elementwise:
    """Scores that kernels hand to each other: bytes read and written per score, all `kernels` together."""
    scores = op.batch * op.tokens * op.n_heads
    return Elementwise(
        role="kv.scores",
        kind="softmax",
        read_bytes=read * scores,
        write_bytes=written * scores,
        launches=kernels,
        handed=True,
        count=op.count,
        overhead=True,
    )


def split_window(op: Attention, kernels: float = WINDOW_KERNELS) -> Elementwise:
    """The dense window's own kernels; each moves outputs of fp32."""
    outputs = 4.0 * op.batch * op.n_heads * op.head_dim
    return Elementwise(
        role="kv.parts",
        kind="add",
        read_bytes=2.0 * outputs * kernels,
        write_bytes=outputs * kernels,
        launches=kernels,
        handed=True,
        count=op.count,
        overhead=True,
    )


@POLICIES.register("kv_quant")
class KvQuant(Policy):
    """K and V in `bits` bits with a scale (and zero) per group; the newest tokens stay 16 bit.

    Bytes per element ``bits / 8 + scale_bytes / group``, KIVI's ``bits / 8 + 4 / group`` by default [1]_; an element is
    unpacked in registers by ``5 + 15 bits / 32`` lane instructions. New tokens are quantised as the window slides, a
    prompt in one pass. With ``rotate`` queries and new keys pass a head_dim x head_dim rotation first [2]_;
    ``dense_ends`` first and last layers are left as they are. ``kernel=fused`` does all of a decode step's attention in
    one kernel. ``per_head`` is vLLM's [3]_: a thread block per query head loads and unpacks K and V for itself, one
    element after another. ``split`` is KIVI's released code: every query head unpacks for itself, scores pass through
    memory, the window has kernels of its own, and V's codes and scales are copied whole to append a token (K's once per
    `window` tokens).

    References
    ----------
    .. [1] Liu et al., "KIVI", arXiv:2402.02750, whose layout this is.
    .. [2] Zandieh et al., "TurboQuant", arXiv:2504.19874; vLLM, turboquant/config.py.
    .. [3] vLLM, ``_tq_decode_stage1``, as pull request 40792 describes it.
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
    kernel: Literal["fused", "per_head", "split"] = Field(
        "fused", description="one decode kernel, vLLM's per query head, or KIVI's released code"
    )

    def layer_key(self, index: int, n_layers: int) -> Hashable:
        """The ends are dense."""
        return self._dense(index, n_layers)

    def _dense(self, index: int, n_layers: int) -> bool:
        return not self.dense_ends <= index < n_layers - self.dense_ends

    @property
    def _bits(self) -> float:
        return 0.5 * (int(self.bits) + int(self.v_bits or self.bits))

    def _share(self, dense_element_bytes: float) -> float:
        return (self._bits / 8.0 + self.scale_bytes / self.group) / dense_element_bytes

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Smaller tokens in decode, one quantising pass over what is new, and its rotation."""
        if not isinstance(op, Attention) or self._dense(ctx.index, ctx.model.n_layers):
            return (op,)
        share = self._share(op.kv_element_bytes)
        extra: tuple[Op, ...] = ()
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
            extra = (rotation,)
        bits, new = self._bits, quantise(op, share)
        group = op.n_heads / op.n_kv_heads
        if self.kernel != "split":
            if op.phase == "prefill":
                return (op, *extra, new)
            if self.kernel == "fused":
                return (quantised(op, share, self.window, bits), *extra, new)
            alone = quantised(op, share, self.window, bits)
            per = 0.5 * (K_INSTRUCTIONS.get(self.bits, 14.0) + V_INSTRUCTIONS.get(self.v_bits or self.bits, 9.0))
            expand = Expand(instructions=per * group * small_elements(op, self.window))
            # The heads of a group run at once: what the first loads from memory, the others find in the cache.
            return (replace(alone, expand=expand, tile_bytes=group * alone.kv_read_bytes), *extra, new)
        if op.phase == "prefill":
            return (op, *extra, replace(new, launches=2.0 * QUANTISE_KERNELS))
        both = 1.0 + 1.0 / max(self.window, 1)  # V in every step, K when the window is full
        stored = 0.5 * both * share * small_elements(op, self.window) * op.kv_element_bytes
        return (
            quantised(op, share, self.window, bits, group),
            split_scores(op, 12.0, 12.0, 4.0),  # from two parts to one row, scaled, softmax in fp32, rounded
            split_window(op),
            *extra,
            replace(new, launches=QUANTISE_KERNELS * both),
            replace(copied("kv.append", op, stored, stored), launches=3.0 * both),
        )

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """Groups of small elements behind a dense window."""
        if self._dense(ctx.index, ctx.model.n_layers):
            return kv
        return replace(
            kv,
            token_bytes=kv.token_bytes * self._share(ctx.kv_element_bytes),
            dense_tokens=float(self.window),
            passing_bytes=kv.dense_bytes,
        )


for _name, _summary, _citation, _defaults in (
    (
        "kivi",
        "K per channel and V per token in 2 bits, groups of 32, newest tokens in 16 bit",
        "Liu et al. 2024, arXiv:2402.02750",
        {"bits": "2", "group": 32, "kernel": "split"},
    ),
    (
        "turboquant",
        "rotated keys by codebook and values uniformly, in 4 bits by head vector, as vLLM's turboquant_4bit_nc",
        "Zandieh et al. 2025, arXiv:2504.19874; vLLM, turboquant/config.py",
        # 2 B of norm per vector of K, 4 B of scale and zero per vector of V, both of 128 elements.
        {"group": 128, "scale_bytes": 3.0, "window": 0, "rotate": True, "dense_ends": 2, "kernel": "per_head"},
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

    @property
    def _bits(self) -> float:
        return self.keep * int(self.bits_high) + (1.0 - self.keep) * int(self.bits_low)

    def _share(self, dense_element_bytes: float) -> float:
        return (self._bits / 8.0 + _SCALE_BYTES / self.group) / dense_element_bytes

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Fewer pairs in the prompt, smaller tokens in decode."""
        if not isinstance(op, Attention):
            return (op,)
        share = self._share(op.kv_element_bytes)
        pack = quantise(op, share)
        if op.phase == "decode":
            return (quantised(op, share, 0.0, self._bits), pack)
        rows = minimum(float(self.probe), op.q_len)
        probe = scoring_pass(replace(op, q_len=rows), 1.0, role="kv.probe")
        kept = op.batch * op.kv_len * self.keep
        pick = top_k(op.batch * op.kv_len, kept, heads=1.0, rows=op.batch, count=op.count)
        return (probe, pick, replace(op, pair_keep=self.keep**2 if self.keep < 1.0 else None), pack)

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """Mixed precision, no dense window."""
        share = self._share(ctx.kv_element_bytes)
        return replace(kv, token_bytes=kv.token_bytes * share, passing_bytes=kv.dense_bytes)


TILE = 64
"""Elements per bitmap tile."""
TILE_BYTES = 8 + 4
"""64-bit bitmap and 32-bit offset of one tile [B]."""
PAD_ELEMENTS = 3.5
"""Expected padding of a tile's non-zeros to a multiple of 8."""
PACK_GROUP = 256.0
"""Tokens that leave the dense window together."""
PRUNE_KERNELS, HEAD_KERNELS, LATER_KERNELS = 24.0, 6.0, 5.0
"""Kernels per packing of K and V for all heads; and for each sequence and KV head, whose pieces and offsets a Python
loop cuts and waits for (``.item()``), in the first packing and in later ones (kernel/compression.py)."""


UNPACK_ELEMENT, UNPACK_NONZERO = 37.0, 107.0
"""Issue slots of the released kernel per element and per non-zero of a tile: it takes 0.811 of a dense cuBLAS product
at 50 % and 0.619 at 70 % (paper, Fig. 6: Llama-2-7B, RTX 6000 Ada, which streams 0.85 of 960 GB/s), so 0.33 for the
elements and 0.96 for all of them kept. A block of 70 KB and four warps has an SM to itself; each thread finds its next
non-zero by a chain of 64-bit shifts (SpMM_Kernel.cuh), so most of the slots are waits."""


def packed(op: Attention, keep: float) -> Elementwise:
    """Prune and pack the new tokens' K and V as released: a prompt's at once, a generated token's share of its group.

    Per element 9 reads and 5 writes of eager kernels, two of masks, the kept ones read once and written twice; the
    k-th largest magnitude of every head vector is searched.
    """
    b = op.kv_element_bytes
    elements = op.batch * op.q_len * op.dense_bytes_per_token / b
    heads = 2.0 * op.batch * op.n_kv_heads
    first = op.phase == "prefill"
    kernels = PRUNE_KERNELS + heads * (HEAD_KERNELS if first else LATER_KERNELS)
    return Elementwise(
        role="kv.pack",
        kind="copy",
        read_bytes=elements * (9.0 * b + 1.0 + b * keep),
        write_bytes=elements * (5.0 * b + 1.0 + 2.0 * b * keep),
        operand=Operand.KV,
        select_elements=elements,
        select_rows=elements / op.head_dim,
        launches=kernels if first else kernels / PACK_GROUP,
        host_sync=2.0 if first else 0.0,
        count=op.count,
        overhead=True,
    )


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

    Decode reads ``r(keep) = keep + 0.148`` of the dense bytes behind a dense window, expanded in shared memory and
    multiplied densely. ``kernel=split`` is the released code [2]_: every query head expands for itself, padded to eight
    rows; each step joins the heads' pieces of values into one and converts the bitmaps, both whole, and hands scores of
    eight rows through memory. The window has kernels of its own, whose output is added. A prompt is pruned and packed
    after its attention, head by head with a wait of the host; generated tokens in groups of 256. ``kernel=fused`` packs
    in one pass, expands once for a group of heads and passes fp32 scores once.

    References
    ----------
    .. [1] "Mustafar: Promoting Unstructured Sparsity for KV Cache Pruning", arXiv:2505.22913.
    .. [2] github.com/dhjoo98/mustafar, models/llama_mustafar_kernel.py and kernel/.
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
    kernel: Literal["split", "fused"] = Field("split", description="as the released code, or all that fits fused")
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
        keep = 0.5 * (self.keep + (self.keep if self.keep_v is None else self.keep_v))
        fused = self.kernel == "fused"
        new = op.batch * op.q_len * dense
        pack = replace(copied("kv.pack", op, new, new * share), launches=2.0) if fused else packed(op, keep)
        if op.phase == "prefill":
            return (op, pack)
        elements = small_elements(op, self.window)
        group = 1.0 if fused else op.n_heads / op.n_kv_heads
        attention = replace(
            op,
            bytes_per_token=mean_token_bytes(op.tokens, dense, dense * share, self.window),
            run_bytes=op.run_bytes * share,
            expand=Expand(elements=elements, nonzeros=elements * keep)
            if fused
            else Expand(instructions=group * elements * (UNPACK_ELEMENT + UNPACK_NONZERO * keep)),
        )
        if group > 1.0:
            attention = replace(attention, tile_bytes=group * attention.kv_read_bytes)
        if fused:
            return (attention, split_scores(op, 4.0, 4.0, 1.0), pack)
        values = elements * (op.kv_element_bytes * (keep + PAD_ELEMENTS / TILE) + 8.0 / TILE)
        # Joined to one row, scaled, softmax in fp32, rounded, padded to eight rows: 12 B in and out for one row, 16 for
        # eight; the K product writes eight rows over zeros, the V product reads them.
        return (
            attention,
            replace(copied("kv.join", op, values, values), launches=4.0),
            split_scores(op, 28.0, 58.0, 6.0),
            split_window(op, WINDOW_KERNELS + 2.0),  # the query padded, zeros under the output
            pack,
        )

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """Bitmap tiles behind a dense window."""
        if self._off:
            return kv
        return replace(
            kv,
            token_bytes=kv.token_bytes * self._share(ctx.kv_element_bytes),
            dense_tokens=float(self.window),
            passing_bytes=kv.dense_bytes,
        )
