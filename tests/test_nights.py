"""Real nights: the UI and the daemon as `make up` starts them, a schedule each minute, against the sandbox."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import truth
from conftest import Place, Receiver, Up, running, wind_back

from contio_pipeline.sandbox.server import Fault
from contio_pipeline.workfile import writer

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent

EVERY_MINUTE = {
    "CONTIO_SCHEDULES": "true",
    "CONTIO_NIGHTLY_CRON": "* * * * *",
    "CONTIO_WEEKLY_CRON": "0 0 29 2 *",
}


def wait_for(what: Callable[[], Any], up: Up, seconds: float = 150) -> Any:
    """What it returns, as soon as that is something."""
    until = time.monotonic() + seconds
    while not (found := what()):
        assert up.process.poll() is None
        assert time.monotonic() < until, up.runs()
        time.sleep(0.5)
    return found


def ended(up: Up, status: str) -> list[str]:
    return [run for run, found in up.runs().items() if found == status]


def tags_of(up: Up, run: str) -> dict[str, str]:
    told = up.ask("query ($run: ID!) { runOrError(runId: $run) { ... on Run { tags { key value } } } }", run=run)
    return {tag["key"]: tag["value"] for tag in told["runOrError"]["tags"]}


def ticks(up: Up) -> list[dict[str, Any]]:
    """The ticks of the nightly schedule that asked for runs."""
    told = up.ask(
        """{ scheduleOrError(scheduleSelector: {
            repositoryLocationName: "contio", repositoryName: "__repository__", scheduleName: "nightly"}) {
            ... on Schedule { scheduleState { ticks(limit: 50) { status timestamp runIds } } } } }"""
    )
    found: list[dict[str, Any]] = told["scheduleOrError"]["scheduleState"]["ticks"]
    return [tick for tick in found if tick["runIds"]]


def alarms(receiver: Receiver) -> list[str]:
    return [text for text in receiver.texts if text.startswith(":warning: contio-pipeline\n") and "_extra" not in text]


def test_nights_heal_are_one_run_each_survive_kills_and_company_and_tell_what_is_wrong(
    place: Place, receiver: Receiver, tmp_path: Path
) -> None:
    world, today = place.world, datetime.now(UTC).date()
    place.sync()
    wind_back(place, 10)
    for name, day in (("ana", 12), ("bo", 9)):
        for stream in ("meetings", "calendar_events"):
            world.insert(stream, 2, account=name, start_time=f"{today - timedelta(days=day)}T10:00:00Z")
    settings = EVERY_MINUTE | {"CONTIO_ALERT_URL": receiver.url, "CONTIO_LOG_FORMAT": "json"}
    with running(place, tmp_path, **settings) as up:
        died = everything_dies_during_a_run(up)
    with running(place, tmp_path, **settings) as up:
        assert wait_for(lambda: died in ended(up, "FAILURE"), up)
        first = wait_for(lambda: ended(up, "SUCCESS"), up)[0]
        truth.check(world, place.settings, list(world.accounts))  # the first night caught up with ten days
        assert tags_of(up, first)["dagster/asset_partition_range_start"] == str(today - timedelta(days=16))
        a_run_that_is_killed_blocks_no_other(up)
        runs = [tick["runIds"] for tick in ticks(up)]
        assert len(runs) >= 3
        assert all(len(ids) == 1 for ids in runs), runs
        assert len({tick["timestamp"] // 60 for tick in ticks(up)}) == len(runs)
        place.sandbox.revoke("bo")
        with a_second_daemon(place, settings, tmp_path):
            for _sync in range(3):
                command = [sys.executable, "-m", "contio_pipeline", "sync", "--night"]
                done = subprocess.run(command, env=place.environment, capture_output=True, check=False)
                assert done.returncode == 1  # bo's consent, or another is writing
                time.sleep(10)
            wait_for(lambda: any("bo: the refresh token" in text for text in alarms(receiver)), up)
        the_server_is_away_for_two_nights(up)
        world.insert("meetings", 2, account="cem")
        told = len(receiver.texts)
        wait_for(lambda: any("2 of 3 accounts are complete" in text for text in receiver.texts[told:]), up, 240)
    truth.check(world, place.settings, ["ana", "cem"])
    for trouble in ("bo: the refresh token", "503"):
        assert len([text for text in alarms(receiver) if trouble in text]) == 1, alarms(receiver)
    assert not [secret for secret in place.secrets for body in receiver.bodies if secret.encode() in body]
    said = [line for line in (tmp_path / "up.log").read_text().splitlines() if line.startswith("{")]
    assert len([json.loads(line) for line in said]) > 50
    assert not [line for line in said if '"DEBUG"' in line]
    assert place.look_for_secrets(tmp_path) > 50


def everything_dies_during_a_run(up: Up) -> str:
    """As when the power fails; returns the run."""
    up.place.sandbox.latency = 1
    wait_for(lambda: ended(up, "STARTED") and writer(up.place.settings.data_dir), up)
    [run] = ended(up, "STARTED")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(up.place.settings.data_dir).encode() in (process / "environ").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
        except OSError:  # it is gone, or another user's
            continue
    up.place.sandbox.latency = 0
    return run


def a_run_that_is_killed_blocks_no_other(up: Up) -> None:
    """Its place in the pool is freed, and the next night goes on."""
    place, before = up.place, len(ended(up, "SUCCESS"))
    place.sandbox.latency = 0.5
    worker = wait_for(lambda: ended(up, "STARTED") and writer(place.settings.data_dir), up)
    killed = set(ended(up, "STARTED"))
    os.kill(int(worker), signal.SIGKILL)
    place.sandbox.latency = 0
    place.world.update("meetings", 3)
    place.world.delete("action_items", 2)
    wait_for(lambda: len(ended(up, "SUCCESS")) > before, up, 240)
    wait_for(lambda: killed <= set(ended(up, "FAILURE")), up)


@contextmanager
def a_second_daemon(place: Place, settings: dict[str, str], folder: Path) -> Iterator[None]:
    """Somebody started it by hand, past our lock: each tick makes two runs."""
    environment = place.environment | settings | {"DAGSTER_HOME": str(place.settings.data_dir / "dagster")}
    command = [Path(sys.executable).with_name("dagster-daemon"), "run", "--workspace", ROOT / "workspace.yaml"]
    with (folder / "second.log").open("w") as log:
        second = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(second.pid, signal.SIGTERM)
        second.wait(30)


def the_server_is_away_for_two_nights(up: Up) -> None:
    before = len(ended(up, "FAILURE"))
    up.place.sandbox.faults = [Fault(status=503, times=100_000)]
    wait_for(lambda: len(ended(up, "FAILURE")) >= before + 2, up, 240)
    up.place.sandbox.faults = []
