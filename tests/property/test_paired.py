"""Intervals of speed-ups: what both runs share cancels, what a policy changed spreads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.inference import paired
from simulator.inference.evaluate import evaluate
from simulator.inference.group import Group, group_of
from simulator.inference.paired import ANY, Run, differing, faster, spreads
from simulator.policies import free_names
from simulator.scenario.scenario import Scenario

KINDS = (paired.ttft, paired.tpot, paired.throughput, paired.throughput_at_largest)
LOAD = tuple(np.array(v) for v in ([1.0, 16.0, 64.0], [64.0, 700.0, 1900.0], [2.0, 128.0, 140.0]))
SECONDS = st.floats(1e-6, 10.0)


def of(policy: str, model: str = "llama-2-7b", device: str = "h100-sxm", **more: object) -> Group:
    return group_of(Scenario.of(model=model, device=device, policy=policy, **more))


def test_by_hand() -> None:
    """Dense 10 ms, 8 of kernels; policy 8 ms, 6.5 of kernels, 2.5 of them changed.

    Common are 4 ms of kernels and min(2, 1.5) of the engine: 5.5 of 10, so 45 % differ. With an error of 0.5 of 2.5 ms
    the log error is 0.45 * 0.2 = 0.09.
    """
    own, dense = Run(8e-3, 6.5e-3, 2.5e-3, 0.5e-3), Run(10e-3, 8e-3)
    assert differing(own, dense) == pytest.approx(0.45)
    mid, lo, hi = faster(own, dense)
    assert float(mid) == pytest.approx(1.25)
    assert float(np.log(hi / mid)) == pytest.approx(1.645 * 0.09)
    assert float(np.log(mid / lo)) == pytest.approx(1.645 * 0.09)


def test_what_is_only_taken_away_errs_as_its_family() -> None:
    """A layer skipped leaves no kernel: 8 of 10 ms are common, 20 % differ by the family's 0.3."""
    mid, _, hi = faster(Run(8e-3, 8e-3, 0.0, 0.0, 0.3), Run(10e-3, 10e-3))
    assert float(np.log(hi / mid)) == pytest.approx(1.645 * 0.2 * 0.3)


@given(SECONDS, SECONDS, st.floats(0.0, 1.0), SECONDS, st.floats(0.01, 1.0), st.floats(1.0, 3.0))
def test_p_win_falls_as_overhead_rises(
    same: float, dense: float, hands: float, own: float, spread: float, more: float
) -> None:
    """The same kernels removed, more and more put in their place."""
    beside = Run(same + dense + hands, same + dense)
    runs = (Run(same + c + hands, same + c, c, c * spread, spread) for c in (own, own * more))
    before, after = (float(faster(run, beside).above(1.0)) for run in runs)
    assert after <= before + 1e-9


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(free_names()), st.sampled_from(("llama-2-7b", "opt-6.7b", "llama-3.1-8b")))
def test_ends_are_in_order(policy: str, model: str) -> None:
    group = of(policy, model)
    if group.problem is not None:
        return
    points, dense = (evaluate(g, *LOAD) for g in (group, group.dense))
    for kind in KINDS:
        mid, lo, hi = kind(points, dense)
        known = np.isfinite(mid)
        assert (lo[known] <= mid[known]).all()
        assert (mid[known] <= hi[known]).all()
        assert np.array_equal(np.isfinite(lo), known)
        assert np.array_equal(np.isfinite(hi), known)


@pytest.mark.parametrize(
    ("policy", "model"),
    [
        ("dense", "llama-2-7b"),
        ("teal(keep=1)", "llama-2-7b"),
        ("cats(keep=1,fallback=dense)", "llama-2-7b"),
        ("shadowllm(keep=1,attn_keep=1,fallback=dense)", "opt-6.7b"),
        ("mustafar(keep=1,fallback=dense)", "llama-2-7b"),
    ],
)
def test_nothing_changed_is_exactly_as_fast(policy: str, model: str) -> None:
    group = of(policy, model)
    points, dense = (evaluate(g, *LOAD) for g in (group, group.dense))
    for kind in KINDS:
        for end in kind(points, dense):
            assert end == pytest.approx(np.ones(3), rel=1e-12)


@pytest.mark.parametrize("policy", ["quest(budget=64)", "w4a16", "teal(fallback=none)", "mustafar"])
def test_an_interval_is_as_wide_as_the_share_that_changed(policy: str) -> None:
    """At most the family's own; Quest changes little of one short sequence and much of 64 long ones."""
    group = of(policy)
    points, dense = (evaluate(g, *LOAD) for g in (group, group.dense))
    _, lo, hi = paired.tpot(points, dense)
    width = np.log(hi / lo) / (2 * 1.645)
    # A kernel's own interval may add a little where nearly everything changed.
    assert (width <= spreads()[group.policies.members[0].family] * 1.05).all()
    if policy.startswith("quest"):
        assert width[0] < 0.25 * width[2]


def test_kernels_that_were_measured_err_as_their_fit() -> None:
    """An error family the dense run does not have: 0.05 of its own fit, not the policies' 0.3 or so."""

    class Fit:
        def of_family(self, family: str, step_s: float) -> float:
            return 0.05

    (member,) = of("quest(budget=64)").policies.members
    seconds = {("quest", "module.dsa.decode"): 2.0, ("quest", "attention.decode"): 1.0}
    sigma = spreads()[member.family]
    total, error, most = paired.changes([member], seconds, Fit(), {"attention.decode"})  # type: ignore[arg-type]
    assert (total, most) == (3.0, sigma)
    assert error == pytest.approx(np.hypot(2.0 * 0.05, sigma))


def test_a_policy_of_both_runs_makes_no_difference() -> None:
    """W4A16 in both: only Quest's kernels are changed ones."""
    both, w4 = of("w4a16+quest(budget=64)"), of("w4a16")
    quest = paired.changing(both.policies.members, w4.policies.members)
    assert [p.name for p in quest] == ["quest"]
    points, beside = evaluate(both, *LOAD), evaluate(w4, *LOAD)
    assert np.all(
        paired.decode(points, beside).changed_s < 0.7 * paired.decode(points, evaluate(both.dense, *LOAD)).changed_s
    )


def test_every_family_has_a_spread() -> None:
    assert set(spreads()) > {ANY}
    assert all(0.02 < sigma < 1.5 for sigma in spreads().values())
