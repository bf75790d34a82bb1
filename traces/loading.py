"""Loads a causal model of the Hugging Face format safely: no remote code, no pickles unless asked, memory checked."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.base.errors import InputError, UnknownNameError, suggest
from simulator.base.files import read_limited
from simulator.model.hub import folder_name
from traces.weights import check_memory, free_bytes, parameter_bytes, safetensors_header, tensor_bytes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Spelling of ``--dtype`` to the name of the torch dtype; ``auto`` keeps the checkpoint's."""

MOST_CONFIG_BYTES, MOST_LAYERS = 2**20, 10_000
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
_SMALL = ("*.json", "*.txt", "*.model", "*.jinja", "tokenizer*", "vocab*", "merges*")


@dataclass(frozen=True)
class Checkpoint:
    """A model folder that was found, before a weight is read.

    Parameters
    ----------
    name : str
        As a person calls it: hub id, or the folder's name.
    folder : Path
        Holds ``config.json`` and, unless `parameter_bytes` came from the hub's index, the weights.
    revision : str
        Commit of the hub, or ``local``.
    config_sha256 : str
        Of ``config.json``.
    """

    name: str
    folder: Path
    revision: str
    config_sha256: str


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, with its tokenizer and where both came from."""

    checkpoint: Checkpoint
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: str
    dtype: str


def find(text: str, *, revision: str | None = None, allow_pickle: bool = False) -> Checkpoint:
    """Folder or hub id that `text` names; a folder wins over a repository of the same spelling.

    Raises
    ------
    InputError
        One line with what to run: log in, download, or the folder that was meant.
    """
    path = Path(text).expanduser()
    looks_like_path = text.startswith((".", "/", "~")) or text.count("/") > 1
    if path.is_dir():
        if revision:
            raise InputError("a folder has no revision; leave --revision out", where="--revision")
        _require_weights(path, allow_pickle)
        return _checkpoint(folder_name(path) or "model", path, "local")
    if path.is_file():
        raise InputError(f"{text} is a file; give the folder it lies in", where="--model")
    if looks_like_path or "/" not in text:
        raise _no_such_folder(path, text)
    return _from_hub(text, revision, allow_pickle)


def _checkpoint(name: str, folder: Path, revision: str) -> Checkpoint:
    raw = read_limited(folder / "config.json", MOST_CONFIG_BYTES)
    _require_sizes(raw, name)
    return Checkpoint(name, folder, revision, hashlib.sha256(raw).hexdigest())


def _require_sizes(raw: bytes, name: str) -> None:
    """Refuse a config that is none, or of more layers than anybody builds: transformers makes them before it reads."""
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"config.json of {name} is not JSON ({error})", where="--model") from None
    if not isinstance(config, dict):
        raise InputError(f"config.json of {name} holds no table", where="--model")
    for part in (config, *(v for v in config.values() if isinstance(v, dict))):
        for key, value in part.items():
            if "layer" in key and isinstance(value, int) and value > MOST_LAYERS:
                raise InputError(f"config.json of {name} says {key} = {value:,}; mend it", where="--model")


def _model_folders(parent: Path) -> list[Path]:
    try:
        found = [*parent.glob("*/config.json"), *parent.glob("*/model/config.json")]
        return sorted(p.parent for p in found)
    except OSError:
        return []


def _no_such_folder(path: Path, text: str) -> InputError:
    near = {folder_name(p): p for p in _model_folders(path.parent)}
    close = suggest(path.name, near)
    if close:
        return InputError(f"there is no folder {text!r}; did you mean {near[close[0]]}?", where="--model")
    if "/" not in text:
        return (
            UnknownNameError("model", text, [str(p) for p in near.values()], where="--model")
            if near
            else InputError(f"there is no folder {text!r}, and a hub id is written org/name", where="--model")
        )
    return InputError(f"there is no folder {text!r}", where="--model")


def _require_weights(folder: Path, allow_pickle: bool) -> None:
    """A folder must hold config.json and weights that may be read."""
    if not (folder / "config.json").is_file():
        inside = _model_folders(folder)
        if inside:
            hint = f"did you mean {' or '.join(str(p) for p in inside[:3])}?"
        elif (folder / "params.json").is_file():
            hint = "it has Meta's or Mistral's params.json; convert it to the Hugging Face form"
        elif list(folder.glob("*.gguf")):
            hint = "it has a GGUF file; python -m traces.fetch --gguf FILE makes the Hugging Face form of it"
        else:
            hint = "a model folder holds config.json, *.safetensors and the tokenizer"
        raise InputError(f"{folder} has no config.json; {hint}", where="--model")
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
    if not pickles:
        raise InputError(f"{folder} has a config.json but no *.safetensors; the weights are missing", where="--model")
    if not allow_pickle:
        raise InputError(
            f"{folder} has only pickled weights ({pickles[0]}), which can run code when read; convert "
            "them to safetensors, or pass --allow-pickle if you trust their author",
            where="--model",
        )


def _is_offline() -> bool:
    on = {"1", "on", "yes", "true"}
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").casefold() in on for name in names)


def _from_hub(repo: str, revision: str | None, allow_pickle: bool) -> Checkpoint:
    """Small files of `repo` from the cache or the hub; weights follow in `fetch_weights`."""
    import huggingface_hub
    from huggingface_hub import errors as hub

    at = f" --revision {revision}" if revision else ""
    command = f"'hf download {repo}{at}'"
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                repo, revision=revision, allow_patterns=list(_SMALL), local_files_only=_is_offline()
            )
        )
    except hub.GatedRepoError:
        problem = (
            f"model {repo!r} is gated: accept its licence at https://huggingface.co/{repo}, then run "
            "'hf auth login' (older: huggingface-cli login)"
        )
    except hub.RepositoryNotFoundError:
        problem = (
            f"the hub has no model {repo!r}, or it is private: check the spelling, or run "
            "'hf auth login' (older: huggingface-cli login)"
        )
    except hub.RevisionNotFoundError:
        problem = f"model {repo!r} has no revision {revision!r}; leave out --revision for main"
    except hub.LocalEntryNotFoundError:
        why = "HF_HUB_OFFLINE is set" if _is_offline() else "the hub cannot be reached"
        todo = "unset it or run" if _is_offline() else "run"
        problem = (
            f"model {repo!r} is not in the cache and {why}; {todo} {command} where there is a network, or pass a folder"
        )
    except hub.HFValidationError as error:
        problem = f"{repo!r} is not a repository name: {str(error).splitlines()[0]}"
    except (OSError, hub.HfHubHTTPError) as error:
        problem = (
            f"the hub cannot be reached for {repo!r} ({type(error).__name__}); run {command} where "
            "there is a network, or pass a folder"
        )
    else:
        if not (folder / "config.json").is_file():
            raise InputError(
                f"model {repo!r} has no config.json; it is not in the transformers format", where="--model"
            )
        return _checkpoint(repo, folder, folder.name)
    raise InputError(problem, where="--model")


def fetch_weights(checkpoint: Checkpoint, *, allow_pickle: bool = False) -> None:
    """Download the weights of a hub model that the cache lacks; a folder must already have them."""
    if checkpoint.revision == "local":
        return
    import huggingface_hub
    from huggingface_hub import errors as hub

    patterns = ["*.safetensors", *(_PICKLES[:1] if allow_pickle else ())]
    try:
        huggingface_hub.snapshot_download(
            checkpoint.name, revision=checkpoint.revision, allow_patterns=patterns, local_files_only=_is_offline()
        )
    except (OSError, hub.HfHubHTTPError, hub.LocalEntryNotFoundError) as error:
        raise InputError(
            f"the weights of {checkpoint.name!r} cannot be fetched ({type(error).__name__}); run "
            f"'hf download {checkpoint.name} --revision {checkpoint.revision}' where there is a network",
            where="--model",
        ) from None
    _require_weights(checkpoint.folder, allow_pickle)


def _needed_bytes(checkpoint: Checkpoint, dtype: str) -> int | None:
    """Bytes of the weights once loaded; None when only pickles could tell."""
    element = None if dtype == "auto" else {"fp32": 4, "bf16": 2, "fp16": 2}[dtype]
    files = sorted(checkpoint.folder.glob("*.safetensors"))
    if files:
        return parameter_bytes((safetensors_header(f) for f in files), element)
    if checkpoint.revision == "local" or _is_offline():
        return None
    import huggingface_hub
    from huggingface_hub import errors as hub

    try:
        remote = huggingface_hub.get_safetensors_metadata(checkpoint.name, revision=checkpoint.revision)
    except (OSError, hub.HfHubHTTPError, hub.NotASafetensorsRepoError):
        return None
    return sum(tensor_bytes(kind, n, element) for kind, n in remote.parameter_count.items())


def pick_device(text: str) -> str:
    """``auto`` is the first GPU if there is one; a missing GPU is an error, not a silent CPU run."""
    import torch

    if text == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if text in ("cpu", "balanced"):
        return text
    name, _, number = text.partition(":")
    if name != "cuda" or not (number or "0").isdigit():
        raise InputError(f"device {text!r} is not auto, cpu, cuda, cuda:N or balanced", where="--device")
    if int(number or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {text!r} is not here: torch sees {torch.cuda.device_count()} GPUs; use --device cpu",
            where="--device",
        )
    return f"cuda:{number or 0}"


def load(checkpoint: Checkpoint, *, dtype: str = "auto", device: str = "auto", allow_pickle: bool = False) -> Loaded:
    """Model and tokenizer of a checkpoint, in evaluation mode and without gradients.

    Parameters
    ----------
    checkpoint : Checkpoint
        From `find`.
    dtype : str
        ``auto`` (as stored) or a key of `DTYPES`.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:N``, or ``balanced`` (spread by accelerate).
    allow_pickle : bool
        Read pickled weights where there is no safetensors file.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, ["auto", *DTYPES], where="--dtype")
    place = pick_device(device)
    needed = _needed_bytes(checkpoint, dtype)
    if needed is not None and place != "balanced":
        check_memory(needed, free_bytes(place), place)
    fetch_weights(checkpoint, allow_pickle=allow_pickle)
    tokenizer = _tokenizer(checkpoint)
    model = _model(checkpoint, dtype, place, allow_pickle)
    return Loaded(checkpoint, model, tokenizer, place, str(model.dtype).removeprefix("torch."))


