"""What a sync would cost before it runs: requests and rows of each account and stream, minutes at the request budget.

What lives here: the arithmetic, and the few cheap questions that it needs (totals, by `limit=1`). What never does: listing,
writing, opening the working file: what is known is what is published.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from contio_pipeline.client import IN_FLIGHT, Client
from contio_pipeline.errors import AccountError, ApiError, StorageError
from contio_pipeline.health import Case
from contio_pipeline.listings import OBSERVED_LATELY, SAMPLE, as_params
from contio_pipeline.night import Plan, listing_pages, plan_night
from contio_pipeline.settings import Settings
from contio_pipeline.streams import (
    ASSUMPTIONS,
    DOCUMENT_CONTENTS,
    PROFILE_NAME,
    WINDOWS,
    Stream,
    stream_named,
)
from contio_pipeline.sync import published_case
from contio_pipeline.warehouse import Window, due_lists

_LATENCY = 0.2
"""Seconds that a request is taken to last, where the budget is not what is waited for."""


@dataclass(slots=True)
class Part:
    """What one stream of one account is expected to cost.

    Attributes:
        what: is listed, and why so much.
        rows: expected; None where only the lists themselves can tell.
        requests: expected; None where it could not be found out, see `what`.
    """

    account: str
    stream: str
    what: str
    rows: int | None = None
    requests: int | None = None


@dataclass(slots=True)
class Estimate:
    """What a sync is expected to cost.

    Attributes:
        parts: account by account, stream by stream.
        asked: requests that it took to find out.
        minutes: at the request budget as it is now.
        documents_unknown: whether documents may come that nobody knows yet: one request more for each.
    """

    parts: list[Part] = field(default_factory=list)
    asked: int = 0
    minutes: float = 0.0
    documents_unknown: bool = False

    @property
    def requests(self) -> int:
        """The sum over all parts that could be found out."""
        return sum(part.requests or 0 for part in self.parts)


def estimate(
    settings: Settings,
    *,
    accounts: Sequence[str],
    streams: Sequence[Stream],
    window: Window,
    night: bool,
    documents: bool,
) -> Estimate:
    """Find out what a sync with the same options would cost.

    Args:
        settings: where and as whom.
        accounts: names.
        streams: those that would be listed, as declared.
        window: of days; without ends everything.
        night: each account by its own plan instead.
        documents: whether contents would be downloaded.

    Returns:
        The estimate; where an account or a stream cannot be asked, its part says why.
    """
    found, sampled = Estimate(), set[str]()
    with Client(settings) as client:
        for account in accounts:
            one = _Account(settings, client, account, window if not night else None, sampled)
            found.parts.extend(one.parts(streams, documents=documents))
            found.documents_unknown |= documents and one.lists_anew
        found.asked = client.traffic.requests
        left, allowed = client.budget_left()
    beyond = max(0, found.requests - left)
    at_once = found.requests * _LATENCY / IN_FLIGHT
    found.minutes = max(at_once, beyond / allowed * settings.rate_window_seconds) / 60
    return found


class _Account:
    """One account's part of the arithmetic.

    Args:
        window: None for a night.
        sampled: streams of which an account before has some rows read by id; that holds for all.

    Attributes:
        lists_anew: whether lists of documents are read of which nothing is known yet.
    """

    def __init__(
        self, settings: Settings, client: Client, account: str, window: Window | None, sampled: set[str]
    ) -> None:
        self._settings = settings
        self._client = client
        self._account = account
        self._window = window
        self._sampled = sampled
        self._now = datetime.now(UTC)
        self.lists_anew = False
        try:
            self._known: Case | None = published_case(settings)
        except StorageError:  # nothing is published
            self._known = None

    def parts(self, streams: Sequence[Stream], *, documents: bool) -> Iterator[Part]:
        """What each stream costs."""
        yield Part(self._account, PROFILE_NAME, "whose tokens these are", 1, 1)
        for stream in streams:
            plan = self._plan(stream, streams)
            part = Part(self._account, stream.name, plan.why or _days(plan.window))
            try:
                if stream.parent:
                    self._children(part, stream, plan, streams)
                else:
                    self._list(part, stream, plan)
            except (AccountError, ApiError) as error:
                part.what = f"not known: {error}"
            yield part
        for stream in streams:
            if documents and stream.content_path:
                yield self._contents(stream)

    def _plan(self, stream: Stream, streams: Sequence[Stream]) -> Plan:
        if self._window is not None:
            return Plan(self._window)
        rows = {one.name: self._live(one) for one in streams if one.dates == "optional"}
        return plan_night(self._settings, stream, self._listed(stream), rows, self._now, streams)

    def _list(self, part: Part, stream: Stream, plan: Plan) -> None:
        """One list: its total says how many pages; besides, a few rows are read by id."""
        part.rows = self._total(stream, plan.window)
        part.requests = listing_pages(part.rows)
        if plan.window.start is None and not part.rows and stream.dates == "optional":
            part.requests += 1  # an empty list is read twice
        if plan.open_rows and stream.open_field:
            part.requests += listing_pages(self._open(stream, stream.open_field))
        lists_are_full = self._observed(stream, "full_lists")
        if lists_are_full is None and stream.name not in self._sampled:
            part.requests += min(part.rows, SAMPLE)
            self._sampled |= {stream.name} if part.rows else set()
        elif lists_are_full is False:
            part.requests += max(0, part.rows - self._live(stream))
            part.what += "; the list holds less than its rows, so new and changed ones are read one by one"

    def _children(self, part: Part, stream: Stream, plan: Plan, streams: Sequence[Stream]) -> None:
        """A list for each parent that is due, and a page more for each hundred rows of one."""
        parent = stream_named(stream.parent or "", tuple(streams))
        due = self._due(stream, parent, plan)
        known = self._ask(
            f"""SELECT count(*) AS parents, coalesce(sum(n), 0)::BIGINT AS rows,
                coalesce(sum(greatest(0, ceil((n - 1) / 99.0) - 1)), 0)::BIGINT AS more FROM (
                SELECT count(*) AS n FROM {stream.table.full_name}
                WHERE _account = $me AND _deleted_at IS NULL GROUP BY _parent_id)"""
        )
        parents, rows, more = (known[0][name] for name in ("parents", "rows", "more")) if known else (0, 0, 0)
        part.requests = due + (more if plan.window.start is None else 0)
        part.rows = rows if parents and plan.window.start is None else None
        part.what += f"; a list for each of {due:,} {parent.name}"
        self.lists_anew |= due > 0 and not parents

    def _due(self, stream: Stream, parent: Stream, plan: Plan) -> int:
        """How many lists are to be read: of those parents that are known, and of those that a total says are new."""
        window, total = plan.window, self._total(parent, plan.window)
        if not self._known:
            return total
        whole = [row for row in self._listed(stream) if row["window_start"] is None and row["begun_at"]]
        if window.start is None:
            before = whole[0]["begun_at"] if whole else self._now
            due, known = self._due_count(stream, parent, before=before), self._live(parent)
        elif plan.old_lists is not None:
            dates = window.start, window.end
            due = self._due_count(stream, parent, dates=dates, most=plan.old_lists)
            known = self._live(parent, dates)
        else:
            return total
        return due + max(0, total - known)

    def _due_count(self, stream: Stream, parent: Stream, **which: Any) -> int:
        sql = due_lists(stream, parent, self._account, now=self._now, **which)
        return int(self._ask(f"SELECT count(*) AS n FROM ({sql})")[0]["n"])

    def _contents(self, stream: Stream) -> Part:
        """One download for each document that is known and not stored."""
        due = self._ask(
            f"""SELECT count(*) AS n FROM {stream.table.full_name} d
                LEFT JOIN {DOCUMENT_CONTENTS.full_name} c ON c._account = d._account AND c.id = d.id
                WHERE d._account = $me AND d._deleted_at IS NULL AND c.state IS NULL"""
        )
        count = int(due[0]["n"]) if due else 0
        return Part(self._account, DOCUMENT_CONTENTS.name, "what is known and not stored yet", count, count)

    def _total(self, stream: Stream, window: Window) -> int:
        """How many rows the list has, by one request."""
        dates = (window.start, window.end) if window.start and window.end else None
        if stream.dates == "required":
            dates = dates or self._settings.calendar_range(self._now)
        params = as_params(dates) if dates else {}
        return self._client.page(self._account, stream.path, {**params, "limit": "1"}).total

    def _listed(self, stream: Stream) -> list[dict[str, Any]]:
        return self._ask(f"SELECT * FROM {WINDOWS.full_name} WHERE account = $me AND stream = '{stream.name}'")

    def _open(self, stream: Stream, field_name: str) -> int:
        """How many of its rows are not done."""
        return self._client.page(self._account, stream.path, {field_name: "false", "limit": "1"}).total

    def _live(self, stream: Stream, dates: tuple[Any, Any] | None = None) -> int:
        """How many rows are published that are not gone."""
        within = f"AND {stream.date_field} >= '{dates[0]}' AND {stream.date_field} < '{dates[1]}'" if dates else ""
        found = self._ask(
            f"SELECT count(*) AS n FROM {stream.table.full_name} WHERE _account = $me AND _deleted_at IS NULL {within}"
        )
        return int(found[0]["n"]) if found else 0

    def _observed(self, stream: Stream, assumption: str) -> bool | None:
        """What was observed of the list lately; None where it will be looked at again."""
        rows = self._ask(
            f"""SELECT holds, observed_at FROM {ASSUMPTIONS.full_name} WHERE stream = '{stream.name}'
                AND assumption = '{assumption}' ORDER BY observed_at DESC LIMIT 1"""
        )
        lately = rows and self._now - rows[0]["observed_at"] < OBSERVED_LATELY
        return bool(rows[0]["holds"]) if lately else None

    def _ask(self, sql: str) -> list[dict[str, Any]]:
        """What is published; nothing where nothing is. A name of an account needs no escaping (`auth.ACCOUNT_NAME`)."""
        return self._known.query(sql.replace("$me", f"'{self._account}'")) if self._known else []


def _days(window: Window) -> str:
    if not window.start or not window.end:
        return "everything"
    return f"{window.start:%Y-%m-%d} to {window.end:%Y-%m-%d}, the end not included"
