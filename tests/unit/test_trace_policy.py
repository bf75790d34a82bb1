"""From a trace to a prediction: the bytes of every layer, and another model's trace."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from simulator.base.dtypes import FORMATS
from simulator.base.errors import InputError, UnsupportedError
from simulator.inference.evaluate import evaluate
from simulator.inference.group import group_of
from simulator.inference.lowering import Lowering
from simulator.model.hub import find_model
from simulator.ops.ops import Attention, Linear
from simulator.ops.step import decode_step, prefill_step
from simulator.ops.union_law import RELU, UNITS, default_law, kind
from simulator.policies import POLICIES, parse
from simulator.results import prediction
from simulator.results import printed as questions
from simulator.scenario.catalogue import pick_trace
from simulator.scenario.grid import Grid, read_grids
from simulator.scenario.scenario import Scenario
from simulator.trace import TABLES, Trace, read_trace, write_trace


def gathered(model: str, policy: str, trace: Trace | None, rows: float) -> list[tuple[str, float, float]]:
    """(role, layers, read_keep) of the gathered products of a decode step."""
    low = Lowering(find_model(model).in_one_format(), parse(policy), FORMATS["fp16"], 2.0, trace=trace)
    return [
        (op.role, float(np.max(op.count)), float(np.max(op.read_keep)))
        for op in low.ops(decode_step(rows, 100.0))
        if isinstance(op, Linear) and op.gathered is not None and not op.overhead
    ]


def test_bytes_follow_the_density_of_every_layer(opt: Path) -> None:
    """OPT-6.7B at 16 rows: fc1 and fc2 are 2 * 4096 * 16384 fp16 weights per layer, of which even layers
    touch 1 - 0.5^(16^1/4) = 3/4 and odd ones 1 - 0.5^(16^3/4) = 1 - 2^-8.
    """
    trace = read_trace(opt)
    low = Lowering(find_model("opt-6.7b"), parse("shadowllm(keep=0.5)"), FORMATS["fp16"], 2.0, trace=trace)
    read = sum(
        float(op.count * op.weight_read_bytes)
        for op in low.ops(decode_step(16.0, 100.0))
        if isinstance(op, Linear) and op.role in ("mlp.up", "mlp.down")
    )
    whole = 2 * 4096 * 16384 * 2
    assert read == pytest.approx(16 * whole * 0.75 + 16 * whole * (1 - 2**-8), rel=1e-9)


def test_heads_follow_their_own_curve(tmp_path: Path, synthetic: SimpleNamespace) -> None:
    flat = synthetic.make(
        tmp_path / "t",
        density=lambda k, b, _: np.full_like(b, k),  # every token uses the same units
    )
    # Layer 0's attention is dense; everything else is the same in all layers, so it is told once.
    found = gathered("opt-6.7b", "shadowllm(keep=0.25)", read_trace(flat), 64.0)
    assert {(role, n): share for role, n, share in found} == {
        ("mlp.up", 32.0): pytest.approx(0.25),
        ("mlp.down", 32.0): pytest.approx(0.25),
        ("attn.qkv", 31.0): pytest.approx(0.25),
        ("attn.o", 31.0): pytest.approx(0.25),
    }


def test_placed_heads_follow_their_own_curve(tmp_path: Path, synthetic: SimpleNamespace) -> None:
    """64 rows that all use the same quarter of the heads, every one of them hot: a quarter is read."""
    flat = synthetic.make(tmp_path / "t", density=lambda k, b, _: np.full_like(b, k))
    policy = "powerinfer(keep=0.25,attn_keep=0.25,attn_hot=0.9,hits=1)"
    shares = {role: share for role, _, share in gathered("opt-6.7b", policy, read_trace(flat), 64.0)}
    assert shares["attn.qkv"] == shares["attn.o"] == pytest.approx(0.25)


def test_grouped_heads_use_what_was_measured(tmp_path: Path, synthetic: SimpleNamespace) -> None:
    """Llama-3.1-8B has 4 query heads per KV head: 1 - 0.75^4 = 0.68 of them if picked alike; measured 0.3."""
    model = "llama-3.1-8b"
    n = find_model(model).n_layers
    plain, kv = (synthetic.curves_of(n, keeps=(0.25,)), synthetic.curves_of(n, keeps=(0.3,), tensors=("attn.kv_head",)))
    kv["keep"] = [0.25] * len(kv["keep"])
    both = {c: plain[c] + kv[c] for c in plain}
    for name, curves, kept in (("p", plain, 1 - 0.75**4), ("kv", both, 0.3)):
        folder = write_trace(tmp_path / name, synthetic.manifest_of(model), curves=curves, neurons=synthetic.neurons)
        low = Lowering(
            find_model(model).in_one_format(),
            parse("shadowllm(keep=0.25)"),
            FORMATS["bf16"],
            2.0,
            trace=read_trace(folder),
        )
        ops = low.ops(decode_step(1.0, 100.0))
        last = [op for op in ops if isinstance(op, Attention)][-1]
        assert float(np.max(last.kv_head_keep)) == pytest.approx(kept)
        qkv = [op for op in ops if isinstance(op, Linear) and op.role == "attn.qkv"][-1]
        # 32 query heads and 2 x 8 KV heads share the matrix.
        assert float(np.max(qkv.read_keep)) == pytest.approx((32 * 0.25 + 16 * kept) / 48)


def test_another_models_groups_are_not_the_targets(tmp_path: Path, synthetic: SimpleNamespace) -> None:
    """A trace of 4 query heads per KV head kept 0.3 of its KV heads. Llama-2-7B has a KV head per query head, which
    reads what its query head does, 1/4; Llama-3.1-70B has 8, of which 1 - 0.75^8 = 0.90 have one kept if picked alike.
    """
    n = find_model("llama-3.1-8b").n_layers
    heads = synthetic.curves_of(n, keeps=(0.25,))
    kv = synthetic.curves_of(n, keeps=(0.3,), tensors=("attn.kv_head",))
    kv["keep"] = [0.25] * len(kv["keep"])
    both = {c: heads[c] + kv[c] for c in heads}
    folder = write_trace(tmp_path / "t", synthetic.manifest_of("llama-3.1-8b"), curves=both, neurons=synthetic.neurons)
    for model, kept in (("llama-2-7b", 0.25), ("llama-3.1-70b", 1 - 0.75**8)):
        low = Lowering(find_model(model), parse("shadowllm(keep=0.25)"), FORMATS["bf16"], 2.0, trace=read_trace(folder))
        last = [op for op in low.ops(decode_step(1.0, 100.0)) if isinstance(op, Attention)][-1]
        assert float(np.max(last.kv_head_keep)) == pytest.approx(kept)
        assert float(np.max(last.head_keep)) == pytest.approx(0.25)


def test_the_prompt_and_other_policies_do_not_change(opt: Path) -> None:
    trace = read_trace(opt)
    model, fmt = find_model("opt-6.7b"), FORMATS["fp16"]
    for policy, step in (
        ("shadowllm(keep=0.5)", prefill_step(2.0, 64.0)),
        ("mustafar(keep=0.3)", decode_step(4.0, 100.0)),
        ("dense", decode_step(4.0, 100.0)),
    ):
        plain, traced = (Lowering(model, parse(policy), fmt, 2.0, trace=t).ops(step) for t in (None, trace))
        total = [sum(float(np.max(op.count * op.traffic().total_bytes)) for op in ops) for ops in (plain, traced)]
        assert total[1] == pytest.approx(total[0], rel=1e-12)


@pytest.fixture(scope="module")
def as_default(tmp_path_factory: pytest.TempPathFactory, synthetic: SimpleNamespace) -> dict[tuple[str, bool], Trace]:
    """Traces that measured exactly what is used without one; the second of a SiLU model made a ReLU model."""
    found = {}
    for model, relu in (("opt-6.7b", True), ("llama-3.1-8b", False), ("llama-3.1-8b", True)):
        spec = find_model(model)
        activation = "relu" if relu else "silu"
        tables = {t: default_law(kind(t, activation), model, activation)[0] for t in UNITS if t != RELU}
        points = [
            (layer, -1, tensor, "union_density", line[0], b, d, 64)
            for layer in range(spec.n_layers)
            for tensor, table in tables.items()
            for line in table.density
            for b, d in zip(table.rows, line, strict=True)
        ]
        curves = dict(zip(TABLES["curves.parquet"], map(list, zip(*points, strict=True)), strict=True))
        folder = tmp_path_factory.mktemp("default") / model
        found[model, relu] = read_trace(
            write_trace(folder, synthetic.manifest_of(model), curves=curves, neurons=synthetic.neurons)
        )
    return found


@pytest.mark.parametrize("name", POLICIES)
def test_a_trace_of_the_defaults_changes_nothing(name: str, as_default: dict[tuple[str, bool], Trace]) -> None:
    """For every policy: lowering layer by layer neither loses nor repeats an op."""
    unites = POLICIES[name].unites
    for (model, relu), trace in as_default.items():
        spec = find_model(model)
        made_relu = RELU in unites and "ffn.down" not in unites
        if relu != (made_relu or model == "opt-6.7b"):
            continue
        lows = [Lowering(spec, parse(name), FORMATS[spec.dtype], 2.0, trace=t) for t in (None, trace)]
        if lows[0].why_not():
            continue
        for step in (decode_step(24.0, 3000.0, 2000.0), prefill_step(2.0, 3000.0)):
            flop, moved, launches = zip(*(totals(low.ops(step)) for low in lows), strict=True)
            assert moved[1] == pytest.approx(moved[0], rel=1e-9)
            assert flop[1] == pytest.approx(flop[0], rel=1e-9)
            assert launches[1] == pytest.approx(launches[0], rel=1e-9)


def totals(ops: list[Any]) -> tuple[float, float, float]:
    traffic = [op.traffic().scaled(op.count) for op in ops]
    counts = sum(float(np.max(op.count)) for op in ops)
    return (
        sum(float(np.max(t.total_flop)) for t in traffic),
        sum(float(np.max(t.total_bytes)) for t in traffic),
        counts,
    )


def test_a_curve_that_was_not_measured_is_said_not_replaced(tmp_path: Path, synthetic: SimpleNamespace) -> None:
    folder = synthetic.make(tmp_path / "t", tensors=("ffn.down",))
    with pytest.raises(UnsupportedError, match=r"no union_density of 'attn.head' in layer"):
        gathered("opt-6.7b", "shadowllm(keep=0.5)", read_trace(folder), 4.0)
    row = prediction.predict(scenario(folder)).row
    assert row["status"] == "not_applicable"
    assert "attn.head" in row["reason"]


def scenario(trace: Path | str, **changes: Any) -> Scenario:
    values = {
        "model": "opt-6.7b",
        "device": "a100-sxm-80g",
        "policy": "shadowllm(keep=0.5)",
        "batch": 16,
        "trace": str(trace),
    }
    return Scenario.of(**(values | changes))


def test_a_scenario_round_trips_with_its_trace() -> None:
    one = scenario("some folder/träce", trace_transfer=True)
    assert Scenario.from_json(one.to_json()) == one
    assert Scenario.from_query(one.to_query()) == one
    assert "--trace-transfer" in one.command


def test_the_prediction_changes_as_the_trace_says(tmp_path: Path, synthetic: SimpleNamespace) -> None:
    """Rows that share their neurons read less than rows that do not; both names of the trace are kept."""
    shared = synthetic.make(tmp_path / "shared", density=lambda k, b, _: np.full_like(b, k))
    apart = synthetic.make(tmp_path / "apart", density=lambda k, b, _: 1.0 - (1.0 - k) ** b)
    fast, slow = (prediction.predict(scenario(t)) for t in (shared, apart))
    assert fast.row["tpot_s"] < 0.8 * slow.row["tpot_s"]
    assert fast.row["ttft_s"] == pytest.approx(slow.row["ttft_s"], rel=1e-9)
    assert fast.to_dict()["trace"] == {"path": str(shared), "sha256": read_trace(shared).digest, "model": "opt-6.7b"}
    assert prediction.predict(scenario("")).to_dict()["trace"] is None


@pytest.mark.parametrize(
    ("policy", "unused"),
    [("dense", True), ("quest", True), ("shadowllm(keep=0.5)", False), ("shadowllm(keep=0.5)+quest", False)],
)
def test_a_trace_no_policy_reads_is_said_in_one_line(
    opt: Path, policy: str, unused: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    questions.say_unused_trace(scenario(opt, policy=policy))
    said = f"--trace: {parse(policy)} uses no curve of {opt}\n"
    assert capsys.readouterr().err == (said if unused else "")
    questions.say_unused_trace(scenario(""))
    assert capsys.readouterr().err == ""


def test_lowering_layers_apart_does_not_narrow_the_interval(opt: Path) -> None:
    """The prefill is the same work; 32 equal layers are one kernel, not 32 independent errors."""
    plain, traced = (prediction.predict(scenario(t)).row for t in ("", opt))
    for key in ("ttft_s", "ttft_lo_s", "ttft_hi_s"):
        # Layer 0 counts as the same kernel as the others with a trace, apart from them without.
        assert traced[key] == pytest.approx(plain[key], rel=0.01)


def test_another_models_trace_needs_transfer(opt: Path) -> None:
    with pytest.raises(InputError, match=r"was measured on opt-6.7b .*not on opt-13b .*--trace-transfer"):
        group_of(scenario(opt, model="opt-13b"))
    # Same shape, other activation: still another model.
    with pytest.raises(InputError, match="silu"):
        group_of(scenario(opt, model="llama-2-7b"))


def test_a_transferred_trace_maps_by_depth_and_says_so(opt: Path) -> None:
    model = find_model("opt-13b")
    trace = read_trace(opt)
    taken = [trace.layer(i, model.n_layers).index for i in range(model.n_layers)]
    assert taken[0] == 0
    assert taken[-1] == 31
    assert taken == sorted(taken)
    assert len(set(taken)) == 32  # 40 layers meet all 32 measured ones

    both = [prediction.predict(scenario(opt, model="opt-13b", trace_transfer=True)).row]
    group = group_of(scenario(opt, model="opt-13b", trace_transfer=True))
    assert group.transferred
    assert not group.dense.transferred
    row = both[0]
    assert row["status"] == "ok"
    assert row["basis"] == "EXTRAPOLATED"
    assert "opt-6.7b" in row["reason"]
    assert "relative depth" in row["reason"]
    assert row["quality_perplexity_ratio"] is None


def test_transfer_widens_the_interval(opt: Path) -> None:
    """By what models differ in: the same point, its own trace and not."""
    own = group_of(scenario(opt))
    point = (np.array([16.0]), np.array([512.0]), np.array([128.0]))
    narrow = evaluate(own, *point)
    other = dataclasses.replace(own)
    object.__setattr__(other, "transferred", True)
    wide = evaluate(other, *point)
    assert wide.tpot_s.mid[0] == narrow.tpot_s.mid[0]
    assert wide.tpot_s.hi[0] - wide.tpot_s.lo[0] > narrow.tpot_s.hi[0] - narrow.tpot_s.lo[0]
    assert wide.ttft_s.hi[0] == narrow.ttft_s.hi[0]  # the prompt runs dense
    assert wide.basis == "EXTRAPOLATED"


def test_transfer_without_a_trace_is_refused() -> None:
    with pytest.raises(InputError, match=r"--trace-transfer: there is no trace"):
        Scenario.of(model="opt-13b", device="h100-sxm", trace_transfer=True)
    with pytest.raises(InputError, match=r"--trace-transfer: there is no trace"):
        Grid(model=("opt-13b",), device=("h100-sxm",), trace_transfer=True)


def test_a_grid_file_names_traces(tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    lines = ("[[grid]]", 'model = "opt-13b"', 'device = "h100-sxm"', 'trace = ["a", "b"]')
    file.write_text("\n".join((*lines, "trace-transfer = true")))
    (grid,) = read_grids(file)
    assert grid.trace == ("a", "b")
    assert grid.trace_transfer


def test_a_grid_gives_each_model_its_trace(opt: Path, tmp_path: Path, synthetic: SimpleNamespace) -> None:
    other = synthetic.make(tmp_path / "13b", "opt-13b", keeps=(0.5,))
    grid = Grid(
        model=("opt-6.7b", "opt-13b"),
        device=("a100-sxm-80g",),
        policy=("dense", "shadowllm(keep=0.5)"),
        trace=(str(other), str(opt)),
    )
    assert {s.model: s.trace for s in grid.groups()} == {"opt-6.7b": str(opt), "opt-13b": str(other)}
    paths = (str(opt), str(other))
    with pytest.raises(InputError, match="not on opt-30b"):
        pick_trace(paths, find_model("opt-30b"), transfer=False)
    with pytest.raises(InputError, match="could all stand for opt-30b"):
        pick_trace(paths, find_model("opt-30b"), transfer=True)
    assert pick_trace((str(opt),), find_model("opt-30b"), transfer=True) == str(opt)
    assert pick_trace((), find_model("opt-30b"), transfer=True) == ""
