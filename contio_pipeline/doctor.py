"""What a person would look at first when something is wrong: each finding with its remedy.

What lives here: looking. What never does: mending, printing, opening the working file. Nothing is written but refreshed tokens
and what the probe found out.

It can be asked at any moment, also while a sync runs: sizes are the file system's, what was synced is what is published.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sqlite3
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from contio_pipeline import __version__
from contio_pipeline.accounts import missing_scopes, who
from contio_pipeline.alerts import Alerts
from contio_pipeline.auth import CONSENT, Tokens, TokenStore, how_to_renew
from contio_pipeline.client import Client, new_budgets, server_name
from contio_pipeline.errors import (
    AccountError,
    ApiError,
    ConfigError,
    ContioError,
    Forbidden,
    NothingPublished,
    ScopeMissing,
    StorageError,
    Throttled,
    Unauthorized,
)
from contio_pipeline.folders import MOUNTS, network_file_system, private_file
from contio_pipeline.forget import unfinished
from contio_pipeline.generations import Generation, ask, current, refused
from contio_pipeline.health import CONSENT_ENDS_SOON, COPIES, LEAST_SPACE, Case, checks
from contio_pipeline.probe import (
    API_VERSION,
    DATE_FILTER,
    END,
    LIMIT,
    LIST_LACKS,
    NO_PARENT,
    ORDER,
    RANGE,
    START,
    Answers,
    is_known,
    probe,
)
from contio_pipeline.settings import Settings, env_file, load_settings
from contio_pipeline.streams import PROFILE_NAME, PROFILE_PATH, PROFILE_SCOPE, SCOPES, STREAMS
from contio_pipeline.workfile import SCHEMA_VERSION, writer

Level = Literal["ok", "warning", "problem"]

_MB = 2**20
_FEW_FILES = 10_000
_SKEW, _LARGE_SKEW = 60.0, 3600.0
_SHORT_RETRY = 5.0
_WRITE, _ANYTHING = stat.S_IWGRP | stat.S_IWOTH, stat.S_IRWXG | stat.S_IRWXO  # rights of others
_PROGRAMS = ("duckdb", "pyarrow", "httpx", "dagster")

_MEANING = {
    DATE_FILTER: "windows list rows by another date than is assumed: what that hides, a full sync finds "
    "(contio-pipeline sync); run it more often",
    START: "nothing to do: windows lose no row whichever way it is",
    END: "nothing to do: windows lose no row whichever way it is",
    ORDER: "nothing to do: no order is relied on",
    LIMIT: "nothing to do: pages are stepped by the rows received",
    LIST_LACKS: "nothing to do: what lists lack is read row by row, which costs a request for each row that changed",
    RANGE: "nothing to do: longer calendar ranges are listed in parts, which costs more requests",
    NO_PARENT: "nothing to do: a meeting without documents is asked for before anything counts as gone",
    API_VERSION: "see the vendor's changelog; fields that are new are kept in _extra until a new version of contio-pipeline "
    "knows them",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: of what kind it is.
        subject: what it is: an account, a folder, a program.
        level: `problem`: something does not work, or will not; `warning`: worth a look.
        found: what is the case.
        remedy: what to do; empty where nothing is to be done.
    """

    area: str
    subject: str
    level: Level
    found: str
    remedy: str = ""


@dataclass(slots=True)
class _Examination:
    """What the areas share.

    Attributes:
        client: None where the API is not to be asked, or not any more.
        usable: accounts that the API answered.
        broken: accounts of which it was said already what is wrong with them.
    """

    settings: Settings
    accounts: list[str]
    now: datetime
    mounts: Path
    client: Client | None = None
    usable: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)


