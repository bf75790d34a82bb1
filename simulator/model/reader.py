"""Reads one ``config.json`` key by key and says which key of which file is wrong, and how."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

from simulator.base.errors import InputError, ShadowlineError
from simulator.model.layer import Activation

_REQUIRED = object()
_LARGEST = 2**40

ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "relu2": "relu2",
    "relu_squared": "relu2",
    "silu": "silu",
    "swish": "silu",
    "swiglu": "silu",
    "swigluoai": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_accurate": "gelu",
    "quick_gelu": "gelu",
    "xielu": "xielu",
}

_DTYPES = {"float16": "fp16", "half": "fp16", "bfloat16": "bf16", "float32": "fp32", "float": "fp32"}


class Reader:
    """Typed access to a config.

    Parameters
    ----------
    config : Mapping
        The parsed JSON object.
    where : str
        File or model the config came from; printed in front of every complaint.
    text : str, optional
        The file's text, to name the line of a bad key.
    aliases : Mapping, optional
        Other names of keys in this family's files; a key that stands under its own name wins.

    Attributes
    ----------
    asked : set of str
        Keys that were asked for, set or not; readers derived from this one add to the same set.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        where: str,
        text: str | None = None,
        aliases: Mapping[str, tuple[str, ...]] | None = None,
    ):
        self.config, self.where, self.text = config, where, text
        self.aliases = aliases or {}
        self.asked: set[str] = set()

    def derived(
        self,
        changes: Mapping[str, Any] | None = None,
        without: tuple[str, ...] = (),
        aliases: Mapping[str, tuple[str, ...]] | None = None,
    ) -> Reader:
        """The same file with `changes`, `without` some keys, or with other names of keys."""
        config = {k: v for k, v in {**self.config, **(changes or {})}.items() if k not in without}
        reader = Reader(config, self.where, self.text, {**self.aliases, **(aliases or {})})
        self.asked.update(without)
        reader.asked = self.asked
        return reader

    def fail(self, key: str, problem: str) -> NoReturn:
        """Raise the `refusal` of `key`."""
        raise self.refusal(key, problem)

    def refusal(self, key: str, problem: str) -> InputError:
        """What is wrong with `key`, with its line when the text is known."""
        where = self.where
        if self.text is not None:
            for number, line in enumerate(self.text.splitlines(), start=1):
                if f'"{key}"' in line:
                    where = f"{where}:{number}"
                    break
        return InputError(f"key {key!r} {problem}", where=where)

    def _find(self, keys: tuple[str, ...]) -> tuple[str, Any]:
        every = tuple(name for key in keys for name in (key, *self.aliases.get(key, ())))
        self.asked.update(every)
        for key in every:
            if self.config.get(key) is not None:
                return key, self.config[key]
        return (self.aliases.get(keys[0]) or keys)[0], None

    def whole(self, *keys: str, default: Any = _REQUIRED, low: int = 1, high: int = _LARGEST) -> int:
        """Whole number under the first of `keys` that is set; `default` when none is."""
        key, value = self._find(keys)
        if value is None:
            if default is _REQUIRED:
                names = " or ".join(repr(k) for k in keys)
                self.fail(key, f"is missing; the file must give {names}")
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(key, f"is {_show(value)}; it must be a whole number")
        if not low <= value <= high:
            self.fail(key, f"is {_show(value)}; it must lie between {low} and {high}")
        return value

    def uniform(self, *keys: str, default: Any = _REQUIRED) -> int:
        """Like `whole` from zero on, or a list of one number for each layer, all the same."""
        key, value = self._find(keys)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            return self.derived({key: value[0]}).whole(key, low=0)
        return self.whole(*keys, default=default, low=0)

    def unset(self, *keys: str) -> bool:
        """Whether none of `keys` is set."""
        return self._find(keys)[1] is None

    def set_of(self, *keys: str) -> str:
        """The first of `keys` that is set, under the name it stands under."""
        return self._find(keys)[0]

    def optional_whole(self, *keys: str, default: Any = None) -> int | None:
        """Like `whole`, None when no key is set."""
        return self.whole(*keys, default=default)

    def flag(self, *keys: str, default: bool = False) -> bool:
        """True or false under the first of `keys` that is set."""
        key, value = self._find(keys)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fail(key, f"is {_show(value)}; it must be true or false")
        return value

    def word(self, *keys: str, default: str) -> str:
        """Text under the first of `keys` that is set."""
        key, value = self._find(keys)
        if value is None:
            return default
        if not isinstance(value, str):
            self.fail(key, f"is {_show(value)}; it must be text")
        return value

    def number(self, *keys: str, default: float) -> float:
        """Finite positive number under the first of `keys` that is set."""
        key, value = self._find(keys)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.fail(key, f"is {_show(value)}; it must be a number")
        if not (math.isfinite(value) and value > 0):
            self.fail(key, f"is {_show(value)}; it must be finite and above zero")
        return float(value)

    def strings(self, key: str) -> tuple[str, ...] | None:
        """List of texts, None when the key is not set."""
        key, value = self._find((key,))
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.fail(key, f"is {_show(value)}; it must be a list of texts")
        return tuple(value)

    def numbers(self, key: str) -> tuple[int, ...] | None:
        """List of whole numbers from zero on, None when the key is not set."""
        key, value = self._find((key,))
        if value is None:
            return None
        whole = isinstance(value, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in value)
        if not whole or any(i < 0 for i in value):
            self.fail(key, f"is {_show(value)}; it must be a list of whole numbers")
        return tuple(value)

    def switches(self, key: str, n_layers: int) -> tuple[bool, ...] | None:
        """List of one 0 or 1 per layer, None when the key is not set."""
        key, value = self._find((key,))
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != n_layers or not all(item in (0, 1) for item in value):
            self.fail(key, f"must list a 0 or a 1 for each of the {n_layers} layers")
        return tuple(bool(item) for item in value)

    def section(self, key: str) -> Reader | None:
        """Reader of a nested object, None when the key is not set."""
        key, value = self._find((key,))
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self.fail(key, f"is {_show(value)}; it must be an object with keys of its own")
        return Reader(value, f"{self.where} ({key})", self.text)

    def activation(self, *keys: str, default: str) -> Activation:
        """Activation function by our name."""
        name = self.word(*keys, default=default) if keys else default
        try:
            return ACTIVATIONS[name.casefold()]
        except KeyError:
            known = ", ".join(sorted(ACTIVATIONS))
            self.fail(self._find(keys)[0], f"names the activation {name!r}; known: {known}")

    def dtype(self) -> str:
        """Format of the published weights, 16 bit where none is given; transformers 5 writes ``dtype``."""
        name = self.word("torch_dtype", "dtype", default="bfloat16")
        try:
            return _DTYPES[name.removeprefix("torch.")]
        except KeyError:
            self.fail(self._find(("torch_dtype", "dtype"))[0], f"is {name!r}; known: {', '.join(sorted(_DTYPES))}")

    def layers(self, *keys: str) -> int:
        """Number of layers; the bound keeps a typing error from filling the memory."""
        return self.whole(*keys, high=10_000)

    def heads(self, n_heads: int, *keys: str) -> int:
        """Key/value heads that divide `n_heads`; as many as query heads when not set."""
        n_kv_heads = self.whole(*keys, default=n_heads)
        if n_heads % n_kv_heads:
            self.fail(self._find(keys)[0], f"is {n_kv_heads}, which does not divide the {n_heads} attention heads")
        return n_kv_heads

    def head_dim(self, hidden: int, n_heads: int, *keys: str) -> int:
        """Explicit head width, or ``hidden / n_heads`` which must then come out even."""
        explicit = self.optional_whole(*keys) if keys else None
        if explicit is not None:
            return explicit
        if hidden % n_heads:
            raise InputError(
                f"hidden width {hidden} is not a multiple of {n_heads} heads and the file gives no head_dim",
                where=self.where,
            )
        return hidden // n_heads


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def with_where(error: ShadowlineError, where: str) -> ShadowlineError:
    """The same error with a place, if it had none."""
    return error if error.where else type(error)(error.message, where=where)
