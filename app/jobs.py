"""A verb that takes long, run beside the page as the command line would: its progress, its end, and how to stop it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import app
from simulator.base.errors import EXIT_NOTHING_FEASIBLE, EXIT_OK

ENDED_WELL = (EXIT_OK, EXIT_NOTHING_FEASIBLE)
ROOT = Path(app.__file__).parents[1]
_PROGRESS = re.compile(r"(?P<label>[a-z ]+): (?P<done>\d+)/(?P<total>\d+)")


class Job:
    """A running or finished command in a folder of its own, which goes when the job does.

    Parameters
    ----------
    words : sequence of str
        What follows ``python -m``.
    files : mapping of name to bytes
        Laid into the folder first.
    """

    def __init__(self, words: Sequence[str], files: Mapping[str, bytes]):
        self.words = tuple(words)
        self.cancelled = False
        self.folder = Path(tempfile.mkdtemp(prefix="shadowline-"))
        for name, content in files.items():
            (self.folder / name).write_bytes(content)
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        with (self.folder / "stdout").open("wb") as out, (self.folder / "stderr").open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, "PYTHONPATH": path},
            )
        # A visitor who leaves takes the work along.
        weakref.finalize(self, _end, self._process, self.folder)

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    @property
    def ended_well(self) -> bool:
        """Whether there is a result, be it that nothing is feasible."""
        return not self.cancelled and self._process.poll() in ENDED_WELL

    def cancel(self) -> None:
        """Stop it; there is no result then."""
        self.cancelled = True
        _kill(self._process)

    def progress(self) -> tuple[str, float]:
        """What it does, and the share of that which is done [-]."""
        found = list(_PROGRESS.finditer(self._said()))
        if not found:
            return "starting", 0.0
        last = found[-1]
        text = f"{last['label'].strip()}: {last['done']} of {last['total']}"
        return text, int(last["done"]) / int(last["total"])

    def problem(self) -> str:
        """Its one line of error."""
        lines = [line for line in self._said().splitlines() if line.strip()]
        told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return told[-1] if told else lines[-1] if lines else "it ended without a word"

    def _said(self) -> str:
        return (self.folder / "stderr").read_text("utf-8", errors="replace")


def _end(process: subprocess.Popen[bytes], folder: Path) -> None:
    _kill(process)
    shutil.rmtree(folder, ignore_errors=True)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()
