"""Finds the ``config.json`` of a model: bundled, on disk, in Hugging Face's cache, then on its hub.

Only configs are read, never weights; code that a repository ships is never run. Nothing but
`_download` reaches for the network, and only when ``huggingface_hub`` is installed and not offline.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from simulator.base.errors import AmbiguousNameError, InputError, UnknownNameError, fold, suggest
from simulator.base.files import parse_toml, read_limited
from simulator.base.memo import Memo, Stamp, stamp
from simulator.model.architectures import from_config
from simulator.model.gguf.header import parts_of
from simulator.model.spec import ModelSpec

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+\Z")
_REVISION = re.compile(r"[\w][\w./-]*\Z")
_QUANTISED_NAME = re.compile(
    r"(?:^|[-_.])(?:nvfp4|mxfp[48]|nf4|fp[48]|w[48]a(?:4|8|16)|int[248]|[348]bit|awq|gptq|gguf|bnb|exl[23]|hqq|autoround|i?q[1-8]_[\w.]+)"
    r"(?:[-_.]|$)"
)
"""Words in the name of a repository that say that its weights are quantised."""
_BESIDE = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files beside a config.json that say how early ModelOpt, GPTQ and AWQ checkpoints are quantised, and their method."""
GGUF = ".gguf"
_CONFIG_LIMIT_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A quantised repository of a bundled model: the model, its quantisation config as text, and where that stands."""

    model: str
    config: str
    source: str


@dataclass(frozen=True, slots=True)
class _Index:
    """Bundled models by folded spelling."""

    names: tuple[str, ...]
    by_key: Mapping[str, str]
    ambiguous: Mapping[str, tuple[str, ...]]
    aliases: Mapping[str, tuple[str, ...]]
    quantised: Mapping[str, Checkpoint]


def list_models() -> tuple[str, ...]:
    """Names of all bundled models, sorted."""
    return _index().names


def published_params(name: str) -> tuple[int, bool, str] | None:
    """Published parameter total of a bundled model [-], whether it is exact, and its source.

    None where the publisher states no total.
    """
    name = resolve(name)
    config, _ = _parse(_bundled(name).file.read_bytes(), f"models/{name}.json")
    total = config.get("_published_params")
    if total is None:
        return None
    return total, bool(config.get("_published_exact")), str(config["_published_source"])


def resolve(text: str) -> str:
    """Name of the bundled model that `text` spells, blind to case, space, ``-`` and ``_``.

    Raises
    ------
    UnknownNameError, AmbiguousNameError
    """
    index = _index()
    key = fold(text.strip())
    if key in index.by_key:
        return index.by_key[key]
    if key in index.ambiguous:
        raise AmbiguousNameError("model", text, index.ambiguous[key], where="--model")
    raise UnknownNameError("model", text, index.names, where="--model")


def aliases(name: str) -> tuple[str, ...]:
    """Other spellings of the bundled model `name`, as written in ``aliases.toml``."""
    return _index().aliases.get(resolve(name), ())


@dataclass(frozen=True, slots=True)
class Located:
    """The ``config.json`` of a model and what the model is called.

    Attributes
    ----------
    bundled : bool
        It ships with us.
    beside : Path or None
        ``hf_quant_config.json`` that lies beside it.
    checkpoint : Checkpoint or None
        Quantised repository of the bundled model.
    repository : str
        Where it is on the hub; "" for a file of one's own.
    """

    file: Path | Traversable
    name: str
    bundled: bool = False
    beside: Path | None = None
    checkpoint: Checkpoint | None = None
    repository: str = ""

    @property
    def stamp(self) -> tuple[Stamp, ...]:
        """Stamp of the files."""
        if isinstance(self.file, Path) and self.file.suffix == GGUF:
            return tuple(map(stamp, parts_of(self.file)))
        return (stamp(self.file), *(() if self.beside is None else (stamp(self.beside),)))


def find_model(text: str) -> ModelSpec:
    """Model that `text` names, as `locate` says, read anew."""
    return read(locate(text))


def locate(text: str) -> Located:
    """Where the config of the model lies that `text` names.

    Parameters
    ----------
    text : str
        A bundled name or alias; a folder with a ``config.json``; a ``.json`` or ``.gguf`` file; or
        ``org/name[@revision]``, looked up in Hugging Face's cache and then on its hub. A path wins
        over a repository of the same spelling; a bundled name wins over a folder unless the text
        has a path separator.

    Raises
    ------
    InputError
        One line with what to do: the nearest bundled names, or the download command.
    """
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise InputError(f"model {text!r} is not a name, folder or file; write e.g. llama-2-7b", where="--model")
    text = text.strip()
    path = _as_path(text)
    looks_like_path = path is not None and _has_separator(text)
    if path is not None and (looks_like_path or path.suffix in (".json", GGUF)):
        return _on_disk(path)
    if text.endswith((".json", GGUF)) or text.startswith((".", "~", os.sep)):
        raise InputError(f"there is no file or folder {text!r}", where="--model")
    repo, _, revision = text.partition("@")
    if not revision and "@" not in text:
        index = _index()
        key = fold(text)
        if key in index.by_key:
            return _bundled(index.by_key[key])
        if key in index.ambiguous:
            raise AmbiguousNameError("model", text, index.ambiguous[key], where="--model")
    if path is not None:
        return _on_disk(path)
    if "@" in text and not _REVISION.match(revision):
        raise InputError(f"{revision!r} is not a revision; write org/name@branch, tag or commit", where="--model")
    cached = _cached_config(repo, revision or None)
    if cached is None:
        if not _REPO_ID.match(repo):
            raise UnknownNameError("model", text, _index().names, where="--model")
        cached = _download(repo, revision or None)
    return Located(cached, _short_name(repo), beside=_beside(cached), repository=repo)


def read(found: Located) -> ModelSpec:
    """Model of a located config."""
    where = f"models/{found.name}.json" if found.bundled else str(found.file)
    if isinstance(found.file, Path) and found.file.suffix == GGUF:
        from simulator.model.gguf.read import read_model

        return read_model(found.file)
    raw = found.file.read_bytes() if found.bundled else read_limited(Path(str(found.file)), _CONFIG_LIMIT_BYTES)
    config, text = _parse(raw, where)
    source = str(config["_source"]) if found.bundled else where
    beside: Mapping[str, Any] | None = None
    if found.checkpoint is not None:
        # The repository's own config stands in for that of the model it was made of.
        beside, source = json.loads(found.checkpoint.config), found.checkpoint.source
        config.pop("quantization_config", None)
    elif found.beside is not None:
        beside, _ = _parse(read_limited(found.beside, _CONFIG_LIMIT_BYTES), str(found.beside))
        kind = next(k for name, k in _BESIDE.items() if found.beside.name.endswith(name))
        beside = {"quant_method": kind, **beside}
    model = from_config(config, found.name, where=where, text=text, source=source, beside=beside)
    if found.repository and not model.method and _QUANTISED_NAME.search(found.name):
        if "gguf" in found.name:
            raise InputError(
                f"{found.repository} holds GGUF files, whose formats its config.json does not say; fetch the one you"
                f" run ('hf download {found.repository} FILE.gguf') and pass its path",
                where=where,
            )
        raise InputError(
            f"{found.repository} is called a quantised model, but its config.json says nothing of it; fetch its"
            f" quantisation config too: 'hf download {found.repository} hf_quant_config.json'",
            where=where,
        )
    note = config.get("_note") if found.bundled else None
    return model if note is None else replace(model, notes=(*model.notes, str(note)))


def needs_network(text: str) -> bool:
    """Whether `find_model` would ask the hub for `text`: a repository neither bundled, on disk nor in the cache."""
    text = text.strip()
    repo, _, revision = text.partition("@")
    if _as_path(text) is not None or not _REPO_ID.match(repo) or fold(text) in _index().by_key:
        return False
    return _cached_config(repo, revision or None) is None


def folder_name(folder: Path) -> str:
    """Name of the model in a folder: the folder's own, or its parent's where it is just called ``model``."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def from_file(path: str | Path) -> ModelSpec:
    """Model of a ``config.json`` or of the folder it lies in, called as the folder or as a file of another name."""
    return read(_on_disk(Path(path).expanduser()))


