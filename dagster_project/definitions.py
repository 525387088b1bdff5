"""What Dagster loads: everything below `defs/`."""

from __future__ import annotations

from pathlib import Path

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    """All assets, jobs, schedules and resources; reads the settings, and neither network nor warehouse."""
    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
