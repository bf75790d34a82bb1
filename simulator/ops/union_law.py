"""Which union over rows stands for a tensor that was not measured: one pretrained model's, or published routers'.

Units that a threshold picks (neurons behind SiLU or GELU, inputs of a matrix, heads) follow the curves of
SmolLM2-135M-Instruct, means over its layers; neurons of a ReLU follow the routers of OPT (`simulator.ops.union`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import NamedTuple

import numpy as np

from simulator.base.arrays import Array, log, log1p, maximum, minimum
from simulator.base.files import parse_toml
from simulator.ops.union import PUBLISHED, UnionTable, published

FILE = "union.toml"
RELU = "relu"
"""Name of the law of neurons behind a ReLU, beside the tensors of a trace."""
UNITS: Mapping[str, str] = {
    RELU: "ReLU neurons",
    "ffn.gate": "gates",
    "ffn.down": "neurons",
    "ffn.in": "inputs of gate and up",
    "attn.in": "inputs of q, k and v",
    "attn.o": "inputs of the output projection",
    "attn.head": "heads",
}
"""What a law is about, in words; each but the first is a tensor of a trace."""
_NEURONS = ("ffn.gate", "ffn.down")
_JUDGED = ("gelu",)
"""Activations of other models that the curves were judged on: Gemma 3 270M, median error of its neurons 0.2 %."""


@dataclass(frozen=True, slots=True)
class UnionLaw:
    """Where the union over the rows of a step was taken from.

    Attributes
    ----------
    units : str
        What is united, in words.
    source : str
        Whose measurement.
    rows : float
        Largest number of rows measured [-].
    log_error : float
        How far models differ: error of ln r(B) per ln B, r being the effective rows [-]; 0 for a model's own curve.
    """

    units: str
    source: str
    rows: float
    log_error: float

    def error(self, density: Array, rows: Array, whole: float = 0.0) -> Array:
        """Log error of what is read [-]; none for one row, and none where everything is touched.

        ``d ln(w + (1 - w) d) = (1 - w) (1 - d) (-ln(1 - d)) / (w + (1 - w) d) * log_error ln B``.

        Parameters
        ----------
        density : Array
            Share read, `whole` of it whatever is picked [-].
        """
        d = minimum(maximum((density - whole) / (1.0 - whole), 0.0), 1.0 - 1e-12)
        slope = (1.0 - whole) * (1.0 - d) * -log1p(-d) / maximum(density, 1e-12)
        return slope * log(maximum(rows, 1.0)) * self.log_error


def in_words(laws: Iterable[UnionLaw]) -> str:
    """What is united as whose measurement says, each source once."""
    by_source: dict[str, list[str]] = {}
    for law in laws:
        by_source.setdefault(law.source, []).append(law.units)
    return "; ".join(f"{', '.join(dict.fromkeys(units))} as {source}" for source, units in by_source.items())


class Touched(NamedTuple):
    """Share of the units that the rows of a step touch [-], and the law it follows."""

    density: Array
    law: UnionLaw


@cache
def _file() -> Mapping[str, Mapping]:
    text = resources.files("simulator.ops").joinpath(FILE).read_text("utf-8")
    return parse_toml(text, f"simulator/ops/{FILE}")


def kind(tensor: str, activation: str) -> str:
    """Name of the law of a tensor of a trace in a model of this activation."""
    return RELU if tensor in _NEURONS and activation.startswith("relu") else tensor


def between_models(name: str) -> float:
    """`UnionLaw.log_error` of the law `name` where one model stands for another: root mean square over models [-]."""
    if name == RELU:
        return float(_file()["union"][name]["log_error"])
    return float(np.sqrt(np.mean(np.square(list(apart(name).values())))))


def apart(name: str) -> Mapping[str, float]:
    """Error of ln r(B) per ln B of each model that the curves of the law `name` are not from [-]."""
    return _file()["union"][name]["apart"]


@cache
def default_law(name: str, model: str, activation: str) -> tuple[UnionTable, UnionLaw]:
    """Curves and their description where a model's own were not measured.

    Parameters
    ----------
    name : str
        As `kind` says.
    model, activation : str
        A model with a published router table uses its own; what an activation lacks is said.
    """
    if name == RELU:
        own = model in PUBLISHED
        source = f"the routers of {model if own else ', '.join(PUBLISHED)} (published)"
        table, error = published(model), 0.0 if own else between_models(name)
    else:
        file = _file()
        entry, source = file["union"][name], f"in {file['model']} ({file['activation']}, measured)"
        if name in _NEURONS and activation not in (file["activation"], *_JUDGED):
            source += f"; {activation} was not measured"
        table, error = UnionTable(np.array(file["rows"], float), np.array(entry["density"])), between_models(name)
    return table, UnionLaw(UNITS[name], source, float(table.rows[-1]), error)
