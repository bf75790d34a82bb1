"""What a sparsity policy is: a rewriter of ops, a layout of the KV cache, and what it goes with."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from copy import copy
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, create_model

from simulator.base.arrays import Array, ceil, maximum, minimum
from simulator.base.dtypes import Format
from simulator.model.layer import AttentionSpec, LayerSpec
from simulator.model.spec import ModelSpec
from simulator.ops.ops import Op
from simulator.ops.step import Step
from simulator.policies.kernel import Kernel, papers_own, table
from simulator.trace.curves import LayerCurves


class Aspect(StrEnum):
    """The one thing of an operand a policy rewrites; two policies on the same one are refused."""

    TOKENS = "tokens computed"
    WEIGHT_SHAPE = "weight shape"
    WEIGHT_FORMAT = "weight format"
    WEIGHT_ROWS = "weight rows read"
    WEIGHT_PLACE = "weight placement"
    PREFILL_MASK = "prefill attention mask"
    KV_TOKENS = "KV tokens kept"
    KV_READS = "KV tokens read"
    KV_FORMAT = "KV format"
    KV_PLACE = "KV placement"
    KV_ALLOCATION = "KV allocation"


ATTENTION_ASPECTS = frozenset(
    {Aspect.PREFILL_MASK} | {Aspect.KV_TOKENS, Aspect.KV_READS, Aspect.KV_FORMAT, Aspect.KV_PLACE, Aspect.KV_ALLOCATION}
)
"""Aspects of attention and its KV cache: a layer without them is left as it is."""

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
    extra_weight_layout : bool
        Keeps a second copy of weights in another layout.
    mla : bool
        Works where all heads share one latent per token; else it needs K and V of single heads.
    gqa : str
        What happens to the query heads that share a KV head.
    """

    paged_kv: bool = True
    prefix_cache: bool = True
    chunked_prefill: bool = True
    speculative: bool = True
    needs_scores: bool = False
    extra_weight_layout: bool = False
    mla: bool = True
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
    trace : LayerCurves, optional
        Measured curves of this layer; they win over what is published.
    """

    model: ModelSpec
    layer: LayerSpec
    index: int
    step: Step
    tp: int
    fmt: Format
    kv_element_bytes: float
    trace: LayerCurves | None = None

    @property
    def attention(self) -> AttentionSpec:
        """Attention of the layer; TypeError in one that keeps a state in its place."""
        if self.layer.attention is None:
            raise TypeError("this layer has no attention")
        return self.layer.attention

    @property
    def decode_only(self) -> bool:
        """No prompt token in the step."""
        return not self.step.prefills


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """KV cache of one sequence in one layer on one GPU.

    ``bytes(S) = dense_bytes * min(S', dense_tokens) + token_bytes * max(S' - dense_tokens, 0)
    + meta_bytes * S'`` with ``S' = min(w + keep * (S - w), max_tokens)`` and ``w = min(S, whole_tokens)``, in whole
    pieces of `piece_tokens`.

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
    keep : float
        Share of the context that is kept, beyond `whole_tokens` of it [-].
    whole_tokens : float
        Newest tokens of which none is dropped by `keep` [tokens].
    grows : bool
        `max_tokens` bounds the prompt only: generated tokens are kept beside it.
    off_bytes : float
        Per kept token outside the GPU's memory, on the policy's `home` [B].
    reserved_tokens, piece_tokens : float
        Tokens reserved whatever the length, and the least piece that is allocated [tokens].
    passing_bytes : float
        Per prompt token of the one layer whose prompt is not yet evicted or compressed [B].
    """

    token_bytes: float
    dense_bytes: float
    dense_tokens: float = 0.0
    max_tokens: float = float("inf")
    meta_bytes: float = 0.0
    keep: float = 1.0
    whole_tokens: float = 0.0
    grows: bool = False
    off_bytes: float = 0.0
    reserved_tokens: float = 0.0
    piece_tokens: float = 1.0
    passing_bytes: float = 0.0

    def kept(self, tokens: Array, prompt: Array | None = None) -> Array:
        """Tokens that are not dropped of `tokens` of context, `prompt` of them read as prompt [tokens]."""
        context = tokens
        if self.grows and prompt is not None:
            return self._left(prompt) + maximum(context - prompt, 0.0)
        return self._left(context)

    def _left(self, tokens: Array) -> Array:
        whole = minimum(tokens, self.whole_tokens)
        return minimum(whole + (tokens - whole) * self.keep, self.max_tokens)

    def off(self, tokens: Array, prompt: Array | None = None) -> Array:
        """Bytes outside the GPU for `tokens` of context, `prompt` of them read as prompt [B]."""
        return self.kept(tokens, prompt) * self.off_bytes

    def bytes(self, tokens: Array, prompt: Array | None = None) -> Array:
        """Bytes on the GPU for `tokens` of context, `prompt` of them read as prompt [B]."""
        stored = self.kept(tokens, prompt)
        if self.reserved_tokens or self.piece_tokens > 1.0:
            stored = maximum(stored, self.reserved_tokens)
            stored = ceil(stored / self.piece_tokens) * self.piece_tokens
        dense = minimum(stored, self.dense_tokens)
        return dense * self.dense_bytes + (stored - dense) * self.token_bytes + stored * self.meta_bytes


Swept = tuple[str, Literal["share", "tokens"]]
"""A parameter that says how sparse a policy is, and what it counts: a share kept or tokens."""


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
    alias_of: ClassVar[str] = ""
    """Policy whose mechanism this one is, with other defaults."""
    swept: ClassVar[Swept | None] = None
    """Parameter that says how sparse it is; None where no single one does."""
    modules: ClassVar[bool] = False
    """Rewrites attention modules, too: blocks an engine was measured with as a whole."""
    unites: ClassVar[tuple[str, ...]] = ()
    """Tensors of a trace whose union over rows it reads (`simulator.ops.union_law`), ``relu`` for ReLU neurons."""
    hardware: ClassVar[str] = "gpu"
    """Hardware it was designed for: ``gpu`` or ``fpga``."""

    @classmethod
    def kernels(cls) -> tuple[Kernel, ...]:
        """Kernels it is known or taken to run in, the published one first; none where it rewrites nothing."""
        if not cls.aspects:
            return ()
        return table().get(cls.name) or (papers_own(cls.name),)

    @property
    def kernel_used(self) -> Kernel | None:
        """The first kernel that the parameters mean, else the published one."""
        known = self.kernels()
        meant = (k for k in known if k.sets and all(getattr(self, key) == v for key, v in k.sets.items()))
        return next(meant, next(iter(known), None))

    @property
    def leanest(self) -> Policy:
        """The same policy in the kernel that does least, and dense where that is faster if it knows the way."""
        lean = next((k.sets for k in self.kernels() if k.lean), {})
        return self.with_parameters(lean | ({"fallback": "dense"} if "fallback" in type(self).model_fields else {}))

    def with_parameters(self, values: Mapping[str, str]) -> Policy:
        """The same policy with some parameters changed."""
        return type(self).model_validate({**self.model_dump(), **values}) if values else self

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """Reason this policy cannot be used on `model`, or None."""
        return None

    def layer_key(self, index: int, n_layers: int) -> Hashable:
        """Layers with different keys are lowered apart; equal ones share their ops."""
        return None

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """The ops really run in place of `op`.

        They follow what `op` follows (`simulator.inference.lowering.Follows`): of the step's contexts they know what
        an attention op says of them, and of its tokens `ctx.step.rows`. All else is timed once for many contexts.
        """
        return (op,)

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """The KV cache really kept in place of `kv`."""
        return kv

    def weight_format(self, fmt: Format) -> Format:
        """Format of the linear layers' weights."""
        return fmt

    @property
    def home(self) -> str:
        """Memory tier that holds what the policy keeps off the GPU."""
        return "host"

    @property
    def spelling(self) -> str:
        """Canonical text: ``name(key=value,...)`` with the parameters that differ from the default."""
        parts = []
        for key, info in type(self).model_fields.items():
            value = getattr(self, key)
            # The grammar cannot write an empty text: leaving it out says the same.
            if value != "" and (key in self.always_shown or value != info.default):
                parts.append(f"{key}={_text(value)}")
        return f"{self.name}({','.join(parts)})" if parts else self.name


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.12g}"
    return str(value)


def alias(base: type[Policy], name: str, summary: str, citation: str, **defaults: Any) -> type[Policy]:
    """The mechanism of `base` under another published name, with that paper's defaults.

    Parameters
    ----------
    name, summary, citation : str
        As the paper calls it, what it does, and where it is published.
    **defaults
        Parameters whose default differs from `base`.
    """
    fields: dict[str, Any] = {}
    for key, value in defaults.items():
        info = copy(base.model_fields[key])
        info.default = value
        fields[key] = (info.annotation, info)
    text = f"{summary[0].upper()}{summary[1:]}: the mechanism of `{base.name}` with other defaults."
    cls = create_model(name, __base__=base, __doc__=text, __module__=base.__module__, **fields)
    cls.name, cls.summary, cls.citation, cls.alias_of = name, summary, citation, base.name
    return cls
