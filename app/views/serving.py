"""Traffic and promises to latencies of one deployment over time, and to the cheapest deployment."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import streamlit as st

from app import blocks, served_view, state, words
from app.jobs import Job
from reports.capacity import answer, recommended
from reports.served import read
from simulator.api import InputError, Scenario, ShadowlineError
from simulator.device.catalogue import list_devices
from simulator.policies import PUBLISHED
from simulator.scenario.fields import flag
from simulator.scenario.grid import policies, whole_numbers
from simulator.serving.deployment import ROUTERS
from simulator.serving.scheduler import SCHEDULERS
from simulator.serving.search import OBJECTIVES
from simulator.serving.slo import STATISTICS
from simulator.serving.traffic import SYNTHETIC as SYNTHETIC_COUNT

MOST_UPLOAD_MB = 16
MOST_REQUESTS = 50_000
DEVICES = ("a100-sxm-80g", "h100-sxm", "h200", "b200", "l40s")
ONE, CHEAPEST = "one deployment", "the cheapest"
SYNTHETIC, FILE = "synthetic", "a file"
AT_A_RATE, FROM_USERS = "at a rate", "from users who wait"
NO_PROMISE = "no promise"
POLL_S = 0.7


def page() -> None:
    """Traffic, promises, what is asked, and the answer of the last run."""
    scenario = state.current()
    st.markdown("#### How many of which GPUs for your traffic, and how fast are they?")
    st.caption(
        "Every request passes a simulated scheduler. Model, policy, engine and formats are the sidebar's; its batch and"
        " lengths are not used."
    )
    what = st.segmented_control(
        "Simulate", [ONE, CHEAPEST], default=ONE, required=True, key="q.what", bind="query-params"
    )
    try:
        flags, files = _traffic()
        flags |= _promises(required=what == CHEAPEST)
        command = (_one if what == ONE else _plan)(scenario, flags)
    except ShadowlineError as error:
        st.error(blocks.first_line(error), icon=":material/error:")
        command, files = [], {}
    job: Job | None = st.session_state.get("q_job")
    busy = job is not None and job.running
    st.button(
        "Simulate" if what == ONE else "Search",
        on_click=_start,
        args=(command, files),
        type="primary",
        disabled=busy or not command,
        icon=":material/play_arrow:",
    )
    if busy:
        _watch()
    if command:
        st.code("python -m " + shlex.join(command), language="bash", wrap_lines=True)
    if job is None or busy:
        return
    if job.cancelled:
        st.info("Cancelled; nothing of it was kept.", icon=":material/cancel:")
    elif not job.ended_well:
        st.error(words.plain(job.problem()), icon=":material/error:")
    else:
        if list(job.words) != command:
            st.caption("The settings have changed since; what is shown is of the run before.")
        _show(job, scenario)


def _start(command: list[str], files: Mapping[str, bytes]) -> None:
    old: Job | None = st.session_state.get("q_job")
    if old is not None:
        old.cancel()
    st.session_state.q_job = Job(command, files)


@st.fragment(run_every=POLL_S)
def _watch() -> None:
    """Progress and a way out; the page is drawn anew when the job ends."""
    job: Job = st.session_state.q_job
    if not job.running:
        st.rerun()
    text, done = job.progress()
    with st.container(horizontal=True, vertical_alignment="center"):
        st.progress(done, f"Simulating, {text}")
        st.button("Cancel", on_click=job.cancel, icon=":material/stop:")


def _traffic() -> tuple[dict[str, Any], dict[str, bytes]]:
    """Flags of the traffic, and the uploaded file."""
    kind = st.segmented_control(
        "Traffic", [SYNTHETIC, FILE], default=SYNTHETIC, required=True, key="q.traffic", bind="query-params"
    )
    files: dict[str, bytes] = {}
    flags: dict[str, Any] = {}
    if kind == FILE:
        upload = st.file_uploader(
            "Azure, BurstGPT or own CSV or Parquet (arrival_s, prompt_tokens, output_tokens), or Mooncake JSONL",
            ["csv", "parquet", "jsonl"],
            key="q.file",
            max_upload_size=MOST_UPLOAD_MB,
        )
        if upload is None:
            raise InputError("upload a table of requests, or choose synthetic traffic")
        name = _safe(upload.name)
        files[name] = upload.getvalue()
        flags["requests"] = name
    asked = st.segmented_control(
        "They come", [AT_A_RATE, FROM_USERS], default=AT_A_RATE, required=True, key="q.asked", bind="query-params"
    )
    with st.container(horizontal=True):
        lengths = "A number, lognormal(mean=,cv=), uniform(low=,high=) or exponential(mean=)."
        talk = "1"
        if kind == SYNTHETIC:
            talk = st.text_input(
                "Turns of a conversation",
                "1",
                key="q.turns",
                bind="query-params",
                max_chars=60,
                help="Each brings all before it and waits for the answer; a rate counts conversations. " + lengths,
                width=230,
            ).strip()
        if asked == FROM_USERS:
            flags["users"] = st.number_input(
                "Users",
                1,
                MOST_REQUESTS // 10,
                100,
                key="q.users",
                bind="query-params",
                width=130,
                help="Each waits for an answer, thinks, and asks again.",
            )
            flags["think_time"] = _think()
        rate = (
            None
            if asked == FROM_USERS
            else st.number_input(
                "Requests per second" if talk == "1" else "Conversations per second",
                0.001,
                1e5,
                10.0 if kind == SYNTHETIC else None,
                key="q.rate" if kind == SYNTHETIC else "q.file_rate",
                bind="query-params",
                width=190,
                placeholder="as in the file",
                help="With a file: its lengths at this rate, instead of its own times.",
            )
        )
        if rate is not None:
            flags["rate"] = f"{rate:g}"
            flags["arrivals"] = st.selectbox(
                "Arrivals", ["poisson", "gamma(cv=2)", "fixed"], key="q.arrivals", bind="query-params", width=160
            )
        flags["count"] = st.number_input(
            "Requests",
            10,
            MOST_REQUESTS,
            SYNTHETIC_COUNT,
            key="q.count",
            bind="query-params",
            width=150,
            help="The first ones of a file; a search takes more of synthetic ones until its answer is settled.",
        )
        if kind == SYNTHETIC:
            for key, label, start in (
                ("prompt_tokens", "Prompt tokens", "lognormal(mean=1000,cv=1)"),
                ("output_tokens", "Output tokens", "lognormal(mean=200,cv=0.5)"),
            ):
                flags[key] = st.text_input(
                    label, start, key=f"q.{key}", bind="query-params", max_chars=80, help=lengths, width=230
                )
            if talk != "1":
                flags["turns"] = talk
                if asked == AT_A_RATE:
                    flags["think_time"] = _think()
    return flags, files


def _think() -> str:
    """How long users think before they ask again."""
    return st.text_input(
        "They think [s]",
        "exponential(mean=20)",
        key="q.think",
        bind="query-params",
        max_chars=60,
        help="A number, or exponential(mean=).",
        width=190,
    )


def _safe(name: str) -> str:
    """An upload's name as a file of the job's folder."""
    path = Path(re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).name))
    return (path.stem.strip("-.")[:60] or "requests") + path.suffix


def _promises(*, required: bool) -> dict[str, str]:
    """``--slo`` of the inputs; empty where nothing is promised."""
    parts = []
    with st.container(horizontal=True):
        for metric, label, start in (("ttft", "TTFT", 1000.0), ("tpot", "TPOT", 60.0)):
            limit = st.number_input(
                f"{label} below [ms]",
                0.01,
                None,
                start,
                key=f"q.{metric}",
                bind="query-params",
                width=170,
                help=blocks.tip(label),
            )
            which = st.selectbox(
                "at", [*reversed(STATISTICS), NO_PROMISE], key=f"q.{metric}.at", width=150, bind="query-params"
            )
            if limit is not None and which != NO_PROMISE:
                parts.append(f"{metric}:{which}<{limit:g}ms")
    if required and not parts:
        raise InputError("promise a TTFT or a TPOT: without one the cheapest deployment is the slowest")
    return {"slo": ";".join(parts)} if parts else {}


def _one(scenario: Scenario, flags: Mapping[str, Any]) -> list[str]:
    """``simulator.serve`` of the sidebar's deployment."""
    with st.container(horizontal=True):
        more = {
            "replicas": st.number_input("Replicas", 1, 64, 1, key="q.replicas", bind="query-params", width=120),
            "scheduler": st.selectbox("Scheduler", list(SCHEDULERS), key="q.scheduler", bind="query-params", width=210),
            "max_num_batched_tokens": st.number_input(
                "Tokens of a step", 1, 1_000_000, 8192, key="q.tokens", bind="query-params", width=160
            ),
            "router": st.selectbox("Router", ROUTERS, key="q.router", bind="query-params", width=170),
            "rate_scale": st.text_input(
                "Rates, as factors",
                "1",
                key="q.scale",
                bind="query-params",
                max_chars=60,
                width=170,
                help="0.5,1,2 simulates half, the whole and twice the rate.",
            ),
        }
    fixed = {
        k: getattr(scenario, k)
        for k in ("engine", "dtype", "kv_cache_dtype", "tp", "pp", "ep", "gpu_memory_utilization", "block_size")
    }
    command = _words("simulator.serve", {"model": scenario.model, "device": scenario.device, **flags, **fixed, **more})
    command += ["--policy", scenario.policy, *_kernel(scenario)]
    if scenario.trace and scenario.policy != "dense":
        command += ["--trace", str(Path(scenario.trace).resolve())] + ["--trace-transfer"] * scenario.trace_transfer
    command += ["--ignore-context-limit"] * scenario.ignore_context_limit + ["--text-only"] * scenario.text_only
    return [*command, "--out", "requests.parquet", "--json"]


