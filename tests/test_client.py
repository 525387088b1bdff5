"""HTTP over loopback: retries and when they end, pages, downloads, and what never goes where it should not."""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import socket
import socketserver
import ssl
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from tenacity import RetryCallState, Retrying, wait_none

from contio_pipeline import client as client_module
from contio_pipeline.auth import Tokens, TokenStore
from contio_pipeline.client import IN_FLIGHT, Client
from contio_pipeline.errors import (
    AccountError,
    ApiError,
    BrokenAnswer,
    Cancelled,
    ConfigError,
    Forbidden,
    NotFound,
    ScopeMissing,
    Throttled,
    Transient,
    Unauthorized,
)
from contio_pipeline.pacing import Budget
from contio_pipeline.protocol import MAX_JSON_BYTES
from contio_pipeline.sandbox.server import Fault, Request, Sandbox
from contio_pipeline.sandbox.world import World
from contio_pipeline.settings import load_settings

AT_ONCE = {"retry-after": "0"}
LATER = 86_400.0
PREFIX = "/v1/partner/user/"


@pytest.fixture(scope="module")
def server() -> Iterator[Sandbox]:
    with Sandbox(World(meetings=40), rate_limit=1_000_000, oauth_limit=1_000_000) as running:
        yield running


@pytest.fixture
def sandbox(server: Sandbox) -> Iterator[Sandbox]:
    """The module's server; what a test changed is put back."""
    server.reset_log()
    yield server
    server.faults, server.before, server.max_limit = [], None, 100
    server.rate_limit, server.rate_window = 1_000_000, 300.0
    server.reset_limits()


NewClient = Callable[..., Client]


