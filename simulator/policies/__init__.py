"""Sparsity policies: one family per file, found by name.

Ours register through the same entry points (group ``shadowline.policies``) as anyone else's.
"""

from simulator.policies.base import ATTENTION_ASPECTS, Aspect, Compatibility, Context, KvLayout, Policy
from simulator.policies.grammar import (
    FREE,
    POLICIES,
    Policies,
    expand,
    free_names,
    in_kernel,
    parse,
    split,
    without_kernel,
)
from simulator.policies.kernel import IDEAL, PUBLISHED, Kernel

__all__ = [
    "ATTENTION_ASPECTS",
    "FREE",
    "IDEAL",
    "POLICIES",
    "PUBLISHED",
    "Aspect",
    "Compatibility",
    "Context",
    "Kernel",
    "KvLayout",
    "Policies",
    "Policy",
    "expand",
    "free_names",
    "in_kernel",
    "parse",
    "split",
    "without_kernel",
]
