"""What limits the rows of a sweep: memory, the bound of the time, and money."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from reports import charts
from reports.advice import Advice, worth
from reports.content import Block, Cell, Column, Figure, Paragraph, Section, Table, section
from reports.rows import Sweep
from reports.text import DASH, count, gb, listed, num, percent, ranged, ratio, share, speedup, times, upper
from simulator.base.console import milliseconds, number
from simulator.inference.bound import Bound
from simulator.results.answer import Row
from simulator.results.loss import LOSS_UNKNOWN, UNIT, front

MOST_BARS = 26
SMALL_LOSS = 2.0
"""Loss of quality a report's sentence looks below [points]."""
MOST_MODELS = 6


def memory_fit(a: Advice) -> Section:
    """Parts of the memory against the capacities, what fits, and what would work where it does not."""
    sweep = a.sweep
    blocks: list[Block] = []
    for i, model in enumerate(sweep.names("model")[:MOST_MODELS]):
        blocks += _bars(sweep, model, i)
    blocks.append(_fit_table(a))
    blocks += _reasons(a)
    return section("memory", "Does it fit", blocks)


def _bars(sweep: Sweep, model: str, i: int) -> Iterator[Figure]:
    """Weights, KV cache and the rest per GPU and policy at the heaviest load of the fewest GPUs."""
    all_ = sweep.rows
    here = all_.model.is_(model) & np.isfinite(all_.total_bytes)
    if not here.any():
        return
    at = {}
    here &= sweep.gpus == sweep.gpus[here].min()
    for name, size in (("prompt", all_.prompt_tokens), ("batch", all_.batch), ("output", all_.output_tokens)):
        at[name] = size[here].max()
        here &= size == at[name]
    rows = {p: r[0] for (p,), r in sweep.groups("policy", where=here).items()}
    if not rows:
        return
    policies = list(rows)[:MOST_BARS]
    index = np.array([rows[p] for p in policies])
    parts = {
        label: held[index].astype(float) / 1e9
        for label, held in (("weights", all_.weights_bytes), ("KV cache", all_.kv_bytes), ("other", all_.other_bytes))
    }
    marks = {
        d: float(all_.capacity_bytes[r[0]]) / 1e9
        for (d,), r in sweep.groups("device", where=all_.model.is_(model)).items()
    }
    total = np.sum(list(parts.values()), axis=0)
    gpus = int(sweep.gpus[index[0]])
    load = f"batch {at['batch']:,.0f}, prompt {at['prompt']:,.0f}"
    least = int(np.argmin(total))
    dense = policies.index("dense") if "dense" in policies else least
    fit = [d for d, c in marks.items() if total[least] <= c]
    some = f"fits {listed(fit, 4)}" if fit else "fits none of the devices"
    title = f"{model} at {load}: {policies[least]} needs {number(total[least])} GB per GPU"
    title += f" where dense needs {number(total[dense])} GB" if least != dense else ", the least of all"
    yield Figure(
        f"fig-memory-{i}",
        f"{title}; it {some}",
        charts.stacked(policies, parts, "memory per GPU [GB]", lines=marks),
        f"Memory per GPU of {model}: " + "; ".join(f"{p} {number(t)} GB" for p, t in zip(policies, total, strict=True)),
        f"{gpus} GPU{'s' if gpus > 1 else ''} per replica, the fewest of the sweep; dashed: capacity as the driver"
        " reports it, of which the engine takes its share.",
    )


