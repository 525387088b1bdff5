"""Whether what is stored can be relied on: one check for each question about a table, and what to do where one fails.

What lives here: looking at tables, documents, consents, the disk. What never does: HTTP, writing, and what is done about it.

Only integrity blocks a publication: a table that contradicts itself is worse than yesterday's. All else is told, and stops
nobody: one account in trouble says nothing about the rows of the others.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal

from contio_pipeline.auth import CONSENT, TokenStore
from contio_pipeline.documents import DocumentStore
from contio_pipeline.errors import ConfigError
from contio_pipeline.integrity import MEND, Query, keys_unique, references_hold
from contio_pipeline.night import complete_until
from contio_pipeline.settings import Settings
from contio_pipeline.streams import (
    ASSUMPTIONS,
    DOCUMENT_CONTENTS,
    QUARANTINE,
    RUNS,
    STREAMS,
    WINDOWS,
    Stream,
)

PUBLISHED = "published"
"""What checks of the whole are about; all others are about a table."""

CONSENT_ENDS_SOON = timedelta(days=7)
LEAST_SPACE = 100 * 2**20
COPIES = 2
"""Times the warehouse: publishing copies it, and writes its rows as Parquet beside that."""

_UNCONFIRMED = timedelta(days=2)
_QUARANTINE_SHARE = 0.01
_REFUSED_REQUESTS = 5
_ROUNDS = 30
"""Days in which the bytes of all documents are read once; that they are there is seen each time."""

_SHOWN = 3

Level = Literal["blocks", "fails", "warns"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong.

    Attributes:
        what: and what to do; the same words for all that have the same trouble.
        whose: the account, the field, or nobody's.
        echo: whether it says no more of an account in trouble than that it is.
    """

    what: str
    whose: str = ""
    echo: bool = False

    def __str__(self) -> str:
        return f"{self.whose}: {self.what}" if self.whose else self.what


@dataclass(frozen=True, slots=True)
class Case:
    """What is looked at: the warehouse or a generation, by its `query`, at an instant."""

    query: Query
    settings: Settings
    now: datetime
    streams: Sequence[Stream] = STREAMS


@dataclass(frozen=True, slots=True)
class Check:
    """One question about a table.

    Attributes:
        name: unique for the table.
        of: the table's name, or `PUBLISHED`.
        doc: what is so when it passes.
        level: what it means when it does not.
        look: finds what is wrong.
    """

    name: str
    of: str
    doc: str
    level: Level
    look: Callable[[Case], Iterable[Problem]]


def checks(streams: Sequence[Stream] = STREAMS) -> tuple[Check, ...]:
    """All checks but `complete`, which is about what a run has done."""
    found: list[Check] = []

    def add(name: str, of: str, level: Level, look: Callable[..., Iterable[Problem]], doc: str, *about: object) -> None:
        found.append(Check(name, of, doc, level, partial(look, *about)))

    for stream in streams:
        table = stream.table.full_name
        add(
            "keys_unique",
            stream.name,
            "blocks",
            _contradictions,
            "Each account and id stands once.",
            keys_unique,
            table,
        )
        doc = "What a row belongs to is stored too."
        add("references_hold", stream.name, "blocks", _contradictions, doc, references_hold, stream)
        add("fresh", stream.name, "fails", _fresh, "Every account is complete until lately.", stream.name)
        add(
            "gone_is_confirmed",
            stream.name,
            "warns",
            _unconfirmed,
            "No row is missing without a word for long.",
            stream,
        )
        add("few_broken_rows", stream.name, "warns", _quarantine, "Hardly any row breaks its promise.", stream)
        add("no_new_fields", stream.name, "warns", _new_fields, "The API sends no field that is not known.", stream)
        if stream.dates != "none":
            add("filter_as_assumed", stream.name, "warns", _filter, "The list's filters mean what is assumed.", stream)
    contents = DOCUMENT_CONTENTS.name
    keys = (keys_unique, DOCUMENT_CONTENTS.full_name)
    add("keys_unique", contents, "blocks", _contradictions, "Each account and id stands once.", *keys)
    doc = "Each content is that of a document that is stored."
    add("references_hold", contents, "blocks", _contradictions, doc, references_hold, None)
    add("fresh", contents, "fails", _fresh, "Every account's contents were looked after lately.", contents)
    add("files_intact", contents, "fails", _files, "The files are there, with the size and the bytes that they had.")
    add("consents_last", PUBLISHED, "warns", _consents, "No account's consent ends soon.")
    add("room_on_disk", PUBLISHED, "warns", _disk, "There is room for another generation.")
    add("requests_allowed", PUBLISHED, "warns", _requests, "The API refuses hardly any request.")
    return tuple(found)


def _contradictions(find: Callable[..., Iterable[str]], about: object, case: Case) -> Iterator[Problem]:
    for found in find(case.query, case.streams, about):
        yield Problem(f"{found}: {MEND}")


# Lists --------------------------------------------------------------------------------------------------------------------


