"""Quantised checkpoints: sized as their files, run as engines do, refused where they are not understood."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from quantised_cases import BLOCKS, CASES, DENSE, GPTQ, MLA, MOE, L, Pick, ct, floats, ints, modelopt, stored
from typer.testing import CliRunner

from simulator.base.errors import InputError
from simulator.inference.group import Group, group_of
from simulator.inference.memory import weights_bytes
from simulator.model import hub
from simulator.model.architectures import from_config
from simulator.model.formats import GROUP_OF, apart, choose
from simulator.model.quantization import METHODS
from simulator.models import app as models_app
from simulator.ops.ops import Linear, Moe
from simulator.ops.step import decode_step, prefill_step
from simulator.predict import app
from simulator.scenario.grid import axis
from simulator.scenario.scenario import Scenario


def folder_of(path: Path, config: dict[str, Any], **beside: Any) -> str:
    (path / "config.json").write_text(json.dumps(config))
    for name, value in beside.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return str(path)


def group(path: Path, quantised: Any, shape: dict[str, Any] = DENSE, device: str = "b200", **more: Any) -> Group:
    config = {**shape, "quantization_config": quantised}
    return group_of(Scenario(model=folder_of(path, config), device=device, **more))


def test_the_corpus_is_as_large_as_it_says() -> None:
    assert len({name for name, *_ in CASES}) == len(CASES) >= 40
    tried = {str(c[2].get("quant_method", "modelopt")) for c in CASES}
    # Aliases of a reader need no case of their own.
    assert {METHODS[name] for name in tried} == set(METHODS.values()) - {
        METHODS[m] for m in ("fp_quant", "bitnet", "mlx")
    }


@pytest.mark.parametrize(("shape", "quantised", "pick"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_size_is_that_of_the_file(shape: dict[str, Any], quantised: dict[str, Any], pick: Pick, tmp_path: Path) -> None:
    got = weights_bytes(group(tmp_path, quantised, shape).lowering)
    assert got == pytest.approx(stored(shape, pick), rel=0.01)


@pytest.mark.parametrize(
    "method", ["aqlm", "vptq", "spqr", "higgs", "quanto", "gguf", "bitblas", "qqq", "experts_int8", "fp7", "awq2", ""]
)
def test_an_unknown_method_ends_in_one_line(method: str, tmp_path: Path) -> None:
    config = {**DENSE, "quantization_config": {"quant_method": method, "bits": 4}}
    done = CliRunner().invoke(app, ["--model", folder_of(tmp_path, config), "--device", "h100-sxm"])
    assert isinstance(done.exception, InputError) or done.exit_code == 2
    said = str(done.exception)
    assert "\n" not in said
    assert "config.json" in said
    assert "quant_method" in said or repr(method) in said


IGNORED = "model.layers.0.self_attn"


@pytest.mark.parametrize(
    ("shape", "quantised", "said"),
    [
        (DENSE, {"quant_method": "awq", "bits": 3}, "'bits' is 3"),
        (DENSE, {"quant_method": "gptq"}, "'bits' is missing"),
        (DENSE, {**GPTQ, "bits": 5}, "'bits' is 5"),
        (DENSE, {**GPTQ, "checkpoint_format": "bitblas"}, "checkpoint_format"),
        (DENSE, {**BLOCKS, "activation_scheme": "sometimes"}, "activation_scheme"),
        (DENSE, {**BLOCKS, "weight_block_size": [128]}, "two whole numbers"),
        (DENSE, {**BLOCKS, "modules_to_not_convert": "lm_head"}, "must be a list"),
        (DENSE, {**BLOCKS, "modules_to_not_convert": [7]}, "no module's name"),
        (DENSE, {**BLOCKS, "modules_to_not_convert": [f"{IGNORED}.qq_proj"]}, "no module of a llama layer"),
        (DENSE, {**BLOCKS, "modules_to_not_convert": [f"{IGNORED}.q_proj"]}, "stored in different formats"),
        (MOE, {**BLOCKS, "modules_to_not_convert": ["model.layers.0.mlp.experts.3"]}, "1 of 32 experts"),
        (DENSE, ct(ints(4, 128), None, "marlin-24"), "marlin-24"),
        (DENSE, ct(ints(4, 128), None, "dense"), "'dense'"),
        (DENSE, ct(ints(4, 128), None, "pack-quantized", sparsity_config={"format": "sparse-24-bitmask"}), "sparse"),
        (DENSE, ct(floats(6, "tensor"), None, "float-quantized"), "6 bits (float)"),
        (DENSE, ct(ints(4, 128), ints(4, 128), "int-quantized"), "activations"),
        (DENSE, ct(ints(4, 128), None, "pack-quantized", ignore=["re:(["]), "no pattern"),
        (DENSE, {"quant_method": "compressed-tensors"}, "config_groups"),
        (DENSE, ct(ints(4, 128), None, "pack-quantized", kv_cache_scheme=floats(4, "tensor")), "KV caches of 8 bit"),
        (DENSE, modelopt("INT3"), "'INT3', which is not modelled"),
        (DENSE, modelopt("MIXED_PRECISION"), "quantized_layers"),
        (DENSE, modelopt("FP8", kv_cache_quant_algo="NVFP4"), "kv_cache_quant_algo"),
        (DENSE, {"quant_method": "modelopt"}, "quant_algo"),
        (DENSE, {"quant_method": "auto-round", "bits": 4, "data_type": "codebook"}, "data_type"),
        (DENSE, {"quant_method": "bitsandbytes"}, "load_in_4bit"),
        (DENSE, {"quant_method": "torchao", "quant_type": "uintx_weight_only"}, "uintx_weight_only"),
        (DENSE, {"quant_method": "torchao", "quant_type": {"default": {"_type": "Magic"}}}, "'Magic'"),
        (DENSE, {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp6"}}}, "fp6"),
        (DENSE, {"quant_method": "exl2"}, "'bits' is 0"),
        (DENSE, [4], "must be an object"),
    ],
)
def test_an_unknown_layout_ends_in_one_line(shape: dict[str, Any], quantised: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        from_config({**shape, "quantization_config": quantised}, "tiny", where="some/config.json")
    assert said in str(caught.value)
    assert str(caught.value).startswith("some/config.json")
    assert "\n" not in str(caught.value)


def test_modules_of_other_parts_are_nobodys_business() -> None:
    """Lists of models with a vision tower name its modules, and the decoder's under the names they have there."""
    names = ["lm_head", "visual.blocks.0.mlp", "model.visual.blocks.3.attn.qkv", "vision_tower.encoder.layers.1.fc1"]
    ours = [f"language_model.model.layers.{i}.self_attn.{p}_proj" for i in range(L) for p in "qkvo"]
    nested = {
        "model_type": "some_vl",
        "text_config": DENSE,
        "quantization_config": {**BLOCKS, "ignored_layers": names + ours},
    }
    model = from_config(nested, "vl")
    assert {m for layer in model.layers for m, _ in layer.formats.listed} == {"mlp.gate_up", "mlp.down"}
    inner = from_config({"model_type": "some_vl", "text_config": {**DENSE, "quantization_config": BLOCKS}}, "vl")
    assert inner.method == "fp8"


