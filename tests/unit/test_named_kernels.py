"""Which kernel a policy runs in: names, evidence, what a choice changes, and the bound on all of them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.base import console
from simulator.base.dtypes import FORMATS
from simulator.base.errors import InputError, UnknownNameError
from simulator.claims.rows import committed
from simulator.inference.evaluate import Points, evaluate
from simulator.inference.group import group_of
from simulator.inference.lowering import Lowering
from simulator.model.hub import find_model
from simulator.ops.ops import STREAM, Attention, Elementwise, Linear, Op
from simulator.ops.step import decode_step, prefill_step
from simulator.policies import IDEAL, POLICIES, PUBLISHED, in_kernel, parse
from simulator.policies.kernel import Evidence, table
from simulator.policies.software import software
from simulator.results.free import options
from simulator.results.prediction import predict
from simulator.results.swept import sweep, write
from simulator.scenario.grid import Grid
from simulator.scenario.scenario import Scenario

SPARSE = [name for name in POLICIES if name != "dense"]
BATCH, PROMPT = np.meshgrid([1.0, 16.0, 64.0], [512.0, 16_384.0])
LOADS = BATCH.ravel(), PROMPT.ravel(), np.full(BATCH.size, 64.0)
ON = {
    "llama-3.1-8b": ("h100-sxm", "rtx-4090", "a100-sxm-80g"),
    "opt-6.7b": ("a100-sxm-80g",),
    "qwen3-30b-a3b": ("h100-sxm",),
}
ELSEWHERE = ("dsa", "lamina", "cxl")
"""They need MLA, a pool of other devices, or a CXL tier."""
PLACED = ("double_sparsity_offload", "shadowkv", "nosa", "infllm_v2_offload", "flexgen", "cxl", "llm_in_flash", "alisa")
"""What an engine hides of a kernel's start it hides behind a copy, too: a launch less may take 0.5 us longer there."""


def points(model: str, device: str, policy: str, kernel: str = PUBLISHED) -> Points | None:
    group = group_of(Scenario(model=model, device=device, policy=policy, kernel=kernel, ignore_context_limit=True))
    return None if group.problem else evaluate(group, *LOADS)


def ops(policy: str, kernel: str, step: Any = None, model: str = "llama-3.1-8b") -> list[Op]:
    chosen = parse(policy).on(kernel)
    step = decode_step(16.0, 4096.0) if step is None else step
    return Lowering(find_model(model), chosen, FORMATS["bf16"], 2.0).ops(step)


# --- names and evidence ----------------------------------------------------------------------------------------


def test_every_policy_names_a_kernel_and_why_it_is_believed() -> None:
    papers = {p.paper for p in committed()}
    assert set(table()) <= set(POLICIES)
    for name in SPARSE:
        kernels = POLICIES[name].kernels()
        assert kernels, name
        assert len({k.name for k in kernels}) == len(kernels), name
        assert sum(k.lean for k in kernels) <= 1, name
        for k in kernels:
            assert k.name not in (PUBLISHED, IDEAL)
            assert k.title
            assert k.believed.split(" ")[0] in ("measured", "claims", "assumed")
            assert bool(k.rows) == (k.evidence is not Evidence.ASSUMED), (name, k.name)
            if k.evidence is Evidence.CLAIMS:
                assert set(k.rows.split(", ")) <= papers, (
                    f"{name}: {k.rows} is no paper of `python -m simulator.claims`"
                )
    assert POLICIES["dense"].kernels() == ()


def test_a_kernel_sets_parameters_that_name_it_again() -> None:
    for name in SPARSE:
        for k in POLICIES[name].kernels():
            chosen = POLICIES[name]().with_parameters(k.sets)
            assert chosen.kernel_used == (k if k.sets else POLICIES[name].kernels()[0])
        assert parse(name).kernel == POLICIES[name].kernels()[0].name, f"{name}: the first kernel is not its default"


