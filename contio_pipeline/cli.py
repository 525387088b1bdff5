"""The command line: typer commands, progress, tables, exit codes.

What lives here: words for people. What never does: logic; every command calls the library and renders what it returns.
Imports are inside the commands: `--help` and `query` should not wait for what `sync` needs.

Exit codes: 0 complete; 1 something is not complete or failed; 2 usage or configuration.
"""

from __future__ import annotations

import csv
import inspect
import io
import json
import logging
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar

import typer

from contio_pipeline import __version__
from contio_pipeline.errors import AccountError, ApiError, ConfigError, ContioError

if TYPE_CHECKING:
    from rich.table import Table

    from contio_pipeline.auth import Tokens, TokenStore
    from contio_pipeline.settings import Settings
    from contio_pipeline.work import StreamReport, SyncReport

F = TypeVar("F", bound=Callable[..., None])

_STOPPED = 130  # as a shell reports Ctrl-C
_A_MINUTE = 60.0

log = logging.getLogger("contio_pipeline")

app = typer.Typer(
    help="Sync the Contio Partner User API into DuckDB and Parquet that hold exactly what the API holds.\n\n"
    "Start with [bold]contio-pipeline demo[/], which needs no account. For real data: set CONTIO_CLIENT_ID and "
    "CONTIO_CLIENT_SECRET (in the environment or in .env), add an account, sync, query.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)
accounts_app = typer.Typer(help="Add, list and remove the Contio users whose data is synced.", no_args_is_help=True)
app.add_typer(accounts_app, name="accounts")


def _command(group: typer.Typer, name: str | None = None) -> Callable[[F], F]:
    """Register a command whose help is its docstring, each paragraph flowing to the width of the terminal."""

    def register(function: F) -> F:
        paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
        return group.command(name, help="\n\n".join(" ".join(part.split("\n")) for part in paragraphs))(function)

    return register


class Format(StrEnum):
    """How `query` prints."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def main() -> None:
    """Run the command line; no traceback ever reaches a user."""
    os.umask(0o077)  # the warehouse's side files, too, are nobody else's; publish opens up what readers get
    signal.signal(signal.SIGTERM, _stop)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # it is None when the caller closed it
            stream.reconfigure(errors="backslashreplace")
    code: int | str | None = 0
    try:
        app(prog_name="contio-pipeline", standalone_mode=True)
    except ContioError as error:
        print(f"Error: {error}", file=sys.stderr)
        code = error.exit_code
    except SystemExit as ending:
        code = ending.code
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"Error: {error}", file=sys.stderr)
        code = 1
    except Exception as error:  # noqa: BLE001 - the last line of defence
        code = _STOPPED if "interrupted" in str(error).lower() else _unexpected(error)  # DuckDB's word for Ctrl-C
    if code == _STOPPED:
        print("Stopped. What was committed stays; run the command again to go on.", file=sys.stderr)
    sys.exit(code)


def _unexpected(error: Exception) -> int:
    """Say that something happened that nobody foresaw; the places go to the log."""
    print(
        f"Error: unexpected {type(error).__name__} ({error}). Nothing was half-written. Please report it with what "
        "`contio-pipeline --verbose …` says.",
        file=sys.stderr,
    )
    place = error.__traceback__
    while place:
        log.info("  at %s line %s", place.tb_frame.f_code.co_qualname, place.tb_lineno)
        place = place.tb_next
    return 1


def _stop(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _show_version(value: bool) -> None:
    if value:
        print(f"contio-pipeline {__version__}")
        raise typer.Exit


def _log_more(value: bool) -> None:
    if value:
        logging.getLogger("contio_pipeline").setLevel(logging.INFO)


Verbose = Annotated[bool, typer.Option("--verbose", "-v", callback=_log_more, help="Log more to standard error.")]


@app.callback()
def _common(
    verbose: Verbose = False,  # noqa: ARG001 - its callback does the work
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    log.handlers[:] = [handler]
    if log.level == logging.NOTSET:
        log.setLevel(logging.WARNING)


# Syncing --------------------------------------------------------------------------------------------------------------


@_command(app)
def sync(
    since: Annotated[
        str | None,
        typer.Option(help="First day of a window (YYYY-MM-DD, UTC), or an instant (RFC 3339).", metavar="D"),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(help="End of the window, itself not included; without it, the end of today.", metavar="D"),
    ] = None,
    account: Annotated[list[str] | None, typer.Option(help="Only this account (repeatable).", metavar="NAME")] = None,
    stream: Annotated[list[str] | None, typer.Option(help="Only this stream (repeatable).", metavar="NAME")] = None,
    documents: Annotated[
        bool, typer.Option("--documents/--no-documents", help="Download the contents of context documents.")
    ] = True,
    verify_documents: Annotated[
        bool, typer.Option("--verify-documents", help="Download all contents again, compare, repair.")
    ] = False,
    accept_losses: Annotated[
        bool,
        typer.Option(
            "--accept-losses",
            help="Believe a listing that lacks most of the rows that are known; each is still confirmed.",
        ),
    ] = False,
    verbose: Verbose = False,  # noqa: ARG001 - its callback does the work
) -> None:
    """Make the tables equal to what the API holds, and publish them.

    Without dates this is the [bold]full[/] sync: all meetings and action items, calendar events over the configured range,
    the context documents of every meeting, then their contents. With --since it is one window of days: cheaper, for every
    night; what a window cannot see, the next full sync does.

    Running it again is always safe. Exit code 1 means that something is not complete; a line says what, and what to do.
    """
    from contio_pipeline.settings import load_settings
    from contio_pipeline.sync import sync as run_sync
    from contio_pipeline.warehouse import Window

    window = Window(*_window(since, until))
    with _Progress() as listener:
        report = run_sync(
            load_settings(**({"loss_share": 1} if accept_losses else {})),
            accounts=account or (),
            streams=stream or (),
            window=window,
            documents=documents,
            verify_documents=verify_documents,
            listener=listener,
        )
    print_report(report)
    if not report.complete:
        raise typer.Exit(1)


def _window(since: str | None, until: str | None) -> tuple[datetime | None, datetime | None]:
    if until is not None and since is None:
        raise ConfigError("--until needs --since: a window has a beginning")
    if since is None:
        return None, None
    start = _moment("--since", since)
    end = (
        _moment("--until", until)
        if until is not None
        else _moment("", str(datetime.now(UTC).date() + timedelta(days=1)))
    )
    if start >= end:
        raise ConfigError(f"the window is empty: --since {since} is not before --until {until or end.date()}")
    return start, end


def _moment(option: str, text: str) -> datetime:
    try:
        if len(text) == len("2026-01-31"):
            day = date.fromisoformat(text)
            return datetime(day.year, day.month, day.day, tzinfo=UTC)
        moment = datetime.fromisoformat(text)
        if moment.tzinfo:
            return moment.astimezone(UTC)
    except ValueError:
        pass
    raise ConfigError(
        f"{option} must be a day such as 2026-01-31 or an instant such as 2026-01-31T09:00:00Z, not {text!r}"
    )


def print_report(report: SyncReport) -> None:
    """A table per stream, then what is not complete or worth a look, then where the result is."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("account", "stream"):
        table.add_column(heading, no_wrap=True)
    numbers = ("rows", "inserted", "updated", "deleted", "requests", "seconds")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for part in report.streams:
        listing, changes = part.listing, part.changes
        counts = (listing.rows, changes.inserted, changes.updated, changes.deleted, listing.requests)
        cells = [f"{count:,}" for count in counts] + [f"{part.seconds:.1f}"]
        table.add_row(part.account, part.stream, *cells, "" if listing.complete else "[red]not complete[/]")
    _print(table)
    for part in report.streams:
        for warning in part.warnings:
            print(f"Warning: {part.account} {part.stream}: {warning}", file=sys.stderr)
    for part in report.streams:
        if not part.listing.complete:
            print(f"Not complete: {part.account} {part.stream}: {part.listing.reason}", file=sys.stderr)
    changed = report.total("inserted") + report.total("updated") + report.total("deleted")
    print(
        f"\n{f'{changed:,} rows changed' if changed else 'Nothing changed'}; "
        f"{report.requests:,} requests in {report.seconds:.1f} s."
    )
    if report.generation:
        state = "Published" if report.new_generation else "Still published"
        print(f"{state}: {report.generation.folder.parent.parent / 'current'} (generation {report.generation.name})")


class _Progress:
    """Shows on standard error how a sync goes on: a bar on a terminal, a line per stream elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._terminal = console.is_terminal
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("starting", total=None)
        self._what = ""
        self._said = -_A_MINUTE

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def started(self, account: str, stream: str) -> None:
        self._what = f"{account} {stream}"
        self._progress.reset(self._task, description=self._what, total=None)

    def advanced(self, done: int, total: int) -> None:
        self._progress.update(self._task, description=self._what, completed=done, total=total)

    def waiting(self, seconds: float) -> None:
        now = time.monotonic()
        if not self._terminal and now > self._said + _A_MINUTE:
            self._said = now
            print(f"{self._what}: waiting for the request budget", file=sys.stderr)
        self._progress.update(self._task, description=f"{self._what}: waiting for the request budget ({seconds:.0f} s)")

    def finished(self, report: StreamReport) -> None:
        if not self._terminal:
            listing = report.listing
            state = "complete" if listing.complete else "NOT complete"
            print(
                f"{report.account} {report.stream}: {listing.rows:,} rows, {listing.requests:,} requests, "
                f"{report.seconds:.1f} s, {state}",
                file=sys.stderr,
            )

    def publishing(self) -> None:
        self._progress.reset(self._task, description="publishing", total=None)


# Reading what is published --------------------------------------------------------------------------------------------


@_command(app)
def status(verbose: Verbose = False) -> None:  # noqa: ARG001 - its callback does the work
    """Show what is published: how fresh and how complete each account and stream is.

    It reads the current generation, never the working file, so it can be asked at any moment.
    """
    from contio_pipeline.publish import ask, current
    from contio_pipeline.settings import load_settings

    generation = current(load_settings().data_dir)
    print(f"Published {generation.published_at:%Y-%m-%d %H:%M:%S} UTC: {generation.folder}\n")
    for heading, sql in _STATUS.items():
        answer = ask(generation, sql)
        rows = list(answer.rows)
        if rows:
            print(heading)
            _print(_table(answer.names, rows))
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


@_command(app)
def query(
    sql: Annotated[
        str, typer.Argument(help="One SQL statement; tables are raw.<stream> and ops.<table>.", metavar="SQL")
    ],
    format: Annotated[Format, typer.Option(help="How to print the rows.")] = Format.TABLE,  # noqa: A002 - the option's name
    verbose: Verbose = False,  # noqa: ARG001 - its callback does the work
) -> None:
    """Ask the published data a question in SQL (DuckDB's), read-only, at any moment; times are in UTC.

    Example: contio-pipeline query "SELECT status, count(*) FROM raw.meetings WHERE _deleted_at IS NULL GROUP BY 1"
    """
    from contio_pipeline.publish import ask, current
    from contio_pipeline.settings import load_settings

    answer = ask(current(load_settings().data_dir), sql)
    match format:
        case Format.TABLE:
            _print(_table(answer.names, answer.rows))
        case Format.CSV:
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow(answer.names)
            writer.writerows(["" if value is None else _text(value) for value in row] for row in answer.rows)
        case Format.JSON:
            print("[", end="")
            for number, row in enumerate(answer.rows):
                values = [
                    json.loads(value) if kind == "JSON" and value is not None else _json_value(value)
                    for value, kind in zip(row, answer.kinds, strict=True)
                ]
                record = dict(zip(answer.names, values, strict=True))
                print("," if number else "", json.dumps(record, ensure_ascii=False, default=_text), sep="\n", end="")
            print("\n]")


def _json_value(value: Any) -> Any:
    """What JSON can hold: no infinity, and a sum of integers, which DuckDB makes 128 bits wide, as a number."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return int(value) if isinstance(value, Decimal) and value == value.to_integral_value() else value


def _text(value: Any) -> str:
    match value:
        case datetime():
            return value.isoformat()
        case bytes():
            return value.hex()
        case dict() | list():
            return json.dumps(value, ensure_ascii=False, default=_text)
        case bool():
            return str(value).lower()
    return str(value)


def _table(names: Iterable[str], rows: Iterable[Sequence[Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    found = [list(row) for row in rows]
    for position, name in enumerate(names):
        number = any(
            isinstance(row[position], int | float | Decimal) and not isinstance(row[position], bool) for row in found
        )
        table.add_column(Text(name), justify="right" if number else "left", overflow="fold")
    for row in found:
        table.add_row(*(Text("" if value is None else _shown(value)) for value in row))
    return table


def _shown(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    text = _text(value)
    return "".join(c if c.isprintable() or c == "\u200d" else " " for c in text)  # the joiner makes one emoji of two


def _print(table: Table) -> None:
    from rich.console import Console

    # Off a terminal nothing is cut at 80 columns.
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)


@_command(app)
def publish(verbose: Verbose = False) -> None:  # noqa: ARG001 - its callback does the work
    """Publish what the warehouse holds; every sync does it, so this is for after an interrupted one."""
    from contio_pipeline.publish import publish as make_generation
    from contio_pipeline.settings import load_settings
    from contio_pipeline.warehouse import Warehouse

    settings = load_settings()
    if not (settings.data_dir / "warehouse.duckdb").exists():
        raise ConfigError(f"there is no warehouse in {settings.data_dir} yet: run contio-pipeline sync")
    with Warehouse(settings.data_dir, origin=None) as warehouse:
        generation, new = make_generation(warehouse, datetime.now(UTC))
    print(f"{'Published' if new else 'Nothing changed; still published'}: {generation.folder}")


# Accounts -------------------------------------------------------------------------------------------------------------


@_command(accounts_app, "add")
def accounts_add(
    name: Annotated[str, typer.Argument(help="How you want to call the account, e.g. sales or ana@example.com.")],
    refresh_token_stdin: Annotated[
        bool, typer.Option("--refresh-token-stdin", help="Read the refresh token (cto_rt_…) from standard input.")
    ] = False,
    verbose: Verbose = False,  # noqa: ARG001 - its callback does the work
) -> None:
    """Add a Contio user's consent, or replace its refresh token, and try it.

    The token must be dedicated to this pipeline: refresh tokens rotate, so two programs that use one end each other's.
    It is kept in the state folder, readable by you alone, and never printed.
    """
    from contio_pipeline.auth import Tokens, TokenStore
    from contio_pipeline.settings import load_settings

    if not refresh_token_stdin:
        raise ConfigError(
            f"say where the token comes from: contio-pipeline accounts add {name} --refresh-token-stdin, and give it on "
            "standard input"
        )
    settings = load_settings()
    store = TokenStore(settings.state_dir)
    if sys.stdin.isatty():
        from getpass import getpass

        token = getpass("Refresh token (not shown): ").strip()
    else:
        token = sys.stdin.readline().strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError("standard input held no refresh token: one line such as cto_rt_v1_… was expected")
    with store.lock(name):
        before = _known_tokens(store, name)
        store.write(name, Tokens(token, profile_id=before.profile_id if before else ""))
    try:
        who = _try_account(settings, name)
    except AccountError as error:
        used_up = store.read(name).refresh_token != token
        if before:
            store.write(name, before)
        else:
            store.remove(name)
        if (
            used_up
        ):  # it is another user's: the trial exchanged it, and what it was exchanged for is not kept under this name
            raise AccountError(f"{error} (with a new token: this one was used up by the check)") from None
        raise
    except (ApiError, ConfigError) as error:
        print(f"Added account {name}. It could not be tried yet: {error}", file=sys.stderr)
    else:
        print(f"Added account {name}: {who}. Next: contio-pipeline sync --account {name}")


def _known_tokens(store: TokenStore, name: str) -> Tokens | None:
    """The account's tokens; None where there are none, or where they are damaged."""
    try:
        return store.read(name)
    except ConfigError:
        return None


def _try_account(settings: Settings, name: str) -> str:
    from contio_pipeline.client import Client
    from contio_pipeline.streams import PROFILE_PATH

    settings.credentials()
    with Client(settings.model_copy(update={"retry_seconds": min(settings.retry_seconds, 5.0)})) as client:
        profile = client.profile(name, PROFILE_PATH)
    return _shown(f"{profile.get('display_name') or 'no name'} <{profile.get('email') or 'no e-mail'}>")


@_command(accounts_app, "list")
def accounts_list(verbose: Verbose = False) -> None:  # noqa: ARG001 - its callback does the work
    """List the accounts, their scopes, and when their consent ends unless it is renewed by a sync."""
    from contio_pipeline.auth import TokenStore
    from contio_pipeline.settings import load_settings

    store = TokenStore(load_settings().state_dir)
    rows: list[list[Any]] = []
    for name in store.names():
        tokens = _known_tokens(store, name)
        if tokens is None:
            rows.append([name, "damaged: add it again", "", None, None])
            continue
        used = datetime.fromtimestamp(tokens.refreshed_at, UTC) if tokens.refreshed_at else None
        rows.append([name, tokens.profile_id, tokens.scope, used, used and used + timedelta(days=30)])
    if rows:
        _print(_table(("account", "user id", "scopes", "refreshed", "consent ends"), rows))
    else:
        print("No accounts yet. Add one: contio-pipeline accounts add NAME --refresh-token-stdin")


@_command(accounts_app, "remove")
def accounts_remove(
    name: Annotated[str, typer.Argument(help="The account.")],
    verbose: Verbose = False,  # noqa: ARG001 - its callback does the work
) -> None:
    """Forget an account's tokens; its rows stay in the warehouse."""
    from contio_pipeline.auth import TokenStore
    from contio_pipeline.settings import load_settings

    TokenStore(load_settings().state_dir).remove(name)
    print(f"Removed account {name}: it is not synced any more. Its rows stay.")


# Trying it ------------------------------------------------------------------------------------------------------------


@_command(app)
def demo(
    folder: Annotated[Path, typer.Option(help="Where to publish; its state goes beside it.")] = Path("data/demo"),
    verbose: Verbose = False,  # noqa: ARG001 - its callback does the work
) -> None:
    """Sync a year of made-up meetings of three people from a sandbox API on this machine, and ask two questions.

    Dagster runs the full sync, then a window of eight days, as a night would. It needs no account and no network, and touches
    nothing but its own folders. A second run finds nothing changed.
    """
    from contio_pipeline.demo import QUESTIONS, run
    from contio_pipeline.publish import ask

    generation, summary = run(folder)
    for heading, rows in summary.items():
        print(f"\n{heading}\n")
        _print(_table(rows[0], [list(row.values()) for row in rows]))
    for question, sql in QUESTIONS.items():
        print(f"\n{question}\n")
        answer = ask(generation, sql)
        _print(_table(answer.names, answer.rows))
    beside_python = Path(sys.executable).with_name("contio-pipeline")
    program = "contio-pipeline" if shutil.which("contio-pipeline") else os.path.relpath(beside_python)
    print(
        f"""
Where things are
  {folder}/current/contio.duckdb   for SQL and BI tools, at any moment
  {folder}/current/parquet/raw/    the same tables as Parquet, a file per month
  {folder}/documents/              the documents' contents, named by their SHA-256

What to do next
  ask:         CONTIO_DATA_DIR={folder} {program} query "SELECT * FROM raw.meetings LIMIT 5"
  look:        CONTIO_DATA_DIR={folder} {program} status
  Dagster:     CONTIO_DATA_DIR={folder} make up, then http://127.0.0.1:3000: assets, runs, checks
  real data:   set CONTIO_CLIENT_ID and CONTIO_CLIENT_SECRET, then
               {program} accounts add NAME --refresh-token-stdin && {program} sync"""
    )


@_command(app)
def sandbox(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 picks a free one.", min=0, max=65535)] = 0,
    seed: Annotated[int, typer.Option(help="The same seed makes the same data.")] = 1,
    meetings: Annotated[int, typer.Option(help="How many meetings there are.", min=0)] = 300,
    accounts: Annotated[int, typer.Option(help="How many users there are.", min=1)] = 3,
    rate_limit: Annotated[int, typer.Option(help="Requests allowed in five minutes.", min=1)] = 1000,
    fault: Annotated[
        list[str] | None,
        typer.Option(help="Something that goes wrong, for ever or so many times (repeatable).", metavar="NAME[:TIMES]"),
    ] = None,
    faults: Annotated[bool, typer.Option("--faults", help="List what can go wrong, and exit.")] = False,
    verbose: Verbose = False,  # noqa: ARG001 - its callback does the work
) -> None:
    """Run a server that speaks the Contio API on made-up data, to rehearse and to test, until Ctrl-C.

    When it is ready it prints one line of JSON: api_url, token_url, client_id, client_secret, and each account's
    refresh_token. What it holds can be read (GET /_sandbox/truth, /_sandbox/requests) and changed (POST /_sandbox/change).
    """
    from contio_pipeline.sandbox.faults import FOR_EVER, NAMED, named
    from contio_pipeline.sandbox.server import Sandbox, serve
    from contio_pipeline.sandbox.world import World

    if faults:
        _print(_table(("fault", "what goes wrong"), [(name, what.doc) for name, what in NAMED.items()]))
        return
    wrong = []
    for asked in fault or ():
        name, _, times = asked.partition(":")
        if name not in NAMED or not (times or "1").isdecimal():
            raise ConfigError(
                f"there is no fault {asked!r}: contio-pipeline sandbox --faults lists them; NAME:3 is three times"
            )
        wrong.append(named(name, int(times or FOR_EVER)))
    server = Sandbox(World(seed=seed, meetings=meetings, accounts=accounts), port=port, rate_limit=rate_limit)
    server.faults = wrong
    serve(server)
