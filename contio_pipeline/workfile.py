"""The private DuckDB file: its lock, its schema version, its tables and transactions.

What lives here: opening, migrating, closing it for a copy. What never does: what is written into the tables.

Nobody but this module opens the file, and no code may `open()` it while DuckDB has it open: closing any descriptor drops
the process's POSIX lock, another process then writes, and commits are lost.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import duckdb
import pyarrow as pa

from contio_pipeline.errors import ConfigError, StorageError, WarehouseBusy
from contio_pipeline.folders import flush, private_folder
from contio_pipeline.streams import META, STREAMS, Column, Kind, Stream, Table, tables

SCHEMA_VERSION = 2
STORAGE_VERSION = "v1.2.0"
"""Files of this storage version are opened by every DuckDB from 1.2 to 2.0."""


def _histories_without_what_is_current(connection: duckdb.DuckDBPyConnection) -> None:
    """A history was a table, with a copy of the current version; it becomes a view of that and of what was replaced."""
    found = (
        "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'raw' AND table_name LIKE '%\\_history' ESCAPE '\\'"
    )
    for (history,) in connection.execute(found).fetchall():
        name = history.removesuffix("_history")
        table, past, changes = (f"raw.{quoted(each)}" for each in (name, f"{name}_past", history))
        for column in ("_operation", "_run_id"):
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} VARCHAR")
        connection.execute(f"""
            CREATE TEMP TABLE current AS SELECT _account, id, max(rowid) AS place FROM {changes}
            WHERE _operation <> 'delete' GROUP BY ALL""")
        connection.execute(f"""
            UPDATE {table} t SET _operation = h._operation, _run_id = h._run_id, _changed_at = h._changed_at
            FROM current c JOIN {changes} h ON h.rowid = c.place WHERE t._account = c._account AND t.id = c.id""")
        # Where the history was forgotten.
        connection.execute(f"UPDATE {table} SET _operation = 'insert' WHERE _operation IS NULL")
        connection.execute(f"CREATE TABLE {past} AS FROM {table} LIMIT 0")
        connection.execute(f"""
            INSERT INTO {past} BY NAME
            SELECT h.*, t._first_seen_at, false AS _window_blind,
                CASE WHEN h._operation = 'delete' THEN h._changed_at END AS _deleted_at,
                CASE WHEN h._operation = 'delete' AND h._changed_at = t._deleted_at THEN t._gone_reason END AS _gone_reason
            FROM {changes} h JOIN {table} t USING (_account, id)
            WHERE h.rowid NOT IN (SELECT place FROM current)""")
        connection.execute(f"DROP TABLE {changes}")
        connection.execute("DROP TABLE temp.current")


Migration = Callable[[duckdb.DuckDBPyConnection], object]
MIGRATIONS: Mapping[int, Migration] = {1: _histories_without_what_is_current}
"""What makes version `key + 1` of a warehouse of version `key`, run inside one transaction."""

_ROW_GROUP = 16384
"""Rows that DuckDB compresses together: it holds them in memory, and its default of 122,880 rows with long texts is a GB."""

CLEAN = "nothing_left_behind"
"""The fact of `ops.meta` that no broken row has left the file: of one that did, bytes may still be there."""

_A_LOOK = 0.05
"""Seconds: far longer than `writer` holds the lock to see whether somebody else does."""

_MEMORY = "128MB"
_MORE_MEMORY = ("512MB", "2GB")
_BEYOND_US = (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.FatalException, duckdb.TransactionException)
"""What DuckDB raises when the disk or the memory is full, or the file is damaged; a commit that cannot be written is a
TransactionException."""

SQL_TYPES: dict[Kind, str] = {
    "text": "VARCHAR",
    "boolean": "BOOLEAN",
    "integer": "BIGINT",
    "number": "DOUBLE",
    "timestamp": "TIMESTAMPTZ",
    "date": "DATE",
    "json": "JSON",
}

T = TypeVar("T")


class _NoPandas(MetaPathFinder):
    """Says at once that there is no pandas, where there is none.

    DuckDB asks whether each bound value is one of pandas', and each time all folders were searched: a quarter of a small sync.
    """

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


if importlib.util.find_spec("pandas") is None:
    sys.meta_path.insert(0, _NoPandas())


class WorkFile:
    """The working file, open for writing by this process alone; a context manager.

    Raises:
        WarehouseBusy: another process writes to the data folder.
        ConfigError: the warehouse belongs to another API or to a newer version.
        StorageError: the file cannot be used.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        origin: str | None,
        streams: tuple[Stream, ...] = STREAMS,
        version: int = SCHEMA_VERSION,
        migrations: Mapping[int, Migration] = MIGRATIONS,
        lock: int | None = None,
    ) -> None:
        """See the class; `lock` is what `take_lock` returned, where the caller had to have it before."""
        self.path = data_dir / "warehouse.duckdb"
        self.spill = data_dir / "warehouse.duckdb.tmp"
        self.streams = streams
        self._version = version
        self._lock = take_lock(data_dir) if lock is None else lock
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._shut = False
        try:
            self._open(origin, migrations)
        except BaseException as error:
            self.close()
            if isinstance(error, _BEYOND_US):
                raise self._failed(error) from error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if isinstance(error, _BEYOND_US):
            raise self._failed(error) from error

    def _failed(self, error: Exception, *, damaged: bool = False) -> StorageError:
        """What DuckDB says of the file or the machine, as something to act on."""
        if re.search(r"\block\b", str(error)):
            return WarehouseBusy(
                f"{self.path} is open in another program ({error}): close it there, and read current/contio.duckdb "
                "instead, which nobody ever locks"
            )
        if damaged or re.search("corrupt|checksum|could not read|not a valid", str(error), re.IGNORECASE):
            return StorageError(
                f"{self.path} is damaged ({error}): restore it from a backup, or move it away and sync again (the history before "
                "is then only in what was published)"
            )
        return StorageError(f"{self.path} could not be written ({error}): what was committed before stays")

    def close(self) -> None:
        """Close the file and let other processes write."""
        if self._connection:
            self._connection.close()
        self._connection, self._shut = None, True
        shutil.rmtree(self.spill, ignore_errors=True)
        os.close(self._lock)

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """The one connection; used by the thread that opened the warehouse."""
        if self._shut:
            raise StorageError("the warehouse is closed")
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Rows as dictionaries; times are aware datetimes in UTC."""
        connection = self.connection
        table: pa.Table = with_room(connection, lambda: connection.sql(sql, params=list(parameters)).to_arrow_table())
        return table.to_pylist()  # type: ignore[no-any-return]

    @contextmanager
    def closed_file(self) -> Iterator[Path]:
        """The file, whole and closed by DuckDB, for as long as it takes to copy it; the lock stays."""
        try:
            self.connection.execute("CHECKPOINT")
        except _BEYOND_US as error:
            raise self._failed(error) from error
        self.connection.close()
        self._connection, self._shut = None, True
        try:
            if self.path.with_name(self.path.name + ".wal").exists():
                raise StorageError(
                    f"{self.path}.wal remained after a checkpoint: close what else has the warehouse open"
                )
            yield self.path
        finally:
            self._shut = False

    def rewrite(self) -> None:
        """Write the file anew: no byte of a row that was deleted is left in it. It needs as much free space again.

        The old file is whole until the new one takes its place.
        """
        with self.closed_file() as file:
            fresh = self.spill / "fresh.duckdb"
            fresh.unlink(missing_ok=True)
            connection = self.scratch()
            try:
                connection.execute(f"ATTACH {literal(str(file))} AS old (READ_ONLY)")
                attach(connection, fresh, "fresh")
                with_room(connection, lambda: connection.execute("COPY FROM DATABASE old TO fresh"))
                connection.execute(f"DELETE FROM fresh.{META.full_name} WHERE key = {literal(CLEAN)}")
                connection.execute(f"INSERT INTO fresh.{META.full_name} VALUES ({literal(CLEAN)}, 'yes')")
                connection.execute("CHECKPOINT fresh")
            except duckdb.Error as error:
                raise self._failed(error) from error
            finally:
                connection.close()
            fresh.chmod(0o600)
            flush(fresh)
            fresh.replace(file)
            flush(file.parent)

    @contextmanager
    def transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Everything inside commits together or not at all.

        Raises:
            StorageError: the disk is full, or memory is.
        """
        connection = self.connection
        try:
            connection.execute("BEGIN")
            yield connection
            connection.execute("COMMIT")
        except BaseException as error:
            with suppress(duckdb.Error):  # the failed statement may have ended the transaction
                connection.execute("ROLLBACK")
            if isinstance(error, _BEYOND_US):
                raise self._failed(error) from error
            raise

    # Opening ------------------------------------------------------------------------------------------------------------

    def _open(self, origin: str | None, migrations: Mapping[int, Migration]) -> None:
        shutil.rmtree(self.spill, ignore_errors=True)  # of a process that was killed
        if not self.path.exists():
            self._create()
        found = self._version_found()
        if found is not None and found > self._version:
            raise ConfigError(
                f"{self.path} has schema version {found}, this program knows {self._version}: upgrade contio-pipeline; the file "
                "was not touched"
            )
        if found is not None and found < self._version:
            self._connection = self._connect()
            with self.closed_file() as file:
                _copy(file, file.with_name(f"warehouse-version-{found}.duckdb"))
        else:
            self._connection = self._connect()
        self.path.chmod(0o600)
        with self.transaction() as connection:
            for step in range(found or self._version, self._version):
                migrations[step](connection)
            make_tables(connection, self.streams)
            self.put_meta("schema_version", str(self._version))
            if found is None:
                self.put_meta(CLEAN, "yes")
            stored = self.meta("api_origin")
            if stored and origin and stored != origin:
                raise ConfigError(
                    f"{self.path} holds the rows of {stored}, but CONTIO_API_URL is {origin}: rows of two servers must not be "
                    "mixed. Set CONTIO_DATA_DIR to another folder"
                )
            if origin and not stored:
                self.put_meta("api_origin", origin)

    def _create(self) -> None:
        """Make an empty file that is whole when it appears: a full disk or a kill leaves none that looks damaged."""
        new = self.spill / "new.duckdb"
        connection = self.scratch()
        try:
            attach(connection, new)
            connection.execute("DETACH warehouse")
        finally:
            connection.close()
        new.replace(self.path)

    def _connect(self) -> duckdb.DuckDBPyConnection:
        try:
            connection = self.scratch()
            attach(connection, self.path)
            connection.execute("USE warehouse")
        except duckdb.Error as error:
            raise self._failed(error) from None
        return connection

    def scratch(self) -> duckdb.DuckDBPyConnection:
        """DuckDB without a file yet, frugal, with a private folder for what it puts aside; times are UTC's."""
        config: dict[str, str | bool | int | float | list[str]] = {
            "autoinstall_known_extensions": False,
            "temp_directory": str(self.spill),
        }
        self.spill.mkdir(mode=0o700, exist_ok=True)
        connection = duckdb.connect(":memory:", config=config)
        frugal(connection)
        connection.execute("SET TimeZone = 'UTC'")  # as a connect option it fails on 2.0
        return connection

    def _version_found(self) -> int | None:
        """The file's schema version, read without changing anything; None for a file without tables."""
        try:
            with duckdb.connect(self.path, read_only=True) as connection:
                if not connection.execute(
                    "SELECT 1 FROM duckdb_tables() WHERE schema_name = 'ops' AND table_name = 'meta'"
                ).fetchall():
                    return None
                [(value,)] = connection.execute("SELECT value FROM ops.meta WHERE key = 'schema_version'").fetchall()
        except (duckdb.Error, ValueError) as error:
            raise self._failed(error, damaged=True) from None
        return int(value)

    def meta(self, key: str) -> str | None:
        """A fact of `ops.meta`."""
        found = self.connection.execute(f"SELECT value FROM {META.full_name} WHERE key = ?", [key]).fetchall()
        return str(found[0][0]) if found else None

    def put_meta(self, key: str, value: str) -> None:
        """Write a fact of `ops.meta`, inside a transaction."""
        if self.meta(key) != value:
            self.connection.execute(f"DELETE FROM {META.full_name} WHERE key = ?", [key])
            self.connection.execute(f"INSERT INTO {META.full_name} VALUES (?, ?)", [key, value])

    def move_origin(self, origin: str) -> None:
        """Say that the same API is now reached at another address."""
        with self.transaction():
            self.put_meta("api_origin", origin)


