"""The house itself: who imports whom, what starts fast, what never enters a tracked file."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

PACKAGES = ("simulator", "traces", "reports", "kernels/sparse_kernels")
HEAVY = ("pandas", "scipy", "pyarrow", "torch", "triton", "transformers", "streamlit", "matplotlib")
MAX_LINES = 500

# Spelt in pieces, or this file would find itself.
MACHINE_ROOTS = ("work", "root", r"home/\w+", r"Users/\w+", "opt/pypi", "opt/wheels", "tmp/w")
MACHINE_PATHS = re.compile(r"(?<![\w.$}~-])/(?:" + "|".join(MACHINE_ROOTS) + ")/")
REGISTRY_WORDS = (
    ("pypi", r"\.org"),
    ("python", r"hosted\.org"),
    ("download", r"\.pytorch\.org"),
    ("registry", r"\.npmjs"),
    ("extra-", "index-url"),
    ("--index", "-url"),
    ("find", "-links"),
)
REGISTRIES = re.compile("|".join(head + tail for head, tail in REGISTRY_WORDS))


def verbs() -> list[str]:
    """Modules that `python -m` runs: those with a command-line application."""
    repo, found = Path(__file__).parents[2], []
    for package in PACKAGES:
        root = (repo / package).parent
        for file in sorted((repo / package).rglob("*.py")):
            if "= typer.Typer(" in file.read_text(encoding="utf-8"):
                parts = file.relative_to(root).with_suffix("").parts
                found.append(".".join(p for p in parts if p != "__main__"))
    return found


VERBS = verbs()


def tracked_text_files(repo: Path) -> list[Path]:
    """Files git has or would add, without binaries."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=repo,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = (repo / name for name in listed.stdout.split("\0") if name)
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:8192]]


def test_import_contracts_hold(repo: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=repo, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_main_verbs_exist() -> None:
    names = ("predict", "sweep", "devices", "models", "policies", "validate", "calibrate", "claims")
    assert {f"simulator.{name}" for name in names} <= set(VERBS)
    assert {"traces.collect", "sparse_kernels.bench"} <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_verb_starts_light(verb: str, repo: Path, record_property) -> None:
    """`--help` works in a fresh process without the libraries that take most of a second to import.

    Seconds are recorded, not asserted: a loaded machine is not a defect of the code.
    """
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{verb}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('{verb}', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        f"print('heavy:', *[m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True)
    record_property("help_s", round(time.perf_counter() - start, 3))
    assert done.returncode == 0, done.stderr
    *help_text, heavy = done.stdout.splitlines()
    assert "usage" in "\n".join(help_text).casefold()
    assert heavy.split() == ["heavy:"]


@pytest.mark.parametrize("verb", VERBS)
def test_verb_is_documented(verb: str, repo: Path) -> None:
    assert f"python -m {verb}`" in (repo / "README.md").read_text(encoding="utf-8")


def test_simulator_imports_without_torch(repo: Path) -> None:
    """The core works where torch cannot be imported at all."""
    code = (
        "import sys, pkgutil, importlib, simulator\n"
        "sys.modules.update(dict.fromkeys(('torch', 'triton', 'transformers', 'streamlit')))\n"
        "for m in pkgutil.walk_packages(simulator.__path__, 'simulator.'):\n"
        "    if not m.name.endswith('__main__'):\n"
        "        importlib.import_module(m.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_policy_files_and_entry_points_agree(repo: Path) -> None:
    """A policy file without an entry point would exist only for those who import it by hand."""
    project = tomllib.loads((repo / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = project["entry-points"]["shadowline.policies"]
    registering = {
        f"simulator.policies.{path.stem}"
        for path in (repo / "simulator" / "policies").glob("*.py")
        if re.search(r"^@POLICIES\.register\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert set(points.values()) == registering


def test_no_tracked_file_names_a_machine_or_a_registry(repo: Path) -> None:
    found = []
    for path in tracked_text_files(repo):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            hit = MACHINE_PATHS.search(line) or REGISTRIES.search(line)
            if hit:
                found.append(f"{path.relative_to(repo)}:{number}: {hit.group()}")
    assert not found, "\n".join(found)


def test_files_stay_readable(repo: Path) -> None:
    lengths = {
        str(path.relative_to(repo)): len(path.read_text(encoding="utf-8").splitlines())
        for folder in ("simulator", "traces", "kernels", "reports", "app")
        for path in (repo / folder).rglob("*.py")
    }
    assert lengths
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def test_extras_and_constraints_agree(repo: Path) -> None:
    """Each direct dependency is pinned once, and nothing else is."""
    project = tomllib.loads((repo / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(text for extra in extras for text in extra)]
    names = {re.split(r"[\[<>=;]", text, maxsplit=1)[0].strip().casefold() for text in wanted}
    lines = (repo / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", pin) for pin in pins)
    assert sorted(pin.split("==")[0] for pin in pins) == sorted(names - {"shadowline"})
