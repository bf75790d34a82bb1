"""The dashboard's other pages: defaults, every widget, bad input, nothing that fits."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from urllib.parse import parse_qsl

import pandas as pd
import pytest

pytest.importorskip("streamlit", reason="streamlit not installed")

from streamlit.testing.v1 import AppTest

import app
from app import axes, state
from simulator.base.console import number
from simulator.base.glossary import TERMS
from simulator.device.catalogue import load
from simulator.results.prediction import predict
from simulator.scenario.scenario import Scenario
from simulator.trace import read_trace

MAIN = Path(app.__file__).with_name("main.py")
SHIPPED = MAIN.parents[1] / "traces" / "shipped" / "tiny-opt-py" / "trace"
LINK = "model=llama-2-7b&device=h100-sxm&policy=teal(keep=0.5)&prompt_tokens=512"
SWEEP = LINK + "&s.batch=1,16&s.prompt_tokens=128,512"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The visitor's folder of own profiles, models and traces."""
    monkeypatch.setenv("SHADOWLINE_HOME", str(tmp_path))
    monkeypatch.delenv("SHADOWLINE_DATA", raising=False)
    return tmp_path


def opened(link: str, page: str) -> AppTest:
    at = AppTest.from_file(str(MAIN), default_timeout=120)
    values: dict[str, list[str]] = {}
    for key, value in parse_qsl(link, keep_blank_values=True):
        values.setdefault(key, []).append(value)
    for key, given in values.items():
        at.query_params[key] = given if len(given) > 1 else given[0]
    at.run()
    at.switch_page(f"views/{page}.py")
    return ran(at)


def ran(what) -> AppTest:
    """Run the page, or the page of a widget whose value was set."""
    at = what.run()
    assert not at.exception, [e.value for e in at.exception]
    return at


def told(at: AppTest) -> str:
    return re.sub(r"\\(\W|_)", r"\1", "\n".join(e.value for e in (*at.warning, *at.error, *at.info)))


def texts(at: AppTest) -> str:
    return "\n".join(e.value for e in (*at.main.markdown, *at.main.caption, *at.main.code))


def button(at: AppTest, label: str):
    return next(b for b in at.button if b.label.startswith(label))


class TestSweep:
    def test_its_words_and_command_are_those_of_the_sweep(self):
        at = opened(SWEEP, "sweep")
        best = predict(Scenario.from_query(LINK).model_copy(update={"batch": 16, "prompt_tokens": 128}))
        assert number(best.row["tokens_per_s_per_gpu"]) in texts(at)
        assert "teal(keep=0.5) on h100-sxm" in texts(at)
        command = shlex.split(at.main.code[0].value)
        assert command[:3] == ["python", "-m", "simulator.sweep"]
        assert command[command.index("--batch") + 1] == "1,16"
        assert command[command.index("--prompt-tokens") + 1] == "128,512"

    def test_every_axis_measure_and_view_draws(self):
        at = opened(SWEEP, "sweep")
        for measure in at.selectbox(key="s.show").options:
            ran(at.selectbox(key="s.show").set_value(measure))
            assert not told(at), measure
        ran(at.segmented_control(key="s.as").set_value("curves"))
        for name, values in (("sparsity", "10,50"), ("tp", "1,2"), ("output_tokens", "8,64")):
            ran(at.selectbox(key="s.x").set_value(name))
            ran(at.text_input(key=f"s.{name}").set_value(values))
            assert not told(at), name
        ran(at.selectbox(key="s.x").set_value("policy"))
        assert "Curves need numbers across" in told(at)
        ran(at.text_area(key="s.policy").set_value("dense\nnm24\nkv_quant(bits=[4,2])"))
        assert "kv_quant(bits=2)" in at.main.code[0].value
        ran(at.selectbox(key="s.x").set_value("device"))
        ran(at.multiselect(key="s.device").set_value(["h100-sxm", "rtx-4090"]))
        assert "--device h100-sxm,rtx-4090" in at.main.code[0].value

    def test_published_quality_answers_to_the_slider(self):
        at = opened(SWEEP.replace("teal(keep=0.5)", "dense"), "sweep")
        at.slider(key="s.loss").set_value(10.0)
        assert "points" in texts(ran(at))

    @pytest.mark.parametrize(
        ("key", "text", "part"),
        [
            ("s.batch", "1:x", "cannot read"),
            ("s.batch", "0", "must be 1 or more"),
            ("s.batch", "1:1000:1000", "points; at most 20,000"),
        ],
    )
    def test_a_bad_range_is_told(self, key, text, part):
        at = opened(SWEEP.replace("128,512", "1:100:100"), "sweep")
        ran(at.text_input(key=key).set_value(text))
        assert part in told(at)

    def test_sparsity_needs_a_policy_that_has_one(self):
        at = opened(SWEEP.replace("teal(keep=0.5)", "nm24") + "&s.x=sparsity", "sweep")
        assert "needs a policy with a share to keep" in told(at)

    def test_where_nothing_fits_it_says_so(self):
        at = opened("model=llama-3.1-405b&device=rtx-4090&policy=nm24&s.batch=1,2&s.prompt_tokens=128,256", "sweep")
        assert "Nothing fits" in texts(at)


