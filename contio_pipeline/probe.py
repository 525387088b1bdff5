"""What the API leaves undocumented, asked of it through one account, in about 25 requests.

What lives here: the questions, and what an answer means. What never does: storage, and what a sync does about it (it assumes
nothing of this, and notices at every listing).

Each question is put about rows that the account has; where they do not tell, the answer is `UNKNOWN` with the reason.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any

from contio_pipeline.client import Client
from contio_pipeline.errors import ApiError, NotFound, Throttled
from contio_pipeline.protocol import PAGE_SIZE, Page, fill_path
from contio_pipeline.rows import decode
from contio_pipeline.settings import midnight
from contio_pipeline.streams import STREAMS, Stream

UNKNOWN = "unknown"
"""How an answer begins that is none."""

DATE_FILTER, START, END, ORDER = "date_filter", "start_included", "end_included", "order"
LIMIT, LIST_LACKS, RANGE, NO_PARENT = "limit_500", "list_lacks", "longest_range", "unknown_parent"
API_VERSION = "api_version"

_LIMIT = 500
_DETAILS = 2
"""Rows that are read by id to compare them with the list."""

_YEARS = (1, 2, 5)
_FEW = 5
"""With fewer dated rows an order may be chance."""

_APART = timedelta(days=3)
"""Two times so far from each other are told apart also by a filter that knows days only."""

_MOMENT = timedelta(seconds=1)
_SHORT = timedelta(days=28)
_NOWHERE = datetime(1980, 1, 1, tzinfo=UTC), datetime(1980, 1, 2, tzinfo=UTC)
_FIRST_YEAR, _LAST_YEAR = 1990, 2200
"""Times outside, such as Go's zero time, count as absent."""

_FINER = re.compile(r"\.\d{6}\d*[1-9]")
_REFUSED_QUERY = frozenset({400, 422})

Answers = dict[str, str]


def probe(client: Client, account: str, now: datetime, streams: Sequence[Stream] = STREAMS) -> Answers:
    """Ask the API what nobody documents.

    Args:
        client: open.
        account: can be used.
        now: the middle of the calendar ranges that are asked for.
        streams: those that exist.

    Returns:
        `<stream>.<question>` (and `api_version`) -> the answer, or `unknown: ` and why.

    Raises:
        AccountError: the account cannot be used after all.
        Throttled: the API wants to be left alone.
    """
    answers: Answers = {}
    for stream in streams:
        questions, ask = _questions(stream)
        found: Answers = {}
        why = "not asked for"
        try:
            ask(_List(client, account, stream, now, found))
        except Throttled:
            raise
        except ApiError as error:
            why = str(error)
        answers |= {f"{stream.name}.{name}": found.get(name, f"{UNKNOWN}: {why}") for name in questions}
    return answers | {API_VERSION: client.traffic.api_version or f"{UNKNOWN}: the answers do not say"}


def is_known(answer: str | None) -> bool:
    """Whether it is an answer."""
    return answer is not None and not answer.startswith(UNKNOWN)


@dataclass(slots=True)
class _List:
    """A list that is asked about, and what is known of it so far."""

    client: Client
    account: str
    stream: Stream
    now: datetime
    found: Answers
    limit: dict[str, str] = field(default_factory=dict)

    def page(self, **params: str) -> Page:
        path = fill_path(
            self.stream.path, parent_id=str(uuid.uuid4())
        )  # where there are parents: one that there is not
        return self.client.page(self.account, path, params)

    def within(self, begin: datetime, end: datetime, **params: str) -> Page:
        return self.page(start_date=_instant(begin), end_date=_instant(end), **params)

    def holds(self, row: _Known, begin: datetime, end: datetime) -> bool:
        """Whether the row is listed for these dates."""
        items = self.within(begin, end, **self.limit).items
        return any(isinstance(item, dict) and item.get("id") == row.id for item in items)


