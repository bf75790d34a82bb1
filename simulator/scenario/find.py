"""From the names in a scenario to models, devices and traces."""

from __future__ import annotations

from functools import lru_cache

from simulator.base.errors import InputError, fold
from simulator.device.catalogue import Device
from simulator.device.catalogue import load as load_device
from simulator.model import hub
from simulator.model.spec import ModelSpec
from simulator.scenario.scenario import Scenario
from simulator.trace import Manifest, ModelFacts, Trace, read_manifest, read_trace


@lru_cache(maxsize=256)
def find_model(name: str) -> ModelSpec:
    """Model by name, folder, file or hub id, read once per process."""
    return hub.find_model(name)


def find_device(name: str) -> Device:
    """Device by name or profile file; an edited profile or fit answers anew."""
    return load_device(name)


@lru_cache(maxsize=64)
def find_trace(path: str) -> Trace:
    """Trace of a folder, read and checked once per process."""
    return read_trace(path)


def fits(manifest: Manifest, model: ModelSpec) -> bool:
    """Whether a trace was measured on `model`: by name, and by shape and activation."""
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


def trace_for(scenario: Scenario, model: ModelSpec) -> Trace | None:
    """Trace that `scenario` names for `model`, checked; None where it names none."""
    if not scenario.trace:
        return None
    trace = find_trace(scenario.trace)
    if not scenario.trace_transfer and not fits(trace.manifest, model):
        raise _other_model(scenario.trace, trace.manifest, model)
    return trace


def _other_model(path: str, manifest: Manifest, model: ModelSpec) -> InputError:
    return InputError(
        f"{path} was measured on {_facts(manifest.model, manifest.facts)}, not on"
        f" {_facts(model.name, ModelFacts.of(model))}; give a trace of it, or --trace-transfer to map the"
        " layers by relative depth",
        where="--trace",
    )


def _facts(name: str, facts: ModelFacts) -> str:
    return f"{name} ({facts.n_layers} layers of {facts.hidden}/{facts.intermediate}, {facts.activation})"
