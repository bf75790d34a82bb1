"""Every number of every shipped device has value, unit, source and kind, and they fit together.

A failure says file, key, what is wrong and what to do: whoever sees it wrote a TOML, not this test.
"""

import csv
import os
import tomllib
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from simulator.base.dtypes import DType
from simulator.base.errors import fold
from simulator.base.units import SCALES
from simulator.device.catalogue import list_devices, load

FOLDER = Path(str(resources.files("hw_profiles"))) / "devices"
FILES = sorted(FOLDER.glob("*.toml"))
SOURCES = tomllib.loads((FOLDER.parent / "sources.toml").read_text(encoding="utf-8"))
DATA = Path(os.environ.get("SHADOWLINE_DATA", Path(__file__).parents[3] / "shared" / "data"))
UNITLESS = {"schema", "max_ranks"}
KINDS = ("datasheet", "measured", "assumed")


class Arch(NamedTuple):
    """What a generation has: vector lanes per SM (or CU, core), and which features its sheets document."""

    lanes: float
    sparse24: bool = False
    fp8: bool = False
    fp4: bool = False
    nvls: bool = False


ARCHITECTURES = {
    "volta": Arch(64),
    "turing": Arch(64),
    "ampere": Arch(128, sparse24=True),
    "ada": Arch(128, sparse24=True, fp8=True),
    "hopper": Arch(128, sparse24=True, fp8=True, nvls=True),  # in-switch reduction came with the third NVSwitch
    "blackwell": Arch(128, sparse24=True, fp8=True, fp4=True, nvls=True),
    "cdna2": Arch(64),
    "cdna3": Arch(128, sparse24=True, fp8=True),
    "cdna4": Arch(128, sparse24=True, fp8=True, fp4=True),
    "rdna3": Arch(64),
    "rdna3.5": Arch(64),
    "rdna4": Arch(64, sparse24=True, fp8=True),
    "xe2": Arch(128, fp8=True),
    "apple-m1": Arch(128),
    "apple-m2": Arch(128),
    "apple-m3": Arch(128),
    "apple-m4": Arch(128),
    "da-vinci": Arch(128),
    "gaudi3": Arch(128, fp8=True),
    "tpu": Arch(2048),
    "fpga-ultrascale": Arch(70.5),
    "fpga-versal": Arch(231),
}
"""One line per `arch`; the first device of a new one adds it."""


@pytest.fixture(autouse=True)
def no_own_devices(tmp_path, monkeypatch):
    monkeypatch.setenv("SHADOWLINE_HOME", str(tmp_path))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def device(request):
    return load(request.param)


def numbers(table, path=""):
    """Every table with a value, and every bare number, with its path."""
    if isinstance(table, dict):
        if "value" in table or "source" in table or "kind" in table:
            yield path, table
            return
        for key, value in table.items():
            yield from numbers(value, f"{path}.{key}".lstrip("."))
    elif isinstance(table, list):
        for index, value in enumerate(table):
            yield from numbers(value, f"{path}.{index}")
    elif isinstance(table, (int, float)) and not isinstance(table, bool):
        yield path, table


def at(device, key=""):
    """File and key, in front of what is wrong there."""
    name = device if isinstance(device, str) else device.name
    return f"hw_profiles/devices/{name}.toml: {key}: " if key else f"hw_profiles/devices/{name}.toml: "


def arch_of(device) -> Arch:
    known = ARCHITECTURES.get(device.arch)
    assert known, (
        f"{at(device, 'arch')}{device.arch!r} is new here; known: {', '.join(ARCHITECTURES)}. If it is no slip, "
        "add its line to ARCHITECTURES in tests/arch/test_profiles.py"
    )
    return known


MOST_FIT_BYTES = 200_000
"""Of one device's fits: a model of a few numbers, not a table of rows [B]."""


def test_the_fits_of_a_device_stay_small():
    folders = [p for p in resources.files("hw_profiles").joinpath("measured").iterdir() if p.is_dir()]
    sizes = {p.name: sum(f.stat().st_size for f in Path(str(p)).iterdir()) for p in folders if p.name != "_default"}
    large = {name: size for name, size in sizes.items() if size > MOST_FIT_BYTES}
    assert not large, f"{large}: fewer knots (fit_file.THIN_LN) or coarser axes of a fitting.*.Recipe"


