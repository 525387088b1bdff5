"""The marts: what an analyst asks of, made of the raw tables; each a view, its columns and their meaning, as data.

What lives here: SQL that reads `raw` and `ops`, and the sentences that explain it. What never does: running it, files, settings.

In `raw` a meeting that three people see is three rows, and a merged meeting has two ids. In `mart` a thing is one row, whoever
sees it: the newest version that an account sees, under the id that is in use. It is gone only when no account sees it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from types import MappingProxyType

from contio_pipeline.streams import stream_named
from contio_pipeline.workfile import literal


@dataclass(frozen=True, slots=True)
class Field:
    """One column of a mart.

    Attributes:
        name: of the column.
        type: DuckDB's.
        doc: what it means, with its unit.
        of: the columns of `raw`, as `table.column`, that it shows or is made of; where one is dropped, it is NULL.
    """

    name: str
    type: str
    doc: str
    of: tuple[str, ...] = ()

    def hidden(self, actions: Mapping[str, str]) -> str:
        """What to add to `doc` where the column is hidden."""
        done = {actions[column] for column in self.of if column in actions}
        return " Hidden: NULL." if "drop" in done else " Hidden: made of salted hashes." if "hash" in done else ""


@dataclass(frozen=True, slots=True)
class Mart:
    """One mart.

    Attributes:
        name: of the view in the schema `mart`, and of its Parquet folder.
        doc: what one row is.
        fields: its columns, in order.
        sql: makes the SELECT of the time zone in which days are local, and of today (both as SQL).
        stored: whether it is a table: dearer to make than to keep, and small.
    """

    name: str
    doc: str
    fields: tuple[Field, ...]
    sql: Callable[[str, str], str]
    stored: bool = False

    @property
    def full_name(self) -> str:
        """`mart.name`, as SQL writes it."""
        return f"mart.{self.name}"

    def select(self, zone: str, today: date, hidden: Mapping[str, str] = MappingProxyType({})) -> str:
        """The statement of the view.

        Args:
            zone: IANA name of the time zone of local days.
            today: the local day of the publication.
            hidden: `table.column` of `raw` -> what the publish policy does with it. What is made of a dropped column is NULL:
                nobody can tell.
        """
        sql = self.sql(literal(zone), f"DATE {literal(today.isoformat())}")
        dropped = [one for one in self.fields if "drop" in map(hidden.get, one.of)]
        nothing = ", ".join(f"NULL::{one.type} AS {one.name}" for one in dropped)
        return f"SELECT * REPLACE ({nothing}) FROM ({sql})" if dropped else sql

    @property
    def reads(self) -> frozenset[str]:
        """Full names of the tables and marts that its statement names."""
        return frozenset(re.findall(r"\b(?:raw|ops|mart)\.\w+", self.sql("''", "''")))


def _fields(**fields: tuple[str, ...]) -> tuple[Field, ...]:
    """Of each name: type, meaning, and what it is made of."""
    return tuple(Field(name, kind, doc, tuple(of)) for name, (kind, doc, *of) in fields.items())


_SEEN = ("VARCHAR[]", "The accounts that see it now, sorted; empty when it is gone.")
_DELETED = ("TIMESTAMP WITH TIME ZONE", "When the last account lost sight of it; NULL while one sees it.")


def _one_row_each(table: str, key: str = "t.id", joins: str = "", where: str = "true") -> str:
    """SQL of a common table `best`: of each key the newest version that is seen, who sees it, since when nobody does.

    Most keys stand once, and are passed through; only of the others is something kept in memory, and no texts. Whether a key
    stands once is seen by its hash: one that is another key's as well costs time, and nothing else.
    """
    version = stream_named(table).version_field
    newest = f"t.{version}" if version else "NULL::TIMESTAMPTZ"
    rows = f"FROM raw.{table} t {joins} WHERE ({where})"
    return f"""shared AS (SELECT hash({key}) AS hashed {rows} GROUP BY 1 HAVING count(*) > 1),
        versions AS (
            SELECT {key} AS key, t.rowid AS place, t._account, t._deleted_at AS gone_at, t.id <> {key} AS is_old,
                coalesce(-epoch_us({newest}), 9223372036854775807) AS age, -epoch_us(t._changed_at) AS told
            {rows} AND hash({key}) IN (FROM shared)
        ),
        chosen AS (
            SELECT key, arg_min(place, (gone_at IS NOT NULL, is_old, age, told, _account)) AS place,
                coalesce(list_sort(list_distinct(list(_account) FILTER (gone_at IS NULL))), []) AS seen_by,
                CASE WHEN count(*) FILTER (gone_at IS NULL) = 0 THEN max(gone_at) END AS lost_at
            FROM versions GROUP BY key
        ),
        best AS NOT MATERIALIZED (
            SELECT {key} AS key, t.rowid AS place, t._deleted_at AS lost_at,
                CASE WHEN lost_at IS NULL THEN [t._account] ELSE [] END AS seen_by, t.*
            {rows} AND hash({key}) NOT IN (FROM shared)
            UNION ALL BY NAME
            SELECT key, place, seen_by, lost_at, t.* FROM chosen JOIN raw.{table} t ON t.rowid = chosen.place
        )"""


def _meeting_aliases(_zone: str, _today: str) -> str:
    """Whichever account told; of two that tell otherwise, the one that saw it last.

    Where that leads in a circle, it ends where the newest of the circle's merges leads: the others were undone. So was one whose
    account sees the old id as a meeting of its own again. All this once, in a table: recursive views crash DuckDB 1.2.2.
    """
    return """
        WITH RECURSIVE merges AS (
            SELECT a.id AS old_id, arg_max(a.redirect_to_meeting_id, (a._first_seen_at, a.redirect_to_meeting_id)) AS new_id,
                max(a._first_seen_at) AS told_at
            FROM raw.meeting_aliases a LEFT JOIN raw.meetings m ON m._account = a._account AND m.id = a.id
                AND m._deleted_at IS NULL AND coalesce(m.redirect_to_meeting_id, '') = ''
            WHERE m.id IS NULL GROUP BY a.id
        ),
        chains AS (
            SELECT old_id, old_id AS last_id, new_id, told_at, 1 AS hops FROM merges
            UNION ALL
            SELECT c.old_id, m.old_id, m.new_id, m.told_at, hops + 1
            FROM chains c JOIN merges m ON m.old_id = c.new_id WHERE hops < 10
        ),
        circles AS (SELECT DISTINCT old_id AS circle_id FROM chains WHERE old_id = new_id),
        ends AS (
            SELECT old_id, coalesce(
                arg_max(new_id, (told_at, new_id)) FILTER (circle_id IS NOT NULL), arg_max(new_id, hops)
            ) AS new_id
            FROM chains LEFT JOIN circles ON circle_id = last_id GROUP BY old_id
        )
        SELECT old_id AS id, new_id AS meeting_id FROM ends WHERE old_id <> new_id"""


def _meetings(zone: str, _today: str) -> str:
    rows = _one_row_each(
        "meetings",
        "coalesce(a.meeting_id, t.id)",
        "LEFT JOIN mart.meeting_aliases a ON a.id = t.id LEFT JOIN seen ON seen.id = a.meeting_id",
        "t._gone_reason IS DISTINCT FROM 'merged' OR seen.id IS NULL",
    )
    return f"""
        WITH seen AS (  -- where one was merged into
            SELECT DISTINCT id FROM raw.meetings WHERE id IN (SELECT meeting_id FROM mart.meeting_aliases)
        ),
        {rows}
        SELECT key AS id, title, summary_notes, start_time, end_time, status,
            {_day("start_time", zone)} AS local_date,
            CASE WHEN end_time >= start_time THEN {_minutes("start_time", "end_time")} END AS minutes,
            workspace_id, created_by_user_id, calendar_event_id, created_at, updated_at, seen_by, lost_at AS deleted_at
        FROM best"""


def _minutes(begin: str, end: str) -> str:
    """SQL of the minutes between, as a DOUBLE: `end - begin` would count days of the reader's time zone, of 23 to 25 hours."""
    return f"((epoch_us({end})::HUGEINT - epoch_us({begin})) / 60e6)"


