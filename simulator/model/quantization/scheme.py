"""What a checkpoint says of the formats of its modules, and a model with those formats."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import cached_property
from typing import cast

from simulator.base.dtypes import Format
from simulator.base.errors import InputError
from simulator.model.formats import GROUP_OF, LATENT
from simulator.model.layer import LayerSpec, MoeSpec
from simulator.model.names import Naming, modules_of, naming_of, others_of, spellings
from simulator.model.spec import ModelSpec

LONGEST_ENTRY = 500
"""Characters of one name or pattern; longer ones are no module's [-]."""
_NOT_LITERAL = re.compile(r"[*?\[\]^$|+\\()]")
_IN_A_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)(?:\.(.*))?\Z")
_EXPERT = re.compile(r"(\bexperts)\.(\d+)\b")
_NEVER_QUANTISED = re.compile(r"norm|ln_|rotary|bias|score|scale|indexer|conv|sinks|act_fn|A_log|\bhc_")


class Style(Enum):
    """How the entries of a list name modules."""

    EXACT = auto()
    """Whole names, or ``re:`` and a pattern from the start (compressed-tensors)."""
    PART = auto()
    """Parts of a name between dots, patterns, or names with ``*`` (transformers, ModelOpt, quark)."""


@dataclass(frozen=True)
class Listed:
    """Modules by name."""

    entries: tuple[str, ...]
    style: Style = Style.PART

    @cached_property
    def literals(self) -> frozenset[str]:
        """Entries that are names, without patterns."""
        return frozenset(e.rstrip(".") for e in self.entries if not e.startswith("re:") and not self._pattern(e))

    @cached_property
    def _regex(self) -> re.Pattern[str] | None:
        parts = [f"(?:{p})" for e in self.entries if (p := self._pattern(e))]
        return re.compile("|".join(parts)) if parts else None

    def _pattern(self, entry: str) -> str:
        """Regular expression of an entry that is no plain name, "" for one that is."""
        if entry.startswith("re:"):
            text = entry[3:]
        elif self.style is Style.EXACT or not _NOT_LITERAL.search(entry):
            return ""
        elif re.search(r"[\^$|+\\()]", entry):
            text = entry
        else:
            # `block*` stands for the block and all below it, not for its neighbours with longer numbers.
            tree = entry.endswith("*") and entry[-2:-1] not in (".", "*", "")
            text = re.escape(entry.removesuffix("*") if tree else entry).replace(r"\*", ".*").replace(r"\?", ".")
            text += r"(?:\..*)?\Z" if tree or not entry.endswith("*") else ""
        try:
            re.compile(text)
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(f"{entry[:80]!r} in its list of modules is no pattern: {error}") from None
        return text

    def speaks_of(self, name: str) -> bool:
        """Whether an entry names the module `name`."""
        if self._regex is not None and self._regex.match(name):
            return True
        if not self.literals:
            return False
        if self.style is Style.EXACT:
            # An engine's one module of experts stands for those of each.
            return name in self.literals or name.partition(".experts.")[0] + ".experts" in self.literals
        pieces = name.split(".")
        n = len(pieces)
        return any(".".join(pieces[a:b]) in self.literals for a in range(n) for b in range(a + 1, n + 1))


@dataclass(frozen=True)
class Stored:
    """How a matrix of ``n`` outputs and ``k`` inputs is stored.

    Attributes
    ----------
    fmt : Format
        With the bits of a weight and of what belongs to a group of weights.
    per_input, per_output : float
        Bits beside them for every input and output of a module: an order of the inputs, scales of the outputs.
    """

    fmt: Format
    per_input: float = 0.0
    per_output: float = 0.0


@dataclass(frozen=True)
class Rule:
    """Modules that are named, and how they are stored; None: in the model's own 16 bit."""

    modules: Listed
    stored: Stored | None


@dataclass(frozen=True)
class Scheme:
    """What a quantisation config says.

    Attributes
    ----------
    method : str
        Its own word for it.
    default : Stored or None
        Of a linear layer that no rule speaks of.
    rules : tuple of Rule
        The first that speaks of a module decides.
    head, embedding : Stored or None
        Of the ends where no rule speaks of them.
    only : str
        Group of matrices that `default` is for; "" for every linear layer.
    experts : Stored or None
        Of the routed experts where it is another than `default`.
    kv_dtype : str or None
        Stated format of the KV cache.
    """

    method: str
    default: Stored | None
    rules: tuple[Rule, ...] = ()
    head: Stored | None = None
    embedding: Stored | None = None
    only: str = ""
    experts: Stored | None = None
    kv_dtype: str | None = None

    def of(self, path: str, default: Stored | None) -> Stored | None:
        """How the module at `path` is stored."""
        names = spellings(path)
        for rule in self.rules:
            if any(rule.modules.speaks_of(name) for name in names):
                return rule.stored
        return default


