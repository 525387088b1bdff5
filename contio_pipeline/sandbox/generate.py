# ruff: noqa: PLR2004 - ordinals that deal out the nasty kinds mean nothing beyond where they stand
"""What generated rows look like: texts, times, file names, document bytes and the quirks.

What lives here: pure makers of values, functions of their arguments only. What never does: state, visibility,
HTTP.

Quirks are patches, one per nasty kind, dealt out by a row's ordinal so that every kind is surely there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

Row = dict[str, Any]

MISSING: Final = object()
"""As a field's value in a patch: leave the field out of the row."""

GO_ZERO_TIME: Final = "0001-01-01T00:00:00Z"
"""How a Go server renders a time that was never set."""

PEOPLE: Final = (
    "ana", "bo", "cem", "dia", "eli", "fay", "gus", "hana", "ivo", "jun", "kai", "lea", "mio", "noa", "oto",
    "pia",
)  # fmt: skip
GUESTS: Final = ("Quinn", "Rosa", "Sam", "Tara", "Uma", "Zoë")
TITLES: Final = (
    "Weekly sync", "Pipeline review", "Quarterly planning", "Customer call: Northwind", "Design critique",
    "1:1", "Incident review", "Hiring loop", "Board preparation", "Contract renewal", "Retrospective",
    "Budget check",
)  # fmt: skip
TASKS: Final = (
    "Send the proposal", "Update the forecast", "Book the venue", "Review the contract", "Fix the dashboard",
    "Call the supplier", "Write the summary", "Share the recording",
)  # fmt: skip
SENTENCES: Final = (
    "The team agreed on the scope for the next release.",
    "Open questions were listed and given owners.",
    "The customer asked for a written offer by Friday.",
    "Two risks were raised: the delivery date and the staffing of support.",
    "Decision: keep the current price until the end of the quarter.",
    "The numbers of last month were discussed; revenue is on plan.",
)
EMOJI: Final = "🚀 Launch 👩🏽‍💻 party 🇨🇭"
RIGHT_TO_LEFT: Final = "פגישת צוות — \u202eمراجعة الربع\u202c 2026"  # noqa: RUF001 - Arabic on purpose
COMBINING: Final = "Cafe\u0301 Z\u0351\u0343\u036ba\u0310\u0352lgo \u1112\u1161\u11ab"
CONTROL: Final = "Line one\nline \"two\"\r\n\ttabbed 'three' \x01\x1b[31m\x7f\u2028;--\\ end"
LONG_NOTES: Final = ("Minutes. " + " ".join(SENTENCES) + "\n") * 120

SOURCE_FORMATS: Final = ("json", "csv", "tsv", "xml", "html", "yaml", "md", "txt")
FILE_STATUSES: Final = (
    "complete", "pending", "complete", "processing", "complete", "error", "complete", "ready", "complete",
    MISSING,
)  # fmt: skip
CONVERTED_STATUSES: Final = frozenset({"complete", "ready"})

FILE_NAMES: Final[tuple[str | None, ...]] = (
    "notes.{suffix}",
    "../../../etc/passwd",
    "minutes {number}.{suffix}",
    "/etc/cron.d/evil",
    None,  # the header is missing
    '"quoted" name; filename=other.{suffix}',
    "report-{number}.{suffix}",
    "🚀 résumé 会議.{suffix}",
    "long-" + "x" * 500 + ".{suffix}",
    "..\\..\\windows\\evil.{suffix}",
    "..",
    "nul\x00byte\r\nX-Injected: yes.{suffix}",
    "CON.{suffix}",
    "",
)
"""Names that uploaders gave; `header` encodes them, `{suffix}` and `{number}` make some of them unique."""


def uid(rng: Random) -> str:
    """A version 4 UUID drawn from `rng`."""
    return str(UUID(int=rng.getrandbits(128), version=4))


def stamp(when: datetime, *, offset: int = 0, digits: int = 0) -> str:
    """RFC 3339 text of `when`, shown `offset` minutes from UTC with `digits` (0 to 9) fractional digits."""
    local = when.astimezone(timezone(timedelta(minutes=offset)))
    text = local.isoformat(timespec="seconds").replace("+00:00", "Z")
    fraction = f".{local.microsecond:06d}{local.microsecond % 1000:03d}"[: digits + 1] if digits else ""
    return text[:19] + fraction + text[19:]


def rendering(number: int) -> dict[str, int]:
    """How the row with this ordinal renders its times: keyword arguments of `stamp`."""
    return {"offset": (0, 0, 0, 330, 0, -420, 0)[number % 7], "digits": (0, 3, 6, 9)[number % 4]}


