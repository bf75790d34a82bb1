"""Which figure answers for a loss of quality, and how small-model evidence is told."""

from __future__ import annotations

import json
import sys
from math import exp, log

import numpy as np
import pytest

from simulator import predict
from simulator.base import console
from simulator.policies import parse
from simulator.policies.__main__ import app as policies
from simulator.results import choices, loss_lookup
from simulator.results.conversion import conversion, spread, student
from simulator.results.loss import LOSS_UNKNOWN, Loss, LossBasis
from simulator.results.loss_curve import borrowed
from simulator.results.loss_lookup import loss_named, loss_on, small_model
from simulator.results.quality import of_file
from simulator.scenario.catalogue import CATALOGUE
from simulator.trace import MeasuredPolicy, QualityFile


def file(context: float, **ratios: float) -> QualityFile:
    """A file of quality with these perplexity ratios; `mustafar_3` is ``mustafar(keep=0.3)``."""
    rows = []
    for name, ratio in ratios.items():
        policy, _, tenths = name.partition("_")
        spelling = f"{policy}(keep=0.{tenths})" if tenths else policy
        rows.append(
            MeasuredPolicy(
                policy=spelling, perplexity=20.0 * ratio, dense_perplexity=20.0, log_ratio_se=0.01, agreement=0.9
            )
        )
    facts = small_model()[0].facts
    return QualityFile(
        model="Small-135M",
        config_sha256="0" * 64,
        facts=facts,
        text_sha256="0" * 64,
        dtype="float32",
        tokens=1000,
        context=context,
        rows=tuple(rows),
    )


@pytest.fixture
def two_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    files = (
        file(1792.0, mustafar_3=1.10, mustafar_5=1.02, kivi=3.0),
        file(3840.0, mustafar_3=1.21, mustafar_5=1.01, kivi=3.0),
    )
    monkeypatch.setattr(loss_lookup, "small_model", lambda: files)
    monkeypatch.setattr(choices, "small_model", lambda: files)


@pytest.mark.usefixtures("two_lengths")
def test_the_order_in_which_figures_answer() -> None:
    """Measured on the model, then published for it, then for others, then the small model, then nothing."""
    own = of_file(file(3840.0, kivi=1.3, mustafar_4=1.5))
    llama = CATALOGUE.model("llama-3.1-8b")
    assert loss_on(llama, parse("kivi"), own).basis is LossBasis.MEASURED
    assert loss_on(llama, parse("mustafar(keep=0.4)"), own).source.startswith("1.500x dense perplexity")
    assert loss_named("llama-3.1-8b", "kivi").basis is LossBasis.PUBLISHED
    assert loss_named("qwen2.5-14b", "kivi").basis is LossBasis.EXTRAPOLATED
    assert loss_named("llama-2-7b", "mustafar(keep=0.4)").basis is LossBasis.SMALL_MODEL
    for unknown in ("mustafar(keep=0.2)", "mustafar(keep=0.4,window=64)", "mustafar(keep=0.4)+w4a16", "sparq"):
        assert loss_named("llama-2-7b", unknown).short == LOSS_UNKNOWN, unknown
    assert loss_named("llama-2-7b", "mustafar(keep=0.4)+vattention").basis is LossBasis.SMALL_MODEL


@pytest.mark.usefixtures("two_lengths")
def test_evidence_is_the_worst_length_converted_at_the_size_asked_with_the_band_of_one_model() -> None:
    """keep 0.4 lies half way: ln(1.21 * 1.01) / 2 at 3,840 tokens, ln(1.10 * 1.02) / 2 at 1,792; the first is worse.

    The band of one other model: Student's with the 5 borrowed degrees of freedom, variance twice the borrowed one, and
    the error of the conversion.
    """
    found = loss_named("llama-2-7b", "mustafar(keep=0.4)")
    rise = log(1.21 * 1.01) / 2.0
    law, n = conversion(), CATALOGUE.model("llama-2-7b").n_params
    mid = law.points(rise, n)
    assert found.points.mid == pytest.approx(mid)
    half = student(5.0) * np.sqrt(2.0 * borrowed("mustafar") + (law.log_error * law.share(mid)) ** 2)
    assert found.points.hi == pytest.approx(np.sinh(spread(mid) + half))
    assert loss_named("llama-2-70b", "mustafar(keep=0.4)").points.mid < mid
    assert found.source == f"Small-135M at 3,840 tokens: {exp(rise):.3f}x dense perplexity"
    assert found.words.endswith(f", small-model evidence: measured on {found.source}")
    assert found.short.endswith(", small-model evidence")


def run(app: object, *words: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["verb", *words])
        with pytest.raises(SystemExit) as left:
            console.main(app)  # type: ignore[arg-type]
    assert not left.value.code
    return capsys.readouterr().out


@pytest.mark.usefixtures("two_lengths")
def test_max_loss_lists_and_marks_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", "llama-2-7b", "--device", "rtx-4090", "--prompt-tokens", "2048", "--max-loss", "1")
    text = run(predict.app, *words, capsys=capsys)
    (line,) = (line for line in text.splitlines() if line.startswith("mustafar(keep=0.3)"))
    assert "small-model evidence" in line
    assert "Small-135M at 3,840 tokens: 1.210x" in " ".join(text.split())
    rows = json.loads(run(predict.app, *words, "--json", capsys=capsys))["rows"]
    (row,) = (r for r in rows if r["policy"] == "mustafar(keep=0.3)")
    assert row["basis"] == "small-model evidence"
    # A wide band never passes where a published figure of the same size would.
    assert not Loss(loss_named("llama-2-7b", "mustafar(keep=0.5)").points, LossBasis.SMALL_MODEL).at_most(
        loss_named("llama-2-7b", "mustafar(keep=0.5)").points.mid
    )


def test_a_prediction_names_the_small_model(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", "llama-3-8b", "--device", "h100-sxm", "--policy", "double_sparsity(budget=512)")
    text = run(predict.app, *words, capsys=capsys)
    assert "small-model evidence: measured on SmolLM2-135M-Instruct at " in text


def test_a_policy_shows_its_evidence(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(policies, "quest", capsys=capsys)
    assert "measured on SmolLM2-135M-Instruct" in text
    assert "quest(budget=512)" in text
    assert "Small-model evidence" not in run(policies, "teal", capsys=capsys)


def test_the_files_that_ship() -> None:
    """Each is of one model and length, within its trained context, and every row is a policy's own spelling."""
    files = small_model()
    assert len({f.context for f in files}) == len(files)
    for f in files:
        assert f.model == "SmolLM2-135M-Instruct"
        assert f.settings["length"] <= 8192
        assert f.tokens >= 1000
        assert [parse(row.policy).spelling for row in f.rows] == [row.policy for row in f.rows]
        ratio = {row.policy: row.perplexity / row.dense_perplexity for row in f.rows}
        assert ratio["quest(budget=256)"] > ratio["quest(budget=512)"] > 1.0
        assert ratio["streaming_llm(window=252)"] > ratio["streaming_llm(window=508)"] > 1.0
    rows = {row.policy: row.perplexity / row.dense_perplexity for f in files for row in f.rows}
    assert rows["kivi(bits=2)"] > 1.1 > rows["kivi(bits=4)"]
    assert {parse(policy).members[0].name for policy in rows} >= {"h2o", "snapkv", "double_sparsity", "mustafar"}
