"""Shadowline's side of `peers.py`: its answers to the measured rows, and its speed on the peers' points."""

import time
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
REFITTED = "shadowline / engine refitted"
MODES = {
    REFITTED: "engine's figures refitted without the row's (model, device); kernels as committed",
    "shadowline / as committed": "the engine that ran; its few figures were fitted on these rows too",
    "shadowline / vllm today": "with the current vLLM profile, as aiconfigurator's tables are",
}
ANCHOR_ENGINE = "trtllm"
SPEED_MODEL, SPEED_DEVICE = "llama-2-7b", "a100-sxm-80g"


def refitted(rows: Any, engines: Any) -> Any:
    """Predictions of engines refitted without the (model, device) of a row, or without its setup where alone."""
    import numpy as np
    import pandas as pd

    from simulator.fitting import e2e_fit, judge
    from simulator.fitting.e2e_rows import SETUP
    from simulator.fitting.e2e_steps import predict

    parts = []
    for engine, mine in rows.groupby("engine"):
        unit = mine["model"] + " " + mine["device"]
        runs = predict(mine, engines)["reason"] == ""
        fold = (
            unit
            if unit[runs].nunique() > 1
            else pd.Series(judge.fold_of(judge.shape_group(mine, SETUP), 5), index=mine.index)
        )
        for value in np.unique(fold):
            test = fold == value
            now = e2e_fit.fit(mine[~test], {engine: engines[engine]})
            parts.append(predict(mine[test], now))
    return pd.concat(parts).sort_index()


def own_answers(rows: Any, extra: list[Row]) -> dict[str, dict[int, float | str]]:
    """Shadowline's modes: seconds or the reason of every row id."""
    import numpy as np

    from simulator.fitting.e2e_steps import predict
    from simulator.inference.evaluate import evaluate
    from simulator.inference.group import group_of
    from simulator.roofline.engine import load_engines
    from simulator.scenario.scenario import Scenario

    out: dict[str, dict[int, float | str]] = {name: {} for name in MODES}
    if rows is not None:
        engines = load_engines()
        frames = (refitted(rows, engines), predict(rows, engines), predict(rows.assign(engine="vllm"), engines))
        for name, frame in zip(MODES, frames, strict=True):
            for row in frame.to_dict("records"):
                out[name][row["id"]] = row["reason"] or float(row["mid_s"])
    for row in extra:
        for name in MODES:
            engine = "vllm" if name.endswith("today") else ANCHOR_ENGINE
            group = group_of(Scenario.of(model=row["model"], device=row["device"], engine=engine, dtype="fp16"))
            arrays = (np.array([float(row[k])]) for k in ("batch", "prompt", "output"))
            out[name][row["id"]] = float(evaluate(group, *arrays).tpot_s.mid[0])
    return out


def own_speed(points: list[Row], limit_s: float) -> list[Row]:
    """Shadowline on the same points: as a product grid, as shuffled rows, one by one, and as bare decode steps."""
    import numpy as np

    from simulator.inference.group import group_of
    from simulator.inference.step import step_time
    from simulator.ops.step import decode_step
    from simulator.results.prediction import predict
    from simulator.results.scatter import scattered
    from simulator.results.swept import blocks
    from simulator.scenario.grid import Grid
    from simulator.scenario.scenario import Scenario

    fixed = {"model": SPEED_MODEL, "device": SPEED_DEVICE}
    axes = {"batch": "batch", "prompt_tokens": "prompt", "output_tokens": "output"}
    columns = {k: np.array([p[v] for p in points]) for k, v in axes.items()}
    grid = Grid(
        model=(SPEED_MODEL,),
        device=(SPEED_DEVICE,),
        **{k: tuple(int(x) for x in np.unique(v)) for k, v in columns.items()},
    )
    names = {k: [v] * len(points) for k, v in fixed.items()}
    group = group_of(Scenario.of(**fixed))
    context = columns["prompt_tokens"] + 1.0
    batch = columns["batch"].astype(float)
    singles = [Scenario.of(**fixed, **{k: p[v] for k, v in axes.items()}) for p in points[:2000]]

    def one_by_one() -> int:
        start = time.perf_counter()
        for n, scenario in enumerate(singles, 1):
            predict(scenario)
            if time.perf_counter() - start > limit_s:
                return n
        return len(singles)

    def product() -> int:
        return sum(block.n for block in blocks([grid]))

    def shuffled() -> int:
        return scattered({**names, **columns}).n

    def steps() -> int:
        return int(np.size(step_time(group, decode_step(batch, context)).total_s))

    works: tuple[tuple[str, str, Callable[[], int]], ...] = (
        ("answer", "blocks([Grid]): product grid, memory, cost and intervals", product),
        ("answer", "scattered(columns): the points in shuffled order", shuffled),
        ("answer", "predict(Scenario): one point per call", one_by_one),
        ("step", "step_time(group, decode_step(batch, context)): arrays", steps),
    )
    out = []
    # Profiles are read once; no point that is timed was answered before.
    predict(Scenario.of(**fixed, batch=64))
    for what, call, work in works:
        start = time.perf_counter()
        done = work()
        out.append({"what": what, "call": call, "points": int(done), "seconds": time.perf_counter() - start})
    return out
