"""The training text of the shipped models: the running Python's own standard library, split by file."""

from __future__ import annotations

import hashlib
import platform
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from simulator.base.errors import InputError

SEPARATOR = "<|endoftext|>"
# Tests repeat each other, encodings are number tables, pydoc_data is prose, _sysconfigdata names the machine.
_LEFT_OUT = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
_LEFT_OUT_PREFIX = ("_sysconfigdata", "config-", "__pycache__")


@dataclass(frozen=True)
class Corpus:
    """Text to train on, text held out, and what they came from.

    Parameters
    ----------
    train, heldout : str
        Files one after another, `SEPARATOR` on a line of its own between them.
    train_files, heldout_files : tuple of str
        Paths inside the standard library.
    python : str
        Version of the Python whose library it is.
    licence : str
        Its ``LICENSE.txt``.
    """

    train: str
    heldout: str
    train_files: tuple[str, ...]
    heldout_files: tuple[str, ...]
    python: str
    licence: str

    def describe(self) -> dict[str, object]:
        """The part of a manifest that says which text was used."""
        return {
            "python": self.python,
            "train_files": len(self.train_files),
            "train_bytes": len(self.train.encode()),
            "train_sha256": sha256(self.train.encode()),
            "heldout_files": list(self.heldout_files),
            "heldout_bytes": len(self.heldout.encode()),
            "heldout_sha256": sha256(self.heldout.encode()),
        }


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def is_held_out(path: str, one_in: int) -> bool:
    """Whether a file belongs to the held-out part: by the hash of its path, so for every Python alike."""
    return int(sha256(path.encode())[:8], 16) % one_in == 0


def standard_library(folder: Path | None = None, *, one_in: int = 20) -> Corpus:
    """Read the ``*.py`` files below `folder` (default: this Python's standard library).

    Parameters
    ----------
    folder : Path, optional
    one_in : int
        One file in so many is held out [-].
    """
    folder = folder or Path(sysconfig.get_paths()["stdlib"])
    parts: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
    for path in sorted(folder.rglob("*.py"), key=lambda p: p.relative_to(folder).parts):
        inside = path.relative_to(folder)
        if any(p in _LEFT_OUT or p.startswith(_LEFT_OUT_PREFIX) for p in inside.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip():
            name = inside.as_posix()
            parts[is_held_out(name, one_in)].append((name, text.rstrip("\n") + "\n"))
    if not parts[True] or not parts[False]:
        raise InputError(f"no Python files to train on in {folder.name!r}; give a source folder")
    terms = folder / "LICENSE.txt"
    licence = (
        terms.read_text(encoding="utf-8")
        if terms.is_file()
        else f"{sys.copyright}\nPSF License Agreement, https://docs.python.org/3/license.html\n"
    )
    joined = {held: f"{SEPARATOR}\n".join(t for _, t in files) for held, files in parts.items()}
    names = {held: tuple(n for n, _ in files) for held, files in parts.items()}
    version = platform.python_version()
    return Corpus(joined[False], joined[True], names[False], names[True], version, licence)


def baselines(corpus: Corpus) -> dict[str, float]:
    """Bits per byte that need no model: bytes by frequency, gzip -9, and xz after seeing the training text.

    References
    ----------
    .. [1] Cilibrasi, Vitanyi, "Clustering by compression", 2005: C(xy) - C(x) as conditional size.
    """
    import gzip
    import lzma
    from math import log2

    train, held = corpus.train.encode(), corpus.heldout.encode()
    counts = [train.count(bytes([b])) + 1 for b in range(256)]
    total = sum(counts)
    unigram = -sum(log2(counts[b] / total) for b in held) / len(held)
    # One dictionary over both texts, else xz forgets the training text after 8 MiB.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 26}]
    both = len(lzma.compress(train + held, filters=filters))
    alone = len(lzma.compress(train, filters=filters))
    return {
        "unigram_bytes": unigram,
        "gzip": 8.0 * len(gzip.compress(held, 9)) / len(held),
        "xz_after_train": 8.0 * (both - alone) / len(held),
    }
