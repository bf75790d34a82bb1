"""CPU kernels against their naive twins, and the ops they claim against their arrays."""

import numpy as np
import pytest

from simulator.base.errors import UnknownNameError
from simulator.ops.traffic import Operand
from sparse_kernels.bench_cpu import SEED, copies, wrong
from sparse_kernels.cpu import attention
from sparse_kernels.cpu.registry import kernel, kernels

CASES = [(k, c) for k in kernels().values() for c in k.cases_for("test")]


@pytest.mark.parametrize(("member", "case"), CASES, ids=[f"{k.name}-{c.name}" for k, c in CASES])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_kernel_is_its_naive_twin(member, case, seed):
    assert wrong(member, member.inputs(case, seed)) == ""


@pytest.mark.parametrize("name", kernels())
def test_at_keep_one_a_kernel_is_the_dense_one(name):
    member = kernel(name)
    full = [c for c in member.cases_for("test") if c.keep == 1.0]
    for case in full:
        inputs = member.inputs(case, SEED)
        # float32 sums in another order; int8's dense twin rounds each weight once more.
        np.testing.assert_allclose(member.run(**inputs), member.dense(**inputs), rtol=1e-3, atol=1e-4)
    assert full


@pytest.mark.parametrize("name", kernels())
def test_a_broken_kernel_is_found(name):
    member = kernel(name)
    case = next(member.cases_for("test"))
    inputs = member.inputs(case, SEED)

    class Broken:
        naive, tolerance = staticmethod(member.naive), member.tolerance

        @staticmethod
        def run(**values):
            out = np.array(member.run(**values))
            out.flat[out.size // 2] += 0.01 + 0.01 * np.abs(out).max()
            return out

    assert "off by" in wrong(Broken, inputs)


def test_nan_is_wrong():
    member = kernel("gathered_gemv")
    inputs = member.inputs(next(member.cases_for("test")), SEED)

    class Silent:
        naive, tolerance = staticmethod(member.naive), member.tolerance
        run = staticmethod(lambda **values: member.run(**values) * np.nan)

    assert wrong(Silent, inputs)


def test_ops_name_the_bytes_of_the_gathered_rows():
    member = kernel("gathered_mlp")
    case = next(c for c in member.cases_for("test") if c.name == "odd")
    inputs = member.inputs(case, SEED)
    gather = member.ops(case, inputs)[0]
    moved = gather.traffic().scaled(gather.count).access[Operand.WEIGHT]
    picked = inputs["up"][inputs["index"]]
    assert moved.read_bytes == 2 * picked.nbytes
    assert gather.run_bytes == picked[0].nbytes


def test_csr_ops_count_what_scipy_stores():
    member = kernel("csr_matvec")
    case = next(c for c in member.cases_for("test") if c.name == "odd")
    inputs = member.inputs(case, SEED)
    csr = inputs["csr"]
    (op,) = member.ops(case, inputs)
    stored = csr.data.nbytes + csr.indices.nbytes + csr.indptr.nbytes
    assert op.weight_read_bytes == pytest.approx(stored, rel=1e-12)
    assert op.expand.nonzeros == csr.nnz
    assert op.flop == pytest.approx(2 * csr.nnz, rel=1e-12)


def test_attention_reads_the_chosen_pages_only():
    member = kernel("kv_pages")
    case = next(c for c in member.cases_for("test") if c.name == "odd")
    inputs = member.inputs(case, SEED)
    before = attention.gathered(**inputs)
    lanes, _, d = inputs["k"].shape
    pages = inputs["k"].reshape(lanes, -1, inputs["page"] * d)
    for lane in range(lanes):
        others = np.setdiff1d(np.arange(pages.shape[1]), inputs["index"][lane])
        pages[lane, others] = np.nan
    np.testing.assert_array_equal(attention.gathered(**inputs), before)


def test_more_keep_is_never_predicted_to_read_less():
    for member in kernels().values():
        by_shape = {}
        for case in member.cases_for("full"):
            read = sum(
                float(op.count * a.read_bytes) for op in member.ops(case, {}) for a in op.traffic().access.values()
            )
            by_shape.setdefault(tuple(sorted(case.sizes.items())), []).append((case.keep, read))
        for found in by_shape.values():
            assert [r for _, r in sorted(found)] == sorted(r for _, r in found), member.name


def test_copies_copies_half_of_the_bytes():
    copies(1 << 12, 3.0)()
    with pytest.raises(UnknownNameError, match="did you mean 'csr_matvec'"):
        kernel("csr_matvek")
