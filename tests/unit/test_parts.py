"""Files are whole or absent: parts, locks, resumption and damage."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.base.errors import InputError
from simulator.base.interval import Interval
from simulator.base.parts import PartStore
from simulator.inference.status import STATUSES
from simulator.results.answer import Rows, Words, from_columns
from simulator.results.columns import COLUMNS, arrow_schema
from simulator.results.summary import Summary
from simulator.results.verdict import over_loads

PLAN = {"a": 1}


def block(n: int = 3, **changes: Any) -> Rows:
    """Rows with every column filled; `changes` replace columns."""
    columns: dict[str, Any] = {}
    for name, column in COLUMNS.items():
        if column.kind == "text":
            columns[name] = Words(np.zeros(n, np.int32), ["x"])
        else:
            columns[name] = np.arange(1.0, n + 1.0)
    columns["status"] = Words(np.zeros(n, np.int32), STATUSES)
    columns["reason"] = Words(np.full(n, -1), [])
    return from_columns(columns | changes)


def fill(out: Path, *, parts: int = 2, resume: bool = False) -> PartStore:
    store = PartStore(out, PLAN, resume=resume)
    for i in range(parts):
        if not store.has(i):
            store.write(i, block(i + 1).to_arrow())
    return store


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json"])
def test_parts_become_one_file_and_vanish(tmp_path: Path, suffix: str) -> None:
    import pandas as pd

    out = tmp_path / f"o{suffix}"
    store = fill(out)
    assert not out.exists()
    store.finish(2, arrow_schema({"k": "v"}))
    store.close()
    assert [p.name for p in tmp_path.iterdir()] == [out.name]
    if suffix == ".parquet":
        frame = pd.read_parquet(out)
    elif suffix == ".csv":
        frame = pd.read_csv(out)
    else:
        document = json.loads(out.read_text())
        assert document["metadata"] == {"k": "v"}
        frame = pd.DataFrame(document["rows"])
    assert list(frame.columns) == list(COLUMNS)
    assert frame["batch"].tolist() == [1, 1, 2]
    assert frame["status"].tolist() == ["ok"] * 3


def test_parquet_columns_carry_unit_and_meaning(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    store = fill(tmp_path / "o.parquet", parts=1)
    store.finish(1, arrow_schema({"shadowline.schema": "1"}))
    schema = pq.read_schema(tmp_path / "o.parquet")
    assert schema.metadata[b"shadowline.schema"] == b"1"
    for field in schema:
        assert field.metadata[b"meaning"].decode() == COLUMNS[field.name].meaning
        assert field.metadata[b"unit"].decode() == COLUMNS[field.name].unit


def test_a_resumed_store_keeps_its_parts_and_a_fresh_one_drops_them(tmp_path: Path) -> None:
    out = tmp_path / "o.parquet"
    fill(out).close()
    again = PartStore(out, PLAN, resume=True)
    assert again.has(0)
    assert again.has(1)
    again.close()
    fresh = PartStore(out, PLAN, resume=False)
    assert not fresh.has(0)
    fresh.close()


def test_parts_of_another_plan_are_refused_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "o.parquet"
    fill(out).close()
    with pytest.raises(InputError, match="belongs to another sweep"):
        PartStore(out, {"a": 2}, resume=True)
    assert PartStore(out, PLAN, resume=True).has(1)


HOLDER = """
import sys, time
from pathlib import Path
from simulator.base.lock import WriterLock
WriterLock(Path(sys.argv[1]), Path("o.parquet"))
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_writer_is_refused_and_a_dead_one_is_not_waited_for(tmp_path: Path) -> None:
    out = tmp_path / "o.parquet"
    fill(out).close()
    lock = tmp_path / "o.parquet.parts" / "lock"
    alive = subprocess.Popen([sys.executable, "-c", HOLDER, lock], stdout=subprocess.PIPE)
    try:
        assert alive.stdout is not None
        assert alive.stdout.readline() == b"held\n"
        told = rf"process {alive.pid} on {re.escape(socket.gethostname())}, since 2.*, is writing .*\(lock {lock}\)"
        with pytest.raises(InputError, match=told):
            PartStore(out, PLAN, resume=True)
        assert lock.exists()
    finally:
        alive.kill()
        alive.communicate()
    PartStore(out, PLAN, resume=True).close()
    assert not lock.exists()


@pytest.mark.parametrize("holder", [str(os.getppid()), '{"process": 1, "host": "h", "started": "2026"}', "", "\xff"])
def test_a_lock_file_that_no_process_holds_refuses_nobody(tmp_path: Path, holder: str) -> None:
    """Process 1 and our parent live: numbers of dead writers that were given to others."""
    out = tmp_path / "o.parquet"
    fill(out).close()
    (tmp_path / "o.parquet.parts" / "lock").write_text(holder)
    PartStore(out, PLAN, resume=True).close()


def test_a_folder_of_somebody_elses_is_never_taken_for_parts(tmp_path: Path) -> None:
    out = tmp_path / "o.parquet"
    folder = tmp_path / "o.parquet.parts"
    folder.mkdir()
    (folder / "part-1.stl").write_text("solid")
    for resume in (False, True):
        with pytest.raises(InputError, match=r"holds 'part-1.stl', which is not ours"):
            PartStore(out, PLAN, resume=resume)
    assert [p.name for p in folder.iterdir()] == ["part-1.stl"]


