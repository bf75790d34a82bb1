"""Reports: the same bytes twice, every text escaped, and one clear line for what cannot be reported."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("typst", reason="reports extra not installed")

from reports import build
from simulator import console, sweep

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def small_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two devices, two policies beside dense, six loads."""
    path = tmp_path_factory.mktemp("reports") / "sweep.parquet"
    arguments = [
        "sweep", "--model", "llama-2-7b", "--device", "h100-sxm,rtx-4090", "--policy", "dense",
        "--policy", "w4a16", "--policy", "kv_quant(bits=4)", "--batch", "1,16", "--prompt-tokens", "512,1024,2048",
        "--output-tokens", "64", "--out", str(path),
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as left:
            console.main(sweep.app)
    assert not left.value.code
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the verb in this process: exit status, stdout, stderr."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["build", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            console.main(build.app)
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


def test_the_same_sweep_gives_the_same_bytes(run: Run, small_sweep: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.{kind}" for n in "ab" for kind in ("html", "pdf")]
    for pair in (files[:2], files[2:]):
        code, out, err = run(small_sweep, "-o", pair[0], "-o", pair[1], "--json")
        assert code == 0, err
        assert [row["file"] for row in json.loads(out)["rows"]] == [str(p) for p in pair]
    assert files[0].read_bytes() == files[2].read_bytes()
    assert files[1].read_bytes() == files[3].read_bytes()
    assert files[1].read_bytes().startswith(b"%PDF-")
