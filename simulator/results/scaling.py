"""Test-time scaling: what long chains and many trials cost, and what a solved problem costs.

The view of Kinetics [1]_: a generation's demand is its flop plus its bytes at the device's arithmetic intensity, so
that long contexts, which small models read again and again, count. With intensity 0 it is the isoFLOPS view of the
Sparse Frontier [2]_: models and policies compared at equal flop.

References
----------
.. [1] Sadhukhan et al., "Kinetics: Rethinking Test-Time Scaling Laws", arXiv:2506.05333.
.. [2] Nawrot et al., "The Sparse Frontier", arXiv:2504.17768.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from simulator.base.arrays import Array
from simulator.base.dtypes import DType
from simulator.base.errors import InputError, NothingFeasibleError
from simulator.device.catalogue import Device
from simulator.inference.lowering import Lowering
from simulator.ops.step import Step, decode_step, prefill_step
from simulator.ops.traffic import Operand

if TYPE_CHECKING:
    from simulator.scenario.scenario import Scenario


@dataclass(frozen=True)
class Demand:
    """Work of one problem; arrays of the broadcast shape.

    Attributes
    ----------
    flop : Array
        Multiply-adds counted twice [flop].
    read_bytes : Array
        KV read, and weights where they are counted [B].
    """

    flop: Array
    read_bytes: Array

    def eflop(self, flop_per_byte: float) -> Array:
        """``flop + I bytes`` [flop]: the flop a device of intensity I could have done meanwhile."""
        return self.flop + flop_per_byte * self.read_bytes


def intensity(device: Device, dtype: DType) -> float:
    """Peak flop per byte of main memory [flop/B]."""
    return device.peak_flop_per_s(dtype) / device.hbm_bytes_per_s


def demand(lowering: Lowering, prompt: Array, output: Array, trials: Array = 1.0, *, weights: bool = False) -> Demand:
    """Flop and bytes of `trials` chains of `output` tokens after one prompt.

    The prompt is computed once. A decode step's demand is summed over contexts prompt + 1 ... prompt + output by
    two points that have the mean and the variance of that range, exact for demands that are cubic in the context.

    Parameters
    ----------
    prompt, output, trials : Array
        Prompt tokens, generated tokens per trial, trials per problem [-].
    weights : bool
        Count weight reads too; off, as in Kinetics, where batches are large enough to share them.
    """
    p, g = np.asarray(prompt, float), np.asarray(output, float)
    centre = p + (g + 1.0) / 2.0
    spread = np.sqrt(np.maximum(g * g - 1.0, 0.0) / 12.0)
    first = _work(lowering, prefill_step(1.0, p), weights)
    nodes = [_work(lowering, decode_step(1.0, at, p), weights) for at in (centre - spread, centre + spread)]
    steps = g * trials
    return Demand(
        first[0] + steps * 0.5 * (nodes[0][0] + nodes[1][0]), first[1] + steps * 0.5 * (nodes[0][1] + nodes[1][1])
    )


def _work(lowering: Lowering, step: Step, weights: bool) -> tuple[Array, Array]:
    operands = (Operand.KV, Operand.WEIGHT) if weights else (Operand.KV,)
    flop: Array = 0.0
    read: Array = 0.0
    for op in lowering.ops(step):
        t = op.traffic()
        flop = flop + t.total_flop * op.count
        read = read + sum(t.read_bytes(o) for o in operands) * op.count
    return flop, read


def solved_share(solve_rate: Array, trials: Array) -> Array:
    """Problems solved by at least one of `trials` independent tries, ``1 - (1 - p)^n`` [-]."""
    with np.errstate(divide="ignore"):
        return -np.expm1(np.asarray(trials, float) * np.log1p(-np.asarray(solve_rate, float)))


def cost_per_solved(cost: Array, solve_rate: Array, trials: Array) -> Array:
    """Cost of one solved problem when every problem gets `trials` tries [unit of `cost`].

    ``cost(trials) / solved_share``; inf where nothing is ever solved.

    Parameters
    ----------
    cost : Array
        Of all trials of one problem: eFLOPs, seconds, USD.
    solve_rate : Array
        Share of single tries that succeed, from a published or measured table [-].
    trials : Array
        Tries per problem [-].
    """
    share = solved_share(solve_rate, trials)
    return np.where(share > 0.0, cost / np.where(share > 0.0, share, 1.0), np.inf)


@dataclass(frozen=True)
class Trials:
    """One problem tried `trials` times on a device: the tries share one prompt and decode as one batch.

    Attributes
    ----------
    flop, kv_read_bytes, eflop : float
        `Demand` of the problem and its sum at the device's intensity [flop], [B], [flop].
    time_s, gpu_s, usd : float
        Until the last try ends, times the GPUs, and their list price [s], [s], [USD].
    solved : float or None
        Share of problems solved by at least one try [-].
    eflop_per_solved, gpu_s_per_solved, usd_per_solved : float or None
        Cost over `solved`.
    """

    trials: int
    flop: float
    kv_read_bytes: float
    eflop: float
    time_s: float
    gpu_s: float
    usd: float
    solved: float | None = None
    eflop_per_solved: float | None = None
    gpu_s_per_solved: float | None = None
    usd_per_solved: float | None = None


def best_of(scenario: Scenario, trials: tuple[int, ...], solve_rate: float | None = None) -> list[Trials]:
    """Cost of best-of-N, or of one long chain (N = 1), for each number of `trials`.

    Time is TTFT of one prompt and ``output - 1`` decode steps of a batch of N, in as many waves as memory asks for.
    `scenario.batch` is not used.

    Parameters
    ----------
    solve_rate : float, optional
        Share of single tries that succeed, from a published or measured table [-].

    Raises
    ------
    InputError
        A number of trials below 1, or a rate outside 0 to 1.
    NothingFeasibleError
        The scenario cannot run.
    """
    from simulator.inference.evaluate import evaluate
    from simulator.inference.group import runnable

    if any(n < 1 for n in trials):
        raise InputError(f"{min(trials)} trials; write 1 or more", where="--trials")
    if solve_rate is not None and not 0.0 < solve_rate <= 1.0:
        raise InputError(f"{solve_rate:g} is not a share above 0, up to 1", where="--solve-rate")
    group = runnable(scenario)
    lengths = np.array([scenario.prompt_tokens], float), np.array([scenario.output_tokens], float)
    per_byte = intensity(group.device, group.lowering.fmt.math)
    usd_per_s = group.device.price_usd_per_h.value / 3600.0
    one = evaluate(group, np.array([1.0]), *lengths)
    most = int(np.ravel(one.max_batch)[0])
    if most < 1:
        raise NothingFeasibleError("not one chain fits into memory; use more GPUs or fewer tokens")
    steps = max(scenario.output_tokens - 1, 0)
    out = []
    for n in trials:
        work = demand(group.lowering, *lengths, float(n))
        flop, read = (float(np.ravel(x)[0]) * scenario.tp for x in (work.flop, work.read_bytes))
        waves = -(-n // most)
        points = evaluate(group, np.array([np.ceil(n / waves)]), *lengths)
        tpot = float(np.nan_to_num(np.ravel(points.tpot_s.mid)[0]))
        time = float(np.ravel(one.ttft_s.mid)[0]) + waves * steps * tpot
        gpu = time * group.gpus
        row = Trials(n, flop, read, flop + per_byte * read, time, gpu, gpu * usd_per_s)
        if solve_rate is not None:
            costs = {
                f"{k}_per_solved": float(cost_per_solved(getattr(row, k), solve_rate, n))
                for k in ("eflop", "gpu_s", "usd")
            }
            row = replace(row, solved=float(solved_share(solve_rate, n)), **costs)
        out.append(row)
    return out