def test_a_tree_left_out_is_not_its_neighbour() -> None:
    """``model.layers.1*`` is layer 1, not layers 10 to 19."""
    deep = {**DENSE, "num_hidden_layers": 12, "quantization_config": modelopt("FP8", "model.layers.1*")}
    model = from_config(deep, "deep")
    assert [i for i, layer in enumerate(model.layers) if not layer.formats.listed] == [1]


def test_modelopts_own_file_is_read(tmp_path: Path) -> None:
    said = modelopt("NVFP4", group_size=16, kv_cache_quant_algo="FP8")
    model = hub.from_file(folder_of(tmp_path, DENSE, hf_quant_config=said))
    assert (model.method, model.kv_dtype) == ("modelopt", "fp8")
    got = group_of(Scenario(model=str(tmp_path), device="b200"))
    assert (got.dtype, got.kv_dtype) == ("nvfp4", "fp8")
    assert got.lowering.kv_element_bytes == 1.0
    # What a person asks for goes first.
    assert group_of(Scenario(model=str(tmp_path), device="b200", kv_cache_dtype="bf16")).kv_dtype == "bf16"
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(modelopt("FP8")))
    assert group_of(Scenario(model=str(tmp_path), device="b200")).dtype == "fp8_static"


def test_two_files_that_disagree_are_refused(tmp_path: Path) -> None:
    """NVIDIA's DeepSeek-V4 keeps the FP8 config of the model it was made of beside ModelOpt's own file."""
    with pytest.raises(InputError, match="says fp8, but the file beside it modelopt"):
        hub.from_file(folder_of(tmp_path, {**DENSE, "quantization_config": BLOCKS}, hf_quant_config=modelopt("NVFP4")))


