"""Occupancy, the disassembly's facts and the specialisation of a launch: none needs a GPU."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import sparse_kernels
from sparse_kernels.compile import write
from sparse_kernels.occupancy import MULTIPROCESSORS, occupancy
from sparse_kernels.sass import read, spilled_bytes

USAGE = """
Resource usage:
 Common:
  GLOBAL:0
 Function some_kernel:
  REG:40 STACK:16 SHARED:2048 LOCAL:8 CONSTANT[0]:576 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;     /* 0x00000a0000017a02 */
        /*0010*/              @!P0 LDG.E.128 R4, [R2.64] ;    /* 0x0000000402048981 */
        /*0020*/                   LDG.E.U16 R8, [R2.64] ;    /* 0x0000000402088981 */
        /*0030*/              @!PT LDGSTS.E.BYPASS.128 [R9], [R2.64] ; /* 0x00 */
        /*0040*/               @P1 STL.64 [R1], R6 ;          /* 0x00 */
        /*0050*/                   LDL R6, [R1] ;             /* 0x00 */
        /*0060*/                   HMMA.16816.F32 R4, R8, R12, R4 ; /* 0x00 */
        /*0070*/              @UP0 UBLKCP [UR4], [UR8], UR10 ; /* 0x00 */
        /*0080*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24 ; /* 0x00 */
        /*0090*/                   UTCBAR [UR4], URZ ;        /* 0x00 */
        /*00a0*/                   UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8] ; /* 0x00 */
        /*00b0*/                   LDGDEPBAR ;                /* 0x00 */
"""


@pytest.mark.parametrize(
    ("cc", "warps", "registers", "shared", "blocks", "limit"),
    [
        # 256 threads of 32 registers: 2048 threads, the full multiprocessor.
        (80, 8, 32, 0, 8, "registers"),
        # 128 threads of 255 registers: 256 x 32 x 4 = 32,768 of 65,536.
        (90, 4, 255, 0, 2, "registers"),
        # 4 warps of 168 registers: ceil256(168 x 32) = 5,376, three to each quarter of 16,384.
        (90, 4, 168, 0, 3, "registers"),
        # The example of the CUDA occupancy calculator: 48 KiB a block, and 1 KiB kept, of 164 KiB.
        (80, 4, 32, 48 * 1024, 3, "shared memory"),
        # The most one block may ask for: all of it but 1 KiB.
        (90, 8, 64, 227 * 1024, 1, "shared memory"),
        (86, 4, 16, 0, 12, "warps"),
        (86, 1, 16, 0, 16, "blocks"),
        (120, 4, 64, 99 * 1024 + 1, 0, "does not fit"),
    ],
)
def test_occupancy_by_hand(cc, warps, registers, shared, blocks, limit):
    found = occupancy(cc, warps=warps, registers=registers, shared_bytes=shared)
    assert (found.blocks_per_sm, found.limit) == (blocks, limit)
    assert found.warp_share == pytest.approx(blocks * warps / MULTIPROCESSORS[cc].warps)


def test_more_of_anything_never_fits_more_blocks():
    for cc in MULTIPROCESSORS:
        for warps in (1, 4, 8, 32):
            by_registers = [
                occupancy(cc, warps=warps, registers=r, shared_bytes=0).blocks_per_sm for r in range(16, 256, 8)
            ]
            by_shared = [
                occupancy(cc, warps=warps, registers=32, shared_bytes=s).blocks_per_sm
                for s in range(0, 240_000, 10_000)
            ]
            assert by_registers == sorted(by_registers, reverse=True)
            assert by_shared == sorted(by_shared, reverse=True)


def test_facts_of_a_listing():
    use = read(USAGE + LISTING)
    assert (use.registers, use.local_bytes) == (40, 24)
    assert (use.loads, use.wide_loads, use.async_loads) == (4, 3, 2)
    # One load of 16 B and one of 2 B go to registers.
    assert use.load_bytes == 18
    assert use.tensor_instructions == 3
    assert use.tensor_kinds == "HGMMA+HMMA+UTCHMMA"
    assert use.instructions == 12


def test_an_empty_listing_is_refused():
    with pytest.raises(ValueError, match="no instructions"):
        read(USAGE)
    with pytest.raises(ValueError, match="no resource usage"):
        read(LISTING)


def test_spills_are_what_ptxas_says():
    log = "ptxas info: Function properties for k\n  {} bytes stack frame, {} bytes spill stores, {} bytes spill loads"
    assert spilled_bytes(log.format(32, 0, 0)) == 0
    assert spilled_bytes(log.format(40, 12, 8)) == 20


@pytest.mark.torch
def test_job_of_a_launch():
    torch = pytest.importorskip("torch", reason="torch not installed")
    from sparse_kernels.build import job
    from sparse_kernels.launch import Launch

    def fn(x, y, n, one, scale, BLOCK: tl.constexpr):  # noqa: F821
        """Stands for a kernel."""

    kernel = SimpleNamespace(fn=fn, arg_names=["x", "y", "n", "one", "scale", "BLOCK"])
    base = torch.zeros(64, dtype=torch.bfloat16)
    arguments = {"x": base, "y": base[1:], "n": 48, "one": 1, "scale": 0.5, "BLOCK": 16}
    made = job(Launch(kernel, (1,), arguments, 4, 2))
    assert dict(made.signature) == {
        "x": "*bf16",
        "y": "*bf16",
        "n": "i32",
        "one": "constexpr",
        "scale": "fp32",
        "BLOCK": "constexpr",
    }
    assert dict(made.constants) == {"one": 1, "BLOCK": 16}
    # y starts 2 B into an allocation, so only x and n are multiples of 16.
    assert made.divisible == (0, 2)


AHEAD = """
from sparse_kernels import build, warm
from sparse_kernels.launch import captured
from sparse_kernels.registry import kernel
from simulator.device.catalogue import load
from triton.runtime import driver

