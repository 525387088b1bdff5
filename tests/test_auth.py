"""Tokens: kept safe, refreshed once by whoever comes first, and never seen in any text."""

from __future__ import annotations

import json
import logging
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

from contio_pipeline.auth import AccountAuth, Tokens, TokenStore
from contio_pipeline.errors import (
    AccountError,
    ApiError,
    BrokenAnswer,
    ConfigError,
    ContioError,
    CredentialsRefused,
    TokensThrottled,
    Transient,
)
from contio_pipeline.refresh import TokenEndpoint
from contio_pipeline.sandbox.server import Fault, Sandbox
from contio_pipeline.sandbox.world import World
from contio_pipeline.settings import Secret

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # without it every client loads the system's authorities
PROFILE = "/v1/partner/user/profile"
TOKEN = "/oauth2/token"
LATER = 86_400.0


@pytest.fixture(scope="module")
def server() -> Iterator[Sandbox]:
    with Sandbox(World(meetings=5), rate_limit=1_000_000, oauth_limit=1_000_000) as running:
        yield running


@pytest.fixture
def sandbox(server: Sandbox) -> Iterator[Sandbox]:
    """The module's server; what a test changed is put back."""
    server.reset_log()
    yield server
    server.faults, server.before = [], None
    server.rotate, server.access_ttl, server.basic = True, LATER, "either"


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return TokenStore(tmp_path / "state")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the store keeps its files."""
    return tmp_path / "state" / "accounts"


NewAuth = Callable[..., AccountAuth]


@pytest.fixture
def new_auth(sandbox: Sandbox, store: TokenStore) -> Iterator[NewAuth]:
    """Make ana's auth, as another process would; keyword arguments are AccountAuth's own, and the application's credentials."""
    with ExitStack() as open_until_the_end:

        def make(*, credentials: tuple[str, Secret] | None = None, **how: Any) -> AccountAuth:
            if "ana" not in store.names():
                store.write("ana", Tokens(sandbox.login("ana")))
            credentials = credentials or (sandbox.world.client_id, Secret(sandbox.world.client_secret))
            endpoint = TokenEndpoint(sandbox.token_url, credentials, clock=how.get("clock", time.time))
            open_until_the_end.callback(endpoint.close)
            return AccountAuth("ana", store, refresh=partial(endpoint.refresh, store), **how)

        yield make


def get(auth: AccountAuth, sandbox: Sandbox, path: str = PROFILE) -> httpx.Response:
    with httpx.Client(verify=NO_TLS) as client:
        return client.get(sandbox.api_url + path, auth=auth)


def asked(sandbox: Sandbox) -> list[tuple[str, int]]:
    return [(request.path, request.status) for request in sandbox.requests]


def refreshes(sandbox: Sandbox) -> int:
    return sum(request.path == TOKEN for request in sandbox.requests)


# The store ------------------------------------------------------------------------------------------------------------

FULL = Tokens("cto_rt_v1_r", "cto_at_v1_a", 1_800_000_000.5, "profile", "user-1", 1_799_990_000.0)


def test_tokens_are_read_as_they_were_written(store: TokenStore) -> None:
    for tokens in (FULL, Tokens("other")):
        store.write("ana", tokens)
        assert store.read("ana") == tokens


def test_accounts_are_listed_by_name_and_leftovers_are_not(store: TokenStore, folder: Path) -> None:
    assert store.names() == []
    for name in ("cem", "ana", "bo@example.com"):
        store.write(name, FULL)
        with store.lock(name):
            pass
    (folder / ".new-x1y2").write_text("{")  # what a kill while writing leaves
    assert store.names() == ["ana", "bo@example.com", "cem"]
    store.remove("bo@example.com")
    assert store.names() == ["ana", "cem"]


def test_nobody_else_can_read_the_tokens_whatever_the_umask(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "not" / "there" / "yet")
    before = os.umask(0)
    try:
        with store.lock("ana"):
            store.write("ana", FULL)
    finally:
        os.umask(before)
    made = {str(path.relative_to(tmp_path)): oct(path.stat().st_mode & 0o777) for path in tmp_path.rglob("*")}
    assert made == {
        "not": "0o700",
        "not/there": "0o700",
        "not/there/yet": "0o700",
        "not/there/yet/accounts": "0o700",
        "not/there/yet/accounts/ana.json": "0o600",
        "not/there/yet/accounts/.ana.lock": "0o600",
    }


