"""When: a window every night, everything once a week."""

from __future__ import annotations

from datetime import UTC, timedelta
from typing import Any

import dagster as dg

from contio_pipeline.errors import ConfigError
from contio_pipeline.night import days_of_a_night
from contio_pipeline.settings import Settings, load_settings
from contio_pipeline.sync import published_windows
from dagster_project.partitions import range_tags


@dg.definitions
def schedules() -> dg.Definitions:
    """Both schedules, in the time zone that is set."""
    settings = load_settings()
    return dg.Definitions(schedules=[nightly(settings), weekly(settings)])


def nightly(settings: Settings) -> dg.ScheduleDefinition:
    """Days back and days ahead, as one range in one run; back to what is not complete.

    After an outage only the latest tick that was missed runs: it is the one whose range still matters. The range names the
    days that are marked; of each account is listed what it needs (`contio_pipeline.night`).
    """

    def request(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        night = days_of_a_night(settings, published_windows(settings), context.scheduled_execution_time.astimezone(UTC))
        assert night.start  # noqa: S101 - it has both ends
        assert night.end  # noqa: S101
        tags = range_tags(night.start.date(), night.end.date() - timedelta(days=1))
        if context.instance.get_runs_count(dg.RunsFilter(job_name="window", statuses=_NOT_BEGUN)):
            return dg.SkipReason("the night before has not begun yet, and will do this one's work too")
        return dg.RunRequest(tags=tags, run_config=_configured(night=True, digest=True))

    return _schedule(
        "nightly",
        "CONTIO_NIGHTLY_CRON",
        settings,
        cron_schedule=settings.nightly_cron,
        job_name="window",
        description=f"The last {settings.lookback_days} days, today, and the next {settings.lookahead_days}, in one run; back to "
        "what is not complete. Accounts for which it is cheap are listed whole.",
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
        run_config=_configured(digest=True),
        description="Everything, whatever its date.",
    )


_NOT_BEGUN = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED]


def _configured(**contio: bool) -> dict[str, Any]:
    """A run's configuration; its log holds what happened, not each of Dagster's own events."""
    return {"resources": {"contio": {"config": contio}}, "loggers": {"console": {"config": {"log_level": "INFO"}}}}


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
