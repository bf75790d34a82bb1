"""Whole-model steps and serving: fit of the engines, and how wrong we are, apart by engine, device and TP.

``python -m simulator.validate --kind e2e`` calls `validate` and `show`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.base import console
from simulator.base.errors import InputError
from simulator.fitting import e2e_fit, judge
from simulator.fitting.e2e_rows import SETUP, counts, prepare
from simulator.fitting.e2e_steps import predict
from simulator.roofline.engine import Engine, load_engines

if TYPE_CHECKING:
    import pandas as pd

FAMILY = "e2e"
INPUTS = SETUP
BY = ("family", "source", "engine", "device", "dtype", "tp", "metric")
SMALLEST = 10
"""Rows below which a group carries its count only: setups are costly, so fewer than for kernels."""
TARGETS = {("step", "all"): (0.06, 0.15), ("serving", "tpot"): (0.08, 0.25), ("serving", "ttft"): (0.25, 0.60)}
"""Median and p90 APE of the accuracy contract."""

fit = e2e_fit.fit


def validate(raw: pd.DataFrame, holdout: str | None) -> dict[str, Any]:
    """Figures of every group of `BY`, totals against their targets, and rows left out by reason.

    Parameters
    ----------
    raw : DataFrame
        Rows of an e2e file.
    holdout : str or None
        None judges the committed engines; a share refits on the rest in memory and judges that share of the
        setups, once with points held out (``in_source``) and once with whole (engine, device, model) triples
        (``cross_setup``); 'device' and 'source' leave one out at a time.
    """
    rows, excluded = prepare(raw)
    engines = load_engines()
    judged = _judged(rows, engines, holdout)
    for reason, n in judged["reason"][judged["reason"] != ""].value_counts().items():
        excluded[str(reason)] = excluded.get(str(reason), 0) + int(n)
    good = judged[judged["reason"] == ""]
    if good.empty:
        raise InputError(f"no row can be judged: {counts(excluded)}", where="--data")
    out: list[dict[str, Any]] = []
    for split, part in good.groupby("split"):
        out += [{**r, "split": split} for r in table(part, BY)]
    totals = []
    for split, part in good.groupby("split"):
        for by in (("family", "metric"), ("family", "engine"), ("family", "engine", "tp", "metric")):
            totals += [{"by": " ".join(by), **r, "split": split} for r in table(part, by)]
        step = part[part["family"] == "step"]
        if len(step):
            totals.append({"by": "family", "family": "step", "metric": "all", **figures(step), "split": split})
    for row in totals:
        target = TARGETS.get((row["family"], row.get("metric", "")))
        if target and "engine" not in row:
            row["target_median_ape"], row["target_p90_ape"] = target
    return {"rows": out, "total": totals, "excluded": excluded}


def _judged(rows: pd.DataFrame, engines: Mapping[str, Engine], holdout: str | None) -> pd.DataFrame:
    import pandas as pd

    if holdout is None:
        return predict(rows, engines).assign(split="in_source")
    parts = []
    if holdout in ("device", "source"):
        for value in sorted(rows[holdout].unique()):
            mine = (rows[holdout] == value).to_numpy()
            if mine.all():
                raise InputError(f"one {holdout} only: nothing is left to fit on", where="--holdout")
            now = fit(rows[~mine], engines)
            parts.append(predict(rows[mine], now).assign(split=f"cross_{holdout}"))
        return pd.concat(parts)
    share = judge.share_of(holdout)
    for split, keys in (("in_source", SETUP), ("cross_setup", ("engine", "device", "model"))):
        test = judge.holdout(judge.shape_group(rows, keys), share)
        if test.all() or not test.any():
            continue
        parts.append(predict(rows[test], fit(rows[~test], engines)).assign(split=split))
    return pd.concat(parts)


def table(rows: pd.DataFrame, by: tuple[str, ...]) -> list[dict[str, Any]]:
    """Figures of every group of `by`, largest first."""
    out = []
    for names, part in rows.groupby(list(by), sort=False):
        out.append({**dict(zip(by, names, strict=True)), **figures(part)})
    return sorted(out, key=lambda r: -r["n"])


def figures(rows: pd.DataFrame, smallest: int = SMALLEST) -> dict[str, Any]:
    """The contract's figures of one group; a count only where rows are fewer than `smallest`."""
    if len(rows) < smallest:
        return {"n": len(rows)}
    t, mid = rows["time_s"].to_numpy(float), rows["mid_s"].to_numpy(float)
    lo, hi = rows["lo_s"].to_numpy(float), rows["hi_s"].to_numpy(float)
    found = judge.figures(t, mid)
    naive = np.abs(rows["naive_s"].to_numpy(float) / t - 1.0)
    return {
        "n": len(rows),
        "median_ape": found["median_ape"],
        "p90_ape": found["p90_ape"],
        "bias": found["bias"],
        "coverage_90": float(np.mean((t >= lo) & (t <= hi))),
        "interval_width": float(np.median(np.log(hi / np.maximum(lo, 1e-12)))),
        "roofline_median_ape": float(np.median(naive)),
    }


def show(result: Mapping[str, Any]) -> None:
    """Totals against their targets, then the groups."""
    for title, rows, labels in (
        (
            "whole-model steps and serving, against target",
            [r for r in result["total"] if r["by"] != "family engine tp metric"],
            ("split", "family", "metric", "engine"),
        ),
        (
            "by engine and tensor parallelism",
            [r for r in result["total"] if r["by"] == "family engine tp metric"],
            ("split", "family", "engine", "tp", "metric"),
        ),
        ("by source, device and format", result["rows"], ("split", *BY)),
    ):
        console.table(
            title,
            [*labels, "n", "median APE", "target", "p90 APE", "bias", "coverage", "width", "roofline"],
            [[*(str(r.get(k, "")) for k in labels), *_cells(r)] for r in rows],
            left=len(labels),
        )
    console.out(f"left out: {counts(result['excluded'])}")


def _cells(row: Mapping[str, Any]) -> list[str]:
    if "median_ape" not in row:
        return [str(row["n"])] + ["-"] * 7
    target = row.get("target_median_ape")
    return [
        str(row["n"]),
        f"{row['median_ape']:.1%}",
        "-" if target is None else f"{target:.0%}",
        f"{row['p90_ape']:.1%}",
        f"{row['bias']:+.1%}",
        f"{row['coverage_90']:.0%}",
        f"{row['interval_width']:.2f}",
        f"{row['roofline_median_ape']:.0%}",
    ]
