"""Few figures of an engine from whole-model measurements, the kernels being fixed beforehand.

The kernels of every setup are summed once (`Sums`); then a robust least-squares on ln(predicted/measured) finds the
host's and the engine's figures, each with a prior, so that a figure the rows say nothing about stays where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.device.releases import version
from simulator.fitting.e2e_steps import FITS, Sums, bare, closed_sums, groups, predict, static_sums
from simulator.fitting.engine_file import MEASURED
from simulator.inference.closed_loop import Cycle, solve
from simulator.inference.group import Group
from simulator.roofline.engine import Engine
from simulator.scenario.catalogue import CATALOGUE

if TYPE_CHECKING:
    import pandas as pd

Z90 = 1.645
_GRAPHS = ("decode_stretch", "prefill_stretch", "schedule_s", "row_s", "rank_s", "hidden_s")
_LOOP = ("queue_share", "queue_alike", "request_s", "frontend_s")
FREE: Mapping[str, tuple[str, ...]] = {
    "vllm": (*_GRAPHS, *_LOOP),
    "vllm-2024": _GRAPHS[:-1],
    "vllm-2023": ("prefill_stretch", "launch_eager_s", "schedule_s", "row_s", "burst_s_per_byte", "host.ampere"),
    "sglang": (*_GRAPHS, *_LOOP),
    # All its rows have lengths alike.
    "sglang-0.5.1": (*_GRAPHS, "queue_alike", "request_s", "frontend_s"),
    # Its schedule and its waiting ranks cannot be told from what its fused kernels hide.
    "trtllm": ("decode_stretch", "prefill_stretch", "row_s", "hidden_s", *_LOOP),
    "trtllm-2024": _GRAPHS[:-1],
    "fastertransformer": ("decode_stretch", "prefill_stretch", "schedule_s", "rank_s"),
    "turbomind": ("decode_stretch", "prefill_stretch", "schedule_s", "row_s"),
    "llama.cpp": ("decode_stretch", "prefill_stretch", "schedule_s", "row_s", "rank_s"),
}
"""Figures of each engine that its rows determine; the others are taken from `engines.toml` as they are."""
_ASSUMED: Mapping[str, float] = {
    "decode_stretch": 1,
    "prefill_stretch": 1,
    "launch_eager_s": 6e-06,
    "schedule_s": 0.0004,
    "row_s": 4e-06,
    "rank_s": 2e-06,
    "hidden_s": 5e-07,
    "queue_share": 0.3,
    "queue_alike": 1.5,
    "request_s": 0.01,
    "frontend_s": 1e-06,
}
_OWN: Mapping[str, Mapping[str, float]] = {
    "vllm-2024": {"schedule_s": 0.002, "row_s": 3e-05},
    "vllm-2023": {
        "launch_eager_s": 2.4e-05,
        "schedule_s": 0.008,
        "row_s": 0.0002,
        "burst_s_per_byte": 5e-12,
        "host.ampere": 1.4,
    },
    # Whole waves of prompts go first: half of the others.
    "sglang-0.5.1": {"queue_alike": 0.5},
    "fastertransformer": {"schedule_s": 0.0001, "rank_s": 5e-06},
    "turbomind": {"schedule_s": 0.0001, "row_s": 5e-06},
    "llama.cpp": {"prefill_stretch": 2, "schedule_s": 0.0001, "row_s": 5e-06, "rank_s": 0.0003},
}
START: Mapping[str, Mapping[str, float]] = {
    engine: {name: (_OWN.get(engine, {}).get(name) or _ASSUMED[name]) for name in names}
    for engine, names in FREE.items()
}
"""Assumed value of every free figure: where a fit starts and what its prior is centred on.

Kept apart from `engines.toml`, whose figures have seen all rows: a hold-out must not start from them.
"""
WIDTH: Mapping[str, float] = {"decode_stretch": 0.1, "prefill_stretch": 0.3, "schedule_s": 0.4, "hidden_s": 0.7}
"""Log-space standard deviation of the prior around `START`; 1.0 where not named."""
BOUNDS: Mapping[str, tuple[float, float]] = {
    "decode_stretch": (0.95, 3.0),
    "prefill_stretch": (0.9, 3.0),
    "hidden_s": (1e-9, 1.5e-6),
}
"""A kernel in an engine cannot be much faster than alone: what is below that is another error [-]."""
FEWEST_FOREIGN = 20
"""Rows an architecture needs for a host figure of its own [-]."""
PACE_MODELS, PACE_ROWS = 2, 20
"""Models, and rows of both metrics, that a release needs for a pace of its own [-]."""
PRIOR_WEIGHT = 3.0
"""Rows' worth of one standard deviation of the prior [-]."""


@dataclass(frozen=True, eq=False)
class Block:
    """Rows of one group with the sums of their two steps."""

    group: Group
    metric: np.ndarray
    time_s: np.ndarray
    more: np.ndarray
    first: Sums
    later: Sums
    passes: np.ndarray
    loop: Cycle | None
    rows: np.ndarray


