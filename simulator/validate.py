"""How wrong are we: ``python -m simulator.validate --kind gemm --data FILE [--holdout 0.3|source|device]``."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator import console
from simulator.errors import InputError, ShadowlineError, UnknownNameError, UnsupportedError

if TYPE_CHECKING:
    import pandas as pd

    from simulator.calibration import Fit

KERNEL_KINDS = ("gemm", "attention", "collective", "moe", "elementwise")
KINDS = (*KERNEL_KINDS, "sparse", "e2e")
SMALLEST = 50
"""Rows below which a split's figures are not printed, only its count."""


@dataclass(frozen=True)
class Judged:
    """Prepared rows with predictions beside them, and which split they belong to."""

    rows: pd.DataFrame
    split: str
    unpredicted: dict[str, int] = field(default_factory=dict)


def module_of(kind: str) -> Any:
    """Fitting module of a kernel family: `prepare`, `INPUTS`, `fit`, `predict`."""
    return importlib.import_module(f"simulator.fitting.{kind}")


def read_rows(path: Path) -> pd.DataFrame:
    """Measured rows of a Parquet or CSV file."""
    import pandas as pd

    if not path.is_file():
        raise InputError(f"no such file: {path}", where="--data")
    try:
        return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read: {str(error).splitlines()[0]}", where="--data"
        ) from None


def committed(kind: str, devices: Iterator[str] | list[str]) -> list[Fit]:
    """Fits of the profiles as they are committed, pooled ones included."""
    from simulator.calibration import DEFAULT, load_fits

    return [f for name in (*dict.fromkeys(devices), DEFAULT) for f in load_fits(name, kind)]


def judge_rows(
    kind: str, raw: pd.DataFrame, holdout: str | None
) -> tuple[list[Judged], dict[str, int]]:
    """Predictions for the rows to be judged, and counts of the rows left out by reason."""
    module = module_of(kind)
    excluded = _excluded(raw)
    rows = _prepared(module, _known(kind, raw, excluded), excluded)
    judged = list(
        _committed(kind, module, rows) if holdout is None else _splits(module, rows, holdout)
    )
    for j in judged:
        for reason, n in j.unpredicted.items():
            excluded[reason] = excluded.get(reason, 0) + n
    return judged, excluded


def _prepared(module: Any, raw: pd.DataFrame, excluded: dict[str, int]) -> pd.DataFrame:
    """Prepared rows; where a device lacks the rate of a format, those rows are counted instead."""
    import pandas as pd

    try:
        return module.prepare(raw)
    except UnsupportedError:
        parts = []
        for _, group in raw.groupby(["device", "dtype"], dropna=False, sort=False):
            try:
                parts.append(module.prepare(group))
            except UnsupportedError as error:
                reason = error.message.split(";")[0]
                excluded[reason] = excluded.get(reason, 0) + len(group)
        if not parts:
            raise
        return pd.concat(parts, ignore_index=True)


def _known(kind: str, raw: pd.DataFrame, excluded: dict[str, int]) -> pd.DataFrame:
    """Rows of devices with a profile and formats we know; the others are counted in `excluded`."""
    from simulator.device import resolve
    from simulator.dtypes import FORMATS

    keep = [True] * len(raw)
    if "device" in raw:
        names: dict[str, bool] = {}
        for name in raw["device"].astype(str).unique():
            try:
                names[name] = bool(resolve(name))
            except UnknownNameError:
                names[name] = False
        keep = raw["device"].astype(str).map(names).to_numpy()
        for name, here in names.items():
            if not here:
                excluded[f"device {name} has no profile"] = int((raw["device"] == name).sum())
    if "dtype" in raw and kind in ("gemm", "attention"):
        known = raw["dtype"].astype(str).isin(list(FORMATS)).to_numpy()
        for name, n in raw["dtype"][~known].value_counts().items():
            excluded[f"unknown format {name}"] = int(n)
        keep = keep & known
    return raw[keep]


