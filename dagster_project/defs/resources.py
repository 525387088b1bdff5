"""What the assets and ops are given."""

from __future__ import annotations

import dagster as dg

from contio_pipeline.settings import load_settings
from dagster_project.resource import Contio


@dg.definitions
def resources() -> dg.Definitions:
    """The pipeline; a run's configuration may narrow its accounts. Steps run one after the other, in the run's process."""
    loggers = {"console": dg.json_console_logger} if load_settings().log_format == "json" else None
    return dg.Definitions(resources={"contio": Contio()}, executor=dg.in_process_executor, loggers=loggers)
