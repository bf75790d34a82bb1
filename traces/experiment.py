"""Rows for predictors and what they are judged against: random, static and the oracle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from simulator.base import console
from simulator.base.errors import UnsupportedError
from traces import kv_quality
from traces.bench import Bench, Row, Step
from traces.criteria import KINDS, magnitude, scores
from traces.masks import TARGETS, Fixed, keep_largest, masked, normalise, open_first_heads
from traces.other_methods import kv_methods, threshold_methods
from traces.predictors import HEADLINE, Plan, Predicted, parameter_count, plans, restore
from traces.scoring import windows
from traces.table_on_disk import TableOnDisk

if TYPE_CHECKING:
    import torch

COARSE = (0.3, 0.5, 0.7)
KV_METHODS = kv_quality.METHODS
METHODS = ("random", "static", "teal", "cats", *KV_METHODS, "oracle", "shadowllm", "dejavu")
"""What ``--methods`` names."""
CURVE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Sparsities of what `evaluation` measures at more than `COARSE`."""


def choose(scored: Mapping[str, torch.Tensor], keep: float, budget: str) -> Fixed:
    """Masks of an importance that is known: heads of layer 0 stay and are not in the budget."""
    import torch

    neurons = keep_largest(scored["neurons"], keep, budget)
    heads = keep_largest(scored["heads"][:, 1:], keep, budget)
    whole = torch.cat([torch.ones_like(scored["heads"][:, :1], dtype=torch.bool), heads], 1)
    return Fixed({"heads": open_first_heads(whole), "neurons": neurons})


def per_sequence(scored: torch.Tensor, sequences: int) -> torch.Tensor:
    """Each token's scores replaced by the mean over its sequence, (tokens, layers, units)."""
    grouped = scored.view(sequences, -1, *scored.shape[1:])
    return grouped.mean(1, keepdim=True).expand_as(grouped).reshape(scored.shape)


Truth: TypeAlias = Sequence[Mapping[str, TableOnDisk]]
"""Normalised scores per batch of a scene, (tokens, layers, units) per kind."""


def true_scores(bench: Bench, criterion: str, scales: Sequence[str], folder: Path) -> dict[str, Truth]:
    """Normalised scores of the scored tokens on the dense model, by target scale; kept in `folder`."""
    found: dict[str, list[dict[str, TableOnDisk]]] = {scale: [] for scale in scales}
    for number, (part, _) in enumerate(bench.scene.batches):
        ids = bench.scene.ids[part]
        importance, _seen = scores(bench.model, bench.parts, ids, [criterion])
        for scale in scales:
            batch = {}
            for kind in KINDS:
                whole = importance[kind, criterion].view(len(ids), ids.shape[1], len(bench.parts), -1)
                real = normalise(whole[:, bench.scene.prompt : -1].flatten(0, 1), scale)
                batch[kind] = TableOnDisk.empty(folder / f"{kind}.{scale}.{number}", tuple(real.shape), "float32")
                batch[kind].write(slice(None), real)
            found[scale].append(batch)
    return {**found}


def oracle(bench: Bench, truth: Truth, keep: float, budget: str, mask: str, **names: Any) -> None:
    """The criterion itself, of the dense model on the very tokens that are scored."""

    def chooser(number: int) -> Fixed:
        batch = {kind: table[:].to(bench.scene.ids.device) for kind, table in truth[number].items()}
        if mask == "sequence":
            part, _ = bench.scene.batches[number]
            count = len(bench.scene.ids[part])
            batch = {kind: per_sequence(batch[kind], count) for kind in KINDS}
        return choose(batch, keep, budget)

    score, cost = bench.run(chooser, truth, keep=keep, budget=budget)
    bench.add(
        score,
        policy=f"oracle(keep={keep:g})",
        method="oracle",
        sparsity=round(1.0 - keep, 6),
        budget=budget,
        mask=mask,
        **names,
        **cost,
    )


def static(
    bench: Bench, importance: Mapping[str, torch.Tensor], truth: Truth | None, keep: float, budget: str, **names: Any
) -> None:
    """One mask for every token, from weights or from training tokens; (layers, units) per kind."""
    tokens = bench.scene.best.shape[1]
    one = choose({k: v[None] for k, v in importance.items()}, keep, budget).masks

    def chooser(number: int) -> Fixed:
        part, _ = bench.scene.batches[number]
        count = tokens * len(bench.scene.ids[part])
        return Fixed({kind: mask.expand(count, -1, -1) for kind, mask in one.items()})

    score, cost = bench.run(chooser, truth, keep=keep, budget=budget)
    bench.add(
        score,
        policy=f"static(keep={keep:g})",
        method="static",
        sparsity=round(1.0 - keep, 6),
        budget=budget,
        mask="static",
        **names,
        **cost,
    )


