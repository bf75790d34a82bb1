"""One group of points - everything fixed but batch, prompt and output - to times, memory and intervals.

Arrays broadcast: a product grid passes shapes (B,1,1), (1,P,1), (1,1,O); scattered points pass flat arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from simulator.base.arrays import Array
from simulator.base.interval import Interval
from simulator.device.fits import Basis
from simulator.inference import memory
from simulator.inference.bound import Bound
from simulator.inference.group import Group
from simulator.inference.status import Status
from simulator.inference.step import StepTime, repeated, step_time
from simulator.ops.step import decode_step, prefill_step

MAX_RUNNING_BATCH = 4096
"""Largest batch `throughput_speedup_at_max_batch` is evaluated at [sequences]."""
IDLE_SHARE, BUSY_SHARE = 0.35, 0.65
"""Board power while serving: ``P = limit * (0.35 + 0.65 * busiest resource)``; an assumption, not a fit."""


@dataclass(frozen=True, eq=False)
class Points:
    """Answers for the points of one group; every array has the broadcast shape."""

    group: Group
    batch: Array
    prompt: Array
    output: Array
    prefill: StepTime
    decode: StepTime
    ttft_s: Interval[np.ndarray]
    tpot_s: Interval[np.ndarray]
    footprint: memory.Footprint
    max_batch: np.ndarray

    @property
    def basis(self) -> Basis:
        """Worst basis of the points."""
        return Basis.worst(self.rank)

    @cached_property
    def rank(self) -> Array:
        """`Basis.rank` of the worse of prefill and decode at each point [-]."""
        beyond = self.group.ignore_context or self.group.transferred
        least = Basis.EXTRAPOLATED.rank if beyond else Basis.CALIBRATED.rank
        return np.maximum(np.maximum(self.prefill.rank, self.decode.rank), least)

    @cached_property
    def e2e_s(self) -> Interval[np.ndarray]:
        """``TTFT + (output - 1) TPOT`` [s]."""
        return end_to_end(self.ttft_s, self.tpot_s, self.output)

    @cached_property
    def tokens_per_s(self) -> Interval[np.ndarray]:
        """Output tokens of the batch per second [1/s]."""
        return rate(self.batch * self.output, self.e2e_s)

    @cached_property
    def largest(self) -> Largest:
        """The points at the largest batch that fits, at most `MAX_RUNNING_BATCH`."""
        p, o = np.broadcast_arrays(self.prompt, self.output)
        largest = self.max_batch
        if p.shape != largest.shape:
            # The batch axis does not change the largest batch: one evaluation serves all of it.
            largest = largest[tuple(slice(0, 1) if a == 1 else slice(None) for a in p.shape)]
        pairs = np.stack([largest.ravel(), p.ravel(), o.ravel()])
        unique, back = np.unique(pairs, axis=1, return_inverse=True)
        at = evaluate(self.group, np.clip(unique[0], 1.0, MAX_RUNNING_BATCH), unique[1], unique[2])
        return Largest(at, unique[0] >= 1.0, back.ravel(), p.shape)

    @cached_property
    def bound(self) -> np.ndarray:
        """Number of the `Bound` of what takes most of the end-to-end time [-]."""
        steps = np.asarray(self.output, float) - 1.0
        scale = self.passes
        most: np.ndarray | None = None
        code = np.zeros(self.ttft_s.mid.shape, np.int8)
        for i, bound in enumerate(Bound):
            p, d = self.prefill.shares_s[bound], self.decode.shares_s[bound]
            share = np.asarray(p * scale + steps * mean_nodes(d, self._ndim))
            if most is None:
                most = np.broadcast_to(share, code.shape).copy()
                continue
            larger = share > most
            if larger.any():
                code[np.broadcast_to(larger, code.shape)] = i
                np.maximum(most, share, out=most)
        return code

    @property
    def _ndim(self) -> int:
        return self.ttft_s.mid.ndim

    @property
    def passes(self) -> Array:
        """Whole-pipeline passes of one prefill [-]."""
        return self.group.passes(self.batch, self.prompt + self.group.image_tokens)

    @cached_property
    def power_w(self) -> np.ndarray:
        """Board power of all GPUs, an estimate from the busiest resource [W]."""
        prefill, decode = self.prefill.busy, mean_nodes(self.decode.busy, self._ndim)
        share = self.ttft_s.mid / self.e2e_s.mid
        busy = np.minimum(decode + share * (prefill - decode), 1.0)
        watts = self.group.device.power_w * self.group.gpus
        return (watts * BUSY_SHARE) * busy + watts * IDLE_SHARE

    @property
    def energy_j_per_token(self) -> np.ndarray:
        """Estimated energy per output token [J]."""
        return self.power_w / self.tokens_per_s.mid

    @property
    def usd_per_mtoken(self) -> np.ndarray:
        """Rent of the GPUs per million output tokens, from the profile's list price [USD]."""
        per_s = self.group.device.price_usd_per_h.value * self.group.gpus / 3600.0
        return per_s / self.tokens_per_s.mid * 1e6

    @property
    def fits(self) -> np.ndarray:
        """Whether the batch fits the engine's share of memory."""
        return np.asarray(self.short_bytes <= 0.0)

    @property
    def short_bytes(self) -> np.ndarray:
        """Bytes missing on the fullest GPU or beside it, whichever lacks more; negative where it fits [B]."""
        return np.maximum(self.footprint.total_bytes - self._limit_bytes, self.short_off_bytes)

    @property
    def _limit_bytes(self) -> Array:
        """What weights, KV and all else may take together on one GPU [B]."""
        group, start = self.group, self.group.start
        if start is None:
            return memory.budget_bytes(group.device, group.share)
        pool = memory.pool_bytes(group.lowering, group.device, start, group.pp).mid
        reserved = memory.peak_bytes(group.lowering, start) + self.footprint.runtime_bytes
        return pool + self.footprint.weights_bytes + reserved

    @property
    def short_off_bytes(self) -> Array:
        """Bytes missing on the tier a policy offloads to; -inf where nothing is offloaded [B]."""
        off = self.footprint.off_bytes
        if np.ndim(off) == 0 and off == 0.0:
            return -np.inf
        return off - memory.home_bytes(self.group.lowering, self.group.device)

    @property
    def status(self) -> np.ndarray:
        """`Status` of each point."""
        longest = np.asarray(self.prompt, float) + self.group.image_tokens + self.output
        over = longest > self.group.model.max_context
        code = np.where(self.fits, Status.OK, Status.DOES_NOT_FIT)
        if not self.group.ignore_context:
            code = np.where(over, Status.EXCEEDS_CONTEXT, code)
        return np.broadcast_to(code, self.ttft_s.mid.shape)


