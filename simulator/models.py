"""The catalogue of models: ``python -m simulator.models [NAME]``, ``python -m simulator.models --check PLACE...``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from simulator.base import console
from simulator.base.errors import EXIT_BAD_INPUT, InputError

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def command(
    names: Annotated[
        list[str] | None, typer.Argument(help="model names, folders, config.json or .gguf files, hub ids")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="what is read of each, and why not; a folder stands for all configs in it")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help='{"rows": [...]} on stdout')] = False,
) -> None:
    """List the bundled models, show what Shadowline reads from others, or check many at once.

    Exit 0; 2 bad input, also where --check finds a config that is not read.
    """
    from simulator.model.hub import find_model, list_models

    if check:
        _check(names or list(list_models()), json_)
        return
    rows = [row_of(find_model(m)) for m in names or list_models()]
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
                *(f"{r[k] or 0:,}" for k in ("layers", "hidden", "heads", "kv_heads", "intermediate", "max_context")),
                f"{r['kv_bytes_per_token']:,.0f}",
                r["dtype"],
            ]
            for r in rows
        ],
        left=2,
        note="KV bytes in 16 bit, on one GPU",
    )
    for row in rows if names else ():
        console.out(f"source of {row['model']}: {row['source']}")
        if row["tower_params"]:
            console.out(f"beside it: a vision tower of {row['tower_params']:,} parameters")
        for note in row["notes"]:
            console.out(f"note: {note}")


def _check(names: Sequence[str], as_json: bool) -> None:
    """One line for each config: what is read of it, or why it is not."""
    from simulator.model.hub import find_model

    rows: list[dict[str, Any]] = []
    for name in _configs(names):
        try:
            rows.append({"place": name, "refused": None, **row_of(find_model(name))})
        except InputError as error:
            rows.append({"place": name, "refused": str(error)})
    read = [r for r in rows if r["refused"] is None]
    if as_json:
        console.out_json({"rows": rows, "read": len(read)})
    else:
        if read:
            console.table(
                f"{len(read)} of {len(rows)} read",
                ["config", "architecture", "params", "active", "weights GB", "KV B/token", "state MB", "KV", "formats"],
                [
                    [
                        r["place"],
                        r["architecture"],
                        f"{r['params']:,}",
                        f"{r['active_params']:,}",
                        f"{r['weights_bytes'] / 1e9:.2f}",
                        f"{r['kv_bytes_per_token']:,.0f}",
                        f"{r['state_bytes'] / 1e6:,.1f}",
                        r["kv_dtype"] or "16 bit",
                        r["dtype"],
                    ]
                    for r in read
                ],
                left=2,
                note="weights on one GPU as engines load them; KV bytes in 16 bit; state of one sequence, however long",
            )
        told: dict[str, list[str]] = {}
        for r in read:
            for note in r["notes"]:
                told.setdefault(note, []).append(r["place"])
        for note, places in told.items():
            console.out(f"note: {places[0]}{f' and {len(places) - 1} more' if len(places) > 1 else ''}: {note}")
        for r in rows:
            if r["refused"] is not None:
                console.out(f"not read: {r['place']}: {r['refused'].removeprefix(r['place'] + ': ')}")
    if len(read) < len(rows):
        console.say(f"error: {len(rows) - len(read)} of {len(rows)} configs are not read")
        raise typer.Exit(EXIT_BAD_INPUT)


def _configs(names: Sequence[str]) -> Iterator[str]:
    """Each name, and each config and GGUF file that lies in a folder which is no model itself."""
    from simulator.model.gguf.header import parts_of
    from simulator.model.hub import GGUF

    for name in names:
        folder = Path(name).expanduser()
        if not folder.is_dir() or (folder / "config.json").is_file():
            yield name
            continue
        found = sorted({*folder.glob("*.json"), *folder.rglob("config.json")})
        found = [file for file in found if not file.name.endswith(("quant_config.json", "quantize_config.json"))]
        found += sorted({parts_of(file)[0] for file in folder.rglob(f"*{GGUF}")})
        if not found:
            raise InputError("holds no config.json, no other .json and no .gguf file", where=name)
        yield from map(str, found)


def row_of(model: Any) -> dict[str, Any]:
    """The line of the catalogue for one `ModelSpec`, as `--json` prints it."""
    from simulator.base.dtypes import get_format
    from simulator.inference.formats import folded, told
    from simulator.inference.lowering import Lowering
    from simulator.inference.memory import weights_bytes
    from simulator.policies import Policies

    attention = model.attentions[0][0] if model.attentions else None
    ffn = model.feed_forwards[-1][0] if model.feed_forwards else None
    stored, fmt = folded(model, get_format(model.dtype))
    return {
        "model": model.name,
        "architecture": model.architecture,
        "params": model.n_params,
        "active_params": model.n_active_params,
        "tower_params": model.tower.n_params if model.tower else 0,
        "layers": model.n_layers,
        "hidden": model.hidden,
        "heads": attention and attention.n_heads,
        "kv_heads": attention and attention.n_kv_heads,
        "intermediate": ffn and ffn.intermediate,
        "max_context": model.max_context,
        "kv_bytes_per_token": model.kv_bytes_per_token(2.0),
        "state_bytes": model.state_bytes(),
        "weights_bytes": weights_bytes(Lowering(stored, Policies(), fmt, 2.0)),
        "dtype": told(stored, fmt),
        "kv_dtype": model.kv_dtype,
        "notes": list(model.notes),
        "source": model.source,
    }


if __name__ == "__main__":
    console.main(app)