member = kernel("gathered_mlp")
case = next(c for c in member.cases_for("test") if c.name == "relu")
plan = warm.plan(member, case, "cpu")
inputs = member.inputs(case, 0, "cpu")
with captured() as launches:
    member.triton(**inputs, **member.buffers(**inputs))
# The last launch only, a small one.
(job, programs), launch = plan.launches[-1], launches[-1]
ahead = build._compile(job, 90)
driver.set_active(build._Absent(90))
later = launch.kernel.warmup(
    **launch.arguments, grid=launch.grid, num_warps=launch.num_warps, num_stages=launch.num_stages
)
same = ahead.hash == later.hash
one = warm.Plan(plan.ops, ((job, programs),))
in_flight = warm.in_flight_bytes(one, {(job, 90): build.compile_job(job, 90)}, load("h100-sxm"))
answer = [same, float(in_flight), float(warm.in_flight_bytes(one, {(job, 90): "failed"}, load("h100-sxm")))]
"""


KERNELS = sorted(p.parent.name for p in Path(sparse_kernels.__path__[0]).glob("*/triton.py"))
STREAMING = {
    "gathered_mlp": "rows_kernel",
    "head_projection": "rows_kernel",
    "teal": "teal_kernel",
    "cats": "cats_kernel",
}
"""Launches that stream weights: rows are read 16 B per thread, past the registers."""
TARGETS = (80, 86, 89, 90, 100, 120)


@pytest.fixture(scope="module")
def compiler(child):
    """An interpreter in which kernels are compiled: in this one they are interpreted."""
    pytest.importorskip("triton", reason="triton not installed")
    started = child(TRITON_INTERPRET=None)
    started.ask("from sparse_kernels import build, warm; from sparse_kernels.registry import kernels; kernels()")
    return started


@pytest.mark.torch
@pytest.mark.xdist_group("compiler")
def test_what_is_compiled_ahead_is_what_a_launch_looks_for(compiler):
    same, in_flight, unknown = compiler.ask(AHEAD)
    assert same
    assert 0.0 < in_flight < 132 * 228 * 1024 * 2
    assert unknown == float("inf")


@pytest.mark.torch
@pytest.mark.xdist_group("compiler")
@pytest.mark.parametrize(("name", "cc"), list(zip(KERNELS, itertools.cycle(TARGETS), strict=False)))
def test_every_kernel_compiles_on_one_target(compiler, tmp_path, name, cc):
    """The whole table is the verb's; here the first hot case of each, all generations in turn."""
    code = "from sparse_kernels.compile import sampled, table\nfrom sparse_kernels.registry import kernel\n"
    rows = compiler.ask(code + f"answer = table(sampled([kernel({name!r})], [{cc}]), 1)")
    assert rows
    for row in rows:
        assert row["cc"] == cc
        assert not row["error"]
        assert not row["spilled_bytes"]
        assert row["blocks_per_sm"] > 0
    made = {row["kernel"]: row for row in rows}
    if name in STREAMING:
        assert made[STREAMING[name]]["wide_loads"]
        assert made[STREAMING[name]]["async_loads"]
    if name == "block_sparse_attention":
        assert made["block_sparse_kernel"]["tensor_instructions"]
    write(rows, tmp_path / "compiled.csv")
    assert len((tmp_path / "compiled.csv").read_text().splitlines()) == len(rows) + 1


def compile_verb(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "sparse_kernels.compile", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


@pytest.mark.torch
def test_bad_compute_capability_is_one_line():
    done = compile_verb("--cc", "85")
    assert done.returncode == 2
    assert "--cc" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