@dataclass(frozen=True, eq=False)
class Largest:
    """Points at their largest batch, each set of sizes once.

    Attributes
    ----------
    points : Points
        Flat, at a batch of 1 where none fits.
    fits : ndarray of bool
        Where one fits.
    back : ndarray of int
        Which of `points` each one of a grid of `shape` is.
    """

    points: Points
    fits: np.ndarray
    back: np.ndarray
    shape: tuple[int, ...]

    def spread(self, figure: Array) -> np.ndarray:
        """`figure` of `points` for every point of the grid; NaN where no batch fits."""
        return np.where(self.fits, figure, np.nan)[self.back].reshape(self.shape)


def end_to_end(ttft_s: Interval[Any], tpot_s: Interval[Any], output: Array) -> Interval[Any]:
    """``TTFT + (output - 1) TPOT``, both at the same end of their intervals; of one token only TTFT [s]."""
    steps = np.asarray(output, float) - 1.0
    several = steps > 0
    if np.all(several):
        return Interval(*(first + steps * each for first, each in zip(ttft_s, tpot_s, strict=True)))
    return Interval(*(first + np.where(several, steps * each, 0.0) for first, each in zip(ttft_s, tpot_s, strict=True)))


def rate(tokens: Array, time_s: Interval[Any]) -> Interval[Any]:
    """Tokens per second [1/s]."""
    return Interval(tokens / time_s.mid, tokens / time_s.hi, tokens / time_s.lo)


