"""Syncing: `sync`, `publish`, and how they tell what goes on."""

from __future__ import annotations

import sys
import time
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Self

import typer

from contio_pipeline.cli.common import Verbose, app, command, show_table, tell
from contio_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import Progress

    from contio_pipeline.work import StreamReport, SyncReport

_A_MINUTE, _SOME_HOURS = 60.0, 120

Since = Annotated[
    str | None,
    typer.Option(help="First day of a window (YYYY-MM-DD, UTC), or an instant (RFC 3339).", metavar="D"),
]
Until = Annotated[
    str | None,
    typer.Option(help="End of the window, itself not included; without it, the end of today.", metavar="D"),
]
Night = Annotated[
    bool,
    typer.Option("--night", help="What the nightly schedule does: each account's own window, or everything if cheap."),
]
Accounts = Annotated[
    list[str] | None, typer.Option("--account", help="Only this account (repeatable).", metavar="NAME")
]
Streams = Annotated[list[str] | None, typer.Option("--stream", help="Only this stream (repeatable).", metavar="NAME")]
Documents = Annotated[
    bool, typer.Option("--documents/--no-documents", help="Download the contents of context documents.")
]


@command(app)
def sync(
    since: Since = None,
    until: Until = None,
    night: Night = False,
    account: Accounts = None,
    stream: Streams = None,
    documents: Documents = True,
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
    max_requests: Annotated[
        int | None,
        typer.Option(help="Stop cleanly after so many requests; what was read is kept.", min=1, metavar="N"),
    ] = None,
    verbose: Verbose = False,  # noqa: ARG001 - its callback does the work
) -> None:
    """Make the tables equal to what the API holds, and publish them.

    Without dates this is the [bold]full[/] sync: all meetings and action items, calendar events over the configured range,
    the context documents of every meeting, then their contents. With --since it is one window of days. With --night each
    account gets the window that catches up with its last complete day, or everything where that costs no more.
    What a window cannot see, the next full sync does.

    Running it again is always safe. Exit code 1 means that something is not complete; a line says what, and what to do.
    """
    from contio_pipeline.settings import load_settings
    from contio_pipeline.sync import sync as run_sync
    from contio_pipeline.warehouse import Window

    window = Window(*_window(since, until, night=night))
    with _Progress() as listener:
        report = run_sync(
            load_settings(**({"loss_share": 1} if accept_losses else {})),
            accounts=account or (),
            streams=stream or (),
            window=window,
            night=night,
            documents=documents,
            verify_documents=verify_documents,
            most_requests=max_requests,
            listener=listener,
        )
    print_report(report)
    if not report.complete:
        raise typer.Exit(1)


@command(app)
def plan(
    since: Since = None,
    until: Until = None,
    night: Night = False,
    account: Accounts = None,
    stream: Streams = None,
    documents: Documents = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verbose: Verbose = False,  # noqa: ARG001 - its callback does the work
) -> None:
    """Say what a sync with the same options would cost: requests of each account and stream, rows, minutes at the budget.

    It asks the API for a few totals (one request for each list), and for the rest what is published. It writes nothing, and can
    be asked at any moment. Documents that nobody knows yet cost a request each; --max-requests caps what a sync may cost.
    """
    from contio_pipeline.auth import TokenStore
    from contio_pipeline.plan import estimate
    from contio_pipeline.settings import load_settings
    from contio_pipeline.streams import STREAMS
    from contio_pipeline.sync import check_names
    from contio_pipeline.warehouse import Window

    settings = load_settings()
    check_names(settings, stream or ())
    found = estimate(
        settings,
        accounts=account or TokenStore(settings.state_dir).names(),
        streams=[one for one in settings.listed(STREAMS) if not stream or one.name in stream],
        window=Window(*_window(since, until, night=night)),
        night=night,
        documents=documents,
    )
    if as_json:
        import json
        from dataclasses import asdict

        print(json.dumps(asdict(found) | {"requests": found.requests}, ensure_ascii=False, indent=1))
        return
    rows = [(part.account, part.stream, part.rows, part.requests, part.what) for part in found.parts]
    show_table(("account", "stream", "rows", "requests", "what"), rows)
    more = ", and one for each document that is not known yet" if found.documents_unknown else ""
    print(
        f"\n{found.requests:,} requests{more}: about {_duration(found.minutes)} at {settings.rate_limit:,} requests in "
        f"{settings.rate_window_seconds:g} s. Finding this out took {found.asked:,}."
    )


def _duration(minutes: float) -> str:
    if minutes < 1:
        return "a minute"
    return f"{minutes:.0f} minutes" if minutes < _SOME_HOURS else f"{minutes / 60:.1f} hours"


