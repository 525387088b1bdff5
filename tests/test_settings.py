"""Settings: every variable, where its value comes from, and what a wrong one says."""

from __future__ import annotations

import os
from dataclasses import FrozenInstanceError, asdict
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from contio_pipeline.errors import ConfigError
from contio_pipeline.settings import Secret, Settings, is_loopback, load_settings, midnight

SECRET = "cto_secret_do_not_show"


class Variable(NamedTuple):
    """What one variable stands for: its default, texts that mean a value, texts that are refused."""

    default: Any
    good: dict[str, Any]
    bad: tuple[str, ...] = ()


URLS = {
    "https://beta.api.contio.ai": "https://beta.api.contio.ai",
    "https://gateway.example.com/contio/": "https://gateway.example.com/contio",
    "https://gateway.example.com:8443": "https://gateway.example.com:8443",
    "http://127.0.0.1:8000": "http://127.0.0.1:8000",
    "http://[::1]:8000": "http://[::1]:8000",
    "http://localhost:8000/": "http://localhost:8000",
}
BAD_URLS = (
    "api.contio.ai",
    "ftp://api.contio.ai",
    "https://",
    "https://[::1",
    "http://api.contio.ai",
    "http://127.0.0.1.example.com",
    "http://10.0.0.1",
    "http://0.0.0.0",
    "https://user@api.contio.ai",
    "https://user:pass@api.contio.ai",
    "https://api.contio.ai?x=1",
    "https://api.contio.ai#x",
    "https://api.contio.ai:port",
    "https://api.contio.ai:99999",
    "https://api.contio.ai:0",
    "https://api..contio.ai",
    f"https://{'x' * 64}.contio.ai",
    "https://api.contio.ai/a b",
    " https://api.contio.ai",
    "https://api.contio.ai\n",
)
VARIABLES = {
    "api_url": Variable("https://api.contio.ai", URLS, BAD_URLS),
    "token_url": Variable("https://auth.contio.ai/oauth2/token", URLS, BAD_URLS),
    "authorize_url": Variable("https://auth.contio.ai/oauth2/authorize", URLS, BAD_URLS),
    "redirect_uri": Variable(
        "http://127.0.0.1:8765/callback",
        {
            good: good
            for good in (
                "http://localhost:1/",
                "http://[::1]:65535/a/b",
                "http://127.0.0.1:80",
                "https://example.com/back/",
            )
        },
        (
            "http://127.0.0.1/callback",
            "http://127.0.0.1:0/callback",
            "http://127.0.0.2:8765/callback",
            "http://example.com:8765/callback",
            "http://127.0.0.1:8765/callback?x=1",
            "http://127.0.0.1:8765/callback#x",
            "http://127.0.0.1:8765/call back",
            "http://user@127.0.0.1:8765/callback",
            "https://user@example.com",
            "127.0.0.1:8765",
            "contio://callback",
        ),
    ),
    "client_id": Variable(None, {"cto_client_1": "cto_client_1"}, ("with:colon",)),
    "client_secret": Variable(None, {}),  # see test_the_secret_is_never_shown
    "data_dir": Variable(
        Path("data"), {"elsewhere": Path("elsewhere"), "/srv/contio/../data": Path("/srv/data")}, ("what?", "a\\\\b")
    ),
    "state_dir": Variable(None, {"tokens": Path("tokens"), "/var/lib/contio": Path("/var/lib/contio")}),
    "rate_limit": Variable(1000, {"1": 1, "300": 300}, ("0", "-5", "many", "1.5", "9" * 400)),
    "rate_window_seconds": Variable(300, {"0.5": 0.5, "86400": 86_400}, ("0", "-1", "86401", "nan", "inf", "5m")),
    "timeout_seconds": Variable(30, {"0.2": 0.2, "3600": 3600}, ("0", "-1", "3601", "nan", "soon")),
    "retry_seconds": Variable(600, {"0": 0, "86400": 86_400}, ("-1", "86401", "nan", "never")),
    "calendar_start": Variable(None, {"2026-01-31": date(2026, 1, 31)}, ("2026-02-30", "yesterday", "31.1.2026")),
    "calendar_end": Variable(None, {"2026-01-31": date(2026, 1, 31)}, ("2026-02-30", "tomorrow")),
    "document_text_max_kb": Variable(1024, {"0": 0, "5000": 5000}, ("-1", "1048577", "x")),
    "optional_streams": Variable(
        (),
        {"participants": ("participants",), "agenda_items, participants": ("agenda_items", "participants")},
        ("meetings", "participant"),
    ),
    "documents": Variable("finished", {"finished": "finished", "all": "all"}, ("none", "ALL")),
    "document_max_mb": Variable(1024, {"1": 1, "50": 50}, ("0", "-1", "huge")),
    "loss_share": Variable(0.5, {"0": 0, "1": 1, "0.2": 0.2}, ("-0.1", "1.1", "nan", "half")),
    "loss_count": Variable(50, {"0": 0, "1000": 1000}, ("-1", "1.5")),
    "ca_bundle": Variable(None, {}, ("not-there.pem", ".")),
    "timezone": Variable("UTC", {"Europe/Berlin": "Europe/Berlin"}, ("Berlin", "../etc/passwd", "Europe", "+02:00")),
    "schedules": Variable(False, {"true": True, "off": False}, ("nightly",)),
    "nightly_cron": Variable(
        "15 2 * * 1-6",
        {"0 3 * * *": "0 3 * * *", "*/10 0-23/2 1,31 * 0": "*/10 0-23/2 1,31 * 0"},
        ("at midnight", "* * *", "2:15", "99 * * * *", "0 24 * * *", "0 0 0 * *", "@reboot"),
    ),
    "weekly_cron": Variable(
        "15 2 * * 0", {"@weekly": "@weekly", "0 3 * * SUN": "0 3 * * SUN"}, ("0 3 * * * * *", "daily")
    ),
    "lookback_days": Variable(7, {"0": 0, "366": 366}, ("-1", "367", "week")),
    "lookahead_days": Variable(30, {"0": 0, "366": 366}, ("-1", "367")),
    "heal_days": Variable(30, {"1": 1, "366": 366}, ("0", "367", "1.5")),
    "nightly_full_requests": Variable(200, {"0": 0, "5000": 5000}, ("-1", "many")),
    "nightly_child_requests": Variable(500, {"0": 0, "5000": 5000}, ("-1", "many")),
    "fresh_hours": Variable(36, {"0.5": 0.5, "8784": 8784}, ("0", "-1", "nan", "soon")),
    "alert_url": Variable(None, {}),  # a secret: see test_alerts.py
    "digest": Variable(True, {"false": False, "true": True}, ("perhaps",)),
    "keep_runs_days": Variable(180, {"1": 1, "3660": 3660}, ("0", "3661", "1.5")),
    "privacy": Variable("standard", {"standard": "standard"}, ("open", "STRICT")),
    "publish_policy": Variable(
        (),
        {
            "meetings.title=drop": ("meetings.title=drop",),
            " meetings.title = drop ,just_me=keep,": ("meetings.title=drop", "just_me=keep"),
            "agenda_items.talking_points=keep": ("agenda_items.talking_points=keep",),
        },
        (
            "meetings.title",
            "meetings.titel=drop",
            "meetings.title=hide",
            "meetings.id=drop",
            "meetings.start_time=hash",
            "meetings._account=drop",
            "meetings_past.title=drop",
            "mart.people=drop",
            "just_me=hash",
            "x",
        ),
    ),
    "hash_salt": Variable(None, {"0123456789abcdef": Secret("0123456789abcdef")}, ("short", "a" * 32)),
    "keep_generation_days": Variable(1, {"1": 1, "2.5": 2.5}, ("0.9", "367", "nan")),
    "keep_generations": Variable(300, {"2": 2, "9000": 9000}, ("1", "0", "many")),
    "log_format": Variable("text", {"json": "json", "text": "text"}, ("JSON", "xml")),
    "first_day": Variable(date(2024, 1, 1), {"2020-02-29": date(2020, 2, 29)}, ("2021-02-29", "start", "2999-01-01")),
    "owner": Variable("team:data", {"ana@example.com": "ana@example.com"}, ("ana", "team:", "@", "team:a;b")),
}
GOOD = [(name, text, value) for name, variable in VARIABLES.items() for text, value in variable.good.items()]
BAD = [(name, text) for name, variable in VARIABLES.items() for text in variable.bad]


