"""What is off the GPU, by hand: bytes over links, what overlaps, what stays resident."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from simulator.base.dtypes import FORMATS
from simulator.device.catalogue import Device, load
from simulator.device.types import MemoryTier
from simulator.inference import memory
from simulator.inference.evaluate import evaluate
from simulator.inference.group import Group
from simulator.inference.lowering import Lowering
from simulator.model.hub import find_model
from simulator.ops.ops import Attention, Linear, Op
from simulator.ops.step import decode_step, prefill_step
from simulator.ops.traffic import Operand
from simulator.ops.transfers import HostCompute, Transfer
from simulator.policies import parse
from simulator.scenario.scenario import Scenario

MHA, GQA, LAYERS = 16_384, 4_096, 32


def lowered(model: str, policy: str) -> Lowering:
    return Lowering(find_model(model).in_one_format(), parse(policy), FORMATS["fp16"], 2.0)


def decode(model: str, policy: str, context: float = 512.0, rows: float = 1.0) -> list[Op]:
    return lowered(model, policy).ops(decode_step(rows, context))


def moved(ops: list[Op], prefix: str, what: str = "read_bytes") -> float:
    """Bytes of the transfers whose role starts with `prefix` [B]."""
    mine = [o for o in ops if isinstance(o, Transfer) and o.role.startswith(prefix)]
    assert mine
    return float(sum(np.sum(getattr(o, what) * np.asarray(o.count)) for o in mine))


def kv_read(ops: list[Op]) -> float:
    cores = [o for o in ops if isinstance(o, Attention) and not o.overhead]
    return float(sum(np.sum(o.kv_read_bytes * np.asarray(o.count)) for o in cores))


def kv(model: str, policy: str, tokens: float) -> tuple[float, float]:
    """KV bytes of one sequence (on the GPU, off it)."""
    low = lowered(model, policy)
    return (float(memory.kv_bytes_per_sequence(low, tokens)), float(memory.off_kv_bytes(low, tokens)))


def with_tiers(device: Device, **gb_per_s: float) -> Device:
    """`device` with further memory tiers like its host memory, at other rates."""
    host = device.tier("host")
    extra = tuple(
        MemoryTier(
            name,
            "test",
            host.capacity,
            dataclasses.replace(host.bandwidth, value=rate * 1e9),
            host.latency,
            host.sector,
            host.line,
        )
        for name, rate in gb_per_s.items()
    )
    changed = dataclasses.replace(device, memory=device.memory + extra)
    return dataclasses.replace(changed, profile_hash=f"{device.profile_hash}-{sorted(gb_per_s)}")


def group(model: str, device: Device, policy: str) -> Group:
    scenario = Scenario.of(model=model, device=device.name, policy=policy, ignore_context_limit=True)
    return Group.of(scenario, find_model(model), device)


def test_powerinfer_splits_active_neurons() -> None:
    """OPT-6.7B at 10 % active, 80 % of them hot: per FFN matrix 8 % read on the GPU, 2 % on the CPU, of 134 MB;
    26 % of the FFN resident; a vector of 4096 fp16 comes back per layer."""
    ops = decode("opt-6.7b", "powerinfer(keep=0.1,hot=0.26,hits=0.8)")
    matrix = 4096 * 16_384 * 2
    down = next(o for o in ops if o.role == "mlp.down")
    cold = next(o for o in ops if o.role == "mlp.down.cold")
    assert isinstance(down, Linear)
    assert isinstance(cold, HostCompute)
    assert down.weight_read_bytes == pytest.approx(0.08 * matrix)
    assert cold.read_bytes == pytest.approx(0.02 * matrix)
    assert moved(ops, "mlp.merge") == LAYERS * 4096 * 2
    low = lowered("opt-6.7b", "powerinfer(keep=0.1,hot=0.26,hits=0.8)")
    assert memory.off_weights_bytes(low) == pytest.approx(LAYERS * 2 * matrix * 0.74)


def test_powerinfer_with_everything_active_reads_everything() -> None:
    """keep 1: the hot quarter on the GPU, three quarters on the CPU, together the whole FFN."""
    ops = decode("opt-6.7b", "powerinfer(keep=1,hot=0.25)")
    gpu = next(o for o in ops if o.role == "mlp.up")
    cpu = next(o for o in ops if o.role == "mlp.up.cold")
    assert isinstance(gpu, Linear)
    assert isinstance(cpu, HostCompute)
    assert gpu.weight_read_bytes + cpu.read_bytes == pytest.approx(4096 * 16_384 * 2)
    assert gpu.weight_read_bytes == pytest.approx(0.25 * 4096 * 16_384 * 2)


def test_powerinfer_streams_cold_weights_for_a_prompt() -> None:
    """74 % of 32 x 2 x 134 MB once per prompt, over the host link."""
    ops = lowered("opt-6.7b", "powerinfer(hot=0.26)").ops(prefill_step(1.0, 512.0))
    assert moved(ops, "mlp.") == pytest.approx(0.74 * LAYERS * 2 * 4096 * 16_384 * 2)


@pytest.mark.parametrize(("policy", "off"), [("powerinfer(hot=0.26)", 0.74), ("llm_in_flash", 0.76)])
def test_a_prompt_loads_compressed_weights_compressed(policy: str, off: float) -> None:
    """2:4 weights are 9/16 of 2 x 134 MB a layer, on the way as in memory."""
    low = lowered("opt-6.7b", f"nm24+{policy}")
    stored = off * LAYERS * 2 * 4096 * 16_384 * 2 * 9 / 16
    assert moved(low.ops(prefill_step(1.0, 512.0)), "mlp.") == pytest.approx(stored)
    assert memory.off_weights_bytes(low) == pytest.approx(stored)


def test_compressed_rows_of_flash_are_shorter() -> None:
    """A bundle is two rows of 4096 weights at 9/16 of 2 B: 9216 B; 2.4 % of them are read per token."""
    ops = decode("opt-6.7b", "nm24+llm_in_flash")
    assert {o.chunk_bytes for o in ops if isinstance(o, Transfer)} == {9216.0}
    assert moved(ops, "mlp.") == pytest.approx(0.024 * LAYERS * 2 * 4096 * 16_384 * 2 * 9 / 16)


@pytest.mark.parametrize(
    ("policy", "published_ms"),
    [("llm_in_flash(new=0.1,bundle=false,rank=0)", 738), ("llm_in_flash(bundle=false)", 164), ("llm_in_flash", 87)],
)
def test_llm_in_a_flash_ladder(policy: str, published_ms: float) -> None:
    """OPT-6.7B on an M1 Max, I/O per token: 10 % of 8.59 GB in 8 KiB rows, 2.4 % of it, the same in 16 KiB bundles.

    Rate 6.1 GB/s and 157 us over 32 reads: 8 KiB at 1.31 GB/s, 16 KiB at 2.16 GB/s (measured 1.25 and 2.25).
    """
    ops = decode("opt-6.7b", policy)
    new = 0.1 if "new" in policy else 0.024
    assert moved(ops, "mlp.") == pytest.approx(new * LAYERS * 2 * 4096 * 16_384 * 2)
    g = group("opt-6.7b", load("apple-m1-max"), policy)
    steps = evaluate(g, *(np.array([x]) for x in (1.0, 128.0, 2.0))).decode
    io_ms = 1e3 * sum(float(np.max(t.total_s)) for t in steps.ops if t.family == "link")
    chunk = 8192 * (1 if "bundle=false" in policy else 2)
    by_hand = new * 8.589935e9 * (157e-6 / 32 / chunk + 1 / 6.1e9)
    assert io_ms == pytest.approx(1e3 * by_hand + 2 * LAYERS * 0.157, rel=1e-3)
    assert io_ms == pytest.approx(published_ms, rel=0.25)


@pytest.mark.parametrize(("rows", "share"), [(1.0, 0.9 - 0.24), (64.0, 1.0 - 0.24)])
def test_llm_in_a_flash_loads_what_its_window_lacks(rows: float, share: float) -> None:
    """90 % of the neurons per token, and all for 64 tokens, against 24 % in memory: the rest comes from flash."""
    ops = decode("opt-6.7b", "llm_in_flash(keep=0.9)", rows=rows)
    assert moved(ops, "mlp.") == pytest.approx(share * LAYERS * 2 * 4096 * 16_384 * 2, rel=1e-3)


def test_llm_in_a_flash_memory() -> None:
    """24 % of the FFN stays; 76 % of 8.59 GB is in flash."""
    low = lowered("opt-6.7b", "llm_in_flash")
    assert memory.off_weights_bytes(low) == pytest.approx(0.76 * 8.589935e9, rel=1e-6)
    assert low.home == "ssd"


def test_flexgen_moves_what_is_not_on_the_gpu() -> None:
    """OPT-6.7B, 20 % of the weights and none of the KV on the GPU, batch 4 at 512 tokens: weights
    0.8 x 32 x (4 d^2 + 2 d F) x 2 B, KV 4 x 512 x 524,288 B in and 4 x 524,288 B out per step."""
    ops = decode("opt-6.7b", "flexgen", rows=4.0)
    weights = LAYERS * (4 * 4096**2 + 2 * 4096 * 16_384) * 2
    assert moved(ops, ("attn.", "mlp.")) == pytest.approx(0.8 * weights)  # type: ignore[arg-type]
    assert moved(ops, "kv.load") == 4 * 512 * 524_288
    assert moved(ops, "kv.load", "write_bytes") == 4 * 524_288
    here, there = kv("opt-6.7b", "flexgen", 512)
    assert (here, there) == (0.0, 512 * 524_288)
    assert memory.off_weights_bytes(lowered("opt-6.7b", "flexgen")) == pytest.approx(0.8 * weights)


def test_h2o_shrinks_what_flexgen_moves() -> None:
    """A fifth of the cache is kept, so a fifth is moved."""
    ops = decode("opt-6.7b", "h2o(keep=0.2)+flexgen(weights=1)", 1000.0)
    assert moved(ops, "kv.load") == pytest.approx(200 * 524_288)


@pytest.mark.parametrize(
    ("policy", "prompt", "tokens"),
    [
        ("h2o(keep=0.2)+lamina", None, 0.2 * 32_000),
        ("streaming_llm+flexgen(weights=1)", None, 1024),
        ("snapkv+lamina", 30_000, 1024 + 2000),
        ("h2o(keep=0.2)+alisa(host=0.5)", None, 0.5 * 0.2 * 32_000),
        ("s2_attention+flexgen(weights=1)", None, 1024 + (32_000 - 1024) / 16),
    ],
)
def test_dropped_tokens_are_off_the_gpu_neither(policy: str, prompt: float | None, tokens: float) -> None:
    """32,000 tokens of context: what eviction left lies elsewhere, 16,384 B per token and layer."""
    low = lowered("llama-2-7b", policy)
    assert float(memory.off_kv_bytes(low, 32_000.0, prompt)) == pytest.approx(LAYERS * MHA * tokens)
    if prompt is not None:
        whole = memory.footprint(low, 2.0, prompt, 32_000.0 - prompt)
        assert float(whole.off_bytes) == pytest.approx(2 * LAYERS * MHA * tokens)


def test_flexgen_cpu_attention_moves_vectors_only() -> None:
    """q out, o in: 4096 fp16 each way and layer, and the new token's K and V; the CPU reads the cache."""
    ops = decode("opt-6.7b", "flexgen(weights=1,kv=0,attention=cpu)", 1000.0)
    assert moved(ops, "kv.load") == LAYERS * 4096 * 2
    assert moved(ops, "kv.load", "write_bytes") == LAYERS * (4096 * 2 + MHA)
    cpu = next(o for o in ops if isinstance(o, HostCompute))
    assert cpu.read_bytes == 1000 * MHA


