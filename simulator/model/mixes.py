"""llama.cpp's mixtures: which type ``llama-quantize`` gives each tensor of a model [1]_.

References
----------
.. [1] llama.cpp, ``src/llama-quant.cpp``, ``llama_tensor_get_type_impl`` and ``tensor_type_fallback``, without an
   importance matrix.
"""

from __future__ import annotations

from dataclasses import replace

from simulator.base.dtypes import FORMATS, LAYOUTS, Format, weights_only
from simulator.base.errors import InputError
from simulator.model.layer import FfnSpec, LayerSpec, MoeSpec
from simulator.model.spec import ModelSpec

_SUPER_BLOCK = 256
_FALLBACK = {"q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
"""Types in blocks of 32 for matrices whose inputs no super-block divides."""
_EIGHT = 8
"""Number of experts that llama.cpp takes for Mixtral [-]."""


def mixed(model: ModelSpec, mix: str) -> ModelSpec:
    """`model` with its matrices as ``llama-quantize`` stores them, all else in fp32.

    Parameters
    ----------
    mix : str
        One of `simulator.model.formats.MIXES`.

    Raises
    ------
    InputError
        Layers whose tensors the mixtures are not written down for.
    """
    plain = all(
        layer.attention and not layer.attention.mla and not layer.state and not layer.sides for layer in model.layers
    )
    if not plain or model.architecture == "falcon":
        known = "layers of plain attention and FFN"
        raise InputError(
            f"{mix} is known for {known}, not for {model.name}'s; pass its GGUF file as --model", where="--dtype"
        )
    rule = _Rule(model, mix)

    def of(index: int | None, matrix: str, _: Format | None) -> Format:
        if index is None:
            width = model.embed_proj_dim or model.hidden
            return rule.fitting("q6_k" if matrix == "lm_head" or model.tied_embeddings else rule.base, width)
        return rule.of(index, model.layers[index], matrix)

    return replace(model.stored(of), rest=FORMATS["fp32"], method="gguf")


class _Rule:
    """The types of one mixture for one model."""

    def __init__(self, model: ModelSpec, mix: str):
        self.model, self.mix, self.base = model, mix, mix[:4]
        ffn = next((layer.ffn for layer in model.layers if isinstance(layer.ffn, MoeSpec)), None)
        self.eight = ffn is not None and ffn.n_experts == _EIGHT
        first = model.layers[0].attention
        self.of_70b = model.n_layers == 80 and first is not None and first.group_size > 1

    def fitting(self, kind: str, inputs: int) -> Format:
        """The type `kind`, or what stands in for it where `inputs` are no whole super-blocks."""
        return LAYOUTS[kind if inputs % _SUPER_BLOCK == 0 else _FALLBACK[kind]]

    def _more_bits(self, i: int) -> bool:
        n = self.model.n_layers
        return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2

    def _value(self, i: int) -> str:
        """Type of ``attn_v``, and of ``attn_qkv`` where a file keeps the three as one."""
        kind = {"q3_k_m": "q5_k" if i < 2 else "q4_k", "q3_k_l": "q5_k", "q4_k_s": "q5_k" if i < 4 else "q4_k"}.get(
            self.mix, "q6_k" if self.mix in ("q4_k_m", "q5_k_m") and self._more_bits(i) else self.base
        )
        if self.of_70b and kind in ("q3_k", "q4_k"):
            kind = "q5_k"
        return "q8_0" if self.eight else kind

    def _out(self) -> str:
        if self.eight:
            return self.base if self.mix in ("q3_k_l", "q5_k_s", "q5_k_m") else "q5_k"
        return {"q3_k_m": "q4_k", "q3_k_l": "q5_k"}.get(self.mix, self.base)

    def _down(self, i: int) -> str:
        n = self.model.n_layers
        early = {"q3_k_m": "q5_k" if i < n // 16 else "q4_k", "q3_k_l": "q5_k"}
        early["q4_k_s"] = "q5_k" if i < n // 8 else "q4_k"
        return early.get(self.mix, "q6_k" if self.mix in ("q4_k_m", "q5_k_m") and self._more_bits(i) else self.base)

    def of(self, i: int, layer: LayerSpec, matrix: str) -> Format:
        """Format of a matrix of layer `i`."""
        a, hidden = layer.attention, self.model.hidden
        assert a is not None
        if matrix == "attn.qkv":
            value = self._value(i)
            if a.fused_qkv:
                return self.fitting(value, hidden)
            key = "q8_0" if self.eight else self.base
            parts = ((self.base, a.q_width), (key, a.n_kv_heads * a.head_dim), (value, a.n_kv_heads * a.v_head_dim))
            return _mean([(self.fitting(kind, hidden), n) for kind, n in parts])
        if matrix == "attn.o":
            return self.fitting(self._out(), a.n_heads * a.v_head_dim)
        ffn = layer.ffn
        if matrix == "moe.experts":
            assert isinstance(ffn, MoeSpec)
            up, down = self.fitting(self.base, hidden), self.fitting(self._down(i), ffn.expert.intermediate)
            return _mean([(up, ffn.expert.n_up), (down, 1)])
        block = ffn.shared if isinstance(ffn, MoeSpec) else ffn
        assert isinstance(block, FfnSpec)
        down = matrix.endswith("down")
        return self.fitting(self._down(i) if down else self.base, block.intermediate if down else hidden)


def _mean(parts: list[tuple[Format, int]]) -> Format:
    """One format for matrices that are read as one: their own, else their mean bits."""
    kinds = {fmt for fmt, _ in parts}
    if len(kinds) == 1:
        return parts[0][0]
    bits = sum(fmt.weight_bits * n for fmt, n in parts) / sum(n for _, n in parts)
    return weights_only(bits, "+".join(sorted(fmt.spelling for fmt in kinds)))
