"""Rows of one listing before they are committed: what decides in a temporary table, the whole of them in files.

What lives here: collecting rows, counting them, choosing one of each id. What never does: the tables that stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from pyarrow.parquet import write_table

from contio_pipeline.errors import StorageError
from contio_pipeline.rows import Batch
from contio_pipeline.streams import LISTED, Stream
from contio_pipeline.workfile import SQL_TYPES, column_list, literal, quoted, with_room

_FLUSH_ROWS = 5000
_FLUSH_BYTES = 8 * 2**20


class Stage:
    """Rows of one listing until they are committed; memory does not grow with the listing.

    Of each row what decides (id, hash, dates) is in the temporary table `staged`, the whole of it in Parquet files, by
    `_sequence`: DuckDB reads those in little memory, while a table as large it would have to put aside.

    A list is read in passes: again when it changed meanwhile, or one part of a range after the other. A complete listing is
    the passes that were accepted, an incomplete one is everything that was seen.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, stream: Stream, folder: Path) -> None:
        """In the folder the rows wait; it is private, and what is in it may be lost."""
        self.stream = stream
        self._connection = connection
        self._pass = 0
        self._accepted: list[int] = []
        self._sequence = 0
        self._waiting: list[pa.RecordBatch] = []
        self._parents_waiting: list[str | None] = []
        self._rows_waiting = self._bytes_waiting = 0
        self._folder = folder
        for path in folder.glob("payload-*"):  # of the stage before
            path.unlink()
        self._paths: list[str] = []
        fields = (stream.date_field, stream.version_field, stream.alias_field, stream.open_field)
        names = {"id", "_hash", "_parent_id", *fields}
        deciding = [column for column in stream.payload_columns if column.name in names]
        self._deciding = [column.name for column in deciding]
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE staged ({column_list(deciding)}, _pass BIGINT, _sequence BIGINT)"
        )
        connection.execute(
            """CREATE OR REPLACE TEMP TABLE staged_broken
               (key VARCHAR, has_id BOOLEAN, reason VARCHAR, raw VARCHAR, _parent_id VARCHAR, _pass BIGINT)"""
        )

    def begin_pass(self) -> None:
        """What is added from now on is a new reading of the same list."""
        self.flush()
        self._pass += 1

    def accept(self) -> None:
        """The current pass is whole."""
        self._accepted.append(self._pass)

    def _whole(self) -> str:
        return f"_pass IN ({', '.join(map(str, self._accepted or [self._pass]))})"

    def add(self, batch: Batch, parent_id: str | None = None) -> None:
        """Take decoded rows, in the order in which the API sent them."""
        if batch.rows.num_rows:
            self._waiting.append(batch.rows)
            self._parents_waiting += [parent_id] * batch.rows.num_rows if self.stream.parent else []
            self._rows_waiting += batch.rows.num_rows
            self._bytes_waiting += batch.rows.get_total_buffer_size()
            if self._rows_waiting >= _FLUSH_ROWS or self._bytes_waiting >= _FLUSH_BYTES:
                self.flush()
        for row in batch.broken:
            self._connection.execute(
                "INSERT INTO staged_broken VALUES (?, ?, ?, ?, ?, ?)",
                [row.key, row.has_id, row.reason, row.raw, parent_id, self._pass],
            )

    def flush(self) -> None:
        """Move what waits to where the others are."""
        if not self._waiting:
            return
        path = str(self._folder / f"payload-{len(self._paths)}.parquet")
        try:
            rows = pa.Table.from_batches(self._waiting)
            if self.stream.parent:
                rows = rows.append_column("_parent_id", pa.array(self._parents_waiting, pa.string()))
            sequence = range(self._sequence + 1, self._sequence + rows.num_rows + 1)
            rows = rows.append_column("_pass", pa.repeat(pa.scalar(self._pass, pa.int64()), rows.num_rows))
            rows = rows.append_column("_sequence", pa.array(sequence, pa.int64()))
            # They are read once, whole, by DuckDB: what serves other readers is left out.
            write_table(
                rows, path, compression="none", use_dictionary=False, write_statistics=False, store_schema=False
            )
        except OSError as error:
            raise StorageError(f"{path} could not be written ({error}): what was committed before stays") from None
        self._paths.append(path)
        self._sequence += rows.num_rows
        self._run(
            f"INSERT INTO staged BY NAME SELECT {self._columns()}, _pass, _sequence FROM read_parquet({literal(path)})"
        )
        self._waiting, self._parents_waiting, self._rows_waiting, self._bytes_waiting = [], [], 0, 0

    def payload(self) -> str:
        """What names the rows as received, with `_pass` and `_sequence`, in a statement."""
        self.flush()
        if not self._paths:
            nothing = (
                f"NULL::{SQL_TYPES[column.kind]} AS {quoted(column.name)}" for column in self.stream.payload_columns
            )
            return f"(SELECT {', '.join(nothing)}, 0 AS _pass, 0 AS _sequence LIMIT 0)"
        return f"read_parquet([{', '.join(map(literal, self._paths))}])"

    def distinct(self) -> int:
        """How many different rows the current pass has seen, broken ones included."""
        self.flush()
        [(count,)] = self._run(
            """SELECT count(*) FROM (SELECT id FROM staged WHERE _pass = $1
               UNION SELECT key FROM staged_broken WHERE _pass = $1)""",
            self._pass,
        ).fetchall()
        return int(count)

    def broken(self) -> tuple[int, int]:
        """How many different broken rows the listing has, and how many of them without an id."""
        [(count, without)] = self._run(
            f"SELECT count(DISTINCT key), count(DISTINCT key) FILTER (NOT has_id) FROM staged_broken WHERE {self._whole()}"
        ).fetchall()
        return int(count), int(without)

    def last_date(self) -> datetime | None:
        """The latest of the stream's dates that was seen, None where there is none."""
        self.flush()
        sql = f"SELECT max({quoted(self.stream.date_field)}) AS last FROM staged WHERE {self._whole()}"
        [row] = self._rows(sql)
        return row["last"]  # type: ignore[no-any-return]

    def lacks(self, ids: Iterable[str]) -> list[str]:
        """Those of the ids that were not seen."""
        self.flush()
        sql = (
            "SELECT unnest(?::VARCHAR[]) EXCEPT (SELECT id FROM staged UNION SELECT key FROM staged_broken) ORDER BY 1"
        )
        return [str(lacking) for (lacking,) in self._run(sql, list(ids)).fetchall()]

    def sample(self, count: int) -> list[dict[str, Any]]:
        """Some rows as listed, picked at random."""
        self.flush()
        sql = f"SELECT _sequence FROM staged WHERE {self._whole()} ORDER BY random() LIMIT {count}"
        picked = [sequence for (sequence,) in self._run(sql).fetchall()]
        return self._as_listed("_sequence IN (SELECT unnest(?::BIGINT[]))", picked)

    def suspects(self, account: str, count: int) -> list[dict[str, Any]]:
        """Some rows as listed, of those stored with another content although they say that they did not change, or with more."""
        self.flush()
        stored = f"{self.stream.table.full_name} t ON t._account = ? AND t._deleted_at IS NULL AND t.id"
        changed = f"""SELECT _sequence FROM staged JOIN {stored} = staged.id AND t._hash <> staged._hash
            WHERE {self._whole()}"""
        if not self._run(f"{changed} LIMIT 1", account).fetchall():
            return []
        version = quoted(self.stream.version_field) if self.stream.version_field else None
        signs = [f"t.{version} = p.{version}"] if version else []
        for column in self.stream.data_columns:
            more, less = f"t.{quoted(column.name)}", f"p.{quoted(column.name)}"
            cut = f" OR (length({more}) > length({less}) AND starts_with({more}, rtrim({less}, '….')))"
            signs.append(f"({more} IS NOT NULL AND ({less} IS NULL{cut if column.kind == 'text' else ''}))")
        signs.append("NOT list_has_all(coalesce(json_keys(p._extra), []), coalesce(json_keys(t._extra), []))")
        return self._as_listed(
            f"_sequence IN ({changed}) AND ({' OR '.join(signs)}) LIMIT {count}",
            account,
            account,
            join=f"{stored} = p.id",
        )

    def _as_listed(self, condition: str, *values: Any, join: str = "") -> list[dict[str, Any]]:
        sql = (
            f"SELECT p.* EXCLUDE (_pass, _sequence) FROM {self.payload()} p {join and f'JOIN {join}'} WHERE {condition}"
        )
        return self._rows(sql, *values)

    def _rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        def read() -> pa.Table:
            return self._connection.sql(sql, params=list(values)).to_arrow_table()

        return with_room(self._connection, read).to_pylist()  # type: ignore[no-any-return]

    def _run(self, sql: str, *values: Any) -> duckdb.DuckDBPyConnection:
        """For what reads many rows, or moves whole ones."""
        return with_room(self._connection, lambda: self._connection.execute(sql, list(values)))

    def put_aside(self, account: str, *, whole: bool) -> dict[str, str]:
        """Take out what was listed, to make room for the same rows as read by id.

        A row whose listed form is what it was needs no reading: it stays as it is stored.

        Returns:
            The others: id -> hash of the row as listed.
        """
        with_room(self._connection, lambda: self.choose(whole=whole))
        known = f"""SELECT c.id FROM chosen c JOIN {LISTED.full_name} l ON l.id = c.id AND l.listed_hash = c._hash
            JOIN {self.stream.table.full_name} t ON t.id = c.id
            WHERE l.account = $account AND l.stream = $stream AND t._account = $account AND t._deleted_at IS NULL"""
        sql = f"SELECT id, _hash, id IN ({known}) FROM chosen ORDER BY id"
        names = {"account": account, "stream": self.stream.name}
        listed = with_room(self._connection, lambda: self._connection.execute(sql, names).fetchall())
        self._connection.execute("DELETE FROM staged")
        self.keep(account, [identity for identity, _hash, same in listed if same])
        return {identity: digest for identity, digest, same in listed if not same}

    def keep(self, account: str, ids: Sequence[str]) -> None:
        """Count these rows as seen, and leave them as they are stored."""
        self._run(
            f"""INSERT INTO staged BY NAME
                SELECT {self._columns()}, {(self._accepted or [self._pass])[0]} AS _pass, 0 AS _sequence
                FROM {self.stream.table.full_name}
                WHERE _account = ? AND _deleted_at IS NULL AND id IN (SELECT unnest(?::VARCHAR[]))""",
            account,
            list(ids),
        )

    def _columns(self) -> str:
        return ", ".join(map(quoted, self._deciding))

    def choose(self, *, whole: bool) -> None:
        """Make the tables `chosen` (one row per id: the newest version, of equals the last seen) and `chosen_broken`.

        `_sequence` is the row's place in `payload`.
        """
        passes = self._whole() if whole else "true"
        version = f"{quoted(self.stream.version_field)} DESC NULLS LAST, " if self.stream.version_field else ""
        self._connection.execute(f"""
            CREATE OR REPLACE TEMP TABLE chosen AS SELECT {self._columns()}, _sequence FROM staged WHERE {passes}
            QUALIFY row_number() OVER (PARTITION BY id ORDER BY {version}_sequence DESC) = 1""")
        self._connection.execute(f"""
            CREATE OR REPLACE TEMP TABLE chosen_broken AS SELECT * FROM staged_broken WHERE {passes}
            AND key NOT IN (SELECT id FROM chosen)
            QUALIFY row_number() OVER (PARTITION BY key ORDER BY _pass DESC) = 1""")