@pytest.mark.parametrize("out", [".", "..", "a/..", "/"])
def test_an_output_without_a_name_is_one_line(out: str) -> None:
    with pytest.raises(InputError, match="no name of its own"):
        PartStore(Path(out), PLAN, resume=False)


def test_a_truncated_part_is_named_and_no_output_appears(tmp_path: Path) -> None:
    out = tmp_path / "o.parquet"
    store = fill(out)
    part = sorted((tmp_path / "o.parquet.parts").glob("part-*"))[1]
    part.write_bytes(part.read_bytes()[:200])
    with pytest.raises(InputError) as caught:
        store.finish(2, arrow_schema())
    store.close()
    assert str(caught.value).startswith(str(part))
    assert "delete it and resume" in str(caught.value)
    assert not out.exists()
    assert not list(tmp_path.glob(".*.tmp"))
    part.unlink()
    again = fill(out, resume=True)
    again.finish(2, arrow_schema())
    assert out.exists()


def test_an_old_output_survives_a_failed_run(tmp_path: Path) -> None:
    out = tmp_path / "o.csv"
    out.write_text("old")
    store = fill(out)
    next((tmp_path / "o.csv.parts").glob("part-*")).write_bytes(b"junk")
    with pytest.raises(InputError):
        store.finish(2, arrow_schema())
    assert out.read_text() == "old"


@pytest.mark.parametrize("name", ["o.txt", "o", "o.parquet.gz"])
def test_unknown_suffixes_are_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="must end in"):
        PartStore(tmp_path / name, PLAN, resume=False)
    assert not list(tmp_path.iterdir())


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "o.csv", tmp_path / "d.csv"):
        (tmp_path / "d.csv").mkdir(exist_ok=True)
        with pytest.raises(InputError, match="--out"):
            PartStore(out, PLAN, resume=False)


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write anywhere")
def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot write"):
        PartStore(tmp_path / "o.csv", PLAN, resume=False)


def test_absent_numbers_are_null_everywhere() -> None:
    b = block(2, ttft_s=np.array([1.0, np.nan]), max_batch=np.array([np.nan, 7.0]))
    table = b.to_arrow()
    assert table["ttft_s"].to_pylist() == [1.0, None]
    assert table["max_batch"].to_pylist() == [None, 7]
    assert table["reason"].to_pylist() == [None, None]
    assert b.at(1).to_dict()["ttft_s"] is None
    assert b.at(1).to_dict()["max_batch"] == 7


def named(policy: str, speedup: list[float], rate: list[float], status: list[int] | None = None) -> Rows:
    n = len(speedup)
    return block(
        n,
        policy=Words(np.zeros(n, np.int32), [policy]),
        kernel=Words.same("", n),
        speculate=Words.same("", n),
        status=Words(np.array(status or [0] * n), STATUSES),
        batch=2.0 ** np.arange(n),
        prompt_tokens=np.full(n, 512.0),
        throughput_speedup_same_batch=np.array(speedup),
        tokens_per_s=np.array(rate),
        tp=np.ones(n),
        pp=np.ones(n),
    )


def test_a_summary_finds_the_best_row_and_who_wins() -> None:
    """Speed-ups 0.5, 1.0, 1.5 at batch 1, 2, 4: one win, one loss, break-even at 4."""
    s = Summary()
    s.add(named("dense", [1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))
    s.add(named("quest(budget=64)", [0.5, 1.0, 1.5], [0.5, 2.0, 4.5]))
    s.add(named("w4a16", [2.0, 2.0, 2.0], [9.0, 9.0, 9.0], [1, 1, 1]))
    answer = s.to_dict()
    assert answer["rows"] == 9
    assert answer["status"] == {"ok": 6, "does_not_fit": 3}
    (best,) = answer["best_per_device"]
    assert (best["policy"], best["batch"]) == ("quest(budget=64)", 4)
    quest, w4 = answer["policies"]
    assert quest["wins"] == quest["loses"] == pytest.approx(1 / 3)
    assert (quest["median"], quest["best"], quest["worst"]) == (1.0, 1.5, 0.5)
    assert quest["break_even"] == "wins from batch 4"
    assert (quest["verdict"], quest["p_win"]) == ("undecided", pytest.approx(0.5, abs=0.1))
    assert w4["rows"] == 0


@pytest.mark.parametrize(
    ("speedup", "words"),
    [
        ([1.1, 1.2, 1.3], "wins everywhere"),
        ([0.9, 1.0, 1.019], "never wins"),
        ([1.5, 1.1, 0.9], "wins up to batch 2"),
        ([1.5, 0.9, 0.9], "wins only at batch 1"),
        ([0.9, 1.5, 0.9], "wins only at batch 2"),
        ([1.5, 0.9, 1.5], "wins at batch 1 and from 4"),
        ([0.5, 0.6, 0.98], "loses everywhere"),
        ([0.99, 1.0, 1.019], "as fast as dense everywhere"),
    ],
)
def test_break_even_in_words(speedup: list[float], words: str) -> None:
    batch = np.array([1.0, 2.0, 4.0])
    assert over_loads(Interval.exact(np.array(speedup)), {"batch": batch, "prompt": np.full(3, 512.0)}) == words


def test_break_even_falls_back_to_the_prompt() -> None:
    prompt = np.array([128.0, 1024.0])
    speedup = Interval.exact(np.array([0.8, 1.4]))
    assert over_loads(speedup, {"batch": np.ones(2), "prompt": prompt}) == "wins from prompt 1,024"
