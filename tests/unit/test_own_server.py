"""Benchmark results of one's own server: what is read, refused, and what an engine fitted to them says."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from simulator.base.errors import InputError
from simulator.calibrate import app
from simulator.fitting.e2e_steps import predict
from simulator.fitting.own_engine import fit_own
from simulator.fitting.own_runs import Setup, files_of, read_runs
from simulator.roofline import engine as engines
from simulator.roofline.engine import get_engine, load_engines

SETUP = Setup("vllm", "llama-3.1-8b", "h100-sxm", "bf16", "auto")
SERVED = {
    "backend": "vllm",
    "request_rate": "inf",
    "max_concurrency": 8,
    "num_prompts": 80,
    "completed": 80,
    "total_input_tokens": 80 * 1000,
    "total_output_tokens": 80 * 200,
    "mean_ttft_ms": 90.0,
    "mean_tpot_ms": 9.0,
}
TRTLLM = {
    "request_info": {"avg_num_concurrent_requests": 15.8, "avg_input_length": 512.0, "avg_output_length": 128.0},
    "streaming_metrics": {"avg_ttft_ms": 120.0, "avg_tpot_ms": 8.0},
}
LLAMA = {"model_type": "llama 8B Q8_0", "n_prompt": 0, "n_gen": 128, "n_depth": 1024, "avg_ns": 1.28e9}


def written(folder: Path, *results: object, name: str = "run.json") -> list[Path]:
    (folder / name).write_text("\n".join(json.dumps(r) for r in results))
    return [folder / name]


def test_a_closed_loop_is_read_with_its_mean_lengths(tmp_path):
    rows, left = read_runs(written(tmp_path, SERVED), SETUP)
    assert left == {}
    told = rows.set_index("metric")
    assert (told["batch"] == 8).all()
    assert (told["prompt"] == 1000).all()
    assert (told["output"] == 200).all()
    assert (told["loop"] == "closed").all()
    assert told["time_s"].to_dict() == pytest.approx({"ttft": 0.090, "tpot": 0.009})


def test_lines_of_sglang_and_reports_of_trtllm_and_llama_bench(tmp_path):
    lines = [SERVED, {**SERVED, "max_concurrency": 32, "mean_tpot_ms": 12.0}]
    assert len(read_runs(written(tmp_path, *lines, name="a.jsonl"), SETUP)[0]) == 4
    rows, _ = read_runs(written(tmp_path, TRTLLM), SETUP)
    assert rows["batch"].unique() == [16.0]
    rows, left = read_runs(written(tmp_path, [LLAMA, {**LLAMA, "n_prompt": 512, "n_gen": 0, "n_depth": 0}]), SETUP)
    assert left == {}
    assert set(rows["loop"]) == {"static"}
    tpot = rows[rows["metric"] == "tpot"].iloc[0]
    assert (tpot["prompt"], tpot["time_s"]) == (1024.0, pytest.approx(0.01))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"request_rate": 4.0}, "sent at a rate"),
        ({"max_concurrency": None}, "all requests sent at once"),
        ({"completed": 40}, "requests that failed"),
    ],
)
def test_runs_that_say_something_else_are_counted_by_reason(tmp_path, change, words):
    _, left = read_runs(written(tmp_path, {**SERVED, **change}, SERVED, name="a.jsonl"), SETUP)
    assert [words in k for k in left] == [True]
    with pytest.raises(InputError, match=words):
        read_runs(written(tmp_path, {**SERVED, **change}), SETUP)


@pytest.mark.parametrize("text", ["", "[]", "{", "[1]", '{"a": 1}', "\x00", json.dumps({**SERVED, "mean_ttft_ms": -1})])
def test_what_is_no_result_is_one_line(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError):
        read_runs([path], SETUP)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no \.json"):
        files_of(tmp_path)


def runs_of(truth, tmp_path):
    """Results of a server that is `truth`, with a little noise."""
    rng = np.random.default_rng(0)
    results = []
    for clients in (1, 2, 4, 8, 16, 32, 64):
        for prompt, output in ((512, 256), (2048, 256)):
            asked = {"total_input_tokens": 80 * prompt, "total_output_tokens": 80 * output, "max_concurrency": clients}
            results.append({**SERVED, **asked})
    rows, _ = read_runs(written(tmp_path, *results, name="all.jsonl"), SETUP)
    told = predict(rows, {"vllm": truth})
    noise = np.exp(0.01 * rng.standard_normal(len(rows)))
    return rows.assign(time_s=told["mid_s"].to_numpy() * noise)


def test_a_slower_server_is_found_and_runs_it_has_not_seen_are_told_better(tmp_path):
    shipped = get_engine("vllm")
    truth = replace(shipped, decode_stretch=1.25, schedule_s=2.5e-3)
    own = fit_own(runs_of(truth, tmp_path), shipped, "mine", "2026-12-01")
    assert own.helps
    assert own.after["tpot"]["median_ape"] < 0.05
    assert own.before["tpot"]["median_ape"] > 0.2
    assert own.engine.name == "vllm@mine"


def test_a_server_as_shipped_gains_nothing(tmp_path):
    shipped = get_engine("vllm")
    own = fit_own(runs_of(shipped, tmp_path), shipped, "mine", "2026-12-01")
    assert own.after["tpot"]["median_ape"] < 0.02


def test_few_times_and_engines_that_were_never_fitted_are_refused(tmp_path):
    rows, _ = read_runs(written(tmp_path, SERVED), SETUP)
    with pytest.raises(InputError, match="at least 4"):
        fit_own(rows, get_engine("vllm"), "mine", "2026-12-01")
    with pytest.raises(Exception, match="choose"):
        fit_own(rows, get_engine("hf"), "mine", "2026-12-01")


def read_shipped() -> str:
    return resources.files("hw_profiles").joinpath("engines.toml").read_text("utf-8")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SHADOWLINE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_from_result_files_to_an_answer(home, tmp_path, capsys):
    truth = replace(get_engine("vllm"), decode_stretch=1.25, schedule_s=2.5e-3)
    table = runs_of(truth, tmp_path)
    folder = tmp_path / "results"
    folder.mkdir()
    for i, (key, part) in enumerate(table.groupby(["batch", "prompt", "output"])):
        clients, prompt, output = key
        times = dict(zip(part["metric"], part["time_s"], strict=True))
        asked = {"total_input_tokens": 80 * prompt, "total_output_tokens": 80 * output, "max_concurrency": clients}
        told = {"mean_ttft_ms": times["ttft"] * 1e3, "mean_tpot_ms": times["tpot"] * 1e3}
        written(folder, {**SERVED, **asked, **told}, name=f"{i}.json")
    arguments = ["--kind", "e2e", "--data", str(folder), "--engine", "vllm", "--model", "llama-3.1-8b"]
    app([*arguments, "--device", "h100-sxm", "--dtype", "bf16"], standalone_mode=False)
    told = capsys.readouterr().out
    assert "ask for it by --engine vllm@own" in told
    found = load_engines()["vllm@own"]
    now = predict(table, {"vllm": replace(found, name="vllm")})
    assert np.median(np.abs(now["mid_s"] / now["time_s"] - 1.0)) < 0.05
    assert found.title.startswith("vLLM ")
    assert engines.engines_digest() != engines.hashlib.sha256(b"").hexdigest()[:12]
    broken = home / "engines" / "broken.toml"
    for text, words in (("[vllm]\n", "is no engine"), ("[", "is no engine"), (read_shipped(), "FAMILY@LABEL")):
        broken.write_text(text)
        assert "vllm@own" in load_engines()
        with pytest.raises(InputError, match=words):
            engines.read_own(broken)


def test_a_metric_that_calibration_tells_worse_is_named(home, tmp_path, capsys, monkeypatch):
    truth = replace(get_engine("vllm"), decode_stretch=1.25, schedule_s=2.5e-3)
    own = fit_own(runs_of(truth, tmp_path), get_engine("vllm"), "own", "2026-12-01")
    better = {m: {**found, "median_ape": 0.10} for m, found in own.after.items()}
    before = {"tpot": {**own.before["tpot"], "median_ape": 0.20}, "ttft": {**own.before["ttft"], "median_ape": 0.05}}
    own = replace(own, before=before, after=better)
    assert own.worse == ("ttft",)
    monkeypatch.setattr("simulator.fitting.own_engine.fit_own", lambda *_: own)
    (path,) = written(tmp_path, SERVED, name="one.json")
    arguments = ["--kind", "e2e", "--data", str(path), "--engine", "vllm", "--model", "llama-3.1-8b"]
    app([*arguments, "--device", "h100-sxm", "--dtype", "bf16"], standalone_mode=False)
    told = capsys.readouterr()
    assert "TTFT of unseen runs is farther off than by vllm" in told.err
    assert "TPOT" not in told.err


def test_flags_of_the_other_kind_are_refused():
    for arguments, words in (
        (["--kind", "gemm", "--data", "x.parquet", "--engine", "vllm"], "is for --kind e2e"),
        (["--kind", "e2e", "--data", "x.json", "--engine", "vllm"], "is needed"),
        (["--kind", "e2e", "--data", "x.json", "--out", "y"], "no place beside"),
    ):
        with pytest.raises(InputError, match=words):
            app(arguments, standalone_mode=False)