def examine(
    load: Callable[[], Settings] = load_settings,
    *,
    accounts: Sequence[str] = (),
    offline: bool = False,
    alert: bool = False,
    ask_undocumented: bool = True,
    patience: float = 60.0,
    mounts: Path = MOUNTS,
) -> Iterator[Finding]:
    """Look at everything, one thing after the other; what is broken never hides the next.

    Args:
        load: reads the settings.
        accounts: names; empty means all.
        offline: ask the API nothing.
        alert: send a message to whoever is told of trouble.
        ask_undocumented: ask the API what nobody documents, and compare with the last time.
        patience: seconds, in all, to wait for the request budget while others use it.
        mounts: the table of what is mounted where.
    """
    try:
        settings = load()
    except ConfigError as error:
        yield Finding(
            "configuration", "settings", "problem", str(error), f"correct it in the environment or {env_file()}"
        )
        yield from _versions()
        return
    store = TokenStore(settings.state_dir)
    case = _Examination(settings, list(dict.fromkeys(accounts)) or store.names(), datetime.now(UTC), mounts)
    with ExitStack() as open_until_the_end:
        yield from _guarded("configuration", _configuration(settings, case.now))
        if not offline and settings.client_id and settings.client_secret:
            try:
                brief = replace(settings, retry_seconds=min(settings.retry_seconds, _SHORT_RETRY))
                case.client = open_until_the_end.enter_context(Client(brief, _Patience(patience)))
            except ConfigError as error:
                yield Finding("configuration", "HTTP", "problem", str(error), "correct the variable that it names")
        yield from _guarded("account", _accounts(case, store))
        if case.client and (ahead := case.client.traffic.clock_ahead) is not None:
            yield _clock(ahead)
        for area, look in _MACHINE.items():
            yield from _guarded(area, look(case))
        yield from _versions()
        yield from _guarded("budget", _budget(settings))
        yield from _guarded("data", _data(case))
        yield _alerts(settings, alert=alert)
        if ask_undocumented and not offline:
            yield from _guarded("API", _undocumented(case))


def _alerts(settings: Settings, *, alert: bool) -> Finding:
    """Whether somebody is told of trouble."""
    if settings.alert_url is None:
        remedy = "set CONTIO_ALERT_URL to a webhook" if alert else ""
        return Finding("alerts", "webhook", "problem" if alert else "ok", "off: CONTIO_ALERT_URL is not set", remedy)
    host = urlsplit(settings.alert_url.reveal()).hostname
    if not alert:
        return Finding("alerts", "webhook", "ok", f"trouble is told to {host}; --alert sends a message to try it")
    if Alerts(settings).tell("contio-pipeline: this is a test, sent by doctor --alert."):
        return Finding("alerts", "webhook", "ok", f"a message was sent to {host}")
    return Finding(
        "alerts", "webhook", "problem", f"no message could be sent to {host}", "see the warning, and CONTIO_ALERT_URL"
    )


class _Busy(ApiError):
    """The request budget is not waited for any longer. It is no `Throttled`: nobody else is to hold back for it."""


