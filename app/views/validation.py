"""How wrong are we: held-out errors, measured against predicted, published figures, kernel traffic."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app import blocks, figures, words
from simulator.accuracy import TARGETS, golden
from simulator.api import InputError, ShadowlineError
from simulator.device.catalogue import list_devices, measured
from simulator.fitting.judged import KERNEL_KINDS

MOST_UPLOAD_MB = 16
# More marks per device of a scatter would only be ink.
POINTS = 1500
ADDRESS = re.compile(r"arXiv[ :]?(\d{4}\.\d{4,5})|github:([\w.-]+/[\w.-]+)", re.IGNORECASE)


def page() -> None:
    """One kind of evidence at a time."""
    st.markdown("#### How wrong is it?")
    parts = {"kernels": kernels, "measured rows": scatter, "published claims": claims, "kernel traffic": traffic}
    chosen = st.segmented_control(
        "Evidence",
        list(parts),
        default="kernels",
        key="v.what",
        required=True,
        bind="query-params",
        label_visibility="collapsed",
    )
    parts[chosen]()


def kernels() -> None:
    """Committed errors on shapes the fits have not seen, and the fits of every device."""
    record = golden()
    held_out = {k: r for k, r in record["held_out"].items() if "median_ape" in r}
    rows = []
    for kind, r in held_out.items():
        median, p90 = TARGETS.get(kind.split(".")[0], (None, None))
        rows.append(
            {
                "family": kind,
                "held-out rows": r["n"],
                "median APE [%]": 100 * r["median_ape"],
                "target [%]": None if median is None else 100 * median,
                "p90 APE [%]": 100 * r["p90_ape"],
                "p90 target [%]": None if p90 is None else 100 * p90,
                "bias [%]": 100 * r["bias"],
                "covered [%]": 100 * r["coverage_90"],
                "bare roofline [%]": 100 * r["roofline_median_ape"],
            }
        )
    found = pd.DataFrame(rows)
    ranked = sorted(rows, key=lambda r: r["median APE [%]"])
    best, worst = ranked[0], ranked[-1]
    st.markdown(
        f"On shapes it has not seen, half of the kernels are within **{best['median APE [%]']:.1f} %**"
        f" ({best['family']}) to **{worst['median APE [%]']:.1f} %** ({worst['family']}); a bare roofline misses by"
        f" {found['bare roofline [%]'].min():.0f} to {found['bare roofline [%]'].max():.0f} %."
    )
    marks = [
        {"name": r["family"], "value": r[c], "series": label}
        for r in rows
        for c, label in (
            ("median APE [%]", "median"),
            ("p90 APE [%]", "p90"),
            ("bare roofline [%]", "bare roofline, median"),
        )
    ]
    blocks.chart(
        figures.dots(marks, "APE on held-out shapes [%]"),
        "; ".join(f"{r['family']}: median {r['median APE [%]']:.1f} %, p90 {r['p90 APE [%]']:.1f} %" for r in rows),
        "accuracy",
        f"As committed with this version, {record['date'] or 'undated'}.",
    )
    form = {c: st.column_config.NumberColumn(format="%.1f") for c in rows[0] if c.endswith("[%]")}
    blocks.table(found, "errors by kernel family", "accuracy", form)
    blocks.heading("The fits behind every device", "residual")
    fits = _fits()
    left, right = st.columns(2)
    devices = left.multiselect("Devices", sorted(set(fits["device"])), key="v.device", bind="query-params")
    families = right.multiselect("Families", sorted(set(fits["family"])), key="v.family", bind="query-params")
    fits = fits[fits["device"].isin(devices)] if devices else fits
    fits = fits[fits["family"].isin(families)] if families else fits
    st.caption(
        f"{len(fits):,} fits on {fits['rows'].sum():,} measured rows; 90 % of unseen rows lie between low and high."
    )
    percent = {c: st.column_config.NumberColumn(format="%+.0f %%") for c in ("median", "low", "high")}
    blocks.table(fits, "fits by device and family", "fits", percent, height=360)
    st.code("python -m simulator.accuracy --data DIR", language="bash")


@st.cache_data(show_spinner=False)
def _fits() -> pd.DataFrame:
    rows = []
    for device in list_devices():
        for family in (*KERNEL_KINDS, "sparse"):
            for f in measured(device).own(family):
                low, mid, high = (100 * (np.exp(q) - 1.0) for q in (f.residual.q05, f.residual.bias, f.residual.q95))
                rows.append(
                    {
                        "device": device,
                        "family": family,
                        "format": f.dtype,
                        "library": f.library,
                        "rows": f.n,
                        "median": mid,
                        "low": low,
                        "high": high,
                        "sources": ", ".join(f.sources),
                    }
                )
    return pd.DataFrame(rows)


def scatter() -> None:
    """Predicted against measured, row by row, from an upload or $SHADOWLINE_DATA."""
    st.caption(
        "Rows are judged by the committed fits. Columns as `python -m simulator.validate` reads them; nothing is kept."
    )
    left, right = st.columns(2)
    kind = left.selectbox("Family", KERNEL_KINDS, key="v.kind", bind="query-params")
    upload = right.file_uploader(
        "Measured rows (.parquet or .csv)", ["parquet", "csv"], key="v.file", max_upload_size=MOST_UPLOAD_MB
    )
    home = os.environ.get("SHADOWLINE_DATA", "")
    own = Path(home) / f"{kind}.parquet" if home else None
    if upload is None and (own is None or not own.is_file()):
        st.info("Upload measured rows, or start the app with $SHADOWLINE_DATA set to the folder of the public ones.")
        return
    try:
        rows = _judged(kind, upload.getvalue(), upload.name) if upload else _judged_file(kind, str(own))
    except ShadowlineError as error:
        # Its place is this page, not a flag.
        what = blocks.first_line(InputError(error.message))
        st.error(f"{words.plain(upload.name if upload else str(own))} cannot be judged: {what} Nothing is shown.")
        return
    devices = st.multiselect("Devices", sorted(set(rows["device"])), key="v.scatter")
    rows = rows[rows["device"].isin(devices)] if devices else rows
    ape = np.abs(rows["mid_s"] / rows["time_s"] - 1.0)
    inside = ((rows["time_s"] >= rows["lo_s"]) & (rows["time_s"] <= rows["hi_s"])).mean()
    st.markdown(
        f"{len(rows):,} rows: median APE **{ape.median():.1%}**, p90 {ape.quantile(0.9):.1%}, bias"
        f" {(rows['mid_s'] / rows['time_s']).median() - 1:+.1%}, {inside:.0%} inside the 90 % interval."
    )
    marks = []
    for device, part in rows.groupby("device"):
        part = part.sort_values("time_s").iloc[:: -(-len(part) // POINTS)]
        marks += [
            {"x": 1e6 * t, "y": 1e6 * m, "series": str(device)}
            for t, m in zip(part["time_s"], part["mid_s"], strict=True)
        ]
    blocks.chart(
        figures.against(marks, "measured [us]", "predicted [us]"),
        f"{len(marks)} of {len(rows)} rows",
        "scatter",
        f"At most {POINTS:,} marks a device; the line is equality, the band 20 %.",
    )
    by = [c for c in ("device", "dtype", "phase", "library", "source") if c in rows]
    summary = rows.assign(ape=100 * ape).groupby(by, observed=True)["ape"]
    shown = summary.agg(rows="size", median="median", p90=lambda a: a.quantile(0.9)).reset_index()
    percent = {c: st.column_config.NumberColumn(f"{c} APE [%]", format="%.1f") for c in ("median", "p90")}
    blocks.table(shown, "errors by device, format, phase and source", "judged", percent, height=320)
    st.code(f"python -m simulator.validate --kind {kind} --data FILE", language="bash")


@st.cache_data(max_entries=4, show_spinner="Judging ...")
def _judged(kind: str, content: bytes, name: str) -> pd.DataFrame:
    from simulator.fitting.judged import read_rows

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"upload{Path(name).suffix}"
        path.write_bytes(content)
        try:
            raw = read_rows(path)
        except InputError as error:
            raise InputError(error.message.replace(str(path), "it")) from None
    return _predicted(kind, raw)


@st.cache_data(max_entries=8, show_spinner="Judging ...")
def _judged_file(kind: str, path: str) -> pd.DataFrame:
    from simulator.fitting.judged import read_rows

    return _predicted(kind, read_rows(Path(path)))


def _predicted(kind: str, raw: pd.DataFrame) -> pd.DataFrame:
    from simulator.fitting.judged import judge_rows

    judged, excluded = judge_rows(kind, raw, None)
    rows = [j.rows for j in judged if len(j.rows)]
    if not rows:
        raise InputError(f"no row is left to judge ({', '.join(f'{n} {why}' for why, n in excluded.items())})")
    return pd.concat(rows, ignore_index=True)


@st.cache_resource(show_spinner="Predicting every published figure, once (up to a minute) ...")
def _claims() -> tuple[pd.DataFrame, dict[str, Any]]:
    from simulator.claims.judge import judge
    from simulator.claims.rows import committed
    from simulator.claims.statistics import summary

    papers = committed()
    sources = {c.claim_id: (c.source, c.certainty) for p in papers for c in p.claims}
    rows = judge(papers)
    table = pd.DataFrame([r.to_dict() for r in rows])
    table["source"] = [sources.get(i, ("", ""))[0] for i in table["id"]]
    table["link"] = [_link(text) for text in table["source"]]
    return table, summary(rows)


def _link(source: str) -> str | None:
    """Address of a paper or repository named in a source."""
    match = ADDRESS.search(source)
    if match is None:
        return None
    return f"https://arxiv.org/abs/{match[1]}" if match[1] else f"https://github.com/{match[2]}"


def claims() -> None:
    """Published against predicted, filterable, with where each figure was read."""
    if not st.session_state.get("v.judge") and not st.button(
        "Predict every published figure", key="v.go", type="primary", help="Takes up to a minute, once."
    ):
        st.caption("Each published figure whose setup is complete is predicted from that setup alone.")
        return
    st.session_state["v.judge"] = True
    table, total = _claims()
    judged = table[table["status"] == "judged"]
    f = total["all"]
    st.markdown(
        f"{f['rows']} figures of {f['papers']} papers, each paper weighing the same: predicted over published"
        f" **{f['geometric_mean']:.2f}** (geometric mean), **{f['within_20']:.0%}** within 20 %,"
        f" {f['inside']:.0%} inside our 90 % interval, rank correlation of speed-ups {f['rank_correlation']:.2f}."
    )
    left, middle, right = st.columns(3)
    papers = left.multiselect("Papers", sorted(set(table["paper"])), key="v.paper", bind="query-params")
    status = middle.multiselect("Status", sorted(set(table["status"])), ["judged"], key="v.status")
    misses = right.toggle("Only what is off by more than 20 %", key="v.misses", bind="query-params")
    shown = table[table["paper"].isin(papers)] if papers else table
    judged = judged[judged["paper"].isin(papers)] if papers else judged
    shown = shown[shown["status"].isin(status)] if status else shown
    shown = shown[(shown["ratio"] - 1.0).abs() > 0.2] if misses else shown
    marks = [
        {"x": r["published"], "y": r["predicted"], "series": r["paper"], "told": f"{r['id']}, {r['metric']}"}
        for r in judged.to_dict("records")
        if r["predicted"] == r["predicted"] and r["predicted"]
    ]
    if marks:
        blocks.chart(
            figures.against(marks, "published", "predicted", legend=bool(papers)),
            f"{len(marks)} published figures against predictions",
            "claims",
            "In SI units of each figure's metric; the band is 20 %.",
        )
    columns = {
        "link": st.column_config.LinkColumn("link", display_text="open"),
        "ratio": st.column_config.NumberColumn("predicted / published", format="%.2f"),
    }
    order = ["id", "paper", "metric", "published", "predicted", "ratio", "inside", "reason", "source", "link"]
    rest = [c for c in shown if c not in order]
    blocks.table(shown[[*order, *rest]], f"{len(shown)} published figures", "claims", columns, height=420)
    st.code("python -m simulator.claims --all", language="bash")


def traffic() -> None:
    """Bytes our kernels were recorded to touch against the simulator's, from the tool's own file."""
    st.caption("Useful bytes and 32-byte sectors of every operand, recorded in Triton's interpreter; no GPU is needed.")
    st.code("python -m sparse_kernels.traffic --json > traffic.json", language="bash")
    upload = st.file_uploader("traffic.json", "json", key="v.traffic", max_upload_size=MOST_UPLOAD_MB)
    if upload is None:
        return
    try:
        found = pd.DataFrame(_traffic_rows(upload.getvalue()))
    except InputError as error:
        st.error(f"{words.plain(upload.name)} cannot be used: {blocks.first_line(error)} Nothing is shown.")
        return
    wrong = found[~found["agrees"].astype(bool)]
    st.markdown(
        f"{len(found)} operands of {found['op'].nunique()} kernels: "
        + (f"**{len(wrong)} disagree**." if len(wrong) else "all agree with the simulator.")
    )
    ops = st.multiselect("Kernels", sorted(set(found["op"])), key="v.ops")
    blocks.table(found[found["op"].isin(ops)] if ops else found, "recorded against predicted bytes", "traffic")


def _traffic_rows(content: bytes) -> list[dict[str, Any]]:
    needed = {"op", "operand", "predicted_bytes", "recorded_bytes", "agrees"}
    try:
        rows = json.loads(content)["rows"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError('it is no JSON object with "rows"') from None
    if not isinstance(rows, list) or not rows or not all(isinstance(r, dict) and needed <= set(r) for r in rows):
        raise InputError(f"its rows need {', '.join(sorted(needed))}")
    return rows


page()
