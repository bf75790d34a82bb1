"""Single ops from plain values: what a measured row asks, and a person who asks for one op.

An op here runs alone and again and again, as benchmarks run it: what it reads stays in the last-level cache if it fits.
"""

from __future__ import annotations

from math import inf

from simulator.base.arrays import Array
from simulator.base.dtypes import KV_FORMATS, DType, get_format
from simulator.base.errors import InputError
from simulator.ops.expert_exchange import ExpertExchange
from simulator.ops.linear_attention import LinearAttention
from simulator.ops.module import AttentionModule
from simulator.ops.ops import Attention, Collective, Elementwise, Linear, Moe
from simulator.ops.routing import SKEWED
from simulator.ops.traffic import Operand
from simulator.ops.transfers import COPY_ENGINE, FLASH_THREADS, Transfer
from simulator.ops.widths import WIDTHS

ROLE = "alone"
"""Role of an op that stands in no layer."""
MLA_VALUE = 512.0
"""Value width of absorbed MLA decode, where the head's width is that of Q and K [-]."""
ON_24 = ("2:4", "V:N:M")
"""Patterns that 2:4 tensor cores multiply."""
IN_FLIGHT = {"host": COPY_ENGINE, "ssd": FLASH_THREADS}


def gemm(*, m: Array, n: Array, k: Array, batch: Array = 1.0, dtype: str = "bf16") -> Linear:
    """``C[m, n] = A[m, k] B[k, n]``, `batch` times in one call."""
    return Linear(role=ROLE, m=m, n=n, k=k, groups=batch, fmt=get_format(dtype))


def spmm(
    *,
    m: Array,
    n: Array,
    k: Array,
    keep: Array = 0.5,
    pattern: str = "2:4",
    vector: Array = 1.0,
    kernel: str = "",
    dtype: str = "bf16",
) -> Linear:
    """The product with a sparse B of which `keep` is stored, with an index of 2 bits a value, else 32 a `vector`.

    Raises
    ------
    InputError
        A share kept that the pattern cannot have.
    """
    fmt, on_24 = get_format(dtype), pattern in ON_24
    if pattern == "2:4" and not kernel and keep != 0.5:
        raise InputError("spmm: 2:4 keeps 0.5; drop keep, or take pattern=V:N:M or Sputnik", where="OP")
    library = kernel or {"2:4": "vendor", "V:N:M": "Spatha", "CLASP": f"v={vector:g}"}.get(pattern, pattern)
    return Linear(
        role=ROLE,
        m=m,
        n=n,
        k=k,
        fmt=fmt,
        kernel=f"{pattern}/{library}",
        bytes_per_weight=keep * (fmt.weight_bytes + (0.25 if on_24 else 4.0 / vector)),
        flop_keep=keep,
        nm24=on_24,
        vector=vector,
    )


def attention(
    *,
    phase: str,
    batch: Array,
    kv_len: Array,
    n_heads: Array,
    n_kv_heads: Array,
    head_dim: float,
    q_len: Array = 1.0,
    window: int = 0,
    kv_dtype: str = "bf16",
    keep: Array = 1.0,
    dtype: str = "bf16",
) -> Attention:
    """Causal attention; ``decode-mla`` on the latent; a block mask leaves `keep` of the pairs."""
    latent = phase == "decode-mla"
    return Attention(
        role=ROLE,
        phase="prefill" if phase == "prefill" else "decode",
        batch=batch,
        q_len=q_len,
        kv_len=kv_len,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        v_head_dim=MLA_VALUE if latent else head_dim,
        math=get_format(dtype).math,
        kv_element_bytes=KV_FORMATS[kv_dtype],
        window=window or None,
        latent=latent,
        pair_keep=None if isinstance(keep, float) and keep == 1.0 else keep,
        reuse=1.0,
    )


def module(
    *,
    kind: str,
    phase: str,
    batch: Array,
    n_heads: Array,
    widths: str,
    q_len: Array = 1.0,
    past_len: Array = 0.0,
    kv_dtype: str = "bf16",
    math: str = "bf16",
    indexes: bool = True,
    dtype: str = "bf16",
) -> AttentionModule:
    """The attention block of a layer as an engine runs it, or one kernel of it."""
    return AttentionModule(
        role=ROLE,
        kind=kind,  # pyright: ignore[reportArgumentType]
        phase=phase,  # pyright: ignore[reportArgumentType]
        batch=batch,
        q_len=q_len,
        past_len=past_len,
        n_heads=n_heads,
        widths=WIDTHS[widths],
        fmt=get_format(dtype),
        math=DType(math),
        kv_element_bytes=KV_FORMATS[kv_dtype],
        indexes=indexes,
    )


