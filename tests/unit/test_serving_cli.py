"""`serve` and `plan` as a person meets them: one line per mistake, exit codes, files whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest

from simulator import plan, serve
from simulator.results.loss_lookup import loss_named

Run = Callable[..., tuple[int, str, str]]
VERBS = {"serve": serve, "plan": plan}
MODEL = ("--model", "llama-3.1-8b", "--device", "h100-sxm", "--max-num-seqs", "32", "--max-num-batched-tokens", "1024")
POISSON = ("--rate", "4", "--count", "60", "--prompt-tokens", "lognormal(mean=300)", "--output-tokens", "30")
SLO = ("--slo", "ttft:p99<2s;tpot:p99<60ms")
ONE = ("--rate", "4", "--count", "1", "--prompt-tokens", "300", "--output-tokens", "30")
"""A single request has no rate."""


@pytest.fixture
def run(call: Callable[..., tuple[int, str, str]]) -> Run:
    """Run a verb in this process: exit status, stdout, stderr."""
    return lambda verb, *arguments: call(VERBS[verb].app, *arguments)


BAD = {
    ("serve", *POISSON): "--model: is needed",
    ("serve", *MODEL): "--requests: give --requests FILE, or --rate",
    ("serve", *MODEL, *POISSON, "--slo", "ttft<2s"): "--slo: cannot read 'ttft<2s'",
    ("serve", *MODEL, *POISSON, "--scheduler", "chunkd"): "did you mean 'chunked'",
    ("serve", *MODEL, *POISSON, "--router", "random"): "unknown router 'random'",
    ("serve", *MODEL, *POISSON, "--replicas", "0"): "--replicas: must be 1 to",
    ("serve", *MODEL, *POISSON, "--rate-scale", "1,x"): "--rate-scale: 'x' is not a number",
    ("serve", *MODEL, *POISSON, "--rate-scale", "-1"): "--rate-scale: -1 must be above 0",
    ("serve", *MODEL, *POISSON, "--kv-transfer", "50"): "needs a unit",
    ("serve", *MODEL, *POISSON, "--reuse", "chunk-reuse"): "--reuse: chunk-reuse needs 'reused'",
    ("serve", *MODEL, *POISSON, "--out", "r.txt"): "--out: 'r.txt' must end in .parquet or .csv",
    ("serve", *MODEL, "--requests", "none.csv"): "none.csv: cannot read",
    ("serve", *MODEL[:-2], *POISSON, "--max-num-batched-tokens", "32"): "32 tokens leave none for prompts",
    ("serve", *MODEL, *POISSON, "--policy", "zipvl"): "use --scheduler prefill-first",
    ("serve", "--judge", "none.parquet"): "--judge: cannot read",
    ("serve", *MODEL, *ONE, "--capacity"): "--capacity: all requests arrive at once",
    ("serve", *MODEL, *ONE, "--rate-scale", "1,2"): "--rate-scale: all requests arrive at once",
    ("serve", *MODEL, *POISSON, "--kv-transfer", "50 GB/s"): "--kv-transfer: nothing is handed",
    ("serve", "--judge", "none.parquet", "--device", "t4"): "--device: has no place beside --judge",
    ("serve", "--judge", "none.parquet", "--slo", "x"): "--slo: has no place beside --judge",
    ("plan", *MODEL, *POISSON): "--slo: is needed",
    ("plan", *MODEL, *ONE, *SLO): "--requests: all requests arrive at once",
    ("plan", *MODEL, *POISSON, *SLO, "--max-gpus", "0"): "--max-gpus: must be 1 or more",
    ("plan", *MODEL, *POISSON, *SLO, "--max-gpus", "-3"): "--max-gpus: must be 1 or more",
    ("plan", *MODEL, *POISSON, *SLO, "--max-loss", "nan"): "--max-loss: nan is not a number",
    ("plan", *MODEL, *POISSON, *SLO, "--objective", "cheap"): "did you mean 'cheapest'",
    ("plan", *MODEL, *POISSON, *SLO, "--tp", "0"): "--tp: 0 must be 1 or more",
    ("plan", *MODEL, *POISSON, *SLO, "--policy", "shadowlm"): "did you mean 'shadowllm'",
}


@pytest.mark.parametrize(
    ("arguments", "words"), BAD.items(), ids=lambda v: " ".join(v[-2:]) if isinstance(v, tuple) else ""
)
def test_a_mistake_is_one_line(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*arguments)
    assert status == 2
    assert out == ""
    assert words in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--out", "--timeline", "--load"])
def test_what_cannot_be_written_is_said_before_anything_is_simulated(run, tmp_path, monkeypatch, flag):
    from simulator.serving import scaleout

    monkeypatch.setattr(scaleout, "compute", lambda *_, **__: pytest.fail("simulated"))
    (tmp_path / "file").touch()
    for path in ("file/r.parquet", "file/new/r.parquet"):
        status, _, err = run("serve", *MODEL, *POISSON, flag, str(tmp_path / path))
        assert status == 2
        assert f"error: {flag}: cannot write" in err
    (tmp_path / "r.parquet").mkdir()
    status, _, err = run("serve", *MODEL, *POISSON, flag, str(tmp_path / "r.parquet"))
    assert status == 2
    assert "it is a folder" in err
    assert len(list(tmp_path.iterdir())) == 2


def test_rows_to_judge_without_a_column_are_one_line(run, tmp_path):
    import pandas as pd

    path = tmp_path / "e2e.parquet"
    pd.DataFrame({"source": ["x"], "engine": ["vllm"]}).to_parquet(path)
    status, _, err = run("serve", "--judge", str(path))
    assert status == 2
    assert "error: --judge: " in err
    assert "has no column 'model'; needs source, engine" in err
    assert len(err.splitlines()) == 1


def test_json_on_stdout_leaves_progress_on_stderr(run):
    status, out, err = run("serve", *MODEL, *POISSON, "--rate-scale", "1,2,3,4", "--json")
    assert status == 0
    assert len(json.loads(out)["rows"]) == 4
    assert err.splitlines() == ["runs: 1/4", "runs: 2/4", "runs: 3/4", "runs: 4/4"]
    status, _, err = run("serve", *MODEL, *POISSON, "--rate-scale", "1,2,3,4", "--json", "--quiet")
    assert (status, err) == (0, "")


def test_the_seed_is_that_of_what_is_reused_too(run):
    rows = []
    for seed in ("0", "0", "1"):
        _, out, _ = run(
            "serve",
            *MODEL,
            *POISSON[:2],
            "--count",
            "200",
            "--prompt-tokens",
            "300",
            "--output-tokens",
            "30",
            "--arrivals",
            "fixed",
            "--reuse",
            "semantic-cache(hit=0.5,lookup_ms=1)",
            "--seed",
            seed,
            "--json",
        )
        rows.append(json.loads(out)["rows"][0]["answered_elsewhere"])
    assert rows[0] == rows[1] != rows[2]


def test_serve_answers_in_words_and_writes_every_file(run, tmp_path):
    import pyarrow.parquet as pq

    records, trace, load = (tmp_path / n for n in ("r.parquet", "t.json", "load.json"))
    status, out, _ = run(
        "serve", *MODEL, *POISSON, *SLO, "--out", str(records), "--timeline", str(trace), "--load", str(load)
    )
    assert status == 0
    assert "STABLE; keeps the promises" in out
    table = pq.read_table(records)
    assert table.num_rows == 60
    assert table.schema.field("ttft_s").metadata[b"unit"] == b"s"
    assert b"simulator.serve" in table.schema.metadata[b"shadowline.command"]
    events = json.loads(trace.read_text())["traceEvents"]
    slices = [e for e in events if e["ph"] == "X"]
    assert sum(e["dur"] for e in slices) > 0
    assert {e["ph"] for e in events} == {"X", "M", "C", "b", "e"}
    assert sum(e["ph"] == "b" for e in events) == sum(e["ph"] == "e" for e in events) == 3 * 60
    runs = json.loads(load.read_text())["runs"]
    assert len(runs[0]["time_s"]) == len(runs[0]["waiting"])


def test_json_has_a_row_per_policy_scheduler_and_rate(run):
    status, out, _ = run(
        "serve",
        *MODEL,
        *POISSON,
        "--policy",
        "dense",
        "--policy",
        "kv_quant(bits=4)",
        "--scheduler",
        "chunked,prefill-first",
        "--rate-scale",
        "1,2",
        "--json",
    )
    rows = json.loads(out)["rows"]
    assert status == 0
    assert len(rows) == 8
    assert rows[0]["rate_per_s"] * 2 == pytest.approx(rows[1]["rate_per_s"])
    assert rows[-1]["kv_tokens"] > 3 * rows[0]["kv_tokens"]


def test_an_overloaded_fleet_gives_no_percentiles_and_exit_3(run):
    arguments = ("--rate", "900", "--count", "1500", "--prompt-tokens", "900", "--output-tokens", "40")
    status, out, _ = run("serve", *MODEL, *arguments)
    assert status == 3
    assert "OVERLOADED: the queue only grows" in out
    assert "TTFT p99" not in out


def test_capacity_is_found_and_shares_of_it_are_served(run):
    status, out, _ = run(
        "serve",
        *MODEL,
        *POISSON[:2],
        "--count",
        "300",
        *POISSON[4:],
        "--slo",
        "ttft:p99<400ms",
        "--capacity",
        "--rate-scale",
        "0.5,1",
        "--json",
    )
    rows = json.loads(out)["rows"]
    assert status == 0
    assert rows[0]["capacity_per_s"] == pytest.approx(rows[1]["capacity_per_s"])
    assert rows[0]["ttft_p99_s"] < rows[1]["ttft_p99_s"] < 0.4


def test_one_without_a_capacity_leaves_the_others(run):
    arguments = ("serve", "--model", "llama-3.1-8b", *MODEL[4:], *POISSON, "--slo", "tpot:p99<8ms")
    status, out, _ = run(*arguments, "--device", "l40s,h200", "--capacity", "--json")
    slow, fast = json.loads(out)["rows"]
    assert status == 0
    assert (slow["capacity_per_s"], slow["meets_slo"]) == (None, False)
    assert fast["capacity_per_s"] > 0
    status, out, _ = run(*arguments, "--device", "l40s", "--capacity")
    assert status == 3
    assert "no rate keeps the promises, this is the lowest tried" in out


def test_an_end_of_the_interval_without_percentiles_says_why(capsys):
    row = {"policy": "dense", "rate_per_s": 2.0}
    row |= {f"{m}_p99_{e}_s": 0.1 for m in ("ttft", "tpot") for e in ("lo", "hi")}
    assert serve._end(row, "ttft", "lo") == "100"
    assert serve._end(row | {"ttft_p99_hi_s": None}, "ttft", "hi") == "OVERLOADED"


PLAN = (
    "--model",
    "llama-3.1-8b",
    "--rate",
    "30",
    "--count",
    "400",
    "--prompt-tokens",
    "500",
    "--output-tokens",
    "100",
    "--max-num-seqs",
    "32",
    "--max-num-batched-tokens",
    "1024",
    "--tp",
    "1,2",
    "--quiet",
)


def test_plan_finds_the_cheapest_and_how_to_start_it(run):
    from simulator.serving.output import COLUMNS

    status, out, _ = run("plan", *PLAN, *SLO, "--device", "h100-sxm,a100-sxm-80g,t4", "--json")
    found = json.loads(out)
    best = found["rows"][0]
    assert status == 0
    assert best["usd_per_h"] == min(r["usd_per_h"] for r in found["rows"])
    assert all(r["tpot_p99_s"] < 0.06 and r["ttft_p99_s"] < 2.0 and r["meets_slo"] for r in found["rows"])
    assert best["launch"].startswith("vllm serve meta-llama/Llama-3.1-8B --tensor-parallel-size")
    # Every device that could serve has a rent, simulated or as the bound that spared the simulation.
    least = {p["where"].split(" x ")[1]: p for p in found["by_device"]}
    assert set(least) >= {r["device"] for r in found["rows"]}
    assert all(p["simulated"] or p["usd_per_h"] > best["usd_per_h"] for p in least.values())
    assert least[best["device"]]["usd_per_h"] == best["usd_per_h"]
    assert found["points"] == 6
    assert sum(n for n, _ in found["rejected"].values()) + found["simulated"] <= 6
    assert set(COLUMNS) - set(best) == {"simulated_per_s"}
    # Fewer replicas of the same kind do not keep the promise.
    if best["replicas"] > 1:
        fewer = str(best["replicas"] - 1)
        arguments = [a for a in PLAN if a != "--quiet"]
        arguments[arguments.index("--tp") + 1] = str(best["tp"])
        status, _, _ = run(
            "serve", *arguments, *SLO, "--device", best["device"], "--replicas", fewer, "--router", "least-loaded"
        )
        assert status == 3


def test_plan_says_what_a_policy_saves(run):
    status, out, _ = run("plan", *PLAN, *SLO, "--device", "l40s", "--policy", "w4a16")
    assert status == 0
    assert "against the best dense deployment" in out
    assert "saves" in out


def test_what_saves_nothing_leaves_dense_and_the_answer_says_how_sure(run):
    """At short prompts a quarter of the KV cache buys no GPU, and a policy at the same rent only costs quality."""
    words = (*PLAN, "--device", "l40s", "--policy", "kv_quant(bits=8)")
    slo = "TTFT p99 < 2 s and TPOT p99 < 60 ms"
    status, out, _ = run("plan", *words, "--slo", slo, "--json")
    answer = json.loads(out)
    best = answer["rows"][0]
    assert status == 0
    rents = {r["policy"]: r["usd_per_h"] for r in reversed(answer["rows"])}
    assert rents["dense"] == rents["kv_quant(bits=8)"]
    assert best["policy"] == "dense"
    # None: the fleet cannot keep up when every step takes as long as the interval allows.
    high = [math.inf if v is None else v for v in (best["ttft_p99_hi_s"], best["tpot_p99_hi_s"])]
    assert best["tpot_p99_lo_s"] < best["tpot_p99_s"] < high[1]
    status, out, _ = run("plan", *words, "--slo", slo)
    assert "no policy saves anything against dense" in out
    sure = next(line for line in out.splitlines() if line.startswith("how sure: "))
    assert ("the slow end breaks" in sure) == (high[0] >= 2.0 or high[1] >= 0.06)
    assert ("OVERLOADED" in sure) == (high[1] == math.inf)
    assert sure.endswith("list price, an assumption")


def test_plan_takes_only_policies_whose_published_loss_is_small(run):
    arguments = (
        "plan",
        "--model",
        "opt-30b",
        "--rate",
        "6",
        "--count",
        "300",
        "--prompt-tokens",
        "600",
        "--output-tokens",
        "100",
        "--device",
        "h100-sxm",
        "--tp",
        "2",
        "--scheduler",
        "prefill-first",
        "--max-num-seqs",
        "32",
        "--max-num-batched-tokens",
        "2048",
        "--slo",
        "tpot:p99<80ms",
        "--policy",
        "free",
        "--json",
    )
    status, out, _ = run(*arguments, "--max-loss", "1")
    assert status == 0
    chosen = {p["policy"] for p in json.loads(out)["by_policy"]}
    assert {"dense", "h2o(keep=0.2)", "slicegpt(keep=0.9)"} <= chosen
    assert "nm24" not in chosen
    for policy in chosen - {"dense"}:
        assert loss_named("opt-30b", policy).points.hi <= 1.0
    status, out, err = run(*arguments, "--max-loss", "-50")
    assert {p["policy"] for p in json.loads(out)["by_policy"]} == {"dense"}
    assert "dense alone" in err


def test_plan_counts_what_contradicts_itself(run):
    arguments = ("plan", *PLAN, *SLO, "--device", "h100-sxm", "--dtype", "auto,fp8", "--policy", "w4a16")
    status, out, _ = run(*arguments, "--json")
    found = json.loads(out)
    assert status == 0
    count, words = found["rejected"]["contradicts a flag that is given"]
    # Two widths of fp8 under a policy that sets the format itself.
    assert count == 2
    assert "w4a16" in words
    assert found["points"] == 8
    _, out, _ = run(*arguments)
    assert "contradicts a flag that is given" in out


def test_more_gpus_than_replicas_can_be_is_no_slip_of_a_flag_nobody_gave(run):
    arguments = list(PLAN)
    arguments[arguments.index("--rate") + 1] = "1000000"
    status, out, _ = run("plan", *arguments, *SLO, "--device", "l40s", "--max-gpus", "100000000")
    assert status == 3
    assert "needs more than 1024 replicas" in out


def test_a_launch_command_is_one_vllm_accepts():
    from simulator.scenario.scenario import Scenario
    from simulator.serving.launch import launch_command

    base = Scenario(model="llama-3.1-8b", device="h100-sxm", tp=2)
    row = {"max_num_seqs": 64, "max_num_batched_tokens": 2048, "scheduler": "chunked", "replicas": 1}
    words, note = launch_command(base, row)
    assert note == ""
    assert "--no-enable-prefix-caching" in words.split()
    assert "--enable-prefix-caching" in launch_command(base, row, prefix_cache=True)[0].split()
    assert "chunked-prefill" not in words
    words, note = launch_command(base, row | {"scheduler": "prefill-first"})
    assert words == ""
    assert "vLLM V1 always mixes prompts and decoding" in note
    words, note = launch_command(base.model_copy(update={"policy": "w4a16"}), row)
    assert "--quantization awq_marlin" in words
    assert "on a checkpoint in that format" in note
    for policy, why in {
        "sparse_marlin": "dropped sparse_marlin in 2026",
        "nm24": "dropped nm24 in 0.19.1",
        "nm24+kv_quant": "has no kv_quant",
    }.items():
        words, note = launch_command(base.model_copy(update={"policy": policy}), row)
        assert words == ""
        assert note.startswith(f"vLLM {why}")
    for change in ({"policy": "w4a16"}, {"dtype": "w4a16"}):
        words, note = launch_command(base.model_copy(update=change | {"device": "mi300x"}), row)
        assert words == ""
        assert "for NVIDIA GPUs from Ampere on alone" in note
    experts = {"model": "mixtral-8x7b", "tp": 4}
    for ep, flag in ((1, False), (4, True)):
        words, _ = launch_command(base.model_copy(update=experts | {"ep": ep}), row)
        assert ("--enable-expert-parallel" in words) == flag
    words, note = launch_command(base.model_copy(update=experts | {"ep": 2}), row)
    assert words == ""
    assert "over all 4 GPUs, not over 2 groups" in note


def test_plan_names_the_nearest_miss(run):
    status, out, _ = run("plan", *PLAN, "--slo", "tpot:p99<1ms", "--device", "l40s")
    assert status == 3
    assert "nothing keeps tpot:p99<1ms" in out
    assert "nearest miss: l40s tp=2, dense: tpot is at least" in out
    status, out, _ = run("plan", *PLAN, *SLO, "--device", "l40s", "--max-gpus", "1", "--json")
    found = json.loads(out)
    assert status == 3
    assert found["rows"] == []
    assert found["nearest"] is not None


def test_help_says_what_the_verbs_do(run):
    for verb in VERBS:
        status, out, _ = run(verb, "--help")
        assert status == 0
        assert "--slo" in out
