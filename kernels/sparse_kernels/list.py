"""The catalogue of kernels: ``python -m sparse_kernels.list [--json]``."""

from __future__ import annotations

from typing import Annotated

import typer

from simulator.base import console

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def command(json_: Annotated[bool, typer.Option("--json", help='{"rows": [...]} on stdout')] = False) -> None:
    """List the kernels: what each does, the dense kernel it must beat, and its cases."""
    from sparse_kernels import interpreter

    interpreter.require_libraries()
    from sparse_kernels.registry import kernels

    found = sorted(kernels().values(), key=lambda k: (k.family != "dense", k.family, k.name))
    if json_:
        rows = [
            {
                "op": k.name,
                "family": k.family,
                "summary": k.summary,
                "citation": k.citation,
                "dense": k.dense,
                "tolerance": {
                    "relative": k.tolerance.relative,
                    "absolute": k.tolerance.absolute,
                    "reason": k.tolerance.reason,
                },
                "explained": [e.reason for e in k.explained],
                "cases": [
                    {"name": c.name, "sizes": dict(c.sizes), "dtype": c.dtype, "keep": c.keep, "uses": sorted(c.uses)}
                    for c in k.cases
                ],
            }
            for k in found
        ]
        console.out_json({"rows": rows})
        return
    console.table(
        f"{len(found)} kernels",
        ["kernel", "family", "what it does", "to beat", "cases", "citation"],
        [[k.name, k.family, k.summary, k.dense or "-", f"{len(k.cases)}", k.citation] for k in found],
        left=4,
        note="to beat: the dense kernel of the same job; --json has the cases",
    )


if __name__ == "__main__":
    console.main(app)
