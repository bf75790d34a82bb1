"""What a benchmark asks of its kernels before one runs: their ops, and their launches compiled by all cores at once.

On a GPU a kernel is compiled at its first launch, a second or so each and one after another; the hundreds of shapes of
a correctness gate would take longer than the measurement. Compiled ahead, launches find them in Triton's cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from simulator.base import console
from simulator.roofline.bandwidth import bytes_in_flight
from sparse_kernels import interpreter, machine

if TYPE_CHECKING:
    from simulator.device.catalogue import Device
    from simulator.ops.ops import Op
    from sparse_kernels.build import Built, Job
    from sparse_kernels.registry import Case, Kernel

SEED = 0
MOST_PROCESSES = 16
"""Each imports torch [-]."""


@dataclass(frozen=True)
class Plan:
    """One case: the simulator's ops, and the (job, programs) of its launches; `reason` where it cannot be drawn."""

    ops: tuple[Op, ...] = ()
    launches: tuple[tuple[Job, int], ...] = ()
    reason: str = ""


def plan(member: Kernel, case: Case, where: str) -> Plan:
    """Draw the inputs of `case` on device `where`, ask for its ops, and note its launches without running them."""
    import torch

    from sparse_kernels.build import job
    from sparse_kernels.launch import captured

    try:
        inputs = member.inputs(case, SEED, where)
        with captured() as noted:
            # A library's kernel cannot be captured: its call would run.
            if any(member.cases_for("compile", "hot")):
                member.triton(**inputs, **member.buffers(**inputs))
        return Plan(member.ops(case, inputs), tuple((job(one), math.prod(one.grid)) for one in noted))
    except Exception as error:  # noqa: BLE001  one kernel must not end a session on a lent GPU
        return Plan(reason=first_line(error))
    finally:
        torch.cuda.empty_cache()


def compile_ahead(plans: Iterable[Plan]) -> Mapping[tuple[Job, int], Built | str]:
    """All launches of `plans` compiled for the GPU at hand, into Triton's cache; nothing in the interpreter."""
    from sparse_kernels import build
    from sparse_kernels.target import compute_capability

    if interpreter.is_on():
        return {}
    cc = compute_capability()
    tasks = list(dict.fromkeys((job, cc) for one in plans for job, _ in one.launches))
    console.say(f"compiling {len(tasks)} kernels")
    return build.compile_all(tasks, min(machine.cores(), MOST_PROCESSES))


def in_flight_bytes(one: Plan, compiled: Mapping[tuple[Job, int], Built | str], device: Device) -> float:
    """Most bytes that any launch of `one` can have on their way [B]; infinite where one was not compiled."""
    found = []
    for job, programs in one.launches:
        built = next((b for (j, _), b in compiled.items() if j == job), "")
        if isinstance(built, str):
            return np.inf
        per_sm = built.fit.blocks_per_sm
        found.append(float(bytes_in_flight(programs, device.sm_count, per_sm, built.in_flight_bytes)))
    return max(found, default=np.inf)


def first_line(error: BaseException) -> str:
    """An error in one line of at most 200 characters."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:180] if text else 'no message'}"
