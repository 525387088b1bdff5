"""The sandbox's world: deterministic, nasty in every promised way, and changed only as told."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from contio_pipeline.sandbox import generate
from contio_pipeline.sandbox.world import MISSING, STREAMS, World, parse_time

if TYPE_CHECKING:
    from collections.abc import Callable

Row = dict[str, Any]
LISTS = tuple(STREAMS)


@pytest.fixture
def world() -> World:
    return World(meetings=60)


@pytest.fixture(scope="module")
def default() -> dict[str, dict[str, Row]]:
    """Every row anybody sees in a world of the default size: stream -> id -> row."""
    world = World()
    return {s: {row["id"]: row for name in world.accounts for row in world.items(name, s)} for s in LISTS}


def ids(rows: list[Row]) -> list[str]:
    return [row["id"] for row in rows]


def by_id(world: World, stream: str, row_id: str, account: str = "ana") -> Row:
    row = world.get(account, stream, row_id)
    assert row is not None
    return row


def dump(world: World) -> str:
    return json.dumps({name: world.truth(name) for name in world.accounts}, sort_keys=False)


def test_same_seed_same_bytes_other_seed_other_bytes() -> None:
    def changed(seed: int) -> World:
        world = World(seed=seed, meetings=40)
        for stream in LISTS:
            world.insert(stream, 2)
            world.update(stream, 2)
            world.move(stream, 2)
            world.delete(stream, 2)
        world.merge(2)
        world.process_documents()
        return world

    assert dump(changed(1)) == dump(changed(1))
    assert dump(World(seed=1, meetings=40)) != dump(World(seed=2, meetings=40))
    assert World(seed=1, meetings=1).client_secret != World(seed=2, meetings=1).client_secret


def test_size_and_proportions(default: dict[str, dict[str, Row]]) -> None:
    assert len(default["meetings"]) == 300
    assert 350 < len(default["action_items"]) < 550
    assert 80 < len(default["context_documents"]) < 180
    pooled = {row["meeting_id"] for row in default["context_documents"].values()}
    assert 50 <= len(pooled) <= 60
    assert World(meetings=5, accounts=20).accounts.keys() >= {"ana", "bo", "cem", "user17", "user20"}


def test_meetings_span_a_year_and_sixty_days_ahead(default: dict[str, dict[str, Row]]) -> None:
    times = [when for row in default["meetings"].values() if (when := parse_time(row.get("start_time")))]
    now = datetime(2026, 11, 1, 12, tzinfo=UTC)
    assert now - timedelta(days=366) < min(times) < now - timedelta(days=350)
    assert now + timedelta(days=45) < max(times) < now + timedelta(days=61)


def test_accounts_see_different_but_overlapping_meetings(world: World) -> None:
    seen = {name: set(ids(world.items(name, "meetings"))) for name in world.accounts}
    assert seen["ana"] & seen["bo"] & seen["cem"]
    assert len({frozenset(rows) for rows in seen.values()}) == 3
    events = [set(ids(world.items(name, "calendar_events"))) for name in world.accounts]
    assert not set.intersection(*events)


def test_links_point_to_rows(world: World) -> None:
    truth = world.truth("ana")
    meetings, events = set(ids(truth["meetings"])), set(ids(truth["calendar_events"]))
    assert {row["meeting_id"] for row in truth["context_documents"]} <= meetings
    linked = {i for row in truth["calendar_events"] for i in row.get("linked_meetings") or []}
    assert linked
    assert linked <= meetings
    assert events & {row.get("calendar_event_id") for row in truth["meetings"]}


def has(field: str, condition: Callable[[Any], bool]) -> Callable[[Row], bool]:
    return lambda row: field in row and condition(row[field])


def lacks(field: str) -> Callable[[Row], bool]:
    return lambda row: field not in row


def equals(field: str, value: str) -> Callable[[Row], bool]:
    return has(field, lambda found: bool(found == value))


def text(field: str, part: str) -> Callable[[Row], bool]:
    return has(field, lambda value: isinstance(value, str) and part in value)


def ends(field: str, *, zone: str, digits: int) -> Callable[[Row], bool]:
    length = len("2026-01-01T00:00:00") + (digits + 1 if digits else 0) + len(zone)
    return has(field, lambda value: isinstance(value, str) and value.endswith(zone) and len(value) == length)


NASTY: dict[str, tuple[str, Callable[[Row], bool]]] = {
    "missing notes": ("meetings", lacks("summary_notes")),
    "null notes": ("meetings", has("summary_notes", lambda v: v is None)),
    "empty title": ("meetings", has("title", lambda v: v == "")),
    "missing title": ("meetings", lacks("title")),
    "undated by missing": ("meetings", lacks("start_time")),
    "undated by null": ("meetings", has("start_time", lambda v: v is None)),
    "Z": ("meetings", ends("start_time", zone="Z", digits=0)),
    "3 digits": ("meetings", ends("updated_at", zone="Z", digits=3)),
    "6 digits": ("meetings", ends("created_at", zone="Z", digits=6)),
    "9 digits": ("meetings", ends("created_at", zone="Z", digits=9)),
    "east": ("meetings", text("start_time", "+05:30")),
    "west": ("meetings", text("start_time", "-07:00")),
    "midnight": ("meetings", has("start_time", lambda v: "T00:00:00" in (v or ""))),
    "just before midnight": ("meetings", has("start_time", lambda v: "T23:59:59" in (v or ""))),
    "clock change": (
        "meetings",
        has("start_time", lambda v: parse_time(v) == datetime(2026, 3, 29, 1, tzinfo=UTC)),
    ),
    "emoji": ("meetings", text("title", "🚀")),
    "right to left": ("meetings", text("title", "\u202e")),
    "combining": ("meetings", text("title", "\u0301")),
    "control characters": ("meetings", text("title", '"two"\r\n\ttabbed')),
    "long notes": ("meetings", has("summary_notes", lambda v: len(v or "") > 40_000)),
    "unknown fields": ("meetings", has("ai_score", lambda v: v == 0.87)),
    "unknown nested": ("meetings", has("labels", lambda v: any(isinstance(label, dict) for label in v))),
    "unknown status": ("meetings", has("status", lambda v: v == "archived_by_ai")),
    "action item without meeting": ("action_items", lacks("meeting_id")),
    "action item with null meeting": ("action_items", has("meeting_id", lambda v: v is None)),
    "Go zero time": ("action_items", has("completed_at", lambda v: v == "0001-01-01T00:00:00Z")),
    "due date": ("action_items", has("due_date", lambda v: v is not None and len(v) == 10)),
    "due time": ("action_items", has("due_date", lambda v: v is not None and len(v) > 10)),
    "big integers": ("action_items", has("partner_context", lambda v: bool(v) and v.get("huge") == 10**30)),
    "all-day event": ("calendar_events", has("start_time", lambda v: len(v) == 10)),
    "zoneless event": ("calendar_events", has("start_time", lambda v: len(v) == 19)),
    "no attendees": ("calendar_events", lacks("attendees")),
    "attendee comment": ("calendar_events", has("attendees", lambda v: "response_comment" in str(v))),
    "unknown attendee status": ("calendar_events", has("attendees", lambda v: "delegated" in str(v))),
    "private event": ("calendar_events", has("linked_meetings", lambda v: v == [])),
    **{f"format {name}": ("context_documents", equals("source_format", name)) for name in generate.SOURCE_FORMATS},
    **{
        f"status {name}": ("context_documents", equals("file_status", name))
        for name in ("pending", "processing", "complete", "error", "ready")
    },
    "status missing": ("context_documents", lacks("file_status")),
    "first-party upload": ("context_documents", lacks("source_id")),
}


@pytest.mark.parametrize("kind", NASTY)
def test_every_nasty_kind_is_there(kind: str, default: dict[str, dict[str, Row]]) -> None:
    stream, condition = NASTY[kind]
    assert any(condition(row) for row in default[stream].values())


def test_no_row_breaks_its_promise_by_itself(default: dict[str, dict[str, Row]]) -> None:
    for stream, rows in default.items():
        for row_id, row in rows.items():
            assert row["id"] == row_id
            assert "\x00" not in json.dumps(row), stream
            for field in ("start_time", "end_time", "created_at", "updated_at", "due_date"):
                assert row.get(field) is None or parse_time(row[field]), (stream, field, row[field])


def test_titles_repeat(default: dict[str, dict[str, Row]]) -> None:
    for stream in ("meetings", "action_items", "calendar_events"):
        assert sum(row.get("title") == "Duplicate title" for row in default[stream].values()) >= 2


def test_contents_are_nasty_too() -> None:
    world = World()
    contents = {i: c for name in world.accounts for i, c in world.truth(name)["contents"].items()}
    names = [entry["filename"] for entry in contents.values()]
    assert {0, generate.BIG_FILE_BYTES} <= {entry["size"] for entry in contents.values()}
    assert len({entry["sha256"] for entry in contents.values()}) < len(contents)
    assert {None, "", "..", "../../../etc/passwd", "/etc/cron.d/evil"} <= set(names)
    assert any(name and len(name) > 255 for name in names)
    rows = world.items("ana", "context_documents")
    bodies = [file.content() for row in rows if (file := world.file("ana", row["meeting_id"], row["id"]))]
    assert len(bodies) == len(rows)
    assert any("\ufffd" in body.decode("utf-8", "replace") for body in bodies)


@pytest.mark.parametrize("name", ["plain.txt", 'a "q" \\ b', "🚀.md", "nul\x00\r\n", "", "x" * 500])
def test_a_file_name_is_a_legal_header(name: str) -> None:
    header = generate.File("txt", 1, 1, name=name).header()
    assert header is not None
    assert header.isascii()
    assert header.isprintable()


@pytest.mark.parametrize("source_format", generate.SOURCE_FORMATS)
def test_conversion_removes_the_personal_data(source_format: str) -> None:
    upload = generate.File(source_format, 7, 3)
    copy = generate.File(source_format, 7, 3, converted=True)
    assert b"u7@example.com" in upload.content()
    assert b"@example.com" not in copy.content()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("2026-01-02", datetime(2026, 1, 2, tzinfo=UTC)),
        ("2026-01-02T03:04:05.123456789Z", datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=UTC)),
        ("2026-01-02T00:00:00+05:30", datetime(2026, 1, 1, 18, 30, tzinfo=UTC)),
        ("2026-01-02T03:04:05", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("0001-01-01T00:00:00+05:30", None),
        ("2026-02-30", None),
        ("20260102", None),
        ("2026-01-02 03:04", None),
        ("soon", None),
        ("", None),
        (None, None),
        (17, None),
    ],
)
def test_parse_time(given: object, expected: datetime | None) -> None:
    assert parse_time(given) == expected


@pytest.mark.parametrize("stream", LISTS)
def test_insert_adds_plain_rows_with_given_fields(stream: str, world: World) -> None:
    before = world.items("ana", stream)
    added = world.insert(stream, 3, account="ana", title="New", ai_score=MISSING)
    assert set(ids(world.items("ana", stream))) - set(ids(before)) == set(added)
    assert [by_id(world, stream, row_id)["title"] for row_id in added] == ["New"] * 3
    assert "ai_score" not in by_id(world, stream, added[0])


def test_insert_for_everyone_or_one_account(world: World) -> None:
    [shared] = world.insert("meetings")
    [own] = world.insert("meetings", account="bo", start_time="2026-10-30T10:00:00Z")
    assert all(shared in ids(world.items(name, "meetings")) for name in world.accounts)
    assert [name for name in world.accounts if own in ids(world.items(name, "meetings"))] == ["bo"]
    assert by_id(world, "meetings", own, "bo")["end_time"] == "2026-10-30T10:30:00Z"


@pytest.mark.parametrize("stream", LISTS)
def test_update_changes_only_what_it_says(stream: str, world: World) -> None:
    target = world.items("ana", stream)[3]
    assert world.update(stream, ids=[target["id"]]) == [target["id"]]
    changed = by_id(world, stream, target["id"])
    expected = {"title", "updated_at"} if STREAMS[stream].stamped else {"title"}
    assert {name for name in {*target, *changed} if target.get(name) != changed.get(name)} == expected


def test_updated_at_always_grows(world: World) -> None:
    [target] = world.insert("meetings")
    times = []
    for _ in range(5):
        world.update("meetings", ids=[target])
        times.append(by_id(world, "meetings", target)["updated_at"])
        world.advance(timedelta(seconds=1))
    assert times == sorted(set(times))


def test_update_with_any_json_makes_a_broken_row_in_its_place(world: World) -> None:
    target = world.items("ana", "meetings")[5]["id"]
    world.update("meetings", ids=[target], start_time=17, id=None, title=["x"])
    broken = world.items("ana", "meetings")[5]
    assert (broken["start_time"], broken["id"], broken["title"]) == (17, None, ["x"])
    document = world.items("ana", "context_documents")[0]
    world.update("context_documents", ids=[document["id"]], meeting_id={"no": "id"})
    assert document["id"] in ids(world.items("ana", "context_documents", parent=document["meeting_id"]))


def test_update_can_drop_a_field(world: World) -> None:
    [target] = world.update("meetings", ids=ids(world.items("ana", "meetings"))[:1], title=MISSING)
    assert "title" not in by_id(world, "meetings", target)


@pytest.mark.parametrize("stream", LISTS)
def test_move_keeps_the_rendering(stream: str, world: World) -> None:
    field = STREAMS[stream].moves[0]
    target = next(row for row in world.items("ana", stream) if row.get(field))
    world.move(stream, ids=[target["id"]], days=40)
    moved = by_id(world, stream, target["id"])
    assert moved[field][10:] == target[field][10:]
    before, after = parse_time(target[field]), parse_time(moved[field])
    assert before is not None
    assert after is not None
    assert after - before == timedelta(days=40)


def test_delete_a_meeting(world: World) -> None:
    document = world.items("ana", "context_documents")[0]
    meeting_id = document["meeting_id"]
    [item] = world.insert("action_items", meeting_id=meeting_id, assigned_to_user_id=None)
    assert world.delete("meetings", ids=[meeting_id]) == [meeting_id]
    assert world.get("ana", "meetings", meeting_id) is None
    assert world.get("ana", "context_documents", document["id"]) is None
    assert world.items("ana", "context_documents", parent=meeting_id) == []
    assert by_id(world, "action_items", item)["meeting_id"] == meeting_id
    with pytest.raises(KeyError, match=meeting_id):
        world.delete("meetings", ids=[meeting_id])


def test_hide_and_unhide(world: World) -> None:
    document = world.items("ana", "context_documents")[0]
    meeting_id = document["meeting_id"]
    [item] = world.insert("action_items", meeting_id=meeting_id)
    everything = dump(world)
    world.hide("ana", meeting_ids=[meeting_id])
    assert meeting_id not in ids(world.items("ana", "meetings"))
    assert world.get("ana", "action_items", item) is None
    assert world.get("ana", "context_documents", document["id"]) is None
    assert world.truth("ana")["contents"].keys().isdisjoint([document["id"]])
    world.unhide("ana", meeting_ids=[meeting_id])
    assert dump(world) == everything


def test_merge_redirects_and_takes_the_documents_along(world: World) -> None:
    document = world.items("ana", "context_documents")[0]
    old = document["meeting_id"]
    assert world.merge(ids=[old]) == [old]
    new = world.redirects[old]
    assert world.get("ana", "meetings", old) == {"redirect_to_meeting_id": new}
    assert by_id(world, "meetings", new)["id"] == new
    listed = ids(world.items("ana", "meetings"))
    assert (old in listed, new in listed) == (False, True)
    assert by_id(world, "context_documents", document["id"])["meeting_id"] == new
    assert world.items("ana", "context_documents", parent=old) == []
    world.merge(ids=[new])  # a chain: each hop answers only the next
    assert world.get("ana", "meetings", old) == {"redirect_to_meeting_id": new}
    assert world.get("ana", "meetings", new) == {"redirect_to_meeting_id": world.redirects[new]}


def test_processing_ends_in_other_bytes(world: World) -> None:
    unfinished = {
        row["id"]: row
        for row in world.items("ana", "context_documents")
        if row.get("file_status") in ("pending", "processing")
    }
    before = world.truth("ana")["contents"]
    assert set(world.process_documents()) >= set(unfinished)
    statuses = {by_id(world, "context_documents", i)["file_status"] for i in unfinished}
    assert statuses == {"processing", "complete"}
    world.process_documents()
    after = world.truth("ana")["contents"]
    for row_id, row in unfinished.items():
        assert after[row_id]["file_status"] == "complete"
        assert after[row_id]["sha256"] != before[row_id]["sha256"]
        assert by_id(world, "context_documents", row_id).get("updated_at") != row.get("updated_at")
    assert world.process_documents() == []


def test_two_steps_at_once_finish_processing(world: World) -> None:
    world.process_documents(steps=2)
    statuses = {row.get("file_status") for row in world.items("ana", "context_documents")}
    assert statuses.isdisjoint({"pending", "processing"})


def test_rewriting_contents_is_silent(world: World) -> None:
    rows = world.items("ana", "context_documents")
    before = world.truth("ana")["contents"]
    world.rewrite_contents(ids(rows))
    after = world.truth("ana")["contents"]
    assert world.items("ana", "context_documents") == rows
    assert all(after[i]["sha256"] != before[i]["sha256"] for i in ids(rows))
    world.rewrite_contents([rows[0]["id"]], body=b"exact")
    assert world.truth("ana")["contents"][rows[0]["id"]]["sha256"] == hashlib.sha256(b"exact").hexdigest()


def test_lists_taken_before_a_change_stay_as_they_were(world: World) -> None:
    before = world.items("ana", "meetings")
    frozen = json.dumps(before)
    world.update("meetings", len(before), title="all others")
    world.delete("meetings", 5)
    assert json.dumps(before) == frozen


def test_order_and_filters(world: World) -> None:
    def times(stream: str, **how: Any) -> list[datetime | None]:
        return [parse_time(row.get(STREAMS[stream].filter_field)) for row in world.select("ana", stream, **how)]

    for stream in ("meetings", "action_items"):
        listed = times(stream)
        dated = [when for when in listed if when]
        assert dated == sorted(dated, reverse=True)
        assert listed[len(dated) :] == [None] * (len(listed) - len(dated))  # undated rows come last
    events = [when for when in times("calendar_events") if when]
    assert events == sorted(events)
    start, end = events[10], events[20]
    assert times("calendar_events", start=start, end=end) == [when for when in events if start <= when <= end]
    half_open = times("calendar_events", start=start, end=end, inclusive_end=False)
    assert half_open == [when for when in events if start <= when < end]
    assert None not in times("meetings", start=datetime(1900, 1, 1, tzinfo=UTC))
