"""The straight line: per account and stream, list, commit, confirm what is missing, fetch contents, publish.

What lives here: the order of things, and the only place where HTTP and storage meet. What never does: Dagster, printing.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

from contio_pipeline import __version__
from contio_pipeline.auth import TokenStore
from contio_pipeline.client import Client, Download
from contio_pipeline.documents import DocumentStore, Incoming
from contio_pipeline.errors import (
    AccountError,
    ApiError,
    ConfigError,
    ContioError,
    Forbidden,
    NotFound,
    ScopeMissing,
    StorageError,
    Throttled,
    Transient,
    Unauthorized,
)
from contio_pipeline.protocol import Page, fill_path
from contio_pipeline.publish import Generation, publish
from contio_pipeline.rows import decode
from contio_pipeline.settings import Settings
from contio_pipeline.streams import (
    DOCUMENT_CONTENTS,
    PROFILE,
    PROFILE_PATH,
    STREAMS,
    Stream,
    stream_named,
)
from contio_pipeline.warehouse import Changes, Listing, Scope, Stage, Warehouse, Window

log = logging.getLogger(__name__)

_PASSES = 3
"""How often a list that changes while it is read is read in one sync."""

_PARENTS_A_COMMIT = 200
_CONTENTS_A_COMMIT = 50
_MOST_HOPS = 5
_QUARANTINE_SHARE = 0.01
"""Above this share of broken rows a listing is not complete; below it is a warning."""

_BLIND_COUNT = 20
"""So many rows that a window omitted although their dates lie in it, and over half of those asked for, prove that the date
filter does not mean the field that the stream declares."""

_FAILURES_IN_A_ROW = 10
"""After so many parents or documents that fail one after the other, the rest is left for the next sync."""


class Listener(Protocol):
    """Is told how the work goes on, by the thread that runs the sync unless said otherwise."""

    def started(self, account: str, stream: str, /) -> None:
        """Work on one stream of one account begins."""

    def advanced(self, done: int, total: int, /) -> None:
        """So many rows, parents or documents of the current stream are done."""

    def waiting(self, seconds: float, /) -> None:
        """The request budget is used up; the next look at it is in so many seconds. Called by any thread."""

    def finished(self, report: StreamReport, /) -> None:
        """Work on one stream of one account is over."""

    def publishing(self) -> None:
        """The listings are done; a generation is being made."""


class _Nobody:
    """Listens to nothing."""

    def _ignore(self, *_: object) -> None:
        """Hear it and do nothing."""

    started = advanced = waiting = finished = publishing = _ignore


@dataclass(slots=True)
class StreamReport:
    """What a sync did for one stream of one account.

    Attributes:
        listing: rows, total, requests, whether complete and why not.
        changes: inserted, updated, deleted, unchanged, quarantined.
        warnings: what is worth a look although the tables are complete.
        throttled: answers 429.
        bytes: received.
    """

    account: str
    stream: str
    listing: Listing = field(default_factory=Listing)
    changes: Changes = field(default_factory=Changes)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    throttled: int = 0
    bytes: int = 0

    def incomplete(self, reason: str) -> None:
        """Say that the tables are not known to equal the API, and why; the first reason stays."""
        self.listing.complete = False
        self.listing.reason = self.listing.reason or reason


@dataclass(slots=True)
class SyncReport:
    """What a whole sync did."""

    run_id: str
    started_at: datetime
    window: Window
    streams: list[StreamReport] = field(default_factory=list)
    generation: Generation | None = None
    new_generation: bool = False
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for is known to equal the API."""
        return all(report.listing.complete for report in self.streams)

    def total(self, name: str) -> int:
        """The sum of one count of `Changes` over all streams."""
        return sum(getattr(report.changes, name) for report in self.streams)


