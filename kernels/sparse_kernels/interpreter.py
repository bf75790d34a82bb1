"""Triton's interpreter: how it is switched on, and its bfloat16 mended.

Triton 3.6 and 3.7 multiply the bit patterns of bfloat16 in ``tl.dot`` and round float32 to bfloat16 half up;
a GPU multiplies the numbers and rounds half to even. `mend` makes the interpreter do the same. It also lets 3.6
take a loop bound from an array of one element, which numpy 2.4 refuses and 3.7 no longer needs.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from simulator.base.errors import UnsupportedError

SWITCH = "TRITON_INTERPRET"


def require_libraries() -> None:
    """Raise `UnsupportedError` where torch or triton is not installed."""
    missing = [name for name in ("torch", "triton") if find_spec(name) is None]
    if missing:
        raise UnsupportedError(
            f"{' and '.join(missing)} not installed; the kernels need pip install 'shadowline[kernels]'"
        )


def switch_on() -> None:
    """Interpret every kernel of this process; only before anything imported triton."""
    require_libraries()
    if "triton" in sys.modules and os.environ.get(SWITCH) != "1":
        raise RuntimeError(f"triton was imported before {SWITCH} was set; start a new process")
    os.environ[SWITCH] = "1"


def switch_off() -> None:
    """Compile every kernel of this process; only before anything imported triton."""
    require_libraries()
    if "triton" in sys.modules and os.environ.get(SWITCH) == "1":
        raise RuntimeError(f"triton was imported while {SWITCH} was set; start a new process")
    os.environ.pop(SWITCH, None)


def is_on() -> bool:
    """Whether kernels of this process are interpreted."""
    return os.environ.get(SWITCH) == "1"


@cache
def mend() -> None:
    """Mend the interpreter, once per process; nothing where kernels are compiled."""
    if not is_on():
        return
    import triton.language as tl
    from triton.runtime import interpreter as theirs
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl
    patch_tensor = theirs._patch_lang_tensor

    def widened(x: Any) -> Any:
        return TensorHandle(_widen(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        return dot(self, widened(a), widened(b), d, *rest)

    def cast_impl(self: Any, src: Any, to: Any) -> Any:
        pair = (src.dtype.scalar, to.scalar)
        if pair == (tl.bfloat16, tl.float32):
            return TensorHandle(_widen(src.data), tl.float32)
        if pair == (tl.float32, tl.bfloat16):
            return TensorHandle(_narrow(src.data), tl.bfloat16)
        return cast(self, src, to)

    def patch_lang_tensor(tensor: Any, *rest: Any) -> None:
        patch_tensor(tensor, *rest)
        tensor.__index__ = lambda self: int(self.handle.data.squeeze())

    theirs._patch_lang_tensor = patch_lang_tensor
    for name, mended in (("create_dot", create_dot), ("cast_impl", cast_impl)):
        setattr(InterpreterBuilder, name, mended)


def _widen(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _narrow(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    even = bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))
    quiet = np.uint32(0x7FC00000)
    return (np.where(np.isnan(values), quiet, even) >> 16).astype(np.uint16)
