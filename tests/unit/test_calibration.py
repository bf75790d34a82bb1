"""Surfaces, residuals, the TOML round trip and which fit answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from simulator.base.errors import InputError, UnsupportedError
from simulator.calibrate import calibrate, write
from simulator.device import fits as cal
from simulator.device.catalogue import Device, load, measured, to_toml
from simulator.device.fit_file import STEP_LN, THIN, dump, parse
from simulator.device.surface import Surface
from simulator.fitting.judged import judge_rows
from simulator.results.prediction import predict
from simulator.results.printed import how_sure
from simulator.roofline.lookup import lookup
from simulator.scenario.scenario import Scenario

RESIDUAL = cal.Residual(0.04, 0.09, -0.07, 0.08, between_source=0.08, n_eff=300.0)


def surface() -> Surface:
    axes = (("m", (0.0, 3.0, 6.0)), ("n", (5.0, 9.0)), ("k", (5.0, 7.0, 11.0)))
    return Surface(axes, np.arange(18.0).reshape(3, 2, 3) * 0.01 - 0.05)


def a_fit(**changes: object) -> cal.Fit:
    fit = cal.Fit(
        "gemm",
        "h100-sxm",
        "bf16",
        cal.VENDOR,
        {"launch_s": 2.5e-6, "compute": 1.0},
        surface(),
        1020,
        ("aiconfigurator",),
        "2026-01-01",
        RESIDUAL,
    )
    return replace(fit, **changes)


def test_surface_is_exact_at_knots_and_linear_between():
    s = surface()
    assert float(s(m=8.0, n=512.0, k=128.0)) == pytest.approx(s.values[1, 1, 1], abs=1e-12)
    mean = (s.values[1, 0, 0] + s.values[2, 0, 0]) / 2
    assert float(s(m=2**4.5, n=32.0, k=32.0)) == pytest.approx(mean, abs=1e-12)


def test_surface_scalar_line_and_grid_agree():
    s = surface()
    m = np.array([1.0, 7.0, 33.0, 500.0])
    n = np.array([16.0, 40.0, 4096.0])[:, None]
    k = np.array([32.0, 77.0])[:, None, None]
    grid = s(m=m, n=n, k=k)
    assert grid.shape == (2, 3, 4)
    for i, j, h in np.ndindex(grid.shape):
        one = s(m=m[h], n=n[j, 0], k=k[i, 0, 0])
        assert float(one) == pytest.approx(grid[i, j, h], abs=1e-12)
    np.testing.assert_allclose(s(m=m, n=40.0, k=77.0), grid[1, 1], atol=1e-12)


def test_surface_is_clamped_and_says_so():
    s = surface()
    assert float(s(m=1e9, n=32.0, k=32.0)) == pytest.approx(s.values[2, 0, 0], abs=1e-12)
    assert not bool(s.inside(m=1e9, n=32.0, k=32.0))
    assert bool(s.inside(m=2.0, n=64.0, k=64.0))


def test_surface_refuses_wrong_shape_knots_and_coordinates():
    with pytest.raises(InputError, match="shape"):
        Surface((("m", (0.0, 1.0)),), np.zeros(3))
    with pytest.raises(InputError, match="increase"):
        Surface((("m", (1.0, 1.0)),), np.zeros(2))
    with pytest.raises(InputError, match="coordinates"):
        surface()(m=1.0)


def test_residual_classes_and_cross_source_widening():
    r = replace(RESIDUAL, classes=((0.0, -0.2, 0.1), (50e-6, -0.05, 0.04)))
    low, high = r.quantiles([1e-6, 1e-3])
    np.testing.assert_allclose([low, high], [[-0.2, -0.05], [0.1, 0.04]])
    wide_low, wide_high = r.quantiles([1e-6, 1e-3], cross=True)
    assert (wide_low < low).all()
    assert (wide_high > high).all()
    assert r.widened(0.1).q95 > r.q95
    assert r.widened(0.0).q05 == pytest.approx(r.q05)


def test_round_trip(tmp_path):
    path = tmp_path / "h100-sxm" / "gemm.toml"
    fit = a_fit(residual=replace(RESIDUAL, classes=((0.0, -0.2, 0.1),)))
    dump(path, [fit, a_fit(library="torch", surface=None)])
    first, second = parse(path.read_text(), str(path))
    assert first.coefficients == fit.coefficients
    assert first.residual == fit.residual
    kept = fit.surface.thinned(THIN)
    np.testing.assert_allclose(first.surface.values, kept.values, atol=STEP_LN / 2)
    assert first.surface.axes == kept.axes
    assert (second.library, second.surface) == ("torch", None)


def test_a_steep_surface_is_stored_in_coarser_steps(tmp_path):
    """45 steps either way: 0.9 in steps of 0.02; what is stored misses by half a step at most."""
    path = tmp_path / "h100-sxm" / "gemm.toml"
    steep = Surface((("m", (0.0, 1.0, 2.0)),), np.array([-0.9, 0.313, 0.9]))
    dump(path, [a_fit(surface=steep)])
    assert "step_ln = 0.02" in path.read_text()
    (found,) = parse(path.read_text(), str(path))
    np.testing.assert_allclose(found.surface.values, [-0.9, 0.32, 0.9], atol=1e-12)


def test_releases_are_kept(tmp_path):
    path = tmp_path / "h100-sxm" / "gemm.toml"
    dump(path, [a_fit(library="vllm@0.27.1", releases=("0.27.1", "0.28.0"))])
    (found,) = parse(path.read_text(), str(path))
    assert (found.library, found.releases) == ("vllm@0.27.1", ("0.27.1", "0.28.0"))


def test_a_thinned_surface_keeps_the_knots_that_bend_it():
    """A line with one bend, crossed with a slope: the bend and the ends are all it takes."""
    knots = tuple(float(k) for k in range(7))
    line = np.interp(knots, (0.0, 2.0, 6.0), (0.0, 1.0, -1.0))
    bent = Surface((("m", knots), ("n", (0.0, 1.0, 2.0))), line[:, None] + np.array([0.0, 0.5, 1.0]))
    thin = bent.thinned(1e-9)
    assert thin.axes == (("m", (0.0, 2.0, 6.0)), ("n", (0.0, 2.0)))
    m, n = np.meshgrid(2.0 ** np.linspace(0.0, 6.0, 13), 2.0 ** np.linspace(0.0, 2.0, 5))
    np.testing.assert_allclose(thin(m=m, n=n), bent(m=m, n=n), atol=1e-12)


def test_a_thinned_surface_misses_no_more_than_it_may():
    rng = np.random.default_rng(7)
    axes = tuple((name, tuple(map(float, range(5)))) for name in "mn")
    rough = Surface(axes, rng.normal(0.0, 0.05, (5, 5)))
    for tolerance in (0.0, 0.02, 0.05):
        thin = rough.thinned(tolerance)
        at = dict(zip("mn", np.meshgrid(*(2.0 ** np.array(k) for _, k in axes), indexing="ij"), strict=True))
        assert np.sqrt(np.mean((thin(**at) - rough.values) ** 2)) <= tolerance + 1e-12
    assert rough.thinned(0.0).values.size == rough.values.size > rough.thinned(0.05).values.size


def test_integer_lists_are_read_too():
    text = """schema = 1
