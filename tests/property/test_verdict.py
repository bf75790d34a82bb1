"""One scenario, one verdict: predict, sweep, break-even, the free list, the report and the page say the same word."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from simulator.base.errors import ShadowlineError
from simulator.base.glossary import TERMS
from simulator.base.interval import Interval
from simulator.inference.group import group_of
from simulator.policies import free_names
from simulator.results.break_even import over_load
from simulator.results.free import Option
from simulator.results.prediction import Prediction, predict
from simulator.results.summary import Summary
from simulator.results.swept import blocks, write
from simulator.results.verdict import RULE, WIN, Verdict, along, as_times, over_loads, runs, told, verdict
from simulator.scenario.grid import Grid
from simulator.scenario.scenario import Scenario

MODELS = ("llama-2-7b", "llama-3.1-8b", "opt-6.7b", "qwen2.5-14b")
DEVICES = ("a100-sxm-80g", "h100-sxm", "rtx-4090", "l40s")


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    return Scenario.of(
        model=draw(st.sampled_from(MODELS)),
        device=draw(st.sampled_from(DEVICES)),
        policy=draw(st.sampled_from(free_names())),
        batch=draw(st.integers(1, 64)),
        prompt_tokens=draw(st.integers(16, 1900)),
        output_tokens=draw(st.integers(1, 140)),
    )


def grid(s: Scenario) -> Grid:
    names = {k: (getattr(s, k),) for k in ("model", "device", "batch", "prompt_tokens", "output_tokens")}
    return Grid(policy=("dense", s.policy), **names)


def that_runs(s: Scenario) -> Prediction:
    """The prediction of a scenario that fits, with dense beside it; others are not what these tests are about."""
    assume(group_of(s).problem is None)
    try:
        p = predict(s)
    except ShadowlineError:
        assume(False)
    assume(p.answer.status == "ok")
    return p


@settings(max_examples=12, deadline=None)
@given(scenarios())
def test_predict_sweep_break_even_and_free_say_one_word(s: Scenario) -> None:
    p = that_runs(s)
    word = verdict(p.answer.speedup)
    assert f"; {word}, {as_times(p.answer.speedup.mid)}" in p.sentence
    summary = Summary()
    for rows in blocks([grid(s)]):
        summary.add(rows)
    (tally,) = summary.tallies()
    assert (tally.words, tally.verdict) == (word, word)
    assert tally.told().endswith(f", {word}")
    for found in over_load(s):
        here = found.at(getattr(s, found.axis))
        assert verdict(here) is word
        assert here.mid == pytest.approx(p.answer.speedup.mid, rel=1e-9)
        assert f": {word}, " in found.sentence
        won = any(a <= getattr(s, found.axis) <= b for a, b in found.wins)
        assert won == (word is Verdict.WINS)
    assert Option(p.answer).verdict is word


@settings(max_examples=4, deadline=None)
@given(scenarios())
def test_the_report_says_it_too(tmp_path_factory: pytest.TempPathFactory, s: Scenario) -> None:
    from reports.advice import advise
    from reports.rows import read
    from reports.text import TONES, tone

    p = that_runs(s)
    word = verdict(p.answer.speedup)
    path: Path = tmp_path_factory.mktemp("sweep") / "s.parquet"
    write([grid(s)], path, command="", quiet=True)
    a = advise(read(path))
    tally = a.tallies[p.answer.model, p.answer.device, p.answer.policy]
    assert (tally.words, tally.verdict) == (word, word)
    assert tone(tally.middle) == TONES.get(word, "")
    chosen = a.choices[p.answer.model, p.answer.device].tally.policy
    assert (chosen == p.answer.policy) == (
        word is Verdict.WINS or len(a.tallies) == 1 or not a.sweep.ok[a.sweep.dense].any()
    )


@settings(max_examples=6, deadline=None)
@given(scenarios())
def test_the_page_says_it_too(s: Scenario) -> None:
    pytest.importorskip("streamlit", reason="streamlit not installed")
    from app import words

    p = that_runs(s)
    word = verdict(p.answer.speedup)
    dense = predict(s.model_copy(update={"policy": "dense"}))
    if dense.answer.status == "ok":
        assert f"**{p.answer.policy}** {word.verb} on " in words.answer(p, dense)
    found = over_load(s)[0]
    at = int(np.flatnonzero(found.values == s.batch)[0])
    only = Interval(*(end[[at]] for end in found.speedup))
    assert along("batch", found.values[[at]], only) == word


def test_by_hand() -> None:
    """1.02 wins, 1/1.02 loses, between them is as fast as dense; the texts name the same figures."""
    for value, word in ((1.02, "wins"), (1.0199, "as fast as dense"), (0.9805, "as fast as dense"), (0.98, "loses")):
        assert verdict(Interval.exact(value)) == word
    assert told(Interval(1.346, 1.2, 1.5)) == "wins, 1.35x dense (1.20-1.50, P(win) 0.99)"
    assert told(Interval(1.01, 1.0, 1.015)) == "as fast as dense, 1.01x (1.00-1.01, P(win) 0.99)"
    assert told(Interval(1.01, 0.9, 1.1)) == "undecided, 1.01x dense (0.90-1.10, P(win) 0.56)"
    assert RULE == (
        "wins: 1.02x or more and P(win) 0.9 or more; loses: 0.98x or less and P(win) 0.1 or less;"
        " P(win): probability of being faster than dense"
    )


def log_normal(mid: float, sigma: float) -> Interval[float]:
    return Interval(mid, mid * np.exp(-1.645 * sigma), mid * np.exp(1.645 * sigma))


def test_words_of_an_interval_by_hand() -> None:
    """P(win) = Phi(ln mid / sigma): ln 1.2 / 0.1 = 1.82 is 0.966; at 0.15 it is 1.22, 0.888."""
    assert float(log_normal(1.2, 0.10).above(1.0)) == pytest.approx(0.9659, abs=1e-4)
    assert float(log_normal(1.2, 0.15).above(1.0)) == pytest.approx(0.8879, abs=1e-4)
    words = [verdict(log_normal(mid, s)) for mid in (1.2, 1 / 1.2) for s in (0.10, 0.15)]
    assert words == ["wins", "undecided", "loses", "undecided"]
    assert verdict(log_normal(1.015, 0.001)) == "as fast as dense"
    assert float(Interval.exact(1.0).above(1.0)) == 0.5
    assert (float(Interval.exact(1.1).above(1.0)), float(Interval.exact(0.9).above(1.0))) == (1.0, 0.0)


def test_the_glossary_names_the_threshold_and_runs_are_found() -> None:
    assert f"{WIN:g}x" in TERMS["win"]
    assert f"{1 / WIN:.2f}x" in TERMS["win"]
    assert runs(np.array([True, False, True, True])) == [(0, 0), (2, 3)]


def test_many_ranges_are_a_share() -> None:
    waves = Interval.exact(np.tile([0.9, 1.1], 5))
    assert along("batch", np.arange(10.0), waves) == "wins in 50% of the points"
    assert over_loads(waves, {"batch": np.arange(10.0), "prompt": np.ones(10)}) == "wins in 50% of the points"


def test_medians_over_the_other_axis_decide() -> None:
    """Batch 1 wins at one prompt of three, batch 2 at two of three."""
    speedup = Interval.exact(np.array([1.1, 0.9, 0.9, 1.1, 1.1, 0.9]))
    batch, prompt = np.repeat([1.0, 2.0], 3), np.tile([16.0, 32.0, 64.0], 2)
    assert over_loads(speedup, {"batch": batch, "prompt": prompt}) == "wins from batch 2"
