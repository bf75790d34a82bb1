"""One scenario, explained: ``python -m simulator.predict``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator import console, questions
from simulator.dtypes import AUTO
from simulator.errors import EXIT_NOTHING_FEASIBLE

if TYPE_CHECKING:
    from simulator.evaluate import Points
    from simulator.group import Group
    from simulator.roofline.timing import OpTime
    from simulator.scenario import Scenario

TERMS = ("math_s", "memory_s", "link_s", "launch_s")


PARTS = (
    "attention", "attention projections", "FFN", "LM head", "communication", "other", "added by the policy",
)  # fmt: skip
_ON_THE_LINK = ("all_reduce", "all_gather", "all_to_all", "send", "dispatch", "combine")


@dataclass(frozen=True)
class OpRow:
    """One op of a step, all its repetitions together [s]; terms overlap and need not add up."""

    phase: str
    role: str
    count: float
    total_s: float
    math_s: float
    memory_s: float
    link_s: float
    launch_s: float
    flop: float
    moved_bytes: float
    overhead: bool
    basis: str
    source: str

    @property
    def part(self) -> str:
        """Part of the model it belongs to, one of `PARTS`."""
        head, _, rest = self.role.partition(".")
        if self.overhead:
            return "added by the policy"
        if any(word in self.role for word in _ON_THE_LINK):
            return "communication"
        if head == "attn" and rest.startswith("core"):
            return "attention"
        if head == "attn" and rest.split("_")[0] in ("qkv", "o", "q", "kv", "absorb"):
            return "attention projections"
        if head in ("mlp", "moe"):
            return "FFN"
        return "LM head" if head == "lm_head" else "other"


@dataclass(frozen=True)
class Prediction:
    """Everything Shadowline says about one scenario.

    Attributes
    ----------
    row : dict
        The sweep's columns for this scenario.
    ops : tuple of OpRow
        Breakdown of one prefill and of one mean decode step.
    shares : dict
        Share of the end-to-end time by what binds it [-].
    sentence : str
        The answer in words.
    trace : dict, optional
        Folder, manifest hash and model of the trace the curves came from.
    """

    scenario: Scenario
    row: dict[str, Any]
    ops: tuple[OpRow, ...] = ()
    shares: dict[str, float] = field(default_factory=dict)
    sentence: str = ""
    trace: dict[str, str] | None = None

    @property
    def status(self) -> str:
        """As in the sweep."""
        return self.row["status"]

    @property
    def sources(self) -> tuple[str, ...]:
        """Fits behind the numbers, each once."""
        return tuple(sorted({op.source for op in self.ops}))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "rows": [self.row],
            "ops": [vars(op) for op in self.ops],
            "shares": self.shares,
            "sentence": self.sentence,
            "sources": list(self.sources),
            "trace": self.trace,
            "scenario": self.scenario.to_dict(),
            "command": self.scenario.command,
        }

    def to_pandas(self) -> Any:
        """Breakdown by op as a data frame."""
        import pandas as pd

        return pd.DataFrame([vars(op) for op in self.ops])


def predict(scenario: Scenario) -> Prediction:
    """Predict one scenario with its breakdown.

    Raises
    ------
    ShadowlineError
        Unknown names. A scenario that cannot run is a `Prediction` whose status says so.
    """
    import numpy as np

    from simulator.group import group_of
    from simulator.result import rows
    from simulator.summary import row_at

    group = group_of(scenario)
    batch, prompt, output = (
        np.array([v], float)
        for v in (scenario.batch, scenario.prompt_tokens, scenario.output_tokens)
    )
    block, points = rows(group, batch, prompt, output)
    row = row_at(block, 0)
    if points is None or row["ttft_s"] is None:
        return Prediction(
            scenario, row, sentence=f"{row['status']}: {row['reason']}", trace=_named(group)
        )
    ops = (*_op_rows("prefill", points.prefill.ops), *_op_rows("decode", points.decode.ops))
    shares = _shares(points)
    return Prediction(scenario, row, ops, shares, _sentence(row, shares), _named(group))


def _named(group: Group) -> dict[str, str] | None:
    trace = group.trace
    if trace is None:
        return None
    return {"path": str(trace.path), "sha256": trace.digest, "model": trace.manifest.model}


def _op_rows(phase: str, times: Sequence[OpTime]) -> list[OpRow]:
    import numpy as np

    def mean(x: Any) -> float:
        return float(np.mean(x))

    # With a trace every layer is lowered apart; its ops are still one row of the breakdown.
    together: dict[tuple[str, bool, str, str], np.ndarray] = {}
    for t in times:
        traffic = t.op.traffic().scaled(t.op.count)
        timed = (t.op.count, *(getattr(t, k) for k in ("total_s", *TERMS)))
        amounts = np.array([mean(x) for x in (*timed, traffic.total_flop, traffic.total_bytes)])
        key = (t.op.role, t.op.overhead, str(t.basis), t.source)
        together[key] = together.get(key, 0.0) + amounts
    return [
        OpRow(phase, role, *map(float, amounts), overhead=overhead, basis=basis, source=source)
        for (role, overhead, basis, source), amounts in together.items()
    ]


def _shares(points: Points) -> dict[str, float]:
    import numpy as np

    from simulator.step import BOUNDS

    steps = float(np.ravel(points.output)[0]) - 1.0
    scale = float(np.ravel(points.ttft_s)[0]) / float(np.mean(points.prefill.total_s))
    total = [
        float(np.mean(p)) * scale + steps * float(np.mean(d))
        for p, d in zip(points.prefill.shares_s, points.decode.shares_s, strict=True)
    ]
    whole = sum(total) or 1.0
    return {name: t / whole for name, t in zip(BOUNDS, total, strict=True)}


def _sentence(row: dict[str, Any], shares: dict[str, float]) -> str:
    ms = console.milliseconds
    parts = [
        f"{row['model']} on {row['tp'] * row['pp']} x {row['device']}, {row['policy']}, batch {row['batch']},"
        f" {row['prompt_tokens']} + {row['output_tokens']} tokens:"
        f" TTFT {ms(row['ttft_s'])} ms ({ms(row['ttft_lo_s'])}-{ms(row['ttft_hi_s'])})"
    ]
    if row["tpot_s"] is not None:
        parts.append(f"TPOT {ms(row['tpot_s'])} ms ({ms(row['tpot_lo_s'])}-{ms(row['tpot_hi_s'])})")
    if row["tokens_per_s"] is not None:
        parts.append(f"{console.number(row['tokens_per_s'])} tokens/s")
    text = ", ".join(parts) + f"; bound by {row['bound']} ({max(shares.values()):.0%} of the time)"
    if row["policy"] != "dense" and row["throughput_speedup_same_batch"] is not None:
        speedup = row["throughput_speedup_same_batch"]
        word = "faster" if speedup >= 1.0 else "slower"
        ratio = f"{max(speedup, 1 / speedup):.2f}x"
        text += "; as fast as dense" if ratio == "1.00x" else f"; {ratio} {word} than dense"
        largest = row["dense_max_batch"] or 0
        if largest < row["batch"]:
            text += f" would be, which does not fit (largest batch {largest:,})"
    return text


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def command(
    model: Annotated[str, typer.Option(help="model name, folder, config.json or hub id")],
    device: Annotated[str, typer.Option(help="device name or profile file")],
    policy: Annotated[
        str,
        typer.Option(
            help="'name(key=value)' joined by +; free: every one side by side, with its software"
        ),
    ] = "dense",
    engine: Annotated[str, typer.Option(help="serving engine: kernels, vllm, ...")] = "vllm",
    dtype: Annotated[str, typer.Option(help="weight format of the dense model")] = AUTO,
    kv_cache_dtype: Annotated[str, typer.Option(help="KV format of the dense model")] = AUTO,
    tp: Annotated[int, typer.Option(help="tensor-parallel GPUs")] = 1,
    pp: Annotated[int, typer.Option(help="pipeline stages")] = 1,
    ep: Annotated[int, typer.Option(help="expert groups within tp")] = 1,
    batch: Annotated[int, typer.Option(help="sequences in the static batch")] = 1,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", "--isl", help="prompt tokens")
    ] = 512,
    output_tokens: Annotated[
        int, typer.Option("--output-tokens", "--osl", help="output tokens")
    ] = 128,
    gpu_memory_utilization: Annotated[
        float, typer.Option(help="share of memory the engine may use")
    ] = 0.9,
    block_size: Annotated[int, typer.Option(help="tokens per KV page")] = 16,
    ignore_context_limit: Annotated[
        bool,
        typer.Option("--ignore-context-limit", help="predict beyond the context, as EXTRAPOLATED"),
    ] = False,
    trace: Annotated[
        str, typer.Option(help="folder of a measured trace the policy takes its curves from")
    ] = "",
    trace_transfer: Annotated[
        bool, typer.Option("--trace-transfer", help="use a trace of another model, as EXTRAPOLATED")
    ] = False,
    break_even: Annotated[
        bool,
        typer.Option(
            "--break-even",
            help="where the policy starts to win over dense: batch, prompt, sparsity",
        ),
    ] = False,
    max_loss: Annotated[
        float | None,
        typer.Option(help="points: fastest policy whose published quality loses at most this much"),
    ] = None,
    trials: Annotated[
        str | None,
        typer.Option(
            help="numbers like 1,4,16: cost of best-of-N, time, USD and eFLOPs per problem"
        ),
    ] = None,
    solve_rate: Annotated[
        float | None,
        typer.Option(
            help="with --trials: share of single tries that succeed; cost per solved problem"
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Predict one scenario, with its breakdown by op and by term and the bound in words.

    Exit 0; 2 bad input; 3 when the scenario cannot run.
    """
    from simulator.policies import FREE
    from simulator.scenario import Scenario

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
        from simulator.free import show as show_free

        show_free(scenario, as_json=json_)
        return
    if max_loss is not None:
        from simulator import published_quality

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
