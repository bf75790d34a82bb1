"""Types of a device profile: every number with its source, and what the model asks of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from simulator.base.dtypes import DType
from simulator.base.errors import UnsupportedError
from simulator.base.units import exact_quantity
from simulator.device.fits import Fit
from simulator.device.measured import Measured

Kind = Literal["datasheet", "measured", "assumed"]
ClockName = Literal["boost", "max"]


@dataclass(frozen=True, slots=True)
class Sourced:
    """One number of a profile and where it comes from.

    Attributes
    ----------
    value : float
        In the SI unit `unit`.
    unit : str
        B, B/s, flop/s, Hz, W, s, USD/h or 1.
    source : str
        Key in `hw_profiles/sources.toml`; profiles from outside may use their own.
    kind : "datasheet" | "measured" | "assumed"
        What the number is worth.
    note : str
        What a reader must know about it.
    date : str
        Day the number was stated, for prices (YYYY-MM-DD).
    """

    value: float
    unit: str
    source: str
    kind: Kind
    note: str = ""
    date: str = ""

    @property
    def text(self) -> str:
        """Value with its unit, exact."""
        return exact_quantity(self.value, self.unit)


@dataclass(frozen=True, slots=True)
class Clock:
    """Core clocks: tensor peaks are stated at `boost`; `max` is the highest seen or lockable."""

    base: Sourced
    boost: Sourced
    max: Sourced


class ClockHz(NamedTuple):
    """Core clocks as plain numbers [Hz]."""

    base: float
    boost: float
    max: float


@dataclass(frozen=True, slots=True)
class Peak:
    """Arithmetic peak of one dtype.

    Attributes
    ----------
    dense, sparse24 : Sourced
        Peak [flop/s], multiply and add counted apart; `sparse24` counts the dense flop that a 2:4
        product stands for.
    fp16_accumulate : Sourced, optional
        Faster rate with an FP16 accumulator, where the card has one.
    at : "boost" | "max"
        Clock the printed figure refers to.
    """

    dense: Sourced
    sparse24: Sourced | None = None
    fp16_accumulate: Sourced | None = None
    at: ClockName = "boost"


@dataclass(frozen=True, slots=True)
class MemoryTier:
    """One level of memory as the device sees it; `host` and `ssd` have the link's rate."""

    name: str
    technology: str
    capacity: Sourced
    bandwidth: Sourced
    latency: Sourced
    sector: Sourced
    line: Sourced

    @property
    def capacity_bytes(self) -> float:
        """Size [B]."""
        return self.capacity.value

    @property
    def bandwidth_bytes_per_s(self) -> float:
        """One-way read rate [B/s]."""
        return self.bandwidth.value

    @property
    def latency_s(self) -> float:
        """Time to the first byte [s]."""
        return self.latency.value

    @property
    def sector_bytes(self) -> float:
        """Smallest piece moved [B]."""
        return self.sector.value

    @property
    def line_bytes(self) -> float:
        """Cache line or page [B]."""
        return self.line.value


LARGEST_DOMAIN = 72
"""Devices of the largest NVLink domain that is sold, NVL72 [-]."""


@dataclass(frozen=True, slots=True)
class Link:
    """Connection to other devices of its kind.

    Attributes
    ----------
    bandwidth : Sourced
        One way, per device, over all its lanes; between machines that of all adapters of one, which a ring enters once
        on each [B/s].
    switched : bool
        Every pair may use the full rate at once (NVSwitch).
    max_ranks : int
        Devices in the domain this link spans.
    nvls : bool
        The switch can reduce in flight (NVLink SHARP).
    """

    name: str
    bandwidth: Sourced
    latency: Sourced
    switched: bool
    max_ranks: int
    nvls: bool

    @property
    def joins_nodes(self) -> bool:
        """Whether it is the network between machines."""
        return self.max_ranks > LARGEST_DOMAIN

    @property
    def bandwidth_bytes_per_s(self) -> float:
        """One way, per device [B/s]."""
        return self.bandwidth.value

    @property
    def latency_s(self) -> float:
        """Per hop [s]."""
        return self.latency.value


