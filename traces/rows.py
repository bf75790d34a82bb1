"""The collected state as columns of ``curves.parquet`` and ``neurons.parquet``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from simulator.trace import KEEPS, MASSES, ROWS, WHOLE_LAYER
from traces import kv, kv_observer, observer
from traces.means import Means

if TYPE_CHECKING:
    import torch

    from traces.means import State

Columns = dict[str, list[Any]]

_ROOTS = ("kept_error", "quant_error", "head_norm")
"""Their values are roots of a ratio of sums."""


def axes(statistic: str, tokens: int) -> tuple[Sequence[float], Sequence[float]]:
    """Keeps and abscissas of a statistic's grid, for sequences of `tokens`."""
    none = (math.nan,)
    return {
        "union_density": (observer.LEVELS, ROWS),
        "window_density": (observer.LEVELS, observer.WINDOW_SIZES),
        "overlap_previous": (observer.LEVELS, observer.DISTANCES),
        "head_norm": (none, (0.0,)),
        "kept_error": (none, KEEPS),
        "quant_error": (none, kv_observer.BITS),
        "tokens_for_mass": (MASSES, kv_observer.contexts(tokens)),
        "entropy": (none, kv_observer.contexts(tokens)),
        "locality": (none, kv_observer.distances(tokens)),
        "sink_share": (none, kv_observer.SINKS),
        "topk_hit": (kv_observer.SELECTED, kv_observer.CACHES),
    }[statistic]


def curves(state: State, tokens: int) -> Columns:
    """Every curve that has a sample, for each head and for the layer as a whole (head -1).

    Parameters
    ----------
    state : dict of str to Tensor
        Of a `StatisticsObserver` that has seen all batches.
    tokens : int
        Length of a sequence.
    """
    out: Columns = {name: [] for name in ("layer", "head", "tensor", "statistic", "keep", "x", "value", "n")}
    for (layer, tensor, statistic), total, weight, count in Means(state):
        keeps, xs = axes(statistic, tokens)
        root = math.sqrt if statistic in _ROOTS else float
        for head in _heads(total.shape[0]):
            t, w, n = (_of_head(a, head).tolist() for a in (total, weight, count))
            for k, keep in enumerate(keeps):
                for i, x in enumerate(xs):
                    if n[k][i]:
                        value = root(t[k][i] / w[k][i]) if w[k][i] else 0.0
                        _append(out, layer, head, tensor, statistic, keep, x, value, n[k][i])
    _add_magnitudes(out, state)
    _add_spectra(out, state)
    _add_channels(out, state)
    return out


def neurons(state: State) -> Columns:
    """How often each FFN neuron is kept, at every level that was measured."""
    out: Columns = {name: [] for name in ("layer", "neuron", "keep", "frequency")}
    for name in sorted(k for k in state if k.startswith("frequency|") and k.count("|") == 1):
        tokens = state[name + "|tokens"].tolist()
        for level, n in enumerate(tokens):
            if n:
                share = (state[name][level].double() / n).tolist()
                out["layer"] += [int(name.split("|")[1])] * len(share)
                out["neuron"] += range(len(share))
                out["keep"] += [observer.LEVELS[level]] * len(share)
                out["frequency"] += share
    return out


def _heads(count: int) -> range:
    return range(WHOLE_LAYER, count if count > 1 else 0)


def _of_head(grid: torch.Tensor, head: int) -> torch.Tensor:
    return grid.sum(0) if head == WHOLE_LAYER else grid[head]


def _append(
    out: Columns, layer: int, head: int, tensor: str, statistic: str, keep: float, x: float, value: float, n: int
) -> None:
    row = (layer, head, tensor, statistic, float(keep), float(x), value, n)
    for column, item in zip(out.values(), row, strict=True):
        column.append(item)


def _names(state: State, kind: str, parts: int) -> list[tuple[str, list[str]]]:
    names = sorted(k for k in state if k.startswith(kind + "|"))
    split = [(k, k.split("|")[1:]) for k in names]
    return [(k, rest) for k, rest in split if len(rest) == parts]


def _add_magnitudes(out: Columns, state: State) -> None:
    for name, (layer, tensor) in _names(state, "quantile", 2):
        zeros, total = state[name.replace("quantile|", "elements|", 1)].tolist()
        if tensor in _WIDE:
            share = zeros / total
            _append(out, int(layer), -1, tensor, "exact_zero", math.nan, 0.0, share, total)
        for x, value in zip(observer.PROBABILITIES, state[name].tolist(), strict=True):
            key = (int(layer), WHOLE_LAYER, tensor, "magnitude_quantile", math.nan)
            _append(out, *key, x, value, total)


def _add_spectra(out: Columns, state: State) -> None:
    for name, (layer, tensor) in _names(state, "moment", 2):
        moment = state[name].cpu()
        n = int(state[name + "|tokens"])
        ranks = kv_observer.ranks(moment.shape[-1])
        energy = kv.rank_energy(moment, ranks)
        # The layer's curve is the mean of its heads', each weighted by its squared norm.
        norm = moment.diagonal(dim1=1, dim2=2).sum(-1)
        whole = (energy * norm[:, None]).sum(0) / norm.sum()
        for head in _heads(len(moment)):
            values = whole if head == WHOLE_LAYER else energy[head]
            for rank, value in zip(ranks, values.tolist(), strict=True):
                key = (int(layer), head, tensor, "singular_energy", math.nan)
                _append(out, *key, rank, value, n)


def _add_channels(out: Columns, state: State) -> None:
    for name, (layer, kind) in _names(state, "channel", 2):
        if kind != "query":
            continue
        key = state[name.replace("|query", "|key")].cpu()
        n = int(state[name.replace("|query", "|tokens")])
        share = kv.channel_share(state[name].cpu(), key, KEEPS)
        for head in _heads(len(share)):
            values = share.mean(0) if head == WHOLE_LAYER else share[head]
            for x, value in zip(KEEPS, values.tolist(), strict=True):
                at = (int(layer), head, "kv.k_cached", "channel_share", math.nan)
                _append(out, *at, x, value, n)


_WIDE = ("ffn.in", "ffn.gate", "ffn.up", "ffn.down", "attn.in", "attn.o")
