"""What InferenceX's public recipes state of a run and its rows leave unsaid.

Recipes are the scripts under ``benchmarks/`` of github.com/SemiAnalysisAI/InferenceX, read at the commits named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from simulator.device.types import Device

NOTES = re.compile(r"db-dump|source_file=\d{4}-\d{2}-\d{2}\.csv")
"""Notes of its rows, named by the day of the run; files named by a model are runs of NVIDIA's with fixed lengths."""
SHORTEST = 0.8
"""Lengths are drawn from this share of the stated one up to it, ``--random-range-ratio 0.8`` (issue 356) [-]."""
ROUNDS = 10.0
"""Requests per client, ``--num-prompts`` ten times ``--max-concurrency`` (benchmark_lib.sh) [-]."""
FP8_KV: Mapping[tuple[str, str], tuple[str, ...]] = {
    # 70b_fp8_h100_slurm.sh (2a205bb), 70b_fp8_h200_slurm.sh (409e9a4), 70b_fp8_b200_docker.sh and its fp4 (bb4c7f9)
    ("vllm", "llama-3.1-70b"): ("hopper", "blackwell"),
    # gptoss_fp4_b200.sh (1fc5d73); gptoss_fp4_h100.sh and _h200.sh leave it alone
    ("vllm", "gpt-oss-120b"): ("blackwell",),
    # dsr1_fp8_h200_trt_slurm.sh (2e46dba), dsr1_fp8_b200_trt.sh (0a919c5), dsr1_fp4_b200_trt.sh (111f031)
    ("trtllm", "deepseek-v3"): ("hopper", "blackwell"),
    # gptoss_fp4_b200_trt_slurm.sh (cc9bed4); gptoss_fp4_h200_trt.sh (111f031) says auto
    ("trtllm", "gpt-oss-120b"): ("blackwell",),
    # dsr1_fp4_b200.sh, dsr1_fp8_b200.sh (1fc5d73); dsr1_fp8_h200.sh leaves it alone
    ("sglang", "deepseek-v3"): ("blackwell",),
    # glm5_fp8_b200.sh (87af9d6)
    ("sglang", "glm-5"): ("blackwell",),
    # minimaxm2.5_fp8_b200.sh, _fp8_b300.sh (8eec0d4), _fp4_b200.sh (45c4f91); _fp8_h200.sh leaves it alone
    ("vllm", "minimax-m2.5"): ("blackwell",),
    # qwen3.5_fp8_h200.sh, qwen3.5_fp4_b300.sh (8eec0d4), qwen3.5_fp8_b300.sh (1534ee2), not qwen3.5_bf16_b300.sh
    ("sglang", "qwen3.5-397b-a17b"): ("hopper", "blackwell"),
}
"""Device architectures whose recipe keeps KV in FP8, by engine and model."""
BATCH_WAIT = 20.0
"""``batch_wait_timeout_iters`` of TensorRT-LLM's recipes of Llama-3.1-70B at 1024/1024 below eight GPUs [-].

70b_fp8_h200_trt_slurm.sh and 70b_fp4_b200_trt_slurm.sh (73ef922), 70b_fp8_b200_trt_slurm.sh (a267b4b).
"""
POLLED = ("deepseek-v3", "qwen3.5-397b-a17b")
"""Models whose SGLang recipes on Blackwell look for requests every 10 decode steps, every 30 from 16 clients on.

``--scheduler-recv-interval`` of dsr1_fp4_b200.sh, dsr1_fp8_b200.sh (1fc5d73), dsr1_fp8_b300.sh, qwen3.5_fp4_b300.sh
(8eec0d4), qwen3.5_bf16_b300.sh (f89cdfe); 10 in dsr1_fp8_b200.sh on four GPUs and in qwen3.5_fp8_b300.sh (1534ee2).
"""


def keeps_fp8(engine: str, model: str, device: Device, dtype: str) -> bool:
    """Whether the recipe of a run keeps its KV cache in FP8."""
    return dtype != "bf16" and device.arch in FP8_KV.get((engine, model), ())


def wait_steps(
    engine: str, model: str, device: Device, dtype: str, tp: float, clients: float, lengths: tuple[float, float]
) -> float:
    """Steps that a prompt waits by the recipe before it is looked at; half of those between two looks [-]."""
    if (engine, model, lengths) == ("trtllm", "llama-3.1-70b", (1024.0, 1024.0)) and tp < 8:
        return BATCH_WAIT
    if engine != "sglang" or model not in POLLED or device.arch != "blackwell":
        return 0.0
    often = clients < 16 or (dtype == "fp8_block" and (tp == 4 or model != "deepseek-v3"))
    return (10.0 if often else 30.0) / 2.0