def _on_disk(file: Path) -> Located:
    if file.is_dir():
        if not (file / "config.json").is_file():
            if whole := _gguf_in(file):
                return _on_disk(whole)
            other = ""
            if (file / "params.json").exists():
                other = " (it has Mistral's params.json; the Hugging Face form is needed)"
            elif (file / "model" / "config.json").exists():
                other = f"; did you mean {file / 'model'}?"
            raise InputError(f"the folder has no config.json{other}", where=str(file))
        file = file / "config.json"
    name = folder_name(file.parent) if file.name == "config.json" else file.stem
    return Located(file, name or "model", beside=_beside(file))


def _gguf_in(folder: Path) -> Path | None:
    """The one GGUF model of a folder, by its first part; None where there is none."""
    found = sorted({parts_of(file)[0] for file in folder.glob(f"*{GGUF}")})
    if len(found) > 1:
        listed = ", ".join(file.name for file in found[:5])
        raise InputError(f"the folder holds {len(found)} GGUF models; name one: {listed}", where=str(folder))
    return found[0] if found else None


def _beside(file: Path) -> Path | None:
    """File of its quantisation beside a ``config.json`` or ``NAME_config.json``, where there is one."""
    before, end, _ = file.name.rpartition("config.json")
    others = (file.parent / f"{before}{name}" for name in _BESIDE)
    return next((other for other in others if end and other != file and other.is_file()), None)


