"""HTTP: one reused client for all accounts; pages, single rows, profile and downloads, with retries and the shared budget.

What lives here: sending, waiting, threads. What never does: storage, and rules of the API (`protocol` decides).
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from http.cookiejar import DefaultCookiePolicy
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar
from urllib.parse import urlsplit

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential, wait_random

from contio_pipeline import __version__
from contio_pipeline.auth import AccountAuth, TokenStore
from contio_pipeline.errors import ApiError, BrokenAnswer, Cancelled, ConfigError, Throttled, Transient
from contio_pipeline.pacing import Budget
from contio_pipeline.protocol import (
    MAX_JSON_BYTES,
    PAGE_SIZE,
    Page,
    PagePlan,
    check_status,
    read_filename,
    read_object,
    read_page,
)
from contio_pipeline.settings import API_PREFIX, Settings, is_loopback

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)

IN_FLIGHT = 8
"""Requests at once: one reused connection exceeds the API's limit six times already, so this only hides latency."""

_BROKEN_ANSWER_TRIES = 3
_BACK_OFF = wait_exponential(multiplier=0.5, max=60) + wait_random(0, 0.5)
_OAUTH_REQUESTS = 100  # per five minutes, the vendor's own limit on the token endpoint
_OAUTH_WINDOW = 300.0
_SLOWEST_DOWNLOAD = 1024.0  # bytes a second, averaged over one timeout


_DEADLINE, _UNBOUNDED = "contio_deadline", "contio_unbounded"  # in a request's extensions


class _Bounded(httpx.SyncByteStream):
    """A body that must be whole by a deadline: httpx's own timeout never fires on a server that drips."""

    def __init__(self, stream: httpx.SyncByteStream, deadline: float, seconds: float) -> None:
        self._stream = stream
        self._deadline = deadline
        self._seconds = seconds

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self._stream:
            size += len(chunk)
            if time.monotonic() > self._deadline:
                raise Transient(f"no whole answer within {self._seconds:g} s (CONTIO_TIMEOUT_SECONDS)")
            if size > MAX_JSON_BYTES:
                raise BrokenAnswer(f"an answer has more than {MAX_JSON_BYTES >> 20} MB")
            yield chunk

    def close(self) -> None:
        self._stream.close()


class Sink(Protocol):
    """Where downloaded bytes go."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes."""


@dataclass(slots=True)
class Traffic:
    """What was sent and received so far; API requests only, all tries counted."""

    requests: int = 0
    throttled: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Download:
    """What the server said about bytes that were downloaded."""

    content_type: str | None
    filename: str | None


