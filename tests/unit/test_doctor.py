"""`python -m simulator` and `python -m simulator doctor`: what is here, and what to do about what is not."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from simulator import __main__ as front
from simulator import doctor
from simulator.device.catalogue import load, to_toml
from simulator.roofline.engine import load_engines

Call = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHADOWLINE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SHADOWLINE_DATA", raising=False)
    return tmp_path / "home"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "simulator", *arguments], capture_output=True, text=True, check=False)


def states(checks: tuple[doctor.Check, ...], topic: str) -> dict[str, str]:
    return {c.name: c.state for c in checks if c.topic == topic}


def test_without_arguments_all_verbs_are_listed():
    done = run()
    assert done.returncode == 0
    for verb in ("simulator.predict", "simulator.doctor", "traces.collect", "reports.build"):
        assert f"python -m {verb}" in done.stdout
    assert all(verb.summary and not verb.summary.endswith(".") for verb in front.verbs())


def test_a_verb_runs_as_a_word():
    word, dotted = run("models", "opt-6.7b", "--json"), front.verbs(("simulator",))
    assert json.loads(word.stdout)["rows"][0]["model"] == "opt-6.7b"
    assert "simulator.models" in {verb.module for verb in dotted}
    assert run("predict", "--help").stdout.startswith("Usage: python -m simulator.predict")


def test_a_misspelt_verb_is_one_line_with_a_suggestion():
    done = run("predct")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown verb 'predct'; did you mean 'predict'?\n"


def test_a_package_that_is_not_installed_has_no_verbs():
    assert front.verbs(("no_such_package",)) == ()


def test_json_has_a_row_per_check_and_exits_0(home: Path):
    done = run("doctor", "--json")
    answer = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert answer["problems"] == []
    assert {"topic", "name", "state", "found", "advice"} == set(answer["rows"][0])
    topics = {row["topic"] for row in answer["rows"]}
    assert {"environment", "optional parts", "calibrated devices", "GPUs", "folders"} <= topics
    assert not home.exists()


def test_extras_are_those_of_the_project(repo: Path):
    project = tomllib.loads((repo / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(doctor.EXTRAS) == set(project["optional-dependencies"])


def test_an_absent_or_old_package_names_the_extra_that_brings_it(monkeypatch):
    required = ["numpy>=2.0", "no-such-package>=1; extra == 'app'", "rich>=999; extra == 'hub'"]
    monkeypatch.setattr(metadata, "requires", lambda name: required)
    parts = {c.name: c for c in doctor._parts()}
    assert parts["core packages"].state == doctor.OK
    assert parts["app"].state == doctor.ABSENT
    assert parts["app"].found == "no-such-package missing"
    assert "pip install 'shadowline[app]'" in parts["app"].advice
    assert "is older than 999" in parts["hub"].found


def test_a_part_that_needs_another_system_is_not_asked_for(monkeypatch):
    marker = "no-such-package>=1; platform_system == 'Plan9' and extra == 'kernels'"
    monkeypatch.setattr(metadata, "requires", lambda name: [marker])
    assert {c.name: c.state for c in doctor._parts()}["kernels"] == doctor.OK


def test_a_missing_core_package_is_a_problem_and_ends_the_search(monkeypatch, home: Path):
    monkeypatch.setattr(metadata, "requires", lambda name: ["no-such-package>=1"])
    checks = doctor.examine()
    assert [c.found for c in checks if c.state == doctor.PROBLEM] == ["no-such-package missing"]
    assert not states(checks, "calibrated devices")


def test_not_installed_says_what_to_run(monkeypatch, home: Path):
    def absent(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    (problem,) = [c for c in doctor.examine() if c.state == doctor.PROBLEM]
    assert "pip install -e ." in problem.advice


def test_calibrated_devices_are_those_with_fits(home: Path):
    found = states(doctor.examine(), "calibrated devices")
    assert found["h100-sxm"] == doctor.OK
    assert "_default" not in found
    (check,) = [c for c in doctor._calibrated() if c.name == "h100-sxm"]
    assert "gemm" in check.found
    assert "by you" not in check.advice


def test_own_device_and_own_fit_are_named(home: Path, repo: Path):
    (home / "devices").mkdir(parents=True)
    text = to_toml(load("rtx-4090")).replace('name = "rtx-4090"', 'name = "mine"')
    kept = [line for line in text.splitlines() if not line.startswith(("aliases", "matches"))]
    (home / "devices" / "mine.toml").write_text("\n".join(kept), encoding="utf-8")
    fit = repo / "hw_profiles" / "measured" / "gh200" / "gemm.toml"
    (home / "measured" / "mine").mkdir(parents=True)
    (home / "measured" / "mine" / "gemm.toml").write_bytes(fit.read_bytes())
    checks = doctor.examine()
    assert states(checks, "yours")["device mine"] == doctor.OK
    (own,) = [c for c in checks if c.topic == "calibrated devices" and c.name == "mine"]
    assert own.advice.endswith("by you")


def test_each_broken_file_of_ones_own_is_one_line(home: Path):
    (home / "devices").mkdir(parents=True)
    (home / "devices" / "bad.toml").write_text("schema = 1\nname = 'bad'\n", encoding="utf-8")
    (home / "measured" / "bad").mkdir(parents=True)
    (home / "measured" / "bad" / "gemm.toml").write_text("no fit", encoding="utf-8")
    (home / "models" / "bad").mkdir(parents=True)
    (home / "models" / "bad" / "config.json").write_text("{", encoding="utf-8")
    done = run("doctor")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 3
    assert all(line.startswith("problem: ") for line in done.stderr.splitlines())
    assert "Traceback" not in done.stderr


def test_a_home_that_cannot_be_written_is_a_problem(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SHADOWLINE_HOME", str(tmp_path / "file" / "home"))
    check = doctor._home()
    assert check.state == doctor.PROBLEM
    assert "SHADOWLINE_HOME" in check.advice


@pytest.mark.parametrize(
    ("make", "state"), [((), doctor.PROBLEM), (("gemm.parquet",), doctor.OK)], ids=["empty", "gemm"]
)
def test_the_data_folder_must_hold_a_table(home: Path, tmp_path: Path, monkeypatch, make, state):
    for name in make:
        (tmp_path / name).write_text("")
    monkeypatch.setenv("SHADOWLINE_DATA", str(tmp_path))
    assert next(iter(doctor._folders())).state == state


def test_a_data_folder_that_is_not_there_is_a_problem(home: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SHADOWLINE_DATA", str(tmp_path / "nowhere"))
    assert next(iter(doctor._folders())).state == doctor.PROBLEM


def test_nvidia_cards_are_matched_with_their_profiles(home: Path, tmp_path: Path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559 MiB, 570.1'\necho 'NVIDIA Z9, 1 MiB, 570.1'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    known, unknown = doctor._gpus()
    assert known.advice == "profile h100-sxm, calibrated"
    assert "sparse_kernels.calibrate" in unknown.advice


def test_a_driver_tool_that_fails_is_no_card(tmp_path: Path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert doctor._nvidia() == []


def test_amd_cards_are_read_from_the_kernel(tmp_path: Path):
    card = tmp_path / "card0" / "device"
    card.mkdir(parents=True)
    for name, text in (
        ("vendor", "0x1002"),
        ("product_name", "AMD Instinct MI300X"),
        ("mem_info_vram_total", f"{2**30}"),
    ):
        (card / name).write_text(text + "\n")
    (tmp_path / "card1" / "device").mkdir(parents=True)
    assert doctor._amd(tmp_path) == [("AMD Instinct MI300X", "1,024 MiB")]


def test_an_engine_without_a_kernel_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = dataclasses.replace(load_engines()["vllm"], kernels={"attention": "vllm-fa3"})
    monkeypatch.setattr("simulator.roofline.engine.load_engines", lambda: {"vllm": bare})
    found = {c.name: c for c in doctor.examine() if c.topic == "engines"}
    assert found["vllm"].state == doctor.PROBLEM
    assert "moe.w4a16" in found["vllm"].found
