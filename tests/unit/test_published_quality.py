"""Losses of quality: published, carried over with a band, converted to points; and the fastest that costs little."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from math import log

import numpy as np
import pytest

from simulator import accuracy, predict
from simulator.base import console
from simulator.base.dtypes import FORMATS
from simulator.base.interval import Interval
from simulator.inference.lowering import Lowering
from simulator.policies import POLICIES, parse
from simulator.results import prediction
from simulator.results.choices import Choice, _fronts, best, choices
from simulator.results.conversion import MOST_POINTS, conversion, largest_gain, learned, student
from simulator.results.loss import LOSS_UNKNOWN, Loss, LossBasis, short, told
from simulator.results.loss_curve import carried_over, loss_of
from simulator.results.loss_table import converted, counts, coverage
from simulator.results.published_quality import COST_ONLY, Pair, Series, load_series, masks
from simulator.scenario.catalogue import CATALOGUE
from simulator.scenario.scenario import Scenario

HERE = {"model": "opt-30b", "device": "a100-sxm-80g", "prompt_tokens": 1024, "batch": 8}


def member(text: str):
    return parse(text).members[0]


def loss(model: str, policy: str) -> Loss:
    return loss_of(CATALOGUE.model(model), parse(policy))


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
    """Pairs of a bundled model and a policy that applies: those published for that very model (27 before the tables of
    Wanda, DSnoT, SparseGPT, AWQ, TEAL, KIVI and the long-context papers were read in), and at the policy's defaults."""
    found = counts()
    assert found.own >= 121
    at = found.at_default
    assert at["published"] >= 99
    assert at["EXTRAPOLATED"] >= 2800
    assert at["computes what dense computes"] >= 680
    assert sum(at.values()) == found.pairs <= found.models * found.policies


SCORES = {
    ("mistral-7b-v0.1", "r_sparse"): 1.50,
    ("llama-3.1-8b", "trianglemix"): 0.30,
    ("llama-3.1-8b", "kivi"): 1.56,
    ("llama-3.1-8b", "nm24"): 1.49,
    ("llama-2-7b", "wina(keep=0.6)"): 0.61,
    ("llama-3-8b", "snapkv(budget=362)"): 4.26,
    ("llama-2-70b", "slicegpt(keep=0.775)"): 2.56,
    ("llama-2-7b", "slicegpt(keep=0.9)"): 2.66,
    ("llama-3-8b", "teal(keep=0.75)"): 1.1625,
    ("opt-30b", "h2o(keep=0.2)"): 0.20,
}
RATIOS = {
    ("llama-13b", "wanda(keep=0.45)"): 7.45 / 5.09,
    ("yi-34b", "w4a16"): 4.67 / 4.60,
    ("llama-2-7b", "nm24"): 8.69 / 5.47,
    ("opt-2.7b", "slicegpt(keep=0.95)"): (12.75 + 12.46) / 2.0 / 12.46,
}


@pytest.mark.parametrize(("model", "policy"), SCORES)
def test_ten_scores_by_hand(model: str, policy: str) -> None:
    """69.89 - 68.39; 77.6 - 77.3; 50.06 - 48.50; the worse of two tests, 55.34 - 53.85; 0.4 of the way from 68.79 to
    69.59, of 69.72; half way from 8.41 at 64 tokens to 0.11 at 2048 in the logarithm (64 * 2^2.5 = 362); half way from
    2.98 to 2.14; half way from 63.68 at keep 0.8 to 69.0, dense, at 1; 0.375 of the way from 66.21 at 0.6 to 68.07;
    the worse of 43.2 - 43.0 and 78.51 - 78.45."""
    found = loss(model, policy)
    assert found.basis is LossBasis.PUBLISHED
    assert found.points.mid == pytest.approx(SCORES[model, policy], abs=0.006)
    assert found.points.lo == found.points.mid == found.points.hi
    assert "arXiv" in found.citation or "model card" in found.citation


@pytest.mark.parametrize(("model", "policy"), RATIOS)
def test_perplexities_are_converted_with_an_interval(model: str, policy: str) -> None:
    """Half way from 8.75 at 0.4 to 6.15 at 0.5 is 7.45, over 5.09; points are C (1 - exp(-r ln(ratio) / C))."""
    found, ratio = loss(model, policy), RATIOS[model, policy]
    assert found.basis is LossBasis.PUBLISHED
    assert f"{ratio - 1.0:+.1%}" in found.source
    size = max(CATALOGUE.model(model).n_params, conversion().smallest)
    rate = conversion().rate * (size / 1e10) ** conversion().slope
    assert found.points.mid == pytest.approx(37.6 * (1.0 - np.exp(-rate * log(ratio) / 37.6)))
    assert found.points.lo < found.points.mid < found.points.hi <= MOST_POINTS


