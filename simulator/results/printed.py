"""What ``predict`` prints: one scenario with its breakdown, break-even and best-of-N."""

from __future__ import annotations

from dataclasses import asdict, replace
from math import isfinite
from typing import TYPE_CHECKING, cast

from simulator.base import console
from simulator.base.errors import InputError
from simulator.ops.union_law import in_words

if TYPE_CHECKING:
    from simulator.results.prediction import Prediction
    from simulator.scenario.scenario import Scenario


def show(prediction: Prediction) -> None:
    """Print the answer, memory, and the breakdown by op and term."""
    from simulator.base.units import format_bytes
    from simulator.results.prediction import TERMS

    answer = prediction.answer
    console.out(prediction.sentence)
    if prediction.ops:
        console.out(how_sure(prediction))
    for line in (*run_in(prediction), *united(prediction), *filter(None, [prediction.speculation])):
        console.out(line)
    console.out(f"formats: weights {answer.dtype}; KV cache {answer.kv_dtype}")
    if prediction.pool is not None:
        console.out(prediction.pool.sentence)
    for note in prediction.notes:
        console.out(f"note: {note}")
    if answer.reason:
        console.out(f"status: {answer.status} ({answer.reason})")
    console.out()
    if isfinite(answer.total_bytes):
        console.table(
            "Memory per GPU",
            ["", "bytes"],
            [
                [name, format_bytes(value)]
                for name, value in (
                    ("weights", answer.weights_bytes),
                    ("KV cache", answer.kv_bytes),
                    ("other", answer.other_bytes),
                    ("total", answer.total_bytes),
                    ("capacity", answer.capacity_bytes),
                )
            ],
            note=f"largest batch at this length: {answer.max_batch:.0f}" if isfinite(answer.max_batch) else "",
        )
    decoded = "One decode step, drafts with it" if answer.speculate else "One mean decode step"
    for phase, title in (("prefill", "One prefill of the batch"), ("decode", decoded)):
        ops = sorted((o for o in prediction.ops if o.phase == phase), key=lambda o: -o.total_s)
        if not ops:
            continue
        total = sum(o.total_s for o in ops)
        ms = console.milliseconds
        console.table(
            f"{title}: {ms(total)} ms of kernels",
            ["op", "calls", "ms", "share", "math ms", "memory ms", "link ms", "launch ms", "Gflop", "MB", "basis"],
            [
                [
                    o.role + (" *" if o.overhead else ""),
                    f"{o.count:g}",
                    ms(o.total_s),
                    f"{o.total_s / total:.0%}",
                    *(ms(getattr(o, k)) for k in TERMS),
                    console.number(o.flop / 1e9),
                    console.number(o.moved_bytes / 1e6),
                    o.basis.lower(),
                ]
                for o in ops
            ],
            note="terms overlap and need not add up, nor hold the fit's residual correction; * = work the policy adds",
        )
    if prediction.shares:
        shares = sorted(prediction.shares.items(), key=lambda kv: -kv[1])
        console.table("Bound by", ["", "share of E2E"], [[k, f"{v:.0%}"] for k, v in shares if v >= 0.005])
    console.out(f"again: {prediction.scenario.command}")


def how_sure(prediction: Prediction) -> str:
    """Why the interval is as wide as it is: what was measured on this device, by whom, and the engine on its like."""
    from simulator.device.fits import Basis
    from simulator.inference.group import group_of

    group, answer = group_of(prediction.scenario), prediction.answer
    phase = "decode" if any(o.phase == "decode" for o in prediction.ops) else "prefill"
    ops = [o for o in prediction.ops if o.phase == phase]
    total = sum(o.total_s for o in ops)
    known = sum(o.total_s for o in ops if o.basis == str(Basis.CALIBRATED)) / total
    text = f"how sure: {answer.basis.lower()}, {known:.0%} of the kernels' time in {phase} is calibrated on"
    text += f" {answer.device}"
    if own := sum(o.total_s for o in ops if o.by_user):
        text += f", {own / total:.0%} of the whole comes from your own fits"
    asked, used = ({o.source.split("/")[1] for o in ops if o.by_user or not only} for only in (False, True))
    measured = group.device.measured
    if unused := sorted(f for f in asked - used if any(fit.by_user for fit in measured.own(f))):
        text += f"; your own {', '.join(unused)} fits are of other kernels or formats than are run here"
    if group.engine.archs and group.device.arch not in group.engine.archs:
        text += f"; {group.engine.name} was never measured on {group.device.arch}, which widens the interval"
    return f"{text}; {prediction.assumes}" if prediction.assumes else text


