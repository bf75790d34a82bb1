"""What released software does beside a method's own arithmetic, by hand: fall-backs, upkeep, copies, host waits.

Llama-2-7B: 32 layers, 32 heads of 128: 8192 elements, 16,384 B of K and V per token and layer. Llama-3.1-8B: 8 KV
heads.
"""

from __future__ import annotations

import numpy as np
import pytest

from simulator.base.dtypes import FORMATS
from simulator.claims.kernel import KernelScenario, kernel_time
from simulator.device.catalogue import load
from simulator.inference import memory
from simulator.inference.group import group_of
from simulator.inference.lowering import Lowering
from simulator.inference.step import step_time
from simulator.model.hub import find_model
from simulator.ops.ops import Attention, Elementwise, Linear, Op
from simulator.ops.step import Step, decode_step, prefill_step
from simulator.ops.union import union_density
from simulator.ops.union_law import default_law
from simulator.policies import parse
from simulator.roofline.engine import get_engine
from simulator.roofline.timing import time_op
from simulator.scenario.scenario import Scenario

MHA, GQA, LAYERS = 16_384, 4_096, 32
DEVICE = load("a100-sxm-80g")
HF = Scenario.of(model="llama-3-8b-1m", device="a100-sxm-80g", policy="minference", engine="hf", dtype="fp16")


def ops(model: str, policy: str, step: Step) -> list[Op]:
    return Lowering(find_model(model).in_one_format(), parse(policy), FORMATS["fp16"], 2.0).ops(step)


def decode(model: str, policy: str, context: float, rows: float = 2.0) -> list[Op]:
    return ops(model, policy, decode_step(rows, context))


def prompt(model: str, policy: str, tokens: float, rows: float = 2.0) -> list[Op]:
    return ops(model, policy, prefill_step(rows, tokens))


def small(found: list[Op], role: str) -> Elementwise:
    op = next(o for o in found if o.role == role)
    assert isinstance(op, Elementwise)
    return op


def moved(found: list[Op], role: str) -> tuple[float, float]:
    """Bytes read and written by the ops of a role, all their calls."""
    each = [small([o], role) for o in found if o.role == role]
    assert each
    read, written = (
        sum(float(np.max(getattr(o, name) * o.count)) for o in each) for name in ("read_bytes", "write_bytes")
    )
    return read, written


def seconds(policy: str, step: Step, model: str = "llama-3.1-8b", engine: str = "vllm", device: str = "a100-sxm-80g"):
    scenario = Scenario.of(model=model, device=device, policy=policy, engine=engine, dtype="fp16")
    return float(np.max(step_time(group_of(scenario), step).total_s))


# --- dense paths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "policy"),
    [
        ("llama-3.1-8b", "teal(keep=1)"),
        ("llama-3.1-8b", "cats(keep=1,fallback=dense)"),
        ("llama-3.1-8b", "prosparse(keep=1,fallback=dense)"),
        ("llama-3.1-8b", "relu(down_keep=1,fallback=dense)"),
        ("opt-6.7b", "polar(attn_keep=1,keep=1,fallback=dense)"),
        ("opt-6.7b", "dejavu(keep=1,attn_keep=1,fallback=dense)"),
        ("opt-6.7b", "shadowllm(keep=1,fallback=dense)"),
    ],
)
def test_software_with_a_dense_path_is_dense_where_all_is_kept(model: str, policy: str) -> None:
    """The same ops, one row or sixteen: no check, no predictor, no gather."""
    for rows in (1.0, 16.0):
        assert decode(model, policy, 500.0, rows) == decode(model, "dense", 500.0, rows)