def _fit_table(a: Advice) -> Table:
    sweep = a.sweep
    rows = []
    for (model, device), r in sweep.groups("model", "device").items():
        ok = sweep.ok[r]
        dense = r[sweep.dense[r]]
        largest = sweep.rows.max_batch

        def most(part: np.ndarray, longest: bool, largest: np.ndarray = largest) -> float:
            part = part[np.isfinite(largest[part])]
            if not len(part):
                return np.nan
            prompt = sweep.rows.prompt_tokens[part]
            return float(largest[part[prompt == (prompt.max() if longest else prompt.min())]].max())

        def who(longest: bool, r: np.ndarray = r, largest: np.ndarray = largest) -> str:
            part = r[np.isfinite(largest[r])]
            if not len(part):
                return ""
            prompt = sweep.rows.prompt_tokens[part]
            part = part[prompt == (prompt.max() if longest else prompt.min())]
            row = sweep.rows.at(int(part[np.argmax(largest[part])]))
            return row.policy if row.policy == "dense" else f"{row.policy} ({row.loss})"

        rows.append(
            (
                Cell(model),
                Cell(device),
                gb(float(sweep.rows.capacity_bytes[r[0]])),
                percent(float(ok.mean())),
                count(most(dense, False)),
                count(most(r, False)),
                count(most(dense, True)),
                count(most(r, True)),
                Cell(who(True)),
            )
        )
    return Table(
        "tab-fit",
        _fit_title(a),
        (
            Column("model"),
            Column("device"),
            Column("capacity [GB]", True, "GB"),
            Column("rows that fit", True),
            Column("max batch, shortest prompt: dense", True, "max batch"),
            Column("best", True, "max batch"),
            Column("longest prompt: dense", True, "max batch"),
            Column("best", True, "max batch"),
            Column("best policy there", term="policy"),
        ),
        tuple(rows),
        note="Largest batch over all GPU counts of the sweep; best: the policy that allows the largest.",
    )


def _fit_title(a: Advice) -> str:
    ok = int(a.sweep.ok.sum())
    title = f"{share(ok / a.sweep.n)} of the {a.sweep.n:,} rows fit and run"
    groups = a.sweep.groups("model", "device")
    none = [f"{m} on {d}" for (m, d), r in groups.items() if not a.sweep.ok[r].any()]
    return title + (f"; none of {listed(none, 3)}" if none else "")


def _reasons(a: Advice) -> Iterator[Block]:
    if not a.reasons:
        return
    yield Table(
        "tab-reasons",
        "Why rows do not run, and what would work",
        (Column("reason", wide=1), Column("rows", True)),
        tuple((Cell(reason), Cell(f"{n:,}", n)) for reason, n in a.reasons.most_common()),
        shown=12,
    )


def bottlenecks(a: Advice) -> list[Block]:
    """Share of the rows by what binds them, per device and policy."""
    sweep = a.sweep
    timed, binds = sweep.rows.timed, sweep.rows.bound
    if not timed.any():
        return [Paragraph("No row has a time, so nothing binds it.")]
    groups = sweep.groups("policy", "device", where=timed)
    if len(groups) > MOST_BARS:
        groups = sweep.groups("policy", where=timed)
    names = [", ".join(k) for k in groups][:MOST_BARS]
    parts = {
        str(bound): np.array([float(np.mean(binds.is_(bound)[r])) for r in list(groups.values())[:MOST_BARS]])
        for bound in Bound
    }
    whole = {b: float(np.mean(binds.is_(b)[timed])) for b in Bound}
    first, second = sorted(whole, key=lambda b: -whole[b])[:2]
    title = (
        f"{upper(first)} bind {share(whole[first])} of the rows"
        if first.endswith("s")
        else (f"{upper(first)} binds {share(whole[first])} of the rows")
    )
    title += f", {second} {share(whole[second])}" if whole[second] > 0 else ""
    alt = "; ".join(f"{b} {share(v)}" for b, v in whole.items() if v > 0)
    svg = charts.stacked(names, parts, "share of the rows with a time [-]", percent=True)
    return [
        Figure("fig-bounds", title, svg, f"Rows by bound: {alt}.", "What takes most of the end-to-end time of a row.")
    ]


