"""What every test shares: where data lies, what is skipped and why, no trace left behind."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

REPO = Path(__file__).resolve().parent.parent
DATA_DIR = Path(os.environ.get("SHADOWLINE_DATA") or REPO.parent / "shared" / "data")

# Read at import by the libraries they speak to, so they are set before any test module loads.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["NO_COLOR"] = "1"
os.environ["COLUMNS"] = "200"
os.environ.pop("FORCE_COLOR", None)
# Kernels run in Triton's interpreter, on any machine; TRITON_INTERPRET=0 runs them on a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

# The same examples on every run; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("ci", derandomize=True, deadline=None, database=None)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

NO_DATA = "measured data absent"
NO_TORCH = "torch not installed"
NO_GPU = "no GPU"
NO_BROWSER = "no browser"


def pytest_configure(config: pytest.Config) -> None:
    """Point the user's folder at an empty one: a test must neither read nor write the real one."""
    home = tempfile.TemporaryDirectory(prefix="shadowline-tests-")
    config.add_cleanup(home.cleanup)
    os.environ["SHADOWLINE_HOME"] = home.name


@pytest.fixture(autouse=True)
def _own_main() -> Iterator[None]:
    """Streamlit's runner leaves its page as ``__main__``, which worker processes would then import."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a verb's typer app in this process: exit status, stdout, stderr."""
    from simulator.base import console

    def call(app: Any, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["verb", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            console.main(app)
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


def _has_gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Turn each marker whose need is not met into a skip with its reason."""
    used = {mark.name for item in items for mark in item.iter_markers()}
    lacking = {}
    if "data" in used and not DATA_DIR.is_dir():
        lacking["data"] = NO_DATA
    if "torch" in used and importlib.util.find_spec("torch") is None:
        lacking["torch"] = NO_TORCH
    if "gpu" in used and not _has_gpu():
        lacking["gpu"] = NO_GPU
    if "browser" in used and not (shutil.which("chromium") or shutil.which("google-chrome")):
        lacking["browser"] = NO_BROWSER
    for item in items:
        for mark in item.iter_markers():
            if mark.name in lacking:
                item.add_marker(pytest.mark.skip(reason=lacking[mark.name]))
                break


@pytest.fixture(scope="session")
def repo() -> Path:
    """Root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the measured tables ($SHADOWLINE_DATA, else ../shared/data beside the checkout)."""
    if not DATA_DIR.is_dir():
        pytest.skip(NO_DATA)
    return DATA_DIR


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests, and whole files of them, were skipped and why; `.ci/run` repeats these lines at its end."""
    tests: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        (tests if "::" in report.nodeid else files)[text.removeprefix("Skipped: ")] += 1
    terminalreporter.section("skipped by reason")
    for reason, _ in (tests + files).most_common():
        whole = f" and {files[reason]} whole files" if files[reason] else ""
        terminalreporter.write_line(f"skipped: {tests[reason]:4d}{whole}  {reason}")
    if not tests + files:
        terminalreporter.write_line("skipped:    0  nothing was skipped")
