"""Links, host products, and what of them sticks out beside the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest

from simulator.device.catalogue import load
from simulator.ops.traffic import Operand
from simulator.ops.transfers import HostCompute, Transfer
from simulator.roofline.transfer import LINK_SHARE, exposed, host_s, transfer_s

HOST = load("a100-sxm-80g").tier("host")
SSD = load("apple-m1-max").tier("ssd")


class Timed(NamedTuple):
    """What `exposed` needs of an op's time."""

    op: object
    total_s: float


@dataclass(frozen=True)
class Plain:
    """An op on the GPU stream."""

    role: str


def copy(role: str, *, tier: str = "host", beside: tuple[str, ...] = ()) -> Transfer:
    return Transfer(role=role, tier=tier, read_bytes=1e6, beside=beside)


def test_a_long_copy_runs_at_the_links_share() -> None:
    """1 GB over 32 GB/s at 83 %: 37.7 ms, and the latency once."""
    time = float(transfer_s(1e9, 0.0, float("inf"), float("inf"), HOST))
    assert time == pytest.approx(1e9 / (0.83 * HOST.bandwidth_bytes_per_s) + HOST.latency_s)


def test_both_directions_at_once() -> None:
    """Full duplex: 1 GB in and 0.5 GB out take as long as 1 GB in."""
    one = transfer_s(1e9, 0.0, float("inf"), 1.0, HOST)
    assert transfer_s(1e9, 5e8, float("inf"), 1.0, HOST) == one


def test_small_chunks_wait_for_latency() -> None:
    """One after another, 64 KiB each: latency per chunk; 32 in flight share it; a zero-copy kernel hides it."""
    chunk, total = 65_536.0, 65_536.0 * 1000
    stream = total / (LINK_SHARE * HOST.bandwidth_bytes_per_s) + HOST.latency_s
    for in_flight, waits in ((1.0, 1000.0), (32.0, 1000 / 32), (float("inf"), 0.0)):
        time = float(transfer_s(total, 0.0, chunk, in_flight, HOST))
        assert time == pytest.approx(stream + waits * HOST.latency_s)


def test_chunks_move_whole_sectors() -> None:
    """Flash pages of 4096 B: rows of 1 KiB move four times their bytes."""
    short = float(transfer_s(1e9, 0.0, 1024.0, float("inf"), SSD))
    page = float(transfer_s(1e9, 0.0, 4096.0, float("inf"), SSD))
    assert (short - SSD.latency_s) / (page - SSD.latency_s) == pytest.approx(4.0)


@pytest.mark.parametrize(("chunk", "measured"), [(8192.0, 1.25e9), (16_384.0, 2.25e9)])
def test_flash_rates_of_an_m1_max(chunk: float, measured: float) -> None:
    """LLM in a flash: 8 KiB rows at 1.25 GB/s, bundles at 2.25 GB/s with 32 threads."""
    assert 1e9 / float(transfer_s(1e9, 0.0, chunk, 32.0, SSD)) == pytest.approx(measured, rel=0.06)


def test_nothing_moved_takes_no_time() -> None:
    assert transfer_s(0.0, 0.0, float("inf"), 1.0, HOST) == 0.0
    np.testing.assert_array_equal(transfer_s(np.array([0.0, 1e6]), 0.0, float("inf"), 1.0, HOST) > 0.0, [False, True])


def test_one_byte_waits_for_the_link() -> None:
    assert transfer_s(1.0, 0.0, float("inf"), 1.0, HOST) == pytest.approx(
        HOST.latency_s + 1.0 / (LINK_SHARE * HOST.bandwidth_bytes_per_s), rel=1e-12
    )


def test_the_cpu_streams_its_memory() -> None:
    dram = load("rtx-4090").tier("dram")
    assert host_s(67.2e9, dram) == pytest.approx(1 / 0.83)


def test_only_what_outlasts_its_companions_is_waited_for() -> None:
    """3 s beside 2 s of mlp kernels: 1 s; beside 5 s: nothing; without companions: all of it."""
    for cover, left in ((2.0, 1.0), (5.0, 0.0), (0.0, 3.0)):
        times = [Timed(Plain("mlp.up"), cover), Timed(copy("x", beside=("mlp.",)), 3.0)]
        out = exposed(times)  # type: ignore[type-var]
        assert out[0].total_s == cover
        assert out[1].total_s == pytest.approx(left)
    alone = exposed([Timed(Plain("mlp.up"), 5.0), Timed(copy("x"), 3.0)])  # type: ignore[type-var]
    assert alone[1].total_s == 3.0


def test_one_link_queues_and_two_tiers_run_at_once() -> None:
    """2 + 2 s on one tier beside 1 s: 3 s wait; on two tiers: 1 s."""
    for second, left in (("host", 3.0), ("ssd", 1.0)):
        times = [
            Timed(Plain("mlp.up"), 1.0),
            Timed(copy("a", beside=("",)), 2.0),
            Timed(copy("b", tier=second, beside=("",)), 2.0),
        ]
        assert sum(t.total_s for t in exposed(times)) == pytest.approx(1.0 + left)  # type: ignore[type-var]


def test_traffic_of_both_ops() -> None:
    """A transfer's useful bytes and pieces; a host product's reads and flop, outside any graph."""
    t = Transfer(role="x", tier="host", read_bytes=4096.0, chunk_bytes=1024.0).traffic()
    assert t.read_bytes(Operand.KV) == 4096.0
    assert t.access[Operand.KV].runs == 4.0
    cpu = HostCompute(role="y", read_bytes=10.0, flop=20.0)
    assert cpu.traffic().read_bytes(Operand.WEIGHT) == 10.0
    assert cpu.traffic().total_flop == 20.0
    assert not cpu.graph_safe