def test_unknown_kernels_name_those_of_the_policy() -> None:
    with pytest.raises(
        UnknownNameError, match=r"--kernel: unknown kernel of kivi\(bits=2\) 'fusde'; did you mean 'fused'"
    ):
        parse("kivi").on("fusde")
    with pytest.raises(UnknownNameError, match="known: cusparselt, gemm_plugin, ideal, published"):
        parse("nm24").on("vllm")
    for kernel in ("fused", IDEAL):
        with pytest.raises(InputError, match="dense takes no kernel"):
            Scenario(model="llama-3.1-8b", device="h100-sxm", kernel=kernel)


def test_a_scenario_keeps_its_kernel_through_links_files_and_flags() -> None:
    asked = Scenario(model="llama-3.1-8b", device="h100-sxm", policy="kivi+w4a16", kernel="fused")
    assert asked.policies.kernel == "marlin+fused"
    assert asked.policies.spelling == asked.policy
    assert Scenario.from_query(asked.to_query()) == Scenario.from_json(asked.to_json()) == asked
    assert asked.to_cli()[-2:] == ["--kernel", "fused"]
    assert asked.dense.policies.members == ()
    assert "kernel" not in asked.dense.to_dict()


def test_a_grid_runs_dense_once_and_every_policy_in_every_kernel() -> None:
    grid = Grid(
        model=("llama-3.1-8b",),
        device=("h100-sxm",),
        policy=("dense", "kivi(bits=2)"),
        kernel=(PUBLISHED, "fused", IDEAL),
    )
    assert [(s.policy, s.kernel) for s in grid.groups()] == [
        ("dense", PUBLISHED),
        ("kivi(bits=2)", PUBLISHED),
        ("kivi(bits=2)", "fused"),
        ("kivi(bits=2)", IDEAL),
    ]
    assert len(grid) == 4
    found = sweep(grid)
    assert found.to_pandas()["kernel"].fillna("").tolist() == ["", "split", "fused", IDEAL]
    told = [t.policy for t in found.summary.tallies()]
    assert told == ["kivi(bits=2)", "kivi(bits=2), fused kernel", "kivi(bits=2), ideal kernel"]
    assert in_kernel("kivi(bits=2)", "split") == "kivi(bits=2)"


def test_an_engine_that_runs_a_policy_in_its_own_kernel_has_that_for_the_published_one() -> None:
    """TensorRT-LLM's plugin multiplies 2:4 weights densely, zeros and all; another kernel is there for the asking."""
    for engine in ("trtllm", "trtllm-2024", "trtllm@1.2"):
        scenario = Scenario(model="llama-7b", device="a10", policy="nm24", engine=engine)
        assert (scenario.policies.kernel, scenario.policies.spelling) == ("gemm_plugin", "nm24")
        answer = predict(scenario).answer
        assert tuple(answer.speedup) == pytest.approx((1.0, answer.speedup.lo, answer.speedup.hi))
        assert answer.weights_bytes == predict(scenario.dense).answer.weights_bytes
        chosen = scenario.model_copy(update={"kernel": "cusparselt"})
        assert predict(chosen).answer.speedup.mid > 1.1
    elsewhere = Scenario(model="llama-7b", device="a10", policy="nm24", engine="vllm")
    assert elsewhere.policies.kernel == "cusparselt"


def test_a_bound_is_never_the_best_row_of_a_sweep_nor_in_a_report(tmp_path: Path) -> None:
    from reports.advice import advise
    from reports.rows import read

    names = {"policy": ("dense", "nm24", "kivi(bits=2)"), "kernel": (PUBLISHED, IDEAL)}
    grid = Grid(model=("llama-3.1-8b",), device=("h100-sxm",), batch=(1, 16), prompt_tokens=(4096,), **names)
    best = sweep(grid).summary.best[0]
    assert best.kernel != IDEAL
    bound = sweep(Grid(model=grid.model, device=grid.device, policy=("nm24",), kernel=(IDEAL,)))
    assert [row.kernel for row in bound.summary.best] == [IDEAL]
    one = replace(grid, kernel=(PUBLISHED, "fused", IDEAL), policy=("dense", "kivi(bits=2)"))
    write([one], tmp_path / "s.parquet", command="", quiet=True)
    found = read(tmp_path / "s.parquet")
    assert (found.n, found.bounds) == (6, 2)
    assert advise(found).policies == ["kivi(bits=2)", "kivi(bits=2), fused kernel"]
    write([replace(grid, kernel=(IDEAL,), policy=("nm24",))], tmp_path / "b.parquet", command="", quiet=True)
    with pytest.raises(InputError, match="bounds alone"):
        read(tmp_path / "b.parquet")