def env(name: str) -> str:
    return f"CONTIO_{name.upper()}"


def test_every_setting_is_tested_here() -> None:
    assert VARIABLES.keys() == set(Settings.names())


# Values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in VARIABLES if name != "state_dir"])
def test_the_default(name: str, tmp_path: Path) -> None:
    default = VARIABLES[name].default
    assert getattr(load_settings(), name) == (tmp_path / default if isinstance(default, Path) else default)


def test_state_is_kept_in_the_users_own_folder_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert load_settings().state_dir.is_relative_to(tmp_path / "home")
    assert load_settings().state_dir.name == "contio-pipeline"


@pytest.mark.parametrize(("name", "text", "value"), GOOD)
def test_a_variable_sets_it(name: str, text: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(env(name), text)
    assert getattr(load_settings(), name) == (tmp_path / value if isinstance(value, Path) else value)


@pytest.mark.parametrize("name", VARIABLES)
def test_an_empty_variable_counts_as_absent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_settings()
    monkeypatch.setenv(env(name), "")
    assert load_settings() == before


@pytest.mark.parametrize("name", ["data_dir", "state_dir", "ca_bundle"])
def test_a_tilde_is_the_users_home(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").write_text(CERTIFICATE)
    monkeypatch.setenv(env(name), "~/here")
    assert getattr(load_settings(), name) == tmp_path / "here"


def test_links_in_paths_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setenv("CONTIO_DATA_DIR", "link/data")
    assert load_settings().data_dir == tmp_path / "link" / "data"


def test_settings_cannot_be_changed() -> None:
    settings = load_settings()
    with pytest.raises(FrozenInstanceError):
        settings.rate_limit = 5


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "text"), BAD)
def test_a_wrong_value_is_refused_by_the_variables_name(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(env(name), text)
    with pytest.raises(ConfigError, match=rf"^{env(name)} \S+"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "text", "fix"),
    [
        ("api_url", "api.contio.ai", "must be a URL such as https://api.contio.ai"),
        ("api_url", "http://api.contio.ai", "must begin with https://"),
        ("token_url", "http://auth.contio.ai", "loopback address only"),
        ("token_url", "https://user:pass@auth.contio.ai", "must be a plain URL: no user, password, query or fragment"),
        ("client_id", "a:b", "CONTIO_CLIENT_ID must not contain a colon"),
        ("rate_limit", "0", "greater than or equal to 1"),
        ("retry_seconds", "86401", "less than or equal to 86400"),
        ("documents", "none", "'finished' or 'all'"),
        ("calendar_start", "31.1.2026", "valid date"),
        ("ca_bundle", "not-there.pem", "must be a file of PEM certificates"),
    ],
)
def test_a_refusal_says_what_the_value_must_be(name: str, text: str, fix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(env(name), text)
    with pytest.raises(ConfigError) as refused:
        load_settings()
    assert fix in str(refused.value)


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTIO_RATE_LIMIT", "0")
    monkeypatch.setenv("CONTIO_DOCUMENTS", "none")
    with pytest.raises(ConfigError, match=r"CONTIO_RATE_LIMIT .*; CONTIO_DOCUMENTS "):
        load_settings()


def test_a_file_of_certificates_must_hold_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("no certificate here")
    monkeypatch.setenv("CONTIO_CA_BUNDLE", "notes.txt")
    with pytest.raises(ConfigError, match=r"^CONTIO_CA_BUNDLE must be a file of PEM certificates"):
        load_settings()


def test_certificates_that_cannot_be_read_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTIO_CA_BUNDLE", "a" * 300)  # longer than a name may be
    with pytest.raises(ConfigError, match=r"^CONTIO_CA_BUNDLE must be a file of PEM certificates; .* cannot be read"):
        load_settings()


@pytest.mark.parametrize("name", ["api_url", "redirect_uri", "alert_url"])
def test_a_url_that_cannot_be_taken_apart_is_not_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(env(name), f"https://u:{SECRET}℀w@x.y/z")
    with pytest.raises(ConfigError, match=f"^{env(name)} must be") as refused:
        load_settings()
    assert SECRET not in str(refused.value)


def test_a_secret_may_be_given_as_one() -> None:
    assert load_settings(client_secret=Secret(SECRET)).client_secret == Secret(SECRET)


@pytest.mark.parametrize("source", ["environment", "file"])
def test_the_home_of_an_unknown_user_is_refused(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if source == "file":
        (tmp_path / ".env").write_text("CONTIO_DATA_DIR=~nobody-of-this-name/data\n")
    else:
        monkeypatch.setenv("CONTIO_DATA_DIR", "~nobody-of-this-name/data")
    with pytest.raises(ConfigError, match=r"^CONTIO_DATA_DIR "):
        load_settings()


@pytest.mark.parametrize("state", ["data", "data/state", "data/../data/state", "link/state"])
def test_tokens_are_never_kept_inside_the_data_that_is_handed_out(
    state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    monkeypatch.setenv("CONTIO_STATE_DIR", state)
    with pytest.raises(ConfigError, match=r"CONTIO_STATE_DIR .* must not lie inside CONTIO_DATA_DIR"):
        load_settings()


def test_a_folder_beside_the_data_may_hold_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTIO_STATE_DIR", "data-state")
    assert load_settings().state_dir.name == "data-state"


def test_the_calendar_range_must_not_be_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTIO_CALENDAR_START", "2026-03-01")
    monkeypatch.setenv("CONTIO_CALENDAR_END", "2026-03-01")
    with pytest.raises(ConfigError, match="CONTIO_CALENDAR_END must be a later day than CONTIO_CALENDAR_START"):
        load_settings()


# Where values come from -----------------------------------------------------------------------------------------------


def test_the_working_folders_env_file_is_read(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CONTIO_RATE_LIMIT=7\nCONTIO_CLIENT_ID='größe'\nOTHER=1\n", encoding="utf-8")
    assert (load_settings().rate_limit, load_settings().client_id) == (7, "größe")


def test_arguments_beat_the_environment_which_beats_the_env_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("CONTIO_RATE_LIMIT=7\nCONTIO_DOCUMENT_MAX_MB=7\nCONTIO_RETRY_SECONDS=7\n")
    monkeypatch.setenv("CONTIO_DOCUMENT_MAX_MB", "8")
    monkeypatch.setenv("CONTIO_RETRY_SECONDS", "8")
    settings = load_settings(retry_seconds=9)
    assert (settings.rate_limit, settings.document_max_mb, settings.retry_seconds) == (7, 8, 9)


def test_another_env_file_replaces_that_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("CONTIO_RATE_LIMIT=7\nCONTIO_RETRY_SECONDS=7\n")
    (tmp_path / "production.env").write_text("CONTIO_RATE_LIMIT=8\n")
    monkeypatch.setenv("CONTIO_ENV_FILE", "production.env")
    assert (load_settings().rate_limit, load_settings().retry_seconds) == (8, 600)


def test_relative_paths_in_an_env_file_are_relative_to_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "ca.pem").write_text(CERTIFICATE)
    lines = ["CONTIO_DATA_DIR=../published", "CONTIO_STATE_DIR=state", "CONTIO_CA_BUNDLE=ca.pem"]
    (folder / "contio.env").write_text("\n".join(lines))
    monkeypatch.setenv("CONTIO_ENV_FILE", "etc/contio.env")
    settings = load_settings()
    assert settings.data_dir == tmp_path / "published"
    assert settings.state_dir == folder / "state"
    assert settings.ca_bundle == folder / "ca.pem"


def test_a_path_in_the_environment_is_relative_to_the_working_folder_even_beside_an_env_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "contio.env").write_text("CONTIO_DATA_DIR=published\n")
    monkeypatch.setenv("CONTIO_ENV_FILE", "etc/contio.env")
    monkeypatch.setenv("CONTIO_DATA_DIR", "mine")
    assert load_settings().data_dir == tmp_path / "mine"


def test_an_env_file_that_was_named_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTIO_ENV_FILE", "nowhere/.env")
    with pytest.raises(ConfigError, match=r"CONTIO_ENV_FILE names .*nowhere/\.env, which is not there"):
        load_settings()


def test_an_env_file_that_is_no_text_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"CONTIO_CLIENT_ID=gr\xf6sse\n")
    with pytest.raises(ConfigError, match=r"\.env cannot be read"):
        load_settings()


def test_a_wrong_value_in_an_env_file_is_refused_by_the_variables_name(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CONTIO_API_URL=http://api.contio.ai\n")
    with pytest.raises(ConfigError, match=r"^CONTIO_API_URL must begin with https://"):
        load_settings()


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CONTIO_RATE_LIMIT=7\n", encoding="utf-8-sig")
    assert load_settings().rate_limit == 7


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("CONTIO_DATADIR", "did you mean CONTIO_DATA_DIR?"),
        ("contio_client_secrt", "did you mean CONTIO_CLIENT_SECRET?"),
        ("CONTIO_RATELIMIT", "did you mean CONTIO_RATE_LIMIT?"),
        ("CONTIO_XQZ", "remove it"),
    ],
)
@pytest.mark.parametrize("source", ["environment", "file"])
def test_a_misspelled_name_is_refused_with_the_closest_one(
    name: str, advice: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source == "file":
        (tmp_path / ".env").write_text(f"OTHER=1\n\n{name}={SECRET}\n")
    else:
        monkeypatch.setenv(name, SECRET)
    with pytest.raises(ConfigError) as refused:
        load_settings()
    where = f"{tmp_path}/.env line 3" if source == "file" else "in the environment"
    assert f"{name} ({where}) is no setting: {advice}" in str(refused.value)
    assert SECRET not in str(refused.value)


def test_misspelled_names_and_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTIO_RATE_LIMITS", "5")
    monkeypatch.setenv("CONTIO_DOCUMENTS", "none")
    with pytest.raises(ConfigError, match=r"^CONTIO_RATE_LIMITS .*; CONTIO_DOCUMENTS "):
        load_settings()


@pytest.mark.parametrize(
    "line",
    [
        f'CONTIO_CLIENT_SECRET="{SECRET}',
        f"CONTIO_CLIENT_SECRET='{SECRET}' and more",
        f"CONTIO CLIENT SECRET={SECRET}",
        f"export CONTIO_CLIENT_SECRET='{SECRET}",
        f"the secret is {SECRET}",
        "CONTIO_CLIENT_SECRET",
    ],
)
def test_a_line_that_would_be_passed_over_is_refused_by_its_number(line: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"CONTIO_RATE_LIMIT=7\n# a remark\n\n{line}\nCONTIO_RETRY_SECONDS=7\n")
    with pytest.raises(ConfigError, match=r"\.env line 4 ") as refused:
        load_settings()
    assert SECRET not in str(refused.value)


def test_lines_and_variables_of_other_programs_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text('OTHER="never closed\nONLY_A_NAME\nmy-var=3\nCONTIO_RATE_LIMIT=7\n')
    for name in ("MY_CONTIO_THING", "CONTIO_SERVICE_HOST", "CONTIO_PIPELINE_PORT_3000_TCP_ADDR", "CONTIO_PORT"):
        monkeypatch.setenv(name, "tcp://10.0.0.1:3000")  # a cluster's, where a service is called contio
    assert load_settings().rate_limit == 7


def test_a_name_that_is_set_twice_is_refused_and_a_librarys_own_complaint_is_not_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".env").write_text('CONTIO_RATE_LIMIT=7\nCONTIO_DOCUMENTS="all\ncontio_rate_limit=8\n')
    with pytest.raises(
        ConfigError, match=r"line 2 cannot be read.*line 3 sets contio_rate_limit again, after .*line 1"
    ):
        load_settings()
    assert not caplog.records


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "no_proxy", "SSL_CERT_FILE", "DAGSTER_HOME"])
def test_what_is_read_from_the_environment_alone_is_refused_in_a_file(name: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"{name}=/x\n")
    with pytest.raises(ConfigError, match=f"line 1 has no effect: {name} is read from the environment alone"):
        load_settings()


