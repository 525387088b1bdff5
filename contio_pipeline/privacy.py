"""The publish policy: what of each column readers get. The private warehouse stays whole.

What lives here: which columns are hidden and how, as SQL that reads the private tables. What never does: files, running it.

A column is kept, dropped (NULL), or hashed: 32 hexadecimal digits of the SHA-256 of a secret salt and the value, so that equal
values stay equal, and joins and counts work. Where a column of a table is hidden, nothing else in it may tell: of `_extra` only
times stay, `_hash` and the JSON of broken rows go.

A row that says that it is for its owner alone is left out, with what lies below it and what names it; so is what says so while
it is broken.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from contio_pipeline.settings import Settings
from contio_pipeline.streams import (
    ACCOUNTS,
    DOCUMENT_CONTENTS,
    DOCUMENT_TEXTS,
    MEETING_ALIASES,
    QUARANTINE,
    STREAMS,
    Column,
    Stream,
    Table,
    own_tables,
)
from contio_pipeline.workfile import SQL_TYPES, literal, quoted

Action = Literal["keep", "drop", "hash"]

STANDARD: Mapping[str, Action] = MappingProxyType({"private": "drop"})
STRICT: Mapping[str, Action] = MappingProxyType(
    {
        "person": "hash",
        "people": "hash",
        "notes": "hash",
        "content": "hash",
        "name": "drop",
        "text": "drop",
        "private": "drop",
    }
)
"""What the preset `strict` does with columns, by what they hold; of notes marts ask whether there are any, so they are hashed."""

_JUST_ME = "just_me"
_ALONE = r'(?i)"\s*just[-_ ]?me\s*"'
"""A text in JSON that says it."""
_TIME = r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d:\d\d(\.\d+)?)?"


@dataclass(frozen=True, slots=True)
class Policy:
    """What is hidden.

    Attributes:
        actions: `table.column` -> action (tables as the streams are called); what is not named is kept. By default the preset
            `standard`.
        salt: of hashes.
        hides_just_me: whether rows that say that they are for their owner alone are left out.
        words_only: whether of columns that hold a word of a short list nothing else is let through, nor the API's own words of
            what went wrong, and of ids only what looks like one.
        streams: the streams that exist.
        some_private: whether there may be rows in `private_ids`.
    """

    actions: Mapping[str, Action] = field(default_factory=lambda: _by_preset(STANDARD, STREAMS))
    salt: str = field(default="", repr=False)
    hides_just_me: bool = True
    words_only: bool = False
    streams: tuple[Stream, ...] = STREAMS
    some_private: bool = True

    @classmethod
    def asked_for(cls, settings: Settings, streams: tuple[Stream, ...] = STREAMS) -> Policy:
        """As the settings say: the preset, then what is said of single columns."""
        strict = settings.privacy == "strict"
        actions = _by_preset(STRICT if strict else STANDARD, streams)
        said = settings.said_of_columns()
        hides_just_me = said.pop(_JUST_ME, "drop") != "keep"
        actions |= said  # type: ignore[arg-type] # the settings let nothing else pass
        salt = settings.hash_salt.reveal() if settings.hash_salt else ""
        return cls(actions, salt, hides_just_me, strict, streams)

    @property
    def digest(self) -> str:
        """Is another where anything is hidden otherwise."""
        text = f"{sorted(self.actions.items())} {self.hides_just_me} {self.words_only} {self.salt}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def hidden(self) -> dict[str, Action]:
        """`table.column` -> what is done with it, sorted."""
        return {name: action for name, action in sorted(self.actions.items()) if action != "keep"}

    def hides(self, name: str) -> bool:
        """Whether any column of the table of this name is hidden."""
        return any(column.partition(".")[0] == name for column in self.hidden)

    def question(self, declared: Sequence[Table]) -> str:
        """SQL that returns a row where anything that is stored is to be hidden."""
        parts = [
            f"(SELECT 1 FROM {table.full_name} LIMIT 1)"
            for table in declared
            if table.schema == "raw" and not table.shows and self.hides(_kind(table))
        ]
        if self._telltale:
            of_streams = [(table, "_extra") for stream in self.streams for table in (stream.table, stream.past)]
            parts += [
                f"(SELECT 1 FROM {table.full_name} WHERE {self.tells(column)} LIMIT 1)"
                for table, column in (*of_streams, (ACCOUNTS, "_extra"), (QUARANTINE, "raw"))
            ]
        hidden = ", ".join(literal(stream.name) for stream in self.streams if self.hides(stream.name))
        if hidden:
            parts.append(f"(SELECT 1 FROM {QUARANTINE.full_name} WHERE stream IN ({hidden}) LIMIT 1)")
        return " UNION ALL ".join(parts) or "SELECT 1 WHERE false"

    def select(self, table: Table) -> str:
        """SQL of the rows that readers get, as `SELECT … FROM … WHERE …`."""
        columns = ", ".join(f"{self._value(table, column)} AS {quoted(column.name)}" for column in table.columns)
        return f"SELECT {columns} FROM {table.full_name} WHERE {self._rows(table) or 'true'}"

    def doc(self, table: Table, column: Column) -> str:
        """What the column means, and that it is hidden."""
        return column.doc + _HIDDEN[self.action(f"{_kind(table)}.{column.name}")]

    def action(self, column: str) -> Action:
        """What is done with `table.column`; a date's text goes as the date does."""
        return self.actions.get(column) or self.actions.get(column.removesuffix("_raw")) or "keep"

    def told(self, reason: str) -> str:
        """Why something went wrong, without the API's own words where these are hidden."""
        return re.sub(_QUOTED, "", reason) if self.words_only else reason

    @property
    def _telltale(self) -> str:
        """The expression for fields that nobody knows in which something is said to be private; empty if that is shown."""
        private = {column.name for stream in self.streams for column in stream.columns if column.holds == "private"}
        dropped = {name.partition(".")[2] for name in self.hidden}
        return "|".join([_ALONE] * self.hides_just_me + [f'"{name}"' for name in sorted(private & dropped)])

    # SQL ----------------------------------------------------------------------------------------------------------------

    def private_ids(self) -> list[str]:
        """Statements that make the temporary table `private_ids` (account, id), which `select` reads.

        In it are the rows that are for their owner alone, also while they are broken; what tells of the same; the ids that were
        merged into theirs; other accounts that know such an id by name alone; and what lies below all of these, or names one.
        The first statement finds those that say so: where there is none, the others find nothing either.
        """
        if not self.hides_just_me:
            return []
        says = [f"SELECT _account, id FROM {stream.table.full_name} WHERE {_says('_extra')}" for stream in self.streams]
        says += [f"SELECT _account, row_key FROM {QUARANTINE.full_name} WHERE {ALONE_BROKEN}"]
        of_tables = " UNION ALL ".join(f"SELECT _account, id FROM {stream.table.full_name}" for stream in self.streams)
        add = "INSERT INTO private_ids SELECT DISTINCT"
        return [
            f"""CREATE OR REPLACE TEMP TABLE private_ids AS
                SELECT DISTINCT _account AS account, id FROM ({" UNION ALL ".join(says)})""",
            *(
                f"{add} _account, {quoted(twin)} FROM {stream.table.full_name} WHERE {quoted(twin)} <> '' AND {_private('id')}"
                for stream in self.streams
                for twin in stream.same_as
            ),
            f"{add} _account, id FROM {MEETING_ALIASES.full_name} WHERE {_private('redirect_to_meeting_id')}",
            f"""{add} a._account, p.id FROM {ACCOUNTS.full_name} a CROSS JOIN (SELECT DISTINCT id FROM private_ids) p
                WHERE (a._account, p.id) NOT IN (FROM private_ids) AND (a._account, p.id) NOT IN ({of_tables})""",
            *(
                f"{add} _account, id FROM {one.table.full_name} WHERE {_names_private(one.table)}"
                for one in self.streams
            ),
        ]

    def _rows(self, table: Table) -> str:
        """The condition for the rows that readers get; empty where that is all.

        Left out are rows that say so, what lies below them or names them, and earlier versions of rows that say so now.
        """
        if not (self.hides_just_me and self.some_private) or table.schema != "raw":
            return ""
        if table is QUARANTINE:
            hidden = f"{ALONE_BROKEN} OR {_private('row_key')} OR {_private('_parent_id')} OR {_mentions_private(table, 'raw')}"
            return f"(NOT coalesce({hidden}, false))"
        if any(table in (stream.table, stream.past) for stream in self.streams):
            return f"(NOT coalesce({_says('_extra')} OR {_private('id')} OR {_names_private(table)}, false))"
        if table is DOCUMENT_CONTENTS:
            return f"(NOT {_private('id')})"
        if table is DOCUMENT_TEXTS:
            public = (
                f"SELECT sha256 FROM {DOCUMENT_CONTENTS.full_name} WHERE sha256 IS NOT NULL AND NOT {_private('id')}"
            )
            return f"(sha256 IN ({public}))"
        return ""

    def _value(self, table: Table, column: Column) -> str:
        """SQL of what readers get of a column."""
        name, sql, kind = column.name, quoted(column.name), _kind(table)
        action = self.action(f"{kind}.{name}")
        if action == "drop" or (name == "_hash" and self.hides(kind)):
            return f"NULL::{SQL_TYPES[column.kind]}"
        if action == "hash":
            return self._people(sql) if column.kind == "json" else self._hash(sql, one_person=column.holds == "person")
        if f"{kind}.{name}" in self.actions:  # somebody said that it is kept
            return sql
        if name == "_extra" and (self.hides(kind) or self._telltale):
            times = self._times(table)
            return times if self.hides(kind) else f"CASE WHEN {self._tells_in(table)} THEN {times} ELSE _extra END"
        if name == "_hash" and self._telltale and "_extra" in {one.name for one in table.columns}:
            return f"CASE WHEN NOT {self._tells_in(table)} THEN _hash END"
        return self._of_others(table, name) or (self._word(table, column, sql) if self.words_only else sql)

    def _of_others(self, table: Table, name: str) -> str:
        """SQL of a column that may tell what is hidden of another table; empty where it does not."""
        if name in {"_version", "listed_hash"}:
            return "NULL::VARCHAR"  # it may be, or is, the hash of a row with what is hidden of it
        if table is QUARANTINE and name in {"raw", "reason", "row_key"}:
            return self._of_broken(name)
        return ""

    def _word(self, table: Table, column: Column, sql: str) -> str:
        """Only what such a column is for: a word; of a reason what is ours; ids, and of what does not look like one its hash."""
        if column.name == "reason":
            return f"regexp_replace({sql}, '{_QUOTED}', '', 'g')"
        if column.holds == "id":
            if column.kind != "json":
                return self._id(sql)
            each = f"list_transform({_ids(sql)}, lambda x: {self._id('x')})"
            return f"CASE WHEN json_type({sql}) = 'ARRAY' THEN to_json({each}) END"
        own = column.name.startswith("_") or table is QUARANTINE or table.schema == "ops"
        if column.kind == "text" and not column.holds and not own:
            return f"CASE WHEN regexp_full_match({sql}, '{_WORD}') THEN {sql} END"
        return sql

    def _id(self, value: str) -> str:
        return (
            f"CASE WHEN regexp_full_match({value}, '{_ID}') THEN {value} ELSE {self._hash(value, one_person=False)} END"
        )

    def _hash(self, value: str, *, one_person: bool = True) -> str:
        """People are the same however they are written, as in the marts; what is blank stays so."""
        same = f"lower(trim({value}))" if one_person else value
        hashed = f"left(sha256({literal(self.salt)} || {same}), 32)"
        return rf"CASE WHEN NOT regexp_matches({value}, '\S') THEN {value} ELSE {hashed} END"

    def _people(self, value: str) -> str:
        """People as the API lists them: addresses and ids hashed, names and what is unknown left out."""
        each = self._person("x")
        return f"""CASE WHEN json_type({value}) = 'ARRAY' THEN to_json(list_transform(CAST({value} AS JSON[]), lambda x: {each}))
            ELSE {self._person(value)} END"""

    def _person(self, value: str) -> str:
        def of(key: str) -> str:
            return (
                f"CASE WHEN json_type({value}, '$.{key}') = 'VARCHAR' THEN json_extract_string({value}, '$.{key}') END"
            )

        pairs = [f"'{key}', {self._hash(f'({of(key)})')}" for key in ("email", "user_id")]
        pairs += [
            f"'{key}', CASE WHEN regexp_full_match({of(key)}, '{_WORD}') THEN {of(key)} END"
            for key in ("status", "type")
        ]
        alone = self._hash(f"json_extract_string({value}, '$')")
        return (
            f"""CASE json_type({value}) WHEN 'OBJECT' THEN {_present(pairs)} WHEN 'VARCHAR' THEN to_json({alone}) END"""
        )

    def _times(self, table: Table) -> str:
        """Of `_extra`: times that name no instant, under the names of the columns where they belong."""
        pairs = []
        for column in table.columns:
            kept = self.action(f"{_kind(table)}.{column.name}") == "keep"
            if column.kind == "timestamp" and not column.name.startswith("_") and kept:
                value = f"json_extract_string(_extra, '$.{column.name}')"
                pairs.append(f"'{column.name}', CASE WHEN regexp_full_match({value}, '{_TIME}') THEN {value} END")
        return f"CASE WHEN _extra IS NOT NULL THEN nullif({_present(pairs)}::VARCHAR, '{{}}')::JSON END"

    def _tells_in(self, table: Table) -> str:
        """SQL of whether the fields that nobody knows of a row say that something is private, or tell of what is."""
        tells = self.tells("_extra")
        if self.hides_just_me and self.some_private:
            tells = f"({tells} OR {_mentions_private(table, '_extra')})"
        return tells

    def tells(self, text: str) -> str:
        """SQL of whether a text says of something that it is private."""
        return f"coalesce(regexp_matches(CAST({text} AS VARCHAR), {literal(self._telltale)}), false)"

    def _kept_stream(self) -> str:
        hidden = ", ".join(literal(stream.name) for stream in self.streams if self.hides(stream.name))
        return f"stream NOT IN ({hidden})" if hidden else "true"

    def _of_broken(self, name: str) -> str:
        """Of a broken row of a stream with hidden columns: that there is one, its id, and which column it was."""
        key = self._id("row_key") if self.words_only else "row_key"
        less = {
            "raw": "NULL",
            "reason": "split_part(split_part(reason, ':', 1), '(', 1)",
            "row_key": f"CASE WHEN row_key <> sha256(raw) THEN {key} END",
        }[name]
        tells = f" AND NOT {self.tells('raw')}" if self._telltale else ""
        return f"CASE WHEN {self._kept_stream()}{tells} THEN {name} ELSE {less} END"


