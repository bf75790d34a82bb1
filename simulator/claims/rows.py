"""Published figures as rows: what a row says, and how committed and further files are read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simulator.base.errors import InputError, suggest
from simulator.base.files import parse_toml as parse_document
from simulator.base.files import read_limited
from simulator.base.parquet import read_parquet
from simulator.claims.metrics import check_metric

MOST_BYTES, MOST_ROWS = 16 * 2**20, 1_000_000
MISSES = ("baseline artefact", "framework overhead", "model gap")
"""Why a prediction is off: the paper's baseline is unusually slow, its framework adds work, or we err."""


class Claim(BaseModel):
    """One published figure with its setup.

    `scenario` holds the fields of `Scenario` (a whole model) or of `KernelScenario` (has `ops`), none assumed.
    `baseline_scenario` holds the fields that differ from it. `value` is in SI units as the metric's suffix says;
    `baseline_value` is what the source prints for the baseline, which makes an absolute row a speed-up too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    claim_id: str = Field(min_length=1)
    paper: str = Field(min_length=1)
    family: str = ""
    scenario: dict[str, Any]
    baseline_scenario: dict[str, Any] | None = None
    metric: str
    value: float = Field(gt=0.0)
    baseline_value: float | None = Field(None, gt=0.0)
    source: str = Field(min_length=1)
    certainty: str = Field(min_length=1)
    used_for_calibration: bool

    @property
    def kind(self) -> str:
        """'kernel' or 'e2e'."""
        return "kernel" if "ops" in self.scenario else "e2e"

    @property
    def baseline(self) -> dict[str, Any] | None:
        """The baseline's scenario in full."""
        if self.baseline_scenario is None:
            return None
        return {**self.scenario, **self.baseline_scenario}


@dataclass(frozen=True)
class PaperClaims:
    """Rows of one file with what was found out about them.

    Attributes
    ----------
    explained : dict
        Claim to (class, reason) that is printed where its prediction misses.
    wrong : dict
        Claim to the argument why the published figure itself cannot be right.
    incomplete : dict
        Claim to (paper, what its source leaves open); such rows have no scenario.
    calibrating : frozenset
        Incomplete claims that a constant was taken from.
    systems : dict
        Paper to the policy it is about, where that has another name than the paper.
    """

    paper: str
    family: str
    claims: tuple[Claim, ...]
    explained: dict[str, tuple[str, str]] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    incomplete: dict[str, tuple[str, str]] = field(default_factory=dict)
    calibrating: frozenset[str] = frozenset()
    systems: dict[str, str] = field(default_factory=dict)


def read_committed() -> tuple[PaperClaims, ...]:
    """All papers of this package, by file name."""
    folder = resources.files("simulator.claims")
    names = sorted(f.name for f in folder.iterdir() if f.name.endswith(".toml"))
    papers = tuple(parse_toml(folder.joinpath(n).read_text("utf-8"), n) for n in names)
    _unique((c.claim_id for p in papers for c in p.claims), "simulator/claims")
    return papers


def read_file(path: Path) -> tuple[PaperClaims, ...]:
    """Rows of a TOML file like the committed ones, or of a CSV or Parquet table with a row's fields as columns."""
    if not path.is_file():
        raise InputError(f"no such file: {path}", where="--data")
    if path.suffix not in (".toml", ".csv", ".parquet"):
        raise InputError(f"{path}: write a .toml, .csv or .parquet file", where="--data")
    if path.suffix == ".toml":
        try:
            found = (parse_toml(read_limited(path, MOST_BYTES).decode("utf-8"), str(path)),)
        except UnicodeDecodeError as error:
            raise InputError(f"not UTF-8 at byte {error.start}", where=str(path)) from None
    else:
        found = _by_paper(_table_rows(path))
    if not any(p.claims or p.incomplete for p in found):
        raise InputError("holds no claims; write at least one [[claims]] or row", where=str(path))
    return found


