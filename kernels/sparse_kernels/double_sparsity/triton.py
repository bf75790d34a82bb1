"""Double Sparsity: score every token on a few channels, take the best, attend to them [1]_.

    score(q, t) = sum_{c in channels} q_c K[t, c]

Layout (b = 2 bytes). labels (batch, hk, tokens, r): the label channels of K, copied apart so that they stream;
channels (hk, r) int32, fixed offline. The caller appends the new token's labels, hk r b per step, which the
simulator leaves out. Each query head picks its own tokens, the new one always among them.

Traffic: labels hk r b per token; a score of 4 B per token and query head written and read; lists 4 B an entry written
and read; channels 4 hk r; then `sparse_kernels.decode` over runs of one token, rows of d b bytes.

References
----------
.. [1] Yang et al., "Post-Training Sparse Attention with Double Sparsity", arXiv:2408.07092.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparse_kernels.decode import attend
from sparse_kernels.launch import cdiv, launch, power_of_2
from sparse_kernels.select import top_k

BLOCK_T = 256
CONFIG = {"num_warps": 4, "num_stages": 1}


@triton.jit
def score_kernel(
    q,
    labels,
    channels,
    scores,
    hq,
    hk,
    tokens,
    D: tl.constexpr,
    R: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    kv = tl.program_id(0).to(tl.int64)
    group = hq // hk
    g = tl.arange(0, BLOCK_G)
    r = tl.arange(0, BLOCK_R)
    t = tl.program_id(1).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    row = kv * group + g
    c = tl.load(channels + kv % hk * R + r, mask=r < R, other=0)
    qt = tl.load(q + row[:, None] * D + c[None, :], mask=(g < group)[:, None] & (r < R)[None, :], other=0.0)
    label = tl.load(
        labels + (kv * tokens + t)[:, None] * R + r[None, :], mask=(t < tokens)[:, None] & (r < R)[None, :], other=0.0
    )
    score = tl.dot(qt, tl.trans(label))
    score = tl.where((t == tokens - 1)[None, :], float("inf"), score)
    tl.store(scores + row[:, None] * tokens + t[None, :], score, mask=(g < group)[:, None] & (t < tokens)[None, :])


def double_sparsity(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    labels: torch.Tensor,
    channels: torch.Tensor,
    tokens: int,
    budget: int,
    out: torch.Tensor,
    scores: torch.Tensor,
    picked: torch.Tensor,
    parts: torch.Tensor,
    sums: torch.Tensor,
) -> None:
    """Score, select, attend; `budget` tokens per query head."""
    batch, hq, d = q.shape
    hk, r = channels.shape
    launch(
        score_kernel,
        (batch * hk, cdiv(tokens, BLOCK_T)),
        **CONFIG,
        q=q,
        labels=labels,
        channels=channels,
        scores=scores,
        hq=hq,
        hk=hk,
        tokens=tokens,
        D=d,
        R=r,
        BLOCK_G=max(16, power_of_2(hq // hk)),
        BLOCK_T=BLOCK_T,
        BLOCK_R=max(16, power_of_2(r)),
    )
    top_k(scores, picked)
    attend(q, k_cache, v_cache, k_new, v_new, out, parts, sums, tokens=tokens, runs=picked)
