"""Accounts as a person keeps them: tokens given by hand, each tried; whose they are, what they may do, when they were synced.

What lives here: what `accounts add`, `import` and `list` do. What never does: HTTP itself, the browser (`login`), printing.

A refresh token works once, and using it again ends everything that came from it. So one token is never kept for two accounts,
and tokens that were given are remembered by their SHA-256: a script that gives the same one again does not end the account
(docs/decisions/0012).
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from contio_pipeline.auth import ACCOUNT_NAME, CONSENT, Tokens, TokenStore
from contio_pipeline.client import Client
from contio_pipeline.errors import (
    AccountError,
    ConfigError,
    ContioError,
    CredentialsRefused,
    NothingPublished,
    StorageError,
)
from contio_pipeline.folders import private_folder
from contio_pipeline.generations import ask, current
from contio_pipeline.protocol import printable
from contio_pipeline.settings import Settings
from contio_pipeline.streams import PROFILE_PATH, SCOPES, STREAMS

log = logging.getLogger(__name__)

_TRIAL_SECONDS = 5.0
"""How long a trial's requests are retried: somebody waits."""

_PROBLEMS_SHOWN = 20
_NOBODY = "-"
"""No account can be called so."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A refresh token that was given, for which account, and in which line (0: not in a list)."""

    name: str
    token: str
    line: int = 0

    def __repr__(self) -> str:
        return f"Entry({self.name!r}, line={self.line})"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a token that was given.

    Attributes:
        state: `added` (it works), `refused` (it does not, and nothing was kept of it), `kept` (it could not be tried).
        who: the user, where the profile could be read.
        error: why it is refused, or could not be tried.
        warnings: what is worth a look, each with what to do.
    """

    entry: Entry
    state: Literal["added", "refused", "kept"]
    who: str = ""
    error: ContioError | None = None
    warnings: tuple[str, ...] = ()


# What is given --------------------------------------------------------------------------------------------------------


def check_name(name: str) -> str:
    """The name, when an account can be called so; a token in its place is not repeated.

    Raises:
        ConfigError: it cannot.
    """
    if name.startswith("cto_"):
        raise ConfigError("a token stands where the account's name should")
    if not ACCOUNT_NAME.fullmatch(name):
        raise ConfigError(
            "the name cannot name an account: use up to 100 letters, digits, and @ + . _ - (a letter or digit first)"
        )
    return name


def check_unlike(name: str, known: Collection[str]) -> None:
    """Refuse a new name that differs from one that is there in case only: some file systems take both for one.

    Raises:
        ConfigError: it does.
    """
    alike = {other.casefold(): other for other in known}.get(name.casefold())
    if alike and name not in known:
        raise ConfigError(f"there is an account {alike} already, and {name} differs from it in case only")


def check_token(token: str) -> str:
    """The token without surrounding space, when it can be a refresh token; it is never repeated.

    Raises:
        ConfigError: it cannot.
    """
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError("there is no refresh token, such as cto_rt_v1_…")
    if token.startswith("cto_at_"):
        raise ConfigError("this is an access token, which ends within a day: a refresh token (cto_rt_…) is needed")
    return token


def read_entries(lines: Iterable[str]) -> list[Entry]:
    """The accounts in lines of CSV (`name,refresh_token`) or of JSON (`{"name": …, "refresh_token": …}`).

    Raises:
        ConfigError: something is wrong; the text names each line, and never holds a token.
    """
    entries: list[Entry] = []
    problems: list[str] = []
    names: dict[str, int] = {}
    tokens: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or (number == 1 and text.replace(" ", "").lower() == "name,refresh_token"):
            continue
        try:
            name, token = _read_line(text)
            entry = Entry(check_name(name), check_token(token), number)
        except ConfigError as error:
            problems.append(f"line {number}: {error}")
            continue
        # Some file systems take Ana and ana for one.
        if (before := names.setdefault(entry.name.casefold(), number)) != number:
            problems.append(f"line {number}: {entry.name} stands in line {before} already")
        if (before := tokens.setdefault(entry.token, number)) != number:
            problems.append(
                f"line {number}: the token of line {before} again, and a token is good for one account only"
            )
        entries.append(entry)
    if not entries and not problems:
        raise ConfigError(
            'standard input held no accounts: lines such as name,refresh_token or {"name": …} were expected'
        )
    _refuse(problems)
    return entries


def _read_line(text: str) -> tuple[str, str]:
    """Name and token as they stand in the line."""
    if text.startswith("{"):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            raise ConfigError("not valid JSON") from None
        match found:
            case {"name": str(name), "refresh_token": str(token)}:
                return name.strip(), token
        raise ConfigError('it must hold "name" and "refresh_token", both texts')
    try:
        [fields] = csv.reader([text], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):
        raise ConfigError("not valid CSV") from None
    if len(fields) != 2:  # noqa: PLR2004 - name and token
        raise ConfigError(f"name,refresh_token was expected, not {len(fields)} fields")
    return fields[0].strip(), fields[1]


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        more = len(problems) - _PROBLEMS_SHOWN
        shown = "; ".join(problems[:_PROBLEMS_SHOWN]) + (f"; and {more} more" if more > 0 else "")
        raise ConfigError(f"nothing was changed: {shown}")


# What is kept ---------------------------------------------------------------------------------------------------------


class Keeper:
    """Takes tokens into the store, and tries them; a context manager.

    Args:
        settings: whose state folder and API.
        on_wait: called with the seconds that the request budget makes everybody wait.
    """

    def __init__(self, settings: Settings, on_wait: Callable[[float], None] = lambda _seconds: None) -> None:
        self._settings = settings
        self._store = TokenStore(settings.state_dir)
        self._given = settings.state_dir / "given-tokens"
        self._on_wait = on_wait
        self._before: dict[str, Tokens | None] = {}

    def take(self, entries: Sequence[Entry], *, replace: bool) -> tuple[list[Entry], list[Entry]]:
        """Store all tokens, or none.

        Args:
            entries: each name and each token once.
            replace: whether an account that is there gets the new token.

        Returns:
            Those to be tried, and those that were given before and are in use since.

        Raises:
            ConfigError: some cannot be taken; nothing was changed.
        """
        known = {name: tokens_of(self._store, name) for name in self._store.names()}
        holders = {tokens.refresh_token: name for name, tokens in known.items() if tokens}
        given = self._read_given()
        fresh: list[Entry] = []
        done: list[Entry] = []
        problems: list[str] = []
        for entry in entries:
            where = f"line {entry.line}: " if entry.line else ""
            before = known.get(entry.name)
            try:
                check_unlike(entry.name, known)
            except ConfigError as error:
                problems.append(f"{where}{error}")
                continue
            owner = holders.get(entry.token) or given.get(_fingerprint(entry.token), "")
            if owner and owner != entry.name and known.get(owner):
                problems.append(
                    f"{where}this token is {owner}'s already, and using it for {entry.name} too would end both: get one for "
                    f"{entry.name} alone, with contio-pipeline login --account {entry.name}"
                )
            elif owner == entry.name and before:
                untried = before.refresh_token == entry.token and not before.access_token
                (fresh if untried else done).append(entry)
            elif before and not replace:
                problems.append(
                    f"{where}{entry.name} is there already: leave it out, or say --replace if this is a new token of that user"
                )
            else:
                fresh.append(entry)
        _refuse(problems)
        for entry in fresh:
            with self._store.lock(entry.name):
                before = tokens_of(self._store, entry.name)
                self._before[entry.name] = before
                self._store.write(entry.name, Tokens(entry.token, profile_id=before.profile_id if before else ""))
                self._remember(entry.token, entry.name)
        return fresh, done

    def trials(self, entries: Iterable[Entry]) -> Iterator[Outcome]:
        """Try each account; one whose token is refused is as it was before.

        When the application's own credentials are refused, all that are left are kept untried.
        """
        settings = self._settings
        seconds = min(settings.retry_seconds, _TRIAL_SECONDS)
        hopeless: ContioError | None = None
        try:
            client = Client(replace(settings, retry_seconds=seconds), self._on_wait)
        except ConfigError as error:
            yield from (Outcome(entry, "kept", error=error) for entry in entries)
            return
        with client:
            for entry in entries:
                if hopeless:
                    yield Outcome(entry, "kept", error=hopeless)
                    continue
                client.context = entry.name
                try:
                    profile = client.profile(entry.name, PROFILE_PATH)
                except CredentialsRefused as error:
                    hopeless = error
                    yield Outcome(entry, "kept", error=error)
                except AccountError as error:
                    yield Outcome(entry, "refused", error=self._restore(entry, error))
                except ContioError as error:
                    yield Outcome(entry, "kept", error=error, warnings=warnings_of(self._store, entry.name))
                else:
                    warnings = warnings_of(self._store, entry.name)
                    yield Outcome(entry, "added", who=who(profile), warnings=warnings)

    def _restore(self, entry: Entry, error: AccountError) -> AccountError:
        """Put back what was there before; says when the token was used up although it is good."""
        if entry.name not in self._before:  # it was not stored just now: nothing is to be put back
            return error
        before = self._before[entry.name]
        with self._store.lock(entry.name):
            used_up = self._store.read(entry.name).refresh_token != entry.token
            good = before and (before.refresh_token != entry.token or before.profile_id)
            if before and good:
                self._store.write(entry.name, before)
            self._remember(entry.token, _NOBODY)
        if not good:
            self._store.remove(entry.name)
        # It is another user's: the trial exchanged it, and what it was exchanged for is not kept under this name.
        return AccountError(f"{error} (with a new token: this one was used up by the check)") if used_up else error

    def _read_given(self) -> dict[str, str]:
        """SHA-256 of a token -> the account that it was last given for."""
        try:
            lines = self._given.read_text(encoding="ascii", errors="replace").splitlines()
        except (FileNotFoundError, NotADirectoryError):  # what is wrong with the folder is said when it is written to
            return {}
        return {fields[0]: fields[1] for fields in map(str.split, lines) if len(fields) == 2}  # noqa: PLR2004 - of two words

    def _remember(self, token: str, name: str) -> None:
        """Write down, before the token is sent, for whom it was given."""
        private_folder(self._given.parent)
        descriptor = os.open(self._given, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "a", encoding="ascii") as file:
            file.write(f"\n{_fingerprint(token)} {name}\n")  # what a crash cut off stays a line of its own
            file.flush()
            os.fsync(file.fileno())


def _fingerprint(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def tokens_of(store: TokenStore, name: str) -> Tokens | None:
    """The account's tokens; None where there are none, or where they are damaged."""
    try:
        return store.read(name)
    except ConfigError:
        return None


