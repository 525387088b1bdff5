"""Marts: each equals an independent computation, in plain Python, over what the sandbox's accounts could read."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, time, timedelta
from itertools import count, pairwise, takewhile
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pyarrow.parquet as pq
import pytest
from conftest import Place
from test_publish import READERS, ROOT
from truth import Row, instant

from contio_pipeline.generations import current
from contio_pipeline.marts import MARTS, Mart
from contio_pipeline.publish import Terms, publish
from contio_pipeline.sandbox.world import World
from contio_pipeline.warehouse import Warehouse, Window

ZONE = "America/New_York"
"""Of all days in here; the test of all marts takes others, too."""
NEEDED = {
    "meetings": "updated_at",
    "action_items": "updated_at",
    "calendar_events": None,
    "context_documents": "updated_at",
    "participants": "updated_at",
    "agenda_items": "updated_at",
}


class Seen:
    """What every account was told of each thing, and what it still sees: the model of the marts."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.told: dict[str, dict[str, dict[str, Row]]] = defaultdict(lambda: defaultdict(dict))
        self.live: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        self.pasts: dict[tuple[str, str], list[Row]] = defaultdict(list)
        """Account and id of an action item -> all that was told of it, in order."""
        self.look()

    def look(self) -> None:
        """Remember what the accounts see now; call it before each sync."""
        for stream in NEEDED:
            self.live[stream].clear()
            for account in sorted(self.place.world.accounts):
                for row in self._now(account, stream):
                    self.told[stream][row["id"]][account] = dict(row)
                    self.live[stream][row["id"]].append(account)
                    if stream == "action_items":
                        self.pasts[account, row["id"]].append(dict(row))

    def _now(self, account: str, stream: str) -> list[Row]:
        world = self.place.world
        if stream == "calendar_events":
            start, end = self.place.settings.calendar_range(datetime.now(UTC))
            return list(world.select(account, stream, start=start, end=end))
        return world.items(account, stream)

    def versions(self, stream: str) -> Iterable[Row]:
        """What each account was last told of each thing."""
        return (row for versions in self.told[stream].values() for row in versions.values())

    def once(self, stream: str) -> dict[str, tuple[Row, list[str]]]:
        """Id -> the newest version, and who sees it now."""
        found = {}
        for identity, versions in self.told[stream].items():
            used = self.in_use(identity) or ""
            if used == identity or used not in self.told[stream]:
                found[used] = versions[self.teller(stream, identity)], self.live[stream].get(identity, [])
        return found

    def teller(self, stream: str, identity: str) -> str:
        """The account whose version of a thing counts: the newest, of those who see it if anybody does."""
        versions = self.told[stream][identity]

        def newest(account: str) -> datetime:
            return instant(versions[account].get("updated_at")) or datetime.min.replace(tzinfo=UTC)

        return max(self.live[stream].get(identity) or sorted(versions), key=newest)

    def in_use(self, meeting: str | None) -> str | None:
        """The id of a meeting after all merges."""
        while meeting in self.place.world.redirects:
            meeting = self.place.world.redirects[meeting]
        return meeting


def local(text: str | None) -> date | None:
    moment = instant(text)
    if moment is None or not datetime(1, 1, 2, tzinfo=UTC) <= moment <= datetime(9999, 12, 30, tzinfo=UTC):
        return None  # Go's zero time, in some zones, and what no date can tell
    return moment.astimezone(ZoneInfo(ZONE)).date()


def between(start: str | None, end: str | None, unit: float) -> float | None:
    first, last = instant(start), instant(end)
    return (last - first).total_seconds() / unit if first and last and last >= first else None


def email(text: Any) -> str | None:
    return text.strip().lower() or None if isinstance(text, str) else None


def meeting_aliases(seen: Seen) -> Iterable[Row]:
    for old in seen.place.world.redirects:
        yield {"id": old, "meeting_id": seen.in_use(old)}


def meetings(seen: Seen) -> Iterable[Row]:
    for identity, (row, who) in seen.once("meetings").items():
        yield {
            **{
                name: row.get(name)
                for name in ("title", "summary_notes", "status", "workspace_id", "created_by_user_id")
            },
            **{name: instant(row.get(name)) for name in ("start_time", "end_time", "created_at", "updated_at")},
            "id": identity,
            "local_date": local(row.get("start_time")),
            "minutes": between(row.get("start_time"), row.get("end_time"), 60),
            "calendar_event_id": row.get("calendar_event_id"),
            "seen_by": who,
            "deleted": not who,
        }


def action_items(seen: Seen) -> Iterable[Row]:
    today = datetime.now(ZoneInfo(ZONE)).date()
    for identity, (row, who) in seen.once("action_items").items():
        due = row.get("due_date")
        item = {
            **{
                name: row.get(name)
                for name in ("title", "description", "status", "is_completed", "assigned_to_user_id")
            },
            **{name: instant(row.get(name)) for name in ("completed_at", "created_at", "updated_at")},
            "id": identity,
            "meeting_id": seen.in_use(row.get("meeting_id")),
            "due_date": date.fromisoformat(due[:10]) if due else None,
            "completed_local_date": local(row.get("completed_at")),
            "created_local_date": local(row.get("created_at")),
            "days_to_complete": between(row.get("created_at"), row.get("completed_at"), 86_400),
            "seen_by": who,
            "deleted": not who,
        }
        past = seen.pasts[seen.teller("action_items", identity), identity]
        yield item | {"closed_local_date": _closed_on(item, past, today)}


def calendar_events(seen: Seen) -> Iterable[Row]:
    same = occurrences(seen)
    for identity, (row, who) in seen.once("calendar_events").items():
        start = row.get("start_time")
        zoneless = start is not None and instant(start) is None
        yield {
            **{name: row.get(name) for name in ("title", "description", "location")},
            **{name: instant(row.get(name)) for name in ("start_time", "end_time")},
            "id": identity,
            "is_all_day": zoneless and len(start or "") == 10,
            "local_date": date.fromisoformat(start[:10]) if start and zoneless else local(start),
            "minutes": between(start, row.get("end_time"), 60),
            "organizer_email": email((row.get("organizer") or {}).get("email")),
            "organizer_name": (row.get("organizer") or {}).get("name"),
            "attendees": len(row.get("attendees") or []),
            "meeting_id": seen.in_use(linked(row)[0]),
            "occurrence": same[identity],
            "seen_by": who,
            "deleted": not who,
        }


def linked(event: Row) -> list[str | None]:
    """The meetings that an event names, by the ids that it has for them."""
    return event.get("linked_meetings") or [event.get("meeting_id")]