def test_there_are_devices():
    assert len(FILES) >= 40
    absent = {path.stem for path in FILES} - set(list_devices())
    assert not absent, f"{at(min(absent))}`python -m simulator.devices` does not list it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_number_has_value_unit_source_kind(path):
    for key, number in numbers(tomllib.loads(path.read_text(encoding="utf-8"))):
        where = at(path.stem, key)
        if not isinstance(number, dict):
            bare = f'a bare number; write {{ value = "{number} UNIT", source = "...", kind = "..." }}'
            assert key.rsplit(".", 1)[-1] in UNITLESS, where + bare
            continue
        lacking = [k for k in ("value", "source", "kind") if k not in number]
        assert not lacking, f"{where}{' and '.join(lacking)} missing; add it to the braces"
        assert isinstance(number["value"], str), f'{where}value is no text; write it with its unit, like "4.8 TB/s"'
        unknown = f"source {number['source']!r} has no entry; add [{number['source']}] to hw_profiles/sources.toml"
        assert number["source"] in SOURCES, where + unknown
        assert number["kind"] in KINDS, f"{where}kind {number['kind']!r} is none of {', '.join(KINDS)}"


def test_each_loaded_number_has_a_unit(device):
    for key, number in device.facts():
        assert number.unit in SCALES, f"{at(device, key)}unit {number.unit!r} is none of {', '.join(SCALES)}"
        assert number.value >= 0, f"{at(device, key)}{number.value:g} {number.unit} is below zero"


@pytest.mark.parametrize("key", SOURCES)
def test_each_source_says_what_where_and_when(key):
    source, where = SOURCES[key], f"hw_profiles/sources.toml: [{key}]: "
    for wanted in ("title", "url", "read"):
        assert source.get(wanted), f"{where}{wanted} is missing; say what it is, where it lies and the day it was read"
    read = source["read"]
    dated = read == "not re-fetched" or (len(read) == 10 and read[4] == read[7] == "-")
    assert dated, f"{where}read is {read!r}; write the day as 2026-11-21"
    spare = set(source) - {"title", "url", "read", "note"}
    assert not spare, f"{where}nobody reads {', '.join(sorted(spare))}; put it into note"


def test_no_source_is_left_over():
    used = set().union(*(load(path).sources for path in FILES))
    spare = set(SOURCES) - used - {"user-edit", "scaled"}
    measured = FOLDER.parent / "measured"
    text = "".join(p.read_text(encoding="utf-8") for p in measured.rglob("*.toml"))
    unread = sorted(key for key in spare if key not in text)
    assert not unread, f"hw_profiles/sources.toml: no profile names {', '.join(unread)}; use or remove"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_name_is_the_file_name(path):
    name, where = load(path).name, at(path.stem, "name")
    assert name == path.stem, f"{where}{name!r} is not the file's; write name = {path.stem!r} or rename the file"
    assert name == name.lower(), f"{where}{name!r} is not in lower case; `-` between words"


def test_no_alias_is_another_devices_name():
    names = {fold(path.stem): path.stem for path in FILES}
    for path in FILES:
        device = load(path)
        for spelling in (*device.aliases, *device.matches):
            owner = names.get(fold(spelling), device.name)
            assert owner == device.name, f"{at(device, 'aliases, matches')}{spelling!r} is the name of {owner}; drop it"


def test_a_driver_name_belongs_to_one_device():
    owners = {}
    for path in FILES:
        for match in load(path).matches:
            owner = owners.setdefault(fold(match), path.stem)
            assert owner == path.stem, f"{at(path.stem, 'matches')}{match!r} is claimed by {owner} too; change one"


def test_nearer_memory_is_faster_and_smaller(device):
    tiers = [t for t in device.memory if t.name in ("l2", "hbm", "host", "ssd")]
    for near, far in pairwise(tiers):
        slower = f"{at(device, f'memory.{far.name}.bandwidth')}{far.bandwidth.value:g} B/s is not below that of "
        order = f"{near.name}, {near.bandwidth.value:g} B/s; tiers stand nearest first and nearer is faster"
        assert near.bandwidth_bytes_per_s > far.bandwidth_bytes_per_s, slower + order
    larger = f"{at(device, 'memory.l2.capacity')}{device.l2_bytes:g} B is not below hbm's {device.capacity_bytes:g} B"
    assert device.l2_bytes < device.capacity_bytes, larger
    later = f"{at(device, 'memory.l2.latency')}{device.tier('l2').latency_s:g} s is not below hbm's"
    assert device.tier("l2").latency_s < device.tier("hbm").latency_s, later
    for tier in device.memory:
        line = f"{at(device, f'memory.{tier.name}.line')}{tier.line_bytes:g} B is no multiple of the sector's "
        assert tier.line_bytes % tier.sector_bytes == 0, f"{line}{tier.sector_bytes:g} B"


