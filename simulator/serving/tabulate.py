"""From a group to its `StepTable`: what each op depends on is found by asking, then tabulated once."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from simulator.base.arrays import Array
from simulator.device.fits import Basis
from simulator.inference.group import Group
from simulator.inference.step import StepTime, step_time
from simulator.ops.step import decode_step
from simulator.ops.step import mixed_step as step_of
from simulator.serving.steptime import PER_OCTAVE, TILE, Line, PromptGrid, StepTable

NOBODY = 1e-20
"""Decoding sequences of a pure prompt step: vanishes beside a token, so that it reaches no further tile [-]."""
EXACT_TOKENS = 16_384
"""Tokens of a step up to which every count has its own entry [-]."""
EXACT_PROMPT = 8192
"""Tokens of a chunk up to which prefill attention has nodes at every stair [-]."""
NODE_RATIO = 1.02
"""Mean contexts of neighbouring nodes: a decode step of Llama-3.1-8B is off by 0.01 % at most [-]."""
CHUNKS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)


@dataclass(frozen=True)
class _Sides:
    """Ops of a prompt step by what they depend on: places in ``StepTime.ops``."""

    decode: tuple[int, ...]
    prompt: tuple[int, ...]
    tail: tuple[int, ...]

    @property
    def all(self) -> tuple[int, ...]:
        return (*self.decode, *self.prompt, *self.tail)


def mixed_step(group: Group, n: Array, x: Array, r: Array, q: Array, c: Array, *, whole: bool = False) -> StepTime:
    """`n` decoding sequences of context `x` beside `r` chunks of `q` tokens that end at context `c`.

    A full pipeline holds 1/pp of them in each stage, so a step of the time returned makes room for all; with `whole`
    the chunks pass all stages together: when the last of them is done.
    """
    pp = float(group.pp)
    n, x, r, q, c = (np.asarray(v, float) for v in (n, x, r, q, c))
    return step_time(group, step_of(n / pp, x, r if whole else r / pp, q, c))


def _sum(step: StepTime, places: tuple[int, ...]) -> np.ndarray:
    total = np.zeros(np.shape(step.total_s))
    for i in places:
        total = total + step.ops[i].total_s
    return total


def _sides(group: Group) -> _Sides:
    """Change the decoding sequences, the prompts, or the tokens alone, far enough to leave a tile or a budget.

    Ops blind to the decoding sequences are the prompts', those blind to prompts the decoding sequences', those
    that count sequences but not tokens the tail; everything else counts the tokens of the step.
    """

    def each(n: float, x: float, r: float, q: float, c: float) -> np.ndarray:
        ops = mixed_step(group, n, x, r, q, c).ops
        return np.array([float(np.max(t.total_s)) for t in ops])

    at = each(8.0, 9000.0, 4.0, 96.0, 9000.0)
    by_decode = each(200.0, 90.0, 4.0, 96.0, 9000.0) != at
    by_prompt = each(8.0, 9000.0, 1.0, 1500.0, 1500.0) != at
    by_tokens = each(8.0, 9000.0, 4.0, 400.0, 9000.0) != at
    decode, prompt = by_decode & ~by_prompt, by_prompt & ~by_decode
    tail = by_decode & by_prompt & ~by_tokens
    return _Sides(*(tuple(int(i) for i in np.flatnonzero(m)) for m in (decode, prompt, tail)))


def _line(nodes: np.ndarray, times: np.ndarray) -> Line:
    """Pieces through ``times[n - 1, node]``; the last piece goes on for ever."""
    slope = np.diff(times, axis=1) / np.diff(nodes)
    intercept = times[:, :-1] - slope * nodes[:-1]
    unused = np.zeros((1, slope.shape[1]))
    return Line(
        [*nodes[:-1].tolist(), float("inf")],
        _packed(np.concatenate([unused, intercept])),
        _packed(np.concatenate([unused, slope])),
    )


def _packed(values: np.ndarray) -> list[array[float]]:
    """Rows as arrays of doubles: a quarter of the memory of lists, read as fast."""
    return [array("d", row.tobytes()) for row in np.ascontiguousarray(values, float)]


def _nodes(last: int) -> np.ndarray:
    count = int(np.ceil(np.log(max(last, 2)) / np.log(NODE_RATIO))) + 2
    return np.unique(np.round(NODE_RATIO ** np.arange(count)))


@lru_cache(maxsize=16)
def tabulate(group: Group, sequences: int, tokens: int, context: int, end: str = "mid") -> StepTable:
    """Table of `group` for up to `sequences` at once, `tokens` of prompt per step and `context` tokens each.

    Parameters
    ----------
    end : str
        'mid', or 'lo' and 'hi' for the ends of the 90 % interval; all steps are taken at that end together.
    """
    sides = _sides(group)
    scale = _widened(group, end)
    stretch = group.engine.prefill_stretch * scale
    nodes = _nodes(context)
    n = np.arange(1.0, sequences + 1.0)[:, None]
    pure = step_time(group, decode_step(n / float(group.pp), nodes[None, :]))
    decode = np.broadcast_to(getattr(pure, _END[end]), (sequences, len(nodes)))
    seen = mixed_step(group, n, nodes[None, :], 1.0, 32.0, 32.0)
    beside = np.broadcast_to(_sum(seen, sides.decode), decode.shape) * stretch
    exact = min(tokens, EXACT_TOKENS) + sequences
    base = _base(group, sides, np.arange(1.0, exact + 1.0)) * scale
    coarse = None
    if tokens > EXACT_TOKENS:
        far = np.unique(np.round(np.geomspace(exact, tokens + sequences + 1, 64)))
        coarse = _line(far, (_base(group, sides, far) * scale)[None, :])
    counts = np.arange(1.0, sequences + 1.0)
    tail = _sum(mixed_step(group, np.maximum(counts - 1.0, NOBODY), 1.0, 1.0, 32.0, 32.0), sides.tail)
    wait, row, token = _waits(group)
    probe = mixed_step(group, 8.0, 512.0, 1.0, 256.0, 256.0)
    return StepTable(
        decode=_line(nodes, decode),
        beside=_line(nodes, beside),
        prompt=_prompt(group, sides, sequences, tokens, context, stretch),
        base=[0.0, *base.tolist()],
        coarse=coarse,
        tail=[0.0, *(np.broadcast_to(tail, counts.shape) * stretch).tolist()],
        submit_s=float(np.max(probe.parts.submit_s)),
        wait_s=wait,
        wait_row_s=row,
        wait_token_s=token,
    )


_END = {"mid": "total_s", "lo": "lo_s", "hi": "hi_s"}


def _base(group: Group, sides: _Sides, rows: np.ndarray) -> np.ndarray:
    """GPU stream of a step of `rows` tokens without what depends on contexts and sequences [s]."""
    step = mixed_step(group, NOBODY, 1.0, 1.0, rows, rows)
    rest = group.engine.prefill_stretch * _sum(step, sides.all)
    return np.broadcast_to(step.parts.stream_s - rest, rows.shape)


def _waits(group: Group) -> tuple[float, float, float]:
    """Host seconds per step, per sequence and per prompt token that the GPU waits for."""

    def wait(n: float, q: float) -> float:
        return float(np.max(mixed_step(group, n, 64.0, 1.0, q, q).parts.wait_s))

    pp = float(group.pp)
    row = (wait(9.0 * pp, 16.0) - wait(pp, 16.0)) / (8.0 * pp)
    token = (wait(pp, 80.0) - wait(pp, 16.0)) / 64.0
    return wait(pp, 16.0) - row * (pp + 1.0) - token * 16.0, row, token


def _prompt(group: Group, sides: _Sides, sequences: int, tokens: int, context: int, stretch: float) -> PromptGrid:
    rows = [r for r in CHUNKS if r < sequences] + [sequences]
    over = _octaves(2.0 * context)
    times: list[list[array[float]]] = []
    for i, r in enumerate(rows):
        # Also asked by the interpolation from the row below, whose chunks may be longer.
        q = _prompt_nodes(tokens / rows[max(i - 1, 0)])[:, None]
        seconds = _sum(mixed_step(group, NOBODY, 1.0, r, q, q * over), sides.prompt) * stretch
        times.append(_packed(np.broadcast_to(seconds, (len(q), len(over)))))
    at_row: list[tuple[int, float]] = [(0, 0.0)]
    for k in range(1, sequences + 1):
        i = int(np.searchsorted(rows, k, side="right")) - 1
        share = 0.0 if rows[i] == k else (k - rows[i]) / (rows[i + 1] - rows[i])
        at_row.append((i, share))
    return PromptGrid(_tiles(tokens), at_row, times)


def _tiles(tokens: float) -> int:
    return int(np.ceil(min(tokens, EXACT_PROMPT) / TILE))


def _prompt_nodes(most: float) -> np.ndarray:
    """Octaves to the first tile's end, first and last token of every other tile, octaves to beyond `most`."""
    last = TILE * np.arange(1.0, _tiles(most) + 1.0)
    tiles = np.stack([last - TILE + 1.0, last], axis=1)[1:].ravel()
    beyond = last[-1] * _octaves(2.0 * most / last[-1])[1:] if most > last[-1] else []
    return np.concatenate([_octaves(TILE), tiles, beyond])


