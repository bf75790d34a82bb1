"""What ``predict`` answers beside one scenario: break-even and best-of-N, printed."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from simulator import console
from simulator.errors import InputError

if TYPE_CHECKING:
    from simulator.scenario import Scenario


def check_flags(scenario: Scenario, asked: dict[str, bool], solve_rate: bool) -> None:
    """Flags that would answer another question than the one printed are refused."""
    flags = [flag for flag, given in asked.items() if given]
    if len(flags) > 1:
        raise InputError(f"{flags[0]} and {flags[1]} are two questions; ask them one by one")
    if solve_rate and not asked["--trials"]:
        raise InputError("is for best-of-N; add --trials 1,4,16", where="--solve-rate")
    if asked["--max-loss"] and scenario.policy != "dense":
        raise InputError("looks at every published policy; leave out --policy", where="--max-loss")
    if asked["--trials"] and scenario.batch != 1:
        raise InputError("the tries are the batch; leave out --batch", where="--trials")


def show_break_even(scenario: Scenario, *, as_json: bool) -> None:
    """Print one sentence per axis."""
    from simulator.break_even import break_even

    found, command = break_even(scenario), f"{scenario.command} --break-even"
    if as_json:
        rows = [b.to_dict() for b in found]
        console.out_json({"rows": rows, "scenario": scenario.to_dict(), "command": command})
        return
    console.out(f"{scenario.policy} against dense, tokens/s: {command}")
    for b in found:
        console.out(b.sentence)


def show_trials(
    scenario: Scenario, trials: str, solve_rate: float | None, *, as_json: bool
) -> None:
    """Print `best_of` for numbers written like ``1,4,16``."""
    from simulator.scaling import best_of

    try:
        numbers = tuple(int(t) for t in trials.split(","))
    except ValueError:
        raise InputError(
            f"{trials!r} is not a list of numbers like 1,4,16", where="--trials"
        ) from None
    rows = best_of(scenario, numbers, solve_rate)
    if as_json:
        console.out_json({"rows": [asdict(r) for r in rows], "scenario": scenario.to_dict()})
        return
    heads = ["trials", "flop", "KV read [B]", "eFLOP", "time [s]", "GPU-s", "USD"]
    table = [
        [f"{r.trials:,}", *(f"{v:.3g}" for v in (r.flop, r.kv_read_bytes, r.eflop, r.time_s, r.gpu_s, r.usd))]
        for r in rows
    ]  # fmt: skip
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
