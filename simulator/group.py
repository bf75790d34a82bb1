"""What a product grid holds fixed: model, device, policies, engine, formats, parallelism."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from simulator import hub
from simulator.device import Device
from simulator.device import load as load_device
from simulator.dtypes import AUTO, KV_FORMATS, DType, Format, get_format
from simulator.engine import Engine, get_engine
from simulator.errors import InputError, NothingFeasibleError, UnsupportedError, fold
from simulator.lowering import Lowering
from simulator.model import ModelSpec
from simulator.policies import Policies, parse
from simulator.scenario import Scenario
from simulator.step import step_time
from simulator.trace import Manifest, ModelFacts, Trace, read_manifest, read_trace
from simulator.workload import decode_step


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
            parse(scenario.policy),
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
            _trace_of(scenario, model),
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
        )

    @cached_property
    def dense(self) -> Group:
        """The same group without policies."""
        return replace(self, policies=Policies(), trace=None)

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
        return (
            fmt.name if self.expert_fmt is None else f"{fmt.name}, experts {self.expert_fmt.name}"
        )

    @cached_property
    def problem(self) -> tuple[str, str] | None:
        """(status, reason) when no point of the group can run, else None."""
        if not self.device.has(self.fmt.math):
            have = ", ".join(sorted(str(d) for d in DType if self.device.has(d)))
            return (
                "unsupported_dtype",
                f"{self.device.name} has no {self.fmt.math} rate; it has {have}",
            )
        reason = self.lowering.why_not()
        if reason is None and self.pp > self.model.n_layers:
            reason = f"{self.model.n_layers} layers cannot fill pp={self.pp}"
        if reason is None and self.gpus > 1 and not self.device.links:
            reason = f"{self.device.name} has no GPU link in its profile; use tp=1 and pp=1"
        if reason is None:
            try:
                step_time(self, decode_step(1.0, 2.0))
            except UnsupportedError as error:
                reason = error.message
        return ("not_applicable", reason) if reason else None

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


@lru_cache(maxsize=512)
def group_of(scenario: Scenario) -> Group:
    """Group of a scenario's fixed part, names resolved."""
    return Group.of(scenario, find_model(scenario.model), find_device(scenario.device))


@lru_cache(maxsize=256)
def find_model(name: str) -> ModelSpec:
    """Model by name, folder, file or hub id, read once per process."""
    return hub.find_model(name)


@lru_cache(maxsize=256)
def find_device(name: str) -> Device:
    """Device by name or profile file, read once per process."""
    return load_device(name)


@lru_cache(maxsize=64)
def find_trace(path: str) -> Trace:
    """Trace of a folder, read and checked once per process."""
    return read_trace(path)


def fits(manifest: Manifest, model: ModelSpec) -> bool:
    """Whether a trace was measured on `model`: by name, and by shape and activation."""
    if manifest.facts != ModelFacts.of(model):
        return False
    try:
        return hub.resolve(manifest.model) == model.name
    except InputError:
        return fold(manifest.model.rpartition("/")[2]) == fold(model.name)


def pick_trace(paths: tuple[str, ...], model: ModelSpec, *, transfer: bool) -> str:
    """Folder of the trace for `model` among `paths`; "" where there are none.

    Raises
    ------
    InputError
        No trace of the model without `transfer`, or more than one that could be meant.
    """
    if not paths:
        return ""
    manifests = {path: read_manifest(path)[0] for path in paths}
    own = [path for path, manifest in manifests.items() if fits(manifest, model)]
    found = own or (list(paths) if transfer else [])
    if len(found) > 1:
        raise InputError(
            f"{' and '.join(found)} could all stand for {model.name}; give one of them",
            where="--trace",
        )
    if not found:
        raise _other_model(paths[0], manifests[paths[0]], model)
    return found[0]


def _trace_of(scenario: Scenario, model: ModelSpec) -> Trace | None:
    if not scenario.trace:
        return None
    trace = find_trace(scenario.trace)
    if not scenario.trace_transfer and not fits(trace.manifest, model):
        raise _other_model(scenario.trace, trace.manifest, model)
    return trace


def _other_model(path: str, manifest: Manifest, model: ModelSpec) -> InputError:
    return InputError(
        f"{path} was measured on {_facts(manifest.model, manifest.facts)}, not on"
        f" {_facts(model.name, ModelFacts.of(model))}; give a trace of it, or --trace-transfer to map the"
        " layers by relative depth",
        where="--trace",
    )


def _facts(name: str, facts: ModelFacts) -> str:
    return f"{name} ({facts.n_layers} layers of {facts.hidden}/{facts.intermediate}, {facts.activation})"
