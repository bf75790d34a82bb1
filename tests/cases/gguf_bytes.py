"""A GGUF file byte by byte, as its specification has it; nothing of ours or of the gguf package is asked."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

Table = Sequence[tuple[str, tuple[int, ...], int]]
"""Names, shapes innermost first, and types by number."""


def text(value: str) -> bytes:
    """Text with its length in front."""
    raw = value.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw


def value(of: Any) -> bytes:
    """A fact with its type in front: flags, whole numbers of 32 bits, floats, texts, lists of one of them."""
    if isinstance(of, bytes):
        return of
    if isinstance(of, bool):
        return struct.pack("<I?", 7, of)
    if isinstance(of, int):
        return struct.pack("<II", 4, of)
    if isinstance(of, float):
        return struct.pack("<If", 6, of)
    if isinstance(of, str):
        return struct.pack("<I", 8) + text(of)
    parts = [value(item) for item in of]
    kind = parts[0][:4] if parts else struct.pack("<I", 4)
    return struct.pack("<I", 9) + kind + struct.pack("<Q", len(parts)) + b"".join(p[4:] for p in parts)


def gguf(facts: Mapping[str, Any], tensors: Table, *, version: int = 3) -> bytes:
    """The header; the data would follow."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(facts))
    for key, of in facts.items():
        out += text(key) + value(of)
    for name, shape, kind in tensors:
        out += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, 0)
    return out


HIDDEN, WIDE, HEADS, KV, DIM, VOCAB, LAYERS = 512, 1024, 8, 2, 64, 1000, 2
F32, F16, Q4_0, Q8_0, Q4_K, Q6_K, MXFP4 = 0, 1, 2, 8, 12, 14, 39
FACTS: Mapping[str, Any] = {
    "general.architecture": "llama",
    "general.name": "tiny",
    "llama.block_count": LAYERS,
    "llama.context_length": 2048,
    "llama.embedding_length": HIDDEN,
    "llama.feed_forward_length": WIDE,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.tokens": [f"t{i}" for i in range(VOCAB)],
}


def layer(index: int, *, v: int = Q6_K) -> Table:
    """Tensors of one layer in Q4_K, V of another type."""
    shapes = {
        "attn_norm": ((HIDDEN,), F32),
        "attn_q": ((HIDDEN, HEADS * DIM), Q4_K),
        "attn_k": ((HIDDEN, KV * DIM), Q4_K),
        "attn_v": ((HIDDEN, KV * DIM), v),
        "attn_output": ((HEADS * DIM, HIDDEN), Q4_K),
        "ffn_norm": ((HIDDEN,), F32),
        "ffn_gate": ((HIDDEN, WIDE), Q4_K),
        "ffn_up": ((HIDDEN, WIDE), Q4_K),
        "ffn_down": ((WIDE, HIDDEN), Q8_0),
    }
    return [(f"blk.{index}.{name}.weight", *of) for name, of in shapes.items()]


ENDS: Table = [
    ("token_embd.weight", (HIDDEN, VOCAB), Q4_K),
    ("output_norm.weight", (HIDDEN,), F32),
    ("output.weight", (HIDDEN, VOCAB), Q6_K),
    ("rope_freqs.weight", (32,), F32),
]
TENSORS: Table = [*ENDS, *(t for i in range(LAYERS) for t in layer(i))]
