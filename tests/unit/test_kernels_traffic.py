"""The recorder sees every byte, and the simulator predicted each of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="torch not installed")
triton = pytest.importorskip("triton", reason="triton not installed")

import triton.language as tl  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from simulator.base.errors import InputError, UnknownNameError  # noqa: E402
from simulator.ops.ops import Elementwise  # noqa: E402
from simulator.ops.traffic import Operand  # noqa: E402
from sparse_kernels import list as catalogue  # noqa: E402
from sparse_kernels import registry, traffic  # noqa: E402
from sparse_kernels.compare import MOST_EXPLAINED, check, explained_kernels, predicted  # noqa: E402
from sparse_kernels.launch import launch  # noqa: E402
from sparse_kernels.recorder import UnseenMemoryError, recorded  # noqa: E402
from sparse_kernels.registry import kernels  # noqa: E402

pytestmark = pytest.mark.torch

CASES = [(k, c) for k in kernels().values() for c in k.cases_for("traffic")]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize(("kernel", "case"), CASES, ids=[f"{k.name}-{c.name}" for k, c in CASES])
def test_recorded_bytes_and_sectors_are_the_predicted_ones(kernel, case):
    for row in check(kernel, case).rows:
        assert row.agrees, row.sentence
        assert row.requested_bytes >= row.recorded_bytes
        assert row.lines <= row.sectors <= 4 * row.lines
        assert row.explained or row.predicted_bytes == pytest.approx(row.recorded_bytes, rel=1e-12)


# nm24 is a library's: no kernel of ours, no addresses to record.
OURS = [k for k in kernels().values() if k.name != "nm24"]


@pytest.mark.parametrize("kernel", OURS, ids=lambda k: k.name)
def test_every_kernel_has_a_case_with_all_sectors_equal(kernel):
    cases = kernel.cases_for("traffic")
    assert any(all(r.sectors == r.predicted_sectors for r in check(kernel, c).rows) for c in cases)


def test_few_kernels_need_an_explanation_and_each_is_needed():
    assert len(explained_kernels()) <= MOST_EXPLAINED
    for kernel in explained_kernels():
        case = next(iter(kernel.cases_for("traffic")))
        bare = check(replace(kernel, explained=()), case)
        wrong = {(r.operand, r.direction) for r in bare.rows if not r.agrees}
        assert wrong == {(str(e.operand), e.direction) for e in kernel.explained}
        for e in kernel.explained:
            assert e.extra_bytes(case, kernel.inputs(case, 0, "cpu")) != 0.0


def doubled(kernel, operand):
    """The kernel with one operand's bytes predicted twice."""

    def ops(case, inputs):
        true = kernel.ops(case, inputs)
        useful, _ = predicted(true, operand, "read")
        return (*true, Elementwise(role="wrong", kind="copy", read_bytes=useful, operand=operand))

    return replace(kernel, ops=ops)


def test_a_wrong_formula_fails_the_verb(monkeypatch):
    wrong = doubled(registry.kernel("flash_decode"), Operand.KV)
    monkeypatch.setattr(registry, "kernels", lambda: {"flash_decode": wrong})
    result = CliRunner().invoke(traffic.app, ["--op", "flash_decode", "--json"])
    assert result.exit_code == 1
    rows = json.loads(result.stdout)["rows"]
    assert {(r["operand"], r["direction"]) for r in rows if not r["agrees"]} == {("kv", "read")}
    assert "flash_decode, mha: kv read predicted 1,052,672.00 B" in result.stderr


def test_one_byte_too_many_fails():
    kernel = registry.kernel("flash_decode")
    case = next(iter(kernel.cases_for("traffic")))
    one = Elementwise(role="wrong", kind="copy", read_bytes=1.0, operand=Operand.ACTIVATION)
    rows = check(replace(kernel, ops=lambda *a: (*kernel.ops(*a), one)), case).rows
    assert [r.operand for r in rows if not r.agrees] == ["activation"]


