"""Speculative decoding as a scenario spells it: who drafts, how far ahead, and how much of it is accepted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from simulator.base.errors import InputError, UnknownNameError
from simulator.policies.grammar import no_parameter, read_call

FLAG = "--speculate"
KINDS = {
    "draft": "a smaller model of the same vocabulary",
    "eagle3": "one trained layer over features of the model, with a head of 32,000 tokens (EAGLE-3)",
    "eagle": "one trained layer over the model's last features, with the model's own head (EAGLE-1, EAGLE-2)",
    "mtp": "one more layer of the model's own kind (DeepSeek's multi-token prediction), applied again for k > 1",
    "ngram": "tokens that followed the same words before, at no cost on the GPU",
}
"""Who drafts."""
PARAMETERS = ("k", "accept", "tau", "topk", "nodes", "model")
MOST = 64
"""Drafted steps and branches at most; `nodes` up to their product."""


@dataclass(frozen=True)
class Speculation:
    """Tokens are drafted, then verified in one step of the model [1]_.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    k : int
        Steps of the drafting model per step of the model, so tokens drafted on one path [-].
    tokens : float
        Tokens that a step of the model yields on average, the one of its own among them (``tau`` of EAGLE) [-].
    topk, nodes : int
        Branches that a drafting step goes on with, and drafted tokens that are verified [-]; 1 and `k` for a chain.
    model : str
        Name of the drafting model; "" where the kind says what it is.
    spelling : str
        Canonical text.

    References
    ----------
    .. [1] Leviathan et al. 2023, arXiv:2211.17192: each drafted token accepted with probability a gives
       ``(1 - a^(k+1)) / (1 - a)`` tokens per step. EAGLE, arXiv:2401.15077;
       EAGLE-3, arXiv:2503.01840; DeepSeek-V3, arXiv:2412.19437.
    """

    kind: str
    k: int
    tokens: float
    topk: int
    nodes: int
    model: str
    spelling: str

    def __str__(self) -> str:
        return self.spelling

    @property
    def drafts(self) -> float:
        """Steps of a drafting model within one of the model [-]."""
        return 0.0 if self.kind == "ngram" else float(self.k)


def chain_tokens(accept: float, k: int) -> float:
    """Tokens per step of a chain of `k`, each accepted with probability `accept` if those before it were [-]."""
    return float(sum(accept**i for i in range(k + 1)))


@lru_cache(maxsize=1024)
def speculation(text: str) -> Speculation | None:
    """What ``kind(k=...,accept=...)`` spells; None for "".

    ``accept`` is the chance of each drafted token, or what vLLM prints by position: ``0.8/0.6/0.4``, the share of
    steps in which that many were accepted. ``tau`` is what tables give in its place: tokens per step.

    Raises
    ------
    InputError
        Another syntax, an unknown parameter, or figures that contradict each other.
    UnknownNameError
        Another kind.
    """
    if not text.strip():
        return None
    name, given = read_call(text, "speculation", FLAG)
    if name not in KINDS:
        raise UnknownNameError("way to speculate", name, KINDS, where=FLAG)
    known = [p for p in PARAMETERS if p != "model" or name == "draft"]
    for key in given:
        if key not in known:
            raise no_parameter(name, key, known, FLAG)
    if name == "draft" and "model" not in given:
        raise _wrong(name, "needs the model that drafts, e.g. draft(model=llama-3.2-1b,k=4,accept=0.7)")
    if "k" not in given:
        raise _wrong(name, "needs the tokens drafted per step, e.g. k=4")
    if ("accept" in given) == ("tau" in given):
        raise _wrong(name, "needs what is accepted: accept=0.7 of each drafted token, or tau=2.8 tokens per step")
    k = _whole(name, "k", given["k"], MOST)
    topk = _whole(name, "topk", given.get("topk", "1"), MOST)
    nodes = _whole(name, "nodes", given.get("nodes", str(k)), MOST * MOST)
    if nodes < k:
        raise _wrong(name, f"nodes={nodes}: the tokens verified hold at least one path of k={k}")
    if topk == 1 and nodes > k:
        raise _wrong(name, f"nodes={nodes} on one path of k={k}; give the branches, topk=4")
    if topk > 1 and "accept" in given:
        raise _wrong(name, "accept is of a chain; of a tree give tau, tokens per step")
    tokens = _tau(name, given["tau"], k) if "tau" in given else _accepted(name, given["accept"], k)
    order = {key: given[key] for key in PARAMETERS if key in given}
    spelling = f"{name}({','.join(f'{key}={value}' for key, value in order.items())})"
    return Speculation(name, k, tokens, topk, nodes, given.get("model", ""), spelling)


def _wrong(name: str, why: str) -> InputError:
    return InputError(f"{name}: {why}", where=FLAG)


def _number(name: str, key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise _wrong(name, f"{key}={text}: is not a number") from None


def _whole(name: str, key: str, text: str, most: int) -> int:
    value = _number(name, key, text)
    if not (1 <= value <= most and value == int(value)):
        raise _wrong(name, f"{key}={text}: must be a whole number of 1 to {most}")
    return int(value)


def _tau(name: str, text: str, k: int) -> float:
    value = _number(name, "tau", text)
    if not 1.0 <= value <= k + 1.0:
        raise _wrong(name, f"tau={text}: tokens per step are 1 to k + 1 = {k + 1}")
    return value


def _accepted(name: str, text: str, k: int) -> float:
    shares = [_number(name, "accept", part) for part in text.split("/")]
    if not all(0.0 <= share <= 1.0 for share in shares):
        raise _wrong(name, f"accept={text}: shares are 0 to 1")
    if len(shares) == 1:
        return chain_tokens(shares[0], k)
    if len(shares) != k:
        raise _wrong(name, f"accept={text}: {len(shares)} positions, but k={k}")
    if any(after > before for before, after in pairwise(shares)):
        raise _wrong(name, f"accept={text}: a later position is not accepted more often than one before it")
    return 1.0 + sum(shares)
