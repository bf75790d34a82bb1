"""Every policy beside one scenario: what an owner of one card asks first."""

from __future__ import annotations

import json
import sys

import pytest
from typer.testing import CliRunner

from simulator import predict
from simulator.base import console
from simulator.base.errors import NothingFeasibleError
from simulator.policies import POLICIES, free_names, parse
from simulator.policies.software import software
from simulator.results import prediction
from simulator.results.free import options, sentences
from simulator.results.verdict import Verdict
from simulator.scenario.scenario import Scenario
from simulator.serving.launch import VLLM_POLICIES
from simulator.sweep import app as sweep_app

HERE = {"model": "llama-3.1-8b", "device": "rtx-4090", "prompt_tokens": 1024, "output_tokens": 256}


@pytest.fixture(scope="module")
def found():
    return options(Scenario.of(**HERE))


def run(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["predict", "--model", HERE["model"], *words])
    with pytest.raises(SystemExit) as left:
        console.main(predict.app)
    assert left.value.code in (None, 0)


def test_software_is_of_registered_policies_and_knows_what_vllm_starts():
    where = "simulator/policies/software.toml: "
    unknown = sorted(set(software()) - set(POLICIES))
    assert not unknown, f"{where}{unknown}: no policy of that name; `python -m simulator.policies` lists them"
    for name, s in software().items():
        assert s.engine or s.code or s.needs, f"{where}[{name}] says nothing; give engine, code or needs"
        short = s.code.startswith("github.com/") or not s.code
        assert short, f"{where}[{name}] code = {s.code!r}; write github.com/OWNER/NAME"
    for name in VLLM_POLICIES:
        assert "vLLM" in software()[name].engine, name
    # vLLM dropped 2:4 in 0.19.1 (vllm-project/vllm#36799): code that a launch command cannot count on.
    assert software()["w4a16"].serves
    assert not software()["nm24"].serves
    assert not software()["teal"].serves


def test_a_policy_says_where_its_software_is(monkeypatch, capsys):
    from simulator.policies.__main__ import app

    for name, words in (
        ("nm24", "software: engine: vLLM; until: 0.19.1; "),
        ("teal", "code: github.com/FasterDecoding/TEAL"),
        ("alisa", "software: none known"),
    ):
        monkeypatch.setattr(sys, "argv", ["policies", name])
        with pytest.raises(SystemExit):
            console.main(app)
        assert words in capsys.readouterr().out.splitlines()[-1]


def test_free_is_every_mechanism_once_and_no_baseline():
    names = free_names()
    assert {"w4a16", "teal", "quest", "mustafar"} <= set(names)
    assert not {"dense", "eager_attention", "kivi", "flightllm", "vision_tokens"} & set(names)


def test_a_grid_takes_the_word_too():
    from simulator.scenario.grid import policies

    found = policies(["free", "quest(budget=64)"])
    assert found[0] == "dense"
    assert {parse(p).members[0].name for p in found[1:]} == set(free_names())
    assert found[-1] == "quest(budget=64)"


def test_the_fastest_that_fit_come_first_and_nothing_is_lost(found):
    rows, others = found
    fits = [o.answer.ok for o in rows]
    assert fits == sorted(fits, reverse=True)
    rates = [o.answer.tokens_per_s.mid for o in rows if o.answer.ok]
    assert rates == sorted(rates, reverse=True)
    assert len(rows) + len(others) == 1 + len(free_names())
    assert "ReLU" in others["dejavu"]
    for o in rows:
        if o.answer.ok:
            speed = o.answer.tokens_per_s
            assert speed.lo < speed.mid < speed.hi


def test_each_row_is_the_prediction(found):
    option = next(o for o in found[0] if o.policy == "w4a16")
    row = prediction.predict(Scenario.of(**HERE, policy="w4a16")).row
    assert option.answer.to_dict() == row
    assert option.loss.words == "loses 1.10 points (published: -1.10 points OpenLLM v1 (% of dense))"


def test_the_answer_is_what_an_engine_serves_today(found):
    served, fastest = sentences(found[0])
    assert served.startswith("worth installing: w4a16, ")
    assert "vLLM" in served
    assert fastest.startswith("fastest of all: ")
    best = max((o for o in found[0] if o.answer.ok), key=lambda o: o.answer.tokens_per_s.mid)
    assert best.policy in fastest


def test_where_nothing_fits_alone_it_says_what_to_try():
    rows, _ = options(Scenario.of(model="llama-3.1-8b", device="rtx-3070", prompt_tokens=65536))
    assert "two together" in sentences(rows)[0]


def test_a_small_gain_is_not_worth_installing(found):
    rows = [o for o in found[0] if o.policy in ("dense", "kv_quant(bits=4)")]
    assert rows[0].verdict in (Verdict.EVEN, Verdict.UNDECIDED)
    assert sentences(rows) == ["nothing that a serving engine runs today wins over dense here"]


def test_too_long_a_context_is_said_once():
    with pytest.raises(NothingFeasibleError, match="131072"):
        options(Scenario.of(model="llama-3.1-8b", device="rtx-4090", prompt_tokens=131_072))


def test_the_flag(monkeypatch, capsys):
    here = ["--device", "rtx-4090", "--prompt-tokens", "1024", "--output-tokens", "256", "--policy", "free"]
    run(monkeypatch, *here)
    text = capsys.readouterr().out
    assert text.startswith("worth installing: w4a16")
    assert "as fast as dense here: " in text
    assert "not here: dejavu" in text
    assert "again: python -m simulator.predict --model llama-3.1-8b --device rtx-4090" in text
    run(monkeypatch, *here, "--json")
    answer = json.loads(capsys.readouterr().out)
    assert {"policy", "tokens_per_s_lo", "engine", "code", "needs", "loss"} <= set(answer["rows"][0])
    assert answer["command"].endswith("--policy free")


def test_one_scenario_says_how_sure_and_why(monkeypatch, capsys):
    run(monkeypatch, "--device", "rtx-4090", "--policy", "snapkv")
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert "; as fast as dense, " in first
    assert second.startswith("how sure: extrapolated, 9")
    told = "vllm was never measured on ada, which widens the interval; vllm as of 0.19.0, the newest measured"
    assert second.endswith(told)
    run(monkeypatch, "--device", "h100-sxm")
    assert "how sure: calibrated, 100% of the kernels' time" in capsys.readouterr().out


def test_a_sweep_says_once_why_policies_do_not_apply(capsys) -> None:
    """Latents: one line for all policies on single heads; a verdict for all others."""
    policies = ("--policy", "quest", "--policy", "h2o", "--policy", "nm24", "--policy", "expert_pruning")
    done = CliRunner().invoke(sweep_app, ["--model", "deepseek-v3.2", "--device", "h200", "--tp", "8", *policies])
    assert done.exit_code == 0
    lines = [line for line in done.stdout.splitlines() if line.startswith("not applicable: ")]
    assert len(lines) == 2
    assert lines[0].startswith("not applicable: quest(budget=2048), h2o(keep=0.2): it works on K and V of single heads")
    assert lines[1] == "not applicable: nm24: no published 2:4 kernel for fused experts"
    assert "expert_pruning(keep=0.75)" not in "".join(lines)
