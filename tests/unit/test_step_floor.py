"""The lower end of an interval is a promise too: no device reads or computes faster than it can."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.inference.evaluate import evaluate
from simulator.inference.group import group_of
from simulator.scenario.catalogue import CATALOGUE
from simulator.scenario.scenario import Scenario

ONE = np.array([1.0])


def points(device: str, policy: str = "dense", prompt: float = 512.0, model: str = "llama-3.1-8b"):
    group = group_of(Scenario.of(model=model, device=device, policy=policy))
    return evaluate(group, ONE, ONE * prompt, ONE * 128.0)


@pytest.mark.parametrize("name", ["rtx-4090", "rtx-3060", "h100-sxm", "t4"])
def test_a_decode_step_is_never_faster_than_reading_the_weights(name):
    device, model = CATALOGUE.device(name), CATALOGUE.model("llama-3.1-8b")
    p = points(name)
    embedding = 128_256 * model.hidden  # one row of it is read, the LM head of the same size wholly
    read = 2.0 * (8_030_261_248 - embedding) - device.l2_bytes
    assert float(p.tpot_s.lo[0]) >= 0.999 * read / device.hbm_bytes_per_s
    assert p.tpot_s.lo[0] < p.tpot_s.mid[0] < p.tpot_s.hi[0]


@pytest.mark.parametrize(("policy", "kept"), [("dense", 1.0), ("nm24", 0.5)])
def test_a_prompt_is_never_faster_than_its_products(policy, kept):
    device = CATALOGUE.device("rtx-4090")
    p = points("rtx-4090", policy, 4096.0)
    linear = 2.0 * 4096.0 * (8_030_261_248 - 2 * 128_256 * 4096)
    clock = device.clock_hz.max / device.clock_hz.boost
    peak = 165.2e12 * clock
    assert float(p.ttft_s.lo[0]) >= 0.999 * kept * linear / peak
    assert p.ttft_s.lo[0] < p.ttft_s.mid[0]


def test_the_floor_never_lifts_the_lower_end_above_the_answer():
    for policy in ("flexgen", "powerinfer(keep=0.1)", "gqsa", "quest(budget=64)"):
        model = "llama-2-7b" if policy != "powerinfer(keep=0.1)" else "opt-6.7b"
        p = points("rtx-4090", policy, 2048.0, model)
        assert p.tpot_s.lo[0] <= p.tpot_s.mid[0], policy
        assert p.ttft_s.lo[0] <= p.ttft_s.mid[0], policy