def test_shadowkv_per_layer() -> None:
    """Llama-3.1-8B, S = 122,880: landmarks S/8 x 2048 B; 40 % of 2048 tokens fetched as V, 2048 B each; rebuilt
    819.2 x 160 x 1024 x 2 flop; attention over 2048 + 384 + 32 tokens."""
    ops = decode("llama-3.1-8b", "shadowkv", 122_880.0)
    assert moved(ops, "kv.fetch") == pytest.approx(LAYERS * 0.4 * 2048 * 2048)
    assert kv_read(ops) == LAYERS * GQA * 2464
    rebuild = next(o for o in ops if o.role == "kv.rebuild")
    assert isinstance(rebuild, Linear)
    assert rebuild.flop == pytest.approx(2 * 819.2 * 160 * 1024)
    estimate = next(o for o in ops if o.role == "kv.estimate")
    assert float(np.sum(estimate.traffic().total_bytes)) == 15_360 * (2048 + 32 * 4)
    softmax, united = (next(o for o in ops if o.role == r) for r in ("kv.softmax", "kv.group_max"))
    assert float(np.sum(softmax.traffic().total_bytes)) == 15_360 * 2 * 32 * 4
    assert float(np.sum(united.traffic().total_bytes)) == 15_360 * (32 + 8) * 4


