"""Named things that go wrong: what the real server, its firewall, the network or other people may do meanwhile.

What lives here: the names, what each does, and how it is done to a question, an answer or the world. What never does: whose
request it happens to; that is the server's.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import Response

from contio_pipeline.sandbox.world import parse_time

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from contio_pipeline.sandbox.world import World

    Row = dict[str, Any]

Query = dict[str, str]

FOR_EVER: Final = 10**9
LISTS: Final = r"/user/(meetings|action-items|calendar/events|meetings/[^/]+/context)$"
ROWS: Final = r"/user/(meetings|action-items|calendar/events)$"
MEETINGS: Final = r"/user/meetings$"
CALENDAR: Final = r"/calendar/events$"
BODIES: Final = r"/content$"
JSON: Final = r"/user/(?!.*/content$)"
EVERYTHING: Final = r"/user/"

_BOMB_MB = 256
_LONGEST_SPAN = timedelta(days=60)
_HIGHEST_LIMIT = 50
_DRIP_SECONDS = 0.05


@dataclass
class Fault:
    """Something that goes wrong for the next `times` requests whose path matches.

    Attributes:
        path: a regular expression, searched in the request's path.
        status: the status answered instead of the real answer; None lets the real answer through.
        body: the body answered with `status`.
        headers: its headers.
        times: how often it happens; counts down to 0.
        delay: seconds to wait first.
        cut: drop the connection after this many bytes of the body.
        edit: makes the answer that is sent of the one that was due.
        later_pages: whether it happens to pages after the first only.
        query: makes the query that is answered of the one that was asked; None: it is refused.
        change: changes the world before the answer, given it and the name of the account that asks.
        alone: whether no other fault happens to the same request; those with names may come together.
    """

    path: str = ""
    status: int | None = None
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    delay: float = 0.0
    cut: int | None = None
    edit: Callable[[Response], Response] | None = None
    later_pages: bool = False
    query: Callable[[Query], Query | None] | None = None
    change: Callable[[World, str], object] | None = None
    alone: bool = True


class Cut(Response):
    """Sends the head (its Content-Length included, unless told not to) and the first bytes of an answer, then hangs up."""

    def __init__(self, whole: Response, size: int) -> None:
        super().__init__(bytes(whole.body)[:size], whole.status_code)
        self.raw_headers = whole.raw_headers

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send it, and return without the last part."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        # Returning without the last part makes uvicorn close the connection.


class _Slow(Response):
    """Sends the answer a byte at a time: each arrives in time, the whole never does."""

    def __init__(self, whole: Response, pause: float) -> None:
        super().__init__(whole.body, whole.status_code)
        self.raw_headers, self._pause = whole.raw_headers, pause

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for byte in bytes(self.body):
            await send({"type": "http.response.body", "body": bytes([byte]), "more_body": True})
            await asyncio.sleep(self._pause)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


# How an answer is changed ------------------------------------------------------------------------------------------------


def _with(answer: Response, body: bytes, **headers: str) -> Response:
    """The answer with another body; headers are named with underscores, an empty one is left out."""
    kept = {name: value for name, value in answer.headers.items() if name != "content-length"}
    new = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(body, answer.status_code, {name: value for name, value in (kept | new).items() if value})


def _bytes(change: Callable[[bytes], bytes], **headers: str) -> Callable[[Response], Response]:
    return lambda answer: _with(answer, change(bytes(answer.body)), **headers)


def _envelope(change: Callable[[Row], Any]) -> Callable[[Response], Response]:
    """Change the JSON of a successful answer; errors go through as they are."""

    def edit(answer: Response) -> Response:
        if answer.status_code != 200:  # noqa: PLR2004
            return answer
        value = json.loads(bytes(answer.body))
        changed = change(value)
        return _with(answer, json.dumps(value if changed is None else changed).encode())

    return edit


def _put(**fields: Any) -> Callable[[Response], Response]:
    return _envelope(lambda page: page.update(fields))


def _drop(name: str) -> Callable[[Response], Response]:
    return _envelope(lambda page: {key: value for key, value in page.items() if key != name})


def _items(change: Callable[[list[Any]], list[Any]]) -> Callable[[Response], Response]:
    return _envelope(lambda page: page | {"items": change(page["items"])})


def _first_row(**fields: Any) -> Callable[[Response], Response]:
    return _items(lambda items: [items[0] | fields, *items[1:]] if items else items)


def _shuffled(items: list[Any]) -> list[Any]:
    return random.sample(items, len(items))


def _without(row: Row, *names: str) -> Row:
    return {key: value for key, value in row.items() if key not in names}


def _older_again(items: list[Any]) -> list[Any]:
    return [*items, items[0] | {"title": "old", "updated_at": "2000-01-01T00:00:00Z"}] if items else items


def _huge_number(body: bytes) -> bytes:
    return body.replace(b'{"id":', b'{"weight":' + b"9" * 5000 + b',"id":', 1)


def _duplicate_keys(body: bytes) -> bytes:
    return body.replace(b'{"items":', b'{"items":[],"items":', 1)


def _unsized(answer: Response) -> Response:
    """Without a length the body's end is the connection's end, or a last chunk."""
    answer.raw_headers = [(name, value) for name, value in answer.raw_headers if name != b"content-length"]
    return answer


@cache
def _bomb_bytes() -> bytes:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(squeeze.compress(b" " * 2**20) for _ in range(_BOMB_MB)) + squeeze.flush()


def _bomb(answer: Response) -> Response:
    return _with(answer, _bomb_bytes(), content_encoding="gzip")


def _status(status: int, body: str = "", **headers: str) -> Callable[[Response], Response]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: Response(body, status, named)


def _partial(answer: Response) -> Response:
    return Response(bytes(answer.body)[:10], 206, {"content-type": "application/octet-stream"})


def _throttled(retry_after: Callable[[], str] | None = None) -> Callable[[Response], Response]:
    body = json.dumps({"error": "rate_limit_exceeded", "error_description": "Too many requests, slow down"})

    def edit(_: Response) -> Response:
        return Response(body, 429, {} if retry_after is None else {"retry-after": retry_after()})

    return edit


def _in_seconds(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


_HTML = "<!doctype html><html><body>Request blocked</body></html>"
_NOT_FOUND = json.dumps({"code": "not_found", "error": "Not found", "message": "Not found", "request_id": "0"})


# How a question is changed, or the world meanwhile -------------------------------------------------------------------------


def _asked(**fields: str) -> Callable[[Query], Query]:
    """Answer as if this had been asked; fields with an underscore in front are the server's own."""
    return lambda query: {**query, **fields}


