"""Ten planning questions: one fleet each whoever asks and however long, and what it keeps when served ten times longer.

``python tests/benchmarks/ten_questions.py --done FILE.jsonl [--only NAME]``; what FILE holds is not asked again. Each
question is asked at three lengths and two seeds, by the command line, Python and the dashboard's page (which has no
seed). Five are ours; five take their deployment and load from ``field_cases.csv``, whose lines name no promise but C26.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any

from streamlit.testing.v1 import AppTest

import app
from app.jobs import Job
from simulator.api import Grid, Scenario, plan, traffic
from simulator.base import console
from simulator.plan import DEVICES
from simulator.scenario.fields import flag
from simulator.serving.deployment import Deployment
from simulator.serving.fleet import simulate
from simulator.serving.metrics import meets, probability
from simulator.serving.scheduler import Scheduler
from simulator.serving.slo import parse_slo

COUNTS = (300, 1500, 6000)
"""Requests asked for [-]."""
CELLS = (
    ("python", 300, 0),
    ("command", 1500, 0),
    ("dashboard", 6000, 0),
    ("command", 300, 1),
    ("python", 1500, 1),
    ("command", 6000, 1),
)
"""Who asks, how many requests, and the seed: every way, length and seed, each with others of the rest."""
LONGER = 10
"""Times the requests of the run that decided the fleet [-]."""
SEED = 2
"""Of the requests served then: others than the fleet was found with [-]."""
FLEET = ("device", "gpus", "tp", "replicas", "policy", "dtype", "max_num_batched_tokens")


@dataclass(frozen=True)
class Question:
    """A model, its traffic, a promise, and what may be rented."""

    name: str
    model: str
    slo: str
    load: dict[str, Any]
    device: str
    tp: str = "1,2,4,8"
    policy: tuple[str, ...] = ()
    dtype: str = "auto"

    @property
    def words(self) -> list[str]:
        """What follows ``python -m simulator.plan``, but for length and seed."""
        given = {
            "model": self.model,
            "device": self.device,
            "tp": self.tp,
            "slo": self.slo,
            **self.load,
            "dtype": self.dtype,
        }
        words = [word for key, value in given.items() for word in (flag(key), str(value))]
        return words + [word for policy in self.policy for word in ("--policy", policy)]

    @property
    def link(self) -> dict[str, str]:
        """Query parameters of the serving page, but for length."""
        load = {k: str(v) for k, v in self.load.items()}
        out = {"model": self.model, "dtype": self.dtype, "q.what": "the cheapest", "q.tp": self.tp}
        out |= {"q.think": load.pop("think_time", "0")}
        out |= {"q.asked": "from users who wait"} if "users" in load else {}
        out |= {f"q.{key}": value for key, value in load.items()}
        for promise in parse_slo(self.slo):
            out |= {f"q.{promise.metric}": f"{promise.limit_s * 1e3:g}", f"q.{promise.metric}.at": promise.statistic}
        return out


LONG_TAIL = {"prompt_tokens": "lognormal(mean=1500,cv=1)", "output_tokens": "lognormal(mean=250,cv=1)"}
KV4 = ("kv_quant(bits=4)",)
QUESTIONS = (
    Question("README", "llama-3.1-70b", "ttft:p99<2s;tpot:p99<60ms", {"rate": 50.0, **LONG_TAIL}, DEVICES, policy=KV4),
    Question(
        "size_deployment",
        "llama-3.1-70b",
        "ttft:p99<5s;tpot:p99<55ms",
        {"rate": 1.5, "prompt_tokens": "8192", "output_tokens": "2048"},
        "h100-sxm",
        policy=(*KV4, "quest(budget=2048)"),
    ),
    Question(
        "scale_out",
        "llama-3.1-8b",
        "ttft:p99<3s;tpot:p99<80ms",
        {"rate": 4.0, "prompt_tokens": "2048", "output_tokens": "256"},
        "l40s",
        tp="1",
    ),
    Question(
        "bursty",
        "llama-3.1-8b",
        "ttft:p99<1s;tpot:p99<40ms",
        {"rate": 20.0, "arrivals": "gamma(cv=2)", **LONG_TAIL},
        "l40s,a100-sxm-80g,h100-sxm",
        policy=("w4a16",),
    ),
    Question(
        "conversations",
        "llama-3.1-8b",
        "ttft:p95<1s;tpot:p95<50ms",
        {
            "users": 400,
            "think_time": "exponential(mean=20)",
            "turns": "exponential(mean=5)",
            "prompt_tokens": "lognormal(mean=300,cv=1)",
            "output_tokens": "lognormal(mean=200,cv=0.5)",
        },
        "l40s,h100-sxm",
    ),
    Question(
        "C26",
        "llama-3.1-70b",
        "ttft:p95<600ms;tpot:p95<40ms",
        {"users": 200, "prompt_tokens": "500", "output_tokens": "200"},
        "h100-sxm",
        dtype="fp8",
    ),
    Question(
        "C25",
        "deepseek-v3",
        "ttft:p95<6.5s;tpot:p95<60ms",
        {"users": 50, "prompt_tokens": "1000", "output_tokens": "200"},
        "h200",
        tp="8",
    ),
    Question(
        "C19",
        "qwen3-32b",
        "ttft:p99<2s;tpot:p99<60ms",
        {"rate": 3.26, "prompt_tokens": "lognormal(mean=217,cv=1)", "output_tokens": "lognormal(mean=201,cv=1)"},
        "h100-nvl",
        tp="1,2",
    ),
    Question(
        "C02",
        "llama-2-13b",
        "ttft:p95<2s;tpot:p95<60ms",
        {"users": 100, "prompt_tokens": "lognormal(mean=500,cv=0.5)", "output_tokens": "200"},
        "a100-sxm-80g",
        tp="1,2",
    ),
    Question(
        "S16a",
        "llama-3-8b",
        "ttft:p95<2s;tpot:p95<60ms",
        {"users": 256, "prompt_tokens": "lognormal(mean=226,cv=1)", "output_tokens": "lognormal(mean=204,cv=1)"},
        "a100-sxm-80g",
        tp="1,2",
    ),
)


def by_python(q: Question, count: int, seed: int) -> dict[str, Any] | None:
    """The best row of `simulator.api.plan`."""
    grid = Grid(
        model=(q.model,),
        device=tuple(q.device.split(",")),
        tp=tuple(int(n) for n in q.tp.split(",")),
        policy=("dense", *q.policy),
        dtype=(q.dtype,),
    )
    return _best(plan(grid, traffic(count=count, seed=seed, **q.load), q.slo).rows)


def by_command(q: Question, count: int, seed: int) -> dict[str, Any] | None:
    """The best row of ``python -m simulator.plan``."""
    words = ["simulator.plan", *q.words, "--count", str(count), "--seed", str(seed), "--json", "--quiet"]
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False)
    return _read(done.stdout, done.stderr)


def by_dashboard(q: Question, count: int, seed: int) -> dict[str, Any] | None:
    """The best row of the job that the serving page's button starts."""
    if seed:
        raise ValueError("the dashboard has no seed")
    at = AppTest.from_file(str(Path(app.__file__).with_name("main.py")), default_timeout=600)
    for key, value in (q.link | {"q.count": str(count)}).items():
        at.query_params[key] = value
    at.run()
    at.switch_page("views/serving.py").run()
    at.multiselect(key="q.device").set_value(q.device.split(","))
    at.text_area(key="q.policy").set_value("\n".join(q.policy)).run()
    at.button[[b.label for b in at.button].index("Search")].click().run()
    job: Job = at.session_state.q_job
    while job.running:
        sleep(0.2)
    return _read((job.folder / "stdout").read_text(), (job.folder / "stderr").read_text())