def make_tables(connection: duckdb.DuckDBPyConnection, streams: tuple[Stream, ...]) -> None:
    """Create what is declared and not there, in the database in use, and keep every comment as declared."""
    stored: dict[str, dict[str, str | None]] = {}
    for schema, table, column, comment in connection.execute(
        """SELECT schema_name, table_name, column_name, comment FROM duckdb_columns()
        WHERE NOT internal AND database_name = current_database()"""
    ).fetchall():
        stored.setdefault(f"{schema}.{table}", {})[column] = comment
    described = dict(
        connection.execute(
            """SELECT schema_name || '.' || table_name, comment FROM duckdb_tables() WHERE database_name = current_database()
            UNION ALL SELECT schema_name || '.' || view_name, comment FROM duckdb_views()
            WHERE NOT internal AND database_name = current_database()"""
        ).fetchall()
    )
    for schema in ("raw", "ops"):
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    for table in tables(streams):
        columns = stored.get(table.full_name)
        kind = "VIEW" if table.shows else "TABLE"
        if table.shows and (columns is None or columns.keys() != {column.name for column in table.columns}):
            shown = " UNION ALL BY NAME ".join(f"SELECT * FROM {shown.full_name}" for shown in table.shows)
            connection.execute(f"CREATE OR REPLACE VIEW {table.full_name} AS {shown}")
            columns = {}
        elif columns is None:
            connection.execute(f"CREATE TABLE {table.full_name} ({column_list(table.columns)})")
            columns = {}
        else:
            _add_columns(connection, table, [column for column in table.columns if column.name not in columns])
        if described.get(table.full_name) != table.doc:
            connection.execute(f"COMMENT ON {kind} {table.full_name} IS {literal(table.doc)}")
        for column in table.columns:
            if columns.get(column.name) != column.doc:
                connection.execute(
                    f"COMMENT ON COLUMN {table.full_name}.{quoted(column.name)} IS {literal(column.doc)}"
                )


