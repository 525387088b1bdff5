"""What the published tables must hold, computed from the sandbox's truth in plain Python.

Nothing here uses the pipeline's coercions: only its declarations of column names and kinds.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from contio_pipeline.generations import current
from contio_pipeline.sandbox.world import World
from contio_pipeline.settings import Settings
from contio_pipeline.streams import STREAMS, Stream, tables

Row = dict[str, Any]


def instant(text: str | None) -> datetime | None:
    """The instant that an API time names, to the microsecond; None where it names none."""
    if text is None or "T" not in text or (text[-1:] not in "Zz" and text[-6] not in "+-"):
        return None
    body, minutes = (text[:-1], 0) if text[-1] in "Zz" else (text[:-6], _minutes(text[-6:]))
    seconds, _, fraction = body.partition(".")
    moment = datetime.strptime(seconds, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    return moment + timedelta(microseconds=int(f"{fraction:0<6}"[:6] or 0)) - timedelta(minutes=minutes)


def _minutes(offset: str) -> int:
    return (1 if offset[0] == "+" else -1) * (int(offset[1:3]) * 60 + int(offset[4:6]))


def expected_row(stream: Stream, account: str, item: Row, parent: str | None = None) -> Row:
    """The live row of an API item, without the columns that say when it was seen."""
    row: Row = {"_account": account}
    extra = {name: value for name, value in item.items() if name not in {c.name for c in stream.columns}}
    for column in stream.columns:
        value = item.get(column.name)
        if column.kind == "timestamp":
            row[column.name] = instant(value)
            if value is not None and row[column.name] is None:
                extra[column.name] = value
        elif column.kind == "date":
            row[column.name] = None if value is None else date.fromisoformat(value[:10])
            row[f"{column.name}_raw"] = value
        else:
            row[column.name] = value
    canonical = json.dumps(item, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    row |= {"_extra": extra or None, "_hash": hashlib.sha256(canonical.encode()).hexdigest()}
    if stream.parent:
        row["_parent_id"] = parent
    return row


def expected(world: World, settings: Settings, stream: Stream, account: str) -> dict[str, Row]:
    """Id -> expected live row."""
    if stream.parent:
        return {
            item["id"]: expected_row(stream, account, item, meeting["id"])
            for meeting in world.items(account, stream.parent)
            for item in world.items(account, stream.name, parent=meeting["id"])
        }
    if stream.dates == "required":
        start, end = settings.calendar_range(datetime.now(UTC))
        items = world.select(account, stream.name, start=start, end=end)
    else:
        items = world.items(account, stream.name)
    return {item["id"]: expected_row(stream, account, item) for item in items}


def stored(connection: duckdb.DuckDBPyConnection, table: str) -> list[Row]:
    """All rows of a published table, JSON parsed."""
    answer = connection.sql(f"SELECT * FROM {table}")
    kinds = dict(zip(answer.columns, map(str, answer.types), strict=True))
    return [_parsed(row, kinds) for row in answer.to_arrow_table().to_pylist()]


def _parsed(row: Row, kinds: dict[str, str]) -> Row:
    return {
        name: json.loads(value) if kinds[name] == "JSON" and value is not None else value for name, value in row.items()
    }


def check(
    world: World, settings: Settings, accounts: list[str] | None = None, *, streams: list[str] | None = None
) -> None:
    """Assert that DuckDB, Parquet and documents of the current generation equal the truth.

    With `streams`, only their tables are looked at.
    """
    generation = current(settings.data_dir)
    accounts = accounts or list(world.accounts)
    with duckdb.connect(generation.database, read_only=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for stream in settings.listed(STREAMS):
            if streams and stream.name not in streams:
                continue
            rows = [row for row in stored(connection, stream.table.full_name) if row["_deleted_at"] is None]
            for account in accounts:
                wanted = expected(world, settings, stream, account)
                mine = {row["id"]: row for row in rows if row["_account"] == account}
                assert len(mine) == sum(row["_account"] == account for row in rows), f"{stream.name}: an id twice"
                assert mine.keys() == wanted.keys(), f"{account} {stream.name}"
                for identity, want in wanted.items():
                    found = {name: mine[identity][name] for name in want}
                    assert found == want, f"{account} {stream.name} {identity}"
                    assert mine[identity]["_missing_since"] is None
        profiles = {row["_account"]: row for row in stored(connection, "raw.accounts")}
        for account in accounts:
            profile = world.accounts[account].profile
            assert {name: profiles[account][name] for name in ("id", "display_name", "email")} == {
                name: profile.get(name) for name in ("id", "display_name", "email")
            }
        contents = {(row["_account"], row["id"]): row for row in stored(connection, "raw.document_contents")}
    for account in accounts if not streams else ():
        check_contents(world, settings, account, contents)
    check_parquet(generation.folder, generation.database)


def check_contents(world: World, settings: Settings, account: str, contents: dict[tuple[str, str], Row]) -> None:
    """Assert that every visible document's bytes are stored, or that its state says why not."""
    for identity, want in world.truth(account)["contents"].items():
        found = contents[account, identity]
        held_back = {"pending": "waiting", "processing": "waiting", "error": "error"}
        state = held_back.get(want["file_status"], "stored")
        assert found["state"] == state, (identity, found)
        if state == "stored":
            assert (found["sha256"], found["size_bytes"]) == (want["sha256"], want["size"])
            digest = found["sha256"]
            path = settings.data_dir / "documents" / digest[:2] / digest[2:4] / digest
            assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
        else:
            assert found["reason"]


def check_parquet(folder: Path, database: Path) -> None:
    """Assert that the Parquet files hold exactly the rows of the DuckDB file, each in its month."""
    with duckdb.connect(database, read_only=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        held = {
            table.name: connection.sql(f"SELECT * FROM {table.full_name}").to_arrow_table().to_pylist()
            for table in tables()
            if table.schema == "raw"
        }
    for table in tables():
        if table.schema != "raw":
            continue
        found: list[Row] = []
        for part in (folder / "parquet" / "raw" / table.name).glob("month=*/part*.parquet"):
            month = part.parent.name.removeprefix("month=")
            for row in pq.ParquetFile(part).read().to_pylist():
                moment = row[table.month_field] if table.month_field else None
                assert month == (f"{moment:%Y-%m}".zfill(7) if moment else "undated"), (table.name, row)
                found.append(row)
        assert sorted(map(repr, found)) == sorted(map(repr, held[table.name])), table.name
