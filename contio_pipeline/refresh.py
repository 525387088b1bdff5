"""The token endpoint, asked from a process of its own, so that no kill -9 of a sync loses a rotated token.

What lives here: one refresh, from reading the store to the new token being on disk, and the process that does it. What never
does: signing requests (`auth`), retries and the budget (`client`).

A refresh makes the old token void when the server answers, and the new one is only in that answer. A process that is killed
in between has lost the account. So a small process does it: it has a session of its own, ignores the signals that stop a
sync, ends when the sync is gone, and never before the answer is stored (docs/decisions/0013).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pickle
import select
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, quote_plus, urlsplit

import httpx

from contio_pipeline import __version__
from contio_pipeline.auth import Tokens, TokenStore, how_to_renew, lasts
from contio_pipeline.errors import (
    AccountError,
    ApiError,
    BrokenAnswer,
    ConfigError,
    ContioError,
    CredentialsRefused,
    Throttled,
    TokensThrottled,
    Transient,
    Unauthorized,
)
from contio_pipeline.protocol import check_status, read_object
from contio_pipeline.settings import Secret, Settings, is_loopback

_MAX_ANSWER = 2**20
_WHAT = "token endpoint"

_DEFAULT_LIFETIME = 3600.0
_LONGEST_LIFETIME = 365 * 86_400.0
"""Seconds; an `expires_in` that is absent or beyond belief counts as the default."""

_CONNECT_SECONDS = 10.0
"""At most: a thread that connects cannot be asked to stop."""

_NAP = 0.2
"""Seconds between two looks at whether the sync was asked to stop, while its refresh is under way."""


# HTTP that all requests share -----------------------------------------------------------------------------------------


def http_options(urls: tuple[str, ...], ca_bundle: Path | None, timeout: float) -> dict[str, Any]:
    """What every httpx client of ours is made with: whom it trusts, how long it waits, which proxies it asks.

    Reading all authorities takes a tenth of a small sync, which plain HTTP to this machine has no use for. A proxy from the
    environment is never asked for this machine's own addresses.
    """
    plain = all(url.startswith("http:") for url in urls)
    return {
        "headers": {"Accept": "application/json", "User-Agent": f"contio-pipeline/{__version__}"},
        "timeout": httpx.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS)),
        "verify": ssl.create_default_context(cafile=ca_bundle) if ca_bundle else not plain,
        "mounts": {f"all://{urlsplit(url).netloc}": None for url in urls if is_loopback(url)},
    }


def new_http(make: Callable[[], httpx.Client]) -> httpx.Client:
    """The client; ConfigError where the environment's proxies or certificates do not allow one."""
    try:
        return make()
    except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
        raise ConfigError(f"HTTP cannot be set up ({error}): look at the proxy variables and SSL_CERT_FILE") from None


