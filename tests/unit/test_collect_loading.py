"""Models are found and loaded safely, and every refusal is one line that says what to do."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch not installed")
transformers = pytest.importorskip("transformers", reason="transformers not installed")

from simulator.base.errors import InputError  # noqa: E402
from traces import loading, weights  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in the Hugging Face form, stored in bf16."""
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    save_tiny(path)
    return path


def save_tiny(path: Path, *, safe: bool = True) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    config = transformers.LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=257,
        eos_token_id=256,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(path)
    if not safe:
        torch.save(model.state_dict(), path / "pytorch_model.bin")
        (path / "model.safetensors").unlink()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)} | {"</s>": 256, "<s>": 257}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", bos_token="<s>").save_pretrained(
        path
    )


def load(text: str, *, revision: str | None = None, **options: Any) -> loading.Loaded:
    found = loading.find(text, revision=revision, allow_pickle=options.get("allow_pickle", False))
    return loading.load(found, device="cpu", **options)


def refused(text: str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(text, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_loads_in_the_stored_dtype_or_the_one_asked_for(folder: Path) -> None:
    stored = load(str(folder))
    assert (stored.dtype, stored.device) == ("bfloat16", "cpu")
    assert stored.checkpoint.name == "tiny-llama"
    assert stored.checkpoint.revision == "local"
    assert not stored.model.training
    assert not any(p.requires_grad for p in stored.model.parameters())
    assert load(str(folder), dtype="fp32").dtype == "float32"


def test_folder_called_model_takes_its_parents_name(tmp_path: Path) -> None:
    save_tiny(tmp_path / "tiny" / "model")
    assert loading.find(str(tmp_path / "tiny" / "model")).name == "tiny"


def test_wrong_folder_names_the_right_one(folder: Path) -> None:
    assert f"did you mean {folder}?" in refused(str(folder.parent))
    assert f"did you mean {folder}?" in refused(str(folder.parent / "tiny-lama"))
    assert "give the folder it lies in" in refused(str(folder / "config.json"))
    assert "has no revision" in refused(str(folder), revision="main")
    assert "org/name" in refused("no-such-model")


def test_folder_without_config_or_weights(tmp_path: Path) -> None:
    assert "no config.json; a model folder holds" in refused(str(tmp_path))
    (tmp_path / "params.json").write_text("{}")
    assert "params.json" in refused(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert "the weights are missing" in refused(str(tmp_path))


def test_pickles_are_refused_unless_asked_for(tmp_path: Path) -> None:
    save_tiny(tmp_path, safe=False)
    message = refused(str(tmp_path))
    assert "pytorch_model.bin" in message
    assert "--allow-pickle" in message
    assert load(str(tmp_path), allow_pickle=True).dtype == "bfloat16"


def test_code_of_a_repository_is_never_run(folder: Path, tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(witness)!r}, 'w').close()\n")
    assert "code" in refused(str(tmp_path))
    assert not witness.exists()


def test_cut_and_damaged_weights(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-10])
    assert "is cut short" in refused(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"<html>")
    assert "is not a safetensors file" in refused(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"{{{{")
    assert "damaged safetensors header" in refused(str(tmp_path))


def test_memory_is_checked_before_loading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = weights.safetensors_header(folder / "model.safetensors")
    parameters = sum(p.numel() for p in load(str(folder)).model.parameters())
    assert weights.parameter_bytes([header], None) == 2 * parameters
    assert weights.parameter_bytes([header], 4) == 4 * parameters
    monkeypatch.setattr(loading, "free_bytes", lambda device: 3 * parameters)
    load(str(folder))
    message = refused(str(folder), dtype="fp32")
    assert "short by" in message
    assert "--dtype bf16" in message


def test_a_page_cache_is_free_and_a_limit_counts(tmp_path: Path) -> None:
    assert weights.cgroup_free_bytes(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    assert weights.cgroup_free_bytes(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 300\nfile 600\ninactive_anon 1\ninactive_file 550\n")
    assert weights.cgroup_free_bytes(tmp_path) == 1000 - 900 + 550
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  8 kB\n")
    assert weights.available_bytes(tmp_path / "meminfo") == 8192
    assert weights.available_bytes(tmp_path / "nothing") is None


def test_weights_of_an_unknown_type_are_not_guessed() -> None:
    assert weights.tensor_bytes("F8_E4M3", 10, None) == weights.tensor_bytes("BOOL", 10, 4) == 10
    assert weights.tensor_bytes("F8_E4M3", 10, 2) == 20
    with pytest.raises(InputError, match="weights stored as F4 are not known here"):
        weights.parameter_bytes([{"w": {"dtype": "F4", "shape": [8, 8]}}], None)


def test_free_memory_is_known_here() -> None:
    free = weights.free_bytes("cpu")
    assert free is None or 2**20 < free < 2**50


def test_dtype_and_device_names(folder: Path) -> None:
    assert "did you mean 'bf16'" in refused(str(folder), dtype="bf-16")
    for name in ("gpu", "cuda:x"):
        with pytest.raises(InputError, match="is not auto, cpu, cuda"):
            loading.pick_device(name)
    with pytest.raises(InputError, match="torch sees"):
        loading.pick_device("cuda:99")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("GatedRepoError", "then run 'hf auth login' (older: huggingface-cli login)"),
        ("RepositoryNotFoundError", "check the spelling, or run 'hf auth login'"),
        ("RevisionNotFoundError", "leave out --revision for main"),
        ("HfHubHTTPError", "run 'hf download someone/model --revision v9'"),
        ("LocalEntryNotFoundError", "HF_HUB_OFFLINE is set; unset it or run 'hf download"),
        ("ConnectionError", "the hub cannot be reached"),
    ],
)
def test_hub_errors_say_what_to_run(monkeypatch: pytest.MonkeyPatch, error: str, said: str) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    def download(*args: Any, **kwargs: Any) -> str:
        if error == "ConnectionError":
            raise ConnectionError("no route")
        if error == "LocalEntryNotFoundError":
            raise errors.LocalEntryNotFoundError("nothing cached")
        # Made without the response of the HTTP library that huggingface_hub happens to use.
        kind = getattr(errors, error)
        raised = kind.__new__(kind)
        Exception.__init__(raised, "first\nsecond")
        raise raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert said in refused("someone/model", revision="v9")


def test_bad_repository_name_and_offline_without_a_fake() -> None:
    assert "is not a repository name" in refused("some one/mod:el")
    assert "not in the cache and HF_HUB_OFFLINE is set" in refused("someone/never-downloaded")


def _renamed(state: dict[str, Any]) -> None:
    state["model.layers.0.mlp.gate_proj_old.weight"] = state.pop("model.layers.0.mlp.gate_proj.weight")


def _lacking(state: dict[str, Any]) -> None:
    del state["model.layers.0.self_attn.k_proj.weight"]


def _more(state: dict[str, Any]) -> None:
    state["model.layers.7.mlp.gate_proj.weight"] = state["model.layers.0.mlp.gate_proj.weight"].clone()


def _reshaped(state: dict[str, Any]) -> None:
    state["model.layers.0.mlp.gate_proj.weight"] = state["model.layers.0.mlp.gate_proj.weight"][:-8].contiguous()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_renamed, "lacks 'model.layers.0.mlp.gate_proj.weight'"),
        (_lacking, "lacks 'model.layers.0.self_attn.k_proj.weight', its layers would have random weights"),
        (_more, "holds 'model.layers.7.mlp.gate_proj.weight', which the model of its config.json has no place for"),
        (_reshaped, "holds 'model.layers.0.mlp.gate_proj.weight', in another shape than config.json says"),
    ],
)
def test_weights_that_do_not_meet_the_config_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    """Layers without weights were random ones, and their statistics were written as the model's."""
    from safetensors.torch import load_file, save_file

    save_tiny(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file, {"format": "pt"})
    assert words in refused(str(tmp_path))