def _octaves(last: float) -> np.ndarray:
    """`PER_OCTAVE` nodes per octave from 1 to `last`, and the next where it lies between two."""
    return 2.0 ** (np.arange(np.ceil(np.log2(max(last, 1.0)) * PER_OCTAVE) + 1.0) / PER_OCTAVE)


def _widened(group: Group, end: str) -> float:
    """Median ratio of a prompt step at `end` of its interval to its middle, 128 to 4096 tokens [-]."""
    if end == "mid":
        return 1.0
    tokens = 2.0 ** np.arange(7.0, 13.0)
    step = mixed_step(group, 32.0, 1024.0, 1.0, tokens, tokens)
    return float(np.median(getattr(step, _END[end]) / step.total_s))


def check(group: Group, table: StepTable, probes: int = 200, seed: int = 0) -> np.ndarray:
    """Relative error of `table` against the full prediction on random steps, prompt and decode alike [-].

    Decode batches and contexts, chunks and their contexts are log-uniform over what the table covers.
    """
    rng = np.random.default_rng(seed)

    def among(last: float) -> np.ndarray:
        return np.maximum(np.round(np.exp(rng.uniform(0.0, np.log(max(last, 1.0)), probes))), 1.0)

    last = table.decode.nodes[-2]
    n, x = among(table.max_sequences - 8), among(last)
    r = np.maximum(np.minimum(among(8), table.max_sequences - n), 1.0)
    q = np.maximum(np.floor(among(min(len(table.base) - 1 - table.max_sequences, last)) / r), 1.0)
    c = np.minimum(q + among(last) - 1.0, last)
    full = np.asarray(mixed_step(group, n, x, r, q, c).total_s)
    pure = np.asarray(step_time(group, decode_step(n / float(group.pp), x)).total_s)
    errors = []
    for i in range(probes):
        sizes = (int(n[i]), int(n[i] * x[i]))
        pairs = int(r[i] * (q[i] * c[i] - q[i] * (q[i] - 1.0) / 2.0))
        # Where one sequence runs at a time, no prompt has others beside it.
        if table.max_sequences > 1:
            errors.append(table.mixed(*sizes, int(r[i]), int(r[i] * q[i]), pairs) / full[i] - 1.0)
        errors.append(table.step(*sizes) / pure[i] - 1.0)
    return np.abs(np.array(errors))


