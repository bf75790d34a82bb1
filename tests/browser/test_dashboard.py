"""The dashboard in a real browser: links, downloads, baseline, theme, uploads, small screens, keyboard."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest

pytest.importorskip("streamlit", reason="streamlit not installed")

from simulator.base.console import milliseconds, number
from simulator.results.prediction import predict
from simulator.scenario.scenario import Scenario

pytestmark = pytest.mark.browser

LINK = "?model=llama-2-7b&device=h100-sxm&policy=teal(keep=0.5)&prompt_tokens=512"
SCENARIO = Scenario.from_query(LINK)
PAGES = ("Sweep", "Size a fleet", "Traces", "Validation", "Devices and policies", "What-if")
SHIPPED = Path(__file__).resolve().parents[2] / "traces" / "shipped" / "tiny-opt-py" / "trace"


def test_a_change_is_in_the_address_and_the_address_brings_it_back(visit):
    first = visit()
    first.open(LINK)
    assert first.value("tokens/s") == number(predict(SCENARIO).row["tokens_per_s"])
    first.set("Batch [sequences]", 24)
    row = predict(SCENARIO.model_copy(update={"batch": 24})).row
    first.page.wait_for_url(re.compile(r"batch=24"))
    first.metric("tokens/s").get_by_text(number(row["tokens_per_s"]), exact=True).wait_for()
    link = first.page.url
    first.page.close()
    second = visit()
    second.page.goto(link)
    second.settled()
    assert second.value("tokens/s") == number(row["tokens_per_s"])
    assert second.value("TPOT") == f"{milliseconds(row['tpot_s'])} ms"
    assert second.number("Batch [sequences]").input_value() == "24"
    assert not first.errors + second.errors


def test_downloads_hold_what_predict_says(visit):
    window = visit()
    window.open(LINK)
    with window.page.expect_download() as waiting:
        window.page.get_by_role("button", name="CSV", exact=True).last.click()
    download = waiting.value
    assert download.suggested_filename.startswith("prediction_llama-2-7b_h100-sxm_")
    (row,) = csv.DictReader(io.StringIO(Path(download.path()).read_text()))
    assert float(row["tokens_per_s"]) == pytest.approx(predict(SCENARIO).row["tokens_per_s"], rel=1e-12)
    window.page.get_by_role("button", name="Save chart").first.click()
    with window.page.expect_download() as waiting:
        window.page.get_by_role("button", name="SVG").click()
    svg = Path(waiting.value.path()).read_text()
    assert svg.startswith("<svg")
    assert "kernels of one decode step" in svg
    assert not window.errors


def test_a_pinned_baseline_is_compared_and_travels(visit):
    window = visit()
    window.open(LINK)
    window.page.get_by_role("button", name="Pin as baseline").click()
    window.page.wait_for_url(re.compile("baseline="))
    window.set("Batch [sequences]", 16)
    a, b = (predict(SCENARIO.model_copy(update={"batch": n})).row["tokens_per_s"] for n in (1, 16))
    change = f"{b / a - 1:+.1%}"
    window.metric("tokens/s").get_by_text(change).wait_for()
    link = window.page.url
    window.page.close()
    other = visit()
    other.page.goto(link)
    other.settled()
    other.metric("tokens/s").get_by_text(change).wait_for()
    other.page.get_by_role("button", name="Unpin").click()
    other.page.wait_for_url(re.compile(r"^(?!.*baseline=)"))
    assert not window.errors + other.errors


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_themes(visit, scheme):
    window = visit(scheme=scheme)
    window.open(LINK)
    ratio = window.page.evaluate(
        """() => {
          const light = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
            .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
            return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
          const ground = light(getComputedStyle(document.querySelector('[data-testid="stApp"]')).backgroundColor);
          return [ground, ...[...document.querySelectorAll('h4, [data-testid="stMetricValue"]')].map(e => {
            const ink = light(getComputedStyle(e).color);
            return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05); })];
        }"""
    )
    assert (ratio[0] < 0.1) == (scheme == "dark")
    assert min(ratio[1:]) >= 4.5
    assert not window.errors


def test_a_bad_trace_says_what_was_wrong(visit, tmp_path):
    window = visit()
    window.open(LINK)
    window.page.get_by_role("link", name="Traces").click()
    window.settled()
    files = []
    for path in sorted(SHIPPED.iterdir()):
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(content[:-9] if path.name == "curves.parquet" else content)
        files.append(str(tmp_path / path.name))
    window.page.get_by_text("Upload a trace").click()
    window.page.locator('input[type="file"]').last.set_input_files(files)
    alert = window.page.get_by_role("alert").filter(has_text="cannot be used")
    alert.wait_for()
    assert "curves.parquet: was truncated or changed" in alert.inner_text()
    assert "Shown instead" in alert.inner_text()
    assert not window.errors


def test_every_page_opens_without_errors_or_strangers(visit):
    window = visit()
    window.open(LINK)
    for name in PAGES:
        window.page.get_by_role("link", name=name, exact=True).click()
        window.settled()
        assert "model=llama-2-7b" in window.page.url
        assert window.page.locator('[data-testid="stException"]').count() == 0
    assert window.errors == []
    assert window.strangers == []


def test_a_small_screen_scrolls_only_down(visit):
    window = visit(width=390)
    window.open(LINK)
    wide = window.page.evaluate(
        "document.querySelector('[data-testid=\"stMain\"]').scrollWidth - document.documentElement.clientWidth"
    )
    assert wide <= 0
    assert window.metric("tokens/s").is_visible()


def test_the_keyboard_moves_a_slider(visit):
    window = visit()
    window.open(LINK)
    slider = window.page.get_by_role("slider", name="Batch [sequences]")
    slider.focus()
    slider.press("ArrowRight")
    window.page.wait_for_url(re.compile(r"batch=2\b"))
    row = predict(SCENARIO.model_copy(update={"batch": 2})).row
    window.metric("tokens/s").get_by_text(number(row["tokens_per_s"]), exact=True).wait_for()


def test_charts_say_in_words_what_they_show(visit):
    window = visit()
    window.open(LINK)
    labels = window.page.locator('[data-testid="stVegaLiteChart"]').evaluate_all(
        "all => all.map(e => (e.querySelector('[aria-label]') || e).getAttribute('aria-label'))"
    )
    assert len(labels) >= 4
    assert all(labels)
