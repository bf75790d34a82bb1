"""Measured traces: sparsity statistics of a real model, as files that `traces` writes and the simulator reads.

A trace is a folder of ``manifest.json``, ``curves.parquet``, ``neurons.parquet`` and, where predictors were
judged, ``quality.parquet``; `docs/traces.md` describes every column and statistic.
"""

from simulator.trace.curves import Curve, LayerCurves, Trace
from simulator.trace.depth import DepthCurves, over_layers
from simulator.trace.files import add_quality, read_manifest, read_trace, write_trace
from simulator.trace.quality_file import MeasuredPolicy, QualityFile, quality_of_text, read_quality, write_quality
from simulator.trace.schema import (
    KEEPS,
    KIND,
    MASSES,
    ROWS,
    SCHEMA_VERSION,
    STATISTICS,
    TABLES,
    TENSORS,
    WHOLE_LAYER,
    Manifest,
    ModelFacts,
    Statistic,
)

__all__ = [
    "KEEPS",
    "KIND",
    "MASSES",
    "ROWS",
    "SCHEMA_VERSION",
    "STATISTICS",
    "TABLES",
    "TENSORS",
    "WHOLE_LAYER",
    "Curve",
    "DepthCurves",
    "LayerCurves",
    "Manifest",
    "MeasuredPolicy",
    "ModelFacts",
    "QualityFile",
    "Statistic",
    "Trace",
    "add_quality",
    "over_layers",
    "quality_of_text",
    "read_manifest",
    "read_quality",
    "read_trace",
    "write_quality",
    "write_trace",
]
