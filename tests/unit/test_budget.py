"""What a file or a run may take of the memory, and how a run ends that is out of it or is interrupted."""

from __future__ import annotations

import decimal
import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from reports import rows as report_rows
from simulator.base import console
from simulator.base.errors import InputError
from simulator.base.parquet import read_parquet
from simulator.claims.rows import read_file
from simulator.fitting.judged import read_rows
from simulator.results.swept import write
from simulator.scenario.grid import Grid
from simulator.serving.readers import read_requests

LONG = "s" * 65536


def bomb(path: Path, name: str = "source", rows: int = 100_000) -> Path:
    """6.5 GB of text in a file of some kB: a dictionary holds it once."""
    with pq.ParquetWriter(path, pa.schema({name: pa.string()})) as writer:
        part = pa.table({name: pa.array([LONG] * 1000)})
        for _ in range(rows // 1000):
            writer.write_table(part)
    return path


@pytest.mark.parametrize("read", [lambda p: read_parquet(p, 10**6), read_rows, read_file, read_requests])
def test_what_a_dictionary_repeats_is_counted_before_it_is_written_out(tmp_path, read):
    path = bomb(tmp_path / "bomb.parquet")
    assert path.stat().st_size < 500_000
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(
        InputError, match=r"unpacks to 6\.5\d GB .*, more than the 2 GB .* that a file may take; set SHADOWLINE"
    ):
        read(path)
    assert pa.default_memory_pool().max_memory() - before < 100e6


def test_a_report_is_counted_before_it_is_read(tmp_path, monkeypatch):
    """A report takes 300 B a row: two rows are more than 500 B."""
    path = tmp_path / "sweep.parquet"
    write((Grid(model=("opt-125m",), device=("l40s",), batch=(1, 2)),), path, command="", quiet=True)
    assert len(report_rows.read(path).rows.batch) == 2
    monkeypatch.setenv("SHADOWLINE_MEMORY", "500 B")
    with pytest.raises(InputError, match="unpacks to 600 B, more than the 500 B"):
        report_rows.read(path)


def test_other_tables_come_back_as_they_were(tmp_path):
    table = pa.table(
        {
            "text": pa.array(["a", None, "bb"] * 100),
            "large": pa.array(["c", "", None] * 100, pa.large_string()),
            "bytes": pa.array([b"\x00", b"y", None] * 100),
            "coded": pa.array(["x", "y", "x"] * 100).dictionary_encode(),
            "n": pa.array([1, None, 3] * 100),
            "flag": pa.array([True, False, None] * 100),
            "listed": pa.array([["p", "q"], [], None] * 100),
            "nested": pa.array([{"k": 1.5, "t": "z"}] * 300),
            "money": pa.array([decimal.Decimal("1.25")] * 300),
            "when": pa.array([1, 2, 3] * 100, pa.timestamp("us")),
        }
    )
    path = tmp_path / "table.parquet"
    pq.write_table(table, path, row_group_size=70)
    assert read_parquet(path, 300).equals(pq.read_table(path))


@pytest.mark.parametrize(
    ("text", "told"), [("lots", "cannot read 'lots'"), ("0 B", "above nothing"), ("5", "needs a unit")]
)
def test_a_budget_that_is_none_is_refused(tmp_path, monkeypatch, text, told):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    monkeypatch.setenv("SHADOWLINE_MEMORY", text)
    with pytest.raises(InputError, match=rf"SHADOWLINE_MEMORY: .*{told}"):
        read_parquet(path, 10)


def test_a_larger_budget_is_used(tmp_path, monkeypatch):
    path = bomb(tmp_path / "bomb.parquet", rows=1000)
    monkeypatch.setenv("SHADOWLINE_MEMORY", "60 MB")
    with pytest.raises(InputError, match="more than the 60 MB"):
        read_parquet(path, 1000)
    monkeypatch.setenv("SHADOWLINE_MEMORY", "80 MB")
    assert read_parquet(path, 1000).num_rows == 1000


# --- endings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def verb(out: str = "", resume: bool = typer.Option(False, "--resume"), how: str = "") -> None:
    raise MemoryError if how == "memory" else KeyboardInterrupt


def ended(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["verb", *arguments])
    with pytest.raises(SystemExit) as left:
        console.main(app)
    return int(left.value.code or 0), capsys.readouterr().err


def test_running_out_of_memory_is_one_line(monkeypatch, capsys):
    code, err = ended(monkeypatch, capsys, "--how", "memory")
    assert code == 2
    assert err == "error: the memory is used up; ask for fewer points or rows at once, or free some\n"


def test_an_interrupt_says_what_goes_on(monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", type("", (), {"name": "simulator.sweep"})())
    code, err = ended(monkeypatch, capsys, "--out=a file", "--resume")
    assert (code, err) == (
        130,
        "interrupted; finished parts are kept, go on with: python -m simulator.sweep '--out=a file' --resume\n",
    )
    assert ended(monkeypatch, capsys) == (130, "interrupted\n")


def test_an_interrupted_sweep_is_ended_by_the_command_it_prints(tmp_path):
    out = tmp_path / "sweep.parquet"
    grid = ["--model", "opt-125m", "--device", "l40s", "--policy", "dense", "--policy", "cats(keep=0.5)"]
    loads = ["--batch", "1:400:+1", "--prompt-tokens", "1:4000:+1", "--output-tokens", "16", "--out", str(out)]
    run = subprocess.Popen(
        [sys.executable, "-m", "simulator.sweep", *grid[:4], *loads, "--quiet"],
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job, as a runner may be, hands on that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while run.poll() is None and not list(tmp_path.glob("*/*")):
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate()
    assert (run.returncode, out.exists()) == (130, False)
    told = err.strip().removeprefix("interrupted; finished parts are kept, go on with: ")
    assert told != err.strip()
    command = shlex.split(told)
    assert command[:3] == ["python", "-m", "simulator.sweep"]
    done = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert pq.read_metadata(out).num_rows == 400 * 4000


DRIVER = textwrap.dedent(
    """
    import json, os, resource, sys
    from pathlib import Path
    from simulator.base import console
    import simulator.predict, simulator.sweep, simulator.serve, simulator.validate
    import numpy, pandas, pyarrow.parquet, scipy.optimize, rich.table  # what verbs import late: not under test
    def mapped():
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    verb, arguments, steps, small = json.loads(sys.argv[1])
    kept = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.argv = [verb, *small]
    try:
        # A module that is imported where memory ends is Python's to report, and pydantic's core then aborts.
        console.main(getattr(getattr(simulator, verb), "app"))
    except SystemExit:
        sys.stdout.flush()
    os.dup2(kept, 1)
    found = []
    for more in steps:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.dup2(write, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            limit = mapped() + more
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            sys.argv = [verb, *arguments]
            console.main(getattr(getattr(simulator, verb), "app"))
        os.close(write)
        with os.fdopen(read) as told:
            err = told.read()
        found.append((more, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), err))
    print(json.dumps(found))
    """
)
PREDICT = ["--model", "llama-2-7b", "--device", "h100-sxm", "--policy", "teal(keep=0.5)"]
SWEEP = ["--model", "llama-2-7b", "--device", "l40s", "--batch", "1:200:+1", "--prompt-tokens", "1:200:+1", "--quiet"]
SERVE = [
    "--model",
    "llama-2-7b",
    "--device",
    "h100-sxm",
    "--rate",
    "2",
    "--prompt-tokens",
    "64",
    "--output-tokens",
    "8",
]


@pytest.mark.parametrize(
    ("verb", "arguments", "small"),
    [
        ("predict", PREDICT, PREDICT),
        ("sweep", SWEEP, ["--model", "llama-2-7b", "--device", "l40s", "--quiet"]),
        ("serve", [*SERVE, "--count", "50000", "--quiet"], [*SERVE, "--count", "20", "--quiet"]),
    ],
)
def test_out_of_memory_at_any_step_is_one_line(verb, arguments, small):
    """Address space beyond what the imports took, from nothing in steps, in the manner of SQLite's tests."""
    steps = [0, *(2**20 * m for m in (1, 2, 4, 8, 16, 32, 64))]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps([verb, arguments, steps, small])],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
    )
    found = json.loads(done.stdout)
    assert {code for _, code, _ in found} <= {0, 2}, found
    for _, code, err in found:
        lines = [line for line in err.splitlines() if line.startswith("error")]
        assert len(lines) == (code == 2), err
        assert "Traceback" not in err
