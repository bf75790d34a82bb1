"""What several policies do alike: scoring, top-k, schedules over depth, reasons to refuse a model."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import model_validator

from simulator.base.arrays import Array, clip, maximum, minimum, where
from simulator.model.layer import AttentionSpec
from simulator.model.spec import ModelSpec
from simulator.ops.dense import is_dense
from simulator.ops.module import ModuleWidths, mla_widths
from simulator.ops.ops import STREAM, Attention, Elementwise, Linear, Op
from simulator.ops.traffic import Operand
from simulator.ops.transfers import Transfer
from simulator.policies.base import Context, Policy, Swept


@lru_cache(maxsize=256)
def mla_module(attention: AttentionSpec, hidden: float, **index: float) -> ModuleWidths:
    """Sizes of an MLA layer as one attention module; `index` as `mla_widths` takes it."""
    mla = attention.mla
    if mla is None or mla.q_lora_rank is None:
        raise TypeError("only MLA with low-rank queries is measured as a module")
    return mla_widths(
        hidden=float(hidden),
        q_rank=float(mla.q_lora_rank),
        latent=float(mla.kv_lora_rank),
        rope=float(mla.qk_rope_head_dim),
        nope=float(mla.qk_nope_head_dim),
        value=float(attention.v_head_dim),
        n_heads=float(attention.n_heads),
        **index,
    )


BANDS = 4
"""Bands of equal depth that a schedule over the layers is cut into; each takes its mean."""


def band(index: int, n_layers: int) -> int:
    """Band of a layer [-]."""
    return index * BANDS // n_layers


def band_depth(ctx: Context) -> float:
    """Middle of the band of the op's layer, 0 at the first layer and 1 at the last [-]."""
    return (band(ctx.index, ctx.model.n_layers) + 0.5) / BANDS


def only(op: Linear | Attention, kernel: str) -> str:
    """`kernel` where `op` is still dense; no published kernel does what another policy asks as well."""
    return kernel if is_dense(op) else ""


def dense_ffn_only(
    model: ModelSpec, what: str = "the method works on a dense FFN; experts are not covered"
) -> str | None:
    """`what` where the model has experts, None where its feed-forward blocks are dense."""
    if model.is_moe:
        return what
    return None if model.feed_forwards else f"{model.name} has no feed-forward block"


Fallback = Literal["none", "dense"]
"""Whether software has a dense path for a method: it then runs dense at keep=1, and each product the faster way."""


def or_dense(sparse: Linear, dense: Linear, fallback: Fallback) -> Linear:
    """`sparse`, or where the software has that path the `dense` product if it is faster."""
    return replace(sparse, instead=dense) if fallback == "dense" else sparse


def generated(op: Attention, ctx: Context) -> Array:
    """Tokens generated so far per sequence; 0 where the step does not know its prompts [-]."""
    if ctx.step.decode_prompt is None:
        return 0.0
    return maximum(op.kv_len - ctx.step.decode_prompt, 0.0)


def prompt_of(op: Attention, ctx: Context) -> Array:
    """Prompt tokens per sequence; the whole context where the step does not know [-]."""
    return op.kv_len if ctx.step.decode_prompt is None else ctx.step.decode_prompt


def copied(
    role: str,
    op: Attention,
    read_bytes: Array,
    write_bytes: Array,
    *,
    operand: Operand = Operand.KV,
    count: Array | None = None,
    run_bytes: float = STREAM,
) -> Elementwise:
    """One pass that reads and writes as often as `op` runs, by default over K and V."""
    return Elementwise(
        role=role,
        kind="copy",
        read_bytes=read_bytes,
        write_bytes=write_bytes,
        operand=operand,
        run_bytes=run_bytes,
        count=op.count if count is None else count,
        overhead=True,
    )


def store(op: Attention, written: Array) -> Transfer:
    """New K and V on their way to host memory, beside the rest of the block."""
    return Transfer(
        role="kv.store",
        tier="host",
        read_bytes=0.0,
        write_bytes=written,
        beside=("attn.", "mlp.", "norm", "kv."),
        count=op.count,
    )


def score(
    op: Attention,
    units: Array,
    *,
    unit_bytes: Array,
    unit_flop: Array,
    heads: Array,
    count: Array,
    role: str = "kv.estimate",
) -> Elementwise:
    """One score per unit (page, token, chunk) and head, from what is kept of each unit.

    Reads ``units * unit_bytes``, computes ``units * unit_flop``, writes ``units * heads`` fp32 scores; `units` are
    those of the whole batch.
    """
    return Elementwise(
        role=role,
        kind="estimate",
        read_bytes=units * unit_bytes,
        write_bytes=units * heads * 4.0,
        flop=units * unit_flop,
        operand=Operand.KV,
        count=count,
        overhead=True,
    )


def top_k(
    units: Array, picked: Array, *, heads: Array, rows: Array, count: Array, role: str = "kv.top_k"
) -> Elementwise:
    """The best `picked` of `units` per head, both over the whole batch: fp32 scores in, 32-bit indices out.

    `rows` (sequences or queries) times `heads` are searched apart.
    """
    return Elementwise(
        role=role,
        kind="topk",
        read_bytes=units * heads * 4.0,
        write_bytes=picked * heads * 4.0,
        operand=Operand.INDEX,
        select_elements=units * heads,
        select_rows=rows * heads,
        count=count,
        overhead=True,
    )


def partial_outputs(op: Attention, rows: Array, blocks: float, count: Array) -> Elementwise:
    """fp32 outputs of a kernel that walks blocks: one per query row and block, written and added up."""
    partial = rows * op.n_heads * op.head_dim * 4.0 * blocks
    return Elementwise(
        role="attn.reduce", kind="add", read_bytes=partial, write_bytes=partial, handed=True, count=count, overhead=True
    )


