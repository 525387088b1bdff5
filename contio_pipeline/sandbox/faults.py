"""Named things that go wrong: what the real server, its firewall or the network may do to an answer.

What lives here: the names, what each does, and how it is done to an answer. What never does: whose request it happens to;
that is the server's.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.types import Receive, Scope, Send

    Row = dict[str, Any]

FOR_EVER: Final = 10**9
LISTS: Final = r"/user/(meetings|action-items|calendar/events|meetings/[^/]+/context)$"
ROWS: Final = r"/user/(meetings|action-items|calendar/events)$"
BODIES: Final = r"/content$"
JSON: Final = r"/user/(?!.*/content$)"
EVERYTHING: Final = r"/user/"

_BOMB_MB = 256
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
    """

    path: str = ""
    status: int | None = None
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    delay: float = 0.0
    cut: int | None = None
    edit: Callable[[Response], Response] | None = None


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


def _duplicate_keys(body: bytes) -> bytes:
    return body.replace(b'{"items":', b'{"items":[],"items":', 1)


def _unsized(answer: Response) -> Response:
    """Without a length the body's end is the connection's end, or a last chunk."""
    answer.raw_headers = [(name, value) for name, value in answer.raw_headers if name != b"content-length"]
    return answer


def _bomb(answer: Response) -> Response:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    body = b"".join(squeeze.compress(b" " * 2**20) for _ in range(_BOMB_MB)) + squeeze.flush()
    return _with(answer, body, content_encoding="gzip")


def _status(status: int, body: str = "", **headers: str) -> Callable[[Response], Response]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: Response(body, status, named)


def _throttled(retry_after: Callable[[], str] | None = None) -> Callable[[Response], Response]:
    body = json.dumps({"error": "rate_limit_exceeded", "error_description": "Too many requests, slow down"})

    def edit(_: Response) -> Response:
        return Response(body, 429, {} if retry_after is None else {"retry-after": retry_after()})

    return edit


def _in_seconds(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


_HTML = "<!doctype html><html><body>Request blocked</body></html>"
_NOT_FOUND = json.dumps({"code": "not_found", "error": "Not found", "message": "Not found", "request_id": "0"})


@dataclass(frozen=True)
class Named:
    """A fault that can be asked for by name: what it does, to which paths, and how."""

    doc: str
    path: str
    edit: Callable[[Response], Response] | None = None
    delay: float = 0.0
    cut: int | None = None


NAMED: Final[Mapping[str, Named]] = {
    # Lists.
    "page-short": Named("a page lacks its last row", LISTS, _items(lambda items: items[:-1])),
    "page-empty": Named("a page has no rows, though `total` says so", LISTS, _put(items=[])),
    "list-empty": Named("the list is empty, and says so", ROWS, _put(items=[], total=0)),
    "list-unordered": Named("each page is in another order", LISTS, _items(_shuffled)),
    "list-404": Named("the list is not found", ROWS, _status(404, _NOT_FOUND)),
    "limit-refused": Named(
        "limit=100 is refused", LISTS, _status(400, '{"code":"invalid_query_parameters","error":"limit"}')
    ),
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
    # Rows.
    "row-without-id": Named("a row has no id", ROWS, _first_row(id=None)),
    "row-id-number": Named("a row's id is a number", ROWS, _first_row(id=7)),
    "row-wrong-type": Named("a row's time is a list", ROWS, _first_row(start_time=[], created_at=[])),
    "row-bad-time": Named("a row's time is not one", ROWS, _first_row(start_time="soon", created_at="soon")),
    "row-nan": Named("a row holds NaN", ROWS, _first_row(weight=float("nan"))),
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
    "content-404": Named("a document is gone", BODIES, _status(404, _NOT_FOUND)),
    "content-empty": Named("a document has no bytes", BODIES, _bytes(lambda _: b"")),
}


def named(name: str, times: int = FOR_EVER) -> Fault:
    """The fault of that name, for the next `times` requests that it concerns.

    Raises:
        KeyError: there is none.
    """
    what = NAMED[name]
    return Fault(what.path, times=times, delay=what.delay, cut=what.cut, edit=what.edit)