class _Patience:
    """Waits for the request budget, but not for ever."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def __call__(self, seconds: float) -> None:
        if time.monotonic() + seconds > self._until:
            raise _Busy("the request budget is used up, or the API asked to be left alone: a sync may be at work")


def _guarded(area: str, findings: Iterator[Finding], subject: str = "") -> Iterator[Finding]:
    """What was found until something was in the way, and what that was."""
    try:
        yield from findings
    except (ContioError, OSError) as error:
        yield Finding(area, subject, "problem", str(error), "correct this, and ask again")


# Configuration, machine ---------------------------------------------------------------------------------------------------


def _configuration(settings: Settings, now: datetime) -> Iterator[Finding]:
    area, file = "configuration", env_file()
    names = ", ".join(f"CONTIO_{name.upper()}" for name in sorted(settings.given))
    yield Finding(area, "settings", "ok", f"set: {names or 'none'}; all others have their defaults")
    yield Finding(area, ".env", "ok", f"{file} is read" if file.is_file() else f"there is no {file}")
    if told := settings.account_names_tell(TokenStore(settings.state_dir).names()):
        yield Finding(area, "account names", "warning", told, "give the accounts other names")
    try:
        settings.credentials()
        yield Finding(area, "credentials", "ok", f"client id and secret are set; the API is {settings.api_url}")
    except ConfigError as error:
        yield Finding(area, "credentials", "problem", str(error), f"set them in the environment or in {file}")
    try:
        start, end = settings.calendar_range(now)
        yield Finding(area, "calendar range", "ok", f"{start:%Y-%m-%d} to {end:%Y-%m-%d}")
    except ConfigError as error:
        yield Finding(area, "calendar range", "problem", str(error), "set both to days that include today")


def _clock(ahead: float) -> Finding:
    """Whether the machine's clock agrees with the API's."""
    skew = abs(ahead)
    found = f"{skew:,.0f} s {'ahead of' if ahead > 0 else 'behind'} the API's"
    if skew <= _SKEW:
        return Finding("machine", "clock", "ok", found)
    remedy = "let the system set its clock (Linux: timedatectl set-ntp true): by it tokens expire and windows of days are chosen"
    return Finding("machine", "clock", "problem" if skew > _LARGE_SKEW else "warning", found, remedy)


def _disk(case: _Examination) -> Iterator[Finding]:
    warehouse = _size(case.settings.data_dir / "warehouse.duckdb")
    for name, folder, needed in (
        ("data folder", case.settings.data_dir, COPIES * warehouse),
        ("state folder", case.settings.state_dir, 0),
    ):
        about = os.statvfs(_nearest(folder))
        files = about.f_favail if about.f_files else None  # some file systems do not count them
        yield _room(name, shutil.disk_usage(_nearest(folder)).free, files, needed)


def _room(name: str, free: int, files: int | None, needed: int) -> Finding:
    """Whether there is enough of it: bytes and, where they are counted, files."""
    found = f"{_bytes(free)} free" + (f", {_bytes(needed)} are needed to publish" if needed else "")
    if free < LEAST_SPACE:
        return Finding(
            "disk", name, "problem", found, "make room: nothing can be written soon; what is committed stays"
        )
    if free < needed:
        return Finding(
            "disk", name, "warning", found, "make room: a generation is a copy of the warehouse and its Parquet"
        )
    if files is not None and files < _FEW_FILES:
        remedy = "make room, or more inodes: each document's contents are a file"
        return Finding("disk", name, "warning", f"{found}, but only {files:,} more files can be made", remedy)
    return Finding("disk", name, "ok", found)


def _permissions(case: _Examination) -> Iterator[Finding]:
    data, state = case.settings.data_dir, case.settings.state_dir
    for name, folder in (("CONTIO_DATA_DIR", data), ("CONTIO_STATE_DIR", state)):
        if folder.is_dir():
            try:
                with tempfile.TemporaryFile(dir=folder):
                    yield Finding("permissions", name, "ok", f"{folder} can be written")
            except OSError as error:
                remedy = f"chown it to this user, or set {name} to another folder"
                yield Finding("permissions", name, "problem", f"{folder} cannot be written ({error.strerror})", remedy)
        elif (nearest := _nearest(folder)).is_dir() and os.access(nearest, os.W_OK | os.X_OK):
            yield Finding("permissions", name, "ok", f"{folder} is not there yet; {nearest} can be written")
        else:
            yield Finding(
                "permissions", name, "problem", f"{folder} cannot be made in {nearest}", f"set {name} to another folder"
            )
    if data.is_dir():
        yield _mode("data folder", data, _WRITE, "go-w", "change what is published")
    if state.is_dir():
        yield _mode("state folder", state, _ANYTHING, "go=", "see which accounts there are", serious=_WRITE)
    for tokens in sorted((state / "accounts").glob("*.json")):
        yield _mode(f"tokens of {tokens.stem}", tokens, _ANYTHING, "go=", "use the account")


def _mode(
    subject: str, path: Path, refused: int, remedy: str, others_could: str, *, serious: int | None = None
) -> Finding:
    """Whether the file is this user's, and nobody else has one of the rights that are refused; some are a problem."""
    about = path.stat()
    mode = stat.S_IMODE(about.st_mode)
    if about.st_uid != os.getuid():
        found = f"{path} belongs to another user (uid {about.st_uid})"
        return Finding("permissions", subject, "problem", found, f"run as that user, or: chown -R {os.getuid()} {path}")
    if mode & refused:
        level: Level = "problem" if mode & (refused if serious is None else serious) else "warning"
        found = f"{path} has mode {mode:04o}: others could {others_could}"
        return Finding("permissions", subject, level, found, f"chmod {remedy} {path}")
    return Finding("permissions", subject, "ok", f"{path} has mode {mode:04o}")


def _file_systems(case: _Examination) -> Iterator[Finding]:
    levels: tuple[tuple[str, Path, Level], ...] = (
        ("CONTIO_DATA_DIR", case.settings.data_dir, "warning"),
        ("CONTIO_STATE_DIR", case.settings.state_dir, "problem"),
    )
    for name, folder, level in levels:
        if kind := network_file_system(folder, case.mounts):
            found = f"{folder} lies on a network file system ({kind}): locks on it are not to be trusted"
            yield Finding("file system", name, level, found, f"set {name} to a folder on a local disk")
        else:
            yield Finding("file system", name, "ok", f"{folder} lies on no network file system that is known of")


_MACHINE: dict[str, Callable[[_Examination], Iterator[Finding]]] = {
    "disk": _disk,
    "permissions": _permissions,
    "file system": _file_systems,
}


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "contio-pipeline", "ok", __version__)
    yield Finding("versions", "Python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")
    for name in _PROGRAMS:
        try:
            yield Finding("versions", name, "ok", version(name))
        except PackageNotFoundError:
            yield Finding("versions", name, "problem", "not installed", "make install")


