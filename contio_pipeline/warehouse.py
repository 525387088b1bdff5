"""What goes into the private DuckDB file: one transaction per listing, history, confirmed deletions, state.

What lives here: all SQL that changes rows, and the questions of a sync. What never does: HTTP, JSON coercion, publishing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import duckdb
import pyarrow as pa

from contio_pipeline.privacy import ALONE_BROKEN, Policy
from contio_pipeline.rows import Batch
from contio_pipeline.stage import Stage
from contio_pipeline.streams import (
    ACCOUNTS,
    ASSUMPTIONS,
    CHILD_LISTS,
    DOCUMENT_CONTENTS,
    DOCUMENT_TEXTS,
    LISTED,
    MEETING_ALIASES,
    META,
    QUARANTINE,
    RUNS,
    UNFINISHED,
    WINDOWS,
    Stream,
    Table,
    stream_named,
)
from contio_pipeline.workfile import CLEAN, WorkFile, insert, literal, quoted, with_room

A_DAY = timedelta(days=1)
"""Between a time without a zone and the same time in any zone lie at most 14 hours."""

_A_WEEK = timedelta(days=7)
"""So long a first sync may take in all that is interrupted again and again."""

GO_ON = timedelta(days=28)
"""The first listing of all parents' lists, when interrupted, goes on within so long; after that it begins anew."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Scope:
    """Which stored rows a complete listing should have returned.

    Attributes:
        dates: half-open range of the stream's `date_field`; None expects rows of any date, undated ones too. A day or a
            time without a zone counts when it lies in the range in every zone.
        open_field: rows in which this is false are expected in spite of `dates`, too.
        undated: whether rows that name no day at all are expected in spite of `dates`.
        parents: ids of the parents whose lists were read; None where the stream has none.
        at_most: how many missing rows may be marked; None for any number.
        loss_share: a listing that lacks more than this share of the account's live rows is not believed.
        loss_count: unless it lacks no more rows than this.
    """

    dates: tuple[datetime, datetime] | None = None
    undated: bool = False
    open_field: str | None = None
    parents: tuple[str, ...] | None = None
    at_most: int | None = None
    loss_share: float = 0.5
    loss_count: int = 50


@dataclass(frozen=True, slots=True)
class Window:
    """What a listing was asked for; both ends None for a full sync."""

    start: datetime | None = None
    end: datetime | None = None


@dataclass(slots=True)
class Listing:
    """What is known of one listing, as it goes to `ops.windows`.

    Attributes:
        interrupted: whether it was stopped by something that has nothing to do with its rows, so that it can go on.
        begun_at: since when what was listed is the API's state, where it went on with an earlier listing, or can be gone on with.
    """

    rows: int = 0
    total: int = 0
    requests: int = 0
    complete: bool = True
    reason: str | None = None
    quarantined: int = 0
    missing: int = 0
    outside: int = 0
    interrupted: bool = False
    begun_at: datetime | None = None


