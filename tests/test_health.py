"""Checks: each fails for what it is there for, says what to do, and passes again; only integrity blocks."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import LISTED, Place, wind_back

from contio_pipeline import health
from contio_pipeline.auth import TokenStore
from contio_pipeline.doctor import examine
from contio_pipeline.errors import StorageError
from contio_pipeline.generations import current
from contio_pipeline.health import Case, checks
from contio_pipeline.publish import publish
from contio_pipeline.sandbox.faults import named
from contio_pipeline.streams import STREAMS
from contio_pipeline.warehouse import Warehouse

NewPlace = Callable[..., Place]


@pytest.fixture
def synced(new_place: NewPlace) -> Place:
    return new_place(meetings=12, accounts=2, synced=True)


def failing(place: Place, now: datetime | None = None) -> dict[str, str]:
    """Check -> what it says, of those that do not pass; new fields, which the sandbox always sends, left out."""
    with Warehouse(place.settings.data_dir, origin=None) as warehouse:
        case = Case(warehouse.query, place.settings, now or datetime.now(UTC))
        found = {f"{check.of} {check.name}": list(check.look(case)) for check in checks()}
    return {
        name: "; ".join(map(str, problems)) for name, problems in found.items() if problems and "new_fields" not in name
    }


def change(place: Place, sql: str) -> None:
    with Warehouse(place.settings.data_dir, origin=None) as warehouse, warehouse.transaction() as connection:
        connection.execute(sql)


def test_all_pass_where_all_is_well_and_each_says_what_it_is_about(synced: Place) -> None:
    assert failing(synced) == {}
    names = [(check.of, check.name) for check in checks()]
    assert len(names) == len(set(names))
    assert {check.level for check in checks()} == {"blocks", "fails", "warns"}
    assert {check.name for check in checks() if check.level == "blocks"} == {"keys_unique", "references_hold"}
    assert all(check.doc for check in checks())
    assert {check.of for check in checks()} == {*(stream.name for stream in STREAMS), "document_contents", "published"}


@pytest.mark.parametrize(
    ("sql", "check", "says"),
    [
        (
            "INSERT INTO raw.meetings SELECT * FROM raw.meetings ORDER BY id LIMIT 1",
            "meetings keys_unique",
            "1 ids stand",
        ),
        (
            "INSERT INTO raw.document_contents SELECT * FROM raw.document_contents ORDER BY id LIMIT 2",
            "document_contents keys_unique",
            "2 ids stand more than once (",
        ),
        (
            "INSERT INTO raw.action_items_past FROM raw.action_items; DELETE FROM raw.action_items WHERE _account = 'bo'",
            "action_items references_hold",
            "the history tells of",
        ),
        ("DELETE FROM raw.meetings", "context_documents references_hold", "belong to meetings that are not stored"),
        (
            "DELETE FROM raw.context_documents",
            "document_contents references_hold",
            "those of documents that are not stored",
        ),
    ],
)
def test_what_contradicts_itself_is_never_published(synced: Place, sql: str, check: str, says: str) -> None:
    before = current(synced.settings.data_dir).name
    change(synced, sql)
    assert says in failing(synced)[check]
    with pytest.raises(StorageError, match=f"{check.partition(' ')[0]}: .*nothing is published"):
        synced.sync(streams=["calendar_events"])
    assert current(synced.settings.data_dir).name == before


def test_what_was_published_unlooked_at_is_looked_at_the_next_time_also_when_nothing_changed(synced: Place) -> None:
    change(
        synced,
        "INSERT INTO raw.action_items_past FROM raw.action_items; DELETE FROM raw.action_items WHERE _account = 'bo'",
    )
    with Warehouse(synced.settings.data_dir, origin=None) as warehouse:
        publish(warehouse, datetime.now(UTC), anew=True, whole=False)  # as forgetting does
        with pytest.raises(StorageError, match="nothing is published"):
            publish(warehouse, datetime.now(UTC))


def test_data_that_grow_old_are_told_by_account_and_old_days_make_nothing_fresh(synced: Place) -> None:
    wind_back(synced, 3, "bo")
    stale = {f"{stream.name} fresh" for stream in LISTED} | {"document_contents fresh"}
    found = failing(synced)
    assert found.keys() == stale
    day = datetime.now(UTC).date() - timedelta(days=3)
    assert found["meetings fresh"].startswith(f"bo: it is not known to be complete since {day}: ")
    command = [
        "sync",
        "--account",
        "bo",
        "--since",
        str(day - timedelta(days=400)),
        "--until",
        str(day - timedelta(days=200)),
    ]
    subprocess_sync(synced, command)
    assert failing(synced).keys() - {"document_contents fresh"} == stale - {"document_contents fresh"}
    synced.overrides["fresh_hours"] = 100
    assert failing(synced) == {}
    synced.overrides["fresh_hours"] = 36
    assert synced.sync(night=True).complete
    assert failing(synced) == {}


def subprocess_sync(place: Place, command: list[str]) -> None:

    subprocess.run([sys.executable, "-m", "contio_pipeline", *command], env=place.environment, check=True)


def test_rows_that_are_missing_for_long_are_told(synced: Place) -> None:
    update = "UPDATE raw.meetings SET _missing_since = now() - INTERVAL {} HOUR WHERE _account = 'ana'"
    change(synced, update.format(47))
    assert failing(synced) == {}
    change(synced, update.format(49))
    assert failing(synced)["meetings gone_is_confirmed"].startswith("ana: 11 rows are missing since more than 2 days")


def test_a_share_of_broken_rows_is_told(synced: Place) -> None:
    synced.sandbox.faults = [named("row-wrong-type")]
    synced.sync()
    assert any(name.endswith("few_broken_rows") for name in failing(synced))
    synced.sandbox.faults = []
    synced.sync()
    assert not any(name.endswith("few_broken_rows") for name in failing(synced))


def test_a_field_that_is_new_is_named(synced: Place) -> None:
    synced.world.update("meetings", 1, brand_new="x")
    synced.sync()
    with Warehouse(synced.settings.data_dir, origin=None) as warehouse:
        case = Case(warehouse.query, synced.settings, datetime.now(UTC))
        [check] = [check for check in checks() if (check.of, check.name) == ("meetings", "no_new_fields")]
        assert "brand_new" in {problem.whose for problem in check.look(case)}
        assert check.level == "warns"


def test_a_filter_that_means_something_else_is_told(synced: Place) -> None:
    for assumption, detail in (("date_filter", "start_time"), ("open_filter", "is_completed")):
        change(
            synced, f"INSERT INTO ops.assumptions VALUES ('ana', 'meetings', '{assumption}', false, '{detail}', now())"
        )
    told = failing(synced)["meetings filter_as_assumed"]
    assert "ana: the list's filter does not mean start_time" in told
    assert "is_completed" in told


def test_documents_that_are_lost_or_damaged_are_found(synced: Place) -> None:
    files = sorted(path for path in synced.settings.data_dir.glob("documents/??/??/*") if path.stat().st_size)
    lost, cut, *rest = files
    kept = {path: path.read_bytes() for path in files}
    lost.unlink()
    cut.write_bytes(kept[cut][:-1])
    assert failing(synced)["document_contents files_intact"].startswith(
        "2 files are missing, or have another size, such as"
    )
    for path in (lost, cut):
        path.write_bytes(kept[path])
    for path in rest:
        path.write_bytes(bytes(len(kept[path])))
    found = [failing(synced, datetime.now(UTC) + timedelta(days=day)) for day in range(30)]
    damaged = [told["document_contents files_intact"] for told in found if "document_contents files_intact" in told]
    assert sum(int(told.split()[0]) for told in damaged) == len(rest)  # each once in thirty days
    assert all("are damaged" in told for told in damaged)


def test_consents_that_end_or_ended_are_told(synced: Place) -> None:
    store = TokenStore(synced.settings.state_dir)
    for name, days in (("ana", 22.9), ("bo", 23.5)):
        store.write(name, replace(store.read(name), refreshed_at=time.time() - days * 86400))
    assert failing(synced)["published consents_last"].startswith("bo: its consent ends on ")
    store.write("bo", replace(store.read("bo"), refused_at=time.time()))  # which `complete` tells
    assert failing(synced) == {}
    (synced.settings.state_dir / "accounts/ana.json").write_text("{")
    assert "damaged" in failing(synced)["published consents_last"]


def test_a_disk_that_fills_is_told(synced: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage(".")
    monkeypatch.setattr(health.shutil, "disk_usage", lambda _folder: real._replace(free=99 << 20))
    assert "99 MB are free" in failing(synced)["published room_on_disk"]


def test_an_api_that_refuses_many_requests_is_told(synced: Place) -> None:
    change(synced, "UPDATE ops.runs SET throttled = 5")
    assert failing(synced) == {}
    change(synced, "UPDATE ops.runs SET throttled = 6")
    assert "refused 6 requests" in failing(synced)["published requests_allowed"]


def test_the_data_folder_may_be_copied_elsewhere(synced: Place, tmp_path: Path) -> None:
    shutil.copytree(synced.settings.data_dir, tmp_path / "elsewhere", symlinks=True)
    synced.overrides["data_dir"] = tmp_path / "elsewhere"
    assert failing(synced) == {}


def test_a_publication_that_was_refused_is_told_until_one_succeeds(synced: Place) -> None:
    change(
        synced,
        "INSERT INTO raw.action_items_past FROM raw.action_items; DELETE FROM raw.action_items WHERE _account = 'bo'",
    )
    with (
        Warehouse(synced.settings.data_dir, origin=None) as warehouse,
        pytest.raises(StorageError, match="nothing is published"),
    ):
        publish(warehouse, datetime.now(UTC))
    problems = [found for found in examine(lambda: synced.settings, offline=True) if found.level == "problem"]
    assert [(found.subject, "the history tells of" in found.found) for found in problems] == [("published", True)]
    assert "contio-pipeline sync lists everything anew" in problems[0].remedy
    assert synced.sync().complete  # which brings back what the API still holds
    assert all(found.level != "problem" for found in examine(lambda: synced.settings, offline=True))
