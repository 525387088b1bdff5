"""The demo: a sandbox API on loopback, and the Dagster jobs that sync it into a folder of its own.

What lives here: how the two are put together, what happens in the demo's world meanwhile, and the questions that the demo asks.
What never does: printing, Dagster; its jobs run in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from contio_pipeline.auth import Tokens, TokenStore
from contio_pipeline.errors import ConfigError, ContioError
from contio_pipeline.folders import private_file
from contio_pipeline.generations import Generation, current
from contio_pipeline.sandbox.faults import FOR_EVER, MEETINGS, Fault, Query
from contio_pipeline.sandbox.generate import SENTENCES, stamp
from contio_pipeline.sandbox.server import Sandbox
from contio_pipeline.sandbox.world import MISSING, World
from contio_pipeline.settings import load_settings, midnight
from contio_pipeline.warehouse import Warehouse


@dataclass(frozen=True, slots=True)
class Demo:
    """What the demo has to show.

    Attributes:
        generation: what is published.
        tables: what was done: heading -> rows.
        questions: what can be asked: question -> SQL.
        day: of the first run, on which its world stands still.
    """

    generation: Generation
    tables: dict[str, list[dict[str, Any]]]
    questions: dict[str, str]
    day: date


def _questions(day: date) -> dict[str, str]:
    monday = day - timedelta(days=day.weekday())
    return {
        f"Who has the fullest week from {_said(monday)} on?": f"""
            SELECT coalesce(name, email, id) AS person, events, round(minutes / 60, 1) AS hours,
                round((minutes_booked - minutes) / 60, 1) AS hours_double_booked
            FROM mart.person_week JOIN mart.people ON people.id = person_id
            WHERE week_start = DATE '{monday}' ORDER BY hours DESC, person LIMIT 5""",
        f"Which open action items were overdue the longest on {_said(day)}? (One item seen by three people counts once.)": f"""
            SELECT i.title AS action_item, due_date AS due, DATE '{day}' - due_date AS days_overdue, m.title AS meeting,
                len(i.seen_by) AS seen_by
            FROM mart.action_items i LEFT JOIN mart.meetings m ON m.id = i.meeting_id
            WHERE closed_local_date IS NULL AND due_date < DATE '{day}' ORDER BY due, i.id LIMIT 5""",
    }


def _said(day: date) -> str:
    return f"{day.day} {day:%B %Y}"


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

_WINDOW = timedelta(days=7)
"""From this long before the day to the day itself is synced after the full sync, as a nightly run would."""

_BACK, _AHEAD = timedelta(days=400), timedelta(days=120)
"""The calendar range: more than the world fills."""


def run(folder: Path) -> Demo:
    """Sync the demo's world into `folder`; its tokens and budget go to a folder beside it.

    The world stands still on the day of the first run, so another one finds nothing changed. Progress goes to standard error.

    Raises:
        ConfigError: the folder holds something else.
        ContioError: a job failed.
    """
    folder = folder.absolute()
    if folder.exists() and any(folder.iterdir()) and not (folder / "warehouse.duckdb").exists():
        raise ConfigError(f"{folder} holds something else than a demo: name another folder with --folder")
    state = folder.with_name(f"{folder.name}-state")
    day = _day(folder, state)
    world = World(seed=1, now=midnight(day))
    fresh = _add_fresh(world)
    goes_on = _GoesOn(world, fresh)
    if (folder / "current").exists():
        goes_on.now()
    with Sandbox(world, rate_limit=_BUDGET) as sandbox:
        sandbox.faults = [Fault(MEETINGS, times=FOR_EVER, query=goes_on.when_asked)]
        settings = load_settings(
            api_url=sandbox.api_url,
            token_url=sandbox.token_url,
            client_id=world.client_id,
            client_secret=world.client_secret,
            data_dir=folder,
            state_dir=state,
            rate_limit=_BUDGET,
            calendar_start=day - _BACK,
            calendar_end=day + _AHEAD,
            documents="finished",
            optional_streams="participants",
        )
        store = TokenStore(settings.state_dir)
        for account in world.accounts.values():
            store.write(account.name, Tokens(account.refresh_token))
        with Warehouse(folder, origin=None) as warehouse:
            warehouse.move_origin(sandbox.api_url)  # the sandbox has another port at every run
        environment = {key: value for key, value in os.environ.items() if key != "DAGSTER_HOME"}
        jobs = [sys.executable, "-m", "dagster_project.demo", str(day - _WINDOW), str(day)]
        code = subprocess.run(jobs, env=environment | settings.as_environment(), check=False).returncode  # noqa: S603
    if code:
        raise ContioError(f"a job of the demo failed (exit code {code}): what it said is above")
    with Warehouse(folder, origin=None) as warehouse:  # a sync that changed nothing is not published at once
        tables = {heading: warehouse.query(sql) for heading, sql in _SUMMARY.items()}
        return Demo(current(folder), tables, _questions(day), day)


def _day(folder: Path, state: Path) -> date:
    """The day of the first run into the folder; today where nothing tells it, and everything then moves there."""
    file = state / "day"
    if (folder / "warehouse.duckdb").exists():
        with suppress(FileNotFoundError, ValueError):
            return date.fromisoformat(file.read_text(encoding="utf-8").strip())
    day = datetime.now(UTC).date()
    private_file(file, f"{day}\n")
    return day


# What happens in the demo's world ----------------------------------------------------------------------------------------

_MINUTES_TO_NOTES = (4, 9, 17, 26, 45, 85)


def _add_fresh(world: World) -> list[str]:
    """Meetings of each of the last days, of which nobody wrote notes yet, and what was read before one of them."""
    fresh = []
    for days in range(1, len(_MINUTES_TO_NOTES) + 2):
        start = world.now - timedelta(days=days) + timedelta(hours=9)
        fresh += world.insert(
            "meetings",
            title="Budget of next year",
            start_time=stamp(start),
            end_time=stamp(start + timedelta(minutes=30)),
            status="completed",
            summary_notes=MISSING,
            created_at=stamp(start - timedelta(days=2)),
            updated_at=stamp(start),
        )
    [document] = world.insert("context_documents", meeting_id=fresh[0], title="Figures", source_format="md")
    world.rewrite_contents([document], body="# Figures\n\nThe budget of next year grows by four percent.\n")
    return fresh


@dataclass
class _GoesOn:
    """What happens between the full sync and the window: notes are written, a meeting is renamed and moved, one is deleted."""

    world: World
    fresh: list[str]
    happened: bool = False

    def when_asked(self, query: Query) -> Query:
        """It happens when a window is asked for."""
        if "start_date" in query:
            self.now()
        return query

    def now(self) -> None:
        """It happens once."""
        with self.world.lock:
            if self.happened:
                return
            self.happened = True
            *noted, gone = self.fresh
            for number, (meeting, minutes) in enumerate(zip(noted, _MINUTES_TO_NOTES, strict=True), 1):
                end = self.world.now - timedelta(days=number) + timedelta(hours=9, minutes=30)
                written = stamp(end + timedelta(minutes=minutes))
                notes = " ".join(SENTENCES[: 1 + number % len(SENTENCES)])
                self.world.update("meetings", ids=[meeting], summary_notes=notes, updated_at=written)
            start = self.world.now - timedelta(days=1) + timedelta(hours=14)
            self.world.update(
                "meetings",
                ids=noted[:1],
                title="Budget of next year (moved)",
                start_time=stamp(start),
                end_time=stamp(start + timedelta(minutes=30)),
            )
            self.world.delete("meetings", ids=[gone])
