"""A request longer than the context is refused and counted, as a server does; the others are served."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.api import Grid, InputError, Scenario, plan, serve, traffic
from simulator.scenario.catalogue import CATALOGUE
from simulator.serving.accepted import accepted
from simulator.serving.requests import Requests

OPT = Scenario(model="opt-125m", device="l40s")  # a context of 2,048 tokens


def test_what_is_too_long_is_rejected_and_the_others_are_served():
    sent = Requests.of([0, 1, 2, 3], [100, 5000, 200, 2000], [20, 20, 20, 49])
    row = serve(OPT, sent).row
    assert (row["requests"], row["rejected"]) == (2, 2)
    outcome = serve(OPT, sent).outcome
    np.testing.assert_array_equal(outcome.requests.arrival_s, [0.0, 2.0])
    whole = serve(Scenario(model="opt-125m", device="l40s", ignore_context_limit=True), sent).row
    assert (whole["requests"], whole["rejected"]) == (4, 0)
    shorter = serve(Scenario(model="opt-125m", device="l40s", max_model_len=150), sent).row
    assert (shorter["requests"], shorter["rejected"]) == (1, 3)


def test_a_stream_gives_as_many_as_are_asked_for():
    model = CATALOGUE.model("opt-125m")
    sent = traffic(rate=2, prompt_tokens="lognormal(mean=900,cv=1)", output_tokens=100, count=300)
    short, longer = (accepted(sent.longer(n), model, OPT) for n in (300, 900))
    assert (len(short), len(longer)) == (300, 900)
    assert 0 < short.rejected < longer.rejected
    assert (short.prompt + short.output).max() <= 2048
    # A longer run begins as a shorter one, and the rates of both are that of what is accepted.
    np.testing.assert_array_equal(longer.prompt[:300], short.prompt)
    np.testing.assert_array_equal(longer.arrival_s[:300], short.arrival_s)
    share = 900 / (900 + longer.rejected)
    assert longer.rate == pytest.approx(2 * share, rel=0.1)
    assert accepted(longer, model, OPT) is longer
    np.testing.assert_array_equal(short.scaled(2.0).arrival_s * 2, short.arrival_s)
    np.testing.assert_array_equal(short.scaled(2.0).longer(900).prompt, longer.prompt)


def test_users_and_plans_go_on_without_them():
    asking = traffic(users=8, prompt_tokens="lognormal(mean=900,cv=1)", output_tokens=20, count=200)
    row = serve(OPT, asking).row
    assert (row["requests"], row["users"]) == (200, 8)
    assert row["rejected"] > 0
    sent = traffic(rate=2, prompt_tokens="lognormal(mean=900,cv=1)", output_tokens=20, count=200)
    found = plan(Grid(model=("opt-125m",), device=("l40s",)), sent, "ttft:p90<2s")
    assert all(r["rejected"] > 0 for r in found.rows)


def test_where_none_fits_nothing_is_served():
    sent = Requests.of([0, 1], [3000, 5000], [20, 20], name="f.csv")
    with pytest.raises(InputError, match=r"f\.csv: none of 2 requests fits the 2,048 tokens of opt-125m's context"):
        serve(OPT, sent)
