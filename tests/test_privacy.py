"""The publish policy: of what is hidden no byte is published, what is shown stays right, and the warehouse stays whole."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from conftest import Place

from contio_pipeline.auth import TokenStore
from contio_pipeline.backup import backup, restore
from contio_pipeline.doctor import examine
from contio_pipeline.errors import ConfigError
from contio_pipeline.generations import current
from contio_pipeline.marts import MARTS, Mart
from contio_pipeline.privacy import Policy
from contio_pipeline.publish import Terms, publish
from contio_pipeline.sandbox.server import Fault, Sandbox
from contio_pipeline.sandbox.world import World
from contio_pipeline.settings import Settings, _publish_policy, load_settings
from contio_pipeline.streams import STREAMS, Column, Stream, Table, own_tables, tables
from contio_pipeline.warehouse import Warehouse
from contio_pipeline.workfile import SQL_TYPES

NewPlace = Callable[..., Place]
MARK = "geheim"
"""Is in every value that is to be hidden, and in nothing else."""

SALT = "a salt of the tests that has {braces} and 'quotes'"
STRICT = {"privacy": "strict", "hash_salt": SALT, "optional_streams": "participants,agenda_items"}


def secret(what: str, number: int) -> str:
    return f"{MARK} {what} {number} " + ("lang " * 1200 if number % 5 == 0 else "")  # long ones are stored as they are


def person(number: int) -> dict[str, Any]:
    return {
        "email": f"{MARK}{number}@Example.com",
        "name": secret("name", number),
        "user_id": f"{MARK}-user-{number}",
        "status": "accepted",
        "type": "required",
        "phone": secret("phone", number),
    }


def hide_something_everywhere(world: World) -> None:
    """Give every row values with the mark in all that the preset hides, and in a field that nobody knows."""
    for stream in STREAMS:
        texts = [c.name for c in stream.columns if c.holds in {"text", "notes", "private"} and c.kind == "text"]
        for number, identity in enumerate(list(world._rows[stream.name])):
            fields: dict[str, Any] = {name: secret(f"{stream.name}.{name}", number) for name in texts}
            fields |= {c.name: f"{MARK}-user-{number % 7}" for c in stream.columns if c.holds == "person"}
            fields |= {c.name: secret("name", number) for c in stream.columns if c.holds == "name"}
            for column in stream.columns:
                if column.kind == "json" and column.holds == "people":
                    fields[column.name] = [person(number % 7), person(number % 5 + 7), MARK]
                elif column.kind == "json" and column.holds:
                    fields[column.name] = {MARK: [MARK]}
            if "organizer" in fields:
                fields["organizer"] = person(number % 7)
            if "email" in fields:
                fields["email"] = f"{MARK}{number % 7}@example.com"
            world.update(stream.name, ids=[identity], **fields, unknown={"nested": [secret("unknown", number)]})
    for number, account in enumerate(world.accounts.values()):
        hidden = {
            "display_name": secret("profile", number),
            "email": f"{MARK}{number}@example.com",
            "workspace_name": MARK,
        }
        account.profile |= hidden | {"id": f"{MARK}-user-{number}", "unknown": MARK}


def change_everything(world: World) -> None:
    """Make a past, rows that are gone, and rows that are broken."""
    for stream in STREAMS:
        identities = list(world._rows[stream.name])
        for number, identity in enumerate(identities[:6]):
            world.update(stream.name, ids=[identity], unknown=secret("other", number))
        world.update(stream.name, ids=identities[6:7], created_at=secret("no time", 1), start_time=secret("no time", 2))
        world.delete(stream.name, ids=identities[7:9])


def texts_of(database: Path) -> Iterator[str]:
    """Every value of every table and view, and every comment, as text."""
    with duckdb.connect(database, read_only=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        names = "SELECT table_schema || '.' || table_name FROM information_schema.tables"
        for (name,) in connection.execute(names).fetchall():
            for row in connection.execute(f"SELECT t::VARCHAR FROM {name} t").fetchall():
                yield f"{name}: {row[0]}"
        for row in connection.execute("SELECT comment FROM duckdb_columns() WHERE comment IS NOT NULL").fetchall():
            yield str(row)


def published(data: Path, where: str = "generations") -> tuple[int, list[str]]:
    """How many texts and files were looked at below all that readers may open, and where the mark is."""
    count, found = 0, []
    for path in (data / where).resolve().rglob("*"):
        if path.is_file():
            count += 1
            if MARK.encode() in path.read_bytes():
                found.append(f"bytes of {path}")
            if path.suffix == ".parquet":
                found += [f"{path}: {row}" for row in pq.ParquetFile(path).read().to_pylist() if MARK in str(row)]
            if path.suffix == ".duckdb":
                texts = list(texts_of(path))
                count += len(texts)
                found += [text for text in texts if MARK in text]
    return count, found


def hide_and_sync(place: Place) -> Place:
    """Make it a place where all that a strict policy hides has the mark; synced twice, with a past, gone and broken rows."""
    place.overrides |= STRICT
    hide_something_everywhere(place.world)
    place.sync()
    place.world.merge(1)
    place.sync(streams=["meetings"])
    for document in place.world.items("ana", "context_documents"):
        place.world.rewrite_contents([document["id"]], body=secret("body", 5))
        place.world.update("context_documents", ids=[document["id"]], file_status="complete")
    change_everything(place.world)
    place.sync()
    return place


@pytest.fixture
def place(new_place: NewPlace) -> Place:
    """A small one: what is hidden is so among few rows too."""
    return new_place(meetings=8, accounts=1)


@pytest.fixture
def hidden(new_place: NewPlace) -> Place:
    """Such a place, to change."""
    return hide_and_sync(new_place(meetings=14, accounts=2))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Such a place, to look at only."""
    world = World(meetings=30, accounts=2)
    with Sandbox(world, rate_limit=1_000_000, oauth_limit=1_000_000) as sandbox:
        place = Place(world, sandbox, tmp_path_factory.mktemp("shown"))
        place.add_accounts(signed_in=True)
        yield hide_and_sync(place)


