"""What a real model's sparsity looks like: by layer, over a batch, over the context, and what it costs in quality."""

from __future__ import annotations

from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from app import blocks, figures, own, state
from simulator.api import ShadowlineError
from simulator.ops.union import independent_density
from simulator.scenario.catalogue import CATALOGUE
from simulator.trace import TENSORS, Trace, read_manifest


def page() -> None:
    """Choose or upload a trace, then its four pictures."""
    st.markdown("#### How sparse is a real model?")
    folders = _folders()
    _upload()
    if not folders:
        st.info("No trace is here yet: collect one with python -m traces.collect, and upload its files above.")
        return
    wanted = state.current().trace
    names = list(folders)
    start = next((i for i, n in enumerate(names) if str(folders[n]) == wanted), 0)
    name = st.selectbox("Trace", names, start, key="t.trace", bind="query-params")
    try:
        trace = CATALOGUE.trace(str(folders[name]))
    except ShadowlineError as error:
        st.error(f"{blocks.first_line(error)} Nothing is shown.", icon=":material/error:")
        return
    _about(trace)
    by_layer(trace)
    union(trace)
    attention(trace)
    quality(trace)
    blocks.again(
        f"python -m traces.show {trace.path}",
        f"from simulator.trace import read_trace\n\ntrace = read_trace({str(trace.path)!r})\nprint(trace.manifest)",
    )
    table = pd.DataFrame(dict(trace.curves))
    blocks.download("All curves as CSV", lambda: blocks.csv(table), f"{name}.csv", "text/csv", "trace.csv")


def _folders() -> dict[str, Path]:
    """Traces that come with Shadowline, and the visitor's."""
    shipped = Path(str(files("traces"))) / "shipped"
    folders = sorted(m.parent for m in shipped.glob("*/trace/manifest.json"))
    # Models with exact zeros first: they fill the whole page.
    folders.sort(key=lambda f: read_manifest(f)[0].facts.activation != "relu")
    found = {f.parent.name: f for f in folders}
    mine = {f"{m.parent.name} (uploaded)": m.parent for m in sorted(own.traces().glob("*/manifest.json"))}
    chosen = state.current().trace
    if chosen and Path(chosen) not in {*found.values(), *mine.values()}:
        mine[chosen] = Path(chosen)
    return {**found, **mine}


def _upload() -> None:
    with st.expander("Upload a trace"):
        uploads = st.file_uploader(
            "manifest.json, curves.parquet, neurons.parquet and, where there is one, quality.parquet",
            ["json", "parquet"],
            True,
            key="t.files",
            max_upload_size=own.MOST_TRACE_MB,
        )
        if uploads:
            try:
                path = own.save_trace({u.name: u.getvalue() for u in uploads})
            except ShadowlineError as error:
                st.error(
                    f"The upload cannot be used: {blocks.first_line(error)} Shown instead: the trace chosen below.",
                    icon=":material/error:",
                )
            else:
                st.success(f"It is in the list below as {path.name} (uploaded).")


def _about(trace: Trace) -> None:
    m, f = trace.manifest, trace.manifest.facts
    st.markdown(
        f"**{m.model}**, {f.n_layers} layers, {f.activation}; {m.tokens:,} tokens in {m.dtype}, measured {m.created},"
        f" seed {m.seed}."
    )
    st.caption(f"sha256 of the manifest {trace.digest[:12]}; it holds the hash of every table, and all were checked.")
    model = trace.path.parent / "model"
    use: dict[str, Any] = {"trace": str(trace.path)}
    if (model / "config.json").is_file():
        use |= {"model": str(model), "policy": "shadowllm(keep=0.5)", "prompt_tokens": 64, "output_tokens": 32}
    st.button(
        "Use in the scenario",
        on_click=partial(state.put, **use),
        disabled=state.current().trace == str(trace.path),
        help="Policies then take their curves from it; it must fit the model, or be transferred.",
    )


def _values(trace: Trace, tensor: str, statistic: str, keep: float | None = None) -> pd.DataFrame:
    """Rows of one statistic of the layers as a whole."""
    c = trace.curves
    at = (c["tensor"] == tensor) & (c["statistic"] == statistic) & (c["head"] == -1)
    at &= np.isnan(c["keep"]) if keep is None else np.isclose(c["keep"], keep)
    return pd.DataFrame({k: c[k][at] for k in ("layer", "x", "value")})


def _tensors(trace: Trace, statistic: str) -> list[str]:
    c = trace.curves
    there = set(c["tensor"][c["statistic"] == statistic].astype(str))
    return [t for t in TENSORS if t in there]


def by_layer(trace: Trace) -> None:
    """Exact zeros of every tensor, layer by layer."""
    blocks.heading("Exact zeros by layer", "sparsity")
    rows, told = [], []
    for tensor in _tensors(trace, "exact_zero"):
        found = _values(trace, tensor, "exact_zero")
        rows += [
            {"x": int(layer), "y": float(value), "series": tensor}
            for layer, value in zip(found["layer"], found["value"], strict=True)
        ]
        told.append((float(found["value"].mean()), tensor))
    if not rows:
        st.caption("This trace has none.")
        return
    share, tensor = max(told)
    st.markdown(f"Most zeros: **{tensor}**, {share:.0%} on average ({TENSORS[tensor]}).")
    blocks.chart(
        figures.curves(rows, "layer", "share of exact zeros", x_log=False),
        "; ".join(f"{t}: mean {s:.0%}" for s, t in told),
        "exact_zeros",
    )


