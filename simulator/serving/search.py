"""The cheapest, fastest or least thirsty deployment that keeps its promises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from simulator.base.errors import UnsupportedError
from simulator.policies import parse
from simulator.serving.deployment import MAX_REPLICAS, Deployment
from simulator.serving.estimate import HEADROOM, Estimate, Load, estimate
from simulator.serving.launch import lacking
from simulator.serving.metrics import miss, summary
from simulator.serving.requests import Requests
from simulator.serving.runs import interval
from simulator.serving.scaleout import compute
from simulator.serving.settle import Settled, settle
from simulator.serving.slo import Promise
from simulator.serving.steady import needed

OBJECTIVES = {"cheapest": "usd_per_h", "fastest": "e2e_p50_s", "energy": "energy_j_per_token"}
KINDS = 3
FIRST_WAVE, WAVE = 2, 4
"""Candidates simulated before the first look at the best so far, which bounds all others, and between two later ones:
fixed, so that the points searched do not depend on how many workers there are [-]."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A deployment of one replica, and what the closed form says of it."""

    deployment: Deployment
    estimate: Estimate
    least_replicas: int

    @property
    def least_usd_per_s(self) -> float:
        """Rent of the fewest replicas that could do [USD/s]."""
        return self.deployment.usd_per_s * self.least_replicas


@dataclass(frozen=True, eq=False)
class Question:
    """One candidate to be sized by simulation."""

    deployment: Deployment
    requests: Requests
    slo: tuple[Promise, ...]
    least: int
    most: int
    end: str = "mid"


@dataclass(frozen=True, eq=False)
class Sized:
    """The fewest replicas that keep the promises, or the nearest miss.

    Attributes
    ----------
    row : dict
        As `simulator.serving.metrics.summary`.
    ok : bool
        Whether the promises hold.
    miss : float
        Largest ratio of a promised statistic to its limit [-]; inf where the fleet is overloaded.
    simulations : int
        Fleets simulated [-].
    fleet : Deployment
        With those replicas.
    """

    row: dict[str, Any]
    ok: bool
    miss: float
    simulations: int
    fleet: Deployment


@dataclass(frozen=True)
class PolicyCost:
    """The least rent of one policy or device: simulated, or a bound of the closed form [USD/h]."""

    policy: str
    where: str
    usd_per_h: float
    simulated: bool


@dataclass(frozen=True, eq=False)
class Plan:
    """What a search found; rows are ordered by the objective.

    Attributes
    ----------
    rows : list of dict
        Deployments that keep the promises; the first also at both ends of its 90 % interval.
    pareto : list of dict
        Those no other beats in rent, TTFT p99 and TPOT p99 at once.
    nearest : dict or None
        The nearest miss, where nothing keeps them.
    rejected : dict
        Kinds of reasons the closed form gave to how many candidates, and one of them in words.
    by_policy, by_device : list of PolicyCost
        One per policy, and one per device, that can run.
    points, simulated, simulations : int
        Candidates, those simulated, and fleets simulated for them [-].
    """

    rows: list[dict[str, Any]]
    pareto: list[dict[str, Any]]
    nearest: dict[str, Any] | None
    rejected: dict[str, tuple[int, str]]
    by_policy: list[PolicyCost]
    by_device: list[PolicyCost]
    points: int
    simulated: int
    simulations: int


def prune(task: tuple[Deployment, Requests, tuple[Promise, ...]]) -> Candidate:
    """Candidate with its estimate; a module-level function so that workers can run it."""
    deployment, requests, slo = task
    load = Load.of(requests, prefix_cache=deployment.prefix_cache, slo=slo)
    try:
        found = estimate(deployment, requests, load, slo)
    except UnsupportedError as error:
        found = Estimate(error.message, "cannot run")
    if found.reason:
        return Candidate(deployment, found, 0)
    return Candidate(deployment, found, max(1, math.ceil(load.rate / (found.rate * HEADROOM))))


