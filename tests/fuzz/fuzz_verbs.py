"""What the cases call: verbs, and functions that stand as verbs for what no command line reaches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fuzz_case import REPO

MOST_POINTS = 2000


"""Grids above this are refused here: a large one that was asked for takes long by right."""


# Verbs --------------------------------------------------------------------------------------------------------------


def _verb(module: str) -> Callable[[], Any]:
    def run() -> None:
        import importlib

        from simulator.base import console

        console.main(importlib.import_module(module).app)

    return run


def _function(name: str) -> Callable[[], Any]:
    """A function of this module as a verb: its arguments are the words, its error is told as a verb's."""

    def run() -> None:
        from simulator.base import console
        from simulator.base.errors import ShadowlineError

        try:
            globals()[name](*sys.argv[1:])
        except ShadowlineError as error:
            console.fail(error)

    return run


NAMED = ("predict", "sweep", "serve", "plan", "devices", "models", "validate", "calibrate")
FUNCTIONS = ("claims", "compose", "fits", "link", "scenario_json", "own_model", "own_device", "own_trace", "page")
VERBS: Mapping[str, Callable[[], Any]] = {
    **{v: _verb(f"simulator.{v}") for v in NAMED},
    "policies": _verb("simulator.policies.__main__"),
    "trace": _verb("simulator.trace.__main__"),
    "report": _verb("reports.build"),
    **{n: _function(n) for n in FUNCTIONS},
}


def claims(path: str) -> None:
    """Rows of a file as ``simulator.claims --data`` reads and judges them, without the committed ones."""
    from simulator.base.console import as_json as shown
    from simulator.claims.judge import judge
    from simulator.claims.rows import read_file
    from simulator.claims.statistics import summary

    rows = judge(read_file(Path(path)))
    shown({"rows": [r.to_dict() for r in rows], "summary": summary(rows)})


def compose(path: str) -> None:
    """A report's content, not drawn: what reads the file does its work here."""
    from reports import build

    build._compose(build._kind(path), path, None, None)


def fits(path: str) -> None:
    """A user's own fit table."""
    from simulator.device.fit_file import parse

    parse(Path(path).read_text("utf-8", "surrogateescape"), path)


def link(text: str) -> None:
    """A link of the app, and the same as a query of the library."""
    from app import state
    from simulator.base.errors import ShadowlineError

    try:
        state.read_query(text)
    except ShadowlineError as error:
        told = error
    else:
        told = None
    from urllib.parse import parse_qsl

    values, _ = state.read_link(dict(parse_qsl(text, keep_blank_values=True)))
    from simulator.scenario.scenario import Scenario

    Scenario.of(**values)
    if told is not None:
        raise told


def scenario_json(text: str) -> None:
    """A scenario as JSON."""
    from simulator.scenario.scenario import Scenario

    found = Scenario.from_json(text)
    assert Scenario.from_query(found.to_query()) == found


def own_model(name: str, path: str) -> None:
    """The app's own model: pasted or uploaded."""
    from app import own

    _inside(own.save_model(name, Path(path).read_bytes()), "models")


def own_device(name: str, path: str) -> None:
    """The app's own profile."""
    from app import own

    kept = own.save_device(name, Path(path).read_text("utf-8", "surrogateescape"))
    _inside(kept, "devices")
    kept.unlink()


def own_trace(*paths: str) -> None:
    """The app's own trace."""
    from app import own

    _inside(own.save_trace({Path(p).name: Path(p).read_bytes() for p in paths}), "traces")


def _inside(path: Path, folder: str) -> None:
    from simulator.device.catalogue import user_data_dir

    assert path.resolve().parent == (user_data_dir() / folder).resolve(), f"escaped to {path}"


def page(view: str, query: str, key: str = "", *paths: str) -> None:
    """A page of the app with these parameters and uploads; what it says is its own matter, but it must not break."""
    from urllib.parse import parse_qsl

    from streamlit.testing.v1 import AppTest

    at = AppTest.from_file(str(REPO / "app" / "main.py"), default_timeout=60)
    for name, value in parse_qsl(query, keep_blank_values=True):
        at.query_params[name] = value
    at.run()
    _no_exception(at)
    if view != "what_if":
        at.switch_page(f"views/{view}.py").run()
        _no_exception(at)
    if key:
        uploads = [(Path(p).name, Path(p).read_bytes(), "") for p in paths]
        at.file_uploader(key=key).set_value(uploads if key == "t.files" else uploads[0]).run()
        _no_exception(at)


class PageError(Exception):
    """The app showed an exception."""


def _no_exception(at: Any) -> None:
    for found in at.exception:
        trail = "\n".join(found.stack_trace or [])
        frames = [
            line for line in trail.splitlines() if "/app/" in line or "/simulator/" in line or "/reports/" in line
        ]
        raise PageError(f"{found.value} at {frames[-1].strip() if frames else '?'}"[:400])
