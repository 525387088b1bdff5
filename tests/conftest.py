"""What several test modules share: a clean environment, a place with a sandbox, accounts and folders, Dagster on it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import httpx
import pytest
from playwright.sync_api import Page, sync_playwright

from contio_pipeline.auth import Tokens, TokenStore
from contio_pipeline.generations import current
from contio_pipeline.publish import publish
from contio_pipeline.sandbox.server import Sandbox
from contio_pipeline.sandbox.world import World
from contio_pipeline.settings import Settings, load_settings
from contio_pipeline.streams import STREAMS
from contio_pipeline.sync import sync
from contio_pipeline.warehouse import Warehouse
from contio_pipeline.work import SyncReport


@pytest.fixture(autouse=True)
def _clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine reaches a test, and no test writes outside its own folder."""
    for name in list(os.environ):
        if name.startswith("CONTIO_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


_known: dict[str, Settings] = {}


def _loaded(values: dict[str, Any]) -> Settings:
    """The settings, which never change once they are made; validating the same ones again is a tenth of the time of all tests."""
    if Path(".env").exists():
        return load_settings(**values)
    given = {name: value for name, value in os.environ.items() if name.startswith("CONTIO_")}
    key = repr((values, given, Path.cwd()))
    if key not in _known:
        _known[key] = load_settings(**values)
    return _known[key]


@dataclass
class Place:
    """A sandbox server with its accounts added, and the folders of one installation."""

    world: World
    sandbox: Sandbox
    folder: Path
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        values = {
            "api_url": self.sandbox.api_url,
            "token_url": self.sandbox.token_url,
            "authorize_url": self.sandbox.authorize_url,
            "client_id": self.world.client_id,
            "client_secret": self.world.client_secret,
            "data_dir": self.folder / "data",
            "state_dir": self.folder / "state",
            "rate_limit": 1_000_000,
            "retry_seconds": 2,
            "calendar_start": "2025-06-01",
            "calendar_end": "2027-06-01",
        }
        return _loaded(values | self.overrides)

    @property
    def environment(self) -> dict[str, str]:
        """The same settings for a command in a process of its own."""
        return os.environ | self.settings.as_environment()

    def add_accounts(self, *, signed_in: bool) -> None:
        """Give the store a refresh token of each; signed in, also an access token, so that no refresh is due."""
        store = TokenStore(self.settings.state_dir)
        for name, account in self.world.accounts.items():
            tokens = Tokens(self.sandbox.login(name), scope=" ".join(account.scopes))
            if signed_in:
                lasts = time.time() + self.sandbox.access_ttl
                tokens = replace(tokens, access_token=self.sandbox.access_token(name), expires_at=lasts)
            store.write(name, tokens)

    @property
    def only(self) -> str:
        """The name of the one account there is."""
        [name] = self.world.accounts
        return name

    @property
    def secrets(self) -> list[str]:
        """All that nobody may ever find outside the token store: of the application and of every token that was ever good."""
        return [self.world.client_secret, *self.sandbox.issued, "cto_at_", "cto_rt_"]

    def look_for_secrets(self, folder: Path) -> int:
        """Search every byte below the folder but the token store's; returns how many files there are."""
        needles = [secret.encode() for secret in self.secrets]
        store = self.settings.state_dir / "accounts"
        files = [path for path in folder.rglob("*") if path.is_file() and store not in path.parents]
        for path in files:
            content = path.read_bytes()
            assert not [needle for needle in needles if needle in content], path
        return len(files)

    def sync(self, **options: Any) -> SyncReport:
        return sync(self.settings, **options)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask the current generation; cast times to text, for they come back as numbers of no zone otherwise."""
        with duckdb.connect(current(self.settings.data_dir).database, read_only=True) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            return connection.execute(sql).fetchall()

    def asked(self, ending: str = "") -> list[str]:
        """Paths of the API requests so far that end so, in order."""
        return [request.path for request in self.sandbox.requests if request.path.endswith(ending)]


LISTED = tuple(stream for stream in STREAMS if not stream.optional)
"""The streams that are listed unless a setting asks for more."""

FirstSyncs = dict[tuple[int, int, int], tuple[int, Path]]


@pytest.fixture(scope="session")
def first_syncs() -> FirstSyncs:
    """What `new_place` keeps of the first sync of a world: the port of its server, and the data folder."""
    return {}


@pytest.fixture
def new_place(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, first_syncs: FirstSyncs
) -> Iterator[Callable[..., Place]]:
    """Make a place: keyword arguments of World and Sandbox, by their own names, and whether a refresh is due at first.

    With `synced`, all of it was synced once, in this test or, when that is where the data come from, an earlier one of the
    worker: for tests of what comes after a first sync.
    """
    running: list[Sandbox] = []

    def serve(world: World, port: int, server: dict[str, Any]) -> Sandbox:
        sandbox = Sandbox(world, **{"rate_limit": 1_000_000, "oauth_limit": 1_000_000, **server}, port=port).start()
        running.append(sandbox)
        return sandbox

    def make(
        *,
        meetings: int = 40,
        accounts: int = 3,
        seed: int = 1,
        signed_in: bool = True,
        synced: bool = False,
        **server: Any,
    ) -> Place:
        world = World(meetings=meetings, accounts=accounts, seed=seed)
        port, data = first_syncs.get((meetings, accounts, seed), (0, None)) if synced else (0, None)
        try:
            sandbox = serve(world, port, server)  # the warehouse names the address that its rows came from
        except OSError:  # somebody has the port now
            sandbox, data = serve(world, 0, server), None
        place = Place(world, sandbox, tmp_path / f"place{len(running)}")
        place.add_accounts(signed_in=signed_in)
        if data:
            shutil.copytree(data, place.settings.data_dir, symlinks=True)
        elif synced:
            assert place.sync().complete
            kept = tmp_path_factory.mktemp("synced") / "data"
            shutil.copytree(place.settings.data_dir, kept, symlinks=True)
            first_syncs[meetings, accounts, seed] = urlsplit(sandbox.api_url).port or 0, kept
            sandbox.reset_log()
        return place

    yield make
    for sandbox in running:
        sandbox.stop()


@pytest.fixture
def place(new_place: Callable[..., Place], request: pytest.FixtureRequest) -> Place:
    """The usual place: three accounts, forty meetings; of a test that is marked `synced`, after its first sync."""
    return new_place(synced=request.node.get_closest_marker("synced") is not None)


def wind_back(place: Place, days: int, account: str = "%") -> None:
    """Make it a place whose last complete listings were so many days ago, and publish that."""
    with Warehouse(place.settings.data_dir, origin=None) as warehouse:
        with warehouse.transaction() as connection:
            connection.execute(
                f"""UPDATE ops.windows SET listed_at = listed_at - INTERVAL {days} DAY,
                    complete_at = complete_at - INTERVAL {days} DAY WHERE account LIKE ?""",
                [account],
            )
        publish(warehouse, datetime.now(UTC), anew=True)


class Receiver:
    """Somebody to tell: a webhook that keeps what it gets, and answers as it is told to."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.bodies: list[bytes] = []
        self.statuses: list[int] = []
        """Of the next answers; 200 when there are none left."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = receiver.statuses.pop(0) if receiver.statuses else 200
                if status == 200:
                    receiver.texts.append(json.loads(body)["text"])
                receiver.bodies.append(body)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook/s3cr3t"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    running = Receiver()
    yield running
    running.stop()


# A browser -----------------------------------------------------------------------------------------------------------

_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture
def new_page() -> Iterator[Callable[..., Page]]:
    """Make a page in Chromium that may ask for addresses with this beginning alone; keyword arguments are the browser's.

    Afterwards, that none of them had an error or a warning, or asked for anything else.
    """
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert program, "there is no Chromium; on Debian: apt-get install chromium"
    problems: list[str] = []

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(_FLAGS))

        def make(own: str, **options: Any) -> Page:
            page = browser.new_page(**options)
            page.set_default_timeout(30_000)
            page.on("console", lambda told: problems.append(told.text) if told.type in {"error", "warning"} else None)
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on(
                "request",
                lambda asked: None if asked.url.startswith((own, "data:", "blob:")) else problems.append(asked.url),
            )
            return page

        yield make
        browser.close()
    assert problems == []


# Dagster -------------------------------------------------------------------------------------------------------------


class Up:
    """`make up` on a place, asked over GraphQL as the UI asks."""

    def __init__(self, place: Place, port: int, process: subprocess.Popen[str]) -> None:
        self.place = place
        self.url = f"http://127.0.0.1:{port}"
        self.process = process

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        answer = httpx.post(f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=60).json()
        assert "errors" not in answer, answer
        return dict(answer["data"])

    def launch(self, job: str, tags: dict[str, str]) -> str:
        told = self.ask(
            """mutation ($p: ExecutionParams!) { launchPipelineExecution(executionParams: $p) {
                ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }""",
            p={
                "selector": {
                    "repositoryLocationName": "contio",
                    "repositoryName": "__repository__",
                    "pipelineName": job,
                },
                "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
            },
        )
        return str(told["launchPipelineExecution"]["run"]["runId"])

    def backfill(self, assets: list[str], keys: list[str]) -> None:
        self.ask(
            """mutation ($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) { __typename } }""",
            p={"assetSelection": [{"path": [asset]} for asset in assets], "partitionNames": keys},
        )

    def runs(self) -> dict[str, str]:
        """Run -> status."""
        told = self.ask("{ runsOrError { ... on Runs { results { runId status } } } }")
        return {run["runId"]: run["status"] for run in told["runsOrError"]["results"]}

    def wait(self, runs: int, *statuses: str) -> dict[str, str]:
        """Until there are so many runs and all have one of these statuses."""
        until = time.monotonic() + 180
        while time.monotonic() < until:
            found = self.runs()
            if len(found) == runs and set(found.values()) <= set(statuses):
                return found
            assert self.process.poll() is None
            time.sleep(0.5)
        raise AssertionError(self.runs())


@contextmanager
def running(place: Place, folder: Path, **settings: str) -> Iterator[Up]:
    """UI and daemon on a place, as `make up` starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "up.log"
    with log.open("a") as told:
        process = subprocess.Popen(
            [sys.executable, "-m", "dagster_project", "--port", str(port)],
            env=place.environment | settings,
            cwd=folder,
            stdout=told,
            stderr=subprocess.STDOUT,
            text=True,
        )
    up = Up(place, port, process)
    try:
        until = time.monotonic() + 120
        while True:
            try:
                if up.ask("{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }"):
                    break
            except httpx.TransportError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until
                time.sleep(0.2)
        yield up
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@pytest.fixture
def up(place: Place, tmp_path: Path) -> Iterator[Up]:
    """UI and daemon on the usual place."""
    with running(place, tmp_path) as running_up:
        yield running_up
