"""The trainer and what it makes: `traces.training`, and ReLU models of `traces.relufy`."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch not installed")
transformers = pytest.importorskip("transformers", reason="transformers not installed")

from simulator.base import console  # noqa: E402
from traces import pretrain, relufy, training  # noqa: E402
from traces.loading import find, load  # noqa: E402

pytestmark = pytest.mark.torch

HELDOUT = Path(pretrain.__file__).parent / "shipped" / "heldout.txt"


def test_pretraining_repeats_itself_and_survives_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of step 100 read back gives the same weights at step 102 as no interruption."""
    monkeypatch.setattr(training, "CONTEXT", 8)
    ids = np.random.default_rng(0).integers(0, 50, 4000).astype(np.uint16)
    config = transformers.OPTConfig(
        vocab_size=50,
        hidden_size=8,
        num_hidden_layers=1,
        ffn_dim=8,
        num_attention_heads=2,
        max_position_embeddings=16,
        word_embed_proj_dim=8,
        dropout=0.0,
    )

    def fit(name: str, stop: int) -> Any:
        torch.manual_seed(0)
        model = transformers.OPTForCausalLM(config)
        monkeypatch.setattr(training, "learning_rate", lambda step, steps, peak, warm_up: peak)
        training.fit(model, ids, steps=stop, rows=2, seed=1, peak=1e-3, checkpoint=tmp_path / name, quiet=True)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    whole = fit("a.pt", 102)
    fit("b.pt", 100)
    assert torch.equal(fit("b.pt", 102), whole)


def test_batches_cover_an_epoch_once_and_depend_on_step_and_seed_alone() -> None:
    ids = np.arange(20 * training.CONTEXT + 1, dtype=np.uint32)
    first = [training.batch_at(ids, step, rows=3, seed=5) for step in range(6)]
    starts = np.concatenate([b[:, 0] for b in first])
    assert len(set(starts.tolist())) == 18
    assert len({s % training.CONTEXT for s in starts.tolist()}) == 1
    assert np.array_equal(first[2], training.batch_at(ids, 2, rows=3, seed=5))
    assert not np.array_equal(first[2], training.batch_at(ids, 2, rows=3, seed=6))


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A small SwiGLU model of 2 layers with its tokenizer, and text beside it."""
    text = HELDOUT.read_text("utf-8")[:60_000]
    (tmp_path / "text.txt").write_text(text[8_000:], "utf-8")
    (tmp_path / "held.txt").write_text(text[:1_000], "utf-8")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=pretrain.VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    pretrain.write_model(transformers.LlamaForCausalLM(config), pretrain.tokenizer(text), tmp_path / "model")
    return tmp_path


def run(folder: Path, out: str, *more: str) -> int:
    words = ["--model", folder / "model", "--text", folder / "text.txt", "--heldout", folder / "held.txt"]
    some = ["--out", folder / out, "--steps", "6", "--rows", "2", "--every", "2", "--lr", "0.01", *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["relufy", *map(str, [*words, *some])])
        with pytest.raises(SystemExit) as left:
            console.main(relufy.app)
    return int(left.value.code or 0)


def curve(folder: Path) -> list[dict[str, float]]:
    with (folder / "curve.csv").open() as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def test_a_relu_model_trains_its_ffns_and_survives_a_kill(words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in step 5 of 6 after the state of step 4: the same curve and weights as without."""
    monkeypatch.setattr(training, "CONTEXT", 32)
    assert run(words, "whole") == 0
    real, seen = training.batch_at, []

    def killed(ids: Any, step: int, **more: Any) -> Any:
        seen.append(step)
        if step == 5:
            raise KeyboardInterrupt
        return real(ids, step, **more)

    with monkeypatch.context() as patch:
        patch.setattr(training, "batch_at", killed)
        assert run(words, "killed") == 130
    assert seen == [0, 1, 2, 3, 4, 5]
    assert [row["step"] for row in curve(words / "killed")] == [0, 2, 4]
    assert run(words, "killed") == 2
    assert run(words, "killed", "--resume", "--lr", "0.02") == 2
    assert run(words, "killed", "--resume") == 0
    assert (words / "killed" / "curve.csv").read_bytes() == (words / "whole" / "curve.csv").read_bytes()
    made = [load(find(str(words / name / "model")), device="cpu").model for name in ("whole", "killed")]
    for (name, one), (_, other) in zip(made[0].named_parameters(), made[1].named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_what_is_trained_and_what_the_curve_counts(words: Path) -> None:
    """The activation is ReLU in the saved config, FFNs alone moved, zeros are those of the down projections' inputs."""
    assert run(words, "made", "--stop", "2") == 0
    before = load(find(str(words / "model")), dtype="fp32", device="cpu").model
    made = load(find(str(words / "made" / "model")), dtype="fp32", device="cpu")
    assert made.model.config.hidden_act == "relu"
    for (name, one), (_, other) in zip(before.named_parameters(), made.model.named_parameters(), strict=True):
        assert torch.equal(one, other) == (".mlp." not in name), name
    rows = curve(words / "made")
    assert [(row["step"], row["tokens"]) for row in rows] == [(0, 0), (2, 2 * 2 * 512)]
    zeros: list[float] = []

    def see(_: Any, args: Any) -> None:
        zeros.append(float((args[0] == 0).float().mean()))

    for layer in made.model.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(see)
    ids = torch.as_tensor(made.tokenizer((words / "held.txt").read_text("utf-8"))["input_ids"])
    with torch.inference_mode():
        loss = made.model(input_ids=ids[None], labels=ids[None]).loss
    assert rows[-1]["ffn_zeros"] == pytest.approx(np.mean(zeros), abs=0.003)
    assert 0.3 < rows[-1]["ffn_zeros"] < 0.7
    size = len(str(made.tokenizer.decode(ids[1:])).encode())
    assert rows[-1]["bits_per_byte"] == pytest.approx(float(loss) * (len(ids) - 1) / size / np.log(2.0), rel=1e-3)


def test_the_penalty_rises_along_half_a_cosine_and_makes_zeros(words: Path) -> None:
    weights = [relufy.penalty_weight(step, 4, 2.0) for step in range(5)]
    assert weights == pytest.approx([0.0, 1.0 - 0.5**0.5, 1.0, 1.0 + 0.5**0.5, 2.0])
    assert run(words, "plain") == 0
    assert run(words, "sparse", "--l1", "1") == 0
    assert curve(words / "sparse")[-1]["ffn_zeros"] > curve(words / "plain")[-1]["ffn_zeros"]


def test_fused_gates_are_refused() -> None:
    config = transformers.Phi3Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    with pytest.raises(relufy.UnsupportedError, match="phi3"):
        relufy.relufy(transformers.Phi3ForCausalLM(config))
