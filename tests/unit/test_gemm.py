"""The GEMM time model by hand, its floors and limits, and the fit on made-up rows."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from simulator.device import catalogue as devices
from simulator.device import fits as cal
from simulator.fitting import gemm as fitting
from simulator.fitting.asked import predicted
from simulator.fitting.curve import learning_curve
from simulator.fitting.gemm_rows import Table
from simulator.fitting.gemm_train import estimate, train
from simulator.roofline.gemm import DEFAULTS, SPLITS, TILES, floor_s, gemm_time
from simulator.roofline.hardware import Hardware, hardware

HW = Hardware(100.0, 1e15, 6e13, 3e12, 5e7, 32.0, 4e11, 1e-6, 1.8e9, "toy", 1.1)
BYTES = {"weight_bytes_per_element": 2.0, "act_bytes": 2.0, "out_bytes": 2.0}


def timed(m, n, k, coef=DEFAULTS, **more):
    return gemm_time(m, n, k, **BYTES, hw=HW, coef=coef, **more)


def test_by_hand_one_wave():
    """m=n=640, k=4096 with 64x64 tiles is exactly 100 CTAs on 100 SMs: one wave, no split.

    cta = 4096 (2*64*64*100/(c 1e15) + 0.15*256*100/3e12) + ramp; every other candidate is slower.
    """
    c = DEFAULTS
    step = 2 * 64 * 64 * 100 / (c["compute"] * 1e15) + c["tile_load"] * (64 + 64) * 2 * 100 / 3e12
    one_wave = 4096 * step + c["ramp_s"]
    got = timed(640.0, 640.0, 4096.0)
    assert float(got.math_s) <= one_wave * (1 + 1e-12)
    best = math.inf
    for tm, tn in TILES:
        for s in SPLITS:
            w = math.ceil(640 / tm) * math.ceil(640 / tn) * s / 100
            w = (1 - c["quant"]) * max(w, 1.0) + c["quant"] * math.ceil(w)
            rate = 2 * tm * tn * 100 / (c["compute"] * 1e15)
            cta = 4096 / s * (rate + c["tile_load"] * 2 * (tm + tn) * 100 / 3e12) + c["ramp_s"]
            extra = c["split_s"] + c["split_io"] * 8 * 640 * 640 / 3e12 if s > 1 else 0.0
            best = min(best, w * cta + extra)
    assert float(got.math_s) == pytest.approx(best, rel=1e-12)
    memory = (640 * 4096 * 2 * 2 + 640 * 640 * 2) / (c["memory"] * 3e12)
    assert float(got.memory_s) == pytest.approx(memory, rel=1e-12)
    body = max(best, memory) + c["overlap"] * min(best, memory)
    assert float(got.total_s) == pytest.approx(body + c["launch_s"], rel=1e-12)


TWO = Hardware(2.0, 1280.0, 1.0, 1024.0, 0.0, 32.0, 1.0, 1.0, 1.0, "cpu-toy")
PLAIN = {
    "launch_s": 0.0,
    "compute": 1.0,
    "tile_load": 0.0,
    "ramp_s": 0.0,
    "quant": 1.0,
    "split_s": 1e9,
    "split_io": 0.0,
    "memory": 1.0,
    "overlap": 0.0,
    "act_extra_bytes": 0.0,
}


def row(k, *, batch=1.0, **coef):
    """Vectors of length `k` times 64 columns on two cores of 640 flop/s each; 2 B activations, 1 B weights."""
    return gemm_time(
        1.0, 64.0, k, weight_bytes_per_element=1.0, act_bytes=2.0, out_bytes=4.0, hw=TWO, coef=PLAIN | coef, batch=batch
    )


def test_by_hand_waves_of_a_batch():
    """One tile of 1 x 64 a product, 2*64*10 = 1280 flop, 2 s a core. Four products: two waves; three: 1.5 waves, half
    rounded up: 1.75, each slower by loads of half of (2 + 64) B per step at 512 B/s a core, and 0.1 s of ramp."""
    assert float(row(10.0, batch=4.0).math_s) == pytest.approx(4.0)
    t = row(10.0, batch=3.0, quant=0.5, tile_load=0.5, compute=0.5, ramp_s=0.1)
    assert float(t.math_s) == pytest.approx(1.75 * (10 * (0.4 + 0.5 * 66 / 512) + 0.1))


def test_by_hand_a_split_fills_idle_cores():
    """One product on two cores: 2 s, or halves of 1 s, 0.25 s to start the sum and 0.5*8*64 B of partial sums."""
    assert float(row(10.0, split_s=0.25, split_io=0.5).math_s) == pytest.approx(1.0 + 0.25 + 0.25)


def test_by_hand_bytes_launch_and_overlap():
    """Five products: 5*64*10 B of weights, 5*10*2 B in, 5*64*4 B out = 4580 B at half of 1024 B/s; 3 B more per input
    element in the launch; three waves of 2 s, an eighth of the shorter term on top of the longer."""
    t = row(10.0, batch=5.0, memory=0.5, overlap=0.125, launch_s=7.0, act_extra_bytes=3.0)
    assert float(t.memory_s) == pytest.approx(4580 / 512)
    assert float(t.launch_s) == pytest.approx(7.0 + 150 / 512)
    assert float(t.total_s) == pytest.approx(4580 / 512 + 6.0 / 8 + float(t.launch_s))


def test_scalar_vector_and_grid_agree():
    m = np.array([1.0, 17.0, 300.0, 4096.0])
    n = np.array([512.0, 4096.0])[:, None]
    grid = timed(m, n, 1024.0).total_s
    assert grid.shape == (2, 4)
    for i, j in np.ndindex(2, 4):
        assert float(timed(m[j], n[i, 0], 1024.0).total_s) == pytest.approx(grid[i, j], rel=1e-12)


def test_never_below_the_floor_and_grows():
    cheat = dict(DEFAULTS, compute=50.0, memory=50.0, tile_load=1e-6, launch_s=0.0, ramp_s=0.0)
    m = 2.0 ** np.arange(0, 16)
    flop, moved = 2 * m * 8192 * 8192, 2 * (8192.0**2 + 2 * m * 8192)
    assert (timed(m, 8192.0, 8192.0, cheat).total_s >= floor_s(flop, moved, HW)).all()
    powers = timed(m, 8192.0, 8192.0).total_s
    assert (np.diff(powers) >= -1e-12).all()
    assert float(floor_s(1e12, 0.0, HW)) == pytest.approx(1e12 / 1.1e15)


def test_overrides_scale_math_and_weights():
    m, n, k = 4096.0, 8192.0, 8192.0
    full, half = timed(m, n, k), timed(m, n, k, flop=m * n * k)
    assert float(half.math_s) == pytest.approx(float(full.math_s) / 2)
    few = timed(1.0, n, k, weight_read_bytes=n * k)
    assert float(few.memory_s) < float(timed(1.0, n, k).memory_s) * 0.51


def test_surface_multiplies_the_whole_time():
    """The residual it holds is that of measured over modelled time, launch and all."""
    flat = cal.Surface((("m", (0.0, 1.0)), ("n", (0.0,)), ("k", (0.0,))), np.full((2, 1, 1), 0.1))
    plain, more = timed(128.0, 4096.0, 4096.0), timed(128.0, 4096.0, 4096.0, surface=flat)
    assert float(more.total_s) == pytest.approx(math.exp(0.1) * float(plain.total_s))
    assert float(more.launch_s) == float(plain.launch_s)


def test_a_fit_answers_as_it_was_trained(made_rows):
    """Products of 5 us that are mostly launch: what a prediction says of them is the trained mean."""
    small = made_rows[made_rows["m"] * made_rows["n"] * made_rows["k"] < 1e9]
    rows = fitting.prepare(small.assign(time_s=5e-6 * (1.0 + 0.3 * np.sin(np.log2(small["k"])))))
    table = Table.of(rows)
    trained = estimate(train(table), table, "library")
    judged, _ = predicted("gemm", rows, fitting.fit(rows, residuals=False))
    # Knots that the rows need least are not kept; the launch alone would be off by a third.
    assert np.abs(np.log(judged["mid_s"].to_numpy() / trained)).max() < 0.08


def test_missing_coefficient_is_an_error():
    with pytest.raises(KeyError, match="compute"):
        timed(1.0, 1.0, 1.0, {"launch_s": 1e-6})


def test_hardware_of_a_device():
    card = devices.load("h100-sxm")
    hw = hardware(card, "w4a16")
    assert hw.math_flop_per_s == card.peak_flop_per_s("fp16")
    assert hw.max_clock_ratio >= 1.0
    assert hardware(card, "fp8").math_flop_per_s == card.peak_flop_per_s("fp8")


@pytest.mark.parametrize(
    ("kernel", "library"),
    [
        ("vllm-0.24.0:torch.nn.functional.linear", "vllm"),
        ("trtllm-1.3.0rc20:torch_flow", "trtllm"),
        ("vllm-0.24.0:DeepGemmFp8BlockScaledMMKernel", "vllm_deepgemm"),
        ("sglang-0.5.14:sglang_deepgemm_gemm_nt_f8f8bf16", "sglang"),
        ("torch linear (vidur profiler):attn_post_proj", "torch"),
        ("vLLM-0.19 layerwise:o_proj", "torch"),
        ("cuBLAS GemmEx", "cublas_launch"),
        ("bmm:ampere_sgemm_128x128_nn", "bmm"),
        ("aiter:ck", "aiter_ck"),
        ("DeepGEMM fp8", "deepgemm"),
        ("something new", "other"),
    ],
)
def test_library_of(kernel, library):
    assert fitting.library_of(kernel) == library


@pytest.fixture(scope="module")
def made_rows():
    """Rows drawn from the model itself on one card, 4 % noise; one flagged row."""
    import pandas as pd

    rng = np.random.default_rng(0)
    shape = 2.0 ** rng.integers([0, 8, 8], [14, 14, 14], size=(220, 3))
    truth = dict(DEFAULTS, compute=0.7, memory=0.75, launch_s=4e-6)
    hw = hardware(devices.load("h100-sxm"), "bf16")
    time_s = gemm_time(*shape.T, **BYTES, hw=hw, coef=truth).total_s
    rows = pd.DataFrame(shape, columns=["m", "n", "k"])
    rows["time_s"] = time_s * np.exp(0.04 * rng.standard_normal(len(rows)))
    rows["source"], rows["device"], rows["dtype"] = "made-up", "H100-SXM", "bf16"
    rows["kernel"], rows["batch"], rows["flag"] = "torch.matmul", 1, ""
    rows.loc[0, "flag"] = "broken"
    return rows


def test_fit_finds_the_truth_and_covers(made_rows):
    rows = fitting.prepare(made_rows)
    assert rows["device"].unique().tolist() == ["h100-sxm"]
    assert rows["library"].unique().tolist() == ["torch"]
    fits = fitting.fit(rows, date="2026-01-01")
    (own,) = [f for f in fits if f.device == "h100-sxm" and f.library == cal.VENDOR]
    assert own.coefficients["memory"] == pytest.approx(0.75, rel=0.1)
    assert own.n == len(rows) <= len(made_rows) - 1
    judged, _ = predicted("gemm", rows, fits)
    mid, low, high = judged["mid_s"], judged["lo_s"], judged["hi_s"]
    assert np.median(np.abs(mid / rows["time_s"] - 1)) < 0.05
    inside = (rows["time_s"] >= low) & (rows["time_s"] <= high)
    assert 0.85 <= inside.mean() <= 1.0


def test_unknown_class_is_refused(made_rows):
    rows = fitting.prepare(made_rows)
    fits = fitting.fit(rows, date="2026-01-01", residuals=False)
    judged, without = predicted("gemm", rows.assign(dtype="nvfp4", device="b200"), fits)
    assert len(judged) == 0
    assert without == {"no gemm fit for nvfp4 on b200 or its like": len(rows)}


def test_learning_curve_draws_what_it_says(made_rows):
    rows = fitting.prepare(made_rows)
    curve = learning_curve(fitting, rows, "h100-sxm", "bf16", (20, 60, 10_000), seeds=(0,))
    assert [c["fit_rows"] for c in curve] == [20.0, 60.0]
    assert all(c["median_ape"] < 0.08 and c["n"] == curve[0]["n"] for c in curve)


def test_learning_curve_begins_where_a_fit_can(made_rows):
    """Of few rows there may be no fit of any library: no point then, not one without an error."""
    rows = fitting.prepare(made_rows)
    needs_twenty = SimpleNamespace(
        FAMILY="gemm",
        INPUTS=fitting.INPUTS,
        fit=lambda learn, residuals: fitting.fit(learn, residuals=residuals) if len(learn) >= 20 else [],
    )
    curve = learning_curve(needs_twenty, rows, "h100-sxm", "bf16", (10, 60), seeds=(0,))
    assert [c["fit_rows"] for c in curve] == [60.0]


@pytest.mark.parametrize("name", ["apple-m2-ultra", "apple-m4-max"])
def test_one_row_on_apple_waits_for_its_weights_not_for_sixteen_rows_of_products(name):
    """Metal's matrix-vector kernels; sixteen rows in its vector lanes would take twice as long as 4-bit weights."""
    hw = hardware(devices.load(name), "fp16")
    stored = {"weight_bytes_per_element": 4.5 / 8, "act_bytes": 2.0, "out_bytes": 2.0}
    found = gemm_time(1.0, 14336.0, 4096.0, **stored, hw=hw, coef=DEFAULTS)
    assert found.math_s < found.memory_s
