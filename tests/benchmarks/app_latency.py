"""How long a moved slider takes to new numbers on screen: ``python tests/benchmarks/app_latency.py [--json FILE]``.

Two clocks over the same changes of batch, each a scenario not asked before. "server": processor time of one run of
the page in Streamlit's own runner, which a busy machine does not stretch. "screen": wall time in chromium from the
key press to the new tokens/s in the document, the browser's and the server's work included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tests" / "browser"))
LINK = "model=llama-2-7b&device=h100-sxm&policy=teal(keep=0.5)&prompt_tokens=512&batch={}"
CHANGES = 30
TARGET_S = 0.3


def server_times() -> list[float]:
    """Processor time of each run after the first [s]."""
    from streamlit.testing.v1 import AppTest

    at = AppTest.from_file(str(REPO / "app" / "main.py"), default_timeout=120)
    for pair in LINK.format(100).split("&"):
        key, _, value = pair.partition("=")
        at.query_params[key] = value
    at.run()
    out = []
    for i in range(CHANGES):
        at.number_input(key="batch").set_value(101 + i)
        start = time.process_time()
        at.run()
        out.append(time.process_time() - start)
        assert not at.exception
    return out


def processor_s(pid: int) -> float:
    """Processor time of a process and its children so far [s]."""
    out, tick = 0.0, os.sysconf("SC_CLK_TCK")
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if pid in (int(stat.parent.name), int(fields[1])):
            out += (int(fields[11]) + int(fields[12])) / tick
    return out


def screen_times() -> tuple[list[float], float]:
    """Wall time from key press to new numbers in chromium [s], and the server's processor time per change [s]."""
    import shutil

    from conftest import free_port
    from playwright.sync_api import Error, sync_playwright

    port = free_port()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", "app/main.py", "--server.port", str(port)],
        cwd=REPO,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with sync_playwright() as p:
            browser = p.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-dev-shm-usage"]
            )
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(120_000)
            address = f"http://localhost:{port}/?{LINK.format(200)}"
            for _ in range(120):
                try:
                    page.goto(address)
                    break
                except Error:  # the server is not up yet
                    time.sleep(1)
            value = page.locator('[data-testid="stMetricValue"]').first
            value.wait_for()
            box = page.get_by_role("spinbutton", name="Batch [sequences]")
            page.wait_for_timeout(8000)
            out, before = [], processor_s(server.pid)
            for _ in range(CHANGES):
                box.focus()
                out.append(page.evaluate(WATCH_AND_PRESS))
            used = processor_s(server.pid) - before
            browser.close()
            return out, used / CHANGES
    finally:
        server.terminate()
        server.wait(timeout=20)


# Steps the focused number by one and resolves when the first metric's text has changed.
WATCH_AND_PRESS = """() => new Promise(done => {
  const old = document.querySelector('[data-testid="stMain"]').querySelectorAll('[data-testid="stMetricValue"]');
  const before = [...old].map(e => e.innerText).join();
  const start = performance.now();
  const watch = new MutationObserver(() => {
    const now = [...document.querySelectorAll('[data-testid="stMetricValue"]')].map(e => e.innerText).join();
    if (now && now !== before) { watch.disconnect(); done((performance.now() - start) / 1000); }
  });
  watch.observe(document.body, {subtree: true, childList: true, characterData: true});
  const step = document.querySelector('[data-testid="stNumberInputStepUp"]');
  step.click();
})"""


def main() -> None:
    """Print median and 95th percentile of both clocks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--server-only", action="store_true")
    chosen = parser.parse_args()
    found = {"server": server_times()}
    if not chosen.server_only:
        found["screen"], used = screen_times()
        print(f"server in the browser's run: {used:.3f} s of processor time per change")
    for name, times in found.items():
        median, p95 = np.quantile(times, [0.5, 0.95])
        print(f"{name}: median {median:.3f} s, p95 {p95:.3f} s over {len(times)} changes (target {TARGET_S} s median)")
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if chosen.json:
        chosen.json.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
