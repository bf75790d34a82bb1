"""A running dashboard and a browser for it: Debian's chromium, driven by Playwright, nothing downloaded."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PATIENCE_MS = 120_000
"""The machine may be busy; a test that passes is as quick as the machine is."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[str]:
    """Address of a dashboard of its own."""
    port, home = free_port(), tmp_path_factory.mktemp("home")
    log = (home / "server.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", "app/main.py", "--server.port", str(port)],
        cwd=REPO,
        stdout=log,
        stderr=log,
        env={**os.environ, "SHADOWLINE_HOME": str(home), "HF_HUB_OFFLINE": "1"},
    )
    address = f"http://localhost:{port}"
    try:
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"{address}/_stcore/health", timeout=5):
                    break
            except OSError:
                assert process.poll() is None, (home / "server.log").read_text()
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=20)
        log.close()


@pytest.fixture(scope="session")
def chromium():
    """The system's browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright not installed")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield browser
        browser.close()


@dataclass
class Visit:
    """One browser window on the dashboard, and what went wrong in it."""

    page: object
    address: str
    errors: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    def open(self, link: str = "") -> None:
        self.page.goto(f"{self.address}/{link}")
        self.settled()

    def settled(self) -> None:
        """Until the script has run and nothing is still being drawn."""
        self.page.wait_for_function(
            """() => {
              const app = document.querySelector('[data-testid="stApp"]');
              return app && app.dataset.testScriptState === 'notRunning'
                && document.querySelector('[data-testid="stMain"] [data-testid="stElementContainer"]')
                && !document.querySelector('[data-testid="stSkeleton"]');
            }""",
            polling=250,
        )

    def metric(self, label: str):
        """Tile of one number."""
        return self.page.locator('[data-testid="stMetric"]').filter(has_text=label)

    def value(self, label: str) -> str:
        return self.metric(label).locator('[data-testid="stMetricValue"]').inner_text()

    def number(self, label: str):
        """Number input of the sidebar."""
        return self.page.get_by_role("spinbutton", name=label)

    def set(self, label: str, value: int) -> None:
        box = self.number(label)
        box.fill(str(value))
        box.press("Enter")


@pytest.fixture(scope="session")
def profile(chromium):
    """One profile for all windows, so that scripts are fetched and compiled once."""
    context = chromium.new_context(reduced_motion="reduce")
    context.set_default_timeout(PATIENCE_MS)
    yield context
    context.close()


@pytest.fixture
def visit(server, profile):
    """A fresh window of 1280 pixels; ``visit(width=390, scheme="dark")`` for another."""
    pages = []

    def new(width: int = 1280, scheme: str = "light") -> Visit:
        page = profile.new_page()
        pages.append(page)
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        found = Visit(page, server)
        page.on("console", lambda m: found.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: found.errors.append(str(e)))
        page.on("request", lambda r: found.strangers.append(r.url) if not _ours(r.url, server) else None)
        return found

    yield new
    for page in pages:
        page.close()


def _ours(url: str, address: str) -> bool:
    return url.startswith((address, address.replace("http", "ws"), "data:", "blob:"))
