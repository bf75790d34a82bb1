"""Which software runs a policy, read from ``software.toml``."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from importlib import resources

from pydantic import BaseModel, ConfigDict

from simulator.base.files import parse_toml

NO_ENGINE = "kernels only"
"""Title of what stands in the place of an engine where only kernels are timed."""


class Software(BaseModel):
    """Where a policy can be run.

    Attributes
    ----------
    engine, until : str
        Serving engine that runs it, and the version or year that dropped it; empty where none did.
    code : str
        The authors' repository.
    needs, note : str
        What the published weights of a model do not give, and what else to know.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: str = ""
    until: str = ""
    code: str = ""
    needs: str = ""
    note: str = ""

    def dropped(self, policy: str) -> str:
        """``vLLM dropped nm24 in release 0.19.1 (...)``; "" where nothing did."""
        note = f" ({self.note})" if self.note else ""
        return f"{self.engine} dropped {policy} in {self.until}{note}" if self.until else ""

    def runs_in(self, policy: str, engine: str) -> str:
        """Where `policy` can be run, told to one who asked for an engine of that title."""
        if self.until:
            return self.dropped(policy)
        if not self.engine:
            return f"no engine runs {policy}; {f'research code: {self.code}' if self.code else 'no public code known'}"
        served = any(engine == name or engine.startswith(f"{name} ") for name in self.engine.split(", "))
        return f"{self.engine} {'runs' if ', ' not in self.engine else 'run'} {policy}" + (
            "" if served or engine == NO_ENGINE else f", {engine} does not"
        )

    @property
    def words(self) -> str:
        """The engine, else that there is code to try, else that none is known."""
        if self.until:
            return f"{self.engine} before {self.until}"
        return self.engine or ("research code" if self.code else "none known")

    @property
    def serves(self) -> bool:
        """A serving engine runs it today."""
        return bool(self.engine) and not self.until


def runs_in(policies: Iterable[str], engine: str) -> str:
    """Where each of `policies` can be run today, told to one who asked for an engine of that title; "" for none."""
    known = software()
    return "; ".join(known.get(name, Software()).runs_in(name, engine) for name in policies)


@lru_cache(maxsize=1)
def software() -> dict[str, Software]:
    """Software by policy name, of ``simulator/policies/software.toml``."""
    text = resources.files("simulator.policies").joinpath("software.toml").read_text("utf-8")
    table = parse_toml(text, "simulator/policies/software.toml")
    return {name: Software(**entry) for name, entry in table.items()}
