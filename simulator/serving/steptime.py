"""Step time as a table: exact where steps jump, linear where they bend slowly, summed in closed form.

A step with ``n`` decoding sequences of mean context ``x`` and ``r`` prompt chunks of together ``P`` tokens takes

    ``max(base[(n + P)] + g (decode_n(x) + prefill(r, P/r, c)) + tail[n + r], submit) + w0 + w1 (n + r) + w2 P``

Between events ``n`` stays and ``x`` grows by one per step, so a run of steps over a linear piece of ``decode_n``
is an arithmetic series: its sum, and the step at which it passes a given time, are formulas.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2, sqrt

PER_OCTAVE = 8.0
"""Nodes per octave of the prefill-attention grid [-]."""
TILE = 64
"""Tokens between two stairs of prefill attention: the row tiles of its kernels are this or a multiple [-]."""
FIRST = int(PER_OCTAVE * log2(TILE))
"""Node of the first tile's last token [-]."""


@dataclass(frozen=True, slots=True)
class Line:
    """Piecewise-linear time against the mean context, for every number of sequences [s].

    ``time(n, x) = intercept[n][i] + slope[n][i] x`` for ``nodes[i] <= x < nodes[i + 1]``; the last piece goes on.

    Attributes
    ----------
    nodes : list of float
        Mean contexts where pieces start, the first 1 [tokens]; the last is infinite.
    intercept, slope : list of list of float
        By sequences (index 0 is unused) and piece [s], [s/token].
    """

    nodes: Sequence[float]
    intercept: Sequence[Sequence[float]]
    slope: Sequence[Sequence[float]]

    def at(self, n: int, x: float) -> float:
        """Time at `n` sequences of mean context `x` [s]."""
        i = bisect_right(self.nodes, x) - 1
        return self.intercept[n][i] + self.slope[n][i] * x


@dataclass(frozen=True, slots=True)
class PromptGrid:
    """Prefill attention of `r` equal chunks, linear between nodes [s].

    Attributes
    ----------
    tiles : int
        Tiles with a node at their first and one at their last token; octaves within the first and beyond them [-].
    at_row : list of (int, float)
        By number of chunks: node below and share of the way to the next.
    times : list, shape (rows, tokens, context)
        The last axis is context over tokens, in octaves [s].
    """

    tiles: int
    at_row: Sequence[tuple[int, float]]
    times: Sequence[Sequence[Sequence[float]]]

    def seconds(self, r: int, tokens: float, context: float) -> float:
        """Time of `r` chunks of `tokens` each whose context after them is `context` [s]."""
        before = ceil(tokens / TILE) - 1
        if not before:
            i, u = _octave_node(tokens)
        elif before < self.tiles:
            i, u = FIRST + 2 * before - 1, (tokens - before * TILE - 1.0) / (TILE - 1.0)
        else:
            i, u = _octave_node(tokens / (self.tiles * TILE))
            i += FIRST + 2 * (self.tiles - 1)
        j, v = _octave_node(context / tokens)
        row, share = self.at_row[r]
        value = _between(self.times[row], i, u, j, v)
        if share:
            value += share * (_between(self.times[row + 1], i, u, j, v) - value)
        return value


def _octave_node(ratio: float) -> tuple[int, float]:
    """Node at or below `ratio` >= 1, and the share of the way to the next."""
    if ratio <= 1.0:
        return 0, 0.0
    at = log2(ratio) * PER_OCTAVE
    node = int(at)
    return node, (2.0 ** ((at - node) / PER_OCTAVE) - 1.0) / (2.0 ** (1.0 / PER_OCTAVE) - 1.0)


def _between(plane: Sequence[Sequence[float]], i: int, u: float, j: int, v: float) -> float:
    low, high = plane[i], plane[i + 1]
    first = low[j] + v * (low[j + 1] - low[j])
    return first + u * (high[j] + v * (high[j + 1] - high[j]) - first)


