"""Whether the tables contradict themselves; nothing is published while they do.

What lives here: questions whose answer can only be no. What never does: anything that a person, the API or the machine could be
the cause of (`health`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from contio_pipeline.streams import DOCUMENT_CONTENTS, QUARANTINE, Stream, stream_named

Query = Callable[[str], list[dict[str, Any]]]

MEND = (
    "nothing is published until it is mended: contio-pipeline sync lists everything anew; if it stays, restore the backup "
    "before, and please report it"
)
_SHOWN = 3


def contradictions(query: Query, streams: Sequence[Stream]) -> list[str]:
    """All that contradicts itself, by table."""
    found = [
        f"{stream.name}: {told}"
        for stream in streams
        for told in (*keys_unique(query, streams, stream.table.full_name), *references_hold(query, streams, stream))
    ]
    contents = (
        *keys_unique(query, streams, DOCUMENT_CONTENTS.full_name),
        *references_hold(query, streams, None),
    )
    return [*found, *(f"{DOCUMENT_CONTENTS.name}: {told}" for told in contents)]


def keys_unique(query: Query, _streams: Sequence[Stream], table: str) -> Iterator[str]:
    """Ids that stand more than once in the table."""
    twice = query(f"SELECT _account, id FROM {table} GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL")
    if twice:
        which = ", ".join(f"{row['_account']} {row['id']}" for row in twice[:_SHOWN])
        yield f"{len(twice)} ids stand more than once ({which})"


def references_hold(query: Query, streams: Sequence[Stream], stream: Stream | None) -> Iterator[str]:
    """Rows that refer to what is not stored: of the stream, or of the contents of documents."""
    if stream is None:
        yield from _documents_known(query, streams)
        return
    table, past = stream.table.full_name, stream.past.full_name
    [lost] = query(f"SELECT count(*) AS n FROM {past} h ANTI JOIN {table} t ON t._account = h._account AND t.id = h.id")
    if lost["n"]:
        yield f"the history tells of {lost['n']} changes of rows that are not stored"
    if stream.parent:
        parent = stream_named(stream.parent, tuple(streams)).table.full_name
        [lost] = query(
            f"""SELECT count(*) AS n FROM {table} t ANTI JOIN (
                SELECT _account, id FROM {parent} UNION ALL
                SELECT _account, row_key FROM {QUARANTINE.full_name} WHERE stream = '{stream.parent}'
            ) p ON p._account = t._account AND p.id = t._parent_id WHERE t._deleted_at IS NULL"""
        )
        if lost["n"]:
            yield f"{lost['n']} rows belong to {stream.parent} that are not stored"


def _documents_known(query: Query, streams: Sequence[Stream]) -> Iterator[str]:
    known = " UNION ALL ".join(
        f"SELECT _account, id FROM {stream.table.full_name}" for stream in streams if stream.content_path
    )
    if known:
        [lost] = query(
            f"SELECT count(*) AS n FROM {DOCUMENT_CONTENTS.full_name} c ANTI JOIN ({known}) d USING (_account, id)"
        )
        if lost["n"]:
            yield f"{lost['n']} contents are those of documents that are not stored"
