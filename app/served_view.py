"""Charts and tables of a served fleet and of a plan."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from app import blocks, figures, words
from reports.capacity import keeps
from reports.deployments import fleet, labels
from reports.served import Row, Served

MOST_RUNS = 6
SHARES = np.array([1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 93, 95, 96, 97, 98, 99, 99.5, 99.9])
"""Where a run's distribution is read [%]."""


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


def runs(served: Served) -> None:
    """Latencies of every run against the promises, then queue and KV cache over time."""
    names = labels(served.rows)
    _table(list(served.rows), "latency, load and cost of every run", "serving-runs")
    shown = range(min(len(names), MOST_RUNS))
    left, right = st.columns(2)
    for column, metric in ((left, "ttft"), (right, "tpot")):
        rows = []
        for i in shown:
            values = served.requests[i][f"{metric}_s"]
            values = values[np.isfinite(values)]
            if len(values) and served.rows[i]["status"] != "OVERLOADED":
                at = 1e3 * np.quantile(values, SHARES / 100.0)
                rows += [{"x": float(s), "y": float(v), "series": names[i]} for s, v in zip(SHARES, at, strict=True)]
        limit = next((1e3 * p.limit_s for p in served.slo if p.metric == metric), None)
        name = metric.upper()
        with column:
            if rows:
                blocks.heading(f"{name}: what a share of the requests stays below", name)
                blocks.chart(
                    figures.curves(rows, "share of requests [%]", f"{name} [ms]", x_log=False, y_log=True, rule=limit),
                    f"{name} over the share of requests; dashed: the promise",
                    f"serving-{metric}",
                    "Dashed: the promise." if limit is not None else "",
                )
            else:
                st.info("Every run is overloaded: percentiles would measure how long the traffic is.")
    left, right = st.columns(2)
    for column, key, title, scale in (
        (left, "waiting", "requests waiting", 1.0),
        (right, "kv_share", "KV cache in use [%]", 100.0),
    ):
        rows = [
            {"x": float(t), "y": scale * float(v), "series": names[i]}
            for i in shown
            for t, v in zip(served.loads[i]["time_s"], served.loads[i][key], strict=True)
        ]
        with column:
            blocks.heading("The queue over time" if key == "waiting" else "The KV cache over time")
            peak = max(r["y"] for r in rows)
            spec = figures.curves(rows, "time [s]", title, x_log=False)
            spec["layer"][0]["mark"]["point"] = False
            blocks.chart(
                spec, f"{title} over time, at most {peak:.3g}", f"serving-{key}", "Means of 120 equal intervals."
            )


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