def _committed(kind: str, module: Any, rows: pd.DataFrame) -> Iterator[Judged]:
    """Rows by what the committed fits have seen: their source, their device, or neither."""
    import numpy as np

    fits = committed(kind, sorted(rows["device"].unique()))
    seen: dict[str, set[str]] = {}
    for fit in fits:
        seen.setdefault(fit.device, set()).update(fit.sources)
    split = np.array(
        [
            "cross_device" if d not in seen else "in_source" if s in seen[d] else "cross_source"
            for d, s in zip(rows["device"], rows["source"], strict=True)
        ]
    )
    for name in ("in_source", "cross_source", "cross_device"):
        if (split == name).any():
            yield _predicted(module, rows[split == name], fits, name)


def _excluded(raw: pd.DataFrame) -> dict[str, int]:
    import numpy as np

    out: dict[str, int] = {}
    if "flag" in raw:
        flag = raw["flag"].fillna("").astype(str).str.strip()
        out = {f"flag {k}": int(v) for k, v in flag[flag != ""].value_counts().items()}
    if "time_s" in raw:
        bad = ~np.isfinite(raw["time_s"].to_numpy(float)) | (raw["time_s"].to_numpy(float) <= 0)
        if bad.any():
            out["no positive time"] = int(bad.sum())
    return out


def _splits(module: Any, rows: pd.DataFrame, holdout: str) -> Iterator[Judged]:
    from simulator.fitting import judge

    if holdout in ("source", "device"):
        yield from _left_out(module, rows, holdout)
        return
    try:
        share = float(holdout)
    except ValueError:
        share = -1.0
    if not 0.0 < share < 1.0:
        raise InputError(
            f"{holdout!r} is not a share between 0 and 1, 'source' or 'device'", where="--holdout"
        )
    test = judge.holdout(judge.shape_group(rows, module.INPUTS), share)
    yield _predicted(module, rows[test], module.fit(rows[~test]), "in_source")


def _left_out(module: Any, rows: pd.DataFrame, column: str) -> Iterator[Judged]:
    """Leave one source of a device, or one device, out at a time."""
    import pandas as pd

    if column == "device":
        split, names = "cross_device", sorted(rows["device"].unique())
        if len(names) < 2:
            raise InputError("one device only: nothing is left to fit on", where="--holdout")
        judged_on = rows["device"].notna()
    else:
        split, names = "cross_source", sorted(rows["source"].unique())
        sources = rows.groupby("device")["source"].nunique()
        judged_on = rows["device"].isin(sources[sources > 1].index)
        if not judged_on.any():
            raise InputError("no device has rows of two sources", where="--holdout")
    parts: list[Judged] = []
    for name in names:
        left_out = rows[column] == name
        if (left_out & judged_on).any():
            fits = module.fit(rows[~left_out])
            parts.append(_predicted(module, rows[left_out & judged_on], fits, split))
    unpredicted: dict[str, int] = {}
    for part in parts:
        for reason, n in part.unpredicted.items():
            unpredicted[reason] = unpredicted.get(reason, 0) + n
    yield Judged(pd.concat([p.rows for p in parts]), split, unpredicted)


def _predicted(module: Any, rows: pd.DataFrame, fits: list[Fit], split: str) -> Judged:
    """Predictions beside the rows; what nothing measured can answer for is counted, not guessed."""
    from simulator.fitting.naive import naive_s

    cross = split != "in_source"
    unpredicted: dict[str, int] = {}
    try:
        mid, lo, hi = module.predict(rows, fits, cross=cross)
    except ShadowlineError:
        import pandas as pd

        keys = [k for k in ("device", "dtype", "kv_dtype", "phase", "op", "library") if k in rows]
        parts = []
        for _, group in rows.groupby(keys, dropna=False, sort=False):
            try:
                mid, lo, hi = module.predict(group, fits, cross=cross)
            except ShadowlineError as error:
                reason = error.message.split(";")[0]
                unpredicted[reason] = unpredicted.get(reason, 0) + len(group)
            else:
                parts.append(group.assign(mid_s=mid, lo_s=lo, hi_s=hi))
        nothing = rows.head(0).assign(mid_s=0.0, lo_s=0.0, hi_s=0.0)
        rows = pd.concat(parts) if parts else nothing
    else:
        rows = rows.assign(mid_s=mid, lo_s=lo, hi_s=hi)
    uncovered = rows["mid_s"].isna()
    if uncovered.any():
        unpredicted["no fit covers it"] = int(uncovered.sum())
        rows = rows[~uncovered]
    naive = naive_s(module.FAMILY, rows) if len(rows) else 0.0
    return Judged(rows.assign(naive_s=naive), split, unpredicted)


