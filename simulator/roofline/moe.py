"""Time of a fused mixture-of-experts layer on one rank: experts hit, rows padded, weights read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.base.arrays import Array, clip, exp, hypot, maximum, minimum, real, sqrt, where
from simulator.base.errors import InputError
from simulator.ops import routing
from simulator.ops.routing import SKEWED, UNIFORM

if TYPE_CHECKING:
    from simulator.device.surface import Surface
    from simulator.roofline.hardware import Hardware

DEFAULT: Mapping[str, float] = {
    "t0_s": 15.0e-6,
    "math_share": 0.55,
    "bw_share": 0.7,
    "tile_fill": 0.5,
    "tile_rows": 128.0,
    "narrow": 32.0,
    "act_passes": 1.0,
    "pair_passes": 1.0,
    "unaligned": 1.0,
}
"""Coefficients of a Triton or CUTLASS grouped GEMM, used where nothing was fitted."""
ALIGNED = 16.0
"""Elements by which a rank's expert width must divide, or the loads of its rows are not vectorised [-]."""
SMALLEST_TILE = 8.0
MOST_ROUNDED = 8
"""Tokens of one expert up to which the law of few pairs is summed: its largest draw is 5.3 times the mean [-]."""


@dataclass(frozen=True)
class MoeTime:
    """Terms of a fused MoE layer [s]; they broadcast against each other."""

    total_s: Array
    math_s: Array
    memory_s: Array
    launch_s: Array


@dataclass(frozen=True)
class Routing:
    """Load of the busiest rank: `active` experts hit [-] and `rows` (token, expert) pairs [-]."""

    active: Array
    rows: Array


def route(num_tokens: Any, topk: Any, n_experts: Any, *, ep: Any, distribution: str) -> Routing:
    """Experts hit and rows computed on the busiest of `ep` ranks.

    balanced: pairs spread one by one over the experts, active = min(E, T*k)/ep.
    skewed, uniform: active = E/ep * `simulator.ops.routing.reached`.
    power_law_A: expert counts follow P(x) ~ x^-A on [1, 0.8 T] ([0.01, 2] when T*k <= E), scaled to
    T*k and rounded, so experts below half a token are idle; what rounding lost goes to the most popular, one each
    (aiconfigurator's generator), so that one token always hits its k.
    """
    tokens, k, experts, ranks = real(num_tokens), real(topk), real(n_experts), real(ep)
    local, pairs = experts / ranks, tokens * k
    if distribution == "balanced":
        active = maximum(minimum(pairs, experts) / ranks, 1.0)
        return Routing(minimum(active, local), maximum(pairs / ranks, active))
    if distribution in (SKEWED, UNIFORM):
        active = maximum(local * routing.reached(tokens, k, experts, distribution), minimum(1.0, pairs))
        return Routing(active, maximum(pairs / ranks, active))
    if distribution.startswith("power_law_"):
        return _power_law(pairs, tokens, experts, ranks, float(distribution.removeprefix("power_law_")))
    raise InputError(f"unknown routing {distribution!r}; write skewed, uniform, balanced or power_law_<alpha>")


def _power_law(pairs: Any, tokens: Any, experts: Any, ranks: Any, alpha: float) -> Routing:
    """Busiest rank under a truncated power law: quantiles of the law, and its spread over ranks.

    With ``P_j`` the share of experts that round to j tokens and more, ``E P_1`` are hit and ``E sum_j P_j`` pairs are
    given away; the rest goes to the most popular, those that are hit first: ``max(E P_1, T k - E sum_j P_j)`` experts.
    """
    many = pairs > experts
    low = np.where(many, 1.0, 0.01)
    high = np.where(many, np.maximum(0.8 * tokens, 1.001), 2.0)
    b = 1.0 - alpha
    span = high**b - low**b

    def moment(p: float) -> np.ndarray:
        return b * (high ** (p + b) - low ** (p + b)) / ((p + b) * span)

    mean = moment(1.0)

    def beyond(count: float) -> np.ndarray:
        cut = np.clip(count * experts * mean / np.maximum(pairs, 1.0), low, high)
        return (high**b - cut**b) / span

    hit = beyond(0.5)
    given = experts * sum((beyond(j + 0.5) for j in range(1, MOST_ROUNDED)), hit)
    reached = np.maximum(experts * hit, np.where(many, 0.0, pairs - given))
    local = experts / ranks
    # Largest of `ranks` sums of `local` draws: mean + sd * sqrt(2 ln ranks).
    spread = np.sqrt(np.maximum(moment(2.0) / mean**2 - 1.0, 0.0) / local)
    load = 1.0 + spread * np.sqrt(2.0 * np.log(ranks))
    rows = np.minimum(pairs / ranks * load, tokens * np.minimum(local, pairs / tokens))
    each = reached / ranks
    # The rank with most pairs is not always that with most experts: half of the spread of the latter.
    more = 0.5 * np.sqrt(each * np.maximum(1.0 - each / local, 0.0) * 2.0 * np.log(ranks))
    active = np.clip(each + more, np.minimum(1.0, pairs), np.maximum(np.minimum(local, reached), 1.0))
    return Routing(active, np.maximum(rows, active))


