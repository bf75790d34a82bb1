"""A ReLU model of your own: ``python -m traces.relufy --model DIR --text TEXT --heldout TEXT --out DIR [--resume]``.

The activation of every FFN becomes a ReLU and training goes on, of the FFNs alone: the first stage of ReLU Strikes Back
(arXiv:2310.04564), with ``--l1`` the rising penalty of ProSparse (arXiv:2402.13516). With ``--match`` each FFN first
learns the output of the one it replaces, on the inputs of the model as it was: far more is told by a token.
"""

from __future__ import annotations

import copy
import json as text_of
from collections.abc import Iterator
from contextlib import contextmanager
from math import cos, pi
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.base import console
from simulator.base.errors import InputError, UnsupportedError
from simulator.base.files import replaced
from traces.blocks import hooked

if TYPE_CHECKING:
    import torch

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

HELDOUT_BYTES = 16_384
"""Bytes of the held-out text that the curve is measured on [B]."""
WARM_UP = 20
_KEYS = ("hidden_act", "hidden_activation", "activation_function")
COLUMNS = ("step", "tokens", "bits_per_byte", "ffn_zeros")
"""Of the curve: optimizer steps, training tokens seen, bits per held-out byte, share of exact zeros."""


def relufy(model: Any) -> list[tuple[Any, Any]]:
    """Make the activation of every FFN a ReLU, in the modules and in the config, and train nothing but the FFNs.

    Returns
    -------
    list of (Module, Module)
        Each layer's FFN, and a frozen copy of it as it was.

    Raises
    ------
    UnsupportedError
        FFNs that are no module of their own, whose gate and up projection are one, or routed experts.
    """
    from torch import nn

    from traces.layouts import decoder_layers

    model.requires_grad_(False)
    found = []
    for layer, layout in decoder_layers(model):
        path, _, name = layout.act.rpartition(".")
        if not path or layout.experts or layout.gate == "fused":
            raise UnsupportedError(f"FFNs of layout {layout.name} are not trained here", where="--model")
        ffn = layer.get_submodule(path)
        before = copy.deepcopy(ffn)
        setattr(ffn, name, nn.ReLU())
        found.append((ffn.requires_grad_(True), before))
    for key in _KEYS:
        if hasattr(model.config, key):
            setattr(model.config, key, "relu")
    return found


