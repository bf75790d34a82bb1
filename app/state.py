"""The scenario all pages share: its widgets' keys are the fields of `Scenario`, and so are the URL's parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

import streamlit as st

from simulator.api import Scenario, ShadowlineError
from simulator.base.errors import suggest
from simulator.inference.group import group_of
from simulator.model import hub
from simulator.scenario.fields import FIELDS

EXAMPLE = Scenario.of(
    model="llama-3-8b", device="h100-sxm", policy="teal(keep=0.5)", prompt_tokens=2048, output_tokens=256
)
"""What a visitor without a link sees."""
BASELINE = "baseline"
MOST_LINK = 4000
"""Characters of one parameter of a link."""


def open_link() -> None:
    """Take the scenario from the URL, once per session; what cannot be used is told and replaced."""
    if "good" in st.session_state:
        return
    raw = {key: st.query_params.get_all(key)[-1] for key in st.query_params}
    mine = {k: v for k, v in raw.items() if k in FIELDS}
    values, notes = read_link(mine) if mine else (EXAMPLE.model_dump(), [])
    found = Scenario.of(**values)
    pinned, more = _read_baseline(raw.get(BASELINE, ""))
    others = {k: v for k, v in raw.items() if k not in FIELDS and not (k == BASELINE and pinned is None)}
    notes += [n for k in others if (n := _unknown(k))]
    # A whole number's widget would take an endless one from the URL and fail.
    for key in [k for k, v in others.items() if k in _page_parameters() and _endless(v)]:
        notes.append(f"The link's {key}={_short(others.pop(key))} is no number and was ignored.")
    st.session_state.update(values, good=found, baseline=pinned, notes=notes + more)
    clean = {**dict(parse_qsl(found.to_query())), **others}
    if clean != raw:
        # A widget takes its value from the URL as the run begins, so the URL is put right first.
        st.query_params.from_dict(clean)
        st.rerun()


def read_link(raw: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Field values of a link and one note for each that was wrong.

    Fields are taken one after another, so a later one that contradicts an earlier one is the one left out.
    """
    values = Scenario.of(model=EXAMPLE.model, device=EXAMPLE.device).model_dump()
    notes = []
    for key in (k for k in FIELDS if k in raw):
        text = raw[key]
        try:
            if len(text) > MOST_LINK:
                raise ShadowlineError(f"has {len(text):,} characters; at most {MOST_LINK:,}")
            if key == "model" and hub.needs_network(text):
                st.session_state.ask_hub = text
                raise ShadowlineError("is not on this machine; fetch its config in the sidebar")
            tried = Scenario.of(**{**values, key: text})
            # Sizes resolve nothing; names do, and only theirs are worth the look-up here.
            if key in ("model", "device", "engine", "trace", "trace_transfer"):
                group_of(tried)
        except ShadowlineError as error:
            used = values[key] if values[key] != "" else "none"
            notes.append(f"The link's {key}={_short(text)}: {_sentence(error)} Used instead: {used}.")
        else:
            values[key] = getattr(tried, key)
    return values, notes


def _unknown(key: str) -> str:
    """Note on a parameter that nobody reads."""
    if key in FIELDS or key == BASELINE or key in _page_parameters():
        return ""
    near = suggest(key, FIELDS)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"The link's parameter {_short(key)} means nothing here and was ignored.{hint}"


def _endless(text: str) -> bool:
    """Whether `text` is a number that is not finite."""
    try:
        return not math.isfinite(float(text))
    except ValueError:
        return False


def _page_parameters() -> set[str]:
    """Parameters that belong to one page; each starts with the page's letter and a dot."""
    return {k for k in st.query_params if k[:2] in ("s.", "p.", "q.", "t.", "v.", "c.")}


def _read_baseline(text: str) -> tuple[Scenario | None, list[str]]:
    if not text:
        return None, []
    try:
        return read_query(text), []
    except ShadowlineError as error:
        return None, [f"The link's baseline cannot be used: {_sentence(error)} There is none pinned now."]


def read_query(text: str) -> Scenario:
    """Scenario of a query string, its names resolved."""
    if len(text) > MOST_LINK:
        raise ShadowlineError(f"has {len(text):,} characters; at most {MOST_LINK:,}")
    model = dict(parse_qsl(text)).get("model", "")
    if model and hub.needs_network(model):
        raise ShadowlineError(f"model {model!r} is not on this machine")
    found = Scenario.from_query(text)
    group_of(found)
    return found


def settle() -> None:
    """Take what the sidebar says as the scenario; where that cannot be, note it and keep the last good one."""
    good = st.session_state.good
    # The browser's back button may empty a list; what stood there stays.
    values = {
        k: getattr(good, k) if (v := st.session_state[k]) is None and known.default is not None else v
        for k, known in FIELDS.items()
    }
    st.session_state.problem = ""
    try:
        found = Scenario.of(**values)
        group_of(found)
    except ShadowlineError as error:
        st.session_state.problem = _sentence(error)
    else:
        if found != good:
            st.session_state.notes = []
        st.session_state.good = found


def settle_again() -> None:
    """Once the widgets are drawn: the browser's back button may have changed what they hold."""
    shown = st.session_state.good
    settle()
    if st.session_state.good != shown:
        st.rerun()


def current() -> Scenario:
    """The scenario all pages show."""
    return st.session_state.good


def baseline() -> Scenario | None:
    """The pinned scenario."""
    return st.session_state.get(BASELINE)


def pin(found: Scenario | None) -> None:
    """Keep `found` as the baseline, in the URL too; None lets it go."""
    st.session_state.baseline = found
    if found is None:
        st.query_params.pop(BASELINE, None)
    else:
        st.query_params[BASELINE] = found.to_query()


def put(**values: Any) -> None:
    """Set fields of the sidebar; for callbacks."""
    st.session_state.update(values)


def _sentence(error: ShadowlineError) -> str:
    """The error without the flag it came from: here it is a widget or a link."""
    text = error.message.split("\n")[0]
    for key in FIELDS:
        text = text.replace(FIELDS[key].flag, key.replace("_", " "))
    return text if text.endswith(("?", ".")) else text + "."


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
