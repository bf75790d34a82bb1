"""What several unit tests share: synthetic traces of known truth, and an interpreter of one's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from simulator.model.hub import find_model
from simulator.trace import ROWS, TABLES, Manifest, ModelFacts, write_trace

KEEPS = (0.1, 0.25, 0.5)
Density = Callable[[float, np.ndarray, int], np.ndarray]
B = np.array(ROWS, float)
FULL = 1e-8
"""A measured density closer to 1 than this counts as 1: its logarithm must stay finite."""


def power_law(keep: float, rows: np.ndarray, layer: int) -> np.ndarray:
    """Every layer alike: B rows touch what sqrt(B) independent ones would."""
    return 1.0 - (1.0 - keep) ** np.sqrt(rows)


def by_depth(keep: float, rows: np.ndarray, layer: int) -> np.ndarray:
    """Layers differ: the exponent of B is 1/4 in even layers, 3/4 in odd ones."""
    return 1.0 - (1.0 - keep) ** rows ** (0.25 if layer % 2 == 0 else 0.75)


def manifest_of(model: str, **changes: Any) -> Manifest:
    values = {
        "model": model,
        "config_sha256": "0" * 64,
        "facts": ModelFacts.of(find_model(model)),
        "text_sha256": "1" * 64,
        "tokens": 1000,
        "seed": 0,
        "dtype": "bf16",
        "versions": {"python": "3.12"},
        "created": "2026-11-21",
    }
    return Manifest(**(values | changes))


def curves_of(
    n_layers: int,
    density: Density = power_law,
    tensors: tuple[str, ...] = ("ffn.down", "attn.head"),
    keeps: tuple[float, ...] = KEEPS,
) -> dict[str, Any]:
    rows = [
        (layer, -1, tensor, "union_density", keep, b, d, 64)
        for layer in range(n_layers)
        for tensor in tensors
        for keep in keeps
        for b, d in zip(B, density(keep, B, layer), strict=True)
    ]
    return dict(zip(TABLES["curves.parquet"], map(list, zip(*rows, strict=True)), strict=True))


NEURONS = {"layer": [0, 0], "neuron": [1, 0], "keep": [np.nan] * 2, "frequency": [0.75, 0.25]}


def quality_rows(*rows: dict[str, Any]) -> dict[str, list[Any]]:
    base = {
        "policy": "shadowllm(keep=0.5)",
        "method": "shadowllm",
        "criterion": "plainact",
        "targets": "layer",
        "budget": "global",
        "mask": "token",
        "sparsity": 0.5,
        "seed": 0,
        "tokens": 1000,
        "context": 384.0,
        "perplexity": 20.0,
        "dense_perplexity": 10.0,
        "agreement": 0.7,
        "recall": 0.5,
        "rank_correlation": 0.5,
        "weight_bytes_share": 0.5,
        "flop_share": 0.5,
    }
    return {c: [(base | row)[c] for row in rows] for c in TABLES["quality.parquet"]}


QUALITY = quality_rows(
    {"policy": "shadowllm(keep=0.3)", "sparsity": 0.7, "perplexity": 40.0, "agreement": 0.5},
    {"perplexity": 16.0},
    {"perplexity": 25.0, "seed": 1},
    {"policy": "shadowllm(keep=0.7)", "sparsity": 0.3, "perplexity": 12.0, "agreement": 0.9},
    {"policy": "oracle(keep=0.5)", "method": "oracle", "perplexity": 11.0},
)


def make(folder: Path, model: str = "opt-6.7b", **options: Any) -> Path:
    quality = options.pop("quality", None)
    curves = curves_of(find_model(model).n_layers, **options)
    return write_trace(folder, manifest_of(model), curves=curves, neurons=NEURONS, quality=quality)


@pytest.fixture(scope="session")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of opt-6.7b with layers that differ, and quality."""
    return make(tmp_path_factory.mktemp("opt") / "trace", density=by_depth, quality=QUALITY)


@pytest.fixture(scope="session")
def synthetic() -> SimpleNamespace:
    """Builders of traces whose densities are 1 - (1 - keep)^(B^power)."""
    return SimpleNamespace(
        power_law=power_law,
        by_depth=by_depth,
        manifest_of=manifest_of,
        curves_of=curves_of,
        neurons=NEURONS,
        quality_rows=quality_rows,
        quality=QUALITY,
        make=make,
    )


OBEY = """
import json, sys
for line in sys.stdin:
    exec(json.loads(line), space := {})
    print(json.dumps(space.get("answer")), flush=True)
"""


class Child:
    """Another interpreter that runs what it is told, so that heavy imports are paid once and may run ahead."""

    def __init__(self, environment: dict[str, str]):
        self.process = subprocess.Popen(
            [sys.executable, "-c", OBEY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def tell(self, code: str) -> None:
        """Have it run `code`, without waiting."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """What the next code it was told bound to ``answer``; None also where it died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def ask(self, code: str) -> Any:
        """Run `code` and return what it bound to ``answer``."""
        self.tell(code)
        return self.answer()


@pytest.fixture(scope="module")
def child() -> Iterator[Callable[..., Child]]:
    """Start interpreters that end with the module: ``child(NAME=value)``; None takes NAME out of the environment."""
    started: list[Child] = []

    def start(**changes: str | None) -> Child:
        merged = {**os.environ, **changes}
        started.append(Child({k: v for k, v in merged.items() if v is not None}))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()
