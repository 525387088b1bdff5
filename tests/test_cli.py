"""The command line as a person or a scheduler uses it: real processes, a real server."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import commands
import httpx
import pyarrow.parquet as pq
import pytest
from commands import NO_SETTINGS
from conftest import Place
from truth import check

from contio_pipeline.auth import TokenStore
from contio_pipeline.cli.trying import demo
from contio_pipeline.demo import Demo
from contio_pipeline.generations import Generation, ask, current
from contio_pipeline.sandbox.server import Fault
from contio_pipeline.warehouse import Warehouse

NewPlace = Callable[..., Place]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def call(*arguments: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    done = commands.command(*arguments, env=env, **options)
    assert "Traceback" not in done.stdout + done.stderr
    return done


@pytest.mark.synced
def test_one_long_cell_does_not_pad_the_others(place: Place) -> None:
    sql = "SELECT if(i = 7, repeat('x', 100000), 'é') AS long, i AS number FROM range(1000) t(i)"
    told = call("query", sql, env=place.environment).stdout.splitlines()
    assert len(told) == 1001
    assert told[1] == "é" + " " * 79 + "       0"
    assert told[8] == "x" * 79 + "…       7"


@pytest.mark.synced
def test_long_cells_are_cut_in_tables_alone_and_that_is_said(place: Place, tmp_path: Path) -> None:
    sql = "SELECT repeat('x' || chr(10), 5000) AS long, 'é' AS short"
    done = call("query", sql, env=place.environment)
    [_, line] = done.stdout.splitlines()
    assert (line[-5:], len(line)) == ("x…  é", 83)
    assert done.stderr == "Long cells are cut (…): --format csv prints them whole, --to FILE writes them.\n"
    whole = call("query", sql, "--format", "csv", env=place.environment)
    assert (len(whole.stdout) > 10_000, whole.stderr) == (True, "")
    written = call("query", sql, "--format", "table", "--to", str(tmp_path / "long.txt"), env=place.environment)
    assert (len((tmp_path / "long.txt").read_text()) > 10_000, written.stderr) == (True, "")
    assert call("query", "SELECT repeat('x', 80)", env=place.environment).stderr == ""


@pytest.mark.synced
def test_tables_print_six_decimals_and_files_all(place: Place) -> None:
    sql = "SELECT -0.016666649999999998::DOUBLE AS a, 1234567.123456789::DOUBLE AS b, 2.0::DOUBLE AS c, [1/3] AS d"
    told = call("query", sql, env=place.environment).stdout.splitlines()[1]
    assert told.split() == ["-0.0166666", "1234567.123457", "2.0", "[0.333333]"]
    exact = call("query", sql, "--format", "csv", env=place.environment).stdout.splitlines()[1]
    assert exact == "-0.016666649999999998,1234567.123456789,2.0,[0.3333333333333333]"


@pytest.mark.synced
def test_closed_streams_do_not_keep_a_sync_from_its_work(place: Place) -> None:
    for closed in ("2>&-", ">&-", ">&- 2>&-"):
        command = f"exec {sys.executable} -m contio_pipeline sync --account ana --stream meetings {closed}"
        assert subprocess.run(["sh", "-c", command], env=place.environment, check=False).returncode == 0, closed


def test_sync_status_and_query_agree_with_the_api(place: Place) -> None:
    done = call("sync", env=place.environment)
    assert done.returncode == 0, done.stderr
    check(place.world, place.settings)
    assert "context_documents" in done.stdout
    assert "rows changed" in done.stdout
    assert "Published" in done.stdout

    again = call("sync", env=place.environment)
    assert again.returncode == 0
    assert "Nothing changed" in again.stdout

    status = call("status", env=place.environment)
    assert status.returncode == 0
    assert "document_contents" in status.stdout
    assert "What is not complete" not in status.stdout

    count = call("query", "SELECT count(*) AS n FROM raw.meetings", "--format", "json", env=place.environment)
    assert json.loads(count.stdout) == [{"n": sum(len(place.world.items(a, "meetings")) for a in place.world.accounts)}]


def test_query_prints_tables_csv_and_json(place: Place) -> None:
    place.sync(accounts=["ana"], documents=False)
    sql = "SELECT id, title, start_time, _extra, organizer FROM raw.calendar_events ORDER BY start_time, id LIMIT 3"
    rows = json.loads(call("query", sql, "--format", "json", env=place.environment).stdout)
    assert len(rows) == 3
    assert rows[0]["start_time"].endswith("+00:00")
    assert isinstance(rows[1]["organizer"] or {}, dict)
    table = list(csv.DictReader(io.StringIO(call("query", sql, "--format", "csv", env=place.environment).stdout)))
    assert [row["id"] for row in table] == [row["id"] for row in rows]
    printed = call("query", sql, env=place.environment).stdout
    assert all(row["id"] in printed for row in rows)
    empty = call("query", "SELECT 1 AS one WHERE false", "--format", "json", env=place.environment)
    assert json.loads(empty.stdout) == []


def test_query_cannot_write_and_says_what_is_wrong_with_a_query(place: Place) -> None:
    place.sync(accounts=["ana"], streams=["meetings"])
    copy = f"COPY (SELECT 1) TO '{place.folder / 'written.csv'}'"
    secret = f"SELECT * FROM read_text('{place.settings.state_dir}/accounts/ana.json')"
    unlock = "SET enable_external_access = true"
    wrong = ("DELETE FROM raw.meetings", "CREATE TABLE x (i INT)", "SELECT * FROM raw.nonsense", "SELEC", copy, "")
    for sql in (*wrong, secret, unlock):
        done = call("query", sql, env=place.environment)
        assert done.returncode == 2, sql
        assert done.stderr.startswith("Error: ")
        assert "cto_rt_" not in done.stdout + done.stderr
    assert place.query("SELECT count(*) FROM raw.meetings")[0][0] > 0
    assert not (place.folder / "written.csv").exists()


def test_query_prints_json_that_every_reader_takes(place: Place) -> None:
    place.sync(accounts=["ana"], streams=["meetings"])
    sql = "SELECT 1::DOUBLE / 0 AS endless, sum(2::BIGINT) AS total, TIMESTAMPTZ '2026-01-01' AS at"
    done = call("query", sql, "--format", "json", env=place.environment)
    assert json.loads(done.stdout) == [{"endless": None, "total": 2, "at": "2026-01-01T00:00:00+00:00"}]
    ascii_only = {**place.environment, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    start = [sys.executable, "-m", "contio_pipeline", "query", "SELECT '✓' AS mark"]
    assert subprocess.run(start, env=ascii_only, capture_output=True, check=False).returncode == 0
    assert call("query", "SELECT TIMESTAMPTZ 'infinity' AS never", env=place.environment).returncode == 2


@pytest.mark.synced
def test_a_question_may_begin_with_a_comment(place: Place) -> None:
    for sql in ("-- How many?\nSELECT 7 AS n", "--How many?\nSELECT 7 AS n -- that many"):
        for arguments in ([sql, "--format", "csv"], ["--format=csv", sql], ["--format", "csv", "--", sql]):
            done = call("query", *arguments, env=place.environment)
            assert (done.returncode, done.stdout) == (0, "n\n7\n"), done.stderr


def test_before_anything_is_published_each_command_says_what_to_do(tmp_path: Path) -> None:
    for command in (["status"], ["query", "SELECT 1"]):
        done = call(*command, cwd=tmp_path)
        assert done.returncode == 1
        assert "contio-pipeline sync" in done.stderr
    done = call("publish", cwd=tmp_path)
    assert (done.returncode, "no warehouse" in done.stderr) == (2, True)
    done = call("sync", cwd=tmp_path, env={**NO_SETTINGS, "CONTIO_STATE_DIR": str(tmp_path / "state")})
    assert (done.returncode, "no accounts yet" in done.stderr) == (2, True)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sync", "--until", "2026-01-01"], "--until needs --since"),
        (["sync", "--since", "2026-02-01", "--until", "2026-02-01"], "the window is empty"),
        (["sync", "--since", "2999-01-01"], "lies in the future, and without --until"),
        (["sync", "--since", "2026-02-30"], "--since must be a day"),
        (["sync", "--since", "2026-02-01T10:00:00"], "--since must be a day"),
        (["sync", "--since", ""], "--since must be a day"),
        (["sync", "--stream", "meeting"], "there is no stream 'meeting'; there are: meetings, action_items"),
        (["accounts", "add", "../x", "--refresh-token-stdin"], "cannot name an account"),
        (["accounts", "add", "x"], "--refresh-token-stdin"),
        (["accounts", "remove", "x"], "there is no account 'x'"),
        (["sandbox", "--fault", "503:0"], "there is no fault '503:0'"),
        (["query", "--fromat", "csv", "SELECT 1"], "No such option: --fromat"),
        (["query", "--fromat=a b.csv", "SELECT 1"], "No such option: --fromat"),
        (["nonsense"], "No such command"),
        (["sync", "--nonsense"], "No such option"),
    ],
)
def test_wrong_usage_exits_2_and_says_how(place: Place, arguments: list[str], message: str) -> None:
    done = call(*arguments, env=place.environment, input="cto_rt_v1_x\n")
    assert done.returncode == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())


def test_a_port_that_is_taken_is_named(place: Place) -> None:
    port = place.sandbox.url.rpartition(":")[2]
    done = call("sandbox", "--port", port)
    assert done.returncode == 2
    assert f"port {port} on 127.0.0.1 cannot be used" in done.stderr
    assert "--port" in done.stderr


def test_a_wrong_setting_names_the_variable_and_the_fix(place: Place) -> None:
    done = call("sync", env={**place.environment, "CONTIO_RATE_LIMIT": "fast"})
    assert done.returncode == 2
    assert "CONTIO_RATE_LIMIT" in done.stderr


def test_what_is_not_complete_is_said_with_account_stream_and_remedy(place: Place) -> None:
    place.sandbox.revoke("bo")
    done = call("sync", "--stream", "meetings", env=place.environment)
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("Not complete: bo meetings:")]
    assert "accounts add bo --refresh-token-stdin" in line
    status = call("status", env=place.environment)
    assert "What is not complete" in status.stdout
    done = call("sync", "--no-documents", env=place.environment)
    lines = [line for line in done.stderr.splitlines() if line.startswith("Not complete")]
    assert len(lines) == 1  # however many streams an account has
    assert lines[0].startswith(
        "Not complete: bo meetings, action_items, calendar_events, context_documents: the refresh token"
    )


def test_what_is_said_is_json_on_request(place: Place) -> None:
    place.sandbox.revoke("bo")
    env = place.environment | {"CONTIO_LOG_FORMAT": "json"}
    done = call("--verbose", "sync", "--stream", "meetings", env=env)
    said = [json.loads(line) for line in done.stderr.splitlines()]
    assert all({"time", "level", "message"} <= line.keys() for line in said)
    assert {"account": "ana", "stream": "meetings", "complete": True}.items() <= said[0].items()
    [broken] = [line for line in said if line["level"] == "ERROR"]
    assert (broken["account"], broken["streams"]) == ("bo", ["meetings"])
    wrong = call("sync", env=env | {"CONTIO_RATE_LIMIT": "none"})
    assert wrong.returncode == 2
    assert "CONTIO_RATE_LIMIT" in wrong.stderr  # as text, for nobody knows what was wanted
    away = call("sync", "--account", "nobody", env=env)
    assert json.loads(away.stderr)["message"].startswith("Error: there is no account 'nobody'")


def test_a_folder_that_git_made_becomes_the_owners_alone_and_one_that_was_let_open_stays_so(place: Place) -> None:
    data = place.settings.data_dir
    data.mkdir(mode=0o755)
    (data / ".gitkeep").touch()
    place.sync(accounts=["ana"], streams=["meetings"])
    assert data.stat().st_mode & 0o777 == 0o700
    data.chmod(0o711)
    place.sync(accounts=["ana"], streams=["meetings"])
    assert data.stat().st_mode & 0o777 == 0o711


def test_retries_are_logged_with_account_stream_and_request_id(place: Place) -> None:
    body = '{"code": "internal", "error": "boom", "request_id": "req-77"}'
    place.sandbox.faults.append(Fault(path=r"/action-items$", status=503, body=body))
    done = call("sync", "--account", "ana", "--stream", "action_items", env=place.environment)
    assert done.returncode == 0
    [line] = [line for line in done.stderr.splitlines() if "req-77" in line]
    assert "ana action_items" in line


def test_accounts_are_added_tried_listed_and_removed(place: Place) -> None:
    store = TokenStore(place.settings.state_dir)
    for name in place.world.accounts:
        store.remove(name)
    token = place.sandbox.login("ana")
    added = call("accounts", "add", "sales", "--refresh-token-stdin", env=place.environment, input=token + "\n")
    assert added.returncode == 0, added.stderr
    assert str(place.world.accounts["ana"].profile["email"]) in added.stdout
    listed = call("accounts", "list", env=place.environment)
    assert "sales" in listed.stdout
    assert place.world.accounts["ana"].user_id in listed.stdout
    removed = call("accounts", "remove", "sales", env=place.environment)
    assert removed.returncode == 0
    assert store.names() == []
    for done in (added, listed, removed):
        assert "cto_" not in done.stdout + done.stderr


def test_a_refused_token_is_not_kept(place: Place) -> None:
    done = call("accounts", "add", "dan", "--refresh-token-stdin", env=place.environment, input="cto_rt_v1_wrong\n")
    assert done.returncode == 1
    assert "no longer accepted" in done.stderr
    assert "dan" not in TokenStore(place.settings.state_dir).names()
    before = TokenStore(place.settings.state_dir).read("ana")
    call("accounts", "add", "ana", "--refresh-token-stdin", env=place.environment, input="cto_rt_v1_wrong\n")
    assert TokenStore(place.settings.state_dir).read("ana") == before


def test_another_users_token_is_not_taken_under_the_same_name(place: Place) -> None:
    place.sync(accounts=["ana"], streams=["meetings"])
    before = TokenStore(place.settings.state_dir).read("ana")
    token = place.sandbox.login("bo")
    done = call("accounts", "add", "ana", "--refresh-token-stdin", env=place.environment, input=token)
    assert done.returncode == 1
    assert "under a new name" in done.stderr
    assert "this one was used up by the check" in done.stderr
    assert TokenStore(place.settings.state_dir).read("ana") == before


def test_damaged_tokens_can_be_listed_replaced_and_removed(place: Place) -> None:
    for name in ("ana", "bo"):
        (place.settings.state_dir / "accounts" / f"{name}.json").write_text("{")
    assert "damaged" in call("accounts", "list", env=place.environment).stdout
    token = place.sandbox.login("ana")
    assert call("accounts", "add", "ana", "--refresh-token-stdin", env=place.environment, input=token).returncode == 0
    assert call("accounts", "remove", "bo", env=place.environment).returncode == 0


def test_an_account_can_be_added_while_the_server_is_away(place: Place) -> None:
    env = {
        **place.environment,
        "CONTIO_TOKEN_URL": "http://127.0.0.1:9/oauth2/token",
        "CONTIO_API_URL": "http://127.0.0.1:9",
    }
    done = call("accounts", "add", "later", "--refresh-token-stdin", env=env, input="cto_rt_v1_later\n")
    assert done.returncode == 0
    assert "could not be tried yet" in done.stderr
    assert "later" in TokenStore(place.settings.state_dir).names()


def test_no_output_holds_a_secret(place: Place) -> None:
    place.sandbox.expire_access_tokens()
    place.sandbox.revoke("bo")
    done = call("--verbose", "sync", env=place.environment)
    status = call("status", env=place.environment)
    for text in (done.stdout, done.stderr, status.stdout, status.stderr):
        assert "cto_" not in text
        assert place.world.client_secret not in text


def test_two_syncs_at_once_the_second_says_who_is_working(place: Place) -> None:
    place.sandbox.latency = 0.2
    first = subprocess.Popen(
        [sys.executable, "-m", "contio_pipeline", "sync"], env=place.environment, stderr=subprocess.PIPE
    )
    assert first.stderr
    first.stderr.readline()  # a stream is done: it holds the lock
    second = call("sync", env=place.environment)
    assert second.returncode == 1
    assert f"process {first.pid}" in second.stderr
    place.sandbox.latency = 0
    assert first.wait(timeout=60) == 0
    first.stderr.close()
    check(place.world, place.settings)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_sync_ends_soon_and_the_next_one_completes(place: Place, how: signal.Signals) -> None:
    place.sandbox.latency = 0.2
    process = subprocess.Popen(
        [sys.executable, "-m", "contio_pipeline", "sync"], env=place.environment, stderr=subprocess.PIPE
    )
    assert process.stderr
    process.stderr.readline()
    process.send_signal(how)
    _, said = process.communicate(timeout=15)
    assert process.returncode == 130
    assert b"Stopped" in said
    assert b"Traceback" not in said
    place.sandbox.latency = 0
    assert call("sync", env=place.environment).returncode == 0
    check(place.world, place.settings)


STUBBORN = """
import sys, time
from contio_pipeline.cli import app, main
@app.command()
def stubborn() -> None:
    try:
        print("ready", flush=True)
        time.sleep(300)
    except KeyboardInterrupt:  # as C code that calls Python loses it
        time.sleep(300)
