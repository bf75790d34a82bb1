"""What a scenario consists of, as plain data: `Scenario` checks it, each verb makes its options of it.

Nothing heavy is imported, so that ``--help`` answers before pydantic, numpy and the policies are.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args

from simulator.base.dtypes import AUTO

T = TypeVar("T")
MAX_TOKENS = 100_000_000
MAX_BATCH = 1_000_000
REQUIRED: Any = object()
"""Default of a field that has none."""


@dataclass(frozen=True)
class About:
    """Meaning and bounds of one field.

    Attributes
    ----------
    help : str
        Meaning, in one phrase.
    several : str
        How several values are written, where the field is an axis of a grid.
    short : str
        Second spelling of its flag.
    more : tuple of str
        Other spellings, those of engines.
    bounds : dict
        Keys as in pydantic's core schema: ge, gt, le, min_length, max_length.
    """

    help: str
    several: str = ""
    short: str = ""
    more: tuple[str, ...] = ()
    bounds: dict[str, float] = field(default_factory=dict)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        schema = handler(source)
        if schema["type"] == "nullable":
            return {**schema, "schema": {**schema["schema"], **self.bounds}}
        return {**schema, **self.bounds}


def _whole(most: int) -> dict[str, float]:
    return {"ge": 1, "le": most}


@dataclass_transform(kw_only_default=True)
def _fields(cls: type[T]) -> type[T]:
    """Mark a class as one that its keyword arguments describe; nothing is added."""
    return cls


_NAME: dict[str, float] = {"min_length": 1, "max_length": 500}
_COMMAS = "commas between"


@_fields
class Fields:
    """The fields of a `Scenario`; each has one flag of the same name."""

    model: Annotated[str, About("model name, folder, config.json, .gguf file or hub id", _COMMAS, bounds=_NAME)]
    device: Annotated[str, About("device name or profile file", _COMMAS, bounds=_NAME)]
    policy: Annotated[str, About("sparsity policy: 'name(key=value)' joined by +")] = "dense"
    kernel: Annotated[
        str,
        About(
            "kernel the policy runs in: a name of `python -m simulator.policies NAME`, published, or ideal, the bound",
            _COMMAS,
            bounds=_NAME,
        ),
    ] = "published"
    engine: Annotated[
        str, About("serving engine whose kernels and host side are assumed: kernels, vllm, vllm@0.11, ...", _COMMAS)
    ] = "vllm"
    dtype: Annotated[
        str,
        About(
            "format of the dense model's weights, or of groups: experts=nvfp4,attention=bf16; auto = as published",
            _COMMAS,
        ),
    ] = AUTO
    kv_cache_dtype: Annotated[
        str, About("format of the dense model's KV cache; auto = as the checkpoint states, else 16 bit", _COMMAS)
    ] = AUTO
    tp: Annotated[int, About("tensor-parallel GPUs", "e.g. 1,2,4", bounds=_whole(1024))] = 1
    pp: Annotated[int, About("pipeline stages; llama.cpp: its layer split", "e.g. 1,2,4", bounds=_whole(1024))] = 1
    speculate: Annotated[
        str,
        About("drafted tokens: draft(model=M,k=4,accept=0.7), or eagle3, eagle, mtp, ngram with k= and accept=|tau="),
    ] = ""
    ep: Annotated[int, About("groups the experts are split between, within tp", "e.g. 1,2,4", bounds=_whole(1024))] = 1
    dp_attention: Annotated[
        int,
        About(
            "attention data parallel: groups of the tp GPUs with their own sequences and all weights but the experts'",
            "e.g. 1,8",
            more=("--dp-size",),
            bounds=_whole(1024),
        ),
    ] = 1
    moe_a2a_backend: Annotated[
        str,
        About(
            "how tokens reach other ranks' experts under --dp-attention: none gathers them all, the engines' default;"
            " deepep sends each to its own, by low-latency kernels in decode"
        ),
    ] = "none"
    batch: Annotated[
        int, About("sequences in the static batch", "e.g. 1,4,16 or 1:64:x2", bounds=_whole(MAX_BATCH))
    ] = 1
    prompt_tokens: Annotated[
        int, About("prompt tokens per sequence", "e.g. 512:131072:x4", "--isl", bounds=_whole(MAX_TOKENS))
    ] = 512
    output_tokens: Annotated[
        int, About("output tokens per sequence", "e.g. 128,512", "--osl", bounds=_whole(MAX_TOKENS))
    ] = 128
    gpu_memory_utilization: Annotated[
        float | None,
        About(
            "share of the memory, as the engine means it: of all (vLLM), for weights and KV (SGLang), of what is free"
            " (TensorRT-LLM); default its own",
            more=(
                "--kv-fraction",
                "--mem-fraction-static",
                "--free-gpu-memory-fraction",
                "--cache-max-entry-count",
                "--cuda-memory-fraction",
            ),
            bounds={"gt": 0.0, "le": 1.0},
        ),
    ] = None
    max_num_seqs: Annotated[
        int | None, About("sequences the engine runs at once; default its own", bounds=_whole(4096))
    ] = None
    max_num_batched_tokens: Annotated[
        int | None, About("tokens of one step; default the engine's own", bounds=_whole(1_000_000))
    ] = None
    max_model_len: Annotated[
        int | None,
        About("longest sequence the engine is started for; default the model's context", bounds=_whole(MAX_TOKENS)),
    ] = None
    block_size: Annotated[int, About("tokens per KV page", bounds=_whole(1024))] = 16
    ignore_context_limit: Annotated[bool, About("predict beyond the model's context, as EXTRAPOLATED")] = False
    images: Annotated[
        int, About("images in each prompt; their tokens come on top of the prompt's", bounds={"ge": 0, "le": 10_000})
    ] = 0
    text_only: Annotated[bool, About("leave the checkpoint's vision tower out of memory")] = False
    trace: Annotated[
        str,
        About(
            "folder of a measured trace the policy takes its curves from",
            "repeat the flag for another model",
            bounds={"max_length": 500},
        ),
    ] = ""
    trace_transfer: Annotated[
        bool, About("use a trace of another model, layers mapped by relative depth, as EXTRAPOLATED")
    ] = False
    quality: Annotated[
        str, About("file of python -m traces.quality: losses measured on the model", bounds={"max_length": 500})
    ] = ""


@dataclass(frozen=True)
class Known:
    """One field: its type, default and what is told about it."""

    name: str
    kind: type
    default: Any
    about: About

    @property
    def flag(self) -> str:
        """Its flag."""
        return flag(self.name)


def flag(name: str) -> str:
    """Flag of the field or setting `name`."""
    return "--" + name.replace("_", "-")


def _known(name: str, hint: Any) -> Known:
    kind, about = get_args(hint)
    # ``int | None``: an option of whole numbers that may be left out.
    kind = next((k for k in get_args(kind) if k is not type(None)), kind)
    return Known(name, kind, getattr(Fields, name, REQUIRED), about)


FIELDS = {name: _known(name, hint) for name, hint in Fields.__annotations__.items()}
A2A = ("none", "deepep")
"""Values of `Fields.moe_a2a_backend`, SGLang's."""
STATIC = ("speculate", "dp_attention", "moe_a2a_backend")
"""Fields that a scheduler of requests does not follow."""
SCHEDULED = ("max_num_seqs", "max_num_batched_tokens")
"""Fields that a scheduler of requests holds instead."""
LOAD = ("batch", "prompt_tokens", "output_tokens")
"""Fields that vary within a group."""
