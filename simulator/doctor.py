"""What is installed, measured and writable here: ``python -m simulator doctor``."""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from textwrap import shorten
from typing import Annotated

import typer

from simulator.base import console
from simulator.base.errors import EXIT_BAD_INPUT, ShadowlineError, reason
from simulator.base.extras import PROJECT, Requirement, requirements
from simulator.base.registry import LOGGER

OK, ABSENT, PROBLEM = "ok", "absent", "problem"

EXTRAS = {
    "hub": "models fetched from the Hugging Face hub",
    "reports": "HTML and PDF reports",
    "app": "the dashboard",
    "traces": "traces of real models",
    "gguf": "traces of models in GGUF files",
    "kernels": "Triton kernels, timing and calibration of a GPU",
    "cluster": "sweeps and plans over several machines",
    "docs": "the documentation site",
    "test": "tests of a device, a model or a policy",
    "dev": "all tests and linters",
}
"""What each optional part of the project is for."""

DATA_FILES = (
    "gemm",
    "attention",
    "collective",
    "moe",
    "elementwise",
    "sparse_attention",
    "expert_alltoall",
    "linear_attention",
    "sparse_kernels",
    "e2e",
)
"""Measured tables that validate and a refit read, as ``<name>.parquet`` in ``$SHADOWLINE_DATA``."""

MOST_SHOWN = 130
"""Characters of a finding in the table; --json has all."""


@dataclass(frozen=True)
class Check:
    """One line of the answer.

    Attributes
    ----------
    topic, name : str
        Section and item, e.g. ``part`` and ``traces``.
    state : str
        ``ok``, ``absent`` (optional, not here) or ``problem``.
    found : str
        What is here.
    advice : str
        What to do where it is absent or a problem.
    """

    topic: str
    name: str
    state: str
    found: str
    advice: str = ""


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def command(
    json_: Annotated[bool, typer.Option("--json", help='{"rows": [...], "problems": [...]} on stdout')] = False,
) -> None:
    """Say what is installed, which devices are calibrated, which GPUs are seen, what is yours.

    Exit 0 when usable; 2 when something is in the way, one line each with what to do.
    """
    # A plug-in that fails is a line of the answer; the registry need not say it as well.
    LOGGER.setLevel(logging.ERROR)
    checks = examine()
    problems = [f"{c.name}: {c.found}; {c.advice}" for c in checks if c.state == PROBLEM]
    if json_:
        console.out_json({"rows": [vars(c) for c in checks], "problems": problems})
    else:
        for topic in dict.fromkeys(c.topic for c in checks):
            here = [c for c in checks if c.topic == topic]
            console.table(
                topic,
                ["item", "state", "found", "note"],
                [[c.name, c.state, shorten(c.found, MOST_SHOWN), c.advice] for c in here],
                left=4,
            )
        console.out("usable" if not problems else f"{len(problems)} problem(s)")
    for problem in problems:
        console.say(f"problem: {problem}")
    if problems:
        raise SystemExit(EXIT_BAD_INPUT)


def examine() -> tuple[Check, ...]:
    """Every check; with a core package missing, only those that need none of them."""
    checks = [*_python(), *_parts()]
    if not any(c.state == PROBLEM for c in checks):
        checks += [*_calibrated(), *_engines(), *_gpus(), *_outside(), *_own()]
    return (*checks, *_folders())


def _python() -> Iterator[Check]:
    version = platform.python_version()
    yield Check("environment", "python", OK, f"{version} ({platform.python_implementation()}, {sys.executable})")
    yield Check("environment", "platform", OK, f"{platform.platform()}, {os.cpu_count()} CPUs")