def test_a_reader_never_meets_a_half_written_file(store: TokenStore) -> None:
    long = ["a" * 20_000, "b" * 30_000]
    store.write("ana", Tokens(long[0]))
    seen: list[str] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(store.read("ana").refresh_token)

    with ThreadPoolExecutor(1) as thread:
        watching = thread.submit(watch)
        for turn in range(100):
            store.write("ana", Tokens(long[turn % 2]))
        done.set()
        watching.result()
    assert set(seen) <= set(long)


def test_a_full_disk_leaves_the_old_tokens_and_nothing_else(store: TokenStore, folder: Path) -> None:
    store.write("ana", FULL)
    program = """
import resource, signal, sys
from pathlib import Path
from contio_pipeline.auth import Tokens, TokenStore
from contio_pipeline.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))  # as a full disk: what is beyond cannot be written
try:
    TokenStore(Path(sys.argv[1])).write("ana", Tokens("new"))
except StorageError as error:
    print("refused" if "those before stay" in str(error) else error)
"""
    command = [sys.executable, "-c", program, str(folder.parent)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == ("refused\n", "")
    assert store.read("ana") == FULL
    assert [path.name for path in folder.iterdir()] == ["ana.json"]


def test_an_unknown_account_is_refused_with_those_that_are_known_and_how_to_add_it(store: TokenStore) -> None:
    with pytest.raises(ConfigError, match=r"no account 'ana' \(known: none yet\)"):
        store.read("ana")
    store.write("cem", FULL)
    store.write("bo", FULL)
    for act, advice in ((store.read, True), (store.remove, False)):
        with pytest.raises(ConfigError) as refused:
            act("ana")
        assert "no account 'ana' (known: bo, cem)" in str(refused.value)
        assert ("contio-pipeline accounts add ana --refresh-token-stdin" in str(refused.value)) == advice


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"cto_rt_v1_r"',
        b"{}",
        b"\xff\xfe",
        b'{"refresh_token": "cto_rt_v1_r", "expires_at": "soon"}',
        b'{"refresh_token": null}',
        b'{"refresh_token": ""}',
        b'{"refresh_token": 7}',
        b'{"refresh_token": "cto_rt_v1_r", "access_token": null}',
        b'{"refresh_token": "cto_rt_v1_r", "profile_id": ["x"]}',
    ],
)
def test_damaged_tokens_are_refused_without_quoting_them(content: bytes, store: TokenStore, folder: Path) -> None:
    store.write("ana", FULL)
    (folder / "ana.json").write_bytes(content)
    with pytest.raises(ConfigError, match="stored tokens of account 'ana' are damaged; add it again") as refused:
        store.read("ana")
    assert "accounts add ana --refresh-token-stdin" in str(refused.value)
    assert "cto_rt" not in str(refused.value)
    assert refused.value.__suppress_context__


