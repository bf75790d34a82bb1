"""One op by its name: the verb answers as `validate` judges, against hand-worked rooflines and shares."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from simulator import op as verb
from simulator.base.errors import InputError, UnknownNameError
from simulator.base.interval import Interval, ratio
from simulator.device.catalogue import load
from simulator.device.releases import joined
from simulator.fitting import judged as judging
from simulator.fitting import sparse
from simulator.fitting.asked import predicted
from simulator.fitting.judge import holdout, shape_group
from simulator.ops.named import NAMED
from simulator.results import one_op
from simulator.results.one_op import OpPoints, ask, parse

GEMM = "gemm(m=16,n=11008,k=4096)"
DECODE = "attention(phase=decode,batch=16,kv_len=4096,n_heads=32,n_kv_heads=8,head_dim=128)"

HELD_OUT: dict[str, Callable[[Any], tuple[str, str]]] = {
    "gemm": lambda r: (f"gemm(m={r.m:.0f},n={r.n:.0f},k={r.k:.0f},batch={r.batch:.0f})", r.dtype),
    "attention": lambda r: (
        f"attention(phase={r.phase},batch={r.batch:.0f},q_len={r.q_len:.0f},kv_len={r.kv_len:.0f},"
        f"n_heads={r.n_heads:.0f},n_kv_heads={r.n_kv_heads:.0f},head_dim={r.head_dim:.0f},window={r.window:.0f},"
        f"kv_dtype={r.kv_dtype})",
        r.dtype,
    ),
    "moe": lambda r: (
        f"moe(tokens={r.num_tokens:.0f},hidden={r.hidden:.0f},intermediate={r.inter:.0f},top_k={r.topk:.0f},"
        f"experts={r.n_experts:.0f},tp={r.moe_tp:.0f},ep={r.moe_ep:.0f},gated={'yes' if r.gated else 'no'},"
        f"routing={r.distribution})",
        r.dtype,
    ),
    "collective": lambda r: (
        f"collective(op={r.op},bytes={r.bytes:.0f},ranks={r.n_gpus:.0f},nodes={r.n_nodes:.0f})",
        "bf16",
    ),
}
"""The op that a person would write for a prepared row, and its format."""
INPUTS = {
    "gemm": ("device", "dtype", "m", "n", "k"),
    "attention": ("device", "phase", "batch", "q_len", "kv_len", "n_heads"),
    "moe": ("device", "num_tokens", "hidden", "inter", "n_experts"),
    "collective": ("device", "op", "n_gpus", "bytes"),
}


def only(text: str, device: str = "h100-sxm", **more: Any) -> OpPoints:
    (points,) = ask(text, [device], **more)
    return points


def row(text: str, device: str = "h100-sxm", **more: Any) -> dict[str, Any]:
    columns = only(text, device, **more).columns()
    return {k: v[0] if isinstance(v, np.ndarray) else v for k, v in columns.items()}


@pytest.mark.data
@pytest.mark.parametrize("family", HELD_OUT)
def test_the_verb_answers_what_validate_judges(family: str, data_dir: Path) -> None:
    """Forty rows of shapes held out, asked one by one: the same figure and the same ends."""
    rows = judging.module_of(family).prepare(pd.read_parquet(data_dir / f"{family}.parquet")).reset_index(drop=True)
    held = rows[holdout(shape_group(rows, INPUTS[family]), 0.2)]
    judged, _ = predicted(family, held.sample(40, random_state=1), None)
    assert len(judged) >= 30
    for r in judged.itertuples():
        text, dtype = HELD_OUT[family](r)
        library = str(r.library).removesuffix(f"_{getattr(r, 'n_nodes', 1):.0f}nodes")
        library = joined(library, str(getattr(r, "release", "")))
        formats = {} if family == "collective" else {"dtype": (dtype,)}
        answer = row(text, str(r.device), kernel=(library,), **formats)
        assert (answer["time_s"], answer["time_s_lo"], answer["time_s_hi"]) == pytest.approx(
            (r.mid_s, r.lo_s, r.hi_s), rel=1e-12
        ), text
        assert answer["basis"] == r.basis


def test_a_row_without_the_data_files() -> None:
    """The same without measured tables: a product on A100 as `validate` would judge it."""
    table = {"source": "s", "device": "A100-SXM-80G", "dtype": "bf16", "batch": 1, "m": 64, "n": 4096, "k": 2048}
    rows = judging.module_of("gemm").prepare(pd.DataFrame([{**table, "time_s": 4e-5, "kernel": "torch"}]))
    judged, _ = predicted("gemm", rows, None)
    answer = row("gemm(m=64,n=4096,k=2048)", "a100-sxm-80g", kernel=(str(rows["library"].iloc[0]),))
    assert answer["time_s"] == judged["mid_s"].iloc[0]


def test_the_roofline_by_hand() -> None:
    """2 * 16 * 11008 * 4096 flop; 2 B * (11008 * 4096 weights, 16 * 4096 in, 16 * 11008 out)."""
    device, answer = load("h100-sxm"), row(GEMM)
    flop, weights, rest = 2.0 * 16 * 11008 * 4096, 2.0 * 11008 * 4096, 2.0 * 16 * (4096 + 11008)
    assert (answer["flop"], answer["weight_bytes"], answer["activation_bytes"]) == (flop, weights, rest)
    least = (weights + rest) / device.hbm_bytes_per_s
    assert answer["roofline_s"] == pytest.approx(least)
    assert answer["over_roofline"] == pytest.approx(answer["time_s"] / least)
    assert answer["bandwidth_share"] == pytest.approx(least / answer["time_s"])
    assert answer["bound"] == "weight reads"
    assert answer["time_s_lo"] < answer["time_s"] < answer["time_s_hi"]


def test_a_message_crosses_the_link() -> None:
    """Of an all-reduce over 8 GPUs each sends 2 * 7/8 of the buffer: on a link no tier is read."""
    answer = row("collective(op=all_reduce,bytes=104857600,ranks=8)")
    assert answer["tier"] == "link"
    assert answer["roofline_s"] == pytest.approx(1.75 * 104857600 / load("h100-sxm").link.bandwidth_bytes_per_s)
    assert answer["over_roofline"] > 1.0


def test_a_range_is_its_points() -> None:
    """Two ranges of one op, one of them fixed in a call: each point as if it were asked alone."""
    points = ask("spmm(m=1:64:x8,n=4096,k=[2048,4096],keep=[0.25,0.5],pattern=Sputnik)", ["a100-sxm-80g"])
    assert [len(of) for of in points] == [6, 6]
    for of, keep in zip(points, (0.25, 0.5), strict=True):
        columns = of.columns()
        for i, (m, k) in enumerate(zip(columns["m"], columns["k"], strict=True)):
            alone = row(f"spmm(m={m:.0f},n=4096,k={k:.0f},keep={keep},pattern=Sputnik)", "a100-sxm-80g")
            for figure in ("time_s", "time_s_lo", "time_s_hi", "weight_bytes", "over_roofline"):
                assert columns[figure][i] == pytest.approx(alone[figure], rel=1e-12)


def test_an_op_beside_itself_is_exactly_as_fast() -> None:
    answer = row(GEMM, versus=GEMM)
    assert (answer["speedup"], answer["speedup_lo"], answer["speedup_hi"]) == (1.0, 1.0, 1.0)
    assert answer["verdict"] == "as fast"


def test_two_ops_err_apart() -> None:
    """Half the columns: the ratio of two figures whose errors are independent, as everywhere."""
    half = "gemm(m=16,n=5504,k=4096)"
    answer, own, other = row(half, versus=GEMM), row(half), row(GEMM)
    of = [Interval(r["time_s"], r["time_s_lo"], r["time_s_hi"]) for r in (other, own)]
    assert tuple(answer[k] for k in ("speedup", "speedup_lo", "speedup_hi")) == pytest.approx(tuple(ratio(*of)))


def test_a_sparse_kernel_gains_what_its_measured_speedups_err() -> None:
    """V:N:M on RTX 3090 beside its own dense product: the figure and the ends that `validate --kind sparse` judges."""
    text, dense = "spmm(m=4096,n=4096,k=4096,pattern=V:N:M,keep=0.25)", "gemm(m=4096,n=4096,k=4096)"
    answer, inverse = (row(a, "rtx-3090", versus=b) for a, b in ((text, dense), (dense, text)))
    rows = pd.DataFrame(
        [{"m": 4096.0, "n": 4096.0, "k": 4096.0, "keep": 0.25, "vector": 1.0, "dtype": "bf16", "library": "Spatha"}]
    ).assign(family="V:N:M", device="rtx-3090", baseline="dense")
    mid, lo, hi = sparse.predict(rows, None)
    found = tuple(answer[k] for k in ("speedup", "speedup_lo", "speedup_hi"))
    assert found == pytest.approx((mid[0], lo[0], hi[0]))
    assert tuple(inverse[k] for k in ("speedup", "speedup_lo", "speedup_hi")) == pytest.approx(
        (1 / mid[0], 1 / hi[0], 1 / lo[0])
    )
    assert (answer["speedup_hi"] / answer["speedup_lo"]) < (answer["time_s_hi"] / answer["time_s_lo"])


@pytest.mark.parametrize("text", ["top_k(elements=131072,rows=8,picked=2048)", "gather(rows=100000,row_bytes=512)"])
def test_what_no_row_measured_is_no_calibrated_answer(text: str) -> None:
    """Their kernels were never timed: a pass over as many bytes stands in, wider than such a pass itself."""
    answer, stream = row(text), row("elementwise(read_bytes=33554432)")
    assert answer["basis"] == "EXTRAPOLATED"
    assert stream["basis"] == "CALIBRATED"
    assert answer["time_s_hi"] / answer["time_s"] > stream["time_s_hi"] / stream["time_s"]


@pytest.mark.parametrize("name", NAMED)
def test_every_example_runs(name: str) -> None:
    """And is longer than its flop and bytes take at datasheet rates."""
    assert parse(NAMED[name].example).name == name
    answer = row(NAMED[name].example)
    assert answer["time_s"] > 0.0
    # 2:4 multiplies half of what is counted.
    assert answer["over_roofline"] > 0.99


BAD: Mapping[tuple[str, ...], str] = {
    (): "OP: is needed",
    (GEMM,): "--device: is needed",
    ("gem(m=1,n=1,k=1)", "--device", "h100-sxm"): "did you mean 'gemm'",
    ("gemm(m=1,n=1)", "--device", "h100-sxm"): "gemm needs k",
    ("gemm(m=1,n=1,kk=1)", "--device", "h100-sxm"): "did you mean 'k'",
    ("gemm(m=0,n=1,k=1)", "--device", "h100-sxm"): "m: 0",
    ("gemm(m=1,n=1,k=1", "--device", "h100-sxm"): "cannot read op",
    ("spmm(m=1,n=1,k=1,keep=1.5)", "--device", "h100-sxm"): "not a share",
    ("spmm(m=1,n=1,k=1,keep=0.25)", "--device", "h100-sxm"): "2:4 keeps 0.5",
    ("attention(phase=decod,batch=1,kv_len=1,n_heads=1,n_kv_heads=1,head_dim=64)", "--device", "h100-sxm"): "did you",
    (GEMM, "--device", "h100-smx"): "did you mean 'h100-sxm'",
    (GEMM, "--device", "h100-sxm", "--dtype", "bf15"): "did you mean 'bf16'",
    (GEMM, "--device", "a100-sxm-80g", "--dtype", "fp8"): "has no fp8 peak",
    (GEMM, "--device", "h100-sxm", "--kernel", "tourch"): "did you mean 'torch'",
    ("transfer(read_bytes=8)", "--device", "h100-sxm", "--kernel", "torch"): "runs in no kernel",
    ("transfer(read_bytes=8)", "--device", "h100-sxm", "--dtype", "fp8"): "takes no format",
    ("gemm(m=1:4000:+1,n=1:4000:+1,k=1)", "--device", "h100-sxm"): "at most 10,000,000",
    ("gemm(m=[1,2],n=1,k=1)", "--device", "h100-sxm", "--versus", "gemm(m=[1,3],n=1,k=1)"): "the same range",
    (GEMM, "--device", "h100-sxm", "--out", "x.csv"): "write FILE.parquet",
    (GEMM, "--list"): "drop the op",
}


@pytest.mark.parametrize("words", BAD, ids=" ".join)
def test_bad_input_is_one_line(words: tuple[str, ...], call: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = call(verb.app, *words)
    assert (code, out) == (2, "")
    assert BAD[words] in err
    assert len(err.strip().splitlines()) == 1


def test_what_one_device_cannot_run_is_left_out(call: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = call(verb.app, GEMM, "--device", "a100-sxm-80g,h100-sxm", "--dtype", "fp8")
    assert code == 0
    assert "h100-sxm" in out
    assert "left out: a100-sxm-80g: a100-sxm-80g has no fp8 peak" in err


def test_table_rows_and_file_are_one_answer(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """Seven batches: seven lines, seven rows of JSON, seven of Parquet."""
    words = ("gemm(m=1:64:x2,n=4096,k=4096)", "--device", "l40s", "--versus", "gemm(m=1:64:x2,n=8192,k=4096)")
    code, out, _ = call(verb.app, *words, "--json")
    rows = json.loads(out)["rows"]
    assert (code, [r["m"] for r in rows]) == (0, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0])
    file = tmp_path / "points.parquet"
    code, table, _ = call(verb.app, *words, "--out", str(file))
    assert code == 0
    assert sum(line.startswith("l40s") for line in table.splitlines()) == 7
    stored = pd.read_parquet(file)
    assert stored.to_dict("records") == rows
    assert {r["verdict"] for r in rows} == {"wins"}


def test_the_table_ends_where_a_file_has_all(call: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = call(verb.app, "gemm(m=1:100:+1,n=64,k=64)", "--device", "l40s")
    assert code == 0
    assert sum(line.startswith("l40s") for line in out.splitlines()) == 60
    assert "the first 60 of 100 points" in err


def test_the_list_explains_every_value(call: Callable[..., tuple[int, str, str]]) -> None:
    _, out, _ = call(verb.app, "--list", "--json")
    told = {(r["op"], r["parameter"]) for r in json.loads(out)["rows"] if r["meaning"]}
    assert told == {(name, key) for name, op in NAMED.items() for key in op.parameters}
    _, text, _ = call(verb.app, "--list")
    assert all(f"{name}: {op.summary}" in text for name, op in NAMED.items())


def test_a_library_is_asked_by_name() -> None:
    """CUTLASS-like libraries answer apart; one that no fit of the family knows is refused."""
    libraries = {f.library for f in load("h100-sxm").measured.own("gemm")} - {one_op.ANY}
    times = {library: row(GEMM, kernel=(library,))["time_s"] for library in libraries}
    assert len(set(times.values())) > 1
    with pytest.raises(UnknownNameError, match="kernel of gemm"):
        ask(GEMM, ["h100-sxm"], kernel=("nobody",))
    with pytest.raises(InputError, match="the same range"):
        ask("gemm(m=[1,2],n=8,k=8)", ["h100-sxm"], versus="gemm(m=[2,4],n=8,k=8)")