def who(profile: dict[str, Any]) -> str:
    """The user as a person would know them."""
    return printable(f"{profile.get('display_name') or 'no name'} <{profile.get('email') or 'no e-mail'}>")


def missing_scopes(scope: str) -> list[str]:
    """The scopes that a consent lacks; none where the token endpoint did not say what it gave."""
    return [needed for needed in SCOPES if scope and needed not in scope.split()]


def warnings_of(store: TokenStore, name: str) -> tuple[str, ...]:
    """What is wrong with an account that works."""
    tokens = store.read(name)
    warnings = []
    if missing := missing_scopes(tokens.scope):
        lost = ", ".join(stream.name for stream in STREAMS if stream.scope in missing) or "nobody's name"
        warnings.append(
            f"the consent lacks {' '.join(missing)}, so {lost} cannot be synced: let the user consent to all of it with "
            f"contio-pipeline login --account {name}"
        )
    others = [
        other
        for other in store.names()
        if other != name
        and tokens.profile_id
        and (held := tokens_of(store, other))
        and held.profile_id == tokens.profile_id
    ]
    if others:
        warnings.append(
            f"{', '.join(others)} is the same Contio user: every row would be kept twice; keep one of them and remove the other "
            f"(contio-pipeline accounts remove {name})"
        )
    return tuple(warnings)