@pytest.mark.parametrize("name", ["a", "ana@example.com", "A.b+c_d-e", "7", "x" * 100])
def test_a_usual_name_can_name_an_account(name: str, store: TokenStore) -> None:
    store.write(name, FULL)
    assert store.names() == [name]
    assert store.read(name) == FULL


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-x", "../ana", "a/b", "/etc/x", "a b", "a\n", "ana\x00", "größe", "x" * 101]
)
def test_a_name_that_could_be_another_path_is_refused(name: str, store: TokenStore, tmp_path: Path) -> None:
    def lock(name: str) -> None:
        with store.lock(name):
            pass

    acts: list[Callable[[str], object]] = [store.read, store.remove, lock, lambda name: store.write(name, FULL)]
    for act in acts:
        with pytest.raises(ConfigError, match="cannot name an account: use up to 100 letters, digits"):
            act(name)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_lock_keeps_other_processes_out(store: TokenStore, folder: Path) -> None:
    program = """
import sys
from pathlib import Path
from contio_pipeline.auth import TokenStore
print("ready", flush=True)
with TokenStore(Path(sys.argv[1])).lock("ana"), Path("order").open("a") as file:
    file.write("the other\\n")
"""
    with store.lock("ana"):
        command = [sys.executable, "-c", program, str(folder.parent)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        with Path("order").open("a") as file:
            file.write("who held it\n")
    with process:
        assert process.wait() == 0
    assert Path("order").read_text() == "who held it\nthe other\n"


def test_who_waited_for_the_lock_while_the_account_was_removed_gets_the_new_one(
    store: TokenStore, folder: Path
) -> None:
    order: list[str] = []

    def wait() -> None:
        with store.lock("ana"):
            order.append("waited")

    waiting = threading.Thread(target=wait)
    with store.lock("ana"):
        waiting.start()
        time.sleep(0.2)
        (folder / ".ana.lock").unlink()  # as removing the account does
        with store.lock("ana"):  # whoever comes now makes a new file
            order.append("new")
            time.sleep(0.2)
            assert order == ["new"]
    waiting.join()
    assert order == ["new", "waited"]
    store.write("ana", FULL)
    store.remove("ana")
    assert list(folder.iterdir()) == []


def test_the_locks_of_two_accounts_are_two(store: TokenStore) -> None:
    with store.lock("ana"), store.lock("bo"):
        pass


# Refreshing -----------------------------------------------------------------------------------------------------------


def test_the_first_request_fetches_an_access_token_and_the_next_ones_use_it(
    sandbox: Sandbox, store: TokenStore, new_auth: NewAuth
) -> None:
    auth = new_auth()
    for _ in range(3):
        assert get(auth, sandbox).status_code == 200
    assert get(new_auth(), sandbox).status_code == 200  # the next process finds it in the store
    assert asked(sandbox) == [(TOKEN, 200), *[(PROFILE, 200)] * 4]
    assert [request.headers["authorization"] for request in sandbox.requests] == ["Basic", *["Bearer"] * 4]
    tokens = store.read("ana")
    assert tokens.access_token.startswith("cto_at_v1_")
    assert tokens.scope.split()[:2] == ["profile", "meetings:read"]


@pytest.mark.parametrize(
    ("seconds_left", "expected"), [(121, [PROFILE]), (119, [TOKEN, PROFILE]), (-5, [TOKEN, PROFILE])]
)
def test_an_access_token_is_refreshed_ahead_of_its_expiry(
    seconds_left: float, expected: list[str], sandbox: Sandbox, store: TokenStore, new_auth: NewAuth
) -> None:
    store.write("ana", Tokens(sandbox.login("ana"), sandbox.access_token("ana"), expires_at=1_000_000.0))
    auth = new_auth(clock=lambda: 1_000_000.0 - seconds_left)
    assert get(auth, sandbox).status_code == 200
    assert [path for path, _ in asked(sandbox)] == expected


def test_an_expired_token_is_never_sent(sandbox: Sandbox, store: TokenStore, new_auth: NewAuth) -> None:
    store.write("ana", Tokens(sandbox.login("ana"), "cto_at_v1_old", expires_at=time.time() + 60))
    get(new_auth(), sandbox)
    assert (PROFILE, 401) not in asked(sandbox)


def test_the_answer_says_how_long_the_token_lives_and_when_it_was_fetched_is_kept(
    sandbox: Sandbox, store: TokenStore, new_auth: NewAuth
) -> None:
    sandbox.access_ttl = 5000
    get(new_auth(clock=lambda: 1_000_000.0), sandbox)
    assert (store.read("ana").expires_at, store.read("ana").refreshed_at) == (1_005_000.0, 1_000_000.0)


def test_a_401_refreshes_once_and_asks_again(sandbox: Sandbox, store: TokenStore, new_auth: NewAuth) -> None:
    store.write("ana", Tokens(sandbox.login("ana"), "cto_at_v1_revoked", expires_at=time.time() + LATER))
    assert get(new_auth(), sandbox).json() == sandbox.world.accounts["ana"].profile
    assert asked(sandbox) == [(PROFILE, 401), (TOKEN, 200), (PROFILE, 200)]


def test_a_second_401_is_the_answer(sandbox: Sandbox, new_auth: NewAuth) -> None:
    auth = new_auth()
    get(auth, sandbox)
    sandbox.reset_log()
    sandbox.faults = [Fault(PROFILE, status=401, times=10)]
    assert get(auth, sandbox).status_code == 401
    assert asked(sandbox) == [(PROFILE, 401), (TOKEN, 200), (PROFILE, 401)]


def test_a_rotated_token_is_on_disk_before_the_new_one_is_used(
    sandbox: Sandbox, store: TokenStore, new_auth: NewAuth
) -> None:
    auth = new_auth()
    first = store.read("ana").refresh_token
    on_disk: list[tuple[str, Tokens]] = []
    sandbox.before = lambda request: on_disk.append((request.path, store.read("ana")))
    get(auth, sandbox)
    [(before_path, before), (path, then)] = on_disk
    assert (before_path, before.refresh_token) == (TOKEN, first)
    assert path == PROFILE
    assert then == store.read("ana")
    assert then.refresh_token.startswith("cto_rt_v1_")
    assert then.refresh_token != first


def test_each_refresh_uses_the_token_that_the_last_one_brought(sandbox: Sandbox, new_auth: NewAuth) -> None:
    auth = new_auth()
    for _ in range(3):  # a token used twice would end them all
        assert get(auth, sandbox).status_code == 200
        sandbox.expire_access_tokens()
    assert refreshes(sandbox) == 3


def test_an_answer_without_a_refresh_token_leaves_the_old_one(
    sandbox: Sandbox, store: TokenStore, new_auth: NewAuth
) -> None:
    sandbox.rotate = False
    auth = new_auth()
    first = store.read("ana").refresh_token
    for _ in range(2):
        assert get(auth, sandbox).status_code == 200
        assert store.read("ana").refresh_token == first
        sandbox.expire_access_tokens()
    assert refreshes(sandbox) == 2


def answer(sandbox: Sandbox, **fields: Any) -> list[Fault]:
    """Make the token endpoint's next answer this success; the access token in it is good."""
    body = {"access_token": sandbox.access_token("ana"), "token_type": "Bearer", **fields}
    return [Fault(TOKEN, status=200, body=json.dumps(body))]


@pytest.mark.parametrize("useless", ["", None, 7, ["x"]])
def test_a_refresh_token_that_is_none_leaves_the_old_one(
    useless: Any, sandbox: Sandbox, store: TokenStore, new_auth: NewAuth
) -> None:
    auth = new_auth()
    first = store.read("ana").refresh_token
    sandbox.faults = answer(sandbox, refresh_token=useless, scope=None)
    assert get(auth, sandbox).status_code == 200
    assert store.read("ana").refresh_token == first


def repr_short(value: Any) -> str:
    return repr(value)[:12]


@pytest.mark.parametrize(
    ("lifetime", "seconds"),
    [(7200, 7200), (0.5, 0.5), (None, 3600), ("7200", 3600), (0, 3600), (-1, 3600), ([], 3600), (10**400, 3600)],
    ids=repr_short,
)
def test_a_lifetime_that_says_nothing_counts_as_an_hour_and_costs_no_token(
    lifetime: Any, seconds: float, sandbox: Sandbox, store: TokenStore, new_auth: NewAuth
) -> None:
    auth = new_auth(clock=lambda: 1_000_000.0)
    sandbox.faults = answer(sandbox, expires_in=lifetime, refresh_token="cto_rt_v1_next")
    assert get(auth, sandbox).status_code == 200
    assert store.read("ana").expires_at == 1_000_000.0 + seconds
    assert store.read("ana").refresh_token == "cto_rt_v1_next"


def test_what_the_answer_leaves_out_stays(sandbox: Sandbox, store: TokenStore, new_auth: NewAuth) -> None:
    store.write("ana", Tokens("cto_rt_v1_mine", scope="profile", profile_id="user-1"))
    sandbox.faults = answer(sandbox)
    get(new_auth(), sandbox)
    tokens = store.read("ana")
    assert (tokens.refresh_token, tokens.scope, tokens.profile_id) == ("cto_rt_v1_mine", "profile", "user-1")


def test_tokens_that_another_process_stored_are_used_instead_of_asking(
    sandbox: Sandbox, store: TokenStore, new_auth: NewAuth
) -> None:
    one, other = new_auth(), new_auth()
    get(one, sandbox)
    assert get(other, sandbox).status_code == 200
    sandbox.expire_access_tokens()
    get(other, sandbox)
    assert get(one, sandbox).status_code == 200
    assert refreshes(sandbox) == 2
    assert store.read("ana").access_token


def test_only_what_the_flow_sends_besides_takes_a_slot(sandbox: Sandbox, new_auth: NewAuth) -> None:
    taken: list[str] = []

    def slot(kind: str) -> Callable[[], Any]:
        @contextmanager
        def hold() -> Iterator[None]:
            taken.append(f"{kind} before {len(sandbox.requests)}")
            yield
            taken.append(f"{kind} after {len(sandbox.requests)}")

        return hold

    auth = new_auth(api_slot=slot("api"), token_slot=slot("token"))
    get(auth, sandbox)
    assert taken == ["token before 0", "token after 1"]
    sandbox.expire_access_tokens()
    taken.clear()
    sandbox.reset_log()
    get(auth, sandbox)
    assert taken == ["token before 1", "token after 2", "api before 2", "api after 3"]


# Many at once ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["expired", "revoked"])
@pytest.mark.parametrize("shared", [True, False], ids=["one auth", "an auth each"])
def test_threads_refresh_once(
    why: str, *, shared: bool, sandbox: Sandbox, store: TokenStore, new_auth: NewAuth
) -> None:
    together = 6
    lasts = time.time() + (LATER if why == "revoked" else -1)
    store.write("ana", Tokens(sandbox.login("ana"), "cto_at_v1_old", expires_at=lasts))
    one = new_auth()
    auths = [one if shared else new_auth() for _ in range(together)]
    starting = threading.Barrier(together)

    def work(auth: AccountAuth) -> int:
        starting.wait()
        return get(auth, sandbox).status_code

    with ThreadPoolExecutor(together) as threads:
        assert list(threads.map(work, auths)) == [200] * together
    assert refreshes(sandbox) == 1


WORKER = """
import ssl, sys
import httpx
from contio_pipeline.auth import AccountAuth, TokenStore
from contio_pipeline.refresh import RefreshProcess
from contio_pipeline.settings import load_settings
state, url, identity, secret = sys.argv[1:]
settings = load_settings(state_dir=state, token_url=url + "/oauth2/token", client_id=identity, client_secret=secret)
refresher = RefreshProcess(settings)
auth = AccountAuth("ana", TokenStore(settings.state_dir), refresh=refresher.refresh)
with httpx.Client(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), auth=auth) as client:
    print("ready", flush=True)
    sys.stdin.readline()
    print(client.get(url + "/v1/partner/user/profile").status_code)
refresher.close()
"""


@pytest.mark.parametrize("why", ["expired", "revoked"])
def test_processes_refresh_once(why: str, sandbox: Sandbox, store: TokenStore, folder: Path) -> None:
    lasts = time.time() + (LATER if why == "revoked" else -1)
    store.write("ana", Tokens(sandbox.login("ana"), "cto_at_v1_old", expires_at=lasts))
    world = sandbox.world
    command = [sys.executable, "-c", WORKER, str(folder.parent), sandbox.url, world.client_id, world.client_secret]
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )
            for _ in range(2)
        ]
        for worker in workers:  # both have read the old tokens
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        assert [worker.communicate() for worker in workers] == [("200\n", "")] * 2
    assert refreshes(sandbox) == 1


