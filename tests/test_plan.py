"""What a sync would cost is said before, and it does not cost more; a sync can be told to stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conftest import LISTED, Place, wind_back
from test_cli import call
from truth import check

from contio_pipeline.plan import Estimate, estimate
from contio_pipeline.warehouse import Warehouse, Window

NewPlace = Callable[..., Place]


def plan(place: Place, **options: Any) -> Estimate:
    usual = {
        "accounts": list(place.world.accounts),
        "streams": LISTED,
        "window": Window(),
        "night": False,
        "documents": True,
    }
    return estimate(place.settings, **(usual | options))


def costs(place: Place, **options: Any) -> dict[tuple[str, str], int]:
    """(account, stream) -> requests of a sync."""
    return {(part.account, part.stream): part.listing.requests for part in place.sync(**options).streams}


@pytest.mark.parametrize("meetings", [0, 30, 250])
def test_a_first_sync_costs_what_was_planned_but_for_documents_that_nobody_knew(
    meetings: int, new_place: NewPlace
) -> None:
    place = new_place(meetings=meetings, accounts=2)
    found = plan(place)
    assert found.documents_unknown == (meetings > 0)
    assert found.asked <= 2 * 4  # a total for each list
    assert not place.settings.data_dir.exists()
    planned = {(part.account, part.stream): part.requests or 0 for part in found.parts}
    actual = costs(place)
    for (account, stream), requests in actual.items():
        if stream != "document_contents":
            assert abs(requests - planned[account, stream]) <= 3, (
                account,
                stream,
            )  # the look beyond the calendar's last event
    check(place.world, place.settings)


def test_what_is_known_is_planned_to_the_request(new_place: NewPlace) -> None:
    place = new_place(meetings=120, accounts=2)
    place.sync()
    found = plan(place)
    planned = {(part.account, part.stream): part.requests for part in found.parts if part.stream != "profile"}
    rows = {(part.account, part.stream): part.rows for part in found.parts}
    report = place.sync()
    for part in report.streams:
        extra = 3 if part.stream == "calendar_events" else 0
        requests = planned[part.account, part.stream] or 0
        assert requests <= part.listing.requests <= requests + extra, (part.account, part.stream)
        if part.stream != "document_contents":
            assert rows[part.account, part.stream] == part.listing.rows
    assert not found.documents_unknown


def test_a_night_and_a_window_are_planned_as_they_will_be(place: Place) -> None:
    place.overrides["nightly_full_requests"] = 0
    place.sync(accounts=["ana", "bo"])
    wind_back(place, 10, "bo")
    told = {(part.account, part.stream): part.what for part in plan(place, night=True).parts}
    today = datetime.now(UTC).date()
    assert told["ana", "calendar_events"].startswith(f"{today - timedelta(days=7)} to ")
    assert told["bo", "meetings"] == "catches up with 9 days"
    assert told["cem", "meetings"] == "everything: it was never listed completely"
    window = Window(datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 10, 8, tzinfo=UTC))
    parts = {(part.account, part.stream): part for part in plan(place, window=window, accounts=["ana"]).parts}
    assert parts["ana", "meetings"].what == "2026-10-01 to 2026-10-08, the end not included"
    actual = costs(place, window=window, accounts=["ana"])
    assert actual["ana", "meetings"] == parts["ana", "meetings"].requests
    assert actual["ana", "context_documents"] <= (parts["ana", "context_documents"].requests or 0)


def test_it_can_be_asked_while_a_sync_works_and_says_what_cannot_be_known(place: Place) -> None:
    place.sync(documents=False)
    place.sandbox.revoke("bo")
    place.sandbox.expire_access_tokens()
    with Warehouse(place.settings.data_dir, origin=None):
        done = call("plan", "--json", env=place.environment)
    told = json.loads(done.stdout)
    parts = {(part["account"], part["stream"]): part for part in told["parts"]}
    assert parts["ana", "document_contents"]["requests"] > 0
    assert parts["bo", "meetings"]["requests"] is None
    assert "no longer accepted" in parts["bo", "meetings"]["what"]
    assert told["requests"] == sum(part["requests"] or 0 for part in told["parts"])
    text = call("plan", "--account", "ana", "--stream", "meetings", env=place.environment).stdout
    assert "requests" in text.splitlines()[-1]
    assert "a minute at 1,000,000 requests in 300 s. Finding this out took" in text


def test_the_minutes_are_those_of_the_budget(place: Place) -> None:
    place.overrides |= {"rate_limit": 10, "rate_window_seconds": 60}
    found = plan(place, documents=False, accounts=["ana"])
    over = found.requests - (10 - found.asked)
    assert found.minutes == pytest.approx(over / 10, abs=0.2)


@pytest.mark.parametrize("most", [1, 7, 40])
def test_a_sync_stops_cleanly_after_so_many_requests_and_the_next_goes_on(place: Place, most: int) -> None:
    done = call("sync", "--max-requests", str(most), env=place.environment)
    assert done.returncode == 1
    assert (
        f"{most} requests were sent, as --max-requests asked: what was read is kept; run it again to go on"
        in done.stderr
    )
    assert len([path for path in place.asked() if "/user/" in path]) == most
    assert "Published" in done.stdout
    assert place.sync().complete
    check(place.world, place.settings)


def test_so_many_requests_that_suffice_are_not_in_the_way(place: Place) -> None:
    assert call("sync", "--max-requests", "10000", env=place.environment).returncode == 0
    assert call("sync", "--max-requests", "0", env=place.environment).returncode == 2