def test_shadowkv_memory_is_a_seventh() -> None:
    """(160 + 128) x 2 B per token of 4096 B = 14 % (claimed: over sixfold), and 2464 tokens whole; V elsewhere."""
    here, there = kv("llama-3.1-8b", "shadowkv", 122_880)
    assert here == LAYERS * (122_880 * 576 + 2464 * GQA)
    assert there == LAYERS * 122_880 * GQA / 2


@pytest.mark.parametrize("tokens", [65_536, 131_072, 524_288])
def test_shadowkv_factors_the_prompts_keys(tokens: int) -> None:
    """4 P n^2 flop of an economy SVD, n = 1024: at 64K 2.75e11; the factors belong to the cache, not to the weights."""
    ops = lowered("llama-3.1-8b", "shadowkv").ops(prefill_step(1.0, float(tokens)))
    svd = next(o for o in ops if o.role == "kv.svd")
    assert isinstance(svd, Linear)
    assert float(np.sum(svd.flop)) == 4 * tokens * 1024**2
    assert memory.stored_bytes(svd) == 0.0


def test_nosa_fetches_a_quarter_of_its_budget() -> None:
    """4096 tokens, hit 0.75: 1024 x 4096 B a layer in blocks of 64 x 256 B; pooled keys are 1/32 of the cache."""
    ops = decode("llama-3.1-8b", "nosa", 98_304.0)
    assert moved(ops, "kv.fetch") == LAYERS * 1024 * GQA
    assert next(o for o in ops if isinstance(o, Transfer)).chunk_bytes == 16_384
    here, there = kv("llama-3.1-8b", "nosa", 98_304)
    assert here == LAYERS * (4096 * GQA + 98_304 * GQA / 32)
    assert there == LAYERS * 98_304 * GQA
    assert moved(decode("llama-3.1-8b", "infllm_v2_offload", 98_304.0), "kv.fetch") == pytest.approx(
        LAYERS * 0.2 * 4096 * GQA
    )


