"""Lists: read one whole, commit it, and find out what became of the rows that it lacks.

What lives here: top-level lists, the lists of parents, confirming by id. What never does: SQL, sending, contents.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from contio_pipeline.errors import AccountError, ApiError, ContioError, Forbidden, NotFound, ScopeMissing
from contio_pipeline.protocol import Page, fill_path, row_identity
from contio_pipeline.rows import decode
from contio_pipeline.streams import PROFILE_PATH, Stream, stream_named
from contio_pipeline.warehouse import A_DAY, Listing, Scope, Stage
from contio_pipeline.work import FAILURES_IN_A_ROW, Done, StreamReport, Work

log = logging.getLogger(__name__)

_PASSES = 3
"""How often a list that changes while it is read is read in one sync."""

_PARENTS_A_COMMIT = 200
_MOST_HOPS = 5
_QUARANTINE_SHARE = 0.01
"""Above this share of broken rows a listing is not complete; below it is a warning."""

_BLIND_COUNT = 20
"""So many rows that a window omitted although their dates lie in it, and over half of those asked for, prove that the date
filter does not mean the field that the stream declares."""


@dataclass(slots=True)
class _ChildList:
    """The whole list of one parent."""

    parent: str
    pages: list[Page] = field(default_factory=list)
    total: int = 0
    problem: str | None = None
    failed: bool = False


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

    def _dates(self, stream: Stream) -> tuple[datetime, datetime] | None:
        window = self._work.window
        if window.start and window.end and stream.dates != "none":
            return window.start, window.end
        return self._work.settings.calendar_range(self._work.report.started_at) if stream.dates == "required" else None

    def _list(self, report: StreamReport, stream: Stream) -> None:
        """One list of the account: read it whole, commit it, confirm what it lacks."""
        dates = self._dates(stream)
        stage = self._warehouse.stage(stream)
        failure = self._read_list(report, stream, stage, dates)
        self._judge_quarantine(report, *stage.broken())
        probe_only = dates and not self._warehouse.assumption_holds(report.account, stream)
        full = self._work.window.start is None
        scope = replace(self._believable, dates=dates, undated=full, at_most=1 if probe_only else None)
        window, now = self._work.window, datetime.now(UTC)
        changes = self._warehouse.commit(stage, report.account, window, report.listing, scope, self._work.run_id, now)
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
                for page, plan in self._client.pages(report.account, stream.path, params):
                    stage.add(decode(stream.columns, page.items))
                    seen += len(page.items)
                    listing.total, problem = plan.total, plan.problem
                    self._listener.advanced(seen, plan.total)
                    if problem and (attempt < _PASSES or not page.items):
                        break
            except (AccountError, ApiError) as error:
                report.incomplete(str(error))
                return error
            distinct = stage.distinct()
            if not problem and distinct != listing.total:
                problem = f"the list holds {distinct} different rows where the API counts {listing.total}"
            if not problem:
                return None
            log.info("%s: %s (reading %d of %d)", self._client.context, problem, attempt, _PASSES)
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
        for listed in self._warehouse.windows_of(self._work.run_id):
            if (listed["account"], listed["stream"]) == (report.account, stream.parent) and not listed["complete"]:
                report.incomplete(f"the {stream.parent} whose lists these are could not all be listed")
        broken = without_id = 0
        done = Done(len(parents))
        while done.count < done.total and done.failures < FAILURES_IN_A_ROW:
            chunk = parents[done.count : done.count + _PARENTS_A_COMMIT]
            stage = self._warehouse.stage(stream)
            stage.begin_pass()
            complete, empty = self._read_children(report, stream, stage, chunk, done)
            more_broken, more_without_id = stage.broken()
            broken, without_id = broken + more_broken, without_id + more_without_id
            part, scope = Listing(), replace(self._believable, parents=tuple(complete))
            now = datetime.now(UTC)
            changes = self._warehouse.commit(stage, report.account, None, part, scope, self._work.run_id, now)
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
        orphans = self._warehouse.orphans(stream, report.account)
        self._settle(report, stream, gone=dict.fromkeys(orphans, "parent_not_found"))

    def _read_children(
        self, report: StreamReport, stream: Stream, stage: Stage, parents: list[str], done: Done
    ) -> tuple[list[str], list[str]]:
        """Read some parents' lists into the stage; returns the parents whose lists are complete, and those with no rows."""
        complete, empty = [], []
        for listed in self._client.in_parallel(partial(self._list_one, report.account, stream), parents):
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
            self._listener.advanced(done.count, done.total)
            if done.failures >= FAILURES_IN_A_ROW:
                break
        return complete, empty

    def _parents(self, account: str, stream: Stream) -> list[str]:
        """Ids of the live parents whose lists are due."""
        parent = stream_named(stream.parent or "", self._warehouse.streams)
        window = self._work.window
        return self._warehouse.live_ids(
            parent,
            account,
            dates=(window.start, window.end) if window.start and window.end else None,
            changed_since=self._work.report.started_at,
        )

    def _list_one(self, account: str, stream: Stream, parent: str) -> _ChildList:
        """The whole list of one parent; runs on a thread."""
        listed = _ChildList(parent)
        for _attempt in range(_PASSES):
            listed.pages, listed.problem = [], None
            try:
                for page, plan in self._client.pages(
                    account, fill_path(stream.path, parent_id=parent), {}, parallel=False
                ):
                    listed.pages.append(page)
                    listed.total, listed.problem = plan.total, plan.problem
                    if plan.problem and not page.items:  # a total that no pages bear out would be walked without end
                        break
            except NotFound:  # the list of an unknown parent may be empty or missing: the API does not say
                return _ChildList(parent)
            except ScopeMissing:
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
        detail = stream_named(stream.parent or "", self._warehouse.streams).detail_path
        answers = self._client.in_parallel(
            lambda parent: self._ask(report.account, fill_path(detail, id=parent)), suspects
        )
        gone_parents = {
            parent for parent, answer in zip(suspects, answers, strict=True) if isinstance(answer, NotFound)
        }
        if not gone_parents or not self._token_proven(report.account):
            return missing
        gone = [identity for identity in missing if parents[identity] in gone_parents]
        self._settle(report, stream, gone=dict.fromkeys(gone, "parent_not_found"))
        return [identity for identity in missing if parents[identity] not in gone_parents]

    def _ask(self, account: str, path: str) -> dict[str, Any] | ApiError:
        """One row by id, or why not; runs on a thread."""
        try:
            return self._client.read(account, path)
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
        parents = self._warehouse.parents_of(stream, account, missing) if stream.parent else {}
        verdicts = self._ask_for(account, stream, missing, parents, scope)
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
        if verdicts.filter_is_false:
            self._warehouse.put_assumption(account, stream, holds=False, now=now)
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
            zip(missing, self._client.in_parallel(ask, missing), strict=False), start=1
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
        gone: dict[str, str],
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


def _instant(moment: datetime) -> str:
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"
