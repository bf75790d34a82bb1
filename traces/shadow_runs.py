"""Training and judging of predictors, apart from what is printed of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.base import console
from simulator.base.errors import InputError
from simulator.base.files import replaced, scratch

if TYPE_CHECKING:
    import numpy as np

    from traces.bench import Bench, Row, Step
    from traces.loading import Loaded
    from traces.predictors import Plan
    from traces.snapshot import Snapshots
    from traces.text import Tokens

MANIFEST = "predictors.json"
SCHEMA = 2
TRAIN_SHARE = 0.6
"""Predictors learn on the first part of the text and are judged on the rest [-]."""


def _load(model: str, revision: str | None, dtype: str, device: str, *, allow_pickle: bool) -> Loaded:
    from traces.loading import find, load, quieten

    quieten()
    found = find(model, revision=revision, allow_pickle=allow_pickle)
    return load(found, dtype=dtype, device=device, allow_pickle=allow_pickle)


def _length(loaded: Loaded, length: int) -> int:
    known = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    if known and length > known:
        raise InputError(f"the model was made for {known} tokens, not {length}", where="--length")
    return length


def train(
    model: str,
    text: Path,
    out: Path,
    *,
    criteria: Sequence[str],
    seeds: int = 3,
    rank: int = 64,
    epochs: int = 3,
    max_tokens: int = 12288,
    length: int = 512,
    dtype: str = "fp32",
    device: str = "cpu",
    threads: int = 0,
    revision: str | None = None,
    allow_pickle: bool = False,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train predictors into `out`; its manifest. What is there already stays with `resume`."""
    from traces.blocks import blocks
    from traces.loading import use_threads
    from traces.predictors import plans
    from traces.text import read_tokens

    if out.is_file():
        raise InputError(f"{out} is a file; name a folder", where="--out")
    if (out / MANIFEST).exists() and not resume:
        raise InputError(f"{out} holds predictors; add --resume or remove it", where="--out")
    use_threads(threads)
    loaded = _load(model, revision, dtype, device, allow_pickle=allow_pickle)
    parts = blocks(loaded.model)
    if len(parts) < 2:
        raise InputError("a model of one layer has nothing to predict", where="--model")
    words = read_tokens(text, loaded.tokenizer)
    length = _length(loaded, length)
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "model": loaded.checkpoint.name,
        "revision": loaded.checkpoint.revision,
        "config_sha256": loaded.checkpoint.config_sha256,
        "text_sha256": words.sha256,
        "train_share": TRAIN_SHARE,
        "length": length,
        "tokens": max_tokens // length * (length - 1),
        "rank": rank,
        "epochs": epochs,
        "criteria": [*criteria],
        "seeds": seeds,
        "loss": {},
    }
    if resume and (out / MANIFEST).exists():
        before = read_manifest(out)
        for key in ("config_sha256", "text_sha256", "length", "tokens", "rank", "epochs"):
            if before[key] != manifest[key]:
                raise InputError(f"{out} was trained with another {key}; name another folder", where="--resume")
        manifest["loss"] = before["loss"]
    out.mkdir(parents=True, exist_ok=True)
    todo = plans([*criteria], seeds)
    for plan, loss, parameters in console.progress(
        _train(loaded, parts, words, todo, manifest, out), len(todo), "train", quiet=quiet
    ):
        manifest["loss"][plan.file] = {"mean_squared_error": loss, "parameters": parameters}
        _write(out / MANIFEST, manifest)
    return manifest


def _learned_from(text: Tokens) -> np.ndarray:
    """The first part of a text's tokens, which predictors and thresholds are fitted on."""
    return text.ids[: int(len(text.ids) * TRAIN_SHARE)]


def _write(path: Path, manifest: dict[str, Any]) -> None:
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _train(
    loaded: Loaded, parts: Any, text: Tokens, todo: list[Plan], manifest: dict[str, Any], out: Path
) -> Iterator[tuple[Plan, float, int]]:
    from safetensors.torch import save_file

    from traces.predictors import METHODS, fit, parameter_count
    from traces.samples import gather
    from traces.scoring import windows

    length, tokens = manifest["length"], manifest["tokens"]
    chosen = windows(_learned_from(text), length, tokens // (length - 1), first=text.first)
    chosen = chosen.to(loaded.model.device)
    for criterion in dict.fromkeys(p.criterion for p in todo):
        mine = [p for p in todo if p.criterion == criterion]
        missing = [p for p in mine if p.file not in manifest["loss"] or not (out / p.file).exists()]
        for plan in mine:
            if plan not in missing:
                known = manifest["loss"][plan.file]
                yield plan, known["mean_squared_error"], known["parameters"]
        if not missing:
            continue
        scales = sorted({p.scale for p in mine})
        with scratch(out, "samples") as folder:
            data = gather(loaded.model, parts, chosen, criterion, methods=METHODS, scales=scales, folder=folder)
            means = {
                f"{kind}.{scale}": data.mean_target(kind, scale).contiguous()
                for kind in ("heads", "neurons")
                for scale in scales
            }
            save_file(means, out / f"mean.{criterion}.safetensors")
            for plan in missing:
                nets, loss = fit(
                    plan.method,
                    data.inputs,
                    {kind: data.targets[kind, plan.scale] for kind in ("heads", "neurons")},
                    rank=manifest["rank"],
                    seed=plan.seed,
                    epochs=manifest["epochs"],
                    device=str(loaded.model.device),
                )
                state = {k: v.half().cpu().contiguous() for k, v in nets.state_dict().items()}
                save_file(state, out / plan.file)
                yield plan, loss, parameter_count(nets)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `train` wrote beside the predictors."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(
            f"{folder} holds no predictors; make them with python -m traces.shadow train", where="--predictors"
        ) from None
    except ValueError as error:
        raise InputError(f"is not JSON ({error})", where=str(path)) from None
    if manifest.get("schema") != SCHEMA:
        raise InputError(f"schema {manifest.get('schema')!r} is unknown; train again", where=str(path))
    return manifest