def _span(query: Query) -> timedelta:
    start, end = (datetime.fromisoformat(query[name]) for name in ("start_date", "end_date"))
    return end - start


def _refuse_limit(query: Query) -> Query | None:
    return None if int(query.get("limit", 0)) > _HIGHEST_LIMIT else query


def _refuse_span(query: Query) -> Query | None:
    return None if _span(query) > _LONGEST_SPAN else query


def _clamp_span(query: Query) -> Query:
    if _span(query) <= _LONGEST_SPAN:
        return query
    return {**query, "end_date": (datetime.fromisoformat(query["start_date"]) + _LONGEST_SPAN).isoformat()}


def _insert_front(world: World, _account: str) -> None:
    world.insert("meetings", start_time=_at(world, days=400))


def _insert_end(world: World, account: str) -> None:
    times = [parse_time(row.get("start_time")) for row in world.items(account, "meetings")]
    first = min((time for time in times if time and time.year > 1000), default=world.now)  # noqa: PLR2004 - some are 0001
    world.insert("meetings", start_time=(first - timedelta(days=1)).isoformat(timespec="seconds"))


def _delete_front(world: World, account: str) -> None:
    world.delete("meetings", ids=[row["id"] for row in world.items(account, "meetings")[:1]])


def _swap(world: World, account: str) -> None:
    with world.lock:
        _delete_front(world, account)
        _insert_end(world, account)


def _move_last(world: World, account: str) -> None:
    dated = [row["id"] for row in world.items(account, "meetings") if row.get("start_time")]
    world.update("meetings", ids=dated[-1:], start_time=_at(world, days=401))


def _update_last(world: World, account: str) -> None:
    world.update("meetings", ids=[row["id"] for row in world.items(account, "meetings")[-1:]])


def _at(world: World, *, days: int) -> str:
    return (world.now + timedelta(days=days)).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Named:
    """A fault that can be asked for by name: what it does, to which paths, and how (see `Fault`)."""

    doc: str
    path: str
    edit: Callable[[Response], Response] | None = None
    delay: float = 0.0
    cut: int | None = None
    later_pages: bool = False
    query: Callable[[Query], Query | None] | None = None
    change: Callable[[World, str], object] | None = None


