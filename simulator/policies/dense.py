"""No sparsity: the yardstick of every speed-up."""

from __future__ import annotations

from typing import ClassVar

from simulator.policies.base import Policy
from simulator.policies.grammar import POLICIES


@POLICIES.register("dense")
class Dense(Policy):
    """The model as published."""

    name: ClassVar[str] = "dense"
    family: ClassVar[str] = "dense"
    summary: ClassVar[str] = "the model as published; every speed-up is measured against it"
