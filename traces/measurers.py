"""Policies as they run on a real model: masks on the inputs, weights or keys of its own forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from simulator.base.errors import InputError, UnsupportedError
from simulator.policies import POLICIES, Policies, Policy
from simulator.results.published_quality import COST_ONLY, masks
from traces import kv_quality
from traces.blocks import Block, as_stored, blocks, hooked, out_by_in
from traces.kv_selectors import NEWEST
from traces.masks import gate_thresholded, thresholded

if TYPE_CHECKING:
    import torch

    from traces.kv_selectors import Looked
    from traces.scoring import Scene

SITES = ("attn.in", "attn.o", "ffn.in", "ffn.down")
_PREDICTORS = ("shadowllm", "dejavu")


@dataclass
class Subject:
    """A model, the text that thresholds are set on, and how its scored windows are cut.

    Parameters
    ----------
    calibration : Tensor of int, shape (sequences, length)
        Text that is not scored.
    prompt : int
        Tokens of a window that run dense under methods of the decode step [tokens].
    context : float
        Mean tokens a scored token attends to [tokens].
    """

    model: Any
    calibration: torch.Tensor
    prompt: int
    context: float
    read: list[float] = field(default_factory=list)
    """Share of the cache read, of every pass of a KV method [-]."""
    before: Sequence[Looked] | None = None
    """What the prompts of the batch that runs looked at, by layer; None where they are in the pass."""
    _labels: dict[int, tuple[torch.Tensor, ...]] = field(default_factory=dict)
    _looking: tuple[Scene, tuple[tuple[Looked, ...], ...]] | None = None

    def labels(self, channels: int) -> tuple[torch.Tensor, ...]:
        """Label channels of each layer; found out once."""
        if channels not in self._labels:
            self._labels[channels] = kv_quality.label_channels(self.model, self.calibration, channels)
        return self._labels[channels]

    def looking(self, scene: Scene) -> tuple[tuple[Looked, ...], ...]:
        """What the prompts of `scene` looked at, by batch and layer; found out once."""
        if self._looking is None or self._looking[0] is not scene:
            self._looking = scene, kv_quality.looking_back(self.model, scene)
        return self._looking[1]

    @cached_property
    def parts(self) -> list[Block]:
        """The layers' projections."""
        return blocks(self.model)

    def seen(self, take: Callable[[str, int, torch.Tensor], None], gates: bool = False) -> None:
        """Run the calibration text, a row at a time, with the inputs of every site, or the gates, handed to `take`."""
        import torch

        handles = []
        for layer, part in enumerate(self.parts):
            if gates:
                found = part.activation.register_forward_hook(lambda _m, _a, out, n=layer: take("gate", n, out))
                handles.append(found)
                continue
            for site in SITES:
                module = part.site(site)[0]
                handles.append(module.register_forward_pre_hook(lambda _m, args, s=site, n=layer: take(s, n, args[0])))
        with hooked(handles), torch.inference_mode():
            for row in self.calibration:
                self.model(input_ids=row[None], use_cache=False)


@dataclass(frozen=True)
class Measurer:
    """How a policy is run.

    Parameters
    ----------
    run : callable
        Subject and policy to the context in which the model computes what the policy leaves.
    fields : tuple of str
        Parameters it follows; others must stand at their defaults.
    whole : bool
        The prompt runs under it too, in one pass with the rest.
    kv : bool
        It changes only what queries after the prompt read of the cache, whatever else runs.
    note : str
        What a reader should know of it.
    """

    run: Callable[[Subject, Any], AbstractContextManager[Any]]
    fields: tuple[str, ...]
    whole: bool = False
    kv: bool = False
    note: str = ""


def _teal(subject: Subject, policy: Any) -> AbstractContextManager[None]:
    """Inputs of every projection below the quantile of their magnitudes, per layer and matrix."""
    return _thresholded(subject, policy, scaled=False)


def _wina(subject: Subject, policy: Any) -> AbstractContextManager[None]:
    """As TEAL, of inputs times the norm of the column they meet."""
    return _thresholded(subject, policy, scaled=True)


def _thresholded(subject: Subject, policy: Any, *, scaled: bool) -> AbstractContextManager[None]:
    import torch

    shares = (policy.qkv_keep, policy.o_keep, policy.up_keep, policy.down_keep)
    keep = {site: policy.keep if own is None else own for site, own in zip(SITES, shares, strict=True)}
    norms: dict[tuple[str, int], torch.Tensor] = {}
    if scaled:
        for layer, part in enumerate(subject.parts):
            for site in SITES:
                squares = [out_by_in(m).float().square().sum(0) for m in part.site(site)]
                norms[site, layer] = torch.stack(squares).sum(0).sqrt().clamp_min(1e-30)
    found: dict[tuple[str, int], list[torch.Tensor]] = {}

    def take(site: str, layer: int, x: torch.Tensor) -> None:
        size = x.abs().float() * norms.get((site, layer), 1.0)
        found.setdefault((site, layer), []).append(_sample(size))

    subject.seen(take)
    limits: dict[tuple[str, int], Any] = {
        key: _quantile(sizes, 1.0 - keep[key[0]]) / norms.get(key, 1.0) for key, sizes in found.items()
    }
    return thresholded(subject.parts, limits, {})


