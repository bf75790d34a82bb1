"""Cases of what a person writes: profiles, configs, flags, grids, requests, measured and published rows."""

from __future__ import annotations

import json
from typing import Any

from fuzz_case import Case
from fuzz_inputs import NUMBERS, WORDS, as_json, edited, edited_bytes, edited_table, edited_tree
from fuzz_valid import (
    AZURE,
    BURST,
    FLAGS,
    GRID,
    MEASURED,
    MODELS,
    MOONCAKE,
    NAMES,
    OWN,
    RANGES,
    SERVED,
    SMALL,
    claim_texts,
    config_trees,
    profile_texts,
    read,
    request_table,
    spellings,
    split,
)
from gguf_bytes import FACTS, TENSORS, gguf
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
        return Case("devices", ("@/d.toml", *draw(st.sampled_from(((), ("--json",), ("--toml",))))), files)
    policy = draw(st.sampled_from(("dense", "teal(keep=0.5)", "kv_quant(bits=4)", "nm24")))
    return Case("predict", ("--model", "opt-125m", "--device", "@/d.toml", "--policy", policy, "--json"), files)


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
        return Case(verb, ("@/config.json", "--json") if draw(st.booleans()) else ("@/config.json",), files)
    if verb == "own_model":
        name = draw(st.sampled_from(("mine", "x1")) | st.sampled_from(WORDS))
        return Case(verb, (name, "@/config.json"), files)
    policy = draw(st.sampled_from(("dense", "quest(budget=64)", "w4a16", "shadowllm(keep=0.5)")))
    return Case(verb, ("--model", "@/config.json", "--device", "h100-sxm", "--policy", policy, "--json"), files)


@st.composite
def gguf_files(draw: Any) -> Case:
    facts, tensors = dict(FACTS), list(TENSORS)
    for _ in range(draw(st.integers(0, 3))):
        key = draw(st.sampled_from(sorted(facts)))
        how = draw(st.sampled_from(("drop", "number", "text", "list")))
        numbers = st.sampled_from((0, 1, 2, 3, 7, 64, 2**31, 2**32 - 1))
        values = {"number": numbers, "text": st.sampled_from(WORDS), "list": st.lists(numbers, max_size=3)}
        if how == "drop":
            del facts[key]
        else:
            facts[key] = draw(values[how])
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(tensors) - 1))
        name, shape, kind = tensors[at]
        size = draw(st.sampled_from((0, 1, 2, 255, 256, 2**32, 2**63)))
        changed = (
            (draw(st.sampled_from(WORDS)), shape, kind),
            (name, (*shape[1:], size), kind),
            (name, shape, size % 99),
        )
        tensors[at] = draw(st.sampled_from(changed))
    content = gguf(facts, tensors)
    if draw(st.booleans()):
        content = draw(edited_bytes(content))
    file = draw(st.sampled_from(("f.gguf", "f.gguf", "f-00001-of-00001.gguf", "f-00001-of-00002.gguf")))
    verb = draw(st.sampled_from(("models", "predict")))
    if verb == "models":
        return Case(verb, (f"@/{file}", "--json"), {file: content})
    policy = draw(st.sampled_from(("dense", "quest(budget=64)", "kv_quant(bits=4)")))
    return Case(verb, ("--model", f"@/{file}", "--device", "rtx-4090", "--policy", policy, "--json"), {file: content})


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
    return Case(verb, ("--model", model, "--device", device, f"--policy={draw(spelled())}", *more, "--json"))


@st.composite
def ranges(draw: Any) -> Case:
    args = list(SMALL)
    for flag in draw(
        st.lists(st.sampled_from(split("batch prompt-tokens output-tokens tp pp ep")), min_size=1, max_size=3)
    ):
        args.append(f"--{flag}={draw(edited(RANGES, NUMBERS, most=3))}")
    if draw(st.integers(0, 2)) == 0:
        flag = draw(
            st.sampled_from(split("model device engine dtype kv-cache-dtype gpu-memory-utilization block-size"))
        )
        args.append(f"--{flag}={draw(edited(NAMES, NUMBERS, most=2))}")
    return Case("sweep", (*args, *draw(st.sampled_from((("--json",), (), ("--out", "@/o.parquet", "--quiet"))))))


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
    return Case("sweep", ("--grid", "@/g.toml", "--json"), {"g.toml": text.encode("utf-8", "surrogatepass")})


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
        st.sampled_from(((), ("--skip-invalid",), ("--rate", "5"), ("--prefix-cache",), ("--reuse", "prefix-groups")))
    )
    return Case("serve", (*SERVED, "--requests", f"@/r{kind}", *more), {f"r{kind}": content})


@st.composite
def traffic(draw: Any) -> Case:
    vocabulary = split("mean cv low high tokens p99 ttft tpot < ms s us GB/s lognormal poisson swap")
    base = {"--prompt-tokens": "lognormal(mean=100,cv=1)", "--output-tokens": "20", "--rate": "5", "--count": "20"}
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
                    in split("--prompt-tokens --output-tokens --rate --count --arrivals --slo --seed")
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
def measured(draw: Any) -> Case:
    text = draw(
        edited([MEASURED["gemm"]], (*MEASURED["gemm"].split("\n", 1)[0].split(","), "rtx-4090", "fp8", "attention"))
    )
    files = {"m.csv": text.encode("utf-8", "surrogatepass")}
    kind = draw(st.sampled_from(split("gemm gemm gemm attention moe collective elementwise sparse e2e")))
    if draw(st.integers(0, 2)):
        return Case(
            "validate",
            ("--kind", kind, "--data", "@/m.csv", "--json", *draw(st.sampled_from(((), ("--holdout", "0.3"))))),
            files,
        )
    return Case("calibrate", ("--kind", kind, "--data", "@/m.csv", "--out", "@/fits", "--json"), files)


@st.composite
def fit_files(draw: Any) -> Case:
    tokens = split("schema [[fit]] residual coefficients classes [fit.surface] axes knots values")
    text = draw(edited([read("hw_profiles", "measured", "t4", "elementwise.toml")], tokens))
    return Case("fits", ("@/f.toml",), {"f.toml": text.encode("utf-8", "surrogatepass")})
