"""How the KV cache's memory is reserved: contiguous at full length, or virtual pages of large size."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from simulator.policies.base import Aspect, Compatibility, Context, KvLayout, Policy
from simulator.policies.grammar import POLICIES


@POLICIES.register("contiguous_kv")
class ContiguousKv(Policy):
    """One contiguous piece of `tokens` tokens per sequence, reserved at its start, as before paging [1]_.

    References
    ----------
    .. [1] Kwon et al., "Efficient Memory Management ... with PagedAttention", arXiv:2309.06180, section 3.
    """

    name: ClassVar[str] = "contiguous_kv"
    family: ClassVar[str] = "placement"
    summary: ClassVar[str] = "KV reserved at the longest length a sequence may reach"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_ALLOCATION})
    compatibility: ClassVar[Compatibility] = Compatibility(paged_kv=False, prefix_cache=False)
    citation: ClassVar[str] = "Kwon et al. 2023, arXiv:2309.06180"
    not_modelled: ClassVar[str] = "fragmentation between sequences; kernels 20-26 % faster than paged"
    always_shown: ClassVar[tuple[str, ...]] = ("tokens",)

    tokens: int = Field(4096, ge=1, le=100_000_000, description="tokens reserved per sequence")

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """At least the reserved length."""
        most = min(float(self.tokens), kv.max_tokens)
        return replace(kv, reserved_tokens=max(kv.reserved_tokens, most))


@POLICIES.register("vattention")
class VAttention(Policy):
    """Contiguous virtual memory, backed by page groups of `page_kib` per layer and sequence, K and V apart [1]_.

    A group holds ``page_kib 1024 / (heads_kv head_dim b)`` tokens of K or of V; the last one is part empty. Mapping
    (40 us a call) hides behind the step before.

    References
    ----------
    .. [1] Prabhu et al., "vAttention", arXiv:2405.04437.
    """

    name: ClassVar[str] = "vattention"
    family: ClassVar[str] = "placement"
    summary: ClassVar[str] = "virtually contiguous KV on large page groups"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_ALLOCATION})
    compatibility: ClassVar[Compatibility] = Compatibility(paged_kv=False)
    citation: ClassVar[str] = "Prabhu et al. 2024, arXiv:2405.04437"
    not_modelled: ClassVar[str] = "the 7-13 % fewer instructions of an unpaged prompt kernel"
    always_shown: ClassVar[tuple[str, ...]] = ("page_kib",)

    page_kib: int = Field(2048, ge=4, le=1_048_576, description="KiB per page group")

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """Whole page groups."""
        tokens = self.page_kib * 1024.0 / max(kv.dense_bytes / 2.0, 1.0)
        return replace(kv, piece_tokens=max(kv.piece_tokens, tokens))