def changed(name: str, **values: object) -> Callable[[Path], None]:
    """Set keys of a JSON file of a model's folder."""

    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def written(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def header(told: object) -> bytes:
    raw = json.dumps(told).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(4)


@pytest.mark.parametrize(
    "spoil",
    [
        written("config.json", b"{"),
        written("config.json", b"[]"),
        written("config.json", b"[" * 100_000),
        written("config.json", b" " * 2**21),
        changed("config.json", num_hidden_layers=10**9),
        changed("config.json", num_hidden_layers=-3),
        changed("config.json", hidden_size="wide"),
        changed("config.json", num_attention_heads=7),
        changed("config.json", hidden_act="nosuch"),
        changed("config.json", model_type="nosuch"),
        changed("config.json", vocab_size=10),
        changed("tokenizer.json", added_tokens=[{"id": 10**9, "content": "x"}]),
        changed("tokenizer.json", model={"type": "BPE", "vocab": 5}),
        written("tokenizer.json", b"[]"),
        written("tokenizer.json", b""),
        written("tokenizer_config.json", b'{"tokenizer_class": 5}'),
        written("tokenizer_config.json", b"nope"),
        written("model.safetensors", b""),
        written("model.safetensors", struct.pack("<Q", 2**62) + b"{}"),
        written("model.safetensors", struct.pack("<Q", 10) + b"not json!!"),
        written("model.safetensors", header({"x": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}})),
        written("model.safetensors", header({"x": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}})),
        written("model.safetensors", header({"x": 5})),
        written("model.safetensors", header([1, 2])),
    ],
)
def test_a_malformed_folder_is_one_line(folder: Path, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    bad = shutil.copytree(folder, tmp_path / "bad")
    spoil(bad)
    with pytest.raises(InputError) as error:
        load(str(bad))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