sys.argv = ["contio-pipeline", "stubborn"]
main()
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_that_was_lost_on_its_way_is_not_lost(how: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(how)
        _, said = process.communicate(timeout=15)
    assert process.returncode == 130
    assert b"Stopped" in said


DEAF = """
import signal, sys, threading, time
from contio_pipeline.cli import app, main
def hit(how: int) -> None:
    time.sleep(0.5)
    signal.pthread_kill(threading.get_ident(), how)  # noted, and nothing wakes the main thread
@app.command()
def deaf() -> None:
    threading.Thread(target=hit, args=(int(sys.argv[2]),), daemon=True).start()
    threading.Event().wait()
sys.argv = ["contio-pipeline", "deaf", *sys.argv[1:]]
app.registered_commands[-1].context_settings = {"allow_extra_args": True}
main()
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_that_comes_the_instant_before_a_wait_ends_it(how: signal.Signals) -> None:
    done = subprocess.run([sys.executable, "-c", DEAF, str(int(how))], capture_output=True, check=False, timeout=15)
    assert done.returncode == 130
    assert b"Stopped" in done.stderr


@pytest.mark.parametrize("path", ["/user/meetings$", "/content$", "/oauth2/token"])
def test_a_stopped_sync_does_not_wait_for_a_server_that_says_nothing(path: str, new_place: NewPlace) -> None:
    place = new_place(meetings=10, signed_in="token" not in path)
    place.sandbox.faults = [Fault(path, delay=300, times=10**9)]
    process = subprocess.Popen(
        [sys.executable, "-m", "contio_pipeline", "sync"],
        env=place.environment | {"CONTIO_TIMEOUT_SECONDS": "300"},
        stderr=subprocess.PIPE,
    )
    while not any(re.search(path, asked) for asked in place.asked()):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=15)
    assert process.returncode == 130
    assert b"Traceback" not in said
    Warehouse(place.settings.data_dir, origin=None).close()  # whole, and nobody holds it


def test_the_sandbox_command_prints_what_a_client_needs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "contio_pipeline", "sandbox", "--port", "0", "--seed", "3", "--meetings", "20"]
    file = tmp_path / "sandbox.env"
    options = ["--accounts", "2", "--today", "2026-01-31", "--env-file", str(file)]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, env=NO_SETTINGS)
    assert process.stdout
    try:
        ready = json.loads(process.stdout.readline())
        env = {
            **NO_SETTINGS,
            "CONTIO_API_URL": ready["api_url"],
            "CONTIO_TOKEN_URL": ready["token_url"],
            "CONTIO_CLIENT_ID": ready["client_id"],
            "CONTIO_CLIENT_SECRET": ready["client_secret"],
            "CONTIO_DATA_DIR": str(tmp_path / "data"),
            "CONTIO_STATE_DIR": str(tmp_path / "state"),
        }
        assert len(ready["accounts"]) == 2
        for name, account in ready["accounts"].items():
            added = call("accounts", "add", name, "--refresh-token-stdin", env=env, input=account["refresh_token"])
            assert added.returncode == 0, added.stderr
        assert call("sync", env=env).returncode == 0
        last = "SELECT max(updated_at)::DATE::VARCHAR FROM raw.meetings"
        assert call("query", last, "--format", "csv", env=env).stdout.splitlines()[1][:7] == "2026-01"
        assert file.stat().st_mode & 0o777 == 0o600
        env = {**NO_SETTINGS, "CONTIO_ENV_FILE": str(file)}
        with (
            httpx.Client() as browser,
            subprocess.Popen(
                [sys.executable, "-m", "contio_pipeline", "login", "--no-browser"],
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as login,
        ):
            assert login.stdout
            url = next(line for line in login.stdout if line.startswith(ready["authorize_url"]))
            back = browser.get(url.strip()).headers["location"]
            assert "Added account" in login.communicate(f"{back}\n")[0]
        assert call("sync", env=env).returncode == 0
        assert (tmp_path / "sandbox-data/current/contio.duckdb").exists()
        assert (tmp_path / "sandbox-state/accounts").is_dir()
    finally:
        process.terminate()
        assert process.wait(timeout=15) == 0
        process.stdout.close()


def changes(output: str) -> list[list[str]]:
    """The two lines of the demo's table of what changed: the full sync, the window."""
    lines = output.splitlines()
    [heading] = [number for number, line in enumerate(lines) if line.startswith("started_at")]
    return [line.split() for line in lines[heading + 1 : heading + 3]]


def test_the_demo_shows_everything_and_a_second_run_finds_nothing_changed(tmp_path: Path) -> None:
    first = call("demo", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    for word in ("inserted", "requests", "Where things are", "What to do next", "overdue", "contio.duckdb"):
        assert word in first.stdout
    second = call("demo", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    [line] = [line for line in second.stdout.splitlines() if line.startswith("ana") and "document_contents" in line]
    assert line.split()[-1] == "yes"
    full, window = changes(second.stdout)
    assert int(full[-2]) < int(changes(first.stdout)[0][-2])  # requests: nothing was downloaded
    assert full[-5:-2] == window[-5:-2] == ["0", "0", "0"]
    day = date.fromisoformat((tmp_path / "data/demo-state/day").read_text().strip())
    assert timedelta() <= datetime.now(UTC).date() - day <= timedelta(days=1)
    assert window[2:4] == [str(day - timedelta(days=7)), "00:00:00"]
    generation = current(tmp_path / "data/demo")
    for sql in (
        "FROM raw.meetings_history WHERE id IN (SELECT id FROM raw.meetings_past WHERE title LIKE 'Budget%')",
        "FROM mart.time_to_summary WHERE NOT is_upper_bound AND minutes_to_summary > 0",
        "FROM raw.participants WHERE NOT is_attended",
        "FROM mart.document_texts WHERE text LIKE '%budget%'",
        f"FROM mart.meetings WHERE local_date > DATE '{day + timedelta(days=30)}'",
        f"FROM mart.meetings WHERE local_date < DATE '{day - timedelta(days=350)}'",
    ):
        assert list(ask(generation, sql).rows), sql
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"demo", "demo-state"}


@pytest.mark.parametrize(("days", "told"), [(0, False), (14, False), (15, True)])
def test_a_demo_of_some_weeks_ago_says_that_it_is(
    days: int, told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    day = datetime.now(UTC).date() - timedelta(days=days)
    monkeypatch.setattr("contio_pipeline.demo.run", lambda folder: Demo(Generation(folder, {}), {}, {}, day))
    demo(Path("data/demo"))
    said = f"In this demo it is {day}. For one of today, delete data/demo and data/demo-state, and run it again."
    assert (said in capsys.readouterr().out) is told


@pytest.mark.parametrize(
    "command",
    [
        *([name] for name in ("sync", "status", "query", "publish", "demo", "sandbox", "login", "accounts")),
        *(["accounts", name] for name in ("add", "import", "list")),
        [],
    ],
)
def test_help_teaches(command: list[str]) -> None:
    done = call(*command, "--help")
    assert done.returncode == 0
    assert len(done.stdout) > 300


def modules_of(*arguments: str, env: dict[str, str]) -> set[str]:
    script = (
        "import sys; from contio_pipeline.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=env, capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


def test_what_a_command_does_not_need_it_does_not_import(place: Place) -> None:
    place.sync(accounts=["ana"], streams=["meetings"])
    http = {"httpx", "httpcore", "requests", "urllib3", "aiohttp", "starlette", "uvicorn"}
    for arguments in (["status"], ["query", "SELECT 1 AS one"]):
        loaded = modules_of(*arguments, env=place.environment)
        assert "duckdb" in loaded
        assert not loaded & (http | {"dagster"})
    drawing = {
        "rich.console",
        "rich.progress",
        "rich.table",
    }  # there is no terminal; httpx's command line would draw, too
    assert not modules_of("sync", "--account", "ana", env=place.environment) & ({"dagster", "pydantic"} | drawing)
    assert not modules_of("--help", env=place.environment) & (http | {"duckdb", "pyarrow", "pydantic", "dagster"})


def test_the_sandbox_lists_what_can_go_wrong_and_refuses_the_rest() -> None:
    told = call("sandbox", "--faults")
    assert "page-short" in told.stdout
    refused = call("sandbox", "--fault", "page-shirt:3")
    assert refused.returncode == 2
    assert "there is no fault 'page-shirt:3'" in refused.stderr


def test_publishing_by_hand_keeps_generations_as_the_settings_say(place: Place) -> None:
    for title in ("one", "two", "three"):
        place.world.insert("meetings", title=title)
        place.sync(accounts=["ana"], streams=["meetings"])
    generations = place.settings.data_dir / "generations"
    assert len(list(generations.iterdir())) == 3
    assert call("publish", env=place.environment | {"CONTIO_KEEP_GENERATIONS": "2"}).returncode == 0
    assert len(list(generations.iterdir())) == 1  # the current one, and room for the next


# Files ------------------------------------------------------------------------------------------------------------------


@pytest.mark.synced
def test_a_mart_and_a_question_are_written_to_files_of_each_kind(place: Place, tmp_path: Path) -> None:
    meetings = "SELECT id, title, start_time, seen_by FROM mart.meetings ORDER BY id"
    events = "SELECT id, attendees, _extra FROM raw.calendar_events"
    asked = (
        (["query", meetings], meetings),
        (["query", events], events),
        (["export", "--mart", "people"], "FROM mart.people"),
    )
    for number, (arguments, sql) in enumerate(asked):
        rows, folder = place.query(sql), tmp_path / str(number)
        folder.mkdir()
        files = {kind: folder / f"rows.{kind}" for kind in ("csv", "json", "parquet")}
        for file in files.values():
            done = call(*arguments, "--to", str(file), env=place.environment)
            assert (done.returncode, done.stdout) == (0, ""), done.stderr
        table = pq.ParquetFile(files["parquet"]).read()
        lines = list(csv.DictReader(io.StringIO(files["csv"].read_bytes().decode())))
        objects = json.loads(files["json"].read_text(encoding="utf-8"))
        assert len(lines) == len(objects) == table.num_rows == len(rows) > 0
        assert [row["id"] for row in objects] == table.column("id").to_pylist() == [row["id"] for row in lines]
        assert list(objects[0]) == table.column_names == list(lines[0])
        assert {path.name for path in folder.iterdir()} == {f"rows.{kind}" for kind in files}


@pytest.mark.synced
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["export", "--mart", "meeting", "--to", "m.csv"],
            "there is no mart 'meeting'; there are meeting_aliases, meetings, ",
        ),
        (["export", "--mart", "people", "--to", "m.xlsx"], "must end in .csv, .json or .parquet"),
        (["export", "--mart", "people", "--to", "nowhere/m.csv"], "nowhere"),
        (["query", "SELECT 1", "--format", "parquet"], "name it with --to"),
        (["query", "SELECT 1", "--to", "folder.csv"], "folder.csv is a folder"),
        (["query", "SELECT error('broken')", "--to", "m.csv"], "broken"),
        (["query", "SELECT INTERVAL 1 DAY AS i", "--to", "m.parquet"], "cast it to another type"),
        (["query", "SELECT 1", "--format", "csv", "--to", "."], "is a folder"),
        (["query", "SELECT 1", "--to", f"{'x' * 250}.csv"], "cannot be written"),
    ],
)
def test_what_cannot_be_written_is_said_and_leaves_no_file(
    arguments: list[str], says: str, place: Place, tmp_path: Path
) -> None:
    (tmp_path / "folder.csv").mkdir()
    done = call(*arguments, env=place.environment, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


@pytest.mark.synced
def test_a_file_that_is_there_is_replaced_whole_or_not_at_all(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "people.csv"
    file.write_text("before")
    failing = "SELECT CASE WHEN i < 100000 THEN i ELSE error('late') END FROM range(100001) t(i)"
    assert call("query", failing, "--to", str(file), env=place.environment).returncode == 2
    assert file.read_text() == "before"
    assert call("export", "--mart", "people", "--to", str(file), env=place.environment).returncode == 0
    assert file.read_text().startswith("id,user_id,")


@pytest.mark.synced
def test_columns_of_one_name_are_told_apart_and_nothing_is_not_an_empty_text(place: Place, tmp_path: Path) -> None:
    sql = "SELECT 1 AS title, '' AS title, NULL AS Title, 'a, \"b\"' AS title_1"
    names = ["title", "title_1", "Title_2", "title_1_1"]
    assert place.query(f"DESCRIBE FROM ({sql})")[3][0] == names[3]  # DuckDB's own
    done = call("query", sql, "--format", "csv", env=place.environment)
    assert done.stdout == 'title,title_1,Title_2,title_1_1\n1,"",,"a, ""b"""\n'
    [row] = json.loads(call("query", sql, "--format", "json", env=place.environment).stdout)
    assert row == dict(zip(names, (1, "", None, 'a, "b"'), strict=True))
    assert call("query", sql, "--to", str(tmp_path / "rows.parquet"), env=place.environment).returncode == 0
    assert pq.ParquetFile(tmp_path / "rows.parquet").read().to_pylist() == [row]
    assert call("query", sql, env=place.environment).stdout.split()[:4] == names


@pytest.mark.synced
def test_a_mart_is_written_as_it_was_asked_whatever_the_files_name(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "people.txt"
    arguments = ("export", "--mart", "people", "--to", str(file))
    refused = call(*arguments, env=place.environment)
    assert (refused.returncode, "--format must say how" in refused.stderr) == (2, True)
    assert call(*arguments, "--format", "json", env=place.environment).returncode == 0
    assert json.loads(file.read_text(encoding="utf-8"))[0]["id"]


@pytest.mark.synced
def test_a_pipe_is_written_to_and_a_link_is_followed(place: Place, tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to("real.csv")
    assert call("query", "SELECT 7 AS n", "--to", str(tmp_path / "link.csv"), env=place.environment).returncode == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() == "n\n7\n"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True) as reader:
        arguments = ("query", "SELECT 7 AS n", "--format", "csv", "--to", str(pipe))
        assert call(*arguments, env=place.environment).returncode == 0
        assert reader.communicate(timeout=30)[0] == "n\n7\n"
    assert pipe.is_fifo()


@pytest.mark.synced
def test_json_is_json_whatever_is_in_it(place: Place) -> None:
    sql = (
        "SELECT ['nan'::DOUBLE, 1] AS a, {'x': 'inf'::DOUBLE} AS b, 1.5 AS c, 2.0 AS d, sum(1) AS e, [1::HUGEINT] AS f"
    )
    told = call("query", sql, "--format", "json", env=place.environment).stdout
    assert json.loads(told, parse_constant=pytest.fail) == [
        {"a": [None, 1.0], "b": {"x": None}, "c": 1.5, "d": 2.0, "e": 1, "f": [1]}
    ]


@pytest.mark.synced
def test_intervals_and_maps_are_written_as_people_read_them(place: Place) -> None:
    sql = "SELECT INTERVAL '1 day 02:03:04' AS i, MAP {'a': 1, 'b': NULL} AS m, [MAP {DATE '2026-01-31': INTERVAL 1 MONTH}] AS l"
    written = ["1 day 02:03:04", '{"a": 1, "b": null}', '[{"2026-01-31": "1 month"}]']
    [row] = csv.DictReader(io.StringIO(call("query", sql, "--format", "csv", env=place.environment).stdout))
    assert list(row.values()) == written
    assert re.split("  +", call("query", sql, env=place.environment).stdout.splitlines()[1]) == written
    [row] = json.loads(call("query", sql, "--format", "json", env=place.environment).stdout)
    assert list(row.values()) == [written[0], *map(json.loads, written[1:])]


# What is hidden -----------------------------------------------------------------------------------------------------------


@pytest.mark.synced
def test_a_policy_that_is_not_published_yet_is_told_by_every_command_that_reads(place: Place, tmp_path: Path) -> None:
    asked = (
        ["status"],
        ["query", "SELECT 1"],
        ["export", "--mart", "people", "--to", str(tmp_path / "people.csv")],
        ["dashboard", "--no-browser"],
    )
    told = "Published under another publish policy than the settings say: run contio-pipeline publish\n"
    assert {call(*arguments, env=place.environment).stderr for arguments in asked} == {""}
    place.overrides |= {"privacy": "strict", "hash_salt": "a made-up salt of some length"}
    assert {call(*arguments, env=place.environment).stderr for arguments in asked} == {told}
    assert call("publish", env=place.environment).returncode == 0
    assert call("status", env=place.environment).stderr == ""


@pytest.mark.synced
def test_a_question_says_which_of_its_columns_are_hidden(place: Place, tmp_path: Path) -> None:
    filtered = "SELECT count(*) AS n FROM mart.meetings WHERE title ILIKE '%sync%'"
    assert call("query", filtered, env=place.environment).stderr == ""
    place.overrides |= {"privacy": "strict", "hash_salt": "a made-up salt of some length"}
    assert call("publish", env=place.environment).returncode == 0
    everything = str(tmp_path / "events.csv")
    for arguments, hidden in (
        (["query", filtered], "title (NULL)"),
        (["query", 'SELECT count(*) FROM "raw"."meetings_history" WHERE "Title" > \'a\''], "title (NULL)"),
        (["query", "SELECT organizer_name, organizer_email FROM mart.calendar_events LIMIT 1"],
            "organizer_name (NULL); organizer_email (hashes)"),
        (["query", "FROM (SELECT * FROM raw.accounts)"], "display_name, workspace_name (NULL); id, email (hashes)"),
        (["query", "SELECT id FROM mart.meetings WHERE status <> 'title' -- title"], ""),
        (["query", "SELECT table_name AS title FROM duckdb_tables()"], ""),
    ):  # fmt: skip
        done = call(*arguments, env=place.environment)
        said = f"Hidden by the publish policy: {hidden}\n" if hidden else ""
        assert (done.returncode, done.stderr) == (0, said), arguments
    done = call("export", "--mart", "calendar_events", "--to", everything, env=place.environment)
    assert re.match(r"Hidden by the publish policy: title, .*\(NULL\); organizer_email.* \(hashes\)\n$", done.stderr)
