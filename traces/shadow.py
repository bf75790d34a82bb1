"""Predictors of heads and neurons, trained and judged: ``python -m traces.shadow train|evaluate|tables|reproduce``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from simulator.base import console
from simulator.base.errors import InputError, UnknownNameError
from simulator.scenario.options import scenario_options, with_options

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

SHIPPED = Path(__file__).resolve().parent / "shipped"
OF_SHIPPED = ("tiny-llama-py", "tiny-opt-py")
"""Shipped with their weights."""


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


_MODEL = Annotated[str, typer.Option("--model", help="Hugging Face folder or hub id")]
_TEXT = Annotated[Path, typer.Option("--text", help="UTF-8 text file")]
_DTYPE = Annotated[str, typer.Option("--dtype", help="fp32 | bf16 | fp16 | auto")]
_DEVICE = Annotated[str, typer.Option("--device", help="auto | cpu | cuda | cuda:N")]
_LENGTH = Annotated[int, typer.Option("--length", min=8, help="tokens per window")]
_THREADS = Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0 leaves torch's")]
_REVISION = Annotated[str | None, typer.Option("--revision", help="commit or tag of a hub id")]
_PICKLE = Annotated[bool, typer.Option("--allow-pickle", help="read pickled weights; they can run code")]


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
    allow_pickle: _PICKLE = False,
    resume: Annotated[bool, typer.Option("--resume", help="keep predictors already there")] = False,
    json_: Annotated[bool, typer.Option("--json", help="the manifest on stdout")] = False,
) -> None:
    """Train ShadowLLM's and Deja Vu's predictors on the first 60 % of a text."""
    from traces import shadow_runs
    from traces.criteria import CRITERIA

    manifest = shadow_runs.train(
        model,
        text,
        out,
        criteria=_names("criterion", criteria, list(CRITERIA), "--criteria"),
        seeds=seeds,
        rank=rank,
        epochs=epochs,
        max_tokens=max_tokens,
        length=length,
        dtype=dtype,
        device=device,
        threads=threads,
        revision=revision,
        allow_pickle=allow_pickle,
        resume=resume,
        quiet=json_,
    )
    if json_:
        console.out_json(manifest)
    else:
        console.out(f"{len(manifest['loss'])} predictors of {model} in {out}")


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
    allow_pickle: _PICKLE = False,
    methods: Annotated[str, typer.Option("--methods", help="all, or names with commas")] = "all",
    criteria: Annotated[str, typer.Option("--criteria", help="all that were trained, or names with commas")] = "all",
    sparsities: Annotated[
        str | None, typer.Option("--sparsities", help="shares dropped, with commas; 0.1 to 0.9")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue what an interrupted run left")] = False,
    json_: Annotated[bool, typer.Option("--json", help='{"rows": [...]} on stdout')] = False,
) -> None:
    """Perplexity and agreement against sparsity on the last 40 % of a text, for every method."""
    from traces import shadow_runs
    from traces.experiment import CURVE, METHODS

    wanted = _names("method", methods, METHODS)
    known = shadow_runs.read_manifest(predictors)
    known["criteria"] = _names("criterion", criteria, known["criteria"], "--criteria")
    rows = shadow_runs.evaluate(
        model,
        text,
        predictors,
        out,
        known=known,
        methods=wanted,
        sparsities=CURVE if sparsities is None else _shares(sparsities),
        trace=trace,
        max_tokens=max_tokens,
        length=length,
        prompt=prompt,
        dtype=dtype,
        device=device,
        threads=threads,
        revision=revision,
        allow_pickle=allow_pickle,
        resume=resume,
        quiet=json_,
    )
    if json_:
        console.out_json({"rows": rows})
    else:
        from traces.shadow_tables import print_tables

        print_tables(rows, model)


@app.command()
def tables(
    traces: Annotated[
        list[Path] | None, typer.Argument(metavar="TRACE...", help="folders of judged traces; those that ship")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help='{"verdicts": [...]} on stdout')] = False,
) -> None:
    """ShadowLLM's claims judged by the quality of traces, then every measurement."""
    from simulator.trace import read_trace
    from traces.shadow_tables import print_tables
    from traces.verdicts import rows_of

    found = {}
    for folder in traces or sorted(p.parent for p in SHIPPED.glob("*/trace/quality.parquet")):
        trace = read_trace(folder)
        if trace.quality is None:
            raise InputError("has no quality; python -m traces.shadow evaluate --trace adds it", where=str(folder))
        found[trace.manifest.model] = rows_of(trace.quality)
    _print_verdicts(found, json_=json_)
    if not json_:
        for model, rows in found.items():
            print_tables(rows, model)


