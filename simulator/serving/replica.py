"""One replica of an engine: continuous batching whose cost grows with events, not with tokens.

Between two events - an arrival, an admission, a prompt chunk, a finished sequence, a full cache - every running
sequence grows by one token per step, so only their number and the sum of their contexts are kept. A sequence is
known by the step it will finish at; the blocks they hold follow from that sum and from how many of them have each
remainder of their length by the block size, which does not change while they grow together.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from copy import copy
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from simulator.inference.kvpool import KvPool
from simulator.serving.book import Book
from simulator.serving.prefix import PrefixCache
from simulator.serving.scheduler import Scheduler
from simulator.serving.steptime import StepTable

SHIFT = 40
MASK = (1 << SHIFT) - 1
"""A heap entry is the finishing step above these bits and the request's number in them."""
FOREVER = float("inf")


class Event(NamedTuple):
    """One prompt step, or a run of decode steps.

    Attributes
    ----------
    start_s, duration_s : float
        [s].
    steps : int
        Tokens every decoding sequence gets [-]; 0 where prompts stall them.
    sequences, context : int
        Decoding sequences and the sum of their contexts at the start [-].
    chunks, tokens, pairs : int
        Prompt chunks, their tokens, and query-key pairs of their attention [-].
    held : int
        Blocks beside those of the decoding sequences [-].
    """

    start_s: float
    duration_s: float
    steps: int
    sequences: int
    context: int
    chunks: int
    tokens: int
    pairs: int
    held: int


EVENT = np.dtype([(name, float) for name in Event._fields])
"""A record of an array of events."""


