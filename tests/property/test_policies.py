"""Laws that every registered policy obeys, whoever wrote it."""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.base.dtypes import FORMATS
from simulator.base.errors import InputError
from simulator.device.catalogue import load
from simulator.inference.group import Group
from simulator.inference.lowering import Lowering
from simulator.inference.step import step_time
from simulator.model.hub import find_model
from simulator.ops.ops import Elementwise
from simulator.ops.step import Step, decode_step, prefill_step
from simulator.ops.traffic import Operand, Traffic
from simulator.ops.transfers import HostCompute, Transfer
from simulator.policies import POLICIES, Policies, parse
from simulator.results.columns import COLUMNS
from simulator.results.rows import rows
from simulator.scenario.scenario import Scenario
from simulator.serving.planning import policies_of

NAMES = sorted(POLICIES)
MODELS = ("llama-3.1-8b", "opt-6.7b", "qwen3-30b-a3b", "deepseek-v3")


@lru_cache(maxsize=512)
def lowered(policy: str, model: str) -> Lowering:
    return Lowering(find_model(model).in_one_format(), parse(policy), FORMATS["fp16"], 2.0)


def home_model(policy: str) -> str:
    """First model that takes the policy."""
    for model in MODELS:
        if lowered(policy, model).why_not() is None:
            return model
    raise AssertionError(f"{policy} applies to none of {MODELS}; add one that it serves to MODELS of this test")


def split(policy: str, model: str, step: Step) -> tuple[Traffic, Traffic]:
    """Useful traffic of the model's own ops and of the declared overhead."""
    own, extra = Traffic(), Traffic()
    for op in lowered(policy, model).ops(step):
        t = op.traffic().scaled(op.count)
        own, extra = (own, extra + t) if op.overhead else (own + t, extra)
    return own, extra


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_tells_what_it_is(name: str) -> None:
    """Family, citation, limits, described and bounded parameters, and a reason with each refusal."""
    cls = POLICIES[name]
    told = ("family", "summary") if name == "dense" else ("family", "summary", "citation", "not_modelled", "aspects")
    empty = [word for word in told if not getattr(cls, word)]
    assert not empty, f"{cls.__module__}.{cls.__name__}: {', '.join(empty)} is empty; the catalogue shows it"
    for model in MODELS:
        reason = lowered(name, model).why_not()
        assert reason is None or len(reason) > 10, f"{name}: why_not says {reason!r}; write a sentence"


def test_designs_for_other_hardware_are_no_free_choice() -> None:
    """`plan --policy free` searches what runs on GPUs: an FPGA's design is left out."""
    assert {n for n in NAMES if POLICIES[n].hardware != "gpu"} == {"flightllm"}
    free = policies_of(["free"], "llama-3.1-8b", None)
    assert "flightllm" not in free
    assert {"quest", "gqsa", "w4a16"} < set(free)


@pytest.mark.parametrize("name", [n for n in NAMES if POLICIES[n].alias_of])
def test_an_alias_is_its_base_with_other_defaults(name: str) -> None:
    """Spelled out, both are the same ops; the alias keeps its own name and citation."""
    cls = POLICIES[name]
    base = POLICIES[cls.alias_of]
    assert cls.citation
    values = {k: f.default for k, f in cls.model_fields.items() if f.default not in (None, "")}
    text = ",".join(f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in values.items())
    twin = f"{base.name}({text})"
    model, step = home_model(name), decode_step(2.0, np.array([700.0, 9000.0]), 600.0)
    mine, theirs = (lowered(p, model).ops(step) for p in (name, twin))
    assert [o.role for o in mine] == [o.role for o in theirs]
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(a.traffic().total_bytes, b.traffic().total_bytes)
    assert parse(name).spelling.startswith(name)