def _add_columns(connection: duckdb.DuckDBPyConnection, table: Table, columns: Sequence[Column]) -> None:
    names = {column.name for column in table.columns}
    for column in columns:
        connection.execute(f"ALTER TABLE {table.full_name} ADD COLUMN {quoted(column.name)} {SQL_TYPES[column.kind]}")
        if names >= {"_changed_at", "_extra"}:
            # What was unknown until now is in _extra: without its hash, the next sync that sees the row rewrites it.
            connection.execute(
                f"UPDATE {table.full_name} SET _hash = '' WHERE json_exists(_extra, ?)", [f'$."{column.name}"']
            )


def attach(connection: duckdb.DuckDBPyConnection, file: Path, name: str = "warehouse") -> None:
    """Attach a file to be written, as all of ours are: with other row groups a checkpoint would write all tables anew."""
    connection.execute(
        f"ATTACH {literal(str(file))} AS {name} (STORAGE_VERSION {literal(STORAGE_VERSION)}, "
        f"ROW_GROUP_SIZE {_ROW_GROUP})"
    )


def frugal(connection: duckdb.DuckDBPyConnection) -> None:
    """Let DuckDB use little memory, however many rows there are: what does not fit goes to its temporary folder.

    One thread, since each holds row groups of its own, and two were not faster in a whole sync.
    """
    connection.execute(f"SET memory_limit = '{_MEMORY}'")
    connection.execute("SET threads = 1")


