"""One scenario, explained: ``python -m simulator.predict``."""

from __future__ import annotations

from typing import Annotated

import typer

from simulator.base import console
from simulator.base.dtypes import AUTO
from simulator.base.errors import EXIT_NOTHING_FEASIBLE
from simulator.results import printed as questions

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def command(
    model: Annotated[str, typer.Option(help="model name, folder, config.json or hub id")],
    device: Annotated[str, typer.Option(help="device name or profile file")],
    policy: Annotated[
        str, typer.Option(help="'name(key=value)' joined by +; free: every one side by side, with its software")
    ] = "dense",
    engine: Annotated[str, typer.Option(help="serving engine: kernels, vllm, ...")] = "vllm",
    dtype: Annotated[str, typer.Option(help="weight format of the dense model")] = AUTO,
    kv_cache_dtype: Annotated[str, typer.Option(help="KV format of the dense model")] = AUTO,
    tp: Annotated[int, typer.Option(help="tensor-parallel GPUs")] = 1,
    pp: Annotated[int, typer.Option(help="pipeline stages")] = 1,
    ep: Annotated[int, typer.Option(help="expert groups within tp")] = 1,
    batch: Annotated[int, typer.Option(help="sequences in the static batch")] = 1,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", "--isl", help="prompt tokens")] = 512,
    output_tokens: Annotated[int, typer.Option("--output-tokens", "--osl", help="output tokens")] = 128,
    gpu_memory_utilization: Annotated[float, typer.Option(help="share of memory the engine may use")] = 0.9,
    block_size: Annotated[int, typer.Option(help="tokens per KV page")] = 16,
    ignore_context_limit: Annotated[
        bool, typer.Option("--ignore-context-limit", help="predict beyond the context, as EXTRAPOLATED")
    ] = False,
    trace: Annotated[str, typer.Option(help="folder of a measured trace the policy takes its curves from")] = "",
    trace_transfer: Annotated[
        bool, typer.Option("--trace-transfer", help="use a trace of another model, as EXTRAPOLATED")
    ] = False,
    break_even: Annotated[
        bool, typer.Option("--break-even", help="where the policy starts to win over dense: batch, prompt, sparsity")
    ] = False,
    max_loss: Annotated[
        float | None, typer.Option(help="points: fastest policy whose published quality loses at most this much")
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
    from simulator.policies import FREE
    from simulator.results.prediction import predict
    from simulator.scenario.scenario import Scenario

    free = policy.strip() == FREE
    scenario = Scenario.of(
        model=model,
        device=device,
        policy="dense" if free else policy,
        engine=engine,
        dtype=dtype,
        kv_cache_dtype=kv_cache_dtype,
        tp=tp,
        pp=pp,
        ep=ep,
        batch=batch,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        gpu_memory_utilization=gpu_memory_utilization,
        block_size=block_size,
        ignore_context_limit=ignore_context_limit,
        trace=trace,
        trace_transfer=trace_transfer,
    )
    asked = {
        "--policy free": free,
        "--max-loss": max_loss is not None,
        "--trials": trials is not None,
        "--break-even": break_even,
    }
    questions.check_flags(scenario, asked, solve_rate is not None)
    if free:
        from simulator.results.free import show as show_free

        show_free(scenario, as_json=json_)
        return
    if max_loss is not None:
        from simulator.results import published_quality

        published_quality.show(scenario, max_loss, as_json=json_)
        return
    if trials is not None:
        questions.show_trials(scenario, trials, solve_rate, as_json=json_)
        return
    if break_even:
        questions.show_break_even(scenario, as_json=json_)
        return
    prediction = predict(scenario)
    if trace and prediction.ops:
        questions.say_unused_trace(scenario)
    if json_:
        console.out_json(prediction.to_dict())
    else:
        questions.show(prediction)
    if prediction.status != "ok":
        raise typer.Exit(EXIT_NOTHING_FEASIBLE)


if __name__ == "__main__":
    console.main(app)
