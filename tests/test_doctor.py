"""The doctor finds what is wrong, says what to do, and one thing that is broken never hides the next."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from fcntl import LOCK_SH, flock
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import duckdb
import pytest
from commands import command
from conftest import Place, Receiver

from contio_pipeline import doctor, workfile
from contio_pipeline.auth import Tokens, TokenStore
from contio_pipeline.doctor import Finding, examine
from contio_pipeline.errors import ConfigError
from contio_pipeline.generations import current
from contio_pipeline.sandbox.faults import named
from contio_pipeline.settings import load_settings
from contio_pipeline.sync import Run
from contio_pipeline.warehouse import Warehouse

NewPlace = Callable[..., Place]
DAY = 86_400.0


@pytest.fixture
def small(new_place: NewPlace) -> Place:
    return new_place(meetings=10)


def look(place: Place, **options: Any) -> list[Finding]:
    """On a disk that is local, wherever the tests run."""
    local = place.folder / "mounts"
    local.touch()
    findings = list(examine(lambda: place.settings, **{"ask_undocumented": False, "mounts": local, **options}))
    for finding in findings:
        assert (finding.level == "ok") == (finding.remedy == ""), finding
    return findings


def one(findings: list[Finding], area: str, subject: str) -> Finding:
    [found] = [finding for finding in findings if (finding.area, finding.subject) == (area, subject)]
    return found


def bad(findings: list[Finding]) -> set[tuple[str, str, str]]:
    """What is not well; the sandbox's rows have fields that are not declared, so that is."""
    return {
        (found.level, found.area, found.subject)
        for found in findings
        if found.level != "ok" and not found.subject.endswith(" no_new_fields")
    }


def refreshed(place: Place, name: str, seconds_ago: float, **fields: Any) -> None:
    """The account's tokens, as after a refresh so long ago."""
    tokens = Tokens(place.sandbox.login(name), refreshed_at=time.time() - seconds_ago, **fields)
    TokenStore(place.settings.state_dir).write(name, tokens)


def test_where_all_is_well_nothing_is_found(small: Place) -> None:
    small.sync()
    findings = look(small, ask_undocumented=True)
    assert bad(findings) == set()
    assert {finding.area for finding in findings} == {
        "configuration", "account", "machine", "disk", "permissions", "file system", "versions", "budget", "data", "tables",
        "alerts", "API",
    }  # fmt: skip
    assert "ana@example.com" in one(findings, "account", "ana").found
    assert one(findings, "versions", "duckdb").found == duckdb.__version__
    assert small.world.client_secret not in str(findings)
    assert "cto_" not in str(findings).replace(small.world.client_id, "")


def test_whoever_is_told_of_trouble_can_be_tried(small: Place, receiver: Receiver) -> None:
    assert one(look(small, offline=True, alert=True), "alerts", "webhook").level == "problem"
    small.overrides["alert_url"] = receiver.url
    assert "--alert sends a message" in one(look(small, offline=True), "alerts", "webhook").found
    assert receiver.texts == []
    found = one(look(small, offline=True, alert=True), "alerts", "webhook")
    assert (found.level, found.found) == ("ok", "a message was sent to 127.0.0.1")
    assert receiver.texts == ["contio-pipeline: this is a test, sent by doctor --alert."]
    receiver.statuses = [404]
    assert one(look(small, offline=True, alert=True), "alerts", "webhook").level == "problem"


# Accounts, clock ----------------------------------------------------------------------------------------------------------


def test_each_account_is_looked_at_whatever_is_wrong_with_the_others(new_place: NewPlace) -> None:
    place = new_place(meetings=5, accounts=6, signed_in=False)
    damaged, revoked, narrow, blind, swapped, well = place.world.accounts
    refreshed(place, swapped, 0, profile_id="somebody else")
    (place.settings.state_dir / "accounts" / f"{damaged}.json").write_text("{")
    place.sandbox.revoke(revoked)
    place.world.accounts[narrow].scopes = ("profile", "meetings:read", "calendar:read")
    place.world.accounts[blind].scopes = ("meetings:read", "action-items:read", "calendar:read", "context:read")
    findings = look(place)
    assert bad(findings) == {
        ("problem", "account", damaged),
        ("problem", "account", revoked),
        ("problem", "account", f"{narrow}: scopes"),
        ("warning", "account", blind),
        ("problem", "account", f"{blind}: scopes"),
        ("problem", "account", swapped),
        ("warning", "data", "published"),
    }
    assert f"contio-pipeline accounts add {revoked} " in one(findings, "account", revoked).remedy
    lost = one(findings, "account", f"{narrow}: scopes")
    assert "action_items (needs action-items:read), context_documents (needs context:read)" in lost.found
    assert "profile meetings:read action-items:read calendar:read context:read" in lost.remedy
    assert "confirming deletions" in one(findings, "account", f"{blind}: scopes").found
    assert one(findings, "account", well).level == "ok"


