"""Plug-ins of other packages are loaded one by one: what fails is named, what works is used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

GOOD = """
from typing import ClassVar
from simulator.policies import POLICIES, Aspect, Policy

@POLICIES.register("good")
class Good(Policy):
    name: ClassVar[str] = "good"
    family: ClassVar[str] = "outside"
    summary: ClassVar[str] = "does nothing"
    aspects: ClassVar = frozenset({Aspect.KV_TOKENS})
    citation: ClassVar[str] = "nobody 2026"
"""
TWICE = (
    "from simulator.policies import POLICIES\nPOLICIES.register('kept')(object)\nPOLICIES.register('Dense')(object)\n"
)
FAILING = {
    "absent": (None, "no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "raises": (
        "raise RuntimeError('line one\\nline two \\x1b[2J')",
        "bad",
        "RuntimeError: line one line two \\u001b[2J",
    ),
    "leaves": ("import sys; sys.exit(7)", "bad", "SystemExit: 7"),
    "twice": (TWICE, "bad", "ValueError: policy 'Dense' is registered twice"),
    "attribute": ("", "bad:nothing", "AttributeError: module 'bad' has no attribute 'nothing'"),
    "number": ("answer = 42", "bad:answer", "bad:answer is neither a module nor a registered policy"),
    "no name": ("", "not a module!", "AttributeError: 'NoneType' object has no attribute 'group'"),
}


def installed(folder: Path, package: str, group: str, points: str, **modules: str | None) -> None:
    """A distribution as pip would lay it down."""
    for name, source in modules.items():
        if source is not None:
            (folder / f"{name}.py").write_text(source, encoding="utf-8")
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[shadowline.{group}]\n{points}\n")


def verb(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    env = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, "-m", "simulator", *arguments], env=env, capture_output=True, text=True)


@pytest.mark.parametrize("how", FAILING)
def test_one_that_fails_is_one_line_and_the_rest_works(tmp_path: Path, how: str):
    source, value, why = FAILING[how]
    installed(tmp_path, "bad-policy", "policies", f"bad = {value}", bad=source)
    installed(tmp_path, "good-policy", "policies", "good = good_policy", good_policy=GOOD)
    done = verb(tmp_path, "policies")
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"warning: bad-policy does not load: {why}; mend it or uninstall bad-policy\n"
    names = {line.split()[0] for line in done.stdout.splitlines() if line}
    assert {"good", "dense", "quest"} <= names
    assert "kept" not in names


def test_verbs_go_on_without_one_and_doctor_says_what_to_do(tmp_path: Path):
    installed(tmp_path, "bad-policy", "policies", "bad = no_such_module")
    line = "bad-policy does not load: ModuleNotFoundError: No module named 'no_such_module'"
    done = verb(tmp_path, "predict", "--model", "opt-125m", "--device", "l40s", "--policy", "w4a16")
    assert (done.returncode, done.stderr) == (0, f"warning: {line}; mend it or uninstall bad-policy\n")
    told = verb(tmp_path, "doctor")
    assert (told.returncode, told.stderr) == (2, f"problem: bad: {line}; mend it or uninstall bad-policy\n")
    assert "usable" not in told.stdout


def test_an_architecture_that_fails_is_named_and_models_are_found(tmp_path: Path):
    installed(tmp_path, "bad-model", "architectures", "bad = bad", bad="raise KeyError('x')")
    done = verb(tmp_path, "models", "opt-125m")
    assert (done.returncode, done.stderr) == (
        0,
        "warning: bad-model does not load: KeyError: 'x'; mend it or uninstall bad-model\n",
    )


def test_a_module_of_our_own_that_fails_is_not_passed_over(monkeypatch: pytest.MonkeyPatch):
    from importlib import metadata

    from simulator.base.registry import Registry

    point = metadata.EntryPoint("x", "no_such_module", "g")
    vars(point)["dist"] = metadata.distribution("shadowline")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point])
    with pytest.raises(ModuleNotFoundError):
        len(Registry("policy", "g"))