def cost(a: Advice) -> Section:
    """Price and energy per token, dense against the cheapest policy."""
    sweep = a.sweep
    rows, names, dense_price, best_price = [], [], [], []
    price = sweep.rows.usd_per_mtoken
    for (model, device), r in sweep.groups("model", "device", where=worth(sweep) & np.isfinite(price)).items():
        best = int(r[np.argmin(price[r])])
        dense = r[sweep.dense[r]]
        base = int(dense[np.argmin(price[dense])]) if len(dense) else -1
        row = sweep.rows.at(best)
        names.append(f"{model}, {device}")
        best_price.append(float(price[best]))
        dense_price.append(float(price[base]) if base >= 0 else np.nan)
        rows.append(
            (
                Cell(model),
                Cell(device),
                num(dense_price[-1]),
                Cell(row.policy),
                num(best_price[-1]),
                ratio(dense_price[-1] / best_price[-1]),
                count(row.batch),
                count(row.prompt_tokens),
                num(row.energy_j_per_token),
            )
        )
    if not rows:
        return section("cost", "Cost", [Paragraph("No row fits, so there is no cost to show.")])
    cheapest = int(np.argmin(best_price))
    cheaper = np.array(dense_price) / np.array(best_price)
    title = f"Cheapest: {names[cheapest]} at {number(best_price[cheapest])} USD per million output tokens"
    if np.isfinite(cheaper).any():
        title += f"; the best policy is {times(float(np.nanmedian(cheaper)))} cheaper than dense (median)"
    cut = np.argsort(best_price)[:MOST_BARS]
    cut = np.sort(cut)
    none = np.full(len(cut), np.nan)
    series = {
        "dense": (np.array(dense_price)[cut], none, none),
        "cheapest policy": (np.array(best_price)[cut], none, none),
    }
    svg = charts.intervals([names[i] for i in cut], series, "USD per million output tokens", log=True)
    return section(
        "cost",
        "Cost",
        [
            Figure(
                "fig-cost",
                title,
                svg,
                "; ".join(f"{names[i]}: dense {number(dense_price[i])}, best {number(best_price[i])} USD" for i in cut),
                "Each at its cheapest load of the sweep; a policy that does not win over dense is left out. Rent from"
                " the profiles' list prices (see sources); edit them to yours.",
            ),
            Table(
                "tab-cost",
                "Rent and energy per output token at the cheapest load",
                (
                    Column("model"),
                    Column("device"),
                    Column("dense [USD/Mtoken]", True),
                    Column("cheapest policy", term="policy"),
                    Column("[USD/Mtoken]", True),
                    Column("cheaper by", True),
                    Column("batch", True, "batch"),
                    Column("prompt", True),
                    Column("energy [J/token]", True),
                ),
                tuple(rows),
                note="Energy is an estimate: power limit x (0.35 + 0.65 x load of the busiest resource).",
            ),
        ],
    )


