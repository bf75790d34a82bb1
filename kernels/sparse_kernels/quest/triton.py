"""Quest: score every page by an upper bound of its keys' products, take the best, attend to them [1]_.

    bound(q, page) = sum_c max(q_c min_c, q_c max_c) = max+(q) . max + min-(q) . min

with max+(q) the positive part of q and min-(q) the negative: two tensor-core products for all heads of a group.
The newest page is always taken, as in the original. Each query head picks its own pages.

Layout (b = 2 bytes). bounds (batch, hk, pages, 2, d): minimum and maximum of a page side by side. The caller keeps
those of the open page up to date, 4 hk d b per step, which the simulator leaves out.

Traffic: bounds 2 hk d b per page; a score of 4 B per page and query head written and read; lists 4 B an entry written
and read; then `sparse_kernels.decode` over runs of one page.

References
----------
.. [1] Tang et al., "Quest", arXiv:2406.10774.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparse_kernels.decode import attend
from sparse_kernels.launch import cdiv, launch, power_of_2
from sparse_kernels.select import top_k

BLOCK_P = 64
CONFIG = {"num_warps": 4, "num_stages": 1}


@triton.jit
def estimate_kernel(
    q,
    bounds,
    scores,
    hq,
    hk,
    pages,
    newest,
    D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    kv = tl.program_id(0).to(tl.int64)
    group = hq // hk
    g = tl.arange(0, BLOCK_G)
    c = tl.arange(0, BLOCK_D)
    page = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    row = kv * group + g
    wide = (c < D)[None, :]
    qt = tl.load(q + row[:, None] * D + c[None, :], mask=(g < group)[:, None] & wide, other=0.0)
    at = (kv * pages + page)[:, None] * 2 * D + c[None, :]
    live = (page < pages)[:, None] & wide
    low = tl.load(bounds + at, mask=live, other=0.0)
    high = tl.load(bounds + at + D, mask=live, other=0.0)
    zero = tl.zeros_like(qt)
    bound = tl.dot(tl.where(qt > 0, qt, zero), tl.trans(high))
    bound = tl.dot(tl.where(qt < 0, qt, zero), tl.trans(low), bound)
    bound = tl.where((page == newest)[None, :], float("inf"), bound)
    tl.store(scores + row[:, None] * pages + page[None, :], bound, mask=(g < group)[:, None] & (page < pages)[None, :])


def quest(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    bounds: torch.Tensor,
    tokens: int,
    page: int,
    budget: int,
    out: torch.Tensor,
    scores: torch.Tensor,
    pages: torch.Tensor,
    parts: torch.Tensor,
    sums: torch.Tensor,
) -> None:
    """Estimate, select, attend; `budget` tokens per query head in pages of `page`."""
    batch, hq, d = q.shape
    hk, n = bounds.shape[1:3]
    launch(
        estimate_kernel,
        (batch * hk, cdiv(n, BLOCK_P)),
        **CONFIG,
        q=q,
        bounds=bounds,
        scores=scores,
        hq=hq,
        hk=hk,
        pages=n,
        newest=(tokens - 1) // page,
        D=d,
        BLOCK_G=max(16, power_of_2(hq // hk)),
        BLOCK_P=BLOCK_P,
        BLOCK_D=max(16, power_of_2(d)),
    )
    top_k(scores, pages)
    attend(q, k_cache, v_cache, k_new, v_new, out, parts, sums, tokens=tokens, runs=pages, run=page)