# Secrets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["environment", "file"])
def test_the_secret_is_never_shown(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if source == "file":
        (tmp_path / ".env").write_text(f"CONTIO_CLIENT_SECRET={SECRET}\n")
    else:
        monkeypatch.setenv("CONTIO_CLIENT_SECRET", SECRET)
    settings = load_settings(client_id="me")
    assert settings.credentials()[1].reveal() == SECRET
    for text in (repr(settings), str(settings), repr(settings.credentials()), str(asdict(settings))):
        assert SECRET not in text


@pytest.mark.parametrize("name", ["api_url", "client_id", "rate_limit", "documents"])
def test_a_refusal_never_shows_the_value_for_it_may_be_a_secret(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(env(name), f"{SECRET}:x")
    with pytest.raises(ConfigError) as refused:
        load_settings()
    assert env(name) in str(refused.value)
    assert SECRET not in str(refused.value)
    assert refused.value.__context__ is None


def test_both_credentials_are_returned_when_both_are_set() -> None:
    identity, secret = load_settings(client_id="me", client_secret=SECRET).credentials()
    assert (identity, secret.reveal()) == ("me", SECRET)


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, "CONTIO_CLIENT_ID and CONTIO_CLIENT_SECRET must be set"),
        ({"client_id": "me"}, "CONTIO_CLIENT_SECRET must be set"),
        ({"client_secret": SECRET}, "CONTIO_CLIENT_ID must be set"),
    ],
)
def test_missing_credentials_are_asked_for_only_when_they_are_needed(given: dict[str, str], missing: str) -> None:
    settings = load_settings(**given)
    with pytest.raises(ConfigError, match=f"^{missing} .*developer settings"):
        settings.credentials()


