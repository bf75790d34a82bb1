"""Attention data parallel with the experts spread over all ranks: bytes held, bytes sent, rows of each rank."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.base.dtypes import FORMATS
from simulator.base.errors import NothingFeasibleError, UnsupportedError
from simulator.device.catalogue import load
from simulator.device.fits import Basis
from simulator.fitting import e2e_rows
from simulator.inference import memory
from simulator.inference.closed_loop import cycle
from simulator.inference.evaluate import evaluate
from simulator.inference.group import Group, group_of, runnable
from simulator.inference.kvpool import kv_pool
from simulator.inference.lowering import Lowering
from simulator.model.hub import find_model
from simulator.ops.expert_exchange import ExpertExchange
from simulator.ops.ops import Attention, Collective, Linear, Moe
from simulator.ops.step import decode_step, mixed_step, prefill_step
from simulator.policies import parse
from simulator.roofline import timing
from simulator.roofline.engine import get_engine
from simulator.scenario.scenario import Scenario
from simulator.serving.deployment import Deployment

EXPERTS = 58 * 256 * 3 * 7168 * 2048
"""Weights of the routed experts of DeepSeek-V3 [-]."""


def lowered(tp: int, dp: int, ep: int) -> Lowering:
    """DeepSeek-V3 in 16 bit, its MLA as single ops."""
    return Lowering(
        find_model("deepseek-v3").in_one_format(),
        parse("dense"),
        FORMATS["fp16"],
        2.0,
        tp,
        ep,
        dp=dp,
        routed=ep == tp * dp > tp,
    )


def scenario(**more: object) -> Scenario:
    return Scenario.of(model="deepseek-v3", device="h200", engine="sglang", tp=8, **more)


@pytest.mark.parametrize(("tp", "dp"), [(1, 8), (2, 4)])
@pytest.mark.parametrize("ep", [1, 8])
def test_a_rank_holds_its_eighth_of_the_experts_and_its_share_of_a_whole_copy_of_the_rest(
    tp: int, dp: int, ep: int
) -> None:
    """All but the experts is replicated over dp, and cut over the tp ranks of a copy where tp is above 1."""
    whole = memory.weights_bytes(lowered(1, 1, 1))
    assert whole == pytest.approx(2.0 * find_model("deepseek-v3").n_params, rel=1e-9)
    if tp == 1:
        assert memory.weights_bytes(lowered(1, dp, ep)) == pytest.approx(whole - 2.0 * EXPERTS * 7 / 8, rel=1e-12)
    else:
        alone = memory.weights_bytes(lowered(2, 1, 1))
        assert memory.weights_bytes(lowered(2, dp, ep)) == pytest.approx(alone - 2.0 * EXPERTS * (1 / 2 - 1 / 8))


def test_the_latent_of_a_sequence_lies_on_every_tensor_parallel_rank_and_on_one_data_parallel_rank() -> None:
    """61 layers of 576 values in 16 bit, 1024 tokens; 9 sequences: all of them, or the 2 of the fullest of 8 ranks."""
    one = 61 * 576 * 2.0 * 1024
    tensor, data = (memory.footprint(low, 9.0, 768.0, 256.0) for low in (lowered(8, 1, 1), lowered(1, 8, 8)))
    assert float(tensor.kv_bytes) == pytest.approx(9 * one)
    assert float(data.kv_bytes) == pytest.approx(2 * one)


def test_a_pool_holds_what_all_ranks_hold() -> None:
    """SGLang on 8 H200: each of 8 ranks has blocks of its own; a tensor-parallel pool has those of one GPU."""
    group = group_of(scenario(dp_attention=8, ep=8, moe_a2a_backend="deepep"))
    assert group.start is not None
    own = memory.pool_bytes(group.lowering, group.device, group.start, 1).mid
    pool = kv_pool(group, group.start.seqs, group.start.tokens)
    assert pool.blocks == 8 * int(own // (61 * 576 * 2.0 * 16))
    largest = float(memory.max_batch(group.lowering, group.device, 2048.0, 512.0, start=group.start))
    assert largest == 8 * (own // (61 * 576 * 2.0 * 2560))


@pytest.mark.parametrize(("tp", "dp"), [(1, 8), (2, 4)])
def test_decoding_sends_a_copy_for_every_expert_and_a_prompt_one_for_every_rank(tp: int, dp: int) -> None:
    """256 sequences on 8 ranks are 32 tokens each: 8 x 7/8 copies of 7168 values leave, or 7 (1 - (7/8)^8)."""
    low = lowered(tp, dp, 8)
    for step, copies, tokens in (
        (decode_step(256.0, 2048.0), 7.0, 32.0),
        (prefill_step(256.0, 64.0), 7.0 * (1.0 - 0.875**8), 32.0 * 64.0),
    ):
        sent = {op.op: op for op in low.ops(step) if isinstance(op, ExpertExchange)}
        assert {float(o.count) for o in sent.values()} == {58.0}
        for op in ("dispatch", "combine"):
            assert float(sent[op].link_bytes) == pytest.approx(tokens * copies * 7168 * 2.0)


def test_fp8_experts_receive_8_bits_and_give_back_16() -> None:
    ops = group_of(scenario(dp_attention=8, ep=8, moe_a2a_backend="deepep")).lowering.ops(decode_step(256.0, 2048.0))
    assert {op.op: op.element_bytes for op in ops if isinstance(op, ExpertExchange)} == {
        "dispatch": 1.0,
        "combine": 2.0,
    }


def test_ranks_attend_to_their_own_and_share_the_experts() -> None:
    """100 sequences over 8 ranks: 13 on the fullest, attended with all 128 heads; experts see all 100."""
    ops = lowered(1, 8, 8).ops(decode_step(100.0, 2048.0))
    core = next(op for op in ops if isinstance(op, Attention))
    assert (core.batch, core.n_heads) == (13.0, 128)
    experts = next(op for op in ops if isinstance(op, Moe))
    assert (experts.tokens, experts.tp, experts.ep) == (100.0, 1, 8)
    assert {float(op.m) for op in ops if isinstance(op, Linear) and op.role in ("mlp.gate_up", "lm_head")} == {13.0}
    assert not any(isinstance(op, Collective) for op in ops)


def test_experts_cut_over_the_ranks_gather_every_token_and_scatter_the_sums() -> None:
    """ep 1: 13 rows of each of 8 ranks, padded to the fullest, 7168 values of 16 bit."""
    ops = [op for op in lowered(1, 8, 1).ops(decode_step(100.0, 2048.0)) if isinstance(op, Collective)]
    assert {(op.op, float(op.message_bytes), op.n_ranks) for op in ops} == {
        ("all_gather", 13 * 8 * 7168 * 2.0, 8),
        ("reduce_scatter", 13 * 8 * 7168 * 2.0, 8),
    }


def test_a_prompt_stays_on_one_rank() -> None:
    step = mixed_step(16.0, 2048.0, 1.0, 512.0, 512.0).of_rank(8)
    assert (step.decode_rows, step.prefill_rows, step.rows, step.routed_rows) == (2.0, 1.0, 514.0, 528.0)
    assert step.of_rank(8) is step
    assert decode_step(5.0, 9.0).of_rank(1).routed_rows == 5.0


def test_one_group_is_plain_tensor_parallel() -> None:
    group = group_of(scenario(ep=8))
    assert not any(isinstance(op, ExpertExchange) for op in group.lowering.ops(decode_step(8.0, 64.0)))


def test_a_full_batch_decodes_faster_than_under_tensor_parallel_which_reads_every_latent_on_every_gpu() -> None:
    """As DeepSeek's own report and SGLang's (2025-05) have it: beyond a few sequences latents must not be copied."""
    tensor, data = (
        evaluate(group_of(scenario(**more)), 256.0, 4096.0, 512.0)
        for more in ({}, {"dp_attention": 8, "ep": 8, "moe_a2a_backend": "deepep"})
    )
    assert float(data.tpot_s.mid) < float(tensor.tpot_s.mid)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"dp_attention": 3}, "does not divide --tp 8"),
        ({"ep": 8, "moe_a2a_backend": "deepep"}, "all-to-all needs attention data parallel"),
        ({"dp_attention": 8, "moe_a2a_backend": "deepep"}, "--ep equal to --tp"),
        ({"tp": 16, "ep": 16, "dp_attention": 16, "moe_a2a_backend": "deepep"}, "between machines was not measured"),
        ({"dp_attention": 8, "ep": 16}, "ep=16 does not divide tp=8"),
        ({"dp_attention": 8, "ep": 8, "speculate": "mtp(k=1,accept=0.8)"}, "drop --speculate"),
        ({"dp_attention": 8, "model": "llama-3.1-70b"}, "has no experts to share"),
    ],
)
def test_what_cannot_be_spread_is_refused_in_one_line(more: dict[str, object], words: str) -> None:
    given = scenario().to_dict() | more
    with pytest.raises(NothingFeasibleError, match=words):
        runnable(Scenario.of(**given))


def test_sequences_of_each_rank_take_the_host_s_time() -> None:
    """A group of 8 ranks of 4 sequences is scheduled as one of 4: every rank has a scheduler of its own."""
    group: Group = group_of(scenario(dp_attention=8, ep=8, moe_a2a_backend="deepep"))
    assert group.lowering.ran(decode_step(32.0, 64.0)).sequences == 4.0
    assert replace(group, dp_attention=1).lowering.ran(decode_step(32.0, 64.0)).sequences == 32.0


@pytest.mark.parametrize(
    "more", [{"dp_attention": 8, "ep": 8, "moe_a2a_backend": "deepep"}, {"speculate": "mtp(k=1,accept=0.8)"}]
)
def test_a_scheduler_of_requests_refuses_what_it_does_not_follow(more: dict[str, object]) -> None:
    with pytest.raises(UnsupportedError, match="does not follow it; ask predict"):
        Deployment(scenario(**more)).check()


def test_prompts_of_all_ranks_are_computed_side_by_side_in_a_closed_loop() -> None:
    """64 clients on 8 ranks take 8 turns of 8 prompts, without data parallel 64 of one."""
    spread, together = (group_of(scenario(**more)) for more in ({"dp_attention": 8, "ep": 8}, {"ep": 8}))
    steps = cycle(spread, 64.0, 1024.0, 256.0)
    assert (float(steps.turns), float(steps.running)) == (8.0, 64.0)
    moe = next(op for op in steps.mixed.ops if op.op.role == "moe.experts").op
    assert isinstance(moe, Moe)
    assert float(moe.tokens) == 56.0 + 8.0 * 1024.0
    assert float(cycle(together, 64.0, 1024.0, 256.0).turns) == 64.0


def test_a_client_alone_decodes_beside_nobody() -> None:
    """The stand-in for no decoding sequence stays next to 0 on a rank; half a sequence is a whole one."""
    rank = mixed_step(1e-14, 64.0, 1.0, 64.0, 64.0).of_rank(8)
    assert float(rank.decode_rows) == pytest.approx(1e-14 / 8)
    assert decode_step(4.0, 64.0).of_rank(8).rows == 1.0


@pytest.mark.parametrize(
    ("note", "tp", "gpus", "cut"),
    [
        ("agg; attention_dp=8; moe_tp=1; moe_ep=8", 1, 8.0, (8, 8, 8)),
        ("agg; attention_dp=2; moe_tp=1; moe_ep=4", 2, 4.0, (4, 4, 2)),
        ("agg; attention_dp=16; moe_tp=4; moe_ep=4", 1, 16.0, (16, 4, 16)),
        ("agg; attention_dp=1; moe_tp=1; moe_ep=4", 4, 4.0, (4, 4, 1)),
        ("agg; attention_dp=1; moe_tp=8; moe_ep=1", 8, 8.0, (8, 1, 1)),
        ("agg; attention_dp=2; moe_tp=1; moe_ep=2", 2, 4.0, "expert split does not match the tensor split"),
        ("agg; attention_dp=8; moe_tp=1; moe_ep=8", 1, 16.0, "replicas"),
        ("", 1, 2.0, "pipeline or data parallel"),
        ("", 2, 2.0, (2, 1, 1)),
    ],
)
def test_a_measured_row_says_how_its_ranks_share_the_model(note: str, tp: int, gpus: float, cut: object) -> None:
    """(GPUs, expert groups, groups of attention): tp of a row is that of one attention group."""
    found, reason = e2e_rows._cut(note, tp, 1, gpus)
    assert (found or reason) == cut


@pytest.mark.parametrize(
    ("dump", "dp", "tp", "gpus", "batch"),
    [
        ("source_file=2026-04-06.csv", 1, 8.0, 8.0, 32.0),
        ("db-dump/2026-04-27", 64, 1.0, 8.0, 256.0),
        ("source_file=2026-03-25.csv", 1, 64.0, 64.0, 32.0),
    ],
)
def test_dumps_that_square_the_gpus_of_tp_8_ep_8_are_read_as_the_other_dump_has_the_run(
    dump: str, dp: int, tp: float, gpus: float, batch: float
) -> None:
    """32 sequences of each of 64 ranks said are 256 of each of 8; of a dump that squares nothing a row stays."""
    said = {"note": f"agg; attention_dp={dp}; moe_tp=8; moe_ep=8; {dump}", "tp": 64.0 if dp == 1 else 1.0}
    ran = e2e_rows._as_run({**said, "n_gpus": 64.0, "batch": 32.0})
    assert (ran["tp"], ran["n_gpus"], ran["batch"]) == (tp, gpus, batch)
    if gpus == 8.0:
        assert e2e_rows._cut(ran["note"], int(ran["tp"]), 1, 8.0) == ((8, 8, 8 if dp > 1 else 1), "")


def test_sixteen_gpus_reduce_over_the_network_between_two_machines() -> None:
    """A100: 15/16 of twice 64 MB at 200 GB/s of a DGX's adapters, not at NVLink's 300: at most 1.5 times as long."""
    device, engine = load("a100-sxm-80g"), get_engine("fastertransformer")
    assert not device.link_for(8).joins_nodes
    over = device.link_for(16)
    assert (over.joins_nodes, over.bandwidth_bytes_per_s) == (True, 200e9)
    op = Collective(role="all_reduce", op="all_reduce", message_bytes=64e6, n_ranks=16)
    alone = replace(device, links=tuple(k for k in device.links if not k.joins_nodes))
    both, near = (timing._timed(op, on, engine) for on in (device, alone))
    # What starts the pipeline of the ring does not follow the link: 1.45 of the 1.5.
    assert 1.4 < float(both.link_s) / float(near.link_s) < 1.5
    assert both.basis is not Basis.CALIBRATED
