"""Tables of one row per token that are too large for memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

_AT_ONCE = 256  # rows of a table that are in memory together


@dataclass(frozen=True)
class TableOnDisk:
    """A file of numbers, read and written by rows.

    The file is mapped for each access only: pages of a mapping that stays count as the process's memory.

    Parameters
    ----------
    shape : tuple of int
        (tokens, ...).
    dtype : str
        numpy's name.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def empty(cls, path: Path, shape: tuple[int, ...], dtype: str) -> TableOnDisk:
        """A new file of zeros."""
        table = cls(path, shape, dtype)
        table._mapped("w+")
        return table

    def _mapped(self, mode: Any) -> np.memmap[Any, Any]:
        import numpy as np

        return np.memmap(self.path, self.dtype, mode, shape=self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | torch.Tensor) -> torch.Tensor:
        """A copy of some rows, on the CPU."""
        import numpy as np
        import torch

        return torch.from_numpy(np.array(self._mapped("r")[rows if isinstance(rows, slice) else rows.numpy()]))

    def write(self, rows: slice, values: torch.Tensor) -> None:
        """Replace some rows."""
        self._mapped("r+")[rows] = values.cpu().numpy()


def mean_over_tokens(table: TableOnDisk | torch.Tensor) -> torch.Tensor:
    """Mean of the rows in fp32, a few at a time."""
    import torch

    total = torch.zeros(table.shape[1:])
    for at in range(0, len(table), _AT_ONCE):
        total += table[at : at + _AT_ONCE].float().sum(0)
    return total / len(table)
