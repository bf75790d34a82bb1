"""Results of the serving benchmarks people run, as the rows an engine is fitted on.

Read are the files of ``vllm bench serve --save-result`` and its relatives (``benchmark_serving.py``, TensorRT-LLM's and
SGLang's copies of it; one object or one per line), ``trtllm-bench --report_json`` and ``llama-bench -o json``. A file
says what was measured; model, device, formats and parallelism are said beside it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.base.errors import InputError, reason
from simulator.base.files import read_limited

if TYPE_CHECKING:
    import pandas as pd

MOST_BYTES = 256_000_000
"""Largest result file: those with every request's times in them reach some 100 MB [B]."""
ENDINGS = (".json", ".jsonl")
READS = "reads results of vllm bench serve, sglang.bench_serving, trtllm-bench --report_json and llama-bench -o json"
LEAST_SHARE = 0.95
"""Share of the requests that must have been answered for a run to say what it was asked [-]."""
Times = dict[str, float]


@dataclass(frozen=True)
class Setup:
    """What the files leave unsaid.

    Attributes
    ----------
    engine, model, device, dtype, kv_dtype : str
        Names as on the command line, resolved.
    tp, ep, pp, dp : int
        GPUs a layer, and its experts, are split over, stages that layers are shared out to, and groups of the tp GPUs
        that attend apart [-].
    """

    engine: str
    model: str
    device: str
    dtype: str
    kv_dtype: str
    tp: int = 1
    ep: int = 1
    pp: int = 1
    dp: int = 1


