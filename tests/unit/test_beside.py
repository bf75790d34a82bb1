"""A served policy beside dense: the same comparison as a prediction's, at the mean load."""

from __future__ import annotations

import pytest

from simulator.results.prediction import predict
from simulator.scenario.scenario import Scenario
from simulator.serving.beside import KEYS, beside_dense, told_beside
from simulator.serving.deployment import Deployment
from simulator.serving.scheduler import Scheduler
from simulator.serving.traffic import traffic

REQUESTS = traffic(rate=4.0, prompt_tokens=400, output_tokens=32, count=50)


def deployment(policy: str) -> Deployment:
    return Deployment(Scenario(model="llama-3.1-8b", device="l40s", policy=policy), Scheduler())


def test_a_batch_of_the_mean_load_is_a_prediction() -> None:
    found = beside_dense(deployment("w4a16"), REQUESTS, 7.6)
    at = Scenario(model="llama-3.1-8b", device="l40s", policy="w4a16", batch=8, prompt_tokens=400, output_tokens=32)
    a = predict(at).answer
    assert tuple(found) == KEYS
    assert (found["speedup"], found["p_win"]) == (pytest.approx(a.speedup.mid), pytest.approx(a.p_win))
    assert found["verdict"] == a.verdict
    assert told_beside({"policy": "w4a16", **found}).startswith("w4a16 against dense, a batch of the mean load: ")


def test_dense_has_nothing_beside_it() -> None:
    found = beside_dense(deployment("dense"), REQUESTS, 3.0)
    assert found == {**dict.fromkeys(KEYS), "verdict": ""}
    assert told_beside({"policy": "dense", **found}) == ""
