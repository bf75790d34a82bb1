"""Axes of a sweep: inline ranges, grid files, and what is wrong with them in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.base.errors import InputError
from simulator.results.swept import CHUNK_POINTS, chunks
from simulator.scenario.grid import Grid, names, policies, read_grids, whole_numbers

RANGES = {
    "1": (1,),
    "1,4,16": (1, 4, 16),
    " 8 , 8 , 2": (8, 2),
    "512:131072:x4": (512, 2048, 8192, 32768, 131072),
    "1:100:x3": (1, 3, 9, 27, 81),
    "1:3:x1.5": (1, 2),
    "64:256:+64": (64, 128, 192, 256),
    "64:250:+64": (64, 128, 192),
    "1:9:5": (1, 3, 5, 7, 9),
    "7:7:x2": (7,),
    "1:2:9": (1, 2),
    "1e3": (1000,),
    "1,2:8:x2,100": (1, 2, 4, 8, 100),
}


@pytest.mark.parametrize(("text", "values"), RANGES.items())
def test_inline_ranges(text: str, values: tuple[int, ...]) -> None:
    assert whole_numbers(text, "--batch") == values


BAD = {
    "": "not a whole number",
    "0": "must be 1 or more",
    "-4": "must be 1 or more",
    "nan": "not a whole number",
    "inf": "not a whole number",
    "1e999": "not a whole number",
    "1.5": "not a whole number",
    "1,,2": "not a whole number",
    "1:2": "first:last:x2",
    "1:2:3:4": "first:last:x2",
    "8:1:x2": "runs backwards",
    "1:8:x1": "factor must be above 1",
    "1:8:xnan": "cannot read",
    "1:8:x": "cannot read",
    "1:8:+0": "must be 1 or more",
    "1:100000000:+1": "too many values",
    "1:100000000:100000000": "too many values",
    "1:100000000:x1.000000001": "too many values",
    "a,b": "not a whole number",
}


@pytest.mark.parametrize(("text", "words"), BAD.items())
def test_bad_ranges_name_their_flag(text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        whole_numbers(text, "--batch")
    assert str(caught.value).startswith("--batch: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_grid_is_the_product_of_its_axes() -> None:
    grid = Grid(
        model=("llama-2-7b",),
        device=("h100-sxm", "rtx-4090"),
        policy=("dense", "w4a16"),
        tp=(1, 2),
        batch=(1, 2, 3),
        prompt_tokens=(8, 16),
        output_tokens=(4,),
    )
    assert len(grid) == 2 * 2 * 2 * 6
    groups = list(grid.groups())
    assert len(groups) == 8
    assert [g.policy for g in groups[:2]] == ["dense", "w4a16"]


@pytest.mark.parametrize(("axis", "value"), [("batch", 1_000_001), ("prompt_tokens", 10**9), ("output_tokens", 10**30)])
def test_a_bound_holds_for_every_value_not_just_the_first(axis: str, value: int) -> None:
    with pytest.raises(InputError, match="above"):
        Grid(model=("m",), device=("d",), **{axis: (1, value)})  # type: ignore[arg-type]


NO_AXES = {
    "no value": ({"batch": ()}, r"^--batch: has no value"),
    "no device": ({"device": ()}, r"^--device: has no value"),
    "a later zero": ({"batch": (1, 0)}, r"^--batch: 0 must be 1 or more$"),
    "a later fraction": ({"output_tokens": (1, 1.5)}, r"^--output-tokens: 1.5 is not a whole number$"),
    "text": ({"prompt_tokens": ("512",)}, r"^--prompt-tokens: '512' is not a whole number$"),
}


@pytest.mark.parametrize("name", NO_AXES)
def test_axes_from_python_are_checked_value_by_value(name: str) -> None:
    axes, words = NO_AXES[name]
    with pytest.raises(InputError, match=words):
        Grid(**{"model": ("opt-125m",), "device": ("l40s",), **axes})


def test_a_value_alone_is_an_axis_of_one() -> None:
    assert Grid(model="opt-125m", device="l40s", batch=8) == Grid(
        model=("opt-125m",), device=["l40s"], batch=range(8, 9)
    )


def test_too_many_points_are_refused_before_any_is_computed() -> None:
    many = tuple(range(1, 100_001))
    with pytest.raises(InputError, match="points; at most"):
        Grid(model=("m",), device=("d",), batch=many, prompt_tokens=many)


def test_chunks_cover_every_point_once() -> None:
    grid = Grid(
        model=("llama-2-7b",),
        device=("h100-sxm",),
        batch=tuple(range(1, 301)),
        prompt_tokens=tuple(range(1, 401)),
        output_tokens=(1, 2, 3),
    )
    seen = [(b, p, o) for c in chunks([grid]) for b in c.batch for p in c.prompt for o in c.output]
    assert len(seen) == len(set(seen)) == len(grid)
    assert seen == [(b, p, o) for b in grid.batch for p in grid.prompt_tokens for o in grid.output_tokens]
    assert all(c.points <= CHUNK_POINTS for c in chunks([grid]))
    assert [c.number for c in chunks([grid])] == list(range(len(list(chunks([grid])))))


def test_names_and_policies_drop_duplicates_and_keep_order() -> None:
    assert names(["b,a", "b"], "--device") == ("b", "a")
    assert policies(["w4a16+mustafar(keep=[0.3,0.5])", "mustafar(keep=.3)+w4a16"]) == (
        "w4a16+mustafar(keep=0.3)",
        "w4a16+mustafar(keep=0.5)",
    )
    with pytest.raises(InputError, match="empty name"):
        names(["a,,b"], "--device")


GOOD = """
[[grid]]
model = "llama-2-7b"
device = ["h100-sxm", "rtx-4090"]
policy = ["dense", "mustafar(keep=[0.3,0.5])"]
batch = [1, "4:16:x2"]
prompt-tokens = 128
ignore_context_limit = true
"""


def test_a_grid_file(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(GOOD)
    (grid,) = read_grids(path)
    assert grid.model == ("llama-2-7b",)
    assert grid.batch == (1, 4, 8, 16)
    assert grid.prompt_tokens == (128,)
    assert grid.policy == ("dense", "mustafar(keep=0.3)", "mustafar(keep=0.5)")
    assert grid.ignore_context_limit


BAD_FILES = {
    "[[grid]]\nmodel = [\n": ":2: ",
    "[[grid]]\nmodel = \n": ":2: ",
    "model = 'x'\n": "needs one or more [[grid]]",
    "": "needs one or more [[grid]]",
    "[[grid]]\nmodel = 'x'\n": "needs 'device'",
    "[[grid]]\nmodel='x'\ndevice='y'\nbatc=[1]\n": "did you mean 'batch'",
    "[[grid]]\nmodel='x'\ndevice='y'\nbatch=[1.5]\n": "batch: '1.5' is not a whole number",
    "[[grid]]\nmodel='x'\ndevice='y'\nbatch=[0]\n": "must be 1 or more",
    "[[grid]]\nmodel='x'\ndevice='y'\npolicy=['mustafa']\n": "did you mean 'mustafar'",
    "[[grid]]\nmodel=[]\ndevice='y'\n": "empty name",
}


@pytest.mark.parametrize(("text", "words"), BAD_FILES.items())
def test_a_bad_grid_file_is_named_with_its_fault(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_grids(path)
    assert str(caught.value).startswith(str(path))
    assert words in str(caught.value)


def test_unreadable_grid_files(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    for path, words in (
        (tmp_path / "no.toml", "cannot read"),
        (tmp_path / "b.toml", "UTF-8"),
        (tmp_path, "cannot read"),
    ):
        with pytest.raises(InputError, match=words):
            read_grids(path)


def test_the_demo_grid_is_valid_and_large_enough(repo: Path) -> None:
    grids = read_grids(repo / "hw_profiles" / "demo.toml")
    assert sum(len(g) for g in grids) >= 2000
