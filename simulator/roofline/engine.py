"""Serving engines as data: which kernel libraries they call and what they add to the kernels."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from simulator.base.arrays import Array, maximum
from simulator.base.dtypes import FORMATS, KV_FORMATS, DType, Format
from simulator.base.errors import InputError, UnknownNameError, reason
from simulator.base.files import read_limited
from simulator.base.memo import Stamp, stamp
from simulator.device.catalogue import Device, user_data_dir
from simulator.device.releases import MARK, version
from simulator.roofline.reserve import Reserve, load_reserves

LOGGER = logging.getLogger(__name__)
MOST_BYTES = 1_000_000
"""Largest file of own engines [B]."""
ASSUMED_SPREAD = 0.10
"""Step error assumed for an engine whose own was never measured [-]."""
FOREIGN_SPREAD = 0.25
"""Further step error on an architecture the engine was never measured on [-]."""
ASKED: Mapping[str, tuple[str, ...]] = {
    "attention": tuple(f"{phase}.{kv}" for phase in ("prefill", "decode", "decode-mla") for kv in KV_FORMATS),
    "collective": ("all_reduce", "all_gather"),
    "elementwise": ("bf16",),
    "moe": (*FORMATS, "w4a16.mx"),
}
"""Families of which every engine calls one library, and the formats and operations it may be asked for.

Products have a ``vendor`` fit that pools the libraries of a place; whole blocks, linear attention and exchanges between
experts' ranks belong to the engines that were measured with them."""
FEWEST = 8
"""Setups below which a measured spread is not used [-]."""


@dataclass(frozen=True)
class StepParts:
    """Time of one step, taken apart [s]; arrays of the step's shape.

    Attributes
    ----------
    total_s : Array
        ``max(GPU stream, submission) + waiting``; their sum where the host waits for every layer.
    stream_s, submit_s, wait_s : Array
        Kernels in the engine's hands, the host's launches beside them, and the host work both wait for.
    gain_s : Array or None
        What the engine's hands add to the kernels' own timings, negative where they save; None = nothing.
    """

    total_s: Array
    stream_s: Array
    submit_s: Array
    wait_s: Array
    gain_s: Array | None

    def scaled(self, factor: float) -> StepParts:
        """`factor` of each."""
        gain = None if self.gain_s is None else self.gain_s * factor
        total, stream = self.total_s * factor, self.stream_s * factor
        return StepParts(total, stream, self.submit_s * factor, self.wait_s * factor, gain)