@pytest.mark.parametrize("name", NAMES)
def test_demand_is_finite_and_not_negative(name: str) -> None:
    """Prompt and decode, short and long, one row and many; every layer is counted once."""
    model = home_model(name)
    low = lowered(name, model)
    assert sum(len(indices) for _, indices in low.groups) == low.model.n_layers
    contexts = np.array([2.0, 33.0, 5000.0, 200_000.0])
    for step in (
        decode_step(1.0, contexts),
        decode_step(64.0, contexts, np.array([1.0, 20.0, 4000.0, 5.0])),
        prefill_step(1.0, contexts),
        prefill_step(4.0, np.array([1.0, 7.0, 512.0, 4096.0]), contexts + 4096.0),
    ):
        for op in low.ops(step):
            t = op.traffic()
            for value in (t.total_bytes, t.total_flop, t.launches, op.count):
                array = np.asarray(value, float)
                assert np.all(np.isfinite(array)), op.role
                assert np.all(array >= 0.0), op.role
    for kv, _ in low.kv_layouts:
        stored = np.asarray(kv.bytes(contexts, contexts / 2.0), float)
        assert np.all(stored >= 0.0)
        assert np.all(np.diff(stored) >= 0.0), "a longer context never takes less memory"


WHOLE = {
    "cats(keep=1)": MODELS[0],
    "prosparse(keep=1)": MODELS[0],
    "teal(keep=1)": MODELS[0],
    "relu(down_keep=1)": MODELS[0],
    "relu_stage2(down_keep=1,up_keep=1,qkv_keep=1)": MODELS[1],
    "polar(attn_keep=1,keep=1)": MODELS[1],
    "powerinfer(keep=1,hot=0.25)": MODELS[1],
    "llm_in_flash(keep=1,new=1)": MODELS[1],
    "flexgen(weights=0.3,kv=0.2)": MODELS[0],
    "slicegpt(keep=1)": MODELS[0],
    "cfsp(keep=1)": MODELS[0],
    "rps(keep=1)": MODELS[0],
    "h2o(keep=1)": MODELS[0],
    "elastic_cache(keep=1)": MODELS[0],
    "snapkv(budget=1000000)": MODELS[0],
    "pyramidkv(budget=10000000)": MODELS[0],
    "uncomp(budget=1000000)": MODELS[0],
    "moa(keep=1)": MODELS[0],
    "s2_attention(stride=1)": MODELS[0],
    "kinetics(budget=1000000)": MODELS[0],
    "double_sparsity(budget=1000000)": MODELS[0],
    "double_sparsity_offload(budget=1000000)": MODELS[0],
    "nsa(blocks=4096,block=1024)": MODELS[0],
    "fsa(blocks=4096,block=1024)": MODELS[0],
    "infllm_v2(blocks=65536)": MODELS[0],
    "dsa(budget=1000000)": MODELS[3],
    "minference(vertical=1000000)": MODELS[0],
    "sample_attention(keep=1)": MODELS[0],
    "dhsa(budget=1000000)": MODELS[0],
    "ftp(keep=1)": MODELS[0],
    "vision_tokens(keep=1)": MODELS[0],
    "shadowkv(chunks=1000000)": MODELS[0],
    "nosa(budget=1000000)": MODELS[0],
    "alisa(keep=1)": MODELS[0],
    "contiguous_kv": MODELS[0],
    "vattention": MODELS[0],
    "xattention(keep=1)": MODELS[0],
    "sparge_attention(keep=1)": MODELS[0],
    "flexprefill(keep=1)": MODELS[0],
    "seer_attention(keep=1)": MODELS[0],
    "moba(block=1000000)": MODELS[0],
    "flash_moba(block=1000000)": MODELS[0],
    "trianglemix(window=1000000)": MODELS[0],
    "tri_shape(window=1000000)": MODELS[0],
    "duo_attention(keep=1)": MODELS[0],
    "lserve(keep=1,budget=1000000)": MODELS[0],
    "seer_attention_r(budget=1000000)": MODELS[0],
    "sparq(budget=1000000)": MODELS[0],
    "ada_kv(budget=1000000)": MODELS[0],
    "kvzip(keep=1)": MODELS[0],
    "mixture_of_depths(keep=1)": MODELS[0],
    "wina(keep=1)": MODELS[0],
    "r_sparse(keep=1)": MODELS[0],
    "shortgpt(keep=1)": MODELS[0],
    "expert_pruning(keep=1)": MODELS[2],
    "reap(keep=1)": MODELS[2],
    "expert_skipping(keep=1)": MODELS[2],
}


