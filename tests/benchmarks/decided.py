"""How many rows of a wide sweep are decided: every policy, four models, four devices; counted by verdict and policy.

``python tests/benchmarks/decided.py``
"""

from collections import Counter

import numpy as np

from simulator.api import Grid
from simulator.base import console
from simulator.policies import free_names
from simulator.results.swept import blocks
from simulator.results.verdict import Verdict

WIDE = Grid(
    model=("llama-2-7b", "llama-3.1-8b", "qwen2.5-14b", "opt-13b"),
    device=("a100-sxm-80g", "h100-sxm", "l40s", "rtx-4090"),
    policy=tuple(free_names()),
    batch=(1, 4, 16, 64),
    prompt_tokens=(512, 2048, 8192),
    output_tokens=(128,),
)


def counted(grid: Grid) -> dict[str, Counter[str]]:
    """Verdicts of the rows that run, by policy."""
    out: dict[str, Counter[str]] = {}
    for rows in blocks([grid]):
        if rows.policy[0] != "dense":
            told = out.setdefault(rows.policy[0], Counter())
            told.update(rows.verdict[int(i)] for i in np.flatnonzero(rows.ok & np.isfinite(rows.speedup.mid)))
    return out


if __name__ == "__main__":
    by_policy = counted(WIDE)
    total: Counter[str] = sum(by_policy.values(), Counter())
    heads = ["policy", "rows", *(str(v) for v in Verdict), "decided"]

    def line(name: str, told: Counter[str]) -> list[str]:
        n = sum(told.values())
        decided = n - told[str(Verdict.UNDECIDED)]
        return [name, str(n), *(str(told[str(v)]) for v in Verdict), f"{decided / n:.0%}" if n else "-"]

    console.table(
        "rows of a wide sweep by verdict",
        heads,
        [line(name, told) for name, told in (*by_policy.items(), ("all", total))],
    )
