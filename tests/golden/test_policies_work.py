"""Work beyond bytes by hand: searches, loads of small tiles, tracking, kernels an engine does not fuse."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simulator.base.dtypes import FORMATS
from simulator.device.catalogue import load
from simulator.inference.group import group_of
from simulator.inference.lowering import Lowering
from simulator.inference.step import step_time
from simulator.model.hub import find_model
from simulator.ops.ops import Attention, Elementwise, Linear, Op
from simulator.ops.step import Step, decode_step, prefill_step
from simulator.ops.transfers import HostCompute, Transfer
from simulator.policies import POLICIES, parse
from simulator.policies.kv_trained import Nsa
from simulator.roofline.engine import get_engine
from simulator.roofline.hardware import hardware
from simulator.roofline.sparse import select_s, tile_s
from simulator.roofline.timing import time_op
from simulator.scenario.scenario import Scenario

A100 = hardware(load("a100-sxm-80g"), "fp16")


def ops(policy: str, step: Step, model: str = "llama-3.1-8b", tp: int = 1) -> list[Op]:
    return Lowering(find_model(model).in_one_format(), parse(policy), FORMATS["fp16"], 2.0, tp).ops(step)


def one(found: list[Op], role: str) -> Op:
    return next(o for o in found if o.role == role)


LOWERING = {"lowered", "ops", "decode", "prompt", "linears", "stored", "kv", "group", "layer_weights"}
"""Helpers of these tests that lower a policy."""


def lowered_in(test: ast.FunctionDef) -> set[str]:
    """First words of the strings of a test that lowers something, its docstring and tests of refusals left out."""
    calls = [n.func for n in ast.walk(test) if isinstance(n, ast.Call)]
    names = {f.id for f in calls if isinstance(f, ast.Name)}
    if not names & LOWERING or any(isinstance(f, ast.Attribute) and f.attr == "why_not" for f in calls):
        return set()
    doc = ast.get_docstring(test, clean=False)
    texts = [n.value for n in ast.walk(test) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return {w for t in texts if t != doc for w in re.findall(r"(?:^|\+)([a-z]\w*)", t)}


def test_every_policy_has_a_hand_worked_count() -> None:
    """Each name stands in a golden test, or in the unit test of the eager baseline."""
    folder = Path(__file__).parent
    files = [*folder.glob("test_*.py"), folder.parent / "unit" / "test_eager_attention.py"]
    tests = [
        node
        for f in files
        for node in ast.parse(f.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    counted = {name for test in tests for name in lowered_in(test)}
    uncounted = [n for n in POLICIES if n not in counted]
    assert not uncounted, (
        f"{uncounted}: no golden test counts what they do; in the tests/golden/test_policies_*.py of their family "
        "lower one tiny layer and compare its bytes with a sum worked out by hand in the docstring"
    )


def test_a_search_is_shared_by_the_rows_it_has() -> None:
    """0.22 elements per SM and cycle at 1.41 GHz: one row of 7168 takes 7168 / (0.22 x 1.41e9) = 23.1 us, as long as
    108 of them; a row of 65,536 is cut into 4 pieces."""
    rate = 0.22 * 1.41e9
    assert select_s(7168.0, 1.0, A100) == pytest.approx(7168 / rate)
    assert select_s(108 * 7168.0, 108.0, A100) == pytest.approx(7168 / rate)
    assert select_s(216 * 7168.0, 216.0, A100) == pytest.approx(2 * 7168 / rate)
    assert select_s(65_536.0, 1.0, A100) == pytest.approx(65_536 / (4 * rate))


def test_quest_searches_pages_per_query_head() -> None:
    """S = 8192, page 16: 512 scores for each of 32 heads and 3 sequences."""
    pick = one(ops("quest(dense_layers=0)", decode_step(3.0, 8192.0)), "kv.top_k")
    assert isinstance(pick, Elementwise)
    assert (np.sum(pick.select_elements), pick.select_rows) == (3 * 512 * 32, 3 * 32)


def test_pooled_scores_are_searched_by_block() -> None:
    """S = 131,072: pooled keys stand for 16 tokens, blocks for 64: 2048 scores for each of 8 KV heads. InfLLM-V2's
    coarse normalisation costs a quarter more of 2 x 32 x 128 flop per pooled key. A query of a prompt of 8192 searches
    all P / 64 blocks in NSA's open port."""
    for policy, flop in (("infllm_v2", 1.25 * 2), ("nosa", 1.25 * 2), ("nsa", 4)):
        found = ops(policy, decode_step(1.0, 131_072.0))
        pick, estimate = one(found, "kv.top_k"), one(found, "kv.estimate")
        assert isinstance(pick, Elementwise)
        assert isinstance(estimate, Elementwise)
        assert float(np.sum(pick.select_elements)) == 2048 * 8, policy
        assert float(np.sum(estimate.flop)) == 8192 * flop * 32 * 128, policy
    pick = one(ops("fsa", prefill_step(1.0, 8192.0)), "kv.top_k")
    assert isinstance(pick, Elementwise)
    assert float(np.sum(pick.select_elements)) == 8192 * 128 * 8


