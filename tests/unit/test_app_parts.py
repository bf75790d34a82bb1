"""The dashboard's own small parts: sentences, axes, choices among rows, charts that are valid Vega-Lite."""

from __future__ import annotations

import shlex

import numpy as np
import pytest

pytest.importorskip("streamlit", reason="streamlit not installed")

from app import axes, compute, figures, heat, words
from reports.roofline import Mark, Roofline
from reports.style import COLOURS
from simulator.base.drawing import Line, Lines
from simulator.base.errors import InputError
from simulator.base.interval import Interval
from simulator.inference.evaluate import end_to_end, rate
from simulator.results.break_even import BreakEven
from simulator.results.prediction import PARTS, predict
from simulator.results.verdict import as_times
from simulator.scenario.grid import Grid
from simulator.scenario.scenario import Scenario

BASE = Scenario.of(model="llama-2-7b", device="h100-sxm", policy="teal(keep=0.5)", prompt_tokens=512)


def curve(speedup, values=(1, 2, 4, 8), fits=(True,) * 4, axis="batch") -> BreakEven:
    return BreakEven(axis, np.array(values, float), Interval.exact(np.array(speedup, float)), np.array(fits))


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (curve([1.5, 1.2, 1.1, 1.02]), "wins everywhere (batch 1 to 8)"),
        (curve([0.5, 1.0, 1.01, 0.9]), "never wins (batch 1 to 8)"),
        (curve([1.5, 1.2, 0.9, 0.8]), "wins up to batch 2 (batch 1 to 8)"),
        (curve([0.9, 0.9, 1.1, 1.2]), "wins from batch 4 (batch 1 to 8)"),
        (curve([1.1, 0.9, 0.9, 1.2]), "wins at batch 1 and from 8 (batch 1 to 8)"),
        (curve([0.9, 1.1, 1.1, 0.9]), "wins at batch 2 to 4 (batch 1 to 8)"),
        (curve([1.1] * 4, fits=(True, True, False, False)), "wins everywhere (batch 1 to 2)"),
        (curve([np.nan] * 4), "fits at no batch"),
        (curve([0.9, 1.1, 0.9, 0.9], axis="prompt_tokens"), "wins only at prompt 2 (prompt 1 to 8)"),
    ],
)
def test_where_it_wins_in_words(found, sentence):
    assert words.where_it_wins([found], BASE) == f"teal(keep=0.5): {sentence}."


def test_the_curve_is_that_of_single_predictions():
    batch, _ = compute.over_load(BASE)
    for i in (0, 7, len(batch.values) - 1):
        answer = predict(BASE.model_copy(update={"batch": int(batch.values[i])})).answer
        assert bool(batch.fits[i]) == (answer.status == "ok")
        assert batch.speedup.mid[i] == pytest.approx(answer.speedup.mid, rel=1e-9)


def test_the_answer_names_the_verdict_the_rates_and_the_bound():
    answer, dense = (predict(s) for s in (BASE, compute.dense_of(BASE)))
    text = words.answer(answer, dense)
    assert text.startswith("**teal(keep=0.5)** wins on **llama-2-7b** and one **h100-sxm**: ")
    assert f"**{as_times(answer.answer.speedup.mid)}**" in text
    assert max(answer.shares, key=answer.shares.get) in text.lower()


def test_no_speed_up_is_claimed_over_a_dense_model_that_does_not_fit():
    """70B in bf16 needs 141 GB of weights, in 4 bit 40 GB; an H100 has 80."""
    large = BASE.model_copy(update={"model": "llama-3.1-70b", "policy": "w4a16"})
    answer, dense = (predict(s) for s in (large, compute.dense_of(large)))
    text = words.answer(answer, dense)
    assert "lets **llama-3.1-70b** run" in text
    assert "where dense cannot (short by" in text
    assert " wins on " not in text
    assert answer.row["dense_max_batch"] == 0
    assert ", but dense does not fit (largest batch 0)" in answer.sentence


def test_the_interval_of_a_rate_is_that_of_its_times():
    ttft, tpot = Interval(0.6, 0.4, 1.0), Interval(0.05, 0.04, 0.1)
    eleven = rate(4.0 * 11.0, end_to_end(ttft, tpot, 11.0))
    assert words.interval(eleven) == "90 %: 22 – 55"  # 44 tokens in 2.0 and in 0.8 s
    one = rate(4.0, end_to_end(ttft, Interval.exact(np.nan), 1.0))
    assert words.interval(one) == "90 %: 4 – 10"  # 4 tokens in 1.0 and in 0.4 s
    assert words.interval(Interval.exact(np.nan)) == ""


def test_parts_of_the_model_cover_every_operation_once():
    answer = predict(BASE)
    assert {o.part for o in answer.ops} <= set(PARTS)


def test_a_sweeps_command_means_the_same_grid():
    from simulator.scenario.grid import policies, whole_numbers

    grid = axes.grid(BASE, {"batch": (1, 8), "policy": policies(["teal(keep=[0.3,0.5])", "nm24+quest"])})
    given = shlex.split(axes.command(grid))[3:]
    pairs = list(zip(given[::2], given[1::2], strict=True))
    read = Grid(
        model=("llama-2-7b",),
        device=("h100-sxm",),
        policy=policies([v for k, v in pairs if k == "--policy"]),
        batch=whole_numbers(dict(pairs)["--batch"], ""),
        prompt_tokens=(512,),
    )
    assert read == grid


def test_a_sparsity_axis_changes_only_what_is_kept():
    mixed = BASE.model_copy(update={"policy": "quest(budget=1024)+teal(block=256,keep=0.5)"})
    found = axes.sparsities(mixed, (10, 90))
    assert found == {
        "teal(keep=0.9,block=256)+quest(budget=1024)": 10,
        "teal(keep=0.1,block=256)+quest(budget=1024)": 90,
    }
    with pytest.raises(InputError, match="leaves nothing"):
        axes.sparsities(BASE, (100,))


