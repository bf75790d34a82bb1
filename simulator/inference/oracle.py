"""One step at a time: what an emulator of vLLM or SGLang asks before each of its steps, answered in microseconds.

The answers are those of `step_time`, by the same functions. What depends on the tokens of a step alone - products,
norms, collectives - is timed once per number of tokens and kept as `Sums`; attention and what policies make of it is
timed for every question, and the engine's hands come last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf

from simulator.base.checks import require_type
from simulator.base.errors import InputError, NothingFeasibleError
from simulator.inference import memory
from simulator.inference.group import Group, group_of
from simulator.inference.kvpool import KvPool, kv_pool
from simulator.inference.lowered import Follows, Lowered
from simulator.inference.step import StepTime, Sums, finished, send, step_time
from simulator.ops.ops import Op
from simulator.ops.step import Step, decode_step, mixed_step, prefill_step
from simulator.roofline.optime import OpTime
from simulator.roofline.timing import time_op, working_set_bytes
from simulator.roofline.transfer import exposed
from simulator.scenario.scenario import Scenario

MAX_KEPT = 16_384
"""Numbers of tokens whose sums are kept; a kilobyte each [-]."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Ops of one kind at one size: their sums, and the ops that wait for attention or are waited for beside it."""

    sums: Sums
    beside: tuple[OpTime, ...]

    def __add__(self, other: _Part) -> _Part:
        return _Part(self.sums + other.sums, self.beside + other.beside)