def sync(
    settings: Settings,
    *,
    accounts: Sequence[str] = (),
    streams: Sequence[str] = (),
    window: Window = Window(),  # noqa: B008 - immutable
    documents: bool = True,
    verify_documents: bool = False,
    listener: Listener | None = None,
    declared: tuple[Stream, ...] = STREAMS,
) -> SyncReport:
    """Make the tables equal to what the API holds, and publish them.

    Args:
        settings: where and as whom.
        accounts: names; empty means all.
        streams: names; empty means all. Contents are fetched when the documents' stream is among them.
        window: half-open UTC range of dates; without ends the full sync.
        documents: whether to download contents.
        verify_documents: download all contents again, compare and repair.
        listener: is told how the work goes on.
        declared: the streams that exist.

    Returns:
        What was done; one broken account or stream never stops the others. Look at `complete`.

    Raises:
        ConfigError: nothing could be started.
        StorageError: the data folder cannot be used.
    """
    store = TokenStore(settings.state_dir)
    names = list(dict.fromkeys(accounts)) or store.names()
    if not names:
        raise ConfigError(
            "there are no accounts yet; add one: contio-pipeline accounts add NAME --refresh-token-stdin "
            "(the token comes from standard input)"
        )
    for name in names:
        store.read(name)
    known = [stream.name for stream in declared]
    unknown = [name for name in streams if name not in known]
    if unknown:
        raise ConfigError(f"there is no stream {', '.join(map(repr, unknown))}; there are: {', '.join(known)}")
    settings.credentials()
    selected = tuple(stream for stream in declared if not streams or stream.name in streams)
    listener = listener or _Nobody()
    with (
        Warehouse(settings.data_dir, origin=settings.api_url, streams=declared) as warehouse,
        Client(settings, listener.waiting) as client,
    ):
        work = _Sync(settings, warehouse, client, selected, window, listener)
        work.documents, work.verify = documents, verify_documents
        return work.run(names)


@dataclass(slots=True)
class _ChildList:
    """The whole list of one parent."""

    parent: str
    pages: list[Page] = field(default_factory=list)
    total: int = 0
    problem: str | None = None
    failed: bool = False


@dataclass(slots=True)
class _Done:
    """How far a row of many small requests is, and how many failed one after the other just now."""

    total: int
    count: int = 0
    failures: int = 0

    def add(self, *, failed: bool) -> None:
        self.count += 1
        self.failures = self.failures + 1 if failed else 0


@dataclass(slots=True)
class _Verdicts:
    """What the API says of rows that a listing lacked.

    Attributes:
        gone: id -> reason.
        found: rows as received, also those that others were merged into.
        present: ids that exist, dated outside the window or in none.
        blind: ids that exist, dated inside the window: the filter does not see them.
        aliases: id -> the id that it redirects to.
        unknown: how many gave no answer that says anything.
        why: the last such answer.
        filter_is_false: so many are blind that the date filter must mean another field; the rest was not asked for.
    """

    gone: dict[str, str] = field(default_factory=dict)
    found: list[dict[str, Any]] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    blind: list[str] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    unknown: int = 0
    why: str = ""
    filter_is_false: bool = False


