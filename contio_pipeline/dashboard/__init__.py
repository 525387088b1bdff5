"""The dashboard: one HTML file that shows what the marts hold, and asks nobody for anything.

What lives here: the numbers that it shows, added up in SQL, and putting page, script, charts and numbers into one file. What
never does: where it is published (`publish`), what a mart is (`marts`).

`page.html` is the frame, `page.js` filters and draws, `charts.js` is Vega (`notice.txt` has its licences): `hatch_build.py` makes
it when the package is built or installed.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import orjson

from contio_pipeline.marts import item_steps
from contio_pipeline.workfile import literal, parquet

log = logging.getLogger(__name__)

FILE = "dashboard.html"

_BEFORE, _AHEAD = 52, 4
"""Weeks before and after this one that it shows."""

_PEOPLE = 400
_BYTES = 4_000_000
"""At most so many people can be chosen, fewer where the page would be larger: the others are in the sums."""

_LONGEST = 80
"""Letters of a name that are shown."""

_ALL = -1

_EVENTS = ("calendar_events.start_time", "calendar_events.end_time")
_GUESTS = ("calendar_events.organizer", "calendar_events.attendees")
_ITEMS = ("action_items.created_at", "action_items.status", "action_items.is_completed", "action_items.completed_at")
_ENDED = ("meetings.start_time", "meetings.status")
_MADE_OF = {
    "load": (*_EVENTS, *_GUESTS),
    "people": (*_EVENTS, *_GUESTS),
    "open": _ITEMS,
    "overdue": (*_ITEMS, "action_items.due_date"),
    "ages": _ITEMS,
    "done": _ITEMS,
    "hygiene": _ENDED,
    "noted_share": (*_ENDED, "meetings.summary_notes"),
    "items_share": (*_ENDED, "action_items.meeting_id"),
    "coverage": ("meetings.start_time", "context_documents.meeting_id", "context_documents.created_at"),
    "linkage": ("calendar_events.start_time", "calendar_events.linked_meetings"),
}
"""What the page does not show where the publish policy drops any of these columns."""

_WHOSE = {
    "action_items.assigned_to_user_id": ("open", "overdue", "ages", "done"),
    "meetings.created_by_user_id": ("hygiene", "noted_share", "coverage"),
    "calendar_events.organizer": ("linkage",),
}
"""What it cannot show of a person where the policy drops these."""


@dataclass(frozen=True, slots=True)
class Source:
    """What the page is made of.

    Attributes:
        query: runs SQL on the database that is about to be published.
        mart: where the Parquet file of a mart is, by its full name.
        now: the time of the publication, in `zone`.
        zone: IANA name of the time zone of local days.
        hidden: `table.column` of `raw` -> what the publish policy does with it.
        fresh: what was complete longer ago than that is not called complete.
    """

    query: Callable[[str], list[tuple[Any, ...]]]
    mart: Callable[[str], Path]
    now: datetime
    zone: str
    hidden: Mapping[str, str]
    fresh: timedelta


def page(source: Source) -> str:
    """The page of what is about to be published."""
    numbers = _Numbers(source)
    people = _PEOPLE
    while len(told := orjson.dumps(numbers.told(people))) > _BYTES and people:
        people //= 2
    own = files(__package__)
    scripts = {"charts": "", "script": (own / "page.js").read_text(encoding="utf-8")}
    if (own / "charts.js").is_file():
        scripts["charts"] = (own / "charts.js").read_text(encoding="utf-8")
    else:
        log.warning("the dashboard has numbers and no charts, for this installation lacks them: run make install")
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts.values())
    parts = {
        "hashes": " ".join(f"'sha256-{one}'" for one in hashes),
        "data": told.decode().replace("<", "\\u003c"),
        **scripts,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], (own / "page.html").read_text(encoding="utf-8"))


class _Numbers:
    """What the page shows: cells of an account, a person and a week, added up once, and told for as many people as fit."""

    def __init__(self, source: Source) -> None:
        self._source, self._query = source, source.query
        self._today = source.now.date()
        self._first = self._today - timedelta(days=self._today.weekday(), weeks=_BEFORE)
        self._measures: dict[str, tuple[str, ...]] = {}
        named = "SELECT account FROM mart.sync_health UNION SELECT _account FROM raw.accounts ORDER BY ALL"
        self._accounts = [account for (account,) in self._query(named)]
        self._add_up()

    def _file(self, name: str) -> str:
        """SQL of a mart's file: its columns cost less to read than the view to ask."""
        return parquet(self._source.mart(f"mart.{name}"))

    def _add_up(self) -> None:
        f = self._file
        self._cells("meetings", self._meetings(), "meetings", "prepared", "ended", "noted", "with_items")
        self._cells("items", self._items(), "open", "overdue", "aged", "created", "completed")
        self._cells("ages", self._ages(), "open", "overdue")
        self._cells("events", self._events(), "linked", "unseen", "none")
        self._query(
            f"""CREATE TEMP TABLE cells_load AS
                SELECT person_id AS person, {self._week("week_start")} AS key, coalesce(minutes, 0) AS minutes,
                    coalesce(events, 0) AS events
                FROM {f("person_week")} WHERE {self._shown("week_start")}"""
        )
        named = " UNION ALL ".join(
            f"SELECT person, count(*) AS n FROM cells_{name} GROUP BY person"
            for name in ("load", "meetings", "items", "ages", "events")
        )
        self._query(
            f"""CREATE TEMP TABLE known AS
                SELECT id AS person, any_value(name) AS name, any_value(email) AS email,
                    row_number() OVER (ORDER BY bool_or(user_id IS NOT NULL) DESC, sum(n) DESC, id) - 1 AS number
                FROM ({named}) JOIN {f("people")} ON id = person GROUP BY id"""
        )

    def _week(self, day: str) -> str:
        """SQL of the number of a day's week; that of the first which is shown is 0."""
        return f"((date_trunc('week', {day})::DATE - {_sql(self._first)}) // 7)::INT"

    def _shown(self, day: str) -> str:
        end = self._first + timedelta(weeks=_BEFORE + 1 + _AHEAD)
        return f"{day} >= {_sql(self._first)} AND {day} < {_sql(end)}"

    def _cells(self, name: str, rows: str, *measures: str) -> None:
        """Add rows (`seen_by`, `person`, `key`, measures) up: of all accounts once, and of what each sees."""
        self._measures[name] = measures
        sums = ", ".join(f'sum("{one}")::BIGINT AS "{one}"' for one in measures)
        of_each = "UNION ALL SELECT unnest(seen_by), * EXCLUDE (seen_by) FROM grouped" if self._accounts[1:] else ""
        self._query(
            f"""CREATE TEMP TABLE cells_{name} AS
                WITH grouped AS (SELECT seen_by, person, key, {sums} FROM ({rows}) GROUP BY ALL),
                each AS (SELECT NULL::VARCHAR AS account, * EXCLUDE (seen_by) FROM grouped {of_each})
                SELECT account, person, key, {sums} FROM each GROUP BY ALL"""
        )

    def _meetings(self) -> str:
        return f"""
            SELECT m.seen_by, m.created_by_user_id AS person, {self._week("m.local_date")} AS key, 1 AS meetings,
                c.is_prepared::INT AS prepared, (h.meeting_id IS NOT NULL)::INT AS ended,
                coalesce(h.has_notes, false)::INT AS noted, coalesce(h.action_items > 0, false)::INT AS with_items
            FROM (SELECT id, seen_by, created_by_user_id, local_date FROM {self._file("meetings")}
                WHERE deleted_at IS NULL AND {self._shown("local_date")}) m
            JOIN {self._file("context_coverage")} c ON c.meeting_id = m.id
            LEFT JOIN {self._file("meeting_hygiene")} h ON h.meeting_id = m.id"""

    def _items(self) -> str:
        steps = item_steps(self._file("action_items"), _sql(self._today), "seen_by", "assigned_to_user_id")
        return f"""
            SELECT seen_by, assigned_to_user_id AS person, greatest({self._week("day")}, -1) AS key, open, overdue, aged,
                created, completed
            FROM ({steps}) WHERE day <= {_sql(self._today)}"""

    def _ages(self) -> str:
        today = _sql(self._today)
        age = f"{today} - created_local_date"
        return f"""
            SELECT seen_by, assigned_to_user_id AS person, ({age} > 7)::INT + ({age} > 30)::INT + ({age} > 90)::INT AS key,
                1 AS open, coalesce(due_date < {today} AND due_date >= DATE '1970-01-01', false)::INT AS overdue
            FROM {self._file("action_items")}
            WHERE created_local_date BETWEEN DATE '2000-01-01' AND {today}
                AND coalesce(closed_local_date > {today}, true)"""

    def _events(self) -> str:
        return f"""
            SELECT e.seen_by, p.person, {self._week("l.local_date")} AS key, (link = 'linked')::INT AS linked,
                (link = 'unseen')::INT AS unseen, (link = 'none')::INT AS "none"
            FROM (SELECT event_id, local_date, organizer_email, link FROM {self._file("calendar_linkage")}
                WHERE {self._shown("local_date")}) l
            JOIN {self._file("calendar_events")} e ON e.id = l.event_id
            LEFT JOIN (SELECT id AS person, unnest(emails) AS email FROM {self._file("people")}) p
                ON p.email = l.organizer_email"""

    def told(self, most: int) -> dict[str, Any]:
        """What the script reads, with at most so many people that can be chosen."""
        people = self._query(f"SELECT person, name, email FROM known WHERE number < {most} ORDER BY number")
        labels = _labels(people)
        [(others,)] = self._query(f"SELECT count(*) FROM known WHERE number >= {most}")
        number = {person: place for place, (person, *_) in enumerate(people)}
        users: dict[str, str] = dict(self._query("SELECT _account, id FROM raw.accounts"))
        dropped = {column for column, action in self._source.hidden.items() if action == "drop"}
        return {
            "published": self._source.now.isoformat(timespec="seconds"),
            "published_local": f"{self._source.now:%Y-%m-%d %H:%M}",
            "zone": self._source.zone,
            "first": self._first.isoformat(),
            "weeks": _BEFORE + 1 + _AHEAD,
            "now": _BEFORE,
            "accounts": self._accounts,
            "people": [{"id": person, "name": label} for (person, *_), label in zip(people, labels, strict=True)],
            "others": others,
            "users": [number.get(users.get(account, ""), _ALL) for account in self._accounts],
            "hidden": [what for what, columns in _MADE_OF.items() if dropped.intersection(columns)],
            "nobody": [what for column, whats in _WHOSE.items() if column in dropped for what in whats],
            "today": self._today.isoformat(),
            "known_since": self._known_since(),
            "undated": self._undated(),
            "load": self._load(most),
            "meetings": self._cube("meetings", most),
            "items": self._cube("items", most),
            "ages": self._cube("ages", most),
            "events": self._cube("events", most),
            "health": self._health(),
        }

    def _cube(self, name: str, most: int) -> dict[str, list[Any]]:
        accounts = f"[{', '.join(map(literal, self._accounts))}]::VARCHAR[]"
        measures = self._measures[name]
        sums = ", ".join(f'sum("{one}")::BIGINT' for one in measures)
        rows = self._query(
            f"""SELECT coalesce(list_position({accounts}, account) - 1, {_ALL}) AS a,
                    CASE WHEN number < {most} THEN number ELSE {_ALL} END AS p, key, {sums}
                FROM cells_{name} LEFT JOIN known USING (person) GROUP BY a, p, key ORDER BY a, p, key"""
        )
        return {"measures": list(measures), **_columns(["account", "person", "key", *measures], rows)}

    def _load(self, most: int) -> dict[str, list[Any]]:
        rows = self._query(
            f"""SELECT CASE WHEN number < {most} THEN number ELSE {_ALL} END AS p, key, round(sum(minutes), 2),
                    sum(events)::BIGINT, count(*)
                FROM cells_load LEFT JOIN known USING (person) GROUP BY p, key ORDER BY p, key"""
        )
        whole = [(*row[:2], int(row[2]) if row[2] == int(row[2]) else row[2], *row[3:]) for row in rows]
        return _columns(["person", "key", "minutes", "events", "people"], whole)

    def _known_since(self) -> str:
        """The day of the first sync of action items; empty where it was before the first week."""
        [(day,)] = self._query(f"SELECT min(day) FILTER (NOT is_reconstructed) FROM {self._file('action_item_daily')}")
        return day.isoformat() if day and day > self._first else ""

    def _undated(self) -> list[str]:
        """What is in no week, for want of a date."""
        kinds = {
            "open action items": ("action_items", "created_local_date IS NULL AND closed_local_date IS NULL"),
            "meetings": ("meetings", "local_date IS NULL AND deleted_at IS NULL"),
            "events": ("calendar_events", "local_date IS NULL AND deleted_at IS NULL"),
        }
        found = []
        for kind, (mart, without) in kinds.items():
            [(count,)] = self._query(f"SELECT count(*) FROM {self._file(mart)} WHERE {without}")
            found += [f"{count:,} {kind}"] if count else []
        return found

    def _health(self) -> list[dict[str, Any]]:
        def local(moment: str) -> str:
            return f"strftime({moment} AT TIME ZONE {literal(self._source.zone)}, '%Y-%m-%d %H:%M')"

        fresh = f"TIMESTAMPTZ {literal((self._source.now - self._source.fresh).isoformat())}"
        rows = self._query(
            f"""SELECT account, stream, {local("last_listed_at")},
                    CASE WHEN NOT is_complete THEN 'NOT complete' WHEN last_complete_at >= {fresh} THEN 'complete'
                        ELSE 'last complete ' || {local("last_complete_at")} END, reason, broken_rows
                FROM mart.sync_health ORDER BY account, stream"""
        )
        return [
            dict(zip(("account", "stream", "listed", "state", "reason", "broken"), row, strict=True)) for row in rows
        ]


def _sql(day: date) -> str:
    return f"DATE {literal(day.isoformat())}"


def _labels(people: list[tuple[str, str | None, str | None]]) -> list[str]:
    """What people (id, name, address) are called, each otherwise: by the name, with more where others have the same."""
    names = Counter(name for _, name, _ in people)
    labels: list[str] = []
    taken: set[str] = set()
    for person, name, email in people:
        more = email if email and "@" in email else f"person {person[:8]}"  # hashes are told in short
        label = more if not name else name if names[name] == 1 else f"{name} ({more})"
        label = label if len(label) <= _LONGEST else f"{label[:_LONGEST]}…"
        labels.append(label if label not in taken else f"{label} ({len(labels)})")
        taken.add(labels[-1])
    return labels


def _columns(names: list[str], rows: list[tuple[Any, ...]]) -> dict[str, list[Any]]:
    return {name: [row[number] for row in rows] for number, name in enumerate(names)}
