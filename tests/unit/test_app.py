"""The dashboard through Streamlit's own test runner: what a page shows, and what it does with bad input."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import pytest

pytest.importorskip("streamlit", reason="streamlit not installed")

import typer
from streamlit.testing.v1 import AppTest

import app
from app import state
from simulator import predict as predict_verb
from simulator.base.console import milliseconds, number
from simulator.results.prediction import predict
from simulator.results.verdict import as_times
from simulator.scenario.fields import FIELDS
from simulator.scenario.scenario import Scenario

MAIN = Path(app.__file__).with_name("main.py")
LINK = "model=llama-2-7b&device=rtx-4090&policy=mustafar(keep=0.3)&batch=4&prompt_tokens=1024"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The visitor's folder of an own profile or model."""
    monkeypatch.setenv("SHADOWLINE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def opened(link: str = "", page: str = "") -> AppTest:
    """The page as it stands once a link has been followed."""
    at = AppTest.from_file(str(MAIN), default_timeout=60)
    for key, value in parse_qsl(link, keep_blank_values=True):
        at.query_params[key] = value
    at.run()
    if page:
        at.switch_page(f"views/{page}.py").run()
    assert not at.exception, [e.value for e in at.exception]
    return at


def shown(at: AppTest) -> dict[str, str]:
    """Metrics by label."""
    return {m.label: m.value for m in at.metric}


def told(at: AppTest) -> str:
    """All notes of a page."""
    return re.sub(r"\\(\W|_)", r"\1", "\n".join(e.value for e in (*at.warning, *at.error, *at.info)))


def texts(at: AppTest) -> str:
    """Everything written on a page."""
    return "\n".join(e.value for e in (*at.markdown, *at.caption, *at.code))


def agrees(at: AppTest, scenario: Scenario) -> None:
    """The page's numbers are those of `simulator.predict`."""
    row, values = predict(scenario).row, shown(at)
    assert values["tokens/s"] == number(row["tokens_per_s"])
    assert values["speed-up over dense"] == as_times(row["throughput_speedup_same_batch"])
    assert values["TTFT"] == f"{milliseconds(row['ttft_s'])} ms"
    assert values["TPOT"] == f"{milliseconds(row['tpot_s'])} ms"
    assert values["memory per GPU"] == f"{number(row['total_bytes'] / 1e9)} GB"
    assert values["max batch"] == f"{row['max_batch']:,}"
    assert values["$ per M tokens"] == f"${number(row['usd_per_mtoken'])}"
    assert values["energy per token"] == f"{number(row['energy_j_per_token'])} J"
    captions = [c.value for c in at.caption]
    for key in ("ttft", "tpot"):
        lo, hi = (milliseconds(row[f"{key}_{end}_s"]) for end in ("lo", "hi"))
        assert f"90 %: {lo} – {hi} ms" in captions
    assert any(f"[{row['basis']}]" in m.value for m in at.markdown)


def test_a_visitor_without_a_link_sees_the_example():
    at = opened()
    agrees(at, state.EXAMPLE)
    assert not told(at)
    assert at.query_params["model"] == state.EXAMPLE.model
    assert state.EXAMPLE.command in texts(at)


def test_a_link_shows_what_predict_says_of_it():
    at = opened(LINK)
    agrees(at, Scenario.from_query(LINK))
    assert not told(at)


def test_a_link_that_drafts_names_who_and_says_what_it_gives():
    link = "model=llama-3.1-8b&device=h100-sxm&batch=8&speculate=eagle3(k%3D4,accept%3D0.62)"
    at = opened(link)
    agrees(at, Scenario.from_query(link))
    assert "**eagle3(k=4,accept=0.62)** wins on **llama-3.1-8b**" in texts(at)
    assert any("tokens per step" in c.value for c in at.caption)


class Sidebar:
    """The what-if page, whose numbers agree with the simulator's after every change."""

    def __init__(self):
        self.at = opened(LINK)
        self.wanted = Scenario.from_query(LINK).model_dump()

    def set_to(self, widget, **changes):
        widget.run()
        assert not self.at.exception
        self.wanted.update(changes)
        agrees(self.at, Scenario.of(**self.wanted))


def test_numbers_follow_model_device_and_load():
    page = Sidebar()
    at, set_to = page.at, page.set_to
    set_to(at.selectbox(key="model").set_value("llama-3.1-8b"), model="llama-3.1-8b")
    set_to(at.selectbox(key="device").set_value("h100-sxm"), device="h100-sxm")
    set_to(at.number_input(key="batch").set_value(8), batch=8)
    set_to(at.select_slider(key="batch.slider").set_value(16), batch=16)
    set_to(at.number_input(key="output_tokens").set_value(64), output_tokens=64)


def test_numbers_follow_a_policy_and_its_parameters():
    page = Sidebar()
    at, set_to = page.at, page.set_to
    set_to(at.slider(key="policy.mustafar.keep").set_value(50.0), policy="mustafar(keep=0.5)")
    set_to(at.number_input(key="policy.mustafar.window").set_value(64), policy="mustafar(keep=0.5,window=64)")
    depth = "mixed_sparsity(keep=0.5,depth=0.6:0.4)"
    set_to(at.text_input(key="policy").set_value("mixed_sparsity"), policy=depth)
    set_to(at.slider(key="policy.mixed_sparsity.keep").set_value(70.0), policy="mixed_sparsity(keep=0.3)")
    set_to(at.text_input(key="policy.mixed_sparsity.depth").set_value("0.6:0.4"), policy=depth)
    set_to(at.text_input(key="policy").set_value("nm24"), policy="nm24")
    set_to(at.multiselect(key="composer.names").set_value(["nm24", "quest"]), policy="nm24+quest(budget=2048)")


def test_numbers_follow_the_kernel_and_another_policy_has_its_own():
    at = opened("model=llama-3.1-8b&device=h100-sxm&policy=kivi(bits=2)&kernel=fused&batch=16&prompt_tokens=4096")
    asked = {"model": "llama-3.1-8b", "device": "h100-sxm", "batch": 16, "prompt_tokens": 4096}
    agrees(at, Scenario.of(**asked, policy="kivi(bits=2)", kernel="fused"))
    assert "kernel: fused, assumed" in re.sub(r"\\(\W|_)", r"\1", texts(at))
    box = at.sidebar.selectbox(key="kernel")
    assert box.options == ["published", "split", "fused", "ideal"]
    box.set_value("ideal").run()
    agrees(at, Scenario.of(**asked, policy="kivi(bits=2)", kernel="ideal"))
    at.sidebar.text_input(key="policy").set_value("nm24").run()
    agrees(at, Scenario.of(**asked, policy="nm24", kernel="ideal"))
    at.sidebar.selectbox(key="kernel").set_value("cusparselt").run()
    at.sidebar.text_input(key="policy").set_value("quest(budget=1024)").run()
    assert at.sidebar.selectbox(key="kernel").value == "published"
    agrees(at, Scenario.of(**asked, policy="quest(budget=1024)"))
    at.sidebar.text_input(key="policy").set_value("dense").run()
    assert not at.exception
    assert shown(at)["tokens/s"] == number(predict(Scenario.of(**asked)).row["tokens_per_s"])


def test_numbers_follow_engine_and_memory():
    page = Sidebar()
    at, set_to = page.at, page.set_to
    set_to(at.text_input(key="policy").set_value("nm24+quest"), policy="nm24+quest(budget=2048)")
    set_to(at.number_input(key="tp").set_value(2), tp=2)
    set_to(at.selectbox(key="engine").set_value("sglang"), engine="sglang")
    set_to(at.selectbox(key="kv_cache_dtype").set_value("fp8"), kv_cache_dtype="fp8")
    set_to(at.number_input(key="gpu_memory_utilization").set_value(0.8), gpu_memory_utilization=0.8)


def test_a_bad_link_says_what_was_wrong_and_what_is_used():
    at = opened("model=llama-2-7&device=rtx-4090&policy=mustafa&batch=abc&kv_cache_dtype=fp8&depth=3")
    notes = told(at)
    for part in ("'llama-2-7'", "did you mean 'llama-2-7b'", "'mustafa'", "'abc'", "'depth' means nothing here"):
        assert part in notes
    assert "Used instead: dense" in notes
    assert "Used instead: 1." in notes
    agrees(at, Scenario.of(model=state.EXAMPLE.model, device="rtx-4090", kv_cache_dtype="fp8"))
    at.number_input(key="batch").set_value(2).run()
    assert not told(at)


def test_a_links_words_are_shown_never_followed():
    at = opened("model=![x](http://example.org/x.png)&foo[a](http://example.org)=1")
    shown = "".join(e.value for e in at.warning)
    assert "http" in shown
    assert not re.search(r"(?<!\\)\[.*(?<!\\)\]\(", shown)


def test_of_two_parameters_that_contradict_the_later_is_dropped():
    at = opened("model=llama-2-7b&device=h100-sxm&policy=kv_quant(bits=4)&kv_cache_dtype=fp8")
    assert "kv_quant sets the KV format itself" in told(at)
    agrees(at, Scenario.of(model="llama-2-7b", device="h100-sxm", policy="kv_quant(bits=4)"))


def test_a_link_never_makes_the_page_ask_a_hub():
    at = opened("model=nobody/nothing-7b&device=h100-sxm")
    assert "is not on this machine" in told(at)
    next(b for b in at.button if "Fetch nobody/nothing-7b" in b.label).click().run()
    assert "HF_HUB_OFFLINE is set" in told(at)
    agrees(at, Scenario.of(model=state.EXAMPLE.model, device="h100-sxm"))


def test_what_does_not_fit_says_by_how_much_and_what_would():
    scenario = Scenario.of(model="llama-3.1-70b", device="rtx-4090", policy="nm24")
    at = opened(scenario.to_query())
    row = predict(scenario).row
    assert row["status"] == "does_not_fit"
    assert "does not fit" in texts(at)
    assert row["reason"] in texts(at)
    assert shown(at)["tokens/s"] == "–"


def test_a_combination_that_cannot_be_keeps_the_last_good_one():
    at = opened(LINK)
    at.text_input(key="policy").set_value("nm24+w4a16").run()
    assert "both rewrite" in told(at)
    agrees(at, Scenario.from_query(LINK))
    at.selectbox(key="kv_cache_dtype").set_value("fp8").run()
    assert "mustafar sets the KV format itself" in told(at)
    agrees(at, Scenario.from_query(LINK))


def delta(at: AppTest, label: str) -> str:
    """Change of a metric against the baseline."""
    return next(m for m in at.metric if m.label == label).delta


def test_a_pinned_baseline_shows_changes_and_travels_in_the_link():
    at = opened(LINK)
    next(b for b in at.button if b.label == "Pin as baseline").click().run()
    at.number_input(key="batch").set_value(16).run()
    a, b = (predict(Scenario.from_query(LINK).model_copy(update={"batch": n})).row for n in (4, 16))
    change = f"{b['tokens_per_s'] / a['tokens_per_s'] - 1:+.1%}"
    assert delta(at, "tokens/s") == change
    link = urlencode({**at.query_params, "batch": 16})
    assert delta(opened(link), "tokens/s") == change
    next(x for x in at.button if x.label == "Swap").click().run()
    agrees(at, Scenario.from_query(LINK))
    assert delta(at, "tokens/s") == f"{a['tokens_per_s'] / b['tokens_per_s'] - 1:+.1%}"
    at.segmented_control(key="w.phase").set_value("prefill").run()
    assert not at.exception
    next(x for x in at.button if x.label == "Unpin").click().run()
    assert not delta(at, "tokens/s")
    assert "baseline" not in at.query_params


def test_the_python_snippet_runs_and_the_command_is_the_scenarios(capsys):
    at = opened(LINK)
    command, snippet = (c.value for c in at.code)
    context = typer.main.get_command(predict_verb.app).make_context("predict", shlex.split(command)[3:])
    assert Scenario(**{k: context.params[k] for k in FIELDS}) == Scenario.from_query(LINK)
    exec(snippet, {})
    assert predict(Scenario.from_query(LINK)).sentence in capsys.readouterr().out