NAMED: Final[Mapping[str, Named]] = {
    # Lists.
    "page-short": Named("a page lacks its last row", LISTS, _items(lambda items: items[:-1])),
    "page-empty": Named("a page has no rows, though `total` says so", LISTS, _put(items=[])),
    "list-empty": Named("the list is empty, and says so", ROWS, _put(items=[], total=0)),
    "list-unordered": Named("each page is in another order", LISTS, _items(_shuffled)),
    "list-404": Named("the list is not found", ROWS, _status(404, _NOT_FOUND)),
    "limit-refused": Named("limit=100 is refused", LISTS, query=_refuse_limit),
    "total-missing": Named("`total` is missing", LISTS, _drop("total")),
    "total-text": Named("`total` is a string", LISTS, _envelope(lambda page: page | {"total": str(page["total"])})),
    "total-zero": Named("`total` is 0 over rows", LISTS, _put(total=0)),
    "total-huge": Named("`total` is huge", LISTS, _put(total=10**12)),
    "total-more": Named(
        "`total` counts a row more", LISTS, _envelope(lambda page: page | {"total": page["total"] + 1})
    ),
    "items-null": Named("`items` is null", LISTS, _put(items=None)),
    "items-missing": Named("`items` is missing", LISTS, _drop("items")),
    "items-object": Named("`items` is an object", LISTS, _put(items={})),
    "items-with-null": Named("a row is null", LISTS, _items(lambda items: [None, *items[1:]])),
    "offset-ignored": Named("`offset` is ignored", LISTS, query=_asked(offset="0")),
    "offset-ignored-endless": Named(
        "`offset` is ignored and `total` is huge", LISTS, _put(total=10**12), query=_asked(offset="0")
    ),
    "limit-capped": Named("no page has more than two rows", LISTS, query=_asked(limit="2")),
    "order-random": Named("the list is in another order at each request", LISTS, query=_asked(_order="random")),
    "order-by-change": Named("the list is ordered by time of change", ROWS, query=_asked(_order="updated_at")),
    "undated-unlisted": Named("rows without a date are not listed", ROWS, query=_asked(_undated="no")),
    "list-thin": Named(
        "list rows lack notes and descriptions",
        ROWS,
        _items(lambda items: [_without(item, "summary_notes", "description") for item in items]),
    ),
    "calendar-refused": Named(
        f"a calendar range of more than {_LONGEST_SPAN.days} days is refused", CALENDAR, query=_refuse_span
    ),
    "calendar-clamped": Named(
        f"of a calendar range only the first {_LONGEST_SPAN.days} days are answered", CALENDAR, query=_clamp_span
    ),
    # While pages are read.
    "paging-insert": Named("a row is inserted at the front", MEETINGS, later_pages=True, change=_insert_front),
    "paging-append": Named("a row is inserted at the end", MEETINGS, later_pages=True, change=_insert_end),
    "paging-delete": Named("the first row is deleted", MEETINGS, later_pages=True, change=_delete_front),
    "paging-swap": Named(
        "the first row is deleted and one appended, so that no count shows it",
        MEETINGS,
        later_pages=True,
        change=_swap,
    ),
    "paging-move": Named("the last row moves to the front", MEETINGS, later_pages=True, change=_move_last),
    "paging-update": Named("the last row changes", MEETINGS, later_pages=True, change=_update_last),
    # Rows.
    "row-without-id": Named("a row has no id", ROWS, _first_row(id=None)),
    "row-id-number": Named("a row's id is a number", ROWS, _first_row(id=7)),
    "row-wrong-type": Named("a row's time is a list", ROWS, _first_row(start_time=[], created_at=[])),
    "row-bad-time": Named("a row's time is not one", ROWS, _first_row(start_time="soon", created_at="soon")),
    "row-nan": Named("a row holds NaN", ROWS, _first_row(weight=float("nan"))),
    "row-huge-number": Named("a row holds a number of 5,000 digits", ROWS, _bytes(_huge_number)),
    "row-not-utf8": Named(
        "a row's text is not UTF-8", ROWS, _bytes(lambda body: body.replace(b'"title":"', b'"title":"\xff', 1))
    ),
    "row-lone-surrogate": Named("a row's text holds half a character", ROWS, _first_row(title="\ud83d")),
    "row-newer-first": Named("the first row comes again, in an older version, at the end", ROWS, _items(_older_again)),
    # Answers.
    "429": Named("too many requests, without Retry-After", EVERYTHING, _throttled()),
    "429-seconds": Named("too many requests, one second", EVERYTHING, _throttled(lambda: "1")),
    "429-date": Named("too many requests, until a date", EVERYTHING, _throttled(lambda: _in_seconds(1))),
    "429-nonsense": Named("too many requests, until nonsense", EVERYTHING, _throttled(lambda: "later")),
    "429-zero": Named("too many requests, zero seconds", EVERYTHING, _throttled(lambda: "0")),
    "429-day": Named("too many requests, for a day", EVERYTHING, _throttled(lambda: "86400")),
    "500": Named("internal error", EVERYTHING, _status(500, "{}")),
    "502": Named("bad gateway, in HTML", EVERYTHING, _status(502, _HTML)),
    "503": Named("unavailable", EVERYTHING, _status(503)),
    "504": Named("gateway timeout", EVERYTHING, _status(504)),
    "waf-403": Named("a firewall's 403, in HTML", EVERYTHING, _status(403, _HTML, content_type="text/html")),
    "html": Named("HTML with status 200", JSON, _status(200, _HTML, content_type="text/html")),
    "no-body": Named("no body with status 200", JSON, _status(200)),
    "204": Named("no content", EVERYTHING, _status(204)),
    "json-cut": Named("half of the JSON, as if whole", JSON, _bytes(lambda body: body[: len(body) // 2])),
    "json-trailing": Named("JSON, and something after it", JSON, _bytes(lambda body: body + b"{}")),
    "json-bom": Named("a byte order mark before the JSON", JSON, _bytes(lambda body: b"\xef\xbb\xbf" + body)),
    "json-duplicate-keys": Named("`items` twice, the first empty", LISTS, _bytes(_duplicate_keys)),
    "json-not-utf8": Named("invalid UTF-8", JSON, _bytes(lambda body: body[:-1] + b"\xff" + body[-1:])),
    # The wire.
    "gzip": Named("compressed", EVERYTHING, _bytes(gzip.compress, content_encoding="gzip")),
    "deflate": Named("compressed otherwise", EVERYTHING, _bytes(zlib.compress, content_encoding="deflate")),
    "gzip-corrupt": Named(
        "said to be compressed, and is not", EVERYTHING, _bytes(lambda body: body, content_encoding="gzip")
    ),
    "gzip-bomb": Named(f"{_BOMB_MB} MB of spaces, compressed", JSON, _bomb),
    "chunked": Named("without a length", EVERYTHING, _unsized),
    "cut-off": Named("the connection ends in the body", EVERYTHING, cut=20),
    "cut-off-unsized": Named("the connection ends in a body without a length", EVERYTHING, _unsized, cut=20),
    "reset": Named("the connection ends before the body", EVERYTHING, cut=0),
    "hang": Named("no answer for a minute", EVERYTHING, delay=60),
    "drip": Named("a byte at a time", JSON, lambda answer: _Slow(answer, _DRIP_SECONDS)),
    "redirect": Named("to another host", EVERYTHING, _status(302, location="http://127.0.0.2:9/elsewhere")),
    "redirect-loop": Named("to itself", EVERYTHING, _status(307, location="")),
    # Documents.
    "content-html": Named(
        "a page in place of a document", BODIES, _status(200, _HTML, content_type="text/html; charset=utf-8")
    ),
    "content-half": Named(
        "half a document, without a length", BODIES, _bytes(lambda body: body[: len(body) // 2], content_length="")
    ),
    "content-partial": Named("a part of a document, with status 206", BODIES, _partial),
    "content-404": Named("a document is gone", BODIES, _status(404, _NOT_FOUND)),
    "content-empty": Named("a document has no bytes", BODIES, _bytes(lambda _: b"")),
}


def named(name: str, times: int = FOR_EVER) -> Fault:
    """The fault of that name, for the next `times` requests that it concerns.

    Raises:
        KeyError: there is none.
    """
    return Fault(
        times=times, alone=False, **{name: value for name, value in vars(NAMED[name]).items() if name != "doc"}
    )
