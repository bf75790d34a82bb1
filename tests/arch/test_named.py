"""Files and names that prose points at exist: in pages, docstrings and comments, of this repository and no other."""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path

FOLDERS = ("simulator", "hw_profiles", "traces", "kernels", "reports", "app", "tests", "docs")
FILE = re.compile(r"(?<![\w./<{-])((?:" + "|".join(FOLDERS) + r")/[\w./*-]*[\w*/])(?![\w<{])")
NAME = re.compile(r"(?<![\w./-])(simulator(?:\.[a-z_]\w*)+)")
EXEMPT = {"simulator.gone"}
"""What a test names because it does not exist."""


def prose(repo: Path) -> list[Path]:
    """Pages and sources; what a tool wrote or somebody else did is not ours to mend."""
    found = [repo / "README.md", repo / "CONTRIBUTING.md", repo / "Makefile", repo / "pyproject.toml"]
    found += (repo / "docs").rglob("*.md")
    found += [p for folder in FOLDERS for p in (repo / folder).rglob("*.py")]
    return found


def named(repo: Path, pattern: re.Pattern[str]) -> list[tuple[str, str]]:
    """Where, and what is named there; a part in capitals stands for any name."""
    return [
        (f"{path.relative_to(repo)}:{number}", name)
        for path in prose(repo)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        for name in pattern.findall(line)
        if not any(part.isupper() for part in re.split(r"[/.]", name))
    ]


def test_files_that_are_named_exist(repo: Path) -> None:
    gone = [f"{where}: {name}" for where, name in named(repo, FILE) if not any(repo.glob(name.rstrip("/")))]
    assert not gone, "no such file; it moved, or never was:\n" + "\n".join(gone)


@cache
def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute (of an attribute) of one."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            fields = getattr(found, "__annotations__", {})
            if not hasattr(found, part) and part not in fields:
                return False
            found = getattr(found, part, None)
        return True
    return False


def test_names_of_the_simulator_exist(repo: Path) -> None:
    gone = [f"{where}: {name}" for where, name in named(repo, NAME) if name not in EXEMPT and not resolves(name)]
    assert not gone, "no such module or name; it moved, or never was:\n" + "\n".join(gone)