@dataclass(frozen=True)
class Engine:
    """What an inference engine adds to its kernels.

    Attributes
    ----------
    graph_decode, graph_prefill : bool
        Whether steps of that kind replay a CUDA graph.
    waits_by_layer : bool
        The host waits for the GPU after every layer, so that kernels are not submitted ahead.
    launch_eager_s, launch_graph_s : float
        Host seconds per kernel launch, one by one and inside a replayed graph [s].
    op_kernels : float
        Kernels that `launch_eager_s` submits for an op of the model, where the engine does not fuse; those a policy
        adds are counted one by one [-].
    schedule_s : float
        Host seconds between two steps that the GPU waits for [s].
    draft_s : float
        Host seconds for each step of a drafting model, which the GPU waits for, too; 0 where a graph holds them or
        nobody told [s].
    row_s, token_s : float
        The part of that which grows with the sequences and with the prompt tokens of the step [s].
    rank_s : float
        What one collective costs beyond its isolated timing: ranks wait for the slowest [s].
    hidden_s : float
        What a kernel inside a graph saves over its isolated timing: fused quantisation and norms, a launch
        that overlaps the kernel before [s]; below the least time of any kernel, about 2 us.
    decode_stretch, prefill_stretch : float
        Kernel time inside the engine over the sum of the kernels' own timings [-].
    fp16_accumulate : bool
        Products of FP16 add up in FP16, those of fewer bits in integers: see `adds_fast`.
    piece_tokens : float
        Pieces of a prompt that follow each other through the stages of a pipeline, while generating sequences pass
        them all at once (layer split); 0: sequences are shared out among the stages [tokens].
    burst_bytes, burst_s_per_byte : float
        Messages of at least so many bytes take ``burst_s_per_byte log2(ranks/2)`` longer per byte [B, s/B].
    queue_share, queue_alike : float
        Prompts computed before a client's in a closed loop, where lengths vary and where all are alike [-].
    queue_power : float
        They grow with ``clients**power``: 0 where prompts go beside generating, 1 where waves of prompts go first [-].
    request_s, frontend_s : float
        Time of a request outside the scheduler, and that per prompt token; seen by clients of a closed loop only [s].
    host : dict
        Host time per device architecture relative to the machine the figures were found on [-].
    spread_decode, spread_prefill, spread_queue : tuple of (sigma, n)
        Log-space error of a step, and of the wait in a closed loop, that the kernels' intervals do not
        explain, and setups behind it.
    eager : dict
        Bytes moved and kernels launched by an engine that does not fuse, over one fused kernel's, by kind of
        elementwise op [-].
    kernels : dict
        Preferred libraries per family, and per ``family.arch`` where they differ.
    kv : dict
        Format of the KV cache by format of the linear layers, where it is not their 16-bit twin.
    archs : tuple of str
        Device architectures it was measured on; empty: does not matter.
    n, date : int, str
        Measured setups behind the figures (0: assumed), and when they were fitted.
    memory : str
        Engine whose table of ``engine_memory.toml`` it shares, where that is not its own.
    family, since : str
        What dated engines of one kind are asked for by, ``vllm@0.11``, and the first release that this one stands for.
    releases : tuple of str
        Releases its setups were measured in, oldest first.
    pace : dict
        Time of a prefill and of a decode step over the engine's, by release whose setups tell it [-].
    release, rows_of : str
        Release asked for, and the one whose setups answer; "": none.
    """

    name: str
    title: str
    source: str
    graph_decode: bool
    graph_prefill: bool
    launch_eager_s: float
    launch_graph_s: float
    schedule_s: float
    row_s: float
    waits_by_layer: bool = False
    op_kernels: float = 1.0
    token_s: float = 0.0
    draft_s: float = 0.0
    rank_s: float = 0.0
    hidden_s: float = 0.0
    decode_stretch: float = 1.0
    prefill_stretch: float = 1.0
    fp16_accumulate: bool = False
    piece_tokens: float = 0.0
    burst_bytes: float = float("inf")
    burst_s_per_byte: float = 0.0
    queue_share: float = 0.0
    queue_alike: float = 0.0
    queue_power: float = 0.0
    request_s: float = 0.0
    frontend_s: float = 0.0
    host: dict[str, float] = field(default_factory=dict)
    spread_decode: tuple[float, int] = (0.0, 0)
    spread_prefill: tuple[float, int] = (0.0, 0)
    spread_queue: tuple[float, int] = (0.0, 0)
    eager: dict[str, tuple[float, float]] = field(default_factory=dict)
    kernels: dict[str, str] = field(default_factory=dict)
    kv: dict[str, str] = field(default_factory=dict)
    archs: tuple[str, ...] = ()
    n: int = 0
    date: str = ""
    memory: str = ""
    family: str = ""
    since: str = ""
    releases: tuple[str, ...] = ()
    pace: dict[str, tuple[float, float]] = field(default_factory=dict)
    release: str = ""
    rows_of: str = ""

    def collective_extra_s(self, message_bytes: Array, ranks: int) -> Array:
        """What one all-reduce costs in a step beyond its isolated timing [s]."""
        extra: Array = self.rank_s
        if self.burst_s_per_byte and ranks > 2:
            rate = self.burst_s_per_byte * math.log2(ranks / 2.0)
            extra = extra + rate * message_bytes * (message_bytes >= self.burst_bytes)
        return extra

    def adds_fast(self, fmt: Format) -> bool:
        """Whether products in `fmt` do not wait for an FP32 accumulator, half as fast on GeForce cards."""
        return self.fp16_accumulate and (fmt.math is DType.FP16 or fmt.weight_bits < 16)

    def step(
        self,
        device: Device,
        *,
        gpu_s: Array,
        comm_extra_s: Array,
        launches: Array,
        graph: bool,
        prefills: bool,
        sequences: Array,
        prompt_tokens: Array,
        floor_s: Array = 0.0,
        copies: Array = 0.0,
        alone: Array = 0.0,
        drafts: float = 0.0,
    ) -> StepParts:
        """Time of one step from the sum of its kernels.

        Parameters
        ----------
        gpu_s, comm_extra_s : Array
            Sum of the kernels and of `collective_extra_s` over the step's collectives [s].
        launches, sequences, prompt_tokens : Array
            Kernels launched, sequences sampled, prompt tokens computed [-].
        graph, prefills : bool
            Whether the step replays a graph, and whether it computes prompts.
        floor_s : Array
            Least time of the step's weights, KV and products; what the engine saves never goes below it [s].
        copies : Array
            Launches among them that are no kernels of the stream: none of their time is hidden there [-].
        alone : Array
            Launches among them submitted while the stream is empty, because the host waited for a value [-].
        drafts : float
            Steps of a drafting model within this step [-].
        """
        host = self.host.get(device.arch, 1.0)
        stretch = self.prefill_stretch if prefills else self.decode_stretch
        stream: Array = gpu_s
        gain: Array | None = None
        if stretch != 1.0 or (graph and self.hidden_s):
            hidden = (launches - copies) * self.hidden_s if graph else 0.0
            stream = gpu_s * stretch - hidden
            if self.saves(prefills):
                stream = maximum(stream, floor_s)
            gain = stream - gpu_s
        stream = stream + comm_extra_s
        submit = launches * (host * (self.launch_graph_s if graph else self.launch_eager_s))
        wait = host * (self.schedule_s + self.draft_s * drafts) + (host * self.row_s) * sequences
        if prefills and self.token_s:
            wait = wait + (host * self.token_s) * prompt_tokens
        exposed = self.exposed_s(device, alone)
        busy = stream + submit if self.waits_by_layer else maximum(stream, submit - exposed) + exposed
        return StepParts(busy + wait, stream, submit, wait, gain)

    def ahead(self, clients: Array, alike: bool) -> Array:
        """Prompts computed before a client's own in a closed loop; `alike`: all requests have the same lengths [-]."""
        share = self.queue_alike if alike else self.queue_share
        return share * clients**self.queue_power

    def exposed_s(self, device: Device, launches: Array) -> Array:
        """Host time of `launches` to an empty stream: the host has just waited for a value [s]."""
        return launches * (self.host.get(device.arch, 1.0) * self.launch_eager_s)

    def saves(self, prefills: bool) -> bool:
        """Whether a step may take less than the sum of its kernels."""
        stretch = self.prefill_stretch if prefills else self.decode_stretch
        return stretch < 1.0 or self.hidden_s > 0.0

    def spread(self, device: Device, prefills: bool) -> float:
        """Log-space standard deviation of a step beyond its kernels' intervals [-]."""
        sigma, n = self.spread_prefill if prefills else self.spread_decode
        sigma = sigma if n >= FEWEST else ASSUMED_SPREAD
        known = not self.archs or device.arch in self.archs
        return sigma if known else math.hypot(sigma, FOREIGN_SPREAD)

    def kv_dtype(self, fmt: Format) -> str:
        """Format of the KV cache when nobody names one."""
        if fmt.name in self.kv:
            return self.kv[fmt.name]
        return fmt.name if fmt.name in ("fp16", "fp32") else "bf16"

    @property
    def unnamed(self) -> tuple[str, ...]:
        """What it can be asked for and names no kernel of, as ``family.key``: whichever was measured would answer."""
        return tuple(f"{f}.{k}" for f, keys in ASKED.items() for k in keys if self._named(f, k, "") is None)

    def kernel(self, device: Device, family: str, key: str) -> str | None:
        """Library it calls for ops of `family` and format or operation `key`, the most special entry first; or None."""
        return self._named(family, key, device.arch)

    def _named(self, family: str, key: str, arch: str) -> str | None:
        parts = [family, *key.split(".")]
        for end in range(len(parts), 0, -1):
            name = ".".join(parts[:end])
            for full in (f"{name}.{arch}", name):
                if full in self.kernels:
                    return self.kernels[full]
        return None

    def calling(self, family: str, library: str) -> Engine:
        """The same engine, every op of `family` done by `library`."""
        others = {k: v for k, v in self.kernels.items() if k.partition(".")[0] != family}
        return replace(self, kernels={**others, family: library})

    def unfused(self, kind: str) -> tuple[float, float]:
        """Bytes and kernels of an elementwise op of `kind` over those of a fused kernel [-]."""
        return self.eager.get(kind, (1.0, 1.0))

    @property
    def reserve(self) -> Reserve | None:
        """What it keeps of a GPU's memory; None where it has no pool of KV and holds a batch as it comes."""
        return load_reserves().get(self.memory or self.name.partition(MARK)[0])

    def as_of(self, release: str) -> Engine:
        """The engine in `release`: kernels as they were, the pace of the newest measured one not after it."""
        rows_of = max((r for r in self.releases if version(r) <= version(release)), key=version, default="")
        prefill, decode = self.pace.get(rows_of, (1.0, 1.0))
        return replace(
            self,
            name=f"{self.family}{MARK}{release}",
            prefill_stretch=self.prefill_stretch * prefill,
            decode_stretch=self.decode_stretch * decode,
            memory=self.memory or self.name,
            release=release,
            rows_of=rows_of,
        )

    @property
    def assumes(self) -> str:
        """Which release an answer is for, in words; "" where it has none."""
        if not self.release:
            return f"{self.family} as of {self.releases[-1]}, the newest measured" if self.releases else ""
        if self.rows_of == self.release:
            return f"{self.family} {self.release}, measured"
        if self.rows_of:
            return f"{self.family} {self.release}, told as {self.rows_of}, the nearest older release measured"
        return f"{self.family} {self.release}, not measured: told as {self.title}"

    def __hash__(self) -> int:
        return hash(self.name)


