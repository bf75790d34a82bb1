"""(model, step, policies) to the ops one GPU runs, and to the KV layout it keeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Protocol

from simulator.base.arrays import some
from simulator.base.dtypes import DType, Format, sixteen_bit
from simulator.inference import blocks, compressed, feed_forward, latent, modules, state, tower
from simulator.inference.kv_shape import kv_bytes_per_token, kv_heads_here, sequences
from simulator.inference.lowered import Follows, Lowered, folded
from simulator.model.formats import INDEXER
from simulator.model.layer import AttentionSpec, LayerSpec, MoeSpec, SideSpec
from simulator.model.spec import ModelSpec
from simulator.ops.linear_attention import LinearAttention
from simulator.ops.ops import ACT_BYTES, Attention, Collective, Elementwise, Linear, Moe, Op
from simulator.ops.part import OpPart
from simulator.ops.step import Step
from simulator.policies import ATTENTION_ASPECTS, Aspect, Context, KvLayout, Policies, Policy
from simulator.policies.ideal import ideal
from simulator.trace.curves import Trace

_projection = partial(Linear, part=OpPart.PROJECTIONS)
_at_the_end = partial(Linear, part=OpPart.HEAD)


class Drafts(Protocol):
    """What drafts the tokens that a step verifies: `simulator.inference.drafting.Drafting`."""

    @property
    def lowering(self) -> Lowering | None:
        """Of the drafting model."""

    @property
    def owns(self) -> tuple[bool, bool]:
        """Whether it has an output matrix, and an embedding, of its own."""
        ...

    def verified(self, step: Step) -> Step:
        """`step` with the drafted tokens."""
        ...

    def ops(self, step: Step) -> list[Op]:
        """What drafts beside a verified step."""
        ...

    def why_not(self, model: ModelSpec) -> str | None:
        """Reason it cannot draft for `model`."""


@dataclass(frozen=True)
class Lowering:
    """How a model is cut and stored before any step runs.

    Attributes
    ----------
    model : ModelSpec
        With the formats its matrices run in.
    fmt : Format
        Format of the linear layers that `model` gives none.
    kv_element_bytes : float
        Bytes per element of the dense KV cache [B].
    tp, ep : int
        Ranks that share each attention block and dense layer, and how many groups of all ranks the experts are
        split between.
    trace : Trace, optional
        Measured curves; every layer is then lowered apart, each with those of its relative depth.
    transferred : bool
        The trace is another model's.
    as_modules : bool
        MLA blocks are attention modules, as an engine was measured with them, not their single ops.
    drafting : Drafts, optional
        What drafts the tokens that a decode step verifies.
    dp : int
        Groups of `tp` ranks that each hold everything but the routed experts whole and attend to their own sequences.
    routed : bool
        Tokens travel by all-to-all to the ranks of their experts, and are not gathered on every rank.
    """

    model: ModelSpec
    policies: Policies
    fmt: Format
    kv_element_bytes: float
    tp: int = 1
    ep: int = 1
    trace: Trace | None = None
    as_modules: bool = False
    transferred: bool = False
    drafting: Drafts | None = None
    dp: int = 1
    routed: bool = False

    @property
    def ranks(self) -> int:
        """GPUs that hold the model once: the experts are spread over all of them [-]."""
        return self.tp * self.dp

    def why_not(self) -> str | None:
        """Reason the cut or a policy does not apply, or None."""
        for layer, _ in self.model.layer_groups():
            attention = layer.attention
            uneven = layer.state and layer.state.why_not(self.tp)
            if uneven:
                return uneven
            if attention is not None and attention.n_heads % self.tp:
                return f"{attention.n_heads} heads cannot be split over tp={self.tp}"
            kv = attention.n_kv_heads if attention is not None and not attention.latents else self.tp
            if kv % self.tp and self.tp % kv:
                return f"{kv} KV heads neither divide nor fill tp={self.tp}"
            groups = attention.compressed.o_groups if attention is not None and attention.compressed else self.tp
            if groups % self.tp:
                return f"{groups} groups of outputs cannot be split over tp={self.tp}"
            if isinstance(layer.ffn, MoeSpec) and layer.ffn.n_experts % self.ep:
                return f"{layer.ffn.n_experts} experts cannot be split over ep={self.ep}"
        if self.ranks % self.ep:
            return f"ep={self.ep} does not divide tp={self.ranks}"
        if self.routed and not self.ep == self.ranks > self.tp:
            return "all-to-all needs attention data parallel and whole experts on every rank: --ep equal to --tp"
        if self.dp > 1 and not any(isinstance(layer.ffn, MoeSpec) for layer in self.model.layers):
            return (
                f"{self.model.name} has no experts to share: attention data parallel of it is replicas of tp={self.tp}"
            )
        of_latents = any(attention.latents for attention, _ in self.model.attentions)
        for policy in self.policies.members:
            reasons = (policy.why_not(self.model, fmt) for fmt in self._rewritten_formats(policy))
            reason = next(filter(None, reasons), None)
            if reason is None and policy.aspects & ATTENTION_ASPECTS and not self.model.attentions:
                reason = f"{policy.name} works on attention, which no layer of {self.model.name} has"
            if reason is None and of_latents and not policy.compatibility.mla:
                reason = "it works on K and V of single heads; MLA caches one latent for all of them"
            if reason is None and policy.aspects & ATTENTION_ASPECTS:
                reason = blocks.own_choice(policy, self.model)
            if Aspect.KV_FORMAT in policy.aspects and self.kv_element_bytes < 2.0:
                reason = f"{policy.name} sets the KV format itself; use --kv-cache-dtype bf16"
            if reason is None and self.drafting is not None and not policy.compatibility.speculative:
                reason = f"{policy.name} takes one new token of a sequence per step; speculation verifies several"
            if reason:
                return reason
        return None if self.drafting is None else self.drafting.why_not(self.model)

    def format_of(self, layer: LayerSpec, matrix: str) -> Format:
        """Format of one matrix of a layer: the one rule."""
        return layer.formats.of(matrix) or self.fmt

    def _rewritten_formats(self, policy: Policy) -> tuple[Format, ...]:
        """Formats of the products that `policy` rewrites, where matrices differ; that of the linear layers else."""
        if not self.model.quantised:
            return (self.fmt,)
        found, step = [], Step(decode_rows=1.0)
        for layer, indices in self.groups:
            ctx = self._context(layer, indices[0], step)
            for op, _ in self._layer_ops(layer, step, 1.0, None):
                if isinstance(op, Linear | Moe) and policy.rewrite(op, ctx) != (op,):
                    found.append(op.fmt)
        return tuple(dict.fromkeys(found)) or (self.fmt,)

    @property
    def home(self) -> str:
        """Memory tier that holds what the policies keep off the GPU."""
        return next((p.home for p in self.policies.members if p.home != "host"), "host")

    @property
    def by_layer(self) -> bool:
        """Whether layers of one shape are lowered apart, each with its own measured curves."""
        return self.trace is not None and bool(self.policies.members)

    @cached_property
    def groups(self) -> tuple[tuple[LayerSpec, tuple[int, ...]], ...]:
        """Layers that share their ops: equal in shape and equal to every policy."""
        found: dict[object, tuple[LayerSpec, list[int]]] = {}
        n = self.model.n_layers
        for layer, indices in self.model.layer_groups():
            for index in indices:
                key = (layer, self.policies.layer_key(index, n))
                if self.trace is not None and self.by_layer:
                    key = (*key, self.trace.layer(index, n).index)
                found.setdefault(key, (layer, []))[1].append(index)
        return tuple((layer, tuple(indices)) for layer, indices in found.values())

    def ops(self, step: Step) -> list[Op]:
        """All ops of one forward pass on one GPU."""
        return [op for op, _, _ in self.lowered(step)]

    def lowered(self, step: Step, only: Follows | None = None) -> list[Lowered]:
        """The ops of one forward pass on one GPU, or those of one kind."""
        ops: list[Lowered] = []
        step = self.ran(step)
        if only in (None, Follows.TOKENS):
            ops += (Lowered(op, Follows.TOKENS) for op in self._head(step))
        if only is not Follows.SEQUENCES:
            if self.model.tower is not None and some(step.images > 0.0):
                sees = tower.ops(self.model.tower, self.tp, sixteen_bit(self.fmt), step.images)
                ops += (Lowered(op, Follows.CONTEXT) for op in sees)
            ops += self._layers(step, only)
        if only is not Follows.CONTEXT:
            last = self._context(self.model.layers[-1], self.model.n_layers - 1, step)
            for follows, end in ((Follows.TOKENS, self._final_norm), (Follows.SEQUENCES, self._tail)):
                if only in (None, follows):
                    for op in end(step):
                        ops += self._rewritten(op, follows, last)
        if self.drafting is not None and only in (None, Follows.CONTEXT):
            ops += (Lowered(op, Follows.CONTEXT) for op in self.drafting.ops(step))
        return ops

    def ran(self, step: Step) -> Step:
        """`step` as the fullest rank runs it: its own sequences, with the drafted tokens that it verifies."""
        step = step if self.drafting is None else self.drafting.verified(step)
        return step.of_rank(self.dp)

    def _layers(self, step: Step, only: Follows | None) -> list[Lowered]:
        ops: list[Lowered] = []
        plain: dict[tuple[LayerSpec, int], list[tuple[Op, Follows]]] = {}
        for layer, indices in self.groups:
            # Layers alike share the arrays of their ops, so that equal ones can be told and counted together.
            shape = layer, len(indices)
            if shape not in plain:
                plain[shape] = self._layer_ops(layer, step, float(len(indices)), only)
            ctx = self._context(layer, indices[0], step)
            for op, follows in plain[shape]:
                ops += self._rewritten(op, follows, ctx)
        return folded(ops) if self.by_layer else ops

    def _layer_ops(self, layer: LayerSpec, step: Step, count: float, only: Follows | None) -> list[tuple[Op, Follows]]:
        """The dense model's ops of `count` layers, those of one kind where `only` says so."""
        cores = [] if only is Follows.TOKENS else list(self._cores(layer, step, count))
        a = layer.attention
        if a is not None and a.indexer is not None:
            ctx = self._context(layer, 0, step)
            cores = [op for core in cores for op in latent.picked(core, a.indexer, ctx)]
        if a is not None and a.blocks is not None:
            cores = [op for core in cores for op in blocks.picked(core, a.blocks)]
        if only is Follows.CONTEXT:
            return [(core, only) for core in cores]
        return [
            (op, Follows.CONTEXT if any(op is core for core in cores) else Follows.TOKENS)
            for op in self._layer(layer, step, count, cores)
        ]

    @cached_property
    def one_token(self) -> tuple[Op, ...]:
        """Ops of a decode step of one row: what is resident and how wide it gets."""
        plain = replace(self, as_modules=False, drafting=None, policies=replace(self.policies, ideal=False))
        return tuple(plain.ops(Step(decode_rows=1.0)))

    @cached_property
    def kv_layouts(self) -> tuple[tuple[KvLayout, int], ...]:
        """KV layout of one sequence per layer with attention on one GPU, and how many layers have it."""
        step = Step(decode_rows=1.0)
        out = []
        for layer, indices in self.groups:
            attention = layer.attention
            if attention is None or attention.kv_from == "before":
                continue
            dense = kv_bytes_per_token(attention, self.tp, self.kv_element_bytes)
            window = float("inf") if attention.window is None else float(attention.window)
            kv = KvLayout(token_bytes=dense, dense_bytes=dense, max_tokens=window)
            if attention.compressed is not None:
                kv = compressed.layout(attention, attention.compressed, self.kv_element_bytes)
            if attention.blocks is not None:
                kv = replace(kv, meta_bytes=attention.blocks.key_bytes)
            ctx = self._context(layer, indices[0], step)
            if attention.indexer is not None and not attention.indexer.shared:
                kv = latent.layout(kv, attention.indexer)
            kv = self.policies.layout(kv, ctx)
            out.append((kv, len(indices)))
        return tuple(out)

    @property
    def state_bytes(self) -> float:
        """What one sequence keeps on one GPU in layers without attention, however long it gets [B]."""
        return self.model.state_bytes(self.tp)

    def _context(self, layer: LayerSpec, index: int, step: Step) -> Context:
        trace = self.trace and self.trace.layer(index, self.model.n_layers, own=not self.transferred)
        return Context(self.model, layer, index, step, self.tp, self.fmt, self.kv_element_bytes, trace)

    def _rewritten(self, op: Op, follows: Follows, ctx: Context) -> list[Lowered]:
        """`op` as the policies leave it: the same object where none touches it."""
        ops = [Lowered(op, follows)]
        for policy in self.policies.members:
            after: list[Lowered] = []
            for old in ops:
                new = (old.op,) if old.op.overhead else policy.rewrite(old.op, ctx)
                after += (old if of is old.op else Lowered(of, follows, policy.name) for of in new)
            ops = after
        if not self.policies.ideal:
            return ops
        by = next((of.by for of in ops if of.by), "")
        left = ideal(tuple(of.op for of in ops), op)
        return [Lowered(new, follows, "" if new is op else by) for new in left]

    def _head(self, step: Step) -> Iterator[Op]:
        model = self.model
        row = model.hidden * ACT_BYTES
        yield Elementwise(
            role="embed", kind="copy", read_bytes=step.rows * row, write_bytes=step.rows * row, run_bytes=row
        )
        if self.tp > 1:
            yield self._all_reduce("embed.all_reduce", step, 1.0)
        if model.embed_proj_dim:
            yield _at_the_end(
                role="embed.proj",
                m=step.rows,
                n=model.hidden / self.tp,
                k=model.embed_proj_dim,
                fmt=sixteen_bit(self.fmt),
            )

        yield from self._sides(model.sides, step, 1.0)

    def _final_norm(self, step: Step) -> Iterator[Op]:
        if self.model.final_norm:
            yield self._norm("norm.final", step, 1.0, self.model.layers[-1].norm == "rms")

    def _tail(self, step: Step) -> Iterator[Op]:
        model, rows = self.model, step.sampled_rows
        width = model.embed_proj_dim or model.hidden
        if model.embed_proj_dim:
            yield _at_the_end(role="unembed.proj", m=rows, n=width, k=model.hidden / self.tp, fmt=sixteen_bit(self.fmt))
        head = model.ends.of("lm_head") or sixteen_bit(self.fmt)
        yield _at_the_end(role="lm_head", m=rows, n=model.vocab / self.tp, k=width, fmt=head)
        if self.tp > 1:
            yield Collective(
                role="lm_head.all_gather",
                op="all_gather",
                n_ranks=self.tp,
                message_bytes=rows * model.vocab * ACT_BYTES,
            )
        logits = rows * model.vocab * 4.0
        yield Elementwise(role="sample", kind="softmax", read_bytes=logits, write_bytes=logits)

    def _layer(self, layer: LayerSpec, step: Step, count: float, cores: Sequence[Op]) -> Iterator[Op]:
        yield self._norm("norm", step, count * layer.n_norms, layer.norm == "rms")
        if layer.streams > 1:
            row = step.rows * self.model.hidden * ACT_BYTES
            # Read before a block to make its input, read and written after it.
            moved = layer.streams * row
            times = count * layer.n_norms
            yield Elementwise(role="streams.mix", kind="unary", read_bytes=2.0 * moved, write_bytes=moved, count=times)
        attention, hidden = layer.attention, self.model.hidden
        fmt = {m: self.format_of(layer, m) for m in layer.matrices}
        scans = [core for core in cores if isinstance(core, LinearAttention)]
        if layer.state is not None:
            yield from state.block(layer.state, hidden, self.tp, fmt, step, count, scans)
        cores = cores[: len(cores) - len(scans)]
        if attention is not None and self.as_modules and attention.module:
            yield from cores
        elif attention is not None and attention.mla is not None:
            yield from latent.block(attention, attention.mla, hidden, self.tp, fmt, step, count, cores)
        elif attention is not None and attention.compressed is not None:
            yield from compressed.block(attention, attention.compressed, hidden, self.tp, fmt, step, count, cores)
        elif attention is not None:
            yield from self._attention(layer, attention, step, count, cores)
        if self.tp > 1 and layer.mixes and not layer.parallel:
            yield self._all_reduce("attn.all_reduce", step, count)
        if isinstance(layer.ffn, MoeSpec):
            routes = self.model.rest or sixteen_bit(self.fmt)
            yield from feed_forward.experts(
                layer.ffn, hidden, feed_forward.Cut(self.tp, self.dp, self.ep, self.routed), fmt, routes, step, count
            )
        elif layer.ffn is not None:
            yield from feed_forward.dense(layer.ffn, hidden, self.tp, fmt, step, count)
        if self.tp > 1 and layer.ffn is not None:
            yield self._all_reduce("mlp.all_reduce", step, count)
        yield from self._sides(layer.sides, step, count)

    def _sides(self, sides: Iterable[SideSpec], step: Step, count: float) -> Iterator[Op]:
        """Small matrices beside the blocks; engines hold them whole on every GPU."""
        for side in sides:
            yield Linear(
                role=f"side.{side.name}", m=step.rows, n=side.n, k=side.k, fmt=sixteen_bit(self.fmt), count=count
            )

    def _attention(
        self, layer: LayerSpec, a: AttentionSpec, step: Step, count: float, cores: Sequence[Op]
    ) -> Iterator[Op]:
        hidden = self.model.hidden
        q = a.n_heads * a.head_dim / self.tp
        kv_heads = kv_heads_here(a, self.tp)
        n = a.q_width / self.tp + kv_heads * a.kv_width / a.n_kv_heads
        qkv, out = self.format_of(layer, "attn.qkv"), self.format_of(layer, "attn.o")
        yield _projection(role="attn.qkv", m=step.rows, n=n, k=hidden * a.inputs, fmt=qkv, count=count)
        if a.blocks is not None:
            index = {m: self.format_of(layer, m) for m in INDEXER}
            yield from blocks.products(a.blocks, hidden, self.tp, index, step, count)
        turned = q + (0.0 if a.kv_from == "before" else kv_heads * a.head_dim)
        if a.qk_norm:
            yield self._passes("attn.qk_norm", "norm", step, turned, count)
        if a.position == "rope":
            yield self._passes("attn.rope", "rope", step, turned, count)
        yield from cores
        o_in = a.n_heads * a.v_head_dim / self.tp
        if a.gate:
            moved = step.rows * o_in * ACT_BYTES
            yield Elementwise(
                role="attn.gate", kind="activation", read_bytes=2.0 * moved, write_bytes=moved, count=count
            )
        yield _projection(role="attn.o", m=step.rows, n=hidden, k=o_in, fmt=out, count=count)

    def _cores(self, layer: LayerSpec, step: Step, count: float) -> Iterator[Op]:
        """Attention itself, and with MLA what a prompt rebuilds of its context and what decoding absorbs.

        After it the convolution and the recurrence of a block that keeps a state.
        """
        if layer.attention is not None:
            yield from self._attended(layer, layer.attention, step, count)
        if layer.state is not None:
            yield from state.cores(layer.state, self.tp, step, count)

    def _attended(self, layer: LayerSpec, a: AttentionSpec, step: Step, count: float) -> Iterator[Op]:
        heads, mla = a.n_heads / self.tp, a.mla
        if a.module and self.as_modules:
            fmt = self.format_of(layer, "attn.o")
            yield from modules.calls(a, self.model.hidden, self.tp, fmt, self.kv_element_bytes, step, count)
            return
        kv_heads = kv_heads_here(a, self.tp)
        math = self.fmt.math if self.fmt.math in (DType.BF16, DType.FP16, DType.FP32) else DType.BF16
        if a.compressed is not None:
            yield from compressed.cores(a, a.compressed, self.tp, math, self.kv_element_bytes, step, count)
            return
        if step.prefills:
            if mla is not None:
                yield _projection(
                    role="attn.kv_up",
                    m=step.prefill_rows * step.prefill_context,
                    n=heads * (mla.qk_nope_head_dim + a.v_head_dim),
                    k=mla.kv_lora_rank,
                    fmt=self.format_of(layer, "attn.kv_up"),
                    count=count,
                )
            batch, q_len, kv_len = sequences(a, step.prefill_rows, step.prefill_tokens, step.prefill_context)
            yield Attention(
                role="attn.core.prefill",
                phase="prefill",
                batch=batch,
                q_len=q_len,
                kv_len=kv_len,
                n_heads=heads,
                n_kv_heads=kv_heads if mla is None else heads,
                head_dim=a.head_dim,
                v_head_dim=a.v_head_dim,
                math=math,
                kv_element_bytes=self.kv_element_bytes,
                window=None if a.chunked else a.window,
                stores=a.kv_from != "before",
                count=count,
            )
        if step.decodes:
            # llama.cpp multiplies by the halves of kv_up as they are stored; other engines widen them when they load.
            stored = self.format_of(layer, "attn.kv_up") if mla and self.model.method == "gguf" else None
            halves = stored or sixteen_bit(self.fmt)
            absorbed = {"m": step.decode_rows * step.decode_tokens, "groups": heads, "fmt": halves, "count": count}
            if mla is not None:
                yield _projection(role="attn.absorb_k", n=mla.kv_lora_rank, k=mla.qk_nope_head_dim, **absorbed)
            yield Attention(
                role="attn.core",
                phase="decode",
                batch=step.decode_rows,
                q_len=step.decode_tokens,
                kv_len=sequences(a, step.decode_rows, step.decode_tokens, step.decode_context)[2],
                n_heads=heads,
                n_kv_heads=kv_heads if mla is None else 1.0,
                head_dim=a.head_dim if mla is None else float(mla.kv_lora_rank + mla.qk_rope_head_dim),
                v_head_dim=a.v_head_dim if mla is None else float(mla.kv_lora_rank),
                math=math,
                kv_element_bytes=self.kv_element_bytes,
                window=None if a.chunked else a.window,
                latent=mla is not None,
                stores=a.kv_from != "before",
                count=count,
            )
            if mla is not None:
                yield _projection(role="attn.absorb_v", n=a.v_head_dim, k=mla.kv_lora_rank, **absorbed)

    def _norm(self, role: str, step: Step, count: float, rms: bool) -> Op:
        row = self.model.hidden * ACT_BYTES
        return Elementwise(
            role=role,
            kind="norm" if rms else "layer_norm",
            read_bytes=2.0 * step.rows * row,
            write_bytes=2.0 * step.rows * row,
            count=count,
        )

    def _passes(self, role: str, kind: str, step: Step, width: float, count: float) -> Op:
        moved = step.rows * width * ACT_BYTES
        return Elementwise(role=role, kind=kind, read_bytes=moved, write_bytes=moved, count=count)

    def _all_reduce(self, role: str, step: Step, count: float) -> Op:
        return Collective(
            role=role,
            op="all_reduce",
            n_ranks=self.tp,
            count=count,
            message_bytes=step.rows * self.model.hidden * ACT_BYTES,
        )