_ID = "[A-Za-z0-9_=-]{0,255}"
_TEXT = r'"(?:[^"\\]|\\.)*"'
_WORD = "[A-Za-z0-9_.:+/-]{0,64}"
_QUOTED = " ?\u2039[^\u203a]*\u203a"
"""The API's own words in a reason (`protocol.quoted`)."""

_HIDDEN: Mapping[Action, str] = {"keep": "", "drop": " Hidden: NULL.", "hash": " Hidden: a salted hash."}


def _says(json: str) -> str:
    """SQL of whether a row's JSON says that it is for its owner alone; to look at the text first is quicker."""
    level = f"CAST(json_extract({json}, '$.access_level') AS VARCHAR)"
    return f"(regexp_matches(CAST({json} AS VARCHAR), '{_ALONE}') AND regexp_matches({level}, '{_ALONE}'))"


ALONE_BROKEN = f"coalesce({_says('CASE WHEN json_valid(raw) THEN raw END')}, false)"
"""SQL of whether a broken row says that it is for its owner alone."""


def _private(column: str) -> str:
    return f"((_account, {quoted(column)}) IN (FROM private_ids))"


def _names_private(table: Table) -> str:
    """SQL of whether a row lies below a private row, or names one."""
    named = [column for column in table.columns if column.holds == "id" and column.name != "id"]
    return " OR ".join(
        [
            "false",
            *(
                _private(column.name) if column.kind != "json" else _private_among(table, _ids(quoted(column.name)))
                for column in named
            ),
        ]
    )


