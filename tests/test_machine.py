"""The machine around a sync: folders, disks, clocks, time zones and languages."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest
from conftest import Place
from truth import check

from contio_pipeline import auth, client, contents, listings, sync

NewPlace = Callable[..., Place]


def call(*arguments: str, env: dict[str, str], **how: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "contio_pipeline", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False, **how)


@pytest.mark.parametrize(
    ("zone", "language"),
    [("Pacific/Kiritimati", "tr_TR.UTF-8"), ("America/St_Johns", "C"), ("no/such/zone", "no_SUCH"), ("", "POSIX")],
)
def test_time_zone_and_language_of_the_machine_change_nothing(zone: str, language: str, new_place: NewPlace) -> None:
    place = new_place(meetings=15, accounts=1)
    env = place.environment | {"TZ": zone, "LC_ALL": language, "LANG": language, "PYTHONUTF8": "0"}
    done = call("sync", env=env)
    assert done.returncode == 0, done.stderr
    check(place.world, place.settings)
    day = "2026-10-20"
    assert call("sync", "--since", day, "--until", "2026-11-10", env=env).returncode == 0
    [(first,)] = place.query("SELECT min(window_start)::VARCHAR FROM ops.windows WHERE stream = 'meetings'")
    assert first == f"{day} 00:00:00+00"
    sql = "SELECT TIMESTAMPTZ '2026-01-01 00:00:00+00' AS t, 'word' AS word"
    assert "2026-01-01T00:00:00+00:00" in call("query", sql, "--format", "csv", env=env).stdout


def test_a_clock_that_jumps_changes_no_row(new_place: NewPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    place = new_place(meetings=15, accounts=1)
    jump = timedelta()

    class Jumping(datetime):
        """The clock as it is set."""

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + jump

    for module in (sync, listings, contents, client):
        monkeypatch.setattr(module, "datetime", Jumping)
    monkeypatch.setattr(
        auth.AccountAuth.__init__,
        "__kwdefaults__",
        {**auth.AccountAuth.__init__.__kwdefaults__, "clock": lambda: time.time() + jump.total_seconds()},
    )
    names = []
    for days in (0, 400, -30, 0):
        jump = timedelta(days=days)
        place.world.insert("meetings")
        place.world.delete("action_items")
        place.sandbox.expire_access_tokens()
        report = place.sync()
        assert report.complete
        assert report.generation
        names.append(report.generation.name)
        check(place.world, place.settings)
    assert names == sorted(names)


@pytest.mark.parametrize("what", ["CONTIO_DATA_DIR", "CONTIO_STATE_DIR"])
@pytest.mark.parametrize("how", ["a file in its place", "nothing can be made there"])
def test_a_folder_that_cannot_be_used_says_so(what: str, how: str, place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" if "file" in how else Path("/proc/contio")
    env = place.environment | {what: str(folder)}
    command = ["sync"] if "DATA" in what else ["accounts", "add", "ana", "--refresh-token-stdin"]
    done = call(*command, env=env, input="cto_rt_v1_x\n")
    assert done.returncode == 1
    assert str(folder) in done.stderr
    assert "CONTIO_" in done.stderr
    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr


def test_a_file_in_the_place_of_the_documents_is_named(place: Place) -> None:
    place.settings.data_dir.mkdir(parents=True)
    (place.settings.data_dir / "documents").write_text("")
    done = call("sync", env=place.environment)
    assert done.returncode == 1
    assert f"{place.settings.data_dir / 'documents'}" in done.stderr
    assert "unexpected" not in done.stderr


@pytest.mark.parametrize("most", [2_000, 100_000, 1_000_000])
def test_a_disk_that_is_full_loses_nothing(most: int, new_place: NewPlace) -> None:
    place = new_place(meetings=15, accounts=1)

    def fill() -> None:
        """No file may grow beyond it: what a full disk is to the one who writes."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    done = call("sync", env=place.environment, preexec_fn=fill)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr
    assert "disk" in done.stderr or "could not be written" in done.stderr or "cannot be used" in done.stderr, (
        done.stderr
    )
    done = call("sync", env=os.environ | place.environment)
    assert done.returncode == 0, done.stderr
    check(place.world, place.settings)
