"""Names mean what their files hold now: an edit answers anew in the same process, what is unchanged is kept."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from simulator.base.errors import InputError
from simulator.base.memo import Memo, stamp, stamp_of_files
from simulator.device.catalogue import load, to_toml
from simulator.inference.group import group_of
from simulator.results.prediction import predict
from simulator.scenario.catalogue import CATALOGUE, Catalogue
from simulator.scenario.scenario import Scenario
from simulator.trace import read_trace, write_trace


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(to_toml(load("h100-sxm")), encoding="utf-8")
    return path


def price(path: Path, usd: float) -> None:
    lines = path.read_text("utf-8").splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("price"))
    lines[at] = f'price = {{ value = "{usd} USD/h", source = "test", kind = "assumed", date = "2026-11-01" }}'
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_an_edited_profile_answers_anew(profile: Path):
    """Cost is rent: twice the price is twice the USD per million tokens, and nothing else moves."""
    scenario = Scenario.of(model="opt-125m", device=str(profile))
    price(profile, 2.0)
    before = predict(scenario).row
    price(profile, 4.0)
    after = predict(scenario).row
    assert after["usd_per_mtoken"] == pytest.approx(2.0 * before["usd_per_mtoken"])
    assert after["ttft_s"] == before["ttft_s"]


def test_a_profile_of_ones_own_that_is_added_stands_for_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SHADOWLINE_HOME", str(tmp_path))
    catalogue = Catalogue()
    shipped = catalogue.device("l40s")
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "l40s.toml").write_text(to_toml(shipped), encoding="utf-8")
    price(tmp_path / "devices" / "l40s.toml", 77.0)
    assert catalogue.device("l40s").price_usd_per_h.value == 77.0
    (tmp_path / "devices" / "l40s.toml").unlink()
    assert catalogue.device("l40s").price_usd_per_h == shipped.price_usd_per_h


def test_an_edited_config_answers_anew(tmp_path: Path):
    """Half the layers hold half the KV."""
    from simulator.model.hub import locate

    config = json.loads(locate("llama-2-7b").file.read_text("utf-8"))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    scenario = Scenario.of(model=str(tmp_path), device="h100-sxm")
    before = predict(scenario).row
    path.write_text(json.dumps({**config, "num_hidden_layers": config["num_hidden_layers"] // 2}), encoding="utf-8")
    after = predict(scenario).row
    assert after["kv_bytes"] == before["kv_bytes"] / 2
    assert after["tpot_s"] < 0.6 * before["tpot_s"]


def test_a_trace_written_again_answers_anew(opt: Path, tmp_path: Path):
    """Half the share of neurons that a step uses reads fewer weights."""
    folder = shutil.copytree(opt, tmp_path / "trace")
    scenario = Scenario.of(
        model="opt-6.7b", device="h100-sxm", batch=8, policy="shadowllm(keep=0.5)", trace=str(folder)
    )
    before, trace = predict(scenario), read_trace(folder)
    curves = {k: v.copy() for k, v in trace.curves.items()}
    curves["value"] = curves["value"] * 0.5
    write_trace(folder, trace.manifest, curves=curves, neurons=trace.neurons, quality=trace.quality)
    after = predict(scenario)
    assert after.trace is not None
    assert before.trace is not None
    assert after.trace["sha256"] != before.trace["sha256"]
    assert after.row["tpot_s"] < before.row["tpot_s"]


def test_what_is_unchanged_is_read_once(profile: Path, opt: Path):
    scenario = Scenario.of(model="opt-6.7b", device=str(profile), trace=str(opt))
    group = group_of(scenario)
    assert group_of(scenario.model_copy(update={"batch": 7, "prompt_tokens": 9})) is group
    assert CATALOGUE.model("OPT 6.7B") is CATALOGUE.model("opt-6.7b")
    assert CATALOGUE.trace(str(opt)) is group.trace
    assert CATALOGUE.content(scenario) == CATALOGUE.content(scenario)
    price(profile, 9.0)
    assert group_of(scenario) is not group
    assert group_of(scenario).model is group.model


def test_a_file_that_goes_is_told(profile: Path):
    CATALOGUE.device(str(profile))
    profile.unlink()
    with pytest.raises(InputError, match="no such device file"):
        CATALOGUE.device(str(profile))


def test_a_stamp_tells_contents_apart(tmp_path: Path):
    a = tmp_path / "a"
    absent = stamp(a)
    a.write_text("one")
    first, folder = stamp(a), stamp_of_files(tmp_path)
    assert first != absent
    os.utime(a, ns=(1, 1))
    assert stamp(a) != first
    assert stamp_of_files(tmp_path) != folder


def test_the_oldest_is_forgotten():
    memo: Memo[int] = Memo(2)
    for key in "abc":
        memo(key, 0, lambda: 1)
    assert memo("b", 0, lambda: 2) == memo("c", 0, lambda: 2) == 1
    assert memo("a", 0, lambda: 2) == 2
    assert memo("a", 1, lambda: 3) == 3
