"""Kill rate of a seeded sample of mutants (`make mutation`); docs/mutation.md says what is left alive and why.

mutmut (``[tool.mutmut]`` of pyproject.toml) writes the mutants and runs the tests that reach each one. All mutants take
hours, so that up to `--size` of each part are drawn, and run again whatever an earlier run found.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

# The first is small enough to run whole; that run generates the mutants of all.
PARTS = ("traffic", "ops", "memory", "roofline", "policies")
KILLED, SURVIVED, NO_TESTS = {1, 3}, {0}, {5, 33}
MUTANTS = Path("mutants/simulator")


def verdicts() -> dict[str, int | None]:
    """Exit status of the tests for every mutant; None where it did not run."""
    found: dict[str, int | None] = {}
    for path in MUTANTS.rglob("*.meta"):
        found |= json.loads(path.read_text())["exit_code_by_key"]
    return found


def part_of(mutant: str) -> str:
    return mutant.split(".")[1]


def mutmut(jobs: int, names: list[str]) -> None:
    """Run mutants; the spinner goes to a file."""
    command = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", str(jobs)]
    log = Path("mutants/sample.log")
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as out:
        if subprocess.run([*command, *names], stdout=out, stderr=out).returncode:
            sys.exit(f"mutmut failed: {log.read_text()[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=100, help="mutants of each part at most")
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    mutmut(asked.jobs, [f"simulator.{PARTS[0]}.*"])
    every, sample = sorted(verdicts()), []
    for part in PARTS:
        of_part = [name for name in every if part_of(name) == part]
        sample += random.Random(asked.seed).sample(of_part, min(asked.size, len(of_part)))
    mutmut(asked.jobs, sample)
    found = verdicts()
    print(f"{'part':<10}{'mutants':>9}{'sample':>8}{'killed':>8}{'survived':>10}{'other':>7}{'rate':>8}")
    for part in PARTS:
        codes = Counter(found[name] for name in sample if part_of(name) == part)
        killed, survived = (sum(codes[c] for c in kind) for kind in (KILLED, SURVIVED | NO_TESTS))
        other = codes.total() - killed - survived
        mutants = sum(part_of(name) == part for name in every)
        rate = killed / max(killed + survived, 1)
        print(f"{part:<10}{mutants:>9,}{codes.total():>8}{killed:>8}{survived:>10}{other:>7}{rate:>8.1%}")
    print("\nalive (`mutmut show NAME`):")
    for name in sorted(name for name in sample if found[name] in SURVIVED | NO_TESTS):
        print(f"  {name}{'  (no test reaches it)' if found[name] in NO_TESTS else ''}")


if __name__ == "__main__":
    main()
