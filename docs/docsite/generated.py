"""Pages written from code: a line `<!-- generated: NAME -->` becomes what the function of that name returns.

The text is put in as the page is read, so nothing generated lies in the repository and nothing can go stale.
"""

import re
from functools import partial
from pathlib import Path

from docsite import accuracy, catalogue, commands, frontpage, graph, rooms, shadow

ROOT = Path(__file__).parents[2]


def _page(name: str) -> str:
    """A page of the repository's root, its links as they are on the site."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
    for old, new in (
        ("README.md", "index.md"),
        ("CHANGELOG.md", "changelog.md"),
        ("CONTRIBUTING.md", "contributing.md"),
    ):
        text = text.replace(f"]({old}", f"]({new}")
    return text


PARTS = {
    "changelog": lambda: _page("CHANGELOG.md"),
    "contributing": lambda: _page("CONTRIBUTING.md"),
    "verbs": commands.verbs_table,
    "commands simulator": lambda: commands.reference("simulator"),
    "commands traces": lambda: commands.reference("traces"),
    "commands sparse_kernels": lambda: commands.reference("sparse_kernels"),
    "commands reports": lambda: commands.reference("reports"),
    "policies": catalogue.policies,
    "devices": catalogue.devices,
    "models": catalogue.models,
    "engines": catalogue.engines,
    "scenario": catalogue.scenario,
    "sweep columns": catalogue.sweep_columns,
    "serve columns": catalogue.serve_columns,
    "request columns": catalogue.request_columns,
    "trace columns": catalogue.trace_columns,
    "bench columns": catalogue.bench_columns,
    "glossary": catalogue.glossary,
    "accuracy": accuracy.held_out,
    "accuracy all": accuracy.seen,
    "accuracy devices": accuracy.by_device,
    "folders graph": graph.folders,
    "layers graph": graph.layers,
    "front figure": frontpage.figure,
    "shadow claims": shadow.claims,
    "shadow speed": shadow.speed,
    "shadow measurements": shadow.measurements,
    "rooms": rooms.overview,
    **{f"room {name}": partial(rooms.reference, name) for name in rooms.ROOMS},
}
_MARK = re.compile(r"^<!-- generated: ([\w ]+?) -->$", re.MULTILINE)


def expand(text: str) -> str:
    """`text` with each mark replaced; an unknown name is a KeyError."""
    return _MARK.sub(lambda mark: PARTS[mark[1]](), text)


def _on_read(app, docname, source):
    source[0] = expand(source[0])


def setup(app):
    app.connect("source-read", _on_read)
    # Pages depend on code that Sphinx does not watch: they are written anew in every build.
    app.connect("env-get-outdated", _all_generated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _all_generated(app, env, added, changed, removed):
    return [name for name in env.found_docs - added if _MARK.search(env.doc2path(name).read_text(encoding="utf-8"))]
