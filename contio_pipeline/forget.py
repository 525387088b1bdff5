"""Forgetting a person or an account: rows, histories, quarantine, documents, old generations, and their bytes in files.

What lives here: the order of things, and what counts as a mention of an address. What never does: printing, SQL.

Every step can be run again: after a crash the same call completes what it had begun.
"""

from __future__ import annotations

import codecs
import json
import re
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from contio_pipeline.auth import TokenStore
from contio_pipeline.documents import DocumentStore
from contio_pipeline.erase import Erasure
from contio_pipeline.errors import ConfigError, StorageError
from contio_pipeline.folders import private_file
from contio_pipeline.generations import generations
from contio_pipeline.publish import Terms, publish
from contio_pipeline.settings import Settings
from contio_pipeline.warehouse import Warehouse
from contio_pipeline.workfile import old_copies, with_room

_ADDRESS = re.compile(r"[^\s@<>\"]+@[^\s@<>\"]*[^\s@<>\".]")
_READ_BYTES = 1 << 20
_OVERLAP = 4096
"""Characters that are looked at again with the next piece of a file: longer than an address in any of its forms."""

_TELLING = 8
"""An id of fewer characters may stand anywhere by chance: it is not looked for."""

_LETTER = "a-z0-9\u00c0-\u1fff"
"""Letters and digits of scripts that put spaces between words, as a class of both Python's `re` and DuckDB's RE2."""


_UNFINISHED = ".erasing"
"""The file in the data folder that says since when an erasure is not finished."""


@dataclass(slots=True)
class Forgotten:
    """What was erased, or would be.

    Attributes:
        accounts: whose tokens were removed, and everything that was read through them.
        rows: table -> rows.
        live: how many of these were live rows of streams.
        documents: files that no row refers to any more, and `document_bytes` their size.
        folders: of generations; the one that is published instead is not among them.
        copies: earlier warehouses put aside in the data folder.
        dagster: files of Dagster's own in which the address was found.
    """

    accounts: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    live: int = 0
    documents: list[Path] = field(default_factory=list)
    document_bytes: int = 0
    folders: list[Path] = field(default_factory=list)
    copies: list[Path] = field(default_factory=list)
    dagster: list[Path] = field(default_factory=list)


def forget(
    settings: Settings, *, account: str | None = None, address: str | None = None, dry_run: bool, now: datetime
) -> Forgotten:
    """Erase an account, or all that mentions an e-mail address and the accounts of its owner; then compact all files.

    Args:
        settings: where.
        account: its name; that its tokens are gone already does no harm.
        address: in any case.
        dry_run: only find out what there is; no file changes.
        now: names the generation that is published.

    Raises:
        ConfigError: there is no warehouse, no such account, or that is no address.
        WarehouseBusy: another process is writing.
        StorageError: something failed; the text says whether rows are erased already.
    """
    if address is not None and not _ADDRESS.fullmatch(address):
        raise ConfigError(f"{address!r} is no e-mail address: give it as ann@example.com, without a name")
    if not (settings.data_dir / "warehouse.duckdb").exists():
        raise ConfigError(
            f"there is no warehouse in {settings.data_dir}: set CONTIO_DATA_DIR to where it is (`accounts remove NAME` without "
            "--purge forgets the tokens alone)"
        )
    with Warehouse(settings.data_dir, origin=None) as warehouse:
        found = with_room(
            warehouse.connection, lambda: _rows(settings, warehouse, account, address, dry_run=dry_run, now=now)
        )
        found.folders, found.copies = generations(settings.data_dir), old_copies(settings.data_dir)
        if not dry_run:
            try:
                _files(settings, warehouse, found, now)
            except (StorageError, OSError) as error:
                raise StorageError(
                    f"the rows are erased, but their bytes are not yet gone from all files ({error}): run the same command "
                    "again, which completes it"
                ) from error
        if address:
            found.dagster = [path for path in _below(settings.data_dir / "dagster") if _mentioned(path, address)]
    return found


def unfinished(data_dir: Path) -> str:
    """What to say of an erasure that is not finished, and `: `, and what to do; empty when all are."""
    try:
        since = (data_dir / _UNFINISHED).read_text(encoding="ascii")[:10]
    except FileNotFoundError:
        return ""
    return f"what was to be forgotten on {since} may be left in files: run the same forget, or accounts remove --purge, again"


