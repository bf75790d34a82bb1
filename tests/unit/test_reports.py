"""Reports: the same bytes twice, every text escaped, and one clear line for what cannot be reported."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("typst", reason="typst not installed")

from reports import build, html, pdf
from reports.advice import advise
from reports.content import Cell, Column, Figure, Paragraph, Report, Section, Table, Terms
from reports.rows import read
from reports.sweep import compose
from simulator import sweep
from simulator.base import console

Run = Callable[..., tuple[int, str, str]]
EVIL = '<script>alert(1)</script> #eval("1+1") $x^2$ "quoted" \'single\' \\ *bold* `raw` @label'
RTL = "مرحبا"
TRACE = Path("traces/shipped/tiny-opt-py/trace")


def swept(path: Path, *more: str) -> Path:
    """A sweep of two devices, two policies beside dense and six loads, or of what `more` says."""
    arguments = more or (
        "--device",
        "h100-sxm,rtx-4090",
        "--policy",
        "dense",
        "--policy",
        "w4a16",
        "--policy",
        "kv_quant(bits=4)",
        "--batch",
        "1,16",
        "--prompt-tokens",
        "512,1024,2048",
    )
    with pytest.MonkeyPatch.context() as patch:
        words = ["sweep", "--model", "llama-2-7b", *arguments, "--output-tokens", "64", "--out", str(path)]
        patch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit):
            console.main(sweep.app)
    assert path.is_file()
    return path


@pytest.fixture(scope="module")
def small_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return swept(tmp_path_factory.mktemp("reports") / "sweep.parquet")


@pytest.fixture(scope="module")
def report(small_sweep: Path) -> Report:
    return compose(small_sweep)


@pytest.fixture
def run(call: Callable[..., tuple[int, str, str]]) -> Run:
    """Run the verb in this process: exit status, stdout, stderr."""
    return lambda *arguments: call(build.app, *arguments)


@pytest.fixture(scope="module")
def evil() -> Report:
    """A report in which every text of a user tries to be markup."""
    table = Table(
        "tab-evil",
        EVIL,
        (Column(EVIL), Column("n", True)),
        ((Cell(EVIL), Cell("1", 1)), (Cell(RTL), Cell("2", 2))),
        EVIL,
    )
    figure = Figure(
        "fig-evil", EVIL, '<svg width="72pt" height="9pt" xmlns="http://www.w3.org/2000/svg"></svg>', EVIL, RTL
    )
    body = (Paragraph(EVIL), Paragraph(RTL, "lead"), table, figure, Terms((("claim", EVIL),)))
    return Report(EVIL, RTL, (Section("answer", EVIL, body), Section("more", RTL, body[:2])), notes=(EVIL, RTL))


def strict(page: bytes) -> None:
    """Raise at the first parse error that html5lib knows."""
    html5lib = pytest.importorskip("html5lib", reason="html5lib not installed")
    html5lib.HTMLParser(strict=True).parse(page)


def text_of(page: bytes) -> str:
    html5lib = pytest.importorskip("html5lib", reason="html5lib not installed")
    body = html5lib.parse(page, namespaceHTMLElements=False).find("body")
    return "".join(body.itertext())


def check_anchors(page: str) -> None:
    """Every id once, every link inside the page to one of them, every outer link https."""
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    links = re.findall(r'<a [^>]*?href="([^"]+)"', page)
    drawn = {a or b for a, b in re.findall(r'<(?:use|image) [^>]*?\bhref="([^"]+)"|url\(([^)]+)\)', page)}
    assert {d for d in drawn if not d.startswith("data:image/png;base64")} <= {f"#{i}" for i in ids}
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert all(link.startswith(("#", "https://")) for link in links)


def test_the_same_sweep_gives_the_same_page(run: Run, small_sweep: Path, report: Report, tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.html"
    code, out, err = run(small_sweep, "-o", file, "--json", "--with-data")
    assert code == 0, err
    assert str(file) in {row["file"] for row in json.loads(out)["rows"]}
    page = file.read_bytes()
    assert page == html.render(report)

    strict(page)
    check_anchors(page.decode())
    for other in ('http-equiv="refresh', 'src="http', "url(http", "@import"):
        assert other not in page.decode()
    told = text_of(page)
    assert "python -m simulator.sweep --model llama-2-7b" in told
    assert "What do w4a16 and kv_quant(bits=4) buy llama-2-7b" in told

    data = (tmp_path / "new" / "a.tab-recommended.csv").read_text().splitlines()
    assert data[0].startswith("model,device,policy")
    assert len(data) == 3


def test_the_same_sweep_gives_the_same_pdf(run: Run, small_sweep: Path, report: Report, tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.pdf"
    code, out, err = run(small_sweep, "-o", file, "--json")
    assert code == 0, err
    assert [row["file"] for row in json.loads(out)["rows"]] == [str(file)]
    assert file.read_bytes() == pdf.render(report)
    if shutil.which("qpdf"):
        done = subprocess.run(["qpdf", "--check", file], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    if shutil.which("pdftotext"):
        told = subprocess.run(["pdftotext", "-l", "1", file, "-"], capture_output=True, text=True).stdout
        assert "The question and the answer" in told


def test_the_answer_is_the_files_own(small_sweep: Path) -> None:
    """Medians and choices recomputed from the file with pandas."""
    frame = pq.read_table(small_sweep).to_pandas()
    a = advise(read(small_sweep))
    ok = frame[frame["status"] == "ok"]
    medians = ok.groupby(["model", "device", "policy"], observed=True)["throughput_speedup_same_batch"].median()
    for key, tally in a.tallies.items():
        assert tally.median == pytest.approx(medians[key], rel=1e-6)
    for (model, device), choice in a.choices.items():
        best = medians[model, device].drop("dense").max()
        assert max(choice.tally.median, 1.0) == pytest.approx(max(best, 1.0), rel=1e-6)


def test_every_text_is_escaped_in_html(evil: Report) -> None:
    page = html.render(evil)
    strict(page)
    assert page.count(b"<script>") == 1  # our own
    told = text_of(page)
    assert told.count(EVIL) >= 8
    assert RTL in told
    check_anchors(page.decode())


def test_every_text_is_escaped_in_typst(evil: Report, tmp_path: Path) -> None:
    out = tmp_path / "evil.pdf"
    out.write_bytes(pdf.render(evil))
    assert out.read_bytes() == pdf.render(evil)
    if shutil.which("pdftotext"):
        told = subprocess.run(["pdftotext", out, "-"], capture_output=True, text=True).stdout
        flat = re.sub(r"[\s\u200b\u00ad]+", "", told)
        assert '#eval("1+1")$x^2$' in flat
        assert "<script>alert(1)</script>" in flat


def test_names_titles_and_notes_of_the_command_line(run: Run, small_sweep: Path, tmp_path: Path) -> None:
    note, logo, out = tmp_path / "note.txt", tmp_path / "logo.svg", tmp_path / "x.html"
    note.write_text(f"{EVIL}\n\n{RTL}", "utf-8")
    logo.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><circle r="4"/></svg>')
    table = pq.read_table(small_sweep)
    named = pa.array([EVIL if str(v) == "llama-2-7b" else str(v) for v in table["model"]]).dictionary_encode()
    odd = tmp_path / "odd.parquet"
    pq.write_table(table.set_column(0, table.schema.field("model"), named.cast(table.schema.field("model").type)), odd)
    more = ("--title", EVIL, "--notes", f"@{note}", "--logo", logo, "--paper", "letter")
    code, _, err = run(odd, "-o", out, "-o", tmp_path / "x.pdf", *more)
    assert code == 0, err
    strict(out.read_bytes())
    told = text_of(out.read_bytes())
    assert told.count(EVIL) > 5
    assert RTL in told


def test_nothing_feasible_is_said(run: Run, tmp_path: Path) -> None:
    path = swept(
        tmp_path / "s.parquet", "--device", "rtx-4090", "--policy", "dense", "--batch", "512", "--prompt-tokens", "2048"
    )
    code, _, err = run(path, "-o", tmp_path / "s.html", "-o", tmp_path / "s.pdf")
    assert code == 0, err
    told = text_of((tmp_path / "s.html").read_bytes())
    assert "Nothing can run: none of the 1 scenarios is feasible" in told
    assert "short by" in told


def changed(path: Path, to: Path, **metadata: str) -> Path:
    table = pq.read_table(path)
    kept = {**table.schema.metadata, **{f"shadowline.{k}".encode(): v.encode() for k, v in metadata.items()}}
    pq.write_table(table.replace_schema_metadata(kept), to)
    return to


def test_what_is_no_sweep_is_refused_in_one_line(run: Run, small_sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    table = pq.read_table(small_sweep)
    text, foreign, empty, lacking = (tmp_path / f"{n}.parquet" for n in ("text", "foreign", "empty", "lacking"))
    text.write_text("no parquet")
    pq.write_table(pa.table({"a": [1]}), foreign)
    pq.write_table(table.slice(0, 0), empty)
    pq.write_table(table.drop_columns(["tpot_s"]), lacking)
    bad = {
        (tmp_path / "absent.parquet",): "no such file",
        (text,): "is no Parquet file",
        (foreign,): "is no sweep",
        (empty,): "has no rows",
        (lacking,): "lacks the column 'tpot_s'",
        (changed(small_sweep, tmp_path / "old.parquet", schema="99"),): "schema 99 is unknown",
        (changed(small_sweep, tmp_path / "plan.parquet", plan="{"),): "is not JSON",
        (small_sweep, "--logo", small_sweep): "must end in",
        (small_sweep, "--notes", "@absent.txt"): "absent.txt: cannot read: No such file",
        (small_sweep, "--data", tmp_path): "goes with --validation",
        (small_sweep, "--trace", tmp_path): "manifest.json",
        ("h100-smx",): "did you mean 'h100-sxm'",
        (): "is needed",
    }
    for arguments, words in bad.items():
        code, told, err = run(*arguments, "-o", out)
        assert (code, told) == (2, ""), (arguments, err)
        assert words in err
        assert len(err.strip().splitlines()) == 1, err
        assert not out.exists()
    (tmp_path / "file").write_text("")
    code, _, err = run(small_sweep, "-o", tmp_path / "file" / "r.html")
    assert code == 2
    assert "cannot write" in err
    code, _, err = run(small_sweep, "-o", tmp_path / "r.docx")
    assert code == 2
    assert "must end in .html or .pdf" in err


@pytest.mark.parametrize("kind", ["trace", "device", "claims"])
def test_the_other_kinds(kind: str, run: Run, repo: Path, tmp_path: Path) -> None:
    judged = {
        "id": "X-1",
        "paper": "Paper <b>",
        "family": "kv",
        "kind": "e2e",
        "metric": "tpot_s",
        "published": 0.02,
        "predicted": 0.03,
        "lo": 0.015,
        "hi": 0.04,
        "ratio": 1.5,
        "inside": True,
        "status": "judged",
        "reason": "model gap: known",
        "miss": "model gap",
        "wrong": None,
        "used_for_calibration": False,
    }
    (tmp_path / "claims.json").write_text(json.dumps({"rows": [judged], "summary": _summary(judged)}))
    given = {"trace": repo / TRACE, "device": "l40s", "claims": tmp_path / "claims.json"}[kind]
    out = tmp_path / "k.html", tmp_path / "k.pdf"
    code, _, err = run(given, "-o", out[0], "-o", out[1])
    assert code == 0, err
    strict(out[0].read_bytes())
    check_anchors(out[0].read_text("utf-8"))
    words = {"trace": "How sparse is tiny-opt-py?", "device": "How well do we know the l40s?", "claims": "Paper <b>"}
    assert words[kind] in text_of(out[0].read_bytes())
    if shutil.which("qpdf"):
        assert subprocess.run(["qpdf", "--check", out[1]], capture_output=True).returncode == 0


@pytest.mark.parametrize(("device", "measured"), [("h100-sxm", True), ("rtx-4060", False)])
def test_a_device_without_measurements_has_no_empty_section(
    device: str, measured: bool, run: Run, tmp_path: Path
) -> None:
    code, _, err = run(device, "-o", tmp_path / "d.html")
    assert code == 0, err
    assert ("On this device" in text_of((tmp_path / "d.html").read_bytes())) == measured


def _summary(row: dict) -> dict:
    from simulator.claims.judge import Judged
    from simulator.claims.statistics import summary

    values = {k: v for k, v in row.items() if k not in ("id", "ratio", "inside")}
    return summary([Judged(claim_id=row["id"], **values)])


def test_a_bad_claims_file_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    for text, words in (
        ("{", "is not JSON"),
        ("[]", "lacks rows or summary"),
        ('{"rows": [{"x": 1}], "summary": {}}', "of another version"),
    ):
        path.write_text(text)
        code, _, err = run(path, "-o", tmp_path / "c.html")
        assert code == 2
        assert words in err


def test_terms_used_are_explained_and_no_others(report: Report) -> None:
    terms = {term for b in report.blocks() if isinstance(b, Terms) for term, _ in b.items}
    assert {"TTFT", "TPOT", "speed-up", "basis", "90 % interval"} <= terms
    assert "window density" not in terms
    with_term = {c.term for t in report.tables() for c in t.columns if c.term}
    assert with_term <= terms


def test_figures_have_conclusions_and_words(report: Report) -> None:
    figures = list(report.figures())
    assert len(figures) >= 8
    for figure in figures:
        assert len(figure.title.split()) >= 4
        assert figure.alt.strip()
        assert "<path" in figure.svg
    smaller = replace(report, sections=report.sections[:1])
    assert len(html.render(smaller)) < len(html.render(report))


def test_medians_by_key() -> None:
    from reports.rows import medians

    rng = np.random.default_rng(0)
    a, b, v = rng.integers(0, 3, 200), rng.integers(0, 4, 200), rng.normal(size=200)
    (x, y), middle = medians(v, a, b)
    for i, j, m in zip(x, y, middle, strict=True):
        assert m == pytest.approx(np.median(v[(a == i) & (b == j)]))


@pytest.mark.browser
def test_a_browser_shows_and_prints_the_page(report: Report, tmp_path: Path) -> None:
    """Light and dark differ, the paper has the first heading, and nothing outside the file is asked for."""
    from PIL import Image

    page = tmp_path / "r.html"
    page.write_bytes(html.render(report))
    chrome = shutil.which("chromium") or shutil.which("google-chrome")
    common = [chrome, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    corner = []
    for scheme in (1, 0):
        shot = tmp_path / f"{scheme}.png"
        look = [f"--blink-settings=preferredColorScheme={scheme}", "--window-size=390,900", f"--screenshot={shot}"]
        subprocess.run([*common, *look, page.as_uri()], check=True, capture_output=True, timeout=60)
        with Image.open(shot) as image:
            corner.append(image.convert("L").getpixel((2, 2)))
            assert len(image.convert("L").getcolors()) > 20
    assert corner[0] > 240
    assert corner[1] < 60
    printed = tmp_path / "printed.pdf"
    subprocess.run(
        [*common, "--no-pdf-header-footer", f"--print-to-pdf={printed}", page.as_uri()],
        check=True,
        capture_output=True,
        timeout=60,
    )
    if shutil.which("pdftotext"):
        told = subprocess.run(["pdftotext", printed, "-"], capture_output=True, text=True).stdout
        assert "The question and the answer" in told
        assert "Versions and hashes" in told


@pytest.mark.parametrize("name", ["t4", "apple-m1-max"])
def test_a_device_without_bf16_is_reported_in_fp16(name: str) -> None:
    from reports.device import compose

    rates = next(f for s in compose(name).sections for f in s.blocks if isinstance(f, Figure))
    assert "fp16" in rates.alt
    assert "bf16" not in rates.alt


def test_a_sure_loser_is_read_and_never_recommended(tmp_path: Path) -> None:
    """FlexGen's 100-fold slower steps: P(win) is 0, and no table of what to run names it."""
    from reports.advice import advise, worth
    from reports.rows import read
    from simulator.results.swept import write
    from simulator.scenario.grid import Grid

    path = tmp_path / "s.parquet"
    grid = Grid(
        model=("llama-2-7b",), device=("h100-sxm",), policy=("dense", "flexgen(weights=0.2,kv=0)"), batch=(1, 4)
    )
    write([grid], path, command="", quiet=True)
    a = advise(read(path))
    assert a.sweep.rows.p_win[~a.sweep.dense].max() < 1e-9
    assert not worth(a.sweep)[~a.sweep.dense].any()
    assert {c.row.policy for c in a.choices.values()} == {"dense"}
    assert a.cheapest is not None
    assert a.cheapest.policy == "dense"