@dataclass(frozen=True, slots=True)
class StepTable:
    """Everything the event loop asks about time.

    Attributes
    ----------
    decode : Line
        A step of decoding sequences only [s].
    beside : Line
        What those sequences' attention adds to a step that also computes prompts [s].
    prompt : PromptGrid or None
        Prefill attention; None where prompts cost nothing beyond `base`.
    base : list of float
        Everything that depends on the tokens of the step alone, by tokens [s].
    coarse : Line or None
        `base` beyond its last entry, as a line over tokens (its only row is 1).
    tail : list of float
        What depends on the sampled sequences, by sequences [s].
    submit_s, wait_s, wait_row_s, wait_token_s : float
        Host submission beside a prompt step; waiting per step, per sequence and per prompt token [s].
    """

    decode: Line
    beside: Line
    prompt: PromptGrid | None
    base: Sequence[float]
    coarse: Line | None
    tail: Sequence[float]
    submit_s: float = 0.0
    wait_s: float = 0.0
    wait_row_s: float = 0.0
    wait_token_s: float = 0.0

    @property
    def max_sequences(self) -> int:
        """Sequences the table goes up to [-]."""
        return len(self.decode.intercept) - 1

    def step(self, n: int, context_sum: int) -> float:
        """One decode step of `n` sequences with `context_sum` tokens together [s]."""
        return self.decode.at(n, context_sum / n)

    def run(self, n: int, context_sum: int, steps: int, horizon_s: float) -> tuple[int, float]:
        """Steps until `steps` are done or the first that ends at or after `horizon_s`, and their time [s].

        Over one piece with first step f and slope b the first c steps take ``c f + b c (c - 1) / 2``.
        """
        x = context_sum / n
        nodes, intercept, slope = self.decode.nodes, self.decode.intercept[n], self.decode.slope[n]
        i = bisect_right(nodes, x) - 1
        done, total = 0, 0.0
        while True:
            first, b = intercept[i] + slope[i] * x, slope[i]
            last = nodes[i + 1] - x
            count = steps - done
            if last < count:
                count = ceil(last)
            time = count * first + b * (0.5 * count * (count - 1))
            if total + time >= horizon_s:
                count = _passes(first, b, count, horizon_s - total)
                return done + count, total + (count * first + b * (0.5 * count * (count - 1)))
            done += count
            total += time
            if done == steps:
                return done, total
            x += count
            i += 1

    def mixed(self, n: int, context_sum: int, r: int, tokens: int, pairs: int) -> float:
        """One step with `r` prompt chunks beside `n` decoding sequences [s].

        Parameters
        ----------
        tokens : int
            Prompt tokens of all chunks, P [-].
        pairs : int
            Query-key pairs of their causal attention: ``sum q c - q (q - 1) / 2`` with q new tokens in a context
            of c; the chunks are timed as r equal ones with as many pairs [-].
        """
        rows = n + tokens
        base = self.base
        stream = base[rows] if rows < len(base) else self._beyond(rows)
        if n:
            stream += self.beside.at(n, context_sum / n)
        stream += self.tail[n + r]
        if self.prompt is not None:
            each = tokens / r
            stream += self.prompt.seconds(r, each, pairs / tokens + 0.5 * (each - 1.0))
        if stream < self.submit_s:
            stream = self.submit_s
        return stream + self.wait_s + self.wait_row_s * (n + r) + self.wait_token_s * tokens

    def _beyond(self, rows: int) -> float:
        if self.coarse is None:
            raise IndexError(f"the step table ends at {len(self.base) - 1} tokens, not {rows}")
        return self.coarse.at(1, float(rows))


def _passes(first: float, slope: float, most: int, time_s: float) -> int:
    """Smallest c >= 1 whose sum ``c first + slope c (c - 1) / 2`` reaches `time_s`, at most `most`."""
    if slope == 0.0:
        guess = time_s / first
    else:
        half = first - 0.5 * slope
        under = half * half + 2.0 * slope * time_s
        guess = (sqrt(under) - half) / slope if under > 0.0 else time_s / first
    count = min(max(ceil(guess), 1), most)
    while count > 1 and (count - 1) * first + slope * (0.5 * (count - 1) * (count - 2)) >= time_s:
        count -= 1
    while count < most and count * first + slope * (0.5 * count * (count - 1)) < time_s:
        count += 1
    return count


def linear_table(
    sequences: int, tokens: int, *, step_s: float = 0.0, row_s: float = 0.0, context_s: float = 0.0
) -> StepTable:
    """A table with ``time = step_s + row_s rows + context_s sum of contexts`` [s], for theory and tests.

    Parameters
    ----------
    sequences, tokens : int
        Largest number of sequences, and of tokens in one step [-].
    step_s, row_s, context_s : float
        Per step, per token of the step, per token of context a decoding sequence reads [s].
    """
    nodes = [1.0, float("inf")]
    counts = range(sequences + 1)
    return StepTable(
        decode=Line(nodes, [[step_s + row_s * n] for n in counts], [[context_s * n] for n in counts]),
        beside=Line(nodes, [[0.0] for _ in counts], [[context_s * n] for n in counts]),
        prompt=None,
        base=[step_s + row_s * k for k in range(tokens + sequences + 1)],
        coarse=None,
        tail=[0.0] * (sequences + 1),
    )
