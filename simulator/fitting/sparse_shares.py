"""Shares of the dense product's rates that a 2:4 product reaches, by architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from simulator.device.fits import ANY, Fit, Residual
from simulator.roofline.sparse import NM24_KEY, NM24_LIBRARY

if TYPE_CHECKING:
    import pandas as pd

STATED = {
    "ampere": (0.83, 0.70),
    "ada": (0.83, 0.75),
    "hopper": (0.58, 0.80),
    "blackwell": (0.83, 0.75),
    ANY: (0.60, 0.70),
}
"""(stream, math) published with SlideSparse's cuSPARSELt products of 64 rows, bound by their stream.

1.11 of 1.33 TB/s (A100), 1.01 of 1.73 (H100); on a B200 1.48 times dense from 9/16 of the bytes: 0.83. Math shares,
and the other architectures, are assumed.
"""
STATED_SOURCE, ASSUMED = "SlideSparse", "assumed"
PUBLISHED = ("ampere", "blackwell", "hopper")
LIKE_SERVING = {"ampere": "a100-sxm-80g", "ada": "rtx-4070tis", "cdna3": "mi300x"}
"""Card whose rows speak for an architecture.

Of Ampere not the GeForce ones: their dense tensor rate is halved by fp32 accumulation, so 2:4 gains
more there than on the cards that serve.
"""
SMALL = 512.0
"""Rows of activations below which a product is bound by its stream [-]."""


def nm24_fits(rows: pd.DataFrame, date: str) -> list[Fit]:
    """Stream and math share per architecture: measured where `rows` have them, else as published.

    A product bound by tensor math gains twice its math share, so the share is half the median speed-up.
    """
    out = []
    product = rows[rows["family"] == "2:4"]
    for arch in (*STATED, *(a for a in LIKE_SERVING if a not in STATED)):
        stream, math = STATED.get(arch, STATED[ANY])
        own = product[(product["device"] == LIKE_SERVING.get(arch, "")) & (product["m"] >= SMALL)]
        sources: tuple[str, ...] = (STATED_SOURCE if arch in PUBLISHED else ASSUMED,)
        sigma = 0.15
        if len(own) >= 3:
            gain = own["speedup"].to_numpy(float)
            math = float(np.median(gain)) / 2.0
            off = np.log(gain / np.median(gain))
            sigma = max(1.4826 * float(np.median(np.abs(off))), 0.05)
            sources = (*sources, *sorted(own["source"].unique()))
        z = 1.645 * sigma
        error = Residual(sigma, float(np.hypot(sigma, 0.15)), -z, z, 0.0, 0.15, float(len(own)))
        coef = {"stream": stream, "math": math}
        out.append(Fit("sparse", arch, NM24_KEY, NM24_LIBRARY, coef, None, len(own), sources, date, error))
    return out
