"""HTTP: one reused client for all accounts; pages, single rows, profile and downloads, with retries and the shared budget.

What lives here: sending, waiting, threads. What never does: storage, and rules of the API (`protocol` decides).
"""

from __future__ import annotations

import ctypes
import logging
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http.cookiejar import DefaultCookiePolicy
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar
from urllib.parse import urlencode

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential, wait_random

from contio_pipeline.auth import AccountAuth, TokenStore, how_to_renew
from contio_pipeline.errors import (
    ApiError,
    BrokenAnswer,
    Cancelled,
    Enough,
    ScopeMissing,
    Throttled,
    TokensThrottled,
    TooLarge,
    Transient,
)
from contio_pipeline.journal import Journal
from contio_pipeline.pacing import Budget
from contio_pipeline.protocol import (
    MAX_JSON_BYTES,
    PAGE_SIZE,
    Page,
    PagePlan,
    check_status,
    named,
    read_clock,
    read_filename,
    read_object,
    read_page,
)
from contio_pipeline.refresh import RefreshProcess, http_options, new_http, no_answer
from contio_pipeline.settings import API_PREFIX, Settings

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)

IN_FLIGHT, _MOST_IN_FLIGHT = 4, 16
"""Requests at once: one reused connection exceeds the API's limit six times already, so this only hides latency. More only
where the budget feeds them, since where the limit is lower than believed, as many are refused before it is learned."""

_LEAST_IN_FLIGHT = 2
_NARROWER = 0.1
"""How much fewer requests at once are tried after an answer that was there before it was wanted; one more after one that
was not."""

_FASTEST = 250.0
"""Answers a second that one process takes in; more at once would wait for each other, and look like a slow server."""

_FEW_ANSWERS = 8
"""Over about so many answers the latency is averaged."""

_BROKEN_ANSWER_TRIES = 3
_TRUSTED_TRIES = 3
"""How often a server's own word on when to try again is taken; one that says "now" for ever must not be hammered."""

_FAILURES_IN_A_ROW = 20
"""After so many requests that failed one after the other, whoever sent them, nothing more is sent."""

_PATIENCE = 3
"""So many requests are tried for the whole CONTIO_RETRY_SECONDS; after them three tries are all that a request gets."""

_LARGE = 2**20
"""Bytes; of answers larger than this one at a time is in memory."""

_TOO_LARGE = f"the API answered with more than {MAX_JSON_BYTES >> 20} MB of JSON"

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""The names of settings in glibc's malloc.h."""

_SLICE = 1024
"""Compressed bytes that are unpacked at once: deflate makes at most 1,032 of one, so this makes at most 1 MB."""

_WORTH_TELLING = 0.1
"""Seconds of waiting for the budget from which on it is told."""

_BACK_OFF = wait_exponential(multiplier=0.5, max=60) + wait_random(0, 0.5)
_OAUTH_REQUESTS = 100  # per five minutes, the vendor's own limit on the token endpoint
_OAUTH_WINDOW = 300.0
_REFUSED_QUERY = frozenset({400, 422})
_SLOWEST_DOWNLOAD = 1024.0  # bytes a second, averaged over one timeout


_DEADLINE, _UNBOUNDED = "contio_deadline", "contio_unbounded"  # in a request's extensions


def new_budgets(
    settings: Settings, sleep: Callable[[float], None], on_wait: Callable[[float], None] = lambda _seconds: None
) -> tuple[Budget, Budget]:
    """The budgets of the API and of the token endpoint, both named by the API's host."""
    name = f"budget-{server_name(settings)}"
    how: dict[str, Any] = {"timeout": settings.timeout_seconds, "sleep": sleep, "on_wait": on_wait}
    api_how: dict[str, Any] = {"limit": settings.rate_limit, "window": settings.rate_window_seconds}
    return (
        Budget(settings.state_dir / f"{name}.sqlite", **api_how, **how),
        Budget(settings.state_dir / f"{name}-oauth.sqlite", limit=_OAUTH_REQUESTS, window=_OAUTH_WINDOW, **how),
    )


