"""From repeated runs to one number with its spread; clocks are arguments, so statistics are tested without one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

LEAST_RUNS = 7
"""Runs below which neither the 20 % nor the 80 % quantile is one of them [-]."""
DISTURBED = 1.05
"""Wall time over processor time from which a run counts as interrupted by another process [-]."""


@dataclass(frozen=True)
class Timing:
    """Repeated runs of one thing.

    Attributes
    ----------
    median_s, p20_s, p80_s : float
        Of the runs kept [s].
    runs : int
        Runs kept [-].
    disturbed : float
        Share of all runs that were dropped because another process had the core meanwhile [-].
    timer : str
        'perf_counter', 'graph' or 'events'.
    """

    median_s: float
    p20_s: float
    p80_s: float
    runs: int
    disturbed: float
    timer: str

    def row(self) -> dict[str, float | str]:
        """Columns of a table of measurements."""
        return {"time_s": self.median_s, "p20_s": self.p20_s, "p80_s": self.p80_s, "timer": self.timer}


def summary(wall_s: Sequence[float], busy_s: Sequence[float] | None = None, timer: str = "perf_counter") -> Timing:
    """Median and quantiles of runs.

    Parameters
    ----------
    wall_s : sequence of float
        Time of each run [s].
    busy_s : sequence of float, optional
        Processor time of each run of one thread [s]. Runs whose wall time exceeds it by 5 % were interrupted
        and are dropped, unless fewer than `LEAST_RUNS` are left: then all are kept.

    Raises
    ------
    ValueError
        No run.
    """
    wall = np.asarray(wall_s, float)
    if wall.size == 0:
        raise ValueError("no run to summarise")
    kept = wall
    if busy_s is not None:
        calm = wall[wall <= DISTURBED * np.asarray(busy_s, float)]
        kept = calm if calm.size >= LEAST_RUNS else wall
    p20, p50, p80 = (float(q) for q in np.quantile(kept, [0.2, 0.5, 0.8]))
    return Timing(p50, p20, p80, int(kept.size), 1.0 - kept.size / wall.size, timer)


def time_cpu(
    run: Callable[[], object],
    *,
    budget_s: float,
    most: int = 200,
    threads: int = 1,
    wall: Callable[[], float] = time.perf_counter,
    busy: Callable[[], float] = time.thread_time,
) -> Timing:
    """Time `run` again and again for `budget_s`, at least `LEAST_RUNS` and at most `most` times.

    The first run is not counted. With one thread, runs that lost the core are dropped (`summary`); with
    several, processor time says nothing about waiting and all runs count.
    """
    run()
    walls: list[float] = []
    busies: list[float] = []
    end = wall() + budget_s
    while len(walls) < LEAST_RUNS or (wall() < end and len(walls) < most):
        b, w = busy(), wall()
        run()
        walls.append(wall() - w)
        busies.append(busy() - b)
    return summary(walls, busies if threads == 1 else None)
