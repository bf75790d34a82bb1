"""The policy mini-language: ``name(key=value,...)`` joined by ``+``; a list ``[a,b]`` adds an axis."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from pydantic import ValidationError

from simulator.base.errors import InputError, UnknownNameError, suggest
from simulator.base.registry import Registry
from simulator.policies.base import ORDER, Aspect, Context, KvLayout, Policy
from simulator.policies.kernel import IDEAL, PUBLISHED, Kernel

POLICIES: Registry[type[Policy]] = Registry("policy", "shadowline.policies")

FREE = "free"
"""In the place of a policy: dense and every `free_names`."""
NOT_FREE = ("token pruning", "kv allocation", "dense")
"""Families that word leaves out: they change the task (vision tokens) or are baselines."""

_TERM = re.compile(r"\s*([A-Za-z_][\w-]*)\s*(?:\((.*)\))?\s*", re.DOTALL)
_FLAG = "--policy"
_KERNEL = "--kernel"
MAX_TEXT = 2000
MAX_VARIANTS = 1000


@dataclass(frozen=True)
class Policies:
    """Policies that run together, in the order they are applied; empty means dense.

    Attributes
    ----------
    ideal : bool
        Timed as the bound of `simulator.policies.ideal`, not as any kernel.
    asked : str
        How they were spelled before a kernel was chosen for them; "" where none was.
    """

    members: tuple[Policy, ...] = ()
    ideal: bool = False
    asked: str = ""

    @property
    def spelling(self) -> str:
        """Canonical text, equal for equal policies whatever order they were written in."""
        return self.asked or "+".join(p.spelling for p in self.members) or "dense"

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernel each member is taken to run in."""
        return tuple(k for p in self.members if (k := p.kernel_used) is not None)

    @property
    def kernel(self) -> str:
        """Their names; "" for dense."""
        return IDEAL if self.ideal else "+".join(k.name for k in self.kernels)

    def on(self, kernel: str, engine: str = "") -> Policies:
        """The same policies in a kernel of one or more of them, `PUBLISHED` or `IDEAL`.

        An engine that runs a policy in a kernel of its own has that for the published one.

        Raises
        ------
        InputError
            Dense, which takes none.
        UnknownNameError
            A kernel that no member has.
        """
        if kernel == PUBLISHED:
            own = [next((k for k in p.kernels() if k.runs_in(engine)), None) for p in self.members]
            return self._with(own) if any(own) else self
        if not self.members:
            raise InputError(f"dense takes no kernel; drop {kernel!r} or give a --policy", where=_KERNEL)
        if kernel == IDEAL:
            return replace(self, members=tuple(p.leanest for p in self.members), ideal=True, asked=self.spelling)
        chosen = [next((k for k in p.kernels() if k.name == kernel), None) for p in self.members]
        if not any(chosen):
            names = [k.name for p in self.members for k in p.kernels()]
            raise UnknownNameError(f"kernel of {self.spelling}", kernel, [PUBLISHED, IDEAL, *names], where=_KERNEL)
        return self._with(chosen)

    def _with(self, chosen: Sequence[Kernel | None]) -> Policies:
        members = tuple(p.with_parameters(k.sets if k else {}) for p, k in zip(self.members, chosen, strict=True))
        return replace(self, members=members, asked=self.spelling)

    def __str__(self) -> str:
        return self.spelling

    def layer_key(self, index: int, n_layers: int) -> tuple[object, ...]:
        """Key of one layer over all members."""
        return tuple(p.layer_key(index, n_layers) for p in self.members)

    def layout(self, kv: KvLayout, ctx: Context) -> KvLayout:
        """The KV cache after every member."""
        for policy in self.members:
            kv = policy.layout(kv, ctx)
        return kv


@lru_cache(maxsize=4096)
def parse(text: str) -> Policies:
    """Policies of one spelling without lists.

    Raises
    ------
    InputError
        Bad syntax, unknown parameter, value out of range, or members that rewrite the same thing.
    UnknownNameError
        A policy nobody registered.
    """
    found = expand(text)
    if len(found) != 1:
        raise InputError(f"policy {text!r} spells {len(found)} policies; one is needed here", where=_FLAG)
    return found[0]


def expand(text: str) -> list[Policies]:
    """All policies a spelling stands for: lists multiply, in the order written."""
    if len(text) > MAX_TEXT:
        raise InputError(f"policy text of {len(text)} characters; at most {MAX_TEXT}", where=_FLAG)
    terms = split(text, "+")
    if not terms or any(not t.strip() for t in terms):
        raise InputError(f"policy {text!r} has an empty part; write e.g. 'mustafar(keep=0.3)+w4a16'", where=_FLAG)
    variants = [_term(term) for term in terms]
    total = 1
    for choice in variants:
        total *= len(choice)
    if total > MAX_VARIANTS:
        raise InputError(f"policy {text[:60]!r} spells {total} variants; at most {MAX_VARIANTS}", where=_FLAG)
    return [_compose(members, text) for members in itertools.product(*variants)]