def occurrences(seen: Seen) -> dict[str, str]:
    """Event -> what it has in common with its copies."""
    events = seen.once("calendar_events")
    looks: dict[str, tuple[Any, ...]] = {}
    meetings_of = {identity: seen.in_use(linked(row)[0]) for identity, (row, _) in events.items()}
    of_meeting: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for identity, (row, _) in events.items():
        times = tuple(instant(row.get(name)) or row.get(name) for name in ("start_time", "end_time"))
        looks[identity] = times, meetings_of[identity]
        of_meeting[looks[identity]].append(identity)
    keys: dict[str, tuple[Any, ...]] = {}
    for (times, meeting), ids in of_meeting.items():
        telling = [one for one in ids if events[one][1]] or ids
        hosts = {one: email((events[one][0].get("organizer") or {}).get("email")) for one in ids}
        titles = {one: email(events[one][0].get("title")) for one in ids}
        for one in ids:
            host = _largest(hosts[each] for each in telling) if meeting else hosts[one]
            title = _largest(titles[each] for each in telling) if meeting else titles[one]
            keys[one] = times, host or meeting or one, title
    alike: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for one, key in keys.items():
        alike[key].append(one)
    found = {}
    for key, ids in alike.items():
        seen_now = [one for one in ids if events[one][1]]
        named = {meeting for one in seen_now if (meeting := meetings_of[one])}
        lost = {meeting for one in ids if (meeting := meetings_of[one])} - named
        numbers = dict(zip(sorted(named), count(1))) | dict(zip(sorted(lost), count(len(seen_now) + 1)))
        taken: dict[str, set[int]] = defaultdict(set)
        for one in sorted(ids, key=lambda one: (not events[one][1], meetings_of[one] is None, one)):
            mine, meeting = taken[seen.teller("calendar_events", one)], meetings_of[one]
            number = numbers[meeting] if meeting else next(n for n in count(1) if n not in mine)
            mine.add(number)
            found[one] = repr((key, number))
    return found


def _largest(texts: Iterable[str | None]) -> str | None:
    """Any will do where copies of one event differ, so long as it is always the same: the one with the largest hash."""
    return max(
        filter(None, texts),
        key=lambda text: hashlib.md5(text.encode()).digest()[7::-1],  # noqa: S324
        default=None,
    )


def event_attendees(seen: Seen) -> Iterable[Row]:
    for identity, (row, who) in seen.once("calendar_events").items():
        for one in row.get("attendees") or []:
            organizer = email((row.get("organizer") or {}).get("email"))
            yield {
                "event_id": identity,
                "email": email(one.get("email")),
                **{name: one.get(name) for name in ("name", "status", "type")},
                "is_organizer": organizer is not None and email(one.get("email")) == organizer,
                "deleted": not who,
            }


def context_documents(seen: Seen) -> Iterable[Row]:
    contents = {
        document: truth
        for account in seen.place.world.accounts
        for document, truth in seen.place.world.truth(account)["contents"].items()
    }
    for identity, (row, who) in seen.once("context_documents").items():
        if who:  # of one that is gone nobody tells any more what its bytes were
            truth = contents[identity]
            state = {"pending": "waiting", "processing": "waiting", "error": "error"}.get(
                truth["file_status"], "stored"
            )
            yield {
                **{
                    name: row.get(name)
                    for name in ("title", "context_type", "source_format", "file_status", "source_name")
                },
                **{name: instant(row.get(name)) for name in ("created_at", "updated_at")},
                "id": identity,
                "meeting_id": seen.in_use(row.get("meeting_id")),
                "created_by_user_id": row.get("created_by_user_id"),
                "content_state": state,
                "sha256": truth["sha256"] if state == "stored" else None,
                "size_bytes": truth["size"] if state == "stored" else None,
                "seen_by": who,
                "deleted": False,
            }


def document_texts(seen: Seen) -> Iterable[Row]:
    for document in context_documents(seen):
        account, text, reason = document["seen_by"][0], None, None
        if document["content_state"] == "stored":
            file = seen.place.world.file(account, document["meeting_id"], document["id"])
            text, reason = text_of(file.content() if file else b"")
        else:
            status = seen.told["context_documents"][document["id"]][account].get("file_status")
            reason = f"file_status is {status}"
        yield {
            **{name: document[name] for name in ("id", "meeting_id", "title", "source_format", "sha256", "created_at")},
            "text": text,
            "characters": text if text is None else len(text),
            "reason": reason,
            "seen_by": document["seen_by"],
            "deleted": False,
        }


def text_of(data: bytes) -> tuple[str | None, str | None]:
    if len(data) > 1024 * 1024:
        return None, "it is larger than 1,024 kB (CONTIO_DOCUMENT_TEXT_MAX_KB)"
    try:
        return data.decode("utf-16" if data[:2] == b"\xff\xfe" else "utf-8").removeprefix("\ufeff"), None
    except UnicodeDecodeError:
        return None, "it is no text in UTF-8 or UTF-16"


def people(seen: Seen) -> Iterable[Row]:
    claims: dict[str, tuple[int, str]] = {}
    for _, rank, user, address, _ in _users(seen):
        if user and address:
            claims[address] = min((rank, user), claims.get(address, (rank, user)))
    ids = {address: user for address, (_, user) in claims.items()}
    sources: dict[str, set[str]] = defaultdict(set)
    emails: dict[str, set[tuple[int, str]]] = defaultdict(set)
    names: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for source, rank, user, address, name in (*_users(seen), *_others(seen)):
        if key := user or ids.get(address or "", address):
            sources[key].add(source)
            emails[key] |= {(rank, address)} if address else set()
            names[key] += [(rank, name)] if name else []
    users = set(ids.values()) | {key for key in sources if "@" not in key}
    for key, where in sources.items():
        own = {(rank, address) for rank, address in emails[key] if ids.get(address, address) == key}
        yield {
            "id": key,
            "user_id": key if key in users else None,
            "email": min(own, default=(0, None))[1],
            "emails": sorted({address for _, address in own}),
            "name": min(names[key], default=(0, None))[1],
            "sources": sorted(where),
        }


Named = tuple[str, int, Any, Any, Any]
"""Who is named: source, rank of the name, user id, address, name."""


def _users(seen: Seen) -> Iterable[Named]:
    """All that may be named by id and address together."""
    for account in seen.place.world.accounts.values():
        profile = account.profile
        yield "accounts", 1, profile["id"], email(profile.get("email")), profile.get("display_name")
    for row in seen.versions("participants"):
        yield "participants", 2, row.get("user_id"), email(row.get("email")), row.get("name")
    for row in seen.versions("agenda_items"):
        for one in row.get("presenter_details") or []:
            yield "agenda_items", 2, one.get("user_id"), email(one.get("email")), one.get("name")
        for user in row.get("presenters") or []:
            yield "agenda_items", 9, user, None, None


def _others(seen: Seen) -> Iterable[Named]:
    for stream, field in (
        ("meetings", "created_by_user_id"),
        ("action_items", "assigned_to_user_id"),
        ("context_documents", "created_by_user_id"),
    ):
        for row in seen.versions(stream):
            yield stream, 9, row.get(field), None, None
    for one in event_attendees(seen):
        if one["type"] != "resource" and one["email"]:
            yield "event_attendees", 4, None, one["email"], one["name"]
    for event in calendar_events(seen):
        if event["organizer_email"]:
            yield "calendar_events", 3, None, event["organizer_email"], event["organizer_name"]


