"""One scenario, explained: ``python -m simulator.predict``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from simulator.base import console
from simulator.base.errors import EXIT_NOTHING_FEASIBLE
from simulator.results import printed as questions
from simulator.scenario.options import scenario_options, with_options

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
@with_options(given=scenario_options(more={"policy": "free: every one side by side, with its software"}))
def command(
    given: dict[str, Any],
    *,
    break_even: Annotated[
        bool, typer.Option("--break-even", help="where the policy starts to win over dense: batch, prompt, sparsity")
    ] = False,
    max_loss: Annotated[
        float | None,
        typer.Option(help="points: fastest policy that surely loses at most this much, as published or measured"),
    ] = None,
    trials: Annotated[
        str | None, typer.Option(help="numbers like 1,4,16: cost of best-of-N, time, USD and eFLOPs per problem")
    ] = None,
    solve_rate: Annotated[
        float | None, typer.Option(help="with --trials: share of single tries that succeed; cost per solved problem")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Predict one scenario, with its breakdown by op and by term and the bound in words.

    Exit 0; 2 bad input; 3 when the scenario cannot run.
    """
    from simulator.policies import FREE, PUBLISHED
    from simulator.results.prediction import predict
    from simulator.scenario.scenario import Scenario

    free = given["policy"].strip() == FREE
    kernel = given["kernel"]
    scenario = Scenario.of(**given | ({"policy": "dense", "kernel": PUBLISHED} if free else {}))
    asked = {
        "--policy free": free,
        "--max-loss": max_loss is not None,
        "--trials": trials is not None,
        "--break-even": break_even,
    }
    questions.check_flags(scenario, asked, solve_rate is not None)
    if free:
        from simulator.results.free import show as show_free

        show_free(scenario, kernel, as_json=json_)
        return
    if max_loss is not None:
        from simulator.results import choices

        choices.show(scenario, max_loss, as_json=json_)
        return
    if trials is not None:
        questions.show_trials(scenario, trials, solve_rate, as_json=json_)
        return
    if break_even:
        questions.show_break_even(scenario, as_json=json_)
        return
    prediction = predict(scenario)
    if scenario.trace and prediction.ops:
        questions.say_unused_trace(scenario)
    if json_:
        console.out_json(prediction.to_dict())
    else:
        questions.show(prediction)
    if not prediction.answer.ok:
        raise typer.Exit(EXIT_NOTHING_FEASIBLE)


if __name__ == "__main__":
    console.main(app)