# Rules ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1", True),
        ("http://127.1.2.3:80/x", True),
        ("http://[::1]:80", True),
        ("http://localhost", True),
        ("http://LOCALHOST", True),
        ("http://localhost.example.com", False),
        ("http://127.0.0.1.example.com", False),
        ("http://169.254.169.254", False),
        ("http://example.com", False),
        ("nothing", False),
    ],
)
def test_what_is_this_machine(url: str, expected: bool) -> None:
    assert is_loopback(url) is expected


NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


def test_the_calendar_is_listed_from_a_year_back_to_half_a_year_ahead() -> None:
    assert load_settings().calendar_range(NOON) == (
        datetime(2025, 3, 10, tzinfo=UTC),
        datetime(2026, 9, 9, tzinfo=UTC),
    )


def test_the_calendar_range_can_be_set_at_either_end() -> None:
    start, end = date(2020, 1, 1), date(2030, 1, 1)
    assert load_settings(calendar_start=start).calendar_range(NOON)[0] == midnight(start)
    assert load_settings(calendar_end=end).calendar_range(NOON)[1] == midnight(end)
    assert load_settings(calendar_start=start, calendar_end=end).calendar_range(NOON) == (
        midnight(start),
        midnight(end),
    )


def test_one_end_that_empties_the_calendar_range_is_refused_when_it_is_used() -> None:
    with pytest.raises(ConfigError, match=r"calendar range is empty .* CONTIO_CALENDAR_START"):
        load_settings(calendar_end=date(2020, 1, 1)).calendar_range(NOON)


