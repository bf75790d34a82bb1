"""Rows of the measured wheel under both of its names, which differ in the folders of their tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from simulator.base.errors import InputError
from simulator.fitting import aiconfigurator, moe
from simulator.fitting.judged import prepared

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
    site = tmp_path / "data" / "site-packages"
    installed(site, package, table)
    monkeypatch.syspath_prepend(str(site))
    found = aiconfigurator.rows(package, "gemm")
    assert len(found) == aiconfigurator.MOST_ROWS + 1
    first = found.iloc[0]
    assert (first["device"], first["dtype"], first["kernel"]) == ("h100-sxm", "bf16", "vllm-0.20.0:cublas")
    assert first["time_s"] == 0.5e-3
    assert set(found["source"]) == {aiconfigurator.PACKAGES[package]}
    left_out: dict[str, int] = {}
    prepared("gemm", found, left_out)
    assert left_out == {"unknown format other": 1}
    assert found.equals(aiconfigurator.rows(package, "gemm", "h100-sxm"))
    with pytest.raises(InputError, match="no gemm rows for l40s"):
        aiconfigurator.rows(package, "gemm", "l40s")
    with pytest.raises(InputError, match="it has gemm, attention"):
        aiconfigurator.rows(package, "alltoall")


def test_builds_of_one_model_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pd.DataFrame(
        {"gemm_dtype": ["bfloat16"], "m": 900, "n": 4096, "k": 4096, "latency": 0.5, "kernel_source": "cublas"}
    )
    installed(tmp_path, "aisimulate", table.assign(m=1))
    profile = "aisimulate_core/systems/profiles/one/full/data/h100_sxm/gemm/sglang/dev-c4ca65/gemm_perf.parquet"
    (tmp_path / profile).parent.mkdir(parents=True)
    table.to_parquet(tmp_path / profile)
    with (tmp_path / "aisimulate-1.0.dist-info" / "RECORD").open("a") as record:
        record.write(f"{profile},,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert aiconfigurator.rows("aisimulate", "gemm")["m"].tolist() == [1]


def test_small_batches_draw_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pd.DataFrame(
        {
            "moe_dtype": "w4a8_mxfp4_mxfp8",
            "num_tokens": range(1, 25),
            "hidden_size": 2880,
            "inter_size": 2880,
            "topk": 4,
            "num_experts": 128,
            "moe_tp_size": 1,
            "moe_ep_size": 1,
            "distribution": "balanced",
            "latency": 0.5,
            "kernel_source": "triton",
        }
    )
    layout = LAYOUTS["aisimulate"]
    monkeypatch.setitem(LAYOUTS, "aisimulate", layout.replace("gemm", "moe"))
    installed(tmp_path, "aisimulate", table)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(aiconfigurator, "MOST_ROWS", 7)
    whole = aiconfigurator.rows("aisimulate", "moe")
    seen: list[int] = []
    read = aiconfigurator._READ["moe"]
    monkeypatch.setitem(aiconfigurator._READ, "moe", lambda part, name: seen.append(len(part)) or read(part, name))
    monkeypatch.setattr(aiconfigurator, "BATCH_ROWS", 5)
    parts = aiconfigurator.rows("aisimulate", "moe")
    assert seen == [5, 5, 5, 5, 4]
    assert len(whole) == 7
    assert sorted(whole["num_tokens"]) == sorted(parts["num_tokens"])
    assert set(whole["dtype"]) <= set(moe.FORMAT_NAMES)


def test_what_is_not_installed_says_how_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(InputError, match="pip install --pre --no-deps aisimulate"):
        aiconfigurator.rows("aisimulate", "gemm")
