"""The fleets that the guides print keep what they are printed to keep when they are served ten times as long."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from docsite.transcripts import examples
from simulator.api import Scenario, traffic
from simulator.serving.deployment import Deployment
from simulator.serving.fleet import simulate
from simulator.serving.metrics import meets, statistic, values_of
from simulator.serving.scheduler import Scheduler
from simulator.serving.slo import parse_slo

GUIDES = ("size_deployment.md", "scale_out.md")
LONGER, SETTLED = 10, 4000
"""Times the requests printed, or those that settle a p99 where none are printed [-]."""
SEED = 7
"""Of other requests than the fleet was found with [-]."""
KNOWN_TO = 0.16
"""A p99 with 40 requests beyond it is known to this share of what is beyond, here generously of the time itself [-]."""
ANSWER = re.compile(
    r"^cheapest for .* under (?P<slo>\S+): (?P<replicas>\d+) x (?P<device>[\w-]+) tp=(?P<tp>\d+) \(\d+ GPUs\), "
    r"(?P<policy>[a-z_\d]+(?:\([^)]*\))?).*, (?P<dtype>\w+): [\d.]+ USD/h.*"
    r"TTFT p99 (?P<ttft>[\d.,]+) ms, TPOT p99 (?P<tpot>[\d.,]+) ms$",
    re.MULTILINE,
)


def number(text: str) -> float:
    return float(text.replace(",", ""))


@pytest.mark.parametrize("guide", GUIDES)
def test_what_a_guide_prints_holds_ten_times_longer(repo: Path, guide):
    text = (repo / "docs" / "howto" / guide).read_text()
    planned = [e for e in examples(text) if "simulator.plan" in e.code and e.shown and ANSWER.search(e.shown)]
    assert len(planned) == 1
    shown = planned[0].shown or ""
    found = ANSWER.search(shown)
    assert found
    words = shlex.split(planned[0].code.replace("\\\n", " "))
    given = {key: words[words.index(key) + 1] for key in ("--model", "--rate", "--prompt-tokens", "--output-tokens")}
    tokens = re.search(r"--max-num-batched-tokens (\d+)", text[planned[0].span[0] :])
    served = re.search(r"([\d,]+) requests, [\d,]+ of them in the stationary part", shown)
    count = LONGER * int(number(served[1]) if served else SETTLED)
    assert tokens
    scenario = Scenario(
        model=given["--model"],
        device=found["device"],
        tp=int(found["tp"]),
        policy=found["policy"],
        dtype=found["dtype"],
    )
    scheduler = Scheduler(max_num_batched_tokens=int(tokens[1]))
    fleet = Deployment(scenario, scheduler, int(found["replicas"]), router="least-loaded")
    lengths = {"prompt_tokens": given["--prompt-tokens"], "output_tokens": given["--output-tokens"]}
    outcome = simulate(fleet, traffic(rate=float(given["--rate"]), count=count, seed=SEED, **lengths))
    assert meets(outcome, parse_slo(found["slo"]))
    for metric in ("ttft", "tpot"):
        p99_ms = 1e3 * statistic(*values_of(outcome, metric), "p99")
        assert p99_ms == pytest.approx(number(found[metric]), rel=KNOWN_TO), metric