# --- where it runs ---------------------------------------------------------------------------------------------


def test_answers_say_what_dropped_or_never_had_a_method() -> None:
    def told(policy: str, engine: str) -> str:
        return predict(Scenario(model="llama-3.1-8b", device="h100-sxm", policy=policy, engine=engine)).answer.software

    assert told("nm24", "vllm").startswith(
        "vLLM dropped nm24 in 0.19.1 (removed in github.com/vllm-project/vllm/pull/36799"
    )
    assert told("nm24", "sglang") == told("nm24", "vllm")
    assert told("w4a16", "sglang") == "vLLM, SGLang run w4a16"
    assert told("w4a16", "trtllm") == "vLLM, SGLang run w4a16, TensorRT-LLM does not"
    assert told("w4a16", "kernels") == "vLLM, SGLang run w4a16"
    assert told("teal", "vllm") == "no engine runs teal; research code: github.com/FasterDecoding/TEAL"
    assert told("dense", "vllm") == ""
    both = told("nm24+kivi", "vllm").split("; no engine")
    assert len(both) == 2
    # The same words where a plan says why there is no command to start it.
    assert software()["nm24"].dropped("nm24") in told("nm24", "vllm")


def test_policies_lists_the_kernels_of_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from simulator.policies.__main__ import app

    monkeypatch.setattr(sys, "argv", ["policies", "kivi"])
    with pytest.raises(SystemExit):
        console.main(app)
    printed = capsys.readouterr().out
    rows = [line.split()[:2] for line in printed.splitlines() if line.startswith(("split ", "fused "))]
    assert rows == [["split", "assumed"], ["fused", "assumed"]]
    assert "github.com/jy-yuan/KIVI" in printed
    monkeypatch.setattr(sys, "argv", ["policies", "--json"])
    with pytest.raises(SystemExit):
        console.main(app)
    cards = {c["policy"]: c for c in json.loads(capsys.readouterr().out)["rows"]}
    assert cards["nm24"]["kernels"][0]["evidence"] == "measured"


def test_free_policies_take_a_kernel() -> None:
    scenario = Scenario(model="llama-3.1-8b", device="rtx-4090", prompt_tokens=1024, output_tokens=64)
    best = {o.policy: o.answer for o in options(scenario, IDEAL)[0]}
    usual = {o.policy: o.answer for o in options(scenario)[0]}
    assert best["dense"].kernel == ""
    assert {a.kernel for p, a in best.items() if p != "dense"} == {IDEAL}
    assert best["nm24"].tokens_per_s.mid > usual["nm24"].tokens_per_s.mid


