"""Which matrices a model has, what they are called together, and the format each is stored in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from simulator.base.dtypes import AUTO, LAYOUTS, Format, get_format
from simulator.base.errors import InputError, UnknownNameError


class Product(NamedTuple):
    """A product with a weight matrix: its name, and outputs and inputs of each of so many `groups` of it [-]."""

    matrix: str
    n: float
    k: float
    groups: float = 1.0

    @property
    def weights(self) -> float:
        """Elements of the matrix [-]."""
        return self.groups * self.n * self.k


INDEXER = ("indexer.q", "indexer.k")
"""Matrices of an indexer; the weights of its heads stay in 16 bit."""
STATE = ("state.in", "state.gates", "state.gate_down", "state.gate_up", "state.out")
"""Matrices of a layer that keeps a state in place of a KV cache."""
LATENT = ("moe.latent_down", "moe.latent_up")
"""Matrices around experts that are narrower than the model; every token passes them, as it does a shared expert."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "attention": (
        *("attn.qkv", "attn.q_down", "attn.q_up", "attn.kv_down", "attn.kv_up", "attn.fold", "attn.o_down", "attn.o"),
        *INDEXER,
        *STATE,
    ),
    "ffn": ("mlp.gate_up", "mlp.up", "mlp.down"),
    "experts": ("moe.experts",),
    "shared_expert": ("moe.shared.gate_up", "moe.shared.up", "moe.shared.down", *LATENT),
    "head": ("lm_head",),
    "embedding": ("embed",),
}
"""Matrices by the group that ``--dtype GROUP=FORMAT`` names; a matrix is called as the op that multiplies by it.

Routers, norms and biases stay in the model's own 16 bit, as in every engine.
"""

GROUP_OF: Mapping[str, str] = {matrix: group for group, matrices in GROUPS.items() for matrix in matrices}


@dataclass(frozen=True, slots=True)
class Formats:
    """Formats of some matrices, by name; a matrix that is not listed has the model's own format."""

    listed: tuple[tuple[str, Format], ...] = ()

    @classmethod
    def of_each(cls, formats: Mapping[str, Format | None]) -> Formats:
        """Formats of a mapping; None where a matrix has the model's own."""
        return cls(tuple(sorted((m, f) for m, f in formats.items() if f is not None)))

    def of(self, matrix: str) -> Format | None:
        """Format of `matrix`, None where it has the model's own."""
        for name, fmt in self.listed:
            if name == matrix:
                return fmt
        return None


MIXES = ("q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m")
"""Mixtures of types that llama.cpp makes of a model; `simulator.model.mixes` says which tensor gets which."""
AS_PUBLISHED = Formats()
"""Every matrix has the model's own format."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What ``--dtype`` asks for: one format for every linear layer, or one for each group it names.

    Attributes
    ----------
    whole : Format or None
        Format of every linear layer of the decoder; None leaves those as published that `groups` does not name.
    groups : tuple
        Pairs of a key of `GROUPS` and its format, in the order of `GROUPS`.
    mix : str
        One of `MIXES` for the whole model, its ends included; "" where none is asked for.
    """

    whole: Format | None = None
    groups: tuple[tuple[str, Format], ...] = ()
    mix: str = ""

    @property
    def formats(self) -> tuple[Format, ...]:
        """Every format that is named."""
        if self.mix:
            return (LAYOUTS[self.mix[:4]],)
        return (self.whole,) if self.whole is not None else tuple(fmt for _, fmt in self.groups)

    def __str__(self) -> str:
        if self.mix:
            return self.mix
        if self.whole is not None:
            return self.whole.spelling
        return ",".join(f"{group}={fmt.spelling}" for group, fmt in self.groups) or AUTO


def choose(text: str) -> Chosen:
    """What a value of ``--dtype`` means: ``auto``, a format, or ``GROUP=FORMAT`` with commas between.

    Raises
    ------
    UnknownNameError, InputError
        A format or group that does not exist, a group named twice.
    """
    text = text.strip().casefold()
    if text == AUTO:
        return Chosen()
    if text in MIXES:
        return Chosen(mix=text)
    if "=" not in text:
        return Chosen(get_format(text))
    found: dict[str, Format] = {}
    for part in text.split(","):
        group, equals, name = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise InputError(f"{part.strip()!r} stands beside GROUP=FORMAT; write its group too", where="--dtype")
        if group not in GROUPS:
            raise UnknownNameError("group of modules", group, GROUPS, where="--dtype")
        if group in found:
            raise InputError(f"{group} is named twice", where="--dtype")
        found[group] = get_format(name)
    return Chosen(None, tuple((group, found[group]) for group in GROUPS if group in found))


def apart(items: Iterable[str]) -> tuple[str, ...]:
    """Values of a list of dtypes: neighbouring ``GROUP=FORMAT`` are one value until a group comes again."""
    out: list[str] = []
    open_groups: set[str] = set()
    for item in items:
        group, equals, _ = item.partition("=")
        if equals and open_groups and group not in open_groups:
            out[-1] += f",{item}"
        else:
            out.append(item)
            open_groups = set()
        if equals:
            open_groups.add(group)
    return tuple(dict.fromkeys(out))
