"""An attention module as an engine runs it: projections, choice of tokens and attention of one layer in one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Literal, NamedTuple

from simulator.base.arrays import Array, maximum, minimum, where
from simulator.base.dtypes import DType, Format
from simulator.ops.pairs import causal_pairs
from simulator.ops.part import OpPart
from simulator.ops.traffic import Access, Operand, Traffic

ModuleKind = Literal[
    "mla-dense", "dsa", "csa", "hca", "msa", "indexer-logits", "top-k", "dsa-attention", "hca-attention"
]
PIECES: Mapping[str, frozenset[str]] = {
    "mla-dense": frozenset({"projections", "attention"}),
    "dsa": frozenset({"projections", "index", "select", "attention"}),
    "csa": frozenset({"projections", "index", "select", "attention"}),
    "hca": frozenset({"projections", "attention"}),
    "msa": frozenset({"projections", "index", "select", "attention"}),
    "indexer-logits": frozenset({"index"}),
    "top-k": frozenset({"select"}),
    "dsa-attention": frozenset({"attention"}),
    "hca-attention": frozenset({"attention"}),
}
"""What a module, or one kernel of it, consists of."""
QUERY_TILE = 64.0
"""Queries of a sequence that an indexer's tile holds [-]."""
SHORT_TOKENS = 131072.0
"""Tokens of all sequences up to which SGLang's DSA attends short prompts densely, its chunk's capacity [-]."""
LEAST_ENTRIES = 64.0
"""Entries of a tile: fewer cost a query as much [-]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleWidths:
    """Sizes of a module that neither the step nor the number of GPUs changes.

    Attributes
    ----------
    hidden : float
        Model width [-].
    shared, per_head : float
        Weights of the projections that do not depend on the heads, and those of one query head [-].
    absorbed : float
        Weights of one head kept in 16 bit that turn latents into keys and values of the query's side [-].
    rebuilt : float
        Weights of one head through which a prompt rebuilds keys and values of its whole context; 0: it does not [-].
    qk, av : float
        Widths of the two products of one head in decode; `prompt_qk`, `prompt_av` in a prompt [-].
    stored : float
        Elements of one cache entry over the KV heads of the whole model [-].
    kv_heads : float
        KV heads of the whole model that are split with the query heads; 0: one entry serves all heads [-].
    n_heads : float
        Query heads of the whole model [-].
    index_weights : float
        Weights of the indexer's projections [-].
    index_heads, index_dim : float
        Heads of the indexer and their width [-].
    index_bytes : float
        Bytes of an indexer key, scales included [B].
    compress : float
        Tokens per cache entry [-].
    top_k : float
        Entries attended at most; inf: all [-].
    window : float
        Newest tokens attended besides, uncompressed [-].
    """

    hidden: float
    shared: float
    per_head: float
    qk: float
    av: float
    prompt_qk: float
    prompt_av: float
    stored: float
    n_heads: float
    absorbed: float = 0.0
    rebuilt: float = 0.0
    kv_heads: float = 0.0
    index_weights: float = 0.0
    index_heads: float = 0.0
    index_dim: float = 0.0
    index_bytes: float = 0.0
    compress: float = 1.0
    top_k: float = inf
    window: float = 0.0


def mla_widths(
    *,
    hidden: float,
    q_rank: float,
    latent: float,
    rope: float,
    nope: float,
    value: float,
    n_heads: float,
    index_heads: float = 0.0,
    index_dim: float = 128.0,
    top_k: float = inf,
) -> ModuleWidths:
    """MLA [1]_, and with `index_heads` DeepSeek's sparse attention on it [2]_, whose prompt stays on the latents.

    .. [1] DeepSeek-V2, arXiv:2405.04434, section 2.1.
    .. [2] DeepSeek-V3.2, arXiv:2512.02556, section 2.
    """
    sparse = index_heads > 0.0
    return ModuleWidths(
        hidden=hidden,
        shared=hidden * (q_rank + latent + rope),
        per_head=q_rank * (nope + rope) + value * hidden,
        absorbed=latent * (nope + value),
        rebuilt=0.0 if sparse else latent * (nope + value),
        qk=latent + rope,
        av=latent,
        prompt_qk=latent + rope if sparse else nope + rope,
        prompt_av=latent if sparse else value,
        stored=latent + rope,
        n_heads=n_heads,
        index_weights=q_rank * index_heads * index_dim + hidden * (index_dim + index_heads) if sparse else 0.0,
        index_heads=index_heads,
        index_dim=index_dim,
        index_bytes=index_dim + 4.0,
        top_k=top_k,
    )


def compressed_widths(
    *,
    hidden: float,
    q_rank: float,
    head_dim: float,
    o_rank: float,
    o_groups: float,
    n_heads: float,
    compress: float,
    window: float,
    index_heads: float = 0.0,
    index_dim: float = 128.0,
    top_k: float = inf,
) -> ModuleWidths:
    """DeepSeek-V4's attention over one entry per `compress` tokens and a window: CSA with an indexer, HCA without.

    One KV head serves all queries; the output goes through groups of heads of rank `o_rank`. The compressor projects
    keys and gates, twice where neighbouring entries overlap (CSA).
    """
    overlap = 2.0 if index_heads else 1.0
    index = q_rank * index_heads * index_dim + hidden * index_heads + 2.0 * overlap * hidden * index_dim
    return ModuleWidths(
        hidden=hidden,
        shared=hidden * (q_rank + head_dim + 2.0 * overlap * head_dim),
        per_head=q_rank * head_dim + head_dim * o_rank + o_groups / n_heads * o_rank * hidden,
        qk=head_dim,
        av=head_dim,
        prompt_qk=head_dim,
        prompt_av=head_dim,
        stored=head_dim,
        n_heads=n_heads,
        index_weights=index if index_heads else 0.0,
        index_heads=index_heads,
        index_dim=index_dim,
        index_bytes=index_dim + 4.0,
        compress=compress,
        top_k=top_k,
        window=window,
    )


def block_widths(
    *, hidden: float, n_heads: float, kv_heads: float, head_dim: float, index_dim: float, top_k: float
) -> ModuleWidths:
    """MiniMax-M3's sparse attention [1]_: GQA over blocks that one index head per KV head picks; `top_k` in tokens.

    .. [1] MiniMax Sparse Attention, arXiv:2606.13392.
    """
    group = n_heads / kv_heads
    return ModuleWidths(
        hidden=hidden,
        shared=0.0,
        per_head=2.0 * hidden * head_dim * (1.0 + 1.0 / group),
        qk=head_dim,
        av=head_dim,
        prompt_qk=head_dim,
        prompt_av=head_dim,
        stored=2.0 * kv_heads * head_dim,
        n_heads=n_heads,
        kv_heads=kv_heads,
        index_weights=hidden * index_dim * (kv_heads + 1.0),
        index_heads=kv_heads,
        index_dim=index_dim,
        index_bytes=2.0 * index_dim,
        top_k=top_k,
    )


class ModuleDemand(NamedTuple):
    """What a module asks of any machine, piece by piece; every field broadcasts.

    Attributes
    ----------
    tokens, queries, context, heads : Array
        New tokens of all sequences and of one, all tokens of one, query heads on the GPU [-].
    group : Array
        Query heads that share a cache entry [-].
    quantised, four, kv8 : Array
        1 where activations are quantised before the projections, where to 4 bits, and where the cache has 8 [-].
    weight_bytes, hidden_bytes : Array
        Weights, and hidden states and queries passed between the kernels [B].
    projection_flop, absorbed_flop : Array
        Products with weights in their format, and with 16-bit ones [flop].
    kv_bytes, gather_bytes, cached_bytes : Array
        Cache entries attended once per sequence; as every query of a sparse prompt gathers them; and all there are,
        which some engines copy before they gather [B].
    attention_flop, whole_flop : Array
        Products with the entries attended, and as if every query attended as many as it may [flop].
    index_bytes, index_flop, tile_flop : Array
        Keys of the indexer and products with them, and those of a prompt's whole tiles of queries [B], [flop].
    scores : Array
        Scores a choice is made among [-].
    rows, chosen : Array
        Queries that are scored or attend on their own, and 1 where there is more than can be attended [-].
    prompt, short : Array
        1 in a prompt, and in one that may attend all of its context, which some engines then do without latents [-].
    sequences, entries, depth : Array
        Sequences, entries of one, and those that one of its queries attends, one after the other [-].
    whole_bytes : Array
        Keys and values of the whole context, copied by every query of a reference implementation [B].
    split_bytes : Array
        The same where this GPU holds several KV heads [B].
    """

    tokens: Array
    queries: Array
    context: Array
    heads: Array
    group: Array
    quantised: Array
    four: Array
    kv8: Array
    weight_bytes: Array
    hidden_bytes: Array
    projection_flop: Array
    absorbed_flop: Array
    kv_bytes: Array
    gather_bytes: Array
    cached_bytes: Array
    attention_flop: Array
    whole_flop: Array
    index_bytes: Array
    index_flop: Array
    tile_flop: Array
    scores: Array
    rows: Array
    chosen: Array
    prompt: Array
    short: Array
    sequences: Array
    entries: Array
    depth: Array
    whole_bytes: Array
    split_bytes: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionModule:
    """The attention block of one layer on one GPU, or one kernel of it.

    Attributes
    ----------
    kind : str
        Module, or the kernel of one (see `PIECES`).
    phase : {'prefill', 'decode'}
        Which kernels run.
    batch, q_len, past_len : Array
        Sequences, new tokens of each, tokens cached before them [-].
    n_heads : Array
        Query heads on this GPU [-].
    widths : ModuleWidths
        Sizes of the module.
    fmt : Format
        Format of the projections.
    math : DType
        Format in which queries and keys are multiplied.
    kv_element_bytes : float
        Bytes per stored element of the cache [B].
    indexes : bool
        Whether this layer chooses its tokens; False where it takes the choice of a layer before.
    reads_weights : bool
        False where the other phase of a mixed step has just read them: the projections of both are one product.
    launches : float
        Launches of one call: as many as the single ops the module stands for, latents to output [-].
    like : AttentionModule, optional
        The dense module whose kernels' efficiency it reaches where they are faster than its own.
    """

    role: str
    kind: ModuleKind
    phase: Literal["prefill", "decode"]
    batch: Array
    q_len: Array
    past_len: Array
    n_heads: Array
    widths: ModuleWidths
    fmt: Format
    math: DType
    kv_element_bytes: float
    indexes: bool = True
    reads_weights: bool = True
    launches: float = 9.0
    like: AttentionModule | None = None
    count: Array = 1.0
    part: OpPart = OpPart.ATTENTION
    overhead: bool = False
    graph_safe: bool = True
    host_sync: float = 0.0

    def has(self, piece: str) -> bool:
        """Whether the module contains `piece` of `PIECES`."""
        return piece in PIECES[self.kind] and (self.indexes or piece not in ("index", "select"))

    @property
    def tokens(self) -> Array:
        """New tokens of all sequences [-]."""
        return self.batch * self.q_len

    @property
    def context(self) -> Array:
        """Tokens of one sequence, new ones included [-]."""
        return self.past_len + self.q_len

    @property
    def index_heads(self) -> Array:
        """Index heads on this GPU: split only where KV heads are [-]."""
        w = self.widths
        return self.held if w.kv_heads else w.index_heads

    @property
    def _share(self) -> Array:
        """Share of split KV heads that this GPU holds, one head at least [-]."""
        w = self.widths
        return maximum(self.n_heads / w.n_heads, 1.0 / w.kv_heads) if w.kv_heads else 1.0

    @property
    def held(self) -> Array:
        """KV heads on this GPU; one where all query heads share an entry [-]."""
        w = self.widths
        return w.kv_heads * self._share if w.kv_heads else 1.0

    @property
    def entry_bytes(self) -> Array:
        """Bytes of one cache entry on this GPU [B]."""
        return self.widths.stored * self.kv_element_bytes * self._share

    @property
    def pairs(self) -> Array:
        """(query, entry) pairs attended per sequence and head [-]."""
        w = self.widths
        reach = None if w.top_k == inf else w.compress * w.top_k
        pairs = causal_pairs(self.q_len, self.context, reach) / w.compress
        return pairs + causal_pairs(self.q_len, self.context, w.window) if w.window else pairs

    def demand(self) -> ModuleDemand:
        """Demand of one call by piece."""
        w, tokens, heads = self.widths, self.tokens, self.n_heads
        projects, attends = self.has("projections"), self.has("attention")
        indexes, selects = self.has("index"), self.has("select")
        prompt = self.phase == "prefill"
        weights = (w.shared + heads * w.per_head + (w.index_weights if indexes else 0.0)) * projects
        read = weights * self.fmt.weight_bytes + heads * w.absorbed * 2.0 * projects
        rebuilds = prompt and w.rebuilt > 0.0
        rebuilt = 2.0 * self.batch * self.context * heads * w.rebuilt if rebuilds else 0.0
        absorbed = 0.0 if rebuilds else heads * w.absorbed * projects
        entries = minimum(self.context / w.compress, self.q_len * w.top_k)
        if w.window:
            entries = entries + minimum(self.context, w.window + self.q_len)
        width = w.prompt_qk + w.prompt_av if prompt else w.qk + w.av
        most = w.window + (LEAST_ENTRIES if w.top_k == inf else w.top_k)
        full = causal_pairs(self.q_len, self.context) / w.compress
        each = self.batch * attends
        gathers = prompt and w.top_k < inf
        all_fit = (self.context <= w.compress * w.top_k) & (self.batch * self.context <= SHORT_TOKENS)
        whole = self.tokens * self.context / w.compress * self.entry_bytes * attends
        index_flop = 2.0 * self.batch * full * self.index_heads * w.index_dim * indexes
        return ModuleDemand(
            tokens=tokens,
            queries=self.q_len,
            context=self.context,
            heads=heads,
            group=heads / self.held,
            quantised=float(projects and self.fmt.weight_bits < 16.0),
            four=float(projects and self.fmt.weight_bits < 8.0),
            kv8=float(attends and self.kv_element_bytes < 2.0),
            weight_bytes=read * self.reads_weights,
            hidden_bytes=2.0 * tokens * (2.0 * w.hidden + heads * (w.qk + w.av)) * projects,
            projection_flop=2.0 * tokens * weights + rebuilt * projects,
            absorbed_flop=2.0 * tokens * absorbed,
            kv_bytes=each * entries * self.entry_bytes,
            gather_bytes=each * self.pairs * self.entry_bytes if gathers else 0.0,
            cached_bytes=each * self.context / w.compress * self.entry_bytes if gathers else 0.0,
            attention_flop=2.0 * each * self.pairs * heads * width,
            whole_flop=2.0 * attends * tokens * most * heads * width,
            index_bytes=self.batch * self.context / w.compress * w.index_bytes * indexes,
            index_flop=index_flop,
            tile_flop=index_flop * maximum(QUERY_TILE / self.q_len, 1.0) * prompt,
            scores=self.batch * full * self.held * selects,
            rows=tokens * self.held * (indexes or selects or not projects),
            chosen=where(self.context > w.compress * w.top_k, 1.0, 0.0) * selects,
            prompt=float(prompt),
            short=where(all_fit, 1.0, 0.0) * (prompt and w.top_k < inf),
            sequences=self.batch,
            entries=self.context / w.compress,
            depth=(minimum(self.context / w.compress, w.top_k) + minimum(self.context, w.window)) * attends,
            whole_bytes=whole,
            split_bytes=where(self.held > 1.0, whole, 0.0),
        )

    def traffic(self) -> Traffic:
        """Weights, cache and index keys once per sequence; hidden states in and out; fp32 scores written and read."""
        d = self.demand()
        flop: dict[DType, Array] = {}
        parts = (
            (self.fmt.math, d.projection_flop),
            (DType.BF16, d.absorbed_flop),
            (self.math, d.attention_flop),
            (DType.FP8, d.index_flop),
        )
        for dtype, amount in parts:
            flop[dtype] = flop.get(dtype, 0.0) + amount
        projects = self.has("projections")
        hidden = 2.0 * self.tokens * self.widths.hidden * projects
        new = self.tokens * self.entry_bytes / self.widths.compress * projects
        return Traffic(
            flop,
            {
                Operand.WEIGHT: Access(d.weight_bytes),
                Operand.KV: Access(d.kv_bytes, new),
                Operand.INDEX: Access(d.index_bytes + 4.0 * d.scores, 4.0 * d.scores),
                Operand.ACTIVATION: Access(hidden, hidden),
            },
            launches=self.launches,
            graph_safe=self.graph_safe,
            host_sync=self.host_sync,
        )