def union(trace: Trace) -> None:
    """What a batch needs together, against the assumption of independent rows."""
    blocks.heading("What a batch needs together", "union density")
    with st.container(horizontal=True):
        tensors = _tensors(trace, "union_density")
        if not tensors:
            st.caption("This trace has none.")
            return
        best = tensors.index("ffn.down") if "ffn.down" in tensors else 0
        tensor = st.selectbox("Tensor", tensors, best, key="t.tensor", bind="query-params", width=180)
        keeps = trace.keeps(0, tensor, "union_density")
        exact = trace.curve(0, tensor, "union_density") is not None
        options = ["exact non-zeros"] * exact + [f"{1 - k:.0%} sparsity" for k in keeps[::-1]]
        start = 0 if exact else len(options) // 2
        chosen = st.selectbox("Kept per token", options, start, key=f"t.keep.{exact}", width=200)
    keep = None if chosen == "exact non-zeros" else keeps[::-1][options.index(chosen) - exact]
    found = _values(trace, tensor, "union_density", keep)
    layers = sorted(set(found["layer"]))
    shown = sorted({layers[0], layers[len(layers) // 2], layers[-1]})
    rows = [{"x": r.x, "y": r.value, "series": f"layer {r.layer}"} for r in found.itertuples() if r.layer in shown]
    mean = found.groupby("x")["value"].mean()
    one = float(mean.iloc[0])
    rows += [
        {"x": x, "y": float(independent_density(one, x)), "series": "were rows independent"}
        for x in mean.index.to_numpy(float)
    ]
    last = float(mean.index[-1])
    st.markdown(
        f"One token needs {one:.0%} of **{tensor}**; {last:.0f} rows together need {mean.iloc[-1]:.0%}"
        f" ({independent_density(one, last):.0%} were they independent)."
    )
    blocks.chart(
        figures.curves(rows, "rows of the batch", "share needed by any"),
        f"union density of {tensor}: {one:.0%} at one row, {mean.iloc[-1]:.0%} at {last:.0f}",
        "union",
        "First, middle and last layer, measured; the batch reads this share of the weights.",
    )


def attention(trace: Trace) -> None:
    """How few tokens hold the attention, as the context grows."""
    blocks.heading("Where attention goes", "attention mass")
    keeps = sorted({float(k) for k in trace.curves["keep"][trace.curves["statistic"] == "tokens_for_mass"]})
    rows = []
    for keep in keeps:
        mean = _all_heads(trace, "tokens_for_mass", keep)
        rows += [
            {"x": x, "y": y, "series": f"{keep:.0%} of the attention"}
            for x, y in zip(mean.index.to_numpy(float), mean.to_numpy(float), strict=True)
        ]
    if not rows:
        st.caption("This trace has none.")
        return
    last = [r for r in rows if r["x"] == max(q["x"] for q in rows)]
    told = "; ".join(f"{r['series']} lies on {r['y']:.0%} of the tokens" for r in last)
    st.markdown(f"At a context of {last[0]['x']:,.0f} tokens {told}.")
    blocks.chart(
        figures.curves(rows, "context [tokens]", "share of the tokens needed"),
        told,
        "attention_mass",
        "Mean over layers and heads.",
    )


def _all_heads(trace: Trace, statistic: str, keep: float) -> pd.Series:
    c = trace.curves
    at = (c["statistic"] == statistic) & np.isclose(c["keep"], keep)
    return pd.DataFrame({"x": c["x"][at], "value": c["value"][at]}).groupby("x")["value"].mean()


def quality(trace: Trace) -> None:
    """Predictors' recall and the model's quality against sparsity."""
    blocks.heading("Predictors and quality", "perplexity ratio")
    if trace.quality is None:
        st.caption("No predictor was judged in this trace: python -m traces.shadow evaluate --trace DIR adds that.")
        return
    table = pd.DataFrame(dict(trace.quality))
    table["ratio"] = table["perplexity"] / table["dense_perplexity"]
    keys = ["method", "criterion", "targets", "budget", "mask"]
    for k in keys:
        table[k] = table[k].fillna("").astype(str)
    masks = sorted(set(table["mask"]))
    mask = st.segmented_control("Mask", masks, default=masks[-1], key="t.mask", required=True)
    means = (
        table[table["mask"] == mask]
        .groupby([*keys, "sparsity"], as_index=False)[["ratio", "recall", "agreement"]]
        .mean()
    )
    # Of the variants of a method the best at the middle of the sparsities is drawn; the table has all.
    best = means.sort_values("ratio").drop_duplicates(["method", "sparsity"])
    left, right = st.columns(2)
    for column, key, title in ((left, "ratio", "perplexity over dense"), (right, "recall", "recall of the kept units")):
        rows = [
            {"x": 100 * float(r["sparsity"]), "y": float(r[key]), "series": r["method"]}
            for r in best.sort_values("sparsity").to_dict("records")
            if r[key] == r[key]
        ]
        if rows:
            with column:
                blocks.chart(
                    figures.curves(rows, "sparsity [%]", title, x_log=False, y_log=key == "ratio"),
                    f"{title} against sparsity for {', '.join(dict.fromkeys(r['series'] for r in rows))}",
                    f"trace_{key}",
                    "Mean over seeds; the best variant of every method.",
                )
    blocks.table(means, "predictors judged in this trace", "trace_quality", height=260)


page()