def test_driver_capacity_is_near_the_marketed_one(device):
    share = device.capacity_bytes / device.marketed_capacity.value
    # Metal lends three quarters of unified memory (GiB) to the GPU.
    low, high = (0.75, 0.85) if device.vendor == "apple" else (0.9, 1.1)
    wrong = (
        f"{share:.2f} of marketed_capacity, expected {low} to {high}; write what the driver reports, mind GB and GiB"
    )
    assert low < share < high, at(device, "memory.hbm.capacity") + wrong


def test_peaks_rise_as_numbers_shrink(device):
    order = [d for d in (DType.TF32, DType.FP16, DType.FP8, DType.FP4) if device.has(d)]
    for wide, narrow in pairwise(order):
        less = f"{device.peak_flop_per_s(narrow):g} flop/s is less than {wide}'s {device.peak_flop_per_s(wide):g}"
        hint = "; peaks are dense and in the accumulation kernels use (FP32 for FP16)"
        enough = device.peak_flop_per_s(narrow) >= device.peak_flop_per_s(wide)
        assert enough, at(device, f"compute.{narrow}.dense") + less + hint
    if device.has("bf16") and device.has("fp16"):
        same = device.peak_flop_per_s("bf16") == device.peak_flop_per_s("fp16")
        assert same, f"{at(device, 'compute.bf16.dense')}not equal to compute.fp16.dense; no device has two rates"
    for dtype, peak in device.peaks.items():
        if peak.sparse24:
            ratio = peak.sparse24.value / peak.dense.value
            # FP4 of B300 and GB300 gains less: the dense rate was raised alone.
            twice = ratio == pytest.approx(2, rel=0.01) or dtype == DType.FP4
            off = f"{ratio:.2f} times dense, expected 2; the figure 'with sparsity' goes here, half of it into dense"
            assert twice, at(device, f"compute.{dtype}.sparse24") + off
    accumulate = device.fp16_accumulate_flop_per_s
    low = f"{at(device, 'compute.fp16.fp16_accumulate')}below compute.fp16.dense; that one accumulates in FP32"
    assert accumulate is None or accumulate >= device.peak_flop_per_s("fp16"), low


@pytest.mark.parametrize("feature", ["sparse24", "fp8", "fp4"])
def test_a_feature_is_there_where_the_architecture_has_it(device, feature):
    if feature == "sparse24":
        has, key = any(peak.sparse24 for peak in device.peaks.values()), "compute.*.sparse24"
    else:
        has, key = device.has(feature), f"compute.{feature}"
    wanted = getattr(arch_of(device), feature)
    wrong = f"{device.arch} has {feature}, add it" if wanted else f"{device.arch} has no {feature}, leave it out"
    table = " (or mend ARCHITECTURES in tests/arch/test_profiles.py)"
    assert has == wanted, at(device, key) + wrong + table


def test_vector_rate_follows_from_lanes_and_clock(device):
    lanes = arch_of(device).lanes
    if device.arch == "ampere" and device.compute_capability == "8.0":
        lanes = 64
    expected = device.sm_count * lanes * 2 * device.clock_hz.boost
    wrong = (
        f"{device.vector_flop_per_s / 1e12:.1f} TFLOP/s, but sm_count * {lanes:g} lanes * 2 * clock.boost is "
        f"{expected / 1e12:.1f}; one of them is wrong"
    )
    assert device.vector_flop_per_s == pytest.approx(expected, rel=0.12), at(device, "vector.dense") + wrong


def test_link_domains(device):
    fastest = max(k.bandwidth_bytes_per_s for k in device.links)
    first = f"{at(device, 'link')}{device.link.name} stands first but is not the fastest; order them by bandwidth"
    assert device.link.bandwidth_bytes_per_s == fastest, first
    for index, link in enumerate(device.links):
        where = at(device, f"link.{index}")
        assert not link.nvls or link.switched, f"{where}nvls reduces in a switch; set switched = true"
        assert link.max_ranks <= 8 or link.max_ranks == 72 or link.joins_nodes, (
            f"{where}max_ranks is {link.max_ranks}, no domain is so large"
        )
        assert not link.nvls or arch_of(device).nvls, (
            f"{where}{device.arch} has no in-switch reduction; set nvls = false"
        )


