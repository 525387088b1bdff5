"""The declarations: one `Stream` per API list, and the tables that go with them.

What lives here: names, paths, columns, keys and their documentation, as data that refuses bad combinations.
What never does: I/O, SQL, or a branch on a stream's name. A new stream is a new `Stream` in `STREAMS` and nothing
else: table, history, Parquet folder, comments and listing follow from it.

Fields are those of the vendor's OpenAPI description 1.10.0. Every field is optional there, so every column may be NULL.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["text", "boolean", "integer", "number", "timestamp", "date", "json"]
"""`timestamp` is an instant in UTC; `date` is a calendar day; `json` is any JSON value as text."""


Holds = Literal["", "id", "person", "people", "name", "text", "notes", "content", "private"]
"""What a publish policy goes by: `person` is a user id or an address, `people` a JSON list (or object) of them with their names,
`name` a person's name, `text` free text, `notes` free text of which marts ask whether it is there, `content` a hash of what may
be guessed, `private` what the account's user alone sees in Contio; `id` names a thing. What holds none of these is a number, a
time, or a word of a short list."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, kind, what it means to an analyst, and what a publish policy goes by."""

    name: str
    kind: Kind
    doc: str
    holds: Holds = ""


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the warehouse and of what is published, or a view of tables.

    Attributes:
        month_field: the timestamp column whose UTC month names the Parquet folder; None puts all rows in `undated`.
        volatile: columns that change at every sync although nothing happened; they alone make no new generation.
        telling: columns that differ wherever any other does, so that the others need not be read to notice a change.
        shows: of a view: the tables all of whose rows it shows; they have its columns.
    """

    schema: Literal["raw", "ops"]
    name: str
    doc: str
    columns: tuple[Column, ...]
    month_field: str | None = None
    volatile: tuple[str, ...] = ()
    telling: tuple[str, ...] = ()
    shows: tuple[Table, ...] = ()

    @property
    def full_name(self) -> str:
        """`schema.name`, as SQL writes it."""
        return f"{self.schema}.{self.name}"


_ACCOUNT = Column("_account", "text", "The account (one Contio user's consent) through which the row was read.")
_EXTRA = Column(
    "_extra",
    "json",
    "Fields that the API sent and this version does not know, and times that name no instant (a date alone, or a time "
    "without a zone), under their own names; NULL where there are none.",
)
_HASH = Column("_hash", "text", "SHA-256 of the row's canonical JSON (sorted keys, no spaces), hexadecimal.")
_PARENT = Column("_parent_id", "text", "The id of the parent under which the API listed the row.", "id")
_RUN = Column("_run_id", "text", "The sync that wrote this, see ops.runs.")
_STATE = (
    Column(
        "_operation", "text", "What happened at `_changed_at`: insert, update, undelete; in the history delete, too."
    ),
    _RUN,
    Column("_first_seen_at", "timestamp", "When a sync first saw the row."),
    Column(
        "_changed_at",
        "timestamp",
        "When a sync last saw the row's content change, or saw it come back; of a deletion in the history: when that was seen.",
    ),
    Column(
        "_missing_since",
        "timestamp",
        "Since when a complete listing that should have returned the row did not; NULL while it is returned, and once it "
        "is confirmed to be gone.",
    ),
    Column(
        "_deleted_at",
        "timestamp",
        "When the row was confirmed to be no longer visible to this account; NULL means live.",
    ),
    Column(
        "_gone_reason",
        "text",
        "Why it is no longer visible: not_found (deleted or no longer shared; the API does not say), deleted (the API "
        "says so), access_lost (refused, or another account still reads it), merged (into another row, see "
        "meeting_aliases), parent_not_found, not_listed (its parent's list, read twice, does not hold it any more).",
    ),
    Column(
        "_window_blind",
        "boolean",
        "True when the row exists, yet the lists that should return it do not: the API's date filter does not see it, or it "
        "was last seen through another application's credentials. Such a row is not expected of windows.",
    ),
)


@dataclass(frozen=True, slots=True)
class Stream:
    """One list of the API.

    Attributes:
        name: table, asset and Parquet folder.
        path: of the list, below `/v1/partner/user/`; `{parent_id}` where each parent row has a list of its own.
        detail_path: of one row, with `{id}` and perhaps `{parent_id}`; how a row that went missing is asked for. None where the
            API reads no single row: then its parent's list is read again, which must be one answer.
        scope: the OAuth scope that the list needs.
        doc: what one row is.
        columns: the fields of the API, `id` among them.
        date_field: the timestamp column that the list's date filter is assumed to mean (the vendor documents none; every
            answer is checked against it) and whose month names the Parquet folder.
        dates: whether the list takes `start_date` and `end_date`: `optional`, `required`, or `none`.
        version_field: the timestamp column that grows when a row changes; None where the API has none.
        parent: the stream whose rows each have such a list.
        open_field: the boolean column that is false while a row is not done, and by which the list can be filtered.
        names: (text column, stream) pairs: the column holds ids of the other stream's rows.
        same_as: text columns that hold ids of rows which tell of the same thing: what is private here is private there.
        alias_field: the field in which a row names the row that it was merged into.
        deleted_field: the timestamp column that is set when a row that can still be read by id is deleted.
        content_path: of a row's bytes.
        status_field: the text column that says how far the processing of those bytes is.
        format_field: the text column that names the format of those bytes.
        app_scoped: whether only rows of the current partner application are visible: rows of another are not gone.
        paged: whether the list takes `limit` and `offset`; otherwise it is one answer.
        optional: whether it is listed only where `CONTIO_OPTIONAL_STREAMS` names it.
    """

    name: str
    path: str
    detail_path: str | None
    scope: str
    doc: str
    columns: tuple[Column, ...]
    date_field: str
    dates: Literal["optional", "required", "none"]
    version_field: str | None = None
    parent: str | None = None
    open_field: str | None = None
    names: tuple[tuple[str, str], ...] = ()
    same_as: tuple[str, ...] = ()
    alias_field: str | None = None
    deleted_field: str | None = None
    content_path: str | None = None
    status_field: str | None = None
    format_field: str | None = None
    app_scoped: bool = False
    paged: bool = True
    optional: bool = False

    def __post_init__(self) -> None:
        """Refuse declarations that the rest could only misread."""
        kinds = {column.name: column.kind for column in self.columns}

        def is_kind(name: str | None, kind: Kind) -> bool:
            return name is None or kinds.get(name) == kind

        rules = {
            "column names are unique": len({column.name for column in self.data_columns}) == len(self.data_columns),
            "no column begins with an underscore": not any(name.startswith("_") for name in kinds),
            "there is a text column `id`": kinds.get("id") == "text",
            "date_field is a timestamp column": kinds.get(self.date_field) == "timestamp",
            "version_field is a timestamp column": is_kind(self.version_field, "timestamp"),
            "open_field is a boolean column": is_kind(self.open_field, "boolean"),
            "deleted_field is a timestamp column": is_kind(self.deleted_field, "timestamp"),
            "names are text columns": all(is_kind(column, "text") for column, _stream in self.names),
            "same_as are text columns": all(is_kind(column, "text") for column in self.same_as),
            "alias_field is a text column": is_kind(self.alias_field, "text"),
            "status_field is a text column": is_kind(self.status_field, "text"),
            "format_field is a text column": is_kind(self.format_field, "text"),
            "contents have a processing state": (self.content_path is None) == (self.status_field is None),
            "a list of its own per parent has {parent_id} in its path": (self.parent is not None)
            == ("{parent_id}" in self.path),
            "lists below a parent take no dates": self.parent is None or self.dates == "none",
            "detail_path has {id}": self.detail_path is None or "{id}" in self.detail_path,
            "rows that cannot be read by id are a parent's, whose list is one answer": self.detail_path is not None
            or (self.parent is not None and not self.paged and not self.content_path),
            "content_path has {id}": "{id}" in (self.content_path or "{id}"),
            "only lists below a parent have {parent_id}": bool(self.parent)
            or "{parent_id}" not in f"{self.path} {self.detail_path} {self.content_path}",
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise ValueError(f"stream {self.name}: {'; '.join(broken)}")

    @property
    def data_columns(self) -> tuple[Column, ...]:
        """The API's columns as stored: a date is followed by its text as received."""
        return tuple(
            stored
            for column in self.columns
            for stored in (
                (column, Column(f"{column.name}_raw", "text", f"`{column.name}` exactly as received."))
                if column.kind == "date"
                else (column,)
            )
        )

    @property
    def payload_columns(self) -> tuple[Column, ...]:
        """What one version of a row consists of: data, what is unknown, the hash, the parent."""
        return (*self.data_columns, _EXTRA, _HASH, *((_PARENT,) if self.parent else ()))

    @property
    def table(self) -> Table:
        """The current state: one row per account and id."""
        return Table("raw", self.name, self.doc, (_ACCOUNT, *self.payload_columns, *_STATE), self.date_field)

    @property
    def past(self) -> Table:
        """The versions that were replaced, and a copy of each row that went, from when it went."""
        doc = f"Versions of raw.{self.name} that were replaced, and deletions: read raw.{self.name}_history, which shows both."
        return replace(self.table, name=f"{self.name}_past", doc=doc)

    @property
    def history(self) -> Table:
        """Every version that a sync has seen, the current one too, and when a row went and came back."""
        doc = (
            f"Every change of raw.{self.name}: the row as it was from `_changed_at` on. What became of it (`_deleted_at` …) "
            "stands in its current version and in deletions only."
        )
        return replace(self.table, name=f"{self.name}_history", doc=doc, shows=(self.table, self.past))


