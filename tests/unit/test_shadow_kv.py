"""KV methods against loops over single queries, and against dense where nothing is left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch not installed")
transformers = pytest.importorskip("transformers", reason="transformers not installed")

from simulator.base.errors import UnsupportedError  # noqa: E402
from traces.bench import Bench  # noqa: E402
from traces.blocks import blocks  # noqa: E402
from traces.kv_quality import METHODS, attending, label_channels, largest, looking_back  # noqa: E402
from traces.kv_selectors import double_sparsity, h2o, looked, quest, snapkv, streaming_llm  # noqa: E402
from traces.other_methods import kv_methods  # noqa: E402
from traces.scoring import judge, scene  # noqa: E402

pytestmark = pytest.mark.torch

HEADS, KV_HEADS, TOKENS, DIM, PROMPT = 4, 2, 40, 6, 24


@pytest.fixture
def qk() -> tuple[Any, Any]:
    draw = torch.Generator().manual_seed(0)
    q = torch.randn(2, HEADS, TOKENS, DIM, generator=draw)
    return q, torch.randn(2, KV_HEADS, TOKENS, DIM, generator=draw)


def tiny(arch: str) -> Any:
    torch.manual_seed(0)
    shared = {
        "vocab_size": 17,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if arch == "opt":
        config = transformers.OPTConfig(**shared, ffn_dim=20, word_embed_proj_dim=24, dropout=0.0, init_std=0.3)
        return transformers.OPTForCausalLM(config).eval().requires_grad_(False)
    config = transformers.LlamaConfig(**shared, intermediate_size=20, num_key_value_heads=2, initializer_range=0.3)
    return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(params=["opt", "llama"])
def bench(request: pytest.FixtureRequest) -> Bench:
    model = tiny(request.param)
    ids = torch.as_tensor(np.random.default_rng(3).integers(2, 17, (3, 48)))
    return Bench(model, blocks(model), scene(model, ids, PROMPT, rows=2))


def causal() -> Any:
    return torch.tril(torch.ones(TOKENS, TOKENS, dtype=torch.bool))[PROMPT:]


def after(qk: tuple[Any, Any]) -> tuple[Any, Any]:
    """Queries after the prompt, and all keys."""
    return qk[0][:, :, PROMPT:], qk[1]


def test_streaming_llm_reads_sinks_and_window(qk: tuple[Any, Any]) -> None:
    seen = streaming_llm(*after(qk), budget=10, sinks=3)[0, 0] & causal()
    for t in range(PROMPT, TOKENS):
        expected = {0, 1, 2, *range(t - 6, t + 1)}
        assert set(seen[t - PROMPT].nonzero().flatten().tolist()) == expected


def test_quest_takes_the_pages_with_the_highest_bound(qk: tuple[Any, Any]) -> None:
    q, k = qk
    page, budget = 4, 12
    seen = quest(*after(qk), budget=budget, page=page) & causal()
    for b in range(2):
        for h in range(HEADS):
            for t in range(PROMPT, TOKENS):
                closed = t // page
                bounds = []
                for p in range(closed):
                    keys = k[b, h // 2, p * page : (p + 1) * page]
                    bounds.append(
                        sum(
                            max(float(q[b, h, t, c] * keys[:, c].min()), float(q[b, h, t, c] * keys[:, c].max()))
                            for c in range(DIM)
                        )
                    )
                best = sorted(range(closed), key=lambda p: -bounds[p])[: budget // page - 1]
                expected = {i for p in best for i in range(p * page, (p + 1) * page)}
                expected |= set(range(closed * page, t + 1))
                assert set(seen[b, h, t - PROMPT].nonzero().flatten().tolist()) == expected


def test_h2o_evicts_the_lightest_old_token_of_each_head(qk: tuple[Any, Any]) -> None:
    q, k = qk
    budget = 11
    before = looked(q[:, :, :PROMPT], k[:, :, :PROMPT])
    heavy, recent = budget // 2, budget - budget // 2
    seen = h2o(*after(qk), before=before, budget=budget) & causal()
    for b in range(2):
        for kv in range(KV_HEADS):
            heads = [kv * 2, kv * 2 + 1]
            total = np.zeros(TOKENS)
            for t in range(PROMPT):
                for h in heads:
                    total[: t + 1] += torch.softmax(k[b, kv, : t + 1] @ q[b, h, t], 0).numpy()
            alive = set(range(PROMPT))
            for t in range(PROMPT, TOKENS):
                alive.add(t)
                old = sorted(i for i in alive if i <= t - recent)
                kept = sorted(old, key=lambda i: -total[i])[:heavy]
                alive = {*kept, *(i for i in alive if i > t - recent)}
                order = sorted(alive)
                for h in heads:
                    assert set(seen[b, h, t - PROMPT].nonzero().flatten().tolist()) == alive
                    total[order] += torch.softmax(k[b, kv, order] @ q[b, h, t], 0).numpy()


def test_snapkv_keeps_a_budget_of_the_prompt_and_all_that_follows(qk: tuple[Any, Any]) -> None:
    q, k = qk
    before = looked(q[:, :, :PROMPT], k[:, :, :PROMPT])
    seen = snapkv(*after(qk), before=before, budget=9, observe=4, pool=3) & causal()
    for b in range(2):
        for kv in range(KV_HEADS):
            mass = np.zeros(PROMPT - 4)
            for h in (kv * 2, kv * 2 + 1):
                for t in range(PROMPT - 4, PROMPT):
                    p = torch.softmax(k[b, kv, : t + 1] @ q[b, h, t], 0).numpy()
                    mass += p[: PROMPT - 4]
            pooled = np.convolve(np.pad(mass, 1), np.ones(3) / 3, mode="valid")
            kept = set(np.argsort(-pooled)[:5].tolist()) | set(range(PROMPT - 4, PROMPT))
            for t in range(PROMPT, TOKENS):
                for h in (kv * 2, kv * 2 + 1):
                    found = set(seen[b, h, t - PROMPT].nonzero().flatten().tolist())
                    assert found == kept | set(range(PROMPT, t + 1))


@pytest.mark.parametrize("together", [True, False])
def test_double_sparsity_reads_the_best_tokens_of_its_label_channels(qk: tuple[Any, Any], together: bool) -> None:
    q, k = qk
    labels = torch.tensor([[0, 3], [5, 1]])
    seen = double_sparsity(*after(qk), budget=7, labels=labels, together=together) & causal()
    for b in range(2):
        for kv in range(KV_HEADS):
            some = labels[kv].tolist()
            for t in range(PROMPT, TOKENS):
                heads = (kv * 2, kv * 2 + 1)
                scores = {h: k[b, kv, : t + 1][:, some] @ q[b, h, t][some] for h in heads}
                if together:
                    votes = torch.stack([torch.softmax(scores[h], 0) for h in heads]).sum(0)
                    scores = dict.fromkeys(heads, votes)
                for h in heads:
                    order = sorted(range(t), key=lambda i: -float(scores[h][i]))
                    assert set(seen[b, h, t - PROMPT].nonzero().flatten().tolist()) == {t, *order[:6]}


def test_label_channels_are_the_largest_on_the_text() -> None:
    """Channel c of a KV head weighs E|q_c| of its group times E|k_c|; a bias made large on both sides wins."""
    model = tiny("opt")
    attention = model.model.decoder.layers[1].self_attn
    for projection in (attention.q_proj, attention.k_proj):
        projection.bias[2 * 6 + 4] = 50.0
    found = label_channels(model, torch.arange(2, 14).view(2, 6), 2)
    assert [tuple(x.shape) for x in found] == [(4, 2)] * 2
    assert int(found[1][2, 0]) == 4


@pytest.mark.parametrize("method", ["h2o", "snapkv"])
def test_a_prompt_out_of_the_pass_is_the_same_as_in_it(bench: Bench, method: str) -> None:
    """The rest alone, with what was recorded of the prompt, scores as one pass over both."""
    options: dict[str, Any] = {"budget": 10, "observe": 4} if method == "snapkv" else {"budget": 10}
    before = looking_back(bench.model, bench.scene)
    apart = judge(
        bench.model,
        bench.scene,
        lambda n: attending(bench.model, method, PROMPT, [], before=before[n].__getitem__, **options),
    )
    whole = judge(bench.model, bench.scene, lambda _: attending(bench.model, method, PROMPT, [], **options), whole=True)
    assert apart.perplexity == pytest.approx(whole.perplexity, rel=1e-5)
    assert abs(np.log(apart.perplexity / bench.scene.dense_perplexity)) > 1e-3
    with (
        attending(bench.model, method, PROMPT, [], **options),
        pytest.raises(ValueError, match="what the prompt looked at"),
    ):
        judge(bench.model, bench.scene, lambda _: attending(bench.model, method, PROMPT, [], **options))


def test_the_largest_elements_of_a_vector_stay() -> None:
    x = torch.tensor([[3.0, -5.0, 1.0, 0.5, -2.0]])
    assert largest(x, 0.4).tolist() == [[3.0, -5.0, 0.0, 0.0, 0.0]]
    assert largest(x, 0.3).tolist() == [[3.0, -5.0, 0.0, 0.0, 0.0]]
    assert torch.equal(largest(x, 1.0), x)


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_of_everything_is_dense(bench: Bench, method: str) -> None:
    options: dict[str, Any] = {"keep": 1.0} if method == "mustafar" else {"budget": 64}
    read: list[float] = []
    before = bench.model.config._attn_implementation
    score = judge(
        bench.model, bench.scene, lambda _: attending(bench.model, method, PROMPT, read, **options), whole=True
    )
    assert score.perplexity == pytest.approx(bench.scene.dense_perplexity, rel=1e-4)
    assert score.agreement == 1.0
    assert read == pytest.approx([1.0] * 4)
    assert bench.model.config._attn_implementation == before


def test_only_queries_after_the_prompt_are_affected(bench: Bench) -> None:
    dense = bench.model(input_ids=bench.scene.ids, use_cache=False).logits
    for method in METHODS:
        options: dict[str, Any] = {"keep": 0.2, "window": 4} if method == "mustafar" else {"budget": 8}
        options |= {"observe": 4} if method == "snapkv" else {"page": 4} if method == "quest" else {}
        with attending(bench.model, method, PROMPT, [], **options):
            found = bench.model(input_ids=bench.scene.ids, use_cache=False).logits
        torch.testing.assert_close(found[:, :PROMPT], dense[:, :PROMPT], rtol=1e-4, atol=1e-4)
        assert float((found[:, PROMPT:] - dense[:, PROMPT:]).abs().max()) > 1e-3


def test_read_shares_are_counted_over_causal_keys(bench: Bench) -> None:
    read: list[float] = []
    with attending(bench.model, "streaming_llm", PROMPT, read, budget=8):
        bench.model(input_ids=bench.scene.ids, use_cache=False)
    assert read == pytest.approx([24 * 8 / sum(range(25, 49))] * 2)
    read = []
    with attending(bench.model, "mustafar", PROMPT, read, keep=0.5, window=8):
        bench.model(input_ids=bench.scene.ids, use_cache=False)
    old = sum(t + 1 - 8 for t in range(24, 48)) / sum(range(25, 49))
    assert read == pytest.approx([1 - 0.5 * old] * 2)
    read = []
    with attending(bench.model, "quest", PROMPT, read, dense_layers=1, budget=8, page=4):
        bench.model(input_ids=bench.scene.ids, use_cache=False)
    assert read[0] == 1.0
    assert 0.1 < read[1] < 0.6


def test_masks_that_are_not_plain_causal_are_refused(bench: Bench) -> None:
    mask = torch.ones(3, 48, dtype=torch.long)
    mask[0, :5] = 0
    with (
        attending(bench.model, "streaming_llm", PROMPT, [], budget=8),
        pytest.raises(UnsupportedError, match="plain causal"),
    ):
        bench.model(input_ids=bench.scene.ids, attention_mask=mask, use_cache=False)


def test_rows_of_the_kv_methods_name_their_policies_and_measured_shares(bench: Bench) -> None:
    for step in kv_methods(bench, (0.5, 0.8)):
        step.run()
    assert {r["method"] for r in bench.rows} == set(METHODS)
    names = [r["policy"] for r in bench.rows]
    assert len(names) == len(set(names))
    for row in bench.rows:
        assert 0.0 <= row["sparsity"] < 1.0
        assert row["weight_bytes_share"] == 1.0
        assert 0.5 < row["flop_share"] <= 1.0
