"""Which published rows count: a rule that looks at the setup only, applied before anything is predicted."""

from __future__ import annotations

from fnmatch import fnmatchcase

from simulator.claims.metrics import NEEDS_OUTPUT, base
from simulator.claims.rows import Claim

PRIMARY = (
    "read-primary",
    "fig-digitised",
    "seen in paper text",
    "seen in repo",
    "seen in paper figure (vector read-off, about 3%)",
)
"""Certainties of figures read in the paper or in its own repository."""
ROWS_ONLY = ("mlp.*", "attn.qkv", "attn.o", "lm_head", "predictor.*")
"""Ops whose size does not depend on the context."""


def why_not(claim: Claim) -> str | None:
    """Why `claim` is not counted, or None.

    It names the model (a kernel: its shape), the device, the batch, and the prompt or context where
    the figure depends on it; and somebody read it at its primary source.
    """
    if claim.certainty not in PRIMARY:
        return f"certainty: {claim.certainty}"
    for scenario in (claim.scenario, claim.baseline):
        if scenario is None:
            continue
        missing = _missing_kernel(scenario) if claim.kind == "kernel" else _missing(scenario, claim)
        if missing:
            return f"setup: no {missing}"
    return None


def _missing(scenario: dict[str, object], claim: Claim) -> str | None:
    needed = ["model", "device", "batch", "prompt_tokens"]
    if base(claim.metric) in NEEDS_OUTPUT:
        needed.append("output_tokens")
    return next((n for n in needed if n not in scenario), None)


def _missing_kernel(scenario: dict[str, object]) -> str | None:
    if "model" not in scenario and "shape" not in scenario:
        return "model or shape"
    needed = ["device", "batch"]
    ops = scenario["ops"]
    roles = [str(op) for op in ops] if isinstance(ops, list | tuple) else []
    prefill = scenario.get("phase") == "prefill"
    if prefill or not all(any(fnmatchcase(r, rows) for rows in ROWS_ONLY) for r in roles):
        needed.append("tokens")
    return next((n for n in needed if n not in scenario), None)