def _print_verdicts(by_model: dict[str, list[dict[str, Any]]], *, json_: bool) -> None:
    from traces import verdicts

    if not json_:
        verdicts.show(by_model)
        return
    console.out_json(
        {
            "verdicts": [
                {"model": model, "claim": v.claim.text, "paper": v.claim.paper, "verdict": v.told}
                | {
                    side: {f"{s:g}": r for s, r in ratios.items()}
                    for side, ratios in (("ours", v.ours), ("other", v.other))
                }
                for model, rows in by_model.items()
                for v in verdicts.verdicts(rows)
            ]
        }
    )


@app.command("figure")
@with_options(given=scenario_options(without=("policy", "kernel", "trace", "trace_transfer", "quality")))
def figure(
    given: dict[str, Any],
    *,
    traces: Annotated[Path, typer.Argument(metavar="TRACE", help="folder of a judged trace")],
    rank: Annotated[int, typer.Option(min=1, help="width of the predictors on another model than the trace's")] = 2048,
    plot: Annotated[Path | None, typer.Option(help="also draw it: a .svg, .png or .pdf file")] = None,
    json_: Annotated[bool, typer.Option("--json", help='{"rows": [...]} on stdout')] = False,
) -> None:
    """Quality against time per token at equal sparsity: ShadowLLM, Deja Vu and others on any device and batch."""
    from simulator.results.speed_quality import picture, sentence, traded
    from simulator.scenario.scenario import Scenario
    from simulator.trace import read_trace

    trace = read_trace(traces)
    found, left_out = traded(trace, Scenario.of(**given), rank)
    a = found[0].answer
    where = f"{a.model} on {a.device}, batch {a.batch:.0f}, {a.prompt_tokens:.0f} + {a.output_tokens:.0f} tokens"
    if plot is not None:
        from traces.figures import draw_all

        draw_all([picture(found, f"measured on {trace.manifest.model}")], plot, where)
    if json_:
        console.out_json({"rows": [t.to_dict() for t in found], "left_out": left_out})
        return
    console.table(
        where,
        ["policy", "dropped", "perplexity x", "same token", "TPOT ms", "vs dense"],
        [t.cells() for t in found],
        note=". ".join(
            [
                f"Perplexity over dense's and next tokens equal to dense's as measured on {trace.manifest.model}, the"
                " best variant of each; times predicted",
                *filter(None, [sentence(found)]),
                *(f"{method} is left out: {why}" for method, why in left_out.items()),
            ]
        ),
    )
    if plot is not None:
        console.say(f"drawn in {plot}")


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="a shipped model: " + ", ".join(OF_SHIPPED))],
    out: Annotated[Path, typer.Option("--out", help="folder for predictors and quality.parquet")],
    quick: Annotated[
        bool, typer.Option("--quick", help="plainact, one seed, a half, few tokens: under a minute")
    ] = False,
    threads: _THREADS = 0,
    resume: Annotated[bool, typer.Option("--resume", help="continue what an interrupted run left")] = False,
    json_: Annotated[bool, typer.Option("--json", help='{"verdicts": [...]} on stdout')] = False,
) -> None:
    """Train the predictors of a shipped model, judge them on 20,400 tokens and print the claims."""
    from traces import shadow_runs

    if name not in OF_SHIPPED:
        raise UnknownNameError("model", name, OF_SHIPPED, where="MODEL")
    model, text = str(SHIPPED / name / "model"), SHIPPED / "heldout.txt"
    predictors = out / "predictors"
    same: dict[str, Any] = {"threads": threads, "resume": resume, "quiet": json_}
    known = shadow_runs.train(
        model,
        text,
        predictors,
        criteria=["plainact"] if quick else ["plainact", "l2norm"],
        seeds=1 if quick else 3,
        max_tokens=6144 if quick else 12288,
        **same,
    )
    rows = shadow_runs.evaluate(
        model,
        text,
        predictors,
        out / "quality.parquet",
        known=known,
        methods=["random", "static", "teal", "cats", "oracle", "shadowllm", "dejavu"],
        sparsities=[0.5] if quick else [0.3, 0.5, 0.7],
        max_tokens=2048 if quick else 40_960,
        **same,
    )
    _print_verdicts({name: rows}, json_=json_)


if __name__ == "__main__":
    console.main(app)
