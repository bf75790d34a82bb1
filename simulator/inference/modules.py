"""Attention blocks as the one call that engines were measured with, projections included."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from simulator.base.dtypes import DType, Format
from simulator.model.layer import AttentionSpec
from simulator.ops.module import AttentionModule, ModuleWidths, block_widths, compressed_widths
from simulator.ops.ops import Op
from simulator.ops.step import Step
from simulator.policies.common import mla_module


@lru_cache(maxsize=256)
def widths(a: AttentionSpec, hidden: int) -> ModuleWidths:
    """Sizes of a block with `AttentionSpec.module`."""
    if a.blocks is not None:
        index = {"index_dim": float(a.blocks.head_dim), "top_k": float(a.blocks.tokens)}
        sizes = {"n_heads": float(a.n_heads), "kv_heads": float(a.n_kv_heads), "head_dim": float(a.head_dim)}
        return block_widths(hidden=float(hidden), **sizes, **index)
    spec = a.compressed
    if spec is None:
        return mla_module(a, hidden)
    index = {}
    if spec.indexer is not None:
        index = {"index_heads": spec.indexer.n_heads, "index_dim": spec.indexer.head_dim, "top_k": spec.indexer.top_k}
    return compressed_widths(
        hidden=float(hidden),
        q_rank=float(spec.q_rank),
        head_dim=float(a.head_dim),
        o_rank=float(spec.o_rank),
        o_groups=float(spec.o_groups),
        n_heads=float(a.n_heads),
        compress=float(spec.ratio),
        window=float(a.window or 0),
        **{name: float(value) for name, value in index.items()},
    )


def calls(
    a: AttentionSpec, hidden: int, tp: int, fmt: Format, kv_element_bytes: float, step: Step, count: float
) -> Iterator[Op]:
    """The whole block of each phase; a step of both multiplies the projections once, with the prompt's tokens."""
    # What picks the latents is put to MLA as `simulator.inference.latent` does, with the layer's own choice.
    kind = "mla-dense" if a.mla is not None else a.module
    common: dict[str, Any] = {"kind": kind, "n_heads": a.n_heads / tp, "widths": widths(a, hidden), "fmt": fmt}
    common |= {"math": DType.BF16, "kv_element_bytes": kv_element_bytes, "count": count}
    if step.prefills:
        new = step.prefill_tokens
        sizes = {"batch": step.prefill_rows, "q_len": new, "past_len": step.prefill_context - new}
        yield AttentionModule(role="attn.module.prefill", phase="prefill", **sizes, **common)
    if step.decodes:
        new = step.decode_tokens
        sizes = {"batch": step.decode_rows, "q_len": new, "past_len": step.decode_context - new}
        if step.prefills:
            # What is left to start: two absorbed products and the attention between them.
            common |= {"reads_weights": False, "launches": 3.0}
        yield AttentionModule(role="attn.module", phase="decode", **sizes, **common)
