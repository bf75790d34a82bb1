"""This machine's facts, only read: processor, caches, memory, versions, clocks; nothing is set or pinned."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from simulator.base.errors import InputError

BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""Read once, when numpy loads its BLAS."""


def fix_threads(threads: int) -> None:
    """Give BLAS `threads` threads; must run before numpy is imported.

    Raises
    ------
    RuntimeError
        numpy is loaded and has another number of threads.
    """
    wanted = str(threads)
    if "numpy" in sys.modules and any(os.environ.get(v) != wanted for v in BLAS_THREADS[:2]):
        raise RuntimeError(f"numpy is loaded; set OPENBLAS_NUM_THREADS={wanted} OMP_NUM_THREADS={wanted} first")
    for variable in BLAS_THREADS:
        os.environ[variable] = wanted


def cores() -> int:
    """Cores this process may run on; its affinity is respected, not changed."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """Processor as the system names it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for key in ("model name", "Model", "Hardware"):
        found = re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine() or "unknown processor"


def slug(model: str) -> str:
    """Device name of a processor: ``Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz`` -> ``cpu-intel-xeon-gold-6338``."""
    text = re.sub(r"\((?:R|TM|tm|r)\)|@.*$|\bCPU\b|\bProcessor\b|\b\d+-Core\b", " ", model)
    words = re.findall(r"[a-z0-9]+", text.casefold())
    return "-".join(["cpu", *(words or ["unknown"])])


def vendor(model: str) -> str:
    """intel, amd, apple, arm, or unknown."""
    for name in ("intel", "amd", "apple", "arm"):
        if name in model.casefold():
            return name
    return "unknown"


def _sysfs(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _size(text: str) -> int:
    unit = {"K": 2**10, "M": 2**20, "G": 2**30}
    return int(text[:-1]) * unit[text[-1]] if text[-1] in unit else int(text)


def caches() -> list[tuple[int, int, int]]:
    """(level, bytes, line bytes) of the data caches of one core, nearest first; empty where unknown."""
    found = []
    root = Path("/sys/devices/system/cpu/cpu0/cache")
    for index in sorted(root.glob("index*")) if root.is_dir() else []:
        kind, level, size = (_sysfs(f"{index}/{n}") for n in ("type", "level", "size"))
        if kind in ("Data", "Unified") and level and size:
            line = _sysfs(f"{index}/coherency_line_size") or "64"
            found.append((int(level), _size(size), int(line)))
    return sorted(found)


def memory_bytes() -> int | None:
    """Main memory as the system reports it [B]; None where it does not."""
    text = _sysfs("/proc/meminfo") or ""
    found = re.search(r"^MemTotal:\s*(\d+) kB", text, re.MULTILINE)
    if found:
        return int(found[1]) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def clocks_hz() -> dict[str, float]:
    """What is known of the core clock [Hz]: base, max (cpufreq), now (/proc/cpuinfo)."""
    root = "/sys/devices/system/cpu/cpu0/cpufreq"
    out: dict[str, float] = {}
    for name, file in (("base", "base_frequency"), ("max", "cpuinfo_max_freq")):
        value = _sysfs(f"{root}/{file}")
        if value and value.isdigit():
            out[name] = float(value) * 1e3
    text = _sysfs("/proc/cpuinfo") or ""
    now = re.search(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)
    if now:
        out["now"] = float(now[1]) * 1e6
    return out


SMI_FIELDS = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "power.limit",
    "temperature.gpu",
    "pcie.link.gen.current",
    "pcie.link.width.current",
)


def nvidia_smi() -> dict[str, str]:
    """Clocks, limits and driver of the first GPU; empty without the tool."""
    command = ["nvidia-smi", f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    if done.returncode != 0 or not done.stdout.strip():
        return {}
    values = [v.strip() for v in done.stdout.splitlines()[0].split(",")]
    return dict(zip(SMI_FIELDS, values, strict=False))


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of `packages` and of Python."""
    out = {"python": platform.python_version()}
    for name in packages:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            out[name] = "absent"
    return out


PASSING = ("clock_hz", "clocks.sm", "clocks.mem", "temperature.gpu", "pcie.link.gen.current")
"""Facts that change from minute to minute on one machine."""


def fingerprint(facts: Mapping[str, Any]) -> str:
    """12 hex digits of `facts` without those that pass: the same for the same machine and versions."""
    facts = {
        name: {k: v for k, v in value.items() if k not in PASSING} if name == "smi" else value
        for name, value in facts.items()
        if name not in PASSING
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def use_threads(threads: int) -> None:
    """`fix_threads` for a flag: more than the process may use is an `InputError`."""
    most = cores()
    if threads > most:
        raise InputError(f"this process may use {most} cores, not {threads}", where="--threads")
    try:
        fix_threads(threads)
    except RuntimeError as error:
        raise InputError(str(error), where="--threads") from None
