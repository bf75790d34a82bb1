"""Collectives: bytes, floors, limits and the library table."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.base.errors import InputError, UnknownNameError
from simulator.fitting.collective import library_of
from simulator.roofline.collective import DEFAULT, OPS, collective_floor, collective_time, link_bytes
from simulator.roofline.hardware import Hardware

HW = Hardware(132, 989e12, 67e12, 3.35e12, 50e6, 32, 450e9, 1e-6, 1.98e9, "hopper")


@pytest.mark.parametrize(
    ("op", "factor"),
    [("all_reduce", 1.75), ("all_gather", 0.875), ("reduce_scatter", 0.875), ("all_to_all", 0.875), ("send_recv", 1.0)],
)
def test_ring_bytes_are_those_of_nccl_tests(op, factor):
    assert float(link_bytes(op, 8e6, 8)) == pytest.approx(8e6 * factor)


def test_in_switch_reduction_sends_the_buffer_once_at_most():
    assert float(link_bytes("all_reduce", 1e6, 8, in_switch=True)) == pytest.approx(1e6)
    assert float(link_bytes("all_reduce", 1e6, 2, in_switch=True)) == pytest.approx(1e6)


def test_floors_by_hand():
    """A switch that reduces takes S once, a gather 7/8 of it; two ranks send the whole of S without a switch too."""
    for op, n, share in (("all_reduce", 8, 1.0), ("all_reduce", 2, 1.0), ("all_gather", 8, 0.875)):
        assert float(collective_floor(op, 9e6, n, hw=HW)) == pytest.approx(share * 9e6 / 450e9)


def test_every_term_by_hand():
    """8 ranks, S = 8 MB: V = 14 MB over 450 GB/s; latency 2 + 3*1 us; the link at 0.5 * 4^0.5 of its rate, and
    sqrt(4 us * V / link) of start-up; a surface of ln 3 multiplies both."""
    coef = {"t0_s": 2e-6, "hop_s": 1e-6, "fill_s": 4e-6, "link_share": 0.5, "share_slope": 0.5}
    bare = 14e6 / 450e9
    seen = {}

    def surface(**axes):
        seen.update(axes)
        return np.log(3.0)

    for times, more in ((1.0, {}), (3.0, {"surface": surface})):
        t = collective_time("all_reduce", 8e6, 8, hw=HW, coef=coef, **more)
        assert float(t.latency_s) == pytest.approx(5e-6 * times)
        assert float(t.link_s) == pytest.approx((bare + np.sqrt(4e-6 * bare)) * times)
        assert float(t.total_s) == pytest.approx(float(t.latency_s + t.link_s))
    assert seen == {"bytes": 8e6, "ranks": 8.0}


@pytest.mark.parametrize("op", OPS)
def test_never_below_the_floor_and_grows_with_bytes(op):
    size = np.logspace(2, 10, 60)
    fast = dict(DEFAULT, link_share=5.0, t0_s=1e-9, hop_s=1e-9, fill_s=1e-12)
    for coef in (DEFAULT, fast):
        t = collective_time(op, size, 8, hw=HW, coef=coef)
        assert np.all(t.total_s >= collective_floor(op, size, 8, hw=HW) - 1e-18)
        assert np.all(np.diff(t.total_s) > 0)


def test_small_messages_cost_latency_and_large_ones_bandwidth():
    small = collective_time("all_reduce", 1e3, 8, hw=HW, coef=DEFAULT)
    assert float(small.latency_s / small.total_s) > 0.95
    large = collective_time("all_reduce", 4e9, 8, hw=HW, coef=DEFAULT)
    assert float(large.total_s) == pytest.approx(4e9 * 1.75 / (0.75 * 450e9), rel=0.02)


def test_one_rank_is_free_and_ranks_broadcast():
    t = collective_time("all_reduce", np.array([1e3, 1e6])[:, None], np.array([1, 2, 8]), hw=HW, coef=DEFAULT)
    assert t.total_s.shape == (2, 3)
    assert np.all(t.total_s[:, 0] == 0.0)
    assert np.all(np.diff(t.total_s, axis=1) > 0)


def test_bad_input_is_named():
    with pytest.raises(UnknownNameError, match="all_reduce"):
        collective_time("allreduce", 1e6, 8, hw=HW, coef=DEFAULT)
    with pytest.raises(InputError, match="rank"):
        collective_time("all_reduce", 1e6, 0, hw=HW, coef=DEFAULT)


@pytest.mark.parametrize(
    ("kernel", "nodes", "library"),
    [
        ("nccl-2.27.3:NCCL", 1, "nccl"),
        ("trtllm-1.3.0rc10:NCCL", 1, "nccl"),
        ("NCCL (torch.distributed)", 2, "nccl_torch_2nodes"),
        ("nccl-tests 2.18.5", 1, "nccl_tests"),
        ("sglang-0.5.6.post2:TRTLLM", 1, "trtllm"),
        ("vllm-0.24.0:vLLM_custom_graph", 1, "vllm_graph"),
        ("vllm-0.14.0:vLLM_custom_eager", 1, "vllm_old_eager"),
        ("sglang-0.5.10:SGLang_CustomAllReduce_graph", 1, "sglang_old_graph"),
        ("sglang-0.5.14:SGLang_CustomAllReduce_eager", 1, "sglang_eager"),
        ("sglang-0.5.12:SGLang_CustomAllReduce_graph", 1, "sglang_p2p_graph"),
    ],
)
def test_kernel_strings_name_their_library(kernel, nodes, library):
    assert library_of(kernel, nodes) == library
