"""Rotary embedding inside a kernel: angles are computed, not read, so that they cost no bytes.

An angle is a 32-bit fraction of a turn: position times rate wraps by itself and stays good to ``position / 2^33`` turns
at any position, where a float32 product loses 2^-24 of all turns made. Sine and cosine are Taylor series of the half
angle, because the library's own carry a range reduction in local memory that no kernel here needs.
"""

from __future__ import annotations

import triton
import triton.language as tl

TURN = tl.constexpr(2.0**32)
TWO_PI = tl.constexpr(6.283185307179586)


@triton.jit
def rotate(a, b, position, pair, LOG2_THETA: tl.constexpr, HALF: tl.constexpr):
    """Rotated halves: a, b (N, P) float32, position (N), pair (P) the number of the pair of `HALF` in all."""
    rate = tl.exp2(pair.to(tl.float64) * (-LOG2_THETA / HALF)) * (TURN / TWO_PI)
    turn = position.to(tl.uint32)[:, None] * rate.to(tl.int64).to(tl.uint32)[None, :]
    half = turn.to(tl.int32, bitcast=True).to(tl.float32) * (TWO_PI / 2 / TURN)
    # sin and cos of |half| <= pi / 2; the first terms left out are below 6e-8 and 7e-9.
    x = half * half
    s = 1 - x / 20 * (1 - x / 42 * (1 - x / 72 * (1 - x / 110)))
    s = half * (1 - x / 6 * s)
    c = 1 - x / 30 * (1 - x / 56 * (1 - x / 90 * (1 - x / 132)))
    c = 1 - x / 2 * (1 - x / 12 * c)
    sin = 2 * s * c
    cos = 1 - 2 * s * s
    return a * cos - b * sin, b * cos + a * sin
