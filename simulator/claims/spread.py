"""How far published speed-ups lie from predicted ones, by family of policy: what intervals of speed-ups are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simulator.base.errors import InputError, reason
from simulator.base.files import replaced
from simulator.base.interval import Z90
from simulator.claims.judge import Judged
from simulator.claims.statistics import weights
from simulator.inference.paired import ANY, FILE

COMMAND = f"python -m simulator.claims --spread simulator/inference/{FILE}"
LEAST_SHARE = 0.1
"""Of a run, from which a row tells of the policy rather than of the rest [-]."""


@dataclass(frozen=True)
class Spread:
    """Log error of what a family of policies changes.

    Attributes
    ----------
    sigma : float
        One standard deviation [-].
    papers, rows : int
        It was learned from.
    """

    sigma: float
    papers: int
    rows: int


def learned(rows: Iterable[Judged]) -> dict[str, Spread]:
    """Spread of every family that has published speed-ups, and of `ANY`.

    A row's log error is ``|ln(published / predicted)| / share``; ``1.645 sigma`` is the 0.9 quantile of a family's
    errors, its papers weighing the same and all families together as one more, times Student's factor of so many
    papers over the normal one: what few papers teach is less sure.
    """
    from scipy.stats import t as student

    def sigma(w: np.ndarray, papers: int) -> float:
        return _quantile(error, w) * float(student.ppf(0.95, papers)) / Z90**2

    known = [r for r in rows if r.changed and r.share >= LEAST_SHARE and r.speedup]
    papers, families = np.array([r.paper for r in known]), np.array([r.changed for r in known])
    error = np.abs(np.log([(r.published_speedup or np.nan) / (r.speedup or np.nan) for r in known]))
    error = error / np.array([r.share for r in known])
    all_ = weights(list(papers))
    out = {}
    for family in sorted(set(families)):
        of = families == family
        w, n = all_.copy(), len(set(papers[of]))
        w[of] += n * np.array(weights(list(papers[of])))
        out[family] = Spread(sigma(w, n + 1), n, int(of.sum()))
    out[ANY] = Spread(sigma(all_, len(set(papers))), len(set(papers)), len(known))
    return out


def write(path: Path, spreads: Mapping[str, Spread], date: str) -> None:
    """The table that intervals of speed-ups are read from.

    Raises
    ------
    InputError
        It cannot be written.
    """
    lines = [
        "# Log error of what a policy changes, by its family, from published speed-ups: docs/validation.md.",
        f'command = "{COMMAND}"',
        f"date = {date}",
    ]
    for family, s in spreads.items():
        lines += ["", f'[family."{family}"]', f"sigma = {s.sigma:.3f}", f"papers = {s.papers}", f"rows = {s.rows}"]
    try:
        with replaced(path, "--spread") as new:
            new.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {reason(error)}", where="--spread") from None


def _quantile(error: np.ndarray, w: np.ndarray) -> float:
    """The 0.9 quantile with weights `w`, every error in the middle of its own."""
    order = np.argsort(error)
    below = np.cumsum(w[order]) - 0.5 * w[order]
    return float(np.interp(0.9 * w.sum(), below, error[order]))