def _cats(subject: Subject, policy: Any) -> AbstractContextManager[None]:
    """Neurons whose gate is small, per layer."""
    if not subject.parts[0].gated:
        raise UnsupportedError("cats thresholds the gate of a gated FFN; this model has none", where="--policy")
    found: dict[int, list[torch.Tensor]] = {}
    subject.seen(lambda _, layer, x: found.setdefault(layer, []).append(_sample(x.abs().float())), gates=True)
    limits = [float(_quantile(found[n], 1.0 - policy.keep)) for n in range(len(subject.parts))]
    return gate_thresholded(subject.parts, limits, {})


_SAMPLE = 2**16
"""Elements of one row of text that a quantile is learned from."""


def _sample(x: torch.Tensor) -> torch.Tensor:
    flat = x.flatten()
    return flat[:: max(1, flat.numel() // _SAMPLE)].cpu()


def _quantile(sizes: Sequence[torch.Tensor], share: float) -> float:
    import numpy as np
    import torch

    return float(np.quantile(torch.cat(list(sizes)).numpy(), share)) if share > 0.0 else -1.0


def _streaming(subject: Subject, policy: Any) -> AbstractContextManager[None]:
    return _attending(subject, "streaming_llm", budget=policy.window + policy.sinks, sinks=policy.sinks)


def _h2o(subject: Subject, policy: Any) -> AbstractContextManager[None]:
    """A share of the context is one of its mean here."""
    return _attending(subject, "h2o", budget=max(2, min(policy.budget, round(policy.keep * subject.context))))


def _snapkv(subject: Subject, policy: Any) -> AbstractContextManager[None]:
    if policy.observe > NEWEST:
        raise InputError(f"observe={policy.observe} cannot be run here; {NEWEST} is the most", where="--policy")
    if policy.observe >= subject.prompt:
        raise InputError(f"observe={policy.observe} needs a longer prompt than {subject.prompt}", where="--prompt")
    return _attending(subject, "snapkv", budget=policy.budget, observe=policy.observe)


def _quest(subject: Subject, policy: Any) -> AbstractContextManager[None]:
    return _attending(subject, "quest", policy.dense_layers, budget=policy.budget, page=policy.page)


def _double_sparsity(subject: Subject, policy: Any) -> AbstractContextManager[None]:
    width = subject.parts[0].head_dim
    if policy.channels > width:
        raise InputError(f"channels={policy.channels} is more than the {width} of a head", where="--policy")
    labels = subject.labels(policy.channels)
    together = policy.gqa == "shared"
    return _attending(subject, "double_sparsity", budget=policy.budget, labels=labels, together=together)


def _mustafar(subject: Subject, policy: Any) -> AbstractContextManager[None]:
    return _attending(subject, "mustafar", keep=policy.keep, keep_v=policy.keep_v, window=policy.window)


def _kv_quant(subject: Subject, policy: Any) -> AbstractContextManager[None]:
    bits, v_bits = int(policy.bits), int(policy.v_bits or policy.bits)
    return _attending(subject, "kv_quant", bits=bits, v_bits=v_bits, group=policy.group, window=policy.window)


def _attending(subject: Subject, method: str, dense: int = 0, **options: Any) -> AbstractContextManager[None]:
    subject.read.clear()

    def before(layer: int) -> Looked:
        if subject.before is None:
            raise ValueError(f"{method} needs what the prompt looked at")
        return subject.before[layer]

    return kv_quality.attending(
        subject.model, method, subject.prompt, subject.read, dense_layers=dense, before=before, **options
    )


def _wanda(subject: Subject, policy: Any) -> AbstractContextManager[None]:
    """Per row, the weights with the largest product of magnitude and input norm."""
    from math import ceil

    import torch

    def left(weight: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        score = weight.abs().float() * norm
        chosen = score.topk(ceil(round(policy.keep * score.shape[1], 9)), dim=1).indices
        return weight * torch.zeros_like(weight, dtype=torch.bool).scatter_(1, chosen, True)

    return _rewritten(subject, left, _norms(subject))


def _nm24(subject: Subject, _: Any) -> AbstractContextManager[None]:
    """Of every four inputs of a row, the two with the largest product of magnitude and input norm."""
    import torch

    def left(weight: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        rows, width = weight.shape
        if width % 4:
            raise UnsupportedError(f"nm24 prunes groups of four inputs; a matrix has {width}", where="--policy")
        score = (weight.abs().float() * norm).view(rows, width // 4, 4)
        chosen = score.topk(2, dim=2).indices
        return weight * torch.zeros_like(score, dtype=torch.bool).scatter_(2, chosen, True).view(rows, width)

    return _rewritten(subject, left, _norms(subject))


def _w4a16(subject: Subject, policy: Any) -> AbstractContextManager[None]:
    from traces.kv import rounded

    def left(weight: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return rounded(weight, 4, 1, policy.group).to(weight.dtype)

    return _rewritten(subject, left, {})


def _norms(subject: Subject) -> dict[tuple[str, int], torch.Tensor]:
    """Root of the summed squares of each input over the calibration text, per site and layer."""
    squares: dict[tuple[str, int], torch.Tensor] = {}

    def take(site: str, layer: int, x: torch.Tensor) -> None:
        more = x.float().reshape(-1, x.shape[-1]).square().sum(0)
        squares[site, layer] = squares.get((site, layer), 0.0) + more

    subject.seen(take)
    return {key: total.sqrt() for key, total in squares.items()}


@contextmanager
def _rewritten(
    subject: Subject,
    left: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    norms: dict[tuple[str, int], torch.Tensor],
) -> Iterator[None]:
    """Every projection of every layer as `left` makes it of its weight (outputs, inputs) and its inputs' norms."""
    import torch

    before: list[tuple[Any, torch.Tensor]] = []
    try:
        for layer, part in enumerate(subject.parts):
            for site in SITES:
                for module in part.site(site):
                    weight = out_by_in(module)
                    norm = norms.get((site, layer), torch.ones(weight.shape[1], device=weight.device))
                    made = left(weight, norm)
                    before.append((module.weight, module.weight.data))
                    module.weight.data = as_stored(module, made)
        yield
    finally:
        for parameter, data in before:
            parameter.data = data


_SHARES = ("keep", "qkv_keep", "o_keep", "up_keep", "down_keep")
_BITS = ("bits", "v_bits", "group", "window", "scale_bytes")
_ONE_SHOT = "masks of the dense model's inputs, all layers at once, without the method's own updates"
_SCALES = "min-max rounding, scales not rounded"
MEASURERS: dict[str, Measurer] = {
    "teal": Measurer(_teal, _SHARES, note="one share for all matrices that name none, not its greedy search"),
    "wina": Measurer(_wina, _SHARES),
    "cats": Measurer(_cats, ("keep",), note="without its fine-tuning"),
    "streaming_llm": Measurer(_streaming, ("window", "sinks"), kv=True, note="positions are not renumbered"),
    "h2o": Measurer(_h2o, ("keep", "budget"), kv=True),
    "snapkv": Measurer(_snapkv, ("budget", "observe"), kv=True),
    "quest": Measurer(_quest, ("budget", "page", "dense_layers"), kv=True),
    "double_sparsity": Measurer(_double_sparsity, ("budget", "channels", "gqa"), kv=True, note="labels not rounded"),
    "mustafar": Measurer(_mustafar, ("keep", "keep_v", "window"), kv=True),
    "kv_quant": Measurer(_kv_quant, _BITS, kv=True, note=_SCALES),
    "kivi": Measurer(_kv_quant, _BITS, kv=True, note=_SCALES),
    "w4a16": Measurer(_w4a16, ("group",), True, note="rounded to nearest: AWQ and GPTQ lose less"),
    "nm24": Measurer(_nm24, (), True, note=_ONE_SHOT),
    **{name: Measurer(_wanda, ("keep",), True, note=_ONE_SHOT) for name in ("wanda", *masks())},
}
"""Policies that can be measured here, by name."""


def measurer_of(policy: Policy) -> Measurer:
    """How `policy` is run.

    Raises
    ------
    UnsupportedError
        It cannot be run here, or not with these parameters.
    """
    found = MEASURERS.get(policy.name)
    if found is None:
        text = f"{policy.name} cannot be run on a model here; these can: {', '.join(sorted(MEASURERS))}"
        if policy.name in _PREDICTORS:
            text = f"{policy.name} needs trained predictors; python -m traces.shadow trains and judges them"
        raise UnsupportedError(text, where="--policy")
    default = POLICIES[policy.name]()
    for name in type(policy).model_fields:
        if name not in found.fields and name not in COST_ONLY and getattr(policy, name) != getattr(default, name):
            known = ", ".join(found.fields) or "no parameter"
            raise UnsupportedError(
                f"{policy.name}: {name}={getattr(policy, name)} cannot be run here, which follows {known}",
                where="--policy",
            )
    return found


def measurers_of(policies: Policies) -> list[tuple[Policy, Measurer]]:
    """How each member is run; several at once only where the prompt runs under all of them but the KV methods.

    Raises
    ------
    UnsupportedError
        As `measurer_of`, or members that treat the prompt unlike.
    """
    if not policies.members:
        raise InputError("dense is the baseline of every run; name a policy", where="--policy")
    found = [(p, measurer_of(p)) for p in policies.members]
    others = [(p, m) for p, m in found if not m.kv]
    if any(m.whole for _, m in others) and not all(m.whole for _, m in others):
        alone = ", ".join(p.name for p, m in others if not m.whole)
        raise UnsupportedError(f"{alone} leaves the prompt dense; measure it alone", where="--policy")
    return found
