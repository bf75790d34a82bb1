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
from traces.scoring import windows_per_pass
from traces.table_on_disk import TableOnDisk, mean_over_tokens

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Samples:
    """Inputs and normalised scores of the same tokens, on disk.

    Parameters
    ----------
    inputs : mapping of (site, layer) to TableOnDisk of shape (tokens, width)
    targets : mapping of (kind, scale) to TableOnDisk of shape (tokens, layers, units)
        Scores normalised globally or per layer, fp16 [-].
    """

    inputs: Mapping[tuple[str, int], TableOnDisk]
    targets: Mapping[tuple[str, str], TableOnDisk]

    def mean_target(self, kind: str, scale: str) -> torch.Tensor:
        """Mean over tokens, (layers, units): what a static choice by this criterion ranks by."""
        return mean_over_tokens(self.targets[kind, scale])


def gather(
    model: Any,
    parts: Sequence[Block],
    ids: torch.Tensor,
    criterion: str,
    *,
    methods: Sequence[str],
    scales: Sequence[str],
    folder: Path,
    rows: int | None = None,
) -> Samples:
    """Run the model forward and back over `ids` and write one row per token to `folder`.

    The last token of a window has no next token, hence no loss and no row.

    Parameters
    ----------
    ids : Tensor of shape (windows, length)
    rows : int, optional
        Windows per pass; with the model, this bounds the memory.
    """
    rows = rows or windows_per_pass(model, ids.shape[1])
    per_window = ids.shape[1] - 1
    tokens = len(ids) * per_window
    sites = sorted({(r.site, r.at) for m in methods for r in readers(m, len(parts))})
    files: dict[Any, TableOnDisk] = {}

    def write(key: Any, into: slice, x: torch.Tensor) -> None:
        if key not in files:
            name = ".".join(str(k) for k in key)
            files[key] = TableOnDisk.empty(folder / name, (tokens, *x.shape[1:]), "float16")
        files[key].write(into, x)

    for at in range(0, len(ids), rows):
        part = ids[at : at + rows]
        importance, seen = scores(model, parts, part, [criterion], sites)
        into = slice(at * per_window, (at + len(part)) * per_window)

        def inner(x: torch.Tensor, count: int = len(part)) -> torch.Tensor:
            return x.view(count, per_window + 1, *x.shape[1:])[:, :-1].flatten(0, 1)

        for key in sites:
            write(key, into, inner(seen[key]))
        for kind in KINDS:
            for scale in scales:
                write((kind, scale), into, normalise(inner(importance[kind, criterion]), scale))
    return Samples(
        {key: files[key] for key in sites}, {(kind, scale): files[kind, scale] for kind in KINDS for scale in scales}
    )
