"""Charts and tables of a served fleet and of a plan."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from app import blocks, figures, words
from reports import load
from reports.deployments import fleet, keeps
from reports.served import Row, Served


def _table(rows: list[Row], alt: str, name: str) -> None:
    def pair(row: Row, metric: str) -> list[float | None]:
        return [None if (v := row[f"{metric}_{q}_s"]) is None else 1e3 * v for q in ("p50", "p99")]

    found = pd.DataFrame(
        [
            [
                r["policy"],
                fleet(r).removesuffix(f", {r['policy']}"),
                r["rate_per_s"],
                r["status"].lower(),
                keeps(r),
                r["usd_per_h"],
                r["usd_per_mtoken"],
                *pair(r, "ttft"),
                *pair(r, "tpot"),
                *pair(r, "e2e"),
                r["goodput_per_s"],
                100.0 * r["kv_share_mean"],
                r["preemptions"],
            ]
            for r in rows
        ],
        columns=[
            "policy",
            "fleet",
            "requests/s",
            "status",
            "keeps",
            "$/h",
            "$/M tokens",
            "TTFT p50 ms",
            "TTFT p99 ms",
            "TPOT p50 ms",
            "TPOT p99 ms",
            "E2E p50 ms",
            "E2E p99 ms",
            "goodput/s",
            "KV %",
            "preempted",
        ],
    )
    number = st.column_config.NumberColumn
    shown = {c: number(c, format="%.3g") for c in found.columns if c.endswith(("/s", "tokens", "%")) or " p" in c}
    blocks.table(found, alt, name, {**shown, "$/h": number("$/h", format="%.2f")})


def runs(served: Served, best: Row | None) -> None:
    """Latencies of every run against the promises, then queue and KV cache over time."""
    _table(list(served.rows), "latency, load and cost of every run", "serving-runs")
    for keys, draw in ((("ttft", "tpot"), load.distribution), (("waiting", "kv_share"), load.over_time)):
        for column, key in zip(st.columns(2), keys, strict=True):
            with column:
                found = draw(served, key, best)
                blocks.heading(found.title if found else load.NAMES[key], load.NAMES.get(key, ""))
                blocks.picture(found, "Every run is overloaded: percentiles would measure how long the traffic is.")


def planned(served: Served) -> None:
    """Deployments that keep the promises, what each costs, and what starts the first."""
    assert served.search is not None
    if served.rows:
        left, right = st.columns(2)
        for column, metric in ((left, "ttft"), (right, "tpot")):
            rows = [
                {
                    "x": 1e3 * r[f"{metric}_p99_s"],
                    "y": r["usd_per_h"],
                    "series": r["policy"],
                    "name": fleet(r),
                    "told": f"{r['usd_per_h']:.2f} $/h",
                    "good": "meets",
                }
                for r in served.rows
                if r[f"{metric}_p99_s"]
            ]
            promise = next((p for p in served.slo if (p.metric, p.statistic) == (metric, "p99")), None)
            if rows:
                with column:
                    blocks.heading(f"Rent against {metric.upper()} p99", metric.upper())
                    blocks.chart(
                        figures.choices(
                            rows,
                            f"{metric.upper()} p99 [ms]",
                            "$ per hour",
                            None if promise is None else 1e3 * promise.limit_s,
                        ),
                        f"rent against {metric.upper()} p99 of {len(rows)} deployments",
                        f"plan-{metric}",
                    )
        blocks.heading("Deployments that keep the promises")
        _table(list(served.rows), "deployments that keep the promises", "plan-rows")
        if len(served.search.by_policy) > 1:
            blocks.heading("What each policy costs")
            table = pd.DataFrame(served.search.by_policy)
            table["usd_per_h"] = table["usd_per_h"].round(2)
            table["simulated"] = np.where(table["simulated"], "simulated", "at least")
            table.columns = ["policy", "deployment", "$/h", "how sure"]
            blocks.table(table.sort_values("$/h"), "what each policy costs", "plan-policies")
        starts = next((r for r in served.rows if r.get("launch")), None)
        if starts is not None:
            blocks.heading(f"One replica of {fleet(starts)} in vLLM")
            st.code(starts["launch"], language="bash", wrap_lines=True)
    if served.search.rejected:
        with st.expander("Left out in closed form"):
            for kind, (count, one) in served.search.rejected.items():
                st.markdown(f"- {count} x {words.plain(kind)}, e.g. {words.plain(one)}")