@dataclass(frozen=True, slots=True)
class _Known:
    """A row of a list.

    Attributes:
        id: its id.
        item: as received.
        times: field -> the first and the last instant that its value means: equal for a time, a day apart for a day.
    """

    id: str
    item: dict[str, Any]
    times: dict[str, tuple[datetime, datetime]]

    def exact(self, name: str) -> bool:
        """Whether the time was received without more digits than can be asked for."""
        return not _FINER.search(str(self.item.get(name)))

    @property
    def use(self) -> tuple[int, bool, int]:
        """How well it tells its times apart: more different ones, all exact, more of them far from the next."""
        moments = sorted({begin for begin, _end in self.times.values()})
        far = sum(later - earlier >= _APART for earlier, later in pairwise(moments))
        return len(moments), all(map(self.exact, self.times)), far


def _questions(stream: Stream) -> tuple[tuple[str, ...], Callable[[_List], None]]:
    if stream.parent:
        return (NO_PARENT,), _ask_without_parent
    if stream.dates == "required":
        return (RANGE, LIST_LACKS), _ask_ranges
    return (LIMIT, ORDER, LIST_LACKS, *((DATE_FILTER, START, END) if stream.dates == "optional" else ())), _ask_list


# Lists --------------------------------------------------------------------------------------------------------------------


def _ask_list(of: _List) -> None:
    known = _known_rows(of.stream, _first_page(of).items)
    of.found[ORDER] = _order(of.stream, known)
    _compare_with_details(of, known)
    if of.stream.dates == "optional":
        _ask_filter(of, known)


def _first_page(of: _List) -> Page:
    """As many rows as the API gives at once."""
    try:
        page = of.page(limit=str(_LIMIT))
    except ApiError as error:
        if error.status not in _REFUSED_QUERY:
            raise
        of.found[LIMIT] = "refused"
        return of.page()
    of.limit = {"limit": str(PAGE_SIZE)}
    received = len(page.items)
    if received < min(page.total, _LIMIT):
        of.found[LIMIT] = f"clamped to {received}"
    elif received > PAGE_SIZE:
        of.found[LIMIT] = "honoured"
    else:
        of.found[LIMIT] = f"{UNKNOWN}: the account has no more than {PAGE_SIZE} rows"
    return page


def _known_rows(stream: Stream, items: Sequence[Any]) -> list[_Known]:
    """The intact rows, in the order of the list."""
    fields = [column.name for column in stream.columns if column.kind in {"timestamp", "date"}]
    return [
        _Known(row["id"], item, {name: _instants(row[name]) for name in fields if _is_set(row[name])})
        for item in items
        for row in decode(stream.columns, [item]).rows.select(["id", *fields]).to_pylist()
    ]


def _is_set(value: date | None) -> bool:
    return value is not None and _FIRST_YEAR <= value.year <= _LAST_YEAR


def _instants(value: date) -> tuple[datetime, datetime]:
    if isinstance(value, datetime):
        return value, value
    begin = midnight(value)
    return begin, begin + timedelta(days=1)


def _order(stream: Stream, known: Sequence[_Known]) -> str:
    """By which field, if any; the one that the declaration names before others, for times often grow together."""
    enough = False
    for name in dict.fromkeys([stream.date_field, *(column.name for column in stream.columns)]):
        moments = [row.times[name][0] for row in known if name in row.times]
        if len(set(moments)) < _FEW:
            continue
        enough = True
        if all(earlier <= later for earlier, later in pairwise(moments)):
            return f"{name} ascending"
        if all(earlier >= later for earlier, later in pairwise(moments)):
            return f"{name} descending"
    return "none seen" if enough else f"{UNKNOWN}: the account has fewer than {_FEW} rows of different times"


