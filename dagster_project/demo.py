"""`python -m dagster_project.demo FIRST LAST`: the full sync, then a window of days, in this process; for the demo.

What lives here: running the jobs as they are, and a short line for each account and stream. The accounts, the server and
the folder come from the settings.
"""

from __future__ import annotations

import logging
import sys
from datetime import date
from typing import Any

import dagster as dg

from contio_pipeline.settings import load_settings
from dagster_project.definitions import defs
from dagster_project.home import dagster_home
from dagster_project.partitions import range_tags


class _Short(logging.Formatter):
    """What was said, without when, where and by whom."""

    def format(self, record: logging.LogRecord) -> str:
        """The step's own words, or the event's."""
        told: dict[str, Any] = getattr(record, "dagster_meta", {})
        return str(told.get("orig_message") or record.getMessage())


@dg.logger
def short_console(_context: dg.InitLoggerContext) -> logging.Logger:
    """A line on standard error for what steps say, and for errors."""
    logger = logging.getLogger("dagster_project.demo")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(_Short())
    logger.handlers[:] = [handler]
    return logger


def main(first: str, last: str) -> int:
    """Run both jobs; returns the exit code."""
    dagster_home(load_settings().data_dir)
    project = dg.Definitions.merge(defs(), dg.Definitions(loggers={"console": short_console}))
    days = range_tags(date.fromisoformat(first), date.fromisoformat(last))
    with dg.DagsterInstance.get() as instance:
        for job, what, tags in (("full_sync", "everything", {}), ("window", f"{first} to {last}", days)):
            print(f"Dagster runs the job {job} ({what}) …", file=sys.stderr)
            result = project.resolve_job_def(job).execute_in_process(
                run_config={"loggers": {"console": {}}}, instance=instance, tags=tags, raise_on_error=False
            )
            if not result.success:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