def _closed(of: str = "") -> str:
    """SQL: whether there is nothing to do any more."""
    return f"coalesce({of}is_completed OR {of}status = 'cancelled', false)"


def _action_items(zone: str, _today: str) -> str:
    """What was closed at no time of its own was closed when the first of its closed versions, up to now, was written."""
    return f"""
        WITH {_one_row_each("action_items")},
        past AS (
            SELECT p._account AS account, p.id AS item, p._changed_at AS seen_at, p.updated_at, {_closed("p.")} AS closed
            FROM raw.action_items_past p JOIN raw.action_items t ON t._account = p._account AND t.id = p.id
            WHERE {_closed("t.")} AND NOT coalesce(t.is_completed AND {_datable("t.completed_at")}, false)
        ),
        closings AS (
            SELECT account, item, arg_min(updated_at, seen_at) AS closed_at
            FROM (SELECT *, max(seen_at) FILTER (NOT closed) OVER (PARTITION BY account, item) AS open_at FROM past)
            WHERE open_at IS NULL OR seen_at > open_at GROUP BY ALL
        )
        SELECT key AS id, coalesce(a.meeting_id, best.meeting_id) AS meeting_id, assigned_to_user_id, title, description, status,
            is_completed, due_date, completed_at, {_day("completed_at", zone)} AS completed_local_date,
            {_day("created_at", zone)} AS created_local_date,
            least(
                CASE WHEN {_closed()} THEN greatest(created_local_date, coalesce(
                    CASE WHEN is_completed THEN completed_local_date END,
                    {_day("coalesce(closed_at, updated_at, created_at, best._changed_at)", zone)}
                )) END,
                CASE WHEN lost_at IS NOT NULL THEN greatest({_day("lost_at", zone)}, created_local_date) END
            ) AS closed_local_date,
            CASE WHEN completed_at >= created_at THEN {_minutes("created_at", "completed_at")} / 1440 END AS days_to_complete,
            created_at, updated_at, seen_by, lost_at AS deleted_at
        FROM best LEFT JOIN mart.meeting_aliases a ON a.id = best.meeting_id
        LEFT JOIN closings ON account = best._account AND item = key"""


def _day(moment: str, zone: str) -> str:
    """SQL of the local day; NULL where that lies outside of the years that dates have in most languages."""
    return f"CASE WHEN {_datable(moment)} THEN CAST({moment} AT TIME ZONE {zone} AS DATE) END"


def _datable(moment: str) -> str:
    return f"{moment} BETWEEN TIMESTAMPTZ '0001-01-02 00:00:00+00' AND TIMESTAMPTZ '9999-12-30 00:00:00+00'"


_LINKED = (
    """coalesce(CASE WHEN json_type(linked_meetings) = 'ARRAY' THEN linked_meetings ->> '$[0]' END, best.meeting_id)"""
)