def test_idle_is_below_the_limit_and_price_has_a_date(device):
    idle = f"{device.idle_w:g} W is not between 0 and half of power, {device.power_w:g} W"
    assert 0 < device.idle_w < 0.5 * device.power_w, at(device, "idle_power") + idle
    assert device.price_usd_per_h.date, f'{at(device, "price")}no date; add date = "2026-11-21", prices move'
    kind = device.price_usd_per_h.kind
    assert kind == "assumed", f'{at(device, "price")}kind is {kind}; a rent is nobody\'s datasheet, write "assumed"'


# --- against the shared table of datasheet peaks


def csv_rows():
    path = DATA / "device_peaks.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def table():
    rows = csv_rows()
    if not rows:
        pytest.skip("device_peaks.csv is not here; point SHADOWLINE_DATA at the folder that has it")
    return rows


def test_each_device_of_the_table_is_shipped(table):
    shipped = {path.stem for path in FILES}
    absent = {row["device"].lower() for row in table} - shipped
    assert not absent, f"{at(min(absent))}in device_peaks.csv, but there is no such file"


def test_facts_equal_the_table(table):
    wrong = []

    def check(name, what, ours, theirs, rel=1e-6):
        if abs(ours - theirs) > rel * abs(theirs):
            wrong.append(f"{name} {what}: {ours:g} here, {theirs:g} in the table")

    for row in table:
        device = load(row["device"].lower())
        name = device.name
        if device.arch != row["arch"].lower():
            wrong.append(f"{name} arch {device.arch}")
        check(name, "sm_count", device.sm_count, int(row["sm_count"]))
        for dtype in DType:
            cell = row[str(dtype)]
            if bool(cell) != device.has(dtype):
                wrong.append(f"{name} {dtype}: in the table {bool(cell)}, here {device.has(dtype)}")
            elif cell:
                check(name, dtype, device.peaks[dtype].dense.value, float(cell) * 1e12)
        if row["fp16_fp16acc"]:
            peak = device.peaks[DType.FP16]
            accumulate = (peak.fp16_accumulate or peak.dense).value
            check(name, "fp16_fp16acc", accumulate, float(row["fp16_fp16acc"]) * 1e12)
        check(name, "mem_gb", device.marketed_capacity.value, float(row["mem_gb"]) * 1e9)
        check(name, "mem_bw", device.hbm_bytes_per_s, float(row["mem_bw_gbs"]) * 1e9)
        check(name, "l2", device.l2_bytes, float(row["l2_mb"]) * 1e6)
        check(name, "tdp", device.power_w, float(row["tdp_w"]))
        check(name, "host", device.tier("host").bandwidth_bytes_per_s, float(row["host_gbs_oneway"]) * 1e9)
        if row["gpu_link_gbs_total"]:
            check(name, "link", device.link.bandwidth_bytes_per_s, float(row["gpu_link_gbs_total"]) * 5e8)
        else:
            check(name, "link", device.link.bandwidth_bytes_per_s, float(row["host_gbs_oneway"]) * 1e9)
        # The table's boost is the top clock on chips whose tensor peak holds at a lower one.
        table_hz = float(row["boost_mhz"]) * 1e6
        if min(abs(device.clock_hz.boost - table_hz), abs(device.clock_hz.max - table_hz)) > 1e6:
            wrong.append(f"{name} clock {device.clock_hz} against {table_hz:g}")
    assert not wrong, "\n".join(wrong)


def test_nobody_measured_more_than_the_floor_allows(table):
    wrong = []
    for row in table:
        device = load(row["device"].lower())
        # 2 % as in the accuracy contract; MI210's vector figure is apart from its matrix rate.
        for column, dtypes in {
            "best_gemm_bf16_fp16_tflops": ("fp16",),
            "best_gemm_fp8_tflops": ("fp8",),
            "best_gemm_int8_tflops": ("int8",),
            "best_gemm_fp4_tflops": ("fp4",),
            "best_gemm_fp32_tflops": ("fp32",),
        }.items():
            if row[column]:
                peak = device.peak_flop_per_s(dtypes[0], clock="max")
                if float(row[column]) * 1e12 > 1.02 * peak:
                    wrong.append(f"{device.name} {column}: {row[column]} > {peak / 1e12:.0f}")
        if row["best_bw_gbs"] and float(row["best_bw_gbs"]) * 1e9 > 1.02 * device.hbm_bytes_per_s:
            wrong.append(f"{device.name} bandwidth {row['best_bw_gbs']}")
    assert not wrong, "\n".join(wrong)
