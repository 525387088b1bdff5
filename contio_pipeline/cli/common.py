"""What all commands share: how they are registered, tables, and text that a terminal can show.

What lives here: words in columns. What never does: a command.
"""

from __future__ import annotations

import inspect
import json
import logging
import sys
import time
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, TypeVar

import typer
import typer.core

from contio_pipeline.errors import ConfigError

F = TypeVar("F", bound=Callable[..., None])

log = logging.getLogger("contio_pipeline")

app = typer.Typer(
    help="Sync the Contio Partner User API into DuckDB and Parquet that hold exactly what the API holds.\n\n"
    "Start with [bold]contio-pipeline demo[/], which needs no account. For real data: set CONTIO_CLIENT_ID and "
    "CONTIO_CLIENT_SECRET (in the environment or in .env), log in, sync, query.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)


def command(
    group: typer.Typer, name: str | None = None, cls: type[typer.core.TyperCommand] | None = None
) -> Callable[[F], F]:
    """Register a command whose help is its docstring, each paragraph flowing to the width of the terminal."""

    def register(function: F) -> F:
        paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
        return group.command(name, cls=cls, help="\n\n".join(" ".join(part.split("\n")) for part in paragraphs))(
            function
        )

    return register


def _log_more(value: bool) -> None:
    if value:
        log.setLevel(logging.INFO)


Verbose = Annotated[bool, typer.Option("--verbose", "-v", callback=_log_more, help="Log more to standard error.")]


def tell(text: str, *, level: str = "INFO", **facts: Any) -> None:
    """Say something on standard error: as text, or with its facts as a line of JSON (`CONTIO_LOG_FORMAT`)."""
    if not _as_json():
        print(text, file=sys.stderr)
        return
    line = {"time": datetime.now(UTC).isoformat(), "level": level, "message": text, **facts}
    print(json.dumps(line, ensure_ascii=False, default=as_text), file=sys.stderr)


class Log(logging.Handler):
    """Tells what the library logs."""

    def emit(self, record: logging.LogRecord) -> None:
        """A line for each record."""
        when = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = record.getMessage()
        tell(text if _as_json() else f"{when} {record.levelname} {text}", level=record.levelname)


@cache
def _as_json() -> bool:
    """Whether JSON is asked for; text where the settings cannot be read, which the command itself says."""
    from contio_pipeline.settings import load_settings

    try:
        return load_settings().log_format == "json"
    except ConfigError:
        return False


def as_text(value: Any) -> str:
    """A value of a query as a machine reads it."""
    match value:
        case datetime():
            return value.isoformat()
        case bytes():
            return value.hex()
        case dict() | list():
            return json.dumps(value, ensure_ascii=False, default=as_text)
        case bool():
            return str(value).lower()
    return str(value)


def shown(value: Any) -> str:
    """A value as a terminal may show it: no control characters, and no more decimals than anybody reads."""
    return _printable(_short_text(value))


def _short_text(value: Any) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S}" if isinstance(value, datetime) else as_text(_rounded(value))


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return round(value, _DECIMALS) if abs(value) >= 1 else float(f"{value:.{_DECIMALS}g}")
        case dict():
            return {key: _rounded(one) for key, one in value.items()}
        case list():
            return list(map(_rounded, value))
    return value


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\u200d" else " " for c in text)  # the joiner makes one emoji of two


_DECIMALS = 6

_WIDEST = 200
"""To which others are padded; a longer cell stands out."""


def show_table(
    names: Iterable[str], rows: Iterable[Sequence[Any]], numbers: Collection[str] = (), most: int | None = None
) -> bool:
    """Print rows in columns, numbers to the right, and the columns that are named in `numbers`; None is blank.

    On a terminal long cells are folded, or cut where `numbers` makes it a report; elsewhere nothing is.

    Args:
        names: of the columns.
        rows: a cell for each column.
        numbers: see above.
        most: characters of a cell: what is longer is cut, anywhere.

    Returns:
        Whether a cell was cut because of `most`.
    """
    cut = False

    def cell(value: Any) -> str:
        nonlocal cut
        text = "" if value is None else _short_text(value)
        if most and len(text) > most:
            text, cut = f"{text[: most - 1]}…", True
        return _printable(text)

    names, found = list(map(cell, names)), [list(row) for row in rows]
    right = [
        name in numbers
        or any(isinstance(row[at], int | float | Decimal) and not isinstance(row[at], bool) for row in found)
        for at, name in enumerate(names)
    ]
    cells = [list(map(cell, row)) for row in found]
    if not (sys.stdout and sys.stdout.isatty()):
        widths = [min(_WIDEST, max(map(_width, column))) for column in zip(names, *cells, strict=True)]
        for line in (names, *cells):
            print("  ".join(_justified(*one) for one in zip(line, widths, right, strict=True)).rstrip())
        return cut
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, number in zip(names, right, strict=True):
        table.add_column(
            Text(name),
            justify="right" if number else "left",
            overflow="ellipsis" if numbers else "fold",
            no_wrap=bool(numbers),
        )
    for row in cells:
        table.add_row(*map(Text, row))
    Console().print(table)
    return cut


def _justified(text: str, width: int, right: bool) -> str:
    blank = " " * (width - _width(text))
    return blank + text if right else text + blank


def _width(text: str) -> int:
    """In places of a terminal."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)
