"""Does the dashboard hold under many visitors: ``python tests/benchmarks/app_soak.py [--sessions 20] [--minutes 10]``.

Each session speaks the browser's own protocol to a real server: it opens a link, changes the batch every few seconds,
looks at other pages, leaves after a while and comes back as a new one. Prints the server's resident memory at the
start, after the warm-up and at the end, its processor time, what was answered and what went wrong. Exit 1 where an
answer held an exception, a session broke, or memory grew by more than a tenth after the warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

REPO = Path(__file__).resolve().parents[2]
LINKS = (
    "model=llama-2-7b&device=h100-sxm&policy=teal(keep=0.5)&prompt_tokens=512",
    "model=llama-3.1-8b&device=rtx-4090&policy=kv_quant(bits=4)&prompt_tokens=4096",
    "model=mixtral-8x7b&device=a100-sxm-80g&policy=w4a16&tp=2",
    "model=opt-30b&device=h100-sxm&policy=dejavu(keep=0.25)",
)
CHANGES = 30
"""Changes of a visit before its visitor leaves."""
MOST_GROWTH = 0.1
"""Growth of memory after the warm-up that still counts as flat [-]."""
ANSWER_S = 60.0


@dataclass
class Seen:
    """What all sessions saw together."""

    waits_s: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    numbers: set[str] = field(default_factory=set)
    pages: set[str] = field(default_factory=set)
    visits: int = 0


class Visit:
    """One visitor's connection, from opening a link to leaving."""

    def __init__(self, socket: Any, link: str, seen: Seen):
        self.socket, self.link, self.seen = socket, link, seen
        self.batch_id = ""
        self.pages: list[str] = []
        self.page = ""

    async def answer(self, batch: int | None = None) -> None:
        """Ask for a run of the page, with another batch where one is given, and read until it is done."""
        from streamlit.proto.BackMsg_pb2 import BackMsg
        from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

        ask = BackMsg()
        ask.rerun_script.query_string = self.link
        ask.rerun_script.page_script_hash = self.page
        if batch is not None and self.batch_id:
            state = ask.rerun_script.widget_states.widgets.add()
            state.id, state.int_value = self.batch_id, batch
        start = time.monotonic()
        await self.socket.send(ask.SerializeToString())
        while True:
            told = ForwardMsg()
            told.ParseFromString(await asyncio.wait_for(self.socket.recv(), ANSWER_S))
            self._take(told)
            # A page that puts its address right runs again by itself; only the last end is waited for.
            if told.WhichOneof("type") == "script_finished" and told.script_finished == 0:
                break
        self.seen.waits_s.append(time.monotonic() - start)

    def _take(self, told: Any) -> None:
        if told.HasField("navigation"):
            self.pages = [p.page_script_hash for p in told.navigation.app_pages]
            self.seen.pages.add(told.navigation.page_script_hash)
        if told.HasField("page_not_found"):
            self.seen.errors["a page was not found"] += 1
        if not told.HasField("delta"):
            return
        element = told.delta.new_element
        kind = element.WhichOneof("type")
        if kind == "exception":
            self.seen.errors[f"{element.exception.type}: {element.exception.message[:120]}"] += 1
        elif kind == "number_input" and element.number_input.label.startswith("Batch"):
            self.batch_id = element.number_input.id
        elif kind == "metric":
            self.seen.numbers.add(element.metric.body)


async def visitor(address: str, until: float, pause_s: float, seen: Seen, rng: random.Random) -> None:
    """Visits until time is up."""
    import websockets

    while time.monotonic() < until:
        try:
            async with websockets.connect(
                address,
                max_size=None,
                subprotocols=["streamlit"],
                ping_interval=None,  # type: ignore[list-item]
            ) as socket:
                seen.visits += 1
                visit = Visit(socket, rng.choice(LINKS), seen)
                await visit.answer()
                for _ in range(CHANGES):
                    if time.monotonic() > until:
                        return
                    await asyncio.sleep(rng.uniform(0.5, 1.5) * pause_s)
                    if visit.pages and rng.random() < 0.2:
                        visit.page = rng.choice(visit.pages)
                    await visit.answer(rng.randint(1, 512))
        except (OSError, TimeoutError, websockets.WebSocketException) as error:
            seen.errors[f"{type(error).__name__}: {error}"[:160]] += 1
            await asyncio.sleep(1.0)


