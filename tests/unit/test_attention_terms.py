"""Every term of an attention kernel worked out by hand, on a device and with coefficients of round numbers."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.roofline.attention import AttentionTime, attention_time
from simulator.roofline.hardware import Hardware

# 2 SMs; the peak makes 262,144 flop-units three seconds, the bandwidth 36,864 B four.
PEAK, BANDWIDTH = 262_144 / 3.0, 9216.0
HW = Hardware(2.0, PEAK, 1.0, BANDWIDTH, 0.0, 32.0, 1.0, 1.0, 1.0, "test", max_clock_ratio=1.25)
COEF = {
    "launch_s": 1.0,
    "math_eff": 0.5,
    "kv_eff": 0.5,
    "io_eff": 0.25,
    "tile_s": 2.0,
    "token_s": 0.5,
    "split_tokens": 8.0,
    "page_tokens": 2.0,
    "window_leak": 0.25,
    "l2_gain": 4.0,
    "l2_share": 0.5,
    "dim_low": 1.0,
    "dim_high": 1.0,
    "alone_eff": 0.1,
    "row_tile": 4.0,
    "group_max": 100.0,
    "packs_all": 1.0,
}
FREE = COEF | dict.fromkeys(("launch_s", "tile_s", "token_s"), 0.0)
FREE |= dict.fromkeys(("math_eff", "kv_eff", "io_eff"), 1e9)


def run(phase: str = "decode", *, hw: Hardware = HW, coef: object = None, **over: object):
    """Two sequences of 16 tokens, 6 query and 2 KV heads of 64, 16 bit: 256 B a token and KV head."""
    shape = {"batch": 2.0, "q_len": 1.0, "kv_len": 16.0, "n_heads": 6, "n_kv_heads": 2, "head_dim": 64}
    return attention_time(
        phase=phase,
        kv_bytes_per_element=2.0,
        act_bytes=2.0,
        hw=hw,
        coef={**COEF, **(coef or {})},
        **{**shape, **over},  # type: ignore[dict-item,arg-type]
    )


def check(t: AttentionTime, math: float, kv: float, io: float, tiles: float, chain: float, alone: float = 0.0) -> None:
    """Terms, and ``total = hypot((math^4 + kv^4)^(1/4), tiles, alone) + io + launch + chain``."""
    assert t.math_s == pytest.approx(math)
    assert t.memory_s == pytest.approx(kv + io)
    assert t.launch_s == pytest.approx(1.0 + chain + tiles)
    both = np.sqrt(math**4 + kv**4)
    assert t.total_s == pytest.approx(np.sqrt(both + tiles**2 + alone**2) + io + 1.0 + chain)


IO = 4096 / (BANDWIDTH * 0.25)
"""Two rows of 6 x 128 x 2 B of Q and O, and of 2 x 256 B of new K and V."""


def test_decode() -> None:
    """Pairs 16: 2*6*128*2*16 = 49,152 flop at half the peak, half of it for heads of 64, 3 of 4 rows: 3 s. KV
    4*256*16 B with 2 of 16 tokens more at half the rate: 4 s. Four blocks on 2 SMs; 8 tokens a chain at 0.25 s."""
    check(run(), math=3.0, kv=4.0, io=IO, tiles=4.0, chain=2.0)


def test_a_window_leaks_a_quarter_of_what_lies_outside() -> None:
    """Window 4: 7 of 4 pairs computed: 12,288 * 7/4 flop; 4 + 2 + 3 = 9 tokens read where 4 are useful; 4 walked."""
    check(run(window=4), math=3.0 * 7 / 16, kv=2.0, io=IO, tiles=4.0, chain=1.0)


@pytest.mark.parametrize(("heads", "blocks"), [(6, 12), (4, 8)])
def test_a_kernel_that_cannot_pack_a_window_runs_each_head_alone(heads: int, blocks: int) -> None:
    """One block per query head, at a tenth of the peak; the 4 tokens are walked beside the rest, at 0.25 s each."""
    flop = 2 * 2 * heads * 128 * 7
    io = 2 * (heads * 256 + 512) / (BANDWIDTH * 0.25)
    t = run(window=4, n_heads=heads, coef={"packs_all": 0.0})
    check(t, math=flop / (PEAK * 0.1), kv=2.0, io=io, tiles=float(blocks), chain=0.0, alone=1.0)


def test_groups_without_a_window_are_packed_all_the_same() -> None:
    check(run(coef={"packs_all": 0.0}), math=3.0, kv=4.0, io=IO, tiles=4.0, chain=2.0)


def test_a_group_of_one_does_not_split_its_tokens() -> None:
    """2 query and 2 KV heads: one row of a tile of 4 at a quarter of the peak, 16 tokens of 0.25 s beside the rest."""
    flop = 2 * 2 * 2 * 128 * 16
    t = run(n_heads=2, coef={"packs_all": 0.0})
    io = 2 * (2 * 256 + 512) / (BANDWIDTH * 0.25)
    check(t, math=flop / (PEAK * 0.25 / 4), kv=4.0, io=io, tiles=4.0, chain=0.0, alone=4.0)


def test_groups_above_the_most_a_kernel_packs_fall_back() -> None:
    """12 blocks at a tenth of the peak, the chain stays split."""
    t = run(coef={"group_max": 2.0})
    check(t, math=49_152 / (PEAK * 0.1), kv=4.0, io=IO, tiles=12.0, chain=2.0)
    check(run(coef={"group_max": 3.0}), math=3.0, kv=4.0, io=IO, tiles=4.0, chain=2.0)


@pytest.mark.parametrize("fallback", [{}, {"packs_all": 0.0}, {"group_max": 1.0}])
def test_a_chunk_of_a_prompt(fallback: dict[str, float]) -> None:
    """8 rows behind 4: 8*4 + 36 = 68 pairs, two tiles of 5 rows for 8, 2*6*2 blocks; 8 times the rows' bytes. A prompt
    tiles rows, not heads: nothing falls back."""
    flop = 2 * 2 * 6 * 128 * 68
    t = run("prefill", q_len=8.0, kv_len=12.0, coef={"row_tile": 5.0, **fallback})
    kv = 4 * 256 * 14 / (BANDWIDTH * 0.5)
    check(t, math=flop / (PEAK * 0.25 * 0.8), kv=kv, io=8 * IO, tiles=24.0, chain=2.0)


def test_mla() -> None:
    """One latent of 576 x 2 B for 6 heads, values of 512; one KV head and a group of 6: 2 tiles of 4; no factor for
    the head's size but in the chain: 8 * 0.5 * 576/128 = 18 s."""
    t = run("decode-mla", n_kv_heads=1, head_dim=576)
    flop = 2 * 2 * 6 * (576 + 512) * 16
    io = 2 * (6 * (576 + 512) * 2 + 1152) / (BANDWIDTH * 0.25)
    kv = 2 * 1152 * 18 / (BANDWIDTH * 0.5)
    check(t, math=flop / (PEAK * 0.5 * 0.75), kv=kv, io=io, tiles=4.0, chain=18.0)


