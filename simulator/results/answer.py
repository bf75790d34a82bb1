"""What is told of points: named figures with their intervals, of one point or of many."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter, truediv
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import numpy as np

from simulator.base.interval import Interval, N
from simulator.inference.evaluate import end_to_end, rate
from simulator.inference.status import Status
from simulator.results.columns import COLUMNS, arrow_schema
from simulator.results.loss import short, told
from simulator.results.verdict import Verdict, verdict, verdicts

if TYPE_CHECKING:
    import pyarrow as pa

S = TypeVar("S")
_OF = {name: attrgetter(column.at or name) for name, column in COLUMNS.items()}
WORDS = tuple(map(str, Verdict))
_AT = {column.at or name: name for name, column in COLUMNS.items()}


@dataclass(frozen=True, eq=False)
class Words:
    """Text of n rows.

    Attributes
    ----------
    codes : ndarray of int, shape (n,)
        Index into `words`; -1 where there is no text.
    """

    codes: np.ndarray
    words: Sequence[str]

    @classmethod
    def same(cls, word: str, n: int) -> Words:
        """One text for all rows; "" is none."""
        return cls(np.broadcast_to(np.int32(0 if word else -1), n), [word])

    def __getitem__(self, row: int) -> str:
        code = int(self.codes[row])
        return self.words[code] if code >= 0 else ""

    def is_(self, word: str) -> np.ndarray:
        """Mask of the rows with that text."""
        return self.codes == (self.words.index(word) if word in self.words else -2)

    def take(self, rows: np.ndarray) -> Words:
        """Some of the rows, in the order given."""
        return Words(self.codes[rows], self.words)

    def names(self) -> list[str]:
        """Each text once, in the order of its first row."""
        seen, first = np.unique(self.codes, return_index=True)
        return [self.words[int(c)] for c in seen[np.argsort(first)] if c >= 0]

    @staticmethod
    def joined(parts: Sequence[Words]) -> Words:
        """Rows of all parts, one after another."""
        known: dict[str, int] = {}
        own = [
            np.array([*(-1 if w is None else known.setdefault(w, len(known)) for w in p.words), -1], np.int32)
            for p in parts
        ]
        return Words(np.concatenate([o[p.codes] for o, p in zip(own, parts, strict=True)]), list(known))


@dataclass(frozen=True, eq=False, kw_only=True)
class Answer(Generic[S, N]):
    """What is told of a policy at a load, beside dense.

    A `Row` is one point, of texts and numbers; `Rows` are many, of `Words` and arrays of shape (n,). What is not
    known or does not apply is "" and NaN. `simulator.results.columns.COLUMNS` has the unit and meaning of each.

    Attributes
    ----------
    speedup, speedup_at_max_batch : Interval
        tokens/s over dense's at this batch, and each at its own largest batch [-].
    points_lost : Interval
        Loss of quality against dense [points].
    """

    model: S
    device: S
    policy: S
    kernel: S
    speculate: S
    engine: S
    software: S
    dtype: S
    kv_dtype: S
    tp: N
    pp: N
    ep: N
    dp_attention: N
    batch: N
    prompt_tokens: N
    output_tokens: N
    status: S
    reason: S
    ttft_s: Interval[N]
    tpot_s: Interval[N]
    e2e_s: Interval[N]
    tokens_per_s: Interval[N]
    basis: S
    bound: S
    mode: S
    weights_bytes: N
    kv_bytes: N
    other_bytes: N
    total_bytes: N
    capacity_bytes: N
    max_batch: N
    dense_max_batch: N
    ttft_speedup: Interval[N]
    tpot_speedup: Interval[N]
    speedup: Interval[N]
    speedup_at_max_batch: Interval[N]
    energy_j_per_token: N
    usd_per_mtoken: N
    quality_perplexity_ratio: N
    quality_agreement: N
    points_lost: Interval[N]
    quality_basis: S
    quality_source: S

    @property
    def is_dense(self: Row) -> bool:
        """Whether nothing is done to the model and its steps."""
        return self.policy == "dense" and not self.speculate

    @property
    def gpus(self) -> N:
        """GPUs of one replica [-]."""
        tp: Any = self.tp
        return tp * self.pp

    @property
    def tokens_per_s_per_gpu(self) -> Interval[N]:
        """Output tokens of the batch per second and GPU [1/s]."""
        return self.tokens_per_s.each(lambda rate: truediv(rate, self.gpus))

    @property
    def p_win(self) -> Any:
        """Probability that it is faster than dense at this batch [-]."""
        return _above_one(self.speedup)

    @property
    def ttft_p_win(self) -> Any:
        """The same of its TTFT [-]."""
        return _above_one(self.ttft_speedup)

    @property
    def tpot_p_win(self) -> Any:
        """The same of its TPOT [-]."""
        return _above_one(self.tpot_speedup)

    @property
    def max_batch_p_win(self) -> Any:
        """The same of its tokens/s, each at its own largest batch [-]."""
        return _above_one(self.speedup_at_max_batch)

    @property
    def verdict(self) -> Any:
        """`Verdict` at this batch; `Words` of many rows."""
        speedup: Interval[Any] = self.speedup
        return Words(verdicts(speedup), WORDS) if isinstance(self.status, Words) else verdict(speedup)

    @property
    def loss(self: Row) -> str:
        """Loss of quality for a cell of a table, "loss unknown" where there is no figure."""
        return short(self.points_lost, self.quality_basis)

    @property
    def loss_in_words(self: Row) -> str:
        """Loss of quality for a sentence, with where it comes from."""
        return told(self.points_lost, self.quality_basis, self.quality_source)

    @property
    def timed(self) -> Any:
        """Whether there are times: it runs, or would in more memory."""
        return np.isfinite(np.asarray(self.ttft_s.mid))

    @property
    def n(self: Rows) -> int:
        """Rows."""
        return len(self.batch)

    @property
    def ok(self) -> Any:
        """Whether it runs; a mask of many rows."""
        word = Status.OK.word
        return self.status.is_(word) if isinstance(self.status, Words) else self.status == word

    def at(self: Rows, row: int) -> Row:
        """One row."""
        return _each([self], lambda p: p[0][row], lambda p: float(p[0][row]))

    def take(self: Rows, rows: np.ndarray) -> Rows:
        """Some of the rows, in the order given."""
        return _each([self], lambda p: p[0].take(rows), lambda p: p[0][rows])

    def to_dict(self: Row) -> dict[str, str | float | int | None]:
        """One row as plain values; absent ones are None."""
        out: dict[str, str | float | int | None] = {}
        for name, column in COLUMNS.items():
            value = _OF[name](self)
            if column.kind == "text":
                out[name] = value or None
            else:
                out[name] = None if not np.isfinite(value) else int(value) if column.kind == "whole" else value
        return out

    def to_arrow(self: Rows) -> pa.Table:
        """Arrow table with dictionary-encoded text; absent numbers are null."""
        import pyarrow as pa

        arrays = []
        for name, column in COLUMNS.items():
            value = _OF[name](self)
            if column.kind == "text":
                index = pa.array(np.asarray(value.codes, np.int32), mask=np.asarray(value.codes) < 0)
                arrays.append(pa.DictionaryArray.from_arrays(index, pa.array(value.words, pa.string())))
            elif column.kind == "whole":
                real = np.asarray(value, float)
                missing = ~np.isfinite(real)
                arrays.append(pa.array(np.where(missing, 0, real).astype(np.int64), mask=missing))
            else:
                real = np.asarray(value, float)
                arrays.append(pa.array(real, mask=~np.isfinite(real)))
        return pa.Table.from_arrays(arrays, schema=arrow_schema())


def _above_one(speedup: Interval[Any]) -> Any:
    found = speedup.above(1.0)
    return found if np.ndim(found) else float(found)


Row: TypeAlias = Answer[str, float]
Rows: TypeAlias = Answer[Words, np.ndarray]


def absent(n: int) -> Rows:
    """Rows of which nothing is known."""
    nan = np.full(n, np.nan)
    empty = {"S": Words.same("", n), "N": nan, "Interval[N]": Interval.exact(nan)}
    return Answer(**{f.name: empty[str(f.type)] for f in fields(Answer)})


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows of all parts, one after another."""
    return parts[0] if len(parts) == 1 else _each(parts, Words.joined, np.concatenate)


