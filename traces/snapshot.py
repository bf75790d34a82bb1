"""A run that survives ``kill -9``: its whole state beside the output, replaced by rename, one writer."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.base.errors import InputError, reason
from simulator.base.files import refuse_foreign, refuse_special, replaced
from simulator.base.lock import WriterLock

if TYPE_CHECKING:
    from traces.means import State

OURS = r"plan\.json|state\.safetensors|log\.jsonl|lock|\.(plan\.json|state\.safetensors|log\.jsonl|scores)\..{8}\.tmp"
"""Names in the folder of a run's state; one that holds others is somebody else's."""


class Snapshots:
    """Folder ``OUT.parts`` while a trace is being collected, or predictors judged.

    Parameters
    ----------
    out : Path
        The trace folder, or the table, that the run ends in.
    plan : mapping
        Everything that decides it; a state of another plan cannot be continued.
    resume : bool
        Continue from the state an interrupted run left.

    Attributes
    ----------
    plan : dict
        As given, with what an interrupted run had settled before (its day).

    Raises
    ------
    InputError
        Unwritable folder, a live writer, or a state of another plan.
    """

    def __init__(self, out: Path, plan: Mapping[str, Any], *, settled: Mapping[str, Any], resume: bool):
        refuse_special(out, "--out")
        self.folder = out.with_name(out.name + ".parts")
        refuse_foreign(self.folder, OURS)
        self.digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
        self.settled = dict(settled)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = WriterLock(self.folder / "lock", out)
        except OSError as error:
            raise InputError(f"cannot write {self.folder}: {reason(error)}", where="--out") from None
        self._open(resume)

    def _open(self, resume: bool) -> None:
        path = self.folder / "plan.json"
        if resume and path.is_file():
            known = json.loads(path.read_text("utf-8"))
            if known["digest"] != self.digest:
                self.close()
                raise InputError(
                    f"{self.folder} belongs to a run with other arguments, text or versions; give the "
                    "same ones, or delete it",
                    where="--resume",
                )
            self.settled = known["settled"]
            return
        self._state.unlink(missing_ok=True)
        self._log.unlink(missing_ok=True)
        text = json.dumps({"digest": self.digest, "settled": self.settled})
        _replace(path, text.encode())

    @property
    def _state(self) -> Path:
        return self.folder / "state.safetensors"

    def load(self) -> tuple[State, int]:
        """State on the CPU and number of batches it holds; empty at the start."""
        from safetensors import safe_open

        if not self._state.is_file():
            return {}, 0
        with safe_open(self._state, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            done = int(file.metadata()["batches"])
        return state, done

    def save(self, state: State, batches: int) -> None:
        """Replace the saved state; it is whole at every moment."""
        from safetensors.torch import save

        tensors = {name: tensor.contiguous() for name, tensor in state.items()}
        _replace(self._state, save(tensors, {"batches": str(batches)}))

    @property
    def _log(self) -> Path:
        return self.folder / "log.jsonl"

    def logged(self) -> list[Any]:
        """What `log` was given, but for a line that a kill cut short, which is removed."""
        if not self._log.is_file():
            return []
        raw = self._log.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if whole != raw:
            _replace(self._log, whole)
        return [json.loads(line) for line in whole.splitlines()]

    def log(self, record: Any) -> None:
        """Add one finished piece of work."""
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Let another writer in; the state stays."""
        self._lock.release()

    def finish(self) -> None:
        """Remove the folder; the trace is written."""
        self.close()
        shutil.rmtree(self.folder)


def _replace(path: Path, raw: bytes) -> None:
    with replaced(path) as temporary:
        temporary.write_bytes(raw)