def parse_toml(text: str, name: str) -> PaperClaims:
    """One paper's file; `name` stands in error messages."""
    table = parse_document(text, name)
    known = ("paper", "arxiv", "family", "system", "claims", "explained", "wrong", "incomplete")
    _known_keys(table, known, name)
    head = {k: table.get(k, "") for k in ("paper", "family")}
    claims = tuple(_claim({**head, **row}, name) for row in _tables(table, "claims", name))
    _unique((c.claim_id for c in claims), name)
    ids = {c.claim_id for c in claims}
    explained: dict[str, tuple[str, str]] = {}
    for entry in _entries(table, "explained", ("class", "why", "claims"), name):
        if entry["class"] not in MISSES:
            raise InputError(f"class {entry['class']!r}; write one of {', '.join(MISSES)}", where=name)
        explained.update(dict.fromkeys(entry["claims"], (entry["class"], entry["why"])))
    wrong: dict[str, str] = {}
    for entry in _entries(table, "wrong", ("why", "claims"), name):
        wrong.update(dict.fromkeys(entry["claims"], entry["why"]))
    incomplete: dict[str, tuple[str, str]] = {}
    calibrating: set[str] = set()
    systems: dict[str, str] = {head["paper"]: table["system"]} if "system" in table else {}
    for entry in _entries(
        table, "incomplete", ("missing", "claims"), name, ("paper", "system", "used_for_calibration")
    ):
        of = entry.get("paper", head["paper"])
        if "system" in entry:
            systems[of] = entry["system"]
        incomplete.update(dict.fromkeys(entry["claims"], (of, entry["missing"])))
        if entry.get("used_for_calibration", False):
            calibrating.update(entry["claims"])
    for told in (explained, wrong):
        for claim in told:
            if claim not in ids:
                raise InputError(f"claim {claim!r} is explained but not in [[claims]]", where=name)
    both = ids & set(incomplete)
    if both:
        raise InputError(f"claim {min(both)!r} is complete and incomplete", where=name)
    of = head["paper"] or name
    return PaperClaims(of, head["family"], claims, explained, wrong, incomplete, frozenset(calibrating), systems)


def _entries(
    table: dict[str, Any], key: str, fields: tuple[str, ...], name: str, optional: tuple[str, ...] = ()
) -> Iterator[Any]:
    for entry in _tables(table, key, name):
        _known_keys(entry, (*fields, *optional), name)
        for wanted in fields:
            if wanted not in entry:
                raise InputError(f"an entry of [[{key}]] lacks {wanted!r}", where=name)
        if not isinstance(entry["claims"], list):
            raise InputError(f"claims of [[{key}]] is not a list of ids", where=name)
        yield entry


def _tables(table: dict[str, Any], key: str, name: str) -> list[dict[str, Any]]:
    found = table.get(key, [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise InputError(f"{key} is not a list of tables; write [[{key}]]", where=name)
    return found


def _known_keys(table: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            near = suggest(key, known)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise InputError(f"unknown field {key!r}; {hint}", where=where)


def _claim(row: dict[str, Any], where: str) -> Claim:
    where = f"{where}: {row['claim_id']}" if row.get("claim_id") else where
    _known_keys(row, tuple(Claim.model_fields), where)
    try:
        claim = Claim(**row)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(p) for p in first["loc"])
        raise InputError(f"{key}: {first['msg']}", where=where) from None
    check_metric(claim.metric, claim.kind, claim.baseline is not None, where)
    return claim


def _table_rows(path: Path) -> Iterator[Claim]:
    import pandas as pd

    try:
        if path.suffix == ".csv":
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, nrows=MOST_ROWS)
        else:
            frame = read_parquet(path, MOST_ROWS).to_pandas()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}", where="--data") from None
    for line, row in enumerate(frame.to_dict("records"), start=2):
        where = f"{path}:{line}"
        values = {str(k): v for k, v in row.items() if not _blank(v)}
        for key in ("scenario", "baseline_scenario"):
            if isinstance(values.get(key), str):
                values[key] = _json(values[key], key, where)
        yield _claim(values, where)


def _blank(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and value != value)


def _json(text: str, key: str, where: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{key} is not JSON: {error}", where=where) from None
    return value


def _by_paper(claims: Iterable[Claim]) -> tuple[PaperClaims, ...]:
    found: dict[str, list[Claim]] = {}
    for claim in claims:
        found.setdefault(claim.paper, []).append(claim)
    _unique((c.claim_id for rows in found.values() for c in rows), "--data")
    return tuple(PaperClaims(p, rows[0].family, tuple(rows)) for p, rows in found.items())


def _unique(ids: Iterable[str], where: str) -> None:
    seen: set[str] = set()
    for claim in ids:
        if claim in seen:
            raise InputError(f"claim {claim!r} appears twice", where=where)
        seen.add(claim)


@lru_cache(maxsize=1)
def committed() -> tuple[PaperClaims, ...]:
    """`read_committed`, once per process."""
    return read_committed()
