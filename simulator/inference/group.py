"""What a product grid holds fixed: model, device, policies, engine, formats, parallelism."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from simulator.base.dtypes import AUTO, KV_FORMATS, DType, Format, get_format
from simulator.base.errors import NothingFeasibleError, UnsupportedError
from simulator.device.catalogue import Device
from simulator.inference.lowering import Lowering
from simulator.inference.status import Status
from simulator.model.spec import ModelSpec
from simulator.ops.module import AttentionModule
from simulator.ops.step import decode_step, prefill_step
from simulator.policies import Policies
from simulator.roofline.engine import Engine, get_engine
from simulator.roofline.timing import measured_as_module, time_op
from simulator.scenario.catalogue import CATALOGUE, fits
from simulator.scenario.scenario import Scenario
from simulator.trace import Trace


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
    utilisation: float = 0.9
    block_tokens: int = 16
    ignore_context: bool = False
    expert_fmt: Format | None = None
    trace: Trace | None = None
    modules: bool | None = None
    """Whether blocks measured as a whole answer; None: where every policy and the dense model were measured."""

    @classmethod
    def of(cls, scenario: Scenario, model: ModelSpec, device: Device) -> Group:
        """Group of one scenario with its names already resolved."""
        dtype = model.dtype if scenario.dtype == AUTO else scenario.dtype
        expert_fmt = None
        if scenario.dtype == AUTO and model.quantization == "fp8_block" and device.has(DType.FP8):
            dtype = "fp8_block"
        elif scenario.dtype == AUTO and model.quantization == "mxfp4":
            # Without FP4 tensor cores the 4-bit experts are multiplied in 16 bit (Marlin, Triton).
            mxfp4 = get_format("mxfp4")
            weight_only = Format("w4a16", DType.BF16, mxfp4.weight_bits)
            expert_fmt = mxfp4 if device.has(DType.FP4) else weight_only
        if scenario.dtype == AUTO and dtype in ("bf16", "fp16") and not device.has(DType(dtype)):
            dtype = "fp16" if dtype == "bf16" else "bf16"
        kv = scenario.kv_cache_dtype
        if kv == AUTO:
            kv = "fp32" if dtype == "fp32" else "fp16" if dtype == "fp16" else "bf16"
        return cls(
            model,
            device,
            scenario.policies,
            get_engine(scenario.engine),
            get_format(dtype),
            kv,
            scenario.tp,
            scenario.pp,
            scenario.ep,
            scenario.gpu_memory_utilization,
            scenario.block_size,
            scenario.ignore_context_limit,
            expert_fmt,
            CATALOGUE.trace_for(scenario, model),
        )

    @property
    def gpus(self) -> int:
        """GPUs of one replica [-]."""
        return self.tp * self.pp

    @cached_property
    def lowering(self) -> Lowering:
        """The model as cut and stored here."""
        return Lowering(
            self.model,
            self.policies,
            self.fmt,
            KV_FORMATS[self.kv_dtype],
            self.tp,
            self.ep,
            self.expert_fmt,
            self.trace,
            self.as_modules,
        )

    @cached_property
    def as_modules(self) -> bool:
        """Whether the engine was measured with the attention blocks of this group as a whole.

        Both phases, with the policies and without: what is compared is timed alike.
        """
        if self.modules is not None:
            return self.modules
        plain = all(layer.attention.mla and layer.attention.mla.q_lora_rank for layer in self.model.layers)
        if not plain or not all(policy.modules for policy in self.policies.members):
            return False
        steps = prefill_step(1.0, 2.0), decode_step(1.0, 2.0)
        kv = KV_FORMATS[self.kv_dtype]
        cut = (
            Lowering(self.model, p, self.fmt, kv, self.tp, self.ep, as_modules=True)
            for p in (self.policies, Policies())
        )
        blocks = [op for low in cut for step in steps for op in low.ops(step) if isinstance(op, AttentionModule)]
        return all(measured_as_module(op, self.device, self.engine) for op in blocks)

    @cached_property
    def dense(self) -> Group:
        """The same group without policies."""
        return replace(self, policies=Policies(), trace=None, modules=self.as_modules)

    @cached_property
    def transferred(self) -> bool:
        """Whether the policies run on curves of another model."""
        if self.trace is None or not self.policies.members:
            return False
        return not fits(self.trace.manifest, self.model)

    @property
    def dtype(self) -> str:
        """Weight format after the policies."""
        fmt = self.fmt
        for policy in self.policies.members:
            fmt = policy.weight_format(fmt)
        return fmt.name if self.expert_fmt is None else f"{fmt.name}, experts {self.expert_fmt.name}"

    @cached_property
    def problem(self) -> tuple[Status, str] | None:
        """(status, reason) when no point of the group can run, else None."""
        if not self.device.has(self.fmt.math):
            have = ", ".join(sorted(str(d) for d in DType if self.device.has(d)))
            return (Status.UNSUPPORTED_DTYPE, f"{self.device.name} has no {self.fmt.math} rate; it has {have}")
        reason = self.lowering.why_not()
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
    def too_long(self) -> str:
        """What to say where prompt and output are longer than the model allows."""
        limit = self.model.max_context
        return f"prompt + output exceed the model's {limit} tokens; shorten them or add --ignore-context-limit"


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
    # A kept group keeps all three, so that none of these numbers is given to another object.
    of = id(model), id(device), id(CATALOGUE.trace_for(scenario, model))
    return CATALOGUE.groups(scenario.fixed, of, lambda: Group.of(scenario, model, device))
