"""The straight line: per account and stream, list, commit, confirm what is missing, fetch contents, publish.

What lives here: the order of things. What never does: Dagster, printing.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from contio_pipeline import __version__
from contio_pipeline.auth import TokenStore
from contio_pipeline.client import Client
from contio_pipeline.contents import Fetcher
from contio_pipeline.errors import AccountError, ApiError, ConfigError, ContioError, Throttled, Transient, Unauthorized
from contio_pipeline.listings import Lister
from contio_pipeline.publish import publish
from contio_pipeline.rows import decode
from contio_pipeline.settings import Settings
from contio_pipeline.streams import DOCUMENT_CONTENTS, PROFILE, PROFILE_PATH, STREAMS, Stream
from contio_pipeline.warehouse import Warehouse, Window
from contio_pipeline.work import Listener, Nobody, StreamReport, SyncReport, Work

log = logging.getLogger(__name__)


def sync(
    settings: Settings,
    *,
    accounts: Sequence[str] = (),
    streams: Sequence[str] = (),
    window: Window = Window(),  # noqa: B008 - immutable
    documents: bool = True,
    verify_documents: bool = False,
    listener: Listener | None = None,
    declared: tuple[Stream, ...] = STREAMS,
) -> SyncReport:
    """Make the tables equal to what the API holds, and publish them.

    Args:
        settings: where and as whom.
        accounts: names; empty means all.
        streams: names; empty means all. Contents are fetched when the documents' stream is among them.
        window: half-open UTC range of dates; without ends the full sync.
        documents: whether to download contents.
        verify_documents: download all contents again, compare and repair.
        listener: is told how the work goes on.
        declared: the streams that exist.

    Returns:
        What was done; one broken account or stream never stops the others. Look at `complete`.

    Raises:
        ConfigError: nothing could be started.
        StorageError: the data folder cannot be used.
    """
    store = TokenStore(settings.state_dir)
    names = list(dict.fromkeys(accounts)) or store.names()
    if not names:
        raise ConfigError(
            "there are no accounts yet; add one: contio-pipeline accounts add NAME --refresh-token-stdin "
            "(the token comes from standard input)"
        )
    for name in set(names) - set(store.names()):
        store.read(name)  # says which accounts there are; damaged tokens stop their own account only
    known = [stream.name for stream in declared]
    unknown = [name for name in streams if name not in known]
    if unknown:
        raise ConfigError(f"there is no stream {', '.join(map(repr, unknown))}; there are: {', '.join(known)}")
    settings.credentials()
    selected = tuple(stream for stream in declared if not streams or stream.name in streams)
    listener = listener or Nobody()
    with (
        Warehouse(settings.data_dir, origin=settings.api_url, streams=declared) as warehouse,
        Client(settings, listener.waiting) as client,
    ):
        report = SyncReport(uuid.uuid4().hex, datetime.now(UTC), window)
        work = Work(settings, client, warehouse, listener, report)
        return _Sync(work, selected, documents=documents, verify=verify_documents).run(names)


class _Sync:
    """One run over all accounts."""

    def __init__(self, work: Work, streams: tuple[Stream, ...], *, documents: bool, verify: bool) -> None:
        self._work = work
        self._streams = streams
        self._documents = documents
        self._lister = Lister(work)
        self._fetcher = Fetcher(work, verify=verify)
        self._halted: ContioError | None = None
        """The budget is the machine's: a 429 that outlasts all tries of one account ends the others too."""

    def run(self, accounts: Sequence[str]) -> SyncReport:
        begun, report = time.monotonic(), self._work.report
        self._put_run(finished=False)
        for account in accounts:
            self._account(account)
        self._work.warehouse.explain_lost_access(accounts, report.started_at)
        self._put_run(finished=True)
        self._work.listener.publishing()
        report.generation, report.new_generation = publish(self._work.warehouse, datetime.now(UTC))
        report.requests = self._work.client.traffic.requests
        report.seconds = time.monotonic() - begun
        return report

    def _put_run(self, *, finished: bool) -> None:
        report, traffic = self._work.report, self._work.client.traffic
        row: dict[str, Any] = {
            "run_id": report.run_id,
            "started_at": report.started_at,
            "version": __version__,
            "window_start": report.window.start,
            "window_end": report.window.end,
        }
        if finished:
            row |= {name: report.total(name) for name in ("inserted", "updated", "deleted", "quarantined")}
            row |= {
                "finished_at": datetime.now(UTC),
                "complete": report.complete,
                "requests": traffic.requests,
                "throttled": traffic.throttled,
                "bytes": traffic.bytes,
            }
        self._work.warehouse.put_run(row)

    # One account --------------------------------------------------------------------------------------------------------

    def _account(self, account: str) -> None:
        """All selected streams of one account; a stream that fails leaves the others alone, a dead account all of them."""
        broken = self._halted
        try:
            if not broken:
                self._profile(account)
        except (AccountError, ConfigError, ApiError) as error:
            broken = error
            self._halted = error if isinstance(error, Throttled) else None  # it was None: this account was tried
        for stream in self._streams:
            refresh = partial(self._lister.refresh, stream=stream)
            broken = self._attempt(account, stream.name, refresh, self._work.window, broken)
            if stream.content_path and self._documents:
                contents = partial(self._fetcher.fetch, stream=stream)
                broken = self._attempt(account, DOCUMENT_CONTENTS.name, contents, Window(), broken)

    def _attempt(
        self,
        account: str,
        stream: str,
        work: Callable[[StreamReport], None],
        window: Window,
        broken: ContioError | None,
    ) -> ContioError | None:
        """Do one part of an account's work and report it; returns what makes the rest of the account hopeless, if anything."""
        report = StreamReport(account, stream)
        begun, traffic = time.monotonic(), self._work.client.traffic
        before = replace(traffic)
        self._work.client.context = f"{account} {stream}"
        self._work.listener.started(account, stream)
        try:
            if broken:
                raise broken
            work(report)
        except (AccountError, ApiError, ConfigError) as error:
            report.incomplete(str(error))
            broken = broken or (error if isinstance(error, AccountError | Throttled) else None)
            self._halted = error if isinstance(error, Throttled) else self._halted
        report.listing.requests = traffic.requests - before.requests
        report.throttled = traffic.throttled - before.throttled
        report.bytes = traffic.bytes - before.bytes
        report.seconds = time.monotonic() - begun
        self._put_window(report, window)
        self._work.report.streams.append(report)
        self._work.listener.finished(report)
        return broken

    def _put_window(self, report: StreamReport, window: Window) -> None:
        self._work.warehouse.put_window(
            report.account, report.stream, window, report.listing, self._work.run_id, datetime.now(UTC)
        )

    def _profile(self, account: str) -> None:
        """Read whose tokens these are; an account that may not read its profile is synced all the same."""
        try:
            profile = self._work.client.profile(account, PROFILE_PATH)
        except ApiError as error:
            if isinstance(error, Transient | Unauthorized):
                raise
            log.warning("account %s: the profile cannot be read (%s): deletions cannot be confirmed", account, error)
            return
        batch = decode(PROFILE, [profile])
        if batch.ids:
            self._work.warehouse.put_profile(account, batch, datetime.now(UTC))
