"""What fits: weights, KV cache, activations and the runtime's own share of one GPU's memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from simulator.base.arrays import Array, ceil, clip, floor, maximum, minimum
from simulator.base.interval import Interval
from simulator.device.catalogue import Device
from simulator.inference.lowering import Lowering
from simulator.ops.granularity import paged_tokens
from simulator.ops.ops import Linear, Moe, Op
from simulator.ops.part import OpPart
from simulator.roofline.reserve import Start, peak_between

CONTEXT_BYTES = 0.5e9
"""CUDA context and loaded kernels [B]; measured 0.4-0.6 GB on Ampere and Hopper, assumed elsewhere."""
GRAPH_POOL_BYTES = 0.6e9
"""Captured decode graphs of a serving engine [B]; vLLM prints 0.3-1 GB for 7B-70B models."""
COMM_BYTES = 0.4e9
"""NCCL and custom all-reduce buffers per GPU when tp > 1 [B]."""
MAX_BATCHED_TOKENS = 8192
"""Tokens of one prefill pass an engine schedules at most; bounds the activation peak."""


@dataclass(frozen=True)
class Footprint:
    """Bytes on the fullest GPU.

    Attributes
    ----------
    weights_bytes : float
        Weights, predictors included [B].
    kv_bytes : Array
        KV cache of the whole batch at prompt + output tokens, whole pages [B].
    activation_bytes : Array
        Peak of the activations and logits [B].
    runtime_bytes : float
        Context, graph pool, communication buffers [B].
    off_bytes : Array
        Weights and KV that a policy keeps on another tier, per GPU [B].
    """

    weights_bytes: float
    kv_bytes: Array
    activation_bytes: Array
    runtime_bytes: float
    off_bytes: Array = 0.0

    @property
    def other_bytes(self) -> Array:
        """Everything but weights and KV [B]."""
        return self.activation_bytes + self.runtime_bytes

    @property
    def total_bytes(self) -> Array:
        """All of it [B]."""
        return self.weights_bytes + self.kv_bytes + self.other_bytes


def stored_bytes(op: Op) -> float:
    """Bytes of weights an op keeps resident on one GPU, all its repetitions together [B]."""
    count = float(np.max(op.count))
    if isinstance(op, Linear):
        if not op.keeps_weights:
            return 0.0
        per = op.fmt.weight_bytes if op.bytes_per_weight is None else op.bytes_per_weight
        return float(op.groups * op.n * op.k) * float(per) * count * op.resident * op.shared
    if isinstance(op, Moe):
        per = op.fmt.weight_bytes if op.bytes_per_weight is None else op.bytes_per_weight
        return float(op.expert_elements * op.n_experts / op.ep * per * count) * _padded(op)
    return 0.0


def _padded(op: Moe) -> float:
    """Stored elements of the experts over their own: tiles of their format at the edge are full [-]."""
    hidden, width = op.fmt.pads
    if hidden == width == 1:
        return 1.0
    wide, own = float(op.hidden), float(op.intermediate / op.tp)
    return math.ceil(wide / hidden) * hidden * math.ceil(own / width) * width / (wide * own)


@lru_cache(maxsize=4096)
def weights_bytes(lowering: Lowering, pp: int = 1) -> float:
    """Resident weights of the fullest pipeline stage on one GPU [B].

    Matrices as the ops read them (so predictors and formats count), the embedding as it is stored and a vision tower
    in 16 bit split over tp, norms, biases and position tables in 16 bit on every GPU; with them what drafts.
    """
    drafting = lowering.drafting
    if drafting is None:
        return _own_weights_bytes(lowering, pp)
    beside = drafting.lowering
    drafts = 0.0 if beside is None else _own_weights_bytes(beside, 1, *drafting.owns)
    return _own_weights_bytes(lowering, pp) + drafts


def _own_weights_bytes(lowering: Lowering, pp: int, own_head: bool = True, own_embedding: bool = True) -> float:
    """Weights without what drafts, nor an output matrix or an embedding that are another model's [B]."""
    model = lowering.model
    layers, ends = 0.0, 0.0
    for op in lowering.one_token:
        # The absorbed MLA products of a decode step are the kv_up matrix, which only a prefill lowers.
        if op.part is OpPart.HEAD:
            ends += stored_bytes(op)
        else:
            layers += stored_bytes(op)
    # fp32 models keep their vectors and tables in fp32; every other format leaves them in 16 bit.
    half = 4.0 if lowering.fmt.weight_bits >= 32 else 2.0
    wide = half if model.rest is None else model.rest.weight_bytes
    stored = model.ends.of("embed")
    embedding = model.params("embedding") / lowering.tp * (half if stored is None else stored.weight_bytes)
    if model.tied_embeddings:
        ends, embedding = max(ends, embedding), 0.0
    ends, embedding = ends if own_head else 0.0, embedding if own_embedding else 0.0
    small = sum(model.params(part) for part in ("position", "norm")) * wide
    small += _bias_elements(lowering) * wide
    tower = 0.0 if model.tower is None else model.tower.n_params / lowering.tp * half
    stages = math.ceil(model.n_layers / pp) / model.n_layers
    if pp == 1:
        return layers + ends + embedding + small + tower
    return (layers + small) * stages + max(ends, embedding) + tower