def _parts() -> Iterator[Check]:
    """The core packages and each extra, as the installed project's own metadata lists them."""
    try:
        required = list(requirements())
        version = metadata.version(PROJECT)
    except metadata.PackageNotFoundError:
        advice = "its policies are not registered; run `pip install -e .` in the checkout"
        yield Check("environment", PROJECT, PROBLEM, "not installed", advice)
        return
    yield Check("environment", PROJECT, OK, version)
    found, problems = _versions(required, "")
    advice = f"run `pip install --upgrade {PROJECT}`"
    if problems:
        yield Check("environment", "core packages", PROBLEM, ", ".join(problems), advice)
    else:
        yield Check("environment", "core packages", OK, ", ".join(found))
    for extra in metadata.metadata(PROJECT).get_all("Provides-Extra") or ():
        found, problems = _versions(required, extra)
        purpose = EXTRAS.get(extra, "")
        if problems:
            advice = f"{purpose}: pip install '{PROJECT}[{extra}]'"
            yield Check("optional parts", extra, ABSENT, ", ".join(problems), advice)
        else:
            yield Check("optional parts", extra, OK, ", ".join(found), purpose)


def _versions(required: Iterable[Requirement], extra: str) -> tuple[list[str], list[str]]:
    """Packages of `extra` ("" = core) as "name version", and those that are missing or too old."""
    found: list[str] = []
    problems: list[str] = []
    for name, least, _ in (r for r in required if r.extra == extra):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            problems.append(f"{name} missing")
            continue
        if least and _key(version) < _key(least):
            problems.append(f"{name} {version} is older than {least}")
        else:
            found.append(f"{name} {version}")
    return found, problems


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _measured_folders() -> list[tuple[str, Path]]:
    """Folders of fits, the user's own first, as (device, path)."""
    from simulator.device.catalogue import user_data_dir
    from simulator.device.fits import DEFAULT

    homes = (user_data_dir() / "measured", Path(str(resources.files("hw_profiles"))) / "measured")
    return [
        (path.name, path)
        for home in homes
        if os.path.isdir(home)
        for path in sorted(home.iterdir())
        if path.is_dir() and path.name != DEFAULT
    ]


def _calibrated() -> Iterator[Check]:
    from simulator.device.catalogue import measured, user_data_dir

    folders = _measured_folders()
    for device in sorted({name for name, _ in folders}):
        mine = any(name == device and user_data_dir() in path.parents for name, path in folders)
        families = sorted({p.stem for name, f in folders if name == device for p in f.glob("*.toml")})
        try:
            fits = {family: measured(device).own(family) for family in families}
        except ShadowlineError as error:
            advice = "mend or remove the file, or write it anew with `python -m simulator.calibrate`"
            yield Check("calibrated devices", device, PROBLEM, str(error), advice)
            continue
        text = ", ".join(f"{family} {sum(f.n for f in here):,}" for family, here in fits.items() if here)
        date = max((f.date for here in fits.values() for f in here), default="")
        note = f"fitted {date}" + (", by you" if mine else "")
        yield Check("calibrated devices", device, OK, f"rows: {text}", note)


def _engines() -> Iterator[Check]:
    """Engines, and whether each names its kernel for every format it can be asked for."""
    from simulator.roofline.engine import load_engines

    for engine in load_engines().values():
        if missing := engine.unnamed:
            advice = "name one in hw_profiles/engines.toml; whichever was measured answers until then"
            yield Check("engines", engine.name, PROBLEM, f"no kernel for {', '.join(missing)}", advice)
        else:
            yield Check("engines", engine.name, OK, f"{engine.title}: a kernel for every format")


def _gpus() -> Iterator[Check]:
    """GPUs by the driver's own tools; no deep-learning library is imported."""
    names = [*_nvidia(), *_amd()]
    if not names:
        advice = "none is needed; `python -m sparse_kernels.calibrate --device cpu` measures the processor"
        yield Check("GPUs", "none seen", ABSENT, "neither nvidia-smi nor amdgpu names one", advice)
    for name, detail in names:
        yield _gpu(name, detail)


