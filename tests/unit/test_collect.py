"""The verbs traces.collect and traces.show: identity, resuming, refusals, output."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch not installed")
pytest.importorskip("transformers", reason="transformers not installed")

from simulator.base.errors import InputError  # noqa: E402
from simulator.trace import KEEPS, read_trace  # noqa: E402
from traces import collect, show  # noqa: E402
from traces.snapshot import Snapshots  # noqa: E402

pytestmark = pytest.mark.torch
FILES = ("manifest.json", "curves.parquet", "neurons.parquet")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny OPT with a byte tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("opt") / "tiny-opt"
    torch.manual_seed(1)
    OPTForCausalLM(
        OPTConfig(
            vocab_size=260,
            hidden_size=32,
            ffn_dim=48,
            word_embed_proj_dim=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
        )
    ).save_pretrained(path)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)} | {"</s>": 256}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    rng = np.random.default_rng(0)
    words = ["if", "for", "return", "sparse", "head", "(", ")", "\n", "value", "=", "0.5", "neuron"]
    path.write_text(" ".join(rng.choice(words, 3000)))
    return path


def options(model: Path, text: Path, out: Path, **changed: Any) -> dict[str, Any]:
    return {
        "model": str(model),
        "text": text,
        "out": out,
        "batch": 4,
        "sequence_length": 64,
        "max_tokens": 2560,
        "dtype": "auto",
        "device": "cpu",
        "seed": 0,
        "revision": None,
        "allow_pickle": False,
        "resume": False,
        "profile": False,
        "json": True,
    } | changed


@pytest.fixture(scope="module")
def victim(child: Callable[..., Any]) -> Any:
    """An interpreter that imports while other tests run, because the one that is killed cannot be this one."""
    started = child()
    started.tell("from transformers import OPTForCausalLM; import traces.rows, traces.loading")
    return started


@pytest.fixture(scope="module")
def trace(victim: Any, model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trace") / "first"
    collect.main(**options(model, text, out))
    return out


def test_equal_seeds_give_equal_files(model: Path, text: Path, trace: Path, tmp_path: Path) -> None:
    collect.main(**options(model, text, tmp_path / "again"))
    collect.main(**options(model, text, tmp_path / "other", seed=1))
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (trace / name).read_bytes()
    curves = "curves.parquet"
    assert (tmp_path / "other" / curves).read_bytes() != (trace / curves).read_bytes()
    assert not list(tmp_path.glob("*.parts"))


def test_the_trace_describes_the_run(trace: Path) -> None:
    found = read_trace(trace)
    m = found.manifest
    assert (m.model, m.tokens, m.dtype) == ("tiny-opt", 2560, "float32")
    assert m.facts.intermediate == 48
    assert m.settings["sequences"] == 40
    # 10 batches: one sets thresholds, 36 sequences are measured.
    assert m.settings["calibration_sequences"] == 4
    curve = found.curve(1, "ffn.down", "union_density")
    assert curve is not None
    assert curve.x.tolist() == [1, 2, 4, 8, 16, 32]
    assert curve.n.tolist() == [4 * (36 // x) for x in (1, 2, 4, 8, 16, 32)]
    zeros = found.curve(1, "ffn.down", "exact_zero")
    assert zeros is not None
    # ReLU of a random layer is zero about half the time; both figures sample the same distribution.
    assert float(zeros.value[0]) == pytest.approx(1 - float(curve.value[0]), abs=0.05)
    assert found.keeps(0, "attn.in", "union_density") == KEEPS
    p = found.frequencies(1)
    assert len(p) == 48
    assert float(p.mean()) == pytest.approx(float(curve.value[0]), abs=0.05)
    assert len(found.curves["x"]) > 1000


def test_a_second_writer_is_refused(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "busy"
    first = Snapshots(out, {"a": 1}, settled={}, resume=False)
    with pytest.raises(InputError, match="is writing"):
        collect.main(**options(model, text, out))
    first.close()
    Snapshots(out, {"a": 1}, settled={}, resume=True).finish()
    assert not out.exists()


def test_an_error_leaves_nothing_half_written(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def fail(*args: Any) -> None:
        raise InputError("disk full")

    monkeypatch.setattr("traces.rows.curves", fail)
    with pytest.raises(InputError, match="disk full"):
        collect.main(**options(model, text, out))
    assert not out.exists()
    monkeypatch.undo()
    collect.main(**options(model, text, out, resume=True))
    assert (out / "manifest.json").is_file()


def test_refusals(model: Path, text: Path, tmp_path: Path) -> None:
    def refused(**changed: Any) -> str:
        with pytest.raises(InputError) as caught:
            collect.main(**options(model, text, tmp_path / "out") | changed)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "more than the model's 128 positions" in refused(sequence_length=256)
    assert "less than 64 tokens" in refused(sequence_length=32)
    assert "did you mean" in refused(text=text.with_name("word.txt"))
    # A folder without text is no suggestion, however near its name.
    (tmp_path / "hw_profiles").mkdir()
    assert refused(text=tmp_path / "nofile").endswith("there is no file or folder " + repr(str(tmp_path / "nofile")))
    short = tmp_path / "short.txt"
    short.write_text("if")
    assert "two sequences of 64 are the least" in refused(text=short)
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"a\nb\xff")
    assert f"{binary}:2: is not UTF-8 text" in refused(text=binary)
    assert "is a file" in refused(out=short)
    assert "holds files that are no trace" in refused(out=tmp_path)
    judged = tmp_path / "judged"
    judged.mkdir()
    (judged / "quality.parquet").touch()
    assert "holds judged predictors" in refused(out=judged)
    assert not list(tmp_path.glob("out*"))


def test_the_command_line_says_one_line(repo: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "traces.collect", "--model", "./nowhere", "--text"]
    command += [str(repo / "README.md"), "--out", str(tmp_path / "t")]
    ended = subprocess.run(command, cwd=repo, check=False, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == "error: --model: there is no folder './nowhere'\n"
    assert ended.stdout == ""


def test_help_imports_nothing_heavy(repo: Path) -> None:
    code = (
        "import sys, traces.collect, traces.show\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pyarrow', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=repo, check=True)


def shipped(repo: Path) -> list[Path]:
    found = sorted((repo / "traces" / "shipped").glob("*/trace"))
    assert found, "the shipped traces are missing"
    return found


def test_shipped_traces_belong_to_the_shipped_models(repo: Path) -> None:
    import json

    from simulator.base.errors import fold
    from simulator.model.hub import find_model
    from simulator.trace import ModelFacts
    from traces.loading import find
    from traces.weights import weights_sha256
    from traces.wheels import PACKED

    sizes = {folder: sum(p.stat().st_size for p in folder.iterdir()) for folder in shipped(repo)}
    assert all(size <= 900_000 for size in sizes.values()), sizes
    for folder in shipped(repo):
        model_folder = folder.parent / "model"
        m = read_trace(folder).manifest
        if not model_folder.is_dir():
            # A model too large to ship: where it comes from, and that its licence lets the measurement go with us.
            source = json.loads((folder.parent / "source.json").read_text())
            packed = PACKED[folder.parent.name.partition("-")[0]]
            assert (source["sha256"], source["licence"]) == (packed.sha256, "Apache-2.0")
            assert fold(m.model) == fold(folder.parent.name) == fold(packed.name)
            continue
        assert m.config_sha256 == find(str(model_folder)).config_sha256
        assert m.settings["weights_sha256"] == weights_sha256(model_folder)
        assert m.facts == ModelFacts.of(find_model(str(model_folder)))
        assert m.model == find_model(str(model_folder)).name == folder.parent.name


def test_show_prints_and_draws(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib not installed")
    picture = tmp_path / "trace.svg"
    show.main(trace, plot=picture, dark=False, json=False)
    printed = capsys.readouterr().out
    assert "tiny-opt: 2 layers, hidden 32, 4 heads" in printed
    for title in ("share of the FFN neurons", "that a step needs", "holds the attention", "KV cache"):
        assert title in printed
    svg = picture.read_text()
    assert svg.count("<svg") == 1
    assert "rows [tokens]" in svg or "text" in svg
    show.main(trace, plot=tmp_path / "again.svg", dark=False, json=False)
    assert (tmp_path / "again.svg").read_text() == svg
    with pytest.raises(InputError, match="must end in"):
        show.main(trace, plot=tmp_path / "trace.gif", dark=False, json=False)


def test_show_json_holds_every_curve(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    show.main(trace, plot=None, dark=False, json=True)
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["rows"]) == len(read_trace(trace).curves["x"])
    assert answer["manifest"]["model"] == "tiny-opt"


KILLED = """
import os, signal
from pathlib import Path
from traces import collect
collect.SAVE_EVERY_S = 0.0
saves = 0
replace = os.replace
def fatal(source, target):
    global saves
    if Path(target).name == "state.safetensors":
        saves += 1
        if saves == 4:
            os.kill(os.getpid(), signal.SIGKILL)
    return replace(source, target)