def test_the_conversion_is_learned_by_hand() -> None:
    """Four models, of 10, 20, 40 and 80 billion parameters, that lose 40, 20, 10 and 5 points a nat: the rate halves
    with every doubling, so the slope is -1 and nothing is left over."""
    names = ["llama-2-13b", "gpt-neox-20b", "falcon-40b", "llama-2-70b"]
    at = [CATALOGUE.model(n).n_params / 1e10 for n in names]
    pairs = tuple(
        Pair(model=n, perplexity=(10.0, 10.0 * float(np.exp(x))), score=(70.0, 70.0 - 40.0 / size * x), source="s")
        for n, size in zip(names, at, strict=True)
        for x in (0.05, 0.2)
    )
    found = learned(pairs)
    assert found.rate == pytest.approx(40.0)
    assert found.slope == pytest.approx(-1.0)
    assert found.log_error == pytest.approx(0.0, abs=1e-9)
    assert found.models == 4
    with pytest.raises(ValueError, match="four are the least"):
        learned(pairs[:6])


def test_the_conversion_holds_for_a_model_it_did_not_see() -> None:
    hits, rows = converted()
    assert rows >= 24
    assert hits / rows >= 0.85


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(2.0, 2.920), (3.0, 2.353), (5.0, 2.015), (10.0, 1.812), (1e6, 1.645)]
)
def test_student_quantiles(freedom: float, quantile: float) -> None:
    """Table of Student's t, one-sided 95 %."""
    assert student(freedom) == pytest.approx(quantile, rel=0.015)


def test_bands_of_carried_over_losses_cover() -> None:
    """Each published model left out: rows, and methods alike, lie in the band of the others."""
    bands = coverage()
    rows = sum(n for _, n, _ in bands.values())
    assert rows >= 150
    assert sum(k for k, _, _ in bands.values()) / rows >= 0.85
    assert np.mean([k / n for k, n, _ in bands.values()]) >= 0.85


def test_a_band_by_hand() -> None:
    """Two models of the asked one's size: the middle is the mean of asinh(1) and asinh(3), 1.350; its sinh is 1.799.
    No spread is borrowed, 7 - 1 = 6 degrees of freedom hold 0.4380 twice: s = 0.2529, times sqrt(1 + 1/2) and 1.943."""
    model = CATALOGUE.model("llama-2-7b")
    others = {n: Loss(Interval.exact(v), LossBasis.PUBLISHED) for n, v in (("llama-2-7b", 1.0), ("llama-7b", 3.0))}
    found = carried_over(model, member("cats"), others, variance=0.0)
    y = [np.arcsinh(v) for v in found]
    assert y[0] == pytest.approx((np.arcsinh(1.0) + np.arcsinh(3.0)) / 2.0)
    half = 1.943 * np.sqrt(2.0 * ((np.arcsinh(3.0) - np.arcsinh(1.0)) / 2.0) ** 2 / 6.0) * np.sqrt(1.5)
    assert y[0] - y[1] == pytest.approx(half, rel=0.01)
    assert y[2] - y[0] == pytest.approx(half, rel=0.01)


def test_another_model_is_extrapolated_and_says_from_what() -> None:
    found = loss("qwen2.5-14b", "teal(keep=0.5)")
    assert found.basis is LossBasis.EXTRAPOLATED
    assert found.source.startswith("llama-2-13b, ")
    assert "llama and mistral, 6.74B to 70.6B" in found.source
    assert "EXTRAPOLATED from llama-2-13b" in found.words
    lost = [loss(m, "teal(keep=0.5)").points.mid for m in ("llama-2-7b", "llama-2-13b", "llama-3-8b", "llama-2-70b")]
    assert min(lost) < found.points.mid < max(lost)
    assert found.points.lo < found.points.mid < found.points.hi


@pytest.mark.parametrize(
    ("model", "policy"),
    [
        ("qwen2.5-14b", "teal(keep=0.2)"),  # beyond what was published for any model
        ("llama-2-7b", "mustafar"),  # keys and values together
        ("llama-2-7b", "teal(keep=0.5,qkv_keep=0.4)"),
        ("llama-2-7b", "nm24+kivi"),  # together with something nobody measured
        ("llama-3-8b", "mustafar(keep=0.5,keep_v=0.9)"),
        ("qwen2.5-14b", "shadowllm"),  # the published figures are not against dense
        ("llama-3.1-8b", "xattention(keep=0.15)"),  # between densities that belong to different lengths
    ],
)
def test_beyond_what_was_published_it_is_unknown(model: str, policy: str) -> None:
    found = loss(model, policy)
    assert not found.known
    assert np.isnan(found.points.mid)
    assert found.words == found.short == LOSS_UNKNOWN
    assert not found.at_most(1e9)


def test_parameters_of_cost_change_no_quality() -> None:
    assert loss("llama-2-7b", "cats(keep=0.5,fallback=dense)").points.mid == pytest.approx(1.56)
    known = {f for name in POLICIES for f in POLICIES[name].model_fields}
    assert known >= COST_ONLY


