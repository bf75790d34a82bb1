"""Methods that need no predictor: thresholds on activations (CATS, TEAL) and the KV methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import TYPE_CHECKING, Any

from traces import kv_quality
from traces.bench import Bench, Step
from traces.blocks import hooked
from traces.masks import gate_thresholded, thresholded
from traces.scoring import Score, judge, shares

if TYPE_CHECKING:
    import torch

Thresholds = dict[tuple[str, int], dict[float, float]]
"""By site and layer, by sparsity."""
_SITES = ("attn.in", "attn.o", "ffn.in", "ffn.down")


def threshold_methods(bench: Bench, calibration: torch.Tensor, sparsities: Sequence[float]) -> Iterator[Step]:
    """CATS (gated models) and TEAL at thresholds that are quantiles over `calibration` tokens, per layer and matrix."""
    thresholds = cache(lambda: _quantiles(bench, calibration, sparsities))
    methods = {"teal": _teal} | ({"cats": _cats} if bench.parts[0].gated else {})
    for s in sparsities:
        for name, measure in methods.items():
            yield Step(name, f"{name} {s:g}", lambda m=measure, s=s: m(bench, thresholds(), s))


def _teal(bench: Bench, thresholds: Thresholds, sparsity: float) -> None:
    live: dict[str, list[float]] = {}
    limits = {k: v[sparsity] for k, v in thresholds.items() if k[0] in _SITES}
    score = judge(bench.model, bench.scene, lambda _: thresholded(bench.parts, limits, live))
    mean = {site: sum(v) / len(v) for site, v in live.items()}
    roles = {
        "q": mean["attn.in"],
        "kv": mean["attn.in"],
        "o": mean["attn.o"],
        "ffn_in": mean["ffn.in"],
        "down": mean["ffn.down"],
    }
    _threshold_row(bench, score, "teal", 1.0 - sparsity, roles)


def _cats(bench: Bench, thresholds: Thresholds, sparsity: float) -> None:
    live: dict[str, list[float]] = {}
    gates = [thresholds["gate", i][sparsity] for i in range(len(bench.parts))]
    score = judge(bench.model, bench.scene, lambda _: gate_thresholded(bench.parts, gates, live))
    kept = sum(live["ffn.down"]) / len(live["ffn.down"])
    # The gate, half of ffn_in, is computed dense.
    _threshold_row(bench, score, "cats", 1.0 - sparsity, {"ffn_in": (1.0 + kept) / 2.0, "down": kept})


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


def _quantiles(bench: Bench, ids: torch.Tensor, shares: Sequence[float]) -> Thresholds:
    """Magnitudes below which a share of each site's inputs, and of each gate, lies on `ids`."""
    import numpy as np
    import torch

    found: Thresholds = {}

    def keep(key: tuple[str, int], x: torch.Tensor) -> None:
        limits = np.quantile(x.abs().float().flatten().cpu().numpy(), shares)
        found[key] = dict(zip(shares, map(float, limits), strict=True))

    handles = []
    for i, part in enumerate(bench.parts):
        for site in _SITES:
            handles.append(
                part.site(site)[0].register_forward_pre_hook(lambda _m, args, key=(site, i): keep(key, args[0]))
            )
        handles.append(part.activation.register_forward_hook(lambda _m, _a, out, key=("gate", i): keep(key, out)))
    with hooked(handles), torch.inference_mode():
        # Without the head: the logits of all calibration tokens are the largest tensor of the pass.
        bench.model.base_model(input_ids=ids, use_cache=False)
    return found


def kv_methods(bench: Bench, sparsities: Sequence[float]) -> Iterator[Step]:
    """StreamingLLM, H2O, SnapKV, Quest and Mustafar.

    Budgets are shares of the mean context, of the prompt for SnapKV (it keeps what is generated), of a head's
    elements for Mustafar; Quest's first two layers are dense. The sparsity written is the share not read.
    """
    seen: set[str] = set()
    for s in sparsities:
        for method in kv_quality.METHODS:
            text, options, dense_layers = _kv_setting(bench, method, s)
            if text not in seen:
                seen.add(text)
                at = method, text, options, dense_layers
                yield Step(method, f"{method} {s:g}", lambda at=at: _kv_method(bench, *at))


def _kv_method(bench: Bench, method: str, policy: str, options: dict[str, Any], dense_layers: int) -> None:
    read: list[float] = []
    before = bench.looking if method in kv_quality.LOOK_BACK else None

    def at(number: int) -> AbstractContextManager[None]:
        look = None if before is None else before[number].__getitem__
        return kv_quality.attending(
            bench.model, method, bench.scene.prompt, read, dense_layers=dense_layers, before=look, **options
        )

    score = judge(bench.model, bench.scene, at)
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
        policy=policy,
        method=method,
        sparsity=round(1.0 - share, 6),
        mask="token",
        weight_bytes_share=cost.weight_bytes,
        flop_share=cost.flop,
    )


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
