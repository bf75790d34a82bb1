"""A deployment as the command that starts one replica of it in vLLM."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from simulator import hub
from simulator.dtypes import AUTO
from simulator.policies import parse
from simulator.scenario import Scenario

QUANTIZATION = {"fp8": "fp8", "w8a16": "gptq_marlin", "w4a16": "awq_marlin"}
"""Weight formats vLLM names; 4- and 8-bit weights need a checkpoint quantised so."""
VLLM_POLICIES = {
    "w4a16": ["--quantization", "awq_marlin"],
    "nm24": ["--quantization", "compressed-tensors"],
    "sparse_marlin": ["--quantization", "gptq_marlin_24"],
}
"""Policies vLLM can run, on a checkpoint made for them."""


def launch_command(scenario: Scenario, row: Mapping[str, Any]) -> tuple[str, str]:
    """``vllm serve ...`` of one replica and what has to be said beside it; "" where vLLM cannot run the policy."""
    members = [p.name for p in parse(scenario.policy).members]
    missing = [m for m in members if m not in VLLM_POLICIES]
    if missing:
        return "", f"vLLM has no {' or '.join(missing)}"
    if not scenario.engine.startswith("vllm"):
        return "", f"the engine is {scenario.engine}"
    words = ["vllm", "serve", _repository(scenario.model)]
    words += ["--tensor-parallel-size", str(scenario.tp)]
    if scenario.pp > 1:
        words += ["--pipeline-parallel-size", str(scenario.pp)]
    if scenario.ep > 1:
        words += ["--enable-expert-parallel"]
    words += ["--max-num-seqs", str(row["max_num_seqs"])]
    words += ["--max-num-batched-tokens", str(row["max_num_batched_tokens"])]
    words += ["--gpu-memory-utilization", f"{scenario.gpu_memory_utilization:g}"]
    words += ["--block-size", str(scenario.block_size)]
    if row["scheduler"] != "chunked":
        words += ["--no-enable-chunked-prefill"]
    if scenario.dtype in QUANTIZATION:
        words += ["--quantization", QUANTIZATION[scenario.dtype]]
    if scenario.kv_cache_dtype not in (AUTO, "bf16", "fp16"):
        words += ["--kv-cache-dtype", scenario.kv_cache_dtype]
    for name in members:
        words += VLLM_POLICIES[name]
    notes = []
    if row["replicas"] > 1:
        notes.append(
            f"{row['replicas']} of them behind a router that takes the {row['router']} one"
        )
    if members or scenario.dtype in ("w8a16", "w4a16"):
        notes.append("on a checkpoint in that format")
    return shlex.join(words), "; ".join(notes)


def _repository(model: str) -> str:
    """Hub id of a bundled model, else the text itself."""
    return next((a for a in hub.aliases(hub.resolve(model)) if "/" in a), model)
