"""What a trained predictor holds is what the policy charges, and tables on disk stay out of memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch not installed")

from simulator.base.dtypes import FORMATS  # noqa: E402
from simulator.inference.lowering import Lowering  # noqa: E402
from simulator.model.hub import from_file  # noqa: E402
from simulator.ops.ops import Linear  # noqa: E402
from simulator.ops.step import decode_step  # noqa: E402
from simulator.policies import parse  # noqa: E402
from simulator.trace import ModelFacts  # noqa: E402
from traces.predictors import fit, parameter_count, readers  # noqa: E402
from traces.shadow import OF_SHIPPED, SHIPPED  # noqa: E402
from traces.table_on_disk import TableOnDisk, mean_over_tokens  # noqa: E402

pytestmark = pytest.mark.torch
RANK = 64
SPELLED = {"shadowllm": f"shadowllm(rank={RANK})", "dejavu": f"dejavu(mlp_rank={RANK},attn_rank={RANK})"}


def charged(spec: Any, policy: str) -> int:
    """Elements of the predictors' matrices that one decoded token reads, as the simulator has it."""
    lowering = Lowering(spec.in_one_format(), parse(policy), FORMATS["fp16"], 2.0, 1)
    ops = lowering.ops(decode_step(1.0, 256.0))
    products = [o for o in ops if isinstance(o, Linear) and o.role.startswith("predictor.")]
    return round(sum(float(o.weight_read_bytes * np.max(o.count)) for o in products) / 2)


@pytest.mark.parametrize("method", sorted(SPELLED))
@pytest.mark.parametrize("name", OF_SHIPPED)
def test_a_trained_predictor_is_as_large_as_the_policy_says(name: str, method: str) -> None:
    """Equal but for biases, which no product charges, and layer 0's heads, which run dense: within 3 %."""
    spec = from_file(SHIPPED / name / "model")
    facts = ModelFacts.of(spec)
    layers, d, heads, neurons = facts.n_layers, facts.hidden, facts.n_heads, facts.intermediate
    plan = readers(method, layers)
    inputs = {(r.site, r.at): torch.rand(8, d) for r in plan}
    targets = {"heads": torch.rand(8, layers, heads), "neurons": torch.rand(8, layers, neurons)}
    nets, _ = fit(method, inputs, targets, rank=RANK, seed=0, epochs=1, batch=8)
    biases = sum(RANK + len(r.layers) * (heads if r.kind == "heads" else neurons) for r in plan)
    # Deja Vu's layer 0 would have a predictor of its own; ShadowLLM's one would have a few more outputs.
    first_heads = RANK * heads + (d * RANK if method == "dejavu" else 0)
    measured, by_policy = parameter_count(nets), charged(spec, SPELLED[method])
    assert measured == by_policy + biases - first_heads
    assert by_policy == pytest.approx(measured, rel=0.03)


def test_tables_on_disk_are_read_and_trained_on_as_tensors_are(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    values = {"x": torch.rand(600, 12, generator=draw), "heads": torch.rand(600, 2, 3, generator=draw)}
    values["neurons"] = torch.rand(600, 2, 5, generator=draw)
    tables = {}
    for name, value in values.items():
        tables[name] = TableOnDisk.empty(tmp_path / name, tuple(value.shape), "float32")
        for at in range(0, 600, 200):
            tables[name].write(slice(at, at + 200), value[at : at + 200])
    rows = torch.tensor([599, 0, 7])
    assert torch.equal(tables["x"][rows], values["x"][rows])
    assert torch.equal(tables["heads"][::64], values["heads"][::64])
    assert torch.allclose(mean_over_tokens(tables["heads"]), values["heads"].mean(0), atol=1e-6)
    of_disk, of_memory = (
        fit(
            "shadowllm",
            {("attn.o", 0): data["x"]},
            {kind: data[kind] for kind in ("heads", "neurons")},
            rank=4,
            seed=0,
            epochs=2,
        )
        for data in (tables, values)
    )
    assert of_disk[1] == of_memory[1]
    for a, b in zip(of_disk[0].parameters(), of_memory[0].parameters(), strict=True):
        assert torch.equal(a, b)


PEAK = """
import resource, sys, torch
from pathlib import Path
from traces.table_on_disk import TableOnDisk, mean_over_tokens
table = TableOnDisk.empty(Path(sys.argv[1]), (4096, 30, 1536), "float16")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for at in range(0, 4096, 256):
    table.write(slice(at, at + 256), torch.ones(256, 30, 1536, dtype=torch.float16))
assert (mean_over_tokens(table) == 1.0).all()
for rows in torch.randperm(4096).split(64):
    table[rows]
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_a_table_of_400_mb_takes_a_quarter_of_it_in_memory(tmp_path: Path) -> None:
    """4096 tokens of SmolLM2's neurons, 378 MB: written, averaged and drawn from in random order."""
    found = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "table")], capture_output=True, text=True, check=True
    )
    assert float(found.stdout) < 140.0
