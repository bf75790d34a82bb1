"""Measured setups through the model: predictions row by row, and the kernel sums an engine is fitted on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from simulator.base.arrays import Array
from simulator.base.dtypes import get_format
from simulator.fitting.e2e_rows import SETUP
from simulator.inference.closed_loop import Cycle, Run, closed_loop, cycle
from simulator.inference.evaluate import evaluate
from simulator.inference.formats import formats_on
from simulator.inference.group import Group
from simulator.inference.kvpool import starts
from simulator.inference.step import StepTime, step_time
from simulator.model.formats import choose
from simulator.ops.ops import Collective
from simulator.ops.step import Step, decode_step, prefill_step
from simulator.ops.traffic import Operand
from simulator.policies import Policies
from simulator.roofline.engine import Engine
from simulator.scenario.catalogue import CATALOGUE

if TYPE_CHECKING:
    import pandas as pd

GROUP = tuple(name for name in SETUP if name not in ("batch", "prompt", "output"))
"""Columns that one `Group` holds fixed."""
STATIC_UTILISATION = 0.98
"""Share of memory a fixed batch may fill; scripts of fixed batches leave nothing aside [-].

With it too a server whose own default holds no KV at all: it ran, so it was started with a larger share than stated.
"""
TOO_FAST = 0.9
"""Below this share of the bare roofline a row cannot be what it says (early stops, other precision) [-]."""
FITS, NO_FIT = "", "does not fit in memory"
NO_LINK, IMPOSSIBLE = "tensor parallelism over several nodes", "faster than the bare roofline"


def group_of(row: Mapping[str, str], engine: Engine) -> Group:
    """Group of a prepared row."""
    device = CATALOGUE.device(row["device"])
    model, fmt = formats_on(CATALOGUE.model(row["model"]), choose(row["dtype"]), device)
    if fmt.name in ("bf16", "fp16") and not device.has(fmt.math):
        fmt = get_format("fp16" if fmt.name == "bf16" else "bf16")
    kv = row["kv_dtype"]
    if kv == "auto":
        kv = model.kv_dtype or engine.kv_dtype(fmt)
    tp, pp, ep, dp = (int(row[name]) for name in ("tp", "pp", "ep", "dp"))
    group = Group(model, device, Policies(), engine, fmt, kv, tp, pp, ep, ignore_context=True, dp_attention=dp)
    if row["loop"] == "static" or not starts(group):
        return replace(group, utilisation=STATIC_UTILISATION)
    return group


def groups(rows: pd.DataFrame, engines: Mapping[str, Engine]) -> Iterator[tuple[Group, pd.DataFrame, str]]:
    """(group, its rows, why they cannot be judged or '')."""
    for key, part in rows.groupby(list(GROUP), sort=True):
        row = dict(zip(map(str, GROUP), map(str, cast("tuple[object, ...]", key)), strict=True))
        engine = engines[row["engine"]]
        group = group_of(row, engine.as_of(row["release"]) if row["release"] else engine)
        links = group.device.links
        if group.tp > 1 and links and group.tp > max(link.max_ranks for link in links):
            yield group, part, NO_LINK
        else:
            yield group, part, group.problem[1] if group.problem else FITS


def predict(rows: pd.DataFrame, engines: Mapping[str, Engine]) -> pd.DataFrame:
    """`rows` with ``mid_s``, ``lo_s``, ``hi_s``, ``naive_s``, ``basis`` and ``reason`` ('' = judged)."""
    import pandas as pd

    parts = []
    for group, part, reason in groups(rows, engines):
        if reason:
            parts.append(part.assign(reason=reason))
            continue
        static = part["loop"].iloc[0] == "static"
        parts.append(_static(group, part) if static else _closed(group, part))
    out = pd.concat(parts).sort_index()
    if (out["reason"] != FITS).all():
        return out
    faster = (out["time_s"] < TOO_FAST * out["naive_s"]) & (out["reason"] == FITS)
    return out.assign(reason=np.where(faster, IMPOSSIBLE, out["reason"]))


def _static(group: Group, part: pd.DataFrame) -> pd.DataFrame:
    b, p, o = _points(part)
    points = evaluate(group, b, p, o)
    more = np.maximum(o - 1.0, 0.0)
    metric = part["metric"].to_numpy()
    columns = {}
    for name, ttft, tpot in (
        *zip(("mid_s", "lo_s", "hi_s"), points.ttft_s, points.tpot_s, strict=True),
        ("naive_s", *_naive(group, b, p, o)),
    ):
        columns[name] = _pick(metric, ttft, np.nan_to_num(tpot), more)
    reason = np.where(np.broadcast_to(points.fits, b.shape), FITS, NO_FIT)
    return part.assign(**columns, basis=str(points.basis), reason=reason)


def _closed(group: Group, part: pd.DataFrame) -> pd.DataFrame:
    c, p, o = _points(part)
    loop = closed_loop(group, c, p, o, run_of(part))
    metric = part["metric"].to_numpy()
    more = np.maximum(o - 1.0, 0.0)
    naive = _naive(group, c, p, o, prefills=np.ones_like(c))
    basis = step_time(group, decode_step(1.0, 2.0)).basis
    return part.assign(
        mid_s=_pick(metric, loop.ttft_s, loop.tpot_s, more),
        lo_s=_pick(metric, loop.ttft_lo_s, loop.tpot_lo_s, more),
        hi_s=_pick(metric, loop.ttft_hi_s, loop.tpot_hi_s, more),
        naive_s=_pick(metric, *naive, more),
        basis=str(basis),
        reason=np.where(loop.running < 1.0 + 1e-9, np.where(c > 1.0, NO_FIT, FITS), FITS),
    )


def run_of(part: pd.DataFrame) -> Run:
    """What the means of rows of one group are over."""
    shortest, rounds, wait_steps = (float(part[name].iloc[0]) for name in ("shortest", "rounds", "wait_steps"))
    return Run(alike=shortest == 1.0, rounds=rounds, wait_steps=wait_steps)


def _points(part: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return part["batch"].to_numpy(float), part["prompt"].to_numpy(float), part["output"].to_numpy(float)


def _pick(metric: np.ndarray, ttft: Array, tpot: Array, more: np.ndarray) -> np.ndarray:
    return np.where(metric == "ttft", ttft, np.where(metric == "tpot", tpot, ttft + more * tpot))


def _naive(
    group: Group, b: np.ndarray, p: np.ndarray, o: np.ndarray, prefills: np.ndarray | None = None
) -> tuple[Array, Array]:
    """Bare roofline of a prefill and of a mean decode step: ``max(flop/peak, bytes/bandwidth)`` [s]."""
    rows = b if prefills is None else prefills
    return bare_s(group, prefill_step(rows, p)), bare_s(group, decode_step(b, p + o / 2.0))


def bare_s(group: Group, step: Step) -> Array:
    """Bare roofline of a step, ``max(flop/peak, bytes/bandwidth)`` [s]."""
    flop_s: Array = 0.0
    moved: Array = 0.0
    for op in group.lowering.ops(step):
        demand = op.traffic().scaled(op.count)
        for dtype, flop in demand.flop.items():
            # Vector work is not on the tensor peak; the bare roofline leaves it out.
            if str(dtype) != "fp32":
                flop_s = flop_s + flop / group.device.peak_flop_per_s(dtype)
        for operand in (Operand.WEIGHT, Operand.KV):
            if operand in demand.access:
                moved = moved + demand.access[operand].total_bytes
    return np.maximum(flop_s, moved / group.device.hbm_bytes_per_s)


@dataclass(frozen=True)
class Sums:
    """What one step is made of before an engine adds to it; arrays over rows.

    Attributes
    ----------
    gpu_s : ndarray
        Sum of the kernels [s].
    launches, collectives : ndarray
        Kernels launched, and how many of them are all-reduces or gathers [-].
    messages : tuple of (bytes, count)
        Size of each kind of collective and how often it is called.
    sequences, prompt_tokens : ndarray
        Sequences sampled and prompt tokens computed [-].
    """

    gpu_s: np.ndarray
    launches: np.ndarray
    messages: tuple[tuple[np.ndarray, np.ndarray], ...]
    sequences: np.ndarray
    prompt_tokens: np.ndarray


def bare(engine: Engine) -> Engine:
    """The engine's kernels without its host: launches cost one second each, so `host_s` counts them."""
    return replace(
        engine,
        launch_eager_s=1.0,
        launch_graph_s=1.0,
        schedule_s=0.0,
        row_s=0.0,
        token_s=0.0,
        rank_s=0.0,
        decode_stretch=1.0,
        prefill_stretch=1.0,
        burst_s_per_byte=0.0,
        host={},
    )