def test_a_dense_path_bounds_what_a_union_can_cost() -> None:
    """64 rows at 50 % touch most columns, whose gather takes longer than the whole matrix: TEAL's products are then the
    dense ones; CATS has no such path unless asked for, and in its ablation pays its check all the same."""
    for rows in (1.0, 4.0, 64.0):
        step = decode_step(rows, 500.0)
        dense, teal = seconds("dense", step), seconds("teal(keep=0.5)", step)
        assert teal <= dense
        bare = seconds("teal(keep=0.5,fallback=none)", step)
        assert teal <= bare
        assert (teal == bare) == (rows == 1.0 or bare < dense)
    assert seconds("cats(keep=0.5,fallback=dense)", step) <= dense
    assert seconds("cats(keep=0.5,fallback=dense,kernel=index)", step) > dense


def test_one_list_of_heads_serves_the_batch() -> None:
    """OPT-6.7B, half of the heads of a token: 16 rows read and compute the union, in products and attention alike."""
    union = float(union_density(0.5, 16.0, default_law("attn.head", "opt-6.7b", "relu")[0]))
    assert 0.8 < union < 1.0
    for policy in ("dejavu(attn_keep=0.5)", "shadowllm(keep=0.5)"):
        for rows, share in ((1.0, 0.5), (16.0, union)):
            cores = [o for o in decode("opt-6.7b", policy, 500.0, rows) if isinstance(o, Attention)]
            assert cores[-1].head_keep == pytest.approx(share)
            assert cores[-1].kv_head_keep == pytest.approx(share)
    polar = [o for o in decode("opt-6.7b", "polar(attn_keep=0.5)", 500.0, 16.0) if isinstance(o, Attention)]
    assert polar[-1].kv_head_keep == 0.5


# --- formats ---------------------------------------------------------------------------------------------------


def test_a_bitmap_scatters_its_non_zeros() -> None:
    """As a bitmap of KV does: 40 % of 4096 x 14,336 weights."""
    down = next(o for o in decode("llama-3.1-8b", "sparse_weights(keep=0.4)", 64.0) if o.role == "mlp.down")
    assert isinstance(down, Linear)
    assert down.expand is not None
    assert down.expand.nonzeros == pytest.approx(0.4 * 4096 * 14_336)


def test_two_of_four_gains_what_was_published_of_few_rows() -> None:
    """Blocks of Qwen2.5-7B at 64 rows, bf16: 1.49x on A100, 1.03x on H100, 1.48x on B200 (SlideSparse)."""
    for device, published in (("a100-pcie-80g", 1.49), ("h100-pcie", 1.03), ("b200", 1.48)):
        times = {}
        for policy in ("dense", "nm24"):
            ops = [o for o in decode("qwen2.5-7b", policy, 1.0, 64.0) if isinstance(o, Linear) and "lm" not in o.role]
            times[policy] = sum(time_op(o, load(device), get_engine("kernels")).total_s for o in ops)
        assert times["dense"] / times["nm24"] == pytest.approx(published, rel=0.12)


def test_fewer_bits_unpack_with_fewer_instructions() -> None:
    """Behind 128 tokens, 872 x 2 x 8192 elements of 5 instructions, and 15 for each 32-bit word of 32 / bits. On A100
    (108 SMs, 1.41 GHz, 128 a cycle) that, not the stream, binds 2 bits."""
    times = {}
    for bits, each in ((2, 5.9375), (4, 6.875), (8, 8.75)):
        core = next(o for o in decode("llama-2-7b", f"kv_quant(bits={bits})", 1000.0) if o.role == "attn.core")
        assert isinstance(core, Attention)
        assert core.expand is not None
        assert core.expand.instructions == 872 * 2 * 8192 * each
        long = next(o for o in decode("llama-2-7b", f"kv_quant(bits={bits})", 32_000.0, 16.0) if o.role == "attn.core")
        raw = time_op(long, DEVICE, get_engine("kernels"))
        times[bits] = float(np.sum(raw.total_s - raw.launch_s))
    by_hand = 32 * 16 * (32_000 - 128) * 8192 * 5.9375 / (108 * 1.41e9 * 128)
    assert times[2] == pytest.approx(by_hand, rel=1e-3)
    assert 1.1 * times[2] < times[4] < times[8] / 1.1


