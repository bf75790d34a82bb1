"""Requests through a deployment: replicas behind a router, together or split into prefill and decode."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import numpy as np

from simulator.base.errors import InputError, UnsupportedError
from simulator.inference import memory
from simulator.inference.kvpool import reserved_blocks
from simulator.serving.book import Book
from simulator.serving.deployment import Deployment
from simulator.serving.prefix import PrefixCache
from simulator.serving.replica import EVENT, Replica
from simulator.serving.requests import Requests
from simulator.serving.routing import route
from simulator.serving.steptime import StepTable
from simulator.serving.tabulate import busy_shares, through_stages_s


@dataclass(frozen=True, eq=False)
class Outcome:
    """What happened to every request; arrays of shape (requests,).

    Attributes
    ----------
    replica : ndarray of int
        That produced its last token [-].
    admitted_s, first_s, finish_s : ndarray
        When it was first scheduled, had its first and its last token [s].
    queues : tuple of (ndarray, ndarray)
        From when to when each request waited to be scheduled: at its first replica, and at the one that decodes
        where the two differ [s].
    preemptions, hits : ndarray of int
        Times it was preempted; prompt tokens found in the prefix cache [-].
    events : tuple of ndarray of `EVENT`, shape (events,)
        Steps of every replica.
    gaps : ndarray
        Times between a token and the next of sequences that were preempted in between [s].
    seconds : float
        Processor time the event loop took [s].
    """

    deployment: Deployment
    requests: Requests
    replica: np.ndarray
    admitted_s: np.ndarray
    first_s: np.ndarray
    finish_s: np.ndarray
    queues: tuple[tuple[np.ndarray, np.ndarray], ...]
    preemptions: np.ndarray
    hits: np.ndarray
    events: tuple[np.ndarray, ...]
    gaps: np.ndarray
    seconds: float

    @cached_property
    def busy(self) -> tuple[np.ndarray, ...]:
        """Share of each event in which the busiest of arithmetic and memory works, by replica [-]."""
        return tuple(busy_shares(self.deployment.group, e) for e in self.events)

    @property
    def ttft_s(self) -> np.ndarray:
        """Arrival to first token, what it waited before it came here included [s]."""
        return self.first_s - self.requests.arrival_s + self.requests.delay_s

    @property
    def e2e_s(self) -> np.ndarray:
        """Arrival to last token, what it waited before it came here included [s]."""
        return self.finish_s - self.requests.arrival_s + self.requests.delay_s

    @property
    def tpot_s(self) -> np.ndarray:
        """Mean time per token after the first [s]; nan for one token."""
        steps = self.requests.output - 1
        return np.where(steps > 0, (self.finish_s - self.first_s) / np.maximum(steps, 1), np.nan)

    @property
    def makespan_s(self) -> float:
        """First arrival to last token [s]."""
        return float(np.max(self.finish_s))


def simulate(deployment: Deployment, requests: Requests, end: str = "mid") -> Outcome:
    """Serve `requests`.

    Parameters
    ----------
    end : str
        'mid', or 'lo' and 'hi': every step at that end of its 90 % interval.

    Raises
    ------
    InputError
        A request that is longer than the model's context or the KV cache.
    UnsupportedError
        A deployment that cannot run.
    """
    from time import process_time

    table = ready(deployment, requests, end)
    began = process_time()
    if requests.answered and (deployment.prefill_replicas or deployment.group.pp > 1):
        where = "--prefill-replicas" if deployment.prefill_replicas else "--pp"
        raise UnsupportedError(
            f"{where}: not with --users or --turns, which wait for the last stage; give --rate alone"
        )
    if deployment.prefill_replicas:
        found = _split(deployment, requests, table)
    else:
        book = book_of(deployment, requests)
        replicas = replicas_of(deployment, table, book, deployment.replicas, requests.id_tokens)
        if requests.answered:
            found = _answered(deployment, requests, book, replicas)
        else:
            found = collect(deployment, requests, book, replicas, route(deployment, replicas, book))
    return replace(found, seconds=process_time() - began)


def ready(deployment: Deployment, requests: Requests, end: str) -> StepTable:
    """Refuse what cannot be served, as `simulate` does; the times of steps otherwise."""
    deployment.check()
    _refuse_prefix(deployment, requests)
    refuse_long(deployment, requests)
    return deployment.table(int(np.max(requests.prompt + requests.output)), end)


def _answered(deployment: Deployment, requests: Requests, book: Book, replicas: Sequence[Replica]) -> Outcome:
    """Users who ask again, and turns of conversations: what follows an answer stays with its replica.

    Users begin evenly over a mean time to think; a replica's free users take its next conversation. The outcome's
    requests are in the order they came.
    """
    count, then = len(replicas), requests.followers()
    first = np.ones(len(requests), bool)
    first[then[then >= 0]] = False
    heads = np.flatnonzero(first).tolist()
    book.then = then.tolist()
    if requests.users:
        users = requests.users
        think_s = 0.0 if requests.think_s is None else float(np.mean(requests.think_s))
        taken = [r % users % count for r in range(len(heads))]
        for r, i in enumerate(heads[:users]):
            book.arrival[i] = think_s * r / users
        for k, replica in enumerate(replicas):
            for i in heads[k:users:count]:
                replica.add(i)
            replica.closed = deque(i for i, at in zip(heads[users:], taken[users:], strict=True) if at == k)
            replica.run()
    else:
        taken = route(deployment, replicas, book, heads)
    chosen = np.zeros(len(requests), int)
    chosen[heads] = taken
    if requests.session is not None:
        sessions, of = np.unique(requests.session, return_inverse=True)
        by_session = np.zeros(len(sessions), int)
        by_session[of[heads]] = taken
        chosen = by_session[of]
    came = np.argsort(book.arrival, kind="stable")
    found = collect(deployment, requests, book, replicas, chosen.tolist())
    arrival = np.array(book.arrival)[came]
    per_request = ("replica", "admitted_s", "first_s", "finish_s", "preemptions", "hits")
    return replace(
        found,
        requests=replace(requests.take(came), arrival_s=arrival),
        queues=((arrival, found.admitted_s[came]),),
        **{name: getattr(found, name)[came] for name in per_request},
    )


def book_of(deployment: Deployment, requests: Requests) -> Book:
    """What is known of `requests` when they come to `deployment`."""
    pool = deployment.pool
    reserve: list[int] = []
    if not pool.grows:
        reserve = reserved_blocks(deployment.group, pool, requests.prompt, requests.output).tolist()
    shares = deployment.prefix_cache and bool(requests.ids)
    return Book(
        requests.arrival_s.tolist(),
        requests.prompt.tolist(),
        requests.output.tolist(),
        reused=requests.reused.tolist(),
        reserve=reserve,
        think=[] if requests.think_s is None else requests.think_s.tolist(),
        ids=requests.ids if shares else (),
    )


def replicas_of(deployment: Deployment, table: StepTable, book: Book, count: int, id_tokens: int = 0) -> list[Replica]:
    """`count` idle replicas of `deployment`."""
    pool = deployment.pool
    swap = 0.0
    device = deployment.group.device
    if deployment.scheduler.preemption == "swap":
        if not device.has_tier("host"):
            raise UnsupportedError(f"{device.name} has no host link in its profile; use --preemption recompute")
        swap = pool.block_bytes / device.tier("host").bandwidth_bytes_per_s
    return [
        Replica(
            table,
            deployment.scheduler,
            pool,
            book,
            swap_s_per_block=swap,
            prefix=PrefixCache(id_tokens, pool.block_tokens) if book.ids else None,
        )
        for _ in range(count)
    ]


def collect(
    deployment: Deployment, requests: Requests, book: Book, replicas: Sequence[Replica], chosen: Sequence[int]
) -> Outcome:
    """What happened to `requests`, which `replicas` have served."""
    behind = _through_stages_s(deployment, replicas, chosen, book)
    return Outcome(
        deployment=deployment,
        requests=requests,
        replica=np.array(chosen),
        admitted_s=np.array(book.admitted),
        first_s=np.array(book.first) + behind,
        finish_s=np.array(book.finish) + behind,
        queues=((requests.arrival_s, np.array(book.admitted)),),
        preemptions=np.array(book.preemptions),
        hits=np.array(book.hits),
        events=tuple(_events(r) for r in replicas),
        gaps=np.array([g for r in replicas for g in r.gaps]),
        seconds=0.0,
    )


def _events(replica: Replica) -> np.ndarray:
    """Steps of `replica`, of `EVENT`."""
    names = len(EVENT.names or ())
    flat = np.fromiter(chain.from_iterable(replica.events), float, names * len(replica.events))
    return flat.view(EVENT)


def _through_stages_s(
    deployment: Deployment, replicas: Sequence[Replica], chosen: Sequence[int], book: Book
) -> np.ndarray:
    """Per request, how long after the step of its last chunk the pipeline's last stage is done with it [s]."""
    out = np.zeros(len(book.arrival))
    if deployment.group.pp == 1:
        return out
    first, at = np.array(book.first), np.array(chosen)
    for k, replica in enumerate(replicas):
        events = _events(replica)
        events = events[events["chunks"] > 0]
        mine = np.flatnonzero(at == k)
        # A prompt ends with a step: its first token's time is that step's start and duration, to the last bit.
        step = np.searchsorted(events["start_s"] + events["duration_s"], first[mine])
        out[mine] = through_stages_s(deployment.group, events)[step]
    return out


