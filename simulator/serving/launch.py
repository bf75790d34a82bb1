"""A deployment as the command that starts one replica of it, and as a Kubernetes manifest of all."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from simulator.base.dtypes import AUTO
from simulator.base.files import parse_toml
from simulator.device.catalogue import load
from simulator.model import hub
from simulator.model.formats import choose
from simulator.policies import parse
from simulator.policies.software import software
from simulator.scenario.scenario import Scenario

QUANTIZATION = {"fp8": "fp8", "w8a16": "gptq_marlin", "w4a16": "awq_marlin"}
"""Weight formats vLLM and SGLang name; 4- and 8-bit weights need a checkpoint quantised so."""
VLLM_POLICIES = {"w4a16": "awq_marlin"}
"""Policies vLLM can run, on a checkpoint made for them, and how it calls them."""
MARLIN = ("w8a16", "w4a16")
"""Formats whose kernels (Marlin), like those of the policies, vLLM has for `MARLIN_ON` alone."""
MARLIN_ON = ("ampere", "ada", "hopper", "blackwell")
"""Architectures, as in vLLM's table of quantisation and hardware."""
CONFIG = "config.yaml"
"""File that holds what an engine takes no flag for."""
SHARED_MEMORY = "16Gi"
"""Of a pod, for what tensor-parallel ranks hand each other; as in the engines' own examples."""


