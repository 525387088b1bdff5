"""What happens between runs: people are told what went wrong, staleness is noticed, old runs are deleted."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from contio_pipeline import streams
from contio_pipeline.alerts import Alerts, told_of
from contio_pipeline.errors import StorageError
from contio_pipeline.health import PUBLISHED, Problem, checks
from contio_pipeline.settings import Settings, load_settings
from contio_pipeline.sync import published_case
from dagster_project.resource import PROBLEMS, TOLD_BY_CHECKS, evaluation_of, result_of

_OFTEN, _NOW_AND_THEN, _SELDOM = 20, 900, 6 * 3600
_AT_ONCE = 25
_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_BETWEEN_RUNS = ("fresh", "consents_last", "room_on_disk")
"""Checks whose answer changes although nothing runs: or because nothing does."""


@dg.definitions
def sensors() -> dg.Definitions:
    """All sensors; those that tell are on where there is somebody to tell."""
    settings = load_settings()
    told = dg.DefaultSensorStatus.RUNNING if settings.alert_url else dg.DefaultSensorStatus.STOPPED
    always = dg.DefaultSensorStatus.RUNNING if settings.schedules else dg.DefaultSensorStatus.STOPPED
    return dg.Definitions(sensors=[run_failures(told), check_failures(told), watch(always), housekeeping(always)])


def run_failures(status: dg.DefaultSensorStatus) -> dg.SensorDefinition:
    """Tell of runs that could not do their work; what they found incomplete, `check_failures` tells."""

    @dg.run_failure_sensor(
        name="run_failures",
        description="Posts to CONTIO_ALERT_URL when a run could not do its work, once until it succeeds.",
        minimum_interval_seconds=_OFTEN,
        default_status=status,
    )
    def sensor(context: dg.RunFailureSensorContext) -> None:
        failures = [event.step_failure_data for event in context.get_step_failure_events()]
        texts = [] if failures else [_ended_how(context.failure_event.message or "")]
        for failure in failures:
            user = failure.user_failure_data
            if not user or TOLD_BY_CHECKS not in user.metadata:
                error = failure.error_display_string.strip().splitlines()
                texts.append((user and user.description) or _ended_how(error[0] if error else ""))
        texts = [text for text in texts if text]
        job = context.dagster_run.job_name
        problems = [Problem(text, f"the job {job}") for text in dict.fromkeys(texts)]
        Alerts(load_settings()).update({_source(job): problems})

    return sensor


def _ended_how(text: str) -> str:
    """What Dagster says of a run that did not end by itself, for a person; nothing where somebody stopped it."""
    if "Interrupted" in text:
        return ""
    if not text or "from outside the execution context" in text:
        return f"the run's {KILLED}"
    return text


KILLED = "process was killed (power, memory, kill -9): what it committed stays, the next night goes on"


def check_failures(status: dg.DefaultSensorStatus) -> dg.SensorDefinition:
    """Tell of what the checks of ended runs found, once until they pass."""

    @dg.sensor(
        name="check_failures",
        description="Posts to CONTIO_ALERT_URL what the checks of a run found, once until they pass.",
        minimum_interval_seconds=_OFTEN,
        default_status=status,
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        since = datetime.fromisoformat(context.cursor) if context.cursor else datetime.now(UTC)
        ended = context.instance.get_run_records(
            filters=dg.RunsFilter(statuses=_ENDED, updated_after=since),
            order_by="update_timestamp",
            ascending=True,
            limit=_AT_ONCE,
        )
        settings = load_settings()
        alerts = Alerts(settings)
        for record in ended:
            run = record.dagster_run
            seen = _seen_by(context.instance, run.run_id)
            if run.status == dg.DagsterRunStatus.SUCCESS:
                seen[_source(run.job_name)] = []
            config = _config(run)
            alerts.update(seen, whole=not config.get("accounts"))
            if config.get("digest") and settings.digest:
                alerts.tell(_digest(context.instance, record, alerts))
            since = max(since, record.update_timestamp.replace(tzinfo=UTC))
        return dg.SensorResult(cursor=since.isoformat())

    return sensor


def _seen_by(instance: dg.DagsterInstance, run_id: str) -> dict[str, list[Problem]]:
    """Check -> the problems that the run's last evaluation of it found."""
    found: dict[str, list[Problem]] = {}
    events = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION).records
    for event in events:
        evaluation: Any = event.event_log_entry.get_dagster_event().event_specific_data
        told: Any = evaluation.metadata.get(PROBLEMS)
        rows = told.value if told else []
        if not evaluation.passed and not rows:
            rows = [{"what": evaluation.description or "the check failed"}]
        name = f"{evaluation.asset_key.to_user_string()} {evaluation.check_name}"
        found[name] = [Problem(**row) for row in rows]
    return found