def week_of(moment: datetime) -> date:
    day = moment.astimezone(ZoneInfo(ZONE)).date()
    return day - timedelta(days=day.weekday())


def person_week(seen: Seen) -> Iterable[Row]:
    """Between any two ends of events next to each other, whether one takes place: no interval is merged here."""
    ids = {address: person["id"] for person in people(seen) for address in person["emails"]}
    parts: dict[tuple[str, date], dict[str, tuple[datetime, datetime]]] = defaultdict(dict)
    events = {
        event["id"]: event
        for event in calendar_events(seen)
        if not event["deleted"] and event["minutes"] and event["minutes"] < 24 * 60 and event["local_date"] is not None
    }
    attendees, organizers = defaultdict(list), defaultdict(set)
    for one in event_attendees(seen):
        if event := events.get(one["event_id"]):
            attendees[event["occurrence"]].append(one)
            organizers[event["occurrence"]].add(event["organizer_email"])
    for event in events.values():
        copies = event["occurrence"]
        here = [one for one in attendees[copies] if one["email"] and one["type"] != "resource"]
        declined = {one["email"] for one in here if one["status"] == "declined"}
        begin, end = event["start_time"], event["end_time"]
        turn = datetime.combine(week_of(begin) + timedelta(days=7), time(), ZoneInfo(ZONE)).astimezone(UTC)
        organizing = organizers[copies] | {event["organizer_email"]}
        for address in ({one["email"] for one in here} | organizing) - {None} - declined:
            parts[ids[address], week_of(begin)][copies] = begin, min(end, turn)
            if end > turn:
                parts[ids[address], week_of(end)][copies] = turn, end
    for (person, week), events in parts.items():
        ends = sorted({moment for part in events.values() for moment in part})
        busy = sum(
            (
                (after - before)
                for before, after in pairwise(ends)
                if any(b <= before and after <= e for b, e in events.values())
            ),
            timedelta(),
        )
        yield {
            "person_id": person,
            "week_start": week,
            "events": len(events),
            "minutes": round(busy / timedelta(minutes=1), 6),
            "minutes_booked": round(
                sum((end - begin for begin, end in events.values()), timedelta()) / timedelta(minutes=1), 6
            ),
        }


def action_item_daily(seen: Seen) -> Iterable[Row]:
    """Day by day, item by item."""
    today = datetime.now(ZoneInfo(ZONE)).date()
    items = [item for item in action_items(seen) if item["created_local_date"]]
    day = min(item["created_local_date"] for item in items)
    while day <= today:
        open_ = [item for item in items if item["created_local_date"] <= day and not _is_over(item, day)]
        yield {
            "day": day,
            "open": len(open_),
            "overdue": sum(bool(item["due_date"] and item["due_date"] < day) for item in open_),
            "open_over_30_days": sum((day - item["created_local_date"]).days > 30 for item in open_),
            "created": sum(item["created_local_date"] == day for item in items),
            "completed": sum(bool(item["is_completed"]) and item["closed_local_date"] == day for item in items),
            "is_reconstructed": day < today,
        }
        day += timedelta(days=1)


def _closed_on(item: Row, past: list[Row], today: date) -> date | None:
    ends = []
    if item["is_completed"] or item["status"] == "cancelled":
        ends.append((item["is_completed"] and item["completed_local_date"]) or _closed_since(past))
    if item["deleted"]:
        ends.append(today)  # all syncs of the test are today's
    return max(filter(None, (min(ends), item["created_local_date"]))) if ends else None


def _closed_since(past: list[Row]) -> date:
    """When the first of the last versions, which are closed, was written."""
    closed = takewhile(lambda row: row.get("is_completed") or row.get("status") == "cancelled", reversed(past))
    return local([*closed][-1]["updated_at"]) or date.min


def _is_over(item: Row, day: date) -> bool:
    return item["closed_local_date"] is not None and item["closed_local_date"] <= day


def _ended(seen: Seen) -> Iterable[Row]:
    return (row for row in meetings(seen) if not row["deleted"] and row["status"] in {"ended", "completed"})


def meeting_hygiene(seen: Seen) -> Iterable[Row]:
    count = Counter(item["meeting_id"] for item in action_items(seen) if not item["deleted"])
    for row in _ended(seen):
        yield {
            "meeting_id": row["id"],
            **{name: row[name] for name in ("title", "local_date", "created_by_user_id")},
            "has_notes": bool((row["summary_notes"] or "").strip()),
            "action_items": count[row["id"]],
        }


def calendar_linkage(seen: Seen) -> Iterable[Row]:
    known = {row["id"]: row for row in meetings(seen) if not row["deleted"]}
    naming = defaultdict(list)
    for row in sorted(
        known.values(), key=lambda row: (row["start_time"] or datetime.max.replace(tzinfo=UTC), row["id"])
    ):
        naming[row["calendar_event_id"]].append(row["id"])
    events = seen.once("calendar_events")
    for event in calendar_events(seen):
        if not event["deleted"]:
            named = [seen.in_use(one) for one in linked(events[event["id"]][0])]
            first = next((one for one in (*named, *naming[event["id"]]) if one in known), None)
            meeting = known.get(first or "")
            both = meeting and meeting["start_time"] and event["start_time"]
            yield {
                "event_id": event["id"],
                **{
                    name: event[name] for name in ("occurrence", "title", "local_date", "is_all_day", "organizer_email")
                },
                "meeting_id": first or named[0],
                "link": "linked" if meeting else "unseen" if named[0] else "none",
                "meeting_starts_later_minutes": (meeting["start_time"] - event["start_time"]).total_seconds() / 60
                if both and meeting
                else None,
            }


def context_coverage(seen: Seen) -> Iterable[Row]:
    documents = defaultdict(list)
    for document in context_documents(seen):
        documents[document["meeting_id"]].append(document["created_at"])
    for row in meetings(seen):
        if not row["deleted"]:
            mine = documents[row["id"]]
            early = [at for at in mine if at and row["start_time"] and at <= row["start_time"]]
            yield {
                "meeting_id": row["id"],
                **{name: row[name] for name in ("title", "local_date", "start_time")},
                "documents": len(mine),
                "documents_before_start": len(early),
                "is_prepared": bool(early),
                "first_document_at": min((at for at in mine if at), default=None),
            }


MODELS: dict[str, Callable[[Seen], Iterable[Row]]] = {
    "meeting_aliases": meeting_aliases,
    "meetings": meetings,
    "action_items": action_items,
    "calendar_events": calendar_events,
    "event_attendees": event_attendees,
    "context_documents": context_documents,
    "document_texts": document_texts,
    "people": people,
    "person_week": person_week,
    "action_item_daily": action_item_daily,
    "meeting_hygiene": meeting_hygiene,
    "calendar_linkage": calendar_linkage,
    "context_coverage": context_coverage,
}
OF_SYNCS = {"time_to_summary", "sync_health"}
"""What syncs saw, and when: each has a test of its own."""


def test_every_mart_has_a_model() -> None:
    assert MODELS.keys() | OF_SYNCS == {mart.name for mart in MARTS}


