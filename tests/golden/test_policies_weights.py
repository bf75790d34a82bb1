"""Weight bytes and flop of the weight and activation policies by hand; each test's text is the calculation.

Llama-2-7B: hidden 4096, FFN 11,008, 32 layers; OPT-6.7B: hidden 4096, FFN 16,384, 32 layers, ReLU.
"""

from __future__ import annotations

import numpy as np
import pytest

from simulator.base.dtypes import FORMATS, DType
from simulator.base.errors import InputError
from simulator.inference import memory
from simulator.inference.lowering import Lowering
from simulator.model.hub import find_model
from simulator.ops.ops import Attention, Linear, Op
from simulator.ops.step import decode_step
from simulator.ops.union import union_density
from simulator.ops.union_law import default_law
from simulator.policies import parse

D, F, LAYERS = 4096, 11_008, 32
BLOCK = LAYERS * (4 * D * D + 3 * D * F)
"""Weights of the layers of Llama-2-7B: 6,476,005,376."""


def lowered(model: str, policy: str, dtype: str = "fp16", tp: int = 1) -> Lowering:
    return Lowering(find_model(model).in_one_format(), parse(policy), FORMATS[dtype], 2.0, tp)


def linears(policy: str, rows: float = 1.0, model: str = "llama-2-7b", tp: int = 1) -> list[Linear]:
    ops = lowered(model, policy, tp=tp).ops(decode_step(rows, 512.0))
    return [o for o in ops if isinstance(o, Linear)]


def read(ops: list[Linear], *roles: str) -> float:
    """Weight bytes of a step whose role starts with one of `roles` [B]."""
    mine = [o for o in ops if o.role.startswith(roles)]
    assert mine
    return float(sum(np.sum(o.weight_read_bytes * np.asarray(o.count)) for o in mine))


def flop(ops: list[Linear], *roles: str) -> float:
    mine = [o for o in ops if o.role.startswith(roles)]
    return float(sum(np.sum(o.flop * np.asarray(o.count)) for o in mine))


LAYER = ("attn.", "mlp.")


# --- compressed formats ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "ratio"), [(0.5, 1.0), (0.3, 0.6), (0.2, 0.4), (0.1, 0.2)])
def test_flash_llm_stores_four_bytes_per_value(keep: float, ratio: float) -> None:
    """Tile 128 x 64: 4 (keep 8192 + 1.5) + 4 B over 8192: 2 keep of fp16, and 10/8192 B; breaks even at 50 %."""
    ops = linears(f"flash_llm(keep={keep})")
    assert read(ops, *LAYER) == pytest.approx(BLOCK * (4 * keep + 10 / 8192))
    assert read(ops, *LAYER) / (2 * BLOCK) == pytest.approx(ratio, abs=0.001)
    down = next(o for o in ops if o.role == "mlp.down")
    assert down.expand is not None
    assert down.expand.elements == D * F
    assert down.expand.nonzeros == pytest.approx(D * F * keep)
    assert flop(ops, *LAYER) == 2 * BLOCK  # loaded sparse, computed dense


def test_spinfer_bitmap() -> None:
    """2 keep + 1/8 + 4/4096 B: at 60 % sparsity 0.926 B of 2."""
    assert read(linears("spinfer"), *LAYER) == pytest.approx(BLOCK * (0.8 + 0.125 + 4 / 4096))


def test_sputnik_csr_runs_on_ordinary_lanes() -> None:
    """6 keep B per weight and 4 B per row; flop keep. Down: rows of 11,008."""
    ops = linears("sputnik(keep=0.2)")
    assert read(ops, "mlp.down") == pytest.approx(LAYERS * D * F * (1.2 + 4 / F))
    assert flop(ops, "mlp.down") == pytest.approx(LAYERS * 2 * D * F * 0.2)
    assert next(o for o in ops if o.role == "mlp.down").fmt.math is DType.FP32


