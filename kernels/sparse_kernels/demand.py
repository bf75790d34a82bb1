"""What the simulator says a case costs: its own lowering of one layer, rewritten by its own policies."""

from __future__ import annotations

from collections.abc import Collection

from simulator.base.dtypes import FORMATS
from simulator.inference.lowering import Lowering
from simulator.model.layer import Activation, AttentionSpec, FfnSpec, LayerSpec
from simulator.model.spec import ModelSpec
from simulator.ops.ops import Elementwise, Op
from simulator.ops.step import Step, decode_step, prefill_step
from simulator.ops.traffic import Operand
from simulator.policies import parse
from sparse_kernels.registry import Case


def layer(case: Case, *, activation: Activation = "relu", gated: bool = True, layers: int = 1) -> ModelSpec:
    """A model of `layers` layers with the sizes of `case`: hq, hk, d, hidden, neurons, where it has them."""
    sizes = case.sizes
    hq, d = sizes.get("hq", 1), sizes.get("d", 64)
    attention = AttentionSpec(hq, sizes.get("hk", hq), d, d)
    ffn = FfnSpec(sizes.get("neurons", 64), gated, activation)
    one = LayerSpec(attention, ffn)
    return ModelSpec(
        name=f"case {case.name}",
        architecture="case",
        hidden=sizes.get("hidden", hq * d),
        vocab=1,
        layers=(one,) * layers,
        tied_embeddings=True,
        max_context=1 << 40,
        dtype=case.dtype,
    )


def decode(case: Case) -> Step:
    """One new token for each of `batch` sequences, each `tokens` long afterwards."""
    return decode_step(float(case.sizes.get("batch", 1)), float(case.sizes.get("tokens", 1)))


def prefill(case: Case) -> Step:
    """`batch` whole prompts of `tokens`."""
    return prefill_step(float(case.sizes.get("batch", 1)), float(case["tokens"]))


def lowered(policy: str, model: ModelSpec, step: Step, roles: Collection[str]) -> tuple[Op, ...]:
    """Ops of `roles` that one step of `model` runs under `policy`, as every verb of the simulator sees them."""
    dtype = FORMATS[model.dtype]
    lowering = Lowering(model, parse(policy), dtype, kv_element_bytes=2.0)
    reason = lowering.why_not()
    if reason is not None:
        raise ValueError(f"{policy} on {model.name}: {reason}")
    ops = tuple(op for op in lowering.ops(step) if op.role in roles)
    missing = set(roles) - {op.role for op in ops}
    if missing:
        raise ValueError(f"{policy}: no op of role {', '.join(sorted(missing))}")
    return ops


def selected(policy: str, case: Case, role: str, entries: float) -> tuple[Op, ...]:
    """Ops of a decode step that estimates, takes the top k and attends to them, with the `entries` it lists."""
    roles = ("kv.estimate", "kv.top_k", "attn.core")
    return (*lowered(policy, layer(case), decode(case), roles), index_list(role, entries))


def index_list(role: str, entries: float) -> Elementwise:
    """The list a gather reads, int32: `entries` from the method's own budget, never from a kernel's buffer.

    Policies book the write of a list in their top-k and not yet the gather's read of it.
    """
    return Elementwise(
        role=role, kind="index", read_bytes=4.0 * entries, operand=Operand.INDEX, launches=0.0, overhead=True
    )