class Oracle:
    """Step times and memory of one deployment, asked one step at a time.

    Every method is one pass through the whole pipeline: with `pp` stages the sequences that decode, and those that
    read a prompt, are each cut into ``min(sequences, pp)`` micro-batches that follow one another, as `evaluate` does.
    Contexts may be means, so fractions are allowed. Answers equal those of `step_time` to rounding, whatever was asked
    before.

    Parameters
    ----------
    group : Group
        Model, device, policies and engine.
    max_num_seqs, max_num_batched_tokens : int
        Sequences at once and tokens per step that the engine is started with; they bound the activations beside
        the KV pool [-].

    Raises
    ------
    NothingFeasibleError
        The group cannot run; the message says what would work.
    UnsupportedError
        No room for KV is left (`kv_pool` and what is read from it).

    Examples
    --------
    >>> from simulator.api import Scenario, oracle
    >>> ask = oracle(Scenario(model="llama-3.1-8b", device="h100-sxm"))
    >>> 5e-3 < ask.decode_s(batch=16, context=1000.5) < ask.mixed_s(16, 1000.5, tokens=512) < 50e-3
    True
    >>> step = ask.decode(16, 1000.5)
    >>> step.lo_s < step.total_s < step.hi_s
    True
    """

    def __init__(self, group: Group, *, max_num_seqs: int = 256, max_num_batched_tokens: int = 8192):
        require_type(Group, group=group)
        if group.problem is not None:
            raise NothingFeasibleError(group.problem[1])
        for name, value in (("max_num_seqs", max_num_seqs), ("max_num_batched_tokens", max_num_batched_tokens)):
            if not isinstance(value, int) or value < 1:
                raise InputError(f"must be a whole number of 1 or more, not {value!r}", where=name)
        self.group = group
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self._parts: dict[object, _Part] = {}
        self._waiting: dict[tuple[bool, bool], frozenset[tuple[str, ...]]] = {}

    def decode_s(self, batch: float, context: float, prompt: float | None = None) -> float:
        """Seconds of a step in which `batch` sequences generate a token each; see `decode`."""
        return self.decode(batch, context, prompt).total_s  # type: ignore[return-value]

    def prefill_s(self, tokens: float, past: float = 0.0, prompts: float = 1.0) -> float:
        """Seconds of a step that computes prompt tokens only; see `prefill`."""
        return self.prefill(tokens, past, prompts).total_s  # type: ignore[return-value]

    def mixed_s(
        self,
        batch: float,
        context: float,
        tokens: float,
        past: float = 0.0,
        prompts: float = 1.0,
        prompt: float | None = None,
    ) -> float:
        """Seconds of a step with decoding sequences and prompt chunks; see `mixed`."""
        return self.mixed(batch, context, tokens, past, prompts, prompt).total_s  # type: ignore[return-value]

    def decode(self, batch: float, context: float, prompt: float | None = None) -> StepTime:
        """A step in which `batch` sequences generate a token each.

        Parameters
        ----------
        batch : float
            Sequences [-].
        context : float
            Mean tokens of each, the new one included [-].
        prompt : float, optional
            Prompt tokens among them; policies that treat generated tokens apart take all as prompt without it [-].
        """
        self._refuse(context, 0.0, batch=batch, context=context)
        self._refuse_prompt(prompt, context)
        rows = batch / min(batch, float(self.group.pp))
        return self._step(decode_step(rows, float(context), None if prompt is None else float(prompt)))

    def prefill(self, tokens: float, past: float = 0.0, prompts: float = 1.0) -> StepTime:
        """A step that computes `tokens` prompt tokens for each of `prompts` sequences.

        Parameters
        ----------
        tokens, past : float
            New tokens per sequence, and its tokens computed or cached before [-].
        prompts : float
            Sequences [-]; where they are more than one, `pp` stages need ``(micro + pp - 1) / pp`` passes in all.
        """
        self._refuse(tokens + past, past, tokens=tokens, prompts=prompts)
        rows = prompts / min(prompts, float(self.group.pp))
        return self._step(prefill_step(rows, float(tokens), float(tokens + past)))

    def mixed(
        self,
        batch: float,
        context: float,
        tokens: float,
        past: float = 0.0,
        prompts: float = 1.0,
        prompt: float | None = None,
    ) -> StepTime:
        """A step of `batch` decoding sequences as in `decode` and `prompts` chunks as in `prefill`."""
        longest = max(context, tokens + past)
        self._refuse(longest, past, batch=batch, context=context, tokens=tokens, prompts=prompts)
        self._refuse_prompt(prompt, context)
        pp = float(self.group.pp)
        step = mixed_step(
            batch / min(batch, pp),
            float(context),
            # A prompt's tokens stay together: one prompt among many sequences takes as long as alone, or longer.
            prompts / min(prompts, pp),
            float(tokens),
            float(tokens + past),
            None if prompt is None else float(prompt),
        )
        return self._step(step)

    @cached_property
    def kv_pool(self) -> KvPool:
        """Blocks of KV cache of one replica."""
        return kv_pool(self.group, self.max_num_seqs, self.max_num_batched_tokens)

    @property
    def kv_pool_tokens(self) -> int:
        """Tokens the KV cache holds, all sequences together [-]."""
        return self.kv_pool.tokens

    @property
    def kv_bytes_per_token(self) -> float:
        """KV of one token on one GPU, from its share of a block [B]."""
        return self.kv_pool.block_bytes / self.kv_pool.block_tokens

    @property
    def weights_bytes(self) -> float:
        """Weights on the fullest GPU, predictors included [B]."""
        return memory.weights_bytes(self.group.lowering, self.group.pp)

    def _refuse(self, longest: float, past: float, **least_one: float) -> None:
        for name, value in least_one.items():
            if not 1.0 <= value < inf:
                raise InputError(f"must be a number of 1 or more, not {value!r}", where=name)
        if not past >= 0.0:
            raise InputError(f"must be 0 or more, not {past!r}", where="past")
        limit = self.group.model.max_context
        if not longest <= limit and not self.group.ignore_context:
            raise InputError(f"{longest:g} tokens exceed the model's {limit}", where="context")

    def _refuse_prompt(self, prompt: float | None, context: float) -> None:
        if prompt is not None and not 0.0 <= prompt <= context:
            raise InputError(f"must be 0 to the context of {context:g} tokens, not {prompt!r}", where="prompt")

    def _step(self, step: Step) -> StepTime:
        group = self.group
        step = group.lowering.ran(step)
        if self._shares_caches:
            return step_time(group, step)
        fixed = self._fixed(step)
        times = self._timed(step, Follows.CONTEXT)
        waiting = self._waits(step)
        if waiting:
            after = exposed([*times, *fixed.beside])
            times = [t for i, t in enumerate(after) if i < len(times) or _beside(t.op) in waiting]
        return finished(group, step, fixed.sums + Sums.of(group, times))

    @cached_property
    def _shares_caches(self) -> bool:
        """Where operands are served from depends on all that is read in a step: nothing is timed apart."""
        return working_set_bytes((), self.group.device) is not None

    def _fixed(self, step: Step) -> _Part:
        """What does not depend on the contexts of `step`."""
        kind = step.decodes, step.prefills
        if not step.prefills:
            return self._kept((kind, step.rows, step.routed_rows), step, Follows.TOKENS, Follows.SEQUENCES)
        tokens = self._kept((kind, step.rows, step.routed_rows), step, Follows.TOKENS)
        return tokens + self._kept((kind, -step.sampled_rows), step, Follows.SEQUENCES)

    def _kept(self, key: object, step: Step, *parts: Follows) -> _Part:
        found = self._parts.get(key)
        if found is None:
            if len(self._parts) >= MAX_KEPT:
                self._parts.clear()
            found = self._part(step, parts[0])
            for part in parts[1:]:
                found = found + self._part(step, part)
            self._parts[key] = found
        return found

    def _timed(self, step: Step, follows: Follows) -> list[OpTime]:
        group = self.group
        return [time_op(op, group.device, group.engine) for op, _, _ in group.lowering.lowered(step, follows)]

    def _part(self, step: Step, follows: Follows) -> _Part:
        group, waiting = self.group, self._waits(step)
        times = self._timed(step, follows)
        if follows is Follows.TOKENS and group.pp > 1:
            times.append(send(group, step))
        apart = [t for t in times if _beside(t.op) in waiting]
        covers = [t for t in times if not _beside(t.op) and any(t.op.role.startswith(w) for w in waiting)]
        alone = [t for t in exposed(times) if _beside(t.op) not in waiting]
        return _Part(Sums.of(group, alone), (*apart, *covers))

    def _waits(self, step: Step) -> frozenset[tuple[str, ...]]:
        """The `beside` of ops whose wait depends on more than one kind of ops, in steps like `step`."""
        kind = step.decodes, step.prefills
        if kind not in self._waiting:
            lowered = self.group.lowering.lowered(step)
            self._waiting[kind] = frozenset(b for b in (_beside(of.op) for of in lowered) if _mixes(lowered, b))
        return self._waiting[kind]


