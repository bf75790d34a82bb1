"""Attention modules as engines run them: counts by hand, fits of made-up rows, what a prediction answers with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from simulator.base.dtypes import DType, get_format
from simulator.device.catalogue import load
from simulator.device.fits import Basis
from simulator.fitting import module as fitting
from simulator.fitting.asked import predicted
from simulator.inference.group import Group, group_of
from simulator.inference.step import step_time
from simulator.ops.module import AttentionModule
from simulator.ops.step import Step, decode_step, prefill_step
from simulator.ops.traffic import Operand
from simulator.ops.widths import WIDTHS
from simulator.roofline.engine import get_engine
from simulator.roofline.lookup import generation_of, lookup, module_key
from simulator.roofline.module import OWN_TERMS, ModuleRates, module_rates, module_time, start
from simulator.roofline.timing import time_op
from simulator.scenario.scenario import Scenario


def op(kind: str = "dsa", widths: str = "v3.2", phase: str = "decode", **changed) -> AttentionModule:
    values = {
        "role": "attn.module",
        "kind": kind,
        "phase": phase,
        "batch": 4.0,
        "q_len": 1.0,
        "past_len": 8191.0,
        "n_heads": 16.0,
        "widths": WIDTHS[widths],
        "fmt": get_format("fp8_block"),
        "math": DType.BF16,
        "kv_element_bytes": 2.0,
    }
    return AttentionModule(**{**values, **changed})


def test_a_dense_mla_decode_by_hand():
    """One token of 4 sequences of 8192 on 16 of 128 heads of DeepSeek-V3."""
    d = op("mla-dense", "v3").demand()
    weights = 7168 * (1536 + 512 + 64) + 16 * (1536 * 192 + 128 * 7168)
    absorbed = 16 * 512 * (128 + 128)
    assert d.projection_flop == 2 * 4 * weights
    assert d.absorbed_flop == 2 * 4 * absorbed
    assert d.weight_bytes == weights * get_format("fp8_block").weight_bytes + absorbed * 2
    assert d.kv_bytes == 4 * 8192 * 576 * 2
    assert d.attention_flop == 2 * 4 * 8192 * 16 * (576 + 512)
    assert d.index_flop == d.scores == d.chosen == 0.0


def test_a_dsa_decode_reads_2048_latents_and_every_index_key():
    d = op().demand()
    assert d.kv_bytes == 4 * 2048 * 576 * 2
    assert d.attention_flop == 2 * 4 * 2048 * 16 * (576 + 512)
    assert d.index_bytes == 4 * 8192 * 132
    assert d.index_flop == 2 * 4 * 8192 * 64 * 128
    assert (d.scores, d.chosen) == (4 * 8192, 1.0)
    shared = op(indexes=False).demand()
    assert (shared.index_bytes, shared.scores, shared.chosen) == (0.0, 0.0, 0.0)
    # Index projections: 1536 x 64 x 128 queries, 7168 x (128 + 64) keys and weights.
    assert d.projection_flop - shared.projection_flop == 2 * 4 * (1536 * 8192 + 7168 * 192)


@pytest.mark.parametrize(("widths", "kind"), [("v4-flash csa", "csa"), ("v4-flash hca", "hca"), ("v3.2", "dsa")])
def test_pairs_of_a_prompt_are_the_sum_over_its_queries(widths: str, kind: str):
    w = WIDTHS[widths]
    q, past = 700, 2500
    by_query = [
        min(p / w.compress, w.top_k) + (min(p, w.window) if w.window else 0) for p in range(past + 1, past + q + 1)
    ]
    got = op(kind, widths, "prefill", q_len=float(q), past_len=float(past)).pairs
    assert got == pytest.approx(sum(by_query), rel=1e-12)


def test_a_prompt_of_dense_mla_rebuilds_keys_and_values_of_its_whole_context():
    d = op("mla-dense", "v3", "prefill", q_len=100.0, past_len=300.0).demand()
    projections = op("mla-dense", "v3", "prefill", q_len=100.0, past_len=300.0, n_heads=0.0).demand()
    heads = d.projection_flop - projections.projection_flop
    assert heads == 16 * (2 * 400 * (1536 * 192 + 128 * 7168) + 2 * 4 * 400 * 512 * 256)
    assert d.absorbed_flop == 0.0


def test_one_kernel_of_a_module_has_no_weights():
    logits = op("indexer-logits", math=DType.FP8, kv_element_bytes=1.0).traffic()
    assert logits.read_bytes(Operand.WEIGHT) == 0.0
    assert logits.read_bytes(Operand.INDEX) == 4 * 8192 * 132
    assert op("top-k").traffic().total_flop == 0.0


def test_kv_heads_of_msa_are_split_but_never_below_one():
    whole, eighth, least = (op("msa", "m3", n_heads=h).entry_bytes for h in (64.0, 16.0, 8.0))
    assert (whole, eighth, least) == (2 * 4 * 128 * 2, 2 * 128 * 2, 2 * 128 * 2)


RATES = ModuleRates(1e15, 1e15, 2e15, 1e15, 3e12, 0.0, 512.0, 1.0)


def test_a_time_is_the_sum_of_its_stages_and_never_below_the_floor():
    d = op("dsa-attention", kv_element_bytes=1.0).demand()
    kv, pairs = d.kv_bytes / 3e12, d.attention_flop / 1e15
    coef = {"launch_s": 1e-5, "kv8_s": 2e-6, "kv": 2.0, "pairs": 3.0}
    assert module_time(d, RATES, coef).total_s == pytest.approx(
        1.2e-5 + ((2.0 * kv) ** 4 + (3.0 * pairs) ** 4) ** 0.25, rel=1e-12
    )
    assert module_time(d, RATES, {"kv": 0.01}).total_s == pytest.approx(max(kv, pairs))


def test_kv_heads_of_msa_pad_their_own_query_heads():
    """16 query heads a KV head: twice the heads are twice the padded tiles, up to eight KV heads on 128 heads."""
    few, many = (op("msa", "m3", "prefill", q_len=1024.0, past_len=0.0, n_heads=h) for h in (16.0, 128.0))
    assert (few.demand().group, many.demand().group) == (16.0, 16.0)
    assert many.entry_bytes == 8 * few.entry_bytes
    assert many.demand().scores == 8 * few.demand().scores
    t = [module_time(o.demand(), RATES, {"pad_heads": 100.0}).total_s for o in (few, many)]
    assert t[1] == pytest.approx(8 * t[0])


def test_beyond_the_largest_captured_graph_the_host_submits_every_kernel():
    coef = {"launch_s": 1e-5, "host_s": 1e-3, "host_quant_s": 5e-4}
    within, beyond = (module_time(op(batch=b).demand(), RATES, coef).total_s for b in (512.0, 513.0))
    assert within < 7e-4
    assert beyond == pytest.approx(1.5e-3, rel=0.01)
    assert module_rates(load("h100-sxm"), get_format("bf16"), DType.BF16).captured == 256.0
    assert module_rates(load("b200"), get_format("bf16"), DType.BF16).captured == 512.0


def test_a_short_prompt_of_sglang_attends_densely():
    """Up to 2,048 tokens of context and 131,072 of all sequences no index is asked; one more, and it is."""
    first = start("dsa", "prefill", "sglang-0.5.14:dsa")
    assert "short_pairs" not in start("dsa", "prefill", "vllm-0.24.0:FLASHMLA_SPARSE")
    coef = {**dict.fromkeys(first, 0.0), "short_host_s": 1e-4, "launch_s": 9e-4}

    def time(batch: float, context: float):
        d = op("dsa", "v3.2", "prefill", batch=batch, q_len=64.0, past_len=context - 64.0).demand()
        return d.short, module_time(d, RATES, {**coef, "launch_s": 0.0, "row_s": 1e-6}).total_s

    assert time(64.0, 2048.0)[0] == 1.0
    for batch, context in ((65.0, 2048.0), (1.0, 2049.0)):
        short, total = time(batch, context)
        assert short == 0.0
        assert total == pytest.approx(1e-6 * batch * 64.0, rel=0.01)
    assert time(1.0, 2048.0)[1] == pytest.approx(1e-4, rel=0.05)


def test_vllm_takes_four_sequences_of_a_compressed_prompt_at_once():
    coef = {"chunk_s": 1.0}
    times = [
        module_time(op("csa", "v4-flash csa", "prefill", batch=b, q_len=8.0).demand(), RATES, coef).total_s
        for b in (4.0, 5.0, 8.0, 9.0)
    ]
    assert times == [1.0, 2.0, 2.0, 3.0]
    assert "chunk_s" in start("hca", "prefill", "vllm-0.25.0:FLASHMLA_SPARSE_DSV4")
    assert "chunk_s" not in start("hca", "prefill", "sglang-0.5.14:compressed_flashmla")


def test_a_choice_among_1536_to_2049_entries_is_trtllms_slow_one():
    coef = {"edge_s": 1.0, "edge_row_s": 0.25}

    def of(kind: str, widths: str, context: float) -> float:
        return float(module_time(op(kind, widths, past_len=context - 1.0).demand(), RATES, coef).total_s)

    assert [of("dsa", "v3.2", s) > 1.9 for s in (2048.0, 2049.0, 4097.0)] == [False, True, False]
    assert [of("csa", "v4-flash csa", s) > 1.9 for s in (4097.0, 6145.0, 8193.0, 10241.0)] == [False, True, True, False]


def test_the_phases_of_a_mixed_step_read_the_projections_once():
    low = group().lowering
    mixed = Step(
        prefill_rows=1.0, prefill_tokens=512.0, prefill_context=4096.0, decode_rows=32.0, decode_context=8192.0
    )

    def weights(step: Step) -> float:
        return sum(float(o.count * o.demand().weight_bytes) for o in low.ops(step) if isinstance(o, AttentionModule))

    alone = weights(prefill_step(1.0, 4096.0))
    assert weights(mixed) == weights(decode_step(32.0, 8192.0)) == alone > 0.0
    modules = [o for o in low.ops(mixed) if isinstance(o, AttentionModule)]
    assert sum(o.demand().projection_flop > 0.0 for o in modules) == len(modules) == 2


def raw(rows: list[dict]) -> pd.DataFrame:
    base = {
        "source": "made-up",
        "device": "H100-SXM",
        "framework": "vllm",
        "module": "dsa",
        "phase": "decode",
        "model": "deepseek-ai/DeepSeek-V3.2",
        "mla_dtype": "bfloat16",
        "kv_dtype": "bfloat16",
        "gemm_dtype": "bfloat16",
        "n_heads": 16,
        "tp": 8,
        "batch": 4,
        "q_len": 1,
        "past_len": 8191,
        "kernel": "vllm-0.24.0:FLASHMLA_SPARSE",
        "time_s": 1e-4,
    }
    return pd.DataFrame([{**base, **r} for r in rows])


def test_of_two_times_of_a_glm_5_2_shape_the_shorter_takes_the_choice_of_another_layer():
    twice = [{"model": "zai-org/GLM-5.2", "time_s": t} for t in (1e-4, 6e-5)]
    once = [{"time_s": t} for t in (1e-4, 6e-5)]
    rows = fitting.prepare(raw(twice + once)).set_index(["widths", "indexes"])["time_s"]
    assert rows["glm-5", True] == 1e-4
    assert rows["glm-5", False] == 6e-5
    assert rows["v3.2", True] == pytest.approx(8e-5)


def test_kernels_an_engine_picks_by_length_are_one_library():
    names = ("sglang_dsa_dense_mha_fa3", "sglang_dsa_indexer_flashmla_sparse", "sglang_dsa_skip_indexer_fa3")
    assert {fitting.library_of(f"sglang-0.5.14:{n}", "dsa", "prefill") for n in names} == {"sglang-0.5.14:dsa"}
    assert fitting.library_of("vllm-0.25.0:FLASHMLA", "mla-dense", "prefill") == "vllm-0.25.0:mla_prefill"
    assert fitting.library_of("vllm-0.25.0:FLASHMLA", "mla-dense", "decode") == "vllm-0.25.0:FLASHMLA"


def test_rows_of_the_model_are_fitted_and_answered_through_time_op():
    """Rows that follow the model exactly come back within the surface's and the prior's pull."""
    truth = {"launch_s": 8e-5, "weights": 1.4, "products": 1.2, "token": 1.0, "kv": 1.5, "pairs": 2.0, "pad_heads": 0.2}
    truth |= {"pad_tokens": 0.05, "index": 1.2, "index_math": 2.0, "row_s": 1e-9, "score": 1.0, "select_s": 2e-5}
    shapes = [(b, s, h) for b in (1, 4, 16, 64, 256) for s in (511, 2047, 8191, 32767) for h in (16, 32, 128)]
    rows = fitting.prepare(raw([{"batch": b, "past_len": s, "n_heads": h} for b, s, h in shapes]))
    rows = rows.assign(time_s=module_time(*fitting.counted(rows), truth).total_s)
    fits = fitting.fit(rows, date="2026-11-30")
    assert {f.device for f in fits} == {"h100-sxm", "sm90", "any"}
    judged, excluded = predicted("module", rows, fits)
    assert not excluded
    ape = np.abs(judged["mid_s"] / judged["time_s"] - 1.0)
    assert ape.median() < 0.02
    assert ape.max() < 0.15
    assert set(judged["basis"]) == {"CALIBRATED"}


def test_an_engine_that_was_not_measured_on_a_device_answers_with_its_like():
    """vLLM has no rows on the H200: its fit of Hopper answers before TensorRT-LLM's own one."""
    assert generation_of("vllm-0.25.0:FLASHMLA") == "vllm:FLASHMLA"
    found = lookup(load("h200"), "module", module_key(op()), "vllm-0.24.0:FLASHMLA_SPARSE")
    assert (found.fit.device, found.fit.library) == ("sm90", "vllm-0.24.0:FLASHMLA_SPARSE")
    assert found.basis is Basis.EXTRAPOLATED
    assert found.stands_in
    own = lookup(load("h100-sxm"), "module", module_key(op()), "vllm-0.24.0:FLASHMLA_SPARSE")
    assert own.basis is Basis.CALIBRATED