def size(question: Question) -> Sized:
    """Fewest replicas between `least` and `most`: growing steps up, then bisection."""
    done: dict[int, tuple[Settled, float]] = {}

    def holds(replicas: int) -> bool:
        if replicas not in done:
            fleet = replace(question.deployment, replicas=replicas)
            found = settle(fleet, question.requests, question.slo, question.end)
            done[replicas] = (found, miss(found.outcome, question.slo))
        return done[replicas][0].ok

    low, high = question.least - 1, question.least
    while not holds(high):
        if high >= question.most:
            high = min(done, key=lambda k: done[k][1])
            low = high - 1
            break
        low, high = high, min(max(high + 1, math.ceil(high * 1.3)), question.most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    found, worst = done[high]
    row = summary(found.outcome, question.slo) | {"settled_why": found.why}
    scenario = question.deployment.scenario
    row |= {"given_dtype": scenario.dtype, "given_kv_dtype": scenario.kv_cache_dtype, "given_kernel": scenario.kernel}
    # How long it took here is no part of the answer, which is the same wherever it was found.
    del row["simulated_per_s"]
    fleet = replace(question.deployment, replicas=high)
    return Sized(row, found.ok, worst, len(done), fleet)


def search(
    deployments: Sequence[Deployment],
    requests: Requests,
    slo: tuple[Promise, ...],
    *,
    objective: str = "cheapest",
    max_gpus: int = 64,
    workers: int = 1,
    cluster: str | None = None,
    quiet: bool = False,
) -> Plan:
    """Prune `deployments` in closed form, simulate the survivors from the most promising on.

    For `cheapest` a candidate is skipped when even the fewest replicas the closed form allows cost more than what
    was found. Dense ones are held against dense ones, and those that vLLM can start against each other, so that what a
    policy saves and what can be had today are both known. The other objectives size every survivor.
    """
    # What the closed form takes from the traffic must not depend on how much of it was asked for either.
    seen = requests.longer(max(needed(slo), len(requests)))
    tasks = [(d, seen, slo) for d in deployments]
    candidates = compute(prune, tasks, workers=workers, cluster=cluster, label="candidates", quiet=quiet)
    rejected: dict[str, tuple[int, str]] = {}
    left: list[Candidate] = []
    for c in candidates:
        kind, words = c.estimate.kind, c.estimate.reason
        if not kind and c.least_replicas > _most(c, math.inf, max_gpus):
            gpus = c.least_replicas * c.deployment.group.gpus
            least = f"{max_gpus} GPUs" if gpus > max_gpus else f"{MAX_REPLICAS} replicas"
            kind, words = f"needs more than {least}", f"{gpus} x {c.deployment.scenario.device}"
        if kind:
            rejected[kind] = (rejected.get(kind, (0, ""))[0] + 1, words)
        else:
            left.append(c)
    left.sort(key=lambda c: (c.least_usd_per_s, -c.estimate.rate))
    survivors = list(left)
    sized: list[Sized] = []
    best = [math.inf] * KINDS
    looks = FIRST_WAVE
    while left:
        wave, left, looks = left[:looks], left[looks:], WAVE
        questions = []
        for c in wave:
            most = _most(c, best[_kind(c.deployment.scenario.policy, c.deployment.scenario.device)], max_gpus)
            if most >= c.least_replicas:
                least = most if objective == "fastest" else c.least_replicas
                questions.append(Question(c.deployment, requests, slo, least, most))
        if not questions:
            continue
        sized += compute(size, questions, workers=workers, cluster=cluster, label="sized", quiet=quiet)
        if objective == "cheapest":
            rents = [(_kind(r["policy"], r["device"]), r["usd_per_h"] / 3600.0) for r in (s.row for s in sized if s.ok)]
            best = [min((r for k, r in rents if k <= kind), default=math.inf) for kind in range(KINDS)]
    keeping = sorted((s for s in sized if s.ok), key=lambda s: rank(s, objective))
    good = [s.row for s in keeping]
    if keeping:
        fleet = keeping[0].fleet
        good[0] |= interval(fleet, requests.longer(good[0]["requests"]), slo, keeping[0].miss)
        slow = size(Question(fleet, requests, slo, fleet.replicas, max_gpus // fleet.group.gpus, "hi"))
        good[0]["sure_gpus"] = slow.row["gpus"] if slow.ok else None
    nearest = min(sized, key=lambda s: s.miss).row if sized and not good else None
    if nearest is None and not good:
        near = min(candidates, key=lambda c: c.estimate.miss)
        nearest = _named(near, max_gpus)
    return Plan(
        good,
        pareto(good),
        nearest,
        dict(sorted(rejected.items(), key=lambda kv: -kv[1][0])),
        _least(survivors, good, "policy", best, max_gpus),
        _least(survivors, good, "device", best, max_gpus),
        len(candidates),
        len(sized),
        sum(s.simulations for s in sized),
    )


def rank(sized: Sized, objective: str) -> tuple[float, ...]:
    """What is told first has the least of this.

    What costs the same goes to dense, then to what can be started, since a policy that saves nothing costs quality;
    then to what keeps the promises by the wider margin, in tenths of their limits, since a run knows it no better; then
    to fewer GPUs a replica and fewer tokens a step, so that the arrivals' seed decides nothing.
    """
    row = sized.row
    kind, margin = _kind(row["policy"], row["device"]), round(sized.miss, 1)
    return row[OBJECTIVES[objective]], row["usd_per_h"], kind, margin, row["tp"], row["max_num_batched_tokens"]


def pareto(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows no other beats in rent, TTFT p99 and TPOT p99 at once."""
    keys = ("usd_per_h", "ttft_p99_s", "tpot_p99_s")

    def beats(a: dict[str, Any], b: dict[str, Any]) -> bool:
        return all(a[k] <= b[k] for k in keys) and any(a[k] < b[k] for k in keys)

    return [r for r in rows if not any(beats(o, r) for o in rows)]


def _least(
    survivors: Sequence[Candidate], good: Sequence[dict[str, Any]], key: str, best: Sequence[float], max_gpus: int
) -> list[PolicyCost]:
    """Simulated rent of each `key` (policy or device), or the least it can be: the closed form's fewest replicas, or
    one more than were simulated in vain because they cost no more than the `best` [USD/s] of their kind.
    """
    found: dict[str, PolicyCost] = {}
    for row in sorted(good, key=lambda r: r["usd_per_h"]):
        where = f"{row['gpus']} x {row['device']}"
        found.setdefault(row[key], PolicyCost(row["policy"], where, row["usd_per_h"], True))
    bounds = []
    for c in survivors:
        scenario, rent = (
            c.deployment.scenario,
            best[_kind(c.deployment.scenario.policy, c.deployment.scenario.device)],
        )
        tried = _most(c, rent, max_gpus) if math.isfinite(rent) else 0
        replicas = max(c.least_replicas, tried + 1)
        where = f"{replicas * c.deployment.group.gpus} x {scenario.device}"
        usd_per_h = replicas * c.deployment.usd_per_s * 3600.0
        cost = PolicyCost(scenario.policy, where, usd_per_h, False)
        bounds.append((usd_per_h, getattr(scenario, key), cost))
    for _, name, cost in sorted(bounds, key=lambda b: b[0]):
        found.setdefault(name, cost)
    return list(found.values())


def _kind(policy: str, device: str) -> int:
    """0 for dense, 1 for policies vLLM can start, 2 for the others."""
    return 0 if not parse(policy).members else 2 if lacking(policy, device) else 1


def _most(candidate: Candidate, best_usd_per_s: float, max_gpus: int) -> int:
    """Replicas worth trying: no dearer than the best, no more GPUs than allowed."""
    by_gpus = min(max_gpus // candidate.deployment.group.gpus, MAX_REPLICAS)
    if not math.isfinite(best_usd_per_s):
        return by_gpus
    return min(by_gpus, int(best_usd_per_s / candidate.deployment.usd_per_s + 1e-9))


def _named(candidate: Candidate, max_gpus: int) -> dict[str, Any]:
    """What the closed form refused, and why."""
    s = candidate.deployment.scenario
    gpus = candidate.least_replicas * candidate.deployment.group.gpus
    return {
        "model": s.model,
        "device": s.device,
        "policy": s.policy,
        "dtype": s.dtype,
        "tp": s.tp,
        "reason": candidate.estimate.reason
        or (
            f"needs {gpus} GPUs, more than the {max_gpus} allowed"
            if gpus > max_gpus
            else f"needs {candidate.least_replicas} replicas, more than the {MAX_REPLICAS} allowed"
        ),
        "miss": candidate.estimate.miss,
    }
