"""``shadowline VERB``: the same verbs as ``python -m simulator``, from a folder whose own modules are not imported."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

from simulator.__main__ import main

ROOT = Path(__file__).parents[2]


def test_the_script_is_the_list_of_verbs() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    module, _, name = scripts["shadowline"].partition(":")
    assert getattr(import_module(module), name) is main


def test_modules_of_the_users_folder_are_not_imported(tmp_path: Path) -> None:
    for trap in ("reports.py", "app/__init__.py", "traces/__init__.py"):
        (tmp_path / trap).parent.mkdir(exist_ok=True)
        (tmp_path / trap).write_text("raise SystemExit('imported')\n")
    # A script's own folder stands first on the path, never the one it is run from: as with -P.
    told = "import sys; from simulator.__main__ import main; sys.argv[1:] = {}; main()"
    for args in (["predict", "--model", "opt-125m", "--device", "l40s"], ["reports.build", "--help"]):
        done = subprocess.run(
            [sys.executable, "-P", "-c", told.format(args)], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout
