"""Sparse speed-ups: physics of the families, fits of synthetic rows, shares of 2:4."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from simulator.base.dtypes import DType, get_format
from simulator.base.errors import InputError
from simulator.device.catalogue import load
from simulator.device.fit_file import dump, parse
from simulator.device.fits import Basis, Fit, Residual
from simulator.fitting import sparse, sparse_judged
from simulator.fitting.sparse import log_slopes, sides
from simulator.fitting.sparse_rows import split
from simulator.fitting.sparse_stated import stated
from simulator.ops.dense import dense_of
from simulator.ops.module import AttentionModule, ModuleKind
from simulator.ops.ops import Linear
from simulator.ops.widths import WIDTHS
from simulator.results.prediction import predict
from simulator.roofline import timing
from simulator.roofline.engine import get_engine
from simulator.roofline.hardware import hardware
from simulator.roofline.lookup import lookup
from simulator.roofline.speedup import KernelShape, Rates, _least_waves, names, rates_of, shape_of, speedup, total_s
from simulator.roofline.timing import time_op
from simulator.scenario.scenario import Scenario

COLUMNS = ("m", "n", "k", "batch", "q_len", "kv_len", "n_heads", "n_kv_heads", "head_dim")


def raw(**columns) -> pd.DataFrame:
    size = max(np.size(v) for v in columns.values())
    base = dict.fromkeys(COLUMNS, np.nan) | {
        "source": "made-up",
        "device": "RTX-3090",
        "category": "spmm-weight",
        "pattern": "V:N:M Spatha V=128 2:10",
        "dtype": "fp16",
        "sparsity": 0.8,
        "dense_kernel": "cuBLAS",
        "sparse_kernel": "Spatha",
        "flag": np.nan,
    }
    return pd.DataFrame({**base, **columns}, index=range(size))


def products() -> pd.DataFrame:
    """V:N:M products with times that follow the model exactly."""
    shape = [(4096, n, k, s) for n in (768, 1024, 4096) for k in (768, 4096) for s in (0.5, 0.8, 0.95)]
    m, n, k, sparsity = np.array(shape, float).T
    table = raw(m=m, n=n, k=k, sparsity=sparsity, dense_time_s=1.0, sparse_time_s=1.0)
    rows = sparse.prepare(table)
    dense, thin = sides("V:N:M", rows)
    rows["dense_time_s"], rows["sparse_time_s"] = (total_s(s, names(s)) for s in (dense, thin))
    rows["speedup"] = rows["dense_time_s"] / rows["sparse_time_s"]
    return rows


def dsa_pairs() -> pd.DataFrame:
    """Decode steps of both modules with times that module fits follow, whole numbers apart."""
    shape = [(b, kv, h) for b in (1, 8, 64) for kv in (513, 2049, 8193, 32769, 131073) for h in (8, 16, 128)]
    batch, kv_len, heads = np.array(shape, float).T
    base = {"module.mla-dense.decode.bf16": "vllm-0.25.0:FLASH_ATTN_MLA", "module.dsa": "vllm-0.24.0:FLASHMLA_SPARSE"}
    engine = replace(get_engine("kernels"), kernels=base)
    sides: tuple[tuple[ModuleKind, str, str], ...] = (
        ("mla-dense", "v3", "dense_time_s"),
        ("dsa", "v3.2", "sparse_time_s"),
    )
    times = {}
    for kind, widths, name in sides:
        op = AttentionModule(
            role="attn.module",
            kind=kind,
            phase="decode",
            batch=batch,
            q_len=1.0,
            past_len=kv_len - 1.0,
            n_heads=heads,
            widths=WIDTHS[widths],
            fmt=get_format("bf16"),
            math=DType.BF16,
            kv_element_bytes=2.0,
        )
        times[name] = time_op(op, load("h100-sxm"), engine).total_s
    return raw(
        category="sparse KV attention decode",
        pattern="DeepSeek-V3.2 DSA: lightning indexer",
        device="H100-SXM",
        dtype="gemm=bfloat16;kv=bfloat16",
        batch=batch,
        q_len=1.0,
        kv_len=kv_len,
        n_heads=heads,
        sparsity=np.maximum(1.0 - 2048.0 / kv_len, 0.0),
        dense_kernel="vllm-0.25.0 dense MLA module:FLASH_ATTN_MLA",
        sparse_kernel="vllm-0.24.0 DSA module:FLASHMLA_SPARSE",
        **times,
    )


def test_dsa_rows_are_answered_by_the_modules_a_prediction_asks():
    """Times that the committed modules give come back as speed-ups without an error, and above and below one."""
    pairs = sparse.prepare(dsa_pairs())
    mid, lo, hi = sparse.predict(pairs, None)
    assert mid == pytest.approx(pairs["speedup"].to_numpy(), rel=1e-9)
    assert np.all((lo < mid) & (mid < hi))
    assert mid.min() < 1.0 < mid.max()


def test_dsa_rows_of_other_shapes_are_predicted_by_module_fits_of_the_rest():
    pairs = sparse.prepare(dsa_pairs())
    held = pairs["kv_len"] == 8193
    fits = sparse.fit(pairs[~held], date="2026-01-01")
    assert {f.family for f in fits if f.n} == {"module"}
    mid, _, _ = sparse.predict(pairs[held], fits)
    assert mid == pytest.approx(pairs.loc[held, "speedup"].to_numpy(), rel=0.15)


def test_an_exact_table_is_recovered_and_extrapolates():
    rows = products()
    held = rows["n"] == 1024
    mid, lo, hi = sparse.predict(rows[held], sparse.fit(rows[~held], date="2026-01-01"))
    assert mid == pytest.approx(rows.loc[held, "speedup"].to_numpy(), rel=0.03)
    assert np.all((lo <= mid * 1.001) & (mid <= hi * 1.001))


def test_slopes_are_the_derivatives():
    rows = products()
    for side in sides("V:N:M", rows):
        coef = names(side)
        time, slopes = log_slopes(side, coef, len(rows))
        for i, name in enumerate(coef):
            step = {**coef, name: coef[name] * 1.001}
            numeric = np.log(total_s(side, step) / time) / np.log(1.001)
            assert slopes[:, i] == pytest.approx(numeric, abs=1e-3)
        assert slopes.sum(1) == pytest.approx(1.0)


def test_every_family_gains_from_sparsity_within_physics():
    for pattern, family in (("unstructured (Sputnik)", "Sputnik"), ("V:N:M V=64 2:8", "V:N:M")):
        table = raw(
            pattern=pattern,
            m=4096.0,
            n=1024.0,
            k=4096.0,
            sparsity=np.array([0.5, 0.8, 0.9, 0.95]),
            dense_time_s=1.0,
            sparse_time_s=1.0,
        )
        rows = sparse.prepare(table).sort_values("keep")
        thin = sides(family, rows)[1]
        assert np.all(np.diff(total_s(thin, names(thin))) > 0)


def test_two_to_four_never_doubles():
    table = raw(pattern="2:4", m=4096.0, n=4096.0, k=4096.0, dense_time_s=1.0, sparse_time_s=1.0)
    rows = sparse.prepare(pd.concat([table] * 3))
    dense, thin = sides("2:4", rows)
    coef = {f"dense_{k}": 10.0 * v for k, v in names(dense).items()}
    coef |= {f"sparse_{k}": v for k, v in names(thin).items()}
    assert sparse.speedup("2:4", rows, coef) == pytest.approx(2.0)


def test_no_kernel_of_cats_gains_more_than_the_weights_it_skips():
    """All of 100 rows kept gain nothing; a fifth of up kept beside a whole gate leaves 0.6 of both."""
    coef = {"dense_launch_s": 0.0, "dense_stream": 9.0, "sparse_launch_s": 0.0, "sparse_gate": 1.0, "sparse_kept": 1.0}
    fit = Fit("sparse", "any", "CATS", "Triton", coef, None, 1, (), "", Residual(0.1, 0.1, -0.1, 0.1))
    rates_ = Rates(math=1e12, vector=1e12, hbm=1e12, sm=1.0)
    shape = KernelShape(keep=np.array([1.0, 0.2]), n=100.0, k=100.0, whole=0.5)
    assert speedup("CATS", shape, rates_, fit) == pytest.approx([1.0, 1.0 / 0.6])


def test_rows_are_left_out_with_a_reason():
    table = raw(
        m=4096.0,
        n=1024.0,
        k=np.array([1024.0, 2048, 3072, 4096, 5120, 6144]),
        device=["RTX-3090"] * 4 + ["unstated", "RTX-3090"],
        dense_time_s=[1.0, 1.0, 1.0, np.nan, 1.0, 1.0],
        sparse_time_s=1.0,
        pattern=["V:N:M V=64 2:8"] * 5 + ["tile lottery"],
    )
    rows, excluded = split(table)
    assert len(rows) == 3
    assert excluded == {"no dense time": 1, "device not stated": 1, "no model of the kernel": 1}


def test_a_file_without_the_columns_is_refused():
    with pytest.raises(InputError, match="'m' is missing"):
        sparse.prepare(pd.DataFrame({"source": ["x"]}))


def test_validate_lists_small_families_row_by_row():
    rows = products()
    table = raw(**{c: rows[c] for c in ("m", "n", "k", "dense_time_s", "sparse_time_s")})
    table["sparsity"] = 1.0 - rows["keep"]
    result = sparse_judged.validate(table, "0.4")
    (group,) = result["rows"]
    assert group["n"] == len(group["rows"]) < 50
    assert result["total"][0]["median_ape"] < 0.05
    sparse_judged.show(result)
    with pytest.raises(InputError, match="share between 0 and 1"):
        sparse_judged.validate(table, "1.5")


def test_fits_survive_their_file(tmp_path):
    fits = sparse.fit(products(), date="2026-01-01")
    path = tmp_path / "_default" / "sparse.toml"
    dump(path, fits)
    back = parse(path.read_text(encoding="utf-8"), str(path))
    assert [(f.device, f.dtype, f.library, f.n) for f in back] == [(f.device, f.dtype, f.library, f.n) for f in fits]
    assert back[0].coefficients == pytest.approx(dict(fits[0].coefficients), rel=1e-4)


def test_few_rows_of_two_to_four_are_told_from_published_points():
    """H100's stream of 2:4 is 1.01 of 1.73 TB/s, the A100's 1.11 of 1.33: 1.04x and 1.48x from 9/16 of the bytes."""
    points = stated().set_index("device")
    assert points.loc["h100-pcie", "speedup"] == pytest.approx(16 / 9 * 1.01 / 1.73)
    assert points.loc["a100-pcie-80g", "speedup"] == pytest.approx(16 / 9 * 1.11 / 1.33)


def test_tiles_of_two_to_four_fill_the_card():
    """By hand, 82 SMs: 4,096 x 768 is 96 tiles of 128 x 256, two waves for 1.17; as many as 1,024 columns need."""
    rates_ = Rates(math=1e12, vector=1e12, hbm=1e12, sm=82.0)
    flop = 1e12
    assert _least_waves(4096.0, 768.0, flop, rates_) == pytest.approx(min(2 / (96 / 82), 3 / (192 / 82) * 4 / 3))
    assert _least_waves(4096.0, 1024.0, flop, rates_) == pytest.approx(2 / (128 / 82))
    # 28 tiles of one row leave SMs idle: split in two, they fill one wave.
    assert _least_waves(128.0, 7168.0, flop, rates_) == pytest.approx(82 / 56)


def test_a_prediction_and_validation_ask_one_function(monkeypatch):
    """A kernel half as fast for the roofline is half as fast for both."""
    rows = products()
    rows = rows[rows["keep"] > 0.1]  # the sparser ones meet the bound of their bytes and flop
    fits = sparse.fit(rows, date="2026-01-01")
    before = sparse.predict(rows, fits)[0]
    op = Linear(role="mlp.up", m=4096.0, n=4096.0, k=4096.0, fmt=get_format("fp16"), flop_keep=0.25, nm24=True)
    op = replace(op, bytes_per_weight=0.5625, kernel="V:N:M/Spatha", vector=128.0)
    device, engine = load("rtx-3090"), get_engine("vllm")
    asked = timing.time_op(op, device, engine).total_s
    monkeypatch.setattr(timing, "speedup", lambda *a: 0.5 * speedup(*a))
    timing._remembered.cache_clear()
    assert sparse.predict(rows, fits)[0] == pytest.approx(0.5 * before, rel=0.01)
    assert timing.time_op(op, device, engine).total_s == pytest.approx(2.0 * asked)
    timing._remembered.cache_clear()


def test_a_kernel_is_the_dense_time_over_its_speedup_and_no_faster_than_its_bytes_and_flop():
    device, engine = load("rtx-3090"), get_engine("vllm")
    op = Linear(role="mlp.up", m=4096.0, n=4096.0, k=4096.0, fmt=get_format("fp16"), flop_keep=0.25, nm24=True)
    op = replace(op, bytes_per_weight=0.5625, kernel="V:N:M/Spatha", vector=128.0)
    dense, sparse_ = (timing.time_op(o, device, engine) for o in (dense_of(op), op))
    found = lookup(device, "sparse", "V:N:M", "Spatha")
    gain = speedup("V:N:M", shape_of(op), rates_of(hardware(device, op.fmt.math)), found.fit)
    assert found.fit.device == "rtx-3090"
    assert found.basis == "CALIBRATED"
    assert dense.total_s / sparse_.total_s == pytest.approx(gain)
    one = replace(op, m=1.0)
    alone = timing.time_op(replace(one, kernel=""), device, engine)
    assert timing.time_op(one, device, engine).total_s >= alone.math_s


def test_a_kernel_measured_elsewhere_is_extrapolated_and_less_sure():
    engine = get_engine("vllm")
    op = Linear(role="mlp.up", m=4096.0, n=4096.0, k=4096.0, fmt=get_format("fp16"), flop_keep=0.25, nm24=True)
    op = replace(op, bytes_per_weight=0.5625, kernel="V:N:M/Spatha", vector=128.0)
    own, like, far = (timing.time_op(op, load(d), engine) for d in ("rtx-3090", "a100-sxm-80g", "h100-sxm"))
    widths = [np.log(t.gain.quantiles(1.0)[1] - t.gain.quantiles(1.0)[0]) for t in (own, like, far)]
    assert widths == sorted(widths)
    assert like.basis == "EXTRAPOLATED"


def test_errors_of_a_time_over_a_speedup_add_in_quadrature():
    time, gain = (Residual(0.1, 0.2, -0.3, 0.4, between_source=0.3), Residual(0.2, 0.2, -0.3, 0.4, between_source=0.4))
    # A speed-up that was higher than thought shortens the time.
    both = time.over(gain)
    assert (both.q05, both.q95, both.between_source) == pytest.approx((-0.5, 0.5, 0.5))


def test_wins_and_losses_called_are_counted_on_the_measured_side_of_one():
    told = sparse_judged.called(np.array([0.5, 0.9, 1.0, 1.1, 2.0]), np.array([0.8, 1.2, 1.0, 1.3, 1.0]))
    assert told == {"wins": 2, "wins_called": 0.5, "losses": 2, "losses_called": 0.5}
    assert sparse_judged.called(np.array([2.0]), np.array([2.0]))["losses_called"] is None


def test_prompts_of_whole_models_are_answered_by_their_policy():
    """MInference's rows are those of `predict`: at 10,000 tokens it starts later than dense, at 300,000 sooner."""
    table = raw(
        category="sparse attention e2e prefill",
        pattern="MInference dynamic (vertical-slash etc.)",
        device="A100-SXM-80G",
        dtype="bf16",
        batch=1.0,
        q_len=np.array([10_000.0, 100_000.0, 300_000.0]),
        n_heads=32.0,
        dense_kernel="FlashAttention-2 (HF)",
        sparse_kernel="MInference w/ SGLang kernels",
        dense_time_s=1.0,
        sparse_time_s=1.0,
    )
    rows = sparse.prepare(table)
    mid, lo, hi = sparse.predict(rows, None)
    asked = [
        predict(
            Scenario.of(
                model="llama-3-8b-1m",
                device="a100-sxm-80g",
                engine="hf",
                dtype="bf16",
                policy="minference",
                prompt_tokens=int(q),
                output_tokens=1,
                ignore_context_limit=True,
                gpu_memory_utilization=1.0,
            )
        ).row["ttft_speedup"]
        for q in rows["q_len"]
    ]
    assert mid == pytest.approx(asked)
    assert mid[0] < 1.0 < mid[-1]
    assert np.all((lo < mid) & (mid < hi))


def test_rows_far_from_the_measured_ones_are_extrapolated():
    op = Linear(role="mlp.up", m=4096.0, n=4096.0, k=4096.0, fmt=get_format("fp16"), flop_keep=0.25, nm24=True)
    op = replace(op, bytes_per_weight=0.5625, kernel="V:N:M/Spatha", vector=128.0)
    many, few = (time_op(replace(op, m=m), load("rtx-3090"), get_engine("vllm")) for m in (4096.0, 1.0))
    assert (many.basis, few.basis) == ("CALIBRATED", "EXTRAPOLATED")
    # Weights alone: 4,096 x 4,096 x 0.5625 B at most at the card's 936 GB/s.
    assert few.total_s > 4096 * 4096 * 0.5625 / 936e9
    both = time_op(replace(op, m=np.array([4096.0, 1.0])), load("rtx-3090"), get_engine("vllm"))
    assert both.rank.tolist() == [Basis.CALIBRATED.rank, Basis.EXTRAPOLATED.rank]
    for at, one in enumerate((many, few)):
        assert [end[at] for end in both.factors] == pytest.approx(one.factors)


@pytest.mark.parametrize(
    ("pattern", "shape", "expected"),
    [
        # Starts of 1 us beside 3 us of weights; the gate whole and half of up and down.
        ("CATS", KernelShape(keep=0.5, n=3.0, k=1e6, whole=1 / 3, matrices=3.0), 4.0 / 3.0),
        ("CATS", KernelShape(keep=0.5, n=1.0, k=1e6), (1 / 3 + 1) / (1 / 3 + 0.5)),
        ("ProSparse", KernelShape(keep=0.25, n=1.0, k=1e6), (1.0 + 1.0) / (1.0 + 0.25)),
        # 4 x 0.5 flop a pair.
        ("NSA", KernelShape(keep=0.25, pairs=1e6, rows=0.0, head_dim=0.5), (1.0 + 2.0) / (1.0 + 0.5)),
    ],
)
def test_speed_ups_by_hand(pattern, shape, expected):
    """Coefficients of 1, 1 us a start, on a device of 2e12 B/s and 1e12 flop/s: a matrix of 1e6 takes 1 us."""
    rates_ = Rates(math=1e12, vector=1e12, hbm=2e12, sm=1.0)
    names_ = ("launch_s", "stream", "math", "gate", "kept", "pairs", "row")
    coef = {f"{side}_{n}": 1e-6 if n == "launch_s" else 1.0 for side in ("dense", "sparse") for n in names_}
    fit = Fit("sparse", "any", pattern, "any", coef, None, 0, (), "", Residual(0.1, 0.1, -0.1, 0.1))
    assert speedup(pattern, shape, rates_, fit) == pytest.approx(expected)