def _beside(op: Op) -> tuple[str, ...]:
    return getattr(op, "beside", ())


def _mixes(lowered: Sequence[Lowered], beside: tuple[str, ...]) -> bool:
    """Whether the ops with that `beside`, and those they run beside, follow different things."""
    members = {f for op, f, _ in lowered if beside and _beside(op) == beside}
    covers = {f for op, f, _ in lowered if beside and not _beside(op) and op.role.startswith(beside)}
    return Follows.CONTEXT in members or len(members | covers) > 1


def oracle(scenario: Scenario, *, max_num_seqs: int = 256, max_num_batched_tokens: int = 8192) -> Oracle:
    """Times of single steps and memory of a scenario's deployment; its batch and lengths are not used.

    Parameters
    ----------
    scenario : Scenario
        Model, device, policy, engine, formats and parallelism.
    max_num_seqs, max_num_batched_tokens : int
        As the engine is started: sequences at once and tokens per step [-].

    Raises
    ------
    NothingFeasibleError
        It cannot run; the message says what would work.

    Examples
    --------
    >>> from simulator.api import Scenario, oracle
    >>> ask = oracle(Scenario(model="llama-3.1-8b", device="h100-sxm"))
    >>> ask.decode_s(batch=16, context=1000.5) < ask.mixed_s(16, 1000.5, tokens=512)
    True
    """
    require_type(Scenario, scenario=scenario)
    return Oracle(group_of(scenario), max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens)
