"""Attention time: counted work, limits, monotonicity, floors, fit keys."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.base.errors import InputError
from simulator.device.surface import Surface
from simulator.fitting.attention import START
from simulator.fitting.attention_rows import kernel_of
from simulator.roofline.attention import AXES, attention_time, causal_pairs, context_tokens
from simulator.roofline.bandwidth import DRAM_LATENCY_S, bytes_in_flight, latency_floor_s
from simulator.roofline.hardware import Hardware
from simulator.roofline.lookup import generation_of

H100 = Hardware(
    sm_count=132.0,
    math_flop_per_s=989e12,
    vector_flop_per_s=67e12,
    hbm_bytes_per_s=3.35e12,
    l2_bytes=50e6,
    sector_bytes=32.0,
    link_bytes_per_s=450e9,
    link_latency_s=5e-6,
    clock_hz=1.83e9,
    arch="hopper",
    max_clock_ratio=1.08,
)


def run(phase="decode", **over):
    args = {
        "batch": 8.0,
        "q_len": 1.0 if phase != "prefill" else 512.0,
        "kv_len": 2048.0,
        "n_heads": 32,
        "n_kv_heads": 8,
        "head_dim": 128,
        "kv_bytes_per_element": 2.0,
        "act_bytes": 2.0,
        "hw": H100,
        "coef": START[phase],
    }
    return attention_time(phase=phase, **(args | over))


@pytest.mark.parametrize(
    ("q_len", "kv_len", "window"),
    [(1, 1, 0), (4, 4, 0), (4, 10, 0), (4, 10, 3), (4, 4, 3), (7, 9, 5), (1, 50, 16), (3, 3, 100)],
)
def test_causal_pairs_counts_every_pair(q_len, kv_len, window):
    seen = 0
    for position in range(kv_len - q_len + 1, kv_len + 1):
        seen += min(position, window) if window else position
    assert causal_pairs(float(q_len), float(kv_len), window) == seen
    many = causal_pairs(float(q_len), float(kv_len), np.array([window, 0]))
    assert many[0] == seen
    assert many[1] == causal_pairs(q_len, kv_len)


def test_context_tokens_stop_at_the_window():
    assert context_tokens(1.0, 4096.0, 128) == 128
    assert context_tokens(64.0, 4096.0, 128) == 191
    assert context_tokens(64.0, 100.0, 0) == 100


def test_decode_is_linear_in_the_kv_read_once_large():
    times = run(batch=64.0, kv_len=np.array([32768.0, 65536.0, 131072.0])).total_s
    assert times[2] / times[1] == pytest.approx(2.0, rel=0.02)


def test_mla_reads_the_latent_once_for_all_heads():
    mla = run("decode-mla", batch=64.0, kv_len=65536.0, n_heads=128, n_kv_heads=1, head_dim=576)
    kv_s = 64 * 65536 * 576 * 2.0 / (3.35e12 * START["decode-mla"]["kv_eff"])
    assert mla.memory_s == pytest.approx(kv_s, rel=0.01)
    flop = 2.0 * 64 * 65536 * 128 * (576 + 512)
    assert mla.math_s == pytest.approx(flop / (989e12 * START["decode-mla"]["math_eff"]), rel=1e-6)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("axis", ["batch", "kv_len"])
def test_more_work_never_takes_less_time(phase, axis):
    times = run(phase, **{axis: np.array([512.0, 700.0, 1024.0, 4096.0, 65536.0])}).total_s
    assert (np.diff(times) >= 0).all()


@pytest.mark.parametrize("phase", ["prefill", "decode", "decode-mla"])
def test_never_below_the_floor_even_with_a_wild_surface(phase):
    knots = tuple((name, (0.0,)) for name in AXES)
    surface = Surface(knots, np.full((1, 1, 1, 1), -9.0))
    t = run(phase, batch=64.0, kv_len=32768.0, surface=surface)
    if phase == "prefill":
        flop = 64 * 4 * 32 * 128 * causal_pairs(512.0, 32768.0)
    else:
        flop = 0.0
    kv_bytes = 64 * 8 * 32767 * (128 if phase == "decode-mla" else 256) * 2.0
    assert t.total_s >= max(flop / (989e12 * 1.08), kv_bytes / 3.35e12) * (1 - 1e-12)


def test_overrides_replace_the_dense_counts():
    dense = run(batch=64.0, kv_len=32768.0)
    assert run(batch=64.0, kv_len=32768.0, kv_read_bytes=0.0).memory_s < 0.01 * dense.memory_s
    assert run(batch=64.0, kv_len=32768.0, flop=0.0).math_s == 0.0


def test_a_repeated_benchmark_reads_small_kv_from_l2_and_a_model_step_does_not():
    small, large = {"batch": 32.0, "kv_len": 256.0}, {"batch": 64.0, "kv_len": 32768.0}
    assert run(**small, reuse=1.0).memory_s < run(**small).memory_s
    assert run(**large, reuse=1.0).memory_s == pytest.approx(run(**large).memory_s, rel=1e-6)


def test_the_window_bounds_what_is_read():
    full, window = run(kv_len=65536.0), run(kv_len=65536.0, window=1024)
    assert window.memory_s < 0.1 * full.memory_s


def test_shapes_broadcast():
    t = run(batch=np.ones((5, 1, 1)), kv_len=np.linspace(128, 4096, 12).reshape(1, 3, 4))
    assert t.total_s.shape == (5, 3, 4)


def test_unknown_phase_is_an_error():
    with pytest.raises(InputError, match="prefill, decode, decode-mla"):
        attention_time(
            phase="train",
            batch=1,
            q_len=1,
            kv_len=1,
            n_heads=1,
            n_kv_heads=1,
            head_dim=64,
            kv_bytes_per_element=2.0,
            act_bytes=2.0,
            hw=H100,
            coef=START["decode"],
        )


@pytest.mark.parametrize(
    ("kernel", "library", "generation"),
    [
        ("vllm-0.24.0:vllm_flash_attn_fa3", "vllm-fa3", "fa3"),
        ("sglang-0.5.14:fa3", "sglang-fa3", "fa3"),
        ("sglang-0.5.10:flash_attention", "sglang-fa2", "fa2"),
        ("vllm-0.14.0:vllm_flash_attn", "vllm-fa2", "fa2"),
        ("vllm-0.24.0:vllm_flashinfer_trtllmdecode", "vllm-trtllm-gen", "trtllm-gen"),
        ("vllm-0.24.0:vllm_flashinfer_fidecode", "vllm-flashinfer", "flashinfer"),
        ("sglang-0.5.14:trtllm_mha", "sglang-trtllm-gen", "trtllm-gen"),
        ("trtllm-1.3.0rc20:torch_flow", "trtllm", "trtllm"),
        ("trtllm-1.3.0rc20:torch_flow_flashinfer", "trtllm-flashinfer", "flashinfer"),
        ("vllm-0.24.0:vllm_triton_attn", "vllm-triton", "triton"),
        ("FlashAttention-3 / FlashInfer / FlashMLA", "fa3", "fa3"),
        ("vLLM-0.19 layerwise attention", "vllm", "vllm"),
        ("flash-attn", "fa2", "fa2"),
        ("torch sdpa", "sdpa", "sdpa"),
        ("mystery", "other", "other"),
    ],
)
def test_kernel_strings_map_to_libraries(kernel, library, generation):
    assert kernel_of(kernel) == library
    assert generation_of(library) == generation


def test_bytes_in_flight_bound_the_rate_by_hand():
    """10 blocks of 100 B on 4 SMs of 2 blocks: 800 B on their way; 3 blocks: 300 B. 8 MB wait 10,000 times."""
    assert bytes_in_flight(10.0, 4.0, 2.0, 100.0) == 800.0
    assert bytes_in_flight(3.0, 4.0, 2.0, 100.0) == 300.0
    assert latency_floor_s(8e6, 800.0) == pytest.approx(1e4 * DRAM_LATENCY_S)
    assert latency_floor_s(1.0, 0.0, 2e-6) == pytest.approx(2e-6)
