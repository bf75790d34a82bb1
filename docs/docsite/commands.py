"""The command reference, from the typer applications themselves."""

import importlib

import typer

from docsite.markdown import cell, code, table
from simulator.__main__ import PACKAGES, Verb, verbs

EXTRA = {"traces": "traces", "sparse_kernels": "kernels", "reports": "reports"}
"""Part of the project that a package's verbs need."""


def anchor(verb: str) -> str:
    """Target of a verb's section."""
    return "verb-" + verb.replace(".", "-").replace("_", "-")


def verbs_table() -> str:
    """Every verb, what it answers, and a link to its flags."""
    rows = [[f"[`python -m {v.module}`](#{anchor(v.module)})", v.summary, _needs(v)] for v in verbs()]
    return table(["command", "answers", "needs"], rows)


def _needs(verb: Verb) -> str:
    extra = EXTRA.get(verb.module.partition(".")[0])
    return f"`shadowline[{extra}]`" if extra else ""


def reference(package: str) -> str:
    """Sections of all verbs of one package."""
    assert package in PACKAGES
    return "\n".join(_section(verb) for verb in verbs((package,)))


def _section(verb: Verb) -> str:
    root = typer.main.get_command(application(verb.module))
    lines = [f"({anchor(verb.module)})=", f"## `python -m {verb.module}`", "", verb.summary + ".", ""]
    subcommands = getattr(root, "commands", None)
    if subcommands:
        for name, command in subcommands.items():
            lines += [f"### `{verb.module} {name}`", "", *_body(command, f"{verb.module} {name}")]
    else:
        lines += _body(root, verb.module)
    return "\n".join(lines) + "\n"


def application(module: str) -> typer.Typer:
    """The typer application of a verb."""
    try:
        return importlib.import_module(f"{module}.__main__").app
    except ModuleNotFoundError:
        return importlib.import_module(module).app


def _body(command, name: str) -> list[str]:
    context = command.make_context(name, [], resilient_parsing=True)
    arguments, flags = [], []
    for p in command.params:
        spelling, _ = p.get_help_record(context) or ("", "")
        meaning = cell(p.help or "")
        if p.param_type_name == "argument":
            arguments.append([code(spelling), "required" if p.required else "", meaning])
        else:
            flags.append([code(spelling.replace("|", "/")), _default(p), meaning])
    out = [*(command.help or "").replace("\b", "").splitlines(), ""]
    if arguments:
        out += [table(["argument", "", "meaning"], arguments)]
    if flags:
        out += [table(["flag", "default", "meaning"], flags)]
    return out


def _default(param) -> str:
    if param.required:
        return "required"
    default = param.default
    if default is None or default is False or default == "" or callable(default):
        return ""
    if isinstance(default, list | tuple):
        return ", ".join(code(d) for d in default)
    return code(getattr(default, "value", default))