@pytest.mark.parametrize(("policy", "model"), WHOLE.items())
def test_keeping_all_is_dense_and_overhead_is_the_difference(policy: str, model: str) -> None:
    steps = [decode_step(b, c, p) for b, c, p in ((1.0, 64.0, 32.0), (16.0, 8000.0, 7000.0))]
    for step in (*steps, prefill_step(2.0, 3000.0)):
        dense, none = split("dense", model, step)
        own, _ = split(policy, model, step)
        assert float(np.sum(none.total_bytes)) == 0.0
        for operand in (Operand.WEIGHT, Operand.KV):
            read = np.sum(dense.read_bytes(operand))
            assert np.sum(own.read_bytes(operand)) == pytest.approx(read, rel=1e-9)
        # Neurons computed by the CPU keep their activations there.
        if not policy.startswith("powerinfer"):
            more = 0.0
            if policy.startswith("prosparse") and not step.prefills:
                # Gate and up are two kernels: the second reads 4,096 16-bit inputs of each of 32 layers again.
                more = float(step.rows) * 4096 * 2 * 32
            assert np.sum(own.total_bytes) == pytest.approx(np.sum(dense.total_bytes) + more, rel=1e-9)
        assert np.sum(own.total_flop) == pytest.approx(np.sum(dense.total_flop), rel=1e-9)


@pytest.mark.parametrize("policy", WHOLE)
def test_keeping_all_is_never_faster_than_dense(policy: str) -> None:
    """On calibrated kernels and on others, with full attention and with a window; exactly dense without overhead."""
    ran = 0
    for model, card in itertools.product((WHOLE[policy], "mistral-7b"), ("a100-sxm-80g", "rtx-4090")):
        sparse, dense = (
            Group.of(
                Scenario.of(model=model, device=card, policy=p, dtype="fp16", ignore_context_limit=True),
                find_model(model),
                load(card),
            )
            for p in (policy, "dense")
        )
        if sparse.problem is not None:
            continue
        ran += 1
        extra = any(o.overhead for o in sparse.lowering.ops(decode_step(1.0, 64.0)))
        for step in (decode_step(8.0, np.array([60.0, 1100.0, 7000.0]), 30.0), prefill_step(2.0, 1500.0)):
            mine, theirs = (np.asarray(step_time(g, step).total_s) for g in (sparse, dense))
            assert np.all(mine >= theirs * (1 - 1e-9)), (model, card)
            if policy in ("moa(keep=1)", "ftp(keep=1)", "duo_attention(keep=1)", "shortgpt(keep=1)", "reap(keep=1)"):
                assert not extra
                np.testing.assert_allclose(mine, theirs, rtol=1e-9)
    assert ran or policy.startswith(("powerinfer", "dsa"))


KEPT = (
    "cats(keep={})",
    "teal(keep={})",
    "relu(down_keep={})",
    "polar(attn_keep={0},keep={0})",
    "sparse_weights(keep={})",
    "flash_llm(keep={})",
    "sputnik(keep={})",
    "clasp(keep={})",
    "sparta(keep={})",
    "gqsa(keep={})",
    "slicegpt(keep={})",
    "cfsp(keep={})",
    "h2o(keep={})",
    "moa(keep={})",
    "cskv(keep={})",
    "zipvl(keep={})",
    "sample_attention(keep={})",
    "ftp(keep={})",
    "vision_tokens(keep={})",
    "alisa(keep={})",
    "powerinfer(keep={})",
    "xattention(keep={})",
    "sparge_attention(keep={})",
    "seer_attention(keep={})",
    "duo_attention(keep={})",
    "lserve(keep={})",
    "kvzip(keep={})",
    "r_sparse(keep={})",
    "shortgpt(keep={})",
)


