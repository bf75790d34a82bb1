"""GGUF headers: read exactly, refused in one line where they are not understood."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from gguf_bytes import ENDS, F16, F32, FACTS, HIDDEN, MXFP4, Q4_K, TENSORS, VOCAB, Table, gguf, layer, text, value
from typer.testing import CliRunner

from simulator.base.dtypes import GGUF_TYPES, get_format
from simulator.base.errors import InputError, UnknownNameError
from simulator.inference.group import group_of
from simulator.inference.memory import weights_bytes
from simulator.model import hub
from simulator.model.gguf import header
from simulator.models import app as models_app
from simulator.predict import app
from simulator.scenario.scenario import Scenario


def written(path: Path, facts: Any = FACTS, tensors: Table = TENSORS, **more: Any) -> str:
    path.write_bytes(gguf(facts, tensors, **more))
    return str(path)


def test_bytes_are_those_of_the_table(tmp_path: Path) -> None:
    """Per layer 512 x 512 (q), 2 x 512 x 128 (k, v), 512 x 512 (o) and 3 x 512 x 1024; ends 2 x 512 x 1000.

    Q4_K takes 144 bytes for 256 weights, Q6_K 210, Q8_0 34 for 32, norms 4 each.
    """
    got = hub.find_model(written(tmp_path / "tiny-Q4_K_M.gguf"))
    per_layer = 2 * 262_144 + 2 * 65_536 + 3 * 524_288
    assert got.n_params == 2 * (per_layer + 2 * 512) + 2 * 512_000 + 512
    q4, q6, q8 = 144 / 256, 210 / 256, 34 / 32
    layer_bytes = q4 * (2 * 262_144 + 65_536 + 2 * 524_288) + q6 * 65_536 + q8 * 524_288 + 4 * 2 * 512
    wanted = 2 * layer_bytes + (q4 + q6) * 512_000 + 4 * 512
    group = group_of(Scenario(model=str(tmp_path / "tiny-Q4_K_M.gguf"), device="rtx-4090", engine="llama.cpp"))
    assert weights_bytes(group.lowering) == pytest.approx(wanted, rel=1e-12)
    assert got.name == "tiny-Q4_K_M"
    assert (got.method, group.kv_dtype) == ("gguf", "fp16")
    assert group.dtype == (
        "fp16, attention q4_k+q6_k in 2 of 4 matrices, attention q4_k in 2 of 4 matrices, ffn q4_k in 2 of 4 matrices,"
        " ffn q8_0 in 2 of 4 matrices, head q6_k, embedding q4_k"
    )
    # What is asked for goes first, norms and all.
    plain = group_of(Scenario(model=str(tmp_path / "tiny-Q4_K_M.gguf"), device="rtx-4090", dtype="fp16"))
    assert weights_bytes(plain.lowering) == pytest.approx(2 * got.n_params - 2 * 512_000 + q4 * 512_000)


def test_without_an_output_matrix_the_embedding_stands_at_both_ends(tmp_path: Path) -> None:
    tied = [t for t in TENSORS if t[0] != "output.weight"]
    got = hub.find_model(written(tmp_path / "t.gguf", tensors=tied))
    assert got.tied_embeddings
    both = hub.find_model(written(tmp_path / "u.gguf"))
    assert both.n_params - got.n_params == HIDDEN * VOCAB
    assert got.ends.of("lm_head") == get_format("q4_k")


def test_parts_are_read_as_one(tmp_path: Path) -> None:
    whole = hub.find_model(written(tmp_path / "tiny.gguf"))
    split = {"split.no": 0, "split.count": 2, "split.tensors.count": len(TENSORS)}
    first, second = (tmp_path / f"tiny-0000{i}-of-00002.gguf" for i in (1, 2))
    written(first, {**FACTS, **split}, TENSORS[:5])
    with pytest.raises(InputError, match=r"tiny-00002-of-00002\.gguf does not lie beside it"):
        hub.find_model(str(first))
    written(second, {"split.no": 1, "split.count": 2}, TENSORS[5:])
    for part in (first, second):
        got = hub.find_model(str(part))
        assert (got.name, got.layers, got.ends, got.rest) == ("tiny", whole.layers, whole.ends, whole.rest)
    written(second, {"split.no": 1}, TENSORS[5:-1])
    with pytest.raises(InputError, match="its parts hold 21 tensors, but 22 are stated"):
        hub.find_model(str(first))
    written(second, {"split.no": 1}, TENSORS[4:])
    with pytest.raises(InputError, match="of another part a second time"):
        hub.find_model(str(first))
    written(tmp_path / "renamed.gguf", {**FACTS, **split}, TENSORS[:5])
    with pytest.raises(InputError, match="one of 2 parts"):
        hub.find_model(str(tmp_path / "renamed.gguf"))


def test_experts_and_routers(tmp_path: Path) -> None:
    """Four experts of MXFP4 (17 bytes for 32 weights) in place of the dense FFN, a router in fp32."""
    facts = {**FACTS, "llama.expert_count": 4, "llama.expert_used_count": 2}
    tensors = [t for t in TENSORS if "ffn_" not in t[0] or "norm" in t[0]]
    for i in range(2):
        tensors += [(f"blk.{i}.ffn_{n}_exps.weight", (512, 1024, 4), MXFP4) for n in ("gate", "up")]
        tensors += [(f"blk.{i}.ffn_down_exps.weight", (1024, 512, 4), MXFP4)]
        tensors += [(f"blk.{i}.ffn_gate_inp.weight", (512, 4), F32)]
    got = hub.find_model(written(tmp_path / "moe.gguf", facts, tensors))
    assert got.architecture == "mixtral"
    experts = 2 * 4 * 3 * 524_288 * 17 / 32
    attention = 2 * (144 / 256 * (2 * 262_144 + 65_536) + 210 / 256 * 65_536)
    rest = 4 * (5 * 512 + 2 * 4 * 512)
    group = group_of(Scenario(model=str(tmp_path / "moe.gguf"), device="rtx-4090", engine="llama.cpp"))
    ends = (144 + 210) / 256 * 512_000
    assert weights_bytes(group.lowering) == pytest.approx(experts + attention + rest + ends, rel=1e-12)


def test_layers_that_predict_further_are_left_out_and_told(tmp_path: Path) -> None:
    facts = {**FACTS, "llama.block_count": 3, "llama.nextn_predict_layers": 1}
    got = hub.find_model(written(tmp_path / "n.gguf", facts, [*TENSORS, *layer(2)]))
    assert got.n_layers == 2
    assert any("MB of multi-token-prediction layers in the file are left out" in note for note in got.notes)
    assert any("128 bytes of the file are tables" in note for note in got.notes)


LIST_OF_LISTS = struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 4, 0)
REFUSED: list[tuple[bytes, str]] = [
    (b"", "does not begin with GGUF"),
    (b"GGML" + bytes(20), "does not begin with GGUF"),
    (b"GGUF", "ends in the middle"),
    (gguf(FACTS, TENSORS, version=1), "has version 1"),
    (b"GGUF" + struct.pack(">I", 3) + bytes(16), "is big-endian"),
    (gguf(FACTS, TENSORS)[:-3], "ends in the middle"),
    (b"GGUF" + struct.pack("<IQQ", 3, 2**62, 0), "ends in the middle"),
    (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**62), "ends in the middle"),
    (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63), "ends in the middle"),
    (gguf({"x": struct.pack("<IIQ", 9, 4, 2**61)}, ()), "ends in the middle"),
    (gguf({"x": struct.pack("<IIQ", 9, 8, 2**61)}, ()), "ends in the middle"),
    (gguf({"x": LIST_OF_LISTS}, ()), "list of lists"),
    (gguf({"x": struct.pack("<I", 99)}, ()), "type 99"),
    (gguf({}, TENSORS), "general.architecture"),
    (gguf({**FACTS, "general.architecture": "lama"}, TENSORS), "'lama', which is not read; did you mean llama"),
    (gguf({**FACTS, "general.architecture": "clip"}, TENSORS), "which is not read"),
    (gguf({k: v for k, v in FACTS.items() if "block" not in k}, TENSORS), "does not say llama.block_count"),
    (gguf({**FACTS, "llama.attention.head_count": [8, 4]}, TENSORS), "differs from layer to layer"),
    (gguf({**FACTS, "llama.attention.head_count": "8"}, TENSORS), "num_attention_heads"),
    (gguf({**FACTS, "llama.attention.key_length": 64, "llama.attention.value_length": 32}, TENSORS), "another width"),
    (gguf({**FACTS, "llama.feed_forward_length": 2048}, TENSORS), "weights, but a llama of its facts has"),
    (gguf(FACTS, TENSORS[:-1]), "weights, but a llama of its facts has"),
    (gguf(FACTS, [*TENSORS, TENSORS[0]]), "lists 'token_embd.weight' twice"),
    (gguf(FACTS, [*TENSORS[:-1], ("blk.1.ffn_low.weight", (1024, 512), Q4_K)]), "has no blk.1.ffn_down.weight"),
    (gguf(FACTS, [("token_embd.weight", (512, 1000), 77)]), "type 77"),
    (gguf(FACTS, [("token_embd.weight", (500, 1000), Q4_K)]), "q4_k cannot store"),
    (gguf(FACTS, [("token_embd.weight", (), F16)]), "0 dimensions"),
    (gguf(FACTS, [("a", (2**40, 2**40), F16)]), "cannot store"),
    (gguf(FACTS, []), "has no token_embd.weight"),
]


@pytest.mark.parametrize(("content", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_is_not_understood_ends_in_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "f.gguf"
    path.write_bytes(content)
    done = CliRunner().invoke(app, ["--model", str(path), "--device", "rtx-4090"])
    assert isinstance(done.exception, InputError)
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)
    assert "f.gguf" in str(done.exception)


def test_a_header_is_read_up_to_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "f.gguf")
    monkeypatch.setattr(header, "MOST_BYTES", 4096)
    with pytest.raises(InputError, match="longer than"):
        hub.find_model(path)


def test_long_lists_and_texts_are_passed_over(tmp_path: Path) -> None:
    facts = {"a": text("x" * 70_000), **FACTS}
    facts["a"] = struct.pack("<I", 8) + facts["a"]
    facts["b"] = struct.pack("<IIQ", 9, 0, 70_000) + bytes(70_000)
    facts["c"] = value("\ud800")
    read = header.read_header(Path(written(tmp_path / "f.gguf", facts)))
    assert (read.facts["a"], read.facts["b"], read.facts["c"]) == ("", None, "")
    assert len(read.tensors) == len(TENSORS)


def test_a_folder_stands_for_its_one_model(tmp_path: Path) -> None:
    written(tmp_path / "a.gguf")
    assert hub.find_model(str(tmp_path)).name == "a"
    written(tmp_path / "b.gguf", tensors=ENDS)
    with pytest.raises(InputError, match=r"holds 2 GGUF models; name one: a\.gguf, b\.gguf"):
        hub.find_model(str(tmp_path))
    done = CliRunner().invoke(models_app, ["--check", str(tmp_path)])
    assert done.exit_code == 2
    assert "1 of 2 read" in done.stdout
    assert "b.gguf: holds" in done.stdout


def test_an_edited_file_is_read_anew(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf")
    asked = Scenario(model=path, device="rtx-4090", engine="llama.cpp")
    before = weights_bytes(group_of(asked).lowering)
    written(tmp_path / "a.gguf", tensors=[*ENDS, *layer(0, v=Q4_K), *layer(1, v=Q4_K)])
    saved = 2 * 65_536 * (210 - 144) / 256
    assert before - weights_bytes(group_of(asked).lowering) == pytest.approx(saved)


def test_a_gguf_repository_is_not_the_16_bit_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its config.json is that of the model it was made of."""
    snapshot = tmp_path / "models--unsloth--Some-8B-GGUF" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--unsloth--Some-8B-GGUF" / "refs").mkdir()
    (tmp_path / "models--unsloth--Some-8B-GGUF" / "refs" / "main").write_text("abc")
    config = '{"model_type": "llama", "hidden_size": 512, "num_hidden_layers": 2, "num_attention_heads": 8,'
    config += ' "intermediate_size": 1024, "vocab_size": 1000, "max_position_embeddings": 2048}'
    (snapshot / "config.json").write_text(config)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"holds GGUF files.*FILE\.gguf"):
        hub.find_model("unsloth/Some-8B-GGUF")