def _tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False, local_files_only=True)
    # What the libraries raise on a file of somebody else's is whatever its parsers raise, a bare Exception too.
    except Exception as error:  # noqa: BLE001
        raise InputError(
            f"{checkpoint.name} has no tokenizer that can be read without running its code: {first_line(error)}",
            where="--model",
        ) from None


def _model(checkpoint: Checkpoint, dtype: str, place: str, allow_pickle: bool) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    kind: torch.dtype | str = "auto" if dtype == "auto" else getattr(torch, DTYPES[dtype])
    spread: dict[str, Any] = {}
    if place == "balanced":
        if find_spec("accelerate") is None:
            raise InputError(
                "balanced needs accelerate; run 'pip install accelerate', or name one device", where="--device"
            )
        spread["device_map"] = "balanced"
    try:
        # With the loading info it answers a pair, which its annotation does not say.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint.folder,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `_require_all` refuses them by name
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=None if allow_pickle else True,
            dtype=kind,
            **spread,
        )
        model, told = loaded
    except MemoryError:
        raise
    # As for the tokenizer: whatever a malformed config or weight file makes transformers raise.
    except Exception as error:  # noqa: BLE001
        text = first_line(error)
        if "trust_remote_code" in str(error):
            text = "it needs code of its own repository, which is never run; choose a model transformers knows"
        raise InputError(f"{checkpoint.name} cannot be loaded: {text}", where="--model") from None
    _require_all(checkpoint.name, told)
    if place != "balanced":
        try:
            model.to(place)
        except torch.OutOfMemoryError:
            raise InputError(
                f"{checkpoint.name} does not fit on {place}; try --dtype bf16 or --device cpu", where="--device"
            ) from None
    return model.eval().requires_grad_(False)


def _require_all(name: str, told: dict[str, Any]) -> None:
    """Refuse a model whose weights were not all read: transformers leaves random ones where names do not meet."""
    for key, what, why in (
        ("missing_keys", "lacks", "its layers would have random weights"),
        ("unexpected_keys", "holds", "which the model of its config.json has no place for"),
        ("mismatched_keys", "holds", "in another shape than config.json says"),
    ):
        found = sorted(str(k[0] if isinstance(k, tuple) else k) for k in told.get(key) or ())
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise InputError(f"{name} {what} {found[0]!r}{more}, {why}; fetch it again, or mend it", where="--model")


def first_line(error: Exception) -> str:
    """First line of what an error says, with the next where that says what; or its name."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def quieten() -> None:
    """Keep transformers' bars and advice off the terminal; errors still speak."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def use_threads(threads: int) -> int:
    """Let torch use so many CPU threads, or with 0 as many as it would; their number, on which last digits depend."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    return torch.get_num_threads()