def no_answer(error: Exception, what: str, host: str) -> ApiError:
    """What a request that httpx gave up means: worth another try, unless the certificate is not trusted."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ApiError(
                f"{what}: the server's certificate is not trusted ({cause.verify_message}): set CONTIO_CA_BUNDLE"
            )
        cause = cause.__cause__ or cause.__context__
    return Transient(f"{what}: no answer from {host} ({type(error).__name__}: {error})")


# The endpoint ---------------------------------------------------------------------------------------------------------


class TokenEndpoint:
    """The authorization server's token endpoint, as this application."""

    def __init__(
        self,
        token_url: str,
        credentials: tuple[str, Secret],
        *,
        timeout: float = 30,
        ca_bundle: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._url = token_url
        self._identity, self._secret = credentials
        self._timeout = timeout
        self._clock = clock
        self._encoded = False
        self._http = new_http(lambda: httpx.Client(**http_options((token_url,), ca_bundle, timeout)))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def refresh(self, store: TokenStore, name: str, stale: str) -> Tokens:
        """Make the stored tokens newer than the access token `stale`, unless another process just did; they are on disk.

        Raises:
            AccountError: the refresh token, or the application, is no longer accepted.
            ApiError: the endpoint failed; `Transient` when another try may help.
        """
        with store.lock(name) as descriptor:
            stored = store.read(name)
            if stored.access_token != stale and lasts(stored, self._clock()):
                return stored
            unanswered = _Unanswered(descriptor, stored.refresh_token)
            lost_before = unanswered.noted
            unanswered.note()
            try:
                answer = self.ask(
                    {"grant_type": "refresh_token", "refresh_token": stored.refresh_token}, stored.refresh_token
                )
            except ApiError as error:
                if not lost_before and 400 <= error.status < 500:  # noqa: PLR2004 - it was answered, and not used
                    unanswered.forget()
                if error.code != "invalid_grant":
                    raise
                store.write(name, replace(stored, refused_at=self._clock()))
                raise AccountError(_refused(name, lost=lost_before)) from None
            now = self._clock()
            tokens = self.tokens(answer, stored, now)
            store.write(name, tokens)
            unanswered.forget()
            return tokens

    def ask(self, form: Mapping[str, str], *secrets: str) -> dict[str, Any]:
        """Post a form and return the answer, a JSON object.

        Whether the vendor reads Basic credentials raw or form-encoded (RFC 6749, section 2.3.1) is not documented: when they
        are refused and would look different, the other way is tried.

        Args:
            form: the fields.
            secrets: what the server may repeat and no message may hold, besides the client secret.
        """
        try:
            return self._ask(form, secrets)
        except CredentialsRefused:
            if self._encoded or quote_plus(self._plain_secret) + quote_plus(self._identity) == (
                self._plain_secret + self._identity
            ):
                raise
        self._encoded = True
        try:
            return self._ask(form, secrets)
        except CredentialsRefused:
            self._encoded = False
            raise

    @property
    def _plain_secret(self) -> str:
        return self._secret.reveal()

    def _ask(self, form: Mapping[str, str], secrets: tuple[str, ...]) -> dict[str, Any]:
        identity, secret = self._identity, self._plain_secret
        if self._encoded:
            identity, secret = quote_plus(identity), quote_plus(secret)
        basic = base64.b64encode(f"{identity}:{secret}".encode()).decode()
        status, headers, body = self._post(form, f"Basic {basic}")
        try:
            check_status(
                status,
                headers,
                _without(body, (*secrets, self._plain_secret)),
                what=_WHAT,
                now=datetime.fromtimestamp(self._clock(), UTC),
            )
        except Throttled as error:
            raise TokensThrottled(str(error), status=error.status, retry_after=error.retry_after) from None
        except Transient:
            raise
        except ApiError as error:
            if error.code == "invalid_client" or isinstance(error, Unauthorized):
                raise CredentialsRefused(
                    f"the token endpoint refused the application's credentials ({error}): check CONTIO_CLIENT_ID and "
                    "CONTIO_CLIENT_SECRET"
                ) from None
            raise
        return read_object(body)

    def _post(self, form: Mapping[str, str], authorization: str) -> tuple[int, httpx.Headers, bytes]:
        deadline, body = time.monotonic() + self._timeout, b""
        headers = {"Authorization": authorization, "Accept-Encoding": "identity"}
        try:
            with self._http.stream("POST", self._url, headers=headers, data=dict(form)) as response:
                for chunk in response.iter_raw():
                    body += chunk
                    if len(body) > _MAX_ANSWER:
                        raise BrokenAnswer(f"{_WHAT}: an answer of more than {_MAX_ANSWER >> 20} MB")
                    if time.monotonic() > deadline:
                        raise Transient(f"{_WHAT}: no whole answer within {self._timeout:g} s (CONTIO_TIMEOUT_SECONDS)")
        except httpx.HTTPError as error:
            raise no_answer(error, _WHAT, urlsplit(self._url).hostname or "") from None
        return response.status_code, response.headers, body

    @staticmethod
    def tokens(answer: Mapping[str, Any], before: Tokens, now: float) -> Tokens:
        """The tokens in an answer; one without a refresh token leaves the old one valid.

        Raises:
            BrokenAnswer: there is no access token in it.
        """
        access = answer.get("access_token")
        if not isinstance(access, str) or not access.isascii() or not access.isprintable() or not access:
            raise BrokenAnswer("the token endpoint answered without an access_token")
        lifetime = answer.get("expires_in")
        if not isinstance(lifetime, int | float) or not 0 < lifetime < _LONGEST_LIFETIME:
            lifetime = _DEFAULT_LIFETIME
        refresh, scope = answer.get("refresh_token"), answer.get("scope")
        return replace(
            before,
            access_token=access,
            expires_at=now + lifetime,
            refresh_token=refresh if isinstance(refresh, str) and refresh else before.refresh_token,
            scope=scope if isinstance(scope, str) else before.scope,
            refreshed_at=now,
            refused_at=0.0,
        )


def _refused(name: str, *, lost: bool) -> str:
    why = (
        "an earlier refresh was sent, and its answer never arrived: it seems to have used the token up"
        if lost
        else "expired, revoked, or already used by another program"
    )
    return f"the refresh token of account {name!r} is no longer accepted ({why}): {how_to_renew(name)}"


def _without(body: bytes, secrets: tuple[str, ...]) -> bytes:
    """The JSON answer, for messages: a server may repeat what it was sent, escaped in its own way."""
    try:
        text = json.dumps(json.loads(body), ensure_ascii=False)
    except (ValueError, RecursionError):
        return body  # no word of what is not JSON goes into a message
    for secret in secrets:
        for form in (json.dumps(secret, ensure_ascii=False)[1:-1], quote(secret, safe="")):
            text = text.replace(form, "(secret)")
    return text.encode(errors="replace")


class _Unanswered:
    """A note in the account's lock file: this refresh token was sent, and no answer is stored yet."""

    def __init__(self, descriptor: int, refresh_token: str) -> None:
        self._descriptor = descriptor
        self._mark = hashlib.sha256(refresh_token.encode()).hexdigest()[:16].encode()

    @property
    def noted(self) -> bool:
        """Whether an earlier refresh left it."""
        return os.pread(self._descriptor, len(self._mark), 0) == self._mark

    def note(self) -> None:
        """Write it, before the token is sent."""
        os.pwrite(self._descriptor, self._mark, 0)
        os.fsync(self._descriptor)

    def forget(self) -> None:
        """The answer is stored."""
        os.ftruncate(self._descriptor, 0)


# The process ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Setup:
    """What the process is told at its start, through a pipe: a command line could be read by others."""

    state_dir: str
    token_url: str
    client_id: str
    client_secret: str
    timeout: float
    ca_bundle: str | None


class RefreshProcess:
    """Refreshes tokens in a process that outlives this one for as long as an answer is on its way.

    It is started by the first refresh and serves all accounts. Safe to use from several threads.
    """

    def __init__(self, settings: Settings, stop_if_asked: Callable[[], None] = lambda: None) -> None:
        identity, secret = settings.credentials()
        self._setup = _Setup(
            str(settings.state_dir),
            settings.token_url,
            identity,
            secret.reveal(),
            settings.timeout_seconds,
            str(settings.ca_bundle) if settings.ca_bundle else None,
        )
        self._stop_if_asked = stop_if_asked
        self._one_thread = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def refresh(self, name: str, stale: str) -> Tokens:
        """See `TokenEndpoint.refresh`.

        Raises:
            Cancelled: this process was asked to stop; the refresh goes on, and its tokens will be stored.
        """
        with self._one_thread:
            process = self._process = self._process or self._start()
            assert process.stdin is not None  # noqa: S101 - they are pipes
            assert process.stdout is not None  # noqa: S101
            try:
                pickle.dump((name, stale), process.stdin)
                process.stdin.flush()
                while not select.select([process.stdout], [], [], _NAP)[0]:
                    self._stop_if_asked()
                answer = pickle.load(process.stdout)  # noqa: S301 - our own process
            except (OSError, EOFError, pickle.UnpicklingError):
                self.close()
                raise Transient(f"{_WHAT}: the process that does it ended unexpectedly") from None
        if isinstance(answer, Tokens):
            return answer
        raise answer

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # all that it has to say comes through the pipe
            start_new_session=True,
        )
        assert process.stdin is not None  # noqa: S101 - it is a pipe
        pickle.dump(self._setup, process.stdin)
        return process

    def close(self) -> None:
        """Let the process end: at once, or as soon as the answer that is on its way is stored."""
        process, self._process = self._process, None
        if process and process.stdin and process.stdout:
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()
            try:
                process.wait(_NAP)
            except subprocess.TimeoutExpired:
                _ENDING.append(process)


