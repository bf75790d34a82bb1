"""Shadowline in Python: one import for each question, the very functions the verbs call.

``from simulator.api import predict`` is the function; ``simulator.predict`` is the module behind ``python -m``.
Names, arguments and units of this module are stable as ``docs/stability.md`` says; deeper modules may change any day.
Units are SI and part of the name, names and values are checked, and what cannot be used is an `InputError` of one line.

Examples
--------
>>> from simulator.api import Grid, Scenario, predict, sweep, verdict
>>> scenario = Scenario(model="llama-3.1-8b", device="h100-sxm", policy="kv_quant(bits=4)", batch=16)
>>> prediction = predict(scenario)
>>> prediction.answer.status, prediction.answer.bound, str(verdict(prediction.answer.speedup))
('ok', 'weight reads', 'undecided')
>>> table = sweep(Grid(model=("llama-3.1-8b",), device=("l40s", "h100-sxm"), batch=(1, 16))).to_pandas()
>>> table[["device", "batch", "tokens_per_s"]].shape
(4, 3)
"""

from __future__ import annotations

from simulator.base.errors import InputError, NothingFeasibleError, ShadowlineError
from simulator.device.catalogue import Device, edited, list_devices
from simulator.inference.oracle import Oracle, oracle
from simulator.inference.step import StepTime
from simulator.model.hub import list_models
from simulator.model.spec import ModelSpec
from simulator.policies import POLICIES, Policy
from simulator.results.answer import Answer
from simulator.results.prediction import Prediction, predict
from simulator.results.swept import Swept, sweep
from simulator.results.verdict import Verdict, verdict
from simulator.scenario.catalogue import CATALOGUE
from simulator.scenario.grid import Grid
from simulator.scenario.scenario import Scenario
from simulator.serving.planning import plan
from simulator.serving.requests import Requests
from simulator.serving.runs import Run, serve
from simulator.serving.scheduler import Scheduler
from simulator.serving.search import Plan
from simulator.serving.traffic import traffic

__all__ = [
    "Answer",
    "Device",
    "Grid",
    "InputError",
    "ModelSpec",
    "NothingFeasibleError",
    "Oracle",
    "Plan",
    "Policy",
    "Prediction",
    "Requests",
    "Run",
    "Scenario",
    "Scheduler",
    "ShadowlineError",
    "StepTime",
    "Swept",
    "Verdict",
    "device",
    "devices",
    "edited",
    "model",
    "models",
    "oracle",
    "plan",
    "policies",
    "policy",
    "predict",
    "serve",
    "sweep",
    "traffic",
    "verdict",
]


def models() -> tuple[str, ...]:
    """Names of the bundled models, sorted.

    Examples
    --------
    >>> from simulator.api import models
    >>> "llama-3.1-8b" in models()
    True
    """
    return list_models()


def model(name: str) -> ModelSpec:
    """What is read of a model: bundled name or alias, folder, ``config.json`` or hub id.

    Raises
    ------
    InputError
        Nothing of that name, with the nearest; a config that cannot be read.

    Examples
    --------
    >>> from simulator.api import model
    >>> model("llama-2-7b").n_layers, model("llama-2-7b").kv_bytes_per_token(2.0)
    (32, 524288.0)
    """
    return CATALOGUE.model(name)


def devices() -> tuple[str, ...]:
    """Names of all devices, the user's own included, sorted.

    Examples
    --------
    >>> from simulator.api import devices
    >>> "h100-sxm" in devices()
    True
    """
    return list_devices()


def device(name: str) -> Device:
    """Device by name, alias, driver string or profile file; an edited profile is read anew.

    Raises
    ------
    InputError
        Nothing of that name, with the nearest; ``file:line`` of what is wrong in a profile.

    Examples
    --------
    >>> from simulator.api import device, edited
    >>> card = device("H100 SXM")
    >>> card.name, edited(card, {"price": "2 USD/h"}).price_usd_per_h.value
    ('h100-sxm', 2.0)
    """
    return CATALOGUE.device(name)


def policies() -> tuple[str, ...]:
    """Names of all policies, those of other packages included, in the order of registration.

    Examples
    --------
    >>> from simulator.api import policies
    >>> {"dense", "mustafar", "quest"} <= set(policies())
    True
    """
    return tuple(POLICIES)


def policy(name: str) -> type[Policy]:
    """Class of a policy: its parameters are its fields.

    Examples
    --------
    >>> from simulator.api import policy
    >>> sorted(policy("w4a16").model_fields)
    ['group']
    """
    return POLICIES[name]
