"""Requests simulated per second on one core; the contract says 20,000 on the Azure conversation trace."""

import pytest

from simulator.scenario.scenario import Scenario
from simulator.serving.deployment import Deployment
from simulator.serving.fleet import simulate
from simulator.serving.readers import read_requests


@pytest.mark.data
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_azure_conversation(benchmark, data_dir, scale):
    trace = read_requests(data_dir / "requests" / "AzureLLMInferenceTrace_conv.csv")
    requests = trace.scaled(scale)
    deployment = Deployment(Scenario(model="llama-3.1-8b", device="h100-sxm"))
    outcome = benchmark.pedantic(lambda: simulate(deployment, requests), rounds=3, warmup_rounds=1)
    rate = len(requests) / outcome.seconds
    benchmark.extra_info["requests_per_s"] = rate
    print(f"\n{rate:,.0f} requests/s of the event loop, {scale:g} x the trace's rate")