_ENDING: list[subprocess.Popen[bytes]] = []
"""Processes that still wait for an answer; kept, since Python complains of one that is forgotten while it runs."""


class _Reader(Protocol):
    def read(self, size: int, /) -> bytes: ...

    def readline(self) -> bytes: ...


def serve(requests: _Reader, answer: Callable[[bytes], object]) -> None:
    """Refresh what is asked for until there is nobody left to ask."""
    setup: _Setup = pickle.load(requests)  # noqa: S301 - from the process that started this one
    store, endpoint = TokenStore(Path(setup.state_dir)), None
    while True:
        try:
            name, stale = pickle.load(requests)  # noqa: S301 - the same
        except EOFError:
            return
        told: Tokens | Exception
        try:
            endpoint = endpoint or TokenEndpoint(
                setup.token_url,
                (setup.client_id, Secret(setup.client_secret)),
                timeout=setup.timeout,
                ca_bundle=Path(setup.ca_bundle) if setup.ca_bundle else None,
            )
            told = endpoint.refresh(store, name, stale)
        except (ContioError, OSError) as error:
            told = error
        told = told.with_traceback(None) if isinstance(told, Exception) else told
        answer(pickle.dumps(told))


def main() -> None:
    """What the process does: `RefreshProcess` starts it, and stops it by closing its standard input."""
    for ends in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(ends, signal.SIG_IGN)
    os.umask(0o077)
    with suppress(BrokenPipeError):  # the sync is gone, and its tokens are stored
        serve(sys.stdin.buffer, lambda data: os.write(sys.stdout.fileno(), data))


if __name__ == "__main__":
    main()
