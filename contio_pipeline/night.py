"""What a night lists: as little as keeps the tables exact, account by account and stream by stream.

What lives here: until when an account's listings are complete, and the window that follows from it. What never does: I/O.

Completeness is that of `ops.windows`, so it does not matter whether a schedule, a backfill or the command line listed a day.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from contio_pipeline.protocol import PAGE_SIZE
from contio_pipeline.settings import Settings, midnight
from contio_pipeline.streams import STREAMS, Stream
from contio_pipeline.warehouse import Window

_AGAIN = timedelta(days=6)
"""A full listing that was not complete is not begun again by a night before so long: the weekly one does that."""

_ALWAYS = datetime.min.replace(tzinfo=UTC)
_FOR_EVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is listed of one stream of one account.

    Attributes:
        window: the days; without ends everything.
        open_rows: besides, the rows that are not done, whatever their date.
        old_lists: besides, so many lists of parents outside the window whose turn it is.
        why: for a person; empty where it was asked for so.
    """

    window: Window = Window()  # noqa: RUF009 - immutable
    open_rows: bool = False
    old_lists: int | None = None
    why: str = ""


def usual_window(settings: Settings, today: date, *, begin: date | None = None) -> Window:
    """The days of a night, from the lookback or an earlier day on."""
    begin = min(begin or date.max, today - timedelta(days=settings.lookback_days))
    end = today + timedelta(days=settings.lookahead_days + 1)
    return Window(midnight(max(begin, settings.first_day)), midnight(end))


def complete_until(windows: Iterable[Mapping[str, Any]]) -> datetime | None:
    """Until when the listings of one stream of one account leave no gap; None where everything was never listed.

    A listing says nothing about what came after it, so that a window that lies ahead is complete until it was listed.

    Args:
        windows: rows of `ops.windows`.
    """
    spans = sorted(
        (row["window_start"] or _ALWAYS, min(row["window_end"] or _FOR_EVER, row["complete_at"]))
        for row in windows
        if row["complete_at"]
    )
    until = None
    for begin, end in spans:
        if begin == _ALWAYS or (until and begin <= until):
            until = max(until or end, end)
    return until


def plan_night(
    settings: Settings,
    stream: Stream,
    windows: Sequence[Mapping[str, Any]],
    rows: Mapping[str, int],
    now: datetime,
    declared: Sequence[Stream] = STREAMS,
) -> Plan:
    """What tonight lists of one stream of one account.

    Args:
        settings: lookback, lookahead, how far a night catches up, and what a full listing may cost.
        stream: which.
        windows: rows of `ops.windows` of this account and stream.
        rows: stream -> live rows of the account that are stored.
        now: tonight.
        declared: the streams that exist.
    """
    until = complete_until(windows)
    failed = [row for row in windows if row["window_start"] is None and not row["complete"] and not row.get("begun_at")]
    tired = any(now - row["listed_at"] < _AGAIN for row in failed)  # one that was interrupted goes on
    if until is None and not tired:
        return Plan(why="everything: it was never listed completely")
    limit = now.date() - timedelta(days=settings.heal_days)
    if until and until.date() < limit and not tired:
        return Plan(why=f"everything: it is not known to be complete since {until:%Y-%m-%d}")
    if stream.dates == "optional":
        pages = sum(listing_pages(rows.get(one.name, 0)) for one in declared if one.dates == "optional")
        if pages <= settings.nightly_full_requests:
            return Plan(why=f"everything: that costs {pages} requests with all lists like it")
    behind = max(until.date() if until else limit, limit)
    missed = now.date() - behind - timedelta(days=1)
    window = usual_window(settings, now.date(), begin=min(behind, behind + timedelta(days=1 - settings.lookback_days)))
    return Plan(
        window,
        open_rows=stream.open_field is not None,
        old_lists=settings.nightly_child_requests if stream.parent else None,
        why=f"catches up with {missed.days} days" if missed.days > 0 else "",
    )


def days_of_a_night(
    settings: Settings, listed: Iterable[Mapping[str, Any]], now: datetime, declared: Sequence[Stream] = STREAMS
) -> Window:
    """The days that a night lists for some account, for whoever has to name them before it begins.

    Args:
        settings: as for `plan_night`.
        listed: rows of `ops.windows`, of all accounts and streams.
        now: tonight.
        declared: the streams that exist.
    """
    streams = {stream.name: stream for stream in declared}
    windows: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in listed:
        windows.setdefault((row["account"], row["stream"]), []).append(row)
    dear = replace(settings, nightly_full_requests=0)
    plans = [plan_night(dear, streams[name], rows, {}, now) for (_, name), rows in windows.items() if name in streams]
    usual = usual_window(settings, now.date())
    begin = min((plan.window.start for plan in plans if plan.window.start), default=usual.start)
    return Window(begin, usual.end)


def listing_pages(rows: int) -> int:
    """Requests that a list of so many rows costs: consecutive pages share a row."""
    return max(1, math.ceil((rows - 1) / (PAGE_SIZE - 1)))
