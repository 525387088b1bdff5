"""Environment and `.env` -> one frozen, validated `Settings`.

What lives here: every setting, its default, its check, and the error that names it and the fix. What never does:
reading the environment anywhere else.
"""

from __future__ import annotations

import difflib
import ipaddress
import logging
import os
import re
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from platformdirs import user_state_path

from contio_pipeline.errors import ConfigError
from contio_pipeline.streams import STREAMS, Stream, own_tables

API_PREFIX = "/v1/partner/user"
_PREFIX = "CONTIO_"
_CRON_NAMES = {"@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually"}
_CRON_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_ENV_FILE = "CONTIO_ENV_FILE"
_ENCODING = "utf-8-sig"  # some editors begin a file with a byte order mark
_OTHERS = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "DAGSTER_HOME"}
"""What is read from the environment alone, by libraries."""

_KUBERNETES = re.compile(r"CONTIO_(\w+_)?(SERVICE_(HOST|PORT\w*)|PORT|PORT_\d+_(TCP|UDP)\w*)")
"""What a cluster puts into the environment of every program where a service is called contio or contio-something."""

_ASSIGNMENT = re.compile(r"\s*(?:export\s+)?(?P<name>[A-Za-z_]\w*)\s*=")
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_OWNER = re.compile(r"team:\w[\w .-]*|[\w.+-]+@[\w-]+(\.[\w-]+)+")
_LEAST_SALT = 16
_ALWAYS_PUBLISHED = {
    "_account", "_parent_id", "_run_id", "_operation", "_first_seen_at", "_changed_at", "_missing_since", "_deleted_at",
    "_gone_reason", "_window_blind", "_hash", "stream",
}  # fmt: skip
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_YES, _NO = {"1", "true", "t", "yes", "y", "on"}, {"0", "false", "f", "no", "n", "off"}