def _parse(raw: bytes, where: str) -> tuple[dict[str, Any], str]:
    try:
        text = raw.decode("utf-8-sig")
        config = json.loads(text)
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text, so not a config.json", where=where) from None
    except json.JSONDecodeError as error:
        place = f"{where}:{error.lineno}"
        raise InputError(f"is not valid JSON: {error.msg}", where=place) from None
    except (RecursionError, ValueError):
        raise InputError("is not a JSON file that can be read", where=where) from None
    if not isinstance(config, dict):
        raise InputError("a model config must be a JSON object with keys", where=where)
    return config, text


def _has_separator(text: str) -> bool:
    return "/" in text or os.sep in text


def _as_path(text: str) -> Path | None:
    """`text` as an existing path, else None; an over-long or unreadable one does not exist."""
    try:
        path = Path(text).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):
        return None


def _short_name(repo: str) -> str:
    return repo.rpartition("/")[2].casefold()


@cache
def _folder() -> Traversable:
    return files("hw_profiles") / "models"


def _index() -> _Index:
    folder = _folder()
    # A model that is added changes its folder, an alias that is added its own file.
    return _INDICES(
        "", (*(stamp(folder / file) for file in ("aliases.toml", "quantised.toml")), stamp(folder)), _indexed
    )


_INDICES: Memo[_Index] = Memo(1)


def _indexed() -> _Index:
    names = sorted(entry.name.removesuffix(".json") for entry in _folder().iterdir() if entry.name.endswith(".json"))
    where = "hw_profiles/models/aliases.toml"
    table = parse_toml((_folder() / "aliases.toml").read_text("utf-8"), where)
    quantised, repositories = _quantised(names)
    by_key = {fold(name): name for name in (*names, *quantised)}
    spelled = {**table["models"], **repositories}
    for name, spellings in spelled.items():
        for spelling in spellings:
            known = by_key.setdefault(fold(spelling), name)
            if known != name:
                raise InputError(f"alias {spelling!r} means both {known} and {name}", where=where)
    ambiguous = {fold(key): tuple(value) for key, value in table["ambiguous"].items()}
    for spelling, candidates in table["ambiguous"].items():
        if len(candidates) < 2 or not set(candidates) <= set(names):
            # What is added at the end of the file lands here.
            wrong = f"[ambiguous] {spelling!r} must list two bundled models or more"
            raise InputError(f"{wrong}; other spellings of one model stand under [models]", where=where)
    return _Index(tuple(names), by_key, ambiguous, {k: tuple(v) for k, v in spelled.items()}, quantised)


def _quantised(names: Collection[str]) -> tuple[dict[str, Checkpoint], dict[str, list[str]]]:
    """Quantised repositories of bundled models by name, and the spellings of each: with and without its owner."""
    where = "hw_profiles/models/quantised.toml"
    found: dict[str, Checkpoint] = {}
    spellings: dict[str, list[str]] = {}
    for name, table in parse_toml((_folder() / "quantised.toml").read_text("utf-8"), where).items():
        if name in names or table["model"] not in names:
            raise InputError(f"{name!r} must be a new name of a bundled model's checkpoint", where=where)
        found[name] = Checkpoint(table["model"], table["config"], table["source"])
        spellings[name] = [s for r in table["repositories"] for s in (r, r.rpartition("/")[2])]
    return found, spellings


def _bundled(name: str) -> Located:
    checkpoint = _index().quantised.get(name)
    file = _folder() / f"{name if checkpoint is None else checkpoint.model}.json"
    return Located(file, name, bundled=True, checkpoint=checkpoint)


