"""The scenario: one noun for command line, link, file and Python."""

from __future__ import annotations

from simulator.policies import parse
from simulator.scenario.scenario import Scenario


def test_the_parsed_policies_follow_the_spelling() -> None:
    """Also in a copy, whose fields are not checked again; equality and hash are those of the fields."""
    one = Scenario.of(model="llama-2-7b", device="h100-sxm", policy="quest")
    assert one.policies is parse(one.policy)
    dense = one.model_copy(update={"policy": "dense"})
    assert not dense.policies.members
    assert dense == Scenario.of(model="llama-2-7b", device="h100-sxm")
    assert {one: 1, dense: 2}[one.model_copy()] == 1
    assert "policies" not in one.to_json()
