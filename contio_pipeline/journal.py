"""Answers of a list that is being read, kept in a file until it is committed: a sync that was killed asks for none of them twice.

What lives here: writing and reading that file. What never does: HTTP, SQL, what an answer means.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from contio_pipeline.folders import private_folder

log = logging.getLogger(__name__)

_LASTS = timedelta(days=1)
"""How old answers may be of which a list is put together. What changed since then, the next nights see."""

_RECORD = struct.Struct(">III")
"""Length of the key, length of the body, CRC-32 of both; then the key and the body."""


class Journal:
    """The answers of one list, by what was asked for; a context manager that leaves the file for the next sync.

    What a kill or a power failure cut off is passed over. Any thread may `get` and `put`. A list of one answer makes no file.

    Attributes:
        begun_at: when the oldest answer was had; None where nothing was kept from before.
    """

    def __init__(self, data_dir: Path, list_of: str, *, now: datetime) -> None:
        """Find what was kept of the list that the text names (API, account, stream)."""
        self._folder = data_dir / "unfinished"
        self._path = self._folder / f"{hashlib.sha256(list_of.encode()).hexdigest()[:16]}.answers"
        self._now = now
        self._kept: dict[bytes, tuple[int, int]] = {}
        self._file: IO[bytes] | None = None
        self._waiting: list[tuple[str, bytes]] = []
        self._lock = threading.RLock()
        self.begun_at: datetime | None = None
        self._closed = False
        try:
            self._read()
        except (OSError, ValueError, OverflowError) as error:
            self._do_without(error)

    def _read(self) -> None:
        if not self._path.exists():
            return
        self._file = self._path.open("r+b")
        end = 0
        for key, body, begin in self._records(self._file):
            end = begin + len(body)
            if key:
                self._kept[key] = (begin, len(body))
            elif body:
                self.begun_at = datetime.fromisoformat(json.loads(body))
        if self.begun_at is None or not self._kept or not timedelta(0) <= self._now - self.begun_at < _LASTS:
            self.restart()
            return
        self._file.truncate(end)
        self._file.seek(end)

    def _do_without(self, error: Exception) -> None:
        """It saves requests, and nothing else depends on it."""
        log.warning("%s cannot be used (%s): an interrupted listing will begin anew; remove it", self._path, error)
        self._kept, self.begun_at = {}, None
        self.close()

    @staticmethod
    def _records(file: IO[bytes]) -> Iterator[tuple[bytes, bytes, int]]:
        """Key, body, and where the body begins."""
        whole = os.fstat(file.fileno()).st_size
        while len(head := file.read(_RECORD.size)) == _RECORD.size:
            key_size, size, checksum = _RECORD.unpack(head)
            if key_size + size > whole - file.tell():
                return
            key, body = file.read(key_size), file.read(size)
            if zlib.crc32(body, zlib.crc32(key)) != checksum:
                return
            yield key, body, file.tell() - size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def get(self, key: str) -> bytes | None:
        """What was answered before."""
        place = self._kept.get(key.encode())
        return os.pread(self._file.fileno(), place[1], place[0]) if place and self._file else None

    def put(self, key: str, body: bytes) -> None:
        """Keep an answer."""
        with self._lock:
            if self._closed:  # it was still under way when the listing ended
                return
            if not self._file and not self._waiting:  # the only answer of most lists
                self._waiting.append((key, body))
                return
            try:
                if not self._file:
                    private_folder(self._folder)
                    self._file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "w+b")
                    self._waiting.insert(0, ("", json.dumps(self._now.isoformat()).encode()))
                for one in (*self._waiting, (key, body)):
                    self._write(self._file, *one)
                self._waiting.clear()
            except OSError as error:
                self._do_without(error)

    @staticmethod
    def _write(file: IO[bytes], key: str, body: bytes) -> None:
        name = key.encode()
        file.write(_RECORD.pack(len(name), len(body), zlib.crc32(body, zlib.crc32(name))) + name)
        file.write(body)
        file.flush()

    def restart(self) -> None:
        """Forget all of it: the list changed."""
        with self._lock:
            if self._file:
                self._file.close()
                self._file = None
            self._kept, self._waiting, self.begun_at = {}, [], None
            try:
                self._path.unlink(missing_ok=True)
            except OSError as error:
                self._do_without(error)

    def drop(self) -> None:
        """Forget all of it, for good: it is committed."""
        with self._lock:
            self.restart()
            self._closed = True

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._closed = True
            if self._file:
                self._file.close()
                self._file = None


def clear_journals(data_dir: Path, now: datetime) -> None:
    """Remove what no sync will take up any more."""
    for path in (data_dir / "unfinished").glob("*.answers"):
        with suppress(OSError):  # what is not to be had is not to be used either
            if now.timestamp() - path.stat().st_mtime > _LASTS.total_seconds():
                path.unlink()