def test_an_engines_own_terms_do_not_answer_for_another():
    """SGLang submits prompts from the host; an engine without rows of MSA does not inherit that."""
    key = module_key(op("msa", "m3", "prefill"))
    own = lookup(load("h100-sxm"), "module", key, "sglang-0.5.16:sglang_minimax_prefill_triton_sparse").fit
    assert own.coefficients["host_s"] > 1e-4
    other = lookup(load("h100-sxm").with_fits("module", [own]), "module", key, "another-1.0:kernel").fit
    assert other.coefficients == {k: v for k, v in own.coefficients.items() if k not in OWN_TERMS}
    assert "host_s" not in other.coefficients
    assert other.residual.q95 > own.residual.q95


def test_another_familys_coefficient_of_the_same_name_stays():
    """Chunks of a gated delta net are its mathematics, not an engine's habit."""
    fits = [f for f in load("h100-sxm").measured.own("linear_attention") if "chunk_s" in f.coefficients]
    found = lookup(
        load("h100-sxm").with_fits("linear_attention", fits[:1]), "linear_attention", fits[0].dtype, "other-1.0:x"
    )
    assert found.fit.coefficients == fits[0].coefficients


def group(device: str = "h100-sxm", policy: str = "dsa", **changed) -> Group:
    values = {"model": "deepseek-v3", "device": device, "policy": policy, "tp": 8, "batch": 64, "prompt_tokens": 8192}
    return group_of(Scenario(**{**values, **changed}))


