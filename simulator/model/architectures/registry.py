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


def architecture(*model_types: str) -> Callable[[Parser], Parser]:
    """Decorator: the function reads configs of these ``model_type`` values."""

    def add(parser: Parser) -> Parser:
        for model_type in model_types:
            ARCHITECTURES.register(model_type)(parser)
        return parser

    return add
