"""The data dictionary: every table and column that is published, and what it means, as Markdown (docs/data-dictionary.md).

What lives here: how it is laid out. What never does: a sentence about data; those are in the declarations, and comments of the
published file.
"""

from __future__ import annotations

from collections.abc import Iterable

from contio_pipeline.marts import MARTS
from contio_pipeline.privacy import STRICT
from contio_pipeline.streams import STREAMS, Column, Stream, tables
from contio_pipeline.workfile import SQL_TYPES

_HEAD = """# Data dictionary

Made of the declarations by `make dictionary`; a test fails when it is not what they say. The same sentences are comments in the
published file: `SELECT * FROM duckdb_columns()`, and what BI tools show beside a column.

- **mart** is where to begin: a thing is one row, whoever sees it, under the id that is in use, and days
  are local (`CONTIO_TIMEZONE`).
- **raw** is what the API holds, a row for each account that sees it, and every version of it.
- **ops** is what was listed, when, and whether it is complete.

What the publish policy hides is said in italics (`CONTIO_PRIVACY`, `CONTIO_PUBLISH_POLICY`); marts are made of what is left.
`strict` also hashes ids that may be made of something else (an address, say), and hides what is no word where one is expected.
"""


def dictionary(streams: tuple[Stream, ...] = STREAMS) -> str:
    """All of it, ending in a newline."""
    parts = [_HEAD]
    for schema in ("mart", "raw", "ops"):
        parts.append(f"## {schema}\n")
        if schema == "mart":
            parts += [
                _table(mart.full_name, mart.doc, [(f.name, f.type, f.doc) for f in mart.fields]) for mart in MARTS
            ]
        parts += [
            _table(
                table.full_name, table.doc, [(c.name, SQL_TYPES[c.kind], f"{c.doc}{_hidden(c)}") for c in table.columns]
            )
            for table in tables(streams)
            if table.schema == schema
        ]
    return "\n".join(parts)


def _hidden(column: Column) -> str:
    """What the publish policy does with it."""
    if column.holds not in STRICT:
        return ""
    action = {"drop": "dropped", "hash": "hashed"}[STRICT[column.holds]]
    return f" *{action.capitalize()} {'unless it is asked for' if column.holds == 'private' else 'by `strict`'}.*"


def _table(name: str, doc: str, columns: Iterable[tuple[str, str, str]]) -> str:
    rows = "".join(
        f"| `{column}` | {kind.replace('TIMESTAMP WITH TIME ZONE', 'TIMESTAMPTZ')} | {meaning.replace('|', chr(92) + '|')} |\n"
        for column, kind, meaning in columns
    )
    return f"### {name}\n\n{doc}\n\n| column | type | meaning |\n|---|---|---|\n{rows}"