def _window(since: str | None, until: str | None, *, night: bool) -> tuple[datetime | None, datetime | None]:
    if night and (since or until):
        raise ConfigError("--night finds each account's window by itself: leave out --since and --until")
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
    if until is None and start >= end:
        raise ConfigError(
            f"--since {since} lies in the future, and without --until a window ends with today: say --until too"
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
    numbers = ("rows", "inserted", "updated", "deleted", "planned", "requests", "seconds")
    rows = []
    for part in report.streams:
        listing, changes = part.listing, part.changes
        counts = (listing.rows, changes.inserted, changes.updated, changes.deleted, part.planned, listing.requests)
        cells = ["-" if count is None else f"{count:,}" for count in counts] + [f"{part.seconds:.1f}"]
        rows.append((part.account, part.stream, *cells, "" if listing.complete else "not complete"))
    show_table(("account", "stream", *numbers, ""), rows, numbers)
    for part in report.streams:
        for warning in part.warnings:
            tell(f"Warning: {part.account} {part.stream}: {warning}", level="WARNING")
    incomplete: dict[tuple[str, str | None], list[str]] = {}
    for part in report.streams:
        if not part.listing.complete:
            incomplete.setdefault((part.account, part.listing.reason), []).append(part.stream)
    for (account, reason), streams in incomplete.items():
        tell(f"Not complete: {account} {', '.join(streams)}: {reason}", level="ERROR", account=account, streams=streams)
    changed = report.total("inserted") + report.total("updated") + report.total("deleted")
    print(
        f"\n{f'{changed:,} rows changed' if changed else 'Nothing changed'}; "
        f"{report.requests:,} requests in {report.seconds:.1f} s ({report.planned:,} were planned)."
    )
    if report.generation:
        state = "Published" if report.new_generation else "Still published"
        print(f"{state}: {report.generation.folder.parent.parent / 'current'} (generation {report.generation.name})")


class _Progress:
    """Shows on standard error how a sync goes on: a bar on a terminal, a line per stream elsewhere."""

    def __init__(self) -> None:
        self._bar = _bar() if sys.stderr and sys.stderr.isatty() else None  # it is None when the caller closed it
        self._what = ""
        self._said = -_A_MINUTE

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.add_task("starting", total=None)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def started(self, account: str, stream: str) -> None:
        self._what = f"{account} {stream}"
        self._begin(self._what)

    def _begin(self, what: str) -> None:
        if self._bar:
            self._bar.reset(self._bar.task_ids[0], description=what, total=None)

    def advanced(self, done: int, total: int) -> None:
        if self._bar:
            self._bar.update(self._bar.task_ids[0], description=self._what, completed=done, total=total)

    def waiting(self, seconds: float) -> None:
        now = time.monotonic()
        told = f"{self._what}: waiting for the request budget ({seconds:.0f} s)"
        if self._bar:
            self._bar.update(self._bar.task_ids[0], description=told)
        elif now > self._said + _A_MINUTE:
            self._said = now
            tell(told)

    def finished(self, report: StreamReport) -> None:
        if not self._bar:
            listing = report.listing
            state = "complete" if listing.complete else "NOT complete"
            tell(
                f"{report.account} {report.stream}: {listing.rows:,} rows, {listing.requests:,} requests, "
                f"{report.seconds:.1f} s, {state}{f' ({report.plan.why})' if report.plan.why else ''}",
                account=report.account,
                stream=report.stream,
                rows=listing.rows,
                requests=listing.requests,
                planned=report.planned,
                seconds=round(report.seconds, 3),
                complete=listing.complete,
            )

    def publishing(self) -> None:
        self._begin("publishing")


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


@command(app)
def publish(verbose: Verbose = False) -> None:  # noqa: ARG001 - its callback does the work
    """Publish what the warehouse holds; every sync does it, so this is for after an interrupted one."""
    from contio_pipeline.publish import Terms
    from contio_pipeline.publish import publish as make_generation
    from contio_pipeline.settings import load_settings
    from contio_pipeline.warehouse import Warehouse

    settings = load_settings()
    if not (settings.data_dir / "warehouse.duckdb").exists():
        raise ConfigError(f"there is no warehouse in {settings.data_dir} yet: run contio-pipeline sync")
    with Warehouse(settings.data_dir, origin=None) as warehouse:
        generation, new = make_generation(warehouse, datetime.now(UTC), Terms.asked_for(settings))
    print(f"{'Published' if new else 'Nothing changed; still published'}: {generation.folder}")