class Secret:
    """A text that no log, traceback or dump shows (a dataclass would be dumped with its field)."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _split(value: str) -> SplitResult:
    """The parts of a URL; none where it is none, for what urlsplit says of it would show it."""
    try:
        return urlsplit(value)
    except ValueError:
        return urlsplit("")


def _http_url(value: str) -> str:
    parts = _split(value)
    whole = not any(character.isspace() for character in value)
    if not whole or parts.scheme not in {"https", "http"} or not parts.hostname or not _is_address(parts):
        raise ValueError("must be a URL such as https://api.contio.ai")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("must be a plain URL: no user, password, query or fragment")
    if parts.scheme == "http" and not is_loopback(value):
        raise ValueError("must begin with https:// (plain http is accepted for this machine's loopback address only)")
    return value.rstrip("/")


def _is_address(parts: SplitResult) -> bool:
    try:
        (parts.hostname or "").encode("idna")
        port = parts.port
    except ValueError:
        return False
    return port != 0


def _redirect_uri(value: str) -> str:
    """The value, unchanged: it must equal what the partner application registered, to the letter."""
    parts = _split(value)
    if parts.scheme == "https":
        _http_url(value)
        return value
    if parts.scheme != "http" or parts.hostname not in _LOOPBACK or not _is_address(parts) or not parts.port:
        raise ValueError(
            "must be http://127.0.0.1:PORT/PATH (or localhost, or [::1]), or an https address for login --no-browser"
        )
    _http_url(value)
    return value


def _flag(value: str) -> bool:
    if value.lower() not in _YES | _NO:
        raise ValueError("must be true or false")
    return value.lower() in _YES


def _whole(value: str, least: int = 0, most: int = 10**9) -> int:
    try:
        number = int(value)
    except ValueError:
        raise ValueError("must be a whole number") from None
    if number < least:
        raise ValueError(f"must be greater than or equal to {least}")
    if number > most:
        raise ValueError(f"must be less than or equal to {most}")
    return number


def _number(value: str, least: float, most: float, *, above: bool = False) -> float:
    """A number from `least` to `most`, or only from above `least`."""
    try:
        number = float(value)
    except ValueError:
        raise ValueError("must be a number") from None
    if not number <= most:  # so that what is no number is refused, too
        raise ValueError(f"must be a number less than or equal to {most:g}")
    if number < least or (above and number == least):
        raise ValueError(f"must be greater than {'' if above else 'or equal to '}{least:g}")
    return number


def _one_of(value: str, *known: str) -> str:
    if value not in known:
        raise ValueError(f"must be {' or '.join(map(repr, known))}")
    return value


def _day(value: str) -> date:
    try:
        return date.fromisoformat(value if _DAY.fullmatch(value) else "")
    except ValueError:
        raise ValueError("must be a valid date such as 2026-01-31") from None


def _past_day(value: str) -> date:
    day = _day(value)
    if day > datetime.now(UTC).date():
        raise ValueError(f"must not lie in the future: {value}")
    return day


def _path(value: str) -> Path:
    try:
        return Path(os.path.abspath(Path(value).expanduser()))  # noqa: PTH100 - resolve() would follow links
    except RuntimeError:
        raise ValueError(f"must be a folder or file; {value} names a user who is not known here") from None


def _data_dir(value: str) -> Path:
    if "?" in value:
        raise ValueError("must not contain a question mark: DuckDB misplaces its log beside such a file")
    if "\\" in value:
        raise ValueError("must not contain a backslash: DuckDB 2.0 cannot open a file in such a folder")
    return _path(value)


def _certificates(value: str) -> Path:
    path = _path(value)
    try:
        if not path.is_file():
            raise ValueError(f"must be a file of PEM certificates; there is none at {path}")
        ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        raise ValueError(f"must be a file of PEM certificates; {path} holds none") from None
    except OSError as error:
        raise ValueError(f"must be a file of PEM certificates; {path} cannot be read ({error.strerror})") from None
    return path


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        raise ValueError(f"must be an IANA time zone such as Europe/Berlin, not {value}") from None
    return value


def _cron(value: str) -> str:
    fields = value.split()
    known = value in _CRON_NAMES or (
        len(fields) == len(_CRON_RANGES)
        and all(re.fullmatch(r"[\dA-Za-z*/,#-]+", one) for one in fields)
        and all(
            least <= int(number) <= most
            for one, (least, most) in zip(fields, _CRON_RANGES, strict=True)
            for number in re.findall(r"(?<!/)\b\d+", one)
        )
    )
    if not known:  # the rest is checked where the schedule is made
        raise ValueError(f"must be a cron expression such as 15 2 * * *, not {value}")
    return value


def _owner(value: str) -> str:
    if not _OWNER.fullmatch(value):
        raise ValueError(f"must be an e-mail address or team:NAME, not {value}")
    return value


def _webhook(value: str) -> Secret:
    parts = _split(value)
    if not (parts.hostname and (parts.scheme == "https" or is_loopback(value))):
        raise ValueError("must be the https address of a webhook")
    return Secret(value)


def _optional_streams(value: str) -> tuple[str, ...]:
    known = [stream.name for stream in STREAMS if stream.optional]
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    if not set(names) <= set(known):
        raise ValueError(f"must name some of {', '.join(known)}, with a comma between them")
    return names


def _publish_policy(value: str) -> tuple[str, ...]:
    """What is said of single columns: `table.column=action`."""
    columns = {f"{table.name}.{column.name}": column for table in own_tables() for column in table.columns}
    said: dict[str, str] = {}
    for one in filter(None, map(str.strip, value.split(","))):
        name, _, action = (part.strip() for part in one.partition("="))
        if name == "just_me" and action in {"keep", "drop"}:
            said[name] = action
            continue
        column = columns.get(name)
        if action not in {"keep", "drop", "hash"} or not column:
            close = difflib.get_close_matches(name, columns, n=1)
            raise ValueError(
                f"must be a list such as meetings.title=drop, document_contents.filename=hash (keep, drop or hash); {one} is no "
                f"part of one{f': did you mean {close[0]}?' if close and close[0] != name else ''}"
            )
        if column.name in _ALWAYS_PUBLISHED or (column.name == "id" and column.holds != "person"):
            raise ValueError(f"cannot say {one}: keys, and the pipeline's own times, stay")
        if action == "hash" and not (column.kind == "text" or column.holds == "people"):
            raise ValueError(f"cannot say {one}: only texts and people can be hashed; drop it")
        if said.setdefault(name, action) != action:
            raise ValueError(f"says two things of {name}: keep one of them")
    return tuple(f"{name}={action}" for name, action in said.items())


def _salt(value: str) -> Secret:
    if len(value) < _LEAST_SALT or len(set(value)) < _LEAST_SALT // 2:
        raise ValueError(f"must have at least {_LEAST_SALT} characters that nobody can guess")
    return Secret(value)


def _client_id(value: str) -> str:
    if ":" in value:  # RFC 7617: the user part of Basic credentials cannot hold one
        raise ValueError("must not contain a colon")
    return value


def _is(read: Callable[[str], Any], default: Any) -> Any:
    """A setting: what makes its value of a text, or raises a ValueError that says what it must be; its default."""
    return field(default=default, metadata={"read": read})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings; each field `name` is the variable `CONTIO_NAME`. See `load_settings`.

    Attributes:
        given: the names of those that somebody set.
    """

    given: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    api_url: str = _is(_http_url, "https://api.contio.ai")
    token_url: str = _is(_http_url, "https://auth.contio.ai/oauth2/token")
    authorize_url: str = _is(_http_url, "https://auth.contio.ai/oauth2/authorize")
    redirect_uri: str = _is(_redirect_uri, "http://127.0.0.1:8765/callback")
    client_id: str | None = _is(_client_id, None)
    client_secret: Secret | None = _is(Secret, None)
    data_dir: Path = field(metadata={"read": _data_dir})
    state_dir: Path = field(metadata={"read": _path})
    rate_limit: int = _is(lambda text: _whole(text, 1), 1000)
    rate_window_seconds: float = _is(lambda text: _number(text, 0, 86_400, above=True), 300)
    timeout_seconds: float = _is(lambda text: _number(text, 0, 3600, above=True), 30)
    retry_seconds: float = _is(lambda text: _number(text, 0, 86_400), 600)
    calendar_start: date | None = _is(_day, None)
    calendar_end: date | None = _is(_day, None)
    optional_streams: tuple[str, ...] = _is(_optional_streams, ())
    documents: Literal["finished", "all"] = _is(lambda text: _one_of(text, "finished", "all"), "finished")
    document_max_mb: int = _is(lambda text: _whole(text, 1), 1024)
    document_text_max_kb: int = _is(lambda text: _whole(text, 0, 1 << 14), 1024)
    loss_share: float = _is(lambda text: _number(text, 0, 1), 0.5)
    loss_count: int = _is(_whole, 50)
    ca_bundle: Path | None = _is(_certificates, None)
    timezone: str = _is(_zone, "UTC")
    schedules: bool = _is(_flag, False)
    nightly_cron: str = _is(_cron, "15 2 * * 1-6")
    weekly_cron: str = _is(_cron, "15 2 * * 0")
    lookback_days: int = _is(lambda text: _whole(text, 0, 366), 7)
    lookahead_days: int = _is(lambda text: _whole(text, 0, 366), 30)
    heal_days: int = _is(lambda text: _whole(text, 1, 366), 30)
    fresh_hours: float = _is(lambda text: _number(text, 0, 8784, above=True), 36)
    nightly_full_requests: int = _is(_whole, 200)
    nightly_child_requests: int = _is(_whole, 500)
    first_day: date = _is(_past_day, date(2024, 1, 1))
    alert_url: Secret | None = _is(_webhook, None)
    digest: bool = _is(_flag, True)
    privacy: Literal["standard", "strict"] = _is(lambda text: _one_of(text, "standard", "strict"), "standard")
    publish_policy: tuple[str, ...] = _is(_publish_policy, ())
    hash_salt: Secret | None = _is(_salt, None)
    keep_generation_days: float = _is(lambda text: _number(text, 1, 366), 1)
    keep_generations: int = _is(lambda text: _whole(text, 2), 300)
    log_format: Literal["text", "json"] = _is(lambda text: _one_of(text, "text", "json"), "text")
    keep_runs_days: int = _is(lambda text: _whole(text, 1, 3660), 180)
    owner: str = _is(_owner, "team:data")

    @classmethod
    def names(cls) -> list[str]:
        """Of all settings, in the order of the declaration."""
        return [one.name for one in fields(cls) if "read" in one.metadata]

    def __post_init__(self) -> None:
        """Refuse values that contradict each other, with a ValueError."""
        if self.state_dir.resolve().is_relative_to(self.data_dir.resolve()):
            raise ValueError(
                f"CONTIO_STATE_DIR ({self.state_dir}) holds tokens and must not lie inside CONTIO_DATA_DIR ({self.data_dir})"
            )
        hashes = self.privacy == "strict" or "hash" in self.said_of_columns().values()
        if hashes and not self.hash_salt:
            raise ValueError(
                "CONTIO_HASH_SALT must be set, for something is to be hashed, and without a secret anybody could find out what: "
                "make one with python -c 'import secrets; print(secrets.token_hex(16))', and keep it, or all hashes change"
            )
        self._check_alike()
        if self.calendar_start and self.calendar_end and self.calendar_start >= self.calendar_end:
            raise ValueError("CONTIO_CALENDAR_END must be a later day than CONTIO_CALENDAR_START")

    def _check_alike(self) -> None:
        """Where a person is a hash in one column and not in another, nobody finds them again; so with contents."""
        said = self.said_of_columns()
        usual = "hash" if self.privacy == "strict" else "keep"

        def actions(*holds: str) -> dict[str, str]:
            found = [
                f"{one.name}.{column.name}" for one in own_tables() for column in one.columns if column.holds in holds
            ]
            return {name: said.get(name, usual) for name in found}

        people, contents = actions("person", "people"), actions("content")
        if set(people.values()) >= {"hash", "keep"}:
            kept, hashed = ([name for name, action in people.items() if action == one] for one in ("keep", "hash"))
            raise ValueError(
                f"CONTIO_PUBLISH_POLICY would keep {', '.join(kept[:3])} and hash {', '.join(hashed[:3])}: columns that name "
                "people are to be hashed all or none (or dropped), or nobody is found again; CONTIO_PRIVACY=strict hashes all"
            )
        if len(set(contents.values())) > 1:
            raise ValueError(
                f"CONTIO_PUBLISH_POLICY must say the same of {' and '.join(contents)}: what one hides, the other tells"
            )

    def as_environment(self) -> dict[str, str]:
        """The variables that give another process the same settings; the secret is among them."""
        values = {name: getattr(self, name) for name in self.names()}
        return {f"{_PREFIX}{name.upper()}": _as_text(value) for name, value in values.items() if value is not None}

    def said_of_columns(self) -> dict[str, str]:
        """`table.column` (or `just_me`) -> keep, drop or hash, as `publish_policy` says."""
        return dict(one.split("=") for one in self.publish_policy)

    def account_names_tell(self, accounts: Iterable[str]) -> str:
        """What to say of accounts whose names tell whom the policy hides; empty where none does."""
        names = [name for name in accounts if "@" in name]
        if self.privacy != "strict" or not names:
            return ""
        return (
            f"accounts named by an address ({', '.join(names[:3])}) are published by that name in spite of CONTIO_PRIVACY: "
            "add them again under another name (contio-pipeline login --account NAME), then accounts remove --purge the old one"
        )

    def listed(self, declared: Sequence[Stream]) -> tuple[Stream, ...]:
        """Those of the streams that are listed: optional ones only where they are asked for."""
        return tuple(stream for stream in declared if not stream.optional or stream.name in self.optional_streams)

    def calendar_range(self, now: datetime) -> tuple[datetime, datetime]:
        """The half-open range of days in which calendar events are listed: by default a year back, half a year ahead."""
        start = self.calendar_start or (now - timedelta(days=365)).date()
        end = self.calendar_end or (now + timedelta(days=183)).date()
        if start >= end:
            raise ConfigError(
                f"the calendar range is empty ({start} to {end}): set CONTIO_CALENDAR_START and CONTIO_CALENDAR_END"
            )
        return midnight(start), midnight(end)

    def credentials(self) -> tuple[str, Secret]:
        """The application's client id and secret.

        Raises:
            ConfigError: one of them is not set.
        """
        missing = [f"CONTIO_{name.upper()}" for name in ("client_id", "client_secret") if not getattr(self, name)]
        if self.client_id is None or self.client_secret is None or missing:
            raise ConfigError(
                f"{' and '.join(missing)} must be set (in the environment or in .env): the partner application's credentials "
                "from Contio's developer settings"
            )
        return self.client_id, self.client_secret


