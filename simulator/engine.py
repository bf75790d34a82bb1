"""Serving engines as data: which kernel libraries they call and what their host side costs."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from simulator.device import Device
from simulator.dtypes import Format
from simulator.errors import UnknownNameError


@dataclass(frozen=True)
class Engine:
    """What an inference engine adds to its kernels.

    Attributes
    ----------
    graph_decode, graph_prefill : bool
        Whether steps of that kind replay a CUDA graph.
    launch_eager_s, launch_graph_s : float
        Host seconds per kernel launch, one by one and inside a replayed graph [s].
    schedule_s : float
        Host seconds between two steps that the GPU waits for [s].
    row_s : float
        The part of that which grows with the batch [s per sequence].
    kernels : dict
        Preferred libraries per family, and per ``family.arch`` where they differ.
    """

    name: str
    title: str
    source: str
    graph_decode: bool
    graph_prefill: bool
    launch_eager_s: float
    launch_graph_s: float
    schedule_s: float
    row_s: float
    kernels: dict[str, str]

    def _kernel(self, device: Device, *keys: str) -> str | None:
        for key in keys:
            for full in (f"{key}.{device.arch}", key):
                if full in self.kernels:
                    return self.kernels[full]
        return None

    def gemm(self, device: Device, fmt: Format) -> str | None:
        """Library of the linear layers, None = the device's best measured."""
        return self._kernel(device, f"gemm.{fmt.name}", "gemm")

    def attention(self, device: Device, phase: str, kv_format: str) -> str | None:
        """Kernel generation of attention."""
        return self._kernel(
            device, f"attention.{phase}.{kv_format}", f"attention.{phase}", "attention"
        )

    def moe(self, device: Device, fmt: Format) -> str | None:
        """Fused expert kernel."""
        return self._kernel(device, f"moe.{fmt.name}", "moe")

    def elementwise(self, device: Device) -> str | None:
        """Norms and activations."""
        return self._kernel(device, "elementwise")

    def collective(self, device: Device, op: str) -> str | None:
        """Communication library."""
        return self._kernel(device, f"collective.{op}", "collective")

    def __hash__(self) -> int:
        return hash(self.name)


@lru_cache(maxsize=1)
def load_engines() -> dict[str, Engine]:
    """Engines of ``hw_profiles/engines.toml`` by name."""
    text = resources.files("hw_profiles").joinpath("engines.toml").read_text("utf-8")
    return {name: Engine(name=name, **table) for name, table in tomllib.loads(text).items()}


def get_engine(name: str) -> Engine:
    """Engine called `name`; an unknown one is an error with suggestions."""
    engines = load_engines()
    if name.casefold() not in engines:
        raise UnknownNameError("engine", name, engines, where="--engine")
    return engines[name.casefold()]
