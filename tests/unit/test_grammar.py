"""The policy mini-language: one spelling per policy, and an answer to every typo."""

from __future__ import annotations

import itertools
import time

import pytest

from simulator.base.errors import InputError, UnknownNameError
from simulator.policies import POLICIES, expand, parse

CANONICAL = {
    "dense": "dense",
    " dense ": "dense",
    "mustafar": "mustafar(keep=0.3)",
    "mustafar()": "mustafar(keep=0.3)",
    "Mustafar( keep = .50 )": "mustafar(keep=0.5)",
    "mustafar(keep=3e-1)": "mustafar(keep=0.3)",
    "mustafar(window=32,keep=0.3)": "mustafar(keep=0.3)",
    "mustafar(window=64,keep=0.3)": "mustafar(keep=0.3,window=64)",
    "shadowllm": "shadowllm(keep=0.5)",
    "shadow-llm(keep=1)": "shadowllm(keep=1)",
    "quest": "quest(budget=2048)",
    "kv_quant": "kv_quant(bits=4)",
    "KV-Quant(bits=2)": "kv_quant(bits=2)",
    "w4a16": "w4a16",
    "w4a16(group=64)": "w4a16(group=64)",
    "streaming_llm(window=100)": "streaming_llm(window=100)",
}


@pytest.mark.parametrize(("text", "spelling"), CANONICAL.items())
def test_canonical_spelling(text: str, spelling: str) -> None:
    assert parse(text).spelling == spelling


def test_every_spelling_reads_back_as_itself() -> None:
    for name in POLICIES:
        spelling = parse(name).spelling
        assert parse(spelling).spelling == spelling
        assert parse(spelling) == parse(name)


def test_plus_is_free_of_order() -> None:
    """All six orders of three policies are one policy with one spelling."""
    parts = ("mustafar(keep=0.3)", "w4a16", "quest(budget=1024)")
    made = {parse("+".join(order)) for order in itertools.permutations(parts)}
    assert len(made) == 1
    assert len({p.spelling for p in made}) == 1


def test_a_format_compresses_what_eviction_and_selection_leave() -> None:
    """Otherwise a bounded cache would be read at the bytes of the unbounded one."""
    names = [p.name for p in parse("kv_quant+streaming_llm+quest+w4a16").members]
    assert names == ["w4a16", "streaming_llm", "quest", "kv_quant"]


def test_lists_multiply_in_the_order_written() -> None:
    found = [p.spelling for p in expand("mustafar(keep=[0.3,0.5],window=[0,32])")]
    assert found == [
        "mustafar(keep=0.3,window=0)",
        "mustafar(keep=0.3)",
        "mustafar(keep=0.5,window=0)",
        "mustafar(keep=0.5)",
    ]
    assert len(expand("quest(budget=[64,128])+w4a16(group=[64,128])")) == 4


BAD = {
    "": "empty part",
    "+": "empty part",
    "w4a16+": "empty part",
    "mustafar(keep=0.3": "brackets do not match",
    "mustafar)keep=0.3(": "brackets do not match",
    "mustafar(keep=[0.3,0.5)": "brackets",
    "mustafar(keep)": "write key=value",
    "mustafar(keep=)": "write key=value",
    "mustafar(=0.3)": "write key=value",
    "mustafar(0.3)": "write key=value",
    "mustafar(kep=0.3)": "did you mean 'keep'",
    "mustafar(zzz=1)": "it has: keep, keep_v, window, kernel, fallback",
    "dense(keep=1)": "it has none",
    "mustafar(keep=0.3,keep=0.4)": "given twice",
    "mustafar(keep=1.5)": "mustafar: keep=1.5: Input should be less than or equal to 1",
    "mustafar(keep=0)": "greater than 0",
    "mustafar(keep=nan)": "finite",
    "mustafar(keep=inf)": "",
    "mustafar(keep=lots)": "number",
    "mustafar(keep=X)": "number",
    "kv_quant(bits=5)": "'2', '3', '4' or '8'",
    "quest(budget=0)": "16",
    "quest(budget=2.5)": "integer",
    "mustafar(keep=[])": "",
    "dense+w4a16": "dense cannot be combined",
    "w4a16+nm24": "both rewrite the weight format",
    "mustafar+kv_quant": "both rewrite the KV format",
    "dejavu+shadowllm": "both rewrite the weight rows",
    "w4a16+w4a16": "both rewrite",
    "mustafar keep=0.3": "write name(key=value",
    "w4a16;rm -rf": "write name(key=value",
}


@pytest.mark.parametrize(("text", "words"), BAD.items())
def test_bad_text_is_one_line_that_says_what_to_do(text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(text)
    said = str(caught.value)
    assert words in said
    assert said.startswith("--policy: ")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("text", "meant"), [("mustafa", "mustafar"), ("shadowlm", "shadowllm"), ("deja-vue", "dejavu")]
)
def test_a_typo_in_the_name_gets_the_nearest(text: str, meant: str) -> None:
    with pytest.raises(UnknownNameError, match=f"did you mean '{meant}'"):
        parse(text)


@pytest.mark.parametrize("text", ["müstafar", "密集", "mustafar\uff08keep=0.3\uff09", "😀", "a\x00b", "w4a16\n\n+"])
def test_unicode_and_control_characters_are_refused_not_crashed_on(text: str) -> None:
    with pytest.raises(InputError):
        parse(text)


def test_huge_input_is_refused_at_once() -> None:
    start = time.perf_counter()
    for text in (
        "w4a16+" * 100_000,
        "(" * 1_000_000,
        "mustafar(keep=[" + ",".join(["0.5"] * 400) + "])+quest(budget=[" + "64," * 200 + "64])",
        "mustafar(keep=[0.1,0.2,0.3,0.4],window=[" + ",".join(map(str, range(400))) + "])",
    ):
        with pytest.raises(InputError, match="at most"):
            expand(text)
    assert time.perf_counter() - start < 2.0


def test_one_policy_is_asked_for_where_a_list_makes_no_sense() -> None:
    with pytest.raises(InputError, match="spells 2 policies"):
        parse("mustafar(keep=[0.3,0.5])")


def test_every_policy_says_what_it_is() -> None:
    for name, cls in POLICIES.items():
        assert cls.name == name
        assert cls.summary
        assert cls.__doc__
        if name != "dense":
            assert cls.citation
            assert cls.aspects
        for field in cls.model_fields.values():
            assert field.description