def read_runs(paths: Iterable[Path], setup: Setup) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rows of `simulator.fitting.e2e_rows.SETUP` with ``metric`` and ``time_s``, and runs left out by reason.

    Raises
    ------
    InputError
        A file that is no result of a benchmark that is known, or no run that can be used.
    """
    import pandas as pd

    from simulator.fitting.e2e_rows import SETUP, counts
    from simulator.fitting.inferencex import ROUNDS, SHORTEST

    kept: list[dict[str, Any]] = []
    reasons: Counter[str] = Counter()
    for path in paths:
        for where, told in _objects(path):
            found = _run(told, where)
            if isinstance(found, str):
                reasons[found] += 1
                continue
            for metric in ("ttft", "tpot"):
                if metric in found:
                    at = {k: found[k] for k in ("batch", "prompt", "output")}
                    loop = "static" if found["static"] else "closed"
                    run = {
                        "release": "",
                        "loop": loop,
                        "shortest": SHORTEST,
                        "rounds": found.get("rounds", ROUNDS),
                        "wait_steps": 0.0,
                    }
                    kept.append({**vars(setup), **at, **run, "metric": metric, "time_s": found[metric]})
    if not kept:
        raise InputError(f"no run can be used: {counts(reasons) or 'the files are empty'}", where="--data")
    rows = pd.DataFrame(kept).assign(family="serving", source="own")
    keys = ["family", "source", *SETUP, "metric"]
    grouped = rows.groupby(keys, sort=True)["time_s"]
    out = grouped.median().to_frame()
    out["repeats"] = grouped.size()
    return out.reset_index(), dict(reasons.most_common())


def files_of(path: Path) -> list[Path]:
    """The file, or every result file of a folder."""
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.iterdir() if p.suffix in ENDINGS and p.is_file())
    if not found:
        raise InputError(f"no {' or '.join(ENDINGS)} file in {path}", where="--data")
    return found


def _objects(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every object of a file and where it stands."""
    try:
        text = read_limited(path, MOST_BYTES).decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read: {reason(error)}", where=str(path)) from None
    except UnicodeDecodeError:
        raise InputError(f"is no text; {READS}", where=str(path)) from None
    lines = [(str(path), text)]
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        lines = [(f"{path}:{i}", line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    for where, line in lines:
        try:
            told = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"is no JSON ({error}); {READS}", where=where) from None
        for one in told if isinstance(told, list) else [told]:
            if not isinstance(one, dict):
                raise InputError(f"holds no result; {READS}", where=where)
            yield where, one


def _run(told: Mapping[str, Any], where: str) -> Times | str:
    """What a run measured, or why it cannot be used."""
    if "streaming_metrics" in told or "request_info" in told:
        return _trtllm_bench(told, where)
    if "avg_ns" in told:
        return _llama_bench(told, where)
    if "total_output_tokens" in told and ("mean_ttft_ms" in told or "median_ttft_ms" in told):
        return _bench_serve(told, where)
    raise InputError(f"holds no result; {READS}", where=where)


def _bench_serve(told: Mapping[str, Any], where: str) -> Times | str:
    """``vllm bench serve`` and its copies: clients that each wait for an answer."""
    if told.get("request_rate") not in ("inf", None, float("inf")):
        return "requests sent at a rate (clients that wait for an answer are fitted: --max-concurrency, rate inf)"
    if not told.get("max_concurrency"):
        return "all requests sent at once (give the benchmark --max-concurrency)"
    asked = told.get("num_prompts", told.get("completed"))
    done = _number(told, "completed", where)
    if not done or done < LEAST_SHARE * float(asked or done):
        return "requests that failed"
    output = _number(told, "total_output_tokens", where) / done
    return {
        "static": 0.0,
        "batch": (clients := min(_number(told, "max_concurrency", where), done)),
        "rounds": done / clients,
        "prompt": max(round(_number(told, "total_input_tokens", where) / done), 1.0),
        "output": max(round(output), 1.0),
        "ttft": _number(told, "mean_ttft_ms" if "mean_ttft_ms" in told else "median_ttft_ms", where) * 1e-3,
        **_tpot(told, output, where),
    }


def _tpot(told: Mapping[str, Any], output: float, where: str) -> Times:
    key = next((k for k in ("mean_tpot_ms", "median_tpot_ms") if told.get(k)), "")
    return {"tpot": _number(told, key, where) * 1e-3} if key and output > 1.0 else {}


def _trtllm_bench(told: Mapping[str, Any], where: str) -> Times | str:
    """``trtllm-bench throughput --streaming --report_json``."""
    if "streaming_metrics" not in told:
        return "no time to first token (give trtllm-bench --streaming)"
    info, times = told.get("request_info"), told["streaming_metrics"]
    if not isinstance(info, dict) or not isinstance(times, dict):
        raise InputError(f"holds no result; {READS}", where=where)
    output = _number(info, "avg_output_length", where)
    found = {
        "static": 0.0,
        "batch": max(round(_number(info, "avg_num_concurrent_requests", where)), 1.0),
        "prompt": max(round(_number(info, "avg_input_length", where)), 1.0),
        "output": max(round(output), 1.0),
        "ttft": _number(times, "avg_ttft_ms", where) * 1e-3,
    }
    return {**found, "tpot": _number(times, "avg_tpot_ms", where) * 1e-3} if output > 1.0 else found


def _llama_bench(told: Mapping[str, Any], where: str) -> Times | str:
    """``llama-bench``: one sequence; a prompt (pp), or tokens after a context of ``n_depth`` (tg)."""
    prompt, output, depth = (_number(told, k, where) if told.get(k) else 0.0 for k in ("n_prompt", "n_gen", "n_depth"))
    seconds = _number(told, "avg_ns", where) * 1e-9
    if prompt and output:
        return "prompt and generation timed as one (llama-bench -pg)"
    if prompt and depth:
        return "a prompt after a context (llama-bench -p with -d)"
    at = {"static": 1.0, "batch": 1.0}
    if prompt:
        return {**at, "prompt": prompt, "output": 1.0, "ttft": seconds}
    if output > 1.0:
        return {**at, "prompt": max(depth, 1.0), "output": output, "tpot": seconds / output}
    return "nothing was generated"


def _number(told: Mapping[str, Any], key: str, where: str) -> float:
    value = told.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value < 1e15:
        raise InputError(f"{key} is {str(value)[:40]}, no number above 0; {READS}", where=where)
    return float(value)