def rows_of(place: Place, mart: Mart) -> list[Row]:
    with duckdb.connect(current(place.settings.data_dir).database, read_only=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return connection.sql(f"FROM {mart.full_name}").to_arrow_table().to_pylist()  # type: ignore[no-any-return]


def by_copies(rows: list[Row]) -> list[Row]:
    """With all events of an occurrence in place of what it is called."""
    copies: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if "occurrence" in row:
            copies[row["occurrence"]].append(row.get("id") or row["event_id"])
    return [row | {"occurrence": sorted(copies[row["occurrence"]])} if "occurrence" in row else row for row in rows]


def told(rows: Iterable[Row]) -> list[str]:
    """Rows as sorted texts; when a thing went is left to the syncs."""
    flat = []
    for row in rows:
        plain = {
            name: value.replace(tzinfo=UTC) if isinstance(value, datetime) else value for name, value in row.items()
        }
        if "deleted_at" in plain:
            plain["deleted"] = plain.pop("deleted_at") is not None
        plain |= {name: round(value, 6) for name, value in plain.items() if isinstance(value, float)}
        flat.append(repr(sorted(plain.items())))
    return sorted(flat)


@pytest.mark.parametrize(("zone", "seed"), [(ZONE, 1), ("Asia/Kathmandu", 2), ("Australia/Lord_Howe", 3)])
def test_every_mart_equals_an_independent_computation(
    new_place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch, zone: str, seed: int
) -> None:
    monkeypatch.setattr(f"{__name__}.ZONE", zone)
    place = new_place(meetings=25, accounts=3, seed=seed)
    place.overrides |= {"timezone": zone, "optional_streams": "participants,agenda_items"}
    world = place.world
    for meeting in world.items("ana", "meetings")[-3:]:
        for account in ("ana", "bo", "cem"):
            copies_of(world, account, meeting["id"])
    shut = world.insert("action_items", 4, status="cancelled", is_completed=False, completed_at=None)
    address = world.accounts["bo"].profile["email"]
    for number in range(2):
        world.insert("participants", user_id=f"{number:08}-0000-4000-8000-000000000000", email=address)
    seen = Seen(place)
    place.sync()
    live = [row["id"] for row in world.items("ana", "meetings")]
    world.merge(ids=live[:2])
    world.delete("meetings", ids=live[3:5])
    world.hide("ana", meeting_ids=live[5:8])
    world.move("meetings", ids=live[9:12], days=150)
    world.update("meetings", ids=live[12:14], title="renamed")
    world.delete(
        "action_items", ids=[row["id"] for row in world.items("ana", "action_items") if row["id"] not in shut][:3]
    )
    world.update("action_items", 3, is_completed=True, completed_at="2026-03-08T06:59:59Z")
    world.delete("calendar_events", 2)
    for start, end in (
        ("2026-03-08T06:30:00Z", "2026-03-08T07:30:00Z"),
        ("2026-11-01T05:30:00Z", "2026-11-01T06:30:00Z"),
    ):
        for name in ("meetings", "calendar_events"):
            world.insert(name, start_time=start, end_time=end, account="bo")
    world.update("action_items", ids=shut[:3], updated_at="2027-03-01T12:00:00Z", title="edited")
    world.update("action_items", ids=shut[2:3], status="accepted")
    seen.look()
    assert place.sync().complete
    world.update("action_items", ids=shut[1:3], updated_at="2027-04-01T12:00:00Z", status="cancelled")
    seen.look()
    assert place.sync(streams=["action_items"]).complete
    for mart in [mart for mart in MARTS if mart.name in MODELS]:
        found, wanted = by_copies(rows_of(place, mart)), by_copies(list(MODELS[mart.name](seen)))
        if mart.name in {"context_documents", "document_texts"}:
            found = [row for row in found if row["deleted_at"] is None]
        assert found
        lacking, beyond = Counter(told(wanted)), Counter(told(found))
        assert (list(lacking - beyond), list(beyond - lacking)) == ([], []), mart.name
    assert place.query("SELECT count(*) > 0 FROM mart.meetings WHERE deleted_at IS NOT NULL") == [(True,)]


def copies_of(world: World, account: str, meeting: str) -> None:
    """Events that are much alike, of which some name the meeting, and some do not."""
    rng = random.Random(f"{account} {meeting}")  # noqa: S311 - the same each time
    for _ in range(6):
        day = rng.choice(["2026-06-01", "2026-06-02"])
        utc, offset = (f"{day}T10:00:00Z", f"{day}T11:00:00Z"), (f"{day}T12:00:00+02:00", f"{day}T13:00:00+02:00")
        times = rng.choice([utc, offset, (day, day)])
        host = rng.choice(
            [{"email": "Ana@example.com"}, {"email": "ana@example.com "}, {"email": "bo@example.com"}, None]
        )
        names = rng.choice([[], [], [meeting], [f"no {meeting}"], [f"no {meeting}", meeting]])
        world.insert(
            "calendar_events", account=account, start_time=times[0], end_time=times[1], organizer=host,
            title=rng.choice(["Sync", "sync ", "Board", None]), linked_meetings=names, meeting_id=None,
        )  # fmt: skip


def test_copies_of_an_event_count_once_and_a_refusal_in_one_of_them_counts(new_place: Callable[..., Place]) -> None:
    place = new_place(meetings=0, accounts=2)
    ana, bo = (
        {"email": f"{name}@example.com", "name": name, "type": "required", "status": "accepted"}
        for name in ("ana", "bo")
    )

    def event(account: str, start: str, end: str, *attendees: Row) -> None:
        times = {"start_time": f"2026-06-02T{start}:00Z", "end_time": f"2026-06-02T{end}:00Z"}
        place.world.insert(
            "calendar_events",
            account=account,
            title="Sync",
            organizer=ana,
            attendees=list(attendees),
            linked_meetings=[],
            **times,
        )

    event("ana", "10:00", "11:00", ana, bo)
    event("bo", "10:00", "11:00", ana, bo | {"status": "declined"})
    event("ana", "10:30", "11:30", ana, bo)
    event("bo", "10:30", "11:30", ana, bo)
    place.sync(streams=["calendar_events"])
    load = place.query(
        "SELECT email, events, minutes, minutes_booked FROM mart.person_week JOIN mart.people ON people.id = person_id ORDER BY 1"
    )
    assert load == [("ana@example.com", 2, 90, 120), ("bo@example.com", 1, 60, 60)]
    assert place.query("SELECT count(*), count(DISTINCT occurrence) FROM mart.calendar_events") == [(4, 2)]


def test_events_of_one_calendar_are_never_one_and_their_copies_are_found_linked_or_not(
    new_place: Callable[..., Place],
) -> None:
    place = new_place(meetings=0, accounts=3)
    first, second = sorted(place.world.insert("meetings", 2))
    slots = {
        "copies of which one is linked": [("ana", "Sync", [first]), ("bo", " sync", []), ("cem", "Sync", [])],
        "titles differ": [("ana", "Interview 1", []), ("ana", "Interview 2", []), ("bo", "Interview 2", [])],
        "twins": [("ana", "Focus", []), ("ana", "Focus", []), ("bo", "Focus", []), ("bo", "Focus", [])],
        "twins of which one is linked": [("ana", "1:1", [second]), ("ana", "1:1", []), ("bo", "1:1", [first])],
        "two calendars of one person": [("ana", "Board", [first]), ("ana", "Other", [first]), ("bo", "Other", [])],
    }
    for hour, events in enumerate(slots.values()):
        for account, title, meetings_named in events:
            place.world.insert(
                "calendar_events", account=account, title=title, linked_meetings=meetings_named, meeting_id=None,
                organizer={"email": "hr@example.com"}, attendees=[], start_time=f"2026-06-02T{hour + 10}:00:00Z",
            )  # fmt: skip
    for end in ("2026-06-03", "2026-06-05"):
        place.world.insert("calendar_events", account="ana", title="Away", start_time="2026-06-02", end_time=end,
            linked_meetings=[], organizer={"email": "hr@example.com"})  # fmt: skip
    place.sync(streams=["meetings", "calendar_events"])
    sql = (
        "SELECT count(DISTINCT occurrence) FROM mart.calendar_events GROUP BY start_time ORDER BY start_time NULLS LAST"
    )
    assert place.query(sql) == [(1,), (2,), (2,), (2,), (1,), (2,)]
    ranks = "SELECT count(DISTINCT _account) FROM mart.calendar_events JOIN raw.calendar_events USING (id) GROUP BY occurrence"
    assert Counter(place.query(ranks)) == {(3,): 1, (1,): 4, (2,): 5}


def test_an_event_that_was_made_anew_is_the_copy_of_what_the_others_have(new_place: Callable[..., Place]) -> None:
    place = new_place(meetings=0, accounts=2)
    look = {
        "title": "Sync", "organizer": {"email": "hr@example.com"}, "attendees": [], "linked_meetings": [], "meeting_id": None,
        "start_time": "2026-06-02T10:00:00Z",
    }  # fmt: skip
    [old] = place.world.insert("calendar_events", account="ana", **look)
    place.world.insert("calendar_events", account="bo", **look)
    place.sync(streams=["calendar_events"])
    place.world.delete("calendar_events", ids=[old])
    while (new := place.world.insert("calendar_events", account="ana", **look)) < [old]:  # not the first of the two
        place.world.delete("calendar_events", ids=new)
    place.sync(streams=["calendar_events"])
    sql = "SELECT count(*), count(DISTINCT occurrence) FROM mart.calendar_events WHERE deleted_at IS NULL"
    assert place.query(sql) == [(2, 1)]


@pytest.mark.parametrize("seed", range(3))
def test_no_account_sees_two_events_as_one_also_where_it_sees_anothers(
    new_place: Callable[..., Place], seed: int
) -> None:
    place = new_place(meetings=0, accounts=3)
    rng = random.Random(seed)  # noqa: S311 - the same each time
    hidden = place.world.insert("meetings", 2)
    for hour in range(10, 22):
        for account in ("ana", "bo", "cem"):
            for _ in range(rng.randrange(4)):
                place.world.insert(
                    "calendar_events", account=account, title="Sync", organizer={"email": "hr@example.com"}, meeting_id=None,
                    linked_meetings=rng.choice([[], [], hidden[:1], hidden[1:]]), start_time=f"2026-06-02T{hour}:00:00Z",
                )  # fmt: skip
    place.sync(streams=["meetings", "calendar_events"])
    with Warehouse(place.settings.data_dir, origin=None) as warehouse:
        run = warehouse.connection.execute
        for account in ("ana", "bo", "cem"):
            run(
                f"""INSERT INTO raw.calendar_events SELECT DISTINCT ON (id) * REPLACE ($1 AS _account)
                FROM raw.calendar_events t WHERE _account <> $1 AND hash(id, $1) % 4 = {seed}
                AND NOT EXISTS (FROM raw.calendar_events o WHERE o._account = $1 AND o.id = t.id)""",
                [account],
            )
        run(f"UPDATE raw.calendar_events SET _deleted_at = now(), _gone_reason = 'absent' WHERE hash(id) % 5 = {seed}")
        publish(warehouse, datetime.now(UTC), Terms.asked_for(place.settings), anew=True)
    events = (
        "SELECT id, unnest(seen_by) AS account, occurrence, coalesce(meeting_id, id) AS what FROM mart.calendar_events"
    )
    twice = f"WITH e AS ({events}) SELECT account, occurrence FROM e GROUP BY ALL HAVING count(DISTINCT what) > 1"
    assert place.query(twice) == []
    assert place.query("SELECT count(*) > 5 FROM mart.calendar_events WHERE len(seen_by) > 1") == [(True,)]
    assert place.query("SELECT count(*) > 2 FROM mart.calendar_events WHERE len(seen_by) = 0") == [(True,)]
    several = "SELECT occurrence FROM mart.calendar_events GROUP BY occurrence HAVING count(DISTINCT id) > 1"
    assert len(place.query(several)) > 5


def test_what_is_gone_does_not_push_copies_apart(new_place: Callable[..., Place]) -> None:
    place = new_place(meetings=0, accounts=3)
    [meeting] = place.world.insert("meetings")
    look = {"title": "Sync", "organizer": {"email": "hr@example.com"}, "start_time": "2026-06-02T10:00:00Z"}
    plain, linked_ = ({"linked_meetings": named, "meeting_id": None} for named in ([], [meeting]))
    [old] = place.world.insert("calendar_events", account="ana", **look | linked_ | {"title": "Other"})
    place.world.insert("calendar_events", account="bo", **look, **plain)
    place.world.insert("calendar_events", account="cem", **look, **linked_)
    place.sync(streams=["meetings", "calendar_events"])
    place.world.delete("calendar_events", ids=[old])
    place.world.insert("calendar_events", account="ana", **look, **plain)
    place.sync(streams=["meetings", "calendar_events"])
    sql = "SELECT count(*), count(DISTINCT occurrence) FROM mart.calendar_events WHERE deleted_at IS NULL"
    assert place.query(sql) == [(3, 1)]


def test_an_event_is_linked_by_any_meeting_that_is_seen(new_place: Callable[..., Place]) -> None:
    place = new_place(meetings=0, accounts=1)
    gone, third, fourth = place.world.insert("meetings", 3, account="ana")
    for title, named in (("none", []), ("unseen", [gone]), ("many", [gone, third, fourth]), ("named by it", [])):
        [event] = place.world.insert(
            "calendar_events", account="ana", title=title, linked_meetings=named, meeting_id=None
        )
    [naming] = place.world.insert("meetings", calendar_event_id=event)
    place.sync(streams=["meetings", "calendar_events"])
    place.world.delete("meetings", ids=[gone])
    place.sync(streams=["meetings", "calendar_events"])
    assert dict(place.query("SELECT title, (link, meeting_id) FROM mart.calendar_linkage")) == {
        "none": ("none", None),
        "unseen": ("unseen", gone),
        "many": ("linked", third),
        "named by it": ("linked", naming),
    }


def test_a_time_without_a_zone_is_no_all_day_event(new_place: Callable[..., Place]) -> None:
    place = new_place(meetings=0, accounts=1)
    for start in ("2026-06-02T10:00:00", "2026-06-02"):
        place.world.insert("calendar_events", account="ana", start_time=start, end_time=start)
    place.sync(streams=["calendar_events"])
    found = place.query("SELECT local_date::VARCHAR, is_all_day FROM mart.calendar_events ORDER BY 2")
    assert found == [("2026-06-02", False), ("2026-06-02", True)]


@pytest.mark.synced
def test_a_meeting_that_was_merged_again_and_again_is_one_under_its_last_id(place: Place) -> None:
    world = place.world
    old = next(row["meeting_id"] for row in world.items("ana", "action_items") if row.get("meeting_id"))
    items = {row["id"] for row in world.items("ana", "action_items") if row.get("meeting_id") == old}
    new = old
    for _ in range(3):
        world.merge(ids=[new])
        new = world.redirects[new]
        place.sync()
    ids = place.query(
        f"SELECT id, deleted_at FROM mart.meetings WHERE id IN ('{old}', '{new}') OR id IN "
        "(SELECT id FROM raw.meeting_aliases)"
    )
    assert ids == [(new, None)]
    assert items <= {row[0] for row in place.query(f"SELECT id FROM mart.action_items WHERE meeting_id = '{new}'")}


def test_a_meeting_that_was_merged_into_one_that_nobody_ever_saw_is_gone_under_its_id(
    new_place: Callable[..., Place],
) -> None:
    place = new_place(meetings=0, accounts=2)
    [old] = place.world.insert("meetings", title="Board")
    place.world.insert("meetings")
    place.sync(streams=["meetings"])
    place.world.merge(ids=[old])
    place.world.delete("meetings", ids=[place.world.redirects[old]])
    place.sync(streams=["meetings"])
    sql = "SELECT id, seen_by, deleted_at IS NOT NULL FROM mart.meetings WHERE title = 'Board'"
    assert place.query(sql) == [(place.world.redirects[old], [], True)]


def test_where_accounts_know_different_targets_of_a_merged_meeting_the_one_that_was_seen_last_counts(
    new_place: Callable[..., Place],
) -> None:
    place = new_place(meetings=0, accounts=2)
    world = place.world
    [old] = world.insert("meetings", redirect_to_meeting_id="z first")
    world.insert("action_items", meeting_id=old)
    place.sync()
    before = "SELECT DISTINCT _first_seen_at::VARCHAR FROM raw.meeting_aliases WHERE _account = 'bo'"
    [(first_seen,)] = place.query(before)
    world.update("meetings", ids=[old], redirect_to_meeting_id="a later")
    place.sync(accounts=["ana"])
    assert place.query("SELECT meeting_id FROM mart.action_items") == [("a later",)]
    assert place.query(before) == [(first_seen,)]
    world.update("meetings", ids=[old], redirect_to_meeting_id="m last")
    place.sync(accounts=["bo"])
    assert place.query("SELECT meeting_id FROM mart.action_items") == [("m last",)]


def test_a_meeting_whose_merge_was_undone_is_one_of_its_own_again(new_place: Callable[..., Place]) -> None:
    place = new_place(meetings=0, accounts=2)
    world = place.world
    [old] = world.insert("meetings", title="A")
    world.insert("action_items", meeting_id=old)
    place.sync()
    world.merge(ids=[old])
    new = world.redirects[old]
    place.sync()
    assert place.query("FROM mart.meeting_aliases") == [(old, new)]
    assert place.query("SELECT meeting_id FROM mart.action_items") == [(new,)]
    del world.redirects[old]
    world.insert("meetings", id=old, title="B")
    place.sync()
    assert place.query("FROM mart.meeting_aliases") == []
    assert place.query("SELECT meeting_id FROM mart.action_items") == [(old,)]
    sql = "SELECT id, title, len(seen_by) FROM mart.meetings ORDER BY title"
    assert place.query(sql) == [(new, "A", 2), (old, "B", 2)]


@pytest.mark.parametrize(
    ("told", "in_use"),
    [
        ("a>b", "a>b"),
        ("a>b b>c", "a>c b>c"),
        ("a>b b>a", "b>a"),
        ("b>a a>b", "a>b"),
        ("a>b b>c c>a d>a e>d", "b>a c>a d>a e>a"),
        ("d>b b>c a>b c>b", "a>b c>b d>b"),
        ("a>b a>c c>a", "c>a"),
        ("a>a", ""),
    ],
)
def test_merges_that_lead_in_a_circle_end_where_the_newest_leads(
    new_place: Callable[..., Place], told: str, in_use: str
) -> None:
    place = new_place(meetings=0, accounts=2)
    names = dict(zip("abcde", place.world.insert("meetings", 5), strict=True))
    place.sync(streams=["meetings"])
    with Warehouse(place.settings.data_dir, origin=None) as warehouse:
        for number, (old, new) in enumerate(one.split(">") for one in told.split()):
            account = ("ana", "bo")[number % 2]
            row = [account, names[old], names[new], datetime(2026, 6, number + 1, tzinfo=UTC)]
            warehouse.connection.execute("INSERT INTO raw.meeting_aliases VALUES (?, ?, ?, ?)", row)
            gone = "UPDATE raw.meetings SET _deleted_at = now(), _gone_reason = 'merged' WHERE _account = ? AND id = ?"
            warehouse.connection.execute(gone, [account, names[old]])
        publish(warehouse, datetime.now(UTC), Terms.asked_for(place.settings), anew=True)
    wanted = [tuple(names[name] for name in one.split(">")) for one in in_use.split()]
    assert sorted(place.query("FROM mart.meeting_aliases")) == sorted(wanted)
    shown = {identity for (identity,) in place.query("SELECT id FROM mart.meetings")}
    assert shown >= {new for _, new in wanted} | (set(names.values()) - {old for old, _ in wanted})


def test_contents_are_of_the_version_that_counts(new_place: Callable[..., Place]) -> None:
    place = new_place(meetings=0, accounts=2)
    world = place.world
    [meeting] = world.insert("meetings")
    [document] = world.insert("context_documents", meeting_id=meeting, file_status="complete")

    def shown() -> tuple[Any, ...]:
        sql = "SELECT file_status, content_state, text, reason FROM mart.document_texts JOIN mart.context_documents USING (id)"
        [row] = place.query(sql)
        return row

    world.rewrite_contents([document], body="old")
    place.sync()
    assert shown() == ("complete", "stored", "old", None)
    world.rewrite_contents([document], body="new")
    world.update("context_documents", ids=[document], file_status="error")
    place.sync(accounts=["ana"])
    assert shown() == ("error", "error", None, "file_status is error")
    world.update("context_documents", ids=[document], file_status="complete")
    place.sync(accounts=["ana"])
    assert shown() == ("complete", "stored", "new", None)
    with Warehouse(place.settings.data_dir, origin=None) as warehouse:
        of_ana = "WHERE _account = 'ana'"
        warehouse.connection.execute(f"UPDATE raw.document_contents SET state = 'unavailable', reason = 'no' {of_ana}")
        publish(warehouse, datetime.now(UTC), Terms.asked_for(place.settings))
        assert shown() == ("complete", "unavailable", None, "no")  # what the other account has is older
        warehouse.connection.execute(
            "UPDATE raw.context_documents o SET updated_at = t.updated_at FROM raw.context_documents t "
            "WHERE o.id = t.id AND o._account = 'bo' AND t._account = 'ana'"
        )
        publish(warehouse, datetime.now(UTC), Terms.asked_for(place.settings), anew=True)
        assert shown() == ("complete", "stored", "old", None)
        warehouse.connection.execute(f"DELETE FROM raw.document_contents {of_ana}")
        publish(warehouse, datetime.now(UTC), Terms.asked_for(place.settings), anew=True)
        assert shown() == ("complete", "stored", "old", None)


def test_who_presents_is_known_also_where_no_details_tell(new_place: Callable[..., Place]) -> None:
    place = new_place(meetings=0, accounts=1)
    place.overrides["optional_streams"] = "agenda_items"
    [meeting] = place.world.insert("meetings")
    users = [f"00000000-0000-4000-8000-00000000000{n}" for n in range(3)]
    for user, details in zip(users, (None, [], [{"user_id": users[2], "name": "Kim"}]), strict=True):
        place.world.insert("agenda_items", meeting_id=meeting, presenters=[user, None, 7], presenter_details=details)
    place.sync()
    sql = "SELECT id, name, sources FROM mart.people WHERE id LIKE '00000000-%' ORDER BY id"
    assert place.query(sql) == [(user, "Kim" if user == users[2] else None, ["agenda_items"]) for user in users]
    assert place.query("SELECT count(*) FROM mart.people WHERE length(id) < 5") == [(0,)]


def test_an_address_is_the_profiles_whoever_else_claims_it(new_place: Callable[..., Place]) -> None:
    place = new_place(meetings=0, accounts=1)
    place.overrides["optional_streams"] = "participants"
    [meeting] = place.world.insert("meetings")
    me = place.world.accounts["ana"].profile
    for user in ("00000000-0000-4000-8000-000000000002", "00000000-0000-4000-8000-000000000001"):
        for address in (me["email"], "guest@example.com"):
            place.world.insert("participants", meeting_id=meeting, user_id=user, email=address, name=None)
    place.sync()
    found = {
        row[0][-1]: row[1:]
        for row in place.query("SELECT id, email, emails FROM mart.people WHERE user_id LIKE '0000%'")
    }
    assert found == {"1": ("guest@example.com", ["guest@example.com"]), "2": (None, [])}
    assert place.query(f"SELECT email, emails FROM mart.people WHERE id = '{me['id']}'") == [
        (me["email"], [me["email"]])
    ]


def test_who_declined_does_not_attend_not_even_as_the_organizer_and_other_addresses_do(
    new_place: Callable[..., Place],
) -> None:
    place = new_place(meetings=0, accounts=1)
    place.overrides["optional_streams"] = "participants"
    [meeting] = place.world.insert("meetings")
    user = "00000000-0000-4000-8000-000000000001"
    for address in ("kim@example.com", "kim@home.example"):
        place.world.insert("participants", meeting_id=meeting, user_id=user, email=address)
    ana, kim, home = (
        {"email": one, "status": "declined"} for one in ("ana@example.com", "kim@example.com", "kim@home.example")
    )
    room = {"email": "room@example.com", "status": "accepted", "type": "resource"}
    place.world.insert(
        "calendar_events", account="ana", organizer=ana, attendees=[ana, kim, home | {"status": "needs_action"}, room],
        start_time="2026-06-02T10:00:00Z",
    )  # fmt: skip
    place.sync()
    assert place.query("SELECT person_id, events FROM mart.person_week") == [(user, 1)]


@pytest.mark.synced
def test_marts_are_published_as_parquet_with_the_same_rows(place: Place) -> None:
    folder = current(place.settings.data_dir)
    for mart in MARTS:
        rows = pq.ParquetFile(folder.folder / f"parquet/mart/{mart.name}/part.parquet").read().to_pylist()
        assert told(rows) == told(rows_of(place, mart)), mart.name
        assert folder.manifest["rows"][mart.full_name] == len(rows)


def test_what_a_mart_says_does_not_depend_on_the_readers_time_zone(new_place: Callable[..., Place]) -> None:
    place = new_place(meetings=10, accounts=2)
    place.overrides["optional_streams"] = "participants,agenda_items"
    world = place.world
    for change in ("2026-03-08", "2026-04-04", "2026-10-03", "2026-11-01"):  # of New York, and of Lord Howe
        day = datetime.fromisoformat(f"{change}T12:00:00Z")
        before, after = ((day + timedelta(hours=hours)).isoformat() for hours in (-26, 27))
        late = (day + timedelta(days=3)).isoformat()
        [meeting] = world.insert("meetings", status="ended", start_time=after, end_time=after, summary_notes=None)
        [long] = world.insert("meetings", status="ended", start_time=before, end_time=after, updated_at=late)
        at = {"linked_meetings": [meeting], "meeting_id": meeting, "attendees": [{"email": "ana@example.com"}]}
        night = (day - timedelta(hours=1)).isoformat(), (day + timedelta(hours=22)).isoformat()
        for account, (start, end) in (("ana", (before, after)), ("ana", night), ("bo", night)):
            world.insert("calendar_events", account=account, start_time=start, end_time=end, **at)
        world.insert("action_items", is_completed=True, created_at=before, completed_at=after)
        world.update("meetings", ids=[long], summary_notes="there")
    place.sync()
    folder = current(place.settings.data_dir)
    today = datetime.now(UTC).date()
    with duckdb.connect(folder.database, read_only=True) as connection:
        for zone in ("UTC", "America/New_York", "Australia/Lord_Howe"):
            connection.execute(f"SET TimeZone = '{zone}'")
            for mart in MARTS:
                file = f"read_parquet('{folder.folder}/parquet/mart/{mart.name}/part.parquet')"
                for made in (f"(FROM {mart.full_name})", f"({mart.select(place.settings.timezone, today)})"):
                    for one, other in ((made, file), (file, made)):
                        differ = connection.sql(f"FROM {one} EXCEPT ALL FROM {other}").fetchall()
                        assert differ == [], (zone, mart.name)


@pytest.mark.synced
@pytest.mark.parametrize("version", READERS)
def test_every_duckdb_reads_the_same_of_every_mart_as_parquet_holds(place: Place, version: str) -> None:
    """Again and again, by several threads: so 1.2.2 came to crash."""
    for _ in range(2):
        place.world.merge(5)
        place.sync(streams=["meetings"])
    script = """
        import duckdb, sys
        from pathlib import Path
        folder = Path(sys.argv[1])
        with duckdb.connect(folder / "contio.duckdb", read_only=True) as connection:
            assert duckdb.__version__ == sys.argv[2], duckdb.__version__
            connection.execute("SET threads = 2")
            for name in sys.argv[3:]:
                for _ in range(30 if duckdb.__version__ == "1.2.2" else 2):
                    connection.execute("FROM mart." + name).fetchall()
                for one, other in (("mart." + name, "read_parquet($file)"), ("read_parquet($file)", "mart." + name)):
                    sql = f"SELECT count(*) FROM (FROM {one} EXCEPT ALL FROM {other})"
                    file = str(folder / "parquet/mart" / name / "part.parquet")
                    assert connection.execute(sql, {"file": file}).fetchall() == [(0,)], (one, other)
        """
    folder = str(current(place.settings.data_dir).folder)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), folder, version, *(mart.name for mart in MARTS)],
        env={**os.environ, "PYTHONPATH": str(ROOT / ".venv" / f"duckdb-{version}")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_what_did_not_change_is_the_same_file_and_what_did_is_not(place: Place) -> None:
    place.sync()
    first = current(place.settings.data_dir)
    place.world.update("action_items", 1, title="another")
    place.sync()
    second = current(place.settings.data_dir)
    files = {mart.name: f"parquet/mart/{mart.name}/part.parquet" for mart in MARTS}
    same = {name for name, file in files.items() if (first.folder / file).samefile(second.folder / file)}
    of_items = {"action_items", "action_item_daily", "meeting_hygiene", "people", "person_week"}
    assert (
        second.database.stat().st_size < 1.2 * first.database.stat().st_size
    )  # nothing but what changed is written anew
    assert same == files.keys() - of_items - {"sync_health"}
    place.overrides["timezone"] = ZONE
    place.world.update("action_items", 1, title="once more")
    place.sync()
    third = current(place.settings.data_dir)
    same = {name for name, file in files.items() if (second.folder / file).samefile(third.folder / file)}
    assert not same & {"meetings", "person_week", "calendar_linkage"}


@pytest.mark.synced
def test_every_mart_and_column_is_as_declared_and_says_what_it_is(place: Place) -> None:
    with duckdb.connect(current(place.settings.data_dir).database, read_only=True) as connection:
        for mart in MARTS:
            found = connection.execute(
                "SELECT column_name, data_type, comment FROM duckdb_columns() WHERE schema_name = 'mart' AND table_name = ? "
                "ORDER BY column_index",
                [mart.name],
            ).fetchall()
            assert found == [(field.name, field.type, field.doc) for field in mart.fields]
        silent = "SELECT view_name FROM duckdb_views() WHERE schema_name = 'mart' AND comment IS NULL"
        assert connection.execute(silent).fetchall() == []


def test_how_long_notes_took_is_told_by_the_versions_that_syncs_saw(place: Place) -> None:
    world = place.world
    ended = {"status": "ended", "start_time": "2026-03-02T09:00:00Z", "end_time": "2026-03-02T10:00:00Z"}
    early, late, never = (
        world.insert("meetings", account="ana", summary_notes=notes, **ended)[0] for notes in ("there", " \n", None)
    )
    place.sync(streams=["meetings"])
    world.update("meetings", ids=[late], summary_notes="at last", updated_at="2026-03-02T11:30:00Z")
    place.sync(streams=["meetings"])
    world.update("meetings", ids=[late], summary_notes="better", updated_at="2026-03-05T11:30:00Z")
    place.sync(streams=["meetings"])
    [mart] = [mart for mart in MARTS if mart.name == "time_to_summary"]
    found = {row["meeting_id"]: row for row in rows_of(place, mart)}
    assert found.keys() >= {early, late, never}
    assert (found[late]["minutes_to_summary"], found[late]["is_upper_bound"]) == (90, False)
    assert found[late]["summary_at"] == datetime(2026, 3, 2, 11, 30, tzinfo=UTC)
    assert found[late]["summary_seen_at"] is not None
    assert found[early]["is_upper_bound"]
    assert found[never] | {"title": "", "local_date": None} == {
        "meeting_id": never,
        "title": "",
        "local_date": None,
        "end_time": datetime(2026, 3, 2, 10, tzinfo=UTC),
        "summary_at": None,
        "summary_seen_at": None,
        "minutes_to_summary": None,
        "is_upper_bound": False,
    }


def test_what_is_done_is_not_open_although_no_time_tells_when(new_place: Callable[..., Place]) -> None:
    place = new_place(meetings=3, accounts=1)
    never = dict.fromkeys(("completed_at", "updated_at", "created_at"))
    created = never | {"created_at": "2026-02-03T10:00:00Z"}
    place.world.insert("action_items", account="ana", title="a", is_completed=True, **never)
    place.world.insert("action_items", account="ana", title="b", status="cancelled", **created)
    place.sync(streams=["action_items"])
    closed = "SELECT closed_local_date FROM mart.action_items WHERE title IN ('a', 'b') ORDER BY title"
    assert place.query(closed) == [(datetime.now(UTC).date(),), (date(2026, 2, 3),)]


@pytest.mark.synced
def test_sync_health_says_what_is_not_complete_and_since_when(place: Place) -> None:
    place.world.insert("meetings", title=5, account="bo")
    place.sandbox.revoke("ana")
    place.sync()
    [mart] = [mart for mart in MARTS if mart.name == "sync_health"]
    found = {(row["account"], row["stream"]): row for row in rows_of(place, mart)}
    third = list(place.world.accounts)[2]
    lost, broken, good = (found[account, "meetings"] for account in ("ana", "bo", third))
    assert [row["is_complete"] for row in (lost, broken, good)] == [False, False, True]
    assert [row["broken_rows"] for row in (lost, broken, good)] == [0, 1, 0]
    assert [row["incomplete_windows"] for row in (lost, broken, good)] == [1, 1, 0]
    assert "login" in lost["reason"]
    assert lost["last_complete_at"] < good["last_complete_at"]


def test_sync_health_is_not_complete_while_a_window_is_not_that_no_full_listing_made_superfluous(
    new_place: Callable[..., Place],
) -> None:
    place = new_place(meetings=0, accounts=1)
    [broken] = place.world.insert("meetings", title=5, start_time="2026-06-01T10:00:00Z")
    place.world.insert("meetings", start_time="2026-06-02T10:00:00Z")
    days = [datetime(2026, 6, day, tzinfo=UTC) for day in range(1, 6)]

    def health() -> list[tuple[Any, ...]]:
        sql = "SELECT is_complete, incomplete_windows, reason LIKE '1 of%' FROM mart.sync_health WHERE stream = 'meetings'"
        return place.query(sql)

    place.sync(streams=["meetings"])
    assert health() == [(False, 1, True)]
    place.sync(streams=["meetings"], window=Window(days[1], days[2]))
    assert health() == [(False, 1, True)]  # the full listing still is not complete
    place.sync(streams=["meetings"], window=Window(days[0], days[1]))
    assert health() == [(False, 2, True)]
    place.world.update("meetings", ids=[broken], title="mended")
    place.sync(streams=["meetings"], window=Window(days[3], days[4]))
    assert health() == [(False, 2, True)]
    place.sync(streams=["meetings"])
    assert health() == [(True, 0, None)]
