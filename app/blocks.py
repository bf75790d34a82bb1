"""Pieces of pages: notes, badges, metrics, charts with their downloads, commands to copy."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import streamlit as st

from app import compute, figures, state, words
from simulator.api import Grid, Scenario
from simulator.base.drawing import Picture
from simulator.base.glossary import TERMS

BASIS = {"CALIBRATED": "green", "EXTRAPOLATED": "orange", "DATASHEET": "gray"}


def notes() -> None:
    """What was wrong with the link or the last input, and what is used instead."""
    for text in st.session_state.get("notes", []):
        st.warning(words.plain(text), icon=":material/link_off:")
    problem = st.session_state.get("problem")
    if problem:
        st.error(
            f"{words.plain(problem)} Shown instead: the last scenario that could be read.", icon=":material/error:"
        )


def heading(text: str, term: str = "") -> None:
    """Heading of a part of a page, with the glossary's text on `term`."""
    st.markdown(f"##### {text}", help=TERMS[term] if term else None)


def tip(term: str) -> str:
    """Tooltip of a glossary term."""
    return TERMS[term]


def first_line(error: Exception) -> str:
    """An error as one sentence of markdown."""
    text = words.plain(str(error).split("\n")[0])
    return text if text.endswith(("?", ".")) else text + "."


def badge(basis: str | None) -> None:
    """How good the answer is."""
    if basis:
        st.badge(basis, color=BASIS[basis], help=TERMS["basis"])  # type: ignore[arg-type]


def chart(spec: dict[str, Any], alt: str, name: str, caption: str = "") -> None:
    """A Vega-Lite chart with alternative text and its downloads."""
    st.vega_lite_chart(spec=spec, alt=alt, width="stretch", key=f"chart.{name}")
    left = st.container(horizontal=True, vertical_alignment="center")
    if caption:
        left.caption(caption)
    with left.popover("Save chart", type="tertiary", icon=":material/download:"):
        for kind, mime in (("svg", "image/svg+xml"), ("png", "image/png")):
            download(kind.upper(), lambda kind=kind: drawn(spec, kind), f"{name}.{kind}", mime, f"chart.{name}.{kind}")
        table = pd.DataFrame(spec["data"]["values"])
        download("CSV", lambda: csv(table), f"{name}.csv", "text/csv", f"chart.{name}.csv")


def picture(found: Picture | None, missing: str = "This trace has none.") -> None:
    """Curves that the report draws too, under what they say; `missing` where there are none."""
    if found is None:
        st.caption(missing)
        return
    st.markdown(words.plain(found.said) + ".")
    chart(figures.curves(found.drawn), found.alt, found.id, found.caption)


def drawn(spec: Mapping[str, Any], kind: str) -> bytes:
    """The chart as SVG or PNG."""
    import vl_convert

    whole = {"$schema": "https://vega.github.io/schema/vega-lite/v5.json", "background": "white", **spec}
    whole = {**whole, "width": 640} if "width" not in spec else whole
    text = json.dumps(whole)
    if kind == "svg":
        return vl_convert.vegalite_to_svg(text).encode()
    return vl_convert.vegalite_to_png(text, scale=2)


def table(found: pd.DataFrame, alt: str, name: str, columns: Mapping[str, Any] | None = None, **more: Any) -> None:
    """A table that sorts and searches, with its CSV."""
    st.dataframe(found, hide_index=True, alt=alt, column_config=columns, placeholder="–", **more)
    download("CSV", lambda: csv(found), f"{name}.csv", "text/csv", f"table.{name}", type="tertiary")


def csv(table: pd.DataFrame) -> bytes:
    """Comma-separated text."""
    return table.to_csv(index=False, lineterminator="\n").encode()


def download(label: str, data: Callable[[], bytes] | bytes, file: str, mime: str, key: str, **more: Any) -> None:
    """A button whose file is made when it is pressed; the page stays as it is."""
    st.download_button(label, data, file, mime, key=f"get.{key}", on_click="ignore", icon=":material/download:", **more)


def file_name(scenario: Scenario, what: str, suffix: str) -> str:
    """``what_model_device_date.suffix``."""
    names = (part.replace("/", "-").strip("-.") for part in (what, scenario.model, scenario.device))
    return "_".join([*names, f"{datetime.now(UTC):%Y-%m-%d}"]) + "." + suffix


def tables(table: pd.DataFrame, scenario: Scenario, what: str, command: str = "") -> None:
    """CSV and Parquet of a table."""
    with st.container(horizontal=True):
        download("CSV", lambda: csv(table), file_name(scenario, what, "csv"), "text/csv", f"{what}.csv")
        metadata = {"shadowline.command": command or scenario.command, "shadowline.scenario": scenario.to_json()}
        download(
            "Parquet",
            lambda: compute.parquet(table, metadata),
            file_name(scenario, what, "parquet"),
            "application/vnd.apache.parquet",
            f"{what}.parquet",
        )


def reports(grid: Grid, command: str, scenario: Scenario) -> None:
    """The report on a sweep, made when its button is pressed."""
    with st.container(horizontal=True):
        for kind, mime in (("html", "text/html"), ("pdf", "application/pdf")):
            download(
                f"Report as {kind.upper()}",
                lambda kind=kind: compute.report(grid, command, kind),
                file_name(scenario, "report", kind),
                mime,
                f"report.{kind}",
            )


def again(command: str, python: str) -> None:
    """The same answer from a shell and from Python, to copy."""
    heading("The same from a shell or Python")
    shell, code = st.tabs(["Command line", "Python"])
    shell.code(command, language="bash", wrap_lines=True)
    code.code(python, language="python", wrap_lines=True)


def pinned(scenario: Scenario) -> None:
    """Buttons that keep this scenario as the baseline, or let it go."""
    base = state.baseline()
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Pin as baseline",
            on_click=state.pin,
            args=(scenario,),
            icon=":material/push_pin:",
            disabled=base == scenario,
            help="Keep this scenario to compare others with; it travels in the link.",
        )
        if base is not None:
            st.button("Unpin", on_click=state.pin, args=(None,), type="tertiary")
            st.button(
                "Swap",
                on_click=_swap,
                args=(scenario, base),
                type="tertiary",
                help="Make the baseline the scenario, and this one the baseline.",
            )


def _swap(scenario: Scenario, base: Scenario) -> None:
    state.put(**base.model_dump())
    state.pin(scenario)