@dataclass(slots=True)
class Changes:
    """What a commit did to one stream of one account; `missing` holds ids to confirm."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    unchanged: int = 0
    quarantined: int = 0
    missing: list[str] = field(default_factory=list)

    def add(self, other: Changes) -> None:
        """Sum up; ids of missing rows are joined."""
        self.inserted += other.inserted
        self.updated += other.updated
        self.deleted += other.deleted
        self.unchanged += other.unchanged
        self.quarantined += other.quarantined
        self.missing += other.missing


def _with_room(method: Callable[Concatenate[Warehouse, P], T]) -> Callable[Concatenate[Warehouse, P], T]:
    """What moves whole rows, and can be run again when it failed: see `with_room`."""

    @wraps(method)
    def moves(self: Warehouse, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return with_room(self.connection, lambda: method(self, *args, **kwargs))

    return moves


class Warehouse(WorkFile):
    """What the tables hold: listings, history, deletions, contents, state. See `WorkFile` for opening and closing."""

    # Listings -----------------------------------------------------------------------------------------------------------

    def stage(self, stream: Stream) -> Stage:
        """A place for the rows of one listing of the stream, until they are committed."""
        return Stage(self.connection, stream, self.spill)

    @_with_room
    def commit(
        self,
        stage: Stage,
        account: str,
        window: Window | None,
        listing: Listing,
        scope: Scope,
        run_id: str,
        now: datetime,
    ) -> Changes:
        """Merge what was listed, mark what should have been listed and was not, and record the window: one transaction.

        Args:
            stage: the rows received.
            account: through which they were read.
            window: names the row of `ops.windows`; None records none (rows that were read one by one).
            listing: what is known of it; `rows`, `quarantined`, `outside` and `missing` are filled in here.
            scope: whom a complete listing expects; an incomplete one marks nothing.
            run_id: goes to the history.
            now: goes to the system columns.

        Returns:
            What changed. Rows in `missing` are marked, not gone: `settle` says what became of them.
        """
        stream, table = stage.stream, stage.stream.table.full_name
        payload = [quoted(column.name) for column in stream.payload_columns]
        values = {"account": account, "now": now, "run": run_id}
        stage.flush()
        with self.transaction() as connection:

            def run(sql: str, **more: Any) -> list[tuple[Any, ...]]:
                used = {key: value for key, value in (values | more).items() if f"${key}" in sql}
                return connection.execute(sql, used).fetchall()

            stage.choose(whole=listing.complete)
            moved = "OR t._parent_id IS DISTINCT FROM s._parent_id" if stream.parent else ""
            under = "s._parent_id AS _under," if stream.parent else ""
            run(f"""
                CREATE OR REPLACE TEMP TABLE operations AS
                SELECT s._sequence, t.rowid AS _target, t._first_seen_at, {under}
                    CASE WHEN t.id IS NULL THEN 'insert' WHEN t._deleted_at IS NOT NULL THEN 'undelete'
                        WHEN t._hash <> s._hash THEN 'update' ELSE 'same' END AS _found,
                    _found <> 'same' AS _written,
                    NOT _written AND (t._missing_since IS NOT NULL OR t._window_blind {moved}) AS _seen_again
                FROM chosen s LEFT JOIN {table} t ON t._account = $account AND t.id = s.id""")
            counts = dict(run("SELECT _found, count(*) FROM operations GROUP BY 1"))
            run(f"""
                UPDATE {table} t SET _missing_since = NULL, _window_blind = false{", _parent_id = o._under" if under else ""}
                FROM operations o WHERE o._seen_again AND t.rowid = o._target""")
            replaced = f"FROM {table} WHERE rowid IN (SELECT _target FROM operations WHERE _written)"
            run(f"""
                INSERT INTO {stream.past.full_name} BY NAME
                SELECT * REPLACE (NULL::TIMESTAMPTZ AS _missing_since, NULL::TIMESTAMPTZ AS _deleted_at, NULL AS _gone_reason,
                    false AS _window_blind) {replaced}""")
            run(f"DELETE {replaced}")
            if counts.keys() - {"same"}:
                run(f"""
                    INSERT INTO {table} BY NAME
                    SELECT {", ".join(payload)}, $account AS _account, _found AS _operation, $run AS _run_id,
                        coalesce(_first_seen_at, $now) AS _first_seen_at, $now AS _changed_at, false AS _window_blind
                    FROM {stage.payload()} p JOIN operations o ON o._sequence = p._sequence AND o._written""")
            changes = Changes(
                inserted=counts.get("insert", 0),
                updated=counts.get("update", 0) + counts.get("undelete", 0),
                unchanged=counts.get("same", 0),
            )
            changes.quarantined = self._quarantine(run, stream, scope if listing.complete else None)
            self._remember_aliases(run, stream)
            [(listing.rows,)] = run("SELECT count(*) FROM (SELECT id FROM chosen UNION SELECT key FROM chosen_broken)")
            listing.quarantined = changes.quarantined
            if scope.dates:
                dated = quoted(stream.date_field)
                inside = f"{dated} >= $start AND {dated} <= $end{_or(scope.open_field, 'IS NOT TRUE')}"
                [(listing.outside,)] = run(
                    f"SELECT count(*) FILTER (NOT ({inside})) FROM chosen",
                    start=scope.dates[0],
                    end=scope.dates[1],
                )
            if listing.complete:
                changes.missing = self._mark_missing(run, stream, scope, listing)
                listing.missing = len(changes.missing)
            if listing.complete and scope.parents:
                self._remember_listed(run, stream, scope.parents, listing.begun_at or now)
            if window:
                self._put_window(connection, account, stream.name, window, listing, run_id, now)
        return changes

    def _quarantine(self, run: Run, stream: Stream, listed: Scope | None) -> int:
        """Keep broken rows as received, and let go of those that came intact or, when all were listed, came no more.

        One that something still lies below stays, and so does one that is private: nothing else says so.
        """
        mine = f"DELETE FROM {QUARANTINE.full_name} WHERE _account = $account AND stream = $stream"
        children = (child.table.full_name for child in self.streams if child.parent == stream.name)
        below = [
            f"AND row_key NOT IN (SELECT _parent_id FROM {child} WHERE _account = $account AND _deleted_at IS NULL)"
            for child in children
        ]
        left = run(f"{mine} AND row_key IN (SELECT id FROM chosen)", stream=stream.name)
        if listed and not listed.dates:
            left += run(
                f"""{mine} AND row_key NOT IN (SELECT key FROM chosen_broken)
                    AND (_parent_id IS NULL OR _parent_id IN (SELECT unnest($parents::VARCHAR[])))
                    AND NOT {ALONE_BROKEN} {" ".join(below)}""",
                stream=stream.name,
                parents=list(listed.parents or ()),
            )
        left += run(
            f"""MERGE INTO {QUARANTINE.full_name} q USING chosen_broken b
                ON q._account = $account AND q.stream = $stream AND q.row_key = b.key
                WHEN MATCHED AND (q.raw <> b.raw OR q.reason <> b.reason) THEN UPDATE SET
                    raw = b.raw, reason = b.reason, _run_id = $run
                WHEN NOT MATCHED THEN INSERT (_account, stream, row_key, reason, raw, _parent_id, _first_seen_at, _run_id)
                    VALUES ($account, $stream, b.key, b.reason, b.raw, b._parent_id, $now, $run)
                RETURNING (merge_action = 'UPDATE')::BIGINT""",
            stream=stream.name,
        )
        if any(count for (count,) in left):
            run(f"DELETE FROM {META.full_name} WHERE key = $clean", clean=CLEAN)
        [(count,)] = run("SELECT count(*) FROM chosen_broken")
        return int(count)

    def _remember_aliases(self, run: Run, stream: Stream) -> None:
        if stream.alias_field:
            field_name = quoted(stream.alias_field)
            run(f"""
                MERGE INTO {MEETING_ALIASES.full_name} a
                USING (SELECT id, {field_name} AS target FROM chosen WHERE {field_name} <> '') s
                ON a._account = $account AND a.id = s.id
                WHEN MATCHED AND a.redirect_to_meeting_id <> s.target THEN UPDATE SET
                    redirect_to_meeting_id = s.target, _first_seen_at = $now
                WHEN NOT MATCHED THEN INSERT (_account, id, redirect_to_meeting_id, _first_seen_at)
                    VALUES ($account, s.id, s.target, $now)""")

    def _remember_listed(self, run: Run, stream: Stream, parents: Sequence[str], at: datetime) -> None:
        """Note when the lists of these parents were read whole."""
        these = {"stream": stream.name, "parents": list(parents), "at": at}
        run(
            f"""DELETE FROM {CHILD_LISTS.full_name} WHERE account = $account AND stream = $stream
                AND parent_id IN (SELECT unnest($parents::VARCHAR[]))""",
            **these,
        )
        run(
            f"INSERT INTO {CHILD_LISTS.full_name} SELECT $account, $stream, unnest($parents::VARCHAR[]), $at, $at",
            **these,
        )

    def _mark_missing(self, run: Run, stream: Stream, scope: Scope, listing: Listing) -> list[str]:
        """Mark live rows that the listing should have returned and did not; returns their ids.

        A listing that lacks too many of them is not believed: it becomes incomplete and marks nothing.
        """
        expected = """_account = $account AND _deleted_at IS NULL
            AND id NOT IN (SELECT id FROM chosen UNION SELECT key FROM chosen_broken)"""
        more: dict[str, Any] = {}
        if scope.dates:
            date_field = quoted(stream.date_field)
            unzoned = f"TRY_CAST(_extra ->> '{stream.date_field}' AS TIMESTAMP)"
            expected += f""" AND NOT _window_blind AND (CASE
                WHEN {date_field} IS NOT NULL THEN {date_field} >= $start AND {date_field} < $end
                WHEN {unzoned} IS NOT NULL THEN {unzoned} >= $inner_start AND {unzoned} < $inner_end
                ELSE {str(scope.undated).lower()} END{_or(scope.open_field, "IS FALSE")})"""
            start, end = scope.dates
            more |= {"start": start, "end": end, "inner_start": start + A_DAY, "inner_end": end - A_DAY}
        if scope.parents is not None:
            expected += " AND NOT _window_blind AND _parent_id IN (SELECT unnest($parents::VARCHAR[]))"
            more["parents"] = list(scope.parents)
        at_most = "" if scope.at_most is None else f" LIMIT {scope.at_most}"
        table = stream.table.full_name
        ids = [str(found[0]) for found in run(f"SELECT id FROM {table} WHERE {expected} ORDER BY id{at_most}", **more)]
        [(live,)] = run(f"SELECT count(*) FROM {table} WHERE _account = $account AND _deleted_at IS NULL")
        if len(ids) > max(scope.loss_count, scope.loss_share * live):
            listing.complete = False
            listing.reason = too_many_lost(len(ids), live)
            return []
        if ids:
            run(
                f"""UPDATE {table} SET _missing_since = coalesce(_missing_since, $now)
                    WHERE _account = $account AND id IN (SELECT unnest($ids::VARCHAR[]))""",
                ids=ids,
            )
        return ids

    @_with_room
    def settle(
        self,
        stream: Stream,
        account: str,
        *,
        gone: Mapping[str, str],
        found: Iterable[str] = (),
        blind: Iterable[str] = (),
        run_id: str,
        now: datetime,
    ) -> int:
        """Say what became of missing rows: one transaction.

        Args:
            stream: whose rows.
            account: through which they were asked for.
            gone: id -> reason; these get `_deleted_at`.
            found: ids of rows that exist after all.
            blind: ids of rows that exist, with a date that the listing should have covered.
            run_id: goes to the history.
            now: goes to `_deleted_at`.

        Returns:
            How many rows are gone that were not before.
        """
        table = stream.table.full_name
        mine = "_account = ? AND id IN (SELECT unnest(?::VARCHAR[]))"
        with self.transaction() as connection:
            for ids, value in ((list(found), "_window_blind"), (list(blind), "true")):
                if ids:
                    connection.execute(
                        f"UPDATE {table} SET _missing_since = NULL, _window_blind = {value} WHERE {mine}",
                        [account, ids],
                    )
            if not gone:
                return 0
            live, count = f"{mine} AND _deleted_at IS NULL", 0
            for reason in sorted(set(gone.values())):
                ids = [identity for identity, why in gone.items() if why == reason]
                [(went,)] = connection.execute(
                    f"""INSERT INTO {stream.past.full_name} BY NAME
                        SELECT * REPLACE ('delete' AS _operation, ? AS _run_id, ? AS _changed_at, ? AS _deleted_at,
                            ? AS _gone_reason, NULL::TIMESTAMPTZ AS _missing_since) FROM {table} WHERE {live}""",
                    [run_id, now, now, reason, account, ids],
                ).fetchall()
                connection.execute(
                    f"UPDATE {table} SET _deleted_at = ?, _gone_reason = ?, _missing_since = NULL WHERE {live}",
                    [now, reason, account, ids],
                )
                count += int(went)
        return count

    def remember_alias(self, account: str, identity: str, target: str, now: datetime) -> None:
        """Record that one meeting redirects to another."""
        with self.transaction() as connection:
            connection.execute(
                f"DELETE FROM {MEETING_ALIASES.full_name} WHERE _account = ? AND id = ?", [account, identity]
            )
            connection.execute(
                f"INSERT INTO {MEETING_ALIASES.full_name} VALUES (?, ?, ?, ?)",
                [account, identity, target, now],
            )

    def explain_lost_access(self, accounts: Sequence[str], since: datetime) -> None:
        """Rows confirmed to be gone since then that another of these accounts still reads are not deleted: access was lost.

        Args:
            accounts: those that were synced just now; of others nobody knows whether they still read a row.
            since: when that sync began.
        """
        for stream in self.streams:
            gone = "WHERE _deleted_at >= $1 AND _gone_reason = 'not_found'"
            if not self.query(f"SELECT 1 FROM {stream.table.full_name} {gone} LIMIT 1", [since]):
                continue
            with self.transaction() as connection:
                for table in (stream.table, stream.past):
                    connection.execute(
                        f"""UPDATE {table.full_name} SET _gone_reason = 'access_lost' {gone} AND id IN (
                            SELECT id FROM {stream.table.full_name} WHERE _deleted_at IS NULL AND _missing_since IS NULL
                            AND _account IN (SELECT unnest($2::VARCHAR[])))""",
                        [since, list(accounts)],
                    )

    def put_window(
        self, account: str, stream: str, window: Window, listing: Listing, run_id: str, now: datetime
    ) -> None:
        """Replace the window's row in `ops.windows`."""
        with self.transaction() as connection:
            self._put_window(connection, account, stream, window, listing, run_id, now)

    def _put_window(
        self,
        connection: duckdb.DuckDBPyConnection,
        account: str,
        stream: str,
        window: Window,
        listing: Listing,
        run_id: str,
        now: datetime,
    ) -> None:
        complete = listing.complete and not listing.missing
        this = f"""FROM {WINDOWS.full_name} WHERE account = ? AND stream = ?
            AND window_start IS NOT DISTINCT FROM ?::TIMESTAMPTZ AND window_end IS NOT DISTINCT FROM ?::TIMESTAMPTZ"""
        key = [account, stream, window.start, window.end]
        before = next(iter(self.query(f"SELECT complete_at, begun_at {this}", key)), {})
        connection.execute(f"DELETE {this}", key)
        row = {
            "account": account,
            "stream": stream,
            "window_start": window.start,
            "window_end": window.end,
            "rows": listing.rows,
            "total": listing.total,
            "requests": listing.requests,
            "complete": complete,
            "complete_at": (listing.begun_at or now) if complete else before.get("complete_at"),
            "begun_at": (listing.begun_at or before.get("begun_at")) if listing.interrupted else None,
            "reason": listing.reason,
            "quarantined": listing.quarantined,
            "missing": listing.missing,
            "outside": listing.outside,
            "listed_at": now,
            "run_id": run_id,
        }
        insert(connection, WINDOWS, row)

    # Questions of a sync ------------------------------------------------------------------------------------------------

    def live_ids(
        self,
        stream: Stream,
        account: str,
        *,
        dates: tuple[datetime, datetime] | None,
        changed_since: datetime,
    ) -> list[str]:
        """Ids of live rows, and of those that are there but too broken to be stored, sorted.

        With `dates` only those dated inside or changed since.
        """
        live = f"SELECT id FROM {stream.table.full_name} WHERE _account = $account AND _deleted_at IS NULL"
        broken = f"""SELECT row_key FROM {QUARANTINE.full_name}
            WHERE _account = $account AND stream = $stream AND row_key <> sha256(raw)"""
        values: dict[str, Any] = {"account": account, "stream": stream.name}
        if dates:
            date_field = quoted(stream.date_field)
            live += f" AND (({date_field} >= $start AND {date_field} < $end) OR _changed_at >= $since)"
            broken += " AND _first_seen_at >= $since"
            values |= {"start": dates[0], "end": dates[1], "since": changed_since}
        sql = f"{live} UNION {broken} ORDER BY 1"
        return [str(found[0]) for found in self.connection.execute(sql, values).fetchall()]

    def drop_old_windows(self) -> None:
        """Let go of listings of days that a full listing, complete a month later, made superfluous: each night adds some."""
        with self.transaction() as connection:
            connection.execute(
                f"""DELETE FROM {WINDOWS.full_name} w WHERE window_start IS NOT NULL AND EXISTS (
                        SELECT 1 FROM {WINDOWS.full_name} f WHERE f.account = w.account AND f.stream = w.stream
                        AND f.window_start IS NULL AND f.complete_at > w.listed_at + INTERVAL 30 DAY)"""
            )

    def begin_or_go_on(self, account: str, stream: Stream, run_id: str, now: datetime) -> datetime:
        """Since when the full listing of all parents' lists is under way: an earlier one that was interrupted goes on.

        The first one goes on for weeks; who lists all again wants what is there now. From now on it counts as not complete.
        """
        begun_at = now
        for row in self.windows_of_stream(account, stream):
            lasts = A_DAY if row["complete_at"] else GO_ON
            if row["window_start"] is None and row["begun_at"] and timedelta(0) <= now - row["begun_at"] < lasts:
                begun_at = row["begun_at"]
        why = "it was interrupted: sync again, which goes on"
        listing = Listing(complete=False, reason=why, interrupted=True, begun_at=begun_at)
        self.put_window(account, stream.name, Window(), listing, run_id, now)
        return begun_at

    def due_parents(
        self,
        stream: Stream,
        account: str,
        *,
        now: datetime,
        before: datetime | None = None,
        dates: tuple[datetime, datetime] | None = None,
        most: int = 0,
    ) -> list[str]:
        """Ids of the parents whose lists are to be read, sorted: see `due_lists`.

        Args:
            stream: with a list for each parent row.
            account: whose.
            now: as of when.
            before: those, too, that were not read since then.
            dates: those, too, whose own date lies in this range.
            most: those, too, that are old, the most overdue first; no more than so many.
        """
        parent = stream_named(stream.parent or "", self.streams)
        sql = due_lists(stream, parent, account, now=now, before=before, dates=dates, most=most)
        return [str(found[0]) for found in self.connection.execute(sql).fetchall()]

    def note_tried(self, stream: Stream, account: str, parents: Sequence[str], now: datetime) -> None:
        """Let parents whose lists failed wait for their next turn, so that others have theirs."""
        if parents:
            with self.transaction() as connection:
                connection.execute(
                    f"""UPDATE {CHILD_LISTS.full_name} SET tried_at = ?
                        WHERE account = ? AND stream = ? AND parent_id IN (SELECT unnest(?::VARCHAR[]))""",
                    [now, account, stream.name, list(parents)],
                )

    def was_listed(self, stream: Stream, account: str) -> bool:
        """Whether a full listing of it was ever complete."""
        rows = self.windows_of_stream(account, stream)
        return any(row["window_start"] is None and row["complete_at"] for row in rows)

    def live_rows(self, stream: Stream, account: str) -> int:
        """How many rows are stored that are not gone."""
        sql = f"SELECT count(*) FROM {stream.table.full_name} WHERE _account = ? AND _deleted_at IS NULL"
        [(count,)] = self.connection.execute(sql, [account]).fetchall()
        return int(count)

    def named_elsewhere(self, stream: Stream, account: str, most: int) -> list[str]:
        """Some ids of the stream's rows that live rows of the account's other streams name."""
        found: set[str] = set()
        for other in self.streams:
            for column in (column for column, named in other.names if named == stream.name):
                sql = f"""SELECT DISTINCT {quoted(column)} FROM {other.table.full_name}
                    WHERE _account = ? AND _deleted_at IS NULL AND {quoted(column)} <> '' LIMIT {most}"""
                found.update(str(row[0]) for row in self.connection.execute(sql, [account]).fetchall())
        return sorted(found)[:most]

    def open_ids(self, stream: Stream, account: str, field: str) -> list[str]:
        """Ids of live rows that are not done."""
        sql = f"""SELECT id FROM {stream.table.full_name}
            WHERE _account = ? AND _deleted_at IS NULL AND NOT _window_blind AND {quoted(field)} IS FALSE"""
        return [str(found[0]) for found in self.connection.execute(sql, [account]).fetchall()]

    def among(self, stream: Stream, account: str, ids: Iterable[str], *, missing: bool = False) -> set[str]:
        """Those of the rows that are still missing, or else those that lists are known not to return."""
        what = "_missing_since IS NOT NULL" if missing else "_window_blind"
        sql = f"""SELECT id FROM {stream.table.full_name}
            WHERE _account = ? AND id IN (SELECT unnest(?::VARCHAR[])) AND _deleted_at IS NULL AND {what}"""
        return {str(found[0]) for found in self.connection.execute(sql, [account, list(ids)]).fetchall()}

    def parents_of(self, stream: Stream, account: str, ids: Sequence[str]) -> dict[str, str]:
        """Id -> id of the parent under which it was listed."""
        sql = f"SELECT id, _parent_id FROM {stream.table.full_name} WHERE _account = ? AND id IN (SELECT unnest(?::VARCHAR[]))"
        return dict(self.connection.execute(sql, [account, list(ids)]).fetchall())

    def orphans(self, stream: Stream, account: str) -> list[str]:
        """Ids of live rows whose parent is confirmed to be gone."""
        parent = stream_named(stream.parent or "", self.streams).table.full_name
        sql = f"""SELECT c.id FROM {stream.table.full_name} c JOIN {parent} p ON p._account = c._account AND p.id = c._parent_id
            WHERE c._account = ? AND c._deleted_at IS NULL AND p._deleted_at IS NOT NULL ORDER BY c.id"""
        return [str(found[0]) for found in self.connection.execute(sql, [account]).fetchall()]

    def contents_state(self, stream: Stream, account: str) -> list[dict[str, Any]]:
        """Every live document that the account's lists return, with what is known of its bytes (NULL where nothing is)."""
        version = f"d.{quoted(stream.version_field)}" if stream.version_field else "NULL::TIMESTAMPTZ"
        format_field = f"d.{quoted(stream.format_field)}" if stream.format_field else "NULL"
        return self.query(
            f"""SELECT d.id, d._parent_id AS parent_id, d._hash AS row_hash, d.{quoted(stream.status_field or "")} AS status,
                {version} AS changed, {format_field} AS format, c.state, c._version AS stored_version, c.sha256, c.size_bytes,
                c.content_type, c.filename, c.fetched_at
                FROM {stream.table.full_name} d
                LEFT JOIN {DOCUMENT_CONTENTS.full_name} c ON c._account = d._account AND c.id = d.id
                WHERE d._account = ? AND d._deleted_at IS NULL AND NOT d._window_blind ORDER BY d.id""",
            [account],
        )

    def stored_elsewhere(self, stream: Stream, account: str) -> dict[tuple[str, str], dict[str, Any]]:
        """(id, version) -> the row of `raw.document_contents` of another account that stored the same bytes."""
        rows = self.query(
            f"""SELECT * EXCLUDE (_account) FROM {DOCUMENT_CONTENTS.full_name} WHERE _account <> $1 AND state = 'stored'
                AND id IN (SELECT id FROM {stream.table.full_name} WHERE _account = $1)""",
            [account],
        )
        return {(row["id"], row["_version"]): row for row in rows}

    def digests(self) -> list[str]:
        """The hashes of all documents that rows refer to, sorted."""
        sql = f"SELECT DISTINCT sha256 FROM {DOCUMENT_CONTENTS.full_name} WHERE sha256 IS NOT NULL ORDER BY 1"
        return [str(digest) for (digest,) in self.connection.execute(sql).fetchall()]

    def untold_texts(self, most: int, too_large: str) -> list[tuple[str, int]]:
        """Hash and size of stored contents whose text is not known, or by another limit than `most` bytes.

        With `too_large` begins the reason of those that were larger.
        """
        sql = f"""SELECT DISTINCT c.sha256, c.size_bytes FROM {DOCUMENT_CONTENTS.full_name} c
            LEFT JOIN {DOCUMENT_TEXTS.full_name} t ON t.sha256 = c.sha256
            WHERE c.state = 'stored' AND (t.sha256 IS NULL OR (t.text IS NOT NULL AND t.size_bytes > $1)
                OR (t.text IS NULL AND t.size_bytes <= $1 AND starts_with(t.reason, $2)))
            ORDER BY ALL"""
        return self.connection.execute(sql, [most, too_large]).fetchall()

    def run(self, run_id: str) -> dict[str, Any] | None:
        """The run's row of `ops.runs`, if a part of it has begun."""
        return next(iter(self.query(f"SELECT * FROM {RUNS.full_name} WHERE run_id = ?", [run_id])), None)

    def interrupted_run(self, now: datetime) -> str | None:
        """The id of the last run, if it was a full sync that was cut off lately."""
        for row in self.query(f"SELECT * FROM {RUNS.full_name} ORDER BY started_at DESC LIMIT 1"):
            lately = timedelta(0) <= now - row["started_at"] < _A_WEEK
            if lately and row["finished_at"] is None and row["window_start"] is None:
                return str(row["run_id"])
        return None

    def windows_of(self, run_id: str, since: datetime | None = None) -> list[dict[str, Any]]:
        """What the run has listed so far, and what anybody has listed since then: rows of `ops.windows`."""
        sql = f"SELECT * FROM {WINDOWS.full_name} WHERE run_id = ? OR listed_at > ? ORDER BY listed_at"
        return self.query(sql, [run_id, since])

    def windows_of_stream(self, account: str, stream: Stream) -> list[dict[str, Any]]:
        """All that is known of listing one stream of one account: rows of `ops.windows`."""
        return self.query(f"SELECT * FROM {WINDOWS.full_name} WHERE account = ? AND stream = ?", [account, stream.name])

    def look(self, table: Table, rows: int, policy: Policy) -> tuple[int, list[dict[str, Any]]]:
        """How many live rows the table holds, and some of those that changed last, as the policy lets them be seen."""
        columns = {column.name for column in table.columns}
        live = "_deleted_at IS NULL" if "_deleted_at" in columns else "true"
        changed = "_changed_at" if "_changed_at" in columns else table.month_field
        [(count,)] = self.connection.execute(f"SELECT count(*) FROM {table.full_name} WHERE {live}").fetchall()
        policy = find_private_ids(self.connection, policy)
        newest = f"ORDER BY {changed} DESC NULLS LAST, id LIMIT {rows}"
        return int(count), self.query(f"{policy.select(table)} AND {live} {newest}")

    def rows_by_day(self, table: Table, window: Window) -> dict[str, int]:
        """How many live rows of the window the table holds: UTC day -> rows, days without any left out."""
        dated = f"{quoted(table.month_field or '')}"
        found = self.connection.execute(
            f"""SELECT strftime({dated} AT TIME ZONE 'UTC', '%Y-%m-%d'), count(*) FROM {table.full_name}
                WHERE _deleted_at IS NULL AND {dated} >= ? AND {dated} < ? GROUP BY 1""",
            [window.start, window.end],
        ).fetchall()
        return dict(found)

    # Everything else ----------------------------------------------------------------------------------------------------

    def put_profile(self, account: str, batch: Batch, now: datetime) -> None:
        """Store the profile of the account's user, when it changed."""
        [row] = batch.rows.to_pylist()
        with self.transaction() as connection:
            tells = Policy().tells("_extra")  # a profile has no history to tell that it was private
            told = f"SELECT _hash, _first_seen_at, {tells} AS tells FROM {ACCOUNTS.full_name} WHERE _account = ?"
            found = self.query(told, [account])
            if found and found[0]["_hash"] == row["_hash"]:
                return
            if found and found[0]["tells"]:
                connection.execute(f"DELETE FROM {META.full_name} WHERE key = ?", [CLEAN])
            connection.execute(f"DELETE FROM {ACCOUNTS.full_name} WHERE _account = ?", [account])
            first = found[0]["_first_seen_at"] if found else now
            insert(connection, ACCOUNTS, row | {"_account": account, "_first_seen_at": first, "_changed_at": now})

    def put_contents(self, account: str, contents: Sequence[Mapping[str, Any]]) -> None:
        """Replace the rows of `raw.document_contents` for these ids: columns as declared, without `_account`."""
        with self.transaction() as connection:
            connection.execute(
                f"DELETE FROM {DOCUMENT_CONTENTS.full_name} WHERE _account = ? AND id IN (SELECT unnest(?::VARCHAR[]))",
                [account, [content["id"] for content in contents]],
            )
            for content in contents:
                insert(connection, DOCUMENT_CONTENTS, {**content, "_account": account})

    @_with_room
    def put_texts(self, texts: Sequence[Mapping[str, Any]]) -> None:
        """Write rows of `raw.document_texts` (columns as declared), in place of those of the same contents."""
        if not texts:
            return
        with self.transaction() as connection:
            digests = [text["sha256"] for text in texts]
            connection.execute(
                f"DELETE FROM {DOCUMENT_TEXTS.full_name} WHERE sha256 IN (SELECT unnest(?::VARCHAR[]))", [digests]
            )
            for text in texts:
                insert(connection, DOCUMENT_TEXTS, text)

    def drop_old_texts(self) -> None:
        """Let go of texts of contents that no document has any more."""
        orphans = f"""FROM {DOCUMENT_TEXTS.full_name} WHERE sha256 NOT IN (
            SELECT sha256 FROM {DOCUMENT_CONTENTS.full_name} WHERE sha256 IS NOT NULL)"""
        if self.query(f"SELECT 1 {orphans} LIMIT 1"):
            with self.transaction() as connection:
                connection.execute(f"DELETE {orphans}")

    def assumption(self, stream: Stream, assumption: str, account: str | None = None) -> dict[str, Any] | None:
        """What was last observed of the stream, through this account or any; a row of `ops.assumptions`."""
        sql = f"""SELECT * FROM {ASSUMPTIONS.full_name} WHERE stream = $1 AND assumption = $2 AND account = coalesce($3, account)
            ORDER BY observed_at DESC LIMIT 1"""
        return next(iter(self.query(sql, [stream.name, assumption, account])), None)

    def put_assumption(
        self, account: str, stream: Stream, assumption: str, *, holds: bool, detail: str, now: datetime
    ) -> None:
        """Record what was observed."""
        with self.transaction() as connection:
            connection.execute(
                f"DELETE FROM {ASSUMPTIONS.full_name} WHERE account = ? AND stream = ? AND assumption = ?",
                [account, stream.name, assumption],
            )
            row = {"account": account, "stream": stream.name, "assumption": assumption}
            insert(connection, ASSUMPTIONS, row | {"holds": holds, "detail": detail, "observed_at": now})

    def put_listed(self, account: str, stream: Stream, hashes: Mapping[str, str]) -> None:
        """Remember what the list held of rows that were read by id: id -> hash."""
        if not hashes:
            return
        with self.transaction() as connection:
            connection.register("_listed_in", pa.table({"id": list(hashes), "listed_hash": list(hashes.values())}))
            connection.execute(
                f"DELETE FROM {LISTED.full_name} WHERE account = ? AND stream = ? AND id IN (SELECT id FROM _listed_in)",
                [account, stream.name],
            )
            connection.execute(
                f"INSERT INTO {LISTED.full_name} SELECT ?, ?, id, listed_hash FROM _listed_in", [account, stream.name]
            )
            connection.unregister("_listed_in")

    def use_application(self, client_id: str) -> bool:
        """Note through which application the API is read.

        When it is another than before, rows that only the other one sees are not gone: no list is expected to return them
        until one does. What the other one listed says nothing of what this one sees, so all is to be listed.

        Returns:
            Whether it is another.
        """
        application = hashlib.sha256(client_id.encode()).hexdigest()
        with self.transaction() as connection:
            before = self.meta("application")
            if before == application:
                return False
            for stream in self.streams:
                if before and stream.app_scoped:
                    connection.execute(
                        f"""UPDATE {stream.table.full_name} SET _window_blind = true, _missing_since = NULL
                            WHERE _deleted_at IS NULL"""
                    )
                    connection.execute(f"DELETE FROM {CHILD_LISTS.full_name} WHERE stream = ?", [stream.name])
                    connection.execute(
                        f"UPDATE {WINDOWS.full_name} SET begun_at = NULL WHERE stream = ?", [stream.name]
                    )
            self.put_meta("application", application)
        return before is not None

    def forget_listings(self, names: Sequence[str]) -> None:
        """Let go of what is known of listing these streams, which are not listed any more: their rows stay as they were seen."""
        these = "(SELECT unnest(?::VARCHAR[]))"
        if self.query(f"SELECT 1 FROM {WINDOWS.full_name} WHERE stream IN {these} LIMIT 1", [list(names)]):
            with self.transaction() as connection:
                for table in (WINDOWS, CHILD_LISTS):
                    connection.execute(f"DELETE FROM {table.full_name} WHERE stream IN {these}", [list(names)])

    def use_range(self, dates: tuple[datetime, datetime]) -> bool:
        """Note the range of dates that is configured for lists that need one; returns whether it is another than before."""
        text = " ".join(moment.isoformat() for moment in dates)
        with self.transaction():
            another = self.meta("calendar_range") not in {None, text}
            self.put_meta("calendar_range", text)
        return another

    def put_run(self, run: Mapping[str, Any]) -> None:
        """Write the sync's row of `ops.runs`, or replace it."""
        with self.transaction() as connection:
            connection.execute(f"DELETE FROM {RUNS.full_name} WHERE run_id = ?", [run["run_id"]])
            insert(connection, RUNS, run)


