"""What the columns of answers are called in files and as plain values, their units and meanings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator.inference.status import STATUSES
from simulator.results.verdict import Verdict

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 5


@dataclass(frozen=True)
class Column:
    """One column: its Arrow type, unit and meaning, and where an `Answer` has it."""

    kind: str
    unit: str
    meaning: str
    at: str = ""


COLUMNS: Mapping[str, Column] = {
    "model": Column("text", "", "model name"),
    "device": Column("text", "", "device name"),
    "policy": Column("text", "", "canonical spelling of the sparsity policy"),
    "kernel": Column("text", "", "kernel each policy is taken to run in, or ideal; null for dense"),
    "speculate": Column("text", "", "who drafts tokens that a step verifies; null for nobody"),
    "engine": Column("text", "", "serving engine whose kernels and host side are assumed"),
    "software": Column("text", "", "where the policy can be run today, and whether this engine does; null for dense"),
    "dtype": Column("text", "", "weight format after the policy"),
    "kv_dtype": Column("text", "", "format of the dense KV cache"),
    "tp": Column("whole", "GPUs", "tensor-parallel ranks"),
    "pp": Column("whole", "GPUs", "pipeline stages"),
    "ep": Column("whole", "groups", "expert groups within tp"),
    "dp_attention": Column("whole", "groups", "groups within tp that attend to sequences of their own"),
    "batch": Column("whole", "sequences", "static batch"),
    "prompt_tokens": Column("whole", "tokens", "prompt per sequence"),
    "output_tokens": Column("whole", "tokens", "output per sequence"),
    "status": Column("text", "", " | ".join(STATUSES)),
    "reason": Column("text", "", "why a row is not ok, and what would work"),
    "ttft_s": Column("real", "s", "one prefill of the whole batch", "ttft_s.mid"),
    "tpot_s": Column("real", "s", "mean decode step over the output, per token of it", "tpot_s.mid"),
    "e2e_s": Column("real", "s", "TTFT + (output - 1) * TPOT", "e2e_s.mid"),
    "tokens_per_s": Column("real", "1/s", "output tokens of the batch per second", "tokens_per_s.mid"),
    "tokens_per_s_per_gpu": Column("real", "1/s", "the same per GPU", "tokens_per_s_per_gpu.mid"),
    "ttft_lo_s": Column("real", "s", "5 % quantile of TTFT", "ttft_s.lo"),
    "ttft_hi_s": Column("real", "s", "95 % quantile of TTFT", "ttft_s.hi"),
    "tpot_lo_s": Column("real", "s", "5 % quantile of TPOT", "tpot_s.lo"),
    "tpot_hi_s": Column("real", "s", "95 % quantile of TPOT", "tpot_s.hi"),
    "basis": Column("text", "", "CALIBRATED | EXTRAPOLATED | DATASHEET"),
    "bound": Column("text", "", "what takes most of the end-to-end time"),
    "mode": Column("text", "", "how decode steps are launched"),
    "weights_bytes": Column("real", "B", "weights on the fullest GPU"),
    "kv_bytes": Column("real", "B", "KV cache of the batch at prompt + output, per GPU"),
    "other_bytes": Column("real", "B", "activations, graphs, context, communication, per GPU"),
    "total_bytes": Column("real", "B", "all of it on the fullest GPU"),
    "capacity_bytes": Column("real", "B", "what the driver reports per GPU"),
    "max_batch": Column("whole", "sequences", "largest batch that fits"),
    "dense_max_batch": Column("whole", "sequences", "the same of dense; a speed-up above it is against no real run"),
    "ttft_speedup": Column("real", "1", "TTFT of dense over this", "ttft_speedup.mid"),
    "tpot_speedup": Column("real", "1", "TPOT of dense over this", "tpot_speedup.mid"),
    "throughput_speedup_same_batch": Column("real", "1", "tokens/s over dense at this batch", "speedup.mid"),
    "throughput_speedup_at_max_batch": Column(
        "real", "1", "tokens/s over dense, each at its largest batch", "speedup_at_max_batch.mid"
    ),
    **{
        f"{name}_{end}": Column("real", "1", f"{share} quantile of {name}", f"{at}.{end}")
        for name, at in (
            ("ttft_speedup", "ttft_speedup"),
            ("tpot_speedup", "tpot_speedup"),
            ("throughput_speedup_same_batch", "speedup"),
            ("throughput_speedup_at_max_batch", "speedup_at_max_batch"),
        )
        for end, share in (("lo", "5 %"), ("hi", "95 %"))
    },
    "p_win": Column("real", "1", "probability that throughput_speedup_same_batch is above 1"),
    "ttft_p_win": Column("real", "1", "the same of ttft_speedup"),
    "tpot_p_win": Column("real", "1", "the same of tpot_speedup"),
    "max_batch_p_win": Column("real", "1", "the same of throughput_speedup_at_max_batch"),
    "verdict": Column("text", "", f"{' | '.join(Verdict)}: throughput_speedup_same_batch in a word"),
    "energy_j_per_token": Column("real", "J", "estimated energy per output token"),
    "usd_per_mtoken": Column("real", "USD", "estimated rent per million output tokens"),
    "quality_perplexity_ratio": Column("real", "1", "perplexity over dense, as measured (--trace, --quality)"),
    "quality_agreement": Column("real", "1", "share of next tokens equal to dense's, likewise"),
    "quality_points_lost": Column(
        "real", "points", "points of a mean score lost; null = loss unknown", "points_lost.mid"
    ),
    "quality_points_lost_lo": Column("real", "points", "5 % quantile of it", "points_lost.lo"),
    "quality_points_lost_hi": Column("real", "points", "95 % quantile of it", "points_lost.hi"),
    "quality_basis": Column(
        "text", "", "measured | published | EXTRAPOLATED | small-model evidence | computes what dense computes"
    ),
    "quality_source": Column("text", "", "the figure behind it, or the models it was carried over from"),
}


def arrow_schema(metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """Schema with the unit and the meaning of every column."""
    import pyarrow as pa

    types = {"text": pa.dictionary(pa.int32(), pa.string()), "whole": pa.int64(), "real": pa.float64()}
    return pa.schema(
        [pa.field(n, types[c.kind], metadata={"unit": c.unit, "meaning": c.meaning}) for n, c in COLUMNS.items()],
        metadata=dict(metadata) if metadata else None,
    )