family = "gemm"
device = "x"
date = "2026-01-01"
[[fit]]
dtype = "bf16"
library = "vendor"
n = 3
sources = ["s"]
coefficients = { launch_s = 1e-6 }
residual = { sigma_in = 0.1, sigma_cross = 0.1, q05 = -0.1, q95 = 0.1 }
surface = { axes = [{ name = "m", knots = [0, 1] }], values = [10, -20] }
"""
    (fit,) = parse(text, "x.toml")
    np.testing.assert_allclose(fit.surface.values, [10 * STEP_LN, -20 * STEP_LN])
    with pytest.raises(InputError, match=r"x\.toml"):
        parse(text.replace("schema = 1", "schema = 9"), "x.toml")
    with pytest.raises(InputError, match=r"x\.toml.*library"):
        parse(text.replace('library = "vendor"\n', ""), "x.toml")


def test_basis_merges_to_the_worst():
    assert cal.Basis.CALIBRATED.merge(cal.Basis.DATASHEET) is cal.Basis.DATASHEET
    assert cal.Basis.EXTRAPOLATED.merge(cal.Basis.CALIBRATED) is cal.Basis.EXTRAPOLATED


def card(name: str, arch: str = "x", capability: str | None = "9.0") -> Device:
    """A device that nobody has a profile of."""
    base = load("h100-sxm")
    facts = {"name": name, "arch": arch, "compute_capability": capability, "profile_hash": f"{arch} {capability}"}
    return replace(base, **facts, measured=measured(name))


@pytest.mark.parametrize(
    ("arch", "capability", "scope"),
    [("hopper", "9.0", "sm90"), ("blackwell", "10.3", "sm100"), ("ampere", "8.6", "sm86"), ("cdna3", None, "cdna3")],
)
def test_scope(arch, capability, scope):
    assert card("c", arch, capability).scope == scope


TOY = "toy"
OWN = [
    a_fit(family=TOY, device="one", library="torch", n=9000),
    a_fit(family=TOY, device="one"),
    a_fit(family=TOY, device="one", dtype="fp8"),
]
POOLED = [
    a_fit(family=TOY, device="sm90"),
    a_fit(family=TOY, device=cal.ANY),
    a_fit(family=TOY, device=cal.ANY, dtype="nvfp4"),
]


@pytest.fixture
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("SHADOWLINE_HOME", str(tmp_path))
    return tmp_path / "measured"


@pytest.mark.parametrize("through", ["files", "memory"])
def test_lookup_order(own_home, through):
    if through == "files":
        dump(own_home / "one" / f"{TOY}.toml", OWN)
        dump(own_home / cal.DEFAULT / f"{TOY}.toml", POOLED)

    def found(name: str, dtype: str, library: str | None = None, capability: str = "9.0"):
        device = card(name, capability=capability)
        if through == "memory":
            device = device.with_fits(TOY, OWN + POOLED)
        answer = lookup(device, TOY, dtype, library)
        return answer.fit.device, answer.fit.dtype, answer.fit.library, answer.basis

    assert found("one", "bf16") == ("one", "bf16", "vendor", cal.Basis.CALIBRATED)
    assert found("one", "fp16", "torch") == ("one", "bf16", "torch", cal.Basis.CALIBRATED)
    assert found("one", "bf16", "nobody")[2:] == ("vendor", cal.Basis.CALIBRATED)
    assert found("one", "fp8_static")[1::2] == ("fp8", cal.Basis.EXTRAPOLATED)
    assert found("two", "bf16")[::3] == ("sm90", cal.Basis.EXTRAPOLATED)
    assert found("two", "bf16", capability="7.0")[::3] == ("any", cal.Basis.DATASHEET)
    assert found("two", "mxfp4")[1::2] == ("nvfp4", cal.Basis.DATASHEET)
    with pytest.raises(UnsupportedError, match=r"w4a16.*measure it"):
        found("two", "w4a16")


def test_fits_given_in_memory_stand_for_their_family_only():
    device = load("h100-sxm")
    given = device.with_fits("gemm", [a_fit(coefficients={"launch_s": 1.0})])
    assert [f.coefficients for f in given.measured.own("gemm")] == [{"launch_s": 1.0}]
    assert given.measured.pooled("gemm") == ()
    assert given.measured.own("attention") == device.measured.own("attention")
    assert given != device
    assert given == device.with_fits("gemm", [a_fit(coefficients={"launch_s": 1.0})])
    elsewhere = load("h200").with_fits("gemm", [a_fit()])
    assert elsewhere.measured.own("gemm") == ()
    assert elsewhere.measured.pooled("gemm")[0].device == "h100-sxm"
    nothing = load("h200").with_fits("gemm", [])
    with pytest.raises(UnsupportedError, match="no gemm fit for bf16 on h200"):
        lookup(nothing, "gemm", "bf16")


def test_an_edited_profile_or_fit_answers_anew_in_the_same_process(own_home):
    text = to_toml(load("h100-sxm")).replace('name = "h100-sxm"', 'name = "mine"', 1)
    profile = own_home.parent / "devices" / "mine.toml"
    profile.parent.mkdir()
    scenario = Scenario(model="llama-2-7b", device="mine", batch=1)
    tpot = []
    for bandwidth in ("3352 GB/s", "1676 GB/s"):
        profile.write_text(text.replace('"3352 GB/s"', f'"{bandwidth}"'))
        tpot.append(predict(scenario).row["tpot_s"])
    assert tpot[1] > 1.5 * tpot[0]
    borrowed = lookup(load("mine"), "gemm", "bf16").fit
    dump(own_home / "mine" / "gemm.toml", [replace(borrowed, device="mine")])
    before = load("mine")
    assert lookup(before, "gemm", "bf16").basis is cal.Basis.CALIBRATED
    slow = dict(borrowed.coefficients, launch_s=0.5)
    dump(own_home / "mine" / "gemm.toml", [replace(borrowed, device="mine", coefficients=slow)])
    assert load("mine") != before
    assert load("mine") is load("mine")
    assert predict(scenario).row["tpot_s"] > 0.5


# --- the user's own measurements


def own_rows(scale: float = 1.0) -> pd.DataFrame:
    """Products on an H100 that take twice their bytes' or flop's time, and a launch."""
    shapes = [(m, n, 4096) for m in (1, 16, 64, 256, 1024, 4096) for n in (4096, 6144, 11008, 28672)]
    rows = [{"source": "me", "device": "h100-sxm", "dtype": "bf16", "m": m, "n": n, "k": k} for m, n, k in shapes]
    times = [2 * (3e-6 + max(m * n * k / 3.5e14, (n * k + m * n + m * k) / 1.4e12)) for m, n, k in shapes]
    return pd.DataFrame(rows).assign(time_s=np.array(times) * scale)


def test_own_fits_answer_before_larger_shipped_ones_and_the_answer_says_so(own_home):
    """24 rows of one's own against the 1,000 and more that ship: twice the time of a product, and said."""
    asked = Scenario.of(model="llama-3.1-8b", device="h100-sxm", batch=16)
    before = predict(asked)
    assert "own" not in how_sure(before)
    write("gemm", calibrate("gemm", own_rows(), "h100-sxm"), own_home, pooled=False)
    assert max(f.n for f in load("h100-sxm").measured.own("gemm") if not f.by_user) > 1000
    after = predict(asked)
    own = {op.source for op in after.ops if op.by_user}
    assert own == {"h100-sxm/gemm/bf16/vendor (your own)"}
    assert own < set(after.to_dict()["sources"])
    assert after.answer.tpot_s.mid > 1.4 * before.answer.tpot_s.mid
    times = [(op.by_user, op.total_s) for op in after.ops if op.phase == "decode"]
    share = sum(t for own, t in times if own) / sum(t for _, t in times)
    assert 0.8 < share < 1.0
    assert f"{share:.0%} of the whole comes from your own fits" in how_sure(after)


