"""What policies cost in quality on your model and text: ``python -m traces.quality``."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.base import console
from simulator.base.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from simulator.policies import Policies, Policy
    from simulator.trace import MeasuredPolicy, QualityFile
    from traces.loading import Loaded
    from traces.measurers import Measurer, Subject
    from traces.scoring import Scene, Setting

CALIBRATION_SHARE = 1 / 8
"""Share of the sequences that thresholds and masks are set on; they are not scored."""
PACKAGES = ("shadowline", "torch", "transformers")
LENGTH = 512
LEAST_SCORED = 16
"""Tokens of a window that are scored, at least [tokens]."""

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def policies_of(texts: Sequence[str]) -> list[Policies]:
    """Policies of repeated ``--policy``, commas between, each checked to run here.

    Raises
    ------
    InputError
        Bad syntax, an unknown policy, or one that cannot be run on a model.
    """
    from simulator.policies import expand, split
    from traces.measurers import measurers_of

    spelled = [part for text in texts for part in split(text, ",")]
    found = {p.spelling: p for text in spelled for p in expand(text)}
    for policies in found.values():
        measurers_of(policies)
    return list(found.values())


def cut(tokens: np.ndarray) -> tuple[Any, Any]:
    """Sequences to calibrate on and to score, from those of the text (sequences, length)."""
    import torch

    count = max(1, round(len(tokens) * CALIBRATION_SHARE))
    if len(tokens) - count < 2:
        raise InputError(
            f"{len(tokens)} sequences are too few: one to calibrate on and two to score are the least; give more text,"
            " more --max-tokens or a smaller --length",
            where="--text",
        )
    ids = torch.as_tensor(tokens)
    return ids[:count], ids[count:]


def measure(subject: Subject, scene: Scene, policies: Policies) -> MeasuredPolicy:
    """Perplexity of the scored tokens under `policies`, against dense on the same tokens.

    Raises
    ------
    InputError
        A KV method that leaves out nothing of windows of this length.
    """
    from simulator.trace import MeasuredPolicy
    from traces.measurers import measurers_of
    from traces.scoring import judge

    runs = measurers_of(policies)
    subject.read.clear()
    with ExitStack() as stack:
        for policy, how in runs:
            stack.enter_context(how.run(subject, policy))
        score = judge(subject.model, scene, _batches(subject, scene, runs), whole=_whole(runs))
    if subject.read and min(subject.read) >= 1.0:
        raise InputError(
            f"{policies.spelling} keeps everything of windows of {scene.ids.shape[1]} tokens; raise --length",
            where="--policy",
        )
    return MeasuredPolicy(
        policy=policies.spelling,
        perplexity=score.perplexity,
        dense_perplexity=scene.dense_perplexity,
        log_ratio_se=score.log_ratio_se,
        agreement=score.agreement,
    )


def _whole(runs: Sequence[tuple[Policy, Measurer]]) -> bool:
    return any(how.whole for _, how in runs)


def _batches(subject: Subject, scene: Scene, runs: Sequence[tuple[Policy, Measurer]]) -> Setting:
    """Setting of `judge` that hands methods what the prompts of its batch looked at, where they are not in the pass."""
    from traces.kv_quality import LOOK_BACK

    needed = not _whole(runs) and any(policy.name in LOOK_BACK for policy, _ in runs)

    @contextmanager
    def at(number: int) -> Iterator[None]:
        subject.before = subject.looking(scene)[number] if needed else None
        yield

    return at


def _length(loaded: Loaded, asked: int | None, prompt: int | None) -> tuple[int, int]:
    """Tokens of a window and of its prompt."""
    longest = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None) or 2**31
    length = min(LENGTH, longest) if asked is None else asked
    if length > longest:
        raise InputError(f"{length} is more than the model's {longest} positions", where="--length")
    start = length // 2 if prompt is None else prompt
    if length - start - 1 < LEAST_SCORED:
        raise InputError(
            f"{start} of {length} tokens leave fewer than {LEAST_SCORED} to score; lower it or raise --length",
            where="--prompt",
        )
    return length, start


def _started(out: Path, plan: QualityFile, *, resume: bool) -> QualityFile:
    """The file to go on with: the one at `out` where it is of the same run."""
    from simulator.trace import read_quality

    if not out.exists():
        return plan
    if not resume:
        raise InputError(f"{out} is there; add --resume to go on with it, or name another file", where="--out")
    before = read_quality(out)
    if not before.same_run(plan):
        raise InputError(f"{out} is of another model, text or setting; name another file", where="--resume")
    return before


@app.command()
def main(
    model: Annotated[str, typer.Option(help="Folder, or hub id org/name.")],
    text: Annotated[Path, typer.Option(help="UTF-8 file, or a folder of them.")],
    policy: Annotated[list[str], typer.Option(help="Policies with commas; repeat the flag for more.")],
    out: Annotated[Path, typer.Option(help="JSON file for --quality of predict and sweep.")] = Path("quality.json"),
    length: Annotated[int | None, typer.Option(min=32, help="Tokens of a window; 512, or the model's limit.")] = None,
    prompt: Annotated[
        int | None, typer.Option(min=16, help="Tokens at its start that are not scored; half of it.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=128, help="Tokens read from the text.")] = 32_768,
    dtype: Annotated[str, typer.Option(help="auto (as stored), bf16, fp16 or fp32.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves torch's.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the shuffle of the windows.")] = 0,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read pickled weights; they can run code.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Keep what the file already holds.")] = False,
    json: Annotated[bool, typer.Option("--json", help="The file on stdout.")] = False,
) -> None:
    """Measure what policies cost in perplexity on a model and text of your own.

    Every policy runs as masks on the model's own forward pass and is scored on the same tokens as dense; the file is
    written after each, so that a killed run loses one policy at most. `predict --quality FILE` and `sweep` read it.
    """
    from simulator.model.hub import from_file
    from simulator.trace import ModelFacts, QualityFile, write_quality
    from traces.loading import find, load, quieten, use_threads
    from traces.measurers import Subject
    from traces.scoring import scene
    from traces.text import first_tokens, read_sequences, text_files
    from traces.weights import weights_sha256

    wanted = policies_of(policy)
    text_files(text)
    found = find(model, revision=revision, allow_pickle=allow_pickle)
    use_threads(threads)
    quieten()
    loaded = load(found, dtype=dtype, device=device, allow_pickle=allow_pickle)
    length, prompt = _length(loaded, length, prompt)
    sequences = read_sequences(text, loaded.tokenizer, length=length, max_tokens=max_tokens, seed=seed)
    calibration, windows = (part.to(loaded.model.device) for part in cut(sequences.tokens))
    scored = length - prompt - 1
    is_local = found.revision == "local"
    settings = {
        "length": length,
        "prompt": prompt,
        "seed": seed,
        "windows": len(windows),
        "bos": bool(first_tokens(loaded.tokenizer)),
        "weights_sha256": weights_sha256(found.folder) if is_local else "",
    }
    plan = QualityFile(
        model=found.name,
        revision="" if is_local else found.revision,
        config_sha256=found.config_sha256,
        facts=ModelFacts.of(from_file(found.folder)),
        text_sha256=sequences.sha256,
        dtype=loaded.dtype,
        tokens=len(windows) * scored,
        context=prompt + (scored + 1) / 2.0,
        settings=settings,
        versions={"python": platform.python_version()} | {n: version(n) for n in PACKAGES},
    )
    started = _started(out, plan, resume=resume)
    done = {row.policy for row in started.rows}
    todo = [p for p in wanted if p.spelling not in done]
    if todo:
        subject = Subject(loaded.model, calibration, prompt, plan.context)
        held = scene(loaded.model, windows, prompt)
        for row in console.progress(_rows(subject, held, todo), len(todo), "policies", quiet=json):
            started = started.model_copy(update={"rows": (*started.rows, row)})
            write_quality(out, started)
    if json:
        console.out_json(started.model_dump(by_alias=True))
    else:
        show(started, found.folder, out)


def _rows(subject: Subject, held: Scene, todo: Sequence[Policies]) -> Iterator[MeasuredPolicy]:
    for policies in todo:
        yield measure(subject, held, policies)


def show(found: QualityFile, folder: Path, out: Path) -> None:
    """Print every policy of the file, with its loss on the measure that rankings use."""
    from simulator.model.hub import from_file
    from simulator.policies import parse
    from simulator.results.loss import UNIT
    from simulator.results.loss_lookup import loss_on
    from simulator.results.quality import of_file
    from traces.measurers import measurers_of

    measured, spec = of_file(found), from_file(folder)
    body, notes = [], []
    for row in found.rows:
        policies = parse(row.policy)
        body.append(
            [
                row.policy,
                f"{row.perplexity:.3f}",
                f"{row.perplexity / row.dense_perplexity:.4f} +- {row.log_ratio_se:.4f}",
                f"{row.agreement:.1%}",
                loss_on(spec, policies, measured).short,
            ]
        )
        notes += [f"{p.name}: {how.note}" for p, how in measurers_of(policies) if how.note]
    dense = found.rows[0].dense_perplexity if found.rows else float("nan")
    windows = f"{found.settings['windows']} windows of {found.settings['length']}"
    bos = "each begins with BOS" if found.settings["bos"] else "the tokenizer has no BOS"
    told = f"{found.tokens:,} tokens scored in {windows}, the same for all; {bos}. Loss in {UNIT}."
    console.table(
        f"{found.model}, dense perplexity {dense:.3f}",
        ["policy", "perplexity", "over dense (standard error)", "same token", "loss"],
        body,
        left=1,
        note=told + "".join(f" {n}." for n in dict.fromkeys(notes)),
    )
    console.say(f"python -m simulator.predict --quality {out}")


if __name__ == "__main__":
    console.main(app)