def entries(values: object, key: str) -> tuple[str, ...]:
    """Names of modules out of a file, checked to be a list of texts of a sensible length."""
    if not isinstance(values, list | tuple):
        raise InputError(f"key {key!r} must be a list of modules")
    out = tuple(values)
    for value in out:
        if not isinstance(value, str) or not value or len(value) > LONGEST_ENTRY:
            raise InputError(f"key {key!r} lists {str(value)[:40]!r}, which is no module's name")
    return cast(tuple[str, ...], out)


def apply(scheme: Scheme, model: ModelSpec) -> ModelSpec:
    """The model with its matrices stored as `scheme` says.

    Raises
    ------
    InputError
        Modules that one product multiplies by differ, or a list names a module that the model does not have.
    """
    naming = naming_of(model)
    if naming is None:
        if scheme.rules or scheme.only:
            raise InputError(
                f"the modules of {model.architecture!r} are not known by name, so its lists cannot be read"
            )
        naming = Naming()
    else:
        _check_names(scheme, model, naming)
    places: dict[tuple[int | None, str], Stored | None] = {
        (i, m): _of_matrix(scheme, naming, layer, i, m) for i, layer in enumerate(model.layers) for m in layer.matrices
    }
    places[None, "embed"] = scheme.of(naming.embed, scheme.embedding)
    places[None, "lm_head"] = None if model.tied_embeddings else scheme.of(naming.head, scheme.head)
    formats = _with_all_bits(places, model)
    stored = {place: formats[how] if how else None for place, how in places.items()}
    out = model.stored(lambda layer, matrix, _: stored[layer, matrix])
    return replace(out, method=scheme.method, kv_dtype=scheme.kv_dtype)