# Accounts -----------------------------------------------------------------------------------------------------------------


def _accounts(case: _Examination, store: TokenStore) -> Iterator[Finding]:
    if not case.accounts:
        yield Finding("account", "", "problem", "there are no accounts yet", f"add one: {how_to_renew('NAME')}")
    for name in case.accounts:
        for finding in _guarded("account", _account(case, store, name), name):
            if finding.level == "problem":
                case.broken.add(name)
            yield finding


def _account(case: _Examination, store: TokenStore, name: str) -> Iterator[Finding]:
    try:
        tokens = store.read(name)
    except ConfigError as error:
        yield Finding("account", name, "problem", str(error), how_to_renew(name))
        return
    if case.client:
        finding = _ask_profile(case, case.client, name)
        yield finding
        if finding.level == "problem":
            return
        tokens = store.read(name)  # refreshed, perhaps, and bound
    elif tokens.profile_id:
        yield Finding("account", name, "ok", f"not asked for; its tokens are those of user {tokens.profile_id}")
    else:
        yield Finding("account", name, "ok", "not asked for; not known whose tokens these are")
    yield _scopes(name, tokens)
    yield _consent(name, tokens, case.now)


def _ask_profile(case: _Examination, client: Client, name: str) -> Finding:
    """Read the account's profile; after a refusal for all the API is asked nothing more."""
    try:
        profile = client.profile(name, PROFILE_PATH)
    except (ScopeMissing, Forbidden) as error:
        case.usable.append(name)
        remedy = f"deletions cannot be confirmed; {how_to_renew(name)}"
        return Finding("account", name, "warning", f"its profile cannot be read ({error})", remedy)
    except (Throttled, _Busy) as error:
        case.client = None
        return Finding(
            "account", name, "problem", str(error), "ask again in a few minutes; --offline asks the API nothing"
        )
    except (AccountError, Unauthorized) as error:
        return Finding("account", name, "problem", str(error), how_to_renew(name))
    except (ApiError, ConfigError) as error:
        remedy = f"see that this machine reaches {case.settings.api_url} and {case.settings.token_url}"
        return Finding("account", name, "problem", str(error), f"{remedy} (network, proxy, CONTIO_CA_BUNDLE)")
    case.usable.append(name)
    return Finding("account", name, "ok", f"{who(profile)}, user {profile.get('id')}")


def _scopes(name: str, tokens: Tokens) -> Finding:
    """What the account's consent allows, against what the streams need."""
    subject = f"{name}: scopes"
    if not tokens.scope:
        return Finding("account", subject, "ok", "not known: the token endpoint did not say, or was not asked yet")
    missing = missing_scopes(tokens.scope)
    if not missing:
        return Finding("account", subject, "ok", tokens.scope)
    lost = [f"{stream.name} (needs {stream.scope})" for stream in STREAMS if stream.scope in missing]
    lost += [f"confirming deletions (needs {PROFILE_SCOPE})"] * (PROFILE_SCOPE in missing)
    remedy = f"let the user consent to all scopes ({' '.join(SCOPES)}): {how_to_renew(name)}"
    return Finding("account", subject, "problem", f"not possible: {', '.join(lost)}", remedy)


def _consent(name: str, tokens: Tokens, now: datetime) -> Finding:
    """When the account's consent ends unless a sync renews it."""
    subject = f"{name}: consent"
    if tokens.refused_at:
        refused = datetime.fromtimestamp(tokens.refused_at, UTC)
        return Finding(
            "account", subject, "problem", f"not accepted any more since {refused:%Y-%m-%d}", how_to_renew(name)
        )
    if not tokens.refreshed_at:
        return Finding("account", subject, "ok", "the refresh token was not used yet")
    ends = datetime.fromtimestamp(tokens.refreshed_at, UTC) + CONSENT
    if ends <= now:
        found = f"ended on {ends:%Y-%m-%d}, unless it was renewed by another program"
        return Finding("account", subject, "problem", found, how_to_renew(name))
    found = f"ends on {ends:%Y-%m-%d}, in {(ends - now).days} days, unless it is renewed"
    if ends - now < CONSENT_ENDS_SOON:
        return Finding("account", subject, "warning", found, f"contio-pipeline sync --account {name} renews it")
    return Finding("account", subject, "ok", found)


# Budget, data -------------------------------------------------------------------------------------------------------------


