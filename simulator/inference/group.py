"""What a product grid holds fixed: model, device, policies, engine, formats, parallelism."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from simulator.base.arrays import Array, maximum, minimum
from simulator.base.dtypes import AUTO, KV_FORMATS, DType, Format
from simulator.base.errors import NothingFeasibleError, UnsupportedError
from simulator.device.catalogue import Device
from simulator.inference.drafting import drafting
from simulator.inference.formats import formats_on, kv_dtype_of, told, used
from simulator.inference.lowering import Lowering
from simulator.inference.status import Status
from simulator.model.formats import GROUPS, STATE, choose
from simulator.model.spec import ModelSpec
from simulator.ops.module import AttentionModule
from simulator.ops.ops import Op
from simulator.ops.part import OpPart
from simulator.ops.step import decode_step, prefill_step
from simulator.policies import ATTENTION_ASPECTS, Policies, Policy
from simulator.roofline.engine import Engine, get_engine
from simulator.roofline.reserve import Start
from simulator.roofline.timing import measured_as_module, time_op
from simulator.scenario.catalogue import CATALOGUE, fits
from simulator.scenario.scenario import Scenario
from simulator.scenario.speculation import Speculation, speculation
from simulator.trace import QualityFile, Trace

WITHOUT_POOL = 0.9
"""Share of the GPU's memory that software without a pool of KV is given where nobody says: allocators fragment [-]."""


