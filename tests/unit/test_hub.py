"""How a model is found: names, paths, cache, network; and what a person reads when it is not."""

from __future__ import annotations

import builtins
import json
import sys
import types
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from simulator.base.errors import AmbiguousNameError, InputError, ShadowlineError, UnknownNameError
from simulator.model import hub

TINY: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 16,
    "max_position_embeddings": 32,
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache of its own and no way out, unless a test opens one."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def write_snapshot(root: Path, repo: str, commit: str, ref: str | None = "main") -> Path:
    folder = root / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(TINY))
    if ref:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
    return snapshot


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("llama-2-7b", "llama-2-7b"),
        ("Llama 2 7B", "llama-2-7b"),
        ("LLAMA_2_7B", "llama-2-7b"),
        ("meta-llama/Llama-2-7b-hf", "llama-2-7b"),
        ("llama2-7b", "llama-2-7b"),
        ("llama2-70b-99.9", "llama-2-70b"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("llama3_1-405b", "llama-3.1-405b"),
        ("LLAMA 3 (70B)", "llama-3-70b"),
        ("deepseek-ai/DeepSeek-R1", "deepseek-v3"),
        ("openai/gpt-oss-120b", "gpt-oss-120b"),
        ("Megatron-530B", "gpt-530b"),
        ("Mixtral 46.7B", "mixtral-8x7b"),
        ("Vicuna 7B", "llama-2-7b"),
        ("ibm/mpt-7b-instruct2", "mpt-7b"),
        ("  qwen3-32b ", "qwen3-32b"),
    ],
)
def test_spellings(text: str, name: str) -> None:
    assert hub.find_model(text).name == name
    assert hub.resolve(text) == name


def test_every_alias_leads_to_its_model() -> None:
    for name in hub.list_models():
        for spelling in hub.aliases(name):
            assert hub.resolve(spelling) == name


def test_every_alias_target_is_bundled() -> None:
    import tomllib

    table = tomllib.loads((files("hw_profiles") / "models" / "aliases.toml").read_text("utf-8"))
    names = set(hub.list_models())
    unknown = sorted(set(table["models"]) - names)
    assert not unknown, f"hw_profiles/models/aliases.toml: [models] {unknown}: there is no such .json beside it"


@pytest.mark.parametrize(
    ("added", "told"),
    [
        ('"smollm2" = ["HuggingFaceTB/SmolLM2-1.7B"]', "or more; other spellings of one model stand"),
        ('"llama" = ["llama-2-7b", "llama-9-7b"]', "two bundled models or more"),
        ('"llama" ["llama-2-7b"]', r"aliases\.toml:\d+: not valid TOML"),
    ],
)
def test_a_slip_in_the_aliases_is_one_line(added: str, told: str, tmp_path: Path, monkeypatch) -> None:
    text = (files("hw_profiles") / "models" / "aliases.toml").read_text("utf-8")
    (tmp_path / "aliases.toml").write_text(f"{text}\n{added}\n")
    (tmp_path / "quantised.toml").write_text("")
    for name in hub.list_models():
        (tmp_path / f"{name}.json").write_text("{}")
    monkeypatch.setattr(hub, "_folder", lambda: tmp_path)
    with pytest.raises(InputError, match=told):
        hub.find_model("llama-2-7b")


def test_ambiguous_name_lists_candidates() -> None:
    with pytest.raises(AmbiguousNameError, match=r"llama-2-70b, llama-3-70b, llama-3\.1-70b"):
        hub.find_model("llama-70b")


def test_typo_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'llama-2-7b'"):
        hub.find_model("lama-2-7b")


def test_folder_file_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    other = tmp_path / "other.json"
    other.write_text(json.dumps(TINY))
    assert hub.find_model(str(folder)).name == "my-model"
    assert hub.find_model(str(folder / "config.json")).name == "my-model"
    assert hub.find_model(str(other)).name == "other"
    monkeypatch.chdir(tmp_path)
    assert hub.find_model("my-model").name == "my-model"
    assert hub.find_model("other.json").name == "other"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.find_model("~/my-model").name == "my-model"


def test_a_bundled_name_wins_over_a_folder_but_not_over_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "llama-2-7b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    monkeypatch.chdir(tmp_path)
    assert hub.find_model("llama-2-7b").hidden == 4096
    assert hub.find_model("./llama-2-7b").hidden == 8


def test_cache_is_read_without_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "hf" / "hub"
    write_snapshot(root, "someone/tiny", "a" * 40)
    assert hub.find_model("someone/tiny").name == "tiny"
    assert hub.find_model("someone/tiny@" + "a" * 40).name == "tiny"
    write_snapshot(root, "someone/tiny", "b" * 40, ref="v2")
    assert "b" * 40 in hub.find_model("someone/tiny@v2").source
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        hub.find_model("someone/tiny")
    write_snapshot(tmp_path / "elsewhere", "someone/tiny", "c" * 40)
    assert "c" * 40 in hub.find_model("someone/tiny").source


def test_a_revision_asks_for_the_file_not_the_bundled_shape() -> None:
    with pytest.raises(InputError, match=r"config\.json --revision v9'"):
        hub.find_model("meta-llama/Llama-2-7b-hf@v9")


