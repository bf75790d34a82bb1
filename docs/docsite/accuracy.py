"""Accuracy as committed in `hw_profiles`: held-out shapes, all rows, and the residuals of every device's fits."""

import math
from functools import cache

from docsite.markdown import code, table
from simulator.accuracy import golden, markdown
from simulator.device.catalogue import list_devices, measured

FAMILIES = ("gemm", "attention", "collective", "moe", "elementwise")


def held_out() -> str:
    """Kernel families judged on shapes that the fit has not seen."""
    return f"Figures of {golden()['date']}.\n\n" + markdown(golden()["held_out"]) + "\n"


def seen() -> str:
    """The committed fits on every row, which they have seen."""
    return markdown(golden()["committed"], "rows") + "\n"


def by_device() -> str:
    """Rows and out-of-fold residuals of each device's fits, pooled over formats and libraries."""
    body = []
    for device in list_devices():
        for family in FAMILIES:
            fits = measured(device).own(family)
            if fits:
                body.append([code(device), family, *_pooled(fits)])
    headers = ["device", "family", "rows", "fits", "spread of a shape", "90 % interval", "fitted"]
    return table(headers, body)


@cache
def _pooled(fits) -> tuple[str, ...]:
    """Row-weighted means: a device's largest fits count most."""
    n = sum(f.n for f in fits)
    sigma = math.sqrt(sum(f.n * f.residual.sigma_in**2 for f in fits) / n)
    low = sum(f.n * f.residual.q05 for f in fits) / n
    high = sum(f.n * f.residual.q95 for f in fits) / n
    interval = f"{math.expm1(low):+.0%} … {math.expm1(high):+.0%}"
    return (f"{n:,}", f"{len(fits)}", f"±{math.expm1(sigma):.0%}", interval, max(f.date for f in fits))
