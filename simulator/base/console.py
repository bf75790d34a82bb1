"""What a person sees: tables on stdout, talk on stderr, one line per error."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from simulator.base.errors import EXIT_INTERRUPTED, InputError, ShadowlineError, UnknownNameError, reason

if TYPE_CHECKING:
    from simulator.base.interval import Interval

T = TypeVar("T")

UNLIMITED, GAP = 10_000, 2
"""Width of what is no terminal, and between two columns [characters]."""


# What a terminal would obey rather than show: controls, directions of writing, halves of characters.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
NO_MEMORY = "the memory is used up; ask for fewer points or rows at once, or free some"
SPARE_BYTES = 4_000_000
"""Kept while a verb runs, to be given up for the line that says that memory ran out [B]."""
MOST_ERROR = 1500
"""Length of one line of an error; the middle of a longer one is left out [characters]."""


def out(text: str = "") -> None:
    """Data, on stdout."""
    sys.stdout.write(visible(text) + "\n")


def say(text: str) -> None:
    """Talk, on stderr."""
    sys.stderr.write(visible(text) + "\n")


def visible(text: str) -> str:
    """`text` with what a terminal would obey written as JSON escapes: names and values may come from anybody's file."""
    return _UNSEEN.sub(lambda m: f"\\u{ord(m[0]):04x}", text)


def share(value: float, form: str = ".0") -> str:
    """``0.5`` -> ``50 %``, kept on one line; `form` as in a format: ``.1``, ``+.0``."""
    return f"{value:{form}%}"[:-1] + "\u202f%"


def out_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout; absent numbers are null."""
    out(as_json(value))


def as_json(value: Any) -> str:
    """JSON in which absent and infinite numbers are null."""
    return json.dumps(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def table(title: str, headers: Sequence[str], body: Iterable[Sequence[str]], *, left: int = 1, note: str = "") -> None:
    """A table on stdout; the first `left` columns are text, the others numbers.

    Off a terminal every row is one line. On one, text wraps between words and never inside one, because names are
    copied into the next command; where even that is too wide, columns of one value are said once under the title.
    """
    from rich.console import Console
    from rich.table import Table

    rows = [[visible(str(cell)) for cell in row] for row in body]
    room = Console(file=sys.stdout).width if sys.stdout.isatty() else UNLIMITED
    columns = [list(c) for c in zip(headers, *rows, strict=True)]
    shown, same = list(range(len(columns))), []
    if len(rows) > 1 and sum(_widths(columns, room)) > room:
        shown = [i for i, c in enumerate(columns) if i == 0 or len(set(c[1:])) > 1]
        same = [" ".join(columns[i][:2]) for i in range(len(columns)) if i not in shown]
    widths = _widths([columns[i] for i in shown], room)
    grid = Table(header_style="bold", box=None, pad_edge=False)
    for i, width in zip(shown, widths, strict=True):
        grid.add_column(headers[i], justify="left" if i < left else "right", width=width - GAP)
    for row in rows:
        grid.add_row(*(row[i] for i in shown))
    # A table wider than the terminal is for the terminal to wrap: rich would crop it.
    wide = Console(file=sys.stdout, width=max(room, sum(widths)), highlight=False, markup=False, emoji=False)
    console = Console(file=sys.stdout, width=room, highlight=False, markup=False, emoji=False)
    console.print(visible(title), style="bold")
    if same:
        console.print("in all rows: " + ", ".join(same))
    wide.print(grid)
    if note:
        console.print(note, style="dim")
    console.print()


def _widths(columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """Characters of each column with its gap: its longest cell, or less to fit `room`, but never less than a word."""
    widths = [max(map(len, c)) + GAP for c in columns]
    least = [max(len(w) for cell in c for w in (cell.split() or [""])) + GAP for c in columns]
    while sum(widths) > room and widths != least:
        widest = max((w, i) for i, w in enumerate(widths) if w > least[i])[1]
        widths[widest] -= 1
    return widths


def fail(error: ShadowlineError) -> NoReturn:
    """Print one line, or one per problem of a profile, and leave with the error's exit code."""
    lines = (" ".join(p.split()) for p in getattr(error, "problems", (str(error),)))
    say("error: " + "\n".join(_shortened(line) for line in lines))
    raise SystemExit(error.exit_code)


def _shortened(line: str) -> str:
    if len(line) <= MOST_ERROR:
        return line
    return f"{line[: MOST_ERROR // 2]} [...] {line[-MOST_ERROR // 2 :]}"


