"""What a sparsity policy is: a rewriter of ops, a layout of the KV cache, and what it goes with."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from simulator.arrays import Array
from simulator.dtypes import Format
from simulator.layer import LayerSpec
from simulator.model import ModelSpec
from simulator.ops import Op
from simulator.workload import Step


class Aspect(StrEnum):
    """The one thing of an operand a policy rewrites; two policies on the same one are refused."""

    WEIGHT_FORMAT = "weight format"
    WEIGHT_ROWS = "weight rows read"
    KV_TOKENS = "KV tokens kept"
    KV_READS = "KV tokens read"
    KV_FORMAT = "KV format"
    PREFILL_MASK = "prefill attention mask"


ORDER = tuple(Aspect)
"""Aspects in the order they are applied and written: a format compresses the tokens that are left."""


@dataclass(frozen=True, slots=True)
class Compatibility:
    """What else the engine may do while the policy is on.

    Attributes
    ----------
    paged_kv, prefix_cache, chunked_prefill, speculative : bool
        Works with the engine feature of that name.
    needs_scores : bool
        Reads attention probabilities, which a flash kernel does not write: an extra pass.
    extra_layout : bool
        Keeps a second copy of weights in another layout.
    gqa : str
        What happens to the query heads that share a KV head.
    """

    paged_kv: bool = True
    prefix_cache: bool = True
    chunked_prefill: bool = True
    speculative: bool = True
    needs_scores: bool = False
    extra_layout: bool = False
    gqa: str = "no change"


@dataclass(frozen=True, slots=True)
class Context:
    """Where an op stands: the layer, the step and how the model is cut.

    Attributes
    ----------
    index : int
        First layer of the group the op belongs to.
    tp : int
        Tensor-parallel ranks.
    fmt : Format
        Format of the dense model's weights.
    kv_element_bytes : float
        Bytes per element of the dense KV cache [B].
    """

    model: ModelSpec
    layer: LayerSpec
    index: int
    step: Step
    tp: int
    fmt: Format
    kv_element_bytes: float

    @property
    def decode_only(self) -> bool:
        """No prompt token in the step."""
        return not self.step.prefills


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """KV cache of one sequence in one layer on one GPU.

    ``bytes(S) = dense_bytes * min(S', dense_tokens) + token_bytes * max(S' - dense_tokens, 0)
    + meta_bytes * S'`` with ``S' = min(S, max_tokens)``.

    Attributes
    ----------
    token_bytes : float
        Per stored token in the policy's format [B].
    dense_bytes : float
        Per token kept in the dense format [B].
    dense_tokens : float
        Newest tokens kept dense [tokens].
    max_tokens : float
        Tokens kept at most [tokens].
    meta_bytes : float
        Page statistics, labels and the like, per stored token [B].
    """

    token_bytes: float
    dense_bytes: float
    dense_tokens: float = 0.0
    max_tokens: float = float("inf")
    meta_bytes: float = 0.0

    def bytes(self, tokens: Array) -> Array:
        """Bytes for `tokens` of context [B]."""
        stored = np.minimum(np.asarray(tokens, float), self.max_tokens)
        dense = np.minimum(stored, self.dense_tokens)
        return (
            dense * self.dense_bytes
            + (stored - dense) * self.token_bytes
            + stored * self.meta_bytes
        )


class Policy(BaseModel):
    """A sparsity policy; subclasses are final and declare their parameters as fields.

    A policy never sees a device: it says what is read, computed and launched, and the roofline times it.
    With ``keep=1`` useful bytes equal the dense model's and the overhead ops are the whole difference.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    family: ClassVar[str]
    summary: ClassVar[str]
    aspects: ClassVar[frozenset[Aspect]] = frozenset()
    compatibility: ClassVar[Compatibility] = Compatibility()
    citation: ClassVar[str] = ""
    not_modelled: ClassVar[str] = ""
    always_shown: ClassVar[tuple[str, ...]] = ()
    """Parameters the canonical spelling names even at their default."""

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """Reason this policy cannot be used on `model`, or None."""
        return None

    def layer_key(self, index: int, n_layers: int) -> Hashable:
        """Layers with different keys are lowered apart; equal ones share their ops."""
        return None

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """The ops really run in place of `op`."""
        return (op,)

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """The KV cache really kept in place of `kv`."""
        return kv

    def weight_format(self, fmt: Format) -> Format:
        """Format of the linear layers' weights."""
        return fmt

    @property
    def spelling(self) -> str:
        """Canonical text: ``name(key=value,...)`` with the parameters that differ from the default."""
        parts = []
        for key, info in type(self).model_fields.items():
            value = getattr(self, key)
            if key in self.always_shown or value != info.default:
                parts.append(f"{key}={_text(value)}")
        return f"{self.name}({','.join(parts)})" if parts else self.name


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.12g}"
    return str(value)


def overhead(op: Op, **changes: object) -> Op:
    """`op` marked as work the policy adds."""
    return replace(op, overhead=True, **changes)  # type: ignore[type-var]