def _calendar_events(zone: str, _today: str) -> str:
    """Texts are numbers while copies are looked for: of each event something is kept in memory.

    Copies have the same times, and the same organizer and title; those of one meeting have what one of them has. Where accounts
    have several such events, these are numbered: by their meetings, and without one by the lowest numbers that are left: first
    those that several accounts see, then those of one, then what is gone. What is gone takes no number from what is seen.
    """
    text, end_text = "(_extra ->> 'start_time')", "(_extra ->> 'end_time')"
    return f"""
        WITH {_one_row_each("calendar_events")},
        events AS NOT MATERIALIZED (
            SELECT best.*, coalesce(a.meeting_id, {_LINKED}) AS linked_id
            FROM best LEFT JOIN mart.meeting_aliases a ON a.id = {_LINKED}
        ),
        narrow AS (
            SELECT place, key, lost_at IS NOT NULL AS gone, CASE WHEN gone THEN [_account] ELSE seen_by END AS accounts,
                linked_id, linked_id IS NULL AS alone,
                hash(start_time, end_time, CASE WHEN start_time IS NULL THEN {text} END,
                    CASE WHEN end_time IS NULL THEN {end_text} END) AS times,
                md5_number_lower({_compared("organizer ->> '$.email'")}) AS organizer,
                md5_number_lower({_compared("title")}) AS title
            FROM events
        ),
        lives AS (
            SELECT *, CASE WHEN alone THEN NOT gone ELSE bool_or(NOT gone) OVER (PARTITION BY times, linked_id) END AS lives
            FROM narrow
        ),
        alike AS (
            SELECT * REPLACE (
                CASE WHEN alone THEN title ELSE max(title) FILTER (gone <> lives) OVER same END AS title,
                coalesce(CASE WHEN alone THEN organizer ELSE max(organizer) FILTER (gone <> lives) OVER same END,
                    md5_number_lower(coalesce(linked_id, key))) AS organizer
            ) FROM lives WINDOW same AS (PARTITION BY times, linked_id)
        ),
        looks AS (SELECT * EXCLUDE (times), hash(times, organizer, title) AS look FROM alike),
        counted AS (
            SELECT place, key, gone, alone, organizer, title, look, accounts,
                alone AND len(accounts) > 1 AS shared, CASE WHEN NOT alone THEN
                    dense_rank() OVER (PARTITION BY look, alone, lives ORDER BY linked_id)
                    + CASE WHEN lives THEN 0 ELSE count(*) FILTER (NOT gone) OVER (PARTITION BY look) END
                END AS number
            FROM looks
        ),
        held AS MATERIALIZED (SELECT *, unnest(accounts) AS account FROM counted),
        pooled AS (SELECT DISTINCT look, account FROM held WHERE shared),
        in_pools AS (
            SELECT DISTINCT place, key, look, number FROM held SEMI JOIN pooled USING (look, account)
            WHERE shared OR NOT (alone OR gone)
        ),
        of_several AS (SELECT place, left_number AS number FROM ({_lowest_left("in_pools", "look")}) WHERE number IS NULL),
        seen AS (
            SELECT h.* REPLACE (coalesce(h.number, o.number) AS number) FROM held h LEFT JOIN of_several o USING (place)
        ),
        placed AS MATERIALIZED (
            SELECT * EXCLUDE (nth, left_number)
                REPLACE (CASE WHEN gone THEN number ELSE coalesce(number, left_number) END AS number)
            FROM ({_lowest_left("seen", "look, account, gone")})
        ),
        with_gone AS (
            SELECT place, key, look, account, number FROM placed
            SEMI JOIN (SELECT look, account FROM placed WHERE number IS NULL) USING (look, account)
        ),
        of_gone AS (
            SELECT place, left_number AS number FROM ({_lowest_left("with_gone", "look, account")}) WHERE number IS NULL
        ),
        numbered AS (
            SELECT place, organizer AS organizer_number, title AS title_number, coalesce(p.number, g.number) AS number
            FROM placed p LEFT JOIN of_gone g USING (place) WHERE account = accounts[1]
        )
        SELECT key AS id, title, description, start_time, end_time, location,
            start_time IS NULL AND coalesce(len({text}) = 10, false) AS is_all_day,
            coalesce({_day("start_time", zone)}, TRY_CAST(left({text}, 10) AS DATE)) AS local_date,
            CASE WHEN end_time >= start_time THEN {_minutes("start_time", "end_time")} END AS minutes,
            {_compared("organizer ->> '$.email'")} AS organizer_email, organizer ->> '$.name' AS organizer_name,
            CASE WHEN json_type(attendees) = 'ARRAY' THEN json_array_length(attendees) ELSE 0 END::BIGINT AS attendees,
            linked_id AS meeting_id,
            md5(concat_ws(' ', coalesce(epoch_us(start_time)::VARCHAR, {text}, '-'),
                coalesce(epoch_us(end_time)::VARCHAR, {end_text}, '-'), organizer_number, title_number, number)) AS occurrence,
            seen_by, lost_at AS deleted_at
        FROM events LEFT JOIN numbered USING (place)"""


def _lowest_left(rows: str, group: str) -> str:
    """SQL of the rows with a `left_number`: of those without a number the lowest that are left in their group, by their keys."""
    return f"""
        SELECT *, dense_rank() OVER (
            PARTITION BY {group} ORDER BY CASE WHEN number IS NULL THEN nth ELSE number - nth END, number IS NULL DESC, nth
        ) AS left_number
        FROM (
            SELECT *, dense_rank() OVER (
                PARTITION BY {group}, number IS NULL ORDER BY number, CASE WHEN number IS NULL THEN key END
            ) AS nth FROM {rows}
        )"""


def _compared(value: str) -> str:
    """SQL of an address, or title, as it is compared: in lower case; NULL where it is blank."""
    return f"lower(nullif(trim({value}), ''))"


def _each(column: str) -> str:
    """SQL of the values of a JSON list, a row for each; none where it is no list."""
    return f"unnest(CAST(CASE WHEN json_type({column}) = 'ARRAY' THEN {column} END AS JSON[]))"


def _event_attendees(_zone: str, _today: str) -> str:
    return f"""
        WITH {_one_row_each("calendar_events")},
        each AS (
            SELECT key, lost_at, {_compared("organizer ->> '$.email'")} AS organizer_email,
                {_each("attendees")} AS one
            FROM best
        )
        SELECT key AS event_id, {_compared("one ->> '$.email'")} AS email, one ->> '$.name' AS name,
            one ->> '$.status' AS status, one ->> '$.type' AS type,
            coalesce(lower(trim(one ->> '$.email')) = organizer_email, false) AS is_organizer, lost_at AS deleted_at
        FROM each"""


_CONTENTS = f"""{_one_row_each("context_documents")},
        held AS (
            SELECT key, arg_min(c.rowid, (c._account <> best._account OR state = 'unavailable', state <> 'stored',
                coalesce(-epoch_us(fetched_at), 0), c._account)) AS place
            FROM best JOIN raw.document_contents c ON c.id = key
            LEFT JOIN raw.context_documents o ON o._account = c._account AND o.id = c.id
            WHERE c._account = best._account
                OR (state = 'stored' AND o.updated_at = best.updated_at AND o.file_status IS NOT DISTINCT FROM best.file_status)
            GROUP BY key
        ),
        contents AS (SELECT key AS document, c.* FROM held JOIN raw.document_contents c ON c.rowid = place)"""
"""SQL of a common table: of each document the contents of the version that counts: those of its account, or, where it has none,
those that another account has of the same version."""


def _context_documents(_zone: str, _today: str) -> str:
    return f"""
        WITH {_CONTENTS}
        SELECT key AS id, coalesce(a.meeting_id, best.meeting_id, _parent_id) AS meeting_id, title, context_type, source_format,
            file_status, source_name, created_by_user_id, best.created_at, best.updated_at, state AS content_state,
            sha256, size_bytes, seen_by, lost_at AS deleted_at
        FROM best LEFT JOIN mart.meeting_aliases a ON a.id = coalesce(best.meeting_id, _parent_id)
        LEFT JOIN contents ON document = key"""


def _document_texts(_zone: str, _today: str) -> str:
    return f"""
        WITH {_CONTENTS}
        SELECT d.id, d.meeting_id, d.title, d.source_format, text, characters,
            CASE WHEN text IS NULL THEN coalesce(t.reason, c.reason, CASE WHEN characters IS NOT NULL
                    OR (d.content_state = 'stored' AND d.sha256 IS NULL) THEN 'it is hidden'
                WHEN d.content_state = 'stored' THEN 'it is not read yet' ELSE 'its contents were not downloaded' END)
            END AS reason,
            d.sha256, d.created_at, d.seen_by, d.deleted_at
        FROM mart.context_documents d LEFT JOIN raw.document_texts t ON t.sha256 = d.sha256 AND d.content_state = 'stored'
        LEFT JOIN contents c ON document = d.id"""


