"""How wrong predicted speed-ups of sparse kernels are: ``python -m simulator.validate --kind sparse``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.base import console
from simulator.base.errors import InputError
from simulator.device.fits import Fit
from simulator.fitting import dsa, judge, sparse, sparse_prompts
from simulator.fitting.sparse_rows import INPUTS, split
from simulator.roofline.speedup import FAMILIES

if TYPE_CHECKING:
    import pandas as pd

SMALLEST = 50
"""Rows below which a group is listed row by row instead of summed up."""
TARGET = (0.12, 0.35)


def validate(raw: pd.DataFrame, holdout: str | None) -> dict[str, Any]:
    """Figures per family and device, small groups row by row, totals, and what was left out.

    `holdout` None judges the committed fits on all rows (they have seen them); a share refits on the
    rest; 'source' and 'device' leave one out at a time, for families that have another.
    """
    import pandas as pd

    rows, excluded = split(raw)
    parts = list(_judged(rows, holdout))
    judged = pd.concat(parts)
    lost = ~np.isfinite(judged["mid"])
    if lost.any():
        excluded["no other row of the family to fit on"] = int(lost.sum())
    judged = judged[~lost]
    if judged.empty:
        raise InputError("nothing is left to judge", where="--holdout")
    out: list[dict[str, Any]] = []
    total: list[dict[str, Any]] = []
    for family in (f for f in (*dsa.FAMILIES, *FAMILIES, sparse_prompts.FAMILY) if (judged["family"] == f).any()):
        mine = judged[judged["family"] == family]
        total.append({"family": family, **figures(mine), "few": len(mine) < SMALLEST})
        for device, part in mine.groupby("device"):
            label = {"family": family, "device": device}
            out.append({**label, **(figures(part) if len(part) >= SMALLEST else {"n": len(part)})})
            if len(part) < SMALLEST and len(mine) < SMALLEST:
                out[-1]["rows"] = [
                    {
                        **{k: r[k] for k in ("library", "keep", "m", "n", "k", "q_len", "kv_len")},
                        "measured": r["speedup"],
                        "predicted": r["mid"],
                    }
                    for r in part.to_dict("records")
                ]
    medians = [r["median_ape"] for r in total], [r["p90_ape"] for r in total]
    total.append(
        {
            "family": "median over families",
            "n": len(judged),
            "median_ape": float(np.median(medians[0])),
            "p90_ape": float(np.median(medians[1])),
            "target_median_ape": TARGET[0],
            "target_p90_ape": TARGET[1],
            **called(judged["speedup"].to_numpy(float), judged["mid"].to_numpy(float)),
        }
    )
    label = judged["split"].iloc[0]
    return {
        "rows": [{**r, "split": label} for r in out],
        "total": [{**r, "split": label} for r in total],
        "excluded": excluded,
    }


def _judged(rows: pd.DataFrame, holdout: str | None) -> Iterator[pd.DataFrame]:
    if holdout is None:
        yield _with(rows, None, "in_source")
        return
    if holdout in ("source", "device"):
        for value in sorted(rows[holdout].unique()):
            mine = rows[holdout] == value
            others = rows[~mine & rows["family"].isin(rows.loc[mine, "family"].unique())]
            fits = sparse.fit(others) if len(others) else []
            yield _with(rows[mine], fits, f"cross_{holdout}", cross=holdout == "source")
        return
    test = judge.split(rows, INPUTS, holdout)
    yield _with(rows[test], sparse.fit(rows[~test]), "in_source")


def _with(rows: pd.DataFrame, fits: list[Fit] | None, label: str, *, cross: bool = False) -> pd.DataFrame:
    mid, lo, hi = sparse.predict(rows, fits, cross=cross)
    return rows.assign(mid=mid, lo=lo, hi=hi, split=label)


def figures(rows: pd.DataFrame) -> dict[str, Any]:
    """Contract figures of one group; `naive_median_ape` is that of 1/(1 - sparsity)."""
    s, mid, lo, hi = (rows[c].to_numpy(float) for c in ("speedup", "mid", "lo", "hi"))
    ratio = mid / s
    ape = np.abs(ratio - 1.0)
    naive = np.abs(rows["naive"].to_numpy(float) / s - 1.0)
    naive = naive[np.isfinite(naive)]
    return {
        "n": len(rows),
        "median_ape": float(np.median(ape)),
        "p90_ape": float(np.quantile(ape, 0.9)),
        "bias": float(np.median(ratio) - 1.0),
        "coverage_90": float(np.mean((s >= lo) & (s <= hi))),
        "interval_width": float(np.median(np.log(hi / lo))),
        "naive_median_ape": float(np.median(naive)) if len(naive) else None,
        **called(s, mid),
    }


def called(measured: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Wins and losses among `measured` speed-ups, and the share of either that `predicted` is on the same side of [-].

    None where there is none.
    """
    out: dict[str, Any] = {}
    for name, side, same in (("wins", measured > 1.0, predicted > 1.0), ("losses", measured < 1.0, predicted < 1.0)):
        out[name] = int(side.sum())
        out[f"{name}_called"] = float(np.mean(same[side])) if side.any() else None
    return out


def show(result: Mapping[str, Any]) -> None:
    """Totals by family, groups by device, then the rows of small groups."""
    labels = ("family", "device")
    heads = [
        *labels,
        "n",
        "median APE",
        "p90 APE",
        "bias",
        "coverage",
        "width",
        "naive",
        "wins called",
        "losses called",
    ]
    split_ = result["total"][0]["split"]
    for title, rows in (
        (f"speed-up over dense, {split_}: by pattern family", result["total"]),
        ("by family and device", result["rows"]),
    ):
        console.table(
            title,
            heads,
            [[*(str(r.get(k, "all")) for k in labels), *_cells(r)] for r in rows],
            left=2,
            note=f"target {TARGET[0]:.0%} / {TARGET[1]:.0%}; naive: 1/(1 - sparsity); wins, losses: called so",
        )
    few = [(g, r) for g in result["rows"] for r in g.get("rows", ())]
    if few:
        console.table(
            f"families of fewer than {SMALLEST} rows",
            ["family", "device", "kernel", "keep", "measured", "predicted", "error"],
            [
                [
                    g["family"],
                    g["device"],
                    r["library"],
                    f"{r['keep']:.3f}",
                    f"{r['measured']:.2f}",
                    f"{r['predicted']:.2f}",
                    f"{r['predicted'] / r['measured'] - 1:+.0%}",
                ]
                for g, r in few
            ],
            left=3,
        )
    left = ", ".join(f"{n} {reason}" for reason, n in result["excluded"].items())
    console.out("left out: " + (left or "nothing"))


def _cells(row: Mapping[str, Any]) -> list[str]:
    def told(key: str, form: str) -> str:
        return "-" if row.get(key) is None else format(row[key], form)

    def of(key: str) -> str:
        return "-" if row.get(f"{key}_called") is None else f"{row[f'{key}_called']:.0%} of {row[key]}"

    return [
        str(row["n"]),
        told("median_ape", ".1%"),
        told("p90_ape", ".1%"),
        told("bias", "+.1%"),
        told("coverage_90", ".0%"),
        told("interval_width", ".2f"),
        told("naive_median_ape", ".0%"),
        of("wins"),
        of("losses"),
    ]
