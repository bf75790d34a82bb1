"""The catalogues: devices, policies and models with the source of every number, and the words used here."""

from __future__ import annotations

from functools import partial

import pandas as pd
import streamlit as st

from app import blocks, own, state
from reports.provenance import source_list
from simulator.api import ShadowlineError
from simulator.base.glossary import TERMS
from simulator.device.catalogue import list_devices, to_toml
from simulator.devices import row_of as device_row
from simulator.model.hub import list_models
from simulator.models import row_of as model_row
from simulator.policies import POLICIES
from simulator.policies.card import Card
from simulator.scenario.catalogue import CATALOGUE


def page() -> None:
    """One catalogue at a time."""
    st.markdown("#### What is known, and who says so")
    parts = {"devices": devices, "policies": policies, "models": models, "glossary": glossary}
    chosen = st.segmented_control(
        "Catalogue",
        list(parts),
        default="devices",
        key="c.what",
        required=True,
        bind="query-params",
        label_visibility="collapsed",
    )
    parts[chosen]()


def _devices(names: tuple[str, ...]) -> pd.DataFrame:
    rows = [device_row(CATALOGUE.device(name)) for name in names]
    return pd.DataFrame([{**r, "measured": ", ".join(r["measured"])} for r in rows])


def devices() -> None:
    """All devices, one with its sources, and its edited copy."""
    names = list_devices()
    found = _devices(names)
    one = st.column_config.NumberColumn
    columns = {
        "sm_count": one("SMs"),
        "capacity_gb": one("GB", format="%.1f", help=TERMS["GB"]),
        "bandwidth_gb_per_s": one("GB/s", format="%.0f"),
        "tflop16_per_s": one("16-bit TFLOP/s", format="%.0f", help="dense peak at boost clock"),
        "tflop8_per_s": one("fp8 TFLOP/s", format="%.0f"),
        "link_gb_per_s": one("GPU link GB/s", format="%.0f"),
        "power_w": one("W", format="%.0f"),
        "usd_per_h": one("$/h", format="%.2f"),
        "measured": st.column_config.TextColumn("measured families", help="families with fits to measured rows"),
    }
    blocks.table(found, f"{len(names)} devices", "devices", columns, height=300)
    name = st.selectbox(
        "Device in full", names, names.index(_mine(names)), help="Every number with its source and kind."
    )
    device = CATALOGUE.device(name)
    known = source_list()
    facts = pd.DataFrame(
        {
            "number": path,
            "value": s.text,
            "kind": s.kind,
            "source": s.source,
            "link": str(known.get(s.source, {}).get("url", "")) or None,
            "note": s.note,
        }
        for path, s in device.facts()
    )
    blocks.heading(f"{device.name}: {device.vendor} {device.arch}, profile {device.profile_hash}")
    kinds = " ".join(f"{k}: {TERMS[k]}" for k in ("datasheet", "measured", "assumed"))
    columns = {
        "kind": st.column_config.TextColumn("kind", help=kinds),
        "link": st.column_config.LinkColumn("link", display_text="open"),
    }
    blocks.table(facts, f"numbers of {device.name}", f"device_{name}", columns, height=320)
    st.code(f"python -m simulator.devices {name}", language="bash")
    with st.container(horizontal=True):
        text = to_toml(device)
        blocks.download("Profile as TOML", text.encode(), f"{name}.toml", "application/toml", "device.toml")
        st.button("Use in the scenario", on_click=partial(state.put, device=name), disabled=_mine(names) == name)
    _edit(name, facts)
    _upload()


def _mine(names: tuple[str, ...]) -> str:
    device = state.current().device
    return device if device in names else names[0]


def _edit(name: str, facts: pd.DataFrame) -> None:
    """Duplicate and edit."""
    with st.expander("Duplicate and edit"):
        st.caption(
            "Values keep their unit. A copy has no measurements of its own, so it is answered from its architecture's"
            " fits, as EXTRAPOLATED."
        )
        changed = st.data_editor(
            facts[["number", "value"]],
            key=f"c.edit.{name}",
            hide_index=True,
            disabled=["number"],
            height=280,
            alt=f"numbers of {name} to edit",
        )
        values = {
            n: str(new)
            for n, old, new in zip(facts["number"], facts["value"], changed["value"], strict=True)
            if str(new) != old
        }
        new = st.text_input("Name of the copy", f"{name}-mine", max_chars=61, key=f"c.name.{name}")
        try:
            text = own.renamed(CATALOGUE.device(name), new.strip().lower(), values)
        except ShadowlineError as error:
            st.error(f"{blocks.first_line(error)} Nothing was changed.", icon=":material/error:")
            return
        st.caption(f"Changed: {', '.join(f'{k} = {v}' for k, v in values.items()) or 'nothing yet'}.")
        with st.container(horizontal=True):
            st.button("Save and use", on_click=_save, args=(new, text), key="c.save")
            blocks.download("Copy as TOML", text.encode(), f"{new}.toml", "application/toml", "edited.toml")
        own.told("own.device_note")


