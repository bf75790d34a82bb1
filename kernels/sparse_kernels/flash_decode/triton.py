"""Dense decode attention: `sparse_kernels.decode` over all tokens; layout and traffic are told there.

Traffic at keep 1: K and V 2 hk d b S, q and out hq d b each, 2 hk d b written.
"""

from __future__ import annotations

import torch

from sparse_kernels.decode import attend


def flash_decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k_new: torch.Tensor,
    v_new: torch.Tensor,
    tokens: int,
    out: torch.Tensor,
    parts: torch.Tensor,
    sums: torch.Tensor,
) -> None:
    """Attend from q (batch, hq, d) to `tokens` tokens and append the new one at ``tokens - 1``."""
    attend(q, k_cache, v_cache, k_new, v_new, out, parts, sums, tokens=tokens)
