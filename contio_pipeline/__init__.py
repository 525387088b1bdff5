"""Sync the Contio Partner User API into DuckDB and Parquet that hold exactly what the API holds.

What lives here: the whole pipeline, usable from Python and from the command line. What never does: Dagster
(`dagster_project` wires this package, never the other way round).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

__version__ = "0.1.0"

os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # Arrow's own pools keep some tens of MB of what was freed
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # httpx's command line: a fifth of what a command imports

if TYPE_CHECKING:
    from contio_pipeline.generations import Current


def open_current(data_dir: str | os.PathLike[str] | None = None) -> Current:
    """What is published, for a process that lives long: its `connection` follows when something new is.

    Args:
        data_dir: where the pipeline publishes; by default `CONTIO_DATA_DIR`, or `data` in the working folder.

    Returns:
        See there; nothing is opened before it is asked for a connection.
    """
    from contio_pipeline.generations import Current  # noqa: PLC0415 - who imports the package alone waits for nothing
    from contio_pipeline.settings import load_settings  # noqa: PLC0415

    return Current(Path(data_dir) if data_dir is not None else load_settings().data_dir)
