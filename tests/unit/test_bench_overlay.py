"""An overlay made from rows with a known law comes back from disk as a calibrated device."""

import tomllib

import numpy as np
import pytest

from simulator.base.dtypes import FORMATS
from simulator.base.errors import InputError
from simulator.device import catalogue as devices
from simulator.device.fits import LOCAL, Basis
from simulator.ops.ops import Elementwise, Linear
from simulator.ops.traffic import Operand
from simulator.roofline.bandwidth import resident_bytes_per_s
from simulator.roofline.engine import get_engine
from simulator.roofline.hardware import hardware
from simulator.roofline.lookup import lookup
from simulator.roofline.timing import time_op, working_set_bytes
from sparse_kernels import calibrate_cpu, overlay

NAME = "cpu-test-1t"
FAR, NEAR, CACHE = 10e9, 80e9, 4e6
FLOP = 100e9


def rate(total_bytes):
    """A two-level memory: everything within 4 MB at 80 GB/s, the rest at 10 GB/s."""
    return NEAR if total_bytes <= CACHE else FAR


def time_of(row):
    if "m" in row:
        moved = 4.0 * (row["n"] * row["k"] + row["m"] * (row["n"] + row["k"]))
        return 1e-6 + max(moved / rate(moved), 2.0 * row["m"] * row["n"] * row["k"] / FLOP)
    if "op" in row:
        return 5e-7 + row["bytes"] / (0.8 * rate(row["bytes"]))
    if "phase" in row:
        lanes = row["batch"] * row["n_kv_heads"]
        moved = 8.0 * lanes * row["kv_len"] * row["head_dim"]
        return 5e-6 + moved / (0.7 * rate(moved)) * row["q_len"] ** 0.5
    if row["run_bytes"] == 4:
        return row["bytes"] / 4 * 0.5e-9
    run = row["run_bytes"]
    read = row["bytes"] * max(64, run) / run * (run + 300) / run
    return 5e-7 + (read + row["bytes"]) / (0.8 * rate(read + row["bytes"]))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Rows of the real job list with times of the law above, fitted and installed."""
    measured = {}
    with pytest.MonkeyPatch.context() as patch:
        # Nothing is run, so no page needs to be written.
        for name in ("_ones", "_own"):
            patch.setattr(calibrate_cpu, name, lambda *shape: np.empty(shape, np.float32))
        for family, row, _ in calibrate_cpu._jobs(NAME, quick=True):
            measured.setdefault(family, []).append(row | {"time_s": time_of(row)})
    document = calibrate_cpu.profile(NAME, measured, threads=1, date="2026-11-21")
    out = tmp_path_factory.mktemp("home")
    _, paths = overlay.make(NAME, measured, out, date="2026-11-21", document=document)
    return out, paths


@pytest.fixture
def here(home):
    with overlay.home(home[0]):
        yield devices.load(NAME)


def test_profile_passes_its_own_reader_and_says_where_numbers_come_from(home, here):
    document = tomllib.loads((home[0] / "devices" / f"{NAME}.toml").read_text())
    assert here.arch.startswith("cpu-")
    assert here.hbm_bytes_per_s == pytest.approx(FAR, rel=0.02)
    assert here.peak_flop_per_s("fp32") == pytest.approx(FLOP, rel=0.1)
    assert here.tier("l2").bandwidth_bytes_per_s > here.hbm_bytes_per_s
    kinds = {path: number.kind for path, number in here.facts()}
    assert kinds["memory.hbm.bandwidth"] == kinds["compute.fp32.dense"] == "measured"
    assert kinds["power"] == kinds["price"] == "assumed"
    assert document["note"].startswith("measured on 2026-11-21")


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("gemm", "fp32"), ("elementwise", "bf16"), ("attention", "decode.bf16"), ("attention", "prefill.bf16")],
)
def test_every_family_is_calibrated_whatever_the_engine_asks_for(here, family, dtype):
    for library in (None, "vllm-fa3", "sarathi"):
        found = lookup(here, family, dtype, library)
        assert (found.fit.library, found.basis) == (LOCAL, Basis.CALIBRATED)


def test_the_law_comes_back(here):
    engine = get_engine("kernels")
    for n, k in ((256, 256), (512, 1024), (2048, 2048), (4096, 3000)):
        op = Linear(role="x", m=1.0, n=n, k=k, fmt=FORMATS["fp32"])
        got = time_op(op, here, engine)
        want = time_of({"m": 1, "n": n, "k": k})
        # A sharp cache edge is smoothed over an octave and the fit keeps priors: 20 %.
        assert float(got.total_s) == pytest.approx(want, rel=0.2), (n, k)
        # Surfaces are stored to about a hundredth.
        assert float(got.lo_s) * 0.99 <= want <= float(got.hi_s) * 1.01
        assert got.basis is Basis.CALIBRATED


def test_gathers_and_indexed_elements_are_the_devices_own(here):
    hw = hardware(here, "fp32")
    assert hw.gather_run_bytes == pytest.approx(300.0, rel=0.5)
    assert hw.nonzeros_per_cycle == pytest.approx(2e9 / here.clock_hz.boost, rel=1e-3)
    assert hardware(devices.load("h100-sxm"), "bf16").gather_run_bytes == 256.0


def test_caches_serve_only_what_fits_between_two_uses(here):
    hw = hardware(here, "fp32")
    assert float(resident_bytes_per_s(1e6, hw)) == pytest.approx(NEAR, rel=0.1)
    assert float(resident_bytes_per_s(6e7, hw)) == pytest.approx(FAR, rel=0.1)
    engine = get_engine("kernels")
    op = Elementwise(role="x", kind="unary", read_bytes=5e5, write_bytes=5e5)
    alone = time_op(op, here, engine)
    among = time_op(op, here, engine, working_set_bytes([op] * 200, here))
    assert among.total_s > 4 * alone.total_s
    gpu = devices.load("h100-sxm")
    assert working_set_bytes([op], gpu) is None
    assert resident_bytes_per_s(1.0, hardware(gpu, "bf16")) == gpu.hbm_bytes_per_s


def test_a_gather_that_fits_in_a_cache_costs_the_same_whatever_it_gathers(here):
    engine = get_engine("kernels")
    weight, activation = (
        time_op(
            Elementwise(role="x", kind="unary", read_bytes=2e5, write_bytes=2e5, run_bytes=4096.0, operand=o),
            here,
            engine,
        ).total_s
        for o in (Operand.WEIGHT, Operand.ACTIVATION)
    )
    assert weight == activation


def test_a_model_is_predicted_from_it(here):
    from simulator.results.prediction import predict
    from simulator.scenario.scenario import Scenario

    answer = predict(Scenario(model="llama-2-7b", device=NAME, dtype="fp32", prompt_tokens=64))
    assert answer.row["basis"] == "CALIBRATED"


def test_files_are_whole_and_a_failed_fit_leaves_the_old_ones(home, tmp_path, monkeypatch):
    out, paths = home
    assert {p.relative_to(out).parts[0] for p in paths} == {"devices", "measured"}
    assert not list(out.rglob("*.tmp"))
    (tmp_path / "devices").mkdir()
    old = tmp_path / "devices" / f"{NAME}.toml"
    old.write_text("old")
    document = tomllib.loads((out / "devices" / f"{NAME}.toml").read_text())

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("simulator.calibrate.calibrate", stop)
    rows = {"gemm": [{"m": 1, "n": 2, "k": 3, "time_s": 1.0}]}
    with pytest.raises(KeyboardInterrupt):
        overlay.make(NAME, rows, tmp_path, date="2026-11-21", document=document)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [old.name]
    assert old.read_text() == "old"


def test_a_device_only_its_owner_knows_keeps_its_profile(tmp_path, monkeypatch):
    """The new home is another folder than the one the profile lies in."""
    own, out = tmp_path / "own", tmp_path / "out"
    (own / "devices").mkdir(parents=True)
    profile = own / "devices" / "my-h100.toml"
    text = devices.to_toml(devices.load("h100-sxm"))
    profile.write_text(text.replace('name = "h100-sxm"', 'name = "my-h100"', 1))
    monkeypatch.setenv("SHADOWLINE_HOME", str(own))
    rows = [
        {"source": "x", "device": "my-h100", "flag": "", "run_bytes": r, "bytes": 2**22, "time_s": 1e-5 + 1e-4 / r}
        for r in (64, 256, 1024)
        for _ in range(2)
    ]
    fits, paths = overlay.make("my-h100", {"gather": rows}, out, date="2026-11-21")
    assert [f.family for f in fits] == ["memory"]
    assert out / "devices" / profile.name in paths
    with overlay.home(out):
        assert devices.load("my-h100").name == "my-h100"
        assert devices.measured("my-h100").own("memory")[0].coefficients["gather_run_bytes"] > 0.0


def residuals(monkeypatch, fit):
    """ln(measured/predicted) row by row, of the fit that `fit` makes."""
    found = []
    keep = overlay._residual
    with monkeypatch.context() as patch:
        patch.setattr(overlay, "_residual", lambda off: found.append(off) or keep(off))
        fit()
    return found[0]


def test_a_gathers_error_is_of_rows_its_fit_did_not_see(monkeypatch):
    rows = [
        {"source": "x", "run_bytes": r, "bytes": b, "time_s": 1e-5 + b * (1 + 256 / r) / 2e12}
        for r in (64, 128, 512, 2048)
        for b in (2**22, 2**24)
    ]
    other = [r | {"time_s": r["time_s"] * (2.0 if r["run_bytes"] == 128 else 1.0)} for r in rows]
    first, second = (
        residuals(monkeypatch, lambda x=x: overlay.with_gathers("h100-sxm", None, {"gather": x}, "2026-11-21"))
        for x in (rows, other)
    )
    # Twice the time is ln 2 more error, all of it: a fit that saw the rows would give way.
    np.testing.assert_allclose((second - first)[2:4], np.log(2.0), rtol=1e-9)
    assert np.all(second[4:] != first[4:])


def test_a_caches_error_is_of_products_its_curve_did_not_see(monkeypatch):
    rows = [
        {"source": "x", "m": 1, "n": n, "k": k, "time_s": 1e-6 + 4.0 * n * k / 1e11}
        for n in (64, 1024, 2048, 4096)
        for k in (64, 1024, 2048)
    ]
    other = [r | {"time_s": 2.0 * r["time_s"]} if r is rows[7] else r for r in rows]
    first, second = (
        residuals(monkeypatch, lambda x=x: overlay.cache_fit("h100-sxm", {"gemm": x}, "2026-11-21"))
        for x in (rows, other)
    )
    call_s = rows[0]["time_s"]
    more = np.log((2.0 * rows[7]["time_s"] - call_s) / (rows[7]["time_s"] - call_s))
    assert max(second - first) == pytest.approx(more, rel=1e-9)


def test_an_unwritable_folder_is_one_line(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    (fresh / "a.toml").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        overlay._install(fresh, blocked)


def test_rows_are_kept_before_they_are_fitted(tmp_path):
    folder = tmp_path / "rows" / "h200"
    overlay.keep_rows({"gemm": [{"m": 1, "time_s": 2.0}], "copy": []}, folder)
    assert (folder / "gemm.csv").read_text() == "m,time_s\n1,2.0\n"
    assert sorted(p.name for p in folder.iterdir()) == ["copy.csv", "gemm.csv"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        overlay.keep_rows({"copy": []}, tmp_path / "file" / "rows")


def test_home_is_given_back(monkeypatch, tmp_path):
    monkeypatch.setenv("SHADOWLINE_HOME", "before")
    with overlay.home(tmp_path):
        assert devices.user_data_dir() == tmp_path
    assert str(devices.user_data_dir()) == "before"
    assert devices.measured("h100-sxm").own("gemm")


def test_the_arena_hands_out_separate_aligned_pieces():
    arena = calibrate_cpu.Arena()
    a, b = arena.ones(3, 5), arena.ones(7)
    assert not np.shares_memory(a, b)
    assert (b.ctypes.data - a.ctypes.data) % 64 == 0
    arena.reset()
    assert np.shares_memory(arena.ones(2), a)
