# ruff: noqa: PLR2004 - odds and ordinals of generated data mean nothing beyond where they stand
"""The sandbox's world: accounts, their rows and documents, who sees what, and every change that can happen.

What lives here: `World`, the one truth that tests compare a synced warehouse with. What never does: HTTP,
tokens in circulation, rate limits (see `server`) and what values look like (see `generate`).

Rows are replaced, never modified: a list taken before a change stays what it was. Treat rows as read-only.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import wraps
from random import Random
from threading import RLock
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, cast

from contio_pipeline.sandbox import generate
from contio_pipeline.sandbox.generate import MISSING, File, Row, patched, rendering, stamp, uid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["CHANGES", "MISSING", "SCOPES", "STREAMS", "Account", "Row", "World", "parse_time"]

F = TypeVar("F", bound="Callable[..., Any]")

SCOPES: Final = ("profile", "meetings:read", "action-items:read", "calendar:read", "context:read")


class StreamRules(NamedTuple):
    """How one stream behaves.

    Attributes:
        filter_field: the field that orders the list and that the date filter means, unless told otherwise.
        newest_first: the list's order; undated rows come last either way, ids break ties.
        moves: the date fields that `World.move` shifts.
        stamped: whether a change sets `updated_at` (calendar events have none).
    """

    filter_field: str
    newest_first: bool
    moves: tuple[str, ...]
    stamped: bool


STREAMS: Final = {
    "meetings": StreamRules("start_time", True, ("start_time", "end_time"), True),
    "action_items": StreamRules("created_at", True, ("created_at", "due_date"), True),
    "calendar_events": StreamRules("start_time", False, ("start_time", "end_time"), False),
    "context_documents": StreamRules("created_at", True, ("created_at",), True),
    "participants": StreamRules("created_at", False, ("created_at",), True),
    "agenda_items": StreamRules("created_at", False, ("created_at",), True),
}
_BELOW_MEETINGS: Final = ("context_documents", "participants", "agenda_items")

CHANGES: Final = (
    "insert", "update", "move", "delete", "hide", "unhide", "merge", "process_documents", "rewrite_contents",
)  # fmt: skip
"""The names of World's methods that change something and return the ids they touched."""

_TIME = re.compile(r"\d{4}-\d\d-\d\d(?:T\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?:Z|[+-]\d\d:\d\d)?)?")


def parse_time(value: object) -> datetime | None:
    """An ISO 8601 date (midnight UTC) or date-time (UTC where it names no zone); None for anything else."""
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        return None
    try:
        when = datetime.fromisoformat(value)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _moved(text: str, days: int) -> str:
    """The same time `days` later, in exactly the same rendering."""
    return (date.fromisoformat(text[:10]) + timedelta(days=days)).isoformat() + text[10:]


@dataclass
class Account:
    """One user of the workspace, as the API shows it.

    Attributes:
        name: how the sandbox calls it.
        profile: what `/profile` answers.
        refresh_token: the initial one; the server rotates it from there.
        scopes: what its tokens may do; taking one away makes the API answer 403.
    """

    name: str
    profile: Row
    refresh_token: str
    scopes: tuple[str, ...] = SCOPES

    @property
    def user_id(self) -> str:
        """The user's id, as in `assigned_to_user_id` and `created_by_user_id`."""
        return str(self.profile["id"])


@dataclass
class _Record:
    """A row and what the database knows beside it.

    The links and times are kept apart from the row, so that `update(meeting_id=17)` or
    `update(start_time="soon")` makes a row that breaks its promise *in* the list where it belongs, instead of
    dropping it from the list.

    `private` are the fields that one account alone is shown, by its name.
    """

    row: Row
    meeting: str | None = None
    owner: str | None = None
    file: File | None = None
    private: dict[str, Row] = field(default_factory=dict)
    times: dict[str, datetime] = field(default_factory=dict)

    def patch(self, fields: Mapping[str, Any]) -> None:
        known = {name: parse_time(self.row.get(name)) for name in fields}
        self.times |= {name: when for name, when in known.items() if when is not None}
        self.row = patched(self.row, fields)
        if isinstance(fields.get("meeting_id"), str):
            self.meeting = fields["meeting_id"]

    def shown(self, account: str) -> Row:
        """The row as the account sees it."""
        return {**self.row, **self.private[account]} if account in self.private else self.row

    def when(self, name: str) -> datetime | None:
        value = self.row.get(name)
        return None if value is None else parse_time(value) or self.times.get(name)


