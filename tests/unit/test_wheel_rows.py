"""Rows of the measured wheel under both of its names, which differ in the folders of their tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from simulator.base.errors import InputError
from simulator.fitting import aiconfigurator

LAYOUTS = {
    "aisimulate": "aisimulate_core/systems/data/{system}/gemm/vllm/0.20.0/gemm_perf.parquet",
    "aiconfigurator-core": "aiconfigurator_core/systems/data/{system}/vllm/0.20.0/gemm_perf.parquet",
}


def installed(site: Path, package: str, table: pd.DataFrame) -> None:
    """A distribution of that name with one table on an H100 and on a system nobody knows."""
    files = []
    for system in ("h100_sxm", "abacus"):
        path = site / LAYOUTS[package].format(system=system)
        path.parent.mkdir(parents=True)
        table.to_parquet(path)
        files.append(path.relative_to(site))
    info = site / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "RECORD").write_text("".join(f"{f},,\n" for f in files))


@pytest.mark.parametrize("package", aiconfigurator.PACKAGES)
def test_a_table_is_read_where_the_wheel_of_that_name_has_it(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = aiconfigurator.MOST_ROWS + 50
    table = pd.DataFrame(
        {
            "gemm_dtype": ["bfloat16"] * n + ["other"],
            "m": [*range(1, n + 1), 1],
            "n": 4096,
            "k": 4096,
            "latency": 0.5,
            "kernel_source": "cublas",
        }
    )
    installed(tmp_path, package, table)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = aiconfigurator.rows(package, "gemm")
    assert len(found) == aiconfigurator.MOST_ROWS
    first = found.iloc[0]
    assert (first["device"], first["dtype"], first["kernel"]) == ("h100-sxm", "bf16", "vllm-0.20.0:cublas")
    assert first["time_s"] == 0.5e-3
    assert set(found["source"]) == {package}
    assert found.equals(aiconfigurator.rows(package, "gemm", "h100-sxm"))
    with pytest.raises(InputError, match="no gemm rows for l40s"):
        aiconfigurator.rows(package, "gemm", "l40s")
    with pytest.raises(InputError, match="it has gemm, attention"):
        aiconfigurator.rows(package, "alltoall")


def test_what_is_not_installed_says_how_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(InputError, match="pip install --pre --no-deps aisimulate"):
        aiconfigurator.rows("aisimulate", "gemm")