def _rows(
    settings: Settings, warehouse: Warehouse, account: str | None, address: str | None, *, dry_run: bool, now: datetime
) -> Forgotten:
    """Find what there is and, but for a dry run, erase tokens and rows: one transaction."""
    tokens, store = TokenStore(settings.state_dir), DocumentStore(settings.data_dir)
    with warehouse.transaction():
        erasure = Erasure(warehouse)
        known = erasure.accounts() | set(tokens.names())
        ids: set[str] = set()
        if address is None:
            mine = {account or ""}
            if not mine <= known and not unfinished(settings.data_dir):
                raise ConfigError(
                    f"nothing is stored of an account {account!r} (known: {', '.join(sorted(known)) or 'none'})"
                )
        else:
            mine = {name for name in known if name.lower() == address.lower()}
            for profile in erasure.profiles():
                if (profile["email"] or "").lower() == address.lower():
                    mine.add(profile["_account"])
                    ids.add(profile["id"] or "")
        for name in mine:
            erasure.choose_account(name)
        if address is not None:
            erasure.choose_mentions("|".join([_pattern(address), *map(_pattern_of_id, _telling(ids))]))
            erasure.choose_contents(
                digest for digest in erasure.digests_left() if _mentioned(store.path(digest), address)
            )
        erasure.choose_texts()
        left = erasure.digests_left()
        files = [path for path in store.files() if path.name not in left]
        found = Forgotten(
            accounts=sorted(mine),
            rows=erasure.rows(),
            live=erasure.live(),
            documents=files,
            document_bytes=sum(path.stat().st_size for path in files),
        )
        if not dry_run:
            private_file(settings.data_dir / _UNFINISHED, now.isoformat())
            for name in mine & set(tokens.names()):  # before the rows, which say whose they are
                tokens.remove(name)
            erasure.erase()
    return found


def _files(settings: Settings, warehouse: Warehouse, found: Forgotten, now: datetime) -> None:
    """Rid all files of what no row holds any more."""
    store = DocumentStore(settings.data_dir)
    store.clear_incoming()
    store.remove(found.documents)
    with suppress(FileNotFoundError):
        shutil.rmtree(settings.data_dir / "unfinished")
    warehouse.rewrite()
    for copy in found.copies:
        copy.unlink()
    generation, _new = publish(warehouse, now, Terms.asked_for(settings), anew=True, whole=False)
    for folder in [folder for folder in generations(settings.data_dir) if folder.name != generation.name]:
        shutil.rmtree(folder)
    (settings.data_dir / _UNFINISHED).unlink()


# What counts as a mention -------------------------------------------------------------------------------------------------


def _pattern(address: str) -> str:
    """A regular expression for the address in running text, JSON, HTML and links, but not inside a longer address.

    Where it is open whether a character belongs to it, such as the underscore in `_ann@example.com_`, it counts as found.
    """
    forms = {unicodedata.normalize(form, address) for form in ("NFC", "NFD")}
    spelled = "|".join(sorted("".join(map(_spelled, form)) for form in forms))
    before = rf"(?:^|\.\.|[^{_LETTER}._%+\-]|\\[bfnrt]|\\u[0-9a-f]{{4}}|%[0-9a-f]{{2}})[._%+\-]*"
    after = rf"(?:\.\.|[.\-]*(?:$|[^{_LETTER}.\-]))"
    return f"(?i:{before}(?:{spelled}){after})"


def _spelled(character: str) -> str:
    """The character as it is, as JSON may escape it, and as links and HTML write `@`."""
    if character == "@":
        return r"(?:@|\\u0040|%40|&#64;|&#x40;|&commat;)"
    if character.isascii():
        return re.escape(character)
    forms = {json.dumps(form)[1:-1] for form in (character, character.lower(), character.upper())}
    return f"(?:{'|'.join([re.escape(character), *sorted(map(re.escape, forms))])})"


def _telling(ids: set[str]) -> Sequence[str]:
    return sorted(identity for identity in ids if len(identity) >= _TELLING)


def _pattern_of_id(identity: str) -> str:
    return rf"(?i:(?:^|[^{_LETTER}]){re.escape(identity)}(?:$|[^{_LETTER}]))"


def _mentioned(path: Path, address: str) -> bool:
    """Whether the address is found in the file, read piece by piece; a file that is not there mentions nobody."""
    pattern = re.compile(_pattern(address))
    hint = max(re.findall(r"[a-z0-9]+", address.lower()) or [""], key=len)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    before = ""
    try:
        with path.open("rb") as file:
            while True:
                data = file.read(_READ_BYTES)
                # Without its zero bytes, ASCII in UTF-16 reads as ASCII.
                text = before + decoder.decode(data.replace(b"\0", b""), final=not data)
                # A letter where the file goes on: neither end of a piece is an end of the address.
                if hint in text.lower() and pattern.search(text + ("x" if data else "")):
                    return True
                if not data:
                    return False
                before = f"x{text[-_OVERLAP:]}" if len(text) > _OVERLAP else text
    except FileNotFoundError:
        return False


def _below(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
