"""Speculative decoding: what it spells, what its ops are, and what it is refused with."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.api import Grid, Scenario, predict, sweep
from simulator.base.errors import InputError, UnknownNameError
from simulator.inference import memory
from simulator.inference.evaluate import evaluate
from simulator.inference.group import group_of
from simulator.inference.step import step_time
from simulator.ops.ops import Attention, Linear, Moe
from simulator.ops.step import decode_step, mixed_step, prefill_step
from simulator.policies import POLICIES
from simulator.scenario.speculation import speculation

HOMES = ("llama-2-7b", "opt-6.7b", "mixtral-8x7b", "deepseek-v3", "llama-3.1-8b")
LLAMA = {"model": "llama-3.1-8b", "device": "h100-sxm", "prompt_tokens": 1000, "output_tokens": 101}


def group(**more: object):
    return group_of(Scenario.of(**LLAMA | more))


@pytest.mark.parametrize(
    ("text", "k", "tokens", "nodes"),
    [
        ("draft(model=llama-3.2-1b,k=3,accept=0.5)", 3, 1 + 0.5 + 0.25 + 0.125, 3),
        ("mtp(k=1,accept=0.85)", 1, 1.85, 1),
        ("ngram(k=2,accept=0.6/0.3)", 2, 1.9, 2),
        ("eagle3(k=5,tau=3.5)", 5, 3.5, 5),
        ("eagle3(k=6,tau=5.1,topk=10,nodes=60)", 6, 5.1, 60),
        ("eagle3(k=4,accept=1)", 4, 5.0, 4),
        ("eagle3(k=4,accept=0)", 4, 1.0, 4),
    ],
)
def test_tokens_per_step(text: str, k: int, tokens: float, nodes: int) -> None:
    found = speculation(text)
    assert (found.k, found.nodes) == (k, nodes)
    assert found.tokens == pytest.approx(tokens)
    assert speculation(found.spelling) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("eagle3(k=4)", "needs what is accepted"),
        ("eagle3(k=4,accept=0.7,tau=2)", "needs what is accepted"),
        ("eagle3(accept=0.7)", "needs the tokens drafted"),
        ("eagle3(k=0,accept=0.7)", "whole number of 1 to 64"),
        ("eagle3(k=2.5,accept=0.7)", "whole number of 1 to 64"),
        ("eagle3(k=x,accept=0.7)", "is not a number"),
        ("eagle3(k=nan,accept=0.7)", "whole number of 1 to 64"),
        ("eagle3(k=4,accept=1.2)", "shares are 0 to 1"),
        ("eagle3(k=4,accept=nan)", "shares are 0 to 1"),
        ("eagle3(k=4,tau=5.1)", "1 to k \\+ 1 = 5"),
        ("eagle3(k=2,accept=0.5/0.6)", "not accepted more often"),
        ("eagle3(k=3,accept=0.6/0.5)", "2 positions, but k=3"),
        ("eagle3(k=4,nodes=8,tau=2)", "give the branches"),
        ("eagle3(k=4,nodes=3,topk=2,tau=2)", "at least one path"),
        ("eagle3(k=4,topk=2,accept=0.5)", "of a tree give tau"),
        ("draft(k=4,accept=0.5)", "needs the model that drafts"),
        ("mtp(k=1,accepts=0.5)", "did you mean 'accept'"),
        ("mtp(k=1,model=llama-2-7b,accept=0.5)", "no parameter 'model'"),
        ("mtp(k=1,accept=0.5", "brackets do not match|cannot read"),
    ],
)
def test_what_it_is_refused_with(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        speculation(text)


def test_another_name_is_met_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'eagle3'"):
        Scenario.of(**LLAMA, speculate="eagel3(k=2,tau=2)")


def test_a_step_verifies_all_drafted_tokens_and_the_one_before_them() -> None:
    """Five tokens of each of 8 sequences: 40 rows of every product and of the head, KV read once per sequence."""
    low = group(speculate="ngram(k=4,accept=0.5)").lowering
    ops = {op.role: op for op in low.ops(decode_step(8.0, 1000.0))}
    assert isinstance(ops["attn.qkv"], Linear)
    assert ops["attn.qkv"].m == 40.0
    assert ops["lm_head"].m == 40.0
    core = ops["attn.core"]
    assert isinstance(core, Attention)
    assert (core.batch, core.q_len, core.kv_len) == (8.0, 5.0, 1004.0)
    # 8 KV heads of 128, K and V in 16 bit.
    assert core.kv_read_bytes == 8 * 1004 * 8 * 256 * 2
    # The five tokens see 1000, 1001, ... 1004 others.
    assert core.pairs == 1000 + 1001 + 1002 + 1003 + 1004
    assert not any(role.startswith("draft.") for role in ops)


def test_a_prompt_is_not_verified_and_a_mixed_step_in_part() -> None:
    low = group(speculate="ngram(k=4,accept=0.5)").lowering
    (alone,) = (op for op in low.ops(prefill_step(2.0, 300.0)) if op.role == "attn.qkv")
    assert alone.m == 600.0
    (mixed,) = (op for op in low.ops(mixed_step(3.0, 900.0, 1.0, 50.0, 50.0)) if op.role == "attn.qkv")
    assert mixed.m == 3 * 5 + 50


def test_a_draft_model_runs_k_times_and_reads_what_was_accepted_first() -> None:
    """Of 3.2 tokens per step the draft reads 3.2 rows of each sequence first, then one row three times."""
    low = group(speculate="draft(model=llama-3.2-1b,k=4,tau=3.2)").lowering
    ups = [op for op in low.ops(decode_step(2.0, 500.0)) if op.role == "draft.mlp.gate_up"]
    assert [(op.m, op.count, op.n, op.k) for op in ups] == [(6.4, 16.0, 16384.0, 2048), (2.0, 48.0, 16384.0, 2048)]
    heads = [op for op in low.ops(decode_step(2.0, 500.0)) if op.role == "draft.lm_head"]
    assert [(op.m, op.count) for op in heads] == [(2.0, 1.0), (2.0, 3.0)]


def test_an_eagle_layer_by_hand() -> None:
    """Q, K, V of 2 x 4096 inputs; a head of 32,000; the features of three layers once per step."""
    low = group(speculate="eagle3(k=5,tau=3)").lowering
    ops = [op for op in low.ops(decode_step(1.0, 500.0)) if op.role.startswith("draft.") and isinstance(op, Linear)]
    shapes = {op.role: (op.n, op.k) for op in ops}
    assert shapes["draft.attn.qkv"] == ((32 + 2 * 8) * 128, 2 * 4096)
    assert shapes["draft.lm_head"] == (32_000, 4096)
    assert shapes["draft.side.features"] == (4096, 3 * 4096)
    counts: dict[str, float] = {}
    for op in ops:
        counts[op.role] = counts.get(op.role, 0.0) + float(op.count)
    assert counts["draft.side.features"] == 1.0
    assert counts["draft.attn.qkv"] == counts["draft.lm_head"] == 5.0
    beside = memory.weights_bytes(low) - memory.weights_bytes(group().lowering)
    qkv, out, ffn = 6144 * 8192, 4096 * 4096, 3 * 4096 * 14336
    norms = 4 * 4096
    assert beside == pytest.approx(2 * (qkv + out + ffn + 32_000 * 4096 + 3 * 4096 * 4096 + norms), rel=1e-6)


def test_a_next_layer_is_of_the_last_kind_and_shares_embedding_and_head() -> None:
    """11.5 B parameters of a layer in FP8 (its report: 14 B with both ends); the product before it on each GPU."""
    plain = group(model="deepseek-v3", device="h200", tp=8).lowering
    low = group(model="deepseek-v3", device="h200", tp=8, speculate="mtp(k=1,accept=0.85)").lowering
    per_gpu = memory.weights_bytes(low) - memory.weights_bytes(plain)
    assert 8 * (per_gpu - 2 * 7168 * 7168 * 2) == pytest.approx(11.5e9, rel=0.02)
    experts = [op for op in low.ops(decode_step(16.0, 500.0)) if isinstance(op, Moe)]
    assert sorted((op.tokens, op.count) for op in experts) == [(16.0 * 1.85, 1.0), (32.0, 58.0)]


def test_drafts_keep_their_own_kv() -> None:
    """llama-3.2-1b: 16 layers of 8 KV heads of 64."""
    with_it, without = (
        memory.kv_bytes_per_sequence(group(**of).lowering, 1600.0)
        for of in ({"speculate": "draft(model=llama-3.2-1b,k=4,tau=3)"}, {})
    )
    assert float(with_it - without) == 1600 * 16 * 8 * 64 * 2 * 2


def test_time_of_a_token_is_its_part_of_the_step() -> None:
    speculated = group(speculate="eagle3(k=4,tau=3.2)")
    points = evaluate(speculated, np.array([4.0]), np.array([1000.0]), np.array([101.0]))
    at = [step_time(speculated, decode_step(4.0, c, 1000.0)).total_s for c in (1021.6, 1079.4)]
    assert float(points.tpot_s.mid[0]) == pytest.approx(np.mean(at) / 3.2, rel=1e-3)
    shares = sum(float(np.mean(s)) for s in points.decode.shares_s.values())
    assert shares == pytest.approx(float(points.tpot_s.mid[0]), rel=1e-6)
    assert float(points.decode.lo_s.mean()) <= float(points.tpot_s.mid[0]) <= float(points.decode.hi_s.mean())


def test_nothing_drafted_or_accepted_gains_nothing() -> None:
    plain = predict(Scenario.of(**LLAMA)).answer.tpot_s.mid
    wasted = predict(Scenario.of(**LLAMA, speculate="ngram(k=4,accept=0)")).answer.tpot_s.mid
    assert wasted >= plain


def test_more_accepted_is_faster_and_large_batches_gain_less() -> None:
    def faster(batch: int, tau: float) -> float:
        of = {**LLAMA, "batch": batch, "prompt_tokens": 100}
        both = (
            predict(Scenario.of(**of, **more)).answer.tpot_s.mid
            for more in ({}, {"speculate": f"eagle3(k=4,tau={tau})"})
        )
        plain, speculated = both
        return plain / speculated

    assert faster(1, 2.0) < faster(1, 3.0) < faster(1, 4.5)
    assert faster(1, 3.0) > 2.0 > faster(512, 3.0)


def test_verified_tokens_widen_the_union_of_contextual_policies() -> None:
    """One sequence of five tokens reads what a batch of five reads."""
    policy = {"model": "opt-6.7b", "policy": "shadowllm(keep=0.5)"}
    five = [op for op in group(**policy).lowering.ops(decode_step(5.0, 500.0)) if op.role == "mlp.up"]
    one = group(**policy, speculate="ngram(k=4,accept=0.5)").lowering
    verified = [op for op in one.ops(decode_step(1.0, 500.0)) if op.role == "mlp.up"]
    assert [op.traffic().total_bytes for op in verified] == [op.traffic().total_bytes for op in five]


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_composes_or_says_why_not(name: str) -> None:
    policy = POLICIES[name]()
    model = next(m for m in HOMES if group(model=m, policy=policy.spelling).lowering.why_not() is None)
    both = group(model=model, policy=policy.spelling, speculate="ngram(k=3,accept=0.5)")
    why = both.lowering.why_not()
    if not policy.compatibility.speculative:
        assert why is not None
        assert "verifies several" in why
        return
    assert why is None
    ops = both.lowering.ops(decode_step(2.0, 3000.0, 2000.0))
    assert all(np.isfinite(op.traffic().total_bytes).all() for op in ops)
    assert {float(op.m) for op in ops if op.role == "lm_head" and isinstance(op, Linear)} == {8.0}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"speculate": "draft(model=llama-2-7b,k=4,tau=3)"}, "another vocabulary"),
        ({"speculate": "eagle3(k=4,tau=3)", "pp": 2}, "--pp 1"),
        ({"speculate": "eagle3(k=4,tau=3)", "policy": "h2o(keep=0.2)", "model": "llama-2-7b"}, "verifies several"),
    ],
)
def test_what_cannot_be_combined_says_so(more: dict[str, object], said: str) -> None:
    answer = predict(Scenario.of(**LLAMA | more)).answer
    assert answer.status == "not_applicable"
    assert said in answer.reason


def test_an_axis_of_a_sweep_with_labels_of_its_own() -> None:
    given = ("", "eagle3(k=4,tau=3)")
    found = sweep(Grid(model=("llama-3.1-8b",), device=("h100-sxm",), speculate=given, batch=(1, 64)))
    table = found.to_pandas()
    assert table["speculate"].fillna("").tolist() == ["", "", given[1], given[1]]
    assert {key[2] for key in found.summary.found} == {"dense", f"dense, {given[1]}"}
    assert found.summary.best[0].speculate == given[1]


def test_predict_says_what_it_gives() -> None:
    found = predict(Scenario.of(**LLAMA, speculate="eagle3(k=4,tau=3)"))
    assert found.speculation.startswith("speculation: 3 tokens per step of ")
    assert "wins" in found.speculation
    assert predict(Scenario.of(**LLAMA)).speculation == ""