def _give_back_large_blocks() -> None:
    """Make glibc return large freed blocks to the system, of which each thread keeps some tens of MB by default.

    Not those that a usual page is parsed in: to get their memory again takes a twentieth of a sync.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # other C libraries have none
        mallopt(_M_MMAP_THRESHOLD, 4 * 2**20)
        mallopt(_M_TRIM_THRESHOLD, 4 * 2**20)


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # it is closed already
        connection.shutdown(socket.SHUT_RDWR)


class _Bounded(httpx.SyncByteStream):
    """A body as it comes: compressed in slices, so that none unpacks to more than memory holds, and whole by a deadline.

    httpx's own timeout never fires on a server that drips.
    """

    def __init__(self, response: httpx.Response, deadline: float | None, seconds: float) -> None:
        assert isinstance(response.stream, httpx.SyncByteStream)  # noqa: S101 - the client is not an async one
        self._stream = response.stream
        self._compressed = "content-encoding" in response.headers
        self._deadline = deadline
        self._seconds = seconds

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self._stream:
            if self._deadline is not None:
                size += len(chunk)
                if time.monotonic() > self._deadline:
                    raise Transient(f"no whole answer within {self._seconds:g} s (CONTIO_TIMEOUT_SECONDS)")
                if size > MAX_JSON_BYTES:
                    raise TooLarge(_TOO_LARGE)
            if self._compressed:
                yield from (chunk[begin : begin + _SLICE] for begin in range(0, len(chunk), _SLICE))
            else:
                yield chunk

    def close(self) -> None:
        self._stream.close()


class Sink(Protocol):
    """Where downloaded bytes go."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes."""


@dataclass(slots=True)
class Traffic:
    """What was sent and received so far; API requests only, all tries counted.

    Attributes:
        clock_ahead: seconds by which this machine's clock was ahead of the server's at the last answer that told the time.
        api_version: what the last answer that told it said.
    """

    requests: int = 0
    throttled: int = 0
    bytes: int = 0
    clock_ahead: float | None = None
    api_version: str | None = None


@dataclass(frozen=True, slots=True)
class Download:
    """What the server said about bytes that were downloaded.

    Attributes:
        measured: whether their end was announced, so that bytes cut off would have been noticed.
    """

    content_type: str | None
    filename: str | None
    measured: bool


def server_name(settings: Settings) -> str:
    """The API's host and port, as the names of files in the state folder hold them."""
    api = httpx.URL(settings.api_url)
    return f"{api.host.replace(':', '_')}-{api.port or 443}"


