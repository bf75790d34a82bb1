"""Predictors of heads and neurons, trained and judged: ``python -m traces.shadow train|evaluate``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.base import console
from simulator.base.errors import InputError, UnknownNameError
from simulator.base.files import replaced, scratch
from traces.experiment import CURVE

if TYPE_CHECKING:
    import numpy as np

    from traces.bench import Bench, Step
    from traces.loading import Loaded
    from traces.predictors import Plan
    from traces.snapshot import Snapshots
    from traces.text import Tokens

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

MANIFEST = "predictors.json"
SCHEMA = 2
TRAIN_SHARE = 0.6
"""Predictors learn on the first part of the text and are judged on the rest [-]."""


def _names(what: str, text: str, known: Sequence[str], where: str = "") -> list[str]:
    """``all``, or names with commas, each once."""
    names = list(dict.fromkeys(n.strip() for n in text.split(",") if n.strip())) if text != "all" else list(known)
    for name in names:
        if name not in known:
            raise UnknownNameError(what, name, known, where=where or f"--{what}s")
    if not names:
        raise InputError(f"names no {what}; give all, or some of {', '.join(known)}", where=where or f"--{what}s")
    return names


def _shares(text: str) -> list[float]:
    """Shares between 0 and 1, with commas, ascending and each once."""
    try:
        found = sorted({round(float(part), 6) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or not 0.0 < found[0] <= found[-1] < 1.0:
        raise InputError(f"{text!r} is not shares between 0 and 1 with commas, as 0.3,0.5", where="--sparsities")
    return found


def _load(model: str, revision: str | None, dtype: str, device: str) -> Loaded:
    from traces.loading import find, load, quieten

    quieten()
    return load(find(model, revision=revision), dtype=dtype, device=device)


def _length(loaded: Loaded, length: int) -> int:
    known = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    if known and length > known:
        raise InputError(f"the model was made for {known} tokens, not {length}", where="--length")
    return length


_MODEL = Annotated[str, typer.Option("--model", help="Hugging Face folder or hub id")]
_TEXT = Annotated[Path, typer.Option("--text", help="UTF-8 text file")]
_DTYPE = Annotated[str, typer.Option("--dtype", help="fp32 | bf16 | fp16 | auto")]
_DEVICE = Annotated[str, typer.Option("--device", help="auto | cpu | cuda | cuda:N")]
_LENGTH = Annotated[int, typer.Option("--length", min=8, help="tokens per window")]
_THREADS = Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0 leaves torch's")]
_REVISION = Annotated[str | None, typer.Option("--revision", help="commit or tag of a hub id")]


@app.command()
def train(
    model: _MODEL,
    text: _TEXT,
    out: Annotated[Path, typer.Option("--out", help="folder for the predictors")],
    criteria: Annotated[str, typer.Option("--criteria", help="all, or names with commas")] = "all",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="trainings of each predictor")] = 3,
    rank: Annotated[int, typer.Option("--rank", min=1, help="width of the hidden layer")] = 64,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="passes over the text")] = 3,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=8, help="tokens of the text read")] = 12288,
    length: _LENGTH = 512,
    dtype: _DTYPE = "fp32",
    device: _DEVICE = "cpu",
    threads: _THREADS = 0,
    revision: _REVISION = None,
    resume: Annotated[bool, typer.Option("--resume", help="keep predictors already there")] = False,
    json_: Annotated[bool, typer.Option("--json", help="the manifest on stdout")] = False,
) -> None:
    """Train ShadowLLM's and Deja Vu's predictors on the first 60 % of a text."""
    from traces.blocks import blocks
    from traces.criteria import CRITERIA
    from traces.loading import use_threads
    from traces.predictors import plans
    from traces.text import read_tokens

    wanted = _names("criterion", criteria, list(CRITERIA), "--criteria")
    if out.is_file():
        raise InputError(f"{out} is a file; name a folder", where="--out")
    if (out / MANIFEST).exists() and not resume:
        raise InputError(f"{out} holds predictors; add --resume or remove it", where="--out")
    use_threads(threads)
    loaded = _load(model, revision, dtype, device)
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
        "criteria": wanted,
        "seeds": seeds,
        "loss": {},
    }
    if resume and (out / MANIFEST).exists():
        before = _manifest(out)
        for key in ("config_sha256", "text_sha256", "length", "tokens", "rank", "epochs"):
            if before[key] != manifest[key]:
                raise InputError(f"{out} was trained with another {key}; name another folder", where="--resume")
        manifest["loss"] = before["loss"]
    out.mkdir(parents=True, exist_ok=True)
    todo = plans(wanted, seeds)
    for plan, loss, parameters in console.progress(
        _train(loaded, parts, words, todo, manifest, out), len(todo), "train", quiet=json_
    ):
        manifest["loss"][plan.file] = {"mean_squared_error": loss, "parameters": parameters}
        _write(out / MANIFEST, manifest)
    if json_:
        console.out_json(manifest)
    else:
        console.out(f"{len(todo)} predictors of {model} in {out}")


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


def _manifest(folder: Path) -> dict[str, Any]:
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


@app.command()
def evaluate(
    model: _MODEL,
    text: _TEXT,
    predictors: Annotated[Path, typer.Option("--predictors", help="folder that train wrote")],
    out: Annotated[Path, typer.Option("--out", help="Parquet file for the rows")],
    trace: Annotated[Path | None, typer.Option("--trace", help="trace folder that gets the rows too")] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=8, help="tokens of the windows, prompts included")
    ] = 6144,
    length: _LENGTH = 512,
    prompt: Annotated[int, typer.Option("--prompt", min=32, help="tokens of a window that run dense")] = 256,
    dtype: _DTYPE = "fp32",
    device: _DEVICE = "cpu",
    threads: _THREADS = 0,
    revision: _REVISION = None,
    methods: Annotated[str, typer.Option("--methods", help="all, or names with commas")] = "all",
    criteria: Annotated[str, typer.Option("--criteria", help="all that were trained, or names with commas")] = "all",
    sparsities: Annotated[
        str, typer.Option("--sparsities", help="shares dropped, with commas; criteria but the first: 0.3, 0.5, 0.7")
    ] = ",".join(map(str, CURVE)),
    resume: Annotated[bool, typer.Option("--resume", help="continue what an interrupted run left")] = False,
    json_: Annotated[bool, typer.Option("--json", help='{"rows": [...]} on stdout')] = False,
) -> None:
    """Perplexity and agreement against sparsity on the last 40 % of a text, for every method."""
    from simulator.trace import read_trace
    from traces.bench import Bench
    from traces.blocks import blocks
    from traces.experiment import METHODS, evaluation
    from traces.loading import use_threads
    from traces.scoring import scene, windows
    from traces.snapshot import Snapshots
    from traces.text import read_tokens
    from traces.weights import weights_sha256

    wanted = _names("method", methods, METHODS)
    known = _manifest(predictors)
    known["criteria"] = _names("criterion", criteria, known["criteria"], "--criteria")
    drops = _shares(sparsities)
    if out.suffix != ".parquet":
        raise InputError(f"{out} should end in .parquet", where="--out")
    if trace is not None:
        read_trace(trace)  # An error now and not after hours of runs.
    used = use_threads(threads)
    loaded = _load(model, revision, dtype, device)
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
        "methods": wanted,
        "sparsities": drops,
        "versions": {name: version(name) for name in ("shadowline", "torch", "transformers")},
    }
    snapshots = Snapshots(out, plan, settled={}, resume=resume)
    try:
        bench = Bench(loaded.model, blocks(loaded.model), scene(loaded.model, chosen, prompt))
        with scratch(snapshots.folder, "scores") as folder:
            steps = evaluation(bench, predictors, known, learned, words.first, length, folder, wanted, drops)
            _measure(bench, steps, snapshots, quiet=json_)
    except BaseException:
        snapshots.close()
        raise
    _save_rows(bench, out, trace)
    snapshots.finish()
    if json_:
        console.out_json({"rows": bench.rows})
    else:
        from traces.shadow_tables import print_tables

        print_tables(bench.rows, model)


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


if __name__ == "__main__":
    console.main(app)
