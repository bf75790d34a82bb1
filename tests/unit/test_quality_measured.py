"""``python -m traces.quality``: policies as masks on the shipped models, and who reads what it writes."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch not installed")
transformers = pytest.importorskip("transformers", reason="transformers not installed")

from simulator import predict, sweep  # noqa: E402
from simulator.base import console  # noqa: E402
from simulator.base.errors import InputError, ShadowlineError  # noqa: E402
from simulator.policies import POLICIES, parse  # noqa: E402
from simulator.results.loss import LOSS_UNKNOWN  # noqa: E402
from simulator.trace import read_quality  # noqa: E402
from traces import quality  # noqa: E402
from traces.kv_quality import attending  # noqa: E402
from traces.loading import find, load  # noqa: E402
from traces.measurers import MEASURERS, SITES, Subject, measurer_of, measurers_of  # noqa: E402
from traces.scoring import judge, scene  # noqa: E402

pytestmark = pytest.mark.torch

SHIPPED = Path(quality.__file__).parent / "shipped"
TEXT = SHIPPED / "heldout.txt"
SMALL = ["--length", "96", "--prompt", "48", "--max-tokens", "1536", "--threads", "1", "--device", "cpu"]


def run(app: Any, *arguments: str, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> Any:
    patch.setattr(sys, "argv", ["verb", *arguments])
    with pytest.raises(SystemExit) as left:
        console.main(app)
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def model_of(name: str) -> str:
    return str(SHIPPED / name / "model")


@pytest.fixture(scope="module")
def subject() -> Subject:
    loaded = load(find(model_of("tiny-llama-py")), dtype="fp32", device="cpu")
    ids = torch.as_tensor(loaded.tokenizer(TEXT.read_text("utf-8")[:8000])["input_ids"])[: 6 * 64].view(6, 64)
    return Subject(loaded.model, ids[:2], 32, 48.0)


def test_both_shipped_models_are_measured_and_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, policies in (("tiny-llama-py", "teal(keep=[0.5,0.9]),w4a16+kivi(window=16)"), ("tiny-opt-py", "nm24")):
        out = tmp_path / f"{name}.json"
        words = ("--model", model_of(name), "--text", str(TEXT), "--policy", policies, "--out", str(out), *SMALL)
        status, text, _ = run(quality.app, *words, capsys=capsys, patch=monkeypatch)
        assert status == 0
        found = read_quality(out)
        # 16 windows of 96: an eighth sets thresholds, 47 of each other are scored.
        assert found.tokens == 14 * 47
        assert "658 tokens scored in 14 windows of 96" in text
        for row in found.rows:
            assert row.perplexity > 0.98 * row.dense_perplexity
            assert 0.0 < row.log_ratio_se < 0.2
            assert 0.3 < row.agreement < 1.0
    out = tmp_path / "tiny-llama-py.json"
    teal = {row.policy: row for row in read_quality(out).rows}
    assert teal["teal(keep=0.5)"].perplexity > teal["teal(keep=0.9)"].perplexity
    load_ = ("--prompt-tokens", "128", "--output-tokens", "16")
    here = ("--model", model_of("tiny-llama-py"), "--device", "h100-sxm", "--quality", str(out), *load_)
    ratio = teal["teal(keep=0.5)"].perplexity / teal["teal(keep=0.5)"].dense_perplexity
    # What was measured goes before what papers say of other models; in between, on the line of the logarithms.
    for policy, want in (("teal(keep=0.5)", f"{ratio:.3f}x dense perplexity"), ("w4a16+kivi(window=16)", "658 tokens")):
        status, text, _ = run(predict.app, *here, "--policy", policy, capsys=capsys, patch=monkeypatch)
        assert status == 0
        assert f"(measured: {want}" in text or want in text
        assert "measured" in text
    status, text, _ = run(predict.app, *here, "--policy", "teal(keep=0.7)", "--json", capsys=capsys, patch=monkeypatch)
    row = json.loads(text)["rows"][0]
    both = [teal[f"teal(keep={k})"] for k in ("0.5", "0.9")]
    middle = np.exp(np.mean([np.log(r.perplexity / r.dense_perplexity) for r in both]))
    assert row["quality_perplexity_ratio"] == pytest.approx(middle)
    assert row["quality_basis"] == "measured"
    status, text, _ = run(predict.app, *here, "--policy", "teal(keep=0.2)", capsys=capsys, patch=monkeypatch)
    assert LOSS_UNKNOWN in text.splitlines()[0]
    status, text, _ = run(
        sweep.app, *here, "--policy", "dense", "--policy", "teal(keep=0.9)", "--quiet", capsys=capsys, patch=monkeypatch
    )
    assert status == 0
    assert "dense perplexity" in text
    status, _, err = run(
        predict.app, "--model", "llama-2-7b", *here[2:], "--policy", "teal", capsys=capsys, patch=monkeypatch
    )
    assert status == 2
    assert "was measured on tiny-llama-py" in err


def test_a_run_goes_on_where_it_was_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "q.json"
    words = ["--model", model_of("tiny-llama-py"), "--text", str(TEXT), "--out", str(out), *SMALL]
    status, _, err = run(quality.app, *words, "--policy", "cats", capsys=capsys, patch=monkeypatch)
    assert status == 0, err
    first = read_quality(out).rows[0]
    status, _, err = run(quality.app, *words, "--policy", "w4a16", capsys=capsys, patch=monkeypatch)
    assert status == 2
    assert "--resume" in err
    measured: list[str] = []
    real = quality.measure
    monkeypatch.setattr(quality, "measure", lambda s, h, p: (measured.append(p.spelling), real(s, h, p))[1])
    assert run(quality.app, *words, "--policy", "cats,w4a16", "--resume", capsys=capsys, patch=monkeypatch)[0] == 0
    assert measured == ["w4a16"]
    assert [r.policy for r in read_quality(out).rows] == ["cats(keep=0.5)", "w4a16"]
    assert read_quality(out).rows[0] == first
    status, _, err = run(
        quality.app, *words, "--policy", "cats", "--resume", "--seed", "1", capsys=capsys, patch=monkeypatch
    )
    assert status == 2
    assert "another model, text or setting" in err


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ("tael", "did you mean 'teal'"),
        ("shadowllm", "traces.shadow"),
        ("sparq", "these can: cats, double_sparsity"),
        ("quest(gqa=shared)", "gqa=shared cannot be run here"),
        ("wanda(depth=0.4:0.6)", "depth=0.4:0.6 cannot be run here"),
        ("teal+w4a16", "teal leaves the prompt dense"),
        ("dense", "name a policy"),
    ],
)
def test_what_cannot_be_measured_is_refused(policy: str, says: str) -> None:
    with pytest.raises(ShadowlineError) as refused:
        quality.policies_of([policy])
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("policy", ["h2o(keep=0.3)", "snapkv(budget=20,observe=8)", "double_sparsity(budget=16)"])
def test_methods_that_look_back_score_as_in_one_pass(policy: str, subject: Subject) -> None:
    """What the prompts looked at is found out while the method is already in place."""
    held = scene(subject.model, subject.calibration.repeat(2, 1), subject.prompt)
    found = quality.measure(subject, held, parse(policy))
    (one,) = parse(policy).members
    subject.before = None
    with measurer_of(one).run(subject, one) if one.name == "double_sparsity" else in_one_pass(subject, one):
        whole = judge(subject.model, held, lambda _: nullcontext(), whole=True)
    assert found.perplexity == pytest.approx(whole.perplexity, rel=1e-4)
    assert abs(np.log(found.perplexity / found.dense_perplexity)) > 1e-3


def in_one_pass(subject: Subject, policy: Any) -> Any:
    """H2O or SnapKV with the prompt's queries in the pass."""
    options = {"budget": round(0.3 * subject.context)} if policy.name == "h2o" else {"budget": 20, "observe": 8}
    return attending(subject.model, policy.name, subject.prompt, [], **options)


