"""All verbs of Shadowline: ``python -m simulator`` lists them, ``python -m simulator VERB ...`` runs one."""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
import runpy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from simulator.base import console
from simulator.base.errors import UnknownNameError

PACKAGES = ("simulator", "traces", "sparse_kernels", "reports")


@dataclass(frozen=True)
class Verb:
    """A module that ``python -m`` runs, and what its docstring says it answers."""

    module: str
    summary: str


def verbs(packages: Sequence[str] = PACKAGES) -> tuple[Verb, ...]:
    """Verbs of `packages`, found by reading sources: nothing is imported, so an absent extra is no matter."""
    return tuple(verb for package in packages for verb in sorted(_in(package), key=_name))


def _name(verb: Verb) -> str:
    return verb.module


def _in(package: str) -> Iterator[Verb]:
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for found in pkgutil.iter_modules([folder]):
            path = Path(folder, found.name)
            file = path / "__main__.py" if found.ispkg else path.with_suffix(".py")
            source = file.read_text(encoding="utf-8") if file.is_file() else ""
            if "= typer.Typer(" in source and found.name != "__main__":
                text = ast.get_docstring(ast.parse(source)) or ""
                summary = text.partition("\n")[0].partition(": ``python -m")[0]
                yield Verb(f"{package}.{found.name}", summary)


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def command(
    verb: Annotated[str | None, typer.Argument(help="verb to run; its own flags follow")] = None,
    json_: Annotated[bool, typer.Option("--json", help='{"rows": [...]} on stdout')] = False,
) -> None:
    """List the verbs, or run one of the simulator's: `python -m simulator VERB ...`."""
    known = verbs()
    if verb is not None:
        raise UnknownNameError("verb", verb, [v.module.removeprefix("simulator.") for v in known])
    if json_:
        console.out_json({"rows": [{"verb": v.module, "answers": v.summary} for v in known]})
        return
    console.table(
        f"{len(known)} verbs",
        ["command", "answers"],
        [[f"python -m {v.module}", v.summary] for v in known],
        left=2,
        note="each has --help and --json; `python -m simulator doctor` says what is installed here",
    )


def main() -> None:
    """Hand the arguments to the verb they begin with, else list the verbs."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    known = {v.module for v in verbs()}
    for module in (f"simulator.{name}", name):
        if module in known:
            del sys.argv[1]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            return
    console.main(app)


if __name__ == "__main__":
    main()