def test_what_computes_the_same_loses_nothing() -> None:
    """Placement and allocation only: the arithmetic is dense's. With a method beside them the method's loss answers."""
    for policy in ("cxl", "flexgen", "lamina", "vattention", "contiguous_kv", "eager_attention"):
        found = loss("qwen2.5-14b", policy)
        assert (found.basis, found.points.mid) == (LossBasis.NONE, 0.0), policy
    assert loss("llama-3.1-8b", "kivi+vattention").points.mid == pytest.approx(1.56)
    assert loss("llama-2-7b", "shadowkv").basis is not LossBasis.NONE


def test_stored_masks_lose_what_their_method_loses() -> None:
    assert set(masks()) <= set(POLICIES)
    found, wanda = loss("llama-2-7b", "spinfer(keep=0.5)"), loss("llama-2-7b", "wanda(keep=0.5)")
    assert found.points.mid == wanda.points.mid
    assert found.basis is LossBasis.EXTRAPOLATED
    assert found.source == "wanda on llama-2-7b"


def test_words() -> None:
    assert short(Interval.exact(1.564), LossBasis.PUBLISHED) == "1.56 points"
    assert short(Interval(7.24, 2.02, 26.1), LossBasis.PUBLISHED) == "7.2 points (2.0 to 26)"
    assert short(Interval.exact(-0.001), LossBasis.PUBLISHED) == "0.00 points"
    assert short(Interval.exact(float("nan")), "") == LOSS_UNKNOWN
    assert told(Interval.exact(1.5), LossBasis.PUBLISHED, "m") == "loses 1.50 points (published: m)"
    assert told(Interval.exact(-0.1), LossBasis.PUBLISHED, "m") == "gains 0.10 points (published: m)"
    assert told(Interval.exact(0.0), LossBasis.NONE, "") == "no loss: it computes what dense computes"


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
    # Dense, 70 at keep 1, is a row of the same table: a third of the way from 66.
    assert series.quality(member("slicegpt(keep=0.9)")) == pytest.approx(66.0 + 4.0 / 3.0)
    assert series.quality(member("nm24")) is None
    assert series.loss(63.0) == 7.0
    # A loss of 5.5 points lies three quarters of the way from 10 to 4.
    found = [p.keep for p in series.settings(5.5)]
    assert found == pytest.approx([0.75, 0.85, 0.825])
    assert [p.keep for p in series.settings(1.0)] == pytest.approx([0.75, 0.85, 0.9625])
    assert [p.keep for p in series.settings(11.0)] == [0.75, 0.85]


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


def choice(some, name: str, points: float, speed: float, hi: float | None = None) -> Choice:
    answer = replace(some, policy=name, speedup=Interval.exact(speed), e2e_s=Interval.exact(1.0 / speed))
    return Choice(answer, Loss(Interval(points, points, points if hi is None else hi), LossBasis.PUBLISHED))


def test_front_and_best_by_hand() -> None:
    some = prediction.predict(Scenario.of(**HERE)).answer
    found = _fronts(
        [
            choice(some, "a", 0.5, 1.2),
            choice(some, "b", 2.0, 1.5),
            choice(some, "c", 2.5, 1.4),
            choice(some, "slow", 0.0, 0.9),
            choice(some, "wide", 0.1, 1.1, hi=5.0),
        ]
    )
    assert {c.policy for c in found if c.front} == {"a", "b", "wide"}
    assert getattr(best(found, 1.0), "policy", None) == "a"
    assert getattr(best(found, 2.0), "policy", None) == "b"
    # The upper end counts: "wide" may lose 5 points.
    assert best(found, 0.1) is None


def test_speed_beside_it_is_the_prediction() -> None:
    found, skipped = choices(Scenario.of(**HERE), 1.0)
    assert all("h2o" not in policy for policy in skipped)
    assert [c.answer.tokens_per_s.mid for c in found] == sorted(
        (c.answer.tokens_per_s.mid for c in found), reverse=True
    )
    h2o = next(c for c in found if c.policy == "h2o(keep=0.2)")
    row = prediction.predict(Scenario.of(**HERE, policy=h2o.policy)).row
    assert h2o.answer.tokens_per_s.mid == pytest.approx(row["tokens_per_s"])
    assert h2o.answer.speedup.mid == pytest.approx(row["throughput_speedup_same_batch"])
    assert h2o.loss.points.mid == pytest.approx(0.2)


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
    assert {r["basis"] for r in answer["rows"]} == {"published", "EXTRAPOLATED", "small-model evidence"}
    assert LOSS_UNKNOWN in text


def test_accuracy_prints_the_counts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["accuracy", "--quality"])
    with pytest.raises(SystemExit) as left:
        console.main(accuracy.app)
    assert not left.value.code
    out = capsys.readouterr().out
    assert f"loss published for {counts().own:,} of them" in out
    assert "points a nat" in out


def test_a_band_stays_within_what_was_ever_lost_or_gained() -> None:
    found = loss("llama-3.1-70b", "snapkv")
    assert found.points.lo >= -largest_gain()
    assert found.points.hi <= MOST_POINTS
    assert largest_gain() == pytest.approx(90.75 - 84.17)
