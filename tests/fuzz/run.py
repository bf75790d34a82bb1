"""Feeds parsers what nobody should write: ``python tests/fuzz/run.py [--parser NAME]... [--minutes 10] [--save DIR]``.

Inputs come from hypothesis' strategies. Where ``atheris`` (PyPI) is installed, libFuzzer guides their choices by the
branches of our own modules that an input newly reaches; else they are drawn at random. Prints a table of inputs tried
and distinct crashes; ``--save`` keeps one input of each as JSON for ``tests/fuzz/corpus``. Exit 1 where any crashed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "cases"), str(HERE.parents[1]), str(HERE.parents[1] / "kernels")]
OURS = ("simulator", "app", "reports")
MOST_MEMORY = 6 << 30
"""Address space beyond what is mapped at the start [B]; a bomb ends in MemoryError instead of the machine's."""


def hunt(name: str, seconds: float, seed: int, report: Any) -> None:
    """Try inputs of one parser for `seconds` of processor time; counts and findings go to `report`."""
    from fuzz_case import ended, in_home

    in_home()
    atheris = _atheris()
    # libFuzzer and Streamlit talk much; what matters comes through `report`.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    if atheris is not None:
        with atheris.instrument_imports(include=list(OURS), enable_loader_override=False):
            import simulator.claims.judge
            import simulator.fitting.gemm
            import simulator.plan
            import simulator.policies.__main__
            import simulator.predict
            import simulator.serve
            import simulator.serving.search
            import simulator.sweep
            import simulator.trace.__main__
            import simulator.validate
    from fuzz_targets import TARGETS
    from fuzz_verbs import MOST_POINTS, VERBS
    from hypothesis import HealthCheck, Phase, given, settings

    import simulator.scenario.grid

    simulator.scenario.grid.MAX_POINTS = MOST_POINTS
    limit = _mapped() + MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    start, tried = time.process_time(), 0
    found: dict[str, dict[str, Any]] = {}

    def tell() -> None:
        report.put((name, tried, time.process_time() - start, dict(found)))

    def over() -> bool:
        return time.process_time() - start > seconds

    def one(case: Any) -> None:
        nonlocal tried
        tried += 1
        told = ended(case, VERBS).problem
        if told is not None:
            known = found.setdefault(told.key, {"detail": told.detail, "times": 0, "case": case.to_json()})
            known["times"] += 1
            smaller = len(json.dumps(case.to_json())) < len(json.dumps(known["case"]))
            if smaller:
                known["case"], known["detail"] = case.to_json(), told.detail
        if tried % 20 == 0:
            tell()

    quiet = settings(
        database=None, deadline=None, max_examples=200, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    test = quiet(given(TARGETS[name])(one))
    if atheris is None:
        random.seed(seed)
        while not over():
            test()
        tell()
        return

    def choose(data: bytes) -> None:
        if over():
            tell()
            report.close()
            report.join_thread()
            os._exit(0)
        test.hypothesis.fuzz_one_input(data)

    # The first choices: random ones of hypothesis are too short for libFuzzer to begin with.
    folder = Path(os.environ["SHADOWLINE_HOME"]) / "choices"
    folder.mkdir()
    rng = random.Random(seed)
    for i in range(64):
        (folder / f"{i}").write_bytes(rng.randbytes(rng.choice((64, 256, 1024))))
    atheris.Setup(
        [
            sys.argv[0],
            "-max_len=4096",
            f"-seed={seed}",
            "-rss_limit_mb=0",
            "-timeout=600",
            "-verbosity=0",
            "-len_control=0",
            str(folder),
        ],
        choose,
    )
    atheris.Fuzz()


def guarded(name: str, seconds: float, seed: int, report: Any) -> None:
    """`hunt`, whose own failure is told as a finding."""
    try:
        hunt(name, seconds, seed, report)
    except BaseException:  # noqa: BLE001 - it is told
        told = {"detail": traceback.format_exc()[-1500:], "times": 1, "case": {}}
        report.put((name, 0, 0.0, {"the hunt itself failed": told}))
        report.close()
        report.join_thread()


def _atheris() -> Any:
    try:
        import atheris
    except ImportError:
        return None
    return atheris


def _mapped() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def run(name: str, seconds: float, seed: int) -> tuple[int, float, dict[str, Any], int]:
    """Hunt in a process of its own, which may die: inputs, processor time, findings, exit status."""
    context = multiprocessing.get_context("spawn")
    report = context.Queue()
    process = context.Process(target=guarded, args=(name, seconds, seed, report))
    process.start()
    last: tuple[int, float, dict[str, Any]] = (0, 0.0, {})
    while process.is_alive() or not report.empty():
        try:
            last = report.get(timeout=1.0)[1:]
        except Exception:  # noqa: BLE001 - queue.Empty; the loop's condition decides
            continue
    process.join()
    return *last, process.exitcode or 0


def main() -> None:
    """Hunt in each parser and print the table."""
    from fuzz_targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parser", action="append", choices=list(TARGETS))
    parser.add_argument("--minutes", type=float, default=10.0, help="processor time of each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", type=Path, help="folder for one input per crash")
    chosen = parser.parse_args()
    any_found = False
    print(
        f"{'parser':<16}{'inputs':>9}{'minutes':>9}{'crashes':>9}   {'guided by coverage' if _atheris() else 'random'}",
        flush=True,
    )
    for name in chosen.parser or TARGETS:
        tried, seconds, found, code = run(name, 60.0 * chosen.minutes, chosen.seed)
        if code:
            found[f"process died with {code}"] = {"detail": "the input is the last one tried", "times": 1, "case": {}}
        any_found |= bool(found)
        print(f"{name:<16}{tried:>9,}{seconds / 60:>9.1f}{len(found):>9}", flush=True)
        for key, told in sorted(found.items(), key=lambda kv: -kv[1]["times"]):
            print(f"    {told['times']:>6} x {key}: {told['detail']!a}", flush=True)
        if chosen.save is not None and found:
            chosen.save.mkdir(parents=True, exist_ok=True)
            (chosen.save / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    raise SystemExit(1 if any_found else 0)


if __name__ == "__main__":
    main()
