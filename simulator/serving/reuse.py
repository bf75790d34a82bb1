"""What reuse beyond a prefix cache takes off the load: answers, chunks of prompts, groups of requests."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from simulator.base.errors import InputError
from simulator.serving.calls import parse_call
from simulator.serving.requests import Requests

KINDS: dict[str, dict[str, float | None]] = {
    "chunk-reuse": {"reused": None, "recompute": None},
    "semantic-cache": {"hit": None, "lookup_ms": None},
    "example-routing": {"share": None},
    "prefix-groups": {},
}
"""Reuse by name, with the parameters that must be given: published values differ by workload, so none is assumed."""


@dataclass(frozen=True, eq=False)
class Reuse:
    """Traffic that is left for the fleet, and what was answered without it.

    Attributes
    ----------
    requests : Requests
        For the fleet.
    answered : int
        Requests answered elsewhere [-].
    """

    requests: Requests
    answered: int = 0


def apply_reuse(requests: Requests, text: str, seed: int) -> Reuse:
    """Traffic under one kind of reuse.

    - ``chunk-reuse(reused,recompute)``: a share of each prompt lies in cached chunks, of which a share is computed
      again at its new place (Cache-Craft, arXiv:2502.15734): ``prompt * reused * (1 - recompute)`` tokens are not
      computed, but are attended to and kept.
    - ``semantic-cache(hit,lookup_ms)``: every request is looked up, and a share answered by the cache
      (category-aware semantic caching, arXiv:2510.26835): latency is ``lookup + (1 - hit) LLM``.
    - ``example-routing(share)``: a share goes to a smaller model with examples in its prompt (IC-Cache); that
      model's fleet is simulated by itself.
    - ``prefix-groups``: requests wait and are sorted so that equal prompt beginnings run together, for offline work
      (BatchLLM, arXiv:2412.03594); needs requests whose ids are known.
    """
    name, v = parse_call(text, KINDS, "--reuse")
    for key in ("reused", "recompute", "hit", "share"):
        if key in v and not 0.0 <= v[key] <= 1.0:
            raise InputError(f"{key}={v[key]:g} must be from 0 to 1", where="--reuse")
    if name == "chunk-reuse":
        saved = np.floor(requests.prompt * v["reused"] * (1.0 - v["recompute"]))
        return Reuse(replace(requests, reused=np.minimum(saved, requests.prompt - 1).astype(np.int64), stream=None))
    if name == "prefix-groups":
        if not requests.ids:
            raise InputError(f"{requests.name} does not say which prompts begin alike (hash_ids)", where="--reuse")
        order = np.array(sorted(range(len(requests)), key=lambda i: requests.ids[i]))
        return Reuse(requests.at_once().take(order))
    share = v["hit"] if name == "semantic-cache" else v["share"]
    gone = np.random.default_rng(seed).random(len(requests)) < share
    if gone.all():
        raise InputError("no request is left for the fleet", where="--reuse")
    delay = v.get("lookup_ms", 0.0) / 1e3
    if delay < 0.0:
        raise InputError("lookup_ms must be 0 or more", where="--reuse")
    left = replace(requests.take(np.flatnonzero(~gone)), delay_s=delay)
    return Reuse(left, int(gone.sum()))
