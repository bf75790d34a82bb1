"""Where ops meet the time functions: what a device's measured memory changes, what borrowed fits assume."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from simulator.base.dtypes import FORMATS, DType
from simulator.base.errors import UnsupportedError
from simulator.device import catalogue
from simulator.device.catalogue import Device, load
from simulator.device.fits import Fit, Residual
from simulator.device.surface import Surface
from simulator.ops.ops import Elementwise, Expand, Linear
from simulator.ops.traffic import Operand
from simulator.roofline import sparse
from simulator.roofline.engine import get_engine
from simulator.roofline.hardware import GATHER_RUN_BYTES, Hardware, hardware, math_of
from simulator.roofline.optime import interval_factors
from simulator.roofline.timing import _decode_tiles, time_op, working_set_bytes

CACHED = Surface((("bytes", (20.0, 30.0)),), np.array([np.log(8.0), 0.0]))
"""Eight times main memory's rate up to 1 MiB, that rate from 1 GiB on."""


def renamed(name: str) -> Device:
    """An RTX 4090 that nobody has measured."""
    return dataclasses.replace(load("rtx-4090"), name=name, profile_hash=name, measured=catalogue.measured(name))


@pytest.fixture
def measured() -> Device:
    """A device whose memory was measured."""
    coefficients = {"gather_run_bytes": 64.0, "gather_share": 0.5, "nonzeros_per_cycle": 2.0, "x": 1.0}
    fit = Fit("memory", "measured-toy", "any", "any", coefficients, CACHED, 1, (), "", Residual(0.1, 0.1, -0.1, 0.1))
    return renamed("measured-toy").with_fits("memory", [fit])


def test_what_was_measured_of_a_memory_replaces_the_assumed(measured: Device) -> None:
    hw = hardware(measured, DType.FP16)
    assert (hw.gather_run_bytes, hw.gather_share, hw.nonzeros_per_cycle) == (64.0, 0.5, 2.0)
    assert hw.cached is CACHED
    plain = hardware(renamed("never-measured-toy"), DType.FP16)
    assert (plain.gather_run_bytes, plain.gather_share, plain.cached) == (GATHER_RUN_BYTES, 1.0, None)


def test_a_working_set_beyond_the_cache_comes_from_main_memory(measured: Device) -> None:
    """1 MiB is read eight times as fast where nothing else is touched in between."""
    engine = get_engine("vllm")
    for op in (
        Elementwise(role="x", kind="copy", read_bytes=2.0**20),
        Linear(role="x", m=1.0, n=512.0, k=512.0, fmt=FORMATS["fp16"]),
    ):
        near, far = (time_op(op, measured, engine, touched) for touched in (0.0, 2.0**30))
        assert far.memory_s / near.memory_s == pytest.approx(8.0)


def test_the_working_set_is_what_all_ops_read(measured: Device) -> None:
    """Three times 2*4*2 B of weights and 4*2 B of input, and 10 B; nobody asks where no cache was measured."""
    ops = (
        Linear(role="a", m=1.0, n=2.0, k=4.0, fmt=FORMATS["fp16"], count=3.0),
        Elementwise(role="b", kind="copy", read_bytes=10.0, write_bytes=99.0),
    )
    assert working_set_bytes(ops, measured) == 3 * 24 + 10
    assert working_set_bytes(ops, renamed("never-measured-toy")) is None


def test_an_op_that_runs_three_times_takes_three_times_as_long() -> None:
    device, engine = load("h100-sxm"), get_engine("vllm")
    one = Linear(role="x", m=16.0, n=4096.0, k=4096.0, fmt=FORMATS["fp16"])
    a, b = (time_op(dataclasses.replace(one, count=n), device, engine) for n in (1.0, 3.0))
    for name in ("total_s", "math_s", "memory_s", "launch_s", "lo_s", "hi_s"):
        assert getattr(a, name) > 0.0
        assert getattr(b, name) == pytest.approx(3.0 * getattr(a, name)), name
    assert a.lo_s < a.total_s < a.hi_s


def test_kernels_of_policies_take_query_tiles_of_16_at_half_the_peak_or_better() -> None:
    assert _decode_tiles({"row_tile": 64.0, "math_eff": 0.2, "kv_eff": 0.9}) == {
        "row_tile": 16.0,
        "math_eff": 0.5,
        "kv_eff": 0.9,
    }
    better = {"row_tile": 8.0, "math_eff": 0.7}
    assert _decode_tiles(better) == better


def test_intervals_follow_the_classes_of_time() -> None:
    """One residual for all, widened in log: exp(1.5 q)."""
    residual = Residual(sigma_in=0.1, sigma_cross=0.2, q05=-0.4, q95=0.6)
    low, high = residual.quantiles(np.array([0.0]), cross=True)
    for widen in (1.0, 1.5):
        factors = interval_factors(residual, np.array([1e-6, 1.0]), widen)
        assert factors == pytest.approx((np.exp(low[0] * widen), np.exp(high[0] * widen)))


