"""Points of one group as answers: their times, memory and quality, beside dense."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from simulator.base.errors import UnsupportedError
from simulator.base.interval import Interval
from simulator.device.fits import Basis
from simulator.inference import memory, paired
from simulator.inference.bound import Bound
from simulator.inference.evaluate import Points, evaluate
from simulator.inference.group import Group
from simulator.inference.status import STATUSES, TIMED, Status
from simulator.policies import Policies
from simulator.policies.software import runs_in
from simulator.results.answer import Answer, Rows, Words, absent
from simulator.results.loss_lookup import loss_in
from simulator.results.quality import quality_of
from simulator.scenario.scenario import Scenario

MEMORY = ("weights_bytes", "kv_bytes", "other_bytes", "total_bytes")


def rows(
    group: Group, batch: np.ndarray, prompt: np.ndarray, output: np.ndarray, dense: Points | None = None
) -> tuple[Rows, Points | None]:
    """Rows of one group, and its points (None where nothing can run).

    `dense` are the points of the same group without policies; None computes them where needed.
    """
    if group.problem is not None:
        return _nothing(group, batch, prompt, output), None
    points = evaluate(group, batch, prompt, output)
    if group.is_dense:
        dense = points
    elif dense is None:
        dense = evaluate(group.dense, batch, prompt, output)
    return _told(points, dense), points


def load_of(scenario: Scenario) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Batch, prompt and output of one scenario, shape (1,) [-]."""
    s = scenario
    return np.array([float(s.batch)]), np.array([float(s.prompt_tokens)]), np.array([float(s.output_tokens)])


def _labels(group: Group, n: int) -> dict[str, Any]:
    """What all rows of a group have in common."""
    quality, loss = quality_of(group), loss_in(group)
    texts = {
        "model": group.model.name,
        "device": group.device.name,
        "policy": group.policies.spelling,
        "kernel": group.policies.kernel,
        "speculate": str(group.speculation or ""),
        "engine": group.engine.name,
        "software": runs_in((p.name for p in group.policies.members), group.engine.title),
        "dtype": group.dtype,
        "kv_dtype": group.kv_dtype,
        "quality_basis": loss.basis if loss.known else "",
        "quality_source": loss.source,
    }
    numbers = {
        **{k: getattr(group, k) for k in ("tp", "pp", "ep", "dp_attention")},
        "capacity_bytes": group.device.capacity_bytes,
        "quality_perplexity_ratio": quality.perplexity_ratio,
        "quality_agreement": quality.agreement,
    }
    lost = loss.points.each(lambda end: np.full(n, end))
    of_each = {k: np.full(n, float(v)) for k, v in numbers.items()}
    return {k: Words.same(w, n) for k, w in texts.items()} | of_each | {"points_lost": lost}


