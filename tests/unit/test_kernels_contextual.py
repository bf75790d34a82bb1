"""Contextual, prefill and weight kernels against their naive twins, and the twins against torch."""

from __future__ import annotations

import importlib

import pytest

torch = pytest.importorskip("torch", reason="torch not installed")
pytest.importorskip("triton", reason="triton not installed")

from sparse_kernels import registry, split_k, target  # noqa: E402
from sparse_kernels.bitmap_spmm import naive as bitmap  # noqa: E402
from sparse_kernels.block_sparse_attention import naive as blocks  # noqa: E402
from sparse_kernels.block_sparse_attention import triton as blocks_triton  # noqa: E402
from sparse_kernels.gathered_mlp import naive as gathered  # noqa: E402
from sparse_kernels.group_w4 import naive as w4  # noqa: E402
from sparse_kernels.head_projection import naive as heads  # noqa: E402
from sparse_kernels.nm24 import library as nm24_library  # noqa: E402
from sparse_kernels.nm24 import naive as nm24  # noqa: E402
from sparse_kernels.plain import largest  # noqa: E402
from sparse_kernels.predictor import triton as predictor_triton  # noqa: E402
from sparse_kernels.teal import threshold_keeping  # noqa: E402
from sparse_kernels.tensors import clone, poison, tensors_of  # noqa: E402

pytestmark = pytest.mark.torch

NAMES = (
    "gathered_mlp",
    "head_projection",
    "teal",
    "cats",
    "predictor",
    "block_sparse_attention",
    "bitmap_spmm",
    "group_w4",
)
KERNELS = [importlib.import_module(f"sparse_kernels.{name}").KERNEL for name in NAMES]
CASES = [(k, c) for k in KERNELS for c in k.cases_for("test")]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def run(kernel, inputs):
    """The kernel's outputs, on poisoned buffers."""
    work = clone(inputs)
    buffers = kernel.buffers(**work)
    poison(buffers)
    kernel.triton(**work, **buffers)
    return {**work, **buffers}


