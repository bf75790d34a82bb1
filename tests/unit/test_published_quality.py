"""Published quality: known inside its range only, and the fastest policy that costs little enough."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from simulator import predict
from simulator.base import console
from simulator.base.dtypes import FORMATS
from simulator.base.errors import UnsupportedError
from simulator.base.interval import Interval
from simulator.inference.lowering import Lowering
from simulator.policies import parse
from simulator.results import prediction
from simulator.results.published_quality import (
    Choice,
    Series,
    _fronts,
    best,
    choices,
    load_series,
    losses,
    published,
    siblings,
)
from simulator.scenario.catalogue import CATALOGUE
from simulator.scenario.scenario import Scenario

HERE = {"model": "opt-30b", "device": "a100-sxm-80g", "prompt_tokens": 1024, "batch": 8}


def member(text: str):
    return parse(text).members[0]


def test_every_series_resolves_and_has_a_source() -> None:
    for s in load_series():
        assert CATALOGUE.model(s.model).name == s.model
        where = f"simulator/results/published_quality.toml: {s.model}, {s.policy}: "
        named = "arXiv" in s.source or "model card" in s.source
        assert named, f"{where}source {s.source!r} names neither an arXiv number nor a model card"
        assert len(parse(s.policy).members) == 1, f"{where}one policy per series, without +"
        for policy in s.settings(1.0):
            assert s.quality(policy) is not None, f"{where}no quality at its own setting {policy}"


def test_every_series_is_of_a_policy_that_applies_to_its_model() -> None:
    for s in load_series():
        for policy in s.settings(1.0):
            low = Lowering(CATALOGUE.model(s.model).in_one_format(), parse(policy.spelling), FORMATS["fp16"], 2.0)
            assert low.why_not() is None, f"{s.model}: {policy.spelling}"


def test_no_series_is_told_twice_and_losses_are_plausible() -> None:
    """Equal settings and measures of one model once. A gain of more than 10 points, or twice the dense score lost, is a
    slip of the pen: the largest gain is MInference's on RULER (4.9) and XAttention's (6.6), both printed so."""
    seen: set[tuple[str, str, str, str]] = set()
    for s in load_series():
        key = (s.model, s.policy, s.parameter, s.measure)
        assert key not in seen
        seen.add(key)
        for value in s.values:
            loss = s.loss(value[-1])
            assert (-10.0 < loss <= s.dense) if s.unit == "points" else (-0.05 < loss < 3.0), (key, value)


def test_what_is_known_does_not_shrink() -> None:
    """Pairs of a bundled model and a policy with a published loss of that very model; 27 before the tables of Wanda,
    DSnoT, SparseGPT, AWQ, TEAL, KIVI and the long-context papers were read in."""
    assert len({(s.model, s.member.name) for s in load_series()}) >= 121


@pytest.mark.parametrize(
    ("model", "policy", "words"),
    [
        ("llama-13b", "wanda(keep=0.45)", "46.4% perplexity of WikiText2 perplexity"),
        ("mistral-7b-v0.1", "r_sparse", "1.50 points of mean of 8 zero-shot tasks"),
        ("llama-3.1-8b", "trianglemix", "0.30 points of RULER at 128K"),
        ("llama-3.1-8b", "kivi", "1.56 points of LongBench average"),
        ("yi-34b", "w4a16", "1.5% perplexity of WikiText2 perplexity"),
        ("llama-3.1-8b", "xattention(keep=0.5)", ""),
    ],
)
def test_losses_by_hand(model: str, policy: str, words: str) -> None:
    """Half way from 8.75 at 0.4 to 6.15 at 0.5 is 7.45, over 5.09; 69.89 - 68.39; 77.6 - 77.3; 50.06 - 48.50;
    4.67 / 4.60; nothing between densities that belong to different lengths."""
    assert losses(model, policy) == words


def test_linear_between_settings_and_unknown_outside() -> None:
    series = Series(
        model="llama-2-7b",
        policy="slicegpt",
        parameter="keep",
        measure="m",
        unit="points",
        dense=70.0,
        values=((0.75, 60.0), (0.85, 66.0)),
        source="s",
    )
    assert series.quality(member("slicegpt(keep=0.8)")) == pytest.approx(63.0)
    assert series.quality(member("slicegpt(keep=0.75)")) == 60.0
    assert series.quality(member("slicegpt(keep=0.74)")) is None
    assert series.quality(member("slicegpt(keep=0.9)")) is None
    assert series.quality(member("nm24")) is None
    assert series.loss(63.0) == 7.0
    # A loss of 5.5 points lies three quarters of the way from 10 to 4.
    found = [p.keep for p in series.settings(5.5)]
    assert found == pytest.approx([0.75, 0.825, 0.85])
    assert [p.keep for p in series.settings(1.0)] == [0.75, 0.85]


def test_other_parameters_must_be_those_published() -> None:
    model = "llama-3-8b"
    assert published(model, "mustafar(keep=0.5,keep_v=1)")[0][1] == 42.84
    assert published(model, "mustafar(keep=0.5,keep_v=0.9)") == []
    assert published(model, "mustafar(keep=0.5)") == []
    assert published("llama-2-7b", "mustafar(keep=0.5,keep_v=1)") == []
    assert published(model, "mustafar(keep=0.5,keep_v=1)+w4a16") == []


def test_a_model_of_the_same_shape_gives_a_hint_that_says_so() -> None:
    assert {s.model for s in siblings("llama-3.1-8b")} == {"llama-3-8b", "llama-3-8b-1m", "llama-3-8b-262k"}
    assert losses("llama-3.1-8b", "teal(keep=0.5)") == "4.65 points of mean of 6 zero-shot tasks on llama-3-8b"
    # Its own figures go first, and of several the worst.
    assert losses("llama-3.1-8b", "nm24") == "1.49 points of Mosaic Eval Gauntlet average"
    assert losses("llama-3.1-8b", "teal(keep=0.4)") == ""
    assert losses("qwen2.5-14b", "nm24") == ""


def test_perplexity_counts_as_a_ratio() -> None:
    (series, quality), *_ = published("llama-2-7b", "nm24")
    assert series.loss(quality) == pytest.approx(8.69 / 5.47 - 1.0)


@pytest.mark.parametrize("change", [{"values": ((0.5,),)}, {"values": ((0.9, 1.0), (0.8, 2.0))}, {"dense": 0.0}])
def test_a_malformed_series_is_refused(change: dict[str, object]) -> None:
    good = {
        "model": "m",
        "policy": "slicegpt",
        "parameter": "keep",
        "measure": "m",
        "unit": "points",
        "dense": 1.0,
        "values": ((0.8, 1.0),),
        "source": "s",
    }
    with pytest.raises(ValueError, match=r"values|rise|dense"):
        Series(**{**good, **change})  # type: ignore[arg-type]


def test_front_and_best_by_hand() -> None:
    def choice(name: str, loss: float, speed: float, unit: str = "points") -> Choice:
        answer = replace(some, policy=name, speedup=Interval.exact(speed), e2e_s=Interval.exact(1.0 / speed))
        return Choice(answer, unit, loss, (), ())

    some = prediction.predict(Scenario.of(**HERE)).answer

    found = _fronts(
        [
            choice("a", 0.5, 1.2),
            choice("b", 2.0, 1.5),
            choice("c", 2.5, 1.4),
            choice("slow", 0.0, 0.9),
            choice("p", 0.1, 1.1, "perplexity"),
        ]
    )
    assert {c.policy for c in found if c.front} == {"a", "b", "p"}
    assert getattr(best(found, 1.0), "policy", None) == "a"
    assert getattr(best(found, 2.0), "policy", None) == "b"
    assert best(found, 0.1) is None


def test_speed_beside_it_is_the_prediction() -> None:
    found, skipped = choices(Scenario.of(**HERE), 1.0)
    assert not skipped
    assert [c.answer.tokens_per_s.mid for c in found] == sorted(
        (c.answer.tokens_per_s.mid for c in found), reverse=True
    )
    h2o = next(c for c in found if c.policy.startswith("h2o"))
    row = prediction.predict(Scenario.of(**HERE, policy=h2o.policy)).row
    assert h2o.answer.tokens_per_s.mid == pytest.approx(row["tokens_per_s"])
    assert h2o.answer.speedup.mid == pytest.approx(row["throughput_speedup_same_batch"])
    assert h2o.loss == pytest.approx(0.2)


def test_a_policy_that_cannot_run_is_listed_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A V100 has no 2:4 tensor cores: nm24 is left out, and said so on the terminal and in JSON."""
    here = {"model": "llama-2-7b", "device": "v100-sxm", "dtype": "fp16"}
    found, skipped = choices(Scenario.of(**here), 1.0)
    assert found
    assert "2:4" in skipped["nm24"]
    assert "nm24" not in {c.policy for c in found}
    words = [w for k, v in here.items() for w in (f"--{k}", v)]
    for more in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["predict", *words, "--max-loss", "1", *more])
        with pytest.raises(SystemExit):
            console.main(predict.app)
    text, _, last = capsys.readouterr().out.rstrip().rpartition("\n")
    assert f"not considered: nm24: {skipped['nm24']}" in text
    assert json.loads(last)["skipped"] == skipped


def test_a_model_nobody_published_is_said_so() -> None:
    with pytest.raises(UnsupportedError, match="no published quality of phi-2"):
        choices(Scenario.of(model="phi-2", device="h100-sxm"), 1.0)


def test_the_flag(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "opt-30b", "--device", "a100-sxm-80g", "--batch", "8", "--prompt-tokens", "1024"]
    for more in (["--max-loss", "1"], ["--max-loss", "1", "--json"]):
        monkeypatch.setattr(sys, "argv", ["predict", *words, *more])
        with pytest.raises(SystemExit) as left:
            console.main(predict.app)
        assert not left.value.code
    text, _, last = capsys.readouterr().out.rstrip().rpartition("\n")
    answer = json.loads(last)
    assert answer["best"] is None or f"at most 1 points: {answer['best']}" in text
    assert {r["unit"] for r in answer["rows"]} == {"points", "perplexity"}
