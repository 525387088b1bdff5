"""The sandbox's HTTP side: the Partner User API and its authorization server over a `World`, on a loopback socket.

What lives here: routes, envelopes, errors, consent, tokens, scopes, rate limits, the request log, faults on
request and the control endpoints under `/_sandbox`. What never does: rows and who sees them (`world`).

Rules follow the vendor's OpenAPI 1.10; where that is silent, `Sandbox` has a switch for each way it could be.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import random
import re
import secrets
import signal
import socket
import sys
import threading
import time
from base64 import b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections import deque
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, Literal, Self
from urllib.parse import parse_qs, unquote_plus, urlencode, urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from contio_pipeline.sandbox.faults import Cut, Fault
from contio_pipeline.sandbox.world import CHANGES, SCOPES, Row, World, parse_time

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from types import TracebackType

    from starlette.requests import Request as HttpRequest

    _Handler = Callable[["_Call"], Response]
    _Endpoint = Callable[[HttpRequest], Awaitable[Response]]

API_ROOT: Final = "/v1/partner/user"
API_VERSION: Final = "1.10"
DEFAULT_LIMIT: Final = 25
LOGGED_HEADERS: Final = (
    "accept", "accept-encoding", "authorization", "connection", "content-type", "range", "user-agent",
    "x-client-timezone",
)  # fmt: skip
FILTER_FIELDS: Final = {
    "meetings": "start_time",
    "action_items": "created_at",
    "calendar_events": "start_time",
}
BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False}


@dataclass
class Request:
    """One logged request.

    Attributes:
        time: `time.monotonic()` when it arrived.
        account: whose token it carried, None without a valid one.
        method: the HTTP method.
        path: the path without the query.
        query: the query's parameters, the last of equal names.
        status: the answered HTTP status, 0 when the connection was cut.
        headers: the LOGGED_HEADERS it had, lower-cased; `authorization` only by its scheme.
        bytes: the size of the answered body.
    """

    time: float
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    account: str | None = None
    status: int = 0
    bytes: int = 0


class _Refused(Exception):
    """An error answer: raised anywhere below an endpoint, rendered by it."""

    def __init__(self, status: int, code: str, text: str, shape: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(code)
        self.status, self.code, self.text, self.shape = status, code, text, shape
        self.headers = dict(headers or {})

    def rendered(self) -> Response:
        request_id = secrets.token_hex(8)
        body = ERROR_SHAPES[self.shape](self.code, self.text, request_id)
        return _json(body, self.status, {**self.headers, "x-request-id": request_id})


ERROR_SHAPES: Final[dict[str, Callable[[str, str, str], Row]]] = {
    "api": lambda code, text, rid: {"code": code, "error": text, "message": text, "request_id": rid},
    "list": lambda code, text, rid: {"code": code, "error": text, "request_id": rid},
    "oauth": lambda code, text, rid: {"error": code, "error_description": text, "request_id": rid},
    "limit": lambda code, text, _: {"error": code, "error_description": text},
}


@dataclass
class _Token:
    """A token in circulation; `family` ties together all that came from one login, `scopes` is what it was given for."""

    account: str
    family: str
    expires: float
    used: bool = False
    scopes: Sequence[str] = SCOPES


@dataclass
class _Code(_Token):
    """An authorization code, and what the request for it said."""

    redirect_uri: str = ""
    challenge: str = ""


@dataclass
class _Limiter:
    """A rolling window over the whole server; refused requests count too."""

    stamps: deque[float] = field(default_factory=deque)

    def wait(self, limit: int, window: float) -> float | None:
        """Count a request now; None if it is allowed, else the seconds until one would be."""
        now = time.monotonic()
        while self.stamps and self.stamps[0] <= now - window:
            self.stamps.popleft()
        self.stamps.append(now)
        if len(self.stamps) <= limit:
            return None
        return self.stamps[len(self.stamps) - limit] + window - now if limit else window


@dataclass
class _Call:
    """What a handler gets: the request, already admitted."""

    http: HttpRequest
    body: bytes
    entry: Request | None = None
    account: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    faults: Sequence[Fault] = ()

    def uuid(self, name: str, what: str) -> str:
        """A path parameter that must be a UUID."""
        return _uuid(self.http.path_params[name], what, "api")


_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def _uuid(text: str, what: str, shape: str) -> str:
    if not _UUID.fullmatch(text):
        raise _Refused(400, "invalid_request", f"Invalid {what} ID", shape)
    return text.lower()


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer in UTF-8 as Go writes it; a lone surrogate, which UTF-8 cannot hold, is escaped."""
    try:
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        body = json.dumps(value, separators=(",", ":")).encode()
    return Response(body, status, headers, media_type="application/json")