def test_no_published_byte_tells_anything_that_the_policy_hides(shown: Place) -> None:
    count, found = published(shown.settings.data_dir)
    assert count > 1000
    assert found == []


def test_the_private_warehouse_has_it_all(shown: Place) -> None:
    file = shown.settings.data_dir / "warehouse.duckdb"
    assert MARK.encode() in file.read_bytes()  # so that looking at bytes finds something where there is something
    held = "\n".join(texts_of(file))
    for stream in STREAMS:
        assert f"raw.{stream.name}_past: " in held
        for column in stream.columns:
            if column.holds in {"text", "notes"} and column.kind == "text":
                assert f"{MARK} {stream.name}.{column.name} 10" in held, column.name
    assert "quarantine: " in held
    assert f"{MARK} no time" in held
    assert f"{MARK} body 5" in held


def test_what_is_shown_is_the_same_as_where_nothing_is_hidden(hidden: Place) -> None:
    def rows(privacy: str) -> dict[str, list[Any]]:
        hidden.overrides["privacy"] = privacy
        with Warehouse(hidden.settings.data_dir, origin=None) as warehouse:
            publish(warehouse, datetime.now(UTC), Terms.asked_for(hidden.settings), anew=True)
        telling = {
            mart.full_name: [
                f"len({one.name})" if one.name == "emails" else one.name
                for one in mart.fields
                if one.name not in TOLD_LESS and (mart.name, one.name) not in TOLD_OTHERWISE
            ]
            for mart in MARTS
        }
        return {
            name: hidden.query(f"SELECT {', '.join(shown)} FROM {name} ORDER BY ALL") for name, shown in telling.items()
        }

    strict = rows("strict")
    assert all(strict.values())
    assert strict == rows("standard")
    assert sum(len(mart.fields) for mart in MARTS) - sum(len(found[0]) for found in strict.values()) == 35


TOLD_LESS = {
    "title", "summary_notes", "description", "location", "text", "name", "context_type", "source_name", "sha256",
    "created_by_user_id", "assigned_to_user_id", "user_id", "email", "organizer_email", "organizer_name", "person_id",
}  # fmt: skip
TOLD_OTHERWISE = {
    ("people", "id"), ("document_texts", "reason"), ("calendar_events", "occurrence"), ("calendar_linkage", "occurrence"),
}  # fmt: skip
"""Columns of marts that are hidden, or hashed, and what follows from it."""


def test_a_person_is_the_same_hash_wherever_they_are_named(shown: Place) -> None:
    people = dict(shown.query("SELECT user_id, email FROM mart.people WHERE user_id IS NOT NULL"))
    assert all(len(user) == 32 for user in people)
    joined = "SELECT count(*), count(p.id) FROM mart.action_items JOIN mart.people p ON p.id = assigned_to_user_id"
    [(rows, found)] = shown.query(joined)
    assert rows == found > 0
    written = "SELECT count(DISTINCT email) FROM mart.event_attendees WHERE email IS NOT NULL"
    assert shown.query(written) == [(12,)]  # however an address is written


