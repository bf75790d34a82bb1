"""The KV cache of one replica in blocks, and how many of them a sequence takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from simulator.base.errors import UnsupportedError
from simulator.base.interval import Interval
from simulator.base.units import format_bytes
from simulator.inference import memory
from simulator.inference.group import Group

MAX_BLOCKS = 1 << 40
"""Blocks where only another tier bounds them [-]."""


class DoesNotStartError(UnsupportedError):
    """An engine finds no room for one block of KV.

    Attributes
    ----------
    most_tokens : int
        Tokens that fit at the upper end of the 90 % interval: above 0, it may start [-].
    """

    def __init__(self, message: str, most_tokens: int):
        super().__init__(message)
        self.most_tokens = most_tokens


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
    between : tuple of int, optional
        Blocks at both ends of the 90 % interval [-].
    """

    blocks: int
    block_tokens: int
    block_bytes: float
    grows: bool = True
    extra_blocks: int = 0
    between: tuple[int, int] | None = None

    @property
    def interval(self) -> Interval[int]:
        """90 % interval of the tokens that fit: what else the engine keeps is not known exactly [-]."""
        low, high = self.between or (self.blocks, self.blocks)
        return Interval(self.tokens, low * self.block_tokens, high * self.block_tokens)

    @property
    def tokens(self) -> int:
        """Tokens that fit in whole blocks [-]."""
        return self.blocks * self.block_tokens


def kv_pool(group: Group, sequences: int, step_tokens: int) -> KvPool:
    """Blocks of what the group's engine leaves for KV, started for `sequences` and steps of `step_tokens`.

    ``blocks = floor(room / block bytes)`` with the room of `memory.pool_bytes`; a policy that places KV on another tier
    is also bound by that tier.

    Raises
    ------
    DoesNotStartError
        Not one block fits; says by how much.
    UnsupportedError
        No pool describes what the policies do.
    """
    lowering, device = group.lowering, group.device
    room = _room(group, sequences, step_tokens)
    b = group.block_tokens
    growth = _growth(group)
    if growth is None:
        block, extra = (float(sum(kv.dense_bytes * layers for kv, layers in lowering.kv_layouts)) * b, 0.0)
        block *= np.ceil(lowering.model.n_layers / group.pp) / lowering.model.n_layers
    else:
        block, extra = growth
    if room.mid < block:
        missing = format_bytes(max(block - room.mid, 0.0))
        raise DoesNotStartError(
            f"{group.engine.title} does not start: {lowering.model.name} leaves no room for KV on {group.gpus} x"
            f" {device.name}, short by {missing}; raise --tp or {flag_of(group)}, lower --max-num-seqs or"
            " --max-num-batched-tokens, or use a smaller --dtype",
            int(max(room.hi, 0.0) // block) * b,
        )
    off = float(np.max(memory.off_kv_bytes(lowering, np.float64(b), np.float64(0.0))))
    if block <= 0.0 and off <= 0.0:
        raise UnsupportedError(
            f"{lowering.policies.spelling} keeps its KV outside the model's own devices, which no pool describes"
        )
    blocks = Interval(*(int(max(end, 0.0) // block) if block > 0.0 else MAX_BLOCKS for end in room))
    if off > 0.0:
        home = memory.home_bytes(lowering, device) - memory.off_weights_bytes(lowering)
        blocks = blocks.each(lambda end: min(end, int(max(home, 0.0) // off)))
        if blocks.mid < 1:
            raise UnsupportedError(
                f"the {lowering.home} memory of {device.name} holds none of the KV that is placed there"
            )
    extra_blocks = int(np.ceil(extra / block)) if extra > 0.0 else 0
    # Ranks of attention data parallelism hold sequences of their own; all others hold a share of every one.
    blocks = blocks.each(lambda end: end * lowering.dp)
    return KvPool(blocks.mid, b, block, growth is not None, extra_blocks, (blocks.lo, blocks.hi))


def starts(group: Group) -> bool:
    """Whether the group's engine finds room for KV as it is started; True where it has no pool."""
    return group.start is None or _room(group, group.start.seqs, group.start.tokens).mid > 0.0


def flag_of(group: Group) -> str:
    """What the group's engine calls its share of the memory."""
    return group.start.reserve.flag if group.start else "--gpu-memory-utilization"


def _room(group: Group, sequences: int, step_tokens: int) -> Interval[float]:
    """Bytes for KV on one GPU."""
    lowering = group.lowering
    if group.start is not None:
        start = replace(group.start, seqs=sequences, tokens=step_tokens)
        return memory.pool_bytes(lowering, group.device, start, group.pp)
    activations = float(memory.activation_token_bytes(lowering) * step_tokens + sequences * lowering.model.vocab * 4.0)
    budget, weights = memory.budget_bytes(group.device, group.share), memory.weights_bytes(lowering, group.pp)
    return Interval.exact(budget - weights - memory.runtime_bytes(group.gpus) - activations)


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
