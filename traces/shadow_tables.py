"""What `python -m traces.shadow evaluate` prints: means over seeds with their spread."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from simulator.base import console

COARSE = (0.3, 0.5, 0.7)


def pick(rows: Sequence[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """Rows whose columns have these values."""
    return [r for r in rows if all(r[k] == v for k, v in wanted.items())]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean, and the standard deviation over seeds where there are several."""
    if not values or any(v != v for v in values):
        return "-"
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def print_tables(rows: Sequence[dict[str, Any]], model: str) -> None:
    """Four tables: by criterion, by other choices, by sparsity, and the threshold and KV methods."""
    first = rows[0]
    console.out(
        f"{model}: dense perplexity {first['dense_perplexity']:.3f} on {first['tokens']} held-out tokens;"
        " x ± s is the mean and standard deviation over seeds\n"
    )
    _by_criterion(rows)
    _by_choice(rows)
    _by_sparsity(rows)
    _others(rows)


def _cells(rows: Sequence[dict[str, Any]]) -> list[str]:
    at = {s: pick(rows, sparsity=s) for s in COARSE}
    half = at[0.5]
    return [
        *(spread([r["perplexity"] for r in at[s]]) for s in COARSE),
        spread([r["agreement"] for r in half], 3),
        spread([r["recall"] for r in half], 3),
        spread([r["rank_correlation"] for r in half], 3),
        spread([r["weight_bytes_share"] for r in half], 3),
        spread([r["flop_share"] for r in half], 3),
    ]


_HEADERS = ("perplexity 30 %", "50 %", "70 %", "agreement 50 %", "recall", "rank corr.", "bytes", "flop")


def _by_criterion(rows: Sequence[dict[str, Any]]) -> None:
    criteria = list(dict.fromkeys(r["criterion"] for r in pick(rows, method="oracle")))
    body = [["random", "-", "layer", *_cells(pick(rows, method="random"))]]
    body.append(["static", "magnitude", "layer", *_cells(pick(rows, method="static", criterion="magnitude"))])
    for method, budget in (
        ("static", "global"),
        ("static", "layer"),
        ("dejavu", "layer"),
        ("shadowllm", "layer"),
        ("shadowllm", "global"),
        ("oracle", "layer"),
        ("oracle", "global"),
    ):
        for criterion in criteria:
            found = pick(rows, method=method, criterion=criterion, targets="layer", budget=budget)
            found = [r for r in found if r["mask"] != "sequence"]
            if found:
                body.append([method, criterion, budget, *_cells(found)])
    console.table(
        "Heads and neurons, one mask per token, targets scaled per layer",
        ["method", "criterion", "budget", *_HEADERS],
        body,
        left=3,
    )


def _by_choice(rows: Sequence[dict[str, Any]]) -> None:
    body = []
    for criterion in ("plainact", "l2norm"):
        for method in ("static", "dejavu", "shadowllm", "oracle"):
            for scale in ("layer", "global"):
                for budget in ("layer", "global"):
                    for mask in ("token", "sequence", "static"):
                        found = pick(rows, criterion=criterion, method=method, targets=scale, budget=budget, mask=mask)
                        if found:
                            body.append([method, criterion, scale, budget, mask, *_cells(found)])
    console.table(
        "Target scale, budget and mask", ["method", "criterion", "targets", "budget", "mask", *_HEADERS], body, left=5
    )


def _by_sparsity(rows: Sequence[dict[str, Any]]) -> None:
    kinds = {
        "random": {"method": "random"},
        "static magnitude": {"method": "static", "criterion": "magnitude"},
        "static plainact": {"method": "static", "criterion": "plainact", "budget": "global", "targets": "layer"},
        "dejavu plainact": {"method": "dejavu", "criterion": "plainact", "targets": "layer", "mask": "token"},
        "shadowllm plainact": {
            "method": "shadowllm",
            "criterion": "plainact",
            "targets": "layer",
            "budget": "global",
            "mask": "token",
        },
        "oracle plainact": {
            "method": "oracle",
            "criterion": "plainact",
            "targets": "layer",
            "budget": "global",
            "mask": "token",
        },
        "teal": {"method": "teal"},
        "cats": {"method": "cats"},
    }
    sparsities = sorted({r["sparsity"] for wanted in kinds.values() for r in pick(rows, **wanted)})
    body = []
    for name, wanted in kinds.items():
        found = pick(rows, **wanted)
        if found:
            body.append([name, *(spread([r["perplexity"] for r in pick(found, sparsity=s)]) for s in sparsities)])
    console.table("Perplexity by sparsity", ["method", *(f"{s:.0%}" for s in sparsities)], body)


def _others(rows: Sequence[dict[str, Any]]) -> None:
    kv = ("streaming_llm", "h2o", "snapkv", "quest", "mustafar")
    body = []
    for method in ("teal", "cats", *kv):
        for r in pick(rows, method=method):
            if method in kv or r["sparsity"] in COARSE:
                body.append(
                    [
                        r["policy"],
                        f"{r['sparsity']:.3f}",
                        f"{r['perplexity']:.3f}",
                        f"{r['agreement']:.3f}",
                        f"{r['weight_bytes_share']:.3f}",
                        f"{r['flop_share']:.3f}",
                    ]
                )
    console.table(
        "Threshold methods (sparsity asked for) and KV methods (share of the KV that is not read, measured)",
        ["policy", "sparsity", "perplexity", "agreement", "weight bytes", "flop"],
        body,
    )