class TestTraces:
    def test_a_shipped_trace_tells_its_zeros_unions_attention_and_quality(self):
        at = opened(LINK, "traces")
        ran(at.selectbox(key="t.trace").set_value("tiny-opt-py"))
        trace = read_trace(SHIPPED)
        one = trace.curve(0, "ffn.down", "exact_zero").value[0]
        assert 0.5 < one < 1.0
        assert "Most zeros: ffn.down" in texts(at).replace("\\", "")
        assert "rows together need" in texts(at)
        assert "of the attention lies on" in texts(at)
        assert trace.digest[:12] in texts(at)
        for tensor in at.selectbox(key="t.tensor").options:
            ran(at.selectbox(key="t.tensor").set_value(tensor))
        kept = next(s for s in at.selectbox if s.label == "Kept per token")
        ran(kept.set_value(kept.options[-1]))

    def test_it_can_be_used_in_the_scenario(self):
        at = opened(LINK, "traces")
        ran(at.selectbox(key="t.trace").set_value("tiny-opt-py"))
        ran(button(at, "Use in the scenario").click())
        assert not told(at)
        assert at.text_input(key="trace").value == str(SHIPPED)
        at.switch_page("views/what_if.py")
        ran(at)
        scenario = Scenario.of(
            model=str(SHIPPED.parent / "model"),
            device="h100-sxm",
            policy="shadowllm(keep=0.5)",
            prompt_tokens=64,
            output_tokens=32,
            trace=str(SHIPPED),
        )
        assert at.metric[0].value == number(predict(scenario).row["tokens_per_s"])

    def test_an_upload_is_checked_and_kept_apart(self, home):
        at = opened(LINK, "traces")
        uploads = [(p.name, p.read_bytes(), "") for p in sorted(SHIPPED.iterdir())]
        ran(at.file_uploader(key="t.files").set_value(uploads))
        assert "is in the list below" in at.success[0].value
        (kept,) = (home / "traces").iterdir()
        assert kept.name.startswith("tiny-opt-py-")

    @pytest.mark.parametrize(
        ("change", "part"),
        [
            (lambda f: f.pop("manifest.json"), "manifest.json is missing"),
            (lambda f: f.update({"curves.parquet": b"PAR1"}), "was truncated or changed"),
            (lambda f: f.update({"manifest.json": b"{"}), "is not JSON"),
            (lambda f: f.update({"evil.parquet": b""}), "is no file of a trace"),
        ],
    )
    def test_a_bad_upload_says_what_was_wrong_and_keeps_nothing(self, home, change, part):
        files = {p.name: p.read_bytes() for p in SHIPPED.iterdir()}
        change(files)
        at = opened(LINK, "traces")
        ran(at.file_uploader(key="t.files").set_value([(n, c, "") for n, c in files.items()]))
        assert part in told(at)
        assert "Shown instead" in told(at)
        assert not (home / "traces").exists()


