"""Nights: as little as keeps the tables exact, and what was missed is caught up with, account by account."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
import truth
from conftest import Place, wind_back

from contio_pipeline.auth import Tokens, TokenStore
from contio_pipeline.night import Plan, complete_until, listing_pages, plan_night, usual_window
from contio_pipeline.sandbox.server import Fault
from contio_pipeline.settings import load_settings, midnight
from contio_pipeline.streams import SCOPES, STREAMS, Stream, stream_named
from contio_pipeline.warehouse import Window

NewPlace = Callable[..., Place]
MEETINGS, ITEMS, EVENTS, DOCUMENTS = (
    stream_named(name) for name in ("meetings", "action_items", "calendar_events", "context_documents")
)
NOW = datetime(2026, 11, 27, 2, 15, tzinfo=UTC)
TODAY = NOW.date()


def listed(first: str | None, end: str | None, at: str | None, *, tried: str | None = None) -> dict[str, Any]:
    """A row of `ops.windows`: the window, when it was complete, and when it was listed last."""

    def moment(text: str | None) -> datetime | None:
        return datetime.fromisoformat(text).replace(tzinfo=UTC) if text else None

    return {
        "window_start": moment(first),
        "window_end": moment(end),
        "complete_at": moment(at),
        "complete": tried is None and at is not None,
        "listed_at": moment(tried or at),
    }


FULL = listed(None, None, "2026-11-01T03:00")


@pytest.mark.parametrize(
    ("windows", "until"),
    [
        ([], None),
        ([listed("2026-11-01", "2026-12-01", "2026-11-20T03:00")], None),  # what lies before was never listed
        ([listed(None, None, None, tried="2026-11-20T03:00")], None),
        ([FULL], "2026-11-01T03:00"),
        ([FULL, listed("2026-10-20", "2026-12-01", "2026-11-02T03:00")], "2026-11-02T03:00"),
        ([FULL, listed("2026-11-01", "2026-11-02", "2026-11-09T03:00")], "2026-11-02T00:00"),
        ([FULL, listed("2026-11-02", "2026-11-09", "2026-11-09T03:00")], "2026-11-01T03:00"),  # a gap of a day
        (
            [
                listed("2026-11-02", "2026-11-09", "2026-11-09T03:00"),
                FULL,
                listed("2026-11-01", "2026-11-02", "2026-11-20T03:00"),
            ],
            "2026-11-09T00:00",
        ),
        ([FULL, listed("2026-10-20", "2026-12-01", None, tried="2026-11-20T03:00")], "2026-11-01T03:00"),
        (  # it was complete before it was tried again
            [FULL, listed("2026-10-20", "2026-12-01", "2026-11-02T03:00", tried="2026-11-20T03:00")],
            "2026-11-02T03:00",
        ),
        ([FULL, listed("2026-10-20", "2026-10-25", "2026-11-20T03:00")], "2026-11-01T03:00"),  # a backfill of old days
    ],
)
def test_how_far_the_listings_leave_no_gap(windows: list[dict[str, Any]], until: str | None) -> None:
    assert complete_until(windows) == (datetime.fromisoformat(until).replace(tzinfo=UTC) if until else None)


def plan(stream: Stream, *windows: dict[str, Any], rows: int = 1_000_000, **settings: Any) -> Plan:
    return plan_night(load_settings(**settings), stream, windows, {"meetings": rows, "action_items": rows}, NOW)


def days(first: str, end: str = "2026-12-28") -> Window:
    return Window(midnight(date.fromisoformat(first)), midnight(date.fromisoformat(end)))


def whole_until(day: str) -> dict[str, Any]:
    return listed(None, None, f"{day}T02:20")


@pytest.mark.parametrize(
    ("until", "window"),
    [
        ("2026-11-27", days("2026-11-20")),
        ("2026-11-26", days("2026-11-20")),  # the night before
        ("2026-11-25", days("2026-11-19")),  # one night was missed: what it would have listed, too
        ("2026-11-17", days("2026-11-11")),
        ("2026-10-28", days("2026-10-22")),
        ("2026-10-27", Window()),  # further back than a night catches up
    ],
)
@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.name)
def test_a_night_widens_back_to_what_is_not_complete(stream: Stream, until: str, window: Window) -> None:
    found = plan(stream, whole_until(until))
    assert found.window == window
    assert found.open_rows == (stream is ITEMS and window.start is not None)
    assert bool(found.why) == (window != days("2026-11-20"))


@pytest.mark.parametrize("until", ["2026-11-27", "2026-11-26", "2026-11-25", "2026-11-10"])
def test_no_day_is_left_out_without_a_lookback(until: str) -> None:
    window = plan(MEETINGS, whole_until(until), lookback_days=0).window
    assert window.start is not None
    assert window.start.date() <= date.fromisoformat(until)


def test_days_before_the_first_are_not_listed() -> None:
    assert plan(MEETINGS, whole_until("2026-11-20"), first_day="2026-11-25").window == days("2026-11-25")
    assert usual_window(load_settings(first_day="2026-11-25"), TODAY) == days("2026-11-25")


def test_what_was_never_complete_is_listed_whole_but_not_every_night() -> None:
    assert plan(EVENTS).window == Window()
    assert plan(EVENTS, listed(None, None, None, tried="2026-11-21T02:16")).window == days("2026-10-22")
    assert plan(EVENTS, listed(None, None, None, tried="2026-11-20T02:15")).window == Window()
    ended = listed(None, None, "2026-09-01T02:15", tried="2026-11-23T02:15")
    assert plan(EVENTS, ended).window == days("2026-10-22")


@pytest.mark.parametrize(
    ("rows", "most", "everything"), [(1, 2, True), (9901, 200, True), (9902, 200, False), (1, 1, False), (0, 0, False)]
)
def test_everything_is_listed_where_that_is_cheap(rows: int, most: int, everything: bool) -> None:
    settings = {"rows": rows, "nightly_full_requests": most}
    for stream in (MEETINGS, ITEMS):
        assert (plan(stream, whole_until("2026-11-26"), **settings).window == Window()) == everything
    for stream in (EVENTS, DOCUMENTS):  # a range has to be named; a list for each meeting is dear
        assert plan(stream, whole_until("2026-11-26"), **settings).window == days("2026-11-20")


# Real ones -----------------------------------------------------------------------------------------------------------


def first_pages(place: Place, path: str, account: str | None = None) -> list[dict[str, str]]:
    """The queries of all requests for first pages of a list, since the log was emptied."""
    return [
        dict(request.query)
        for request in place.sandbox.requests
        if request.path.endswith(path)
        and request.query.get("offset", "0") == "0"
        and (account is None or request.account == account)
    ]


def check(place: Place) -> None:
    truth.check(place.world, place.settings, list(place.world.accounts))


def test_requests_of_a_listing_are_foretold_to_the_letter(new_place: NewPlace) -> None:
    for rows in (0, 1, 99, 100, 101, 199, 200, 298, 299):
        place = new_place(meetings=0, accounts=1)
        place.world.insert("meetings", rows)
        place.sync(streams=["meetings"])
        place.sandbox.reset_log()
        place.sync(streams=["meetings"])
        listing = [request for request in place.sandbox.requests if request.path.endswith("/user/meetings")]
        empty = 2 if not rows else 1  # no row could show that an empty list is not whole: it is read twice
        assert len(listing) == listing_pages(rows) * empty, rows


def test_small_accounts_are_exact_every_night(place: Place) -> None:
    place.sync()
    world = place.world
    for stream in ("meetings", "action_items"):
        world.update(stream, 5)
        world.delete(stream, 3)
        world.move(stream, 3, days=-200)
    place.sandbox.reset_log()
    report = place.sync(night=True)
    assert report.complete
    check(place)
    for path in ("/user/meetings", "/user/action-items"):
        assert first_pages(place, path)
        assert all("start_date" not in query for query in first_pages(place, path))
    today = datetime.now(UTC).date()
    for query in first_pages(place, "/calendar/events"):
        assert query["start_date"] == f"{today - timedelta(days=7)}T00:00:00Z"
        assert query["end_date"] == f"{today + timedelta(days=31)}T00:00:00Z"
    parents = {request.path for request in place.sandbox.requests if request.path.endswith("/context")}
    assert len(parents) < len(world.items("ana", "meetings"))  # only those of the window, and those that changed


def test_a_large_account_is_listed_by_window_with_all_items_that_are_not_done(new_place: NewPlace) -> None:
    place = new_place(accounts=1)
    place.overrides["nightly_full_requests"] = 0
    place.sync()
    world = place.world
    old = "2026-01-05T09:00:00Z"
    [changed, done, gone, closed] = world.insert("action_items", 4, account="ana", created_at=old, is_completed=False)
    world.update("action_items", ids=[closed], is_completed=True)
    place.sync()
    world.update("action_items", ids=[changed], title="changed long after")
    world.update("action_items", ids=[done], is_completed=True, status="completed")
    world.delete("action_items", ids=[gone])
    [new] = world.insert("action_items", account="ana", created_at=old, is_completed=False)
    place.sandbox.reset_log()
    report = place.sync(night=True)
    assert report.complete
    check(place)
    queries = first_pages(place, "/action-items", "ana")
    assert [sorted(query.keys() - {"limit", "offset"}) for query in queries] == [
        ["end_date", "start_date"],
        ["is_completed"],
    ]
    assert {"start_date", "end_date"} <= first_pages(place, "/meetings", "ana")[0].keys()
    asked = {path.rpartition("/")[2] for path in place.asked() if "/action-items/" in path}
    assert {done, gone} <= asked  # they are open here, and open there no more
    assert not {changed, closed, new} & asked
    [(rows, total)] = place.query(
        "SELECT rows, total FROM ops.windows WHERE account = 'ana' AND stream = 'action_items' AND window_start IS NOT NULL"
    )
    assert 0 < rows <= total  # those that both lists return count once
    assert not [part for part in report.streams if part.warnings]


def test_a_filter_for_open_items_that_lies_is_noticed_and_not_used_again(place: Place) -> None:
    place.overrides["nightly_full_requests"] = 0
    place.world.insert("action_items", 30, account="ana", created_at="2026-01-05T09:00:00Z", is_completed=False)
    place.sync()
    before = place.query("SELECT count(*) FROM raw.action_items WHERE _deleted_at IS NULL")

    def lie(query: dict[str, str]) -> dict[str, str]:
        return {**query, "meeting_id": str(uuid.uuid4())} if query.get("is_completed") else query

    place.sandbox.faults = [Fault(path=r"/action-items$", query=lie, times=99)]
    report = place.sync(night=True, accounts=["ana"], streams=["action_items"])
    [part] = report.streams
    assert report.complete
    assert "list of rows with is_completed=false lacks rows that are" in part.warnings[0]
    assert place.query("SELECT count(*) FROM raw.action_items WHERE _deleted_at IS NULL") == before
    place.sandbox.reset_log()
    place.sync(night=True, accounts=["ana"], streams=["action_items"])
    assert [query.get("is_completed") for query in first_pages(place, "/action-items")] == [None]


@pytest.mark.parametrize("limit", [0, 200], ids=["by window", "everything where it is cheap"])
def test_an_outage_is_caught_up_with_by_the_next_night(place: Place, limit: int) -> None:
    place.overrides["nightly_full_requests"] = limit
    place.sync()
    wind_back(place, 10)
    long_ago = datetime.now(UTC) - timedelta(days=12)
    for stream, moment in (
        ("meetings", "start_time"),
        ("action_items", "created_at"),
        ("calendar_events", "start_time"),
    ):
        place.world.insert(stream, account="bo", **{moment: long_ago.isoformat()})
    place.sandbox.reset_log()
    report = place.sync(night=True)
    assert report.complete
    check(place)
    first = f"{datetime.now(UTC).date() - timedelta(days=16)}T00:00:00Z"
    assert {query["start_date"] for query in first_pages(place, "/calendar/events")} == {first}
    assert "catches up with 9 days" in {part.plan.why for part in report.streams}
    place.sandbox.reset_log()
    place.sync(night=True)
    usual = f"{datetime.now(UTC).date() - timedelta(days=7)}T00:00:00Z"
    assert {query["start_date"] for query in first_pages(place, "/calendar/events")} == {usual}


def test_an_account_that_lags_widens_no_other(place: Place) -> None:
    place.overrides["nightly_full_requests"] = 0
    place.sync(accounts=["ana", "bo"])
    wind_back(place, 10, "bo")
    place.sandbox.reset_log()
    assert place.sync(night=True).complete  # cem is new
    check(place)
    today = datetime.now(UTC).date()
    starts = {
        account: {query.get("start_date", "")[:10] for query in first_pages(place, "/user/meetings", account)}
        for account in place.world.accounts
    }
    assert starts == {"ana": {str(today - timedelta(days=7))}, "bo": {str(today - timedelta(days=16))}, "cem": {""}}


def test_what_the_command_line_listed_counts(place: Place) -> None:
    place.overrides["nightly_full_requests"] = 0
    place.sync()
    wind_back(place, 10)
    command = [sys.executable, "-m", "contio_pipeline", "sync"]
    since = str(datetime.now(UTC).date() - timedelta(days=20))
    subprocess.run([*command, "--since", since], env=place.environment, check=True, capture_output=True)
    place.sandbox.reset_log()
    environment = place.environment | {"CONTIO_NIGHTLY_FULL_REQUESTS": "0"}
    subprocess.run([*command, "--night"], env=environment, check=True, capture_output=True)
    usual = f"{datetime.now(UTC).date() - timedelta(days=7)}T00:00:00Z"
    assert {query["start_date"] for query in first_pages(place, "/user/meetings")} == {usual}
    refused = subprocess.run(
        [*command, "--night", "--since", since], env=environment, check=False, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "--night finds each account's window by itself" in refused.stderr


def test_a_night_that_was_not_complete_is_caught_up_with(place: Place) -> None:
    place.overrides["nightly_full_requests"] = 0
    place.sync()
    wind_back(place, 3)
    place.sandbox.faults = [Fault(path=r"/calendar/events$", status=503, times=99)]
    assert not place.sync(night=True, accounts=["ana"]).complete
    place.sandbox.faults = []
    place.sandbox.reset_log()
    place.sync(night=True, accounts=["ana"])
    today = datetime.now(UTC).date()
    assert first_pages(place, "/calendar/events")[0]["start_date"][:10] == str(today - timedelta(days=9))
    assert first_pages(place, "/user/meetings")[0]["start_date"][:10] == str(today - timedelta(days=7))


def test_an_account_without_a_scope_is_not_listed_whole_every_night(place: Place) -> None:
    place.overrides["nightly_full_requests"] = 0
    place.world.accounts["bo"].scopes = tuple(scope for scope in SCOPES if scope != "calendar:read")
    TokenStore(place.settings.state_dir).write("bo", Tokens(place.sandbox.login("bo")))
    place.sync()
    for _night in range(2):
        place.sandbox.reset_log()
        place.sync(night=True)
        assert len(place.asked("/user/meetings")) == len(place.world.accounts)
        assert len(first_pages(place, "/calendar/events", "bo")) <= 2


def test_listings_of_days_that_a_full_one_made_superfluous_are_let_go_of_after_a_month(place: Place) -> None:
    place.sync()
    for day in range(3):
        place.sync(window=Window(NOW - timedelta(days=day + 1), NOW - timedelta(days=day)))
    windows = "SELECT count(*) FROM ops.windows WHERE window_start IS NOT NULL"
    until = {}
    for days, left in ((20, 36), (40, 9)):  # those of the documents stay: their lists were not all read again
        wind_back(place, days, "ana")
        wind_back(place, days, "bo")
        wind_back(place, days, "cem")
        place.sync(streams=["meetings", "action_items", "calendar_events"])
        [(count,)] = place.query(windows)
        until[days] = count
        assert count == left
    assert until[20] > until[40]
