"""`python -m dagster_project.recover`: make Dagster's tables, and end the runs that died with the daemon before.

What lives here: what has to be true before the daemon starts. Run by `python -m dagster_project`, in a process of its own:
Dagster takes two seconds to import.
"""

from __future__ import annotations

import sys
from pathlib import Path

import dagster as dg

from contio_pipeline.workfile import writer

DIED = "its process ended together with the daemon (power, memory, kill -9): what it committed stays, the next night goes on"
_ALIVE = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def end_dead_runs(instance: dg.DagsterInstance, data_dir: Path) -> int:
    """Mark runs as failed that nobody works on any more, and free their places; returns how many.

    Dagster itself cannot tell: a run is only known to the code server that started it, and that died too. Where somebody writes
    to the data folder it may be such a run that is still alive: it will end by itself.
    """
    if writer(data_dir):
        return 0
    dead = instance.get_runs(dg.RunsFilter(statuses=_ALIVE))
    for run in dead:
        instance.report_run_failed(run, message=DIED)
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return len(dead)


def main(data_dir: str) -> None:
    """Touch every table once, then end what is dead."""
    with dg.DagsterInstance.get() as instance:
        instance.all_instigator_state()
        instance.event_log_storage.get_pool_limits()
        if ended := end_dead_runs(instance, Path(data_dir)):
            sys.stdout.write(f"{ended} runs had died with the daemon before: they are marked as failed.\n")


if __name__ == "__main__":
    main(sys.argv[1])