def moe_time(
    num_tokens: Any,
    hidden: Any,
    inter: Any,
    topk: Any,
    n_experts: Any,
    *,
    tp: Any,
    ep: Any,
    weight_bytes_per_element: Any,
    gated: Any,
    hw: Hardware,
    coef: Mapping[str, float],
    surface: Surface | None = None,
    distribution: str = SKEWED,
    load: Routing | None = None,
    act_bytes: Any = 2.0,
    weight_read_bytes: Any = None,
    flop: Any = None,
) -> MoeTime:
    """Time of one fused MoE layer (routed experts only, no collective) on the busiest rank.

    t = (unaligned * hypot(F/(share*peak), W/(share*hbm)) + A + P + t0) * exp(surface)

    F counts 2*active*expert weights*max(rows per expert, tile_fill*tile): the kernels choose their
    row tile from the tokens of all ranks over the local experts, so experts split over ranks are
    padded. W reads each expert hit once, times hypot(1, narrow/width) for columns narrower than a
    tile; both take `unaligned` times as long where the width does not divide by 16. A are the
    activations of local rows, P the permute and reduce passes, which run over the (token, expert)
    pairs of all ranks.

    Parameters
    ----------
    num_tokens, hidden, inter, topk, n_experts : array_like
        Tokens of the step, model width, expert width before tp, experts per token, experts.
    tp, ep : array_like
        Ranks that split each expert's width, and ranks that split the experts.
    weight_bytes_per_element : array_like
        Stored bytes per weight, scales included [B].
    gated : array_like of bool
        Three matrices per expert (gate, up, down) instead of two.
    distribution, load : str, Routing
        Routing assumed (see `route`), or the load itself.
    weight_read_bytes, flop : array_like, optional
        Replace the dense counts (expert sparsity, compressed formats) [B], [flop].

    Returns
    -------
    MoeTime
        Terms [s]; `memory_s` holds W, A and P.
    """
    if load is None:
        load = route(num_tokens, topk, n_experts, ep=ep, distribution=distribution)
    tokens, model_width = real(num_tokens), real(hidden)
    matrices = where(gated, 3.0, 2.0)
    width = real(inter) / real(tp)
    local = real(n_experts) / real(ep)
    pairs = tokens * real(topk)
    per_expert = matrices * model_width * width
    weights = load.active * per_expert * weight_bytes_per_element
    if weight_read_bytes is not None:
        weights = weight_read_bytes
    useful = 2.0 * load.rows * per_expert if flop is None else flop
    depth = load.rows / load.active
    tile = clip(pairs / local, SMALLEST_TILE, max(coef["tile_rows"], SMALLEST_TILE))
    padding = maximum(1.0, coef["tile_fill"] * tile / depth)
    math = useful * padding / (coef["math_share"] * hw.math_flop_per_s)
    narrow = sqrt(1.0 + (coef["narrow"] / width) ** 2)
    read = weights * narrow / (coef["bw_share"] * hw.hbm_bytes_per_s)
    acts = act_bytes * load.rows * (2.0 * model_width + matrices * width) * coef["act_passes"]
    passes = 2.0 * pairs * model_width * coef["pair_passes"]
    passing = (acts + passes) / hw.hbm_bytes_per_s
    # Triton specialises its loads on sizes that divide by 16; fits of before 2026-12 know nothing of it.
    slower = where(width % ALIGNED == 0.0, 1.0, coef.get("unaligned", 1.0))
    math, read = math * slower, read * slower
    body = hypot(math, read) + passing + coef["t0_s"]
    launch: Array = coef["t0_s"]
    memory = read + passing
    if surface is not None:
        factor = exp(surface(tokens=tokens, experts=local, width=width))
        math, memory, launch, body = math * factor, memory * factor, launch * factor, body * factor
    return MoeTime(maximum(body, _floor(useful, weights, hw)), math, memory, launch)


def _floor(useful_flop: Any, weight_bytes: Any, hw: Hardware) -> Array:
    """Least time [s]: useful flop at the maximum clock, weights beyond L2 at full bandwidth."""
    return maximum(
        useful_flop / (hw.math_flop_per_s * hw.max_clock_ratio),
        maximum(weight_bytes - hw.l2_bytes, 0.0) / hw.hbm_bytes_per_s,
    )
