"""What one decoder layer is made of: attention, feed-forward, experts, norms, with exact counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from simulator.base.checks import require_positive
from simulator.base.errors import InputError
from simulator.model.compressed import CompressedSpec
from simulator.model.formats import AS_PUBLISHED, INDEXER, LATENT, Formats
from simulator.model.indexer import BlockIndexerSpec, IndexerSpec
from simulator.model.state import StateSpec

Position = Literal["rope", "alibi", "learned", "none"]
Norm = Literal["rms", "layer"]
QkNorm = Literal["head", "width", "plain"]
Gate = Literal["width", "head"]
KvFrom = Literal["own", "k", "before"]
Activation = Literal["relu", "relu2", "silu", "gelu", "xielu"]
Part = Literal["embedding", "position", "attention", "ffn", "router", "norm", "projection", "lm_head"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True, slots=True)
class MlaSpec:
    """Multi-head latent attention: K and V of all heads are rebuilt from one latent per token [1]_.

    Attributes
    ----------
    q_lora_rank : int or None
        Width of the query latent; None = queries come from one full matrix (DeepSeek-V2-Lite).
    kv_lora_rank : int
        Width of the cached latent.
    qk_nope_head_dim, qk_rope_head_dim : int
        Query/key width per head without and with rotary position; the rotary key is shared by all
        heads and cached beside the latent.

    References
    ----------
    .. [1] DeepSeek-V2, arXiv:2405.04434, section 2.1.
    """

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int

    def __post_init__(self) -> None:
        require_positive(self, "kv_lora_rank", "qk_nope_head_dim")
        if self.qk_rope_head_dim < 0:
            raise InputError(f"keys cannot have {self.qk_rope_head_dim} dimensions with position")
        if self.q_lora_rank is not None:
            require_positive(self, "q_lora_rank")


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """One attention block.

    Attributes
    ----------
    n_heads, n_kv_heads : int
        Query heads and key/value heads; the group size is their quotient.
    head_dim, v_head_dim : int
        Width of a query/key head and of a value head.
    window : int or None
        Last positions a query sees; None = all of them.
    position : {'rope', 'alibi', 'learned', 'none'}
    qkv_bias, o_bias : bool
        With MLA, `qkv_bias` is the bias of the two down projections.
    qk_norm : {'head', 'width', 'plain'} or None
        Norm of queries and keys over each head with weights for one of them (Qwen3), with weights for all (OLMo-2,
        StableLM), or without weights (Llama 4).
    qk_norm_bias : bool
        That norm has a bias beside its weight (Persimmon).
    sinks : bool
        One learned logit per head joins the softmax (GPT-OSS).
    fused_qkv : bool
        The checkpoint stores Q, K and V as one matrix. Engines fuse them either way.
    gate : {'width', 'head'} or None
        Gate on the output, projected beside the queries: one for each element (Qwen3-Next) or for each head (Laguna).
    chunked : bool
        `window` is the length of chunks: a query sees its own chunk from its start (Llama 4).
    kv_from : {'own', 'k', 'before'}
        K and V are projected here, V is K (Gemma 4's full layers), or both are an earlier layer's, which keeps them.
    indexer : IndexerSpec or None
        Picks the latents that a query attends to; None = all. With MLA of low-rank queries only.
    compressed : CompressedSpec or None
        One KV head whose entry is both K and V, of the newest `window` tokens and of several tokens folded together.
    blocks : BlockIndexerSpec or None
        Picks the blocks that a query attends to; None = all.
    inputs : int
        Vectors of the model's width that Q, K and V are projected from, side by side (two in a layer that drafts) [-].
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int | None = None
    position: Position = "rope"
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: QkNorm | None = None
    mla: MlaSpec | None = None
    sinks: bool = False
    fused_qkv: bool = False
    gate: Gate | None = None
    indexer: IndexerSpec | None = None
    qk_norm_bias: bool = False
    chunked: bool = False
    kv_from: KvFrom = "own"
    compressed: CompressedSpec | None = None
    blocks: BlockIndexerSpec | None = None
    inputs: int = 1

    def __post_init__(self) -> None:
        require_positive(self, "n_heads", "n_kv_heads", "head_dim", "v_head_dim", "inputs")
        if self.n_heads % self.n_kv_heads:
            raise InputError(
                f"{self.n_heads} attention heads cannot be shared evenly by {self.n_kv_heads} key/value heads"
            )
        if self.window is not None:
            require_positive(self, "window")
        if self.chunked and self.window is None:
            raise InputError("chunked attention needs the length of a chunk, its window")
        if self.indexer is not None and (self.mla is None or self.mla.q_lora_rank is None):
            raise InputError("an indexer needs multi-head latent attention with low-rank queries")
        if self.compressed is not None and (self.n_kv_heads, self.head_dim) != (1, self.v_head_dim):
            raise InputError("entries of several tokens need one KV head, whose key is its value")

    @property
    def group_size(self) -> int:
        """Query heads that read one key/value head [-]."""
        return self.n_heads // self.n_kv_heads

    @property
    def q_width(self) -> int:
        """Outputs of the query projection per token, the output's gate among them [-]."""
        gates = {None: 0, "head": self.n_heads, "width": self.n_heads * self.v_head_dim}[self.gate]
        return self.n_heads * self.head_dim + gates

    @property
    def kv_width(self) -> int:
        """Outputs of the K and V projections per token [-]."""
        widths = {"own": self.head_dim + self.v_head_dim, "k": self.head_dim, "before": 0}[self.kv_from]
        return self.n_kv_heads * widths

    @property
    def kv_elements_per_token(self) -> int:
        """Cached elements per token of this layer [-].

        ``n_kv_heads * (head_dim + v_head_dim)``; with MLA ``kv_lora_rank + qk_rope_head_dim``, once
        per token because keys and values are both rebuilt from the same latent; 0 where an earlier layer keeps them.
        """
        if self.kv_from == "before":
            return 0
        if self.mla is not None:
            return self.mla.kv_lora_rank + self.mla.qk_rope_head_dim
        if self.compressed is not None:
            return self.head_dim
        return self.n_kv_heads * (self.head_dim + self.v_head_dim)

    @property
    def folded_elements_per_token(self) -> float:
        """Cached elements per token of entries for several tokens, which no window drops [-]."""
        ratio = self.compressed.ratio if self.compressed is not None else 0
        return self.head_dim / ratio if ratio else 0.0

    @property
    def latents(self) -> bool:
        """Whether one cached entry serves all heads, as K and as V."""
        return self.mla is not None or self.compressed is not None

    @property
    def module(self) -> str:
        """Kind of attention module that engines were measured with on such a block; "" where there is none."""
        if self.blocks is not None:
            return "msa"
        if self.compressed is not None:
            return ("csa" if self.compressed.indexer else "hca") if self.compressed.ratio else ""
        if self.mla is None or self.mla.q_lora_rank is None:
            return ""
        if self.indexer is None:
            return "mla-dense"
        return "dsa" if self.indexer.pool == 1 else ""

    @property
    def matrices(self) -> tuple[str, ...]:
        """Names of its matrices; queries, keys and values are one, as engines fuse them."""
        if self.compressed is not None:
            return tuple(p.matrix for p in self.compressed.products(1, self.n_heads, self.head_dim))
        if self.mla is None:
            return ("attn.qkv", "attn.o", *(INDEXER if self.blocks is not None else ()))
        down = ("attn.q_down",) if self.mla.q_lora_rank is not None else ()
        index = INDEXER if self.indexer is not None and not self.indexer.shared else ()
        return (*down, "attn.q_up", "attn.kv_down", "attn.kv_up", "attn.o", *index)

    def n_params(self, hidden: int) -> int:
        """Weights, biases, sinks and inner norms of a block of width `hidden` [-]."""
        if self.compressed is not None:
            products = self.compressed.products(hidden, self.n_heads, self.head_dim)
            others = self.compressed.others(hidden, self.head_dim) + (self.n_heads if self.sinks else 0)
            return round(sum(p.weights for p in products)) + others
        o_in = self.n_heads * self.v_head_dim
        total = o_in * hidden + (hidden if self.o_bias else 0) + (self.n_heads if self.sinks else 0)
        if self.mla is not None:
            return total + self._mla_params(hidden, self.mla)
        out = self.q_width + self.kv_width
        gates = self.q_width - self.n_heads * self.head_dim
        total += self.inputs * hidden * out + (out - (gates if self.gate == "head" else 0) if self.qkv_bias else 0)
        total += self.blocks.n_params(hidden) if self.blocks is not None else 0
        return total + self._qk_norm_params()

    def _qk_norm_params(self) -> int:
        keys = int(self.kv_from != "before")
        if self.qk_norm == "head":
            total = self.head_dim * (1 + keys)
        elif self.qk_norm == "width":
            total = (self.n_heads + keys * self.n_kv_heads) * self.head_dim
        else:
            return 0
        return total * (2 if self.qk_norm_bias else 1)

    def _mla_params(self, hidden: int, mla: MlaSpec) -> int:
        q_out = self.n_heads * self.head_dim
        if mla.q_lora_rank is None:
            total = hidden * q_out
        else:
            rank = mla.q_lora_rank
            total = hidden * rank + rank + rank * q_out + (rank if self.qkv_bias else 0)
        down = mla.kv_lora_rank + mla.qk_rope_head_dim
        up = self.n_heads * (mla.qk_nope_head_dim + self.v_head_dim)
        total += hidden * down + (down if self.qkv_bias else 0)
        if self.indexer is not None:
            total += self.indexer.n_params(hidden, mla.q_lora_rank or 0)
        return total + mla.kv_lora_rank + mla.kv_lora_rank * up


@dataclass(frozen=True, slots=True)
class FfnSpec:
    """One feed-forward block: two matrices, or three when `gated` (act(x W_g) * (x W_u)) W_d."""

    intermediate: int
    gated: bool
    activation: Activation
    bias: bool = False

    def __post_init__(self) -> None:
        require_positive(self, "intermediate")

    def matrices(self, prefix: str = "mlp") -> tuple[str, str]:
        """Names of its matrices; gate and up are one, as engines fuse them."""
        return f"{prefix}.gate_up" if self.gated else f"{prefix}.up", f"{prefix}.down"

    @property
    def n_up(self) -> int:
        """Matrices from hidden to intermediate: 2 when gated, else 1 [-]."""
        return 2 if self.gated else 1

    def n_params(self, hidden: int) -> int:
        """Weights and biases of a block of width `hidden` [-]."""
        bias = self.n_up * self.intermediate + hidden if self.bias else 0
        return (self.n_up + 1) * hidden * self.intermediate + bias


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """A mixture of experts: a router picks `top_k` of `n_experts` per token; `shared` always runs.

    Attributes
    ----------
    shared : FfnSpec or None
        All shared experts as one block (their intermediates added up).
    shared_gate : bool
        A hidden-to-1 gate scales the shared block (Qwen1.5-MoE, Qwen2-MoE).
    n_groups, top_k_groups : int
        Group-limited routing: experts come from `top_k_groups` of `n_groups` groups (DeepSeek).
    latent : int or None
        Width that the routed experts work at, between two matrices of their own (Nemotron-3 Super); None = the model's.
    """

    n_experts: int
    top_k: int
    expert: FfnSpec
    shared: FfnSpec | None = None
    router_bias: bool = False
    shared_gate: bool = False
    n_groups: int = 1
    top_k_groups: int = 1
    latent: int | None = None

    def __post_init__(self) -> None:
        require_positive(self, "n_experts", "top_k", "n_groups", "top_k_groups")
        if self.latent is not None:
            require_positive(self, "latent")
        if self.top_k > self.n_experts:
            raise InputError(f"top_k is {self.top_k} but there are only {self.n_experts} experts")

    def n_router_params(self, hidden: int) -> int:
        """Router and shared-gate weights [-]."""
        gate = hidden if self.shared_gate else 0
        return self.n_experts * (hidden + (1 if self.router_bias else 0)) + gate

    def matrices(self) -> tuple[str, ...]:
        """Names of its matrices; all experts are one, as engines group them."""
        shared = self.shared.matrices("moe.shared") if self.shared is not None else ()
        return (*(LATENT if self.latent is not None else ()), "moe.experts", *shared)

    def expert_params(self, hidden: int) -> int:
        """Weights of one routed expert in a model of width `hidden` [-]."""
        return self.expert.n_params(self.latent or hidden)

    def n_params(self, hidden: int, experts: int | None = None) -> int:
        """Weights of `experts` routed experts (all when None), of what is around them and of the shared block [-]."""
        count = self.n_experts if experts is None else experts
        shared = self.shared.n_params(hidden) if self.shared is not None else 0
        return count * self.expert_params(hidden) + shared + 2 * hidden * (self.latent or 0)


@dataclass(frozen=True, slots=True)
class SideSpec:
    """A small matrix beside attention and FFN that every token passes, never quantised: `n` outputs of `k` inputs.

    `beside` counts learned elements that go with it, biases and scales [-].
    """

    name: str
    n: int
    k: int
    beside: int = 0

    @property
    def n_params(self) -> int:
        """Elements of the matrix and those that go with it [-]."""
        return self.n * self.k + self.beside

    def __post_init__(self) -> None:
        require_positive(self, "n", "k")


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One decoder layer: attention, a block that keeps a state, a feed-forward block, or some of them.

    Attributes
    ----------
    attention : AttentionSpec or None
        None in a layer without: it has no KV cache.
    ffn : FfnSpec, MoeSpec or None
        None in a layer that mixes tokens alone (Nemotron-H).
    state : StateSpec or None
        Keeps a state in place of the cache, or beside it (Falcon-H1, where both read the same input and are added).
    n_norms : int
        Norms over the hidden width, those inside attention not counted.
    norm_bias, norm_weight : bool
        The norm has a bias beside its weight; it has a weight (OLMo's and NanoChat's have none).
    parallel : bool
        Attention and FFN read the same input and are added together (GPT-J, GPT-NeoX, Falcon).
    formats : Formats
        Matrices that the checkpoint stores in another format than the model's own.
    sides : tuple of SideSpec
        Small matrices beside attention and FFN, in the order they run.
    vectors : int
        Learned elements that are no matrix, no bias and no norm over the hidden width: scales, inner norms [-].
    streams : int
        Residual streams, which are mixed before and after each block (hyper-connections) [-].
    """

    attention: AttentionSpec | None
    ffn: FfnSpec | MoeSpec | None
    n_norms: int = 2
    norm: Norm = "rms"
    norm_bias: bool = False
    parallel: bool = False
    formats: Formats = AS_PUBLISHED
    state: StateSpec | None = None
    norm_weight: bool = True
    sides: tuple[SideSpec, ...] = ()
    vectors: int = 0
    streams: int = 1

    def __post_init__(self) -> None:
        require_positive(self, "streams")
        if self.n_norms < 0:
            raise InputError(f"a layer cannot have {self.n_norms} norms")

    @property
    def mixes(self) -> bool:
        """Whether tokens see each other in this layer."""
        return self.attention is not None or self.state is not None

    @property
    def matrices(self) -> tuple[str, ...]:
        """Weight matrices by name, as `simulator.model.formats.GROUPS` calls them; routers are never quantised."""
        attention = self.attention.matrices if self.attention is not None else ()
        state = self.state.matrices if self.state is not None else ()
        ffn = self.ffn.matrices() if self.ffn is not None else ()
        return (*attention, *state, *ffn)

    def n_params(self, part: Part, hidden: int) -> int:
        """Parameters of `part` in this layer [-]; 0 for parts outside the layers."""
        if part == "attention":
            return sum(block.n_params(hidden) for block in (self.attention, self.state) if block is not None)
        if part == "ffn":
            return 0 if self.ffn is None else self.ffn.n_params(hidden)
        if part == "router":
            return self.ffn.n_router_params(hidden) if isinstance(self.ffn, MoeSpec) else 0
        if part == "norm":
            return self.n_norms * self.norm_params(hidden) + self.vectors
        if part == "projection":
            return sum(side.n_params for side in self.sides)
        return 0

    def norm_params(self, hidden: int) -> int:
        """Weight and bias of one norm over the hidden width [-]."""
        return hidden * (int(self.norm_weight) + int(self.norm_bias))