class Program(BaseModel):
    """How an engine is started: the name of each flag, read from ``launch.toml``.

    Attributes
    ----------
    program : tuple of str
        Words before the model.
    ep, experts : str
        Flag of the expert groups; flag without value that spreads experts over all GPUs.
    options : str
        Flag of the file with what there is no flag for; such an engine takes its formats from the checkpoint.
    schedulers : dict
        Flags of each scheduler it has.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    version: str
    source: str
    date: str
    program: tuple[str, ...]
    image: str
    port: int
    tp: str
    pp: str
    ep: str = ""
    experts: str = ""
    seqs: str
    tokens: str
    memory: str
    length: str
    block: str = ""
    prefix: tuple[str, ...] = ()
    no_prefix: tuple[str, ...] = ()
    quantization: str = ""
    kv: str = ""
    options: str = ""
    fp8: Literal["fp8", "fp8_e4m3"]
    schedulers: Mapping[str, tuple[str, ...]]


@lru_cache(maxsize=1)
def programs() -> dict[str, Program]:
    """Engines by family."""
    text = resources.files("simulator.serving").joinpath("launch.toml").read_text(encoding="utf-8")
    return {name: Program(**table) for name, table in parse_toml(text, "launch.toml").items()}


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
    """Command of one replica and what has to be said beside it; "" and the reason where the engine cannot.

    vLLM V1 always mixes prompts and decoding and spreads experts over all GPUs or none; SGLang mixes where asked to;
    TensorRT-LLM takes formats from the checkpoint and the rest from a file. A policy needs vLLM.
    """
    members = [p.name for p in scenario.policies.members]
    program = programs().get(scenario.engine.partition("@")[0].partition("-")[0])
    if reason := _why_not(scenario, row, program, members):
        return "", reason
    assert program is not None
    words = [*program.program, _repository(scenario.model), program.tp, str(scenario.tp)]
    if scenario.pp > 1:
        words += [program.pp, str(scenario.pp)]
    if scenario.ep > 1:
        words += [program.experts] if program.experts else [program.ep, str(scenario.ep)]
    words += [program.seqs, str(row["max_num_seqs"]), program.tokens, str(row["max_num_batched_tokens"])]
    if scenario.gpu_memory_utilization is not None:
        words += [program.memory, f"{scenario.gpu_memory_utilization:g}"]
    if scenario.max_model_len is not None:
        words += [program.length, str(scenario.max_model_len)]
    words += [program.block, str(scenario.block_size)] if program.block else []
    words += program.prefix if prefix_cache else program.no_prefix
    words += program.schedulers[row["scheduler"]]
    quantised = scenario.dtype in QUANTIZATION
    if program.quantization and quantised:
        words += [program.quantization, QUANTIZATION[scenario.dtype]]
    own_kv = scenario.kv_cache_dtype not in (AUTO, "bf16", "fp16")
    if program.kv and own_kv:
        words += [program.kv, program.fp8]
    for name in members:
        words += [program.quantization, VLLM_POLICIES[name]]
    notes = []
    if program.options:
        words += [program.options, CONFIG]
        kv = {"enable_block_reuse": prefix_cache, "tokens_per_block": scenario.block_size}
        kv |= {"dtype": program.fp8} if own_kv else {}
        options = json.dumps({"enable_chunked_prefill": True, "kv_cache_config": kv})
        notes.append(f"{CONFIG}: {options}")
    if row["replicas"] > 1:
        notes.append(f"{row['replicas']} of them behind a router that takes the {row['router']} one")
    if members or scenario.dtype in MARLIN or (program.options and quantised):
        notes.append("on a checkpoint in that format")
    return shlex.join(words), "; ".join(notes)


def _why_not(scenario: Scenario, row: Mapping[str, Any], program: Program | None, members: list[str]) -> str:
    """Why there is no command; "" where there is one."""
    if scenario.policies.ideal:
        return "an ideal kernel is a bound, no software"
    if lacks := lacking(scenario.policy, scenario.device):
        return lacks
    if program is None:
        return f"the engine is {scenario.engine}"
    title = program.title
    if members and title != "vLLM":
        return f"{' and '.join(members)} needs vLLM, the engine is {scenario.engine}"
    if choose(scenario.dtype).groups:
        told = f"{title} takes one format for all layers, not {scenario.dtype}"
        return f"{told}; a checkpoint of these formats needs no flag"
    if scenario.dtype in MARLIN and load(scenario.device).arch not in MARLIN_ON:
        return f"{title} has {scenario.dtype} for NVIDIA GPUs from Ampere on alone"
    if scenario.kv_cache_dtype not in (AUTO, "bf16", "fp16", "fp8"):
        return f"{title} has no KV cache in {scenario.kv_cache_dtype}"
    if row["scheduler"] not in program.schedulers:
        if title == "vLLM":
            return f"vLLM V1 always mixes prompts and decoding, which {row['scheduler']} does not"
        return f"{title} runs {' or '.join(program.schedulers)}, not {row['scheduler']}"
    if program.experts and 1 < scenario.ep < scenario.tp:
        return f"{title} spreads experts over all {scenario.tp} GPUs, not over {scenario.ep} groups"
    return ""


def manifest(row: Mapping[str, Any], slo: str = "") -> dict[str, Any]:
    """Kubernetes objects that run a plan's row: a Deployment of its replicas and a Service before them.

    Parameters
    ----------
    row : mapping
        A row of a plan, with its ``launch`` command and ``launch_note``.
    slo : str
        What it was planned for; stands in the annotations beside the figures.

    Raises
    ------
    ValueError
        The row has no command.
    """
    if not row["launch"]:
        raise ValueError(f"no command: {row['launch_note']}")
    program = programs()[row["engine"].partition("@")[0].partition("-")[0]]
    name = "".join(c if c.isalnum() else "-" for c in f"{row['model']}-{row['device']}".casefold()).strip("-")[:60]
    gpus = row["tp"] * row["pp"]
    said = {
        "policy": row["policy"],
        "dtype": row["dtype"],
        "slo": slo,
        "gpus": row["gpus"],
        "usd-per-h": f"{row['usd_per_h']:.2f}",
        "ttft-p99-s": f"{row['ttft_p99_s']:.3g}",
        "tpot-p99-s": f"{row['tpot_p99_s']:.3g}",
        "note": row["launch_note"],
    }
    labels = {"app": name}
    container: dict[str, Any] = {
        "name": "engine",
        "image": program.image,
        "command": [*shlex.split(row["launch"]), "--host", "0.0.0.0", "--port", str(program.port)],
        "ports": [{"containerPort": program.port}],
        "resources": {"limits": {"nvidia.com/gpu": gpus}},
        "readinessProbe": {"httpGet": {"path": "/health", "port": program.port}, "periodSeconds": 10},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": SHARED_MEMORY}}]
    items: list[dict[str, Any]] = []
    if program.options:
        options = row["launch_note"].partition(f"{CONFIG}: ")[2].partition("; ")[0]
        items.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {CONFIG: options}})
        container["volumeMounts"].append({"name": "config", "mountPath": "/config"})
        container["workingDir"] = "/config"
        volumes.append({"name": "config", "configMap": {"name": name}})
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [container], "volumes": volumes}}
    items += [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "annotations": {f"shadowline/{k}": str(v) for k, v in said.items() if v != ""}},
            "spec": {"replicas": row["replicas"], "selector": {"matchLabels": labels}, "template": pod},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": program.port}]},
        },
    ]
    return {"apiVersion": "v1", "kind": "List", "items": items}


def _repository(model: str) -> str:
    """Hub id of a bundled model, else the text itself."""
    return next((a for a in hub.aliases(hub.resolve(model)) if "/" in a), model)
