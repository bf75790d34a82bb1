"""Wheel and sdist as a user meets them: built, installed alone in a fresh environment, run from somebody else's folder.

    python tests/packaging.py [--python python3.12 ...]

The folder holds a ``reports.py``, an ``app/`` and a ``simulator/`` of its own, as a user's may; each would end the run
if it were imported. Dependencies come from the package index, at the newest versions that `pyproject.toml` allows.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("python3.11", "python3.12", "python3.13", "python3.14")
TRAP = "raise SystemExit('a module of the folder was imported')\n"
COMMANDS = (
    "shadowline",
    "shadowline predict --model llama-3.1-8b --device h100-sxm --policy quest",
    "shadowline sweep --model opt-125m --device l40s --policy w4a16 --batch 1,8 --quiet --out s.parquet",
    "shadowline serve --model llama-3.1-8b --device h100-sxm --rate 2 --count 50 --prompt-tokens 512 --output-tokens 8",
    "shadowline traces.collect --help",
    "shadowline doctor",
)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """What a command prints; ends with its output where it fails."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(map(str, command))}\nexit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def pythons(wanted: Sequence[str]) -> list[str]:
    """Those that run and have `venv`; all that were asked for by name must."""
    found = []
    for name in wanted or PYTHONS:
        path = shutil.which(name)
        works = path and subprocess.run([path, "-c", "import venv, ensurepip"], capture_output=True, check=False)
        if works and not works.returncode:
            found.append(name)
        elif wanted:
            raise SystemExit(f"{name} does not run here")
    return found


def tried(python: str, package: Path, pip_args: Sequence[str], folder: Path) -> None:
    """Install `package` alone under `python`, and run every command from `folder`."""
    env = folder.parent / f"env-{Path(python).name}-{package.suffix.lstrip('.')}"
    run(python, "-m", "venv", env)
    run(env / "bin/python", "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *pip_args, package)
    for command in COMMANDS:
        name, *rest = shlex.split(command)
        printed = run(env / "bin" / name, *rest, cwd=folder)
        assert printed.strip(), f"{command} prints nothing"
    where = run(env / "bin/python", "-P", "-c", "import simulator; print(simulator.__file__)", cwd=folder)
    assert str(env) in where, where
    shutil.rmtree(env)
    print(f"{python}: {package.name} installed alone, {len(COMMANDS)} commands run", flush=True)


def main() -> None:
    """Build both and try them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--python", action="append", default=[], help="repeat; default every one found")
    parser.add_argument("--pip-args", default="", help="handed to every pip install")
    given = parser.parse_args()
    pip_args = shlex.split(given.pip_args)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        folder = place / "somebody"
        for trap in ("reports.py", "app/__init__.py", "simulator/__init__.py"):
            (folder / trap).parent.mkdir(parents=True, exist_ok=True)
            (folder / trap).write_text(TRAP)
        build = place / "build"
        run(sys.executable, "-m", "venv", build)
        run(build / "bin/python", "-m", "pip", "install", "--quiet", *pip_args, "hatchling>=1.27")
        run(build / "bin/python", "-m", "hatchling", "build", "-d", place, cwd=ROOT)
        (wheel,), (sdist,) = place.glob("*.whl"), place.glob("*.tar.gz")
        found = pythons(given.python)
        if not found:
            raise SystemExit(f"none of {', '.join(PYTHONS)} runs here")
        for python in found:
            tried(python, wheel, pip_args, folder)
        tried(found[0], sdist, pip_args, folder)


if __name__ == "__main__":
    main()
