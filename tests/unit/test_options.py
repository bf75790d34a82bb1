"""Options of the verbs are the fields of a scenario: one list says name, type, default, meaning and bounds."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import pytest
import typer

from simulator import plan, predict, serve, sweep
from simulator.base.errors import InputError
from simulator.scenario.fields import FIELDS, LOAD, REQUIRED, SCHEDULED, STATIC
from simulator.scenario.options import option, scenario_options, with_options
from simulator.scenario.scenario import Scenario

LEFT_OUT = {
    predict: (),
    sweep: (),
    serve: (*LOAD, *SCHEDULED, *STATIC, "images", "quality"),
    plan: (*LOAD, *SCHEDULED, *STATIC, "block_size", "images", "trace", "trace_transfer"),
}
"""Fields a verb does not ask for: traffic has its own lengths, its scheduler its bounds; a plan needs no
trace; neither drafts tokens."""


@pytest.mark.parametrize("verb", LEFT_OUT, ids=lambda v: v.__name__)
def test_each_field_is_an_option_with_its_meaning_and_default(verb):
    options = {p.name: p for p in typer.main.get_command(verb.app).params}
    for name, known in FIELDS.items():
        if name in LEFT_OUT[verb]:
            assert name in (*SCHEDULED, *STATIC) or name not in options or options[name].default is None
            continue
        found = options[name]
        assert known.flag in found.opts
        assert found.help.startswith(known.about.help)
        if verb is predict:
            assert found.required == (known.default is REQUIRED)
            assert known.default in (REQUIRED, found.default)
            assert not known.about.short or known.about.short in found.opts
    assert not any(o.startswith("--no-") for p in options.values() for o in (*p.opts, *p.secondary_opts))


def test_a_scenario_has_these_fields_and_bounds():
    assert list(Scenario.model_fields) == list(FIELDS)
    base: dict[str, Any] = {"model": "m", "device": "d", "policy": "quest"}
    for name, known in FIELDS.items():
        beyond = {"ge": -1, "le": 1, "gt": 0}
        for kind, bound in known.about.bounds.items():
            if kind == "max_length":
                bad: Any = "x" * (int(bound) + 1)
            elif kind == "min_length":
                bad = ""
            else:
                bad = known.kind(bound + beyond[kind])
            with pytest.raises(InputError, match=known.flag):
                Scenario.of(**base | {name: bad})


def test_a_group_is_handed_over_as_one(call):
    seen = []
    app = typer.Typer(add_completion=False)

    @app.command()
    @with_options(
        given=scenario_options(repeated=("policy",), more={"tp": "told"}), rest=[option("n", int, 3, "how many")]
    )
    def command(
        given: dict, rest: dict, *, loud: Annotated[bool, typer.Option("--loud", help="or not")] = False
    ) -> None:
        """What it does."""
        seen.append((given, rest, loud))

    arguments = ("--model", "m", "--device", "d", "--policy", "a", "--policy", "b", "--loud", "--trace-transfer")
    assert call(app, *arguments)[0] == 0
    ((given, rest, loud),) = seen
    assert (given["policy"], given["tp"], given["trace_transfer"], rest, loud) == (["a", "b"], 1, True, {"n": 3}, True)
    assert set(given) == set(FIELDS)
    code, out, _ = call(app, "--help")
    assert code == 0
    assert "What it does." in out
    assert "tensor-parallel GPUs; told" in out
    assert [p.name for p in inspect.signature(command).parameters.values()][-2:] == ["n", "loud"]
    assert call(app, "--device", "d")[2] == "error: Missing option '--model'; see --help\n"
