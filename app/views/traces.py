"""What a real model's sparsity looks like: by layer, over a batch, over the context, and what it costs in quality."""

from __future__ import annotations

from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from app import blocks, own, state, words
from simulator.api import ShadowlineError
from simulator.scenario.catalogue import CATALOGUE
from simulator.trace import Trace, picked, pictures, read_manifest


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
    show(trace)
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
    st.markdown(words.plain(picked.answer(trace)))
    st.caption(words.plain(picked.facts(trace)))
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


def show(trace: Trace) -> None:
    """Zeros, unions, attention and quality; the pictures are those of the report."""
    blocks.heading("Exact zeros by layer", "sparsity")
    blocks.picture(pictures.zeros(trace))
    union(trace)
    blocks.heading("Where attention goes", "attention mass")
    blocks.picture(pictures.mass(trace))
    with st.expander("Layers, use of neurons, keys and values"):
        for found in (pictures.depth(trace), pictures.use(trace), pictures.kept(trace), pictures.spectrum(trace)):
            if found is not None:
                blocks.heading(found.title)
                blocks.picture(found)
    quality(trace)


def union(trace: Trace) -> None:
    """What a batch needs together, against the assumption of independent rows."""
    blocks.heading("What a batch needs together", "union density")
    tensors = pictures.measured(trace, "union_density")
    if not tensors:
        st.caption("This trace has none.")
        return
    with st.container(horizontal=True):
        best = tensors.index("ffn.down") if "ffn.down" in tensors else 0
        tensor = st.selectbox("Tensor", tensors, best, key="t.tensor", bind="query-params", width=180)
        exact = trace.curve(0, tensor, "union_density") is not None
        levels: list[float | None] = [None] * exact + list(trace.keeps(0, tensor, "union_density")[::-1])
        start = 0 if exact else len(levels) // 2
        level = st.selectbox("Kept per token", levels, start, key=f"t.keep.{exact}", width=200, format_func=_level)
    blocks.picture(pictures.union(trace, tensor, (level,), level))


def _level(keep: float | None) -> str:
    return "exact non-zeros" if keep is None else f"{1 - keep:.0%} sparsity"


def quality(trace: Trace) -> None:
    """Predictors' recall and the model's quality against sparsity."""
    blocks.heading("Predictors and quality", "perplexity ratio")
    if trace.quality is None:
        st.caption("No predictor was judged in this trace: python -m traces.shadow evaluate --trace DIR adds that.")
        return
    per_sequence = st.toggle("Chosen once per sequence instead of per token", key="t.sequence")
    for column, recall in zip(st.columns(2), (False, True), strict=True):
        with column:
            blocks.picture(pictures.loss(trace, per_sequence=per_sequence, recall=recall))
    table = pd.DataFrame(dict(trace.quality))
    table["ratio"] = table["perplexity"] / table["dense_perplexity"]
    keys = ["method", "criterion", "targets", "budget", "mask", "sparsity"]
    means = table.groupby(keys, as_index=False, dropna=False)[["ratio", "recall", "agreement"]].mean()
    blocks.table(means, "predictors judged in this trace", "trace_quality", height=260)


page()
