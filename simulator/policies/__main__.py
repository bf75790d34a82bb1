"""The catalogue of policies: ``python -m simulator.policies [NAME]``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from simulator import console
from simulator.policies.base import Policy
from simulator.policies.grammar import POLICIES

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def command(
    name: Annotated[str | None, typer.Argument(help="one policy, with its parameters")] = None,
    json_: Annotated[bool, typer.Option("--json", help='{"rows": [...]} on stdout')] = False,
) -> None:
    """List the policies, or show one with its parameters, mechanism and limits."""
    rows = [_row(POLICIES[p]) for p in ([name] if name else POLICIES)]
    if json_:
        console.out_json({"rows": rows})
    elif name:
        _show(rows[0])
    else:
        console.table(
            f"{len(rows)} policies",
            ["policy", "family", "rewrites", "what it does", "citation"],
            [
                [
                    r["policy"],
                    r["family"],
                    ", ".join(r["rewrites"]) or "-",
                    r["summary"],
                    r["citation"],
                ]
                for r in rows
            ],
            left=5,
            note="join with +: 'mustafar(keep=0.3)+w4a16'; two that rewrite the same thing are refused",
        )


def _row(cls: type[Policy]) -> dict[str, Any]:
    c = cls.compatibility
    return {
        "policy": cls.name,
        "family": cls.family,
        "summary": cls.summary,
        "citation": cls.citation,
        "rewrites": sorted(a.value for a in cls.aspects),
        "not_modelled": cls.not_modelled,
        "mechanism": (cls.__doc__ or "").strip(),
        "parameters": [
            {"name": k, "default": f.default, "meaning": f.description or ""}
            for k, f in cls.model_fields.items()
        ],
        "compatible": {
            "paged_kv": c.paged_kv,
            "prefix_cache": c.prefix_cache,
            "chunked_prefill": c.chunked_prefill,
            "speculative": c.speculative,
            "needs_scores": c.needs_scores,
            "extra_weight_layout": c.extra_layout,
            "gqa": c.gqa,
        },
    }


def _show(row: dict[str, Any]) -> None:
    console.out(f"{row['policy']}: {row['summary']}")
    console.out()
    console.out("    " + row["mechanism"])
    console.out()
    if row["parameters"]:
        console.table(
            "Parameters",
            ["name", "default", "meaning"],
            [[p["name"], f"{p['default']}", p["meaning"]] for p in row["parameters"]],
            left=3,
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


if __name__ == "__main__":
    console.main(app)