def test_only_the_accounts_asked_for_are_looked_at(small: Place) -> None:
    findings = look(small, accounts=["bo", "nobody"])
    assert {found.subject for found in findings if found.area == "account"} == {
        "bo",
        "bo: scopes",
        "bo: consent",
        "nobody",
    }
    assert one(findings, "account", "nobody").level == "problem"


@pytest.mark.parametrize(
    ("days_ago", "level", "says"),
    [(0, "ok", "in 29 days"), (22, "ok", "in 7 days"), (24, "warning", "in 5 days"), (31, "problem", "ended on")],
)
def test_the_end_of_a_consent_is_told_before_it_comes(small: Place, days_ago: float, level: str, says: str) -> None:
    refreshed(small, "ana", days_ago * DAY + 60, scope="profile", profile_id="u1")
    found = one(look(small, offline=True), "account", "ana: consent")
    assert (found.level, says in found.found) == (level, True), found


def test_offline_nothing_is_asked_and_nothing_is_written(small: Place) -> None:
    before = {path: path.read_bytes() for path in small.settings.state_dir.rglob("*") if path.is_file()}
    findings = look(small, offline=True, ask_undocumented=True)
    assert small.sandbox.requests == []
    assert {path: path.read_bytes() for path in small.settings.state_dir.rglob("*") if path.is_file()} == before
    assert not small.settings.data_dir.exists()
    assert bad(findings) == {("warning", "data", "published")}


def test_a_server_that_is_away_is_told_for_each_account(small: Place) -> None:
    small.sandbox.stop()
    small.overrides["retry_seconds"] = 0
    findings = look(small, ask_undocumented=True)
    assert {found for found in bad(findings) if found[1] == "account"} == {
        ("problem", "account", name) for name in ("ana", "bo", "cem")
    }
    assert "network" in one(findings, "account", "bo").remedy
    assert one(findings, "API", "undocumented").level == "warning"


@contextmanager
def api_whose_clock_is(ahead: float) -> Iterator[str]:
    """A server of tokens and profiles with a clock of its own."""

    class Handler(BaseHTTPRequestHandler):
        def date_time_string(self, timestamp: float | None = None) -> str:  # noqa: ARG002 - as in the base
            return formatdate(time.time() + ahead, usegmt=True)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

        def do_GET(self) -> None:
            body = json.dumps({"id": "u1", "access_token": "a", "expires_in": 3600}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("ahead", "level", "says"),
    [(0, "ok", "the API's"), (-30, "ok", "ahead of"), (600, "warning", "behind"), (-7200, "problem", "ahead of")],
)
def test_the_clock_is_compared_with_the_apis(small: Place, ahead: float, level: str, says: str) -> None:
    with api_whose_clock_is(ahead) as url:
        small.overrides |= {"api_url": url, "token_url": url}
        found = one(look(small, accounts=["ana"]), "machine", "clock")
    assert (found.level, says in found.found) == (level, True), found


# Configuration, machine ---------------------------------------------------------------------------------------------------


def test_wrong_settings_are_a_finding_beside_the_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTIO_RATE_LIMIT", "fast")
    findings = list(examine())
    assert bad(findings) == {("problem", "configuration", "settings")}
    assert "CONTIO_RATE_LIMIT" in findings[0].found
    assert one(findings, "versions", "dagster").level == "ok"


