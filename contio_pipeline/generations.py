"""The generations that are published: finding the current one, and asking it in SQL.

What lives here: reading, at any moment, and what of an answer the publish policy hides. What never does: making a generation
(`publish`), the warehouse.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Sequence
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
        names: each another one, as DuckDB tells them apart in a subquery: `title`, `title_1`.
        batches: the rows as Arrow has them.
    """

    names: list[str]
    kinds: list[str]
    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]

    @property
    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The rows as Python has them; maps as dicts, intervals as DuckDB writes them."""
        for batch in self.batches:
            try:
                yield from zip(*map(_values, batch.columns), strict=True)
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


_NOT_PYTHONS = re.compile(r"map<|interval")
"""In the name of an Arrow type: there are values in it that Python has no word for."""


def _values(column: pa.Array) -> list[Any]:
    values: list[Any] = column.to_pylist()
    return [_value(one, column.type) for one in values] if _NOT_PYTHONS.search(str(column.type)) else values


def _value(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_interval(kind):
        return _interval(*value)
    if pa.types.is_map(kind):
        pairs = ((_value(key, kind.key_type), _value(one, kind.item_type)) for key, one in value)
        return {key if isinstance(key, str | int | float) else str(key): one for key, one in pairs}
    if pa.types.is_struct(kind):
        return {part.name: _value(value[part.name], part.type) for part in kind}
    if isinstance(value, list):
        return [_value(one, kind.value_type) for one in value]
    return value


def _interval(months: int, days: int, nanoseconds: int) -> str:
    """As DuckDB writes it: `1 year 2 months -3 days 04:05:06.7`."""
    years, months = (part if months >= 0 else -part for part in divmod(abs(months), 12))
    counts = {"year": years, "month": months, "day": days}
    parts = [f"{count} {unit}{'' if abs(count) == 1 else 's'}" for unit, count in counts.items() if count]
    if nanoseconds or not parts:
        seconds, fraction = divmod(abs(nanoseconds) // 1000, 1_000_000)
        time = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        parts.append("-" * (nanoseconds < 0) + time + f".{fraction:06}".rstrip("0").rstrip("."))
    return " ".join(parts)


def _distinct(names: Sequence[str]) -> list[str]:
    """Names of which each is another one, in lower case too, as DuckDB makes them in a subquery."""
    taken: dict[str, int] = {}
    found = []
    for name in names:
        new = name
        while new.lower() in taken:
            new = f"{name}_{taken[name.lower()]}"
            taken[name.lower()] += 1
        taken[new.lower()] = 1
        found.append(new)
    return found


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
        names, kinds = _distinct(answer.columns), [str(kind) for kind in answer.types]
        reader = answer.to_arrow_reader()
    except duckdb.Error as error:
        if 'schema "mart" does not exist' in str(error):
            raise ConfigError("an earlier version published this, without marts: run contio-pipeline publish") from None
        raise ConfigError(f"the query failed: {error}") from None

    return Answer(names, kinds, _renamed(reader.schema, names), _batches(connection, reader, names))


def _renamed(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    return pa.schema([part.with_name(name) for part, name in zip(schema, names, strict=True)])


def _batches(
    connection: duckdb.DuckDBPyConnection, reader: pa.RecordBatchReader, names: list[str]
) -> Iterator[pa.RecordBatch]:
    try:
        for batch in reader:
            yield batch.rename_columns(names)
    except (duckdb.Error, OSError, ValueError) as error:
        raise ConfigError(f"the query failed: {error}") from None
    finally:
        connection.close()


_NO_WORDS = re.compile(r"'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/", re.DOTALL)
_TABLES = re.compile(r'\b(raw|mart)"?\s*\.\s*"?(\w+)')


def hidden(generation: Generation, sql: str, names: Sequence[str]) -> dict[str, str]:
    """What readers do not get of the columns that a question names: column -> `drop` (it is NULL) or `hash`.

    Which tables it reads and which columns it names is judged by the words in it, so that a column of the same name of another
    table may be told, too.

    Args:
        generation: what was asked; its manifest says what its policy hides.
        sql: the question.
        names: the columns of its answer.
    """
    policy = generation.manifest.get("policy", {})
    if not policy.get("applied"):
        return {}
    from contio_pipeline.marts import MARTS  # noqa: PLC0415 - most is published without anything to hide

    actions: dict[str, str] = policy["hidden"]
    said = _NO_WORDS.sub(" ", sql).lower()
    words = dict.fromkeys([*map(str.lower, names), *re.findall(r"\w+", said)])
    found: dict[str, str] = {}
    tables = set(_TABLES.findall(said))
    for table in {name.removesuffix("_past").removesuffix("_history") for schema, name in tables if schema == "raw"}:
        found |= {word: action for word in words if (action := actions.get(f"{table}.{word.removesuffix('_raw')}"))}
    for field in (field for mart in MARTS if ("mart", mart.name) in tables for field in mart.fields):
        done = {actions[column] for column in field.of if column in actions}
        if done and field.name in words:
            # Of people who are hashed the names are left out.
            found[field.name] = "drop" if "drop" in done or field.name.endswith("name") else "hash"
    return {word: found[word] for word in words if word in found}


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
