"""What a broken device profile says: file, line, what is wrong and what to write instead."""

import pytest

from simulator.device.catalogue import load, to_toml
from simulator.device.file import ProfileError, parse_profile


def h200_text():
    return to_toml(load("h200"))


def line_of(text, start):
    return next(i for i, line in enumerate(text.splitlines(), 1) if line.startswith(start))


def problems(text):
    with pytest.raises(ProfileError) as caught:
        parse_profile(text.encode(), "h200.toml")
    return caught.value.problems


def hbm_bandwidth_line(text):
    lines = text.splitlines()
    start = lines.index('name = "hbm"')
    return next(i for i in range(start, len(lines)) if lines[i].startswith("bandwidth")) + 1


def test_unknown_key_names_the_line_and_the_near_key():
    text = h200_text()
    number = hbm_bandwidth_line(text)
    lines = text.splitlines()
    lines[number - 1] = lines[number - 1].replace("bandwidth", "bandwith", 1)
    first, second = problems("\n".join(lines))
    assert "key 'bandwidth' is missing from memory; add it" in first
    assert second == f"h200.toml:{number}: unknown key 'bandwith', did you mean 'bandwidth'?"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('value = "4.8 TB/s"', "value = 4.8e12", 'value needs quotes and a unit, e.g. value = "4.8 TB/s"'),
        ('value = "4.8 TB/s"', 'value = "4.8"', "'4.8' needs a unit"),
        ('value = "4.8 TB/s"', 'value = "4.8 TB"', "cannot read '4.8 TB' as B/s"),
        ('value = "4.8 TB/s"', 'value = "0 B/s"', "out of range"),
        ('value = "4.8 TB/s"', 'value = "-4.8 TB/s"', "out of range"),
        ('value = "4.8 TB/s"', 'value = "nan TB/s"', "cannot read 'nan TB/s'"),
        ('value = "4.8 TB/s"', 'value = "inf"', "cannot read 'inf'"),
        ('value = "4.8 TB/s"', 'value = "4.8e300 TB/s"', "too large"),
    ],
)
def test_bad_bandwidth_is_refused_at_its_line(old, new, says):
    text = h200_text()
    number = hbm_bandwidth_line(text)
    (problem,) = problems(text.replace(old, new, 1))
    assert problem.startswith(f"h200.toml:{number}: memory.bandwidth")
    assert says in problem


def test_a_bare_number_in_place_of_the_table_is_refused():
    text = h200_text()
    number = line_of(text, "power")
    lines = text.splitlines()
    lines[number - 1] = "power = 700"
    (problem,) = problems("\n".join(lines))
    assert problem.startswith(f'h200.toml:{number}: power: needs {{ value = "700 W"')


def test_all_problems_come_at_once():
    text = (
        h200_text()
        .replace('vendor = "nvidia"', "vendor = 3")
        .replace("[compute.fp8]", "[compute.fp9]")
        .replace('"700 W", source', '"700 W", sorce')
        .replace("max_ranks = 8", "max_ranks = 0", 1)
    )
    found = "\n".join(problems(text))
    assert "vendor: got 3" in found
    assert "unknown dtype 'fp9'; known: fp32, tf32, bf16, fp16, fp8, int8, fp4" in found
    assert "unknown key 'sorce', did you mean 'source'?" in found
    assert "max_ranks" in found
    assert all(line.startswith("h200.toml:") for line in found.splitlines())


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("schema = 1", "schema = 2", "reads schema 1, got 2"),
        ('kind = "measured"', 'kind = "guessed"', "guessed"),
        ("[clock]\n", "[clock]\nturbo = 3\n", "unknown key 'turbo', known: base, boost, max"),
        ('name = "hbm"', 'name = "vram"', 'named "hbm"'),
        ('name = "host"', 'name = "hbm"', "'hbm' appears twice"),
        ('{ value = "989.4 TFLOP/s", source', '{ value = "155 TFLOP/s", source', "sparse24 peak is below dense"),
        ('date = "2026-11-21"', 'date = "last week"', "date"),
        (', date = "2026-11-21"', "", 'a price needs date = "YYYY-MM-DD"'),
    ],
)
def test_other_mistakes(old, new, says):
    text = h200_text()
    assert old in text, f"the test no longer touches the file: {old}"
    assert says in "\n".join(problems(text.replace(old, new, 1)))


def test_clocks_must_rise():
    text = h200_text().replace('"1.83 GHz"', '"2.83 GHz"')
    assert "clocks must rise" in "\n".join(problems(text))


def test_malformed_toml_names_the_line():
    text = h200_text()
    number = line_of(text, "arch")
    lines = text.splitlines()
    lines[number - 1] = "arch = hopper"
    (problem,) = problems("\n".join(lines))
    assert problem.startswith(f"h200.toml:{number}: not valid TOML: ")


def test_a_cut_file_names_its_last_line():
    (problem,) = problems('schema = 1\nname = "h200')
    assert problem.startswith("h200.toml:2: not valid TOML")


def test_other_encodings_name_the_line():
    with pytest.raises(ProfileError, match=r"x\.toml:2: not UTF-8"):
        parse_profile(b'schema = 1\nname = "\xff"\n', "x.toml")


def test_an_empty_file_lists_what_is_missing():
    found = problems("")
    assert len(found) >= 12
    assert any("key 'power' is missing from the profile" in p for p in found)
