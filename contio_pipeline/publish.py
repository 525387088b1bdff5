"""Immutable generations for readers: a DuckDB file, Parquet and a dashboard, flipped atomically.

What lives here: building, flipping and collecting generations. What never does: reading them (`generations`), writing the
warehouse, HTTP.

    <data folder>/current -> generations/<generation>       a relative symlink, replaced by rename
    <generation>/contio.duckdb                              a copy of the warehouse, self-contained
    <generation>/parquet/raw/<table>/month=YYYY-MM/part.parquet   (month=undated where a row has no month; a history's files
                                                                   are those of its tables: part.parquet, part-1.parquet)
    <generation>/parquet/mart/<mart>/part.parquet
    <generation>/dashboard.html
    <generation>/manifest.json

A generation is built in a staging folder outside the published tree, flushed to disk, renamed into place, and only then
becomes current: a reader that resolves `current` once sees one state of all tables, for at least a day.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import zip_longest
from pathlib import Path
from zoneinfo import ZoneInfo

import duckdb

from contio_pipeline import __version__, dashboard
from contio_pipeline.errors import StorageError
from contio_pipeline.folders import flush, private_file
from contio_pipeline.generations import DATABASE, REFUSED, Generation, current, generations
from contio_pipeline.integrity import MEND, contradictions
from contio_pipeline.marts import MARTS
from contio_pipeline.privacy import Policy
from contio_pipeline.settings import Settings
from contio_pipeline.streams import RUNS, STREAMS, Stream, Table, tables
from contio_pipeline.warehouse import Warehouse, find_private_ids
from contio_pipeline.workfile import CLEAN, attach, literal, make_tables, parquet, quoted, with_room

log = logging.getLogger(__name__)

UNDATED = "undated"
_STAMP = "%Y%m%dT%H%M%S.%fZ"

_MEMORY = ".published.json"

_ROW_GROUP = 16384
"""Rows that Parquet compresses together: DuckDB holds them in memory."""

_FRESH = timedelta(hours=1)
"""A sync that changed nothing makes a new generation only when the current one is older (docs/decisions/0003)."""


@dataclass(frozen=True, slots=True)
class Keep:
    """How long replaced generations stay; the last one always does.

    Attributes:
        days: after it was replaced: longer than any reader needs it.
        most: generations in all, however young they are: a disk is not endless.
    """

    days: float = 1
    most: int = 300


@dataclass(frozen=True, slots=True)
class Terms:
    """On which terms something is published.

    Attributes:
        keep: which of the generations before stay.
        zone: IANA name of the time zone in which days of the marts are local.
        policy: what readers do not get.
        fresh_hours: the dashboard calls nothing complete that was so longer ago.
    """

    keep: Keep = Keep()
    zone: str = "UTC"
    policy: Policy = field(default_factory=Policy)
    fresh_hours: float = 36

    @classmethod
    def asked_for(cls, settings: Settings, streams: tuple[Stream, ...] = STREAMS) -> Terms:
        """As the settings say."""
        keep = Keep(settings.keep_generation_days, settings.keep_generations)
        return cls(keep, settings.timezone, Policy.asked_for(settings, streams), settings.fresh_hours)

    @property
    def maker(self) -> str:
        """What fingerprints and Parquet files depend on besides the rows: hashes change between DuckDB versions."""
        return f"duckdb {duckdb.__version__}, contio-pipeline {__version__}, {self.zone}, policy {self.policy.digest}"


def publish(
    warehouse: Warehouse, now: datetime, terms: Terms | None = None, *, anew: bool = False, whole: bool = True
) -> tuple[Generation, bool]:
    """Make what the warehouse holds readable.

    Args:
        warehouse: open.
        now: names the generation.
        terms: on which; without, private talking points are hidden, days are UTC's, and replaced generations stay for a day.
        anew: make a generation also when nothing changed.
        whole: refuse tables that contradict themselves.

    Returns:
        The current generation, and whether it is a new one: nothing changed makes none.

    Raises:
        StorageError: the disk is full or the folder cannot be written; the current generation stays.
    """
    data_dir = warehouse.path.parent
    prints = {
        table.full_name: _fingerprints(warehouse.connection, table)
        for table in tables(warehouse.streams)
        if not table.shows
    }
    if whole and (broken := contradictions(warehouse.query, warehouse.streams)):
        told = f"{'; '.join(broken)}: {MEND}"
        private_file(data_dir / REFUSED, told)
        raise StorageError(told)
    (data_dir / REFUSED).unlink(missing_ok=True)
    try:
        return _publish(warehouse, data_dir, prints, now, terms or Terms(), anew=anew)
    except (OSError, duckdb.Error) as error:
        shutil.rmtree(data_dir / "staging", ignore_errors=True)  # a disk that is full needs the room
        raise StorageError(
            f"publishing to {data_dir} failed ({error}): the current generation stays as it was"
        ) from error


def _publish(
    warehouse: Warehouse,
    data_dir: Path,
    prints: dict[str, dict[str, str]],
    now: datetime,
    terms: Terms,
    *,
    anew: bool,
) -> tuple[Generation, bool]:
    if (data_dir / "current").exists() and not (data_dir / "current").is_symlink():
        raise StorageError(
            f"{data_dir / 'current'} is not the link that publishing makes: move it away and publish again"
        )
    _clean_up(data_dir, now, terms.keep)
    before = _current_or_none(data_dir)
    intact = before and _files(before.folder) == before.manifest["files"]
    if before and not intact:
        log.warning(
            "%s is not as it was published (copied without its times, changed or damaged): it is replaced",
            before.folder,
        )
    known = _remembered(data_dir, before) if before and intact else None
    if known and known.maker != terms.maker:
        known = None
    if before and known and known.prints == prints and not anew and _fresh_enough(warehouse, before, now):
        return before, False

    # Names sort by time, also when the clock was set back.
    stamp = max(now, _made_at(before.name) + timedelta(microseconds=1)) if before else now
    name = f"{stamp.astimezone(UTC).strftime(_STAMP)}-{secrets.token_hex(3)}"
    staging = data_dir / "staging" / name
    staging.mkdir(parents=True, mode=0o700)
    rows, memory, masked = _build(warehouse, staging, prints, now, terms, known)
    manifest = {
        "generation": name,
        "published_at": now.isoformat(),
        "rows": rows,
        "versions": {"contio-pipeline": __version__, "duckdb": duckdb.__version__},
        "policy": {"digest": terms.policy.digest, "hidden": terms.policy.hidden, "applied": masked},
        "files": _files(staging),
    }
    (staging / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    _make_durable(staging)
    generation = data_dir / "generations" / name
    generation.parent.mkdir(exist_ok=True)
    generation.parent.chmod(0o755)
    staging.rename(generation)
    staging.parent.rmdir()
    flush(generation.parent)
    private_file(data_dir / _MEMORY, json.dumps(asdict(memory)))
    _flip(data_dir, generation)
    if masked:
        _drop_of_other_policies(data_dir, terms.policy.digest)
    return Generation(generation, manifest), True


def _drop_of_other_policies(data_dir: Path, digest: str) -> None:
    """Remove what was made under another policy than the current generation, at once: it may show what is to be hidden."""
    for folder in generations(data_dir):
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            hid = manifest.get("policy", {"digest": ""})["digest"]  # an earlier version hid nothing
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            hid = ""  # damaged: nobody knows what it shows
        if hid != digest:
            shutil.rmtree(folder)


@dataclass(frozen=True, slots=True)
class _Memory:
    """What is known of the current generation, in a private file: it tells of rows that readers may not get.

    Attributes:
        generation: its name.
        maker: see `Terms.maker`.
        prints: of the warehouse's tables: table -> month -> what changes when any of its rows does.
        shown: the same of the tables as readers get them.
        marts: mart -> what changes when its statement does, or what it is made of.
    """

    generation: str
    maker: str
    prints: dict[str, dict[str, str]]
    shown: dict[str, dict[str, str]]
    marts: dict[str, str]


def _remembered(data_dir: Path, generation: Generation) -> _Memory | None:
    """What is known of this generation; nothing where it was copied, or made by an earlier version."""
    try:
        memory = _Memory(**json.loads((data_dir / _MEMORY).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return memory if memory.generation == generation.name else None


def _build(
    warehouse: Warehouse,
    staging: Path,
    prints: dict[str, dict[str, str]],
    now: datetime,
    terms: Terms,
    known: _Memory | None,
) -> tuple[dict[str, int], _Memory, bool]:
    """Write database and Parquet to the folder; what is as in the generation that is known is linked or filled from there.

    Returns:
        Table or mart -> rows, what to remember, and whether anything is hidden.
    """
    declared = tables(warehouse.streams)
    masked = bool(warehouse.query(terms.policy.question(declared)))
    if not masked and not warehouse.meta(CLEAN):
        warehouse.rewrite()  # the copy would hold bytes of broken rows that were to be hidden while they were there
    with warehouse.closed_file() as file:
        if masked:
            _copy_masked(warehouse, file, staging / DATABASE, terms.policy)
        else:
            shutil.copyfile(file, staging / DATABASE)
    before = staging.parent.parent / "generations" / known.generation if known else None
    shown = _shown_prints(warehouse, staging / DATABASE) if masked else prints
    today = now.astimezone(ZoneInfo(terms.zone)).date()
    selects = {mart.full_name: mart.select(terms.zone, today, terms.policy.hidden) for mart in MARTS}
    marts = _mart_prints(selects, shown, declared, staging.name)
    kept = {
        mart: before / _mart_part(mart) for mart in selects if before and known and known.marts.get(mart) == marts[mart]
    }
    with _opened(warehouse, staging / DATABASE) as connection:
        rows = _make_marts(connection, staging, selects, kept, terms.policy)
        for table in declared:
            if table.shows:
                rows[table.full_name] = sum(rows[part.full_name] for part in table.shows)
                _show_months(table, staging)
                continue
            [(rows[table.full_name],)] = connection.execute(f"SELECT count(*) FROM {table.full_name}").fetchall()
            if table.schema == "raw":
                had = known.shown.get(table.full_name, {}) if known else {}
                _write_months(connection, table, staging, shown[table.full_name], had, before)
        source = dashboard.Source(
            query=lambda sql: with_room(connection, lambda: connection.execute(sql).fetchall()),
            mart=lambda mart: staging / _mart_part(mart),
            now=now.astimezone(ZoneInfo(terms.zone)),
            zone=terms.zone,
            hidden=terms.policy.hidden,
            fresh=timedelta(hours=terms.fresh_hours),
        )
        (staging / dashboard.FILE).write_text(dashboard.page(source), encoding="utf-8")
    return rows, _Memory(staging.name, terms.maker, prints, shown, marts), masked


@contextmanager
def _opened(warehouse: Warehouse, database: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """The copy that is to be published."""
    with warehouse.scratch() as connection:
        # Metadata that a checkpoint passes on as they were, some DuckDBs before 1.4 cannot load: this one writes all anew.
        connection.execute("SET experimental_metadata_reuse = false")
        attach(connection, database, "published")
        connection.execute("USE published")
        connection.execute("SET preserve_insertion_order = false")  # row groups by bytes need it
        yield connection


def _shown_prints(warehouse: Warehouse, database: Path) -> dict[str, dict[str, str]]:
    """Fingerprints of the tables as readers get them."""
    with _opened(warehouse, database) as connection:
        return {
            table.full_name: _fingerprints(connection, table) for table in tables(warehouse.streams) if not table.shows
        }


def _copy_masked(warehouse: Warehouse, file: Path, target: Path, policy: Policy) -> None:
    """Write what readers get of the warehouse to a file of its own, in which no byte of what is hidden ever was."""
    with warehouse.scratch() as connection:
        connection.execute(f"ATTACH {literal(str(file))} AS private (READ_ONLY)")
        attach(connection, target, "published")
        connection.execute("USE published")
        declared = tables(warehouse.streams)
        connection.execute("BEGIN")  # or each of some hundred comments would be flushed to the disk
        make_tables(connection, warehouse.streams)
        for table in declared:
            for column in table.columns:
                if (doc := policy.doc(table, column)) != column.doc:
                    connection.execute(f"COMMENT ON COLUMN {table.full_name}.{quoted(column.name)} IS {literal(doc)}")
        connection.execute("COMMIT")
        connection.execute("USE private")  # where the policy's conditions look
        policy = find_private_ids(connection, policy)
        for table in (table for table in declared if not table.shows):
            insert = f"INSERT INTO published.{table.full_name} {policy.select(table)}"
            with_room(connection, partial(connection.execute, insert))
        connection.execute("CHECKPOINT published")


def _files(folder: Path) -> dict[str, list[int]]:
    """Path in a generation -> size and time of change in ns, of all files but the manifest that says this."""
    found = ((os.path.relpath(one.path, folder), one.stat()) for one in _walk(folder) if one.is_file())
    return {name: [about.st_size, about.st_mtime_ns] for name, about in sorted(found) if name != "manifest.json"}


def _fresh_enough(warehouse: Warehouse, before: Generation, now: datetime) -> bool:
    """Whether the published account of what was synced when may stand for a while longer."""
    [(unseen,)] = warehouse.connection.execute(
        f"SELECT count(*) FROM {RUNS.full_name} WHERE started_at > ?", [before.published_at]
    ).fetchall()
    return not unseen or now - before.published_at < _FRESH


def _mart_prints(
    selects: dict[str, str], prints: dict[str, dict[str, str]], declared: tuple[Table, ...], once: str
) -> dict[str, str]:
    """Mart -> what changes when its statement does, or what it is made of; `once` where that changes unseen."""
    known = {table.full_name: once if table.volatile else json.dumps(prints.get(table.full_name)) for table in declared}
    for table in declared:
        if table.shows:
            known[table.full_name] = " ".join(known[shown.full_name] for shown in table.shows)
    for mart in MARTS:
        made_of = [selects[mart.full_name], *(known[name] for name in sorted(mart.reads))]
        known[mart.full_name] = hashlib.sha256("\n".join(made_of).encode()).hexdigest()
    return {mart.full_name: known[mart.full_name] for mart in MARTS}


def _fingerprints(connection: duckdb.DuckDBPyConnection, table: Table) -> dict[str, str]:
    """Month -> what changes when any of its rows does."""
    if not _telling(table):
        return {}
    # The microseconds are in UTC: on a TIMESTAMPTZ a calendar would be asked for each row.
    month = (
        f"date_trunc('month', make_timestamp(epoch_us({quoted(table.month_field)})))" if table.month_field else "NULL"
    )
    found = connection.execute(
        f"SELECT {month}, {_telling(table)} FROM {table.full_name} GROUP BY 1 ORDER BY 1"
    ).fetchall()
    return {month.isoformat()[:7] if month else UNDATED: f"{count} {total}" for month, count, total in found}


def _telling(table: Table) -> str:
    """What is counted and summed of rows; empty where nothing in them tells of a change.

    A row's texts are in its `_hash` already, so where there is one, only it and the system columns are read; likewise where the
    table says what tells.
    """
    names = list(table.telling) or [column.name for column in table.columns if column.name not in table.volatile]
    if "_hash" in names:
        names = [name for name in names if name == "id" or (name.startswith("_") and name != "_extra")]
    columns = ", ".join(map(quoted, names))
    return columns and f"count(*), sum(hash({columns})::HUGEINT)"


def _folder(table: Table) -> Path:
    return Path("parquet") / table.schema / table.name


def _write_months(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    staging: Path,
    prints: dict[str, str],
    had: dict[str, str],
    before: Path | None,
) -> None:
    """The table's files; one whose rows are as they were before is the same file, by a hard link."""
    written: dict[str, Path] = {}
    for month in sorted(prints or [UNDATED]):
        part = _folder(table) / f"month={month}" / "part.parquet"
        (staging / part).parent.mkdir(parents=True)
        if before and had.get(month) == prints.get(month) and (before / part).is_file():
            _link_or_copy(before / part, staging / part)
            continue
        _copy(connection, f"FROM {table.full_name} WHERE {_within(table, month)}", staging / part)
        if month in prints:
            written[month] = staging / part
    if written:
        held = " UNION ALL ".join(
            f"SELECT '{month}', {_telling(table)} FROM {parquet(part)}" for month, part in written.items()
        )
        found = {month: f"{count} {total}" for month, count, total in connection.execute(held).fetchall()}
        differ = [month for month in written if found[month] != prints[month]]
        if differ:
            raise OSError(f"{_folder(table)} does not hold what was written to it: {', '.join(differ)}")