def _split(deployment: Deployment, requests: Requests, table: StepTable) -> Outcome:
    """Prefill replicas first, then the decode replicas with what they hand over.

    A prefill replica never waits for a decode replica to take the KV, so the first half does not depend on the
    second. The KV of a prompt goes over each GPU's link while other steps run.
    """
    prompts = book_of(deployment, requests)
    prompts.left = [1] * len(requests)
    prompts.output = [1] * len(requests)
    first = replicas_of(deployment, table, prompts, deployment.prefill_replicas, requests.id_tokens)
    prefilled = route(deployment, first, prompts)
    behind = _through_stages_s(deployment, first, prefilled, prompts)
    arrival = np.array(prompts.finish) + behind + _transfer_s(deployment, requests)
    more = np.flatnonzero(requests.output > 1)
    order = more[np.argsort(arrival[more], kind="stable")]
    rest = Book(
        arrival[order].tolist(),
        requests.prompt[order].tolist(),
        requests.output[order].tolist(),
        length=(requests.prompt[order] + 1).tolist(),
        left=(requests.output[order] - 1).tolist(),
        reserve=[prompts.reserve[i] for i in order] if prompts.reserve else (),
        ready=set(range(len(order))),
    )
    second = replicas_of(deployment, table, rest, deployment.replicas)
    chosen = route(deployment, second, rest)
    whole = collect(deployment, requests, prompts, [*first, *second], prefilled)
    finish, preemptions, replica = whole.finish_s.copy(), whole.preemptions.copy(), np.full(len(requests), -1)
    finish[order], replica[order] = rest.finish, np.array(chosen, int) + len(first)
    preemptions[order] += np.array(rest.preemptions, int)
    handed = (np.array(rest.arrival), np.array(rest.admitted))
    return replace(whole, replica=replica, finish_s=finish, preemptions=preemptions, queues=(*whole.queues, handed))