def _columns(**columns: tuple[Kind, str] | tuple[Kind, str, Holds]) -> tuple[Column, ...]:
    return tuple(Column(name, *told) for name, told in columns.items())


STREAMS: tuple[Stream, ...] = (
    Stream(
        name="meetings",
        path="meetings",
        detail_path="meetings/{id}",
        scope="meetings:read",
        doc="A meeting that the account can see.",
        date_field="start_time",
        dates="optional",
        version_field="updated_at",
        same_as=("calendar_event_id",),
        alias_field="redirect_to_meeting_id",
        columns=_columns(
            id=("text", "The meeting's id.", "id"),
            title=("text", "Title.", "text"),
            summary_notes=("text", "Summary notes that Contio made from the meeting.", "notes"),
            start_time=("timestamp", "Scheduled start."),
            end_time=("timestamp", "Scheduled end."),
            status=("text", "draft, scheduled, in_progress, ended or completed; new values may appear."),
            workspace_id=("text", "The workspace that it belongs to.", "id"),
            created_by_user_id=("text", "The user who created it.", "person"),
            calendar_event_id=("text", "The linked calendar event, if any.", "id"),
            redirect_to_meeting_id=("text", "The meeting that this one was merged into, if it was.", "id"),
            created_at=("timestamp", "When it was created in Contio."),
            updated_at=("timestamp", "When it last changed in Contio."),
        ),
    ),
    Stream(
        name="action_items",
        path="action-items",
        detail_path="action-items/{id}",
        scope="action-items:read",
        doc="An action item that the account can see.",
        date_field="created_at",
        dates="optional",
        version_field="updated_at",
        open_field="is_completed",
        names=(("meeting_id", "meetings"),),
        columns=_columns(
            id=("text", "The action item's id.", "id"),
            meeting_id=("text", "The meeting that it came from.", "id"),
            assigned_to_user_id=("text", "The user who is to do it.", "person"),
            title=("text", "Title.", "text"),
            description=("text", "What is to be done.", "text"),
            status=(
                "text",
                "needs_review, accepted, in_progress, blocked, completed or cancelled; new values may appear.",
            ),
            is_completed=("boolean", "Whether it is done."),
            due_date=("date", "The day it is due, as written by the API (a time's own date, not converted)."),
            completed_at=("timestamp", "When it was completed."),
            has_partner_assignment=("boolean", "Whether a partner's automation assigned it."),
            partner_context=("json", "The partner's own data stored with it.", "text"),
            created_at=("timestamp", "When it was created in Contio."),
            updated_at=("timestamp", "When it last changed in Contio."),
        ),
    ),
    Stream(
        name="calendar_events",
        path="calendar/events",
        detail_path="calendar/events/{id}",
        scope="calendar:read",
        doc="An event of the account's connected calendar, within the configured calendar range.",
        date_field="start_time",
        dates="required",
        names=(("meeting_id", "meetings"),),
        columns=_columns(
            id=("text", "The event's id.", "id"),
            title=("text", "Title.", "text"),
            description=("text", "Description or body.", "text"),
            start_time=("timestamp", "Start; NULL for an all-day event, whose date is in `_extra`."),
            end_time=("timestamp", "End; NULL for an all-day event, whose date is in `_extra`."),
            location=("text", "Room or link.", "text"),
            organizer=("json", "Organizer: email, name, status, type.", "people"),
            attendees=("json", "Attendees, each with email, name, status (accepted, declined, …) and type.", "people"),
            linked_meetings=("json", "Ids of the linked Contio meetings, oldest first.", "id"),
            meeting_id=("text", "The oldest linked meeting (deprecated by the vendor: use linked_meetings).", "id"),
        ),
    ),
    Stream(
        name="context_documents",
        path="meetings/{parent_id}/context",
        detail_path="meetings/{parent_id}/context/{id}",
        content_path="meetings/{parent_id}/context/{id}/content",
        status_field="file_status",
        format_field="source_format",
        app_scoped=True,
        deleted_field="deleted_at",
        scope="context:read",
        doc="A context document of a meeting; only those uploaded by the current partner application are visible.",
        parent="meetings",
        date_field="created_at",
        dates="none",
        version_field="updated_at",
        columns=_columns(
            id=("text", "The document's id.", "id"),
            model_id=("text", "What the document is attached to, as the API names it.", "id"),
            meeting_id=("text", "The meeting that it prepares.", "id"),
            workspace_id=("text", "The workspace that it belongs to.", "id"),
            title=("text", "Title.", "text"),
            context_type=("text", "What kind of context it is (free text).", "text"),
            source_format=("text", "json, csv, tsv, xml, html, yaml, md or txt."),
            file_status=("text", "Processing state (free text; seen: pending, processing, complete, error)."),
            source_id=("text", "The uploading source; absent for a user's own uploads.", "id"),
            source_name=("text", "The uploading source's display name.", "text"),
            partner_app_id=("text", "Deprecated by the vendor: use source_id.", "id"),
            platform_name=("text", "The platform that it came from.", "text"),
            created_by_user_id=("text", "The user who created it.", "person"),
            created_at=("timestamp", "When it was created in Contio."),
            updated_at=("timestamp", "When it last changed in Contio."),
            deleted_at=("timestamp", "When Contio marked it deleted."),
        ),
    ),
    Stream(
        name="participants",
        path="meetings/{parent_id}/participants",
        detail_path=None,
        paged=False,
        optional=True,
        scope="meetings:read",
        doc="A participant of a meeting.",
        parent="meetings",
        date_field="created_at",
        dates="none",
        version_field="updated_at",
        columns=_columns(
            id=("text", "The participation's id.", "id"),
            meeting_id=("text", "The meeting.", "id"),
            user_id=("text", "The participant's user id, where they have a Contio account.", "person"),
            name=("text", "The participant's name.", "name"),
            email=("text", "The participant's address.", "person"),
            role=("text", "EDITOR or VIEWER; new values may appear."),
            is_attended=("boolean", "Whether the participant attended the meeting."),
            created_at=("timestamp", "When the participant was added."),
            updated_at=("timestamp", "When the participation last changed in Contio."),
        ),
    ),
    Stream(
        name="agenda_items",
        path="meetings/{parent_id}/agenda-items",
        detail_path=None,
        paged=False,
        optional=True,
        scope="meetings:read",
        doc="A point of a meeting's agenda.",
        parent="meetings",
        date_field="created_at",
        dates="none",
        version_field="updated_at",
        columns=_columns(
            id=("text", "The agenda item's id.", "id"),
            meeting_id=("text", "The meeting.", "id"),
            title=("text", "Title.", "text"),
            description=("text", "Description.", "text"),
            item_type=("text", "DISCUSSION, QUESTIONS_TO_ANSWER, BREAK or ADJOURN; new values may appear."),
            status=("text", "pending, in_progress or completed; new values may appear."),
            sequence=("text", "Its place in the agenda: a number as text."),
            time_allocation_minutes=("number", "The time set aside for it, in minutes."),
            presenter_details=(
                "json",
                "Presenters, each with user_id and, for users of the workspace, name and email.",
                "people",
            ),
            presenters=(
                "json",
                "The presenters' user ids (deprecated by the vendor: use presenter_details).",
                "people",
            ),
            talking_points=(
                "text",
                "Talking points that the account's user wrote; nobody else sees them in Contio.",
                "private",
            ),
            created_at=("timestamp", "When it was created in Contio."),
            updated_at=("timestamp", "When it last changed in Contio."),
        ),
    ),
)