class _Entry(NamedTuple):
    when: datetime | None
    id: str
    row: Row


def _within(when: datetime | None, start: datetime | None, end: datetime | None, *, inclusive_end: bool) -> bool:
    if when is None:  # an undated row is in no range
        return start is None and end is None
    return (start is None or when >= start) and (end is None or when < end or (inclusive_end and when == end))


def _order(entries: Iterable[_Entry], *, descending: bool) -> list[_Entry]:
    """By time, undated rows last, ids as tie-break, whichever the direction."""
    sign = -1 if descending else 1
    return sorted(entries, key=lambda e: (e.when is None, sign * e.when.timestamp() if e.when else 0, e.id))


def _locked(method: F) -> F:
    """Run a reading method under the world's lock."""

    @wraps(method)
    def run(self: World, *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            return method(self, *args, **kwargs)

    return cast("F", run)


def _change(method: F) -> F:
    """Run a changing method under the world's lock and forget the lists made before it."""

    @wraps(method)
    def run(self: World, *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            try:
                return method(self, *args, **kwargs)
            finally:
                self._cache.clear()

    return cast("F", run)


class World:
    """One workspace, several users, a year of meetings: deterministic by `seed`, changed only by its methods.

    Every method may be called from any thread.

    Args:
        seed: equal seeds (and other arguments) give byte-identical lists.
        meetings: how many meetings the workspace has; everything else follows from it.
        accounts: how many users have granted access; the first three are ana, bo and cem.
        now: the world's clock, which stands still until `advance`.
        days: how far meetings reach back; they reach at most 60 days ahead.

    Attributes:
        now: the world's clock.
        accounts: the users by name.
        client_id: the partner application's id.
        client_secret: its secret, with characters that form-encoding changes.
        redirects: merged meetings: old id -> new id.
        lock: hold it to make several changes at once.
    """

    def __init__(
        self,
        *,
        seed: int = 1,
        meetings: int = 300,
        accounts: int = 3,
        now: datetime = datetime(2026, 11, 1, 12, tzinfo=UTC),
        days: int = 365,
    ) -> None:
        self.now = now
        self.lock = RLock()
        self.redirects: dict[str, str] = {}
        self._rng = rng = Random(f"contio sandbox {seed}")
        self._ticks = 0
        self._cache: dict[Any, Any] = {}
        self._rows: dict[str, dict[str, _Record]] = {stream: {} for stream in STREAMS}
        self._workspace_id = uid(rng)
        self._source_id = uid(rng)
        self.client_id = f"cto_client_{rng.getrandbits(64):016x}"
        self.client_secret = f"cto_secret_{rng.getrandbits(128):032x}+/=&%41"
        self.accounts = {name: self._make_account(name, n) for n, name in enumerate(_names(accounts))}
        self._sees: dict[str, set[str]] = {name: set() for name in self.accounts}
        self._hidden: dict[str, set[str]] = {name: set() for name in self.accounts}
        self._generate(meetings, days)
        self._generate_agendas(Random(f"contio sandbox agendas {seed}"))

    # --------------------------------------------------------------------------------------------- generation

    def _make_account(self, name: str, number: int) -> Account:
        profile = {
            "id": uid(self._rng),
            "display_name": name.capitalize(),
            "email": f"{name}@example.com",
            "timezone": ("Europe/Zurich", "America/Los_Angeles", "Asia/Kolkata")[number % 3],
            "plan_type": "ELITE",
            "workspace_id": self._workspace_id,
            "workspace_name": "Acme Corp 🏔",
            "workspace_role": "WORKSPACE_MEMBER" if number else "WORKSPACE_OWNER",
            "created_at": stamp(self.now - timedelta(days=900 - number % 800)),
        }
        quirk = ({}, {"locale": "en-US"}, {"timezone": MISSING, "workspace_role": "WORKSPACE_GUEST"})[number % 3]
        return Account(name, patched(profile, quirk), f"cto_rt_v1_{self._rng.getrandbits(256):064x}")

    def _generate(self, meetings: int, days: int) -> None:
        rng, names = self._rng, list(self.accounts)
        edges = generate.edge_times(self.now, days)
        events = dict.fromkeys(names, 0)
        for number in range(meetings):
            day = self.now - timedelta(days=days) + timedelta(days=rng.random() * (days + min(days, 60)))
            start = day.replace(hour=rng.randint(6, 19), minute=rng.choice((0, 15, 30)), second=0, microsecond=0)
            if number % 13 == 5 and edges:
                start = edges[number // 13 % len(edges)]
            extra = rng.choices((0, 1, 2, 4), (3, 4, 2, 1))[0]
            # The first meetings are seen by everyone, so that every account has something of each kind.
            attending = rng.sample(names, len(names) if number < 5 else min(len(names), 1 + extra))
            meeting_id = self._add_meeting(number, start, attending)
            for _ in range(rng.choice((0, 1, 1, 2, 2, 3))):
                self._add_action_item(len(self._rows["action_items"]), meeting_id, min(start, self.now))
            if number % 5 == 2:
                for _ in range(27 if number == 2 else rng.choice((1, 1, 2, 3))):
                    self._add_document(len(self._rows["context_documents"]), meeting_id, min(start, self.now))
            meeting = self._rows["meetings"][meeting_id]
            for name in attending:
                if meeting.row.get("start_time") and rng.random() < 0.9:
                    event_id = self._add_event(events[name], name, start, meeting_id)
                    events[name] += 1
                    if name == attending[0] and meeting.row.get("calendar_event_id"):
                        meeting.patch({"calendar_event_id": event_id})
                if rng.random() < 0.2:
                    private = start + timedelta(hours=rng.choice((-30, -3, 3, 27)))
                    self._add_event(events[name], name, private, None)
                    events[name] += 1

    def _generate_agendas(self, rng: Random) -> None:
        """Participants and agenda of each meeting, by dice of their own, so that everything else is as it was."""
        for number, (meeting_id, meeting) in enumerate(self._rows["meetings"].items()):
            at = parse_time(meeting.row.get("created_at")) or self.now
            going = [account for name, account in self.accounts.items() if meeting_id in self._sees[name]]
            for position, account in enumerate(going):
                email = account.profile["email"]
                person = {"user_id": account.user_id, "name": account.profile["display_name"], "email": email}
                self._add_participant(rng, meeting_id, at, {**person, "role": "VIEWER" if position else "EDITOR"})
            for guest in rng.sample(generate.GUESTS, rng.choice((0, 0, 1, 2))):
                self._add_participant(rng, meeting_id, at, {"name": guest, "email": f"{guest.lower()}@guest.example"})
            for position in range(30 if number == 1 else rng.randint(0, 3)):
                self._add_agenda_item(rng, meeting_id, at, position)

    def _add_participant(
        self, rng: Random, meeting_id: str, at: datetime, fields: Mapping[str, Any], *, plain: bool = False
    ) -> str:
        ordinal = None if plain else len(self._rows["participants"])
        row = {"id": uid(rng), "meeting_id": meeting_id, "role": "VIEWER", "is_attended": rng.random() < 0.7, **fields}
        times = self._times(None, at) if plain else {"created_at": stamp(at), "updated_at": stamp(at)}
        return self._put("participants", _Record(patched({**times, **row}, {}), meeting_id), ordinal, {})

    def _add_agenda_item(
        self,
        rng: Random,
        meeting_id: str,
        at: datetime,
        position: int,
        fields: Mapping[str, Any] | None = None,
        *,
        plain: bool = False,
    ) -> str:
        ordinal = None if plain else len(self._rows["agenda_items"])
        presenter = rng.choice(list(self.accounts.values()))
        known = {"name": presenter.profile["display_name"], "email": presenter.profile["email"]}
        row = {
            "id": uid(rng),
            "meeting_id": meeting_id,
            "title": rng.choice(generate.TASKS),
            "description": rng.choice(generate.SENTENCES),
            "item_type": rng.choice(("DISCUSSION", "QUESTIONS_TO_ANSWER", "BREAK", "ADJOURN")),
            "status": rng.choice(("pending", "in_progress", "completed")),
            "sequence": str(100 * (position + 1)),
            "time_allocation_minutes": rng.choice((5, 10, 12.5)),
            "presenter_details": [{"user_id": presenter.user_id, **known}, {"user_id": uid(rng)}],
            "presenters": [presenter.user_id],
            **(self._times(None, at) if plain else {"created_at": stamp(at), "updated_at": stamp(at)}),
        }
        record = _Record(row, meeting_id)
        for name in self.accounts:
            if meeting_id in self._sees[name] and rng.random() < 0.3:
                record.private[name] = {"talking_points": f"Private to {name}: {rng.choice(generate.SENTENCES)}"}
        return self._put("agenda_items", record, ordinal, fields or {})

    def _put(self, stream: str, record: _Record, number: int | None, fields: Mapping[str, Any]) -> str:
        """File a new row under its id, with the quirk of its ordinal (None: plain) and the fields."""
        row_id = str(fields.get("id", record.row["id"]))
        if number is not None:
            record.row = generate.with_quirk(stream, number, record.row)
        record.patch(fields)
        self._rows[stream][row_id] = record
        return row_id

    def _tick(self) -> str:
        """The next time of change: the clock plus a tick that always grows."""
        self._ticks += 1
        return stamp(self.now + timedelta(milliseconds=self._ticks), digits=6)

    def _times(self, number: int | None, created: datetime) -> Row:
        """`created_at` and `updated_at` of a generated row, or of one inserted now."""
        if number is None:
            tick = self._tick()
            return {"created_at": tick, "updated_at": tick}
        exact = created - timedelta(microseconds=self._rng.randint(1, 86_400_000_000))
        changed = exact + (self.now - exact) * self._rng.random() ** 3
        return {
            "created_at": stamp(exact, **rendering(number)),
            "updated_at": stamp(changed, **rendering(number + 1)),
        }

    def _add_meeting(
        self,
        number: int | None,
        start: datetime,
        seen_by: Sequence[str],
        fields: Mapping[str, Any] | None = None,
    ) -> str:
        rng, shown = self._rng, rendering(number or 0)
        end = start + timedelta(minutes=rng.choice((15, 25, 30, 45, 60, 90)))
        planned = "scheduled" if start > self.now else "in_progress"
        row = {
            "id": uid(rng),
            "workspace_id": self._workspace_id,
            "created_by_user_id": self.accounts[seen_by[0]].user_id,
            "calendar_event_id": uid(rng),
            "title": rng.choice(generate.TITLES),
            "summary_notes": generate.notes(rng),
            "start_time": stamp(start, **shown),
            "end_time": stamp(end, **shown),
            "status": planned if end > self.now else rng.choice(("completed", "completed", "ended")),
            **self._times(number, min(start, self.now)),
        }
        record = _Record(row)
        meeting_id = record.meeting = self._put("meetings", record, number, fields or {})
        for name in seen_by:
            self._sees[name].add(meeting_id)
        return meeting_id

    def _add_action_item(
        self, number: int | None, meeting_id: str, at: datetime, fields: Mapping[str, Any] | None = None
    ) -> str:
        rng = self._rng
        status = rng.choice(("needs_review", "accepted", "in_progress", "blocked", "completed", "cancelled"))
        done = status == "completed"
        assignees = [account.user_id for account in self.accounts.values()]
        row = {
            "id": uid(rng),
            "meeting_id": meeting_id,
            "assigned_to_user_id": rng.choice(assignees),
            "title": rng.choice(generate.TASKS),
            "description": rng.choice(generate.SENTENCES),
            "status": status,
            "is_completed": done,
            "due_date": (at + timedelta(days=rng.randint(1, 30))).date().isoformat(),
            "completed_at": stamp(at, **rendering(number or 0)) if done else None,
            "has_partner_assignment": rng.random() < 0.2,
            "partner_context": {"ticket": f"T-{rng.randint(1, 9999)}", "score": rng.random()},
            **self._times(number, at),
        }
        record = _Record(row, meeting_id)
        action_item_id = self._put("action_items", record, number, fields or {})
        if record.row.get("meeting_id") is None:
            record.meeting = None  # seen by its assignee alone
        return action_item_id

    def _add_event(
        self,
        number: int | None,
        owner: str,
        start: datetime,
        linked: str | None,
        fields: Mapping[str, Any] | None = None,
    ) -> str:
        rng, shown = self._rng, rendering(number or 0)
        people = rng.sample(generate.PEOPLE, rng.randint(1, 5))
        attendees = [
            {
                "email": f"{person}@example.com",
                "name": person.capitalize(),
                "status": rng.choice(("accepted", "declined", "tentative", "needs_action")),
                "type": rng.choice(("required", "required", "optional", "resource")),
            }
            for person in people
        ]
        meeting = self._rows["meetings"][linked].row if linked else {}
        row = {
            "id": uid(rng),
            "title": meeting.get("title") or rng.choice(("Focus time", "Dentist", "Lunch", "Travel")),
            "description": rng.choice(generate.SENTENCES),
            "start_time": stamp(start, **shown),
            "end_time": stamp(start + timedelta(minutes=30), **shown),
            "location": rng.choice(("Room A", "https://meet.example.com/abc", "Zürich HB")),
            "organizer": attendees[0],
            "attendees": attendees,
            "linked_meetings": [linked] if linked else [],
            "meeting_id": linked or MISSING,
        }
        record = _Record(patched(row, {}), linked, owner)
        return self._put("calendar_events", record, number, fields or {})

    def _add_document(
        self, number: int | None, meeting_id: str, at: datetime, fields: Mapping[str, Any] | None = None
    ) -> str:
        rng, ordinal = self._rng, len(self._rows["context_documents"]) if number is None else number
        status = "complete" if number is None else generate.FILE_STATUSES[ordinal % len(generate.FILE_STATUSES)]
        source_format = generate.SOURCE_FORMATS[ordinal % len(generate.SOURCE_FORMATS)]
        row = {
            "id": uid(rng),
            "model_id": uid(rng),
            "meeting_id": meeting_id,
            "workspace_id": self._workspace_id,
            "title": f"Document {ordinal}",
            "context_type": rng.choice(("notes", "crm_export", "transcript")),
            "source_format": source_format,
            "file_status": status,
            "source_id": self._source_id,
            "source_name": "Sandbox app",
            "partner_app_id": self._source_id,
            "platform_name": "sandbox",
            "created_by_user_id": next(iter(self.accounts.values())).user_id,
            **self._times(number, at),
        }
        shown = patched(row, fields or {})
        file = generate.file_for(rng, ordinal, source_format, shown.get("file_status"))
        return self._put("context_documents", _Record(shown, meeting_id, file=file), number, fields or {})

    # ------------------------------------------------------------------------------------------------ reading

    def _sees_meeting(self, account: str, meeting_id: str | None) -> bool:
        return meeting_id in self._sees[account] and meeting_id not in self._hidden[account]

    def _visible(self, account: str, stream: str, record: _Record) -> bool:
        """Meetings: seen by membership; action items also by assignment; events by their owner."""
        if stream == "calendar_events":
            return record.owner == account
        if stream == "action_items" and record.meeting not in self._hidden[account]:
            assigned = record.row.get("assigned_to_user_id") == self.accounts[account].user_id
            return assigned or self._sees_meeting(account, record.meeting)
        return self._sees_meeting(account, record.meeting)

    def _records(self, stream: str, parent: str | None) -> dict[str, _Record]:
        """A stream's rows, or those below one meeting (grouped once: a listing per meeting is usual)."""
        if parent is None:
            return self._rows[stream]
        key = ("groups", stream)
        if key not in self._cache:
            self._cache[key] = {}
            for row_id, record in self._rows[stream].items():
                self._cache[key].setdefault(record.meeting, {})[row_id] = record
        group: dict[str, _Record] = self._cache[key].get(parent, {})
        return group

    @_locked
    def select(
        self,
        account: str,
        stream: str,
        *,
        parent: str | None = None,
        by: str | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        inclusive_end: bool = True,
        descending: bool | None = None,
        equal: tuple[tuple[str, Any], ...] = (),
    ) -> list[Row]:
        """A whole filtered list in the API's order.

        Args:
            account: whose view.
            stream: one of STREAMS.
            parent: only rows of this meeting.
            by: the field that orders and that `start` and `end` filter; the stream's own by default.
            start: the earliest time that is returned; with a bound given, undated rows are not.
            end: the latest time that is returned.
            inclusive_end: whether a row at exactly `end` is returned.
            descending: the direction, by default the stream's own.
            equal: fields and the values they must have; a missing or null field counts as False.

        Returns:
            The rows. They are shared: do not modify them, nor the list.
        """
        key = (account, stream, parent, by, start, end, inclusive_end, descending, equal)
        if key not in self._cache:
            self._cache[key] = [
                entry.row
                for entry in self._listing(account, stream, parent, by, descending)
                if _within(entry.when, start, end, inclusive_end=inclusive_end)
                and all((entry.row.get(name) or False) == value for name, value in equal)
            ]
        rows: list[Row] = self._cache[key]
        return rows

    def _listing(
        self, account: str, stream: str, parent: str | None, by: str | None, descending: bool | None
    ) -> list[_Entry]:
        """All rows the account sees, sorted once per change."""
        key = ("listing", account, stream, parent, by, descending)
        if key not in self._cache:
            name = by or STREAMS[stream].filter_field
            visible = (
                _Entry(record.when(name), row_id, record.shown(account))
                for row_id, record in self._records(stream, parent).items()
                if self._visible(account, stream, record)
            )
            newest_first = STREAMS[stream].newest_first if descending is None else descending
            self._cache[key] = _order(visible, descending=newest_first)
        entries: list[_Entry] = self._cache[key]
        return entries

    def items(self, account: str, stream: str, *, parent: str | None = None) -> list[Row]:
        """Exactly what the unfiltered list returns to this account, all pages, in the API's order."""
        return list(self.select(account, stream, parent=parent))

    @_locked
    def get(self, account: str, stream: str, row_id: str, *, parent: str | None = None) -> Row | None:
        """What the detail answers: the row, a merged meeting's redirect, or None if not visible."""
        record = self._rows[stream].get(row_id)
        if record is not None:
            fits = parent is None or record.meeting == parent
            return record.row if fits and self._visible(account, stream, record) else None
        if stream == "meetings" and row_id in self.redirects and self._sees_meeting(account, row_id):
            return {"redirect_to_meeting_id": self.redirects[row_id]}
        return None

    @_locked
    def exists(self, stream: str, row_id: str) -> bool:
        """Whether anybody sees such a row: a calendar event answers 403, not 404, to the others."""
        return row_id in self._rows[stream]

    @_locked
    def file(self, account: str, meeting_id: str, document_id: str) -> File | None:
        """The file of a document that the account sees below this meeting."""
        if self.get(account, "context_documents", document_id, parent=meeting_id) is None:
            return None
        return self._rows["context_documents"][document_id].file

    @_locked
    def truth(self, account: str) -> dict[str, Any]:
        """Everything the account sees, to compare a synced warehouse with.

        Returns:
            `profile`, the lists `meetings`, `action_items`, `calendar_events`, `context_documents` (those of
            every visible meeting), and `contents`: document id -> sha256, size (bytes), filename (as the
            uploader gave it, None without Content-Disposition), content_type, file_status (None if missing).
        """
        documents = self.items(account, "context_documents")
        return {
            "profile": self.accounts[account].profile,
            **{stream: self.items(account, stream) for stream in ("meetings", "action_items", "calendar_events")},
            "context_documents": documents,
            "contents": {
                row_id: _content_truth(record)
                for row_id, record in self._rows["context_documents"].items()
                if self._visible(account, "context_documents", record)
            },
        }

    # ----------------------------------------------------------------------------------------------- changing

    def _pick(
        self,
        stream: str,
        count: int | None,
        ids: Sequence[str] | None,
        fits: Callable[[_Record], bool] = lambda _: True,
    ) -> list[str]:
        """The rows to change: exactly `ids` (KeyError for an unknown one), else `count` random ones."""
        if ids is not None:
            if unknown := [row_id for row_id in ids if row_id not in self._rows[stream]]:
                raise KeyError(f"{stream} has no live rows {unknown}")
            return list(ids)
        candidates = [row_id for row_id, record in self._rows[stream].items() if fits(record)]
        return candidates if count is None else self._rng.sample(candidates, min(count, len(candidates)))

    def _update(self, stream: str, row_id: str, fields: Mapping[str, Any]) -> None:
        updated = {"updated_at": self._tick()} if STREAMS[stream].stamped else {}
        self._rows[stream][row_id].patch({**updated, **fields})

    @_change
    def insert(self, stream: str, count: int = 1, *, account: str | None = None, **fields: Any) -> list[str]:
        """Add plain rows; `fields` override what is generated (`start_time` also moves `end_time`).

        Args:
            stream: one of STREAMS.
            count: how many.
            account: who sees them. By default everyone, but a calendar event is the first account's.
            **fields: any field with any JSON value; MISSING leaves it out.

        Returns:
            The new ids.
        """
        names = [account] if account else list(self.accounts)
        if (start := parse_time(fields.get("start_time"))) and "end_time" not in fields:
            fields["end_time"] = stamp(start + timedelta(minutes=30))
        recent = [self.now - timedelta(minutes=self._rng.randint(5, 2880)) for _ in range(count)]
        if stream == "meetings":
            return [self._add_meeting(None, start or at, names, fields) for at in recent]
        if stream == "calendar_events":
            return [self._add_event(None, names[0], start or at, None, fields) for at in recent]
        visible = [i for i in self._rows["meetings"] if any(self._sees_meeting(name, i) for name in names)]
        meetings = [fields.get("meeting_id") or self._rng.choice(visible) for _ in range(count)]
        if stream == "participants":
            guest = {"name": "Guest", "email": "guest@guest.example", **fields}
            return [self._add_participant(self._rng, meeting, self.now, guest, plain=True) for meeting in meetings]
        if stream == "agenda_items":
            return [self._add_agenda_item(self._rng, meeting, self.now, 40, fields, plain=True) for meeting in meetings]
        add = {"action_items": self._add_action_item, "context_documents": self._add_document}[stream]
        return [add(None, meeting, at, fields) for meeting, at in zip(meetings, recent, strict=True)]

    @_change
    def update(self, stream: str, count: int = 1, *, ids: Sequence[str] | None = None, **fields: Any) -> list[str]:
        """Set `fields` (any JSON value; MISSING drops the field), or without fields change the title.

        `updated_at` grows as well, where the stream has one and `fields` does not set it.
        """
        picked = self._pick(stream, count, ids)
        for row_id in picked:
            self._update(stream, row_id, fields or {"title": f"Edited {self._ticks}-{self._rng.getrandbits(32):x}"})
        return picked

    @_change
    def move(self, stream: str, count: int = 1, *, ids: Sequence[str] | None = None, days: int = 1) -> list[str]:
        """Shift the date fields by `days`, keeping how each is written; undated rows are not picked."""
        moves = STREAMS[stream].moves
        picked = self._pick(stream, count, ids, lambda record: parse_time(record.row.get(moves[0])) is not None)
        for row_id in picked:
            row = self._rows[stream][row_id].row
            dated = [name for name in moves if parse_time(row.get(name))]
            self._update(stream, row_id, {name: _moved(row[name], days) for name in dated})
        return picked

    @_change
    def delete(self, stream: str, count: int = 1, *, ids: Sequence[str] | None = None) -> list[str]:
        """Delete rows. A meeting takes what is below it along; its action items stay, with its id.

        Deleted rows are gone from lists and details; the API never shows a `deleted_at` that is set.
        """
        picked = self._pick(stream, count, ids)
        if stream == "meetings":
            gone = set(picked)
            for below in _BELOW_MEETINGS:
                orphans = [row_id for row_id, record in self._rows[below].items() if record.meeting in gone]
                self._remove(below, orphans)
        self._remove(stream, picked)
        return picked

    def _remove(self, stream: str, ids: Iterable[str]) -> None:
        for row_id in ids:
            del self._rows[stream][row_id]

    @_change
    def hide(self, account: str, *, meeting_ids: Sequence[str]) -> list[str]:
        """The account loses sight of meetings, and of their action items and documents."""
        self._hidden[account].update(self._pick("meetings", None, meeting_ids))
        return list(meeting_ids)

    @_change
    def unhide(self, account: str, *, meeting_ids: Sequence[str]) -> list[str]:
        """The account sees the meetings again (those it never saw, too)."""
        self._hidden[account].difference_update(meeting_ids)
        self._sees[account].update(self._pick("meetings", None, meeting_ids))
        return list(meeting_ids)

    @_change
    def merge(self, count: int = 1, *, ids: Sequence[str] | None = None) -> list[str]:
        """Replace meetings by copies with a new id; the old ids (returned) redirect there: see `redirects`.

        What is below them goes along with the same ids; action items keep the old `meeting_id`.
        """
        picked = self._pick("meetings", count, ids)
        for old in picked:
            new = uid(self._rng)
            record = self._rows["meetings"].pop(old)
            record.patch({"id": new, "updated_at": self._tick()})
            record.meeting = new
            self._rows["meetings"][new] = record
            self.redirects[old] = new
            for name, seen in self._sees.items():
                if old in seen:
                    seen.add(new)
                if old in self._hidden[name]:
                    self._hidden[name].add(new)
            for below in _BELOW_MEETINGS:
                for child in self._rows[below].values():
                    if child.meeting == old:
                        child.patch({"meeting_id": new, "updated_at": self._tick()})
        return picked

    @_change
    def process_documents(self, count: int | None = None, *, steps: int = 1) -> list[str]:
        """Take documents one step (or more) further: pending -> processing -> complete.

        A document that becomes complete answers its converted copy from then on.

        Args:
            count: how many of the unfinished ones, all by default.
            steps: how many steps; two finish every document.
        """
        following = {"pending": "processing", "processing": "complete"}
        picked = self._pick("context_documents", count, None, lambda r: r.row.get("file_status") in following)
        for row_id in picked:
            record = self._rows["context_documents"][row_id]
            for _ in range(steps):
                status = following.get(record.row["file_status"], "complete")
                self._update("context_documents", row_id, {"file_status": status})
            if record.file and status == "complete":
                record.file = replace(record.file, converted=True)
        return picked

    @_change
    def rewrite_contents(self, ids: Sequence[str], *, body: bytes | str | None = None) -> list[str]:
        """Change the bytes of documents, to `body` if given, without any change of their metadata."""
        for row_id in self._pick("context_documents", None, ids):
            record = self._rows["context_documents"][row_id]
            if record.file:
                raw = body.encode() if isinstance(body, str) else body
                fresh = replace(record.file, rewrites=record.file.rewrites + 1)
                record.file = fresh if raw is None else replace(fresh, raw=raw, converted=False, rewrites=0)
        return list(ids)

    @_change
    def advance(self, by: timedelta) -> None:
        """Move the world's clock; rows stay as they are."""
        self.now += by


def _names(count: int) -> list[str]:
    return [*generate.PEOPLE, *(f"user{n}" for n in range(len(generate.PEOPLE) + 1, count + 1))][:count]


def _content_truth(record: _Record) -> Row:
    body = record.file.content() if record.file else b""
    return {
        "sha256": hashlib.sha256(body).hexdigest(),
        "size": len(body),
        "filename": record.file.name if record.file else None,
        "content_type": "application/octet-stream",
        "file_status": record.row.get("file_status"),
    }
