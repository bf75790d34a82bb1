"""The same points through Shadowline and the pip-installable peers: ``make bench-peers``.

Points per second in process, one after another on one core, and the error on the same measured rows: splitwise and
FasterTransformer rows of e2e.parquet, and the anchors of ``peers_anchors.csv``. The peers live in .venv-peers, one
process each (`peer_adapters.py`). A peer that is absent, or says no to a row, is reported with its reason.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from peers_own import MODES, REFITTED, SPEED_DEVICE, SPEED_MODEL, own_answers, own_speed

# Before anything imports numpy.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

Row = dict[str, Any]
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PEERS = ("aiconfigurator", "llm-analysis", "genz-llm")
STEP_COLUMNS = ("source", "engine", "device", "model", "dtype", "tp", "batch", "prompt", "output", "metric", "time_s")


def facts(model: str) -> Row:
    """Sizes of a bundled model in plain words, for tools that bundle another set of models."""
    config = json.loads((ROOT / "hw_profiles" / "models" / f"{model}.json").read_text())

    def first(*names: str) -> int:
        return next(config[n] for n in names if n in config)

    hidden, heads = first("hidden_size", "n_embd"), first("num_attention_heads", "n_head")
    return {
        "type": config["model_type"],
        "hidden": hidden,
        "layers": first("num_hidden_layers", "n_layer"),
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads", heads),
        "ffn": config.get("intermediate_size", 4 * hidden),
        "gated": config["model_type"] == "llama",
        "vocab": config["vocab_size"],
        "context": first("max_position_embeddings", "seq_length", "n_positions"),
    }


def data_dir() -> Path:
    return Path(os.environ.get("SHADOWLINE_DATA", ROOT.parent / "shared" / "data"))


def measured() -> tuple[Any, str]:
    """(prepared step rows with an id, or None; why they are absent)."""
    import pandas as pd

    from simulator.fitting.e2e_rows import STEP_SOURCES, prepare

    path = data_dir() / "e2e.parquet"
    if not path.is_file():
        return None, "no e2e.parquet here: set SHADOWLINE_DATA to the folder that has it"
    raw = pd.read_parquet(path)
    rows, _ = prepare(raw[raw["source"].isin(STEP_SOURCES)])
    return rows.assign(id=range(len(rows))), ""


def anchors(start: int) -> list[Row]:
    """Anchors as decode steps: one output token at a context of exactly `context`."""
    with (HERE / "peers_anchors.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    return [
        {
            "id": start + i,
            "source": f"anchor ({line['made_by']})",
            "made_by": line["made_by"],
            "model": line["model"],
            "device": line["device"],
            "tp": 1,
            "batch": int(line["batch"]),
            "prompt": int(line["context"]) - 1,
            "output": 2,
            "metric": "tpot",
            "time_s": float(line["decode_ms"]) * 1e-3,
        }
        for i, line in enumerate(lines)
    ]


def grid_points(quick: bool) -> list[Row]:
    """Distinct (batch, prompt, output) of one model on one device, shuffled the same way in every run."""
    import numpy as np

    outputs = (64,) if quick else tuple(range(16, 176, 16))
    points = [
        {"id": 0, "model": SPEED_MODEL, "device": SPEED_DEVICE, "tp": 1, "batch": b, "prompt": p, "output": o}
        for b in range(1, 26)
        for p in range(64, 64 + 100 * 16, 16)
        for o in outputs
    ]
    return [points[i] for i in np.random.default_rng(0).permutation(len(points))]


def run_peer(name: str, python: Path, work: Row, timeout_s: float) -> Row:
    """What a peer's process answered, or {'missing': why}."""
    if not python.is_file():
        return {"missing": "its environment .venv-peers is absent: run `make bench-peers`"}
    command = [str(python), str(HERE / "peer_adapters.py"), name]
    try:
        done = subprocess.run(
            command, input=json.dumps(work), capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return {"missing": f"no answer within {timeout_s:.0f} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"missing": f"not installed or broken: {lines[-1]}"}
    return json.loads(done.stdout)


def compare(rows: list[Row], tools: dict[str, dict[int, float | str]]) -> Row:
    """Errors per group of rows and tool, refusals by reason, and each peer against Shadowline on its own rows."""
    import numpy as np

    truth = {row["id"]: row["time_s"] for row in rows}
    # A table cannot be judged by anchors that were read from it.
    own = {row["id"] for row in rows if row.get("made_by") == "aiconfigurator"}

    def errors(tool: str, ids: list[int]) -> Any:
        answered = [tools[tool].get(i) for i in ids]
        return np.array([a / truth[i] - 1.0 for a, i in zip(answered, ids, strict=True) if isinstance(a, float)])

    def figures(x: Any) -> Row:
        if len(x) == 0:
            return {"n": 0}
        ape = np.abs(x)
        return {
            "n": len(x),
            "median_ape": float(np.median(ape)),
            "p90_ape": float(np.quantile(ape, 0.9)),
            "bias": float(np.median(x)),
        }

    keys = ("source", "model", "device", "metric")
    groups: dict[tuple, list[int]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in keys), []).append(row["id"])
    table, refusals, pairs = [], [], []
    for tool, found in tools.items():
        judged = [i for i in truth if not (tool.startswith("aiconfigurator") and i in own)]
        reasons: Counter[str] = Counter()
        for key, ids in groups.items():
            mine = [i for i in ids if i in judged]
            entry = {**dict(zip(keys, key, strict=True)), "tool": tool, "asked": len(ids)}
            table.append({**entry, **figures(errors(tool, mine))} if mine else {**entry, "n": 0, "own": True})
            reasons.update((" ".join(key[:3]), str(found.get(i))) for i in ids if not isinstance(found.get(i), float))
        refusals += [{"tool": tool, "rows": k[0], "n": n, "why": k[1]} for k, n in reasons.items()]
        if tool not in MODES:
            both = [i for i in judged if isinstance(found.get(i), float) and isinstance(tools[REFITTED].get(i), float)]
            pairs.append(
                {"tool": tool, "peer": figures(errors(tool, both)), "shadowline": figures(errors(REFITTED, both))}
            )
    return {"groups": table, "refusals": refusals, "pairs": pairs}


def show(result: Row) -> None:
    print(
        "points per second in process, one core; the same points, at most "
        f"{result['limit_s']:g} s per call ({SPEED_MODEL} on {SPEED_DEVICE})"
    )
    for what, title in (("answer", "prefill and mean decode step"), ("step", "one decode step")):
        print(f"\n  {title}")
        for name, tool in result["tools"].items():
            for s in tool.get("speed", ()):
                if s["what"] == what:
                    rate = s["points"] / s["seconds"]
                    print(f"    {name:<15}{rate:>12,.0f}  {s['points']:>6,} points  {s['call']}")
    print("\nmedian error and bias on the same measured rows; (n) where not all were answered; own = its own anchor")
    found = result["errors"]["groups"]
    tools = list(dict.fromkeys(g["tool"] for g in found))
    for letter, tool in zip("ABCDEFGHIJKLMNOPQ", tools, strict=False):
        note = MODES.get(tool) or result["notes"].get(tool.split(" / ")[0], "")
        print(f"    {letter} {tool:<30} {note}")
    print(f"\n    {'rows':<56}{'n':>4}" + "".join(f"{c:>15}" for c in "ABCDEFGHIJKLMNOPQ"[: len(tools)]))
    for key in dict.fromkeys(tuple(g[k] for k in ("source", "model", "device", "metric")) for g in found):
        line = [g for g in found if tuple(g[k] for k in ("source", "model", "device", "metric")) == key]
        print(f"    {' '.join(key):<56}{line[0]['asked']:>4}" + "".join(f"{cell(g):>15}" for g in line))
    print("\neach peer on the rows it answers, and Shadowline (A) on those very rows: median, p90, bias")
    for pair in result["errors"]["pairs"]:
        a, b = pair["peer"], pair["shadowline"]
        if a["n"]:
            print(f"    {pair['tool']:<30} n={a['n']:<4} {text(a)}   shadowline {text(b)}")
    print("\nnot answered")
    for name, tool in result["tools"].items():
        if "missing" in tool:
            print(f"    {name}: {tool['missing']}")
    for r in result["errors"]["refusals"]:
        print(f"    {r['tool']}: {r['n']} of {r['rows']}: {r['why']}")
    if result["data"]:
        print(f"    all rows of e2e.parquet: {result['data']}")


def cell(g: Row) -> str:
    if g.get("own"):
        return "own"
    if not g["n"]:
        return "-"
    part = "" if g["n"] == g["asked"] else f" ({g['n']})"
    return f"{g['median_ape']:.0%} {g['bias']:+.0%}{part}"


def text(f: Row) -> str:
    return f"{f['median_ape']:6.1%} {f['p90_ape']:6.1%} {f['bias']:+6.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-peers" / "bin" / "python")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parser.add_argument("--limit", type=float, default=3.0, help="seconds per timed call")
    parser.add_argument("--budget", type=float, default=240.0, help="seconds per peer for the measured rows")
    parser.add_argument("--quick", action="store_true", help="a tenth of the points for the timing")
    args = parser.parse_args()

    table, why = measured()
    rows: list[Row] = []
    if table is not None:
        rows = [{"id": r["id"], **{k: r[k] for k in STEP_COLUMNS}} for r in table.to_dict("records")]
        for row in rows:
            row.update({k: int(row[k]) for k in ("tp", "batch", "prompt", "output")})
    extra = anchors(len(rows))
    # Anchors first: a slow peer may not get through all rows.
    rows = extra + rows
    tools = own_answers(table, extra)
    points = grid_points(args.quick)
    work = {
        "rows": rows,
        "models": {m: facts(m) for m in {*(r["model"] for r in rows), SPEED_MODEL}},
        "points": points,
        "limit_s": args.limit,
        "budget_s": args.budget,
    }
    results: dict[str, Row] = {"shadowline": {"speed": own_speed(points, args.limit)}}
    notes = {}
    for name in PEERS:
        results[name] = found = run_peer(name, args.python, work, args.budget + 20.0 * args.limit + 60.0)
        notes[name] = found.get("version", "")
        for answer in found.pop("answers", ()):
            mine = tools.setdefault(f"{name} / {answer['variant']}", {})
            mine[answer["id"]] = answer.get("time_s", answer.get("why"))
    result = {"limit_s": args.limit, "notes": notes, "data": why, "tools": results, "errors": compare(rows, tools)}
    show(result)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    sys.exit(main())