def test_sputnik_and_spatha_by_hand():
    """Non-zeros, the union of 8 rows, output and row work add up; Spatha's three products do, beside its operand."""
    rates_ = Rates(math=1e12, vector=1e12, hbm=2e12, sm=1.0)
    coef = dict.fromkeys([f"dense_{n}" for n in ("math", "stream")], 0.0) | {"dense_launch_s": 1.0}
    shape = KernelShape(keep=0.5, m=128.0, n=64.0, k=4.0, vector=128.0)
    flop = 2.0 * 128 * 64 * 4
    one = dict.fromkeys(["sparse_nonzero", "sparse_union", "sparse_out", "sparse_row"], 1.0) | {"sparse_launch_s": 0.0}
    union = 1 - 0.5**8
    sputnik = (0.5 * flop + union * flop / 8 / 128) / 1e12 + 2 * 128 * 64 / 2e12 + 128 * 64 * 2.0 * 2 / 1e12
    fit = Fit("sparse", "any", "Sputnik", "any", coef | one, None, 0, (), "", Residual(0.1, 0.1, -0.1, 0.1))
    assert speedup("Sputnik", shape, rates_, fit) == pytest.approx(1.0 / sputnik)
    one = dict.fromkeys([f"sparse_{n}" for n in ("math", "waves", "reload", "out", "operand")], 1.0)
    fit = replace(fit, dtype="V:N:M", coefficients=coef | one | {"sparse_launch_s": 0.0})
    # One tile of 128 x 64 is the product: its wave costs what its flop do.
    spatha = 3 * 0.5 * flop / 1e12 + 2 * (128 * 64 + 128 * 4) / 2e12
    assert speedup("V:N:M", shape, rates_, fit) == pytest.approx(1.0 / spatha)