class TestValidation:
    def test_errors_and_fits_filter(self):
        at = opened(LINK, "validation")
        assert "half of the kernels are within" in texts(at)
        ran(at.multiselect(key="v.device").set_value(["h100-sxm"]))
        ran(at.multiselect(key="v.family").set_value(["gemm"]))
        table = at.main.dataframe[-1].value
        assert set(table["device"]) == {"h100-sxm"}
        assert set(table["family"]) == {"gemm"}

    def test_measured_rows_are_judged(self):
        shapes = [(2**i, 4096, 4096) for i in range(11)]
        rows = pd.DataFrame(shapes, columns=["m", "n", "k"]).assign(
            source="mine", device="h100-sxm", dtype="bf16", batch=1, time_s=1e-5, kernel="", note="", url="", flag=""
        )
        at = opened(LINK + "&v.what=measured rows", "validation")
        assert "Upload measured rows" in told(at)
        ran(at.file_uploader(key="v.file").set_value(("mine.csv", rows.to_csv(index=False).encode(), "text/csv")))
        assert "11 rows: median APE" in texts(at)
        short = rows.drop(columns="k").to_csv(index=False).encode()
        ran(at.file_uploader(key="v.file").set_value(("mine.csv", short, "text/csv")))
        assert "mine.csv cannot be judged: gemm rows lack the columns ['k']" in told(at)

    @pytest.mark.parametrize("content", [b"", b"not,a\ntable", b"\x00\x01"])
    def test_rows_that_cannot_be_read_are_told(self, content):
        at = opened(LINK + "&v.what=measured rows", "validation")
        ran(at.file_uploader(key="v.file").set_value(("mine.parquet", content, "")))
        assert "mine.parquet cannot be judged" in told(at)

    def test_claims_wait_for_the_button_and_are_those_of_the_judge(self, monkeypatch):
        from simulator.claims import rows
        from simulator.claims.judge import judge
        from simulator.claims.statistics import summary

        few = tuple(p for p in rows.committed() if p.paper == "Deja Vu")
        monkeypatch.setattr(rows, "committed", lambda: few)
        at = opened(LINK + "&v.what=published claims", "validation")
        assert not at.main.dataframe
        ran(button(at, "Predict every published figure").click())
        judged = judge(few)
        total = summary(judged)["all"]
        assert f"{total['rows']} figures of 1 papers" in texts(at)
        assert f"**{total['geometric_mean']:.2f}**" in texts(at)
        assert list(at.main.dataframe[0].value["id"]) == [r.claim_id for r in judged if r.status == "judged"]
        assert set(at.main.dataframe[0].value["link"]) == {"https://arxiv.org/abs/2310.17157"}
        ran(at.multiselect(key="v.status").set_value([]))
        assert len(at.main.dataframe[0].value) == len(judged)
        ran(at.toggle(key="v.misses").set_value(True))
        misses = [r.claim_id for r in judged if r.ratio is not None and not r.within]
        assert list(at.main.dataframe[0].value["id"]) == misses
        ran(at.multiselect(key="v.paper").set_value(["Deja Vu"]))

    def test_kernel_traffic_is_read_from_the_tools_file(self):
        row = {"op": "teal", "operand": "w", "predicted_bytes": 1, "recorded_bytes": 1, "agrees": True}
        at = opened(LINK + "&v.what=kernel traffic", "validation")
        good = json.dumps({"rows": [row, {**row, "agrees": False}]}).encode()
        ran(at.file_uploader(key="v.traffic").set_value(("traffic.json", good, "")))
        assert "2 operands of 1 kernels: **1 disagree**." in texts(at)
        ran(at.file_uploader(key="v.traffic").set_value(("traffic.json", b'{"rows": [{}]}', "")))
        assert "its rows need" in told(at)


