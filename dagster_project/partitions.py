"""Days in UTC, and the window that a run's days are.

What lives here: the one partitions definition, and the guards against ranges that Dagster lets pass. What never does: time
zones; those belong to the schedules.
"""

from __future__ import annotations

from datetime import date, timedelta

import dagster as dg

from contio_pipeline.settings import Settings, midnight
from contio_pipeline.warehouse import Window


def days(settings: Settings) -> dg.DailyPartitionsDefinition:
    """A partition per UTC day, from the first day that was set to the last that a nightly run looks ahead to.

    Calendar events lie in the future, so today and the days ahead are partitions too.
    """
    return dg.DailyPartitionsDefinition(
        start_date=midnight(settings.first_day), timezone="UTC", end_offset=1 + settings.lookahead_days
    )


def range_tags(first: date, last: date) -> dict[str, str]:
    """What makes one run of a range of days, both ends included."""
    return {"dagster/asset_partition_range_start": str(first), "dagster/asset_partition_range_end": str(last)}


def window_of(keys: dg.PartitionKeyRange, partitions: dg.DailyPartitionsDefinition) -> Window:
    """The half-open window of a range of days; the whole range is listed at once.

    Raises:
        dagster.Failure: the range runs backwards or leaves the partitions. Dagster starts such a run, and marks other days
            than were asked for.
    """
    first, last = partitions.get_first_partition_key(), partitions.get_last_partition_key()
    if not (first and last and first <= keys.start <= keys.end <= last):
        raise dg.Failure(
            f"{keys.start} to {keys.end} is no range of days from {first} to {last}: give the earlier day first, and days that "
            "exist (CONTIO_FIRST_DAY and CONTIO_LOOKAHEAD_DAYS say which)",
            allow_retries=False,
        )
    end = date.fromisoformat(keys.end) + timedelta(days=1)
    return Window(midnight(date.fromisoformat(keys.start)), midnight(end))