def select(
    op: Attention,
    *,
    budget: Array,
    read: Array,
    unit: float,
    unit_bytes: Array,
    unit_flop: Array,
    run_bytes: float,
    heads: Array | None = None,
    picked: Array | None = None,
    scored: Array | None = None,
    searched: Array | None = None,
) -> tuple[Op, ...]:
    """Score, top-k and a gathered attention over `read` tokens, where the context exceeds `budget`.

    Parameters
    ----------
    budget, read : Array
        Tokens above which the selection runs, and tokens read then per KV head [tokens].
    unit : float
        Tokens per scored unit [tokens].
    unit_bytes, unit_flop : float
        Read and computed per unit and sequence [B], [flop].
    run_bytes : float
        Contiguous bytes per picked piece [B].
    heads : float, optional
        Heads that pick apart; default all query heads.
    picked : float, optional
        Units picked per head; default ``budget / unit``.
    scored : float, optional
        Heads whose scores are written; default `heads`.
    searched : float, optional
        Tokens per unit the top-k searches, where scores are pooled before it; default `unit` [tokens].
    """
    heads = op.n_heads if heads is None else heads
    tokens = op.tokens
    active = tokens > budget
    units = op.batch * where(active, tokens / unit, 0.0)
    chosen = budget / unit if picked is None else picked
    count = where(active, op.count, 0.0)
    return (
        score(
            op,
            units,
            unit_bytes=unit_bytes,
            unit_flop=unit_flop,
            heads=heads if scored is None else scored,
            count=count,
        ),
        top_k(
            units * (unit / (unit if searched is None else searched)),
            op.batch * where(active, chosen, 0.0),
            heads=heads,
            rows=op.batch,
            count=count,
        ),
        replace(op, attended=where(active, minimum(read, tokens), tokens), run_bytes=run_bytes),
    )


def scoring_pass(op: Attention, share: Array, *, keys: Array = 1.0, role: str = "kv.estimate.prefill") -> Attention:
    """Q K^T once more, over `share` of the pairs and with `keys` of the bytes of K; nothing is stored or put out."""
    scores = replace(op, role=role, v_head_dim=0.0, pair_keep=share, stores=False, overhead=True)
    return replace(scores, bytes_per_token=scores.dense_bytes_per_token * keys)


def bounded_pairs(op: Attention, per_query: Array) -> Array:
    """Share of the causal pairs when a query sees at most `per_query` tokens [-].

    Queries that see fewer still grow by one token each; the others see ``per_query``.
    """
    most = minimum(per_query, op.kv_len)
    before = op.kv_len - op.q_len
    growing = clip(most - before, 0.0, op.q_len)
    pairs = growing * before + growing * (growing + 1.0) / 2.0 + (op.q_len - growing) * most
    return minimum(pairs / op.pairs, 1.0)


def depth_values(text: str) -> tuple[float, ...]:
    """Shares of a schedule ``a:b:...`` from the first to the last layer; "" = none.

    Raises
    ------
    ValueError
        A part is not a number above 0 and at most 1.
    """
    parts = text.split(":") if text else []
    try:
        values = tuple(float(p) for p in parts)
    except ValueError:
        raise ValueError(f"{text!r} is not a list of shares like 0.3:0.5:0.7") from None
    if any(not 0.0 < v <= 1.0 for v in values):
        raise ValueError(f"{text!r} has a share outside 0 to 1")
    return values


def depth_value(text: str, depth: Array) -> np.ndarray:
    """Share at a `depth` of 0 (first layer) to 1 (last): linear between the parts of ``a:b:...`` [-]."""
    values = depth_values(text)
    return np.asarray(np.interp(depth, np.linspace(0.0, 1.0, len(values)), values))


class ByDepth(Policy):
    """A share `keep` that may differ from layer to layer by `depth`; then `keep` is the layers' mean."""

    swept: ClassVar[Swept | None] = ("keep", "share")
    always_shown: ClassVar[tuple[str, ...]] = ("keep", "depth")

    @model_validator(mode="before")
    @classmethod
    def _one_says_both(cls, given: Any) -> Any:
        """`keep` alone is every layer's share; `depth` alone gives the mean."""
        if "keep" in given and "depth" not in given:
            return {**given, "depth": ""}
        depth = given.get("depth")
        if isinstance(depth, str) and depth and "keep" not in given:
            return {**given, "keep": _mean_share(depth)}
        return given

    @model_validator(mode="after")
    def _agree(self) -> Self:
        keep, depth = self.keep, self.depth  # type: ignore[attr-defined]
        if depth and abs(_mean_share(depth) - keep) > 1e-6:
            raise ValueError(
                f"keep={keep:g} and depth={depth} (mean {_mean_share(depth):g}) disagree; write one of them"
            )
        return self

    def layer_key(self, index: int, n_layers: int) -> Hashable:
        """Shares by depth, in bands."""
        return band(index, n_layers) if self.depth else None  # type: ignore[attr-defined]

    def _keep(self, ctx: Context) -> float:
        if not self.depth:  # type: ignore[attr-defined]
            return self.keep  # type: ignore[attr-defined]
        return float(depth_value(self.depth, band_depth(ctx)))  # type: ignore[attr-defined]


def _mean_share(depth: str) -> float:
    """Mean of a schedule over its bands, to the digits a spelling can carry [-]."""
    return round(float(np.mean(depth_value(depth, (np.arange(BANDS) + 0.5) / BANDS))), 9)