def random(bench: Bench, keep: float, budget: str, seed: int) -> None:
    """Units drawn anew for every token."""
    import torch

    device = bench.scene.ids.device
    draw = torch.Generator(device=device).manual_seed(seed)
    tokens = bench.scene.best.shape[1]

    def chooser(number: int) -> Fixed:
        part, _ = bench.scene.batches[number]
        count = tokens * len(bench.scene.ids[part])
        return choose(
            {
                kind: torch.rand(count, len(bench.parts), width, generator=draw, device=device)
                for kind, width in bench.widths.items()
            },
            keep,
            budget,
        )

    score, cost = bench.run(chooser, keep=keep, budget=budget)
    bench.add(
        score,
        policy=f"random(keep={keep:g})",
        method="random",
        sparsity=round(1.0 - keep, 6),
        budget=budget,
        mask="token",
        seed=seed,
        **cost,
    )


def predicted(
    bench: Bench, method: str, nets: Any, truth: Truth, keep: float, budget: str, mask: str, seed: int, **names: Any
) -> None:
    """ShadowLLM or Deja Vu with trained predictors, deciding while the sparse model runs.

    With ``mask="sequence"`` the scores are the mean over the prompt's tokens, and stay for the whole sequence.
    """

    def make() -> Predicted:
        return Predicted(method, nets, bench.widths, len(bench.parts), keep=keep, budget=budget)

    def from_prompt(number: int) -> Fixed:
        import torch

        part, _ = bench.scene.batches[number]
        ids = bench.scene.ids[part, : bench.scene.prompt]
        watcher = make()
        with masked(bench.parts, _Watching(watcher)):
            bench.model(input_ids=ids, use_cache=False)
        wide = {}
        for kind in KINDS:
            mean = watcher.stacked(kind).unflatten(0, (len(ids), -1)).mean(1)
            if kind == "heads":
                mean = torch.cat([torch.zeros_like(mean[:, :1]), mean], 1)
            wide[kind] = mean.repeat_interleave(bench.scene.best.shape[1], 0)
        return choose(wide, keep, budget)

    score, cost = bench.run(
        (lambda _: make()) if mask == "token" else from_prompt,
        truth,
        keep=keep,
        budget=budget,
        # A mask per sequence is chosen once, at the prompt: no decoded token reads the predictor.
        predictor=parameter_count(nets) if mask == "token" else 0,
    )
    rank = nets[0][0].out_features
    if method == "shadowllm":
        options = f"keep={keep:g},rank={rank}"
    else:
        options = f"keep={keep:g},attn_keep={keep:g},mlp_rank={rank},attn_rank={rank}"
    bench.add(
        score,
        policy=f"{method}({options})",
        method=method,
        sparsity=round(1.0 - keep, 6),
        budget=budget,
        mask=mask,
        seed=seed,
        **names,
        **cost,
    )


class _Watching:
    """A chooser that lets the predictors look and masks nothing."""

    def __init__(self, inner: Predicted):
        self.inner = inner
        self.sites = inner.sites

    def see(self, site: str, layer: int, x: torch.Tensor) -> None:
        self.inner.see(site, layer, x)

    def mask(self, kind: str, layer: int) -> None:
        return None


