"""The one array alias and the little arithmetic that every layer shares."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any] | float
"""A float64 array of any shape, or a scalar that broadcasts against one."""
