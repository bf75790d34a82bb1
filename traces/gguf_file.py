"""A GGUF file as a folder of the Hugging Face form: dequantised, or refused where it would be read wrongly."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.base.errors import InputError, UnknownNameError, fold
from traces.loading import DTYPES, first_line
from traces.weights import check_memory, free_bytes

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedTokenizerBase

_EQUAL = {
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "rope.dimension_count": "head_dim",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention.sliding_window": "sliding_window",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
"""Facts of a file that transformers does not read, and the setting that must say the same."""
_GPT2 = ("gpt-2", "olmo")
_DIGITS = ("smollm", "starcoder", "refact", "command-r")
"""Splits of byte-level tokenizers: GPT-2's own, and GPT-2's after every digit stands alone (llama.cpp)."""


@dataclass(frozen=True)
class Written:
    """What a GGUF file held.

    Parameters
    ----------
    architecture : str
        As the file spells it.
    formats : dict of str to int
        Elements of the weights by storage format, most first [-].
    licence : str
        As the file states it, or "".
    """

    architecture: str
    formats: dict[str, int]
    licence: str


def write_folder(file: Path, folder: Path, *, dtype: str = "fp32") -> Written:
    """Write config, tokenizer and dequantised weights of `file` to `folder`, by transformers' own reader.

    Parameters
    ----------
    file : Path
        GGUF file of a causal language model.
    folder : Path
        Exists.
    dtype : str
        A key of `DTYPES`; fp32 holds every format's values exactly.

    Raises
    ------
    InputError
        No GGUF file, an architecture or tokenizer that is not known, or a fact or tensor of the file that would be
        left out.

    References
    ----------
    .. [1] https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    if dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, DTYPES, where="--dtype")
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise InputError(
            f"reading it needs {' and '.join(missing)}; run pip install 'shadowline[gguf]'", where=str(file)
        )
    reader = _reader(file)
    elements = sum(int(t.n_elements) for t in reader.tensors)
    check_memory(elements * (4 if dtype == "fp32" else 2), free_bytes("cpu"), "cpu")
    _check_split(reader, file)
    _load(file, reader, folder, dtype)
    formats: Counter[str] = Counter()
    for tensor in reader.tensors:
        formats[tensor.tensor_type.name] += int(tensor.n_elements)
    return Written(_value(reader, "general.architecture"), dict(formats.most_common()), _licence(reader))


def _reader(file: Path) -> GGUFReader:
    from gguf import GGUFReader

    try:
        with file.open("rb") as stream:
            magic = stream.read(4)
        if magic != b"GGUF":
            raise InputError("is no GGUF file: it does not begin with GGUF", where=str(file))
        return GGUFReader(file)
    except (OSError, ValueError, IndexError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot be read as GGUF ({first_line(error)}); download it again", where=str(file)) from None


def _value(reader: GGUFReader, key: str, default: Any = "") -> Any:
    field = reader.get_field(key)
    return default if field is None else field.contents()


def _licence(reader: GGUFReader) -> str:
    return str(_value(reader, "general.license.name") or _value(reader, "general.license"))


def _check_split(reader: GGUFReader, file: Path) -> None:
    parts = int(_value(reader, "split.count", 1))
    if parts > 1:
        raise InputError(f"is one of {parts} parts; join them with llama-gguf-split --merge", where=str(file))


def _load(file: Path, reader: GGUFReader, folder: Path, dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # transformers draws a bar for GGUF files whatever its verbosity.
    quiet = contextlib.redirect_stderr(io.StringIO())
    try:
        with quiet:
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                dtype=getattr(torch, DTYPES[dtype]),
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, NotImplementedError, TypeError) as error:
        raise InputError(f"transformers cannot read it: {first_line(error)}", where=str(file)) from None
    model, info = loaded
    _check_split_of_text(tokenizer, reader, file)
    _check_facts(model.config, reader, file)
    _check_tensors(model, info, reader, file)
    # The weights are plain numbers now, whatever they were stored as.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _check_split_of_text(tokenizer: PreTrainedTokenizerBase, reader: GGUFReader, file: Path) -> None:
    """Byte-level tokenizers must split text as their merges were learned; a file only names the way."""
    kind, way = _value(reader, "tokenizer.ggml.model"), _value(reader, "tokenizer.ggml.pre")
    if kind != "gpt2":
        return
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS as known
    except ImportError:
        known = {}
    if way in _DIGITS:
        from tokenizers import pre_tokenizers

        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[attr-defined]
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    elif way not in (*known, *_GPT2):
        raise InputError(
            f"its tokenizer splits text by {way or 'no named rule'!r}, which is not known here; take the model from"
            " the hub",
            where=str(file),
        )


def _check_facts(config: Any, reader: GGUFReader, file: Path) -> None:
    """Refuse a fact of the architecture that the config does not hold."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    architecture = _value(reader, "general.architecture")
    read = next((keys for name, keys in GGUF_CONFIG_MAPPING.items() if fold(name) == fold(architecture)), None)
    if read is None:
        return  # An architecture with a reader of its own in transformers, which takes every key by name.
    for key in sorted(reader.fields):
        fact = key.removeprefix(f"{architecture}.")
        if fact == key or read.get(fact) is not None:
            continue
        value = _value(reader, key)
        if fact == "rope.scaling.type" and value == "none":
            continue
        setting = _EQUAL.get(fact, "")
        held = getattr(config, setting, None) if setting else None
        if setting == "head_dim" and held is None:
            held = config.hidden_size // config.num_attention_heads
        if held is None or held != value:
            raise InputError(
                f"says {key} = {value}, which transformers does not read (its config has {held}); take the model from"
                " the hub",
                where=str(file),
            )


def _check_tensors(model: Any, info: Any, reader: GGUFReader, file: Path) -> None:
    """Every element of the file is in the model, and every weight of the model came from the file."""
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(f"has no {missing[0]} ({len(missing)} weights are missing)", where=str(file))
    there = sum(int(t.n_elements) for t in reader.tensors)
    taken = sum(p.numel() for p in model.parameters())
    if there != taken:
        odd = [t.name for t in reader.tensors if not t.name.startswith(("blk.", "token_embd", "output"))]
        hint = f", as {odd[0]}" if odd else ""
        raise InputError(
            f"holds {there:,} weights of which the model takes {taken:,}: transformers leaves out some{hint}; take the"
            " model from the hub",
            where=str(file),
        )
