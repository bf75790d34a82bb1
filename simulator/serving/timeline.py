"""A run as a Chrome trace: open it in ui.perfetto.dev or chrome://tracing."""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.serving.fleet import Outcome
from simulator.serving.metrics import over_time

MOST_EVENTS = 200_000
"""Slices written at most; Perfetto opens some hundred MB, a slice takes about 150 B."""


def timeline(outcome: Outcome, most: int = MOST_EVENTS) -> dict[str, Any]:
    """Trace-event JSON: one track of steps per replica, one slice per phase of each request, load as counters.

    A run of equal decode steps is one slice. What exceeds `most` slices is left out from the end and counted in
    ``otherData``.
    """
    trace: list[dict[str, Any]] = []
    left_out = 0
    for k, events in enumerate(outcome.events):
        role = "prefill" if k < outcome.deployment.prefill_replicas else "replica"
        trace.append(_name(1, k, f"{role} {k}"))
        room = max(most // 2 - len(trace), 0)
        left_out += max(len(events) - room, 0)
        for start, length, steps, n, context, chunks, tokens, _, _ in events[:room].tolist():
            name = f"{chunks:.0f} prompts, {tokens:.0f} tokens" if chunks else f"{steps:.0f} decode steps"
            trace.append(
                {
                    "name": name,
                    "ph": "X",
                    "pid": 1,
                    "tid": k,
                    "ts": start * 1e6,
                    "dur": length * 1e6,
                    "args": {
                        "steps": int(steps),
                        "decoding": int(n),
                        "context_tokens": int(context),
                        "prompt_tokens": int(tokens),
                    },
                }
            )
    requests = outcome.requests
    room = max((most - len(trace)) // 3, 0)
    left_out += 3 * max(len(requests) - room, 0)
    phases = (
        ("queued", requests.arrival_s, outcome.admitted_s),
        ("prefill", outcome.admitted_s, outcome.first_s),
        ("decode", outcome.first_s, outcome.finish_s),
    )
    for name, begin, end in phases:
        for i in range(min(len(requests), room)):
            common = {"cat": "request", "id": i, "pid": 2, "tid": 0, "name": name}
            args = {"prompt": int(requests.prompt[i]), "output": int(requests.output[i])}
            trace.append({**common, "ph": "b", "ts": float(begin[i]) * 1e6, "args": args})
            trace.append({**common, "ph": "e", "ts": float(end[i]) * 1e6})
    load = over_time(outcome, 500)
    for key in ("waiting", "running", "kv_share", "output_tokens_per_s", "power_w"):
        for time, value in zip(load["time_s"], load[key], strict=True):
            trace.append(
                {"name": key, "ph": "C", "pid": 1, "ts": float(time) * 1e6, "args": {key: float(np.round(value, 6))}}
            )
    trace += [_process(1, "fleet"), _process(2, "requests")]
    return {"traceEvents": trace, "displayTimeUnit": "ms", "otherData": {"left_out": left_out}}


def _name(pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": "thread_name", "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}


def _process(pid: int, name: str) -> dict[str, Any]:
    return {"name": "process_name", "ph": "M", "pid": pid, "args": {"name": name}}
