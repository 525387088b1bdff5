"""The demo: a sandbox API on loopback, a full sync of its accounts into a folder of its own.

What lives here: how the two are put together, and the questions that the demo asks. What never does: printing.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path

from contio_pipeline.auth import Tokens, TokenStore
from contio_pipeline.errors import ConfigError
from contio_pipeline.sandbox.server import Sandbox
from contio_pipeline.sandbox.world import World
from contio_pipeline.settings import load_settings
from contio_pipeline.sync import sync
from contio_pipeline.warehouse import Warehouse
from contio_pipeline.work import Listener, SyncReport

QUESTIONS = {
    "Of each person's meetings, how many have ended, and how many of those have no notes?": """
        SELECT a.display_name AS person, count(*) AS meetings,
            count(*) FILTER (m.status IN ('ended', 'completed')) AS ended,
            count(*) FILTER (m.status IN ('ended', 'completed') AND coalesce(m.summary_notes, '') = '') AS without_notes
        FROM raw.meetings m JOIN raw.accounts a USING (_account)
        WHERE m._deleted_at IS NULL GROUP BY 1 ORDER BY 1""",
    "Which open action items were overdue the longest on 1 November 2026? (One item seen by three people counts once.)": """
        SELECT any_value(i.title) AS action_item, min(i.due_date) AS due, DATE '2026-11-01' - min(i.due_date) AS days_overdue,
            any_value(m.title) AS meeting
        FROM raw.action_items i LEFT JOIN raw.meetings m ON m._account = i._account AND m.id = i.meeting_id
        WHERE i._deleted_at IS NULL AND NOT i.is_completed AND i.due_date < DATE '2026-11-01'
        GROUP BY i.id ORDER BY due LIMIT 5""",
}

_BUDGET = 1_000_000
"""Requests in five minutes: the demo's server is ours, so nobody has to wait for it."""


def run(folder: Path, listener: Listener) -> SyncReport:
    """Sync the demo's world into `folder`; its tokens and budget go to a folder beside it.

    The world and its date are the same at every run, so a second one finds nothing changed.
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
        return sync(settings, accounts=list(world.accounts), listener=listener)