def table(kind: str, judged: Judged, by: tuple[str, ...]) -> list[dict[str, Any]]:
    """Figures of every group of `by`, largest first; small groups carry their count only."""
    rows = judged.rows
    keys = [k for k in by if k in rows]
    if not keys:
        raise InputError(f"{kind} rows have none of the columns {', '.join(by)}", where="--by")
    out = []
    for names, group in rows.groupby(keys, dropna=False, sort=False):
        labels = dict(zip(keys, names if isinstance(names, tuple) else (names,), strict=True))
        out.append({"family": kind, **labels, "split": judged.split, **figures(group)})
    return sorted(out, key=lambda r: -r["n"])


def figures(rows: pd.DataFrame) -> dict[str, Any]:
    """The contract's figures of one group of judged rows."""
    import numpy as np

    from simulator.fitting import judge

    t, mid = rows["time_s"].to_numpy(float), rows["mid_s"].to_numpy(float)
    if len(rows) < SMALLEST:
        return {"n": len(rows)}
    lo, hi = rows["lo_s"].to_numpy(float), rows["hi_s"].to_numpy(float)
    repeated = rows["repeats"].to_numpy() > 1 if "repeats" in rows else np.zeros(len(rows), bool)
    naive = np.abs(rows["naive_s"].to_numpy(float) / t - 1.0)
    return {
        **judge.figures(t, mid),
        "coverage_90": float(np.mean((t >= lo) & (t <= hi))),
        "interval_width": float(np.median(np.log(hi / lo))),
        "noise_floor": float(np.median(rows["spread"].to_numpy()[repeated]))
        if repeated.any()
        else None,
        "roofline_median_ape": float(np.nanmedian(naive)),
    }


def worst(judged: Judged, by: tuple[str, ...], n: int) -> list[dict[str, Any]]:
    """The `n` groups with the largest median error among those with enough rows."""
    rows = [r for r in table("", judged, by) if "median_ape" in r]
    return sorted(rows, key=lambda r: -r["median_ape"])[:n]


