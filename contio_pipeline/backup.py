"""Backups: a consistent copy of warehouse, documents and settings in a folder of its own, and putting one back.

What lives here: their layout, hashes, and the order in which a backup is made or restored. What never does: tokens and other
secrets, HTTP, SQL that changes rows.

    <folder>/contio-backup-<time>/
        warehouse.duckdb
        documents/ab/cd/<sha256>     a hard link to the backup before where that has it
        settings.env                 the settings that were set, but no secret
        manifest.json                written last: versions, and size and SHA-256 of each file
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from contio_pipeline import __version__
from contio_pipeline.documents import DocumentStore, path_of
from contio_pipeline.errors import ConfigError, StorageError, WarehouseBusy
from contio_pipeline.folders import flush, private_folder
from contio_pipeline.generations import Generation
from contio_pipeline.publish import Terms, publish
from contio_pipeline.settings import Secret, Settings
from contio_pipeline.warehouse import Warehouse
from contio_pipeline.workfile import SCHEMA_VERSION, replace_file, take_lock

FORMAT = 1
_NAME = "contio-backup-"
_PARTIAL = f".partial-{_NAME}"
_STAMP = "%Y%m%dT%H%M%S.%fZ"
_READ_BYTES = 1 << 20
_WAREHOUSE = "warehouse.duckdb"
_SETTINGS = "settings.env"
_FILE = re.compile(
    rf"{re.escape(_WAREHOUSE)}|{re.escape(_SETTINGS)}|documents/([0-9a-f]{{2}})/([0-9a-f]{{2}})/\1\2[0-9a-f]{{60}}"
)
"""The only files of a backup: whatever else a manifest names is refused."""


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that was made.

    Attributes:
        folder: of this backup.
        documents: how many are in it, `linked` of them shared with the backup before.
        copied: bytes that were written.
        missing: hashes of documents that are not in it, for their files are not there or damaged.
    """

    folder: Path
    documents: int
    linked: int
    copied: int
    missing: list[str]


def backup(settings: Settings, folder: Path, now: datetime) -> Backup:
    """Copy warehouse, documents and settings to a new folder below `folder`.

    Raises:
        ConfigError: there is nothing to back up, or the folder is not a place for it.
        WarehouseBusy: another process is writing, to the data folder or to the backups.
        StorageError: the folder could not be written; the backups before stay.
    """
    folder = Path(os.path.abspath(folder.expanduser()))  # noqa: PTH100 - resolve() would follow links
    for kept, name in ((settings.data_dir, "data"), (settings.state_dir, "state")):
        if folder.resolve().is_relative_to(kept.resolve()):
            raise ConfigError(f"{folder} lies inside the {name} folder {kept}: give a folder on another disk")
    if not (settings.data_dir / _WAREHOUSE).exists():
        raise ConfigError(f"there is no warehouse in {settings.data_dir} yet: run contio-pipeline sync")
    with Warehouse(settings.data_dir, origin=None) as warehouse:
        try:
            with _alone(private_folder(folder)):
                return _backup(settings, warehouse, folder, now)
        except OSError as error:
            raise StorageError(
                f"the backup could not be written to {folder} ({error}): make room or give another folder; the backups "
                "before stay as they were"
            ) from error


