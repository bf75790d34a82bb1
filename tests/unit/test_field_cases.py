"""The command that asks publicly reported cases again: its commands answer, figures and signs by hand."""

import csv
import importlib.util
import sys
import tomllib
from pathlib import Path

import pytest

from simulator.base.interval import Interval

HERE = Path(__file__).parents[1] / "benchmarks"
spec = importlib.util.spec_from_file_location("field_cases", HERE / "field.py")
assert spec is not None
assert spec.loader is not None
field = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = field
spec.loader.exec_module(field)

PREDICT = "python -m simulator.predict --model llama-3.1-8b --device h100-sxm --isl 512 --osl 128 --batch 4"


def case(metric: str, measured: str, command: str = PREDICT, **more: str):
    empty = {"name": "X", "kind": "3 sparsity", "before": "", "before_lo": "", "before_hi": "", "setup": "s"}
    return field.Case(**{**empty, "metric": metric, "measured": measured, "command": command, **more})


@pytest.mark.parametrize("name", tomllib.loads((HERE / "field.toml").read_text("utf-8")))
def test_every_closer_command_answers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE.parents[1])
    entry = tomllib.loads((HERE / "field.toml").read_text("utf-8"))[name]
    assert entry["why"]
    for command in (entry.get("command"), entry.get("against")):
        if command is not None:
            answer, told = field.ask(command)
            assert answer is not None, told
            assert answer["rows"]


def test_figures_of_one_answer_by_hand() -> None:
    row = {"batch": 4, "prompt_tokens": 512, "output_tokens": 11}
    row |= {"ttft_s": 1.0, "ttft_lo_s": 0.5, "ttft_hi_s": 2.0, "tpot_s": 0.1, "tpot_lo_s": 0.05, "tpot_hi_s": 0.2}
    row |= {"tpot_speedup": 2.0, "tpot_speedup_lo": 1.5, "tpot_speedup_hi": 2.5, "weights_bytes": 2.0**31}
    found = {
        metric: tuple(field.FIGURES[metric](row)) for metric in ("ttft_ms", "e2e_s", "tps", "decode_tps", "pp_tps")
    }
    assert found["ttft_ms"] == (1000.0, 500.0, 2000.0)
    assert found["e2e_s"] == (2.0, 1.0, 4.0)
    assert found["tps"] == (22.0, 11.0, 44.0)
    assert found["decode_tps"] == pytest.approx((40.0, 20.0, 80.0))
    assert found["pp_tps"] == (2048.0, 1024.0, 4096.0)
    assert tuple(field.FIGURES["tpot_speedup"](row)) == (2.0, 1.5, 2.5)
    assert field.FIGURES["weights_gib"](row).mid == 2.0


def test_a_sign_an_interval_and_a_fifth_decide_what_is_right() -> None:
    for measured, mid, right in ((1.5, 2.8, True), (0.9, 0.2, True), (1.0, 1.01, True), (1.0, 1.2, False)):
        assert field._right(case("thr_speedup", ""), Interval.exact(mid), measured) is right
    assert field._right(case("ttft_ms", ""), Interval(10.0, 5.0, 30.0), 29.0)
    assert not field._right(case("ttft_ms", ""), Interval(10.0, 5.0, 30.0), 31.0)
    assert field._right(case("kv_tokens", ""), Interval.exact(119.0), 100.0)
    assert not field._right(case("kv_tokens", ""), Interval.exact(121.0), 100.0)
    assert not field._right(case("ttft_ms", ""), None, 1.0)


def test_a_case_is_asked_as_a_user_would() -> None:
    """Twice against itself is even; what an answer must say is looked for; a bad command is one line, and wrong."""
    dense = field.outcome(case("tpot_speedup", "1.0", against=PREDICT))
    assert dense.right
    assert dense.now.mid == 1.0
    nm24 = f"{PREDICT} --policy nm24"
    assert field.outcome(case("thr_speedup", "", nm24, says="vLLM dropped nm24")).right
    assert field.outcome(case("thr_speedup", "", nm24, says="vLLM runs nm24")).right is False
    wrong = field.outcome(case("thr_speedup", "1.0", PREDICT.replace("h100-sxm", "h1000")))
    assert (wrong.right, wrong.now) == (False, None)
    assert "unknown device" in wrong.told
    assert field.outcome(case("tps", "", PREDICT)).right is None


def test_cases_are_read_with_their_closer_commands(tmp_path: Path) -> None:
    heads = ["id", "kind", "metric", "measured", "setup", "closest_command_2026_11_30", "predicted_2026_11_30"]
    with (tmp_path / "field_cases.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*heads, "lo90", "hi90"])
        table.writerow(["P09", "3 sparsity", "thr_speedup", "0.6", "s", "python -m simulator predict", "1.2", "", ""])
        table.writerow(["M01", "1 memory", "weights_gib", "1", "s", PREDICT, "", "", ""])
    (one,) = field.read_cases(tmp_path, "sparsity")
    assert one.command.startswith("python -m simulator.claims --data")
    assert one.before == "1.2"
    assert [c.name for c in field.read_cases(tmp_path, "")] == ["P09", "M01"]
