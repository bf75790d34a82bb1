"""Drafted tokens in a step: what drafts them, and the step of the model that verifies them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

from simulator.base.dtypes import sixteen_bit
from simulator.inference.formats import formats_on
from simulator.inference.lowering import Lowering
from simulator.model.formats import AS_PUBLISHED, choose
from simulator.model.layer import AttentionSpec, FfnSpec, LayerSpec, MoeSpec, SideSpec
from simulator.model.spec import ModelSpec
from simulator.ops.ops import Op
from simulator.ops.step import Step, decode_step
from simulator.policies import Policies
from simulator.scenario.speculation import Speculation

EAGLE_VOCAB = 32_000
"""Tokens that the head of an EAGLE-3 layer knows [-]: ``draft_vocab_size`` of the published checkpoints."""
EAGLE_FEATURES = 3
"""Layers of the model whose features it reads [-]; arXiv:2503.01840, section 3."""
EAGLE_MLA_HEAD = 128
"""Width of its heads beside a model with latents: it keeps K and V of its own [-]."""
SAME_VOCABULARY = 0.01
"""Share by which two vocabularies may differ in padding [-]."""


@dataclass(frozen=True)
class Drafting:
    """What runs beside each step of the model so that it yields several tokens.

    Attributes
    ----------
    lowering : Lowering or None
        Of the drafting model; None where nothing is computed.
    owns : (bool, bool)
        It has an output matrix, and an embedding, of its own; else it uses the model's.
    """

    speculation: Speculation
    lowering: Lowering | None
    owns: tuple[bool, bool] = (True, True)

    def verified(self, step: Step) -> Step:
        """`step`, each of its decoding sequences with all drafted tokens and the one before them."""
        if not step.decodes or step.decode_tokens != 1.0:
            return step
        new = self.speculation.nodes + 1.0
        after = step.decode_context + float(self.speculation.nodes)
        return replace(step, decode_context=after, decode_tokens=new, decode_drawn=new)

    def ops(self, step: Step) -> list[Op]:
        """What drafts: first over the tokens that were accepted and all prompts, then from step to step."""
        if self.lowering is None:
            return []
        spec = self.speculation
        if not step.decodes:
            return [_named(op, 1.0) for op in self.lowering.ops(step)]
        before = step.decode_context - float(spec.nodes)
        first = replace(step, decode_context=before, decode_tokens=spec.tokens, decode_drawn=1.0)
        ops = [_named(op, 1.0) for op in self.lowering.ops(first)]
        if spec.k > 1:
            ahead = decode_step(step.decode_rows, before + spec.k / 2.0, step.decode_prompt)
            branches = float(spec.topk)
            later = replace(ahead, decode_tokens=branches, decode_drawn=branches)
            ops += (_named(op, spec.k - 1.0) for op in self._ahead.ops(later))
        return ops

    @property
    def _ahead(self) -> Lowering:
        """The drafting model after its first step: EAGLE-3's goes on with its own output, not with features."""
        assert self.lowering is not None
        if self.speculation.kind != "eagle3":
            return self.lowering
        return replace(self.lowering, model=replace(self.lowering.model, sides=()))

    def why_not(self, model: ModelSpec) -> str | None:
        """Reason it cannot draft for `model`, or None."""
        if self.lowering is None:
            return None
        drafts = self.lowering.model
        if self.speculation.kind == "draft" and abs(drafts.vocab / model.vocab - 1.0) > SAME_VOCABULARY:
            words = f"{drafts.name} has {drafts.vocab:,} tokens, {model.name} {model.vocab:,}"
            return f"{words}: it drafts in another vocabulary"
        return self.lowering.why_not()


def _named(op: Op, times: float) -> Op:
    # Every op is a frozen record.
    record: Any = op
    return cast(Op, replace(record, role=f"draft.{record.role}", count=record.count * times))


def drafting(speculation: Speculation, drafts: ModelSpec | None, target: Lowering, device: Any) -> Drafting:
    """Drafting for the model of `target` on `device`; `drafts` is the model that `speculation` names, where it does."""
    if speculation.kind == "ngram":
        return Drafting(speculation, None)
    beside: dict[str, Any] = {"policies": Policies(), "trace": None, "transferred": False, "drafting": None}
    if drafts is not None:
        runs, fmt = formats_on(drafts, choose("auto"), device)
        return Drafting(speculation, replace(target, model=runs, fmt=fmt, ep=1, as_modules=False, **beside))
    if speculation.kind == "mtp":
        own = next_layer(target.model)
        return Drafting(speculation, replace(target, model=own, **beside), owns=(False, False))
    newer = speculation.kind == "eagle3"
    layer = eagle3_layer(target.model) if newer else eagle_layer(target.model)
    beside |= {"fmt": sixteen_bit(target.fmt), "ep": 1, "as_modules": False}
    return Drafting(speculation, replace(target, model=layer, **beside), owns=(newer, False))


def next_layer(model: ModelSpec) -> ModelSpec:
    """DeepSeek's layer for the token after next: one of the model's last kind, its input features and embedding."""
    last = model.layers[-1]
    joined = SideSpec("eh_proj", model.hidden, 2 * model.hidden)
    layer = replace(last, n_norms=last.n_norms + 2, sides=(joined, *last.sides))
    return replace(model, name=f"{model.name} mtp", layers=(layer,), tables=0, sides=(), tower=None, notes=())


def eagle3_layer(model: ModelSpec) -> ModelSpec:
    """EAGLE-3's layer: attention over features and embedding side by side, a dense feed-forward, a head of its own."""
    features = SideSpec("features", model.hidden, EAGLE_FEATURES * model.hidden)
    return _alone(model, LayerSpec(_attention(model, 2), _dense(model), n_norms=3), features, "eagle3", EAGLE_VOCAB)


def eagle_layer(model: ModelSpec) -> ModelSpec:
    """EAGLE's layer: embedding and features made one vector, then a layer of the model's widths without input norm."""
    joined = SideSpec("features", model.hidden, 2 * model.hidden)
    return _alone(model, LayerSpec(_attention(model, 1), _dense(model), n_norms=1), joined, "eagle", model.vocab)


def _alone(model: ModelSpec, layer: LayerSpec, side: SideSpec, kind: str, vocab: int) -> ModelSpec:
    plain = replace(model, tied_embeddings=False, tables=0, tower=None, ends=AS_PUBLISHED, rest=None, notes=())
    return replace(plain, name=f"{model.name} {kind}", vocab=vocab, layers=(layer,), sides=(side,))


def _attention(model: ModelSpec, inputs: int) -> AttentionSpec:
    attention = next(a for a, _ in reversed(model.attentions))
    return AttentionSpec(
        attention.n_heads,
        attention.n_heads if attention.latents else attention.n_kv_heads,
        EAGLE_MLA_HEAD if attention.latents else attention.head_dim,
        EAGLE_MLA_HEAD if attention.latents else attention.v_head_dim,
        inputs=inputs,
    )


def _dense(model: ModelSpec) -> FfnSpec:
    """Feed-forward as wide as the model's; beside experts, as wide as those that a token visits."""
    ffn = next(layer.ffn for layer in reversed(model.layers) if layer.ffn is not None)
    if not isinstance(ffn, MoeSpec):
        return ffn
    return replace(ffn.expert, intermediate=ffn.expert.intermediate * ffn.top_k)
