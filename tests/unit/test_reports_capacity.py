"""The capacity report: what serve and plan wrote, told and drawn, and refused where it is something else."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("typst", reason="typst not installed")

from reports import build, html, pdf
from reports.capacity import compose, recommended
from reports.content import Report, Table
from reports.deployments import labels
from reports.served import Served, read, settings
from simulator import plan, serve
from simulator.base import console
from simulator.serving.output import SCHEMA_VERSION

html5lib = pytest.importorskip("html5lib", reason="html5lib not installed")
Run = Callable[..., tuple[int, str, str]]
EVIL = '<script>alert(1)</script> #eval("1+1") $x^2$ "quoted" \'single\' \\ *bold* `raw` @label'
TRAFFIC = ("--model", "llama-3.1-8b", "--prompt-tokens", "lognormal(mean=800,cv=1)", "--output-tokens", "100")
SPARSE = ("ttft:p99<1s;tpot:p99<12ms", "--policy", "w4a16")
SLO = ("--slo", "ttft:p99<1s;tpot:p99<40ms")


def called(app: object, verb: str, *words: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [verb, *map(str, words)])
        with pytest.raises(SystemExit) as left:
            console.main(app)
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two policies at a rate they keep and one that overloads them."""
    path = tmp_path_factory.mktemp("capacity") / "records.parquet"
    code = called(
        serve.app,
        "serve",
        *TRAFFIC,
        *SLO,
        "--device",
        "h100-sxm",
        "--rate",
        "10",
        "--count",
        "400",
        "--policy",
        "dense",
        "--policy",
        "kv_quant(bits=4)",
        "--rate-scale",
        "1,8",
        "--interval",
        "--out",
        path,
        "--quiet",
    )
    assert code == 0
    return path