def _backup(settings: Settings, warehouse: Warehouse, folder: Path, now: datetime) -> Backup:
    for left in folder.glob(f"{_PARTIAL}*"):  # of a backup that was killed
        shutil.rmtree(left)
    before = max(folder.glob(f"{_NAME}*/manifest.json"), default=None)
    name = now.astimezone(UTC).strftime(_STAMP)
    partial = private_folder(folder / f"{_PARTIAL}{name}")
    digests = warehouse.digests()
    origin = warehouse.meta("api_origin")
    files: dict[str, list[Any]] = {}
    with warehouse.closed_file() as file:
        files[_WAREHOUSE] = _copy(file, partial / _WAREHOUSE)
    copied, linked, missing = files[_WAREHOUSE][0], 0, []
    store = DocumentStore(settings.data_dir)
    for digest in digests:
        target = path_of(partial / "documents", digest)
        private_folder(target.parent)
        source, earlier = store.path(digest), before and path_of(before.parent / "documents", digest)
        relative = str(target.relative_to(partial))
        if earlier and _same_size(earlier, source) and _linked(earlier, target):
            files[relative] = [target.stat().st_size, digest]
            linked += 1
            continue
        found = _copy(source, target) if source.is_file() else None
        if found and found[1] == digest:
            files[relative] = found
            copied += found[0]
        else:
            target.unlink(missing_ok=True)
            missing.append(digest)
    (partial / _SETTINGS).write_text(_settings(settings), encoding="utf-8")
    files[_SETTINGS] = _measure(partial / _SETTINGS)
    manifest = {
        "format": FORMAT,
        "made_at": now.isoformat(),
        "version": __version__,
        "schema_version": SCHEMA_VERSION,
        "api_origin": origin,
        "missing": missing,
        "files": files,
    }
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    for path in [*partial.rglob("*"), partial]:
        path.chmod(0o700 if path.is_dir() else 0o600)
        flush(path)
    whole = folder / f"{_NAME}{name}"
    partial.rename(whole)
    flush(folder)
    return Backup(whole, len(digests) - len(missing), linked, copied, missing)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder against every other backup to it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise WarehouseBusy(f"another backup is being written to {folder}: wait until it has finished") from None
    finally:
        os.close(descriptor)


def _settings(settings: Settings) -> str:
    """The settings that were set, as a `.env` holds them, without any secret."""
    values = settings.as_environment()
    lines = ["# Settings of the backed-up installation. Secrets and tokens are never in a backup."]
    for field in sorted(settings.given):
        name = f"CONTIO_{field.upper()}"
        if name in values and not isinstance(getattr(settings, field), Secret):
            value = values[name].replace("\\", "\\\\").replace("'", "\\'")
            lines.append(f"{name}='{value}'")
    return "\n".join(lines) + "\n"


def _check_privacy(settings: Settings, file: Path) -> None:
    """Whether readers will not get more than where the backup was made: what is restored is published at once."""
    backed_up = dotenv_values(file)
    for name in ("CONTIO_PRIVACY", "CONTIO_PUBLISH_POLICY"):
        if (text := backed_up.get(name)) and text != settings.as_environment()[name]:
            raise ConfigError(
                f"where this backup was made, {name} was {text}: set it again, and CONTIO_HASH_SALT as it was (a secret, so it "
                "is in no backup), for what is restored is published at once; change it afterwards if you like"
            )


def _copy(source: Path, target: Path) -> list[Any]:
    """Copy a file; returns size and SHA-256 of the bytes that were read."""
    found = hashlib.sha256()
    with source.open("rb") as file, target.open("wb") as copy:
        while data := file.read(_READ_BYTES):
            found.update(data)
            copy.write(data)
        return [copy.tell(), found.hexdigest()]


def _measure(path: Path) -> list[Any]:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            found.update(data)
        return [file.tell(), found.hexdigest()]


