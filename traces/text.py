"""Text as sequences of equal length, shuffled once by a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.base.errors import InputError, reason, suggest

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase


_PIECE = 2**20


@dataclass(frozen=True, eq=False)
class Sequences:
    """Tokens to run a model on.

    Parameters
    ----------
    tokens : ndarray, shape (sequences, length), int64
        Disjoint pieces of the text in shuffled order, each behind the tokenizer's first token if it has one.
    sha256 : str
        Of the names and contents of the files read.
    """

    tokens: np.ndarray
    sha256: str


def text_files(path: Path) -> list[Path]:
    """The file, or every file below the folder that is not hidden, by name."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        near = suggest(path.name, _texts_in(path.parent)) if path.name else []
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise InputError(f"there is no file or folder {str(path)!r}{hint}", where="--text")
    found = sorted(p for p in path.rglob("*") if p.is_file())
    found = [p for p in found if not any(x.startswith(".") for x in p.relative_to(path).parts)]
    if not found:
        raise InputError(f"{path} holds no files", where="--text")
    return found


def _texts_in(folder: Path) -> list[str]:
    """Names of the text files of `folder`, and of its folders that hold one."""
    texts = {p.relative_to(folder).parts[0] for glob in ("*.txt", "*/*.txt") for p in folder.glob(glob)}
    return sorted(texts)


@dataclass(frozen=True, eq=False)
class Tokens:
    """A text as one run of tokens.

    Parameters
    ----------
    ids : ndarray, shape (tokens,), int64
        Without what the tokenizer puts before a text.
    first : tuple of int
        What every window of it begins with: the tokenizer's first token if it has one.
    sha256 : str
        Of the names and contents of the files read.
    """

    ids: np.ndarray
    first: tuple[int, ...]
    sha256: str


def read_tokens(path: Path, tokenizer: PreTrainedTokenizerBase, *, most: int | None = None) -> Tokens:
    """Tokens of a UTF-8 file or of a folder of them, separated by the tokenizer's end-of-text token.

    Parameters
    ----------
    most : int, optional
        Reading stops once there are as many.

    Raises
    ------
    InputError
        No such text, or not UTF-8.
    """
    import numpy as np

    end = [eos] if isinstance(eos := tokenizer.eos_token_id, int) else []
    digest = hashlib.sha256()
    found: list[int] = []
    files = text_files(path)
    for file in files:
        raw = _read(file)
        digest.update(f"{file.name}\0{len(raw)}\0".encode() + raw)
        for piece in _pieces(_decode(raw, file)):
            if most is not None and len(found) >= most:
                break
            found += tokenizer.encode(piece, add_special_tokens=False, verbose=False)
        found += end
    return Tokens(np.asarray(found, np.int64), first_tokens(tokenizer), digest.hexdigest())


def read_sequences(
    path: Path, tokenizer: PreTrainedTokenizerBase, *, length: int, max_tokens: int, seed: int
) -> Sequences:
    """Cut text into sequences.

    Parameters
    ----------
    path : Path
        A UTF-8 file, or a folder of them, as `read_tokens` reads it.
    length : int
        Tokens of a sequence.
    max_tokens : int
        Reading stops here.
    seed : int
        Of the shuffle; rows of a batch then come from different places of the text.

    Raises
    ------
    InputError
        No such text, not UTF-8, or too short for one sequence.
    """
    import numpy as np

    body = length - len(first_tokens(tokenizer))
    wanted = max_tokens // length * body
    text = read_tokens(path, tokenizer, most=wanted)
    count = min(len(text.ids), wanted) // body
    if count < 2:
        raise InputError(
            f"{path} has {len(text.ids)} tokens; two sequences of {length} are the least: give more text "
            "or a smaller --sequence-length",
            where="--text",
        )
    pieces = text.ids[: count * body].reshape(count, body)
    head = np.tile(np.asarray(text.first, np.int64), (count, 1))
    order = np.random.default_rng(seed).permutation(count)
    return Sequences(np.concatenate([head, pieces], axis=1)[order], text.sha256)


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces of about a million characters that end with a line, so that reading can stop early."""
    at = 0
    while at < len(text):
        end = text.find("\n", at + _PIECE) + 1 or len(text)
        yield text[at:end]
        at = end


def first_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The token every text begins with where the tokenizer puts one, else nothing.

    Models that learned with it lose most of their sense without it, so every window begins with it.
    """
    bos: Any = tokenizer.bos_token_id
    ids = tokenizer("a")["input_ids"]
    return (bos,) if bos is not None and ids[:1] == [bos] else ()


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {reason(error)}", where=str(file)) from None


def _decode(raw: bytes, file: Path) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError("is not UTF-8 text", where=f"{file}:{line}") from None