def _is_offline() -> bool:
    on = {"1", "on", "yes", "true"}
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").casefold() in on for name in names)


def _cache_folder() -> Path:
    """Where huggingface_hub keeps its snapshots, by the variables it reads."""
    for variable, parts in (
        ("HF_HUB_CACHE", ()),
        ("HUGGINGFACE_HUB_CACHE", ()),
        ("HF_HOME", ("hub",)),
        ("XDG_CACHE_HOME", ("huggingface", "hub")),
    ):
        value = os.environ.get(variable)
        if value:
            return Path(value).expanduser().joinpath(*parts)
    return Path("~/.cache/huggingface/hub").expanduser()


def _cached_config(repo: str, revision: str | None) -> Path | None:
    """``config.json`` of `repo` in the cache: of a branch, tag or commit; of ``main`` when None."""
    folder = _cache_folder() / f"models--{repo.replace('/', '--')}"
    commit = revision or "main"
    try:
        reference = folder / "refs" / commit
        if reference.is_file():
            commit = reference.read_text("utf-8").strip()
        file = folder / "snapshots" / commit / "config.json"
        return file if file.is_file() else None
    except (OSError, ValueError, RuntimeError):
        return None


def _cached_repos() -> list[str]:
    try:
        folders = sorted(_cache_folder().glob("models--*/snapshots/*/config.json"))
    except (OSError, RuntimeError):
        return []
    found = {f.parents[2].name.removeprefix("models--").replace("--", "/", 1) for f in folders}
    return sorted(found)


def _unavailable(repo: str, revision: str | None, why: str) -> InputError:
    at = f" --revision {revision}" if revision else ""
    close = suggest(_short_name(repo), list_models())
    hint = f"; bundled under a similar name: {', '.join(close)}" if close else ""
    cached = _cached_repos()
    kept = f"; in the cache: {', '.join(cached[:5])}" if cached else ""
    return InputError(
        f"model {repo!r} is not bundled and not in the cache, and {why}; fetch its config with "
        f"'hf download {repo} config.json{at}' (older: huggingface-cli download), or pass a "
        f"config.json{hint}{kept}",
        where="--model",
    )


def _download(repo: str, revision: str | None) -> Path:
    """``config.json`` of `repo` from the hub; every failure becomes one line with what to do."""
    if _is_offline():
        raise _unavailable(repo, revision, "HF_HUB_OFFLINE is set")
    try:
        import huggingface_hub
        from huggingface_hub import errors as hub_errors
    except ImportError:
        raise _unavailable(repo, revision, "huggingface_hub is not installed") from None
    # Its own warnings of every retry would stand beside the one line that says what to do.
    fetch = huggingface_hub.hf_hub_download  # loads its module, which sets the level that we raise
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        found = Path(fetch(repo, "config.json", revision=revision))
        if _QUANTISED_NAME.search(_short_name(repo)):
            # Some keep the formats in a file of their own; most repositories have none.
            for name in _BESIDE:
                with suppress(hub_errors.EntryNotFoundError):
                    fetch(repo, name, revision=revision)
        return found
    except hub_errors.GatedRepoError:
        problem = (
            f"model {repo!r} is gated: accept its licence at https://huggingface.co/{repo}, then "
            "run 'hf auth login' (older: huggingface-cli login)"
        )
    except hub_errors.RepositoryNotFoundError:
        close = suggest(_short_name(repo), list_models())
        hint = f"; bundled: {', '.join(close)}" if close else ""
        problem = f"the hub has no model {repo!r}, or it is private: check the spelling or run 'hf auth login'{hint}"
    except hub_errors.RevisionNotFoundError:
        problem = f"model {repo!r} has no revision {revision!r}; leave out '@{revision}' for main"
    except hub_errors.LocalEntryNotFoundError:
        raise _unavailable(repo, revision, "the hub cannot be reached") from None
    except hub_errors.EntryNotFoundError:
        problem = f"model {repo!r} has no config.json; it is not in the transformers format"
    except hub_errors.HFValidationError as error:
        problem = f"{repo!r} is not a repository name: {str(error).splitlines()[0]}"
    except (OSError, hub_errors.HfHubHTTPError) as error:
        raise _unavailable(repo, revision, f"the hub cannot be reached ({type(error).__name__})") from None
    raise InputError(problem, where="--model")