def test_clasp_keeps_columns_of_eight_rows_on_tensor_cores() -> None:
    """A 32-bit column for 8 values and a pointer for 8 rows: keep (2 + 4/8) B per weight and 4/8 B per row."""
    ops = linears("clasp(keep=0.2)")
    assert read(ops, "mlp.down") == pytest.approx(LAYERS * D * F * (0.2 * 2.5 + 4 / (8 * F)))
    assert flop(ops, "mlp.down") == pytest.approx(LAYERS * 2 * D * F * 0.2)
    assert next(o for o in ops if o.role == "mlp.down").fmt.math is DType.FP16


def test_clasp_has_kernels_for_three_heights() -> None:
    with pytest.raises(InputError, match="2, 4 and 8"):
        linears("clasp(v=6)")


def test_sparta_splits_into_24_and_a_residue() -> None:
    """keep 1/2: of four weights 3 are kept with p = 4/16 and 4 with 1/16: residue (4 + 2)/16/4 = 0.09375 per weight.
    Bytes 9/16 x 2 + 6 x 0.09375 + 4/k."""
    ops = linears("sparta(keep=0.5)")
    assert read(ops, "mlp.down") == pytest.approx(LAYERS * D * F * (9 / 8 + 6 * 0.09375 + 4 / F))
    assert flop(ops, "mlp.down") == pytest.approx(LAYERS * 2 * D * F * (0.5 + 0.09375))


@pytest.mark.parametrize(
    ("name", "keep"),
    [
        ("sparse_llama", 0.3),
        ("sparse_finetuning", 0.4),
        ("sparsegpt", 0.5),
        ("wanda", 0.5),
        ("dsnot", 0.5),
        ("sparsellm", 0.3),
    ],
)
def test_bitmap_aliases_differ_in_their_default_only(name: str, keep: float) -> None:
    """b keep + 1/8 + 4/4096 with each paper's share."""
    assert read(linears(name), *LAYER) == pytest.approx(BLOCK * (2 * keep + 0.125 + 4 / 4096))


def test_deepsparse_stores_int8_with_a_bit_each() -> None:
    """60 % sparse INT8: 0.4 + 1/8 + 4/4096 B of 4 B in fp32: 7.6 times fewer bytes (published speed-up 6.7)."""
    ops = lowered("llama-2-7b", "sparse_finetuning", "int8").ops(decode_step(1.0, 512.0))
    down = next(o for o in ops if isinstance(o, Linear) and o.role == "mlp.down")
    assert 4 * D * F / down.weight_read_bytes == pytest.approx(4 / (0.4 + 0.125 + 4 / 4096))


def test_mixed_sparsity_goes_by_depth() -> None:
    """0.6 to 0.4 over four bands: middles at 1/8, 3/8, ...: first 0.575, last 0.425, mean 0.5."""
    ops = [o for o in linears("mixed_sparsity") if o.role == "mlp.down"]
    keeps = [(float(o.weight_read_bytes) / (D * F) - 0.125 - 4 / 4096) / 2 for o in ops]
    assert keeps[0] == pytest.approx(0.575)
    assert keeps[-1] == pytest.approx(0.425)
    assert np.mean(keeps) == pytest.approx(0.5)
    with pytest.raises(InputError, match="not a list of shares"):
        parse("mixed_sparsity(depth=a:b)")
    with pytest.raises(InputError, match="outside 0 to 1"):
        parse("mixed_sparsity(depth=0.5:2)")


@pytest.mark.parametrize(("m", "share"), [(8, 0.25), (16, 0.125), (32, 0.0625)])
def test_venom_chooses_columns_per_block(m: int, share: float) -> None:
    """64:2:m: (2/m)(2 + 1/4) + 4/(64 m) B; flop 2/m at the 2:4 rate. At m = 4 it is 2:4 and 1/64 B."""
    ops = linears(f"vnm(m={m})")
    assert read(ops, *LAYER) == pytest.approx(BLOCK * (share * 2.25 + 4 / (64 * m)))
    assert flop(ops, *LAYER) == pytest.approx(2 * BLOCK * share)
    assert all(o.nm24 for o in ops if o.role.startswith(LAYER))


