"""The one noun that the command line, a URL, a file and Python share."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qsl, urlencode

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError, field_validator, model_validator

from simulator.base.dtypes import AUTO, KV_FORMATS
from simulator.base.errors import InputError, UnknownNameError, suggest
from simulator.model.formats import choose
from simulator.policies import PUBLISHED, Aspect, Policies, parse
from simulator.scenario.fields import A2A, LOAD, Fields, flag
from simulator.scenario.speculation import speculation


class Scenario(Fields, BaseModel):
    """A model on devices under a load and a policy; every field has one flag of the same name.

    Names are kept as written; `simulator.scenario.catalogue` resolves them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    _policies: Policies = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Parse the policy once; `policy` stays what files and links spell."""
        self._policies = parse(self.policy).on(self.kernel, self.engine)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """The same scenario with other fields, which are not checked again."""
        copy = super().model_copy(update=update, deep=deep)
        copy._policies = parse(copy.policy).on(copy.kernel, copy.engine)
        return copy

    @property
    def dense(self) -> Self:
        """The same scenario without policies and speculation."""
        return self.model_copy(update={"policy": "dense", "kernel": PUBLISHED, "speculate": ""})

    @property
    def policies(self) -> Policies:
        """The policies that `policy` spells, in the kernel that `kernel` names."""
        return self._policies

    @field_validator("policy")
    @classmethod
    def _canonical(cls, text: str) -> str:
        return parse(text).spelling

    @field_validator("speculate")
    @classmethod
    def _known_speculation(cls, text: str) -> str:
        return str(speculation(text) or "")

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, text: str) -> str:
        return str(choose(text))

    @field_validator("kv_cache_dtype")
    @classmethod
    def _known_kv(cls, text: str) -> str:
        if text.casefold() not in (*KV_FORMATS, AUTO):
            raise UnknownNameError("KV dtype", text, (*KV_FORMATS, AUTO), where="--kv-cache-dtype")
        return text.casefold()

    @field_validator("moe_a2a_backend")
    @classmethod
    def _known_a2a(cls, text: str) -> str:
        if text.casefold() not in A2A:
            raise UnknownNameError("all-to-all backend", text, A2A, where="--moe-a2a-backend")
        return text.casefold()

    @model_validator(mode="after")
    def _has_a_trace_to_transfer(self) -> Self:
        if self.trace_transfer and not self.trace:
            raise InputError("there is no trace to transfer; add --trace DIR", where="--trace-transfer")
        return self

    @model_validator(mode="after")
    def _one_format_each(self) -> Self:
        for policy in self.policies.members:
            if Aspect.KV_FORMAT in policy.aspects and KV_FORMATS.get(self.kv_cache_dtype, 2.0) < 2.0:
                raise InputError(
                    f"{policy.name} sets the KV format itself; drop --kv-cache-dtype {self.kv_cache_dtype}",
                    where="--policy",
                )
            narrow = (fmt for fmt in choose(self.dtype).formats if fmt.weight_bits < 16)
            if any(policy.weight_format(fmt).name != fmt.name for fmt in narrow):
                raise InputError(
                    f"{policy.name} sets the weight format itself; drop --dtype {self.dtype}", where="--policy"
                )
        return self

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))

    # Hidden from type checkers, which take the arguments from the fields.
    if not TYPE_CHECKING:

        def __init__(self, **values: Any):
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise InputError(*_explain(error, type(self))) from None

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Scenario of values of any type, which are read as a flag's would be."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Fields that differ from their default, model and device always."""
        return self.model_dump(exclude_defaults=True)

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads back."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of `to_json`."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"scenario is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise InputError("scenario JSON must be an object of field names to values")
        return cls.of(**{str(k): v for k, v in values.items()})

    def to_query(self) -> str:
        """Query string of a link, without ``?``."""
        return urlencode({k: _flag_text(v) for k, v in self.to_dict().items()})

    @classmethod
    def from_query(cls, text: str) -> Self:
        """Inverse of `to_query`; repeated and unknown keys are refused."""
        pairs = parse_qsl(text.removeprefix("?"), keep_blank_values=True)
        keys = [k for k, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise InputError(f"query parameter {key!r} is given twice")
        return cls.of(**dict(pairs))

    def to_cli(self) -> list[str]:
        """Arguments of ``python -m simulator.predict`` that mean this scenario."""
        out: list[str] = []
        for key, value in self.to_dict().items():
            out += [flag(key)] if value is True else [flag(key), _flag_text(value)]
        return out

    @property
    def fixed(self) -> tuple[Any, ...]:
        """Every field but the load: what scenarios of one group share."""
        return tuple(v for k, v in self.__dict__.items() if k not in LOAD)

    @property
    def command(self) -> str:
        """Command line that prints this prediction."""
        return "python -m simulator.predict " + shlex.join(self.to_cli())


def _flag_text(value: object) -> str:
    return "true" if value is True else "false" if value is False else str(value)


def _explain(error: ValidationError, cls: type[BaseModel]) -> tuple[str]:
    # A misspelt field explains why another one is missing.
    errors = error.errors()
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    key = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        near = suggest(key, cls.model_fields)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(cls.model_fields)}"
        return (f"unknown field {key!r}; {hint}",)
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    given = first.get("input")
    shown = f" {given!r}" if isinstance(given, str | int | float) else ""
    return (f"{flag(key)}{shown}: {message}",)
