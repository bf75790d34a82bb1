"""What a person sees: tables on stdout, talk on stderr, one line per error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from simulator.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, ShadowlineError, UnknownNameError

T = TypeVar("T")


def out(text: str = "") -> None:
    """Data, on stdout."""
    sys.stdout.write(text + "\n")


def say(text: str) -> None:
    """Talk, on stderr."""
    sys.stderr.write(text + "\n")


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


def table(
    title: str,
    headers: Sequence[str],
    body: Iterable[Sequence[str]],
    *,
    left: int = 1,
    note: str = "",
) -> None:
    """A table on stdout; the first `left` columns are text, the others numbers."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=None,
        pad_edge=False,
    )
    for i, name in enumerate(headers):
        side = "left" if i < left else "right"
        shown.add_column(name, justify=side, overflow="fold", no_wrap=not sys.stdout.isatty())
    for row in body:
        shown.add_row(*row)
    width = None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "240"))
    console = Console(file=sys.stdout, width=width, highlight=False, markup=False)
    console.print(shown)
    if note:
        console.print(note, style="dim")
    console.print()


def fail(error: ShadowlineError) -> NoReturn:
    """Print one line and leave with the error's exit code."""
    say(f"error: {error}")
    raise SystemExit(error.exit_code)


def main(app: Callable[..., Any]) -> NoReturn:
    """Run a typer app so that every expected ending is one line and a documented exit code."""
    import typer
    from typer.exceptions import TyperException

    try:
        code = app(standalone_mode=False)
    except ShadowlineError as error:
        fail(error)
    except TyperException as error:
        flag = getattr(error, "option_name", None)
        context = getattr(error, "ctx", None)
        if flag and context is not None and str(error).startswith("No such option"):
            known = [o for p in context.command.params for o in p.opts]
            fail(UnknownNameError("flag", flag, known))
        say(f"error: {error.format_message().rstrip('.')}; see --help")
        raise SystemExit(EXIT_BAD_INPUT) from None
    except (typer.Abort, KeyboardInterrupt):
        kept = "; finished parts are kept, continue with --resume" if "--out" in sys.argv else ""
        say("interrupted" + kept)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        # `| head` is a normal way to read a table.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    raise SystemExit(code if isinstance(code, int) else 0)


def progress(items: Iterable[T], total: int, label: str, *, quiet: bool = False) -> Iterable[T]:
    """Iterate with a bar on a terminal, one line per tenth elsewhere, nothing when `quiet`."""
    if quiet or total < 2:
        yield from items
        return
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(
            items, description=label, total=total, console=Console(stderr=True), transient=True
        )
        return
    shown = 0
    for done, item in enumerate(items, start=1):
        yield item
        tenth = done * 10 // total
        if tenth > shown:
            shown = tenth
            say(f"{label}: {done}/{total}")


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