def _sunday(year: int, month: int, day: int) -> datetime:
    """Midnight UTC of the first Sunday at or after this date: how every clock change is defined."""
    first = date(year, month, day)
    return datetime.combine(first + timedelta(days=(6 - first.weekday()) % 7), time(), UTC)


def edge_times(now: datetime, days: int) -> list[datetime]:
    """Moments where date arithmetic breaks, from `days` before `now` on: midnights and clock changes."""
    midnight = datetime.combine(now.date(), time(), UTC)
    moments = [midnight - timedelta(days=n, microseconds=us) for n in (3, 31, 90) for us in (0, 1)]
    for year in (now.year - 1, now.year):
        moments += [
            _sunday(year, 3, 25) + timedelta(hours=1),
            _sunday(year, 10, 25) + timedelta(hours=1),
        ]  # EU
        moments += [
            _sunday(year, 3, 8) + timedelta(hours=10),
            _sunday(year, 11, 1) + timedelta(hours=9),
        ]  # US West
        moments += [datetime(year, 12, 31, 23, 59, 59, 999_999, UTC)]
    return [moment for moment in moments if now - timedelta(days=days) < moment <= now]


def notes(rng: Random) -> str:
    """A few paragraphs of meeting notes, 100 to 2,500 characters."""
    return "\n\n".join(" ".join(rng.sample(SENTENCES, rng.randint(2, 6))) for _ in range(rng.randint(1, 6)))


# ----------------------------------------------------------------------------------------------------- quirks

_BIG_CONTEXT: Final = {
    "crm": {"deal": {"id": 9_223_372_036_854_775_808, "stages": [{"name": "Won", "p": 1.0}, {"name": None}]}},
    "huge": 10**30,
    "tiny": 5e-324,
    "large": 1.7976931348623157e308,
    "tenth": 0.1,
    "": {"": [[], {}, [[None]]]},
    "unicode 🚀": EMOJI,
}


def _ends_early(row: Row) -> Any:
    """An end before the start: a real wrong entry, not a wrong type."""
    return row["start_time"]


def _with_comment(row: Row) -> list[Row]:
    """Attendees with a nested field that the spec does not know."""
    return [{**attendee, "response_comment": "running late ⏰"} for attendee in row["attendees"]]


def _first_attendee(**fields: Any) -> Callable[[Row], list[Row]]:
    """Attendees whose first one has other fields."""
    return lambda row: [patched(row["attendees"][0], fields), *row["attendees"][1:]]


def _day(field: str, days: int = 0) -> Callable[[Row], str]:
    """Only the date of a field, `days` later."""
    return lambda row: (date.fromisoformat(row[field][:10]) + timedelta(days=days)).isoformat()


def _bare(field: str) -> Callable[[Row], str]:
    """The field's time without its zone and fraction."""
    return lambda row: row[field][:19]


