"""Cases of what a verb wrote, and of the app: traces, reports, links, uploads, pages."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

from fuzz_asked import configs, measured, profiles
from fuzz_case import Case
from fuzz_inputs import NUMBERS, WORDS, as_json, edited, edited_table, edited_tree
from fuzz_valid import LINKS, PAGES, PARAMETERS, TRACE, made, trace_table, trace_tables
from hypothesis import strategies as st

from simulator.results.columns import SCHEMA_VERSION


@st.composite
def traces(draw: Any) -> Case:
    import pyarrow.parquet as pq

    manifest, tables = trace_tables()
    manifest = json.loads(json.dumps(manifest))
    files = {}
    changed = draw(st.sampled_from(("", *tables)))
    for name, table in tables.items():
        if name == changed:
            content = draw(edited_table(table))
        else:
            content = trace_table(name)
        files[name] = content
        try:
            rows = pq.read_metadata(io.BytesIO(content)).num_rows
        except Exception:  # noqa: BLE001 - bytes that are no Parquet any more
            rows = table.num_rows
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "rows": rows}
    if not changed or draw(st.integers(0, 3)) == 0:
        manifest = draw(edited_tree([manifest], ("files", "facts", "n_layers", "settings")))
    files["manifest.json"] = as_json(manifest).encode("utf-8", "surrogatepass")
    files = {f"t/{k}": v for k, v in files.items()}
    verb = draw(st.sampled_from(("trace", "trace", "predict", "own_trace", "report")))
    if verb == "predict":
        model = str(TRACE / "model")
        return Case(
            verb,
            (
                "--model",
                model,
                "--device",
                "h100-sxm",
                "--trace",
                "@/t",
                "--policy",
                "shadowllm(keep=0.5)",
                "--prompt-tokens",
                "64",
                "--output-tokens",
                "32",
                "--json",
            ),
            files,
        )
    if verb == "own_trace":
        return Case(verb, tuple(f"@/{n}" for n in files), files)
    if verb == "report":
        return _report(draw, "@/t", files)
    return Case(verb, (draw(st.sampled_from(("check", "union"))), "@/t", "--json"), files)


@st.composite
def _metadata(draw: Any, told: dict[str, bytes]) -> dict[str, bytes]:
    """Metadata with one value edited as text, or as the JSON it holds."""
    if not told:
        return {"shadowline.schema": str(SCHEMA_VERSION).encode()}
    key = draw(st.sampled_from(sorted(told)))
    text = told[key].decode("utf-8", "replace")
    if text[:1] in "[{" and draw(st.booleans()):
        new = as_json(draw(edited_tree([json.loads(text)])))
    else:
        new = draw(edited([text]))
    if draw(st.integers(0, 5)) == 0:
        return {k: v for k, v in told.items() if k != key}
    return {**told, key: new.encode("utf-8", "surrogatepass")}


@st.composite
def sweep_reports(draw: Any) -> Case:
    args = ["@/s.parquet", "-o", "@/o/r.html"]
    files = {"s.parquet": draw(edited_table(made()["sweep"], _metadata))}
    if draw(st.integers(0, 5)) == 0:
        args += [
            f"--title={draw(st.sampled_from(WORDS))}",
            f"--notes={draw(edited(['a note', '@/n.txt', '@'], WORDS, most=2))}",
        ]
        files["n.txt"] = draw(st.sampled_from(WORDS)).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        args += ["--logo", "@/l.svg"]
        files["l.svg"] = draw(
            edited(['<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'])
        ).encode("utf-8", "surrogatepass")
    return Case("report", tuple(args), files) if len(args) > 3 else _report(draw, args[0], files)


def _report(draw: Any, source: str, files: Mapping[str, bytes]) -> Case:
    """Every fifth report is drawn."""
    if draw(st.integers(0, 4)):
        return Case("compose", (source,), files)
    return Case("report", (source, "-o", "@/o/r.html"), files)


@st.composite
def answer_reports(draw: Any) -> Case:
    kind = draw(st.sampled_from(("serve", "plan", "claims")))
    if kind == "serve":
        return _report(draw, "@/r.parquet", {"r.parquet": draw(edited_table(made()["serve"], _metadata))})
    tree = made()[kind]
    if draw(st.integers(0, 3)):
        text = as_json(draw(edited_tree([tree])))
    else:
        text = draw(edited([json.dumps(tree, indent=0)]))
    return _report(draw, f"@/{kind}.json", {f"{kind}.json": text.encode("utf-8", "surrogatepass")})


@st.composite
def links(draw: Any) -> Case:
    if draw(st.integers(0, 3)):
        return Case("link", (draw(edited(LINKS, PARAMETERS, most=4)),))
    from simulator.scenario.scenario import Scenario

    seeds = [Scenario.from_query(q).to_dict() for q in LINKS[:3]]
    return Case("scenario_json", (as_json(draw(edited_tree(seeds, PARAMETERS))),))


@st.composite
def uploads(draw: Any) -> Case:
    name = draw(edited(("mine", "my-h100", "h100-sxm", "../x", "a.b"), WORDS, most=2))
    name = name.replace("@/", "")
    if draw(st.booleans()):
        case = draw(profiles())
        return Case("own_device", (name, "@/d.toml"), case.files)
    case = draw(configs())
    return Case("own_model", (name, "@/config.json"), case.files)


@st.composite
def pages(draw: Any) -> Case:
    from urllib.parse import quote

    view = draw(st.sampled_from(sorted(PAGES)))
    query = draw(edited(LINKS, PARAMETERS, most=2))
    for key in draw(st.lists(st.sampled_from(PAGES[view]), max_size=3)) if PAGES[view] else ():
        value = draw(
            st.sampled_from(
                ("1", "batch", "tp", "h100-sxm", "a file", "kernels", "measured rows", "1,2", *NUMBERS, *WORDS)
            )
        )
        query += f"&{key}={quote(value, errors='surrogatepass')}"
    kind = draw(st.integers(0, 3))
    if view == "catalogue" and kind == 0:
        case = draw(profiles())
        return Case("page", (view, query, "c.toml", "@/d.toml"), case.files)
    if view == "validation" and kind < 2:
        if kind == 0:
            case = draw(measured())
            return Case("page", (view, LINKS[0] + "&v.what=measured rows&v.kind=gemm", "v.file", "@/m.csv"), case.files)
        rows = [{"op": "teal", "operand": "w", "predicted_bytes": 10, "recorded_bytes": 10, "agrees": True}] * 2
        text = as_json(draw(edited_tree([{"rows": rows}])))
        return Case(
            "page",
            (view, LINKS[0] + "&v.what=kernel traffic", "v.traffic", "@/traffic.json"),
            {"traffic.json": text.encode("utf-8", "surrogatepass")},
        )
    return Case("page", (view, query))