def test_kivi_copies_v_to_append_a_token() -> None:
    """Two rows, 872 tokens of 0.375 B elements: half of them, and 1/128 of the other half, read and written by
    torch.cat; every one of four query heads unpacks for itself."""
    found = decode("llama-3.1-8b", "kivi", 1000.0)
    copy = 32 * 0.5 * (1 + 1 / 128) * 2 * 872 * 2048 * 0.375
    assert moved(found, "kv.append") == pytest.approx((copy, copy))
    core = next(o for o in found if o.role == "attn.core")
    assert isinstance(core, Attention)
    assert core.expand is not None
    assert core.expand.instructions == 4 * 2 * 872 * 2048 * 5.9375
    fused = decode("llama-3.1-8b", "kivi(kernel=fused)", 1000.0)
    assert not {o.role for o in fused} & {"kv.append", "kv.scores", "kv.parts"}


def test_mustafar_packs_in_groups_and_waits_for_each_head() -> None:
    """Two rows of 16,384 new elements: 19.6 B read and 12.2 written each at keep 0.3; 24 kernels and 5 for K and V of
    each of 2 x 32 heads, once in 256 steps. A prompt: 24 and 6, two waits, no constant rate."""
    step = small(decode("llama-2-7b", "mustafar(keep=0.3)", 1000.0), "kv.pack")
    assert (step.select_elements, step.select_rows) == (16_384, 128)
    assert step.read_bytes == pytest.approx(16_384 * 19.6)
    assert step.write_bytes == pytest.approx(16_384 * 12.2)
    assert step.launches == (24 + 5 * 2 * 64) / 256
    assert step.host_sync == 0.0
    first = small(prompt("llama-2-7b", "mustafar(keep=0.3)", 100.0), "kv.pack")
    assert (first.launches, first.host_sync) == (24 + 6 * 2 * 64, 2.0)
    fused = small(prompt("llama-2-7b", "mustafar(keep=0.3,kernel=fused)", 100.0), "kv.pack")
    assert (fused.read_bytes, fused.launches, fused.host_sync) == (200 * MHA, 2, 0)


def test_mustafar_expands_for_every_query_head_and_joins_its_values() -> None:
    """Llama-3.1-8B, two rows, 968 tokens behind the window: four query heads expand each tile; the values of a step
    are copied whole, so that a larger share kept takes longer even where PyTorch submits kernel by kernel."""
    core = next(o for o in decode("llama-3.1-8b", "mustafar(keep=0.3)", 1000.0) if o.role == "attn.core")
    assert isinstance(core, Attention)
    assert core.expand is not None
    assert core.expand.instructions == pytest.approx((37 + 0.3 * 107) * 4 * 2 * 968 * 2048)
    fused = next(o for o in decode("llama-3.1-8b", "mustafar(keep=0.3,kernel=fused)", 1000.0) if o.role == "attn.core")
    assert isinstance(fused, Attention)
    assert fused.expand is not None
    assert (fused.expand.elements, fused.expand.instructions) == (2 * 968 * 2048, 0.0)
    step = decode_step(4.0, 3072.0)
    few, many = (seconds(f"mustafar(keep={k})", step, "llama-2-7b", "hf", "rtx-6000-ada") for k in (0.3, 0.5))
    # 0.2 x 3040 x 4 x 524,288 B, read once by the kernel, once by the copy and written by it, at 960 GB/s: 4.0 ms.
    assert 0.5 * 4.0e-3 < many - few < 1.5 * 4.0e-3


