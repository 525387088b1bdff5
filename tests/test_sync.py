"""Whole syncs over loopback HTTP, compared with the sandbox's truth."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from conftest import Place
from truth import check

from contio_pipeline.auth import TokenStore
from contio_pipeline.errors import ConfigError
from contio_pipeline.generations import current
from contio_pipeline.sandbox.server import Fault
from contio_pipeline.streams import STREAMS, Column, Stream
from contio_pipeline.sync import Run, parts
from contio_pipeline.warehouse import Window
from contio_pipeline.work import StreamReport, SyncReport

NewPlace = Callable[..., Place]


def part(report: SyncReport, account: str, stream: str) -> StreamReport:
    [found] = [one for one in report.streams if (one.account, one.stream) == (account, stream)]
    return found


def day(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# The promise ----------------------------------------------------------------------------------------------------------


def test_a_full_sync_makes_everything_equal_to_the_api(place: Place) -> None:
    report = place.sync()
    assert report.complete
    assert report.new_generation
    check(place.world, place.settings)


def test_running_again_changes_nothing_downloads_nothing_and_makes_no_generation(place: Place) -> None:
    first = place.sync()
    before = place.query(
        "SELECT _account, id, _hash, _changed_at::VARCHAR, _first_seen_at::VARCHAR FROM raw.meetings ORDER BY ALL"
    )
    history = place.query("SELECT count(*) FROM raw.meetings_history")
    place.sandbox.reset_log()
    second = place.sync()
    assert second.complete
    assert [second.total(name) for name in ("inserted", "updated", "deleted", "quarantined")] == [0, 0, 0, 0]
    assert place.asked("/content") == []
    assert not second.new_generation
    assert second.generation == first.generation
    assert (
        place.query(
            "SELECT _account, id, _hash, _changed_at::VARCHAR, _first_seen_at::VARCHAR FROM raw.meetings ORDER BY ALL"
        )
        == before
    )
    assert place.query("SELECT count(*) FROM raw.meetings_history") == history


def test_after_the_world_changed_everything_is_equal_again(place: Place) -> None:
    place.sync()
    world = place.world
    for stream in ("meetings", "action_items", "calendar_events", "context_documents"):
        world.insert(stream, 3)
        world.update(stream, 3)
        world.delete(stream, 2)
    for stream in ("meetings", "action_items", "calendar_events"):
        world.move(stream, 3, days=40)
    world.insert("calendar_events", 2, account="bo")
    world.merge(2)
    world.hide("bo", meeting_ids=[row["id"] for row in world.items("bo", "meetings")[:3]])
    world.process_documents()
    report = place.sync()
    assert report.complete, [one.listing for one in report.streams if not one.listing.complete]
    assert report.total("deleted") > 8
    check(world, place.settings)

    world.unhide("bo", meeting_ids=[row["id"] for row in world.items("ana", "meetings")[:3]])
    world.process_documents()
    assert place.sync().complete
    check(world, place.settings)
    again = place.sync()
    assert [again.total(name) for name in ("inserted", "updated", "deleted")] == [0, 0, 0]


def test_the_history_tells_every_change(place: Place) -> None:
    place.sync()
    [identity] = place.world.insert("meetings", title="first")
    place.sync(streams=["meetings"])
    place.world.update("meetings", ids=[identity], title="second")
    place.sync(streams=["meetings"])
    place.world.hide("ana", meeting_ids=[identity])
    place.sync(streams=["meetings"])
    place.world.unhide("ana", meeting_ids=[identity])
    place.sync(streams=["meetings"])
    told = place.query(f"""SELECT _operation, title FROM raw.meetings_history
                           WHERE id = '{identity}' AND _account = 'ana' ORDER BY _changed_at""")
    assert told == [("insert", "first"), ("update", "second"), ("delete", "second"), ("undelete", "second")]


# Deletions ------------------------------------------------------------------------------------------------------------


def test_what_is_gone_says_why(place: Place) -> None:
    place.sync()
    world = place.world
    everyone = set.intersection(*({row["id"] for row in world.items(a, "meetings")} for a in world.accounts))
    hidden, merged, *deleted = sorted(everyone)[:4]
    world.hide("bo", meeting_ids=[hidden])
    world.merge(ids=[merged])
    world.delete("meetings", ids=deleted)
    place.sync()

    def reasons(identity: str) -> dict[str, str]:
        return dict(place.query(f"SELECT _account, _gone_reason FROM raw.meetings WHERE id = '{identity}'"))

    assert reasons(hidden) == {"ana": None, "bo": "access_lost", "cem": None}
    assert set(reasons(merged).values()) == {"merged"}
    assert set(reasons(deleted[0]).values()) == {"not_found"}
    target = place.world.redirects[merged]
    assert place.query("SELECT DISTINCT id, redirect_to_meeting_id FROM raw.meeting_aliases") == [(merged, target)]


def test_a_chain_of_redirects_is_followed_to_its_end(place: Place) -> None:
    place.sync(accounts=["ana"])
    [old] = place.world.merge(ids=[place.world.items("ana", "meetings")[0]["id"]])
    [middle] = place.world.merge(ids=[place.world.redirects[old]])
    place.sync(accounts=["ana"])
    assert place.query("SELECT id, redirect_to_meeting_id FROM raw.meeting_aliases") == [
        (old, place.world.redirects[middle])
    ]
    check(place.world, place.settings, ["ana"])


def test_children_of_a_deleted_meeting_end_without_a_request_of_their_own(place: Place) -> None:
    place.sync(accounts=["ana"])
    [(meeting, documents)] = place.query(
        "SELECT _parent_id, count(*) FROM raw.context_documents GROUP BY 1 ORDER BY 2 DESC LIMIT 1"
    )
    place.world.delete("meetings", ids=[meeting])
    place.sandbox.reset_log()
    report = place.sync(accounts=["ana"])
    assert part(report, "ana", "context_documents").changes.deleted == documents
    assert [path for path in place.asked() if meeting in path] == [f"/v1/partner/user/meetings/{meeting}"]
    assert place.query(f"SELECT DISTINCT _gone_reason FROM raw.context_documents WHERE _parent_id = '{meeting}'") == [
        ("parent_not_found",)
    ]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(path=r"meetings/[0-9a-f-]{36}$", status=404, body="<html>gone</html>", times=99),
        Fault(path=r"meetings/[0-9a-f-]{36}$", status=403, body="<html>blocked</html>", times=99),
    ],
    ids=["404 that is not the API's", "403 of a firewall"],
)
def test_only_the_apis_own_404_counts_as_gone(place: Place, fault: Fault) -> None:
    place.sync(accounts=["ana"], streams=["meetings"])
    [identity] = place.world.delete("meetings", ids=[place.world.items("ana", "meetings")[0]["id"]])
    place.sandbox.faults.append(fault)
    report = place.sync(accounts=["ana"], streams=["meetings"])
    assert not report.complete
    assert "could not be confirmed" in (part(report, "ana", "meetings").listing.reason or "")
    sql = f"SELECT _deleted_at IS NULL, _missing_since IS NOT NULL FROM raw.meetings WHERE id = '{identity}'"
    assert place.query(sql) == [(True, True)]
    place.sandbox.faults.clear()
    assert place.sync(accounts=["ana"], streams=["meetings"]).complete
    check_one = place.query(f"SELECT _gone_reason, _missing_since FROM raw.meetings WHERE id = '{identity}'")
    assert check_one == [("not_found", None)]


def test_a_404_proves_nothing_when_the_token_does_not_read_its_profile(place: Place) -> None:
    place.sync(accounts=["ana"], streams=["meetings"])
    place.world.delete("meetings", ids=[place.world.items("ana", "meetings")[0]["id"]])
    account = place.world.accounts["ana"]
    account.scopes = tuple(scope for scope in account.scopes if scope != "profile")
    report = place.sync(accounts=["ana"], streams=["meetings"])
    assert not report.complete
    assert place.query("SELECT count(*) FROM raw.meetings WHERE _deleted_at IS NOT NULL") == [(0,)]


def test_an_outage_is_not_a_clean_out(new_place: NewPlace) -> None:
    place = new_place(meetings=200, accounts=1)
    place.sync(streams=["meetings"])
    live = place.query("SELECT count(*) FROM raw.meetings WHERE _deleted_at IS NULL")
    empty = json.dumps({"items": [], "total": 0, "limit": 100, "offset": 0})
    place.sandbox.faults.append(Fault(path=r"/meetings$", status=200, body=empty))
    place.sandbox.reset_log()
    report = place.sync(streams=["meetings"])
    assert "outage" in (part(report, "ana", "meetings").listing.reason or "")
    assert len(place.asked()) == 2  # the profile and the list: nothing was asked row by row
    assert place.query("SELECT count(*) FROM raw.meetings WHERE _deleted_at IS NULL") == live
    assert place.query("SELECT count(*) FROM raw.meetings WHERE _missing_since IS NOT NULL") == [(0,)]
    assert place.sync(streams=["meetings"]).complete


def test_how_much_may_be_lost_is_a_setting_and_a_real_clean_out_can_be_accepted(place: Place) -> None:
    only = {"accounts": ["ana"], "streams": ["meetings"]}
    place.sync(**only)
    live = [meeting["id"] for meeting in place.world.items("ana", "meetings")]
    gone = live[: len(live) // 3]
    place.world.delete("meetings", ids=gone)
    place.overrides = {"loss_share": 0.2, "loss_count": 5}
    report = place.sync(**only)
    assert "--accept-losses" in (part(report, "ana", "meetings").listing.reason or "")
    assert place.query("SELECT count(*) FROM raw.meetings WHERE _deleted_at IS NOT NULL") == [(0,)]
    place.overrides = {"loss_share": 0.2, "loss_count": len(gone)}  # not more than this many
    assert place.sync(**only).total("deleted") == len(gone)
    place.world.delete("meetings", ids=live[len(gone) :])
    place.overrides = {"loss_share": 0, "loss_count": 0}
    assert not place.sync(**only).complete
    command = [
        sys.executable,
        "-m",
        "contio_pipeline",
        "sync",
        "--accept-losses",
        "--account",
        "ana",
        "--stream",
        "meetings",
    ]
    subprocess.run(command, env=place.environment, check=True, capture_output=True)
    assert place.query("SELECT count(*) FROM raw.meetings WHERE _deleted_at IS NULL") == [(0,)]


def test_events_without_an_instant_are_missed_too(place: Place) -> None:
    place.sync(accounts=["ana"], streams=["calendar_events"])
    unzoned = place.query("SELECT id FROM raw.calendar_events WHERE start_time IS NULL")
    assert unzoned
    place.world.delete("calendar_events", ids=[identity for (identity,) in unzoned])
    report = place.sync(accounts=["ana"], streams=["calendar_events"])
    assert report.complete
    assert report.total("deleted") == len(unzoned)
    assert place.query("SELECT count(*) FROM raw.calendar_events WHERE start_time IS NULL AND _deleted_at IS NULL") == [
        (0,)
    ]


# Windows --------------------------------------------------------------------------------------------------------------

OCTOBER = Window(day("2026-10-01"), day("2026-11-01"))


def test_a_window_sees_what_changed_in_it_and_asks_only_there(place: Place) -> None:
    place.sync()
    world = place.world
    inside = [row["id"] for row in world.select("ana", "meetings", start=OCTOBER.start, end=OCTOBER.end)]
    gone, changed, moved = inside[:3]
    world.delete("meetings", ids=[gone])
    world.update("meetings", ids=[changed], title="changed")
    world.move("meetings", ids=[moved], days=90)
    [new] = world.insert("meetings", start_time="2026-10-20T10:00:00Z")
    place.sandbox.reset_log()
    report = place.sync(accounts=["ana"], window=OCTOBER)
    assert report.complete
    rows = dict(place.query("SELECT id, coalesce(_gone_reason, title) FROM raw.meetings WHERE _account = 'ana'"))
    assert rows[gone] == "not_found"
    assert rows[changed] == "changed"
    assert new in rows
    [(start,)] = place.query(f"SELECT start_time::VARCHAR FROM raw.meetings WHERE id = '{moved}' AND _account = 'ana'")
    assert start > "2026-12"
    lists = [request for request in place.sandbox.requests if request.path.endswith("/meetings")]
    assert {(request.query["start_date"], request.query["end_date"]) for request in lists} == {
        ("2026-10-01T00:00:00Z", "2026-11-01T00:00:00Z")
    }
    assert len(place.asked("/context")) <= len(inside) + 3


def test_a_row_outside_the_window_is_never_missed(place: Place) -> None:
    place.sync(accounts=["ana"])
    place.sandbox.reset_log()
    report = place.sync(accounts=["ana"], streams=["meetings"], window=OCTOBER)
    assert part(report, "ana", "meetings").changes.missing == []
    assert len(place.asked()) == 2


@pytest.mark.parametrize("field", ["created_at", "updated_at", "end_time"])
def test_no_live_row_is_lost_whichever_field_the_date_filter_means(new_place: NewPlace, field: str) -> None:
    place = new_place(meetings=150, accounts=1, filter_fields={"meetings": field})
    place.sync(streams=["meetings"])
    live = {row["id"] for row in place.world.items("ana", "meetings")}
    for start in ("2026-09-01", "2026-10-01", "2026-10-15"):
        place.sync(streams=["meetings"], window=Window(day(start), day(start) + timedelta(days=31)))
    found = {identity for (identity,) in place.query("SELECT id FROM raw.meetings WHERE _deleted_at IS NULL")}
    assert found == live
    assert place.sync(streams=["meetings"]).complete


def test_a_false_assumption_about_the_filter_is_reported_and_stops_costing_requests(new_place: NewPlace) -> None:
    place = new_place(meetings=200, accounts=1, filter_fields={"meetings": "updated_at"})
    place.sync(streams=["meetings"])
    for row in place.world.items("ana", "meetings"):  # everything changed just now, so old windows come back empty
        place.world.update("meetings", ids=[row["id"]])
    place.sync(streams=["meetings"])
    window = Window(day("2026-03-01"), day("2026-09-01"))
    report = place.sync(streams=["meetings"], window=window)
    assert any("does not mean start_time" in warning for warning in part(report, "ana", "meetings").warnings)
    assert place.query("SELECT holds FROM ops.assumptions WHERE assumption = 'date_filter'") == [(False,)]
    place.sandbox.reset_log()
    place.sync(streams=["meetings"], window=window)
    assert len(place.asked()) <= 3  # profile, list, one row as a probe
    assert place.query("SELECT count(*) FROM raw.meetings WHERE _deleted_at IS NOT NULL") == [(0,)]


def test_a_window_of_the_calendar_is_listed_alike(place: Place) -> None:
    place.sync(accounts=["ana"])
    start, end = OCTOBER.start, OCTOBER.end
    [gone] = [row["id"] for row in place.world.select("ana", "calendar_events", start=start, end=end)][:1]
    place.world.delete("calendar_events", ids=[gone])
    report = place.sync(accounts=["ana"], streams=["calendar_events"], window=OCTOBER)
    assert report.complete
    assert place.query(f"SELECT _gone_reason FROM raw.calendar_events WHERE id = '{gone}'") == [("not_found",)]


# Listings that change while they are read -----------------------------------------------------------------------------


def test_a_row_skipped_by_a_shift_that_no_count_shows_is_found(new_place: NewPlace) -> None:
    place = new_place(meetings=450, accounts=1)
    shifts: list[Any] = []

    def shift(request: Any) -> None:
        """Between two pages delete the first row and append one at the end: total and ids agree, yet one row is skipped."""
        if request.path.endswith("/meetings") and request.query.get("offset") == "99" and not shifts:
            shifts.append(place.world.delete("meetings", ids=[place.world.items("ana", "meetings")[0]["id"]]))
            place.world.insert("meetings", start_time="2020-01-01T00:00:00Z")

    place.sandbox.before = shift
    report = place.sync(streams=["meetings"])
    place.sandbox.before = None
    assert shifts
    assert report.complete
    listed = {identity for (identity,) in place.query("SELECT id FROM raw.meetings WHERE _deleted_at IS NULL")}
    assert listed == {row["id"] for row in place.world.items("ana", "meetings")}


def test_a_list_that_never_stands_still_is_incomplete_and_marks_nothing(new_place: NewPlace) -> None:
    place = new_place(meetings=250, accounts=1)
    place.sync(streams=["meetings"])
    deleted: list[str] = []

    def shift(request: Any) -> None:
        if request.path.endswith("/meetings") and request.query.get("offset") != "0":
            deleted.extend(place.world.delete("meetings", ids=[place.world.items("ana", "meetings")[0]["id"]]))

    place.sandbox.before = shift
    report = place.sync(streams=["meetings"])
    place.sandbox.before = None
    assert deleted
    assert not report.complete
    assert place.query("SELECT count(*) FROM raw.meetings WHERE _missing_since IS NOT NULL") == [(0,)]
    assert place.query("SELECT complete FROM ops.windows WHERE stream = 'meetings'") == [(False,)]
    assert place.sync(streams=["meetings"]).complete
    gone = {identity for (identity,) in place.query("SELECT id FROM raw.meetings WHERE _deleted_at IS NOT NULL")}
    assert gone == set(deleted)


@pytest.mark.parametrize("cap", [1, 7, 50])
def test_a_server_that_caps_pages_lower_is_listed_whole(new_place: NewPlace, cap: int) -> None:
    place = new_place(meetings=40, accounts=1, max_limit=cap)
    assert place.sync(streams=["meetings"]).complete
    assert place.query("SELECT count(*) FROM raw.meetings") == [(len(place.world.items("ana", "meetings")),)]


@pytest.mark.parametrize(
    "body",
    ["", "<html>maintenance</html>", "[]", "{}", '{"items": null, "total": 0}', '{"items": [], "total": "0"}', "NaN"],
)
def test_a_broken_envelope_is_an_error_never_an_empty_list(place: Place, body: str) -> None:
    place.sync(accounts=["ana"], streams=["meetings"])
    place.sandbox.faults.append(Fault(path=r"/meetings$", status=200, body=body, times=99))
    report = place.sync(accounts=["ana"], streams=["meetings"])
    assert not report.complete
    assert place.query("SELECT count(*) FROM raw.meetings WHERE _missing_since IS NOT NULL") == [(0,)]
    place.sandbox.faults.clear()
    assert place.sync(accounts=["ana"]).complete
    check(place.world, place.settings, ["ana"])


def test_a_total_that_no_pages_bear_out_does_not_cost_requests_without_end(place: Place) -> None:
    page = json.dumps({"items": [], "total": 10**15, "limit": 100, "offset": 0})
    first = json.dumps({"items": [{"id": "a"}, {"id": "b"}], "total": 10**15, "limit": 100, "offset": 0})
    for body, times in ((first, 1), (page, 30), (first, 1), (page, 30), (first, 1), (page, 99)):
        place.sandbox.faults.append(Fault(path=r"/meetings$", status=200, body=body, times=times))
    report = place.sync(accounts=["ana"], streams=["meetings"])
    assert not report.complete
    assert len(place.asked("/meetings")) < 100


# Rows that break their promise ----------------------------------------------------------------------------------------


def test_a_broken_row_goes_to_quarantine_and_its_last_good_version_stays(new_place: NewPlace) -> None:
    place = new_place(meetings=300, accounts=1)
    place.sync(streams=["meetings"])
    victim = place.world.items("ana", "meetings")[5]
    place.world.update("meetings", ids=[victim["id"]], title=17)
    report = place.sync(streams=["meetings"])
    assert report.complete  # one row in two hundred is a warning
    assert "break their promise" in part(report, "ana", "meetings").warnings[0]
    assert place.query("SELECT row_key, reason FROM raw.quarantine") == [
        (victim["id"], "title is a number, not a text")
    ]
    sql = f"SELECT title, _missing_since, _deleted_at FROM raw.meetings WHERE id = '{victim['id']}'"
    assert place.query(sql) == [(victim.get("title"), None, None)]
    place.world.update("meetings", ids=[victim["id"]], title="well again")
    place.sync(streams=["meetings"])
    assert place.query("SELECT count(*) FROM raw.quarantine") == [(0,)]
    assert place.query(sql) == [("well again", None, None)]


def test_a_row_without_an_id_makes_the_listing_incomplete(place: Place) -> None:
    place.world.update("meetings", ids=[place.world.items("ana", "meetings")[0]["id"]], id=None)
    report = place.sync(accounts=["ana"], streams=["meetings"])
    assert "without a usable id" in (part(report, "ana", "meetings").listing.reason or "")


def test_too_many_broken_rows_make_the_listing_incomplete(place: Place) -> None:
    place.world.update("meetings", ids=[row["id"] for row in place.world.items("ana", "meetings")[:3]], title=[])
    report = place.sync(accounts=["ana"], streams=["meetings"])
    assert "break their promise" in (part(report, "ana", "meetings").listing.reason or "")
    assert part(report, "ana", "meetings").changes.quarantined == 3


# Accounts -------------------------------------------------------------------------------------------------------------


def test_a_revoked_account_does_not_stop_the_others(place: Place) -> None:
    place.sync()
    place.sandbox.revoke("bo")
    place.world.update("meetings", 5)
    report = place.sync()
    assert not report.complete
    assert {one.account for one in report.streams if not one.listing.complete} == {"bo"}
    for one in report.streams:
        if one.account == "bo":
            assert "accounts add bo" in (one.listing.reason or "")
    check(place.world, place.settings, ["ana", "cem"])
    assert place.query("SELECT DISTINCT account FROM ops.windows WHERE NOT complete") == [("bo",)]
    assert place.query("SELECT count(*) FROM ops.windows WHERE complete_at IS NULL") == [(0,)]  # they once were


def test_damaged_tokens_stop_their_own_account_only(place: Place) -> None:
    (place.settings.state_dir / "accounts" / "bo.json").write_text("{")
    report = place.sync(streams=["meetings"])
    assert {one.account for one in report.streams if not one.listing.complete} == {"bo"}
    assert "damaged; add it again" in (part(report, "bo", "meetings").listing.reason or "")


def test_a_missing_scope_fails_its_own_stream_only(place: Place) -> None:
    account = place.world.accounts["ana"]
    account.scopes = tuple(scope for scope in account.scopes if not scope.startswith("calendar"))
    report = place.sync(accounts=["ana"])
    [broken] = [one for one in report.streams if not one.listing.complete]
    assert broken.stream == "calendar_events"
    assert "contio-pipeline login --account ana" in (broken.listing.reason or "")


def test_another_users_token_under_the_same_name_is_refused(place: Place) -> None:
    place.sync(accounts=["ana"])
    store = TokenStore(place.settings.state_dir)
    known = store.read("ana")
    place.sandbox.expire_access_tokens()
    store.write("ana", type(known)(place.sandbox.login("bo"), profile_id=known.profile_id))
    report = place.sync(accounts=["ana"])
    assert not report.complete
    assert all("another Contio user" in (one.listing.reason or "") for one in report.streams)
    check(place.world, place.settings, ["ana"])


def test_documents_are_not_complete_when_their_meetings_are_not(place: Place) -> None:
    place.sandbox.faults.append(Fault(path=r"/meetings$", status=400, body='{"code": "x", "error": "x"}', times=2))
    report = place.sync(accounts=["ana"])
    assert "could not all be listed" in (part(report, "ana", "context_documents").listing.reason or "")
    assert place.sync(accounts=["ana"]).complete


def test_a_refusal_for_a_day_ends_all_accounts_at_once(place: Place) -> None:
    refusal = Fault(status=429, headers={"Retry-After": "86400"}, body='{"error": "rate_limited"}', times=99)
    place.sandbox.faults.append(refusal)
    report = place.sync()
    assert not report.complete
    assert len(place.asked()) == 1
    assert {one.account for one in report.streams} == set(place.world.accounts)


def test_a_server_that_is_down_is_not_asked_for_every_stream_of_every_account(place: Place) -> None:
    place.overrides["retry_seconds"] = 1
    place.sandbox.faults.append(Fault(status=503, times=999))
    report = place.sync()
    assert not any(one.listing.complete for one in report.streams)
    assert len(place.asked()) <= 3 + len(place.world.accounts)


def test_a_profile_that_something_in_between_refused_once_is_asked_for_again(new_place: NewPlace) -> None:
    place = new_place(meetings=3, accounts=1)
    place.sandbox.faults.append(Fault(path=r"/profile$", status=403, body="<html>"))
    assert place.sync(streams=["meetings"]).complete
    assert place.query("SELECT _account FROM raw.accounts") == [("ana",)]
    assert len(place.asked("/profile")) == 2


def test_an_api_without_profiles_is_synced_all_the_same(place: Place) -> None:
    place.sandbox.faults.append(Fault(path=r"/profile$", status=404, body="<html>", times=99))
    assert place.sync(accounts=["ana"]).complete


def test_no_accounts_and_unknown_names_are_configuration_errors(place: Place) -> None:
    with pytest.raises(ConfigError, match="no stream 'meeting'; there are: meetings"):
        place.sync(streams=["meeting"])
    with pytest.raises(ConfigError, match="no account 'dan'"):
        place.sync(accounts=["dan"])
    for name in place.world.accounts:
        TokenStore(place.settings.state_dir).remove(name)
    with pytest.raises(ConfigError, match="no accounts yet"):
        place.sync()


# Contents -------------------------------------------------------------------------------------------------------------


def test_one_document_seen_by_several_accounts_is_downloaded_once(place: Place) -> None:
    place.sync()
    downloads = {request.path: request.bytes for request in place.sandbox.requests if request.path.endswith("/content")}
    assert downloads
    assert len(place.asked("/content")) == sum(
        1 if size else 2 for size in downloads.values()
    )  # empty ones are doubted


def test_waiting_documents_are_downloaded_when_they_are_finished(place: Place) -> None:
    place.sync()
    [(waiting,)] = place.query("SELECT count(DISTINCT id) FROM raw.document_contents WHERE state = 'waiting'")
    assert waiting
    place.world.process_documents(steps=2)
    place.sandbox.reset_log()
    place.sync()
    assert len(place.asked("/content")) == waiting
    check(place.world, place.settings)


def test_all_documents_are_downloaded_when_asked_for(place: Place) -> None:
    place.overrides["documents"] = "all"
    place.sync(accounts=["ana"])
    assert place.query("SELECT DISTINCT state FROM raw.document_contents") == [("stored",)]


def test_verify_finds_silent_changes_and_repairs_damage(place: Place) -> None:
    place.sync(accounts=["ana"])
    stored = place.query(
        "SELECT id, sha256 FROM raw.document_contents WHERE state = 'stored' AND size_bytes > 0 ORDER BY id"
    )
    (rewritten, _), (_, damaged) = stored[0], next(row for row in stored[1:] if row[1] != stored[0][1])
    place.world.rewrite_contents([rewritten])
    path = place.settings.data_dir / "documents" / damaged[:2] / damaged[2:4] / damaged
    path.chmod(0o600)
    path.write_bytes(b"damaged")
    report = place.sync(accounts=["ana"], verify_documents=True)
    assert report.complete
    assert part(report, "ana", "document_contents").changes.updated >= 1
    check(place.world, place.settings, ["ana"])


def test_a_removed_file_is_downloaded_again(place: Place) -> None:
    place.sync(accounts=["ana"])
    [(digest,)] = place.query("SELECT sha256 FROM raw.document_contents WHERE state = 'stored' ORDER BY id LIMIT 1")
    (place.settings.data_dir / "documents" / digest[:2] / digest[2:4] / digest).unlink()
    place.sync(accounts=["ana"])
    check(place.world, place.settings, ["ana"])


def test_one_document_that_cannot_be_had_does_not_stop_the_rest(place: Place) -> None:
    refused = '{"code": "internal", "error": "boom", "request_id": "r-1"}'
    place.sandbox.faults.append(Fault(path=r"/content$", status=400, body=refused))
    report = place.sync(accounts=["ana"])
    contents = part(report, "ana", "document_contents")
    assert not contents.listing.complete
    assert "r-1" in (contents.listing.reason or "")
    assert place.query("SELECT count(*) FROM raw.document_contents WHERE state = 'unavailable'") == [(1,)]
    assert place.sync(accounts=["ana"]).complete
    check(place.world, place.settings, ["ana"])


def test_no_documents_downloads_none(place: Place) -> None:
    report = place.sync(accounts=["ana"], documents=False)
    assert report.complete
    assert place.asked("/content") == []


# Streams are data -----------------------------------------------------------------------------------------------------

AGENDA = Stream(
    name="agenda",
    path="meetings/{parent_id}/agenda-items",
    detail_path=None,
    paged=False,
    scope="meetings:read",
    doc="An agenda item.",
    parent="meetings",
    date_field="created_at",
    dates="none",
    columns=(
        Column("id", "text", "Id."),
        Column("title", "text", "Title."),
        Column("sequence", "text", "Place in the agenda."),
        Column("created_at", "timestamp", "When it was created."),
    ),
)


def test_a_new_declaration_is_a_table_a_history_parquet_and_a_listing(place: Place) -> None:
    report = place.sync(accounts=["ana"], streams=["meetings", "agenda"], declared=(*STREAMS, AGENDA))
    assert report.complete
    wanted = {
        (item["id"], row["id"])
        for row in place.world.items("ana", "meetings")
        for item in place.world.items("ana", "agenda_items", parent=row["id"])
    }
    assert wanted
    assert set(place.query("SELECT id, _parent_id FROM raw.agenda")) == wanted
    assert place.query("SELECT count(*) FROM raw.agenda_history") == [(len(wanted),)]
    folder = current(place.settings.data_dir).folder
    assert list((folder / "parquet/raw/agenda").glob("month=*/part.parquet"))
    comments = place.query("""SELECT column_name, comment FROM duckdb_columns()
                              WHERE table_name = 'agenda' AND column_name = 'sequence'""")
    assert comments == [("sequence", "Place in the agenda.")]


# Secrets --------------------------------------------------------------------------------------------------------------


def test_no_secret_is_in_any_file_but_the_token_store(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.folder / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place.folder / "tmp"))
    caplog.set_level("DEBUG")
    place.sync()
    place.sandbox.expire_access_tokens()  # those that ended are secrets too
    place.sandbox.revoke("bo")
    place.sync()
    assert len(place.sandbox.issued) > 6
    assert place.look_for_secrets(place.folder) > 50
    assert not [secret for secret in place.secrets if secret in caplog.text]
    with duckdb.connect(place.settings.data_dir / "warehouse.duckdb", read_only=True) as connection:  # compressed bytes
        for [name] in connection.execute("SELECT schema_name || '.' || table_name FROM duckdb_tables()").fetchall():
            rows = repr(connection.execute(f"SELECT * FROM {name}").fetchall())
            assert not [secret for secret in place.secrets if secret in rows], name
    tokens = place.settings.state_dir / "accounts"
    assert all(path.stat().st_mode & 0o077 == 0 for path in tokens.rglob("*"))


def test_folders_that_hold_private_data_are_the_owners_alone(place: Place) -> None:
    place.sync(accounts=["ana"])
    data: Path = place.settings.data_dir
    for path in (data, data / "warehouse.duckdb", data / "documents", place.settings.state_dir / "accounts"):
        assert path.stat().st_mode & 0o077 == 0, path


# Runs in parts --------------------------------------------------------------------------------------------------------


def test_parts_of_a_run_are_one_run_and_know_what_the_others_found(place: Place) -> None:
    for name in parts():
        with Run(place.settings, run_id="night") as run:
            run.refresh(name)
    with Run(place.settings, run_id="night") as run:
        assert run.incomplete() == []
        run.publish()
    check(place.world, place.settings)
    assert len(place.asked("/profile")) == 3
    [(complete, requests, finished)] = place.query("SELECT complete, requests, finished_at > started_at FROM ops.runs")
    assert (complete, requests, finished) == (True, len([path for path in place.asked() if "/user/" in path]), True)

    window = Window(day("2026-10-01"), day("2026-11-01"))
    place.sandbox.faults = [Fault("/user/meetings$", status=500, times=99)]
    with Run(place.settings, run_id="next", window=window, accounts=["ana"]) as run:
        run.refresh("meetings")
    place.sandbox.faults = []
    with Run(place.settings, run_id="next", window=window, accounts=["ana"]) as run:
        run.refresh("context_documents")
        assert [row["stream"] for row in run.incomplete()] == ["meetings", "context_documents"]
        assert "could not all be listed" in run.incomplete()[1]["reason"]


def test_an_account_that_one_part_found_broken_is_not_asked_again_in_that_run(place: Place) -> None:
    place.sandbox.revoke("bo")
    for name in ("meetings", "action_items"):
        with Run(place.settings, run_id="night", accounts=["bo"]) as run:
            run.refresh(name)
            assert not run.report.complete
    assert place.asked() == ["/v1/partner/user/profile", "/oauth2/token"]
    with Run(place.settings, run_id="next night", accounts=["bo"]) as run:
        run.refresh("meetings")
    assert len(place.sandbox.requests) == 4