def test_offline_error_says_what_to_run(tmp_path: Path) -> None:
    write_snapshot(tmp_path / "hf" / "hub", "someone/tiny", "a" * 40)
    with pytest.raises(InputError) as caught:
        hub.find_model("mystery/Llama-2-7c")
    text = str(caught.value)
    assert "'hf download mystery/Llama-2-7c config.json'" in text
    assert "llama-2-7b" in text
    assert "someone/tiny" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not a name"),
        ("   ", "is not a name"),
        ("a\0b", "is not a name"),
        ("./nowhere", "there is no file or folder"),
        ("nowhere.json", "there is no file or folder"),
        ("/nowhere/at/all", "there is no file or folder"),
        ("a/b/c", "unknown model"),
        ("org/name@", "is not a revision"),
        ("org/name@../../x y", "is not a revision"),
        ("org/name@..", "is not a revision"),
        ("-rf", "unknown model"),
        ("x" * 5000, "unknown model"),
    ],
)
def test_bad_text(text: str, said: str) -> None:
    with pytest.raises(ShadowlineError, match=said) as caught:
        hub.find_model(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1]", "JSON object"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"[" * 100_000, "JSON"),
        (b'{"model_type": "llama"}', "'hidden_size' is missing"),
        (b'{"model_type": "llama", "hidden_size": NaN}', "'hidden_size' is nan"),
        (b'{"a": ' + b"9" * 5000 + b"}", "JSON"),
    ],
)
def test_bad_file(tmp_path: Path, raw: bytes, said: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(raw)
    with pytest.raises(InputError, match=said) as caught:
        hub.find_model(str(file))
    assert str(file) in str(caught.value)


def test_line_of_the_error(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{\n  "model_type": "llama",\n  "hidden_size": -4\n}')
    with pytest.raises(InputError, match=r"config\.json:3: key 'hidden_size' is -4"):
        hub.find_model(str(file))
    file.write_text('{\n  "model_type": "llama"\n  "x": 1}')
    with pytest.raises(InputError, match=r"config\.json:3: is not valid JSON"):
        hub.find_model(str(file))


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        hub.find_model(str(tmp_path))
    (tmp_path / "params.json").write_text("{}")
    with pytest.raises(InputError, match=r"Mistral's params\.json"):
        hub.find_model(str(tmp_path))


def test_config_of_another_size_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.json"
    with file.open("wb") as handle:
        handle.truncate(17 * 2**20)
    with pytest.raises(InputError, match="larger than 16 MiB"):
        hub.find_model(str(file))


def fake_hub(monkeypatch: pytest.MonkeyPatch, outcome: Any) -> list[tuple[str, str, str | None]]:
    """A stand-in for huggingface_hub that returns a path or raises the named error."""
    calls: list[tuple[str, str, str | None]] = []
    errors = types.ModuleType("huggingface_hub.errors")
    known = {}
    for name, bases in (
        ("HfHubHTTPError", (OSError,)),
        ("RepositoryNotFoundError", ("HfHubHTTPError",)),
        ("GatedRepoError", ("RepositoryNotFoundError",)),
        ("RevisionNotFoundError", ("HfHubHTTPError",)),
        ("EntryNotFoundError", (Exception,)),
        ("LocalEntryNotFoundError", ("EntryNotFoundError",)),
        ("HFValidationError", (ValueError,)),
    ):
        known[name] = type(name, tuple(known.get(base, base) for base in bases), {})
        setattr(errors, name, known[name])

    def download(repo: str, filename: str, *, revision: str | None = None) -> str:
        calls.append((repo, filename, revision))
        if isinstance(outcome, str):
            raise known[outcome]("first line\nsecond line")
        if isinstance(outcome, Exception):
            raise outcome
        return str(outcome)

    module = types.ModuleType("huggingface_hub")
    module.hf_hub_download = download  # type: ignore[attr-defined]
    module.errors = errors  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    return calls


def test_download_fetches_the_config_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(TINY))
    calls = fake_hub(monkeypatch, file)
    assert hub.find_model("someone/New-Model@dev").name == "new-model"
    assert calls == [("someone/New-Model", "config.json", "dev")]


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        ("GatedRepoError", "'hf auth login'"),
        ("RepositoryNotFoundError", "the hub has no model"),
        ("RevisionNotFoundError", "has no revision"),
        ("EntryNotFoundError", "has no config.json"),
        ("LocalEntryNotFoundError", "hf download someone/new config.json"),
        ("HfHubHTTPError", "hf download someone/new config.json"),
        ("HFValidationError", "not a repository name: first line"),
        (ConnectionError("gone"), "cannot be reached"),
    ],
)
def test_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch, outcome: Any, said: str) -> None:
    fake_hub(monkeypatch, outcome)
    with pytest.raises(InputError) as caught:
        hub.find_model("someone/new")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match="huggingface_hub is not installed"):
        hub.find_model("someone/new")


def test_bundled_models_never_touch_cache_or_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_cached_config", lambda *_: pytest.fail("cache was read"))
    monkeypatch.setattr(hub, "_download", lambda *_: pytest.fail("network was used"))
    for name in hub.list_models():
        assert hub.find_model(name).name == name
