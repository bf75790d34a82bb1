"""The catalogue of devices: ``python -m simulator.devices [NAME]``."""

from __future__ import annotations

from textwrap import shorten
from typing import Annotated, Any

import typer

from simulator.base import console
from simulator.base.errors import InputError

MOST_SAID = 300
"""Characters of what is wrong with a profile; asked for by name, it says all."""
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def command(
    name: Annotated[str | None, typer.Argument(help="one device, with every number's source")] = None,
    toml: Annotated[bool, typer.Option("--toml", help="print the profile, to copy and edit")] = False,
    json_: Annotated[bool, typer.Option("--json", help='{"rows": [...]} on stdout')] = False,
) -> None:
    """List the devices, or show one with the source and kind of every number."""
    from simulator.device.catalogue import list_devices, load, to_toml

    if toml and (name is None or json_):
        raise InputError("prints one profile; write NAME --toml without --json", where="--toml")
    if name is not None:
        device = load(name)
        if toml:
            console.out(to_toml(device))
            return
        facts = [
            {
                "device": device.name,
                "number": path,
                "value": s.value,
                "unit": s.unit,
                "kind": s.kind,
                "source": s.source,
                "note": s.note,
            }
            for path, s in device.facts()
        ]
        if json_:
            console.out_json({"rows": facts})
        else:
            console.table(
                f"{device.name} ({device.vendor} {device.arch}), profile {device.profile_hash}",
                ["number", "value", "kind", "source", "note"],
                [
                    [f["number"], s.text, f["kind"], f["source"], f["note"]]
                    for f, (_, s) in zip(facts, device.facts(), strict=True)
                ],
                left=5,
            )
        return
    rows = []
    for known in list_devices():
        try:
            rows.append(row_of(load(known)))
        except InputError as error:
            console.say(f"warning: left out: {shorten(str(error), MOST_SAID)}")
    if json_:
        console.out_json({"rows": rows})
    else:
        console.table(
            f"{len(rows)} devices",
            [
                "device",
                "arch",
                "SMs",
                "GB",
                "GB/s",
                "16-bit TFLOP/s",
                "fp8 TFLOP/s",
                "GPU link GB/s",
                "W",
                "$/h",
                "measured families",
            ],
            [
                [
                    r["device"],
                    r["arch"],
                    f"{r['sm_count']}",
                    *(
                        console.number(r[k])
                        for k in (
                            "capacity_gb",
                            "bandwidth_gb_per_s",
                            "tflop16_per_s",
                            "tflop8_per_s",
                            "link_gb_per_s",
                            "power_w",
                            "usd_per_h",
                        )
                    ),
                    ", ".join(r["measured"]) or "-",
                ]
                for r in rows
            ],
            left=2,
            note="peaks dense at boost clock; link one way per GPU; `python -m simulator.devices NAME` has sources",
        )


def row_of(device: Any) -> dict[str, Any]:
    """The line of the catalogue for one `Device`, as `--json` prints it."""
    from simulator.base.dtypes import DType

    half = DType.BF16 if device.has(DType.BF16) else DType.FP16 if device.has(DType.FP16) else None
    families = ("gemm", "attention", "collective", "moe", "elementwise")
    return {
        "device": device.name,
        "vendor": device.vendor,
        "arch": device.arch,
        "sm_count": device.sm_count,
        "capacity_gb": device.capacity_bytes / 1e9,
        "bandwidth_gb_per_s": device.hbm_bytes_per_s / 1e9,
        "tflop16_per_s": device.peak_flop_per_s(half) / 1e12 if half else None,
        "tflop8_per_s": device.peak_flop_per_s(DType.FP8) / 1e12 if device.has(DType.FP8) else None,
        "link_gb_per_s": device.link.bandwidth_bytes_per_s / 1e9 if device.links else None,
        "power_w": device.power_w,
        "usd_per_h": device.price_usd_per_h.value,
        "measured": [f for f in families if device.measured.own(f)],
        "profile": device.profile_hash,
    }


if __name__ == "__main__":
    console.main(app)