def _of_matrix(scheme: Scheme, naming: Naming, layer: LayerSpec, index: int, matrix: str) -> Stored | None:
    """How one matrix is stored: as every module that is fused in it."""
    default = scheme.default if scheme.only in ("", GROUP_OF[matrix]) else None
    if matrix == "moe.experts" and scheme.experts is not None:
        default = scheme.experts
    if not scheme.rules:
        return default
    block = naming.layer.format(index)
    experts: tuple[int, ...] = (0,)
    if matrix == "moe.experts":
        assert isinstance(layer.ffn, MoeSpec)
        n = layer.ffn.n_experts
        experts = tuple(dict.fromkeys((0, n // 3, n // 2, n - 1)))
    paths = [f"{block}.{m.format(e)}" for m in modules_of(naming, layer, matrix) for e in experts]
    found = {path: scheme.of(path, default) for path in paths}
    if len(set(found.values())) > 1:
        first = next(iter(found))
        other = next(p for p, how in found.items() if how != found[first])
        raise InputError(
            f"{first} and {other} are stored in different formats, but engines multiply by them as one;"
            " that is not modelled"
        )
    return next(iter(found.values()))


def _check_names(scheme: Scheme, model: ModelSpec, naming: Naming) -> None:
    """Refuse names within the decoder's layers that are no module of theirs, and experts named one by one."""
    known = [_known(naming, layer) for layer in model.layers]
    for rule in scheme.rules:
        numbers: dict[tuple[int, str], set[int]] = {}
        for literal in rule.modules.literals:
            place = _IN_A_LAYER.search(literal)
            if place is None or _outside(literal) or int(place[1]) >= model.n_layers:
                continue
            index, rest = int(place[1]), place[2] or ""
            name = _EXPERT.sub(r"\1.{}", rest)
            if rest and name not in known[index] and not _NEVER_QUANTISED.search(rest):
                raise InputError(f"its list names {literal!r}, which is no module of a {model.architecture} layer")
            if expert := _EXPERT.search(rest):
                numbers.setdefault((index, name), set()).add(int(expert[2]))
        for (index, name), found in numbers.items():
            ffn = model.layers[index].ffn
            if isinstance(ffn, MoeSpec) and len(found) != ffn.n_experts:
                what = f"{len(found)} of {ffn.n_experts} experts in layer {index} ({name})"
                raise InputError(f"its list names {what}; experts of different formats are not modelled")


def _outside(literal: str) -> bool:
    """Whether a name belongs to a tower or a multi-token head, not to the decoder."""
    return bool(re.search(r"vis|audio|mtp|encoder\.layers?\.\d+\.(?!self_attention)|tower|projector|draft", literal))


def _known(naming: Naming, layer: LayerSpec) -> set[str]:
    """Modules of a layer, the blocks around them and what is beside them."""
    names = {m for matrix in layer.matrices for m in modules_of(naming, layer, matrix)} | set(others_of(naming))
    for name in tuple(names):
        pieces = name.split(".")
        names.update(".".join(pieces[:n]) for n in range(1, len(pieces)))
    # An engine's names of what it fuses.
    names |= {f"{naming.attention}.qkv_proj", f"{naming.ffn}.gate_up_proj", f"{naming.attention}.fused_qkv_a_proj"}
    names.add(f"{naming.state}.fused_qkvbfg_a_proj")
    return names


def _with_all_bits(places: Mapping[tuple[int | None, str], Stored | None], model: ModelSpec) -> dict[Stored, Format]:
    """The format of each way of storing, with what modules keep beside their groups spread over their weights."""
    beside: dict[Stored, list[float]] = {}
    for (index, matrix), how in places.items():
        if how is None:
            continue
        total = beside.setdefault(how, [0.0, 0.0])
        layer = None if index is None else model.layers[index]
        for n, k, modules, times in _shapes(model, layer, matrix):
            total[0] += times * (how.per_input * k * modules + how.per_output * n)
            total[1] += times * n * k
    return {
        how: how.fmt if not bits else replace(how.fmt, weight_bits=how.fmt.weight_bits + bits / weights)
        for how, (bits, weights) in beside.items()
    }


def _shapes(model: ModelSpec, layer: LayerSpec | None, matrix: str) -> Iterator[tuple[int, int, int, int]]:
    """(outputs, inputs, modules it is stored as, how often) of a matrix [-]."""
    hidden = model.hidden
    if layer is None:
        yield model.vocab, model.embed_proj_dim or hidden, 1, 1
        return
    a = layer.attention
    block, _, rest = matrix.partition(".")
    if layer.state is not None and block == "state":
        yield from (
            (round(p.n * p.groups), round(p.k), 1, 1) for p in layer.state.products(hidden) if p.matrix == matrix
        )
        return
    if a is not None and a.compressed is not None and block in ("attn", "indexer"):
        products = a.compressed.products(hidden, a.n_heads, a.head_dim)
        yield from ((round(p.n * p.groups), round(p.k), 1, 1) for p in products if p.matrix == matrix)
        return
    if a is not None and a.blocks is not None and block == "indexer":
        heads = a.blocks.n_heads if rest == "q" else 1
        yield heads * a.blocks.head_dim, hidden, 1, 1
        return
    indexer = a and a.indexer
    if a is not None and indexer and block == "indexer" and a.mla is not None:
        rank = a.mla.q_lora_rank or 0
        yield (indexer.n_heads * indexer.head_dim, rank, 1, 1) if rest == "q" else (indexer.head_dim, hidden, 1, 1)
        return
    if a is not None and block == "attn":
        mla = a.mla
        heads_v = a.n_heads * a.v_head_dim
        if matrix == "attn.qkv":
            n = a.q_width + a.kv_width
            yield n, hidden, 1 if a.fused_qkv else 3, 1
        elif matrix == "attn.o":
            yield hidden, heads_v, 1, 1
        elif mla is not None:
            latent = mla.kv_lora_rank
            yield {
                "q_down": (mla.q_lora_rank or 0, hidden, 1, 1),
                "q_up": (a.n_heads * a.head_dim, mla.q_lora_rank or hidden, 1, 1),
                "kv_down": (latent + mla.qk_rope_head_dim, hidden, 1, 1),
                "kv_up": (a.n_heads * mla.qk_nope_head_dim + heads_v, latent, 1, 1),
            }[rest]
        return
    moe = layer.ffn if isinstance(layer.ffn, MoeSpec) else None
    if moe is not None and moe.latent is not None and matrix in LATENT:
        yield (moe.latent, hidden, 1, 1) if matrix == LATENT[0] else (hidden, moe.latent, 1, 1)
        return
    ffn = (
        layer.ffn
        if not isinstance(layer.ffn, MoeSpec)
        else layer.ffn.shared
        if "shared" in matrix
        else layer.ffn.expert
    )
    if ffn is None:
        return
    times = moe.n_experts if moe is not None and matrix == "moe.experts" else 1
    if moe is not None and matrix == "moe.experts" and moe.latent is not None:
        hidden = moe.latent
    if not matrix.endswith("down"):
        yield ffn.n_up * ffn.intermediate, hidden, ffn.n_up, times
    if matrix == "moe.experts" or matrix.endswith("down"):
        yield hidden, ffn.intermediate, 1, times
