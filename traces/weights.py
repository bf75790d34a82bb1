"""Weight files without their weights: names, shapes, bytes, and whether memory holds them."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from simulator.base.errors import InputError

ELEMENT_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes of one element by its safetensors dtype [B]."""
_HEADER_LIMIT_BYTES = 100 * 2**20


def safetensors_header(path: Path) -> dict[str, Any]:
    """Names, dtypes and shapes of a safetensors file, without reading a weight."""
    with path.open("rb") as file:
        raw = file.read(8)
        size = struct.unpack("<Q", raw)[0] if len(raw) == 8 else 0
        if not 0 < size <= _HEADER_LIMIT_BYTES:
            raise InputError("is not a safetensors file", where=str(path))
        body = file.read(size)
    try:
        header = json.loads(body)
        tensors = [
            (str(v["dtype"]), math.prod(map(int, v["shape"])), int(v["data_offsets"][1]))
            for k, v in header.items()
            if k != "__metadata__"
        ]
        stored = max((end for *_, end in tensors), default=0)
    except (ValueError, RecursionError, AttributeError, TypeError, LookupError):
        raise InputError("has a damaged safetensors header; download it again", where=str(path)) from None
    if path.stat().st_size != 8 + size + stored:
        raise InputError(
            f"is cut short: {path.stat().st_size} B of {8 + size + stored} B; download it again", where=str(path)
        )
    return header


def parameter_bytes(headers: Iterable[Mapping[str, Any]], element_bytes: int | None) -> int:
    """Bytes of all weights [B] at `element_bytes` each, or as stored when None.

    Integer tensors keep their stored size: a dtype only converts floating-point weights.
    """
    total = 0
    for header in headers:
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            total += tensor_bytes(entry["dtype"], math.prod(entry["shape"]), element_bytes)
    return total


def tensor_bytes(kind: str, elements: int, element_bytes: int | None) -> int:
    """Bytes of `elements` of safetensors dtype `kind` [B], counted as in `parameter_bytes`."""
    if kind not in ELEMENT_BYTES:
        raise InputError(f"weights stored as {kind} are not known here", where="--model")
    is_float = kind.startswith(("F", "BF"))
    return elements * (element_bytes if element_bytes and is_float else ELEMENT_BYTES[kind])


def free_bytes(device: str) -> int | None:
    """Memory that can still be taken on `device` [B]; None where the system does not tell."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(torch.device(device))[0]
    known = (available_bytes(Path("/proc/meminfo")), cgroup_free_bytes(Path("/sys/fs/cgroup")))
    return min((b for b in known if b is not None), default=None)


def available_bytes(meminfo: Path) -> int | None:
    """``MemAvailable`` of Linux [B]; None on another system."""
    if not meminfo.is_file():
        return None
    found = re.search(r"^MemAvailable:\s*(\d+) kB", meminfo.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def cgroup_free_bytes(folder: Path) -> int | None:
    """Memory a cgroup v2 may still take [B], with the page cache it would give back; None without a limit."""
    limit = folder / "memory.max"
    if not limit.is_file() or limit.read_text().strip() == "max":
        return None
    cached = re.search(r"^inactive_file (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
    used = int((folder / "memory.current").read_text()) - (int(cached[1]) if cached else 0)
    return int(limit.read_text()) - used


def check_memory(needed_bytes: int, available_bytes: int | None, device: str) -> None:
    """Refuse weights that cannot fit, before hours of downloading or swapping."""
    if available_bytes is None or needed_bytes <= available_bytes:
        return
    gib = 2**30
    where = "GPU memory" if device.startswith("cuda") else "RAM"
    advice = "--dtype bf16, --device cpu" if device.startswith("cuda") else "--dtype bf16"
    raise InputError(
        f"the weights need {needed_bytes / gib:.1f} GiB and {available_bytes / gib:.1f} GiB of {where} are "
        f"free, short by {(needed_bytes - available_bytes) / gib:.1f} GiB; try {advice}, a smaller "
        "model, or a larger machine",
        where="--model",
    )


def weights_sha256(folder: Path) -> str:
    """Of all weight files, by name; a folder has no commit to be told by."""
    digest = hashlib.sha256()
    files = sorted(p for pattern in ("*.safetensors", "*.bin") for p in folder.glob(pattern))
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