# When it is refused ---------------------------------------------------------------------------------------------------


def failing(auth: AccountAuth, sandbox: Sandbox) -> ContioError:
    with pytest.raises(ContioError) as failed:
        get(auth, sandbox)
    return failed.value


def test_a_refresh_token_that_is_no_longer_accepted_says_how_to_get_on(
    sandbox: Sandbox, store: TokenStore, new_auth: NewAuth
) -> None:
    auth = new_auth()
    before = store.read("ana")
    sandbox.revoke("ana")
    error = failing(auth, sandbox)
    assert type(error) is AccountError
    assert "refresh token of account 'ana' is no longer accepted" in str(error)
    assert "contio-pipeline accounts add ana --refresh-token-stdin" in str(error)
    kept = store.read("ana")
    assert time.time() - 10 < kept.refused_at < time.time() + 10
    assert replace(kept, refused_at=0.0) == before
    assert asked(sandbox) == [(TOKEN, 400)]
    store.write("ana", replace(kept, refresh_token=sandbox.login("ana")))
    assert get(auth, sandbox).status_code == 200
    assert store.read("ana").refused_at == 0


def test_credentials_that_are_refused_name_their_variables(
    sandbox: Sandbox, store: TokenStore, new_auth: NewAuth
) -> None:
    auth = new_auth(credentials=(sandbox.world.client_id, Secret("wrong")))
    before = store.read("ana")
    error = failing(auth, sandbox)
    assert type(error) is CredentialsRefused
    assert "check CONTIO_CLIENT_ID and CONTIO_CLIENT_SECRET" in str(error)
    assert "request_id" in str(error)
    assert store.read("ana") == before