def test_large_heads_reach_less() -> None:
    """Head size 256: (128/256)^2 of the efficiency; everything else doubles or quadruples with its bytes."""
    t = run(head_dim=256, coef={"dim_high": 2.0})
    assert t.math_s == pytest.approx(4 * 49_152 / (PEAK * 0.125 * 0.75))
    assert t.memory_s == pytest.approx(4 * (4.0 + IO))


def test_what_a_policy_overrides() -> None:
    """Half the flop, a quarter of the KV and an eighth of the rows' bytes."""
    t = run(flop=24_576.0, kv_read_bytes=4096.0, io_bytes=512.0)
    check(t, math=1.5, kv=1.0, io=IO / 8, tiles=4.0, chain=2.0)


@pytest.mark.parametrize(("phase", "io"), [("decode", 1.0), ("prefill", 0.625)])
def test_a_repeated_buffer_comes_from_l2(phase: str, io: float) -> None:
    """The working set equals the share of L2: half of the gain of 4, 1 - 0.75/2 = 0.625; the rows of a prompt too."""
    hw = Hardware(2.0, PEAK, 1.0, BANDWIDTH, 2 * 20_480.0, 32.0, 1.0, 1.0, 1.0, "test")
    cold, warm = run(phase, hw=hw), run(phase, hw=hw, reuse=1.0)
    assert warm.memory_s == pytest.approx(4.0 * 0.625 + IO * io)
    assert cold.memory_s == pytest.approx(4.0 + IO)


def test_floors() -> None:
    """Bytes 16,384 + 4096 beyond L2; with a large L2 the 15 of 16 tokens that were cached before, none of them where
    the buffer was just read; or the flop at 1.25 times the peak."""
    assert run(coef=FREE).total_s == pytest.approx(20_480 / BANDWIDTH)
    large = Hardware(2.0, PEAK, 1.0, BANDWIDTH, 1e9, 32.0, 1.0, 1.0, 1.0, "test", max_clock_ratio=1.25)
    assert run(hw=large, coef=FREE).total_s == pytest.approx(15_360 / BANDWIDTH)
    math = 49_152 / (PEAK * 1.25)
    assert run(hw=large, coef=FREE, reuse=1.0).total_s == pytest.approx(math)
    assert run(hw=large, coef=FREE, flop=1e9).total_s == pytest.approx(1e9 / (PEAK * 1.25))


@pytest.mark.parametrize(("phase", "tokens"), [("decode", 16.0), ("prefill", 8.0)])
def test_the_surface_sees_its_axes_and_multiplies_all(phase: str, tokens: float) -> None:
    """A chunk of 4 rows behind 12 tokens stands at the geometric mean of 4 and 16."""
    seen = {}

    def surface(**axes: object) -> float:
        seen.update(axes)
        return float(np.log(3.0))

    rows = 1.0 if phase == "decode" else 4.0
    plain, scaled = run(phase, q_len=rows), run(phase, q_len=rows, surface=surface)
    assert seen == {"lanes": 4.0, "tokens": tokens, "group": 3.0, "head_dim": 64}
    assert scaled.total_s == pytest.approx(3.0 * plain.total_s)