def main(app: Callable[..., Any]) -> NoReturn:
    """Run a typer app so that every expected ending is one line and a documented exit code."""
    import typer
    from typer.exceptions import TyperException

    spare = b""
    try:
        spare = bytes(SPARE_BYTES)
        if isinstance(app, typer.Typer):
            app = typer.main.get_command(app)
            _once_each(app)
        code = app(standalone_mode=False)
        sys.stdout.flush()
        if code == EXIT_INTERRUPTED:
            # The parser turns an interrupt into this code, and says nothing.
            raise KeyboardInterrupt
    except ShadowlineError as error:
        fail(error)
    except TyperException as error:
        flag = getattr(error, "option_name", None)
        context = getattr(error, "ctx", None)
        if flag and context is not None and str(error).startswith("No such option"):
            known = [o for p in context.command.params for o in p.opts]
            fail(UnknownNameError("flag", flag, known))
        fail(InputError(f"{error.format_message().rstrip('.')}; see --help"))
    except (typer.Abort, KeyboardInterrupt):
        say("interrupted" + _resumed(app))
        raise SystemExit(EXIT_INTERRUPTED) from None
    except MemoryError as error:
        # What was being made hangs on the frames that ended, and the spare is room for a line whatever they held.
        error.__traceback__ = None
        del spare
        fail(InputError(NO_MEMORY))
    except BrokenPipeError:
        # `| head` is a normal way to read a table.
        _drop_stdout()
        code = 0
    except ModuleNotFoundError as error:
        from simulator.base.extras import install_for

        advice = install_for(error.name or "")
        if advice is None:
            raise
        fail(InputError(f"{error.name} is not installed; this needs {advice}"))
    except ImportError as error:
        if not re.search("failed to map segment|allocate memory", str(error)):
            raise
        fail(InputError(NO_MEMORY))
    except OSError as error:
        # What a verb reads or writes by name it tells itself; without a name it is its own output.
        _drop_stdout()
        what = f"cannot use {error.filename}" if error.filename else "cannot write the answer"
        fail(InputError(f"{what}: {reason(error)}"))
    raise SystemExit(code if isinstance(code, int) else 0)


def _resumed(command: Any) -> str:
    """What an interrupted run keeps and the command that goes on with it; nothing of a verb that keeps nothing."""
    given = sys.argv[1:]
    inner = getattr(command, "commands", {})
    command = next((inner[a] for a in given if a in inner), command)
    resumes = any("--resume" in p.opts for p in getattr(command, "params", ()))
    spec = sys.modules["__main__"].__spec__
    if not resumes or spec is None or not any(a == "--out" or a.startswith("--out=") for a in given):
        return ""
    verb = spec.name.removesuffix(".__main__")
    rest = [a for a in given if a != "--resume"]
    return f"; finished parts are kept, go on with: python -m {shlex.join([verb, *rest, '--resume'])}"


def _once_each(command: Any) -> None:
    """Let `command`, and those in it, refuse a flag of one value that is given twice: the parser keeps the last."""
    for inner in getattr(command, "commands", {}).values():
        _once_each(inner)
    make = command.make_parser

    def make_parser(context: Any) -> Any:
        parser = make(context)
        parse = parser.parse_args

        def parse_args(args: list[str]) -> Any:
            values, rest, order = parse(args=args)
            for param in order:
                takes_one = param.param_type_name == "option" and not (param.multiple or param.is_flag or param.count)
                if takes_one and order.count(param) > 1:
                    raise InputError("is given twice; give one", where=" or ".join(param.opts))
            return values, rest, order

        parser.parse_args = parse_args
        return parser

    command.make_parser = make_parser


def _drop_stdout() -> None:
    """What is still to be written goes nowhere: the interpreter would else complain of it as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def progress(items: Iterable[T], total: int, label: str, *, quiet: bool = False) -> Iterable[T]:
    """Iterate with a bar on a terminal, a line and the time left per tenth elsewhere, nothing when `quiet`."""
    if quiet or total < 2:
        yield from items
        return
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(items, description=label, total=total, console=Console(stderr=True), transient=True)
        return
    shown, start = 0, time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        tenth = done * 10 // total
        left = (time.monotonic() - start) / done * (total - done)
        if tenth > shown or (done == 1 and left > 60.0):
            shown = tenth
            say(f"{label}: {done}/{total}" + (f", about {_duration(left)} left" if left > 5.0 else ""))


def _duration(seconds: float) -> str:
    """Seconds below two minutes, minutes below two hours, else hours."""
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 2.0 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def milliseconds(seconds: float | None) -> str:
    """Three significant digits of ms, or a dash."""
    if seconds is None or seconds != seconds:
        return "-"
    return f"{seconds * 1e3:,.3g}" if seconds < 1.0 else f"{seconds * 1e3:,.0f}"


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits with thousands separators, or a dash."""
    if value is None or value != value:
        return "-"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def spread(figure: Interval[float], show: Callable[[float], str] = number, dash: str = "-") -> str:
    """A figure with its interval: ``11 (7.97-17.9)``."""
    return f"{show(figure.mid)} ({show(figure.lo)}{dash}{show(figure.hi)})"
