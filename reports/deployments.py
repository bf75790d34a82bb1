"""A deployment in words and as a table's row."""

from __future__ import annotations

from collections.abc import Sequence

from reports.content import Cell, Column
from reports.served import Row
from reports.text import DASH, num, percent
from simulator.base.console import milliseconds, number
from simulator.base.errors import ShadowlineError
from simulator.results.loss import UNKNOWN, Loss
from simulator.results.loss_lookup import loss_named

FURTHER = {
    "scheduler": "",
    "max_num_batched_tokens": "tokens=",
    "max_num_seqs": "seqs=",
    "dtype": "",
    "router": "",
    "tp": "tp=",
    "pp": "pp=",
    "prefill_replicas": "prefill=",
}
"""What is said of runs whose policy, fleet and rate are the same, in this order."""


def keeps(row: Row) -> bool:
    """Whether a run keeps what was promised; where nothing was, whether its queue does not only grow."""
    if row["meets_slo"] is not None:
        return bool(row["meets_slo"])
    return row["status"] != "OVERLOADED"


def fleet(row: Row) -> str:
    """``6 x (2 x b200), dense`` or ``1 x h100-sxm, dense``."""
    each = row["tp"] * row["pp"]
    replicas = row["replicas"] + row["prefill_replicas"]
    device = f"{each} x {row['device']}"
    text = f"{replicas} x ({device})" if replicas > 1 and each > 1 else f"{row['gpus']} x {row['device']}"
    return f"{text}, {row['policy']}"


def named(row: Row) -> str:
    """`fleet`, its policy with its loss of quality."""
    return fleet(row) if row["policy"] == "dense" else f"{fleet(row)} ({loss(row['model'], row['policy']).short})"


def loss(model: str, policy: str) -> Loss:
    """Loss of quality as published; a model that is not at hand has none that is known."""
    try:
        return loss_named(model, policy)
    except ShadowlineError:
        return UNKNOWN


def labels(rows: Sequence[Row]) -> list[str]:
    """What tells the rows apart, in no more words than that takes."""
    first = (
        [r["policy"] for r in rows],
        [fleet(r).removesuffix(f", {r['policy']}") for r in rows],
        ["" if r["rate_per_s"] is None else f"{number(r['rate_per_s'])}/s" for r in rows],
    )
    told: list[list[str]] = [[] for _ in rows]
    for words in first:
        if len(set(words)) > 1:
            for parts, word in zip(told, words, strict=True):
                parts.append(word)
    for key, before in FURTHER.items():
        same = len({tuple(parts) for parts in told}) < len(rows)
        if same and len({r[key] for r in rows}) > 1:
            for parts, r in zip(told, rows, strict=True):
                parts.append(f"{before}{r[key]}")
    out = [", ".join(filter(None, p)) or r["policy"] for p, r in zip(told, rows, strict=True)]
    return [name if out.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(out)]


def columns_of(rows: Sequence[Row]) -> tuple[Column, ...]:
    """Headings of `cells_of`."""
    return (
        Column("policy", term="policy"),
        Column("fleet"),
        Column("formats"),
        Column("scheduler"),
        Column("requests/s", True),
        Column("USD/h", True),
        Column("USD/Mtoken", True),
        Column("TTFT p50 / p99 ms", True, "TTFT"),
        Column("TPOT p50 / p99 ms", True, "TPOT"),
        Column("KV used", True, "KV cache"),
        Column("basis", term="basis"),
    )


def cells_of(row: Row) -> tuple[Cell, ...]:
    """A deployment as a table's row."""

    def pair(metric: str) -> Cell:
        if row[f"{metric}_p99_s"] is None:
            return Cell("overloaded" if row["status"] == "OVERLOADED" else DASH, "")
        both = f"{milliseconds(row[f'{metric}_p50_s'])} / {milliseconds(row[f'{metric}_p99_s'])}"
        return Cell(both, row[f"{metric}_p99_s"])

    return (
        Cell(row["policy"]),
        Cell(fleet(row).removesuffix(f", {row['policy']}")),
        Cell(row["dtype"]),
        Cell(f"{row['scheduler']}, {row['max_num_batched_tokens']:,.0f}"),
        num(row["rate_per_s"]),
        num(row["usd_per_h"]),
        num(row["usd_per_mtoken"]),
        pair("ttft"),
        pair("tpot"),
        percent(row["kv_share_mean"]),
        Cell(row["basis"].lower()),
    )