QUIRKS: Final[dict[str, tuple[Mapping[str, Any], ...]]] = {
    "meetings": (
        {"summary_notes": MISSING, "calendar_event_id": MISSING},
        {"summary_notes": None, "calendar_event_id": None, "redirect_to_meeting_id": None},
        {"start_time": MISSING, "end_time": MISSING, "calendar_event_id": MISSING, "status": "draft"},
        {"start_time": None, "end_time": None, "calendar_event_id": None, "status": "draft"},
        {"title": EMOJI, "summary_notes": EMOJI * 20},
        {"title": RIGHT_TO_LEFT},
        {"title": COMBINING},
        {"title": CONTROL, "summary_notes": CONTROL},
        {"summary_notes": LONG_NOTES},
        {"ai_score": 0.87, "labels": ["board", {"name": "beta", "weights": [1, 2.5]}]},
        {"ai_score": None, "labels": []},
        {"status": "archived_by_ai"},
        {"status": MISSING},
        {"title": "", "summary_notes": ""},
        {"title": "Duplicate title"},
        {"title": "Duplicate title"},
        {"title": MISSING},
        {"title": None},
        {"updated_at": MISSING},
        {"created_at": MISSING, "created_by_user_id": MISSING},
        {"end_time": MISSING},
        {"end_time": _ends_early},
        {"workspace_id": None, "created_by_user_id": None},
    ),
    "action_items": (
        {"meeting_id": MISSING},
        {"meeting_id": None},
        {"completed_at": GO_ZERO_TIME, "is_completed": False, "status": "accepted"},
        {"due_date": lambda row: f"{row['due_date'][:10]}T17:00:00-07:00"},
        {"due_date": lambda row: f"{row['due_date'][:10]}T00:00:00Z"},
        {"due_date": MISSING, "completed_at": MISSING},
        {"due_date": None, "completed_at": None, "description": None},
        {"partner_context": _BIG_CONTEXT, "has_partner_assignment": True},
        {"partner_context": {}, "has_partner_assignment": True},
        {"partner_context": None},
        {"title": EMOJI},
        {"title": RIGHT_TO_LEFT, "description": COMBINING},
        {"title": CONTROL, "description": CONTROL},
        {"title": "", "description": ""},
        {"title": "Duplicate title"},
        {"title": "Duplicate title"},
        {"status": "snoozed"},
        {"status": MISSING, "is_completed": MISSING, "has_partner_assignment": MISSING},
        {"assigned_to_user_id": MISSING},
        {"ai_score": 1, "labels": ["urgent"], "origin": {"kind": "voice", "confidence": 0.5}},
        {"created_at": MISSING},
        {"updated_at": None},
    ),
    "calendar_events": (
        {"start_time": _day("start_time"), "end_time": _day("start_time", 1), "location": MISSING},
        {"start_time": _day("start_time"), "end_time": _day("start_time", 3), "description": None},
        {"start_time": _bare("start_time")},
        {"attendees": MISSING, "organizer": MISSING},
        {"attendees": None, "organizer": None},
        {"attendees": []},
        {"attendees": _with_comment},
        {"attendees": _first_attendee(status="delegated", type="chair")},
        {"attendees": _first_attendee(name=MISSING, status=None, email="")},
        {"linked_meetings": MISSING, "meeting_id": MISSING},
        {"linked_meetings": None, "meeting_id": None},
        {"meeting_id": MISSING},
        {"title": EMOJI, "location": "🏢"},
        {"title": RIGHT_TO_LEFT},
        {"title": COMBINING},
        {"title": CONTROL, "description": CONTROL},
        {"title": "", "description": "", "location": ""},
        {"title": MISSING},
        {"conference": {"provider": "meet", "phones": ["+41 44 000 00 00"]}, "color": 7},
        {"description": "<html><body><p>Agenda</p>" + LONG_NOTES + "</body></html>"},
        {"end_time": MISSING},
        {"title": "Duplicate title"},
        {"title": "Duplicate title"},
    ),
    "context_documents": (
        {"title": MISSING, "model_id": MISSING},
        {"title": None, "deleted_at": None},
        {"source_id": MISSING, "partner_app_id": MISSING, "source_name": MISSING},  # a first-party upload
        {"title": EMOJI, "platform_name": None},
        {"title": RIGHT_TO_LEFT},
        {"title": CONTROL, "context_type": ""},
        {"context_type": MISSING, "source_format": MISSING},
        {"source_format": "pdf"},
        {"ai_score": 3, "preprocessing": {"steps": ["scrub", "convert"], "took_ms": 12.5}},
        {"updated_at": MISSING},
        {"created_at": MISSING, "created_by_user_id": None},
    ),
    "participants": (
        {"email": MISSING, "name": EMOJI},
        {"email": None},
        {"name": MISSING},
        {"user_id": None},
        {"is_attended": MISSING, "role": "GUEST"},
        {"is_attended": None, "updated_at": MISSING},
        {"email": lambda row: f" {row['email'].upper()} "},
        {"rsvp": {"status": "yes"}},
        {"created_at": MISSING},
    ),
    "agenda_items": (
        {"presenter_details": MISSING, "presenters": MISSING},
        {"presenter_details": None, "presenters": []},
        {"time_allocation_minutes": MISSING, "description": None},
        {"time_allocation_minutes": 0},
        {"title": EMOJI, "sequence": "1.5"},
        {"title": RIGHT_TO_LEFT, "status": "skipped"},
        {"description": LONG_NOTES},
        {"content": {"blocks": [1, 2]}},
        {"updated_at": MISSING},
        {"created_at": MISSING},
    ),
}
"""Per stream, the patches that are dealt out to its rows in turn; a value may be a function of the row."""

QUIRK_CYCLE: Final = 37
"""The row with ordinal n gets patch number n % QUIRK_CYCLE, if there is one. Prime: cycles do not lock in."""


def patched(row: Row, patch: Mapping[str, Any]) -> Row:
    """A new row: `row` with the fields of `patch`, functions called with the row, `MISSING` ones left out."""
    merged = {**row, **{name: value(row) if callable(value) else value for name, value in patch.items()}}
    return {name: value for name, value in merged.items() if value is not MISSING}


