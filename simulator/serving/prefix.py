"""Prefix caching: equal beginnings of prompts share their KV blocks, the longest unused are evicted first."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy


class PrefixCache:
    """The prompt blocks one replica holds, as a radix tree.

    A block's id stands for its tokens and all before them (Mooncake's ``hash_ids``), so a set of ids whose
    parents are always in it is the tree: leading ids that are known are the longest shared path. Blocks in use
    are pinned. Those of a finished request are unused from its last to its first, and eviction takes the oldest,
    so a leaf always goes before its parent.

    Parameters
    ----------
    tokens : int
        Tokens per id [-]; 512 in Mooncake's trace.
    block_tokens : int
        Tokens per KV block, which divides `tokens` [-].
    """

    def __init__(self, tokens: int, block_tokens: int):
        if tokens % block_tokens:
            raise ValueError(f"{block_tokens} tokens per KV block do not divide {tokens} per prefix block")
        self.tokens, self.blocks = tokens, tokens // block_tokens
        self._pins: dict[int, int] = {}
        self._idle: dict[int, None] = {}

    def copy(self) -> PrefixCache:
        """One that changes by itself."""
        again = copy(self)
        again._pins, again._idle = dict(self._pins), dict(self._idle)
        return again

    @property
    def pinned_blocks(self) -> int:
        """KV blocks in use [-]."""
        return len(self._pins) * self.blocks

    def match(self, ids: Sequence[int]) -> tuple[int, int]:
        """Leading ids that are held, and how many of those are idle [-]."""
        pins, idle = self._pins, self._idle
        found = unused = 0
        for block in ids:
            if block in pins:
                found += 1
            elif block in idle:
                found += 1
                unused += 1
            else:
                break
        return found, unused

    def acquire(self, ids: Sequence[int]) -> None:
        """Pin the path `ids`; blocks that are not held are added."""
        pins, idle = self._pins, self._idle
        for block in ids:
            held = pins.get(block)
            if held is None:
                idle.pop(block, None)
                pins[block] = 1
            else:
                pins[block] = held + 1

    def release(self, ids: Sequence[int]) -> None:
        """Unpin the path `ids`; blocks nobody uses stay until they are evicted."""
        pins, idle = self._pins, self._idle
        for block in reversed(ids):
            held = pins[block] - 1
            if held:
                pins[block] = held
            else:
                del pins[block]
                idle[block] = None

    def trim(self, limit_blocks: int) -> None:
        """Evict idle blocks, the oldest first, until all together take at most `limit_blocks`."""
        excess = len(self._pins) + len(self._idle) - limit_blocks // self.blocks
        idle = self._idle
        while excess > 0 and idle:
            del idle[next(iter(idle))]
            excess -= 1
