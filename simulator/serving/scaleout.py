"""Many simulations over processes or a Dask cluster, with the answer of one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from simulator.base import console
from simulator.base.errors import InputError

T = TypeVar("T")
R = TypeVar("R")
PER_WORKER = 4
"""Chunks of neighbouring tasks per worker: neighbours share step tables, and a slow chunk still leaves others [-]."""
RETRIES = 3
"""Times a pool is started again after a worker died before the error is passed on [-]."""
DYING = "workers die again and again, perhaps for want of memory; use fewer"


def compute(
    function: Callable[[T], R],
    tasks: Sequence[T],
    *,
    workers: int = 1,
    cluster: str | None = None,
    label: str = "simulations",
    quiet: bool = False,
) -> list[R]:
    """``[function(t) for t in tasks]``, wherever it runs.

    The function depends on nothing but its task, so where and in which order tasks run, and whether one ran twice
    because its worker died, does not change the results.

    Parameters
    ----------
    function : callable
        A module-level function; tasks and results are pickled.
    workers : int
        Local processes; 1 runs here.
    cluster : str, optional
        Address of a Dask scheduler (``tcp://host:8786``), or ``local`` for one started here with `workers`.
    """
    if workers < 1:
        raise InputError("must be 1 or more", where="--workers")
    if cluster is None and (workers == 1 or len(tasks) == 1):
        return [function(t) for t in console.progress(tasks, len(tasks), label, quiet=quiet)]
    size = max(len(tasks) // (PER_WORKER * workers), 1)
    chunks = [(function, list(tasks[i : i + size])) for i in range(0, len(tasks), size)]
    if cluster is not None:
        done = _dask(chunks, workers, cluster, label, quiet)
    else:
        done = _processes(chunks, workers, label, quiet)
    return [result for chunk in done for result in chunk]


def _chunk(work: tuple[Callable[[T], R], list[T]]) -> list[R]:
    function, tasks = work
    return [function(t) for t in tasks]


def _processes(
    tasks: Sequence[tuple[Callable[[T], R], list[T]]], workers: int, label: str, quiet: bool
) -> list[list[R]]:
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    results: dict[int, list[R]] = {}
    deaths = 0
    while len(results) < len(tasks):
        todo = [i for i in range(len(tasks)) if i not in results]
        before = len(results)
        with ProcessPoolExecutor(min(workers, len(todo)), get_context("spawn")) as pool:
            futures = {pool.submit(_chunk, tasks[i]): i for i in todo}
            done = as_completed(futures)
            try:
                for future in console.progress(done, len(todo), label, quiet=quiet):
                    results[futures[future]] = future.result()
            except BrokenProcessPool:
                # A killed worker takes its pool along; what had finished is kept, the rest runs again.
                for future, i in futures.items():
                    if future.done() and not future.cancelled() and future.exception() is None:
                        results[i] = future.result()
                deaths = deaths + 1 if len(results) == before else 1
                if deaths > RETRIES:
                    raise InputError(DYING, where="--workers") from None
                console.say(f"a worker died; {len(tasks) - len(results)} chunks of {label} run again")
            except BaseException:
                # A refused task or Ctrl-C must not wait for what is still queued.
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return [results[i] for i in range(len(tasks))]


def _dask(
    tasks: Sequence[tuple[Callable[[T], R], list[T]]], workers: int, cluster: str, label: str, quiet: bool
) -> list[list[R]]:
    try:
        from distributed import Client, KilledWorker, LocalCluster, as_completed
    except ImportError:
        raise InputError("Dask is not installed; pip install 'shadowline[cluster]'", where="--cluster") from None
    from concurrent.futures import CancelledError

    address: Any = cluster
    local: Any = None
    if cluster == "local":
        no_page: Any = None
        local = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=no_page)
        address = local
    try:
        try:
            client = Client(address, timeout=10)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot reach {cluster}: {error}", where="--cluster") from None
        with client:
            futures: Any = client.map(_chunk, list(tasks), pure=False, retries=RETRIES)
            for future in console.progress(as_completed(futures), len(futures), label, quiet=quiet):
                future.result()
            gathered: Any = client.gather(futures)
            return list(gathered)
    except KilledWorker:
        raise InputError(DYING, where="--cluster") from None
    except CancelledError:
        raise InputError(f"{cluster} went away while {label} ran; start it again", where="--cluster") from None
    finally:
        if local is not None:
            local.close()