def _told(points: Points, dense: Points) -> Rows:
    shape = points.ttft_s.mid.shape
    status = points.status.ravel()
    n = len(status)
    timed, ok = np.isin(status, TIMED), status == Status.OK

    def flat(value: Any, where: np.ndarray | None = None) -> np.ndarray:
        out = np.broadcast_to(np.asarray(value, float), shape).ravel()
        return out if where is None or where.all() else np.where(where, out, np.nan)

    def ends(value: Interval[np.ndarray], where: np.ndarray) -> Interval[np.ndarray]:
        return value.each(lambda end: flat(end, where))

    if points is dense:
        one = Interval.exact(np.ones(shape))
        first, whole = one, one
        each = Interval.exact(np.where(np.isfinite(points.tpot_s.mid), 1.0, np.nan))
        largest = Interval.exact(np.where(points.max_batch >= 1, 1.0, np.nan))
    else:
        first, each = paired.ttft(points, dense), paired.tpot(points, dense)
        whole = paired.throughput(points, dense)
        largest = paired.throughput_at_largest(points, dense)
    held: dict[str, Any] = {k: flat(getattr(points.footprint, k)) for k in MEMORY}
    return Answer(
        **_labels(points.group, n),
        batch=flat(points.batch),
        prompt_tokens=flat(points.prompt),
        output_tokens=flat(points.output),
        status=Words(status, STATUSES),
        reason=_reasons(points, status),
        ttft_s=ends(points.ttft_s, timed),
        tpot_s=ends(points.tpot_s, timed),
        e2e_s=ends(points.e2e_s, timed),
        tokens_per_s=ends(points.tokens_per_s, ok),
        basis=Words(np.broadcast_to(points.rank, shape).ravel(), list(map(str, Basis))),
        bound=Words(np.where(timed, points.bound.ravel(), -1), list(map(str, Bound))),
        mode=Words(np.where(timed, 0, -1), [points.decode.mode]),
        max_batch=flat(points.max_batch),
        dense_max_batch=flat(dense.max_batch),
        ttft_speedup=ends(first, timed),
        tpot_speedup=ends(each, timed),
        speedup=ends(whole, timed),
        speedup_at_max_batch=ends(largest, timed),
        energy_j_per_token=flat(points.energy_j_per_token, ok),
        usd_per_mtoken=flat(points.usd_per_mtoken, ok),
        **held,
    )


def _reasons(points: Points, status: np.ndarray) -> Words:
    codes = np.full(len(status), -1, np.int32)
    words: list[str] = []
    trace = points.group.trace
    if trace is not None and points.group.transferred:
        words.append(f"curves of {trace.manifest.model}, layers mapped by relative depth (--trace-transfer)")
        codes[status == Status.OK] = 0
    long = status == Status.EXCEEDS_CONTEXT
    if long.any():
        words.append(points.group.too_long)
        codes[long] = len(words) - 1
    short = status == Status.DOES_NOT_FIT
    if short.any():
        gib = np.ceil(np.broadcast_to(points.short_bytes, points.status.shape).ravel()[short] / 2**29) / 2
        largest = points.max_batch.ravel()[short]
        beside = np.broadcast_to(points.short_off_bytes > 0.0, points.status.shape).ravel()[short]
        unique, back = np.unique(np.stack([gib, largest, beside]), axis=1, return_inverse=True)
        start = len(words)
        gpus = "more GPUs (tp), " if points.group.device.links else ""
        for g, b, off in unique.T:
            place = f" of {points.group.lowering.home} memory" if off else ""
            works = (
                f"batch {int(b)} fits"
                if b >= 1
                else f"not even batch 1 fits: try {gpus}a shorter prompt or a smaller dtype"
            )
            words.append(f"short by {g:g} GiB{place} per GPU; {works}")
        codes[short] = start + back.ravel()
    return Words(codes, words)


def _nothing(group: Group, batch: np.ndarray, prompt: np.ndarray, output: np.ndarray) -> Rows:
    """Rows of a group that cannot run: memory where the cut allows it, no times."""
    assert group.problem is not None
    status, reason = group.problem
    shape = np.broadcast_shapes(batch.shape, prompt.shape, output.shape)
    n = int(np.prod(shape))
    held: dict[str, Any] = {}
    dense = replace(group.lowering, policies=Policies(), trace=None, as_modules=False, drafting=None)
    if group.tp % group.dp_attention == 0 and dense.why_not() is None:
        try:
            print_ = memory.footprint(
                dense, batch, prompt, output, pp=group.pp, block_tokens=group.block_tokens, start=group.start
            )
            held = {k: np.broadcast_to(getattr(print_, k), shape).ravel() for k in MEMORY}
        except UnsupportedError:
            pass
    return replace(
        absent(n),
        **_labels(group, n),
        batch=np.broadcast_to(batch, shape).ravel(),
        prompt_tokens=np.broadcast_to(prompt, shape).ravel(),
        output_tokens=np.broadcast_to(output, shape).ravel(),
        status=Words(np.full(n, status), STATUSES),
        reason=Words.same(reason, n),
        **held,
    )
