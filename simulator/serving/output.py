"""Per-request records and run rows: columns, units, and the files they are written to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.base.console import as_json
from simulator.base.files import replaced
from simulator.serving.fleet import Outcome
from simulator.serving.metrics import over_time
from simulator.serving.slo import METRICS, STATISTICS

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 3
RECORD_FILES = (".parquet", ".csv")
RECORDS: Mapping[str, tuple[str, str]] = {
    "run": ("", "row of the summary this request belongs to"),
    "request": ("", "number in the order of arrival"),
    "arrival_s": ("s", "when it came; before 0 where --reuse looked it up first"),
    "prompt_tokens": ("tokens", "prompt"),
    "output_tokens": ("tokens", "output"),
    "replica": ("", "replica that produced its last token; prefill replicas count first"),
    "admitted_s": ("s", "when it was first scheduled"),
    "first_token_s": ("s", "when its first token was there"),
    "finish_s": ("s", "when its last token was there"),
    "ttft_s": ("s", "arrival to first token"),
    "tpot_s": ("s", "mean time per token after the first; null for one token"),
    "e2e_s": ("s", "arrival to last token"),
    "preemptions": ("", "times its KV was dropped or swapped"),
    "prefix_hit_tokens": ("tokens", "prompt tokens found in the prefix cache"),
}
"""Columns of the per-request file: unit and meaning."""
_LATENCIES = {
    f"{m}_{q}{end}_s": ("s", f"{told} of {m}; null where {never}")
    for m in METRICS
    for q in STATISTICS
    for end, told, never in (
        ("", q, "OVERLOADED"),
        ("_run_lo", f"lower end of what the run's length leaves open of {q} (90 %)", "OVERLOADED"),
        ("_run_hi", f"upper end of what the run's length leaves open of {q} (90 %)", "OVERLOADED or not known"),
    )
}
COLUMNS: Mapping[str, tuple[str, str]] = {
    "model": ("", "model name"),
    "device": ("", "device name"),
    "policy": ("", "canonical spelling of the sparsity policy"),
    "kernel": ("", "kernel each policy is taken to run in, or ideal; empty for dense"),
    "engine": ("", "serving engine whose kernels and host side are assumed"),
    "dtype": ("", "weight format after the policy"),
    "kv_dtype": ("", "format of the dense KV cache"),
    "tp": ("GPUs", "tensor-parallel ranks of a replica"),
    "pp": ("GPUs", "pipeline stages of a replica"),
    "ep": ("groups", "expert groups within tp"),
    "replicas": ("", "data-parallel replicas; those that decode where disaggregated"),
    "prefill_replicas": ("", "replicas that only compute prompts"),
    "gpus": ("GPUs", "of the whole fleet"),
    "scheduler": ("", "how steps are formed"),
    "max_num_seqs": ("sequences", "running at once on a replica"),
    "max_num_batched_tokens": ("tokens", "of one step"),
    "router": ("", "how requests are spread over replicas"),
    "requests": ("", "requests served"),
    "rejected": ("", "requests sent among them that are longer than the context: a server refuses them"),
    "users": ("", "of a closed loop; null where requests come at a rate"),
    "rate_per_s": ("1/s", "mean arrivals, those that --reuse answered elsewhere included; null where all come at once"),
    "status": ("", "STABLE, BACKLOGGED (requests wait) or OVERLOADED (the queue only grows)"),
    "basis": ("", "CALIBRATED | EXTRAPOLATED | DATASHEET, the worse of prompt and decode steps"),
    "makespan_s": ("s", "first arrival to last token"),
    "steady_from_s": ("s", "start of the stationary part, after warm-up"),
    "steady_s": ("s", "stationary part: warm-up and drain cut"),
    "steady_requests": ("", "requests that come in it: all figures are theirs"),
    "steady_why": ("", "why nothing was cut; empty where it was"),
    "requests_per_s": ("1/s", "requests over the stationary part"),
    "output_tokens_per_s": ("1/s", "output tokens over the stationary part"),
    "output_tokens_per_s_per_gpu": ("1/s", "the same per GPU"),
    **_LATENCIES,
    "goodput_per_s": ("1/s", "requests that stay below every limit themselves; null without --slo"),
    "meets_slo": ("", "whether all promises hold; null without --slo"),
    "p_slo_run": ("", "probability that a run without end keeps the promises at these step times; null without --slo"),
    "preemptions": ("", "of all requests"),
    "prefix_hit_rate": ("", "prompt tokens found in the prefix cache over all"),
    "prefix_bound": ("", "the same for a cache that never evicts; null where ids are unknown"),
    "kv_tokens": ("tokens", "KV cache of a replica"),
    "kv_share_mean": ("", "blocks in use over all, over the stationary part"),
    "energy_j_per_token": ("J", "of all GPUs per output token, an estimate"),
    "usd_per_h": ("USD/h", "list price of the fleet"),
    "usd_per_mtoken": ("USD", "rent over the stationary part per million output tokens"),
    "simulated_per_s": ("1/s", "requests simulated per second of processor time"),
    "speedup": ("", "throughput over dense of a static batch of the mean load; null for dense, as the next three"),
    "speedup_lo": ("", "its 5 % quantile"),
    "speedup_hi": ("", "its 95 % quantile"),
    "p_win": ("", "probability that it is above 1"),
    "verdict": ("", "wins | loses | as fast as dense | undecided; empty for dense"),
}
"""Columns of a run's row: unit and meaning; ``serve --json`` and ``plan --json`` give them."""
SERVE_COLUMNS: Mapping[str, tuple[str, str]] = {
    "rate_scale": ("", "factor on the rate of the requests as given"),
    "capacity_per_s": ("1/s", "highest rate found, as rate_per_s; null without --capacity"),
    "capacity_users": ("", "most users that are kept the promises; null without --capacity and --users"),
    "answered_elsewhere": ("", "requests that --reuse kept from the fleet"),
    "table_error": ("", "relative error nine of ten random steps of the step table stay below"),
}
"""What ``serve --json`` adds; with --interval also ``<metric>_<p50|p99>_<lo|hi>_s``."""