def blocks(rows: pd.DataFrame, engines: Mapping[str, Engine]) -> list[Block]:
    """Rows that can be run, as kernel sums; figures of the kernels come from `engines`."""
    out = []
    for group, part, reason in groups(rows, {k: bare(e) for k, e in engines.items()}):
        if reason:
            continue
        loop: Cycle | None = None
        if part["loop"].iloc[0] == "static":
            first, later = static_sums(group, part)
        else:
            first, later, loop = closed_sums(group, part)
        out.append(
            Block(
                group,
                part["metric"].to_numpy(),
                part["time_s"].to_numpy(float),
                np.maximum(part["output"].to_numpy(float) - 1.0, 0.0),
                first,
                later,
                np.broadcast_to(group.passes(*(part[c].to_numpy(float) for c in ("batch", "prompt"))), len(part)),
                loop,
                part.index.to_numpy(),
            )
        )
    return out


def _step_s(engine: Engine, group: Group, s: Sums, *, prefills: bool) -> np.ndarray:
    extra = np.zeros_like(s.gpu_s)
    for size, count in s.messages:
        extra = extra + count * engine.collective_extra_s(size, group.tp)
    parts = engine.step(
        group.device,
        gpu_s=s.gpu_s,
        comm_extra_s=extra,
        launches=s.launches,
        graph=engine.graph_prefill if prefills else engine.graph_decode,
        prefills=prefills,
        sequences=s.sequences,
        prompt_tokens=s.prompt_tokens,
    )
    return np.asarray(parts.total_s)


def block_s(engine: Engine, block: Block) -> np.ndarray:
    """Seconds of the rows of `block`; a static decode takes its mean kernel time, not the mean of two steps."""
    first = _step_s(engine, block.group, block.first, prefills=True)
    later = _step_s(engine, block.group, block.later, prefills=False)
    if block.loop is None:
        ttft, tpot = first * block.passes, later
    else:
        ttft, tpot = solve(block.loop, engine, later, first)
    return np.where(block.metric == "ttft", ttft, np.where(block.metric == "tpot", tpot, ttft + block.more * tpot))


def with_figures(engine: Engine, names: tuple[str, ...], values: np.ndarray) -> Engine:
    """`engine` with the named figures; ``host.ampere`` is an entry of a table."""
    plain = {n: float(v) for n, v in zip(names, values, strict=True) if "." not in n}
    host = dict(engine.host)
    for name, value in zip(names, values, strict=True):
        if "." in name:
            host[name.partition(".")[2]] = float(value)
    return replace(engine, **plain, host=host)


def _figure(engine: Engine, name: str) -> float:
    table, _, key = name.partition(".")
    return float(getattr(engine, table)[key] if key else getattr(engine, name))


def fit_engine(engine: Engine, found: list[Block], names: tuple[str, ...]) -> Engine:
    """`engine` with the figures `names` fitted to `found`; each block weighs by the root of its rows."""
    from scipy.optimize import least_squares

    start = np.log([_figure(engine, n) for n in names])
    prior = np.array([WIDTH.get(n, 1.0) for n in names])
    weights = np.concatenate([np.full(len(b.time_s), len(b.time_s) ** -0.5) for b in found])
    weights *= len(weights) ** 0.5 / np.sqrt(np.sum(weights**2))
    log_time = np.log(np.concatenate([b.time_s for b in found]))

    def residuals(x: np.ndarray) -> np.ndarray:
        now = with_figures(engine, names, np.exp(x))
        e = np.log(np.concatenate([block_s(now, b) for b in found])) - log_time
        return np.concatenate([e * weights / 0.1, (x - start) / prior * PRIOR_WEIGHT])

    room = [(BOUNDS.get(n, (1e-12, 1e2))) for n in names]
    low, high = np.log(np.array(room)).T
    start = np.clip(start, low + 1e-6, high - 1e-6)
    done = least_squares(residuals, start, bounds=(low, high), loss="soft_l1", max_nfev=60)
    return with_figures(engine, names, np.exp(done.x))


def assumed(engine: Engine) -> Engine:
    """`engine` before any fit: its free figures at `START`, no spreads, no host of a foreign architecture."""
    start = START.get(engine.name)
    if start is None:
        return engine
    none = (0.0, 0)
    untold = {"host": {}, "pace": {}, "archs": (), "releases": (), "n": 0}
    bare_hands = replace(engine, spread_decode=none, spread_prefill=none, spread_queue=none, **untold)
    return with_figures(bare_hands, tuple(start), np.array(list(start.values())))


