"""Running means of a trace's curves, exact to resume: sums, weights and counts, nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]
    Index = int | slice | list[int]

ALL = slice(None)
WHOLE = (ALL, ALL, ALL)
"""Every head, keep and x of a grid."""


class Means:
    """Means over a stream, one grid of (heads, keeps, xs) for each layer, tensor and statistic.

    Parameters
    ----------
    state : dict of str to Tensor
        Where the sums live; saving and restoring it continues the stream to the last bit.
    """

    def __init__(self, state: State):
        self.state = state

    def add(
        self,
        key: tuple[int, str, str],
        shape: tuple[int, int, int],
        at: tuple[Index, Index, Index],
        total: torch.Tensor,
        weight: torch.Tensor | float,
        n: torch.Tensor | int,
    ) -> None:
        """Add to the grid of `key`: `total` / `weight` becomes the value, `n` the number of samples.

        Parameters
        ----------
        key : (layer, tensor, statistic)
        shape : (heads, keeps, xs) of the whole grid
        at : index into the grid that the three values have the shape of, or broadcast to
        """
        sums, weights, counts = self._grids(key, shape, total)
        sums[at] += total.to(sums.dtype)
        weights[at] += weight
        counts[at] += n

    def _grids(
        self, key: tuple[int, str, str], shape: tuple[int, int, int], like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        import torch

        name = "mean|" + "|".join(map(str, key))
        if name + "|sum" not in self.state:
            wide = {"dtype": torch.float64, "device": like.device}
            self.state[name + "|sum"] = torch.zeros(shape, **wide)
            self.state[name + "|weight"] = torch.zeros(shape, **wide)
            self.state[name + "|count"] = torch.zeros(shape, dtype=torch.int64, device=like.device)
        return self._parts(name)

    def _parts(self, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.state[f"{name}|sum"], self.state[f"{name}|weight"], self.state[f"{name}|count"]

    def __iter__(self) -> Iterator[tuple[tuple[int, str, str], torch.Tensor, torch.Tensor, torch.Tensor]]:
        """(layer, tensor, statistic) with its sums, weights and counts, in a fixed order."""
        for name in sorted(self.state):
            if name.startswith("mean|") and name.endswith("|sum"):
                stem = name.removesuffix("|sum")
                _, layer, tensor, statistic = stem.split("|")
                sums, weights, counts = self._parts(stem)
                yield (int(layer), tensor, statistic), sums.cpu(), weights.cpu(), counts.cpu()
