"""What a model becomes on one GPU: every weight once, sharded by tp, with the collectives that needs."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.base.dtypes import FORMATS
from simulator.inference.kv_shape import kv_bytes_per_token
from simulator.inference.lowering import Lowering
from simulator.model.hub import find_model, list_models
from simulator.model.layer import MoeSpec
from simulator.ops.ops import Attention, Collective, Linear, Moe, Op
from simulator.ops.step import Step, decode_step, prefill_step
from simulator.policies import parse

FP16 = FORMATS["fp16"]


def lowered(model: str, policy: str = "dense", *, tp: int = 1, ep: int = 1) -> Lowering:
    return Lowering(find_model(model).in_one_format(), parse(policy), FP16, 2.0, tp, ep)


def elements(op: Op) -> float:
    """Weight elements an op holds, all its repetitions together."""
    count = float(np.max(op.count))
    if isinstance(op, Linear):
        return float(op.groups * op.n * op.k) * count
    if isinstance(op, Moe):
        return float(op.expert_elements * op.n_experts / op.ep * count)
    return 0.0


def vectors(low: Lowering) -> float:
    """Everything a model stores that no matrix product reads: norms, biases, positions, embedding."""
    model = low.model
    out = float(model.params("norm") + model.params("position"))
    if not model.tied_embeddings:
        out += model.params("embedding")
    out += model.vocab if model.lm_head_bias else 0
    for layer in model.layers:
        a, ffn = layer.attention, layer.ffn
        if a is None:
            net = layer.state
            wide = net.v_heads * net.v_dim
            into = 2 * net.k_heads * net.k_dim + 2 * wide + 2 * net.v_heads
            out += net.n_params(model.hidden) - model.hidden * (into + wide)
        elif a.mla is None:
            o_in, kv = a.n_heads * a.v_head_dim, a.n_kv_heads * (a.head_dim + a.v_head_dim)
            out += a.n_params(model.hidden) - model.hidden * (o_in + a.q_width + kv)
        else:
            m = a.mla
            q_out = a.n_heads * a.head_dim
            q = model.hidden * q_out
            if m.q_lora_rank is not None:
                q = m.q_lora_rank * (model.hidden + q_out)
            down = model.hidden * (m.kv_lora_rank + m.qk_rope_head_dim)
            up = m.kv_lora_rank * a.n_heads * (m.qk_nope_head_dim + a.v_head_dim)
            out += a.n_params(model.hidden) - (q + down + up + model.hidden * a.n_heads * a.v_head_dim)
            if a.indexer is not None:
                head = a.indexer.head_dim
                out -= m.q_lora_rank * a.indexer.n_heads * head + model.hidden * (head + a.indexer.n_heads)
        for block in (ffn,) if not isinstance(ffn, MoeSpec) else (ffn.shared,):
            if block is not None:
                out += block.n_params(model.hidden) - (block.n_up + 1) * model.hidden * block.intermediate
        if isinstance(ffn, MoeSpec):
            matrices = (ffn.expert.n_up + 1) * model.hidden * ffn.expert.intermediate
            out += ffn.n_experts * (ffn.expert.n_params(model.hidden) - matrices)
            out += layer.n_params("router", model.hidden) - ffn.n_experts * model.hidden
    return out


@pytest.mark.parametrize("name", list_models())
def test_a_decode_step_reads_every_weight_of_the_model_once(name: str) -> None:
    """Elements of all products plus the vectors are the model's published parameter count.

    The tied output matrix is the embedding, read by lm_head and stored once; MLA's kv_up appears as
    the two absorbed products. A shared expert's gate vector belongs to the router's parameters.
    """
    low = lowered(name)
    total = sum(elements(op) for op in low.ops(decode_step(1.0, 2.0))) + vectors(low)
    assert total == pytest.approx(low.model.n_params, rel=1e-12)


@pytest.mark.parametrize("name", ["llama-2-7b", "qwen2.5-72b", "gpt-neox-20b", "deepseek-v2-lite"])
def test_prefill_and_decode_hold_the_same_weights(name: str) -> None:
    """kv_up of a prefill is absorb_k and absorb_v of a decode step."""
    low = lowered(name)
    pre = sum(elements(op) for op in low.ops(prefill_step(1.0, 8.0)))
    assert pre == pytest.approx(sum(elements(op) for op in low.ops(decode_step(1.0, 8.0))))


@pytest.mark.parametrize("name", ["llama-2-7b", "opt-30b", "mixtral-8x7b", "deepseek-v3"])
def test_tensor_parallel_shards(name: str) -> None:
    """Four GPUs hold a quarter each of all but the latent down-projections and routers."""
    whole, part = ({op.role: elements(op) for op in lowered(name, tp=tp).ops(decode_step(1.0, 2.0))} for tp in (1, 4))
    for role, n in whole.items():
        if n:
            replicated = role in ("moe.router", "attn.kv_down", "attn.q_down")
            assert part[role] == pytest.approx(n if replicated else n / 4), role


def test_a_replicated_kv_head_is_projected_on_every_gpu() -> None:
    """Llama-3.1-70B, tp 16: 64/16 = 4 query heads and one KV head of 8 (16/8 copies): 6 heads of 128."""
    qkv = next(o for o in lowered("llama-3.1-70b", tp=16).ops(decode_step(1.0, 2.0)) if o.role == "attn.qkv")
    assert isinstance(qkv, Linear)
    assert qkv.n == (4 + 2) * 128


@pytest.mark.parametrize(("name", "per_layer"), [("llama-2-7b", 2), ("gpt-j-6b", 1), ("mixtral-8x7b", 2)])
def test_collectives_per_layer(name: str, per_layer: int) -> None:
    """Two all-reduces a layer, one where attention and FFN run in parallel; one more for the embedding,
    one gather of the logits; none on a single GPU."""
    low = lowered(name, tp=2)
    calls = {o.role: (o.op, o.count) for o in low.ops(decode_step(3.0, 5.0)) if isinstance(o, Collective)}
    reduces = sum(c for op, c in calls.values() if op == "all_reduce")
    assert reduces == per_layer * low.model.n_layers + 1
    assert [op for op, _ in calls.values()].count("all_gather") == 1
    assert not any(isinstance(o, Collective) for o in lowered(name).ops(decode_step(3.0, 5.0)))


def test_a_mixed_step_multiplies_all_rows_at_once_and_attends_in_two_kernels() -> None:
    """4 decode rows and one chunk of 100: 104 rows, 5 sampled."""
    step = Step(
        decode_rows=4.0,
        decode_context=50.0,
        prefill_rows=1.0,
        prefill_tokens=100.0,
        prefill_context=300.0,
        decodes=True,
        prefills=True,
    )
    ops = lowered("llama-2-7b").ops(step)
    rows = {o.role: o.m for o in ops if isinstance(o, Linear)}
    assert rows["attn.qkv"] == rows["mlp.down"] == 104.0
    assert rows["lm_head"] == 5.0
    assert sorted(o.phase for o in ops if isinstance(o, Attention)) == ["decode", "prefill"]


def test_sliding_windows_bound_their_layers_only() -> None:
    """Gemma-3-27B: five of six layers see 1024 tokens."""
    ops = [o for o in lowered("gemma-3-27b").ops(decode_step(1.0, 50_000.0)) if isinstance(o, Attention)]
    by_tokens = {float(np.max(o.tokens)): o.count for o in ops}
    assert by_tokens == {1024.0: 52.0, 50_000.0: 10.0}


@pytest.mark.parametrize(
    ("name", "tp", "ep", "policy", "words"),
    [
        ("llama-2-7b", 64, 1, "dense", "32 heads cannot be split over tp=64"),
        ("llama-2-7b", 3, 1, "dense", "32 heads cannot be split over tp=3"),
        ("mixtral-8x7b", 2, 4, "dense", "ep=4 does not divide tp=2"),
        ("mixtral-8x7b", 16, 16, "dense", "8 experts cannot be split over ep=16"),
        ("deepseek-v3", 8, 1, "mustafar(keep=0.5)", "latent"),
        ("deepseek-v3", 8, 1, "quest", "latent"),
        ("deepseek-v3", 8, 1, "streaming_llm", "latent"),
        ("mixtral-8x7b", 1, 1, "shadowllm", "experts"),
        ("mixtral-8x7b", 1, 1, "nm24", "experts"),
        ("llama-2-7b", 1, 1, "dejavu", "ReLU"),
        ("llama-2-7b", 1, 1, "w4a16", None),
        ("opt-30b", 8, 1, "dejavu+mustafar(keep=0.3)", None),
    ],
)
def test_what_cannot_be_cut_or_rewritten_says_why(name: str, tp: int, ep: int, policy: str, words: str | None) -> None:
    reason = lowered(name, policy, tp=tp, ep=ep).why_not()
    assert (reason is None) if words is None else (words in (reason or ""))


@pytest.mark.parametrize("policy", ["kv_quant(bits=4)", "mustafar(keep=0.3)"])
def test_a_kv_policy_and_an_8_bit_cache_are_refused_together(policy: str) -> None:
    low = Lowering(find_model("llama-2-7b"), parse(policy), FP16, 1.0)
    assert "--kv-cache-dtype" in (low.why_not() or "")


def test_weight_policies_leave_the_output_matrix_and_absorbed_products_alone() -> None:
    for op in lowered("deepseek-v3", "w4a16").ops(decode_step(1.0, 2.0)):
        if isinstance(op, Linear):
            kept = op.role in ("lm_head", "moe.router", "attn.absorb_k", "attn.absorb_v")
            assert (op.fmt.name == "w4a16") is not kept, op.role


def test_gathered_2_to_4_weights_do_not_grow_back_their_zeros() -> None:
    """nm24 halves the multiply-adds, shadowllm keeps half of the neurons of one row: a quarter."""
    ops = {o.role: o for o in lowered("opt-6.7b", "nm24+shadowllm(keep=0.5)").ops(decode_step(1.0, 2.0))}
    assert [o.flop_keep for o in ops.values() if isinstance(o, Linear) and o.role == "mlp.down"] == [0.25]


def test_layers_are_grouped_and_counted() -> None:
    low = lowered("llama-2-7b", "quest(budget=64,dense_layers=2)")
    assert sorted(len(i) for _, i in low.groups) == [2, 30]
    attention = [o for o in low.ops(decode_step(1.0, 4096.0)) if isinstance(o, Attention)]
    assert {float(np.max(o.tokens)): o.count for o in attention} == {4096.0: 2.0, 64.0: 30.0}


def test_kv_per_gpu_is_never_less_than_one_head() -> None:
    a = find_model("llama-3.1-70b").layers[0].attention
    sizes = [kv_bytes_per_token(a, tp, 2.0) for tp in (1, 2, 4, 8, 16, 32)]
    assert sizes == [4096.0, 2048.0, 1024.0, 512.0, 512.0, 512.0]
