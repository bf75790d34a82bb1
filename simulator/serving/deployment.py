"""What serves: a model on GPUs under a policy, its scheduler, and how many replicas behind which router."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property

from simulator.base.errors import InputError, UnknownNameError, UnsupportedError
from simulator.inference.group import Group, group_of
from simulator.inference.kvpool import KvPool, kv_pool
from simulator.policies import Aspect
from simulator.roofline.engine import get_engine
from simulator.scenario.fields import FIELDS, STATIC, flag
from simulator.scenario.scenario import Scenario
from simulator.serving.scheduler import Scheduler
from simulator.serving.steptime import StepTable
from simulator.serving.tabulate import tabulate

ROUTERS = ("round-robin", "least-loaded", "prefix-aware")
MAX_REPLICAS = 1024
"""Assumed: above what one model is served by; a larger number is taken for a slip [-]."""


@dataclass(frozen=True)
class Deployment:
    """A fleet of equal replicas.

    Attributes
    ----------
    scenario : Scenario
        Model, device, policy, engine, formats, parallelism, memory share and block size; its batch and lengths
        are not used.
    scheduler : Scheduler
    replicas : int
        Data-parallel replicas; with `prefill_replicas` those that decode [-].
    prefill_replicas : int
        Replicas that only compute prompts and hand the KV over; 0: every replica does both [-].
    router : str
        One of `ROUTERS`.
    prefix_cache : bool
        Share the KV of equal prompt beginnings, where the requests say which are equal.
    transfer_bytes_per_s : float, optional
        Rate per GPU at which KV is handed over; default the device's own link [B/s].
    """

    scenario: Scenario
    scheduler: Scheduler = field(default_factory=Scheduler)
    replicas: int = 1
    prefill_replicas: int = 0
    router: str = "round-robin"
    prefix_cache: bool = False
    transfer_bytes_per_s: float | None = None

    def __post_init__(self) -> None:
        if self.scenario.images:
            raise InputError(
                "serving knows prompts of text alone; add the images' tokens to the prompts", where="--images"
            )
        if self.scenario.pp > 1 and get_engine(self.scenario.engine).piece_tokens:
            raise InputError(
                f"{self.scenario.engine} runs its stages one after another, which serving does not know; use 1",
                where="--pp",
            )
        if self.router not in ROUTERS:
            raise UnknownNameError("router", self.router, ROUTERS, where="--router")
        if not 1 <= self.replicas <= MAX_REPLICAS:
            raise InputError(f"must be 1 to {MAX_REPLICAS}", where="--replicas")
        if not 0 <= self.prefill_replicas <= MAX_REPLICAS:
            raise InputError(f"must be 0 to {MAX_REPLICAS}", where="--prefill-replicas")

    def __getstate__(self) -> dict[str, object]:
        # Sent to another process by what it was made of; the rest is made there again.
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @cached_property
    def group(self) -> Group:
        """Model, device and policies, names resolved."""
        return group_of(self.scenario)

    @property
    def gpus(self) -> int:
        """GPUs of the whole fleet [-]."""
        return self.group.gpus * (self.replicas + self.prefill_replicas)

    @property
    def usd_per_s(self) -> float:
        """Rent of the fleet from the profile's list price [USD/s]."""
        return self.group.device.price_usd_per_h.value * self.gpus / 3600.0

    @cached_property
    def pool(self) -> KvPool:
        """KV cache of one replica."""
        return kv_pool(self.group, self.scheduler.max_num_seqs, self.scheduler.max_num_batched_tokens)

    def table(self, longest: int, end: str = "mid") -> StepTable:
        """Step times for requests of at most `longest` tokens in all; 'lo', 'mid' or 'hi' of the interval."""
        # Powers of two, so that deployments of one kind share a table.
        context = 1 << max(longest, 1024).bit_length()
        tokens = self.scheduler.max_num_batched_tokens
        if not self.scheduler.chunks:
            tokens = max(tokens, context)
        return tabulate(self.group, self.scheduler.max_num_seqs, tokens, context, end)

    def check(self) -> None:
        """Refuse what cannot run, and policies the engine's features exclude.

        Raises
        ------
        UnsupportedError
            With what would work.
        """
        if self.group.problem is not None:
            raise UnsupportedError(self.group.problem[1])
        for name in STATIC:
            if getattr(self.scenario, name) != FIELDS[name].default:
                raise UnsupportedError("a scheduler of requests does not follow it; ask predict", where=flag(name))
        for policy in self.group.policies.members:
            fits = policy.compatibility
            # Weights read by the tokens' own choice run dense beside a prompt: nothing is gained, nothing breaks.
            dense_beside_prompts = Aspect.WEIGHT_ROWS in policy.aspects
            if not fits.chunked_prefill and self.scheduler.chunks and not dense_beside_prompts:
                raise UnsupportedError(
                    f"{policy.name} does not go with chunked prefill; use --scheduler prefill-first", where="--policy"
                )
            if not fits.prefix_cache and self.prefix_cache:
                raise UnsupportedError(
                    f"{policy.name} does not go with prefix caching; drop --prefix-cache", where="--policy"
                )
