"""Commands and manifests state the deployment they start, in flags their engine has."""

from __future__ import annotations

import json
import shlex

import pytest

from simulator.scenario.scenario import Scenario
from simulator.serving.launch import launch_command, manifest, programs

ROW = {
    "max_num_seqs": 64,
    "max_num_batched_tokens": 2048,
    "scheduler": "chunked",
    "replicas": 1,
    "router": "least-loaded",
}
EIGHT = {"model": "llama-3.1-8b", "device": "h100-sxm", "tp": 2}


def flags_of(program) -> set[str]:
    """All flags its table names."""
    known = [program.tp, program.pp, program.ep, program.experts, program.seqs, program.tokens, program.memory]
    known += [program.length, program.block, program.quantization, program.kv, program.options]
    more = [*program.prefix, *program.no_prefix, *(f for flags in program.schedulers.values() for f in flags)]
    return {*known, *more, *program.program}


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        (
            "vllm",
            "vllm serve meta-llama/Llama-3.1-8B --tensor-parallel-size 2 --max-num-seqs 64"
            " --max-num-batched-tokens 2048 --max-model-len 8192 --block-size 16 --no-enable-prefix-caching"
            " --kv-cache-dtype fp8",
        ),
        (
            "sglang",
            "python -m sglang.launch_server --model-path meta-llama/Llama-3.1-8B --tp-size 2 --max-running-requests 64"
            " --chunked-prefill-size 2048"
            " --context-length 8192 --page-size 16 --disable-radix-cache"
            " --enable-mixed-chunk --kv-cache-dtype fp8_e4m3",
        ),
        (
            "trtllm",
            "trtllm-serve meta-llama/Llama-3.1-8B --tp_size 2 --max_batch_size 64 --max_num_tokens 2048"
            " --max_seq_len 8192 --extra_llm_api_options config.yaml",
        ),
    ],
)
def test_the_command_states_the_deployment(engine, words):
    scenario = Scenario(**EIGHT, engine=engine, kv_cache_dtype="fp8", max_model_len=8192)
    told, note = launch_command(scenario, ROW)
    assert told == words
    flags = {w for w in shlex.split(told) if w.startswith("--")}
    assert flags <= flags_of(programs()[engine])
    if engine == "trtllm":
        options = json.loads(note.removeprefix("config.yaml: "))
        assert options["kv_cache_config"] == {"enable_block_reuse": False, "tokens_per_block": 16, "dtype": "fp8"}
    else:
        assert note == ""


@pytest.mark.parametrize(
    ("change", "scheduler", "why"),
    [
        ({"engine": "sglang", "policy": "w4a16"}, "chunked", "w4a16 needs vLLM, the engine is sglang"),
        ({"engine": "sglang"}, "prefill-first", "SGLang runs prefill-first-chunked or chunked, not prefill-first"),
        ({"engine": "trtllm"}, "prefill-first-chunked", "TensorRT-LLM runs chunked"),
        ({"engine": "hf"}, "chunked", "the engine is hf"),
        ({"kv_cache_dtype": "int8"}, "chunked", "vLLM has no KV cache in int8"),
    ],
)
def test_what_an_engine_cannot_start_has_a_reason(change, scheduler, why):
    told, note = launch_command(Scenario(**EIGHT | change), ROW | {"scheduler": scheduler})
    assert told == ""
    assert note.startswith(why)


def test_experts_are_spread_as_the_engine_can():
    experts = {"model": "mixtral-8x7b", "device": "h100-sxm", "tp": 4, "ep": 2}
    assert "--ep-size 2" in launch_command(Scenario(**experts, engine="sglang"), ROW)[0]
    assert launch_command(Scenario(**experts, engine="vllm"), ROW)[0] == ""


@pytest.mark.parametrize("engine", ["vllm", "trtllm"])
def test_a_manifest_states_the_plan(engine):
    row = ROW | {"model": "llama-3.1-8b", "device": "h100-sxm", "policy": "dense", "dtype": "bf16", "engine": engine}
    row |= {"tp": 2, "pp": 1, "replicas": 3, "gpus": 6, "usd_per_h": 18.0, "ttft_p99_s": 0.41, "tpot_p99_s": 0.0123}
    row["launch"], row["launch_note"] = launch_command(Scenario(**EIGHT, engine=engine), row)
    items = manifest(row, "ttft:p99<2s")["items"]
    kinds = [i["kind"] for i in items]
    assert kinds == [*(["ConfigMap"] if engine == "trtllm" else []), "Deployment", "Service"]
    deployment = items[-2]
    assert deployment["spec"]["replicas"] == 3
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 2}
    assert shlex.join(container["command"]).startswith(row["launch"])
    assert container["ports"][0]["containerPort"] == items[-1]["spec"]["ports"][0]["targetPort"]
    said = deployment["metadata"]["annotations"]
    assert (said["shadowline/slo"], said["shadowline/usd-per-h"]) == ("ttft:p99<2s", "18.00")
    if engine == "trtllm":
        assert json.loads(items[0]["data"]["config.yaml"])["enable_chunked_prefill"] is True
    with pytest.raises(ValueError, match="no command: why"):
        manifest(row | {"launch": "", "launch_note": "why"})
