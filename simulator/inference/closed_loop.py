"""A fixed number of clients, each sending its next request when the last is answered: mean TTFT and TPOT.

What serving benchmarks call concurrency. In one cycle every running client has one prompt computed and `output`
tokens generated, and the GPU does nothing else, so the cycle lasts
``running * (mixed step - decode step) + output * decode step``. A prompt waits for the prompts found before it;
what it waits is taken off the generation, because the cycle is the same.

A benchmark's mean also holds its first round, where all clients ask at once and prompts wait for half of the others:
of ten requests per client (``--num-prompts`` ten times ``--max-concurrency``, as InferenceX runs) one is such, which
for 128 clients is six of the seven prompts that a mean request waits for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from simulator.base.arrays import Array
from simulator.inference.evaluate import largest_batch
from simulator.inference.group import Group
from simulator.inference.step import StepTime, step_time
from simulator.ops.step import decode_step, mixed_step
from simulator.roofline.engine import Engine

STEP_TOKENS = 8192
"""Prompt tokens of one step where the engine does not say: the default of most [-]."""


@dataclass(frozen=True)
class Run:
    """What the mean of a closed loop is over.

    Attributes
    ----------
    alike : bool
        All requests have the same lengths, so clients fall into step; else lengths vary, and they spread out.
    rounds : float
        Requests per client, all of them in the mean; inf: a server that has run for long [-].
    wait_steps : float
        Steps that the engine lets a prompt wait for others (TensorRT-LLM's ``batch_wait_timeout_iters``) [-].
    """

    alike: bool = False
    rounds: float = math.inf
    wait_steps: float = 0.0


STEADY = Run()
"""A server that has run for long, asked for lengths that vary."""


@dataclass(frozen=True)
class Loop:
    """Means over the requests of a closed loop, with 90 % intervals [s]."""

    ttft_s: np.ndarray
    ttft_lo_s: np.ndarray
    ttft_hi_s: np.ndarray
    tpot_s: np.ndarray
    tpot_lo_s: np.ndarray
    tpot_hi_s: np.ndarray
    running: np.ndarray


@dataclass(frozen=True)
class Cycle:
    """The two kinds of step of a closed loop; arrays of the points' shape.

    Attributes
    ----------
    decode, mixed : StepTime
        All running clients generate; one of them (on each rank of attention) has its prompt computed instead.
    clients, running : Array
        Clients, and how many of them fit in memory at once [-].
    prompt, output : Array
        Tokens computed and generated per request [-].
    turns : Array
        Prompts of each rank of attention data parallelism, of which one of every rank is computed in one step; without
        it those of all running clients [-].
    together : Array
        Prompts of a rank that one step of the engine has room for [-].
    run : Run
        What the mean is over.
    """

    decode: StepTime
    mixed: StepTime
    clients: Array
    running: Array
    prompt: Array
    output: Array
    turns: Array
    together: Array
    run: Run


def cycle(group: Group, clients: Array, prompt: Array, output: Array, run: Run = STEADY) -> Cycle:
    """Steps of `clients` closed-loop clients with `prompt` and `output` tokens per request.

    Memory is taken at the mean fill, ``prompt + output / 2`` per sequence.
    """
    c, p, o = np.broadcast_arrays(*(np.asarray(x, float) for x in (clients, prompt, output)))
    most = largest_batch(group, p, np.maximum(o / 2.0, 1.0))
    running = np.minimum(c, np.maximum(most, 1.0))
    context = p + o / 2.0
    # Nobody else there: small enough to vanish beside a prompt token, whole tiles stay whole.
    at_once = np.minimum(float(group.dp_attention), running)
    mixed = mixed_step(np.maximum(running - at_once, 1e-14), context, at_once, p, p)
    turns = running / at_once
    decode = step_time(group, decode_step(running, context))
    room = group.start.tokens if group.start is not None else STEP_TOKENS
    together = np.minimum(np.maximum(np.floor(room / p), 1.0), turns)
    return Cycle(decode, step_time(group, mixed), c, running, p, o, turns, together, run)


def solve(steps: Cycle, engine: Engine, decode_s: Array, mixed_s: Array) -> tuple[np.ndarray, np.ndarray]:
    """TTFT and TPOT [s] of a cycle whose steps take `decode_s` and `mixed_s`.

    ``TTFT = mixed ((1 - 1/rounds) (1 + ahead) + 1/rounds (turns + together) / 2)`` with `Engine.ahead`, plus
    ``wait_steps decode``, ``cycle (clients / running - 1)`` where not all clients fit, and `Engine.request_s` and
    `frontend_s` per prompt token; ``TPOT = (cycle - TTFT) / (output - 1)``, at least a decode step.
    """
    own = np.maximum(np.asarray(mixed_s) - decode_s, 0.0)
    whole = steps.turns * own + steps.output * decode_s
    first = 1.0 / steps.run.rounds
    ahead = np.minimum(engine.ahead(steps.turns, steps.run.alike), steps.turns - 1.0)
    ttft = mixed_s * ((1.0 - first) * (1.0 + ahead) + first * (steps.turns + steps.together) / 2.0)
    ttft = ttft + steps.run.wait_steps * np.asarray(decode_s)
    tpot = np.maximum((whole - ttft) / np.maximum(steps.output - 1.0, 1.0), decode_s)
    ttft = ttft + whole * (steps.clients / steps.running - 1.0)
    return ttft + engine.request_s + engine.frontend_s * steps.prompt, tpot


def closed_loop(group: Group, clients: Array, prompt: Array, output: Array, run: Run = STEADY) -> Loop:
    """Mean TTFT and TPOT of `clients` clients.

    The interval takes all steps at their lower or upper end together; TTFT adds the spread of the queue found.

    Parameters
    ----------
    clients, prompt, output : Array
        Concurrency, prompt tokens and output tokens per request [-]; they broadcast.
    run : Run
        What the means are over.

    Examples
    --------
    >>> from simulator.inference.group import group_of
    >>> from simulator.scenario.scenario import Scenario
    >>> group = group_of(Scenario(model="llama-3.1-8b", device="h100-sxm"))
    >>> loop = closed_loop(group, [1.0, 64.0], 1024.0, 128.0)
    >>> bool(loop.ttft_s[1] > loop.ttft_s[0])
    True
    """
    steps = cycle(group, clients, prompt, output, run)
    engine = group.engine
    d, m = steps.decode, steps.mixed
    ttft, tpot = solve(steps, engine, d.total_s, m.total_s)
    low = solve(steps, engine, d.lo_s, np.maximum(m.lo_s, d.lo_s))
    high = solve(steps, engine, d.hi_s, np.maximum(m.hi_s, d.hi_s))
    sigma, _ = engine.spread_queue
    factor = np.exp(np.hypot(1.645 * sigma, np.log(np.maximum(high[0], ttft) / ttft)))
    return Loop(
        ttft_s=ttft,
        ttft_lo_s=ttft / np.exp(np.hypot(1.645 * sigma, np.log(ttft / np.minimum(low[0], ttft)))),
        ttft_hi_s=ttft * factor,
        tpot_s=tpot,
        tpot_lo_s=np.minimum(low[1], tpot),
        tpot_hi_s=np.maximum(high[1], tpot),
        running=np.asarray(steps.running),
    )
