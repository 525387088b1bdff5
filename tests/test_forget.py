"""Forgetting: nothing of a person is left in any file, everybody else's data is as it was, and a crash loses nothing."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from conftest import Place
from test_cli import call
from test_warehouse import MEETINGS, commit
from truth import check

from contio_pipeline import forget as module
from contio_pipeline.auth import TokenStore
from contio_pipeline.doctor import examine
from contio_pipeline.erase import Erasure
from contio_pipeline.errors import ConfigError, StorageError
from contio_pipeline.forget import _mentioned, _pattern, forget
from contio_pipeline.streams import META, tables
from contio_pipeline.warehouse import Warehouse

NewPlace = Callable[..., Place]
ZOE = "zoe.quill@example.org"
"""Somebody who has no account, and is mentioned."""


def rows_of(database: Path) -> dict[str, list[str]]:
    """Table -> its rows as text, sorted."""
    with duckdb.connect(database, read_only=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return {
            table.full_name: sorted(
                str(row) for row in connection.execute(f"SELECT * FROM {table.full_name}").fetchall()
            )
            for table in tables()
        }


def databases(data: Path) -> list[Path]:
    return [*data.glob("*.duckdb"), *data.glob("generations/*/contio.duckdb")]


def traces(data: Path, *needles: str) -> list[str]:
    """Where one of the texts is found: as bytes of a file, in a row of a database, or in a Parquet file."""
    found = []
    for path in data.rglob("*"):
        if path.is_file() and not path.is_symlink():
            held = path.read_bytes().lower()
            if path.suffix == ".parquet":
                held += str(pq.ParquetFile(path).read().to_pylist()).lower().encode()
            if path in databases(data):
                held += str(rows_of(path)).lower().encode()
            found += [f"{needle} in {path}" for needle in needles if needle.lower().encode() in held]
    return found


def digests(data: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in data.rglob("*")
        if path.is_file() and path.name != ".writer.lock"
    }


def others(data: Path, account: str) -> dict[str, list[str]]:
    """The rows of everybody but the account, of the tables that say whose they are."""
    kept = {}
    [current] = [path for path in databases(data) if path.parent == (data / "current").resolve()]
    with duckdb.connect(current, read_only=True) as connection:
        for table in tables():
            names = [column.name for column in table.columns]
            for owner in {"_account", "account"} & set(names):
                found = connection.execute(f"SELECT * FROM {table.full_name} WHERE {owner} <> ?", [account]).fetchall()
                kept[table.full_name] = sorted(map(str, found))
    return kept


def mention(place: Place) -> dict[str, str]:
    """Make the world and the tables mention ZOE in every way, and sync; returns texts that only her rows hold."""
    world = place.world
    marks = {
        name: f"{name}-{secrets.token_urlsafe(300)}" for name in ("now", "before", "event", "broken", "file", "child")
    }
    [meeting] = world.insert(
        "meetings", title=marks["now"], summary_notes=f"Ask <{ZOE.upper()}>.\nThen wait.", account="ana"
    )
    [before] = world.insert("meetings", title=marks["before"], summary_notes=f"\tcc {ZOE}", account="ana")
    attendees = [{"email": ZOE, "name": "Zoë Quill", "status": "accepted"}]
    world.insert("calendar_events", title=marks["event"], attendees=attendees, account="ana")
    world.insert("action_items", title=5, description=f"{marks['broken']}\n{ZOE}", account="ana")
    world.insert("context_documents", title=marks["child"], meeting_id=meeting)
    [spoken] = world.insert("context_documents", account="ana", source_format="csv")
    world.rewrite_contents([spoken], body=b"a,b\n" * 400_000 + f"{marks['file']},Zoe.Quill@Example.org\n".encode())
    place.sync()
    world.update("meetings", ids=[before], title="harmless", summary_notes="nothing")
    place.sync(accounts=["ana"], streams=["meetings"])
    return marks


def test_forgetting_leaves_no_trace_in_any_file_and_touches_nothing_else(new_place: NewPlace) -> None:
    place = new_place(meetings=5, accounts=2, synced=True)
    harmless = rows_of(place.settings.data_dir / "current/contio.duckdb")
    marks = mention(place)
    data = place.settings.data_dir
    assert len(traces(data, ZOE, *marks.values())) > 10
    assert [mark for mark in marks.values() if mark.encode() in (data / "warehouse.duckdb").read_bytes()]

    before = digests(data)
    refused = call("forget", "--email", ZOE, env=place.environment)
    assert (refused.returncode, "--dry-run" in refused.stderr, "--yes" in refused.stderr) == (2, True, True)
    listed = call("forget", "--email", ZOE.upper(), "--dry-run", env=place.environment)
    assert listed.returncode == 0, listed.stderr
    for table in ("meetings", "meetings_past", "calendar_events", "quarantine", "document_contents"):
        assert f"rows of raw.{table} " in listed.stdout
    assert digests(data) == before

    done = call("forget", "--email", ZOE.upper(), "--yes", env=place.environment)
    assert done.returncode == 0, done.stderr
    assert "comes back with the next full sync" in done.stdout
    assert "Backups" in done.stdout
    assert traces(data, ZOE, *marks.values()) == []
    assert len(list((data / "generations").iterdir())) == 1
    after = rows_of(data / "current/contio.duckdb")
    assert place.query("SELECT count(*) FROM raw.meetings WHERE title = 'harmless'") == [(1,)]
    for table, rows in harmless.items():
        if table not in {"ops.windows", "ops.runs", "ops.child_lists", META.full_name}:
            assert set(rows) <= set(after[table]), table
    with duckdb.connect(data / "warehouse.duckdb", read_only=True) as warehouse:
        assert warehouse.execute(
            "SELECT count(*) FROM duckdb_columns() WHERE comment IS NULL AND schema_name = 'raw'"
        ).fetchall() == [(0,)]

    for row in place.world.items("ana", "action_items"):
        if row["title"] == 5:
            place.world.update("action_items", ids=[row["id"]], title="mended")
    assert place.sync().complete
    assert traces(data, ZOE) != []
    check(place.world, place.settings)


def test_an_account_is_purged_with_its_tokens_and_nobody_elses_rows_or_documents_change(new_place: NewPlace) -> None:
    place = new_place(meetings=5, accounts=2)
    place.world.insert("context_documents", meeting_id=place.world.insert("meetings", account="bo")[0])
    place.sync()
    data, ids = place.settings.data_dir, [row["id"] for row in place.world.items("bo", "meetings")]
    place.world.update("meetings", ids=ids[:2], title="changed")
    place.sync()
    before = others(data, "bo")
    shared = {
        digest
        for (digest,) in place.query(
            "SELECT sha256 FROM raw.document_contents WHERE _account = 'ana' AND sha256 IS NOT NULL"
        )
    }
    alone = {
        digest for (digest,) in place.query("SELECT sha256 FROM raw.document_contents WHERE sha256 IS NOT NULL")
    } - shared
    assert shared
    assert alone
    listed = call("accounts", "remove", "bo", "--purge", "--dry-run", env=place.environment)
    assert (listed.returncode, "bo" in TokenStore(place.settings.state_dir).names()) == (0, True), listed.stderr
    done = call("accounts", "remove", "bo", "--purge", "--yes", env=place.environment)
    assert done.returncode == 0, done.stderr
    assert TokenStore(place.settings.state_dir).names() == ["ana"]
    assert others(data, "bo") == before
    for database in databases(data):
        assert not [row for rows in rows_of(database).values() for row in rows if "'bo'" in row]
    assert {path.name for path in (data / "documents").rglob("*") if path.is_file()} == shared

    assert call("accounts", "remove", "ana", "--purge", "--yes", env=place.environment).returncode == 0
    assert [path for path in (data / "documents").rglob("*") if path.is_file()] == []
    again = call("accounts", "remove", "ana", "--purge", "--yes", env=place.environment)
    assert (again.returncode, "nothing is stored of an account 'ana'" in again.stderr) == (2, True)


def test_an_account_that_has_no_tokens_any_more_is_purged_too(new_place: NewPlace) -> None:
    place = new_place(meetings=5, accounts=1)
    place.sync(documents=False)
    assert call("accounts", "remove", "ana", env=place.environment).returncode == 0
    assert place.query("SELECT count(*) > 0 FROM raw.meetings") == [(True,)]
    assert call("accounts", "remove", "ana", "--purge", "--yes", env=place.environment).returncode == 0
    assert place.query("SELECT count(*) FROM raw.meetings_history") == [(0,)]


def test_forgetting_a_user_removes_the_account_and_what_names_the_user_elsewhere(new_place: NewPlace) -> None:
    place = new_place(meetings=5, accounts=2, synced=True)
    user = place.world.accounts["bo"].user_id
    [count] = place.query(
        f"SELECT count(*) FROM raw.action_items WHERE _account = 'ana' AND assigned_to_user_id = '{user}'"
    )
    assert count[0]
    (place.settings.data_dir / "dagster" / "storage").mkdir(parents=True)
    (place.settings.data_dir / "dagster" / "storage" / "event").write_text("| attendees | bo@example.com |")
    done = call("forget", "--email", "Bo@example.com", "--yes", env=place.environment)
    assert done.returncode == 0, done.stderr
    assert "stop Dagster" in done.stderr
    assert TokenStore(place.settings.state_dir).names() == ["ana"]
    (place.settings.data_dir / "dagster" / "storage" / "event").unlink()
    assert traces(place.settings.data_dir, "bo@example.com", user) == []
    orphans = "raw.context_documents d ANTI JOIN raw.meetings m ON m._account = d._account AND m.id = d._parent_id"
    assert place.query(f"SELECT count(*) FROM {orphans}") == [(0,)]
    assert place.sync().complete
    check(place.world, place.settings, ["ana"])


STEPS = (
    "contio_pipeline.forget.TokenStore.remove",
    "contio_pipeline.workfile.flush",  # the new file is written, and not in its place
    "contio_pipeline.publish._flip",
    "contio_pipeline.forget.shutil.rmtree",
)


def test_killed_at_any_step_the_same_command_completes_it(new_place: NewPlace, tmp_path: Path) -> None:
    place = new_place(meetings=5, accounts=2)
    place.world.insert(
        "meetings", title=f"{ZOE} and bo@example.com", summary_notes=(mark := secrets.token_urlsafe(300))
    )
    place.sync()
    whole = tmp_path / "whole"
    shutil.copytree(place.folder, whole, symlinks=True)
    script = """
        import os, signal, sys
        from datetime import UTC, datetime
        from unittest.mock import patch
        from contio_pipeline.forget import forget
        from contio_pipeline.settings import load_settings
        with patch(sys.argv[1], lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)):
            forget(load_settings(), address="bo@example.com", dry_run=False, now=datetime.now(UTC))
        """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    for step in STEPS:
        shutil.rmtree(place.folder)
        shutil.copytree(whole, place.folder, symlinks=True)
        assert subprocess.run([*command, step], env=place.environment, check=False).returncode == -signal.SIGKILL, step
        forget(place.settings, address="bo@example.com", dry_run=False, now=datetime.now(UTC))
        assert traces(place.settings.data_dir, "bo@example.com", mark) == [], step
        assert TokenStore(place.settings.state_dir).names() == ["ana"]
        assert {path.name for path in place.settings.data_dir.glob("*warehouse*")} == {"warehouse.duckdb"}


def test_an_account_whose_purge_failed_is_told_of_until_the_same_command_completes_it(
    new_place: NewPlace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = new_place(meetings=5, accounts=2, synced=True)
    with monkeypatch.context() as patched:
        patched.setattr(Warehouse, "rewrite", lambda _: (_ for _ in ()).throw(OSError("No space left on device")))
        with pytest.raises(StorageError, match=r"rows are erased.*No space left.*run the same command again"):
            forget(place.settings, account="bo", dry_run=False, now=datetime.now(UTC))
    place.sync(streams=["meetings"])
    assert "what was to be forgotten on " in caplog.text
    problems = [found for found in examine(lambda: place.settings, offline=True) if found.level == "problem"]
    assert [(found.subject, found.remedy) for found in problems] == [
        ("erasure", "run the same forget, or accounts remove --purge, again")
    ]
    assert forget(place.settings, account="bo", dry_run=False, now=datetime.now(UTC)).rows == {}
    assert all(found.level != "problem" for found in examine(lambda: place.settings, offline=True))
    assert len(list((place.settings.data_dir / "generations").iterdir())) == 1
    with pytest.raises(ConfigError, match="nothing is stored"):
        forget(place.settings, account="bo", dry_run=False, now=datetime.now(UTC))


def test_months_that_held_what_was_erased_are_written_anew_and_all_others_are_the_same_files(
    new_place: NewPlace,
) -> None:
    place = new_place(meetings=5, accounts=1)
    place.world.insert("meetings", title=ZOE, start_time="2024-02-03T10:00:00Z")
    place.world.insert("meetings", title="b", start_time="2024-02-04T10:00:00Z")
    place.world.insert("meetings", title="c", start_time="2024-03-04T10:00:00Z")
    place.sync(streams=["meetings"])

    def inode(month: str) -> int:
        return (place.settings.data_dir / f"current/parquet/raw/meetings/month={month}/part.parquet").stat().st_ino

    before = {month: inode(month) for month in ("2024-02", "2024-03")}
    with (place.settings.data_dir / "current/parquet/raw/meetings/month=2024-03/part.parquet").open(
        "rb"
    ):  # its inode stays taken
        forget(place.settings, address=ZOE, dry_run=False, now=datetime.now(UTC))
    assert inode("2024-02") != before["2024-02"]
    assert inode("2024-03") == before["2024-03"]


def test_copies_that_a_migration_or_a_restore_put_aside_are_erased_also_behind_a_link(new_place: NewPlace) -> None:
    place = new_place(meetings=5, accounts=1)
    place.sync(streams=["meetings"])
    data = place.settings.data_dir
    data.rename(place.folder / "elsewhere")
    data.symlink_to("elsewhere")
    copies = [data / "warehouse-version-0.duckdb", data / "warehouse-before-restore-20260101T000000.000000Z.duckdb"]
    for copy in copies:
        shutil.copyfile(data / "warehouse.duckdb", copy)
    assert forget(place.settings, address=ZOE, dry_run=True, now=datetime.now(UTC)).copies == sorted(copies)
    forget(place.settings, address=ZOE, dry_run=False, now=datetime.now(UTC))
    assert list(data.glob("warehouse*")) == [data / "warehouse.duckdb"]
    assert place.query("SELECT count(*) FROM raw.meetings")[0][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["forget", "--email", "ann", "--dry-run"], "no e-mail address"),
        (["forget", "--email", "Ann <a@b.example>", "--dry-run"], "no e-mail address"),
        (["forget", "--email", "a@b.example", "--dry-run"], "no warehouse"),
        (["accounts", "remove", "ana", "--purge"], "--dry-run"),
        (["accounts", "remove", "ana", "--yes"], "go with --purge"),
    ],
)
def test_wrong_usage_of_forgetting_exits_2_and_touches_nothing(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = call(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


# What counts as a mention ---------------------------------------------------------------------------------------------

MENTIONS = [
    "ann@x.com",
    "Ann@X.COM",
    "Ann <ann@x.com>, Bo",
    "mailto:ann@x.com?subject=x",
    "mailto%3Aann%40x.com",
    "ask ann@x.com.",
    "line\nann@x.com\nline",
    '{"text":"line\\nann@x.com\\nline"}',
    '{"email": "ann\\u0040x.com"}',
    "'ann@x.com'",
    "_ann@x.com_",
    "„ann@x.com“",
    "メールann@x.comです",
    "Ann Lee..........ann@x.com..........12",
    "<a href=x>ann&#64;x.com</a>",
]
NO_MENTIONS = [
    "joann@x.com",
    "jo.ann@x.com",
    "jo-ann@x.com",
    "jo_ann@x.com",
    "jo+ann@x.com",
    "éann@x.com",
    "ann@x.com.au",
    "ann@x.community",
    "ann@x.com-pany.example",
    "ann@xxcom",
    "ann x.com",
    "",
]


@pytest.mark.parametrize("text", [*MENTIONS, *NO_MENTIONS])
def test_an_address_is_found_as_written_in_prose_json_and_links_and_never_inside_a_longer_one(
    text: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    for encoding in ("utf-8", "utf-16"):
        path.write_text(text, encoding=encoding)
        assert _mentioned(path, "ann@x.com") is (text in MENTIONS) or (encoding == "utf-16" and not text.isascii())
    found = duckdb.execute("SELECT regexp_matches(?, ?)", [text, _pattern("ann@x.com")]).fetchall()
    assert found == [(text in MENTIONS,)]


def test_an_address_that_is_not_ascii_is_found_however_it_is_written() -> None:
    for text in (
        "jörg@bücher.example",
        "JÖRG@BÜCHER.EXAMPLE",
        json.dumps("jörg@bücher.example"),
        "jo\u0308rg@bu\u0308cher.example",
    ):
        found = duckdb.execute("SELECT regexp_matches(?, ?)", [text, _pattern("jörg@bücher.example")]).fetchall()
        assert (found, bool(re.search(_pattern("jörg@bücher.example"), text))) == ([(True,)], True), text


@pytest.mark.parametrize("shift", range(-12, 4))
def test_an_address_is_found_across_the_pieces_in_which_a_file_is_read(
    shift: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_READ_BYTES", 8192)
    path = tmp_path / "file"
    for before, address, after, expected in (
        (" ", "ann@x.com", " ", True),
        ("o", "ann@x.com", " ", False),
        (" ", "ann@x.com", "m", False),
        (".", "ann@x.com", ".", True),
    ):
        path.write_text("e" * (8192 + shift - 1) + " " + before + address + after + " e" * 6000)
        assert _mentioned(path, "ann@x.com") is expected


def test_of_a_row_that_stays_it_stays_known_that_it_went(tmp_path: Path) -> None:
    days = [datetime(2026, 11, day, tzinfo=UTC) for day in (1, 2, 3, 4)]
    with Warehouse(tmp_path, origin="https://api.example.com") as warehouse:
        for day, title in zip(days, ("for zoe@x.y", "harmless"), strict=False):
            commit(warehouse, [{"id": "a", "title": title}], now=day)
        commit(warehouse, [], now=days[2])
        warehouse.settle(MEETINGS, "ana", gone={"a": "not_found"}, run_id="gone", now=days[3])
        with warehouse.transaction():
            erasure = Erasure(warehouse)
            erasure.choose_mentions("zoe@")
            assert erasure.rows() == {"raw.meetings_past": 1}
            erasure.erase()
        told = warehouse.query("SELECT _operation, title, _changed_at FROM raw.meetings_history ORDER BY _changed_at")
    assert [tuple(row.values()) for row in told] == [("update", "harmless", days[1]), ("delete", "harmless", days[3])]
