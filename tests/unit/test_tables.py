"""Tables read as one, and where a release becomes part of a kernel's key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.fitting import judge
from simulator.fitting.releases import CHANGED, FEWEST, change, release_of, split
from simulator.fitting.tables import paths_of, read_tables


def rows(kernel: str, factor: float = 1.0, shapes: int = 30) -> pd.DataFrame:
    """Products of `shapes` sizes; time 1 us a unit of n, times `factor`."""
    n = 2.0 ** np.arange(5, 5 + shapes / 2, 0.5)
    return pd.DataFrame(
        {"source": "s", "device": "H100-SXM", "dtype": "bf16", "kernel": kernel, "m": 1, "n": n.round(), "k": 64}
    ).assign(time_s=1e-6 * n * factor)


def written(tmp_path: Path, *tables: pd.DataFrame) -> list[Path]:
    """The tables as files, in order."""
    out = [tmp_path / f"{i}.parquet" for i in range(len(tables))]
    for path, table in zip(out, tables, strict=True):
        table.to_parquet(path)
    return out


def test_rows_published_twice_count_once(tmp_path: Path) -> None:
    """Thirty rows, the last ten of them again in a later table with twenty new ones: 50 rows, ten left out."""
    old, again = rows("vllm-0.24.0:a"), rows("vllm-0.24.0:a", shapes=50)[20:]
    found, excluded = read_tables(written(tmp_path, old, again))
    assert (len(found), excluded) == (50, {"published twice": 10})
    assert not found.duplicated(["kernel", "n"]).any()


def test_a_kernel_measured_anew_leaves_its_older_rows_out(tmp_path: Path) -> None:
    """All old rows of `a` go where the same shapes take 20 % less; `b`, whose shapes agree, keeps the others."""
    old = pd.concat([rows("vllm-0.24.0:a"), rows("vllm-0.24.0:b")])
    new = pd.concat([rows("vllm-0.24.0:a", 0.8)[20:], rows("vllm-0.24.0:b")[20:]])
    found, excluded = read_tables(written(tmp_path, old, new))
    assert excluded == {"published twice": 10, "measured anew": 30}
    assert found["kernel"].value_counts().to_dict() == {"vllm-0.24.0:b": 30, "vllm-0.24.0:a": 10}


def test_one_table_is_read_whole(tmp_path: Path) -> None:
    found, excluded = read_tables(written(tmp_path, rows("x").assign(source="aisimulate")))
    assert (len(found), excluded) == (30, {})
    # Renamed since the older tables of GEMMs were made; those of other families carry the later name throughout.
    assert set(judge.usable(found, "gemm", ())["source"]) == {"aiconfigurator"}
    assert set(judge.usable(found, "module", ())["source"]) == {"aisimulate"}


def test_the_larger_table_is_read_where_it_is(tmp_path: Path) -> None:
    assert paths_of("gemm", tmp_path) == []
    for name in ("gemm.parquet", "gemm_more.parquet"):
        (tmp_path / name).touch()
    assert [p.name for p in paths_of("gemm", tmp_path)] == ["gemm.parquet", "gemm_more.parquet"]


@pytest.mark.parametrize(
    ("kernel", "release"),
    [("vllm-0.24.0:torch", "0.24.0"), ("trtllm-1.3.0rc20:a:b", "1.3.0rc20"), ("aiter:ck", ""), ("torch linear", "")],
)
def test_release_of(kernel: str, release: str) -> None:
    assert release_of(kernel) == release


def prepared(release: str, factor: float, shapes: int = 30) -> pd.DataFrame:
    """Rows as `prepare` leaves them."""
    return rows("", factor, shapes).assign(device="h100-sxm", library="vllm", release=release)


def test_a_release_becomes_part_of_the_key_where_speed_changed() -> None:
    """Three releases; the second is 5 % slower (two runs of one kernel), the third a quarter faster than both."""
    table = pd.concat([prepared("0.9.0", 1.0), prepared("0.10.0", 1.05), prepared("0.11.0", 0.75)])
    found = split(table, ("m", "n", "k"), ("dtype",))
    assert found.groupby("release")["library"].unique().map(list).to_dict() == {
        "0.9.0": ["vllm"],
        "0.10.0": ["vllm"],
        "0.11.0": ["vllm@0.11.0"],
    }


def test_too_few_common_shapes_say_nothing_of_a_change() -> None:
    table = pd.concat([prepared("0.9.0", 1.0), prepared("0.11.0", 0.5, shapes=FEWEST - 1)])
    assert set(split(table, ("m", "n", "k"), ("dtype",))["library"]) == {"vllm"}


def test_change_is_the_mean_distance_in_log() -> None:
    """Half of the shapes 20 % slower, half as fast: 0.5 ln 1.2."""
    newer = prepared("b", 1.0)
    newer.loc[newer.index % 2 == 0, "time_s"] *= 1.2
    moved = change(prepared("a", 1.0), newer, ("m", "n", "k"))
    assert moved == pytest.approx(0.5 * np.log(1.2))
    assert moved > CHANGED
