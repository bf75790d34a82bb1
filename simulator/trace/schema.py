"""What a trace holds: its tensors and statistics, the columns of its tables, and its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from simulator.base.errors import InputError
from simulator.model.spec import ModelSpec

SCHEMA_VERSION = 1
KIND = "shadowline.trace"
WHOLE_LAYER = -1
"""`head` of a row that is about the layer, not about one head."""

ROWS = (1, 2, 4, 8, 16, 32, 48, 64, 128, 256)
"""Rows at which union densities are measured [tokens of different sequences]."""
KEEPS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares kept per token at which thresholded tensors are measured [-]."""
MASSES = (0.9, 0.95, 0.99)
"""Shares of the attention probability `tokens_for_mass` is measured for [-]."""

TENSORS: Mapping[str, str] = {
    "ffn.in": "input of the gate and up (or first) projection, `hidden` wide",
    "ffn.gate": "act(x W_gate), before the product with up; gated FFN only, `intermediate` wide",
    "ffn.up": "x W_up; gated FFN only, `intermediate` wide",
    "ffn.down": "input of the down (or second) projection: what each FFN neuron puts out, `intermediate` wide",
    "attn.in": "input of the q, k and v projections, `hidden` wide",
    "attn.q": "x W_q before any rotation, heads * head_dim wide",
    "attn.k": "x W_k before any rotation, kv_heads * head_dim wide",
    "attn.v": "x W_v, kv_heads * head_dim wide",
    "attn.o": "input of the output projection: all head outputs side by side",
    "attn.head": "query heads as units, each with the L2 norm of its output before the output projection",
    "attn.kv_head": "KV heads as units: kept if any query head of its group is; `keep` is the query heads'",
    "attn.mass": "attention probabilities of one query over its context",
    "moe.expert": "routed experts as units, kept where the router chose them (NaN level only)",
    "kv.k": "stored keys before any rotation, one vector of head_dim per token and KV head",
    "kv.k_cached": "keys as a cache stores them, after rotation",
    "kv.v": "stored values, likewise",
}
"""Tensors a statistic can be about."""


@dataclass(frozen=True, slots=True)
class Statistic:
    """One measured curve: what its abscissa and value mean, and which tensors have it.

    Attributes
    ----------
    x, value : str
        Meaning and unit of the abscissa and of the value.
    keep : str
        Meaning of the second abscissa; empty where it is always NaN.
    """

    meaning: str
    x: str
    value: str
    equation: str
    tensors: tuple[str, ...]
    keep: str = ""


_WIDE = ("ffn.in", "ffn.gate", "ffn.up", "ffn.down", "attn.in", "attn.q", "attn.k", "attn.v", "attn.o")
_SETS = (*_WIDE, "attn.head", "attn.kv_head", "moe.expert")
_STORED = ("kv.k", "kv.k_cached", "kv.v")
_KEPT = "share kept per token, through one threshold per layer; NaN = the exact non-zeros [-]"

STATISTICS: Mapping[str, Statistic] = {
    "exact_zero": Statistic(
        "share of the elements that are exactly zero", "always 0", "share [-]", "mean(a == 0)", _WIDE
    ),
    "magnitude_quantile": Statistic(
        "quantile of the magnitudes over tokens and units: the threshold of CATS and TEAL",
        "probability [-]",
        "magnitude, in the model's own scale [-]",
        "inf{t : P(|a| <= t) >= x}; keep k needs t at x = 1 - k",
        (*_WIDE, "attn.head", *_STORED),
    ),
    "union_density": Statistic(
        "share of the units that at least one of x tokens of different sequences keeps",
        "rows [tokens]",
        "share [-]",
        "E over draws of x tokens of mean_j 1[max_i |a_ij| >= t_keep] (NaN: any a_ij != 0)",
        _SETS,
        _KEPT,
    ),
    "window_density": Statistic(
        "share of the units that at least one of x consecutive tokens of a sequence keeps",
        "window [tokens]",
        "share [-]",
        "as union_density, over windows of one sequence",
        _SETS,
        _KEPT,
    ),
    "overlap_previous": Statistic(
        "share of a token's kept units that the token x before it kept too",
        "distance [tokens]",
        "share [-]",
        "E |S_t and S_{t-x}| / |S_t|",
        _SETS,
        _KEPT,
    ),
    "head_norm": Statistic(
        "root mean square over tokens of the norm of one head's output",
        "always 0",
        "norm, in the model's own scale [-]",
        "sqrt(E ||a_h||^2)",
        ("attn.head",),
    ),
    "tokens_for_mass": Statistic(
        "share of the context that holds the largest probabilities adding up to `keep`",
        "context [tokens]",
        "share of the context's tokens [-]",
        "E min{n : sum of the n largest p >= keep} / x",
        ("attn.mass",),
        "share of the probability [-]",
    ),
    "topk_hit": Statistic(
        "share of a step's most probable tokens found in an LRU cache of those selected before",
        "cache size as a share of the context [-]",
        "share [-]",
        "E |T_t and C_t| / |T_t|, |T_t| = ceil(keep * context), |C_t| = ceil(x * context); NaN: C_t = T_{t-1}",
        ("attn.mass",),
        "share of the context selected per step; NaN = as much as the cache holds [-]",
    ),
    "locality": Statistic(
        "attention probability on tokens less than x behind the query, first token excluded",
        "distance [tokens]",
        "share of the probability [-]",
        "E sum_{t - j < x, j > 0} p_tj",
        ("attn.mass",),
    ),
    "sink_share": Statistic(
        "attention probability on the first x tokens of the sequence",
        "first tokens [tokens]",
        "share of the probability [-]",
        "E sum_{j < x} p_tj",
        ("attn.mass",),
    ),
    "entropy": Statistic(
        "entropy of one head's attention probabilities",
        "context [tokens]",
        "nat",
        "E -sum_j p_tj ln p_tj",
        ("attn.mass",),
    ),
    "kept_error": Statistic(
        "relative error of keeping the largest share of each token's elements (Mustafar)",
        "kept share [-]",
        "relative L2 error [-]",
        "sqrt(E||v - keep_x(v)||^2 / E||v||^2)",
        _STORED,
    ),
    "singular_energy": Statistic(
        "share of the squared norm in the x largest singular directions, over the tokens of the text",
        "rank [-]",
        "share [-]",
        "sum_{i <= x} s_i^2 / sum_i s_i^2, s of the tokens x head_dim matrix",
        ("kv.k", "kv.v"),
    ),
    "channel_share": Statistic(
        "share of |q_c k_c| that the largest x of the head's channels hold (Double Sparsity labels)",
        "share of channels [-]",
        "share [-]",
        "sum of the ceil(x * head_dim) largest m_c / sum_c m_c, m_c = E|q_c| E|k_c|",
        ("kv.k_cached",),
    ),
    "quant_error": Statistic(
        "relative error of rounding to x bits, asymmetric, keys per channel and values per token (KIVI)",
        "bits [bit]",
        "relative L2 error [-]",
        "sqrt(E||v - q_x(v)||^2 / E||v||^2), groups of 32",
        _STORED,
    ),
}
"""Every statistic of schema 1; `docs/traces.md` prints this table."""

