"""What a model is made of: its layers, exact parameter counts and KV bytes.

Nothing here knows a device, a phase or a policy. `simulator.model.architectures` builds these nouns from
a Hugging Face ``config.json``; `simulator.model.hub` finds that file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulator.base.checks import require_positive
from simulator.base.dtypes import Format
from simulator.base.errors import InputError
from simulator.model.formats import AS_PUBLISHED, Formats
from simulator.model.layer import (
    PARTS,
    Activation,
    AttentionSpec,
    FfnSpec,
    LayerSpec,
    MlaSpec,
    MoeSpec,
    Norm,
    Part,
    Position,
    QkNorm,
    SideSpec,
)
from simulator.model.tower import TowerSpec

__all__ = [
    "PARTS",
    "Activation",
    "AttentionSpec",
    "FfnSpec",
    "LayerSpec",
    "MlaSpec",
    "ModelSpec",
    "MoeSpec",
    "Norm",
    "Part",
    "Position",
    "QkNorm",
    "SideSpec",
    "TowerSpec",
]


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only language model.

    Attributes
    ----------
    name, architecture : str
        Our name (``llama-2-7b``) and Hugging Face's ``model_type``.
    hidden, vocab : int
        Width of the residual stream; rows of the embedding as stored.
    layers : tuple of LayerSpec
        Every layer on its own; `layer_groups` folds equal ones.
    tied_embeddings : bool
        The output matrix is the embedding: counted and stored once, read at both ends.
    max_context : int
        Positions the model was made for [tokens].
    learned_positions : int
        Rows of a learned position table, offset rows included (OPT stores two more); else 0.
    embed_proj_dim : int or None
        Embedding width where it differs from `hidden` (OPT-350m, through two projections).
    final_norm : bool
        A norm before the output matrix.
    embed_norm : bool
        A norm right after the embedding (BLOOM).
    lm_head_bias : bool
    tables : int
        Elements of tables that tokens look up beside the embedding of `vocab` rows: rows that no output has, other
        embeddings, those of each layer (Gemma 3n) [-].
    sides : tuple of SideSpec
        Small matrices outside the layers that every token passes.
    tower : TowerSpec or None
        Encoder of images that is loaded beside the decoder, no part of its `params`.
    dtype : str
        Format of the published weights: ``bf16``, ``fp16`` or ``fp32``.
    ends : Formats
        Format of the embedding (``embed``) and the output matrix (``lm_head``) where it is not `dtype`; those of the
        layers' matrices stand in each `LayerSpec`.
    rest : Format or None
        Format of what is none of those matrices: routers, norms, biases, tables of positions. None: 16 bit, or fp32
        beside fp32 weights.
    kv_dtype : str or None
        KV cache format that the checkpoint states, a key of `simulator.base.dtypes.KV_FORMATS`.
    method : str
        How the checkpoint was quantised, in its own word; "" where it is not.
    source : str
        Where the numbers come from.
    notes : tuple of str
        What was left out, in words.

    Notes
    -----
    Multi-token-prediction layers (``num_nextn_predict_layers``), audio towers and buffers (DeepSeek's router
    correction) are not part of the model and not counted.
    """

    name: str
    architecture: str
    hidden: int
    vocab: int
    layers: tuple[LayerSpec, ...]
    tied_embeddings: bool
    max_context: int
    learned_positions: int = 0
    embed_proj_dim: int | None = None
    final_norm: bool = True
    embed_norm: bool = False
    lm_head_bias: bool = False
    tables: int = 0
    sides: tuple[SideSpec, ...] = ()
    tower: TowerSpec | None = None
    dtype: str = "bf16"
    ends: Formats = AS_PUBLISHED
    rest: Format | None = None
    kv_dtype: str | None = None
    method: str = ""
    source: str = ""
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        require_positive(self, "hidden", "vocab", "max_context")
        if not self.layers:
            raise InputError(f"model {self.name!r} has no layers")

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, f.name) for f in fields(self) if f.compare))

    def __hash__(self) -> int:
        # Hashing 126 nested layers on every cache look-up would cost more than the answer.
        return self._hash

    @cached_property
    def _groups(self) -> tuple[tuple[LayerSpec, tuple[int, ...]], ...]:
        found: dict[LayerSpec, list[int]] = {}
        for index, layer in enumerate(self.layers):
            found.setdefault(layer, []).append(index)
        return tuple((layer, tuple(indices)) for layer, indices in found.items())

    def layer_groups(self) -> tuple[tuple[LayerSpec, tuple[int, ...]], ...]:
        """Distinct layers with the indices they stand at, in order of first appearance."""
        return self._groups

    @cached_property
    def attentions(self) -> tuple[tuple[AttentionSpec, int], ...]:
        """Attention blocks of distinct layers, and how many layers have each; layers without one are left out."""
        return tuple((layer.attention, len(where)) for layer, where in self._groups if layer.attention is not None)

    @cached_property
    def feed_forwards(self) -> tuple[tuple[FfnSpec, int], ...]:
        """FFN, or one routed expert, of distinct layers, and how many layers have each; layers without are left out."""
        pairs = ((layer.ffn, len(where)) for layer, where in self._groups if layer.ffn is not None)
        return tuple((ffn.expert if isinstance(ffn, MoeSpec) else ffn, layers) for ffn, layers in pairs)

    @property
    def n_attention_layers(self) -> int:
        """Layers with a KV cache; the others keep a state [-]."""
        return sum(layers for _, layers in self.attentions)

    def state_bytes(self, ranks: int = 1) -> float:
        """What a sequence keeps on one of `ranks` GPUs in place of a KV cache, however long it gets [B]."""
        return sum(len(where) * layer.state.state_bytes(ranks) for layer, where in self._groups if layer.state)

    @property
    def n_state_layers(self) -> int:
        """Layers that keep a state [-]."""
        return sum(len(where) for layer, where in self._groups if layer.state)

    @property
    def quantised(self) -> bool:
        """Whether any matrix has another format than `dtype`."""
        return bool(self.ends.listed) or any(layer.formats.listed for layer, _ in self._groups)

    def stored(self, of: Callable[[int | None, str, Format | None], Format | None]) -> ModelSpec:
        """The same model with its matrices in other formats.

        Parameters
        ----------
        of : callable
            Format of a matrix from its layer (None for the ends), its name and its format so far; None is `dtype`.
        """
        layers = tuple(
            replace(layer, formats=Formats.of_each({m: of(i, m, layer.formats.of(m)) for m in layer.matrices}))
            for i, layer in enumerate(self.layers)
        )
        ends = {m: of(None, m, self.ends.of(m)) for m in ("embed", "lm_head")}
        if self.tied_embeddings:
            ends["lm_head"] = ends["embed"]
        return replace(self, layers=layers, ends=Formats.of_each(ends))

    def in_one_format(self) -> ModelSpec:
        """The same model without formats of its layers' matrices; the embedding, which no product reads, keeps its."""
        if not self.quantised:
            return self
        plain = replace(self, rest=None)
        return plain.stored(lambda layer, matrix, fmt: fmt if matrix == "embed" else None)

    @property
    def n_layers(self) -> int:
        """Decoder layers [-]."""
        return len(self.layers)

    @property
    def is_moe(self) -> bool:
        """Whether any layer routes tokens to experts."""
        return any(isinstance(layer.ffn, MoeSpec) for layer, _ in self._groups)

    def params(self, part: Part) -> int:
        """Exact parameter count of one part [-].

        Parameters
        ----------
        part : str
            One of `PARTS`; ``lm_head`` is 0 when it is tied to the embedding, ``projection`` is the
            pair between embedding and hidden width and the small matrices beside the blocks.
        """
        width = self.embed_proj_dim or self.hidden
        if part == "embedding":
            return self.vocab * width + self.tables
        if part == "position":
            return self.learned_positions * self.hidden
        if part == "lm_head":
            matrix = 0 if self.tied_embeddings else self.vocab * width
            return matrix + (self.vocab if self.lm_head_bias else 0)
        if part not in PARTS:
            raise InputError(f"unknown model part {part!r}; parts are {', '.join(PARTS)}")
        total = sum(len(where) * layer.n_params(part, self.hidden) for layer, where in self._groups)
        if part == "projection":
            total += 2 * width * self.hidden if self.embed_proj_dim else 0
            total += sum(side.n_params for side in self.sides)
        if part == "norm":
            total += (int(self.final_norm) + int(self.embed_norm)) * self.layers[-1].norm_params(self.hidden)
        return total

    def params_by_part(self) -> dict[Part, int]:
        """Parameter count of each part [-]; they add up to `n_params`."""
        return {part: self.params(part) for part in PARTS}

    @cached_property
    def n_params(self) -> int:
        """All stored parameters, embeddings, norms and biases included [-]."""
        return sum(self.params_by_part().values())

    @cached_property
    def n_active_params(self) -> int:
        """`n_params` without the routed experts a token does not visit [-].

        Embedding and output matrix count in full, as in Mixtral's 12.9 B; others leave them out.
        """
        idle = 0
        for layer, where in self._groups:
            if isinstance(layer.ffn, MoeSpec):
                moe = layer.ffn
                idle += len(where) * (moe.n_experts - moe.top_k) * moe.expert_params(self.hidden)
        return self.n_params - idle

    def weight_bytes(self, bytes_per_weight: float | Mapping[Part, float]) -> float:
        """Bytes of the stored weights [B], with one width for all or one per part [B]."""
        if isinstance(bytes_per_weight, Mapping):
            missing = [part for part in PARTS if part not in bytes_per_weight]
            if missing:
                raise InputError(f"bytes per weight are missing for {', '.join(missing)}")
            return float(sum(n * bytes_per_weight[p] for p, n in self.params_by_part().items()))
        return self.n_params * bytes_per_weight

    def kv_bytes_per_token(self, bytes_per_element: float = 2.0) -> float:
        """KV cache bytes that one more token adds in all layers while no window is full [B]."""
        elements = sum(
            layers * (attention.kv_elements_per_token + attention.folded_elements_per_token)
            for attention, layers in self.attentions
        )
        return elements * bytes_per_element

    def kv_bytes(self, tokens: ArrayLike, bytes_per_element: float = 2.0) -> NDArray[np.float64]:
        """KV cache bytes of one sequence, a windowed layer keeping its window only [B].

        Parameters
        ----------
        tokens : array_like
            Context lengths [tokens], any shape; the answer has the same.
        """
        length = np.asarray(tokens, dtype=np.float64)
        total = np.zeros_like(length)
        for attention, layers in self.attentions:
            seen = length if attention.window is None else np.minimum(length, attention.window)
            total += seen * (layers * attention.kv_elements_per_token)
            total += length * (layers * attention.folded_elements_per_token)
        return total * bytes_per_element
