"""The Dagster project: real runs of its jobs against the sandbox, in this process and under its own daemon."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import dagster as dg
import pytest
import truth
import yaml
from conftest import LISTED, Place, Receiver, Up, wind_back
from test_privacy import MARK, SALT, change_everything, hide_something_everywhere

from contio_pipeline import streams
from contio_pipeline.alerts import Alerts
from contio_pipeline.auth import Tokens, TokenStore
from contio_pipeline.errors import ConfigError
from contio_pipeline.generations import current
from contio_pipeline.health import checks
from contio_pipeline.sandbox.server import Fault
from contio_pipeline.settings import load_settings
from contio_pipeline.sync import parts
from contio_pipeline.warehouse import Warehouse
from dagster_project import resource
from dagster_project.definitions import defs
from dagster_project.defs import sensors as sensors_module
from dagster_project.defs.schedules import nightly, weekly
from dagster_project.defs.sensors import check_failures, delete_old_runs, run_failures, watch
from dagster_project.home import dagster_home
from dagster_project.partitions import days
from dagster_project.recover import end_dead_runs

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
TABLES = parts(LISTED)
FIRST, LAST = date(2026, 10, 20), date(2026, 11, 18)
MONTH = {"dagster/asset_partition_range_start": str(FIRST), "dagster/asset_partition_range_end": str(LAST)}
DAYS = {"dagster/asset_partition_range_start": "2026-10-27", "dagster/asset_partition_range_end": "2026-10-29"}
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass
class Project:
    """The project with an instance of its own, on a place's settings."""

    place: Place
    instance: dg.DagsterInstance
    loaded: dict[Any, dg.Definitions] = field(default_factory=dict)

    def definitions(self) -> dg.Definitions:
        """What Dagster loads; loaded again when the settings or the streams are others."""
        given = tuple((name, value) for name, value in os.environ.items() if name.startswith("CONTIO_"))
        key = given, tuple(stream.name for stream in streams.STREAMS)
        if key not in self.loaded:
            self.loaded[key] = defs()
        return self.loaded[key]

    def run(
        self, job: str, tags: Mapping[str, str] | None = None, resources: dict[str, Any] | None = None
    ) -> dg.ExecuteInProcessResult:
        config = QUIET | ({"resources": {"contio": {"config": resources}}} if resources else {})
        return (
            self.definitions()
            .resolve_job_def(job)
            .execute_in_process(instance=self.instance, tags=tags, run_config=config, raise_on_error=False)
        )

    def latest(self, asset: str) -> dict[str, Any]:
        """The metadata of the asset's latest materialization."""
        event = self.instance.get_latest_materialization_event(dg.AssetKey(asset))
        assert event is not None
        assert event.asset_materialization is not None
        return {name: value.value for name, value in event.asset_materialization.metadata.items()}


@pytest.fixture
def project(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Project]:
    """The usual place, run by Dagster in this process."""
    home = tmp_path / "dagster"
    home.mkdir()
    shutil.copy(ROOT / "dagster.yaml", home)
    for name, value in {**place.environment, "DAGSTER_HOME": str(home)}.items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.get() as instance:
        yield Project(place, instance)


def tick(
    schedule: dg.ScheduleDefinition, instance: dg.DagsterInstance, at: datetime | None = None
) -> tuple[list[dg.RunRequest], str]:
    """The runs that the schedule asks for at that moment, and why if none.

    The context opens an instance of its own: left to the garbage collector, it would hand Dagster's global
    storage back to an instance that is long dead, in the middle of another test.
    """
    with dg.build_schedule_context(instance=instance, scheduled_execution_time=at or datetime.now(UTC)) as context:
        told = schedule.evaluate_tick(context)
    return list(told.run_requests or []), told.skip_message or ""


