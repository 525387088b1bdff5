"""What the documents promise exists, and what exists is documented."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import typer
from conftest import Place
from typer.main import get_command

from contio_pipeline.cli import app
from contio_pipeline.dictionary import dictionary
from contio_pipeline.generations import ask, current
from contio_pipeline.marts import MARTS
from contio_pipeline.sandbox.faults import NAMED
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


def test_every_question_is_answered_and_most_with_something(new_place: Callable[..., Place]) -> None:
    place = new_place()
    place.overrides["optional_streams"] = "participants,agenda_items"
    place.sync()
    text = (ROOT / "docs" / "queries.sql").read_text(encoding="utf-8")
    questions = re.findall(r"^-- ([^\n]+\?)\n(.+?);$", text, re.MULTILINE | re.DOTALL)
    assert len(questions) == text.count(";\n") >= 20
    generation = current(place.settings.data_dir)
    answered = {question: list(ask(generation, sql).rows) for question, sql in questions}
    assert sum(map(bool, answered.values())) > len(answered) * 0.7, [q for q, rows in answered.items() if not rows]
