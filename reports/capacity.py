"""The report on serving: what a fleet's latencies are, or which fleet keeps a promise at what cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports import provenance
from reports.candidates import candidates, nearest_miss, savings
from reports.content import Block, Bullets, Cell, Code, Column, Paragraph, Report, Section, Subheading, Table, section
from reports.deployments import cells_of, columns_of, fleet, keeps, named
from reports.load import latency, load
from reports.served import Row, Served, read
from reports.text import DASH, count, listed, ms, of_memory, plural, share, wrapped
from simulator.base.console import milliseconds, number
from simulator.base.errors import ShadowlineError
from simulator.results.verdict import Verdict
from simulator.serving.beside import told_beside
from simulator.serving.slo import METRICS

if TYPE_CHECKING:
    from simulator.device.catalogue import Device

NAMES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E"}
STATISTICS = ("mean", "p50", "p90", "p95", "p99")
FIRST_PAGE_ROWS = 6
NOT_MODELLED = (
    "Requests that stop early, are cancelled, or are served in another order than first come, first served.",
    "Ragged batches beyond their mean context, expert load that depends on the requests, speculative decoding.",
    "Prefix blocks on the host or on disk; KV handed over while its prompt is still computed.",
    "Tokenising, HTTP and detokenising; thermal throttling and other work on the GPU.",
    "The quality of the answers, unless a published loss stands beside the policy.",
)
OBJECTIVES = {"cheapest": "cheapest", "fastest": "fastest", "energy": "least thirsty"}


def compose(path: Path) -> Report:
    """The report of the file in `path`, written by ``simulator.serve`` or ``simulator.plan``."""
    served = read(path)
    best = recommended(served)
    policies = list(dict.fromkeys(r["policy"] for r in served.rows if r["policy"] != "dense"))
    devices, missing = _devices(served)
    models = list(dict.fromkeys(r["model"] for r in [*served.rows, *_near(served)]))
    sections = [
        _first_page(served, best),
        candidates(served, best),
        latency(served, best),
        load(served, best),
        savings(served, best),
        nearest_miss(served),
        provenance.not_modelled(policies, general=NOT_MODELLED),
        provenance.sources(devices, _fits(served, best)),
        provenance.versions(
            [("input", served.path.name), ("input, SHA-256", served.digest)]
            + [(f"profile {m}", "not known here, its sources are left out") for m in missing]
        ),
    ]
    subject = "What it takes to serve" if served.search else "Serving"
    devices_said = listed(dict.fromkeys(r["device"] for r in [*served.rows, *_near(served)]), 6)
    how_many = (
        plural(served.search.points, "candidate") + " searched"
        if served.search
        else plural(len(served.rows), "run") + " simulated"
    )
    report = Report(
        f"{subject} {listed(models, 4)}", f"{how_many}; {devices_said}", tuple(s for s in sections if s is not None)
    )
    return provenance.with_glossary(report, "sources")


def recommended(served: Served) -> Row | None:
    """A plan's first row; of runs that keep the promises, or keep up, the cheapest that is dense or wins over it."""
    if served.search is not None:
        return served.rows[0] if served.rows else None
    good = [r for r in served.rows if keeps(r) and r["usd_per_mtoken"] is not None]
    if any(r["policy"] == "dense" for r in good):
        good = [r for r in good if r["policy"] == "dense" or r["verdict"] == Verdict.WINS]
    return min(good, key=lambda r: r["usd_per_mtoken"], default=None)


def traffic(served: Served) -> str:
    """The requests in words, from the command's flags."""
    s = served.settings
    if not s:
        return "the given requests"
    if s.get("requests") is not None:
        text = f"the requests of {Path(s['requests']).name}"
        return text + (f" at {s['rate']:g} requests/s" if s.get("rate") is not None else "")
    if s.get("rate") is None:
        return "the given requests"
    return (
        f"{s['rate']:g} requests/s ({s['arrivals']}) of {s['prompt_tokens']} prompt and {s['output_tokens']} output"
        " tokens"
    )


def _near(served: Served) -> list[Row]:
    found = served.search.nearest if served.search else None
    return [found] if found else []


def _promises(served: Served) -> str:
    return listed(f"{NAMES[p.metric]} {p.statistic} below {milliseconds(p.limit_s)} ms" for p in served.slo)


