"""Login: a user's consent in the browser, as authorization code with PKCE and state (RFC 6749, 7636, 8252).

What lives here: the address to open, the listener that the browser comes back to, the exchange of the code, and keeping the
tokens once it is known whose they are. What never does: printing; words for the terminal are `cli`'s.

A code, a verifier or a token never goes into a text made here, nor into a log.
"""

from __future__ import annotations

import errno
import hmac
import queue
import secrets
import socket
import threading
import time
import webbrowser
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from socketserver import ThreadingTCPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import httpx
from oauthlib.oauth2 import MismatchingStateError, MissingCodeError, OAuth2Error, WebApplicationClient

from contio_pipeline.accounts import check_name, check_unlike, tokens_of, warnings_of, who
from contio_pipeline.auth import Tokens, TokenStore
from contio_pipeline.client import new_budgets
from contio_pipeline.errors import (
    AccountError,
    ApiError,
    BrokenAnswer,
    ConfigError,
    ScopeMissing,
    Transient,
)
from contio_pipeline.pacing import Budget
from contio_pipeline.protocol import MAX_JSON_BYTES, check_status, printable, read_object
from contio_pipeline.refresh import TokenEndpoint, http_options, new_http, no_answer
from contio_pipeline.settings import API_PREFIX, Settings
from contio_pipeline.streams import PROFILE_PATH, SCOPES

PATIENCE = 300.0
"""Seconds that the browser is waited for; a code lives as long."""

_VERIFIER_LENGTH = 64
_PROFILE_TRIES = 3
_AGAIN = "run contio-pipeline login again"


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """What a login ended with.

    Attributes:
        who: the user; empty where the consent does not let us read it.
        renewed: whether the account was there before.
        warnings: what is worth a look, each with what to do.
    """

    account: str
    who: str
    renewed: bool
    warnings: tuple[str, ...]


