"""Sync the Contio Partner User API into DuckDB and Parquet that hold exactly what the API holds.

What lives here: the whole pipeline, usable from Python and from the command line. What never does: Dagster
(`dagster_project` wires this package, never the other way round).
"""

import os
import sys

__version__ = "0.1.0"

os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # Arrow's own pools keep some tens of MB of what was freed
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # httpx's command line: a fifth of what a command imports