def _read(out: str, told: str) -> dict[str, Any] | None:
    if not out:
        raise RuntimeError(told)
    return _best(json.loads(out)["rows"])


def _best(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    return rows[0] if rows else None


def served_longer(q: Question, best: dict[str, Any]) -> dict[str, Any]:
    """The fleet under `LONGER` times the requests, of a seed of its own: whether it keeps its promises."""
    scenario = Scenario(
        model=q.model,
        device=best["device"],
        policy=best["policy"],
        tp=best["tp"],
        dtype=best["given_dtype"],
        kv_cache_dtype=best["given_kv_dtype"],
        kernel=best["given_kernel"],
    )
    scheduler = Scheduler(best["scheduler"], best["max_num_seqs"], best["max_num_batched_tokens"])
    fleet = Deployment(scenario, scheduler, best["replicas"], router=best["router"])
    requests = traffic(count=LONGER * best["requests"], seed=SEED, **q.load)
    outcome = simulate(fleet, requests)
    slo = parse_slo(q.slo)
    return {"requests": len(requests), "kept": meets(outcome, slo), "probability": probability(outcome, slo)}


def ask(q: Question, done: list[dict[str, Any]], path: Path) -> None:
    """Every cell of `q` that `done` does not hold, and the longer run of the first fleet found."""
    ways = {"python": by_python, "command": by_command, "dashboard": by_dashboard}
    for way, count, seed in CELLS:
        if any((d["question"], d["way"], d["count"], d["seed"]) == (q.name, way, count, seed) for d in done):
            continue
        best = ways[way](q, count, seed)
        _note(done, path, {"question": q.name, "way": way, "count": count, "seed": seed, "best": best})
    first = next(d["best"] for d in done if d["question"] == q.name and d["way"] != "longer")
    if first and not any((d["question"], d["way"]) == (q.name, "longer") for d in done):
        said = {"question": q.name, "way": "longer", "count": 0, "seed": SEED, **served_longer(q, first)}
        _note(done, path, said)


def _note(done: list[dict[str, Any]], path: Path, entry: dict[str, Any]) -> None:
    done.append(entry)
    with path.open("a") as out:
        out.write(json.dumps(entry) + "\n")


def line(q: Question, done: list[dict[str, Any]]) -> list[str]:
    """One row of the table."""
    mine = [d for d in done if d["question"] == q.name]
    bests = [d["best"] for d in mine if d["way"] != "longer"]
    fleets = {tuple(b[k] for k in FLEET) if b else None for b in bests}
    longer = next((d for d in mine if d["way"] == "longer"), None)
    told = "; ".join("nothing" if f is None else f"{f[3]} x {f[0]} tp={f[2]}, {f[4]}" for f in sorted(fleets, key=str))
    decided = [b["p_slo_run"] for b in bests if b]
    return [
        q.name,
        f"{len(bests)}",
        f"{len(fleets)}",
        told,
        f"{min(decided):.2f}" if decided else "-",
        f"{longer['requests']:,}" if longer else "-",
        "-" if longer is None else "yes" if longer["kept"] else "no",
        f"{longer['probability']:.2f}" if longer else "-",
    ]


def main() -> None:
    """Ask what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--done", type=Path, required=True)
    parser.add_argument("--only", default=None)
    chosen = parser.parse_args()
    done = [json.loads(t) for t in chosen.done.read_text().splitlines()] if chosen.done.exists() else []
    asked = [q for q in QUESTIONS if chosen.only in (None, q.name)]
    for q in asked:
        ask(q, done, chosen.done)
    console.table(
        f"ten questions, {len(CELLS)} times each; the fleet served {LONGER} times longer",
        ["question", "asked", "fleets", "fleet", "decided with", "requests", "kept", "probability"],
        [line(q, done) for q in asked],
        left=4,
        note="decided with: least probability of the runs that chose the fleet, at these step times",
    )


if __name__ == "__main__":
    main()