def why(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    """Step -> what its failure says."""
    failures = [event for event in result.all_events if event.is_step_failure]
    told = [(str(event.step_key), event.step_failure_data) for event in failures]
    return {
        step: str(data.user_failure_data.description if data.user_failure_data else data.error) for step, data in told
    }


def listings(place: Place) -> Counter[tuple[str, str]]:
    """(account, path) -> requests of first pages, for lists of an account."""
    first = [request for request in place.sandbox.requests if request.query.get("offset", "0") == "0"]
    names = ("meetings", "action-items", "calendar/events")
    return Counter(
        (str(request.account), name) for request in first for name in names if request.path.endswith(f"/user/{name}")
    )


def test_nothing_that_the_policy_hides_is_in_any_file_of_dagsters(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in (("PRIVACY", "strict"), ("HASH_SALT", SALT), ("OPTIONAL_STREAMS", "participants,agenda_items")):
        monkeypatch.setenv(f"CONTIO_{name}", value)
    hide_something_everywhere(project.place.world)
    change_everything(project.place.world)
    project.run("full_sync")  # which fails: too many rows are broken
    for name in parts():
        assert project.latest(name)["preview"].records, name
    files = [path for path in (tmp_path / "dagster").rglob("*") if path.is_file()]
    assert len(files) > 3
    assert [path for path in files if MARK.encode() in path.read_bytes()] == []
    monkeypatch.setenv("CONTIO_PRIVACY", "standard")
    project.run("full_sync")
    assert [
        path for path in files if path.exists() and MARK.encode() in path.read_bytes()
    ]  # so looking finds what is there


# What is defined --------------------------------------------------------------------------------------------------------


def test_there_is_an_asset_for_each_stream_and_the_graph_says_what_comes_from_what() -> None:
    graph = defs().resolve_asset_graph()
    parents = {
        node.key.to_user_string(): {key.to_user_string() for key in node.parent_keys} for node in graph.asset_nodes
    }
    assert parents == {
        **{stream.name: {stream.parent} if stream.parent else set() for stream in LISTED},
        "document_contents": {"context_documents"},
        "published": set(TABLES),
    }
    for node in graph.asset_nodes:
        assert (node.group_name, node.owners, node.kinds) == ("contio", ["team:data"], {"duckdb", "parquet"})
        assert node.tags["source"] == "contio"
        assert node.description
        assert node.pools == {"contio_warehouse"}
        assert node.is_partitioned == (node.key.to_user_string() in {stream.name for stream in LISTED})
        assert node.backfill_policy == dg.BackfillPolicy.single_run()
    for stream in LISTED:
        schema = graph.get(dg.AssetKey(stream.name)).metadata["dagster/column_schema"]
        assert [column.name for column in schema.columns] == [column.name for column in stream.table.columns]
        assert all(column.description for column in schema.columns)


def test_loading_it_touches_neither_network_nor_data(tmp_path: Path) -> None:
    code = """
import socket
def refuse(*_): raise SystemExit("the network was used")
socket.socket.connect = refuse
from dagster_project.definitions import defs
defs().resolve_all_job_defs()
"""
    place = {"CONTIO_DATA_DIR": str(tmp_path / "data"), "CONTIO_STATE_DIR": str(tmp_path / "state")}
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **place}, cwd=tmp_path, check=True)
    assert list(tmp_path.iterdir()) == []


def test_the_workspace_and_dg_name_the_same_code() -> None:
    [entry] = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["dg"]["project"]
    assert entry["python_module"] == {
        "module_name": project["code_location_target_module"],
        "location_name": project["code_location_name"],
    }