def midnight(day: date) -> datetime:
    """The first instant of a day in UTC."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def env_file() -> Path:
    """The `.env` that is read where it is there: the one that `CONTIO_ENV_FILE` names, else the working folder's."""
    return Path(os.environ.get(_ENV_FILE) or ".env").absolute()


def load_settings(**overrides: Any) -> Settings:
    """Read and validate all settings: what is given here, else the environment, else the `.env`, else the defaults.

    Raises:
        ConfigError: a value is wrong, a name is no setting, or a line of the `.env` is none; the text names each, with what it
            must be, and no value.
    """
    file = env_file()
    if os.environ.get(_ENV_FILE) and not file.is_file():
        raise ConfigError(f"CONTIO_ENV_FILE names {file}, which is not there")
    problems = _not_settings(os.environ, "in the environment")
    try:
        problems += _wrong_lines(file) if file.is_file() else []
        given = _of_file(file) | _named(os.environ)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    for name, value in overrides.items():
        if value is not None:
            given[name] = _as_text(value)
    texts = {"data_dir": "data", "state_dir": str(user_state_path("contio-pipeline", appauthor=False))} | given
    values: dict[str, Any] = {}
    for one in fields(Settings):
        try:
            if one.name in texts:
                values[one.name] = one.metadata["read"](texts[one.name])
        except ValueError as error:
            problems.append(f"{_PREFIX}{one.name.upper()} {error}")
    if not problems:
        try:
            return Settings(given=frozenset(given), **values)
        except ValueError as error:
            problems.append(str(error))
    raise ConfigError("; ".join(problems))


