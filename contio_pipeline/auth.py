"""Accounts and their tokens: a locked, durable store, and the httpx.Auth that refreshes ahead of expiry and once on 401.

What lives here: everything that touches a token. What never does: retries, pacing, the API's lists. No text made here
ever holds a token.

Refresh tokens rotate: the answer to a refresh makes the old token void, so the new one is on disk before it is used. One
lock file per account makes sure that of two processes one refreshes and the other reads what it wrote.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import httpx
from pydantic import SecretStr

from contio_pipeline.errors import AccountError, ApiError, BrokenAnswer, ConfigError, Transient, Unauthorized
from contio_pipeline.folders import private_folder
from contio_pipeline.protocol import check_status, read_object

_REFRESH_AHEAD = 120.0
"""Seconds before the stated expiry from which an access token is no longer used."""

Slot = Callable[[], AbstractContextManager[None]]
"""Waits for a place in a request budget, and holds it."""

_DEFAULT_LIFETIME = 3600.0
_LONGEST_LIFETIME = 365 * 86_400.0
"""Seconds; an `expires_in` that is absent or beyond belief counts as the default."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9@+._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Tokens:
    """What the store keeps of one account.

    Attributes:
        expires_at: Unix seconds at which the access token ends, as the token endpoint stated.
        profile_id: the Contio user whose tokens these are; empty until the first read of `/profile`.
        refreshed_at: Unix seconds of the last refresh, which began the refresh token's 30 days.
    """

    refresh_token: str
    access_token: str = ""
    expires_at: float = 0.0
    scope: str = ""
    profile_id: str = ""
    refreshed_at: float = 0.0

    def __repr__(self) -> str:
        return f"Tokens(profile_id={self.profile_id!r}, scope={self.scope!r})"


def _read_tokens(text: str) -> Tokens:
    """The stored tokens; ValueError or TypeError when the text is not what `TokenStore.write` writes."""
    tokens = Tokens(**json.loads(text))
    texts = (tokens.refresh_token, tokens.access_token, tokens.scope, tokens.profile_id)
    times = (tokens.expires_at, tokens.refreshed_at)
    if not all(isinstance(t, str) for t in texts) or not all(isinstance(t, int | float) for t in times):
        raise ValueError("not tokens")
    if not tokens.refresh_token:
        raise ValueError("no refresh token")
    return tokens