def records(outcome: Outcome, run: int = 0) -> pa.Table:
    """One row per request."""
    import pyarrow as pa

    requests = outcome.requests
    tpot = outcome.tpot_s
    values = (
        np.full(len(requests), run),
        np.arange(len(requests)),
        requests.arrival_s - requests.delay_s,
        requests.prompt,
        requests.output,
        outcome.replica,
        outcome.admitted_s,
        outcome.first_s,
        outcome.finish_s,
        outcome.ttft_s,
        pa.array(tpot, mask=np.isnan(tpot)),
        outcome.e2e_s,
        outcome.preemptions,
        outcome.hits,
    )
    fields = [
        pa.field(name, pa.array(v).type, metadata={"unit": unit, "meaning": meaning})
        for (name, (unit, meaning)), v in zip(RECORDS.items(), values, strict=True)
    ]
    return pa.Table.from_arrays([pa.array(v) for v in values], schema=pa.schema(fields))


def write_records(path: Path, outcomes: Sequence[Outcome], metadata: Mapping[str, str]) -> None:
    """Write the requests of all runs to ``.parquet`` or ``.csv``, whole or not at all."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    table = pa.concat_tables([records(o, i) for i, o in enumerate(outcomes)])
    keys = {"shadowline.schema": str(SCHEMA_VERSION), **metadata}
    table = table.replace_schema_metadata(keys)
    with replaced(path, "--out") as temporary:
        if path.suffix == ".parquet":
            pyarrow.parquet.write_table(table, temporary, compression="zstd")
        else:
            pyarrow.csv.write_csv(table, temporary)


def about(rows: Sequence[Mapping[str, Any]], outcomes: Sequence[Outcome], command: str) -> dict[str, str]:
    """Metadata of the per-request file, so that it can be reported on alone: rows, load over time and command."""
    loads = [{k: v.tolist() for k, v in over_time(o).items()} for o in outcomes]
    return {"shadowline.command": command, "shadowline.rows": as_json(rows), "shadowline.load": as_json(loads)}


def write_json(path: Path, value: Mapping[str, Any], flag: str) -> None:
    """Write one JSON object, whole or not at all."""
    with replaced(path, flag) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file)