def _kernel(scenario: Scenario) -> list[str]:
    """The kernel where it is not the published one."""
    return ["--kernel", scenario.kernel] if scenario.kernel != PUBLISHED else []


def _plan(scenario: Scenario, flags: Mapping[str, Any]) -> list[str]:
    """``simulator.plan`` over devices, GPUs and policies."""
    start = [d for d in DEVICES if d in list_devices()]
    with st.container(horizontal=True):
        devices = st.multiselect("Devices", list_devices(), start, key="q.device", bind="query-params", width=420)
        tp = st.text_input("Tensor-parallel GPUs", "1,2,4,8", key="q.tp", bind="query-params", max_chars=60, width=170)
        most = st.number_input("GPUs at most", 1, 1024, 64, key="q.gpus", bind="query-params", width=140)
        goal = st.selectbox("Objective", list(OBJECTIVES), key="q.goal", bind="query-params", width=150)
    lines = "" if scenario.policy == "dense" else scenario.policy
    text = st.text_area("Policies beside dense, one a line", lines, key="q.policy", max_chars=4000, height=90)
    if not devices:
        raise InputError("choose at least one device")
    whole_numbers(tp, "tensor-parallel GPUs")
    named = [p for p in policies([t for t in text.splitlines() if t.strip()] or ["dense"]) if p != "dense"]
    fixed = {k: getattr(scenario, k) for k in ("engine", "dtype", "kv_cache_dtype", "gpu_memory_utilization")}
    more = {"device": ",".join(devices), "tp": tp, "max_gpus": most, "objective": goal}
    command = _words("simulator.plan", {"model": scenario.model, **flags, **fixed, **more})
    for policy in named:
        command += ["--policy", policy]
    command += _kernel(scenario) if named else []
    command += ["--ignore-context-limit"] * scenario.ignore_context_limit + ["--text-only"] * scenario.text_only
    return [*command, "--json"]