def _make_marts(
    connection: duckdb.DuckDBPyConnection, staging: Path, selects: dict[str, str], kept: dict[str, Path], policy: Policy
) -> dict[str, int]:
    """Put the marts, and what they mean, into the copy that is to be published, and write a file of each.

    A mart that reads others is made of their files: their views, asked again and again, cost more.

    Args:
        connection: to the copy.
        staging: below which the files are.
        selects: mart -> its statement.
        kept: mart -> its file in the generation before, of those that did not change.
        policy: what it hides is said beside the columns.

    Returns:
        Mart -> rows.
    """
    rows = {}
    connection.execute("CREATE SCHEMA mart")
    for mart in MARTS:
        name, part = mart.full_name, staging / _mart_part(mart.full_name)
        part.parent.mkdir(parents=True)
        if name in kept:
            _link_or_copy(kept[name], part)
            counting = f"SELECT num_rows FROM parquet_file_metadata({literal(str(part))})"
            [(rows[name],)] = connection.execute(counting).fetchall()
        else:
            of_files = re.sub(r"\bmart\.\w+", lambda read: parquet(staging / _mart_part(read[0])), selects[name])
            [(rows[name],)] = _copy(connection, of_files, part)
        make = f"TABLE {name} AS FROM {parquet(part)}" if mart.stored else f"VIEW {name} AS {selects[name]}"
        with_room(connection, partial(connection.execute, f"CREATE {make}"))
    connection.execute("BEGIN")
    for mart in MARTS:
        kind = "TABLE" if mart.stored else "VIEW"
        connection.execute(f"COMMENT ON {kind} {mart.full_name} IS {literal(mart.doc)}")
        for one in mart.fields:
            doc = one.doc + one.hidden(policy.hidden)
            connection.execute(f"COMMENT ON COLUMN {mart.full_name}.{quoted(one.name)} IS {literal(doc)}")
    connection.execute("COMMIT")
    connection.execute("CHECKPOINT published")
    return rows


