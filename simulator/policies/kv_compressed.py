"""Every token stays in the KV cache, each one smaller: quantised or pruned to a bitmap."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from simulator.arrays import Array
from simulator.dtypes import Format
from simulator.model import ModelSpec
from simulator.ops import Attention, Elementwise, Expand, Op
from simulator.policies.base import Aspect, Compatibility, Context, KvLayout, Policy
from simulator.policies.grammar import POLICIES
from simulator.traffic import Operand

_SCALE_BYTES = 4.0  # fp16 scale and fp16 zero of one group


def mean_token_bytes(
    tokens: Array, dense_bytes: float, small_bytes: float, window: float
) -> np.ndarray:
    """Bytes per token when the newest `window` tokens stay dense [B].

    ``(dense * min(S, w) + small * max(S - w, 0)) / S``.
    """
    s = np.maximum(np.asarray(tokens, float), 1.0)
    dense = np.minimum(s, window)
    return (dense * dense_bytes + (s - dense) * small_bytes) / s


def small_elements(op: Attention, window: float) -> Array:
    """Elements of one call that are read from the compressed part, behind the dense window [-]."""
    per_token = op.dense_bytes_per_token / op.kv_element_bytes * op.kv_head_keep
    return op.batch * np.maximum(op.tokens - window, 0.0) * per_token


def _no_latent(model: ModelSpec) -> str | None:
    if any(layer.attention.mla for layer in model.layers):
        return "no published kernel compresses the MLA latent"
    return None


@POLICIES.register("kv_quant")
class KvQuant(Policy):
    """K and V in `bits` bits with a 16-bit scale and zero per group; the newest tokens stay 16 bit.

    Bytes per element ``bits / 8 + 4 / group`` [1]_; dequantisation is fused into the attention kernel and
    costs one expanded element each. New tokens are quantised as the window slides, a prompt in one pass.

    References
    ----------
    .. [1] Liu et al., "KIVI", arXiv:2402.02750, whose layout this is.
    """

    name: ClassVar[str] = "kv_quant"
    family: ClassVar[str] = "kv compressed"
    summary: ClassVar[str] = "KV cache quantised in groups, newest tokens in 16 bit"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_FORMAT})
    compatibility: ClassVar[Compatibility] = Compatibility(prefix_cache=True)
    citation: ClassVar[str] = "Liu et al. 2024, arXiv:2402.02750"
    not_modelled: ClassVar[str] = "accuracy"
    always_shown: ClassVar[tuple[str, ...]] = ("bits",)

    bits: Literal["2", "4", "8"] = Field("4", description="bits per stored element")
    group: int = Field(64, ge=16, le=1024, description="elements that share a scale and a zero")
    window: int = Field(128, ge=0, le=8192, description="newest tokens kept in 16 bit")

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """MLA caches a latent these kernels do not read."""
        return _no_latent(model)

    def _share(self, dense_element_bytes: float) -> float:
        return (int(self.bits) / 8.0 + _SCALE_BYTES / self.group) / dense_element_bytes

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Smaller tokens in decode, one quantising pass over what is new."""
        if not isinstance(op, Attention):
            return (op,)
        share = self._share(op.kv_element_bytes)
        new = op.batch * op.q_len * op.dense_bytes_per_token
        quantise = Elementwise(
            role="kv.quantise",
            kind="copy",
            read_bytes=new,
            write_bytes=new * share,
            operand=Operand.KV,
            count=op.count,
            overhead=True,
        )
        if op.phase == "prefill":
            return (op, quantise)
        dense = op.dense_bytes_per_token
        per_token = mean_token_bytes(op.tokens, dense, dense * share, self.window)
        elements = small_elements(op, self.window)
        return (
            replace(
                op,
                bytes_per_token=per_token,
                run_bytes=op.run_bytes * share,
                expand=Expand(elements=elements, nonzeros=0.0),
            ),
            quantise,
        )

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """Groups of small elements behind a dense window."""
        return replace(
            kv,
            token_bytes=kv.token_bytes * self._share(ctx.kv_element_bytes),
            dense_tokens=float(self.window),
        )


TILE = 64
"""Elements per bitmap tile."""
TILE_BYTES = 8 + 4
"""64-bit bitmap and 32-bit offset of one tile [B]."""
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
    multiplies densely with the query padded to eight rows, and writes fp32 scores out once. A prompt is
    pruned and packed after its attention; each new token as it leaves the window.

    References
    ----------
    .. [1] "Mustafar: Promoting Unstructured Sparsity for KV Cache Pruning", arXiv:2505.22913.
    """

    name: ClassVar[str] = "mustafar"
    family: ClassVar[str] = "kv compressed"
    summary: ClassVar[str] = "KV cache pruned by magnitude, stored as bitmap tiles"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_FORMAT})
    compatibility: ClassVar[Compatibility] = Compatibility(
        paged_kv=False, prefix_cache=False, speculative=False, gqa="tiles are shared by the group"
    )
    citation: ClassVar[str] = "arXiv:2505.22913"
    not_modelled: ClassVar[str] = "accuracy; the 64-token packing rhythm is spread over the steps"
    always_shown: ClassVar[tuple[str, ...]] = ("keep",)

    keep: float = Field(0.3, gt=0.0, le=1.0, description="share of K elements kept per token")
    keep_v: float | None = Field(None, gt=0.0, le=1.0, description="share of V kept; default keep")
    window: int = Field(32, ge=0, le=4096, description="newest tokens kept dense")
    fallback: Literal["none", "dense"] = Field("none", description="dense path at keep=1")

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """MLA caches a latent these kernels do not read."""
        return _no_latent(model)

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
        return (attention, scores, pack)

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """Bitmap tiles behind a dense window."""
        if self._off:
            return kv
        return replace(
            kv,
            token_bytes=kv.token_bytes * self._share(ctx.kv_element_bytes),
            dense_tokens=float(self.window),
        )
