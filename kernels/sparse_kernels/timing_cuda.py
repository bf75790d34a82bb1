"""Time GPU work: CUDA graphs over rotating operands, else events with L2 flushed between.

Rotation makes operands cold without a flush inside the timed region: a graph runs the same kernel on so many
copies that each copy is out of L2 when its turn comes again.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from sparse_kernels.timing import LEAST_RUNS, Timing, summary

Run = Callable[[], object]
COLD_L2 = 3.0
"""Bytes between two uses of an operand, over L2, from which it is cold [-]; 1 would do for a perfect LRU."""
MOST_SETS = 128
SHORTEST_GRAPH_S = 1e-3
"""Length of a graph beside which the 1 to 2 us between two replays are nothing [s]; an estimate that holds the
launches' own time makes it up to four times shorter."""
MEMORY_SHARE = 0.4
"""Share of the free memory that copies of the operands may take [-]."""


def sets_for(touched_bytes: float, set_bytes: float, l2_bytes: float, free_bytes: float) -> int:
    """Copies of the operands so that each is cold: ``ceil(COLD_L2 L2 / touched) + 1``, as memory allows; at least 1.

    Parameters
    ----------
    touched_bytes : float
        What one run reads and writes [B].
    set_bytes : float
        What one copy occupies [B].
    l2_bytes, free_bytes : float
        Cache and free memory [B].
    """
    wanted = math.ceil(COLD_L2 * l2_bytes / max(touched_bytes, 1.0)) + 1
    most = int(MEMORY_SHARE * free_bytes / max(set_bytes, 1.0))
    return max(1, min(wanted, most, MOST_SETS))


def is_cold(count: int, touched_bytes: float, l2_bytes: float) -> bool:
    """Whether `count` rotating sets leave nothing in L2: as much as L2 is touched in between."""
    return (count - 1) * touched_bytes >= l2_bytes or touched_bytes >= COLD_L2 * l2_bytes


def rounds_for(estimate_s: float, sets: int) -> int:
    """Times a graph goes round its sets so that it lasts `SHORTEST_GRAPH_S`."""
    return max(1, math.ceil(SHORTEST_GRAPH_S / max(estimate_s * sets, 1e-9)))


def time_runs(runs: Sequence[Run], budget_s: float, *, flush: Run | None = None) -> Timing:
    """Time one of `runs`, which do the same work on different memory.

    A graph of all of them, several rounds, is replayed for `budget_s`; every replay is one sample of the mean
    run in it. What cannot be captured is timed by events run by run, with `flush` before each.
    """
    import torch

    for run in runs:
        run()
    torch.cuda.synchronize()
    estimate = events(runs[0], 3)
    stream = torch.cuda.current_stream()
    try:
        graph, count = _captured(runs, rounds_for(sorted(estimate)[1], len(runs)))
    except RuntimeError:
        # A failed capture leaves its own stream current, and its error is sticky until the next synchronise.
        torch.cuda.set_stream(stream)
        torch.cuda.synchronize()
        return _by_events(runs, budget_s, flush)
    samples: list[float] = []
    end = time.perf_counter() + budget_s
    while len(samples) < LEAST_RUNS or time.perf_counter() < end:
        samples += [t / count for t in events(graph.replay, LEAST_RUNS, ahead=True)]
    return summary(samples, timer="graph")


def _captured(runs: Sequence[Run], rounds: int) -> tuple[Any, int]:
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for run in runs:
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for run in runs:
                run()
    graph.replay()
    torch.cuda.synchronize()
    return graph, rounds * len(runs)


def events(run: Run, count: int, *, ahead: bool = False) -> list[float]:
    """Seconds of `count` runs, each between two events.

    With `ahead` the runs are queued behind one that is not counted, so that no event waits for the host.
    """
    import torch

    if ahead:
        run()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
        if not ahead:
            mark.synchronize()
    marks[-1].synchronize()
    return [a.elapsed_time(b) * 1e-3 for a, b in itertools.pairwise(marks)]


def _by_events(runs: Sequence[Run], budget_s: float, flush: Run | None) -> Timing:
    samples: list[float] = []
    end = time.perf_counter() + budget_s
    while len(samples) < LEAST_RUNS or time.perf_counter() < end:
        if flush is not None:
            flush()
        samples += events(runs[len(samples) % len(runs)], 1)
    return summary(samples, timer="events")


def flusher(l2_bytes: float) -> Run:
    """A function that writes twice the L2, so that nothing else is left in it."""
    import torch

    junk = torch.empty(int(2 * l2_bytes), dtype=torch.int8, device="cuda")
    return junk.zero_
