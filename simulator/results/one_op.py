"""One op asked by name: its points, their times with interval and roofline, and the speed-up over another op."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from simulator.base.arrays import Array
from simulator.base.dtypes import get_format
from simulator.base.errors import InputError, UnknownNameError, UnsupportedError
from simulator.base.interval import Interval, ratio
from simulator.device.catalogue import load
from simulator.device.fits import ANY
from simulator.device.releases import apart
from simulator.device.types import Device
from simulator.inference.bound import Bound, attribute
from simulator.ops.dense import dense_of
from simulator.ops.named import NAMED, NamedOp, Parameter
from simulator.ops.ops import Attention, Linear
from simulator.ops.traffic import Operand
from simulator.policies.grammar import listed, no_parameter, read_call
from simulator.results.verdict import Verdict, verdicts
from simulator.roofline.bare import Bare, bare
from simulator.roofline.engine import Engine, get_engine
from simulator.roofline.optime import OpTime, gain_of
from simulator.roofline.timing import time_op
from simulator.scenario.grid import whole_numbers

FLAG = "OP"
VERSUS = "--versus"
MOST_POINTS = 10_000_000
"""Points of one question [-]; each takes about 200 B while it is worked out."""
DTYPE = "bf16"
ENGINE = "kernels"


@dataclass(frozen=True)
class AskedOp:
    """An op with the values of each of its parameters.

    Attributes
    ----------
    text : str
        As it was written.
    values : mapping of str to tuple
        Numbers or words, those not given at their default.
    """

    text: str
    name: str
    values: Mapping[str, tuple[Any, ...]]

    @property
    def of(self) -> NamedOp:
        """What is known by the name."""
        return NAMED[self.name]

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """Parameters of several values."""
        return {key: values for key, values in self.values.items() if len(values) > 1}


def parse(text: str, where: str = FLAG) -> AskedOp:
    """An op from ``name(key=value,...)``, numbers as ranges or lists ``[a,b]``.

    Raises
    ------
    InputError
        Another syntax, a parameter it has not, a value out of range, or one that is missing.
    UnknownNameError
        No such op.
    """
    name, given = read_call(text, "op", where)
    if name not in NAMED:
        raise UnknownNameError("op", name, NAMED, where=where)
    known = NAMED[name].parameters
    for key in given:
        if key not in known:
            raise no_parameter(name, key, known, where)
    values: dict[str, tuple[Any, ...]] = {}
    for key, parameter in known.items():
        if key in given:
            values[key] = _values(given[key], parameter, f"{where}: {name}: {key}")
        elif parameter.default is None:
            raise InputError(f"{name} needs {key} ({parameter.meaning}), e.g. {NAMED[name].example}", where=where)
        else:
            values[key] = (parameter.default,)
    return AskedOp(text.strip(), name, values)


def _values(text: str, parameter: Parameter, where: str) -> tuple[Any, ...]:
    items = listed(text)
    if parameter.choices:
        for item in items:
            if item not in parameter.choices:
                raise UnknownNameError("value", item, parameter.choices, where=where)
        return tuple(dict.fromkeys(items))
    if parameter.share:
        return tuple(dict.fromkeys(_share(item, where) for item in items))
    found = tuple(n for item in items for n in ((0,) if item == "0" and not parameter.least else _whole(item, where)))
    if min(found) < parameter.least:
        raise InputError(f"{min(found)} must be {parameter.least} or more", where=where)
    return tuple(dict.fromkeys(found))


def _whole(text: str, where: str) -> tuple[int, ...]:
    return whole_numbers(text, where)


def _share(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value <= 1.0:
        raise InputError(f"{text!r} is not a share; write a number above 0 and at most 1", where=where)
    return value


@dataclass(frozen=True, eq=False)
class OpPoints:
    """Points of an op that one device, format and kernel answer for.

    Attributes
    ----------
    labels : mapping
        Device, engine, format and the parameters that are one value here.
    sizes : mapping of str to ndarray, shape (n,)
        Parameters of several values, at each point.
    time : OpTime or None
        None where the device cannot run it: `problem` says why.
    versus : OpTime, optional
        The op it is compared with.
    """

    labels: Mapping[str, Any]
    sizes: Mapping[str, np.ndarray]
    device: Device
    time: OpTime | None
    versus: OpTime | None = None
    problem: UnsupportedError | None = None

    def __len__(self) -> int:
        return len(next(iter(self.sizes.values()))) if self.sizes else 1

    def _each(self, value: Array) -> np.ndarray:
        return np.broadcast_to(np.asarray(value, float), (len(self),))

    @cached_property
    def roofline(self) -> Bare:
        """Its flop and bytes at datasheet rates [s]."""
        assert self.time is not None
        return bare(self.time.op, self.device)

    @cached_property
    def speedup(self) -> Interval[np.ndarray] | None:
        """Time of the other op over this one's, with its paired interval [-]; None without another."""
        if self.time is None or self.versus is None:
            return None
        return _faster(self.time, self.versus).each(self._each)

    @property
    def bounds(self) -> np.ndarray:
        """What binds each point, as a step's breakdown names it: index into `Bound`."""
        assert self.time is not None
        shares: dict[Bound, Array] = dict.fromkeys(Bound, 0.0)
        attribute(self.time, shares)
        return np.argmax(np.stack([self._each(share) for share in shares.values()]), axis=0)

    def columns(self) -> dict[str, Any]:
        """Labels as they are, figures as arrays of shape (n,); units end their names."""
        out: dict[str, Any] = {**self.labels, **self.sizes}
        t = self.time
        if t is None:
            assert self.problem is not None
            return out | {"reason": self.problem.message}
        total, demand, roof = self._each(t.total_s), t.op.traffic(), self.roofline
        out |= {"time_s": total, "time_s_lo": self._each(t.lo_s), "time_s_hi": self._each(t.hi_s)}
        out |= {"basis": str(t.basis), "source": t.source, "bound": np.array(list(map(str, Bound)))[self.bounds]}
        out |= {"flop": self._each(demand.total_flop)}
        for operand in Operand:
            access = demand.access.get(operand)
            out[f"{operand}_bytes"] = self._each(access.total_bytes if access else 0.0)
        out |= {
            "tier": roof.place,
            "peak_share": self._each(roof.math_s) / total,
            "bandwidth_share": self._each(roof.bytes_s) / total,
            "launch_share": np.minimum(self._each(t.launch_s) / total, 1.0),
            "roofline_s": self._each(roof.least_s),
            "over_roofline": total / np.maximum(self._each(roof.least_s), 1e-30),
        }
        if self.versus is not None and self.speedup is not None:
            gained = self.speedup
            out |= {"versus_s": self._each(self.versus.total_s), "speedup": gained.mid}
            out |= {"speedup_lo": gained.lo, "speedup_hi": gained.hi, "p_win": self._each(gained.above(1.0))}
            words = [str(word).removesuffix(" as dense") for word in Verdict]
            out |= {"verdict": np.array(words)[verdicts(gained)]}
        return out


