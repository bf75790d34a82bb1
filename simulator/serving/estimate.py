"""What a replica can sustain at best, in closed form: prunes a plan before anything is simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.base.errors import ShadowlineError
from simulator.inference.step import step_time
from simulator.ops.step import decode_step
from simulator.serving.deployment import Deployment
from simulator.serving.fleet import refuse_long
from simulator.serving.requests import Requests
from simulator.serving.slo import QUANTILES, Promise
from simulator.serving.tabulate import NOBODY, mixed_step

HEADROOM = 1.15
"""What a simulated replica is allowed to sustain beyond the estimate before it counts as pruned wrongly; the tests
hold simulated saturation against it [-]."""


@dataclass(frozen=True)
class Load:
    """What a closed form needs to know of the traffic.

    Attributes
    ----------
    rate : float
        Arrivals [1/s].
    prompt : ndarray
        Tokens each request has computed at least [-].
    mean_prompt, mean_output, mean_context : float
        Tokens computed and generated per request; context of a decode step, averaged over steps [-].
    own_share : float
        Share of the context that no other request holds too, at least [-].
    """

    rate: float
    prompt: np.ndarray
    mean_prompt: float
    mean_output: float
    mean_context: float
    own_share: float

    @classmethod
    def of(cls, requests: Requests, *, prefix_cache: bool = False, slo: Sequence[Promise] = ()) -> Load:
        """Means; with `prefix_cache` of what is left when nothing is ever evicted. Users of a closed loop ask at
        least as often as answers that only just keep `slo` let them.
        """
        left = 1.0 - requests.prefix_bound() if prefix_cache and requests.ids else 1.0
        steps = np.maximum(requests.output - 1, 0)
        context = requests.prompt + requests.output / 2.0
        return cls(
            _asked_per_s(requests, slo) if requests.users else requests.rate,
            requests.prompt - requests.reused if left == 1.0 else np.ones_like(requests.prompt),
            float(np.mean(requests.prompt - requests.reused)) * left,
            float(np.mean(requests.output)),
            float(np.average(context, weights=np.maximum(steps, 1e-9))),
            left,
        )


def _asked_per_s(requests: Requests, slo: Sequence[Promise]) -> float:
    """``users / (think + ttft + (output - 1) tpot)`` with promised latencies; 0 where one is not promised [1/s]."""
    # A mean may be above a promised median, but not far above a promised tail.
    limit = {p.metric: p.limit_s for p in slo if p.statistic != "p50"}
    steps = float(np.mean(requests.output)) - 1.0
    whole = min(
        limit.get("e2e", np.inf), limit.get("ttft", np.inf) + steps * limit.get("tpot", np.inf if steps else 0.0)
    )
    thinks = 0.0 if requests.think_s is None else float(np.mean(requests.think_s))
    return requests.users / (thinks + whole)


@dataclass(frozen=True)
class Estimate:
    """One replica at its best.

    Attributes
    ----------
    reason : str
        Why it can never do, or "".
    kind : str
        The reason without its figures, to count by.
    rate : float
        Requests per second of one replica, at most [1/s].
    miss : float
        Largest ratio of a latency's floor to its limit [-]; inf where it cannot run at all.
    """

    reason: str
    kind: str = ""
    rate: float = 0.0
    miss: float = float("inf")


def estimate(deployment: Deployment, requests: Requests, load: Load, slo: Sequence[Promise]) -> Estimate:
    """Bound what one replica of `deployment` sustains, and the least latency it can give.

    In a steady state of n running sequences each step gives n tokens, so ``n / output`` requests end and their
    successors bring ``n prompt / output`` prompt tokens per decode step, packed in chunks of the whole token budget:
    ``rate(n) = n / (output t(n))`` with t the mean time per decode step, prompts included. n is limited by the
    scheduler, by the KV cache, and by promises on the time per token, which no n with a longer t can keep.
    """
    try:
        deployment.check()
    except ShadowlineError as error:
        return Estimate(error.message, "cannot run")
    try:
        pool = deployment.pool
    except ShadowlineError as error:
        return Estimate(error.message, "does not fit in memory")
    try:
        refuse_long(deployment, requests)
    except ShadowlineError as error:
        return Estimate(error.message, "a request is too long")
    floor = _floors(deployment, load, slo)
    if floor[0] >= 1.0:
        return Estimate(floor[1], "a request alone is slower than promised", miss=floor[0])
    scheduler, group = deployment.scheduler, deployment.group
    most = min(scheduler.max_num_seqs, max(pool.tokens / (load.mean_context * load.own_share), 1.0))
    n = np.unique(np.round(np.geomspace(1.0, most, 24)))
    decode = step_time(group, decode_step(n / float(group.pp), load.mean_context)).total_s
    beside = n if scheduler.mixes else np.full_like(n, NOBODY)
    chunk = np.maximum(scheduler.max_num_batched_tokens - np.where(scheduler.mixes, n, 0.0), 1.0)
    prompts = np.maximum(chunk / load.mean_prompt, 1.0)
    each = chunk / prompts
    mixed = mixed_step(group, beside, load.mean_context, prompts, each, each).total_s
    share = n * load.mean_prompt / load.mean_output / chunk
    pure = np.maximum(1.0 - share, 0.0) if scheduler.mixes else 1.0
    time = share * mixed + pure * decode
    limits = [p.limit_s for p in slo if p.metric == "tpot" and p.statistic != "p50"]
    allowed = time < min(limits, default=np.inf)
    if not allowed.any():
        ratio = float(time[0] / min(limits))
        words = f"tpot is at least {time[0] * 1e3:.3g} ms beside prompts"
        return Estimate(words, "a request alone is slower than promised", miss=ratio)
    rate = n / (load.mean_output * time)
    return Estimate("", rate=float(np.max(rate[allowed])), miss=floor[0])


def _floors(deployment: Deployment, load: Load, slo: Sequence[Promise]) -> tuple[float, str]:
    """Largest ratio of floor to limit, and its words: each request alone on the replica."""
    group, scheduler = deployment.group, deployment.scheduler
    worst, words = 0.0, ""
    for promise in slo:
        if promise.metric in ("ttft", "e2e"):
            at = float(_of(load.prompt, promise.statistic))
            # Chunks follow each other through the stages; the last of them passes all.
            chunk = min(at, scheduler.max_num_batched_tokens) if scheduler.chunks else at
            steps = ((at, False), (chunk, True))
            alone = (mixed_step(group, NOBODY, 1.0, 1.0, t, t, whole=w).total_s for t, w in steps)
            floor = max(float(np.max(s)) for s in alone) * PROMPT_MARGIN
        else:
            floor = float(np.max(step_time(group, decode_step(1.0 / group.pp, 2.0)).total_s))
        if floor / promise.limit_s > worst:
            worst = floor / promise.limit_s
            words = f"{promise.metric} is at least {floor * 1e3:.3g} ms"
    return worst, words


PROMPT_MARGIN = 0.9
"""Chunks of a prompt may together take a little less than the prompt at once; no floor is set above this share,
assumed [-]."""


def _of(values: np.ndarray, statistic: str) -> float:
    if statistic == "mean":
        return float(np.mean(values))
    return float(np.quantile(values, QUANTILES[statistic]))
