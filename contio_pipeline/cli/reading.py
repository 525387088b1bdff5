"""Reading what is published: `status`, `query`, `export`, `dashboard`."""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
from contextlib import redirect_stdout, suppress
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from contio_pipeline.cli.common import Verbose, app, as_text, command, show_table, tell
from contio_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from contio_pipeline.generations import Answer, Generation
    from contio_pipeline.settings import Settings

_LONGEST_CELL = 80
"""Characters, in the table that `query` prints."""


class Format(StrEnum):
    """How rows are written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


To = Annotated[
    Path | None,
    typer.Option(
        "--to",
        help="Write to this file; its ending (.csv, .json, .parquet) says how, unless --format does.",
        metavar="FILE",
    ),
]


def _current(settings: Settings) -> Generation:
    """The current generation; where another publish policy is asked for than it was made under, that is said."""
    from contio_pipeline.generations import current
    from contio_pipeline.privacy import Policy

    generation = current(settings.data_dir)
    if generation.manifest.get("policy", {}).get("digest") != Policy.asked_for(settings).digest:
        tell(
            "Published under another publish policy than the settings say: run contio-pipeline publish", level="WARNING"
        )
    return generation


@command(app)
def status(verbose: Verbose = False) -> None:  # noqa: ARG001 - its callback does the work
    """Show what is published: how fresh and how complete each account and stream is.

    It reads the current generation, never the working file, so it can be asked at any moment.
    """
    from contio_pipeline.generations import ask, refused
    from contio_pipeline.settings import load_settings

    generation = _current(load_settings())
    if told := refused(generation.folder.parent.parent):
        print(f"Since then: {told}\n", file=sys.stderr)
    print(f"Published {generation.published_at:%Y-%m-%d %H:%M:%S} UTC: {generation.folder}\n")
    for heading, sql in _STATUS.items():
        answer = ask(generation, sql)
        rows = list(answer.rows)
        if rows:
            print(heading)
            show_table(answer.names, rows)
            print()


_STATUS = {
    "Accounts": """
        SELECT a._account AS account, a.display_name AS name, a.email FROM raw.accounts a ORDER BY 1""",
    "Completeness (the last listing of each kind; no dates: a full sync)": """
        SELECT account, stream, window_start AS since, window_end AS until, complete_at AS last_complete, rows,
            quarantined, missing, if(complete, 'yes', 'NO') AS complete
        FROM ops.windows QUALIFY row_number() OVER (
            PARTITION BY account, stream, window_start IS NULL ORDER BY window_end DESC, listed_at DESC) = 1
        ORDER BY account, stream, window_start NULLS FIRST""",
    "What is not complete, and what to do": """
        SELECT account, stream, window_start AS since, window_end AS until, reason FROM ops.windows
        WHERE NOT complete ORDER BY ALL""",
    "Document contents": """
        SELECT _account AS account, state, count(*) AS documents, coalesce(sum(size_bytes), 0) AS bytes
        FROM raw.document_contents GROUP BY ALL ORDER BY ALL""",
    "Last syncs": """
        SELECT started_at, finished_at, window_start AS since, window_end AS until, inserted, updated, deleted, requests,
            CASE WHEN finished_at IS NULL THEN 'interrupted' WHEN complete THEN 'yes' ELSE 'NO' END AS complete
        FROM ops.runs ORDER BY started_at DESC LIMIT 5""",
}


_COMMENT = re.compile(r"--(?![\w-]*=)\S*\s")


class _Query(typer.core.TyperCommand):
    """Takes SQL that begins with a comment for what it is."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """What begins with -- and has a space in it is no option; blank space before SQL means nothing."""
        return super().parse_args(ctx, [f"\n{arg}" if _COMMENT.match(arg) else arg for arg in args])


@command(app, cls=_Query)
def query(
    sql: Annotated[
        str, typer.Argument(help="One SQL statement; tables are mart.<name>, raw.<stream>, ops.<table>.", metavar="SQL")
    ],
    format: Annotated[  # noqa: A002 - the option's name
        Format | None,
        typer.Option(help="How to write the rows: table, with long cells cut, unless --to says otherwise."),
    ] = None,
    to: To = None,
    verbose: Verbose = False,  # noqa: ARG001 - its callback does the work
) -> None:
    """Ask the published data a question in SQL (DuckDB's), read-only, at any moment; times are in UTC.

    Example: contio-pipeline query "SELECT status, count(*) FROM mart.meetings WHERE deleted_at IS NULL GROUP BY 1"
    """
    from contio_pipeline.settings import load_settings

    _write(_asked(_current(load_settings()), sql), format, to)


@command(app)
def export(
    mart: Annotated[
        str, typer.Option(help="Which mart, such as meetings; see docs/data-dictionary.md.", metavar="NAME")
    ],
    to: Annotated[Path, typer.Option(help="The file; its ending (.csv, .json, .parquet) says how.", metavar="FILE")],
    format: Annotated[  # noqa: A002 - the option's name
        Format | None, typer.Option(help="How to write the rows, whatever the file's ending is.")
    ] = None,
    verbose: Verbose = False,  # noqa: ARG001 - its callback does the work
) -> None:
    """Write a whole mart to a file.

    Example: contio-pipeline export --mart person_week --to person_week.csv
    """
    from contio_pipeline.marts import MARTS
    from contio_pipeline.settings import load_settings

    names, name = [one.name for one in MARTS], mart.removeprefix("mart.")
    if name not in names:
        raise ConfigError(f"there is no mart {mart!r}; there are {', '.join(names)}")
    _write(_asked(_current(load_settings()), f"FROM mart.{name}"), format, to)


@command(app)
def dashboard(
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print where it is.")] = False,
    verbose: Verbose = False,  # noqa: ARG001 - its callback does the work
) -> None:
    """Show the dashboard of what is published: load, action items, hygiene, syncs, with filters.

    It is one file that needs no server and no network: copy it, mail it, bookmark it. The link `current` leads to the newest one,
    so reloading the page shows what was published since.
    """
    import webbrowser

    from contio_pipeline.dashboard import FILE
    from contio_pipeline.settings import load_settings

    settings = load_settings()
    if not (_current(settings).folder / FILE).is_file():
        raise ConfigError("an earlier version published this, without a dashboard: run contio-pipeline publish")
    page = settings.data_dir.absolute() / "current" / FILE
    print(page)
    if not no_browser and not webbrowser.open(page.as_uri()):
        print("No browser can be opened here: copy the file to where there is one.", file=sys.stderr)


def _asked(generation: Generation, sql: str) -> Answer:
    """The answer; which of the columns that it shows or looks at are hidden is said."""
    from contio_pipeline.generations import ask, hidden

    answer = ask(generation, sql)
    actions = hidden(generation, sql, answer.names)
    kinds = {"drop": "NULL", "hash": "hashes"}
    columns = {action: [name for name, done in actions.items() if done == action] for action in kinds}
    if told := "; ".join(f"{', '.join(names)} ({kinds[action]})" for action, names in columns.items() if names):
        tell(f"Hidden by the publish policy: {told}", level="WARNING")
    return answer


def _write(answer: Answer, how: Format | None, to: Path | None) -> None:
    """Write rows where and how it was asked; a file is whole or not there."""
    if to and not how:
        how = next((one for one in Format if one is not Format.TABLE and to.suffix.lower() == f".{one}"), None)
        if not how:
            raise ConfigError(f"{to} must end in .csv, .json or .parquet, or --format must say how to write it")
    if how is Format.PARQUET and not to:
        raise ConfigError("Parquet is written to a file: name it with --to")
    if not to:
        _print(answer, how or Format.TABLE, _LONGEST_CELL)
        return
    if not to.name or to.is_dir():
        raise ConfigError(f"{to} is a folder: name a file")
    plain = to.is_file() or not to.exists()  # a pipe or a device is written to, not replaced
    whole = to.resolve() if plain else to
    part = whole.with_name(f".{whole.name}.part") if plain else whole
    try:
        if how is Format.PARQUET:
            answer.save(part)
        else:
            with part.open("w", encoding="utf-8", newline="") as file, redirect_stdout(file):
                _print(answer, how or Format.TABLE)
        if plain:
            part.replace(whole)
    except OSError as error:
        raise ConfigError(f"{to} cannot be written ({error.strerror or error})") from None
    finally:
        if plain:
            with suppress(OSError):  # it is not there
                part.unlink()


def _print(answer: Answer, how: Format, longest_cell: int | None = None) -> None:
    match how:
        case Format.CSV:
            for row in itertools.chain([answer.names], answer.rows):
                print(",".join(map(_csv_value, row)))
        case Format.JSON:
            print("[", end="")
            for number, row in enumerate(answer.rows):
                values = [
                    json.loads(value) if kind == "JSON" and value is not None else _json_value(value)
                    for value, kind in zip(row, answer.kinds, strict=True)
                ]
                record = dict(zip(answer.names, values, strict=True))
                print("," if number else "", json.dumps(record, ensure_ascii=False, default=as_text), sep="\n", end="")
            print("\n]")
        case _:
            if show_table(answer.names, answer.rows, most=longest_cell):
                tell("Long cells are cut (…): --format csv prints them whole, --to FILE writes them.")


def _csv_value(value: Any) -> str:
    """As DuckDB writes it: nothing is NULL, and an empty text stands in quotes."""
    if value is None:
        return ""
    text = as_text(value)
    quoted = text.replace('"', '""')
    return f'"{quoted}"' if not text or _NOT_PLAIN.search(text) else text


_NOT_PLAIN = re.compile(r'[,"\r\n]')


def _json_value(value: Any) -> Any:
    """What JSON can hold: no infinity, and decimals as numbers (a sum of integers is one, for DuckDB makes it 128 bits wide)."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case Decimal():
            return int(value) if value.as_tuple().exponent == 0 else float(value)
        case dict():
            return {key: _json_value(one) for key, one in value.items()}
        case list():
            return list(map(_json_value, value))
    return value
