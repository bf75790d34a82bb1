"""The catalogue of policies: ``python -m simulator.policies [NAME]``."""

from __future__ import annotations

from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from simulator.base import console
from simulator.policies.base import Policy
from simulator.policies.grammar import POLICIES

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def command(
    name: Annotated[str | None, typer.Argument(help="one policy, with its parameters")] = None,
    json_: Annotated[bool, typer.Option("--json", help='{"rows": [...]} on stdout')] = False,
) -> None:
    """List the policies, or show one with its parameters, mechanism and limits."""
    rows = [row_of(POLICIES[p]) for p in ([name] if name else POLICIES)]
    if json_:
        console.out_json({"rows": rows})
    elif name:
        _show(rows[0])
    else:
        console.table(
            f"{len(rows)} policies",
            ["policy", "family", "parameters", "what it does", "citation"],
            [
                [r["policy"], r["family"], *(shorten(text, width) for text, width in _wide(r))]
                for r in sorted(rows, key=lambda r: r["family"])
            ],
            left=5,
            note="join with +: 'mustafar(keep=0.3)+w4a16'; two that rewrite the same thing are refused",
        )


def _wide(row: dict[str, Any]) -> tuple[tuple[str, int], ...]:
    """Long cells of a policy's line, and the characters they may take; NAME and --json show all."""
    defaults = ", ".join(f"{p['name']}={p['default']}" for p in row["parameters"])
    alias = f" (as {row['alias_of']})" if row["alias_of"] else ""
    return (defaults or "-", 60), (row["summary"] + alias, 80), (row["citation"], 46)


def row_of(cls: type[Policy]) -> dict[str, Any]:
    """What a policy says of itself, and where it can be run, as plain values."""
    from simulator.policies.software import Software, software

    c = cls.compatibility
    return {
        "policy": cls.name,
        "family": cls.family,
        "summary": cls.summary,
        "alias_of": cls.alias_of,
        "citation": cls.citation,
        "rewrites": sorted(a.value for a in cls.aspects),
        "not_modelled": cls.not_modelled,
        "software": software().get(cls.name, Software()).model_dump(),
        "mechanism": (cls.__doc__ or "").strip(),
        "parameters": [
            {"name": k, "default": f.default, "range": _range(f), "meaning": f.description or ""}
            for k, f in cls.model_fields.items()
        ],
        "compatible": {
            "paged_kv": c.paged_kv,
            "prefix_cache": c.prefix_cache,
            "chunked_prefill": c.chunked_prefill,
            "speculative": c.speculative,
            "needs_scores": c.needs_scores,
            "extra_weight_layout": c.extra_layout,
            "mla": c.mla,
            "gqa": c.gqa,
        },
    }


def _range(field: FieldInfo) -> str:
    """Values a parameter may take, as text."""
    choices = [c for c in get_args(field.annotation) if isinstance(c, str)]
    if choices:
        return " | ".join(choices)
    if field.annotation is bool:
        return "true | false"
    parts = []
    for word, keys in (("above", ("gt",)), ("from", ("ge",)), ("below", ("lt",)), ("to", ("le",))):
        for limit in field.metadata:
            parts += [f"{word} {getattr(limit, k):g}" for k in keys if hasattr(limit, k)]
    return " ".join(parts)


def _show(row: dict[str, Any]) -> None:
    console.out(f"{row['policy']}: {row['summary']}")
    if row["alias_of"]:
        console.out(f"same mechanism as {row['alias_of']}, other defaults")
    console.out(row["citation"])
    console.out()
    console.out("    " + row["mechanism"])
    console.out()
    if row["parameters"]:
        console.table(
            "Parameters",
            ["name", "default", "range", "meaning"],
            [[p["name"], f"{p['default']}", p["range"], p["meaning"]] for p in row["parameters"]],
            left=4,
        )
    console.table(
        "Goes with",
        ["", ""],
        [
            [k.replace("_", " "), v if isinstance(v, str) else "yes" if v else "no"]
            for k, v in row["compatible"].items()
        ],
        left=2,
    )
    if row["not_modelled"]:
        console.out(f"not modelled: {row['not_modelled']}")
    if row["policy"] != "dense":
        known = [f"{k}: {v}" if k != "note" else v for k, v in row["software"].items() if v]
        console.out(f"software: {'; '.join(known) or 'none known'}")


if __name__ == "__main__":
    console.main(app)
