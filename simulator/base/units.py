"""Quantities at the edge: text with a unit in, SI floats inside, readable text out.

SI units used inside: B, B/s, flop, flop/s, Hz, W, s, USD/h and ``1`` for counts. Decimal prefixes
are powers of ten (GB = 10^9 B), binary ones powers of two (GiB = 2^30 B); flop counts multiply and
add apart.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

from simulator.base.errors import InputError

_DECIMAL = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_SMALL = {"m": Decimal("1e-3"), "u": Decimal("1e-6"), "µ": Decimal("1e-6"), "n": Decimal("1e-9")}
_FLOP_WORDS = ("flop/s", "FLOP/s", "FLOPS", "OP/s")


def _scales() -> dict[str, dict[str, Decimal]]:
    """Accepted spellings of each unit and their factor to SI."""
    up = {prefix: Decimal(scale) for prefix, scale in _DECIMAL.items()}
    binary = {prefix: Decimal(scale) for prefix, scale in _BINARY.items()}
    return {
        "B": {f"{p}B": s for p, s in {**up, **binary}.items()},
        "B/s": {f"{p}B/s": s for p, s in {**up, **binary}.items()},
        "flop/s": {f"{p}{word}": s for p, s in up.items() for word in _FLOP_WORDS},
        "Hz": {f"{p}Hz": s for p, s in up.items()},
        "W": {f"{p}W": s for p, s in {**up, "m": _SMALL["m"]}.items()},
        "s": {**{f"{p}s": s for p, s in _SMALL.items()}, "s": Decimal(1)},
        "USD/h": {"USD/h": Decimal(1)},
        "1": dict(up),
    }


SCALES = _scales()
"""Unit -> accepted spelling -> factor; the keys are the units a profile may use."""

_EXAMPLES = {
    "B": "141 GB",
    "B/s": "4.8 TB/s",
    "flop/s": "989 TFLOP/s",
    "Hz": "1.98 GHz",
    "W": "700 W",
    "s": "600 ns",
    "USD/h": "3.5 USD/h",
    "1": "132",
}
_NUMBER = re.compile(r"\s*([+-]?(?:\d[\d_]*)(?:\.\d+)?(?:[eE][+-]?\d{1,3})?)\s*(\S.*?)?\s*")


def example(unit: str) -> str:
    """How a quantity in `unit` is written, for messages."""
    return _EXAMPLES[_known(unit)]


def parse_quantity(text: str, unit: str) -> float:
    """Value of `text` in the SI unit `unit`.

    Parameters
    ----------
    text : str
        Number and unit, e.g. ``"4.8 TB/s"``.
    unit : str
        One of `SCALES`: B, B/s, flop/s, Hz, W, s, USD/h, 1.

    Returns
    -------
    float
        Nearest float to the exact decimal value [`unit`].

    Raises
    ------
    InputError
        When the text is not a number, or has no unit or another one than asked for.
    """
    known = SCALES[_known(unit)]
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise InputError(f"cannot read {text!r} as {_noun(unit)}; {_how(unit)}")
    number, suffix = match[1], match[2] or ""
    if suffix not in known:
        if not suffix:
            raise InputError(f"{text.strip()!r} needs a unit; {_how(unit)}")
        raise InputError(f"cannot read {text.strip()!r} as {_noun(unit)}; {_how(unit)}")
    value = float(Decimal(number) * known[suffix])
    if not math.isfinite(value):
        raise InputError(f"{text.strip()!r} is too large for {_noun(unit)}; {_how(unit)}")
    return value


def exact_quantity(value: float, unit: str) -> str:
    """Shortest text that `parse_quantity` reads back as exactly `value` [`unit`].

    Used to write profiles, where ``85.9 GB`` for 80 GiB would change the number.
    """
    if not math.isfinite(value):
        raise InputError(f"cannot write {value!r} as {_noun(unit)}; it must be finite")
    known = SCALES[_known(unit)]
    best = f"{_plain(Decimal(repr(float(value))))} {'' if unit == '1' else unit}".rstrip()
    for suffix, scale in known.items():
        if suffix and suffix not in _WRITTEN:
            continue
        exact = _plain(Decimal(repr(float(value))) / scale)
        for number in (exact, f"{Decimal(value) / scale:.12g}"):
            text = f"{number} {suffix}".rstrip()
            if len(text) <= len(best) and _reads_back(text, unit, value):
                best = text
    return best


def format_bytes(size_bytes: float, digits: int = 3) -> str:
    """Size in decimal and binary units: ``"141 GB (131 GiB)"``; below 1 kB just ``"512 B"``."""
    decimal = _engineering(size_bytes, "B", _UP, digits)
    if not math.isfinite(size_bytes) or abs(size_bytes) < 1000:
        return decimal
    binary = _engineering(size_bytes, "B", [("", 1.0), *((p, float(s)) for p, s in _BINARY.items())], digits)
    return f"{decimal} ({binary})"


_UP = [(p, float(s)) for p, s in _DECIMAL.items() if p != "K"]
_WRITTEN = {
    f"{prefix}{unit}"
    for unit in ("B", "B/s", "FLOP/s", "Hz", "W")
    for prefix in ("k", "M", "G", "T", "P", "Ki", "Mi", "Gi", "Ti")
} | {"ms", "us", "ns", "mW", "k", "M", "G"}


def _engineering(value: float, unit: str, steps: list[tuple[str, float]], digits: int) -> str:
    """`value` with the largest prefix that leaves at least 1 before the point, after rounding."""
    if not math.isfinite(value):
        return f"{value} {unit}".rstrip()
    rounded = float(f"{value:.{digits - 1}e}")
    prefix, scale = steps[0]
    for step, size in steps:
        if abs(rounded) >= size * (1 - 1e-12):
            prefix, scale = step, size
    return f"{_significant(value / scale, digits)} {prefix}{unit}".rstrip()


def _significant(value: float, digits: int) -> str:
    """`value` to `digits` significant digits, without an exponent."""
    if not math.isfinite(value):
        return str(value)
    return _plain(Decimal(f"{value:.{digits - 1}e}"))


def _plain(number: Decimal) -> str:
    """Decimal without exponent or trailing zeros."""
    text = f"{number:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text


def _reads_back(text: str, unit: str, value: float) -> bool:
    """Whether `text` parses to exactly `value`."""
    try:
        return parse_quantity(text, unit) == value
    except InputError:
        return False


def _known(unit: str) -> str:
    """`unit` if profiles may use it."""
    if unit not in SCALES:
        raise InputError(f"unknown unit {unit!r}; use one of: {', '.join(SCALES)}")
    return unit


def _noun(unit: str) -> str:
    """Name of `unit` in a message."""
    return "a count" if unit == "1" else unit


def _how(unit: str) -> str:
    """What to write instead."""
    return f'write it like "{example(unit)}"'
