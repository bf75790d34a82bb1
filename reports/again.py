"""A row of a sweep predicted again, to look inside: only where the prediction is still the file's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from simulator.base.errors import ShadowlineError
from simulator.model.hub import needs_network
from simulator.policies import without_kernel

if TYPE_CHECKING:
    from reports.rows import Sweep
    from simulator.inference.group import Group
    from simulator.results.answer import Row
    from simulator.results.prediction import Prediction
    from simulator.scenario.grid import Grid
    from simulator.scenario.scenario import Scenario

SAME = 1e-4
"""Relative difference up to which a row is the prediction of today; the file is read as float32."""


@dataclass(frozen=True, eq=False)
class Inside:
    """A row with its breakdown, and the same scenario without policies."""

    scenario: Scenario
    prediction: Prediction
    dense: Prediction

    @property
    def group(self) -> Group:
        """What the row holds fixed."""
        from simulator.inference.group import group_of

        return group_of(self.scenario)


def inside(sweep: Sweep, written: Row) -> Inside | str:
    """The row's breakdown, or why there is none."""
    from simulator.results.prediction import predict

    problem = "the sweep's plan does not name its scenario"
    for scenario in _scenarios(sweep, written):
        try:
            prediction = predict(scenario)
            dense = predict(scenario.dense.model_copy(update={"trace": "", "trace_transfer": False}))
        except ShadowlineError as error:
            problem = str(error)
            continue
        now = prediction.answer
        if now.device != written.device or not now.timed:
            continue
        if abs(written.e2e_s.mid / now.e2e_s.mid - 1.0) <= SAME:
            return Inside(scenario, prediction, dense)
        problem = "profiles or fits have changed since the sweep was written; sweep again to see inside"
    return problem


def _scenarios(sweep: Sweep, row: Row) -> Iterator[Scenario]:
    """Scenarios of the plan that may have made the row, at its load."""
    cut = {"tp": int(row.tp), "pp": int(row.pp), "ep": int(row.ep)}
    words = {"policy": without_kernel(row.policy), "speculate": row.speculate, "engine": row.engine}
    wanted: dict[str, str | int] = {**words, **cut}
    load = {"batch": int(row.batch), "prompt_tokens": int(row.prompt_tokens), "output_tokens": int(row.output_tokens)}
    for grid in _grids(sweep):
        if load["batch"] not in grid.batch or load["prompt_tokens"] not in grid.prompt_tokens:
            continue
        if any(value not in getattr(grid, axis) for axis, value in wanted.items()):
            continue
        # A file of somebody else's may name any model: none is fetched for it.
        local = tuple(m for m in grid.model if isinstance(m, str) and not needs_network(m))
        try:
            for s in replace(grid, model=local, **{k: (v,) for k, v in wanted.items()}).groups():
                if (*_named(s), s.policies.kernel) == (row.model, row.device, row.kernel):
                    yield s.model_copy(update=load)
        except ShadowlineError:
            continue


def _grids(sweep: Sweep) -> list[Grid]:
    from simulator.scenario.grid import Grid

    out = []
    for values in sweep.plan.get("grids", ()):
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        try:
            out.append(Grid(**given))
        except (ShadowlineError, TypeError, ValueError):
            continue
    return out


def _named(scenario: Scenario) -> tuple[str, str]:
    from simulator.scenario.catalogue import CATALOGUE

    return CATALOGUE.model(scenario.model).name, CATALOGUE.device(scenario.device).name