@pytest.fixture(scope="module")
def report(records: Path) -> Report:
    return compose(records)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A plan as JSON with the promise and more flags given."""
    folder = tmp_path_factory.mktemp("plans")
    done: dict[tuple[str, ...], Path] = {}

    def write(slo: str, *more: str) -> Path:
        key = (slo, *more)
        if key not in done:
            path = folder / f"plan{len(done)}.json"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(console, "out", lambda text="": path.write_text(text, "utf-8"))
                code = called(
                    plan.app,
                    "plan",
                    *TRAFFIC,
                    "--slo",
                    slo,
                    *(() if "--rate" in more else ("--rate", "20")),
                    "--count",
                    "300",
                    "--device",
                    "h100-sxm,l40s",
                    "--tp",
                    "1",
                    "--max-num-batched-tokens",
                    "8192",
                    "--json",
                    *more,
                )
            assert code in (0, 3)
            done[key] = path
        return done[key]

    return write


@pytest.fixture
def run(call: Callable[..., tuple[int, str, str]]) -> Run:
    """Build a report in this process: exit status, stdout, stderr."""
    return lambda *arguments: call(build.app, *arguments)


def text_of(page: bytes) -> str:
    """Text of a page that html5lib parses without an error, each of whose ids is there once."""
    html5lib.HTMLParser(strict=True).parse(page)
    ids = re.findall(r'\bid="([^"]+)"', page.decode())
    assert len(ids) == len(set(ids))
    return "".join(html5lib.parse(page, namespaceHTMLElements=False).find("body").itertext())


def table(report: Report, name: str) -> Table:
    return next(t for t in report.tables() if t.id == name)


def test_a_served_file_gives_the_same_bytes_and_all_its_parts(
    run: Run, records: Path, report: Report, tmp_path: Path
) -> None:
    files = tmp_path / "a.html", tmp_path / "a.pdf"
    code, _, err = run(records, "-o", files[0], "-o", files[1], "--with-data")
    assert code == 0, err
    assert files[0].read_bytes() == html.render(report)
    assert files[1].read_bytes() == pdf.render(report)
    told = text_of(files[0].read_bytes())
    assert "How does llama-3.1-8b on 1 x h100-sxm, dense and 1 x h100-sxm, kv_quant(bits=4) serve 10" in told
    assert "python -m simulator.serve --model llama-3.1-8b" in told
    assert "Of 4 runs 2 miss them, because their queues only grow." in told
    assert [f.id for f in report.figures()] == [
        "fig-cost-ttft",
        "fig-cost-tpot",
        "fig-ttft",
        "fig-tpot",
        "fig-waiting",
        "fig-kv-share",
    ]
    assert "Inter-token latency" in told
    assert (tmp_path / "a.tab-load.csv").read_text().count("\n") == 5


def test_the_figures_are_the_files_own(records: Path, report: Report) -> None:
    """Percentiles from the requests, the recommended run and its cost recomputed with pandas."""
    served = read(records)
    frame = pq.read_table(records).to_pandas()
    for i, row in enumerate(served.rows):
        mine = frame[frame["run"] == i]
        start, stop = row["steady_from_s"], row["steady_from_s"] + row["steady_s"]
        mine = mine[(mine["arrival_s"] >= start) & (mine["arrival_s"] <= stop)]
        assert len(mine) == row["steady_requests"]
        np.testing.assert_array_equal(served.requests[i]["ttft_s"], mine["ttft_s"])
        if row["status"] != "OVERLOADED":
            assert row["ttft_p99_s"] == pytest.approx(mine["ttft_s"].quantile(0.99), rel=1e-12)
            assert row["tpot_p50_s"] == pytest.approx(mine["tpot_s"].quantile(0.5), rel=1e-12)
    best = recommended(served)
    assert best is not None
    offered = [r for r in served.rows if r["meets_slo"] and (r["policy"] == "dense" or r["verdict"] == "wins")]
    assert best["usd_per_mtoken"] == min(r["usd_per_mtoken"] for r in offered)
    ttft = next(r for r in table(report, "tab-percentiles").rows if r[0].text == "TTFT")
    assert ttft[5].value == best["ttft_p99_s"]
    assert ttft[-1].value == pytest.approx(1.0 - best["ttft_p99_s"] / 1.0)
    peak = max(max(load["waiting"]) for load in served.loads)
    waiting = next(f for f in report.figures() if f.id == "fig-waiting")
    assert console.number(peak) in waiting.title
    assert labels(served.rows)[0].startswith("dense, ")


def test_a_plan_says_what_sparsity_saves(run: Run, planned: Callable[..., Path], tmp_path: Path) -> None:
    path = planned(*SPARSE)
    code, _, err = run(path, "-o", tmp_path / "p.html", "-o", tmp_path / "p.pdf")
    assert code == 0, err
    told = json.loads(path.read_text())
    best, report = told["rows"][0], compose(path)
    text = text_of((tmp_path / "p.html").read_bytes())
    assert f"The cheapest is {best['gpus']} x {best['device']}, {best['policy']} for" in text
    assert text.count("vllm serve") >= 1
    costs = {p["policy"]: p["usd_per_h"] for p in told["by_policy"]}
    saved = {r[0].text: r[3].value for r in table(report, "tab-savings").rows}
    for policy, value in saved.items():
        assert value == pytest.approx(costs["dense"] - costs[policy])
    assert len(table(report, "tab-candidates").rows) == len(told["rows"])
    assert "redirect" not in text
    assert f"> {path.name}" in text


def test_a_dearer_device_is_not_said_to_fail(planned: Callable[..., Path], tmp_path: Path) -> None:
    """The search spares itself what cannot be cheaper; the report must not call that a broken promise."""
    told = json.loads(planned(*SPARSE).read_text())
    told["rows"] = [r for r in told["rows"] if r["policy"] == "dense"]
    bound = {"policy": "dense", "where": "9 x b200", "usd_per_h": 45.0, "simulated": False}
    for known, words in (([bound], "Other devices need 45 USD/h or more (9 x b200)"), ([], "full on average")):
        path = tmp_path / f"{len(known)}.json"
        path.write_text(json.dumps({**told, "by_device": known}))
        texts = " ".join(str(t) for t in compose(path).texts())
        assert words in texts
        assert "No other device" not in texts


def test_infeasible_promises_name_the_nearest_miss(planned: Callable[..., Path]) -> None:
    simulated = compose(planned("ttft:p99<100ms;tpot:p99<20ms", "--max-gpus", "1"))
    row = json.loads(planned("ttft:p99<100ms;tpot:p99<20ms", "--max-gpus", "1").read_text())["nearest"]
    near = table(simulated, "tab-miss")
    assert [r[0].text for r in near.rows] == ["TTFT p99", "TPOT p99"]
    assert near.rows[0][3].value == pytest.approx(row["ttft_p99_s"] / 0.100)
    assert any("comes nearest" in t for t in simulated.texts())
    refused = compose(planned("ttft:p99<1ms"))
    assert any("The closed form refuses every candidate" in t for t in refused.texts())
    assert table(refused, "tab-rejected").rows
    assert not list(refused.figures())
    crowded = json.loads(planned("ttft:p99<1s", "--rate", "900", "--max-gpus", "1").read_text())["nearest"]
    assert "more than the 1 allowed" in crowded["reason"]


def test_every_text_of_a_file_is_text(run: Run, planned: Callable[..., Path], tmp_path: Path) -> None:
    told = json.loads(planned(*SPARSE).read_text())
    for row in told["rows"]:
        row |= {"model": EVIL, "device": EVIL, "scheduler": EVIL, "launch": EVIL, "launch_note": EVIL}
    told["rejected"] = {EVIL: [1, EVIL]}
    told["command"] += f" ; {EVIL}"
    path = tmp_path / "evil.json"
    path.write_text(json.dumps(told))
    code, _, err = run(path, "-o", tmp_path / "e.html", "-o", tmp_path / "e.pdf")
    assert code == 0, err
    page = (tmp_path / "e.html").read_bytes()
    assert page.count(b"<script>") == 1  # our own
    assert text_of(page).count("<script>alert(1)</script>") >= 5


def test_settings_are_read_from_a_command_and_nothing_runs() -> None:
    found = settings("python -m simulator.serve --model m --device d --tp 4 --slo 'ttft:p99<1s' --help")
    assert (found["tp"], found["slo"], found["max_num_seqs"]) == (4, "ttft:p99<1s", None)
    assert settings("rm -rf 'unclosed") == {}
    assert settings("python -m simulator.sweep --model m") == {}


def test_what_neither_verb_wrote_is_refused_in_one_line(
    run: Run, records: Path, planned: Callable[..., Path], tmp_path: Path
) -> None:
    good = json.loads(planned(*SPARSE).read_text())
    row = good["rows"][0]
    kept = pq.read_table(records)

    def parquet(name: str, table: pa.Table, **metadata: str) -> Path:
        meta = {**kept.schema.metadata, **{f"shadowline.{k}".encode(): v.encode() for k, v in metadata.items()}}
        pq.write_table(table.replace_schema_metadata(meta), tmp_path / name)
        return tmp_path / name

    def text(name: str, value: object) -> Path:
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    bare = tmp_path / "bare.parquet"
    pq.write_table(kept.replace_schema_metadata({"shadowline.schema": str(SCHEMA_VERSION)}), bare)
    bad = {
        tmp_path / "absent.json": "cannot read",
        text("broken.json", "{"): "is neither Parquet nor JSON",
        text("list.json", [1]): "names no command",
        text("rows.json", {**good, "rows": [], "pareto": None}): "lacks its rows",
        text("empty.json", {"rows": [], "command": "x"}): "has no rows",
        text("lacking.json", {**good, "rows": [{k: v for k, v in row.items() if k != "tp"}]}): "row 1 lacks 'tp'",
        text("word.json", {**good, "rows": [{**row, "usd_per_h": "much"}]}): "usd_per_h is not a number",
        text("null.json", {**good, "rows": [{**row, "gpus": None}]}): "gpus is not a number",
        text("nan.json", {**good, "rows": [{**row, "gpus": float("nan")}]}): "gpus is not a number",
        text("plan.json", {k: v for k, v in good.items() if k != "rejected"}): "lacks 'rejected'",
        text("slo.json", {**good, "command": "python -m simulator.plan --slo soon"}): "its command's --slo",
        bare: "holds no summary of its runs",
        parquet("old.parquet", kept, schema="99"): "schema 99 is unknown",
        parquet("lacks.parquet", kept.drop_columns(["tpot_s"])): "lacks the column 'tpot_s'",
        parquet("load.parquet", kept, load="[{}, {}, {}, {}]"): "its load over time cannot be read",
        parquet("cut.parquet", kept.slice(0, 400)): "do not belong together",
    }
    out = tmp_path / "r.html"
    for path, words in bad.items():
        code, told, err = run(path, "--kind", "capacity", "-o", out)
        assert (code, told) == (2, ""), (path, err)
        assert words in err, (path, err)
        assert len(err.strip().splitlines()) == 1, err
        assert not out.exists()


def test_the_kind_is_seen_from_the_file(records: Path, planned: Callable[..., Path]) -> None:
    assert build._kind(str(records)) is build.Kind.CAPACITY
    assert build._kind(str(planned("ttft:p99<1ms"))) is build.Kind.CAPACITY
    assert isinstance(read(records), Served)