class _Held(Exception):
    """There is no slot now."""


def _budget(settings: Settings) -> Iterator[Finding]:
    """How much is left; a slot is taken to see whether one can be had."""
    path = settings.state_dir / f"budget-{server_name(settings)}.sqlite"
    window = f"requests in {settings.rate_window_seconds:g} s"
    if not path.exists():
        yield Finding("budget", "requests", "ok", f"none was sent yet, of {settings.rate_limit:,} {window}")
        return

    def no_slot(_seconds: float) -> None:
        raise _Held

    budget, tokens = new_budgets(settings, no_slot)
    try:
        allowed = budget.allowed()
        left = allowed - budget.used()
        found = f"{max(left, 0):,} left of {allowed:,} {window}"
        if allowed < settings.rate_limit:
            found += f", which the API turned out to allow (CONTIO_RATE_LIMIT is {settings.rate_limit:,})"
        with budget.slot():
            yield Finding("budget", "requests", "ok", found)
    except _Held:
        why = "the API asked all to hold back" if left > 0 else "all are used, by a sync perhaps"
        remedy = f"wait: within {settings.rate_window_seconds:g} s there are more"
        yield Finding("budget", "requests", "warning", f"{found}, and none may be sent now: {why}", remedy)
    except (sqlite3.Error, StorageError) as error:
        yield Finding("budget", "requests", "problem", f"{path} cannot be used ({error})", "remove it: it is made anew")
    finally:
        budget.close()
        tokens.close()


def _data(case: _Examination) -> Iterator[Finding]:
    data = case.settings.data_dir
    if erasure := unfinished(data):
        found, _, remedy = erasure.partition(": ")
        yield Finding("data", "erasure", "problem", found, remedy)
    busy = writer(data)
    found = f"process {busy} is writing: what is published stays readable" if busy else "nobody is writing"
    yield Finding("data", "warehouse", "ok", f"{_bytes(_size(data / 'warehouse.duckdb'))}; {found}")
    documents = [_size(path) for path in (data / "documents").glob("??/??/*")]
    yield Finding("data", "documents", "ok", f"{len(documents):,} files, {_bytes(sum(documents))}")
    generations = list((data / "generations").glob("*Z-*"))
    shared = {(about.st_dev, about.st_ino): about.st_size for about in _stats(generations)}
    size = _bytes(sum(shared.values()))
    yield Finding("data", "generations", "ok", f"{len(generations)}, {size}; a replaced one stays for a day")
    if told := refused(data):
        found, _, remedy = told.partition(": nothing is published")
        yield Finding(
            "data", "published", "problem", f"the last try was refused: {found}", f"nothing is published{remedy}"
        )
    try:
        generation = current(data)
        yield from _published(case, generation)
    except NothingPublished as error:
        yield Finding("data", "published", "warning", str(error), "contio-pipeline sync")
    except ContioError as error:
        yield Finding("data", "published", "problem", str(error), "contio-pipeline publish")


def _published(case: _Examination, generation: Generation) -> Iterator[Finding]:
    [schema] = [
        int(row["value"]) for row in _rows(generation, "SELECT value FROM ops.meta WHERE key = 'schema_version'")
    ]
    found = f"{generation.name}, schema version {schema}"
    if schema > SCHEMA_VERSION:
        found += f"; this program knows {SCHEMA_VERSION}"
        yield Finding("data", "published", "problem", found, "upgrade contio-pipeline to the version that made it")
    else:
        yield Finding("data", "published", "ok", found)
    for run in _rows(generation, _LAST_RUN):
        done = run["finished_at"] or run["started_at"]
        found = f"{done:%Y-%m-%d %H:%M} UTC, {run['requests']:,} requests"
        yield Finding("data", "last sync", "ok", found)
    yield from _tables(case, generation)
    for listed in _rows(generation, _NOT_COMPLETE):
        account, streams = listed["account"], listed["streams"]
        if account in case.accounts:
            only = "" if PROFILE_NAME in streams else "".join(f" --stream {stream}" for stream in streams)
            remedy = f"contio-pipeline sync --account {account}{only}"
            if account in case.broken:
                remedy = f"first what is said of the account, then {remedy}"
            yield Finding("not complete", f"{account} {', '.join(streams)}", "problem", listed["reason"], remedy)


