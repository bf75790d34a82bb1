"""Sparsity and KV statistics of a real model: ``python -m traces.collect``."""

from __future__ import annotations

import datetime as dt
import os
import platform
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.base import console
from simulator.base.errors import InputError
from simulator.base.files import refuse_overwriting

if TYPE_CHECKING:
    import numpy as np

    from traces.loading import Loaded
    from traces.means import State
    from traces.snapshot import Snapshots

CALIBRATION_SHARE = 1 / 8
"""Share of the batches that set thresholds and are measured by nothing else."""
DEFAULT_LENGTH = 512
MINIMUM_TOKENS = 64
"""Shortest sequence: one context length and two rounding groups."""
SAVE_EVERY_S = 10.0
"""A killed run loses at most this much work."""

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def measure(
    loaded: Loaded, tokens: np.ndarray, *, batch: int, seed: int, snapshots: Snapshots | None = None, quiet: bool = True
) -> State:
    """Run the model over `tokens` and return the statistics' state.

    Parameters
    ----------
    tokens : ndarray, shape (sequences, length)
    batch : int
        Sequences per forward pass.
    seed : int
        Of the sampled positions.
    snapshots : Snapshots, optional
        Where the state is saved every 10 s, and continued from.
    """
    import torch

    from traces.hooks import head_shape, observed
    from traces.layouts import decoder_layers
    from traces.observer import StatisticsObserver

    model = loaded.model
    state, done = snapshots.load() if snapshots else ({}, 0)
    places = [next(layer.parameters()).device for layer, _ in decoder_layers(model)]
    # Every name is kind|layer|...; a layer's sums live where the layer does.
    state = {name: x.to(places[int(name.split("|")[1])]) for name, x in state.items()}
    heads, kv_heads, _ = head_shape(model.config.get_text_config())
    observer = StatisticsObserver(state, heads=heads, kv_heads=kv_heads, seed=seed)
    starts = range(0, len(tokens), batch)
    calibration = calibration_batches(len(starts))
    saved = time.monotonic()
    device = next(model.get_input_embeddings().parameters()).device
    with torch.inference_mode(), observed(model, observer):
        for number in _progress(done, len(starts), quiet):
            rows = torch.from_numpy(tokens[starts[number] : starts[number] + batch]).to(device)
            observer.begin(number, *rows.shape, calibration=calibration)
            # The base model leaves out the logits, which no statistic reads.
            model.base_model(input_ids=rows, use_cache=False)
            if number == calibration - 1:
                observer.calibrated()
            if snapshots and time.monotonic() - saved >= SAVE_EVERY_S:
                snapshots.save(state, number + 1)
                saved = time.monotonic()
    return state


def calibration_batches(batches: int) -> int:
    """Batches that set the thresholds: an eighth, at least one."""
    return max(1, round(batches * CALIBRATION_SHARE))


def _progress(done: int, batches: int, quiet: bool) -> Iterator[int]:
    work = range(done, batches)
    yield from console.progress(work, len(work), "collecting", quiet=quiet)