class TestCatalogue:
    def test_every_number_of_a_device_has_its_source(self):
        at = opened(LINK, "catalogue")
        facts = dict(load("h100-sxm").facts())
        table = at.main.dataframe[1].value
        assert list(table["number"]) == list(facts)
        assert list(table["source"]) == [f.source for f in facts.values()]

    def test_policies_models_and_glossary(self):
        at = opened(LINK, "catalogue")
        ran(at.segmented_control(key="c.what").set_value("policies"))
        ran(at.pills(key="c.family").set_value(["weights"]))
        assert set(at.main.dataframe[0].value["family"]) == {"weights"}
        assert "Not modelled" in texts(at)
        ran(at.segmented_control(key="c.what").set_value("models"))
        assert "llama-2-7b" in set(at.main.dataframe[0].value["model"])
        ran(at.segmented_control(key="c.what").set_value("glossary"))
        ran(at.text_input(key="c.search").set_value("ttft"))
        assert TERMS["TTFT"] in texts(at)
        ran(at.text_input(key="c.search").set_value("zzz"))
        assert "No term has 'zzz'" in told(at)

    def test_an_edited_copy_is_saved_used_and_never_overwrites(self, home):
        at = opened(LINK, "catalogue")
        ran(at.text_input(key="c.name.h100-sxm").set_value("my-h100"))
        ran(button(at, "Save and use").click())
        assert "my-h100 is saved" in at.success[0].value
        assert at.selectbox(key="device").value == "my-h100"
        assert load("my-h100").hbm_bytes_per_s == load("h100-sxm").hbm_bytes_per_s
        at = opened(LINK, "catalogue")
        ran(at.text_input(key="c.name.h100-sxm").set_value("my-h100"))
        ran(button(at, "Save and use").click())
        assert "'my-h100' is taken" in told(at)
        assert (home / "devices" / "my-h100.toml").is_file()

    @pytest.mark.parametrize(("text", "part"), [(b"name = ", "bad.toml"), (b'schema = 1\nname = "other"', "bad.toml")])
    def test_a_bad_profile_names_its_lines(self, home, text, part):
        at = opened(LINK, "catalogue")
        ran(at.file_uploader(key="c.toml").set_value(("bad.toml", text, "")))
        ran(button(at, "Save and use bad").click())
        assert part in told(at)
        assert "Nothing was changed" in told(at)
        assert not (home / "devices").exists()


def test_a_pasted_config_becomes_the_model(home):
    config = (MAIN.parents[1] / "hw_profiles" / "models" / "llama-2-7b.json").read_text()
    at = opened(LINK, "catalogue")
    at.text_input(key="own.name").set_value("my-llama")
    ran(at.text_area(key="own.text").set_value(config))
    ran(button(at, "Use this model").click())
    assert at.selectbox(key="model").value == str(home / "models" / "my-llama")
    assert any("my-llama is read" in s.value for s in at.success)


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [("My llama!", "{}", "needs letters"), ("a", "{", "is not valid JSON"), ("a", "{}", "'model_type' is missing")],
)
def test_a_bad_config_is_told_and_changes_nothing(home, name, text, part):
    at = opened(LINK, "catalogue")
    at.text_input(key="own.name").set_value(name)
    ran(at.text_area(key="own.text").set_value(text))
    ran(button(at, "Use this model").click())
    assert part in told(at)
    assert at.selectbox(key="model").value == "llama-2-7b"
    assert not (home / "models").exists()


def test_the_example_of_a_sweep_reads_back_as_its_command():
    x, _ = axes.read("batch", "1,2", state.EXAMPLE)
    grid = axes.grid(state.EXAMPLE, {"batch": x.values})
    assert "--batch 1,2" in axes.command(grid)
    scope: dict[str, object] = {}
    exec(axes.snippet(grid).replace("print(", "result = ("), scope)
    assert list(scope["result"]["batch"]) == [1, 2]
