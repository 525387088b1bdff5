"""The API's rules as pure functions: answers, errors, Retry-After, pages, file names (sans-IO).

What lives here: everything that can be decided from a status, headers and a body. What never does: sockets, sleeping,
files, the clock (times are passed in).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import chain
from typing import Any
from urllib.parse import quote, unquote

import orjson

from contio_pipeline.errors import (
    ApiError,
    BrokenAnswer,
    Forbidden,
    NotFound,
    ScopeMissing,
    Throttled,
    TooLarge,
    Transient,
    Unauthorized,
)

PAGE_SIZE = 100
"""Rows a page; the API's maximum (a larger `limit` is clamped)."""

MAX_JSON_BYTES = 8 * 2**20
"""A page of 100 rows is about 0.2 MB; more JSON than this, decompressed, is refused: Python may hold it in 20 times as much."""

MAX_ROWS = 100 * PAGE_SIZE
"""A page with more rows is refused, also from a server that takes no `limit`."""

_MOST_DIGITS = 400
"""Of an integer; beyond it Python may refuse to read it, and no column can hold it."""

_CONTAINERS = frozenset({dict, list})

RETRIED_STATUSES = frozenset({408, 425, 429}) | frozenset(range(500, 600))


def read_json(body: bytes) -> Any:
    """The JSON value of a successful answer.

    What breaks the rules of JSON inside one value does not take the whole page with it: NaN and numbers without end become
    floats, bytes that are not UTF-8 become lone surrogates. None of them can be stored, so the row that holds one is set
    aside (`rows`). A byte order mark is passed over (RFC 8259, 8.1 allows that).

    orjson reads the usual answer three times faster. What it refuses json looks at, and what it may have rounded: an integer of
    more than 64 bits becomes a float there.

    Raises:
        BrokenAnswer: not JSON (HTML, empty, cut off, something after the end).
    """
    try:
        value = orjson.loads(body)
        if not holds_float(value):
            return value
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(body.decode("utf-8-sig", "surrogateescape"), parse_int=_number)
    except (ValueError, RecursionError) as error:
        raise BrokenAnswer(f"the API answered a success without valid JSON ({error})") from None


def holds_float(value: Any) -> bool:
    """Whether there is a float anywhere in a JSON value; it is looked at level by level, which is quick where it is wide."""
    level: list[Any] = [value]
    while level:
        kinds = set(map(type, level))
        if float in kinds:
            return True
        inside = (
            [one.values() if type(one) is dict else one for one in level if type(one) in _CONTAINERS]
            if kinds & _CONTAINERS
            else ()
        )
        level = list(chain.from_iterable(inside))
    return False


