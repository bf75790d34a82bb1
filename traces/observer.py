"""Turns activations into a trace's statistics as they stream by.

Calibration batches set the thresholds; every later batch is measured against them, as CATS and TEAL
do, so that no threshold is judged on the tokens it was set on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from simulator.base.errors import InputError
from simulator.trace import KEEPS, ROWS
from traces import magnitudes, sets
from traces.kv_observer import KvObserver
from traces.means import ALL, WHOLE, Means
from traces.sampling import ALL_EVERY, GROUPS, STRIDE, sample

if TYPE_CHECKING:
    from traces.hooks import Experts
    from traces.means import State

LEVELS = (math.nan, *KEEPS)
"""Levels of the sets: the exact non-zeros, then the shares kept."""
WINDOW_SIZES = (1, 2, 4, 8, 16, 32)
DISTANCES = (1, 4, 16)
PROBABILITIES = (0.01, *sorted(round(1.0 - k, 2) for k in KEEPS), 0.99)
FREQUENCY_KEEPS = (0.1, 0.3, 0.5, 0.7, 0.9)
ZERO_SHARE = 0.01
"""From this share of exact zeros on, the non-zeros are a level of their own (assumed)."""


@dataclass(frozen=True)
class Levels:
    """Levels one tensor is measured at.

    Parameters
    ----------
    at : list of int
        Indices into `LEVELS`.
    limits : Tensor, shape (distinct,), float32
        Thresholds without repeats: every keep above the share of non-zeros has the same.
    pick : list of int
        For each of `at`, its place in `limits`.
    """

    at: list[int]
    limits: torch.Tensor
    pick: list[int]


class StatisticsObserver(KvObserver):
    """Observer whose whole memory is `state`, a dictionary of tensors that can be saved and restored.

    Parameters
    ----------
    state : dict of str to Tensor
    heads, kv_heads : int
        Query and KV heads of a layer.
    seed : int
    """

    def __init__(self, state: State, *, heads: int, kv_heads: int, seed: int):
        self.state = state
        self.means = Means(state)
        self.heads = heads
        self.kv_heads = kv_heads
        self.seed = seed
        self.is_calibrating = self.reads_all = True
        self._levels: dict[tuple[int, str], Levels] = {}

    def begin(self, number: int, batch: int, tokens: int, *, calibration: int) -> None:
        """Say which batch comes next; the first `calibration` ones set thresholds."""
        self.is_calibrating = number < calibration
        self.reads_all = self.is_calibrating or (number - calibration) % ALL_EVERY == 0
        self.now = sample(self.seed, number, batch, tokens)

    def calibrated(self) -> None:
        """Turn the histograms into quantiles and thresholds, and drop them."""
        for name in sorted(k for k in self.state if k.startswith("histogram|")):
            counts = self.state.pop(name)
            stem = name.removeprefix("histogram|")
            if int(counts[magnitudes.INFINITE :].sum()):
                raise InputError(
                    f"layer and tensor {stem.replace('|', ' ')} hold infinities or NaN; use --dtype bf16 or fp32",
                    where="--dtype",
                )
            probabilities = torch.tensor(PROBABILITIES, dtype=torch.float64, device=counts.device)
            keeps = torch.tensor(KEEPS, dtype=torch.float64, device=counts.device)
            self.state[f"quantile|{stem}"] = magnitudes.quantile(counts, probabilities)
            self.state[f"threshold|{stem}"] = magnitudes.thresholds(counts, keeps)
            self.state[f"elements|{stem}"] = torch.stack([counts[0], counts.sum()])

    def activation(self, layer: int, tensor: str, x: torch.Tensor) -> None:
        """Count magnitudes, or measure sets; `attn.o` also gives the heads."""
        if self.is_calibrating:
            strided = x[:, self.now.offset :: STRIDE]
            self._count(layer, tensor, strided)
            if tensor == "attn.o":
                self._count(layer, "attn.head", self._head_norms(strided))
            return
        rows = self.now.union_rows(x)
        windows = self.now.windows(x) if self.reads_all else None
        self._sets(layer, tensor, rows, windows)
        if tensor == "ffn.down":
            self._frequencies(layer, x)
        if tensor == "attn.o":
            rows = self._head_norms(rows)
            windows = None if windows is None else self._head_norms(windows)
            self._sets(layer, "attn.head", rows, windows)
            square = (rows.double() ** 2).flatten(0, 1).sum(0)[:, None, None]
            n = rows.shape[0] * rows.shape[1]
            shape = (self.heads, 1, 1)
            self.means.add((layer, "attn.head", "head_norm"), shape, WHOLE, square, n, n)
            if self.kv_heads < self.heads:
                windows = None if windows is None else self._group_maxima(windows)
                self._sets(layer, "attn.kv_head", self._group_maxima(rows), windows)

    def experts(self, layer: int, module: Experts, hidden: torch.Tensor, chosen: torch.Tensor) -> None:
        """Routed experts as units; magnitudes inside them are only counted, on calibration tokens."""
        self.activation(layer, "ffn.in", hidden)
        if self.is_calibrating:
            tokens = hidden[:, self.now.offset :: STRIDE].flatten(0, 1)
            picks = chosen[:, self.now.offset :: STRIDE].flatten(0, 1)
            for expert in torch.unique(picks).tolist():
                inputs = tokens[(picks == expert).any(-1)]
                both = torch.nn.functional.linear(inputs, module.gate_up_proj[expert])
                gate, up = both.chunk(2, -1)
                gate = module.act_fn(gate)
                for tensor, x in (("ffn.gate", gate), ("ffn.up", up), ("ffn.down", gate * up)):
                    self._count(layer, tensor, x)
            return
        count = module.gate_up_proj.shape[0]
        routed = torch.zeros(*chosen.shape[:2], count, device=chosen.device)
        routed.scatter_(-1, chosen.long(), 1.0)
        windows = self.now.windows(routed) if self.reads_all else None
        self._sets(layer, "moe.expert", self.now.union_rows(routed), windows)

    def _head_norms(self, x: torch.Tensor) -> torch.Tensor:
        """L2 norm of each head's output, shape (..., heads)."""
        return x.float().unflatten(-1, (self.heads, -1)).norm(dim=-1)

    def _group_maxima(self, norms: torch.Tensor) -> torch.Tensor:
        """Largest norm among the query heads of each KV head: it is kept if any of them is."""
        return norms.unflatten(-1, (self.kv_heads, -1)).amax(-1)

    def levels(self, layer: int, tensor: str, device: torch.device) -> Levels:
        """Levels of a tensor, from what calibration left."""
        key = (layer, tensor)
        if key not in self._levels:
            if tensor == "moe.expert":
                at, values = [0], [sets.NON_ZERO]
            else:
                at, values = self._thresholds(layer, tensor)
            distinct = sorted(set(values))
            limits = torch.tensor(distinct, device=device)
            self._levels[key] = Levels(at, limits, [distinct.index(v) for v in values])
        return self._levels[key]

    def _thresholds(self, layer: int, tensor: str) -> tuple[list[int], list[float]]:
        stem = f"{layer}|{'attn.head' if tensor == 'attn.kv_head' else tensor}"
        zeros, total = self.state[f"elements|{stem}"].tolist()
        # Where fewer than `keep` are non-zero the threshold is 0, and the non-zeros are all there is.
        values = [max(t, sets.NON_ZERO) for t in self.state[f"threshold|{stem}"].tolist()]
        at = [*range(1, len(LEVELS))]
        if zeros >= ZERO_SHARE * total:
            return [0, *at], [sets.NON_ZERO, *values]
        return at, values

    def _sets(self, layer: int, tensor: str, rows: torch.Tensor, windows: torch.Tensor | None) -> None:
        """Unions over rows and, where they are read, over windows, with the overlap of their tokens."""
        levels = self.levels(layer, tensor, rows.device)
        self._unions(layer, tensor, rows, levels)
        if windows is None:
            return
        key = (layer, tensor, "window_density")
        shape = (1, len(LEVELS), len(WINDOW_SIZES))
        maxima = [sets.window_maxima(windows, size) for size in WINDOW_SIZES]
        minima = [sets.pair_minima(windows, d) for d in DISTANCES]
        counted = sets.kept(torch.cat([*maxima, *minima]), levels.limits)
        counts = counted.split([len(m) for m in (*maxima, *minima)], 1)
        counts, both = counts[: len(maxima)], counts[len(maxima) :]
        own = counts[0].unflatten(1, windows.shape[:2])
        share = torch.stack([c.sum(1) for c in counts], 1).double() / windows.shape[-1]
        n = torch.tensor([c.shape[1] for c in counts], device=windows.device)
        self.means.add(key, shape, (0, levels.at, ALL), share[levels.pick], n, n)
        key = (layer, tensor, "overlap_previous")
        shape = (1, len(LEVELS), len(DISTANCES))
        found = [sets.overlap(b, own, d) for b, d in zip(both, DISTANCES, strict=True)]
        total, n = (torch.stack(x, 1)[levels.pick] for x in zip(*found, strict=True))
        self.means.add(key, shape, (0, levels.at, ALL), total, n, n)

    def _unions(self, layer: int, tensor: str, rows: torch.Tensor, levels: Levels) -> None:
        name = f"union|{layer}|{tensor}"
        units = rows.shape[-1]
        if name not in self.state:
            self.state[name] = torch.zeros(len(ROWS), GROUPS, units, device=rows.device)
            self.state[name + "|seen"] = torch.zeros(1, dtype=torch.int64)
        unions = sets.UnionOfRows(ROWS, self.state[name], int(self.state[name + "|seen"]))
        shape = (1, len(LEVELS), len(ROWS))
        kept, blocks = unions.add(rows, levels.limits)
        share = kept[levels.pick].double() / units
        key = (layer, tensor, "union_density")
        self.means.add(key, shape, (0, levels.at, ALL), share, blocks, blocks)
        self.state[name + "|seen"][0] = unions.seen

    def _frequencies(self, layer: int, x: torch.Tensor) -> None:
        """How often each neuron is kept, over every eighth token."""
        levels = self.levels(layer, "ffn.down", x.device)
        strided = x[:, self.now.offset :: STRIDE].flatten(0, 1).abs().float()
        tokens, units = strided.shape
        name = f"frequency|{layer}"
        if name not in self.state:
            shape = (len(LEVELS), units)
            self.state[name] = torch.zeros(shape, dtype=torch.int64, device=x.device)
            self.state[name + "|tokens"] = torch.zeros(len(LEVELS), dtype=torch.int64)
        limits = levels.limits.tolist()
        for level, pick in zip(levels.at, levels.pick, strict=True):
            is_repeat = level > 0 and limits[pick] == sets.NON_ZERO and levels.at[0] == 0
            if is_repeat or (level > 0 and LEVELS[level] not in FREQUENCY_KEEPS):
                continue
            used = torch.ge(strided, limits[pick], out=torch.empty_like(strided))
            # A product with ones sums float32 counts exactly (below 2^24) and several times faster than sum().
            count = torch.ones(1, tokens, device=x.device) @ used
            self.state[name][level] += count[0].to(torch.int64)
            self.state[name + "|tokens"][level] += tokens
