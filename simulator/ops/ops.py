"""Op kinds and their Traffic. Every size broadcasts, so one op stands for a whole grid of steps."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal, Protocol

from simulator.base.arrays import Array, minimum
from simulator.base.dtypes import DType, Format
from simulator.ops.pairs import causal_pairs
from simulator.ops.part import OpPart
from simulator.ops.routing import SKEWED, reached
from simulator.ops.traffic import Access, Operand, Traffic
from simulator.ops.union_law import UnionLaw

ACT_BYTES = 2.0
"""Bytes of an activation element between kernels [B]."""
STREAM = inf


class Op(Protocol):
    """One kernel (or one library call) of a step, on one GPU."""

    @property
    def role(self) -> str:
        """Where in the layer it stands, e.g. ``mlp.down``."""
        ...

    @property
    def part(self) -> OpPart:
        """Part of the model it belongs to."""
        ...

    @property
    def count(self) -> Array:
        """Calls per step [-]."""
        ...

    @property
    def overhead(self) -> bool:
        """Work a policy adds to the dense model."""
        ...

    @property
    def graph_safe(self) -> bool:
        """Whether a CUDA graph can hold it."""
        ...

    @property
    def host_sync(self) -> float:
        """Times the host waits for a value of it [-]."""
        ...

    def traffic(self) -> Traffic:
        """Demand of one call; `count` calls are made per step."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Expand:
    """Work of turning a compressed operand back into dense tiles inside the kernel.

    Attributes
    ----------
    elements, nonzeros : Array
        Dense elements written to the tile, and stored values scattered, per call [-].
    instructions : Array
        Instructions of single lanes that unpack values in registers per call [-].
    """

    elements: Array = 0.0
    nonzeros: Array = 0.0
    instructions: Array = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """C[m, n] = A[m, k] B[k, n], with B possibly compressed or read in part.

    ``flop = 2 m n k flop_keep``; weight bytes ``n k bytes_per_weight read_keep``.

    Attributes
    ----------
    m : Array
        Rows: tokens of the step [-].
    n, k : float
        Output and input features on this GPU [-].
    fmt : Format
        Storage and arithmetic of the dense matrix.
    read_keep : Array
        Share of the stored weight that the step reads: the union over its rows [-].
    flop_keep : Array
        Share of the multiply-adds that are done [-].
    gathered : {None, 'n', 'k'}
        Axis whose rows are picked one by one.
    run_bytes : float
        Contiguous bytes per picked row [B]; inf for a stream.
    bytes_per_weight : Array, optional
        Stored bytes per dense element, metadata included [B]; default `fmt.weight_bytes`.
    nm24 : bool
        Multiplied by 2:4 sparse tensor cores.
    expand : Expand, optional
        Decompression work inside the kernel.
    groups : Array
        Independent products of this shape in one call (batched GEMM) [-].
    resident : float
        Share of the stored weight that lies in the GPU's memory [-].
    shared : float
        Stored over read elements where weights share values of a table [-].
    keeps_weights : bool
        B is a weight that stays in memory; False where it is activations or cache, which others count.
    beside : tuple of str
        Prefixes of the roles it runs beside on another stream; empty: nothing.
    instead : Linear, optional
        The product that the software, or a better kernel, runs wherever it is the faster of the two.
    launches : float
        Kernels of one call [-]; 0: part of the kernel before it.
    kernel : str
        Sparse kernel that runs it, ``pattern/library`` of the fit of its speed-up; "": timed by its bytes and flop.
    vector : Array
        Rows of the weight that share a choice of columns [-].
    whole : float
        Share of the weight read whole beside the rows picked: a gate fused with up [-].
    union : UnionLaw, optional
        Where `read_keep` of rows picked token by token comes from.
    """

    role: str
    m: Array
    n: Array
    k: Array
    fmt: Format
    count: Array = 1.0
    read_keep: Array = 1.0
    flop_keep: Array = 1.0
    gathered: Literal["n", "k"] | None = None
    run_bytes: float = STREAM
    bytes_per_weight: Array | None = None
    nm24: bool = False
    expand: Expand | None = None
    groups: Array = 1.0
    resident: float = 1.0
    shared: float = 1.0
    keeps_weights: bool = True
    beside: tuple[str, ...] = ()
    instead: Linear | None = None
    launches: float = 1.0
    kernel: str = ""
    vector: Array = 1.0
    whole: float = 0.0
    union: UnionLaw | None = None
    part: OpPart = OpPart.OTHER
    overhead: bool = False
    graph_safe: bool = True
    host_sync: float = 0.0

    @property
    def weight_read_bytes(self) -> Array:
        """Useful weight bytes of one call [B]."""
        per = self.fmt.weight_bytes if self.bytes_per_weight is None else self.bytes_per_weight
        return self.groups * self.n * self.k * per * self.read_keep

    @property
    def flop(self) -> Array:
        """Multiply-adds of one call, counted twice [flop]."""
        return 2.0 * self.groups * self.m * self.n * self.k * self.flop_keep

    def traffic(self) -> Traffic:
        """Weights once, activations in and out once."""
        act, weight = self.fmt.act_bytes, self.weight_read_bytes
        keep_k, keep_n = (self.read_keep if self.gathered == axis else 1.0 for axis in ("k", "n"))
        runs = weight / self.run_bytes if isfinite(self.run_bytes) else 0.0
        return Traffic(
            {self.fmt.math: self.flop},
            {
                Operand.WEIGHT: Access(weight, 0.0, runs),
                Operand.ACTIVATION: Access(
                    self.groups * self.m * self.k * keep_k * act,
                    self.groups * self.m * self.n * keep_n * self.fmt.out_bytes,
                ),
            },
            launches=self.launches,
            graph_safe=self.graph_safe,
            host_sync=self.host_sync,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """softmax(QK^T)V over a KV cache, causal; the write of the new tokens' K and V is part of it.

    ``pairs`` of a chunk of q tokens behind a context of s tokens (chunk included) is
    ``q (s - q) + q (q + 1) / 2`` causal pairs, clipped by the window; ``flop = 2 (d_qk + d_v) heads pairs``.

    Attributes
    ----------
    phase : {'prefill', 'decode'}
        Which kernel runs.
    batch, q_len, kv_len : Array
        Sequences, new tokens per sequence, context per sequence with the new tokens [-].
    n_heads, n_kv_heads : Array
        Heads on this GPU [-].
    head_dim, v_head_dim : float
        Width of Q/K and of V per head [-]; MLA decode runs on the latent: 576 and 512.
    window : int or None
        Sliding window [tokens].
    kv_element_bytes : float
        Bytes per stored K or V element of the dense cache [B].
    latent : bool
        MLA: one latent per token is both K and V.
    attended : Array, optional
        Tokens whose K and V are really read per sequence and KV head [-]; default all (or the window).
    bytes_per_token : Array, optional
        Stored bytes per attended token over all KV heads here [B]; default dense.
    head_keep : Array
        Share of the query heads that run [-]; `kv_head_keep` of the KV heads.
    pair_keep : Array, optional
        Share of the (query, key) pairs that a mask leaves, be it all of them [-]; default no mask.
    run_bytes : float
        Contiguous bytes per gathered piece [B].
    expand : Expand, optional
        Decompression inside the kernel.
    stores : bool
        The new tokens' K and V are written by this pass.
    tile_bytes : Array
        K and V that the thread blocks of a block-sparse prompt load, each for its own few queries [B]; 0 where a
        tile of queries shares them, as in a dense kernel.
    reuse : float
        1 where the same K and V were read just before, as a benchmark does; 0 in a step [-].
    instead : Attention, optional
        As of a `Linear`; so is `launches`.
    kernel : str
        As of a `Linear`.
    """

    role: str
    phase: Literal["prefill", "decode"]
    batch: Array
    q_len: Array
    kv_len: Array
    n_heads: Array
    n_kv_heads: Array
    head_dim: float
    v_head_dim: float
    math: DType
    kv_element_bytes: float
    count: Array = 1.0
    window: int | None = None
    latent: bool = False
    attended: Array | None = None
    bytes_per_token: Array | None = None
    head_keep: Array = 1.0
    kv_head_keep: Array = 1.0
    pair_keep: Array | None = None
    run_bytes: float = STREAM
    expand: Expand | None = None
    stores: bool = True
    tile_bytes: Array = 0.0
    reuse: float = 0.0
    instead: Attention | None = None
    launches: float = 1.0
    kernel: str = ""
    part: OpPart = OpPart.ATTENTION
    overhead: bool = False
    graph_safe: bool = True
    host_sync: float = 0.0

    @property
    def dense_bytes_per_token(self) -> Array:
        """K and V bytes of one token over the KV heads here [B]."""
        if self.latent:
            return self.head_dim * self.kv_element_bytes
        return self.n_kv_heads * (self.head_dim + self.v_head_dim) * self.kv_element_bytes

    @property
    def tokens(self) -> Array:
        """Tokens read per sequence [-]."""
        if self.attended is not None:
            return self.attended
        return self.kv_len if self.window is None else minimum(self.kv_len, self.window + self.q_len - 1.0)

    @property
    def pairs(self) -> Array:
        """(query, key) pairs per sequence and head [-]."""
        if self.attended is not None:
            lost = minimum(self.q_len, self.attended)
            return self.q_len * self.attended - lost * (lost - 1.0) / 2.0
        return causal_pairs(self.q_len, self.kv_len, self.window)

    @property
    def kv_read_bytes(self) -> Array:
        """Useful K and V bytes of one call [B]."""
        per = self.dense_bytes_per_token if self.bytes_per_token is None else self.bytes_per_token
        return self.batch * self.tokens * per * self.kv_head_keep

    @property
    def flop(self) -> Array:
        """Both products [flop]."""
        width = 2.0 * (self.head_dim + self.v_head_dim)
        pairs = self.pairs if self.pair_keep is None else self.pairs * self.pair_keep
        return self.batch * pairs * self.n_heads * self.head_keep * width

    @property
    def act_bytes(self) -> float:
        """Bytes per element of Q and O: those of the format they are multiplied in [B]."""
        return {DType.FP32: 4.0, DType.FP8: 1.0}.get(self.math, 2.0)

    @property
    def qo_bytes(self) -> tuple[Array, Array]:
        """Q read and O written [B]."""
        row_bytes = self.batch * self.q_len * self.n_heads * self.head_keep * self.act_bytes
        return row_bytes * self.head_dim, row_bytes * self.v_head_dim

    @property
    def kv_write_bytes(self) -> Array:
        """New tokens' K and V, written once [B]."""
        return self.batch * self.q_len * self.dense_bytes_per_token * self.kv_head_keep if self.stores else 0.0

    def traffic(self) -> Traffic:
        """KV once per sequence, Q and O once, the new tokens' K and V written once."""
        q, o = self.qo_bytes
        read, written = self.kv_read_bytes, self.kv_write_bytes
        runs = read / self.run_bytes if isfinite(self.run_bytes) else 0.0
        return Traffic(
            {self.math: self.flop},
            {Operand.KV: Access(read, written, runs), Operand.ACTIVATION: Access(q, o)},
            launches=self.launches,
            graph_safe=self.graph_safe,
            host_sync=self.host_sync,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Moe:
    """A fused layer of routed experts on one GPU.

    Attributes
    ----------
    tokens : Array
        Tokens routed in the step over all GPUs of the group [-].
    hidden, intermediate : Array
        Model width and width of one expert (whole expert) [-].
    top_k, n_experts : Array
        Experts per token (a mean where some are skipped), experts of the layer [-].
    tp, ep : Array
        GPUs that share each expert; groups of GPUs between which the experts are split [-].
    routing : str
        How tokens find experts, as `simulator.roofline.moe.route` reads it; `traffic` counts as
        `simulator.ops.routing.reached` does.
    instead : Moe, optional
        As of a `Linear`.
    """

    role: str
    tokens: Array
    hidden: Array
    intermediate: Array
    top_k: Array
    n_experts: Array
    gated: bool
    fmt: Format
    tp: Array = 1
    ep: Array = 1
    routing: str = SKEWED
    count: Array = 1.0
    bytes_per_weight: float | None = None
    instead: Moe | None = None
    part: OpPart = OpPart.FFN
    overhead: bool = False
    graph_safe: bool = True
    host_sync: float = 0.0

    @property
    def matrices(self) -> int:
        """Weight matrices of one expert [-]."""
        return 3 if self.gated else 2

    @property
    def active_experts(self) -> Array:
        """Expected experts of one GPU that get at least one token [-]."""
        return self.n_experts / self.ep * reached(self.tokens, self.top_k, self.n_experts, self.routing)

    @property
    def expert_elements(self) -> Array:
        """Weights of one expert on one GPU [-]."""
        return self.matrices * self.hidden * self.intermediate / self.tp

    @property
    def flop(self) -> Array:
        """Multiply-adds of the routed tokens on one GPU, counted twice [flop]."""
        return 2.0 * (self.tokens * self.top_k / self.ep) * self.expert_elements

    def traffic(self) -> Traffic:
        """Active experts' weights once, routed activations in and out."""
        per = self.fmt.weight_bytes if self.bytes_per_weight is None else self.bytes_per_weight
        routed, act = self.tokens * self.top_k / self.ep, self.fmt.act_bytes
        return Traffic(
            {self.fmt.math: self.flop},
            {
                Operand.WEIGHT: Access(self.active_experts * self.expert_elements * per),
                Operand.ACTIVATION: Access(
                    routed * (self.hidden + self.intermediate / self.tp) * act,
                    routed * (self.hidden + self.intermediate * (self.matrices - 1) / self.tp) * self.fmt.out_bytes,
                ),
            },
            launches=4.0,
            graph_safe=self.graph_safe,
            host_sync=self.host_sync,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Elementwise:
    """A memory-bound pass: norms, activations, rotary, sampling, top-k, packing, estimates.

    Attributes
    ----------
    kind : str
        Family its launch floor and efficiency are fitted for ('norm', 'activation', 'topk', ...).
    read_bytes, write_bytes : Array
        Useful bytes [B].
    flop : Array
        Vector flop [flop].
    operand : Operand
        What is read.
    run_bytes : float
        Contiguous bytes per gathered piece [B].
    select_elements, select_rows : Array
        Elements a top-k searches, and the rows they stand in: a row is searched by one thread block [-].
    beside : tuple of str
        Prefixes of the roles it runs beside on another stream; empty: nothing.
    launches : Array
        Kernels of one call [-]; 0: part of the kernel before it.
    handed : bool
        Results that one kernel hands to another through memory, which a fused one keeps on chip.
    host_sync : float
        Times the host waits for a value of one call [-]; its kernels are then submitted to an empty stream.
    """

    role: str
    kind: str
    read_bytes: Array
    write_bytes: Array = 0.0
    flop: Array = 0.0
    operand: Operand = Operand.ACTIVATION
    run_bytes: float = STREAM
    select_elements: Array = 0.0
    select_rows: Array = 1.0
    beside: tuple[str, ...] = ()
    launches: Array = 1.0
    handed: bool = False
    count: Array = 1.0
    part: OpPart = OpPart.OTHER
    overhead: bool = False
    graph_safe: bool = True
    host_sync: float = 0.0

    def traffic(self) -> Traffic:
        """What is read and written, and the vector flop as fp32."""
        runs = self.read_bytes / self.run_bytes if isfinite(self.run_bytes) else 0.0
        return Traffic(
            {DType.FP32: self.flop},
            {self.operand: Access(self.read_bytes, self.write_bytes, runs)},
            launches=self.launches,
            graph_safe=self.graph_safe,
            host_sync=self.host_sync,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """A message among the GPUs of one group.

    Attributes
    ----------
    op : str
        'all_reduce', 'all_gather', 'reduce_scatter', 'all_to_all' or 'send_recv'.
    message_bytes : Array
        Full buffer as NCCL counts it [B].
    n_ranks : int
        GPUs in the group [-].
    nodes : int
        Machines it spans, where that is known: between them other libraries and another network work [-].
    """

    role: str
    op: str
    message_bytes: Array
    n_ranks: int
    nodes: int = 1
    count: Array = 1.0
    part: OpPart = OpPart.COMMUNICATION
    overhead: bool = False
    graph_safe: bool = True
    host_sync: float = 0.0

    def traffic(self) -> Traffic:
        """The buffer is read and written once here; link bytes belong to the collective model."""
        return Traffic({}, {Operand.ACTIVATION: Access(self.message_bytes, self.message_bytes)}, launches=1.0)
