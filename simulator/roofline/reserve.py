"""What an engine keeps of a GPU's memory before KV has its share: facts per engine, and one start of it."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from simulator.base.interval import Z90, Interval
from simulator.device.catalogue import Device

DRIVER_BYTES = 0.5e9
"""Memory that nvidia-smi lists and no process is given [B]: 0.35-0.8 GiB in logs of H100, A100, RTX 4090 and 5090."""
PEAK_SPREAD = 0.25
"""Log-space error of the peak of a step or of the sampler [-]: assumed; the start-up logs of the tests lie within."""
SHARES = ("total", "static", "free")
KINDS = ("counted", "measured", "assumed")
"""How a figure is known: from the tensors of the source, from start-up logs, or not."""


@dataclass(frozen=True)
class Known:
    """One figure of an engine with where it is from.

    Attributes
    ----------
    lo, hi : float
        Ends of what was seen; both alike where it is counted.
    kind, source : str
        One of `KINDS`, and the place.
    """

    lo: float
    hi: float
    kind: str
    source: str

    @property
    def mid(self) -> float:
        """The middle of what was seen."""
        return (self.lo + self.hi) / 2.0


@dataclass(frozen=True)
class Card:
    """Defaults on GPUs of at least so much memory.

    Attributes
    ----------
    seqs, tokens : int
        Sequences at once and tokens of one step [-].
    at_least_gib : float
        Memory from which they hold [GiB].
    but_not : str
        Beginning of the names of devices they do not hold for.
    whole_prompts : int
        Context up to which a step holds a prompt of full length [tokens].
    graphs : tuple of int
        Largest batch of a captured graph below four ranks, and from four on [-].
    """

    seqs: int
    tokens: int
    at_least_gib: float = 0.0
    but_not: str = ""
    whole_prompts: int = 0
    graphs: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Start:
    """One engine as it is started on a device.

    Attributes
    ----------
    fraction : float
        Share of the memory, as `Reserve.of` reads it [-].
    seqs, tokens : int
        Sequences at once and tokens of one step [-].
    """

    reserve: Reserve
    fraction: float
    seqs: int
    tokens: int

    def pool_bytes(self, capacity_bytes: float, weights_bytes: float, peak_bytes: float, outside_bytes: float) -> float:
        """KV of one GPU; negative where the engine does not start [B].

        ``total``: ``f M - weights - peak - outside``; ``static``: ``f (M - outside) - weights``; ``free``:
        ``f (M - outside - weights - peak)``, M what the driver gives.
        """
        given = capacity_bytes - DRIVER_BYTES
        if self.reserve.of == "static":
            return self.fraction * (given - outside_bytes) - weights_bytes
        if self.reserve.of == "free":
            return self.fraction * (given - outside_bytes - weights_bytes - peak_bytes)
        return self.fraction * given - weights_bytes - peak_bytes - outside_bytes


@dataclass(frozen=True)
class Reserve:
    """Facts of one engine.

    Attributes
    ----------
    of : str
        What its share is of, one of `SHARES`.
    fraction : float or None
        Default share; None: SGLang's own rule of the card.
    flag : str
        What the engine calls it.
    cards : tuple of Card
        Defaults, largest memory first.
    logit_bytes : Known
        Bytes of the sampler per sequence and word at its peak [B].
    outside_bytes, link_bytes : Known
        Outside of torch on one GPU, and more with several [B].
    """

    name: str
    source: str
    of: str
    flag: str
    cards: tuple[Card, ...]
    logit_bytes: Known
    outside_bytes: Known
    link_bytes: Known
    fraction: float | None = None

    def start(
        self,
        device: Device,
        gpus: int,
        length: int,
        *,
        fraction: float | None = None,
        seqs: int | None = None,
        tokens: int | None = None,
    ) -> Start:
        """The engine on `gpus` of `device` with a context of `length`; what is None is its own default."""
        gib = device.capacity_bytes / 2**30
        card = next(
            c for c in self.cards if gib >= c.at_least_gib and not (c.but_not and device.name.startswith(c.but_not))
        )
        if tokens is None:
            tokens = max(card.tokens, length) if length <= card.whole_prompts else card.tokens
        if fraction is None:
            fraction = self.fraction if self.fraction is not None else _static_share(device, gpus, card, tokens)
        return Start(self, fraction, card.seqs if seqs is None else seqs, tokens)

    def outside(self, gpus: int) -> Interval[float]:
        """Context, libraries and, with several GPUs, communication buffers that its share has to hold [B]."""
        known = (self.outside_bytes, *((self.link_bytes,) if gpus > 1 else ()))
        return Interval(*(sum(getattr(one, end) for one in known) for end in ("mid", "lo", "hi")))


def _static_share(device: Device, gpus: int, card: Card, tokens: int) -> float:
    """SGLang's default: all but 512 MiB, 1.5 MiB a token of a chunk, 2 MiB a row of its graphs, 128 MiB a rank [-].

    At least 10 GiB are left on cards above 60 GiB.
    """
    mib = device.capacity_bytes / 2**20
    left = 512.0 + 1.5 * max(tokens, 2048) + 2.0 * card.graphs[gpus >= 4] + 128.0 * gpus
    if mib > 60 * 1024:
        left = max(left, 10.0 * 1024)
    return round((mib - left) / mib, 3)


def peak_between(peak_bytes: float) -> Interval[float]:
    """90 % interval of the peak of a step or the sampler [B]."""
    factor = math.exp(Z90 * PEAK_SPREAD)
    return Interval(peak_bytes, peak_bytes / factor, peak_bytes * factor)


def parse_reserves(text: str) -> dict[str, Reserve]:
    """Reserves of the TOML `text` by engine."""
    out = {}
    for name, table in tomllib.loads(text).items():
        cards = tuple(_card(card) for card in table.pop("cards"))
        known = {k: Known(**v) for k, v in table.items() if isinstance(v, dict)}
        out[name] = Reserve(name=name, cards=cards, **{**table, **known})
        if out[name].of not in SHARES:
            raise ValueError(f"{name}: of must be one of {', '.join(SHARES)}")
        for key, one in known.items():
            if one.kind not in KINDS or not one.source or not 0.0 <= one.lo <= one.hi:
                raise ValueError(f"{name}: {key} needs 0 <= lo <= hi, a source and a kind of {', '.join(KINDS)}")
    return out


def _card(table: Mapping[str, Any]) -> Card:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items() if k != "not"}
    values["but_not"] = table.get("not", "")
    return Card(**values)


@lru_cache(maxsize=1)
def load_reserves() -> dict[str, Reserve]:
    """Reserves of ``hw_profiles/engine_memory.toml`` by engine."""
    return parse_reserves(resources.files("hw_profiles").joinpath("engine_memory.toml").read_text("utf-8"))
