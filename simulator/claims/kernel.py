"""A single kernel as a scenario: some ops of one layer, on one device, under a policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simulator.base.errors import InputError, UnsupportedError, suggest
from simulator.inference.group import Group
from simulator.inference.step import Changed, Sums, alone_of
from simulator.model.layer import AttentionSpec, FfnSpec, LayerSpec
from simulator.model.spec import ModelSpec
from simulator.ops.ops import Linear, Op
from simulator.ops.step import Step, decode_step, prefill_step
from simulator.ops.traffic import Operand
from simulator.policies import parse
from simulator.roofline.timing import time_op
from simulator.roofline.uncertainty import Errors
from simulator.scenario.catalogue import CATALOGUE
from simulator.scenario.fields import MAX_TOKENS
from simulator.scenario.scenario import Scenario


class Shape(BaseModel):
    """Sizes of a kernel that belongs to no named model; only those its ops use matter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: int = Field(ge=1, le=MAX_TOKENS, description="input features of qkv, gate and up; output of o and down")
    intermediate: int = Field(1, ge=1, le=MAX_TOKENS, description="width of the feed-forward block")
    gated: bool = Field(False, description="gate beside up")
    n_heads: int = Field(1, ge=1, le=MAX_TOKENS, description="query heads")
    n_kv_heads: int = Field(1, ge=1, le=MAX_TOKENS, description="key/value heads")
    head_dim: int = Field(1, ge=1, le=MAX_TOKENS, description="width of a head")

    @property
    def model(self) -> ModelSpec:
        """One layer of this shape."""
        attention = AttentionSpec(self.n_heads, self.n_kv_heads, self.head_dim, self.head_dim)
        # ReLU, so that policies made for its zeros apply; no kernel of ours depends on it otherwise.
        ffn = FfnSpec(self.intermediate, self.gated, "relu")
        return ModelSpec("shape", "shape", self.hidden, 1, (LayerSpec(attention, ffn),), True, 2**40)


class KernelScenario(BaseModel):
    """Some ops of one layer in one step, timed alone.

    `ops` are roles of the lowering (``attn.core``, ``mlp.*``, ``kv.top_k``), with ``*`` for any ending. The layer is
    the last of `model`, or `shape`; it stands alone, so a policy that spares the first layers must be told not to.
    `batch` are sequences: in a decode step the rows of every linear layer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    device: str
    ops: tuple[str, ...] = Field(min_length=1)
    phase: Literal["prefill", "decode"]
    batch: int = Field(ge=1, le=MAX_TOKENS)
    tokens: int = Field(1, ge=1, le=MAX_TOKENS, description="prompt of a prefill, context of a decode step")
    model: str | None = None
    shape: Shape | None = None
    policy: str = "dense"
    engine: str = "kernels"
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Kernel scenario of `values`; a bad one is an `InputError` of one line."""
        try:
            kernel = cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(p) for p in first["loc"])
            near = suggest(key, cls.model_fields) if first["type"] == "extra_forbidden" else []
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"kernel field {key!r}: {first['msg']}{hint}") from None
        if (kernel.model is None) == (kernel.shape is None):
            raise InputError("a kernel has either a model or a shape")
        parse(kernel.policy)
        return kernel

    @property
    def group(self) -> Group:
        """The single layer on its device."""
        scenario = Scenario.of(
            model="shape",
            device=self.device,
            policy=self.policy,
            engine=self.engine,
            dtype=self.dtype,
            kv_cache_dtype=self.kv_cache_dtype,
        )
        if self.shape is not None:
            model = self.shape.model
        else:
            whole = CATALOGUE.model(str(self.model))
            model = replace(whole, layers=whole.layers[-1:])
        return Group.of(scenario, model, CATALOGUE.device(self.device))

    @property
    def step(self) -> Step:
        """The step the ops belong to."""
        make = decode_step if self.phase == "decode" else prefill_step
        return make(float(self.batch), float(self.tokens))


@dataclass(frozen=True, slots=True)
class KernelTime:
    """Sum of the chosen ops: seconds with their 90 % interval, flop of the dense ops, useful KV bytes read.

    `kernels_s` is without the engine's hands, `changed_s` what of it policies changed, `errors` those of the ops.
    """

    group: Group
    time_s: float
    lo_s: float
    hi_s: float
    dense_flop: float
    kv_read_bytes: float
    kernels_s: float
    changed_s: Changed
    errors: Errors


def kernel_time(kernel: KernelScenario) -> KernelTime:
    """Time of the chosen ops, one after another, and of kernels the engine submits after waits; their errors add up.

    Raises
    ------
    UnsupportedError
        The policy does not apply, or the device lacks a rate.
    InputError
        No op has a role asked for.
    """
    group = kernel.group
    if group.problem is not None:
        raise UnsupportedError(group.problem[1])
    lowered = group.lowering.lowered(kernel.step)
    ops = _chosen([of.op for of in lowered], kernel.ops)
    by = [of.by for of in lowered if _matches(of.op, kernel.ops)]
    # A paper times its own kernels with its own clock: the spread between sources is part of the interval.
    times = [time_op(op, group.device, group.engine)._replace(stands_in=True) for op in ops]
    waits = float(group.engine.exposed_s(group.device, sum(np.sum(alone_of(op, group.engine)) for op in ops)))
    dense = [op for op in group.twin.lowering.ops(kernel.step) if _matches(op, kernel.ops)]
    sums = Sums.of(group, times, by)
    return KernelTime(
        group,
        *(waits + float(np.sum([np.sum(getattr(t, k)) for t in times])) for k in ("total_s", "lo_s", "hi_s")),
        dense_flop=sum(float(np.sum(op.flop)) for op in dense if isinstance(op, Linear)),
        kv_read_bytes=sum(map(_kv_bytes, ops)),
        kernels_s=float(np.sum(sums.gpu_s)),
        changed_s=sums.changed_s,
        errors=sums.details.errors,
    )


def _kv_bytes(op: Op) -> float:
    access = op.traffic().scaled(op.count).access.get(Operand.KV)
    return 0.0 if access is None else float(np.sum(access.read_bytes))


def _matches(op: Op, roles: tuple[str, ...]) -> bool:
    return any(fnmatchcase(op.role, role) for role in roles)


def _chosen(ops: list[Op], roles: tuple[str, ...]) -> list[Op]:
    known = list(dict.fromkeys(op.role for op in ops))
    for role in roles:
        if not any(fnmatchcase(name, role) for name in known):
            raise InputError(f"the step has no op {role!r}; it has {', '.join(known)}")
    return [op for op in ops if _matches(op, roles)]
