"""The straight line: per account and stream, list, commit, confirm what is missing, fetch contents, publish.

What lives here: the order of things. What never does: Dagster, printing.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from contio_pipeline import __version__
from contio_pipeline.auth import TokenStore
from contio_pipeline.client import Client
from contio_pipeline.contents import Fetcher
from contio_pipeline.errors import (
    AccountError,
    ApiError,
    ConfigError,
    ContioError,
    Enough,
    StorageError,
    Throttled,
    Transient,
    Unauthorized,
)
from contio_pipeline.folders import MOUNTS, network_file_system
from contio_pipeline.forget import unfinished
from contio_pipeline.generations import Generation, ask, current
from contio_pipeline.health import Case, Check, Problem, checks
from contio_pipeline.journal import clear_journals
from contio_pipeline.listings import Lister
from contio_pipeline.night import Plan, plan_night, usual_window
from contio_pipeline.publish import Terms, publish
from contio_pipeline.rows import decode
from contio_pipeline.settings import Settings
from contio_pipeline.streams import (
    DOCUMENT_CONTENTS,
    PROFILE,
    PROFILE_NAME,
    PROFILE_PATH,
    STREAMS,
    WINDOWS,
    Stream,
    Table,
)
from contio_pipeline.warehouse import A_DAY, Listing, Warehouse, Window
from contio_pipeline.work import Listener, Nobody, StreamReport, SyncReport, Work

log = logging.getLogger(__name__)


def sync(
    settings: Settings,
    *,
    accounts: Sequence[str] = (),
    streams: Sequence[str] = (),
    window: Window = Window(),  # noqa: B008 - immutable
    documents: bool = True,
    night: bool = False,
    verify_documents: bool = False,
    most_requests: int | None = None,
    listener: Listener | None = None,
    declared: tuple[Stream, ...] = STREAMS,
) -> SyncReport:
    """Make the tables equal to what the API holds, and publish them.

    Args:
        settings: where and as whom.
        accounts: names; empty means all.
        streams: names; empty means all. Contents are fetched when the documents' stream is among them, or when
            `document_contents` itself is.
        window: half-open UTC range of dates; without ends the full sync.
        night: list what a night lists instead, account by account: see `night.plan_night`.
        documents: whether to download contents.
        verify_documents: download all contents again, compare and repair.
        most_requests: stop, cleanly, after so many.
        listener: is told how the work goes on.
        declared: the streams that exist.

    Returns:
        What was done; one broken account or stream never stops the others. Look at `complete`.

    Raises:
        ConfigError: nothing could be started.
        StorageError: the data folder cannot be used.
    """
    contents, listed = DOCUMENT_CONTENTS.name, settings.listed(declared)
    check_names(settings, streams, declared)
    names = [stream.name for stream in listed if not streams or stream.name in streams]
    if contents in streams or (documents and any(stream.content_path for stream in listed if stream.name in names)):
        names.append(contents)
    with Run(
        settings,
        accounts=accounts,
        window=window,
        night=night,
        verify_documents=verify_documents,
        most_requests=most_requests,
        goes_on=not streams and not accounts and not night and window == Window(),
        listener=listener,
        declared=declared,
    ) as run:
        run.refresh(*names)
        run.publish()
    return run.report


def parts(declared: tuple[Stream, ...] = STREAMS) -> tuple[str, ...]:
    """What a run can refresh, in the order in which it should: the streams, and the contents of documents."""
    return (*(stream.name for stream in declared), DOCUMENT_CONTENTS.name)


def check_names(settings: Settings, streams: Sequence[str], declared: tuple[Stream, ...] = STREAMS) -> None:
    """Whether streams of these names can be listed.

    Raises:
        ConfigError: there is no such stream, or it is optional and not asked for.
    """
    there = parts(settings.listed(declared))
    for name in streams:
        if name not in parts(declared):
            raise ConfigError(f"there is no stream {name!r}; there are: {', '.join(there)}")
        if name not in there:
            wanted = ",".join([*settings.optional_streams, name])
            raise ConfigError(f"the stream {name} is optional: set CONTIO_OPTIONAL_STREAMS={wanted}")


def published_case(settings: Settings) -> Case:
    """The current generation, to look at.

    Raises:
        NothingPublished: there is none.
    """
    generation = current(settings.data_dir)

    def query(sql: str) -> list[dict[str, Any]]:
        answer = ask(generation, sql)
        return [dict(zip(answer.names, row, strict=True)) for row in answer.rows]

    return Case(query, settings, datetime.now(UTC))


def published_windows(settings: Settings) -> list[dict[str, Any]]:
    """What the current generation knows of listings: rows of `ops.windows`; none where nothing is published."""
    try:
        return published_case(settings).query(f"SELECT * FROM {WINDOWS.full_name}")
    except StorageError as error:
        log.warning("what was listed so far cannot be told: %s", error)
        return []


class Run:
    """One sync, in one go or in parts that one process after the other does: refresh what there is, at the end publish.

        with Run(settings, run_id="…") as run:
            run.refresh("meetings")

    While it is open no other process writes to the data folder. Parts with the same id are one run in `ops.runs`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        run_id: str | None = None,
        accounts: Sequence[str] = (),
        window: Window = Window(),  # noqa: B008 - immutable
        night: bool = False,
        verify_documents: bool = False,
        most_requests: int | None = None,
        goes_on: bool = False,
        listener: Listener | None = None,
        declared: tuple[Stream, ...] = STREAMS,
        mounts: Path = MOUNTS,
    ) -> None:
        """See `sync`; the id is that of the earlier parts, if any.

        With `goes_on`, what a first full sync listed that was interrupted is not listed again.

        Raises:
            ConfigError: there are no such accounts, or no credentials.
            WarehouseBusy: another process is writing.
            StorageError: the data folder cannot be used.
        """
        self.settings = settings
        self._terms = Terms.asked_for(settings, declared)
        self.accounts = _accounts(settings, accounts)
        client_id, _secret = settings.credentials()
        _warn_of_network_file_systems(settings, mounts)
        with ExitStack() as opening:
            warehouse = opening.enter_context(Warehouse(settings.data_dir, origin=settings.api_url, streams=declared))
            another = warehouse.use_application(client_id)
            warehouse.forget_listings([stream.name for stream in set(declared) - set(settings.listed(declared))])
            if told := settings.account_names_tell(self.accounts):
                log.warning("%s", told)
            if erasure := unfinished(settings.data_dir):
                log.warning("%s", erasure)
            listener = listener or Nobody()
            client = opening.enter_context(Client(settings, listener.waiting, most_requests=most_requests))
            now = datetime.now(UTC)
            window = usual_window(settings, now.date()) if night else window
            clear_journals(settings.data_dir, now)
            interrupted = warehouse.interrupted_run(now) if goes_on and not another else None
            report = SyncReport(run_id or interrupted or uuid.uuid4().hex, now, window, goes_on=bool(interrupted))
            self._before = warehouse.run(report.run_id)
            if interrupted:
                log.info("going on with run %s, which was interrupted", interrupted)
            if self._before:
                report.started_at = self._before["started_at"]
            self._work = Work(settings, client, warehouse, listener, report)
            self._lister = Lister(self._work)
            self._fetcher = Fetcher(self._work, verify=verify_documents)
            self._open = opening.pop_all()
        self._night = night
        self._listed: dict[str, dict[str, dict[str, Any]]] = {}
        self._range_changed = False
        self._begun = time.monotonic()
        self._halted: ContioError | None = None
        """The budget is the machine's: a 429 that outlasts all tries of one account ends the others too."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    @property
    def report(self) -> SyncReport:
        """What has been done so far, by this process."""
        return self._work.report

    def refresh(self, *names: str) -> None:
        """Make the tables of these streams, and `document_contents`, equal to the API: account by account, as declared."""
        self._put_run()
        with suppress(ConfigError):  # which the lists that need the range say themselves
            dates = self.settings.calendar_range(self.report.started_at)
            self._range_changed = self._work.warehouse.use_range(dates)
        if self.report.goes_on:
            self._listed = self._listed_before(names)
        for account in self.accounts:
            self._account(account, names)
        self._work.warehouse.explain_lost_access(self.accounts, self.report.started_at)
        self._work.warehouse.drop_old_windows()
        self._put_run(finished_at=None if self._halted else datetime.now(UTC))

    def done(self) -> dict[str, Any]:
        """What all parts of this run did: its row of `ops.runs`."""
        return self._work.warehouse.run(self.report.run_id) or {}

    def check(self, of: str) -> list[tuple[Check, list[Problem]]]:
        """What there is to say of a table, or of what is published: each check, and what is wrong."""
        case = self._case()
        return [(check, list(check.look(case))) for check in checks(self._work.warehouse.streams) if check.of == of]

    def _case(self) -> Case:
        return Case(self._work.warehouse.query, self.settings, datetime.now(UTC), self._work.warehouse.streams)

    def publish(self) -> tuple[Generation, bool]:
        """Make it readable; returns the current generation, and whether it is a new one.

        Raises:
            StorageError: it contradicts itself, or could not be written; what is published stays.
        """
        self._work.listener.publishing()
        report = self.report
        generation, new = publish(self._work.warehouse, datetime.now(UTC), self._terms)
        report.generation, report.new_generation = generation, new
        report.requests = self._work.client.traffic.requests
        report.seconds = time.monotonic() - self._begun
        return generation, new

    def incomplete(self) -> list[dict[str, Any]]:
        """What was not made equal to the API, by any part of this run or since the last publication: rows of `ops.windows`."""
        try:
            since = current(self.settings.data_dir).published_at
        except StorageError:  # nothing is published
            since = datetime.fromtimestamp(0, UTC)
        windows = self._work.warehouse.windows_of(self.report.run_id, since)
        return [row for row in windows if not row["complete"]]

    def look(self, table: Table, rows: int) -> tuple[int, list[dict[str, Any]]]:
        """How many live rows the table holds, and some of those that changed last, as readers get them."""
        return self._work.warehouse.look(table, rows, self._terms.policy)

    def rows_by_day(self, table: Table, window: Window) -> dict[str, int]:
        """How many live rows of the window the table holds: UTC day -> rows."""
        return self._work.warehouse.rows_by_day(table, window)

    def _put_run(self, finished_at: datetime | None = None) -> None:
        report, traffic, before = self.report, self._work.client.traffic, self._before or {}
        done: dict[str, int] = {
            **{name: report.total(name) for name in ("inserted", "updated", "deleted", "quarantined")},
            "requests": traffic.requests,
            "throttled": traffic.throttled,
            "bytes": traffic.bytes,
        }
        self._work.warehouse.put_run(
            {
                "run_id": report.run_id,
                "started_at": report.started_at,
                "finished_at": finished_at,
                "version": __version__,
                "window_start": report.window.start or before.get("window_start"),  # contents have no window
                "window_end": report.window.end or before.get("window_end"),
                "complete": report.complete and (report.goes_on or before.get("complete", True)),
                **{name: count + before.get(name, 0) for name, count in done.items()},
            }
        )

    # One account --------------------------------------------------------------------------------------------------------

    def _account(self, account: str, names: Sequence[str]) -> None:
        """All that is asked for of one account; a stream that fails leaves the others alone, a dead account all of them."""
        listed = self._listed.get(account, {})
        broken = self._halted or self._open_account(account)
        for stream in self._work.warehouse.streams:
            if stream.name in listed:
                self._tell_listed(account, stream, listed[stream.name])
            elif stream.name in names:
                refresh = partial(self._lister.refresh, stream=stream)
                broken = self._attempt(account, stream.name, refresh, self._plan(account, stream), broken)
        for stream in self._work.warehouse.streams:
            if stream.content_path and DOCUMENT_CONTENTS.name in names:
                contents = partial(self._fetcher.fetch, stream=stream)
                broken = self._attempt(account, DOCUMENT_CONTENTS.name, contents, Plan(), broken)
        if not broken:
            self._doubt_what_is_empty(account)

    def _listed_before(self, names: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
        """Account -> stream -> what the interrupted sync listed of it whole within a day: `ops.windows`.

        Nothing where all accounts were listed whole before: then it was no first sync, and what is new matters more.
        """
        warehouse, now = self._work.warehouse, datetime.now(UTC)
        streams = [stream for stream in warehouse.streams if stream.name in names]
        if all(warehouse.was_listed(stream, account) for account in self.accounts for stream in streams):
            return {}
        listed: dict[str, dict[str, dict[str, Any]]] = {account: {} for account in self.accounts}
        unchanged = {stream.name for stream in streams if stream.dates != "required" or not self._range_changed}
        for row in warehouse.windows_of(self.report.run_id):
            lately = timedelta(0) <= now - row["listed_at"] < A_DAY
            whole = row["complete"] and row["window_start"] is None and row["run_id"] == self.report.run_id
            if whole and lately and row["stream"] in unchanged and row["account"] in listed:
                listed[row["account"]][row["stream"]] = row
        return listed

    def _tell_listed(self, account: str, stream: Stream, row: dict[str, Any]) -> None:
        listing = Listing(row["rows"], row["total"])
        why = f"listed at {row['listed_at']:%Y-%m-%d %H:%M}, before the sync was interrupted"
        report = StreamReport(account, stream.name, Plan(why=why), listing, planned=0)
        self._work.listener.started(account, stream.name)
        self.report.streams.append(report)
        self._work.listener.finished(report)

    def _doubt_what_is_empty(self, account: str) -> None:
        """Say of a list that was empty twice, although rows of it can be read by id, that it is not complete."""
        for stream in self._work.warehouse.streams:
            listed = self._work.warehouse.windows_of_stream(account, stream)
            whole = any(row["complete"] and row["window_start"] is None for row in listed)
            if whole and self._lister.is_empty_by_mistake(account, stream):
                told = [part for part in self.report.streams if (part.account, part.stream) == (account, stream.name)]
                report = told[0] if told else StreamReport(account, stream.name)
                report.incomplete("the list was empty, but rows of it that others name can be read by id: sync again")
                self._put_window(report)
                self.report.streams += [] if told else [report]

    def _attempt(
        self,
        account: str,
        stream: str,
        work: Callable[[StreamReport], None],
        plan: Plan,
        broken: ContioError | None,
    ) -> ContioError | None:
        """Do one part of an account's work and report it; returns what makes the rest of the account hopeless, if anything."""
        report = StreamReport(account, stream, plan)
        begun, traffic = time.monotonic(), self._work.client.traffic
        before = replace(traffic)
        self._work.client.context = f"{account} {stream}"
        self._work.listener.started(account, stream)
        try:
            if broken:
                raise broken
            work(report)
        except (AccountError, ApiError, ConfigError) as error:
            report.incomplete(str(error))
            report.listing.interrupted |= isinstance(error, AccountError | Transient | Enough)
            broken = broken or (error if isinstance(error, AccountError | Throttled | Enough) else None)
            self._halted = error if isinstance(error, Throttled | Enough) else self._halted
        report.listing.requests = traffic.requests - before.requests
        report.throttled = traffic.throttled - before.throttled
        report.bytes = traffic.bytes - before.bytes
        report.seconds = time.monotonic() - begun
        report.listing.reason = report.listing.reason and self._terms.policy.told(report.listing.reason)
        report.warnings = [self._terms.policy.told(warning) for warning in report.warnings]
        self._put_window(report)
        self._work.report.streams.append(report)
        self._work.listener.finished(report)
        return broken

    def _put_window(self, report: StreamReport) -> None:
        self._work.warehouse.put_window(
            report.account, report.stream, report.plan.window, report.listing, self._work.run_id, datetime.now(UTC)
        )

    def _plan(self, account: str, stream: Stream) -> Plan:
        """What is listed of one stream of one account."""
        if not self._night:
            return Plan(self.report.window)
        warehouse = self._work.warehouse
        rows = {one.name: warehouse.live_rows(one, account) for one in warehouse.streams if one.dates == "optional"}
        listed = warehouse.windows_of_stream(account, stream)
        return plan_night(self.settings, stream, listed, rows, self.report.started_at, warehouse.streams)

    def _open_account(self, account: str) -> ContioError | None:
        """Read whose tokens these are, once in a run; returns why the account cannot be used, if it cannot."""
        for row in self._work.warehouse.windows_of(self.report.run_id):
            if (row["account"], row["stream"]) == (account, PROFILE_NAME):  # an earlier part of this run knows
                if row["complete"]:
                    return None
                if not self.report.goes_on:
                    return AccountError(row["reason"])
        self._work.listener.started(account, PROFILE_NAME)
        listing, broken = Listing(), None
        before = self._work.client.traffic.requests
        try:
            listing.rows = listing.total = self._profile(account)
        except (AccountError, ConfigError, ApiError) as error:
            listing.complete, listing.reason, broken = False, self._terms.policy.told(str(error)), error
            self._halted = (
                error if isinstance(error, Throttled | Enough) else None
            )  # it was None: this account was tried
        listing.requests = self._work.client.traffic.requests - before
        self._work.warehouse.put_window(account, PROFILE_NAME, Window(), listing, self.report.run_id, datetime.now(UTC))
        return broken

    def _profile(self, account: str) -> int:
        """Read and store the profile; returns how many there are. An account that may not read its own is synced all the same."""
        for again in (True, False):
            try:
                profile = self._work.client.profile(account, PROFILE_PATH)
                break
            except ApiError as error:
                if isinstance(error, Transient | Unauthorized | Enough):
                    raise
                if error.code or not again:
                    told = f"the profile cannot be read ({error}): deletions cannot be confirmed"
                    log.warning("account %s: %s", account, told)
                    return 0
                # not the API's own words: something in between refused it, perhaps only once
        batch = decode(PROFILE, [profile])
        if batch.ids:
            self._work.warehouse.put_profile(account, batch, datetime.now(UTC))
        return len(batch.ids)


def _warn_of_network_file_systems(settings: Settings, mounts: Path) -> None:
    """Say it once a run, and go on: some of them do keep locks, and nobody can tell which."""
    for name, folder in (("CONTIO_DATA_DIR", settings.data_dir), ("CONTIO_STATE_DIR", settings.state_dir)):
        if kind := network_file_system(folder, mounts):
            log.warning(
                "%s (%s) lies on a network file system (%s): locks on it are not to be trusted; keep both folders on a local "
                "disk",
                name,
                folder,
                kind,
            )


def _accounts(settings: Settings, accounts: Sequence[str]) -> list[str]:
    """Those asked for, or all."""
    store = TokenStore(settings.state_dir)
    names = list(dict.fromkeys(accounts)) or store.names()
    if not names:
        raise ConfigError(
            "there are no accounts yet; add one: contio-pipeline login, or contio-pipeline accounts add NAME "
            "--refresh-token-stdin"
        )
    for name in set(names) - set(store.names()):
        store.read(name)  # says which accounts there are; damaged tokens stop their own account only
    return names
