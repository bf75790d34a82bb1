"""The one trainer: what batch a step sees, its learning rate, AdamW, and a state to go on from after a kill."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import cos, pi
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from simulator.base import console
from simulator.base.files import replaced

if TYPE_CHECKING:
    import numpy as np
    import torch

CONTEXT = 512
WARM_UP = 100


def batch_at(ids: np.ndarray, step: int, *, rows: int, seed: int) -> np.ndarray:
    """Windows of step `step`: a fresh shift and shuffle per epoch, a function of (seed, step) alone.

    Returns
    -------
    ndarray of shape (rows, CONTEXT + 1)
        Token ids; the last column is only a target.
    """
    import numpy as np

    per_epoch = (len(ids) - 1 - CONTEXT) // CONTEXT // rows
    epoch, at = divmod(step, per_epoch)
    rng = np.random.default_rng([seed, epoch])
    shift = int(rng.integers(CONTEXT))
    chosen = rng.permutation((len(ids) - 1 - shift) // CONTEXT)[at * rows : (at + 1) * rows]
    return np.stack([ids[shift + w * CONTEXT : shift + (w + 1) * CONTEXT + 1] for w in chosen]).astype(np.int64)


def learning_rate(step: int, steps: int, peak: float, *, warm_up: int = WARM_UP) -> float:
    """Linear warm-up, then half a cosine down to a twentieth of `peak` [-]."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return peak * (0.05 + 0.95 * 0.5 * (1.0 + cos(pi * done)))


def optimizer(parameters: Iterable[torch.nn.Parameter], peak: float) -> torch.optim.Optimizer:
    """AdamW; matrices decay, biases and norms do not."""
    import torch

    found = list(parameters)
    groups = [
        {"params": [p for p in found if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in found if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=peak, betas=(0.9, 0.95))


def heldout_loss(model: torch.nn.Module, ids: np.ndarray, *, rows: int = 8) -> float:
    """Mean negative log likelihood [nat/token] over windows of CONTEXT tokens that do not overlap."""
    import torch
    from torch.nn.functional import cross_entropy

    windows = torch.as_tensor(ids[: (len(ids) - 1) // CONTEXT * CONTEXT + 1].astype("int64"))
    inputs, targets = windows[:-1].view(-1, CONTEXT), windows[1:].view(-1, CONTEXT)
    total = 0.0
    with torch.inference_mode():
        for at in range(0, len(inputs), rows):
            logits = model(input_ids=inputs[at : at + rows], use_cache=False).logits
            goal = targets[at : at + rows].reshape(-1)
            total += float(cross_entropy(logits.float().flatten(0, 1), goal, reduction="sum"))
    return total / targets.numel()


Loss: TypeAlias = "Callable[[int, torch.Tensor], torch.Tensor]"


def next_token(model: torch.nn.Module, windows: torch.Tensor) -> torch.Tensor:
    """Mean negative log likelihood of every token but the first, in bf16 autocast [nat]."""
    import torch
    from torch.nn.functional import cross_entropy

    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].reshape(-1))


def fit(
    model: torch.nn.Module,
    ids: np.ndarray,
    *,
    steps: int,
    rows: int,
    seed: int,
    peak: float,
    checkpoint: Path,
    stop: int | None = None,
    warm_up: int = WARM_UP,
    save_every: int = 100,
    rows_at_once: int | None = None,
    loss_of: Loss | None = None,
    logged: list[dict[str, float]] | None = None,
    log: Callable[[int], dict[str, float]] | None = None,
    quiet: bool = False,
) -> None:
    """Train in place in bf16 autocast over fp32 weights, continuing from `checkpoint` where it exists.

    Only parameters that require a gradient are trained and saved.

    Parameters
    ----------
    stop : int, optional
        Step to end at; `steps` is what the learning rate is laid over.
    rows_at_once : int, optional
        Rows of one pass; the gradients of a step's passes add up. All of them by default.
    loss_of : callable, optional
        Step and windows (rows, CONTEXT + 1) of one pass to their mean loss; `next_token` of the model by default.
    logged : list, optional
        Gets what `log` says before the first step and at every save; saved and restored with the weights.
    """
    import torch

    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optim, first = optimizer(trained.values(), peak), 0
    rows_at_once = rows_at_once or rows
    curve = [] if logged is None else logged
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        with torch.no_grad():
            for name, p in trained.items():
                p.copy_(state["model"][name])
        optim.load_state_dict(state["optimizer"])
        first = state["step"]
        curve[:] = state["logged"]
    elif log is not None:
        curve.append(log(0))
    for step in range(first, steps if stop is None else min(stop, steps)):
        model.train()
        for group in optim.param_groups:
            group["lr"] = learning_rate(step, steps, peak, warm_up=warm_up)
        windows = torch.as_tensor(batch_at(ids, step, rows=rows, seed=seed))
        total = 0.0
        for part in windows.split(rows_at_once):
            loss = next_token(model, part) if loss_of is None else loss_of(step, part)
            share = len(part) / rows
            total += loss.item() * share
            (loss * share).backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optim.step()
        optim.zero_grad()
        at = step + 1
        if at % 50 == 0 and not quiet:
            console.say(f"step {at}/{steps} loss {total:.4f}")
        if at % save_every == 0:
            if log is not None:
                model.eval()
                curve.append(log(at))
            _save(checkpoint, trained, optim, at, curve)
    model.eval()


def _save(
    path: Path,
    trained: dict[str, torch.nn.Parameter],
    optim: torch.optim.Optimizer,
    step: int,
    logged: list[dict[str, float]],
) -> None:
    import torch

    state: dict[str, Any] = {"optimizer": optim.state_dict(), "step": step, "logged": logged}
    state["model"] = {name: p.detach() for name, p in trained.items()}
    with replaced(path) as temporary:
        torch.save(state, temporary)
