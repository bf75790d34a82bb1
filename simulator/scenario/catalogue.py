"""From the names in a scenario to models, devices, traces and groups: the only memory of what lies in files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from simulator.base import console
from simulator.base.errors import InputError, fold
from simulator.base.memo import Memo, stamp, stamp_of_files
from simulator.device.catalogue import Device
from simulator.device.catalogue import load as load_device
from simulator.model import hub
from simulator.model.spec import ModelSpec
from simulator.scenario.scenario import Scenario
from simulator.trace import Manifest, ModelFacts, QualityFile, Trace, read_manifest, read_quality, read_trace


class Catalogue:
    """What names mean now: a profile, config or trace that is edited answers anew in the same process."""

    def __init__(self) -> None:
        self._models: Memo[ModelSpec] = Memo(256)
        self._traces: Memo[Trace] = Memo(64)
        self._qualities: Memo[QualityFile] = Memo(64)
        self.groups: Memo[Any] = Memo(512)
        """What `simulator.inference.group.group_of` makes of them."""

    def model(self, name: str) -> ModelSpec:
        """Model by name, folder, file or hub id."""
        found = hub.locate(name)
        return self._models(found, found.stamp, lambda: hub.read(found))

    def device(self, name: str) -> Device:
        """Device by name, alias, driver string or profile file, with the fits measured on it."""
        return load_device(name)

    def trace(self, folder: str) -> Trace:
        """Trace of a folder, checked."""
        return self._traces(folder, stamp_of_files(Path(folder)), lambda: read_trace(folder))

    def quality(self, path: str) -> QualityFile:
        """Measured quality of a file, checked."""
        return self._qualities(path, stamp(Path(path)), lambda: read_quality(path))

    def content(self, scenario: Scenario) -> str:
        """Text that is another one where a file behind a name of `scenario` has changed."""
        device = self.device(scenario.device)
        trace = self.trace(scenario.trace).digest if scenario.trace else ""
        model, quality = hub.locate(scenario.model).stamp, stamp(Path(scenario.quality))
        return repr((device.profile_hash, device.measured.digest, model, trace, quality))

    def trace_for(self, scenario: Scenario, model: ModelSpec) -> Trace | None:
        """Trace that `scenario` names for `model`, checked; None where it names none."""
        if not scenario.trace:
            return None
        trace = self.trace(scenario.trace)
        if not scenario.trace_transfer and not fits(trace.manifest, model):
            raise _other_model(scenario.trace, trace.manifest, model)
        return trace

    def quality_for(self, scenario: Scenario, model: ModelSpec) -> QualityFile | None:
        """Measured quality that `scenario` names for `model`; None where it names none."""
        if not scenario.quality:
            return None
        found = self.quality(scenario.quality)
        if not fits(found, model):
            raise InputError(
                f"{scenario.quality} was measured on {_facts(found.model, found.facts)}, not on"
                f" {_facts(model.name, ModelFacts.of(model))}; measure it with python -m traces.quality",
                where="--quality",
            )
        return found


CATALOGUE = Catalogue()
"""That of the process."""


def say_notes(models: Iterable[str]) -> None:
    """One line on stderr for what is left out of each of these models."""
    for name in dict.fromkeys(models):
        model = CATALOGUE.model(name)
        for note in model.notes:
            console.say(f"note: {model.name}: {note}")


def fits(manifest: Manifest | QualityFile, model: ModelSpec) -> bool:
    """Whether a trace or a quality was measured on `model`: by name, and by shape and activation."""
    if manifest.facts != ModelFacts.of(model):
        return False
    try:
        return hub.resolve(manifest.model) == model.name
    except InputError:
        return fold(manifest.model.rpartition("/")[2]) == fold(model.name)


def pick_trace(paths: tuple[str, ...], model: ModelSpec, *, transfer: bool) -> str:
    """Folder of the trace for `model` among `paths`; "" where there are none.

    Raises
    ------
    InputError
        No trace of the model without `transfer`, or more than one that could be meant.
    """
    if not paths:
        return ""
    manifests = {path: read_manifest(path)[0] for path in paths}
    own = [path for path, manifest in manifests.items() if fits(manifest, model)]
    found = own or (list(paths) if transfer else [])
    if len(found) > 1:
        raise InputError(f"{' and '.join(found)} could all stand for {model.name}; give one of them", where="--trace")
    if not found:
        raise _other_model(paths[0], manifests[paths[0]], model)
    return found[0]


def _other_model(path: str, manifest: Manifest, model: ModelSpec) -> InputError:
    return InputError(
        f"{path} was measured on {_facts(manifest.model, manifest.facts)}, not on"
        f" {_facts(model.name, ModelFacts.of(model))}; give a trace of it, or --trace-transfer to map the"
        " layers by relative depth",
        where="--trace",
    )


def _facts(name: str, facts: ModelFacts) -> str:
    return f"{name} ({facts.n_layers} layers of {facts.hidden}/{facts.intermediate}, {facts.activation})"
