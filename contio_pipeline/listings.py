"""Lists: read one whole, commit it, and find out what became of the rows that it lacks.

What lives here: top-level lists, the lists of parents, confirming by id. What never does: SQL, sending, contents.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from types import MappingProxyType
from typing import Any

from contio_pipeline.errors import AccountError, ApiError, ContioError, Enough, Forbidden, NotFound, ScopeMissing
from contio_pipeline.journal import Journal
from contio_pipeline.night import listing_pages
from contio_pipeline.protocol import Page, fill_path, named, row_identity
from contio_pipeline.rows import decode
from contio_pipeline.stage import Stage
from contio_pipeline.streams import PROFILE_PATH, Stream, stream_named
from contio_pipeline.warehouse import A_DAY, Listing, Scope, too_many_lost
from contio_pipeline.work import Done, StreamReport, Work

log = logging.getLogger(__name__)

_PASSES = 3
"""How often a list that changes while it is read is read in one sync."""

_PARENTS_A_COMMIT = 100
_MOST_HOPS = 5
_QUARANTINE_SHARE = 0.01
"""Above this share of broken rows a listing is not complete; below it is a warning."""

_BLIND_COUNT = 20
"""So many rows that a window omitted although their dates lie in it, and over half of those asked for, prove that the date
filter does not mean the field that the stream declares."""

_HIDDEN_SHARE = 0.2
"""A full list that lacks more than this share of rows that can be read by id is not believed."""

SAMPLE = 5
"""So many rows are read by id to see whether the list holds all of them."""

_RANGE_REFUSED = frozenset({400, 413, 422})
_LONG_GAP = timedelta(days=35)
"""Where a range of dates ends in so many days without a row, it is asked whether the server shortened it."""

_SHORTENED = timedelta(days=28)
"""The parts in which a range is listed when the server shortens long ones without a word."""

OBSERVED_LATELY = timedelta(days=28)
"""How long what was observed of the API is relied on before it is looked at again."""

_Range = tuple[datetime, datetime]


@dataclass(slots=True)
class _ChildList:
    """The whole list of one parent."""

    parent: str
    pages: list[Page] = field(default_factory=list)
    total: int = 0
    problem: str | None = None
    failed: bool = False


@dataclass(slots=True)
class _Found:
    """What the lists of parents told: ids of rows that they lack, parents without rows, how many rows are broken."""

    missing: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    broken: int = 0
    without_id: int = 0


@dataclass(slots=True)
class _Verdicts:
    """What the API says of rows that a listing lacked.

    Attributes:
        gone: id -> reason.
        found: rows as received, also those that others were merged into.
        moved: ids that exist, dated where the listing did not look.
        hidden: ids that exist, and that the listing should have returned.
        aliases: id -> the id that it redirects to.
        unknown: how many gave no answer that says anything.
        why: the last such answer.
        broken_off: so many are hidden that it is the list that lacks them; the rest was not asked for.
    """

    gone: dict[str, str] = field(default_factory=dict)
    found: list[dict[str, Any]] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    hidden: set[str] = field(default_factory=set)
    aliases: dict[str, str] = field(default_factory=dict)
    unknown: int = 0
    why: str = ""
    broken_off: bool = False


class Lister:
    """Makes the tables of one stream after the other equal to the API's lists."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._client = work.client
        self._warehouse = work.warehouse
        self._listener = work.listener
        self._believable = Scope(loss_share=work.settings.loss_share, loss_count=work.settings.loss_count)

    def refresh(self, report: StreamReport, stream: Stream) -> None:
        """Make the stream's table equal to the account's list, or to the lists of all its parents; fill in the report.

        Raises:
            AccountError, ApiError: it had to stop; what was read before is committed.
        """
        if stream.parent:
            self._list_children(report, stream)
        else:
            self._list(report, stream)

    def is_empty_by_mistake(self, account: str, stream: Stream) -> bool:
        """Whether nothing is stored of a list, and rows that others name can be read by id: then it was answered wrongly.

        A first list has nothing stored that it could be compared with.
        """
        if stream.dates != "optional" or self._warehouse.live_rows(stream, account):
            return False
        named = self._warehouse.named_elsewhere(stream, account, SAMPLE)
        answers = self._client.in_parallel(partial(self._ask, account, stream), named)
        return any(
            isinstance(answer, dict) and answer.get("id") == name for name, answer in zip(named, answers, strict=True)
        )

    # One list of the account --------------------------------------------------------------------------------------------

    def _list(self, report: StreamReport, stream: Stream) -> None:
        """Read it whole, commit it, confirm what it lacks; once more when it lacks rows that are there."""
        account, window = report.account, report.plan.window
        dates = window.start and window.end and (window.start, window.end)
        full = not dates
        if stream.dates == "required":
            dates = dates or self._work.settings.calendar_range(self._work.report.started_at)
        believed = self._warehouse.assumption(stream, "date_filter", account)
        probe_only = bool(dates and believed and not believed["holds"])
        scope = replace(
            self._believable,
            dates=dates or None,
            undated=full,
            open_field=self._open_field(report, stream),
            at_most=1 if probe_only else None,
        )

        missing = self._read_and_commit(report, stream, scope)
        known = self._warehouse.among(stream, account, missing)
        verdicts = self._confirm(report, stream, missing, scope)
        if verdicts.hidden - known and not probe_only and report.listing.complete:
            report.listing, report.changes.unchanged, report.changes.quarantined = Listing(), 0, 0
            missing = self._read_and_commit(report, stream, scope)
            verdicts.hidden &= set(missing)
            others = [identity for identity in missing if identity not in verdicts.hidden]
            if not (verdicts.broken_off and len(verdicts.hidden) >= _BLIND_COUNT):
                again = self._confirm(report, stream, others, scope)
                verdicts.broken_off, others = again.broken_off, again.moved
                verdicts.hidden |= again.hidden
                verdicts.unknown += again.unknown
            verdicts.moved = others
        self._judge_hidden(report, stream, verdicts, scope)
        if probe_only and not missing and report.listing.rows - report.listing.outside >= _BLIND_COUNT:
            self._observe(report, stream, "date_filter", holds=True, detail=stream.date_field)

    def _open_field(self, report: StreamReport, stream: Stream) -> str | None:
        """By which field the rows that are not done are listed too; None where they are not, or the filter does not work."""
        if not report.plan.open_rows or not stream.open_field:
            return None
        seen = self._warehouse.assumption(stream, "open_filter", report.account)
        lately = seen and datetime.now(UTC) - seen["observed_at"] < OBSERVED_LATELY
        return None if seen and lately and not seen["holds"] else stream.open_field

    def _believed(self, report: StreamReport, stream: Stream, stage: Stage, scope: Scope) -> Scope:
        """Without the open rows where the list of them lacks many that are still open when they are read by id."""
        if not scope.open_field or not report.listing.complete:
            return scope
        stored = self._warehouse.open_ids(stream, report.account, scope.open_field)
        asked = stage.lacks(stored)[:_BLIND_COUNT]
        if len(asked) < _BLIND_COUNT:
            return scope
        answers = self._client.in_parallel(partial(self._ask, report.account, stream), asked)
        still = [answer for answer in answers if isinstance(answer, dict) and answer.get(scope.open_field) is False]
        if 2 * len(still) <= len(asked):
            return scope
        self._observe(report, stream, "open_filter", holds=False, detail=scope.open_field)
        report.warn(
            f"the API's list of rows with {scope.open_field}=false lacks rows that are: until the next full sync, changes of "
            "rows outside the window are not seen"
        )
        return replace(scope, open_field=None)

    def _read_and_commit(self, report: StreamReport, stream: Stream, scope: Scope) -> list[str]:
        """Read the list into the tables; returns the ids of the rows that it should have held and did not.

        Raises:
            AccountError, ApiError: it had to stop; what was read is committed.
        """
        stage = self._warehouse.stage(stream)
        with self._work.journal(report) as journal:
            if self._warehouse.was_listed(stream, report.account):
                journal.restart()  # what is there now matters more than some requests
            failure = self._read_list(report, stream, stage, scope, journal)
            scope = self._believed(report, stream, stage, scope)
            listed = self._read_details(report, stream, stage, failure, journal)
            report.listing.begun_at = journal.begun_at
            self._judge_quarantine(report, *stage.broken())
            changes = self._warehouse.commit(
                stage, report.account, report.plan.window, report.listing, scope, self._work.run_id, datetime.now(UTC)
            )
            report.changes.add(changes)
            self._warehouse.put_listed(report.account, stream, listed)
            if failure:
                raise failure
            journal.drop()
        if report.listing.outside:
            report.warn(
                f"{report.listing.outside} rows returned for the window have a {stream.date_field} outside it: the API's "
                "date filter may mean another field"
            )
        return changes.missing

    def _read_list(
        self, report: StreamReport, stream: Stream, stage: Stage, scope: Scope, journal: Journal
    ) -> ContioError | None:
        """Read all of it into the stage; returns why it had to stop, if it had to."""
        if stream.dates == "required" and scope.dates:
            failure = self._read_parts(report, stream, stage, scope.dates, journal)
        else:
            failure = self._read_range(report, stream, stage, scope.dates and as_params(scope.dates), journal)
            if scope.open_field and not failure:
                failure = self._read_range(report, stream, stage, {scope.open_field: "false"}, journal)
            empty = not failure and scope.undated and not report.listing.total
            if empty and not self._warehouse.live_rows(stream, report.account):
                failure = self._read_range(report, stream, stage, None, journal)  # no row could show that it is not
        if failure:
            report.incomplete(str(failure))
        return failure

    def _read_parts(
        self, report: StreamReport, stream: Stream, stage: Stage, dates: _Range, journal: Journal
    ) -> ContioError | None:
        """A range that must be named, in parts as long as the server takes: no cap on its length is documented."""
        seen = self._warehouse.assumption(stream, "long_ranges", report.account)
        lately = seen and not seen["holds"] and datetime.now(UTC) - seen["observed_at"] < OBSERVED_LATELY
        longest = timedelta(days=int(seen["detail"])) if seen and lately else None
        refused = None
        todo = _parts(dates, longest)
        while todo:
            begin, end = todo[0]
            failure = self._read_range(report, stream, stage, as_params((begin, end)), journal)
            if isinstance(failure, ApiError) and failure.status in _RANGE_REFUSED and end - begin > A_DAY:
                longest = refused = max((end - begin) / 2, A_DAY) // A_DAY * A_DAY
                todo = _parts((begin, dates[1]), longest)
                continue
            if failure:
                return failure
            del todo[0]
        if longest is None and report.plan.window.start is None:
            lacking = self._look_for_more(report, stream, stage, dates)
            for length in (None, _SHORTENED):  # the whole once more, in case it was a mistake
                if not stage.lacks(lacking):
                    break
                refused, report.listing.total, report.planned = length, 0, 0
                journal.restart()
                for part in _parts(dates, length):
                    if failure := self._read_range(report, stream, stage, as_params(part), journal):
                        return failure
        if refused:
            self._observe(report, stream, "long_ranges", holds=False, detail=str(refused // A_DAY))
        return None

    def _look_for_more(self, report: StreamReport, stream: Stream, stage: Stage, dates: _Range) -> list[str]:
        """Ids of rows in a later part of the range, to see whether the server answered only its beginning."""
        last = max(stage.last_date() or dates[0], dates[0])
        if dates[1] - last < _LONG_GAP:
            return []
        about_now = min(self._work.report.started_at, dates[1]) - _LONG_GAP
        found: list[str] = []
        for begin in sorted({last, last + (dates[1] - last) / 2, max(last, about_now)}):
            pages = self._client.pages(report.account, stream.path, as_params((begin, dates[1])), parallel=False)
            try:
                page, _plan = next(pages)
            except (AccountError, ApiError) as error:
                report.warn(f"whether long ranges are answered whole could not be seen ({error})")
                break
            found += [item["id"] for item in page.items if isinstance(row_identity(item), str)]
        return found

    def _read_range(
        self, report: StreamReport, stream: Stream, stage: Stage, params: dict[str, str] | None, journal: Journal
    ) -> ContioError | None:
        """Read all pages into the stage, again when the list changed meanwhile; returns why it had to stop, if it had to."""
        for attempt in range(1, _PASSES + 1):
            stage.begin_pass()
            if attempt > 1:
                journal.restart()
            problem = None
            seen = total = 0
            repeated: set[Any] = set()
            try:
                for page, plan in self._client.pages(report.account, stream.path, params or {}, journal=journal):
                    stage.add(decode(stream.columns, page.items))
                    seen += len(page.items)
                    total, problem = plan.total, plan.problem
                    self._listener.advanced(seen, plan.total)
                    if problem:
                        ids = {row_identity(item) for item in page.items}
                        if attempt < _PASSES or ids <= repeated:  # the last reading goes on while it gets anything
                            break
                        repeated |= ids
            except (AccountError, ApiError) as error:
                return error
            distinct = stage.distinct()
            if not problem and distinct != total:
                problem = f"the list holds {distinct} different rows where the API counts {total}"
            if not problem:
                break
            log.info("%s: %s (reading %d of %d)", self._client.context, problem, attempt, _PASSES)
        report.listing.total += total
        report.planned = (report.planned or 0) + listing_pages(total)
        if problem:
            report.incomplete(f"{problem}, at each of {_PASSES} readings: sync again")
        else:
            stage.accept()
        return None

    def _read_details(
        self, report: StreamReport, stream: Stream, stage: Stage, failure: ContioError | None, journal: Journal
    ) -> dict[str, str]:
        """Where the list holds less of a row than the row itself, read those that changed by id, in place of what was listed.

        Returns:
            id -> hash as listed, of the rows that were read by id and can be stored.
        """
        comparable = not failure and journal.begun_at is None  # rows as they were a while ago are not
        if not self._is_thin(report, stream, stage, comparable=comparable):
            return {}
        listed = stage.put_aside(report.account, whole=report.listing.complete)
        wanted = [] if failure else list(listed)
        failed = [] if wanted else list(listed)
        stored: set[str] = set()  # one too broken to be stored is read again the next time
        done = Done(len(wanted))
        report.planned = (report.planned or 0) + len(wanted)

        def ask(identity: str) -> dict[str, Any] | ApiError:
            key = f"{identity} {listed[identity]}"  # what was read of another version says nothing of this one
            if kept := journal.get(key):
                return dict(json.loads(kept))
            answer = self._ask(report.account, stream, identity)
            if isinstance(answer, dict):
                journal.put(key, json.dumps(answer).encode())
            return answer

        answers = self._client.in_parallel(ask, wanted)
        for identity, answer in zip(wanted, answers, strict=False):
            right = isinstance(answer, dict) and answer.get("id") == identity
            if right:
                batch = decode(stream.columns, [answer])
                stage.add(batch)
                stored.update(batch.ids)
            else:
                failed.append(identity)
                report.incomplete(f"{stream.name} {named(identity)} was listed, but could not be read by id ({answer})")
            done.add(failed=not right)
            self._listener.advanced(done.count, done.total)
            if done.hopeless:
                report.interrupted(f"{done.total - done.count} of them were not asked for")
                failed += wanted[done.count :]
                break
        stage.flush()
        stage.keep(report.account, failed)
        return {identity: digest for identity, digest in listed.items() if identity in stored}

    def _is_thin(self, report: StreamReport, stream: Stream, stage: Stage, *, comparable: bool) -> bool:
        """Whether rows of the list lack what the same rows hold when they are read by id.

        Some are compared now and then, and at once where rows changed without a new version, or lost what they held.
        """
        seen = self._warehouse.assumption(stream, "full_lists")
        lately = seen and datetime.now(UTC) - seen["observed_at"] < OBSERVED_LATELY
        if seen and lately and not seen["holds"]:
            return True
        rows: list[dict[str, Any]] = []
        if comparable:
            rows = stage.suspects(report.account, SAMPLE) if lately else stage.sample(SAMPLE)
        answers = self._client.in_parallel(partial(self._ask, report.account, stream), [row["id"] for row in rows])
        compared, lacks = 0, set[str]()
        for row, answer in zip(rows, answers, strict=True):
            batch = decode(stream.columns, [answer] if isinstance(answer, dict) else [])
            if batch.ids == [row["id"]]:
                compared += 1
                lacks |= _lacks(stream, row, batch.rows.to_pylist()[0])
        if not compared:
            return bool(seen and not seen["holds"])
        self._observe(report, stream, "full_lists", holds=not lacks, detail=", ".join(sorted(lacks)))
        return bool(lacks)

    def _observe(self, report: StreamReport, stream: Stream, assumption: str, *, holds: bool, detail: str) -> None:
        now = datetime.now(UTC)
        self._warehouse.put_assumption(report.account, stream, assumption, holds=holds, detail=detail, now=now)

    # What it all means --------------------------------------------------------------------------------------------------

    def _judge_hidden(self, report: StreamReport, stream: Stream, verdicts: _Verdicts, scope: Scope) -> None:
        """Rows that are there and were not listed, nor when it was read again: how far the list can be believed."""
        hidden, rows = verdicts.hidden, report.listing.rows
        report.listing.missing = verdicts.unknown
        if stream.parent:  # a flag would keep every later list from expecting them
            self._settle(report, stream, found=[*verdicts.moved, *hidden])
        else:
            self._settle(report, stream, found=verdicts.moved, blind=sorted(hidden))
        if scope.dates and verdicts.broken_off:
            self._observe(report, stream, "date_filter", holds=False, detail=stream.date_field)
            report.warn(
                f"the API's date filter does not mean {stream.date_field}: windows of this stream no longer mark rows as "
                "missing; full syncs still see every deletion"
            )
        if not hidden:
            return
        told = f"the list lacks {len(hidden)} rows that can still be read by id, also when it is read again"
        if not rows or (not scope.dates and len(hidden) > _HIDDEN_SHARE * rows):
            report.incomplete(f"{told}: so it may lack new ones too; sync again")
        elif not scope.dates:
            report.warn(told)

    def _judge_quarantine(self, report: StreamReport, broken: int, without_id: int) -> None:
        if without_id:
            report.incomplete(
                f"{without_id} rows came without a usable id (raw.quarantine has them): tell Contio's support"
            )
        elif broken > _QUARANTINE_SHARE * report.listing.total:
            report.incomplete(f"{broken} of {report.listing.total} rows break their promise (raw.quarantine says how)")
        elif broken:
            report.warn(f"{broken} rows break their promise (raw.quarantine says how); their last good version stays")

    # The lists of all parents -------------------------------------------------------------------------------------------

    def _list_children(self, report: StreamReport, stream: Stream) -> None:
        """All of them (in a window: of those parents that the window touched), some at a time; then confirm what they lack.

        Rows are confirmed last, since one that moved may come back in the list of another parent.
        """
        account = report.account
        parents = self._parents(report, stream)
        report.planned = len(parents)
        for listed in self._warehouse.windows_of(self._work.run_id):
            if (listed["account"], listed["stream"]) == (account, stream.parent) and not listed["complete"]:
                report.incomplete(f"the {stream.parent} whose lists these are could not all be listed")
        missing, empty = self._list_parents(report, stream, parents)
        missing = sorted(self._warehouse.among(stream, account, missing, missing=True))
        missing = self._confirm_parents(report, stream, missing, empty)
        if stream.detail_path:
            self._confirm_children(report, stream, missing, empty)
        else:
            self._confirm_by_lists(report, stream, missing)
        orphans = self._warehouse.orphans(stream, account)
        self._settle(report, stream, gone=dict.fromkeys(orphans, "parent_not_found"))

    def _confirm_by_lists(self, report: StreamReport, stream: Stream, missing: list[str]) -> None:
        """Rows that cannot be read by id are gone when their parents' lists, read again, do not hold them either.

        As many rows as no listing would be believed to lack are not taken to be gone either.
        """
        account = report.account
        again = sorted(set(self._warehouse.parents_of(stream, account, missing).values()))
        if not again:
            return
        counted = report.listing.rows, report.listing.total
        lacking, _empty = self._list_parents(report, stream, again, anew=True)
        report.listing.rows, report.listing.total = counted  # they were counted before
        gone, live = sorted(set(missing) & set(lacking)), self._warehouse.live_rows(stream, account)
        if len(gone) > max(self._believable.loss_count, self._believable.loss_share * live):
            report.incomplete(too_many_lost(len(gone), live))
        else:
            self._settle(report, stream, gone=dict.fromkeys(gone, "not_listed"))
        report.listing.missing = len(self._warehouse.among(stream, account, missing, missing=True))

    def _confirm_children(self, report: StreamReport, stream: Stream, missing: list[str], empty: list[str]) -> None:
        """Ask for each missing row by id; where one is there, its parent's list is read again."""
        account = report.account
        verdicts = self._confirm(report, stream, missing, self._believable)
        if verdicts.hidden:
            lying = self._warehouse.parents_of(stream, account, sorted(verdicts.hidden)).values()
            again = sorted({*lying, *empty})  # one empty list that is not empty makes all of them doubtful
            counted = report.listing.rows, report.listing.total
            lacking, _empty = self._list_parents(report, stream, again, anew=True)
            report.listing.rows, report.listing.total = counted  # they were counted before
            verdicts.hidden &= set(lacking)
        self._judge_hidden(report, stream, verdicts, self._believable)

    def _list_parents(
        self, report: StreamReport, stream: Stream, parents: list[str], *, anew: bool = False
    ) -> tuple[list[str], list[str]]:
        """Read the lists of these parents into the tables; returns the ids of rows that they lack, and parents without rows."""
        found = _Found()
        done = Done(len(parents))
        waiting: list[_ChildList] = []
        with self._work.journal(report) as journal:
            if anew:
                journal.restart()
            try:
                ask = partial(self._list_one, report.account, stream, journal, there=anew and not stream.detail_path)
                for listed in self._client.in_parallel(ask, parents):
                    waiting.append(listed)
                    done.add(failed=listed.failed)
                    self._listener.advanced(done.count, done.total)
                    if len(waiting) >= _PARENTS_A_COMMIT:
                        self._commit_children(report, stream, waiting, found, journal)
                        waiting = []
                    if done.hopeless:
                        break
            except (AccountError, ApiError):
                self._commit_children(report, stream, waiting, found, journal)
                raise
            self._commit_children(report, stream, waiting, found, journal)
            if done.count < done.total:
                report.interrupted(f"{done.total - done.count} lists were not asked for")
            else:
                journal.drop()
        self._judge_quarantine(report, found.broken, found.without_id)
        report.listing.quarantined = max(found.broken, report.listing.quarantined)
        return found.missing, found.empty

    def _commit_children(
        self, report: StreamReport, stream: Stream, lists: list[_ChildList], found: _Found, journal: Journal
    ) -> None:
        """Commit what was read of some parents' lists; those that are whole say what they lack."""
        if not lists:
            return
        stage = self._warehouse.stage(stream)
        stage.begin_pass()
        complete, failed = [], []
        for listed in lists:
            for page in listed.pages:
                if page.items:
                    stage.add(decode(stream.columns, page.items), listed.parent)
            report.listing.total += listed.total
            if listed.problem:
                report.incomplete(f"the list of {stream.parent} {named(listed.parent)}: {listed.problem}")
                failed.append(listed.parent)
                continue
            complete.append(listed.parent)
            if not listed.total:
                found.empty.append(listed.parent)
        broken, without_id = stage.broken()
        found.broken, found.without_id = found.broken + broken, found.without_id + without_id
        part, scope = Listing(begun_at=journal.begun_at), replace(self._believable, parents=tuple(complete))
        changes = self._warehouse.commit(stage, report.account, None, part, scope, self._work.run_id, datetime.now(UTC))
        self._warehouse.note_tried(stream, report.account, failed, datetime.now(UTC))
        report.listing.rows += part.rows
        report.changes.add(changes)
        if not part.complete:
            report.incomplete(part.reason or "")
        found.missing += changes.missing

    def _parents(self, report: StreamReport, stream: Stream) -> list[str]:
        """Ids of the live parents whose lists are due."""
        plan, now = report.plan, self._work.report.started_at
        dates = (plan.window.start, plan.window.end) if plan.window.start and plan.window.end else None
        if not dates:
            begun_at = self._warehouse.begin_or_go_on(report.account, stream, self._work.run_id, now)
            report.listing.begun_at = begun_at
            if begun_at != now:
                report.plan = replace(
                    plan, why=f"goes on with the listing of {begun_at:%Y-%m-%d %H:%M}, which was interrupted"
                )
            return self._warehouse.due_parents(stream, report.account, now=now, before=begun_at)
        if plan.old_lists is not None:
            return self._warehouse.due_parents(stream, report.account, now=now, dates=dates, most=plan.old_lists)
        parent = stream_named(stream.parent or "", self._warehouse.streams)
        return self._warehouse.live_ids(parent, report.account, dates=dates, changed_since=now)

    def _list_one(
        self, account: str, stream: Stream, journal: Journal, parent: str, *, there: bool = False
    ) -> _ChildList:
        """The whole list of one parent, which is known to be there or not; runs on a thread."""
        listed = _ChildList(parent)
        path = fill_path(stream.path, parent_id=parent)
        for attempt in range(_PASSES):
            listed.pages, listed.problem = [], None
            kept = None if attempt else journal
            try:
                for page, plan in self._client.pages(
                    account, path, {}, parallel=False, paged=stream.paged, journal=kept
                ):
                    listed.pages.append(page)
                    listed.total, listed.problem = plan.total, plan.problem
                    if plan.problem and not page.items:  # a total that no pages bear out would be walked without end
                        break
            except NotFound as error:  # the list of an unknown parent may be empty or missing: the API does not say
                return _ChildList(parent, problem=str(error) if there else None)
            except (ScopeMissing, Enough):
                raise
            except ApiError as error:
                listed.problem, listed.failed = str(error), True
                return listed
            distinct = {row_identity(item) for page in listed.pages for item in page.items}
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
        parents = self._warehouse.parents_of(stream, report.account, missing)
        suspects = sorted(set(parents.values()) & set(empty))
        ask = partial(self._ask, report.account, stream_named(stream.parent or "", self._warehouse.streams))
        answers = self._client.in_parallel(ask, suspects)
        gone_parents = {
            parent for parent, answer in zip(suspects, answers, strict=True) if isinstance(answer, NotFound)
        }
        if not gone_parents or not self._token_proven(report.account):
            return missing
        gone = [identity for identity in missing if parents[identity] in gone_parents]
        self._settle(report, stream, gone=dict.fromkeys(gone, "parent_not_found"))
        return [identity for identity in missing if parents[identity] not in gone_parents]

    def _ask(self, account: str, stream: Stream, identity: str, parent: str = "") -> dict[str, Any] | ApiError:
        """One row by id, or why not; runs on a thread."""
        try:
            return self._client.read(account, fill_path(stream.detail_path or "", id=identity, parent_id=parent or "-"))
        except ApiError as error:
            return error

    def _confirm(self, report: StreamReport, stream: Stream, missing: list[str], scope: Scope) -> _Verdicts:
        """Ask for each missing row by id, and record what became of it: gone, moved, merged.

        Rows that are there although the listing lacked them are not settled yet: see `hidden`.
        """
        verdicts = _Verdicts()
        if not missing:
            return verdicts
        account, now = report.account, datetime.now(UTC)
        parents = self._warehouse.parents_of(stream, account, missing) if stream.parent else {}
        self._ask_for(account, stream, missing, parents, scope, verdicts)
        refused = {identity for identity, reason in verdicts.gone.items() if reason in {"not_found", "access_lost"}}
        if refused and not self._token_proven(account):
            verdicts.unknown += len(refused)
            verdicts.why = "the account's profile cannot be read, so that a 404 proves nothing"
            verdicts.gone = {identity: why for identity, why in verdicts.gone.items() if identity not in refused}
        if verdicts.found:
            stage = self._warehouse.stage(stream)
            for row in verdicts.found:
                stage.add(decode(stream.columns, [row]), parents.get(row["id"]))
            changes = self._warehouse.commit(
                stage, account, None, Listing(complete=False), Scope(), self._work.run_id, now
            )
            changes.unchanged = 0  # they were not listed
            report.changes.add(changes)
        for identity, target in verdicts.aliases.items():
            self._warehouse.remember_alias(account, identity, target, now)
        self._settle(report, stream, gone=verdicts.gone, found=verdicts.moved)
        if verdicts.unknown:
            report.incomplete(
                f"{verdicts.unknown} rows are missing and it could not be confirmed that they are gone ({verdicts.why})"
            )
        return verdicts

    def _ask_for(
        self,
        account: str,
        stream: Stream,
        missing: list[str],
        parents: dict[str, str],
        scope: Scope,
        verdicts: _Verdicts,
    ) -> None:
        """What the API says of each missing row; stops asking when the answers prove that it is the list that lacks them."""

        def ask(identity: str) -> dict[str, Any] | ApiError:
            return self._ask(account, stream, identity, parents.get(identity, ""))

        for asked, (identity, answer) in enumerate(
            zip(missing, self._client.in_parallel(ask, missing), strict=False), start=1
        ):
            match answer:
                case dict() if answer.get("id") == identity:
                    verdicts.found.append(answer)
                    if stream.deleted_field and answer.get(stream.deleted_field):
                        verdicts.gone[identity] = "deleted"
                    elif scope.dates and not _within(stream, answer, scope.dates):
                        verdicts.moved.append(identity)
                    else:
                        verdicts.hidden.add(identity)
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
            if asked >= _BLIND_COUNT and len(verdicts.hidden) * 2 > asked:
                verdicts.broken_off = True
                verdicts.moved += missing[asked:]
                break

    def _follow(self, account: str, stream: Stream, target: str, found: list[dict[str, Any]]) -> str:
        """Follow redirects from row to row; returns the last id, and adds that row to `found` when it can be read."""
        for _hop in range(_MOST_HOPS):
            answer = self._ask(account, stream, target)
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
            self._client.profile(account, PROFILE_PATH)
        except (AccountError, ApiError) as error:
            log.warning("account %s: deletions cannot be confirmed: %s", account, error)
            return False
        return True

    def _settle(
        self,
        report: StreamReport,
        stream: Stream,
        *,
        gone: Mapping[str, str] = MappingProxyType({}),
        found: Sequence[str] = (),
        blind: Sequence[str] = (),
    ) -> None:
        if gone or found or blind:
            report.changes.deleted += self._warehouse.settle(
                stream,
                report.account,
                gone=gone,
                found=found,
                blind=blind,
                run_id=self._work.run_id,
                now=datetime.now(UTC),
            )


def _within(stream: Stream, item: dict[str, Any], dates: tuple[datetime, datetime]) -> bool:
    """Whether the row's own date lies in the half-open range; a day without a zone must lie in it in every zone."""
    rows = decode(stream.columns, [item]).rows.select([stream.date_field, "_extra"]).to_pylist()
    if not rows:
        return False
    moment = rows[0][stream.date_field]
    if moment is not None:
        return bool(dates[0] <= moment < dates[1])
    text = json.loads(rows[0]["_extra"] or "{}").get(stream.date_field)
    if text is None:
        return False
    return dates[0] + A_DAY <= datetime.fromisoformat(text).replace(tzinfo=UTC) < dates[1] - A_DAY


def _lacks(stream: Stream, listed: dict[str, Any], detail: dict[str, Any]) -> set[str]:
    """Fields of which the list holds less than the row read by id does; none where the row changed in between."""
    if stream.version_field and listed[stream.version_field] != detail[stream.version_field]:
        return set()
    lacks = {
        name
        for name in (column.name for column in stream.data_columns)
        if detail[name] is not None
        and (
            listed[name] is None
            or (
                isinstance(listed[name], str)
                and len(detail[name]) > len(listed[name])
                and detail[name].startswith(listed[name].rstrip("…."))
            )
        )
    }
    more, less = (json.loads(row["_extra"] or "{}") for row in (detail, listed))
    return lacks | {name for name, value in more.items() if value is not None and name not in less}


def _parts(dates: _Range, longest: timedelta | None) -> list[_Range]:
    """The range in consecutive parts, none longer."""
    begin, end = dates
    parts = []
    while longest and end - begin > longest:
        parts.append((begin, begin + longest))
        begin += longest
    return [*parts, (begin, end)]


def as_params(dates: _Range) -> dict[str, str]:
    """A half-open range of instants as lists take it."""
    return {"start_date": _instant(dates[0]), "end_date": _instant(dates[1])}


def _instant(moment: datetime) -> str:
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"