def _each(parts: Sequence[Rows], text: Callable[[Any], Any], number: Callable[[Any], Any]) -> Answer[Any, Any]:
    """An answer whose every text and number is made of those of `parts`."""
    out: dict[str, Any] = {}
    for f in fields(Answer):
        values = [getattr(p, f.name) for p in parts]
        if isinstance(values[0], Interval):
            out[f.name] = Interval(*(number([getattr(v, end) for v in values]) for end in ("mid", "lo", "hi")))
        else:
            out[f.name] = (text if isinstance(values[0], Words) else number)(values)
    return Answer(**out)


def from_arrow(table: pa.Table) -> Rows:
    """Inverse of `to_arrow`."""
    return from_columns({name: read_column(table.column(name).combine_chunks()) for name in COLUMNS})


def read_column(column: pa.Array) -> Words | np.ndarray:
    """One column; null numbers are NaN."""
    import pyarrow as pa

    if pa.types.is_string(column.type):
        column = column.dictionary_encode()
    if pa.types.is_dictionary(column.type):
        return Words(column.indices.fill_null(-1).to_numpy(), column.dictionary.to_pylist())
    return column.to_numpy(zero_copy_only=False).astype(float)


def from_columns(columns: Mapping[str, Any]) -> Rows:
    """Rows of arrays and `Words` by column; the intervals of E2E and tokens/s follow from those of TTFT and TPOT."""
    out: dict[str, Any] = {}
    for f in fields(Answer):
        if f.name in _AT:
            out[f.name] = columns[_AT[f.name]]
        elif f"{f.name}.lo" in _AT:
            out[f.name] = Interval(*(columns[_AT[f"{f.name}.{end}"]] for end in ("mid", "lo", "hi")))
    e2e = end_to_end(out["ttft_s"], out["tpot_s"], out["output_tokens"])
    speed = rate(out["batch"] * out["output_tokens"], e2e)
    known = np.isfinite(columns["tokens_per_s"])
    lo, hi = (np.where(known, end, np.nan) for end in (speed.lo, speed.hi))
    out["e2e_s"] = Interval(columns["e2e_s"], e2e.lo, e2e.hi)
    out["tokens_per_s"] = Interval(columns["tokens_per_s"], lo, hi)
    return Answer(**out)