def test_a_policy_that_does_not_win_is_told_what_a_better_kernel_could_give(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from simulator import predict as verb

    def lines(*words: str) -> list[str]:
        asked = ("predict", "--model", "llama-3.1-8b", "--device", "h100-sxm", "--batch", "16", "--isl", "4096")
        monkeypatch.setattr(sys, "argv", [*asked, *words])
        with pytest.raises(SystemExit):
            console.main(verb.app)
        return [x for x in capsys.readouterr().out.splitlines() if x.startswith(("kernel: ", "bound: ", "software: "))]

    scenario = Scenario(model="llama-3.1-8b", device="h100-sxm", batch=16, prompt_tokens=4096, policy="kivi")
    most = predict(scenario).ideal_speedup
    assert most == pytest.approx(predict(scenario.model_copy(update={"kernel": IDEAL})).answer.speedup.mid)
    kernel, bound, software = lines("--policy", "kivi")
    assert kernel == "kernel: split, assumed: github.com/jy-yuan/KIVI, quant/csrc"
    assert bound == f"bound: an ideal kernel would give {most:.2f}x dense"
    assert software == "software: no engine runs kivi; research code: github.com/jy-yuan/KIVI"
    # One that wins needs no consolation, the bound itself neither; dense has no kernel of a policy.
    assert [x.split(":")[0] for x in lines("--policy", "kivi", "--kernel", "ideal")] == ["kernel", "software"]
    assert [x.split(":")[0] for x in lines("--policy", "shortgpt")] == ["kernel", "software"]
    assert lines() == []
    assert predict(scenario.dense).ideal_speedup is None


# --- the bound -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPARSE)
def test_an_ideal_kernel_is_never_slower_than_a_named_one(name: str) -> None:
    """Over devices, batches of 1, 16 and 64, prompts of 512 and 16,384, in the prompt and in a decode step."""
    # Products are timed by fits, whose surfaces may put a larger one a little below a smaller.
    slack = 1.01 if name in PLACED else 1.005
    compared = 0
    for model, devices in ON.items():
        for device in devices:
            bound = points(model, device, name, IDEAL)
            if bound is None:
                assert points(model, device, name) is None
                continue
            for k in POLICIES[name].kernels():
                named = points(model, device, name, k.name)
                assert named is not None
                for of in ("ttft_s", "tpot_s"):
                    ratio = getattr(bound, of).mid / getattr(named, of).mid
                    assert ratio.max() <= slack, (model, device, k.name, of, ratio)
                compared += 1
    assert bool(compared) == (name not in ELSEWHERE)


@pytest.mark.parametrize("device", ["h200", "b200"])
def test_an_ideal_module_of_sparse_latents_is_never_slower_than_the_engine_s(device: str) -> None:
    """DeepSeek-V3 over 8 GPUs: blocks are timed as the engine's modules, the bound as its dense module."""
    own, bound = (
        evaluate(group_of(Scenario(model="deepseek-v3", device=device, policy="dsa", kernel=k, tp=8)), *LOADS)
        for k in (PUBLISHED, IDEAL)
    )
    assert own.group.as_modules
    assert bound.group.as_modules
    for of in ("ttft_s", "tpot_s"):
        ratio = getattr(bound, of).mid / getattr(own, of).mid
        assert ratio.max() <= 1.0 + 1e-9
        assert ratio.min() < 0.95
    # Short contexts are attended whole: what is left over dense are the indexer's weights (14 MB a layer) and keys.
    dense = evaluate(own.group.dense, *LOADS)
    short = LOADS[1] == 512.0
    assert (bound.tpot_s.mid / dense.tpot_s.mid)[short].min() >= 1.0
    assert (bound.tpot_s.mid / dense.tpot_s.mid)[short].max() < 1.03


@pytest.mark.parametrize("policy", ["cats", "teal", "relu(down_keep=1)", "dejavu", "sparq(budget=100000)"])
def test_an_ideal_kernel_that_keeps_all_is_dense_but_for_its_own_bytes(policy: str) -> None:
    """Neurons: a dense path exists, so nothing is lost but predictors' bytes and flop, which are a few per cent."""
    model = "opt-6.7b" if policy == "dejavu" else "llama-3.1-8b"
    whole = policy if "(" in policy else f"{policy}(keep=1)" if policy != "dejavu" else "dejavu(keep=1,attn_keep=1)"
    kept, dense = points(model, "a100-sxm-80g", whole, IDEAL), points(model, "a100-sxm-80g", "dense")
    assert kept is not None
    assert dense is not None
    ratio = kept.tpot_s.mid / dense.tpot_s.mid
    assert ratio.min() >= 1.0 - 1e-9
    assert ratio.max() <= 1.06


def test_an_ideal_kernel_of_4_bit_keys_and_values_by_hand() -> None:
    """Groups of 64: 4/8 + 4/64 = 0.5625 B an element for 2, so 0.28125 of the bytes behind 128 dense tokens.

    16 sequences of 4,096 tokens: (128 + 3,968 x 0.28125) / 4,096 = 0.3037 of the dense bytes, one kernel as in the
    dense model, nothing unpacked; the quantising pass keeps its bytes and loses its start.
    """
    core, new = (o for o in ops("kv_quant(bits=4)", IDEAL) if o.role in ("attn.core", "kv.quantise"))
    dense = next(o for o in ops("dense", PUBLISHED) if o.role == "attn.core")
    assert isinstance(core, Attention)
    assert isinstance(dense, Attention)
    assert isinstance(new, Elementwise)
    assert core.kv_read_bytes / dense.kv_read_bytes == pytest.approx((128 + 3968 * 0.28125) / 4096)
    assert (core.expand, core.launches, core.run_bytes, core.flop) == (None, 1.0, STREAM, dense.flop)
    assert new.launches == 0.0
    assert new.read_bytes == 16 * dense.dense_bytes_per_token


def test_an_ideal_2_4_product_by_hand() -> None:
    """16-bit values: 2 of 4 kept with 2 bits each, 9/8 B for 2 and half the flop, at the dense efficiency."""
    step = decode_step(1.0, 512.0)
    kept = next(o for o in ops("nm24", IDEAL, step) if o.role == "mlp.down")
    dense = next(o for o in ops("dense", PUBLISHED, step) if o.role == "mlp.down")
    assert isinstance(kept, Linear)
    assert isinstance(dense, Linear)
    assert kept.weight_read_bytes / dense.weight_read_bytes == pytest.approx(9 / 16)
    assert kept.flop / dense.flop == 0.5
    assert kept.fmt == dense.fmt
    assert kept.instead is not None
    assert kept.instead.nm24  # where the library's kernel is faster, or the device has none
    group = group_of(Scenario(model="llama-3.1-8b", device="h100-sxm", policy="nm24", kernel=IDEAL, engine="kernels"))
    from simulator.roofline.timing import time_op

    ours, theirs = (time_op(o, group.device, group.engine) for o in (kept, dense))
    # 33 MB of weights of the dense 59: the activations' 36 kB do not show.
    assert ours.memory_s / theirs.memory_s == pytest.approx(9 / 16, rel=0.002)


def test_an_ideal_kernel_starts_once_and_never_waits() -> None:
    """Mustafar's released code packs a prompt head by head with waits of the host; 1 + 0 kernels are left."""
    for step in (prefill_step(1.0, 4096.0), decode_step(1.0, 4096.0)):
        plain = ops("dense", PUBLISHED, step)
        bound = ops("mustafar", IDEAL, step)
        assert sum(o.traffic().launches * o.count for o in bound) == sum(o.traffic().launches * o.count for o in plain)
        assert not any(o.host_sync for o in bound)
        assert all(o.graph_safe for o in bound)


def test_an_ideal_kernel_needs_the_hardware_all_the_same() -> None:
    """A V100 has no 2:4 tensor cores: half of the flop cannot be skipped there by any kernel."""
    for kernel in (PUBLISHED, IDEAL):
        group = group_of(Scenario(model="opt-6.7b", device="v100-sxm", policy="nm24", kernel=kernel))
        assert group.problem is not None
        assert "2:4" in group.problem[1]


def test_an_ideal_kernel_holds_the_same_memory() -> None:
    for policy in ("nm24", "w4a16", "mustafar", "quest", "shadowllm"):
        model = "opt-6.7b" if policy == "shadowllm" else "llama-3.1-8b"
        own, bound = (
            predict(Scenario(model=model, device="h100-sxm", policy=policy, kernel=k)).answer
            for k in (PUBLISHED, IDEAL)
        )
        assert bound.total_bytes == pytest.approx(own.total_bytes, rel=1e-12)
        assert bound.max_batch == own.max_batch
