"""The closed-form event loop against a loop that takes every token of every sequence by itself."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.inference.kvpool import KvPool
from simulator.inference.step import step_time
from simulator.ops.step import decode_step, prefill_step
from simulator.scenario.scenario import Scenario
from simulator.serving.book import Book
from simulator.serving.deployment import Deployment
from simulator.serving.fleet import simulate
from simulator.serving.prefix import PrefixCache
from simulator.serving.replica import EVENT, Replica
from simulator.serving.scheduler import Scheduler
from simulator.serving.steptime import Line, StepTable, linear_table
from simulator.serving.synthetic import synthetic
from simulator.serving.tabulate import mixed_step

# Same arithmetic in another order: sums of up to some thousand floats.
SAME_TIME = 1e-9


@dataclass(eq=False)
class Sequence_:
    number: int
    arrival: float
    prompt: int
    output: int
    ids: tuple[int, ...] = ()
    length: int = 0  # tokens to compute before the next token
    computed: int = 0
    generated: int = 0
    decoding: bool = False
    swapped: bool = False
    admitted: float = math.nan
    first: float = math.nan
    finish: float = math.nan
    preemptions: int = 0
    hit: int = 0


@dataclass
class Tree:
    """Radix tree by explicit paths: what is held, who uses it, when it was last let go."""

    tokens: int
    pins: dict[tuple[int, ...], int] = field(default_factory=dict)
    idle: dict[tuple[int, ...], int] = field(default_factory=dict)
    time: int = 0

    def paths(self, ids):
        return [tuple(ids[: k + 1]) for k in range(len(ids))]

    def match(self, ids):
        found = 0
        for path in self.paths(ids):
            if path not in self.pins and path not in self.idle:
                break
            found += 1
        return found

    def acquire(self, ids):
        for path in self.paths(ids):
            self.idle.pop(path, None)
            self.pins[path] = self.pins.get(path, 0) + 1

    def release(self, ids):
        self.time += 1
        for path in self.paths(ids):
            self.pins[path] -= 1
            if not self.pins[path]:
                del self.pins[path]
                self.idle[path] = self.time

    def trim(self, limit):
        while self.idle and len(self.pins) + len(self.idle) > limit:
            held = [*self.pins, *self.idle]
            leaves = [p for p in self.idle if not any(q[: len(p)] == p and q != p for q in held)]
            # The longest unused leaf; among those let go together the deepest path.
            del self.idle[min(leaves, key=lambda p: (self.idle[p], -len(p)))]


def token_by_token(table, scheduler, pool, sequences, tree=None):
    """Serve `sequences` one step at a time; the numbers are written into them."""
    b, total = pool.block_tokens, pool.blocks
    watermark = int(scheduler.watermark * total)
    todo, waiting, running = deque(sequences), deque(), []
    clock = 0.0
    per = tree.tokens // b if tree else 0

    def context(s):  # tokens in the cache after its next decode step
        return s.prompt + s.generated

    def own(s):
        tokens = context(s) if s.decoding else s.length
        return math.ceil(tokens / b) - (len(s.ids) * per if tree else 0) + pool.extra_blocks

    def used():
        return sum(own(s) for s in running) + (len(tree.pins) * per if tree else 0)

    def let_go(s):
        if tree:
            tree.trim((total - sum(own(x) for x in running)) // per)
            tree.release(s.ids)
        running.remove(s)

    while todo or waiting or running:
        while todo and todo[0].arrival <= clock:
            waiting.append(todo.popleft())
        if not waiting and not running:
            clock = todo[0].arrival
            continue
        extra, preempted = 0.0, False
        while used() > total:
            s = running[-1]
            if s.decoding:
                if scheduler.preemption == "swap":
                    extra += SWAP * math.ceil(context(s) / b)
                    s.swapped = True
                let_go(s)
                s.length, s.decoding = context(s), False
            else:
                running.remove(s)
                if tree:
                    tree.release(s.ids)
            s.computed = 0
            s.preemptions += 1
            waiting.appendleft(s)
            preempted = True
        decoding = [s for s in running if s.decoding]
        budget = scheduler.max_num_batched_tokens - (len(decoding) if scheduler.mixes else 0)
        chunks = []
        for s in running:
            if not s.decoding:
                q = min(s.length - s.computed, budget)
                chunks.append((s, q))
                budget -= q
        while waiting and not preempted and budget > 0 and len(running) < scheduler.max_num_seqs:
            s = waiting[0]
            hit = 0
            if tree and not s.swapped:
                hit = min(tree.match(s.ids) * tree.tokens, s.length - 1)
            q = s.length - hit
            if not s.swapped and q > budget and not scheduler.chunks and chunks:
                break
            need = math.ceil(s.length / b) + pool.extra_blocks
            if tree:
                need -= sum(per for path in tree.paths(s.ids) if path in tree.pins)
            if used() + need + (watermark if running else 0) > total:
                break
            waiting.popleft()
            if math.isnan(s.admitted):
                s.admitted, s.hit = clock, hit
            if tree:
                tree.acquire(s.ids)
            running.append(s)
            if tree:
                tree.trim((total - sum(own(x) for x in running)) // per)
            if s.swapped:
                extra += SWAP * math.ceil(context(s) / b)
                s.swapped, s.decoding = False, True
                continue
            s.computed = hit
            if scheduler.chunks:
                q = min(q, budget)
            chunks.append((s, q))
            budget -= q
        decoding = [s for s in running if s.decoding]
        n, total_context = len(decoding), sum(context(s) for s in decoding)
        if chunks:
            tokens = sum(q for _, q in chunks)
            pairs = sum(q * (s.computed + q) - q * (q - 1) // 2 for s, q in chunks)
            steps = decoding if scheduler.mixes else []
            clock += extra + table.mixed(len(steps), total_context, len(chunks), tokens, pairs)
        else:
            steps = decoding
            clock += extra + table.step(n, total_context)
        for s in steps:
            s.generated += 1
        for s in sorted(steps, key=lambda s: s.number):
            if s.generated == s.output:
                s.finish = clock
                let_go(s)
        for s, q in chunks:
            s.computed += q
            if s.computed == s.length:
                s.generated += 1
                s.decoding = True
                s.first = clock if math.isnan(s.first) else s.first
                if s.generated == s.output:
                    s.finish = clock
                    let_go(s)


SWAP = 1e-4


class FullPrediction:
    """What a `StepTable` is asked, answered by the full prediction every time."""

    def __init__(self, group):
        self.group, self.calls = group, 0

    def step(self, n, context_sum):
        self.calls += 1
        step = decode_step(float(n), context_sum / n)
        return float(np.max(step_time(self.group, step).total_s))

    def mixed(self, n, context_sum, r, tokens, pairs):
        self.calls += 1
        each = tokens / r
        after = pairs / tokens + 0.5 * (each - 1.0)
        if not n:
            step = prefill_step(float(r), each, after)
            return float(np.max(step_time(self.group, step).total_s))
        return float(np.max(mixed_step(self.group, n, context_sum / n, r, each, after).total_s))


def in_full(deployment, requests):
    """TTFT and TPOT [s] when the full prediction is asked for every token, and how often it was."""
    asked = FullPrediction(deployment.group)
    served = [
        Sequence_(i, float(a), int(p), int(o), length=int(p))
        for i, (a, p, o) in enumerate(zip(requests.arrival_s, requests.prompt, requests.output, strict=True))
    ]
    token_by_token(asked, deployment.scheduler, deployment.pool, served)
    first, finish = (np.array([getattr(s, k) for s in served]) for k in ("first", "finish"))
    tpot = (finish - first) / np.maximum(requests.output - 1, 1)
    return first - requests.arrival_s, np.where(requests.output > 1, tpot, np.nan), asked.calls


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_loop_meets_the_full_prediction_at_every_token(scale):
    requests = synthetic(
        40, 6.0, arrivals="poisson", prompt="lognormal(mean=1000,cv=1)", output="lognormal(mean=60)"
    ).scaled(scale)
    deployment = Deployment(Scenario(model="llama-3.1-8b", device="h100-sxm"))
    served = simulate(deployment, requests)
    ttft, tpot, _ = in_full(deployment, requests)
    for ours, full in ((served.ttft_s, ttft), (served.tpot_s, tpot)):
        for q in (0.5, 0.99):
            assert np.nanquantile(ours, q) == pytest.approx(np.nanquantile(full, q), rel=0.01)


def bent(sequences: int, tokens: int) -> StepTable:
    """A table whose decode time bends twice, so that runs cross pieces."""
    flat = linear_table(sequences, tokens, step_s=4e-3, row_s=2e-5, context_s=3e-7)
    nodes = [1.0, 23.0, 57.0, math.inf]
    slope = [[n * s for s in (1e-7, 9e-7, 2e-7)] for n in range(sequences + 1)]
    intercept = []
    for n in range(sequences + 1):
        line = [5e-3 + 1e-5 * n]
        for i in (1, 2):
            line.append(line[-1] + (slope[n][i - 1] - slope[n][i]) * nodes[i])
        intercept.append(line)
    return StepTable(Line(nodes, intercept, slope), flat.beside, None, flat.base, None, flat.tail, wait_s=1e-4)


@st.composite
def cases(draw):
    name = draw(st.sampled_from(["chunked", "prefill-first", "prefill-first-chunked"]))
    max_num_seqs = draw(st.integers(1, 8))
    n = draw(st.integers(1, 25))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    block = draw(st.sampled_from([1, 4, 16]))
    scheduler = Scheduler(
        name,
        max_num_seqs,
        max_num_seqs + draw(st.integers(1, 60)),
        draw(st.sampled_from(["recompute", "swap"])),
        draw(st.sampled_from([0.0, 0.01, 0.2])),
    )
    prompt = rng.integers(1, 120, n)
    output = np.where(rng.random(n) < 0.2, 1, rng.integers(1, 90, n))
    arrival = np.cumsum(rng.exponential(draw(st.sampled_from([0.0, 0.02, 0.3])), n))
    longest = int(np.max(np.ceil((prompt + output) / block)))
    blocks = longest + draw(st.integers(0, 40))
    prefix = draw(st.booleans())
    ids = [()] * n
    if prefix:
        # A few conversations: a request shares the beginning of one of four paths.
        ids = [
            tuple(1000 * int(c) + k for k in range(p // 16)) for c, p in zip(rng.integers(0, 4, n), prompt, strict=True)
        ]
        blocks = max(blocks, longest + 8 * (16 // block))
    extra = draw(st.integers(0, 2))
    pool = KvPool(blocks + extra, block, 1.0, extra_blocks=extra)
    return scheduler, pool, arrival, prompt, output, ids, prefix


def serve_both(case):
    scheduler, pool, arrival, prompt, output, ids, prefix = case
    table = bent(scheduler.max_num_seqs, 400)
    book = Book(arrival.tolist(), prompt.tolist(), output.tolist(), ids=ids)
    replica = Replica(
        table,
        scheduler,
        pool,
        book,
        swap_s_per_block=SWAP,
        prefix=PrefixCache(16, pool.block_tokens) if prefix else None,
    )
    for i in range(len(prompt)):
        replica.add(i)
    truth = [
        Sequence_(i, float(a), int(p), int(o), ids[i], length=int(p))
        for i, (a, p, o) in enumerate(zip(arrival, prompt, output, strict=True))
    ]
    token_by_token(table, scheduler, pool, truth, Tree(16) if prefix else None)
    return replica, book, truth


@settings(max_examples=250, deadline=None)
@given(cases())
def test_the_loop_equals_one_that_takes_every_token(case):
    replica, book, truth = serve_both(case)
    replica.run()
    assert book.preemptions == [s.preemptions for s in truth]
    assert book.hits == [s.hit for s in truth]
    for name in ("admitted", "first", "finish"):
        ours = np.array(getattr(book, name))
        want = np.array([getattr(s, name) for s in truth])
        np.testing.assert_allclose(ours, want, rtol=SAME_TIME)
    assert replica.used_blocks == 0
    assert replica.load == 0


@settings(max_examples=60, deadline=None)
@given(cases(), st.lists(st.floats(0.0, 3.0), max_size=40))
def test_stopping_in_between_changes_nothing_and_never_overfills(case, stops):
    replica, book, truth = serve_both(case)
    for until in sorted(stops):
        replica.run(until)
        # What the next step will take is counted too, before room is made for it.
        assert replica.used_blocks <= case[1].blocks + len(replica.running)
    replica.run()
    np.testing.assert_allclose(book.finish, [s.finish for s in truth], rtol=SAME_TIME)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_no_token_is_lost(case):
    replica, book, _ = serve_both(case)
    replica.run()
    events = np.array(replica.events, EVENT)
    steps, sequences, chunks, tokens = (events[name].astype(int) for name in ("steps", "sequences", "chunks", "tokens"))
    assert np.all(np.diff(events["start_s"]) > 0.0)
    # Every prompt that ends gives a token: the first, and one more each time it is computed again.
    assert int(np.sum(steps * sequences)) + len(book.prompt) + len(replica.gaps) == sum(book.output)
    computed, needed = int(tokens.sum()), sum(book.prompt) - sum(book.hits)
    assert computed >= needed
    assert computed == needed or sum(book.preemptions) > 0
    assert np.all(chunks[tokens > 0] > 0)
