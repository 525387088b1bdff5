"""Sync the Contio Partner User API into DuckDB and Parquet that hold exactly what the API holds.

What lives here: the whole pipeline, usable from Python and from the command line. What never does: Dagster
(`dagster_project` wires this package, never the other way round).
"""

__version__ = "0.1.0"
