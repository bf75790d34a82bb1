"""Quality of policies measured on one model and text: the file that ``python -m traces.quality`` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simulator.base.errors import InputError
from simulator.base.files import read_limited, replaced
from simulator.trace.schema import ModelFacts

KIND = "shadowline.quality"
SCHEMA = 1
MOST_BYTES = 4 * 2**20


class MeasuredPolicy(BaseModel):
    """One policy on the file's text.

    Attributes
    ----------
    policy : str
        Canonical spelling.
    perplexity, dense_perplexity : float
        exp of the mean loss over the scored tokens [-].
    log_ratio_se : float
        Standard error of ln(perplexity over dense's), from its spread over windows of text [nat].
    agreement : float
        Share of next tokens that are dense's [-].
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: str = Field(min_length=1)
    perplexity: float = Field(ge=1.0, allow_inf_nan=False)
    dense_perplexity: float = Field(ge=1.0, allow_inf_nan=False)
    log_ratio_se: float = Field(ge=0.0, allow_inf_nan=False)
    agreement: float = Field(ge=0.0, le=1.0)


class QualityFile(BaseModel):
    """What was measured, on which model and text.

    Attributes
    ----------
    tokens : int
        Tokens scored per policy [-].
    context : float
        Mean tokens a scored token attends to, itself included [tokens].
    settings : dict
        Whatever else decides the numbers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_version: int = Field(default=SCHEMA, alias="schema")
    kind: str = KIND
    model: str = Field(min_length=1)
    revision: str = ""
    config_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    facts: ModelFacts
    text_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    dtype: str
    tokens: int = Field(ge=1)
    context: float = Field(gt=0.0)
    settings: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    created: str = ""
    rows: tuple[MeasuredPolicy, ...] = ()

    def __hash__(self) -> int:
        """Of what tells most files apart; `settings` has no hash."""
        return hash((self.config_sha256, self.text_sha256, self.rows))

    def same_run(self, other: QualityFile) -> bool:
        """Whether rows of both may stand in one file: all alike but the rows, the day and the versions."""
        return self.model_copy(update=_RUN) == other.model_copy(update=_RUN)


_RUN: dict[str, Any] = {"rows": (), "created": "", "versions": {}}


def write_quality(path: Path, found: QualityFile) -> None:
    """Write `path` whole or not at all."""
    with replaced(path) as temporary:
        temporary.write_text(found.model_dump_json(by_alias=True, indent=1) + "\n", "utf-8")


def read_quality(path: Path | str) -> QualityFile:
    """Read a file of `write_quality`.

    Raises
    ------
    InputError
        No such file, or one of another kind or schema.
    """
    return quality_of_text(read_limited(Path(path), MOST_BYTES), str(path))


def quality_of_text(raw: bytes, where: str) -> QualityFile:
    """What the bytes of such a file hold; `where` names it.

    Raises
    ------
    InputError
        They are of another kind or schema.
    """
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON ({error}); make it with python -m traces.quality", where=where) from None
    if not isinstance(values, dict) or values.get("kind") != KIND:
        raise InputError("holds no measured quality; make it with python -m traces.quality", where=where)
    if values.get("schema") != SCHEMA:
        raise InputError(f"schema {values.get('schema')!r} is unknown; measure again", where=where)
    try:
        return QualityFile.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{key}: {first['msg'].lower()}", where=where) from None
