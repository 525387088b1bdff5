"""Accounts and their tokens: a locked, durable store, and the httpx.Auth that refreshes ahead of expiry and once on 401.

What lives here: keeping tokens and signing with them. What never does: asking for new ones (`refresh`), retries, pacing. No
text made here ever holds a token.

Refresh tokens rotate: the answer to a refresh makes the old token void, so the new one is on disk before it is used. One
lock file per account makes sure that of two processes one refreshes and the other reads what it wrote.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path

import httpx

from contio_pipeline.errors import AccountError, ConfigError, StorageError
from contio_pipeline.folders import private_file, private_folder

_REFRESH_AHEAD = 120.0
"""Seconds before the stated expiry from which an access token is no longer used."""

CONSENT = timedelta(days=30)
"""How long a refresh token lives; each use gives a new one."""

Slot = Callable[[], AbstractContextManager[None]]
"""Waits for a place in a request budget, and holds it."""

ACCOUNT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9@+._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Tokens:
    """What the store keeps of one account.

    Attributes:
        expires_at: Unix seconds at which the access token ends, as the token endpoint stated.
        profile_id: the Contio user whose tokens these are; empty until the first read of `/profile`.
        refreshed_at: Unix seconds of the last refresh, which began the refresh token's 30 days.
        refused_at: Unix seconds at which the refresh token was no longer accepted; 0 while it is.
    """

    refresh_token: str
    access_token: str = ""
    expires_at: float = 0.0
    scope: str = ""
    profile_id: str = ""
    refreshed_at: float = 0.0
    refused_at: float = 0.0

    def __repr__(self) -> str:
        return f"Tokens(profile_id={self.profile_id!r}, scope={self.scope!r})"


def lasts(tokens: Tokens, now: float) -> bool:
    """Whether the access token can be used for a while yet."""
    return tokens.expires_at - _REFRESH_AHEAD > now


def how_to_renew(name: str) -> str:
    """What to do when an account's consent is of no use any more."""
    return (
        f"get new consent with contio-pipeline login --account {name}, or give a new token to "
        f"contio-pipeline accounts add {name} --refresh-token-stdin"
    )


def _read_tokens(text: str) -> Tokens:
    """The stored tokens; ValueError or TypeError when the text is not what `TokenStore.write` writes."""
    tokens = Tokens(**json.loads(text))
    texts = (tokens.refresh_token, tokens.access_token, tokens.scope, tokens.profile_id)
    times = (tokens.expires_at, tokens.refreshed_at, tokens.refused_at)
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
                f"there is no account {name!r} (known: {known}); add it with contio-pipeline login --account {name}, or "
                f"contio-pipeline accounts add {name} --refresh-token-stdin"
            ) from None
        except (ValueError, TypeError):
            raise ConfigError(
                f"the stored tokens of account {name!r} are damaged; add it again: "
                f"contio-pipeline accounts add {name} --refresh-token-stdin"
            ) from None

    def write(self, name: str, tokens: Tokens) -> None:
        """Replace the account's tokens: on disk, whole, when this returns.

        Raises:
            StorageError: they could not be written; those before stay.
        """
        try:
            private_file(self._path(name), json.dumps(asdict(tokens)))
        except OSError as error:
            raise StorageError(
                f"the tokens of account {name!r} could not be written to {self._folder} ({error.strerror}): see that the disk "
                "is not full and the folder is yours; those before stay"
            ) from error

    def remove(self, name: str) -> None:
        """Forget the account's tokens, damaged ones too; a refresh under way ends first, and cannot write them again.

        Raises:
            ConfigError: there is no such account.
        """
        if not self._path(name).exists():
            raise ConfigError(f"there is no account {name!r} (known: {', '.join(self.names()) or 'none'})")
        with self.lock(name):
            self._path(name).unlink()
            self._lock_path(name).unlink()  # its name may be an e-mail address

    @contextmanager
    def lock(self, name: str) -> Iterator[int]:
        """Hold the account's tokens against every other process and thread; gives the open lock file."""
        private_folder(self._folder)
        path = self._lock_path(name)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if os.fstat(descriptor).st_nlink:  # else the account was removed while this waited
                    yield descriptor
                    return
            finally:
                os.close(descriptor)

    def _lock_path(self, name: str) -> Path:
        return self._path(name).with_name(f".{name}.lock")

    def _path(self, name: str) -> Path:
        if not ACCOUNT_NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} cannot name an account: use up to 100 letters, digits, and @ + . _ - (a letter or digit first)"
            )
        return self._folder / f"{name}.json"


class AccountAuth(httpx.Auth):
    """Signs requests with one account's access token, and refreshes it.

    The client holds a slot of the request budget for the first try; `api_slot` and `token_slot` pay for what is sent besides.

    Args:
        name: of the account.
        store: of its tokens.
        refresh: makes the stored tokens newer than an access token, given it and the account's name; see `refresh`.
        api_slot: of the API's budget.
        token_slot: of the token endpoint's.
        clock: Unix seconds.
    """

    def __init__(
        self,
        name: str,
        store: TokenStore,
        *,
        refresh: Callable[[str, str], Tokens],
        api_slot: Slot = nullcontext,
        token_slot: Slot = nullcontext,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self._store = store
        self._renew = refresh
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
        if not lasts(self._tokens, self._clock()):
            self._refresh(self._tokens.access_token)
        used = self._tokens.access_token
        request.headers["Authorization"] = f"Bearer {used}"
        response = yield request
        if response.status_code == httpx.codes.UNAUTHORIZED:
            response.read()  # frees the connection
            self._refresh(used)
            request.headers["Authorization"] = f"Bearer {self._tokens.access_token}"
            with self._api_slot():
                yield request

    def _refresh(self, stale: str) -> None:
        """Make `self._tokens` newer than the access token `stale`, by reading the store or by asking."""
        with self._one_thread:
            stored = self._store.read(self.name)
            if stored.access_token != stale and lasts(stored, self._clock()):
                self._tokens = stored
                return
            with self._token_slot():
                self._tokens = self._renew(self.name, stale)

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