@settings(max_examples=60)
@given(
    st.sampled_from(KEPT),
    st.floats(0.01, 1.0),
    st.floats(0.01, 1.0),
    st.sampled_from((1.0, 7.0, 64.0)),
    st.sampled_from((40.0, 3000.0)),
)
def test_more_keep_never_means_fewer_useful_bytes(
    template: str, a: float, b: float, batch: float, context: float
) -> None:
    less, more = sorted((round(a, 4), round(b, 4)))
    model = "opt-6.7b" if template.startswith(("polar", "powerinfer")) else "llama-3.1-8b"
    for step in (decode_step(batch, context), prefill_step(batch, context)):
        low, high = (split(template.format(k), model, step)[0] for k in (less, more))
        for operand in Operand:
            smaller, larger = np.sum(low.read_bytes(operand)), np.sum(high.read_bytes(operand))
            assert smaller <= larger * (1 + 1e-9), operand
        assert np.sum(low.total_flop) <= np.sum(high.total_flop) * (1 + 1e-9)


def tried(text: str) -> tuple[Policies | None, str]:
    """Parsed, or the reason why not."""
    try:
        return parse(text), ""
    except InputError as error:
        return None, error.message


def test_any_two_policies_compose_or_say_why_not() -> None:
    """Refusals name both and what they share; what composes lowers, in either order, to the same ops."""
    step, model = decode_step(2.0, 3000.0), "llama-3.1-8b"
    composed = refused = 0
    for a, b in itertools.combinations(NAMES, 2):
        both, reason = tried(f"{a}+{b}")
        if both is None:
            refused += 1
            assert "both rewrite the" in reason or "dense cannot be combined" in reason
            continue
        assert both == parse(f"{b}+{a}")
        composed += 1
        low = Lowering(find_model(model).in_one_format(), both, FORMATS["fp16"], 2.0)
        if composed % 5 == 0 and low.why_not() is None:
            for op in low.ops(step):
                assert np.all(np.isfinite(np.asarray(op.traffic().total_bytes))), (a, b, op.role)
    assert composed > 1000
    assert refused > 400


def runnable(name: str) -> Group | None:
    """The policy on a device of 78 GiB; None where it needs a tier or a rate that device lacks."""
    model = home_model(name)
    if model == "deepseek-v3":
        return None
    scenario = Scenario.of(model=model, device="h100-sxm", policy=name, dtype="fp16", ignore_context_limit=True)
    g = Group.of(scenario, find_model(model), load("h100-sxm"))
    return g if g.problem is None else None


@pytest.mark.parametrize("name", NAMES)
def test_passes_over_the_cache_read_it_from_main_memory(name: str) -> None:
    """No estimate, rotation or copy of K and V is faster than its bytes, however its benchmark sat in the L2."""
    g = runnable(name)
    if g is None:
        return
    for t in step_time(g, decode_step(4.0, 30_000.0, 29_000.0)).ops:
        if isinstance(t.op, Elementwise) and t.op.operand is Operand.KV:
            least = np.asarray(t.op.read_bytes) * t.op.count / g.device.hbm_bytes_per_s
            assert np.all(np.asarray(t.total_s) >= least * (1 - 1e-9)), t.op.role


@pytest.mark.parametrize("name", NAMES)
def test_a_grid_cell_equals_the_scalar_call(name: str) -> None:
    """Times and memory, for every policy; those that need another device say so."""
    g = runnable(name)
    if g is None:
        needs = lowered(name, home_model(name)).ops(decode_step(1.0, 9000.0))
        tiers = {o.tier for o in needs if isinstance(o, Transfer | HostCompute)}
        assert name == "dsa" or tiers - {"host", "ssd"}
        return
    batch, prompt, output = (np.array(x) for x in ([1.0, 40.0], [5.0, 12_000.0], [2.0, 300.0]))
    grid, points = rows(g, batch[:, None, None], prompt[None, :, None], output[None, None, :])
    assert points is not None
    for value in (points.ttft_s.mid, points.tpot_s.mid):
        assert np.all(np.isfinite(value))
        assert np.all(value > 0.0)
    for index in (0, 3, 6):
        i, j, k = np.unravel_index(index, (2, 2, 2))
        cell, _ = rows(g, batch[i : i + 1], prompt[j : j + 1], output[k : k + 1])
        left, right = grid.at(index).to_dict(), cell.at(0).to_dict()
        for column in COLUMNS:
            if isinstance(left[column], float):
                assert left[column] == pytest.approx(right[column], rel=1e-8), column
            else:
                assert left[column] == right[column], column
