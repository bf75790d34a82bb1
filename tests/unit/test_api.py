"""The public face in Python: documented, typed, and the very answers that the verbs print."""

from __future__ import annotations

import doctest
import importlib
import inspect
import json
from typing import get_type_hints

import pytest

from simulator import api
from simulator import plan as plan_verb
from simulator import predict as predict_verb
from simulator import serve as serve_verb
from simulator import sweep as sweep_verb
from simulator.base.errors import InputError

FUNCTIONS = [n for n in api.__all__ if inspect.isfunction(getattr(api, n))]
MODULES = sorted({getattr(api, n).__module__ for n in FUNCTIONS})


@pytest.mark.parametrize("name", ["simulator.api", *(m for m in MODULES if m != "simulator.api")])
def test_examples_say_what_they_print(name: str):
    module = importlib.import_module(name)
    found = [t for t in doctest.DocTestFinder(exclude_empty=True).find(module) if t.examples]
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in found:
        runner.run(test)
    assert runner.failures == 0
    wanted = {n for n in FUNCTIONS if getattr(api, n).__module__ == name}
    assert {t.name.rpartition(".")[2] for t in found} >= wanted


@pytest.mark.parametrize("name", api.__all__)
def test_every_name_is_documented_and_typed(name: str):
    member = getattr(api, name)
    assert inspect.getdoc(member)
    if name in FUNCTIONS:
        hints = get_type_hints(member, vars(importlib.import_module(member.__module__)) | _only_types())
        assert set(hints) == {*inspect.signature(member).parameters, "return"}


def _only_types() -> dict[str, object]:
    """Names that modules import for type checkers alone."""
    return {"Prediction": api.Prediction, "Scenario": api.Scenario, "Grid": api.Grid, "Device": api.Device}


def test_a_function_and_the_verb_of_its_name_are_two_things():
    assert callable(api.predict)
    assert inspect.ismodule(predict_verb)


def test_a_policy_that_does_not_apply_is_not_as_fast_as_dense():
    answer = api.predict(api.Scenario(model="llama-3.1-8b", device="h100-sxm", policy="dejavu(keep=0.5)")).answer
    assert (answer.status, api.verdict(answer.speedup)) == ("not_applicable", api.Verdict.UNKNOWN)


def test_bad_values_are_one_line_that_names_the_field():
    with pytest.raises(InputError, match=r"^--tp 0: must be greater than or equal to 1$"):
        api.Scenario(model="opt-125m", device="l40s", tp=0)
    with pytest.raises(InputError, match="unknown field 'devise'; did you mean 'device'"):
        api.Scenario(model="opt-125m", devise="l40s")  # type: ignore[call-arg]
    with pytest.raises(InputError, match="did you mean"):
        api.model("opt-125n")


SCENARIO = ("--model", "opt-125m", "--device", "l40s", "--policy", "w4a16")


def test_predict_and_sweep_are_what_the_verbs_print(call):
    scenario = api.Scenario(model="opt-125m", device="l40s", policy="w4a16", batch=4)
    printed = json.loads(call(predict_verb.app, *SCENARIO, "--batch", "4", "--json")[1])["rows"]
    assert [json.loads(json.dumps(api.predict(scenario).row))] == printed
    swept = api.sweep(api.Grid(model=("opt-125m",), device=("l40s",), policy=("w4a16",), batch=(1, 4)))
    rows = json.loads(call(sweep_verb.app, *SCENARIO, "--batch", "1,4", "--json")[1])["rows"]
    assert swept.to_pandas()["tpot_s"].tolist() == pytest.approx([r["tpot_s"] for r in rows])
    assert swept.summary.ok == 2


TRAFFIC = ("--rate", "20", "--prompt-tokens", "100", "--output-tokens", "20", "--count", "200")


def test_serve_and_plan_are_what_the_verbs_print(call):
    arriving = api.traffic(rate=20, prompt_tokens=100, output_tokens=20, count=200)
    scenario = api.Scenario(model="opt-125m", device="l40s", policy="w4a16")
    row = json.loads(call(serve_verb.app, *SCENARIO, *TRAFFIC, "--slo", "ttft:p99<1s", "--json")[1])["rows"][0]
    served = api.serve(scenario, arriving, slo="ttft:p99<1s").row
    timed = ("simulated_per_s",)
    assert {k: v for k, v in served.items() if k not in timed} == {k: v for k, v in row.items() if k not in timed}
    planned = json.loads(call(plan_verb.app, *SCENARIO, *TRAFFIC, "--slo", "tpot:p99<20ms", "--tp", "1", "--json")[1])
    grid = api.Grid(model=("opt-125m",), device=("l40s",), policy=("w4a16",))
    found = api.plan(grid, arriving, "tpot:p99<20ms")
    assert json.loads(json.dumps(found.rows)) == planned["rows"]
    assert {r["policy"] for r in found.rows} == {"dense", "w4a16"}
    with pytest.raises(InputError, match="a plan is for one model, not for 2"):
        api.plan(api.Grid(model=("opt-125m", "opt-350m"), device=("l40s",)), arriving, "tpot:p99<20ms")


WRONG = (None, 5, b"x", {}, [], 3.5, object())


@pytest.mark.parametrize("value", WRONG, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize(
    "call",
    [
        api.predict,
        api.sweep,
        api.oracle,
        api.Oracle,
        api.verdict,
        api.policy,
        api.model,
        api.device,
        api.Scheduler,
        lambda v: api.edited(v, {}),
        lambda v: api.serve(v, api.traffic(rate=1, prompt_tokens=8, output_tokens=8, count=2)),
        lambda v: api.serve(api.Scenario(model="opt-125m", device="l40s"), v),
        lambda v: api.plan(v, api.traffic(rate=1, prompt_tokens=8, output_tokens=8, count=2), "tpot:p99<1s"),
        lambda v: api.plan(api.Grid(model=("opt-125m",), device=("l40s",)), v, "tpot:p99<1s"),
        lambda v: api.traffic([v]),
        lambda v: api.predict(api.Scenario(model=v, device="l40s")),
        lambda v: api.Scenario(model="opt-125m", device="l40s", policy=[v]),
    ],
)
def test_a_wrong_type_is_one_line(call, value):
    with pytest.raises(InputError) as error:
        call(value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300
