"""The import graph as drawings: folders and the arrows between them, and the layers inside the simulator.

Imports are read by grimp, which import-linter uses; the layers are those of pyproject.toml that it enforces.
"""

import ast
import importlib.util
import re
import tomllib
from collections import Counter
from functools import cache
from html import escape
from pathlib import Path

import grimp

from docsite.markdown import svg

PACKAGES = ("app", "reports", "sparse_kernels", "traces", "simulator", "hw_profiles")
LETTER, LINE = 6.7, 11
"""Width of a letter and font size of the fixed-width labels [px]."""
BOXES = {
    "app": (345, 10),
    "sparse_kernels": (10, 110),
    "traces": (195, 110),
    "reports": (500, 110),
    "simulator": (345, 210),
    "hw_profiles": (345, 300),
}
"""Left upper corners; between traces and reports there is room for the arrow from app to simulator [px]."""
BOX = (170, 46)
WIDTH, CELL = 474, 25
"""Width of the bands, and of a column of the counts beside them [px]."""


@cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES, cache_dir=None)


def imports(depth: int) -> Counter[tuple[str, str]]:
    """Pairs (importer, imported) of modules cut to `depth` names, and how many imports there are."""
    count: Counter[tuple[str, str]] = Counter()
    found = graph()
    for module in found.modules:
        for other in found.find_modules_directly_imported_by(module):
            pair = tuple(".".join(name.split(".")[:depth]) for name in (module, other))
            if pair[0] != pair[1]:
                count[pair] += 1
    return count


def folders() -> str:
    """The six folders; an arrow points at what is imported, with the number of import lines."""
    width, height = BOX
    parts = []
    edges = imports(1)
    # The profiles are data: the simulator opens them, only a few modules import the package.
    edges.setdefault(("simulator", "hw_profiles"), 0)
    for (source, target), n in sorted(edges.items()):
        (x0, y0), (x1, y1) = BOXES[source], BOXES[target]
        x0, x1 = x0 + width / 2, x1 + width / 2
        path = f"M{x0} {y0 + height} L{x1} {y1 - 3}"
        at = ((x0 + x1) / 2 + 16, (y0 + height + y1) / 2 + 4)
        label = f"{n}" if n else "data"
        parts.append(f'<path d="{path}" class="edge" marker-end="url(#arrow)"/>')
        parts.append(_text(label, *at, kind="count"))
    for name, (x, y) in BOXES.items():
        modules = sum(m.split(".")[0] == name for m in graph().modules)
        parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" class="box"/>')
        parts.append(_text(name, x + width / 2, y + 20, kind="name"))
        parts.append(_text(f"{modules} modules" if modules > 1 else "data files", x + width / 2, y + 36, kind="count"))
    return svg(_drawing(680, 356, parts, "Folders and their imports"))


def layers() -> str:
    """Layers inside the simulator, highest first, beside how many imports each makes of each lower one."""
    rows = contract()
    fan_in = Counter(target for (_, target) in imports(2))
    top = max(n for name, n in fan_in.items() if name.startswith("simulator."))
    between = _between(rows)
    most, parts, y = max(between.values()), [], 26.0
    for j in range(len(rows)):
        parts.append(_text(f"{j + 1}", WIDTH + 12 + CELL * (j + 0.5), 16, kind="count"))
    for i, names in enumerate(rows):
        chips = _chips(names)
        height = 14 + 25 * (chips[-1][2] + 1)
        parts.append(f'<rect x="2" y="{y}" width="{WIDTH - 4}" height="{height}" rx="6" class="band"/>')
        parts.append(_text(f"{i + 1}", 16, y + height / 2 + 4, kind="count"))
        for name, left, row, wide in chips:
            n, line = fan_in[f"simulator.{name}"], y + 10 + 25 * row
            title = f"simulator.{name}: {purpose(name)} Imported by {n} modules."
            shade = f"fill-opacity:{0.08 + 0.5 * n / top:.2f}"
            parts.append(f"<g><title>{escape(title)}</title>{_rect(left, line, wide, 20, shade)}")
            parts.append(_text(name, left + wide / 2, line + 14, kind="name") + "</g>")
        for j in range(i + 1, len(rows)):
            n, left = between[i, j], WIDTH + 12 + CELL * j
            middle = y + height / 2
            if n:
                shade = f"fill-opacity:{0.06 + 0.5 * n / most:.2f}"
                parts.append(_rect(left + 1, middle - 10, CELL - 2, 20, shade))
                parts.append(_text(f"{n}", left + CELL / 2, middle + 4, kind="name"))
        y += height + 6
    return svg(_drawing(WIDTH + 16 + CELL * len(rows), y + 4, parts, "Layers of the simulator and their imports"))


def _chips(names: list[str]) -> list[tuple[str, float, int, float]]:
    """Name, left edge, row and width of each box of a band."""
    chips, x, row = [], 30.0, 0
    for name in names:
        wide = LETTER * len(name) + 12
        if x + wide > WIDTH - 8:
            x, row = 30.0, row + 1
        chips.append((name, x, row, wide))
        x += wide + 6
    return chips


def _between(rows: list[list[str]]) -> Counter[tuple[int, int]]:
    """Imports that each layer makes of each other one."""
    level = {f"simulator.{name}": i for i, names in enumerate(rows) for name in names}
    count: Counter[tuple[int, int]] = Counter()
    for (importer, imported), n in imports(2).items():
        if importer in level and imported in level and level[importer] != level[imported]:
            count[level[importer], level[imported]] += n
    return count


def _rect(x: float, y: float, width: float, height: float, style: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" class="chip" style="{style}"/>'


def contract() -> list[list[str]]:
    """Files and rooms of the simulator, line by line as the import contract has them, highest first."""
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contract = next(c for c in project["tool"]["importlinter"]["contracts"] if c.get("containers") == ["simulator"])
    known = {m.split(".")[1] for m in graph().modules if m.startswith("simulator.")}
    rows = [re.findall(r"\w+", line) for line in contract["layers"]]
    return [[name for name in row if name in known] for row in rows]


def source(module: str) -> str:
    """Text of a module of the simulator, or of a room's ``__init__``."""
    spec = importlib.util.find_spec(f"simulator.{module}")
    return Path(spec.origin).read_text(encoding="utf-8")


def purpose(module: str) -> str:
    """First line of a module's docstring."""
    return (ast.get_docstring(ast.parse(source(module))) or "").partition("\n")[0].replace("``", "")


def _text(text: str, x: float, y: float, *, kind: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{kind}">{escape(text)}</text>'


def _drawing(width: float, height: float, parts: list[str], label: str) -> str:
    style = (
        ".box,.band{fill:none;stroke:var(--rule)}.chip{fill:var(--color-brand-primary)}"
        ".edge{fill:none;stroke:var(--muted)}"
        f".name,.count{{font:{LINE}px var(--font-stack--monospace);text-anchor:middle;fill:var(--ink)}}"
        ".count{fill:var(--muted);paint-order:stroke;stroke:var(--paper);stroke-width:4px}.head{fill:var(--muted)}"
    )
    arrow = (
        '<marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" class="head"/></marker>'
    )
    return (
        f'<svg class="import-graph" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{label}">'
        f"<defs><style>{style}</style>{arrow}</defs>{''.join(parts)}</svg>"
    )
