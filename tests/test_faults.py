"""What a server can do wrong, by name: nothing is lost, nothing is invented, and the next good sync heals it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from conftest import Place
from truth import check

from contio_pipeline.sandbox.faults import BODIES, NAMED, named

NewPlace = Callable[..., Place]

HARMLESS = {"gzip", "deflate", "chunked", "json-duplicate-keys"}
"""What is allowed."""


@pytest.mark.parametrize("name", NAMED)
def test_a_fault_loses_nothing_invents_nothing_and_is_healed(name: str, new_place: NewPlace) -> None:
    place = new_place(meetings=6, accounts=1)
    place.overrides = {"timeout_seconds": 1, "retry_seconds": 1.5}
    bodies = NAMED[name].path == BODIES
    some = [] if bodies else ["meetings"]  # the cheapest list; empty means all
    assert place.sync(streams=some).complete
    place.world.update("meetings", 2)

    def rows() -> list[list[tuple[str, ...]]]:
        live = "SELECT id FROM raw.context_documents WHERE _deleted_at IS NULL ORDER BY 1"
        return [place.query(live), place.query(live.replace("context_documents", "meetings"))]

    def equal() -> bool:
        stored = dict(place.query("SELECT id, title FROM raw.meetings WHERE _deleted_at IS NULL"))
        [account] = place.world.accounts
        return stored == {meeting["id"]: meeting.get("title") for meeting in place.world.items(account, "meetings")}

    before = rows()
    fault = named(name, times=2)
    place.sandbox.faults = [fault]
    place.sandbox.reset_log()
    report = place.sync(streams=some, verify_documents=bodies)
    assert fault.times < 2, "it never happened"
    assert len(place.sandbox.requests) <= 40
    if name in HARMLESS:
        assert report.complete
    for part in report.streams:
        assert part.listing.complete or part.listing.reason
    assert rows() == before
    assert equal() or not report.complete, "it said that it is complete"

    place.sandbox.faults = []
    for budget in place.settings.state_dir.glob("*budget*"):
        budget.unlink()  # which a 429 may have closed for a day
    assert place.sync(streams=some, verify_documents=bodies).complete
    if bodies:
        check(place.world, place.settings)
    assert equal()


def test_names_are_plain_and_others_are_refused() -> None:
    assert all(re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name) for name in NAMED)
    with pytest.raises(KeyError):
        named("nothing")
