"""The closed-form loop against one that asks the full prediction for every token.

``python tests/benchmarks/serving_reference.py TRACE.csv [--scale 1,2,3] [--count 2000] [--moved 5]``; Llama-3.1-8B on
one H100. ``--moved`` also serves the trace with arrivals moved by up to 0.1 ms: how far the percentiles are decided by
the side of a step's end an arrival falls on.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from simulator.scenario.scenario import Scenario
from simulator.serving.deployment import Deployment
from simulator.serving.fleet import simulate
from simulator.serving.readers import read_requests
from simulator.serving.requests import Requests

REPO = Path(__file__).resolve().parents[2]
MOVED_S = 1e-4


def moved(requests: Requests, seed: int) -> Requests:
    """`requests`, each arriving up to `MOVED_S` later; seed 0 leaves them."""
    if not seed:
        return requests
    later = np.random.default_rng(seed).uniform(0.0, MOVED_S, len(requests))
    arrival = np.sort(requests.arrival_s + later)
    return replace(requests, arrival_s=arrival - arrival[0])


def main() -> None:
    """Print relative differences of both loops, one line per rate and set of arrivals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--scale", default="1,2,3")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--moved", type=int, default=0)
    chosen = parser.parse_args()
    sys.path.insert(0, str(REPO / "tests" / "property"))
    from test_serving_reference import in_full

    deployment = Deployment(Scenario(model="llama-3.1-8b", device="h100-sxm"))
    trace = read_requests(chosen.trace).first(chosen.count)
    for scale in (float(s) for s in chosen.scale.split(",")):
        for seed in range(chosen.moved + 1):
            requests = moved(trace.scaled(scale), seed)
            served = simulate(deployment, requests)
            began = time.process_time()
            ttft, tpot, calls = in_full(deployment, requests)
            full_s = time.process_time() - began
            parts = []
            for name, ours, full in (("TTFT", served.ttft_s, ttft), ("TPOT", served.tpot_s, tpot)):
                off = [np.nanquantile(ours, q) / np.nanquantile(full, q) - 1 for q in (0.5, 0.9, 0.99)]
                parts.append(f"{name} p50, p90, p99 " + ", ".join(f"{x:+.2%}" for x in off))
            print(
                f"{scale:g}x, arrivals {'moved' if seed else 'as they are'}: {'; '.join(parts)};"
                f" {served.seconds:.3f} s instead of {full_s:.0f} s ({calls:,} steps)",
                flush=True,
            )


if __name__ == "__main__":
    main()
