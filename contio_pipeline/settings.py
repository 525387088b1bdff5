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
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import SplitResult, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dotenv.parser import parse_stream
from platformdirs import user_state_path
from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from contio_pipeline.errors import ConfigError

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


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _http_url(value: str) -> str:
    parts = urlsplit(value)
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
    parts = urlsplit(value)
    if parts.scheme == "https":
        _http_url(value)
        return value
    if parts.scheme != "http" or parts.hostname not in _LOOPBACK or not _is_address(parts) or not parts.port:
        raise ValueError(
            "must be http://127.0.0.1:PORT/PATH (or localhost, or [::1]), or an https address for login --no-browser"
        )
    _http_url(value)
    return value


Url = Annotated[str, AfterValidator(_http_url)]


class Settings(BaseSettings):
    """All settings; each field `name` is the variable `CONTIO_NAME`."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, extra="ignore", frozen=True, env_ignore_empty=True, hide_input_in_errors=True
    )

    api_url: Url = "https://api.contio.ai"
    token_url: Url = "https://auth.contio.ai/oauth2/token"  # noqa: S105 - an address
    authorize_url: Url = "https://auth.contio.ai/oauth2/authorize"
    redirect_uri: Annotated[str, AfterValidator(_redirect_uri)] = "http://127.0.0.1:8765/callback"
    client_id: str | None = None
    client_secret: SecretStr | None = None
    data_dir: Path = Path("data")
    state_dir: Path = Field(default_factory=lambda: user_state_path("contio-pipeline", appauthor=False))
    rate_limit: int = Field(1000, ge=1)
    rate_window_seconds: float = Field(300, gt=0, le=86_400)
    timeout_seconds: float = Field(30, gt=0, le=3600)
    retry_seconds: float = Field(600, ge=0, le=86_400)
    calendar_start: date | None = None
    calendar_end: date | None = None
    documents: Literal["finished", "all"] = "finished"
    document_max_mb: int = Field(1024, ge=1)
    loss_share: float = Field(0.5, ge=0, le=1)
    loss_count: int = Field(50, ge=0)
    ca_bundle: Path | None = None
    timezone: str = "UTC"
    schedules: bool = False
    nightly_cron: str = "15 2 * * 1-6"
    weekly_cron: str = "15 2 * * 0"
    lookback_days: int = Field(7, ge=0, le=366)
    lookahead_days: int = Field(30, ge=0, le=366)
    heal_days: int = Field(30, ge=1, le=366)
    fresh_hours: float = Field(36, gt=0, le=8784)
    nightly_full_requests: int = Field(200, ge=0)
    nightly_child_requests: int = Field(500, ge=0)
    first_day: date = date(2024, 1, 1)
    alert_url: SecretStr | None = None
    digest: bool = True
    keep_generation_days: float = Field(1, ge=1, le=366)
    keep_generations: int = Field(300, ge=2)
    log_format: Literal["text", "json"] = "text"
    keep_runs_days: int = Field(180, ge=1, le=3660)
    owner: str = "team:data"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic's signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic's signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then `.env` with its paths made absolute against its own folder."""

        def dotenv() -> dict[str, Any]:
            values = dotenv_settings()
            folder = Path(str(getattr(dotenv_settings, "env_file", None) or ".env")).absolute().parent
            paths = [name for name in ("data_dir", "state_dir", "ca_bundle") if values.get(name)]
            return values | {name: _resolved(folder, values[name]) for name in paths}

        return init_settings, env_settings, dotenv  # type: ignore[return-value]

    @field_validator("data_dir", "state_dir", "ca_bundle")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        try:
            return value and Path(os.path.abspath(value.expanduser()))  # noqa: PTH100 - resolve() would follow links
        except RuntimeError:
            raise ValueError(f"must be a folder or file; {value} names a user who is not known here") from None

    @field_validator("data_dir")
    @classmethod
    def _fit_for_duckdb(cls, value: Path) -> Path:
        if "?" in str(value):
            raise ValueError("must not contain a question mark: DuckDB misplaces its log beside such a file")
        if "\\" in str(value):
            raise ValueError("must not contain a backslash: DuckDB 2.0 cannot open a file in such a folder")
        return value

    @field_validator("ca_bundle")
    @classmethod
    def _readable(cls, value: Path | None) -> Path | None:
        if value and not value.is_file():
            raise ValueError(f"must be a file of PEM certificates; there is none at {value}")
        try:
            if value:
                ssl.create_default_context(cafile=value)
        except (ssl.SSLError, OSError):
            raise ValueError(f"must be a file of PEM certificates; {value} holds none") from None
        return value

    @field_validator("alert_url")
    @classmethod
    def _like_url(cls, value: SecretStr | None) -> SecretStr | None:
        parts = urlsplit(value.get_secret_value()) if value else None
        if (
            value
            and parts
            and not (parts.hostname and (parts.scheme == "https" or is_loopback(value.get_secret_value())))
        ):
            raise ValueError("must be the https address of a webhook")
        return value

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ValueError, OSError, ZoneInfoNotFoundError):
            raise ValueError(f"must be an IANA time zone such as Europe/Berlin, not {value}") from None
        return value

    @field_validator("nightly_cron", "weekly_cron")
    @classmethod
    def _like_cron(cls, value: str) -> str:
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

    @field_validator("first_day")
    @classmethod
    def _past(cls, value: date) -> date:
        if value > datetime.now(UTC).date():
            raise ValueError(f"must not lie in the future: {value}")
        return value

    @field_validator("owner")
    @classmethod
    def _like_owner(cls, value: str) -> str:
        if not _OWNER.fullmatch(value):
            raise ValueError(f"must be an e-mail address or team:NAME, not {value}")
        return value

    @field_validator("client_id")
    @classmethod
    def _no_colon(cls, value: str | None) -> str | None:
        if value and ":" in value:  # RFC 7617: the user part of Basic credentials cannot hold one
            raise ValueError("must not contain a colon")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.state_dir.resolve().is_relative_to(self.data_dir.resolve()):
            raise ValueError(
                f"CONTIO_STATE_DIR ({self.state_dir}) holds tokens and must not lie inside CONTIO_DATA_DIR ({self.data_dir})"
            )
        if self.calendar_start and self.calendar_end and self.calendar_start >= self.calendar_end:
            raise ValueError("CONTIO_CALENDAR_END must be a later day than CONTIO_CALENDAR_START")
        return self

    def as_environment(self) -> dict[str, str]:
        """The variables that give another process the same settings; the secret is among them."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {
            f"{_PREFIX}{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            for name, value in values.items()
            if value is not None
        }

    def calendar_range(self, now: datetime) -> tuple[datetime, datetime]:
        """The half-open range of days in which calendar events are listed: by default a year back, half a year ahead."""
        start = self.calendar_start or (now - timedelta(days=365)).date()
        end = self.calendar_end or (now + timedelta(days=183)).date()
        if start >= end:
            raise ConfigError(
                f"the calendar range is empty ({start} to {end}): set CONTIO_CALENDAR_START and CONTIO_CALENDAR_END"
            )
        return midnight(start), midnight(end)

    def credentials(self) -> tuple[str, SecretStr]:
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


def _resolved(folder: Path, text: str) -> Path:
    """The path below the folder, `~` filled in; left alone where `~` names nobody, for the validator to refuse."""
    try:
        return folder / Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def midnight(day: date) -> datetime:
    """The first instant of a day in UTC."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def env_file() -> Path:
    """The `.env` that is read where it is there: the one that `CONTIO_ENV_FILE` names, else the working folder's."""
    return Path(os.environ.get(_ENV_FILE) or ".env").absolute()


def load_settings(**overrides: Any) -> Settings:
    """Read and validate all settings.

    Raises:
        ConfigError: a value is wrong, a name is no setting, or a line of the `.env` is none; the text names each, with what it
            must be, and no value.
    """
    file = env_file()
    if os.environ.get(_ENV_FILE) and not file.is_file():
        raise ConfigError(f"CONTIO_ENV_FILE names {file}, which is not there")
    problems: list[str] = []
    try:
        problems += _not_settings(os.environ, "in the environment")
        problems += _wrong_lines(file) if file.is_file() else []
        settings = Settings(**{"_env_file": file, "_env_file_encoding": _ENCODING, **overrides})
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            name = f"{_PREFIX}{str(problem['loc'][0]).upper()} " if problem["loc"] else ""
            problems.append(name + problem["msg"].removeprefix("Value error, "))
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    if problems:
        raise ConfigError("; ".join(problems))
    return settings


def _not_settings(names: Iterable[str], where: str) -> list[str]:
    """What to say of names that look like settings and are none."""
    settings = [name.upper() for name in Settings.model_fields]
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
