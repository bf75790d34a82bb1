"""The verbs as a person meets them: one line per mistake, exit codes, nothing half-written, quick to start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from simulator import devices, models, predict, sweep
from simulator.base import console
from simulator.base.errors import InputError, NothingFeasibleError
from simulator.policies import __main__ as policies_verb

Run = Callable[..., tuple[int, str, str]]
BASE = ("--model", "llama-2-7b", "--device", "h100-sxm")
VERBS = {"predict": predict, "sweep": sweep, "devices": devices, "models": models, "policies": policies_verb}


@pytest.fixture
def run(call: Callable[..., tuple[int, str, str]]) -> Run:
    """Run a verb in this process: exit status, stdout, stderr."""
    return lambda verb, *arguments: call(VERBS[verb].app, *arguments)


def environment(*paths: Path, **extra: str) -> dict[str, str]:
    found = [str(p) for p in paths] + [os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in found if p), **extra}


BAD = {
    ("predict", "--model", "lama-2-7b", "--device", "h100-sxm"): "did you mean 'llama-2-7b'",
    ("predict", "--model", "llama-2-7b", "--device", "h100-smx"): "did you mean 'h100-sxm'",
    ("predict", "--model", "llama-2-7b", "--device", "a100"): "is ambiguous; write one of: a100-",
    ("predict", "--device", "h100-sxm"): "--model",
    ("predict", *BASE, "--policy", "mustafa"): "did you mean 'mustafar'",
    ("predict", *BASE, "--policy", "mustafar(kep=0.3)"): "did you mean 'keep'",
    ("predict", *BASE, "--policy", "mustafar(keep=0.3)+kv_quant"): "both rewrite the KV format",
    ("predict", *BASE, "--policy", "quest(budget=[64,128])"): "spells 2 policies",
    ("predict", *BASE, "--batch", "0"): "--batch 0",
    ("predict", *BASE, "--batch", "-1"): "--batch -1",
    ("predict", *BASE, "--batch", "nan"): "--batch",
    ("predict", *BASE, "--gpu-memory-utilization", "nan"): "finite",
    ("predict", *BASE, "--policy", "dense", "--policy", "nm24"): "--policy: is given twice",
    ("predict", *BASE, "--isl", "100", "--prompt-tokens", "200"): "--prompt-tokens or --isl: is given twice",
    ("predict", *BASE, "--batch=4", "--batch=4"): "--batch: is given twice",
    ("sweep", *BASE, "--batch", "4", "--batch", "8"): "--batch: is given twice",
    ("predict", *BASE, "--batsh", "4"): "did you mean '--batch'",
    ("predict", *BASE, "--dtype", "fp61"): "did you mean 'fp16'",
    ("sweep", *BASE, "--batch", "1:64:1"): "write 1:64:+1",
    ("devices", "--toml"): "--toml: prints one profile",
    ("devices", "h100-sxm", "--toml", "--json"): "--toml: prints one profile",
    ("predict", *BASE, "--kv-cache-dtype", "fp9"): "did you mean",
    ("predict", *BASE, "--engine", "vlm"): "did you mean 'vllm'",
    ("predict", *BASE, "--policy", "kv_quant", "--kv-cache-dtype", "fp8"): "drop --kv-cache-dtype fp8",
    ("predict", *BASE, "--policy", "w4a16", "--dtype", "fp8"): "drop --dtype fp8",
    ("sweep", *BASE, "--batch", "0,1"): "must be 1 or more",
    ("sweep", *BASE, "--batch", "nan"): "not a whole number",
    ("sweep", *BASE, "--batch", "1,99999999999"): "above 1000000",
    ("sweep", *BASE, "--policy", "dense", "--policy", "nope"): "unknown policy 'nope'",
    ("sweep", "--model", "llama-2-7b", "--device", "h100-sxm,a100"): "ambiguous",
    ("sweep", "--model", "llama-2-7b"): "--device: is needed",
    ("sweep", *BASE, "--resume"): "nothing to resume without --out",
    ("sweep", *BASE, "--out", "answer.xlsx"): "must end in .parquet, .csv, .json",
    ("sweep", "--grid", "absent.toml"): "absent.toml: cannot read",
    ("sweep", "--grid", "absent.toml", *BASE): "--model: --grid holds all axes",
    ("sweep", "--grid", "absent.toml", "--isl", "7"): "--prompt-tokens: --grid holds all axes",
    ("devices", "h100"): "ambiguous",
    ("devices", "rtx-4091"): "did you mean",
    ("models", "lama-2-7b"): "did you mean",
    ("policies", "shadow"): "or 'shadowllm'",
}


@pytest.mark.parametrize(("arguments", "words"), BAD.items(), ids=lambda x: " ".join(x) if isinstance(x, tuple) else "")
def test_bad_input_is_one_line_and_exit_2(
    arguments: tuple[str, ...], words: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert code == 2
    assert words in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_broken_profile_is_named_by_file_and_line(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('schema = 1\nname = "mine"\narch = \n')
    code, _, err = run("predict", "--model", "llama-2-7b", "--device", str(path))
    assert code == 2
    assert f"{path}:3:" in err
    assert err.count("\n") == 1


def test_an_unsupported_architecture_is_named(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "perceiver", "architectures": ["PerceiverModel"]}))
    code, _, err = run("predict", "--model", str(path), "--device", "h100-sxm")
    assert code == 2
    assert "'perceiver' is not supported" in err
    assert err.count("\n") == 1


def test_a_truncated_part_is_named_and_nothing_is_written(run: Run, tmp_path: Path) -> None:
    """A sweep that left its parts behind, one of them cut short; the rest is kept."""
    out = tmp_path / "o.parquet"
    arguments = ("sweep", *BASE, "--policy", "dense", "--policy", "w4a16", "--out", str(out), "--quiet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulator.base.parts.PartStore.finish", lambda *_: None)
        assert run(*arguments)[0] == 0
    part = tmp_path / "o.parquet.parts" / "part-000001.parquet"
    part.write_bytes(part.read_bytes()[:100])
    code, _, err = run(*arguments, "--resume")
    assert code == 2
    assert str(part) in err
    assert "delete it and resume" in err
    assert not out.exists()
    part.unlink()
    assert run(*arguments, "--resume")[0] == 0
    assert [p.name for p in tmp_path.iterdir()] == ["o.parquet"]


def test_resume_without_parts_starts_from_the_beginning(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "o.csv"
    assert run("sweep", *BASE, "--out", str(out), "--resume", "--quiet")[0] == 0
    assert len(out.read_text().splitlines()) == 2


def test_resume_of_another_sweep_is_refused(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "o.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulator.base.parts.PartStore.finish", lambda *_: None)
        run("sweep", *BASE, "--out", str(out), "--quiet")
    code, _, err = run("sweep", *BASE, "--batch", "2", "--out", str(out), "--resume", "--quiet")
    assert code == 2
    assert "belongs to another sweep" in err


def test_exit_0_with_an_answer_and_its_command(run: Run) -> None:
    code, out, err = run("predict", *BASE, "--json")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert document["rows"][0]["status"] == "ok"
    assert document["command"] == "python -m simulator.predict --model llama-2-7b --device h100-sxm"
    assert {op["phase"] for op in document["ops"]} == {"prefill", "decode"}
    assert sum(document["shares"].values()) == pytest.approx(1.0)


def test_shares_of_a_step_faster_than_its_kernels_are_not_negative(run: Run) -> None:
    """vLLM's figures shorten the stream of a large batch; no launch time is left to take that from."""
    words = ("--batch", "150", "--prompt-tokens", "2048", "--gpu-memory-utilization", "1")
    shares = json.loads(run("predict", *BASE, *words, "--json")[1])["shares"]
    assert min(shares.values()) >= 0.0
    assert sum(shares.values()) == pytest.approx(1.0)