@pytest.mark.parametrize(
    ("name", "bits"),
    # Bytes of a block over its weights, from ggml-common.h; ExLlama's bits stand in the name.
    [
        ("q2_k", 2.625),
        ("q3_k", 3.4375),
        ("Q4_K", 4.5),
        ("q5_k", 5.5),
        ("q6_k", 6.5625),
        ("q8_0", 8.5),
        ("q4_0", 4.5),
        ("iq1_s", 1.5625),
        ("iq2_xxs", 2.0625),
        ("iq4_xs", 4.25),
        ("gguf_mxfp4", 4.25),
        ("exl2_4.65bpw", 4.65),
        ("EXL3_3bpw", 3.0),
    ],
)
def test_layouts_are_formats(name: str, bits: float) -> None:
    fmt = get_format(name)
    assert fmt.weight_bits == bits
    assert fmt.label == name.casefold()
    got = group_of(Scenario(model="llama-3.1-8b", device="rtx-4090", engine="llama.cpp", dtype=name))
    sixteen = group_of(Scenario(model="llama-3.1-8b", device="rtx-4090", engine="llama.cpp", dtype="fp16"))
    matrices = 32 * (4096 * (4096 * 2 + 2 * 1024) + 3 * 4096 * 14336)
    assert weights_bytes(sixteen.lowering) - weights_bytes(got.lowering) == pytest.approx(matrices * (16 - bits) / 8)