def evaluate(
    model: str,
    text: Path,
    predictors: Path,
    out: Path,
    *,
    known: dict[str, Any],
    methods: Sequence[str],
    sparsities: Sequence[float],
    trace: Path | None = None,
    max_tokens: int = 6144,
    length: int = 512,
    prompt: int = 256,
    dtype: str = "fp32",
    device: str = "cpu",
    threads: int = 0,
    revision: str | None = None,
    allow_pickle: bool = False,
    resume: bool = False,
    quiet: bool = False,
) -> list[Row]:
    """Judge predictors, whose manifest is `known` (with the criteria wanted), into the table `out`; its rows."""
    from simulator.trace import read_trace
    from traces.bench import Bench
    from traces.blocks import blocks
    from traces.experiment import evaluation
    from traces.loading import use_threads
    from traces.scoring import scene, windows
    from traces.snapshot import Snapshots
    from traces.text import read_tokens
    from traces.weights import weights_sha256

    if out.suffix != ".parquet":
        raise InputError(f"{out} should end in .parquet", where="--out")
    if trace is not None:
        read_trace(trace)  # An error now and not after hours of runs.
    used = use_threads(threads)
    loaded = _load(model, revision, dtype, device, allow_pickle=allow_pickle)
    if known["config_sha256"] != loaded.checkpoint.config_sha256:
        raise InputError(
            f"{predictors} was trained for {known['model']}, not for {loaded.checkpoint.name}", where="--predictors"
        )
    words = read_tokens(text, loaded.tokenizer)
    length = _length(loaded, length)
    if prompt >= length - 1:
        raise InputError(f"leaves nothing of {length} tokens to score", where="--prompt")
    # Another text was not seen in training at all; of the same one, only the rest was not.
    learned = _learned_from(words)
    rest = words.ids[len(learned) :] if words.sha256 == known["text_sha256"] else words.ids
    chosen = windows(rest, length, max_tokens // length, first=words.first).to(loaded.model.device)
    plan = {
        "predictors": known,
        "weights": weights_sha256(loaded.checkpoint.folder),
        "text": words.sha256,
        "windows": hashlib.sha256(chosen.cpu().numpy().tobytes()).hexdigest(),
        "prompt": prompt,
        "dtype": loaded.dtype,
        "device": loaded.device,
        "threads": used,
        "methods": [*methods],
        "sparsities": [*sparsities],
        "versions": {name: version(name) for name in ("shadowline", "torch", "transformers")},
    }
    snapshots = Snapshots(out, plan, settled={}, resume=resume)
    try:
        bench = Bench(loaded.model, blocks(loaded.model), scene(loaded.model, chosen, prompt))
        with scratch(snapshots.folder, "scores") as folder:
            steps = evaluation(bench, predictors, known, learned, words.first, length, folder, methods, sparsities)
            _measure(bench, steps, snapshots, quiet=quiet)
    except BaseException:
        snapshots.close()
        raise
    _save_rows(bench, out, trace)
    snapshots.finish()
    return bench.rows


def _measure(bench: Bench, steps: list[Step], snapshots: Snapshots, *, quiet: bool) -> None:
    """Rows of `steps`, those first that an interrupted run had; each is saved as soon as it is there."""
    from traces.experiment import measured

    before = snapshots.logged()
    for rows in before:
        bench.rows += rows
    work = steps[len(before) :]
    for _, rows in console.progress(measured(bench, work), len(work), "evaluate", quiet=quiet):
        snapshots.log(rows)


def _save_rows(bench: Bench, out: Path, trace: Path | None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from simulator.trace import add_quality

    columns = bench.columns()
    with replaced(out) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")
    if trace is not None:
        add_quality(trace, columns)
