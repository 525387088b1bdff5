"""The private DuckDB file: transactions, who is missing, versions, locks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contio_pipeline.errors import ConfigError, StorageError, WarehouseBusy
from contio_pipeline.publish import publish
from contio_pipeline.rows import decode
from contio_pipeline.streams import STREAMS, Column, Stream, stream_named, tables
from contio_pipeline.warehouse import Changes, Listing, Scope, Warehouse, Window
from contio_pipeline.workfile import SCHEMA_VERSION

ORIGIN = "https://api.example.com"
NOW = datetime(2026, 11, 1, tzinfo=UTC)
MEETINGS = stream_named("meetings")
DOCUMENTS = stream_named("context_documents")


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Warehouse]:
    with Warehouse(tmp_path / "data", origin=ORIGIN) as opened:
        yield opened


def commit(
    warehouse: Warehouse,
    items: list[Any],
    *,
    stream: Stream = MEETINGS,
    account: str = "ana",
    scope: Scope | None = None,
    complete: bool = True,
    now: datetime = NOW,
    parent: str | None = None,
) -> Changes:
    stage = warehouse.stage(stream)
    stage.begin_pass()
    stage.add(decode(stream.columns, items), parent)
    listing = Listing(complete=complete, total=len(items))
    return warehouse.commit(stage, account, Window(), listing, scope or Scope(), "run", now)


def titles(warehouse: Warehouse, where: str = "_deleted_at IS NULL") -> dict[str, str]:
    return dict(warehouse.connection.execute(f"SELECT id, title FROM raw.meetings WHERE {where}").fetchall())


def test_the_newest_version_of_a_row_wins_and_of_equals_the_last_seen(warehouse: Warehouse) -> None:
    commit(
        warehouse,
        [
            {"id": "a", "title": "new", "updated_at": "2026-01-02T00:00:00Z"},
            {"id": "a", "title": "old", "updated_at": "2026-01-01T00:00:00Z"},
            {"id": "b", "title": "first"},
            {"id": "b", "title": "last"},
        ],
    )
    assert titles(warehouse) == {"a": "new", "b": "last"}


def test_rows_of_two_accounts_never_meet(warehouse: Warehouse) -> None:
    commit(warehouse, [{"id": "a", "title": "ana's"}])
    commit(warehouse, [{"id": "a", "title": "bo's"}], account="bo")
    assert commit(warehouse, []).missing == ["a"]
    rows = warehouse.connection.execute("SELECT _account, title, _missing_since IS NULL FROM raw.meetings").fetchall()
    assert sorted(rows) == [("ana", "ana's", False), ("bo", "bo's", True)]


def test_only_a_complete_listing_marks_what_it_lacks(warehouse: Warehouse) -> None:
    commit(warehouse, [{"id": "a"}, {"id": "b"}])
    assert commit(warehouse, [{"id": "a"}], complete=False).missing == []
    assert commit(warehouse, [{"id": "a"}]).missing == ["b"]
    assert commit(warehouse, [{"id": "a"}, {"id": "b"}]).missing == []
    assert titles(warehouse, "_missing_since IS NOT NULL") == {}


@pytest.mark.parametrize(
    ("start_time", "expected"),
    [
        ("2026-10-01T00:00:00Z", True),
        ("2026-10-31T23:59:59.999Z", True),
        ("2026-11-01T00:00:00Z", False),
        ("2026-09-30T23:59:59Z", False),
        (None, False),
        ("2026-10-02", True),  # an all-day event: in the window in every zone
        ("2026-10-15T09:00:00", True),
        ("2026-10-01", False),  # in some zones it begins before the window
        ("2026-10-31", False),
    ],
)
def test_a_window_expects_the_rows_dated_in_it_half_open(warehouse: Warehouse, start_time: str, expected: bool) -> None:
    commit(warehouse, [{"id": "a", "start_time": start_time}])
    scope = Scope(dates=(datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)))
    assert commit(warehouse, [], scope=scope).missing == (["a"] if expected else [])


def test_a_row_that_the_filter_does_not_see_is_not_expected_until_it_is_returned(warehouse: Warehouse) -> None:
    row = {"id": "a", "start_time": "2026-10-05T00:00:00Z"}
    scope = Scope(dates=(datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)))
    commit(warehouse, [row])
    warehouse.settle(MEETINGS, "ana", gone={}, blind=["a"], run_id="run", now=NOW)
    assert commit(warehouse, [], scope=scope).missing == []
    assert commit(warehouse, []).missing == ["a"]  # a full listing expects it all the same
    commit(warehouse, [row], scope=scope)
    assert commit(warehouse, [], scope=scope).missing == ["a"]


def test_children_are_expected_under_the_parents_that_were_listed(warehouse: Warehouse) -> None:
    commit(warehouse, [{"id": "x"}], stream=DOCUMENTS, parent="m1", scope=Scope(parents=("m1",)))
    commit(warehouse, [{"id": "y"}], stream=DOCUMENTS, parent="m2", scope=Scope(parents=("m2",)))
    assert commit(warehouse, [], stream=DOCUMENTS, scope=Scope(parents=("m2",))).missing == ["y"]


def test_rows_that_are_kept_as_they_are_stored_stay_under_their_own_parents(warehouse: Warehouse) -> None:
    for parent in ("m1", "m2"):
        rows = [{"id": f"{parent}-{number}"} for number in range(3)]
        commit(warehouse, rows, stream=DOCUMENTS, parent=parent, scope=Scope(parents=(parent,)))
    commit(warehouse, [], stream=DOCUMENTS, scope=Scope(parents=("m1", "m2")))  # all of them are missing
    before = warehouse.query("SELECT id, _parent_id FROM raw.context_documents ORDER BY id")
    stage = warehouse.stage(DOCUMENTS)
    stage.begin_pass()
    stage.accept()
    stage.keep("ana", [row["id"] for row in before])
    changes = warehouse.commit(stage, "ana", Window(), Listing(), Scope(), "run", NOW)
    assert (changes.unchanged, changes.missing) == (6, [])
    assert warehouse.query("SELECT id, _parent_id FROM raw.context_documents ORDER BY id") == before
    assert warehouse.query("SELECT count(*) AS n FROM raw.context_documents WHERE _missing_since IS NOT NULL") == [
        {"n": 0}
    ]


def test_what_became_of_a_row_is_told_of_its_current_version_and_of_deletions_only(warehouse: Warehouse) -> None:
    commit(warehouse, [{"id": "a", "title": "one"}])
    changes = commit(warehouse, [], now=NOW + timedelta(days=1))
    gone = dict.fromkeys(changes.missing, "not_found")
    warehouse.settle(MEETINGS, "ana", gone=gone, run_id="gone", now=NOW + timedelta(days=2))
    commit(warehouse, [{"id": "a", "title": "one"}], now=NOW + timedelta(days=3))
    told = warehouse.query("FROM raw.meetings_history ORDER BY _changed_at")
    assert [(row["_operation"], row["_gone_reason"], row["_missing_since"]) for row in told] == [
        ("insert", None, None),
        ("delete", "not_found", None),
        ("undelete", None, None),
    ]
    assert [row["_deleted_at"] for row in told] == [None, NOW + timedelta(days=2), None]


def test_a_broken_row_counts_as_seen(warehouse: Warehouse) -> None:
    commit(warehouse, [{"id": "a", "title": "good"}])
    changes = commit(warehouse, [{"id": "a", "title": 5}])
    assert (changes.missing, changes.quarantined) == ([], 1)
    assert titles(warehouse) == {"a": "good"}


def test_a_failed_commit_leaves_nothing_behind(warehouse: Warehouse) -> None:
    commit(warehouse, [{"id": "a", "title": "before"}])
    stage = warehouse.stage(MEETINGS)
    stage.begin_pass()
    stage.add(decode(MEETINGS.columns, [{"id": "a", "title": "after"}, {"id": "b"}]))
    with pytest.raises(duckdb.Error):
        # The window's row comes last in the transaction: one that does not fit its column fails after all else was done.
        warehouse.commit(stage, "ana", Window("nonsense", None), Listing(), Scope(), "run", NOW)  # type: ignore[arg-type]
    assert titles(warehouse) == {"a": "before"}
    assert warehouse.connection.execute("SELECT count(*) FROM raw.meetings_history").fetchall() == [(1,)]
    commit(warehouse, [{"id": "a", "title": "after"}])
    assert titles(warehouse) == {"a": "after"}


ITEM = st.fixed_dictionaries({"id": st.sampled_from("abcdef"), "title": st.sampled_from(["x", "y", "ü\n'\"", ""])})


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(ITEM, max_size=8), min_size=1, max_size=4))
def test_after_any_listings_the_table_is_the_last_one_and_repeating_it_adds_nothing(listings: list[list[Any]]) -> None:
    """The model: a dictionary; deletions are settled at once."""
    with tempfile.TemporaryDirectory() as folder, Warehouse(Path(folder), origin=ORIGIN) as opened:
        now = NOW
        for items in listings:
            for _repeat in range(2):
                now += timedelta(days=1)
                changes = commit(opened, items, now=now)
                later = now + timedelta(minutes=1)
                opened.settle(
                    MEETINGS, "ana", gone=dict.fromkeys(changes.missing, "not_found"), run_id="run", now=later
                )
            assert (changes.inserted, changes.updated, changes.missing) == (0, 0, [])
            assert titles(opened) == {item["id"]: item["title"] for item in items}
        operations = opened.connection.execute("""
            SELECT id, list(_operation ORDER BY _changed_at) FROM raw.meetings_history GROUP BY 1""").fetchall()
        for _id, told in operations:  # every history begins with an insert, and a row leaves only after it was there
            assert told[0] == "insert"
            assert all(before != "delete" or after == "undelete" for before, after in pairwise(told))


# The file -------------------------------------------------------------------------------------------------------------


def test_every_table_and_column_says_what_it_is(warehouse: Warehouse) -> None:
    silent = warehouse.connection.execute("""
        SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal AND schema_name <> 'main' AND comment IS NULL
        UNION ALL SELECT table_name, NULL FROM duckdb_tables() WHERE schema_name <> 'main' AND comment IS NULL
        UNION ALL SELECT view_name, NULL FROM duckdb_views() WHERE NOT internal AND comment IS NULL
    """).fetchall()
    assert silent == []
    found = warehouse.connection.execute("SELECT table_schema || '.' || table_name FROM information_schema.tables")
    assert {table.full_name for table in tables()} <= {name for (name,) in found.fetchall()}


def test_a_second_process_is_told_who_writes(warehouse: Warehouse) -> None:
    with pytest.raises(WarehouseBusy, match=str(os.getpid())):
        Warehouse(warehouse.path.parent, origin=ORIGIN)


def test_the_rows_of_two_servers_are_never_mixed(tmp_path: Path) -> None:
    Warehouse(tmp_path, origin=ORIGIN).close()
    with pytest.raises(ConfigError, match=r"holds the rows of https://api\.example\.com"):
        Warehouse(tmp_path, origin="https://beta.example.com")
    Warehouse(tmp_path, origin=ORIGIN).close()


def test_a_newer_warehouse_is_refused_and_not_touched(tmp_path: Path) -> None:
    Warehouse(tmp_path, origin=ORIGIN, version=SCHEMA_VERSION + 1).close()
    before = (tmp_path / "warehouse.duckdb").read_bytes()
    with pytest.raises(
        ConfigError, match=f"version {SCHEMA_VERSION + 1}, this program knows {SCHEMA_VERSION}: upgrade"
    ):
        Warehouse(tmp_path, origin=ORIGIN)
    assert (tmp_path / "warehouse.duckdb").read_bytes() == before


def test_an_older_warehouse_migrates_after_a_copy(tmp_path: Path) -> None:
    with Warehouse(tmp_path, origin=ORIGIN) as opened:
        commit(opened, [{"id": "a", "title": "kept"}])
    migrations = {
        SCHEMA_VERSION: lambda connection: connection.execute("UPDATE raw.meetings SET title = upper(title)"),
        SCHEMA_VERSION + 1: lambda connection: connection.execute("UPDATE raw.meetings SET title = title || '!'"),
    }
    with Warehouse(tmp_path, origin=ORIGIN, version=SCHEMA_VERSION + 2, migrations=migrations) as opened:
        assert titles(opened) == {"a": "KEPT!"}
    with duckdb.connect(tmp_path / f"warehouse-version-{SCHEMA_VERSION}.duckdb", read_only=True) as copy:
        assert copy.execute("SELECT title FROM raw.meetings").fetchall() == [("kept",)]


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    with Warehouse(tmp_path, origin=ORIGIN) as opened:
        commit(opened, [{"id": "a", "title": "kept"}])
    broken = {SCHEMA_VERSION: lambda connection: connection.execute("DELETE FROM raw.meetings; SELECT nonsense")}
    with pytest.raises(duckdb.Error):
        Warehouse(tmp_path, origin=ORIGIN, version=SCHEMA_VERSION + 1, migrations=broken)
    with Warehouse(tmp_path, origin=ORIGIN) as opened:
        assert titles(opened) == {"a": "kept"}


def test_a_history_that_held_the_current_versions_too_tells_the_same_afterwards(tmp_path: Path) -> None:
    """Version 1: `raw.<stream>_history` was a table with every version."""
    told = """SELECT _account, id, title, _hash, _operation, _changed_at, _run_id FROM raw.meetings_history
        ORDER BY ALL"""
    later = [NOW + timedelta(days=days) for days in range(5)]
    with Warehouse(tmp_path, origin=ORIGIN) as opened:
        for now, items in zip(later, ["ab", "Ab", "A", "AB", "AB"], strict=True):
            changes = commit(opened, [{"id": item.lower(), "title": item} for item in items], now=now)
            opened.settle(
                MEETINGS,
                "ana",
                gone=dict.fromkeys(changes.missing, "not_found"),
                run_id="gone",
                now=now + timedelta(hours=1),
            )
        commit(opened, [{"id": "a", "title": "another's"}], account="bo")
        before, rows = opened.query(told), opened.query("FROM raw.meetings ORDER BY ALL")
        commit(opened, [{"id": "d"}], stream=DOCUMENTS, parent="m1", now=NOW)
        documents = "SELECT id, _hash, _operation, _changed_at FROM raw.context_documents_history"
        document = opened.query(documents)
        assert {row["_operation"] for row in before} == {"insert", "update", "delete", "undelete"}
        for stream in STREAMS:
            payload = ", ".join(f'"{column.name}"' for column in stream.payload_columns)
            opened.connection.execute(f"""
                CREATE TABLE raw.kept AS SELECT _account, {payload}, _operation, _changed_at, _run_id
                FROM {stream.history.full_name} ORDER BY _changed_at;
                DROP VIEW {stream.history.full_name};
                ALTER TABLE raw.kept RENAME TO {stream.history.name};
                ALTER TABLE {stream.table.full_name} DROP COLUMN _operation;
                ALTER TABLE {stream.table.full_name} DROP COLUMN _run_id""")
            opened.connection.execute(f"DROP TABLE {stream.past.full_name}")
        opened.connection.execute("UPDATE ops.meta SET value = '1' WHERE key = 'schema_version'")
        opened.connection.execute(
            "UPDATE raw.context_documents SET _changed_at = now(), _parent_id = 'm2'"
        )  # it had moved
    with Warehouse(tmp_path, origin=ORIGIN) as opened:
        assert opened.query(told) == before
        assert opened.query(documents) == document
        deletions = opened.query(
            "SELECT _gone_reason, _deleted_at FROM raw.meetings_history WHERE _operation = 'delete'"
        )
        assert {row["_gone_reason"] for row in deletions} <= {"not_found", None}
        assert all(row["_deleted_at"] for row in deletions)
        columns = ", ".join(f'"{name}"' for name in rows[0])
        assert opened.query(f"SELECT {columns} FROM raw.meetings ORDER BY ALL") == rows
        assert commit(opened, [{"id": "a", "title": "A"}, {"id": "b", "title": "B"}]).unchanged == 2


def test_a_field_that_becomes_known_is_filled_when_the_row_is_seen_again(tmp_path: Path) -> None:
    item = {"id": "a", "title": "t", "score": "high"}
    with Warehouse(tmp_path, origin=ORIGIN) as opened:
        commit(opened, [item, {"id": "b"}])
    grown = Stream(
        **{name: getattr(MEETINGS, name) for name in MEETINGS.__slots__ if name != "columns"},
        columns=(*MEETINGS.columns, Column("score", "text", "A score.")),
    )
    streams = tuple(grown if stream is MEETINGS else stream for stream in STREAMS)
    with Warehouse(tmp_path, origin=ORIGIN, streams=streams) as opened:
        assert commit(opened, [item, {"id": "b"}], stream=grown).updated == 1
        rows = opened.connection.execute("SELECT id, score, _extra FROM raw.meetings ORDER BY id").fetchall()
        assert rows == [("a", "high", None), ("b", None, None)]


def test_a_file_that_is_no_warehouse_is_named(tmp_path: Path) -> None:
    (tmp_path / "warehouse.duckdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(StorageError, match=r"warehouse\.duckdb"):
        Warehouse(tmp_path, origin=ORIGIN)


def test_a_folder_that_cannot_be_made_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="CONTIO_DATA_DIR"):
        Warehouse(tmp_path / "file" / "data", origin=ORIGIN)


def test_no_code_opens_the_file_while_duckdb_has_it_open(tmp_path: Path) -> None:
    """Closing any descriptor drops the process's POSIX lock on the file; an audit hook sees every `open` of Python's."""
    script = f"""
        import sys
        from datetime import UTC, datetime
        from pathlib import Path
        from contio_pipeline.warehouse import Warehouse
        from contio_pipeline.publish import publish

        seen = []
        opened = None
        def watch(event, arguments):
            if event == "open" and str(arguments[0]).endswith(("warehouse.duckdb", "warehouse.duckdb.wal")):
                seen.append(opened is not None and opened._connection is not None)
        sys.addaudithook(watch)
        opened = Warehouse(Path({str(tmp_path)!r}), origin="https://api.example.com")
        publish(opened, datetime.now(UTC))
        opened.close()
        print(seen)
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    seen = eval(done.stdout)  # noqa: S307 - a list of booleans that we printed
    assert seen, "the copy for readers was not seen: the test watches nothing"
    assert not any(seen)