def sums(time: StepTime, step: Step, shape: tuple[int, ...]) -> Sums:
    """Sums of a step timed with a `bare` engine; a leading axis of context nodes is averaged."""

    def flat(x: Array) -> np.ndarray:
        x = np.asarray(x, float)
        return np.broadcast_to(x.mean(axis=0) if x.ndim > len(shape) else x, shape)

    found = [t.op for t in time.ops if isinstance(t.op, Collective)]
    return Sums(
        flat(time.gpu_s),
        flat(time.host_s),
        tuple((flat(op.message_bytes), flat(op.count)) for op in found),
        flat(step.sequences),
        flat(step.prefill_rows * step.prefill_tokens if step.prefills else 0.0),
    )


def static_sums(group: Group, part: pd.DataFrame) -> tuple[Sums, Sums]:
    """(prefill, mean decode step) of a fixed batch, with a `bare` engine in `group`."""
    b, p, o = _points(part)
    first = prefill_step(b, p)
    spread = np.sqrt(np.maximum((o - 1.0) ** 2 - 1.0, 0.0) / 12.0)
    nodes = np.stack([p + o / 2.0 - spread, p + o / 2.0 + spread])
    later = decode_step(b, np.maximum(nodes, p + 1.0))
    kept = group.lowering.ran
    return (
        sums(step_time(group, first), kept(first), b.shape),
        sums(step_time(group, later), kept(decode_step(b, p)), b.shape),
    )


def closed_sums(group: Group, part: pd.DataFrame) -> tuple[Sums, Sums, Cycle]:
    """(mixed, decode) steps of a closed loop, with a `bare` engine in `group`."""
    c, p, o = _points(part)
    found = cycle(group, c, p, o, run_of(part))
    at_once = found.running / found.turns
    mixed = Step(decode_rows=found.running, prefill_rows=at_once, prefill_tokens=p, prefills=True)
    kept = group.lowering.ran
    return (
        sums(found.mixed, kept(mixed), c.shape),
        sums(found.decode, kept(decode_step(found.running, p)), c.shape),
        found,
    )
