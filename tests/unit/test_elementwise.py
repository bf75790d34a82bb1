"""Streaming kernels: bytes, start-up, floor beyond L2."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.base.errors import UnknownNameError
from simulator.device.catalogue import list_devices, load
from simulator.device.surface import Surface
from simulator.fitting.elementwise import KINDS as FITTED
from simulator.fitting.elementwise import OPERATIONS
from simulator.roofline.elementwise import DEFAULT, KINDS, elementwise_floor, elementwise_time
from simulator.roofline.hardware import Hardware, hardware

HW = Hardware(132, 989e12, 67e12, 3.35e12, 50e6, 32, 450e9, 1e-6, 1.98e9, "hopper")


def test_large_streams_run_at_the_fitted_share_and_small_ones_at_the_start_up():
    large = elementwise_time(4e9, 4e9, kind="add", hw=HW, coef=DEFAULT)
    assert float(large.total_s) == pytest.approx(8e9 / (0.85 * 3.35e12), rel=0.01)
    small = elementwise_time(1e3, 1e3, kind="add", hw=HW, coef=DEFAULT)
    assert float(small.total_s) == pytest.approx(2e-6, rel=0.01)


def test_kinds_differ_in_passes_and_start():
    coef = dict(DEFAULT, passes_norm=2.0, start_norm=3.0)
    norm = elementwise_time(1e9, 1e9, kind="norm", hw=HW, coef=coef)
    add = elementwise_time(1e9, 1e9, kind="add", hw=HW, coef=coef)
    assert float(norm.memory_s / add.memory_s) == pytest.approx(2.0)
    assert float(norm.launch_s / add.launch_s) == pytest.approx(3.0)


def test_every_term_by_hand():
    """(6 + 4) GB twice over at half of 3.35 TB/s; 3 times 2 us; a surface of ln 5 multiplies both."""
    coef = {"t0_s": 2e-6, "bw_share": 0.5, "passes_norm": 2.0, "start_norm": 3.0}
    surface = Surface((("bytes", (30.0, 34.0)),), np.log([5.0, 5.0]))
    for times, more in ((1.0, {}), (5.0, {"surface": surface})):
        t = elementwise_time(6e9, 4e9, kind="norm", hw=HW, coef=coef, **more)
        assert float(t.memory_s) == pytest.approx(times * 20e9 / (0.5 * 3.35e12))
        assert float(t.launch_s) == pytest.approx(times * 6e-6)
        assert float(t.total_s) == pytest.approx(float(t.memory_s + t.launch_s))
    assert elementwise_floor(6e9, 4e9, hw=HW) == pytest.approx((10e9 - 50e6) / 3.35e12)
    assert elementwise_floor(1e6, 1e6, hw=HW) == 0.0


def test_never_below_the_bytes_beyond_l2_and_monotone():
    moved = np.logspace(3, 11, 50)
    fast = dict(DEFAULT, t0_s=1e-12, bw_share=9.0)
    t = elementwise_time(moved, moved, kind="add", hw=HW, coef=fast).total_s
    assert np.all(t >= elementwise_floor(moved, moved, hw=HW))
    assert np.all(np.diff(elementwise_time(moved, moved, kind="add", hw=HW, coef=DEFAULT).total_s) > 0)


def test_a_smaller_tensor_never_takes_longer():
    """Measured at 8, 16 and 64 KiB as 4, 1 and 1.2 times ``t0 = 2 us``: the middle of least above and most below."""
    surface = Surface((("bytes", (13.0, 14.0, 16.0)),), np.log([4.0, 1.0, 1.2]))
    coef = {"t0_s": 2e-6, "bw_share": 1.0}

    def bare(moved: float) -> float:
        return 2e-6 + moved / 3.35e12

    at_8, at_16, at_64 = 4.0 * bare(2.0**13), bare(2.0**14), 1.2 * bare(2.0**16)
    for moved, expected in (
        (1e3, (4.0 * bare(1e3) * at_16) ** 0.5),
        (2.0**13, (at_8 * at_16) ** 0.5),
        (10e3, (at_8 * at_16) ** 0.5),
        (2.0**14, (at_8 * at_16) ** 0.5),
        (2.0**16, (at_8 * at_64) ** 0.5),
    ):
        t = elementwise_time(moved, 0.0, kind="add", hw=HW, coef=coef, surface=surface)
        assert float(t.total_s) == pytest.approx(expected)
        assert float(t.memory_s + t.launch_s) == pytest.approx(expected)
    # Far beyond the bump the surface's own time stands.
    large = elementwise_time(1e9, 0.0, kind="add", hw=HW, coef=coef, surface=surface)
    assert float(large.total_s) == pytest.approx(1.2 * bare(1e9))


@pytest.mark.parametrize("device", list_devices())
def test_more_bytes_never_take_less(device):
    hw = hardware(load(device), "fp32")
    measured = load(device).measured
    moved = np.geomspace(1.0, 1e11, 2001)
    for fit in (*measured.own("elementwise"), *measured.pooled("elementwise")):
        for kind in KINDS:
            t = elementwise_time(moved, 0.0, kind=kind, hw=hw, coef=fit.coefficients, surface=fit.surface).total_s
            assert np.all(np.diff(t) >= -1e-12 * t[1:]), (fit.library, kind)
            alone = elementwise_time(30e3, 0.0, kind=kind, hw=hw, coef=fit.coefficients, surface=fit.surface).total_s
            grid = elementwise_time(np.array([30e3]), 0.0, kind=kind, hw=hw, coef=fit.coefficients, surface=fit.surface)
            assert float(alone) == pytest.approx(float(grid.total_s[0]))


def test_unknown_kind_is_an_error():
    with pytest.raises(UnknownNameError, match="norm"):
        elementwise_time(1.0, 1.0, kind="norms", hw=HW, coef=DEFAULT)


def test_every_operation_of_the_data_has_a_known_kind():
    assert {kind for kind, _ in OPERATIONS.values()} == set(FITTED)
    assert set(FITTED) <= set(KINDS)
