"""Valid documents of every kind, and the words of their languages."""

from __future__ import annotations

import io
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from fuzz_case import REPO
from fuzz_verbs import VERBS


def split(text: str) -> tuple[str, ...]:
    """Words between spaces."""
    return tuple(text.split())


SMALL = ("--model", "opt-125m", "--device", "h100-sxm")


MODELS = split("opt-125m llama-3.1-8b mixtral-8x7b deepseek-v2-lite gemma-2-9b falcon-7b gpt-oss-20b")


def read(*parts: str) -> str:
    return REPO.joinpath(*parts).read_text("utf-8")


@lru_cache
def profile_texts() -> list[str]:
    return [read("hw_profiles", "devices", f"{d}.toml") for d in ("h100-sxm", "rtx-4090", "a100-sxm-80g")]


@lru_cache
def config_trees() -> list[Any]:
    plain = {m: json.loads(read("hw_profiles", "models", f"{m}.json")) for m in (*MODELS, "kimi-k2.5")}
    quantised = [
        {**plain[MODELS[-1]], "quantization_config": json.loads(table["config"])}
        for table in tomllib.loads(read("hw_profiles", "models", "quantised.toml")).values()
    ]
    return [plain["kimi-k2.5"], *quantised, *(plain[m] for m in MODELS)]


@lru_cache
def spellings() -> tuple[list[str], list[str]]:
    """Every policy at its defaults and with each parameter named, and all names."""
    from simulator.policies import POLICIES, expand

    seeds, words = [], []
    for name in POLICIES:
        cls = POLICIES[name]
        words += [name, *cls.model_fields]
        try:
            seeds.append(expand(name)[0].spelling)
        except Exception:  # noqa: BLE001 - some need a parameter
            seeds.append(f"{name}(keep=0.5)")
        seeds += [f"{name}({k}=0.5)" for k in cls.model_fields] + [f"{name}({k}=[1,4,64])" for k in cls.model_fields]
    return [*seeds, "mustafar(keep=0.3)+w4a16", "teal(keep=0.5)+kv_quant(bits=4)"], words


RANGES = split("1 1,4,16 1:64:x2 512:131072:x4 64:512:+64 1:9:5 1e3 1:1000000:x1.5")


NAMES = (*MODELS, "h100-sxm", "rtx-4090", "vllm", "kernels", "auto", "bf16", "fp8", "w4a16", "a100")


GRID = """[[grid]]
model = ["opt-125m", "llama-3.1-8b"]
device = "h100-sxm"
policy = ["dense", "teal(keep=0.5)"]
batch = "1,4"
prompt_tokens = [512, 1024]
tp = 1

[[grid]]
model = "opt-125m"
device = ["rtx-4090"]
batch = "1:16:x2"
engine = "kernels"
gpu_memory_utilization = 0.8
block_size = 32
ignore_context_limit = true
"""


TRACE = REPO / "traces" / "shipped" / "tiny-opt-py"