NOT_FEASIBLE = {
    ("--batch", "100000"): "does_not_fit",
    ("--prompt-tokens", "10000000"): "exceeds_context",
    ("--tp", "3"): "not_applicable",
    ("--pp", "33"): "not_applicable",
    ("--dtype", "nvfp4"): "unsupported_dtype",
    ("--policy", "dejavu"): "not_applicable",
}


@pytest.mark.parametrize(("arguments", "status"), NOT_FEASIBLE.items(), ids=lambda x: str(x))
def test_exit_3_when_nothing_can_run_with_a_reason(arguments: tuple[str, ...], status: str, run: Run) -> None:
    code, out, _ = run("predict", *BASE, *arguments, "--json")
    (row,) = json.loads(out)["rows"]
    assert (code, row["status"]) == (3, status)
    assert row["reason"]
    assert (row["ttft_s"] is None) == (status != "does_not_fit")
    assert row["tokens_per_s"] is None
    assert run("sweep", *BASE, *arguments, "--quiet")[0] == 3


def test_exit_codes_of_expected_endings(capsys: pytest.CaptureFixture[str]) -> None:
    def ending(error: BaseException) -> int:
        def app(**_: object) -> None:
            raise error

        with pytest.raises(SystemExit) as left:
            console.main(app)
        return int(left.value.code or 0)

    assert ending(InputError("x", where="f:3")) == 2
    assert ending(NothingFeasibleError("x")) == 3
    assert ending(KeyboardInterrupt()) == 130
    assert "error: f:3: x\n" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        ending(ZeroDivisionError())


