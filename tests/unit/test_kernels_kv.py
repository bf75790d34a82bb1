"""Dense and KV kernels against their naive twins, and the twins' own truths."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch not installed")
triton = pytest.importorskip("triton", reason="triton not installed")

import triton.language as tl  # noqa: E402

from simulator.ops.traffic import Operand  # noqa: E402
from sparse_kernels import bitmap, interpreter  # noqa: E402
from sparse_kernels.compare import predicted, record  # noqa: E402
from sparse_kernels.kivi_decode.naive import dequantised, quantised  # noqa: E402
from sparse_kernels.launch import captured, launch  # noqa: E402
from sparse_kernels.plain import rotated  # noqa: E402
from sparse_kernels.popcount import popcount  # noqa: E402
from sparse_kernels.registry import case  # noqa: E402
from sparse_kernels.select import top_k  # noqa: E402
from sparse_kernels.streaming_llm.naive import places  # noqa: E402
from sparse_kernels.tensors import clone, poison  # noqa: E402

pytestmark = pytest.mark.torch

NAMES = (
    "skinny_gemm",
    "flash_decode",
    "rmsnorm_residual",
    "quest",
    "double_sparsity",
    "kivi_decode",
    "bitmap_decode",
    "bitmap_pack",
    "shadowkv_rebuild",
    "streaming_llm",
)
KERNELS = {name: importlib.import_module(f"sparse_kernels.{name}").KERNEL for name in NAMES}
CASES = [(k, c) for k in KERNELS.values() for c in k.cases_for("test")]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def run(kernel, inputs):
    """All tensors afterwards, outputs and workspace poisoned before."""
    work = clone(inputs)
    buffers = kernel.buffers(**work)
    poison(buffers)
    kernel.triton(**work, **buffers)
    return {**work, **buffers}


def differences(kernel, inputs):
    """Worst error of each output over its tolerance, at most 1 where they agree."""
    got = run(kernel, inputs)
    worst = {}
    for name, want in kernel.naive(**inputs).items():
        assert got[name].shape == want.shape
        assert got[name].dtype == want.dtype
        # NaN is what the twin says is never written.
        assert torch.equal(got[name].isnan(), want.isnan())
        a, b = got[name].double().nan_to_num(), want.double().nan_to_num()
        limit = kernel.tolerance.absolute + kernel.tolerance.relative * b.abs()
        excess = torch.where(a == b, 0.0, (a - b).abs() / limit)
        worst[name] = float(excess.max()) if excess.numel() else 0.0
    return worst


@pytest.mark.parametrize(("kernel", "case"), CASES, ids=[f"{k.name}-{c.name}" for k, c in CASES])
def test_kernel_equals_its_naive_twin(kernel, case):
    for name, worst in differences(kernel, kernel.inputs(case, 1, "cpu")).items():
        assert worst <= 1.0, f"{name}: {worst:.2f} times the tolerance ({kernel.tolerance.reason})"


@pytest.mark.parametrize("name", NAMES)
def test_cases_cover_what_can_go_wrong(name):
    kernel = KERNELS[name]
    tested = list(kernel.cases_for("test"))
    assert {"bf16", "fp16"} <= {c.dtype for c in tested}
    assert any(c.uses & {"hot"} for c in kernel.cases)
    if "hq" in tested[0].sizes:
        groups = {c["hq"] // c["hk"] for c in tested}
        assert 1 in groups
        assert {4, 8} & groups


@pytest.mark.parametrize(
    ("name", "case_name"),
    [
        ("flash_decode", "gqa4 odd"),
        ("kivi_decode", "no window"),
        ("bitmap_decode", "gqa4 fp16"),
        ("skinny_gemm", "5 rows odd"),
    ],
)
def test_split_sums_repeat_to_the_bit(name, case_name):
    kernel = KERNELS[name]
    inputs = kernel.inputs(next(c for c in kernel.cases if c.name == case_name), 2, "cpu")
    with captured() as launches:
        kernel.triton(**clone(inputs), **kernel.buffers(**inputs))
    assert len(launches) > 1
    first, second = run(kernel, inputs), run(kernel, inputs)
    assert torch.equal(first["out"], second["out"])


def test_addresses_beyond_32_bits(tmp_path):
    """Two KV heads 2^31 elements apart, in a sparse file of which a few pages exist."""
    kernel, heads, d, tokens = KERNELS["flash_decode"], 2, 64, 70
    capacity = 2**31 // d + 1
    shape = (1, heads, capacity, d)
    file = np.memmap(tmp_path / "cache", np.float16, "w+", shape=shape)
    (tmp_path / "cache").unlink()
    g = torch.Generator().manual_seed(7)
    small = torch.randn(1, heads, tokens, d, generator=g).half()
    file[:, :, :tokens] = small.numpy()
    cache = torch.from_numpy(file)
    new = torch.randn(1, heads, d, generator=g).half()
    q = torch.randn(1, heads, d, generator=g).half()
    inputs = {"q": q, "k_cache": cache, "v_cache": cache, "k_new": new, "v_new": new, "tokens": tokens}
    buffers = kernel.buffers(**inputs)
    poison(buffers)
    kernel.triton(**inputs, **buffers)
    want = kernel.naive(**{**inputs, "k_cache": small, "v_cache": small})
    tolerance = {"rtol": kernel.tolerance.relative, "atol": kernel.tolerance.absolute}
    torch.testing.assert_close(buffers["out"], want["out"], **tolerance)
    assert torch.equal(cache[:, :, :tokens], want["k_cache"])


def test_a_wrong_page_is_seen():
    """The comparison can fail: attention to another page than the picked one."""
    kernel = KERNELS["quest"]
    inputs = kernel.inputs(kernel.cases[0], 1, "cpu")
    moved = clone(inputs)
    moved["bounds"] = inputs["bounds"].flip(2)
    right, wrong = kernel.naive(**inputs)["out"], run(kernel, moved)["out"]
    limit = kernel.tolerance.absolute + kernel.tolerance.relative * right.abs()
    assert ((right - wrong).abs() > limit).any()


@pytest.mark.parametrize("name", ["quest", "double_sparsity"])
def test_heads_of_a_group_read_at_most_the_union_the_simulator_expects(name):
    """``min(g budget, S)`` is a bound; the newest page or token is shared, so unrelated heads stay below it."""
    kernel = KERNELS[name]
    sizes = {"batch": 1, "tokens": 512, "budget": 32, "hq": 4, "hk": 1, "d": 64}
    shape = case("gqa4", "test", **sizes, **({"page": 16} if name == "quest" else {"channels": 16}))
    inputs = kernel.inputs(shape, 3, "cpu")
    got = record(kernel, inputs)
    read = sum(t.compulsory_bytes for n, t in got.reads.items() if n in ("k_cache", "v_cache"))
    row_bytes = 2 * 64 * 2
    assert 32 * row_bytes < read < 4 * 32 * row_bytes
    useful, _ = predicted(kernel.ops(shape, inputs), Operand.KV, "read")
    recorded = sum(t.compulsory_bytes for n, t in got.reads.items() if kernel.operands[n].read == Operand.KV)
    assert recorded < useful


@pytest.mark.parametrize("name", ["quest", "double_sparsity"])
def test_scores_are_the_same_in_any_order_of_their_sum(name):
    """At full size a sum in another order would pick other pages or tokens of nearly equal score."""
    kernel = KERNELS[name]
    inputs = kernel.inputs(kernel.cases[0], 4, "cpu")
    keys = inputs["bounds"][0, 0, :, 1] if name == "quest" else inputs["k_cache"][0, 0]
    product = keys.float() * inputs["q"][0, 0].float()
    wide = product.double().sum(1)
    for order in (product, product.flip(1), product[:, torch.randperm(product.shape[1])]):
        total = torch.zeros(len(order))
        for column in order.T:
            total += column
        assert torch.equal(total.double(), wide)


@pytest.mark.parametrize("name", ["quest", "double_sparsity"])
def test_of_equal_scores_the_first_are_read_by_kernel_and_twin(name):
    kernel = KERNELS[name]
    inputs = kernel.inputs(kernel.cases[0], 4, "cpu")
    inputs["bounds" if name == "quest" else "labels"].fill_(1.0)
    got, want = run(kernel, inputs), kernel.naive(**inputs)
    lists, last = ("pages", 31) if name == "quest" else ("picked", 255)
    assert torch.equal(got[lists], want[lists])
    entries = want[lists].shape[2]
    assert want[lists][0, 0].tolist() == [*range(entries - 1), last]


@pytest.mark.parametrize("n", [1, 5, 300, 5000])
def test_top_k_of_random_scores(n):
    scores = torch.randn(2, n, generator=torch.Generator().manual_seed(n))
    for k in {1, (n + 1) // 2, n}:
        picked = torch.full((2, k), -1, dtype=torch.int32)
        top_k(scores, picked)
        assert torch.equal(picked, scores.topk(k).indices.sort().values.int())


def test_top_k_of_ties_zeros_and_infinities():
    scores = torch.tensor([[0.0, 1.0, -0.0, float("-inf"), 1.0, -2.0, float("inf"), -1e-40, 1.0]])
    # -0 orders below +0; of the three ones the first are taken.
    order = [6, 1, 4, 8, 0, 2, 7, 5, 3]
    for k in range(1, 10):
        picked = torch.full((1, k), -1, dtype=torch.int32)
        top_k(scores, picked)
        assert picked[0].tolist() == sorted(order[:k])


@pytest.mark.parametrize("k", [0, 4])
def test_top_k_refuses_what_no_list_can_hold(k):
    with pytest.raises(ValueError, match=f"top {k} of 3"):
        top_k(torch.zeros(1, 3), torch.zeros(1, k, dtype=torch.int32))


@pytest.mark.parametrize("axis", ["tokens", "channels"])
@pytest.mark.parametrize("kept", [1, 20, 64])
def test_bitmap_round_trip(axis, kept):
    x = torch.randn(2, 3, 128, 64, generator=torch.Generator().manual_seed(kept))
    dense = bitmap.unpack(bitmap.pack(x, kept, axis), 64, axis)
    mask = bitmap.largest(x, kept)
    assert torch.equal(mask.sum(-1), torch.full((2, 3, 128), kept))
    assert torch.equal(dense, torch.where(mask, x, torch.zeros_like(x)))


@pytest.mark.parametrize("axis", ["tokens", "channels"])
def test_spread_tiles_pad_by_three_and_a_half_on_average(axis):
    mask = bitmap.spread(128, 128, 16, axis, "cpu")
    assert torch.equal(mask.sum(1), torch.full((128,), 39))
    count = bitmap.tiles(mask[None, None], axis).sum(-1)
    assert float((-count % 8).double().mean()) == 3.5


def test_four_bits_err_by_half_a_step():
    x = torch.randn(1, 2, 64, 64, generator=torch.Generator().manual_seed(4))
    for along in ("tokens", "channels"):
        codes, scale, zero = quantised(x, 4, 32, along)
        error = (dequantised(codes, scale, zero, 4) - x).abs()
        # Scale and zero are fp16: 2^-11 of up to 15 steps, and of the zero, besides half a step.
        assert error.max() <= scale.max() * (0.5 + 15 * 2**-11) + zero.abs().max() * 2**-11


def test_places_of_a_full_ring():
    assert places(8, 5, 2, torch.device("cpu")).tolist() == [0, 1, 4, 5, 6, 7, 2, 3]
    assert places(5, 4, 2, torch.device("cpu")).tolist() == [0, 1, 2, 3, 4]


def test_rotation_keeps_lengths_and_depends_on_distance_only():
    g = torch.Generator().manual_seed(5)
    q, k = torch.randn(1, 64, generator=g), torch.randn(1, 64, generator=g)

    def product(i: int, j: int) -> float:
        a, b = (rotated(x, torch.tensor([p]), 1e4) for x, p in ((q, i), (k, j)))
        return float((a * b).sum())

    # Sums of 64 float32 products of order 1.
    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-4)
    assert product(0, 0) == pytest.approx(float((q * k).sum()), abs=1e-4)


@triton.jit
def count_kernel(x, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    bits = tl.load(x + i, mask=i < n, other=0).to(tl.uint32, bitcast=True)
    tl.store(out + i, popcount(bits), mask=i < n)


def test_popcount():
    words = np.random.default_rng(0).integers(0, 2**32, 60, dtype=np.uint64)
    words[:4] = 0, 1, 2**31, 2**32 - 1
    x = torch.from_numpy(words.astype(np.uint32).view(np.int32).copy())
    out = torch.full((60,), -1, dtype=torch.int32)
    launch(count_kernel, (1,), x=x, out=out, n=60, BLOCK=64)
    assert out.tolist() == [int(w).bit_count() for w in words]


@triton.jit
def product_kernel(a, b, wide, narrow, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    at = i[:, None] * BLOCK + i[None, :]
    live = at >= 0
    c = tl.dot(tl.load(a + at, mask=live, other=0.0), tl.load(b + at, mask=live, other=0.0))
    tl.store(wide + at, c, mask=live)
    tl.store(narrow + at, c.to(narrow.dtype.element_ty), mask=live)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_interpreter_multiplies_and_rounds_as_a_gpu_does(dtype):
    assert interpreter.is_on()
    g = torch.Generator().manual_seed(6)
    a, b = (torch.randn(16, 16, generator=g).to(dtype) for _ in range(2))
    wide, narrow = torch.empty(16, 16), torch.empty(16, 16, dtype=dtype)
    launch(product_kernel, (1,), a=a, b=b, wide=wide, narrow=narrow, BLOCK=16)
    # Float32 sums of 16 exact products, in another order.
    torch.testing.assert_close(wide, a.float() @ b.float(), rtol=1e-6, atol=1e-5)
    assert torch.equal(narrow, wide.to(dtype))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("flash_decode", {"tokens": 999}, "999 tokens in a cache of 257"),
        ("flash_decode", {"q": torch.zeros(2, 6, 64)}, "6 query heads cannot share 4 KV heads"),
        ("skinny_gemm", {"x": torch.zeros(65, 512)}, "65 rows"),
        ("kivi_decode", {"group": 128}, "groups of 128"),
        ("bitmap_pack", {"kept": 0}, "0 kept"),
    ],
)
def test_shapes_a_kernel_cannot_take_are_refused(name, change, message):
    kernel = KERNELS[name]
    inputs = kernel.inputs(kernel.cases[0], 0, "cpu")
    buffers = kernel.buffers(**inputs)
    with pytest.raises(ValueError, match=message):
        kernel.triton(**{**inputs, **change}, **buffers)