def test_heads_that_share_values_pay_for_unpacking_them() -> None:
    """Llama-3-8B on an RTX 6000 Ada, four rows of 4,352 tokens, HF: 4 x 8.7 M x 128 elements at 37 + 107 keep slots of
    128 x 142 x 2.505e9 a second: 9.1 ms at keep 0.5 and 6.9 at 0.3. Streaming the bytes for one head took 2."""
    step = decode_step(4.0, 4352.0)
    few, many = (seconds(f"mustafar(keep={k})", step, "llama-3-8b", "hf", "rtx-6000-ada") for k in (0.3, 0.5))
    # 2.2 ms of unpacking, and 0.2 x 4320 x 4 x 131,072 B read and written by the copy at 960 GB/s: 0.9 ms.
    assert 0.8 * 3.1e-3 < many - few < 1.2 * 3.1e-3


def test_what_waits_for_the_host_meets_an_empty_stream() -> None:
    """Engine hf: 3.9 kernels an op of 79.9 us. Of 100 launches 39 wait: 61 hide behind 10 ms of kernels, 39 do not."""
    parts = get_engine("hf").step(
        DEVICE,
        gpu_s=0.010,
        comm_extra_s=0.0,
        launches=100.0,
        alone=39.0,
        graph=False,
        prefills=False,
        sequences=1.0,
        prompt_tokens=0.0,
    )
    assert parts.total_s == pytest.approx(0.010 + 39 * 79.9e-6)


def test_catss_ablation_lists_its_neurons_and_waits() -> None:
    """Seven kernels follow the wait, eight where up is not fused: 20.5 us each on top of the paper's kernels."""
    base = {"model": "llama-2-7b", "device": "l40s", "ops": ["mlp.*"], "phase": "decode", "batch": 1, "dtype": "fp32"}
    index, split = (
        kernel_time(KernelScenario.of({**base, "engine": "hf", "policy": f"cats(keep=0.9,kernel={k})"})).time_s
        for k in ("index", "split")
    )
    assert split - index == pytest.approx(79.9e-6 / 3.9)
    listed = small(decode("llama-2-7b", "cats(keep=0.9,kernel=index)", 64.0), "mlp.index")
    assert (listed.launches, listed.host_sync) == (7, 1)
    bare = {**base, "engine": "kernels"}
    paper, ablated = (
        kernel_time(KernelScenario.of({**bare, "policy": f"cats(keep=0.9{k})"})).time_s for k in ("", ",kernel=index")
    )
    # The paper's kernel is timed by its measurement, the ablation by its parts: they agree within 5 %.
    assert ablated == pytest.approx(paper, rel=0.05)


# --- upkeep ----------------------------------------------------------------------------------------------------


def test_quest_keeps_its_statistics() -> None:
    """Two rows of Llama-2-7B: 8192 B of keys, a minimum and a maximum as long, read and written in 32 layers by a new
    token; a prompt of 100 reads its keys and writes two vectors in 16. The mean key is one vector."""
    assert moved(decode("llama-2-7b", "quest(dense_layers=0)", 500.0), "kv.statistics") == (32 * 2 * MHA, 32 * 2 * MHA)
    assert moved(decode("llama-2-7b", "kinetics", 500.0), "kv.statistics") == (32 * MHA, 32 * MHA)
    first = prompt("llama-2-7b", "quest(dense_layers=0)", 100.0)
    assert moved(first, "kv.statistics") == (32 * 200 * MHA / 2, 32 * 200 * MHA / 16)
    assert sum(float(np.max(o.count)) for o in decode("llama-2-7b", "quest", 500.0) if o.role == "kv.statistics") == 30


