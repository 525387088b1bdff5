"""The server that `make bench` measures against: the Partner User API, as fast as plain asyncio can answer it.

    python tests/load_server.py [--meetings 10000] [--latency-ms 40] [--rate 1000/300] …

All rows are JSON bytes before the first request comes, so that a page is one join of bytes and what is measured is the client.
It is no judge of the rules: `contio_pipeline/sandbox` is. Prints one JSON line, its address and a token, when it answers; ends
when its standard input does. What `/_load/…` tells and does is `Server.control`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import sys
import time
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Row = dict[str, Any]

DAYS = 365
"""Rows lie in so many days before the end."""

SCOPES = "profile meetings:read action-items:read calendar:read context:read"
CLIENT_ID, CLIENT_SECRET = "bench", "cto_secret_of_nobody"
ROOT, CONTROL = "/v1/partner/user/", "/_load/"
_MOST_ROWS, _USUAL_ROWS = 100, 25
_LATELY = timedelta(days=7)
_WORDS = 4000
_BODY_BYTES = 6000
"""Of a document, on average."""

# Rows ---------------------------------------------------------------------------------------------------------------------
#
# Each is made of its number and version alone, so that whoever knows them can make it again.


def when(moment: datetime) -> str:
    """An instant as the API writes it; such texts sort by time."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def identity(kind: int, number: int) -> str:
    """A UUID, without any order that could be compressed."""
    digits = f"{random.Random(kind << 40 | number).getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


@cache
def _words() -> tuple[list[str], list[float]]:
    """Made-up words, some far more frequent than others, as in any language."""
    dice = random.Random(1)
    syllables = [first + vowel for first in "bdfgklmnprstvw" for vowel in ("a", "e", "i", "o", "u", "an", "er")]
    words = ["".join(dice.choices(syllables, k=dice.randint(1, 4))) for _ in range(_WORDS)]
    total, weights = 0.0, []
    for rank in range(1, _WORDS + 1):
        total += 1 / rank
        weights.append(total)
    return words, weights


def text(dice: random.Random, words: int) -> str:
    """So many words."""
    known, weights = _words()
    return " ".join(dice.choices(known, cum_weights=weights, k=words))


def meeting(number: int, start: datetime, version: int = 0) -> Row:
    """About 1.9 KB."""
    dice = random.Random(number)
    return {
        "id": identity(1, number),
        "title": f"{text(dice, 4)} {version or ''}".strip(),
        "summary_notes": f"## Summary\n\n{text(dice, 215)}",
        "start_time": when(start),
        "end_time": when(start + timedelta(minutes=dice.choice([30, 45, 60]))),
        "status": "completed",
        "workspace_id": identity(9, 1),
        "created_by_user_id": identity(8, number % 40),
        "calendar_event_id": identity(3, number),
        "created_at": when(start - timedelta(days=3)),
        "updated_at": when(start + timedelta(hours=1, minutes=version)),
    }


def action_item(number: int, created: datetime, of: str, version: int = 0) -> Row:
    """About 0.8 KB; one of five is open, one of ten holds what a partner stored with it."""
    dice = random.Random(number)
    done = number % 5 > 0
    row: Row = {
        "id": identity(2, number),
        "meeting_id": of,
        "assigned_to_user_id": identity(8, number % 40),
        "title": f"{text(dice, 6)} {version or ''}".strip(),
        "description": text(dice, 40),
        "status": "completed" if done else "in_progress",
        "is_completed": done,
        "due_date": when(created + timedelta(days=dice.randint(1, 21)))[:10],
        "has_partner_assignment": number % 10 == 0,
        "created_at": when(created),
        "updated_at": when(created + timedelta(days=1, minutes=version)),
    }
    if done:
        row["completed_at"] = when(created + timedelta(hours=dice.randint(1, 200)))
    if number % 10 == 0:
        row["partner_context"] = {"ticket": f"T-{number}", "labels": [text(dice, 1), text(dice, 1)]}
    return row


def event(number: int, start: datetime, of: str | None, version: int = 0) -> Row:
    """Three to nine attendees."""
    dice = random.Random(number)
    people = [
        {
            "email": f"{known.replace(' ', '.')}@example.com",
            "name": known.title(),
            "status": dice.choice(["accepted", "declined", "tentative", "needsAction"]),
            "type": "required",
        }
        for known in (text(dice, 2) for _ in range(dice.randint(3, 9)))
    ]
    row: Row = {
        "id": identity(3, number),
        "title": f"{text(dice, 4)} {version or ''}".strip(),
        "description": text(dice, 50),
        "start_time": when(start),
        "end_time": when(start + timedelta(minutes=30)),
        "location": f"https://meet.example.com/{dice.getrandbits(40):010x}",
        "organizer": people[0],
        "attendees": people,
        "linked_meetings": [of] if of else [],
    }
    return row | ({"meeting_id": of} if of else {})


