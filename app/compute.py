"""What pages ask the simulator, remembered by the text of the question and the content behind its names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from simulator.api import Grid, Prediction, Scenario, ShadowlineError, predict
from simulator.scenario.catalogue import CATALOGUE

if TYPE_CHECKING:
    from simulator.results.break_even import BreakEven
    from simulator.results.choices import Choice
    from simulator.results.summary import Summary

REMEMBERED = 256
"""Answers kept per function."""


def predicted(scenario: Scenario) -> Prediction:
    """`simulator.results.prediction.predict`, remembered."""
    return _predicted(scenario.to_json(), CATALOGUE.content(scenario))


@st.cache_resource(max_entries=REMEMBERED, show_spinner=False)
def _predicted(text: str, content: str) -> Prediction:
    return predict(Scenario.from_json(text))


def dense_of(scenario: Scenario) -> Scenario:
    """The same scenario without policies."""
    return scenario.dense.model_copy(update={"trace": "", "trace_transfer": False})


def over_load(scenario: Scenario) -> list[BreakEven]:
    """`simulator.results.break_even.over_load`, remembered."""
    return _over_load(scenario.to_json(), CATALOGUE.content(scenario))


@st.cache_resource(max_entries=REMEMBERED, show_spinner=False)
def _over_load(text: str, content: str) -> list[BreakEven]:
    from simulator.results.break_even import over_load

    return over_load(Scenario.from_json(text))


def frame(prediction: Prediction) -> pd.DataFrame:
    """The prediction's row as a table of one line."""
    return pd.DataFrame([prediction.row])


@dataclass(frozen=True, eq=False)
class Swept:
    """Rows of a grid and what they say together."""

    rows: pd.DataFrame
    summary: Summary


def swept(grid: Grid) -> Swept:
    """`simulator.results.swept.sweep`, remembered."""
    from simulator.results.swept import plan_of

    return _swept(json.dumps(plan_of([grid]), sort_keys=True), grid)


@st.cache_resource(max_entries=32, show_spinner="Sweeping ...")
def _swept(text: str, _grid: Grid) -> Swept:
    from simulator.api import sweep

    found = sweep(_grid)
    return Swept(found.to_pandas(), found.summary)


def report(grid: Grid, command: str, kind: str) -> bytes:
    """Report on a sweep, 'html' or 'pdf', as ``python -m reports.build`` makes it."""
    import tempfile
    from pathlib import Path

    from reports import html, pdf
    from reports.sweep import compose
    from simulator.results.swept import write

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "sweep.parquet"
        write([grid], path, command=command, quiet=True)
        whole = compose(path, None, None)
    return html.render(whole) if kind == "html" else pdf.render(whole)


@dataclass(frozen=True)
class KnownLosses:
    """Policies whose loss on a model is known, those that cannot run here and why, or why there are none."""

    choices: tuple[Choice, ...]
    skipped: dict[str, str]
    problem: str = ""


def known_losses(scenario: Scenario, most: float) -> KnownLosses:
    """`simulator.results.choices.choices`, remembered."""
    dense = dense_of(scenario)
    return _known_losses(dense.to_json(), most, CATALOGUE.content(dense))


@st.cache_resource(max_entries=64, show_spinner="Looking up losses of quality ...")
def _known_losses(text: str, most: float, content: str) -> KnownLosses:
    from simulator.results.choices import choices

    try:
        found, skipped = choices(Scenario.from_json(text), most)
    except ShadowlineError as error:
        return KnownLosses((), {}, error.message)
    return KnownLosses(tuple(found), skipped)


def parquet(table: pd.DataFrame, metadata: dict[str, str]) -> bytes:
    """Parquet with units and meanings of the sweep's columns in its schema."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    from simulator.results.columns import COLUMNS

    arrow = pa.Table.from_pandas(table, preserve_index=False)
    fields: list[Any] = []
    for field in arrow.schema:
        column = COLUMNS.get(field.name)
        told = {"unit": column.unit, "meaning": column.meaning} if column else None
        fields.append(field.with_metadata(told) if told else field)
    schema = pa.schema(fields, metadata=metadata)
    out = io.BytesIO()
    pq.write_table(arrow.cast(schema), out, compression="zstd")
    return out.getvalue()
