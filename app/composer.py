"""The policy composer: choose methods, set their own parameters; the text of the policy is the truth."""

from __future__ import annotations

from typing import Any, get_args

import streamlit as st

from app import words
from simulator.api import Policy, ShadowlineError
from simulator.policies import IDEAL, POLICIES, PUBLISHED, Policies, parse
from simulator.policies.card import Parameter

NAMES = "composer.names"


def compose() -> None:
    """Widgets for the policies in ``st.session_state.policy``; a change rewrites that text."""
    current = _current()
    st.session_state[NAMES] = [m.name for m in current.members]
    st.multiselect(
        "Sparsity policies",
        [n for n in POLICIES if n != "dense"],
        key=NAMES,
        format_func=_label,
        on_change=_names_changed,
        placeholder="none: the dense model",
        help="Methods to apply together; none is the dense model. Two that rewrite the same thing are refused.",
    )
    clash = st.session_state.pop("composer.clash", "")
    if clash:
        st.warning(words.plain(clash), icon=":material/block:")
    for member in current.members:
        if type(member).model_fields:
            with st.expander(f"{member.name} parameters", expanded=len(current.members) == 1):
                st.caption(member.summary[0].upper() + member.summary[1:] + ".")
                told = [n for n in type(member).model_fields if _is_told(member, n)]
                rest = [n for n in type(member).model_fields if n not in told]
                for name in told:
                    _parameter(member, name)
                if rest:
                    with st.popover("More parameters", type="tertiary"):
                        for name in rest:
                            _parameter(member, name)
    st.text_input(
        "Policy as text",
        "dense",
        key="policy",
        bind="query-params",
        max_chars=2000,
        on_change=_text_changed,
        help="As on the command line: name(key=value,...) joined by +. Code writes keep = 1 - sparsity.",
    )
    known = _kernels(current)
    _keep_kernel(known)
    st.selectbox(
        "Kernel",
        known,
        key="kernel",
        bind="query-params",
        disabled=len(known) == 1,
        help="Whose kernel is timed; ideal is the bound of any. The policies' page lists each with its evidence.",
    )


def _kernels(policies: Policies) -> list[str]:
    """What can be chosen: the published kernel, the others by name, and the bound."""
    names = dict.fromkeys(k.name for p in policies.members for k in p.kernels())
    return [PUBLISHED, *names, IDEAL] if names else [PUBLISHED]


def _keep_kernel(known: list[str]) -> None:
    """Another policy has other kernels."""
    if st.session_state.get("kernel") not in known:
        st.session_state.kernel = PUBLISHED


def _is_told(member: Policy, name: str) -> bool:
    """Whether the canonical spelling names the parameter."""
    return name in member.always_shown or getattr(member, name) != type(member).model_fields[name].default


def _label(name: str) -> str:
    return f"{name} · {POLICIES[name].family}"


def _current() -> Policies:
    try:
        return parse(st.session_state.policy)
    except ShadowlineError:
        return parse(st.session_state.good.policy)


def _accept(text: str) -> None:
    """Make `text` the policy, or say why not."""
    try:
        found = parse(text)
        st.session_state.policy = found.spelling
        _keep_kernel(_kernels(found))
    except ShadowlineError as error:
        st.session_state["composer.clash"] = f"{error.message}. Nothing was changed."


def _names_changed() -> None:
    kept = {m.name: m.spelling for m in _current().members}
    names: list[str] = st.session_state[NAMES]
    _accept("+".join(kept.get(n, n) for n in names) or "dense")


def _text_changed() -> None:
    """A typed policy that cannot be read is told by `state.settle`; one that can is spelled canonically."""
    try:
        st.session_state.policy = parse(st.session_state.policy or "dense").spelling
    except ShadowlineError as error:
        st.session_state["composer.clash"] = f"{error.message}. The last policy is used."
        st.session_state.policy = st.session_state.good.policy


def _parameter_changed(policy: str, parameter: str, key: str, sparsity: bool) -> None:
    value = st.session_state[key]
    if sparsity:
        value = round(1.0 - value / 100.0, 4)
    members = []
    for member in _current().members:
        if member.name != policy:
            members.append(member.spelling)
            continue
        given = {k: getattr(member, k) for k in type(member).model_fields}
        given[parameter] = value
        # A share and its schedule over depth: whichever was touched says both.
        given = {k: v for k, v in given.items() if {k, parameter} != {"keep", "depth"}}
        members.append(f"{policy}({','.join(_pair(k, v) for k, v in given.items() if _told(v))})")
    _accept("+".join(members))


def _told(value: Any) -> bool:
    return value is not None and value != ""


def _pair(key: str, value: Any) -> str:
    return f"{key}={str(value).lower() if isinstance(value, bool) else value}"


def _parameter(member: Policy, name: str) -> None:
    """One widget, by the parameter's type and bounds."""
    info = type(member).model_fields[name]
    value, key = getattr(member, name), f"policy.{member.name}.{name}"
    about = f"{info.description or name}; {name}={value} on the command line, default {info.default}"
    kinds = [a for a in get_args(info.annotation) if a is not type(None)] or [info.annotation]
    optional = type(None) in get_args(info.annotation)
    own = Parameter.of(name, info)
    label = name.replace("_", " ")
    common = {"key": key, "help": about, "on_change": _parameter_changed}
    if name.endswith("keep") and float in kinds and not optional:
        st.session_state[key] = round(100.0 * (1.0 - value), 2)
        label = label.replace("keep", "sparsity")
        common["args"] = (member.name, name, key, True)
        st.slider(f"{label} [%]", 0.0, 99.5, step=0.5, format="%g", **common)
        return
    common["args"] = (member.name, name, key, False)
    st.session_state[key] = value
    if own.choices:
        st.selectbox(label, own.choices, **common)
    elif info.annotation is bool:
        st.toggle(label, **common)
    elif info.annotation is str:
        st.text_input(label, **common)
    elif int in kinds:
        least, most = (None if bound is None else int(bound) for bound in (own.low, own.high))
        st.number_input(label, least, most, None, 1, **common)
    else:
        st.number_input(label, own.low, own.high, None, 0.05, format="%g", **common)
