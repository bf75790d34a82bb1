"""Attention and KV cache as eager PyTorch runs them: the baseline that many papers compare with."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from simulator.ops.ops import Attention, Op
from simulator.ops.traffic import Operand
from simulator.policies.base import Aspect, Compatibility, Context, Policy
from simulator.policies.common import copied
from simulator.policies.grammar import POLICIES

SCORE_BYTES = {"fp32": 24.0, "fp16": 12.0}
"""Bytes moved per score [B]: written 2, scaled 4, masked 4, softmax to fp32 6, rounded 6, read 2 (transformers);
or written 2, masked 4, softmax in 16 bit 4, read 2 (FlexGen's pytorch_backend.py, which scales the queries)."""

SCORE_KERNELS = {"fp32": 4.0, "fp16": 2.0}
"""Kernels between the two products: scale, mask, softmax, round; or mask and softmax."""


CAT_INSTRUCTIONS = 80.0
"""Instructions per element of ``torch.cat`` along the tokens, where the new token is a transposed view and no wide load
is used: three divisions by sizes known at run time, 20 each (CUDA C++ programming guide), 20 of remainders, addresses,
a load and a store (CatArrayBatchedCopy). On A100 0.6 of a copy's rate in 16 bits, what PyTorch's pull request 150233
measures on a card it does not name (0.141 ms, 0.085 with wide loads); Ada has lanes enough to lose nothing."""


@POLICIES.register("eager_attention")
class EagerAttention(Policy):
    """Each step copies the cache to append to it, repeats KV heads, and writes the scores out [1]_.

    ``cache=concat`` reads and writes K and V of the whole context in every decode step, element by element (PyTorch
    before 2.8). ``kernel=eager`` writes K and V
    once per query head where heads share them (g times the bytes) and reads those; moves 24 B per (query, key, head),
    or 12 with ``scores=fp16``; and computes the masked half of a prompt too. ``kernel=sdpa`` repeats K and V alike but
    keeps its scores in the kernel, ``kernel=flash`` does neither.

    References
    ----------
    .. [1] Hugging Face transformers, cache_utils.py (``DynamicCache.update``) and modeling_llama.py (``repeat_kv``,
       ``eager_attention_forward``).
    """

    name: ClassVar[str] = "eager_attention"
    family: ClassVar[str] = "kv allocation"
    summary: ClassVar[str] = "dense attention with the copies of eager PyTorch, many papers' baseline"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.KV_ALLOCATION})
    compatibility: ClassVar[Compatibility] = Compatibility(
        mla=False,
        paged_kv=False,
        prefix_cache=False,
        chunked_prefill=False,
        gqa="K and V are written out once per query head",
    )
    citation: ClassVar[str] = "Hugging Face transformers, modeling_llama.py and cache_utils.py"
    not_modelled: ClassVar[str] = "memory fragmentation of the growing cache; peak memory of the scores"
    always_shown: ClassVar[tuple[str, ...]] = ("cache", "kernel")

    cache: Literal["concat", "static"] = Field("concat", description="how a token is appended")
    kernel: Literal["eager", "sdpa", "flash"] = Field("eager", description="how attention is computed")
    scores: Literal["fp32", "fp16"] = Field("fp32", description="precision of an eager softmax")

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Copies in front of attention, scores beside it."""
        if not isinstance(op, Attention):
            return (op,)
        before: list[Op] = []
        read = op.kv_read_bytes
        if self.cache == "concat" and op.phase == "decode":
            counted = CAT_INSTRUCTIONS * read / op.kv_element_bytes
            before.append(replace(copied("kv.concat", op, read, read), launches=2.0, flop=counted))
        if self.kernel == "flash":
            return (*before, op)
        group = op.n_heads / op.n_kv_heads
        if group > 1.0:
            # Read once, written g times, and g - 1 reads more by the products than `op` counts.
            before.append(replace(copied("kv.repeat", op, read * group, read * group), launches=2.0))
        if self.kernel == "sdpa":
            return (*before, op)
        pairs = op.batch * op.n_heads * op.head_keep * op.q_len * op.tokens
        moved = 0.5 * SCORE_BYTES[self.scores] * pairs
        scores = copied("attn.scores", op, moved, moved, operand=Operand.ACTIVATION)
        scores = replace(scores, launches=SCORE_KERNELS[self.scores])
        if op.phase == "prefill":
            # bmm computes all pairs of the square, the masked ones too.
            masked = 1.0 if op.pair_keep is None else op.pair_keep
            op = replace(op, pair_keep=masked * op.q_len * op.tokens / op.pairs)
        return (*before, op, scores)