def test_numbers_in_words() -> None:
    assert console.milliseconds(0.0123456) == "12.3"
    assert console.milliseconds(None) == console.milliseconds(float("nan")) == "-"
    assert console.number(1234567.0) == "1,234,567"
    assert console.number(0.012345) == "0.0123"


def test_progress_is_quiet_off_a_terminal_and_loses_no_item(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(console.progress(range(20), 20, "x", quiet=True)) == list(range(20))
    assert capsys.readouterr().err == ""
    assert list(console.progress(range(20), 20, "x")) == list(range(20))
    assert capsys.readouterr().err.splitlines()[-1] == "x: 20/20"


def test_data_is_on_stdout_and_json_holds_rows_everywhere(run: Run) -> None:
    for arguments in (("devices",), ("models",), ("policies",), ("sweep", *BASE)):
        code, out, err = run(*arguments, "--json")
        assert code == 0
        assert err == ""
        assert json.loads(out)["rows"]


def test_a_sweep_says_the_answer_first(run: Run) -> None:
    code, out, _ = run(
        "sweep",
        *BASE,
        "--policy",
        "dense",
        "--policy",
        "streaming_llm",
        "--batch",
        "1,64",
        "--prompt-tokens",
        "2048",
        "--quiet",
    )
    assert code == 0
    assert out.splitlines()[0].startswith("4 rows: ")
    for words in ("Most tokens/s per GPU", "Throughput over dense, at the same batch", "streaming_llm(window=1020)"):
        assert words in out


def test_starting_a_verb_imports_no_heavy_library() -> None:
    code = (
        "import sys, simulator.sweep, simulator.predict, simulator.devices, simulator.models,"
        " simulator.policies.__main__, simulator.inference.evaluate, simulator.results.rows, simulator.base.parts;"
        "print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    heavy = {"pandas", "scipy", "pyarrow", "torch", "matplotlib", "transformers", "streamlit", "dask"}
    assert heavy.isdisjoint(done.stdout.split())


SWEEP = (
    *BASE,
    "--policy",
    "mustafar(keep=[0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8])",
    "--policy",
    "quest(budget=[64,128,256,512,1024])",
    "--batch",
    "1:64:x2",
    "--prompt-tokens",
    "128:2048:+64",
    "--output-tokens",
    "8:64:+8",
    "--out",
    "o.parquet",
    "--quiet",
)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_sweep_resumes_to_the_same_file(run: Run, tmp_path: Path, repo: Path, monkeypatch) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    child = subprocess.Popen(
        [sys.executable, "-m", "simulator.sweep", *SWEEP], cwd=broken, env=environment(repo), stdout=subprocess.DEVNULL
    )
    parts = broken / "o.parquet.parts"
    try:
        deadline = time.monotonic() + 60.0
        while len(list(parts.glob("part-*"))) < 3:
            assert child.poll() is None, "the sweep ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not (broken / "o.parquet").exists()
    assert 3 <= len(list(parts.glob("part-*"))) < 13
    for folder, more in ((whole, ()), (broken, ("--resume",))):
        monkeypatch.chdir(folder)
        code, _, err = run("sweep", *SWEEP, *more)
        assert code == 0, err
    assert (broken / "o.parquet").read_bytes() == (whole / "o.parquet").read_bytes()
    assert [p.name for p in broken.iterdir()] == ["o.parquet"]


POLICY = '''
"""Half of the layers are skipped for decode."""
from typing import ClassVar

from simulator.policies import POLICIES, Aspect, Policy


@POLICIES.register("skip_half")
class SkipHalf(Policy):
    """Odd layers run no feed-forward block in decode."""

    name: ClassVar[str] = "skip_half"
    family: ClassVar[str] = "outside"
    summary: ClassVar[str] = "from another package"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.WEIGHT_ROWS})
    citation: ClassVar[str] = "nobody"

    def layer_key(self, index, n_layers):
        return index % 2

    def rewrite(self, op, ctx):
        return () if ctx.index % 2 and op.role.startswith("mlp.") and ctx.decode_only else (op,)
'''


def test_a_policy_from_another_package_needs_one_file_and_an_entry_point(tmp_path: Path, repo: Path) -> None:
    (tmp_path / "outsider.py").write_text(POLICY)
    info = tmp_path / "outsider-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outsider\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[shadowline.policies]\noutsider = outsider\n")
    code = (
        "import sys; from simulator.policies import POLICIES, parse; from simulator.results.prediction import predict;"
        "from simulator.scenario.scenario import Scenario;"
        "assert 'skip_half' in POLICIES and 'mustafar' in POLICIES;"
        "p = predict(Scenario.of(model='llama-2-7b', device='h100-sxm', policy='w4a16+skip_half'));"
        "print(p.row['policy'], p.row['tpot_speedup'] > 1.0, p.row['status'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path, repo), capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["w4a16+skip_half", "True", "ok"], done.stderr


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--solve-rate", "0.2"), "--solve-rate: is for best-of-N"),
        (("--max-loss", "nan"), "--max-loss: nan is no number"),
        (("--max-loss", "1", "--trials", "4"), "two questions"),
        (("--max-loss", "1", "--policy", "nm24"), "--max-loss: looks at every published policy"),
        (("--trials", "4", "--batch", "2"), "--trials: the tries are the batch"),
    ],
)
def test_a_flag_that_would_be_ignored_is_refused(more: tuple[str, ...], words: str, run: Run) -> None:
    code, out, err = run("predict", *BASE, *more)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("question", [("--max-loss", "1"), ("--trials", "4"), ("--break-even", "--policy", "nm24")])
@pytest.mark.parametrize("why", [("--tp", "3"), ("--prompt-tokens", "5000")])
def test_every_question_of_a_scenario_that_cannot_run_exits_3(
    question: tuple[str, ...], why: tuple[str, ...], run: Run
) -> None:
    code, out, err = run("predict", *BASE, *question, *why)
    assert (code, out, err.count("\n")) == (3, "", 1)