def _bias_elements(lowering: Lowering) -> float:
    """Elements of the linear layers that are vectors, not matrices [-]."""
    model = lowering.model
    matrices = 0.0
    dense = Lowering(model, type(lowering.policies)(), lowering.fmt, lowering.kv_element_bytes)
    for op in dense.one_token:
        if isinstance(op, Linear):
            matrices += float(op.groups * op.n * op.k) * float(np.max(op.count))
        elif isinstance(op, Moe):
            matrices += float(op.expert_elements * op.n_experts) * float(np.max(op.count))
    parts = ("attention", "ffn", "router", "projection", "lm_head")
    total = float(sum(model.params(part) for part in parts))
    if model.tied_embeddings:
        total += model.params("embedding") - model.tables
    return max(total - matrices, 0.0)


def off_weights_bytes(lowering: Lowering) -> float:
    """Weights a policy keeps off one GPU [B]."""
    return sum(
        stored_bytes(replace(op, resident=1.0 - op.resident))
        for op in lowering.one_token
        if isinstance(op, Linear) and op.resident < 1.0
    )


def off_kv_bytes(lowering: Lowering, tokens: Array, prompt: Array | None = None) -> Array:
    """KV of one sequence of `tokens`, `prompt` of them read at once, that a policy keeps off one GPU [B]."""
    return sum(kv.off(tokens, prompt) * layers for kv, layers in lowering.kv_layouts)


def home_bytes(lowering: Lowering, device: Device) -> float:
    """Capacity of the tier the policies offload to, per GPU [B]."""
    home = lowering.home
    return device.tier(home).capacity_bytes if device.has_tier(home) else 0.0


def kv_bytes_per_sequence(
    lowering: Lowering, tokens: Array, *, prompt: Array | None = None, pp: int = 1, block_tokens: int = 16
) -> np.ndarray:
    """KV cache of one sequence of `tokens`, `prompt` of them read at once, on one GPU, whole pages [B].

    With it the state that layers without attention keep of it, whatever its length.
    """
    reserved = paged_tokens(tokens, block_tokens)
    total = np.full(np.shape(reserved), lowering.state_bytes)
    for kv, layers in lowering.kv_layouts:
        total = total + kv.bytes(reserved, prompt) * layers
    total = total * (math.ceil(lowering.model.n_layers / pp) / lowering.model.n_layers)
    drafts = None if lowering.drafting is None else lowering.drafting.lowering
    if drafts is None:
        return total
    return total + kv_bytes_per_sequence(drafts, tokens, prompt=prompt, block_tokens=block_tokens)


@lru_cache(maxsize=4096)
def activation_token_bytes(lowering: Lowering) -> float:
    """Activations alive per token of a pass: two layers' residual and their widest tensor, 16 bit [B]."""
    model, widest = lowering.model, 0.0
    for op in lowering.one_token:
        if isinstance(op, Linear) and op.part not in (OpPart.HEAD, OpPart.PREDICTOR):
            widest = max(widest, float(op.n))
        elif isinstance(op, Moe):
            widest = max(widest, float(op.top_k * op.intermediate / op.tp * (op.matrices - 1)))
    return (2.0 * model.hidden + 2.0 * widest) * 2.0


@lru_cache(maxsize=4096)
def workspace_token_bytes(lowering: Lowering) -> float:
    """Fused experts' own buffers per token: what each takes, gives back in full width, and between, 16 bit [B]."""
    most = 0.0
    for op in lowering.one_token:
        if isinstance(op, Moe):
            inner = float(op.top_k * op.intermediate / op.tp)
            most = max(most, max(inner * (op.matrices - 1), float(op.top_k) * lowering.model.hidden) + inner)
    return most * 2.0


def peak_bytes(lowering: Lowering, start: Start) -> float:
    """What an engine finds when it runs its widest step and samples its most sequences, one after the other [B]."""
    tokens = max(activation_token_bytes(lowering), 4.0 * lowering.model.hidden + workspace_token_bytes(lowering))
    return max(tokens * start.tokens, start.seqs * lowering.model.vocab * start.reserve.logit_bytes.mid)


def pool_bytes(lowering: Lowering, device: Device, start: Start, pp: int = 1) -> Interval[float]:
    """KV that an engine reserves on one GPU when it starts; not above 0 where it does not start [B].

    `Start.pool_bytes` with the weights, `peak_bytes` and what is outside; both of the latter are uncertain together.
    """
    peak, outside = peak_between(peak_bytes(lowering, start)), start.reserve.outside(lowering.ranks * pp)
    weights, held = weights_bytes(lowering, pp), device.capacity_bytes
    # The more else is kept, the less is left.
    most, least = (start.pool_bytes(held, weights, *ends) for ends in ((peak.lo, outside.lo), (peak.hi, outside.hi)))
    return Interval(start.pool_bytes(held, weights, peak.mid, outside.mid), least, most)


