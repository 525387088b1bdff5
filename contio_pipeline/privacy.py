"""The publish policy: what of each column readers get. The private warehouse stays whole.

What lives here: which columns are hidden and how, as SQL that reads the private tables. What never does: files, running it.

A column is kept, dropped (NULL), or hashed: 32 hexadecimal digits of the SHA-256 of a secret salt and the value, so that equal
values stay equal, and joins and counts work. Where a column of a table is hidden, nothing else in it may tell: of `_extra` only
times stay, `_hash` and the JSON of broken rows go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from contio_pipeline.settings import Settings
from contio_pipeline.streams import LISTED, QUARANTINE, STREAMS, Column, Stream, Table, tables
from contio_pipeline.workfile import SQL_TYPES, literal, quoted

Action = Literal["keep", "drop", "hash"]

STANDARD: Mapping[str, Action] = MappingProxyType({"private": "drop"})
STRICT: Mapping[str, Action] = MappingProxyType(
    {"person": "hash", "people": "hash", "notes": "hash", "name": "drop", "text": "drop", "private": "drop"}
)
"""What the preset `strict` does with columns, by what they hold; of notes marts ask whether there are any, so they are hashed."""

_JUST_ME = "just_me"
_TIME = r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d:\d\d(\.\d+)?)?"


@dataclass(frozen=True, slots=True)
class Policy:
    """What is hidden.

    Attributes:
        actions: `table.column` -> action, of what is not kept (tables as the streams are called); by default the preset
            `standard`.
        salt: of hashes.
        hides_just_me: whether rows that say that they are for their owner alone are left out.
        streams: the streams that exist.
    """

    actions: Mapping[str, Action] = field(default_factory=lambda: _by_preset(STANDARD, STREAMS))
    salt: str = field(default="", repr=False)
    hides_just_me: bool = True
    streams: tuple[Stream, ...] = STREAMS

    @classmethod
    def asked_for(cls, settings: Settings, streams: tuple[Stream, ...] = STREAMS) -> Policy:
        """As the settings say: the preset, then what is said of single columns."""
        actions = _by_preset(STRICT if settings.privacy == "strict" else STANDARD, streams)
        said = dict(one.split("=") for one in settings.publish_policy)
        hides_just_me = said.pop(_JUST_ME, "drop") != "keep"
        actions |= said  # type: ignore[arg-type] # the settings let nothing else pass
        salt = settings.hash_salt.reveal() if settings.hash_salt else ""
        return cls({name: action for name, action in actions.items() if action != "keep"}, salt, hides_just_me, streams)

    @property
    def digest(self) -> str:
        """Is another where anything is hidden otherwise."""
        text = f"{sorted(self.actions.items())} {self.hides_just_me} {self.salt}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def hides(self, name: str) -> bool:
        """Whether any column of the table of this name is hidden."""
        return any(hidden.partition(".")[0] == name for hidden in self.actions)

    def drops(self, column: str) -> bool:
        """Whether `table.column` is NULL for readers."""
        return self.actions.get(column) == "drop"

    def question(self, declared: Sequence[Table]) -> str:
        """SQL that returns a row where anything that is stored is to be hidden."""
        parts = []
        for table in declared:
            if table.shows or table.schema != "raw":
                continue
            if self.hides(_kind(table)):
                parts.append(f"(SELECT 1 FROM {table.full_name} LIMIT 1)")
            elif where := self._rows(table):
                parts.append(f"(SELECT 1 FROM {table.full_name} WHERE NOT {where} LIMIT 1)")
        hidden = ", ".join(literal(stream.name) for stream in self.streams if self.hides(stream.name))
        if hidden:
            parts.append(f"(SELECT 1 FROM {QUARANTINE.full_name} WHERE stream IN ({hidden}) LIMIT 1)")
        return " UNION ALL ".join(parts) or "SELECT 1 WHERE false"

    def select(self, table: Table) -> str:
        """SQL of the rows that readers get, as `SELECT … FROM … WHERE …`."""
        columns = ", ".join(self._column(table, column) for column in table.columns)
        return f"SELECT {columns} FROM {table.full_name} WHERE {self._rows(table) or 'true'}"

    def doc(self, table: Table, column: Column) -> str:
        """What the column means, and that it is hidden."""
        action = self._action(table, column)
        return column.doc + {"drop": " Hidden: NULL.", "hash": " Hidden: a salted hash.", None: ""}[action]

    # SQL ----------------------------------------------------------------------------------------------------------------

    def _rows(self, table: Table) -> str:
        """The condition for the rows that readers get; empty where that is all."""
        names = {column.name for column in table.columns}
        if not self.hides_just_me or table.schema != "raw":
            return ""
        if "_extra" in names:
            return f"(_extra IS NULL OR {_level('_extra')} IS DISTINCT FROM '{_JUST_ME}')"
        if table is QUARANTINE:
            return f"(NOT contains(raw, '{_JUST_ME}'))"
        hidden = [
            f"SELECT {{}} FROM {stream.table.full_name} WHERE {_level('_extra')} = '{_JUST_ME}'"
            for stream in self.streams
            if stream.content_path
        ]
        if "sha256" in names and "_account" in names and hidden:
            return f"((_account, id) NOT IN ({' UNION ALL '.join(hidden).format('_account, id')}))"
        if "sha256" in names and hidden:
            ids = " UNION ALL ".join(hidden).format("id")
            return (
                f"(sha256 NOT IN (SELECT sha256 FROM raw.document_contents WHERE sha256 IS NOT NULL AND id IN ({ids})))"
            )
        return ""

    def _column(self, table: Table, column: Column) -> str:
        name, sql = column.name, quoted(column.name)
        action = self._action(table, column)
        if action == "drop" or (name == "_hash" and self.hides(_kind(table))):
            return f"NULL::{SQL_TYPES[column.kind]} AS {sql}"
        if action == "hash":
            return f"{self._people(sql) if column.kind == 'json' else self._hash(sql)} AS {sql}"
        if name == "_extra" and self.hides(_kind(table)):
            return f"{self._times(table)} AS {sql}"
        if table is QUARANTINE and name in {"raw", "reason", "row_key"}:
            return f"{self._of_broken(name)} AS {sql}"
        if table is LISTED and name == "listed_hash":
            return f"CASE WHEN {self._kept_stream()} THEN {sql} END AS {sql}"
        return sql

    def _hash(self, value: str) -> str:
        """An address counts as the same however it is written; what is blank stays so."""
        same = f"CASE WHEN contains({value}, '@') THEN lower(trim({value})) ELSE {value} END"
        return f"CASE WHEN trim({value}) = '' THEN {value} ELSE left(sha256({literal(self.salt)} || {same}), 32) END"

    def _people(self, value: str) -> str:
        """People as the API lists them: addresses and ids hashed, names and what is unknown left out."""
        each = self._person("x")
        return f"""CASE WHEN json_type({value}) = 'ARRAY' THEN to_json(list_transform(CAST({value} AS JSON[]), lambda x: {each}))
            ELSE {self._person(value)} END"""

    def _person(self, value: str) -> str:
        pairs = [f"'{key}', " + self._hash(f"json_extract_string({value}, '$.{key}')") for key in ("email", "user_id")]
        pairs += [f"'{key}', json_extract_string({value}, '$.{key}')" for key in ("status", "type")]
        alone = self._hash(f"json_extract_string({value}, '$')")
        return (
            f"""CASE json_type({value}) WHEN 'OBJECT' THEN {_present(pairs)} WHEN 'VARCHAR' THEN to_json({alone}) END"""
        )

    def _times(self, table: Table) -> str:
        """Of `_extra`: times that name no instant, under the names of the columns where they belong."""
        pairs = []
        for column in table.columns:
            if column.kind == "timestamp" and not column.name.startswith("_") and not self._action(table, column):
                value = f"json_extract_string(_extra, '$.{column.name}')"
                pairs.append(f"'{column.name}', CASE WHEN regexp_full_match({value}, '{_TIME}') THEN {value} END")
        return f"CASE WHEN _extra IS NOT NULL THEN nullif({_present(pairs)}::VARCHAR, '{{}}')::JSON END"

    def _action(self, table: Table, column: Column) -> Action | None:
        return self.actions.get(f"{_kind(table)}.{column.name}")

    def _kept_stream(self) -> str:
        hidden = ", ".join(literal(stream.name) for stream in self.streams if self.hides(stream.name))
        return f"stream NOT IN ({hidden})" if hidden else "true"

    def _of_broken(self, name: str) -> str:
        """Of a broken row of a stream with hidden columns: that there is one, its id, and which column it was."""
        if self._kept_stream() == "true":
            return name
        less = {"raw": "NULL", "reason": "split_part(split_part(reason, ':', 1), '(', 1)", "row_key": _ID_ALONE}[name]
        return f"CASE WHEN {self._kept_stream()} THEN {name} ELSE {less} END"


_ID_ALONE = "CASE WHEN row_key <> sha256(raw) THEN row_key END"


def _present(pairs: Sequence[str]) -> str:
    """SQL of a JSON object of those of the pairs that are not NULL."""
    return f"json_merge_patch('{{}}', json_object({', '.join(pairs)}))"


def _by_preset(preset: Mapping[str, Action], streams: tuple[Stream, ...]) -> dict[str, Action]:
    return {
        f"{table.name}.{column.name}": preset[column.holds]
        for table in _kinds(streams)
        for column in table.columns
        if column.holds in preset
    }


def _level(extra: str) -> str:
    return f"json_extract_string({extra}, '$.access_level')"


def _kinds(streams: tuple[Stream, ...]) -> tuple[Table, ...]:
    """The tables that policies name: without histories, which follow their stream."""
    others = {table.full_name for stream in streams for table in (stream.past, stream.history)}
    return tuple(table for table in tables(streams) if table.schema == "raw" and table.full_name not in others)


def _kind(table: Table) -> str:
    """The name under which policies know a table."""
    return table.name.removesuffix("_past").removesuffix("_history")