def test_double_sparsity_offload_fetches_its_budget() -> None:
    """1024 tokens of 16,384 B per layer over the link; the GPU holds labels (1/16) and a double buffer."""
    ops = decode("llama-2-7b", "double_sparsity_offload", 8192.0)
    assert moved(ops, "kv.fetch") == LAYERS * 1024 * MHA
    here, there = kv("llama-2-7b", "double_sparsity_offload", 8192)
    assert here == LAYERS * (8192 * MHA / 16 + 2048 * MHA)
    assert there == LAYERS * 8192 * MHA
    short = decode("llama-2-7b", "double_sparsity_offload", 800.0)  # inside the double buffer
    assert moved(short, "kv.fetch") == 0.0


def test_alisa_phases() -> None:
    """keep 0.2 of 2000 tokens: 400 attended, 200 of them picked by 200 rows: 32 heads x 400 fp32 probabilities, their
    400 sums and 2000 running ones; a prompt scores its last 200 rows. Phase 3 at host 0.5, recompute 0.1: 100 fetched,
    20 recomputed with 4096 x 8192 x 2 flop each; 40 % of the cache stays."""
    first = decode("llama-2-7b", "alisa", 2000.0)
    assert kv_read(first) == LAYERS * MHA * 400
    assert not [o for o in first if isinstance(o, Transfer)]
    sums = next(o for o in first if o.role == "kv.scores").traffic().access[Operand.INDEX]
    assert float(np.sum(sums.read_bytes)) == 4 * 32 * 400 + 8 * 2000
    assert float(np.sum(sums.write_bytes)) == 4 * 32 * 400 + 4 * 400 + 4 * 2000
    vote = next(o for o in lowered("llama-2-7b", "alisa").ops(prefill_step(1.0, 2000.0)) if o.role == "kv.observe")
    assert isinstance(vote, Attention)
    assert vote.flop == pytest.approx(2 * 4096 * (200 * 1800 + 200 * 201 / 2))
    third = decode("llama-2-7b", "alisa(host=0.5,recompute=0.1)", 2000.0)
    assert moved(third, "kv.fetch") == LAYERS * 100 * MHA
    redo = next(o for o in third if o.role == "kv.recompute")
    assert isinstance(redo, Linear)
    assert redo.flop == pytest.approx(20 * 2 * 4096 * 8192)
    assert kv("llama-2-7b", "alisa(host=0.5,recompute=0.1)", 2000) == pytest.approx(
        (0.4 * 2000 * 524_288, 0.5 * 2000 * 524_288)
    )