@pytest.mark.parametrize("name", ["q7_k", "exl2_9bpw", "exl4_4bpw", "exl2_bpw", "q4", "exl2_0.5bpw"])
def test_no_layout_of_that_name(name: str) -> None:
    with pytest.raises(UnknownNameError):
        get_format(name)


def test_blocks_are_those_of_the_gguf_package() -> None:
    gguf_package = pytest.importorskip("gguf")
    sizes = gguf_package.constants.GGML_QUANT_SIZES
    known = {int(kind): size for kind, size in sizes.items() if int(kind) in GGUF_TYPES}
    assert set(known) == set(GGUF_TYPES)
    for number, (block, size) in known.items():
        assert GGUF_TYPES[number][0] == block
        assert GGUF_TYPES[number][1].weight_bytes * block == size


@pytest.mark.parametrize(
    ("mix", "gib", "bits"),
    # What llama.cpp's quantize/README.md prints of Llama-3.1-8B.
    [
        ("q3_k_s", 3.41, 3.64),
        ("q3_k_m", 3.74, 4.00),
        ("q3_k_l", 4.02, 4.30),
        ("q4_k_s", 4.36, 4.67),
        ("q4_k_m", 4.58, 4.89),
        ("q5_k_s", 5.21, 5.57),
        ("q5_k_m", 5.33, 5.70),
    ],
)
def test_mixtures_are_as_large_as_llama_cpp_makes_them(mix: str, gib: float, bits: float) -> None:
    got = group_of(Scenario(model="llama-3.1-8b", device="rtx-4090", engine="llama.cpp", dtype=mix.upper()))
    stored = weights_bytes(got.lowering)
    assert stored / 2**30 == pytest.approx(gib, abs=0.0051)
    assert 8 * stored / got.model.n_params == pytest.approx(bits, abs=0.0051)
    assert str(Scenario(model="llama-3.1-8b", device="rtx-4090", dtype=mix.upper()).dtype) == mix