def with_room(connection: duckdb.DuckDBPyConnection, step: Callable[[], T]) -> T:
    """Run a step; where little memory is not enough, because rows are huge, again with more, up to all that DuckDB may have.

    Args:
        connection: `frugal`.
        step: can be run again when it failed.
    """
    for more in (*_MORE_MEMORY, None):
        try:
            return step()
        except (duckdb.Error, StorageError) as error:
            cause = error.__cause__ if isinstance(error, StorageError) else error
            # A commit says it in a TransactionException.
            if not isinstance(cause, duckdb.OutOfMemoryException) and "failed to pin block" not in str(cause):
                raise
        connection.execute(f"SET memory_limit = '{more or _all_memory()}'")
    return step()


def _all_memory() -> str:
    """What DuckDB takes by itself; RESET would forget only what the setting says."""
    with duckdb.connect() as usual:
        [(limit,)] = usual.execute("SELECT current_setting('memory_limit')").fetchall()
    return str(limit)


def insert(connection: duckdb.DuckDBPyConnection, table: Table, row: Mapping[str, Any]) -> None:
    """Insert one row; a declared column that it does not name is NULL."""
    names = [column.name for column in table.columns if column.name in row]
    connection.execute(
        f"INSERT INTO {table.full_name} ({', '.join(map(quoted, names))}) VALUES ({', '.join('?' * len(names))})",
        [row[name] for name in names],
    )