def test_intervals_of_short_and_of_long_times() -> None:
    """Two classes: what is below 1 ms errs by -0.5 to 0.8, what is above by -0.1 to 0.2; with no second source."""
    residual = Residual(0.1, 0.1, -0.3, 0.3, classes=((0.0, -0.5, 0.8), (1e-3, -0.1, 0.2)))
    low, high = residual.quantiles(np.array([1e-6, 1.0]), cross=True)
    assert low[0] < -0.5 < low[1] <= -0.1
    for times in (np.array([1e-6, 1.0]), np.array([1e-6]), np.array([1.0])):
        rows = (times > 1e-3).astype(int)
        got = interval_factors(residual, times, cross=True)
        np.testing.assert_allclose(np.broadcast_to(got[0], times.shape), np.exp(low[rows]))
        np.testing.assert_allclose(np.broadcast_to(got[1], times.shape), np.exp(high[rows]))


def test_bf16_runs_as_fp16_where_there_is_no_bf16() -> None:
    assert math_of(load("t4"), DType.BF16) is DType.FP16
    assert math_of(load("h100-sxm"), DType.BF16) is DType.BF16


def test_a_product_is_never_faster_than_its_decompression() -> None:
    """1e12 elements at 17.7 a cycle and SM take longer than any product of 16 x 16."""
    device = load("a100-sxm-80g")
    op = Linear(role="x", m=16.0, n=16.0, k=16.0, fmt=FORMATS["fp16"], expand=Expand(elements=1e12, nonzeros=0.0))
    t = time_op(op, device, get_engine("vllm"))
    cycles = device.sm_count * device.clock_hz.boost
    assert t.total_s == pytest.approx(1e12 / (17.7 * cycles) + t.launch_s)


def test_2_to_4_weights_need_their_tensor_cores() -> None:
    op = Linear(role="x", m=16.0, n=16.0, k=16.0, fmt=FORMATS["fp16"], nm24=True)
    with pytest.raises(UnsupportedError, match="no 2:4"):
        time_op(op, load("v100-sxm"), get_engine("vllm"))


HW = Hardware(10.0, 1.0, 1.0, 1.0, 0.0, 32.0, 1.0, 1.0, 100.0, "toy")
HW = dataclasses.replace(HW, gather_share=0.5, l2_bytes_per_s=200.0)


def test_rates_of_sparse_kernels_by_hand() -> None:
    """10 SMs at 100 Hz: 1000 cycles a second."""
    assert sparse.expand_s(None, HW) == 0.0
    expand = Expand(elements=17_700.0, nonzeros=9600.0)
    assert sparse.expand_s(expand, HW) == pytest.approx(1.0 + 2.0)
    # 128 instructions a cycle, or the lanes' own rate where that is less.
    assert sparse.expand_s(Expand(instructions=256e3), HW) == pytest.approx(256e3 / min(128e3, HW.vector_flop_per_s))
    assert sparse.tile_s(268.0, HW) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("elements", "rows", "busy"), [(4400.0, 4.0, 4.0), (440_000.0, 40.0, 10.0), (2 * 3 * 16_384.0, 2.0, 6.0)]
)
def test_a_row_is_searched_by_one_block_and_long_ones_in_pieces(elements: float, rows: float, busy: float) -> None:
    """0.22 elements a cycle of 100 Hz on as many SMs as there are rows, or pieces of 16,384; at most all 10."""
    assert sparse.select_s(elements, rows, HW) == pytest.approx(elements / (0.22 * 100 * busy))


def test_gathers_move_sectors_and_start_again_for_each_run() -> None:
    """Runs of 48 B move 64; (48 + 256) / (48 / 2) of a stream's time; a stream moves what is useful."""
    assert sparse.gathered_bytes(96.0, 48.0, HW) == pytest.approx(128.0 * 304 / 24)
    assert sparse.gathered_bytes(96.0, float("inf"), HW) == 96.0


def test_a_select_adds_to_the_lanes_of_its_pass() -> None:
    """A top-k of one long row waits for one SM: 0.22 elements a cycle, in pieces of 16,384."""
    device = load("h100-sxm")
    op = Elementwise(role="k", kind="topk", read_bytes=8.0, operand=Operand.INDEX, select_elements=16_384.0)
    t = time_op(op, device, get_engine("vllm"))
    assert t.math_s == pytest.approx(16_384 / (0.22 * device.clock_hz.boost))
    assert t.total_s == pytest.approx(t.math_s + t.launch_s, rel=0.5)
