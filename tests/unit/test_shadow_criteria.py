"""Criteria against autograd and a full Hessian, written out the slow way."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch not installed")
transformers = pytest.importorskip("transformers", reason="transformers not installed")

from traces.blocks import Block, blocks, hooked, out_by_in  # noqa: E402
from traces.criteria import CRITERIA, KINDS, magnitude, scores, sequence_loss  # noqa: E402

pytestmark = pytest.mark.torch

VOCABULARY = 13


def tiny(arch: str, *, seed: int = 0) -> Any:
    """A random model of 2 layers in double precision: OPT (ReLU) or Llama (SwiGLU, grouped heads)."""
    torch.manual_seed(seed)
    shared = {
        "vocab_size": VOCABULARY,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if arch == "opt":
        config = transformers.OPTConfig(**shared, ffn_dim=6, word_embed_proj_dim=8, dropout=0.0, init_std=0.5)
        model = transformers.OPTForCausalLM(config)
    else:
        config = transformers.LlamaConfig(**shared, intermediate_size=6, num_key_value_heads=2, initializer_range=0.5)
        model = transformers.LlamaForCausalLM(config)
    return model.double().eval()


@pytest.fixture(params=["opt", "llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return tiny(request.param)


@pytest.fixture
def ids() -> Any:
    return torch.tensor([[3, 5, 2, 9, 4], [7, 7, 1, 0, 11]])


def captured(model: Any, parts: list[Block], ids: Any) -> dict[tuple[str, int], Any]:
    """Inputs of the projections that read heads and neurons, with their gradients."""
    held: dict[tuple[str, int], Any] = {}

    def keep(key: tuple[str, int]) -> Any:
        def hook(_module: Any, args: tuple[Any, ...]) -> None:
            args[0].retain_grad()
            held[key] = args[0]

        return hook

    hooks = [
        part.reader(kind).register_forward_pre_hook(keep((kind, i))) for i, part in enumerate(parts) for kind in KINDS
    ]
    model.requires_grad_(True)
    model.zero_grad()
    with hooked(hooks):
        sequence_loss(model, ids).backward()
    return held


@pytest.mark.parametrize("kind", KINDS)
def test_first_order_criteria_are_autograd_written_out(model: Any, ids: Any, kind: str) -> None:
    parts = blocks(model)
    held = captured(model, parts, ids)
    found, _ = scores(model, parts, ids, ["l2norm", "plainact", "fisher", "gradnorm"])
    for i, part in enumerate(parts):
        x = held[kind, i]
        a, g = x.detach().reshape(10, -1), x.grad.reshape(10, -1)
        width = a.shape[1] // part.width(kind)
        for t in range(10):
            for u in range(part.width(kind)):
                own = slice(u * width, (u + 1) * width)
                au, gu = a[t, own].tolist(), g[t, own].tolist()
                pairs = list(zip(au, gu, strict=True))
                expected = {
                    "l2norm": sum(v * v for v in au) ** 0.5,
                    "plainact": sum(abs(v * w) for v, w in pairs),
                    "fisher": sum((v * w) ** 2 for v, w in pairs),
                    "gradnorm": sum(w * w for w in gu) ** 0.5,
                }
                for name, value in expected.items():
                    assert float(found[kind, name][t, i, u]) == pytest.approx(value, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_snip_is_weight_times_its_gradient(model: Any, kind: str) -> None:
    """With two tokens only the first has a loss, so the parameter's gradient is that token's alone."""
    parts = blocks(model)
    ids = torch.tensor([[3, 8]])
    captured(model, parts, ids)
    found, _ = scores(model, parts, ids, ["snip"])
    for i, part in enumerate(parts):
        module = part.reader(kind)
        saliency = (module.weight * module.weight.grad).abs().sum(0).view(part.width(kind), -1).sum(1)
        torch.testing.assert_close(found[kind, "snip"][0, i].double(), saliency.detach(), rtol=1e-5, atol=1e-9)
        assert float(found[kind, "snip"][1].abs().max()) == 0.0


def flat_loss(model: Any, parts: list[Block], ids: Any) -> Any:
    """The loss as a function of one vector added to all units of all layers and tokens."""
    keys = [(kind, i) for kind in KINDS for i in range(len(parts))]
    sizes = [ids.numel() * out_by_in(parts[i].reader(kind)).shape[1] for kind, i in keys]

    def loss(vector: Any) -> Any:
        pieces = dict(zip(keys, vector.split(sizes), strict=True))

        def add(key: tuple[str, int]) -> Any:
            return lambda _m, args: (args[0] + pieces[key].view(args[0].shape), *args[1:])

        hooks = [parts[i].reader(kind).register_forward_pre_hook(add((kind, i))) for kind, i in keys]
        with hooked(hooks), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return sequence_loss(model, ids)

    return loss, keys, sizes


def expected_grasp(model: Any, parts: list[Block], ids: Any, product: Any, keys: Any, sizes: Any) -> dict[Any, Any]:
    held = captured(model, parts, ids)
    found = {}
    for (kind, i), hg in zip(keys, product.split(sizes), strict=True):
        a = held[kind, i].detach().reshape(ids.numel(), -1)
        found[kind, i] = (a * hg.view(a.shape)).view(len(a), parts[i].width(kind), -1).sum(-1)
    return found


def test_grasp_is_activation_times_the_full_hessian_times_the_gradient(model: Any) -> None:
    parts, ids = blocks(model), torch.tensor([[3, 5, 2]])
    loss, keys, sizes = flat_loss(model, parts, ids)
    zero = torch.zeros(sum(sizes), dtype=torch.double)
    hessian = torch.autograd.functional.hessian(loss, zero)
    gradient = torch.autograd.functional.jacobian(loss, zero)
    # Llama's norm computes in fp32 whatever the weights are.
    assert torch.allclose(hessian, hessian.T, atol=1e-5 * float(hessian.abs().max()))
    expected = expected_grasp(model, parts, ids, hessian @ gradient, keys, sizes)
    found, _ = scores(model, parts, ids, ["grasp"])
    for (kind, i), value in expected.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(found[kind, "grasp"][:, i].double(), value, rtol=1e-4, atol=1e-5 * scale)
        assert float(value.abs().max()) > 1e-4


def test_grasp_by_central_differences_of_the_gradient(ids: Any) -> None:
    """The Llama kind only: a kink of ReLU has no second derivative to difference across."""
    model = tiny("llama", seed=1)
    parts = blocks(model)
    loss, keys, sizes = flat_loss(model, parts, ids)
    zero = torch.zeros(sum(sizes), dtype=torch.double)
    gradient = torch.autograd.functional.jacobian(loss, zero)
    step = 3e-3 / float(gradient.norm())
    up, down = (torch.autograd.functional.jacobian(loss, zero + sign * step * gradient) for sign in (1.0, -1.0))
    expected = expected_grasp(model, parts, ids, (up - down) / (2.0 * step), keys, sizes)
    found, _ = scores(model, parts, ids, ["grasp"])
    for (kind, i), value in expected.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(found[kind, "grasp"][:, i].double(), value, rtol=1e-2, atol=1e-3 * scale)


def test_criteria_together_equal_criteria_alone(model: Any, ids: Any) -> None:
    parts = blocks(model)
    together, _ = scores(model, parts, ids, list(CRITERIA))
    for name in CRITERIA:
        alone, _ = scores(model, parts, ids, [name])
        for kind in KINDS:
            torch.testing.assert_close(together[kind, name], alone[kind, name], rtol=1e-4, atol=1e-7)


def test_inputs_handed_back_are_what_the_modules_saw(model: Any, ids: Any) -> None:
    parts = blocks(model)
    _, seen = scores(model, parts, ids, ["l2norm"], [("attn.o", 0), ("ffn.down", 1)])
    held = captured(model, parts, ids)
    torch.testing.assert_close(seen["attn.o", 0], held["heads", 0].detach().reshape(10, -1))
    torch.testing.assert_close(seen["ffn.down", 1], held["neurons", 1].detach().reshape(10, -1))


def test_magnitude_counts_every_weight_of_a_unit_once(model: Any) -> None:
    parts = blocks(model)
    neurons, heads = magnitude(parts, "neurons"), magnitude(parts, "heads")
    for i, part in enumerate(parts):
        every = [m.weight.detach().float() for m in (*part.ffn_in, part.down)]
        assert float(neurons[i].square().sum()) == pytest.approx(sum(float(w.square().sum()) for w in every), rel=1e-5)
        head_1 = part.out.weight.detach()[:, part.head_dim : 2 * part.head_dim].float().norm()
        assert float(heads[i, 1]) == pytest.approx(float(head_1), rel=1e-5)