def basis_of(group: Group) -> Basis:
    """The worse basis of a prompt step and a decode step."""
    prompt = mixed_step(group, 8.0, 1024.0, 1.0, 1024.0, 1024.0)
    return prompt.basis.merge(step_time(group, decode_step(8.0 / group.pp, 1024.0)).basis)


def through_stages_s(group: Group, events: np.ndarray) -> np.ndarray:
    """From the step that makes room for the next to the last stage's end of its prompts, shape (events,) [s].

    Parameters
    ----------
    events : ndarray of `simulator.serving.replica.EVENT`, shape (events,)
        Steps with prompts.
    """
    if group.pp == 1 or not len(events):
        return np.zeros(len(events))
    sizes = _sizes(events)
    step, whole = (mixed_step(group, *sizes, whole=w).total_s for w in (False, True))
    return np.broadcast_to(np.maximum(whole - step, 0.0), len(events))


def _sizes(events: np.ndarray) -> tuple[np.ndarray, ...]:
    """Arguments of `mixed_step` for steps with prompts: equal chunks with as many query-key pairs."""
    told = ("steps", "sequences", "context", "chunks", "tokens", "pairs")
    steps, n, context, chunks, tokens, pairs = (events[name] for name in told)
    x = np.maximum(context / np.maximum(n, 1.0) + (steps - 1.0) / 2.0, 1.0)
    each = tokens / chunks
    beside = np.where(steps > 0, np.maximum(n, NOBODY), NOBODY)
    return beside, x, chunks, each, np.maximum(pairs / tokens + (each - 1.0) / 2.0, each)


def busy_shares(group: Group, events: np.ndarray) -> np.ndarray:
    """Share of each event in which the busiest of arithmetic and memory works [-], shape (events,).

    Parameters
    ----------
    events : ndarray of `simulator.serving.replica.EVENT`, shape (events,)
    """
    out = np.zeros(len(events))
    prompt = events["chunks"] > 0
    if prompt.any():
        out[prompt] = mixed_step(group, *_sizes(events[prompt])).busy
    if not prompt.all():
        steps, n, context = (events[~prompt][name] for name in ("steps", "sequences", "context"))
        x = np.maximum(context / np.maximum(n, 1.0) + (steps - 1.0) / 2.0, 1.0)
        out[~prompt] = step_time(group, decode_step(n / float(group.pp), x)).busy
    return np.minimum(out, 1.0)
