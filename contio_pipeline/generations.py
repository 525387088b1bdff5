"""The generations that are published: finding the current one, and asking it in SQL.

What lives here: reading, at any moment. What never does: making a generation (`publish`), the warehouse.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from contio_pipeline.errors import ConfigError, NothingPublished, StorageError

DATABASE = "contio.duckdb"
REFUSED = ".not-published"
"""The file in the data folder that says why the last try was refused."""

_MANIFEST = {"generation", "published_at", "files"}
_READING = {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN}
_ALONE: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "enable_external_access": False,
}
"""A question reads the published tables, no other file of the machine."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A published state: its folder (resolved, so that it stays the same one) and its manifest."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder's name, which sorts by time."""
        return self.folder.name

    @property
    def database(self) -> Path:
        """The DuckDB file; open it read-only."""
        return self.folder / DATABASE

    @property
    def published_at(self) -> datetime:
        """When it was built."""
        return datetime.fromisoformat(self.manifest["published_at"])


def current(data_dir: Path) -> Generation:
    """The generation to read.

    Raises:
        NothingPublished: there is none yet.
        StorageError: it is damaged; the next publish replaces it.
    """
    link = data_dir / "current"
    try:
        folder = link.resolve(strict=True)
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise NothingPublished(
            f"nothing is published in {data_dir} yet: run contio-pipeline sync (or set CONTIO_DATA_DIR to where it publishes)"
        ) from None
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or not manifest.keys() >= _MANIFEST or not (folder / DATABASE).is_file():
        raise StorageError(f"the published generation {link} is damaged: run contio-pipeline publish")
    return Generation(folder, manifest)


def refused(data_dir: Path) -> str:
    """Why nothing newer is published than there is; empty where nothing was refused."""
    try:
        return (data_dir / REFUSED).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query returned: column names, DuckDB's names of their types, and the rows, read as they are asked for, once.

    Attributes:
        batches: the rows as Arrow has them.
    """

    names: list[str]
    kinds: list[str]
    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]

    @property
    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The rows as Python has them."""
        for batch in self.batches:
            try:
                yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
            except (OverflowError, ValueError) as error:
                raise ConfigError(f"the query failed: {error}") from None

    def save(self, target: Path) -> None:
        """Write the rows to a Parquet file.

        Raises:
            ConfigError: it cannot hold a column's type, or the query failed.
        """
        from pyarrow.parquet import ParquetWriter  # noqa: PLC0415 - nothing else here writes by Arrow

        try:
            with ParquetWriter(target, self.schema, compression="zstd") as writer:
                for batch in self.batches:
                    writer.write_batch(batch)
        except pa.ArrowNotImplementedError as error:
            raise ConfigError(f"Parquet cannot hold that ({error}): cast it to another type") from None


def ask(generation: Generation, sql: str) -> Answer:
    """Run one SQL statement on a generation, read-only; times are aware datetimes in UTC.

    Raises:
        ConfigError: the statement is wrong, or returns no rows; or this process has the file open in another way.
        StorageError: the published file is damaged.
    """
    try:
        sql.encode()
        connection = duckdb.connect(generation.database, read_only=True, config=_ALONE)
    except UnicodeEncodeError:
        raise ConfigError(
            "the statement is not text in the encoding of this terminal (look at LANG and LC_ALL)"
        ) from None
    except duckdb.ConnectionException as error:
        raise ConfigError(
            f"this process has {generation.database} open already: ask by that connection ({error})"
        ) from None
    except duckdb.Error as error:
        raise StorageError(f"{generation.database} is damaged ({error}): run contio-pipeline publish") from None
    try:
        connection.execute("SET TimeZone = 'UTC'")
        statements = connection.extract_statements(sql)
        if len(statements) != 1 or statements[0].type not in _READING:
            raise ConfigError("one statement that reads is expected, such as SELECT …: the published data is read-only")
        answer = connection.sql(sql)
        if answer is None:
            raise ConfigError("that statement returns no rows")
        names, kinds = list(answer.columns), [str(kind) for kind in answer.types]
        reader = answer.to_arrow_reader()
    except duckdb.Error as error:
        if 'schema "mart" does not exist' in str(error):
            raise ConfigError("an earlier version published this, without marts: run contio-pipeline publish") from None
        raise ConfigError(f"the query failed: {error}") from None

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            yield from reader
        except (duckdb.Error, OSError, ValueError) as error:
            raise ConfigError(f"the query failed: {error}") from None
        finally:
            connection.close()

    return Answer(names, kinds, reader.schema, batches())


def generations(data_dir: Path) -> list[Path]:
    """The folders of all generations, the oldest first."""
    return sorted((data_dir / "generations").glob("*Z-*"))


class Current:
    """The current generation for a process that lives long, such as a server: it follows when another is published.

        current = open_current("data")
        current.connection.sql("SELECT count(*) FROM mart.meetings")

    Attributes:
        data_dir: where it publishes.
    """

    def __init__(self, data_dir: Path) -> None:
        """See `open_current`."""
        self.data_dir = data_dir
        self._lock = threading.Lock()
        self._open: tuple[Path, duckdb.DuckDBPyConnection] | None = None

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """A read-only connection of its own to the generation that is current now; any thread may ask for one.

        What is read through one connection is one state of all tables. Looking whether there is a newer generation costs some
        microseconds, and opening it some milliseconds. Connections from before work on, for their generation stays for a day.

        Raises:
            NothingPublished: there is none yet.
            StorageError: it is damaged.
        """
        with self._lock:
            folder = (self.data_dir / "current").resolve()
            if self._open is None or self._open[0] != folder:
                generation = current(self.data_dir)
                opened = duckdb.connect(generation.database, read_only=True)
                self._open = generation.folder, opened  # nobody is kept from finishing on the one before
            connection = self._open[1].cursor()
        connection.execute("SET TimeZone = 'UTC'")
        return connection

    @property
    def folder(self) -> Path:
        """The folder of the generation that is current now, resolved: for Parquet, and what else is in it.

        Something may be published between this and `connection`: what must be of one state is read through one of them.
        """
        return current(self.data_dir).folder
