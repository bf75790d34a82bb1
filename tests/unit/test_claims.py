"""Published figures: what a row must say, which count, how they are judged, and that ours all resolve."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.base import console
from simulator.base.errors import InputError
from simulator.base.interval import Interval
from simulator.claims import __main__ as verb
from simulator.claims import judge as judging
from simulator.claims import tables
from simulator.claims.eligibility import PRIMARY, why_not
from simulator.claims.judge import Judged, judge
from simulator.claims.kernel import KernelScenario, kernel_time
from simulator.claims.metrics import base, better, e2e_values
from simulator.claims.rows import Claim, committed, parse_toml, read_file
from simulator.claims.statistics import figures, rank_correlation, summary, weights
from simulator.device.catalogue import resolve as resolve_device
from simulator.model.hub import resolve as resolve_model
from simulator.scenario.scenario import Scenario

Run = Callable[..., tuple[int, str, str]]
E2E = {"model": "llama-2-7b", "device": "h100-sxm", "batch": 1, "prompt_tokens": 512, "output_tokens": 2}
KERNEL = {
    "shape": {"hidden": 4096, "intermediate": 11008},
    "device": "a100-sxm-80g",
    "ops": ["mlp.up"],
    "phase": "decode",
    "batch": 16,
    "dtype": "fp16",
}


def claim(**changes: object) -> Claim:
    values: dict[str, object] = {
        "claim_id": "X-1",
        "paper": "X",
        "scenario": E2E,
        "metric": "tpot_s",
        "value": 0.01,
        "source": "table 1",
        "certainty": "read-primary",
        "used_for_calibration": False,
    }
    return Claim(**{**values, **changes})  # type: ignore[arg-type]


def row(paper: str, published: float, predicted: float, **changes: object) -> Judged:
    return Judged(
        f"{paper}-{published}",
        paper,
        "",
        str(changes.pop("kind", "e2e")),
        "tpot_s",
        published,
        "judged",
        predicted=predicted,
        lo=0.9 * predicted,
        hi=1.1 * predicted,
        **changes,  # type: ignore[arg-type]
    )


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["claims", *arguments])
        with pytest.raises(SystemExit) as left:
            console.main(verb.app)
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


# ---- eligibility


@pytest.mark.parametrize("missing", ["model", "device", "batch", "prompt_tokens"])
def test_a_setup_with_a_hole_is_not_eligible(missing: str) -> None:
    scenario = {k: v for k, v in E2E.items() if k != missing}
    assert why_not(claim(scenario=scenario)) == f"setup: no {missing}"


def test_only_what_depends_on_the_output_needs_it() -> None:
    scenario = {k: v for k, v in E2E.items() if k != "output_tokens"}
    assert why_not(claim(scenario=scenario, metric="ttft_s")) is None
    assert why_not(claim(scenario=scenario, metric="tokens_per_s")) == "setup: no output_tokens"


def test_a_kernel_needs_its_shape_and_attention_its_context() -> None:
    assert why_not(claim(scenario=KERNEL, metric="time_s")) is None
    bare = {k: v for k, v in KERNEL.items() if k != "shape"}
    assert why_not(claim(scenario=bare, metric="time_s")) == "setup: no model or shape"
    attention = {**KERNEL, "ops": ["attn.core"]}
    assert why_not(claim(scenario=attention, metric="time_s")) == "setup: no tokens"


@pytest.mark.parametrize("certainty", ["only abstract", "read-secondary", "derived", "from memory"])
def test_only_primary_sources_count(certainty: str) -> None:
    assert why_not(claim(certainty=certainty)) == f"certainty: {certainty}"
    assert all(why_not(claim(certainty=c)) is None for c in PRIMARY)


def test_the_baseline_must_be_complete_too() -> None:
    partial = claim(baseline_scenario={"batch": 4}, metric="tpot_s_speedup")
    assert why_not(partial) is None
    assert partial.baseline == {**E2E, "batch": 4}


def test_eligibility_is_decided_before_anything_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("predicted a row that does not count")

    monkeypatch.setattr(judging, "asked", never)
    paper = parse_toml('paper = "X"\nfamily = ""\n', "x.toml")
    judged = judging._judged(claim(certainty="only abstract"), paper, {})
    assert judged.status == "not eligible"
    assert judged.predicted is None


# ---- prediction


def test_a_kernel_is_the_same_op_the_model_runs() -> None:
    one = kernel_time(KernelScenario.of(KERNEL))
    named = {k: v for k, v in KERNEL.items() if k != "shape"} | {"model": "llama-2-7b", "ops": ["mlp.gate_up"]}
    two = kernel_time(KernelScenario.of(named))
    assert one.dense_flop == 2 * 16 * 4096 * 11008
    assert two.dense_flop == 2 * one.dense_flop
    assert one.lo_s < one.time_s < one.hi_s < two.time_s


def test_quest_reads_a_sixteenth_and_its_budget() -> None:
    attention = {
        "shape": {"hidden": 4096, "n_heads": 32, "n_kv_heads": 32, "head_dim": 128},
        "device": "rtx-4090",
        "ops": ["attn.core"],
        "phase": "decode",
        "batch": 1,
        "tokens": 32768,
        "dtype": "fp16",
    }
    dense = kernel_time(KernelScenario.of(attention))
    ops = ["attn.core", "kv.estimate", "kv.top_k"]
    quest = {**attention, "ops": ops, "policy": "quest(budget=2048,dense_layers=0)"}
    sparse = kernel_time(KernelScenario.of(quest))
    per_token = 2 * 32 * 128 * 2
    assert dense.kv_read_bytes == 32768 * per_token
    assert sparse.kv_read_bytes == pytest.approx((32768 / 16 + 2048) * per_token)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ops": ["mlp.sideways"]}, "no op 'mlp.sideways'"),
        ({"phase": "training"}, "phase"),
        ({"model": "llama-2-7b"}, "either a model or a shape"),
        ({"bacth": 2}, "did you mean 'batch'"),
    ],
)
def test_a_bad_kernel_is_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        kernel_time(KernelScenario.of({**KERNEL, **changes}))


def test_whole_model_quantities_by_hand() -> None:
    load = Scenario(**E2E | {"batch": 4, "prompt_tokens": 100, "output_tokens": 11})
    v = e2e_values(load, 2, Interval(1.0, 0.5, 2.0), Interval(0.1, 0.05, 0.2), 5.0)
    assert tuple(v["e2e_s"]) == (2.0, 1.0, 4.0)
    assert tuple(v["tokens_per_s"]) == (22.0, 11.0, 44.0)
    assert v["tokens_per_s_per_gpu"].mid == 11.0
    assert v["total_tokens_per_s"].mid == 222.0
    assert v["decode_tokens_per_s"].mid == pytest.approx(40.0)
    assert v["decode_phase_tokens_per_s"].mid == pytest.approx(40.0)
    assert v["prefill_tokens_per_s"].mid == 400.0
    assert v["memory_bytes"].mid == 10.0


def test_comparisons_by_hand() -> None:
    fast, slow = Interval(1.0, 0.5, 2.0), Interval(4.0, 2.0, 8.0)
    width = math.exp(math.hypot(math.log(2.0), math.log(2.0)))
    assert tuple(better("tpot_s_speedup", fast, slow)) == pytest.approx((4.0, 4.0 / width, 4.0 * width))
    assert better("tokens_per_s_speedup", slow, fast).mid == 4.0
    assert base("tokens_per_s_speedup") == "tokens_per_s"


def test_a_miss_keeps_its_place_and_gets_its_reason() -> None:
    text = """
        paper = "X"
        family = "f"
        [[explained]]
        class = "framework overhead"
        why = "python"
        claims = ["X-1", "X-2"]
        [[wrong]]
        why = "faster than light"
        claims = ["X-1"]
        [[incomplete]]
        missing = "device"
        claims = ["X-3"]
        [[claims]]
        claim_id = "X-1"
        scenario = { model = "llama-2-7b", device = "h100-sxm", batch = 1, prompt_tokens = 512, output_tokens = 2 }
        metric = "tpot_s"
        value = 1e-6
        source = "s"
        certainty = "read-primary"
        used_for_calibration = false
    """
    one = text + text[text.rindex("[[claims]]") :].replace("X-1", "X-2").replace("1e-6", "V")
    close = judge([parse_toml(one.replace("V", "1e-6"), "x")])[0].predicted
    rows = judge([parse_toml(one.replace("V", f"{close:.6g}"), "x")])
    miss, hit, hole = rows
    assert (miss.miss, miss.wrong) == ("framework overhead", "faster than light")
    assert miss.reason == "framework overhead: python"
    assert (hit.within, hit.miss, hit.reason) == (True, None, "")
    assert (hole.status, hole.reason) == ("incomplete", "incomplete: device")
    total = summary(rows)
    assert total["all"]["rows"] == 2
    assert total["all"]["within_20"] == 0.5
    assert total["misses"]["framework overhead"] == {"rows": 1, "papers": 1}
    assert total["wrong"] == 1


# ---- statistics


def test_papers_weigh_the_same() -> None:
    assert weights(["a", "a", "a", "b"]) == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])
    rows = [row("a", 1.0, 2.0), row("a", 1.0, 2.0), row("a", 1.0, 2.0), row("b", 1.0, 0.5)]
    found = figures(rows)
    assert found["geometric_mean"] == pytest.approx(1.0)
    assert found["within_20"] == 0.0
    assert (found["rows"], found["papers"]) == (4, 2)
    mixed = figures([row("a", 1.0, 1.1), row("a", 1.0, 1.1), row("b", 1.0, 1.3)])
    assert mixed["within_20"] == pytest.approx(0.5)
    assert mixed["median_ape"] == pytest.approx(0.2)
    assert mixed["inside"] == pytest.approx(0.5)


def test_rank_correlation_by_hand() -> None:
    x, even = np.array([1.0, 2.0, 3.0, 4.0]), np.full(4, 0.25)
    assert rank_correlation(x, 10 * x, even) == pytest.approx(1.0)
    assert rank_correlation(x, -x, even) == pytest.approx(-1.0)
    # Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * 4 / (4 * 15) = 0.6.
    assert rank_correlation(x, np.array([2.0, 1.0, 4.0, 3.0]), even) == pytest.approx(0.6)
    # All but the first two pairs are weightless: only their order is left.
    heavy = np.array([0.5, 0.5, 0.0, 0.0])
    assert rank_correlation(x, np.array([2.0, 1.0, 8.0, 9.0]), heavy) == pytest.approx(-1.0)
    assert rank_correlation(x[:2], x[:2], even[:2]) is None
    assert rank_correlation(x, np.ones(4), even) is None


def test_kinds_and_calibration_rows_are_counted_apart() -> None:
    rows = [row("a", 1.0, 1.0), row("a", 1.0, 1.0, kind="kernel"), row("b", 1.0, 9.0, used_for_calibration=True)]
    total = summary(rows)
    assert [total[k]["rows"] for k in ("all", "kernel", "e2e", "used_for_calibration")] == [2, 1, 1, 1]
    assert total["all"]["within_20"] == 1.0


# ---- files


def test_every_committed_row_resolves() -> None:
    papers = committed()
    assert len(papers) > 1
    for paper in papers:
        for c in paper.claims:
            for scenario in (c.scenario, c.baseline):
                if scenario is None:
                    continue
                assert resolve_device(scenario["device"]) == scenario["device"], c.claim_id
                if c.kind == "kernel":
                    KernelScenario.of(scenario)
                else:
                    Scenario.of(**scenario)
                if "model" in scenario:
                    assert resolve_model(scenario["model"]), c.claim_id


def test_enough_rows_of_enough_papers_count() -> None:
    eligible = [c for p in committed() for c in p.claims if why_not(c) is None]
    assert len(eligible) >= 400
    assert len({c.paper for c in eligible}) >= 20


def test_every_reason_names_a_row_and_every_hole_says_what_is_missing() -> None:
    for paper in committed():
        for _, why in (*paper.explained.values(), *paper.incomplete.values()):
            assert why.strip()
        assert all(why.strip() for why in paper.wrong.values())
    seen = [i for p in committed() for i in (*(c.claim_id for c in p.claims), *p.incomplete)]
    assert len(seen) == len(set(seen))


@pytest.mark.data
def test_no_published_row_is_dropped(data_dir: Path) -> None:
    tables = [pd.read_csv(data_dir / f"claims_{k}.csv", dtype=str) for k in ("kv", "weights")]
    published = {i for t in tables for i in t["claim_id"]}
    ours = {i for p in committed() for i in (*(c.claim_id for c in p.claims), *p.incomplete)}
    assert published <= ours
    # Methods added since are of papers of which the tables have no row.
    papers = {i.split("-")[0] for i in published}
    assert not {i for i in ours - published if i.split("-")[0] in papers}


def test_no_coefficient_names_a_paper(repo: Path) -> None:
    """Nothing that predicts may ask which paper a row is from."""
    names = {c.claim_id.split("-")[0] for p in committed() for c in p.claims}
    ids = re.compile(rf"\b(?:{'|'.join(sorted(names))})-\d+")
    files = list((repo / "simulator").rglob("*.py"))
    files += [*(repo / "hw_profiles").rglob("*.toml")]
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not ids.search(text), file
        # The verb of the golden copy judges what was called a win or a loss; it predicts nothing.
        if "claims" not in file.parts and file.name != "accuracy.py":
            assert "simulator.claims" not in text, file
    # What writes the docs knows which paper's rows belong to which system; it predicts nothing.
    judges = [f for f in (repo / "simulator" / "claims").glob("*.py") if f.name != "tables.py"]
    titles = {p.paper for p in committed() if p.claims}
    for file in judges:
        assert not [t for t in titles if t in file.read_text(encoding="utf-8")], file


TOML_ROW = """
[[claims]]
claim_id = "N-1"
scenario = { model = "llama-2-7b", device = "h100-sxm", batch = 1, prompt_tokens = 512, output_tokens = 2 }
metric = "tpot_s"
value = 0.01
source = "s"
certainty = "read-primary"
used_for_calibration = false
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("paper = ", "not valid TOML"),
        (TOML_ROW.replace("tpot_s", "tpot"), "N-1: unknown e2e metric 'tpot'; did you mean 'tpot_s'"),
        (TOML_ROW.replace("tpot_s", "tpot_s_speedup"), "needs a baseline_scenario"),
        (TOML_ROW.replace("0.01", "-1.0"), "N-1: value"),
        (TOML_ROW.replace("source", "sauce"), "unknown field 'sauce'; did you mean 'source'"),
        (TOML_ROW.replace('certainty = "read-primary"\n', ""), "N-1: certainty"),
        (TOML_ROW + TOML_ROW, "'N-1' appears twice"),
        (TOML_ROW + '[[explained]]\nclass = "luck"\nwhy = ""\nclaims = []', "class 'luck'"),
        (TOML_ROW + '[[wrong]]\nwhy = "x"\nclaims = ["N-9"]', "'N-9' is explained but not"),
        (TOML_ROW + '[[incomplete]]\nmissing = "x"\nclaims = ["N-1"]', "complete and incomplete"),
        (TOML_ROW + "[[incomplete]]\nclaims = []", "lacks 'missing'"),
        (TOML_ROW + '[[wrong]]\nwhy = "x"\nclaims = 3', "is not a list of ids"),
        ("claims = 3", "write [[claims]]"),
        ('claims = ["N-1"]', "write [[claims]]"),
        ("family = 'f'", "holds no claims"),
    ],
)
def test_a_bad_file_is_one_line_and_exit_2(text: str, message: str, tmp_path: Path, run: Run) -> None:
    path = tmp_path / "more.toml"
    path.write_text('paper = "N"\n' + text if "paper" not in text else text)
    status, out, err = run("--data", str(path))
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_bad_table_names_its_line(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("claim_id,scenario\nA-1,{bad\n")
    status, _, err = run("--data", str(path))
    assert status == 2
    assert f"{path}:2: scenario is not JSON" in err
    assert run("--data", str(tmp_path / "none.csv"))[0] == 2
    assert "did you mean 'Quest'" in run("--paper", "Quezt")[2]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_further_rows_from_a_table_are_judged(suffix: str, tmp_path: Path, run: Run) -> None:
    path = tmp_path / f"rows.{suffix}"
    values = {
        "claim_id": ["N-1", "N-2"],
        "paper": ["New", "New"],
        "family": ["", ""],
        "scenario": [json.dumps(E2E)] * 2,
        "baseline_scenario": ["", '{"batch": 4}'],
        "metric": ["tpot_s", "decode_tokens_per_s_speedup"],
        "value": [0.006, 0.3],
        "source": ["s", "s"],
        "certainty": ["seen in repo"] * 2,
        "used_for_calibration": [False, True],
    }
    frame = pd.DataFrame(values)
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    (paper,) = read_file(path)
    assert [c.kind for c in paper.claims] == ["e2e", "e2e"]
    status, out, _ = run("--data", str(path), "--paper", "new", "--json")
    assert status == 0
    result = json.loads(out)
    first, second = result["rows"]
    assert first.keys() >= {
        "id",
        "paper",
        "family",
        "kind",
        "metric",
        "published",
        "predicted",
        "lo",
        "hi",
        "ratio",
        "inside",
        "status",
        "reason",
        "used_for_calibration",
    }
    assert first["lo"] < first["predicted"] < first["hi"]
    assert first["ratio"] == pytest.approx(first["predicted"] / 0.006)
    assert second["predicted"] < 1.0
    assert result["summary"]["used_for_calibration"]["rows"] == 1


def test_the_tables_of_one_paper(run: Run) -> None:
    status, out, _ = run("--paper", "deja vu")
    assert status == 0
    assert "DEJA-009" in out
    assert "eligible rows of 1 papers" in out
    assert "targets: geometric mean 0.9-1.1" in out


def test_the_tables_of_the_docs_come_from_the_rows(tmp_path: Path) -> None:
    """Counts per system in its last cell, one line per paper and per reason; a lost marker leaves both files alone."""
    parts = [f"<!-- begin: {n} -->\nold\n<!-- end: {n} -->\n" for n in ("result", "losses", "misses")]
    old = f"head\n{''.join(parts)}tail\n"
    line = "| Deja Vu (2310.17157) | `dejavu(keep=0.25)` | two predictors | overlap | {} |\n"
    other = "| Another paper | `policy_b` | x | y | {} |\n"
    systems = parse_toml('paper = "A & B"\nsystem = "policy_b"\n', "a.toml").systems
    (tmp_path / "claims.md").write_text(old, "utf-8")
    (tmp_path / "systems.md").write_text(line.format("9 / 9 / 9") + other.format(""), "utf-8")
    rows = [
        row("Deja Vu", 1.0, 1.1),
        row("Deja Vu", 2.0, 4.0, reason="model gap: too slow"),
        row("Deja Vu", 3.0, 3.0, used_for_calibration=True),
        Judged("D-9", "Deja Vu", "", "", "", None, "incomplete", "incomplete: batch"),
        Judged("A-1", "A & B", "", "", "", None, "incomplete", "incomplete: batch"),
    ]
    tables.write(tmp_path, rows, summary(rows), systems)
    assert (tmp_path / "systems.md").read_text("utf-8") == line.format("2 / 1 / 1 (1 c)") + other.format("0 / 0 / 1")
    text = (tmp_path / "claims.md").read_text("utf-8")
    assert text.startswith("head\n<!-- begin: result -->\n3 eligible rows of 1 papers")
    assert "| Deja Vu | 1 | 2.00 | model gap: too slow |\n<!-- end: misses -->\ntail\n" in text
    assert "old" not in text
    tables.write(tmp_path, rows, summary(rows), systems)
    assert (tmp_path / "claims.md").read_text("utf-8") == text
    (tmp_path / "claims.md").write_text(text.replace("<!-- begin: misses -->", ""), "utf-8")
    (tmp_path / "systems.md").write_text(line.format("old"), "utf-8")
    with pytest.raises(InputError, match="lacks the markers"):
        tables.write(tmp_path, rows, summary(rows), systems)
    assert "old" in (tmp_path / "systems.md").read_text("utf-8")


def test_our_docs_have_the_markers() -> None:
    """What ``--docs docs`` rewrites is there."""
    text = (Path(__file__).parents[2] / "docs" / "claims.md").read_text("utf-8")
    for name in ("result", "field", "losses", "misses"):
        assert tables.BEGIN.format(name) in text
        assert tables.END.format(name) in text
