"""Fewer experts: some removed for good, or fewer of the chosen ones run per token."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from simulator.base.dtypes import Format
from simulator.model.layer import MoeSpec
from simulator.model.spec import ModelSpec
from simulator.ops.ops import Linear, Moe, Op
from simulator.policies.base import Aspect, Context, Policy, Swept, alias
from simulator.policies.grammar import POLICIES


def _experts(model: ModelSpec) -> list[MoeSpec]:
    return [layer.ffn for layer in model.layers if isinstance(layer.ffn, MoeSpec)]


@POLICIES.register("expert_pruning")
class ExpertPruning(Policy):
    """A share `keep` of each layer's routed experts stays; every token is routed to as many as before [1]_.

    Memory holds ``round(keep n)`` experts and a router of as many columns. A step reads the experts that its tokens
    reach, of fewer: less at large batches, as much at batch 1.

    References
    ----------
    .. [1] Lu et al., "Not All Experts are Equal", ACL 2024, arXiv:2402.14800.
    """

    name: ClassVar[str] = "expert_pruning"
    family: ClassVar[str] = "weights"
    summary: ClassVar[str] = "routed experts removed, routing among the rest"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.WEIGHT_SHAPE})
    citation: ClassVar[str] = "Lu et al. 2024, arXiv:2402.14800"
    not_modelled: ClassVar[str] = "accuracy; experts that are merged, not dropped"
    always_shown: ClassVar[tuple[str, ...]] = ("keep",)
    swept: ClassVar[Swept | None] = ("keep", "share")

    keep: float = Field(0.75, gt=0.0, le=1.0, description="share of the routed experts kept")

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """Experts to remove, and enough left to route to."""
        found = _experts(model)
        if not found:
            return f"{model.name} has no routed experts"
        for moe in found:
            if self._left(moe.n_experts) < moe.top_k:
                return f"keep={self.keep:g} leaves {self._left(moe.n_experts)} experts where a token uses {moe.top_k}"
        return None

    def _left(self, experts: int) -> int:
        return max(round(self.keep * experts), 1)

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Fewer experts behind a narrower router."""
        if isinstance(op, Moe):
            return (replace(op, n_experts=self._left(round(float(op.n_experts)))),)
        if isinstance(op, Linear) and op.role == "moe.router":
            return (replace(op, n=float(self._left(round(float(op.n))))),)
        return (op,)


POLICIES.register("reap")(
    alias(
        ExpertPruning,
        "reap",
        "half of the experts removed by router weight times output norm",
        "Lasby et al. 2025, arXiv:2510.13999",
        keep=0.5,
    )
)


@POLICIES.register("expert_skipping")
class ExpertSkipping(Policy):
    """A token runs only those of its chosen experts whose router weight is worth it, a mean share `keep` [1]_.

    ``keep top_k`` experts per token on average: less arithmetic, and fewer experts read where few tokens meet.
    Memory holds all.

    References
    ----------
    .. [1] Lu et al., "Not All Experts are Equal", ACL 2024, arXiv:2402.14800 (dynamic expert skipping).
    """

    name: ClassVar[str] = "expert_skipping"
    family: ClassVar[str] = "contextual activation"
    summary: ClassVar[str] = "weakly routed experts skipped token by token"
    aspects: ClassVar[frozenset[Aspect]] = frozenset({Aspect.WEIGHT_ROWS})
    citation: ClassVar[str] = "Lu et al. 2024, arXiv:2402.14800"
    not_modelled: ClassVar[str] = "accuracy; the comparison of router weights; experts that are popular"
    always_shown: ClassVar[tuple[str, ...]] = ("keep",)
    swept: ClassVar[Swept | None] = ("keep", "share")

    keep: float = Field(
        0.75, gt=0.0, le=1.0, description="share of the chosen experts run; 0.75 skips half the seconds"
    )

    def why_not(self, model: ModelSpec, fmt: Format) -> str | None:
        """Several experts per token."""
        found = _experts(model)
        if not found:
            return f"{model.name} has no routed experts"
        if any(self.keep * moe.top_k < 1.0 for moe in found):
            return f"keep={self.keep:g} leaves less than one expert per token"
        return None

    def rewrite(self, op: Op, ctx: Context) -> tuple[Op, ...]:
        """Fewer experts per token."""
        return (replace(op, top_k=op.top_k * self.keep),) if isinstance(op, Moe) else (op,)
