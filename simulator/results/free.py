"""Every registered policy beside one scenario: ``predict --policy free``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from simulator.base import console
from simulator.base.errors import ShadowlineError
from simulator.inference.group import group_of, runnable
from simulator.policies import FREE, POLICIES, PUBLISHED, free_names
from simulator.policies.software import Software, software
from simulator.results.answer import Row
from simulator.results.loss import LOSS_UNKNOWN, UNIT, UNKNOWN, Loss
from simulator.results.loss_lookup import loss_in
from simulator.results.rows import load_of, rows
from simulator.results.verdict import Verdict, figure, told, verdict
from simulator.scenario.scenario import Scenario


@dataclass(frozen=True)
class Option:
    """One policy at its defaults in a scenario.

    Attributes
    ----------
    loss : Loss
        Of quality, on the scenario's model.
    """

    answer: Row
    software: Software = field(default_factory=Software)
    loss: Loss = UNKNOWN

    @property
    def policy(self) -> str:
        """Its spelling."""
        return self.answer.policy

    @property
    def verdict(self) -> Verdict:
        """Against dense in the same scenario."""
        return verdict(self.answer.speedup)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        speed = self.answer.tokens_per_s
        return {
            **self.answer.to_dict(),
            "tokens_per_s_lo": speed.lo,
            "tokens_per_s_hi": speed.hi,
            **self.software.model_dump(),
            "loss": self.loss.words,
        }


def options(scenario: Scenario, kernel: str = PUBLISHED) -> tuple[list[Option], dict[str, str]]:
    """Dense and every free policy, those that fit first and then the fastest; the others with their reasons.

    `kernel` is the policies': `PUBLISHED`, `IDEAL` or a name, which leaves those without it among the others.

    Raises
    ------
    NothingFeasibleError
        The lengths exceed the model's context, whatever the policy.
    """
    runnable(scenario.dense)
    found: list[Option] = []
    others: dict[str, str] = {}
    for name in ("dense", *free_names()):
        asked = PUBLISHED if name == "dense" else kernel
        try:
            at = scenario.model_copy(update={"policy": POLICIES[name]().spelling, "kernel": asked})
            group = group_of(at)
            answer = rows(group, *load_of(at))[0].at(0)
        except ShadowlineError as error:
            others[name] = error.message
            continue
        if not answer.timed:
            others[name] = answer.reason
            continue
        found.append(Option(answer, software().get(name, Software()), loss_in(group)))
    return sorted(found, key=lambda o: (not o.answer.ok, o.answer.e2e_s.mid)), others


def show(scenario: Scenario, kernel: str = PUBLISHED, *, as_json: bool) -> None:
    """Print the fastest that an engine serves, the fastest of all, and every policy beside them."""
    found, others = options(scenario, kernel)
    command = scenario.dense.command + f" --policy {FREE}" + (f" --kernel {kernel}" if kernel != PUBLISHED else "")
    if as_json:
        console.out_json({"rows": [o.to_dict() for o in found], "others": others, "command": command})
        return
    for line in sentences(found):
        console.out(line)
    console.out()
    ms = console.milliseconds
    same = [o for o in found if o.answer.ok and o.policy != "dense" and o.verdict is Verdict.EVEN]
    console.table(
        f"{found[0].answer.model} on {found[0].answer.device}, batch {scenario.batch}, {scenario.prompt_tokens:,} +"
        f" {scenario.output_tokens:,} tokens: every policy at its defaults",
        [
            "policy",
            "software",
            "needs",
            "loss",
            "tokens/s (90 %)",
            "verdict",
            "vs dense (90 %, P(win))",
            "TTFT ms",
            "TPOT ms",
            "largest batch",
        ],
        [
            [
                o.policy,
                "-" if o.policy == "dense" else o.software.words,
                o.software.needs or "-",
                "-" if o.policy == "dense" else o.loss.short,
                console.spread(o.answer.tokens_per_s),
                "-" if o.policy == "dense" else str(o.verdict),
                "-" if o.policy == "dense" else figure(o.answer.speedup),
                ms(o.answer.ttft_s.mid),
                ms(o.answer.tpot_s.mid),
                f"{o.answer.max_batch:,.0f}",
            ]
            for o in found
            if o.answer.ok and o not in same
        ],
        left=4,
        note=f"loss: {UNIT}; the worst published measure; {LOSS_UNKNOWN} is not none. Speeds of a method and of dense"
        f" err together, so what they share spreads tokens/s and not the comparison.{_dense_note(found)}",
    )
    if same:
        console.out(f"{Verdict.EVEN} here: {', '.join(o.policy for o in same)}")
    short: dict[str, list[str]] = {}
    for o in found:
        if not o.answer.ok:
            short.setdefault(o.answer.reason.split(";")[0], []).append(o.policy)
    for name, reason in others.items():
        short.setdefault(reason, []).append(name)
    for reason, names in short.items():
        console.out(f"not here: {', '.join(names)}: {reason}")
    console.out(f"again: {command}")


def _dense_note(found: list[Option]) -> str:
    dense = next((o for o in found if o.policy == "dense"), None)
    return "" if dense is None or dense.answer.ok else " Dense does not fit; it is timed as if it did."


def sentences(found: list[Option]) -> list[str]:
    """The answer in words: what an engine serves today, and what would be faster."""
    fitting = [o for o in found if o.answer.ok]
    alone = not any(o.policy == "dense" for o in fitting)
    if not fitting:
        return [f"nothing fits: neither dense nor any one policy at its defaults; {TOGETHER}"]
    gains = [o for o in fitting if o.policy != "dense" and (alone or o.verdict is Verdict.WINS)]
    served = next((o for o in gains if o.software.serves), None)
    if served is not None:
        lines = [f"worth installing: {_named(served)}; {served.software.engine}, needs {served.software.needs}"]
    elif alone:
        lines = [f"nothing that a serving engine runs today fits by itself; {TOGETHER}"]
    else:
        lines = ["nothing that a serving engine runs today wins over dense here"]
    best = gains[0] if gains else None
    if best is not None and best is not served:
        code = f" ({best.software.code})" if best.software.code else ""
        lines.append(f"fastest of all: {_named(best)}; software: {best.software.words}{code}")
    return lines


TOGETHER = "two together may, e.g. --policy 'w4a16+kv_quant(bits=4)'"


def _named(o: Option) -> str:
    return (
        f"{o.policy}, {console.number(o.answer.tokens_per_s.mid)} tokens/s"
        f" ({console.number(o.answer.tokens_per_s.lo)}-{console.number(o.answer.tokens_per_s.hi)}),"
        f" {told(o.answer.speedup)}, {o.loss.words}"
    )