class Replica:
    """The event loop of one replica.

    Parameters
    ----------
    table : StepTable
        Time of steps.
    scheduler : Scheduler
    pool : KvPool
    book : Book
    swap_s_per_block : float
        Time to move one block to or from the host [s].
    prefix : PrefixCache, optional
        Shares the blocks of equal prompt beginnings.

    Attributes
    ----------
    closed : deque of int
        Requests of clients that wait for an answer: the next arrives whenever one leaves that has no next turn.
    """

    def __init__(
        self,
        table: StepTable,
        scheduler: Scheduler,
        pool: KvPool,
        book: Book,
        *,
        swap_s_per_block: float = 0.0,
        prefix: PrefixCache | None = None,
    ):
        self.table, self.book, self.prefix = table, book, prefix
        self.mixes, self.chunks = scheduler.mixes, scheduler.chunks
        self.max_seqs, self.max_tokens = scheduler.max_num_seqs, scheduler.max_num_batched_tokens
        self.swap_s = swap_s_per_block if scheduler.preemption == "swap" else None
        self.blocks, self.block_tokens, self.grows = pool.blocks, pool.block_tokens, pool.grows
        self.extra = pool.extra_blocks
        self.watermark = int(scheduler.watermark * pool.blocks)
        self.queue: list[int] = []
        self.closed: deque[int] = deque()
        self.events: list[tuple[float, float, int, int, int, int, int, int, int]] = []
        self.gaps: list[float] = []
        self.waiting: deque[int] = deque()
        self.running: dict[int, int] = {}
        self.clock = 0.0
        self.steps = 0
        self._next = 0
        self._n = self._sum = self._shared = self._held = 0
        self._partial, self._rest = -1, 0
        self._heap: list[int] = []
        self._keys = [0] * pool.block_tokens
        self._dropped: dict[int, float] = {}
        self._swaps_s = 0.0

    def copy(self, book: Book) -> Replica:
        """One that goes on by itself, and writes to `book`."""
        again = copy(self)
        again.book = book
        again.prefix = None if self.prefix is None else self.prefix.copy()
        for name, value in vars(self).items():
            if isinstance(value, list | dict | deque):
                setattr(again, name, value.copy())
        return again

    def add(self, request: int) -> None:
        """Queue a request; their arrivals must not fall, next turns that wait apart."""
        insort(self.queue, request, lo=self._next, key=self.book.arrival.__getitem__)

    @property
    def load(self) -> int:
        """Requests queued, waiting or running [-]."""
        return len(self.queue) - self._next + len(self.waiting) + len(self.running)

    @property
    def used_blocks(self) -> int:
        """Blocks held, those of the next step included, those kept for reuse alone not [-]."""
        return self._grown() + self._held + self._pinned()

    def quiet_s(self) -> float:
        """No step that starts before this has a sequence leave, unless a request is added [s]."""
        due = self.book.arrival[self.queue[self._next]] if self._next < len(self.queue) else FOREVER
        if not self.running and not self.waiting:
            return due
        if self.waiting or self._partial >= 0 or due <= self.clock:
            return self.clock
        k = self._until_one_leaves() - 1
        room = self.block_tokens * (self.blocks - self._held - self._pinned())
        if self.grows and self._sum - self._shared + self._n * (self.block_tokens + k - 1) > room:
            return self.clock
        steps_s = self.table.run(self._n, self._sum, k, FOREVER)[1] if k else 0.0
        return min(due, self.clock + self._swaps_s + steps_s)

    def run(self, until: float = FOREVER) -> None:
        """Run all steps that start before `until`, or until nothing is left to do."""
        queue, arrival, waiting = self.queue, self.book.arrival, self.waiting
        while True:
            while self._next < len(queue) and arrival[queue[self._next]] <= self.clock:
                waiting.append(queue[self._next])
                self._next += 1
            if not self.running and not waiting:
                if self._next == len(queue) or arrival[queue[self._next]] >= until:
                    return
                self.clock = arrival[queue[self._next]]
                continue
            if self.clock >= until:
                return
            preempted = self.grows and self._preempt()
            if self._partial >= 0 or (waiting and not preempted):
                chunks, tokens, pairs, done = self._prompts(admit=not preempted)
                if chunks:
                    self._prompt_step(chunks, tokens, pairs, done)
                    continue
            self._decode_steps(until, once=preempted)

    def _prompts(self, *, admit: bool) -> tuple[int, int, int, list[int]]:
        """Chunks of the next step: how many, tokens, pairs, and the requests whose prompt ends in it."""
        book, waiting, running = self.book, self.waiting, self.running
        budget = self.max_tokens - (self._n if self.mixes else 0)
        chunks = tokens = pairs = 0
        done: list[int] = []
        if self._partial >= 0:
            i = self._partial
            tokens = min(self._rest, budget)
            context = book.length[i] - self._rest + tokens
            pairs = tokens * context - tokens * (tokens - 1) // 2
            chunks, budget = 1, budget - tokens
            self._rest -= tokens
            if not self._rest:
                self._partial = -1
                done.append(i)
        while admit and waiting and budget > 0 and len(running) < self.max_seqs:
            i = waiting[0]
            if i in book.ready:
                if not self._take(i):
                    break
                self._enter(i, book.length[i], book.left[i])
                continue
            length = book.length[i]
            hits = 0
            if self.prefix is not None:
                hits = min(self.prefix.match(book.ids[i])[0] * self.prefix.tokens, length - 1)
            reused = max(hits, min(book.reused[i], length - 1))
            q = length - reused
            if q > budget and not self.chunks and chunks:
                break
            if not self._take(i):
                break
            if book.admitted[i] != book.admitted[i]:
                book.admitted[i], book.hits[i] = self.clock, hits
            running[i] = -1
            if q > budget and self.chunks:
                self._partial, self._rest, q = i, q - budget, budget
            else:
                done.append(i)
            context = reused + q
            pairs += q * context - q * (q - 1) // 2
            chunks, tokens, budget = chunks + 1, tokens + q, budget - q
        return chunks, tokens, pairs, done

    def _take(self, i: int) -> bool:
        """Give request `i` the blocks of what is to be computed, or say that there are too few."""
        book, prefix = self.book, self.prefix
        shared = fresh = 0
        if not self.grows:
            need = book.reserve[i]
        else:
            need = -(-book.length[i] // self.block_tokens)
            if prefix is not None:
                found, idle = prefix.match(book.ids[i])
                shared = len(book.ids[i]) * prefix.blocks
                fresh = shared - (found - idle) * prefix.blocks
        own = need - shared + self.extra
        free = self.blocks - self._held - self._pinned() - own - fresh
        if self.running:
            free -= self.watermark
        # First a bound that costs nothing, then the exact number.
        if self._sum - self._shared + self._n * (self.block_tokens - 1) > free * self.block_tokens and (
            self._grown() > free
        ):
            return False
        self.waiting.popleft()
        self._held += own
        if prefix is not None:
            prefix.acquire(book.ids[i])
            prefix.trim(self.blocks - self._held - self._grown())
        return True

    def _prompt_step(self, chunks: int, tokens: int, pairs: int, done: list[int]) -> None:
        book = self.book
        n = self._n if self.mixes else 0
        time = self.table.mixed(n, self._sum, chunks, tokens, pairs) + self._swaps_s
        self._swaps_s = 0.0
        self.events.append((self.clock, time, 1 if n else 0, self._n, self._sum, chunks, tokens, pairs, self._held))
        self.clock += time
        if n:
            self.steps += 1
            self._sum += n
            self._finish()
        elif self.mixes:
            self.steps += 1
        for i in done:
            if book.first[i] != book.first[i]:
                book.first[i] = self.clock
            elif i in self._dropped:
                self.gaps.append(self.clock - self._dropped.pop(i))
            self._enter(i, book.length[i] + 1, book.left[i] - 1)

    def _decode_steps(self, until: float, *, once: bool) -> None:
        """As many steps as pass without an event, at once."""
        n, heap = self._n, self._heap
        k = self._until_one_leaves()
        if once:
            k = 1
        if self.grows and k > 1:
            free = self.block_tokens * (self.blocks - self._held - self._pinned())
            if self._sum - self._shared + n * (self.block_tokens + k - 2) > free:
                k = self._steps_that_fit(k)
        horizon = until
        if not self.waiting and self._next < len(self.queue):
            horizon = min(until, self.book.arrival[self.queue[self._next]])
        k, time = self.table.run(n, self._sum, k, horizon - self.clock - self._swaps_s)
        time += self._swaps_s
        self._swaps_s = 0.0
        self.events.append((self.clock, time, k, n, self._sum, 0, 0, 0, self._held))
        self.clock += time
        self.steps += k
        self._sum += n * k
        if heap[0] >> SHIFT <= self.steps:
            self._finish()

    def _until_one_leaves(self) -> int:
        """Steps until a running sequence has its last token [-]."""
        heap, running = self._heap, self.running
        while running.get(heap[0] & MASK) != heap[0] >> SHIFT:
            heappop(heap)
        return (heap[0] >> SHIFT) - self.steps

    def _enter(self, i: int, context: int, left: int) -> None:
        """Request `i` decodes from the next step on, with `context` tokens in it and `left` to generate."""
        book = self.book
        if i in book.ready:
            book.ready.discard(i)
            self._dropped.pop(i, None)
            if book.admitted[i] != book.admitted[i]:
                book.admitted[i] = self.clock
            elif self.swap_s is not None:
                self._swaps_s += self.swap_s * -(-context // self.block_tokens)
        self._n += 1
        self._sum += context
        if self.grows:
            self._held -= -(-book.length[i] // self.block_tokens) - self._shared_blocks(i)
            self._shared += self._shared_blocks(i) * self.block_tokens
            self._keys[(context - self.steps) % self.block_tokens] += 1
        finish = self.steps + left
        self.running[i] = finish
        if left:
            heappush(self._heap, finish << SHIFT | i)
        else:
            self._leave(i, context)

    def _finish(self) -> None:
        """Sequences whose last token came with the last step leave."""
        heap, running, steps = self._heap, self.running, self.steps
        while heap and heap[0] >> SHIFT <= steps:
            key = heappop(heap)
            i = key & MASK
            if running.get(i) == key >> SHIFT:
                self._leave(i, self.book.prompt[i] + self.book.output[i])

    def _leave(self, i: int, context: int) -> None:
        self.book.finish[i] = self.clock
        del self.running[i]
        self._release(i, context)
        follower = self.book.then[i] if self.book.then else -1
        if follower >= 0 and self.prefix is not None:
            # The answer's KV stays too: the next turn's ids that this one's tokens fill.
            filled = self.book.ids[follower][: context // self.prefix.tokens]
            self.prefix.acquire(filled)
            self.prefix.release(filled)
        elif follower < 0 and self.closed:
            follower = self.closed.popleft()
        if follower >= 0:
            arrival = self.book.arrival
            arrival[follower] = self.clock + (self.book.think[follower] if self.book.think else 0.0)
            insort(self.queue, follower, lo=self._next, key=arrival.__getitem__)

    def _release(self, i: int, context: int) -> None:
        """Take a decoding sequence of `context` tokens out and free its blocks."""
        if self.prefix is not None:
            self.prefix.trim(self.blocks - self._held - self._grown())
            self.prefix.release(self.book.ids[i])
        self._n -= 1
        self._sum -= context
        if self.grows:
            self._shared -= self._shared_blocks(i) * self.block_tokens
            self._keys[(context - self.steps) % self.block_tokens] -= 1
            self._held -= self.extra
        else:
            self._held -= self.book.reserve[i]

    def _preempt(self) -> bool:
        """Make room for the next step's tokens: the youngest go back to the head of the queue."""
        b, book = self.block_tokens, self.book
        if self._sum - self._shared + self._n * (b - 1) <= b * (self.blocks - self._held - self._pinned()):
            return False
        preempted = False
        while self.used_blocks > self.blocks:
            i, finish = self.running.popitem()
            book.preemptions[i] += 1
            preempted = True
            self.waiting.appendleft(i)
            if i == self._partial:
                self._partial = -1
                self._held -= -(-book.length[i] // b) - self._shared_blocks(i) + self.extra
                if self.prefix is not None:
                    self.prefix.release(book.ids[i])
                continue
            left = finish - self.steps
            context = book.prompt[i] + book.output[i] - left
            self._release(i, context)
            book.length[i], book.left[i], book.reused[i] = context, left, 0
            self._dropped[i] = self.clock
            if self.swap_s is not None:
                book.ready.add(i)
                self._swaps_s += self.swap_s * -(-context // b)
        return preempted

    def _pinned(self) -> int:
        return 0 if self.prefix is None else self.prefix.pinned_blocks

    def _shared_blocks(self, i: int) -> int:
        return 0 if self.prefix is None else len(self.book.ids[i]) * self.prefix.blocks

    def _grown(self) -> int:
        """Blocks of the decoding sequences: ``sum ceil(c / B) = (sum c + sum (-c mod B)) / B``."""
        if not self.grows:
            return 0
        b, steps, pad = self.block_tokens, self.steps, 0
        for key, count in enumerate(self._keys):
            if count:
                pad += count * ((-key - steps) % b)
        return (self._sum - self._shared + pad) // b

    def _steps_that_fit(self, most: int) -> int:
        """Steps until the cache is full, at most `most`; the first fits, which `_preempt` has seen to."""
        b = self.block_tokens
        free = self.blocks - self.used_blocks
        cycles = min(free // self._n, (most - 1) // b)
        k, free = 1 + cycles * b, free - cycles * self._n
        while k < most:
            free -= self._keys[(1 - self.steps - k) % b]
            if free < 0:
                break
            k += 1
        return k
