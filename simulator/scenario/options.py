"""Options of a verb from the fields of a scenario."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from simulator.base.errors import InputError
from simulator.scenario.fields import FIELDS, REQUIRED, Known


def with_options(**groups: Sequence[inspect.Parameter]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator of a typer command: a parameter named as a group becomes its options, and receives them as a dict."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = get_type_hints(function, include_extras=True)
        parameters: list[inspect.Parameter] = []
        for name, parameter in inspect.signature(function).parameters.items():
            alone = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=own[name])
            parameters += groups.get(name, (alone,))

        def command(**values: Any) -> None:
            given = {group: {p.name: values.pop(p.name) for p in of} for group, of in groups.items()}
            function(**given, **values)

        command.__doc__, command.__module__ = function.__doc__, function.__module__
        command.__signature__ = inspect.Signature(parameters)
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def option(name: str, kind: Any, default: Any, meaning: str, *spellings: str, **more: Any) -> inspect.Parameter:
    """One option; without `spellings` its flag is its name."""
    if default is REQUIRED:
        default = inspect.Parameter.empty
    annotation = Annotated[kind | None if default is None else kind, typer.Option(*spellings, help=meaning, **more)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def refuse_beside(context: typer.Context, allowed: Collection[str], why: str) -> None:
    """Refuse what is given beside a flag that does not look at it: all but the parameters `allowed`."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in allowed and source is not None and source.name != "DEFAULT":
            raise InputError(why, where=next(p.opts[0] for p in context.command.params if p.name == name))


def paths_of(given: Mapping[str, Any]) -> list[tuple[str, Path]]:
    """Flag and path of everything given that names a file or a folder that is there."""
    out = []
    for name, value in given.items():
        for text in value if isinstance(value, list | tuple) else [value]:
            # A list may be one text with commas; a path may hold one.
            for part in {str(text), *str(text).split(",")} if isinstance(text, str | Path) else ():
                if part and os.path.exists(part):
                    out.append(("--" + name.replace("_", "-"), Path(part)))
    return out


def scenario_options(
    *,
    without: Collection[str] = (),
    lists: Collection[str] = (),
    repeated: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
    more: Mapping[str, str] | None = None,
) -> list[inspect.Parameter]:
    """One option per field of `Scenario`.

    Parameters
    ----------
    without : collection of str
        Fields the verb does not ask for.
    lists, repeated : collection of str
        Fields that take several values: as text that the verb reads, or as a flag that is repeated.
    defaults : mapping
        Other defaults than those of `Scenario`.
    more : mapping
        What the verb adds to the meaning of a field.
    """
    out = []
    for known in FIELDS.values():
        if known.name not in without:
            several = str if known.name in lists else list[str] if known.name in repeated else None
            default = None if known.name in repeated else known.default
            default = (defaults or {}).get(known.name, default)
            out.append(_of(known, several, default, (more or {}).get(known.name, "")))
    return out


def _of(known: Known, several: Any, default: Any, more: str) -> inspect.Parameter:
    about = known.about
    meaning = "; ".join(filter(None, (about.help, about.several if several else "", more)))
    # A switch is only turned on; typer would else add its opposite.
    spellings: tuple[str, ...] = (known.flag,) if known.kind is bool else ()
    if about.short or about.more:
        spellings = (known.flag, *filter(None, (about.short,)), *about.more)
    as_text = several is str and default not in (None, REQUIRED)
    return option(known.name, several or known.kind, str(default) if as_text else default, meaning, *spellings)
