"""Reading what is published from a process that lives long, while it is published again and again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from test_warehouse import ORIGIN, commit

import contio_pipeline
from contio_pipeline.errors import ConfigError, NothingPublished
from contio_pipeline.generations import Generation, ask, current, hidden
from contio_pipeline.marts import Field, Mart
from contio_pipeline.publish import publish
from contio_pipeline.warehouse import Warehouse

NOW = datetime(2026, 3, 1, tzinfo=UTC)
COUNT = "SELECT count(*), count(DISTINCT title), min(title) FROM raw.meetings"


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Warehouse]:
    with Warehouse(tmp_path / "data", origin=ORIGIN) as opened:
        yield opened


def make(warehouse: Warehouse, number: int) -> None:
    """Give every row another title, and publish that."""
    rows: list[dict[str, Any]] = [{"id": str(each), "title": str(number)} for each in range(20)]
    commit(warehouse, rows)
    publish(warehouse, NOW + timedelta(minutes=number))


def test_there_is_nothing_to_read_before_something_is_published(tmp_path: Path) -> None:
    with pytest.raises(NothingPublished, match="contio-pipeline sync"):
        _ = contio_pipeline.open_current(tmp_path).connection


def test_it_follows_what_is_published_and_what_was_begun_goes_on(warehouse: Warehouse) -> None:
    make(warehouse, 1)
    current = contio_pipeline.open_current(warehouse.path.parent)
    before, folder = current.connection, current.folder
    assert current.connection.execute(COUNT).fetchall() == [(20, 1, "1")]
    make(warehouse, 2)
    assert current.connection.execute(COUNT).fetchall() == [(20, 1, "2")]
    assert before.execute(COUNT).fetchall() == [(20, 1, "1")]
    assert current.folder != folder
    assert (current.folder / "parquet" / "mart" / "meetings" / "part.parquet").is_file()


def test_the_settings_say_where_it_is_and_times_are_in_utc_in_any_zone(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(warehouse, 1)
    monkeypatch.setenv("CONTIO_DATA_DIR", str(warehouse.path.parent))
    current = contio_pipeline.open_current()
    assert current.connection.execute(COUNT).fetchall() == [(20, 1, "1")]
    current.connection.execute("SET TimeZone = 'Asia/Kolkata'")  # of that connection alone
    assert current.connection.execute("SELECT current_setting('TimeZone')").fetchall() == [("UTC",)]


def test_asking_beside_an_open_connection_says_what_to_do(warehouse: Warehouse) -> None:
    make(warehouse, 1)
    current_ = contio_pipeline.open_current(warehouse.path.parent)
    _ = current_.connection
    with pytest.raises(ConfigError, match=r"has .* open already: ask by that connection"):
        ask(current(warehouse.path.parent), COUNT)


def test_intervals_are_written_as_duckdb_writes_them(warehouse: Warehouse) -> None:
    make(warehouse, 1)
    texts = (
        "1 day 02:03:04",
        "1 year 2 months -3 days 00:00:00.000001",
        "-1 year -2 months",
        "00:00:00",
        "-00:00:00.5",
    )
    for text in (*texts, "-1 month 1 day", "1 day 25:00:00", "13 months", "-2 years 100:00:00.05"):
        sql = f"SELECT i, i::VARCHAR, [i], {{'x': i}} FROM (SELECT INTERVAL '{text}' AS i)"
        [(ours, theirs, several, inside)] = ask(current(warehouse.path.parent), sql).rows
        assert (ours, several, inside) == (theirs, [theirs], {"x": theirs})


def test_a_field_that_is_made_of_several_columns_is_hidden_as_the_strictest_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = ("meetings.title", "calendar_events.organizer")
    fields = (Field("word", "VARCHAR", "", of), Field("other", "VARCHAR", ""))
    monkeypatch.setattr("contio_pipeline.marts.MARTS", (Mart("made", "", fields, lambda _zone, _today: ""),))
    actions = {"meetings.title": "drop", "calendar_events.organizer": "hash"}
    for hides, found in ((actions, "drop"), ({"calendar_events.organizer": "hash"}, "hash"), ({}, None)):
        generation = Generation(Path(), {"policy": {"applied": True, "hidden": hides}})
        answer = hidden(generation, "FROM mart.made", ["word", "other"])
        assert answer == ({"word": found} if found else {})
    assert hidden(Generation(Path(), {}), "FROM mart.made", ["word"]) == {}  # of an earlier version


def test_threads_read_through_many_publications_without_an_error_and_see_one_state_each_time(
    warehouse: Warehouse,
) -> None:
    make(warehouse, 0)
    done = threading.Event()
    seen: list[tuple[Any, ...]] = []
    errors: list[BaseException] = []

    def read(current: contio_pipeline.Current) -> None:
        try:
            while not done.is_set():
                connection = current.connection
                [first] = connection.execute(COUNT).fetchall()
                [second] = connection.execute(
                    "SELECT count(*), count(DISTINCT title), min(title) FROM mart.meetings"
                ).fetchall()
                assert first == second
                seen.append(first)
        except BaseException as error:
            errors.append(error)
            raise

    current = contio_pipeline.open_current(warehouse.path.parent)
    readers = [threading.Thread(target=read, args=(current,)) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(1, 9):
        make(warehouse, number)
    done.set()
    for reader in readers:
        reader.join()
    assert current.connection.execute(COUNT).fetchall() == [(20, 1, "8")]
    assert errors == []
    assert len({title for _, _, title in seen}) > 2
    assert {(rows, titles) for rows, titles, _ in seen} == {(20, 1)}