def with_quirk(stream: str, number: int, row: Row) -> Row:
    """The row with the quirk that its ordinal deserves, if any."""
    position, patches = number % QUIRK_CYCLE, QUIRKS[stream]
    return patched(row, patches[position]) if position < len(patches) else patched(row, {})


# -------------------------------------------------------------------------------------------------- documents

_BODIES: Final = {
    # format: (head, line, tail): the bytes are head + line * lines + tail. Every head holds an e-mail
    # address, the personal data that the converted copy no longer has.
    "json": (
        '{{"number": {n}, "owner": "u{n}@example.com", "rows": [',
        '{{"n": {n}, "text": "ä 🚀"}}, ',
        "null]}}",
    ),
    "csv": ("id,owner,text\n{n},u{n}@example.com,first\n", '{n},,"a ""quoted"", text"\n', ""),
    "tsv": ("id\towner\ttext\n{n}\tu{n}@example.com\tfirst\n", "{n}\t\ttext\n", ""),
    "xml": ('<doc owner="u{n}@example.com">', "<row n='{n}'>&amp;</row>", "</doc>"),
    "html": ("<html><body><p>u{n}@example.com</p>", "<p>{n}</p>\n", "</body></html>"),
    "yaml": ("owner: u{n}@example.com\nrows:\n", "  - {n}\n", ""),
    "md": ("# Notes {n}\n\nu{n}@example.com\n\n", "- point {n}\n", ""),
    "txt": ("From: u{n}@example.com\n", "Line of document {n}.\n", ""),
}


@dataclass(frozen=True)
class File:
    """The recipe of a document's bytes and the name that its uploader gave; `content` and `header` make them.

    Attributes:
        source_format: one of SOURCE_FORMATS; shapes the generated text.
        number: makes the text unique; documents with equal format, number and lines have equal bytes.
        lines: how many generated lines; about 20 bytes each.
        raw: these exact bytes instead of a generated text.
        converted: whether preprocessing has made its copy.
        rewrites: how often the bytes were changed silently.
        name: the file name as the uploader gave it, None when the server sends no Content-Disposition.
    """

    source_format: str
    number: int
    lines: int
    raw: bytes | None = None
    converted: bool = False
    rewrites: int = 0
    name: str | None = None

    def content(self) -> bytes:
        """The bytes the content endpoint answers now."""
        if self.raw is not None:
            return self.raw + b"\n(converted)" * self.converted + b"\n(rewritten)" * self.rewrites
        number = self.number + 1_000_003 * self.rewrites
        head, line, tail = (part.format(n=number) for part in _BODIES[self.source_format])
        text = f"{head}{line * self.lines}{tail}".encode()
        return text.replace(b"@example.com", b"@[redacted]") if self.converted else text

    def header(self) -> str | None:
        """The Content-Disposition header (RFC 6266), None when there is none."""
        if self.name is None:
            return None
        if self.name.isascii() and self.name.isprintable():
            escaped = self.name.replace("\\", "\\\\").replace('"', '\\"')
            return f'attachment; filename="{escaped}"'
        return f"attachment; filename=\"document\"; filename*=UTF-8''{quote(self.name, safe='')}"


_RAW_FILES: Final = (
    b"",
    b"\xff\xfe\x00caf\xe9 \x80\x81 not UTF-8",
    b"\xef\xbb\xbfid,text\r\n1,byte order mark\r\n",
    "line\u2028separator\x0bvertical\x0cform".encode(),
)
BIG_FILE_BYTES: Final = 2_000_000


def file_for(rng: Random, number: int, source_format: str, status: object) -> File:
    """The file of the document with this ordinal: mostly small texts, some bytes that hurt."""
    name = FILE_NAMES[number % len(FILE_NAMES)]
    plain = File(
        source_format=source_format,
        number=number,
        lines=rng.randint(0, 400),
        converted=status in CONVERTED_STATUSES,
        name=name and name.replace("{suffix}", source_format).replace("{number}", str(number)),
    )
    position = number % 17
    if position in (11, 13):  # the same bytes in many documents
        return replace(plain, source_format="txt", number=0, lines=50, converted=False)
    if status != "complete":  # what is still to be converted must differ afterwards, so it is plain text
        return plain
    if number == 2:  # the one big file
        return replace(plain, raw=b"0123456789abcdef" * (BIG_FILE_BYTES // 16), converted=False)
    if position % 4 == 0:
        return replace(plain, raw=_RAW_FILES[position // 4 % len(_RAW_FILES)], converted=False)
    return plain
