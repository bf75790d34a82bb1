"""Kernels of linear attention: bytes and flop by hand, time by its terms, and the fit that answers."""

import numpy as np
import pytest

from simulator.device.catalogue import load
from simulator.device.fits import Basis
from simulator.ops.linear_attention import LinearAttention
from simulator.roofline.engine import get_engine
from simulator.roofline.linear_attention import linear_demand, linear_time
from simulator.roofline.lookup import linear_key
from simulator.roofline.timing import time_op

GDN = {"kind": "gdn", "k_heads": 16.0, "v_heads": 32.0, "k_dim": 128.0, "v_dim": 128.0, "channels": 8192.0}


def op(part="scan", phase="decode", batch=8.0, q_len=1.0, **more):
    return LinearAttention(role="r", kernel_part=part, phase=phase, batch=batch, q_len=q_len, **{**GDN, **more})


def test_a_decode_step_moves_the_state_twice_and_no_context():
    traffic = op().traffic()
    state = 8 * 32 * 128 * 128 * 4
    assert op().kept_bytes == 2 * state
    tokens = 8 * (2 * (8192 + 32 * 128) + 4 * 32 * 2)
    assert traffic.total_bytes == pytest.approx(2 * state + tokens)
    assert sum(traffic.flop.values()) == 8 * 32 * 6 * 128 * 128


def test_a_prompt_adds_the_products_inside_a_chunk():
    one = op(phase="prefill", batch=1.0, q_len=64.0)
    assert one.flop == 64 * 32 * (6 * 128 * 128 + 4 * 64 * 256)


def test_drafted_tokens_write_a_state_each():
    assert op(phase="verify", q_len=4.0).kept_bytes == 2.5 * op().kept_bytes


def test_the_convolution_reads_and_writes_its_channels():
    conv = op("conv", "prefill", batch=2.0, q_len=100.0)
    assert conv.stream_bytes == 2 * 2 * 200 * 8192
    assert conv.kept_bytes == 2 * 2 * 8192 * 3 * 2
    assert conv.flop == 2 * 200 * 8192 * 4


def test_time_by_hand():
    device = load("h100-sxm")
    coef = {"launch_s": 5e-6, "stream": 1.5, "hit": 0.5, "kept": 1.0, "math": 2.0, "chunk_s": 1e-6, "row_s": 1e-7}
    one = op()
    d = linear_demand(one, device)
    memory = (1.5 * one.stream_bytes + 1.5 * one.kept_bytes) / device.hbm_bytes_per_s
    math = 2.0 * one.flop / d.flop_per_s
    expected = 5e-6 + 8e-7 + (memory**4 + math**4) ** 0.25 + 1e-6
    assert linear_time(d, coef).total_s == pytest.approx(expected)


def test_a_kernel_run_alone_finds_a_small_state_in_cache():
    device = load("h100-sxm")
    assert linear_demand(op(batch=1.0, reuse=1.0), device).cold == 0.0
    assert linear_demand(op(batch=512.0, reuse=1.0), device).cold == 1.0
    assert linear_demand(op(batch=1.0), device).cold == 1.0


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize("part", ["scan", "conv"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_an_engine_runs_its_own_measured_kernel(engine, part, phase):
    t = time_op(op(part, phase), load("h100-sxm"), get_engine(engine))
    assert t.fit.library.startswith(engine)
    assert t.fit.dtype == f"{part}.{phase}.gdn" == linear_key(op(part, phase))
    assert t.lo_s < t.total_s < t.hi_s


def test_what_nobody_measured_borrows_and_says_so():
    scan = op("scan", "prefill", q_len=1024.0, kind="mamba2")
    t = time_op(scan, load("h100-sxm"), get_engine("vllm"))
    assert t.fit.dtype == "scan.prefill.gdn"
    assert t.basis is not Basis.CALIBRATED


def test_longer_prompts_and_more_sequences_take_longer():
    device, engine = load("h200"), get_engine("sglang")
    lengths = np.array([256.0, 1024.0, 4096.0, 16384.0])
    assert (np.diff(time_op(op(phase="prefill", q_len=lengths), device, engine).total_s) > 0).all()
    batches = np.array([1.0, 16.0, 256.0])
    assert (np.diff(time_op(op(batch=batches), device, engine).total_s) > 0).all()
