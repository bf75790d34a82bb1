"""The visitor's own model, device and trace: parsed, never executed, and kept in their data folder."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import streamlit as st

from app import state, words
from simulator.api import Device, InputError, ShadowlineError
from simulator.device.catalogue import edited, list_devices, to_toml, user_data_dir
from simulator.device.file import parse_profile
from simulator.model.hub import from_file, list_models
from simulator.scenario.catalogue import CATALOGUE
from simulator.trace import read_trace

MOST_CONFIG_BYTES = 1_000_000
MOST_PROFILE_BYTES = 200_000
MOST_TRACE_MB = 16
_TRACE_FILES = ("manifest.json", "curves.parquet", "neurons.parquet", "quality.parquet")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,60}\Z")


def model() -> None:
    """Paste or upload a ``config.json`` and use it."""
    name = st.text_input("Name", key="own.name", placeholder="my-llama", max_chars=61)
    st.text_area(
        "Paste a Hugging Face config.json",
        key="own.text",
        max_chars=MOST_CONFIG_BYTES,
        height=120,
        placeholder='{"architectures": ["LlamaForCausalLM"], ...}',
    )
    upload = st.file_uploader("or upload it", "json", key="own.file", max_upload_size=1)
    content = upload.getvalue() if upload else st.session_state["own.text"].encode()
    st.button("Use this model", on_click=_use_model, args=(name, content), disabled=not content)
    told("own.model_note")


def _use_model(name: str, content: bytes) -> None:
    try:
        path = save_model(name, content)
    except ShadowlineError as error:
        st.session_state["own.model_note"] = ("error", f"{error} Nothing was changed.")
        return
    state.put(model=str(path))
    st.session_state["own.model_note"] = ("success", f"{CATALOGUE.model(str(path)).name} is read; it lies in {path}.")


def save_model(name: str, content: bytes) -> Path:
    """Folder of the config in the user's data, read back once to be sure.

    Raises
    ------
    InputError
        A bad or taken name, too many bytes, or a config that cannot be understood.
    """
    name = check_name(name, list_models(), "own-llama")
    if len(content) > MOST_CONFIG_BYTES:
        raise InputError(f"The config has {len(content) / 1e6:.1f} MB; at most 1 MB.")
    folder = user_data_dir() / "models" / name
    if (folder / "config.json").is_file() and (folder / "config.json").read_bytes() == content:
        return folder
    if folder.exists():
        raise InputError(f"{name!r} was saved before with other content; choose another name.")
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / name
        draft.mkdir()
        (draft / "config.json").write_bytes(content)
        try:
            from_file(draft)
        except ShadowlineError as error:
            raise InputError(str(error).replace(str(draft) + "/", "").replace(str(draft), name)) from None
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(draft, folder)
    return folder


def check_name(name: str, taken: tuple[str, ...], example: str) -> str:
    """`name` in lower case where it can be a file's and is nobody else's."""
    name = name.strip().lower()
    if not _NAME.match(name):
        raise InputError(f"The name {name[:60]!r} needs letters, digits, '-', '_' or '.', e.g. {example}.")
    if name in taken:
        raise InputError(f"{name!r} is taken; choose another name, e.g. {name}-mine.")
    return name


def renamed(device: Device, name: str, values: dict[str, str]) -> str:
    """Profile text of `device` under another name with some numbers changed."""
    copy = edited(device, values) if values else device
    note = f"edited copy of {device.name}"
    return to_toml(replace(copy, name=name, aliases=(), matches=(), note=note))


def save_device(name: str, text: str) -> Path:
    """Profile file in the user's data, checked as any other.

    Raises
    ------
    InputError
        A bad or taken name, too many bytes, or every problem of the profile with its line.
    """
    name = check_name(name, list_devices(), "h100-mine")
    if len(text) > MOST_PROFILE_BYTES:
        raise InputError(f"The profile has {len(text) / 1e3:.0f} kB; at most 200 kB.")
    # Halves of characters cannot be written; the parser says where they stand.
    content = text.encode("utf-8", "surrogatepass")
    found = parse_profile(content, f"{name}.toml")
    if found.name != name:
        raise InputError(f"The profile's name is {found.name!r}; write name = {name!r} or use that name.")
    path = user_data_dir() / "devices" / f"{name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def told(key: str) -> None:
    """Note of the last action, once."""
    kind, text = st.session_state.pop(key, ("", ""))
    if kind:
        getattr(st, kind)(words.plain(text))


def traces() -> Path:
    """Folder of the uploaded traces."""
    return user_data_dir() / "traces"


def save_trace(contents: dict[str, bytes]) -> Path:
    """Folder of an uploaded trace, every table checked against its manifest before it is kept.

    Raises
    ------
    InputError
        Files of other names, too many bytes, or a trace that cannot be read.
    """
    for name in contents:
        if name not in _TRACE_FILES:
            raise InputError(f"{name!r} is no file of a trace; they are {', '.join(_TRACE_FILES)}")
    if "manifest.json" not in contents:
        raise InputError("manifest.json is missing; upload all files of the trace's folder together")
    size = sum(map(len, contents.values()))
    if size > MOST_TRACE_MB * 2**20:
        raise InputError(f"{size / 2**20:.0f} MiB; at most {MOST_TRACE_MB}")
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / "trace"
        draft.mkdir()
        for name, content in contents.items():
            (draft / name).write_bytes(content)
        try:
            trace = read_trace(draft)
        except ShadowlineError as error:
            raise InputError(str(error).replace(f"{draft}/", "").replace(str(draft), "the trace")) from None
        label = re.sub(r"[^a-z0-9._-]+", "-", trace.manifest.model.lower()).strip("-.") or "trace"
        folder = traces() / f"{label}-{trace.digest[:8]}"
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(draft, folder)
    return folder
