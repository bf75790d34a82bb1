"""Which kernel a policy is taken to run in: whose it is, what is known of it, and how it changes the ops."""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from importlib import resources
from typing import Any

from pydantic import BaseModel, ConfigDict

from simulator.base.files import parse_toml
from simulator.policies.software import software

PUBLISHED, IDEAL = "published", "ideal"
"""In the place of a kernel's name: the first of the policy's own, and the bound of `simulator.policies.ideal`."""
PAPER = "paper"
"""Name of the kernel of a policy of which nothing else is known."""


class Evidence(StrEnum):
    """Why we believe a kernel's times, the best first."""

    MEASURED = "measured"
    """Timings of this kernel are among the rows that fits were made of or are judged by."""
    CLAIMS = "claims"
    """Published speed-ups of it are among the claims, which no constant was fitted to."""
    ASSUMED = "assumed"
    """Counted from its paper or its code; nobody's figures were compared."""


class Kernel(BaseModel):
    """A kernel, or the set of kernels, that computes a policy.

    Attributes
    ----------
    name : str
        What ``--kernel`` takes.
    title : str
        What it does that another kernel of the method does not.
    release : str
        Engine and release, library or repository it is of.
    source : str
        Address of its code, or of the figures.
    evidence : Evidence
        Why its times are believed.
    rows : str
        What the evidence is: measured rows and their sources, or papers.
    sets : dict
        Parameters of the policy that mean this kernel; those not named stay as they are.
    engines : tuple of str
        Families of engines that run the policy in it; "published" means it there.
    lean : bool
        Of several, the one that does least: a bound starts from its ops.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    release: str = ""
    source: str = ""
    evidence: Evidence = Evidence.ASSUMED
    rows: str = ""
    sets: dict[str, str] = {}
    engines: tuple[str, ...] = ()
    lean: bool = False

    def runs_in(self, engine: str) -> bool:
        """Whether `engine`, of any release or one's own, runs the policy in this kernel."""
        return engine.partition("@")[0].partition("-")[0] in self.engines

    @property
    def believed(self) -> str:
        """``measured (58 rows of CLASP)``, ``assumed``."""
        return f"{self.evidence} ({self.rows})" if self.rows else str(self.evidence)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return self.model_dump(mode="json")


@lru_cache(maxsize=1)
def table() -> dict[str, tuple[Kernel, ...]]:
    """Kernels by policy name, the published one first, of ``simulator/policies/kernels.toml``."""
    text = resources.files("simulator.policies").joinpath("kernels.toml").read_text("utf-8")
    entries = parse_toml(text, "simulator/policies/kernels.toml")
    return {name: tuple(Kernel(**entry) for entry in kernels) for name, kernels in entries.items()}


def papers_own(policy: str) -> Kernel:
    """The kernel of a policy that `table` does not list: as its paper describes it."""
    known = software().get(policy)
    code = known.code if known else ""
    return Kernel(name=PAPER, title="as the paper describes it", release=code, source=f"https://{code}" if code else "")