def unlike(model: Any, ffns: list[tuple[Any, Any]], windows: torch.Tensor) -> torch.Tensor:
    """Squared distance of each FFN's output to that of its copy over the copy's, mean over tokens and layers [-].

    The copies' outputs are what the next layer reads, so that every FFN learns on the inputs of the model as it was.
    """
    import torch

    lost: list[torch.Tensor] = []

    def hook(before: Any) -> Any:
        def compare(_: Any, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                wanted = before(args[0])
            apart = (out.float() - wanted.float()).square().sum(-1)
            lost.append((apart / wanted.float().square().sum(-1).clamp_min(1e-12)).mean())
            return wanted

        return compare

    handles = [ffn.register_forward_hook(hook(before)) for ffn, before in ffns]
    with hooked(handles), torch.autocast("cpu", torch.bfloat16):
        model.base_model(input_ids=windows[:, :-1], use_cache=False)
    return torch.stack(lost).mean()


class Neurons:
    """What FFN neurons put out: their L1 norm while training, their exact zeros while not."""

    def __init__(self) -> None:
        self.norm: torch.Tensor | float = 0.0
        self.zeros = self.seen = 0

    def see(self, module: Any, args: tuple[torch.Tensor, ...]) -> None:
        """Take the input of a layer's last projection, (batch, tokens, neurons)."""
        x = args[0]
        if module.training:
            self.norm = self.norm + x.float().abs().sum(-1).mean()
        else:
            self.zeros += int((x == 0).sum())
            self.seen += x.numel()

    def taken_norm(self) -> torch.Tensor | float:
        """Mean over tokens of the L1 norm of all layers since it was last asked for."""
        norm, self.norm = self.norm, 0.0
        return norm

    def taken_zeros(self) -> float:
        """Share of exact zeros since it was last asked for [-]."""
        share = self.zeros / self.seen
        self.zeros = self.seen = 0
        return share


@contextmanager
def watched(model: Any) -> Iterator[Neurons]:
    """The neurons of every layer of `model` while inside."""
    from traces.layouts import decoder_layers

    neurons = Neurons()
    layers = decoder_layers(model)
    with hooked([layer.get_submodule(at.down).register_forward_pre_hook(neurons.see) for layer, at in layers]):
        yield neurons


def penalty_weight(step: int, steps: int, most: float) -> float:
    """Half a cosine from nothing up to `most` over the run, as ProSparse raises it [nat]."""
    return most * 0.5 * (1.0 - cos(pi * step / steps))


def _write(path: Path, text: str) -> None:
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _planned(out: Path, plan: dict[str, Any], *, resume: bool) -> None:
    """Keep `plan` beside the run, or refuse one that does not go on with what lies there."""
    file = out / "plan.json"
    if not out.exists():
        out.mkdir(parents=True)
        _write(file, text_of.dumps(plan, indent=1) + "\n")
        return
    if not resume:
        raise InputError(f"{out} is there already; add --resume or remove it", where="--out")
    before = text_of.loads(file.read_text("utf-8")) if file.is_file() else {}
    changed = sorted(k for k in plan.keys() | before.keys() if plan.get(k) != before.get(k))
    if changed:
        raise InputError(f"{out} is of another run ({', '.join(changed)}); name another folder", where="--resume")


def _write_curve(path: Path, curve: list[dict[str, float]]) -> None:
    rows = [",".join(f"{row[c]:.6g}" if isinstance(row[c], float) else str(row[c]) for c in COLUMNS) for row in curve]
    _write(path, "\n".join([",".join(COLUMNS), *rows]) + "\n")


def _show(curve: list[dict[str, float]]) -> None:
    console.table(
        "ReLU model over its training",
        ["tokens", "bits per byte", "zeros"],
        [[f"{row['tokens']:,}", f"{row['bits_per_byte']:.3f}", f"{row['ffn_zeros']:.1%}"] for row in curve],
    )


@app.command()
def main(
    model: Annotated[str, typer.Option(help="Folder, or hub id org/name.")],
    text: Annotated[Path, typer.Option(help="UTF-8 file or folder of them to train on.")],
    heldout: Annotated[Path, typer.Option(help="UTF-8 file that the curve is measured on.")],
    out: Annotated[Path, typer.Option(help="Folder for the state, curve.csv and the model.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps that the schedules are laid over.")] = 2000,
    stop: Annotated[int | None, typer.Option(min=1, help="End at this step and write the model as it is.")] = None,
    match: Annotated[int, typer.Option(min=0, help="Of them, the first that match each FFN to what it was.")] = 0,
    rows: Annotated[int, typer.Option(min=1, help="Windows of 512 tokens per step.")] = 4,
    peak: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = 5e-4,
    l1: Annotated[float, typer.Option("--l1", min=0.0, help="Final weight of the L1 norm of a token's neurons.")] = 0.0,
    every: Annotated[int, typer.Option(min=1, help="Steps between points of the curve and saved states.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the text.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the saved state.")] = False,
    json: Annotated[bool, typer.Option("--json", help="The curve on stdout.")] = False,
) -> None:
    """Turn a model's FFNs into ReLU ones and train them on; write the curve of sparsity and loss, and the model."""
    from traces.fetch import bits_per_byte
    from traces.loading import find, load, quieten, use_threads
    from traces.text import read_tokens, text_files
    from traces.training import CONTEXT, fit, next_token

    checked = text_files(text), text_files(heldout)
    if len(checked[1]) != 1:
        raise InputError(f"{heldout} is a folder; name one file", where="--heldout")
    found = find(model)
    use_threads(threads)
    quieten()
    loaded = load(found, dtype="fp32", device="cpu")
    tokens = read_tokens(text, loaded.tokenizer)
    held = checked[1][0].read_bytes()[:HELDOUT_BYTES].decode("utf-8", "ignore")
    plan = {
        "model": found.name,
        "config_sha256": found.config_sha256,
        "text_sha256": tokens.sha256,
        "heldout": held[:64],
        "steps": steps,
        "match": match,
        "rows": rows,
        "lr": peak,
        "l1": l1,
        "every": every,
        "seed": seed,
    }
    if len(tokens.ids) < rows * CONTEXT * 2:
        raise InputError(f"{len(tokens.ids)} tokens are too few for steps of {rows} x {CONTEXT}", where="--text")
    _planned(out, plan, resume=resume)
    ffns = relufy(loaded.model)
    curve: list[dict[str, float]] = []
    with watched(loaded.model) as neurons:

        def log(step: int) -> dict[str, float]:
            lost = bits_per_byte(loaded, held)
            row: dict[str, float] = dict(
                zip(COLUMNS, (step, step * rows * CONTEXT, lost, neurons.taken_zeros()), strict=True)
            )
            console.say(f"step {step}: {row['tokens']:,} tokens, {lost:.4f} bits per byte, {row['ffn_zeros']:.2%} zero")
            _write_curve(out / "curve.csv", [*curve, row])
            return row

        def loss_of(step: int, windows: torch.Tensor) -> torch.Tensor:
            matched = step < match
            loss = unlike(loaded.model, ffns, windows) if matched else next_token(loaded.model, windows)
            return loss + penalty_weight(step, steps, l1) * neurons.taken_norm()

        fit(
            loaded.model,
            tokens.ids,
            steps=steps,
            stop=stop,
            rows=rows,
            rows_at_once=1,
            seed=seed,
            peak=peak,
            warm_up=WARM_UP,
            save_every=every,
            checkpoint=out / "checkpoint.pt",
            loss_of=loss_of,
            logged=curve,
            log=log,
            quiet=json,
        )
    _write_curve(out / "curve.csv", curve)
    with replaced(out / "model") as folder:
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    if json:
        console.out_json({"rows": curve})
    else:
        _show(curve)


if __name__ == "__main__":
    console.main(app)
