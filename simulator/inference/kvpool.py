"""The KV cache of one replica in blocks, and how many of them a sequence takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.base.errors import UnsupportedError
from simulator.base.units import format_bytes
from simulator.inference import memory
from simulator.inference.group import Group

MAX_BLOCKS = 1 << 40
"""Blocks where only another tier bounds them [-]."""


@dataclass(frozen=True)
class KvPool:
    """Blocks of one replica.

    Attributes
    ----------
    blocks : int
        All of them [-].
    block_tokens : int
        Tokens per block [-].
    block_bytes : float
        Bytes of one on one GPU [B].
    grows : bool
        A sequence takes blocks as it grows. False where a policy or a window bounds what is kept: then its peak is
        reserved when it is admitted.
    extra_blocks : int
        Blocks a sequence holds beside those of its tokens, whatever its length: a window kept in 16 bit [-].
    """

    blocks: int
    block_tokens: int
    block_bytes: float
    grows: bool = True
    extra_blocks: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that fit in whole blocks [-]."""
        return self.blocks * self.block_tokens


def kv_pool(group: Group, sequences: int, step_tokens: int) -> KvPool:
    """Blocks left when weights, runtime, and the activations of the widest step are placed.

    ``blocks = floor((capacity utilisation - weights - runtime - activations) / block bytes)``; a policy that
    places KV on another tier is also bound by that tier.

    Raises
    ------
    UnsupportedError
        Not one block fits; says by how much.
    """
    lowering, device = group.lowering, group.device
    activations = float(memory.activation_token_bytes(lowering) * step_tokens + sequences * lowering.model.vocab * 4.0)
    pool = (
        memory.budget_bytes(device, group.utilisation)
        - memory.weights_bytes(lowering, group.pp)
        - memory.runtime_bytes(group.gpus)
        - activations
    )
    b = group.block_tokens
    growth = _growth(group)
    if growth is None:
        block, extra = (float(sum(kv.dense_bytes * layers for kv, layers in lowering.kv_layouts)) * b, 0.0)
        block *= np.ceil(lowering.model.n_layers / group.pp) / lowering.model.n_layers
    else:
        block, extra = growth
    if pool < block:
        missing = format_bytes(max(block - pool, 0.0))
        raise UnsupportedError(
            f"{lowering.model.name} leaves no room for KV on {group.gpus} x {device.name}: short by {missing};"
            " raise --tp or --gpu-memory-utilization, or use a smaller --dtype"
        )
    off = float(np.max(memory.off_kv_bytes(lowering, np.float64(b), np.float64(0.0))))
    if block <= 0.0 and off <= 0.0:
        raise UnsupportedError(
            f"{lowering.policies.spelling} keeps its KV outside the model's own devices, which no pool describes"
        )
    blocks = int(pool // block) if block > 0.0 else MAX_BLOCKS
    if off > 0.0:
        home = memory.home_bytes(lowering, device) - memory.off_weights_bytes(lowering)
        blocks = min(blocks, int(max(home, 0.0) // off))
        if blocks < 1:
            raise UnsupportedError(
                f"the {lowering.home} memory of {device.name} holds none of the KV that is placed there"
            )
    extra_blocks = int(np.ceil(extra / block)) if extra > 0.0 else 0
    return KvPool(blocks, b, block, growth is not None, extra_blocks)


def reserved_blocks(group: Group, pool: KvPool, prompt: np.ndarray, output: np.ndarray) -> np.ndarray:
    """Blocks of every request at its longest, for a pool whose sequences do not grow [-].

    The peak over its life: policies that prune after the prompt hold most when it has been read.
    """
    end = _sequence_bytes(group, prompt + output, prompt)
    start = _sequence_bytes(group, prompt, prompt)
    return np.maximum(np.ceil(np.maximum(start, end) / pool.block_bytes), 1.0).astype(np.int64)


def _sequence_bytes(group: Group, tokens: np.ndarray, prompt: np.ndarray | float) -> np.ndarray:
    return memory.kv_bytes_per_sequence(
        group.lowering, tokens, prompt=prompt, pp=group.pp, block_tokens=group.block_tokens
    )


def _growth(group: Group) -> tuple[float, float] | None:
    """Bytes per block and bytes beside them where KV is ``extra + rate tokens`` from 1024 tokens on; else None [B].

    None too where it depends on how much of the context was the prompt, or stops growing.
    """
    tokens = group.block_tokens * 2.0 ** np.arange(0.0, 17.0)
    last = max(float(group.model.max_context), 4096.0)
    tokens = tokens[(tokens >= 1024.0) & (tokens <= last)]
    early = _sequence_bytes(group, tokens, np.zeros_like(tokens))
    late = _sequence_bytes(group, tokens, tokens)
    rate = float((early[-1] - early[0]) / (tokens[-1] - tokens[0]))
    extra = float(early[0] - rate * tokens[0])
    line = extra + rate * tokens
    straight = np.allclose(early, line, rtol=1e-9) and np.allclose(late, line, rtol=1e-9)
    if not straight or extra < -1e-9 * early[0]:
        return None
    gpu_holds_none = rate == 0.0 and extra == 0.0
    return (rate * group.block_tokens, max(extra, 0.0)) if rate > 0.0 or gpu_holds_none else None
