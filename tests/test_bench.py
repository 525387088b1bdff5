"""The short form of `make bench` and `make growth`: facts that are not times."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import bench
import duckdb
import growth
import pytest
from conftest import LISTED
from load_server import World
from truth import expected_row, stored

from contio_pipeline.streams import stream_named

SMALL = ["--meetings", "300", "--action-items", "250", "--events", "80", "--documents", "60"]
MEETINGS, ITEMS, EVENTS, DOCUMENTS = 300, 250, 80, 60
SAMPLED = 15
"""Rows that a first sync reads by id, to see whether lists hold all of them."""


def program(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(Path(bench.__file__).with_name(script)), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )


def test_a_bench_counts_what_was_asked_for_and_asks_for_hardly_more_than_it_must(tmp_path: Path) -> None:
    done = program("bench.py", *SMALL, "--repeat", "1", "--json", str(tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())
    paths: dict[str, dict[str, Any]] = {one["name"]: one for one in found["paths"]}
    first, documents = paths["first sync"], paths["documents"]
    assert first["lists"] == {"meetings": MEETINGS, "action-items": ITEMS, "calendar/events": EVENTS}
    assert first["least"] == 1 + 3 + 3 + 1
    assert documents["lists"] == {"context": DOCUMENTS}
    assert documents["least"] == 1 + MEETINGS + DOCUMENTS
    assert documents["rows"] == 2 * DOCUMENTS
    for name, one in paths.items():
        assert one["least"] <= one["requests"] <= 1.1 * one["least"] + SAMPLED + 3, name
        assert one["refused"] == 0
        assert bool(one["peak_in_flight"]) == bool(one["requests"])
        assert one["cpu"] > 0
        assert name in done.stdout
    assert paths["night, 1 % changed"]["kinds"]["content"] == 1
    assert "content" not in paths["night"]["kinds"]
    assert paths["publish"]["requests"] == 0
    assert paths["publish"]["rows"] == MEETINGS + ITEMS + EVENTS + DOCUMENTS


def test_a_profile_says_where_the_time_went(tmp_path: Path) -> None:
    options = [*SMALL, "--repeat", "1", "--only", "first sync", "--profile", "--json", str(tmp_path / "found.json")]
    done = program("bench.py", *options)
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["profiles"]) == ["first sync"] == [one["name"] for one in found["paths"]]
    modules = {one["module"]: one["own"] for one in found["profiles"]["first sync"]["modules"]}
    assert modules["duckdb (compiled)"] > 0
    assert "duckdb (compiled)" in done.stdout


@pytest.fixture
def place(tmp_path: Path) -> Iterator[bench.Installation]:
    options = bench.parse([*SMALL, "--rate", "100/1"])
    folder = tmp_path / "place"
    folder.mkdir()
    with bench.Load(options) as load:
        place = bench.Installation(folder, load, options)
        place.add_account()
        yield place


def test_what_the_load_server_lists_is_what_the_pipeline_stores(place: bench.Installation) -> None:
    end: datetime = place.options.end
    world = World(meetings=MEETINGS, action_items=ITEMS, events=EVENTS, documents=DOCUMENTS, now=end)
    place.run("sync")
    assert_equal(place, world)
    changed = place.load.ask("change?share=0.5")
    assert world.change(0.5) == changed
    assert min(changed.values()) >= 1
    place.run("sync", "--night")
    assert_equal(place, world)


def assert_equal(place: bench.Installation, world: World) -> None:
    lists: dict[str, dict[str, tuple[dict[str, Any], str | None]]] = {
        path: {row["id"]: (row, None) for row in map(json.loads, served.rows)} for path, served in world.lists.items()
    }
    lists["meetings/{parent_id}/context"] = {
        row["id"]: (row, parent) for parent, documents in world.documents.items() for _, _, row in documents
    }
    with duckdb.connect(place.folder / "data" / "current" / "contio.duckdb", read_only=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for stream in LISTED:
            found = {row["id"]: row for row in stored(connection, stream.table.full_name)}
            assert found.keys() == lists[stream.path].keys()
            for identity, (item, parent) in lists[stream.path].items():
                want = expected_row(stream, bench.ACCOUNT, item, parent)
                assert {name: found[identity][name] for name in want} == want


def test_a_server_with_a_limit_refuses_nobody_who_keeps_it(place: bench.Installation) -> None:
    [kind] = [kind for kind in bench.paths(place.options.end) if kind.name == "documents"]
    place.run("sync", "--stream", "meetings")
    found = bench.measure(kind, place)
    assert found["refused"] == 0
    assert found["most_in_a_window"] <= 100
    assert 0 < found["used"] <= 1


def test_growth_ends_with_the_rows_that_it_made(tmp_path: Path) -> None:
    options = [
        "--meetings",
        "2500",
        "--action-items",
        "2500",
        "--new-share",
        "0.01",
        "--changed",
        "40",
        "--nights",
        "4",
    ]
    done = program("growth.py", *options, "--checkpoints", "2", "--json", str(tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())
    first, *_, last = found["checkpoints"]
    assert [one["night"] for one in found["checkpoints"]] == [0, 1, 2, 4]
    assert first["rows"] == 5
    assert last["rows"] == 5 + 2 * 4 * 25 / 1e3
    assert last["history"] > last["rows"]
    assert last["windows"] == 2 + 2 * 4
    assert last["runs"] == 5
    assert last["new_parts"] >= last["due"] > 0
    assert "written anew" in done.stdout


def test_rows_of_a_day_and_the_day_of_a_row_are_each_others_inverse() -> None:
    made = growth.Made(stream_named("meetings"), bulk=2500, new=3, changed=10, gone=2)
    for day in (-365, -200, -1, 0, 1, 50):
        assert all(made.day_of(number) == day for number in made.day(day))
    assert sum(len(made.day(day)) for day in range(-365, 0)) == made.bulk


def test_a_verdict_tells_what_grows_with_what() -> None:
    def said(*values: float) -> str:
        nights = (10, 20, 30, 40, 50)
        rows = (100, 110, 120, 130, 140)
        known = [{"night": night, "rows": row, "history": 2 * row} for night, row in zip(nights, rows, strict=True)]
        return growth.verdict("file", [one | {"file": value} for one, value in zip(known, values, strict=True)])

    assert said(50, 51, 49, 50, 50) == "flat"
    assert said(50, 90, 40, 60, 50) == "no trend, between 40 and 90"
    assert said(50, 55, 60, 65, 70) == "in proportion to rows"
    assert said(10, 20, 30, 40, 50) == "linear, +1 a night"
    assert said(10, 20, 30, 32, 33).startswith("levels off")
    assert said(10, 11, 20, 60, 200).startswith("FASTER THAN LINEAR")
    assert said(10, 60, 30, 70, 50).startswith("uneven")
    assert said(90, 60, 50, 40, 20).startswith("shrinks")