class _Sync:
    """One run: its identity, and what every step needs."""

    def __init__(
        self,
        settings: Settings,
        warehouse: Warehouse,
        client: Client,
        streams: tuple[Stream, ...],
        window: Window,
        listener: Listener,
    ) -> None:
        self.settings = settings
        self.warehouse = warehouse
        self.client = client
        self.streams = streams
        self.listener = listener
        self.documents = True
        self.verify = False
        self.store = DocumentStore(settings.data_dir)
        self._halted: ContioError | None = None
        """The budget is the machine's: a 429 that outlasts all tries of one account ends the others too."""
        self.report = SyncReport(uuid.uuid4().hex, datetime.now(UTC), window)

    def run(self, accounts: Sequence[str]) -> SyncReport:
        begun = time.monotonic()
        self._put_run(finished=False)
        self.store.clear_incoming()
        for account in accounts:
            self._account(account)
        self.warehouse.explain_lost_access(accounts, self.report.started_at)
        self._put_run(finished=True)
        self.listener.publishing()
        self.report.generation, self.report.new_generation = publish(self.warehouse, datetime.now(UTC))
        self.report.seconds = time.monotonic() - begun
        return self.report

    def _put_run(self, *, finished: bool) -> None:
        report, traffic = self.report, self.client.traffic
        row: dict[str, Any] = {
            "run_id": report.run_id,
            "started_at": report.started_at,
            "version": __version__,
            "window_start": report.window.start,
            "window_end": report.window.end,
        }
        if finished:
            row |= {name: report.total(name) for name in ("inserted", "updated", "deleted", "quarantined")}
            row |= {
                "finished_at": datetime.now(UTC),
                "complete": report.complete,
                "requests": traffic.requests,
                "throttled": traffic.throttled,
                "bytes": traffic.bytes,
            }
        self.warehouse.put_run(row)

    # One account --------------------------------------------------------------------------------------------------------

    def _account(self, account: str) -> None:
        """All selected streams of one account; a stream that fails leaves the others alone, a dead account all of them."""
        broken = self._halted
        try:
            if not broken:
                self._profile(account)
        except (AccountError, ConfigError, ApiError) as error:
            broken = error
            self._halted = error if isinstance(error, Throttled) else None  # it was None: this account was tried
        for stream in self.streams:
            listing = self._list_children if stream.parent else self._list
            broken = self._attempt(account, stream.name, partial(listing, stream=stream), self.report.window, broken)
            if stream.content_path and self.documents:
                contents = partial(self._fetch_contents, stream=stream)
                broken = self._attempt(account, DOCUMENT_CONTENTS.name, contents, Window(), broken)

    def _attempt(
        self,
        account: str,
        stream: str,
        work: Callable[[StreamReport], None],
        window: Window,
        broken: ContioError | None,
    ) -> ContioError | None:
        """Do one part of an account's work and report it; returns what makes the rest of the account hopeless, if anything."""
        report = StreamReport(account, stream)
        begun, traffic = time.monotonic(), self.client.traffic
        before = replace(traffic)
        self.client.context = f"{account} {stream}"
        self.listener.started(account, stream)
        try:
            if broken:
                raise broken
            work(report)
        except (AccountError, ApiError, ConfigError) as error:
            report.incomplete(str(error))
            broken = broken or (error if isinstance(error, AccountError | Throttled) else None)
            self._halted = error if isinstance(error, Throttled) else self._halted
        report.listing.requests = traffic.requests - before.requests
        report.throttled = traffic.throttled - before.throttled
        report.bytes = traffic.bytes - before.bytes
        report.seconds = time.monotonic() - begun
        self._put_window(report, window)
        self.report.streams.append(report)
        self.listener.finished(report)
        return broken

    def _put_window(self, report: StreamReport, window: Window) -> None:
        self.warehouse.put_window(
            report.account, report.stream, window, report.listing, self.report.run_id, datetime.now(UTC)
        )

    def _profile(self, account: str) -> None:
        """Read whose tokens these are; an account that may not read its profile is synced all the same."""
        try:
            profile = self.client.profile(account, PROFILE_PATH)
        except ApiError as error:
            if isinstance(error, Transient | Unauthorized):
                raise
            log.warning("account %s: the profile cannot be read (%s): deletions cannot be confirmed", account, error)
            return
        batch = decode(PROFILE, [profile])
        if batch.ids:
            self.warehouse.put_profile(account, batch, datetime.now(UTC))

    # Lists --------------------------------------------------------------------------------------------------------------

    def _dates(self, stream: Stream) -> tuple[datetime, datetime] | None:
        window = self.report.window
        if window.start and window.end and stream.dates != "none":
            return window.start, window.end
        return self.settings.calendar_range(self.report.started_at) if stream.dates == "required" else None

    def _list(self, report: StreamReport, stream: Stream) -> None:
        """One list of the account: read it whole, commit it, confirm what it lacks."""
        dates = self._dates(stream)
        stage = self.warehouse.stage(stream)
        failure = self._read_list(report, stream, stage, dates)
        self._judge_quarantine(report, *stage.broken())
        probe_only = dates and not self.warehouse.assumption_holds(report.account, stream)
        scope = Scope(dates=dates, at_most=1 if probe_only else None)
        window, now = self.report.window, datetime.now(UTC)
        changes = self.warehouse.commit(stage, report.account, window, report.listing, scope, self.report.run_id, now)
        report.changes.add(changes)
        if failure:
            raise failure
        if report.listing.outside:
            report.warnings.append(
                f"{report.listing.outside} rows returned for the window have a {stream.date_field} outside it: the API's "
                "date filter may mean another field"
            )
        report.listing.missing = self._confirm(report, stream, changes.missing, scope)

    def _read_list(
        self, report: StreamReport, stream: Stream, stage: Stage, dates: tuple[datetime, datetime] | None
    ) -> ContioError | None:
        """Read all pages into the stage, again when the list changed meanwhile; returns why it had to stop, if it had to."""
        params = {"start_date": _instant(dates[0]), "end_date": _instant(dates[1])} if dates else {}
        listing = report.listing
        for attempt in range(1, _PASSES + 1):
            stage.begin_pass()
            problem = None
            seen = 0
            try:
                for page, plan in self.client.pages(report.account, stream.path, params):
                    stage.add(decode(stream.columns, page.items))
                    seen += len(page.items)
                    listing.total, problem = plan.total, plan.problem
                    self.listener.advanced(seen, plan.total)
                    if problem and attempt < _PASSES:
                        break
            except (AccountError, ApiError) as error:
                report.incomplete(str(error))
                return error
            distinct = stage.distinct()
            if not problem and distinct != listing.total:
                problem = f"the list holds {distinct} different rows where the API counts {listing.total}"
            if not problem:
                return None
            log.info("%s: %s (reading %d of %d)", self.client.context, problem, attempt, _PASSES)
        report.incomplete(f"{problem}, at each of {_PASSES} readings: sync again")
        return None

    def _judge_quarantine(self, report: StreamReport, broken: int, without_id: int) -> None:
        if without_id:
            report.incomplete(
                f"{without_id} rows came without a usable id (raw.quarantine has them): tell Contio's support"
            )
        elif broken > _QUARANTINE_SHARE * report.listing.total:
            report.incomplete(f"{broken} of {report.listing.total} rows break their promise (raw.quarantine says how)")
        elif broken:
            report.warnings.append(
                f"{broken} rows break their promise (raw.quarantine says how); their last good version stays"
            )

    def _list_children(self, report: StreamReport, stream: Stream) -> None:
        """The lists of all parents (in a window: of those that the window touched), some at a time."""
        parents = self._parents(report.account, stream)
        for earlier in self.report.streams:
            if (earlier.account, earlier.stream) == (report.account, stream.parent) and not earlier.listing.complete:
                report.incomplete(f"the {stream.parent} whose lists these are could not all be listed")
        broken = without_id = 0
        done = _Done(len(parents))
        while done.count < done.total and done.failures < _FAILURES_IN_A_ROW:
            chunk = parents[done.count : done.count + _PARENTS_A_COMMIT]
            stage = self.warehouse.stage(stream)
            stage.begin_pass()
            complete, empty = self._read_children(report, stream, stage, chunk, done)
            more_broken, more_without_id = stage.broken()
            broken, without_id = broken + more_broken, without_id + more_without_id
            part, scope = Listing(), Scope(parents=tuple(complete))
            now = datetime.now(UTC)
            changes = self.warehouse.commit(stage, report.account, None, part, scope, self.report.run_id, now)
            report.listing.rows += part.rows
            report.changes.add(changes)
            if not part.complete:
                report.incomplete(part.reason or "")
            left = self._confirm_parents(report, stream, changes.missing, empty)
            report.listing.missing += self._confirm(report, stream, left, scope)
        if done.count < done.total:
            report.incomplete(f"{done.total - done.count} lists were not asked for")
        self._judge_quarantine(report, broken, without_id)
        report.listing.quarantined = broken
        orphans = self.warehouse.orphans(stream, report.account)
        self._settle(report, stream, gone=dict.fromkeys(orphans, "parent_not_found"))

    def _read_children(
        self, report: StreamReport, stream: Stream, stage: Stage, parents: list[str], done: _Done
    ) -> tuple[list[str], list[str]]:
        """Read some parents' lists into the stage; returns the parents whose lists are complete, and those with no rows."""
        complete, empty = [], []
        for listed in self.client.in_parallel(partial(self._list_one, report.account, stream), parents):
            for page in listed.pages:
                stage.add(decode(stream.columns, page.items), listed.parent)
            report.listing.total += listed.total
            if listed.problem:
                report.incomplete(f"the list of {stream.parent} {listed.parent}: {listed.problem}")
            else:
                complete.append(listed.parent)
                if not listed.total:
                    empty.append(listed.parent)
            done.add(failed=listed.failed)
            self.listener.advanced(done.count, done.total)
            if done.failures >= _FAILURES_IN_A_ROW:
                break
        return complete, empty

    def _parents(self, account: str, stream: Stream) -> list[str]:
        """Ids of the live parents whose lists are due."""
        parent = stream_named(stream.parent or "", self.warehouse.streams)
        window = self.report.window
        return self.warehouse.live_ids(
            parent,
            account,
            dates=(window.start, window.end) if window.start and window.end else None,
            changed_since=self.report.started_at,
        )

    def _list_one(self, account: str, stream: Stream, parent: str) -> _ChildList:
        """The whole list of one parent; runs on a thread."""
        listed = _ChildList(parent)
        for _attempt in range(_PASSES):
            listed.pages, listed.problem = [], None
            try:
                for page, plan in self.client.pages(
                    account, fill_path(stream.path, parent_id=parent), {}, parallel=False
                ):
                    listed.pages.append(page)
                    listed.total, listed.problem = plan.total, plan.problem
            except NotFound:  # the list of an unknown parent may be empty or missing: the API does not say
                return _ChildList(parent)
            except ScopeMissing:
                raise
            except ApiError as error:
                listed.problem, listed.failed = str(error), True
                return listed
            distinct = {
                repr(item.get("id")) if isinstance(item, dict) else repr(item)
                for page in listed.pages
                for item in page.items
            }
            if not listed.problem and len(distinct) != listed.total:
                listed.problem = f"{len(distinct)} different rows where the API counts {listed.total}"
            if not listed.problem:
                break
        return listed

    # Rows that are missing ----------------------------------------------------------------------------------------------

    def _confirm_parents(self, report: StreamReport, stream: Stream, missing: list[str], empty: list[str]) -> list[str]:
        """Where a parent's list is empty over stored rows, ask for the parent once; returns the rows still to be asked for."""
        if not missing:
            return []
        parents = self.warehouse.parents_of(stream, report.account, missing)
        suspects = sorted(set(parents.values()) & set(empty))
        detail = stream_named(stream.parent or "", self.warehouse.streams).detail_path
        gone_parents = set()
        for parent, answer in zip(
            suspects,
            self.client.in_parallel(lambda parent: self._ask(report.account, fill_path(detail, id=parent)), suspects),
            strict=True,
        ):
            if isinstance(answer, NotFound):
                gone_parents.add(parent)
        gone = {identity: "parent_not_found" for identity in missing if parents[identity] in gone_parents}
        if gone and not self._token_proven(report.account):
            gone = {}
        self._settle(report, stream, gone=gone)
        return [identity for identity in missing if parents[identity] not in gone_parents]

    def _ask(self, account: str, path: str) -> dict[str, Any] | ApiError:
        """One row by id, or why not; runs on a thread."""
        try:
            return self.client.read(account, path)
        except ApiError as error:
            return error

    def _confirm(self, report: StreamReport, stream: Stream, missing: list[str], scope: Scope) -> int:
        """Ask for each missing row by id, and record what became of it: gone, moved, merged, or not seen by the filter.

        Returns:
            How many rows stay missing because no answer says anything about them.
        """
        if not missing:
            return 0
        account, now = report.account, datetime.now(UTC)
        parents = self.warehouse.parents_of(stream, account, missing) if stream.parent else {}
        verdicts = self._ask_for(account, stream, missing, parents, scope)
        refused = {identity for identity, reason in verdicts.gone.items() if reason in {"not_found", "access_lost"}}
        if refused and not self._token_proven(account):
            verdicts.unknown += len(refused)
            verdicts.why = "the account's profile cannot be read, so that a 404 proves nothing"
            verdicts.gone = {identity: why for identity, why in verdicts.gone.items() if identity not in refused}
        if verdicts.found:
            stage = self.warehouse.stage(stream)
            for row in verdicts.found:
                stage.add(decode(stream.columns, [row]), parents.get(row["id"]))
            changes = self.warehouse.commit(
                stage, account, None, Listing(complete=False), Scope(), self.report.run_id, now
            )
            changes.unchanged = 0  # they were not listed
            report.changes.add(changes)
        for identity, target in verdicts.aliases.items():
            self.warehouse.remember_alias(account, identity, target, now)
        if verdicts.filter_is_false:
            self.warehouse.put_assumption(account, stream, holds=False, now=now)
            report.warnings.append(
                f"the API's date filter does not mean {stream.date_field}: windows of this stream no longer mark rows as "
                "missing; full syncs still see every deletion"
            )
        self._settle(report, stream, gone=verdicts.gone, found=verdicts.present, blind=verdicts.blind)
        if verdicts.unknown:
            report.incomplete(
                f"{verdicts.unknown} rows are missing and it could not be confirmed that they are gone ({verdicts.why})"
            )
        return verdicts.unknown

    def _ask_for(
        self, account: str, stream: Stream, missing: list[str], parents: dict[str, str], scope: Scope
    ) -> _Verdicts:
        """What the API says of each missing row; stops asking when the answers prove the date filter wrong."""
        verdicts = _Verdicts()

        def ask(identity: str) -> dict[str, Any] | ApiError:
            values = {"id": identity} | ({"parent_id": parents[identity]} if parents else {})
            return self._ask(account, fill_path(stream.detail_path, **values))

        for asked, (identity, answer) in enumerate(
            zip(missing, self.client.in_parallel(ask, missing), strict=False), start=1
        ):
            match answer:
                case dict() if answer.get("id") == identity:
                    verdicts.found.append(answer)
                    if stream.deleted_field and answer.get(stream.deleted_field):
                        verdicts.gone[identity] = "deleted"
                    elif scope.dates and _within(stream, answer, scope.dates):
                        verdicts.blind.append(identity)
                    else:
                        verdicts.present.append(identity)
                case dict() if stream.alias_field and isinstance(answer.get(stream.alias_field), str):
                    verdicts.aliases[identity] = self._follow(
                        account, stream, answer[stream.alias_field], verdicts.found
                    )
                    verdicts.gone[identity] = "merged"
                case NotFound():
                    verdicts.gone[identity] = "not_found"
                case Forbidden():
                    verdicts.gone[identity] = "access_lost"
                case _:
                    verdicts.unknown += 1
                    verdicts.why = str(answer) if isinstance(answer, ApiError) else "the answer was about another row"
            if scope.dates and asked >= _BLIND_COUNT and len(verdicts.blind) * 2 > asked:
                verdicts.filter_is_false = True
                verdicts.present += missing[asked:]
                break
        return verdicts

    def _follow(self, account: str, stream: Stream, target: str, found: list[dict[str, Any]]) -> str:
        """Follow redirects from row to row; returns the last id, and adds that row to `found` when it can be read."""
        for _hop in range(_MOST_HOPS):
            answer = self._ask(account, fill_path(stream.detail_path, id=target))
            if isinstance(answer, dict) and answer.get("id") == target:
                found.append(answer)
                break
            following = answer.get(stream.alias_field or "") if isinstance(answer, dict) else None
            if not isinstance(following, str) or following == target:
                break
            target = following
        return target

    def _token_proven(self, account: str) -> bool:
        """Whether the token that got a 404 still reads its own profile: otherwise the 404 says nothing about the row."""
        try:
            self.client.profile(account, PROFILE_PATH)
        except (AccountError, ApiError) as error:
            log.warning("account %s: deletions cannot be confirmed: %s", account, error)
            return False
        return True

    def _settle(
        self,
        report: StreamReport,
        stream: Stream,
        *,
        gone: dict[str, str],
        found: Sequence[str] = (),
        blind: Sequence[str] = (),
    ) -> None:
        if gone or found or blind:
            report.changes.deleted += self.warehouse.settle(
                stream,
                report.account,
                gone=gone,
                found=found,
                blind=blind,
                run_id=self.report.run_id,
                now=datetime.now(UTC),
            )

    # Contents -----------------------------------------------------------------------------------------------------------

    def _fetch_contents(self, report: StreamReport, stream: Stream) -> None:
        """Download what is finished and not stored yet; state decides, so it does not matter which window was listed."""
        rows = self.warehouse.contents_state(stream, report.account)
        report.listing.rows = report.listing.total = len(rows)
        known = {row["id"] for row in rows if row["state"]}
        ready: list[dict[str, Any]] = []
        settled: list[dict[str, Any]] = []
        for row in rows:
            row["version"] = _version(row)
            state = self._content_state(row)
            if state == "stored":
                ready.append(row)
            elif (row["state"], row["stored_version"]) != (state, row["version"]):
                settled.append(_content(row, state, f"{stream.status_field} is {row['status']}"))
        due = [row for row in ready if self.verify or not self._have(row)]
        report.changes.unchanged = len(rows) - len(due) - len(settled)
        report.changes.inserted = sum(1 for content in settled if content["id"] not in known)
        report.changes.updated = len(settled) - report.changes.inserted
        elsewhere = {} if self.verify else self.warehouse.stored_elsewhere(stream, report.account)
        downloads: list[dict[str, Any]] = []
        for row in due:
            twin = elsewhere.get((row["id"], row["version"]))
            if twin and self.store.has(twin["sha256"], twin["size_bytes"]):
                settled.append(twin)
                self._count_content(report, row, twin["sha256"])
            else:
                downloads.append(row)
        self.warehouse.put_contents(report.account, settled)
        done = _Done(len(downloads))
        fetched: list[dict[str, Any]] = []
        answers = self.client.in_parallel(partial(self._fetch, report.account, stream), downloads)
        for row, answer in zip(downloads, answers, strict=False):
            done.add(failed=isinstance(answer, ApiError))
            self.listener.advanced(done.count, done.total)
            if isinstance(answer, ApiError):
                fetched.append(_content(row, "unavailable", str(answer)))
                report.incomplete(f"document {row['id']} could not be downloaded ({answer}): the next sync tries again")
            else:
                fetched.append(answer)
                self._count_content(report, row, answer["sha256"])
            if len(fetched) >= _CONTENTS_A_COMMIT:
                self.warehouse.put_contents(report.account, fetched)
                fetched = []
            if done.failures >= _FAILURES_IN_A_ROW:
                report.incomplete(f"{done.total - done.count} documents were not asked for")
                break
        self.warehouse.put_contents(report.account, fetched)

    def _content_state(self, row: dict[str, Any]) -> str:
        """What a document's processing state allows: an early download may hold what was not scrubbed yet."""
        if self.settings.documents == "all":
            return "stored"
        return {"pending": "waiting", "processing": "waiting", "error": "error"}.get(row["status"] or "", "stored")

    def _have(self, row: dict[str, Any]) -> bool:
        return (
            row["state"] == "stored"
            and row["stored_version"] == row["version"]
            and self.store.has(row["sha256"], row["size_bytes"])
        )

    def _count_content(self, report: StreamReport, row: dict[str, Any], digest: str) -> None:
        if row["sha256"] is None:
            report.changes.inserted += 1
        elif row["sha256"] != digest or not self._have(row):
            report.changes.updated += 1
        else:
            report.changes.unchanged += 1

    def _fetch(self, account: str, stream: Stream, row: dict[str, Any]) -> dict[str, Any] | ApiError:
        """Download one document into the store; runs on a thread."""
        sinks: list[Incoming] = []

        def new_sink() -> Incoming:
            for sink in sinks:
                sink.drop()
            sinks.append(self.store.incoming())
            return sinks[-1]

        path = fill_path(stream.content_path or "", id=row["id"], parent_id=row["parent_id"])
        try:
            download: Download = self.client.download(account, path, new_sink)
            digest = sinks[-1].keep()
        except ScopeMissing:
            raise
        except ApiError as error:
            return error
        except OSError as error:
            raise StorageError(f"a document could not be written below {self.store.folder} ({error})") from error
        finally:
            for sink in sinks:
                sink.drop()
        content = _content(row, "stored", None)
        return content | {
            "sha256": digest,
            "size_bytes": sinks[-1].size,
            "content_type": download.content_type,
            "filename": download.filename,
            "fetched_at": datetime.now(UTC),
        }


def _version(row: dict[str, Any]) -> str:
    """Names the bytes of a document: they change with its processing state and its time of change."""
    changed = row["changed"].isoformat() if row["changed"] else row["row_hash"]
    return f"{row['status'] or ''} {changed}"


def _content(row: dict[str, Any], state: str, reason: str | None) -> dict[str, Any]:
    """A row of `raw.document_contents`; bytes that were stored before stay known until there are newer ones."""
    kept = ("id", "sha256", "size_bytes", "content_type", "filename", "fetched_at")
    return {name: row[name] for name in kept} | {"state": state, "reason": reason, "_version": row["version"]}


def _within(stream: Stream, item: dict[str, Any], dates: tuple[datetime, datetime]) -> bool:
    """Whether the row's own date lies in the half-open range."""
    moments = decode(stream.columns, [item]).rows.column(stream.date_field).to_pylist()
    return bool(moments and moments[0] and dates[0] <= moments[0] < dates[1])


def _instant(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
