"""The catalogue of models: ``python -m simulator.models [NAME]``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from simulator.base import console

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def command(
    name: Annotated[str | None, typer.Argument(help="model name, folder, config.json or hub id")] = None,
    json_: Annotated[bool, typer.Option("--json", help='{"rows": [...]} on stdout')] = False,
) -> None:
    """List the bundled models, or show what Shadowline reads from one."""
    from simulator.model.hub import find_model, list_models

    rows = [row_of(find_model(m)) for m in ([name] if name else list_models())]
    if json_:
        console.out_json({"rows": rows})
        return
    console.table(
        f"{len(rows)} model{'s' if len(rows) != 1 else ''}",
        [
            "model",
            "architecture",
            "params",
            "active",
            "layers",
            "hidden",
            "heads",
            "KV heads",
            "FFN",
            "context",
            "KV B/token",
            "dtype",
        ],
        [
            [
                r["model"],
                r["architecture"],
                f"{r['params'] / 1e9:.3g}B",
                f"{r['active_params'] / 1e9:.3g}B",
                *(f"{r[k]:,}" for k in ("layers", "hidden", "heads", "kv_heads", "intermediate", "max_context")),
                f"{r['kv_bytes_per_token']:,.0f}",
                r["dtype"],
            ]
            for r in rows
        ],
        left=2,
        note="KV bytes in 16 bit, on one GPU",
    )
    if name:
        console.out(f"source: {rows[0]['source']}")
        for note in rows[0]["notes"]:
            console.out(f"note: {note}")


def row_of(model: Any) -> dict[str, Any]:
    """The line of the catalogue for one `ModelSpec`, as `--json` prints it."""
    from simulator.base.dtypes import get_format
    from simulator.inference.formats import folded, told
    from simulator.model.layer import MoeSpec

    first, last = model.layers[0], model.layers[-1]
    ffn = last.ffn.expert if isinstance(last.ffn, MoeSpec) else last.ffn
    return {
        "model": model.name,
        "architecture": model.architecture,
        "params": model.n_params,
        "active_params": model.n_active_params,
        "layers": model.n_layers,
        "hidden": model.hidden,
        "heads": first.attention.n_heads,
        "kv_heads": first.attention.n_kv_heads,
        "intermediate": ffn.intermediate,
        "max_context": model.max_context,
        "kv_bytes_per_token": model.kv_bytes_per_token(2.0),
        "dtype": told(*folded(model, get_format(model.dtype))),
        "kv_dtype": model.kv_dtype,
        "notes": list(model.notes),
        "source": model.source,
    }


if __name__ == "__main__":
    console.main(app)
