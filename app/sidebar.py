"""The sidebar: the scenario that every page shares."""

from __future__ import annotations

import streamlit as st

from app import composer, own, state
from simulator.api import ShadowlineError
from simulator.base.dtypes import AUTO, FORMATS, KV_FORMATS
from simulator.base.glossary import TERMS
from simulator.device.catalogue import list_devices
from simulator.model.hub import list_models
from simulator.roofline.engine import load_engines
from simulator.scenario.catalogue import CATALOGUE
from simulator.scenario.fields import FIELDS, MAX_BATCH, MAX_TOKENS

BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)
PROMPTS = tuple(round(16 * 2 ** (i / 2)) for i in range(33))
OUTPUTS = tuple(round(16 * 2 ** (i / 2)) for i in range(21))


def draw() -> None:
    """All widgets of the scenario."""
    with st.sidebar:
        st.subheader("Scenario", help="All pages share it, and the address bar holds it: copy the link to share.")
        _names()
        composer.compose()
        _size("batch", "Batch [sequences]", BATCHES, MAX_BATCH, TERMS["batch"])
        _size("prompt_tokens", "Prompt [tokens]", PROMPTS, MAX_TOKENS, _about("prompt_tokens"))
        _size("output_tokens", "Output [tokens]", OUTPUTS, MAX_TOKENS, _about("output_tokens"))
        with st.expander("GPUs, formats and engine"):
            _more()
        with st.expander("Own model"):
            own.model()


def _about(field: str) -> str:
    text = FIELDS[field].about.help
    return text[0].upper() + text[1:] + "."


def _names() -> None:
    models, devices = list(list_models()), list(list_devices())
    for key, options in (("model", models), ("device", devices)):
        # A folder, file or hub id from a link or typed here is an option like the others.
        if st.session_state[key] not in options:
            options.append(st.session_state[key])
    st.selectbox(
        "Model",
        models,
        index=None,
        key="model",
        bind="query-params",
        accept_new_options=True,
        required=True,
        help="A bundled model; or type a folder, a config.json or a hub id (org/name), whose config is then fetched"
        " from huggingface.co.",
    )
    wanted = st.session_state.get("ask_hub")
    if wanted:
        st.button(f"Fetch {wanted} from huggingface.co", on_click=_fetch, args=(wanted,), icon=":material/download:")
    st.selectbox(
        "Device",
        devices,
        index=None,
        key="device",
        bind="query-params",
        required=True,
        help="A GPU profile; duplicate and edit one below. Every number's source is on the Devices page.",
    )


def _fetch(name: str) -> None:
    try:
        CATALOGUE.model(name)
    except ShadowlineError as error:
        st.session_state.notes = [str(error)]
    else:
        state.put(model=name)
        st.session_state.pop("ask_hub")


def _size(key: str, label: str, stops: tuple[int, ...], most: int, about: str) -> None:
    """A number with a slider over usual values beneath; the number is the truth."""
    st.number_input(
        label, 1, most, 1 if key == "batch" else FIELDS[key].default, 1, key=key, bind="query-params", help=about
    )
    slider, value = f"{key}.slider", st.session_state[key]
    st.session_state[slider] = value
    st.select_slider(
        f"{label}: usual values",
        sorted({*stops, value}),
        key=slider,
        label_visibility="collapsed",
        on_change=_slid,
        args=(key, slider),
    )


def _slid(key: str, slider: str) -> None:
    st.session_state[key] = st.session_state[slider]


def _more() -> None:
    for key in ("tp", "pp", "ep", "dp_attention"):
        st.number_input(_about(key).rstrip("."), 1, 1024, 1, 1, key=key, help=FIELDS[key].flag, bind="query-params")
    engines = sorted(load_engines())
    start = engines.index("vllm")
    st.selectbox(
        "Engine",
        engines,
        start,
        key="engine",
        help=_about("engine"),
        bind="query-params",
        accept_new_options=True,  # a release is written: vllm@0.11
    )
    for key, label, formats in (("dtype", "Weights", FORMATS), ("kv_cache_dtype", "KV cache", KV_FORMATS)):
        # Groups of modules are written: experts=nvfp4,attention=bf16.
        written = key == "dtype"
        about = _about(key)
        st.selectbox(label, [AUTO, *formats], key=key, help=about, bind="query-params", accept_new_options=written)
    key = "gpu_memory_utilization"
    st.number_input(
        "Share of memory for the engine", 0.05, 1.0, None, 0.01, "%.2f", key, _about(key), bind="query-params"
    )
    for key, label in (
        ("max_num_seqs", "Sequences at once"),
        ("max_num_batched_tokens", "Tokens of one step"),
        ("max_model_len", "Longest sequence"),
    ):
        most = int(FIELDS[key].about.bounds["le"])
        st.number_input(label, 1, most, None, 1, key=key, help=_about(key), bind="query-params")
    key = "block_size"
    st.number_input("Tokens per KV page", 1, 1024, 16, 1, key=key, help=_about(key), bind="query-params")
    key = "images"
    st.number_input("Images in each prompt", 0, 10_000, 0, 1, key=key, help=_about(key), bind="query-params")
    key = "text_only"
    st.toggle("Leave the vision tower out", key=key, help=_about(key), bind="query-params")
    key = "ignore_context_limit"
    st.toggle("Predict beyond the model's context", key=key, help="As EXTRAPOLATED.", bind="query-params")
    st.text_input(
        "Folder of a measured trace",
        key="trace",
        max_chars=500,
        placeholder="none: published curves",
        help=_about("trace"),
        bind="query-params",
    )
    key = "trace_transfer"
    st.toggle("Use a trace of another model", key=key, help=_about(key), bind="query-params")