def test_missing_credentials_and_an_empty_calendar_are_found_and_the_rest_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"CONTIO_STATE_DIR={tmp_path}/state\nCONTIO_CALENDAR_END=2001-01-01\n")
    findings = list(examine())
    assert bad(findings) == {
        ("problem", "configuration", "credentials"),
        ("problem", "configuration", "calendar range"),
        ("problem", "account", ""),
        ("warning", "data", "published"),
        ("warning", "API", "undocumented"),
    }
    assert one(findings, "configuration", ".env").found == f"{tmp_path / '.env'} is read"
    assert "CONTIO_CALENDAR_END, CONTIO_STATE_DIR" in one(findings, "configuration", "settings").found


def test_a_program_that_is_not_installed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PROGRAMS", ("duckdb", "contio-not-there"))
    assert [found.level for found in doctor._versions()] == ["ok", "ok", "ok", "problem"]


def test_too_little_room_for_another_copy_is_told(small: Place) -> None:
    small.settings.data_dir.mkdir(mode=0o700)
    about = os.statvfs(small.folder)
    with (small.settings.data_dir / "warehouse.duckdb").open("wb") as file:
        file.truncate(about.f_bavail * about.f_frsize * 3 // 4)  # it takes no room
    found = one(look(small, offline=True), "disk", "data folder")
    assert (found.level, "needed to publish" in found.found) == ("warning", True)


@pytest.mark.parametrize(
    ("free", "files", "needed", "level"),
    [
        (10**9, 10**6, 10**9, "ok"),
        (10**9, None, 0, "ok"),
        (10**9, 10**6, 10**9 + 1, "warning"),
        (10**9, 9_999, 0, "warning"),
        (99 * 2**20, 10**6, 0, "problem"),
    ],
)
def test_how_much_room_there_must_be(free: int, files: int | None, needed: int, level: str) -> None:
    assert doctor._room("data folder", free, files, needed).level == level


def test_rights_of_others_are_found(small: Place) -> None:
    data, state = small.settings.data_dir, small.settings.state_dir
    data.mkdir()
    for path, mode in ((data, 0o777), (state, 0o750), (state / "accounts" / "bo.json", 0o640)):
        path.chmod(mode)
    findings = look(small, offline=True)
    assert {found for found in bad(findings) if found[1] == "permissions"} == {
        ("problem", "permissions", "data folder"),
        ("warning", "permissions", "state folder"),
        ("problem", "permissions", "tokens of bo"),
    }
    for subject in ("data folder", "state folder", "tokens of bo"):
        subprocess.run(one(findings, "permissions", subject).remedy.split(), check=True)  # the remedy is one
    assert bad(look(small, offline=True)) == {("warning", "data", "published")}


def test_folders_that_cannot_be_written_are_found(small: Place) -> None:
    (small.folder / "file").write_text("")
    small.overrides["data_dir"] = small.folder / "file" / "data"
    found = one(look(small, offline=True), "permissions", "CONTIO_DATA_DIR")
    assert (found.level, "cannot be made" in found.found) == ("problem", True)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that nobody can write to, root neither")
def test_a_folder_that_is_there_is_really_written_to(small: Place) -> None:
    small.overrides["data_dir"] = Path("/proc/self")
    found = one(look(small, offline=True), "permissions", "CONTIO_DATA_DIR")
    assert (found.level, "cannot be written" in found.found) == ("problem", True)


def test_network_file_systems_are_told_by_the_doctor_and_once_by_each_run(
    small: Place, caplog: pytest.LogCaptureFixture
) -> None:
    mounts = small.folder / "some-mounts"
    mounts.write_text(f"none / tmpfs rw 0 0\nfiler:/x {small.folder} nfs4 rw,vers=4.2 0 0\n")
    findings = look(small, offline=True, mounts=mounts)
    assert {found for found in bad(findings) if found[1] == "file system"} == {
        ("warning", "file system", "CONTIO_DATA_DIR"),
        ("problem", "file system", "CONTIO_STATE_DIR"),
    }
    with caplog.at_level(logging.WARNING), Run(small.settings, mounts=mounts):
        pass
    said = [record.getMessage() for record in caplog.records if "network file system (nfs4)" in record.getMessage()]
    assert len(said) == 2
    assert all("local disk" in text for text in said)


# Budget -------------------------------------------------------------------------------------------------------------------


def test_the_budget_that_is_left_is_told(small: Place) -> None:
    small.overrides["rate_limit"] = 10
    assert one(look(small), "budget", "requests").found == "7 left of 10 requests in 300 s"


def test_a_budget_that_is_used_up_is_not_waited_for(small: Place) -> None:
    small.overrides["rate_limit"] = 2
    findings = look(small, patience=0)
    assert [one(findings, "account", name).level for name in ("ana", "bo")] == ["ok", "ok"]
    assert "budget is used up" in one(findings, "account", "cem").found
    assert "all are used" in one(findings, "budget", "requests").found
    assert one(findings, "budget", "requests").level == "warning"
    small.overrides["rate_limit"] = 10
    assert one(look(small, offline=True), "budget", "requests").level == "ok"  # nobody is held back by our impatience


def test_an_api_that_asked_to_hold_back_is_asked_nothing_more(small: Place) -> None:
    small.sandbox.faults.append(named("429-day"))
    findings = look(small, ask_undocumented=True, patience=0)
    assert len([request for request in small.sandbox.requests if request.path.endswith("/profile")]) == 1
    assert one(findings, "account", "ana").level == "problem"
    assert one(findings, "account", "bo").found.startswith("not asked for")
    held = one(findings, "budget", "requests")
    assert (held.level, "hold back" in held.found) == ("warning", True)


# Data ---------------------------------------------------------------------------------------------------------------------


def test_what_is_not_complete_is_told_until_it_is(small: Place) -> None:
    small.sandbox.revoke("bo")
    small.sync(documents=False)
    findings = look(small, offline=True)
    [found] = [found for found in findings if found.area == "not complete"]
    assert found.subject == "bo profile, meetings, action_items, calendar_events, context_documents"
    assert found.remedy == "first what is said of the account, then contio-pipeline sync --account bo"
    assert not any(found.area == "not complete" for found in look(small, offline=True, accounts=["ana"]))
    TokenStore(small.settings.state_dir).write("bo", Tokens(small.sandbox.login("bo")))
    small.sync(documents=False)
    assert bad(look(small)) == set()


def test_who_is_writing_is_told_and_the_working_file_is_left_alone(small: Place) -> None:
    small.sync(accounts=["ana"], streams=["meetings"])
    assert "nobody is writing" in one(look(small), "data", "warehouse").found
    with Warehouse(small.settings.data_dir, origin=None) as warehouse:
        found = one(look(small), "data", "warehouse")
        assert (found.level, f"process {os.getpid()} is writing" in found.found) == ("ok", True)
        with pytest.raises(workfile.WarehouseBusy), Warehouse(small.settings.data_dir, origin=None):
            pass
        with warehouse.transaction():
            pass


def test_a_look_at_who_is_writing_keeps_nobody_from_it(small: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    small.sync(accounts=["ana"], streams=["meetings"])
    monkeypatch.setattr(workfile, "_A_LOOK", 1.0)
    descriptor = os.open(small.settings.data_dir / ".writer.lock", os.O_RDONLY)
    flock(descriptor, LOCK_SH)
    threading.Timer(0.01, os.close, [descriptor]).start()
    with Warehouse(small.settings.data_dir, origin=None):
        pass


def test_a_generation_of_a_newer_program_and_a_damaged_one_are_told(small: Place) -> None:
    small.sync(accounts=["ana"], streams=["meetings"])
    database = current(small.settings.data_dir).database
    database.chmod(0o644)
    with duckdb.connect(database) as connection:
        connection.execute("UPDATE ops.meta SET value = '99' WHERE key = 'schema_version'")
    found = one(look(small, offline=True), "data", "published")
    assert (found.level, "upgrade" in found.remedy) == ("problem", True)
    database.write_bytes(b"not a database")
    assert one(look(small, offline=True), "data", "published").level == "problem"
    database.unlink()
    assert one(look(small, offline=True), "data", "published").remedy == "contio-pipeline publish"


def test_a_sync_of_long_ago_is_told(small: Place) -> None:
    small.sync(accounts=["ana"], streams=["meetings"])
    database = current(small.settings.data_dir).database
    database.chmod(0o644)
    with duckdb.connect(database) as connection:
        connection.execute("UPDATE ops.windows SET complete_at = complete_at - INTERVAL 3 DAY")
    found = one(look(small, offline=True, accounts=["ana"]), "tables", "meetings fresh")
    assert (found.level, "ana it is not known to be complete since" in found.found) == ("problem", True)
    assert "sync --night" in found.remedy


# What the API leaves undocumented -----------------------------------------------------------------------------------------


def test_answers_are_stored_compared_and_not_forgotten(small: Place) -> None:
    options = {"ask_undocumented": True, "accounts": ["ana"]}
    assert {found for found in bad(look(small, **options)) if found[1] == "API"} == set()
    [stored] = small.settings.state_dir.glob("probe-127.0.0.1-*.json")
    assert stored.stat().st_mode & 0o777 == 0o600
    first = json.loads(stored.read_text())["answers"]
    assert first["meetings.end_included"] == "yes"
    assert not any(answer.startswith("unknown") for answer in first.values())

    small.sandbox.inclusive_end = False
    found = one(look(small, **options), "API", "meetings.end_included")
    assert (found.level, found.found) == ("warning", "no, before: yes")
    assert one(look(small, **options), "API", "meetings.end_included").level == "ok"

    small.world.accounts["ana"].scopes = ("profile", "calendar:read")
    found = one(look(small, **options), "API", "meetings.end_included")
    assert (found.level, "before: no" in found.found) == ("ok", True)
    assert json.loads(stored.read_text())["answers"] == first | {
        "meetings.end_included": "no", "action_items.end_included": "no",
    }  # fmt: skip

    stored.write_text("[]")
    look(small, **options)
    assert "calendar_events.longest_range" in json.loads(stored.read_text())["answers"]


def test_an_answer_that_contradicts_what_is_assumed_is_told_each_time(small: Place) -> None:
    small.sandbox.filter_fields["meetings"] = "created_at"
    for _ in range(2):
        found = one(look(small, ask_undocumented=True, accounts=["ana"]), "API", "meetings.date_filter")
        assert (found.level, found.found) == ("warning", "created_at; assumed: start_time")
        assert "contio-pipeline sync" in found.remedy


# The command --------------------------------------------------------------------------------------------------------------


def run_doctor(place: Place, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = command("doctor", *arguments, env=place.environment)
    assert "Traceback" not in done.stdout + done.stderr
    return done


def test_the_command_prints_a_table_then_what_to_do_and_exits_1_where_there_is_a_problem(small: Place) -> None:
    small.sandbox.revoke("bo")
    done = run_doctor(small, "--no-probe")
    assert done.returncode == 1
    assert "Problem: account bo: the refresh token of account 'bo' is no longer accepted" in done.stdout
    assert "What to do: get new consent with contio-pipeline login --account bo" in done.stdout
    assert "cem@example.com" in done.stdout
    assert not list(small.settings.state_dir.glob("probe-*"))


def test_the_command_prints_json_also_while_a_sync_runs(small: Place) -> None:
    small.sandbox.latency = 0.1
    sync = subprocess.Popen(
        [sys.executable, "-m", "contio_pipeline", "sync"], env=small.environment, stderr=subprocess.PIPE
    )
    assert sync.stderr
    sync.stderr.readline()  # a stream is done: it holds the lock
    done = run_doctor(small, "--json", "--account", "ana")
    small.sandbox.latency = 0
    assert sync.wait(timeout=60) == 0
    sync.stderr.close()
    findings = [Finding(**found) for found in json.loads(done.stdout)]
    assert f"process {sync.pid} is writing" in one(findings, "data", "warehouse").found
    assert one(findings, "API", "meetings.date_filter").found == "start_time"
    assert done.returncode == int(any(found.level == "problem" for found in findings))


def test_settings_that_are_wrong_end_every_other_command_with_2(small: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTIO_DATADIR", "x")
    with pytest.raises(ConfigError):
        load_settings()
    monkeypatch.delenv("CONTIO_DATADIR")
    environment = small.environment | {"CONTIO_DATADIR": "x"}
    done = subprocess.run(
        [sys.executable, "-m", "contio_pipeline", "doctor"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "did you mean CONTIO_DATA_DIR?" in done.stdout