def _gpu(name: str, detail: str) -> Check:
    from simulator.device.catalogue import resolve

    try:
        profile = resolve(name)
    except ShadowlineError:
        advice = "no profile: `python -m sparse_kernels.calibrate --device cuda` makes one"
        return Check("GPUs", name, OK, detail, advice)
    fitted = any(device == profile for device, _ in _measured_folders())
    advice = "calibrated" if fitted else "predicted from its architecture's fits"
    return Check("GPUs", name, OK, detail, f"profile {profile}, {advice}")


def _nvidia() -> list[tuple[str, str]]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if done.returncode != 0:
        return []
    cells = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return [(c[0], f"{c[1]}, driver {c[2]}") for c in cells if len(c) == 3]


def _amd(root: Path = Path("/sys/class/drm")) -> list[tuple[str, str]]:
    found = []
    for card in sorted(root.glob("card*/device")):
        name, size = _line(card / "product_name"), _line(card / "mem_info_vram_total")
        if _line(card / "vendor") == "0x1002" and size.isdigit():
            found.append((name or "AMD GPU", f"{int(size) / 2**20:,.0f} MiB"))
    return found


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _own() -> Iterator[Check]:
    """The user's own profiles and models, each read as a verb would read it."""
    from simulator.device.catalogue import load, user_data_dir
    from simulator.model.hub import from_file
    from simulator.roofline.engine import read_own

    readers = (
        ("device", "devices/*.toml", load),
        ("engine", "engines/*.toml", read_own),
        ("model", "models/*/config.json", from_file),
    )
    for kind, pattern, read in readers:
        for path in sorted(user_data_dir().glob(pattern)):
            name = f"{kind} {path.parent.name if kind == 'model' else path.stem}"
            try:
                read(path)
            except ShadowlineError as error:
                found = " ".join(str(error).split())
                yield Check("yours", name, PROBLEM, found, "mend or remove the file")
            else:
                yield Check("yours", name, OK, str(path))


def _outside() -> Iterator[Check]:
    """Policies and architectures that other installed packages bring."""
    from simulator.model.architectures import ARCHITECTURES
    from simulator.policies import POLICIES

    for registry in (POLICIES, ARCHITECTURES):
        for found in registry.plug_ins():
            advice = f"mend it or uninstall {found.package}" if found.failure else ""
            told = str(found) if found.failure else f"{found.kind} of {found.package}"
            yield Check("yours", found.name, PROBLEM if found.failure else OK, told, advice)


def _folders() -> Iterator[Check]:
    data = os.environ.get("SHADOWLINE_DATA", "")
    if not data:
        advice = "only validate, accuracy --data and a refit need it"
        yield Check("folders", "$SHADOWLINE_DATA", ABSENT, "not set", advice)
    elif not Path(data).is_dir():
        advice = "set it to the folder of gemm.parquet, ..., or unset it"
        yield Check("folders", "$SHADOWLINE_DATA", PROBLEM, f"{data} is not a folder", advice)
    else:
        here = [name for name in DATA_FILES if Path(data, f"{name}.parquet").is_file()]
        yield Check(
            "folders",
            "$SHADOWLINE_DATA",
            OK if here else PROBLEM,
            f"{data}: {', '.join(here) or 'no table'}",
            "" if here else "set it to the folder of gemm.parquet, ...",
        )
    yield _home()


def _home() -> Check:
    """Whether own devices, fits and models can be kept: a file is written and removed again."""
    from simulator.device.catalogue import user_data_dir

    home = user_data_dir()
    nearest = next((p for p in (home, *home.parents) if os.path.exists(p)), home)
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        advice = "set $SHADOWLINE_HOME to a folder you may write to"
        found = f"{home} cannot be written: {reason(error)}"
        return Check("folders", "$SHADOWLINE_HOME", PROBLEM, found, advice)
    note = "writable" if nearest == home else "writable, made at first use"
    return Check("folders", "$SHADOWLINE_HOME", OK, f"{home} ({note})")


if __name__ == "__main__":
    console.main(app)