class Client:
    """The API as one account at a time sees it; a context manager.

    All methods may raise `AccountError` (the account needs a person), `ApiError` (final) or `Cancelled`.
    """

    def __init__(self, settings: Settings, on_wait: Callable[[float], None] = lambda _seconds: None) -> None:
        self.traffic = Traffic()
        self.context = ""  # account and stream at work, for the log
        self._settings = settings
        self._on_wait = on_wait
        self._stop = threading.Event()
        self._counting = threading.Lock()
        self._out_of_patience = False
        self._store = TokenStore(settings.state_dir)
        self._auths: dict[str, AccountAuth] = {}
        self._api = httpx.URL(settings.api_url + API_PREFIX + "/")
        budget_file = f"budget-{self._api.host.replace(':', '_')}-{self._api.port or 443}"
        self._budget = Budget(
            settings.state_dir / f"{budget_file}.sqlite",
            limit=settings.rate_limit,
            window=settings.rate_window_seconds,
            timeout=settings.timeout_seconds,
            sleep=self._wait_for_budget,
        )
        self._oauth_budget = Budget(
            settings.state_dir / f"{budget_file}-oauth.sqlite",
            limit=_OAUTH_REQUESTS,
            window=_OAUTH_WINDOW,
            timeout=settings.timeout_seconds,
            sleep=self._wait_for_budget,
        )
        try:
            self._http = httpx.Client(
                headers={"Accept": "application/json", "User-Agent": f"contio-pipeline/{__version__}"},
                timeout=settings.timeout_seconds,
                limits=httpx.Limits(max_connections=IN_FLIGHT + 1, max_keepalive_connections=IN_FLIGHT + 1),
                verify=ssl.create_default_context(cafile=settings.ca_bundle) if settings.ca_bundle else True,
                # A proxy from the environment is never asked for this machine's own addresses.
                mounts={
                    f"all://{urlsplit(url).netloc}": None
                    for url in (settings.api_url, settings.token_url)
                    if is_loopback(url)
                },
                event_hooks={"request": [self._sent], "response": [self._bound]},
            )
        except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
            raise ConfigError(
                f"HTTP cannot be set up ({error}): look at the proxy variables and SSL_CERT_FILE"
            ) from None
        # One client serves many users: a cookie set for one must never go out with another's request.
        self._http.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._threads = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="contio")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._http.close()
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

    def pages(
        self, account: str, path: str, params: dict[str, str], *, parallel: bool = True
    ) -> Iterator[tuple[Page, PagePlan]]:
        """All pages of a list, in order, each with the plan that has taken it in; look at `plan.problem` at any time.

        Args:
            account: whose list.
            path: of the list.
            params: its filters.
            parallel: fetch pages after the first on several threads; False inside a thread of `in_parallel`.
        """

        def page(offset: int) -> Page:
            query = {**params, "limit": str(PAGE_SIZE), "offset": str(offset)}
            return self._ask(account, path, query, lambda body: read_page(body, offset))

        first = page(0)
        plan = PagePlan(first)
        yield first, plan
        for later in self.in_parallel(page, plan.offsets) if parallel else map(page, plan.offsets):
            plan.add(later)
            yield later, plan

    def in_parallel(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """The results of `work`, in the order of `items`, a few at once; never more waiting than twice the threads."""
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(self._threads.submit(work, item))
                if len(waiting) >= 2 * IN_FLIGHT:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def download(self, account: str, path: str, new_sink: Callable[[], Sink]) -> Download:
        """Stream bytes into a new sink; each try begins a new one, and the last one made holds the bytes.

        Raises:
            ApiError: also when there are more bytes than CONTIO_DOCUMENT_MAX_MB.
        """
        cap = self._settings.document_max_mb * 2**20

        def once() -> Download:
            what = f"GET {path}"
            request = self._http.build_request(
                "GET",
                self._api.join(path),
                headers={"Accept": "*/*", "Accept-Encoding": "identity"},
                extensions={_UNBOUNDED: True},
            )
            response = self._http.send(request, auth=self._auth(account), stream=True)
            try:
                if not response.is_success:
                    self._check(response, self._body(response), what)
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
                headers = response.headers
                return Download(headers.get("content-type"), read_filename(headers.get("content-disposition")))
            finally:
                response.close()

        return self._persist(once, f"GET {path}")

    def _ask(self, account: str, path: str, params: dict[str, str], read: Callable[[bytes], R]) -> R:
        """Send one GET until it is answered, and read the answer."""
        what = f"GET {path}"

        def once() -> R:
            request = self._http.build_request("GET", self._api.join(path), params=params)
            response = self._http.send(request, auth=self._auth(account), stream=True)
            try:
                body = self._body(response)
            finally:
                response.close()
            self._check(response, body, what)
            return read(body)

        return self._persist(once, what)

    def _persist(self, once: Callable[[], R], what: str) -> R:
        """Try until it succeeds, fails for good, or CONTIO_RETRY_SECONDS are over (waiting for the budget not counted).

        After one request was given up, others get one try each until one succeeds: a dead server is not hammered, and a
        hundred accounts do not each wait for it.
        """
        waited = 0.0

        def attempt() -> R:
            nonlocal waited
            self._stop_if_asked()
            before = time.monotonic()
            with self._budget.slot():
                waited += time.monotonic() - before
                try:
                    return once()
                except (httpx.TransportError, httpx.DecodingError) as error:
                    raise self._no_answer(error, what) from error

        def hopeless(state: RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome else None
            spent = (state.seconds_since_start or 0.0) - waited
            over = spent + state.upcoming_sleep > self._settings.retry_seconds or self._out_of_patience
            self._out_of_patience = self._out_of_patience or over
            return over or (isinstance(error, BrokenAnswer) and state.attempt_number >= _BROKEN_ANSWER_TRIES)

        retrying = Retrying(
            retry=retry_if_exception_type(Transient),
            wait=self._pause,
            stop=hopeless,
            sleep=self._sleep,
            before_sleep=self._tell,
            reraise=True,
        )
        result = retrying(attempt)
        self._out_of_patience = False
        return result

    def _pause(self, state: RetryCallState) -> float:
        """Seconds until the next try: what the server asked for, else exponential with jitter."""
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, Transient) else None
        pause = _BACK_OFF(state) if asked is None else asked
        if isinstance(error, Throttled):
            self._add(throttled=1)
            self._budget.hold(pause)
        return pause

    def _tell(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.warning("%s: %s; trying again in %.0f s", self.context, error, state.upcoming_sleep)

    def _no_answer(self, error: Exception, what: str) -> ApiError:
        cause: BaseException | None = error
        while cause:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return ApiError(
                    f"{what}: the server's certificate is not trusted ({cause.verify_message}): set CONTIO_CA_BUNDLE"
                )
            cause = cause.__cause__ or cause.__context__
        return Transient(f"{what}: no answer from {self._api.host} ({type(error).__name__}: {error})")

    def _body(self, response: httpx.Response) -> bytes:
        """The whole answer, decompressed."""
        chunks, size = [], 0
        for chunk in response.iter_bytes():
            size += len(chunk)
            if size > MAX_JSON_BYTES:
                raise BrokenAnswer(f"the API answered with more than {MAX_JSON_BYTES >> 20} MB of JSON")
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
                token_url=self._settings.token_url,
                credentials=self._settings.credentials(),
                api_slot=self._budget.slot,
                token_slot=self._oauth_budget.slot,
            )
        return self._auths[account]

    def _sent(self, request: httpx.Request) -> None:
        """Called before anything is sent, token requests and repeated ones included."""
        request.extensions.setdefault("timeout", self._http.timeout.as_dict())
        request.extensions[_DEADLINE] = time.monotonic() + self._settings.timeout_seconds
        if str(request.url).startswith(str(self._api)):
            self._add(requests=1)

    def _bound(self, response: httpx.Response) -> None:
        """Called before anything of a body is read."""
        if not (response.is_success and _UNBOUNDED in response.request.extensions):
            assert isinstance(response.stream, httpx.SyncByteStream)  # noqa: S101 - the client is not an async one
            seconds = self._settings.timeout_seconds
            response.stream = _Bounded(response.stream, response.request.extensions[_DEADLINE], seconds)

    def _add(self, *, requests: int = 0, throttled: int = 0, bytes: int = 0) -> None:  # noqa: A002 - as in Traffic
        with self._counting:
            self.traffic.requests += requests
            self.traffic.throttled += throttled
            self.traffic.bytes += bytes

    def _wait_for_budget(self, seconds: float) -> None:
        self._on_wait(seconds)
        self._sleep(seconds)

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self._stop.is_set():
            raise Cancelled("stopped")