def test_dense_and_dsa_are_timed_alike_where_the_engine_was_measured_with_both():
    whole = group()
    assert whole.as_modules
    assert whole.dense.as_modules
    assert group(policy="dense").as_modules
    assert not group(engine="sglang").as_modules
    assert not group("a100-sxm-80g", dtype="bf16").as_modules
    assert not group(model="llama-2-7b", policy="dense", tp=1).as_modules
    other = group(policy="mustafar(keep=0.5)", model="llama-2-7b", tp=1)
    assert not other.dense.as_modules


def test_one_dense_answer_whatever_policy_is_asked_beside_it():
    """A policy that spares the blocks keeps the modules; one that works inside them is scaled as its dense twin is."""
    steps = prefill_step(1.0, 4096.0), decode_step(64.0, 8192.0)
    asked = {name: group(policy=name) for name in ("dsa", "expert_pruning", "mixture_of_depths", "dense")}
    assert {name: g.as_modules for name, g in asked.items()} == {
        "dsa": True,
        "expert_pruning": True,
        "mixture_of_depths": False,
        "dense": True,
    }
    for step in steps:
        dense = {float(step_time(g.dense, step).total_s) for g in asked.values()}
        assert dense == {float(step_time(asked["dense"], step).total_s)}
    inside = asked["mixture_of_depths"]
    bare, twin = replace(inside, modules=False), replace(inside.dense, modules=False)
    for step in steps:
        one, all_ = step_time(inside, step), step_time(inside.dense, step)
        assert one.gpu_s / all_.gpu_s == pytest.approx(step_time(bare, step).gpu_s / step_time(twin, step).gpu_s)
        assert one.lo_s < one.total_s < one.hi_s
        assert sum(one.shares_s.values()) == pytest.approx(one.total_s)
        assert sum(t.total_s for t in one.ops) == pytest.approx(one.gpu_s)


