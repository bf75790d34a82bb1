"""DeepSeek's sparse attention beside dense MLA: measured speed-ups of two modules, answered as a prediction does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from simulator.device.fits import Fit
from simulator.fitting import module
from simulator.fitting.asked import predicted
from simulator.fitting.smooth import Array

if TYPE_CHECKING:
    import pandas as pd

FAMILIES: Mapping[str, str] = {"DSA decode": "decode", "DSA prefill": "prefill"}
"""Pattern families of sparse rows that are two attention modules, and their phase."""
SIDES: Mapping[str, tuple[str, str]] = {"baseline": ("mla-dense", "v3"), "library": ("dsa", "v3.2")}
"""Column of a side's kernel -> module and widths: DeepSeek-V3's and V3.2's blocks differ by the indexer alone."""
TIMES: Mapping[str, str] = {"baseline": "dense_time_s", "library": "sparse_time_s"}


def side(pairs: pd.DataFrame, column: str) -> pd.DataFrame:
    """The modules on one side of prepared `pairs`, as `module.prepare` writes rows; ``pair`` is their row number."""
    kind, widths = SIDES[column]
    phase = pairs["family"].map(FAMILIES)
    engine = pairs[column].str.partition("-")[0]
    library = [module.library_of(kernel, kind, p) for kernel, p in zip(pairs[column], phase, strict=True)]
    rows = pairs[["device", "batch", "q_len", "n_heads"]].assign(
        source=pairs["source"] + "/" + engine,
        library=library,
        kind=kind,
        widths=widths,
        phase=phase,
        dtype=pairs["weight"].replace(dict(module.FORMAT_NAMES)),
        kv_dtype=np.where(pairs["kv_bytes"] < 2.0, "fp8", "bf16"),
        math="bf16",
        indexes=True,
        past_len=pairs["kv_len"] - pairs["q_len"],
        time_s=pairs[TIMES[column]],
        pair=np.arange(len(pairs)),
    )
    return module.with_demand(rows)


def fit(pairs: pd.DataFrame, *, date: str | None = None, residuals: bool = True) -> list[Fit]:
    """Module fits of both sides of prepared `pairs`."""
    return [f for column in SIDES for f in module.fit(side(pairs, column), date=date, residuals=residuals)]


def speedup(pairs: pd.DataFrame, fits: Sequence[Fit] | None) -> tuple[Array, Array, Array]:
    """Dense over sparse time of prepared `pairs` and its 90 % interval; NaN where no fit covers one of the two.

    The two modules run other kernels: their errors are independent.

    Parameters
    ----------
    fits : sequence of Fit or None
        Module fits that answer; None: those of the devices.
    """
    mid, low, high = np.zeros(len(pairs)), np.zeros(len(pairs)), np.zeros(len(pairs))
    for column, sign in (("baseline", 1.0), ("library", -1.0)):
        found, _ = predicted(module.FAMILY, side(pairs, column), fits)
        logs = np.full((3, len(pairs)), np.nan)
        logs[:, found["pair"].to_numpy()] = np.log(found[["mid_s", "lo_s", "hi_s"]].to_numpy(float).T)
        down, up = logs[0] - logs[1], logs[2] - logs[0]
        mid += sign * logs[0]
        low, high = np.hypot(low, down if sign > 0.0 else up), np.hypot(high, up if sign > 0.0 else down)
    return np.exp(mid), np.exp(mid - low), np.exp(mid + high)
