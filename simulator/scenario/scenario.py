"""The one noun that the command line, a URL, a file and Python share."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from simulator.base.dtypes import AUTO, FORMATS, KV_FORMATS
from simulator.base.errors import InputError, UnknownNameError, suggest
from simulator.policies import Aspect, Policies, parse

MAX_TOKENS = 100_000_000
MAX_BATCH = 1_000_000
LOAD = ("batch", "prompt_tokens", "output_tokens")
"""Fields that vary within a group."""


class Scenario(BaseModel):
    """A model on devices under a load and a policy; every field has one flag of the same name.

    Names are kept as written; `simulator.scenario.catalogue` resolves them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=500, description="model name, folder, config.json or hub id")
    device: str = Field(min_length=1, max_length=500, description="device name or profile file")
    policy: str = Field("dense", description="sparsity policy, e.g. 'mustafar(keep=0.3)'")
    engine: str = Field("vllm", description="serving engine whose kernels and host side are assumed")
    dtype: str = Field(AUTO, description="format of the dense weights; auto = as published")
    kv_cache_dtype: str = Field(AUTO, description="format of the dense KV cache; auto = 16 bit")
    tp: int = Field(1, ge=1, le=1024, description="tensor-parallel GPUs")
    pp: int = Field(1, ge=1, le=1024, description="pipeline stages")
    ep: int = Field(1, ge=1, le=1024, description="groups the experts are split between, within tp")
    batch: int = Field(1, ge=1, le=MAX_BATCH, description="sequences in the static batch")
    prompt_tokens: int = Field(512, ge=1, le=MAX_TOKENS, description="prompt tokens per sequence")
    output_tokens: int = Field(128, ge=1, le=MAX_TOKENS, description="output tokens per sequence")
    gpu_memory_utilization: float = Field(
        0.9, gt=0.0, le=1.0, description="share of the driver's total memory the engine may use"
    )
    block_size: int = Field(16, ge=1, le=1024, description="tokens per KV page")
    ignore_context_limit: bool = Field(False, description="predict beyond the model's context")
    trace: str = Field("", max_length=500, description="folder of a measured trace the policy takes its curves from")
    trace_transfer: bool = Field(False, description="use a trace of another model, layers mapped by relative depth")
    _policies: Policies = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Parse the policy once; `policy` stays what files and links spell."""
        self._policies = parse(self.policy)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """The same scenario with other fields, which are not checked again."""
        copy = super().model_copy(update=update, deep=deep)
        copy._policies = parse(copy.policy)
        return copy

    @property
    def policies(self) -> Policies:
        """The policies that `policy` spells."""
        return self._policies

    @field_validator("policy")
    @classmethod
    def _canonical(cls, text: str) -> str:
        return parse(text).spelling

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, text: str) -> str:
        if text.casefold() not in (*FORMATS, AUTO):
            raise UnknownNameError("dtype", text, (*FORMATS, AUTO), where="--dtype")
        return text.casefold()

    @field_validator("kv_cache_dtype")
    @classmethod
    def _known_kv(cls, text: str) -> str:
        if text.casefold() not in (*KV_FORMATS, AUTO):
            raise UnknownNameError("KV dtype", text, (*KV_FORMATS, AUTO), where="--kv-cache-dtype")
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
            sets = self.dtype != AUTO and policy.weight_format(FORMATS[self.dtype]).name != self.dtype
            if sets and FORMATS[self.dtype].weight_bits < 16:
                raise InputError(
                    f"{policy.name} sets the weight format itself; drop --dtype {self.dtype}", where="--policy"
                )
        return self

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Scenario of `values`; a bad one is an `InputError` that names the flag."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise InputError(*_explain(error, cls)) from None

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
            flag = "--" + key.replace("_", "-")
            out += [flag] if value is True else [flag, _flag_text(value)]
        return out

    @classmethod
    def from_cli(cls, arguments: list[str]) -> Self:
        """Inverse of `to_cli`."""
        values: dict[str, Any] = {}
        rest = list(arguments)
        while rest:
            flag = rest.pop(0)
            key = flag.removeprefix("--").replace("-", "_")
            if not flag.startswith("--") or key not in cls.model_fields:
                known = ["--" + name.replace("_", "-") for name in cls.model_fields]
                raise UnknownNameError("flag", flag, known)
            if cls.model_fields[key].annotation is bool:
                values[key] = True
            elif rest:
                values[key] = rest.pop(0)
            else:
                raise InputError("a value is missing", where=flag)
        return cls.of(**values)

    @property
    def fixed(self) -> tuple[Any, ...]:
        """Every field but the load: what scenarios of one group share."""
        return tuple(v for k, v in self.__dict__.items() if k not in LOAD)

    @property
    def command(self) -> str:
        """Command line that prints this prediction."""
        return "python -m simulator.predict " + shlex.join(self.to_cli())

    @property
    def hash(self) -> str:
        """12 hex digits that name this scenario."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]


def _flag_text(value: object) -> str:
    return "true" if value is True else "false" if value is False else str(value)


def _explain(error: ValidationError, cls: type[BaseModel]) -> tuple[str]:
    first = error.errors()[0]
    key = str(first["loc"][0]) if first["loc"] else ""
    flag = "--" + key.replace("_", "-")
    if first["type"] == "extra_forbidden":
        near = suggest(key, cls.model_fields)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(cls.model_fields)}"
        return (f"unknown field {key!r}; {hint}",)
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    given = first.get("input")
    shown = f" {given!r}" if isinstance(given, str | int | float) else ""
    return (f"{flag}{shown}: {message}",)
