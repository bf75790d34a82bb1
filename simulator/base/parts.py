"""Work that survives an interruption: parts by rename, a scenario hash, one writer, one final file."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.base.errors import InputError, reason
from simulator.base.files import refuse_foreign, refuse_unwritable, replaced
from simulator.base.lock import WriterLock

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = (".parquet", ".csv", ".json")
OURS = r"plan|lock(\.\d+)?|part-\d{6}\.parquet|\.part-\d{6}\.parquet\..{8}\.tmp"
"""Names in a folder of parts; one that holds others is somebody else's."""


class PartStore:
    """Folder ``OUT.parts`` beside the output, until the output is whole.

    Parameters
    ----------
    out : Path
        Final file; its suffix is one of `FORMATS`.
    plan : mapping
        Everything that decides the rows; another plan cannot resume this one.
    resume : bool
        Continue from parts that an interrupted run left.

    Raises
    ------
    InputError
        Unwritable folder, unknown suffix, a live writer, parts of another plan, or parts without `resume`.
    """

    def __init__(self, out: Path, plan: Mapping[str, Any], *, resume: bool):
        self.out = out
        refuse_unwritable(out, "--out")
        self.folder = out.with_name(out.name + ".parts")
        self.digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
        if out.suffix not in FORMATS:
            raise InputError(f"{out.name!r} must end in {', '.join(FORMATS)}", where="--out")
        self._open(resume)

    def _open(self, resume: bool) -> None:
        stale = self.folder.exists()
        refuse_foreign(self.folder, OURS)
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(exist_ok=True)
            self._lock = WriterLock(self.folder / "lock", self.out)
            for done in self.out.parent.glob(f".{glob.escape(self.folder.name)}.*.done"):
                shutil.rmtree(done, ignore_errors=True)
            self._lay(stale, resume)
        except OSError as error:
            if not stale:
                shutil.rmtree(self.folder, ignore_errors=True)
            raise InputError(f"cannot write {self.out}: {reason(error)}", where="--out") from None

    def _lay(self, stale: bool, resume: bool) -> None:
        """Take over or drop the parts that lie there."""
        plan = self.folder / "plan"
        if stale and plan.is_file():
            same = plan.read_bytes().strip() == self.digest.encode()
            if resume and not same:
                self.close()
                raise InputError(
                    f"{self.folder} belongs to another sweep; give the same arguments, or delete it", where="--resume"
                )
            if not resume:
                for part in self.folder.glob("part-*"):
                    part.unlink()
        plan.write_text(self.digest + "\n")

    def has(self, number: int) -> bool:
        """Whether part `number` is there, whole."""
        return self._path(number).is_file()

    def write(self, number: int, table: pa.Table) -> None:
        """Add a part; it appears whole or not at all."""
        import pyarrow.parquet as pq

        with replaced(self._path(number)) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    def read(self, number: int) -> pa.Table:
        """Part `number`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self._path(number)
        try:
            return pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"is damaged ({error}); delete it and resume", where=str(path)) from None

    def finish(self, count: int, schema: pa.Schema) -> None:
        """Join parts 0..count-1 into the output and remove them."""
        with replaced(self.out) as temporary:
            if self.out.suffix == ".parquet":
                self._join_parquet(temporary, count, schema)
            elif self.out.suffix == ".csv":
                self._join_csv(temporary, count)
            else:
                self._join_json(temporary, count, schema)
        # Out of the way at once, so that the next sweep of this file makes a folder of its own.
        done = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.done")
        self.folder.rename(done)
        self._lock.release()
        shutil.rmtree(done, ignore_errors=True)

    def _join_parquet(self, path: Path, count: int, schema: pa.Schema) -> None:
        import pyarrow.parquet as pq

        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for number in range(count):
                writer.write_table(self.read(number).cast(schema))

    def _join_csv(self, path: Path, count: int) -> None:
        with path.open("w", encoding="utf-8") as file:
            for number in range(count):
                frame = self.read(number).to_pandas()
                frame.to_csv(file, index=False, header=number == 0)

    def _join_json(self, path: Path, count: int, schema: pa.Schema) -> None:
        metadata = {k.decode(): v.decode() for k, v in (schema.metadata or {}).items()}
        with path.open("w", encoding="utf-8") as file:
            file.write('{"metadata": ' + json.dumps(metadata) + ', "rows": [')
            first = True
            for number in range(count):
                for row in self.read(number).to_pylist():
                    file.write(("" if first else ",") + "\n" + json.dumps(row))
                    first = False
            file.write("\n]}\n")

    def close(self) -> None:
        """Release the lock; parts are kept, a folder without any goes."""
        self._lock.release()
        if not any(self.folder.glob("part-*")):
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.parquet"
