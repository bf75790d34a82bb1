"""Own-server calibration judged: half the runs of one set-up fitted, the other half told by it.

    python tests/benchmarks/own_half.py $SHADOWLINE_DATA/e2e.parquet [--setups 6]

Set-ups (engine, device, model, format, TP) with most times of the closed loops in `e2e.parquet`. The engine is first
fitted without any row of the set-up; alternate runs by clients and lengths are then fitted as ``calibrate --kind e2e``
does, the others judged.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from simulator.base import console
from simulator.fitting import e2e_fit, e2e_rows, e2e_steps
from simulator.fitting.own_engine import _fitted
from simulator.roofline.engine import Engine, get_engine

SETUP = ["engine", "release", "device", "model", "dtype", "tp"]


def errors(judged: pd.DataFrame) -> list[str]:
    """Median APE of TTFT and of TPOT [%]."""
    ape = np.abs(judged["mid_s"] / judged["time_s"] - 1.0)
    return [f"{100 * ape[judged['metric'] == m].median():.1f} %" for m in ("ttft", "tpot")]


def judged(rows: pd.DataFrame, others: pd.DataFrame, engines: dict[str, Engine]) -> list[str]:
    """Errors on every second run before and after the others were fitted."""
    name = str(rows["engine"].iloc[0])
    before = e2e_fit.fit(others, engines)[name]
    keys = rows[["batch", "prompt", "output"]].apply(tuple, axis=1)
    order = {key: i % 2 for i, key in enumerate(sorted(set(keys)))}
    half = keys.map(order).to_numpy() == 0
    names = tuple(n for n in e2e_fit.FREE[name] if "." not in n and getattr(before, n) > 0.0)
    after = _fitted(rows[half], before, names)
    told = [errors(e2e_steps.predict(rows[~half], {name: engine})) for engine in (before, after)]
    return [str(int((~half).sum())), *(f"{b} -> {a}" for b, a in zip(*told, strict=True))]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--setups", type=int, default=6)
    given = parser.parse_args()
    rows, _ = e2e_rows.prepare(pd.read_parquet(given.data))
    engines = {str(n): get_engine(str(n)) for n in rows["engine"].unique()}
    found = e2e_steps.predict(rows, engines)
    rows = rows[(found["reason"] == e2e_steps.FITS).reindex(rows.index) & (rows["loop"] == "closed")]
    largest = rows.groupby(SETUP).size().sort_values(ascending=False).head(given.setups)
    out = []
    for key in largest.index:
        mine = (rows[SETUP] == list(key)).all(axis=1)
        name = key[0]
        others = rows[~mine & (rows["engine"] == name)]
        told = judged(rows[mine], others, {name: engines[name]})
        out.append([" ".join(filter(None, map(str, key))), *told])
    console.table("half of a set-up's runs fitted, the others told", ["set-up", "times judged", "TTFT", "TPOT"], out)


if __name__ == "__main__":
    main()
