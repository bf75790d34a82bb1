"""Which units tokens keep, and how much of it they share.

A token keeps the units whose magnitude reaches a threshold, so a set of tokens keeps those whose
*largest* magnitude does, and two tokens share those whose smaller one does: unions are maxima,
intersections are minima, and no mask is ever stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NON_ZERO = 1.4012984643248171e-45
"""Smallest positive float32: the threshold that keeps exactly the non-zeros."""
_ELEMENTS = 2**21
"""Comparisons made at once, which bounds the memory of wide layers."""


def kept(magnitudes: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """Units kept per row at each threshold.

    Parameters
    ----------
    magnitudes : Tensor, shape (..., units)
    thresholds : Tensor, shape (levels,)

    Returns
    -------
    Tensor, shape (levels, ...), int64
    """
    import torch

    rows = magnitudes.reshape(-1, magnitudes.shape[-1])
    ones = torch.ones(rows.shape[1], device=rows.device)
    counts = torch.empty(len(thresholds), len(rows), device=rows.device)
    step = max(1, _ELEMENTS // (len(thresholds) * rows.shape[1]))
    for at in range(0, len(rows), step):
        part = rows[at : at + step]
        reached = torch.empty(len(thresholds), *part.shape, device=rows.device)
        torch.ge(part, thresholds[:, None, None], out=reached)
        # A product with ones sums float32 counts exactly (below 2^24) and six times faster than sum().
        counts[:, at : at + step] = reached @ ones
    return counts.to(torch.int64).unflatten(1, magnitudes.shape[:-1])


def window_maxima(magnitudes: torch.Tensor, size: int) -> torch.Tensor:
    """Largest magnitude of each unit over disjoint windows of consecutive tokens.

    Parameters
    ----------
    magnitudes : Tensor, shape (windows, tokens, units)
    size : int
        Window length [tokens], dividing `tokens`.

    Returns
    -------
    Tensor, shape (windows * tokens / size, units)
    """
    return magnitudes.reshape(-1, size, magnitudes.shape[-1]).amax(1)


def pair_minima(magnitudes: torch.Tensor, distance: int) -> torch.Tensor:
    """Smaller magnitude of each unit in a token and the one `distance` before it.

    Parameters
    ----------
    magnitudes : Tensor, shape (windows, tokens, units)

    Returns
    -------
    Tensor, shape (windows * (tokens - distance), units)
    """
    import torch

    return torch.minimum(magnitudes[:, distance:], magnitudes[:, :-distance]).flatten(0, 1)


def overlap(both: torch.Tensor, own: torch.Tensor, distance: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Share of a token's kept units that the token `distance` before it kept: |S_t and S_{t-x}| / |S_t|.

    Parameters
    ----------
    both : Tensor, shape (levels, windows * (tokens - distance))
        Units kept by both, from `kept` of `pair_minima`.
    own : Tensor, shape (levels, windows, tokens)
        Units kept by each token.

    Returns
    -------
    total : Tensor, shape (levels,), float64
        Sum of the shares over the tokens that keep anything.
    n : Tensor, shape (levels,), int64
        Those tokens.
    """
    import torch

    all_kept = own[:, :, distance:].flatten(1)
    share = both.to(torch.float64) / all_kept.clamp(min=1)
    return share.sum(1), (all_kept > 0).sum(1)


class UnionOfRows:
    """Union density over rows that each come from another sequence, streaming.

    For each count of rows B, disjoint blocks of B consecutive sequences give one draw per group; the
    sequences arrive shuffled, so a block is a random batch of a decode step.

    Parameters
    ----------
    running : Tensor, shape (counts, groups, units)
        Largest magnitude since the block of each count began.
    """

    def __init__(self, counts: Sequence[int], running: torch.Tensor, seen: int = 0):
        self.counts = tuple(counts)
        self.running = running
        self.seen = seen

    def add(self, rows: torch.Tensor, thresholds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take one row per group from each of the next sequences.

        Parameters
        ----------
        rows : Tensor, shape (sequences, groups, units)
            Magnitudes.
        thresholds : Tensor, shape (levels,)

        Returns
        -------
        units : Tensor, shape (levels, counts), int64
            Units kept, over all blocks these sequences complete and all groups.
        blocks : Tensor, shape (counts,), int64
            Those blocks, times the groups.
        """
        import torch

        groups = rows.shape[1]
        units = torch.zeros(len(thresholds), len(self.counts), dtype=torch.int64, device=rows.device)
        blocks = torch.zeros(len(self.counts), dtype=torch.int64, device=rows.device)
        whole = [self._whole_blocks(i, count, rows) for i, count in enumerate(self.counts)]
        # One comparison of all blocks: small ones would each pay for their calls.
        counted = kept(torch.cat(whole), thresholds).split([len(w) for w in whole], 1)
        for i, found in enumerate(counted):
            units[:, i] = found.flatten(1).sum(1)
            blocks[i] = found.shape[1] * groups
        self.seen += len(rows)
        return units, blocks

    def _whole_blocks(self, i: int, count: int, rows: torch.Tensor) -> torch.Tensor:
        """Maxima of the blocks of `count` sequences that end within `rows`, shape (blocks, groups, units)."""
        import torch

        if self.seen % count == 0 and len(rows) % count == 0:
            return rows.unflatten(0, (-1, count)).amax(1)
        done = []
        at = 0
        while at < len(rows):
            left = count - (self.seen + at) % count
            part = rows[at : at + left]
            torch.maximum(self.running[i], part.amax(0), out=self.running[i])
            at += len(part)
            if len(part) == left:
                done.append(self.running[i].clone())
                self.running[i] = 0.0
        return torch.stack(done) if done else rows[:0]