def test_killed_at_any_moment_no_committed_window_is_lost(tmp_path: Path) -> None:
    """A process commits rows and says so; it is killed; what it said is there and whole, and history agrees."""
    script = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_warehouse import commit
        from contio_pipeline.warehouse import Warehouse
        with Warehouse(Path({str(tmp_path)!r}), origin="https://api.example.com") as opened:
            for number in range(int(sys.argv[1]), 10_000):
                commit(opened, [{{"id": f"{{number}}-{{k}}", "title": "t"}} for k in range(20)], complete=False)
                print(number, flush=True)
        """
    said = -1
    for delay in (0.05, 0.11, 0.17, 0.23):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(said + 1)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout
        first = process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        lines = [first, *process.stdout.readlines()]
        process.stdout.close()
        process.wait()
        said = max(int(line) for line in lines if line.strip())
        with Warehouse(tmp_path, origin=ORIGIN) as opened:
            counts = opened.connection.execute("""
                SELECT count(*), count(DISTINCT split_part(id, '-', 1)) FROM raw.meetings""").fetchall()[0]
            assert counts[0] == 20 * counts[1]
            assert counts[1] >= said + 1
            assert opened.connection.execute("SELECT count(*) FROM raw.meetings_history").fetchall() == [(counts[0],)]
            said = counts[1] - 1


@pytest.mark.parametrize("read_only", [True, False])
def test_a_file_that_another_program_has_open_is_busy_and_not_damaged(read_only: bool, tmp_path: Path) -> None:
    with Warehouse(tmp_path, origin=ORIGIN) as opened:
        path = opened.path
    script = f"import duckdb, sys; c = duckdb.connect({str(path)!r}, read_only={read_only}); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        with pytest.raises(WarehouseBusy, match=f"open in another program .*PID {other.pid}.*: close it there"):
            Warehouse(tmp_path, origin=ORIGIN)
    with Warehouse(tmp_path, origin=ORIGIN):
        pass


def test_closing_for_a_copy_keeps_the_writers_lock(warehouse: Warehouse) -> None:
    with warehouse.closed_file() as file, pytest.raises(WarehouseBusy):
        Warehouse(file.parent, origin=ORIGIN)
    commit(warehouse, [{"id": "a"}])
    publish(warehouse, NOW + timedelta(days=1))
    assert titles(warehouse).keys() == {"a"}


def test_rows_that_are_huge_get_the_memory_they_need(warehouse: Warehouse) -> None:
    texts = {f"{number:03}": f"{number} " * 300_000 for number in range(150)}
    stage = warehouse.stage(MEETINGS)
    stage.begin_pass()
    for identity, notes in texts.items():
        stage.add(decode(MEETINGS.columns, [{"id": identity, "summary_notes": notes}]))
    assert len(stage.sample(3)) == 3
    warehouse.commit(stage, "ana", Window(), Listing(total=150), Scope(), "run", NOW)
    generation, _new = publish(warehouse, NOW)
    with duckdb.connect(generation.database, read_only=True) as connection:
        found = connection.execute("SELECT id, summary_notes FROM raw.meetings").fetchall()
    assert dict(found) == texts
    files = [str(path) for path in generation.folder.glob("parquet/raw/meetings/*/part.parquet")]
    assert dict(duckdb.sql(f"SELECT id, summary_notes FROM read_parquet({files})").fetchall()) == texts


@pytest.mark.parametrize("damage", ["half", "middle"])
def test_a_damaged_file_is_named_with_what_to_do(damage: str, tmp_path: Path) -> None:
    with Warehouse(tmp_path, origin=ORIGIN) as opened:
        commit(opened, [{"id": f"{number}", "title": str(number) * 20} for number in range(5000)])
        file = opened.path
    whole = file.read_bytes()
    eighth = len(whole) // 8
    middle = bytes(reversed(whole[eighth : -2 * eighth]))
    file.write_bytes(whole[: 4 * eighth] if damage == "half" else whole[:eighth] + middle + whole[-2 * eighth :])

    def use() -> None:
        with Warehouse(tmp_path, origin=ORIGIN) as opened:
            commit(opened, [{"id": f"{number}", "title": "new"} for number in range(5000)])
            publish(opened, NOW)

    with pytest.raises(
        StorageError, match=r"warehouse\.duckdb is damaged .*: restore it from a backup, or move it away"
    ):
        use()


def test_what_does_not_fit_into_memory_goes_to_a_private_folder_that_does_not_outlive_the_process(
    tmp_path: Path,
) -> None:
    script = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_warehouse import *
        opened = Warehouse(Path({str(tmp_path)!r}), origin=ORIGIN)
        stage = opened.stage(MEETINGS)
        stage.begin_pass()
        for number in range(300):
            rows = [{{"id": f"{{number}}-{{k}}", "summary_notes": f"{{number}} {{k}} " * 50_000}} for k in range(2)]
            stage.add(decode(MEETINGS.columns, rows))
        print(flush=True)
        sys.stdin.read()
        """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, umask=0o022) as process:
        assert process.stdout
        process.stdout.readline()
        folder = tmp_path / "warehouse.duckdb.tmp"
        assert folder.stat().st_mode & 0o077 == 0
        assert sum(file.stat().st_size for file in folder.iterdir()) > 2**20
        process.kill()
    assert list(folder.iterdir())
    with Warehouse(tmp_path, origin=ORIGIN):
        assert list(folder.iterdir()) == []
    assert not folder.exists()
