"""Methods that need no predictor: thresholds on activations (CATS, TEAL) and the KV methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from traces import kv_quality
from traces.bench import Bench
from traces.blocks import hooked
from traces.masks import gate_thresholded, thresholded
from traces.quality import Score, judge, shares

if TYPE_CHECKING:
    import torch


def threshold_methods(bench: Bench, calibration: torch.Tensor, sparsities: Sequence[float]) -> Iterator[str]:
    """CATS (gated models) and TEAL at thresholds that are quantiles over `calibration` tokens, per layer and matrix."""
    import numpy as np

    sites = ("attn.in", "attn.o", "ffn.in", "ffn.down")
    magnitudes = _magnitudes(bench, calibration, sites)
    gated = bench.parts[0].gated
    for s in sparsities:
        keep = 1.0 - s
        live: dict[str, list[float]] = {}
        limits = {k: float(np.quantile(v, s)) for k, v in magnitudes.items() if k[0] in sites}
        score = judge(bench.model, bench.scene, lambda _, t=limits, r=live: thresholded(bench.parts, t, r))
        mean = {site: sum(v) / len(v) for site, v in live.items()}
        roles = {
            "q": mean["attn.in"],
            "kv": mean["attn.in"],
            "o": mean["attn.o"],
            "ffn_in": mean["ffn.in"],
            "down": mean["ffn.down"],
        }
        _threshold_row(bench, score, "teal", keep, roles)
        yield f"teal {s:g}"
        if gated:
            live = {}
            gates = [float(np.quantile(magnitudes["gate", i], s)) for i in range(len(bench.parts))]
            score = judge(bench.model, bench.scene, lambda _, t=gates, r=live: gate_thresholded(bench.parts, t, r))
            kept = sum(live["ffn.down"]) / len(live["ffn.down"])
            # The gate, half of ffn_in, is computed dense.
            _threshold_row(bench, score, "cats", keep, {"ffn_in": (1.0 + kept) / 2.0, "down": kept})
            yield f"cats {s:g}"


def _threshold_row(bench: Bench, score: Score, method: str, keep: float, roles: dict[str, float]) -> None:
    cost = shares(bench.parts, bench.model, [roles] * len(bench.parts), context=bench.scene.mean_context)
    bench.add(
        score,
        policy=f"{method}(keep={keep:g})",
        method=method,
        sparsity=round(1.0 - keep, 6),
        criterion="magnitude",
        budget="layer",
        mask="token",
        weight_bytes_share=cost.weight_bytes,
        flop_share=cost.flop,
    )


def _magnitudes(bench: Bench, ids: torch.Tensor, sites: Sequence[str]) -> dict[tuple[str, int], Any]:
    import torch

    found: dict[tuple[str, int], Any] = {}

    def keep(key: tuple[str, int], x: torch.Tensor) -> None:
        found[key] = x.abs().float().flatten().cpu().numpy()

    handles = []
    for i, part in enumerate(bench.parts):
        for site in sites:
            handles.append(
                part.site(site)[0].register_forward_pre_hook(lambda _m, args, key=(site, i): keep(key, args[0]))
            )
        handles.append(part.activation.register_forward_hook(lambda _m, _a, out, key=("gate", i): keep(key, out)))
    with hooked(handles), torch.inference_mode():
        bench.model(input_ids=ids, use_cache=False)
    return found


def kv_methods(bench: Bench, sparsities: Sequence[float]) -> Iterator[str]:
    """StreamingLLM, H2O, SnapKV, Quest and Mustafar.

    Budgets are shares of the mean context, of the prompt for SnapKV (it keeps what is generated), of a head's
    elements for Mustafar; Quest's first two layers are dense. The sparsity written is the share not read.
    """
    seen: set[str] = set()
    for s in sparsities:
        for method in kv_quality.METHODS:
            text, options, dense_layers = _kv_setting(bench, method, s)
            if text in seen:
                continue
            seen.add(text)
            read: list[float] = []
            score = judge(
                bench.model,
                bench.scene,
                lambda _, m=method, o=options, d=dense_layers, r=read: kv_quality.attending(
                    bench.model, m, bench.scene.prompt, r, dense_layers=d, **o
                ),
                whole=True,
            )
            share = sum(read) / len(read)
            cost = shares(
                bench.parts,
                bench.model,
                [{}] * len(bench.parts),
                context=bench.scene.mean_context,
                # Mustafar multiplies all elements again once they are unpacked.
                attention=1.0 if method == "mustafar" else share,
            )
            bench.add(
                score,
                policy=text,
                method=method,
                sparsity=round(1.0 - share, 6),
                mask="token",
                weight_bytes_share=cost.weight_bytes,
                flop_share=cost.flop,
            )
            yield f"{method} {s:g}"


def _kv_setting(bench: Bench, method: str, sparsity: float) -> tuple[str, dict[str, Any], int]:
    """Policy, options and dense layers of a KV method at a nominal sparsity."""
    if method == "mustafar":
        keep = round(1.0 - sparsity, 6)
        return f"mustafar(keep={keep:g})", {"keep": keep}, 0
    tokens = bench.scene.prompt if method == "snapkv" else bench.scene.mean_context
    budget = max(8, round((1.0 - sparsity) * tokens / 8.0) * 8)
    if method == "streaming_llm":
        return f"streaming_llm(window={budget - 4},sinks=4)", {"budget": budget}, 0
    if method == "snapkv":
        observe = min(16, budget // 2)
        return (f"snapkv(budget={budget},observe={observe})", {"budget": budget, "observe": observe}, 0)
    if method == "quest":
        budget = max(32, round(budget / 16) * 16)
        return f"quest(budget={budget})", {"budget": budget}, min(2, len(bench.parts) - 1)
    return f"h2o(budget={budget})", {"budget": budget}, 0