def test_another_salt_makes_other_hashes_and_generations_that_hid_less_go_at_once(
    hidden: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hidden.query("SELECT email FROM raw.accounts ORDER BY 1")
    folder = hidden.settings.data_dir / "generations"
    hidden.overrides["hash_salt"] = "another salt that is long enough"
    hidden.sync()
    assert not set(before) & set(hidden.query("SELECT email FROM raw.accounts"))
    assert len(list(folder.iterdir())) == 1
    hidden.overrides["privacy"] = "standard"
    hidden.sync()
    assert published(hidden.settings.data_dir)[1]
    hidden.overrides["privacy"] = "strict"
    with monkeypatch.context() as killed:
        killed.setattr("contio_pipeline.publish._drop_of_other_policies", lambda *_: None)
        hidden.sync()
    assert published(hidden.settings.data_dir)[1]  # as where it was killed before they were gone
    hidden.sync()
    assert published(hidden.settings.data_dir)[1] == []
    assert "salt" not in (current(hidden.settings.data_dir).folder / "manifest.json").read_text()


def test_a_night_without_changes_links_the_files_of_the_generation_before_under_a_policy_too(hidden: Place) -> None:
    first = current(hidden.settings.data_dir).folder
    hidden.world.update("action_items", 1, unknown="new")
    hidden.sync()
    second = current(hidden.settings.data_dir).folder
    assert second != first
    files = [path.relative_to(first) for path in (first / "parquet/raw/meetings").glob("*/part.parquet")]
    assert files
    assert all((first / file).samefile(second / file) for file in files)


def test_single_columns_can_be_dropped_hashed_and_kept(new_place: NewPlace) -> None:
    place = new_place(meetings=20, accounts=1)
    place.overrides |= {
        "publish_policy": "meetings.title=drop, meetings.summary_notes=drop, calendar_events.attendees=drop, "
        "action_items.title=hash",
        "hash_salt": SALT,
    }
    place.sync()
    assert place.query("SELECT count(title), count(summary_notes), count(_extra), count(_hash) FROM raw.meetings") == [
        (0,) * 4
    ]
    assert place.query(
        "SELECT count(title) > 0, bool_and(len(title) = 32) FROM raw.action_items WHERE title <> ''"
    ) == [(True, True)]
    assert place.query("SELECT count(has_notes), count(*) > 0 FROM mart.meeting_hygiene") == [
        (0, True)
    ]  # nobody can tell
    assert place.query("SELECT count(*) FROM mart.event_attendees") == [(0,)]
    assert place.query("SELECT count(attendees), count(*) > 0 FROM mart.calendar_events") == [(0, True)]
    assert place.query("SELECT count(events), count(minutes) FROM mart.person_week") == [(0, 0)]
    days = "SELECT count(*) > 0 FROM mart.calendar_events WHERE is_all_day AND local_date IS NOT NULL"
    assert place.query(days) == [(True,)]  # their days are in _extra, which tells nothing else
    of_title = "schema_name = 'raw' AND table_name = 'meetings' AND column_name = 'title'"
    assert place.query(f"SELECT comment FROM duckdb_columns() WHERE {of_title}") == [("Title. Hidden: NULL.",)]
    hidden = json.loads((current(place.settings.data_dir).folder / "manifest.json").read_text())["policy"]["hidden"]
    assert hidden["meetings.title"] == "drop"


def test_private_talking_points_are_hidden_by_default_also_in_broken_rows_and_shown_when_asked_for(
    new_place: NewPlace,
) -> None:
    place = new_place(meetings=20, accounts=1)
    place.overrides["optional_streams"] = "agenda_items"
    place.world.insert("agenda_items", account="ana", talking_points=f"{MARK} points")
    place.world.insert("agenda_items", account="ana", talking_points=f"{MARK} points", title=5)
    place.sync()
    assert published(place.settings.data_dir)[1] == []
    assert place.query("SELECT reason, raw, row_key IS NOT NULL FROM raw.quarantine") == [
        ("title is a number, not a text", None, True)
    ]
    place.overrides["publish_policy"] = "agenda_items.talking_points=keep"
    place.sync()
    assert place.query(f"SELECT count(*) FROM raw.agenda_items WHERE talking_points = '{MARK} points'") == [(1,)]


def test_what_is_for_its_owner_alone_is_left_out_with_its_contents_and_shown_when_asked_for(place: Place) -> None:
    [alone] = place.world.insert(
        "context_documents", account="ana", access_level="just_me", title=f"{MARK} title", file_status="complete"
    )
    place.world.rewrite_contents([alone], body=f"{MARK} body")
    place.sync()
    assert published(place.settings.data_dir)[1] == []
    assert place.query(f"SELECT count(*) FROM raw.document_contents WHERE id = '{alone}'") == [(0,)]
    with Warehouse(place.settings.data_dir, origin=None) as warehouse:
        assert warehouse.query(f"SELECT count(*) AS n FROM raw.context_documents WHERE id = '{alone}'") != [{"n": 0}]
    place.overrides["publish_policy"] = "just_me=keep"
    place.sync()
    texts = place.query(f"SELECT title, text FROM mart.document_texts WHERE id = '{alone}'")
    assert texts == [(f"{MARK} title", f"{MARK} body")]


def test_a_policy_that_nobody_chose_hides_what_the_default_hides(settings: Settings) -> None:
    chosen = Policy.asked_for(replace(settings, privacy="standard", hash_salt=None))
    assert (Policy().actions, Policy().digest) == (chosen.actions, chosen.digest)
    assert Policy().action("agenda_items.talking_points") == "drop"
    assert SALT not in repr(Policy.asked_for(settings))


def test_a_document_that_becomes_private_leaves_every_file_and_comes_back(place: Place) -> None:
    [document] = place.world.insert("context_documents", account="ana", file_status="complete", title=f"{MARK} title")
    [twin] = place.world.insert("context_documents", account="ana", file_status="complete", title="twin")
    place.world.rewrite_contents([document], body=f"{MARK} body")
    place.world.rewrite_contents([twin], body=f"{MARK} body")
    text = f"SELECT text FROM mart.document_texts WHERE id = '{twin}'"
    place.sync()
    assert published(place.settings.data_dir)[1]
    updated = place.world.get("ana", "context_documents", document)["updated_at"]  # type: ignore[index]
    for access in ("just_me", "JUST_ME"):
        place.world.update("context_documents", ids=[document], access_level=access, updated_at=updated)
        place.sync()
        assert not [told for told in published(place.settings.data_dir, "current")[1] if f"{MARK} title" in told]
        assert place.query(text) == [(f"{MARK} body",)]  # it has the same bytes, and is nobody's secret
    place.world.delete("context_documents", ids=[twin])
    place.world.rewrite_contents([document], body=f"{MARK} other")
    place.sync(verify_documents=True)
    assert f"{MARK} other" not in str(published(place.settings.data_dir, "current")[1])
    place.world.update("context_documents", ids=[document], access_level="meeting", updated_at=updated)
    place.sync()
    folder = current(place.settings.data_dir).folder
    rows = [
        row
        for part in folder.glob("parquet/raw/document_texts/*/part.parquet")
        for row in pq.ParquetFile(part).read().to_pylist()
    ]
    assert any(row["text"] == f"{MARK} other" for row in rows)


def test_what_lies_below_a_meeting_of_its_owner_alone_is_left_out_too(new_place: NewPlace) -> None:
    place = new_place(meetings=10, accounts=1)
    place.overrides["optional_streams"] = "participants,agenda_items"
    [meeting] = place.world.insert("meetings", account="ana", access_level="just_me", title=MARK)
    for stream, fields in (
        ("context_documents", {"title": MARK, "file_status": "complete"}),
        ("participants", {"name": MARK, "email": f"{MARK}@example.com"}),
        ("agenda_items", {"title": MARK}),
    ):
        ids = place.world.insert(stream, account="ana", meeting_id=meeting, **fields)
        if stream == "context_documents":
            place.world.rewrite_contents(ids, body=MARK)
    assert place.sync().complete
    assert published(place.settings.data_dir)[1] == []


def test_of_a_broken_row_that_was_hidden_and_mended_no_byte_is_left(place: Place) -> None:
    [secret_one] = place.world.insert(
        "meetings", account="ana", access_level="just_me", title=f"{MARK} title", status={"a": 1}
    )
    place.sync()
    assert published(place.settings.data_dir)[1] == []
    place.world.update("meetings", ids=[secret_one], access_level="everyone", title="mended", status="completed")
    place.sync()
    assert place.query(f"SELECT title FROM raw.meetings WHERE id = '{secret_one}'") == [("mended",)]
    assert published(place.settings.data_dir)[1] == []
    place.world.update("meetings", ids=[secret_one], title="mended again")
    place.sync()
    assert published(place.settings.data_dir)[1] == []


def test_what_a_warehouse_of_before_may_have_left_behind_is_not_published(place: Place) -> None:
    file = place.settings.data_dir / "warehouse.duckdb"
    place.sync()
    with Warehouse(place.settings.data_dir, origin=None) as warehouse:
        warehouse.connection.execute(f"CREATE TABLE ops.gone AS SELECT '{MARK}' || range AS one FROM range(40000)")
        warehouse.connection.execute("CHECKPOINT")
        warehouse.connection.execute("DROP TABLE ops.gone")
        warehouse.connection.execute("DELETE FROM ops.meta WHERE key = 'nothing_left_behind'")
    assert MARK.encode() in file.read_bytes()
    place.world.update("meetings", 1, title="another")
    place.sync()
    assert published(place.settings.data_dir)[1] == []
    assert MARK.encode() not in file.read_bytes()


@pytest.mark.parametrize("known_before", [False, True])
def test_a_broken_row_that_is_for_its_owner_alone_takes_all_below_it_along(
    new_place: NewPlace, known_before: bool
) -> None:
    place = new_place(meetings=10, accounts=1)
    place.overrides["optional_streams"] = "participants,agenda_items"
    [meeting] = place.world.insert("meetings", account="ana", title=MARK)
    if known_before:
        place.sync()
        assert published(place.settings.data_dir)[1]
    place.world.update("meetings", ids=[meeting], access_level="just_me", status={"a": MARK})
    fill_below(place.world, meeting)
    for _ in range(2):
        place.sync()
        assert published(place.settings.data_dir, "current")[1] == []
    assert place.query("SELECT count(*) > 5 FROM raw.meetings") == [(True,)]


@pytest.mark.parametrize("known_before", [False, True])
def test_what_was_private_while_it_was_broken_stays_so_when_it_is_gone(new_place: NewPlace, known_before: bool) -> None:
    place = new_place(meetings=10, accounts=1)
    place.overrides["optional_streams"] = "participants,agenda_items"
    [meeting] = place.world.insert("meetings", account="ana", title="public")
    if known_before:
        place.sync()
    place.world.update("meetings", ids=[meeting], title=MARK, access_level="just_me", status={"a": MARK})
    fill_below(place.world, meeting)
    place.sync()
    place.world.delete("meetings", ids=[meeting])
    for _ in range(2):
        place.sync()
        assert published(place.settings.data_dir, "current")[1] == []
    place.overrides["publish_policy"] = "just_me=keep"
    place.sync()
    assert published(place.settings.data_dir, "current")[1]


def test_what_hangs_on_a_private_meeting_by_any_thread_is_left_out(new_place: NewPlace) -> None:
    place = new_place(meetings=10, accounts=2)
    world = place.world
    event, own = (world.insert("calendar_events", account="ana", title=title)[0] for title in (MARK, "own"))
    private = {"account": "ana", "access_level": "just_me", "title": MARK}
    [meeting] = world.insert("meetings", id='m\u00f6te "1"', calendar_event_id=event, **private)
    world.insert("action_items", account="bo", meeting_id=meeting, title=MARK)
    world.insert("calendar_events", account="bo", linked_meetings=[meeting], title=MARK)
    public = next(row["id"] for row in world.items("ana", "meetings") if row["id"] != meeting)
    world.insert("meetings", account="ana", title="own", related={"id": meeting, "title": MARK})
    world.insert("calendar_events", account="ana", title=MARK, location={}, note={"of": meeting})
    [document] = world.insert("context_documents", account="ana", meeting_id=public, title=MARK, file_status="complete")
    world.update("context_documents", ids=[document], meeting_id=meeting)  # listed below another
    place.sync()
    assert published(place.settings.data_dir)[1] == []
    assert place.query(f"SELECT title FROM raw.calendar_events WHERE id = '{own}'") == [("own",)]
    assert place.query("SELECT title FROM raw.meetings WHERE title = 'own'") == [("own",)]


def test_what_names_a_meeting_that_was_merged_into_a_private_one_is_left_out(new_place: NewPlace) -> None:
    place = new_place(meetings=10, accounts=1)
    [old] = place.world.insert("meetings", account="ana", title="old")
    place.world.insert("action_items", account="ana", meeting_id=old, title=MARK)
    place.sync()
    place.world.merge(ids=[old])
    place.world.update("meetings", ids=[place.world.redirects[old]], access_level="just_me", title=MARK)
    place.sync()
    assert published(place.settings.data_dir, "current")[1] == []


def test_words_that_only_look_like_it_hide_nothing(place: Place) -> None:
    [meeting] = place.world.insert("meetings", account="ana", title="Price adjustments, not just me", start_time="soon")
    place.world.insert("action_items", account="ana", meeting_id=meeting, title="theirs")
    place.world.insert("meetings", account="ana", title="own", location_hint="adjustment room")
    place.sync()
    assert place.query("SELECT count(*) FROM raw.quarantine WHERE contains(raw, 'adjustments')") == [(1,)]
    assert place.query("SELECT count(*) FROM raw.action_items WHERE title = 'theirs'") == [(1,)]
    assert place.query("SELECT count(_extra), count(_hash) FROM raw.meetings WHERE title = 'own'") == [(1, 1)]
    assert not json.loads((current(place.settings.data_dir).folder / "manifest.json").read_text())["policy"]["applied"]


def test_a_stream_that_names_nothing_has_private_rows_too(tmp_path: Path) -> None:
    columns = (Column("id", "text", "", "id"), Column("created_at", "timestamp", ""))
    plain = Stream("notes", "notes", "notes/{id}", "notes:read", "", columns, "created_at", "none")
    policy = Policy(actions={}, streams=(plain,))
    with Warehouse(tmp_path, origin=None, streams=(plain,)) as warehouse:
        for name, extra in (("a", '{"access_level": "just_me"}'), ("b", None)):
            warehouse.connection.execute(
                "INSERT INTO raw.notes BY NAME SELECT 'ana' AS _account, ? AS id, ? AS _extra", [name, extra]
            )
        rows = warehouse.look(plain.table, 5, policy)[1]
    assert [row["id"] for row in rows] == ["b"]


def test_a_warehouse_is_not_written_anew_where_nothing_private_went(place: Place) -> None:
    file = place.settings.data_dir / "warehouse.duckdb"
    with Warehouse(place.settings.data_dir, origin=None):
        written = file.stat().st_ino
    for name in ("Ana", "Ana the Second"):
        place.world.accounts["ana"].profile["display_name"] = name
        place.world.update("meetings", 1, title=name)
        place.sync()
        assert place.query("SELECT display_name FROM raw.accounts") == [(name,)]
        assert file.stat().st_ino == written  # no other file took its place


def test_of_a_profile_that_was_private_no_byte_is_left(place: Place) -> None:
    profile = place.world.accounts["ana"].profile
    profile["note"] = {"access_level": "just_me", "text": f"{MARK} " * 5000}
    place.sync()
    del profile["note"]
    for title in ("a", "b"):
        place.world.update("meetings", 1, title=title)
        place.sync()
    assert published(place.settings.data_dir)[1] == []


def test_a_generation_that_hid_less_goes_also_when_others_came_between(place: Place) -> None:
    [broken] = place.world.insert("meetings", account="ana", access_level="just_me", title=MARK, status={})
    place.overrides["publish_policy"] = "just_me=keep"
    place.sync()
    assert published(place.settings.data_dir)[1]
    place.overrides["publish_policy"] = ""
    place.world.update("meetings", ids=[broken], access_level="everyone", title="mended", status="completed")
    place.sync()
    place.world.insert("meetings", account="ana", access_level="just_me", title="another")
    place.sync()
    assert published(place.settings.data_dir)[1] == []


def fill_below(world: World, meeting: str) -> None:
    """All that can lie below a meeting or name it, with the mark, whole and broken."""
    for stream, fields, wrong in (
        ("context_documents", {"title": MARK, "file_status": "complete"}, {"context_type": {}}),
        ("participants", {"name": MARK, "email": f"{MARK}@example.com"}, {"role": {}}),
        ("agenda_items", {"title": MARK}, {"status": {}}),
        ("action_items", {"title": MARK}, {"status": {}}),
        (
            "calendar_events",
            {"title": MARK, "linked_meetings": ["another", meeting], "meeting_id": None},
            {"location": {}},
        ),
    ):
        names = {} if stream == "calendar_events" else {"meeting_id": meeting}
        ids = world.insert(stream, account="ana", **names, **fields)
        world.insert(stream, account="ana", **names, **fields, **wrong)
        if stream == "context_documents":
            world.rewrite_contents(ids, body=MARK)


def test_who_it_is_for_is_understood_in_every_shape(place: Place) -> None:
    for shape in (" just_me ", ["just_me"], {"type": "JUST_ME"}, "just-me", "justMe"):
        place.world.insert("meetings", account="ana", access_level=shape, title=MARK)
    place.sync()
    assert published(place.settings.data_dir)[1] == []


def test_fields_that_nobody_knows_go_where_they_hold_something_private(place: Place) -> None:
    own = {"attachments": [{"access_level": "just_me", "name": MARK}]}, {"agenda_items": [{"talking_points": MARK}]}
    for fields in own:
        place.world.insert("meetings", account="ana", title="shown", **fields)
        place.world.insert("meetings", account="ana", title="shown", status={}, **fields)
    place.sync()
    assert published(place.settings.data_dir)[1] == []
    gone = "SELECT count(*), count(_extra), count(_hash) FROM raw.meetings WHERE title = 'shown'"
    assert place.query(gone) == [(2, 0, 0)]
    place.overrides["publish_policy"] = "agenda_items.talking_points=keep,just_me=keep"
    place.sync()
    assert place.query("SELECT count(*), count(_extra) FROM raw.meetings WHERE title = 'shown'") == [(2, 2)]
    assert place.query(f"SELECT count(*) FROM raw.quarantine WHERE contains(raw, '{MARK}')") == [(2,)]


def test_a_strict_policy_lets_only_ids_through_where_ids_are_expected(new_place: NewPlace) -> None:
    place = new_place(meetings=10, accounts=1)
    place.overrides |= STRICT
    world, odd = place.world, f"{MARK} anna@example.com"
    [event] = world.insert("calendar_events", account="ana", id=odd, linked_meetings=[odd, "m-1"], meeting_id=odd)
    world.insert("meetings", account="ana", id=f"{odd} meeting", workspace_id=odd, calendar_event_id=odd)
    world.insert("action_items", account="ana", meeting_id=f"{odd} meeting")
    world.insert("meetings", account="ana", id=f"{odd} broken", title=5)
    world.insert(
        "context_documents", account="ana", meeting_id=f"{odd} meeting", id=f"{odd} document", file_status="complete"
    )
    place.sandbox.faults.append(Fault("/content$", status=503, body="", times=999))
    place.overrides["retry_seconds"] = 0
    place.sync()
    assert event == odd
    assert published(place.settings.data_dir)[1] == []
    joined = "SELECT count(*) FROM mart.action_items i JOIN mart.meetings m ON m.id = i.meeting_id WHERE len(m.id) = 32"
    assert place.query(joined) == [(1,)]
    linked = "SELECT linked_meetings::VARCHAR FROM raw.calendar_events WHERE len(id) = 32"
    assert [json.loads(row[0])[1:] for row in place.query(linked)] == [["m-1"]]


def test_a_strict_policy_hides_what_the_api_says_beside_its_words(new_place: NewPlace) -> None:
    place = new_place(meetings=10, accounts=1)
    place.overrides |= STRICT
    for words in (
        {"code": f"{MARK} is ill", "request_id": f"{MARK} too"},
        {"error": f"{MARK} is ill", "error_description": MARK},
    ):
        body = json.dumps(words)
        place.sandbox.faults[:] = [
            Fault(path, status=403, body=body, times=99) for path in ("/content$", "/calendar/events$")
        ]
        assert not place.sync().complete
        assert published(place.settings.data_dir)[1] == []
    assert place.query("SELECT count(*) > 0 FROM ops.windows WHERE contains(reason, '403')") == [(True,)]


def test_nobody_can_try_what_the_contents_of_a_document_are(shown: Place) -> None:
    with Warehouse(shown.settings.data_dir, origin=None) as warehouse:
        hashes = [row["sha256"] for row in warehouse.query("SELECT sha256 FROM raw.document_texts")]
    texts = "\n".join(texts_of(current(shown.settings.data_dir).database))
    assert hashes
    assert not [digest for digest in hashes if digest in texts]
    joined = "SELECT count(*) > 0 FROM raw.document_contents JOIN raw.document_texts USING (sha256)"
    assert shown.query(joined) == [(True,)]


def test_contents_whose_hashes_are_dropped_have_hidden_texts(new_place: NewPlace) -> None:
    place = new_place(meetings=20, accounts=1)
    place.overrides["publish_policy"] = "document_contents.sha256=drop, document_texts.sha256=drop"
    place.sync()
    assert place.query("SELECT count(sha256) FROM raw.document_texts") == [(0,)]
    assert place.query("SELECT DISTINCT reason FROM mart.document_texts WHERE reason LIKE 'it %'") == [
        ("it is hidden",)
    ]


KEYS = {"event_attendees": 2, "person_week": 2, "sync_health": 2}
"""How many of a mart's first columns name a row, where that is not one."""

OF_WHAT_IS_LEFT = {
    ("people", "emails"), ("people", "sources"), ("document_texts", "reason"), ("calendar_events", "occurrence"),
    ("calendar_linkage", "occurrence"),
}  # fmt: skip
"""Columns that tell of what is published, so that they change with it."""


def test_a_column_of_a_mart_that_is_made_of_a_dropped_one_is_hidden_and_says_so(new_place: NewPlace) -> None:
    """Whatever is dropped: each value is what it was, or NULL in a column that says that it is hidden."""
    place = new_place(meetings=16, accounts=2)
    place.overrides["optional_streams"] = "participants,agenda_items"
    place.sync()
    place.world.update("meetings", 3, summary_notes="at last")
    place.world.update("action_items", 3, status="cancelled")
    place.world.delete("action_items", 2)
    place.sync()
    columns = [(table, one) for table in own_tables() for one in table.columns if can_be_dropped(table, one)]
    lies, looked_at = [], 0
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET threads = 1")
        connection.execute(f"ATTACH '{current(place.settings.data_dir).database}' AS published (READ_ONLY)")
        connection.execute("CREATE SCHEMA raw; CREATE SCHEMA ops; CREATE SCHEMA mart")
        for table in tables():
            shown = " UNION ALL BY NAME FROM ".join(one.full_name for one in table.shows)
            rows = (
                f"VIEW {table.full_name} AS FROM {shown}"
                if shown
                else f"TABLE {table.full_name} AS FROM published.{table.full_name}"
            )
            connection.execute(f"CREATE {rows}")
        usual = {mart.name: rows_of_mart(connection, mart, {}) for mart in MARTS}
        for table, column in columns:
            parts = [one for one in tables() if one.full_name in {table.full_name, f"{table.full_name}_past"}]
            for part in parts:
                nothing = f"SELECT * REPLACE (NULL::{SQL_TYPES[column.kind]} AS {column.name})"
                connection.execute(
                    f"CREATE OR REPLACE TABLE {part.full_name} AS {nothing} FROM published.{part.full_name}"
                )
            touched = {table.full_name, f"{table.full_name}_past", f"{table.full_name}_history"}
            hidden: dict[str, str] = {f"{table.name}.{column.name}": "drop"}
            for mart in MARTS:
                if mart.reads & touched:
                    touched.add(mart.full_name)
                    looked_at += 1
                    lies += lies_of(mart, hidden, usual[mart.name], rows_of_mart(connection, mart, hidden))
            for part in parts:
                connection.execute(f"CREATE OR REPLACE TABLE {part.full_name} AS FROM published.{part.full_name}")
            for mart in MARTS:
                if mart.full_name in touched:
                    rows_of_mart(connection, mart, {})
    assert lies == []
    assert looked_at > 300


def can_be_dropped(table: Table, column: Column) -> bool:
    try:
        _publish_policy(f"{table.name}.{column.name}=drop")
    except ValueError:
        return False
    return True


def rows_of_mart(connection: duckdb.DuckDBPyConnection, mart: Mart, hidden: dict[str, str]) -> list[dict[str, Any]]:
    connection.execute(f"CREATE OR REPLACE TABLE {mart.full_name} AS {mart.select('UTC', date(2026, 11, 28), hidden)}")
    return connection.sql(f"FROM {mart.full_name} ORDER BY ALL").to_arrow_table().to_pylist()


def lies_of(
    mart: Mart, hidden: dict[str, str], usual: list[dict[str, Any]], found: list[dict[str, Any]]
) -> Iterator[str]:
    """What is neither as it was nor hidden, and what is hidden without a word."""

    def by_key(rows: list[dict[str, Any]]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
        keyed = defaultdict(list)
        for row in rows:
            keyed[tuple(row[one.name] for one in mart.fields[: KEYS.get(mart.name, 1)])].append(row)
        return keyed

    was, told = by_key(usual), {one.name for one in mart.fields if hidden.keys() & set(one.of)}
    pairs = [pair for key, rows in by_key(found).items() for pair in zip(was.get(key, []), rows, strict=False)]
    for name in (one.name for one in mart.fields if (mart.name, one.name) not in OF_WHAT_IS_LEFT):
        if any(one[name] is not None and one[name] != before[name] for before, one in pairs):
            yield f"{mart.full_name}.{name} is wrong without {[*hidden]}"
        gone = (
            pairs
            and all(one[name] is None for _, one in pairs)
            and any(before[name] is not None for before, _ in pairs)
        )
        if gone and name not in told:
            yield f"{mart.full_name}.{name} does not say that it is hidden with {[*hidden]}"
    if found and len(found) != len(usual) and mart.name not in {"people", "person_week"}:
        yield f"{mart.full_name} lacks rows without {[*hidden]}"


def test_dropping_the_column_that_names_the_month_leaves_the_rows(new_place: NewPlace) -> None:
    place = new_place(meetings=20, accounts=1)
    place.overrides["publish_policy"] = "action_items.created_at=drop, action_items.due_date=drop"
    place.sync()
    folder = current(place.settings.data_dir).folder / "parquet/raw/action_items"
    assert [path.name for path in folder.iterdir()] == ["month=undated"]
    rows = pq.ParquetFile(folder / "month=undated" / "part.parquet").read().to_pylist()
    assert len(rows) == len(place.world.items("ana", "action_items"))
    assert not any(row["created_at"] or row["due_date"] or row["due_date_raw"] for row in rows)


def test_nothing_that_is_published_confirms_a_guess_of_what_is_hidden(shown: Place) -> None:
    with Warehouse(shown.settings.data_dir, origin=None) as warehouse:
        hashes = [
            row["h"]
            for row in warehouse.query(
                "SELECT _hash AS h FROM raw.context_documents UNION SELECT _hash FROM raw.meetings"
            )
        ]
    texts = "\n".join(texts_of(current(shown.settings.data_dir).database))
    assert not [digest for digest in hashes if digest in texts]
    manifest = json.loads((current(shown.settings.data_dir).folder / "manifest.json").read_text())
    assert manifest.keys() == {"generation", "published_at", "rows", "versions", "policy", "files"}
    assert (shown.settings.data_dir / ".published.json").stat().st_mode & 0o777 == 0o600


def test_a_strict_policy_lets_only_words_through_where_words_are_expected(new_place: NewPlace) -> None:
    place = new_place(meetings=10, accounts=1)
    place.overrides |= STRICT
    odd = {"status": {"comment": MARK}, "type": f"{MARK} and more", "email": "a@example.com"}
    place.world.update(
        "calendar_events", 5, attendees=[odd, [MARK], 7, MARK], organizer=odd | {"status": f"{MARK} is a dentist"}
    )
    place.world.update("calendar_events", 5, linked_meetings=[{"title": MARK}, "m-1"])
    place.world.update("action_items", 5, status=f"{MARK} is what it is")
    words = json.dumps({"code": "forbidden", "error": f"{MARK} {chr(0x203A)} was quarantined"})
    place.sandbox.faults.append(Fault("/content$", status=403, body=words, times=999))
    place.sandbox.faults.append(Fault("/calendar/events$", status=400, body=words, times=999))
    assert not place.sync().complete
    assert published(place.settings.data_dir)[1] == []
    assert place.query("SELECT count(*) FROM raw.document_contents WHERE contains(reason, '403 forbidden')")[0][0] > 0
    del place.sandbox.faults[1:]
    place.sync()
    assert published(place.settings.data_dir)[1] == []


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ("meetings.created_by_user_id=hash", "all or none"),
        ("document_contents.sha256=drop", "the same of document_contents.sha256 and document_texts.sha256"),
        ("meetings.title=keep,meetings.title=drop", "two things of meetings.title"),
    ],
)
def test_a_policy_that_contradicts_itself_is_refused(policy: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        load_settings(data_dir=tmp_path / "d", state_dir=tmp_path / "s", publish_policy=policy, hash_salt=SALT)


def test_what_somebody_said_is_kept_is_kept(new_place: NewPlace) -> None:
    place = new_place(meetings=20, accounts=1)
    place.overrides["publish_policy"] = "meetings.title=drop, meetings._extra=keep, quarantine.raw=keep"
    place.world.insert("meetings", account="ana", created_at="never")
    place.sync()
    assert place.query("SELECT count(*) > 0 FROM raw.meetings WHERE contains(_extra::VARCHAR, 'ai_score')") == [(True,)]
    assert place.query("SELECT count(raw) FROM raw.quarantine") == [(1,)]


def test_a_restore_publishes_no_more_than_where_the_backup_was_made(shown: Place, tmp_path: Path) -> None:
    made = backup(shown.settings, tmp_path / "backups", datetime.now(UTC))
    loose = replace(shown.settings, privacy="standard", data_dir=tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="CONTIO_PRIVACY was strict: set it again, and CONTIO_HASH_SALT"):
        restore(loose, made.folder, replace=False, now=datetime.now(UTC))
    assert not (tmp_path / "elsewhere" / "current").exists()
    restore(replace(loose, privacy="strict"), made.folder, replace=False, now=datetime.now(UTC))
    assert published(tmp_path / "elsewhere")[1] == []


def test_a_sync_and_doctor_warn_of_an_account_that_is_named_by_an_address(
    new_place: NewPlace, caplog: pytest.LogCaptureFixture
) -> None:
    place = new_place(meetings=3, accounts=1)
    store = TokenStore(place.settings.state_dir)
    store.write("ana@example.com", store.read("ana"))
    store.remove("ana")
    for privacy, warns in (("standard", False), ("strict", True)):
        place.overrides |= {"privacy": privacy, "hash_salt": SALT}
        caplog.clear()
        place.sync()
        assert ("accounts named by an address (ana@example.com)" in caplog.text) == warns
        found = {one.subject for one in examine(offline=True, load=lambda: place.settings)}
        assert ("account names" in found) == warns


def test_accounts_that_are_named_by_an_address_are_told_of(shown: Place) -> None:
    assert shown.settings.account_names_tell(["ana", "bo@example.com"]).startswith(
        "accounts named by an address (bo@example.com)"
    )
    assert shown.settings.account_names_tell(["ana"]) == ""
    assert replace(shown.settings, privacy="standard").account_names_tell(["bo@example.com"]) == ""


def test_hashing_needs_a_salt_and_the_error_says_how_to_make_one(tmp_path: Path) -> None:
    for asked in ({"privacy": "strict"}, {"publish_policy": "meetings.title=hash"}):
        with pytest.raises(ConfigError, match=r"CONTIO_HASH_SALT must be set.*token_hex"):
            load_settings(data_dir=tmp_path / "d", state_dir=tmp_path / "s", **asked)


def test_a_strict_policy_hides_every_text_and_person_that_is_declared(settings: Settings) -> None:
    policy = Policy.asked_for(settings)
    free = {
        "status",
        "source_format",
        "file_status",
        "role",
        "item_type",
        "sequence",
        "timezone",
        "plan_type",
        "workspace_role",
    }
    for table in own_tables():
        for column in table.columns:
            own = column.name.startswith("_") or column.name.endswith(("_id", "_raw")) or column.name == "id"
            if column.kind == "text" and not column.holds and not own:
                known = {"content_type", "state", "reason", "stream", "raw"}
                assert column.name in free | known, f"{table.name}.{column.name}: is it free text, a name, a person?"
            if column.holds not in {"", "id"}:
                assert f"{table.name}.{column.name}" in policy.actions


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(data_dir=tmp_path / "d", state_dir=tmp_path / "s", privacy="strict", hash_salt=SALT)


def test_every_mart_can_be_made_of_what_a_strict_policy_leaves(shown: Place) -> None:
    for mart in MARTS:
        assert shown.query(f"SELECT count(*) FROM {mart.full_name}")[0][0] > 0, mart.name