def _field(form: Mapping[str, list[str]], name: str) -> str:
    """A field of a token request, which must be there once."""
    values = form.get(name, [])
    if len(values) != 1:
        raise _Refused(400, "invalid_request", f"{name} is missing from the form body, or stands there twice", "oauth")
    return values[0]


def _not_a_cut(record: logging.LogRecord) -> bool:
    """Keeps uvicorn from reporting the answers that were cut on purpose."""
    return "without completing response" not in record.getMessage()


class Sandbox:
    """The server: runs in a background thread on 127.0.0.1, as a context manager or by `start` and `stop`.

    Every constructor argument but `port` is an attribute that may be set while it runs.

    Args:
        world: what it serves.
        port: 0 takes a free one.
        rate_limit: requests to the user API per rolling `rate_window`, of all clients; refused ones count.
        rate_window: seconds.
        oauth_limit: requests to the authorization and token endpoints per `rate_window`.
        retry_after: how a 429 says when to come back; None: not at all.
        access_ttl: seconds that an access token lives.
        code_ttl: seconds in which an authorization code can be exchanged, once.
        consent_as: whose consent the authorization endpoint is given, without a page to click on; a request may name another
            account or e-mail address as `login_hint` or `account`. A name that nobody has denies it.
        redirect_uris: those that the application registered; None takes any.
        rotate: whether a refresh answers a new refresh token; without, the old one stays good.
        latency: seconds that every API request waits.
        max_limit: a larger `limit` is clamped to it.
        filter_fields: per stream, the field that `start_date` and `end_date` mean.
        inclusive_end: whether a row at exactly `end_date` is returned.
        unknown_parent: what the context listing of an unknown meeting answers: "empty" (200) or "404".
        basic: how the token endpoint reads Basic credentials.

    Attributes:
        requests: every API and token request, in order of arrival; `reset_log` empties it.
        issued: every token and authorization code that was ever good, for those who look for secrets where none should be.
        faults: what goes wrong next: the first that matches happens, and those that may come together with it.
        before: called with each admitted request before it is answered, to change the world between pages.
    """

    def __init__(
        self,
        world: World,
        *,
        port: int = 0,
        rate_limit: int = 1000,
        rate_window: float = 300.0,
        oauth_limit: int = 100,
        retry_after: Literal["seconds", "date"] | None = "seconds",
        access_ttl: float = 86_400,
        code_ttl: float = 300.0,
        consent_as: str | None = None,
        redirect_uris: Sequence[str] | None = None,
        rotate: bool = True,
        latency: float = 0.0,
        max_limit: int = 100,
        filter_fields: Mapping[str, str] | None = None,
        inclusive_end: bool = True,
        unknown_parent: Literal["empty", "404"] = "empty",
        basic: Literal["raw", "form", "either"] = "either",
    ) -> None:
        self.world = world
        self.rate_limit = rate_limit
        self.rate_window = rate_window
        self.oauth_limit = oauth_limit
        self.retry_after = retry_after
        self.access_ttl = access_ttl
        self.code_ttl = code_ttl
        self.consent_as = consent_as
        self.redirect_uris = redirect_uris
        self.rotate = rotate
        self.latency = latency
        self.max_limit = max_limit
        self.filter_fields = {**FILTER_FIELDS, **(filter_fields or {})}
        self.inclusive_end = inclusive_end
        self.unknown_parent = unknown_parent
        self.basic = basic
        self.requests: list[Request] = []
        self.issued: list[str] = []
        self.faults: list[Fault] = []
        self.before: Callable[[Request], object] | None = None
        self._api_limiter, self._oauth_limiter = _Limiter(), _Limiter()
        self._access: dict[str, _Token] = {}
        self._codes: dict[str, _Code] = {}
        self._refresh = {
            account.refresh_token: _Token(account.name, account.name, math.inf) for account in world.accounts.values()
        }
        # With the protocol named, asyncio sets TCP_NODELAY; else each small answer waits 40 ms for an ACK.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            self._app(), log_config=None, log_level="warning", access_log=False, lifespan="off", ws="none",
            http="h11", loop="asyncio", timeout_keep_alive=75, timeout_graceful_shutdown=1,
        )  # fmt: skip
        logging.getLogger("uvicorn.error").addFilter(_not_a_cut)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="contio-sandbox", daemon=True
        )

    # ------------------------------------------------------------------------------------------------ running

    @property
    def api_url(self) -> str:
        """The API's base, without the path of the user API: `http://127.0.0.1:<port>`."""
        return self.url

    @property
    def token_url(self) -> str:
        """The token endpoint."""
        return f"{self.url}/oauth2/token"

    @property
    def authorize_url(self) -> str:
        """The authorization endpoint."""
        return f"{self.url}/oauth2/authorize"

    def start(self) -> Self:
        """Serve; returns when requests are answered."""
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the sandbox server did not start; see its log above")
            time.sleep(0.002)
        return self

    def stop(self) -> None:
        """Close every connection and the socket; returns when that is done."""
        if self._thread.is_alive():
            self._server.should_exit = True
            self._thread.join()
        self._socket.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def reset_log(self) -> None:
        """Forget the logged requests (the rate limiters remember)."""
        self.requests.clear()

    def reset_limits(self) -> None:
        """Forget what the rate limiters counted."""
        self._api_limiter.stamps.clear()
        self._oauth_limiter.stamps.clear()

    # ------------------------------------------------------------------------------------------------- tokens

    def login(self, account: str) -> str:
        """A fresh refresh token, as after the user's consent; earlier ones stay as they are."""
        token = self._issue("rt")
        self._refresh[token] = _Token(account, secrets.token_hex(8), math.inf)
        return token

    def access_token(self, account: str) -> str:
        """A fresh access token without a request: for tests that are not about OAuth."""
        token = self._issue("at")
        self._access[token] = _Token(account, account, time.monotonic() + self.access_ttl)
        return token

    def _issue(self, kind: Literal["at", "rt", "ac"]) -> str:
        """A new secret that says what it is: an access token, a refresh token, an authorization code."""
        self.issued.append(f"cto_{kind}_v1_{secrets.token_hex(32)}")
        return self.issued[-1]

    def expire_access_tokens(self) -> None:
        """Every access token issued so far answers 401 from now on."""
        self._access.clear()

    def revoke(self, account: str) -> None:
        """The user withdraws consent: no token of the account works any more."""
        self._drop(lambda token: token.account == account)

    def _drop(self, condition: Callable[[_Token], bool]) -> None:
        given: tuple[dict[str, Any], ...] = (self._access, self._refresh, self._codes)
        for tokens in given:
            for text in [text for text, token in tokens.items() if condition(token)]:
                del tokens[text]

    def _consent(self, call: _Call) -> Response:
        """RFC 6749, section 4.1.1, with PKCE (RFC 7636) required as S256; the user answers at once."""
        query = call.http.query_params
        client, redirect_uri, state = (query.get(name, "") for name in ("client_id", "redirect_uri", "state"))
        if client != self.world.client_id:  # whoever asks is not known: nobody is redirected (section 4.1.2.1)
            raise _Refused(400, "invalid_client", "unknown client_id", "oauth")
        registered = urlsplit(redirect_uri).scheme in {"http", "https"} and not urlsplit(redirect_uri).fragment
        if not registered or (self.redirect_uris is not None and redirect_uri not in self.redirect_uris):
            raise _Refused(400, "invalid_request", "redirect_uri is not registered with the application", "oauth")
        scopes = query.get("scope", "").split()
        hint = query.get("login_hint") or query.get("account") or self.consent_as or next(iter(self.world.accounts))
        known = {
            alias: name for name, who in self.world.accounts.items() for alias in (name, str(who.profile["email"]))
        }
        if len(query.multi_items()) > len(query.keys()):
            answer = {"error": "invalid_request", "error_description": "a parameter stands twice"}
        elif query.get("response_type") != "code":
            answer = {"error": "unsupported_response_type", "error_description": "response_type must be code"}
        elif query.get("code_challenge_method") != "S256" or not _CHALLENGE.fullmatch(query.get("code_challenge", "")):
            answer = {"error": "invalid_request", "error_description": "a code_challenge with S256 is required"}
        elif not scopes or set(scopes) - set(SCOPES):
            answer = {"error": "invalid_scope", "error_description": f"scopes are {' '.join(SCOPES)}"}
        elif hint not in known:
            answer = {"error": "access_denied", "error_description": "the user did not consent"}
        else:
            code = self._issue("ac")
            self._codes[code] = _Code(
                known[hint], secrets.token_hex(8), time.monotonic() + self.code_ttl, scopes=scopes,
                redirect_uri=redirect_uri, challenge=query["code_challenge"],
            )  # fmt: skip
            answer = {"code": code}
        answer |= {"state": state} if state else {}
        sign = "&" if urlsplit(redirect_uri).query else "?"
        return Response(status_code=302, headers={"location": f"{redirect_uri}{sign}{urlencode(answer)}"})

    def _token(self, call: _Call) -> Response:
        self._check_client(call.http.headers.get("authorization", ""))
        kind = call.http.headers.get("content-type", "").partition(";")[0].strip().lower()
        form = parse_qs(call.body.decode("utf-8", "replace")) if kind == "application/x-www-form-urlencoded" else {}
        match _field(form, "grant_type"):
            case "refresh_token":
                return self._refreshed(_field(form, "refresh_token"))
            case "authorization_code":
                return self._exchanged(form)
        raise _Refused(400, "unsupported_grant_type", "refresh_token and authorization_code are supported", "oauth")

    def _refreshed(self, given: str) -> Response:
        """RFC 6749, section 6, with rotation and reuse detection (RFC 9700, section 4.14.2)."""
        old = self._refresh.get(given)
        if old is not None and old.used:
            self._drop(lambda token: token.family == old.family)
        if old is None or old.used:
            raise _Refused(400, "invalid_grant", "the refresh token is invalid, expired or already used", "oauth")
        old.used = self.rotate
        return self._give(old, with_refresh=self.rotate)

    def _exchanged(self, form: dict[str, list[str]]) -> Response:
        """RFC 6749, section 4.1.3, and RFC 7636, section 4.6; whatever is wrong, the code is void from then on."""
        given, redirect_uri, verifier = (_field(form, name) for name in ("code", "redirect_uri", "code_verifier"))
        if form.get("client_id", [self.world.client_id])[-1] != self.world.client_id:
            raise _Refused(400, "invalid_request", "client_id is not the one of the credentials", "oauth")
        code = self._codes.get(given)
        if code is not None and code.used:
            self._drop(lambda token: token.family == code.family)
        if code is None or code.used or code.expires <= time.monotonic():
            raise _Refused(400, "invalid_grant", "the code is invalid, expired or already used", "oauth")
        code.used = True
        challenge = urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
        if not _VERIFIER.fullmatch(verifier) or challenge != code.challenge:
            raise _Refused(400, "invalid_grant", "the code_verifier does not fit the code_challenge", "oauth")
        if redirect_uri != code.redirect_uri:
            raise _Refused(400, "invalid_grant", "redirect_uri is not the one that the code was sent to", "oauth")
        return self._give(code, with_refresh=True)

    def _give(self, source: _Token, *, with_refresh: bool) -> Response:
        """New tokens of the same login."""
        access, fresh = self._issue("at"), self._issue("rt")
        scopes = [scope for scope in self.world.accounts[source.account].scopes if scope in source.scopes]
        expires = time.monotonic() + self.access_ttl
        self._access[access] = _Token(source.account, source.family, expires, scopes=source.scopes)
        answer = {
            "access_token": access,
            "token_type": "Bearer",
            "expires_in": int(self.access_ttl),
            "scope": " ".join(scopes),
        }
        if with_refresh:
            self._refresh[fresh] = _Token(source.account, source.family, math.inf, scopes=source.scopes)
            answer["refresh_token"] = fresh
        return _json(answer, headers={"cache-control": "no-store"})

    def _check_client(self, authorization: str) -> None:
        """HTTP Basic, raw or form-encoded (RFC 6749, section 2.3.1): which one is not documented, so `basic` says."""
        scheme, _, encoded = authorization.partition(" ")
        try:
            name, _, secret = b64decode(encoded, validate=True).decode().partition(":")
        except (Base64Error, UnicodeDecodeError):
            name = secret = ""
        expected = (self.world.client_id, self.world.client_secret)
        read = {"raw": (name, secret), "form": (unquote_plus(name), unquote_plus(secret))}
        if self.basic != "either":
            read = {self.basic: read[self.basic]}
        if scheme.lower() != "basic" or expected not in read.values():
            raise _Refused(401, "invalid_client", "unknown client", "oauth", {"www-authenticate": "Basic"})

    # -------------------------------------------------------------------------------------------------- gates

    def _admit(self, limiter: _Limiter, limit: int) -> None:
        wait = limiter.wait(limit, self.rate_window)
        if wait is None:
            return
        seconds = math.ceil(wait)
        headers = {
            None: {},
            "seconds": {"retry-after": str(seconds)},
            "date": {"retry-after": format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)},
        }[self.retry_after]
        raise _Refused(429, "rate_limit_exceeded", "Too many requests, slow down", "limit", headers)

    def _authenticate(self, http: HttpRequest) -> _Token:
        scheme, _, text = http.headers.get("authorization", "").partition(" ")
        token = self._access.get(text.strip()) if scheme.lower() == "bearer" else None
        if token is None or token.expires <= time.monotonic():
            raise _Refused(401, "unauthorized", "Authentication required", "api", {"www-authenticate": "Bearer"})
        return token

    def _authorize(self, token: _Token, scope: str) -> None:
        if scope not in self.world.accounts[token.account].scopes or scope not in token.scopes:
            raise _Refused(403, "insufficient_scope", f"The token lacks the scope {scope}", "api")

    # ------------------------------------------------------------------------------------------- the user API

    def _page(self, call: _Call, rows: list[Row]) -> Response:
        limit, offset = self._number(call, "limit", DEFAULT_LIMIT, 1), self._number(call, "offset", 0, 0)
        limit = min(limit, self.max_limit)
        page = rows[offset : offset + limit]
        return _json({"items": page, "total": len(rows), "limit": limit, "offset": offset})

    @staticmethod
    def _number(call: _Call, name: str, default: int, least: int) -> int:
        text = call.query.get(name, str(default))
        if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or int(text) < least:
            raise _Refused(400, "invalid_query_parameters", f"Invalid {name}", "list")
        return int(text)

    @staticmethod
    def _dates(call: _Call, *, required: bool, aliases: Mapping[str, str] | None = None) -> dict[str, Any]:
        bounds: dict[str, Any] = {}
        for name in ("start_date", "end_date"):
            text = call.query.get(name) or call.query.get((aliases or {}).get(name, name), "")
            if required and not text:
                raise _Refused(400, f"missing_{name}", f"{name} is required", "list")
            bounds[name.removesuffix("_date")] = when = parse_time(text)
            if text and when is None:
                raise _Refused(400, f"invalid_{name}", f"Invalid {name} format", "list")
        return bounds

    def _profile(self, call: _Call) -> Response:
        return _json(self.world.accounts[call.account].profile)

    def _meetings(self, call: _Call) -> Response:
        return self._page(call, self._select(call, "meetings", self._dates(call, required=False)))

    def _action_items(self, call: _Call) -> Response:
        equal: list[tuple[str, Any]] = []
        if meeting_id := call.query.get("meeting_id"):
            equal.append(("meeting_id", _uuid(meeting_id, "meeting", "list")))
        for name in ("is_completed", "has_partner_assignment"):
            if (text := call.query.get(name)) is not None:
                if text.lower() not in BOOLEANS:
                    raise _Refused(400, "invalid_query_parameters", f"Invalid {name}", "list")
                equal.append((name, BOOLEANS[text.lower()]))
        dates = self._dates(call, required=False)
        return self._page(call, self._select(call, "action_items", dates, equal=tuple(equal)))

    def _events(self, call: _Call) -> Response:
        dates = self._dates(call, required=True, aliases={"start_date": "start", "end_date": "end"})
        direction = call.query.get("direction", "asc").lower()
        if direction not in ("asc", "desc"):
            raise _Refused(400, "invalid_query_parameters", "Invalid direction", "list")
        return self._page(call, self._select(call, "calendar_events", dates, descending=direction == "desc"))

    def _select(self, call: _Call, stream: str, dates: dict[str, Any], **how: Any) -> list[Row]:
        field_name = self.filter_fields[stream]
        rows = self.world.select(call.account, stream, by=field_name, inclusive_end=self.inclusive_end, **dates, **how)
        if call.query.get("_undated") == "no":
            rows = [row for row in rows if parse_time(row.get(field_name))]
        return self._ordered(call, rows)

    @staticmethod
    def _ordered(call: _Call, rows: list[Row]) -> list[Row]:
        """As a fault wants it; the real API documents no order."""
        match call.query.get("_order"):
            case None:
                return rows
            case "random":
                return random.sample(rows, len(rows))
            case name:
                return sorted(rows, key=lambda row: (str(row.get(name)), row["id"]), reverse=True)

    def _contexts(self, call: _Call) -> Response:
        meeting_id = call.uuid("id", "meeting")
        if self.unknown_parent == "404" and self.world.get(call.account, "meetings", meeting_id) is None:
            raise _Refused(404, "not_found", "Meeting not found", "api")
        return self._page(
            call, self._ordered(call, self.world.select(call.account, "context_documents", parent=meeting_id))
        )

    @staticmethod
    def _found(row: Row | None, what: str) -> Response:
        if row is None:
            raise _Refused(404, "not_found", f"{what} not found", "api")
        return _json(row)

    def _meeting(self, call: _Call) -> Response:
        return self._found(self.world.get(call.account, "meetings", call.uuid("id", "meeting")), "Meeting")

    def _action_item(self, call: _Call) -> Response:
        row = self.world.get(call.account, "action_items", call.uuid("id", "action item"))
        return self._found(row, "Action item")

    def _event(self, call: _Call) -> Response:
        event_id = call.uuid("id", "calendar event")
        row = self.world.get(call.account, "calendar_events", event_id)
        if row is None and self.world.exists("calendar_events", event_id):
            raise _Refused(403, "forbidden", "User does not have access to this calendar event", "api")
        return self._found(row, "Calendar event")

    def _context(self, call: _Call) -> Response:
        meeting_id, context_id = call.uuid("id", "meeting"), call.uuid("context_id", "context")
        row = self.world.get(call.account, "context_documents", context_id, parent=meeting_id)
        return self._found(row, "Context")

    def _content(self, call: _Call) -> Response:
        file = self.world.file(call.account, call.uuid("id", "meeting"), call.uuid("context_id", "context"))
        if file is None:
            raise _Refused(404, "not_found", "Context not found", "api")
        disposition = file.header()
        headers = {} if disposition is None else {"content-disposition": disposition}
        return Response(file.content(), headers=headers, media_type="application/octet-stream")

    def _participants(self, call: _Call) -> Response:
        return self._unpaged(call, "participants")

    def _agenda_items(self, call: _Call) -> Response:
        return self._unpaged(call, "agenda_items")

    def _unpaged(self, call: _Call, stream: str) -> Response:
        """All rows below a meeting in one answer; `limit` and `offset`, which the API does not document here, are refused."""
        meeting_id = call.uuid("id", "meeting")
        if unknown := call.query.keys() & {"limit", "offset"}:
            raise _Refused(400, "invalid_query_parameters", f"Unknown {', '.join(sorted(unknown))}", "list")
        if (self.world.get(call.account, "meetings", meeting_id) or {}).get("id") != meeting_id:
            raise _Refused(404, "not_found", "Meeting not found", "api")
        rows = self.world.select(call.account, stream, parent=meeting_id)
        return _json({"items": rows, "total": len(rows), "limit": max(DEFAULT_LIMIT, len(rows)), "offset": 0})

    @staticmethod
    def _nothing(call: _Call) -> Response:
        raise _Refused(404, "not_found", f"No route for {call.http.url.path}", "api")

    # ------------------------------------------------------------------------------------------------ control

    def _change(self, call: _Call) -> Response:
        try:
            arguments = json.loads(call.body)
            operation = arguments.pop("op")
            changes = {name: getattr(self.world, name) for name in CHANGES}
            changes["advance"] = lambda **by: self.world.advance(timedelta(**by))
            return _json({"ids": changes[operation](**arguments) or []})
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise _Refused(400, "invalid_change", f"{type(error).__name__}: {error}", "api") from error

    def _truth(self, _: _Call) -> Response:
        return _json({name: self.world.truth(name) for name in self.world.accounts})

    def _log(self, _: _Call) -> Response:
        return _json([asdict(request) for request in self.requests])

    def _reset(self, _: _Call) -> Response:
        self.reset_log()
        return _json({})

    # ----------------------------------------------------------------------------------------------- plumbing

    def _app(self) -> Starlette:
        user = (
            ("/profile", "profile", self._profile),
            ("/meetings", "meetings:read", self._meetings),
            ("/meetings/{id}", "meetings:read", self._meeting),
            ("/meetings/{id}/participants", "meetings:read", self._participants),
            ("/meetings/{id}/agenda-items", "meetings:read", self._agenda_items),
            ("/meetings/{id}/context", "context:read", self._contexts),
            ("/meetings/{id}/context/{context_id}", "context:read", self._context),
            ("/meetings/{id}/context/{context_id}/content", "context:read", self._content),
            ("/action-items", "action-items:read", self._action_items),
            ("/action-items/{id}", "action-items:read", self._action_item),
            ("/calendar/events", "calendar:read", self._events),
            ("/calendar/events/{id}", "calendar:read", self._event),
        )
        control = (
            ("GET", "/_sandbox/truth", self._truth),
            ("GET", "/_sandbox/requests", self._log),
            ("POST", "/_sandbox/change", self._change),
            ("POST", "/_sandbox/reset_log", self._reset),
        )
        return Starlette(
            routes=[
                *(Route(API_ROOT + path, self._api(scope, handler)) for path, scope, handler in user),
                Route("/oauth2/authorize", self._oauth(self._consent), methods=["GET"]),
                Route("/oauth2/token", self._oauth(self._token), methods=["POST"]),
                *(Route(path, self._control(handler), methods=[method]) for method, path, handler in control),
                Route("/{path:path}", self._api(None, self._nothing)),
            ]
        )

    def _api(self, scope: str | None, handler: _Handler) -> _Endpoint:
        """An endpoint of the user API: limited first, then authenticated, then authorized."""

        def answer(call: _Call) -> Response:
            token = self._authenticate(call.http)
            call.account = token.account
            if call.entry:
                call.entry.account = call.account
            if scope:
                self._authorize(token, scope)
            self._happen(call)
            return handler(call)

        async def endpoint(http: HttpRequest) -> Response:
            response = await self._logged(http, self._api_limiter, self.rate_limit, answer)
            response.headers["x-api-version"] = API_VERSION
            return response

        return endpoint

    def _oauth(self, handler: _Handler) -> _Endpoint:
        async def endpoint(http: HttpRequest) -> Response:
            return await self._logged(http, self._oauth_limiter, self.oauth_limit, handler)

        return endpoint

    async def _logged(self, http: HttpRequest, limiter: _Limiter, limit: int, answer: _Handler) -> Response:
        headers = {name: http.headers[name] for name in LOGGED_HEADERS if name in http.headers}
        if "authorization" in headers:
            scheme, _, credentials = headers["authorization"].partition(" ")
            headers["authorization"] = scheme if credentials else "(no scheme)"
        entry = Request(time.monotonic(), http.method, http.url.path, dict(http.query_params), headers)
        self.requests.append(entry)
        faults: list[Fault] = []
        try:
            self._admit(limiter, limit)  # counted on arrival, before anything waits
            faults = self._next_faults(entry)
            call = _Call(http, await http.body(), entry, query=entry.query, faults=faults)
            await asyncio.sleep(self.latency + sum(fault.delay for fault in faults))
            if self.before is not None:
                self.before(entry)
            faulty = next((Response(one.body, one.status, one.headers) for one in faults if one.status), None)
            response = faulty or answer(call)
        except _Refused as refused:
            response = refused.rendered()
        for fault in faults:
            response = fault.edit(response) if fault.edit else response
        entry.status, entry.bytes = response.status_code, len(response.body)
        cuts = [fault.cut for fault in faults if fault.cut is not None]
        return Cut(response, min(cuts)) if cuts else response

    def _next_faults(self, entry: Request) -> list[Fault]:
        """Those that happen to this request, counted: the first that matches, and unless it is alone others like it."""
        found: list[Fault] = []
        for fault in self.faults:
            skipped = fault.later_pages and entry.query.get("offset", "0") == "0"
            if fault.times <= 0 or skipped or not re.search(fault.path, entry.path):
                continue
            if found and (fault.alone or found[0].alone):
                continue
            fault.times -= 1
            found.append(fault)
        return found

    def _happen(self, call: _Call) -> None:
        """What faults do to the world and to the question before it is answered."""
        for fault in call.faults:
            if fault.change:
                fault.change(self.world, call.account)
            query = fault.query(dict(call.query)) if fault.query else call.query
            if query is None:
                raise _Refused(400, "invalid_query_parameters", "Invalid query parameters", "list")
            call.query = query

    @staticmethod
    def _control(handler: _Handler) -> _Endpoint:
        async def endpoint(http: HttpRequest) -> Response:
            if http.client is None or not ip_address(http.client.host).is_loopback:
                return _json({"error": "only for this machine"}, 403)
            try:
                return handler(_Call(http, await http.body(), query=http.query_params))
            except _Refused as refused:
                return refused.rendered()

        return endpoint


def serve(sandbox: Sandbox) -> None:
    """Run a sandbox until SIGINT or SIGTERM, then return: what the command line does.

    Prints one JSON line to stdout when requests are answered: api_url, token_url, authorize_url, client_id, client_secret
    and accounts: {name: {refresh_token}}. Call it from the main thread with a sandbox not yet started.
    """
    ends = {signal.SIGINT, signal.SIGTERM}
    # Blocked before the server's thread starts, which inherits it: only sigwait ever gets them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        with sandbox:
            world = sandbox.world
            ready = {
                "api_url": sandbox.api_url,
                "token_url": sandbox.token_url,
                "authorize_url": sandbox.authorize_url,
                "client_id": world.client_id,
                "client_secret": world.client_secret,
                "accounts": {name: {"refresh_token": who.refresh_token} for name, who in world.accounts.items()},
            }
            sys.stdout.write(json.dumps(ready) + "\n")
            sys.stdout.flush()
            signal.sigwait(ends)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
