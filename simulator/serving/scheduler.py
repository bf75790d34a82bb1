"""How an engine forms its steps: the settings that matter, under the names vLLM gives them."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.base.checks import require_type
from simulator.base.errors import InputError, UnknownNameError
from simulator.inference.group import group_of
from simulator.scenario.scenario import Scenario

SCHEDULERS = ("chunked", "prefill-first", "prefill-first-chunked")
MOST_SEQS = 4096
"""Sequences at once above which a number is taken for a slip [-]."""
PREEMPTIONS = ("recompute", "swap")
WATERMARK = 0.01
"""Share of KV blocks left free when a request is admitted: vLLM's ``BlockSpaceManager(watermark=0.01)``."""


@dataclass(frozen=True)
class Scheduler:
    """Iteration-level batching.

    Attributes
    ----------
    name : str
        ``chunked``: running sequences decode first, prompt chunks fill the token budget of the same step (vLLM V1,
        Sarathi). ``prefill-first``: steps of whole prompts before steps of decoding (vLLM V0).
        ``prefill-first-chunked``: the same with chunks (SGLang without mixed chunks).
    max_num_seqs : int
        Sequences running at once [-].
    max_num_batched_tokens : int
        Tokens of one step; a whole prompt that is longer runs alone [-].
    preemption : str
        What happens to the youngest sequence when blocks run out: its KV is dropped and computed again, or
        swapped to the host over the device's host link.
    watermark : float
        Share of blocks kept free at admission [-].
    """

    name: str = "chunked"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    preemption: str = "recompute"
    watermark: float = WATERMARK

    def __post_init__(self) -> None:
        require_type(str, name=self.name, preemption=self.preemption)
        require_type(int, max_num_seqs=self.max_num_seqs, max_num_batched_tokens=self.max_num_batched_tokens)
        if self.name not in SCHEDULERS:
            raise UnknownNameError("scheduler", self.name, SCHEDULERS, where="--scheduler")
        if self.preemption not in PREEMPTIONS:
            raise UnknownNameError("preemption", self.preemption, PREEMPTIONS, where="--preemption")
        if not 1 <= self.max_num_seqs <= MOST_SEQS:
            raise InputError(f"must be 1 to {MOST_SEQS}", where="--max-num-seqs")
        if not 1 <= self.max_num_batched_tokens <= 1_000_000:
            raise InputError("must be 1 to 1000000", where="--max-num-batched-tokens")
        if self.mixes and self.max_num_batched_tokens <= self.max_num_seqs:
            raise InputError(
                f"{self.max_num_batched_tokens} tokens leave none for prompts beside {self.max_num_seqs} decoding"
                " sequences; raise it, or lower --max-num-seqs",
                where="--max-num-batched-tokens",
            )

    @classmethod
    def of(
        cls,
        scenario: Scenario,
        name: str = "chunked",
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
        preemption: str = "recompute",
    ) -> Scheduler:
        """Scheduler with what is None as the scenario's engine has it on that device; without a pool, as of vLLM."""
        start = group_of(scenario).start
        seqs, tokens = (cls.max_num_seqs, cls.max_num_batched_tokens) if start is None else (start.seqs, start.tokens)
        seqs = min(seqs, MOST_SEQS) if max_num_seqs is None else max_num_seqs
        tokens = tokens if max_num_batched_tokens is None else max_num_batched_tokens
        return cls(name, seqs, tokens, preemption)

    @property
    def mixes(self) -> bool:
        """Whether prompts and decoding share steps."""
        return self.name == "chunked"

    @property
    def chunks(self) -> bool:
        """Whether a prompt may be cut."""
        return self.name != "prefill-first"
