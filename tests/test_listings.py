"""Lists that are not what they should be: each is made equal all the same, or it is said that it is not."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from conftest import Place
from truth import check

from contio_pipeline.sandbox.faults import Fault, named
from contio_pipeline.warehouse import Window
from contio_pipeline.work import StreamReport, SyncReport

NewPlace = Callable[..., Place]

EMPTY = json.dumps({"items": [], "total": 0, "limit": 100, "offset": 0})
NOT_FOUND = json.dumps({"code": "not_found", "error": "Not found"})
OCTOBER = Window(datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC))
MEETINGS: dict[str, Any] = {"streams": ["meetings"]}


def part(report: SyncReport, stream: str) -> StreamReport:
    [found] = [one for one in report.streams if one.stream == stream]
    return found


def read_by_id(place: Place) -> list[str]:
    return [path for path in place.asked() if path.count("-") >= 4 and not path.endswith(("/context", "/content"))]


# Rows too large for a page ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [slice(None), slice(-30, None)], ids=["all", "the last"])
def test_pages_that_are_too_large_are_asked_for_with_fewer_rows(which: slice, new_place: NewPlace) -> None:
    place = new_place(meetings=120, accounts=1)
    place.overrides["retry_seconds"] = 0
    ids = [row["id"] for row in place.world.items("ana", "meetings")]
    place.world.update("meetings", ids=ids[which], summary_notes="a long talk " * 30_000)
    assert place.sync(**MEETINGS).complete
    check(place.world, place.settings, streams=["meetings"])
    assert len(place.asked()) < 40


def test_a_row_that_is_too_large_by_itself_is_told(new_place: NewPlace) -> None:
    place = new_place(meetings=5, accounts=1)
    place.overrides["retry_seconds"] = 0
    place.world.update("meetings", summary_notes="a long talk " * 800_000)
    report = part(place.sync(**MEETINGS), "meetings")
    assert report.listing.reason == "the API answered with more than 8 MB of JSON"


# Lists that lack rows which are there -----------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [Window(), OCTOBER], ids=["full", "window"])
@pytest.mark.parametrize("stream", ["meetings", "calendar_events"])
def test_a_list_that_is_empty_once_is_read_again(stream: str, window: Window, new_place: NewPlace) -> None:
    place = new_place(meetings=60, accounts=1)
    place.overrides["loss_count"] = 1000  # so that the guard against outages does not come first
    options = {"streams": [stream], "window": window}
    assert place.sync(**options).complete
    place.world.insert(stream, 2, account="ana", start_time="2026-10-20T10:00:00Z")
    path = {"meetings": "/meetings$", "calendar_events": "/calendar/events$"}[stream]
    place.sandbox.faults = [Fault(path, status=200, body=EMPTY)]
    assert place.sync(**options).complete
    assert place.query(f"SELECT count(*) FROM raw.{stream} WHERE _window_blind OR _missing_since IS NOT NULL") == [(0,)]
    assert place.query("SELECT count(*) FROM ops.assumptions WHERE NOT holds") == [(0,)]
    if window == Window():
        check(place.world, place.settings, streams=[stream])
    else:
        inside = place.world.select("ana", stream, start=window.start, end=window.end)
        assert {(row["id"],) for row in inside} <= set(place.query(f"SELECT id FROM raw.{stream}"))


def test_a_list_that_stays_empty_over_rows_that_are_there_is_not_believed(new_place: NewPlace) -> None:
    place = new_place(meetings=12, accounts=1)
    place.sync(**MEETINGS)
    live = place.query("SELECT id FROM raw.meetings ORDER BY 1")
    for _night in range(2):
        place.sandbox.faults = [Fault("/meetings$", status=200, body=EMPTY, times=99)]
        place.sandbox.reset_log()
        report = part(place.sync(**MEETINGS), "meetings")
        assert "can still be read by id" in (report.listing.reason or "")
        assert place.query("SELECT id FROM raw.meetings WHERE _deleted_at IS NULL ORDER BY 1") == live
        assert len(place.asked()) <= 1 + 2 + len(live)
    place.sandbox.faults = []
    assert place.sync(**MEETINGS).complete
    check(place.world, place.settings, streams=["meetings"])
    assert place.query("SELECT count(*) FROM raw.meetings WHERE _window_blind") == [(0,)]


def test_a_few_rows_that_no_list_returns_but_can_be_read_are_kept_with_a_warning(new_place: NewPlace) -> None:
    place = new_place(meetings=30, accounts=1)
    place.sync(**MEETINGS)
    archived = place.world.items("ana", "meetings")[3]["id"]

    def unlisted(page: dict[str, Any]) -> dict[str, Any]:
        items = [item for item in page["items"] if item["id"] != archived]
        return page | {"items": items, "total": len(items)}

    place.sandbox.faults = [Fault("/meetings$", edit=_envelope(unlisted), times=99)]
    report = place.sync(**MEETINGS)
    assert report.complete
    assert any("can still be read by id" in warning for warning in part(report, "meetings").warnings)
    place.sandbox.reset_log()
    assert place.sync(**MEETINGS).complete
    assert len(place.asked()) == 3  # profile, list, that row: nothing is read twice any more
    assert place.query(f"SELECT _deleted_at IS NULL, _window_blind FROM raw.meetings WHERE id = '{archived}'") == [
        (True, True)
    ]
    place.world.delete("meetings", ids=[archived])
    assert place.sync(**MEETINGS).complete
    assert place.query(f"SELECT _gone_reason FROM raw.meetings WHERE id = '{archived}'") == [("not_found",)]


def _envelope(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Any], Any]:
    def edit(answer: Any) -> Any:
        body = json.dumps(change(json.loads(bytes(answer.body)))).encode()
        return type(answer)(body, answer.status_code, media_type="application/json")

    return edit


def test_a_first_list_that_is_empty_is_asked_for_twice_and_no_other(new_place: NewPlace) -> None:
    place = new_place(meetings=8, accounts=1)
    place.sandbox.faults = [Fault("/meetings$", status=200, body=EMPTY)]
    assert place.sync(**MEETINGS).complete
    check(place.world, place.settings, streams=["meetings"])
    nothing = new_place(meetings=0, accounts=1)
    assert nothing.sync().complete
    assert len(nothing.asked()) == 2 + 2 + 2 + 1 + 2  # the calendar is also asked whether it was shortened; the profile
    nothing.sandbox.reset_log()
    assert nothing.sync(window=OCTOBER).complete
    assert len(nothing.asked()) == 3 + 1


# Lists that hold less of a row than the row ------------------------------------------------------------------------------


def test_where_lists_are_thin_rows_that_changed_are_read_by_id_and_no_others(new_place: NewPlace) -> None:
    place = new_place(meetings=25, accounts=1)
    place.sandbox.faults = [named("list-thin")]
    streams = ["meetings", "action_items", "calendar_events"]
    assert place.sync(streams=streams).complete
    check(place.world, place.settings, streams=streams)
    thin = dict(place.query("SELECT stream, detail FROM ops.assumptions WHERE assumption = 'full_lists' AND NOT holds"))
    assert thin == {
        "meetings": "summary_notes",
        "action_items": "description",
        "calendar_events": "description",
    }
    place.sandbox.reset_log()
    history = place.query("SELECT count(*) FROM raw.meetings_history")
    assert place.sync(streams=streams).complete
    assert read_by_id(place) == []
    assert place.query("SELECT count(*) FROM raw.meetings_history") == history

    changed = place.world.update("meetings", 2, summary_notes="new notes")
    [gone] = place.world.delete(
        "meetings", ids=[r["id"] for r in place.world.items("ana", "meetings") if r["id"] not in changed][:1]
    )
    place.sandbox.reset_log()
    assert place.sync(streams=streams).complete
    assert {path.rpartition("/")[2] for path in read_by_id(place)} == {*changed, gone}
    check(place.world, place.settings, streams=streams)


@pytest.mark.parametrize("stream", ["meetings", "action_items", "calendar_events"])
def test_a_list_that_becomes_thin_is_noticed_before_anything_is_overwritten(stream: str, new_place: NewPlace) -> None:
    place = new_place(meetings=60, accounts=1)
    options = {"streams": [stream]}
    assert place.sync(**options).complete
    assert place.query("SELECT holds FROM ops.assumptions WHERE assumption = 'full_lists'") == [(True,)]
    place.world.update(stream, 3)
    thin = named("list-thin")
    place.sandbox.faults = [thin]
    assert place.sync(**options).complete
    check(place.world, place.settings, streams=[stream])
    assert place.query("SELECT holds FROM ops.assumptions WHERE assumption = 'full_lists'") == [(False,)]


@pytest.mark.parametrize("shown", ["", "Open questions …"])
def test_a_list_that_shows_less_of_a_text_is_thin_too(shown: str, new_place: NewPlace) -> None:
    place = new_place(meetings=12, accounts=1)
    every = [row["id"] for row in place.world.items("ana", "meetings")]
    place.world.update("meetings", ids=every, summary_notes="Open questions were listed and given owners")

    def shortened(page: dict[str, Any]) -> dict[str, Any]:
        return page | {"items": [row | {"summary_notes": shown} for row in page["items"]]}

    place.sandbox.faults = [Fault("/meetings$", edit=_envelope(shortened), times=99)]
    assert place.sync(**MEETINGS).complete
    wanted = {row["id"]: row.get("summary_notes") for row in place.world.items("ana", "meetings")}
    assert dict(place.query("SELECT id, summary_notes FROM raw.meetings")) == wanted


def test_a_window_whose_rows_all_changed_notices_a_thin_list_too(new_place: NewPlace) -> None:
    place = new_place(meetings=60, accounts=1)
    assert place.sync(**MEETINGS).complete
    inside = place.world.select("ana", "meetings", start=OCTOBER.start, end=OCTOBER.end)
    assert inside
    place.world.update("meetings", ids=[row["id"] for row in inside])
    place.sandbox.faults = [named("list-thin")]
    assert place.sync(**MEETINGS, window=OCTOBER).complete
    check(place.world, place.settings, streams=["meetings"])


def test_a_row_of_a_thin_list_that_cannot_be_read_keeps_its_last_version(new_place: NewPlace) -> None:
    place = new_place(meetings=25, accounts=1)
    place.sandbox.faults = [named("list-thin")]
    place.sync(**MEETINGS)
    [broken, fine] = place.world.update("meetings", 2, summary_notes="new notes")
    before = place.query(f"SELECT _hash FROM raw.meetings WHERE id = '{broken}'")
    place.sandbox.faults += [
        Fault(f"/meetings/{broken}$", status=400, body='{"code": "odd", "error": "odd"}', times=99)
    ]
    report = part(place.sync(**MEETINGS), "meetings")
    assert broken in (report.listing.reason or "")
    assert place.query(f"SELECT _hash, _missing_since FROM raw.meetings WHERE id = '{broken}'") == [(*before[0], None)]
    assert place.query(f"SELECT summary_notes FROM raw.meetings WHERE id = '{fine}'") == [("new notes",)]
    del place.sandbox.faults[1:]
    assert place.sync(**MEETINGS).complete
    check(place.world, place.settings, streams=["meetings"])


def test_a_row_of_a_thin_list_that_is_broken_is_read_until_it_is_mended(new_place: NewPlace) -> None:
    place = new_place(meetings=300, accounts=1)
    place.sandbox.faults = [named("list-thin")]
    place.sync(**MEETINGS)
    [broken] = place.world.update("meetings", 1, summary_notes=7)  # which the list does not show
    for _night in range(2):
        place.sandbox.reset_log()
        assert any("break their promise" in warning for warning in part(place.sync(**MEETINGS), "meetings").warnings)
        assert [path.rpartition("/")[2] for path in read_by_id(place)] == [broken]
        assert place.query("SELECT row_key FROM raw.quarantine") == [(broken,)]
    when = next(row for row in place.world.items("ana", "meetings") if row["id"] == broken)["updated_at"]
    place.world.update("meetings", ids=[broken], summary_notes="well again", updated_at=when)
    assert place.sync(**MEETINGS).complete
    check(place.world, place.settings, streams=["meetings"])
    assert place.query("SELECT count(*) FROM raw.quarantine") == [(0,)]


# Ranges of dates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["calendar-refused", "calendar-clamped"])
def test_a_calendar_with_a_cap_on_ranges_is_listed_in_parts_and_the_cap_is_remembered(
    fault: str, new_place: NewPlace
) -> None:
    place = new_place(meetings=150, accounts=1)
    place.sandbox.faults = [named(fault)]
    options = {"streams": ["calendar_events"]}
    assert place.sync(**options).complete
    check(place.world, place.settings, streams=["calendar_events"])
    [(days,)] = place.query(
        "SELECT detail::INTEGER FROM ops.assumptions WHERE assumption = 'long_ranges' AND NOT holds"
    )
    assert days <= 60
    place.sandbox.reset_log()
    assert place.sync(**options).complete
    lists = [request.query for request in place.sandbox.requests if request.path.endswith("/events")]
    assert len(lists) <= 730 / days + 2
    spans = {datetime.fromisoformat(query["end_date"]) - datetime.fromisoformat(query["start_date"]) for query in lists}
    assert max(spans).days == days


@pytest.mark.parametrize("undated", [True, False])
@pytest.mark.parametrize("inclusive", [True, False])
@pytest.mark.parametrize("order", ["", "order-by-change"])
@pytest.mark.parametrize("field", ["start_time", "updated_at"])
def test_nothing_depends_on_what_the_api_leaves_open(
    field: str, order: str, inclusive: bool, undated: bool, new_place: NewPlace
) -> None:
    place = new_place(meetings=60, accounts=1, filter_fields={"meetings": field}, inclusive_end=inclusive, max_limit=30)
    place.sync(**MEETINGS)
    place.sandbox.faults = [named(name) for name in (order, "" if undated else "undated-unlisted") if name]
    place.world.update("meetings", 5)
    place.world.move("meetings", 5, days=20)
    place.world.delete("meetings", 3)
    place.world.insert("meetings", 3, start_time=OCTOBER.end.isoformat() if OCTOBER.end else "")
    live = {row["id"] for row in place.world.items("ana", "meetings")}
    for _night in range(2):
        place.sync(**MEETINGS, window=OCTOBER)
        gone = {identity for (identity,) in place.query("SELECT id FROM raw.meetings WHERE _deleted_at IS NOT NULL")}
        assert not gone & live
    assert place.sync(**MEETINGS).complete
    check(place.world, place.settings, streams=["meetings"])


def test_a_date_filter_that_means_what_was_assumed_after_all_is_believed_again(new_place: NewPlace) -> None:
    place = new_place(meetings=200, accounts=1, filter_fields={"meetings": "updated_at"})
    place.sync(**MEETINGS)
    for row in place.world.items("ana", "meetings"):
        place.world.update("meetings", ids=[row["id"]])
    place.sync(**MEETINGS)
    window = Window(datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 9, 1, tzinfo=UTC))
    place.sync(**MEETINGS, window=window)
    holds = "SELECT holds FROM ops.assumptions WHERE assumption = 'date_filter'"
    assert place.query(holds) == [(False,)]
    place.sandbox.filter_fields["meetings"] = "start_time"
    place.sync(**MEETINGS, window=window)
    assert place.query(holds) == [(True,)]
    [gone] = place.world.delete(
        "meetings", ids=[place.world.select("ana", "meetings", start=window.start, end=window.end)[0]["id"]]
    )
    place.sync(**MEETINGS, window=window)
    assert place.query(f"SELECT _gone_reason FROM raw.meetings WHERE id = '{gone}'") == [("not_found",)]


# Lists below parents ------------------------------------------------------------------------------------------------------


def test_documents_of_another_application_are_not_gone(new_place: NewPlace) -> None:
    place = new_place(meetings=20, accounts=1)
    assert place.sync().complete
    live = "SELECT count(*) FROM raw.context_documents WHERE _deleted_at IS NULL AND _missing_since IS NULL"
    documents = place.query(live)
    assert documents != [(0,)]
    place.world.client_id = "cto_client_another"
    theirs = [
        Fault("/context$", status=200, body=EMPTY, times=999),
        Fault("/context/", status=404, body=NOT_FOUND, times=999),
    ]
    place.sandbox.faults = list(theirs)
    place.sandbox.reset_log()
    report = place.sync()
    assert report.complete, [one.listing.reason for one in report.streams]
    assert report.total("deleted") == 0
    assert place.query(live) == documents
    assert not [path for path in place.asked() if "/context/" in path]
    meeting = place.query("SELECT _parent_id FROM raw.context_documents LIMIT 1")[0][0]
    place.world.delete("meetings", ids=[meeting])
    place.sync()
    assert place.query(f"SELECT DISTINCT _gone_reason FROM raw.context_documents WHERE _parent_id = '{meeting}'") == [
        ("parent_not_found",)
    ]

    place.sandbox.faults = []  # the first application again
    place.world.client_id = "cto_client_first"
    place.world.delete("context_documents", 1)
    assert place.sync().complete
    assert place.sync().complete
    listed = {(row["id"],) for row in place.world.items("ana", "context_documents")}
    assert (
        set(place.query("SELECT id FROM raw.context_documents WHERE NOT _window_blind AND _deleted_at IS NULL"))
        == listed
    )


@pytest.mark.parametrize("unknown", ["empty", "404"])
def test_documents_of_a_meeting_that_is_gone_since_it_was_listed_end_with_it(unknown: str, new_place: NewPlace) -> None:
    place = new_place(meetings=20, accounts=1, unknown_parent=unknown)
    place.sync()
    meeting = place.world.items("ana", "context_documents")[0]["meeting_id"]

    def delete(request: Any) -> None:
        if request.path.endswith(f"{meeting}/context"):
            place.world.delete("meetings", ids=[meeting])

    place.sandbox.before = delete
    place.sandbox.reset_log()
    assert part(place.sync(), "context_documents").listing.complete
    place.sandbox.before = None
    assert [path for path in place.asked(meeting) if "/context/" in path] == []
    assert place.query(f"SELECT DISTINCT _gone_reason FROM raw.context_documents WHERE _parent_id = '{meeting}'") == [
        ("parent_not_found",)
    ]
    assert place.sync().complete
    check(place.world, place.settings)


def test_documents_of_a_meeting_that_is_too_broken_to_be_stored_are_listed(new_place: NewPlace) -> None:
    place = new_place(meetings=20, accounts=1)
    meeting = place.world.items("ana", "context_documents")[0]["meeting_id"]
    place.world.update("meetings", ids=[meeting], title=7)
    place.sync()
    stored = set(place.query(f"SELECT id FROM raw.context_documents WHERE _parent_id = '{meeting}'"))
    assert stored == {(row["id"],) for row in place.world.items("ana", "context_documents", parent=meeting)}
    assert place.query("SELECT row_key FROM raw.quarantine") == [(meeting,)]


def test_a_document_that_moves_to_another_meeting_is_not_told_as_deleted(new_place: NewPlace) -> None:
    place = new_place(meetings=20, accounts=1)
    place.sync()
    document = place.world.items("ana", "context_documents")[0]
    meetings = sorted(row["id"] for row in place.world.items("ana", "meetings"))
    for target in (meetings[0], meetings[-1]):
        place.world.update("context_documents", ids=[document["id"]], meeting_id=target)
        assert place.sync().complete
        check(place.world, place.settings)
    told = place.query(f"SELECT DISTINCT _operation FROM raw.context_documents_history WHERE id = '{document['id']}'")
    assert set(told) == {("insert",), ("update",)}


def test_a_list_of_a_parent_that_is_empty_once_is_read_again(new_place: NewPlace) -> None:
    place = new_place(meetings=20, accounts=1)
    place.sync()
    place.world.insert("context_documents", 10, account="ana")
    place.sandbox.faults = [Fault("/context$", status=200, body=EMPTY, times=20)]
    report = place.sync()
    assert report.complete
    assert report.total("deleted") == 0
    check(place.world, place.settings)


# Nothing is hammered --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=403, body="<html>blocked</html>", times=9999),
        Fault(status=503, times=9999),
        Fault(status=429, headers={"retry-after": "0"}, times=9999),
        Fault(status=302, headers={"location": "http://127.0.0.2:9/"}, times=9999),
        Fault(status=200, body="<html>maintenance</html>", times=9999),
    ],
    ids=["firewall", "unavailable", "now for ever", "redirects", "maintenance"],
)
def test_however_many_accounts_a_server_that_answers_none_is_asked_few_times(fault: Fault, new_place: NewPlace) -> None:
    place = new_place(meetings=3, accounts=40)
    place.overrides["retry_seconds"] = 3
    place.sandbox.faults = [fault]
    report = place.sync()
    assert not any(one.listing.complete for one in report.streams if one.stream != "document_contents")
    assert all(one.listing.reason for one in report.streams if not one.listing.complete)
    assert len(place.asked("profile")) + len(place.asked("s")) <= 70


def test_requests_that_fail_by_turns_are_not_waited_for_each(new_place: NewPlace) -> None:
    place = new_place(meetings=60, accounts=1)
    place.overrides["retry_seconds"] = 1
    place.sandbox.faults = [Fault(r"/[0-7][^/]+/context$", status=503, times=9999)]
    report = part(place.sync(), "context_documents")
    assert not report.listing.complete
    assert report.seconds < 30
    assert len(place.asked("/context")) <= 4 * len(place.world.items("ana", "meetings"))


def test_a_limit_that_is_refused_is_asked_for_once(new_place: NewPlace) -> None:
    place = new_place(meetings=40, accounts=1)
    place.sandbox.faults = [named("limit-refused")]
    assert place.sync().complete
    check(place.world, place.settings)
    assert len([request for request in place.sandbox.requests if request.status == 400]) == 1


def test_a_first_list_that_is_empty_twice_is_not_believed_where_others_name_its_rows(place: Place) -> None:
    place.sandbox.faults = [named("list-empty", 2)]
    report = place.sync(accounts=["ana"], documents=False)
    [broken] = [part for part in report.streams if not part.listing.complete]
    assert (broken.stream, broken.listing.reason) == (
        "meetings",
        "the list was empty, but rows of it that others name can be read by id: sync again",
    )
    assert place.query("SELECT complete FROM ops.windows WHERE stream = 'meetings'") == [(False,)]
    assert place.sync(accounts=["ana"]).complete
    check(place.world, place.settings, ["ana"])


def test_a_list_that_is_empty_although_others_name_rows_that_cannot_be_read_is_empty(new_place: NewPlace) -> None:
    place = new_place(meetings=0, accounts=1)
    place.world.insert("action_items", 3, meeting_id=str(uuid.uuid4()))
    assert place.sync().complete
    assert 1 <= len([path for path in place.asked() if "/meetings/" in path]) <= 3
