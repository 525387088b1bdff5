"""The declarations: they agree with the API's description and with each other, and refuse what nothing could read."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import pytest

from contio_pipeline.sandbox.world import SCOPES
from contio_pipeline.streams import (
    ACCOUNTS,
    DOCUMENT_CONTENTS,
    PROFILE,
    QUARANTINE,
    RUNS,
    STREAMS,
    WINDOWS,
    Column,
    Kind,
    Stream,
    Table,
    stream_named,
    tables,
)

# The properties of the response schemas in the vendor's OpenAPI description 1.10.0.
SPEC_FIELDS = {
    "meetings": "id title summary_notes start_time end_time status workspace_id created_by_user_id calendar_event_id "
    "redirect_to_meeting_id created_at updated_at",
    "action_items": "id meeting_id assigned_to_user_id title description status is_completed due_date completed_at "
    "has_partner_assignment partner_context created_at updated_at",
    "calendar_events": "id title description start_time end_time location organizer attendees linked_meetings meeting_id",
    "context_documents": "id model_id meeting_id workspace_id title context_type source_format file_status source_id "
    "source_name partner_app_id platform_name created_by_user_id created_at updated_at deleted_at",
    "participants": "id meeting_id user_id name email role is_attended created_at updated_at",
    "agenda_items": "id meeting_id title description item_type status sequence time_allocation_minutes presenter_details "
    "presenters talking_points created_at updated_at",
}
SPEC_PROFILE = "id display_name email timezone plan_type workspace_id workspace_name workspace_role created_at"
SPEC_PATHS = {
    "meetings": ("meetings", "meetings/{id}"),
    "action_items": ("action-items", "action-items/{id}"),
    "calendar_events": ("calendar/events", "calendar/events/{id}"),
    "context_documents": ("meetings/{parent_id}/context", "meetings/{parent_id}/context/{id}"),
    "participants": ("meetings/{parent_id}/participants", None),
    "agenda_items": ("meetings/{parent_id}/agenda-items", None),
}
WITH_PARENT = stream_named("context_documents")
PLAIN = stream_named("meetings")


def names(columns: tuple[Column, ...]) -> list[str]:
    return [column.name for column in columns]


def plain_stream(**changes: Any) -> Stream:
    """A small stream of its own, so that a test says what it is about."""
    declared: dict[str, Any] = {
        "name": "notes",
        "path": "notes",
        "detail_path": "notes/{id}",
        "scope": "notes:read",
        "doc": "A note.",
        "columns": (Column("id", "text", "Id."), Column("at", "timestamp", "When."), Column("day", "date", "Day.")),
        "date_field": "at",
        "dates": "optional",
    }
    return Stream(**(declared | changes))


# What is declared -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.name)
def test_a_stream_declares_exactly_the_fields_of_the_spec(stream: Stream) -> None:
    assert set(names(stream.columns)) == set(SPEC_FIELDS[stream.name].split())


def test_the_profile_declares_exactly_the_fields_of_the_spec() -> None:
    assert set(names(PROFILE)) == set(SPEC_PROFILE.split())
    assert set(names(PROFILE)) < set(names(ACCOUNTS.columns))


def test_every_list_of_the_spec_that_is_synced_is_declared_once_with_its_paths() -> None:
    assert {stream.name: (stream.path, stream.detail_path) for stream in STREAMS} == SPEC_PATHS
    assert len({stream.name for stream in STREAMS}) == len(STREAMS)


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.name)
def test_scopes_are_those_that_the_api_has(stream: Stream) -> None:
    assert stream.scope in SCOPES


def test_parents_are_declared_before_their_children() -> None:
    for number, stream in enumerate(STREAMS):
        assert stream.parent is None or stream.parent in [earlier.name for earlier in STREAMS[:number]]
    assert WITH_PARENT.parent == "meetings"


def test_calendar_events_alone_need_dates_and_have_no_time_of_change() -> None:
    assert [stream.name for stream in STREAMS if stream.dates == "required"] == ["calendar_events"]
    assert [stream.name for stream in STREAMS if stream.version_field is None] == ["calendar_events"]


@pytest.mark.parametrize("table", tables(), ids=lambda table: table.full_name)
def test_every_table_and_column_has_a_sentence_that_explains_it(table: Table) -> None:
    assert table.doc.endswith(".")
    for column in table.columns:
        assert column.doc.endswith("."), column.name
        assert len(column.doc) > len(column.name), column.name


@pytest.mark.parametrize("table", tables(), ids=lambda table: table.full_name)
def test_a_table_is_consistent(table: Table) -> None:
    kinds = {column.name: column.kind for column in table.columns}
    assert len(kinds) == len(table.columns)
    assert set(kinds.values()) <= set(get_args(Kind))
    assert table.month_field is None or kinds[table.month_field] == "timestamp"
    assert set(table.volatile) <= kinds.keys()


def test_table_names_are_unique_and_every_stream_has_its_three() -> None:
    full_names = [table.full_name for table in tables()]
    assert len(set(full_names)) == len(full_names)
    for stream in STREAMS:
        assert {f"raw.{stream.name}", f"raw.{stream.name}_past", f"raw.{stream.name}_history"} <= set(full_names)
    assert {"raw.accounts", "raw.document_contents", "raw.quarantine", "raw.meeting_aliases"} < set(full_names)
    assert {"ops.windows", "ops.runs", "ops.assumptions", "ops.meta"} < set(full_names)


def test_what_changes_at_every_sync_is_declared_volatile_and_what_it_found_is_not() -> None:
    assert set(RUNS.volatile) == set(names(RUNS.columns))
    assert {"requests", "listed_at", "run_id"} <= set(WINDOWS.volatile)
    assert not {"rows", "total", "complete", "reason", "quarantined", "missing"} & set(WINDOWS.volatile)
    assert not [table.full_name for table in tables() if table.schema == "raw" and table.volatile]


# What follows from a declaration --------------------------------------------------------------------------------------


def test_a_new_stream_is_a_declaration_and_nothing_else() -> None:
    notes = plain_stream()
    more = (*STREAMS, notes)
    assert stream_named("notes", more) is notes
    added = [table for table in tables(more) if table not in tables()]
    assert [table.full_name for table in added] == ["raw.notes", "raw.notes_past", "raw.notes_history"]
    assert added[0].month_field == "at"


def test_a_date_is_stored_with_its_text_as_received() -> None:
    kinds = [(column.name, column.kind) for column in plain_stream().data_columns]
    assert kinds == [("id", "text"), ("at", "timestamp"), ("day", "date"), ("day_raw", "text")]


def test_the_current_state_has_the_account_the_payload_and_the_state() -> None:
    state = [
        "_operation",
        "_run_id",
        "_first_seen_at",
        "_changed_at",
        "_missing_since",
        "_deleted_at",
        "_gone_reason",
        "_window_blind",
    ]
    assert names(plain_stream().table.columns) == ["_account", "id", "at", "day", "day_raw", "_extra", "_hash", *state]


def test_the_history_shows_the_current_rows_and_those_of_the_past() -> None:
    notes = plain_stream()
    assert notes.history.shows == (notes.table, notes.past)
    assert notes.history.columns == notes.past.columns == notes.table.columns


def test_only_children_carry_the_id_of_their_parent() -> None:
    for stream in STREAMS:
        for table in (stream.table, stream.history):
            assert ("_parent_id" in names(table.columns)) == (stream.parent is not None)


def test_system_columns_never_meet_the_fields_of_the_api() -> None:
    for stream in STREAMS:
        system = set(names(stream.table.columns)) - set(names(stream.data_columns))
        assert all(name.startswith("_") for name in system)
    assert "deleted_at" in names(WITH_PARENT.table.columns)
    assert "_deleted_at" in names(WITH_PARENT.table.columns)


def test_the_only_streams_with_bytes_have_a_processing_state() -> None:
    assert [stream.name for stream in STREAMS if stream.content_path] == ["context_documents"]
    assert WITH_PARENT.status_field == "file_status"
    assert {"sha256", "size_bytes", "filename", "state", "reason"} < set(names(DOCUMENT_CONTENTS.columns))


def test_quarantine_keeps_the_row_the_reason_and_where_it_came_from() -> None:
    kept = {"_account", "stream", "row_key", "reason", "raw", "_parent_id", "_run_id"}
    assert kept < set(names(QUARANTINE.columns))


def test_a_stream_that_is_not_declared_is_not_found() -> None:
    with pytest.raises(KeyError, match="notes"):
        stream_named("notes")


def test_declarations_cannot_be_changed() -> None:
    for declared in (PLAIN, PLAIN.columns[0], PLAIN.table):
        with pytest.raises(dataclasses.FrozenInstanceError):
            declared.name = "other"


# What is refused ------------------------------------------------------------------------------------------------------

TEXT_ID = Column("id", "text", "Id.")
WHEN = Column("at", "timestamp", "When.")


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"columns": (TEXT_ID, WHEN, WHEN)}, "column names are unique"),
        ({"columns": (TEXT_ID, WHEN, Column("_hash", "text", "No."))}, "no column begins with an underscore"),
        ({"columns": (WHEN,)}, "there is a text column `id`"),
        ({"columns": (Column("id", "integer", "Id."), WHEN)}, "there is a text column `id`"),
        ({"date_field": "id"}, "date_field is a timestamp column"),
        ({"date_field": "day"}, "date_field is a timestamp column"),
        ({"date_field": "nowhere"}, "date_field is a timestamp column"),
        ({"version_field": "id"}, "version_field is a timestamp column"),
        ({"version_field": "nowhere"}, "version_field is a timestamp column"),
        ({"deleted_field": "day"}, "deleted_field is a timestamp column"),
        ({"deleted_field": "nowhere"}, "deleted_field is a timestamp column"),
        ({"alias_field": "at"}, "alias_field is a text column"),
        ({"alias_field": "nowhere"}, "alias_field is a text column"),
        ({"content_path": "notes/{id}/content"}, "contents have a processing state"),
        ({"status_field": "id"}, "contents have a processing state"),
        ({"content_path": "notes/{id}/content", "status_field": "at"}, "status_field is a text column"),
        ({"content_path": "notes/{id}/content", "status_field": "nowhere"}, "status_field is a text column"),
        ({"path": "meetings/{parent_id}/notes"}, "a list of its own per parent has {parent_id} in its path"),
        ({"parent": "meetings", "dates": "none"}, "a list of its own per parent has {parent_id} in its path"),
        ({"parent": "meetings", "path": "meetings/{parent_id}/notes"}, "lists below a parent take no dates"),
        ({"detail_path": "notes"}, "detail_path has {id}"),
    ],
)
def test_a_declaration_that_could_only_be_misread_is_refused(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=r"^stream notes: ") as refused:
        plain_stream(**changes)
    assert rule in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "columns": (
                TEXT_ID,
                WHEN,
                Column("day", "date", "Day."),
                Column("day_raw", "text", "Meets the text of `day`."),
            )
        },
        {"detail_path": "meetings/{parent_id}/notes/{id}"},
        {"content_path": "notes/content", "status_field": "id"},
        {"content_path": "meetings/{parent_id}/notes/{id}/content", "status_field": "id"},
    ],
    ids=["two columns of one name", "detail without parent", "content without id", "content without parent"],
)
def test_a_declaration_that_would_only_fail_while_syncing_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^stream notes: "):
        plain_stream(**changes)


def test_all_broken_rules_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"date_field is a timestamp column; detail_path has {id}$"):
        plain_stream(date_field="id", detail_path="notes")