@pytest.mark.parametrize(
    "command",
    [["dg", "check", "defs"], ["dagster", "definitions", "validate", "--workspace", "workspace.yaml"]],
    ids=["dg check defs", "dagster definitions validate"],
)
def test_dagsters_own_checks_pass(command: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "DAGSTER_HOME": str(tmp_path), "NO_COLOR": "1"}
    done = subprocess.run(
        [BIN / command[0], *command[1:]], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_new_declared_stream_is_an_asset_of_every_job(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    [items] = [stream for stream in LISTED if stream.name == "action_items"]
    monkeypatch.setattr(streams, "STREAMS", (*streams.STREAMS, replace(items, name="tasks")))
    result = project.run("full_sync")
    assert result.success
    assert project.latest("tasks")["rows"] == project.latest("action_items")["rows"] > 0
    result = project.run("window", DAYS)
    assert result.success, why(result)
    assert project.place.query("SELECT count(*) FROM raw.tasks") == project.place.query(
        "SELECT count(*) FROM raw.action_items"
    )


# Runs -------------------------------------------------------------------------------------------------------------------


def test_a_full_sync_makes_everything_equal_and_tells_each_asset_once(project: Project) -> None:
    result = project.run("full_sync")
    assert result.success, why(result)
    truth.check(project.place.world, project.place.settings, list(project.place.world.accounts))
    told = Counter(
        event.asset_key.to_user_string()
        for event in result.all_events
        if event.is_step_materialization and event.asset_key
    )
    assert told == dict.fromkeys((*TABLES, "published"), 1)
    evaluations = result.get_asset_check_evaluations()
    assert len(evaluations) == len(TABLES) + len(checks(LISTED))
    assert {check.check_name for check in evaluations if not check.passed} == {
        "no_new_fields"
    }  # the sandbox sends some
    for stream in LISTED:
        assert not project.instance.get_materialized_partitions(dg.AssetKey(stream.name))
    [(runs, parts_complete, requests)] = project.place.query(
        "SELECT count(*), bool_and(complete), sum(requests) FROM ops.runs WHERE finished_at IS NOT NULL"
    )
    assert (runs, parts_complete) == (1, True)
    assert requests == len([path for path in project.place.asked() if "/user/" in path])
    assert len(project.place.asked("/profile")) == len(project.place.world.accounts)


@pytest.mark.synced
def test_a_month_is_one_listing_for_each_account_and_stream(project: Project) -> None:
    world = project.place.world
    world.update("meetings", 3)
    project.place.sandbox.reset_log()
    result = project.run("window", MONTH)
    assert result.success, why(result)
    lists = ("meetings", "action-items", "calendar/events")
    assert listings(project.place) == {(account, name): 1 for account in world.accounts for name in lists}
    assert len(project.place.asked("/profile")) == len(world.accounts)
    month = {str(FIRST + timedelta(days=number)) for number in range(30)}
    for stream in LISTED:
        assert project.instance.get_materialized_partitions(dg.AssetKey(stream.name)) == month


def test_each_materialization_says_what_was_done(project: Project) -> None:
    project.run("full_sync")
    numbers = (
        "rows",
        "inserted",
        "updated",
        "deleted",
        "unchanged",
        "quarantined",
        "requests",
        "429s",
        "seconds",
        "bytes",
    )
    for name in TABLES:
        told = project.latest(name)
        assert all(isinstance(told[number], int | float) for number in numbers)
        assert told["inserted"] == told["rows"] == told["dagster/row_count"] > 0
        assert told["window"] == "everything"
        assert Path(told["files"]).is_dir()
        assert [record.data["account"] for record in told["accounts"].records] == ["ana", "bo", "cem"]
        assert sum(record.data["rows"] for record in told["accounts"].records) == told["rows"]
        assert len(told["preview"].records) == 5
        assert all(column.description for column in told["dagster/column_schema"].columns)
    published = project.latest("published")
    assert published["files"] > 10
    assert published["bytes"] > 100_000
    assert (Path(published["folder"]) / "contio.duckdb").is_file()
    assert published["dashboard"] == str(Path(published["folder"]) / "dashboard.html")
    assert Path(published["dashboard"]).is_file()

    project.run("window", DAYS)
    told = project.latest("meetings")
    assert told["window"] == "2026-10-27 to 2026-10-30, the end not included"
    assert told["unchanged"] == told["rows"]
    assert {"preview", "accounts", "dagster/column_schema"} <= told.keys()
    [(last_day,)] = project.place.query(
        "SELECT count(*) FROM raw.meetings WHERE _deleted_at IS NULL AND start_time::DATE = DATE '2026-10-29'"
    )
    assert told["dagster/partition_row_count"] == last_day > 0


@pytest.mark.parametrize(
    ("start", "end"),
    [("2026-11-18", "2026-11-10"), ("2026-11-18", "2028-01-01")],
    ids=["reversed", "past the last day"],
)
def test_a_range_that_is_none_fails_before_anything_is_asked(project: Project, start: str, end: str) -> None:
    tags = {"dagster/asset_partition_range_start": start, "dagster/asset_partition_range_end": end}
    result = project.run("window", tags)
    assert not result.success
    assert f"{start} to {end} is no range of days" in why(result)["meetings"]
    assert project.place.asked() == []
    assert not project.instance.get_materialized_partitions(dg.AssetKey("meetings"))


def test_a_window_without_days_says_how_to_choose_some(project: Project) -> None:
    result = project.run("window")
    assert "choose days" in why(result)["meetings"]
    assert project.place.asked() == []


def test_dagster_itself_refuses_days_before_the_first(project: Project) -> None:
    with pytest.raises(Exception, match="2023-12-31 is before the partitions definition start"):
        project.run("window", {**MONTH, "dagster/asset_partition_range_start": "2023-12-31"})
    assert project.place.asked() == []


def test_a_runs_configuration_selects_accounts(project: Project) -> None:
    result = project.run("full_sync", resources={"accounts": ["bo"]})
    assert result.success
    assert project.place.query("SELECT DISTINCT _account FROM raw.meetings") == [("bo",)]
    result = project.run("full_sync", resources={"accounts": ["nobody"]})
    assert "there is no account 'nobody' (known: ana, bo, cem)" in why(result)["full_meetings"]


@pytest.mark.parametrize(("job", "tags"), [("full_sync", {}), ("window", DAYS)])
def test_a_broken_account_fails_the_run_after_the_good_ones_are_published(
    project: Project, job: str, tags: dict[str, str]
) -> None:
    project.place.sandbox.revoke("bo")
    result = project.run(job, tags)
    assert not result.success
    [(step, told)] = why(result).items()
    assert step in {"published", "full_publish"}
    assert told.count("contio-pipeline accounts add bo") == 1
    assert "profile, " in told
    assert len(project.place.asked("/oauth2/token")) == 1  # nobody asks again for the broken one
    assert project.place.query("SELECT DISTINCT _account FROM raw.meetings ORDER BY 1") == [("ana",), ("cem",)]
    assert project.latest("published")["not_complete"] == len(TABLES) + 1  # the profile
    complete = {
        check.asset_key.to_user_string(): check
        for check in result.get_asset_check_evaluations()
        if check.check_name == "complete"
    }
    assert complete.keys() == set(TABLES)
    assert not any(check.passed for check in complete.values())
    assert "bo: the refresh token" in str(complete["meetings"].description)
    assert project.place.look_for_secrets(Path(project.instance.root_directory).parent) > 20
    events = project.instance.all_logs(result.run_id)
    assert not [secret for secret in project.place.secrets if secret in repr(events)]


def test_what_an_unpublished_run_left_incomplete_fails_the_run_that_publishes_it(project: Project) -> None:
    project.place.sandbox.revoke("bo")
    window = defs().resolve_job_def("window")
    alone = window.get_subset(asset_selection={dg.AssetKey("meetings")})
    result = alone.execute_in_process(instance=project.instance, tags=DAYS, run_config=QUIET, raise_on_error=False)
    assert result.success  # its check says it; nothing is published yet
    assert not next(check for check in result.get_asset_check_evaluations() if check.check_name == "complete").passed
    result = project.run("documents", resources={"accounts": ["ana", "cem"]})
    assert "bo: the refresh token" in why(result)["published"]


def test_a_single_day_can_be_listed_too(project: Project) -> None:
    result = project.run("window", {"dagster/partition": "2026-10-28"})
    assert result.success, why(result)
    assert project.latest("meetings")["window"] == "2026-10-28 to 2026-10-29, the end not included"
    assert project.place.query("SELECT window_start::DATE::VARCHAR, window_end::DATE::VARCHAR FROM ops.runs") == [
        ("2026-10-28", "2026-10-29")
    ]


def test_long_work_is_told_of_now_and_then(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "_A_MINUTE", 0)
    monkeypatch.setenv("CONTIO_RATE_LIMIT", "10")
    monkeypatch.setenv("CONTIO_RATE_WINDOW_SECONDS", "1")
    result = project.run("full_sync", resources={"accounts": ["ana"]})
    told = {record.user_message for record in project.instance.all_logs(result.run_id)}
    assert any(re.fullmatch("ana context_documents: [0-9]+ of [0-9]+", text) for text in told)
    assert any(re.search(r": waiting for the request budget \([0-9]+ s\)$", text) for text in told), told


def test_a_sync_from_the_command_line_is_waited_for(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "_BUSY_SECONDS", 0.2)
    holding = [Warehouse(project.place.settings.data_dir, origin=None)]

    def let_go(_self: object, message: str, *_: object) -> None:
        assert "another contio-pipeline" in message
        if holding:
            holding.pop().close()

    monkeypatch.setattr(dg.DagsterLogManager, "warning", let_go)
    result = project.run("documents")
    assert result.success
    assert [event.step_key for event in result.all_events if event.is_step_up_for_retry] == ["document_contents"]


def test_a_full_disk_or_a_bad_setting_says_what_to_do(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONTIO_CLIENT_SECRET")
    assert "CONTIO_CLIENT_SECRET must be set" in why(project.run("documents"))["document_contents"]
    monkeypatch.setenv("CONTIO_CLIENT_SECRET", "x")
    monkeypatch.setenv("CONTIO_DATA_DIR", "/proc/nowhere")
    assert "set CONTIO_DATA_DIR" in why(project.run("documents"))["document_contents"]


# Checks and alerts ------------------------------------------------------------------------------------------------------


@pytest.mark.synced
@pytest.mark.parametrize(("job", "tags"), [("full_sync", {}), ("window", DAYS)])
def test_a_table_that_contradicts_itself_stops_the_run_before_anything_is_published(
    project: Project, job: str, tags: dict[str, str]
) -> None:
    place = project.place
    before = current(place.settings.data_dir).name
    with Warehouse(place.settings.data_dir, origin=None) as warehouse, warehouse.transaction() as connection:
        connection.execute("INSERT INTO raw.action_items SELECT * FROM raw.action_items ORDER BY id LIMIT 1")
    result = project.run(job, tags)
    assert not result.success
    assert current(place.settings.data_dir).name == before
    [check] = [
        check
        for check in result.get_asset_check_evaluations()
        if not check.passed and check.check_name == "keys_unique"
    ]
    assert check.asset_key == dg.AssetKey("action_items")
    assert "1 ids stand more than once" in str(check.description)
    done = {str(event.step_key) for event in result.all_events if event.is_step_success}
    assert not done & {"published", "full_publish"}


class Telling:
    """The sensors that tell, with a cursor each, as the daemon keeps it."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._since = str(datetime.now(UTC).isoformat())
        self._watched: str | None = None
        self._told: set[str] = set()

    def __call__(self) -> None:
        """What the daemon does now and then."""
        instance = self._project.instance
        failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE])
        for record in reversed(instance.get_run_records(failed)):
            run = record.dagster_run
            if run.run_id not in self._told:
                self._told.add(run.run_id)
                [ended] = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE).records
                event = ended.event_log_entry.get_dagster_event()
                context = dg.build_run_status_sensor_context(
                    "run_failures", dagster_event=event, dagster_instance=instance, dagster_run=run
                )
                run_failures(dg.DefaultSensorStatus.RUNNING)(context.for_run_failure())
        with dg.build_sensor_context(instance=instance, cursor=self._since) as seen:
            self._since = check_failures(dg.DefaultSensorStatus.RUNNING).evaluate_tick(seen).cursor or self._since

    def watch(self) -> list[dg.AssetCheckEvaluation]:
        with dg.build_sensor_context(instance=self._project.instance, cursor=self._watched) as context:
            told = watch(dg.DefaultSensorStatus.RUNNING).evaluate_tick(context)
        self._watched = told.cursor
        return [event for event in told.asset_events if isinstance(event, dg.AssetCheckEvaluation)]


@pytest.fixture
def telling(project: Project, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Telling:
    monkeypatch.setenv("CONTIO_ALERT_URL", receiver.url)
    return Telling(project)


NIGHT = {"night": True, "digest": True}


def alarms(receiver: Receiver) -> list[str]:
    """What was told of trouble; the digests and the sandbox's new fields left out."""
    return [
        text
        for text in receiver.texts
        if text.startswith(":warning: contio-pipeline\n") and "kept in _extra" not in text
    ]


@pytest.mark.synced
def test_revoked_consent_and_a_refused_mass_deletion_raise_one_alert_each_and_the_others_are_fresh(
    project: Project, receiver: Receiver, telling: Telling, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, world = project.place, project.place.world
    monkeypatch.setenv("CONTIO_LOSS_COUNT", "2")
    place.sandbox.revoke("bo")
    for row in world.items("cem", "meetings"):
        world.hide("cem", meeting_ids=[row["id"]])
    world.update("meetings", 5)
    for _night in range(3):
        assert not project.run("window", DAYS, NIGHT).success
        telling()
    told = sorted(alarms(receiver), key=len)
    assert len(told) == 2, told
    assert "bo: the refresh token of account 'bo' is no longer accepted" in "".join(told)
    assert "cem: the listing lacks" in "".join(told)
    truth.check(world, place.settings, ["ana"])
    assert len([text for text in receiver.texts if "1 of 3 accounts are complete" in text]) == 3
    assert not [secret for secret in place.secrets for body in receiver.bodies if secret.encode() in body]

    for row in world.items("ana", "meetings"):
        world.unhide("cem", meeting_ids=[row["id"]])
    TokenStore(place.settings.state_dir).write("bo", Tokens(place.sandbox.login("bo")))
    assert project.run("window", DAYS, NIGHT).success
    telling()
    assert len(alarms(receiver)) == 2
    assert "3 of 3 accounts are complete" in receiver.texts[-1]
    place.sandbox.revoke("bo")
    place.sandbox.expire_access_tokens()
    project.run("window", DAYS, NIGHT)
    telling()
    assert len(alarms(receiver)) == 3  # it was over, and came back


@pytest.mark.synced
def test_three_failed_nights_raise_one_alert(project: Project, receiver: Receiver, telling: Telling) -> None:
    place = project.place
    place.sandbox.faults = [Fault(status=503, times=10_000)]
    for _night in range(3):
        assert not project.run("window", DAYS, NIGHT).success
        telling()
    [told] = alarms(receiver)
    assert "• ana, bo, cem: " in told
    assert "503" in told


@pytest.mark.synced
def test_runs_that_cannot_even_begin_raise_one_alert_until_they_do(
    project: Project, receiver: Receiver, telling: Telling, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.delenv("CONTIO_CLIENT_SECRET")
        for _night in range(3):
            assert not project.run("documents").success
            telling()
    [told] = alarms(receiver)
    assert told == (
        ":warning: contio-pipeline\n• the job documents: CONTIO_CLIENT_SECRET must be set (in the environment or in .env): the "
        "partner application's credentials from Contio's developer settings"
    )
    assert project.run("documents").success
    telling()
    assert Alerts(load_settings()).open_problems() == [] or "kept in _extra" in str(
        Alerts(load_settings()).open_problems()
    )


def test_data_that_grow_old_between_runs_are_told_once_and_shown_on_the_asset(
    project: Project, receiver: Receiver, telling: Telling
) -> None:
    assert telling.watch() == []  # nothing is published yet
    project.place.sync()
    assert telling.watch() == []
    wind_back(project.place, 4, "bo")
    changed = telling.watch()
    assert {(event.asset_key.to_user_string(), event.check_name, event.passed) for event in changed} == {
        (name, "fresh", False) for name in TABLES
    }
    assert telling.watch() == []
    [told] = receiver.texts
    assert told.count("bo: it is not known to be complete since") == 1
    project.place.sync(night=True)
    assert {event.passed for event in telling.watch()} == {True}
    wind_back(project.place, 4, "bo")
    telling.watch()
    assert len(receiver.texts) == 2


@pytest.mark.synced
def test_old_runs_are_deleted_with_their_events(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    old, young = project.run("documents").run_id, project.run("documents").run_id
    created = project.instance.get_run_record_by_id(young)
    assert created
    monkeypatch.setattr(
        sensors_module, "datetime", Mock(now=lambda _zone: created.create_timestamp + timedelta(days=180))
    )
    assert delete_old_runs(project.instance, load_settings()) == 1
    assert [record.dagster_run.run_id for record in project.instance.get_run_records()] == [young]
    assert project.instance.all_logs(old) == []
    assert project.instance.all_logs(young)


# Schedules --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "at", "start", "end"),
    [
        ("UTC", datetime(2026, 11, 24, 2, 15, tzinfo=UTC), "2026-11-17", "2026-12-24"),
        (
            "Asia/Tokyo",
            datetime(2026, 11, 23, 17, 15, tzinfo=UTC),
            "2026-11-16",
            "2026-12-23",
        ),  # 2:15 on the 24th there
        ("UTC", datetime(2024, 1, 3, 2, 15, tzinfo=UTC), "2024-01-01", "2024-02-02"),  # never before the first day
    ],
)
def test_a_night_is_one_range_of_utc_days_in_one_run(
    zone: str, at: datetime, start: str, end: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CONTIO_TIMEZONE", zone)
    schedule = nightly(load_settings())
    assert schedule.execution_timezone == zone
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        [request], _ = tick(schedule, instance, at)
    assert request.tags["dagster/asset_partition_range_start"] == start
    assert request.tags["dagster/asset_partition_range_end"] == end


def test_a_night_after_an_outage_lists_and_marks_what_was_missed(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, today = project.place, datetime.now(UTC).date()
    monkeypatch.setenv("CONTIO_NIGHTLY_FULL_REQUESTS", "0")
    place.sync(accounts=["ana", "bo"])
    wind_back(place, 10, "bo")
    place.world.insert("meetings", account="bo", start_time=f"{today - timedelta(days=12)}T10:00:00Z")
    [request], _ = tick(nightly(load_settings()), project.instance)
    result = project.run("window", request.tags, request.run_config["resources"]["contio"]["config"])
    assert result.success, why(result)
    truth.check(place.world, place.settings, list(place.world.accounts))
    marked = {str(today + timedelta(days=number)) for number in range(-16, 31)}
    assert project.instance.get_materialized_partitions(dg.AssetKey("meetings")) == marked
    told = {
        record.data["account"]: record.data["listed"] for record in project.latest("action_items")["accounts"].records
    }
    ahead = f"{today + timedelta(days=30)}, and what is not done"
    assert told == {
        "ana": f"{today - timedelta(days=7)} to {ahead}",
        "bo": f"{today - timedelta(days=16)} to {ahead}, catches up with 9 days",
        "cem": "everything: it was never listed completely",
    }


def test_a_night_does_not_queue_behind_one_that_has_not_begun(project: Project) -> None:
    job = defs().resolve_job_def("window")
    project.instance.create_run_for_job(job, status=dg.DagsterRunStatus.NOT_STARTED)
    asked, why_not = tick(nightly(load_settings()), project.instance)
    assert not asked
    assert "has not begun yet" in why_not


def test_runs_that_died_with_the_daemon_are_ended_unless_somebody_is_writing(project: Project) -> None:
    job, data = defs().resolve_job_def("window"), project.place.settings.data_dir
    run = project.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED).run_id
    with Warehouse(data, origin=None):
        assert end_dead_runs(project.instance, data) == 0
    assert end_dead_runs(project.instance, data) == 1
    ended = project.instance.get_run_by_id(run)
    assert ended
    assert ended.status == dg.DagsterRunStatus.FAILURE
    assert end_dead_runs(project.instance, data) == 0


def test_the_days_ahead_that_a_night_asks_for_exist() -> None:
    settings = load_settings()
    last = days(settings).get_last_partition_key()
    assert last == str(datetime.now(UTC).date() + timedelta(days=settings.lookahead_days))
    assert days(settings).get_first_partition_key() == "2024-01-01"


@pytest.mark.parametrize("chosen", ["relative", "/not/there"])
def test_a_dagster_home_that_is_none_is_refused(chosen: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DAGSTER_HOME", chosen)
    with pytest.raises(ConfigError, match="DAGSTER_HOME must be the absolute path of a folder"):
        dagster_home(tmp_path)


def test_a_port_that_is_taken_or_a_wrong_setting_ends_it_at_once(place: Place) -> None:
    taken = place.sandbox.api_url.rpartition(":")[2]
    command = [sys.executable, "-m", "dagster_project", "--port", taken]
    for environment, told in (
        ({}, f"the UI cannot listen on 127.0.0.1 port {taken} (Address already in use): choose another --port"),
        ({"CONTIO_TIMEZONE": "Mars/Base"}, "CONTIO_TIMEZONE must be an IANA time zone"),
        ({"CONTIO_DATA_DIR": "/proc/nowhere"}, "set CONTIO_DATA_DIR"),
    ):
        done = subprocess.run(
            command, env=place.environment | environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 2
        assert told in done.stderr


def test_schedules_run_when_the_switch_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for switch, status in (
        ("false", dg.DefaultScheduleStatus.STOPPED),
        ("true", dg.DefaultScheduleStatus.RUNNING),
    ):
        monkeypatch.setenv("CONTIO_SCHEDULES", switch)
        assert {nightly(load_settings()).default_status, weekly(load_settings()).default_status} == {status}
    assert (nightly(load_settings()).job_name, weekly(load_settings()).job_name) == ("window", "full_sync")


@pytest.mark.parametrize("name", ["NIGHTLY", "WEEKLY"])
def test_a_cron_that_only_dagster_sees_through_is_refused_by_its_variable(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"CONTIO_{name}_CRON", "0 2 * * MOO")
    with pytest.raises(ConfigError, match=f"CONTIO_{name}_CRON must be a cron expression"):
        (nightly if name == "NIGHTLY" else weekly)(load_settings())


# The real thing: UI and daemon --------------------------------------------------------------------------------------------


def processes(marker: str) -> list[str]:
    """Command lines of the processes whose environment holds the text."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


@pytest.mark.synced
def test_a_range_launched_over_graphql_and_a_backfill_are_one_run_each(up: Up) -> None:
    place = up.place
    place.world.update("meetings", 3)
    once = {
        (account, name): 1
        for account in place.world.accounts
        for name in ("meetings", "action-items", "calendar/events")
    }

    place.sandbox.reset_log()
    up.launch("window", MONTH)
    up.wait(1, "SUCCESS")
    assert listings(place) == once

    place.sandbox.reset_log()
    up.backfill([stream.name for stream in LISTED], [str(FIRST + timedelta(days=number)) for number in range(30)])
    up.wait(2, "SUCCESS")
    assert listings(place) == once

    up.launch("full_sync", {})
    up.wait(3, "SUCCESS")
    truth.check(place.world, place.settings, list(place.world.accounts))


def test_it_runs_once_and_sigterm_ends_everything_and_the_next_run_goes_on(up: Up) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "dagster_project"], env=up.place.environment, capture_output=True, text=True, check=False
    )
    assert second.returncode == 2
    assert (
        f"Dagster's webserver already runs on {up.place.settings.data_dir / 'dagster'} (process {up.process.pid})"
        in second.stderr
    )

    up.place.sandbox.latency = 1
    run = up.launch("full_sync", {})
    until = time.monotonic() + 60
    while not up.place.asked("/meetings"):
        assert time.monotonic() < until
        time.sleep(0.2)
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(20) == 0
    assert processes(str(up.place.settings.data_dir)) == []
    up.place.sandbox.latency = 0
    assert up.place.sync().complete
    home = up.place.settings.data_dir / "dagster"
    with dg.DagsterInstance.from_config(str(home)) as instance:
        stopped = instance.get_run_by_id(run)
        assert stopped is not None
        assert stopped.status == dg.DagsterRunStatus.FAILURE
    assert home.stat().st_mode & 0o777 == 0o700


def test_dg_launch_of_a_range_is_one_run(project: Project) -> None:
    place = project.place
    done = subprocess.run(
        [BIN / "dg", "launch", "--job", "window", "--partition-range", f"{FIRST}...{LAST}"],
        cwd=ROOT,
        env={**os.environ, **place.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(listings(place).values()) == {1}
    assert len(project.instance.get_run_records()) == 1
    assert json.dumps(place.world.client_secret) not in done.stdout + done.stderr
    assert re.search("ana meetings: [0-9]+ rows", done.stdout + done.stderr)