def passing_bytes(lowering: Lowering, prompt: Array) -> Array:
    """Full K and V of one prompt in the layer that evicts or compresses them next, one layer at a time [B]."""
    return prompt * max((kv.passing_bytes for kv, _ in lowering.kv_layouts), default=0.0)


def activation_bytes(lowering: Lowering, batch: Array, prompt: Array) -> np.ndarray:
    """Peak activations of one pass of at most `MAX_BATCHED_TOKENS`, and fp32 logits per sequence [B].

    With them a prompt's K and V before a policy evicts or compresses them.
    """
    tokens = minimum(batch * prompt, float(MAX_BATCHED_TOKENS))
    logits = batch * lowering.model.vocab * 4.0
    return tokens * activation_token_bytes(lowering) + logits + passing_bytes(lowering, prompt)


def footprint(
    lowering: Lowering,
    batch: Array,
    prompt: Array,
    output: Array,
    *,
    pp: int = 1,
    block_tokens: int = 16,
    start: Start | None = None,
) -> Footprint:
    """Memory of a static batch at its longest, in an engine as it is started or (None) in one without a pool [B].

    It is that of the rank with most sequences where attention is data parallel.
    """
    batch, total = ceil(batch / lowering.dp) if lowering.dp > 1 else batch, prompt + output
    per_sequence = kv_bytes_per_sequence(lowering, total, prompt=prompt, pp=pp, block_tokens=block_tokens)
    if start is None:
        activations, runtime = activation_bytes(lowering, batch, prompt), runtime_bytes(lowering.ranks * pp)
    else:
        activations = peak_bytes(lowering, start) + passing_bytes(lowering, prompt)
        runtime = start.reserve.outside(lowering.ranks * pp).mid
    return Footprint(
        weights_bytes(lowering, pp),
        batch * per_sequence,
        activations,
        runtime,
        off_bytes(lowering, batch, total, prompt),
    )


def off_bytes(lowering: Lowering, batch: Array, tokens: Array, prompt: Array | None = None) -> Array:
    """Weights and KV of the batch off one GPU [B]; 0.0 where no policy offloads."""
    if not any(kv.off_bytes for kv, _ in lowering.kv_layouts):
        return off_weights_bytes(lowering)
    kv = off_kv_bytes(lowering, tokens, prompt)
    return off_weights_bytes(lowering) + batch * kv


def runtime_bytes(gpus: int) -> float:
    """Context, graph pool and, with several GPUs, communication buffers [B]."""
    return CONTEXT_BYTES + GRAPH_POOL_BYTES + (COMM_BYTES if gpus > 1 else 0.0)


def budget_bytes(device: Device, utilisation: float) -> float:
    """Bytes an engine may use: the driver's total times vLLM's utilisation [B]."""
    return device.capacity_bytes * utilisation


def max_batch(
    lowering: Lowering,
    device: Device,
    prompt: Array,
    output: Array,
    *,
    pp: int = 1,
    utilisation: float = 0.9,
    block_tokens: int = 16,
    start: Start | None = None,
) -> np.ndarray:
    """Largest static batch whose weights, KV and activations fit [-]; 0 where not even one does.

    In an engine with a pool, ``pool // kv``. In one without, with ``a`` activation bytes per token, ``l`` logits and
    ``kv`` bytes per sequence and at most T tokens per pass: ``max(pool // (kv + l + a * prompt), (pool - a * T) // (kv
    + l))``.
    """
    total = prompt + output
    per_sequence = kv_bytes_per_sequence(lowering, total, prompt=prompt, pp=pp, block_tokens=block_tokens)
    if start is not None:
        pool = pool_bytes(lowering, device, start, pp).mid - passing_bytes(lowering, prompt)
        # KV that lies elsewhere takes none of the pool.
        best = maximum(floor(pool / maximum(per_sequence, 1.0)), 0.0)
    else:
        runtime = runtime_bytes(lowering.ranks * pp)
        beside = weights_bytes(lowering, pp) + runtime + passing_bytes(lowering, prompt)
        pool = budget_bytes(device, utilisation) - beside
        logits = lowering.model.vocab * 4.0
        per_token = activation_token_bytes(lowering)
        few = floor(pool / (per_sequence + logits + per_token * prompt))
        many = floor((pool - per_token * MAX_BATCHED_TOKENS) / (per_sequence + logits))
        best = maximum(maximum(few, many), 0.0)
    if not np.any(off_bytes(lowering, 1.0, total, prompt)):
        return best * lowering.dp
    beside = home_bytes(lowering, device) - off_weights_bytes(lowering)
    per_home = maximum(off_kv_bytes(lowering, total, prompt), 1e-30)
    return clip(floor(beside / per_home), 0.0, best) * lowering.dp
