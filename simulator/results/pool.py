"""What an engine leaves for KV, in tokens and in sequences of one length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator.base.errors import UnsupportedError

if TYPE_CHECKING:
    from simulator.inference.group import Group


@dataclass(frozen=True)
class Pool:
    """An engine's KV pool.

    Attributes
    ----------
    kv_tokens, kv_tokens_lo, kv_tokens_hi : int
        Tokens that fit, and their 90 % interval; 0 where the engine does not start, the upper end above 0 where it may
        [-].
    length, sequences : int
        Tokens of one sequence, and how many of them fit [-].
    max_num_seqs, max_num_batched_tokens : int
        What the engine is started with [-].
    flag, fraction : str, float
        What it calls its share of the memory, and the share [-].
    source : str
        Where its rules are from.
    why_not : str
        Why it does not start.
    longest : int
        Longest sequence that the pool holds, where the engine is to be started for longer ones; else 0 [tokens].
    """

    kv_tokens: int
    kv_tokens_lo: int
    kv_tokens_hi: int
    length: int
    sequences: int
    max_num_seqs: int
    max_num_batched_tokens: int
    flag: str
    fraction: float
    source: str
    why_not: str = ""
    longest: int = 0

    @property
    def sentence(self) -> str:
        """The pool in words."""
        if self.why_not:
            maybe = f" (at the interval's upper end {self.kv_tokens_hi:,} tokens fit)" if self.kv_tokens_hi else ""
            return f"KV pool: none; {self.why_not}{maybe}"
        text = (
            f"KV pool: {self.kv_tokens:,} tokens ({self.kv_tokens_lo:,}-{self.kv_tokens_hi:,}): {self.sequences:,}"
            f" sequences of this length ({self.flag} {self.fraction:g}, {self.max_num_seqs:,} at once, steps of"
            f" {self.max_num_batched_tokens:,})"
        )
        if self.longest:
            text += f"; starts only with --max-model-len {self.longest} or less"
        return text


def pool(group: Group, length: int) -> Pool | None:
    """The pool of `group` for sequences of `length`; None where its engine or its policies have none."""
    from simulator.inference.kvpool import DoesNotStartError, kv_pool

    start = group.start
    if start is None or group.problem is not None:
        return None
    given = (start.seqs, start.tokens, start.reserve.flag, start.fraction, start.reserve.source)
    try:
        found = kv_pool(group, start.seqs, start.tokens)
    except DoesNotStartError as error:
        return Pool(0, 0, error.most_tokens, length, 0, *given, why_not=error.message)
    except UnsupportedError:
        return None
    tokens = found.interval
    blocks = -(-length // found.block_tokens) + found.extra_blocks
    wanted = group.max_model_len or group.model.max_context
    longest = tokens.mid if wanted > tokens.mid and found.grows else 0
    return Pool(tokens.mid, tokens.lo, tokens.hi, length, found.blocks // blocks, *given, longest=longest)
