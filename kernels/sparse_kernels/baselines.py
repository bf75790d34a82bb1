"""What a sparse kernel must beat: the best dense kernel of the libraries present, and the simulator's view of it.

Products go to cuBLAS through torch, attention to torch's scaled_dot_product_attention (its own choice, cuDNN, and
for decode a second layout) and to flash-attn where it is installed; our own dense kernels run beside them. The
fastest is the baseline; rows name it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from simulator.base.dtypes import FORMATS, DType
from simulator.ops.ops import Attention, Linear, Op
from sparse_kernels.registry import Case, Kernel

if TYPE_CHECKING:
    import torch

MOST_ROWS = 64
"""Rows our dense product takes [-]."""
Run = Callable[[], object]
Maker = Callable[[], tuple[Run, int]]
"""Allocates one set of operands; returns the call and the bytes it occupies."""


def kind(kernel: Kernel, case: Case) -> str | None:
    """ "mlp", "projections", "product", "decode" or "prefill": the dense work in place of `kernel`; None without."""
    sizes = case.sizes
    if kernel.family == "prefill":
        return "prefill"
    if kernel.family == "kv":
        return "decode" if kernel.dense else None
    if kernel.name == "flash_decode":
        return "decode"
    if kernel.name == "skinny_gemm":
        return "product"
    if kernel.family == "dense" or kernel.dense:
        if "rank" in sizes:
            return None
        if "neurons" in sizes:
            return "mlp"
        if "hq" in sizes:
            return "projections"
        return "product" if {"n", "k"} <= set(sizes) else None
    return None


def product_sizes(case: Case) -> tuple[int, int]:
    """Outputs and inner length of a product: n and k, or neurons and hidden."""
    s = case.sizes
    return (s["n"], s["k"]) if "n" in s else (s["neurons"], s["hidden"])


def dense_ops(what: str, case: Case) -> tuple[Op, ...]:
    """Ops of the dense work, from the case's sizes alone."""
    s, fmt = case.sizes, FORMATS[case.dtype]
    rows = float(_rows(case))

    def product(role: str, n: float, k: float) -> Linear:
        return Linear(role=role, m=rows, n=n, k=k, fmt=fmt)

    if what == "product":
        return (product("linear", *product_sizes(case)),)
    if what == "mlp":
        up = (2 if s.get("gated", 1) else 1) * s["neurons"]
        return product("mlp.up", up, s["hidden"]), product("mlp.down", s["hidden"], s["neurons"])
    hq, hk, d = s["hq"], s["hk"], s["d"]
    if what == "projections":
        wide = product("attn.qkv", (hq + 2 * hk) * d, s["hidden"])
        return wide, product("attn.o", s["hidden"], hq * d)
    tokens = float(s["tokens"])
    prefill = what == "prefill"
    return (
        Attention(
            role="attn",
            phase="prefill" if prefill else "decode",
            batch=rows,
            q_len=tokens if prefill else 1.0,
            kv_len=tokens,
            n_heads=hq,
            n_kv_heads=hk,
            head_dim=d,
            v_head_dim=d,
            math=DType(case.dtype),
            kv_element_bytes=2.0,
        ),
    )


def candidates(what: str, case: Case, where: str = "cuda") -> Mapping[str, Maker]:
    """Dense calls by name, each with its own operands on device `where`."""
    if what in ("decode", "prefill"):
        return _attention(what, case, where)
    linears: dict[str, Callable[[Any, Any], Any]] = {"cuBLAS (torch linear)": _library_linear}
    if _rows(case) <= MOST_ROWS:
        linears["our skinny_gemm"] = _our_linear
    return {
        name: partial({"product": _product, "mlp": _mlp}.get(what, _projections), case, where, linear)
        for name, linear in linears.items()
    }


def _draw(case: Case, where: str, *shape: int) -> torch.Tensor:
    import torch

    dtype = torch.bfloat16 if case.dtype == "bf16" else torch.float16
    return torch.randn(*shape, device=where, dtype=dtype)