def _transfer_s(deployment: Deployment, requests: Requests) -> np.ndarray:
    """Time to hand the KV of each prompt over: ``latency + KV bytes per GPU / rate`` [s]."""
    group = deployment.group
    rate, latency = deployment.transfer_bytes_per_s, 0.0
    if rate is None:
        link = group.device.link if group.device.links else None
        if link is None or deployment.gpus > link.max_ranks:
            reach = "no link" if link is None else f"a link for {link.max_ranks} GPUs"
            raise InputError(
                f"{group.device.name} has {reach} in its profile, the fleet {deployment.gpus} GPUs; give the rate"
                " per GPU",
                where="--kv-transfer",
            )
        rate, latency = link.bandwidth_bytes_per_s, link.latency.value
    prompt = requests.prompt.astype(float)
    size = memory.kv_bytes_per_sequence(
        group.lowering, prompt, prompt=prompt, pp=group.pp, block_tokens=group.block_tokens
    )
    return latency + size / rate


def _refuse_prefix(deployment: Deployment, requests: Requests) -> None:
    if not deployment.prefix_cache:
        return
    if not requests.ids:
        raise InputError(
            f"{requests.name} does not say which prompts begin alike (hash_ids); drop it", where="--prefix-cache"
        )
    if requests.id_tokens % deployment.pool.block_tokens:
        raise InputError(
            f"{deployment.pool.block_tokens} does not divide the {requests.id_tokens} tokens of a prefix id",
            where="--block-size",
        )


def refuse_long(deployment: Deployment, requests: Requests) -> None:
    """Refuse a request that is longer than the context or, alone, than the cache."""
    group, pool = deployment.group, deployment.pool
    total = requests.prompt + requests.output
    if not group.ignore_context:
        _refuse(
            requests,
            total > group.model.max_context,
            total,
            f"the {group.model.max_context:,} of {group.model.name}'s context; leave it out, or give"
            " --ignore-context-limit",
        )
    if pool.grows:
        need = -(-np.maximum(requests.prompt, total - 1) // pool.block_tokens)
        if deployment.prefill_replicas:
            need = -(-total // pool.block_tokens)
        need = need + pool.extra_blocks
    else:
        need = reserved_blocks(group, pool, requests.prompt, requests.output)
    _refuse(requests, need > pool.blocks, total, f"the KV cache of {pool.tokens:,} tokens; raise --tp, or leave it out")


def _refuse(requests: Requests, bad: np.ndarray, tokens: np.ndarray, than: str) -> None:
    if bad.any():
        i = int(np.argmax(bad))
        more = int(bad.sum()) - 1
        others = f" (and {more} more)" if more else ""
        raise InputError(
            f"prompt and output of {int(tokens[i]):,} tokens are more than {than}{others}", where=requests.where(i)
        )
