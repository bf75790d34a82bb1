"""`serve` and `plan` as a person meets them: one line per mistake, exit codes, files whole or not at all."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest

from simulator import console, plan, serve

Run = Callable[..., tuple[int, str, str]]
VERBS = {"serve": serve, "plan": plan}
MODEL = (
    "--model",
    "llama-3.1-8b",
    "--device",
    "h100-sxm",
    "--max-num-seqs",
    "32",
    "--max-num-batched-tokens",
    "1024",
)
POISSON = (
    "--rate",
    "4",
    "--count",
    "60",
    "--prompt-tokens",
    "lognormal(mean=300)",
    "--output-tokens",
    "30",
)
SLO = ("--slo", "ttft:p99<2s;tpot:p99<60ms")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a verb in this process: exit status, stdout, stderr."""

    def call(verb: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [verb, *arguments])
        with pytest.raises(SystemExit) as left:
            console.main(VERBS[verb].app)
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


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
    (
        "serve",
        *MODEL,
        *POISSON,
        "--max-num-batched-tokens",
        "32",
    ): "32 tokens leave none for prompts",
    ("serve", *MODEL, *POISSON, "--policy", "zipvl"): "use --scheduler prefill-first",
    ("serve", "--judge", "none.parquet"): "--judge: cannot read",
    ("plan", *MODEL, *POISSON): "--slo: is needed",
    ("plan", *MODEL, *POISSON, *SLO, "--objective", "cheap"): "did you mean 'cheapest'",
    ("plan", *MODEL, *POISSON, *SLO, "--tp", "0"): "--tp: 0 must be 1 or more",
    ("plan", *MODEL, *POISSON, *SLO, "--policy", "shadowlm"): "did you mean 'shadowllm'",
}


@pytest.mark.parametrize(
    ("arguments", "words"),
    BAD.items(),
    ids=lambda v: " ".join(v[-2:]) if isinstance(v, tuple) else "",
)
def test_a_mistake_is_one_line(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*arguments)
    assert status == 2
    assert out == ""
    assert words in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_serve_answers_in_words_and_writes_every_file(run, tmp_path):
    import pyarrow.parquet as pq

    records, trace, load = (tmp_path / n for n in ("r.parquet", "t.json", "load.json"))
    status, out, _ = run(
        "serve",
        *MODEL,
        *POISSON,
        *SLO,
        "--out",
        str(records),
        "--timeline",
        str(trace),
        "--load",
        str(load),
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
        "serve", *MODEL, *POISSON, "--policy", "dense", "--policy", "kv_quant(bits=4)", "--scheduler",
        "chunked,prefill-first", "--rate-scale", "1,2", "--json",
    )  # fmt: skip
    rows = json.loads(out)["rows"]
    assert status == 0
    assert len(rows) == 8
    assert rows[0]["rate_per_s"] * 2 == pytest.approx(rows[1]["rate_per_s"])
    assert rows[-1]["kv_tokens"] > 3 * rows[0]["kv_tokens"]


def test_an_overloaded_fleet_gives_no_percentiles_and_exit_3(run):
    arguments = (
        "--rate",
        "900",
        "--count",
        "1500",
        "--prompt-tokens",
        "900",
        "--output-tokens",
        "40",
    )
    status, out, _ = run("serve", *MODEL, *arguments)
    assert status == 3
    assert "OVERLOADED: the queue only grows" in out
    assert "TTFT p99" not in out


def test_capacity_is_found_and_shares_of_it_are_served(run):
    status, out, _ = run(
        "serve", *MODEL, *POISSON[:2], "--count", "300", *POISSON[4:], "--slo", "ttft:p99<400ms", "--capacity",
        "--rate-scale", "0.5,1", "--json",
    )  # fmt: skip
    rows = json.loads(out)["rows"]
    assert status == 0
    assert rows[0]["capacity_per_s"] == pytest.approx(rows[1]["capacity_per_s"])
    assert rows[0]["ttft_p99_s"] < rows[1]["ttft_p99_s"] < 0.4


PLAN = ("--model", "llama-3.1-8b", "--rate", "30", "--count", "400", "--prompt-tokens", "500", "--output-tokens", "100",
        "--max-num-seqs", "32", "--max-num-batched-tokens", "1024", "--tp", "1,2", "--quiet")  # fmt: skip


def test_plan_finds_the_cheapest_and_how_to_start_it(run):
    from simulator.serving.output import COLUMNS

    status, out, _ = run("plan", *PLAN, *SLO, "--device", "h100-sxm,a100-sxm-80g,t4", "--json")
    found = json.loads(out)
    best = found["rows"][0]
    assert status == 0
    assert best["usd_per_h"] == min(r["usd_per_h"] for r in found["rows"])
    assert all(
        r["tpot_p99_s"] < 0.06 and r["ttft_p99_s"] < 2.0 and r["meets_slo"] for r in found["rows"]
    )
    assert best["launch"].startswith("vllm serve meta-llama/Llama-3.1-8B --tensor-parallel-size")
    assert found["points"] == 6
    assert sum(n for n, _ in found["rejected"].values()) + found["simulated"] <= 6
    assert set(COLUMNS) - set(best) == {"simulated_per_s"}
    # Fewer replicas of the same kind do not keep the promise.
    if best["replicas"] > 1:
        fewer = str(best["replicas"] - 1)
        arguments = [a for a in PLAN if a != "--quiet"]
        arguments[arguments.index("--tp") + 1] = str(best["tp"])
        status, _, _ = run(
            "serve",
            *arguments,
            *SLO,
            "--device",
            best["device"],
            "--replicas",
            fewer,
            "--router",
            "least-loaded",
        )
        assert status == 3


def test_plan_says_what_a_policy_saves(run):
    status, out, _ = run("plan", *PLAN, *SLO, "--device", "l40s", "--policy", "w4a16")
    assert status == 0
    assert "against the best dense deployment" in out
    assert "saves" in out


def test_plan_takes_only_policies_whose_published_loss_is_small(run):
    arguments = (
        "plan", "--model", "opt-30b", "--rate", "6", "--count", "300", "--prompt-tokens", "600", "--output-tokens",
        "100", "--device", "h100-sxm", "--tp", "2", "--scheduler", "prefill-first", "--max-num-seqs", "32",
        "--max-num-batched-tokens", "2048", "--slo", "tpot:p99<80ms", "--policy", "free", "--json",
    )  # fmt: skip
    status, out, _ = run(*arguments, "--max-loss", "1")
    assert status == 0
    assert {p["policy"] for p in json.loads(out)["by_policy"]} == {"dense", "h2o(keep=0.2)"}
    status, out, err = run(*arguments, "--max-loss", "-50")
    assert {p["policy"] for p in json.loads(out)["by_policy"]} == {"dense"}
    assert "dense alone" in err


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