def take_lock(data_dir: Path) -> int:
    """The descriptor that holds the data folder's writer lock until it is closed."""
    try:
        private_folder(data_dir)
        if (data_dir / ".gitkeep").exists() and not (data_dir / ".writer.lock").exists():
            data_dir.chmod(0o700)  # git made it, for all to read
        descriptor = os.open(data_dir / ".writer.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(
            f"the data folder {data_dir} cannot be written ({error.strerror}): set CONTIO_DATA_DIR"
        ) from None
    if not (_locked(descriptor, fcntl.LOCK_EX) or _locked(descriptor, fcntl.LOCK_EX, after=_A_LOOK)):
        holder = os.pread(descriptor, 40, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise WarehouseBusy(
            f"another contio-pipeline (process {holder or 'unknown'}) is writing to {data_dir}: wait until it has finished"
        )
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def old_copies(data_dir: Path) -> list[Path]:
    """Earlier warehouses that a migration or a restore put aside in the data folder."""
    return sorted(path for kind in ("version", "before-restore") for path in data_dir.glob(f"warehouse-{kind}-*"))


def replace_file(data_dir: Path, whole: Path, aside: Path) -> bool:
    """Put a whole file, closed and on the same disk, in the place of the working file; call it with the lock.

    Returns:
        Whether there was a file before; it is `aside` now, with the log that a killed process may have left.
    """
    path = data_dir / "warehouse.duckdb"
    log = path.with_name(f"{path.name}.wal")
    whole.chmod(0o600)
    flush(whole)
    if log.exists():  # first, for DuckDB must never find it beside another file
        log.replace(aside.with_name(f"{aside.name}.wal"))
    there = path.exists()
    if there:
        path.replace(aside)
    whole.replace(path)
    flush(data_dir)
    return there


def _locked(descriptor: int, how: int, *, after: float = 0.0) -> bool:
    """Whether the lock could be had, at once."""
    time.sleep(after)
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def writer(data_dir: Path) -> str | None:
    """The process that is writing to the data folder; None where there is none. Nobody who begins to write is kept from it."""
    try:
        descriptor = os.open(data_dir / ".writer.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if _locked(descriptor, fcntl.LOCK_SH):
            return None
        return os.pread(descriptor, 40, 0).decode("ascii", "replace").strip() or "unknown"
    finally:
        os.close(descriptor)


def _copy(source: Path, target: Path) -> None:
    temporary = target.with_suffix(".part")
    shutil.copyfile(source, temporary)
    temporary.chmod(0o600)
    flush(temporary)
    temporary.replace(target)


def quoted(identifier: str) -> str:
    """An identifier as SQL writes it."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def parquet(file: Path) -> str:
    """SQL of what a Parquet file holds."""
    return f"read_parquet({literal(str(file))}, hive_partitioning = false)"


def column_list(columns: Sequence[Column]) -> str:
    """Columns and their types as CREATE TABLE takes them."""
    return ", ".join(f"{quoted(column.name)} {SQL_TYPES[column.kind]}" for column in columns)