@pytest.fixture
def new_client(sandbox: Sandbox, tmp_path: Path) -> Iterator[NewClient]:
    """Make a client for ana and bo, who have good access tokens; keyword arguments are settings."""
    with ExitStack() as stack:

        def make(on_wait: Callable[[float], None] = lambda _: None, **overrides: Any) -> Client:
            values = {
                "api_url": sandbox.api_url,
                "token_url": sandbox.token_url,
                "client_id": sandbox.world.client_id,
                "client_secret": sandbox.world.client_secret,
                "state_dir": tmp_path / "state",
                "rate_limit": 1_000_000,
                "timeout_seconds": 10,
                "retry_seconds": 30,
            }
            if "ca_bundle" not in overrides:
                (tmp_path / "ca.pem").write_text(CERTIFICATE)
                values["ca_bundle"] = tmp_path / "ca.pem"  # read in no time, unlike the system's authorities
            store = TokenStore(tmp_path / "state")
            for name in ("ana", "bo"):
                if name not in store.names():
                    store.write(name, Tokens(sandbox.login(name), sandbox.access_token(name), time.time() + LATER))
            return stack.enter_context(Client(load_settings(**(values | overrides)), on_wait))

        yield make


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries that the server gave no time for follow at once."""
    monkeypatch.setattr(client_module, "_BACK_OFF", wait_none())


def statuses(sandbox: Sandbox) -> list[int]:
    return [request.status for request in sandbox.requests]


# A server that answers what the sandbox cannot ------------------------------------------------------------------------

Send = Callable[[bytes], object]


@dataclass
class Raw:
    """A server whose answers a test writes byte by byte; `heads` are the heads of what it received."""

    url: str
    heads: list[str] = field(default_factory=list)


@contextmanager
def raw(answer: Callable[[Send, str], None], tls: ssl.SSLContext | None = None) -> Iterator[Raw]:
    """Run such a server; `answer` gets a function that sends, and the head of the request."""

    class Handler(socketserver.StreamRequestHandler):
        def setup(self) -> None:
            if tls:
                self.request = tls.wrap_socket(self.request, server_side=True)
            super().setup()

        def handle(self) -> None:
            head = b"".join(iter(self.rfile.readline, b"\r\n"))
            running.heads.append(head.decode())
            answer(self.request.sendall, head.decode())

        def finish(self) -> None:
            super().finish()
            self.request.close()  # the TLS one, too

    class Server(socketserver.ThreadingTCPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """Ignore callers that hang up or do not trust us: that is what is tested."""

    with Server(("127.0.0.1", 0), Handler) as listening:
        running = Raw(f"http{'s' if tls else ''}://127.0.0.1:{listening.server_address[1]}")
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            listening.shutdown()
            thread.join()


def whole(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


# Reading --------------------------------------------------------------------------------------------------------------


def test_one_object_is_read_as_the_api_holds_it(sandbox: Sandbox, new_client: NewClient) -> None:
    client = new_client()
    for name in ("ana", "bo", "ana"):
        assert client.read(name, "profile") == sandbox.world.accounts[name].profile
    assert [request.path for request in sandbox.requests] == [f"{PREFIX}profile"] * 3
    assert [request.account for request in sandbox.requests] == ["ana", "bo", "ana"]


def test_what_a_request_carries_and_what_it_never_does(new_client: NewClient) -> None:
    with raw(lambda send, _: send(whole(b'{"id": "a"}'))) as server:
        assert new_client(api_url=server.url).read("ana", "meetings/a") == {"id": "a"}
    request, *lines = server.heads[0].lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines if line)
    assert request == f"get {PREFIX}meetings/a http/1.1"
    assert headers["accept"] == "application/json"
    assert headers["user-agent"].startswith("contio-pipeline/")
    assert headers["authorization"].startswith("bearer cto_at_v1_")
    assert not headers.keys() & {"x-client-timezone", "cookie", "referer"}


def test_an_api_below_a_path_is_asked_there(new_client: NewClient) -> None:
    with raw(lambda send, _: send(whole(b"{}"))) as server:
        client = new_client(api_url=f"{server.url}/gateway/contio")
        client.read("ana", "profile")
        assert client.traffic.requests == 1
    assert server.heads[0].startswith(f"GET /gateway/contio{PREFIX}profile HTTP/1.1")


def test_nothing_is_sent_without_credentials_or_for_an_unknown_account(sandbox: Sandbox, new_client: NewClient) -> None:
    with pytest.raises(ConfigError, match="CONTIO_CLIENT_SECRET must be set"):
        new_client(client_secret=None).read("ana", "profile")
    with pytest.raises(ConfigError, match="no account 'nobody'"):
        new_client().read("nobody", "profile")
    assert sandbox.requests == []


def test_a_proxy_is_never_asked_for_this_machine(
    sandbox: Sandbox, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with raw(lambda send, _: send(whole(b"{}", status="502 Bad Gateway"))) as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
            monkeypatch.setenv(name.lower(), proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        client = new_client()
        sandbox.expire_access_tokens()  # so that the token endpoint is asked, too
        assert client.read("ana", "profile")["email"] == "ana@example.com"
    assert proxy.heads == []


def test_the_profile_is_bound_to_the_account(sandbox: Sandbox, new_client: NewClient, tmp_path: Path) -> None:
    client, store = new_client(), TokenStore(tmp_path / "state")
    profile = sandbox.world.accounts["ana"].profile
    assert client.profile("ana", "profile") == profile
    assert store.read("ana").profile_id == profile["id"]
    store.write("ana", Tokens(sandbox.login("bo"), profile_id=profile["id"]))
    with pytest.raises(AccountError, match="another Contio user"):
        new_client().profile("ana", "profile")


# Retries --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again_and_every_try_takes_a_slot(
    status: int, sandbox: Sandbox, new_client: NewClient
) -> None:
    sandbox.faults = [Fault(status=status, headers=AT_ONCE, body="busy", times=2)]
    client = new_client()
    assert client.read("ana", "profile")["email"] == "ana@example.com"
    assert statuses(sandbox) == [status, status, 200]
    assert client._budget.used() == 3
    assert client.traffic.requests == 3
    assert client.traffic.throttled == (2 if status == 429 else 0)


@pytest.mark.usefixtures("no_pause")
def test_a_connection_that_breaks_is_tried_again(sandbox: Sandbox, new_client: NewClient) -> None:
    sandbox.faults = [Fault(cut=5, times=2)]
    client = new_client()
    assert client.read("ana", "profile")["email"] == "ana@example.com"
    assert len(sandbox.requests) == client.traffic.requests == client._budget.used() == 3


def test_a_server_that_is_not_there_is_named(new_client: NewClient) -> None:
    with raw(lambda *_: None) as server:
        pass
    client = new_client(api_url=server.url, retry_seconds=0)
    with pytest.raises(Transient, match=r"GET profile: no answer from 127\.0\.0\.1 \(ConnectError"):
        client.read("ana", "profile")


@pytest.mark.usefixtures("no_pause")
def test_an_answer_that_cannot_be_decoded_is_tried_again(new_client: NewClient) -> None:
    def answer(send: Send, _: str) -> None:
        send(whole(b"no gzip", "Content-Encoding: gzip") if len(server.heads) == 1 else whole(b'{"id": "a"}'))

    with raw(answer) as server:
        assert new_client(api_url=server.url).read("ana", "profile") == {"id": "a"}
    assert len(server.heads) == 2


FINAL = '{"code": "some_code", "error": "Some text", "request_id": "r-1"}'


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, FINAL, ApiError),
        (402, FINAL, ApiError),
        (403, FINAL, Forbidden),
        (403, '{"code": "insufficient_scope", "error": "x"}', ScopeMissing),
        (403, "<html>", ApiError),
        (404, FINAL, NotFound),
        (404, "<html>", ApiError),
        (409, FINAL, ApiError),
        (410, "", ApiError),
    ],
)
def test_what_no_try_will_mend_is_asked_once(
    status: int, body: str, kind: type[ApiError], sandbox: Sandbox, new_client: NewClient
) -> None:
    sandbox.faults = [Fault(status=status, headers=AT_ONCE, body=body, times=10)]
    client = new_client()
    with pytest.raises(ApiError) as error:
        client.read("ana", "meetings/a")
    assert type(error.value) is kind
    assert str(error.value).startswith(f"GET meetings/a: {status}")
    assert statuses(sandbox) == [status]
    assert client._budget.used() == 1


def test_a_second_401_is_final(sandbox: Sandbox, new_client: NewClient) -> None:
    sandbox.faults = [Fault("/profile", status=401, body=FINAL, times=10)]
    client = new_client()
    with pytest.raises(Unauthorized):
        client.read("ana", "profile")
    assert statuses(sandbox) == [401, 200, 401]


def test_the_try_after_a_refresh_takes_a_slot_and_the_refresh_one_of_its_own_budget(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    client = new_client()
    sandbox.expire_access_tokens()
    client.read("ana", "profile")
    assert statuses(sandbox) == [401, 200, 200]
    assert (client._budget.used(), client._oauth_budget.used(), client.traffic.requests) == (2, 1, 2)


def test_a_token_endpoint_that_is_busy_is_tried_again(sandbox: Sandbox, new_client: NewClient) -> None:
    client = new_client()
    sandbox.expire_access_tokens()
    sandbox.faults = [Fault("/oauth2/token", status=503, headers=AT_ONCE)]
    assert client.read("ana", "profile")["email"] == "ana@example.com"
    assert [request.status for request in sandbox.requests if request.path == "/oauth2/token"] == [503, 200]


def test_a_dead_account_is_not_tried_again_and_leaves_the_others_alone(sandbox: Sandbox, new_client: NewClient) -> None:
    client = new_client()
    sandbox.revoke("ana")
    with pytest.raises(AccountError, match="accounts add ana"):
        client.read("ana", "profile")
    assert statuses(sandbox) == [401, 400]
    assert client.read("bo", "profile")["email"] == "bo@example.com"


def test_it_gives_up_within_the_time_it_was_given(sandbox: Sandbox, new_client: NewClient) -> None:
    sandbox.faults = [Fault(status=503, headers={"retry-after": "0.1"}, times=1000)]
    with pytest.raises(Transient, match="503"):
        new_client(retry_seconds=0.8).read("ana", "profile")
    assert 2 <= len(sandbox.requests) <= 9


def test_without_any_time_there_is_one_try(sandbox: Sandbox, new_client: NewClient) -> None:
    sandbox.faults = [Fault(status=503, headers=AT_ONCE, times=1000)]
    with pytest.raises(Transient, match="503"):
        new_client(retry_seconds=0).read("ana", "profile")
    assert statuses(sandbox) == [503]


def test_a_pause_longer_than_the_time_that_is_left_is_not_begun(sandbox: Sandbox, new_client: NewClient) -> None:
    sandbox.faults = [Fault(status=503, headers={"retry-after": "86400"}, times=1000)]
    with pytest.raises(Transient):
        new_client().read("ana", "profile")
    assert statuses(sandbox) == [503]


def test_a_429_for_a_day_gives_up_at_once_and_holds_everybody_back(
    sandbox: Sandbox, new_client: NewClient, tmp_path: Path
) -> None:
    sandbox.faults = [Fault(status=429, headers={"retry-after": "86400"})]
    client = new_client()
    with pytest.raises(Throttled) as error:
        client.read("ana", "profile")
    assert error.value.retry_after == 86_400
    assert statuses(sandbox) == [429]
    assert (client.traffic.throttled, client.traffic.requests) == (1, 1)

    def stop(_seconds: float) -> None:
        raise Cancelled("held")

    [file] = [path for path in (tmp_path / "state").glob("budget-*.sqlite") if "oauth" not in path.name]
    with closing(Budget(file, limit=1_000_000, window=300, timeout=10, sleep=stop)) as other:
        with pytest.raises(Cancelled), other.slot():
            pass
        assert other.used() == 1


def test_waiting_for_the_budget_does_not_count_as_trying(sandbox: Sandbox, new_client: NewClient) -> None:
    waits: list[float] = []
    client = new_client(waits.append, rate_limit=2, rate_window_seconds=0.8, retry_seconds=0.6)
    for _ in range(2):
        client.read("ana", "profile")
    sandbox.faults = [Fault(status=503, headers=AT_ONCE)]
    assert client.read("ana", "profile")["email"] == "ana@example.com"
    assert waits
    assert statuses(sandbox) == [200, 200, 503, 200]


def test_a_limit_that_is_kept_is_never_answered_by_429(sandbox: Sandbox, new_client: NewClient) -> None:
    sandbox.rate_limit, sandbox.rate_window = 12, 0.4
    sandbox.reset_limits()
    waits: list[float] = []
    client = new_client(waits.append, rate_limit=12, rate_window_seconds=0.4)
    assert len(list(client.in_parallel(lambda name: client.read(name, "profile"), ["ana", "bo"] * 15))) == 30
    assert statuses(sandbox) == [200] * 30
    assert waits
    assert all(wait > 0 for wait in waits)


def test_a_token_refresh_that_waits_for_the_budget_does_not_spoil_the_answer(
    sandbox: Sandbox, new_client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    client = new_client(rate_limit=1, rate_window_seconds=0.1, timeout_seconds=0.9)
    sandbox.expire_access_tokens()  # the repeated request waits until the first one's slot is free
    assert client.read("ana", "profile")["email"] == "ana@example.com"
    assert "no whole answer" not in caplog.text


@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize(
    "body", ["<html>maintenance</html>", "", "[]", '{"items": {}}', '{"items": [], "total": null}']
)
def test_a_success_that_is_broken_is_tried_three_times_and_is_never_an_empty_list(
    body: str, sandbox: Sandbox, new_client: NewClient
) -> None:
    sandbox.faults = [Fault(status=200, body=body, times=10)]
    with pytest.raises(BrokenAnswer):
        list(new_client().pages("ana", "meetings", {}))
    assert statuses(sandbox) == [200] * 3


def test_pauses_grow_up_to_a_minute_and_are_spread() -> None:
    def pause(attempt: int) -> float:
        state = RetryCallState(Retrying(), None, (), {})
        state.attempt_number = attempt
        return client_module._BACK_OFF(state)

    for attempt in range(1, 20):
        least = min(0.5 * 2 ** (attempt - 1), 60)
        pauses = {pause(attempt) for _ in range(20)}
        assert all(least <= one <= least + 0.5 for one in pauses)
        assert len(pauses) > 1


def test_after_one_request_was_given_up_the_next_ones_get_one_try_until_one_succeeds(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    client = new_client(retry_seconds=20)
    sandbox.faults = [Fault(status=503, headers={"retry-after": "60"}), Fault(status=503, headers=AT_ONCE, times=3)]
    for tries in range(1, 5):
        with pytest.raises(Transient):
            client.read("ana" if tries % 2 else "bo", "profile")
        assert len(sandbox.requests) == tries
    client.read("bo", "profile")
    sandbox.reset_log()
    sandbox.faults = [Fault(status=503, headers=AT_ONCE, times=3)]
    client.read("ana", "profile")
    assert statuses(sandbox) == [503, 503, 503, 200]


def test_each_new_try_is_logged_with_what_is_at_work_and_without_secrets(
    sandbox: Sandbox, new_client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    client = new_client()
    client.context = "ana meetings"
    sandbox.expire_access_tokens()
    sandbox.faults = [Fault("/profile", status=503, headers=AT_ONCE, body=FINAL)]
    client.read("ana", "profile")
    assert (
        "ana meetings: GET profile: 503 some_code \u2039Some text\u203a (request_id r-1); trying again in 0 s"
        in caplog.text
    )
    assert "cto_at_" not in caplog.text
    assert "cto_rt_" not in caplog.text
    assert sandbox.world.client_secret not in caplog.text


def test_closing_ends_what_is_waiting(sandbox: Sandbox, new_client: NewClient) -> None:
    sandbox.faults = [Fault(status=503, headers={"retry-after": "500"}, times=10)]
    paused = threading.Event()

    class Watched(logging.Handler):
        def emit(self, _record: logging.LogRecord) -> None:
            paused.set()

    client, watched = new_client(retry_seconds=600), Watched()
    client_module.log.addHandler(watched)
    try:
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(client.read, "ana", "profile")
            assert paused.wait(30)
            client.__exit__(None, None, None)
            with pytest.raises(Cancelled):
                waiting.result()
    finally:
        client_module.log.removeHandler(watched)
    with pytest.raises(Cancelled):
        client.read("ana", "profile")
    assert statuses(sandbox) == [503]


def test_closing_hangs_up_while_another_thread_connects(new_client: NewClient) -> None:
    client = new_client()
    a_few = [socket.socketpair() for _ in range(3)]

    class Growing(weakref.WeakSet[socket.socket]):
        def __iter__(self) -> Iterator[socket.socket]:
            found = super().__iter__()
            yield next(found)
            connecting = threading.Thread(target=connect, args=(a_few[2][0],))
            connecting.start()
            connecting.join(0.3)
            yield from found

    def connect(connection: socket.socket) -> None:
        told = Mock(get_extra_info=lambda _name: connection)
        client._connected("connection.connect_tcp.complete", {"return_value": told})

    client._sockets = Growing()
    connect(a_few[0][0])
    connect(a_few[1][0])
    client.__exit__(None, None, None)
    for here, there in a_few:
        there.settimeout(10)
        assert there.recv(1) == b""
        here.close()
        there.close()


# Slow, large and foreign answers --------------------------------------------------------------------------------------


def drip(send: Send, _head: str) -> None:
    with suppress(OSError):
        send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(100):
            send(b" ")
            time.sleep(0.02)


def test_an_answer_that_drips_is_not_waited_for(new_client: NewClient) -> None:
    with raw(drip) as server:
        client = new_client(api_url=server.url, timeout_seconds=0.5, retry_seconds=0)
        with pytest.raises(Transient, match=r"no whole answer within 0\.5 s \(CONTIO_TIMEOUT_SECONDS\)"):
            client.read("ana", "profile")


def test_a_token_endpoint_that_drips_is_not_waited_for(sandbox: Sandbox, new_client: NewClient) -> None:
    with raw(drip) as server:
        client = new_client(token_url=server.url, timeout_seconds=0.5, retry_seconds=0)
        sandbox.expire_access_tokens()
        with pytest.raises(Transient, match=r"no whole answer within 0\.5 s"):
            client.read("ana", "profile")
    assert statuses(sandbox) == [401]


@pytest.mark.parametrize("act", ["read", "download"])
def test_a_refusal_that_drips_is_not_waited_for(act: str, new_client: NewClient) -> None:
    with raw(lambda send, head: drip(lambda data: send(data.replace(b"200 OK", b"401 No")), head)) as server:
        client = new_client(api_url=server.url, timeout_seconds=0.5, retry_seconds=0)
        with pytest.raises(Transient, match=r"no whole answer within 0\.5 s"):
            client.read("ana", "profile") if act == "read" else client.download("ana", CONTENT, Sinks())


@pytest.mark.parametrize("which", ["api_url", "token_url"])
def test_a_server_that_says_nothing_is_not_waited_for(which: str, sandbox: Sandbox, new_client: NewClient) -> None:
    silent = threading.Event()
    with raw(lambda *_: silent.wait(10) and None) as server:
        client = new_client(timeout_seconds=0.2, retry_seconds=0, **{which: server.url})
        sandbox.expire_access_tokens()
        with pytest.raises(Transient, match=r"no answer from .*ReadTimeout"):
            client.read("ana", "profile")
        silent.set()


def test_more_json_than_any_page_can_hold_is_refused_even_when_it_was_small_on_the_way(new_client: NewClient) -> None:
    body = gzip.compress(b" " * MAX_JSON_BYTES + b"{}")
    with raw(lambda send, _: send(whole(body, "Content-Encoding: gzip"))) as server:
        client = new_client(api_url=server.url, retry_seconds=0)
        with pytest.raises(BrokenAnswer, match="more than 8 MB of JSON"):
            client.read("ana", "profile")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_error_and_the_other_host_receives_nothing(
    status: int, sandbox: Sandbox, new_client: NewClient
) -> None:
    with raw(lambda send, _: send(whole(b"{}"))) as elsewhere:
        sandbox.faults = [Fault(status=status, headers={"location": f"{elsewhere.url}{PREFIX}profile"}, times=10)]
        client = new_client()
        acts: list[Callable[[], object]] = [
            lambda: client.read("ana", "profile"),
            lambda: client.download("ana", "meetings/a/context/b/content", io.BytesIO),
        ]
        for act in acts:
            with pytest.raises(ApiError, match="redirects are never followed"):
                act()
        assert statuses(sandbox) == [status] * 2
    assert elsewhere.heads == []


def test_a_cookie_set_for_one_account_is_never_sent_for_another(new_client: NewClient) -> None:
    with raw(lambda send, _: send(whole(b"{}", "Set-Cookie: session=ana; Path=/"))) as server:
        client = new_client(api_url=server.url)
        for name in ("ana", "bo", "ana"):
            client.read(name, "profile")
    assert len(server.heads) == 3
    assert not [head for head in server.heads if "cookie" in head.lower()]


def test_a_certificate_that_is_not_trusted_is_final_and_says_what_to_set(new_client: NewClient, tmp_path: Path) -> None:
    (tmp_path / "server.pem").write_text(CERTIFICATE)
    (tmp_path / "key.pem").write_text(KEY)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "server.pem", tmp_path / "key.pem")
    with raw(lambda send, _: send(whole(b'{"id": "a"}')), tls) as server:
        client = new_client(api_url=server.url, ca_bundle=None)
        with pytest.raises(ApiError, match=r"certificate is not trusted .*: set CONTIO_CA_BUNDLE") as error:
            client.read("ana", "profile")
        assert not isinstance(error.value, Transient)
        assert client.traffic.requests == 1
        assert server.heads == []
        assert new_client(api_url=server.url, ca_bundle="server.pem").read("ana", "profile") == {"id": "a"}


# Pages ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", [True, False])
def test_pages_come_in_order_and_add_up_to_the_truth(
    parallel: bool,
    sandbox: Sandbox,
    new_client: NewClient,
) -> None:
    truth = sandbox.world.truth("ana")["action_items"]
    sandbox.max_limit = 4
    sandbox.faults = [Fault("/action-items"), Fault("/action-items", delay=0.3)]  # the second page arrives late
    pages = list(new_client().pages("ana", "action-items", {}, parallel=parallel))
    assert len(pages) > 5
    assert [page.offset for page, _ in pages] == [3 * number for number in range(len(pages))]
    assert [*pages[0][0].items, *(row for page, _ in pages[1:] for row in page.items[1:])] == truth
    plan = pages[-1][1]
    assert (plan.problem, plan.total) == (None, len(truth))
    assert len(sandbox.requests) == len(pages)


@pytest.mark.parametrize(
    ("parallel", "limit", "most"),
    [
        (True, 20_000, range(2, IN_FLIGHT + 1)),  # more would only wait for the budget
        (True, 1_000_000, range(IN_FLIGHT + 1, 17)),
        (False, 1_000_000, range(1, 2)),
    ],
)
def test_as_many_pages_are_under_way_at_once_as_the_latency_wants_and_the_budget_feeds(
    parallel: bool,
    limit: int,
    most: range,
    sandbox: Sandbox,
    new_client: NewClient,
) -> None:
    under_way: list[int] = []
    sandbox.max_limit = 3
    sandbox.faults = [Fault("/action-items", delay=0.02, times=1000)]
    sandbox.before = lambda _: under_way.append(statuses(sandbox).count(0))
    client = new_client(rate_limit=limit)
    assert len(list(client.pages("ana", "action-items", {}, parallel=parallel))) > 5 * IN_FLIGHT
    assert max(under_way) in most


@pytest.mark.parametrize(("latency", "most"), [(0.005, IN_FLIGHT), (0.02, 10), (1.0, 16)])
def test_no_more_are_under_way_than_one_process_takes_in(latency: float, most: int, new_client: NewClient) -> None:
    """However much the budget feeds: threads that wait for each other look like a slow server."""
    client = new_client(rate_limit=1_000_000)
    for _ in range(40):  # each had to be waited for
        late: Future[int] = Future()
        threading.Timer(0.001, late.set_result, [1]).start()
        client._latency = latency
        client._first(deque([late]))
    assert int(client._width) == most


def test_answers_that_are_there_in_time_let_fewer_be_under_way(sandbox: Sandbox, new_client: NewClient) -> None:
    sandbox.max_limit = 3
    under_way: list[int] = []
    sandbox.before = lambda _: under_way.append(statuses(sandbox).count(0))
    for _page in new_client().pages("ana", "action-items", {}):
        time.sleep(0.2)  # the caller is what is waited for, on a busy machine too
    assert len(under_way) > 5 * IN_FLIGHT
    assert max(under_way[-IN_FLIGHT:]) <= IN_FLIGHT // 2


def test_a_page_is_asked_for_with_the_filters_the_size_and_where_it_begins(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    sandbox.max_limit = 20
    filters = {"start_date": "2025-01-01T00:00:00Z", "end_date": "2028-01-01T00:00:00Z"}
    pages = list(new_client().pages("ana", "meetings", filters, parallel=False))
    assert [request.query for request in sandbox.requests] == [
        {**filters, "limit": "100", "offset": str(19 * number)} for number in range(len(pages))
    ]
    assert len(pages) > 1


def test_a_list_that_changes_while_it_is_read_shows_as_a_problem(sandbox: Sandbox, new_client: NewClient) -> None:
    sandbox.max_limit = 4
    rows = sandbox.world.truth("ana")["meetings"]

    def shift(request: Request) -> None:
        if request.query.get("offset") == "6":
            with sandbox.world.lock:
                sandbox.world.delete("meetings", ids=[rows[0]["id"]])
                sandbox.world.insert("meetings", start_time="2000-01-01T00:00:00Z", account="ana")

    sandbox.before = shift
    plans = [plan for _, plan in new_client().pages("ana", "meetings", {}, parallel=False)]
    assert plans[-1].total == len(rows) == len(sandbox.world.truth("ana")["meetings"])
    assert plans[-1].problem == "rows moved between two pages while they were read"


def test_a_page_that_fails_ends_the_list(sandbox: Sandbox, new_client: NewClient) -> None:
    sandbox.max_limit = 4
    sandbox.faults = [Fault("/action-items"), Fault("/action-items"), Fault("/action-items", status=400, body=FINAL)]
    pages = new_client().pages("ana", "action-items", {}, parallel=False)
    assert [page.offset for page, _ in (next(pages), next(pages))] == [0, 3]
    with pytest.raises(ApiError, match="400"):
        next(pages)


def test_no_page_is_asked_for_after_the_reader_has_had_enough(sandbox: Sandbox, new_client: NewClient) -> None:
    sandbox.max_limit = 2
    with new_client() as client:
        for _ in client.pages("ana", "action-items", {}):
            break
    assert len(sandbox.requests) == 1


def test_work_in_parallel_keeps_its_order_and_takes_only_a_few_items_ahead(new_client: NewClient) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = new_client().in_parallel(lambda number: number * 2, items())
    assert next(results) == 0
    assert len(taken) <= 2 * IN_FLIGHT
    assert list(results) == [2 * number for number in range(1, 100)]


def test_work_that_fails_raises_in_its_place(new_client: NewClient) -> None:
    def work(number: int) -> int:
        if number == 3:
            raise NotFound("gone")
        return number

    results = new_client().in_parallel(work, range(1000))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(NotFound):
        next(results)


def test_what_still_waits_behind_work_that_failed_is_not_begun(new_client: NewClient) -> None:
    begun: list[int] = []
    go_on = threading.Event()

    def work(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise NotFound("gone")
        go_on.wait(30)

    client = new_client()
    with pytest.raises(NotFound):
        next(client.in_parallel(work, range(1000)))
    go_on.set()
    assert list(client.in_parallel(str, [1])) == ["1"]  # comes after all that was waiting
    assert sorted(begun)[:1] == [0]
    assert len(begun) <= IN_FLIGHT + 1


# Downloads ------------------------------------------------------------------------------------------------------------

CONTENT = "meetings/a/context/b/content"


class Sinks:
    """All sinks that a download has made."""

    def __init__(self) -> None:
        self.made: list[io.BytesIO] = []

    def __call__(self) -> io.BytesIO:
        self.made.append(io.BytesIO())
        return self.made[-1]

    @property
    def bodies(self) -> list[bytes]:
        return [sink.getvalue() for sink in self.made]


def contents(sandbox: Sandbox) -> Iterator[tuple[str, dict[str, Any]]]:
    """Path and truth of each document of ana."""
    truth = sandbox.world.truth("ana")
    for row in truth["context_documents"]:
        yield f"meetings/{row['meeting_id']}/context/{row['id']}/content", truth["contents"][row["id"]]


def test_downloads_equal_the_truth_byte_by_byte(sandbox: Sandbox, new_client: NewClient) -> None:
    client, size = new_client(), 0
    for path, want in contents(sandbox):
        sinks = Sinks()
        got = client.download("ana", path, sinks)
        [body] = sinks.bodies
        assert (hashlib.sha256(body).hexdigest(), len(body)) == (want["sha256"], want["size"])
        assert got.content_type == want["content_type"]
        assert got.filename == ("".join(c for c in want["filename"] or "" if c.isprintable())[:255] or None)
        size += len(body)
    assert size > 0
    assert client.traffic.bytes == size
    assert {request.headers["accept"] for request in sandbox.requests} == {"*/*"}
    assert {request.headers["accept-encoding"] for request in sandbox.requests} == {"identity"}


@pytest.mark.usefixtures("no_pause")
def test_a_download_that_was_cut_begins_anew_in_a_new_sink(sandbox: Sandbox, new_client: NewClient) -> None:
    path, want = next((path, want) for path, want in contents(sandbox) if want["size"] > 20)
    sandbox.faults = [Fault("/content", status=503), Fault("/content", cut=7), Fault("/content", cut=0)]
    sinks, client = Sinks(), new_client()
    client.download("ana", path, sinks)
    assert [len(body) for body in sinks.bodies] == [7, 0, want["size"]]
    assert hashlib.sha256(sinks.bodies[-1]).hexdigest() == want["sha256"]
    assert len(sandbox.requests) == client._budget.used() == client.traffic.requests == 4


TRUNCATED = {
    "fewer bytes than announced": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
    "a last chunk that is missing": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    "half a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf",
}


@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize("truncated", TRUNCATED.values(), ids=TRUNCATED)
def test_a_truncated_body_is_never_taken_for_a_document(truncated: bytes, new_client: NewClient) -> None:
    with raw(lambda send, _: send(truncated if len(server.heads) == 1 else whole(b"a document"))) as server:
        sinks = Sinks()
        new_client(api_url=server.url).download("ana", CONTENT, sinks)
    assert sinks.bodies == [b"half", b"a document"]


def test_a_document_at_the_cap_is_taken_and_one_byte_more_is_refused(new_client: NewClient) -> None:
    size = 2**20
    with raw(lambda send, _: send(whole(b"x" * size))) as server:
        client = new_client(api_url=server.url, document_max_mb=1)
        sinks = Sinks()
        client.download("ana", CONTENT, sinks)
        assert [len(body) for body in sinks.bodies] == [size]
        size += 1
        sinks = Sinks()
        with pytest.raises(ApiError, match=r"larger than CONTIO_DOCUMENT_MAX_MB \(1\)"):
            client.download("ana", CONTENT, sinks)
    assert [len(body) <= 2**20 for body in sinks.bodies] == [True]
    assert len(server.heads) == 2


def test_a_download_that_only_drips_is_ended(new_client: NewClient) -> None:
    with raw(drip) as server:
        client = new_client(api_url=server.url, timeout_seconds=0.5, retry_seconds=0)
        with pytest.raises(Transient, match="fewer than 1024 bytes a second"):
            client.download("ana", CONTENT, Sinks())


def test_a_long_download_may_take_longer_than_the_timeout(new_client: NewClient) -> None:
    def steady(send: Send, _: str) -> None:
        send(b"HTTP/1.1 200 OK\r\nContent-Length: 800000\r\n\r\n")
        for _ in range(16):
            send(b"x" * 50_000)
            time.sleep(0.05)

    with raw(steady) as server:
        sinks = Sinks()
        new_client(api_url=server.url, timeout_seconds=0.5, retry_seconds=5).download("ana", CONTENT, sinks)
    assert sinks.bodies[-1] == b"x" * 800_000


@pytest.mark.parametrize(("status", "kind"), [(403, Forbidden), (404, NotFound), (400, ApiError)])
def test_a_download_that_is_refused_makes_no_sink(
    status: int, kind: type[ApiError], sandbox: Sandbox, new_client: NewClient
) -> None:
    sandbox.faults = [Fault("/content", status=status, body=FINAL, times=5)]
    sinks = Sinks()
    with pytest.raises(ApiError) as error:
        new_client().download("ana", CONTENT, sinks)
    assert type(error.value) is kind
    assert (statuses(sandbox), sinks.made) == ([status], [])


def test_a_download_refreshes_an_old_token_like_any_request(sandbox: Sandbox, new_client: NewClient) -> None:
    path, want = next(contents(sandbox))
    client, sinks = new_client(), Sinks()
    sandbox.expire_access_tokens()
    client.download("ana", path, sinks)
    assert [hashlib.sha256(body).hexdigest() for body in sinks.bodies] == [want["sha256"]]
    assert statuses(sandbox) == [401, 200, 200]


def test_a_disk_that_is_full_is_not_tried_again(sandbox: Sandbox, new_client: NewClient) -> None:
    def no_sink() -> io.BytesIO:
        raise OSError(28, "No space left on device")

    path, _ = next(contents(sandbox))
    with pytest.raises(OSError, match="No space left"):
        new_client().download("ana", path, no_sink)
    assert statuses(sandbox) == [200]


def test_a_file_name_of_the_server_is_handed_on_as_text(new_client: NewClient) -> None:
    header = "Content-Disposition: attachment; filename=\"../x.md\"; filename*=UTF-8''..%2Fgr%C3%B6%C3%9Fe%0A.md"
    with raw(lambda send, _: send(whole(b"x", header, "Content-Type: text/markdown"))) as server:
        got = new_client(api_url=server.url).download("ana", CONTENT, Sinks())
    assert (got.content_type, got.filename) == ("text/markdown", "../größe.md")


# Counting -------------------------------------------------------------------------------------------------------------


def test_traffic_counts_api_requests_and_the_bytes_of_their_answers(sandbox: Sandbox, new_client: NewClient) -> None:
    client = new_client()
    sandbox.max_limit = 10
    sandbox.expire_access_tokens()
    sandbox.faults = [Fault("/profile", status=503, headers=AT_ONCE, body="busy")]
    list(client.pages("ana", "meetings", {}))
    client.read("ana", "profile")
    with pytest.raises(NotFound):
        client.read("ana", "meetings/0b9c6f1e-3f1d-4c8e-9a52-1f0c5b0d7e11")
    api = [request for request in sandbox.requests if request.path.startswith(PREFIX)]
    assert len(api) < len(sandbox.requests)  # the token endpoint has a budget of its own
    assert client.traffic.requests == len(api)
    assert client.traffic.bytes == sum(request.bytes for request in api if request.status != 401)
    assert client.traffic.throttled == 0


def test_two_clients_of_one_machine_share_a_budget_and_those_of_another_server_do_not(new_client: NewClient) -> None:
    one, two = new_client(), new_client()
    one.read("ana", "profile")
    two.read("bo", "profile")
    assert one._budget.used() == two._budget.used() == 2
    with raw(lambda send, _: send(whole(b"{}"))) as server:
        other = new_client(api_url=server.url)
        other.read("ana", "profile")
        assert other._budget.used() == 1
    assert one._budget.used() == 2


# A certificate for 127.0.0.1 that nobody trusts, valid until 2120, and its key.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBjTCCATOgAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAkxMjcuMC4w
LjEwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBQxEjAQBgNVBAMM
CTEyNy4wLjAuMTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABKJfhvYnpaBrPe0x
inPi9+k1mmuG5nFIIikWPb3L0Vj7p77FjudL6HztpyoGt7yv61pkybepDzG84Snb
1w7LPhijdDByMB0GA1UdDgQWBBT5oIkb97e8wzT1wguXNbWtK+y2CTAfBgNVHSME
GDAWgBT5oIkb97e8wzT1wguXNbWtK+y2CTAPBgNVHRMBAf8EBTADAQH/MA4GA1Ud
DwEB/wQEAwIChDAPBgNVHREECDAGhwR/AAABMAoGCCqGSM49BAMCA0gAMEUCIQDT
MM94TRz2cTGTAKSW3L18nQw3KTxpcqD8wQxyX2O2CAIgGAFJG3TbsBj2pBKGpNH6
2i6cleL27UtQyoI538MyE7g=
-----END CERTIFICATE-----
"""
KEY = """\
-----BEGIN SECRET KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgNsgUxowxjYKDdaQA
T7Ox82cGSNCF2XmBcdydE0DaHnKhRANCAASiX4b2J6Wgaz3tMYpz4vfpNZprhuZx
SCIpFj29y9FY+6e+xY7nS+h87acqBre8r+taZMm3qQ8xvOEp29cOyz4Y
-----END SECRET KEY-----
""".replace("SECRET", "PRIVATE")


