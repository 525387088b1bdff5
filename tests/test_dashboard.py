"""The dashboard in a real browser: what it shows is what the marts hold, to everybody, and it asks nobody."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import duckdb
import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import Place, wind_back
from playwright.sync_api import Locator, Page

from contio_pipeline import dashboard
from contio_pipeline.generations import Generation, current
from contio_pipeline.publish import Terms, publish
from contio_pipeline.settings import Settings
from contio_pipeline.warehouse import Warehouse

ROOT = Path(__file__).parent.parent
NOW = datetime(2026, 11, 4, 22, tzinfo=UTC)
"""When the sandbox's year of meetings ends; in Berlin it is the same Wednesday."""
TODAY, THIS_WEEK = date(2026, 11, 4), date(2026, 11, 2)
SECTIONS = ("load", "people", "open", "ages", "done", "hygiene", "coverage", "linkage", "health")
AGES = {"up to 7 days": (0, 7), "8 to 30 days": (8, 30), "31 to 90 days": (31, 90), "over 90 days": (91, 99_999)}

Rows = list[tuple[Any, ...]]


@pytest.fixture
def year(new_place: Callable[..., Place]) -> Place:
    """A year of meetings of three accounts, synced."""
    place = new_place(meetings=300, synced=True)
    place.overrides["timezone"] = "Europe/Berlin"
    return place


def published(settings: Settings, now: datetime = NOW) -> Generation:
    with Warehouse(settings.data_dir, origin=None) as warehouse:
        return publish(warehouse, now, Terms.asked_for(settings), anew=True)[0]


def shown(page: Page, generation: Generation, **chosen: object) -> None:
    """Open the dashboard, with filters in its address, and wait until everything is drawn."""
    page.goto("about:blank")  # the same page with another end of its address would not be loaded again
    page.goto(f"{(generation.folder / dashboard.FILE).as_uri()}#{urlencode(chosen)}")
    drawn(page)


def drawn(page: Page) -> None:
    page.wait_for_selector("body[aria-busy=false]")


def number(text: str) -> Any:
    """What a cell or a label shows, as a number where it is one."""
    plain = text.replace(",", "")
    return None if text == "\N{EN DASH}" else float(plain) if re.fullmatch(r"-?[\d.]+", plain) else text