def linear_attention(
    *,
    kind: str,
    phase: str,
    batch: Array,
    k_heads: Array,
    v_heads: Array,
    k_dim: float,
    v_dim: float,
    q_len: Array = 1.0,
    kernel_part: str = "scan",
    channels: Array | None = None,
) -> LinearAttention:
    """Recurrence or convolution; `channels` are queries, keys and values where nobody says."""
    return LinearAttention(
        role=ROLE,
        kind=kind,  # pyright: ignore[reportArgumentType]
        kernel_part=kernel_part,  # pyright: ignore[reportArgumentType]
        phase=phase,  # pyright: ignore[reportArgumentType]
        batch=batch,
        q_len=q_len,
        k_heads=k_heads,
        v_heads=v_heads,
        k_dim=k_dim,
        v_dim=v_dim,
        channels=2.0 * k_heads * k_dim + v_heads * v_dim if channels is None else channels,
        reuse=1.0,
    )


def moe(
    *,
    tokens: Array,
    hidden: Array,
    intermediate: Array,
    top_k: Array,
    experts: Array,
    tp: Array = 1.0,
    ep: Array = 1.0,
    gated: bool = True,
    routing: str = SKEWED,
    dtype: str = "bf16",
) -> Moe:
    """The routed experts of a layer: a grouped GEMM of what each expert was sent."""
    return Moe(
        role=ROLE,
        tokens=tokens,
        hidden=hidden,
        intermediate=intermediate,
        top_k=top_k,
        n_experts=experts,
        tp=tp,
        ep=ep,
        gated=gated,
        fmt=get_format(dtype),
        routing=routing,
    )


def collective(*, op: str, bytes: Array, ranks: int, nodes: int = 1) -> Collective:
    """A message of `bytes`, the whole buffer as NCCL counts it, among `ranks` GPUs."""
    return Collective(role=ROLE, op=op, message_bytes=bytes, n_ranks=int(ranks), nodes=int(nodes))


def exchange(
    *,
    op: str,
    tokens: Array,
    hidden: Array,
    top_k: Array,
    ranks: int,
    element_bytes: float = 2.0,
    per_expert: bool = False,
    sms: Array = 24.0,
) -> ExpertExchange:
    """Tokens sent to their experts' ranks, or brought back."""
    return ExpertExchange(
        role=ROLE,
        op=op,  # pyright: ignore[reportArgumentType]
        tokens=tokens,
        hidden=hidden,
        top_k=top_k,
        n_ranks=int(ranks),
        element_bytes=element_bytes,
        per_expert=per_expert,
        sms=sms,
    )


def elementwise(*, read_bytes: Array, kind: str = "unary", write_bytes: Array = 0.0) -> Elementwise:
    """A pass bound by memory."""
    return Elementwise(role=ROLE, kind=kind, read_bytes=read_bytes, write_bytes=write_bytes)


def top_k(*, elements: Array, rows: Array = 1.0, picked: Array = 1.0) -> Elementwise:
    """The best `picked` of `elements` fp32 scores in each of `rows`, as 32-bit indices."""
    return Elementwise(
        role=ROLE,
        kind="topk",
        read_bytes=4.0 * elements * rows,
        write_bytes=4.0 * picked * rows,
        operand=Operand.INDEX,
        select_elements=elements * rows,
        select_rows=rows,
    )


def gather(
    *, rows: Array, row_bytes: float, tier: str = "hbm", zero_copy: bool = False, in_flight: float = 0.0
) -> Elementwise | Transfer:
    """Rows picked one by one: by a kernel in HBM, by copies from a tier, or `zero_copy` by a kernel that reads it."""
    moved = rows * row_bytes
    if tier == "hbm":
        # A table is not in the cache, as an activation would be.
        return Elementwise(
            role=ROLE, kind="unary", read_bytes=moved, write_bytes=moved, operand=Operand.WEIGHT, run_bytes=row_bytes
        )
    flying = inf if zero_copy else in_flight or IN_FLIGHT.get(tier, COPY_ENGINE)
    return Transfer(
        role=ROLE, tier=tier, read_bytes=moved, chunk_bytes=row_bytes, in_flight=flying, operand=Operand.WEIGHT
    )


def transfer(*, read_bytes: Array, write_bytes: Array = 0.0, tier: str = "host") -> Transfer:
    """One long copy between the GPU and another memory tier."""
    return Transfer(role=ROLE, tier=tier, read_bytes=read_bytes, write_bytes=write_bytes, operand=Operand.WEIGHT)
