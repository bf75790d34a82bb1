"""Where a release of an engine changed a kernel's speed: there, and only there, it becomes part of the fit's key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from simulator.device.releases import joined, version

if TYPE_CHECKING:
    import pandas as pd

CHANGED = 0.08
"""Mean |ln ratio| of the same shapes in two releases beyond which the kernel counts as changed [-].

Of consecutive pairs 20 of 28 in attention and 29 of 41 in MoE lie at 0.01-0.05: two runs of one kernel; the others at
0.08-1.08. GEMM's 35 pairs have no such gap: 0.02 to 0.14, and 0.17 to 0.61.
"""
FEWEST = 20
"""Shapes measured in both releases below which nothing is said of a change [-]."""


def release_of(kernel: str) -> str:
    """Release in a kernel string such as ``vllm-0.24.0:name``; "" where it names none."""
    head, colon, _ = kernel.partition(":")
    _, dash, release = head.partition("-")
    return release if colon and dash and version(release) else ""


def change(older: pd.DataFrame, newer: pd.DataFrame, shape: Sequence[str]) -> float | None:
    """Mean |ln(newer/older)| of the shapes both hold, or None with fewer than `FEWEST` of them."""
    both = older[[*shape, "time_s"]].merge(newer[[*shape, "time_s"]], on=list(shape))
    if len(both) < FEWEST:
        return None
    return float(np.abs(np.log(both["time_s_y"].to_numpy(float) / both["time_s_x"].to_numpy(float))).mean())


def split(rows: pd.DataFrame, inputs: Sequence[str], keys: Sequence[str]) -> pd.DataFrame:
    """`rows` whose `library` names the release from which on a changed kernel runs.

    Parameters
    ----------
    rows : DataFrame
        Prepared rows with `device`, `library` and `release`.
    inputs : sequence of str
        What makes two rows of a device the same shape.
    keys : sequence of str
        Columns of a kernel's key beside its library. A change is looked for over all devices of one `Device.scope`.
    """
    from simulator.device import catalogue as devices

    if "release" not in rows:
        return rows
    scopes = {d: devices.load(d).scope for d in rows["device"].unique()}
    library = rows["library"].to_numpy(object).copy()
    groups = rows.assign(_scope=rows["device"].map(scopes)).groupby(["_scope", *keys, "library"], sort=False)
    for at in groups.indices.values():
        part = rows.iloc[at]
        found = sorted({str(r) for r in part["release"] if r}, key=version)
        current, since = found[:1], ""
        for release in found[1:]:
            here = (part["release"] == release).to_numpy()
            moved = change(part[part["release"].isin(current)], part[here], ["device", *inputs])
            if moved is not None and moved > CHANGED:
                current, since = [release], release
            else:
                current.append(release)
            library[np.asarray(at)[here]] = joined(str(part["library"].iloc[0]), since)
    return rows.assign(library=library)


def releases(rows: pd.DataFrame) -> tuple[str, ...]:
    """Releases that rows were measured in, oldest first."""
    return tuple(sorted({str(r) for r in rows["release"] if r}, key=version)) if "release" in rows else ()
