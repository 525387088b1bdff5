"""The pipeline as a Dagster project: schedules, partitions, backfills, and what the UI shows.

What lives here: wiring. Each asset calls `contio_pipeline` once and reports what came back. What never does: a rule about
the API, SQL, or a branch on a stream's name.
"""
