"""Budgets that count, masks that equal zeroed weights, thresholds, and what is read for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch not installed")
transformers = pytest.importorskip("transformers", reason="transformers not installed")

from simulator.base.errors import InputError, UnknownNameError  # noqa: E402
from simulator.policies import parse  # noqa: E402
from traces.bench import Bench  # noqa: E402
from traces.blocks import blocks  # noqa: E402
from traces.experiment import choose, per_sequence, predicted, random  # noqa: E402
from traces.masks import Fixed, gate_thresholded, keep_largest, masked, normalise, thresholded  # noqa: E402
from traces.predictors import METHODS, Predicted, features, fit, readers, restore  # noqa: E402
from traces.scoring import judge, kept_shares, rank_correlation, recall, scene, shares, windows  # noqa: E402

pytestmark = pytest.mark.torch


def tiny(arch: str, *, layers: int = 3) -> Any:
    torch.manual_seed(0)
    shared = {
        "vocab_size": 17,
        "hidden_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if arch == "opt":
        config = transformers.OPTConfig(**shared, ffn_dim=20, word_embed_proj_dim=16, dropout=0.0, init_std=0.3)
        return transformers.OPTForCausalLM(config).eval().requires_grad_(False)
    config = transformers.LlamaConfig(**shared, intermediate_size=20, num_key_value_heads=2, initializer_range=0.3)
    return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(params=["opt", "llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return tiny(request.param)


@pytest.fixture
def bench(model: Any) -> Bench:
    ids = torch.as_tensor(np.random.default_rng(3).integers(2, 17, (5, 24)))
    return Bench(model, blocks(model), scene(model, ids, 12, rows=2))


def random_masks(bench: Bench, tokens: int, seed: int = 0) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    return {
        kind: torch.rand(tokens, len(bench.parts), width, generator=draw) < 0.6 for kind, width in bench.widths.items()
    }


@pytest.mark.parametrize("budget", ["global", "layer"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.3, 0.5, 0.77, 1.0])
def test_a_budget_is_counted_exactly_even_with_ties(budget: str, keep: float) -> None:
    scores = torch.randint(0, 3, (50, 4, 10), generator=torch.Generator().manual_seed(1)).float()
    mask = keep_largest(scores, keep, budget)
    if budget == "layer":
        assert (mask.sum(-1) == round(keep * 10)).all()
    else:
        assert (mask.sum((1, 2)) == round(keep * 40)).all()
    kept, dropped = scores.where(mask, torch.tensor(99.0)), scores.where(~mask, torch.tensor(-1.0))
    over = -1 if budget == "layer" else (1, 2)
    assert (kept.amin(over) >= dropped.amax(over)).all()


def test_scaling_per_layer_changes_a_global_choice_but_never_one_per_layer() -> None:
    scores = torch.rand(20, 3, 8, generator=torch.Generator().manual_seed(2)) * torch.tensor([1.0, 10.0, 100.0]).view(
        1, 3, 1
    )
    wide, narrow = normalise(scores, "global"), normalise(scores, "layer")
    assert float(wide.max()) == 1.0
    assert float(wide.min()) == 0.0
    assert torch.equal(narrow.amax(-1), torch.ones(20, 3))
    assert torch.equal(keep_largest(wide, 0.5, "layer"), keep_largest(narrow, 0.5, "layer"))
    shares_of_last = [float(keep_largest(x, 0.3, "global")[:, 2].float().mean()) for x in (wide, narrow)]
    assert shares_of_last[0] > 0.8
    assert shares_of_last[1] < 0.6


def test_unknown_budgets_and_scales_are_named() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'global'"):
        keep_largest(torch.zeros(1, 1, 1), 0.5, "gobal")
    with pytest.raises(UnknownNameError, match="target scale"):
        normalise(torch.zeros(1, 1, 1), "sequence")


def test_masking_equals_zeroing_the_weights_that_read_the_units(bench: Bench) -> None:
    ids = bench.scene.ids
    masks = {k: m.expand(ids.numel(), -1, -1) for k, m in random_masks(bench, 1).items()}
    with masked(bench.parts, Fixed(masks)):
        found = bench.model(input_ids=ids, use_cache=False).logits
    for i, part in enumerate(bench.parts):
        for kind in ("heads", "neurons"):
            weight = part.reader(kind).weight
            width = weight.shape[1] // part.width(kind)
            weight *= masks[kind][0, i].repeat_interleave(width).float()
    expected = bench.model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_each_token_has_its_own_mask(bench: Bench) -> None:
    """Dropping units of the last token alone changes its logits and no earlier ones."""
    ids = bench.scene.ids[:1]
    masks = {k: torch.ones_like(m) for k, m in random_masks(bench, ids.numel()).items()}
    masks["neurons"][-1] = False
    dense = bench.model(input_ids=ids, use_cache=False).logits
    with masked(bench.parts, Fixed(masks)):
        found = bench.model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found[:, :-1], dense[:, :-1])
    assert float((found[:, -1] - dense[:, -1]).abs().max()) > 1e-3


def test_hooks_are_gone_after_an_error(bench: Bench) -> None:
    dense = bench.model(input_ids=bench.scene.ids, use_cache=False).logits
    wrong = {k: m[:7] for k, m in random_masks(bench, 8).items()}
    with pytest.raises(RuntimeError), masked(bench.parts, Fixed(wrong)):
        bench.model(input_ids=bench.scene.ids, use_cache=False)
    assert torch.equal(bench.model(input_ids=bench.scene.ids, use_cache=False).logits, dense)


@pytest.mark.parametrize("whole", [False, True])
def test_keeping_everything_is_dense(bench: Bench, whole: bool) -> None:
    def setting(number: int) -> Any:
        part, _ = bench.scene.batches[number]
        width = 23 if whole else 11
        ones = random_masks(bench, width * len(bench.scene.ids[part]))
        return masked(bench.parts, Fixed({k: torch.ones_like(m) for k, m in ones.items()}))

    score = judge(bench.model, bench.scene, setting, whole=whole)
    assert score.perplexity == pytest.approx(bench.scene.dense_perplexity, rel=1e-5)
    assert score.agreement == 1.0
    assert bench.scene.scored_tokens == 5 * 11
    assert bench.scene.mean_context == 12 + 6


def test_dense_perplexity_is_that_of_the_scored_tokens_alone(bench: Bench) -> None:
    logits = bench.model(input_ids=bench.scene.ids, use_cache=False).logits.double().log_softmax(-1)
    nats = [-float(logits[w, t, bench.scene.ids[w, t + 1]]) for w in range(5) for t in range(12, 23)]
    assert np.log(bench.scene.dense_perplexity) == pytest.approx(np.mean(nats), rel=1e-6)


def test_kept_shares_and_bytes_by_hand() -> None:
    model = tiny("llama")
    parts = blocks(model)
    used = {("heads", 1): torch.tensor([[True, False, False, False], [True, True, False, False]])}
    used["neurons", 2] = torch.arange(20)[None].expand(2, 20) < 5
    keep = kept_shares(parts, used)
    assert keep[0] == dict.fromkeys(("q", "kv", "o", "ffn_in", "down"), 1.0)
    assert keep[1] == {"q": 0.375, "kv": 0.5, "o": 0.375, "ffn_in": 1.0, "down": 1.0}
    assert keep[2]["down"] == 0.25
    # hidden 16, heads 4 x 4, KV heads 2, neurons 20, vocabulary 17
    layer = {"q": 256, "kv": 256, "o": 256, "ffn_in": 640, "down": 320}
    dense = 3 * sum(layer.values()) + 16 * 17
    read = dense - 0.625 * 512 - 0.5 * 256 - 0.75 * 960
    cost = shares(parts, model, keep, context=10.0, attention=[1.0, 0.375, 1.0], predictor=100)
    assert cost.weight_bytes == pytest.approx((read + 100) / dense)
    mixing = 4 * 10 * 16
    flop = (2 * (read + 100) + 2.375 * mixing) / (2 * dense + 3 * mixing)
    assert cost.flop == pytest.approx(flop)
    every = shares(parts, model, [{}] * 3, context=10.0)
    assert (every.weight_bytes, every.flop) == (1.0, 1.0)


def test_threshold_zero_is_dense_and_a_quantile_drops_its_share(bench: Bench) -> None:
    ids = bench.scene.ids
    dense = bench.model(input_ids=ids, use_cache=False).logits
    sites = [(s, i) for s in ("attn.in", "attn.o", "ffn.in", "ffn.down") for i in range(3)]
    live: dict[str, list[float]] = {}
    with thresholded(bench.parts, dict.fromkeys(sites, 0.0), live):
        torch.testing.assert_close(bench.model(input_ids=ids, use_cache=False).logits, dense)
    seen: list[float] = []
    handle = bench.parts[0].qkv[0].register_forward_pre_hook(lambda _m, a: seen.extend(a[0].abs().flatten().tolist()))
    bench.model(input_ids=ids, use_cache=False)
    handle.remove()
    live = {}
    with thresholded(bench.parts, {("attn.in", 0): float(np.quantile(seen, 0.4))}, live):
        bench.model(input_ids=ids, use_cache=False)
    assert len(live["attn.in"]) == len(bench.parts[0].qkv)
    assert live["attn.in"][0] == pytest.approx(0.6, abs=0.01)


def test_cats_drops_neurons_whose_gate_is_small() -> None:
    model = tiny("llama")
    parts = blocks(model)
    ids = torch.tensor([[3, 5, 2, 9, 4]])
    held: dict[str, Any] = {}
    hooks = [
        parts[0].ffn_in[0].register_forward_hook(lambda _m, _a, out: held.update(gate=out)),
        parts[0].ffn_in[1].register_forward_hook(lambda _m, _a, out: held.update(up=out)),
    ]
    live: dict[str, list[float]] = {}
    with gate_thresholded(parts, [0.05, 0.0, 0.0], live):
        handle = parts[0].down.register_forward_pre_hook(lambda _m, a: held.update(z=a[0]))
        model(input_ids=ids, use_cache=False)
    for hook in (*hooks, handle):
        hook.remove()
    v = torch.nn.functional.silu(held["gate"])
    expected = v * held["up"] * (v.abs() >= 0.05)
    torch.testing.assert_close(held["z"], expected)
    assert live["ffn.down"][0] == pytest.approx(float((v.abs() >= 0.05).float().mean()))
    assert 0.0 < live["ffn.down"][0] < 1.0


def test_layer_0_heads_stay_and_are_not_in_the_budget(bench: Bench) -> None:
    draw = torch.Generator().manual_seed(5)
    scored = {k: torch.rand(9, 3, w, generator=draw) for k, w in bench.widths.items()}
    masks = choose(scored, 0.5, "global").masks
    assert masks["heads"][:, 0].all()
    assert (masks["heads"][:, 1:].sum((1, 2)) == 4).all()
    assert (masks["neurons"].sum((1, 2)) == 30).all()


def test_per_sequence_scores_are_means_over_their_own_tokens() -> None:
    x = torch.arange(12.0).view(6, 1, 2)
    found = per_sequence(x, 2)
    assert found[:3].unique().tolist() == [2.0, 3.0]
    assert found[3:].unique().tolist() == [8.0, 9.0]


def test_recall_and_rank_correlation_by_hand() -> None:
    best = torch.tensor([[[True, True, False, False]]])
    assert recall(torch.tensor([[[True, False, True, False]]]), best) == 0.5
    up = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    assert rank_correlation(up, up.square()) == pytest.approx(1.0)
    assert rank_correlation(up, -up) == pytest.approx(-1.0)
    assert rank_correlation(up, torch.tensor([[[1.0, 3.0, 2.0, 4.0]]])) == pytest.approx(0.8)


def test_what_each_method_reads_and_speaks_for() -> None:
    shadow = readers("shadowllm", 4)
    assert {(r.site, r.at) for r in shadow} == {("attn.o", 0)}
    assert [(r.kind, r.layers) for r in shadow] == [("heads", (1, 2, 3)), ("neurons", (0, 1, 2, 3))]
    for r in readers("dejavu", 4):
        assert r.at == (r.layers[0] - 1 if r.kind == "heads" else r.layers[0])
        assert r.site == ("ffn.in" if r.kind == "heads" else "attn.in")
    with pytest.raises(UnknownNameError, match="did you mean 'dejavu'"):
        readers("deja_vu", 4)


def learned(bench: Bench, method: str, seed: int) -> Any:
    draw = torch.Generator().manual_seed(8)
    sites = {(r.site, r.at) for r in readers(method, 3)}
    inputs = {site: torch.randn(64, 16, generator=draw) for site in sorted(sites)}
    targets = {k: torch.rand(64, 3, w, generator=draw) for k, w in bench.widths.items()}
    return fit(method, inputs, targets, rank=4, seed=seed, epochs=3, batch=16)


@pytest.mark.parametrize("method", METHODS)
def test_training_is_a_function_of_the_seed(bench: Bench, method: str) -> None:
    (one, loss), (again, same), (other, _) = (learned(bench, method, s) for s in (0, 0, 1))
    assert loss == same
    for a, b in zip(one.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_predictor_learns_what_depends_on_its_input(bench: Bench) -> None:
    draw = torch.Generator().manual_seed(8)
    x = torch.rand(512, 16, generator=draw)
    targets = {k: (x[:, :1, None] > 0.5).float().expand(512, 3, w) for k, w in bench.widths.items()}
    _, loss = fit("shadowllm", {("attn.o", 0): x}, targets, rank=16, seed=0, epochs=40, batch=64)
    assert loss < 2 * 0.25 * 0.5


def test_predictors_follow_the_context_and_their_hidden_units_fire(bench: Bench) -> None:
    """Inputs as a real model's are after scaling: two channels hold the extremes, the others move by a hundredth.

    Targets follow which of four contexts a token is in, which two linear features of the small channels tell.
    """
    draw = torch.Generator().manual_seed(3)
    small = torch.randn(2048, 30, generator=draw)
    x = torch.cat([torch.zeros(2048, 1), torch.ones(2048, 1), 0.5 + 0.01 * small], 1)
    ways = torch.randn(30, 2, generator=draw)
    context = ((small @ ways > 0) * torch.tensor([1, 2])).sum(1)
    targets = {k: torch.rand(4, 3, w, generator=draw)[context] for k, w in bench.widths.items()}
    nets, _ = fit("shadowllm", {("attn.o", 0): x}, targets, rank=16, seed=0, epochs=10)
    for net, kind in zip(nets, ("heads", "neurons"), strict=True):
        fires = net[1](net[0](features(x))) > 0
        assert (fires.any(0) & ~fires.all(0)).float().mean() > 0.9
        goal = targets[kind][:, 1 if kind == "heads" else 0 :].flatten(1)
        assert net(features(x)).std(0).mean() > 0.5 * goal.std(0).mean()


@pytest.mark.parametrize("method", METHODS)
def test_masks_follow_the_scores_of_the_running_sparse_model(bench: Bench, method: str) -> None:
    nets, _ = learned(bench, method, 0)
    budget = "global" if method == "shadowllm" else "layer"
    chooser = Predicted(method, nets, bench.widths, 3, keep=0.5, budget=budget)
    with masked(bench.parts, chooser) as used:
        bench.model(input_ids=bench.scene.ids, use_cache=False)
    assert ("heads", 0) not in used
    for kind, first in (("heads", 1), ("neurons", 0)):
        mask = torch.stack([used[kind, i] for i in range(first, 3)], 1)
        assert torch.equal(mask, keep_largest(chooser.stacked(kind), 0.5, budget))
        assert (mask.sum((1, 2)) == round(0.5 * mask[0].numel())).all()
    state = {k: v.clone() for k, v in nets.state_dict().items()}
    for a, b in zip(restore(state).parameters(), nets.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("mask", ["token", "sequence"])
@pytest.mark.parametrize("method", METHODS)
def test_a_row_counts_the_predictor_only_where_it_is_read(bench: Bench, method: str, mask: str) -> None:
    nets, _ = learned(bench, method, 0)
    tokens = [11 * len(bench.scene.ids[part]) for part, _ in bench.scene.batches]
    truth = [{k: torch.rand(n, 3, w) for k, w in bench.widths.items()} for n in tokens]
    budget = "global" if method == "shadowllm" else "layer"
    predicted(bench, method, nets, truth, 1.0, budget, mask, 0, criterion="l2norm", targets="layer")
    row = bench.rows[-1]
    size = sum(p.numel() for p in nets.parameters())
    dense = float(bench.model.get_output_embeddings().weight.numel()) + sum(
        float(m.weight.numel()) for p in bench.parts for m in (*p.qkv, p.out, *p.ffn_in, p.down)
    )
    extra = size / dense if mask == "token" else 0.0
    assert row["weight_bytes_share"] == pytest.approx(1.0 + extra)
    assert row["perplexity"] == pytest.approx(bench.scene.dense_perplexity, rel=1e-5)
    assert (row["agreement"], row["recall"], row["mask"]) == (1.0, 1.0, mask)
    policy = parse(row["policy"]).members[0]
    ranks = {v for k, v in policy.model_dump().items() if k.endswith("rank")}
    # The simulator pays for the predictor that was judged, not for the policy's default one.
    assert (policy.name, ranks, row["context"]) == (method, {4}, bench.scene.mean_context)


def test_random_rows_repeat_for_a_seed_and_differ_between_seeds(bench: Bench) -> None:
    for seed in (0, 0, 1):
        random(bench, 0.5, "layer", seed)
    first, again, other = (row["perplexity"] for row in bench.rows)
    assert first == again != other
    assert set(bench.columns()) >= {"policy", "sparsity", "perplexity", "agreement"}


def test_windows_do_not_overlap_and_too_short_a_text_is_told() -> None:
    ids = np.arange(100)
    drawn = windows(ids, 10, 10, seed=4)
    assert sorted(drawn.flatten().tolist()) == list(range(100))
    assert windows(ids, 10, 3)[:, 0].tolist() == [0, 40, 90]
    behind = windows(ids, 10, 3, first=[7])
    assert behind[:, :2].tolist() == [[7, 0], [7, 45], [7, 90]]
    assert behind.shape == (3, 10)
    with pytest.raises(InputError, match="too few for 11 windows of 10"):
        windows(ids, 10, 11)
