"""How many experts a step's tokens reach: the experts of a layer are not asked for alike.

Routers are trained to balance their experts over a corpus, not over the few dozen tokens of one step: some are popular
with what is being written. With popularities drawn from an exponential (a Beta law of shape 1 whose mean is the share
``k/E`` of the experts that a token takes) the expected share reached is closed: ``T / (T + E/k - 1)``. At 32 tokens
of GPT-OSS-120B (4 of 128) that is 65 experts, where draws that are all alike reach 82. TPOT of measured serving
tells the shape (docs/calibration_engine.md): all alike 7.4 / 22.2 % off, shape 4 7.3 / 20.9 %, 2 7.0 / 20.4 %,
1 6.8 / 19.4 %, 0.5 6.8 / 19.5 %.
"""

from __future__ import annotations

from simulator.base.arrays import Array, expm1, log1p, minimum, real

SKEWED, UNIFORM = "skewed", "uniform"
"""Popularities exponential, or all alike."""


def reached(tokens: Array, top_k: Array, n_experts: Array, routing: str = SKEWED) -> Array:
    """Expected share of the experts of a layer that get at least one of `tokens` [-].

    Parameters
    ----------
    tokens, top_k, n_experts : Array
        Tokens of the step, experts of each, experts of the layer [-].
    routing : str
        `UNIFORM`: ``1 - (1 - k/E)^T``; every other: as `SKEWED`, ``T / (T + E/k - 1)``.

    Examples
    --------
    One token reaches its own two of eight; four tokens 4 / (4 + 3) of them.

    >>> float(reached(1.0, 2.0, 8.0)), round(float(reached(4.0, 2.0, 8.0)), 4)
    (0.25, 0.5714)
    >>> float(reached(2.0, 2.0, 8.0, UNIFORM))
    0.4375
    """
    t, k, n = real(tokens), real(top_k), real(n_experts)
    if routing == UNIFORM:
        return -expm1(t * log1p(-minimum(k / n, 1.0 - 1e-12)))
    return t / (t + n / k - 1.0)