def _first_page(served: Served, best: Row | None) -> Section:
    files = "-o report.html -o report.pdf"
    name = served.path.name
    told = served.command or "(the file does not name its command)"
    redirect = f" > {name}" if name.endswith(".json") and served.command else ""
    blocks: list[Block | None] = [
        Paragraph(_question(served)),
        Paragraph(answer(served, best), "lead"),
        _deployments(served, best) if best else None,
        _percentiles(served, best) if best else None,
        Subheading("Assumptions"),
        Bullets(_assumptions(served)),
        Subheading("The exact command"),
        Code(f"{wrapped(told)}{redirect}\npython -m reports.build {name} {files}"),
    ]
    return section("answer", "The question and the answer", blocks)


def _question(served: Served) -> str:
    promised = _promises(served)
    if served.search is not None:
        objective = OBJECTIVES.get(str(served.settings.get("objective")), "best")
        model = next((r["model"] for r in [*served.rows, *_near(served)]), "the model")
        keeping = f" keeps {promised}" if promised else " keeps the promises"
        return f"Which is the {objective} deployment of {model} that{keeping} under {traffic(served)}?"
    models = listed(dict.fromkeys(r["model"] for r in served.rows))
    fleets = listed(dict.fromkeys(fleet(r) for r in served.rows), 4)
    scaled = " at several rates" if len({r.get("rate_scale") for r in served.rows}) > 1 else ""
    asked = f", and where does it keep {promised}" if promised else ""
    return f"How does {models} on {fleets} serve {traffic(served)}{scaled}{asked}?"


def answer(served: Served, best: Row | None) -> str:
    """Two sentences: what is recommended, and what it is held against."""
    if best is None:
        return _no_answer(served)
    cost = f"{number(best['usd_per_h'])} USD/h"
    if best["usd_per_mtoken"] is not None:
        cost += f" ({number(best['usd_per_mtoken'])} USD per million output tokens)"
    p99 = listed(
        f"{NAMES[m]} p99 {milliseconds(best[f'{m}_p99_s'])} ms"
        for m in ("ttft", "tpot")
        if best[f"{m}_p99_s"] is not None
    )
    objective = OBJECTIVES.get(str(served.settings.get("objective")), "best")
    chosen = named(best)
    first = f"The {objective} is {chosen} for {cost}: {p99}"
    if served.search is None:
        rate = "" if best["rate_per_s"] is None else f" at {number(best['rate_per_s'])} requests/s"
        verb = "keeps the promises" if served.slo else "keeps up"
        first = f"{chosen} {verb}{rate} for {cost}: {p99}"
        bad = sum(not keeps(r) for r in served.rows)
        if len(served.rows) == 1:
            second = f"Its KV cache is {share(best['kv_share_mean'])} full on average, status {best['status']}"
        elif bad:
            over = sum(r["status"] == "OVERLOADED" for r in served.rows)
            second = (
                f"Of {plural(len(served.rows), 'run')} {bad} miss{'es' if bad == 1 else ''} them"
                if served.slo
                else f"Of {plural(len(served.rows), 'run')} {bad} {'does' if bad == 1 else 'do'} not"
            ) + _because(over, bad)
        else:
            second = f"All {len(served.rows)} runs do; it is the cheapest per token of dense and what wins over it"
        return f"{first}. {second}.{_beside(best)}"
    return f"{first}. {_against_dense(served, best)}{_beside(best)}"


def _beside(best: Row) -> str:
    text = told_beside(best)
    return f" {text}." if text else ""


def _because(over: int, bad: int) -> str:
    """Why runs fail, where it is overload."""
    if not over:
        return ""
    of = "" if over == bad else f", {over} of them"
    return f"{of or ','} because {'its queue' if over == 1 else 'their queues'} only grow{'s' if over == 1 else ''}"


