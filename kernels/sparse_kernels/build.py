"""Compile one launch for one compute capability, without a GPU."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sparse_kernels.launch import Launch, captured
from sparse_kernels.occupancy import WARP_THREADS, Occupancy, occupancy
from sparse_kernels.registry import Case, Kernel
from sparse_kernels.sass import Use
from sparse_kernels.target import compiling_for

_TYPES = {
    "torch.bfloat16": "bf16",
    "torch.float16": "fp16",
    "torch.float32": "fp32",
    "torch.int8": "i8",
    "torch.uint8": "u8",
    "torch.int16": "i16",
    "torch.int32": "i32",
    "torch.int64": "i64",
    "torch.bool": "i1",
}
DIVISIBLE = 16
"""Alignment of pointers [B] and divisor of sizes that Triton specialises a kernel on."""


@dataclass(frozen=True)
class Job:
    """One specialisation of one kernel function; equal jobs compile to equal code.

    Attributes
    ----------
    module, name : str
        Where the kernel function is.
    signature : tuple of (str, str)
        Triton type of every parameter, "constexpr" for constants.
    constants : tuple of (str, Any)
    divisible : tuple of int
        Positions of the parameters that are multiples of `DIVISIBLE`.
    """

    module: str
    name: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[int, ...]
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Built:
    """A compiled `Job` on one compute capability; `spilled_bytes` is ptxas's count per thread [B]."""

    use: Use
    spilled_bytes: int
    shared_bytes: int
    warps: int
    fit: Occupancy

    @property
    def in_flight_bytes(self) -> int:
        """Most that one block can have on its way from memory [B]: its shared memory and all register loads."""
        return self.shared_bytes + WARP_THREADS * self.warps * self.use.load_bytes


def job(launch: Launch) -> Job:
    """What Triton would specialise `launch` to: constants, types, ones, and multiples of 16."""
    import torch

    signature, constants, divisible = [], [], []
    declared = launch.constants
    for i, name in enumerate(launch.kernel.arg_names):
        value = launch.arguments[name]
        if name in declared or value is None or (type(value) is int and value == 1):
            signature.append((name, "constexpr"))
            constants.append((name, value))
        elif isinstance(value, torch.Tensor):
            signature.append((name, "*" + _TYPES[str(value.dtype)]))
            if value.data_ptr() % DIVISIBLE == 0:
                divisible.append(i)
        elif isinstance(value, int):
            signature.append((name, "i32" if -(2**31) <= value < 2**31 else "i64"))
            if value % DIVISIBLE == 0:
                divisible.append(i)
        elif isinstance(value, float):
            signature.append((name, "fp32"))
        else:
            raise TypeError(f"{launch.name}: cannot specialise {name} of {type(value).__name__}")
    return Job(
        launch.kernel.fn.__module__,
        launch.name,
        tuple(signature),
        tuple(constants),
        tuple(divisible),
        launch.num_warps,
        launch.num_stages,
    )


def jobs(kernel: Kernel, case: Case, targets: Iterable[int]) -> dict[int, list[Job]]:
    """The launches of one case by compute capability, captured and not run."""
    inputs = kernel.inputs(case, 0, "cpu")
    found = {}
    for cc in targets:
        with compiling_for(cc), captured() as launches:
            kernel.triton(**inputs, **kernel.buffers(**inputs))
        found[cc] = [job(launch) for launch in launches]
    return found


def compile_job(task: Job, cc: int) -> Built:
    """Compile and disassemble; Triton keeps the result in its own cache."""
    from sparse_kernels import sass

    made = _compile(task, cc)
    use, shared = sass.disassemble(made.asm["cubin"]), int(made.metadata.shared)
    spilled = sass.spilled_bytes(_log(task, cc)) if use.local_bytes else 0
    # Warp specialisation may add warps to those asked for.
    warps = int(getattr(made.metadata, "total_num_warps", None) or made.metadata.num_warps)
    fit = occupancy(cc, warps=warps, registers=use.registers, shared_bytes=shared)
    return Built(use, spilled, shared, warps, fit)


_numbers = itertools.count(1)


class _Absent:
    """A GPU of one compute capability that is not here: as much driver as Triton asks for before a launch."""

    def __init__(self, cc: int):
        self.cc, self.number = cc, -next(_numbers)

    def get_current_device(self) -> int:
        """A number of its own, so that nothing compiled before is taken for this."""
        return self.number

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.cc, 32)


def _compile(task: Job, cc: int) -> Any:
    """By Triton's own launch path, so that a launch finds the result in Triton's cache."""
    from triton.runtime import driver

    function = getattr(importlib.import_module(task.module), task.name)
    arguments = dict(zip((n for n, _ in task.signature), _stand_ins(task), strict=True))
    options = {"num_warps": task.num_warps, "num_stages": task.num_stages}
    driver.set_active(_Absent(cc))  # type: ignore[arg-type]
    try:
        return function.warmup(**arguments, grid=(1,), **options)
    finally:
        # Unset: the next launch, if there is a GPU, makes the real one again.
        driver.set_active(None)  # type: ignore[arg-type]


def _stand_ins(task: Job) -> Iterator[Any]:
    """An argument for every parameter that Triton specialises on as `job` found."""
    import torch

    constants = dict(task.constants)
    dtypes = {kind: getattr(torch, name.removeprefix("torch.")) for name, kind in _TYPES.items()}
    for i, (name, kind) in enumerate(task.signature):
        odd = i not in task.divisible
        if kind == "constexpr":
            yield constants[name]
        elif kind.startswith("*"):
            # Allocations start on 64 B, so the second element lies on no multiple of 16.
            yield torch.empty(2, dtype=dtypes[kind[1:]])[int(odd) :]
        elif kind == "fp32":
            yield 0.5
        else:
            yield (2**40 if kind == "i64" else 2 * DIVISIBLE) + int(odd)


def _log(task: Job, cc: int) -> str:
    """What ptxas says of `task`, compiled again past the cache: only it tells spills from other local memory."""
    from triton import knobs

    said = io.StringIO()
    with knobs.compilation.scope(), knobs.nvidia.scope(), contextlib.redirect_stdout(said):
        knobs.compilation.always_compile = True
        knobs.nvidia.dump_ptxas_log = True
        _compile(task, cc)
    return said.getvalue()


def compile_all(tasks: Iterable[tuple[Job, int]], processes: int) -> Mapping[tuple[Job, int], Built | str]:
    """Every (job, compute capability), in `processes` processes; a failure is its first line."""
    wanted = list(dict.fromkeys(tasks))
    if processes <= 1 or len(wanted) < 2:
        return {task: _attempt(task) for task in wanted}
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # Spawned, because a fork of a process with LLVM's and torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        return dict(zip(wanted, pool.map(_attempt, wanted), strict=True))


def _attempt(task: tuple[Job, int]) -> Built | str:
    try:
        return compile_job(*task)
    except Exception as error:  # noqa: BLE001 - whatever the compiler raises is this row's result
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
