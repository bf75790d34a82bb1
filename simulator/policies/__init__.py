"""Sparsity policies: one family per file, found by name.

Ours register through the same entry points (group ``shadowline.policies``) as anyone else's.
"""

from simulator.policies.base import Aspect, Compatibility, Context, KvLayout, Policy
from simulator.policies.grammar import FREE, POLICIES, Policies, expand, free_names, parse

__all__ = [
    "FREE",
    "POLICIES",
    "Aspect",
    "Compatibility",
    "Context",
    "KvLayout",
    "Policies",
    "Policy",
    "expand",
    "free_names",
    "parse",
]