def test_fits_in_memory_are_nobodys_own_and_keep_their_releases():
    """Releases were given in the place of `by_user`, which every fresh fit then had."""
    rows = own_rows().assign(release="0.27.1")
    assert not any(fit.by_user for fit in calibrate("gemm", rows))
    moved = [2.0**k for k in range(12, 30)]
    streams = pd.DataFrame(
        {"source": "vidur", "device": "h100-sxm", "op": "add", "rows": 1, "width": 1, "bytes": moved}
    )
    (fit, *_) = calibrate("elementwise", streams.assign(time_s=2e-6 + np.array(moved) / 2e12, note="", kernel=""))
    assert (fit.by_user, isinstance(fit.releases, tuple)) == (False, True)


def test_own_fits_that_do_not_answer_are_said(own_home):
    """Attention of PyTorch measured, vLLM's FlashAttention 3 asked for: its shipped fit is of the kernel."""
    shipped = load("h100-sxm").measured.own("attention")
    mine = [replace(f, library="torch_sdpa") for f in shipped if f.dtype == "decode.bf16"][:1]
    dump(own_home / "h100-sxm" / "attention.toml", mine)
    told = how_sure(predict(Scenario.of(model="llama-3.1-8b", device="h100-sxm", batch=16)))
    assert "your own attention fits are of other kernels or formats than are run here" in told


@pytest.mark.parametrize("through", [lambda rows: calibrate("gemm", rows), lambda rows: judge_rows("gemm", rows, None)])
def test_rows_that_no_hardware_ran_are_refused(through):
    """Seconds written as if they were milliseconds: 500 times less than the datasheet's least."""
    with pytest.raises(InputError, match=r"--data: .* s for .*m=256, n=28672, k=4096 is implausible.*h100-sxm allows"):
        through(own_rows(1e-3))
    through(own_rows(0.25))  # what lies in L2 may be faster than memory