def test_pooled_keys_labels_and_index_keys_are_kept_up() -> None:
    """Llama-3.1-8B, two rows. Pooled blocks of 32 tokens start every 16: a token is read twice, 1/16 written; K alone
    is 2048 B. Labels: 16 channels of 8 heads. DeepSeek-V3's index key: 256 B in, 132 out, in 61 layers."""
    for policy, token in (("nsa", GQA), ("infllm_v2", GQA / 2), ("nosa", GQA / 2)):
        found = decode("llama-3.1-8b", policy, 500.0)
        assert moved(found, "kv.pool") == pytest.approx((32 * 2 * 2 * token, 32 * 2 * token / 16)), policy
        assert np.max(small(found, "kv.pool").count) == 32 / 16
        assert moved(prompt("llama-3.1-8b", policy, 160.0), "kv.pool") == (32 * 320 * 2 * token, 32 * 20 * token)
    assert moved(decode("llama-3.1-8b", "double_sparsity", 500.0), "kv.label") == (32 * 2 * 256, 32 * 2 * 256)
    assert moved(decode("deepseek-v3", "dsa", 500.0), "kv.index_key") == (61 * 2 * 256, 61 * 2 * 132)


def test_minference_takes_head_by_head_whatever_the_length() -> None:
    """40 small kernels for each of 32 heads and layers, 20.5 us each where PyTorch submits them: 0.84 s; no dense path,
    so a prompt of 1000 tokens loses and one of 200,000 wins."""
    found = prompt("llama-3.1-8b", "minference", 1000.0, 1.0)
    columns, index = small(found, "kv.columns"), small(found, "kv.index")
    assert (columns.launches, columns.host_sync, np.max(columns.count)) == (10, 0, 1024)
    assert (index.launches, index.host_sync, np.max(index.count)) == (30, 2, 1024)
    submitted = float(step_time(group_of(HF), prefill_step(1.0, 1000.0)).parts.submit_s)
    assert submitted == pytest.approx(0.84, rel=0.3)
    for tokens, wins in ((1000.0, False), (10_000.0, False), (200_000.0, True)):
        step = prefill_step(1.0, tokens)
        dense, sparse = (seconds(p, step, "llama-3-8b-1m", "hf") for p in ("dense", "minference"))
        assert (sparse < dense) == wins, tokens


def test_minference_waits_for_each_head() -> None:
    """Llama-3-8B under HF, 20,000 tokens: 1024 heads whose 30 kernels behind the waits are submitted, 20.5 us each, to
    an empty stream, which no attention hides: 0.63 s beyond the GPU's own time."""
    parts = step_time(group_of(HF), prefill_step(1.0, 20_000.0)).parts
    assert float(np.max(parts.total_s - parts.stream_s)) == pytest.approx(30 * 1024 * 7.99e-5 / 3.9, rel=0.01)
    dense = step_time(group_of(HF.dense), prefill_step(1.0, 20_000.0)).parts
    assert float(np.max(dense.total_s - dense.stream_s)) == 0.0


def test_snapkv_as_released_keeps_a_cache_for_every_query_head() -> None:
    """Llama-3.1-8B: 1024 tokens of 4 x 4096 B a layer, read by every step and held by every sequence."""
    for gqa, each in (("shared", 1), ("repeated", 4)):
        policy = f"snapkv(gqa={gqa})"
        core = next(o for o in ops("llama-3.1-8b", policy, decode_step(2.0, 8192.0, 8192.0)) if o.role == "attn.core")
        assert isinstance(core, Attention)
        assert core.kv_read_bytes == 2 * 1024 * GQA * each
        low = Lowering(find_model("llama-3.1-8b"), parse(policy), FORMATS["fp16"], 2.0)
        held = memory.kv_bytes_per_sequence(low, 8192.0, prompt=np.array(8192.0))
        assert float(held) == LAYERS * 1024 * GQA * each


def test_a_prompt_is_whole_until_its_layer_is_compressed() -> None:
    """100,000 tokens of one layer of Llama-2-7B: 1.64 GB beside the activations of a dense run."""
    for policy in ("snapkv", "h2o", "streaming_llm", "kv_quant", "mustafar", "zipvl"):
        sparse, dense = (
            float(memory.activation_bytes(Lowering(find_model("llama-2-7b"), parse(p), FORMATS["fp16"], 2.0), 1.0, 1e5))
            for p in (policy, "dense")
        )
        assert sparse - dense == pytest.approx(1e5 * MHA), policy