# What there is --------------------------------------------------------------------------------------------------------

_SYNCED = """
    WITH streams AS (SELECT account, max(complete_at) AS complete_at FROM ops.windows GROUP BY account, stream),
        newest AS (SELECT account, arg_max(run_id, listed_at) AS run_id, max(listed_at) AS listed_at FROM ops.windows GROUP BY 1)
    SELECT account, display_name AS name, email, listed_at,
        (SELECT bool_and(complete) FROM ops.windows w WHERE w.account = n.account AND w.run_id = n.run_id) AS complete,
        (SELECT if(bool_or(complete_at IS NULL), NULL, min(complete_at)) FROM streams s WHERE s.account = n.account) AS since
    FROM newest n LEFT JOIN raw.accounts a ON a._account = n.account"""


@dataclass(frozen=True, slots=True)
class Listed:
    """One account, as its tokens and the current generation know it; what is not known is None.

    Attributes:
        damaged: its tokens cannot be read.
        user: name and e-mail address.
        missing_scopes: of those that a sync needs.
        synced_at: when something of it was last listed.
        complete: whether all that this sync listed is complete.
        complete_as_of: since when at the latest each of its streams was listed completely at least once.
        refreshed_at: when its consent was last renewed.
        consent_ends: when it ends unless a sync renews it.
        refused_at: when its token was no longer accepted.
    """

    account: str
    damaged: bool = False
    user: str | None = None
    user_id: str | None = None
    scopes: tuple[str, ...] | None = None
    missing_scopes: tuple[str, ...] = ()
    synced_at: datetime | None = None
    complete: bool | None = None
    complete_as_of: datetime | None = None
    refreshed_at: datetime | None = None
    consent_ends: datetime | None = None
    refused_at: datetime | None = None

    def days_left(self, now: datetime) -> int | None:
        """Whole days until the consent ends; none when it has."""
        return max(0, (self.consent_ends - now).days) if self.consent_ends else None


