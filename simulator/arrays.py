"""The one array alias and the little arithmetic that every layer shares."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64] | float
"""A float64 array of any shape, or a scalar that broadcasts against one."""
