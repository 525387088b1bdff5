"""The demo: a sandbox API on loopback, and the Dagster jobs that sync it into a folder of its own.

What lives here: how the two are put together, and the questions that the demo asks. What never does: printing, Dagster; its
jobs run in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

from contio_pipeline.auth import Tokens, TokenStore
from contio_pipeline.errors import ConfigError, ContioError
from contio_pipeline.generations import Generation, current
from contio_pipeline.sandbox.server import Sandbox
from contio_pipeline.sandbox.world import World
from contio_pipeline.settings import load_settings
from contio_pipeline.warehouse import Warehouse

QUESTIONS = {
    "Who had the fullest week from 26 October 2026 on?": """
        SELECT name, events, round(minutes / 60, 1) AS hours, round((minutes_booked - minutes) / 60, 1) AS hours_double_booked
        FROM mart.person_week JOIN mart.people ON people.id = person_id
        WHERE week_start = DATE '2026-10-26' ORDER BY hours DESC, name LIMIT 5""",
    "Which open action items were overdue the longest on 1 November 2026? (One item seen by three people counts once.)": """
        SELECT i.title AS action_item, due_date AS due, DATE '2026-11-01' - due_date AS days_overdue, m.title AS meeting,
            len(i.seen_by) AS seen_by
        FROM mart.action_items i LEFT JOIN mart.meetings m ON m.id = i.meeting_id
        WHERE closed_local_date IS NULL AND due_date < DATE '2026-11-01' ORDER BY due, i.id LIMIT 5""",
}

_BUDGET = 1_000_000
"""Requests in five minutes: the demo's server is ours, so nobody has to wait for it."""


_SUMMARY = {
    "What there is": """
        SELECT account, stream, rows, if(complete, 'yes', 'NO') AS complete FROM ops.windows
        WHERE window_start IS NULL AND stream <> 'profile' ORDER BY account, listed_at""",
    "What changed (the full sync, then a window of eight days)": """
        SELECT * FROM (SELECT started_at, window_start AS since, window_end AS until, inserted, updated, deleted, requests,
            if(complete, 'yes', 'NO') AS complete FROM ops.runs ORDER BY started_at DESC LIMIT 2) ORDER BY started_at""",
}

FIRST_DAY, LAST_DAY = date(2026, 10, 25), date(2026, 11, 1)
"""The window that is synced after the full sync, as a nightly run would."""


def run(folder: Path) -> tuple[Generation, dict[str, list[dict[str, Any]]]]:
    """Sync the demo's world into `folder`; its tokens and budget go to a folder beside it.

    The world and its date are the same at every run, so a second one finds nothing changed. Progress goes to standard error.

    Returns:
        What is published, and tables that say what was done: heading -> rows.

    Raises:
        ConfigError: the folder holds something else.
        ContioError: a job failed.
    """
    folder = folder.absolute()
    if folder.exists() and any(folder.iterdir()) and not (folder / "warehouse.duckdb").exists():
        raise ConfigError(f"{folder} holds something else than a demo: name another folder with --folder")
    world = World(seed=1)
    with Sandbox(world, rate_limit=_BUDGET) as sandbox:
        settings = load_settings(
            api_url=sandbox.api_url,
            token_url=sandbox.token_url,
            client_id=world.client_id,
            client_secret=world.client_secret,
            data_dir=folder,
            state_dir=folder.with_name(f"{folder.name}-state"),
            rate_limit=_BUDGET,
            calendar_start=date(2025, 10, 1),
            calendar_end=date(2027, 3, 1),
            documents="finished",
        )
        store = TokenStore(settings.state_dir)
        for account in world.accounts.values():
            store.write(account.name, Tokens(account.refresh_token))
        with Warehouse(folder, origin=None) as warehouse:
            warehouse.move_origin(sandbox.api_url)  # the sandbox has another port at every run
        environment = {key: value for key, value in os.environ.items() if key != "DAGSTER_HOME"}
        jobs = [sys.executable, "-m", "dagster_project.demo", FIRST_DAY.isoformat(), LAST_DAY.isoformat()]
        code = subprocess.run(jobs, env=environment | settings.as_environment(), check=False).returncode  # noqa: S603
    if code:
        raise ContioError(f"a job of the demo failed (exit code {code}): what it said is above")
    with Warehouse(folder, origin=None) as warehouse:  # a sync that changed nothing is not published at once
        return current(folder), {heading: warehouse.query(sql) for heading, sql in _SUMMARY.items()}
