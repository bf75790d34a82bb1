"""Everything that reads what somebody else wrote: a strategy of cases for each."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

from fuzz_case import Case
from fuzz_inputs import NUMBERS, WORDS, as_json, edited, edited_bytes, edited_table, edited_tree
from fuzz_valid import (
    AZURE,
    BURST,
    FLAGS,
    GRID,
    LINKS,
    MEASURED,
    MODELS,
    MOONCAKE,
    NAMES,
    OWN,
    PAGES,
    PARAMETERS,
    RANGES,
    SERVED,
    SMALL,
    TRACE,
    claim_texts,
    config_trees,
    made,
    profile_texts,
    read,
    request_table,
    spellings,
    split,
    trace_table,
    trace_tables,
)
from hypothesis import strategies as st


@st.composite
def profiles(draw: Any) -> Case:
    tokens = (
        "[compute.bf16]",
        "[[memory]]",
        "value",
        "source",
        "kind",
        "TB/s",
        "TFLOP/s",
        "GB",
        "GHz",
        '"hbm"',
        "price",
        "true",
        "{}",
        "[]",
        "'''",
    )
    text = draw(edited(profile_texts(), tokens))
    content = (
        draw(edited_bytes(text.encode("utf-8", "surrogatepass")))
        if draw(st.integers(0, 9)) == 0
        else text.encode("utf-8", "surrogatepass")
    )
    files = {"d.toml": content}
    if draw(st.booleans()):
        return Case(
            "devices", ("@/d.toml", *draw(st.sampled_from(((), ("--json",), ("--toml",))))), files
        )
    policy = draw(st.sampled_from(("dense", "teal(keep=0.5)", "kv_quant(bits=4)", "nm24")))
    return Case(
        "predict",
        ("--model", "opt-125m", "--device", "@/d.toml", "--policy", policy, "--json"),
        files,
    )


@st.composite
def configs(draw: Any) -> Case:
    keys = sorted({k for c in config_trees() for k in c})
    if draw(st.integers(0, 3)):
        text = as_json(draw(edited_tree(config_trees(), keys)))
    else:
        text = draw(edited([json.dumps(c, indent=1) for c in config_trees()], keys))
    files = {"config.json": text.encode("utf-8", "surrogatepass")}
    verb = draw(st.sampled_from(("models", "models", "predict", "own_model")))
    if verb == "models":
        return Case(
            verb, ("@/config.json", "--json") if draw(st.booleans()) else ("@/config.json",), files
        )
    if verb == "own_model":
        name = draw(st.sampled_from(("mine", "x1")) | st.sampled_from(WORDS))
        return Case(verb, (name, "@/config.json"), files)
    policy = draw(st.sampled_from(("dense", "quest(budget=64)", "w4a16", "shadowllm(keep=0.5)")))
    return Case(
        verb,
        ("--model", "@/config.json", "--device", "h100-sxm", "--policy", policy, "--json"),
        files,
    )


@st.composite
def spelled(draw: Any) -> str:
    seeds, words = spellings()
    text = draw(edited(seeds, words, most=3))
    return f"{text}+{draw(edited(seeds, words, most=1))}" if draw(st.integers(0, 3)) == 0 else text


@st.composite
def policies(draw: Any) -> Case:
    verb = draw(st.sampled_from(("predict", "predict", "sweep")))
    model = draw(st.sampled_from(MODELS))
    device = draw(st.sampled_from(("h100-sxm", "rtx-4090")))
    more = () if verb == "sweep" else ("--batch", draw(st.sampled_from(("1", "16"))))
    return Case(
        verb, ("--model", model, "--device", device, f"--policy={draw(spelled())}", *more, "--json")
    )


@st.composite
def ranges(draw: Any) -> Case:
    args = list(SMALL)
    for flag in draw(
        st.lists(
            st.sampled_from(split("batch prompt-tokens output-tokens tp pp ep")),
            min_size=1,
            max_size=3,
        )
    ):
        args.append(f"--{flag}={draw(edited(RANGES, NUMBERS, most=3))}")
    if draw(st.integers(0, 2)) == 0:
        flag = draw(
            st.sampled_from(
                split("model device engine dtype kv-cache-dtype gpu-memory-utilization block-size")
            )
        )
        args.append(f"--{flag}={draw(edited(NAMES, NUMBERS, most=2))}")
    return Case(
        "sweep",
        (*args, *draw(st.sampled_from((("--json",), (), ("--out", "@/o.parquet", "--quiet"))))),
    )


@st.composite
def sweep_files(draw: Any) -> Case:
    tokens = (
        "grid",
        "[[grid]]",
        "model",
        "device",
        "policy",
        "batch",
        "tp",
        "trace",
        "trace_transfer",
        "output_tokens",
        "dtype",
        "engine",
        "1:64:x2",
        "1979-05-27",
        "[",
        "{",
        "true",
        '""',
    )
    text = draw(edited([GRID], tokens))
    return Case(
        "sweep", ("--grid", "@/g.toml", "--json"), {"g.toml": text.encode("utf-8", "surrogatepass")}
    )


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
def requests(draw: Any) -> Case:
    kind = draw(st.sampled_from((".csv", ".csv", ".jsonl", ".parquet")))
    if kind == ".parquet":
        content = draw(edited_table(request_table()))
    else:
        tokens = (
            ",",
            "\n",
            "\r",
            '"',
            "2023-11-16",
            "NaT",
            "9999-12-31",
            "hash_ids",
            "timestamp",
            "[",
            "]",
            "{",
            "}",
            "-1e400",
        )
        seeds = [MOONCAKE] if kind == ".jsonl" else [AZURE, BURST, OWN]
        text = draw(edited(seeds, tokens))
        if kind == ".csv" and draw(st.integers(0, 40)) == 0:
            wide = draw(st.sampled_from((1000, 200_000)))
            text = "\n".join(line + "," * wide for line in text.split("\n"))
        content = text.encode("utf-8", "surrogatepass")
    more = draw(
        st.sampled_from(
            (
                (),
                ("--skip-invalid",),
                ("--rate", "5"),
                ("--prefix-cache",),
                ("--reuse", "prefix-groups"),
            )
        )
    )
    return Case("serve", (*SERVED, "--requests", f"@/r{kind}", *more), {f"r{kind}": content})


@st.composite
def traffic(draw: Any) -> Case:
    vocabulary = split(
        "mean cv low high tokens p99 ttft tpot < ms s us GB/s lognormal poisson swap"
    )
    base = {
        "--prompt-tokens": "lognormal(mean=100,cv=1)",
        "--output-tokens": "20",
        "--rate": "5",
        "--count": "20",
    }
    for flag in draw(st.lists(st.sampled_from(sorted(FLAGS)), min_size=1, max_size=3, unique=True)):
        base[flag] = draw(edited(FLAGS[flag], vocabulary, most=3))
    if _large(base["--count"]):
        base["--count"] = "20"
    args = [f"{k}={v}" for k, v in base.items()]
    if draw(st.integers(0, 9)) == 0:
        return Case(
            "plan",
            (
                *SMALL[:2],
                "--device=h100-sxm",
                "--tp=1",
                *[
                    a
                    for a in args
                    if a.split("=")[0]
                    in split(
                        "--prompt-tokens --output-tokens --rate --count --arrivals --slo --seed"
                    )
                ],
                "--max-gpus=2",
                "--json",
                "--quiet",
            ),
        )
    return Case("serve", (*SMALL, *args, "--json", "--quiet"))


def _large(text: str) -> bool:
    """A count that takes long by right."""
    try:
        return int(text) > 2000
    except ValueError:
        return False


@st.composite
def _metadata(draw: Any, told: dict[str, bytes]) -> dict[str, bytes]:
    """Metadata with one value edited as text, or as the JSON it holds."""
    if not told:
        return {"shadowline.schema": b"1"}
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
            edited(
                [
                    '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'
                ]
            )
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
        return _report(
            draw, "@/r.parquet", {"r.parquet": draw(edited_table(made()["serve"], _metadata))}
        )
    tree = made()[kind]
    if draw(st.integers(0, 3)):
        text = as_json(draw(edited_tree([tree])))
    else:
        text = draw(edited([json.dumps(tree, indent=0)]))
    return _report(draw, f"@/{kind}.json", {f"{kind}.json": text.encode("utf-8", "surrogatepass")})


@st.composite
def claim_files(draw: Any) -> Case:
    tokens = split(
        "ops scenario metric value speedup latency_s tokens_per_s baseline_scenario "
        "[[claims]] true model device policy dtype gemm attention"
    )
    tomls, tables = claim_texts()
    suffix = draw(st.sampled_from((".toml", ".toml", ".csv")))
    text = draw(edited(tomls if suffix == ".toml" else tables, tokens, most=4))
    return Case("claims", (f"@/c{suffix}",), {f"c{suffix}": text.encode("utf-8", "surrogatepass")})


@st.composite
def links(draw: Any) -> Case:
    if draw(st.integers(0, 3)):
        return Case("link", (draw(edited(LINKS, PARAMETERS, most=4)),))
    from simulator.scenario import Scenario

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
def measured(draw: Any) -> Case:
    text = draw(
        edited(
            [MEASURED["gemm"]],
            (*MEASURED["gemm"].split("\n", 1)[0].split(","), "rtx-4090", "fp8", "attention"),
        )
    )
    files = {"m.csv": text.encode("utf-8", "surrogatepass")}
    kind = draw(
        st.sampled_from(split("gemm gemm gemm attention moe collective elementwise sparse e2e"))
    )
    if draw(st.integers(0, 2)):
        return Case(
            "validate",
            (
                "--kind",
                kind,
                "--data",
                "@/m.csv",
                "--json",
                *draw(st.sampled_from(((), ("--holdout", "0.3")))),
            ),
            files,
        )
    return Case(
        "calibrate", ("--kind", kind, "--data", "@/m.csv", "--out", "@/fits", "--json"), files
    )


@st.composite
def fit_files(draw: Any) -> Case:
    tokens = split("schema [[fit]] residual coefficients classes [fit.surface] axes knots values")
    text = draw(edited([read("hw_profiles", "measured", "t4", "elementwise.toml")], tokens))
    return Case("fits", ("@/f.toml",), {"f.toml": text.encode("utf-8", "surrogatepass")})


@st.composite
def pages(draw: Any) -> Case:
    from urllib.parse import quote

    view = draw(st.sampled_from(sorted(PAGES)))
    query = draw(edited(LINKS, PARAMETERS, most=2))
    for key in draw(st.lists(st.sampled_from(PAGES[view]), max_size=3)) if PAGES[view] else ():
        value = draw(
            st.sampled_from(
                (
                    "1",
                    "batch",
                    "tp",
                    "h100-sxm",
                    "a file",
                    "kernels",
                    "measured rows",
                    "1,2",
                    *NUMBERS,
                    *WORDS,
                )
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
            return Case(
                "page",
                (view, LINKS[0] + "&v.what=measured rows&v.kind=gemm", "v.file", "@/m.csv"),
                case.files,
            )
        rows = [
            {
                "op": "teal",
                "operand": "w",
                "predicted_bytes": 10,
                "recorded_bytes": 10,
                "agrees": True,
            }
        ] * 2
        text = as_json(draw(edited_tree([{"rows": rows}])))
        return Case(
            "page",
            (view, LINKS[0] + "&v.what=kernel traffic", "v.traffic", "@/traffic.json"),
            {"traffic.json": text.encode("utf-8", "surrogatepass")},
        )
    return Case("page", (view, query))


TARGETS: Mapping[str, Any] = {
    "profiles": profiles(),
    "configs": configs(),
    "policies": policies(),
    "ranges": ranges(),
    "sweep-files": sweep_files(),
    "traces": traces(),
    "requests": requests(),
    "traffic": traffic(),
    "sweep-reports": sweep_reports(),
    "answer-reports": answer_reports(),
    "claims": claim_files(),
    "links": links(),
    "uploads": uploads(),
    "measured": measured(),
    "fits": fit_files(),
    "pages": pages(),
}
"""Parser families by name."""
