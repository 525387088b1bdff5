"""What the steps of a sync share, and what they report: facts, for the caller to render.

What lives here: the reports, who listens to progress, and the things that every step needs. What never does: a step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from contio_pipeline.client import Client
from contio_pipeline.generations import Generation
from contio_pipeline.journal import Journal
from contio_pipeline.night import Plan
from contio_pipeline.settings import Settings
from contio_pipeline.warehouse import Changes, Listing, Warehouse, Window

FAILURES_IN_A_ROW, FAILURES_IN_ALL = 10, 100
"""After so many parents or documents that fail, one after the other or in all, the rest is left for the next sync."""


class Listener(Protocol):
    """Is told how the work goes on, by the thread that runs the sync unless said otherwise."""

    def started(self, account: str, stream: str, /) -> None:
        """Work on one stream of one account begins."""

    def advanced(self, done: int, total: int, /) -> None:
        """So many rows, parents or documents of the current stream are done."""

    def waiting(self, seconds: float, /) -> None:
        """The request budget is used up; it is free again in about so many seconds. Called by any thread."""

    def finished(self, report: StreamReport, /) -> None:
        """Work on one stream of one account is over."""

    def publishing(self) -> None:
        """The listings are done; a generation is being made."""


class Nobody:
    """Listens to nothing."""

    def _ignore(self, *_: object) -> None:
        """Hear it and do nothing."""

    started = advanced = waiting = finished = publishing = _ignore


@dataclass(slots=True)
class StreamReport:
    """What a sync did for one stream of one account.

    Attributes:
        plan: what was to be listed.
        listing: rows, total, requests, whether complete and why not.
        changes: inserted, updated, deleted, unchanged, quarantined.
        warnings: what is worth a look although the tables are complete.
        planned: requests that it was to take, as far as its first answers tell; None where it did not come to them.
        throttled: answers 429.
        bytes: received.
    """

    account: str
    stream: str
    plan: Plan = Plan()  # noqa: RUF009 - immutable
    listing: Listing = field(default_factory=Listing)
    changes: Changes = field(default_factory=Changes)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    throttled: int = 0
    bytes: int = 0
    planned: int | None = None

    def warn(self, warning: str) -> None:
        """Say what is worth a look; a list that is read twice says it once."""
        if warning not in self.warnings:
            self.warnings.append(warning)

    def incomplete(self, reason: str) -> None:
        """Say that the tables are not known to equal the API, and why; the first reason stays."""
        self.listing.complete = False
        self.listing.reason = self.listing.reason or reason

    def interrupted(self, reason: str) -> None:
        """Say that it had to stop, and that the next sync can go on where it was."""
        self.listing.interrupted = True
        self.incomplete(reason)


@dataclass(slots=True)
class SyncReport:
    """What a whole sync did; `goes_on` where it went on with one that was interrupted."""

    run_id: str
    started_at: datetime
    window: Window
    goes_on: bool = False
    streams: list[StreamReport] = field(default_factory=list)
    generation: Generation | None = None
    new_generation: bool = False
    requests: int = 0
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for is known to equal the API."""
        return all(report.listing.complete for report in self.streams)

    @property
    def planned(self) -> int:
        """Requests that it was to take: pages, lists, documents, and one for each account."""
        return sum(report.planned or 0 for report in self.streams) + len({report.account for report in self.streams})

    def total(self, name: str) -> int:
        """The sum of one count of `Changes` over all streams."""
        return sum(getattr(report.changes, name) for report in self.streams)


@dataclass(slots=True)
class Done:
    """How far a row of many small requests is, and how many failed."""

    total: int
    count: int = 0
    failures: int = 0
    failures_in_a_row: int = 0

    def add(self, *, failed: bool) -> None:
        """Count one more."""
        self.count += 1
        self.failures += failed
        self.failures_in_a_row = self.failures_in_a_row + 1 if failed else 0

    @property
    def hopeless(self) -> bool:
        """Whether so many failed that the rest had better wait."""
        return self.failures_in_a_row >= FAILURES_IN_A_ROW or self.failures >= FAILURES_IN_ALL


@dataclass(slots=True)
class Work:
    """One sync at work: where it reads, where it writes, who listens, and what it has found so far."""

    settings: Settings
    client: Client
    warehouse: Warehouse
    listener: Listener
    report: SyncReport

    def journal(self, report: StreamReport) -> Journal:
        """Where the answers of this part are kept until they are committed."""
        list_of = f"{self.settings.api_url} {self.settings.client_id} {report.account} {report.stream}"
        return Journal(self.settings.data_dir, list_of, now=datetime.now(UTC))

    @property
    def run_id(self) -> str:
        """The sync's id, for the history and the windows."""
        return self.report.run_id
