"""Rows that are to be erased: chosen in a temporary table, then deleted.

What lives here: the SQL that finds what belongs to an account or mentions a person, and all that hangs on it. What never
does: the order of an erasure, files, tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from contio_pipeline.streams import (
    ACCOUNTS,
    CHILD_LISTS,
    DOCUMENT_CONTENTS,
    DOCUMENT_TEXTS,
    LISTED,
    MEETING_ALIASES,
    META,
    QUARANTINE,
    Stream,
    Table,
    tables,
)
from contio_pipeline.workfile import WorkFile, quoted

_WHOLE = "FROM doomed_ids WHERE whole AND stream"
"""The ids of a stream whose current rows are to be erased, and with them what refers to them."""


class Erasure:
    """What is to be erased, for as long as one transaction lasts: choose, count, `erase`."""

    def __init__(self, file: WorkFile) -> None:
        self._file = file
        self._tables = [table for table in tables(file.streams) if table is not META and not table.shows]
        file.connection.execute("CREATE OR REPLACE TEMP TABLE doomed (name VARCHAR, place BIGINT)")
        file.connection.execute(
            "CREATE OR REPLACE TEMP TABLE doomed_ids (stream VARCHAR, account VARCHAR, id VARCHAR, whole BOOLEAN)"
        )

    # Who ----------------------------------------------------------------------------------------------------------------

    def accounts(self) -> set[str]:
        """The names of all accounts of which anything is stored."""
        parts = [
            f"SELECT {owner} FROM {table.full_name}"
            for table in self._tables
            for owner in ("_account", "account")
            if _has(table, owner)
        ]
        return {str(name) for (name,) in self._run(" UNION ".join(parts)) if name is not None}

    def profiles(self) -> list[dict[str, Any]]:
        """`_account`, `id` and `email` of each account's user, as far as they were read."""
        return self._file.query(f"SELECT _account, id, email FROM {ACCOUNTS.full_name}")

    # What ---------------------------------------------------------------------------------------------------------------

    def choose_account(self, account: str) -> None:
        """Everything that was read through the account, and what is known of reading it."""
        for table in self._tables:
            for owner in ("_account", "account"):
                if _has(table, owner):
                    self._choose(table, f"t.{owner} = $account", account=account)

    def choose_mentions(self, pattern: str) -> None:
        """Every row with a text in which the pattern (RE2) is found, and what must not stay without it.

        Of a row that mentions it now or ever did, the history goes. The row itself goes when it mentions it now, and then with
        it: its children and theirs, contents of documents, redirects, broken versions.
        """
        streams = self._file.streams
        of_streams = {table.full_name for stream in streams for table in (stream.table, stream.past)}
        for stream in streams:
            self._choose_ids(stream, _mentions, pattern=pattern)
        for stream in streams:  # a parent is declared before its children
            if stream.parent:
                self._choose_ids(
                    stream,
                    lambda _table: f"(t._account, t._parent_id) IN (SELECT account, id {_WHOLE} = $parent)",
                    parent=stream.parent,
                )
        for stream in streams:
            self._choose_by_ids(stream)
        for table in self._tables:
            if table.full_name not in of_streams:
                self._choose(table, _mentions(table), pattern=pattern)

    def _choose_ids(self, stream: Stream, where: Callable[[Table], str], **values: Any) -> None:
        """Ids of the stream's rows by a condition on the row itself, or on a version of it in the history."""
        for table, whole in ((stream.table, True), (stream.past, False)):
            self._run(
                f"""INSERT INTO doomed_ids SELECT DISTINCT $stream, t._account, t.id, {whole}
                    FROM {table.full_name} t WHERE {where(table)}""",
                **{"stream": stream.name, **values},
            )

    def _choose_by_ids(self, stream: Stream) -> None:
        """The rows of the ids that were chosen, and those of other tables that refer to them."""
        chosen = f"(SELECT account, id {_WHOLE} = $stream)"
        mine = f"(t._account, t.id) IN {chosen}"
        self._choose(stream.table, mine, stream=stream.name)
        # What says that a row went stays with a row that stays: it is a copy of it.
        stays = f"""t._operation = 'delete' AND NOT ({mine}) AND (t._account, t.id, t._hash, t._deleted_at) IN (
            SELECT _account, id, _hash, _deleted_at FROM {stream.table.full_name})"""
        self._choose(stream.past, f"{mine.replace('whole AND ', '')} AND NOT ({stays})", stream=stream.name)
        broken = f"t.stream = $stream AND (t._account, t.row_key) IN {chosen}"
        self._choose(QUARANTINE, broken, stream=stream.name)
        self._choose(LISTED, f"t.stream = $stream AND (t.account, t.id) IN {chosen}", stream=stream.name)
        if stream.parent:
            self._choose(
                CHILD_LISTS,
                f"t.stream = $stream AND (t.account, t.parent_id) IN (SELECT account, id {_WHOLE} = $parent)",
                stream=stream.name,
                parent=stream.parent,
            )
            below = f"t.stream = $stream AND (t._account, t._parent_id) IN (SELECT account, id {_WHOLE} = $parent)"
            self._choose(QUARANTINE, below, stream=stream.name, parent=stream.parent)
        if stream.content_path:
            self._choose(DOCUMENT_CONTENTS, mine, stream=stream.name)
        if stream.alias_field:
            to_it = f"(t._account, t.redirect_to_meeting_id) IN {chosen}"
            self._choose(MEETING_ALIASES, f"{mine} OR {to_it}", stream=stream.name)

    def choose_contents(self, digests: Iterable[str]) -> None:
        """What is known of documents with these bytes."""
        self._choose(DOCUMENT_CONTENTS, "t.sha256 IN (SELECT unnest($digests::VARCHAR[]))", digests=list(digests))

    def choose_texts(self) -> None:
        """The texts of contents that no row refers to which is not chosen."""
        left = list(self.digests_left())
        self._choose(DOCUMENT_TEXTS, "t.sha256 NOT IN (SELECT unnest($left::VARCHAR[]))", left=left)

    def _choose(self, table: Table, where: str, **values: Any) -> None:
        self._run(
            f"INSERT INTO doomed SELECT $name, t.rowid FROM {table.full_name} t WHERE {where}",
            **{"name": table.full_name, **values},
        )

    # And then -----------------------------------------------------------------------------------------------------------

    def rows(self) -> dict[str, int]:
        """Table -> how many of its rows are chosen; tables without any left out."""
        return dict(self._run("SELECT name, count(DISTINCT place) FROM doomed GROUP BY 1 ORDER BY 1"))

    def live(self) -> int:
        """How many of the chosen rows are live: the API is likely to send them again."""
        return sum(
            int(count)
            for stream in self._file.streams
            for (count,) in self._run(
                f"SELECT count(*) FROM {stream.table.full_name} t WHERE t._deleted_at IS NULL AND {_chosen(stream.table)}"
            )
        )

    def digests_left(self) -> set[str]:
        """The hashes of the documents that a row refers to which is not chosen."""
        sql = f"""SELECT DISTINCT sha256 FROM {DOCUMENT_CONTENTS.full_name} t
            WHERE sha256 IS NOT NULL AND NOT {_chosen(DOCUMENT_CONTENTS)}"""
        return {str(digest) for (digest,) in self._run(sql)}

    def erase(self) -> None:
        """Delete what was chosen."""
        for table in self._tables:
            self._run(f"DELETE FROM {table.full_name} t WHERE {_chosen(table)}")

    def _run(self, sql: str, **values: Any) -> list[tuple[Any, ...]]:
        return self._file.connection.execute(sql, values).fetchall()


def _has(table: Table, name: str) -> bool:
    return any(column.name == name for column in table.columns)


def _mentions(table: Table) -> str:
    texts = [column.name for column in table.columns if column.kind in {"text", "json"}]
    return " OR ".join(f"regexp_matches(t.{quoted(name)}::VARCHAR, $pattern)" for name in texts)


def _chosen(table: Table) -> str:
    return f"t.rowid IN (SELECT place FROM doomed WHERE name = '{table.full_name}')"
