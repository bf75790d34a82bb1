"""Measured prompts of whole models under a mask, answered by the prediction of that model and policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from simulator.inference import paired
from simulator.inference.evaluate import evaluate
from simulator.inference.group import group_of
from simulator.scenario.scenario import Scenario

if TYPE_CHECKING:
    import pandas as pd

FAMILY = "MInference"
SETUPS = {
    "MInference w/ SGLang kernels": ("llama-3-8b-1m", "minference"),
    "TriangleMix": ("llama-3.1-8b", "trianglemix"),
}
"""Model and policy of the rows by kernel; both run in Hugging Face's transformers, in bf16."""


def speedup(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Speed-up of the first token of prepared `rows` and its 90 % interval, shape (rows,) [-]."""
    out = np.full((3, len(rows)), np.nan)
    for key, at in rows.groupby(["device", "library"]).indices.items():
        device, library = (str(part) for part in cast("tuple[object, ...]", key))
        model, policy = SETUPS[library]
        group = group_of(
            Scenario.of(model=model, device=device, policy=policy, engine="hf", dtype="bf16", ignore_context_limit=True)
        )
        batch, prompt = (rows[c].to_numpy(float)[at] for c in ("batch", "q_len"))
        own, dense = (evaluate(g, batch, prompt, np.ones(len(at))) for g in (group, group.dense))
        found = paired.ttft(own, dense)
        out[:, at] = found.mid, found.lo, found.hi
    return out[0], out[1], out[2]
