"""When: a window every night, everything once a week."""

from __future__ import annotations

from datetime import UTC, timedelta

import dagster as dg

from contio_pipeline.errors import ConfigError
from contio_pipeline.settings import Settings, load_settings
from dagster_project.partitions import range_tags


@dg.definitions
def schedules() -> dg.Definitions:
    """Both schedules, in the time zone that is set."""
    settings = load_settings()
    return dg.Definitions(schedules=[nightly(settings), weekly(settings)])


def nightly(settings: Settings) -> dg.ScheduleDefinition:
    """Days back and days ahead, as one range in one run.

    After an outage only the latest tick that was missed runs: it is the one whose range still matters.
    """

    def request(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        today = context.scheduled_execution_time.astimezone(UTC).date()
        start = max(today - timedelta(days=settings.lookback_days), settings.first_day)
        end = today + timedelta(days=settings.lookahead_days)
        return dg.RunRequest(tags=range_tags(start, end))

    return _schedule(
        "nightly",
        "CONTIO_NIGHTLY_CRON",
        settings,
        cron_schedule=settings.nightly_cron,
        job_name="window",
        description=f"The last {settings.lookback_days} days, today, and the next {settings.lookahead_days}, in one run.",
        execution_fn=request,
    )


def weekly(settings: Settings) -> dg.ScheduleDefinition:
    """Everything: what windows cannot see, such as rows that moved far or have no date."""
    return _schedule(
        "weekly",
        "CONTIO_WEEKLY_CRON",
        settings,
        cron_schedule=settings.weekly_cron,
        job_name="full_sync",
        description="Everything, whatever its date.",
    )


def _schedule(name: str, variable: str, settings: Settings, **arguments: object) -> dg.ScheduleDefinition:
    try:
        return dg.ScheduleDefinition(
            name=name,
            execution_timezone=settings.timezone,
            default_status=dg.DefaultScheduleStatus.RUNNING if settings.schedules else dg.DefaultScheduleStatus.STOPPED,
            **arguments,  # type: ignore[arg-type]
        )
    except dg.DagsterInvalidDefinitionError as error:
        raise ConfigError(f"{variable} must be a cron expression such as 15 2 * * *: {error}") from None