@pytest.mark.parametrize(
    ("status", "body"),
    [(400, '{"error": "invalid_client", "error_description": "unknown client"}'), (401, "<html>"), (401, "")],
)
def test_credentials_are_also_refused_in_other_words(
    status: int, body: str, sandbox: Sandbox, new_auth: NewAuth
) -> None:
    sandbox.faults = [Fault(TOKEN, status=status, body=body, times=2)]  # raw, and form-encoded
    error = failing(new_auth(), sandbox)
    assert type(error) is CredentialsRefused
    assert "CONTIO_CLIENT_SECRET" in str(error)
    assert refreshes(sandbox) == 2


@pytest.mark.parametrize("way", ["raw", "form"])
def test_credentials_are_sent_the_way_that_the_server_reads_them(
    way: Literal["raw", "form"], sandbox: Sandbox, new_auth: NewAuth
) -> None:
    sandbox.basic = way
    auth = new_auth()
    for _ in range(3):
        assert get(auth, sandbox).status_code == 200
        sandbox.expire_access_tokens()
    assert [status for path, status in asked(sandbox) if path == TOKEN] == [*([401] * (way == "form")), 200, 200, 200]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(TOKEN, status=400, body='{"error": "unsupported_grant_type", "error_description": "x"}'), ApiError),
        (Fault(TOKEN, status=400, body="<html>"), ApiError),
        (Fault(TOKEN, status=403, body="<html>blocked</html>"), ApiError),
        (Fault(TOKEN, status=404, body=""), ApiError),
        (Fault(TOKEN, status=429, body="", headers={"retry-after": "7"}), TokensThrottled),
        (Fault(TOKEN, status=500, body=""), Transient),
        (Fault(TOKEN, status=503, body="<html>", headers={"retry-after": "7"}), Transient),
        (Fault(TOKEN, status=200, body="<html>"), BrokenAnswer),
        (Fault(TOKEN, status=200, body=""), BrokenAnswer),
        (Fault(TOKEN, status=200, body="[]"), BrokenAnswer),
        (Fault(TOKEN, status=200, body="{}"), BrokenAnswer),
        (Fault(TOKEN, status=200, body='{"access_token": ""}'), BrokenAnswer),
        (Fault(TOKEN, status=200, body='{"access_token": 7}'), BrokenAnswer),
    ],
)
def test_any_other_answer_of_the_token_endpoint_does_not_end_the_account(
    fault: Fault, kind: type[ApiError], sandbox: Sandbox, store: TokenStore, new_auth: NewAuth
) -> None:
    auth = new_auth()
    before = store.read("ana")
    sandbox.faults = [Fault(**vars(fault))]
    error = failing(auth, sandbox)
    assert type(error) is kind
    if "retry-after" in fault.headers:
        assert isinstance(error, Transient)
        assert error.retry_after == 7
    assert store.read("ana") == before
    assert (PROFILE, 401) not in asked(sandbox)
    assert get(auth, sandbox).status_code == 200  # the lock is free, and the token still good