def _against_dense(served: Served, best: Row) -> str:
    dense = min((r for r in served.rows if r["policy"] == "dense"), key=lambda r: r["usd_per_h"], default=None)
    if best["policy"] != "dense" and dense is not None:
        saved = dense["usd_per_h"] - best["usd_per_h"]
        if abs(saved) < 0.005:
            return f"The cheapest dense deployment, {fleet(dense)}, costs the same."
        verb = "saves" if saved > 0 else "costs"
        return (
            f"Against the cheapest dense deployment ({fleet(dense)}, {number(dense['usd_per_h'])} USD/h) it {verb}"
            f" {number(abs(saved))} USD/h, {share(abs(saved) / dense['usd_per_h'])} or {abs(saved) * 8760:,.0f} USD a"
            " year at list price."
        )
    others = [r for r in served.rows if r["device"] != best["device"]]
    if others:
        return f"The best on another device is {fleet(others[0])} for {number(others[0]['usd_per_h'])} USD/h."
    full = f"Its KV cache is {share(best['kv_share_mean'])} full on average."
    bounds = [p for p in (served.search.by_device if served.search else ()) if not p["simulated"]]
    if not bounds:
        return full
    next_ = min(bounds, key=lambda p: p["usd_per_h"])
    # Left out because dearer, which is not that it fails.
    return f"{full} Other devices need {number(next_['usd_per_h'])} USD/h or more ({next_['where']})."


def _no_answer(served: Served) -> str:
    if served.search is None:
        over = sum(r["status"] == "OVERLOADED" for r in served.rows)
        first = "No run keeps the promises" if served.slo else "No run keeps up"
        return (
            f"{first}; {over} of {len(served.rows)} {'is' if over == 1 else 'are'} overloaded. More GPUs, a lower rate"
            " or another policy may do."
        )
    near = served.search.nearest
    first = f"Nothing keeps {_promises(served) or 'the promises'} among {plural(served.search.points, 'candidate')}."
    if near is None:
        return first
    if "reason" in near:
        return f"{first} Nearest: {near['tp']} x {near['device']} with {near['policy']}: {near['reason']}."
    p99 = listed(f"{NAMES[m]} p99 {milliseconds(near[f'{m}_p99_s'])} ms" for m in ("ttft", "tpot"))
    return f"{first} Nearest: {fleet(near)}, {near['status']}: {p99}."


def _deployments(served: Served, best: Row) -> Table:
    """The recommended deployment, and the best of every other device and policy."""
    rows = [best]
    good = [r for r in served.rows if keeps(r)]
    if served.search is None:
        # The highest rate that each deployment keeps.
        good.sort(key=lambda r: -(r["rate_per_s"] or 0.0))
    for row in good:
        if all((row["device"], row["policy"]) != (r["device"], r["policy"]) for r in rows):
            rows.append(row)
    total = len(rows)
    rows = rows[:FIRST_PAGE_ROWS]
    note = ""
    if total > 1:
        note = "First the recommended one, then " + (
            "the best of other devices and policies."
            if served.search
            else "the highest rate that every other device and policy keeps."
        )
    if total > len(rows):
        note += f" All {total} stand in the next section."
    launch = best.get("launch")
    if served.search is not None and not launch:
        vllm = next((r for r in served.rows if r.get("launch")), None)
        note += f" The first has no launch command: {best.get('launch_note') or 'none given'}."
        if vllm is not None:
            note += f" The cheapest that can be started: {fleet(vllm)}, {number(vllm['usd_per_h'])} USD/h."
    return Table("tab-recommended", "Recommended deployments", columns_of(rows), tuple(map(cells_of, rows)), note)


def _percentiles(served: Served, best: Row) -> Table:
    """Latencies of the recommended deployment against what was promised."""
    body = []
    for metric in METRICS:
        limits = {p.statistic: p.limit_s for p in served.slo if p.metric == metric}
        told = listed(f"{s} < {milliseconds(v)}" for s, v in limits.items())
        margins = [1.0 - best[f"{metric}_{s}_s"] / v for s, v in limits.items() if best[f"{metric}_{s}_s"] is not None]
        cells = [ms(best[f"{metric}_{s}_s"]) for s in STATISTICS]
        ends = [
            Cell(f"{milliseconds(best[lo])}{DASH}{milliseconds(best[hi])}", best[hi])
            if best.get(lo) is not None and best.get(hi) is not None
            else Cell(DASH)
            for lo, hi in [(f"{metric}_p99_lo_s", f"{metric}_p99_hi_s")]
        ]
        left = Cell(share(min(margins)), min(margins)) if margins else Cell(DASH)
        body.append((Cell(NAMES[metric]), *cells, *(ends if _interval(best) else ()), Cell(told or DASH), left))
    columns = (
        Column("ms"),
        *(Column(s, True) for s in STATISTICS),
        *((Column("p99, 90 % interval", True, "90 % interval"),) if _interval(best) else ()),
        Column("promised"),
        Column("margin", True),
    )
    rate = "" if best["rate_per_s"] is None else f" at {number(best['rate_per_s'])} requests/s"
    title = f"Latency of {fleet(best)}{rate}"
    return Table("tab-percentiles", title, columns, tuple(body), _at_the_upper_end(served, best))