@pytest.mark.parametrize(
    ("name", "config", "like"),
    [
        ("quantize_config", {"bits": 4, "group_size": 128, "desc_act": False, "sym": True}, "gptq 4"),
        ("quant_config", {"w_bit": 4, "q_group_size": 128, "zero_point": True, "version": "GEMM"}, "awq"),
    ],
)
def test_early_files_beside_the_config(name: str, config: dict[str, Any], like: str, tmp_path: Path) -> None:
    """AutoGPTQ's and AutoAWQ's first checkpoints say it in files of their own, and name no method."""
    got = group_of(Scenario(model=folder_of(tmp_path, DENSE, **{name: config}), device="b200"))
    pick = next(c[3] for c in CASES if c[0] == like)
    assert weights_bytes(got.lowering) == pytest.approx(stored(DENSE, pick), rel=0.01)


def test_experts_of_their_own_dtype(tmp_path: Path) -> None:
    """DeepSeek-V4: FP8 blocks, and ``expert_dtype`` beside them for the experts."""
    own = {**MLA, "expert_dtype": "fp4", "quantization_config": BLOCKS}
    got = group_of(Scenario(model=folder_of(tmp_path, own), device="b200"))
    assert "experts mxfp4" in got.dtype
    assert "attention fp8_block" in got.dtype
    with pytest.raises(InputError, match="expert_dtype"):
        from_config({**own, "expert_dtype": "fp3"}, "x")


def test_mlx_quantises_the_ends_too(tmp_path: Path) -> None:
    """Four bits with a 16-bit scale and bias per 64: 4.5 of them for every matrix, the embedding among them."""
    said = {
        "group_size": 64,
        "bits": 4,
        "mode": "affine",
        "model.layers.0.mlp.down_proj": {"bits": 8, "group_size": 64},
    }
    got = weights_bytes(
        group_of(Scenario(model=folder_of(tmp_path, {**DENSE, "quantization": said}), device="b200")).lowering
    )
    matrices = 2 * 32000 * 4096 + L * 218_103_808
    assert got == pytest.approx(matrices * 4.5 / 8 + 4096 * 14336 * 4 / 8 + 2 * (2 * L + 1) * 4096, rel=1e-3)


def test_check_says_what_is_read_and_why_not(tmp_path: Path) -> None:
    """Loose files with ModelOpt's beside one of them, and folders of models, in one table."""
    (tmp_path / "org--a_config.json").write_text(json.dumps(DENSE))
    (tmp_path / "org--a_hf_quant_config.json").write_text(json.dumps(modelopt("FP8", kv_cache_quant_algo="FP8")))
    for name, config in (("b", MOE), ("c", {**DENSE, "quantization_config": {"quant_method": "magic"}})):
        (tmp_path / name).mkdir()
        folder_of(tmp_path / name, config)
    done = CliRunner().invoke(models_app, ["--check", str(tmp_path), "llama-2-7b", "--json"])
    assert done.exit_code == 2
    rows = {Path(r["place"]).parent.name + "/" + Path(r["place"]).name: r for r in json.loads(done.stdout)["rows"]}
    assert len(rows) == 4
    first = next(r for place, r in rows.items() if place.endswith("org--a_config.json"))
    assert (first["dtype"], first["kv_dtype"]) == ("fp8_static", "fp8")
    assert first["weights_bytes"] == pytest.approx(2 * 2 * 32000 * 4096 + L * 218_103_808, rel=1e-3)
    assert rows["b/config.json"]["refused"] is None
    assert "'magic' is not modelled" in rows["c/config.json"]["refused"]
    shown = CliRunner().invoke(models_app, ["--check", "gpt-oss-20b", "kimi-k2.5"])
    assert shown.exit_code == 0
    assert "2 of 2 read" in shown.stdout
    assert "bf16, experts mxfp4" in shown.stdout