@pytest.mark.parametrize(
    ("head", "measured"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", False),
    ],
)
def test_it_is_known_whether_the_end_of_the_bytes_was_announced(
    head: bytes, measured: bool, new_client: NewClient
) -> None:
    with raw(lambda send, _: send(head + b"half")) as server:
        assert new_client(api_url=server.url).download("ana", CONTENT, Sinks()).measured == measured


def test_a_server_that_always_says_now_is_not_hammered(sandbox: Sandbox, new_client: NewClient) -> None:
    sandbox.faults = [Fault(status=503, headers=AT_ONCE, times=10_000)]
    with pytest.raises(Transient):
        new_client(retry_seconds=5).read("ana", "profile")
    assert len(sandbox.requests) <= 8


def test_after_many_failures_in_a_row_nothing_more_is_sent(sandbox: Sandbox, new_client: NewClient) -> None:
    sandbox.faults = [Fault(status=403, body="<html>blocked</html>", times=10_000)]
    client = new_client()
    for _ in range(100):
        with pytest.raises(ApiError):
            client.read("ana", "profile")
    assert len(sandbox.requests) == 20
    with pytest.raises(ApiError, match="not asked for, since 20 requests failed one after the other"):
        client.read("bo", "profile")


def test_what_the_api_itself_refuses_is_no_failure_of_the_server(sandbox: Sandbox, new_client: NewClient) -> None:
    client = new_client()
    for status in (404, 400):
        sandbox.faults = [Fault(status=status, body=FINAL, times=10_000)]
        for _ in range(40):
            with pytest.raises(ApiError):
                client.read("ana", "meetings/x")
    assert len(sandbox.requests) == 80


def test_a_bomb_is_unpacked_in_slices(new_client: NewClient) -> None:
    body = gzip.compress(b" " * (MAX_JSON_BYTES // 2) + b'{"id": "a"}')
    sizes: list[int] = []

    class Sink(io.BytesIO):
        def write(self, data: Any, /) -> int:
            sizes.append(len(data))
            return super().write(data)

    with raw(lambda send, _: send(whole(body, "Content-Encoding: gzip"))) as server:
        client = new_client(api_url=server.url)
        client.download("ana", CONTENT, Sink)
        assert max(sizes) < 2 * 2**20
        assert client.read("ana", "profile") == {"id": "a"}


def test_a_large_refusal_of_a_download_keeps_no_place(new_client: NewClient) -> None:
    large = b" " * (5 * 2**20) + b'{"id": "a"}'

    def answer(send: Send, head: str) -> None:
        send(whole(large, status="404 Not Found" if "content" in head else "200 OK"))

    with raw(answer) as server:
        client = new_client(api_url=server.url, retry_seconds=0)
        with pytest.raises(ApiError, match="404"):
            client.download("ana", CONTENT, Sinks())
        assert not client._large.locked()  # else the next large answer would wait for ever
        assert client.read("ana", "profile") == {"id": "a"}
