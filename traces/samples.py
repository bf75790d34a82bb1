"""Tokens to train predictors on: what they read and what they should have said, streamed to disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traces.blocks import Block
from traces.criteria import KINDS, scores
from traces.masks import normalise
from traces.predictors import readers

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Samples:
    """Inputs and normalised scores of the same tokens, in memory-mapped files.

    Parameters
    ----------
    inputs : mapping of (site, layer) to Tensor of shape (tokens, width)
    targets : mapping of (kind, scale) to Tensor of shape (tokens, layers, units)
        Scores normalised globally or per layer, fp16 [-].
    """

    inputs: Mapping[tuple[str, int], torch.Tensor]
    targets: Mapping[tuple[str, str], torch.Tensor]

    def mean_target(self, kind: str, scale: str) -> torch.Tensor:
        """Mean over tokens, (layers, units): what a static choice by this criterion ranks by."""
        return self.targets[kind, scale].float().mean(0)


def gather(
    model: Any,
    parts: Sequence[Block],
    ids: torch.Tensor,
    criterion: str,
    *,
    methods: Sequence[str],
    scales: Sequence[str],
    folder: Path,
    rows: int = 4,
) -> Samples:
    """Run the model forward and back over `ids` and write one row per token to `folder`.

    The last token of a window has no next token, hence no loss and no row.

    Parameters
    ----------
    ids : Tensor of shape (windows, length)
    rows : int
        Windows per pass; with the model, this bounds the memory.
    """
    import numpy as np
    import torch

    per_window = ids.shape[1] - 1
    tokens = len(ids) * per_window
    sites = sorted({(r.site, r.at) for m in methods for r in readers(m, len(parts))})
    files: dict[Any, Any] = {}

    def file(key: Any, shape: tuple[int, ...]) -> Any:
        if key not in files:
            name = ".".join(str(k) for k in key) + ".npy"
            files[key] = np.lib.format.open_memmap(folder / name, mode="w+", dtype=np.float16, shape=(tokens, *shape))
        return files[key]

    for at in range(0, len(ids), rows):
        part = ids[at : at + rows]
        importance, seen = scores(model, parts, part, [criterion], sites)
        into = slice(at * per_window, (at + len(part)) * per_window)

        def inner(x: torch.Tensor, count: int = len(part)) -> torch.Tensor:
            return x.view(count, per_window + 1, *x.shape[1:])[:, :-1].flatten(0, 1)

        for key in sites:
            x = inner(seen[key])
            file(key, (x.shape[1],))[into] = x.half().cpu().numpy()
        for kind in KINDS:
            for scale in scales:
                y = normalise(inner(importance[kind, criterion]), scale)
                file((kind, scale), tuple(y.shape[1:]))[into] = y.half().cpu().numpy()
    held = {key: torch.from_numpy(array) for key, array in files.items()}
    return Samples(
        {key: held[key] for key in sites}, {(kind, scale): held[kind, scale] for kind in KINDS for scale in scales}
    )
