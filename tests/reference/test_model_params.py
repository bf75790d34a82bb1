"""Parameter totals as published, each with its source, against counts from the bundled configs."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest

from simulator.model import hub

# A total published in rounded form ("20B", "1.04T") is off by up to half of its last digit.
ROUNDED = 0.015


def facts(name: str) -> dict[str, Any]:
    return json.loads((files("hw_profiles") / "models" / f"{name}.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("name", "total"),
    [
        # Written here too, so that a changed profile cannot carry its own proof along.
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-2-70b", 68_976_648_192),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
        ("llama-3.1-405b", 405_853_388_800),
        ("opt-30b", 29_974_540_288),
        ("mistral-7b-v0.1", 7_241_732_096),
        ("mixtral-8x7b", 46_702_792_704),
        ("mixtral-8x22b", 140_620_634_112),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("gemma-2-9b", 9_241_705_984),
        ("phi-3-mini-4k", 3_821_079_552),
        ("glm-4-9b", 9_399_951_360),
        ("deepseek-v2", 235_741_434_880),
        ("deepseek-v2-lite", 15_706_484_224),
        ("gpt-oss-20b", 20_914_757_184),
        ("gpt-oss-120b", 116_829_156_672),
        ("gpt-neox-20b", 20_554_567_680),
        ("bloom-176b", 176_247_271_424),
        ("gpt2", 124_439_808),
    ],
)
def test_exact_total(name: str, total: int) -> None:
    assert hub.find_model(name).n_params == total


@pytest.mark.parametrize("name", hub.list_models())
def test_published_total(name: str) -> None:
    published = hub.published_params(name)
    if published is None:
        pytest.skip("the publisher states no total beyond the name")
    total, exact, source = published
    where = f"hw_profiles/models/{name}.json: "
    assert source, f"{where}_published_source is empty; say where the total stands"
    counted = hub.find_model(name).n_params
    differs = f"{where}its shape has {counted:,} parameters, _published_params says {total:,}"
    if exact:
        hint = "a size, a bias or tie_word_embeddings is wrong; where the total is rounded leave out _published_exact"
        assert counted == total, f"{differs}; {hint}"
    else:
        assert counted == pytest.approx(total, rel=ROUNDED), f"{differs}, more than {ROUNDED:.1%} apart"


@pytest.mark.parametrize("name", hub.list_models())
def test_profile_states_its_source(name: str) -> None:
    config = facts(name)
    where = f"hw_profiles/models/{name}.json: "
    assert config.get("_source"), f"{where}_source is missing; the address of the config.json"
    both = ("_published_params" in config) == ("_published_source" in config)
    assert both, f"{where}_published_params and _published_source go together"
    assert name == name.casefold(), f"{where}the file's name must be in lower case"