class Login:
    """One try to log in: first a code, from `wait_for_browser` or `read_pasted`, then `finish`.

    Attributes:
        url: what the user opens.

    Raises:
        ConfigError: the application's credentials are not set, or no account can have the name.
    """

    def __init__(self, settings: Settings, account: str | None = None) -> None:
        identity, _ = settings.credentials()
        self._settings = settings
        self._account = check_name(account) if account is not None else None
        check_unlike(account or "", TokenStore(settings.state_dir).names())  # before anybody consents
        self._client = WebApplicationClient(identity)
        self._state = secrets.token_urlsafe(32)
        self._verifier = self._client.create_code_verifier(_VERIFIER_LENGTH)
        url = self._client.prepare_request_uri(
            _as_https(settings.authorize_url),
            redirect_uri=settings.redirect_uri,
            scope=list(SCOPES),
            state=self._state,
            code_challenge=self._client.create_code_challenge(self._verifier, "S256"),
            code_challenge_method="S256",
        )
        self.url = settings.authorize_url + url.removeprefix(_as_https(settings.authorize_url))

    # ---------------------------------------------------------------------------------------------------- the code

    def wait_for_browser(self, ready: Callable[[], None], *, patience: float = PATIENCE) -> str:
        """Open the browser, and wait until it comes back with a code.

        Args:
            ready: called before the browser is opened.
            patience: seconds to wait.

        Raises:
            ConfigError: nobody can listen on the redirect URI.
            AccountError: the user did not consent, or nobody came in time.
        """
        parts = urlsplit(self._settings.redirect_uri)
        if parts.scheme != "http":
            raise ConfigError(
                f"the browser comes back to {self._settings.redirect_uri} (CONTIO_REDIRECT_URI), where this program cannot "
                "listen: use contio-pipeline login --no-browser"
            )
        host, port = parts.hostname or "", parts.port or 0
        answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        with ExitStack() as listening:
            try:
                _listen(listening, (host, port), parts.path or "/", self._state, answers)
            except OSError as error:
                raise ConfigError(
                    f"port {port} of {host} cannot be listened on ({error.strerror or error}), so the browser cannot come back: "
                    "stop the program that uses it, register another redirect URI and set CONTIO_REDIRECT_URI, or use "
                    "contio-pipeline login --no-browser"
                ) from None
            until = time.monotonic() + patience
            ready()
            webbrowser.open(self.url)
            try:
                answer = answers.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise AccountError(
                    f"nobody came back from the browser within {patience:.0f} s: {_AGAIN}. If the browser showed an error about "
                    f"the redirect URI, register {self._settings.redirect_uri} with the partner application, or set "
                    "CONTIO_REDIRECT_URI to the one that is. If it runs on another machine, use --no-browser"
                ) from None
        return self._read_redirect(answer)

    def read_pasted(self, text: str) -> str:
        """The code in what a person pasted: the whole address that the browser was sent to, or the code alone.

        Raises:
            AccountError: there is none, or it comes from another login.
        """
        text = text.strip()
        if "://" in text or "code=" in text or "error=" in text:
            return self._read_redirect(text.partition("?")[2] or text)
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            raise AccountError(f"that is neither an address with a code in it nor a code: {_AGAIN}")
        return text

    def _read_redirect(self, query: str) -> str:
        """The code in the query of a redirect to us."""
        try:
            answer = self._client.parse_request_uri_response(
                f"{_as_https(self._settings.redirect_uri)}?{query}", state=self._state
            )
        except MismatchingStateError:
            raise AccountError(
                f"that address belongs to another login: {_AGAIN}, and use the address that it prints"
            ) from None
        except MissingCodeError:
            raise AccountError(f"there is no code in that address: {_AGAIN}") from None
        except OAuth2Error as error:
            said = printable(f"{error.error} {error.description or ''}".strip())[:300]
            raise AccountError(f"{_refusal(error.error)} ({said})") from None
        return str(answer["code"])

    # -------------------------------------------------------------------------------------------------- the tokens

    def finish(self, code: str) -> LoggedIn:
        """Exchange the code, see whose tokens it gives, and keep them.

        Raises:
            AccountError: the code is not accepted, or the tokens are another user's than the account's.
            ApiError: the server failed; nothing was kept.
        """
        settings = self._settings
        budgets = new_budgets(settings, time.sleep)
        urls = (settings.api_url,)
        with ExitStack() as stack:
            for budget in budgets:
                stack.callback(budget.close)
            http = stack.enter_context(
                new_http(lambda: httpx.Client(**http_options(urls, settings.ca_bundle, settings.timeout_seconds)))
            )
            with budgets[1].slot():
                tokens = self._exchange(code)
            profile = self._profile(http, budgets[0], tokens)
        return self._keep(tokens, profile)

    def _exchange(self, code: str) -> Tokens:
        """Tokens for the code. Sent once: a code that is sent again ends what it gave."""
        settings = self._settings
        body = self._client.prepare_request_body(
            code=code, redirect_uri=settings.redirect_uri, code_verifier=self._verifier
        )
        with closing(
            TokenEndpoint(
                settings.token_url,
                settings.credentials(),
                timeout=settings.timeout_seconds,
                ca_bundle=settings.ca_bundle,
            )
        ) as endpoint:
            try:
                answer = endpoint.ask(dict(parse_qsl(body)), code, self._verifier)
                tokens = endpoint.tokens(answer, Tokens("", scope=" ".join(SCOPES)), time.time())
            except Transient as error:
                raise ApiError(f"{error}; the code may be used up: {_AGAIN}", status=error.status) from None
            except ApiError as error:
                if error.code == "invalid_grant":
                    raise AccountError(
                        f"the code is not accepted ({error}): it lives for five minutes, works once, and only with the redirect "
                        f"URI that it was asked for with: {_AGAIN}, and be quicker"
                    ) from None
                raise
        if not tokens.refresh_token:
            raise ApiError("the token endpoint gave no refresh token: ask Contio whether the application may have one")
        return tokens

    def _profile(self, http: httpx.Client, budget: Budget, tokens: Tokens) -> dict[str, Any] | None:
        """Whose tokens they are; None where the consent does not include the profile."""
        for tries_left in reversed(range(_PROFILE_TRIES)):
            try:
                with budget.slot():
                    profile = self._read_profile(http, tokens.access_token)
                if isinstance(profile.get("id"), str) and profile["id"]:
                    return profile
                raise BrokenAnswer("the profile has no id")
            except ScopeMissing:
                return None
            except Transient as error:
                if not tries_left:
                    raise ApiError(
                        f"{error}; whose tokens they are could not be seen, so they were not kept: {_AGAIN} later"
                    ) from None
                time.sleep(1)
        raise AssertionError

    def _read_profile(self, http: httpx.Client, access_token: str) -> dict[str, Any]:
        what, body = f"GET {PROFILE_PATH}", b""
        url = f"{self._settings.api_url}{API_PREFIX}/{PROFILE_PATH}"
        headers = {"Authorization": f"Bearer {access_token}", "Accept-Encoding": "identity"}
        until = time.monotonic() + self._settings.timeout_seconds
        try:
            with http.stream("GET", url, headers=headers) as response:
                for chunk in response.iter_raw():
                    body += chunk
                    if time.monotonic() > until or len(body) > MAX_JSON_BYTES:
                        raise Transient(f"{what}: no answer that is whole in time and of a sensible size")
        except httpx.HTTPError as error:
            raise no_answer(error, what, urlsplit(url).hostname or "") from None
        check_status(response.status_code, response.headers, body, what=what, now=datetime.now(UTC))
        return read_object(body)

    def _keep(self, tokens: Tokens, profile: dict[str, Any] | None) -> LoggedIn:
        """Store the tokens, unless the account is another user's."""
        store = TokenStore(self._settings.state_dir)
        name = self._account or _name_of(profile, store)
        check_unlike(name, store.names())
        with store.lock(name):
            before = tokens_of(store, name)
            if before and profile is None:
                raise AccountError(
                    f"the consent does not include the user's profile, so that nobody knows whether account {name!r} is theirs; "
                    f"it was left as it is: {_AGAIN} and allow the profile, or give a new name with --account"
                )
            user = profile["id"] if profile else ""
            if before and before.profile_id not in {"", user}:
                raise AccountError(
                    f"account {name!r} belongs to another Contio user than {who(profile or {})}, who is logged in there: it "
                    "was left as it is. Log in as the other user, or give this one a name of its own with --account"
                )
            store.write(name, replace(tokens, profile_id=user))
        return LoggedIn(name, who(profile) if profile else "", before is not None, warnings_of(store, name))