def quality(a: Advice) -> Section:
    """Pareto of speed and loss of quality where it is known, and the policies of which it is not."""
    sweep = a.sweep
    lost, gain = sweep.rows.points_lost.mid, sweep.rows.speedup.mid
    known = sweep.ok & np.isfinite(gain) & np.isfinite(lost)
    title = "Speed against quality"
    points, middles, rows = [], [], []
    for (model, device, policy), r in sweep.groups("model", "device", "policy", where=known).items():
        if policy == "dense":
            continue
        middle = sweep.rows.speedup.each(lambda end, r=r: float(np.median(end[r])))
        points.append((model, device, policy, middle.mid, float(lost[r[0]]), r[0]))
        middles.append(middle)
    missing = [p for p in a.policies if p not in {pt[2] for pt in points}]
    unknown = f"{upper(LOSS_UNKNOWN)}: {listed(missing, 12)}." if missing else ""
    if not points:
        text = unknown or "No policy beside dense."
        return section("quality", title, [Paragraph(f"{text} Measure it with python -m traces.quality.")])
    for (m, d, p, _, _, r), middle in zip(points, middles, strict=True):
        of = [pt for pt in points if pt[:2] == (m, d)]
        first = bool(front([pt[3] for pt in of], [pt[4] for pt in of])[[pt[2] for pt in of].index(p)])
        row = sweep.rows.at(r)
        rows.append(
            (
                Cell(m),
                Cell(d),
                Cell(p),
                Cell("yes" if first else "no", int(first)),
                speedup(middle),
                Cell(row.loss, row.points_lost.mid),
                percent(row.quality_agreement, 1),
                Cell(row.quality_source),
            )
        )
    names = list(dict.fromkeys((m, d) for m, d, *_ in points))[:7]
    groups = {
        f"{m}, {d}": (
            np.array([pt[4] for pt in points if pt[:2] == (m, d)]),
            np.array([pt[3] for pt in points if pt[:2] == (m, d)]),
        )
        for m, d in names
    }
    labels = [(q, s, p) for m, d, p, s, q, _ in points if (m, d) == names[0]][:12]
    small = [pt for pt in points if sweep.rows.points_lost.hi[pt[5]] <= SMALL_LOSS]
    best = max(small, key=lambda pt: pt[3], default=None)
    told = (
        f"{best[2]} gives {times(best[3])} on {best[1]} and surely loses at most {SMALL_LOSS:g} points"
        if best is not None
        else f"no policy surely loses at most {SMALL_LOSS:g} points; {min(points, key=lambda p: p[4])[2]} comes nearest"
    )
    svg = charts.scatter(
        groups, "points lost against dense", "throughput over dense [-]", log=False, labels=labels, height_in=3.2
    )
    alt = "; ".join(f"{p} {times(s)} for {q:.1f} points" for _, _, p, s, q, _ in points)
    table = Table(
        "tab-quality",
        "Loss of quality beside predicted speed",
        (
            Column("model"),
            Column("device"),
            Column("policy", term="policy"),
            Column("front", term="Pareto front"),
            Column("speed-up", True, "speed-up"),
            Column("loss", term="loss of quality"),
            Column("same token", True, "agreement"),
            Column("source", wide=1),
        ),
        tuple(rows),
        note=f"Loss in {UNIT}. {unknown}".rstrip(),
    )
    return section("quality", title, [Figure("fig-quality", upper(told), svg, alt), table])


def best_table(a: Advice) -> Table:
    """The row with most tokens per GPU for every model and device, whatever the load."""
    sweep = a.sweep
    rows, rates = [], sweep.rows.tokens_per_s_per_gpu.mid
    for (model, device), r in sweep.groups("model", "device", where=worth(sweep)).items():
        best = sweep.rows.at(int(r[np.argmax(rates[r])]))
        rows.append((Cell(model), Cell(device), Cell(best.policy), *operating_point(best)))
    return Table(
        "tab-best",
        "Most tokens/s per GPU of every model and device, of dense and what wins over it, whatever the load",
        (Column("model"), Column("device"), Column("policy", term="policy"), *OPERATING),
        tuple(rows),
    )


OPERATING = (
    Column("GPUs", True),
    Column("batch", True, "batch"),
    Column("prompt", True),
    Column("tokens/s/GPU (90\u202f%)", True, "tokens/s/GPU"),
    Column("TTFT ms (90\u202f%)", True, "TTFT"),
    Column("TPOT ms (90\u202f%)", True, "TPOT"),
    Column("$/Mtoken", True),
    Column("basis", term="basis"),
    Column("loss", term="loss of quality"),
)


def operating_point(a: Row) -> tuple[Cell, ...]:
    """Cells of `OPERATING` for one row."""
    return (
        count(a.gpus),
        count(a.batch),
        count(a.prompt_tokens),
        ranged(a.tokens_per_s_per_gpu),
        ranged(a.ttft_s, milliseconds),
        ranged(a.tpot_s, milliseconds),
        num(a.usd_per_mtoken),
        Cell(a.basis.lower()),
        Cell(DASH if a.policy == "dense" else a.loss, a.points_lost.mid),
    )
