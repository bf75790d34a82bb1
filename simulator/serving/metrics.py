"""Percentiles, goodput, load over time, energy and cost of a served fleet, and whether it kept up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from simulator.inference.evaluate import BUSY_SHARE, IDLE_SHARE
from simulator.serving.beside import beside_dense
from simulator.serving.fleet import Outcome
from simulator.serving.slo import METRICS, QUANTILES, STATISTICS, Promise
from simulator.serving.steady import Window, statistical, stays_below, window
from simulator.serving.tabulate import basis_of

GROWTH = 1.5
"""A queue is taken to grow without end when its mean over the last quarter of the arrivals exceeds that over the
second quarter by this factor: 2.3 where it grows linearly, near 1 where it is stable; between them, assumed [-]."""
DRAIN = 0.05
"""... and when working it off takes this share of the time the requests came in: assumed, so that a burst at the
end of a trace is no overload [-]."""
STATUSES = ("STABLE", "BACKLOGGED", "OVERLOADED")


def values_of(outcome: Outcome, metric: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Values of a latency metric in the stationary part [s], and their weights where not all count the same."""
    part = window(outcome)
    if metric == "itl":
        return inter_token_s(outcome, part)
    found = getattr(outcome, f"{metric}_s")[part.has(outcome.requests.arrival_s)]
    return found[np.isfinite(found)], None


def _weighed(outcome: Outcome, metric: str) -> tuple[np.ndarray, np.ndarray]:
    values, weights = values_of(outcome, metric)
    return values, np.ones(len(values)) if weights is None else weights


def statistic(values: np.ndarray, weights: np.ndarray | None, name: str) -> float:
    """Mean or quantile of the values that are numbers; nan where there are none."""
    good = np.isfinite(values)
    values = values[good]
    if not len(values):
        return float("nan")
    if weights is not None:
        weights = weights[good]
    if name == "mean":
        return float(np.average(values, weights=weights))
    if weights is None:
        return float(np.quantile(values, QUANTILES[name]))
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    at = int(np.searchsorted(reached, QUANTILES[name] * reached[-1]))
    return float(values[order][min(at, len(values) - 1)])