def run_in(prediction: Prediction) -> list[str]:
    """The kernel assumed with its evidence, and the software that has it; nothing for dense."""
    answer, policies = prediction.answer, prediction.scenario.policies
    if not answer.kernel:
        return []
    told = "; ".join(f"{k.name}, {k.believed}: {k.release or k.title}" for k in policies.kernels)
    if policies.ideal:
        told = "ideal, the policy's bytes and flop at the dense kernels' efficiency: a bound, no software"
        return [f"kernel: {told}", f"software: {answer.software}"]
    if fits := sorted({o.source for o in prediction.ops if o.source.split("/")[1] in ("module", "sparse")}):
        told += f"; timed by {', '.join(fits)}"
    return [f"kernel: {told}", *bound(prediction), f"software: {answer.software}"]


def united(prediction: Prediction) -> list[str]:
    """Whose curves the unions over the rows of a step follow, and where they go on beyond what was measured."""
    if not prediction.unions:
        return []
    told = in_words(prediction.unions)
    beyond = [(rows, law.rows) for law, rows in prediction.unions.items() if rows > law.rows]
    if beyond:
        rows, measured = max(beyond)
        told += f"; {rows:,.0f} rows lie beyond the {measured:,.0f} measured, extrapolated"
    return [f"union over rows: {told}"]


def bound(prediction: Prediction) -> list[str]:
    """What an ideal kernel would give, where the one assumed does not win."""
    from simulator.results.verdict import WIN, Verdict, as_times, verdict

    most = prediction.ideal_speedup
    if most is None or not prediction.answer.ok or verdict(prediction.answer.speedup) is Verdict.WINS:
        return []
    return [f"bound: {'' if most >= WIN else 'even '}an ideal kernel would give {as_times(most)} dense"]


def check_flags(scenario: Scenario, asked: dict[str, bool], solve_rate: bool) -> None:
    """Flags that would answer another question than the one printed are refused."""
    flags = [flag for flag, given in asked.items() if given]
    if len(flags) > 1:
        raise InputError(f"{flags[0]} and {flags[1]} are two questions; ask them one by one")
    if solve_rate and not asked["--trials"]:
        raise InputError("is for best-of-N; add --trials 1,4,16", where="--solve-rate")
    if asked["--max-loss"] and scenario.policy != "dense":
        raise InputError("looks at every published policy; leave out --policy", where="--max-loss")
    if flags and scenario.speculate:
        raise InputError(
            f"is about decoding token by token; leave out --speculate {scenario.speculate}", where=flags[0]
        )
    if asked["--trials"] and scenario.batch != 1:
        raise InputError("the tries are the batch; leave out --batch", where="--trials")


def say_unused_trace(scenario: Scenario) -> None:
    """One line on stderr where no policy asks the trace for a curve: it then changes no time."""
    from simulator.inference.group import group_of
    from simulator.trace.curves import Noted, Trace

    group = group_of(scenario)
    if group.trace is None:
        return
    noted = Noted(group.trace)
    ops = replace(group.lowering, trace=cast(Trace, noted)).one_token
    if ops and not noted.asked:
        console.say(f"--trace: {group.policies.spelling} uses no curve of {scenario.trace}")


def show_break_even(scenario: Scenario, *, as_json: bool) -> None:
    """Print one sentence per axis."""
    from simulator.results.break_even import break_even

    found, command = break_even(scenario), f"{scenario.command} --break-even"
    if as_json:
        rows = [b.to_dict() for b in found]
        console.out_json({"rows": rows, "scenario": scenario.to_dict(), "command": command})
        return
    console.out(f"{scenario.policy} against dense, tokens/s: {command}")
    for b in found:
        console.out(b.sentence)


def show_trials(scenario: Scenario, trials: str, solve_rate: float | None, *, as_json: bool) -> None:
    """Print `best_of` for numbers written like ``1,4,16``."""
    from simulator.results.scaling import best_of

    try:
        numbers = tuple(int(t) for t in trials.split(","))
    except ValueError:
        raise InputError(f"{trials!r} is not a list of numbers like 1,4,16", where="--trials") from None
    rows = best_of(scenario, numbers, solve_rate)
    if as_json:
        console.out_json({"rows": [asdict(r) for r in rows], "scenario": scenario.to_dict()})
        return
    heads = ["trials", "flop", "KV read [B]", "eFLOP", "time [s]", "GPU-s", "USD"]
    table = [
        [f"{r.trials:,}", *(f"{v:.3g}" for v in (r.flop, r.kv_read_bytes, r.eflop, r.time_s, r.gpu_s, r.usd))]
        for r in rows
    ]
    if solve_rate is not None:
        heads += ["solved", "eFLOP/solved", "GPU-s/solved", "USD/solved"]
        for line, r in zip(table, rows, strict=True):
            costs = (r.eflop_per_solved, r.gpu_s_per_solved, r.usd_per_solved)
            line += [f"{r.solved:.0%}", *(f"{v:.3g}" for v in costs)]
    console.table(
        f"best of N: {scenario.model} on {scenario.device}, {scenario.policy}, one problem of "
        f"{scenario.prompt_tokens:,} + {scenario.output_tokens:,} tokens",
        heads,
        table,
        note="eFLOP: flop + KV bytes x the device's flop per byte (Kinetics); flop alone is the isoFLOPS view",
    )