def test_a_repository_called_quantised_that_does_not_say_how_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    """ModelOpt's early repositories say it in a second file alone; without it they are not the 16-bit model."""
    snapshot = tmp_path / "models--nvidia--Some-8B-NVFP4" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--nvidia--Some-8B-NVFP4" / "refs").mkdir()
    (tmp_path / "models--nvidia--Some-8B-NVFP4" / "refs" / "main").write_text("abc")
    folder_of(snapshot, DENSE)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="hf_quant_config"):
        hub.find_model("nvidia/Some-8B-NVFP4")
    folder_of(snapshot, DENSE, hf_quant_config=modelopt("NVFP4"))
    assert hub.find_model("nvidia/Some-8B-NVFP4").method == "modelopt"


def test_no_spelling_of_a_quantised_repository_means_another_format() -> None:
    seen = 0
    for name in (*hub.list_models(), *hub._index().quantised):
        for spelling in hub.aliases(name):
            word = spelling.casefold()
            if any(q in word for q in ("fp8", "fp4", "int4", "awq", "gptq", "w4a16")):
                seen += 1
                assert hub.find_model(spelling).method, spelling
    assert seen >= 28
    # Published in these formats under names that do not say so.
    for name, method in (("Kimi-K2.5", "compressed-tensors"), ("DeepSeek-R1", "fp8"), ("gpt-oss-20b", "mxfp4")):
        assert hub.find_model(name).method == method


@pytest.mark.parametrize("spelling", ["nvidia/DeepSeek-R1-NVFP4", "nvidia/DeepSeek-V3-0324-NVFP4"])
def test_a_quantised_repository_that_is_not_bundled_is_asked_of_the_hub(spelling: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="not bundled"):
        hub.find_model(spelling)


@pytest.mark.parametrize(
    ("name", "gib"),
    # What vLLM logged per GPU: gpustack issue 4660, vllm issue 6746 (with 16 KV heads then, 8 since).
    [("Qwen/Qwen3-8B-FP8", 8.8011), ("meta-llama/Llama-3.1-405B-Instruct-FP8", 57.752)],
)
def test_what_engines_logged(name: str, gib: float) -> None:
    tp = 8 if "405" in name else 1
    got = weights_bytes(group_of(Scenario(model=name, device="h100-sxm", tp=tp)).lowering)
    assert got / 2**30 == pytest.approx(gib, rel=0.02)


@pytest.mark.parametrize(
    ("quantised", "b200", "a100"),
    [
        (BLOCKS, "fp8_block", "w8a16"),
        (modelopt("NVFP4"), "nvfp4", "w4a16 (4.5 bits)"),
        (ct(ints(8, -1), ints(8, -1), "int-quantized"), "int8", "int8"),
        ({"quant_method": "mxfp4"}, "bf16, experts mxfp4", "bf16, experts w4a16 (4.25 bits)"),
    ],
)
def test_formats_without_units_are_widened_on_the_way(quantised: Any, b200: str, a100: str, tmp_path: Path) -> None:
    """As engines run FP8 and FP4 checkpoints on Ampere: the same bytes, 16-bit products."""
    new, old = (group(tmp_path, quantised, MOE, device=d) for d in ("b200", "a100-sxm-80g"))
    assert (new.dtype, old.dtype) == (b200, a100)
    assert new.problem is None
    assert old.problem is None
    assert weights_bytes(new.lowering) == pytest.approx(weights_bytes(old.lowering), rel=1e-9)


@pytest.mark.parametrize("device", ["a100-sxm-80g", "h200", "b200"])
def test_a_stated_kv_format_is_timed_under_latent_attention(device: str, tmp_path: Path) -> None:
    """FP8 latents where only 16-bit ones were measured: a near key answers, as for other attention."""
    got = group(tmp_path, modelopt("NVFP4", kv_cache_quant_algo="FP8"), MLA, device=device)
    assert got.kv_dtype == "fp8"
    assert got.dense.problem is None


def test_a_device_of_neither_is_told(tmp_path: Path) -> None:
    """Before Ampere there are no kernels that widen FP8."""
    problem = group(tmp_path, BLOCKS, device="v100-sxm").problem
    assert problem is not None
    assert "no fp8" in problem[1]


def test_without_a_dtype_weights_are_16_bit(tmp_path: Path) -> None:
    """vLLM's ``auto`` loads what is published in fp32, or says nothing, in 16 bit."""
    for said in ({"torch_dtype": None}, {"torch_dtype": "float32"}):
        got = group_of(Scenario(model=folder_of(tmp_path, {**DENSE, **said}), device="h100-sxm"))
        assert (got.dtype, got.kv_dtype) == ("bf16", "bf16")
        assert weights_bytes(got.lowering) == pytest.approx(2.0 * got.model.n_params, rel=1e-9)
    assert group_of(Scenario(model="gpt2", device="h100-sxm")).dtype == "bf16"
    assert group_of(Scenario(model="gpt2", device="t4")).dtype == "fp16"
    assert group_of(Scenario(model="gpt2", device="h100-sxm", dtype="fp32")).dtype == "fp32"