def test_nsa_loads_blocks_for_every_query() -> None:
    """P = 4096, 16 blocks of 64: 1024 queries see 1 ... 1024 tokens, 3072 see 1024; 8 KV heads of 512 B."""
    step = prefill_step(1.0, 4096.0)
    dense = one(ops("dense", step), "attn.core.prefill")
    assert isinstance(dense, Attention)
    # Of half the heads no kernel was measured.
    core = Nsa(window=0)._prompt(replace(dense, head_keep=0.5))[-1]
    assert isinstance(core, Attention)
    assert core.kernel == ""
    pairs = 1024 * 1025 / 2 + 3072 * 1024
    assert float(np.sum(core.tile_bytes)) == pytest.approx(pairs * 8 * 512)
    assert float(np.sum(tile_s(core.tile_bytes, A100))) == pytest.approx(pairs * 8 * 512 / (0.67 * 5.4e12))
    assert np.all(np.asarray(one(ops("fsa(window=0)", step), "attn.core.prefill").tile_bytes) == 0)


def test_minference_loads_lines_for_64_queries_of_a_head() -> None:
    """P = 16,384, 7096 lines: pairs x 512 B / 64 for each of 32 query heads; a shorter prompt loads all pairs so."""
    core = one(ops("minference", prefill_step(1.0, 16_384.0)), "attn.core.prefill")
    assert isinstance(core, Attention)
    pairs = 7096 * 7097 / 2 + (16_384 - 7096) * 7096
    assert float(np.sum(core.tile_bytes)) == pytest.approx(pairs * 512 / 64)
    assert core.count == 32 * 32
    short = one(ops("minference", prefill_step(1.0, 4096.0)), "attn.core.prefill")
    assert isinstance(short, Attention)
    assert float(np.sum(short.tile_bytes)) == pytest.approx(4096 * 4097 / 2 * 512 / 64)


def test_small_tiles_slow_a_prompt_down() -> None:
    """Time is the fourth root of the sum of fourth powers of the dense kernel's and the loads' own."""
    device, engine = load("a100-sxm-80g"), get_engine("hf")
    core = one(ops("nsa(window=0)", prefill_step(1.0, 32_768.0)), "attn.core.prefill")
    import dataclasses

    plain = time_op(dataclasses.replace(core, tile_bytes=0.0), device, engine)
    loads = tile_s(core.tile_bytes, A100) * core.count
    both = (np.asarray(plain.total_s) ** 4 + np.asarray(loads) ** 4) ** 0.25
    assert np.asarray(time_op(core, device, engine).total_s) == pytest.approx(both)


def test_predictors_search_each_layer_and_heads_are_tracked() -> None:
    """OPT-30B on 4 GPUs: 48 searches of 28,672 / 4 scores; layers 1 ... 47 track their 56 / 4 heads over 16 tokens
    with 9 small kernels, 14 x 16 x 4 B read and written by each."""
    found = ops("shadowllm(keep=0.5)", decode_step(1.0, 256.0), "opt-30b", tp=4)
    search = one(found, "predictor.mlp.top_k")
    assert isinstance(search, Elementwise)
    assert (search.count, search.select_elements, search.select_rows) == (48, 7168, 1)
    tracks = [o for o in found if o.role == "kv.track"]
    assert sum(float(np.max(o.count)) for o in tracks) == 9 * 47
    assert float(np.sum(tracks[0].traffic().total_bytes)) == 2 * 14 * 16 * 4
    theirs = ops("dejavu(keep=0.5)", decode_step(1.0, 256.0), "opt-30b", tp=4)
    assert sum(float(np.max(o.count)) for o in theirs if o.role == "kv.track") == 9 * 48
    for role in ("predictor.attn.in", "predictor.mlp.out"):
        product = one(theirs, role)
        assert isinstance(product, Linear)
        assert product.beside == ("attn.all_reduce", "mlp.all_reduce")