@dataclass(frozen=True)
class Group:
    """What a product grid holds fixed while batch, prompt and output vary."""

    model: ModelSpec
    device: Device
    policies: Policies
    engine: Engine
    fmt: Format
    kv_dtype: str
    tp: int = 1
    pp: int = 1
    ep: int = 1
    utilisation: float | None = None
    """Share of the memory, as the engine reads it; None: its own default."""
    block_tokens: int = 16
    ignore_context: bool = False
    trace: Trace | None = None
    modules: bool | None = None
    """Whether blocks measured as a whole answer; None: where they can."""
    quality: QualityFile | None = None
    images: int = 0
    """Images in each prompt, beside its own tokens."""
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    """What the engine is started with; None: its own defaults, and the model's context."""
    speculation: Speculation | None = None
    drafts: ModelSpec | None = None
    """The model that drafts, where one is named."""
    dp_attention: int = 1
    """Groups of the `tp` GPUs that attend to sequences of their own."""
    a2a: str = "none"
    """How tokens reach experts of other ranks, of `A2A`."""

    @classmethod
    def of(cls, scenario: Scenario, model: ModelSpec, device: Device) -> Group:
        """Group of one scenario with its names already resolved."""
        if scenario.text_only:
            model = replace(model, tower=None)
        runs, fmt = formats_on(model, choose(scenario.dtype), device)
        kv = scenario.kv_cache_dtype
        speculates = speculation(scenario.speculate)
        return cls(
            runs,
            device,
            scenario.policies,
            get_engine(scenario.engine),
            fmt,
            kv_dtype_of(model, fmt) if kv == AUTO else kv,
            scenario.tp,
            scenario.pp,
            scenario.ep,
            scenario.gpu_memory_utilization,
            scenario.block_size,
            scenario.ignore_context_limit,
            CATALOGUE.trace_for(scenario, model),
            quality=CATALOGUE.quality_for(scenario, model),
            images=scenario.images,
            max_num_seqs=scenario.max_num_seqs,
            max_num_batched_tokens=scenario.max_num_batched_tokens,
            max_model_len=scenario.max_model_len,
            speculation=speculates,
            drafts=CATALOGUE.model(speculates.model) if speculates and speculates.model else None,
            dp_attention=scenario.dp_attention,
            a2a=scenario.moe_a2a_backend,
        )

    @cached_property
    def start(self) -> Start | None:
        """The engine as it is started here; None where it has no pool of KV."""
        reserve = self.engine.reserve
        if reserve is None:
            return None
        return reserve.start(
            self.device,
            self.gpus,
            self.max_model_len or self.model.max_context,
            fraction=self.utilisation,
            seqs=self.max_num_seqs,
            tokens=self.max_num_batched_tokens,
        )

    @property
    def share(self) -> float:
        """Share of the GPU's memory of an engine without a pool [-]."""
        return WITHOUT_POOL if self.utilisation is None else self.utilisation

    @property
    def gpus(self) -> int:
        """GPUs of one replica [-]."""
        return self.tp * self.pp

    @property
    def attention_tp(self) -> int:
        """GPUs that share each attention block [-]."""
        return max(self.tp // self.dp_attention, 1)

    def parts(self, batch: Array) -> Array:
        """Parts that a batch is cut in, so that every stage of the pipeline has one [-]."""
        return 1.0 if self.engine.piece_tokens else minimum(batch, float(self.pp))

    def passes(self, batch: Array, prompt: Array) -> Array:
        """Passes of one of the `parts` through the whole pipeline that a prefill takes, in time [-].

        ``(m + pp - 1) / pp`` of m parts; where m pieces of the prompts follow each other, that by m.
        """
        piece, stages = self.engine.piece_tokens, float(self.pp)
        if not piece:
            return (self.parts(batch) + stages - 1.0) / stages
        pieces = maximum(batch * prompt / piece, 1.0)
        return (pieces + stages - 1.0) / (stages * pieces)

    @cached_property
    def lowering(self) -> Lowering:
        """The model as cut and stored here."""
        alone = Lowering(
            self.model,
            self.policies,
            self.fmt,
            KV_FORMATS[self.kv_dtype],
            self.attention_tp,
            self.ep,
            self.trace,
            self.as_modules,
            self.transferred,
            dp=self.dp_attention,
            routed=self.a2a == "deepep",
        )
        if self.speculation is None:
            return alone
        return replace(alone, drafting=drafting(self.speculation, self.drafts, alone, self.device))

    @cached_property
    def as_modules(self) -> bool:
        """Whether the attention blocks of this group are those its engine was measured with as a whole, in both phases.

        A policy that leaves the blocks alone keeps them; one that works inside them has to be measured, too.
        """
        if self.modules is not None:
            return self.modules
        whole_blocks = [layer for layer, _ in self.model.layer_groups() if layer.attention and layer.attention.module]
        # A module was measured with one format of its projections.
        formats = ({b.formats.of(m) for m in GROUPS["attention"] if m in b.matrices} for b in whole_blocks)
        if not whole_blocks or any(len(of_one) > 1 for of_one in formats):
            return False
        whole = Lowering(
            self.model,
            Policies(),
            self.fmt,
            KV_FORMATS[self.kv_dtype],
            self.attention_tp,
            self.ep,
            self.trace,
            as_modules=True,
            dp=self.dp_attention,
        )
        mine = Policies(tuple(p for p in self.policies.members if not _spares(p, whole)))
        if not all(policy.modules for policy in mine.members):
            return False
        steps = prefill_step(1.0, 2.0), decode_step(1.0, 2.0)
        cut = (replace(whole, policies=p) for p in (mine, Policies()))
        blocks = [op for low in cut for step in steps for op in low.ops(step) if isinstance(op, AttentionModule)]
        return all(measured_as_module(op, self.device, self.engine) for op in blocks)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is left out of the model, and which layers a policy on attention does not reach."""
        model = self.model
        notes = (*model.notes, *self._of_tower)
        if not self.policies.members or (model.n_attention_layers == model.n_layers and not model.n_state_layers):
            return notes
        on_attention = [p.name for p in self.policies.members if p.aspects & ATTENTION_ASPECTS]
        layers = f"works on {model.n_attention_layers} of {model.n_layers} layers, those with attention"
        left = f"leaves the products of {model.n_state_layers} layers that keep a state as they are"
        around = (p.name for p in self.policies.members if p.name not in on_attention and self._spares_states(p.name))
        return (*notes, *(f"{name} {layers}" for name in on_attention), *(f"{name} {left}" for name in around))

    def _spares_states(self, name: str) -> bool:
        """Whether a policy rewrites projections of attention, but none of layers that keep a state."""
        whole = replace(self, modules=False).lowering
        rewritten = [one.op for one in whole.lowered(decode_step(1.0, 2.0)) if one.by == name]
        roles = {op.role for op in rewritten if op.part is OpPart.PROJECTIONS and not op.overhead}
        return bool(roles - {*STATE} and whole.model.n_state_layers and not roles & {*STATE})

    @cached_property
    def dense(self) -> Group:
        """The same group without policies and speculation: one answer, whatever was asked beside it."""
        return replace(self, policies=Policies(), trace=None, speculation=None, drafts=None)

    @property
    def is_dense(self) -> bool:
        """Whether nothing is done to the model and its steps."""
        return not self.policies.members and self.speculation is None

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a decode step yields for each sequence [-]."""
        return 1.0 if self.speculation is None else self.speculation.tokens

    @cached_property
    def plain(self) -> Group:
        """The same group without speculation."""
        return replace(self, speculation=None, drafts=None)

    @cached_property
    def twin(self) -> Group:
        """The dense group in the ops of this one: what kernel by kernel is compared with."""
        return self.dense if self.dense.as_modules == self.as_modules else replace(self.dense, modules=self.as_modules)

    @cached_property
    def transferred(self) -> bool:
        """Whether the policies run on curves of another model."""
        if self.trace is None or not self.policies.members:
            return False
        return not fits(self.trace.manifest, self.model)

    @property
    def dtype(self) -> str:
        """Weight formats after the policies, in words."""
        fmt = self.fmt
        for policy in self.policies.members:
            fmt = policy.weight_format(fmt)
        return told(self.model, fmt)

    @cached_property
    def problem(self) -> tuple[Status, str] | None:
        """(status, reason) when no point of the group can run, else None."""
        for fmt in used(self.model, self.fmt):
            if not self.device.has(fmt.math):
                have = ", ".join(sorted(str(d) for d in DType if self.device.has(d)))
                return (Status.UNSUPPORTED_DTYPE, f"{self.device.name} has no {fmt.math} rate; it has {have}")
        reason = self._cannot_spread or self.lowering.why_not() or self._cannot_see
        if reason is None and self.speculation is not None and self.pp > 1:
            reason = "engines draft on one pipeline stage; use --pp 1 with --speculate"
        if reason is None and self.pp > self.model.n_layers:
            reason = f"{self.model.n_layers} layers cannot fill pp={self.pp}"
        if reason is None and self.gpus > 1 and not self.device.links:
            reason = f"{self.device.name} has no GPU link in its profile; use tp=1 and pp=1"
        if reason is None:
            try:
                for op in self.lowering.ops(decode_step(1.0, 2.0)):
                    time_op(op, self.device, self.engine)
            except UnsupportedError as error:
                reason = error.message
        return (Status.NOT_APPLICABLE, reason) if reason else None

    @property
    def _of_tower(self) -> tuple[str, ...]:
        """What the vision tower takes, and the image that is meant."""
        tower = self.model.tower
        if tower is None:
            return ()
        loaded = f"a vision tower of {tower.n_params / 1e9:.3g} B parameters is loaded; --text-only leaves it out"
        if not self.images:
            return (loaded,)
        size = f"{tower.pixels} x {tower.pixels} pixels"
        other = ", assumed, as any size is taken" if tower.resizes else ""
        return (loaded, f"an image is {tower.tokens:,} prompt tokens ({tower.patches:,} patches of {size}{other})")

    @property
    def _cannot_spread(self) -> str | None:
        """Why sequences cannot be spread over ranks of attention, None where they can."""
        if self.tp % self.dp_attention:
            return f"--dp-attention {self.dp_attention} does not divide --tp {self.tp}, the GPUs of all its ranks"
        if self.a2a == "deepep" and self.device.links and self.device.link_for(self.tp).joins_nodes:
            return f"all-to-all between machines was not measured; {self.device.link.max_ranks} GPUs share a link"
        if self.dp_attention > 1 and self.speculation is not None:
            return "what a drafting model costs under attention data parallel is not known; drop --speculate"
        return None

    @property
    def _cannot_see(self) -> str | None:
        """Why images cannot be asked of the model, None where they are not or can."""
        tower = self.model.tower
        if not self.images:
            return None
        if tower is None:
            return f"{self.model.name} is read without a vision tower, so it takes no images; drop --images"
        if tower.n_heads % self.attention_tp:
            return f"{tower.n_heads} heads of the vision tower cannot be split over tp={self.attention_tp}"
        return None

    @property
    def image_tokens(self) -> int:
        """Prompt tokens of the images of one sequence [-]."""
        return self.images * self.model.tower.tokens if self.model.tower else 0

    @property
    def too_long(self) -> str:
        """What to say where prompt and output are longer than the model allows."""
        limit = self.model.max_context
        return f"prompt + output exceed the model's {limit} tokens; shorten them or add --ignore-context-limit"


def _spares(policy: Policy, whole: Lowering) -> bool:
    """Whether `policy` leaves the ops of long contexts' attention blocks as they are."""

    def block(policies: Policies) -> list[Op]:
        low = replace(whole, policies=policies, as_modules=False)
        ops = [op for step in (prefill_step(1.0, 32768.0), decode_step(8.0, 32768.0)) for op in low.ops(step)]
        return [op for op in ops if op.part in (OpPart.ATTENTION, OpPart.PROJECTIONS)]

    return block(Policies((policy,))) == block(Policies())


def runnable(scenario: Scenario) -> Group:
    """Group of a scenario that can run.

    Raises
    ------
    NothingFeasibleError
        It cannot run at all, or its lengths exceed the model's context.
    """
    group = group_of(scenario)
    if group.problem is not None:
        raise NothingFeasibleError(group.problem[1])
    tokens = scenario.prompt_tokens + scenario.output_tokens
    if tokens > group.model.max_context and not group.ignore_context:
        raise NothingFeasibleError(group.too_long)
    return group


def group_of(scenario: Scenario) -> Group:
    """Group of a scenario's fixed part, names resolved; another one where a file behind a name has changed."""
    model, device = CATALOGUE.model(scenario.model), CATALOGUE.device(scenario.device)
    # A kept group keeps all four, so that none of these numbers is given to another object.
    measured = CATALOGUE.trace_for(scenario, model), CATALOGUE.quality_for(scenario, model)
    of = id(model), id(device), *map(id, measured)
    return CATALOGUE.groups(scenario.fixed, of, lambda: Group.of(scenario, model, device))