def parse_engines(text: str) -> dict[str, Engine]:
    """Engines of the TOML `text` by name; one that is ``like`` another has its figures where it has none of its own."""
    engines: dict[str, Engine] = {}
    for name, table in tomllib.loads(text).items():
        like = table.pop("like", "")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
        if "eager" in values:
            values["eager"] = {k: (float(b), float(n)) for k, (b, n) in values["eager"].items()}
        if "pace" in values:
            values["pace"] = {k: (float(p), float(d)) for k, (p, d) in values["pace"].items()}
        engines[name] = replace(engines[like], name=name, **values) if like else Engine(name=name, **values)
    return engines


def load_engines() -> dict[str, Engine]:
    """Engines of ``hw_profiles/engines.toml``, and the user's own of ``$SHADOWLINE_HOME/engines``, by name."""
    mine = own_files()
    return {**load_shipped(), **_own(tuple(map(stamp, mine)))} if mine else load_shipped()


def own_files() -> list[Path]:
    """Files of the user's own engines, as `simulator.calibrate` writes them."""
    return sorted((user_data_dir() / "engines").glob("*.toml"))


def read_own(path: Path) -> dict[str, Engine]:
    """Engines of one of the user's own files.

    Raises
    ------
    InputError
        What cannot be read, or is called as no ``family@label`` of a shipped engine.
    """
    try:
        found = parse_engines(read_limited(path, MOST_BYTES).decode("utf-8"))
    except OSError as error:
        raise InputError(f"cannot read: {reason(error)}", where=str(path)) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"is no engine ({error}); calibrate again", where=str(path)) from None
    for name in found:
        family, _, label = name.partition(MARK)
        if not label or family not in load_shipped():
            raise InputError(f"{name!r} is not FAMILY{MARK}LABEL of a shipped engine; rename it", where=str(path))
    return found


