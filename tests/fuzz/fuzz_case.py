"""One try: a verb, its arguments and files, run in this process; and what must hold however it ends."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
MOST_S = 10.0
"""Processor time a bad input may take [s]; the valid seeds take below 1 s."""
MOST_BYTES = 1 << 30
"""Growth of the process by one input [B]."""
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Case:
    """A call: ``@/`` in an argument stands for the folder that holds `files`."""

    verb: str
    args: tuple[str, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Texts as they are where they are short UTF-8, else base64."""
        return {"verb": self.verb, "args": list(self.args), "files": {k: _packed(v) for k, v in self.files.items()}}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Case:
        """Inverse of `to_json`."""
        files = {
            k: v.encode() if isinstance(v, str) else base64.b64decode(v["base64"])
            for k, v in told.get("files", {}).items()
        }
        return cls(told["verb"], tuple(told["args"]), files)


def _packed(content: bytes) -> Any:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode()}


@dataclass(frozen=True)
class Problem:
    """What should not have happened; `key` is equal for what has the same cause."""

    key: str
    detail: str


class TooLongError(BaseException):
    """The processor time is used up; not an `Exception`, so that nobody catches it."""


@dataclass(frozen=True)
class Ended:
    """How a case ended: exit status, what it said, and what was wrong with that."""

    code: int
    out: str
    err: str
    problem: Problem | None


def ended(case: Case, verbs: Mapping[str, Callable[[], Any]]) -> Ended:
    """Run `case` in a folder of its own and judge its end."""
    folder = Path(tempfile.mkdtemp(prefix="f"))
    before_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.process_time()
    try:
        for name, content in case.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        args = [a.replace("@/", f"{folder}/") for a in case.args]
        told, code, out, err = _called(verbs[case.verb], case.verb, args)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before_bytes
        used = time.process_time() - start
        told = told or _judged(code, out, err, case, folder)
        if told is None and grown > MOST_BYTES:
            told = Problem(f"{case.verb}: memory", f"{grown / 2**20:.0f} MiB more")
        if told is None and used > MOST_S:
            told = Problem(f"{case.verb}: time", f"{used:.1f} s")
        return Ended(code, out, err, told)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TooLongError

    old = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, MOST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, old)


def _called(verb: Callable[[], Any], name: str, args: list[str]) -> tuple[Problem | None, int, str, str]:
    # Streams as a terminal has them: strict UTF-8 out, and err that escapes what it cannot write.
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors=e) for e in ("strict", "backslashreplace"))
    old = sys.argv
    sys.argv = [name, *args]
    told, code = None, 0
    try:
        with _limited(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("error")
            verb()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
    except TooLongError:
        told = Problem(f"{name}: time at {_place(sys.exc_info()[2])}", f"more than {MOST_S:g} s")
    except BaseException as error:  # noqa: BLE001 - whatever comes is a finding
        told = Problem(
            f"{name}: {type(error).__name__} at {_place(error.__traceback__)}", f"{type(error).__name__}: {error}"[:300]
        )
    finally:
        sys.argv = old
    out.flush()
    err.flush()
    texts = [s.buffer.getvalue().decode() for s in (out, err)]  # type: ignore[attr-defined]
    return told, int(code), *texts


def _place(trail: Any) -> str:
    """Deepest line of the traceback in this repository."""
    found = "?"
    for frame in traceback.extract_tb(trail):
        if "tests/fuzz" not in frame.filename and "site-packages" not in frame.filename:
            for top in ("simulator", "reports", "app", "traces", "sparse_kernels"):
                if f"/{top}/" in frame.filename:
                    found = f"{top}/{frame.filename.rpartition(f'/{top}/')[2]}:{frame.name}:{frame.lineno}"
    return found


def _judged(code: int, out: str, err: str, case: Case, folder: Path) -> Problem | None:
    verb = case.verb
    if code not in (0, 2, 3):
        return Problem(f"{verb}: exit {code}", err[-300:])
    for stream, text in (("stdout", out), ("stderr", err)):
        if match := CONTROL.search(text):
            return Problem(f"{verb}: control character on {stream}", repr(text[max(0, match.start() - 60) :][:160]))
    lines = err.splitlines()
    if code == 2:
        # A profile names every problem at once, each line with its place.
        many = all(re.search(r"\.toml:\d+: ", line) for line in lines)
        if not err.startswith("error: ") or (len(lines) > 1 and not many):
            return Problem(f"{verb}: not one line", repr(err[:300]))
        if len(err) > 2000 and not many:
            return Problem(f"{verb}: a line of {len(err)} characters", repr(err[:200]))
        if out:
            return Problem(f"{verb}: output beside an error", repr(out[:200]))
    elif any(line.startswith("Traceback") or "Warning:" in line for line in lines):
        return Problem(f"{verb}: {lines[-1][:80]}", err[-300:])
    if code == 3 and not (out or err):
        return Problem(f"{verb}: silent", "exit 3 without a word")
    if code == 0 and "--json" in case.args:
        try:
            told = json.loads(out, parse_constant=_no_constant)
        except ValueError as error:
            return Problem(f"{verb}: bad JSON", f"{error}: {out[:200]!r}")
        if wrong := _wrong_number(told):
            return Problem(f"{verb}: wrong number {wrong.split(' ')[0]}", wrong)
    left = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - set(case.files)
    if left and code == 2:
        return Problem(f"{verb}: files left behind", ", ".join(sorted(left)))
    if any(name.endswith((".tmp", "lock")) for name in left):
        return Problem(f"{verb}: temporary files left behind", ", ".join(sorted(left)))
    return None


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _wrong_number(told: Any) -> str:
    """A time, rate or size of a good row that is not finite and above zero; empty where all are."""
    for row in told.get("rows", ()) if isinstance(told, dict) else ():
        if not isinstance(row, dict) or row.get("status") not in ("ok", "STABLE"):
            continue
        for key, value in row.items():
            if key.startswith(
                ("ttft", "tpot", "e2e", "itl", "tokens_per_s", "total_bytes", "weights_bytes", "usd_per")
            ):
                # The end of a percentile that a short run leaves open is null.
                if key.startswith(("tpot", "itl")) or "_run_" in key or isinstance(value, str):
                    continue
                free = key.startswith("usd") and value == 0.0
                if not free and (value is None or not 0.0 < value < 1e300):
                    return f"{key} = {value}"
        for mid in ("ttft", "tpot"):
            low, middle, high = (row.get(f"{mid}{end}_s") for end in ("_lo", "", "_hi"))
            if None not in (low, middle, high) and not low <= middle * 1.0001 <= high * 1.0002:
                return f"{mid} interval {low} {middle} {high}"
    return ""


def in_home() -> None:
    """An empty home, no network, one thread: what a try may read and use."""
    os.environ.update(
        HF_HUB_OFFLINE="1",
        NO_COLOR="1",
        COLUMNS="200",
        OMP_NUM_THREADS="1",
        MKL_NUM_THREADS="1",
        STREAMLIT_LOGGER_LEVEL="error",
        SHADOWLINE_HOME=tempfile.mkdtemp(prefix="shadowline-fuzz-"),
    )
