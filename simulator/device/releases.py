"""Releases of a kernel library: ``vllm_deepgemm@0.27.1`` is how it runs from release 0.27.1 on.

A fit carries a release only where the speed of the same shapes changed with it (`simulator.fitting.releases`);
the plain name is the oldest that was measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from simulator.device.fits import Fit

MARK = "@"
_STAGES = {"a": -3, "b": -2, "rc": -1, "post": 1}


def version(text: str) -> tuple[int, ...]:
    """Release as numbers that sort by age: ``1.3.0rc20`` lies before ``1.3.0``, ``0.5.6.post2`` after ``0.5.6``.

    Empty where the text begins with no number.

    Examples
    --------
    >>> sorted(["0.5.14", "0.5.6.post2", "0.5.6", "1.3.0", "1.3.0rc6.post2", "1.3.0rc20", "1.3.0rc6"], key=version)
    ['0.5.6', '0.5.6.post2', '0.5.14', '1.3.0rc6', '1.3.0rc6.post2', '1.3.0rc20', '1.3.0']
    """
    found = re.match(r"(\d+(?:\.\d+)*)\.?(?:(a|b|rc|post)(\d*))?(?:\.post(\d+))?", text)
    if found is None:
        return ()
    numbers = [int(n) for n in found[1].split(".")]
    return (*[*numbers, 0, 0, 0][:3], _STAGES.get(found[2] or "", 0), int(found[3] or 0), int(found[4] or 0))


def apart(library: str) -> tuple[str, str]:
    """Name and release of a library; "" where it carries none."""
    name, _, release = library.partition(MARK)
    return name, release


def joined(name: str, release: str) -> str:
    """The library `name` as of `release`; "" = whichever."""
    return f"{name}{MARK}{release}" if release else name


def answering(fits: Iterable[tuple[Fit, int]], release: str) -> list[tuple[Fit, int]]:
    """Of fits that differ by the release alone, the newest not after `release`.

    ``""`` asks for the newest of all; where all are newer, the oldest answers. Every fit comes with its place.
    """
    at = version(release)
    groups: dict[tuple[str, str, str, bool], list[tuple[Fit, int]]] = {}
    for fit, place in fits:
        groups.setdefault((fit.device, fit.dtype, apart(fit.library)[0], fit.by_user), []).append((fit, place))
    found = []
    for members in groups.values():
        since = [version(apart(fit.library)[1]) for fit, _ in members]
        old = [s for s in since if not release or s <= at]
        wanted = max(old) if old else min(since)
        found += [m for m, s in zip(members, since, strict=True) if s == wanted]
    return found