CELLS = [
    {"x": x, "y": y, "value": v, "text": "1", "told": "t", "wins": v is not None and v > 1.0}
    for x, y, v in ((1, 1, 1.5), (2, 1, 0.8), (1, 2, 1.1), (2, 2, None))
]
TWO = Lines(
    (
        Line("a", *(np.array([1.0, 2.0]),) * 2, np.array([0.5, 1.5]), np.array([2.0, 3.0]), np.array([1.0, 4.0])),
        Line("b", np.array([1.0, 2.0]), np.array([3.0, np.nan]), aside=True),
    ),
    "x",
    "y",
    x_log=True,
    most=4.0,
    beside="if independent",
)
XY = [{"x": 1.0, "y": 2.0, "series": s, "name": s, "told": "t", "front": s == "a", "good": "meets"} for s in "ab"]
SPECS = {
    "stacked": figures.stacked(
        [{"name": "a", "part": "FFN", "value": 1.0}], PARTS, "ms", marks=[{"name": "limit", "value": 2.0}]
    ),
    "roofline": figures.roofline(
        Roofline({"bf16": 1e15}, 3e12, 333.0, (Mark("s", "o", intensity=1.0, flop_per_s=1e12, share=0.5),), {"s": 1.0})
    ),
    "curves": figures.curves(TWO, rule=1.0, here=1.0),
    "map": heat.heat_map(CELLS, "x", "y", [1, 2], [1, 2], "x dense", ratio=True),
    "plain map": heat.heat_map(CELLS, "x", "y", [1, 2], [1, 2], "tokens/s", numbers=False),
    "empty map": heat.heat_map([{**c, "value": None} for c in CELLS], "x", "y", [1, 2], [1, 2], "x", ratio=True),
    "front": figures.front(XY, "x", "y", 1.0),
    "choices": figures.choices(XY, "x", "y", 1.0),
    "dots": figures.dots([{"name": "a", "value": 1.0, "series": "s"}], "%"),
    "against": figures.against(XY, "x", "y"),
}


@pytest.mark.parametrize("name", SPECS)
def test_charts_are_valid_vega_lite(name):
    altair = pytest.importorskip("altair", reason="altair not installed")
    altair.Chart.from_dict(SPECS[name], validate=True)


def test_curves_have_bands_dotted_comparisons_and_grey_yardsticks():
    spec = SPECS["curves"]
    assert spec["data"]["values"] == [
        {"series": "a", "x": 1.0, "y": 1.0},
        {"series": "a", "x": 2.0, "y": 2.0},
        {"series": "b", "x": 1.0, "y": 3.0},
    ]
    kinds = [layer["mark"]["type"] for layer in spec["layer"]]
    assert kinds == ["area", "line", "line", "rule", "rule"]
    assert spec["layer"][1]["encoding"]["color"]["scale"]["range"] == [COLOURS[0], figures.GREY]
    assert [v["y"] for v in spec["layer"][2]["data"]["values"]] == [1.0, 4.0]


def test_a_chart_becomes_svg_and_png():
    pytest.importorskip("vl_convert", reason="vl-convert-python not installed")
    from app import blocks

    assert blocks.drawn(SPECS["map"], "svg").startswith(b"<svg")
    assert blocks.drawn(SPECS["curves"], "png").startswith(b"\x89PNG")


def test_the_border_of_a_map_lies_where_winning_ends():
    borders = [layer for layer in SPECS["map"]["layer"] if layer["mark"].get("strokeWidth") == 2.5]
    assert [b["data"]["values"] for b in borders] == [[{"x": 1, "y": 1}]]


def test_parquet_carries_units_and_the_command():
    import io

    import pyarrow.parquet as pq

    answer = predict(BASE)
    content = compute.parquet(compute.frame(answer), {"shadowline.command": BASE.command})
    table = pq.read_table(io.BytesIO(content))
    assert table.schema.field("ttft_s").metadata[b"unit"] == b"s"
    assert table.schema.metadata[b"shadowline.command"].decode() == BASE.command
    assert table.to_pylist()[0]["ttft_s"] == answer.row["ttft_s"]


@pytest.mark.parametrize(("form", "start", "holds"), [("html", b"<!", b"teal(keep=0.5)"), ("pdf", b"%PDF", b"%%EOF")])
def test_a_report_is_made_of_the_page_grid(form, start, holds):
    pytest.importorskip("typst", reason="typst not installed")
    grid = axes.grid(BASE, {"policy": ("dense", BASE.policy), "batch": (1, 4)})
    content = compute.report(grid, axes.command(grid), form)
    assert content.startswith(start)
    assert holds in content


def test_it_serves_this_machine_only_and_sends_nothing():
    """The file lies beside the script, so that it holds from whatever folder the app is started."""
    import tomllib
    from pathlib import Path

    import app

    path = Path(app.__file__).with_name(".streamlit") / "config.toml"
    config = tomllib.loads(path.read_text())
    assert config["server"]["address"] == "localhost"
    assert config["browser"]["gatherUsageStats"] is False
    assert config["server"]["maxUploadSize"] <= 16


def test_only_what_is_neither_here_nor_bundled_needs_the_network(tmp_path, monkeypatch):
    from simulator.model.hub import needs_network

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert needs_network("nobody/nothing-7b")
    assert not needs_network("llama-2-7b")
    assert not needs_network("nothing-7b")
    snapshot = tmp_path / "models--nobody--nothing-7b" / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert not needs_network("nobody/nothing-7b")
