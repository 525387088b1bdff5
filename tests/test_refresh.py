"""Refreshes in a process of their own: whatever ends the sync, the token that was exchanged is not lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Place

from contio_pipeline.auth import TokenStore
from contio_pipeline.client import Client
from contio_pipeline.errors import AccountError, Cancelled, Transient
from contio_pipeline.refresh import RefreshProcess
from contio_pipeline.sandbox.faults import FOR_EVER
from contio_pipeline.sandbox.server import Fault

TOKEN = "/oauth2/token"
PROFILE = "profile"


@pytest.fixture
def small(new_place: Callable[..., Place]) -> Place:
    return new_place(meetings=3, accounts=1, signed_in=False)


def until(condition: Callable[[], object]) -> None:
    """Wait for what must happen."""
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def token_requests(place: Place) -> list[int]:
    return [request.status for request in place.sandbox.requests if request.path == TOKEN]


@pytest.fixture
def sync_at_its_refresh(small: Place) -> Iterator[subprocess.Popen[bytes]]:
    """A sync whose refresh has reached the server, which takes its time."""
    small.sandbox.faults = [Fault(TOKEN, delay=1.0)]
    with subprocess.Popen(
        [sys.executable, "-m", "contio_pipeline", "sync"],
        env=small.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as sync:
        until(lambda: token_requests(small))
        yield sync


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_token_that_is_being_exchanged_outlives_the_sync(
    how: signal.Signals, small: Place, sync_at_its_refresh: subprocess.Popen[bytes]
) -> None:
    store = TokenStore(small.settings.state_dir)
    [name] = store.names()
    before = store.read(name)
    os.killpg(sync_at_its_refresh.pid, how)  # all of its group, as a terminal does
    sync_at_its_refresh.wait(15)
    until(lambda: store.read(name).refresh_token != before.refresh_token)
    assert small.sync().complete
    assert token_requests(small) == [200]


def test_a_stopped_sync_does_not_wait_for_its_refresh(small: Place) -> None:
    small.sandbox.faults = [Fault(TOKEN, delay=3.0)]
    asked: list[None] = []

    def stop() -> None:
        asked.append(None)
        raise Cancelled("stopped")

    process = RefreshProcess(small.settings, stop)
    store = TokenStore(small.settings.state_dir)
    [name] = store.names()
    before = store.read(name)
    with pytest.raises(Cancelled):
        process.refresh(name, "")
    process.close()
    assert asked
    assert store.read(name) == before
    until(lambda: store.read(name) != before)


def test_a_process_that_ended_is_started_again(small: Place) -> None:
    process = RefreshProcess(small.settings)
    [name] = TokenStore(small.settings.state_dir).names()
    first = process.refresh(name, "")
    assert process._process
    process._process.kill()
    process._process.wait()
    with pytest.raises(Transient, match="ended unexpectedly"):
        process.refresh(name, first.access_token)
    assert process.refresh(name, first.access_token).access_token != first.access_token
    process.close()


def test_nothing_is_left_running(small: Place) -> None:
    with Client(small.settings) as client:
        client.profile(small.only, PROFILE)
        process = client._refresher._process
        assert process
    assert process.wait(timeout=10) == 0  # it is told to end, and on a busy machine takes its time


# Answers that never arrive --------------------------------------------------------------------------------------------


def test_an_answer_that_was_lost_after_the_rotation_is_explained_and_not_asked_for_without_end(small: Place) -> None:
    small.sandbox.faults = [Fault(TOKEN, cut=0)]  # the server has exchanged it, and hangs up
    with Client(small.settings) as client, pytest.raises(AccountError) as refused:
        client.profile(small.only, PROFILE)
    assert "its answer never arrived: it seems to have used the token up" in str(refused.value)
    assert f"contio-pipeline login --account {small.only}" in str(refused.value)
    assert token_requests(small) == [200, 400]


def test_an_answer_that_was_lost_is_explained_by_the_next_process_too(small: Place) -> None:
    small.sandbox.faults = [Fault(TOKEN, cut=0)]
    small.overrides["retry_seconds"] = 0
    with Client(small.settings) as client, pytest.raises(Transient):
        client.profile(small.only, PROFILE)
    with Client(small.settings) as client, pytest.raises(AccountError, match="its answer never arrived"):
        client.profile(small.only, PROFILE)


def test_a_refusal_after_an_answer_that_used_nothing_blames_no_lost_answer(small: Place) -> None:
    small.sandbox.faults = [Fault(TOKEN, status=429)]
    small.overrides["retry_seconds"] = 0
    with Client(small.settings) as client, pytest.raises(Transient):
        client.profile(small.only, PROFILE)
    small.sandbox.revoke(small.only)
    with Client(small.settings) as client, pytest.raises(AccountError, match="expired, revoked"):
        client.profile(small.only, PROFILE)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(TOKEN, status=429, headers={"retry-after": "0"}),
        Fault(TOKEN, status=503, body="<html>"),
        Fault(TOKEN, status=200, body="<html>"),
        Fault(TOKEN, status=200, body="x" * 2**21),
    ],
    ids=["429", "503", "html", "huge"],
)
def test_an_endpoint_that_fails_for_a_while_is_asked_again(fault: Fault, small: Place) -> None:
    small.sandbox.faults = [Fault(**vars(fault))]
    assert small.sync().complete
    assert token_requests(small)[-1] == 200


def test_an_endpoint_that_says_nothing_is_not_waited_for(small: Place) -> None:
    small.sandbox.faults = [Fault(TOKEN, delay=30.0, times=FOR_EVER)]
    small.overrides |= {"timeout_seconds": 0.3, "retry_seconds": 0}
    with Client(small.settings) as client, pytest.raises(Transient, match="token endpoint: no answer"):
        client.profile(small.only, PROFILE)


def test_the_secret_is_on_no_command_line(small: Place) -> None:
    with Client(small.settings) as client:
        client.profile(small.only, PROFILE)
        process = client._refresher._process
        assert process
        proc = Path(f"/proc/{process.pid}")
        told = (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes() if proc.exists() else b""
    assert small.world.client_secret.encode() not in told