def memory_bytes(pid: int) -> int:
    """Resident memory [B]."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def watch(pid: int, start: float, until: float, found: list[tuple[float, int]]) -> None:
    """Memory every ten seconds, one line a minute."""
    said = 0
    while time.monotonic() < until:
        at = time.monotonic() - start
        found.append((at, memory_bytes(pid)))
        if int(at // 60) >= said:
            said = int(at // 60) + 1
            print(f"{at / 60:5.1f} min  {found[-1][1] / 2**20:6.0f} MiB", flush=True)
        await asyncio.sleep(10.0)


async def soak(port: int, pid: int, chosen: argparse.Namespace) -> tuple[list[tuple[float, int]], Seen]:
    """All visitors at once."""
    seen, found, start = Seen(), [], time.monotonic()
    until = start + 60.0 * chosen.minutes
    address = f"ws://localhost:{port}/_stcore/stream"
    people = [visitor(address, until, chosen.pause, seen, random.Random(i)) for i in range(chosen.sessions)]
    await asyncio.gather(watch(pid, start, until, found), *people)
    return found, seen


def main() -> None:
    """Start a server, send the visitors, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--pause", type=float, default=5.0, help="mean time between a visitor's changes [s]")
    parser.add_argument("--warm-up", type=float, default=3.0, help="minutes until caches may be full")
    chosen = parser.parse_args()
    sys.path.insert(0, str(REPO / "tests" / "browser"))
    from conftest import free_port

    port = free_port()
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "SHADOWLINE_HOME": home}
        server = subprocess.Popen(
            [sys.executable, "-m", "streamlit", "run", "app/main.py", f"--server.port={port}", "--server.headless=1"],
            cwd=REPO,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait(port)
            begin = memory_bytes(server.pid)
            found, seen = asyncio.run(soak(port, server.pid, chosen))
            times = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
            used = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
            end = memory_bytes(server.pid)
        finally:
            server.terminate()
            server.wait(timeout=20)
    warm = next((m for at, m in found if at >= 60.0 * chosen.warm_up), begin)
    median, p95 = np.quantile(seen.waits_s, [0.5, 0.95]) if seen.waits_s else (np.nan, np.nan)
    print(
        f"{chosen.sessions} sessions at once for {chosen.minutes:g} min, {seen.visits} visits,"
        f" {len(seen.waits_s)} answers: median {median:.2f} s, p95 {p95:.2f} s; {used:.0f} s of processor time"
    )
    print(f"{len(seen.pages)} pages, {len(seen.numbers):,} different numbers shown")
    print(
        f"resident memory: start {begin / 2**20:.0f} MiB, after {chosen.warm_up:g} min {warm / 2**20:.0f} MiB,"
        f" end {end / 2**20:.0f} MiB, most {max(m for _, m in found) / 2**20:.0f} MiB"
    )
    print(f"errors: {sum(seen.errors.values())}")
    for text, times in seen.errors.most_common(10):
        print(f"    {times} x {text}")
    raise SystemExit(1 if seen.errors or not seen.waits_s or end > (1.0 + MOST_GROWTH) * warm else 0)


def _wait(port: int) -> None:
    """Until the server answers."""
    from urllib.error import URLError
    from urllib.request import urlopen

    for _ in range(120):
        try:
            urlopen(f"http://localhost:{port}/_stcore/health", timeout=5).close()
            return
        except (URLError, OSError):
            time.sleep(0.5)
    raise SystemExit("the server did not start")


if __name__ == "__main__":
    main()