def _mentions_private(table: Table, json: str) -> str:
    """SQL of whether any text in a row's JSON is the id of a private row."""
    texts = f"list_filter(regexp_extract_all(CAST({json} AS VARCHAR), '{_TEXT}'), lambda x: json_valid(x))"
    return _private_among(table, f"list_transform({texts}, lambda x: json_extract_string(x, '$'))")


def _private_among(table: Table, texts: str) -> str:
    """SQL of whether one of a list of texts is the id of a private row."""
    each = f"SELECT rowid AS place, _account, unnest({texts}) AS one FROM {table.full_name}"
    return f"(rowid IN (SELECT place FROM ({each}) JOIN private_ids ON account = _account AND id = one))"


def _ids(value: str) -> str:
    """SQL of the texts of a JSON list; none where it is no list."""
    each = f"CAST(CASE WHEN json_type({value}) = 'ARRAY' THEN {value} END AS JSON[])"
    texts = f"list_filter({each}, lambda x: json_type(x) = 'VARCHAR')"
    return f"list_transform({texts}, lambda x: json_extract_string(x, '$'))"


def _present(pairs: Sequence[str]) -> str:
    """SQL of a JSON object of those of the pairs that are not NULL."""
    return f"json_merge_patch('{{}}', json_object({', '.join(pairs)}))"


def _by_preset(preset: Mapping[str, Action], streams: tuple[Stream, ...]) -> dict[str, Action]:
    return {
        f"{table.name}.{column.name}": preset[column.holds]
        for table in own_tables(streams)
        for column in table.columns
        if column.holds in preset
    }


def _kind(table: Table) -> str:
    """The name under which policies know a table."""
    return table.name.removesuffix("_past").removesuffix("_history")