FEWER = 4
"""Points per batch from which a batch is timed once, where they form no grid [-]."""


def evaluate(group: Group, batch: Array, prompt: Array, output: Array) -> Points:
    """TTFT, TPOT, memory and intervals of a static batch.

    TTFT is one prefill of the whole batch. TPOT is the mean decode step over contexts prompt+1 ...
    prompt+output-1, from two points that have the mean and the variance of that range, which is exact for
    a step time that is cubic in the context; a step that verifies drafted tokens is shared by those it yields. With
    `pp` stages the batch is cut in ``min(batch, pp)`` micro-batches: decode takes a whole-pipeline pass of
    ``batch/pp`` rows per token, prefill ``(micro + pp - 1) / pp`` passes; `Group.passes` says what a layer split does.

    Raises
    ------
    UnsupportedError
        `Group.problem` says why beforehand.
    """
    # One number of axes for all three, so that the context nodes can lead.
    ndim = max(np.ndim(batch), np.ndim(prompt), np.ndim(output))
    b, p, o = (
        np.reshape(np.asarray(x, float), (1,) * (ndim - np.ndim(x)) + np.shape(x)) for x in (batch, prompt, output)
    )
    asked, p = p, p + group.image_tokens
    rows = b / group.parts(b)
    images = _plain(rows * group.images) if group.images else 0.0
    prefill = step_time(group, prefill_step(_plain(rows), _plain(p), images=images))
    passes = group.passes(b, p)
    steps = o - 1.0
    centre = p + o / 2.0
    spread = np.sqrt(np.maximum(steps * steps - 1.0, 0.0) / 12.0)
    nodes = np.stack(np.broadcast_arrays(centre - spread, centre + spread))
    step = decode_step(_plain(rows), np.maximum(nodes, p + 1.0), _plain(p))
    few, back = np.unique(rows, return_inverse=True) if rows.ndim == 1 else (rows, None)
    if back is not None and FEWER * few.size <= rows.size:
        decode = repeated(group, step, decode_step(few, 1.0), back)
    else:
        decode = step_time(group, step)
    if group.speculation is not None:
        decode = decode.scaled(1.0 / group.tokens_per_step)
    shape = np.broadcast_shapes(b.shape, p.shape, o.shape)
    one_token = np.broadcast_to(steps < 1.0, shape)
    several = not one_token.any()

    def tpot(step: Array) -> np.ndarray:
        mean = np.broadcast_to(mean_nodes(step, len(shape)), shape)
        return mean if several else np.where(one_token, np.nan, mean)

    first, each = (Interval(step.total_s, step.lo_s, step.hi_s) for step in (prefill, decode))
    return Points(
        group,
        b,
        asked,
        o,
        prefill,
        decode,
        ttft_s=first.each(lambda end: np.broadcast_to(end * passes, shape)),
        tpot_s=each.each(tpot),
        footprint=memory.footprint(
            group.lowering, b, p, o, pp=group.pp, block_tokens=group.block_tokens, start=group.start
        ),
        max_batch=np.broadcast_to(largest_batch(group, p, o), shape),
    )


def largest_batch(group: Group, prompt: Array, output: Array) -> np.ndarray:
    """Largest batch of `group` at these lengths, at most the sequences its engine was told to run at once [-]."""
    best = memory.max_batch(
        group.lowering,
        group.device,
        prompt,
        output,
        pp=group.pp,
        utilisation=group.share,
        block_tokens=group.block_tokens,
        start=group.start,
    )
    return best if group.max_num_seqs is None else np.minimum(best, float(group.max_num_seqs))


def _plain(x: np.ndarray) -> Array:
    """An axis of one value as the number, which every formula takes faster."""
    return float(x.item()) if x.size == 1 else x


def mean_nodes(x: Array, ndim: int) -> Array:
    """Mean over the two context nodes, the leading axis of what depends on the context."""
    if np.ndim(x) <= ndim:
        return x
    array = np.asarray(x)
    return 0.5 * (array[0] + array[1])
