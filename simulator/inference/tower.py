"""A vision tower as the ops one GPU runs for some images."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from simulator.base.arrays import Array
from simulator.base.dtypes import DType, Format
from simulator.model.tower import TowerSpec
from simulator.ops.ops import ACT_BYTES, Attention, Collective, Elementwise, Linear, Op


def ops(of: TowerSpec, tp: int, fmt: Format, images: Array) -> Iterator[Op]:
    """Patches to the tower's width, its layers, and the projector, split over `tp` GPUs as the decoder is.

    Every patch of an image (or of its window of w) attends to all others: ``w^2`` pairs, which a causal chunk of w
    queries behind ``(w - 1) / 2`` tokens has, too.

    Parameters
    ----------
    images : Array
        Images of the whole batch [-].
    """
    rows, depth, wide = images * of.patches, float(of.n_layers), of.ffn.intermediate / tp
    linear = partial(Linear, fmt=fmt)
    yield linear(role="tower.patches", m=rows, n=of.hidden, k=of.patch_inputs)
    moved = rows * of.hidden * ACT_BYTES
    yield Elementwise(
        role="tower.norm", kind="layer_norm", read_bytes=2.0 * moved, write_bytes=2.0 * moved, count=2.0 * depth
    )
    yield linear(role="tower.qkv", m=rows, n=3.0 * of.hidden / tp, k=of.hidden, count=depth)
    math = fmt.math if fmt.math in (DType.BF16, DType.FP16, DType.FP32) else DType.BF16
    whole = float(of.n_layers - of.n_windowed)
    for seen, layers in ((of.patches, whole), (min(of.window, of.patches), float(of.n_windowed))):
        if layers:
            yield Attention(
                role="tower.attention",
                phase="prefill",
                batch=rows / seen,
                q_len=float(seen),
                kv_len=1.5 * seen - 0.5,
                n_heads=of.n_heads / tp,
                n_kv_heads=of.n_heads / tp,
                head_dim=of.hidden / of.n_heads,
                v_head_dim=of.hidden / of.n_heads,
                math=math,
                kv_element_bytes=2.0,
                stores=False,
                count=layers,
            )
    yield linear(role="tower.o", m=rows, n=of.hidden, k=of.hidden / tp, count=depth)
    yield linear(role="tower.up", m=rows, n=of.ffn.n_up * wide, k=of.hidden, count=depth)
    act = rows * wide * ACT_BYTES
    yield Elementwise(role="tower.act", kind="activation", read_bytes=act * of.ffn.n_up, write_bytes=act, count=depth)
    yield linear(role="tower.down", m=rows, n=of.hidden, k=wide, count=depth)
    if tp > 1:
        yield Collective(role="tower.all_reduce", op="all_reduce", n_ranks=tp, message_bytes=moved, count=2.0 * depth)
    for k, n in of.projector:
        yield linear(role="tower.projector", m=images * of.tokens, n=n / tp, k=k)