def _faster(own: OpTime, other: OpTime) -> Interval[Any]:
    """Time of `other` over that of `own` [-]: of a sparse kernel and its own dense op as speed-ups are judged.

    Of any other two the errors are independent; of an op beside itself there is none.
    """
    if own is other:
        return Interval.exact(own.total_s / own.total_s)
    if _twins(own, other):
        return gain_of(own, other, cross=own.stands_in)
    if _twins(other, own):
        slower = gain_of(other, own, cross=other.stands_in)
        return Interval(1.0 / slower.mid, 1.0 / slower.hi, 1.0 / slower.lo)
    return ratio(*(Interval(t.total_s, t.lo_s, t.hi_s) for t in (other, own)))


def _twins(sparse: OpTime, dense: OpTime) -> bool:
    """Whether one is a kernel of measured speed-ups over the other."""
    a, b = sparse.op, dense.op
    if sparse.gain is None or not isinstance(a, Linear | Attention) or type(a) is not type(b):
        return False
    twin = dense_of(a)
    return all(np.array_equal(getattr(twin, f.name), getattr(b, f.name)) for f in fields(twin))


def ask(
    text: str,
    device: Sequence[str],
    *,
    dtype: Sequence[str] = (DTYPE,),
    engine: Sequence[str] = (ENGINE,),
    kernel: Sequence[str] = ("",),
    versus: str = "",
) -> list[OpPoints]:
    """Points of an op on every device, in every format and kernel; those of its ranges are arrays.

    Parameters
    ----------
    text, versus : str
        Op, and one to compare it with: ranges of one parameter must be the same in both.
    device, dtype, engine, kernel : sequence of str
        Names; a kernel is the library of its fits, "" whichever the engine calls.

    Raises
    ------
    InputError
        What cannot be read, or a format or kernel for an op that has none.
    UnsupportedError
        No device can run it.

    Examples
    --------
    >>> points, = ask("gemm(m=16,n=11008,k=4096)", ["h100-sxm"])
    >>> bool(1e-5 < points.columns()["time_s"][0] < 1e-4)
    True
    """
    own = parse(text)
    other = parse(versus, VERSUS) if versus else None
    axes = _axes(own, other)
    if (n := math.prod(map(len, axes.values())) * len(device) * len(dtype) * len(engine) * len(kernel)) > MOST_POINTS:
        raise InputError(f"{n:,} points; at most {MOST_POINTS:,}", where=FLAG)
    formats = dtype if own.of.takes_dtype or (other and other.of.takes_dtype) else ("",)
    if not formats[0] and tuple(dtype) != (DTYPE,):
        raise InputError(f"{own.name} takes no format", where="--dtype")
    for name in filter(None, formats):
        get_format(name)
    devices, engines = [load(name) for name in device], [get_engine(name) for name in engine]
    found = [
        points
        for profile, by, fmt, library in itertools.product(devices, engines, formats, kernel)
        for points in _points(own, other, axes, profile, by, fmt, library)
    ]
    problems = [points.problem for points in found if points.problem is not None]
    if len(problems) == len(found):
        raise problems[0]
    return found