def _name_of(profile: dict[str, Any] | None, store: TokenStore) -> str:
    """The account that the user has already, else the user's e-mail address."""
    user = profile["id"] if profile else ""
    theirs = [name for name in store.names() if user and (held := tokens_of(store, name)) and held.profile_id == user]
    try:
        return theirs[0] if len(theirs) == 1 else check_name(str((profile or {}).get("email") or ""))
    except ConfigError:
        raise AccountError(
            "the user has no e-mail address that could name the account, so nothing was kept: name it with "
            "contio-pipeline login --account NAME"
        ) from None


def _refusal(code: str) -> str:
    match code:
        case "access_denied":
            return f"consent was not given in the browser: {_AGAIN} and allow access"
        case "invalid_scope":
            return f"the partner application may not ask for all of {' '.join(SCOPES)}: have Contio allow it"
        case "unauthorized_client" | "unsupported_response_type":
            return "the partner application may not log users in like this: have Contio allow it"
    return f"the login was refused: {_AGAIN}; if it stays so, ask Contio's support"


def _as_https(url: str) -> str:
    """The address as oauthlib wants it, which takes no other: plain http here never leaves this machine (`settings`)."""
    return "https:" + url.partition(":")[2]


# The listener -----------------------------------------------------------------------------------------------------------

_Address = tuple[socket.AddressFamily, tuple[Any, ...]]


def _listen(stack: ExitStack, where: tuple[str, int], path: str, state: str, answers: queue.SimpleQueue[str]) -> None:
    """Listen on all of this machine's own addresses that the browser may try for the host.

    Raises:
        OSError: one of them is in use, or none can be listened on.
    """
    found = {(family, address) for family, _, _, _, address in socket.getaddrinfo(*where, type=socket.SOCK_STREAM)}
    failure = OSError("it is not this machine")
    listeners = 0
    for address in sorted(found, key=str):
        if not ip_address(str(address[1][0])).is_loopback:
            continue
        try:
            stack.enter_context(_listener(address, path, state, answers))
            listeners += 1
        except OSError as error:
            if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:  # a machine without IPv6 may know its name
                raise
            failure = error
    if not listeners:
        raise failure


def _listener(address: _Address, path: str, state: str, answers: queue.SimpleQueue[str]) -> ExitStack:
    """Listens until it is closed; the query of the first redirect that carries our state goes to `answers`."""

    class Callback(BaseHTTPRequestHandler):
        timeout = 10  # browsers open connections ahead, and say nothing

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            given = parse_qs(asked.query)
            if asked.path != path:
                self._answer(HTTPStatus.NOT_FOUND, "There is nothing here.")
            elif not hmac.compare_digest("".join(given.get("state", [])).encode(), state.encode()):
                self._answer(HTTPStatus.BAD_REQUEST, "This does not belong to the login that is under way.")
            else:
                answers.put(asked.query)
                self._answer(HTTPStatus.OK, "You can close this window and go back to the terminal.")

        def _answer(self, status: HTTPStatus, text: str) -> None:
            body = f"<!doctype html><meta charset=utf-8><title>contio-pipeline</title><p>{text}</p>\n".encode()
            self.send_response_only(status)
            for name, value in {
                "Content-Type": "text/html; charset=utf-8",
                "Content-Length": str(len(body)),
                "Cache-Control": "no-store",
                "Referrer-Policy": "no-referrer",
                "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
                "X-Content-Type-Options": "nosniff",
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            """Says nothing: it would print the code."""

    class Server(ThreadingTCPServer):
        address_family = address[0]
        allow_reuse_address = True
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Says nothing: a connection that breaks is the browser's affair, and a traceback would be printed."""

    stack = ExitStack()
    server = stack.enter_context(Server(address[1], Callback))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    stack.callback(thread.join)
    stack.callback(server.shutdown)
    return stack
