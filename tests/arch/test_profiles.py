"""Every number of every shipped device has value, unit, source and kind, and they fit together."""

import csv
import os
import tomllib
from importlib import resources
from pathlib import Path

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


def test_there_are_devices():
    assert len(FILES) >= 40
    assert {path.stem for path in FILES} <= set(list_devices())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_number_has_value_unit_source_kind(path):
    found = dict(numbers(tomllib.loads(path.read_text(encoding="utf-8"))))
    bare = {p for p, n in found.items() if not isinstance(n, dict)}
    assert {p.rsplit(".", 1)[-1] for p in bare} <= UNITLESS, bare
    for where, number in found.items():
        if where in bare:
            continue
        assert isinstance(number["value"], str), where
        assert number["source"] in SOURCES, f"{where}: {number['source']} is not in sources.toml"
        assert number["kind"] in ("datasheet", "measured", "assumed"), where


def test_each_loaded_number_has_a_unit(device):
    for path, number in device.facts():
        assert number.unit in SCALES, path
        assert number.value >= 0, path


def test_each_source_says_what_where_and_when():
    for key, source in SOURCES.items():
        assert source["title"], key
        assert source["url"], key
        read = source["read"]
        assert read == "not re-fetched" or (len(read) == 10 and read[4] == read[7] == "-"), key
        assert set(source) <= {"title", "url", "read", "note"}, key


def test_no_source_is_left_over():
    used = set().union(*(load(path).sources for path in FILES))
    spare = set(SOURCES) - used - {"user-edit", "scaled"}
    measured = FOLDER.parent / "measured"
    text = "".join(p.read_text(encoding="utf-8") for p in measured.rglob("*.toml"))
    assert not {key for key in spare if key not in text}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_name_is_the_file_name(path):
    name = load(path).name
    assert name == path.stem
    assert name == name.lower()


def test_no_alias_is_another_devices_name():
    names = {fold(path.stem): path.stem for path in FILES}
    for path in FILES:
        device = load(path)
        for spelling in (*device.aliases, *device.matches):
            owner = names.get(fold(spelling), device.name)
            assert owner == device.name, f"{device.name} claims {spelling!r}, the name of {owner}"


def test_a_driver_name_belongs_to_one_device():
    owners = {}
    for path in FILES:
        for match in load(path).matches:
            assert owners.setdefault(fold(match), path.stem) == path.stem, match


def test_nearer_memory_is_faster_and_smaller(device):
    tiers = [t for t in device.memory if t.name in ("l2", "hbm", "host", "ssd")]
    rates = [t.bandwidth_bytes_per_s for t in tiers]
    assert rates == sorted(rates, reverse=True), rates
    assert len(set(rates)) == len(rates)
    assert device.l2_bytes < device.capacity_bytes
    assert device.tier("l2").latency_s < device.tier("hbm").latency_s
    for tier in device.memory:
        assert tier.sector_bytes <= tier.line_bytes
        assert tier.line_bytes % tier.sector_bytes == 0


def test_driver_capacity_is_near_the_marketed_one(device):
    share = device.capacity_bytes / device.marketed_capacity.value
    if device.vendor == "apple":  # Metal lends three quarters of unified memory (GiB) to the GPU
        assert 0.75 < share < 0.85
    else:
        assert 0.9 < share < 1.1


def test_peaks_rise_as_numbers_shrink(device):
    order = [DType.TF32, DType.FP16, DType.FP8, DType.FP4]
    peaks = [device.peak_flop_per_s(d) for d in order if device.has(d)]
    assert peaks == sorted(peaks)
    if device.has("bf16") and device.has("fp16"):
        assert device.peak_flop_per_s("bf16") == device.peak_flop_per_s("fp16")
    for dtype, peak in device.peaks.items():
        if peak.sparse24:
            ratio = peak.sparse24.value / peak.dense.value
            # FP4 of B300 and GB300 gains less: the dense rate was raised alone.
            assert ratio == pytest.approx(2, rel=0.01) or dtype == DType.FP4, dtype
    accumulate = device.fp16_accumulate_flop_per_s
    assert accumulate is None or accumulate >= device.peak_flop_per_s("fp16")


def test_sparse_peaks_only_where_documented(device):
    has = any(peak.sparse24 for peak in device.peaks.values())
    documented = {"ampere", "ada", "hopper", "blackwell", "cdna3", "cdna4"}
    assert has == (device.arch in documented)


def test_fp8_only_where_the_architecture_has_it(device):
    assert device.has("fp8") == (device.arch in {"ada", "hopper", "blackwell", "cdna3", "cdna4", "xe2"})
    assert device.has("fp4") == (device.arch in {"blackwell", "cdna4"})


def test_vector_rate_follows_from_lanes_and_clock(device):
    lanes = {
        "volta": 64,
        "turing": 64,
        "cdna2": 64,
        "cdna3": 128,
        "cdna4": 128,
        "xe2": 128,
        "fpga-ultrascale": 70.5,
        "fpga-versal": 231,
    }
    per_sm = lanes.get(device.arch, 128)
    if device.arch == "ampere" and device.compute_capability == "8.0":
        per_sm = 64
    if device.name == "rx-7900xtx":
        per_sm = 64
    expected = device.sm_count * per_sm * 2 * device.clock_hz.boost
    assert device.vector_flop_per_s == pytest.approx(expected, rel=0.12), expected / 1e12


def test_link_domains(device):
    assert device.link.bandwidth_bytes_per_s == max(k.bandwidth_bytes_per_s for k in device.links)
    for link in device.links:
        assert not link.nvls or link.switched
        assert link.max_ranks <= 8 or link.max_ranks == 72
        # In-switch reduction came with the third NVSwitch.
        assert not link.nvls or device.arch in ("hopper", "blackwell")


def test_idle_is_below_the_limit_and_price_has_a_date(device):
    assert 0 < device.idle_w < 0.5 * device.power_w
    assert device.price_usd_per_h.date
    assert device.price_usd_per_h.kind == "assumed"


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
    assert {row["device"].lower() for row in table} <= shipped


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