@pytest.mark.parametrize(
    ("model", "mix", "of_file"),
    # Bytes of TheBloke's and bartowski's files, which hold 0.7 to 8 MB of tokenizer beside the weights.
    [
        ("llama-2-7b", "q4_k_m", 4_081_004_224),
        ("llama-2-7b", "q3_k_m", 3_298_004_672),
        ("llama-3.1-70b", "q4_k_m", 42_520_395_584),
    ],
)
def test_mixtures_are_as_large_as_published_files(model: str, mix: str, of_file: int) -> None:
    got = weights_bytes(group_of(Scenario(model=model, device="h100-sxm", engine="llama.cpp", dtype=mix)).lowering)
    assert 0 < of_file - got < 8.5e6


def test_mixtures_by_hand_and_where_none_is_known() -> None:
    """Mixtral: attention's K and V in Q8_0, its output in Q5_K; inputs of 2880 are no super-blocks of 256."""
    got = group_of(Scenario(model="mixtral-8x7b", device="h100-sxm", engine="llama.cpp", dtype="q4_k_m")).model
    layer = got.layers[5]
    q, kv = 4096, 1024
    out = layer.formats.of("attn.o")
    assert out is not None
    assert out.label == "q5_k"
    mean = layer.formats.of("attn.qkv")
    assert mean is not None
    assert mean.weight_bits == pytest.approx((4.5 * q + 8.5 * 2 * kv) / (q + 2 * kv))
    assert mean.label == "q4_k+q8_0"
    oss = group_of(Scenario(model="gpt-oss-20b", device="h100-sxm", engine="llama.cpp", dtype="q4_k_m")).model
    # Layer 5 of 24 gets more bits: 3 <= 5 < 21 and (5 - 3) % 3 == 2.
    fused = oss.layers[5].formats.of("attn.qkv")
    assert fused is not None
    assert fused.label == "q5_0+q8_0"
    with pytest.raises(InputError, match="pass its GGUF file as --model"):
        group_of(Scenario(model="deepseek-v3", device="h100-sxm", tp=8, dtype="q4_k_m"))
