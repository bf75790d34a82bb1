"""Outputs that cannot be written, that somebody else writes too, or that are links; and tables that unpack to more."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz_case import Case, Ended, ended
from fuzz_valid import MEASURED, SMALL, split
from fuzz_verbs import VERBS

from simulator.base.errors import InputError
from simulator.base.files import replaced
from simulator.base.parquet import read_parquet

TRAFFIC = split("--rate 5 --count 20 --prompt-tokens 100 --output-tokens 20 --quiet")
WRITERS = {
    "sweep.parquet": ("sweep", (*SMALL, "--quiet", "--out", "{0}/o.parquet")),
    "sweep.csv": ("sweep", (*SMALL, "--quiet", "--out", "{0}/o.csv")),
    "sweep.json": ("sweep", (*SMALL, "--quiet", "--out", "{0}/o.json")),
    "serve.parquet": ("serve", (*SMALL, *TRAFFIC, "--out", "{0}/o.parquet")),
    "serve.csv": ("serve", (*SMALL, *TRAFFIC, "--out", "{0}/o.csv")),
    "timeline": ("serve", (*SMALL, *TRAFFIC, "--timeline", "{0}/o.json")),
    "load": ("serve", (*SMALL, *TRAFFIC, "--load", "{0}/o.json")),
    "report": ("report", ("h100-sxm", "-o", "{0}/o.html")),
    "calibrate": ("calibrate", split("--kind gemm --data {1} --out {0}/o")),
}
ROWS = MEASURED["gemm"] + "".join(
    f"mine,h100-sxm,bf16,{2 ** (i % 12)},{1024 * (2 + i // 12)},4096,1,{1e-5 * (1 + i)},,,,\n" for i in range(60)
)


@contextmanager
def full_disk(most_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond `most_bytes`, as on a disk that is full by then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Measured rows for the verb that needs some."""
    path = tmp_path_factory.mktemp("rows") / "m.csv"
    path.write_text(ROWS)
    return path


def called(name: str, folder: object, rows: Path) -> Ended:
    verb, args = WRITERS[name]
    if verb == "report":
        pytest.importorskip("typst", reason="typst not installed")
    found = ended(Case(verb, tuple(a.format(folder, rows) for a in args)), VERBS)
    assert found.problem is None, found
    return found


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line_and_leaves_nothing(name, tmp_path, rows):
    with full_disk(200):
        found = called(name, tmp_path, rows)
    assert found.code == 2
    assert "cannot write" in found.err
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize("name", WRITERS)
def test_an_impossible_place_is_one_line(name, tmp_path, rows):
    (tmp_path / "file").write_text("mine")
    for folder in ("/proc/nothing", tmp_path / "file"):
        found = called(name, folder, rows)
        assert found.code == 2
        assert "cannot write" in found.err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["sweep.parquet", "serve.csv", "load"])
def test_a_link_is_replaced_and_what_it_points_to_is_left_alone(name, tmp_path, rows):
    (tmp_path / "theirs").write_text("theirs")
    out = tmp_path / Path(WRITERS[name][1][-1]).name
    out.symlink_to(tmp_path / "theirs")
    assert called(name, tmp_path, rows).code == 0
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert not out.is_symlink()
    assert {p.name for p in tmp_path.iterdir()} == {"theirs", out.name}


def test_nobody_can_guess_the_name_beside_the_output(tmp_path):
    names = []
    for _ in range(2):
        with replaced(tmp_path / "o") as temporary:
            names.append(temporary)
            temporary.write_text("x")
    assert names[0] != names[1]
    assert [p.name for p in tmp_path.iterdir()] == ["o"]


def test_two_sweeps_of_one_file_never_mix(tmp_path):
    out = tmp_path / "o.parquet"
    words = [sys.executable, "-m", "simulator.sweep", *SMALL, "--quiet", "--out", str(out), "--batch"]
    axes = ("1:40:+1", "101:160:+1")
    both = [
        subprocess.Popen([*words, axis], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for axis in axes
    ]
    said = [p.communicate(timeout=120)[1] for p in both]
    for process, err in zip(both, said, strict=True):
        assert process.returncode in (0, 2), err
        assert process.returncode == 0 or f"is writing {out}" in err
    assert 0 in [p.returncode for p in both]
    found = set(pq.read_table(out)["batch"].to_pylist())
    assert found in (set(range(1, 41)), set(range(101, 161)))
    assert [p.name for p in tmp_path.iterdir()] == ["o.parquet"]


def test_a_full_stdout_is_one_line():
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-m", "simulator.devices", "--json"]
        found = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr.splitlines() == ["error: cannot write the answer: No space left on device"]


def test_a_small_table_of_too_many_rows_is_refused_unread(tmp_path):
    path = tmp_path / "r.parquet"
    column = pa.array([1.0]).repeat(3_000_000) if hasattr(pa.Array, "repeat") else pa.repeat(1.0, 3_000_000)
    table = pa.table(dict.fromkeys(("arrival_s", "prompt_tokens", "output_tokens"), column))
    with pq.ParquetWriter(path, table.schema) as writer:
        for _ in range(4):
            writer.write_table(table)
    assert path.stat().st_size < 200_000
    found = ended(Case("serve", (*SMALL, "--requests", str(path))), VERBS)
    assert found.problem is None, found
    assert "12,000,000 rows" in found.err


def test_a_cell_that_unpacks_to_far_more_is_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "b.parquet"
    pq.write_table(pa.table({"source": ["x" * 4_000_000]}), path, compression="zstd")
    assert path.stat().st_size < 4_000
    monkeypatch.setenv("SHADOWLINE_MEMORY", "1 MB")
    with pytest.raises(
        InputError, match=r"unpacks to 4 MB .*, more than the 1 MB .* that a file may take; set SHADOWLINE_MEM"
    ):
        read_parquet(path, 1000)