def _people(_zone: str, _today: str) -> str:
    return f"""
        WITH told AS (
            SELECT id AS user_id, {_compared("email")} AS email, display_name AS name, 'accounts' AS source, 1 AS rank
            FROM raw.accounts
            UNION
            SELECT created_by_user_id, NULL, NULL, 'meetings', 9 FROM raw.meetings
            UNION
            SELECT assigned_to_user_id, NULL, NULL, 'action_items', 9 FROM raw.action_items
            UNION
            SELECT created_by_user_id, NULL, NULL, 'context_documents', 9 FROM raw.context_documents
            UNION
            SELECT NULL, email, name, 'event_attendees', 4 FROM mart.event_attendees WHERE type IS DISTINCT FROM 'resource'
            UNION
            SELECT NULL, organizer_email, organizer_name, 'calendar_events', 3 FROM mart.calendar_events
            UNION
            SELECT user_id, {_compared("email")}, name, 'participants', 2 FROM raw.participants
            UNION
            SELECT one ->> '$.user_id', {_compared("one ->> '$.email'")}, one ->> '$.name', 'agenda_items', 2
            FROM (SELECT {_each("presenter_details")} AS one FROM raw.agenda_items)
            UNION
            SELECT one ->> '$', NULL, NULL, 'agenda_items', 9
            FROM (SELECT {_each("presenters")} AS one FROM raw.agenda_items) WHERE json_type(one) = 'VARCHAR'
        ),
        owners AS (
            SELECT email, arg_min(user_id, (rank, user_id)) AS owner
            FROM told WHERE email IS NOT NULL AND user_id <> '' GROUP BY email
        ),
        whole AS (
            SELECT coalesce(nullif(user_id, ''), owner) AS user_id, coalesce(nullif(user_id, ''), owner, email) AS id, email,
                name, source, rank, coalesce(owner, email) AS belongs_to
            FROM told LEFT JOIN owners USING (email)
        )
        SELECT id, any_value(user_id) AS user_id, arg_min(email, (rank, email)) FILTER (belongs_to = id) AS email,
            coalesce(list(DISTINCT email ORDER BY email) FILTER (belongs_to = id), []) AS emails,
            arg_min(name, (rank, name)) FILTER (trim(name) <> '') AS name, list(DISTINCT source ORDER BY source) AS sources
        FROM whole WHERE id IS NOT NULL GROUP BY id"""


def _person_week(zone: str, _today: str) -> str:
    """Addresses, people and occurrences are numbers in here: of each event and person something is kept in memory."""
    return f"""
        WITH addresses AS MATERIALIZED (
            SELECT *, row_number() OVER () AS address FROM (
                SELECT id AS person_id, unnest(emails) AS email, row_number() OVER () AS person FROM mart.people
            )
        ),
        events AS (
            SELECT id, md5_number(occurrence) AS event, organizer_email, start_time, end_time,
                date_trunc('week', local_date)::DATE AS first_week,
                date_trunc('week', end_time AT TIME ZONE {zone})::DATE AS last_week
            FROM mart.calendar_events
            WHERE deleted_at IS NULL AND local_date IS NOT NULL AND minutes > 0 AND minutes < 24 * 60
        ),
        named AS (
            SELECT event, address, status = 'declined' AS declined
            FROM mart.event_attendees JOIN events ON event_id = id JOIN addresses USING (email)
            WHERE type IS DISTINCT FROM 'resource'
            UNION ALL
            SELECT event, address, false FROM events JOIN addresses ON email = organizer_email
        ),
        going AS (SELECT event, address FROM named GROUP BY ALL HAVING NOT coalesce(bool_or(declined), false)),
        attended AS (SELECT DISTINCT person, event FROM going JOIN addresses USING (address)),
        weeks AS (
            SELECT week, week::TIMESTAMP AT TIME ZONE {zone} AS monday, (week + 7)::TIMESTAMP AT TIME ZONE {zone} AS next_monday
            FROM (SELECT first_week AS week FROM events UNION SELECT last_week FROM events)
        ),
        parts AS (
            SELECT DISTINCT event, week, greatest(start_time, monday) AS begins, least(end_time, next_monday) AS ends
            FROM events JOIN weeks ON week IN (first_week, last_week) WHERE end_time > monday AND start_time < next_monday
        ),
        reached AS (
            SELECT person, week, begins, ends, max(ends) OVER (
                PARTITION BY person, week ORDER BY begins, ends ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ) AS until
            FROM attended JOIN parts USING (event)
        ),
        sums AS (
            SELECT person, week, count(*) AS events,
                sum(greatest({_minutes("greatest(begins, coalesce(until, begins))", "ends")}, 0)) AS minutes,
                sum({_minutes("begins", "ends")}) AS minutes_booked
            FROM reached GROUP BY ALL
        )
        SELECT person_id, week AS week_start, events, minutes, minutes_booked
        FROM sums JOIN (SELECT DISTINCT person, person_id FROM addresses) USING (person)"""


def item_steps(items: str, today: str, *kept: str) -> str:
    """SQL of the days on which action items add to, or take from, what there is to do: one row for each such step.

    Args:
        items: what to select from: `mart.action_items`, or its file.
        today: as SQL; items created later do not count, nor those from before this century.
        kept: columns of the items that the steps keep.
    """
    keep = "".join(f", {column}" for column in kept)
    return f"""
        WITH items AS (
            SELECT created_local_date AS opened, due_date, closed_local_date AS closed, is_completed{keep}
            FROM {items} WHERE created_local_date BETWEEN DATE '2000-01-01' AND {today}
        ),
        late AS (SELECT *, greatest(opened, due_date + 1) AS since FROM items WHERE due_date >= DATE '1970-01-01')
        SELECT opened AS day, 1 AS open, 0 AS overdue, 0 AS aged, 1 AS created, 0 AS completed{keep} FROM items
        UNION ALL SELECT closed, -1, 0, 0, 0, is_completed::INT{keep} FROM items WHERE closed IS NOT NULL
        UNION ALL SELECT since, 0, 1, 0, 0, 0{keep} FROM late WHERE closed IS NULL OR closed > since
        UNION ALL SELECT closed, 0, -1, 0, 0, 0{keep} FROM late WHERE closed > since
        UNION ALL SELECT opened + 31, 0, 0, 1, 0, 0{keep} FROM items WHERE closed IS NULL OR closed > opened + 31
        UNION ALL SELECT closed, 0, 0, -1, 0, 0{keep} FROM items WHERE closed > opened + 31"""


def _action_item_daily(zone: str, today: str) -> str:
    return f"""
        WITH steps AS ({item_steps("mart.action_items", today)}),
        sums AS (SELECT day, sum(COLUMNS(* EXCLUDE day)) FROM steps GROUP BY day),
        days AS (SELECT unnest(generate_series(min(day), {today}, INTERVAL 1 DAY))::DATE AS day FROM steps),
        first_sync AS (SELECT {_day("min(_first_seen_at)", zone)} AS day FROM raw.action_items)
        SELECT days.day, sum(coalesce(open, 0)) OVER past::BIGINT AS open, sum(coalesce(overdue, 0)) OVER past::BIGINT AS overdue,
            sum(coalesce(aged, 0)) OVER past::BIGINT AS open_over_30_days, coalesce(created, 0)::BIGINT AS created,
            coalesce(completed, 0)::BIGINT AS completed, coalesce(days.day < first_sync.day, true) AS is_reconstructed
        FROM days LEFT JOIN sums USING (day) CROSS JOIN first_sync WINDOW past AS (ORDER BY days.day)"""