GROUP = ("source", "device", "dtype", "phase", "kernel_family")
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def command(
    kind: Annotated[str, typer.Option(help=" | ".join(KINDS))],
    data: Annotated[Path, typer.Option(help="Parquet or CSV of measured rows")],
    holdout: Annotated[
        str | None,
        typer.Option(
            help="share, 'source' or 'device': fit in memory on the rest; none = judge what is committed"
        ),
    ] = None,
    learning_curve: Annotated[
        list[str] | None,
        typer.Option(
            help="DEVICE:DTYPE (gemm): held-out error against how many rows of it were fitted; repeat"
        ),
    ] = None,
    by: Annotated[str, typer.Option(help="columns of the table")] = "device,dtype,phase",
    json_: Annotated[
        bool, typer.Option("--json", help='{"rows": [...], "excluded": {...}} on stdout')
    ] = False,
) -> None:
    """Judge predictions on measured rows: APE, bias, coverage and width of the interval.

    Without --holdout nothing is fitted. Splits are by shape, repeats are aggregated to their median first.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind", kind, KINDS, where="--kind")
    raw = read_rows(data)
    if learning_curve:
        _curves(kind, raw, learning_curve, json_)
        return
    if kind not in KERNEL_KINDS:
        module = module_of(kind)
        result = module.validate(raw, holdout)
        if json_:
            console.out_json(result)
        else:
            module.show(result)
        return
    judged, excluded = judge_rows(kind, raw, holdout)
    for j in judged:
        j.rows["kernel_family"] = j.rows["library"]
    if json_:
        blank = dict.fromkeys(GROUP)
        rows = [{**blank, **r} for j in judged for r in table(kind, j, GROUP)]
        total = [{"family": kind, "split": j.split, **figures(j.rows)} for j in judged]
        console.out_json({"rows": rows, "total": total, "excluded": excluded})
        return
    for j in judged:
        shown = [{"family": kind, "device": "all", "split": j.split, **figures(j.rows)}]
        shown += table(kind, j, tuple(c.strip() for c in by.split(",")))
        _print(kind, j.split, shown, excluded)


CURVE_SIZES = (10, 20, 40, 80, 160, 320, 640)
CURVE_SEEDS = (0, 1, 2)


def _curves(kind: str, raw: pd.DataFrame, wanted: list[str], json_: bool) -> None:
    """Error on 30 % of the shapes against the number of rows of this device alone that were fitted."""
    from simulator.device import resolve

    if kind != "gemm":
        raise InputError("only gemm has a learning curve per device", where="--learning-curve")
    module = module_of(kind)
    rows, out = module.prepare(raw), []
    for text in wanted:
        device, colon, dtype = text.partition(":")
        if not colon:
            raise InputError(
                f"{text!r}: write DEVICE:DTYPE, e.g. h100-sxm:bf16", where="--learning-curve"
            )
        name = resolve(device)
        points = module.learning_curve(rows, name, dtype, CURVE_SIZES, CURVE_SEEDS)
        if not points:
            raise InputError(
                f"fewer than {CURVE_SIZES[0]} rows of {name} {dtype}", where="--learning-curve"
            )
        for size in CURVE_SIZES:
            runs = [p for p in points if p["fit_rows"] == size]
            if runs:
                medians = [p["median_ape"] for p in runs]
                out.append(
                    {
                        "device": name, "dtype": dtype, "fit_rows": size, "n": runs[0]["n"],
                        "median_ape": sorted(medians)[len(medians) // 2],
                        "best": min(medians), "worst": max(medians),
                        "p90_ape": sorted(p["p90_ape"] for p in runs)[len(runs) // 2],
                    }
                )  # fmt: skip
    if json_:
        console.out_json({"rows": out})
        return
    console.table(
        f"{kind}: error on unseen shapes against rows fitted, {len(CURVE_SEEDS)} draws",
        ["device", "dtype", "rows fitted", "judged on", "median APE", "best draw", "worst draw", "p90 APE"],
        [
            [
                r["device"], r["dtype"], f"{r['fit_rows']}", f"{r['n']}",
                *(f"{r[k]:.1%}" for k in ("median_ape", "best", "worst", "p90_ape")),
            ]
            for r in out
        ],
        left=2,
    )  # fmt: skip


def _print(kind: str, split: str, rows: list[dict[str, Any]], excluded: dict[str, int]) -> None:
    def percent(x: Any) -> str:
        return "-" if x is None else f"{x:.1%}"

    labels = [
        k
        for k in ("source", "device", "dtype", "phase", "op", "kernel_family")
        if any(k in r for r in rows)
    ]
    console.table(
        f"{kind}, {split}: predicted against measured",
        [
            *labels,
            "n",
            "> 50 us",
            "median APE",
            "> 50 us",
            "p90 APE",
            "bias",
            "coverage",
            "width",
            "noise",
            "roofline",
        ],
        [
            [
                *(str(r.get(k, "")) for k in labels),
                f"{r['n']}",
                *(
                    [
                        str(r["n_over_50us"]),
                        percent(r["median_ape"]),
                        percent(r["median_ape_over_50us"]),
                        percent(r["p90_ape"]),
                        f"{r['bias']:+.1%}",
                        percent(r["coverage_90"]),
                        f"{r['interval_width']:.2f}",
                        percent(r["noise_floor"]),
                        percent(r["roofline_median_ape"]),
                    ]
                    if "median_ape" in r
                    else ["-"] * 9
                ),
            ]
            for r in rows
        ],
        left=len(labels),
        note="coverage: share inside the 90 % interval; width: median ln(hi/lo); roofline: median APE of max(flop/peak,"
        " bytes/bandwidth); left out: "
        + (", ".join(f"{v} {k}" for k, v in excluded.items()) or "nothing"),
    )


if __name__ == "__main__":
    console.main(app)