def test_a_redirect_of_the_token_endpoint_is_an_error_and_the_other_host_receives_nothing(
    sandbox: Sandbox, new_auth: NewAuth
) -> None:
    with Sandbox(World(meetings=1)) as elsewhere:
        for status in (302, 307, 308):
            sandbox.faults = [Fault(TOKEN, status=status, headers={"location": elsewhere.token_url})]
            error = failing(new_auth(), sandbox)
            assert type(error) is ApiError
            assert "redirects are never followed" in str(error)
        assert elsewhere.requests == []


def test_an_account_that_is_not_in_the_store_cannot_sign(new_auth: NewAuth, store: TokenStore) -> None:
    store.write("bo", FULL)
    new_auth()
    store.remove("ana")
    with pytest.raises(ConfigError, match="no account 'ana'"):
        AccountAuth("ana", store, refresh=lambda _name, _stale: FULL)


# Whose tokens ---------------------------------------------------------------------------------------------------------


def test_the_first_profile_is_remembered_and_stays(sandbox: Sandbox, store: TokenStore, new_auth: NewAuth) -> None:
    auth = new_auth()
    get(auth, sandbox)
    tokens = store.read("ana")
    auth.bind("user-1")
    assert store.read("ana").profile_id == "user-1"
    assert store.read("ana").refresh_token == tokens.refresh_token
    auth.bind("user-1")
    sandbox.expire_access_tokens()
    get(auth, sandbox)
    assert store.read("ana").profile_id == "user-1"
    assert get(auth, sandbox).status_code == 200