class TokenStore:
    """One file per account below `<state folder>/accounts`, readable by its owner only."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / "accounts"

    def names(self) -> list[str]:
        """All accounts, sorted."""
        return sorted(path.name.removesuffix(".json") for path in self._folder.glob("*.json"))

    def read(self, name: str) -> Tokens:
        """The account's tokens.

        Raises:
            ConfigError: there is no such account, or its file is damaged.
        """
        try:
            return _read_tokens(self._path(name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            known = ", ".join(self.names()) or "none yet"
            raise ConfigError(
                f"there is no account {name!r} (known: {known}); add it: "
                f"contio-pipeline accounts add {name} --refresh-token-stdin"
            ) from None
        except (ValueError, TypeError):
            raise ConfigError(
                f"the stored tokens of account {name!r} are damaged; add it again: "
                f"contio-pipeline accounts add {name} --refresh-token-stdin"
            ) from None

    def write(self, name: str, tokens: Tokens) -> None:
        """Replace the account's tokens: on disk, whole, when this returns."""
        path = self._path(name)
        private_folder(self._folder)
        descriptor, temporary = tempfile.mkstemp(dir=self._folder, prefix=".new-")  # made 0600 under any umask
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(asdict(tokens), file)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            with suppress(FileNotFoundError):
                Path(temporary).unlink()
            raise
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def remove(self, name: str) -> None:
        """Forget the account's tokens, damaged ones too.

        Raises:
            ConfigError: there is no such account.
        """
        if name not in self.names():
            self.read(name)
        self._path(name).unlink()

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the account's tokens against every other process and thread."""
        private_folder(self._folder)
        descriptor = os.open(self._path(name).with_name(f".{name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} cannot name an account: use up to 100 letters, digits, and @ + . _ - (a letter or digit first)"
            )
        return self._folder / f"{name}.json"


class AccountAuth(httpx.Auth):
    """Signs requests with one account's access token, and refreshes it.

    The flow yields the token request itself, so the client's retries, limits and timeouts apply to it. The client holds a
    slot of the request budget for the first try; `api_slot` and `token_slot` pay for what the flow sends besides.
    """

    def __init__(
        self,
        name: str,
        store: TokenStore,
        *,
        token_url: str,
        credentials: tuple[str, SecretStr],
        api_slot: Slot = nullcontext,
        token_slot: Slot = nullcontext,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self._store = store
        self._token_url = token_url
        self._credentials = credentials
        self._api_slot = api_slot
        self._token_slot = token_slot
        self._clock = clock
        self._one_thread = threading.Lock()
        self._tokens = store.read(name)

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Sign the request; refresh before it when the token is about to expire, and once after a 401.

        Raises:
            AccountError: the refresh token is no longer accepted.
            ApiError: the token endpoint failed.
        """
        if self._tokens.expires_at - _REFRESH_AHEAD <= self._clock():
            yield from self._refresh(self._tokens.access_token)
        used = self._tokens.access_token
        request.headers["Authorization"] = f"Bearer {used}"
        response = yield request
        if response.status_code == httpx.codes.UNAUTHORIZED:
            response.read()  # frees the connection
            yield from self._refresh(used)
            request.headers["Authorization"] = f"Bearer {self._tokens.access_token}"
            with self._api_slot():
                yield request

    def _refresh(self, stale: str) -> Generator[httpx.Request, httpx.Response, None]:
        """Make `self._tokens` newer than the access token `stale`, by reading the store or by asking."""
        with self._one_thread, self._store.lock(self.name):
            stored = self._store.read(self.name)
            if stored.access_token != stale and stored.expires_at - _REFRESH_AHEAD > self._clock():
                self._tokens = stored
                return
            with self._token_slot():
                response = yield self._token_request(stored.refresh_token)
            response.read()
            self._tokens = self._renewed(stored, response)
            self._store.write(self.name, self._tokens)

    def _token_request(self, refresh_token: str) -> httpx.Request:
        identity, secret = self._credentials
        basic = base64.b64encode(f"{identity}:{secret.get_secret_value()}".encode()).decode()
        return httpx.Request(
            "POST",
            self._token_url,
            headers={"Authorization": f"Basic {basic}", "Accept": "application/json"},
            data={"grant_type": "refresh_token", "refresh_token": refresh_token},
        )

    def _renewed(self, stored: Tokens, response: httpx.Response) -> Tokens:
        """The tokens in the token endpoint's answer; an answer without a refresh token leaves the old one valid."""
        now = self._clock()
        try:
            check_status(
                response.status_code,
                response.headers,
                self._without_secrets(stored, response.content),
                what="token refresh",
                now=datetime.fromtimestamp(now, UTC),
            )
        except Transient:
            raise
        except ApiError as error:
            if error.code == "invalid_client" or isinstance(error, Unauthorized):
                raise AccountError(
                    f"the token endpoint refused the application's credentials ({error}): check CONTIO_CLIENT_ID and "
                    "CONTIO_CLIENT_SECRET"
                ) from None
            if error.code == "invalid_grant":
                raise AccountError(
                    f"the refresh token of account {self.name!r} is no longer accepted (expired, revoked, or already used by "
                    "another program): get a new one and run: "
                    f"contio-pipeline accounts add {self.name} --refresh-token-stdin"
                ) from None
            raise
        answer = read_object(response.content)
        access = answer.get("access_token")
        if not isinstance(access, str) or not access.isascii() or not access.isprintable() or not access:
            raise BrokenAnswer("the token endpoint answered without an access_token")
        lifetime = answer.get("expires_in")
        if not isinstance(lifetime, int | float) or not 0 < lifetime < _LONGEST_LIFETIME:
            lifetime = _DEFAULT_LIFETIME
        refresh, scope = answer.get("refresh_token"), answer.get("scope")
        return replace(
            stored,
            access_token=access,
            expires_at=now + lifetime,
            refresh_token=refresh if isinstance(refresh, str) and refresh else stored.refresh_token,
            scope=scope if isinstance(scope, str) else stored.scope,
            refreshed_at=now,
        )

    def _without_secrets(self, stored: Tokens, body: bytes) -> bytes:
        """The JSON answer, for messages: a server may repeat what it was sent, escaped in its own way."""
        try:
            text = json.dumps(json.loads(body), ensure_ascii=False)
        except (ValueError, RecursionError):
            return body  # no word of what is not JSON goes into a message
        for secret in (stored.refresh_token, self._credentials[1].get_secret_value()):
            for form in (json.dumps(secret, ensure_ascii=False)[1:-1], quote(secret, safe="")):
                text = text.replace(form, "(secret)")
        return text.encode(errors="replace")

    def bind(self, profile_id: str) -> None:
        """Remember whose tokens these are.

        Raises:
            AccountError: they were another user's until now.
        """
        if self._tokens.profile_id == profile_id:
            return
        with self._one_thread, self._store.lock(self.name):
            stored = self._store.read(self.name)
            if stored.profile_id not in {"", profile_id}:
                raise AccountError(
                    f"the tokens of account {self.name!r} belong to another Contio user than before: its rows would be mixed. "
                    "Add them under a new name, or remove the account first"
                )
            self._tokens = replace(stored, profile_id=profile_id)
            self._store.write(self.name, self._tokens)
