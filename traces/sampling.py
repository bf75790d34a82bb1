"""Which tokens of a batch the statistics read: fixed by seed and batch number, so a resumed run agrees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GROUPS = 4
"""Rows each sequence gives to unions: independent draws of a decode batch."""
WINDOWS = 2
"""Windows of consecutive tokens per batch."""
WINDOW_TOKENS = 32
STRIDE = 8
"""Thresholds are set on every eighth token of the calibration sequences."""
ALL_EVERY = 3
"""Windows, keys, values and attention are read in every third measured batch, to stay within twice a plain run."""
SLAB_TOKENS = 64
"""Consecutive tokens whose keys and values are pruned and rounded, per batch."""


@dataclass(frozen=True)
class Sample:
    """Positions read in one batch.

    Parameters
    ----------
    rows : Tensor, shape (batch, GROUPS)
        Positions of the union's rows in each sequence.
    sequence : Tensor, shape (WINDOWS, 1)
    tokens : Tensor, shape (WINDOWS, WINDOW_TOKENS)
        Sequence and positions of each window.
    offset : int
        First token of the calibration stride.
    kv_sequence : int
        The sequence whose keys, values and attention are read.
    slab : slice
        Tokens of that sequence that are pruned and rounded.
    """

    rows: torch.Tensor
    sequence: torch.Tensor
    tokens: torch.Tensor
    offset: int
    kv_sequence: int
    slab: slice

    def union_rows(self, x: torch.Tensor) -> torch.Tensor:
        """Magnitudes of the union's rows, shape (batch, GROUPS, units), float32."""
        import torch

        rows = self.rows.to(x.device)
        each = torch.arange(x.shape[0], device=x.device)[:, None]
        return x[each, rows].abs().float()

    def windows(self, x: torch.Tensor) -> torch.Tensor:
        """Magnitudes of the windows, shape (WINDOWS, WINDOW_TOKENS, units), float32."""
        return x[self.sequence.to(x.device), self.tokens.to(x.device)].abs().float()


def sample(seed: int, number: int, batch: int, tokens: int) -> Sample:
    """Positions read in batch `number`.

    Parameters
    ----------
    seed : int
    number : int
        Batch since the start of the run.
    batch, tokens : int
        Sequences of the batch and their length.
    """
    import numpy as np
    import torch

    rng = np.random.default_rng([seed, number])
    start = rng.integers(0, tokens - WINDOW_TOKENS + 1, WINDOWS)
    slab_tokens = min(SLAB_TOKENS, tokens)
    slab = int(rng.integers(0, tokens - slab_tokens + 1))
    return Sample(
        rows=torch.from_numpy(rng.integers(0, tokens, (batch, GROUPS))),
        sequence=torch.from_numpy(rng.integers(0, batch, (WINDOWS, 1))),
        tokens=torch.from_numpy(start[:, None] + np.arange(WINDOW_TOKENS)),
        offset=int(rng.integers(0, STRIDE)),
        kv_sequence=int(rng.integers(0, batch)),
        slab=slice(slab, slab + slab_tokens),
    )
