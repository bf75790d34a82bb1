"""What a sparse kernel must beat: the best dense kernel of the libraries present, and the simulator's view of it.

Products go to cuBLAS through torch, attention to torch's scaled_dot_product_attention in two layouts and to
flash-attn where it is installed. The fastest is the baseline; rows name it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from simulator.dtypes import FORMATS, DType
from simulator.ops import Attention, Linear, Op
from sparse_kernels.registry import Case, Kernel

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
    rows = float(s.get("batch", s.get("m", 1)))

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
            role="attn", phase="prefill" if prefill else "decode", batch=rows,
            q_len=tokens if prefill else 1.0, kv_len=tokens, n_heads=hq, n_kv_heads=hk, head_dim=d,
            v_head_dim=d, math=DType(case.dtype), kv_element_bytes=2.0,
        ),
    )  # fmt: skip


def candidates(what: str, case: Case) -> Mapping[str, Maker]:
    """Dense calls by name, each with its own operands on the GPU."""
    import torch
    from torch.nn import functional as F

    s = case.sizes
    dtype = torch.bfloat16 if case.dtype == "bf16" else torch.float16
    rows = s.get("batch", s.get("m", 1))

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda", dtype=dtype)

    def size(*tensors: torch.Tensor) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    def product() -> tuple[Run, int]:
        n, k = product_sizes(case)
        x, w = draw(rows, k), draw(n, k)
        return lambda: F.linear(x, w), size(x, w)

    def mlp() -> tuple[Run, int]:
        gated, hidden, neurons = s.get("gated", 1), s["hidden"], s["neurons"]
        x = draw(rows, hidden)
        up, down = draw((2 if gated else 1) * neurons, hidden), draw(hidden, neurons)

        def run() -> object:
            h = F.linear(x, up)
            if gated:
                gate, value = h.chunk(2, dim=-1)
                h = F.silu(gate) * value
            else:
                h = F.relu(h)
            return F.linear(h, down)

        return run, size(x, up, down)

    def projections() -> tuple[Run, int]:
        x, c = draw(rows, s["hidden"]), draw(rows, s["hq"] * s["d"])
        qkv = draw((s["hq"] + 2 * s["hk"]) * s["d"], s["hidden"])
        out = draw(s["hidden"], s["hq"] * s["d"])
        return lambda: (F.linear(x, qkv), F.linear(c, out)), size(x, c, qkv, out)

    if what == "product":
        return {"cuBLAS (torch linear)": product}
    if what == "mlp":
        return {"cuBLAS MLP (torch linear)": mlp}
    if what == "projections":
        return {"cuBLAS projections (torch linear)": projections}
    hq, hk, d, tokens = s["hq"], s["hk"], s["d"], s["tokens"]
    q_len = tokens if what == "prefill" else 1

    def sdpa() -> tuple[Run, int]:
        q, k, v = draw(rows, hq, q_len, d), draw(rows, hk, tokens, d), draw(rows, hk, tokens, d)
        causal, gqa = what == "prefill", hq != hk
        return (
            lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=gqa),
            size(q, k, v),
        )

    def folded() -> tuple[Run, int]:
        # One query per sequence: the heads of a group are rows of one product, with no mask to keep them apart.
        q, k, v = draw(rows, hk, hq // hk, d), draw(rows, hk, tokens, d), draw(rows, hk, tokens, d)
        return lambda: F.scaled_dot_product_attention(q, k, v), size(q, k, v)

    def flash() -> tuple[Run, int]:
        from flash_attn import flash_attn_func, flash_attn_with_kvcache

        q, k, v = draw(rows, q_len, hq, d), draw(rows, tokens, hk, d), draw(rows, tokens, hk, d)
        if what == "prefill":
            return lambda: flash_attn_func(q, k, v, causal=True), size(q, k, v)
        return lambda: flash_attn_with_kvcache(q, k, v), size(q, k, v)

    found: dict[str, Maker] = {"torch SDPA": sdpa}
    if what == "decode" and hq != hk:
        found["torch SDPA, groups as rows"] = folded
    from importlib.util import find_spec

    if find_spec("flash_attn") is not None:
        found["flash-attn"] = flash
    return found