def document(number: int, created: datetime, of: str, version: int = 0) -> Row:
    """What the list says of a document; `body` is what is in it."""
    dice = random.Random(number)
    return {
        "id": identity(4, number),
        "model_id": of,
        "meeting_id": of,
        "workspace_id": identity(9, 1),
        "title": text(dice, 5),
        "context_type": "brief",
        "source_format": "md",
        "file_status": "complete",
        "source_id": identity(7, 1),
        "source_name": "Bench",
        "platform_name": "crm",
        "created_by_user_id": identity(8, number % 40),
        "created_at": when(created),
        "updated_at": when(created + timedelta(minutes=version)),
    }


@cache
def _prose() -> bytes:
    return text(random.Random(2), 20_000).encode()


def body(number: int, version: int) -> bytes:
    """The bytes of a document: other ones for each number and version."""
    prose = _prose()
    begin = number * 977 % (len(prose) - 2 * _BODY_BYTES)
    return b"# Document %d, version %d\n\n" % (number, version) + prose[begin : begin + _BODY_BYTES]


# What is served -----------------------------------------------------------------------------------------------------------


@dataclass
class Served:
    """One list: JSON rows in the order of their dates."""

    dates: list[str] = field(default_factory=list)
    rows: list[bytes] = field(default_factory=list)
    place: dict[str, int] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)

    def add(self, row: Row, date: str, number: int) -> None:
        """Take the next row, not dated before the last."""
        self.place[row["id"]] = len(self.rows)
        self.dates.append(date)
        self.numbers.append(number)
        self.rows.append(json.dumps(row).encode())

    def within(self, start: str, end: str) -> list[bytes]:
        """The rows of these dates; an empty text is no bound."""
        if not start and not end:
            return self.rows
        return self.rows[bisect_left(self.dates, start) : bisect_right(self.dates, end) if end else None]


