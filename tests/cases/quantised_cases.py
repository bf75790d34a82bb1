"""Configs of quantised checkpoints, each with the bytes of its file counted tensor by tensor.

Sizes are summed from each format's published layout (packed words, scales, zeros, orders), apart from the code that
reads the configs. One model is a dense decoder, one has experts, one has latent attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil
from typing import Any

H, WIDE, L, V = 4096, 14336, 8, 32000
DENSE = {
    "model_type": "llama",
    "hidden_size": H,
    "intermediate_size": WIDE,
    "num_hidden_layers": L,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": V,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}
E, EI = 32, 1024
MOE = {
    **DENSE,
    "model_type": "qwen2_moe",
    "num_experts": E,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": EI,
    "shared_expert_intermediate_size": 2048,
    "qkv_bias": False,
}
MLA = {
    **DENSE,
    "model_type": "deepseek_v3",
    "num_key_value_heads": 32,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": E,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": EI,
    "n_shared_experts": 1,
    "first_k_dense_replace": 2,
    "n_group": 1,
    "topk_group": 1,
}
Tensors = Iterator[tuple[str, int, int]]


def linears(config: dict[str, Any]) -> Tensors:
    """(name, outputs, inputs) of every linear layer of a checkpoint."""
    for i in range(L):
        block = f"model.layers.{i}."
        if config["model_type"] == "deepseek_v3":
            yield f"{block}self_attn.q_a_proj", 1536, H
            yield f"{block}self_attn.q_b_proj", 32 * 192, 1536
            yield f"{block}self_attn.kv_a_proj_with_mqa", 512 + 64, H
            yield f"{block}self_attn.kv_b_proj", 32 * 256, 512
            yield f"{block}self_attn.o_proj", H, 32 * 128
        else:
            for name, n in (("q", H), ("k", 1024), ("v", 1024), ("o", H)):
                yield f"{block}self_attn.{name}_proj", n, H
        dense = config is DENSE or (config is MLA and i < 2)
        blocks = [("mlp", WIDE)] if dense else [(f"mlp.experts.{e}", EI) for e in range(E)]
        if not dense:
            blocks.append(("mlp.shared_expert", 2048) if config is MOE else ("mlp.shared_experts", EI))
        for name, width in blocks:
            yield f"{block}{name}.gate_proj", width, H
            yield f"{block}{name}.up_proj", width, H
            yield f"{block}{name}.down_proj", H, width
    yield "lm_head", V, H


def beside(config: dict[str, Any]) -> int:
    """Bytes of the embedding, norms and routers, 16 bit each."""
    norms = (2 * L + 1) * H + (L * (1536 + 512) if config is MLA else 0)
    routers = {id(DENSE): 0, id(MOE): L * (E + 1) * H, id(MLA): (L - 2) * E * H}[id(config)]
    return 2 * (V * H + norms + routers)


Bytes = Callable[[int, int], float]


def half(n: int, k: int) -> float:
    return 2 * n * k


def gptq(bits: int, group: int, *, order: bool = True) -> Bytes:
    """qweight int32, qzeros int32, scales fp16 and g_idx int32."""

    def size(n: int, k: int) -> float:
        groups = ceil(k / group) if group > 0 else 1
        return 4 * (k * bits / 32) * n + 4 * groups * (n * bits / 32) + 2 * groups * n + (4 * k if order else 0)

    return size


def awq(group: int) -> Bytes:
    """qweight [k, n/8] int32, qzeros [k/g, n/8] int32, scales [k/g, n] fp16."""
    return lambda n, k: 4 * k * n / 8 + 4 * (k / group) * n / 8 + 2 * (k / group) * n


def packed(bits: int, group: int, *, symmetric: bool = True, order: bool = False) -> Bytes:
    """compressed-tensors: weight_packed int32, weight_scale 16 bit, packed zero points, weight_g_idx, shape."""
    per_word = 32 // bits

    def size(n: int, k: int) -> float:
        groups = k / group if group > 0 else 1
        zeros = 0 if symmetric else 4 * ceil(n / per_word) * groups
        return 4 * n * ceil(k / per_word) + 2 * n * groups + zeros + (4 * k if order else 0) + 16

    return size


def fp8(per: str, scale: int = 4) -> Bytes:
    """One byte a weight and scales per tensor, per output or per 128x128 block."""

    def size(n: int, k: int) -> float:
        count = {"tensor": 1, "channel": n, "block": ceil(n / 128) * ceil(k / 128)}[per]
        return n * k + scale * count

    return size


def float4(group: int) -> Bytes:
    """Two weights a byte, a byte of scale per group, global scales."""
    return lambda n, k: n * k / 2 + n * k / group + 8


def nf4(*, twice: bool) -> Bytes:
    """bitsandbytes: blocks of 64 with fp32 maxima (twice: in bytes, their own in fp32 per 256), a 16-entry code."""
    return lambda n, k: n * k / 2 + (n * k / 64) * ((1 + 4 / 256) if twice else 4) + 64


def both(bits: float) -> Bytes:
    return lambda n, k: n * k * bits / 8


Pick = Callable[[str], Bytes | None]


def all_but(size: Bytes, *skipped: str) -> Pick:
    return lambda name: None if any(s in name for s in skipped) else size


def ct(weights: dict[str, Any], acts: dict[str, Any] | None, form: str, **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": acts, "output_activations": None}
    base = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}
    return {**base, "ignore": ["lm_head"], "quantization_status": "compressed", **more}


def ints(bits: int, group: int, **more: Any) -> dict[str, Any]:
    strategy = {"strategy": "group", "group_size": group} if group > 0 else {"strategy": "channel"}
    return {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False, **strategy, **more}


def floats(bits: int, strategy: str, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": "float", "symmetric": True, "dynamic": False, "strategy": strategy, **more}


def modelopt(algo: str, *excluded: str, **more: Any) -> dict[str, Any]:
    quantization = {"quant_algo": algo, "exclude_modules": ["lm_head", *excluded], **more}
    return {"producer": {"name": "modelopt", "version": "0.37"}, "quantization": quantization}


def quark(weight: Any, acts: Any, *excluded: str, **more: Any) -> dict[str, Any]:
    shared = {"weight": weight, "input_tensors": acts, "output_tensors": None, "bias": None}
    export = {"kv_cache_group": [], "pack_method": "reorder"}
    exclude = ["lm_head", *excluded]
    return {"quant_method": "quark", "global_quant_config": shared, "exclude": exclude, "export": export, **more}


FP8_TENSOR = {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": False, "symmetric": True}
FP4_GROUP = {"dtype": "fp4", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0", "is_dynamic": False}
DYNAMIC8 = {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token"}
BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}
AROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True, "data_type": "int"}
AROUND_GPTQ = {**AROUND, "packing_format": "auto_round:auto_gptq"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
HEAD = "lm_head"


def torchao(kind: str, **data: Any) -> dict[str, Any]:
    inner = {"_type": kind, "_version": 1, "_data": data}
    return {"quant_method": "torchao", "quant_type": {"default": inner}}


def mixed(name: str) -> Bytes | None:
    """ModelOpt MIXED_PRECISION as below: attention in FP8, FFN in NVFP4."""
    if name == HEAD:
        return None
    return fp8("tensor") if "self_attn" in name else float4(16)


MIXED = {
    name: {"quant_algo": "FP8"} if "self_attn" in name else {"quant_algo": "NVFP4", "group_size": 16}
    for name, _, _ in linears(DENSE)
    if name != HEAD
}
META = [HEAD, *(f"model.layers.{i}.self_attn.{p}_proj" for i in range(L) for p in "qkvo")]
META += [f"model.layers.{i}.mlp.{p}_proj" for i in (0, L - 1) for p in ("gate", "up", "down")]
EIGHT = "model.layers.1.mlp.down_proj"
TO_LAYER_2 = [f"model.layers.{i}.self_attn*" for i in range(2)]

CASES: list[tuple[str, dict[str, Any], dict[str, Any], Pick]] = [
    ("fp8 block", DENSE, BLOCKS, all_but(fp8("block"), HEAD)),
    ("fp8 block, experts", MOE, BLOCKS, all_but(fp8("block"), HEAD)),
    ("fp8 block, latent", MLA, BLOCKS, all_but(fp8("block"), HEAD)),
    (
        "fp8 block, some left out by full name",
        MOE,
        {**BLOCKS, "modules_to_not_convert": [HEAD, *(f"model.layers.{i}.mlp.gate" for i in range(L)), *META[1:5]]},
        all_but(fp8("block"), HEAD, "layers.0.self_attn"),
    ),
    (
        "fp8 per tensor, static",
        DENSE,
        {"quant_method": "fp8", "activation_scheme": "static"},
        all_but(fp8("tensor"), HEAD),
    ),
    ("fp8 per tensor, dynamic", DENSE, {"quant_method": "fp8"}, all_but(fp8("tensor"), HEAD)),
    (
        "fp8 ignored_layers",
        DENSE,
        {"quant_method": "fp8", "ignored_layers": ["self_attn"]},
        all_but(fp8("tensor"), HEAD, "self_attn"),
    ),
    (
        "fbgemm, attention and both ends in bf16",
        DENSE,
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": META},
        lambda n: None if n in META else fp8("channel"),
    ),
    ("mxfp8", DENSE, {"quant_method": "mxfp8"}, all_but(both(8.25), HEAD)),
    ("ct w4a16 g128", DENSE, ct(ints(4, 128), None, "pack-quantized"), all_but(packed(4, 128), HEAD)),
    (
        "ct w4a16 g32, order",
        DENSE,
        ct(ints(4, 32, actorder="group"), None, "pack-quantized"),
        all_but(packed(4, 32, order=True), HEAD),
    ),
    (
        "ct w4a16 asymmetric",
        DENSE,
        ct(ints(4, 64, symmetric=False), None, "pack-quantized"),
        all_but(packed(4, 64, symmetric=False), HEAD),
    ),
    ("ct w4a16 per channel", DENSE, ct(ints(4, -1), None, "pack-quantized"), all_but(packed(4, -1), HEAD)),
    ("ct w8a16", DENSE, ct(ints(8, 128), None, "pack-quantized"), all_but(packed(8, 128), HEAD)),
    ("ct 3 bits, ten to a word", DENSE, ct(ints(3, 128), None, "pack-quantized"), all_but(packed(3, 128), HEAD)),
    (
        "ct w8a8 int",
        DENSE,
        ct(ints(8, -1), {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token"}, "int-quantized"),
        all_but(fp8("channel"), HEAD),
    ),
    (
        "ct fp8 per channel",
        DENSE,
        ct(floats(8, "channel"), DYNAMIC8, "float-quantized"),
        all_but(fp8("channel", 2), HEAD),
    ),
    (
        "ct fp8 static per tensor, fp8 KV",
        DENSE,
        ct(floats(8, "tensor"), floats(8, "tensor"), "float-quantized", kv_cache_scheme=floats(8, "tensor")),
        all_but(fp8("tensor"), HEAD),
    ),
    (
        "ct fp8 block",
        DENSE,
        ct(
            floats(8, "block", block_structure=[128, 128]),
            {**DYNAMIC8, "strategy": "group", "group_size": 128},
            "float-quantized",
        ),
        all_but(fp8("block", 2), HEAD),
    ),
    (
        "ct fp8 weights alone",
        DENSE,
        ct(floats(8, "channel"), None, "float-quantized"),
        all_but(fp8("channel", 2), HEAD),
    ),
    (
        "ct nvfp4",
        DENSE,
        ct(
            floats(4, "tensor_group", group_size=16),
            {**floats(4, "tensor_group", group_size=16), "dynamic": "local"},
            "nvfp4-pack-quantized",
        ),
        all_but(float4(16), HEAD),
    ),
    (
        "ct nvfp4a16",
        DENSE,
        ct(floats(4, "tensor_group", group_size=16), None, "nvfp4-pack-quantized"),
        all_but(float4(16), HEAD),
    ),
    (
        "ct mxfp4a16",
        DENSE,
        ct(floats(4, "group", group_size=32), None, "mxfp4-pack-quantized"),
        all_but(float4(32), HEAD),
    ),
    ("ct w4 by fp8", DENSE, ct(ints(4, 128), DYNAMIC8, "pack-quantized"), all_but(packed(4, 128), HEAD)),
    (
        "ct experts alone, as Kimi K2.5",
        MLA,
        ct(
            ints(4, 32),
            None,
            "pack-quantized",
            ignore=[HEAD, "re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"],
        ),
        lambda n: packed(4, 32) if ".experts." in n else None,
    ),
    (
        "ct mixed: down in fp8, the rest in nvfp4",
        DENSE,
        {
            "quant_method": "compressed-tensors",
            "format": "mixed-precision",
            "ignore": [HEAD],
            "config_groups": {
                "a": {
                    "targets": ["re:.*down_proj$"],
                    "format": "float-quantized",
                    "weights": floats(8, "channel"),
                    "input_activations": DYNAMIC8,
                },
                "b": {
                    "targets": ["Linear"],
                    "format": "nvfp4-pack-quantized",
                    "weights": floats(4, "tensor_group", group_size=16),
                    "input_activations": floats(4, "tensor_group", group_size=16),
                },
            },
        },
        lambda n: None if n == HEAD else fp8("channel", 2) if "down" in n else float4(16),
    ),
    ("ct head quantised too", DENSE, ct(ints(8, 128), None, "pack-quantized", ignore=[]), lambda n: packed(8, 128)),
    ("modelopt fp8", DENSE, modelopt("FP8", kv_cache_quant_algo="FP8"), all_but(fp8("tensor"), HEAD)),
    ("modelopt fp8 per channel", DENSE, modelopt("FP8_PER_CHANNEL_PER_TOKEN"), all_but(fp8("channel"), HEAD)),
    ("modelopt fp8 block", DENSE, modelopt("fp8_pb_wo"), all_but(fp8("block"), HEAD)),
    ("modelopt nvfp4", DENSE, modelopt("NVFP4", group_size=16), all_but(float4(16), HEAD)),
    (
        "modelopt nvfp4 without attention",
        MLA,
        modelopt("NVFP4", "model.layers.*.self_attn*"),
        all_but(float4(16), HEAD, "self_attn"),
    ),
    (
        "modelopt nvfp4, two layers left out",
        DENSE,
        modelopt("NVFP4", *TO_LAYER_2),
        all_but(float4(16), HEAD, "layers.0.self", "layers.1.self"),
    ),
    ("modelopt w4a16 nvfp4", DENSE, modelopt("W4A16_NVFP4"), all_but(float4(16), HEAD)),
    ("modelopt mxfp8", DENSE, modelopt("MXFP8"), all_but(both(8.25), HEAD)),
    (
        "modelopt int4 awq",
        DENSE,
        modelopt("W4A16_AWQ", group_size=128),
        all_but(lambda n, k: n * k / 2 + 2 * n * k / 128 + 2 * k, HEAD),
    ),
    (
        "modelopt in config.json",
        DENSE,
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": [HEAD], "config_groups": {}},
        all_but(float4(16), HEAD),
    ),
    (
        "modelopt mixed",
        DENSE,
        {
            "quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": MIXED},
            "producer": {"name": "modelopt"},
        },
        mixed,
    ),
    (
        "modelopt mixed, experts as one",
        MOE,
        {
            "quant_method": "modelopt_mixed",
            "quant_algo": "MIXED_PRECISION",
            "quantized_layers": {
                **{f"model.layers.{i}.mlp.experts": {"quant_algo": "W4A16_NVFP4", "group_size": 16} for i in range(L)},
                **{f"model.layers.{i}.self_attn.{p}_proj": {"quant_algo": "FP8"} for i in range(L) for p in "qkvo"},
            },
        },
        lambda n: float4(16) if ".experts." in n else fp8("tensor") if "self_attn" in n else None,
    ),
    (
        "mxfp4 experts",
        MOE,
        {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", HEAD]},
        lambda n: float4(32) if ".experts." in n else None,
    ),
    (
        "awq",
        DENSE,
        {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
        all_but(awq(128), HEAD),
    ),
    (
        "awq g64, a block left out",
        DENSE,
        {
            "quant_method": "awq",
            "w_bit": 4,
            "q_group_size": 64,
            "zero_point": True,
            "modules_to_not_convert": ["model.layers.3"],
        },
        all_but(awq(64), HEAD, "layers.3."),
    ),
    ("gptq 4", DENSE, GPTQ, all_but(gptq(4, 128), HEAD)),
    ("gptq 4, experts", MOE, GPTQ, all_but(gptq(4, 128), HEAD)),
    ("gptq 8 g32", DENSE, {**GPTQ, "bits": 8, "group_size": 32}, all_but(gptq(8, 32), HEAD)),
    ("gptq 3 per column", DENSE, {**GPTQ, "bits": 3, "group_size": -1}, all_but(gptq(3, -1), HEAD)),
    ("gptq 2 with the head", DENSE, {**GPTQ, "bits": 2, "group_size": 64, "lm_head": True}, lambda n: gptq(2, 64)),
    (
        "gptq dynamic",
        DENSE,
        {**GPTQ, "dynamic": {r"-:model\.layers\.0\..*": {}, r"+:.*\.down_proj.*": {"bits": 8, "group_size": 32}}},
        lambda n: None if n == HEAD or "layers.0." in n else gptq(8, 32) if "down" in n else gptq(4, 128),
    ),
    (
        "gptq of the FFN alone",
        DENSE,
        {**GPTQ, "modules_in_block_to_quantize": [["mlp.gate_proj", "mlp.up_proj"], ["mlp.down_proj"]]},
        lambda n: gptq(4, 128) if ".mlp." in n else None,
    ),
    ("auto-round", DENSE, AROUND_GPTQ, all_but(gptq(4, 128, order=False), HEAD)),
    (
        "auto-round, exceptions",
        DENSE,
        {
            **AROUND_GPTQ,
            "extra_config": {EIGHT: {"bits": 8, "group_size": 32}, "model.layers.2.self_attn.o_proj": {"bits": 16}},
        },
        lambda n: (
            None
            if n == HEAD or n.endswith("2.self_attn.o_proj")
            else gptq(8, 32, order=False)
            if n == EIGHT
            else gptq(4, 128, order=False)
        ),
    ),
    (
        "auto-round 2 bits g32",
        DENSE,
        {**AROUND_GPTQ, "bits": 2, "group_size": 32},
        all_but(gptq(2, 32, order=False), HEAD),
    ),
    ("auto-round as awq", DENSE, {**AROUND, "packing_format": "auto_round:auto_awq"}, all_but(awq(128), HEAD)),
    (
        "auto-round mxfp4",
        DENSE,
        {**AROUND, "data_type": "mx_fp", "group_size": 32, "act_bits": 4},
        all_but(float4(32), HEAD),
    ),
    (
        "bitsandbytes nf4",
        DENSE,
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        all_but(nf4(twice=False), HEAD),
    ),
    (
        "bitsandbytes nf4 twice",
        DENSE,
        {"load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        all_but(nf4(twice=True), HEAD),
    ),
    (
        "bitsandbytes int8",
        DENSE,
        {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": [HEAD]},
        all_but(fp8("channel"), HEAD),
    ),
    (
        "torchao int4",
        DENSE,
        torchao("Int4WeightOnlyConfig", group_size=128),
        all_but(lambda n, k: n * k / 2 + 4 * n * k / 128, HEAD),
    ),
    (
        "torchao int8, old spelling",
        DENSE,
        {"quant_method": "torchao", "quant_type": "int8_weight_only", "quant_type_kwargs": {}},
        all_but(fp8("channel", 2), HEAD),
    ),
    ("torchao w8a8", DENSE, torchao("Int8DynamicActivationInt8WeightConfig"), all_but(fp8("channel", 2), HEAD)),
    (
        "torchao fp8",
        DENSE,
        torchao("Float8DynamicActivationFloat8WeightConfig", granularity=[{"_type": "PerRow"}]),
        all_but(fp8("channel"), HEAD),
    ),
    (
        "torchao by module",
        DENSE,
        torchao(
            "ModuleFqnToConfig",
            module_fqn_to_config={
                "_default": {"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 64}},
                EIGHT: {"_type": "Int8WeightOnlyConfig", "_data": {}},
            },
        ),
        lambda n: None if n == HEAD else fp8("channel", 2) if n == EIGHT else lambda a, b: a * b / 2 + 4 * a * b / 64,
    ),
    ("quark fp8", DENSE, quark(FP8_TENSOR, FP8_TENSOR), all_but(fp8("tensor"), HEAD)),
    (
        "quark ptpc fp8",
        DENSE,
        quark({**FP8_TENSOR, "qscheme": "per_channel"}, {**FP8_TENSOR, "is_dynamic": True}),
        all_but(fp8("channel"), HEAD),
    ),
    (
        "quark mxfp4",
        MOE,
        quark(FP4_GROUP, {**FP4_GROUP, "is_dynamic": True}, "*self_attn*"),
        all_but(float4(32), HEAD, "self_attn"),
    ),
    (
        "quark mxfp4 and fp8 by layer",
        DENSE,
        quark(
            FP4_GROUP,
            {**FP4_GROUP, "is_dynamic": True},
            layer_quant_config={"*self_attn*": {"weight": FP8_TENSOR, "input_tensors": FP8_TENSOR}},
        ),
        lambda n: None if n == HEAD else fp8("tensor") if "self_attn" in n else float4(32),
    ),
    (
        "quark int4",
        DENSE,
        quark({"dtype": "int4", "qscheme": "per_group", "group_size": 128}, None),
        all_but(lambda n, k: n * k / 2 + 2 * n * k / 128, HEAD),
    ),
    (
        "hqq",
        DENSE,
        {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
        all_but(lambda n, k: n * k / 2 + 4 * n * k / 64, HEAD),
    ),
    ("eetq", DENSE, {"quant_method": "eetq"}, all_but(fp8("channel", 2), HEAD)),
    ("exl3", DENSE, {"quant_method": "exl3", "bits": 3.5, "head_bits": 6}, lambda n: both(6 if n == HEAD else 3.5)),
]


def stored(config: dict[str, Any], pick: Pick) -> float:
    """Bytes of the whole checkpoint."""
    return beside(config) + sum((pick(name) or half)(n, k) for name, n, k in linears(config))