def _as_text(value: Any) -> str:
    """A value as the environment holds it."""
    if isinstance(value, Secret):
        return value.reveal()
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _named(variables: Mapping[str, str | None]) -> dict[str, str]:
    """The settings among variables: name -> text; an empty one counts as absent."""
    texts = {name.upper(): text for name, text in variables.items()}
    return {name: text for name in Settings.names() if (text := texts.get(f"{_PREFIX}{name.upper()}"))}


def _of_file(file: Path) -> dict[str, str]:
    """The settings of a `.env`, its paths made absolute against its own folder."""
    if not file.is_file():
        return {}
    texts = _named(dotenv_values(file, encoding=_ENCODING))
    for name in {"data_dir", "state_dir", "ca_bundle"} & texts.keys():
        if not texts[name].startswith("~"):
            texts[name] = str(file.parent / texts[name])
    return texts


def _not_settings(names: Iterable[str], where: str) -> list[str]:
    """What to say of names that look like settings and are none."""
    settings = [name.upper() for name in Settings.names()]
    problems = []
    for name in names:
        asked = name.upper().removeprefix(_PREFIX)
        if asked == name.upper() or asked in settings or name == _ENV_FILE or _KUBERNETES.fullmatch(name):
            continue
        close = difflib.get_close_matches(asked, settings, n=1)
        advice = (
            f"did you mean {_PREFIX}{close[0]}?"
            if close
            else "remove it, or see the README for the settings that there are"
        )
        problems.append(f"{name} ({where}) is no setting: {advice}")
    return problems


