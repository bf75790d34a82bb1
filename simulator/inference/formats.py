"""Which formats a model's matrices run in on a device, from what is published and what ``--dtype`` asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from simulator.base.dtypes import DType, Format, get_format, weight_only
from simulator.device.catalogue import Device
from simulator.model.formats import GROUP_OF, GROUPS, Chosen, Formats
from simulator.model.mixes import mixed
from simulator.model.spec import ModelSpec

HALVES = (DType.BF16, DType.FP16)


def formats_on(model: ModelSpec, chosen: Chosen, device: Device) -> tuple[ModelSpec, Format]:
    """The model with the formats it runs in on `device`, and that of the linear layers which it then gives none.

    A checkpoint's 8- and 4-bit floats that the device cannot multiply are widened on the way to its 16-bit units, as
    engines do (Marlin) from Ampere on. A model published in fp32, or without a dtype, runs in 16 bit as with vLLM's
    ``--dtype auto``.

    Parameters
    ----------
    chosen : Chosen
        One format for every linear layer of the decoder runs as asked for, whatever is published.
    """
    if chosen.whole is not None:
        return model.in_one_format(), chosen.whole
    if chosen.mix:
        model = mixed(model, chosen.mix)
    half = _half(model.dtype, device)
    if not model.quantised and not chosen.groups:
        return model, half
    groups = dict(chosen.groups)

    def runs(layer: int | None, matrix: str, stored: Format | None) -> Format | None:
        if fmt := groups.get(GROUP_OF[matrix]):
            return fmt
        return None if stored is None else _on(stored, device, half)

    return folded(model.stored(runs), half)


def _half(dtype: str, device: Device) -> Format:
    """Format of what a model published in `dtype` leaves unquantised."""
    wanted = DType.FP16 if dtype == "fp16" else DType.BF16
    for math in (wanted, *HALVES, DType.FP32):
        if device.has(math):
            return get_format(str(math))
    return get_format(str(wanted))


def _on(fmt: Format, device: Device, half: Format) -> Format:
    """`fmt` of a checkpoint as `device` runs it."""
    if fmt.math in HALVES:
        return replace(fmt, math=half.math)
    if fmt.math in (DType.FP8, DType.FP4) and not device.has(fmt.math) and device.has(DType.BF16):
        return weight_only(fmt, half.math)
    return fmt


def folded(model: ModelSpec, half: Format) -> tuple[ModelSpec, Format]:
    """One format of all matrices of all layers stands for them; formats that equal it are left out."""
    found = {layer.formats.of(m) or half for layer, _ in model.layer_groups() for m in layer.matrices}
    base = found.pop() if len(found) == 1 else half
    ends = {m: None if fmt == half else fmt for m, fmt in model.ends.listed}

    def apart(layer: int | None, matrix: str, stored: Format | None) -> Format | None:
        if layer is None:
            return ends.get(matrix)
        return None if (stored or half) == base else stored

    return model.stored(apart), base


def kv_dtype_of(model: ModelSpec, fmt: Format) -> str:
    """KV format where nobody names one: the checkpoint's, else 16 bit (fp32 beside fp32 weights)."""
    if model.kv_dtype is not None:
        return model.kv_dtype
    return fmt.name if fmt.name in ("fp16", "fp32") else "bf16"


def used(model: ModelSpec, fmt: Format) -> tuple[Format, ...]:
    """Every format that the matrices are multiplied in."""
    listed = (f for layer, _ in model.layer_groups() for m in layer.matrices if (f := layer.formats.of(m)))
    head = model.ends.of("lm_head")
    return tuple(dict.fromkeys((fmt, *listed, *((head,) if head else ()))))


def told(model: ModelSpec, fmt: Format) -> str:
    """The formats in words: that of the linear layers, then the groups that have others, counted where only in part."""
    words, groups = [fmt.label], Counter[str]()
    found: dict[tuple[str, Format], int] = {}
    for formats, matrices, times in _places(model):
        for matrix in matrices:
            group = GROUP_OF[matrix]
            groups[group] += times
            if other := formats.of(matrix):
                found[group, other] = found.get((group, other), 0) + times
    for group in GROUPS:
        for (of, other), n in found.items():
            if of == group:
                part = "" if n == groups[group] else f" in {n} of {groups[group]} matrices"
                words.append(f"{group} {other.label}{part}")
    return ", ".join(words)


def _places(model: ModelSpec) -> Iterator[tuple[Formats, tuple[str, ...], int]]:
    """Formats, matrices and how often they occur, of the ends and of each kind of layer."""
    yield model.ends, ("embed",) if model.tied_embeddings else ("embed", "lm_head"), 1
    for layer, indices in model.layer_groups():
        yield layer.formats, layer.matrices, len(indices)
