"""Streams below meetings that cannot be read by id: participants and agenda items, listed where a setting asks for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conftest import Place
from truth import check

from contio_pipeline.errors import ConfigError
from contio_pipeline.health import checks
from contio_pipeline.plan import estimate
from contio_pipeline.sandbox.server import Fault
from contio_pipeline.streams import STREAMS
from contio_pipeline.sync import check_names, published_case
from contio_pipeline.warehouse import Window

LISTS = ("/participants", "/agenda-items")
GONE = "SELECT id, _gone_reason FROM raw.{} WHERE _account = 'ana' AND _deleted_at IS NOT NULL"


@pytest.fixture
def asked(new_place: Callable[..., Place]) -> Place:
    """A place whose settings ask for both streams, synced once."""
    place = new_place(meetings=40, accounts=2)
    place.overrides |= {
        "optional_streams": "participants,agenda_items",
        "publish_policy": "agenda_items.talking_points=keep",
    }
    assert place.sync().complete
    return place


def lists(place: Place) -> int:
    return sum(len(place.asked(path)) for path in LISTS)


def answer(rows: list[dict[str, Any]], total: int) -> str:
    return json.dumps({"items": rows, "total": total, "limit": 25, "offset": 0})


def below(place: Place, stream: str) -> list[dict[str, Any]]:
    return place.world.items("ana", stream)


def test_nobody_pays_for_them_who_did_not_ask(place: Place) -> None:
    place.sync(accounts=["ana"])
    assert lists(place) == 0
    assert place.query("SELECT count(*) FROM raw.participants") == [(0,)]
    with pytest.raises(ConfigError, match="CONTIO_OPTIONAL_STREAMS=agenda_items"):
        check_names(place.settings, ["agenda_items"])
    with pytest.raises(ConfigError, match="CONTIO_OPTIONAL_STREAMS=participants"):
        place.sync(streams=["participants"])


def test_they_equal_the_api_at_a_request_for_each_meeting_and_account(asked: Place) -> None:
    check(asked.world, asked.settings)
    seen = sum(len(asked.world.items(account, "meetings")) for account in asked.world.accounts)
    assert lists(asked) == 2 * seen
    assert asked.query("SELECT count(*) FROM raw.agenda_items WHERE talking_points IS NOT NULL")[0][0] > 0


def test_after_changes_they_are_equal_again(asked: Place) -> None:
    world = asked.world
    world.update("participants", 3, role="EDITOR")
    world.update("agenda_items", 3, title="another")
    world.insert("participants", 2)
    world.insert("agenda_items", 2)
    world.delete("meetings", 2)
    world.merge(2)
    away = {stream: world.delete(stream, 9) for stream in ("participants", "agenda_items")}
    world.hide("ana", meeting_ids=[world.items("ana", "meetings")[0]["id"]])
    assert asked.sync().complete
    check(world, asked.settings)
    for stream, victims in away.items():
        mine = {row[0] for row in asked.query(f"SELECT id FROM raw.{stream} WHERE _account = 'ana'")}
        found = dict(asked.query(GONE.format(stream)))
        assert set(found.values()) <= {"not_listed", "parent_not_found"}
        assert found.keys() >= mine & set(victims)


def test_what_a_list_lacks_is_gone_once_the_list_says_so_twice(asked: Place) -> None:
    [victim] = [row for row in below(asked, "participants") if row.get("email") == "ana@example.com"][:1]
    asked.world.delete("participants", ids=[victim["id"]])
    asked.sandbox.reset_log()
    assert asked.sync(accounts=["ana"]).complete
    assert asked.query(GONE.format("participants")) == [(victim["id"], "not_listed")]
    meeting = victim["meeting_id"]
    assert len(asked.asked(f"/meetings/{meeting}/participants")) == 2
    changes = asked.query(
        f"SELECT _operation FROM raw.participants_history WHERE id = '{victim['id']}' AND _account = 'ana'"
    )
    assert sorted(changes) == [("delete",), ("insert",)]


def test_an_outage_that_empties_every_list_takes_nothing_away(asked: Place) -> None:
    before = asked.query("SELECT count(*) FROM raw.participants WHERE _deleted_at IS NULL")
    asked.overrides |= {"loss_count": 5, "loss_share": 0.2}
    asked.sandbox.faults.append(Fault("/participants$", status=200, body=answer([], 0), times=999))
    report = asked.sync(accounts=["ana"])
    assert not report.complete
    assert asked.query("SELECT count(*) FROM raw.participants WHERE _deleted_at IS NULL") == before
    asked.sandbox.faults.clear()
    assert asked.sync(accounts=["ana"]).complete
    check(asked.world, asked.settings)


def test_a_list_that_holds_less_than_it_counts_is_not_complete(asked: Place) -> None:
    rows = below(asked, "participants")[:1]
    asked.sandbox.faults.append(Fault("/participants$", status=200, body=answer(rows, 2), times=999))
    report = asked.sync(accounts=["ana"], streams=["meetings", "participants"])
    told = {part.stream: part.listing.complete for part in report.streams}
    assert (told["meetings"], told["participants"]) == (True, False)


def test_once_nobody_asks_any_more_they_stay_as_they_were_and_no_check_complains(asked: Place) -> None:
    before = asked.query("SELECT count(*) FROM raw.participants")
    del asked.overrides["optional_streams"]
    asked.sandbox.reset_log()
    assert asked.sync().complete
    assert lists(asked) == 0
    assert asked.query("SELECT count(*) FROM raw.participants") == before
    assert asked.query("SELECT count(*) FROM mart.sync_health WHERE stream IN ('participants', 'agenda_items')") == [
        (0,)
    ]
    case = replace(published_case(asked.settings), now=datetime.now(UTC) + timedelta(days=30))
    stale = {check.of for check in checks() if check.name == "fresh" and list(check.look(case))}
    assert "meetings" in stale
    assert not stale & {"participants", "agenda_items"}


def test_the_plan_knows_what_they_cost(asked: Place) -> None:
    asked.world.insert("meetings", 3, account="ana")
    found = estimate(
        asked.settings,
        accounts=["ana"],
        streams=asked.settings.listed(STREAMS),
        window=Window(),
        night=False,
        documents=False,
    )
    planned = {part.stream: part.requests for part in found.parts}
    report = asked.sync(accounts=["ana"], documents=False)
    actual = {part.stream: part.listing.requests for part in report.streams}
    assert {name: planned[name] for name in ("participants", "agenda_items")} == {
        name: actual[name] for name in ("participants", "agenda_items")
    }
    assert planned["participants"] == len(asked.world.items("ana", "meetings"))


def test_what_lies_below_a_meeting_that_never_came_intact_goes_when_that_goes(new_place: Callable[..., Place]) -> None:
    place = new_place(meetings=5, accounts=1)
    place.overrides["optional_streams"] = "participants"
    [broken] = place.world.insert("meetings", account="ana", title=5)
    for stream in ("participants", "context_documents"):
        place.world.insert(stream, account="ana", meeting_id=broken)
    place.sync()
    place.world.delete("meetings", ids=[broken])
    place.overrides["optional_streams"] = ""  # nobody looks at participants any more
    place.sync()
    assert place.query(f"SELECT _gone_reason FROM raw.context_documents WHERE _parent_id = '{broken}'") == [
        ("parent_not_found",)
    ]
    assert place.query("SELECT count(*) FROM raw.quarantine") == [(1,)]
    place.overrides["optional_streams"] = "participants"
    assert [place.sync().complete for _ in range(2)][1]
    assert place.query(f"SELECT _gone_reason FROM raw.participants WHERE _parent_id = '{broken}'") == [
        ("parent_not_found",)
    ]
    assert place.query("SELECT count(*) FROM raw.quarantine") == [(0,)]