def table(page: Page, section: str) -> Rows:
    """The numbers below a chart, without the head."""
    cells = page.locator(f"#{section} details tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return [tuple(map(number, row)) for row in cells]


def labels(page: Page, section: str) -> dict[tuple[str, str], float]:
    """What the marks of a chart are called: (series or person, row) -> the value that they are drawn for."""
    told = page.locator(f"#{section} svg [role=graphics-symbol]").evaluate_all(
        "marks => marks.map(mark => mark.getAttribute('aria-label')).filter(label => !/^[XY]-axis/.test(label))"
    )
    matches = [re.fullmatch(r"(.+), (?:week of|for) (.+): ([\d.,]+)(?: .+)?", label) for label in told]
    assert all(matches), told
    return {(match[1], match[2]): number(match[3]) for match in matches if match}


# The numbers ----------------------------------------------------------------------------------------------------------


class Truth:
    """What the tables of the page must show, of the marts in the published file."""

    def __init__(self, generation: Generation, weeks: list[date], person: str | None, account: str | None) -> None:
        self.weeks, self.person, self.account = weeks, person, account
        self._connection = duckdb.connect(generation.database, read_only=True)
        self.items = [
            item
            for item in self._connection.sql("FROM mart.action_items").to_arrow_table().to_pylist()
            if item["created_local_date"]
            and (account is None or account in item["seen_by"])
            and person in {None, item["assigned_to_user_id"]}
        ]

    def by_week(self, sql: str, measures: int) -> Rows:
        """A row for each week: what the statement says of it, else zeros."""
        values = {"person": self.person, "account": self.account}
        used = {name: value for name, value in values.items() if f"${name}" in sql}
        told = {week: rest for week, *rest in self._connection.execute(sql, used).fetchall()}
        return [(str(week), *map(float, told.get(week, [0] * measures))) for week in self.weeks]

    def load(self) -> Rows:
        whose = self.person or (
            self._connection.execute("SELECT id FROM raw.accounts WHERE _account = ?", [self.account]).fetchall()[0][0]
            if self.account
            else None
        )
        self.whose = whose
        where = f"person_id = '{whose}'" if whose else "true"
        return self.by_week(
            f"""SELECT week_start, count(*), round(sum(minutes) / 60, 2), round(sum(minutes) / 60 / count(*), 2), sum(events)
                FROM mart.person_week WHERE {where} GROUP BY 1""",
            4,
        )

    def people(self) -> Rows:
        self.load()
        found = self._connection.execute(
            f"""SELECT name, week_start, minutes / 60 FROM mart.person_week JOIN mart.people ON id = person_id
                WHERE week_start IN (SELECT unnest(?)) AND {f"person_id = '{self.whose}'" if self.whose else "true"}""",
            [self.weeks],
        ).fetchall()
        names = {name for name, *_ in found}
        hours = {(name, week): spent for name, week, spent in found}
        return [
            (name, round(sum(hours.get((name, week), 0) for week in self.weeks), 2),
             *(round(hours.get((name, week), 0), 2) for week in self.weeks))
            for name in names
        ]  # fmt: skip

    def open(self) -> Rows:
        rows = []
        for week in self.weeks:
            day = min(week + timedelta(days=6), TODAY)
            left = [
                item for item in self.items
                if item["created_local_date"] <= day and not (item["closed_local_date"] and item["closed_local_date"] <= day)
            ]  # fmt: skip
            late = [item for item in left if item["due_date"] and item["due_date"] < day]
            aged = [item for item in left if (day - item["created_local_date"]).days > 30]
            rows.append((str(week), float(len(left)), float(len(late)), float(len(aged))))
        return rows

    def ages(self) -> Rows:
        rows = []
        for name, (least, most) in AGES.items():
            left = [
                item for item in self.items
                if not item["closed_local_date"] and least <= (TODAY - item["created_local_date"]).days <= most
            ]  # fmt: skip
            late = sum(bool(item["due_date"] and item["due_date"] < TODAY) for item in left)
            rows.append((name, float(late), float(len(left) - late)))
        return rows

    def done(self) -> Rows:
        def within(day: date | None, week: date) -> bool:
            return day is not None and week <= day <= min(week + timedelta(days=6), TODAY)

        return [
            (
                str(week),
                float(sum(within(item["created_local_date"], week) for item in self.items)),
                float(sum(within(item["closed_local_date"], week) and item["is_completed"] for item in self.items)),
            )
            for week in self.weeks
        ]

    def _of_meetings(self, mart: str, columns: str, measures: int) -> Rows:
        person = "AND m.created_by_user_id = $person" if self.person else ""
        account = "AND list_contains(m.seen_by, $account)" if self.account else ""
        return self.by_week(
            f"""SELECT date_trunc('week', m.local_date)::DATE, count(*), {columns}
                FROM mart.{mart} t JOIN mart.meetings m ON m.id = t.meeting_id WHERE true {person} {account} GROUP BY 1""",
            measures + 1,
        )

    def hygiene(self) -> Rows:
        rows = self._of_meetings("meeting_hygiene", "sum(has_notes::INT), sum((t.action_items > 0)::INT)", 2)
        return [(week, n, notes, share(notes, n), items, share(items, n)) for week, n, notes, items in rows]

    def coverage(self) -> Rows:
        rows = self._of_meetings("context_coverage", "sum(is_prepared::INT)", 1)
        return [(week, n, prepared, share(prepared, n)) for week, n, prepared in rows]

    def linkage(self) -> Rows:
        person = "AND list_contains((SELECT emails FROM mart.people WHERE id = $person), e.organizer_email)"
        account = "AND list_contains(e.seen_by, $account)" if self.account else ""
        return self.by_week(
            f"""SELECT date_trunc('week', e.local_date)::DATE, count(*) FILTER (link = 'linked'),
                    count(*) FILTER (link = 'unseen'), count(*) FILTER (link = 'none')
                FROM mart.calendar_linkage l JOIN mart.calendar_events e ON e.id = l.event_id
                WHERE true {person if self.person else ""} {account} GROUP BY 1""",
            3,
        )


def share(part: float, whole: float) -> float | None:
    return round(100 * part / whole, 1) if whole else None


CHOICES = [
    ("2026-08-10", None, None),
    ("2025-11-03", "Ana", None),
    ("2026-07-06", None, "bo"),
    ("2026-03-02", "Noa", "cem"),
]


@pytest.mark.browser
def test_every_chart_shows_the_numbers_of_its_mart(year: Place, new_page: Callable[..., Page]) -> None:
    generation = published(year.settings)
    page = new_page(generation.folder.as_uri())
    people = dict(year.query("SELECT name, id FROM mart.people WHERE name IS NOT NULL"))
    for since, name, account in CHOICES:
        first = date.fromisoformat(since)
        weeks = [first + timedelta(weeks=n) for n in range((THIS_WEEK - first).days // 7 + 1)]
        asked = {"from": since, "until": str(TODAY), "person": people.get(name or "", ""), "account": account or ""}
        shown(page, generation, **asked)
        truth = Truth(generation, weeks, people.get(name or ""), account)
        for section in SECTIONS[:-1]:
            found, wanted = table(page, section), getattr(truth, section)()
            if section == "people":
                found, wanted = sorted(found), sorted(wanted)
            anything = any(value for row in wanted for value in row[1:])
            assert found == (wanted if anything else []), (section, asked)
            check_drawn(page, section)
        if not name and not account:
            sql = "SELECT day::VARCHAR, open, overdue, open_over_30_days FROM mart.action_item_daily"
            daily = {day: (*map(float, values),) for day, *values in year.query(sql)}
            assert [row[1:] for row in table(page, "open")] == [
                daily[str(min(week + timedelta(days=6), TODAY))] for week in weeks
            ]
    assert {row[0] for row in table(page, "people")} == {"Noa"}


def check_drawn(page: Page, section: str) -> None:
    """Its marks are drawn for the numbers of its table, each one."""
    head = page.locator(f"#{section} details thead th").all_text_contents()
    cells = {(name, row[0]): row[place] for row in table(page, section) for place, name in enumerate(head)}
    if section == "people":
        wanted = {(row, week): value for (week, row), value in cells.items() if week[:2] == "20"}
    else:
        drawn_for = {"load": ["hours per person"]}.get(section, [name for name in head[1:] if f"{name}, %" in head])
        shares = {name: f"{name}, %" for name in drawn_for if f"{name}, %" in head}
        rows = [row for row, *_ in table(page, section)]
        wanted = {(name, row): cells[shares.get(name, name), row] for name in drawn_for or head[1:] for row in rows}
    assert labels(page, section) == {mark: value for mark, value in wanted.items() if value is not None}, section


@pytest.mark.browser
def test_marks_are_as_large_as_their_numbers(year: Place, new_page: Callable[..., Page]) -> None:
    generation = published(year.settings)
    page = new_page(generation.folder.as_uri())
    shown(page, generation, **{"from": "2026-03-02"})
    for section in ("load", "ages", "done", "coverage", "linkage"):
        marks = page.locator(f"#{section} svg .mark-rect path[aria-label]")
        sizes = marks.evaluate_all(
            f"marks => marks.map(mark => mark.getBBox().{'width' if section == 'ages' else 'height'})"
        )
        values = [number(label.rpartition(": ")[2].partition(" ")[0]) for label in told(marks)]
        assert len(values) > 3
        scale = sum(sizes) / sum(values)
        assert sizes == pytest.approx([scale * value for value in values], abs=0.5), section


def told(marks: Locator) -> list[str]:
    return [str(mark.get_attribute("aria-label")) for mark in marks.all()]


# Filters --------------------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_filters_work_by_keyboard_and_a_filtered_page_can_be_kept(year: Place, new_page: Callable[..., Page]) -> None:
    generation = published(year.settings)
    page = new_page(generation.folder.as_uri())
    shown(page, generation)
    chosen = page.locator("#chosen")
    assert chosen.text_content() == "Shown: 2026-08-10 to 2026-11-08, everyone, all accounts."
    whole = page.locator("#figure-open dd").text_content()

    for _ in range(4):
        page.keyboard.press("Tab")  # past the links and the period
    page.locator("#period").focus()
    page.keyboard.press("Home")
    page.keyboard.press("Tab")
    drawn(page)
    assert chosen.text_content() == "Shown: 2026-10-12 to 2026-11-08, everyone, all accounts."
    assert len(table(page, "done")) == 4
    page.locator("#person").focus()
    page.keyboard.type("Noa")
    page.keyboard.press("Tab")
    page.keyboard.type("bo")
    page.keyboard.press("Tab")
    drawn(page)
    assert chosen.text_content() == "Shown: 2026-10-12 to 2026-11-08, Noa, account bo."
    assert number(str(page.locator("#figure-open dd").text_content())) < number(str(whole))
    page.locator("#from").fill("2026-09-03")
    page.locator("#until").fill("2026-09-30")
    drawn(page)
    assert chosen.text_content() == "Shown: 2026-08-31 to 2026-10-04, Noa, account bo."
    assert page.locator("#period").evaluate("one => one.selectedOptions[0].text") == "the weeks of these days"
    page.locator("#from").focus()
    page.keyboard.type("09102026")  # each key makes a year of it: 2, 20, 202
    page.keyboard.press("Tab")
    drawn(page)
    assert chosen.text_content() == "Shown: 2026-09-07 to 2026-10-04, Noa, account bo."
    page.locator("#from").fill("2026-09-03")
    drawn(page)
    kept, numbers = page.url, [table(page, section) for section in SECTIONS[:-1]]

    page.get_by_role("button", name="Reset").press("Enter")
    drawn(page)
    assert chosen.text_content() == "Shown: 2026-08-10 to 2026-11-08, everyone, all accounts."
    assert page.locator("#figure-open dd").text_content() == whole
    page.goto("about:blank")
    page.goto(kept)
    drawn(page)
    assert [table(page, section) for section in SECTIONS[:-1]] == numbers
    page.locator("#told a").click()
    page.reload()
    drawn(page)
    assert chosen.text_content() == "Shown: 2026-08-31 to 2026-10-04, Noa, account bo."
    page.locator("#told a").click()
    assert page.locator("#health").evaluate("one => one.getBoundingClientRect().top < innerHeight")


@pytest.mark.browser
def test_what_is_asked_for_in_the_address_may_be_nonsense(year: Place, new_page: Callable[..., Page]) -> None:
    generation = published(year.settings)
    page = new_page(generation.folder.as_uri())
    unknown = " The person and the account that the address names cannot be chosen here."
    for asked, weeks in (
        ({"from": "x", "until": "2026-13-45", "person": "__proto__", "account": "-1"}, "2026-08-10 to 2026-11-08"),
        (
            {"from": "1999-01-01", "until": "2999-01-01", "person": "0", "account": "constructor"},
            "2025-11-03 to 2026-12-06",
        ),
    ):
        shown(page, generation, **asked)
        assert page.locator("#chosen").text_content() == f"Shown: {weeks}, everyone, all accounts.{unknown}"
    shown(page, generation, **{"from": "2026-10-05", "until": "2026-09-01"})
    assert page.locator("#chosen").text_content() == "Shown: 2026-10-05 to 2026-10-11, everyone, all accounts."
    shown(page, generation, period="4")
    assert page.locator("#chosen").text_content() == "Shown: 2026-10-12 to 2026-11-08, everyone, all accounts."
    assert page.url.endswith("#period=4")  # which moves on with what is published
    shown(page, generation)
    assert page.url.endswith(dashboard.FILE + "#")


# Everybody ------------------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_everybody_can_read_it_and_how_it_looks(year: Place, new_page: Callable[..., Page], tmp_path: Path) -> None:
    year.sandbox.revoke("cem")
    year.sandbox.expire_access_tokens()
    assert not year.sync().complete
    generation = published(year.settings)
    pictures = ROOT / os.environ.get("SCREENSHOTS", tmp_path)
    wide, phone = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
    looks = (("light", wide, "light"), ("dark", wide, "dark"), ("phone", phone, "light"), ("phone-dark", phone, "dark"))
    for name, size, scheme in looks:
        page = new_page(generation.folder.as_uri(), viewport=size, color_scheme=scheme)
        page.clock.set_fixed_time(NOW + timedelta(hours=9))
        shown(page, generation, **{"from": "2026-08-10"})
        for details in page.locator("details summary").all():
            details.click()
        violations = Axe().run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"], one["nodes"][0]["failureSummary"]) for one in violations] == []
        assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
        for details in page.locator("details summary").all():
            details.click()
        page.evaluate("scrollTo(0, 0)")
        if name != "phone-dark":
            page.screenshot(path=pictures / f"dashboard-{name}.png", full_page=name != "phone")
        edges = page.locator("svg .mark-text text").evaluate_all(
            "texts => texts.map(one => one.getBoundingClientRect()).map(box => [box.left, box.right])"
        )
        assert all(left >= 0 and right <= size["width"] for left, right in edges)


@pytest.mark.browser
def test_in_print_there_are_charts_and_no_filters(year: Place, new_page: Callable[..., Page]) -> None:
    generation = published(year.settings)
    page = new_page(generation.folder.as_uri(), color_scheme="dark")
    shown(page, generation)
    page.emulate_media(media="print")
    assert not page.locator("#filters").is_visible()
    assert page.locator("#chosen").is_visible()
    assert page.locator("#load svg").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    bar = page.locator("#load svg .mark-rect path").first
    assert bar.evaluate("one => getComputedStyle(one).fill") == "rgb(22, 96, 168)"
    assert page.pdf().count(b"/Type /Page\n") in range(2, 8)


# What nobody expects --------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_nothing_that_the_api_says_becomes_markup(place: Place, new_page: Callable[..., Page]) -> None:
    evil = """</script><img src=x onerror="document.title='taken'">'"`${1}{{charts}}\u2028"""
    attendee = {"email": "e@example.com", "name": evil, "type": "required", "status": "accepted"}
    for day in range(1, 4):
        place.world.insert(
            "calendar_events", attendees=[attendee], organizer={"email": "e@example.com", "name": evil},
            start_time=f"2026-11-0{day}T09:00:00Z", end_time=f"2026-11-0{day}T10:00:00Z",
        )  # fmt: skip
    place.sync()
    generation = published(place.settings)
    page = new_page(generation.folder.as_uri())
    shown(page, generation, person="e@example.com")
    assert page.title() == "Meetings: load, action items, hygiene"
    assert page.locator("img").count() == 0
    assert table(page, "people")[0][0] == evil
    page.locator("#people svg .mark-rect path").last.hover()
    assert page.locator("#vg-tooltip-element").text_content() == f"{evil}, week of 2026-11-02: 2 hours"
    assert page.title() == "Meetings: load, action items, hygiene"


@pytest.mark.browser
def test_what_the_policy_drops_is_said_not_shown_as_nothing(year: Place, new_page: Callable[..., Page]) -> None:
    year.overrides |= {
        "publish_policy": "calendar_events.attendees=drop,action_items.due_date=drop,meetings.summary_notes=drop,"
        "action_items.assigned_to_user_id=drop",
    }
    generation = published(year.settings)
    page = new_page(generation.folder.as_uri())
    shown(page, generation)
    for section in ("load", "people"):
        assert "Not shown: the publish policy hides" in page.locator(f"#{section}").inner_text()
    assert page.locator("#open details thead th").all_text_contents() == ["week of", "open", "open for over 30 days"]
    assert page.locator("#hygiene details thead th").all_text_contents() == [
        "week of", "meetings", "with action items", "with action items, %",
    ]  # fmt: skip
    assert page.locator("#figures dt").all_text_contents() == [
        "action items open on 2026-11-04", "meetings prepared so far", "events with their meeting",
    ]  # fmt: skip
    people = dict(year.query("SELECT name, id FROM mart.people WHERE name IS NOT NULL"))
    shown(page, generation, person=people["Cem"])
    for section in ("open", "ages", "done"):
        assert "Not shown: the publish policy hides" in page.locator(f"#{section}").inner_text()
    assert page.locator("#figure-open").count() == 0


@pytest.mark.browser
def test_where_nothing_is_known_it_says_so(new_place: Callable[..., Place], new_page: Callable[..., Page]) -> None:
    place = new_place(meetings=0, accounts=1)
    place.sync()
    generation = published(place.settings)
    page = new_page(generation.folder.as_uri())
    shown(page, generation)
    for section in SECTIONS[:-1]:
        assert "There is nothing to show." in page.locator(f"#{section}").inner_text(), section
    assert page.locator("#account option").all_text_contents() == ["all accounts"]


@pytest.mark.synced
def test_where_people_are_too_many_the_rest_is_in_the_sums(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = numbers(published(place.settings))
    monkeypatch.setattr(dashboard, "_BYTES", len(json.dumps(whole)) * 2 // 3)
    less = numbers(published(place.settings))
    assert 0 < len(less["people"]) < len(whole["people"])
    assert less["others"] + len(less["people"]) == len(whole["people"])
    for cube in ("meetings", "items", "ages", "events"):
        for measure in whole[cube]["measures"]:
            assert by_key(less[cube], measure) == by_key(whole[cube], measure), (cube, measure)
    for measure in ("minutes", "events", "people"):
        assert by_key(less["load"] | {"account": less["load"]["key"]}, measure) == by_key(
            whole["load"] | {"account": whole["load"]["key"]}, measure
        )


def test_people_of_one_name_are_told_apart_and_hashes_are_told_in_short(place: Place) -> None:
    for number in (1, 2):
        person = {"email": f"kim{number}@example.com", "name": "Kim", "type": "required", "status": "accepted"}
        place.world.insert(
            "calendar_events", attendees=[person], organizer={"email": "nobody@example.com", "name": ""},
            start_time=f"2026-11-0{number}T09:00:00Z", end_time=f"2026-11-0{number}T10:00:00Z",
        )  # fmt: skip
    place.sync()
    names = {one["name"] for one in numbers(published(place.settings))["people"]}
    assert names >= {"Ana", "Kim (kim1@example.com)", "Kim (kim2@example.com)", "nobody@example.com"}
    place.overrides |= {"privacy": "strict", "hash_salt": "0123456789abcdef0123456789abcdef"}
    names = {one["name"] for one in numbers(published(place.settings))["people"]}
    assert len(names) > 10
    assert all(re.fullmatch("person [0-9a-f]{8}", name) for name in names)


def numbers(generation: Generation) -> dict[str, Any]:
    """What the page's script reads."""
    page = (generation.folder / dashboard.FILE).read_text(encoding="utf-8")
    [found] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return dict(json.loads(found))


def by_key(cube: dict[str, Any], measure: str) -> Counter[tuple[Any, ...]]:
    sums: Counter[tuple[Any, ...]] = Counter()
    for account, key, value in zip(cube["account"], cube["key"], cube[measure], strict=True):
        sums[account, key] += value
    return sums


@pytest.mark.browser
def test_an_installation_without_charts_publishes_numbers_and_says_what_to_do(
    year: Place,
    new_page: Callable[..., Page],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    installed = Path(dashboard.__file__).parent
    for name in ("page.html", "page.js"):
        shutil.copy(installed / name, tmp_path)
    monkeypatch.setattr(dashboard, "files", lambda _package: tmp_path)
    generation = published(year.settings)
    assert "numbers and no charts, for this installation lacks them: run make install" in caplog.text
    page = new_page(generation.folder.as_uri())
    shown(page, generation)
    assert "The chart cannot be drawn" in page.locator("#load").inner_text()
    assert len(table(page, "load")) == 13


@pytest.mark.synced
def test_what_was_complete_long_ago_is_not_called_complete(place: Place) -> None:
    wind_back(place, 40, "bo")
    told = numbers(published(place.settings, datetime.now(UTC)))["health"]
    states = {account: {one["state"][:9] for one in told if one["account"] == account} for account in ("ana", "bo")}
    assert states == {"ana": {"complete"}, "bo": {"last comp"}}
    place.overrides["fresh_hours"] = 1000
    assert {one["state"] for one in numbers(published(place.settings, datetime.now(UTC)))["health"]} == {"complete"}


# The command ----------------------------------------------------------------------------------------------------------


@pytest.mark.synced
def test_the_command_opens_it_in_the_browser(place: Place, tmp_path: Path) -> None:
    published(place.settings)
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)
    command = [sys.executable, "-m", "contio_pipeline", "dashboard"]
    environment = place.environment | {"BROWSER": f"{browser} %s"}
    link = place.settings.data_dir / "current" / "dashboard.html"
    for options, told_to in (([], f"{link.as_uri()}\n"), (["--no-browser"], "")):
        opened.write_text("")
        done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == (f"{link}\n", "")
        assert opened.read_text() == told_to
    folder = current(place.settings.data_dir).folder
    folder.chmod(0o755)
    (folder / "dashboard.html").unlink()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "without a dashboard: run contio-pipeline publish" in done.stderr
