"""Quantities in, text out, and what is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.base.errors import InputError
from simulator.base.units import SCALES, exact_quantity, format_bytes, parse_quantity


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("4.8 TB/s", "B/s", 4.8e12),
        ("4.8TB/s", "B/s", 4.8e12),
        ("989.4 TFLOP/s", "flop/s", 989.4e12),
        ("624 TOP/s", "flop/s", 624e12),
        ("81920 MiB", "B", 81920 * 2**20),
        ("50 MB", "B", 50e6),
        ("1_000 kB", "B", 1e6),
        ("1.98 GHz", "Hz", 1.98e9),
        ("700 W", "W", 700.0),
        ("151 ns", "s", 151e-9),
        ("80 us", "s", 80e-6),
        ("80 µs", "s", 80e-6),
        ("2 ms", "s", 2e-3),
        ("3.5 USD/h", "USD/h", 3.5),
        ("132", "1", 132.0),
        ("7.5 k", "1", 7500.0),
        ("-3 GB", "B", -3e9),
        ("1e3 B", "B", 1000.0),
    ],
)
def test_reads_value_and_unit(text, unit, value):
    assert parse_quantity(text, unit) == value


@pytest.mark.parametrize(
    ("text", "unit", "says"),
    [
        ("4.8", "B/s", "'4.8' needs a unit; write it like \"4.8 TB/s\""),
        ("4.8 TB", "B/s", "cannot read '4.8 TB' as B/s; write it like \"4.8 TB/s\""),
        ("80 Gb", "B", "cannot read '80 Gb' as B"),  # bits are not bytes
        ("80 gb", "B", "cannot read '80 gb' as B"),
        ("5 mb/s", "B/s", "cannot read"),
        ("nan GB", "B", "cannot read"),
        ("inf GB", "B", "cannot read"),
        ("1e999 B", "B", "too large"),
        ("1 2 GB", "B", "cannot read"),
        ("", "B", "cannot read ''"),
        ("3 x", "1", "as a count"),
        ("2 min", "s", "as s"),
    ],
)
def test_refuses_and_says_how_to_write_it(text, unit, says):
    with pytest.raises(InputError) as caught:
        parse_quantity(text, unit)
    assert says in str(caught.value)
    assert "write it like" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_unit_lists_the_known_ones():
    with pytest.raises(InputError, match="B/s, flop/s"):
        parse_quantity("3 furlong", "furlong")


finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e18, max_value=1e18)


@given(value=finite, unit=st.sampled_from(sorted(SCALES)))
def test_exact_text_reads_back_to_the_same_float(value, unit):
    assert parse_quantity(exact_quantity(value, unit), unit) == value


@pytest.mark.parametrize(
    ("value", "unit", "text"), [(4.8e12, "B/s", "4.8 TB/s"), (80 * 2**30, "B", "80 GiB"), (1.83e9, "Hz", "1.83 GHz")]
)
def test_exact_text_is_short(value, unit, text):
    assert exact_quantity(value, unit) == text


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_exact_text_refuses_what_is_not_finite(value):
    with pytest.raises(InputError, match="finite"):
        exact_quantity(value, "B")


@given(st.floats(min_value=1.0, max_value=1e17))
def test_format_bytes_round_trips_to_its_digits(size):
    decimal, _, binary = format_bytes(size).partition(" (")
    assert parse_quantity(decimal, "B") == pytest.approx(size, rel=5e-3)
    if binary:
        assert parse_quantity(binary.rstrip(")"), "B") == pytest.approx(size, rel=5e-3)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (format_bytes(141e9), "141 GB (131 GiB)"),
        (format_bytes(512), "512 B"),
        (format_bytes(999.9e6), "1 GB (954 MiB)"),
        (format_bytes(math.inf), "inf B"),
    ],
)
def test_shown_text(text, shown):
    assert text == shown