@lru_cache
def trace_tables() -> tuple[Any, dict[str, bytes]]:
    import pyarrow.parquet as pq

    folder = TRACE / "trace"
    files = {p.name: p.read_bytes() for p in sorted(folder.iterdir())}
    tables = {n: pq.read_table(io.BytesIO(c)) for n, c in files.items() if n.endswith(".parquet")}
    # A handful of rows of each kind is as much of a trace and quicker to write.
    small = {
        n: t if t.num_rows < 3000 else t.take(list(range(0, t.num_rows, -(-t.num_rows // 3000))))
        for n, t in tables.items()
    }
    return json.loads(files["manifest.json"]), small


@lru_cache
def trace_table(name: str) -> bytes:
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(trace_tables()[1][name], out)
    return out.getvalue()


AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,374,44
2023-11-16 18:17:04.0319600,396,109
2023-11-16 18:17:04.0781490,879,55
"""
BURST = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,276,693,API log
"""
OWN = "arrival_s,prompt_tokens,output_tokens\n0.0,100,20\n0.5,200,10\n2,64,1\n"


MOONCAKE = """{"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 7]}
{"timestamp": 1000, "input_length": 1099, "output_length": 6, "hash_ids": [0, 2, 7]}
{"timestamp": 2000, "input_length": 1098, "output_length": 7, "hash_ids": [0, 3, 7]}
"""
SERVED = split("--model opt-125m --device h100-sxm --count 50 --ignore-context-limit --json --quiet")


@lru_cache
def request_table() -> Any:
    import pyarrow as pa

    return pa.table({"arrival_s": [0.0, 0.5, 2.0], "prompt_tokens": [100, 200, 64], "output_tokens": [20, 10, 1]})


FLAGS: Mapping[str, Sequence[str]] = {
    "--prompt-tokens": ("512", "lognormal(mean=100,cv=1)", "uniform(low=10,high=200)", "exponential(mean=100)"),
    "--output-tokens": ("20", "lognormal(mean=20,cv=0.5)", "uniform(low=1,high=30)", "exponential(mean=20)"),
    "--arrivals": ("poisson", "gamma(cv=2)", "fixed"),
    "--slo": ("ttft:p99<2s;tpot:p99<60ms", "e2e:mean<10s", "itl:p50<=20ms"),
    "--reuse": (
        "chunk-reuse(reused=0.5,recompute=0.1)",
        "semantic-cache(hit=0.3,lookup_ms=5)",
        "example-routing(share=0.2)",
        "prefix-groups",
    ),
    "--rate": ("5", "0.1", "100"),
    "--rate-scale": ("1", "0.5,1,2"),
    "--count": ("1", "2", "50"),
    "--seed": ("0", "1"),
    "--kv-transfer": ("50 GB/s",),
    "--prefill-replicas": ("0", "1"),
    "--replicas": ("1", "2"),
    "--max-num-seqs": ("256", "1"),
    "--max-num-batched-tokens": ("8192", "1"),
    "--scheduler": ("chunked", "prefill-first", "prefill-first-chunked,chunked"),
    "--router": ("round-robin", "least-loaded", "prefix-aware"),
    "--preemption": ("recompute", "swap"),
    "--block-size": ("16", "1"),
    "--gpu-memory-utilization": ("0.9", "0.01"),
}


@lru_cache(maxsize=1)
def made() -> dict[str, Any]:
    """A sweep, per-request records, a plan and claims as the verbs write them."""
    import contextlib
    import tempfile

    import pyarrow.parquet as pq

    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        sizes = split(
            "--rate 5 --count 20 --prompt-tokens 100 --output-tokens 20 --quiet --slo ttft:p99<2s;tpot:p99<60ms"
        )
        calls = {
            "sweep": (
                *SMALL,
                *split("--policy dense --policy teal(keep=0.5) --batch 1,16 --quiet --out"),
                f"{at}/s.parquet",
            ),
            "serve": (*SMALL, *sizes, *split("--rate-scale 1,2"), "--out", f"{at}/r.parquet"),
            "plan": (*SMALL[:2], *sizes, *split("--device h100-sxm,l40s --tp 1 --json")),
        }
        for verb, args in calls.items():
            said = io.StringIO()
            old, sys.argv = sys.argv, [verb, *args]
            try:
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
                    VERBS[verb]()
            except SystemExit as left:
                if left.code:
                    raise RuntimeError(f"{verb} ended with {left.code}") from None
            finally:
                sys.argv = old
            if verb == "plan":
                out["plan"] = json.loads(said.getvalue())
        out["sweep"], out["serve"] = (pq.read_table(at / "s.parquet"), pq.read_table(at / "r.parquet"))
    from simulator.base.console import as_json as shown
    from simulator.claims.judge import judge
    from simulator.claims.rows import committed
    from simulator.claims.statistics import summary

    rows = judge([p for p in committed() if p.paper in ("CATS", "FlexGen")])
    out["claims"] = json.loads(shown({"rows": [r.to_dict() for r in rows][:30], "summary": summary(rows)}))
    return out


CLAIMS = """paper = "Mine"
arxiv = "0000.00000"
family = "weights"

[[claims]]
claim_id = "M-1"
scenario = { model = "opt-125m", device = "h100-sxm", policy = "teal(keep=0.5)", batch = 1, prompt_tokens = 512 }
baseline_scenario = { policy = "dense" }
metric = "ttft_s_speedup"
value = 1.5
source = "Table 1"
certainty = "read-primary"
used_for_calibration = false

[[claims]]
claim_id = "M-2"
scenario = { model = "opt-125m", device = "a100-sxm-80g", batch = 4, prompt_tokens = 512, output_tokens = 128 }
metric = "tokens_per_s"
value = 1500.0
source = "Table 1"
certainty = "read-primary"
used_for_calibration = true

[[incomplete]]
missing = "device"
claims = ["M-3"]

[[explained]]
class = "model gap"
why = "because"
claims = ["M-1"]
"""


@lru_cache
def claim_texts() -> tuple[list[str], list[str]]:
    """TOML files and a table in CSV of the same rows."""
    import csv

    from simulator.claims.rows import committed

    paper = next(p for p in committed() if any(c.kind == "kernel" for c in p.claims))
    rows = [c.model_dump() for c in paper.claims if c.kind == "kernel"][:2]
    rows += [c.model_dump() for p in committed()[:3] for c in p.claims if c.kind == "e2e"][:2]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    for row in rows:
        values = {**row, "scenario": json.dumps(row["scenario"])}
        values["baseline_scenario"] = json.dumps(row["baseline_scenario"]) if row["baseline_scenario"] else ""
        writer.writerow({k: "" if v is None else v for k, v in values.items()} | {"claim_id": "X" + row["claim_id"]})
    whole = [read("simulator", "claims", f"{n}.toml") for n in ("flexgen", "nsa")]
    return [CLAIMS, CLAIMS, *whole], [out.getvalue()]


LINKS = (
    "model=llama-2-7b&device=rtx-4090&policy=mustafar(keep=0.3)&batch=4&prompt_tokens=1024",
    "model=opt-125m&device=h100-sxm&policy=teal(keep=0.5)&tp=2&dtype=fp8&kv_cache_dtype=fp8",
    "model=mixtral-8x7b&device=a100-sxm-80g&ep=2&tp=2&gpu_memory_utilization=0.5&block_size=32&ignore_context_limit=true",
    "baseline=model%3Dopt-125m%26device%3Dh100-sxm&model=opt-125m&device=h100-sxm",
)


PARAMETERS = split(
    "model device policy batch trace trace_transfer tp pp ep engine baseline & = %00 %FF %ED%A0%80 + org/name true"
)


MEASURED = {
    "gemm": "source,device,dtype,m,n,k,batch,time_s,kernel,note,url,flag\n"
    + "".join(f"mine,h100-sxm,bf16,{2**i},4096,4096,1,{1e-5 * (1 + i)},,,,\n" for i in range(11))
}


PAGES = {
    "what_if": (),
    "sweep": ("s.x", "s.y", "s.x.values", "s.batch", "s.device"),
    "plan": split("p.device p.tp p.batch p.ttft p.tpot p.rate p.policy"),
    "serving": split(
        "q.what q.traffic q.count q.prompt_tokens q.output_tokens q.scale q.ttft "
        "q.ttft.at q.device q.tp q.gpus q.replicas"
    ),
    "traces": ("t.trace", "t.tensor", "t.what"),
    "validation": ("v.what", "v.device", "v.kind", "v.family", "v.paper"),
    "catalogue": ("c.what", "c.device", "c.policy", "c.model"),
}


UPLOADS = {"serving": "q.file", "catalogue": "c.toml", "traces": "t.files"}