def test_tokens_of_another_user_are_refused(store: TokenStore, new_auth: NewAuth) -> None:
    new_auth().bind("user-1")
    before = store.read("ana")
    for auth in (new_auth(), new_auth()):
        with pytest.raises(AccountError, match="belong to another Contio user than before: its rows would be mixed"):
            auth.bind("user-2")
    assert store.read("ana") == before


def test_tokens_that_another_process_has_bound_meanwhile_are_not_bound_again(
    store: TokenStore, new_auth: NewAuth
) -> None:
    slow, quick = new_auth(), new_auth()
    quick.bind("user-1")
    with pytest.raises(AccountError, match="another Contio user"):
        slow.bind("user-2")
    assert store.read("ana").profile_id == "user-1"


# Secrets --------------------------------------------------------------------------------------------------------------


def texts(error: BaseException | None) -> str:
    """All that a traceback would show of an error and what led to it."""
    found = ""
    while error:
        found += f"{error!r} {error} "
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def test_no_token_is_in_any_repr(sandbox: Sandbox, store: TokenStore, new_auth: NewAuth) -> None:
    auth = new_auth()
    get(auth, sandbox)
    tokens = store.read("ana")
    for shown in (tokens, auth, store, [tokens], {"tokens": tokens}):
        for text in (repr(shown), str(shown), f"{shown}"):
            assert tokens.refresh_token not in text
            assert tokens.access_token not in text
            assert sandbox.world.client_secret not in text
    assert "scope=" in repr(tokens)


def test_no_token_is_in_any_log_line(
    sandbox: Sandbox, store: TokenStore, new_auth: NewAuth, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    auth = new_auth()
    first = store.read("ana")
    get(auth, sandbox)
    sandbox.expire_access_tokens()
    get(auth, sandbox)
    sandbox.revoke("ana")
    failing(auth, sandbox)
    assert "oauth2/token" in caplog.text
    for secret in (first.refresh_token, store.read("ana").refresh_token, store.read("ana").access_token):
        assert secret not in caplog.text
    assert "cto_at_v1" not in caplog.text
    assert sandbox.world.client_secret not in caplog.text


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, "invalid_grant"),
        (400, "invalid_client"),
        (400, "invalid_request"),
        (401, "invalid_client"),
        (403, "access_denied"),
        (429, "rate_limited"),
        (503, "unavailable"),
    ],
)
@pytest.mark.parametrize("echoed", ["refresh token", "client secret", "client secret as Go writes it"])
def test_no_secret_is_in_any_message_even_when_the_server_repeats_it(
    status: int, error: str, echoed: str, sandbox: Sandbox, store: TokenStore, new_auth: NewAuth
) -> None:
    own = "mine & <nobody else's>/+="
    auth = new_auth(credentials=("me", Secret(own)))
    secret = store.read("ana").refresh_token if echoed == "refresh token" else own
    body = json.dumps({"error": error, "error_description": f"cannot use {secret}", "request_id": secret})
    if "Go" in echoed:
        body = body.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    sandbox.faults = [Fault(TOKEN, status=status, body=body)]
    text = texts(failing(auth, sandbox))
    assert secret not in text
    assert "nobody else" not in text
