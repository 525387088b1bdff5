"""Interrupted syncs go on where they were, and no request is sent that tells nothing: counted in the sandbox's log."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import Place
from test_cli import call
from truth import check

from contio_pipeline.auth import TokenStore
from contio_pipeline.journal import Journal, clear_journals
from contio_pipeline.sandbox.faults import FOR_EVER, named
from contio_pipeline.sandbox.server import Fault, Request
from contio_pipeline.settings import midnight
from contio_pipeline.warehouse import Warehouse

NewPlace = Callable[..., Place]
NOW = datetime(2026, 11, 27, 3, tzinfo=UTC)


def key(request: Request) -> tuple[str, tuple[tuple[str, str], ...]]:
    return request.path, tuple(sorted(request.query.items()))


def answered(place: Place) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    """What was asked for so far with success, but whose tokens these are."""
    return [
        key(request)
        for request in place.sandbox.requests
        if request.status == 200 and "/user/" in request.path and not request.path.endswith("/profile")
    ]


def killed_after(
    place: Place, requests: int, path: str, *options: str
) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    """Kill a sync after so many requests; returns what was answered by then. From now on requests of the path are slow."""
    place.sandbox.faults.append(Fault(path=path, delay=0.02, times=FOR_EVER))
    command = [sys.executable, "-m", "contio_pipeline", "sync", *options]
    limited = place.environment | {"CONTIO_RATE_LIMIT": "10000"}  # so that no more are under way than with the API's
    with subprocess.Popen(command, env=limited, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while len(answered(place)) < requests:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
        process.wait()
    place.sandbox.faults.clear()
    time.sleep(0.2)  # what the server still answers is logged
    done = answered(place)
    place.sandbox.reset_log()
    return done


# Going on -------------------------------------------------------------------------------------------------------------


def test_a_first_sync_that_was_killed_goes_on_and_asks_for_at_most_two_percent_again(new_place: NewPlace) -> None:
    place = new_place(meetings=700, accounts=1)
    done = killed_after(place, 520, r"/context$", "--no-documents")
    assert sum(path.endswith("/context") for path, _ in done) > 400
    result = call("sync", env=place.environment)
    assert result.returncode == 0, result.stderr
    assert "before the sync was interrupted" in result.stderr
    again = [request for request in answered(place) if request in done]
    assert len(again) <= 0.02 * len(done)
    check(place.world, place.settings)
    place.sandbox.reset_log()
    assert call("sync", env=place.environment).returncode == 0  # the first is through: from now on all is listed again
    assert {path for path, _ in done if path.endswith(("context", "meetings", "items", "events"))} <= set(place.asked())


def test_a_sync_in_portions_costs_hardly_more_than_in_one_go(new_place: NewPlace) -> None:
    place = new_place(meetings=300, accounts=2)
    runs = 0
    while call("sync", "--max-requests", "120", env=place.environment).returncode:
        runs += 1
        assert runs < 20
    portions = [*place.sandbox.requests]
    check(place.world, place.settings)
    whole = new_place(meetings=300, accounts=2)
    assert whole.sync().complete
    assert runs >= 5
    assert len(portions) <= 1.02 * len(whole.sandbox.requests) + 2 * runs  # each tries the profile, and may lose a page


def test_a_list_that_was_interrupted_is_read_on(new_place: NewPlace) -> None:
    place = new_place(meetings=1500, accounts=1)
    options = ("--stream", "meetings")
    done = killed_after(place, 9, r"/user/meetings$", *options)
    assert len(done) < 16
    kept = list((place.settings.data_dir / "unfinished").iterdir())
    assert [path.stat().st_mode & 0o777 for path in kept] == [0o600]
    assert call("sync", *options, env=place.environment).returncode == 0
    again = [request for request in answered(place) if request in done]
    assert len(again) <= 6  # that were under way, or just answered
    assert not list((place.settings.data_dir / "unfinished").iterdir())
    [(rows, late)] = place.query(
        "SELECT rows, complete_at < listed_at FROM ops.windows WHERE stream = 'meetings' AND complete"
    )
    assert (rows, late) == (len(place.world.items(place.only, "meetings")), True)
    place.sync()
    check(place.world, place.settings)


def test_a_list_that_changed_in_between_is_read_anew(new_place: NewPlace) -> None:
    place = new_place(meetings=1500, accounts=1)
    done = killed_after(place, 9, r"/user/meetings$", "--stream", "meetings")
    place.world.delete("meetings", 7)
    place.world.insert("meetings", 3)
    report = place.sync()
    assert report.complete
    assert set(done) <= set(answered(place))
    check(place.world, place.settings)


def test_what_was_kept_too_long_ago_is_not_used(new_place: NewPlace) -> None:
    place = new_place(meetings=1500, accounts=1)
    done = killed_after(place, 9, r"/user/meetings$", "--stream", "meetings")
    [path] = (place.settings.data_dir / "unfinished").iterdir()
    told = path.read_bytes()
    today = datetime.now(UTC).date()
    path.write_bytes(
        told.replace(str(today).encode(), str(today - timedelta(days=2)).encode(), 1)
    )  # and so it is damaged
    place.sync(streams=["meetings"])
    assert set(done) <= set(answered(place))


def test_documents_that_were_downloaded_are_not_had_again(new_place: NewPlace) -> None:
    place = new_place(meetings=600, accounts=1)
    place.sync(documents=False)
    place.sandbox.reset_log()
    done = killed_after(place, 120, r"/content$", "--stream", "document_contents")
    bodies = [request for request in done if request[0].endswith("/content")]
    assert len(bodies) > 60
    place.sync()
    again = [request for request in answered(place) if request in bodies]
    assert len(again) <= 6  # that were under way, or just answered
    check(place.world, place.settings)


def test_a_listing_that_ends_by_itself_begins_anew_the_next_time(new_place: NewPlace) -> None:
    place = new_place(meetings=60, accounts=1)
    meeting = place.world.items(place.only, "meetings")[0]["id"]
    place.sandbox.faults.append(
        Fault(path=f"{meeting}/context$", status=400, body='{"code":"x","error":"y"}', times=FOR_EVER)
    )
    assert not place.sync().complete
    place.sandbox.reset_log()
    assert not place.sync().complete
    assert len(set(place.asked("/context"))) == len(place.world.items(place.only, "meetings"))


def test_rows_that_were_read_by_id_in_an_interrupted_listing_are_read_again_where_they_changed(
    new_place: NewPlace,
) -> None:
    place = new_place(meetings=200, accounts=1)
    place.sandbox.faults.append(named("list-thin"))
    days = ("--since", "2025-01-01", "--until", "2027-12-31")
    done = killed_after(place, 100, r"/user/meetings/[0-9a-f-]+$", "--stream", "meetings", *days)
    read = [path.rpartition("/")[2] for path, _ in done if re.search(r"/user/meetings/[0-9a-f-]+$", path)]
    place.sandbox.faults.append(named("list-thin"))
    place.world.update("meetings", ids=read[20:25], summary_notes="changed")
    assert place.sync().complete
    assert place.query("SELECT count(*) FROM raw.meetings WHERE summary_notes = 'changed'") == [(5,)]


@pytest.mark.parametrize("what", ["account", "stream"])
def test_what_fails_by_itself_keeps_nothing_else_from_being_listed_again(what: str, new_place: NewPlace) -> None:
    place = new_place(meetings=20)
    if what == "account":
        place.sandbox.revoke("bo")
    else:
        place.sandbox.faults.append(Fault(path=r"/calendar/events$", status=503, times=FOR_EVER))
    assert not place.sync().complete
    [new] = place.world.insert("meetings", account="ana")
    report = place.sync()
    assert [part.listing.complete for part in report.streams if (part.account, part.stream) == ("ana", "meetings")] == [
        True
    ]
    assert place.query(f"SELECT count(*) FROM raw.meetings WHERE id = '{new}' AND _account = 'ana'") == [(1,)]


def test_times_that_lie_in_the_future_count_as_never(new_place: NewPlace) -> None:
    place = new_place(meetings=60, accounts=1)
    place.sync()
    aged(place, -365)  # as after a sync whose clock was wrong
    parent = place.world.items(place.only, "meetings")[0]["id"]
    place.world.insert("context_documents", 3, meeting_id=parent)
    for _ in range(2):
        assert place.sync().complete
        check(place.world, place.settings)


def test_another_application_lists_all_lists_itself(new_place: NewPlace) -> None:
    place = new_place(meetings=100, accounts=1)
    assert call("sync", "--max-requests", "80", env=place.environment).returncode == 1
    assert 40 < len(place.asked("/context")) < 80
    place.world.client_id = "another"
    TokenStore(place.settings.state_dir).remove(place.only)
    place.add_accounts(signed_in=True)
    place.sandbox.reset_log()
    assert place.sync().complete
    assert len(set(place.asked("/context"))) == len(place.world.items(place.only, "meetings"))
    assert place.asked("/user/meetings")


def test_a_list_that_always_fails_costs_the_others_neither_their_turn_nor_a_listing_a_night(
    new_place: NewPlace,
) -> None:
    place = new_place(meetings=120, accounts=1)
    place.overrides["nightly_child_requests"] = 4
    place.world.process_documents(steps=3)
    place.sync()
    old = sorted({meeting["id"] for meeting in place.world.items(place.only, "meetings")} - inside(place))
    aged(place, 200)
    for parent in old[:2]:
        fault = Fault(path=f"{parent}/context$", status=400, body='{"code":"x","error":"y"}', times=FOR_EVER)
        place.sandbox.faults.append(fault)
    seen: set[str] = set()
    for _ in range(math.ceil(len(old) / 4)):
        place.sandbox.reset_log()
        place.sync(night=True)
        read = set(lists_read(place)) - inside(place)
        assert len(read) <= 4
        seen |= read
    assert seen == set(old)


def test_a_first_listing_that_cannot_be_complete_is_not_repeated_night_after_night(new_place: NewPlace) -> None:
    place = new_place(meetings=120, accounts=1)
    place.world.process_documents(steps=3)
    meeting = min({meeting["id"] for meeting in place.world.items(place.only, "meetings")} - inside(place))
    place.sandbox.faults.append(
        Fault(path=f"{meeting}/context$", status=400, body='{"code":"x","error":"y"}', times=FOR_EVER)
    )
    assert not place.sync(night=True).complete
    for _ in range(2):
        place.sandbox.reset_log()
        place.sync(night=True)
        read = set(lists_read(place))
        assert inside(place) | {meeting} <= read
        assert len(read) < len(place.world.items(place.only, "meetings")) / 4  # the month that a night catches up with


def test_a_range_that_was_widened_in_between_is_listed(new_place: NewPlace) -> None:
    place = new_place(meetings=100, accounts=1)
    place.overrides |= {"calendar_start": "2026-11-01", "calendar_end": "2026-12-01"}
    assert call("sync", "--max-requests", "80", env=place.environment).returncode == 1
    place.overrides |= {"calendar_start": "2025-06-01", "calendar_end": "2027-06-01"}
    result = call("sync", env=place.environment)
    assert result.returncode == 0
    assert "before the sync was interrupted" in result.stderr
    check(place.world, place.settings)
    assert place.query("SELECT count(*), bool_and(complete) FROM ops.runs") == [(1, True)]


def test_a_document_that_was_not_asked_for_is_not_called_unavailable(new_place: NewPlace) -> None:
    place = new_place(meetings=60, accounts=1)
    place.sync(documents=False)
    call("sync", "--stream", "document_contents", "--max-requests", "6", env=place.environment)
    states = dict(place.query("SELECT state, count(*) FROM raw.document_contents GROUP BY 1"))
    assert states["stored"] == 5
    assert "unavailable" not in states


def test_a_file_that_cannot_be_used_is_done_without(new_place: NewPlace, caplog: pytest.LogCaptureFixture) -> None:
    place = new_place(meetings=1500, accounts=1)
    killed_after(place, 9, r"/user/meetings$", "--stream", "meetings")
    folder = place.settings.data_dir / "unfinished"
    for path in folder.iterdir():
        path.unlink()
        path.mkdir()
    assert place.sync().complete
    assert "cannot be used" in caplog.text
    check(place.world, place.settings)


# Economy --------------------------------------------------------------------------------------------------------------


def pages(rows: int) -> int:
    return max(1, math.ceil(rows / 100))


def test_a_first_sync_costs_pages_lists_and_documents_and_hardly_more(new_place: NewPlace) -> None:
    place = new_place(meetings=500, accounts=2)
    world = place.world
    assert place.sync().complete
    least = 0
    for account in world.accounts:
        meetings = world.items(account, "meetings")
        least += sum(
            pages(len(world.items(account, stream))) for stream in ("meetings", "action_items", "calendar_events")
        )
        least += len(meetings)
    least += len(set(place.asked("/content")))
    assert least <= len(place.sandbox.requests) <= 1.05 * least


def inside(place: Place) -> set[str]:
    """Ids of the meetings dated in the days of a night."""
    today = midnight(datetime.now(UTC).date())
    return {
        meeting["id"]
        for meeting in place.world.items(place.only, "meetings")
        if meeting.get("start_time")
        and today - timedelta(days=7) <= datetime.fromisoformat(meeting["start_time"]) < today + timedelta(days=31)
    }


def lists_read(place: Place) -> list[str]:
    return [path.split("/")[-2] for path in place.asked("/context")]


def test_a_quiet_night_costs_the_pages_of_its_lists_and_the_lists_that_are_due(new_place: NewPlace) -> None:
    place = new_place(meetings=400, accounts=1)
    world = place.world
    world.process_documents(steps=3)
    assert place.sync().complete
    place.sandbox.reset_log()
    assert place.sync(night=True).complete
    due = inside(place)
    assert sorted(lists_read(place)) == sorted(due)
    assert 0 < len(due) < len(world.items(place.only, "meetings")) / 2
    listed = sum(pages(len(world.items(place.only, stream))) for stream in ("meetings", "action_items"))
    assert len(place.sandbox.requests) <= 1.1 * (listed + pages(40) + len(due)) + 1  # whose tokens these are
    assert not place.asked("/content")


def aged(place: Place, days: int) -> None:
    """Make it a place whose lists of documents were read so many days ago."""
    with Warehouse(place.settings.data_dir, origin=None) as warehouse, warehouse.transaction() as connection:
        ago = f"INTERVAL ({days}) DAY"
        connection.execute(f"UPDATE ops.child_lists SET listed_at = listed_at - {ago}, tried_at = tried_at - {ago}")
        connection.execute(f"UPDATE raw.meetings SET _changed_at = _changed_at - {ago}")


def test_old_lists_take_turns_under_a_budget_and_touched_ones_do_not_wait(new_place: NewPlace) -> None:
    place = new_place(meetings=200, accounts=1)
    place.overrides["nightly_child_requests"] = 15
    world = place.world
    world.process_documents(steps=3)
    old = sorted({meeting["id"] for meeting in world.items(place.only, "meetings")} - inside(place))
    assert place.sync().complete
    aged(place, 100)
    [touched, waits, added] = old[:3]
    world.update("meetings", ids=[touched])
    [unfinished] = world.insert("context_documents", meeting_id=waits, file_status="processing")
    place.sync(streams=["context_documents", "document_contents"])  # it is known, and not finished
    aged(place, 100)
    [document] = world.insert("context_documents", meeting_id=added)
    seen: set[str] = set()
    for night in range(math.ceil(len(old) / 15) + 1):
        place.sandbox.reset_log()
        report = place.sync(night=True)
        assert report.complete
        read = set(lists_read(place)) - inside(place)
        assert waits in read
        if not night:
            assert touched in read
        assert len(read - {touched, waits}) <= 15
        seen |= read
    assert seen == set(old)
    assert document in {row for (row,) in place.query("SELECT id FROM raw.context_documents")}
    assert unfinished in {row for (row,) in place.query("SELECT id FROM raw.context_documents")}
    world.process_documents(steps=3)
    place.sync(night=True)
    check(place.world, place.settings)
    place.sandbox.reset_log()
    place.sync(night=True)
    assert set(lists_read(place)) <= inside(place)  # nothing is due but the days of the night


def test_the_younger_a_meeting_is_the_sooner_it_is_its_turn(new_place: NewPlace) -> None:
    place = new_place(meetings=5, accounts=1)
    place.overrides |= {"lookback_days": 0, "lookahead_days": 0}
    place.world.process_documents(steps=3)
    now = datetime.now(UTC)
    young, old = (
        place.world.insert("meetings", account=place.only, start_time=(now - timedelta(days=days)).isoformat())[0]
        for days in (20, 300)
    )
    place.sync()
    aged(place, 10)  # two times as long as that of the young may be, and a seventh of the old
    place.sandbox.reset_log()
    place.sync(night=True)
    assert young in lists_read(place)
    assert old not in lists_read(place)


# The file -------------------------------------------------------------------------------------------------------------


def get(folder: Path, *names: str, now: datetime = NOW) -> list[bytes | None]:
    with Journal(folder, "a list", now=now) as one:
        return [one.get(name) for name in names]


def put(folder: Path, *answers: tuple[str, bytes], now: datetime = NOW) -> None:
    with Journal(folder, "a list", now=now) as one:
        for name, body in answers:
            one.put(name, body)


def kept(folder: Path, *answers: tuple[str, bytes]) -> Path:
    put(folder, *answers)
    [path] = (folder / "unfinished").iterdir()
    return path


THREE = (("a", b"1"), ("b", bytes(range(256))), ("ü", b"3" * 100_000))


def test_what_was_put_is_found_by_another_process(tmp_path: Path) -> None:
    kept(tmp_path, *THREE)
    with Journal(tmp_path, "a list", now=NOW + timedelta(hours=2)) as later:
        assert [later.get(name) for name, _ in THREE] == [body for _, body in THREE]
        assert later.get("c") is None
        assert later.begun_at == NOW
        later.put("c", b"4")
    with Journal(tmp_path, "a list", now=NOW + timedelta(hours=3)) as again:
        assert (again.get("c"), again.get("a")) == (b"4", b"1")
        again.restart()
        assert (again.get("c"), again.begun_at) == (None, None)
    assert not list((tmp_path / "unfinished").iterdir())


def test_a_list_of_one_answer_makes_no_file(tmp_path: Path) -> None:
    put(tmp_path, ("a", b"1"))
    assert not (tmp_path / "unfinished").exists()


def test_another_list_has_another_file(tmp_path: Path) -> None:
    kept(tmp_path, *THREE)
    assert Journal(tmp_path, "another list", now=NOW).get("a") is None


@pytest.mark.parametrize("cut", [1, 99_999, 100_001, 100_013])
def test_what_was_cut_off_is_passed_over_and_the_rest_is_good(tmp_path: Path, cut: int) -> None:
    path = kept(tmp_path, *THREE)
    path.write_bytes(path.read_bytes()[:-cut])
    assert get(tmp_path, *"abü") == [b"1", bytes(range(256)), None]
    put(tmp_path, ("c", b"4"))
    assert get(tmp_path, *"abüc") == [b"1", bytes(range(256)), None, b"4"]


def test_from_a_damaged_place_on_nothing_is_used(tmp_path: Path) -> None:
    path = kept(tmp_path, *THREE)
    told = bytearray(path.read_bytes())
    told[told.index(bytes(range(256))) + 7] ^= 1
    path.write_bytes(told)
    assert get(tmp_path, *"abü") == [b"1", None, None]


@pytest.mark.parametrize("content", [b"", b"\0" * 500, b"nonsense", b"\xff" * 40])
def test_a_file_that_is_none_counts_as_empty(tmp_path: Path, content: bytes) -> None:
    kept(tmp_path, *THREE).write_bytes(content)
    assert get(tmp_path, "a") == [None]
    put(tmp_path, *THREE)
    assert get(tmp_path, "b") == [bytes(range(256))]


def test_what_comes_late_leaves_the_file_alone(tmp_path: Path) -> None:
    kept(tmp_path, *THREE)
    with Journal(tmp_path, "a list", now=NOW) as one:
        pass
    one.put("late", b"1")
    one.put("later", b"2")
    assert get(tmp_path, *"abü") == [body for _, body in THREE]
    with Journal(tmp_path, "a list", now=NOW) as one:
        one.drop()
        one.put("late", b"1")
        one.put("later", b"2")
    assert not list((tmp_path / "unfinished").iterdir())


def test_a_record_that_claims_to_be_endless_ends_the_file(tmp_path: Path) -> None:
    path = kept(tmp_path, *THREE)
    path.write_bytes(path.read_bytes() + b"\xff" * 12)
    assert get(tmp_path, *"abü") == [body for _, body in THREE]


def test_old_answers_are_forgotten(tmp_path: Path) -> None:
    kept(tmp_path, *THREE)
    assert get(tmp_path, "a", now=NOW + timedelta(hours=25)) == [None]
    kept(tmp_path, *THREE)
    assert get(tmp_path, "a", now=NOW - timedelta(hours=1)) == [None]  # the clock was wrong
    kept(tmp_path, *THREE)
    clear_journals(tmp_path, datetime.now(UTC))
    assert list((tmp_path / "unfinished").iterdir())
    clear_journals(tmp_path, datetime.now(UTC) + timedelta(days=2))
    assert not list((tmp_path / "unfinished").iterdir())
