"""What the documents promise exists, and what exists is documented."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import Place
from typer.main import get_command

from contio_pipeline.cli import app
from contio_pipeline.dictionary import dictionary
from contio_pipeline.generations import ask, current
from contio_pipeline.marts import MARTS
from contio_pipeline.sandbox.faults import NAMED
from contio_pipeline.sandbox.world import MISSING
from contio_pipeline.settings import Settings
from contio_pipeline.streams import STREAMS, tables

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_setting_is_in_the_readme_and_no_other() -> None:
    documented = set(re.findall(r"CONTIO_[A-Z_]+", README)) - {"CONTIO_ENV_FILE"}
    assert documented == {f"CONTIO_{name.upper()}" for name in Settings.names()}


def test_every_table_is_in_the_readme() -> None:
    for table in tables():
        name = re.sub(r"\w+(?=_(history|past)$)", "<stream>", table.full_name)
        assert f"`{name}`" in README, name


def test_every_mart_is_in_the_readme() -> None:
    for mart in MARTS:
        assert f"`{mart.full_name}`" in README, mart.name


def test_the_data_dictionary_is_what_the_declarations_say() -> None:
    stale = "docs/data-dictionary.md is stale: run make dictionary"
    assert (ROOT / "docs" / "data-dictionary.md").read_text(encoding="utf-8") == dictionary(), stale


def test_the_readme_names_the_month_field_of_each_stream() -> None:
    for stream in STREAMS:
        [line] = [line for line in README.splitlines() if line.startswith(f"| `{stream.table.full_name}` |")]
        assert line.endswith(f"`{stream.date_field}` |")


def test_every_command_is_in_the_readme_or_the_changelog() -> None:
    command = get_command(app)
    assert isinstance(command, typer.core.TyperGroup)
    documented = README + (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for name in command.commands:
        assert f"`{name}" in documented or f"contio-pipeline {name}" in documented, name


def test_every_link_between_documents_leads_somewhere() -> None:
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), (page.name, target)


def test_every_class_of_faults_names_tests_that_exist_and_every_fault_has_a_class() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    tests = {
        name
        for module in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^ *def (test_\w+)", module.read_text(encoding="utf-8"), re.MULTILINE)
    }
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith(("| what ", "|---"))]
    assert len(rows) > 40
    for row in rows:
        shown_by = row.rstrip(" |").rpartition("|")[2].split(",")
        assert {name.strip() for name in shown_by} <= tests, row
    assert set(NAMED) <= set(re.findall(r"`([\w-]+)`", page))


QUESTIONS = dict(
    re.findall(
        r"^-- ([^\n]+\?)\n(.+?);$",
        (ROOT / "docs" / "queries.sql").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
)
"""Question -> its SQL."""


def answers(place: Place, beginning: str) -> list[dict[str, Any]]:
    """What the one question that begins so is answered with."""
    [sql] = [sql for question, sql in QUESTIONS.items() if question.startswith(beginning)]
    answer = ask(current(place.settings.data_dir), sql)
    return [dict(zip(answer.names, row, strict=True)) for row in answer.rows]


def test_every_question_is_answered_and_most_with_something(new_place: Callable[..., Place]) -> None:
    place = new_place()
    place.overrides["optional_streams"] = "participants,agenda_items"
    place.sync()
    assert len(QUESTIONS) == (ROOT / "docs" / "queries.sql").read_text(encoding="utf-8").count(";\n") >= 20
    answered = {question: answers(place, question) for question in QUESTIONS}
    assert sum(map(bool, answered.values())) > len(answered) * 0.7, [q for q, rows in answered.items() if not rows]


def test_people_of_one_name_or_of_none_are_not_added_up(new_place: Callable[..., Place]) -> None:
    place = new_place(meetings=5)
    place.overrides["optional_streams"] = "participants"
    world = place.world
    [meeting] = world.insert("meetings")
    people = [
        ("x1@one.example", "Same"),
        ("x2@one.example", "Same"),
        ("y1@one.example", None),
        ("y2@one.example", None),
    ]
    for email, name in people:
        who = {"email": email, "name": name, "status": "accepted", "type": "required"}
        for minutes in (0, 30):  # two hours, of which one and a half are booked twice
            start = world.now - timedelta(minutes=300 - minutes)
            times = {"start_time": start.isoformat(), "end_time": (start + timedelta(hours=2)).isoformat()}
            world.insert("calendar_events", account="ana", attendees=[who], organizer=who, **times)
        world.insert("participants", meeting_id=meeting, email=email.upper(), name=name, is_attended=False)
    for number in (1, 2):
        user = {"assigned_to_user_id": f"user-{number}", "status": "accepted", "is_completed": False}
        world.insert("action_items", meeting_id=meeting, **user)
        world.insert("participants", meeting_id=meeting, name="Same user", user_id=f"user-{number}", email=MISSING)
    place.sync()
    ours = {"Same", "y1@one.example", "y2@one.example"}
    twice = answers(place, "Who is booked twice")
    assert sorted((row["person"], row["hours_double_booked"]) for row in twice if row["person"] in ours) == [
        ("Same", 1.5),
        ("Same", 1.5),
        ("y1@one.example", 1.5),
        ("y2@one.example", 1.5),
    ]
    missed = answers(place, "With CONTIO_OPTIONAL_STREAMS=participants")
    told = sorted((row["person"], row["meetings"], row["missed"]) for row in missed if row["person"] in ours)
    assert told == [("Same", 1, 1), ("Same", 1, 1), ("y1@one.example", 1, 1), ("y2@one.example", 1, 1)]
    assert [row["open"] for row in answers(place, "What is open") if row["person"] == "Same user"] == [1, 1]


def test_copies_of_an_event_are_asked_together_and_people_by_all_their_addresses(
    new_place: Callable[..., Place],
) -> None:
    place = new_place(meetings=0, accounts=2)
    place.overrides["optional_streams"] = "participants"
    world = place.world
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).replace(hour=10, minute=0, second=0, microsecond=0)
    kim = "00000000-0000-4000-8000-000000000001"
    [meeting] = world.insert("meetings", start_time=(tomorrow + timedelta(minutes=30)).isoformat())
    for address in ("kim@example.com", "kim@home.example"):
        world.insert("participants", meeting_id=meeting, user_id=kim, email=address, name="Kim")

    def copies(title: str, start: datetime, *of_accounts: tuple[list[str], dict[str, str]]) -> None:
        for account, (linked, answers_) in zip(("ana", "bo"), of_accounts, strict=True):
            world.insert(
                "calendar_events", account=account, title=title, organizer={"email": "guest@example.com"}, meeting_id=None,
                attendees=[{"email": who, "status": status} for who, status in answers_.items()], linked_meetings=linked,
                start_time=start.isoformat(), end_time=(start + timedelta(hours=1)).isoformat(),
            )  # fmt: skip

    both = {"kim@example.com": "accepted", "kim@home.example": "accepted"}
    copies("Linked in one", tomorrow, ([meeting], both), ([], both | {"guest@example.com": "accepted"}))
    copies("Lonely", tomorrow + timedelta(hours=2), ([], {"guest@example.com": "accepted"} | both), ([], both))
    declined = both | {"guest@example.com": "declined"}
    copies("Refused", tomorrow + timedelta(hours=4), ([], declined), ([], declined | {"guest@example.com": "accepted"}))
    later = (tomorrow + timedelta(hours=5)).isoformat()
    world.insert("calendar_events", account="ana", linked_meetings=[meeting], attendees=[], start_time=later)
    place.sync()
    without = answers(place, "Which events of the coming week")
    assert [(row["title"], row["copies"]) for row in without] == [("Lonely", 2), ("Refused", 2)]
    moved = answers(place, "Were meetings moved away")
    assert [(row["title"], row["meeting_starts_later_minutes"]) for row in moved] == [("Linked in one", 30)]
    met = answers(place, "Who meets whom most")
    assert [({row["one"], row["other"]}, row["events"]) for row in met] == [({"Kim", "guest@example.com"}, 2)]


def test_a_merged_meeting_has_its_agenda_and_what_is_completed_tomorrow_is_open(
    new_place: Callable[..., Place],
) -> None:
    place = new_place(meetings=0, accounts=2)
    place.overrides["optional_streams"] = "agenda_items"
    world = place.world
    [meeting, _] = (world.insert("meetings", title=title)[0] for title in ("Merged", "Bare"))
    world.insert("agenda_items", meeting_id=meeting)
    future = {"is_completed": True, "status": "completed", "completed_at": "2090-01-01T00:00:00Z"}
    world.insert("action_items", meeting_id=meeting, created_at="2026-01-01T00:00:00Z", **future)
    place.sync()
    world.merge(ids=[meeting])
    place.sync(streams=["meetings"])
    assert [row["title"] for row in answers(place, "With CONTIO_OPTIONAL_STREAMS=agenda_items")] == ["Bare"]
    daily = place.query("SELECT arg_max(open, day) FROM mart.action_item_daily")
    assert [(sum(row["open"] for row in answers(place, "What is open, by person")),)] == daily == [(1,)]


def test_documents_are_found_by_what_they_say(new_place: Callable[..., Place]) -> None:
    place = new_place(meetings=5)
    says, *_ = (
        place.world.insert("context_documents", title=title)[0] for title in ("Document 7", "Budgets", "Document 8")
    )
    place.world.rewrite_contents([says], body="Our BUDGET grows.")
    place.sync()
    found = {row["title"] for row in answers(place, "Which documents say something about the budget")}
    assert found == {"Document 7", "Budgets"}


@pytest.mark.synced
def test_whether_all_can_be_relied_on_shows_windows_that_are_not_complete(place: Place) -> None:
    assert {row["incomplete_windows"] for row in answers(place, "Can I rely on")} == {0}
