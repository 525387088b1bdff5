"""Generations: atomic, immutable, collected late, read without a single error while they are made."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from test_warehouse import NOW, ORIGIN, commit

from contio_pipeline import publish as module
from contio_pipeline.errors import ConfigError, NothingPublished, StorageError
from contio_pipeline.generations import ask, current
from contio_pipeline.publish import Keep, Terms, publish
from contio_pipeline.streams import stream_named
from contio_pipeline.warehouse import Warehouse

READERS = ("1.2.2", "1.3.2", "1.4.4", "2.0.0")
ROOT = Path(__file__).parent.parent


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Warehouse]:
    with Warehouse(tmp_path / "data", origin=ORIGIN) as opened:
        commit(opened, [row("a", "2026-01-31T23:59:59.9Z"), row("b", "2026-02-01T00:30:00+01:00"), row("c", None)])
        yield opened


def row(identity: str, start_time: str | None, title: str = "t") -> dict[str, Any]:
    return {"id": identity, "title": title, "start_time": start_time}


def parts(folder: Path) -> dict[str, Path]:
    return {path.parent.name: path for path in (folder / "parquet/raw/meetings").glob("month=*/part.parquet")}


def test_a_generation_holds_a_database_a_file_per_utc_month_and_a_manifest(warehouse: Warehouse) -> None:
    generation, new = publish(warehouse, NOW)
    assert new
    assert (warehouse.path.parent / "current").resolve() == generation.folder
    assert not (warehouse.path.parent / "current").readlink().is_absolute()
    ids = {
        month: pq.ParquetFile(path).read().column("id").to_pylist() for month, path in parts(generation.folder).items()
    }
    assert ids == {"month=2026-01": ["a", "b"], "month=undated": ["c"]}
    assert generation.manifest["rows"]["raw.meetings"] == 3
    assert generation.manifest["versions"]["duckdb"] == duckdb.__version__
    assert not list(generation.folder.rglob("*.wal"))


def test_nothing_changed_makes_no_generation(warehouse: Warehouse) -> None:
    first, _ = publish(warehouse, NOW)
    again, new = publish(warehouse, NOW + timedelta(days=3))
    assert (again, new) == (first, False)


def test_a_sync_that_found_nothing_is_published_once_the_last_account_of_it_is_old(warehouse: Warehouse) -> None:
    first, _ = publish(warehouse, NOW)
    warehouse.put_run({"run_id": "r", "started_at": NOW + timedelta(minutes=1)})
    assert publish(warehouse, NOW + timedelta(minutes=30)) == (first, False)
    _, new = publish(warehouse, NOW + timedelta(minutes=61))
    assert new


def test_any_change_makes_a_new_generation_and_only_its_month_is_written_anew(warehouse: Warehouse) -> None:
    first, _ = publish(warehouse, NOW)
    commit(warehouse, [row("c", None, "changed")], complete=False)
    second, new = publish(warehouse, NOW + timedelta(minutes=1))
    assert new
    before, after = parts(first.folder), parts(second.folder)
    assert before["month=2026-01"].stat().st_ino == after["month=2026-01"].stat().st_ino
    assert before["month=undated"].stat().st_ino != after["month=undated"].stat().st_ino
    assert pq.ParquetFile(before["month=undated"]).read().column("title").to_pylist() == ["t"]
    assert pq.ParquetFile(after["month=undated"]).read().column("title").to_pylist() == ["changed"]


def test_a_deletion_alone_is_a_change(warehouse: Warehouse) -> None:
    publish(warehouse, NOW)
    warehouse.settle(stream_named("meetings"), "ana", gone={"a": "not_found"}, run_id="run", now=NOW)
    generation, new = publish(warehouse, NOW)
    assert new
    table = pq.ParquetFile(parts(generation.folder)["month=2026-01"]).read()
    assert (
        dict(zip(table.column("id").to_pylist(), table.column("_gone_reason").to_pylist(), strict=True))["a"]
        == "not_found"
    )


def test_a_replaced_generation_stays_a_day_and_no_longer(warehouse: Warehouse) -> None:
    folders = []
    for number, hours in enumerate((0, 5, 28, 30)):
        commit(warehouse, [row("a", None, f"version {number}")], complete=False)
        folders.append(publish(warehouse, NOW + timedelta(hours=hours))[0].folder)
    assert [folder.exists() for folder in folders] == [False, True, True, True]


def test_a_clock_that_jumps_ahead_takes_nothing_from_a_reader(warehouse: Warehouse) -> None:
    first, _ = publish(warehouse, NOW)
    commit(warehouse, [row("a", None, "version 2")], complete=False)
    publish(warehouse, NOW + timedelta(minutes=1))
    commit(warehouse, [row("a", None, "version 3")], complete=False)
    publish(warehouse, NOW + timedelta(days=400))
    assert first.folder.exists()


def test_there_are_never_more_generations_than_asked_for(warehouse: Warehouse) -> None:
    names = []
    for number in range(8):
        commit(warehouse, [row("a", None, f"version {number}")], complete=False)
        names.append(publish(warehouse, NOW + timedelta(minutes=number), Terms(Keep(days=1, most=4)))[0].name)
        left = sorted(path.name for path in (warehouse.path.parent / "generations").iterdir())
        assert left == names[-4:]


def test_what_a_killed_publish_left_behind_is_removed_and_the_current_one_stays(warehouse: Warehouse) -> None:
    data = warehouse.path.parent
    first, _ = publish(warehouse, NOW)
    (data / "staging" / "half").mkdir(parents=True)
    (data / "staging" / "half" / "contio.duckdb").write_bytes(b"half")
    (data / ".current-abc").symlink_to("generations/nowhere")
    never = data / "generations" / "20991231T000000.000000Z-abcdef"
    never.mkdir()
    assert publish(warehouse, NOW)[0] == first
    assert not (data / "staging").exists()
    assert not (data / ".current-abc").is_symlink()
    assert not never.exists()
    assert current(data) == first


def test_a_clock_set_back_neither_hides_nor_removes_a_generation(warehouse: Warehouse) -> None:
    first, _ = publish(warehouse, NOW)
    commit(warehouse, [row("a", None, "later")], complete=False)
    second, _ = publish(warehouse, NOW - timedelta(days=10))
    assert current(warehouse.path.parent) == second
    assert second.name > first.name
    commit(warehouse, [row("a", None, "later still")], complete=False)
    publish(warehouse, NOW - timedelta(days=9))
    assert first.folder.exists()
    assert second.folder.exists()


def test_whoever_may_enter_the_data_folder_may_read_under_any_umask(warehouse: Warehouse) -> None:
    before = os.umask(0o077)
    try:
        generation, _ = publish(warehouse, NOW)
    finally:
        os.umask(before)
    for path in (generation.folder.parent, generation.folder, *generation.folder.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o444), path


def junk(folder: Path) -> None:
    (folder / "contio.duckdb").chmod(0o644)
    (folder / "contio.duckdb").write_bytes(b"junk")


@pytest.mark.parametrize("damage", [junk, lambda folder: shutil.rmtree(folder / "parquet")])
def test_a_generation_that_was_damaged_later_is_replaced_although_nothing_changed(
    damage: Callable[[Path], None], warehouse: Warehouse
) -> None:
    first, _new = publish(warehouse, NOW)
    damage(first.folder)
    second, new = publish(warehouse, NOW)
    assert new
    assert list(ask(second, "SELECT count(*) FROM raw.meetings").rows) == [(3,)]
    assert set(parts(second.folder)) == {"month=2026-01", "month=undated"}
    assert publish(warehouse, NOW) == (second, False)


def test_a_damaged_database_is_named_with_what_to_do(warehouse: Warehouse) -> None:
    generation, _new = publish(warehouse, NOW)
    junk(generation.folder)
    with pytest.raises(StorageError, match=r"contio\.duckdb is damaged .*: run contio-pipeline publish"):
        ask(generation, "SELECT 1")


def test_something_else_in_the_place_of_current_is_named(warehouse: Warehouse) -> None:
    (warehouse.path.parent / "current").mkdir()
    with pytest.raises(StorageError, match="current is not the link that publishing makes: move it away"):
        publish(warehouse, NOW)


def test_a_statement_that_is_no_text_is_an_error(warehouse: Warehouse) -> None:
    generation, _new = publish(warehouse, NOW)
    with pytest.raises(ConfigError, match="LC_ALL"):
        ask(generation, "SELECT '\udcff'")


@pytest.mark.parametrize("manifest", ["{", "{}", "[]"])
def test_a_damaged_generation_is_named_and_replaced(warehouse: Warehouse, manifest: str) -> None:
    first, _ = publish(warehouse, NOW)
    path = first.folder / "manifest.json"
    path.chmod(0o600)
    path.write_text(manifest)
    with pytest.raises(StorageError, match="damaged: run contio-pipeline publish"):
        current(warehouse.path.parent)
    assert publish(warehouse, NOW)[1]
    assert current(warehouse.path.parent).manifest["rows"]["raw.meetings"] == 3


def test_a_full_disk_leaves_the_current_generation_as_it_was(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = publish(warehouse, NOW)
    commit(warehouse, [row("a", None, "changed")], complete=False)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.shutil, "copyfile", full)
    with pytest.raises(StorageError, match="No space left on device"):
        publish(warehouse, NOW)
    assert current(warehouse.path.parent) == first
    monkeypatch.undo()
    assert not (warehouse.path.parent / "staging").exists()  # a full disk needs the room
    assert publish(warehouse, NOW)[1]


def test_nothing_published_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(NothingPublished, match="contio-pipeline sync"):
        current(tmp_path)


@pytest.mark.parametrize("version", READERS)
def test_the_published_file_opens_in_duckdb(warehouse: Warehouse, version: str) -> None:
    generation, _ = publish(warehouse, NOW)
    library = ROOT / ".venv" / f"duckdb-{version}"
    assert (library / "duckdb").is_dir(), f"run make test, which installs DuckDB {version} to read with"
    script = """
        import duckdb, json, sys
        con = duckdb.connect(sys.argv[1], read_only=True)
        assert duckdb.__version__ == sys.argv[2], duckdb.__version__
        rows = con.execute("SELECT id, title, epoch_us(start_time), _extra FROM raw.meetings ORDER BY id").fetchall()
        comments = con.execute("SELECT count(*) FROM duckdb_columns() WHERE comment IS NOT NULL").fetchall()
        parquet = con.execute("SELECT count(*), count(DISTINCT month) FROM read_parquet(?, hive_partitioning = true)",
                              [sys.argv[3]]).fetchall()
        print(json.dumps([rows, comments[0][0] > 100, parquet]))
        """
    folder = generation.folder / "parquet/raw/meetings/*/part.parquet"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(generation.database), version, str(folder)],
        env={**os.environ, "PYTHONPATH": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    january = int(datetime(2026, 1, 31, 23, 59, 59, 900_000, tzinfo=UTC).timestamp() * 1_000_000)
    assert f'["a", "t", {january}, null]' in done.stdout
    assert done.stdout.endswith("true, [[3, 2]]]\n")


@pytest.mark.parametrize("folder", ["month=5", "_account=3", "a[b]*"])
def test_a_folder_of_any_name_can_be_published_to(folder: str, tmp_path: Path) -> None:
    with Warehouse(tmp_path / folder / "data", origin=ORIGIN) as opened:
        commit(opened, [row("a", "2026-01-31T23:59:59.9Z"), row("b", None)])
        generation, new = publish(opened, NOW)
    assert new
    assert parts(generation.folder).keys() == {"month=2026-01", "month=undated"}


def test_parquet_that_does_not_hold_the_tables_rows_is_never_published(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation, _ = publish(warehouse, NOW)
    commit(warehouse, [row("a", None, "changed")], complete=False)
    with monkeypatch.context() as patched:
        patched.setattr(module, "_within", lambda *_: "random() < 0")
        with pytest.raises(StorageError, match="does not hold what was written to it"):
            publish(warehouse, NOW + timedelta(days=1), anew=True)
    assert current(warehouse.path.parent).name == generation.name
