"""What the assets and ops are given."""

from __future__ import annotations

import dagster as dg

from dagster_project.resource import Contio


@dg.definitions
def resources() -> dg.Definitions:
    """The pipeline; a run's configuration may narrow its accounts. Steps run one after the other, in the run's process."""
    return dg.Definitions(resources={"contio": Contio()}, executor=dg.in_process_executor)