def inter_token_s(outcome: Outcome, part: Window | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Times between two tokens of a sequence [s], and how many of each; with `part` of steps that start in it.

    A run of decode steps counts at its mean step, which differs from its first and last by the growth of the
    contexts in it. Prompt steps that stall decoding add to the step after them.
    """
    times, counts = [outcome.gaps], [np.ones(len(outcome.gaps))]
    for every in outcome.events:
        events = every if part is None else every[part.has(every["start_s"])]
        duration, steps, sequences = (events[name] for name in ("duration_s", "steps", "sequences"))
        mean = duration / np.maximum(steps, 1.0)
        stalled = np.where((steps == 0) & (sequences > 0), duration, 0.0)
        runs = np.flatnonzero(steps > 0)
        if not len(runs):
            continue
        before = np.diff(np.cumsum(stalled)[runs], prepend=0.0)
        hit = np.where(before > 0.0, np.minimum(sequences[np.maximum(runs - 1, 0)], sequences[runs]), 0.0)
        times += [mean[runs], mean[runs] + before]
        counts += [steps[runs] * sequences[runs] - hit, hit]
    value, weight = np.concatenate(times), np.concatenate(counts)
    return value[weight > 0.0], weight[weight > 0.0]


def kept(outcome: Outcome, slo: Sequence[Promise]) -> dict[str, float]:
    """Every promise's statistic [s], by its text."""
    out = {}
    for promise in slo:
        out[promise.text] = statistic(*values_of(outcome, promise.metric), promise.statistic)
    return out


def probability(outcome: Outcome, slo: Sequence[Promise]) -> float:
    """Probability that a run without end keeps `slo` at these step times: the least of the promises' [-]."""
    return 0.0 if status(outcome) == "OVERLOADED" else probability_seen(outcome, slo)


def probability_seen(outcome: Outcome, slo: Sequence[Promise]) -> float:
    """As `probability`, from the latencies alone: those of a fleet that still fills are lower than they will be [-]."""
    return min((stays_below(*_weighed(outcome, p.metric), p.statistic, p.limit_s) for p in slo), default=1.0)


def miss(outcome: Outcome, slo: Sequence[Promise]) -> float:
    """Largest ratio of a promised statistic to its limit [-]; inf where the fleet is overloaded."""
    if status(outcome) == "OVERLOADED":
        return float("inf")
    found = kept(outcome, slo)
    return max((r for p in slo if (r := found[p.text] / p.limit_s) == r), default=0.0)


def meets(outcome: Outcome, slo: Sequence[Promise]) -> bool:
    """Whether all promises hold and the fleet keeps up; a promise about nothing (one-token outputs) holds."""
    if status(outcome) == "OVERLOADED":
        return False
    found = kept(outcome, slo)
    return all(not found[p.text] >= p.limit_s for p in slo)


def goodput(outcome: Outcome, slo: Sequence[Promise]) -> float:
    """Requests per second that stay below every limit themselves, of the stationary part [1/s]; between-token times
    are left out.
    """
    part = window(outcome)
    good = part.has(outcome.requests.arrival_s)
    for promise in slo:
        if promise.metric != "itl":
            good &= ~(getattr(outcome, f"{promise.metric}_s") >= promise.limit_s)
    return float(good.sum()) / part.seconds


def status(outcome: Outcome) -> str:
    """STABLE, BACKLOGGED (requests wait, the queue does not grow) or OVERLOADED (it only grows)."""
    span = float(outcome.requests.arrival_s[-1])
    begin, end = outcome.queues[0]
    waits, prompts = float(np.median(end - begin)), float(np.median(outcome.first_s - end))
    state = "BACKLOGGED" if waits > prompts else "STABLE"
    if span <= 0.0:
        return state
    early = _mean_waiting(outcome, span * 0.25, span * 0.5)
    late = _mean_waiting(outcome, span * 0.75, span)
    drain = max(float(np.max(end, initial=0.0)) for _, end in outcome.queues) - span
    return "OVERLOADED" if late > GROWTH * early and drain > DRAIN * span else state


def _mean_waiting(outcome: Outcome, start: float, stop: float) -> float:
    """Mean number of requests that wait to be scheduled between two times [-]."""
    total = 0.0
    for begin, end in outcome.queues:
        inside = np.minimum(end, stop) - np.maximum(begin, start)
        total += float(np.maximum(inside, 0.0).sum())
    return total / (stop - start)


def over_time(outcome: Outcome, bins: int = 120) -> dict[str, np.ndarray]:
    """Load in `bins` equal intervals: time [s], waiting and running requests, KV share, tokens/s, power [W]."""
    edges = np.linspace(0.0, outcome.makespan_s, bins + 1)
    width = edges[1] - edges[0]
    pool, deployment = outcome.deployment.pool, outcome.deployment
    running, blocks, tokens, prompts, busy = (np.zeros(bins) for _ in range(5))
    for events, share in zip(outcome.events, outcome.busy, strict=True):
        start, duration = events["start_s"], events["duration_s"]
        used = _blocks(outcome, events)
        for values, sums in (
            (events["sequences"] * duration, running),
            (used * duration, blocks),
            (events["steps"] * events["sequences"] + events["chunks"], tokens),
            (events["tokens"], prompts),
            (share * duration, busy),
        ):
            _spread(start, duration, values, edges, sums)
    waiting = sum((_present(*q, edges) for q in outcome.queues), np.zeros(bins)) / width
    replicas = deployment.replicas + deployment.prefill_replicas
    watts = deployment.group.device.power_w * deployment.gpus
    return {
        "time_s": (edges[:-1] + edges[1:]) / 2.0,
        "waiting": waiting,
        "running": running / width,
        "kv_share": blocks / (width * replicas * pool.blocks),
        "output_tokens_per_s": tokens / width,
        "prompt_tokens_per_s": prompts / width,
        "power_w": watts * (IDLE_SHARE + BUSY_SHARE * busy / (width * replicas)),
    }


def _kv_share(outcome: Outcome) -> float:
    replicas, part = len(outcome.events), window(outcome)
    inside = [e[part.has(e["start_s"])] for e in outcome.events]
    used = sum(float(np.sum(_blocks(outcome, e) * e["duration_s"])) for e in inside)
    return used / (part.seconds * replicas * outcome.deployment.pool.blocks)


def _blocks(outcome: Outcome, events: np.ndarray) -> np.ndarray:
    """Mean blocks in use during each event: whole ones on average half a block above the tokens."""
    pool = outcome.deployment.pool
    if not pool.grows:
        return events["held"]
    sequences = events["sequences"]
    context = events["context"] + sequences * events["steps"] / 2.0
    return events["held"] + (context + sequences * (pool.block_tokens - 1) / 2.0) / pool.block_tokens


def _spread(start: np.ndarray, duration: np.ndarray, values: np.ndarray, edges: np.ndarray, out: np.ndarray) -> None:
    """Add `values`, each even over its event, to the intervals between `edges`."""
    if not len(start):
        return
    # Cumulative amount at each edge: all events that ended, and a part of the one under way.
    done = np.concatenate([[0.0], np.cumsum(values)])
    at = np.searchsorted(start, edges, side="right") - 1
    i = np.maximum(at, 0)
    part = np.clip((edges - start[i]) / np.maximum(duration[i], 1e-30), 0.0, 1.0)
    reached = np.where(at < 0, 0.0, done[i] + part * values[i])
    out += np.diff(reached)


def _present(begin: np.ndarray, end: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Request-seconds between `begin` and `end` in each interval."""

    def until(times: np.ndarray) -> np.ndarray:
        ordered = np.sort(times)
        total = np.concatenate([[0.0], np.cumsum(ordered)])
        n = np.searchsorted(ordered, edges, side="right")
        return n * edges - total[n]

    return np.diff(until(begin) - until(end))


def energy_j(outcome: Outcome) -> float:
    """Energy of all GPUs in the stationary part, an estimate from the busiest resource [J]."""
    deployment, part = outcome.deployment, window(outcome)
    per_replica = deployment.group.device.power_w * deployment.group.gpus
    total = 0.0
    for events, share in zip(outcome.events, outcome.busy, strict=True):
        busy = float(np.sum((share * events["duration_s"])[part.has(events["start_s"])]))
        total += per_replica * (IDLE_SHARE * part.seconds + BUSY_SHARE * busy)
    return total


def summary(outcome: Outcome, slo: Sequence[Promise] = ()) -> dict[str, Any]:
    """One row of figures: see `simulator.serving.output.COLUMNS`."""
    deployment, requests = outcome.deployment, outcome.requests
    state = status(outcome)
    part = window(outcome)
    counted = part.has(requests.arrival_s)
    # What comes in the stationary part is as much as what leaves in it, but for the noise of the arrivals.
    time, tokens = part.seconds, int(requests.output[counted].sum())
    row: dict[str, Any] = {
        "model": deployment.group.model.name,
        "device": deployment.group.device.name,
        "policy": deployment.group.policies.spelling,
        "kernel": deployment.group.policies.kernel,
        "engine": deployment.scenario.engine,
        "dtype": deployment.group.dtype,
        "kv_dtype": deployment.group.kv_dtype,
        "tp": deployment.scenario.tp,
        "pp": deployment.scenario.pp,
        "ep": deployment.scenario.ep,
        "replicas": deployment.replicas,
        "prefill_replicas": deployment.prefill_replicas,
        "gpus": deployment.gpus,
        "scheduler": deployment.scheduler.name,
        "max_num_seqs": deployment.scheduler.max_num_seqs,
        "max_num_batched_tokens": deployment.scheduler.max_num_batched_tokens,
        "router": deployment.router,
        "requests": len(requests),
        "rejected": requests.rejected,
        "users": requests.users or None,
        "rate_per_s": requests.rate if requests.rate < float("inf") else None,
        "status": state,
        "basis": str(basis_of(deployment.group)),
        "makespan_s": outcome.makespan_s,
        "steady_from_s": part.start_s,
        "steady_s": time,
        "steady_requests": int(counted.sum()),
        "steady_why": part.why,
        "requests_per_s": int(counted.sum()) / time,
        "output_tokens_per_s": tokens / time,
        "output_tokens_per_s_per_gpu": tokens / time / deployment.gpus,
    }
    for metric in METRICS:
        values, weights = values_of(outcome, metric)
        known, ones = state != "OVERLOADED", np.ones(len(values)) if weights is None else weights
        for name in STATISTICS:
            # Percentiles of a queue that only grows say how long the trace is, not how good the fleet.
            figure = statistic(values, weights, name)
            row[f"{metric}_{name}_s"] = figure if known else None
            low, high = statistical(values, ones, name, figure) if known else (None, None)
            row[f"{metric}_{name}_run_lo_s"] = low
            row[f"{metric}_{name}_run_hi_s"] = None if high == float("inf") else high
    joules = energy_j(outcome)
    row |= {
        "goodput_per_s": goodput(outcome, slo) if slo else None,
        "meets_slo": meets(outcome, slo) if slo else None,
        "p_slo_run": probability(outcome, slo) if slo else None,
        "preemptions": int(outcome.preemptions.sum()),
        "prefix_hit_rate": float(outcome.hits.sum() / requests.prompt.sum()),
        "prefix_bound": requests.prefix_bound() if requests.ids else None,
        "kv_tokens": deployment.pool.tokens,
        "kv_share_mean": _kv_share(outcome),
        "energy_j_per_token": joules / tokens,
        "usd_per_h": deployment.usd_per_s * 3600.0,
        "usd_per_mtoken": deployment.usd_per_s * time / tokens * 1e6,
        "simulated_per_s": len(requests) / outcome.seconds if outcome.seconds else None,
    }
    # Little's law: tokens per second and replica times the time of each.
    each = row["tpot_p50_s"]
    running = deployment.scheduler.max_num_seqs if each is None else tokens / time / deployment.replicas * each
    return row | beside_dense(deployment, requests, min(running, deployment.scheduler.max_num_seqs))