class World:
    """What one account sees; `now` is the end of all dates."""

    def __init__(self, *, meetings: int, action_items: int, events: int, documents: int, now: datetime) -> None:
        self.now = now.replace(microsecond=0)
        self.version = 0
        self.lists = {"meetings": Served(), "action-items": Served(), "calendar/events": Served()}
        self.documents: dict[str, list[tuple[int, int, Row]]] = {}
        """Meeting -> number, version and row of each of its documents."""
        for number, moment in enumerate(self._moments(meetings)):
            row = meeting(number, moment)
            self.lists["meetings"].add(row, row["start_time"], number)
        for number, moment in enumerate(self._moments(action_items)):
            row = action_item(number, moment, self._meeting_of(number, action_items))
            self.lists["action-items"].add(row, row["created_at"], number)
        for number, moment in enumerate(self._moments(events)):
            row = event(number, moment, self._meeting_of(number, events) or None)
            self.lists["calendar/events"].add(row, row["start_time"], number)
        ids = list(self.lists["meetings"].place)
        pairs = min(documents // 2, len(ids))
        for pair in range(pairs):
            place = (pair + 1) * len(ids) // pairs - 1  # the last meeting has some
            created = datetime.fromisoformat(self.lists["meetings"].dates[place])
            two = [(number, 0, document(number, created, ids[place])) for number in (2 * pair, 2 * pair + 1)]
            self.documents[ids[place]] = two

    def _moments(self, count: int) -> list[datetime]:
        begin = self.now - timedelta(days=DAYS)
        step = timedelta(days=DAYS) / (count or 1)
        return [begin + step * place for place in range(count)]

    def _meeting_of(self, number: int, count: int) -> str:
        """The meeting of about that time."""
        meetings = self.lists["meetings"].place
        return identity(1, number * len(meetings) // count) if meetings else ""

    def open_items(self) -> list[bytes]:
        """Action items that are not done."""
        served = self.lists["action-items"]
        return [row for number, row in zip(served.numbers, served.rows, strict=True) if number % 5 == 0]

    def change(self, share: float) -> Counter[str]:
        """Make another version of this share of the rows of the last days, of each kind one at least; says how many."""
        self.version += 1
        since, changed = when(self.now - _LATELY), Counter[str]()
        for name, served in self.lists.items():
            begin = bisect_left(served.dates, since)
            lately = range(begin, len(served.rows))
            for place in random.Random(self.version).sample(lately, min(len(lately), math.ceil(share * len(lately)))):
                row = json.loads(served.rows[place]) | {"title": f"{name}, version {self.version}"}
                if "updated_at" in row:
                    row["updated_at"] = when(self.now + timedelta(seconds=self.version))
                served.rows[place] = json.dumps(row).encode()
                changed[name] += 1
        owners = [
            owner for owner, date in zip(self.lists["meetings"].place, self._dates(), strict=True) if date >= since
        ]
        mine = [owner for owner in owners if owner in self.documents]
        for owner in mine[: math.ceil(share * len(mine))]:
            number, _, row = self.documents[owner][0]
            row = row | {"updated_at": when(self.now + timedelta(seconds=self.version))}
            self.documents[owner][0] = number, self.version, row
            changed["documents"] += 1
        return changed

    def _dates(self) -> list[str]:
        return self.lists["meetings"].dates


# Counting -----------------------------------------------------------------------------------------------------------------


@dataclass
class Counts:
    """What was asked since the last reset; all requests to the API itself, refused ones too."""

    kinds: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    peak: int = 0
    bytes: int = 0
    targets: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    lists: dict[tuple[str, ...], list[int]] = field(default_factory=dict)
    """A list and its filters -> the rows it holds, and how many of its pages were asked for."""
    cpu: float = field(default_factory=time.process_time)

    def most_in(self, window: float) -> int:
        """The most requests in any window of time."""
        most, begin = 0, 0
        for end, moment in enumerate(self.times):
            while self.times[begin] <= moment - window:
                begin += 1
            most = max(most, end - begin + 1)
        return most

    def used(self, limit: int, window: float) -> float | None:
        """The share of the allowed requests that was sent in whole windows from the first request on; None if none is whole."""
        whole = int((self.times[-1] - self.times[0]) / window) if self.times else 0
        if not whole:
            return None
        ends = self.times[0] + whole * window
        return bisect_left(self.times, ends) / (limit * whole)

    def told(self, limit: int, window: float) -> dict[str, Any]:
        """As JSON.

        `rows` are those of the lists that were read, each list counted once, and the documents; `least` is how many requests
        they cost at least: full pages of 100, one for the profile, one for each document. A list of which fewer pages were asked
        for than it has was only looked into.
        """
        whole = [(key[0], rows) for key, (rows, asked) in self.lists.items() if asked * _MOST_ROWS >= rows]
        pages: Counter[str] = Counter()
        for kind, rows in whole:
            pages[kind] += max(1, math.ceil(rows / _MOST_ROWS))
        contents = len({target for target in self.targets if target.endswith("/content")})
        return {
            "requests": sum(self.kinds.values()),
            "kinds": self.kinds,
            "refused": self.refused,
            "peak_in_flight": self.peak,
            "most_in_a_window": self.most_in(window),
            "used": self.used(limit, window),
            "bytes": self.bytes,
            "rows": sum(rows for _, rows in whole) + contents,
            "least": pages.total() + contents + bool(self.kinds["profile"]),
            "lists": {kind: sum(rows for one, rows in whole if one == kind) for kind in pages},
            "cpu": time.process_time() - self.cpu,
        }


# HTTP ---------------------------------------------------------------------------------------------------------------------


class Server:
    """Answers, as bytes; one account."""

    def __init__(self, world: World, *, latency: float, limit: int, window: float) -> None:
        self.world, self.latency, self.limit, self.window = world, latency, limit, window
        self.counts = Counts()
        self.in_flight = 0
        self._stamps: deque[float] = deque()
        self._issued = 0
        self._refresh: set[str] = set()
        self.bearers = {f"Bearer {self._issue('at')}".encode()}
        self.token = next(iter(self.bearers)).decode().removeprefix("Bearer ")

    def _issue(self, kind: str) -> str:
        self._issued += 1
        return f"cto_{kind}_v1_bench{self._issued:06d}"

    def answer(self, method: str, target: str, bearer: bytes, posted: bytes) -> tuple[bytes, float]:
        """The whole answer, and how long it is to be held back."""
        split = urlsplit(target)
        path, query = split.path, dict(parse_qsl(split.query))
        if path.startswith(CONTROL):
            return _json(self.control(path.removeprefix(CONTROL), query)), 0
        if path == "/oauth2/token":
            return self._exchange(dict(parse_qsl(posted.decode()))), self.latency
        counts = self.counts
        counts.times.append(now := time.monotonic())
        path = path.removeprefix(ROOT)
        kind = _kind(path)
        counts.kinds[kind] += 1
        if wait := self._wait(now):
            counts.refused += 1
            told = {"error": "rate_limit_exceeded", "error_description": "Too many requests"}
            return _json(told, b"429 Too Many Requests", b"Retry-After: %d\r\n" % math.ceil(wait)), self.latency
        counts.targets.append(target)
        if method != "GET" or bearer not in self.bearers:
            return _error(b"401 Unauthorized", "unauthorized"), self.latency
        answer = self._found(path, kind, query)
        counts.bytes += len(answer)
        return answer, self.latency

    def _wait(self, now: float) -> float:
        """Seconds until a request is allowed; 0 for now. A refused one counts too."""
        if not self.limit:
            return 0
        stamps = self._stamps
        while stamps and stamps[0] <= now - self.window:
            stamps.popleft()
        stamps.append(now)
        return stamps[-self.limit - 1] + self.window - now if len(stamps) > self.limit else 0

    def _exchange(self, form: dict[str, str]) -> bytes:
        """RFC 6749, section 6, with rotation: a token is good once."""
        given = form.get("refresh_token", "")
        if given not in self._refresh:
            return _json({"error": "invalid_grant", "error_description": "used or unknown"}, b"400 Bad Request")
        self._refresh.remove(given)
        access, fresh = self._issue("at"), self._issue("rt")
        self._refresh.add(fresh)
        self.bearers.add(f"Bearer {access}".encode())
        return _json(
            {
                "access_token": access,
                "token_type": "Bearer",
                "expires_in": 86_400,
                "scope": SCOPES,
                "refresh_token": fresh,
            }
        )

    def _found(self, path: str, kind: str, query: dict[str, str]) -> bytes:
        world, parts = self.world, path.split("/")
        if kind == "profile":
            return _json(
                {"id": identity(8, 1), "display_name": "Bench", "email": "bench@example.com", "timezone": "UTC"}
            )
        if kind in world.lists:
            bounds = query.get("start_date", ""), query.get("end_date", "")
            if query.get("is_completed") == "false":
                return self._page(world.open_items(), (kind, "open"), query)
            return self._page(world.lists[kind].within(*bounds), (kind, *bounds), query)
        if kind == "context":
            rows = [json.dumps(row).encode() for _, _, row in world.documents.get(parts[1], ())]
            return self._page(rows, (kind, parts[1]), query)
        return self._one(parts, kind) or _error(b"404 Not Found", "not_found")

    def _one(self, parts: list[str], kind: str) -> bytes:
        """A row by its id, or the bytes of a document; nothing where there is none."""
        if kind == "row":
            served = self.world.lists["/".join(parts[:-1])]
            place = served.place.get(parts[-1])
            return b"" if place is None else _whole(served.rows[place])
        found = [one for one in self.world.documents.get(parts[1], ()) if one[2]["id"] == parts[3]] if parts[3:] else []
        for number, version, row in found:
            if kind == "document":
                return _json(row)
            name = b'Content-Disposition: attachment; filename="%d.md"\r\n' % number
            return _whole(body(number, version), b"200 OK", name, b"text/markdown")
        return b""

    def _page(self, rows: list[bytes], key: tuple[str, ...], query: dict[str, str]) -> bytes:
        limit, offset = min(int(query.get("limit", _USUAL_ROWS)), _MOST_ROWS), int(query.get("offset", "0"))
        self.counts.lists.setdefault(key, [0, 0])[1] += 1
        self.counts.lists[key][0] = len(rows)
        items = b",".join(rows[offset : offset + limit])
        return _whole(b'{"items":[%b],"total":%d,"limit":%d,"offset":%d}' % (items, len(rows), limit, offset))

    def control(self, what: str, query: dict[str, str]) -> Any:
        """What a measurement asks for.

        counts: what was asked since the last `reset`. targets: each path that was asked for, in order. reset: count from
        nothing; `limit=0` lifts the rate limit, `limit=1000` sets one. change: another version of `share` of the rows of the
        last seven days. login: a refresh token, as after a user's consent.
        """
        told: Any = {}
        match what:
            case "counts":
                told = self.counts.told(self.limit, self.window)
            case "targets":
                told = self.counts.targets
            case "reset":
                self.counts = Counts()
                self._stamps.clear()
                self.limit = int(query.get("limit", self.limit))
            case "change":
                told = self.world.change(float(query.get("share", "0.01")))
            case "login":
                self._refresh.add(told := self._issue("rt"))
            case _:
                told = {"error": f"there is no /_load/{what}"}
        return told


def _kind(path: str) -> str:
    """What is asked for, by its path."""
    match path.split("/"):
        case ["meetings", _, "context"]:
            return "context"
        case ["meetings", _, "context", _]:
            return "document"
        case ["meetings", _, "context", _, "content"]:
            return "content"
        case ["meetings" | "action-items", _] | ["calendar", "events", _]:
            return "row"
    return path


def _whole(content: bytes, status: bytes = b"200 OK", headers: bytes = b"", kind: bytes = b"application/json") -> bytes:
    return b"HTTP/1.1 %b\r\nDate: %b\r\nContent-Type: %b\r\n%bContent-Length: %d\r\n\r\n%b" % (
        status,
        _date(int(time.time())),
        kind,
        headers,
        len(content),
        content,
    )


@cache
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()


def _json(value: Any, status: bytes = b"200 OK", headers: bytes = b"") -> bytes:
    return _whole(json.dumps(value).encode(), status, headers)


def _error(status: bytes, code: str) -> bytes:
    return _json({"code": code, "error": code, "request_id": "bench"}, status)


class Connection(asyncio.Protocol):
    """One connection, kept alive; a client sends one request after the other."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (ends := self._received.find(b"\r\n\r\n")) >= 0:
            line, _, rest = self._received[:ends].partition(b"\r\n")
            headers = dict(_header(one) for one in rest.split(b"\r\n"))
            whole = ends + 4 + int(headers.get(b"content-length", b"0"))
            if len(self._received) < whole:
                return
            posted, self._received = self._received[ends + 4 : whole], self._received[whole:]
            method, target, _ = line.decode("ascii").split(" ")
            server = self._server
            server.in_flight += 1
            if not target.startswith(CONTROL):
                server.counts.peak = max(server.counts.peak, server.in_flight)
            answer, wait = server.answer(method, target, headers.get(b"authorization", b""), posted)
            if wait:
                asyncio.get_running_loop().call_later(wait, self._send, answer)
            else:
                self._send(answer)

    def _send(self, answer: bytes) -> None:
        self._server.in_flight -= 1
        self._transport.write(answer)


def _header(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name.lower(), value.strip()


def rate(given: str) -> tuple[int, float]:
    """`1000/300`: so many requests in so many seconds; `off` for no limit."""
    if given == "off":
        return 0, 300.0
    limit, _, seconds = given.partition("/")
    if int(limit) < 1 or not float(seconds) > 0:
        raise ValueError(given)
    return int(limit), float(seconds)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What is served, and how."""
    add = parser.add_argument
    add("--meetings", type=int, default=10_000, help="meetings in a year (%(default)s)")
    add("--action-items", type=int, default=10_000, help="action items in a year (%(default)s)")
    add("--events", type=int, default=2_500, help="calendar events in a year (%(default)s)")
    add("--documents", type=int, default=3_000, help="context documents, two of a meeting (%(default)s)")
    add("--end", type=datetime.fromisoformat, help="the end of that year, an instant with a zone (now)")
    add(
        "--latency-ms", type=float, default=0, help="milliseconds that each answer is held back: what the network takes"
    )
    add(
        "--rate",
        type=rate,
        default=(0, 300.0),
        metavar="N/SECONDS",
        help="answer 429 beyond so many requests in any so many seconds; the API's is 1000/300, 1000/30 is the same in a "
        "tenth of the time, 1000/3 in a hundredth, where the machine can do 333 a second (off)",
    )


async def serve(server: Server) -> None:
    """Answer until standard input ends."""
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: Connection(server), "127.0.0.1", 0)
    over = asyncio.Event()

    def ended() -> None:
        if not os.read(sys.stdin.fileno(), 1):
            over.set()

    loop.add_reader(sys.stdin.fileno(), ended)
    port = listening.sockets[0].getsockname()[1]
    print(json.dumps({"url": f"http://127.0.0.1:{port}", "token": server.token}), flush=True)
    await over.wait()
    listening.close()


def main() -> int:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--core", type=int, help="the processor to stay on, where the system lets one choose")
    options = parser.parse_args()
    if options.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {options.core})
    world = World(
        meetings=options.meetings,
        action_items=options.action_items,
        events=options.events,
        documents=options.documents,
        now=options.end or datetime.now(UTC),
    )
    limit, window = options.rate
    asyncio.run(serve(Server(world, latency=options.latency_ms / 1000, limit=limit, window=window)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