def _number(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MOST_DIGITS else float(digits)


def check_status(status: int, headers: Mapping[str, str], body: bytes, *, what: str, now: datetime) -> None:
    """Return when the status is a success, else raise what it means.

    Args:
        status: the HTTP status.
        headers: looked up by lower-case or canonical name (httpx's are case-insensitive).
        body: of the answer; the four error shapes of the API are understood, anything else is not the API's own.
        what: the request as a person would name it, e.g. `GET meetings`.
        now: for a Retry-After that is a date.

    Raises:
        Throttled, Transient: another try may help.
        NotFound, Forbidden, ScopeMissing, Unauthorized, ApiError: none will.
    """
    if 200 <= status < 300:  # noqa: PLR2004 - the HTTP success class
        return
    about = _error_fields(body)
    text = about.pop("text")
    shaped = bool(about["code"])
    message = f"{what}: {status} {text}".rstrip()
    retry_after = read_retry_after(headers.get("retry-after"), now)
    match status:
        case 429:
            raise Throttled(message, status=status, retry_after=retry_after, **about)
        case _ if status in RETRIED_STATUSES:
            raise Transient(message, status=status, retry_after=retry_after, **about)
        case 401:
            raise Unauthorized(message, status=status, **about)
        case 403 if about["code"] in {"insufficient_scope", "invalid_scope", "missing_scope"}:
            raise ScopeMissing(message, status=status, **about)
        case 403 if shaped:
            raise Forbidden(message, status=status, **about)
        case 404 if shaped:
            raise NotFound(message, status=status, **about)
    if 300 <= status < 400:  # noqa: PLR2004 - the HTTP redirect class
        message += " (redirects are never followed: check CONTIO_API_URL and CONTIO_TOKEN_URL)"
    raise ApiError(message, status=status, **about)


def _error_fields(body: bytes) -> dict[str, str]:
    """`code`, `request_id` and a short `text` of an error body; all empty when it is not the API's own JSON."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        return {"code": "", "request_id": "", "text": "(not an answer of the API itself)" if body else ""}
    # API errors carry code and error (message is deprecated); OAuth and rate limit errors carry error as the code.
    texts = {key: printable(field) for key, field in value.items() if isinstance(field, str)}
    code = texts.get("code") or (texts.get("error", "") if "error_description" in texts else "")
    text = texts.get("error_description") or texts.get("error") or texts.get("message", "")
    return {
        "code": code[:100],
        "request_id": named(texts.get("request_id", "")[:100]),
        "text": " ".join(filter(None, (named(code[:100]), quoted(text[:300])))),
    }


def named(name: str) -> str:
    """A code, an id or a path as it is told: marked as the server's words where it may be more than a name."""
    return name if re.fullmatch(r"[\w./-]*", name, re.ASCII) else quoted(name)


def quoted(words: str) -> str:
    """Words that are the server's, marked as such, so that they can be told from ours (`privacy`)."""
    return f"\u2039{words.translate({0x2039: None, 0x203A: None})}\u203a" if words else ""


def printable(text: str) -> str:
    """A server's words as one line that can be printed and stored, without a token that it may have repeated."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return re.sub(r"cto_[A-Za-z]+_\w+", "(token)", line)


def read_retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds to wait: the header gives seconds or an HTTP date (RFC 9110, 10.2.3); nonsense counts as absent."""
    if not value:
        return None
    if re.fullmatch(r"\s*\d{1,9}(\.\d+)?\s*", value):
        return float(value)
    try:
        at = parsedate_to_datetime(value)
        return max(0.0, ((at if at.tzinfo else at.replace(tzinfo=UTC)) - now).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def read_clock(value: str | None, now: datetime) -> float | None:
    """Seconds by which `now` is ahead of a Date header (negative: behind); None where there is none that can be read."""
    try:
        at = parsedate_to_datetime(value or "")
        return (now - (at if at.tzinfo else at.replace(tzinfo=UTC))).total_seconds()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list: its rows as received, the list's length as the page states it, where the page begins."""

    items: list[Any]
    total: int
    offset: int


def read_page(body: bytes, offset: int) -> Page:
    """The page in a successful answer; a broken envelope is an error, never an empty day.

    Raises:
        BrokenAnswer: `items` is not a list, or `total` is not a count.
        TooLarge: there are more rows than any page has.
    """
    value = read_json(body)
    if not isinstance(value, dict):
        raise BrokenAnswer("the API answered a list request without an envelope")
    items, total = value.get("items"), value.get("total")
    if not isinstance(items, list):
        raise BrokenAnswer("the API answered a list request without a list of `items`")
    if len(items) > MAX_ROWS:
        raise TooLarge(f"the API answered a list request with {len(items)} rows at once")
    if not isinstance(total, int) or isinstance(total, bool) or total < 0:
        raise BrokenAnswer("the API answered a list request without a number in `total`")
    return Page(items, total, offset)


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a successful answer about one row.

    Raises:
        BrokenAnswer: it is not an object.
    """
    value = read_json(body)
    if not isinstance(value, dict):
        raise BrokenAnswer("the API answered a request for one object with something else")
    return value


class PagePlan:
    """Which pages a list has, and whether they fit together.

    Offset paging over live data skips and repeats rows, and counts alone do not show it: delete one row at the front and
    append one at the end between two pages, and `total` and the number of ids agree although a live row was skipped. So
    consecutive pages overlap by one row, which must be the same, and every page must state the same total and be as long
    as the first page promises. A list of one page is atomic.
    """

    def __init__(self, first: Page) -> None:
        self.total = first.total
        self.size = len(first.items)
        self.problem: str | None = None
        self._last: Any = None
        if self.size < self.total and self.size == 0:
            self.problem = f"the API announced {self.total} rows and sent none"
        self.add(first)

    @property
    def offsets(self) -> range:
        """Where the pages after the first begin; a server that caps `limit` lower is stepped at its own size."""
        if self.size >= self.total or not self.size:
            return range(0)
        if self.size == 1:  # nothing to overlap with
            return range(1, self.total)
        return range(self.size - 1, self.total - 1, self.size - 1)

    def add(self, page: Page) -> None:
        """Take the next page, in order; sets `problem` when it does not fit."""
        expected = min(self.size, max(0, self.total - page.offset))
        if page.total != self.total:
            self.problem = f"the list changed while it was read ({self.total} rows, then {page.total})"
        elif len(page.items) != expected:
            self.problem = f"a page had {len(page.items)} rows where {expected} were due"
        elif page.offset and self.size > 1 and row_identity(page.items[0]) != self._last:
            self.problem = "rows moved between two pages while they were read"
        if page.items:
            self._last = row_identity(page.items[-1])


def row_identity(item: Any) -> Any:
    """What makes a row the same row: its id, or itself where it has no usable id."""
    match item:
        case {"id": str(identity)} if identity:
            return identity
    return ("", json.dumps(item, sort_keys=True, default=str))


def read_filename(disposition: str | None) -> str | None:
    """The file name in a Content-Disposition header (RFC 6266), as text for people: never a path to write to.

    Control characters are dropped, and at most 255 characters are kept.
    """
    if not disposition:
        return None
    extended = re.search(r"""filename\*\s*=\s*([\w-]+)'[^']*'([^;\s]+)""", disposition, re.IGNORECASE)
    plain = re.search(r"""filename\s*=\s*(?:"((?:\\.|[^"\\])*)"|([^;\s]+))""", disposition, re.IGNORECASE)
    name = None
    if extended and extended[1].lower() in {"utf-8", "iso-8859-1"}:
        name = unquote(extended[2], encoding=extended[1], errors="replace")
    elif plain:
        name = re.sub(r"\\(.)", r"\1", plain[1]) if plain[1] is not None else plain[2]
    return "".join(c for c in name if c.isprintable())[:255] or None if name else None


def fill_path(template: str, **values: str) -> str:
    """Put ids into a path; each is escaped whole, so that an id cannot become another path.

    Raises:
        ApiError: an id of only dots, or with half of a surrogate pair, which no server could be asked for.
    """
    for value in values.values():
        if not value.strip(".") or any("\ud800" <= character <= "\udfff" for character in value):
            raise ApiError(f"the id {value!r} cannot be asked for")
    return template.format(**{name: quote(value, safe="") for name, value in values.items()})
