"""Where architecture parsers are registered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from simulator.base.registry import Registry
from simulator.model.reader import Reader
from simulator.model.spec import ModelSpec


class Parser(Protocol):
    """Reads a config of one ``model_type``."""

    def __call__(self, reader: Reader, name: str) -> ModelSpec:
        """Model called `name`; raises `InputError` where a key is missing or absurd."""
        ...


ARCHITECTURES: Registry[Parser] = Registry("architecture", "shadowline.architectures")


def architecture(*model_types: str, ignored: tuple[str, ...] = ()) -> Callable[[Parser], Parser]:
    """Decorator: the function reads configs of these ``model_type`` values.

    Parameters
    ----------
    ignored : tuple of str
        Keys of their files that look like sizes and change nothing; any other that is not asked for is refused.
    """

    def add(parser: Parser) -> Parser:
        def read(reader: Reader, name: str) -> ModelSpec:
            reader.asked.update(ignored)
            return parser(reader, name)

        for model_type in model_types:
            ARCHITECTURES.register(model_type)(read if ignored else parser)
        return parser

    return add
