"""Targets and prices to the cheapest device, GPU count and policy, from a static sweep."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import axes, blocks, compute, figures, planning, state
from app.planning import Targets
from simulator.api import InputError
from simulator.base.console import number
from simulator.device.catalogue import list_devices, load
from simulator.scenario.grid import policies, whole_numbers

DEVICES = ("a100-sxm-80g", "h100-sxm", "h200", "b200", "l40s", "rtx-4090")


def page() -> None:
    """Targets, the cheapest row that meets them, and what comes close."""
    scenario = state.current()
    st.markdown("#### What is the cheapest way to serve it?")
    st.caption("A static batch: all requests start together. For arrivals and queues go to Serve and plan.")
    targets = _targets()
    with st.expander("Devices, GPUs, policies and prices"):
        start = [d for d in DEVICES if d in list_devices()]
        devices = st.multiselect("Devices", list_devices(), start, key="p.device", bind="query-params")
        tp = st.text_input("Tensor-parallel GPUs", "1,2,4,8", key="p.tp", bind="query-params", max_chars=200)
        batch = st.text_input("Batches", "1:512:x2", key="p.batch", bind="query-params", max_chars=200)
        lines = "\n".join(dict.fromkeys(["dense", scenario.policy]))
        text = st.text_area("Policies, one a line", lines, key="p.policy", max_chars=4000)
        prices = _prices(devices)
    try:
        if not devices:
            raise InputError("choose at least one device")
        grid = axes.grid(
            scenario,
            {
                "device": tuple(devices),
                "tp": whole_numbers(tp, "tensor-parallel GPUs"),
                "batch": whole_numbers(batch, "batches"),
                "policy": policies([t for t in text.splitlines() if t.strip()] or ["dense"]),
            },
        )
    except InputError as error:
        st.error(blocks.first_line(error), icon=":material/error:")
        return
    found = planning.plan(compute.swept(grid).rows, prices, targets)
    _tell(found, targets)
    if not found.empty:
        _draw(found, targets)
        blocks.heading("The best of every device and policy")
        shown = planning.best_of(found, ["device", "policy"])[list(planning.SHOWN)]
        blocks.table(shown, "best deployment of every device and policy", "plan", _columns())
    command = axes.command(grid)
    blocks.again(command, axes.snippet(grid))
    blocks.heading("Take it along")
    blocks.tables(found, scenario, "plan", command)
    blocks.reports(grid, command, scenario)


def _targets() -> Targets:
    def ask(label: str, key: str, term: str) -> float | None:
        return st.number_input(
            label,
            0.001,
            None,
            None,
            key=key,
            bind="query-params",
            help=blocks.tip(term),
            width=210,
            placeholder="no target",
        )

    with st.container(horizontal=True):
        ttft = ask("TTFT at most [ms]", "p.ttft", "TTFT")
        tpot = ask("TPOT at most [ms]", "p.tpot", "TPOT")
        rate = ask("tokens/s at least, all replicas", "p.rate", "tokens/s")
    return Targets(ttft and ttft / 1e3, tpot and tpot / 1e3, rate)


def _prices(devices: list[str]) -> dict[str, float]:
    """List prices, to be edited."""
    table = pd.DataFrame({"device": devices, "$/h per GPU": [load(d).price_usd_per_h.value for d in devices]})
    edited = st.data_editor(
        table,
        hide_index=True,
        disabled=["device"],
        alt="price per GPU-hour of each device",
        key="p.prices." + ",".join(devices),
    )
    return dict(zip(edited["device"], edited["$/h per GPU"].astype(float), strict=True))


def _tell(found: pd.DataFrame, targets: Targets) -> None:
    good = found[found["meets"]] if not found.empty else found
    if found.empty:
        st.error("Nothing fits: more GPUs, a shorter prompt, a smaller dtype or another policy may.")
        return
    if good.empty:
        near = found.iloc[int(found["miss"].argmin())]
        st.warning(
            f"No deployment meets the targets. Nearest: {planning.named(near)}: {planning.told(near)};"
            f" you asked for {targets}.",
            icon=":material/near_me:",
        )
        return
    top = planning.recommended(good)
    hour = (
        f"${number(top['usd_per_h'])} an hour for {int(top['replicas'])} x {int(top['gpus'])} GPUs, "
        if (targets.tokens_per_s)
        else ""
    )
    st.markdown(
        f"##### {planning.named(top)}: {hour}**${number(top['usd_per_mtoken'])}** per million output tokens;"
        f" {planning.told(top)}"
    )
    blocks.badge(top["basis"])
    dense = good[good["policy"] == "dense"]
    if top["policy"] != "dense":
        if dense.empty:
            st.markdown("No dense deployment meets the targets.")
        else:
            saved = 1.0 - top["cost"] / dense.iloc[0]["cost"]
            st.markdown(
                f"That is {saved:.0%} cheaper than the cheapest dense one, {planning.named(dense.iloc[0])}. At its own"
                f" batch: {planning.against_dense(top)}."
            )


def _draw(found: pd.DataFrame, targets: Targets) -> None:
    best = planning.best_of(found, ["device", "tp", "policy"])
    rows = [
        {
            "x": r["tpot_s"] * 1e3,
            "y": r["usd_per_mtoken"],
            "series": r["device"],
            "name": planning.named(r),
            "told": planning.told(r),
            "good": "meets" if r["meets"] else "misses",
        }
        for r in best.to_dict("records")
        if r["tpot_s"] == r["tpot_s"]
    ]
    if not rows:
        return
    limit = None if targets.tpot_s is None else targets.tpot_s * 1e3
    low = min(rows, key=lambda r: r["y"])
    blocks.chart(
        figures.choices(rows, "TPOT [ms]", "$ per M output tokens", limit),
        f"{len(rows)} deployments; the cheapest costs {number(low['y'])} $ per million tokens: {low['name']}",
        "plan",
        "The cheapest batch of every device, GPU count and policy; filled marks meet all targets.",
    )


def _columns() -> dict[str, object]:
    one = st.column_config.NumberColumn
    return {
        "meets": st.column_config.CheckboxColumn("meets"),
        "usd_per_mtoken": one("$/M tokens", format="%.3g"),
        "usd_per_h": one("$/h", format="%.2f"),
        "ttft_ms": one("TTFT ms", format="%.3g"),
        "tpot_ms": one("TPOT ms", format="%.3g"),
        "tokens_per_s": one("tokens/s per replica", format="%.0f"),
    }


page()