def _size(*tensors: torch.Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _library_linear(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional as F

    return F.linear(x, w)


def _our_linear(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    from sparse_kernels.skinny_gemm.triton import buffers, skinny_gemm

    made = buffers(x=x, weight=w)
    skinny_gemm(x, w, **made)
    return made["out"]


def _product(case: Case, where: str, linear: Callable[..., Any]) -> tuple[Run, int]:
    n, k = product_sizes(case)
    x, w = _draw(case, where, _rows(case), k), _draw(case, where, n, k)
    return lambda: linear(x, w), _size(x, w)


def _mlp(case: Case, where: str, linear: Callable[..., Any]) -> tuple[Run, int]:
    from torch.nn import functional as F

    s = case.sizes
    gated, hidden, neurons = s.get("gated", 1), s["hidden"], s["neurons"]
    x = _draw(case, where, _rows(case), hidden)
    up = _draw(case, where, (2 if gated else 1) * neurons, hidden)
    down = _draw(case, where, hidden, neurons)

    def run() -> object:
        h = linear(x, up)
        if gated:
            gate, value = h.chunk(2, dim=-1)
            h = F.silu(gate) * value
        else:
            h = F.relu(h)
        return linear(h, down)

    return run, _size(x, up, down)


def _projections(case: Case, where: str, linear: Callable[..., Any]) -> tuple[Run, int]:
    s = case.sizes
    x, c = (_draw(case, where, _rows(case), n) for n in (s["hidden"], s["hq"] * s["d"]))
    qkv = _draw(case, where, (s["hq"] + 2 * s["hk"]) * s["d"], s["hidden"])
    out = _draw(case, where, s["hidden"], s["hq"] * s["d"])
    return lambda: (linear(x, qkv), linear(c, out)), _size(x, c, qkv, out)


def _rows(case: Case) -> int:
    return case.sizes.get("batch", case.sizes.get("m", 1))


def _attention(what: str, case: Case, where: str) -> Mapping[str, Maker]:
    from torch.nn import functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    s, rows = case.sizes, _rows(case)
    hq, hk, d, tokens = s["hq"], s["hk"], s["d"], s["tokens"]
    q_len = tokens if what == "prefill" else 1
    draw = partial(_draw, case, where)

    def sdpa(*backends: SDPBackend) -> tuple[Run, int]:
        q, k, v = draw(rows, hq, q_len, d), draw(rows, hk, tokens, d), draw(rows, hk, tokens, d)
        causal, gqa = what == "prefill", hq != hk

        def run() -> object:
            with sdpa_kernel(list(backends)) if backends else nullcontext():
                return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=gqa)

        return run, _size(q, k, v)

    def folded() -> tuple[Run, int]:
        # One query per sequence: the heads of a group are rows of one product, with no mask to keep them apart.
        q, k, v = draw(rows, hk, hq // hk, d), draw(rows, hk, tokens, d), draw(rows, hk, tokens, d)
        return lambda: F.scaled_dot_product_attention(q, k, v), _size(q, k, v)

    def flash() -> tuple[Run, int]:
        library = import_module("flash_attn")
        q, k, v = draw(rows, q_len, hq, d), draw(rows, tokens, hk, d), draw(rows, tokens, hk, d)
        if what == "prefill":
            return lambda: library.flash_attn_func(q, k, v, causal=True), _size(q, k, v)
        return lambda: library.flash_attn_with_kvcache(q, k, v), _size(q, k, v)

    def ours() -> tuple[Run, int]:
        from sparse_kernels import decode

        q, k, v = draw(rows, hq, d), draw(rows, hk, tokens, d), draw(rows, hk, tokens, d)
        new, made = draw(rows, hk, d), decode.buffers(q, hk, tokens - 1)
        return lambda: decode.attend(q, k, v, new, new, made["out"], made["parts"], made["sums"], tokens=tokens), _size(
            q, k, v
        )

    found: dict[str, Maker] = {"torch SDPA": sdpa, "torch SDPA, cuDNN": partial(sdpa, SDPBackend.CUDNN_ATTENTION)}
    if what == "decode":
        found["our flash_decode"] = ours
        if hq != hk:
            found["torch SDPA, groups as rows"] = folded
    if find_spec("flash_attn") is not None:
        found["flash-attn"] = flash
    return found
