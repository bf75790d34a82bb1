"""A deployment as the command that starts one replica of it in vLLM."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from simulator.base.dtypes import AUTO
from simulator.device.catalogue import load
from simulator.model import hub
from simulator.model.formats import choose
from simulator.policies import parse
from simulator.policies.software import software
from simulator.scenario.scenario import Scenario

QUANTIZATION = {"fp8": "fp8", "w8a16": "gptq_marlin", "w4a16": "awq_marlin"}
"""Weight formats vLLM names; 4- and 8-bit weights need a checkpoint quantised so."""
VLLM_POLICIES = {"w4a16": ["--quantization", "awq_marlin"]}
"""Policies vLLM can run, on a checkpoint made for them."""
MARLIN = ("w8a16", "w4a16")
"""Formats whose kernels (Marlin), like those of the policies, vLLM has for `MARLIN_ON` alone."""
MARLIN_ON = ("ampere", "ada", "hopper", "blackwell")
"""Architectures, as in vLLM's table of quantisation and hardware."""


def lacking(policy: str, device: str) -> str:
    """What vLLM lacks to run `policy` on `device`; "" where nothing."""
    members = [p.name for p in parse(policy).members]
    missing = [m for m in members if m not in VLLM_POLICIES]
    dropped = {m: s for m in missing if (s := software().get(m)) and s.until}
    if len(dropped) < len(missing):
        return f"vLLM has no {' or '.join(m for m in missing if m not in dropped)}"
    for name, known in dropped.items():
        return known.dropped(name)
    if members and load(device).arch not in MARLIN_ON:
        return f"vLLM has {' and '.join(members)} for NVIDIA GPUs from Ampere on alone"
    return ""


def launch_command(scenario: Scenario, row: Mapping[str, Any], *, prefix_cache: bool = False) -> tuple[str, str]:
    """``vllm serve ...`` of one replica and what has to be said beside it; "" and the reason where vLLM cannot.

    Flags are those of vLLM V1, which always mixes prompts and decoding and spreads experts over all GPUs or none.
    """
    members = [p.name for p in scenario.policies.members]
    if scenario.policies.ideal:
        return "", "an ideal kernel is a bound, no software"
    if lacks := lacking(scenario.policy, scenario.device):
        return "", lacks
    if choose(scenario.dtype).groups:
        return (
            "",
            f"vLLM takes one format for all layers, not {scenario.dtype}; a checkpoint of these formats needs no flag",
        )
    if scenario.dtype in MARLIN and load(scenario.device).arch not in MARLIN_ON:
        return "", f"vLLM has {scenario.dtype} for NVIDIA GPUs from Ampere on alone"
    if not scenario.engine.startswith("vllm"):
        return "", f"the engine is {scenario.engine}"
    if row["scheduler"] != "chunked":
        return "", f"vLLM V1 always mixes prompts and decoding, which {row['scheduler']} does not"
    if 1 < scenario.ep < scenario.tp:
        return ("", f"vLLM spreads experts over all {scenario.tp} GPUs, not over {scenario.ep} groups")
    words = ["vllm", "serve", _repository(scenario.model)]
    words += ["--tensor-parallel-size", str(scenario.tp)]
    if scenario.pp > 1:
        words += ["--pipeline-parallel-size", str(scenario.pp)]
    if scenario.ep > 1:
        words += ["--enable-expert-parallel"]
    words += ["--max-num-seqs", str(row["max_num_seqs"])]
    words += ["--max-num-batched-tokens", str(row["max_num_batched_tokens"])]
    if scenario.gpu_memory_utilization is not None:
        words += ["--gpu-memory-utilization", f"{scenario.gpu_memory_utilization:g}"]
    words += ["--block-size", str(scenario.block_size)]
    words += ["--enable-prefix-caching" if prefix_cache else "--no-enable-prefix-caching"]
    if scenario.dtype in QUANTIZATION:
        words += ["--quantization", QUANTIZATION[scenario.dtype]]
    if scenario.kv_cache_dtype not in (AUTO, "bf16", "fp16"):
        words += ["--kv-cache-dtype", scenario.kv_cache_dtype]
    for name in members:
        words += VLLM_POLICIES[name]
    notes = []
    if row["replicas"] > 1:
        notes.append(f"{row['replicas']} of them behind a router that takes the {row['router']} one")
    if members or scenario.dtype in ("w8a16", "w4a16"):
        notes.append("on a checkpoint in that format")
    return shlex.join(words), "; ".join(notes)


def _repository(model: str) -> str:
    """Hub id of a bundled model, else the text itself."""
    return next((a for a in hub.aliases(hub.resolve(model)) if "/" in a), model)
