"""What a server can do wrong, by name: nothing is lost, nothing is invented, and the next good sync heals it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Place
from tenacity import wait_fixed
from truth import check

from contio_pipeline import client
from contio_pipeline.generations import current
from contio_pipeline.sandbox.faults import BODIES, CALENDAR, FOR_EVER, NAMED, named

NewPlace = Callable[..., Place]

HURRY = {"timeout_seconds": 1, "retry_seconds": 0.3}
"""Of syncs that have to fail; one that has to succeed may take its time, on a busy machine too."""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that fails is tried again, only not after the second that it would wait."""
    monkeypatch.setattr(client, "_BACK_OFF", wait_fixed(0.2))


HARMLESS = {
    "gzip", "deflate", "chunked", "json-duplicate-keys", "json-bom", "limit-capped", "limit-refused", "order-by-change",
    "list-thin", "calendar-refused", "calendar-clamped",
}  # fmt: skip
"""What is allowed, or what the API may be like: the tables are equal in spite of it."""

FALSE = {"list-empty", "undated-unlisted", "content-half", "content-empty", "content-html"}
"""What no client can tell from the truth as long as it is all that it ever sees (a document may be HTML)."""


def wrong_place(name: str, new_place: NewPlace) -> tuple[Place, dict[str, Any]]:
    """A place where the fault can happen, and the cheapest sync to which it does."""
    what = NAMED[name]
    place = new_place(meetings=60 if what.path == CALENDAR else 9, accounts=1)
    two_pages(name, place)
    if what.path == BODIES:
        return place, {"verify_documents": True}
    return place, {"streams": ["calendar_events"] if what.path == CALENDAR else ["meetings"]}


def two_pages(name: str, place: Place) -> None:
    """Where pages matter there are two: with more, a row may change after its own page was read, which nobody can see."""
    if NAMED[name].later_pages or name in {"offset-ignored", "offset-ignored-endless", "order-random"}:
        place.sandbox.max_limit = len(place.world.items("ana", "meetings")) * 2 // 3


def settle(place: Place) -> None:
    """Nothing goes wrong any more, and nobody has to wait."""
    place.sandbox.faults = []
    place.overrides = {}
    for budget in place.settings.state_dir.glob("*budget*"):
        budget.unlink()  # which a 429 closes for a while


def equal(place: Place, options: dict[str, Any]) -> bool:
    """Whether what was synced equals the truth."""
    try:
        check(place.world, place.settings, streams=options.get("streams"))
    except (AssertionError, KeyError):
        return False
    return True


@pytest.mark.parametrize("name", NAMED)
def test_a_fault_loses_nothing_invents_nothing_and_is_healed(name: str, new_place: NewPlace) -> None:
    place, options = wrong_place(name, new_place)
    first_sync_under_it_for_ever(name, place, options)
    settle(place)
    assert place.sync(**options).complete
    assert equal(place, options)

    later_sync_under_it_for_a_while(name, place, options)
    settle(place)
    assert place.sync(**options).complete
    assert equal(place, options)


def first_sync_under_it_for_ever(name: str, place: Place, options: dict[str, Any]) -> None:
    """It ends, costs a bounded number of requests, and says what is wrong."""
    place.sandbox.faults = [fault := named(name, FOR_EVER)]
    place.overrides = HURRY
    report = place.sync(**options)
    assert fault.times < FOR_EVER, "it never happened"
    assert len(place.sandbox.requests) <= 80
    for part in report.streams:
        assert part.listing.complete or part.listing.reason
    assert current(place.settings.data_dir)
    if name in HARMLESS:
        assert report.complete
    stands_still = not NAMED[name].later_pages
    if stands_still and name not in FALSE:
        assert equal(place, options) or not report.complete, "it said that it is complete"


def later_sync_under_it_for_a_while(name: str, place: Place, options: dict[str, Any]) -> None:
    """No row that was there is lost, whatever the sync says of itself."""
    two_pages(name, place)
    place.world.update("meetings", 2)
    place.world.update("calendar_events", 2)
    live = "SELECT id FROM raw.{} WHERE _deleted_at IS NULL ORDER BY 1"
    tables = ("meetings", "calendar_events", "context_documents")
    before = [place.query(live.format(table)) for table in tables]
    times = 1 if name in FALSE else 2
    place.sandbox.faults = [fault := named(name, times)]
    place.overrides = HURRY
    place.sandbox.reset_log()
    report = place.sync(**options)
    assert fault.times < times, "it never happened"
    assert len(place.sandbox.requests) <= 60
    if name in HARMLESS:
        assert report.complete
    for part in report.streams:
        assert part.listing.complete or part.listing.reason
    assert equal(place, options) or not report.complete or name in FALSE, "it said that it is complete"
    gone = {(row["id"],) for row in place.world.items("ana", "meetings")}
    for table, rows in zip(tables, before, strict=True):
        now = place.query(live.format(table))
        assert [row for row in rows if row not in now and (table != "meetings" or row in gone)] == []


def test_faults_may_come_together(new_place: NewPlace) -> None:
    place = new_place(meetings=8, accounts=1)
    place.overrides["retry_seconds"] = 30
    place.sandbox.faults = [named(name) for name in ("limit-capped", "order-by-change", "json-bom", "gzip", "chunked")]
    place.sandbox.faults += [named("503", 2), named("paging-swap", 1), named("json-cut", 1)]
    assert place.sync(documents=False).complete
    check(place.world, place.settings, streams=["meetings", "action_items", "calendar_events", "context_documents"])


def test_names_are_plain_and_others_are_refused() -> None:
    assert all(re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name) for name in NAMED)
    with pytest.raises(KeyError):
        named("nothing")
