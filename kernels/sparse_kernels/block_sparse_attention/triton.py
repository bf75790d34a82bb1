"""Causal prefill attention over any list of key blocks: MInference, DHSA, S2-Attention, SampleAttention.

    o_i = sum_j softmax_j(q_i k_j / sqrt(d)) v_j,   j <= i and block(j) in list(batch, head, block(i))

Methods differ in how they pick blocks; all of their masks are this list. A block is square, `block` tokens, and is the
tile of the tensor cores. Lists are ascending, of any length (empty gives zeros), concatenated with starts as in CSR.
The programs of long rows start first: a causal row's list grows with its position, so rows are issued from the last.

Layout. q, o (batch, tokens, hq, d); k, v and the cache (batch, tokens, hk, d); query head h reads KV head
h // (hq / hk). The program of a group's first head also writes its block of k and v to the cache: the write that
every prefill owes and that the simulator's Attention includes.

Traffic (bytes; B batch, T tokens, b = 2, E list entries): q, o 2 B T hq d b; k, v read and cache written 4 B T hk d b;
list 4 (E + B hq ceil(T / block) + 1).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparse_kernels import target
from sparse_kernels.launch import cdiv, launch, power_of_2

LOG2_E = 1.4426950408889634


@triton.jit
def attend(
    qt,
    k,
    v,
    at_kv,
    kv_row,
    blocks,
    start,
    end,
    r,
    T,
    scale,
    best,
    total,
    acc,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
    KEYS: tl.constexpr,
    DIAGONAL: tl.constexpr,
):
    """Online softmax over the listed blocks [start, end), `KEYS` keys at a time."""
    d = tl.arange(0, BLOCK_D)
    pieces: tl.constexpr = BLOCK // KEYS
    for i in range(start * pieces, end * pieces):
        j = tl.load(blocks + i // pieces, mask=i < end * pieces, other=0)
        c = j * BLOCK + i % pieces * KEYS + tl.arange(0, KEYS)  # type: ignore[operator]  # i is a tensor here
        at_k = at_kv + c[None, :] * kv_row + d[:, None]
        kt = tl.load(k + at_k, mask=(c < T)[None, :] & (d < D)[:, None], other=0.0)
        s = tl.dot(qt, kt) * scale
        if DIAGONAL:
            s = tl.where(c[None, :] <= r[:, None], s, float("-inf"))
        new = tl.maximum(best, tl.max(s, 1))
        # A row past the end may have no key; 0 in place of -inf keeps its exponents finite.
        finite = tl.where(new == float("-inf"), 0.0, new) if DIAGONAL else new
        p = tl.exp2(s - finite[:, None])
        shrink = tl.exp2(best - finite)
        total = total * shrink + tl.sum(p, 1)
        at_v = at_kv + c[:, None] * kv_row + d[None, :]
        vt = tl.load(v + at_v, mask=(c < T)[:, None] & (d < D)[None, :], other=0.0)
        acc = tl.dot(p.to(vt.dtype), vt, acc * shrink[:, None])
        best = new
    return best, total, acc


@triton.jit
def block_sparse_kernel(
    q,
    k,
    v,
    starts,
    blocks,
    o,
    k_cache,
    v_cache,
    T,
    HQ,
    HK,
    scale,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
    KEYS: tl.constexpr,
):
    n_blocks = tl.num_programs(0)
    row_block = n_blocks - 1 - tl.program_id(0)
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    group = HQ // HK
    r = row_block * BLOCK + tl.arange(0, BLOCK)
    d = tl.arange(0, BLOCK_D)
    at_q = ((batch * T + r)[:, None] * HQ + head) * D + d[None, :]
    inside = (r < T)[:, None] & (d < D)[None, :]
    kv_row = tl.cast(HK, tl.int64) * D
    at_kv = batch * T * kv_row + head // group * D
    at_new = at_kv + r[:, None] * kv_row + d[None, :]
    first = inside & (head % group == 0)
    tl.store(k_cache + at_new, tl.load(k + at_new, mask=first, other=0.0), mask=first)
    tl.store(v_cache + at_new, tl.load(v + at_new, mask=first, other=0.0), mask=first)

    qt = tl.load(q + at_q, mask=inside, other=0.0)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    acc = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    listed = (batch * HQ + head) * n_blocks + row_block
    start = tl.load(starts + listed, mask=listed >= 0, other=0)
    end = tl.load(starts + listed + 1, mask=listed >= 0, other=0)
    # Only the last entry can be the diagonal block; the others need no comparison per element.
    last = tl.load(blocks + end - 1, mask=end > start, other=-1)
    full = end - (last == row_block).to(tl.int32)
    best, total, acc = attend(
        qt, k, v, at_kv, kv_row, blocks, start, full, r, T, scale, best, total, acc, D, BLOCK_D, BLOCK, KEYS, False
    )
    best, total, acc = attend(
        qt, k, v, at_kv, kv_row, blocks, full, end, r, T, scale, best, total, acc, D, BLOCK_D, BLOCK, KEYS, True
    )
    out = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(o + at_q, out.to(o.dtype.element_ty), mask=inside)


def config(block: int, d: int) -> dict[str, int]:
    """Tile by tensor core: where operands pass through registers (8.x, 12.x), 64 keys of width 128 would spill."""
    from_shared = target.compute_capability() // 10 in (9, 10)
    big = block * d >= 128 * 128
    return {
        "KEYS": min(block, 64 if from_shared else 32),
        "num_warps": 8 if big else 4,
        "num_stages": 3 if from_shared and big else 2,
    }


def buffers(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: object) -> dict[str, torch.Tensor]:
    """o like q, and the cache like k and v."""
    return {"o": torch.empty_like(q), "k_cache": torch.empty_like(k), "v_cache": torch.empty_like(v)}


def block_sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    starts: torch.Tensor,
    blocks: torch.Tensor,
    block: int,
    o: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
) -> None:
    """One launch; `starts` and `blocks` as `naive.block_lists` makes them."""
    batch, tokens, hq, d = q.shape
    launch(
        block_sparse_kernel,
        (cdiv(tokens, block), hq, batch),
        q=q,
        k=k,
        v=v,
        starts=starts,
        blocks=blocks,
        o=o,
        k_cache=k_cache,
        v_cache=v_cache,
        T=tokens,
        HQ=hq,
        HK=k.shape[2],
        scale=d**-0.5 * LOG2_E,
        D=d,
        BLOCK_D=max(power_of_2(d), 16),
        BLOCK=block,
        **config(block, d),
    )