def _at_the_upper_end(served: Served, best: Row) -> str:
    """Promises that break when all steps are at the upper end of their interval."""
    if not _interval(best):
        return ""
    broken = [
        f"{NAMES[p.metric]} {p.statistic}"
        for p in served.slo
        if (v := best.get(f"{p.metric}_{p.statistic}_hi_s")) is not None and v >= p.limit_s
    ]
    text = "The interval: all steps at the lower, and at the upper end of theirs."
    return text + (f" At the upper end {listed(broken)} exceeds its promise." if broken else "")


def _interval(row: Row) -> bool:
    return "ttft_p99_lo_s" in row


def _assumptions(served: Served) -> tuple[str, ...]:
    rows = served.rows or [r for r in _near(served) if "basis" in r]
    s = served.settings
    bases = listed(dict.fromkeys(r["basis"].lower() for r in rows))
    texts = [
        "Simulated, not measured: every request of the traffic passes a scheduler whose step times are predicted"
        + (f"; basis {bases}." if bases else ".")
    ]
    if rows:
        texts.append(
            f"{count(rows[0]['requests']).text} requests under {listed(dict.fromkeys(r['engine'] for r in rows))},"
            f" scheduler {listed(dict.fromkeys(r['scheduler'] for r in rows))}, at most"
            f" {listed(dict.fromkeys(str(r['max_num_seqs']) for r in rows))} sequences a replica, router"
            f" {listed(dict.fromkeys(r['router'] for r in rows))}"
            + (f"; {of_memory(s.get('gpu_memory_utilization'))}." if s else ".")
        )
    if s and s.get("seed") is not None and s.get("rate") is not None:
        texts.append(f"What is random comes from seed {s['seed']}; another seed moves the p99 of few requests.")
    if s and s.get("reuse"):
        texts.append(f"Reuse as given, not predicted: {s['reuse']}.")
    texts.append(
        "Rent is the profiles' list price of whole GPUs; energy is the board's limit times 0.35 + 0.65 busy, an"
        " assumption."
    )
    if served.search is not None:
        texts.append(
            f"{served.search.points:,} candidates bounded in closed form, {served.search.simulated:,} of them"
            f" simulated in {plural(served.search.simulations, 'fleet')}; what even its fewest replicas make dearer"
            " than the best is not simulated."
        )
    if any(r["status"] == "BACKLOGGED" for r in rows):
        texts.append("BACKLOGGED: more than half of the requests wait longer than their own prompt takes.")
    return tuple(texts)


def _devices(served: Served) -> tuple[list[Device], list[str]]:
    from simulator.scenario.catalogue import CATALOGUE

    found, missing = [], []
    for name in dict.fromkeys(r["device"] for r in [*served.rows, *_near(served)]):
        try:
            found.append(CATALOGUE.device(name))
        except ShadowlineError:
            missing.append(name)
    return found, missing


def _fits(served: Served, best: Row | None) -> list[str]:
    """Fits that answer a step of the recommended deployment, predicted again for their names."""
    from simulator.policies import PUBLISHED
    from simulator.results.prediction import predict
    from simulator.scenario.scenario import Scenario

    if best is None:
        return []
    given: Mapping[str, Any] = {k: best[k] for k in ("model", "device", "policy", "engine", "tp", "pp", "ep")}
    formats = {
        "kernel": best.get("given_kernel") or served.settings.get("kernel") or PUBLISHED,
        "dtype": best.get("given_dtype") or served.settings.get("dtype") or "auto",
        "kv_cache_dtype": best.get("given_kv_dtype") or served.settings.get("kv_cache_dtype") or "auto",
    }
    try:
        return list(predict(Scenario.of(**given, **formats)).sources)
    except ShadowlineError:
        return []