def test_a_look_ahead_predictor_hides_behind_all_reduces() -> None:
    """On 4 GPUs what is left of it is its time less the all-reduces'; on one GPU nothing hides."""

    def left(tp: int) -> float:
        s = Scenario.of(model="opt-30b", device="a100-sxm-80g", tp=tp, engine="torch-graph", policy="dejavu(keep=0.5)")
        g = group_of(s)
        step = decode_step(1.0, 256.0)
        alone = sum(
            float(np.sum(time_op(o, g.device, g.engine).total_s))
            for o in g.lowering.ops(step)
            if o.role in ("predictor.mlp.in", "predictor.mlp.out")
        )
        there = sum(
            float(np.sum(t.total_s))
            for t in step_time(g, step).ops
            if t.op.role in ("predictor.mlp.in", "predictor.mlp.out")
        )
        return there / alone

    assert left(1) == pytest.approx(1.0)
    assert left(4) < 0.8


def test_an_eager_engine_moves_more_per_norm() -> None:
    """modeling_llama.py: 21 rows for a norm with its residual where a fused kernel moves 4, by 8 kernels for 1."""
    device = load("a100-sxm-80g")
    norm = one(ops("dense", prefill_step(1.0, 65_536.0)), "norm")
    fused, eager = (time_op(norm, device, get_engine(e)) for e in ("kernels", "hf"))
    # The fit bends a little over the bytes.
    assert float(np.sum(eager.memory_s / fused.memory_s)) == pytest.approx(5.25, rel=0.05)
    layer_norm = one(ops("dense", prefill_step(1.0, 4096.0), "opt-6.7b"), "norm")
    assert (norm.kind, layer_norm.kind) == ("norm", "layer_norm")  # type: ignore[union-attr]


def test_flexgen_waits_for_every_layer() -> None:
    """Its step is the sum of GPU and submission where others take the longer."""
    s = Scenario.of(model="opt-6.7b", device="a100-sxm-80g", batch=16, prompt_tokens=1024)
    step = decode_step(16.0, 1024.0)
    for engine, total in (("flexgen", lambda a, b: a + b), ("vllm-2023", max)):
        parts = step_time(group_of(s.model_copy(update={"engine": engine})), step).parts
        stream, submit = (float(np.max(x)) for x in (parts.stream_s, parts.submit_s))
        assert float(np.max(parts.total_s)) == pytest.approx(total(stream, submit) + float(np.max(parts.wait_s)))


def test_sparse_weights_is_its_format() -> None:
    """Bitmap at keep 0.5: 2 x 0.5 + 1/8 + 4/4096 B per weight; CSR: 6 x 0.5 + 4 B per row of the matrix."""
    d, f = 4096, 14_336
    for text, per in (
        ("sparse_weights(keep=0.5)", 2 * 0.5 + 1 / 8 + 4 / 4096),
        ("sparse_weights(keep=0.5,format=csr)", 6 * 0.5 + 4 / f),
    ):
        down = one(ops(text, decode_step(1.0, 64.0)), "mlp.down")
        assert isinstance(down, Linear)
        assert down.weight_read_bytes == pytest.approx(d * f * per, rel=1e-3)


def test_turbosparse_reads_a_tenth_of_the_neurons() -> None:
    """keep 0.1, all hot, one row: up and down read 0.1 of their fp16 bytes on the GPU, the CPU nothing."""
    found = ops("turbosparse", decode_step(1.0, 64.0))
    down = one(found, "mlp.down")
    assert isinstance(down, Linear)
    assert float(np.sum(down.weight_read_bytes)) == pytest.approx(0.1 * 2 * 4096 * 14_336)
    # Neither a prompt nor a token leaves the GPU, and no tier beside its memory is asked for.
    found += ops("turbosparse", prefill_step(1.0, 64.0))
    assert not [o for o in found if isinstance(o, Transfer | HostCompute)]
    s = Scenario.of(model="llama-3.1-8b", device="a100-sxm-80g", policy="turbosparse")
    assert group_of(s).problem is None
    cold = group_of(s.model_copy(update={"policy": "powerinfer(hot=0.9)"})).problem
    assert cold is not None
    assert "dram" in cold[1]


def test_a_share_of_the_multiply_adds_is_timed() -> None:
    """N:M weights without tensor cores of their own do n/m of the math: a long prompt gains."""
    device, engine = load("alveo-u280"), get_engine("kernels")
    half, whole = (
        time_op(one(ops(p, prefill_step(1.0, 2048.0)), "mlp.down"), device, engine)
        for p in ("flightllm(n=8,m=16,bits=4)", "flightllm(n=16,m=16,bits=4)")
    )
    # Tiles of fewer bits load a little faster too.
    assert float(np.sum(half.math_s / whole.math_s)) == pytest.approx(0.5, rel=0.03)