@lru_cache(maxsize=8)
def _own(files: tuple[Stamp, ...]) -> dict[str, Engine]:
    out: dict[str, Engine] = {}
    for file in files:
        try:
            out |= read_own(Path(file.path))
        except InputError as error:
            # One that is broken must not hide the others; `doctor` tells it as a problem.
            LOGGER.warning("warning: %s; it is left out", error)
    return out


@lru_cache(maxsize=1)
def load_shipped() -> dict[str, Engine]:
    """Engines of ``hw_profiles/engines.toml`` by name."""
    return parse_engines(resources.files("hw_profiles").joinpath("engines.toml").read_text("utf-8"))


def engines_digest() -> str:
    """12 hex digits of the contents of the engine tables, the user's own included."""
    data = resources.files("hw_profiles").joinpath("engines.toml").read_bytes()
    return hashlib.sha256(b"".join((data, *(p.read_bytes() for p in own_files())))).hexdigest()[:12]


def get_engine(name: str) -> Engine:
    """Engine called `name`, or ``FAMILY@RELEASE``; an unknown one is an error with suggestions."""
    engines = load_engines()
    if (key := name.casefold()) in engines:
        return engines[key]
    family, mark, release = key.partition(MARK)
    if mark and family in engines and not dated(family):
        raise InputError(f"{family} is not told by release; write {family}", where="--engine")
    if not mark or not dated(family) or not version(release):
        families = {f"{e.family}{MARK}{release}" for e in engines.values() if e.family} if version(release) else set()
        raise UnknownNameError("engine", name, {*engines, *families}, where="--engine")
    engine, at = of_release(family, release)
    return engine.as_of(at)


def dated(family: str) -> list[Engine]:
    """Engines of a family with the release each begins with, oldest first."""
    found = [e for e in load_shipped().values() if e.family == family]
    return sorted(found, key=lambda e: version(e.since))


def known_releases(family: str) -> list[str]:
    """Releases that setups, kernels or the beginnings of a family's engines tell of, oldest first."""
    kernels = re.compile(rf"{re.escape(family)}-(\d[^:]*):")
    told: set[str] = set()
    for engine in dated(family):
        told |= {engine.since, *engine.releases}
        told |= {found[1] for library in engine.kernels.values() if (found := kernels.match(library))}
    return sorted(told, key=version)


def of_release(family: str, release: str) -> tuple[Engine, str]:
    """The engine that stands for `release` of a family, and the release meant: the one place where it is understood.

    ``0.11`` is the newest known ``0.11.x``. `Engine.as_of` tells the release, by the nearest older one measured.

    Raises
    ------
    InputError
        A release before the first or after the last that is known, or none at all.
    """
    known = known_releases(family)
    within = [r for r in known if r.startswith(f"{release}.")] if release.count(".") < 2 else []
    at = within[-1] if within else release
    engines = [e for e in dated(family) if version(e.since) <= version(at)]
    if not version(release) or not engines or version(at) > version(known[-1]):
        near = known[-1 if engines else 0]
        told = f"release {release!r} of {family} is not known; did you mean {family}{MARK}{near}?"
        raise InputError(f"{told} known: {', '.join(known)} and what lies between", where="--engine")
    return engines[-1], at
