"""Where sparsity wins and loses: heat maps over devices and loads, and break-even in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from reports import charts
from reports.advice import Advice
from reports.charts.heat import MOST_CELLS
from reports.content import Block, Cell, Column, Figure, Paragraph, Section, Subheading, Table, section
from reports.rows import Sweep, medians
from reports.text import DASH, listed, percent, plural, share, speedup, times, tone, upper
from simulator.base.interval import Interval
from simulator.results.verdict import RULE, Tally

MOST_ROWS = 32
"""Rows of the overview heat map; a longer one would not fit a page."""
MOST_MAPS = 6
"""Policies whose maps over batch and prompt are drawn, per model."""
MOST_MODELS = 6
DEVICES_ACROSS = 5


def where_sparsity_wins(a: Advice) -> Section:
    """Overview, one figure per model over its loads, and the table of break-evens."""
    if not a.policies:
        text = "The sweep holds the dense model only, so there is no sparsity to judge; add --policy to the sweep."
        return section("wins", "Where sparsity wins and loses", [Paragraph(text)])
    if not a.ranking:
        text = (
            f"No row of {listed(a.policies)} fits or runs, so there is no speed-up to show; the section on memory says"
            " what would work."
        )
        return section("wins", "Where sparsity wins and loses", [Paragraph(text)])
    intro = Paragraph(
        f"Throughput over the dense model in the same scenario and at the same batch. {upper(RULE)}. Only rows that fit"
        " the device are counted."
    )
    return section(
        "wins",
        "Where sparsity wins and loses",
        [intro, _overview(a), *_by_load(a), Subheading("Break-even"), *_tables(a, a.tallies), *_tables(a, a.largest)],
    )


def _overview(a: Advice) -> Figure:
    devices = a.sweep.names("device")
    pairs = [(m, p) for m in a.sweep.names("model") for p in a.policies]
    found = [[_middle(a, m, d, p) for d in devices] for m, p in pairs]
    values = Interval(*np.moveaxis(np.array([[[*f] for f in row] for row in found], float), -1, 0))
    keep = np.flatnonzero(np.isfinite(values.mid).any(1))
    pairs, values = [pairs[i] for i in keep], values.each(lambda end, keep=keep: end[keep])
    caption = f"Bold: a win. {DASH}: no row fits or the policy does not apply."
    if len(pairs) > MOST_ROWS:
        far = np.argsort(-np.nanmax(np.abs(np.log(values.mid)), axis=1), kind="stable")[:MOST_ROWS]
        far = np.sort(far)
        caption += f" The {MOST_ROWS} of {len(pairs)} pairs of model and policy furthest from 1x are drawn."
        pairs, values = [pairs[i] for i in far], values.each(lambda end, far=far: end[far])
    one = len({m for m, _ in pairs}) == 1
    panel = charts.Panel("", values, [p if one else f"{m}  {p}" for m, p in pairs], devices)
    alt = "; ".join(
        f"{m} {p}: " + ", ".join(f"{times(v)} on {d}" for v, d in zip(row, devices, strict=True) if np.isfinite(v))
        for (m, p), row in zip(pairs[:8], values.mid[:8], strict=True)
    )
    return Figure("fig-overview", _overview_title(a), charts.heat_map(panel), "Median speed-ups. " + alt, caption)


def _overview_title(a: Advice) -> str:
    best, worst = a.ranking[0], a.ranking[-1]
    first = f"{best.policy} wins on {share(best.wins)} of model-device pairs (median {times(best.middle.mid)})"
    if best.wins == 0.0:
        first = f"No policy is sure to win; {best.policy} comes nearest ({times(best.middle.mid)})"
    if len(a.ranking) < 2:
        return first
    second = f"{worst.policy} loses on {share(worst.loses)} (median {times(worst.middle.mid)})"
    if worst.loses == 0.0:
        second = f"{worst.policy} brings least ({times(worst.middle.mid)})"
    return f"{first}, {second}"


def _middle(a: Advice, model: str, device: str, policy: str) -> Interval[float]:
    t = a.tallies.get((model, device, policy))
    return Interval.exact(np.nan) if t is None else t.middle


def _by_load(a: Advice) -> Iterator[Block]:
    """One figure per model: speed-ups over batch and prompt, on the device with most rows that fit."""
    sweep = a.sweep
    models = sweep.names("model")
    for number, model in enumerate(models[:MOST_MODELS]):
        of_model = [t for t in a.tallies.values() if t.model == model and t.policy != "dense" and t.rows]
        if not of_model:
            continue
        rows = {d: sum(t.rows for t in of_model if t.device == d) for d in dict.fromkeys(t.device for t in of_model)}
        device = max(rows, key=lambda d: rows[d])
        tallies = [t for t in of_model if t.device == device and np.isfinite(t.median)]
        shown = sorted(tallies, key=lambda t: -abs(np.log(t.median)))[:MOST_MAPS]
        shown = [t for t in tallies if t in shown]
        panels = [p for t in shown if (p := _map(sweep, t)) is not None]
        if not panels:
            continue
        title = f"{model} on {device}: {_load_words(shown)}"
        alt = f"Heat maps of speed-up over batch and prompt for {listed([t.policy for t in shown], 9)} on {device}."
        left = len(tallies) - len(shown)
        caption = "Medians over the other axes; bold: a win." + (
            f" {plural(left, 'policy')} nearer to 1x left out." if left else ""
        )
        if max(len(panels[0].rows), len(panels[0].columns)) > MOST_CELLS:
            caption = "Medians over the other axes; line: 1x, hatched: a loss."
        svg = charts.heat_maps(panels, "prompt [tokens]", "batch [sequences]")
        yield Figure(f"fig-load-{number}", title, svg, alt, caption)
    if len(models) > MOST_MODELS:
        left_out = listed(models[MOST_MODELS:])
        yield Paragraph(f"Maps over batch and prompt are drawn for {MOST_MODELS} models; not for {left_out}.", "note")


def _map(sweep: Sweep, t: Tally) -> charts.Panel | None:
    """Speed-up over batch (down) and prompt (across); None where the load does not vary."""
    of = sweep.rows
    whole = of.model.is_(t.model) & of.device.is_(t.device)
    rows = np.flatnonzero(sweep.ok & whole & of.policy.is_(t.policy) & np.isfinite(of.speedup.mid))
    batch, prompt = of.batch, of.prompt_tokens
    batches, prompts = np.unique(batch[whole]), np.unique(prompt[whole])
    if len(batches) * len(prompts) < 2 or not len(rows):
        return None

    def middle(end: np.ndarray) -> np.ndarray:
        (b, p), found = medians(end[rows].astype(float), batch[rows], prompt[rows])
        values = np.full((len(batches), len(prompts)), np.nan)
        values[np.searchsorted(batches, b), np.searchsorted(prompts, p)] = found
        return values

    return charts.Panel(t.policy, of.speedup.each(middle), [f"{v:.0f}" for v in batches], [_tokens(v) for v in prompts])


def _tokens(n: float) -> str:
    """1024 -> 1k, 130944 -> 130.9k: short enough for a tick."""
    if n < 1000:
        return f"{n:.0f}"
    return f"{n / 1024:.0f}k" if n % 1024 == 0 else f"{n / 1000:.3g}k"


def _load_words(tallies: list[Tally]) -> str:
    best = max(tallies, key=lambda t: t.median)
    words = f"{best.policy} {best.words}"
    others = [t for t in tallies if t is not best]
    if others:
        never = [t.policy for t in others if not t.wins and not t.undecided]
        part = [t for t in others if 0.0 < t.wins < 1.0]
        if never:
            words += f", {listed(never, 3)} never"
        elif part:
            words += f", {part[0].policy} {part[0].words}"
    return words


def _tables(a: Advice, tallies: Mapping[tuple[str, str, str], Tally]) -> Iterator[Table]:
    """Models and policies against devices, a few devices at a time."""
    sweep, largest = a.sweep, tallies is a.largest
    name, where = ("largest", "each at its largest batch") if largest else ("break-even", "at the same batch")
    note = "Over the rows that fit."
    if largest:
        note += " Where dense fits at no batch there is nothing to win over."
    devices, models = sweep.names("device"), sweep.names("model")
    for start in range(0, len(devices), DEVICES_ACROSS):
        here = devices[start : start + DEVICES_ACROSS]
        rows = []
        for model in models:
            for policy in a.policies:
                found = [tallies.get((model, d, policy)) for d in here]
                if any(t is not None for t in found):
                    rows.append((Cell(model), Cell(policy), *map(_cell, found)))
        suffix = "" if start == 0 else f"-{start // DEVICES_ACROSS + 1}"
        yield Table(
            f"tab-{name}{suffix}",
            f"Throughput over dense, {where}: median (90 % interval, P(win)), and where it wins",
            (Column("model"), Column("policy", term="policy"), *(Column(d, term="speed-up") for d in here)),
            tuple(rows),
            note=note,
        )


def _cell(t: Tally | None) -> Cell:
    if t is None:
        return Cell(DASH, np.nan)
    return Cell(t.told(DASH), t.median, tone(t.middle) if t.rows else "quiet")


def policy_table(a: Advice) -> Table:
    """One line per policy over everything in the sweep."""
    rows = []
    for r in a.ranking:
        of = a.of_policy(r.policy)
        low, high = min(t.worst for t in of), max(t.best for t in of)
        rows.append(
            (
                Cell(r.policy),
                speedup(r.middle),
                Cell(f"{low:.2f}{DASH}{high:.2f}", high),
                percent(r.wins),
                percent(r.loses),
                percent(sum(t.rows for t in of) / sum(t.of for t in of)),
            )
        )
    return Table(
        "tab-policies",
        "Every policy over all models, devices and loads",
        (
            Column("policy", term="policy"),
            Column("speed-up", True, "speed-up"),
            Column("over the loads", True, "speed-up"),
            Column("pairs it wins", True, "win"),
            Column("pairs it loses", True, "win"),
            Column("rows that fit", True),
        ),
        tuple(rows),
        note="Speed-up: median over model-device pairs of each pair's median, with its 90 % interval.",
    )