@pytest.mark.parametrize("key", ["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"])
def test_a_file_of_experts_is_never_read_as_dense(key: str) -> None:
    with pytest.raises(InputError, match=f"'{key}' is 8, but 'llama' is read without experts"):
        from_config({**DENSE, key: 8}, "sparse")
    assert not from_config({**DENSE, key: 0}, "dense").is_moe
    assert not from_config({**DENSE, key: None}, "dense").is_moe


def test_groups_on_the_command_line(tmp_path: Path) -> None:
    """Every product of a group has the format that is asked for, all others as published."""
    asked = "experts=nvfp4,attention=fp8,head=int8"
    got = group_of(Scenario(model=folder_of(tmp_path, MLA), device="b200", dtype=asked))
    wanted = {"experts": "nvfp4", "attention": "fp8", "head": "int8"}
    seen = set()
    for step in (decode_step(1.0, 4.0), prefill_step(1.0, 4.0)):
        for op in replace(got.lowering, as_modules=False).ops(step):
            if isinstance(op, Linear | Moe) and op.role in GROUP_OF:
                seen.add(op.role)
                assert op.fmt.name == wanted.get(GROUP_OF[op.role], "bf16"), op.role
    assert seen == {m for layer in got.model.layers for m in layer.matrices} | {"lm_head"}
    assert got.dtype == "bf16, attention fp8, experts nvfp4, head int8"


def test_an_embedding_is_stored_as_asked(tmp_path: Path) -> None:
    plain, small = (
        weights_bytes(group_of(Scenario(model=folder_of(tmp_path, DENSE), device="b200", dtype=d)).lowering)
        for d in ("auto", "embedding=int8")
    )
    assert plain - small == pytest.approx(32000 * 4096)


def test_one_format_for_all_goes_over_what_is_published(tmp_path: Path) -> None:
    got = group(tmp_path, GPTQ, dtype="bf16")
    assert got.dtype == "bf16"
    assert weights_bytes(got.lowering) == pytest.approx(2.0 * got.model.n_params, rel=1e-9)


def test_lists_of_groups() -> None:
    assert str(choose(" Experts=NVFP4 , attention=bf16")) == "attention=bf16,experts=nvfp4"
    assert apart(["bf16", "experts=nvfp4", "attention=fp8", "experts=fp8", "fp8"]) == (
        "bf16",
        "experts=nvfp4,attention=fp8",
        "experts=fp8",
        "fp8",
    )
    assert axis("dtype", "experts=nvfp4,head=fp8,experts=fp8,head=fp8", "--dtype") == (
        "experts=nvfp4,head=fp8",
        "experts=fp8,head=fp8",
    )
    for bad, said in (
        ("experst=fp8", "did you mean 'experts'"),
        ("experts=fp9", "did you mean"),
        ("experts=fp8,experts=fp8", "named twice"),
        ("experts=fp8,bf16", "write its group"),
    ):
        with pytest.raises(InputError, match=said):
            choose(bad)
    scenario = Scenario(model="qwen3-30b-a3b", device="b200", dtype="experts=nvfp4,attention=bf16")
    assert Scenario.from_query(scenario.to_query()) == scenario
    assert Scenario.from_json(scenario.to_json()) == scenario


def test_policies_are_asked_of_the_formats_they_rewrite() -> None:
    """A weight policy on experts that are 4-bit already; a policy of the KV cache, which rewrites no product."""
    for policy, said in (("w4a16", "sets the weight format itself"), ("h2o", "")):
        problem = group_of(Scenario(model="gpt-oss-20b", device="h100-sxm", policy=policy)).problem
        assert (problem is None) == (not said)
        assert problem is None or said in problem[1]


def test_answers_print_formats_and_notes() -> None:
    done = CliRunner().invoke(app, ["--model", "kimi-k2.5", "--device", "b200", "--tp", "8"])
    assert "formats: weights bf16, experts w4a16 (4.5 bits); KV cache bf16" in done.stdout
    assert "note: a vision tower of 0.471 B parameters is loaded" in done.stdout