def evaluation(
    bench: Bench,
    predictors: Path,
    known: dict[str, Any],
    train_ids: Any,
    first: Sequence[int],
    length: int,
    folder: Path,
    methods: Sequence[str] = METHODS,
    sparsities: Sequence[float] = CURVE,
) -> list[Step]:
    """Every measurement in order, cheapest methods first.

    Target scale and budget are varied for all of `HEADLINE`; the first of them alone gets more sparsities than
    `COARSE`, and masks per sequence at a half.

    Parameters
    ----------
    predictors : Path
        Folder that ``traces.shadow train`` wrote.
    known : dict
        Its manifest.
    train_ids : array of int
        Tokens that thresholds are set on.
    first : sequence of int
        What each window begins with.
    folder : Path
        Gets the oracle's scores of one criterion at a time, 4 bytes per unit, scored token and target scale.
    methods : sequence of str
        Of `METHODS`.
    sparsities : sequence of float
        Shares of heads and neurons dropped [-].
    """
    calibration = windows(train_ids, length, min(4, len(train_ids) // length), first=first).to(bench.model.device)
    found = [
        *_without_context(bench, known["seeds"], sparsities),
        *threshold_methods(bench, calibration, sparsities),
        *kv_methods(bench, (*COARSE, 0.8, 0.9)),
    ]
    scores_of = _Truth(bench, folder)
    for criterion in known["criteria"]:
        for scale in _scales(criterion):
            curve = sparsities if criterion == HEADLINE[0] and scale == "layer" else set(sparsities) & {*COARSE}
            found += _one_criterion(bench, predictors, known["seeds"], criterion, scale, sorted(curve), scores_of)
    return [step for step in found if step.method in methods]


def measured(bench: Bench, steps: Iterable[Step]) -> Iterator[tuple[Step, list[Row]]]:
    """Run `steps`; each with the rows it added. A KV method that the model cannot run is left out and told once."""
    told: set[str] = set()
    for step in steps:
        before = len(bench.rows)
        try:
            step.run()
        except UnsupportedError as error:
            if step.method not in KV_METHODS:
                raise
            if str(error) not in told:
                console.say(f"KV methods are left out: {error}")
            told.add(str(error))
        yield step, bench.rows[before:]


def _without_context(bench: Bench, seeds: int, sparsities: Sequence[float]) -> Iterator[Step]:
    """What needs no predictor and sees no token: units drawn, and the largest weights."""
    device = bench.model.device
    weights = cache(lambda: {kind: magnitude(bench.parts, kind).to(device) for kind in KINDS})
    for s in sparsities:
        keep = round(1.0 - s, 6)
        for seed in range(seeds):
            yield Step("random", f"random {s:g}", partial(random, bench, keep, "layer", seed))
        yield Step(
            "static",
            f"static magnitude {s:g}",
            lambda keep=keep: static(bench, weights(), None, keep, "layer", criterion="magnitude"),
        )


def _one_criterion(
    bench: Bench,
    predictors: Path,
    seeds: int,
    criterion: str,
    scale: str,
    sparsities: Sequence[float],
    scores_of: _Truth,
) -> Iterator[Step]:
    names = {"criterion": criterion, "targets": scale}
    truth = partial(scores_of, criterion, scale)

    def stored(name: str) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        return load_file(predictors / name, device=str(bench.model.device))

    own = [p for p in plans([criterion], seeds) if p.scale == scale]
    for s in sparsities:
        keep = round(1.0 - s, 6)
        # Scores scaled otherwise rank alike inside a layer: budgets per layer are measured for one scale.
        varied = criterion in HEADLINE and scale == "layer" and s in COARSE
        budgets = ("global", "layer") if varied else ("global",)
        per_sequence = varied and criterion == HEADLINE[0] and s == 0.5
        say = f"{criterion} {s:g}"

        def run_oracle(budget: str, mask: str, keep: float = keep) -> None:
            oracle(bench, truth(), keep, budget, mask, **names)

        def run_static(budget: str, keep: float = keep) -> None:
            mean = stored(f"mean.{criterion}.safetensors")
            static(bench, {k: mean[f"{k}.{scale}"] for k in KINDS}, truth(), keep, budget, **names)

        def run_predicted(plan: Plan, budget: str, mask: str, keep: float = keep) -> None:
            nets = restore(stored(plan.file))
            predicted(bench, plan.method, nets, truth(), keep, budget, mask, plan.seed, **names)

        for budget in budgets:
            yield Step("oracle", f"oracle {say}", partial(run_oracle, budget, "token"))
            yield Step("static", f"static {say}", partial(run_static, budget))
        if per_sequence:
            yield Step("oracle", f"oracle {say} per sequence", partial(run_oracle, "global", "sequence"))
        for plan in own:
            for budget in ("layer",) if plan.method == "dejavu" else budgets:
                yield Step(plan.method, f"{plan.method} {say}", partial(run_predicted, plan, budget, "token"))
            if per_sequence:
                budget = "layer" if plan.method == "dejavu" else "global"
                label = f"{plan.method} {say} per sequence"
                yield Step(plan.method, label, partial(run_predicted, plan, budget, "sequence"))


def _scales(criterion: str) -> tuple[str, ...]:
    """Target scales that are compared for a criterion."""
    return TARGETS[::-1] if criterion in HEADLINE else ("layer",)


class _Truth:
    """`true_scores` by criterion and scale: the largest thing an evaluation writes, so only the latest is kept."""

    def __init__(self, bench: Bench, folder: Path):
        self.bench, self.folder = bench, folder
        self.criterion = ""
        self.found: dict[str, Truth] = {}

    def __call__(self, criterion: str, scale: str) -> Truth:
        if self.criterion != criterion:
            self.found = true_scores(self.bench, criterion, _scales(criterion), self.folder)
            self.criterion = criterion
        return self.found[scale]