def test_lamina_sends_queries_and_new_tokens() -> None:
    """(2 + 2/g) b per element of the width: Llama-3.1-8B, g = 4: q and o 8192 B each, k and v 4096 B together:
    2.5 x 2 x 4096 = 20,480 B a layer and row."""
    ops = decode("llama-3.1-8b", "lamina", 8192.0)
    both = moved(ops, "kv.wire") + moved(ops, "kv.wire", "write_bytes")
    assert both == LAYERS * 20_480
    assert not [o for o in ops if isinstance(o, Attention)]
    assert kv("llama-3.1-8b", "lamina", 8192) == (0.0, LAYERS * 8192 * GQA)


def test_lamina_runs_pool_and_model_at_once() -> None:
    """A pool of 4 TB/s: batch 64 at 8192 tokens streams 64 x 8192 x 131,072 B / (0.83 x 4e12) = 20.7 ms; a step is
    that or the model's own kernels, whichever is longer."""
    device = with_tiers(load("h100-sxm"), pool=4000.0, network=45.7)
    g = group("llama-3.1-8b", device, "lamina")
    assert g.problem is None
    step = evaluate(g, *(np.array([x]) for x in (64.0, 8190.0, 2.0))).decode
    pool = 64 * 8192 * 131_072 / (0.83 * 4e12)
    assert float(np.max(step.gpu_s)) == pytest.approx(pool, rel=0.1)


@pytest.mark.parametrize(("policy", "tier"), [("powerinfer", "dram"), ("cxl", "cxl"), ("lamina", "pool")])
def test_a_missing_tier_is_not_applicable(policy: str, tier: str) -> None:
    problem = group("opt-6.7b", load("a100-sxm-80g"), policy).problem
    assert problem is not None
    assert problem[0].word == "not_applicable"
    assert f"no memory tier '{tier}'" in problem[1]


def test_cxl_is_flexgen_on_another_tier() -> None:
    """A card at a quarter of the host link's rate: the KV of 16 x 1000 tokens, 8.39 GB, takes four times as long."""
    device = with_tiers(load("h100-sxm"), cxl=load("h100-sxm").tier("host").bandwidth_bytes_per_s / 4e9)
    slow = group("opt-6.7b", device, "cxl")
    fast = group("opt-6.7b", device, "flexgen(weights=1,kv=0)")
    times = [float(evaluate(g, *(np.array([x]) for x in (16.0, 1000.0, 2.0))).decode.gpu_s.max()) for g in (slow, fast)]
    assert times[0] / times[1] == pytest.approx(4.0, rel=0.05)


def test_host_memory_bounds_the_batch() -> None:
    """ShadowKV at 60,000 tokens keeps 32 x 60,128 x 2048 B = 3.94 GB of V per sequence in the host's memory."""
    g = group("llama-3.1-8b", load("a100-sxm-80g"), "shadowkv")
    host = g.device.tier("host").capacity_bytes
    points = evaluate(g, *(np.array([x]) for x in (1000.0, 60_000.0, 128.0)))
    per_sequence = LAYERS * 60_128 * 2048
    assert points.max_batch[0] <= host // per_sequence
    assert float(np.max(points.footprint.off_bytes)) == 1000 * per_sequence
    assert points.short_off_bytes[0] == 1000 * per_sequence - host
    assert not points.fits[0]


def test_powerinfer_places_attention_weights_too() -> None:
    """OPT-30B in 24 GB: 30 % of the attention's weights hot, half of the heads active, 80 % of them hot:
    min(0.4, 0.3) of QKV on the GPU and 0.2 on the CPU."""
    ops = decode("opt-30b", "powerinfer(attn_keep=0.5,attn_hot=0.3)")
    matrix = 3 * 7168 * 7168 * 2
    qkv = next(o for o in ops if o.role == "attn.qkv")
    cold = next(o for o in ops if o.role == "attn.qkv.cold")
    assert isinstance(qkv, Linear)
    assert isinstance(cold, HostCompute)
    assert qkv.weight_read_bytes == pytest.approx(0.3 * matrix)
    assert cold.read_bytes == pytest.approx(0.2 * matrix)