def listed(settings: Settings) -> list[Listed]:
    """All accounts. The working file is not opened, so this can be asked at any moment."""
    store = TokenStore(settings.state_dir)
    synced = _synced(settings.data_dir)
    found = []
    for name in store.names():
        about = synced.get(name, {})
        tokens = tokens_of(store, name)
        refreshed = _moment(tokens.refreshed_at) if tokens else None
        refused = _moment(tokens.refused_at) if tokens else None
        user = {"display_name": about.get("name"), "email": about.get("email")}
        found.append(
            Listed(
                name,
                damaged=tokens is None,
                user=who(user) if any(user.values()) else None,
                user_id=(tokens.profile_id or None) if tokens else None,
                scopes=tuple(tokens.scope.split()) if tokens and tokens.scope else None,
                missing_scopes=tuple(missing_scopes(tokens.scope)) if tokens else (),
                synced_at=about.get("listed_at"),
                complete=about.get("complete"),
                complete_as_of=about.get("since"),
                refreshed_at=refreshed,
                consent_ends=refreshed + CONSENT if refreshed and not refused else None,
                refused_at=refused,
            )
        )
    return found


def _moment(seconds: float) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


def _synced(data_dir: Path) -> dict[str, dict[str, Any]]:
    """Account -> what the current generation says of it."""
    try:
        generation = current(data_dir)
        answer = ask(generation, _SYNCED)
        is_hidden = "accounts.email" in generation.manifest.get("policy", {}).get("hidden", {})
        blank = {"name": None, "email": None} if is_hidden else {}
        return {row[0]: dict(zip(answer.names, row, strict=True)) | blank for row in answer.rows}
    except NothingPublished:
        return {}
    except StorageError as error:
        log.warning("when the accounts were synced cannot be told: %s", error)
        return {}