def _fresh(name: str, case: Case) -> Iterator[Problem]:
    """By what is complete without a gap: listing old days again makes nothing fresh."""
    listed = case.query(f"SELECT * FROM {WINDOWS.full_name} WHERE stream = '{name}'")
    for account in TokenStore(case.settings.state_dir).names():
        mine = [row for row in listed if row["account"] == account]
        until = complete_until(mine)
        if not mine:  # nobody asked for it yet
            continue
        if until is None:
            yield Problem(f"it was never listed completely: {_SYNC}", account, echo=True)
        elif case.now - until > timedelta(hours=case.settings.fresh_hours):
            yield Problem(f"it is not known to be complete since {until:%Y-%m-%d}: {_SYNC}", account, echo=True)


_SYNC = "contio-pipeline doctor says what is in the way, contio-pipeline sync --night catches up"


def _unconfirmed(stream: Stream, case: Case) -> Iterator[Problem]:
    before = case.now - _UNCONFIRMED
    sql = f"""SELECT _account, count(*) AS n FROM {stream.table.full_name}
        WHERE _missing_since < TIMESTAMPTZ '{before.isoformat()}' GROUP BY 1 ORDER BY 1"""
    for row in case.query(sql):
        yield Problem(
            f"{row['n']} rows are missing since more than {_UNCONFIRMED.days} days, and nobody can say what became of them: look "
            "at the account in Contio",
            row["_account"],
        )


def _quarantine(stream: Stream, case: Case) -> Iterator[Problem]:
    sql = f"""SELECT q._account, count(*) AS broken,
            (SELECT count(*) FROM {stream.table.full_name} t WHERE t._account = q._account AND _deleted_at IS NULL) AS rows
        FROM {QUARANTINE.full_name} q WHERE stream = '{stream.name}' GROUP BY 1 ORDER BY 1"""
    for row in case.query(sql):
        if row["broken"] > _QUARANTINE_SHARE * (row["broken"] + row["rows"]):
            yield Problem(
                f"{row['broken']} rows break their promise (raw.quarantine says how): tell Contio's support",
                row["_account"],
            )


def _new_fields(stream: Stream, case: Case) -> Iterator[Problem]:
    known = ", ".join(f"'{column.name}'" for column in stream.columns)
    sql = f"""SELECT field, count(*) AS n FROM (
            SELECT unnest(json_keys(_extra)) AS field FROM {stream.table.full_name} WHERE _extra IS NOT NULL)
        WHERE field NOT IN ({known}) GROUP BY 1 ORDER BY 1"""
    for row in case.query(sql):
        yield Problem(
            "the API sends a field that this version does not know: it is kept in _extra; see whether there is a newer "
            "contio-pipeline",
            row["field"],
        )


def _filter(stream: Stream, case: Case) -> Iterator[Problem]:
    sql = f"""SELECT account, assumption, detail FROM {ASSUMPTIONS.full_name}
        WHERE stream = '{stream.name}' AND assumption IN ('date_filter', 'open_filter') AND NOT holds ORDER BY ALL"""
    for row in case.query(sql):
        yield Problem(
            f"the list's filter does not mean {row['detail']}: what windows cannot see, full syncs do (contio-pipeline sync)",
            row["account"],
        )


# Documents, consents, machine ---------------------------------------------------------------------------------------------


def _files(case: Case) -> Iterator[Problem]:
    store = DocumentStore(case.settings.data_dir)
    sql = f"SELECT DISTINCT sha256, size_bytes FROM {DOCUMENT_CONTENTS.full_name} WHERE state = 'stored' ORDER BY ALL"
    lost, damaged = [], []
    for row in case.query(sql):
        digest = row["sha256"]
        if not store.has(digest, row["size_bytes"]):
            lost.append(digest)
        elif int(digest[:8], 16) % _ROUNDS == case.now.toordinal() % _ROUNDS and not store.intact(digest):
            damaged.append(digest)
    for what, which in (("missing, or have another size", lost), ("damaged", damaged)):
        if which:
            yield Problem(f"{len(which)} files are {what}, such as {which[0]}: contio-pipeline sync --verify-documents")


def _consents(case: Case) -> Iterator[Problem]:
    store = TokenStore(case.settings.state_dir)
    for account in store.names():
        try:
            tokens = store.read(account)
        except ConfigError as error:
            yield Problem(str(error), account)
            continue
        ends = datetime.fromtimestamp(tokens.refreshed_at, UTC) + CONSENT
        if tokens.refreshed_at and not tokens.refused_at and ends - case.now < CONSENT_ENDS_SOON:
            yield Problem(
                f"its consent ends on {ends:%Y-%m-%d} unless it is renewed: contio-pipeline sync --account {account}",
                account,
            )


def _disk(case: Case) -> Iterator[Problem]:
    folder, warehouse = case.settings.data_dir, case.settings.data_dir / "warehouse.duckdb"
    free, needed = shutil.disk_usage(folder).free, COPIES * warehouse.stat().st_size
    if free < max(needed, LEAST_SPACE):
        yield Problem(
            f"{free >> 20} MB are free in {folder}, and {max(needed, LEAST_SPACE) >> 20} MB are needed to publish: make room"
        )


def _requests(case: Case) -> Iterator[Problem]:
    sql = f"SELECT throttled FROM {RUNS.full_name} ORDER BY started_at DESC LIMIT 1"
    for row in case.query(sql):
        if row["throttled"] > _REFUSED_REQUESTS:
            yield Problem(
                f"the API refused {row['throttled']} requests of the last sync as too many: does another program use it from "
                "this address? If not, set CONTIO_RATE_LIMIT lower"
            )