def _tables(case: _Examination, generation: Generation) -> Iterator[Finding]:
    """What the checks say of the tables that are published."""
    about = Case(lambda sql: _rows(generation, sql), case.settings, case.now)
    for check in checks():
        if check.name in _SEEN_ELSEWHERE:
            continue
        subject, level = f"{check.of} {check.name}", _LEVELS[check.level]
        found: dict[str, list[str]] = {}
        for problem in check.look(about):
            if problem.whose in case.accounts or check.name != "fresh":
                found.setdefault(problem.what, []).append(problem.whose)
        for what, whose in found.items():
            told, _, remedy = what.rpartition(": ")
            yield Finding("tables", subject, level, f"{', '.join(filter(None, whose))} {told}".strip(), remedy)
        if not found:
            yield Finding("tables", subject, "ok", check.doc)


_LEVELS: dict[str, Level] = {"blocks": "problem", "fails": "problem", "warns": "warning"}
_SEEN_ELSEWHERE = {"consents_last", "room_on_disk"}

_LAST_RUN = "SELECT started_at, finished_at, requests FROM ops.runs ORDER BY started_at DESC LIMIT 1"
_NOT_COMPLETE = """
    WITH last AS (
        SELECT account, stream, listed_at,
            coalesce(reason, 'rows are missing, and it is not confirmed that they are gone') AS reason FROM ops.windows w
        WHERE NOT complete AND NOT EXISTS (
            SELECT 1 FROM ops.windows later WHERE later.account = w.account AND later.stream = w.stream
                AND later.window_start IS NULL AND later.complete AND later.listed_at > w.listed_at)
        QUALIFY row_number() OVER (PARTITION BY account, stream ORDER BY listed_at DESC) = 1)
    SELECT account, reason, list(stream ORDER BY listed_at, stream) AS streams FROM last GROUP BY ALL ORDER BY account, streams"""


def _rows(generation: Generation, sql: str) -> list[dict[str, Any]]:
    answer = ask(generation, sql)
    return [dict(zip(answer.names, row, strict=True)) for row in answer.rows]


# What the API leaves undocumented -----------------------------------------------------------------------------------------


def _undocumented(case: _Examination) -> Iterator[Finding]:
    path = case.settings.state_dir / f"probe-{server_name(case.settings)}.json"
    if case.client is None or not case.usable:
        yield Finding(
            "API", "undocumented", "warning", "it could not be asked: no account can be used", "see the accounts"
        )
        return
    before = _read_answers(path)
    try:
        answers = probe(case.client, case.usable[0], case.now, case.settings.listed(STREAMS))
    except (AccountError, ApiError) as error:
        yield Finding("API", "undocumented", "warning", f"it could not be asked: {error}", "ask again in a few minutes")
        return
    for name, answer in answers.items():
        yield _compared(name, answer, before.get(name))
    known = before | {name: answer for name, answer in answers.items() if is_known(answer)}
    private_file(path, json.dumps({"asked_at": case.now.isoformat(), "answers": known}, indent=1) + "\n")


def _read_answers(path: Path) -> Answers:
    """The answers of the last time; none where there was none, or where they cannot be read any more."""
    try:
        return {
            str(name): str(answer) for name, answer in json.loads(path.read_text(encoding="utf-8"))["answers"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _compared(name: str, answer: str, before: str | None) -> Finding:
    """What is said of an answer, given the last one that was known and what the declarations assume."""
    stream, _, question = name.rpartition(".")
    if not is_known(answer):
        return Finding("API", name, "ok", answer + (f"; before: {before}" if before else ""))
    found = f"{answer}, before: {before}" if before not in {None, answer} else answer
    assumed = {one.name: one.date_field for one in STREAMS}.get(stream)
    if question == DATE_FILTER and assumed not in answer.split(" or "):
        return Finding("API", name, "warning", f"{found}; assumed: {assumed}", _MEANING[question])
    if found != answer:
        return Finding("API", name, "warning", found, _MEANING[question])
    return Finding("API", name, "ok", found)


# Files --------------------------------------------------------------------------------------------------------------------


def _nearest(path: Path) -> Path:
    """The folder itself, or the one that it would be made in."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # not there, or not any more
        return 0


def _stats(folders: Sequence[Path]) -> Iterator[os.stat_result]:
    for path in (path for folder in folders for path in folder.rglob("*")):
        try:
            about = path.stat()
        except OSError:  # a generation may be collected meanwhile
            continue
        if stat.S_ISREG(about.st_mode):
            yield about


def _bytes(size: int) -> str:
    for unit, one in (("GB", 2**30), ("MB", _MB), ("kB", 2**10)):
        if size >= one:
            return f"{size / one:,.1f} {unit}"
    return f"{size} bytes"
