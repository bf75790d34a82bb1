"""The one array alias and the little arithmetic that every layer shares.

One formula serves a grid and a single point: these functions take numpy's path for arrays and the interpreter's own
arithmetic for plain numbers, which is ten times faster there. Plain numbers stay Python floats all the way.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any] | float
"""A float64 array of any shape, or a scalar that broadcasts against one."""

_ND = np.ndarray


def real(x: Any) -> Any:
    """`x` as a float64 array, or as a float where it is one number of Python's or numpy's."""
    if isinstance(x, _ND) and x.ndim:
        return x if x.dtype == np.float64 else x.astype(float)
    return float(x) if isinstance(x, float | int) or np.ndim(x) == 0 else np.asarray(x, float)


def maximum(a: Any, b: Any) -> Any:
    """Larger of two, element by element."""
    if isinstance(a, _ND) or isinstance(b, _ND):
        return np.maximum(a, b)
    return a if a >= b else b


def minimum(a: Any, b: Any) -> Any:
    """Smaller of two, element by element."""
    if isinstance(a, _ND) or isinstance(b, _ND):
        return np.minimum(a, b)
    return a if a <= b else b


def clip(x: Any, low: Any, high: Any) -> Any:
    """`x` between `low` and `high`, the latter where they cross."""
    return minimum(maximum(x, low), high)


def where(condition: Any, yes: Any, no: Any) -> Any:
    """`yes` where the condition holds, else `no`; both are evaluated by the caller."""
    if isinstance(condition, _ND):
        return np.where(condition, yes, no)
    return yes if condition else no


def every(condition: Any) -> bool:
    """Whether the condition holds everywhere."""
    return bool(condition.all()) if isinstance(condition, _ND) else bool(condition)


def some(condition: Any) -> bool:
    """Whether the condition holds anywhere; a number counts where it is not 0."""
    return bool(condition.any()) if isinstance(condition, _ND) else bool(condition)


def ceil(x: Any) -> Any:
    """Next whole number at or above `x`."""
    return np.ceil(x) if isinstance(x, _ND) else float(math.ceil(x))


def floor(x: Any) -> Any:
    """Whole number at or below `x`."""
    return np.floor(x) if isinstance(x, _ND) else float(math.floor(x))


def exp(x: Any) -> Any:
    """``e^x``."""
    return np.exp(x) if isinstance(x, _ND) else math.exp(x)


def expm1(x: Any) -> Any:
    """``e^x - 1``."""
    return np.expm1(x) if isinstance(x, _ND) else math.expm1(x)


def log1p(x: Any) -> Any:
    """``ln(1 + x)``; -inf at -1."""
    if isinstance(x, _ND):
        with np.errstate(divide="ignore"):
            return np.log1p(x)
    return math.log1p(x) if x > -1.0 else -math.inf


def log(x: Any) -> Any:
    """Natural logarithm."""
    return np.log(x) if isinstance(x, _ND) else math.log(x)


def log2(x: Any) -> Any:
    """Logarithm to base 2."""
    return np.log2(x) if isinstance(x, _ND) else math.log2(x)


def sqrt(x: Any) -> Any:
    """Square root."""
    return np.sqrt(x) if isinstance(x, _ND) else math.sqrt(x)


def hypot(a: Any, b: Any) -> Any:
    """``sqrt(a^2 + b^2)``."""
    return np.hypot(a, b) if isinstance(a, _ND) or isinstance(b, _ND) else math.hypot(a, b)


def interp(x: Any, nodes: Sequence[float], values: Sequence[float]) -> Any:
    """Piecewise-linear through ascending `nodes`, constant beyond both ends."""
    if isinstance(x, _ND):
        return np.interp(x, nodes, values)
    if x >= nodes[-1]:
        return float(values[-1])
    i = bisect_right(nodes, x)
    if not i:
        return float(values[0])
    left = nodes[i - 1]
    return float(values[i - 1] + (values[i] - values[i - 1]) * ((x - left) / (nodes[i] - left)))