@pytest.mark.parametrize(("kernel", "case"), CASES, ids=[f"{k.name}-{c.name}" for k, c in CASES])
def test_kernel_equals_its_naive_twin(kernel, case):
    inputs = kernel.inputs(case, 1, "cpu")
    got = run(kernel, inputs)
    for name, want in kernel.naive(**inputs).items():
        assert got[name].shape == want.shape
        torch.testing.assert_close(
            got[name].double(),
            want.double(),
            rtol=kernel.tolerance.relative,
            atol=kernel.tolerance.absolute,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize("kernel", registry.kernels().values(), ids=lambda k: k.name)
def test_a_twin_works_where_its_inputs_are(kernel):
    """On a GPU a tensor made without a device lies on the CPU; here it lies nowhere, and any use of it shows."""
    small = registry.case("small", "test", m=2, n=8, k=16)
    with torch.device("meta"):
        inputs = kernel.inputs(next(kernel.cases_for("test"), small), 1, "cpu")
        outputs = kernel.naive(**inputs)
        buffers = {} if kernel.name == "nm24" else kernel.buffers(**inputs)
    for name, tensor in tensors_of({**inputs, **outputs, **buffers}).items():
        assert tensor.device.type == "cpu", name
    # Some operations take a tensor from nowhere and return noise.
    for name, want in kernel.naive(**inputs).items():
        torch.testing.assert_close(outputs[name], want, rtol=0.0, atol=0.0, equal_nan=True)


def test_a_threshold_lies_in_the_widest_gap_near_the_count():
    magnitude = torch.arange(2000.0)
    # 1000 are at least 1000; the widest gap within two of there is the one below 1002.
    magnitude[:1002] -= 0.5
    assert threshold_keeping(magnitude, 1000) == pytest.approx((1002 + 1000.5) / 2)
    assert threshold_keeping(magnitude, 2000) == -0.25
    assert threshold_keeping(magnitude, 0) == 2000.0
    # Few units have no room: the count is exact.
    assert int((torch.arange(99.0) >= threshold_keeping(torch.arange(99.0), 33)).sum()) == 33


@pytest.mark.parametrize("name", ["gathered_mlp", "teal", "cats", "bitmap_spmm"])
def test_split_sums_repeat_to_the_bit(name):
    kernel = KERNELS[NAMES.index(name)]
    inputs = kernel.inputs(kernel.cases[0], 2, "cpu")
    assert kernel.buffers(**inputs)["partial"].shape[0] > 1
    assert torch.equal(run(kernel, inputs)["y"], run(kernel, inputs)["y"])


def test_a_wrong_index_is_seen():
    """The comparison can fail: one listed neuron exchanged for another."""
    kernel = KERNELS[0]
    inputs = kernel.inputs(kernel.cases[0], 1, "cpu")
    want = kernel.naive(**inputs)["y"]
    absent = next(i for i in range(320) if i not in inputs["index"].tolist())
    inputs["index"][kernel.naive(**inputs)["h"].abs().argmax()] = absent
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(
            run(kernel, inputs)["y"].float(), want, rtol=kernel.tolerance.relative, atol=kernel.tolerance.absolute
        )


def test_all_neurons_are_the_dense_mlp():
    g = torch.Generator().manual_seed(0)
    x, gate, up, down = (torch.randn(s, 24, generator=g) for s in (2, 40, 40, 40))
    got = gathered.gathered_mlp(x, gate, up, down, torch.arange(40, dtype=torch.int32), "silu")
    dense = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down
    # Same float32 products in another order.
    torch.testing.assert_close(got["y"], dense, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("hq", "hk"), [(8, 8), (8, 2), (8, 1)])
def test_kept_heads_bring_their_kv_heads(hq, hk):
    kept = torch.tensor([5, 0], dtype=torch.int32)
    groups = heads.qkv_groups(kept, hq, hk).tolist()
    kv = sorted({0, 5 * hk // hq})
    assert groups == [0, 5, *(hq + h for h in kv), *(hq + hk + h for h in kv)]


# The interpreter's two row blocks of 4096 scores, and rows shorter than one block.
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("n", "keep"), [(5000, 500), (300, 1), (300, 300), (77, 40)])
def test_top_k_of_random_scores(dtype, n, keep):
    scores = torch.randn(2, n, generator=torch.Generator().manual_seed(n)).to(dtype)
    index = torch.full((2, keep), -1, dtype=torch.int32)
    predictor_triton.top_k(scores, index)
    assert torch.equal(index, largest(scores.float(), keep))
    best = torch.topk(scores.float(), keep).values.sort().values
    assert torch.equal(scores.float().gather(1, index.long()).sort().values, best)


def test_top_k_of_ties_zeros_and_infinities():
    scores = torch.tensor([[0.0, -0.0, 1.0, float("-inf"), 1.0, -2.0, float("inf"), -0.0]], dtype=torch.float16)
    for keep in range(1, 9):
        index = torch.full((1, keep), -1, dtype=torch.int32)
        predictor_triton.top_k(scores, index)
        assert torch.equal(index, largest(scores.float(), keep))


def test_block_lists_of_a_mask_with_empty_rows():
    mask = torch.tensor([[[[1, 0, 0], [0, 0, 0], [1, 0, 1]]]], dtype=torch.bool)
    starts, listed = blocks.block_lists(mask)
    assert starts.tolist() == [0, 1, 1, 3]
    assert listed.tolist() == [0, 0, 2]


def test_naive_attention_is_torchs_with_the_same_mask():
    g = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, 40, h, 16, generator=g) for h in (4, 2, 2))
    mask = torch.rand(1, 4, 3, 3, generator=g).lt(0.5).tril() | torch.eye(3, dtype=torch.bool)
    starts, listed = blocks.block_lists(mask)
    got = blocks.block_sparse_attention(q, k, v, starts, listed, 16)["o"]
    full = mask.repeat_interleave(16, 2).repeat_interleave(16, 3)[:, :, :40, :40]
    want = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=full & torch.ones(40, 40, dtype=torch.bool).tril(),
        enable_gqa=True,
    )
    # Same float32 sums in another order.
    torch.testing.assert_close(got, want.transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pattern", ["a-shape", "window", "last row only", "no diagonal"])
def test_masks_of_the_methods(pattern):
    """StreamingLLM's A, a window, one listed row, and lists without the diagonal block."""
    rows = 4
    i, j = torch.arange(rows)[:, None], torch.arange(rows)[None, :]
    causal = j <= i
    mask = {
        "a-shape": causal & ((j == 0) | (i - j <= 0)),
        "window": causal & (i - j <= 1),
        "last row only": causal & (i == rows - 1),
        "no diagonal": j < i,
    }[pattern]
    kernel = KERNELS[NAMES.index("block_sparse_attention")]
    case = next(c for c in kernel.cases if c.name == "mha")
    inputs = kernel.inputs(case, 4, "cpu")
    inputs["q"], inputs["k"], inputs["v"] = (inputs[n][:, :57] for n in "qkv")
    inputs = clone({**inputs, "q": inputs["q"].contiguous()})
    inputs["k"], inputs["v"] = inputs["k"].contiguous(), inputs["v"].contiguous()
    inputs["starts"], inputs["blocks"] = blocks.block_lists(mask.expand(1, 2, rows, rows))
    want = kernel.naive(**inputs)["o"]
    got = run(kernel, inputs)["o"].float()
    torch.testing.assert_close(got, want, rtol=kernel.tolerance.relative, atol=kernel.tolerance.absolute)


def test_tiles_follow_the_tensor_core():
    with target.compiling_for(80):
        assert blocks_triton.config(128, 128)["KEYS"] == 32
    with target.compiling_for(90):
        assert blocks_triton.config(128, 128)["KEYS"] == 64


@pytest.mark.parametrize("shape", [(64, 64), (70, 131), (1, 1)])
@pytest.mark.parametrize("keep", [0.0, 0.37, 1.0])
def test_bitmap_round_trip(shape, keep):
    weight = bitmap.prune(torch.randn(*shape, generator=torch.Generator().manual_seed(5)), keep)
    made = bitmap.compress(weight)
    assert len(made["values"]) == round(keep * weight.numel())
    assert torch.equal(bitmap.decompress(made["bitmap"], made["values"], *shape), weight)


def test_bitmap_keeps_the_sign_bit_of_a_word():
    weight = torch.zeros(1, 64)
    weight[0, 31] = weight[0, 63] = 2.0
    made = bitmap.compress(weight)
    assert made["bitmap"][0, 0, 0].tolist() == [-(2**31), -(2**31)]
    assert torch.equal(bitmap.decompress(made["bitmap"], made["values"], 1, 64), weight)


def test_four_bits_err_by_half_a_step():
    weight = torch.randn(12, 64, generator=torch.Generator().manual_seed(6)).half()
    made = w4.compress(weight, 0.5)
    dense = w4.decompress(**made, k=64).view(12, 4, 16)
    kept = torch.zeros(12, 4, dtype=torch.bool)
    rows = torch.repeat_interleave(torch.arange(12), (made["starts"][1:] - made["starts"][:-1]).long())
    kept[rows, made["columns"].long()] = True
    assert kept.sum() == 24
    assert not dense[~kept].any()
    norms = weight.float().view(12, 4, 16).norm(dim=2)
    assert norms[kept].min() >= norms[~kept].max()
    # Half a step of rounding, and half a step that the rounded zero point may clip at either end.
    error = (dense - weight.float().view(12, 4, 16))[kept].abs().amax(1)
    assert (error <= 1.01 * made["scale"].float()).all()
    assert (error <= 0.55 * made["scale"].float()).float().mean() > 0.5


def test_group_w4_refuses_a_ragged_width():
    with pytest.raises(ValueError, match="multiple of 16"):
        w4.compress(torch.zeros(2, 40), 0.5)


def test_two_of_four():
    weight = torch.tensor([[1.0, -3.0, 2.0, 0.5, 2.0, 2.0, 2.0, 2.0]])
    assert nm24.prune(weight).tolist() == [[0.0, -3.0, 2.0, 0.0, 2.0, 2.0, 0.0, 0.0]]
    with pytest.raises(ValueError, match="multiple of 4"):
        nm24.prune(torch.zeros(1, 6))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_two_of_four_without_a_gpu_says_so():
    with pytest.raises(RuntimeError, match="no CUDA device"):
        nm24_library.compress(torch.zeros(32, 64).half())


@pytest.mark.gpu
def test_two_of_four_by_the_library():
    g = torch.Generator().manual_seed(7)
    x, weight = torch.randn(64, 256, generator=g).half(), torch.randn(128, 256, generator=g).half()
    there = {"x": x.cuda(), "weight": weight.cuda()}
    made = nm24_library.buffers(**there)
    nm24_library.nm24(**there, **made)
    # Outputs of about sqrt(128) rounded to fp16's 2^-11.
    torch.testing.assert_close(made["y"].float().cpu(), nm24.nm24(x, weight), rtol=2**-9, atol=2**-5)


@pytest.mark.parametrize(("programs", "steps", "splits"), [(8, 138, 32), (300, 50, 1), (1, 3, 2), (4, 0, 1)])
def test_splits_fill_the_device_and_no_more(programs, steps, splits):
    assert split_k.splits_for(programs, steps) == splits
