"""One operation on a card: ``python -m simulator.op 'gemm(m=16,n=11008,k=4096)'``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simulator.base import console
from simulator.base.errors import InputError

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def command(
    op: Annotated[str | None, typer.Argument(help="name(key=value,...); a number may be a range 1:4096:x2")] = None,
    device: Annotated[list[str] | None, typer.Option(help="device, several with commas, or repeat the flag")] = None,
    dtype: Annotated[str, typer.Option(help="number formats, with commas")] = "bf16",
    kernel: Annotated[str, typer.Option(help="libraries of its kernels, with commas; default the engine's")] = "",
    engine: Annotated[str, typer.Option(help="engines whose kernels run it, with commas")] = "kernels",
    versus: Annotated[str, typer.Option(help="another op: how much faster OP is")] = "",
    out: Annotated[Path | None, typer.Option(help="FILE.parquet of every point")] = None,
    list_: Annotated[bool, typer.Option("--list", help="the ops, their values and units")] = False,
    json_: Annotated[bool, typer.Option("--json", help='{"rows": [...]} on stdout')] = False,
) -> None:
    """Time one op, with its interval, what binds it and how far it is from the roofline.

    Exit 0; 2 bad input, or an op that no device given can run.
    """
    from simulator.results import op_shown

    if list_:
        if op is not None:
            raise InputError("explains all ops; drop the op", where="--list")
        op_shown.list_ops(as_json=json_)
        return
    if op is None:
        raise InputError("is needed, e.g. 'gemm(m=16,n=11008,k=4096)'; --list has all", where="OP")
    if not device:
        raise InputError("is needed, e.g. --device h100-sxm", where="--device")
    from simulator.base.files import refuse_overwriting
    from simulator.results.one_op import ask
    from simulator.scenario.grid import names
    from simulator.scenario.options import paths_of

    if out is not None:
        op_shown.refuse_suffix(out)
        refuse_overwriting([("--out", out)], paths_of({"device": device}))
    points = ask(
        op,
        names(device, "--device"),
        dtype=names([dtype], "--dtype"),
        kernel=names([kernel], "--kernel") if kernel else ("",),
        engine=names([engine], "--engine"),
        versus=versus,
    )
    if out is not None:
        op_shown.write(points, out)
    if json_:
        console.out_json({"rows": [row for of in points for row in op_shown.rows(of)]})
    else:
        op_shown.show(op, points, out)


if __name__ == "__main__":
    console.main(app)
