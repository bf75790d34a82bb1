"""Two runs beside each other: what they have in common errs alike, so only what a policy changed spreads a speed-up.

The log error of ``T_dense / T_policy`` is normal with ``sigma = (1 - common / max(T_dense, T_policy)) s``. `common` is
the time of the kernels that no policy touched and of the engine's hands that both runs have; `s` is the log error of
what was changed. By policy it is learned from published speed-ups (`spreads`), or of the kernels' own fit where the
dense run does not use that fit and it was measured better.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np

from simulator.base.arrays import Array, exp, maximum, minimum, sqrt, where
from simulator.base.files import parse_toml
from simulator.base.interval import Z90, Interval
from simulator.inference.evaluate import Largest, Points, mean_nodes
from simulator.inference.step import Changed, StepTime
from simulator.policies import Policy
from simulator.roofline.uncertainty import Errors

FILE = "speedup.toml"
SPECULATION = "speculation"
"""Family of speed-ups of drafted tokens, which no policy makes."""
ANY = "any"
"""Name, among the families, of what stands for one that was not learned."""


@lru_cache(maxsize=1)
def spreads() -> dict[str, float]:
    """Log error of what a policy changed, by its family [-], of ``simulator/inference/speedup.toml``."""
    text = resources.files("simulator.inference").joinpath(FILE).read_text("utf-8")
    found = parse_toml(text, f"simulator/inference/{FILE}")["family"]
    return {name: float(entry["sigma"]) for name, entry in found.items()}


@dataclass(frozen=True, eq=False)
class Run:
    """Time of one run, and what of it is not as in the run it is compared with.

    Attributes
    ----------
    total_s, kernels_s : Array
        All of it, and its kernels; the rest is the engine's [s].
    changed_s, error_s : Array
        Kernels that policies rewrote or added, and one standard deviation of them [s].
    spread : float
        Log error of a change that leaves no kernel of its own [-].
    """

    total_s: Array
    kernels_s: Array
    changed_s: Array = 0.0
    error_s: Array = 0.0
    spread: float = 0.0

    def each(self, f: Callable[[Array], Array]) -> Run:
        """`f` of every time."""
        return Run(f(self.total_s), f(self.kernels_s), f(self.changed_s), f(self.error_s), self.spread)


def differing(own: Run, dense: Run) -> Array:
    """Share of the longer of two runs that is not common to both [-]."""
    hands = minimum(own.total_s - own.kernels_s, dense.total_s - dense.kernels_s)
    common = minimum(own.kernels_s - own.changed_s, dense.kernels_s) + hands
    return maximum(1.0 - common / maximum(own.total_s, dense.total_s), 0.0)


def faster(own: Run, dense: Run) -> Interval[np.ndarray]:
    """Speed-up of `own` over `dense` with its 90 % interval [-]; exactly 1 where nothing was changed."""
    changed = own.changed_s
    spread = where(changed > 0.0, own.error_s / maximum(changed, 1e-30), own.spread)
    factor = exp(Z90 * (differing(own, dense) * spread))
    mid = np.asarray(dense.total_s / own.total_s)
    return Interval(mid, mid / factor, mid * factor)


def ttft(points: Points, dense: Points) -> Interval[np.ndarray]:
    """TTFT of dense over the policy's [-]."""
    return faster(prefill(points, dense), prefill(dense))


def tpot(points: Points, dense: Points) -> Interval[np.ndarray]:
    """TPOT of dense over the policy's [-]; NaN where there is one token of output."""
    return faster(decode(points, dense), decode(dense))


def throughput(points: Points, dense: Points) -> Interval[np.ndarray]:
    """Tokens/s over dense's at the same batch [-]."""
    return faster(whole(points, dense), whole(dense))


def throughput_at_largest(points: Points, dense: Points) -> Interval[np.ndarray]:
    """Tokens/s over dense's, each at its own largest batch [-]; NaN where one of them has none.

    Per sequence a larger batch shares its weights among more: what that saves is a change, too.
    """

    def of(at: Largest, beside: Points | None = None) -> Run:
        batch = at.points.batch
        return whole(at.points, beside).each(lambda seconds: at.spread(seconds / batch))

    return faster(of(points.largest, dense), of(dense.largest))


def prefill(points: Points, beside: Points | None = None) -> Run:
    """One prefill of the batch; `beside` is what the points are compared with, None for that side itself."""
    total = points.ttft_s.mid
    return _run(points, points.prefill, total, points.passes, beside, beside and beside.prefill)


def decode(points: Points, beside: Points | None = None) -> Run:
    """A mean decode step; likewise."""
    return _run(points, points.decode, points.tpot_s.mid, 1.0, beside, beside and beside.decode)


def whole(points: Points, beside: Points | None = None) -> Run:
    """``TTFT + (output - 1) TPOT``; likewise."""
    first, each = prefill(points, beside), decode(points, beside)
    steps = np.asarray(points.output, float) - 1.0
    return Run(
        points.e2e_s.mid,
        first.kernels_s + steps * each.kernels_s,
        first.changed_s + steps * each.changed_s,
        first.error_s + steps * each.error_s,
        first.spread,
    )


def _run(
    points: Points, step: StepTime, total_s: Array, times: Array, beside: Points | None, dense: StepTime | None
) -> Run:
    ndim = points.ttft_s.mid.ndim
    sums, spread = step.sums, 0.0
    changed: Array = 0.0
    error: Array = 0.0
    if beside is not None and dense is not None:
        known = dense.sums.details.errors.families
        members = changing(points.group.policies.members, beside.group.policies.members)
        changed, error, spread = changes(members, sums.changed_s, sums.details.errors, known, sums.details.density_s)
        if points.group.speculation != beside.group.speculation:
            spread = max(spread, spreads().get(SPECULATION, spreads()[ANY]))
            error = maximum(error, changed * spread)
    kernels, changed, error = (mean_nodes(x, ndim) * times for x in (sums.gpu_s, changed, error))
    return Run(total_s, kernels, changed, error, spread)


def changing(own: Iterable[Policy], other: Collection[Policy]) -> list[Policy]:
    """Policies of one run that the other does not have alike."""
    return [policy for policy in own if policy not in other]


def changes(
    members: Iterable[Policy], changed_s: Changed, errors: Errors, known: Collection[str], alone_s: Array = 0.0
) -> tuple[Array, Array, float]:
    """Kernels that policies changed, and their error.

    Parameters
    ----------
    members : iterable of Policy
        Those that make the difference.
    changed_s, errors
        Of the run's kernels.
    known : collection of str
        Error families of the run that it is compared with.
    alone_s : Array
        An error beside those [s].

    Returns
    -------
    tuple
        Time [s], one standard deviation of it [s], and the largest log error among the policies' families [-].
    """
    total: Array = 0.0
    squares: Array = alone_s * alone_s
    spread = {p.name: spreads().get(p.family, spreads()[ANY]) for p in members}
    found: dict[str, Array] = {}
    for (name, family), seconds in changed_s.items():
        if name not in spread:
            continue
        total = total + seconds
        if family in known:
            found[name] = found.get(name, 0.0) + seconds * spread[name]
        else:
            own = minimum(errors.of_family(family, maximum(seconds, 1e-30)), spread[name])
            squares = squares + (seconds * own) ** 2
    for error in found.values():
        squares = squares + error * error
    return total, sqrt(squares), max(spread.values(), default=0.0)
