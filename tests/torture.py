"""`make torture`: kill -9 at random instants, processes racing for tokens and requests, readers in a loop; nothing may be lost.

    python tests/torture.py [--kills 200] [--seed N]

Real processes of the command line against a strict sandbox whose access tokens live for seconds. Two data folders share one
state folder, so that their syncs race for the tokens of the same accounts and for one budget. Exit code 1 when anything but the
kills happened.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
from truth import check

from contio_pipeline.auth import Tokens, TokenStore
from contio_pipeline.generations import current
from contio_pipeline.sandbox.server import Sandbox
from contio_pipeline.sandbox.world import World
from contio_pipeline.settings import Settings, load_settings

LIMIT, WINDOW = 400, 4.0
"""Requests in so many seconds: 100 a second, 30 times the real limit."""

TOKEN = "/oauth2/token"
TTL = 124.0
"""Seconds that an access token lives: it is renewed 120 s before its end, so every 4 s."""

DONE = re.compile(r"^(\S+) (\w+): [\d,]+ rows, .* (NOT complete|complete)$")
BAD = ("lost windows", "lost rows", "failed reads", "torn reads", "used-token reuses", "unexpected exits")


@dataclass
class Torture:
    """One run: the server, the folders, and what was counted."""

    folder: Path
    kills: int
    random: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    counting: threading.Lock = field(default_factory=threading.Lock)
    looking: threading.Lock = field(default_factory=threading.Lock)
    """Held by who looks into the working file, which nobody may open while another has it."""

    def __post_init__(self) -> None:
        self.world = World(meetings=60, accounts=3)
        self.sandbox = Sandbox(self.world, rate_limit=LIMIT, rate_window=WINDOW, oauth_limit=10**6, access_ttl=TTL)

    def count(self, what: str, problem: str = "") -> None:
        with self.counting:
            self.counts[what] += 1
            if problem:
                self.problems.append(f"{what}: {problem}")

    def settings(self, data: str) -> Settings:
        return load_settings(
            api_url=self.sandbox.api_url,
            token_url=self.sandbox.token_url,
            client_id=self.world.client_id,
            client_secret=self.world.client_secret,
            data_dir=self.folder / data,
            state_dir=self.folder / "state",
            rate_limit=LIMIT,
            rate_window_seconds=WINDOW,
            timeout_seconds=5,
            calendar_start="2025-06-01",
            calendar_end="2027-06-01",
        )

    # The parts that run at the same time ------------------------------------------------------------------------------

    def change(self) -> None:
        """The world goes on, and stays about as large as it is."""
        while not self.over.wait(0.3):
            stream = self.random.choice(["meetings", "action_items", "calendar_events"])
            how = self.random.choice([self.world.insert, self.world.update, self.world.move, self.world.delete])
            how(stream)

    def read(self, data: str) -> None:
        """A reader as the README has it: resolve once, then DuckDB and Parquet must agree with each other and the manifest."""
        while not self.over.wait(0.01):
            try:
                folder = (self.folder / data / "current").resolve(strict=True)
            except FileNotFoundError:
                continue
            try:
                told = json.loads((folder / "manifest.json").read_text())["rows"]
                with duckdb.connect(folder / "contio.duckdb", read_only=True) as connection:
                    for table in ("raw.meetings", "raw.action_items", "raw.meetings_history", "raw.document_contents"):
                        [(rows,)] = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
                        parts = (folder / "parquet" / table.replace(".", "/")).glob("month=*/part*.parquet")
                        if not rows == told[table] == sum(pq.ParquetFile(part).metadata.num_rows for part in parts):
                            self.count("torn reads", f"{table} in {folder.name}")
                    [(orphans,)] = connection.execute(
                        "SELECT count(*) FROM raw.meetings m WHERE NOT EXISTS (FROM raw.meetings_history h "
                        "WHERE h._account = m._account AND h.id = m.id)"
                    ).fetchall()
                    if orphans:
                        self.count("torn reads", f"{orphans} meetings without history in {folder.name}")
            except Exception as error:  # noqa: BLE001 - whatever a reader meets is what is counted
                self.count("failed reads", repr(error))
            self.count("reads")

    def attack(self, data: str) -> None:
        """Syncs and publishes of one folder, each killed at a random instant."""
        settings = self.settings(data)
        environment = os.environ | settings.as_environment()
        usual = 0.0  # seconds that a sync takes, as the last undisturbed one says
        while not self.enough() and not self.over.is_set():
            kinds = ["full", "window", "publish", "refresh", "whole"]
            what = self.random.choices(kinds, [4, 3, 2, 3, 1])[0] if usual else "whole"
            command = {
                "publish": ["publish"],
                "window": ["sync", "--since", "2026-10-20", "--until", "2026-11-05"],
            }.get(what, ["sync"])
            started = datetime.now(UTC)
            with (self.folder / f"{data}.log").open("w+") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "contio_pipeline", *command],
                    env=environment,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                )
                begun = time.monotonic()
                if what == "whole":
                    process.wait()
                elif what == "refresh":
                    self.wait_for_a_refresh(process)
                    time.sleep(self.random.uniform(0, 0.03))
                else:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(self.random.uniform(0.3, 1.1 * usual * (0.4 if what == "publish" else 1)))
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    self.count("kills")
                    self.count(f"kills of a {what}")
                code = process.wait()
                if what == "whole":
                    usual = time.monotonic() - begun
                log.seek(0)
                said = log.read()
            if code not in (0, 1, -signal.SIGKILL) or "unexpected" in said or "Traceback" in said:
                self.count("unexpected exits", f"{what} {code}: {said[-2000:]}")
            if "is writing to" in said:
                self.count("collisions")
            elif code == 1 and "Error:" in said:
                self.count("unexpected exits", f"{what} {code}: {said[-2000:]}")
            self.count("runs")
            print(f"{self.counts['kills']:>6} kills: {data} {what}, {time.monotonic() - begun:.1f} s", file=sys.stderr)
            self.compare(settings, said, started)

    def compare(self, settings: Settings, said: str, started: datetime) -> None:
        """What the run said to have finished is in the warehouse."""
        finished = {found.groups()[:2] for line in said.splitlines() if (found := DONE.match(line))}
        if not finished:
            return
        with self.looking, duckdb.connect(settings.data_dir / "warehouse.duckdb", read_only=True) as connection:
            kept = set(
                connection.execute("SELECT account, stream FROM ops.windows WHERE listed_at >= ?", [started]).fetchall()
            )
        for lost in finished - kept:
            self.count("lost windows", f"{lost} of {started}")
        self.counts["windows"] += len(finished)

    def collide(self) -> None:
        """A second sync of a folder at work is refused and says so, and harms nothing."""
        environment = os.environ | self.settings("one").as_environment()
        while not self.over.wait(1.5):
            with self.looking:
                done = subprocess.run(
                    [sys.executable, "-m", "contio_pipeline", "publish"],
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=False,
                )
            busy = "another contio-pipeline" in done.stderr or "no warehouse" in done.stderr
            self.count("collisions" if busy else "publishes in between")
            if done.returncode and not busy:
                self.count("unexpected exits", done.stderr[-2000:])

    def refreshes(self) -> int:
        return sum(request.path == TOKEN for request in self.sandbox.requests)

    def enough(self) -> bool:
        return self.counts["kills"] >= self.kills

    def wait_for_a_refresh(self, process: subprocess.Popen[bytes]) -> None:
        before, ends = self.refreshes(), time.monotonic() + 10
        while self.refreshes() == before and process.poll() is None and time.monotonic() < ends:
            time.sleep(0.002)

    # The whole ----------------------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Do it; returns whether nothing but kills happened."""
        begun = time.monotonic()
        with self.sandbox:
            store = TokenStore(self.folder / "state")
            for name in self.world.accounts:
                store.write(name, Tokens(self.sandbox.login(name)))
            with ThreadPoolExecutor() as threads:
                around = [threads.submit(self.change), threads.submit(self.collide)]
                around += [threads.submit(self.read, data) for data in ("one", "two")]
                attacks = [threads.submit(self.attack, data) for data in ("one", "two")]
                try:
                    for attack in attacks:
                        attack.result()
                finally:
                    self.over.set()
                for work in around:
                    work.result()
            for data in ("one", "two"):
                self.heal(self.settings(data))
            self.counts["refreshes"] = self.refreshes()
            statuses = [(request.path, request.status) for request in self.sandbox.requests]
        self.counts["requests"] = len(statuses)
        self.counts["429s"] = sum(status == 429 for _, status in statuses)
        self.counts["used-token reuses"] = sum(path == TOKEN and status == 400 for path, status in statuses)
        self.show(time.monotonic() - begun)
        return not any(self.counts[bad] for bad in BAD) and self.counts["429s"] <= 5

    def heal(self, settings: Settings) -> None:
        """After all that, one undisturbed sync makes everything equal."""
        done = subprocess.run(
            [sys.executable, "-m", "contio_pipeline", "sync"],
            env=os.environ | settings.as_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            self.count("lost rows", f"the last sync failed: {done.stderr[-2000:]}")
            return
        try:
            check(self.world, settings)
        except AssertionError as error:
            self.count("lost rows", str(error)[:2000])
        left = [path.name for path in settings.data_dir.iterdir() if path.name.startswith((".current", "staging"))]
        if left:
            self.count("lost rows", f"left over: {left} beside {current(settings.data_dir).name}")

    def show(self, seconds: float) -> None:
        for problem in self.problems[:20]:
            print(problem)
        kinds = sorted(what for what in self.counts if what.startswith("kills of"))
        names = [
            "kills",
            *kinds,
            "runs",
            "windows",
            "collisions",
            "publishes in between",
            "reads",
            "requests",
            "refreshes",
        ]
        for name in [*names, *BAD, "429s"]:
            print(f"{self.counts[name]:>8,}  {name}")
        print(f"{seconds:8.0f}  seconds")


ASKING = """
import sys
from contio_pipeline.client import Client
from contio_pipeline.settings import load_settings
with Client(load_settings()) as client:
    for _ in client.in_parallel(lambda _: client.read("ana", "profile"), range(int(sys.argv[1]))):
        pass
"""


def budget_holds(true_limit: int, *, processes: int = 2, windows: int = 6) -> bool:
    """Processes with work for so many windows, against a strict server that allows so many requests of those believed."""
    world = World(meetings=1, accounts=1)
    with (
        tempfile.TemporaryDirectory() as folder,
        Sandbox(world, rate_limit=true_limit, rate_window=WINDOW) as sandbox,
    ):
        settings = load_settings(
            api_url=sandbox.api_url,
            token_url=sandbox.token_url,
            client_id=world.client_id,
            client_secret=world.client_secret,
            data_dir=Path(folder) / "data",
            state_dir=Path(folder) / "state",
            rate_limit=LIMIT,
            rate_window_seconds=WINDOW,
        )
        TokenStore(settings.state_dir).write("ana", Tokens(sandbox.login("ana")))
        command = [sys.executable, "-c", ASKING, str(true_limit * windows // processes)]
        asking = [subprocess.Popen(command, env=os.environ | settings.as_environment()) for _ in range(processes)]
        codes = [process.wait() for process in asking]
        answered = [request.time for request in sandbox.requests if request.status == 200 and request.path != TOKEN]
        refused = sum(request.status == 429 for request in sandbox.requests)
    # The last window is left out: in it the work ends.
    ends = answered[0] + WINDOW * (windows - 1)
    share = sum(when < ends for when in answered) / (true_limit * (windows - 1))
    print(
        f"{share:8.1%}  of {true_limit} requests a window used, {LIMIT} believed, {processes} processes, {refused} 429s"
    )
    return not any(codes) and share >= 0.95 and refused <= 5


def main() -> int:
    """Run it and say what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    budgets = [budget_holds(true_limit) for true_limit in (LIMIT, LIMIT // 2)]
    with tempfile.TemporaryDirectory() as folder:
        fine = Torture(Path(folder), options.kills, random.Random(options.seed)).run() and all(budgets)
    print("Nothing was lost." if fine else "NOT everything held.")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
