"""What a policy says of itself and where it can be run: one card for the terminal, the dashboard and the site."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from inspect import cleandoc
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from simulator.ops.union_law import UnionLaw, default_law
from simulator.policies.base import Policy
from simulator.policies.grammar import POLICIES
from simulator.policies.software import Software, software

WORDS = (("from", "ge"), ("above", "gt"), ("to", "le"), ("below", "lt"))
"""Bounds in words, and as pydantic calls them."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a policy.

    Attributes
    ----------
    choices : tuple of str
        Texts it may be; empty where it is a number.
    low, high : float or None
        Least and largest number [-].
    range : str
        The same in words.
    """

    name: str
    default: Any
    meaning: str
    choices: tuple[str, ...]
    low: float | None
    high: float | None
    range: str

    @classmethod
    def of(cls, name: str, field: FieldInfo) -> Parameter:
        """Parameter of a policy's field."""
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        bounds = {key: float(getattr(rule, key)) for rule in field.metadata for _, key in WORDS if hasattr(rule, key)}
        words = " ".join(f"{word} {bounds[key]:g}" for word, key in WORDS if key in bounds)
        if field.annotation is bool:
            words = "true | false"
        low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
        return cls(
            name, field.default, field.description or "", choices, low, high, " | ".join(map(str, choices)) or words
        )


@dataclass(frozen=True)
class Card:
    """A policy's facts, its parameters, what else it goes with and its software."""

    policy: type[Policy]
    software: Software
    parameters: tuple[Parameter, ...]

    @classmethod
    def of(cls, name: str) -> Card:
        """Card of a policy by name.

        Raises
        ------
        UnknownNameError
            Nobody registered it.
        """
        policy = POLICIES[name]
        parameters = tuple(Parameter.of(k, f) for k, f in policy.model_fields.items())
        return cls(policy, software().get(name, Software()), parameters)

    @property
    def mechanism(self) -> str:
        """How it works: the docstring of its class without the references, which the citation repeats."""
        return cleandoc(self.policy.__doc__ or "").partition("\nReferences\n---")[0].strip()

    @property
    def goes_with(self) -> dict[str, str]:
        """What else the engine may do while it is on, in words."""
        told = asdict(self.policy.compatibility)
        return {k.replace("_", " "): v if isinstance(v, str) else "yes" if v else "no" for k, v in told.items()}

    @property
    def runs_in(self) -> str:
        """Its software in words."""
        known = [f"{k}: {v}" if k != "note" else v for k, v in self.software.model_dump().items() if v]
        return "; ".join(known) or "none known"

    @property
    def unions(self) -> tuple[UnionLaw, ...]:
        """Whose curves the unions over the rows of a batch follow without a trace."""
        return tuple(default_law(name, "", "silu")[1] for name in self.policy.unites)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        p = self.policy
        return {
            "policy": p.name,
            "family": p.family,
            "summary": p.summary,
            "alias_of": p.alias_of,
            "citation": p.citation,
            "rewrites": sorted(a.value for a in p.aspects),
            "not_modelled": p.not_modelled,
            "software": self.software.model_dump(),
            "unions": [asdict(law) for law in self.unions],
            "kernels": [k.to_dict() for k in p.kernels()],
            "mechanism": (p.__doc__ or "").strip(),
            "parameters": [
                {k: getattr(x, k) for k in ("name", "default", "range", "meaning")} for x in self.parameters
            ],
            "compatible": asdict(p.compatibility),
        }
