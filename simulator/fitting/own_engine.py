"""An engine as it runs on one's own machine: few figures of a shipped one, fitted to benchmark results."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.base.errors import InputError, UnsupportedError
from simulator.device.releases import MARK
from simulator.fitting.e2e import figures
from simulator.fitting.e2e_fit import FREE, blocks, fit_engine, spreads
from simulator.fitting.e2e_rows import counts
from simulator.fitting.e2e_steps import FITS, predict
from simulator.roofline.engine import FEWEST, Engine
from simulator.scenario.catalogue import CATALOGUE

if TYPE_CHECKING:
    import pandas as pd

LEAST = 4
"""Times below which nothing is fitted [-]."""
FOLDS = 4
"""Parts of the runs that are each judged by a fit on the others [-]."""


@dataclass(frozen=True, eq=False)
class Own:
    """A fitted engine.

    Attributes
    ----------
    engine : Engine
        Fitted on all rows.
    before, after : dict
        Figures by metric of the shipped engine, and of fits on the other runs; ``n`` alone where rows are few.
    helps : bool
        Whether the median error of runs that a fit has not seen is smaller than before.
    excluded : dict
        Rows left out by reason.
    """

    engine: Engine
    before: dict[str, dict[str, Any]]
    after: dict[str, dict[str, Any]]
    helps: bool
    excluded: dict[str, int]

    @property
    def worse(self) -> tuple[str, ...]:
        """Metrics whose median error on runs that a fit has not seen is larger than before."""
        return tuple(m for m, found in sorted(self.after.items()) if found["median_ape"] > self.before[m]["median_ape"])


def fit_own(rows: pd.DataFrame, shipped: Engine, label: str, date: str) -> Own:
    """Fit the figures of `shipped` that measurements tell, each held near what it is by its prior.

    Parameters
    ----------
    rows : DataFrame
        As `simulator.fitting.own_runs.read_runs` makes them, all of engine `shipped`.
    label : str
        What the engine is called after its family: ``vllm@label``.

    Raises
    ------
    InputError
        Fewer than `LEAST` times that can be judged.
    UnsupportedError
        An engine whose figures no rows were ever fitted to.
    """
    import pandas as pd

    names = FREE.get(shipped.name)
    if names is None:
        raise UnsupportedError(
            f"no figure of {shipped.name} is fitted; choose {', '.join(sorted(FREE))}", where="--engine"
        )
    # What is zero has no logarithm: a figure the shipped engine lacks stays out.
    names = tuple(n for n in names if "." not in n and getattr(shipped, n) > 0.0)
    before = predict(rows, {shipped.name: shipped})
    excluded = {str(k): int(n) for k, n in before["reason"].value_counts().items() if k != FITS}
    usable = before[before["reason"] == FITS]
    if len(usable) < LEAST:
        why = f" ({counts(excluded)})" if excluded else ""
        raise InputError(f"{len(usable)} times can be used, at least {LEAST} are needed{why}", where="--data")
    part = _folds(usable)
    after = pd.concat(
        predict(usable[part == k], {shipped.name: _fitted(usable[part != k], shipped, names)}) for k in np.unique(part)
    )
    whole = _fitted(usable, shipped, names)
    device = CATALOGUE.device(str(usable["device"].iloc[0]))
    engine = replace(
        whole,
        name=f"{shipped.name}{MARK}{label}",
        title=f"{shipped.title} calibrated on {device.name}",
        source=f"own benchmark results, {len(usable)} times",
        archs=tuple(sorted({*shipped.archs, device.arch})),
        n=len(usable),
        date=date,
        family="",
        since="",
        releases=(),
        pace={},
    )
    return Own(engine, _by_metric(usable), _by_metric(after), _error(after) < _error(usable), excluded)


def _folds(rows: pd.DataFrame) -> np.ndarray:
    """Fold of each row; times of one setup stay together, neighbours in batch and length apart."""
    keys = rows[["model", "batch", "prompt", "output", "loop"]].apply(tuple, axis=1)
    order = {key: i % FOLDS for i, key in enumerate(sorted(set(keys)))}
    found = keys.map(order).to_numpy()
    return found if len(set(found)) > 1 else np.arange(len(rows)) % FOLDS


def _fitted(rows: pd.DataFrame, shipped: Engine, names: tuple[str, ...]) -> Engine:
    found = fit_engine(shipped, blocks(rows, {shipped.name: shipped}), names)
    sure = {f"spread_{k}": (0.0, 999) for k in ("decode", "prefill", "queue")}
    told = spreads(predict(rows, {shipped.name: replace(found, **sure)}))
    return replace(found, **{k: v for k, v in told.items() if v[1] >= FEWEST})


def _by_metric(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    return {str(m): figures(part, smallest=1) for m, part in rows.groupby("metric")}


def _error(rows: pd.DataFrame) -> float:
    return float(np.median(np.abs(np.log(rows["mid_s"].to_numpy(float) / rows["time_s"].to_numpy(float)))))