def _config(run: dg.DagsterRun) -> dict[str, Any]:
    """How the run's resource was configured."""
    resources: Any = run.run_config.get("resources", {})
    config: dict[str, Any] = resources.get("contio", {}).get("config", {})
    return config


def _digest(instance: dg.DagsterInstance, record: dg.RunRecord, alerts: Alerts) -> str:
    """What a night did, in a few lines."""
    open_still = [f"still open: {line.removeprefix('• ')}" for line in told_of(alerts.open_problems())[:_MOST_TOLD]]
    facts = _published_by(instance, record.dagster_run.run_id)
    if not facts:
        return "\n".join([":x: contio-pipeline: the night could not be published.", *open_still])
    minutes = ((record.end_time or 0) - (record.start_time or 0)) / 60
    mark = ":white_check_mark:" if facts["accounts"] == facts["accounts_complete"] else ":warning:"
    told = (
        f"{mark} contio-pipeline: {facts['accounts_complete']} of {facts['accounts']} accounts are complete. "
        f"{facts['inserted']:,} rows new, {facts['updated']:,} changed, {facts['deleted']:,} gone; "
        f"{facts['requests']:,} requests in {minutes:.0f} minutes."
    )
    return "\n".join([told, *open_still])


def _published_by(instance: dg.DagsterInstance, run_id: str) -> dict[str, Any]:
    """What the run said of its publication; nothing where it did not come to that."""
    events = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION).records
    for event in events:
        made = event.event_log_entry.asset_materialization
        if made and made.asset_key == dg.AssetKey(PUBLISHED):
            return {name: value.value for name, value in made.metadata.items()}
    return {}


_MOST_TOLD = 10


def _source(job: str) -> str:
    return f"the job {job}"


def watch(status: dg.DefaultSensorStatus) -> dg.SensorDefinition:
    """Look at what changes although nothing runs, and say so on the assets' pages and to people."""

    @dg.sensor(
        name="watch",
        description="Notices between runs that data grow old, that a consent is about to end, or that the disk fills.",
        minimum_interval_seconds=_NOW_AND_THEN,
        default_status=status,
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        settings = load_settings()
        try:
            case = published_case(settings)
        except StorageError as error:
            return dg.SensorResult(skip_reason=str(error), cursor=context.cursor)
        before: dict[str, list[str]] = json.loads(context.cursor or "{}")
        now: dict[str, list[str]] = {}
        seen: dict[str, list[Problem]] = {}
        events: list[dg.AssetCheckEvaluation] = []
        for check in checks(streams.STREAMS):
            if check.name in _BETWEEN_RUNS:
                name, found = f"{check.of} {check.name}", list(check.look(case))
                seen[name], now[name] = found, [str(problem) for problem in found]
                if before.get(name, []) != now[name]:
                    events.append(evaluation_of(result_of(check, found)))
        Alerts(settings).update(seen)
        return dg.SensorResult(asset_events=events, cursor=json.dumps(now))

    return sensor


def housekeeping(status: dg.DefaultSensorStatus) -> dg.SensorDefinition:
    """Delete old runs with their events and logs: Dagster keeps them for ever."""

    @dg.sensor(
        name="housekeeping",
        description="Deletes runs, their events and their logs after CONTIO_KEEP_RUNS_DAYS.",
        minimum_interval_seconds=_SELDOM,
        default_status=status,
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        return dg.SkipReason(f"{delete_old_runs(context.instance, load_settings())} runs deleted")

    return sensor


def delete_old_runs(instance: dg.DagsterInstance, settings: Settings) -> int:
    """Delete the runs that ended long ago; returns how many."""
    before = datetime.now(UTC) - timedelta(days=settings.keep_runs_days)
    old = instance.get_run_records(filters=dg.RunsFilter(statuses=_ENDED, created_before=before), limit=1000)
    for record in old:
        run_id = record.dagster_run.run_id
        instance.compute_log_manager.delete_logs(prefix=[run_id])
        instance.delete_run(run_id)
    return len(old)
