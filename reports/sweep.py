"""The report of a sweep: what sparsity buys these models on these devices."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reports import provenance, published
from reports.advice import Advice, Choice, advise
from reports.again import Inside, inside
from reports.breakdown import inside_section, roofline_section
from reports.content import Block, Bullets, Cell, Column, Paragraph, Report, Section, Subheading, Table, section
from reports.resources import OPERATING, best_table, bottlenecks, cost, memory_fit, operating_point, quality
from reports.rows import Sweep, read
from reports.sensitivity import sensitivity
from reports.text import DASH, listed, of_memory, plural, share, span, speedup, times
from reports.validation import validation
from reports.winning import policy_table, where_sparsity_wins
from simulator.base.console import number
from simulator.base.errors import ShadowlineError
from simulator.device.catalogue import Device
from simulator.results.answer import Row
from simulator.results.loss import LOSS_UNKNOWN
from simulator.results.verdict import Verdict, figure
from simulator.scenario.catalogue import CATALOGUE

FIRST_PAGE_ROWS = 20
"""Rows of the recommendation that leave room for the rest of page one."""
RECOMMENDED = (
    Column("model"),
    Column("device"),
    Column("policy", term="policy"),
    Column("over dense (loads)", True, "speed-up"),
    *OPERATING,
)
MOST_INSIDE = 24
"""Recommended rows that are predicted again for their sources."""


def compose(path: Path, trace: Path | None = None, data: Path | None = None) -> Report:
    """The report of the sweep in `path`.

    Parameters
    ----------
    trace : Path, optional
        A measured trace to show beside it.
    data : Path, optional
        Folder of measured tables for the scatter.
    """
    measured = _trace_section(trace)
    sweep = read(path)
    a = advise(sweep)
    order = _fastest_first(a)
    found = [inside(sweep, c.row) for c in _one_per_model(order)[:MOST_INSIDE]]
    insides = [f for f in found if isinstance(f, Inside)]
    fit_names = [s for i in insides for s in i.prediction.sources]
    devices, missing = _devices(sweep)
    used_policies = a.policies
    sections = [
        _first_page(a),
        where_sparsity_wins(a),
        _speed(a),
        memory_fit(a),
        inside_section(_per_model(found, insides), bottlenecks(a)),
        roofline_section(insides),
        quality(a),
        cost(a),
        sensitivity(a, insides),
        measured,
        validation(devices, fit_names, data),
        published.touched_claims(used_policies),
        provenance.not_modelled(used_policies),
        provenance.sources(devices, fit_names),
        provenance.versions(_versions(sweep, missing)),
    ]
    models = sweep.names("model")
    report = Report(
        f"What sparsity buys {listed(models, 4)}",
        f"{sweep.n:,} predicted scenarios on {listed(sweep.names('device'), 6)}",
        tuple(s for s in sections if s is not None),
    )
    return provenance.with_glossary(report, "sources")


def _fastest_first(a: Advice) -> list[Choice]:
    return sorted(a.choices.values(), key=lambda c: -c.row.tokens_per_s_per_gpu.mid)


def _one_per_model(order: list[Choice]) -> list[Choice]:
    """Choices with the best of every model first, so that a cut leaves no model out."""
    first: dict[str, Choice] = {}
    for c in order:
        first.setdefault(c.tally.model, c)
    return [*first.values(), *(c for c in order if c is not first[c.tally.model])]


def _per_model(found: list, insides: list[Inside]) -> list:
    """Problems, and the best inside of up to five models."""
    chosen: dict[str, Inside] = {}
    for i in insides:
        chosen.setdefault(i.prediction.answer.model, i)
    return [*list(chosen.values())[:5], *(f for f in found if isinstance(f, str))]


def _devices(sweep: Sweep) -> tuple[list[Device], list[str]]:
    devices, missing = [], []
    planned = {Path(n).stem: n for n in sweep.plan.get("profiles", {})}
    for name in sweep.names("device"):
        try:
            devices.append(CATALOGUE.device(planned.get(name, name)))
        except ShadowlineError:
            missing.append(name)
    return devices, missing


def _first_page(a: Advice) -> Section:
    blocks: list[Block | None] = [
        Paragraph(_question(a)),
        Paragraph(_conclusion(a), "lead"),
        _recommendation(a) if a.choices else None,
        Subheading("Assumptions"),
        Bullets(_assumptions(a)),
        Subheading("The exact command"),
        provenance.command_block(a.sweep.command or "(the file does not name its command)"),
    ]
    return section("answer", "The question and the answer", blocks)


def _question(a: Advice) -> str:
    s = a.sweep
    what = listed(a.policies, 8) if a.policies else "the dense model"
    gpus = span(s.gpus)
    return (
        f"What {'do' if len(a.policies) > 1 else 'does'} {what} buy {listed(s.names('model'))} on"
        f" {listed(s.names('device'), 8)}, at batches of {span(s.rows.batch)}, prompts of {span(s.rows.prompt_tokens)}"
        f" and outputs of {span(s.rows.output_tokens)} tokens, with {gpus} GPU{'' if gpus == '1' else 's'} per replica?"
    )


def _conclusion(a: Advice) -> str:
    s = a.sweep
    if not a.choices:
        reason = a.reasons.most_common(1)
        why = f" The most frequent reason: {reason[0][0]} ({reason[0][1]:,} rows)." if reason else ""
        return f"Nothing can run: none of the {s.n:,} scenarios is feasible.{why}"
    return f"{_first_sentence(a)} {_second_sentence(a)}"


def _first_sentence(a: Advice) -> str:
    if not a.ranking:
        return "No policy beside dense runs here, so there is nothing to win."
    best, worst = a.ranking[0], a.ranking[-1]
    pairs = len(a.of_policy(best.policy))
    if best.verdict is not Verdict.WINS:
        text = (
            f"Nothing that is sure: {best.policy} comes nearest with a median throughput of"
            f" {figure(best.middle, DASH)} over dense"
        )
    else:
        text = (
            f"{best.policy} pays best: a median throughput of {figure(best.middle, DASH)} over dense at the same batch,"
            f" a win on {round(best.wins * pairs)} of {plural(pairs, 'model-device pair')}; {a.loss_of(best.policy)}"
        )
    losing = [r for r in a.ranking if r.verdict is Verdict.LOSES]
    if losing:
        text += f"; {listed([f'{r.policy} ({times(r.middle.mid)})' for r in losing[::-1]], 3)} lose" + (
            "s" if len(losing) == 1 else ""
        )
    elif worst is not best:
        text += f"; {worst.policy} brings least ({times(worst.middle.mid)})"
    return text + "."


def _second_sentence(a: Advice) -> str:
    fastest = a.fastest
    assert fastest is not None
    row = fastest.row
    mid, lo, hi = row.tokens_per_s_per_gpu
    text = (
        f"Of the recommended choices {row.model} with {_named(row)} on {row.device} is the fastest, {number(mid)}"
        f" output tokens/s per GPU ({number(lo)}{DASH}{number(hi)}) at batch {row.batch:,.0f}"
    )
    if a.cheapest is not None:
        c = a.cheapest
        text += (
            f"; the cheapest row that is dense or wins is {c.model} with {_named(c)} on {c.device} at"
            f" {number(c.usd_per_mtoken)} USD per million tokens"
        )
    return text + "."


def _named(row: Row) -> str:
    """A policy with its loss of quality."""
    return row.policy if row.policy == "dense" else f"{row.policy} ({row.loss})"


def _recommendation(a: Advice) -> Table:
    """The policy with the best median on every model and device; the best device of each model where there are many."""
    chosen = list(a.choices.values())
    title = "Recommended policy for every model and device"
    if len(chosen) > FIRST_PAGE_ROWS:
        by_model: dict[str, list[Choice]] = {}
        for c in _fastest_first(a):
            by_model.setdefault(c.tally.model, []).append(c)
        each = max(1, FIRST_PAGE_ROWS // len(by_model))
        chosen = [c for of in by_model.values() for c in of[:each]][:FIRST_PAGE_ROWS]
        few = plural(each, "fastest device") if each > 1 else "fastest device"
        title = f"Recommended policy on the {few} of every model"
    rows = tuple(_recommended(c) for c in chosen)
    note = (
        "Policy with the highest median throughput over dense across the loads, dense where none wins; in brackets the"
        " 90 % interval and P(win). Times: at the load with most tokens/s per GPU, with the 90 % interval."
    )
    if len(chosen) < len(a.choices):
        note += f" All {len(a.choices)} pairs stand in the section on speed."
    return Table("tab-recommended", title, RECOMMENDED, rows, note=note)


def _recommended(c: Choice) -> tuple[Cell, ...]:
    t = c.tally
    gain = Cell("1.00x", 1.0) if t.policy == "dense" else speedup(t.middle)
    return (Cell(t.model), Cell(t.device), Cell(t.policy), gain, *operating_point(c.row))


def _speed(a: Advice) -> Section:
    if not a.choices:
        return section("speed", "Speed", [Paragraph("No row runs, so there is no speed to show.")])
    rows = tuple(_recommended(c) for c in a.choices.values())
    blocks: list[Block] = []
    if a.ranking:
        blocks.append(policy_table(a))
    if len(rows) > FIRST_PAGE_ROWS:
        blocks.append(Table("tab-choices", "Recommended policy for every model and device", RECOMMENDED, rows))
    blocks.append(best_table(a))
    return section("speed", "Speed", blocks)


def _assumptions(a: Advice) -> tuple[str, ...]:
    s = a.sweep
    bases = {b: float(np.mean(s.rows.basis.is_(b)[s.ok])) for b in s.names("basis")} if s.ok.any() else {}
    grids = s.plan.get("grids", [])
    shares = sorted({of_memory(g.get("gpu_memory_utilization")) for g in grids})
    beyond = any(g.get("ignore_context_limit") for g in grids)
    texts = [
        f"Predictions, not measurements; intervals hold 90 % of what would be measured. Basis of the rows: "
        f"{listed([f'{share(v)} {b.lower()}' for b, v in sorted(bases.items(), key=lambda kv: -kv[1])])}."
        if bases
        else "Predictions, not measurements.",
        f"A static batch under {listed(s.names('engine'))}; formats {listed(s.names('dtype'))}, KV cache"
        f" {listed(s.names('kv_dtype'))}" + (f"; {listed(shares)}" if shares else "") + ".",
        "Speed-ups compare the same model, device, engine and batch. What both runs share errs alike and cancels; what"
        " a policy changes spreads as published speed-ups of its family do. P(win): probability of being faster than"
        " dense.",
        "Prices are list prices of the profiles; loss of quality is measured, published or carried over from other"
        f" models (EXTRAPOLATED), and {LOSS_UNKNOWN} is not none.",
    ]
    if s.bounds:
        texts.append(f"{plural(s.bounds, 'row')} of ideal kernels, bounds that nobody can run, left out.")
    if beyond:
        texts.append("Lengths beyond a model's context are predicted on, as extrapolated.")
    return tuple(texts)


def _trace_section(trace: Path | None) -> Section | None:
    if trace is None:
        return None
    from reports.trace import measured_section

    return measured_section(trace)


def _versions(sweep: Sweep, missing: list[str]) -> list[tuple[str, str]]:
    plan = sweep.plan
    out = [
        ("sweep file", sweep.path.name),
        ("sweep written by", f"shadowline {plan.get('version', '?')}, schema {plan.get('schema', '?')}"),
    ]
    for key, label in (("profiles", "profile"), ("models", "model"), ("fits", "fits of"), ("traces", "trace")):
        out += [(f"{label} {name}", str(digest)) for name, digest in plan.get(key, {}).items()]
    if "engines" in plan:
        out.append(("engines", str(plan["engines"])))
    out += [(f"profile {name}", "no longer known here, its sources are left out") for name in missing]
    return out