def _day() -> str:
    """Today, or the day that SOURCE_DATE_EPOCH names for reproducible builds."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    now = float(epoch) if epoch else time.time()
    return dt.datetime.fromtimestamp(now, dt.UTC).date().isoformat()


def _check_out(out: Path) -> None:
    """Say before hours of work what `write_trace` would refuse after them."""
    from simulator.trace.files import refuse_replacing

    if (out / "quality.parquet").is_file():
        raise InputError(
            f"{out} holds judged predictors beside its trace; delete it first, or choose another folder", where="--out"
        )
    refuse_replacing(out)


def _length(config: Any, asked: int | None) -> int:
    # Falcon with ALiBi and a few others have no limit.
    longest = getattr(config, "max_position_embeddings", None) or 2**31
    length = min(DEFAULT_LENGTH, longest) if asked is None else asked
    if length < MINIMUM_TOKENS:
        raise InputError(f"{length} is less than {MINIMUM_TOKENS} tokens", where="--sequence-length")
    if length > longest:
        raise InputError(f"{length} is more than the model's {longest} positions", where="--sequence-length")
    return length


@app.command()
def main(
    model: Annotated[str, typer.Option(help="Folder, or hub id org/name.")],
    text: Annotated[Path, typer.Option(help="UTF-8 file, or a folder of them.")],
    out: Annotated[Path, typer.Option(help="Folder of the trace.")],
    batch: Annotated[int, typer.Option(min=1, help="Sequences per forward pass.")] = 8,
    sequence_length: Annotated[
        int | None, typer.Option(help="Tokens per sequence; 512, or the model's limit if less.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=128, help="Tokens read from the text.")] = 163_840,
    dtype: Annotated[str, typer.Option(help="auto (as stored), bf16, fp16 or fp32.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, or balanced (over all GPUs).")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves torch's.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the shuffle and of sampled tokens.")] = 0,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read pickled weights; they can run code.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue what an interrupted run left.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Also time plain passes, and print the overhead.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Measure a model's activation sparsity and KV statistics on a text.

    Runs a causal language model over the text with hooks on every layer and writes a trace: how many
    neurons and heads tokens use and share, how few tokens hold the attention, and how well keys and values
    compress. An eighth of the text sets thresholds, the rest is measured against them.
    """
    from simulator.model.hub import from_file
    from simulator.trace import Manifest, ModelFacts, write_trace
    from traces.loading import find, load, quieten, use_threads
    from traces.rows import curves, neurons
    from traces.sampling import ALL_EVERY, GROUPS, STRIDE, WINDOWS
    from traces.snapshot import Snapshots
    from traces.text import read_sequences, text_files
    from traces.weights import weights_sha256

    _check_out(out)
    refuse_overwriting([("--out", out)], [("--model", Path(model)), ("--text", text)])
    text_files(text)
    found = find(model, revision=revision, allow_pickle=allow_pickle)
    quieten()
    threads = use_threads(threads)
    loaded = load(found, dtype=dtype, device=device, allow_pickle=allow_pickle)
    length = _length(loaded.model.config.get_text_config(), sequence_length)
    sequences = read_sequences(text, loaded.tokenizer, length=length, max_tokens=max_tokens, seed=seed)
    batch = min(batch, max(1, len(sequences.tokens) // 2))
    facts = ModelFacts.of(from_file(found.folder))
    is_local = found.revision == "local"
    batches = -(-len(sequences.tokens) // batch)
    calibration = calibration_batches(batches) * batch
    settings = {
        "sequence_length": length,
        "sequences": len(sequences.tokens),
        "calibration_sequences": calibration,
        "batch": batch,
        "device": loaded.device.partition(":")[0],
        "threads": threads,
        "weights_sha256": weights_sha256(found.folder) if is_local else "",
        "union_rows_per_sequence": GROUPS,
        "windows_per_batch": WINDOWS,
        "frequency_stride": STRIDE,
        "window_and_kv_batch_stride": ALL_EVERY,
    }
    manifest = Manifest(
        model=found.name,
        revision="" if is_local else found.revision,
        config_sha256=found.config_sha256,
        facts=facts,
        text_sha256=sequences.sha256,
        tokens=sequences.tokens.size,
        seed=seed,
        dtype=loaded.dtype,
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("shadowline", "torch", "transformers")},
        },
        created=_day(),
        settings=settings,
    )
    plan = manifest.model_dump(exclude={"created", "files"})
    snapshots = Snapshots(out, plan, settled={"created": manifest.created}, resume=resume)
    try:
        start, start_cpu = time.perf_counter(), time.process_time()
        state = measure(loaded, sequences.tokens, batch=batch, seed=seed, snapshots=snapshots, quiet=json)
        seconds, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
        manifest = manifest.model_copy(update={"created": snapshots.settled["created"]})
        table = curves(state, length)
        write_trace(out, manifest, curves=table, neurons=neurons(state))
    except BaseException:
        snapshots.close()
        raise
    snapshots.finish()
    facts_row = {
        "out": str(out),
        "model": found.name,
        "tokens": manifest.tokens,
        "sequences": len(sequences.tokens),
        "curves": len(table["x"]),
        "collect_s": seconds,
        "collect_cpu_s": cpu_s,
        "peak_memory_bytes": peak_memory_bytes(loaded.device),
    }
    if profile:
        facts_row |= plain_pass(loaded, sequences.tokens, batch=batch)
    _report(facts_row, as_json=json)


def _report(row: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        console.out_json({"rows": [row]})
        return
    console.say(
        f"{row['tokens']:,} tokens in {row['collect_s']:.1f} s, peak memory "
        f"{row['peak_memory_bytes'] / 1e6:,.0f} MB; {row['curves']:,} curve rows in {row['out']}"
    )
    if "plain_s" in row:
        console.say(
            f"plain passes over the same tokens: {row['plain_s']:.1f} s; collecting took "
            f"{row['collect_s'] / row['plain_s']:.2f} times as long, and "
            f"{row['collect_cpu_s'] / row['plain_cpu_s']:.2f} times the CPU time"
        )
    console.say(f"python -m traces.show {row['out']}")


def plain_pass(loaded: Loaded, tokens: np.ndarray, *, batch: int) -> dict[str, float]:
    """Wall and CPU time of the same batches without hooks, logits included as usual [s]."""
    import torch

    model = loaded.model
    device = next(model.get_input_embeddings().parameters()).device
    with torch.inference_mode():
        for last in (batch, len(tokens)):  # the first pass warms up
            start, start_cpu = time.perf_counter(), time.process_time()
            for i in range(0, last, batch):
                rows = torch.from_numpy(tokens[i : i + batch]).to(device)
                model(input_ids=rows, use_cache=False)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            found = {"plain_s": time.perf_counter() - start}
            found["plain_cpu_s"] = time.process_time() - start_cpu
    return found


def peak_memory_bytes(device: str) -> int:
    """Largest memory this process has held, on the GPU if it ran there [B]."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


if __name__ == "__main__":
    console.main(app)
