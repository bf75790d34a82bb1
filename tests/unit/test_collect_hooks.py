"""Hooks see the same tensors as the model computes, on a tiny model of every architecture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch not installed")
transformers = pytest.importorskip("transformers", reason="transformers not installed")

from simulator.trace import KEEPS  # noqa: E402
from traces.hooks import head_shape, observed  # noqa: E402
from traces.layouts import decoder_layers  # noqa: E402
from traces.observer import StatisticsObserver  # noqa: E402
from traces.rows import curves, neurons  # noqa: E402
from traces.sampling import sample  # noqa: E402

pytestmark = pytest.mark.torch

VOCABULARY, HIDDEN, WIDTH, LAYERS, HEADS = 64, 32, 48, 2, 4
BATCH, TOKENS = 2, 64

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 128,
}
GATED = {**COMMON, "intermediate_size": WIDTH}
GROUPED = {**GATED, "num_key_value_heads": 2}
MOE = {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FALCON = {**COMMON, "ffn_hidden_size": WIDTH}

# (model_type, config, KV heads, gated)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], int, bool]] = {
    "opt": (
        "opt",
        {**COMMON, "ffn_dim": WIDTH, "word_embed_proj_dim": HIDDEN, "activation_function": "relu"},
        HEADS,
        False,
    ),
    "opt-post-norm": (
        "opt",
        {
            **COMMON,
            "ffn_dim": WIDTH,
            "word_embed_proj_dim": 16,
            "do_layer_norm_before": False,
            "activation_function": "relu",
        },
        HEADS,
        False,
    ),
    "llama": ("llama", GROUPED, 2, True),
    "mistral-window": ("mistral", {**GROUPED, "sliding_window": 16}, 2, True),
    "qwen2": ("qwen2", GROUPED, 2, True),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 16}, 2, True),
    "gemma": ("gemma", {**GROUPED, "head_dim": 16}, 2, True),
    "gemma2-softcap": ("gemma2", {**GROUPED, "head_dim": 8, "sliding_window": 16}, 2, True),
    "gemma3": ("gemma3_text", {**GROUPED, "head_dim": 16, "sliding_window": 16}, 2, True),
    "phi": ("phi", {**GATED, "partial_rotary_factor": 0.5}, HEADS, False),
    "phi-normed": ("phi", {**GATED, "qk_layernorm": True}, HEADS, False),
    "phi3": ("phi3", {**GROUPED, "pad_token_id": 0}, 2, True),
    "falcon-multi-query": ("falcon", {**FALCON, "multi_query": True}, 1, False),
    "falcon-grouped": ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}, 2, False),
    "falcon-alibi": ("falcon", {**FALCON, "alibi": True, "multi_query": False, "parallel_attn": False}, HEADS, False),
    "gpt2": (
        "gpt2",
        {"vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 128},
        HEADS,
        False,
    ),
    "gpt-neox": ("gpt_neox", {**GATED, "rotary_pct": 0.5}, HEADS, False),
    "mixtral": ("mixtral", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}, 2, True),
    "qwen2-moe": ("qwen2_moe", {**MOE, "shared_expert_intermediate_size": 16}, 2, True),
    "qwen3-moe-mixed": ("qwen3_moe", {**MOE, "mlp_only_layers": [0], "head_dim": 16}, 2, True),
}


def tiny(name: str) -> Any:
    """Random-weight model of an architecture."""
    kind, values, _, _ = ARCHITECTURES[name]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **values)
    model = transformers.AutoModelForCausalLM.from_config(config)
    # Larger weights than the initial ones make attention uneven, so that a wrong query or key shows.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    return model.eval().requires_grad_(False)


class Recorder:
    """Observer that keeps what it sees."""

    def __init__(self) -> None:
        self.seen: dict[tuple[int, str], Any] = {}

    def activation(self, layer: int, tensor: str, x: Any) -> None:
        self.seen[layer, tensor] = x.clone()

    def key(self, layer: int, key: Any) -> None:
        self.seen[layer, "key"] = key.clone()

    def attention(self, layer: int, call: Any) -> None:
        own = {name: getattr(call, name).clone() for name in ("query", "key", "value")}
        self.seen[layer, "attention"] = replace(call, **own)

    def experts(self, layer: int, module: Any, hidden: Any, chosen: Any) -> None:
        self.seen[layer, "experts"] = (hidden.clone(), chosen.clone())


def record(name: str) -> tuple[Any, Any, Recorder]:
    model = tiny(name)
    rows = torch.randint(3, VOCABULARY, (BATCH, TOKENS), generator=torch.Generator().manual_seed(1))
    recorder = Recorder()
    with torch.inference_mode(), observed(model, recorder):
        model.base_model(input_ids=rows, use_cache=False)
    return model, rows, recorder


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_hooks_see_what_the_model_computes(name: str) -> None:
    model, rows, recorder = record(name)
    heads, kv_heads, width = head_shape(model.config.get_text_config())
    assert (heads, kv_heads) == (HEADS, ARCHITECTURES[name][2])
    # transformers' own eager attention is the independent account of the probabilities.
    model.set_attn_implementation("eager")
    if "falcon" in name:
        model.config._attn_implementation_internal = "eager"
    with torch.inference_mode():
        reference = model.base_model(input_ids=rows, use_cache=False, output_attentions=True)
    for layer in range(LAYERS):
        call = recorder.seen[layer, "attention"]
        query, key, value = call.query, call.key, call.value
        assert query.shape == (BATCH, heads, TOKENS, width)
        assert key.shape == value.shape == (BATCH, kv_heads, TOKENS, width)
        for b in range(BATCH):
            p = call.probabilities(b, torch.arange(TOKENS))
            # transformers 5.23 adds Falcon's ALiBi twice on its eager path, so only its output is compared.
            if name != "falcon-alibi":
                torch.testing.assert_close(p, reference.attentions[layer][b], atol=2e-5, rtol=1e-3)
            # Probabilities times values, heads side by side, are what the output projection reads.
            out = p @ value[b].repeat_interleave(heads // kv_heads, 0)
            merged = out.transpose(0, 1).reshape(TOKENS, heads * width)
            torch.testing.assert_close(merged, recorder.seen[layer, "attn.o"][b], atol=2e-4, rtol=1e-3)
        assert recorder.seen[layer, "attn.in"].shape == (BATCH, TOKENS, HIDDEN)
        # A rotation keeps the norm of a key, and position 0 is not rotated at all.
        before = recorder.seen[layer, "key"].transpose(1, 2)
        torch.testing.assert_close(before.norm(dim=-1), key.norm(dim=-1), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(before[:, :, 0], key[:, :, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ffn_tensors_multiply_out(name: str) -> None:
    model, _, recorder = record(name)
    is_gated = ARCHITECTURES[name][3]
    for number, (layer, layout) in enumerate(decoder_layers(model)):
        seen = {t: x for (n, t), x in recorder.seen.items() if n == number}
        if layout.experts:
            hidden, chosen = seen["experts"]
            assert hidden.shape == (BATCH, TOKENS, HIDDEN)
            assert chosen.shape == (BATCH, TOKENS, 2)
            assert (chosen[..., 0] != chosen[..., 1]).all()
            continue
        assert seen["ffn.in"].shape == (BATCH, TOKENS, HIDDEN)
        assert ("ffn.gate" in seen) == is_gated
        if is_gated:
            torch.testing.assert_close(seen["ffn.gate"] * seen["ffn.up"], seen["ffn.down"])
        else:
            up = layer.get_submodule(layout.up)
            act = layer.get_submodule(layout.act)
            torch.testing.assert_close(act(up(seen["ffn.in"])), seen["ffn.down"])


def test_the_model_is_left_as_it_was() -> None:
    model = tiny("llama")
    rows = torch.randint(3, VOCABULARY, (1, TOKENS))
    before = model(rows).logits
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    with pytest.raises(RuntimeError, match="stop"), observed(model, Recorder()):
        raise RuntimeError("stop")
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(rows).logits, before)


def test_observing_does_not_change_the_output() -> None:
    model = tiny("gemma2-softcap")
    model.set_attn_implementation("eager")
    rows = torch.randint(3, VOCABULARY, (2, TOKENS), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        plain = model.base_model(rows, use_cache=False).last_hidden_state
        with observed(model, Recorder()):
            seen = model.base_model(rows, use_cache=False).last_hidden_state
    torch.testing.assert_close(seen, plain, atol=1e-4, rtol=1e-4)


def test_unknown_layout_is_one_line() -> None:
    from simulator.base.errors import UnsupportedError

    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model.config = transformers.LlamaConfig(num_hidden_layers=1)
    with pytest.raises(UnsupportedError, match="no decoder layers with a known layout"):
        decoder_layers(model)


@pytest.mark.parametrize("name", ["opt", "llama", "falcon-multi-query", "qwen3-moe-mixed"])
def test_statistics_are_whole_and_in_bounds(name: str) -> None:
    model = tiny(name)
    heads, kv_heads, _ = head_shape(model.config.get_text_config())
    observer = StatisticsObserver({}, heads=heads, kv_heads=kv_heads, seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.inference_mode(), observed(model, observer):
        for number in range(3):
            rows = torch.randint(3, VOCABULARY, (BATCH, TOKENS), generator=generator)
            observer.begin(number, BATCH, TOKENS, calibration=1)
            model.base_model(input_ids=rows, use_cache=False)
            if number == 0:
                observer.calibrated()
    table = curves(observer.state, TOKENS)
    found = {(n, t, s) for n, t, s in zip(*(table[c] for c in ("layer", "tensor", "statistic")), strict=True)}
    for layer, (_, layout) in enumerate(decoder_layers(model)):
        units = "moe.expert" if layout.experts else "ffn.down"
        assert (layer, units, "union_density") in found
        assert (layer, "ffn.down", "exact_zero") in found
        assert (layer, "ffn.down", "magnitude_quantile") in found
        assert ((layer, "attn.kv_head", "union_density") in found) == (kv_heads < heads)
        for statistic in ("tokens_for_mass", "topk_hit", "locality", "sink_share", "entropy"):
            assert (layer, "attn.mass", statistic) in found
        for statistic in ("kept_error", "quant_error"):
            assert (layer, "kv.v", statistic) in found
    frequency = neurons(observer.state)
    assert all(0.0 <= f <= 1.0 for f in frequency["frequency"])
    for value, statistic in zip(table["value"], table["statistic"], strict=True):
        assert value == value
        if statistic not in ("entropy", "head_norm", "magnitude_quantile", "quant_error"):
            assert 0.0 <= value <= 1.0 + 1e-6, statistic
    # One token keeps what the threshold was set to keep, up to the spread of a few sampled tokens.
    ones = {
        k: v
        for k, v, x, s, t in zip(*(table[c] for c in ("keep", "value", "x", "statistic", "tensor")), strict=True)
        if s == "union_density" and x == 1 and t == "attn.in"
    }
    assert set(ones) == set(KEEPS)
    assert all(abs(ones[k] - k) < 0.25 for k in KEEPS)


def test_the_trace_equals_brute_force_on_materialised_tensors() -> None:
    model = tiny("llama")
    observer = StatisticsObserver({}, heads=HEADS, kv_heads=2, seed=4)
    generator = torch.Generator().manual_seed(6)
    batches = [torch.randint(3, VOCABULARY, (BATCH, TOKENS), generator=generator) for _ in range(5)]
    recorders = []
    with torch.inference_mode():
        with observed(model, observer):
            for number, rows in enumerate(batches):
                observer.begin(number, BATCH, TOKENS, calibration=1)
                model.base_model(input_ids=rows, use_cache=False)
                if number == 0:
                    observer.calibrated()
        for rows in batches:
            recorders.append(Recorder())
            with observed(model, recorders[-1]):
                model.base_model(input_ids=rows, use_cache=False)
        model.set_attn_implementation("eager")
        attentions = [model.base_model(r, use_cache=False, output_attentions=True).attentions for r in batches]
    table = curves(observer.state, TOKENS)
    names = ("layer", "head", "tensor", "statistic", "keep", "x")
    value = {
        tuple(-1.0 if v != v else v for v in key): v
        for *key, v in zip(*(table[c] for c in names), table["value"], strict=True)
    }
    samples = [sample(4, number, BATCH, TOKENS) for number in range(5)]
    # Batch 0 sets thresholds; windows, keys, values and attention are read in every third batch from there.
    read = (1, 4)
    for layer in range(LAYERS):
        for head in range(HEADS):
            last = [attentions[n][layer][samples[n].kv_sequence, head, -1] for n in read]
            needed = []
            for p in last:
                left, count = 0.9, 0
                for v in sorted(p.double().tolist(), reverse=True):
                    if left <= 0:
                        break
                    left, count = left - v, count + 1
                needed.append(count / TOKENS)
            mass = value[layer, head, "attn.mass", "tokens_for_mass", 0.9, TOKENS]
            # One token more or less where a sum lands on 0.9 within float32.
            assert mass == pytest.approx(sum(needed) / 2, abs=1 / TOKENS / 2 + 1e-9)
            steps = [attentions[n][layer][samples[n].kv_sequence, head, -8:, :4].sum() for n in read]
            sink = value[layer, head, "attn.mass", "sink_share", -1.0, 4]
            assert sink == pytest.approx(float(sum(steps)) / 16, rel=1e-4)
        threshold = dict(zip(KEEPS, observer.state[f"threshold|{layer}|ffn.down"].tolist(), strict=True))
        used, unions = [], []
        for n in (1, 2, 3, 4):
            x = recorders[n].seen[layer, "ffn.down"].abs()
            windows = zip(samples[n].sequence[:, 0], samples[n].tokens, strict=True)
            for s, positions in windows if n in read else ():
                used.append(float((x[s, positions].amax(0) >= threshold[0.3]).double().mean()))
            for g in range(samples[n].rows.shape[1]):
                pair = torch.stack([x[b, samples[n].rows[b, g]] for b in range(BATCH)])
                unions.append(float((pair.amax(0) >= threshold[0.3]).double().mean()))
        window = value[layer, -1, "ffn.down", "window_density", 0.3, 32]
        assert window == pytest.approx(sum(used) / len(used), rel=1e-12)
        union = value[layer, -1, "ffn.down", "union_density", 0.3, 2]
        assert union == pytest.approx(sum(unions) / len(unions), rel=1e-12)
        keys = torch.cat([recorders[n].seen[layer, "key"][samples[n].kv_sequence, :, 0] for n in read])
        squares = torch.linalg.svdvals(keys.double()) ** 2
        first = value[layer, 0, "kv.k", "singular_energy", -1.0, 1]
        assert first == pytest.approx(float(squares[0] / squares.sum()), rel=1e-6)