@dataclass(frozen=True, slots=True, eq=False)
class Device:
    """Everything known about one device; equal when name, profile bytes and fits are."""

    name: str
    aliases: tuple[str, ...]
    matches: tuple[str, ...]
    vendor: str
    arch: str
    compute_capability: str | None
    note: str
    sm_count_source: Sourced
    clock: Clock
    peaks: Mapping[DType, Peak]
    vector: Peak
    memory: tuple[MemoryTier, ...]
    links: tuple[Link, ...]
    marketed_capacity: Sourced
    power: Sourced
    idle_power: Sourced
    price: Sourced
    profile_hash: str
    measured: Measured = field(default_factory=Measured, repr=False)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Device):
            return NotImplemented
        mine, theirs = (self.name, self.profile_hash), (other.name, other.profile_hash)
        return self is other or (mine == theirs and self.measured == other.measured)

    def __hash__(self) -> int:
        return hash((self.name, self.profile_hash, self.measured))

    def with_fits(self, family: str, fits: Iterable[Fit]) -> Device:
        """A copy that answers for `family` from `fits` alone; those of other devices are its pooled ones."""
        of = tuple(fits)
        own, pooled = (tuple(f for f in of if (f.device == self.name) == mine) for mine in (True, False))
        return replace(self, measured=self.measured.replaced(family, own, pooled))

    @property
    def scope(self) -> str:
        """Devices that share kernels: ``sm80``, ``sm86``, ..., ``sm100`` (all 10.x); else the architecture."""
        if not self.compute_capability:
            return self.arch
        major, minor = (int(part) for part in self.compute_capability.split("."))
        return f"sm{major}{minor if major < 9 else 0}"

    @property
    def sm_count(self) -> int:
        """Streaming multiprocessors, compute units or cores."""
        return int(self.sm_count_source.value)

    @property
    def clock_hz(self) -> ClockHz:
        """Base, boost and highest clock [Hz]."""
        return ClockHz(self.clock.base.value, self.clock.boost.value, self.clock.max.value)

    def has(self, dtype: DType | str, sparse24: bool = False) -> bool:
        """Whether a peak for `dtype` is known."""
        peak = self.peaks.get(dtype if isinstance(dtype, DType) else DType(dtype))
        return peak is not None and (peak.sparse24 is not None or not sparse24)

    def peak_flop_per_s(self, dtype: DType | str, sparse24: bool = False, clock: ClockName = "boost") -> float:
        """Matrix peak with FP32 accumulation [flop/s].

        Parameters
        ----------
        dtype : DType
            Arithmetic; int8 counts integer operations.
        sparse24 : bool
            The 2:4 rate, in dense-equivalent flop.
        clock : "boost" | "max"
            At the clock the datasheet means, or at the highest one: peak * max/boost. A floor needs
            the latter.

        Raises
        ------
        UnsupportedError
            When the profile has no such peak; the message names those it has.
        """
        dtype = DType(dtype)
        peak = self.peaks.get(dtype)
        if peak is None:
            raise UnsupportedError(f"{self.name} has no {dtype} peak; it has {', '.join(self.peaks)}")
        number = peak.sparse24 if sparse24 else peak.dense
        if number is None:
            with_24 = [str(d) for d, p in self.peaks.items() if p.sparse24]
            known = f"it has one for {', '.join(with_24)}" if with_24 else "it has none"
            raise UnsupportedError(f"{self.name} has no 2:4 sparse {dtype} peak; {known}")
        return number.value * self._clock_factor(peak.at, clock)

    @property
    def vector_flop_per_s(self) -> float:
        """FP32 rate of the vector (CUDA-core) units at boost clock [flop/s]."""
        return self.vector.dense.value * self._clock_factor(self.vector.at, "boost")

    @property
    def fp16_accumulate_flop_per_s(self) -> float | None:
        """FP16 matrix peak with an FP16 accumulator at boost [flop/s]; None without FP16 units."""
        peak = self.peaks.get(DType.FP16)
        if peak is None:
            return None
        return (peak.fp16_accumulate or peak.dense).value * self._clock_factor(peak.at, "boost")

    def _clock_factor(self, at: ClockName, wanted: ClockName) -> float:
        hz = {"boost": self.clock.boost.value, "max": self.clock.max.value}
        return hz[wanted] / hz[at]

    def tier(self, name: str) -> MemoryTier:
        """Memory tier called `name` (l2, hbm, host, ssd)."""
        for tier in self.memory:
            if tier.name == name:
                return tier
        have = ", ".join(t.name for t in self.memory)
        raise UnsupportedError(
            f"{self.name} has no memory tier {name!r}, it has {have}; add a [[memory]] {name!r} to a copy of its"
            f" profile (python -m simulator.devices {self.name} --toml) and give that file as --device"
        )

    def has_tier(self, name: str) -> bool:
        """Whether the device has that tier (unified memory has no `host`)."""
        return any(tier.name == name for tier in self.memory)

    @property
    def l2_bytes(self) -> float:
        """Last-level cache on the device [B]."""
        return self.tier("l2").capacity_bytes

    @property
    def hbm_bytes_per_s(self) -> float:
        """Datasheet bandwidth of the main memory [B/s]."""
        return self.tier("hbm").bandwidth_bytes_per_s

    @property
    def capacity_bytes(self) -> float:
        """Main memory as the driver reports it [B]; the marketed size is `marketed_capacity`."""
        return self.tier("hbm").capacity_bytes

    @property
    def link(self) -> Link:
        """Fastest link to a device of the same kind."""
        return self.links[0]

    def link_for(self, ranks: int) -> Link:
        """Fastest link whose domain holds `ranks` devices; the widest one when none does."""
        for link in self.links:
            if ranks <= link.max_ranks:
                return link
        return max(self.links, key=lambda link: link.max_ranks)

    @property
    def power_w(self) -> float:
        """Board power limit [W]."""
        return self.power.value

    @property
    def idle_w(self) -> float:
        """Power when idle [W]."""
        return self.idle_power.value

    @property
    def price_usd_per_h(self) -> Sourced:
        """Price of one device-hour [USD/h], with its date; edit it to yours."""
        return self.price

    def facts(self) -> Iterator[tuple[str, Sourced]]:
        """Every number with its path, e.g. ``memory.hbm.bandwidth``, in file order."""
        yield "sm_count", self.sm_count_source
        yield "marketed_capacity", self.marketed_capacity
        yield "power", self.power
        yield "idle_power", self.idle_power
        yield "price", self.price
        for name in ("base", "boost", "max"):
            yield f"clock.{name}", getattr(self.clock, name)
        for path, peak in self.peak_tables():
            for name in ("dense", "sparse24", "fp16_accumulate"):
                number = getattr(peak, name)
                if number is not None:
                    yield f"{path}.{name}", number
        for tier in self.memory:
            for name in ("capacity", "bandwidth", "latency", "sector", "line"):
                yield f"memory.{tier.name}.{name}", getattr(tier, name)
        for index, link in enumerate(self.links):
            yield f"link.{index}.bandwidth", link.bandwidth
            yield f"link.{index}.latency", link.latency

    def peak_tables(self) -> Iterator[tuple[str, Peak]]:
        """The vector and matrix peaks with their table names."""
        yield "vector", self.vector
        for dtype, peak in self.peaks.items():
            yield f"compute.{dtype}", peak

    @property
    def sources(self) -> frozenset[str]:
        """Source keys of all numbers."""
        return frozenset(number.source for _, number in self.facts())
