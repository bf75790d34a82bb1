"""The dashboard's serving page: its command is the one that ran, its answer the simulator's, and it can be stopped."""

from __future__ import annotations

import re
import shlex
import time
from pathlib import Path
from urllib.parse import parse_qsl

import pytest

pytest.importorskip("streamlit", reason="streamlit not installed")

from streamlit.testing.v1 import AppTest

import app
from app.jobs import Job
from simulator.base.console import milliseconds
from simulator.scenario.scenario import Scenario
from simulator.serving.deployment import Deployment
from simulator.serving.runs import Task, run
from simulator.serving.scheduler import Scheduler
from simulator.serving.synthetic import synthetic

MAIN = Path(app.__file__).with_name("main.py")
LINK = "model=llama-3.1-8b&device=h100-sxm&q.count=60&q.prompt_tokens=512&q.output_tokens=20&q.device=h100-sxm&q.tp=1"
PATIENCE_S = 90.0


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SHADOWLINE_HOME", str(tmp_path))
    return tmp_path


def opened(link: str) -> AppTest:
    at = AppTest.from_file(str(MAIN), default_timeout=120)
    for key, value in parse_qsl(link):
        at.query_params[key] = value
    at.run()
    at.switch_page("views/serving.py")
    return ran(at)


def ran(what) -> AppTest:
    at = what.run()
    assert not at.exception, [e.value for e in at.exception]
    return at


def told(at: AppTest) -> str:
    return re.sub(r"\\(\W|_)", r"\1", "\n".join(e.value for e in (*at.warning, *at.error, *at.info)))


def texts(at: AppTest) -> str:
    found = "\n".join(e.value for e in (*at.main.markdown, *at.main.caption, *at.main.code))
    return re.sub(r"\\(\W|_)", r"\1", found)


def button(at: AppTest, label: str):
    return next(b for b in at.button if b.label == label)


def finished(at: AppTest, label: str) -> AppTest:
    """The page after its button was pressed and the job has ended."""
    ran(button(at, label).click())
    end = time.monotonic() + PATIENCE_S
    while at.session_state.q_job.running:
        assert time.monotonic() < end
        time.sleep(0.1)
    return ran(at)


def test_the_answer_is_the_simulators_and_the_command_the_one_that_ran():
    at = opened(LINK)
    assert not told(at)
    assert not at.main.dataframe
    command = at.main.code[0].value
    finished(at, "Simulate")
    assert not told(at)
    assert tuple(shlex.split(command)[2:]) == at.session_state.q_job.words
    requests = synthetic(60, 10.0, arrivals="poisson", prompt="512", output="20", seed=0)
    scenario = Scenario.of(model="llama-3.1-8b", device="h100-sxm")
    row = run(Task(Deployment(scenario, Scheduler.of(scenario)), requests)).row
    assert f"TTFT p99 {milliseconds(row['ttft_p99_s'])} ms" in texts(at)
    table = at.main.dataframe[0].value
    assert table["TPOT p99 ms"][0] == pytest.approx(1e3 * row["tpot_p99_s"], rel=1e-9)
    assert table["KV %"][0] == pytest.approx(100 * row["kv_share_mean"])
    ran(at.number_input(key="q.replicas").set_value(2))
    assert "The settings have changed since" in texts(at)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"arrival_s,prompt_tokens,output_tokens\n0,10,5\n1,0,5\n", "requests.csv:3"),
        (b"arrival_s,prompt_tokens\n0,10\n", "requests.csv"),
        (b"", "requests.csv"),
    ],
)
def test_a_bad_upload_names_its_line(content, part):
    at = opened(LINK + "&q.traffic=a file")
    assert "upload a table of requests" in told(at)
    ran(at.file_uploader(key="q.file").set_value(("../requests.csv", content, "text/csv")))
    assert "--requests requests.csv" in at.main.code[0].value
    finished(at, "Simulate")
    assert part in told(at)
    assert not at.main.dataframe


PLAN = LINK + "&q.what=the cheapest"


def test_a_plan_names_the_cheapest_and_how_to_start_it():
    at = opened(PLAN)
    finished(at, "Search")
    assert "The cheapest is 1 x h100-sxm, dense" in texts(at)
    assert "vllm serve" in texts(at)


def test_a_promise_nothing_keeps_is_said():
    at = opened(PLAN + "&q.ttft=0.5")
    finished(at, "Search")
    assert "Nothing keeps TTFT p99 below 0.5 ms" in told(at)
    assert "ttft is at least" in told(at)


def test_a_plan_without_a_promise_asks_for_one():
    at = opened(PLAN)
    ran(at.selectbox(key="q.ttft.at").set_value("no promise"))
    assert "tpot:p99<60ms" in at.main.code[0].value
    assert "ttft" not in at.main.code[0].value
    ran(at.selectbox(key="q.tpot.at").set_value("no promise"))
    assert "promise a TTFT or a TPOT" in told(at)


def test_a_run_can_be_cancelled_and_leaves_nothing():
    at = opened(LINK.replace("q.count=60", "q.count=50000") + "&q.scale=1,2,3,4,5,6")
    ran(button(at, "Simulate").click())
    job = at.session_state.q_job
    assert job.running
    ran(button(at, "Cancel").click())
    assert not job.running
    assert "Cancelled" in told(at)
    assert not (job.folder / "requests.parquet").exists()


def test_a_job_tells_how_far_it_is():
    words = shlex.split(
        "simulator.serve --model llama-3.1-8b --device h100-sxm --rate 10 --count 3000 --prompt-tokens 512"
        " --output-tokens 50 --rate-scale 1,1.1,1.2,1.3 --json"
    )
    job = Job(words, {})
    shares, end = set(), time.monotonic() + PATIENCE_S
    while job.running:
        assert time.monotonic() < end
        shares.add(job.progress()[1])
        time.sleep(0.01)
    assert job.ended_well
    assert shares & {0.25, 0.5, 0.75}
    assert job.progress() == ("runs: 4 of 4", 1.0)


def test_a_jobs_folder_goes_with_it():
    job = Job(["simulator.serve", "--model"], {"a.csv": b"x"})
    folder = job.folder
    assert (folder / "a.csv").read_bytes() == b"x"
    job._process.wait(PATIENCE_S)
    assert not job.ended_well
    assert "--model" in job.problem()
    del job
    assert not folder.exists()


def test_a_rate_of_conversations_is_called_one():
    rate = opened(LINK + "&q.rate=3").number_input(key="q.rate")
    assert (rate.label, rate.value) == ("Requests per second", 3.0)
    at = opened(LINK + "&q.rate=3&q.turns=uniform(low=2,high=4)")
    rate = at.number_input(key="q.rate")
    assert (rate.label, rate.value) == ("Conversations per second", 3.0)
    assert "--turns 'uniform(low=2,high=4)'" in at.main.code[0].value
    ran(at.text_input(key="q.turns").set_value("1"))
    assert (at.number_input(key="q.rate").label, at.number_input(key="q.rate").value) == ("Requests per second", 3.0)
