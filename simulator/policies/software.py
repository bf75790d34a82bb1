"""Which software runs a policy, read from ``software.toml``."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources

from pydantic import BaseModel, ConfigDict

from simulator.base.files import parse_toml


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


@lru_cache(maxsize=1)
def software() -> dict[str, Software]:
    """Software by policy name, of ``simulator/policies/software.toml``."""
    text = resources.files("simulator.policies").joinpath("software.toml").read_text("utf-8")
    table = parse_toml(text, "simulator/policies/software.toml")
    return {name: Software(**entry) for name, entry in table.items()}