def _words(verb: str, flags: Mapping[str, Any]) -> list[str]:
    """The verb's command line without what is its default anyway."""
    import typer

    from simulator import plan, serve

    parameters = typer.main.get_command({"simulator.serve": serve, "simulator.plan": plan}[verb].app).params
    default = {p.name: p.default for p in parameters}
    out = [verb]
    for key, value in flags.items():
        if str(value) != str(default[key]):
            out += [flag(key), str(value)]
    return out


def _show(job: Job, scenario: Scenario) -> None:
    """The answer of a finished job, its charts and what can be taken along."""
    path = job.folder / "requests.parquet"
    if not path.is_file():
        path = job.folder / "plan.json"
        if not path.is_file():
            path.write_bytes((job.folder / "stdout").read_bytes())
    try:
        served = read(path)
    except ShadowlineError as error:
        st.error(blocks.first_line(error), icon=":material/error:")
        return
    best = recommended(served)
    told = words.plain(answer(served, best))
    if best is None:
        st.warning(told, icon=":material/near_me:")
    else:
        st.markdown(f"##### {told}")
        blocks.badge(best["basis"])
    if served.search is not None:
        served_view.planned(served)
    else:
        served_view.runs(served, best)
    blocks.heading("Take it along")
    kind = "application/vnd.apache.parquet" if path.suffix == ".parquet" else "application/json"
    with st.container(horizontal=True):
        name = blocks.file_name(scenario, "serving", path.suffix[1:])
        blocks.download(path.suffix[1:].upper(), path.read_bytes, name, kind, "serving.file")
        for suffix, mime in (("html", "text/html"), ("pdf", "application/pdf")):
            blocks.download(
                f"Report as {suffix.upper()}",
                lambda suffix=suffix: _report(path, suffix),
                blocks.file_name(scenario, "capacity", suffix),
                mime,
                f"serving.{suffix}",
            )


def _report(path: Path, kind: str) -> bytes:
    from reports import html, pdf
    from reports.capacity import compose

    return html.render(compose(path)) if kind == "html" else pdf.render(compose(path))


page()
