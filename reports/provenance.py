"""Where a report's numbers come from: sources, versions, glossary, and what is not modelled."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from reports.content import Block, Bullets, Cell, Code, Column, Report, Section, Subheading, Table, Terms, section
from reports.text import wrapped
from simulator.base.glossary import TERMS, used

if TYPE_CHECKING:
    from simulator.device.catalogue import Device
    from simulator.device.fits import Fit


def source_list() -> Mapping[str, Mapping[str, Any]]:
    """`hw_profiles/sources.toml`."""
    return tomllib.loads(resources.files("hw_profiles").joinpath("sources.toml").read_text("utf-8"))


def named_fit(name: str) -> Iterator[Fit]:
    """The fit behind `device/family/dtype/library`."""
    from simulator.device.catalogue import measured

    device, family, dtype, library = (name.split("/") + [""] * 4)[:4]
    found = measured(device)
    for fit in (*found.own(family), *found.pooled(family)):
        if (fit.device, fit.dtype, fit.library) == (device, dtype, library):
            yield fit
            return


GENERAL = (
    "Arrivals and queues: a static batch starts and ends together.",
    "Thermal throttling, clocks below boost, other work on the GPU, and first-run compilation.",
    "The quality of the answers, unless a trace measured it.",
)
"""What predictions of a static batch leave out."""


def not_modelled(policies: Iterable[str], general: Sequence[str] = GENERAL) -> Section:
    """What the predictions leave out, policy by policy and in general."""
    from simulator.policies import parse, without_kernel

    members = {m.name: m for p in policies for m in parse(without_kernel(p)).members}
    rows = tuple(
        (Cell(name), Cell(m.summary), Cell(m.not_modelled or "nothing that is known"), Cell(m.citation))
        for name, m in members.items()
    )
    columns = (
        Column("policy", term="policy"),
        Column("what it does", wide=1),
        Column("not modelled", wide=1),
        Column("published in"),
    )
    table = Table("tab-not-modelled", "The policies of this report", columns, rows) if rows else None
    return section("not-modelled", "What is not modelled", [Bullets(tuple(general)), table])


def sources(devices: Sequence[Device], fit_names: Iterable[str], more: Sequence[tuple[str, str]] = ()) -> Section:
    """Sources of the devices' numbers and of the fits that answered, and no others."""
    known = source_list()
    uses: dict[str, dict[str, set[str]]] = {}
    assumed = []
    for device in devices:
        for path, number in device.facts():
            uses.setdefault(number.source, {}).setdefault("profile of", set()).add(device.name)
            if number.kind == "assumed" and path in ("price", "power", "memory.hbm.bandwidth", "memory.hbm.capacity"):
                assumed.append(f"{device.name}: {path} {number.text} ({number.note or number.source})")
    for name in dict.fromkeys(fit_names):
        for fit in named_fit(name):
            for key in fit.sources:
                uses.setdefault(key, {}).setdefault("fits of", set()).add(fit.family)
    rows = []
    for key in sorted(uses):
        s = known.get(key, {})
        url = str(s.get("url", ""))
        rows.append(
            (
                Cell(key, href=url if url.startswith(("https://", "http://")) else ""),
                Cell(str(s.get("title", "public measurements of that name"))),
                Cell(str(s.get("read", ""))),
                Cell("; ".join(f"{what} {', '.join(sorted(names))}" for what, names in sorted(uses[key].items()))),
            )
        )
    rows += [(Cell(name), Cell(what), Cell(""), Cell("this report")) for name, what in more]
    columns = (Column("source"), Column("what it is", wide=3), Column("read on"), Column("used for", wide=2))
    blocks: list[Block | None] = [
        Table("tab-sources", "Where the numbers come from", columns, tuple(rows), shown=80),
        Subheading("Assumed, not measured") if assumed else None,
        Bullets(tuple(assumed)) if assumed else None,
    ]
    return section("sources", "Sources", blocks)


def versions(facts: Sequence[tuple[str, str]]) -> Section:
    """What has to be the same for the same report."""
    rows = (("shadowline", version("shadowline")), *facts)
    columns = (Column("what"), Column("version or hash", wide=1))
    table = Table("tab-versions", "Versions and hashes", columns, tuple((Cell(a), Cell(b)) for a, b in rows), shown=200)
    return section("versions", "Versions", [table])


def command_block(command: str) -> Code:
    """A command to copy."""
    return Code(wrapped(command))


def with_glossary(report: Report, at: str) -> Report:
    """The report with the terms it uses explained, before the section `at`."""
    terms = used(report.texts())
    explained = Section("glossary", "Glossary", (Terms(tuple((t, TERMS[t]) for t in terms)),))
    sections = list(report.sections)
    index = next((i for i, s in enumerate(sections) if s.id == at), len(sections))
    return replace(report, sections=(*sections[:index], explained, *sections[index:]))
