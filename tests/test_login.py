"""Login as a user does it: a real process, a real listener, a real authorization server, and a script for a browser."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx
import pytest
from conftest import Place

from contio_pipeline import login as module
from contio_pipeline.auth import TokenStore
from contio_pipeline.errors import AccountError, ApiError, ConfigError, ContioError, CredentialsRefused
from contio_pipeline.login import Login
from contio_pipeline.sandbox.server import Fault
from contio_pipeline.streams import SCOPES

BROWSER = """
import sys, httpx
answer = httpx.get(sys.argv[1], follow_redirects=True, trust_env=False)
open({path!r}, "w").write(f"{{answer.status_code}} {{answer.text}}")
"""
CALLBACK = "http://127.0.0.1:8765/callback"


@pytest.fixture
def place(new_place: Callable[..., Place]) -> Place:
    """A small place without accounts; the redirect URI has a free port of its own."""
    place = new_place(meetings=5)
    store = TokenStore(place.settings.state_dir)
    for name in store.names():
        store.remove(name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place.overrides["redirect_uri"] = f"http://127.0.0.1:{port}/callback"
    return place


@pytest.fixture
def browser(place: Place, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """The environment of a command whose browser follows the address it is given; what it sees goes to `seen`."""

    def environment(**more: str) -> dict[str, str]:
        script = tmp_path / "browser.py"
        script.write_text(BROWSER.format(path=str(tmp_path / "seen")))
        return {**place.environment, "BROWSER": f"{sys.executable} {script} %s", **more}

    return environment


def command(*arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "contio_pipeline", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **how,
    )
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert not re.search(r"cto_(at|rt|ac)_", said)
    return done


def store_of(place: Place) -> TokenStore:
    return TokenStore(place.settings.state_dir)


def consented(attempt: Login, **more: str) -> str:
    """Where the browser is sent to after the consent."""
    address = f"{attempt.url}&{urlencode(more)}" if more else attempt.url
    return str(httpx.get(address, trust_env=False).headers["location"])


def logged_in(place: Place, name: str | None = None, **more: str) -> module.LoggedIn:
    attempt = Login(place.settings, name)
    return attempt.finish(attempt.read_pasted(consented(attempt, **more)))


# The browser ----------------------------------------------------------------------------------------------------------


def test_a_login_in_the_browser_adds_the_account_that_a_sync_then_uses(
    place: Place, browser: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    ana = place.world.accounts["ana"]
    done = command("login", env=browser())
    assert done.returncode == 0, done.stderr
    assert str(ana.profile["email"]) in done.stdout
    assert "200" in (tmp_path / "seen").read_text()
    assert "You can close this window" in (tmp_path / "seen").read_text()
    name = str(ana.profile["email"])
    tokens = store_of(place).read(name)
    assert (tokens.profile_id, tokens.scope) == (ana.user_id, " ".join(SCOPES))
    assert place.sync(streams=["meetings"]).complete
    [request] = [request for request in place.sandbox.requests if request.path == "/oauth2/authorize"]
    assert "code_verifier" not in request.query
    assert place.asked("/oauth2/token") == ["/oauth2/token"]  # the exchange; nothing had to be refreshed


def test_a_denied_consent_says_what_to_do_and_keeps_nothing(
    place: Place, browser: Callable[..., dict[str, str]]
) -> None:
    place.sandbox.consent_as = "nobody"
    done = command("login", "--account", "sales", env=browser())
    assert done.returncode == 1
    assert "consent was not given" in done.stderr
    assert "contio-pipeline login again" in done.stderr
    assert store_of(place).names() == []


def test_a_port_that_is_in_use_is_named_with_the_ways_out(place: Place, browser: Callable[..., dict[str, str]]) -> None:
    port = urlsplit(place.settings.redirect_uri).port
    with socket.socket() as other:
        other.bind(("127.0.0.1", port or 0))
        other.listen()
        done = command("login", env=browser())
    assert done.returncode == 2
    for word in (str(port), "CONTIO_REDIRECT_URI", "--no-browser"):
        assert word in done.stderr
    assert place.asked("/oauth2/authorize") == []


def test_ctrl_c_ends_the_wait_at_once(browser: Callable[..., dict[str, str]]) -> None:
    env = browser(BROWSER=f"{sys.executable} -c pass %s")
    process = subprocess.Popen(
        [sys.executable, "-m", "contio_pipeline", "login"], env=env, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=15)
    assert process.returncode == 130
    assert "Stopped" in said
    assert "Traceback" not in said


# The listener ---------------------------------------------------------------------------------------------------------


class Waiting:
    """A login that waits for the browser in a thread of its own; the test is the browser."""

    def __init__(self, attempt: Login, monkeypatch: pytest.MonkeyPatch, patience: float = 20.0) -> None:
        self.result: list[str | ContioError] = []
        listening = threading.Event()
        monkeypatch.setenv("BROWSER", f"{sys.executable} -c pass %s")

        def wait() -> None:
            try:
                self.result.append(attempt.wait_for_browser(listening.set, patience=patience))
            except ContioError as error:
                self.result.append(error)

        self.thread = threading.Thread(target=wait)
        self.thread.start()
        assert listening.wait(20)

    def done(self) -> str | ContioError:
        self.thread.join(30)
        return self.result[0]


@pytest.fixture
def no_proxy() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False) as client:
        yield client


def test_only_our_own_redirect_ends_the_wait(
    place: Place, monkeypatch: pytest.MonkeyPatch, no_proxy: httpx.Client, capfd: pytest.CaptureFixture[str]
) -> None:
    attempt = Login(place.settings)
    redirect = place.settings.redirect_uri
    origin = redirect.removesuffix("/callback")
    waiting = Waiting(attempt, monkeypatch)
    for address, status in (
        (f"{origin}/favicon.ico", 404),
        (f"{origin}/callback/", 404),
        (redirect, 400),
        (f"{redirect}?code=stolen", 400),
        (f"{redirect}?code=stolen&state=made-up", 400),
        (f"{redirect}?error=access_denied&state=", 400),
    ):
        assert no_proxy.get(address).status_code == status, address
    assert no_proxy.post(redirect).status_code == 501
    with socket.create_connection(("127.0.0.1", urlsplit(redirect).port or 0)):  # opened ahead, says nothing
        answer = no_proxy.get(consented(attempt))
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"
    code = waiting.done()
    assert isinstance(code, str)
    assert attempt.finish(code).account == place.world.accounts["ana"].profile["email"]
    told = capfd.readouterr()
    assert code not in told.out + told.err + answer.text
    with pytest.raises(httpx.ConnectError):
        no_proxy.get(redirect)


@pytest.mark.parametrize("host", ["localhost", "[::1]"])
def test_other_names_of_this_machine_are_listened_on(
    host: str, place: Place, monkeypatch: pytest.MonkeyPatch, no_proxy: httpx.Client
) -> None:
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists() or not Path("/proc/net/if_inet6").read_text():
        pytest.skip("this machine has no IPv6")
    place.overrides["redirect_uri"] = place.settings.redirect_uri.replace("127.0.0.1", host)
    attempt = Login(place.settings)
    waiting = Waiting(attempt, monkeypatch)
    assert no_proxy.get(consented(attempt)).status_code == 200
    assert isinstance(waiting.done(), str)


def test_a_name_that_is_not_this_machines_is_not_listened_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, 1, 6, "", ("192.0.2.1", 8765))])
    with pytest.raises(ConfigError, match="it is not this machine"):
        Login(place.settings).wait_for_browser(lambda: pytest.fail("the browser was opened"))


def test_nobody_is_waited_for_for_ever(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    error = Waiting(Login(place.settings), monkeypatch, patience=0.1).done()
    assert isinstance(error, AccountError)
    for word in ("login again", place.settings.redirect_uri, "CONTIO_REDIRECT_URI", "--no-browser"):
        assert word in str(error)


def test_an_https_address_is_for_pasting_only(place: Place) -> None:
    place.overrides["redirect_uri"] = "https://example.com/back"
    attempt = Login(place.settings)
    with pytest.raises(ConfigError, match="--no-browser"):
        attempt.wait_for_browser(lambda: None)
    assert attempt.finish(attempt.read_pasted(consented(attempt))).who


# By hand --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False])
def test_without_a_browser_the_address_or_the_code_is_pasted(whole: bool, place: Place) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "contio_pipeline", "login", "--no-browser", "--account", "sales"],
        env=place.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    address = next(line.strip() for line in process.stdout if line.startswith("http"))
    redirect = httpx.get(f"{address}&account=bo", trust_env=False).headers["location"]
    code = dict(parse_qsl(urlsplit(redirect).query))["code"]
    said, errors = process.communicate(f"{redirect if whole else code}\n", timeout=60)
    assert process.returncode == 0, errors
    assert code not in said + errors
    assert store_of(place).read("sales").profile_id == place.world.accounts["bo"].user_id


@pytest.mark.parametrize(
    ("pasted", "said"),
    [
        ("", "neither an address with a code"),
        ("two words", "neither an address with a code"),
        (f"{CALLBACK}?code=cto_ac_v1_x&state=another", "another login"),
        (f"{CALLBACK}?code=cto_ac_v1_x", "another login"),
        ("code=cto_ac_v1_x&state=another", "another login"),
        (f"{CALLBACK}?state=STATE", "no code"),
        (f"{CALLBACK}?error=access_denied&state=STATE", "consent was not given"),
        (f"{CALLBACK}?error=invalid_scope&state=STATE", "have Contio allow it"),
        (f"{CALLBACK}?error=server_error&error_description=a%0Ab%1B[1m&state=STATE", "(server_error a b [1m)"),
    ],
)
def test_what_is_pasted_wrongly_is_told_without_repeating_it(pasted: str, said: str, place: Place) -> None:
    attempt = Login(place.settings)
    with pytest.raises(AccountError) as failed:
        attempt.read_pasted(pasted.replace("STATE", attempt._state))
    assert said in str(failed.value)
    assert "cto_ac" not in str(failed.value)


# The exchange ---------------------------------------------------------------------------------------------------------


def test_a_code_that_is_old_used_or_another_logins_is_not_accepted(place: Place) -> None:
    first, second = Login(place.settings), Login(place.settings)
    code = first.read_pasted(consented(first))
    with pytest.raises(AccountError, match="five minutes, works once"):
        second.finish(code)  # its verifier is another one
    with pytest.raises(AccountError, match="login again"):
        first.finish(code)
    place.sandbox.code_ttl = 0
    with pytest.raises(AccountError, match="five minutes") as failed:
        logged_in(place)
    assert "cto_" not in str(failed.value)
    assert store_of(place).names() == []


def test_wrong_credentials_name_their_variables(place: Place) -> None:
    place.overrides["client_secret"] = "wrong"
    with pytest.raises(CredentialsRefused, match="CONTIO_CLIENT_SECRET"):
        logged_in(place)
    place.overrides["client_secret"] = None
    with pytest.raises(ConfigError, match="CONTIO_CLIENT_SECRET must be set"):
        Login(place.settings)


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (Fault("token", status=503, body="", times=9), ApiError, "login again"),
        (Fault("token", status=200, body="<html>"), ApiError, "used up"),
        (Fault("token", status=200, body='{"access_token": "x", "expires_in": 60}'), ApiError, "no refresh token"),
        (Fault("token", cut=3), ApiError, "login again"),
        (Fault("profile", status=500, body="", times=9), ApiError, "not kept"),
        (Fault("profile", status=200, body="{}", times=9), ApiError, "no id"),
        (Fault("profile", status=302, body="", headers={"location": "/elsewhere"}), ApiError, "never followed"),
    ],
)
def test_a_server_that_fails_leaves_nothing_half_done(
    fault: Fault, kind: type[ContioError], said: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    place.sandbox.faults = [fault]
    with pytest.raises(kind, match=said):
        logged_in(place, "sales")
    assert store_of(place).names() == []
    assert len(place.asked("/oauth2/token")) == 1  # a code is never sent again
    assert place.asked("elsewhere") == []


def test_a_server_that_repeats_what_it_was_sent_puts_no_secret_into_a_message(place: Place) -> None:
    attempt = Login(place.settings)
    code = attempt.read_pasted(consented(attempt))
    echo = f"{code} {attempt._verifier} {place.world.client_secret}"
    body = json.dumps({"error": "invalid_request", "error_description": echo})
    place.sandbox.faults = [Fault("token", status=400, body=body)]
    with pytest.raises(ApiError) as failed:
        attempt.finish(code)
    assert "(secret)" in str(failed.value)
    assert not {code, attempt._verifier, place.world.client_secret} & set(str(failed.value).split())


def test_a_profile_that_fails_once_is_asked_for_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    place.sandbox.faults = [Fault("profile", status=503, body="")]
    assert logged_in(place, "sales").who


# Whose account --------------------------------------------------------------------------------------------------------


def test_another_users_login_leaves_the_account_as_it_is(place: Place) -> None:
    assert not logged_in(place, "sales").renewed
    before = store_of(place).read("sales")
    with pytest.raises(AccountError, match="another Contio user"):
        logged_in(place, "sales", account="bo")
    assert store_of(place).read("sales") == before
    assert place.sync(streams=["meetings"]).complete


def test_the_same_users_login_renews_the_account(place: Place) -> None:
    logged_in(place, "sales")
    before = store_of(place).read("sales")
    place.sandbox.revoke("ana")
    done = logged_in(place, "sales")
    assert done.renewed
    assert done.warnings == ()
    assert store_of(place).read("sales").refresh_token != before.refresh_token
    assert place.sync(streams=["meetings"]).complete


def test_a_login_without_a_name_renews_the_account_that_the_user_has(place: Place) -> None:
    logged_in(place, "sales")
    done = logged_in(place)
    assert (done.account, done.renewed, done.warnings) == ("sales", True, ())
    assert store_of(place).names() == ["sales"]


def test_the_same_user_under_a_second_name_is_warned_of(place: Place) -> None:
    logged_in(place, "sales")
    done = logged_in(place, "sales-2")
    [warning] = done.warnings
    assert "sales is the same Contio user" in warning
    assert "accounts remove sales-2" in warning


def test_a_consent_that_lacks_a_scope_is_told_with_what_is_lost(place: Place) -> None:
    place.world.accounts["ana"].scopes = ("profile", "meetings:read", "action-items:read", "context:read")
    [warning] = logged_in(place, "sales").warnings
    for word in ("lacks calendar:read", "calendar_events", "login --account sales"):
        assert word in warning


def test_a_user_whose_profile_may_not_be_read_gets_a_new_name_only(place: Place) -> None:
    place.world.accounts["ana"].scopes = SCOPES[1:]
    with pytest.raises(AccountError, match="--account NAME"):
        logged_in(place)
    done = logged_in(place, "sales")
    assert done.who == ""
    before = store_of(place).read("sales")
    with pytest.raises(AccountError, match="allow the profile"):
        logged_in(place, "sales")
    assert store_of(place).read("sales") == before


@pytest.mark.parametrize("email", [None, "", "o'neil@example.com"])
def test_a_user_without_a_usable_address_needs_a_name(email: str | None, place: Place) -> None:
    place.world.accounts["ana"].profile["email"] = email
    with pytest.raises(AccountError, match="--account NAME"):
        logged_in(place)
    assert store_of(place).names() == []
    assert logged_in(place, "oneil").account == "oneil"


@pytest.mark.parametrize("name", ["../x", "", "cto_rt_v1_secret"])
def test_a_name_that_cannot_be_is_refused_before_anything_is_asked(name: str, place: Place) -> None:
    with pytest.raises(ConfigError) as failed:
        Login(place.settings, name)
    assert "secret" not in str(failed.value)