def _compare_with_details(of: _List, known: Sequence[_Known]) -> None:
    """Which fields rows have by id and not in the list."""
    lacking: set[str] = set()
    compared = 0
    for row in known[:: max(1, len(known) // _DETAILS)][:_DETAILS]:
        try:
            detail = of.client.read(of.account, fill_path(of.stream.detail_path or "", id=row.id))
        except NotFound:  # it went meanwhile
            continue
        if detail.get("id") == row.id:  # not a redirect
            compared += 1
            lacking |= {name for name in detail if _is_filled(detail[name]) and not _is_filled(row.item.get(name))}
    nothing = "nothing" if compared else f"{UNKNOWN}: the account has no rows to compare"
    of.found[LIST_LACKS] = ", ".join(sorted(lacking)) or nothing


def _is_filled(value: Any) -> bool:
    return value not in (None, "", [], {})


# Dates --------------------------------------------------------------------------------------------------------------------


def _ask_filter(of: _List, known: Sequence[_Known]) -> None:
    """Around which of a row's times is the row listed? Is it at the very edge?"""
    row = max(known, key=lambda row: row.use, default=None)
    if row is None or row.use[0] < 2:  # noqa: PLR2004 - one time cannot be told from others
        why = f"{UNKNOWN}: the account has no row with several times"
        of.found |= dict.fromkeys((DATE_FILTER, START, END), why)
        return
    seen = [name for name, (begin, end) in row.times.items() if of.holds(row, begin - _MOMENT, end + _MOMENT)]
    if len(seen) == len(row.times) and of.holds(row, *_NOWHERE):
        of.found[DATE_FILTER] = "nothing"
    else:
        of.found[DATE_FILTER] = " or ".join(seen) or f"none of {', '.join(row.times)}"
    if len(seen) != 1 or not row.exact(seen[0]):
        why = "no field was found that is filtered on" if len(seen) != 1 else f"{seen[0]} is finer than a microsecond"
        of.found |= dict.fromkeys((START, END), f"{UNKNOWN}: {why}")
        return
    begin, end = row.times[seen[0]]
    of.found[START] = "yes" if of.holds(row, begin, end + _MOMENT) else "no"
    of.found[END] = "yes" if of.holds(row, begin - _MOMENT, begin) else "no"


def _ask_ranges(of: _List) -> None:
    """Each range holds the one before: a longer one that holds less was cut."""
    middle = of.now.replace(microsecond=0)
    page = of.within(middle - _SHORT / 2, middle + _SHORT / 2, limit=str(PAGE_SIZE), direction="desc")
    known = _known_rows(of.stream, page.items)
    before = page.total, _latest(of.stream, known)
    of.found[RANGE] = f"{_in_years(_YEARS[-1])} or more"
    for years in _YEARS:
        half = timedelta(days=365 * years) / 2
        try:
            page = of.within(middle - half, middle + half, limit="10", direction="desc")
        except ApiError as error:
            if error.status not in _REFUSED_QUERY:
                raise
            of.found[RANGE] = f"less than {_in_years(years)}: refused"
            break
        longer = _known_rows(of.stream, page.items)
        known = known or longer
        this = page.total, _latest(of.stream, longer)
        if this[0] < before[0] or this[1] < before[1]:
            of.found[RANGE] = f"less than {_in_years(years)}: cut off without a word"
            break
        before = this
    _compare_with_details(of, known)


def _latest(stream: Stream, known: Sequence[_Known]) -> datetime:
    return max(
        (row.times[stream.date_field][0] for row in known if stream.date_field in row.times), default=_NOWHERE[0]
    )


def _in_years(years: int) -> str:
    return "a year" if years == 1 else f"{years} years"


def _instant(moment: datetime) -> str:
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


# Lists below a parent -----------------------------------------------------------------------------------------------------


def _ask_without_parent(of: _List) -> None:
    try:
        total = of.page(limit="1").total
    except NotFound:
        of.found[NO_PARENT] = "404"
    else:
        of.found[NO_PARENT] = "a list of rows" if total else "an empty list"