def _same_size(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.stat().st_size == other.stat().st_size


def _linked(source: Path, target: Path) -> bool:
    with suppress(OSError):  # a file system without hard links
        os.link(source, target)
        return True
    return False


# Restoring ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Restored:
    """What was put back.

    Attributes:
        generation: what is published now.
        documents: how many are in the backup.
        missing: how many documents its warehouse knows and it does not hold.
        aside: where the warehouse before is now, if there was one.
        settings: the file of the settings.
        api_origin: the API whose rows these are.
    """

    generation: Generation
    documents: int
    missing: int
    aside: Path | None
    settings: Path
    api_origin: str | None


def restore(settings: Settings, folder: Path, *, replace: bool, now: datetime) -> Restored:
    """Put a backup's warehouse and documents into the data folder, and publish them.

    Every file is verified first; killed at any moment, the same call completes it.

    Raises:
        ConfigError: that is no whole backup, or there is a warehouse already.
        WarehouseBusy: another process is writing.
        StorageError: the data folder could not be written.
    """
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}: give a folder {_NAME}…")
    if found := sorted(path.parent.name for path in folder.glob(f"{_NAME}*/manifest.json")):
        raise ConfigError(f"{folder} holds {len(found)} backups: give one of them, such as {folder / found[-1]}")
    manifest = _verified(folder)
    _check_privacy(settings, folder / _SETTINGS)
    lock = take_lock(settings.data_dir)
    try:
        aside = _put_back(settings.data_dir, folder, manifest, now, replace=replace)
    except OSError as error:
        os.close(lock)
        raise StorageError(
            f"{folder} could not be restored to {settings.data_dir} ({error}): make room, then run it again"
        ) from error
    except BaseException:
        os.close(lock)
        raise
    with Warehouse(settings.data_dir, origin=None, lock=lock) as warehouse:
        try:
            generation, _new = publish(warehouse, now, Terms.asked_for(settings))
        except StorageError as error:
            raise StorageError(
                f"the warehouse is restored, but not published yet ({error}): see to that, then run contio-pipeline publish"
            ) from error
    return Restored(
        generation,
        sum(name.startswith("documents/") for name in manifest["files"]),
        len(manifest["missing"]),
        aside,
        folder / _SETTINGS,
        manifest["api_origin"],
    )


def _verified(folder: Path) -> dict[str, Any]:
    """The manifest of a whole backup; nothing of it is damaged, and it names nothing outside it."""
    refused = f"{folder} is no whole backup"
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        known, schema, files = manifest["format"], manifest["schema_version"], manifest["files"]
        _missing, _origin = manifest["missing"], manifest["api_origin"]
        names = {_WAREHOUSE, _SETTINGS} - files.keys() or {name for name in files if not _FILE.fullmatch(name)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{refused} (its manifest.json: {error}): nothing was touched; give a folder {_NAME}…"
        ) from None
    if known != FORMAT or not isinstance(schema, int) or schema > SCHEMA_VERSION:
        raise ConfigError(
            f"{folder} was made by contio-pipeline {manifest.get('version')}, in a newer form than this one knows: upgrade "
            "contio-pipeline; nothing was touched"
        )
    for name in sorted(names) or sorted(files):
        try:
            whole = not names and _measure(folder / name) == files[name]
        except OSError:
            whole = False
        if not whole:
            raise ConfigError(f"{refused} ({name} is missing or damaged): nothing was touched; give another one")
    return manifest


def _put_back(data_dir: Path, folder: Path, manifest: dict[str, Any], now: datetime, *, replace: bool) -> Path | None:
    """Documents first: a warehouse never refers to what is not there. Returns where the warehouse before is now."""
    if (data_dir / _WAREHOUSE).exists() and not replace:
        raise ConfigError(
            f"{data_dir / _WAREHOUSE} is there already: set CONTIO_DATA_DIR to a new folder, or give --replace, which moves it "
            "aside"
        )
    store = DocumentStore(data_dir)
    store.clear_incoming()
    for name, (_size, digest) in manifest["files"].items():
        if name.startswith("documents/") and not store.intact(digest):
            incoming = store.incoming()
            try:
                with (folder / name).open("rb") as file:
                    while data := file.read(_READ_BYTES):
                        incoming.write(data)
                if incoming.digest != digest:
                    raise StorageError(f"{folder / name} changed while it was restored: run it again")
                incoming.keep()
            finally:
                incoming.drop()
    # DuckDB's own folder for what it puts aside: whatever is left there, the next opening removes.
    spill = data_dir / "warehouse.duckdb.tmp"
    shutil.rmtree(spill, ignore_errors=True)
    fresh = private_folder(spill) / "restored.duckdb"
    if _copy(folder / _WAREHOUSE, fresh) != manifest["files"][_WAREHOUSE]:
        raise StorageError(f"{folder / _WAREHOUSE} changed while it was restored: run it again")
    aside = data_dir / f"warehouse-before-restore-{now.astimezone(UTC).strftime(_STAMP)}.duckdb"
    return aside if replace_file(data_dir, fresh, aside) else None