def _mart_part(mart: str) -> Path:
    """Where its file is, below a generation, by its full name."""
    return Path("parquet", *mart.split("."), "part.parquet")


def _copy(connection: duckdb.DuckDBPyConnection, select: str, target: Path) -> list[tuple[int]]:
    """Write what a statement selects to a Parquet file; returns DuckDB's answer: how many rows."""
    copy = f"""COPY ({select}) TO {literal(str(target))}
        (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, ROW_GROUP_SIZE {_ROW_GROUP}, ROW_GROUP_SIZE_BYTES '16MB')"""
    return with_room(connection, lambda: connection.execute(copy).fetchall())


def _show_months(view: Table, staging: Path) -> None:
    """The files of the tables that the view shows, by hard links."""
    for number, table in enumerate(view.shows):
        for part in (staging / _folder(table)).glob("month=*/part.parquet"):
            shown = staging / _folder(view) / part.parent.name
            shown.mkdir(parents=True, exist_ok=True)
            _link_or_copy(part, shown / (f"part-{number}.parquet" if number else "part.parquet"))


def _within(table: Table, month: str) -> str:
    """The condition for the rows of a month, as a range: DuckDB then reads hardly any others."""
    if not table.month_field:
        return "true"
    dated = quoted(table.month_field)
    if month == UNDATED:
        return f"{dated} IS NULL"
    begin = f"TIMESTAMPTZ '{month}-01 00:00:00+00'"
    return f"{dated} >= {begin} AND {dated} < {begin} + INTERVAL 1 MONTH"


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _make_durable(staging: Path) -> None:
    """Flush every file and folder, and let readers of this machine read them but nobody write them.

    A file that nobody may write is one of the generation before, and was flushed with it.
    """
    for one in _walk(staging):
        mode = 0o755 if one.is_dir() else 0o444
        if stat.S_IMODE(one.stat().st_mode) != mode or one.is_dir():
            Path(one).chmod(mode)
            flush(Path(one))
    staging.chmod(0o755)
    flush(staging)