def test_memory_counts_the_same_weights_with_and_without_modules():
    low = group().lowering
    assert low.as_modules
    roles = [o.role for o in low.one_token]
    assert roles == [o.role for o in replace(low, as_modules=False).one_token]
    assert "attn.q_down" in roles


@pytest.mark.parametrize("device", ["h100-sxm", "h200"])
def test_dsa_decode_loses_on_short_contexts_and_wins_on_long_ones(device: str):
    """Measured at batch 64 (vLLM 0.24): 0.8 to 1.0 of dense MLA at 8K with either cache, 4x at 128K on the H100."""
    engine, card = get_engine("vllm"), load(device)

    def speedup(context: float, kv: float) -> float:
        dense = op("mla-dense", "v3", batch=64.0, past_len=context - 1.0, kv_element_bytes=kv)
        sparse = op("dsa", "v3.2", batch=64.0, past_len=context - 1.0, kv_element_bytes=kv)
        return float(time_op(dense, card, engine).total_s / time_op(sparse, card, engine).total_s)

    assert speedup(4096.0, 2.0) < 0.9
    assert speedup(8192.0, 1.0) < 0.9
    assert speedup(8192.0, 2.0) == pytest.approx(1.0, abs=0.15)
    assert speedup(131072.0, 2.0) > 3.0


def test_speedups_pair_a_module_with_the_dense_one_of_its_engine_and_are_none_without_pairs():
    dense = {"module": "mla-dense", "model": "deepseek-ai/DeepSeek-V3", "kernel": "vllm-0.25.0:FLASH_ATTN_MLA"}
    rows = fitting.prepare(raw([{"time_s": 2e-4}, {**dense, "time_s": 1e-4}]))
    right = fitting.speedups(rows.assign(mid_s=rows["time_s"]))
    assert [(r["n"], r["sign"], r["clear"]) for r in right] == [(1, 1.0, 1.0), (1, 1.0, 1.0)]
    wrong = fitting.speedups(rows.assign(mid_s=1.0 / rows["time_s"]))
    assert wrong[0]["sign"] == 0.0
    assert wrong[0]["median_ape"] == pytest.approx(3.0)
    assert fitting.speedups(rows[rows["kind"] == "dsa"].assign(mid_s=1.0)) == []