@triton.jit
def strided_kernel(x, out, n, STEP: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    for _ in range(2):
        value = tl.load(x + i * STEP, mask=i < n, other=0.0)
    tl.store(out + i, value, mask=i < n)


def test_sectors_lines_and_repeats_of_a_strided_read():
    x, out = torch.arange(128.0), torch.zeros(8)
    with recorded({"x": x, "out": out}) as got:
        launch(strided_kernel, (1,), x=x, out=out, n=8, STEP=16, BLOCK=16)
    read = got.reads["x"]
    # Eight floats 64 B apart, read twice: 32 B useful, a sector each, two to a line.
    assert (read.compulsory_bytes, read.requested_bytes) == (32, 64)
    assert (read.units(32), read.units(128)) == (8, 4)
    assert (got.writes["out"].compulsory_bytes, got.writes["out"].units(32)) == (32, 1)
    assert [entry.name for entry in got.launches] == ["strided_kernel"]
    assert torch.equal(out, x[::16])


@pytest.mark.parametrize("missing", ["x", "out"])
def test_an_address_outside_every_tensor_fails(missing):
    x, out = torch.arange(128.0), torch.zeros(8)
    known = {"x": x[:64] if missing == "x" else x, "out": out[:4] if missing == "out" else out}
    with pytest.raises(Exception, match="lie outside every tensor") as caught, recorded(known):
        launch(strided_kernel, (1,), x=x, out=out, n=8, STEP=16, BLOCK=16)
    assert isinstance(caught.value.__cause__, UnseenMemoryError)


@triton.jit
def plain_load_kernel(x, out):
    tl.store(out + tl.arange(0, 4), tl.load(x + tl.arange(0, 4)), mask=tl.arange(0, 4) < 4)


@triton.jit
def plain_store_kernel(x, out):
    tl.store(out + tl.arange(0, 4), tl.load(x + tl.arange(0, 4), mask=tl.arange(0, 4) < 4))


@triton.jit
def atomic_kernel(x, out):
    i = tl.arange(0, 4)
    tl.atomic_add(out + i, tl.load(x + i, mask=i < 4), mask=i < 4)


@triton.jit
def swap_kernel(x, out):
    tl.atomic_cas(out, 0, 1)


@triton.jit
def block_kernel(x, out):
    block = tl.make_block_ptr(x, (4,), (1,), (0,), (4,), (0,))
    tl.store(out + tl.arange(0, 4), tl.load(block, boundary_check=(0,)), mask=tl.arange(0, 4) < 4)


@triton.jit
def descriptor_kernel(x, out):
    rows = tl.make_tensor_descriptor(x, (4, 4), (4, 1), (4, 4))
    tl.store(out + tl.arange(0, 4), tl.sum(rows.load([0, 0]), 0), mask=tl.arange(0, 4) < 4)


@pytest.mark.parametrize(
    ("kernel", "operation"),
    [
        (plain_load_kernel, "load"),
        (plain_store_kernel, "store"),
        (atomic_kernel, "atomic_rmw"),
        (swap_kernel, "atomic_cas"),
        (block_kernel, "tensor_pointer_load"),
        (descriptor_kernel, "make_tensor_descriptor"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
# The deprecation of block pointers is why the recorder must not meet one.
@pytest.mark.filterwarnings("ignore:tl.make_block_ptr is deprecated")
def test_memory_past_the_recorder_fails(kernel, operation):
    x = torch.zeros(64, dtype=torch.int32)
    out = torch.zeros(16, dtype=torch.int32)
    with (
        pytest.raises(Exception, match=f"{operation}: use masked loads and stores only") as caught,
        recorded({"x": x, "out": out}),
    ):
        launch(kernel, (1,), x=x, out=out)
    assert isinstance(caught.value.__cause__, UnseenMemoryError)


def test_after_recording_the_interpreter_is_as_before():
    x = torch.zeros(16, dtype=torch.int32)
    with recorded({"x": x}):
        pass
    launch(plain_load_kernel, (1,), x=x + 3, out=x)
    assert x[:4].tolist() == [3, 3, 3, 3]


def verb(*arguments):
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "sparse_kernels.traffic", *arguments],
        capture_output=True,
        text=True,
        env={**clean, "OMP_NUM_THREADS": "1"},
        check=False,
    )


def test_the_verb_starts_the_interpreter_itself():
    got = verb("--op", "rmsnorm-residual", "--json")
    assert got.returncode == 0, got.stderr
    rows = json.loads(got.stdout)["rows"]
    assert {
        "op",
        "case",
        "operand",
        "predicted_bytes",
        "recorded_bytes",
        "requested_bytes",
        "sectors",
        "lines",
        "explained",
    } <= set(rows[0])
    assert all(r["agrees"] for r in rows)


def test_an_unknown_kernel_gets_a_suggestion():
    result = CliRunner().invoke(traffic.app, ["--op", "flash_decod"])
    assert isinstance(result.exception, UnknownNameError)
    assert str(result.exception) == ("--op: unknown kernel 'flash_decod'; did you mean 'flash_decode'?")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--op", "nm24"], "--op: nm24 is a library's kernel"),
        (["--op", "teal", "--markdown", "docs/kernels.md"], "--markdown: the table holds all"),
    ],
)
def test_a_question_without_an_answer_is_refused(words, message):
    error = CliRunner().invoke(traffic.app, words).exception
    assert isinstance(error, InputError)
    assert message in str(error)


def test_the_list_names_every_kernel_and_its_tolerance():
    result = CliRunner().invoke(catalogue.app, ["--json"])
    rows = json.loads(result.stdout)["rows"]
    assert {r["op"] for r in rows} == set(kernels())
    assert rows[0]["family"] == "dense"
    for row in rows:
        assert row["tolerance"]["reason"]
        assert row["dense"] is None or row["dense"] in kernels()
        assert len({c["name"] for c in row["cases"]}) == len(row["cases"])