def test_a_kv_method_goes_with_what_leaves_the_prompt_dense(subject: Subject) -> None:
    """TEAL beside KIVI loses more than either alone."""
    held = scene(subject.model, subject.calibration.repeat(2, 1), subject.prompt)
    spelled = ("teal(keep=0.5)", "kivi(window=4)", "teal(keep=0.5)+kivi(window=4)")
    teal, kivi, both = (np.log(quality.measure(subject, held, parse(p)).perplexity) for p in spelled)
    dense = np.log(held.dense_perplexity)
    assert min(teal, kivi) > dense + 1e-3
    assert both > max(teal, kivi) + 1e-3


def test_the_list_is_of_registered_policies_and_their_fields() -> None:
    for name, how in MEASURERS.items():
        assert set(how.fields) <= set(POLICIES[name].model_fields), name
        assert measurer_of(POLICIES[name]()) is how


def test_a_budget_that_keeps_everything_is_refused(subject: Subject) -> None:
    held = scene(subject.model, subject.calibration.repeat(2, 1), subject.prompt)
    with pytest.raises(InputError, match="keeps everything of windows of 64 tokens"):
        quality.measure(subject, held, parse("quest(budget=512)"))


def test_weights_are_pruned_by_hand_and_given_back(subject: Subject) -> None:
    """Wanda keeps half of every row; 2:4 two of every four; a group rounds to 16 values; after, all is as before."""
    from simulator.policies import Policies

    before = {n: p.clone() for n, p in subject.model.named_parameters()}
    part = subject.parts[0]
    for policy, check in (
        ("wanda(keep=0.5)", lambda w: ((w != 0).sum(1) == w.shape[1] // 2).all()),
        ("nm24", lambda w: ((w.view(len(w), -1, 4) != 0).sum(2) <= 2).all()),
        ("w4a16(group=64)", lambda w: all(len(g.unique()) <= 16 for row in w[:4] for g in row.split(64))),
    ):
        ((one, how),) = measurers_of(Policies(parse(policy).members))
        with how.run(subject, one):
            assert all(check(m.weight) for site in SITES for m in part.site(site)), policy
        assert all(torch.equal(before[n], p) for n, p in subject.model.named_parameters()), policy


def test_wanda_keeps_the_largest_products_of_weight_and_input(subject: Subject) -> None:
    """Of one row of the second projection: |w_j| times the root of the summed squares of input j over the text."""
    part, seen = subject.parts[1], []
    handle = part.down.register_forward_pre_hook(lambda _m, args: seen.append(args[0].flatten(0, 1)))
    with torch.inference_mode():
        for row in subject.calibration:
            subject.model(input_ids=row[None], use_cache=False)
    handle.remove()
    score = part.down.weight[5].abs() * torch.cat(seen).square().sum(0).sqrt()
    kept = set(score.topk(score.numel() // 4).indices.tolist())
    policy = parse("wanda(keep=0.25)").members[0]
    with measurer_of(policy).run(subject, policy):
        assert set(part.down.weight[5].nonzero().flatten().tolist()) == kept


@pytest.mark.parametrize("policy", ["teal(keep=0.3)", "wina(keep=0.3)"])
def test_thresholds_keep_their_share_of_the_calibration_text(policy: str, subject: Subject) -> None:
    one = parse(policy).members[0]
    live: dict[str, list[float]] = {site: [] for site in SITES}

    def watch(site: str):
        return lambda _m, args: live[site].append(float((args[0] != 0).float().mean()))

    with measurer_of(one).run(subject, one):
        handles = [p.site(s)[0].register_forward_pre_hook(watch(s)) for p in subject.parts for s in SITES]
        with torch.inference_mode():
            for row in subject.calibration:
                subject.model(input_ids=row[None], use_cache=False)
        for handle in handles:
            handle.remove()
    # The first layer's input is the calibration's own; later ones have lost a little.
    assert live["attn.in"][0] == pytest.approx(0.3, abs=0.01)
    assert np.mean([np.mean(v) for v in live.values()]) == pytest.approx(0.3, abs=0.06)


def test_no_change_is_no_loss_and_the_error_is_that_of_the_windows(subject: Subject) -> None:
    """Without a policy ratio 1 and error 0; else the spread of the windows' rises over the root of their number."""
    ids = subject.calibration.roll(1, 0).repeat(2, 1)[:3]
    held = scene(subject.model, ids, subject.prompt)
    same = judge(subject.model, held, lambda _: nullcontext(), whole=True)
    assert same.agreement == 1.0
    assert same.log_ratio_se == pytest.approx(0.0, abs=1e-6)
    assert same.perplexity == pytest.approx(held.dense_perplexity)
    policy = parse("wanda(keep=0.3)").members[0]
    with measurer_of(policy).run(subject, policy):
        found = judge(subject.model, held, lambda _: nullcontext(), whole=True)
        with torch.inference_mode():
            logits = subject.model(input_ids=ids[:, :-1], use_cache=False).logits[:, subject.prompt :]
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, subject.prompt + 1 :], reduction="none")
    rise = loss.double().mean(1) - held.loss_nat / held.best.shape[1]
    assert np.log(found.perplexity / held.dense_perplexity) == pytest.approx(float(rise.mean()), rel=1e-4)
    assert found.log_ratio_se == pytest.approx(float(np.std(rise.numpy(), ddof=1)) / np.sqrt(3.0), rel=1e-3)


def test_a_file_of_another_kind_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    for text, says in (("{", "is not JSON"), ('{"kind": "x"}', "holds no measured quality")):
        path.write_text(text, "utf-8")
        with pytest.raises(InputError, match=says):
            read_quality(path)
    path.write_text('{"kind": "shadowline.quality", "schema": 9}', "utf-8")
    with pytest.raises(InputError, match="schema 9 is unknown"):
        read_quality(path)
    with pytest.raises(InputError, match="cannot read"):
        read_quality(tmp_path / "none.json")