def _save(name: str, text: str) -> None:
    try:
        path = own.save_device(name, text)
    except ShadowlineError as error:
        st.session_state["own.device_note"] = ("error", f"{error} Nothing was changed.")
        return
    state.put(device=path.stem)
    st.session_state["own.device_note"] = ("success", f"{path.stem} is saved in {path} and in use.")


def _upload() -> None:
    """A profile file of one's own."""
    with st.expander("Upload a profile"):
        upload = st.file_uploader("Device profile (.toml)", "toml", key="c.toml", max_upload_size=1)
        if upload is None:
            return
        name = upload.name.removesuffix(".toml")
        text = upload.getvalue().decode("utf-8", "replace")
        st.button(f"Save and use {name}", on_click=_save_upload, args=(name, text), key="c.save_upload")
        own.told("own.upload_note")


def _save_upload(name: str, text: str) -> None:
    _save(name, text)
    st.session_state["own.upload_note"] = st.session_state.pop("own.device_note")


def policies() -> None:
    """All policies, and one with its parameters, mechanism and limits."""
    columns = ("family", "summary", "citation", "alias_of")
    rows = ({"policy": name, **{k: getattr(POLICIES[name], k) for k in columns}} for name in POLICIES)
    found = pd.DataFrame(rows).sort_values("family", kind="stable")
    families = st.pills("Families", sorted(set(found["family"])), selection_mode="multi", key="c.family")
    if families:
        found = found[found["family"].isin(families)]
    blocks.table(found, f"{len(found)} policies", "policies", height=320)
    chosen = st.selectbox("Policy in full", list(found["policy"]))
    if chosen is None:
        return
    card = Card.of(chosen)
    p = card.policy
    blocks.heading(f"{p.name}: {p.summary}")
    st.caption(p.citation + (f". Same mechanism as {p.alias_of}, other defaults." if p.alias_of else ""))
    st.markdown(card.mechanism.replace("[1]_", "").strip())
    if card.parameters:
        told = [{k: str(getattr(x, k)) for k in ("name", "default", "range", "meaning")} for x in card.parameters]
        st.dataframe(pd.DataFrame(told), hide_index=True, alt=f"parameters of {p.name}")
    if p.kernels():
        known = [{k: getattr(x, k) for k in ("name", "believed", "release", "title")} for x in p.kernels()]
        st.dataframe(pd.DataFrame(known), hide_index=True, alt=f"kernels of {p.name}")
    st.markdown("Goes with: " + "; ".join(f"{k}: {v}" for k, v in card.goes_with.items()) + ".")
    st.markdown(f"Not modelled: {p.not_modelled or 'nothing that is known'}. Software: {card.runs_in}.")
    st.code(f"python -m simulator.policies {p.name}", language="bash")
    st.button("Use in the scenario", on_click=partial(state.put, policy=p.name), key="c.use_policy")


def _models(names: tuple[str, ...]) -> pd.DataFrame:
    return pd.DataFrame([model_row(CATALOGUE.model(name)) for name in names])


def models() -> None:
    """Bundled models as their configs were understood."""
    found = _models(list_models())
    big = st.column_config.NumberColumn(format="compact")
    blocks.table(
        found,
        f"{len(found)} models",
        "models",
        {"params": big, "active_params": big, "source": st.column_config.LinkColumn()},
        height=420,
    )
    st.caption("KV bytes per token in 16 bit, on one GPU.")
    st.code(f"python -m simulator.models {state.current().model}", language="bash")


def glossary() -> None:
    """Every term, once."""
    wanted = st.text_input("Search", key="c.search", placeholder="TPOT, union, ...").casefold()
    terms = {k: v for k, v in TERMS.items() if wanted in f"{k} {v}".casefold()}
    if not terms:
        st.info(f"No term has {wanted!r}.")
    st.markdown("\n".join(f"- **{term}**: {text}" for term, text in terms.items()))


page()