CURVES, NEURONS, QUALITY = "curves.parquet", "neurons.parquet", "quality.parquet"
TABLES: Mapping[str, Mapping[str, str]] = {
    CURVES: {
        "layer": "int16",
        "head": "int16",
        "tensor": "string",
        "statistic": "string",
        "keep": "float64",
        "x": "float64",
        "value": "float64",
        "n": "int64",
    },
    NEURONS: {"layer": "int16", "neuron": "int32", "keep": "float64", "frequency": "float64"},
    QUALITY: {
        "policy": "string",
        "method": "string",
        "criterion": "string",
        "targets": "string",
        "budget": "string",
        "mask": "string",
        "sparsity": "float64",
        "seed": "int64",
        "tokens": "int64",
        "context": "float64",
        "perplexity": "float64",
        "dense_perplexity": "float64",
        "agreement": "float64",
        "recall": "float64",
        "rank_correlation": "float64",
        "weight_bytes_share": "float64",
        "flop_share": "float64",
    },
}
"""Columns of each table with their Arrow types, in file order; NaN is "not measured"."""


MOST_LAYERS, MOST = 10_000, 2**63 - 1
"""Beyond any model; a manifest's numbers stay such that counting with them ends."""


class ModelFacts(BaseModel):
    """What decides whether a trace fits a model without transfer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_layers: int = Field(ge=1, le=MOST_LAYERS)
    hidden: int = Field(ge=1, le=MOST)
    n_heads: int = Field(ge=1, le=MOST)
    n_kv_heads: int = Field(ge=1, le=MOST)
    intermediate: int = Field(ge=1, le=MOST)
    activation: str

    @classmethod
    def of(cls, model: ModelSpec) -> Self:
        """Facts of a model; of the last kind of its attentions and FFNs, of one expert where it has experts."""
        if not model.attentions or not model.feed_forwards:
            raise InputError(f"{model.name} has no attention or no feed-forward block, which traces are taken of")
        attention, ffn = model.attentions[-1][0], model.feed_forwards[-1][0]
        return cls(
            n_layers=model.n_layers,
            hidden=model.hidden,
            n_heads=attention.n_heads,
            n_kv_heads=attention.n_kv_heads,
            intermediate=ffn.intermediate,
            activation=str(ffn.activation),
        )


class FileRecord(BaseModel):
    """One table of the trace: what a truncated or edited file is told by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    rows: int = Field(ge=0, le=MOST)


class Manifest(BaseModel):
    """Where a trace comes from: model, text, seed and versions, and the hash of every table.

    Attributes
    ----------
    model, revision : str
        Hub id or folder name of the model, and its commit ("" for a folder).
    config_sha256 : str
        Of the model's ``config.json`` as read.
    tokens : int
        Tokens measured [-].
    created : str
        Day, ISO 8601; hours would make two equal runs differ.
    settings : dict
        Whatever else decides the numbers: sequence length, number of sequences, draws.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_version: int = Field(default=SCHEMA_VERSION, alias="schema")
    kind: str = KIND
    model: str = Field(min_length=1)
    revision: str = ""
    config_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    facts: ModelFacts
    text_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    tokens: int = Field(ge=1, le=MOST)
    seed: int = Field(ge=-MOST, le=MOST)
    dtype: str
    versions: dict[str, str]
    created: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    settings: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, FileRecord] = Field(default_factory=dict)