_NOTED = r"coalesce(regexp_matches(summary_notes, '\S'), false)"  # trim() looks at each letter of them
_ENDED = "status IN ('ended', 'completed')"


def _meeting_hygiene(_zone: str, _today: str) -> str:
    return f"""
        WITH items AS (SELECT meeting_id, count(*) AS n FROM mart.action_items WHERE deleted_at IS NULL GROUP BY ALL),
        ended AS MATERIALIZED (  -- so that no join carries the notes along
            SELECT id, title, local_date, created_by_user_id, {_NOTED} AS has_notes
            FROM mart.meetings WHERE deleted_at IS NULL AND {_ENDED}
        )
        SELECT id AS meeting_id, title, local_date, created_by_user_id, has_notes, coalesce(n, 0) AS action_items
        FROM ended LEFT JOIN items ON items.meeting_id = id"""


def _calendar_linkage(_zone: str, _today: str) -> str:
    """Nearly all events name one meeting, or none: only of the others more than the first is looked at."""
    many = "t.id IN (SELECT id FROM raw.calendar_events WHERE contains(linked_meetings, ','))"
    return f"""
        WITH {_one_row_each("calendar_events", where=many)},
        live AS (SELECT id, start_time, calendar_event_id FROM mart.meetings WHERE deleted_at IS NULL),
        events AS (SELECT * FROM mart.calendar_events WHERE deleted_at IS NULL),
        open AS (SELECT id FROM events WHERE meeting_id IS NULL OR meeting_id NOT IN (SELECT id FROM live)),
        named AS (
            SELECT event_id, coalesce(a.meeting_id, linked_id) AS meeting_id, place
            FROM (
                SELECT key AS event_id, unnest(json_extract_string(linked_meetings, '$[*]')) AS linked_id,
                    unnest(range(json_array_length(linked_meetings)::BIGINT)) AS place
                FROM best WHERE json_type(linked_meetings) = 'ARRAY'
            ) LEFT JOIN mart.meeting_aliases a ON a.id = linked_id
            UNION ALL
            SELECT open.id, live.id, 1000000 FROM live JOIN open ON calendar_event_id = open.id
        ),
        others AS (
            SELECT event_id, arg_min(live.id, (place, live.start_time, live.id)) AS other_id
            FROM named JOIN open ON open.id = event_id JOIN live ON live.id = meeting_id GROUP BY event_id
        )
        SELECT e.id AS event_id, occurrence, title, local_date, is_all_day, organizer_email,
            coalesce(other_id, meeting_id) AS meeting_id,
            CASE WHEN m.id IS NOT NULL THEN 'linked' WHEN meeting_id IS NULL THEN 'none' ELSE 'unseen' END AS link,
            {_minutes("e.start_time", "m.start_time")} AS meeting_starts_later_minutes
        FROM events e LEFT JOIN others ON event_id = e.id LEFT JOIN live m ON m.id = coalesce(other_id, meeting_id)"""


def _context_coverage(_zone: str, _today: str) -> str:
    return """
        SELECT m.id AS meeting_id, any_value(m.title) AS title, any_value(m.local_date) AS local_date,
            any_value(m.start_time) AS start_time, count(d.id) AS documents,
            count(d.id) FILTER (d.created_at <= m.start_time) AS documents_before_start,
            documents_before_start > 0 AS is_prepared, min(d.created_at) AS first_document_at
        FROM mart.meetings m LEFT JOIN mart.context_documents d ON d.meeting_id = m.id AND d.deleted_at IS NULL
        WHERE m.deleted_at IS NULL GROUP BY m.id"""


def _time_to_summary(_zone: str, _today: str) -> str:
    return f"""
        WITH noted AS (
            SELECT coalesce(a.meeting_id, h.id) AS id, min(_changed_at) AS seen_at, min(updated_at) AS written_at
            FROM raw.meetings_history h LEFT JOIN mart.meeting_aliases a ON a.id = h.id
            WHERE {_NOTED} AND _operation <> 'delete' GROUP BY 1
        ),
        known AS (
            SELECT coalesce(a.meeting_id, h.id) AS id, min(_changed_at) AS since
            FROM raw.meetings_history h LEFT JOIN mart.meeting_aliases a ON a.id = h.id GROUP BY 1
        )
        SELECT m.id AS meeting_id, title, local_date, end_time, noted.written_at AS summary_at, noted.seen_at AS summary_seen_at,
            CASE WHEN written_at >= end_time THEN {_minutes("end_time", "written_at")} END AS minutes_to_summary,
            seen_at IS NOT NULL AND seen_at = since AS is_upper_bound
        FROM mart.meetings m JOIN known USING (id) LEFT JOIN noted USING (id) WHERE m.deleted_at IS NULL AND {_ENDED}"""


def _sync_health(_zone: str, _today: str) -> str:
    return """
        WITH windows AS (
            SELECT *, NOT complete AND coalesce(
                listed_at >= max(complete_at) FILTER (window_start IS NULL) OVER (PARTITION BY account, stream), true
            ) AS lacks FROM ops.windows
        ),
        listed AS (
            SELECT account, stream, max(listed_at) AS last_listed_at, max(complete_at) AS last_complete_at,
                count(*) FILTER (lacks) AS incomplete_windows,
                arg_max(coalesce(reason, ''), listed_at) FILTER (lacks) AS reason
            FROM windows GROUP BY ALL
        ),
        broken AS (SELECT _account AS account, stream, count(*) AS n FROM raw.quarantine GROUP BY ALL)
        SELECT account, stream, last_listed_at, incomplete_windows = 0 AS is_complete, nullif(reason, '') AS reason,
            last_complete_at, incomplete_windows, coalesce(n, 0) AS broken_rows
        FROM listed LEFT JOIN broken USING (account, stream)"""


_TIME = "TIMESTAMP WITH TIME ZONE"