def test_sparse_marlin_is_three_bits() -> None:
    """(4 + 2)/2 bits and 16/128 of scale: 3.125 bits, 5.12 times fewer bytes than fp16 (published 5.1x at batch 1)."""
    assert 2 * BLOCK / read(linears("sparse_marlin"), *LAYER) == pytest.approx(16 / 3.125)


def test_gqsa_keeps_half_of_the_groups() -> None:
    """0.5 (4/8 + (2.5 + 2)/16) B = 0.390625 B of 2 B."""
    assert read(linears("gqsa"), *LAYER) == pytest.approx(BLOCK * 0.390625)


# --- shape -----------------------------------------------------------------------------------------------------


def test_slicegpt_cuts_the_hidden_width() -> None:
    """Per layer 4 d ds + 3 F ds + 2 ds^2, ds = 3072: the shortcuts add 2 x 3072^2."""
    ops = linears("slicegpt(keep=0.75)")
    ds = 3072
    assert read(ops, *LAYER) == 2 * LAYERS * (4 * D * ds + 3 * F * ds + 2 * ds * ds)
    assert sum(float(o.weight_read_bytes * o.count) for o in ops if o.overhead) == (2 * LAYERS * 2 * ds * ds)


def test_cfsp_narrows_the_ffn() -> None:
    """0.8 of 11,008 neurons in all three matrices, attention whole."""
    ops = linears("cfsp(keep=0.8)")
    assert read(ops, "mlp.") == pytest.approx(2 * LAYERS * 3 * D * F * 0.8)
    assert read(ops, "attn.") == 2 * LAYERS * 4 * D * D


def test_rps_shrinks_memory_and_nothing_else() -> None:
    """A table of a tenth: memory of the layers / 10, reads and flop as dense."""
    assert read(linears("rps"), *LAYER) == 2 * BLOCK
    saved = memory.weights_bytes(lowered("llama-2-7b", "dense")) - memory.weights_bytes(lowered("llama-2-7b", "rps"))
    assert saved == pytest.approx(0.9 * 2 * BLOCK)


# --- activation ------------------------------------------------------------------------------------------------


def test_cats_keeps_its_gate_dense() -> None:
    """(1 + 2 keep)/3 of the FFN: at 50 % 2/3."""
    assert read(linears("cats(keep=0.5)"), "mlp.") == pytest.approx(2 * LAYERS * 3 * D * F * 2 / 3)


def test_prosparse_at_89_percent() -> None:
    """(1 + 2 x 0.11)/3 = 0.40667."""
    assert read(linears("prosparse"), "mlp.") == pytest.approx(2 * LAYERS * D * F * 1.22)


def test_teal_thresholds_every_matrix() -> None:
    """Half of the columns of all seven matrices; own shares where told (0.4 of down's)."""
    assert read(linears("teal(keep=0.5)"), *LAYER) == pytest.approx(BLOCK)
    ops = linears("teal(keep=0.5,down_keep=0.4)")
    assert read(ops, "mlp.down") == pytest.approx(2 * LAYERS * D * F * 0.4)
    assert read(ops, "lm_head") == 2 * 32_000 * D


def test_relu_stages() -> None:
    """Stage 1: 38 % of down. Stage 2: 49 % of QKV, 33 % of gate and up, 35 % of down (Llama-7B)."""
    one, two = linears("relu"), linears("relu_stage2")
    assert read(one, *LAYER) == pytest.approx(2 * (BLOCK - LAYERS * 0.62 * D * F))
    kept = 0.49 * 3 * D * D + D * D + 0.33 * 2 * D * F + 0.35 * D * F
    assert read(two, *LAYER) == pytest.approx(2 * LAYERS * kept)


