"""Rules by which a recurrence changes its state: said by a model's layers, asked of a device's kernels."""

from __future__ import annotations

from typing import Literal, get_args

StateRule = Literal["gdn", "kda", "mamba1", "mamba2", "lightning", "rglru"]
"""Gated delta rule, Kimi delta attention, Mamba and Mamba-2, lightning attention, real-gated linear recurrent unit."""
RULES: tuple[StateRule, ...] = get_args(StateRule)