def _walk(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as inside:
        for one in inside:
            if one.is_dir():
                yield from _walk(one.path)
            yield one


def _flip(data_dir: Path, generation: Path) -> None:
    link = data_dir / f".current-{secrets.token_hex(3)}"
    link.symlink_to(generation.relative_to(data_dir))
    link.replace(data_dir / "current")
    flush(data_dir)


def _clean_up(data_dir: Path, now: datetime, keep: Keep) -> None:
    """Remove what killed publishes left behind, and generations that were replaced long ago.

    The one before the current one stays, however old: a clock that jumps ahead takes nothing from a reader.
    Called under the writer's lock, so nothing here is at work.
    """
    shutil.rmtree(data_dir / "staging", ignore_errors=True)
    for link in data_dir.glob(".current-*"):
        link.unlink()
    live = _current_or_none(data_dir)
    for folder in generations(data_dir):
        if live is None or folder.name > live.name:  # it never became current
            shutil.rmtree(folder)
    if live and live.manifest.get("policy", {}).get("applied"):  # where a kill kept it from being done
        _drop_of_other_policies(data_dir, live.manifest["policy"]["digest"])
    folders = generations(data_dir)
    replaced = [folder for folder in folders if live and folder.name < live.name]
    surplus = max(0, len(replaced) + 2 - keep.most)  # besides the current one and the next
    for number, (folder, successor) in enumerate(zip_longest(replaced, replaced[1:])):
        if number < surplus or (successor and _made_at(successor.name) < now - timedelta(days=keep.days)):
            shutil.rmtree(folder)


def _current_or_none(data_dir: Path) -> Generation | None:
    try:
        return current(data_dir)
    except StorageError:
        return None


def _made_at(name: str) -> datetime:
    return datetime.strptime(name.partition("-")[0], _STAMP).replace(tzinfo=UTC)
