"""A policy from somebody else's package: found through its entry point, bound by the same laws."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = '''
from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from simulator.ops.ops import Attention
from simulator.policies import POLICIES, Aspect, Policy


@POLICIES.register("every_other")
class EveryOther(Policy):
    """Keeps a share of the context."""

    name: ClassVar[str] = "every_other"
    family: ClassVar[str] = "outside"
    summary: ClassVar[str] = "every other token"
    aspects: ClassVar = frozenset({Aspect.KV_TOKENS})
    citation: ClassVar[str] = "nobody 2026"

    keep: float = Field(0.5, gt=0.0, le=1.0, description="share of tokens kept")

    def rewrite(self, op, ctx):
        if isinstance(op, Attention) and op.phase == "decode":
            return (replace(op, attended=op.tokens * self.keep),)
        return (op,)

    def layout(self, kv, ctx):
        return replace(kv, keep=self.keep)
'''
LAWS = """
import json
import numpy as np
from simulator.base.dtypes import FORMATS
from simulator.model.hub import find_model
from simulator.inference.lowering import Lowering
from simulator.policies import parse
from simulator.ops.step import decode_step

def useful(policy):
    low = Lowering(find_model("llama-2-7b"), parse(policy), FORMATS["fp16"], 2.0)
    ops = low.ops(decode_step(3.0, 1000.0))
    return float(sum(np.sum(o.traffic().total_bytes * np.asarray(o.count)) for o in ops))

names = ("dense", "every_other(keep=1)", "every_other(keep=0.25)", "every_other+w4a16")
print(json.dumps([useful(n) for n in names]))
"""


@pytest.fixture
def outside(tmp_path: Path) -> dict[str, str]:
    """Environment in which a tiny package is installed."""
    (tmp_path / "tiny_policy.py").write_text(MODULE, encoding="utf-8")
    info = tmp_path / "tiny_policy-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-policy\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[shadowline.policies]\ntiny = tiny_policy\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)}


def run(env: dict[str, str], *arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_listed_beside_ours(outside: dict[str, str]) -> None:
    listed = json.loads(run(outside, "-m", "simulator.policies", "--json"))["rows"]
    mine = next(r for r in listed if r["policy"] == "every_other")
    assert mine["family"] == "outside"
    assert mine["parameters"] == [
        {"name": "keep", "default": 0.5, "range": "above 0 to 1", "meaning": "share of tokens kept"}
    ]
    assert {"quest", "dense", "snapkv"} < {r["policy"] for r in listed}


def test_it_predicts_and_obeys_the_laws(outside: dict[str, str]) -> None:
    """1000 of 3 x 524,288 B tokens: keep 1 is dense, keep 1/4 saves three quarters of the KV reads."""
    dense, whole, quarter, with_w4 = json.loads(run(outside, "-c", LAWS))
    assert whole == dense
    assert dense - quarter == pytest.approx(0.75 * 3 * 1000 * 524_288)
    assert with_w4 < dense - 0.5 * 3 * 1000 * 524_288
    answer = json.loads(
        run(
            outside,
            "-m",
            "simulator.predict",
            "--json",
            "--model",
            "llama-2-7b",
            "--device",
            "a100-sxm-80g",
            "--prompt-tokens",
            "3000",
            "--policy",
            "every_other(keep=0.2)",
        )
    )
    assert answer["rows"][0]["policy"] == "every_other(keep=0.2)"
    assert answer["rows"][0]["status"] == "ok"
    assert answer["rows"][0]["tpot_speedup"] > 1.0