def _axes(own: AskedOp, other: AskedOp | None) -> dict[str, tuple[Any, ...]]:
    """Parameters of several values in either op."""
    axes = own.axes
    for key, values in (other.axes if other else {}).items():
        if axes.setdefault(key, values) != values:
            raise InputError(f"{key} has other values here than in the op; give both the same range", where=VERSUS)
    return axes


def _points(
    own: AskedOp,
    other: AskedOp | None,
    axes: Mapping[str, tuple[Any, ...]],
    device: Device,
    engine: Engine,
    dtype: str,
    kernel: str,
) -> Iterator[OpPoints]:
    asked = [op for op in (own, other) if op is not None]
    fixed = [key for key in axes if any(key in op.axes and op.of.parameters[key].fixed for op in asked)]
    free = [key for key in axes if key not in fixed]
    mesh = np.meshgrid(*(np.asarray(axes[key], float) for key in free), indexing="ij")
    sizes = {key: values.ravel() for key, values in zip(free, mesh, strict=True)}
    for chosen in itertools.product(*(axes[key] for key in fixed)):
        here = sizes | dict(zip(fixed, chosen, strict=True))
        labels = {"op": own.name, "device": device.name, "engine": engine.name, "kernel": kernel, "dtype": dtype}
        labels |= {key: values[0] for key, values in own.values.items() if len(values) == 1}
        labels |= dict(zip(fixed, chosen, strict=True))
        if other is not None:
            labels["versus"] = other.text
        try:
            time = _time(own, here, device, engine, dtype, kernel)
            versus = None
            if other is not None:
                same = (other.name, other.values) == (own.name, own.values)
                versus = time if same else _time(other, here, device, engine, dtype, "")
        except UnsupportedError as error:
            yield OpPoints(labels, sizes, device, None, problem=error)
        else:
            yield OpPoints(labels | {"kernel": time.fit.library}, sizes, device, time, versus)


def _time(op: AskedOp, axes: Mapping[str, Any], device: Device, engine: Engine, dtype: str, kernel: str) -> OpTime:
    values: dict[str, Any] = {}
    for key, (first, *more) in op.values.items():
        value = axes[key] if more else first
        if op.of.parameters[key].choices:
            values[key] = value == "yes" if op.of.parameters[key].choices == ("no", "yes") else value
        else:
            values[key] = value if isinstance(value, np.ndarray) else float(value)
    if op.of.takes_dtype:
        values["dtype"] = dtype
    family = op.of.family
    if kernel:
        _known_kernel(op, device, kernel, values.get("pattern"))
        if family == "sparse":
            values["kernel"] = kernel
        else:
            engine = engine.calling(family, kernel)
    time = time_op(op.of.build(**values), device, engine)
    # No kernel of its kind was measured: timed as another pass over memory, which is a guess.
    return time if op.of.measured else time._replace(carried=True)


def _known_kernel(op: AskedOp, device: Device, kernel: str, pattern: str | None) -> None:
    """Refuse a library that no fit of the family was made of."""
    family = op.of.family
    if not family:
        raise InputError(f"{op.name} runs in no kernel of a library", where="--kernel")
    fits = (*device.measured.own(family), *device.measured.pooled(family))
    known = {fit.library for fit in fits if fit.library != ANY and pattern in (None, fit.dtype)}
    if apart(kernel)[0] not in known:
        raise UnknownNameError(f"kernel of {op.name}", kernel, known, where="--kernel")
