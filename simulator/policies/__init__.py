"""Sparsity policies: one family per file, found by name.

Ours register through the same entry points (group ``shadowline.policies``) as anyone else's.
"""

from simulator.policies.base import Aspect, Compatibility, Context, KvLayout, Policy
from simulator.policies.grammar import POLICIES, Policies, expand, parse

__all__ = [
    "POLICIES",
    "Aspect",
    "Compatibility",
    "Context",
    "KvLayout",
    "Policies",
    "Policy",
    "expand",
    "parse",
]
