"""One scenario, three spellings: whatever goes into the command line, a URL or JSON comes back equal."""

from __future__ import annotations

import contextlib

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import predict
from simulator.base.dtypes import FORMATS, KV_FORMATS
from simulator.base.errors import InputError
from simulator.scenario.fields import FIELDS, MAX_BATCH, MAX_TOKENS
from simulator.scenario.scenario import Scenario

names = st.text(st.characters(exclude_categories=("Cc", "Cs", "Cn")), min_size=1, max_size=40)
floats = st.floats(0.001, 1.0).map(lambda x: float(f"{x:.6g}"))


def policy_text(keep: float, budget: int, weights: str, order: bool) -> str:
    parts = [f"mustafar(keep={keep})", f"quest(budget={budget})", weights]
    return "+".join(parts[::-1] if order else parts)


def scenario(**values: object) -> Scenario:
    """A scenario; a policy that sets a format leaves that format's flag at auto."""
    policy = str(values["policy"])
    if "w4a16" in policy:
        values["dtype"] = "auto"
    if "mustafar" in policy:
        values["kv_cache_dtype"] = "auto"
    values["trace_transfer"] = bool(values["trace"]) and values["trace_transfer"]
    return Scenario.of(**values)


scenarios = st.builds(
    scenario,
    model=names,
    device=names,
    policy=st.one_of(
        st.just("dense"),
        st.builds(policy_text, floats, st.integers(16, 10**7), st.sampled_from(("w4a16", "nm24")), st.booleans()),
    ),
    engine=st.sampled_from(("vllm", "kernels")),
    dtype=st.sampled_from((*FORMATS, "auto")),
    kv_cache_dtype=st.sampled_from((*KV_FORMATS, "auto")),
    tp=st.integers(1, 1024),
    pp=st.integers(1, 1024),
    ep=st.integers(1, 1024),
    batch=st.integers(1, MAX_BATCH),
    prompt_tokens=st.integers(1, MAX_TOKENS),
    output_tokens=st.integers(1, MAX_TOKENS),
    gpu_memory_utilization=st.floats(0.01, 1.0),
    block_size=st.integers(1, 1024),
    ignore_context_limit=st.booleans(),
    trace=st.one_of(st.just(""), names),
    trace_transfer=st.booleans(),
)


def read_by_predict(arguments: list[str]) -> Scenario:
    """The scenario that ``predict`` reads from its flags."""
    context = typer.main.get_command(predict.app).make_context("predict", arguments)
    return Scenario(**{k: context.params[k] for k in FIELDS})


def test_short_spellings_are_read_as_the_long_ones() -> None:
    base = ["--model", "opt-125m", "--device", "l40s"]
    long = [*base, "--prompt-tokens", "7", "--output-tokens", "8"]
    assert read_by_predict([*base, "--isl", "7", "--osl", "8"]) == read_by_predict(long)


@settings(max_examples=50)
@given(scenarios)
def test_a_scenario_survives_every_spelling(s: Scenario) -> None:
    assert Scenario.from_json(s.to_json()) == s
    assert Scenario.from_query(s.to_query()) == s
    assert Scenario.from_query("?" + s.to_query()) == s
    assert read_by_predict(s.to_cli()) == s


@settings(max_examples=25)
@given(scenarios, scenarios)
def test_different_scenarios_have_different_names(a: Scenario, b: Scenario) -> None:
    assert (a == b) == (a.to_json() == b.to_json()) == (a.to_query() == b.to_query())


@given(st.text(max_size=200))
def test_any_text_is_a_scenario_or_one_line_of_error(text: str) -> None:
    for read in (Scenario.from_json, Scenario.from_query):
        with contextlib.suppress(InputError):
            read(text)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"batch": 0}, "--batch 0: must be greater than or equal to 1"),
        ({"batch": -3}, "--batch -3"),
        ({"batch": "nan"}, "--batch 'nan'"),
        ({"batch": float("nan")}, "--batch nan"),
        ({"batch": 1.5}, "--batch 1.5"),
        ({"batch": 10**9}, "less than or equal to 1000000"),
        ({"prompt_tokens": 0}, "--prompt-tokens 0"),
        ({"gpu_memory_utilization": 0}, "--gpu-memory-utilization"),
        ({"gpu_memory_utilization": 1.2}, "--gpu-memory-utilization 1.2"),
        ({"dtype": "fp17"}, "did you mean 'fp16'"),
        ({"kv_cache_dtype": "fp9"}, "did you mean"),
        ({"policy": "mustafa"}, "did you mean 'mustafar'"),
        ({"batsh": 4}, "did you mean 'batch'"),
        ({"model": ""}, "--model"),
    ],
)
def test_bad_fields_name_their_flag(values: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as caught:
        Scenario.of(**{"model": "m", "device": "d", **values})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_policies_are_stored_in_their_canonical_spelling() -> None:
    one = Scenario.of(model="m", device="d", policy="w4a16+mustafar(keep=0.30)")
    two = Scenario.of(model="m", device="d", policy="mustafar + w4a16")
    assert one == two
    assert one.policy == "w4a16+mustafar(keep=0.3)"


def test_the_command_says_only_what_differs_from_the_default() -> None:
    s = Scenario.of(model="a b", device="d", batch=4, tp=1)
    assert s.command == "python -m simulator.predict --model 'a b' --device d --batch 4"


@pytest.mark.parametrize("text", ["batch=1&batch=2&model=m&device=d", "model=m&device=d&batch="])
def test_a_query_given_twice_or_empty_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        Scenario.from_query(text)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"model": 1}'])
def test_json_that_is_no_scenario_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        Scenario.from_json(text)