def fit(rows: pd.DataFrame, engines: Mapping[str, Engine]) -> dict[str, Engine]:
    """Engines fitted on prepared `rows`; those with too few rows go back to what is assumed."""
    out = dict(engines)
    engines = {k: assumed(e) for k, e in engines.items()}
    out.update({k: e for k, e in engines.items() if k in FREE})
    for name in sorted(set(rows["engine"]) & set(FREE)):
        mine = rows[rows["engine"] == name]
        judged = predict(mine, engines)
        runs = (judged["reason"] == FITS).reindex(mine.index).to_numpy()
        # Elsewhere the kernels are borrowed, and their error would end up in the engine's figures.
        known = {d: CATALOGUE.device(d).vendor == "nvidia" for d in mine["device"].unique()}
        own = mine["device"].map(known).to_numpy(bool)
        usable = mine[runs & _as_most_run(mine) & (own if (runs & own).any() else True)]
        if len(usable) < 2 * len(FREE[name]):
            continue
        fitted = fit_engine(engines[name], blocks(usable, engines), FREE[name])
        fitted = _foreign_hosts(fitted, mine[runs & ~own], engines)
        sure = {f"spread_{k}": (0.0, 999) for k in ("decode", "prefill", "queue")}
        found = sorted({str(r) for r in usable["release"] if r}, key=version)
        fitted = replace(fitted, releases=tuple(found))
        fitted = replace(fitted, pace=paces(predict(usable, {**engines, name: fitted})))
        alone = predict(usable, {**engines, name: replace(fitted, **sure)})
        archs = tuple(sorted({CATALOGUE.device(d).arch for d in usable["device"].unique()}))
        out[name] = replace(fitted, n=len(usable), archs=archs, **spreads(alone))
    return out


def _as_most_run(rows: pd.DataFrame) -> np.ndarray:
    """Rows whose error is the engine's: recipes of attention ranks wait as no row says, networks are assumed."""
    devices = {d: CATALOGUE.device(d) for d in rows["device"].unique()}
    sizes = ((devices[d], int(tp)) for d, tp in zip(rows["device"], rows["tp"], strict=True))
    over = [bool(device.links) and device.link_for(tp).joins_nodes for device, tp in sizes]
    return (rows["dp"] == 1).to_numpy() & ~np.array(over, bool)


def paces(judged: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Time of a prefill and of a decode step over the engine's by release, where setups of two models and more tell it.

    With one model a release cannot be told from the model. ``exp(M/(M+1) mean_m)`` of the medians of
    ``ln(measured/predicted)`` by model, of M models that all lie on one side; 1 where they do not.
    """
    off = np.log(judged["time_s"].to_numpy(float) / judged["mid_s"].to_numpy(float))
    told: dict[str, tuple[float, float]] = {}
    for release, part in judged.assign(off=off).groupby("release"):
        pace = []
        for metric in ("ttft", "tpot"):
            medians = part[part["metric"] == metric].groupby("model")["off"].median().to_numpy()
            agreed = len(medians) >= PACE_MODELS and (np.all(medians > 0.0) or np.all(medians < 0.0))
            pace.append(float(np.exp(medians.sum() / (len(medians) + 1.0))) if agreed else 1.0)
        if release and len(part) >= PACE_ROWS and pace != [1.0, 1.0]:
            told[str(release)] = (pace[0], pace[1])
    return told


def _foreign_hosts(engine: Engine, rows: pd.DataFrame, engines: Mapping[str, Engine]) -> Engine:
    """`engine` with the host figure of every architecture in `rows`, nothing else touched.

    It stands for all that the port of the engine to that architecture does more slowly per launch and row.
    """
    arch = rows["device"].map({d: CATALOGUE.device(d).arch for d in rows["device"].unique()}).to_numpy(object)
    for name in sorted(set(arch)):
        mine = rows[arch == name]
        if len(mine) >= FEWEST_FOREIGN and engine.row_s > 0.0:
            start = replace(engine, host={**engine.host, str(name): engine.host.get(str(name), 2.0)})
            engine = fit_engine(start, blocks(mine, {**engines, engine.name: start}), (f"host.{name}",))
    return engine


def spreads(judged: pd.DataFrame) -> dict[str, tuple[float, int]]:
    """Extra log-space sigma of decode, prefill and queue so that 90 % of `judged` lie in their intervals.

    With w the half width from the kernels, ``(1.645 sigma)^2`` is the 0.9 quantile of ``max(e^2 - w^2, 0)``.
    """
    e = np.log(judged["time_s"].to_numpy(float) / judged["mid_s"].to_numpy(float))
    side = np.where(e > 0, judged["hi_s"] / judged["mid_s"], judged["mid_s"] / judged["lo_s"])
    need = np.maximum(e**2 - np.log(np.maximum(side, 1.0)) ** 2, 0.0)
    metric, closed = judged["metric"].to_numpy(), (judged["loop"] == "closed").to_numpy()
    picks = {
        "spread_decode": (metric == "tpot") | (metric == "e2e"),
        "spread_prefill": ((metric == "ttft") | (metric == "e2e")) & ~closed,
        "spread_queue": (metric == "ttft") & closed,
    }
    return {
        name: (float(np.sqrt(np.quantile(need[mask], 0.9)) / Z90), int(mask.sum())) if mask.any() else (0.0, 0)
        for name, mask in picks.items()
    }


def figures(engine: Engine) -> dict[str, Any]:
    """What a fit found of `engine`, by name as in ``engines.toml``."""
    told = {name: getattr(engine, name) for name in FREE[engine.name] if "." not in name}
    return told | {name: getattr(engine, name) for name in MEASURED if getattr(engine, name) not in ({}, (), (0.0, 0))}