UNFINISHED = ("pending", "processing")
"""States (`status_field`) of a document whose bytes are still to come."""

PROFILE_PATH = "profile"
PROFILE_NAME = "profile"
"""What `ops.windows` calls the reading of an account's profile, with which every sync of the account begins."""

PROFILE_SCOPE = "profile"
SCOPES = (PROFILE_SCOPE, *dict.fromkeys(stream.scope for stream in STREAMS))
"""What a consent must include: the profile, and what each list needs."""

PROFILE = _columns(
    id=("text", "The Contio user's id.", "person"),
    display_name=("text", "The user's name.", "name"),
    email=("text", "The user's e-mail address.", "person"),
    timezone=("text", "The user's IANA time zone."),
    plan_type=("text", "The workspace's plan (FREE, PRO, ELITE, ENT)."),
    workspace_id=("text", "The user's workspace.", "id"),
    workspace_name=("text", "The workspace's name.", "text"),
    workspace_role=("text", "The user's role in the workspace."),
    created_at=("timestamp", "When the user was created in Contio."),
)

ACCOUNTS = Table(
    "raw",
    "accounts",
    "The profile of each account's user, as last read.",
    (
        _ACCOUNT,
        *PROFILE,
        _EXTRA,
        _HASH,
        Column("_first_seen_at", "timestamp", "When a sync first read the profile."),
        Column("_changed_at", "timestamp", "When a sync last saw the profile change."),
    ),
)
DOCUMENT_CONTENTS = Table(
    "raw",
    "document_contents",
    "The bytes of each context document: where they are, or why there are none.",
    (
        _ACCOUNT,
        *_columns(
            id=("text", "The context document's id.", "id"),
            state=(
                "text",
                "stored (on disk), waiting (Contio still processes it), error (Contio could not), unavailable (see reason).",
            ),
            reason=("text", "Why the bytes are not stored; NULL when they are."),
            sha256=("text", "SHA-256 of the bytes, hexadecimal; the file is documents/ab/cd/<sha256>.", "content"),
            size_bytes=("integer", "Size in bytes."),
            content_type=("text", "Media type that the server sent."),
            filename=("text", "File name that the server sent: text, never a path.", "text"),
            fetched_at=("timestamp", "When the bytes were downloaded."),
            _version=(
                "text",
                "The processing state and time of change of the document whose bytes these are.",
            ),
        ),
    ),
    "fetched_at",
)
DOCUMENT_TEXTS = Table(
    "raw",
    "document_texts",
    "The text of document contents that are text, each once; mart.document_texts says of which document.",
    _columns(
        sha256=("text", "SHA-256 of the bytes, hexadecimal.", "content"),
        text=("text", "The bytes as text, a byte order mark left out; NULL where they are none (see reason).", "text"),
        characters=("integer", "Characters of the text."),
        reason=("text", "Why there is no text; NULL where there is."),
        size_bytes=("integer", "Size of the contents in bytes."),
        decoded_at=("timestamp", "When the text was read from the bytes."),
    ),
    "decoded_at",
    telling=("sha256", "reason", "decoded_at"),
)
QUARANTINE = Table(
    "raw",
    "quarantine",
    "Rows that the API sent and that break their promise (wrong type, no id, bad time), as received; a row leaves this table "
    "when a later sync receives it intact, or lists all rows without it; then it stays only while rows lie below it, or if it is "
    "private.",
    (
        _ACCOUNT,
        *_columns(
            stream=("text", "The stream in which it came."),
            row_key=("text", "The row's id, or the SHA-256 of its JSON where it has no usable id.", "id"),
            reason=("text", "What is wrong with it."),
            raw=("text", "The row as JSON."),
            _first_seen_at=("timestamp", "When a sync first saw it so."),
        ),
        _PARENT,
        _RUN,
    ),
)
MEETING_ALIASES = Table(
    "raw",
    "meeting_aliases",
    "Meetings that the API redirects to another one (merged or copied).",
    (
        _ACCOUNT,
        *_columns(
            id=("text", "The meeting that redirects.", "id"),
            redirect_to_meeting_id=("text", "The meeting to use in its place, at the end of all redirects.", "id"),
            _first_seen_at=(
                "timestamp",
                "When a sync first saw it redirect there: later where it came to redirect elsewhere.",
            ),
        ),
    ),
)
WINDOWS = Table(
    "ops",
    "windows",
    "The last listing of each window: what was listed, and whether it is known to be complete.",
    _columns(
        account=("text", "The account."),
        stream=("text", "The stream, document_contents, or profile."),
        window_start=("timestamp", "First instant of the window; NULL for a full sync."),
        window_end=("timestamp", "End of the window, itself not included; NULL for a full sync."),
        rows=("integer", "Rows received, each id counted once."),
        total=("integer", "Rows that the API said there are."),
        requests=("integer", "Requests that this cost."),
        complete=("boolean", "Whether the tables are known to equal the API for this window."),
        reason=("text", "Why it is not complete, and what to do; NULL when it is."),
        quarantined=("integer", "Rows that went to raw.quarantine."),
        missing=(
            "integer",
            "Rows that should have been returned, were not, and are not confirmed to be gone.",
        ),
        outside=("integer", "Rows that the API returned for the window although their date lies outside it."),
        listed_at=("timestamp", "When the listing was finished."),
        complete_at=("timestamp", "Until when a listing of this window was last complete; NULL if none ever was."),
        begun_at=(
            "timestamp",
            "Since when what was listed is the API's state, where that is not listed_at: a listing that was interrupted goes on.",
        ),
        run_id=("text", "The sync, see ops.runs."),
    ),
    volatile=("requests", "listed_at", "complete_at", "begun_at", "run_id"),
)
_RUN_COLUMNS = _columns(
    run_id=("text", "The sync's id."),
    started_at=("timestamp", "When it began."),
    finished_at=("timestamp", "When it ended; NULL while it works, and for ever when it was killed."),
    version=("text", "The version of contio-pipeline."),
    window_start=("timestamp", "First instant of the window; NULL for a full sync."),
    window_end=("timestamp", "End of the window, itself not included; NULL for a full sync."),
    complete=("boolean", "Whether everything asked for is complete."),
    inserted=("integer", "Rows seen for the first time."),
    updated=("integer", "Rows whose content changed, or that came back."),
    deleted=("integer", "Rows confirmed to be gone."),
    quarantined=("integer", "Rows that went to raw.quarantine."),
    requests=("integer", "Requests to the API, all tries counted."),
    throttled=("integer", "Answers 429."),
    bytes=("integer", "Bytes of answers received."),
)
RUNS = Table(
    "ops",
    "runs",
    "Every sync: what was asked for, what it found, what it cost.",
    _RUN_COLUMNS,
    volatile=tuple(column.name for column in _RUN_COLUMNS),
)
ASSUMPTIONS = Table(
    "ops",
    "assumptions",
    "What the API leaves undocumented, as last observed.",
    _columns(
        account=("text", "The account through which it was observed."),
        stream=("text", "The stream."),
        assumption=(
            "text",
            (
                "date_filter: the list's filter means the stream's date field; open_filter: the list can be filtered by whether "
                "a row is done; full_lists: a list holds all of its rows' fields; "
                "long_ranges: a list answers a range of dates of any length."
            ),
        ),
        holds=(
            "boolean",
            (
                "False once it was seen not to hold: then windows mark nothing as missing (date_filter), open rows are not "
                "listed besides (open_filter), changed rows are read by id (full_lists), ranges are listed in parts "
                "(long_ranges)."
            ),
        ),
        detail=(
            "text",
            (
                "The date field; the field that says whether a row is done; the fields that rows of the list lack; the longest "
                "range that is asked for, in days."
            ),
        ),
        observed_at=("timestamp", "When this was observed."),
    ),
    volatile=("observed_at",),
)
LISTED = Table(
    "ops",
    "listed",
    "Of rows that were read by id because the list holds less of them: what the list held, to notice a change by.",
    _columns(
        account=("text", "The account."),
        stream=("text", "The stream."),
        id=("text", "The row's id.", "id"),
        listed_hash=("text", "SHA-256 of the row as it was listed."),
    ),
)
CHILD_LISTS = Table(
    "ops",
    "child_lists",
    "When the list of each parent row was last read whole.",
    _columns(
        account=("text", "The account."),
        stream=("text", "The stream that has a list for each parent row."),
        parent_id=("text", "The parent row's id.", "id"),
        listed_at=("timestamp", "When its list was last read whole."),
        tried_at=("timestamp", "When it was last asked for, whole or not."),
    ),
    volatile=("listed_at", "tried_at"),
)
META = Table(
    "ops",
    "meta",
    "What the warehouse is: api_origin, schema_version, a hash of the application's client id, the calendar's range, whether "
    "bytes of broken rows may be left in the file.",
    _columns(key=("text", "Which fact."), value=("text", "The fact.")),
    volatile=("key", "value"),
)


def tables(streams: tuple[Stream, ...] = STREAMS) -> tuple[Table, ...]:
    """All tables and views of the warehouse, in the order in which they are created and published."""
    return (
        *(table for stream in streams for table in (stream.table, stream.past, stream.history)),
        ACCOUNTS,
        DOCUMENT_CONTENTS,
        DOCUMENT_TEXTS,
        QUARANTINE,
        MEETING_ALIASES,
        WINDOWS,
        RUNS,
        ASSUMPTIONS,
        LISTED,
        CHILD_LISTS,
        META,
    )


def own_tables(streams: tuple[Stream, ...] = STREAMS) -> tuple[Table, ...]:
    """The tables of `raw` without pasts and histories, which have the columns of their stream's."""
    follow = {table.full_name for stream in streams for table in (stream.past, stream.history)}
    return tuple(table for table in tables(streams) if table.schema == "raw" and table.full_name not in follow)


def stream_named(name: str, streams: tuple[Stream, ...] = STREAMS) -> Stream:
    """The declared stream of that name.

    Raises:
        KeyError: there is none.
    """
    return {stream.name: stream for stream in streams}[name]
