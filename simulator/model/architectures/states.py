"""What configs of layers that keep a state have in common."""

from __future__ import annotations

from simulator.model.layer import LayerSpec
from simulator.model.reader import Reader
from simulator.model.spec import ModelSpec

Flags = tuple[bool, ...] | None
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}


def element_bytes(reader: Reader, key: str) -> float:
    """Bytes of an element of the state: fp32 unless `key` says otherwise [B]."""
    dtype = reader.word(key, default="float32")
    if dtype not in _BYTES:
        reader.fail(key, f"is {dtype!r}; known: {', '.join(_BYTES)}")
    return _BYTES[dtype]


def of_two_kinds(reader: Reader, n_layers: int, words: dict[str, bool], key: str = "layer_types") -> Flags:
    """For each layer listed under `key` what `words` says of its kind; None where the file has no such list."""
    types = reader.strings(key)
    if types is None:
        return None
    if len(types) != n_layers:
        reader.fail(key, f"lists {len(types)} layers, the model has {n_layers}")
    unknown = set(types) - set(words)
    if unknown:
        reader.fail(key, f"has {sorted(unknown)[0]!r}, which is not supported")
    return tuple(words[kind] for kind in types)


def model_of(reader: Reader, name: str, layers: tuple[LayerSpec, ...], *, tied: bool = False) -> ModelSpec:
    """Model of `layers` under the key names most configs share; `tied` is the default of transformers."""
    states_alone = not any(layer.attention for layer in layers)
    # Where nothing depends on the position, files give no longest context.
    longest = {"default": 1_048_576} if states_alone else {}
    return ModelSpec(
        name=name,
        architecture=reader.word("model_type", default=""),
        hidden=reader.whole("hidden_size"),
        vocab=reader.whole("vocab_size"),
        layers=layers,
        tied_embeddings=reader.flag("tie_word_embeddings", default=tied),
        max_context=reader.whole("max_position_embeddings", **longest),
    )