def test_a_day_begins_at_midnight_utc() -> None:
    assert midnight(date(2026, 3, 29)) == datetime(2026, 3, 29, 0, 0, tzinfo=UTC)


def test_nothing_of_the_environment_is_changed_by_reading_it(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CONTIO_RATE_LIMIT=7\n")
    before = dict(os.environ)
    assert load_settings().rate_limit == 7
    assert dict(os.environ) == before


# A certificate of nobody, valid for a hundred years; its key was thrown away.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBeTCCAR+gAwIBAgIUGl2MAOZUJl4vE8avBqkqtfPRQp8wCgYIKoZIzj0EAwIw
ETEPMA0GA1UEAwwGbm9ib2R5MCAXDTI2MTEyMzIzMzYwMVoYDzIxMjYxMDMwMjMz
NjAxWjARMQ8wDQYDVQQDDAZub2JvZHkwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AAR9V5fODWt75Q4NNl9dGxK9PvXSTL2eqGmKRVhDcFmXl4DvGTdpoZGoGsqMzTpV
PQbvm3eeoSIGxmXuZPEWN68Yo1MwUTAdBgNVHQ4EFgQUJcFH/+A8jjBfLiJx8yIX
q+hxyYgwHwYDVR0jBBgwFoAUJcFH/+A8jjBfLiJx8yIXq+hxyYgwDwYDVR0TAQH/
BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiBbdZ7NcQsnyKT7ugMX9OEjnjgXIxES
vLQo0v3g6s7AewIhAJkm1inn9DrlcdVyjGtNagLYix1gpdgxWFa1xTWh2+iZ
-----END CERTIFICATE-----
"""