class Client:
    """The API as one account at a time sees it; a context manager.

    All methods may raise `AccountError` (the account needs a person), `ApiError` (final) or `Cancelled`.
    """

    def __init__(
        self,
        settings: Settings,
        on_wait: Callable[[float], None] = lambda _seconds: None,
        *,
        most_requests: int | None = None,
    ) -> None:
        self.traffic = Traffic()
        self.context = ""  # account and stream at work, for the log
        self._settings = settings
        self._on_wait = on_wait
        self._stop = threading.Event()
        self._counting = threading.Lock()
        self._large = threading.Lock()
        self._connecting = threading.Lock()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._out_of_patience = False
        self._given_up = self._failed_in_a_row = 0
        self._most_requests, self._begun = most_requests, 0
        self._page_size: int | None = PAGE_SIZE  # None: the server's own
        self._store = TokenStore(settings.state_dir)
        self._auths: dict[str, AccountAuth] = {}
        self._api = settings.api_url + API_PREFIX + "/"
        self._host = httpx.URL(settings.api_url).host
        self._budget, self._oauth_budget = new_budgets(settings, self._sleep, self._tell_wait)
        urls = (settings.api_url, settings.token_url)
        self._http = new_http(
            lambda: httpx.Client(
                **http_options(urls, settings.ca_bundle, settings.timeout_seconds),
                limits=httpx.Limits(max_connections=_MOST_IN_FLIGHT + 1, max_keepalive_connections=_MOST_IN_FLIGHT + 1),
                event_hooks={"request": [self._sent], "response": [self._bound]},
            )
        )
        self._refresher = RefreshProcess(settings, self._stop_if_asked)
        # One client serves many users: a cookie set for one must never go out with another's request.
        self._http.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        _give_back_large_blocks()
        self._threads = ThreadPoolExecutor(_MOST_IN_FLIGHT, thread_name_prefix="contio")
        self._width: float = IN_FLIGHT
        self._latency = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        with self._connecting:
            connections = list(self._sockets)
        for connection in connections:  # nobody waits for a server that says nothing
            _hang_up(connection)
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._http.close()
        self._refresher.close()
        self._budget.close()
        self._oauth_budget.close()

    def profile(self, account: str, path: str) -> dict[str, Any]:
        """The profile of the account's user, after making sure that the tokens are still the same user's."""
        profile = self.read(account, path)
        if isinstance(profile.get("id"), str) and profile["id"]:
            self._auth(account).bind(profile["id"])
        return profile

    def read(self, account: str, path: str) -> dict[str, Any]:
        """One JSON object.

        Raises:
            NotFound, Forbidden: as the API answers for rows that are gone.
        """
        return self._ask(account, path, {}, read_object)

    def page(self, account: str, path: str, params: dict[str, str]) -> Page:
        """One page of a list, asked for with these parameters and no others.

        Raises:
            ApiError: also where the API refuses the parameters.
        """
        return self._page(account, path, params, None)

    def _page(self, account: str, path: str, query: dict[str, str], journal: Journal | None) -> Page:
        """One page, asked for unless the journal has it; what is asked for goes there."""
        offset, key = int(query.get("offset", "0")), f"{path}?{urlencode(query)}"

        def read(body: bytes) -> Page:
            page = read_page(body, offset)
            if journal:
                journal.put(key, body)
            return page

        kept = journal.get(key) if journal else None
        return read_page(kept, offset) if kept else self._ask(account, path, query, read)

    def pages(
        self,
        account: str,
        path: str,
        params: dict[str, str],
        *,
        parallel: bool = True,
        paged: bool = True,
        journal: Journal | None = None,
    ) -> Iterator[tuple[Page, PagePlan]]:
        """All pages of a list, in order, each with the plan that has taken it in; look at `plan.problem` at any time.

        Args:
            account: whose list.
            path: of the list.
            params: its filters.
            parallel: fetch pages after the first on several threads; False inside a thread of `in_parallel`.
            paged: whether the list takes `limit` and `offset`. Of one that does not, `offset` is tried where the one answer lacks
                rows that it counts.
            journal: keeps what was answered, and answers what was asked for before.
        """

        def page(offset: int) -> Page:
            query = (
                params | ({"offset": str(offset)} if paged or offset else {}) | ({"limit": str(size)} if size else {})
            )
            return self._page(account, path, query, journal)

        size = self._page_size if paged else None
        first = None
        while not first:
            try:
                first = page(0)
            except TooLarge:
                if not self._ask_for_fewer(size):
                    raise
                size = self._page_size
            except ApiError as error:
                if error.status not in _REFUSED_QUERY or not size:
                    raise
                size = None
                first = self._first_without_limit(page, error)
        plan = PagePlan(first)
        yield first, plan
        try:
            for later in self.in_parallel(page, plan.offsets) if parallel else map(page, plan.offsets):
                plan.add(later)
                yield later, plan
        except TooLarge as error:
            if not self._ask_for_fewer(size):
                raise
            plan.problem = f"{error}: fewer rows a page from now on"
            yield Page([], plan.total, 0), plan

    def _first_without_limit(self, page: Callable[[int], Page], refused: ApiError) -> Page:
        """Ask without `limit`, which may be what was refused; otherwise the refusal stands."""
        try:
            first = page(0)
        except ApiError:
            raise refused from None
        self._page_size = None
        return first

    def _ask_for_fewer(self, size: int | None) -> bool:
        """Halve the pages to come, when they were of this size; False where they cannot be smaller."""
        if not size or size < 2:  # noqa: PLR2004 - one row cannot be halved
            return False
        self._page_size = min(self._page_size or size, size // 2)
        return True

    def in_parallel(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """The results of `work`, in the order of `items`, as many at once as keep the caller busy and the budget feeds."""
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(self._threads.submit(work, item))
                while waiting and (waiting[0].done() or self._is_enough(waiting)):
                    yield self._first(waiting)
            while waiting:
                yield self._first(waiting)
        finally:
            for future in waiting:
                future.cancel()

    def _is_enough(self, waiting: deque[Future[R]]) -> bool:
        """Whether no more should be begun before the first of these is there."""
        under_way = sum(not future.done() for future in waiting)
        return under_way >= int(self._width) or len(waiting) >= 2 * self._width

    def _first(self, waiting: deque[Future[R]]) -> R:
        """The first result; having to wait for it says that more could be under way."""
        future = waiting.popleft()
        rate = min(_FASTEST, self._settings.rate_limit / self._settings.rate_window_seconds)
        most = min(_MOST_IN_FLIGHT, max(IN_FLIGHT, 2 * rate * self._latency))
        wanted = self._width - _NARROWER if future.done() else self._width + 1
        self._width = max(_LEAST_IN_FLIGHT, min(most, wanted))
        return future.result()

    def download(
        self, account: str, path: str, new_sink: Callable[[], Sink], *, refused: str | None = None
    ) -> Download:
        """Stream bytes into a new sink; each try begins a new one, and the last one made holds the bytes.

        Args:
            account: whose bytes.
            path: of the bytes.
            new_sink: makes a place for them.
            refused: a media type that the bytes cannot have, such as that of a page that says why there are none.

        Raises:
            ApiError: also when there are more bytes than CONTIO_DOCUMENT_MAX_MB.
        """
        cap = self._settings.document_max_mb * 2**20

        def once() -> Download:
            what = f"GET {named(path)}"
            request = self._http.build_request(
                "GET",
                f"{self._api}{path}",
                headers={"Accept": "*/*", "Accept-Encoding": "identity"},
                extensions={_UNBOUNDED: True},
            )
            response = self._http.send(request, auth=self._auth(account), stream=True)
            try:
                headers = response.headers
                media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
                if not response.is_success:
                    with ExitStack() as while_it_is_large:
                        self._check(response, self._body(response, while_it_is_large), what)
                if response.status_code != httpx.codes.OK or (refused and media_type == refused):
                    raise BrokenAnswer(f"{what}: {response.status_code} with {media_type or 'no type'}, not a document")
                sink, size, since, before = new_sink(), 0, time.monotonic(), 0
                for chunk in response.iter_bytes():
                    size += len(chunk)
                    if size > cap:
                        raise ApiError(f"{what}: larger than CONTIO_DOCUMENT_MAX_MB ({self._settings.document_max_mb})")
                    sink.write(chunk)
                    elapsed = time.monotonic() - since
                    if elapsed > self._settings.timeout_seconds:
                        if (size - before) / elapsed < _SLOWEST_DOWNLOAD:
                            raise Transient(f"{what}: fewer than {_SLOWEST_DOWNLOAD:.0f} bytes a second")
                        since, before = time.monotonic(), size
                    self._stop_if_asked()
                self._add(bytes=size)
                return Download(
                    headers.get("content-type"),
                    read_filename(headers.get("content-disposition")),
                    measured="content-length" in headers or "transfer-encoding" in headers,
                )
            finally:
                response.close()

        return self._persist(once, f"GET {named(path)}")

    def _ask(self, account: str, path: str, params: dict[str, str], read: Callable[[bytes], R]) -> R:
        """Send one GET until it is answered, and read the answer."""
        what = f"GET {named(path)}"

        url = f"{self._api}{path}?{urlencode(params)}" if params else f"{self._api}{path}"

        def once() -> R:
            request = self._http.build_request("GET", url)
            response = self._http.send(request, auth=self._auth(account), stream=True)
            body = b""
            with ExitStack() as while_it_is_large:
                try:
                    body = self._body(response, while_it_is_large)
                    self._check(response, body, what)
                    return read(body)
                except BrokenAnswer as error:  # kept for a while, and with its frames the whole answer would be
                    body = b""
                    raise error.with_traceback(None) from None
                except ScopeMissing as error:
                    advice = how_to_renew(account)
                    raise ScopeMissing(f"{error}: {advice}", status=error.status, code=error.code) from None
                finally:
                    response.close()

        return self._persist(once, what)

    def _persist(self, once: Callable[[], R], what: str) -> R:
        """Try until it succeeds, fails for good, or CONTIO_RETRY_SECONDS are over (waiting for the budget not counted).

        After one request was given up, others get one try each until one succeeds: a dead server is not hammered, and a
        hundred accounts do not each wait for it. Where requests succeed and fail by turns, only the first few that fail are
        waited for so long. When a number of requests in a row failed, nothing more is sent at all.
        """
        if self._failed_in_a_row >= _FAILURES_IN_A_ROW:
            raise ApiError(f"{what}: not asked for, since {self._failed_in_a_row} requests failed one after the other")
        waited = 0.0

        def attempt() -> R:
            nonlocal waited
            self._stop_if_asked()
            self._count_if_limited()
            before = time.monotonic()
            with self._budget.slot():
                begun = time.monotonic()
                waited += begun - before
                try:
                    return once()
                except (httpx.TransportError, httpx.DecodingError) as error:
                    raise no_answer(error, what, self._host) from error
                finally:
                    self._latency += (time.monotonic() - begun - self._latency) / _FEW_ANSWERS

        def hopeless(state: RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome else None
            spent = (state.seconds_since_start or 0.0) - waited
            over = spent + state.upcoming_sleep > self._settings.retry_seconds or self._out_of_patience
            if over and not self._out_of_patience:
                self._out_of_patience = True
                self._given_up += 1
            few = isinstance(error, BrokenAnswer) or self._given_up >= _PATIENCE
            return over or (few and state.attempt_number >= _BROKEN_ANSWER_TRIES)

        retrying = Retrying(
            retry=retry_if_exception_type(Transient),
            wait=self._pause,
            stop=hopeless,
            sleep=self._sleep,
            before_sleep=self._tell,
            reraise=True,
        )
        try:
            result = retrying(attempt)
        except ApiError as error:
            # What the API itself says of a row or an account shows that it works.
            broken = isinstance(error, Transient) or bool(error.status and not error.code)
            self._failed_in_a_row = self._failed_in_a_row + 1 if broken else 0
            raise
        self._out_of_patience, self._failed_in_a_row = False, 0
        return result

    def _count_if_limited(self) -> None:
        """Take one of the requests that were asked for at most."""
        if self._most_requests is None:
            return
        with self._counting:
            if self._begun >= self._most_requests:
                raise Enough(
                    f"{self._most_requests:,} requests were sent, as --max-requests asked: what was read is kept; run it again "
                    "to go on"
                )
            self._begun += 1

    def budget_left(self) -> tuple[int, int]:
        """How many requests may be sent at once now, and how many in each window of time."""
        allowed = self._budget.allowed()
        return max(0, allowed - self._budget.used()), allowed

    def _pause(self, state: RetryCallState) -> float:
        """Seconds until the next try: what the server asked for, else exponential with jitter."""
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, Transient) else None
        if asked is None:
            pause = _BACK_OFF(state)
        elif state.attempt_number <= _TRUSTED_TRIES:
            pause = asked
        else:
            pause = max(asked, _BACK_OFF(state))
        if isinstance(error, Throttled):
            self._add(throttled=1)
            if kept := self._budget.refused(pause):
                log.warning(
                    "the API allows fewer requests than CONTIO_RATE_LIMIT (%s), or another program on this address asks too: "
                    "keeping to %s in %g s for now",
                    self._settings.rate_limit,
                    kept,
                    self._settings.rate_window_seconds,
                )
        elif isinstance(error, TokensThrottled):
            self._oauth_budget.refused(pause)
        return pause

    def _tell(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.warning("%s: %s; trying again in %.0f s", self.context, error, state.upcoming_sleep)

    def _body(self, response: httpx.Response, while_it_is_large: ExitStack) -> bytes:
        """The whole answer, decompressed; a large one waits until no other is in memory, and holds its place."""
        chunks, size = [], 0
        for chunk in response.iter_bytes():
            if size <= _LARGE < size + len(chunk):
                while_it_is_large.enter_context(self._large)
            size += len(chunk)
            if size > MAX_JSON_BYTES:
                raise TooLarge(_TOO_LARGE)
            chunks.append(chunk)
        self._add(bytes=size)
        return b"".join(chunks)

    def _check(self, response: httpx.Response, body: bytes, what: str) -> None:
        check_status(response.status_code, response.headers, body, what=what, now=datetime.now(UTC))

    def _auth(self, account: str) -> AccountAuth:
        if account not in self._auths:
            self._auths[account] = AccountAuth(
                account,
                self._store,
                refresh=self._refresher.refresh,
                api_slot=self._budget.slot,
                token_slot=self._oauth_budget.slot,
            )
        return self._auths[account]

    def _sent(self, request: httpx.Request) -> None:
        """Called before anything is sent, repeated requests included; tokens are had by another process."""
        request.extensions["trace"] = self._connected
        request.extensions[_DEADLINE] = time.monotonic() + self._settings.timeout_seconds
        self._add(requests=1)

    def _connected(self, event: str, about: dict[str, Any]) -> None:
        """Called with all that happens to connections: remember the sockets, to end them when asked to stop."""
        if event in {"connection.connect_tcp.complete", "connection.start_tls.complete"}:
            connection = about["return_value"].get_extra_info("socket")
            with self._connecting:  # a set that grows while it is read is an error
                self._sockets.add(connection)
            if self._stop.is_set():
                _hang_up(connection)

    def _bound(self, response: httpx.Response) -> None:
        """Called before anything of a body is read."""
        extensions = response.request.extensions
        unbounded = response.is_success and _UNBOUNDED in extensions
        deadline = None if unbounded else extensions[_DEADLINE]
        response.stream = _Bounded(response, deadline, self._settings.timeout_seconds)
        ahead = read_clock(response.headers.get("date"), datetime.now(UTC))
        self.traffic.clock_ahead = self.traffic.clock_ahead if ahead is None else ahead
        self.traffic.api_version = response.headers.get("x-api-version", self.traffic.api_version)

    def _add(self, *, requests: int = 0, throttled: int = 0, bytes: int = 0) -> None:  # noqa: A002 - as in Traffic
        with self._counting:
            self.traffic.requests += requests
            self.traffic.throttled += throttled
            self.traffic.bytes += bytes

    def _tell_wait(self, seconds: float) -> None:
        if seconds >= _WORTH_TELLING:
            self._on_wait(seconds)

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self._stop.is_set():
            raise Cancelled("stopped")