def too_many_lost(lost: int, live: int) -> str:
    """Why a listing is not believed that lacks so many of the live rows."""
    return (
        f"the listing lacks {lost} of {live} known rows, which looks like an outage rather than a clean-out: nothing "
        "was marked as gone; look at the account in Contio, then sync again, with --accept-losses if they are gone indeed"
    )


def due_lists(
    stream: Stream,
    parent: Stream,
    account: str,
    *,
    now: datetime,
    before: datetime | None = None,
    dates: tuple[datetime | None, datetime | None] | None = None,
    most: int = 0,
) -> str:
    """SQL: the ids of the parents whose lists are to be read, sorted; see `Warehouse.due_parents`.

    A list has to be read that never was (or in the future: the clock was set back), whose parent changed since, that lacked a row
    or, unless all lists are to be read, has an unfinished document. Others may be as old as a quarter of the time between their
    parent's date and now, for lists change most around a meeting (docs/decisions/0017).
    """
    mine, at, dated = f"= {literal(account)}", _instant(now), quoted(parent.date_field)
    unsettled = ["_missing_since IS NOT NULL"]
    if stream.status_field and not before:
        unsettled.append(f"{quoted(stream.status_field)} IN ({', '.join(map(literal, UNFINISHED))})")
    also = [f"listed_at < {_instant(before)}"] if before else []
    if dates and dates[0] and dates[1]:
        also.append(f"(dated >= {_instant(dates[0])} AND dated < {_instant(dates[1])})")
    due = " OR ".join(
        ["listed_at IS NULL", f"listed_at > {at}", "changed_at > listed_at", "id IN (FROM unsettled)", *also]
    )
    may_be = f"coalesce(abs(epoch({at}) - epoch(dated)) / 4, {GO_ON.total_seconds()})"
    return f"""
        WITH parents AS (
            SELECT id, {dated} AS dated, _changed_at AS changed_at FROM {parent.table.full_name}
            WHERE _account {mine} AND _deleted_at IS NULL
            UNION ALL
            SELECT row_key, NULL, NULL FROM {QUARANTINE.full_name}
            WHERE _account {mine} AND stream = {literal(parent.name)} AND row_key <> sha256(raw)
            AND row_key NOT IN (SELECT id FROM {parent.table.full_name} WHERE _account {mine} AND _deleted_at IS NULL)
        ), listed AS (
            SELECT * FROM {CHILD_LISTS.full_name} WHERE account {mine} AND stream = {literal(stream.name)}
        ), unsettled AS (
            SELECT _parent_id FROM {stream.table.full_name}
            WHERE _account {mine} AND _deleted_at IS NULL AND ({" OR ".join(unsettled)})
        ), aged AS (
            SELECT id, coalesce({due}, false) AS due,
                epoch({at} - tried_at) / greatest({A_DAY.total_seconds()}, {may_be}) AS overdue
            FROM parents LEFT JOIN listed ON parent_id = id
        )
        SELECT id FROM aged WHERE due
        UNION (SELECT id FROM aged WHERE NOT due AND overdue >= 1 ORDER BY overdue DESC, id LIMIT {most})
        ORDER BY 1"""


def find_private_ids(connection: duckdb.DuckDBPyConnection, policy: Policy) -> Policy:
    """Make the table `private_ids`, which the policy's statements read, in the database in use.

    Returns:
        The policy, which looks at that table only where there is something in it.
    """
    for statement in policy.private_ids():
        with_room(connection, partial(connection.execute, statement))
        if not connection.execute("SELECT 1 FROM private_ids LIMIT 1").fetchall():
            return replace(policy, some_private=False)
    return policy


def _instant(moment: datetime) -> str:
    return f"TIMESTAMPTZ {literal(moment.isoformat())}"


def _or(field_name: str | None, holds: str) -> str:
    return f" OR {quoted(field_name)} {holds}" if field_name else ""


Run = Callable[..., list[tuple[Any, ...]]]
"""Runs one statement with the bound values that it names."""
