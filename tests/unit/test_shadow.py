"""`traces.shadow` and `traces.pretrain` from the command line, and the models that ship."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch not installed")
transformers = pytest.importorskip("transformers", reason="transformers not installed")

from simulator.base import console  # noqa: E402
from simulator.trace import TABLES  # noqa: E402
from traces import pretrain, shadow  # noqa: E402
from traces.corpus import SEPARATOR, is_held_out, standard_library  # noqa: E402
from traces.loading import find, load  # noqa: E402

pytestmark = pytest.mark.torch

SHIPPED = Path(__file__).resolve().parents[2] / "traces" / "shipped"
ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a verb in this process: exit status, stdout, stderr."""

    def call(module: Any, *arguments: str | Path) -> tuple[int, str, str]:
        arguments = _changed(arguments)
        monkeypatch.setattr(sys, "argv", ["traces", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            console.main(module.app)
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text((ROOT / "simulator" / "inference" / "lowering.py").read_text(encoding="utf-8")[:12000])
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A random Llama of 2 layers with a tokenizer of its own, in a Hugging Face folder."""
    torch.manual_seed(0)
    words = pretrain.tokenizer(text.read_text())
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        intermediate_size=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    folder = tmp_path_factory.mktemp("model") / "tiny"
    pretrain.write_model(transformers.LlamaForCausalLM(config), words, folder)
    return folder


def _changed(arguments: Sequence[str | Path]) -> tuple[str | Path, ...]:
    """Arguments in which a flag given again replaces what the common ones gave it."""
    out = list(arguments)
    for flag in {a for a in out if str(a).startswith("--") and out.count(a) > 1}:
        at = out.index(flag)
        del out[at : at + 2]
    return tuple(out)


def train_arguments(model: Path, text: Path, out: Path) -> list[str | Path]:
    small = ["--length", "48", "--max-tokens", "192", "--rank", "4", "--epochs", "1", "--seeds", "1"]
    return ["train", "--model", model, "--text", text, "--out", out, "--criteria", "plainact", *small]


def evaluate_arguments(model: Path, text: Path, predictors: Path, out: Path) -> list[str | Path]:
    small = ["--length", "48", "--prompt", "32", "--max-tokens", "96", "--json"]
    return ["evaluate", "--model", model, "--text", text, "--predictors", predictors, "--out", out, *small]


def test_train_then_evaluate_from_end_to_end(run: Run, model: Path, text: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        code, _, err = run(shadow, *train_arguments(model, text, folder))
        assert code == 0, err
    weights = sorted(p.name for p in one.glob("*.safetensors"))
    assert len(weights) == 3 + 1
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}
    code, out, err = run(shadow, *evaluate_arguments(model, text, one, tmp_path / "quality.parquet"))
    assert code == 0, err
    rows = json.loads(out)["rows"]
    table = pq.read_table(tmp_path / "quality.parquet")
    assert table.schema.names == list(TABLES["quality.parquet"])
    assert table.num_rows == len(rows)
    # A trace that is none is told before the hours, not after.
    known = evaluate_arguments(model, text, one, tmp_path / "late.parquet")
    code, _, err = run(shadow, *known, "--trace", tmp_path / "none")
    assert (code, str(tmp_path / "none") in err, err.count("\n")) == (2, True, 1)
    assert not (tmp_path / "late.parquet").exists()
    for flag, told in (("--sparsities", "shares between 0 and 1"), ("--criteria", "did you mean 'plainact'")):
        code, _, err = run(shadow, *known, flag, "1.5" if flag == "--sparsities" else "planact")
        assert (code, told in err, err.count("\n")) == (2, True, 1)
    methods = {r["method"] for r in rows}
    assert methods >= {"random", "static", "oracle", "shadowllm", "dejavu", "teal", "cats", "quest", "h2o"}
    for r in rows:
        assert r["perplexity"] > 1.0
        assert 0.0 <= r["agreement"] <= 1.0
    oracle = [r for r in rows if r["method"] == "oracle" and r["mask"] == "token"]
    assert all(r["recall"] == pytest.approx(1.0) for r in oracle)
    code, again, _ = run(shadow, *evaluate_arguments(model, text, one, tmp_path / "quality.parquet"))
    assert json.loads(again)["rows"] == rows


@pytest.mark.parametrize("name", shadow.OF_SHIPPED)
def test_a_shipped_model_is_trained_and_judged_again_quickly(run: Run, tmp_path: Path, name: str) -> None:
    """One seed on few tokens: the largest effects come out as in the quality that ships."""
    code, out, err = run(shadow, "reproduce", name, "--out", tmp_path, "--quick", "--threads", "1", "--json")
    assert code == 0, err
    found = {v["claim"]: v for v in json.loads(out)["verdicts"]}
    code, out, err = run(shadow, "tables", SHIPPED / name / "trace", "--json")
    assert code == 0, err
    shipped = {v["claim"]: v for v in json.loads(out)["verdicts"]}
    assert len(found) == 7
    for claim in (
        "static masks: plainact ranks better than weight",
        "predictors follow the context (budget per layer)",
    ):
        (text,) = [c for c in found if c.startswith(claim)]
        assert found[text]["verdict"] == "holds"
    for text, v in found.items():
        for side in ("ours", "other"):
            assert v[side]["0.5"] == pytest.approx(shipped[text][side]["0.5"], rel=0.2), (text, side)


def test_pickled_weights_are_read_where_they_are_allowed(run: Run, model: Path, text: Path, tmp_path: Path) -> None:
    """Facebook's OPT models, ShadowLLM's own, have no other."""
    import shutil

    from safetensors.torch import load_file

    folder, out = tmp_path / "pickled", tmp_path / "p"
    shutil.copytree(model, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    code, _, err = run(shadow, *train_arguments(folder, text, out))
    assert (code, "--allow-pickle" in err) == (2, True)
    code, _, err = run(shadow, *train_arguments(folder, text, out), "--allow-pickle")
    assert code == 0, err
    judged = [
        *evaluate_arguments(folder, text, out, tmp_path / "q.parquet"),
        "--methods",
        "teal",
        "--sparsities",
        "0.4",
    ]
    assert run(shadow, *judged)[0] == 2
    code, printed, err = run(shadow, *judged, "--allow-pickle")
    assert code == 0, err
    assert [(r["policy"], r["sparsity"]) for r in json.loads(printed)["rows"]] == [("teal(keep=0.6)", 0.4)]


def test_train_resumes_and_keeps_what_is_there(run: Run, model: Path, text: Path, tmp_path: Path) -> None:
    arguments = train_arguments(model, text, tmp_path)
    assert run(shadow, *arguments)[0] == 0
    kept, lost = sorted(tmp_path.glob("shadowllm*"))
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (kept, lost)}
    lost.unlink()
    code, _, err = run(shadow, *arguments)
    assert (code, "add --resume" in err) == (2, True)
    assert run(shadow, *arguments, "--resume")[0] == 0
    assert kept.stat().st_mtime_ns == before[kept.name][0]
    assert lost.read_bytes() == before[lost.name][1]
    code, _, err = run(shadow, *arguments, "--resume", "--rank", "5")
    assert (code, "trained with another rank" in err) == (2, True)


def test_evaluate_goes_on_after_a_kill_and_ends_in_the_same_bytes(
    run: Run, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from traces.snapshot import Snapshots

    predictors, out, whole = tmp_path / "p", tmp_path / "q.parquet", tmp_path / "whole.parquet"
    assert run(shadow, *train_arguments(model, text, predictors))[0] == 0
    some = ["--methods", "random,teal,shadowllm,oracle"]
    arguments = [*evaluate_arguments(model, text, predictors, out), *some]
    code, printed, err = run(shadow, *evaluate_arguments(model, text, predictors, whole), *some)
    assert code == 0, err
    assert {r["method"] for r in json.loads(printed)["rows"]} == {"random", "teal", "shadowllm", "oracle"}
    log, written = Snapshots.log, []

    def counted(self: Snapshots, record: Any) -> None:
        log(self, record)
        written.append(record)
        if len(written) == 11:
            raise KeyboardInterrupt

    monkeypatch.setattr(Snapshots, "log", counted)
    assert run(shadow, *arguments)[0] == 130
    assert not out.exists()
    with (tmp_path / "q.parquet.parts" / "log.jsonl").open("a") as torn:
        torn.write('[{"policy": "tea')
    code, _, err = run(shadow, *arguments, "--resume", "--methods", "teal")
    assert (code, "other arguments" in err) == (2, True)
    assert run(shadow, *arguments, "--resume")[0] == 0
    assert out.read_bytes() == whole.read_bytes()
    # Every measurement was made once.
    assert sum(len(rows) for rows in written) == len(json.loads(printed)["rows"])
    assert not (tmp_path / "q.parquet.parts").exists()


def test_every_window_begins_with_the_tokenizers_first_token(
    run: Run, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that learned with a first token is trained, calibrated and judged with it (Gemma: 25.8, without 45.0)."""
    import shutil

    from tokenizers import processors

    from traces import experiment, scoring

    folder = tmp_path / "begins"
    shutil.copytree(model, folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SEPARATOR} $A", special_tokens=[(SEPARATOR, 0)]
    )
    words.save_pretrained(folder)
    seen: list[Any] = []
    cut = scoring.windows

    def windows(*arguments: Any, **more: Any) -> Any:
        seen.append(cut(*arguments, **more))
        return seen[-1]

    for module in (scoring, experiment):
        monkeypatch.setattr(module, "windows", windows)
    code, _, err = run(shadow, *train_arguments(folder, text, tmp_path / "p"))
    assert code == 0, err
    code, _, err = run(shadow, *evaluate_arguments(folder, text, tmp_path / "p", tmp_path / "q.parquet"))
    assert code == 0, err
    assert len(seen) == 3
    for found in seen:
        assert (found[:, 0] == 0).all()
        assert (found[:, 1:] != 0).all()
        assert found.shape[1] == 48


def test_mistakes_are_one_line(run: Run, model: Path, text: Path, tmp_path: Path) -> None:
    train = train_arguments(model, text, tmp_path / "p")
    cases = [
        ([*train, "--criteria", "planact"], "did you mean 'plainact'"),
        ([*train, "--text", tmp_path / "none.txt"], "--text: there is no file"),
        ([*train, "--length", "65"], "made for 64 tokens"),
        ([*train, "--max-tokens", "1000000"], "too few for"),
        ([*train, "--max-tokens", "40"], "not one window of 48 tokens"),
        ([*train, "--out", text], "is a file; name a folder"),
        (
            [*evaluate_arguments(model, text, tmp_path / "p", tmp_path / "q.parquet"), "--methods", "tael"],
            "did you mean 'teal'",
        ),
        (evaluate_arguments(model, text, tmp_path / "p", tmp_path / "q.parquet"), "shadow train"),
        (["reproduce", "tiny-opt", "--out", tmp_path / "r"], "did you mean 'tiny-opt-py'"),
        (["tables", tmp_path], "manifest.json"),
        (["evalute"], "evalute"),
    ]
    for arguments, expected in cases:
        code, out, err = run(shadow, *arguments)
        assert code == 2
        assert expected in err
        assert err.count("\n") == 1
        assert out == ""
    assert not (tmp_path / "q.parquet").exists()


def test_the_standard_library_is_split_by_file_and_names_no_machine() -> None:
    corpus = standard_library()
    assert not set(corpus.train_files) & set(corpus.heldout_files)
    assert all(is_held_out(name, 20) for name in corpus.heldout_files)
    assert len(corpus.train_files) > 10 * len(corpus.heldout_files)
    assert not any("_sysconfigdata" in n or n.startswith("test/") for n in corpus.train_files)
    parts = corpus.heldout.split(f"{SEPARATOR}\n")
    assert len(parts) == len(corpus.heldout_files)


@pytest.fixture(scope="module", params=sorted(pretrain.ARCHITECTURES.values()))
def shipped(request: pytest.FixtureRequest) -> tuple[Path, dict[str, Any]]:
    folder = SHIPPED / request.param
    return folder, json.loads((folder / "manifest.json").read_text())


def test_shipped_files_are_those_of_the_manifest(shipped: tuple[Path, dict[str, Any]]) -> None:
    folder, manifest = shipped
    files = {p.name: p for p in (folder / "model").iterdir()}
    assert set(files) == set(manifest["sha256"])
    for name, path in files.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == manifest["sha256"][name]
    assert files["model.safetensors"].stat().st_size < 10e6
    assert manifest["parameters"] <= 5e6
    text = (SHIPPED / "heldout.txt").read_bytes()
    assert hashlib.sha256(text).hexdigest() == manifest["text"]["heldout_sha256"]
    assert len(text) <= 1_000_000
    assert "Python Software Foundation" in (SHIPPED / "NOTICE").read_text()


def test_shipped_models_load_and_have_the_loss_of_the_manifest(shipped: tuple[Path, dict[str, Any]]) -> None:
    """On 12 windows spread over the text: their own loss as written, and near that of the whole."""
    from traces.scoring import windows

    folder, manifest = shipped
    loaded = load(find(str(folder / "model")), dtype="fp32", device="cpu")
    assert sum(p.numel() for p in loaded.model.parameters()) == manifest["parameters"]
    text = (SHIPPED / "heldout.txt").read_text()
    ids = np.asarray(loaded.tokenizer(text, verbose=False)["input_ids"])
    assert len(ids) == manifest["heldout_tokens"]
    some = windows(ids, pretrain.CONTEXT + 1, 12)
    with torch.inference_mode():
        logits = loaded.model(input_ids=some[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), some[:, 1:].flatten())
    assert float(loss) == pytest.approx(manifest["heldout_loss_nat_per_token"], rel=0.08)
    whole = manifest["heldout_loss_nat_per_token"] * len(ids) / len(text.encode()) / np.log(2.0)
    assert manifest["heldout_bits_per_byte"] == pytest.approx(whole, rel=1e-6)
    assert manifest["heldout_bits_per_byte"] < manifest["baseline_bits_per_byte"]["gzip"]