def in_kernel(policy: str, kernel: str, speculate: str = "") -> str:
    """Spelling of a policy with its kernel, where that is not the one its parameters mean, and with who drafts.

    One that has them stays.
    """
    if without_kernel(policy) != policy:
        return policy
    label = policy if kernel in ("", parse(policy).kernel) else f"{policy}, {kernel} kernel"
    return f"{label}, {speculate}" if speculate else label


def without_kernel(label: str) -> str:
    """Spelling of the policy in what `in_kernel` made; a spelling holds no space."""
    return label.partition(", ")[0]


def free_names() -> list[str]:
    """Policies `FREE` stands for, at their defaults: each mechanism once, for GPUs, none that changes the task."""
    return [
        n
        for n in POLICIES
        if POLICIES[n].family not in NOT_FREE and not POLICIES[n].alias_of and POLICIES[n].hardware == "gpu"
    ]


def _term(text: str) -> list[Policy]:
    name, values = read_call(text, "policy", _FLAG)
    try:
        cls = POLICIES[name]
    except UnknownNameError as error:
        raise UnknownNameError("policy", name, POLICIES, where=_FLAG) from error
    for key in values:
        if key not in cls.model_fields:
            raise no_parameter(cls.name, key, cls.model_fields, _FLAG)
    choices = {key: listed(value) for key, value in values.items()}
    count = math.prod(len(several) for several in choices.values())
    if count > MAX_VARIANTS:
        raise InputError(f"{cls.name}: {count} variants; at most {MAX_VARIANTS}", where=_FLAG)
    return [_build(cls, dict(zip(choices, given, strict=True))) for given in itertools.product(*choices.values())]


def _build(cls: type[Policy], given: dict[str, str]) -> Policy:
    try:
        return cls.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        said = first["msg"].removeprefix("Value error, ")
        what = f"{key}={given[key]}: " if key in given else f"{key}: " if key else ""
        raise InputError(f"{cls.name}: {what}{said}", where=_FLAG) from None


def _compose(members: tuple[Policy, ...], text: str) -> Policies:
    taken: dict[Aspect, Policy] = {}
    real = [m for m in members if m.aspects]
    if len(real) < len(members) and len(members) > 1:
        raise InputError("dense cannot be combined with another policy", where=_FLAG)
    for policy in real:
        for aspect in policy.aspects:
            if aspect in taken:
                raise InputError(
                    f"{taken[aspect].name} and {policy.name} both rewrite the {aspect.value}; use one of them",
                    where=_FLAG,
                )
            taken[aspect] = policy
    return Policies(tuple(sorted(real, key=lambda p: (_place(p), p.name))))


def _place(policy: Policy) -> int:
    """Place in the order of application: that of the first KV aspect, else of the first aspect."""
    places = [ORDER.index(a) for a in policy.aspects]
    of_kv = [p for p in places if p >= ORDER.index(Aspect.KV_TOKENS)]
    return min(of_kv or places)


def read_call(text: str, what: str, where: str) -> tuple[str, dict[str, str]]:
    """Name and values, as text, of ``name(key=value,...)``.

    Parameters
    ----------
    what, where : str
        What it spells and the flag it came from, for the error.

    Raises
    ------
    InputError
        Another syntax, or a key given twice.
    """
    match = _TERM.fullmatch(text)
    if match is None:
        raise InputError(f"cannot read {what} {text.strip()!r}; write name(key=value,...)", where=where)
    name, inside = match.group(1), match.group(2)
    values: dict[str, str] = {}
    for part in split(inside, ",", what, where) if inside and inside.strip() else []:
        key, equals, value = part.partition("=")
        key, value = key.strip(), value.strip()
        if not equals or not key or not value:
            raise InputError(f"{name}: cannot read {part.strip()!r}; write key=value", where=where)
        if key in values:
            raise InputError(f"{name}: parameter {key!r} is given twice", where=where)
        values[key] = value
    return name, values


def listed(value: str) -> list[str]:
    """Values of ``[a,b]``, or the one value."""
    return [v.strip() for v in value[1:-1].split(",")] if value.startswith("[") and value.endswith("]") else [value]


def no_parameter(name: str, key: str, known: Collection[str], where: str) -> InputError:
    """The error for a key that `name` does not take, with the nearest one or all it has."""
    near = suggest(key, known)
    has = f"it has: {', '.join(known)}" if known else "it has none"
    return InputError(f"{name} has no parameter {key!r}; {f'did you mean {near[0]!r}?' if near else has}", where=where)


def split(text: str, separator: str, what: str = "policy", where: str = _FLAG) -> list[str]:
    """Parts of `text` between separators that stand outside brackets."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        if char in "([":
            depth += 1
        elif char in ")]":
            depth -= 1
            if depth < 0:
                break
        elif char == separator and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    if depth != 0:
        raise InputError(f"{what} {text!r}: brackets do not match", where=where)
    parts.append(text[start:])
    return parts