MARTS: tuple[Mart, ...] = (
    Mart(
        "meeting_aliases",
        "The id of a meeting that was merged into another, after all merges that any account told of. Where raw tables name a "
        "meeting, join this to find it in mart.meetings.",
        _fields(
            id=("VARCHAR", "The old id of a meeting that was merged into another."),
            meeting_id=("VARCHAR", "The id that is in use."),
        ),
        _meeting_aliases,
        stored=True,
    ),
    Mart(
        "meetings",
        "A meeting, once, however many accounts see it; merged meetings are the one that they were merged into.",
        _fields(
            id=("VARCHAR", "The meeting's id that is in use."),
            title=("VARCHAR", "Title.", "meetings.title"),
            summary_notes=("VARCHAR", "Summary notes that Contio made from the meeting.", "meetings.summary_notes"),
            start_time=(_TIME, "Scheduled start.", "meetings.start_time"),
            end_time=(_TIME, "Scheduled end.", "meetings.end_time"),
            status=(
                "VARCHAR",
                "draft, scheduled, in_progress, ended or completed; new values may appear.",
                "meetings.status",
            ),
            local_date=("DATE", "The day of its start in CONTIO_TIMEZONE.", "meetings.start_time"),
            minutes=(
                "DOUBLE",
                "From its start to its end, in minutes; NULL where one is missing or they are reversed.",
                "meetings.start_time",
                "meetings.end_time",
            ),
            workspace_id=("VARCHAR", "The workspace that it belongs to.", "meetings.workspace_id"),
            created_by_user_id=("VARCHAR", "The user who created it, see mart.people.", "meetings.created_by_user_id"),
            calendar_event_id=("VARCHAR", "The linked calendar event, if any.", "meetings.calendar_event_id"),
            created_at=(_TIME, "When it was created in Contio.", "meetings.created_at"),
            updated_at=(_TIME, "When it last changed in Contio.", "meetings.updated_at"),
            seen_by=_SEEN,
            deleted_at=_DELETED,
        ),
        _meetings,
    ),
    Mart(
        "action_items",
        "An action item, once, however many accounts see it.",
        _fields(
            id=("VARCHAR", "The action item's id."),
            meeting_id=(
                "VARCHAR",
                (
                    "The meeting that it came from, by the id that is in use, as far as that is known: of a meeting that was "
                    "merged before the first sync the API still tells the old id, and of the merge nothing."
                ),
                "action_items.meeting_id",
            ),
            assigned_to_user_id=(
                "VARCHAR",
                "The user who is to do it, see mart.people.",
                "action_items.assigned_to_user_id",
            ),
            title=("VARCHAR", "Title.", "action_items.title"),
            description=("VARCHAR", "What is to be done.", "action_items.description"),
            status=(
                "VARCHAR",
                "needs_review, accepted, in_progress, blocked, completed or cancelled; new values may appear.",
                "action_items.status",
            ),
            is_completed=("BOOLEAN", "Whether it is done.", "action_items.is_completed"),
            due_date=("DATE", "The day it is due, as written by the API.", "action_items.due_date"),
            completed_at=(_TIME, "When it was completed.", "action_items.completed_at"),
            completed_local_date=(
                "DATE",
                "The day of completed_at in CONTIO_TIMEZONE; NULL beyond the years 1 to 9999.",
                "action_items.completed_at",
            ),
            created_local_date=("DATE", "The day of created_at in CONTIO_TIMEZONE.", "action_items.created_at"),
            closed_local_date=(
                "DATE",
                (
                    "The day from which there is nothing to do any more: completed, cancelled, or no longer seen; NULL while "
                    "open. Never before created_local_date; in the future where completed_at is. Where no time is told "
                    "(cancelled, or completed without completed_at), that on which the first version that a sync saw so, of "
                    "those up to now, was written."
                ),
                "action_items.created_at",
                "action_items.completed_at",
                "action_items.updated_at",
                "action_items.is_completed",
                "action_items.status",
            ),
            days_to_complete=(
                "DOUBLE",
                (
                    "From created_at to completed_at, in days of 24 hours; NULL where one is missing or they are reversed. An "
                    "item that was opened again may still have it."
                ),
                "action_items.created_at",
                "action_items.completed_at",
            ),
            created_at=(_TIME, "When it was created in Contio.", "action_items.created_at"),
            updated_at=(_TIME, "When it last changed in Contio.", "action_items.updated_at"),
            seen_by=_SEEN,
            deleted_at=_DELETED,
        ),
        _action_items,
    ),
    Mart(
        "calendar_events",
        "An event of a connected calendar, once, however many accounts see it.",
        _fields(
            id=("VARCHAR", "The event's id."),
            title=("VARCHAR", "Title.", "calendar_events.title"),
            description=("VARCHAR", "Description or body.", "calendar_events.description"),
            start_time=(_TIME, "Start; NULL for an all-day event.", "calendar_events.start_time"),
            end_time=(_TIME, "End; NULL for an all-day event.", "calendar_events.end_time"),
            location=("VARCHAR", "Room or link.", "calendar_events.location"),
            is_all_day=(
                "BOOLEAN",
                "Whether its start is a day without a time.",
                "calendar_events.start_time",
                "calendar_events._extra",
            ),
            local_date=(
                "DATE",
                (
                    "The day of its start in CONTIO_TIMEZONE; of an all-day event its first day, and of a time without a zone "
                    "its day, as written."
                ),
                "calendar_events.start_time",
            ),
            minutes=(
                "DOUBLE",
                "From its start to its end, in minutes; NULL for an all-day event, or where they are reversed.",
                "calendar_events.start_time",
                "calendar_events.end_time",
            ),
            organizer_email=("VARCHAR", "The organizer's address, in lower case.", "calendar_events.organizer"),
            organizer_name=("VARCHAR", "The organizer's name.", "calendar_events.organizer"),
            attendees=(
                "BIGINT",
                "How many attendees it names, resources included; see mart.event_attendees.",
                "calendar_events.attendees",
            ),
            meeting_id=(
                "VARCHAR",
                "The oldest Contio meeting that it is linked to, by the id that is in use; NULL where none is.",
                "calendar_events.linked_meetings",
                "calendar_events.meeting_id",
            ),
            occurrence=(
                "VARCHAR",
                (
                    "The same for copies of one event in several calendars: same start and end, and same first meeting, or "
                    "else same organizer and title. Two events that one account sees are never the same, unless they name the "
                    "same meeting first."
                ),
                "calendar_events.start_time",
                "calendar_events.end_time",
                "calendar_events._extra",
            ),
            seen_by=_SEEN,
            deleted_at=_DELETED,
        ),
        _calendar_events,
    ),
    Mart(
        "event_attendees",
        "An attendee of a calendar event, as the event names them.",
        _fields(
            event_id=("VARCHAR", "The event, see mart.calendar_events."),
            email=(
                "VARCHAR",
                "The attendee's address, in lower case; NULL where there is none.",
                "calendar_events.attendees",
            ),
            name=("VARCHAR", "The attendee's name.", "calendar_events.attendees"),
            status=(
                "VARCHAR",
                "accepted, declined, tentative or needs_action; new values may appear.",
                "calendar_events.attendees",
            ),
            type=(
                "VARCHAR",
                "required, optional or resource (a room); new values may appear.",
                "calendar_events.attendees",
            ),
            is_organizer=("BOOLEAN", "Whether the address is the organizer's.", "calendar_events.organizer"),
            deleted_at=(
                "TIMESTAMP WITH TIME ZONE",
                "When the last account lost sight of the event; NULL while one sees it.",
            ),
        ),
        _event_attendees,
    ),
    Mart(
        "context_documents",
        "A context document, once; only those that the current partner application uploaded are visible.",
        _fields(
            id=("VARCHAR", "The document's id."),
            meeting_id=("VARCHAR", "The meeting that it prepares, by the id that is in use."),
            title=("VARCHAR", "Title.", "context_documents.title"),
            context_type=("VARCHAR", "What kind of context it is (free text).", "context_documents.context_type"),
            source_format=("VARCHAR", "json, csv, tsv, xml, html, yaml, md or txt.", "context_documents.source_format"),
            file_status=(
                "VARCHAR",
                "Processing state (free text; seen: pending, processing, complete, error).",
                "context_documents.file_status",
            ),
            source_name=("VARCHAR", "The uploading source's display name.", "context_documents.source_name"),
            created_by_user_id=(
                "VARCHAR",
                "The user who created it, see mart.people.",
                "context_documents.created_by_user_id",
            ),
            created_at=(_TIME, "When it was created in Contio.", "context_documents.created_at"),
            updated_at=(_TIME, "When it last changed in Contio.", "context_documents.updated_at"),
            content_state=(
                "VARCHAR",
                (
                    "stored, waiting, error or unavailable, see raw.document_contents; NULL where it was not asked for. That, "
                    "and the bytes, are as they were at raw.document_contents.fetched_at: after a sync without documents they "
                    "may be older than the row."
                ),
                "document_contents.state",
            ),
            sha256=(
                "VARCHAR",
                (
                    "SHA-256 of its bytes, hexadecimal; the file is documents/ab/cd/<sha256>. While content_state is not stored, "
                    "or after a sync without documents, it may be an earlier version's."
                ),
                "document_contents.sha256",
            ),
            size_bytes=("BIGINT", "Size of these bytes.", "document_contents.size_bytes"),
            seen_by=_SEEN,
            deleted_at=_DELETED,
        ),
        _context_documents,
    ),
    Mart(
        "document_texts",
        "A context document: its text, or why there is none.",
        _fields(
            id=("VARCHAR", "The document's id."),
            meeting_id=("VARCHAR", "The meeting that it prepares, by the id that is in use."),
            title=("VARCHAR", "Title.", "context_documents.title"),
            source_format=("VARCHAR", "json, csv, tsv, xml, html, yaml, md or txt.", "context_documents.source_format"),
            text=(
                "VARCHAR",
                (
                    "Its contents as text, as they are: markup is not taken out. After a sync without documents they may be an "
                    "earlier version's, see content_state in mart.context_documents."
                ),
                "document_texts.text",
                "document_contents.state",
                "document_contents.sha256",
                "document_texts.sha256",
            ),
            characters=(
                "BIGINT",
                "Characters of the text.",
                "document_texts.characters",
                "document_contents.state",
                "document_contents.sha256",
                "document_texts.sha256",
            ),
            reason=("VARCHAR", "Why there is no text; NULL where there is."),
            sha256=("VARCHAR", "As in mart.context_documents.", "document_contents.sha256"),
            created_at=(_TIME, "When it was created in Contio.", "context_documents.created_at"),
            seen_by=_SEEN,
            deleted_at=_DELETED,
        ),
        _document_texts,
    ),
    Mart(
        "people",
        "A person that anything names: a user of Contio by the id, others by their e-mail address.",
        _fields(
            id=("VARCHAR", "The Contio user's id where it is known, else the address."),
            user_id=("VARCHAR", "The Contio user's id; NULL for people outside."),
            email=(
                "VARCHAR",
                "The first of the person's own addresses, a profile's before others; NULL where there is none.",
                "accounts.email",
                "participants.email",
            ),
            emails=(
                "VARCHAR[]",
                (
                    "All addresses that are the person's, in lower case, sorted; each is one person's only: its profile's, else "
                    "that of the first user id named with it."
                ),
            ),
            name=(
                "VARCHAR",
                "The name: from the profile, else from a meeting, else from a calendar; NULL where nothing tells it.",
                "accounts.display_name",
                "participants.name",
            ),
            sources=(
                "VARCHAR[]",
                (
                    "Where the person is named, sorted: accounts (the profiles), action_items, agenda_items, calendar_events (as "
                    "the organizer), context_documents, event_attendees, meetings, participants."
                ),
            ),
        ),
        _people,
        stored=True,
    ),
    Mart(
        "person_week",
        "What a person's week holds in meetings of the calendars that are read: events that they organize or are invited to, and "
        "did not decline; no answer and tentative count. Each of a person's addresses is asked: what one declined another may "
        "attend. Copies of an event in several calendars count once. Rooms, events that are gone, all-day events, those of a day "
        "or longer, and those without a length are not counted.",
        _fields(
            person_id=("VARCHAR", "The person, see mart.people."),
            week_start=("DATE", "The Monday of the week in CONTIO_TIMEZONE."),
            events=(
                "BIGINT",
                "Events of which a part lies in the week.",
                "calendar_events.organizer",
                "calendar_events.attendees",
            ),
            minutes=(
                "DOUBLE",
                "Minutes of the week in which at least one of them takes place: overlaps count once.",
                "calendar_events.organizer",
                "calendar_events.attendees",
            ),
            minutes_booked=(
                "DOUBLE",
                "The sum of their minutes in the week: overlaps count twice.",
                "calendar_events.organizer",
                "calendar_events.attendees",
            ),
        ),
        _person_week,
        stored=True,
    ),
    Mart(
        "action_item_daily",
        "What there was to do at the end of each day, from the first action item to the day of publication. Cancelled ones count "
        "until they were, deleted ones until that was seen. Items without created_at, or from before 2000, are in no day.",
        _fields(
            day=("DATE", "The day in CONTIO_TIMEZONE."),
            open=(
                "BIGINT",
                "Action items that were open.",
                "action_items.created_at",
                "action_items.completed_at",
                "action_items.updated_at",
                "action_items.is_completed",
                "action_items.status",
            ),
            overdue=(
                "BIGINT",
                "Of these, those that were due before this day.",
                "action_items.created_at",
                "action_items.completed_at",
                "action_items.updated_at",
                "action_items.is_completed",
                "action_items.status",
                "action_items.due_date",
            ),
            open_over_30_days=(
                "BIGINT",
                "Of these, those that had been open for more than 30 days.",
                "action_items.created_at",
                "action_items.completed_at",
                "action_items.updated_at",
                "action_items.is_completed",
                "action_items.status",
            ),
            created=("BIGINT", "Action items that were created on this day."),
            completed=(
                "BIGINT",
                "Action items that are completed, by the day on which they were closed.",
                "action_items.created_at",
                "action_items.completed_at",
                "action_items.updated_at",
                "action_items.is_completed",
                "action_items.status",
            ),
            is_reconstructed=(
                "BOOLEAN",
                "True before the first sync of action items: made of what they say today, so what was deleted lacks.",
            ),
        ),
        _action_item_daily,
        stored=True,
    ),
    Mart(
        "meeting_hygiene",
        "A meeting that has ended (its status is ended or completed, whatever its time): whether it left notes and action items.",
        _fields(
            meeting_id=("VARCHAR", "The meeting, see mart.meetings."),
            title=("VARCHAR", "Title.", "meetings.title"),
            local_date=("DATE", "The day of its start in CONTIO_TIMEZONE.", "meetings.start_time"),
            created_by_user_id=("VARCHAR", "The user who created it, see mart.people.", "meetings.created_by_user_id"),
            has_notes=("BOOLEAN", "Whether there are summary notes.", "meetings.summary_notes"),
            action_items=("BIGINT", "Action items that came from it and are still seen.", "action_items.meeting_id"),
        ),
        _meeting_hygiene,
        stored=True,
    ),
    Mart(
        "calendar_linkage",
        "A calendar event: whether a Contio meeting belongs to it. Copies in several calendars are rows each.",
        _fields(
            event_id=("VARCHAR", "The event, see mart.calendar_events."),
            occurrence=(
                "VARCHAR",
                "The same for copies of one event: count(DISTINCT occurrence) counts them once.",
                "calendar_events.start_time",
                "calendar_events.end_time",
                "calendar_events._extra",
            ),
            title=("VARCHAR", "Title.", "calendar_events.title"),
            local_date=(
                "DATE",
                "The day of its start in CONTIO_TIMEZONE.",
                "calendar_events.start_time",
            ),
            is_all_day=(
                "BOOLEAN",
                "Whether its start is a day without a time.",
                "calendar_events.start_time",
                "calendar_events._extra",
            ),
            organizer_email=("VARCHAR", "The organizer's address, in lower case.", "calendar_events.organizer"),
            meeting_id=(
                "VARCHAR",
                (
                    "Of the meetings that it names the first that an account sees, else the first that names it; of an event "
                    "without such, the first that it names. NULL where there is none."
                ),
                "calendar_events.linked_meetings",
                "calendar_events.meeting_id",
                "meetings.calendar_event_id",
            ),
            link=(
                "VARCHAR",
                (
                    "linked: an account sees a meeting that it names, or that names it; unseen: it names meetings that no "
                    "account sees; none."
                ),
                "calendar_events.linked_meetings",
                "calendar_events.meeting_id",
                "meetings.calendar_event_id",
            ),
            meeting_starts_later_minutes=(
                "DOUBLE",
                "Minutes from the event's start to the meeting's; negative where the meeting is earlier.",
                "calendar_events.linked_meetings",
                "calendar_events.meeting_id",
                "meetings.calendar_event_id",
                "calendar_events.start_time",
                "meetings.start_time",
            ),
        ),
        _calendar_linkage,
        stored=True,
    ),
    Mart(
        "context_coverage",
        "A meeting: whether it was prepared. Only documents that the current partner application uploaded are visible, so it may "
        "have been prepared all the same.",
        _fields(
            meeting_id=("VARCHAR", "The meeting, see mart.meetings."),
            title=("VARCHAR", "Title.", "meetings.title"),
            local_date=("DATE", "The day of its start in CONTIO_TIMEZONE.", "meetings.start_time"),
            start_time=(_TIME, "Scheduled start.", "meetings.start_time"),
            documents=("BIGINT", "Context documents that it has."),
            documents_before_start=(
                "BIGINT",
                "Of these, those that were created before its start, or at it.",
                "meetings.start_time",
                "context_documents.created_at",
            ),
            is_prepared=(
                "BOOLEAN",
                "Whether there is at least one of these.",
                "meetings.start_time",
                "context_documents.created_at",
            ),
            first_document_at=(_TIME, "When the first of its documents was created.", "context_documents.created_at"),
        ),
        _context_coverage,
    ),
    Mart(
        "time_to_summary",
        "A meeting that has ended (its status is ended or completed, whatever its time): how long its notes took, at most.",
        _fields(
            meeting_id=("VARCHAR", "The meeting, see mart.meetings."),
            title=("VARCHAR", "Title.", "meetings.title"),
            local_date=("DATE", "The day of its start in CONTIO_TIMEZONE.", "meetings.start_time"),
            end_time=(_TIME, "Scheduled end.", "meetings.end_time"),
            summary_at=(
                _TIME,
                (
                    "When the notes were there at the latest: when the first version with notes that a sync saw was written in "
                    "Contio, which may be an edit after them. NULL where none had any."
                ),
                "meetings.summary_notes",
                "meetings.updated_at",
            ),
            summary_seen_at=(_TIME, "When a sync first saw notes; NULL where it never did.", "meetings.summary_notes"),
            minutes_to_summary=(
                "DOUBLE",
                "Minutes from end_time to summary_at, an upper bound; NULL without notes, or where they came before the end.",
                "meetings.summary_notes",
                "meetings.updated_at",
                "meetings.end_time",
            ),
            is_upper_bound=(
                "BOOLEAN",
                "True where the first version that a sync saw at all had notes: then nothing tells how much older they are.",
                "meetings.summary_notes",
            ),
        ),
        _time_to_summary,
        stored=True,
    ),
    Mart(
        "sync_health",
        "An account and stream: how far what is published can be relied on.",
        _fields(
            account=("VARCHAR", "The account."),
            stream=("VARCHAR", "The stream, document_contents, or profile."),
            last_listed_at=(_TIME, "When it was last listed."),
            is_complete=(
                "BOOLEAN",
                (
                    "Whether the tables were known to equal the API after that: no listing was incomplete, but those that a "
                    "later complete one without dates made superfluous."
                ),
            ),
            reason=("VARCHAR", "Why the newest of the incomplete ones is, and what to do; NULL where there is none."),
            last_complete_at=(_TIME, "When a listing was last complete; NULL if none ever was."),
            incomplete_windows=("BIGINT", "Windows of which the last listing is incomplete, and not superfluous."),
            broken_rows=("BIGINT", "Rows that stand in raw.quarantine."),
        ),
        _sync_health,
    ),
)
"""In the order in which they are made: one may read those before it (`people` reads `event_attendees`)."""