os.replace = fatal
values = OPTIONS
collect.main(**values | {"text": Path(values["text"]), "out": Path(values["out"])})
"""


def test_kill_nine_and_resume_give_the_same_files(
    model: Path, text: Path, trace: Path, victim: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    out = tmp_path / "killed"
    # As many threads as this process was left with, whatever test ran before.
    values = options(model, text, out) | {"text": str(text), "out": str(out), "threads": torch.get_num_threads()}
    # Killed after the fourth state is written and before it is renamed: the third one stands.
    victim.tell(KILLED.replace("OPTIONS", repr(values)))
    assert victim.process.wait() == -signal.SIGKILL
    assert not out.exists()
    left = {p.name for p in (tmp_path / "killed.parts").iterdir()}
    assert {"plan.json", "state.safetensors"} <= left
    assert any(name.startswith(".state.safetensors.") for name in left)
    seen: list[int] = []
    monkeypatch.setattr(collect, "_progress", lambda done, n, quiet: seen.append(done) or range(done, n))
    with pytest.raises(InputError, match="belongs to a run with other arguments"):
        collect.main(**options(model, text, out, seed=5, resume=True))
    collect.main(**options(model, text, out, resume=True))
    assert seen == [3]
    for name in FILES:
        assert (out / name).read_bytes() == (trace / name).read_bytes()
    assert not (tmp_path / "killed.parts").exists()