def _wrong_lines(file: Path) -> list[str]:
    """What to say of lines that would be passed over in silence; those of other programs are left alone."""
    problems = []
    logging.getLogger("dotenv").setLevel(logging.ERROR)  # it tells of broken lines in its own words
    seen: dict[str, str] = {}
    with file.open(encoding=_ENCODING) as lines:
        for line in parse_stream(lines):
            text = line.original.string
            blank = text[: len(text) - len(text.lstrip())].count("\n")  # lines before it belong to it
            where = f"{file} line {line.original.line + blank}"
            name = _ASSIGNMENT.match(text) if line.error else None
            if line.error and (name is None or name["name"].upper().startswith(_PREFIX)):
                problems.append(
                    f"{where} cannot be read: it must be NAME=value, with both quotes around a value or none"
                )
            elif line.key and line.key.upper().startswith(_PREFIX):
                problems += _not_settings([line.key], where)
                if line.value is None:
                    problems.append(f"{where} says nothing of {line.key}: it must be {line.key}=value")
                if (before := seen.setdefault(line.key.upper(), where)) != where:
                    problems.append(f"{where} sets {line.key} again, after {before}: keep one of the two")
            elif line.key and line.key.upper() in _OTHERS:
                problems.append(
                    f"{where} has no effect: {line.key} is read from the environment alone, so set it there"
                )
    return problems