def test_activation_policies_unite_the_rows_of_a_batch() -> None:
    """16 rows at 50 %: every matrix by the measured curve of its own input, none as 1 - 0.5^16."""
    params = {"attn.in": 3 * D * D, "attn.o": D * D, "ffn.in": 2 * D * F, "ffn.down": D * F}
    touched = {t: float(union_density(0.5, 16.0, default_law(t, "", "silu")[0])) for t in params}
    assert all(0.98 < union < 1 - 0.5**16 or t == "attn.o" for t, union in touched.items())
    by_hand = 2 * LAYERS * sum(n * touched[t] for t, n in params.items())
    assert read(linears("teal(keep=0.5)", 16.0), *LAYER) == pytest.approx(by_hand)


def test_polar_keeps_projections_dense_and_halves_the_kv() -> None:
    """OPT-6.7B, keep 0.0955 at one row: both FFN matrices at 9.55 %; routers 32 [4096 x 1024 + 1024 x 16,384] and
    31 [4096 x 32]; 31 layers read half of the KV heads."""
    ops = lowered("opt-6.7b", "polar").ops(decode_step(1.0, 512.0))
    mine = [o for o in ops if isinstance(o, Linear)]
    assert read(mine, "attn.") == 2 * 32 * 4 * D * D
    assert read(mine, "mlp.") == pytest.approx(2 * 32 * 2 * D * 16_384 * 0.0955)
    assert read(mine, "predictor.mlp") == 2 * 32 * (D * 1024 + 1024 * 16_384)
    assert read(mine, "predictor.attn") == 2 * 31 * D * 32
    kv = sum(float(np.sum(o.kv_read_bytes * o.count)) for o in ops if isinstance(o, Attention))
    assert kv == 512 * 16_384 * (1 + 31 * 0.5)


def test_refusals_say_what_would_work() -> None:
    """A method without its mechanism in the model names another."""
    for policy, model, words in (
        ("cats", "opt-6.7b", "dejavu or relu apply"),
        ("dsa", "llama-2-7b", "nsa or quest apply"),
        ("flash_llm", "mixtral-8x7b", "experts"),
        ("slicegpt", "deepseek-v3", "dense models"),
        ("quest", "deepseek-v3", "MLA"),
    ):
        reason = lowered(model, policy).why_not()
        assert reason is not None
        assert words in reason


def test_weight_formats_refuse_each_other_and_compose_with_kv() -> None:
    with pytest.raises(InputError, match="both rewrite the weight format"):
        parse("flash_llm+w4a16")
    with pytest.raises(InputError, match="both rewrite the weight rows"):
        parse("cats+teal")
    names = [p.name for p in parse("kivi+snapkv+slicegpt+w4a16").members]
    assert names == ["slicegpt", "w4a16", "snapkv", "kivi"]


def every_op(policy: str) -> list[Op]:
    return lowered("llama-2-7b", policy).ops(decode_step(2.0, 4096.0))


def test_kivi_compresses_what_snapkv_left() -> None:
    """1024 kept tokens: 128 dense and 896 at 3/16."""
    ops = every_op("kivi+snapkv")
    core = next(o for o in ops if isinstance(o, Attention))
    assert core.kv_read_bytes == pytest.approx(2 * 16_384 * (128 + 896 * 0.1875))


def test_flightllm_keeps_n_of_m_with_their_places() -> None:
    """8 of 16 at 4 bits and 4 bits of place: 0.5 x 8 = 4 bits; 2:4 at 8 bits: 0.5 x (8 + 2) = 5 bits."""
    for policy, bits in (("flightllm", 4), ("flightllm(n=2,m=4,bits=8)", 5)):
        ops = linears(policy)
        assert read(ops, *LAYER) == pytest.approx(BLOCK * bits / 8)
        assert flop(ops, *LAYER) == pytest.approx(BLOCK)
    assert "cannot be kept" in str(lowered("llama-2-7b", "flightllm(n=20,m=16)").why_not())
